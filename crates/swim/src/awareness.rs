//! Awareness: how healthy this member thinks it is itself (Lifeguard's Local Health Multiplier).
//!
//! A member that misses acks and nacks is likely slow itself; it then probes more slowly and gives answers more time.
//! Invariant: `score < max`; 0 is healthy.

use std::time::Duration;

#[derive(Clone, Debug)]
pub(crate) struct Awareness {
    max: u32,
    score: u32,
}

impl Awareness {
    pub(crate) fn new(max: u32) -> Self {
        Self {
            max: max.max(1),
            score: 0,
        }
    }
    pub(crate) fn score(&self) -> u32 {
        self.score
    }
    pub(crate) fn worsen(&mut self, by: u32) {
        self.score = self.score.saturating_add(by).min(self.max - 1);
    }
    pub(crate) fn improve(&mut self) {
        self.score = self.score.saturating_sub(1);
    }
    pub(crate) fn scale(&self, timeout: Duration) -> Duration {
        timeout.saturating_mul(self.score + 1)
    }
    pub(crate) fn check(&self) {
        assert!(self.score < self.max, "awareness score below its maximum");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_score_stays_within_its_bounds_and_scales_timeouts() {
        let mut awareness = Awareness::new(8);
        let second = Duration::from_secs(1);
        awareness.improve();
        assert_eq!(awareness.scale(second), second);
        awareness.worsen(3);
        assert_eq!(awareness.scale(second), 4 * second);
        awareness.worsen(100);
        assert_eq!(awareness.scale(second), 8 * second);
        awareness.check();
        awareness.improve();
        assert_eq!(awareness.score(), 6);
    }
}
