//! Lamport's clock (Lamport 1978): a number that orders what one event may have caused.
//!
//! Not here: what is stamped with it (`machine`).

use serde::{Deserialize, Serialize};
use std::fmt;

/// A moment of the pool's logical clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct LamportTime(pub u64);

impl fmt::Display for LamportTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// A pool that fires a million events a second comes this far in eighteen thousand years.
const TIME_MAX: u64 = 1 << 59;

/// The highest time heard of or given out.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LamportClock(LamportTime);

impl LamportClock {
    /// At 1, as Serf's clocks.
    pub(crate) const fn new() -> Self {
        Self(LamportTime(1))
    }
    pub(crate) const fn now(self) -> LamportTime {
        self.0
    }
    /// A time above all heard of.
    pub(crate) fn tick(&mut self) -> LamportTime {
        self.0.0 += 1;
        self.0
    }
    /// False when no honest member can have come to this time: it is not believed.
    pub(crate) fn witness(&mut self, time: LamportTime) -> bool {
        if time.0 >= TIME_MAX {
            return false;
        }
        self.0 = self.0.max(time);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tick_is_above_all_that_was_heard() {
        let mut clock = LamportClock::new();
        assert_eq!(clock.tick(), LamportTime(2));
        assert!(clock.witness(LamportTime(40)));
        assert!(clock.witness(LamportTime(7)));
        assert_eq!(clock.tick(), LamportTime(41));
    }

    #[test]
    fn a_time_that_would_use_the_clock_up_is_not_believed() {
        let mut clock = LamportClock::new();
        assert!(!clock.witness(LamportTime(u64::MAX)));
        assert_eq!(clock.now(), LamportTime(1));
    }
}
