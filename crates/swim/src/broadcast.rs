//! Updates waiting to be gossiped, each sent a limited number of times (memberlist's `TransmitLimitedQueue`).
//!
//! In: `push` an update about a member. Out: `take`, what fits a packet: least sent first, then newest first.
//! Invariants: one update and one intent a member (a newer one takes the older one's place); at most `count_max` updates, beyond
//! which the most often sent is dropped.

use crate::message::{Message, Update};
use hashbrown::HashTable;
use quorate_types::NodeId;

#[derive(Clone, Debug)]
struct Entry {
    update: Update,
    subject: Subject,
    sequence: u64,
    len_bytes: u32,
    transmit_count: u32,
}

/// Where an entry stands in its tier.
#[derive(Clone, Copy, Debug)]
struct Rank {
    sequence: u64,
    entry: u32,
}

#[derive(Clone, Debug)]
pub(crate) struct Broadcasts {
    count_max: usize,
    /// Odd, and not known to peers: they cannot choose ids that collide.
    key: u64,
    dropped_count: u64,
    entries: Vec<Entry>,
    subjects: HashTable<u32>,
    /// By how often they were sent; in each the newest last.
    tiers: Vec<Vec<Rank>>,
    sequence_next: u64,
}

/// How a member is and what is wanted of it are told apart.
type Subject = (NodeId, bool);

fn hash(key: u64, (member, is_intent): Subject) -> u64 {
    let id = member.0.as_u128() ^ u128::from(is_intent);
    let product = u128::from((id >> 64) as u64 ^ key) * u128::from(id as u64 ^ key.rotate_left(32));
    (product >> 64) as u64 ^ product as u64
}

fn subject_of(update: &Update) -> Subject {
    (update.subject(), update.is_intent())
}

fn index(entry: usize) -> u32 {
    u32::try_from(entry).expect("the queue is far shorter than 2^32")
}

