//! Rules on updates: what a member makes of the news about another, or about itself.
//!
//! Only the newest incarnation counts. Names: a live member keeps its name against every other id; that of one that
//! failed or left goes to whoever comes with it. The same id with a newer incarnation is the same member, wherever it
//! is now.
//! What was recorded long ago and is sent again does no lasting harm. About a known member it is stale. About one that
//! was forgotten it is refused (`Departed`); the member itself, should it be back, is told to raise its incarnation. A
//! newcomer, which can know neither, takes the member in, finds it dead, and, as it never heard from it, forgets it
//! soon.
//! Bounds: `DEPARTED_COUNT_MAX` forgotten members are remembered, the latest ones; `YOUNG_COUNT_MAX` are known to be new.

use super::heal::BACK_INTERVAL_COUNT;
use super::{Event, Gone, Leave, Seat, Swim};
use crate::message::{INCARNATION_MAX, InvalidMember, MemberState, Message, Refusal, Status, Update};
use crate::suspicion::Suspicion;
use quorate_types::{Incarnation, Instant, NodeId};
use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// More than leave a large pool in the time in which old news of them still goes round.
const DEPARTED_COUNT_MAX: usize = 4096;
/// Members that came in the last `YOUNG_TIME`.
const YOUNG_COUNT_MAX: usize = 4096;
/// Who dies sooner than this without a word to us may never have been.
const YOUNG_TIME: Duration = Duration::from_secs(600);
/// And is then forgotten after this.
pub(super) const BRIEF_TIMEOUT: Duration = Duration::from_secs(600);

/// What tells hearsay from news.
#[derive(Debug, Default)]
pub(super) struct Hearsay {
    departed: BTreeMap<NodeId, Incarnation>,
    departed_order: VecDeque<NodeId>,
    young: VecDeque<(Instant, NodeId)>,
}

impl Hearsay {
    fn depart(&mut self, id: NodeId, incarnation: Incarnation) {
        if self.departed.insert(id, incarnation).is_none() {
            self.departed_order.push_back(id);
            if self.departed_order.len() > DEPARTED_COUNT_MAX
                && let Some(oldest) = self.departed_order.pop_front()
            {
                self.departed.remove(&oldest);
            }
        }
    }
    fn come(&mut self, now: Instant, id: NodeId) {
        while self.young.len() >= YOUNG_COUNT_MAX || self.young.front().is_some_and(|(at, _)| now - *at > YOUNG_TIME) {
            self.young.pop_front();
        }
        self.young.push_back((now, id));
    }
    /// Somebody came lately, and whether we heard from it matters.
    pub(super) fn has_young(&self, now: Instant) -> bool {
        self.young.back().is_some_and(|(at, _)| now - *at <= YOUNG_TIME)
    }
    fn is_young(&self, now: Instant, id: NodeId) -> bool {
        let newest_first = self.young.iter().rev();
        newest_first
            .take_while(|(at, _)| now - *at <= YOUNG_TIME)
            .any(|(_, young)| *young == id)
    }
    pub(super) fn check(&self) {
        assert!(
            self.departed.len() <= DEPARTED_COUNT_MAX,
            "departed members are bounded"
        );
        assert_eq!(self.departed.len(), self.departed_order.len(), "each departed once");
        assert!(self.young.len() <= YOUNG_COUNT_MAX, "young members are bounded");
    }
}

impl Swim {
    pub(super) fn handle_update(&mut self, now: Instant, source: SocketAddr, update: Update) {
        if update.incarnation() >= INCARNATION_MAX {
            return self.malformed(source, InvalidMember::Incarnation);
        }
        match update {
            Update::Alive { member, incarnation } => self.apply_alive(now, source, member, incarnation),
            Update::Suspect {
                member,
                incarnation,
                from,
            } => self.apply_suspect(now, member, incarnation, from),
            Update::Dead {
                member,
                incarnation,
                from,
            } => self.apply_dead(now, member, incarnation, from),
            Update::Left {
                member,
                incarnation,
                from,
                ..
            } => {
                if from == member {
                    self.apply_left(now, member, incarnation);
                }
            }
            Update::LeaveIntent {
                member,
                time,
                from,
                prune,
            } => self.apply_leave_intent(now, member, time, from, prune),
            Update::JoinIntent { member, time } => self.apply_join_intent(member, time),
        }
    }

