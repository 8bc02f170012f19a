//! Links: to whom do datagrams get through, and to whom do they not although others reach it?
//!
//! A member whose ping was in vain, but whom others or a stream reached, is pinged `PING_COUNT` times more, one a probe
//! interval. When more than one of these is lost, the link is named: cut, one-way (we hear its pings, and our own reach
//! nothing), or lossy. It is looked at again every `AGAIN_INTERVAL`, until it is mended.
//! In: what probes found. Out: `Event::LinkFaulty`, `Event::LinkMended`, `Swim::reachability`.
//! Bounds: `LINK_COUNT_MAX` links are watched, `ACCUSATION_COUNT_MAX` accusers remembered, the latest ones.
//! Not here: whether a member is alive (`probe`): a bad link is no reason to think ill of it.

use super::{Event, Leave, Output, Swim};
use crate::message::Message;
use quorate_types::{Instant, NodeId};
use std::collections::BTreeMap;
use std::time::Duration;

const LINK_COUNT_MAX: usize = 64;
const ACCUSATION_COUNT_MAX: usize = 64;
const PING_COUNT: u32 = 5;
const AGAIN_INTERVAL: Duration = Duration::from_secs(60);

/// What is wrong with the way of datagrams between us and another member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkFault {
    /// None came through, in either direction as far as is known.
    Cut,
    /// Its pings reach us; ours, or its acks, reach nobody.
    OneWay,
    /// Of `sent_count` pings, `lost_count` had no ack.
    Lossy { lost_count: u32, sent_count: u32 },
}

/// A link that is not as it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    pub member: NodeId,
    pub fault: LinkFault,
    pub since: Instant,
}

/// Somebody thinks, or thought, that we do not answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Accusation {
    pub from: NodeId,
    pub count: u64,
    pub last_at: Instant,
}

/// Whom we do not reach directly though others do, and who says so of us.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reachability {
    pub links: Vec<Link>,
    pub accusations: Vec<Accusation>,
}

#[derive(Clone, Debug)]
struct Watch {
    /// The next ping, or the end of the round.
    next_at: Instant,
    sequence: u64,
    sent_count: u32,
    acked_count: u32,
    is_heard: bool,
    fault: Option<LinkFault>,
    since: Instant,
}

#[derive(Debug, Default)]
pub(super) struct Links {
    watches: BTreeMap<NodeId, Watch>,
    accusations: BTreeMap<NodeId, Accusation>,
}

impl Links {
    /// Others reached it, we did not.
    pub(super) fn missed(&mut self, now: Instant, member: NodeId) {
        if self.watches.len() >= LINK_COUNT_MAX || self.watches.contains_key(&member) {
            return;
        }
        self.watches.insert(
            member,
            Watch {
                next_at: now,
                sequence: 0,
                sent_count: 0,
                acked_count: 0,
                is_heard: false,
                fault: None,
                since: now,
            },
        );
    }
    /// A usual probe reached it directly; the next round of pings comes at once.
    pub(super) fn reached(&mut self, member: NodeId) {
        if self.watches.is_empty() {
            return;
        }
        if let Some(watch) = self.watches.get_mut(&member)
            && watch.sent_count == 0
        {
            watch.next_at = watch.since;
        }
    }
    pub(super) fn is_empty(&self) -> bool {
        self.watches.is_empty()
    }
    pub(super) fn heard_from(&mut self, member: NodeId) {
        if self.watches.is_empty() {
            return;
        }
        if let Some(watch) = self.watches.get_mut(&member) {
            watch.is_heard = true;
        }
    }
    pub(super) fn accused(&mut self, now: Instant, from: NodeId) {
        if self.accusations.len() >= ACCUSATION_COUNT_MAX && !self.accusations.contains_key(&from) {
            let oldest = self.accusations.values().min_by_key(|accusation| accusation.last_at);
            if let Some(oldest) = oldest.map(|accusation| accusation.from) {
                self.accusations.remove(&oldest);
            }
        }
        let accusation = self.accusations.entry(from).or_insert(Accusation {
            from,
            count: 0,
            last_at: now,
        });
        accusation.count += 1;
        accusation.last_at = now;
    }
    pub(super) fn forget(&mut self, member: NodeId) {
        self.watches.remove(&member);
    }
}