impl Broadcasts {
    pub(crate) fn new(count_max: usize, key: u64) -> Self {
        Self {
            count_max: count_max.max(1),
            key,
            dropped_count: 0,
            entries: Vec::new(),
            subjects: HashTable::new(),
            tiers: Vec::new(),
            sequence_next: 0,
        }
    }
    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }
    /// News of how this member is waits.
    pub(crate) fn contains(&self, member: NodeId) -> bool {
        self.find((member, false)).is_some()
    }
    fn find(&self, subject: Subject) -> Option<usize> {
        let hash = hash(self.key, subject);
        let found = self
            .subjects
            .find(hash, |entry| self.entries[*entry as usize].subject == subject);
        found.map(|entry| *entry as usize)
    }
    pub(crate) fn push(&mut self, update: Update) {
        let subject = subject_of(&update);
        let len_bytes = u32::try_from(update.len_bytes()).expect("an update fits a packet");
        let sequence = self.sequence_next;
        self.sequence_next += 1;
        let entry = match self.find(subject) {
            Some(superseded) => {
                self.unrank(superseded);
                let entry = &mut self.entries[superseded];
                entry.update = update;
                entry.len_bytes = len_bytes;
                entry.sequence = sequence;
                entry.transmit_count = 0;
                superseded
            }
            None => {
                if self.entries.len() >= self.count_max {
                    self.drop_most_sent();
                }
                let entry = self.entries.len();
                self.entries.push(Entry {
                    update,
                    subject,
                    sequence,
                    len_bytes,
                    transmit_count: 0,
                });
                let (key, entries) = (self.key, &self.entries);
                let hash_of = |entry: &u32| hash(key, entries[*entry as usize].subject);
                self.subjects.insert_unique(hash(key, subject), index(entry), hash_of);
                entry
            }
        };
        self.rank(entry);
    }
    pub(crate) fn dropped_count(&self) -> u64 {
        self.dropped_count
    }
    pub(crate) fn clear(&mut self) {
        self.entries = Vec::new();
        self.subjects = HashTable::new();
        self.tiers = Vec::new();
    }
    /// Among those, the oldest.
    fn drop_most_sent(&mut self) {
        self.dropped_count += 1;
        let rank = self.tiers.iter().rev().find_map(|tier| tier.first());
        let entry = rank.expect("as many ranks as entries").entry as usize;
        self.unrank(entry);
        self.remove(entry);
    }
    fn rank(&mut self, entry: usize) {
        let Entry {
            sequence,
            transmit_count,
            ..
        } = self.entries[entry];
        let tier = transmit_count as usize;
        if self.tiers.len() <= tier {
            self.tiers.resize_with(tier + 1, Vec::new);
        }
        let tier = &mut self.tiers[tier];
        let rank = Rank {
            sequence,
            entry: index(entry),
        };
        // Nearly always at the end.
        let place = match tier.last() {
            Some(last) if last.sequence > sequence => tier.partition_point(|other| other.sequence < sequence),
            _ => tier.len(),
        };
        tier.insert(place, rank);
    }
    fn place_of(&self, entry: usize) -> (usize, usize) {
        let Entry {
            sequence,
            transmit_count,
            ..
        } = self.entries[entry];
        let tier = transmit_count as usize;
        let place = self.tiers[tier].partition_point(|other| other.sequence < sequence);
        (tier, place)
    }
    fn unrank(&mut self, entry: usize) {
        let (tier, place) = self.place_of(entry);
        self.tiers[tier].remove(place);
    }
    /// One without a rank.
    fn remove(&mut self, entry: usize) {
        let hash_removed = hash(self.key, self.entries[entry].subject);
        let found = self.subjects.find_entry(hash_removed, |other| *other as usize == entry);
        found.expect("an entry is found by its subject").remove();
        self.entries.swap_remove(entry);
        if let Some(moved) = self.entries.get(entry) {
            let (hash_moved, last) = (hash(self.key, moved.subject), self.entries.len());
            let found = self.subjects.find_mut(hash_moved, |other| *other as usize == last);
            *found.expect("an entry is found by its subject") = index(entry);
            let (tier, place) = self.place_of(entry);
            self.tiers[tier][place].entry = index(entry);
        }
        if self.entries.is_empty() {
            // What a storm took is given back.
            self.clear();
        }
    }
    /// Appends updates of together at most `len_bytes_max` to `into`. One sent `transmit_limit` times is dropped.
    pub(crate) fn take(&mut self, mut len_bytes_max: usize, transmit_limit: u32, into: &mut Vec<Message>) {
        // Looking further for something small enough costs more than the next packet: it is tried a few times only.
        const MISSES_MAX: usize = 16;
        let mut misses = 0;
        let mut taken = Vec::new();
        'tiers: for tier in &mut self.tiers {
            let mut place = tier.len();
            while place > 0 {
                place -= 1;
                let entry = &self.entries[tier[place].entry as usize];
                if entry.len_bytes as usize <= len_bytes_max {
                    len_bytes_max -= entry.len_bytes as usize;
                    into.push(Message::Update(entry.update.clone()));
                    taken.push(tier.remove(place).entry as usize);
                } else {
                    misses += 1;
                    if misses > MISSES_MAX {
                        break 'tiers;
                    }
                }
            }
        }
        taken.retain(|entry| {
            self.entries[*entry].transmit_count += 1;
            let is_done = self.entries[*entry].transmit_count >= transmit_limit;
            if !is_done {
                self.rank(*entry);
            }
            is_done
        });
        // The last first: what takes the place of one that is removed stays.
        taken.sort_unstable();
        for entry in taken.into_iter().rev() {
            self.remove(entry);
        }
    }
    pub(crate) fn check(&self) {
        let rank_count: usize = self.tiers.iter().map(Vec::len).sum();
        assert_eq!(self.entries.len(), rank_count, "as many ranks as entries");
        assert_eq!(
            self.entries.len(),
            self.subjects.len(),
            "an update stands under its subject"
        );
        assert!(self.entries.len() <= self.count_max, "the queue is bounded");
        for (index, entry) in self.entries.iter().enumerate() {
            assert_eq!(
                subject_of(&entry.update),
                entry.subject,
                "an update stands under its subject"
            );
            assert_eq!(
                self.find(entry.subject),
                Some(index),
                "an update is found by its subject"
            );
            let (tier, place) = self.place_of(index);
            assert_eq!(self.tiers[tier][place].entry as usize, index, "an entry has its rank");
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
        let expected: Vec<Message> = expected.iter().cloned().map(Message::Update).collect();
        assert_eq!(taken, expected);
        queue.check();
    }

    #[test]
    fn the_least_sent_go_first_then_the_newest_and_each_is_sent_up_to_its_limit() {
        let len = suspect(1, 1).len_bytes();
        let mut queue = Broadcasts::new(10, 1);
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
        let mut queue = Broadcasts::new(10, 1);
        queue.push(suspect(1, 1));
        queue.push(suspect(1, 2));
        check(&mut queue, 1000, &[suspect(1, 2)]);
        assert_eq!(queue.len(), 1);
    }

    #[test]
    fn beyond_its_bound_the_most_sent_is_dropped() {
        let mut queue = Broadcasts::new(2, 1);
        queue.push(suspect(1, 1));
        check(&mut queue, 1000, &[suspect(1, 1)]);
        queue.push(suspect(2, 1));
        queue.push(suspect(3, 1));
        assert!(!queue.contains(id(1)));
        check(&mut queue, 1000, &[suspect(3, 1), suspect(2, 1)]);
    }
}