    fn malformed(&mut self, from: SocketAddr, reason: InvalidMember) {
        self.counters.malformed += 1;
        self.emit(Event::Malformed { from, reason });
    }

    /// Why a peer may not exchange state with us, and so not join.
    pub(super) fn admit(&mut self, peer: &MemberState) -> Result<(), Refusal> {
        let name = peer.name.clone();
        if let Err(reason) = peer.validate() {
            return Err(Refusal::Invalid {
                name,
                reason: reason.to_string(),
            });
        }
        if self.is_outside(peer.address, peer) {
            let address = peer.address.ip();
            return Err(Refusal::NotAllowed { name, address });
        }
        if self.is_foreign(peer) {
            return Err(Refusal::WrongDatacenter {
                name,
                datacenter: peer.datacenter.clone(),
            });
        }
        if peer.id == self.me && peer.address != self.my_record().address() {
            return Err(Refusal::IdTaken { name, id: peer.id });
        }
        if let Some(holder) = self.live_holder(peer) {
            return Err(Refusal::NameTaken {
                name,
                claimant: peer.id,
                holder,
            });
        }
        if self.table.find(peer.id).is_none() && self.table.len() >= self.config.member_count_max {
            self.counters.refused_full += 1;
            return Err(Refusal::Full);
        }
        Ok(())
    }
    /// A member outside of the allowed blocks, or a packet from outside that brings news of one.
    pub(super) fn is_outside(&mut self, address: SocketAddr, member: &MemberState) -> bool {
        if self.config.is_allowed(address.ip()) {
            return false;
        }
        self.counters.not_allowed += 1;
        self.emit(Event::NotAllowed {
            name: member.name.clone(),
            address,
        });
        true
    }
    fn is_foreign(&mut self, peer: &MemberState) -> bool {
        if !self.config.same_datacenter_only || peer.datacenter == self.my_record().state.datacenter {
            return false;
        }
        self.counters.wrong_datacenter += 1;
        self.emit(Event::WrongDatacenter {
            name: peer.name.clone(),
            datacenter: peer.datacenter.clone(),
        });
        true
    }
    /// Another live member with this one's name. Told as a conflict.
    fn live_holder(&mut self, claimant: &MemberState) -> Option<NodeId> {
        let seat = self.table.holder(&claimant.name)?;
        let holder = self.table.get(seat);
        // Our own name is never free, even while we leave.
        if holder.id() == claimant.id || (seat != Seat::ME && !holder.status().is_live()) {
            return None;
        }
        let holder = holder.id();
        self.conflict(holder, claimant);
        Some(holder)
    }
    fn conflict(&mut self, holder: NodeId, claimant: &MemberState) {
        self.counters.conflicts += 1;
        self.emit(Event::Conflict {
            name: claimant.name.clone(),
            holder,
            claimant: claimant.id,
            claimant_address: claimant.address,
        });
    }

