//! Events and queries waiting to be gossiped, each sent a limited number of times.
//!
//! In: `push`. Out: `take`, what fits a packet: least sent first, then newest first. Invariant: at most `COUNT_MAX` wait,
//! beyond which the most often sent is dropped.

use crate::message::Message;
use std::cmp::Reverse;
use std::collections::BTreeMap;

/// A window of events and one of queries: more at once is a flood, which exchanges of full state make good.
pub(crate) const COUNT_MAX: usize = 1024;

/// Times sent, then the newest first.
type Rank = (u32, Reverse<u64>);

#[derive(Clone, Debug, Default)]
pub(crate) struct Broadcasts {
    entries: BTreeMap<Rank, (Message, usize)>,
    sequence_next: u64,
    dropped_count: u64,
}

impl Broadcasts {
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }
    pub(crate) fn dropped_count(&self) -> u64 {
        self.dropped_count
    }
    pub(crate) fn messages(&self) -> impl Iterator<Item = &Message> {
        self.entries.values().map(|(message, _)| message)
    }
    pub(crate) fn push(&mut self, message: Message) {
        let len_bytes = message.len_bytes();
        self.entries
            .insert((0, Reverse(self.sequence_next)), (message, len_bytes));
        self.sequence_next += 1;
        if self.entries.len() > COUNT_MAX {
            self.entries.pop_last();
            self.dropped_count += 1;
        }
    }
    /// Messages of together at most `len_bytes_max`. One sent `transmit_limit` times is dropped.
    pub(crate) fn take(&mut self, mut len_bytes_max: usize, transmit_limit: u32) -> Vec<Message> {
        // Looking further for something small enough costs more than the next packet: it is tried a few times only.
        const MISSES_MAX: usize = 16;
        let mut misses = 0;
        let mut taken = Vec::new();
        for (rank, (_, len_bytes)) in &self.entries {
            if *len_bytes <= len_bytes_max {
                len_bytes_max -= len_bytes;
                taken.push(*rank);
            } else {
                misses += 1;
                if misses > MISSES_MAX {
                    break;
                }
            }
        }
        let mut messages = Vec::with_capacity(taken.len());
        for rank in taken {
            let (message, len_bytes) = self.entries.remove(&rank).expect("found above");
            messages.push(message.clone());
            let transmit_count = rank.0 + 1;
            if transmit_count < transmit_limit {
                self.entries.insert((transmit_count, rank.1), (message, len_bytes));
            }
        }
        messages
    }
    pub(crate) fn check(&self) {
        assert!(self.entries.len() <= COUNT_MAX, "the queue is bounded");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::QueryId;
    use quorate_types::NodeId;

    fn message(n: u64) -> Message {
        Message::QueryAck {
            query: QueryId(n),
            from: NodeId::default(),
        }
    }
    #[track_caller]
    fn check(queue: &mut Broadcasts, count: usize, expected: &[u64]) {
        let taken = queue.take(count * message(0).len_bytes(), 2);
        assert_eq!(taken, expected.iter().copied().map(message).collect::<Vec<_>>());
        queue.check();
    }

    #[test]
    fn the_least_sent_go_first_then_the_newest_and_each_is_sent_up_to_its_limit() {
        let mut queue = Broadcasts::default();
        for n in 1..=3 {
            queue.push(message(n));
        }
        check(&mut queue, 2, &[3, 2]);
        check(&mut queue, 2, &[1, 3]);
        check(&mut queue, 2, &[2, 1]);
        assert_eq!(queue.len(), 0);
    }

    #[test]
    fn beyond_its_bound_the_most_sent_is_dropped() {
        let mut queue = Broadcasts::default();
        queue.push(message(0));
        check(&mut queue, 1, &[0]);
        for n in 1..=COUNT_MAX as u64 {
            queue.push(message(n));
        }
        assert!(!queue.messages().any(|waiting| *waiting == message(0)));
        assert_eq!(queue.dropped_count(), 1);
    }
}
