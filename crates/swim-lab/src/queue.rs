//! What happens next: a binary heap ordered by time, then by the order in which things were scheduled.
//!
//! In: `push` a value for an instant. Out: `pop_until`, the earliest that is due. Equal instants keep their order, so
//! that a run is one sequence whatever the machine.

use quorate_types::Instant;
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Instant, order of scheduling, place of the value.
type Entry = (Instant, u64, u32);

/// Values waiting for their instants.
#[derive(Debug)]
pub struct Queue<T> {
    heap: BinaryHeap<Reverse<Entry>>,
    /// Values lie still while the heap moves its small entries.
    values: Vec<Option<T>>,
    free: Vec<u32>,
    sequence_next: u64,
}

impl<T> Default for Queue<T> {
    fn default() -> Self {
        Self {
            heap: BinaryHeap::new(),
            values: Vec::new(),
            free: Vec::new(),
            sequence_next: 0,
        }
    }
}

impl<T> Queue<T> {
    pub fn push(&mut self, at: Instant, value: T) {
        let place = match self.free.pop() {
            Some(place) => {
                self.values[place as usize] = Some(value);
                place
            }
            None => {
                self.values.push(Some(value));
                u32::try_from(self.values.len() - 1).expect("fewer than 2^32 values wait at once")
            }
        };
        self.heap.push(Reverse((at, self.sequence_next, place)));
        self.sequence_next += 1;
    }
    /// The earliest value due at or before `until`, and when it is due.
    pub fn pop_until(&mut self, until: Instant) -> Option<(Instant, T)> {
        let Reverse((at, ..)) = self.heap.peek()?;
        if *at > until {
            return None;
        }
        let Reverse((at, _, place)) = self.heap.pop().expect("peeked above");
        let value = self.values[place as usize].take().expect("an entry has its value");
        self.free.push(place);
        Some((at, value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_earliest_comes_first_and_equals_keep_their_order() {
        let mut queue = Queue::default();
        for (at, value) in [(5, 'c'), (3, 'a'), (5, 'd'), (3, 'b'), (9, 'e')] {
            queue.push(Instant::from_millis(at), value);
        }
        let mut order = String::new();
        while let Some((_, value)) = queue.pop_until(Instant::from_millis(5)) {
            order.push(value);
        }
        assert_eq!(order, "abcd");
        // Places are used again.
        queue.push(Instant::from_millis(1), 'z');
        assert_eq!(queue.values.len(), 5);
        assert_eq!(
            queue.pop_until(Instant::FAR_FUTURE),
            Some((Instant::from_millis(1), 'z'))
        );
        assert_eq!(
            queue.pop_until(Instant::FAR_FUTURE),
            Some((Instant::from_millis(9), 'e'))
        );
        assert_eq!(queue.pop_until(Instant::FAR_FUTURE), None);
    }
}
