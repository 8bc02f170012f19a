//! Updates waiting to be gossiped, each sent a limited number of times (memberlist's `TransmitLimitedQueue`).
//!
//! In: `push` an update about a member. Out: `take`, what fits a packet: least sent first, then newest first.
//! Invariants: one update a member (a newer one takes the older one's place); at most `count_max` updates, beyond
//! which the most often sent is dropped.

use crate::message::Update;
use quorate_types::NodeId;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

#[derive(Clone, Debug)]
struct Entry {
    update: Update,
    len_bytes: usize,
    transmit_count: u32,
    sequence: u64,
}

impl Entry {
    fn rank(&self, subject: NodeId) -> Rank {
        (self.transmit_count, Reverse(self.sequence), subject)
    }
}

type Rank = (u32, Reverse<u64>, NodeId);

#[derive(Clone, Debug)]
pub(crate) struct Broadcasts {
    count_max: usize,
    entries: BTreeMap<NodeId, Entry>,
    ranks: BTreeSet<Rank>,
    sequence_next: u64,
}

impl Broadcasts {
    pub(crate) fn new(count_max: usize) -> Self {
        Self {
            count_max: count_max.max(1),
            entries: BTreeMap::new(),
            ranks: BTreeSet::new(),
            sequence_next: 0,
        }
    }
    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }
    pub(crate) fn contains(&self, subject: NodeId) -> bool {
        self.entries.contains_key(&subject)
    }
    pub(crate) fn push(&mut self, update: Update) {
        let subject = update.subject();
        let entry = Entry {
            len_bytes: update.len_bytes(),
            update,
            transmit_count: 0,
            sequence: self.sequence_next,
        };
        self.sequence_next += 1;
        let rank = entry.rank(subject);
        if let Some(superseded) = self.entries.insert(subject, entry) {
            self.ranks.remove(&superseded.rank(subject));
        }
        self.ranks.insert(rank);
        if self.entries.len() > self.count_max {
            let (.., most_sent) = self.ranks.pop_last().expect("as many ranks as entries");
            self.entries.remove(&most_sent);
        }
    }
    /// Appends updates of together at most `len_bytes_max` to `into`. One sent `transmit_limit` times is dropped.
    pub(crate) fn take(&mut self, mut len_bytes_max: usize, transmit_limit: u32, into: &mut Vec<Update>) {
        // Looking further for something small enough costs more than the next packet: it is tried a few times only.
        const MISSES_MAX: usize = 16;
        let mut taken = Vec::new();
        let mut misses = 0;
        for rank in &self.ranks {
            let entry = &self.entries[&rank.2];
            if entry.len_bytes <= len_bytes_max {
                len_bytes_max -= entry.len_bytes;
                into.push(entry.update.clone());
                taken.push(*rank);
            } else {
                misses += 1;
                if misses > MISSES_MAX {
                    break;
                }
            }
        }
        for rank in taken {
            self.ranks.remove(&rank);
            let subject = rank.2;
            let entry = self.entries.get_mut(&subject).expect("a rank has an entry");
            entry.transmit_count += 1;
            if entry.transmit_count >= transmit_limit {
                self.entries.remove(&subject);
            } else {
                self.ranks.insert(entry.rank(subject));
            }
        }
    }
    pub(crate) fn check(&self) {
        assert_eq!(self.entries.len(), self.ranks.len(), "as many ranks as entries");
        assert!(self.entries.len() <= self.count_max, "the queue is bounded");
        for (subject, entry) in &self.entries {
            assert!(self.ranks.contains(&entry.rank(*subject)), "an entry has its rank");
            assert_eq!(entry.update.subject(), *subject, "an update stands under its subject");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use quorate_types::{Incarnation, Uuid};

    fn id(n: u8) -> NodeId {
        NodeId(Uuid::from_bytes([n; 16]))
    }
    fn suspect(n: u8, incarnation: u64) -> Update {
        Update::Suspect {
            member: id(n),
            incarnation: Incarnation(incarnation),
            from: id(0),
        }
    }
    #[track_caller]
    fn check(queue: &mut Broadcasts, len_bytes_max: usize, expected: &[Update]) {
        let mut taken = Vec::new();
        queue.take(len_bytes_max, 2, &mut taken);
        assert_eq!(taken, expected);
        queue.check();
    }

    #[test]
    fn the_least_sent_go_first_then_the_newest_and_each_is_sent_up_to_its_limit() {
        let len = suspect(1, 1).len_bytes();
        let mut queue = Broadcasts::new(10);
        for n in 1..=3 {
            queue.push(suspect(n, 1));
        }
        check(&mut queue, 2 * len, &[suspect(3, 1), suspect(2, 1)]);
        check(&mut queue, 2 * len, &[suspect(1, 1), suspect(3, 1)]);
        check(&mut queue, 2 * len + 1, &[suspect(2, 1), suspect(1, 1)]);
        assert!(queue.is_empty());
    }

    #[test]
    fn a_newer_update_takes_the_place_of_the_older_one() {
        let mut queue = Broadcasts::new(10);
        queue.push(suspect(1, 1));
        queue.push(suspect(1, 2));
        check(&mut queue, 1000, &[suspect(1, 2)]);
        assert_eq!(queue.len(), 1);
    }

    #[test]
    fn beyond_its_bound_the_most_sent_is_dropped() {
        let mut queue = Broadcasts::new(2);
        queue.push(suspect(1, 1));
        check(&mut queue, 1000, &[suspect(1, 1)]);
        queue.push(suspect(2, 1));
        queue.push(suspect(3, 1));
        assert!(!queue.contains(id(1)));
        check(&mut queue, 1000, &[suspect(3, 1), suspect(2, 1)]);
    }
}
