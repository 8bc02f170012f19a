//! Comparing the servers' states: a server whose state is another than the majority's stops.
//!
//! Every [`INTERVAL`] log indexes each server notes the hash of its state and has it written to the log. Who reads there
//! that a majority of the voters agree on another hash than its own, at the same index, has a damaged copy: of its
//! memory, its disk, or a mistake that only it made. Each server judges for itself and alike, since all read one log.
//! In: own hashes, those of the log. Out: [`Difference`], at which the caller ends. Invariants: at most
//! [`KEPT_COUNT_MAX`] indexes are remembered; hashes made by different rules are never compared; without a majority of
//! voters on one hash nobody stops.
//! Not here: how a state is hashed (`quorate_store`), who writes the hashes to the log (`agent`).

use quorate_store::StateHash;
use quorate_types::{LogIndex, NodeId};
use std::collections::{BTreeMap, BTreeSet};
use thiserror::Error;

/// A hash is taken at each log index that this divides. A thousand: what it costs (an entry of each server) is lost in
/// the rest, and a difference is noticed within a second or so of a busy cluster's writes.
pub(crate) const INTERVAL: u64 = 1024;
/// Indexes of which hashes are remembered. A server's hash arrives long before so many more were taken, or is of no use.
const KEPT_COUNT_MAX: usize = 8;

/// This server's state is not the majority's.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "the state at log index {at} differs from that of {agreed_count} of {voter_count} servers (hash {own:016x}, theirs \
     {theirs:016x}): this server's copy is damaged; delete its data directory and let it join again"
)]
pub(crate) struct Difference {
    pub at: LogIndex,
    pub own: u64,
    pub theirs: u64,
    pub agreed_count: usize,
    pub voter_count: usize,
}

/// What is known of the states at one index.
#[derive(Debug, Default)]
struct Point {
    own: Option<u64>,
    told: BTreeMap<NodeId, u64>,
}

/// The hashes of the last indexes.
#[derive(Debug, Default)]
pub(crate) struct Comparison {
    points: BTreeMap<LogIndex, Point>,
}

impl Comparison {
    /// This server's own hash at an index.
    pub fn note(&mut self, at: LogIndex, hash: u64) {
        self.point(at).own = Some(hash);
        self.trim();
    }

    /// A hash from the log. An error when it makes a majority of `voters` that disagrees with this server.
    pub fn hear(&mut self, hash: &StateHash, voters: &BTreeSet<NodeId>) -> Result<(), Difference> {
        if hash.rules != StateHash::RULES || !hash.at.0.is_multiple_of(INTERVAL) {
            return Ok(());
        }
        self.point(hash.at).told.insert(hash.server, hash.hash);
        let point = &self.points[&hash.at];
        let agreed = point
            .told
            .iter()
            .filter(|(server, told)| voters.contains(server) && **told == hash.hash);
        let agreed_count = agreed.count();
        let verdict = match point.own {
            Some(own) if own != hash.hash && agreed_count > voters.len() / 2 => Err(Difference {
                at: hash.at,
                own,
                theirs: hash.hash,
                agreed_count,
                voter_count: voters.len(),
            }),
            _ => Ok(()),
        };
        self.trim();
        verdict
    }

    /// Nothing is known of the states before: they were another's.
    pub fn clear(&mut self) {
        self.points.clear();
    }

    fn point(&mut self, at: LogIndex) -> &mut Point {
        self.points.entry(at).or_default()
    }

    fn trim(&mut self) {
        while self.points.len() > KEPT_COUNT_MAX {
            self.points.pop_first();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use quorate_types::Uuid;

    const AT: LogIndex = LogIndex(INTERVAL);

    fn server(n: u8) -> NodeId {
        NodeId(Uuid::from_bytes([n; 16]))
    }
    fn voters(count: u8) -> BTreeSet<NodeId> {
        (1..=count).map(server).collect()
    }
    fn told(n: u8, hash: u64) -> StateHash {
        StateHash {
            server: server(n),
            at: AT,
            rules: StateHash::RULES,
            hash,
        }
    }

    #[test]
    fn who_differs_from_a_majority_stops_and_only_that_one() {
        let voters = voters(3);
        let mut odd = Comparison::default();
        odd.note(AT, 13);
        assert_eq!(odd.hear(&told(1, 13), &voters), Ok(()));
        assert_eq!(odd.hear(&told(2, 7), &voters), Ok(()));
        let difference = odd.hear(&told(3, 7), &voters).unwrap_err();
        assert_eq!(
            difference.to_string(),
            "the state at log index 1024 differs from that of 2 of 3 servers (hash 000000000000000d, theirs \
             0000000000000007): this server's copy is damaged; delete its data directory and let it join again"
        );
        let mut even = Comparison::default();
        even.note(AT, 7);
        for hash in [told(1, 13), told(2, 7), told(3, 7)] {
            assert_eq!(even.hear(&hash, &voters), Ok(()));
        }
    }

    #[test]
    fn without_a_majority_nobody_stops() {
        let mut comparison = Comparison::default();
        comparison.note(AT, 1);
        for (n, hash) in [(1, 1), (2, 1), (3, 2), (4, 2)] {
            assert_eq!(comparison.hear(&told(n, hash), &voters(4)), Ok(()));
        }
        // Neither do learners make one, nor one server that says it twice.
        assert_eq!(comparison.hear(&told(9, 2), &voters(4)), Ok(()));
        assert_eq!(comparison.hear(&told(3, 2), &voters(4)), Ok(()));
    }

    #[test]
    fn hashes_of_other_rules_or_indexes_are_not_compared() {
        let mut comparison = Comparison::default();
        comparison.note(AT, 1);
        for n in 1..=3 {
            let newer = StateHash {
                rules: StateHash::RULES + 1,
                ..told(n, 2)
            };
            let elsewhere = StateHash {
                at: LogIndex(2 * INTERVAL),
                ..told(n, 2)
            };
            let never_taken = StateHash {
                at: LogIndex(INTERVAL + 1),
                ..told(n, 2)
            };
            for hash in [newer, elsewhere, never_taken] {
                assert_eq!(comparison.hear(&hash, &voters(3)), Ok(()));
            }
        }
        // What was learned of an index before its own hash was known is of no use either: it is judged when one is told.
        assert_eq!(comparison.points.len(), 2);
    }

    #[test]
    fn memory_is_bounded_whatever_is_told() {
        let mut comparison = Comparison::default();
        for step in 1..100 {
            let hash = StateHash {
                at: LogIndex(step * INTERVAL),
                ..told(1, step)
            };
            comparison.note(hash.at, step);
            assert_eq!(comparison.hear(&hash, &voters(3)), Ok(()));
        }
        assert_eq!(comparison.points.len(), KEPT_COUNT_MAX);
    }
}