    fn apply_alive(&mut self, now: Instant, source: SocketAddr, member: Arc<MemberState>, incarnation: Incarnation) {
        let id = member.id;
        let known = self.table.find(id);
        // First, as most news is old news. Of a known member it is not even validated.
        if known.is_some_and(|seat| seat != Seat::ME && incarnation <= self.table.get(seat).incarnation()) {
            return;
        }
        if let Err(reason) = member.validate() {
            return self.malformed(source, reason);
        }
        if id == self.me {
            return self.hear_of_self(&member, incarnation);
        }
        if self.is_outside(member.address, &member) || self.is_foreign(&member) || self.live_holder(&member).is_some() {
            return;
        }
        if known.is_none() && self.table.len() >= self.config.member_count_max {
            self.counters.refused_full += 1;
            return self.emit(Event::Full { refused: id });
        }
        if known.is_none() && self.is_departed(source, &member, incarnation) {
            return;
        }
        // A failed or left member's name may be taken: who comes back under it is somebody else.
        if let Some(holder) = self.table.holder(&member.name)
            && self.table.get(holder).id() != id
        {
            self.emit(Event::NameTaken {
                name: member.name.clone(),
                holder_before: self.table.get(holder).id(),
                holder: id,
            });
            self.forget(holder);
        }
        let mut known = known;
        if let Some(seat) = known
            && self.table.get(seat).state.name != member.name
        {
            // Renamed: those who know members by name see one go and another come.
            self.forget(seat);
            known = None;
        }
        if let Some(seat) = known
            && self.is_kept_down(now, seat, &member, incarnation)
        {
            return;
        }
        self.broadcast(Update::Alive {
            member: Arc::clone(&member),
            incarnation,
        });
        let Some(seat) = known else {
            return self.admit_new(now, source, member, incarnation);
        };
        let record = self.table.get(seat);
        let (before, address_before) = (record.status(), record.address());
        let (is_updated, is_moved) = (*record.state != *member, address_before != member.address);
        self.table.set_incarnation(seat, incarnation);
        self.table.set_state(seat, member);
        if let Some(suspicion) = self.suspicions.get(&seat) {
            self.doubt.note_refuted(now, id, suspicion);
        }
        self.set_status(now, seat, Status::Alive, id);
        if is_moved {
            self.emit(Event::Moved {
                member: self.seen(seat),
                address_before,
            });
        }
        match before {
            Status::Dead | Status::Left => self.change(Event::Joined(self.seen(seat))),
            Status::Alive | Status::Suspect => {
                if before == Status::Suspect {
                    self.emit(Event::Cleared {
                        member: id,
                        incarnation,
                    });
                }
                if is_updated {
                    self.change(Event::Updated(self.seen(seat)));
                }
            }
        }
    }
    /// What a flapping member says of itself does not make it alive: a suspect stays one, a failed one failed.
    fn is_kept_down(&mut self, now: Instant, seat: Seat, member: &Arc<MemberState>, incarnation: Incarnation) -> bool {
        let record = self.table.get(seat);
        let before = record.incarnation();
        let is_kept_down = match record.status() {
            Status::Suspect => self.is_chronic(now, member.id, before, incarnation),
            Status::Dead => self.keeps_out(now, seat, incarnation),
            Status::Alive | Status::Left => false,
        };
        if is_kept_down {
            self.table.set_incarnation(seat, incarnation);
            self.table.set_state(seat, Arc::clone(member));
        }
        is_kept_down
    }
    fn admit_new(&mut self, now: Instant, source: SocketAddr, state: Arc<MemberState>, incarnation: Incarnation) {
        let id = state.id;
        let is_own_word = source == state.address;
        self.rules.come(now, id);
        let seat = self.table.insert(state, incarnation, &mut self.probe_rng);
        self.table.get_mut(seat).is_met = is_own_word;
        self.change(Event::Joined(self.seen(seat)));
    }
    /// News of a member as it was before it was forgotten here.
    fn is_departed(&mut self, source: SocketAddr, member: &MemberState, incarnation: Incarnation) -> bool {
        let Some(until) = self.rules.departed.get(&member.id).copied() else {
            return false;
        };
        if incarnation > until {
            return false;
        }
        self.counters.departed_refused += 1;
        if source == member.address && self.leave == Leave::No {
            // It is there after all, and does not know that it was forgotten.
            let messages = vec![Message::Update(Update::Dead {
                member: member.id,
                incarnation: until,
                from: self.me,
            })];
            self.outputs.push_back(super::Output::Packet { to: source, messages });
        }
        true
    }

    /// An alive about us: an echo of our own words, or of a predecessor's, or another member with our id.
    fn hear_of_self(&mut self, member: &MemberState, incarnation: Incarnation) {
        if self.leave != Leave::No {
            return;
        }
        let record = self.my_record();
        let (mine, address) = (record.incarnation(), record.address());
        if incarnation < mine || (incarnation == mine && *member == *record.state) {
            return;
        }
        if member.address != address && incarnation == mine {
            self.conflict(self.me, member);
        }
        self.refute(incarnation);
    }
    fn refute(&mut self, accused: Incarnation) {
        // To be asked to refute is a sign that we are slow.
        self.awareness.worsen(1);
        self.counters.refutations += 1;
        let incarnation = self.raise_incarnation(accused);
        self.emit(Event::Refuted { incarnation });
    }
    /// Above `above` and all of ours so far, and tells the pool.
    pub(super) fn raise_incarnation(&mut self, above: Incarnation) -> Incarnation {
        let record = self.my_record();
        let incarnation = record.incarnation().max(above).next();
        let member = Arc::clone(&record.state);
        self.table.set_incarnation(Seat::ME, incarnation);
        self.broadcast(Update::Alive { member, incarnation });
        incarnation
    }

