//! A member's answer to the question whom its datagrams do not reach: the `_reachability` query.
//!
//! In: links and their faults, or bytes. Out: bytes of at most `user_events::RESPONSE_LEN_BYTES_MAX`, or links.
//! Beyond [`LINK_COUNT_MAX`] the rest is left out, and `is_cut_off` says so.
//! Not here: how links are judged (`swim`), who asks (`agent`).

use crate::codec::{Malformed, decode, encode};
use quorate_swim::{Link, LinkFault};
use quorate_types::NodeId;
use serde::{Deserialize, Serialize};

/// As many as fit a response beside its head: an id takes 16 bytes, a fault 11 at most.
pub const LINK_COUNT_MAX: usize = 32;
const LEN_BYTES_MAX: usize = 1024;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Fault {
    Cut,
    OneWay,
    Lossy { lost_count: u32, sent_count: u32 },
}

/// What a member says about its links. New fields are appended as new versions of the query's name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkReport {
    links: Vec<(NodeId, Fault)>,
    pub is_cut_off: bool,
}

impl LinkReport {
    pub fn new(links: &[Link]) -> Self {
        let fault = |fault| match fault {
            LinkFault::Cut => Fault::Cut,
            LinkFault::OneWay => Fault::OneWay,
            LinkFault::Lossy { lost_count, sent_count } => Fault::Lossy { lost_count, sent_count },
        };
        Self {
            links: links
                .iter()
                .take(LINK_COUNT_MAX)
                .map(|link| (link.member, fault(link.fault)))
                .collect(),
            is_cut_off: links.len() > LINK_COUNT_MAX,
        }
    }
    pub fn links(&self) -> impl Iterator<Item = (NodeId, LinkFault)> {
        self.links.iter().map(|(member, fault)| {
            let fault = match *fault {
                Fault::Cut => LinkFault::Cut,
                Fault::OneWay => LinkFault::OneWay,
                Fault::Lossy { lost_count, sent_count } => LinkFault::Lossy { lost_count, sent_count },
            };
            (*member, fault)
        })
    }
    pub fn encode(&self) -> Vec<u8> {
        encode(self)
    }
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        decode(bytes, LEN_BYTES_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use quorate_types::{Instant, Uuid};

    fn links(count: usize) -> Vec<Link> {
        (0..count)
            .map(|number| Link {
                member: NodeId(Uuid::from_bytes([number as u8; 16])),
                fault: LinkFault::Lossy {
                    lost_count: u32::MAX - 1,
                    sent_count: u32::MAX,
                },
                since: Instant::ZERO,
            })
            .collect()
    }

    #[test]
    fn the_longest_report_fits_a_response_and_comes_back() {
        let report = LinkReport::new(&links(LINK_COUNT_MAX + 1));
        assert!(report.is_cut_off);
        let bytes = report.encode();
        assert!(bytes.len() <= LEN_BYTES_MAX, "{}", bytes.len());
        assert_eq!(LinkReport::decode(&bytes).expect("it was encoded"), report);
        assert_eq!(report.links().count(), LINK_COUNT_MAX);
        assert!(!LinkReport::new(&links(LINK_COUNT_MAX)).is_cut_off);
    }

    #[test]
    fn nonsense_is_refused() {
        assert!(LinkReport::decode(&[0xff; 9]).is_err());
        assert!(LinkReport::decode(&vec![0; LEN_BYTES_MAX + 1]).is_err());
    }
}
