//! Suspicion: how long a member stays `suspect` before it is declared `dead`.
//!
//! Lifeguard's LHA-Suspicion: the timeout starts at its maximum and shrinks, on a logarithmic scale, as independent
//! members confirm. Without enough members to confirm it is the minimum from the start.
//! Its last part is for asking the accused itself, `ASK_COUNT` times: whoever missed its refutation, or suspects one that
//! only stood still for a while, so learns of it in time.
//! In: `new`, `confirm`, `note_asked`. Out: `due_at`, `expires_at`; the caller asks and gossips.
//! Invariants: `timeout_min <= timeout <= timeout_max`, unless extended or hastened; a confirmer counts once; a confirmation
//! never lengthens it; `started_at <= due_at <= expires_at`.
//! Not here: who is probed (`probe`), how healthy we are ourselves (`awareness`).

use quorate_types::{Instant, NodeId};
use std::collections::BTreeSet;
use std::time::Duration;

/// One question may be lost.
const ASK_COUNT: u32 = 2;

#[derive(Clone, Debug)]
pub(crate) struct Suspicion {
    confirmation_count_max: u32,
    timeout_min: Duration,
    timeout_max: Duration,
    started_at: Instant,
    expires_at: Instant,
    /// So long before the end the accused is asked first.
    ask_lead: Duration,
    asks_left: u32,
    /// The first accuser, who is no confirmer, and those who confirmed.
    accusers: BTreeSet<NodeId>,
}

impl Suspicion {
    /// With an `ask_lead` of zero the accused is not asked.
    pub(crate) fn new(
        now: Instant,
        from: NodeId,
        confirmation_count_max: u32,
        timeout_min: Duration,
        timeout_max: Duration,
        ask_lead: Duration,
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
            ask_lead,
            asks_left: ask_count(ask_lead),
            accusers: BTreeSet::from([from]),
        }
    }
    pub(crate) fn expires_at(&self) -> Instant {
        self.expires_at
    }
    /// When the accused is to be asked, or else when it ends.
    pub(crate) fn due_at(&self) -> Instant {
        let lead = self.ask_lead * self.asks_left / ASK_COUNT;
        let so_far = self.expires_at - self.started_at;
        self.started_at + so_far.saturating_sub(lead)
    }
    pub(crate) fn note_asked(&mut self) {
        self.asks_left -= 1;
    }
    pub(crate) fn confirmation_count(&self) -> u32 {
        u32::try_from(self.accusers.len() - 1).expect("bounded by confirmation_count_max")
    }
    /// True when this was news: an independent confirmation that still shortens the timeout, though to no sooner than
    /// `not_before`.
    pub(crate) fn confirm(&mut self, from: NodeId, not_before: Instant) -> bool {
        if self.confirmation_count() >= self.confirmation_count_max || !self.accusers.insert(from) {
            return false;
        }
        let share = libm::log(f64::from(self.confirmation_count()) + 1.0)
            / libm::log(f64::from(self.confirmation_count_max) + 1.0);
        let span_ms = self.timeout_max.saturating_sub(self.timeout_min).as_millis() as f64;
        let cut = Duration::from_millis(libm::ceil(share * span_ms) as u64);
        let timeout = self.timeout_max.saturating_sub(cut).max(self.timeout_min);
        // In the past when it was nearly over: the caller's next look at the clock ends it.
        self.expires_at = self.expires_at.min((self.started_at + timeout).max(not_before));
        true
    }
    /// Ends no sooner than `at`: the accused did not have its chance to answer us yet. It is asked anew.
    pub(crate) fn extend(&mut self, at: Instant) {
        if at > self.expires_at {
            self.expires_at = at;
            self.asks_left = ask_count(self.ask_lead);
        }
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
        assert!(
            self.started_at <= self.due_at() && self.due_at() <= self.expires_at,
            "something is due within a suspicion"
        );
    }
}

fn ask_count(ask_lead: Duration) -> u32 {
    if ask_lead.is_zero() { 0 } else { ASK_COUNT }
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
        let mut suspicion = Suspicion::new(Instant::ZERO, id(1), 3, secs(2), secs(30), Duration::ZERO);
        let mut timeouts = vec![suspicion.expires_at().as_millis()];
        for from in 2..=4 {
            assert!(suspicion.confirm(id(from), Instant::ZERO));
            suspicion.check();
            timeouts.push(suspicion.expires_at().as_millis());
        }
        // memberlist's own table for k = 3, 2 s and 30 s: 30, 16, 7.810, 2.
        assert_eq!(timeouts, [30_000, 16_000, 7_810, 2_000]);
        assert!(!suspicion.confirm(id(5), Instant::ZERO), "enough is enough");
    }

    #[test]
    fn neither_the_accuser_nor_a_confirmer_counts_twice() {
        let mut suspicion = Suspicion::new(Instant::ZERO, id(1), 2, secs(1), secs(6), Duration::ZERO);
        assert!(!suspicion.confirm(id(1), Instant::ZERO));
        assert!(suspicion.confirm(id(2), Instant::ZERO));
        assert!(!suspicion.confirm(id(2), Instant::ZERO));
        assert_eq!(suspicion.confirmation_count(), 1);
    }

    #[test]
    fn without_possible_confirmers_the_timeout_is_the_minimum() {
        let mut suspicion = Suspicion::new(Instant::from_millis(500), id(1), 0, secs(1), secs(6), Duration::ZERO);
        assert_eq!(suspicion.expires_at(), Instant::from_millis(1500));
        assert_eq!(suspicion.due_at(), suspicion.expires_at(), "nobody is asked");
        assert!(!suspicion.confirm(id(2), Instant::ZERO));
        suspicion.check();
    }

    #[test]
    fn a_late_confirmation_leaves_the_accused_its_time() {
        let mut suspicion = Suspicion::new(Instant::ZERO, id(1), 1, secs(2), secs(30), Duration::ZERO);
        assert!(suspicion.confirm(id(2), Instant::from_millis(7_500)));
        assert_eq!(suspicion.expires_at(), Instant::from_millis(7_500), "not after 2 s");
        let mut suspicion = Suspicion::new(Instant::ZERO, id(1), 1, secs(2), secs(30), Duration::ZERO);
        assert!(suspicion.confirm(id(2), Instant::from_millis(40_000)));
        assert_eq!(
            suspicion.expires_at(),
            Instant::from_millis(30_000),
            "nor does it last longer"
        );
    }

    #[test]
    fn the_accused_is_asked_twice_before_the_end_and_anew_when_that_is_put_off() {
        let ask_lead = Duration::from_millis(500);
        let mut suspicion = Suspicion::new(Instant::ZERO, id(1), 1, secs(4), secs(24), ask_lead);
        let due = |suspicion: &mut Suspicion| {
            let mut due_ms = Vec::new();
            while suspicion.due_at() < suspicion.expires_at() {
                due_ms.push(suspicion.due_at().as_millis());
                suspicion.check();
                suspicion.note_asked();
            }
            due_ms
        };
        assert_eq!(due(&mut suspicion), [23_500, 23_750]);
        assert!(suspicion.confirm(id(2), Instant::ZERO));
        assert_eq!(due(&mut suspicion), [0; 0], "it was asked");
        suspicion.extend(Instant::from_millis(6_000));
        assert_eq!(due(&mut suspicion), [5_500, 5_750]);
    }
}