    /// Who is known of that incarnation or an older one. An unknown member is nobody to think ill of.
    fn find_not_newer(&self, id: NodeId, incarnation: Incarnation) -> Option<Seat> {
        let seat = self.table.find(id)?;
        (incarnation >= self.table.get(seat).incarnation()).then_some(seat)
    }

    pub(super) fn apply_suspect(&mut self, now: Instant, id: NodeId, incarnation: Incarnation, from: NodeId) {
        let Some(seat) = self.find_not_newer(id, incarnation) else {
            return;
        };
        match self.table.get(seat).status() {
            Status::Dead | Status::Left => {}
            Status::Alive if seat == Seat::ME => {
                self.links.accused(now, from);
                self.refute(incarnation);
            }
            Status::Alive => self.suspect(now, seat, incarnation, from),
            Status::Suspect => {
                self.table.set_incarnation(seat, incarnation);
                if self.confirm(now, seat, from) {
                    self.broadcast(Update::Suspect {
                        member: id,
                        incarnation,
                        from,
                    });
                    self.expire_suspicions(now);
                }
            }
        }
    }
    /// True when it counts.
    fn confirm(&mut self, now: Instant, seat: Seat, from: NodeId) -> bool {
        let weighs = self.config.weighs_accusers;
        if weighs && !self.doubt.is_trusted(now, from) {
            return false;
        }
        self.adjust_suspicion(seat, |suspicion| {
            // Many accusers that speak up at one moment may have been stalled together, and the accused hears them only now.
            let not_before = if weighs { now + suspicion.grace() } else { Instant::ZERO };
            suspicion.confirm(from, not_before)
        })
    }
    /// Changes a suspicion, and its timer with it.
    fn adjust_suspicion<T>(&mut self, seat: Seat, change: impl FnOnce(&mut Suspicion) -> T) -> T {
        let suspicion = self.suspicions.get_mut(&seat).expect("a suspect has a suspicion");
        let before = suspicion.due_at();
        let outcome = change(suspicion);
        if suspicion.due_at() != before {
            self.expiries.remove(&(before, seat));
            self.expiries.insert((suspicion.due_at(), seat));
        }
        outcome
    }
    fn end_suspicion(&mut self, seat: Seat) {
        if let Some(suspicion) = self.suspicions.remove(&seat) {
            self.expiries.remove(&(suspicion.due_at(), seat));
        }
    }
    fn suspect(&mut self, now: Instant, seat: Seat, incarnation: Incarnation, from: NodeId) {
        let live_count = self.live_count();
        // Without enough members to confirm, no confirmation is expected (we and the suspect do not count).
        let expected = self.config.confirmation_count();
        let is_possible = usize::try_from(expected).is_ok_and(|expected| live_count >= expected.saturating_add(2));
        let confirmations = if self.config.lha_suspicion && is_possible {
            expected
        } else {
            0
        };
        let timeout_min = self.config.suspicion_timeout_min(live_count);
        let timeout_max = timeout_min.saturating_mul(self.config.suspicion_max_timeout_mult.max(1));
        let ask_lead = self.config.ask_lead();
        let mut suspicion = Suspicion::new(now, from, confirmations, timeout_min, timeout_max, ask_lead);
        if self.config.weighs_accusers && !self.doubt.is_trusted(now, from) {
            suspicion.extend(now + timeout_max);
        }
        let member = self.table.get(seat).id();
        self.table.set_incarnation(seat, incarnation);
        self.set_status(now, seat, Status::Suspect, from);
        self.expiries.insert((suspicion.due_at(), seat));
        self.suspicions.insert(seat, suspicion);
        self.counters.suspicions += 1;
        self.note_suspected(now, member, from);
        self.broadcast(Update::Suspect {
            member,
            incarnation,
            from,
        });
        self.emit(Event::Suspected {
            member,
            incarnation,
            from,
        });
    }
    pub(super) fn expire_suspicions(&mut self, now: Instant) {
        while let Some((_, seat)) = self.expiries.first().copied().filter(|(due_at, _)| *due_at <= now) {
            if now < self.suspicions[&seat].expires_at() {
                self.ask_suspect(now, seat);
                self.adjust_suspicion(seat, Suspicion::note_asked);
                continue;
            }
            if let Some(until_at) = self.excuse(now) {
                self.extend_suspicion(seat, until_at);
                continue;
            }
            let incarnation = self.table.get(seat).incarnation();
            let me = self.me;
            self.declare_dead(now, seat, incarnation, me);
        }
    }
    pub(super) fn extend_suspicion(&mut self, seat: Seat, until_at: Instant) {
        self.adjust_suspicion(seat, |suspicion| suspicion.extend(until_at));
    }

