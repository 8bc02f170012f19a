//! Doubt: whose word counts, our own included.
//!
//! - Who asked the target and three others, and got not a word from any of them, has learned something of itself, not
//!   of the target: it keeps the accusation to itself, and lets no suspicion end, until somebody answers it. When
//!   everybody is silent for as long as the longest suspicion lasts, they may be dead after all.
//! - When it is answered again, those it suspects get their time anew, and are told again: what it said meanwhile may
//!   have been heard by nobody.
//! - Whoever accuses several members that refute at once is not believed for a while: its word starts a suspicion, of
//!   the longest kind, and confirms none.
//!
//! Bounds: `ACCUSER_COUNT_MAX` accusers are remembered, each with `REFUTED_COUNT` whom it accused wrongly.

use super::{Swim, Update};
use crate::suspicion::Suspicion;
use quorate_types::{Instant, NodeId};
use std::collections::BTreeMap;
use std::time::Duration;

const ACCUSER_COUNT_MAX: usize = 128;
/// Wrongly accused members that cost an accuser its credit. One or two may have been slow themselves.
const REFUTED_COUNT: usize = 3;
const MEMORY: Duration = Duration::from_secs(300);
/// Silence of the target and this many others cannot be by chance.
const ASKED_COUNT_MIN: usize = 3;
/// In a smaller pool, all others may well be gone.
const OTHER_COUNT_MIN: usize = 4;
/// Suspicions told anew at a time.
const RETOLD_COUNT_MAX: usize = 64;

#[derive(Clone, Debug)]
struct Accuser {
    refuted: Vec<NodeId>,
    last_at: Instant,
}

#[derive(Debug)]
pub(super) struct Doubt {
    /// Somebody answered a question of ours.
    answered_at: Instant,
    /// The last probe ended without a word from anybody.
    is_unanswered: bool,
    accusers: BTreeMap<NodeId, Accuser>,
}

impl Doubt {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            answered_at: now,
            is_unanswered: false,
            accusers: BTreeMap::new(),
        }
    }
    pub(super) fn is_trusted(&self, now: Instant, accuser: NodeId) -> bool {
        let record = self.accusers.get(&accuser);
        !record.is_some_and(|record| record.refuted.len() >= REFUTED_COUNT && now - record.last_at <= MEMORY)
    }
    /// A suspect proved to be alive. Had it been slow, it would have taken its time.
    pub(super) fn note_refuted(&mut self, now: Instant, member: NodeId, suspicion: &Suspicion) {
        if now - suspicion.started_at() > suspicion.grace() {
            return;
        }
        for accuser in suspicion.accusers() {
            if self.accusers.len() >= ACCUSER_COUNT_MAX && !self.accusers.contains_key(&accuser) {
                self.accusers.retain(|_, record| now - record.last_at <= MEMORY);
                let oldest = self.accusers.iter().min_by_key(|(_, record)| record.last_at);
                if let Some(oldest) = oldest.map(|(id, _)| *id)
                    && self.accusers.len() >= ACCUSER_COUNT_MAX
                {
                    self.accusers.remove(&oldest);
                }
            }
            let record = self.accusers.entry(accuser).or_insert(Accuser {
                refuted: Vec::new(),
                last_at: now,
            });
            if now - record.last_at > MEMORY {
                record.refuted.clear();
            }
            record.last_at = now;
            if record.refuted.len() < REFUTED_COUNT && !record.refuted.contains(&member) {
                record.refuted.push(member);
            }
        }
    }
    pub(super) fn check(&self) {
        assert!(self.accusers.len() <= ACCUSER_COUNT_MAX, "accusers are bounded");
        assert!(
            self.accusers
                .values()
                .all(|record| record.refuted.len() <= REFUTED_COUNT),
            "what an accuser did is bounded"
        );
    }
}

impl Swim {
    fn silence_max(&self) -> Duration {
        let timeout_min = self.config.suspicion_timeout_min(self.live_count());
        timeout_min.saturating_mul(self.config.suspicion_max_timeout_mult.max(1))
    }
    fn doubts_itself(&self, now: Instant) -> bool {
        self.config.weighs_accusers
            && self.config.lha_probe
            && self.table.live_count() >= OTHER_COUNT_MIN
            && now - self.doubt.answered_at < self.silence_max()
    }
    /// How long a suspicion that is due waits for somebody to answer us at all.
    pub(super) fn excuse(&self, now: Instant) -> Option<Instant> {
        let is_waiting = self.probe.as_ref().is_some_and(|probe| probe.is_unheard());
        let is_deaf = self.doubt.is_unanswered || is_waiting;
        (is_deaf && self.doubts_itself(now)).then(|| now + self.config.probe_interval)
    }
    /// A probe failed. Whether the accusation is to be kept to ourselves.
    pub(super) fn withholds_accusation(&mut self, now: Instant, asked_count: usize, answer_count: usize) -> bool {
        if asked_count < ASKED_COUNT_MIN || answer_count > 0 {
            return false;
        }
        self.doubt.is_unanswered = true;
        let withholds = self.doubts_itself(now);
        self.counters.accusations_withheld += u64::from(withholds);
        withholds
    }
    /// Somebody answered a question of ours.
    pub(super) fn hear_answer(&mut self, now: Instant) {
        self.doubt.answered_at = now;
        if !std::mem::take(&mut self.doubt.is_unanswered) || !self.config.weighs_accusers {
            return;
        }
        let suspects: Vec<_> = self.suspicions.keys().copied().collect();
        let from = self.me;
        for (index, seat) in suspects.into_iter().enumerate() {
            let suspicion = &self.suspicions[&seat];
            let until_at = now + 2 * suspicion.grace();
            self.extend_suspicion(seat, until_at);
            if index < RETOLD_COUNT_MAX {
                let record = self.table.get(seat);
                let (member, incarnation) = (record.id(), record.incarnation());
                self.broadcast(Update::Suspect {
                    member,
                    incarnation,
                    from,
                });
            }
        }
    }
}
