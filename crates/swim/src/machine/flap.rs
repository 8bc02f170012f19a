//! Flapping: a member that fails and comes back again and again, or is suspected without end, is kept out for a while.
//!
//! Whose packets are lost most of the time hears of each suspicion and refutes it, or comes back as soon as it hears
//! that it was failed: by SWIM's rules it would go on for ever, and all the pool with it.
//! - A member that came back from failed and fails again within `MEMORY` is held: what it says of itself is noted, but
//!   it stays failed for `HOLD`, twice as long with each failure more.
//! - A suspicion that a member refutes after `CHRONIC_COUNT` others within `CHRONIC_TIME`, each begun by a member that
//!   is believed (`doubt`), is not ended by that: it runs to its end, and the member is held.
//! - So is one that fails after `CHRONIC_FAILED_COUNT` of them, as others may have counted more.
//!
//! A member that was started anew is not held: its incarnation leaps by milliseconds, not by refutations.
//! None is held in a pool below `LIVE_COUNT_MIN`, or when more than one in `SHARE` flap: then it is the network that
//! comes and goes, and everybody should be back as soon as it does.
//! Bounds: `FLAP_COUNT_MAX` members are remembered, the latest ones.

use super::{Seat, Swim};
use quorate_types::{Incarnation, Instant, NodeId};
use std::collections::BTreeMap;
use std::time::Duration;

const MEMORY: Duration = Duration::from_secs(900);
const HOLD: Duration = Duration::from_secs(300);
const HOLD_MAX: Duration = Duration::from_secs(3600);
const CHRONIC_COUNT: u32 = 8;
/// Of these, a member that fails all the same has as many: not everybody hears of each of them, and those who did not are
/// to hold it as the others do.
const CHRONIC_FAILED_COUNT: u32 = CHRONIC_COUNT / 2;
const CHRONIC_TIME: Duration = Duration::from_secs(60);
const LIVE_COUNT_MIN: usize = 32;
const SHARE: usize = 20;
const FLAP_COUNT_MAX: usize = 1024;
/// A member refutes less often than this between a start and the next; a restart comes later than this many milliseconds
/// after the start before it.
const LEAP: u64 = 1_000;

#[derive(Clone, Copy, Debug)]
struct Flap {
    /// Times it failed.
    failure_count: u32,
    last_at: Instant,
    /// Suspicions in the minute that began then.
    suspicion_count: u32,
    suspicions_since: Instant,
    held_until: Option<Instant>,
}

#[derive(Debug, Default)]
pub(super) struct Flaps {
    members: BTreeMap<NodeId, Flap>,
}

impl Flaps {
    fn entry(&mut self, now: Instant, member: NodeId) -> &mut Flap {
        if self.members.len() >= FLAP_COUNT_MAX && !self.members.contains_key(&member) {
            self.members.retain(|_, flap| now - flap.last_at <= MEMORY);
            let oldest = self.members.iter().min_by_key(|(_, flap)| flap.last_at);
            if let Some(oldest) = oldest.map(|(id, _)| *id)
                && self.members.len() >= FLAP_COUNT_MAX
            {
                self.members.remove(&oldest);
            }
        }
        let flap = self.members.entry(member).or_insert(Flap {
            failure_count: 0,
            last_at: now,
            suspicion_count: 0,
            suspicions_since: now,
            held_until: None,
        });
        if now - flap.last_at > MEMORY.max(HOLD_MAX) {
            flap.failure_count = 0;
        }
        flap.last_at = now;
        flap
    }
    pub(super) fn is_held(&self, now: Instant, member: NodeId) -> bool {
        let flap = self.members.get(&member);
        flap.and_then(|flap| flap.held_until)
            .is_some_and(|until_at| now < until_at)
    }
    /// Members that failed again, or were suspected without end.
    fn count(&self, now: Instant) -> usize {
        let flaps = self.members.values();
        flaps
            .filter(|flap| {
                now - flap.last_at <= MEMORY && (flap.failure_count >= 2 || flap.suspicion_count >= CHRONIC_COUNT)
            })
            .count()
    }
    pub(super) fn forget(&mut self, member: NodeId) {
        self.members.remove(&member);
    }
    pub(super) fn check(&self) {
        assert!(self.members.len() <= FLAP_COUNT_MAX, "flapping members are bounded");
    }
}

impl Swim {
    fn may_hold(&self, now: Instant) -> bool {
        let live_count = self.live_count();
        self.config.holds_flapping
            && live_count >= LIVE_COUNT_MIN
            && self.flaps.count(now) <= (live_count / SHARE).max(1)
    }
    /// A suspicion of a member began.
    pub(super) fn note_suspected(&mut self, now: Instant, member: NodeId, from: NodeId) {
        if !self.config.holds_flapping || !self.doubt.is_trusted(now, from) {
            return;
        }
        let flap = self.flaps.entry(now, member);
        if now - flap.suspicions_since > CHRONIC_TIME {
            flap.suspicions_since = now;
            flap.suspicion_count = 0;
        }
        flap.suspicion_count += 1;
    }
    /// A suspect refutes. Whether that does not help it any more.
    pub(super) fn is_chronic(&self, now: Instant, member: NodeId, before: Incarnation, after: Incarnation) -> bool {
        let flap = self.flaps.members.get(&member);
        let is_chronic = flap.is_some_and(|flap| {
            flap.suspicion_count >= CHRONIC_COUNT && now - flap.suspicions_since <= 2 * CHRONIC_TIME
        });
        is_chronic && after.0 - before.0 < LEAP && self.may_hold(now)
    }
    pub(super) fn note_failed(&mut self, now: Instant, member: NodeId) {
        if !self.config.holds_flapping {
            return;
        }
        let flap = self.flaps.entry(now, member);
        flap.failure_count += 1;
        let is_chronic =
            flap.suspicion_count >= CHRONIC_FAILED_COUNT && now - flap.suspicions_since <= 2 * CHRONIC_TIME;
        let repeat_count = flap.failure_count.saturating_sub(if is_chronic { 1 } else { 2 });
        if flap.failure_count < 2 && !is_chronic || !self.may_hold(now) {
            return;
        }
        let hold = HOLD.saturating_mul(1 << repeat_count.min(10)).min(HOLD_MAX);
        let flap = self.flaps.entry(now, member);
        flap.held_until = Some(now + hold);
        self.counters.held += 1;
    }
    /// A failed member says that it is alive. When it is held, that is noted, and no more.
    pub(super) fn keeps_out(&mut self, now: Instant, seat: Seat, incarnation: Incarnation) -> bool {
        let record = self.table.get(seat);
        let (member, before) = (record.id(), record.incarnation());
        if !self.flaps.is_held(now, member) {
            return false;
        }
        if incarnation.0 - before.0 >= LEAP {
            // Started anew.
            self.flaps.forget(member);
            return false;
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flapping_members_are_bounded() {
        let mut flaps = Flaps::default();
        for n in 0..FLAP_COUNT_MAX as u128 + 10 {
            let id = NodeId(quorate_types::Uuid::from_bytes((n + 1).to_be_bytes()));
            flaps.entry(Instant::from_millis(n as u64), id).failure_count = 2;
        }
        flaps.check();
        assert_eq!(flaps.count(Instant::from_millis(5_000)), FLAP_COUNT_MAX);
        assert_eq!(flaps.count(Instant::from_millis(5_000) + MEMORY), 0);
    }
}