    fn apply_dead(&mut self, now: Instant, id: NodeId, incarnation: Incarnation, from: NodeId) {
        let Some(seat) = self.find_not_newer(id, incarnation) else {
            return;
        };
        match self.table.get(seat).status() {
            Status::Dead | Status::Left => {}
            Status::Alive if seat == Seat::ME => {
                self.links.accused(now, from);
                self.healing.back_until = now + self.config.probe_interval * BACK_INTERVAL_COUNT;
                self.refute(incarnation);
            }
            Status::Alive | Status::Suspect if !self.config.weighs_accusers => {
                self.declare_dead(now, seat, incarnation, from);
            }
            // The word of one member that we heard no suspicion of. It may have been cut off itself, so the accused gets
            // the time of a suspicion to refute.
            Status::Alive => self.suspect(now, seat, incarnation, from),
            Status::Suspect => {
                self.table.set_incarnation(seat, incarnation);
                let is_news = self.confirm(now, seat, from);
                let suspicion = &self.suspicions[&seat];
                let is_lone = !suspicion.has_other_accuser(from);
                if is_lone || !self.doubt.is_trusted(now, from) {
                    if is_news {
                        self.broadcast(Update::Suspect {
                            member: id,
                            incarnation,
                            from,
                        });
                    }
                    return;
                }
                // Two or more think so, and one of them waited in vain. Still the accused has had time to answer us.
                let believed_at = suspicion.started_at() + suspicion.grace();
                if now >= believed_at {
                    return self.declare_dead(now, seat, incarnation, from);
                }
                self.adjust_suspicion(seat, |suspicion| suspicion.hasten(believed_at));
            }
        }
    }
    fn declare_dead(&mut self, now: Instant, seat: Seat, incarnation: Incarnation, from: NodeId) {
        self.table.set_incarnation(seat, incarnation);
        let member = self.table.get(seat).id();
        self.broadcast(Update::Dead {
            member,
            incarnation,
            from,
        });
        if let Some(intent) = self.leave_intents.get(&seat).copied() {
            return self.declare_left(now, seat, intent.from, intent.prune);
        }
        self.note_failed(now, member);
        self.set_status(now, seat, Status::Dead, member);
        self.change(Event::Failed(self.seen(seat)));
    }

    /// The member's own word that it left.
    fn apply_left(&mut self, now: Instant, id: NodeId, incarnation: Incarnation) {
        let Some(seat) = self.find_not_newer(id, incarnation) else {
            return;
        };
        match self.table.get(seat).status() {
            Status::Left => {}
            _ if seat == Seat::ME => self.refute(incarnation),
            Status::Alive | Status::Suspect | Status::Dead => {
                self.table.set_incarnation(seat, incarnation);
                self.broadcast(Update::Left {
                    member: id,
                    incarnation,
                    from: id,
                    prune: false,
                });
                self.declare_left(now, seat, id, false);
            }
        }
    }
    pub(super) fn declare_left(&mut self, now: Instant, seat: Seat, from: NodeId, prune: bool) {
        let was_left = self.table.get(seat).status() == Status::Left;
        self.set_status(now, seat, Status::Left, from);
        if !was_left {
            self.change(Event::Left(self.seen(seat)));
        }
        if prune {
            self.forget(seat);
        }
    }

