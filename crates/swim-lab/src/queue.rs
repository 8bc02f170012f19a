//! What happens next: a calendar of short slots, each a small heap ordered by time, then by the order of scheduling.
//!
//! In: `push` a value for an instant. Out: `pop_until`, the earliest that is due; `open_slot`, all that is about to be.
//! Equal instants keep their order, so that a run is one sequence whatever the machine.
//! One heap of everything costs a pool of thousands a cache miss at each of its levels.

use quorate_types::Instant;
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Instant, order of scheduling, place of the value.
type Entry = (Instant, u64, u32);

/// A slot is 2^18 ns, a quarter of a millisecond: little is scheduled into the slot that is open.
const SLOT_BITS: u32 = 18;
/// Slots ahead: two seconds. What is later waits in a heap.
const SLOT_COUNT: u64 = 1 << 13;

/// Values waiting for their instants.
#[derive(Debug)]
pub struct Queue<T> {
    /// The number of the open slot: its instants divided by its length.
    slot: u64,
    /// What is due in the open slot, or before.
    open: BinaryHeap<Reverse<Entry>>,
    /// The slots after it, by their numbers' remainders.
    ring: Vec<Vec<Entry>>,
    ring_count: usize,
    /// What is due after those.
    later: BinaryHeap<Reverse<Entry>>,
    /// Values lie still while the small entries move.
    values: Vec<Option<T>>,
    free: Vec<u32>,
    sequence_next: u64,
}

impl<T> Default for Queue<T> {
    fn default() -> Self {
        Self {
            slot: 0,
            open: BinaryHeap::new(),
            ring: std::iter::repeat_with(Vec::new).take(SLOT_COUNT as usize).collect(),
            ring_count: 0,
            later: BinaryHeap::new(),
            values: Vec::new(),
            free: Vec::new(),
            sequence_next: 0,
        }
    }
}

fn slot_of(at: Instant) -> u64 {
    at.as_nanos() >> SLOT_BITS
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
        self.put((at, self.sequence_next, place));
        self.sequence_next += 1;
    }
    fn put(&mut self, entry: Entry) {
        let slot = slot_of(entry.0);
        if slot <= self.slot {
            self.open.push(Reverse(entry));
        } else if slot - self.slot < SLOT_COUNT {
            self.ring[(slot % SLOT_COUNT) as usize].push(entry);
            self.ring_count += 1;
        } else {
            self.later.push(Reverse(entry));
        }
    }
    /// Opens the next slot that holds something due at or before `until`, once the open one is empty. True when one was
    /// opened: `open_values` are what is due in it.
    pub fn open_slot(&mut self, until: Instant) -> bool {
        if !self.open.is_empty() {
            return false;
        }
        let later_slot = self.later.peek().map_or(u64::MAX, |Reverse((at, ..))| slot_of(*at));
        let mut slot = later_slot;
        if self.ring_count > 0 {
            // One of the next SLOT_COUNT holds something.
            let mut ring_slots = self.slot..later_slot;
            let is_used = |slot: &u64| !self.ring[(*slot % SLOT_COUNT) as usize].is_empty();
            slot = ring_slots.find(is_used).unwrap_or(later_slot);
        }
        if slot > slot_of(until) {
            return false;
        }
        self.slot = slot;
        self.refill();
        let entries = &mut self.ring[(slot % SLOT_COUNT) as usize];
        self.ring_count -= entries.len();
        self.open.extend(entries.drain(..).map(Reverse));
        !self.open.is_empty()
    }
    /// What came within reach of the ring.
    fn refill(&mut self) {
        while let Some(Reverse((at, ..))) = self.later.peek()
            && slot_of(*at).saturating_sub(self.slot) < SLOT_COUNT
        {
            let Reverse(entry) = self.later.pop().expect("peeked above");
            self.put(entry);
        }
    }
    /// In no order.
    pub fn open_values(&self) -> impl Iterator<Item = &T> {
        let places = self.open.iter().map(|Reverse((_, _, place))| *place as usize);
        places.map(|place| self.values[place].as_ref().expect("an entry has its value"))
    }
    /// The earliest value due at or before `until`, and when it is due.
    pub fn pop_until(&mut self, until: Instant) -> Option<(Instant, T)> {
        self.open_slot(until);
        let Reverse((at, ..)) = self.open.peek()?;
        if *at > until {
            return None;
        }
        let Reverse((at, _, place)) = self.open.pop().expect("peeked above");
        let value = self.values[place as usize].take().expect("an entry has its value");
        self.free.push(place);
        Some((at, value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;
    use std::time::Duration;

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

    proptest! {
        #[test]
        fn the_order_is_that_of_one_sorted_list(steps in prop::collection::vec((any::<bool>(), 0_u64..40), 1..200)) {
            let (mut queue, mut sorted) = (Queue::default(), BTreeMap::new());
            let mut now = Instant::ZERO;
            for (number, (is_push, size)) in steps.into_iter().enumerate() {
                // From nanoseconds to beyond the ring.
                let at = now + Duration::from_nanos((1_u64 << size.min(34)) - 1);
                if is_push {
                    queue.push(at, number);
                    sorted.insert((at, number), ());
                    continue;
                }
                queue.open_slot(at);
                loop {
                    let wanted = sorted.first_key_value().map(|(key, ())| *key).filter(|(due, _)| *due <= at);
                    let got = queue.pop_until(at);
                    prop_assert_eq!(got, wanted);
                    match wanted {
                        Some(key) => sorted.remove(&key),
                        None => break,
                    };
                }
                now = at;
            }
        }
    }
}