impl Swim {
    /// Whom we do not reach directly though others do, and who said of us that we do not answer.
    pub fn reachability(&self) -> Reachability {
        let links = self.links.watches.iter().filter_map(|(member, watch)| {
            Some(Link {
                member: *member,
                fault: watch.fault?,
                since: watch.since,
            })
        });
        Reachability {
            links: links.collect(),
            accusations: self.links.accusations.values().copied().collect(),
        }
    }

    pub(super) fn next_link_timeout(&self) -> Instant {
        if self.leave != Leave::No {
            return Instant::FAR_FUTURE;
        }
        let due = self.links.watches.values().map(|watch| watch.next_at);
        // What was due before is seen to by the next call.
        due.min().map_or(Instant::FAR_FUTURE, |at| at.max(self.now_last))
    }
    pub(super) fn drive_links(&mut self, now: Instant) {
        if self.links.watches.is_empty() || self.leave != Leave::No {
            return;
        }
        let due: Vec<NodeId> = self
            .links
            .watches
            .iter()
            .filter(|(_, watch)| watch.next_at <= now)
            .map(|(member, _)| *member)
            .collect();
        for member in due {
            let live = self
                .table
                .find(member)
                .filter(|seat| self.table.get(*seat).status().is_live());
            let Some(to) = live.map(|seat| self.table.get(seat).address()) else {
                // Nobody reaches it any more: that is no matter of the link.
                self.links.watches.remove(&member);
                continue;
            };
            let sequence = self.next_sequence();
            let watch = self.links.watches.get_mut(&member).expect("listed above");
            if watch.sent_count >= PING_COUNT {
                self.judge_link(now, member);
                continue;
            }
            watch.next_at = now + self.config.probe_interval;
            watch.sequence = sequence;
            watch.sent_count += 1;
            let messages = vec![Message::Ping {
                sequence,
                target: member,
            }];
            self.outputs.push_back(Output::Packet { to, messages });
        }
    }
    pub(super) fn handle_link_ack(&mut self, now: Instant, sequence: u64, target: NodeId) {
        if let Some(watch) = self.links.watches.get_mut(&target)
            && watch.sequence == sequence
            && watch.sent_count > 0
        {
            watch.sequence = 0;
            watch.acked_count += 1;
            self.hear_answer(now);
        }
    }
    /// A round of pings is over.
    fn judge_link(&mut self, now: Instant, member: NodeId) {
        let watch = self.links.watches.get_mut(&member).expect("named by the caller");
        let lost_count = watch.sent_count - watch.acked_count;
        let before = watch.fault;
        if lost_count <= 1 {
            self.links.watches.remove(&member);
            if before.is_some() {
                self.emit(Event::LinkMended { member });
            }
            return;
        }
        let fault = match (watch.acked_count, watch.is_heard) {
            (0, false) => LinkFault::Cut,
            (0, true) => LinkFault::OneWay,
            _ => LinkFault::Lossy {
                lost_count,
                sent_count: watch.sent_count,
            },
        };
        watch.fault = Some(fault);
        watch.sent_count = 0;
        watch.acked_count = 0;
        watch.is_heard = false;
        watch.next_at = now + AGAIN_INTERVAL;
        if before.is_none() {
            self.emit(Event::LinkFaulty { member, fault });
        }
    }

    pub(super) fn check_links(&self) {
        assert!(self.links.watches.len() <= LINK_COUNT_MAX, "watched links are bounded");
        assert!(
            self.links.accusations.len() <= ACCUSATION_COUNT_MAX,
            "accusations are bounded"
        );
        for member in self.links.watches.keys() {
            assert!(
                self.table.find(*member).is_some(),
                "only links to known members are watched"
            );
        }
    }
}