    /// `by` is who said so.
    pub(super) fn set_status(&mut self, now: Instant, seat: Seat, status: Status, by: NodeId) {
        self.end_suspicion(seat);
        if !status.is_live() || status == Status::Alive && self.gone.contains_key(&seat) {
            self.leave_intents.remove(&seat);
        }
        let record = self.table.get(seat);
        let (id, before, is_met) = (record.id(), record.status(), record.is_met);
        if before == status {
            return;
        }
        let had_dead = self.table.dead_count() > 0;
        self.table.set_status(seat, status, &mut self.probe_rng);
        if status.is_live() {
            self.gone.remove(&seat);
        } else {
            // One that left after it failed is as brief as it was.
            let is_brief = match self.gone.get(&seat) {
                Some(gone) => gone.is_brief,
                None => !is_met && self.rules.is_young(now, id),
            };
            self.gone.insert(seat, Gone { at: now, by, is_brief });
        }
        if status == Status::Dead {
            self.note_recently_dead(now, seat);
            if !had_dead {
                self.wind_knocks(now);
            }
        }
    }
    pub(super) fn forget(&mut self, seat: Seat) {
        let gone = self.seen(seat);
        let record = self.table.remove(seat);
        self.end_suspicion(seat);
        self.gone.remove(&seat);
        self.leave_intents.remove(&seat);
        self.intent_times.remove(&seat);
        self.rules.depart(record.id(), record.incarnation());
        self.links.forget(record.id());
        if let Some(coordinates) = &mut self.coordinates {
            coordinates.forget(record.id());
        }
        self.probe.take_if(|probe| probe.target() == record.id());
        self.change(Event::Reaped(gone));
    }

    /// Forgets whom nobody waits for any more.
    pub(super) fn reap(&mut self, now: Instant) {
        let due: Vec<Seat> = self
            .gone
            .iter()
            .filter(|(seat, gone)| {
                let record = self.table.get(**seat);
                let timeout = match record.status() {
                    Status::Dead => reconnect_timeout(&record.state).unwrap_or(self.config.reconnect_timeout),
                    _ => self.config.tombstone_timeout,
                };
                let timeout = if gone.is_brief {
                    timeout.min(BRIEF_TIMEOUT)
                } else {
                    timeout
                };
                **seat != Seat::ME && now - gone.at > timeout
            })
            .map(|(seat, _)| *seat)
            .collect();
        for seat in due {
            self.forget(seat);
        }
    }
}

/// A member may say for itself how long it is waited for: Consul's `advertise_reconnect_timeout`, as the tag `rc_tm`
/// with a Go duration.
fn reconnect_timeout(member: &MemberState) -> Option<Duration> {
    let timeout = parse_go_duration(member.tags.get("rc_tm")?)?;
    (!timeout.is_zero()).then_some(timeout)
}

/// `72h3m0.5s` and the like; nothing for what is no duration or negative.
fn parse_go_duration(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut nanos: u64 = 0;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let digits_len = rest
            .bytes()
            .take_while(|byte| byte.is_ascii_digit() || *byte == b'.')
            .count();
        let (number, after) = rest.split_at(digits_len);
        let unit_len = after
            .bytes()
            .take_while(|byte| !byte.is_ascii_digit() && *byte != b'.')
            .count();
        let (unit, after) = after.split_at(unit_len);
        let unit_nanos: u64 = match unit {
            "ns" => 1,
            "us" | "µs" | "μs" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            _ => return None,
        };
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if whole.is_empty() && fraction.is_empty() || fraction.contains('.') {
            return None;
        }
        let whole: u64 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
        nanos = nanos.checked_add(whole.checked_mul(unit_nanos)?)?;
        let mut place_nanos = unit_nanos;
        for digit in fraction.bytes() {
            place_nanos /= 10;
            nanos = nanos.checked_add(u64::from(digit - b'0') * place_nanos)?;
        }
        rest = after;
    }
    Some(Duration::from_nanos(nanos))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn go_durations_are_read_as_go_writes_them() {
        let secs = |text| parse_go_duration(text).map(|duration| duration.as_secs_f64());
        assert_eq!(secs("72h0m0s"), Some(259_200.0));
        assert_eq!(secs("1m30.5s"), Some(90.5));
        assert_eq!(secs("250ms"), Some(0.25));
        for bad in ["", "5", "s", "-5s", "1.2.3s", "5 s", "99999999999999h", "1d"] {
            assert_eq!(secs(bad), None, "{bad}");
        }
    }

    #[test]
    fn the_latest_departed_members_are_remembered_and_no_more() {
        let id = |n: usize| NodeId(quorate_types::Uuid::from_bytes((n as u128 + 1).to_be_bytes()));
        let mut hearsay = Hearsay::default();
        for n in 0..DEPARTED_COUNT_MAX + 10 {
            hearsay.depart(id(n), Incarnation(1));
            hearsay.come(Instant::from_millis(n as u64), id(n));
        }
        hearsay.check();
        assert!(!hearsay.departed.contains_key(&id(0)));
        assert!(hearsay.departed.contains_key(&id(DEPARTED_COUNT_MAX)));
    }
}
