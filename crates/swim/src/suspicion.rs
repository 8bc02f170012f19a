//! Suspicion: how long a member stays `suspect` before it is declared `dead`.
//!
//! Lifeguard's LHA-Suspicion: the timeout starts at its maximum and shrinks, on a logarithmic scale, as independent
//! members confirm. Without enough members to confirm it is the minimum from the start.
//! In: `new`, `confirm`. Out: `expires_at`; the caller gossips.
//! Invariants: `timeout_min <= timeout <= timeout_max`, unless extended or hastened; a confirmer counts once; a confirmation never lengthens it.
//! Not here: who is probed (`probe`), how healthy we are ourselves (`awareness`).

use quorate_types::{Instant, NodeId};
use std::collections::BTreeSet;
use std::time::Duration;

#[derive(Clone, Debug)]
pub(crate) struct Suspicion {
    confirmation_count_max: u32,
    timeout_min: Duration,
    timeout_max: Duration,
    started_at: Instant,
    expires_at: Instant,
    /// The first accuser, who is no confirmer, and those who confirmed.
    accusers: BTreeSet<NodeId>,
}

impl Suspicion {
    pub(crate) fn new(
        now: Instant,
        from: NodeId,
        confirmation_count_max: u32,
        timeout_min: Duration,
        timeout_max: Duration,
    ) -> Self {
        let timeout = if confirmation_count_max == 0 {
            timeout_min
        } else {
            timeout_max
        };
        Self {
            confirmation_count_max,
            timeout_min,
            timeout_max,
            started_at: now,
            expires_at: now + timeout,
            accusers: BTreeSet::from([from]),
        }
    }
    pub(crate) fn expires_at(&self) -> Instant {
        self.expires_at
    }
    pub(crate) fn confirmation_count(&self) -> u32 {
        u32::try_from(self.accusers.len() - 1).expect("bounded by confirmation_count_max")
    }
    /// True when this was news: an independent confirmation that still shortens the timeout.
    pub(crate) fn confirm(&mut self, from: NodeId) -> bool {
        if self.confirmation_count() >= self.confirmation_count_max || !self.accusers.insert(from) {
            return false;
        }
        let share = libm::log(f64::from(self.confirmation_count()) + 1.0)
            / libm::log(f64::from(self.confirmation_count_max) + 1.0);
        let span_ms = self.timeout_max.saturating_sub(self.timeout_min).as_millis() as f64;
        let cut = Duration::from_millis(libm::ceil(share * span_ms) as u64);
        let timeout = self.timeout_max.saturating_sub(cut).max(self.timeout_min);
        // In the past when it was nearly over: the caller's next look at the clock ends it.
        self.expires_at = self.expires_at.min(self.started_at + timeout);
        true
    }
    /// Ends no sooner than `at`: the accused did not have its chance to answer us yet. True when that changed anything.
    pub(crate) fn extend(&mut self, at: Instant) -> bool {
        let is_later = at > self.expires_at;
        self.expires_at = self.expires_at.max(at);
        is_later
    }
    /// Ends at `at`, if that is sooner.
    pub(crate) fn hasten(&mut self, at: Instant) {
        self.expires_at = self.expires_at.min(at.max(self.started_at));
    }
    /// The time in which the accused hears of it, refutes, and we hear of that.
    pub(crate) fn grace(&self) -> Duration {
        self.timeout_min / 4
    }
    pub(crate) fn started_at(&self) -> Instant {
        self.started_at
    }
    pub(crate) fn accusers(&self) -> impl Iterator<Item = NodeId> {
        self.accusers.iter().copied()
    }
    /// Somebody else than `from` thinks so, too.
    pub(crate) fn has_other_accuser(&self, from: NodeId) -> bool {
        self.accusers.iter().any(|accuser| *accuser != from)
    }
    /// Starts and ends later: the time between did not count.
    pub(crate) fn delay(&mut self, by: Duration) {
        self.started_at += by;
        self.expires_at += by;
    }
    pub(crate) fn check(&self) {
        assert!(
            self.confirmation_count() <= self.confirmation_count_max,
            "confirmations are bounded"
        );
        let timeout = self.expires_at - self.started_at;
        assert!(timeout >= self.grace(), "a suspicion leaves time to refute it");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use quorate_types::Uuid;

    fn id(n: u8) -> NodeId {
        NodeId(Uuid::from_bytes([n; 16]))
    }
    fn secs(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    #[test]
    fn confirmations_shorten_the_timeout_from_maximum_to_minimum() {
        let mut suspicion = Suspicion::new(Instant::ZERO, id(1), 3, secs(2), secs(30));
        let mut timeouts = vec![suspicion.expires_at().as_millis()];
        for from in 2..=4 {
            assert!(suspicion.confirm(id(from)));
            suspicion.check();
            timeouts.push(suspicion.expires_at().as_millis());
        }
        // memberlist's own table for k = 3, 2 s and 30 s: 30, 16, 7.810, 2.
        assert_eq!(timeouts, [30_000, 16_000, 7_810, 2_000]);
        assert!(!suspicion.confirm(id(5)), "enough is enough");
    }

    #[test]
    fn neither_the_accuser_nor_a_confirmer_counts_twice() {
        let mut suspicion = Suspicion::new(Instant::ZERO, id(1), 2, secs(1), secs(6));
        assert!(!suspicion.confirm(id(1)));
        assert!(suspicion.confirm(id(2)));
        assert!(!suspicion.confirm(id(2)));
        assert_eq!(suspicion.confirmation_count(), 1);
    }

    #[test]
    fn without_possible_confirmers_the_timeout_is_the_minimum() {
        let mut suspicion = Suspicion::new(Instant::from_millis(500), id(1), 0, secs(1), secs(6));
        assert_eq!(suspicion.expires_at(), Instant::from_millis(1500));
        assert!(!suspicion.confirm(id(2)));
        suspicion.check();
    }
}
