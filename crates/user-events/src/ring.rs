//! What was seen at which Lamport time, so that nothing is taken twice (Serf's event and query buffers).
//!
//! In: `insert`. Out: whether it is new. Invariants: at most `WINDOW` times are kept, the newest ones, and at most
//! `COUNT_MAX` things; what is older than all that is kept is `TooOld`, whether it was seen or not.

use crate::clock::LamportTime;
use std::collections::BTreeMap;

/// Serf's `EventBuffer` and `QueryBuffer`.
pub(crate) const WINDOW: u64 = 512;
/// Many members may fire at one time; a flood of them costs the oldest.
pub(crate) const COUNT_MAX: usize = 1024;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    New,
    Before,
    TooOld,
}

#[derive(Clone, Debug)]
pub(crate) struct Ring<K, V> {
    kept: BTreeMap<(LamportTime, K), V>,
    /// What is below was forgotten, or is not to be taken.
    floor: LamportTime,
}

impl<K: Ord + Copy, V> Ring<K, V> {
    pub(crate) const fn new() -> Self {
        Self {
            kept: BTreeMap::new(),
            floor: LamportTime(0),
        }
    }
    pub(crate) fn values(&self) -> impl Iterator<Item = &V> {
        self.kept.values()
    }
    /// Nothing below `floor` is taken any more. What was taken stays known.
    pub(crate) fn raise_floor(&mut self, floor: LamportTime) {
        self.floor = self.floor.max(floor);
    }
    pub(crate) fn insert(&mut self, time: LamportTime, key: K, value: V) -> Seen {
        if time < self.floor {
            return Seen::TooOld;
        }
        if self.kept.contains_key(&(time, key)) {
            return Seen::Before;
        }
        self.kept.insert((time, key), value);
        let newest = self.kept.last_key_value().map_or(time, |((newest, _), _)| *newest);
        self.raise_floor(LamportTime(newest.0.saturating_sub(WINDOW - 1)));
        if self.kept.len() > COUNT_MAX
            && let Some(((oldest, _), _)) = self.kept.first_key_value()
        {
            self.raise_floor(LamportTime(oldest.0 + 1));
        }
        // Not what a raised floor alone would forget: an event before our first exchange is still one that we fired.
        while self.kept.len() > COUNT_MAX
            || self
                .kept
                .first_key_value()
                .is_some_and(|((oldest, _), _)| oldest.0 + WINDOW <= newest.0)
        {
            self.kept.pop_first();
        }
        Seen::New
    }
    pub(crate) fn check(&self) {
        assert!(self.kept.len() <= COUNT_MAX, "the ring is bounded");
        if let (Some(((oldest, _), _)), Some(((newest, _), _))) =
            (self.kept.first_key_value(), self.kept.last_key_value())
        {
            assert!(newest.0 - oldest.0 < WINDOW, "the ring keeps a window of times");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn insert(ring: &mut Ring<u32, ()>, time: u64, key: u32) -> Seen {
        let seen = ring.insert(LamportTime(time), key, ());
        ring.check();
        seen
    }

    #[test]
    fn one_thing_is_new_once() {
        let mut ring = Ring::new();
        assert_eq!(insert(&mut ring, 5, 1), Seen::New);
        assert_eq!(insert(&mut ring, 5, 2), Seen::New);
        assert_eq!(insert(&mut ring, 5, 1), Seen::Before);
        assert_eq!(insert(&mut ring, 4, 1), Seen::New);
    }

    #[test]
    fn what_fell_out_of_the_window_is_too_old_and_never_new_again() {
        let mut ring = Ring::new();
        assert_eq!(insert(&mut ring, 1, 1), Seen::New);
        assert_eq!(insert(&mut ring, WINDOW, 1), Seen::New);
        assert_eq!(insert(&mut ring, 1, 1), Seen::Before);
        assert_eq!(insert(&mut ring, WINDOW + 1, 1), Seen::New);
        assert_eq!(insert(&mut ring, 1, 1), Seen::TooOld);
    }

    #[test]
    fn a_flood_at_one_time_costs_the_oldest_and_brings_nothing_back() {
        let mut ring = Ring::new();
        assert_eq!(insert(&mut ring, 1, 0), Seen::New);
        for key in 0..COUNT_MAX as u32 {
            assert_eq!(insert(&mut ring, 9, key), Seen::New);
        }
        assert_eq!(insert(&mut ring, 1, 0), Seen::TooOld);
        for key in 0..3 {
            insert(&mut ring, 9, COUNT_MAX as u32 + key);
        }
        assert_eq!(insert(&mut ring, 9, 0), Seen::TooOld);
    }
}
