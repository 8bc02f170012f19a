//! The state machine: the table of members and the rules that change it.
//!
//! Not here: how long a suspicion lasts (`suspicion`), which update goes next (`broadcast`).

mod heal;
mod probe;

use crate::awareness::Awareness;
use crate::broadcast::Broadcasts;
use crate::config::Config;
use crate::coordinate::{Coordinates, Implausible};
use crate::message::{
    INCARNATION_MAX, InvalidMember, MemberState, Message, PACKET_OVERHEAD_LEN_BYTES, PushPull, Refusal, RemoteMember,
    Status, Update, validate_tags,
};
use crate::suspicion::Suspicion;
use heal::Healing;
use probe::{Probe, Relay};
use quorate_types::limits::GOSSIP_PACKET_LEN_BYTES_MAX;
use quorate_types::{Coordinate, Incarnation, Instant, Member, MemberStatus, NodeId};
use rand_chacha::ChaCha8Rng;
use rand_core::{Rng as _, SeedableRng as _};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use thiserror::Error;

/// Something the driver is to do, or to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// One datagram.
    Packet {
        to: SocketAddr,
        messages: Vec<Message>,
    },
    /// What a packet carried for another layer.
    Payload {
        from: SocketAddr,
        payload: Vec<u8>,
    },
    /// Exchange the full state with this address.
    PushPull {
        to: SocketAddr,
    },
    /// Ping over a stream; the result is wanted before `deadline_at`.
    StreamProbe {
        to: SocketAddr,
        target: NodeId,
        sequence: u64,
        deadline_at: Instant,
    },
    Event(Event),
}

/// What happened. Closed: traces, metrics and digests are made from it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// New, or back from `Failed` or `Left`.
    Joined(Member),
    /// Its tags or address changed while it was live.
    Updated(Member),
    Failed(Member),
    Left(Member),
    /// Forgotten; its name is free.
    Reaped(Member),
    /// An operator said that it will not come back; it is still live.
    Leaving(Member),
    Suspected {
        member: NodeId,
        incarnation: Incarnation,
        from: NodeId,
    },
    /// A suspect proved to be alive.
    Cleared {
        member: NodeId,
        incarnation: Incarnation,
    },
    /// Somebody thought ill of us, and we said that we are alive.
    Refuted {
        incarnation: Incarnation,
    },
    /// A member claims the name, or we see our id at another address.
    Conflict {
        name: String,
        holder: NodeId,
        claimant: NodeId,
        claimant_address: SocketAddr,
    },
    WrongDatacenter {
        name: String,
        datacenter: String,
    },
    /// More members than are allowed.
    Full {
        refused: NodeId,
    },
    Malformed {
        from: SocketAddr,
        reason: InvalidMember,
    },
    /// It answers over streams, but not to datagrams: the network may be misconfigured.
    StreamOnly {
        member: NodeId,
    },
    /// A member's coordinate, or the way to it, cannot be.
    Implausible {
        member: NodeId,
        reason: Implausible,
    },
    /// Our leave was sent often enough, or there was nobody to tell.
    LeaveSent,
}

/// Things counted since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    pub probes: u64,
    pub probes_failed: u64,
    pub suspicions: u64,
    pub refutations: u64,
    pub conflicts: u64,
    pub wrong_datacenter: u64,
    pub malformed: u64,
    pub refused_full: u64,
    pub relays_refused: u64,
    /// Times this member did not run although something was due.
    pub pauses: u64,
    /// Changes of the table that are told as events.
    pub changes: u64,
}

/// Nobody has this name.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("No node found with name '{0}'")]
pub struct UnknownName(pub String);

#[derive(Clone, Debug)]
struct Record {
    state: Arc<MemberState>,
    incarnation: Incarnation,
    status: Status,
    changed_at: Instant,
    /// Present exactly while suspect.
    suspicion: Option<Suspicion>,
    /// An operator's word about this incarnation: it counts as left, not failed, once it is dead.
    leave_intent: Option<LeaveIntent>,
    /// Who said that it left; itself otherwise.
    left_by: NodeId,
}

#[derive(Clone, Copy, Debug)]
struct LeaveIntent {
    from: NodeId,
    prune: bool,
}

impl Record {
    fn member(&self) -> Member {
        Member {
            id: self.state.id,
            name: self.state.name.clone(),
            address: self.state.address,
            tags: self.state.tags.clone(),
            status: match self.status {
                Status::Alive | Status::Suspect if self.leave_intent.is_some() => MemberStatus::Leaving,
                Status::Alive | Status::Suspect => MemberStatus::Alive,
                Status::Dead => MemberStatus::Failed,
                Status::Left => MemberStatus::Left,
            },
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Leave {
    No,
    /// Until sent often enough, or this.
    Until(Instant),
    Sent,
}

/// One member's view of its pool.
#[derive(Debug)]
pub struct Swim {
    config: Config,
    me: NodeId,
    members: BTreeMap<NodeId, Record>,
    names: BTreeMap<String, NodeId>,
    /// All members but us, in the order in which they are probed.
    order: Vec<NodeId>,
    order_index: usize,
    /// Alive and suspect ones, we included.
    live_count: usize,
    suspicions: BTreeSet<(Instant, NodeId)>,
    dead: BTreeSet<NodeId>,
    /// Where all members but us are; several that came one after the other may share an address.
    addresses: BTreeSet<(SocketAddr, NodeId)>,
    healing: Healing,
    broadcasts: Broadcasts,
    awareness: Awareness,
    coordinates: Option<Box<Coordinates>>,
    /// The driver has news of its own for the packets of gossip.
    has_payload: bool,
    probe: Option<Probe>,
    relays: BTreeMap<u64, Relay>,
    /// When to say of a relay, if it is still there, that its target did not answer yet. In order of time.
    nacks: VecDeque<(Instant, u64)>,
    sequence_next: u64,
    leave: Leave,
    probe_at: Instant,
    gossip_at: Instant,
    push_pull_at: Instant,
    reap_at: Instant,
    reconnect_at: Instant,
    outputs: VecDeque<Output>,
    probe_rng: ChaCha8Rng,
    gossip_rng: ChaCha8Rng,
    stream_rng: ChaCha8Rng,
    knock_rng: ChaCha8Rng,
    counters: Counters,
    now_last: Instant,
}

fn below(rng: &mut ChaCha8Rng, count: usize) -> usize {
    debug_assert!(count > 0);
    // The bias of the remainder is below 2^-40 for every pool.
    (rng.next_u64() % count as u64) as usize
}

fn within(rng: &mut ChaCha8Rng, interval: Duration) -> Duration {
    let nanos = u64::try_from(interval.as_nanos()).unwrap_or(u64::MAX).max(1);
    Duration::from_nanos(rng.next_u64() % nanos)
}

/// The next tick after `now` of a clock that ticks every `interval` and ticked last at `at`. Ticks missed are skipped.
fn tick_after(at: Instant, interval: Duration, now: Instant) -> Instant {
    let next = at + interval;
    if next > now {
        return next;
    }
    let interval_nanos = u64::try_from(interval.as_nanos()).unwrap_or(u64::MAX).max(1);
    let missed = (now - at).as_nanos() as u64 / interval_nanos;
    at + Duration::from_nanos(interval_nanos.saturating_mul(missed + 1))
}

impl Swim {
    /// A pool of one. `incarnation` is above all that this member ever used: its start's wall-clock milliseconds.
    pub fn new(
        config: Config,
        me: MemberState,
        incarnation: Incarnation,
        mut rng: ChaCha8Rng,
        now: Instant,
    ) -> Result<Self, InvalidMember> {
        me.validate()?;
        if incarnation >= INCARNATION_MAX {
            return Err(InvalidMember::Incarnation);
        }
        let mut child = || {
            let mut seed = [0; 32];
            rng.fill_bytes(&mut seed);
            ChaCha8Rng::from_seed(seed)
        };
        let (mut probe_rng, mut gossip_rng, mut stream_rng, mut knock_rng) = (child(), child(), child(), child());
        let id = me.id;
        let state = Arc::new(me);
        let record = Record {
            state: Arc::clone(&state),
            incarnation,
            status: Status::Alive,
            changed_at: now,
            suspicion: None,
            leave_intent: None,
            left_by: id,
        };
        let mut swim = Self {
            me: id,
            members: BTreeMap::from([(id, record)]),
            names: BTreeMap::from([(state.name.clone(), id)]),
            order: Vec::new(),
            order_index: 0,
            live_count: 1,
            suspicions: BTreeSet::new(),
            dead: BTreeSet::new(),
            addresses: BTreeSet::new(),
            healing: Healing::new(now + within(&mut knock_rng, config.probe_interval), now),
            broadcasts: Broadcasts::new(config.member_count_max),
            awareness: Awareness::new(if config.lha_probe { config.awareness_max } else { 1 }),
            coordinates: config.coordinates.then(|| Box::new(Coordinates::new(child()))),
            has_payload: false,
            probe: None,
            relays: BTreeMap::new(),
            nacks: VecDeque::new(),
            // Acks of a predecessor at this address match nothing.
            sequence_next: probe_rng.next_u64() >> 1,
            leave: Leave::No,
            // Members that start together do not act together.
            probe_at: now + within(&mut probe_rng, config.probe_interval),
            gossip_at: now + within(&mut gossip_rng, config.gossip_interval),
            push_pull_at: now + within(&mut stream_rng, config.push_pull_interval) + config.push_pull_interval,
            reap_at: now + config.reap_interval,
            reconnect_at: now + within(&mut stream_rng, config.reconnect_interval) + config.reconnect_interval,
            outputs: VecDeque::new(),
            probe_rng,
            gossip_rng,
            stream_rng,
            knock_rng,
            counters: Counters::default(),
            now_last: now,
            config,
        };
        swim.broadcast(Update::Alive {
            member: state,
            incarnation,
        });
        Ok(swim)
    }

    // Getters.

    pub fn me(&self) -> Member {
        self.my_record().member()
    }
    pub fn member(&self, id: NodeId) -> Option<Member> {
        self.members.get(&id).map(Record::member)
    }
    /// All that are known, failed and left ones included, sorted by name.
    pub fn members(&self) -> Vec<Member> {
        self.names.values().map(|id| self.members[id].member()).collect()
    }
    /// What this member believes of another.
    pub fn belief(&self, id: NodeId) -> Option<(Status, Incarnation)> {
        self.members.get(&id).map(|record| (record.status, record.incarnation))
    }
    /// Alive and suspect members, this one included unless it left.
    pub fn live_count(&self) -> usize {
        self.live_count
    }
    /// Members by status: all, failed, left.
    pub fn counts(&self) -> (usize, usize, usize) {
        let count = |status| self.members.values().filter(|record| record.status == status).count();
        (self.members.len(), count(Status::Dead), count(Status::Left))
    }
    pub fn health_score(&self) -> u32 {
        self.awareness.score()
    }
    pub fn broadcast_count(&self) -> usize {
        self.broadcasts.len()
    }
    pub fn counters(&self) -> Counters {
        self.counters
    }
    pub fn config(&self) -> &Config {
        &self.config
    }
    /// Where this member is in the network, unless it does not care to know.
    pub fn coordinate(&self) -> Option<Coordinate> {
        self.coordinates.as_ref().map(|coordinates| coordinates.own())
    }
    /// What is known of members' places.
    pub fn coordinates(&self) -> Option<&Coordinates> {
        self.coordinates.as_deref()
    }
    /// How often one piece of news is sent in a pool of this size.
    pub fn transmit_limit(&self) -> u32 {
        self.config.retransmit_limit(self.live_count)
    }
    /// Room for a payload in a packet that holds these messages.
    pub fn free_len_bytes(&self, messages: &[Message]) -> usize {
        let used: usize = messages.iter().map(Message::len_bytes).sum();
        self.config
            .packet_len_bytes_max
            .min(GOSSIP_PACKET_LEN_BYTES_MAX)
            .saturating_sub(PACKET_OVERHEAD_LEN_BYTES + used)
    }
    pub fn is_leave_sent(&self) -> bool {
        self.leave == Leave::Sent
    }

    /// When `handle_timeout` is due. Never in the past once it was called.
    pub fn next_timeout(&self) -> Instant {
        let mut next_at = self.push_pull_at.min(self.reap_at).min(self.reconnect_at);
        if (self.has_payload || !self.broadcasts.is_empty()) && !self.order.is_empty() {
            next_at = next_at.min(self.gossip_at);
        }
        if let Some((expires_at, _)) = self.suspicions.first() {
            next_at = next_at.min(*expires_at);
        }
        if let Leave::Until(until_at) = self.leave {
            next_at = next_at.min(until_at);
        }
        next_at.min(self.next_probe_timeout()).min(self.next_knock_timeout())
    }
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    // Commands.

    /// Exchanges the full state with this address, as every push/pull does.
    pub fn join(&mut self, address: SocketAddr) {
        self.outputs.push_back(Output::PushPull { to: address });
    }
    /// Tells the pool that this member leaves. `Event::LeaveSent` says when the process may end.
    pub fn leave(&mut self, now: Instant) {
        self.advance(now);
        if self.leave != Leave::No {
            return;
        }
        self.leave = Leave::Until(now + self.config.leave_timeout);
        self.probe = None;
        let (me, incarnation) = (self.me, self.my_record().incarnation);
        self.set_status(now, me, Status::Left);
        self.broadcast(Update::Left {
            member: me,
            incarnation,
            from: me,
            prune: false,
        });
        if self.live_count == 0 {
            self.end_leave();
        }
    }
    /// An operator's word that a member will not come back: failed becomes left, or forgotten with `prune`. A live
    /// member refutes it.
    pub fn force_leave(&mut self, now: Instant, name: &str, prune: bool) -> Result<(), UnknownName> {
        self.advance(now);
        let member = *self.names.get(name).ok_or_else(|| UnknownName(name.to_owned()))?;
        let incarnation = self.members[&member].incarnation;
        let from = self.me;
        if member != self.me {
            self.apply_left(now, member, incarnation, from, prune);
        }
        Ok(())
    }
    /// Whether the driver has news of its own: then each round of gossip sends packets, for the driver to fill up with
    /// at most `free_len_bytes`.
    pub fn set_has_payload(&mut self, now: Instant, has_payload: bool) {
        self.advance(now);
        if has_payload {
            self.wake_gossip();
        }
        self.has_payload = has_payload;
    }
    /// Replaces this member's tags and tells the pool.
    pub fn set_tags(&mut self, now: Instant, tags: BTreeMap<String, String>) -> Result<(), InvalidMember> {
        self.advance(now);
        validate_tags(&tags)?;
        if self.my_record().state.tags == tags || self.leave != Leave::No {
            return Ok(());
        }
        let record = self.my_record_mut();
        let mut state = MemberState::clone(&record.state);
        state.tags = tags;
        record.state = Arc::new(state);
        let changed = record.member();
        self.raise_incarnation(Incarnation::ZERO);
        self.change(Event::Updated(changed));
        Ok(())
    }

    // Input.

    /// One datagram's messages.
    pub fn handle_packet(&mut self, now: Instant, from: SocketAddr, messages: Vec<Message>) {
        self.advance(now);
        let mut is_accused = false;
        let mut round_trip = None;
        for message in messages {
            is_accused |= self.config.heals_at_contact && self.is_accusation(&message);
            match message {
                Message::Ping { sequence, target } => self.handle_ping(now, from, sequence, target),
                Message::PingReq {
                    sequence,
                    target,
                    address,
                    wants_nack,
                } => self.handle_ping_req(now, from, sequence, target, address, wants_nack),
                Message::Ack { sequence, target } => round_trip = self.handle_ack(now, from, sequence, target),
                Message::Nack { sequence } => self.handle_nack(sequence, from),
                Message::Update(update) => self.handle_update(now, from, update),
                Message::Payload(payload) => self.outputs.push_back(Output::Payload { from, payload }),
                Message::Coordinate(coordinate) => {
                    if let (Some(coordinates), Some((id, rtt))) = (&mut self.coordinates, round_trip.take())
                        && let Err(reason) = coordinates.observe(id, coordinate, rtt)
                    {
                        self.emit(Event::Implausible { member: id, reason });
                    }
                }
            }
        }
        if is_accused {
            self.answer_accusation(now, from);
        }
    }
    /// A peer's half of an exchange, which it began. Answers with ours, or says why the peer is not let in.
    pub fn handle_push_pull(&mut self, now: Instant, from: SocketAddr, theirs: PushPull) -> Result<PushPull, Refusal> {
        self.advance(now);
        let Some(peer) = theirs.members.iter().find(|remote| remote.member.id == theirs.from) else {
            self.counters.malformed += 1;
            return Err(Refusal::Invalid {
                name: theirs.from.to_string(),
                reason: "it does not describe itself".to_owned(),
            });
        };
        self.admit(&peer.member)?;
        self.merge(now, from, theirs);
        // Made after the merge, so that it holds our refutation of what they thought of us: after a partition, one
        // exchange is enough to see each other again.
        Ok(self.push_pull_request())
    }
    /// A peer's half of an exchange that we began.
    pub fn handle_push_pull_reply(&mut self, now: Instant, from: SocketAddr, theirs: PushPull) {
        self.advance(now);
        self.merge(now, from, theirs);
        self.met(now, from);
    }
    /// Our half of an exchange.
    pub fn push_pull_request(&self) -> PushPull {
        PushPull {
            from: self.me,
            members: self
                .members
                .values()
                .map(|record| RemoteMember {
                    member: Arc::clone(&record.state),
                    incarnation: record.incarnation,
                    status: record.status,
                    from: record.left_by,
                })
                .collect(),
            payload: Vec::new(),
        }
    }
    /// True when this member is the target: the driver answers the stream with an ack.
    pub fn handle_stream_ping(&self, target: NodeId) -> bool {
        target == self.me
    }
    /// Acts on all that is due.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.advance(now);
        self.expire_suspicions(now);
        self.drive_probe(now);
        self.drive_knocks(now);
        if now >= self.gossip_at {
            self.gossip_at = tick_after(self.gossip_at, self.config.gossip_interval, now);
            self.gossip(now);
        }
        if now >= self.push_pull_at {
            self.push_pull_at = now + self.config.push_pull_interval_scaled(self.live_count);
            self.push_pull();
        }
        if now >= self.reconnect_at {
            self.reconnect_at = tick_after(self.reconnect_at, self.config.reconnect_interval, now);
            self.reconnect();
        }
        if now >= self.reap_at {
            self.reap_at = tick_after(self.reap_at, self.config.reap_interval, now);
            self.reap(now);
        }
        if matches!(self.leave, Leave::Until(until_at) if now >= until_at) {
            self.end_leave();
        }
    }

    fn advance(&mut self, now: Instant) {
        assert!(now >= self.now_last, "time went back");
        let idle_until = self.next_timeout().max(self.now_last);
        let pause = now - idle_until;
        self.now_last = now;
        if self.config.excuses_pauses && pause > self.config.probe_timeout {
            self.handle_pause(pause);
        }
    }
    /// We did not run although something was due: stopped, starved or suspended. What others said meanwhile is still to
    /// be read, so that the time does not count against them.
    fn handle_pause(&mut self, pause: Duration) {
        self.counters.pauses += 1;
        self.awareness.worsen(1);
        for (expires_at, id) in std::mem::take(&mut self.suspicions) {
            let record = self.members.get_mut(&id).expect("suspects are known");
            record
                .suspicion
                .as_mut()
                .expect("a suspect has a suspicion")
                .delay(pause);
            self.suspicions.insert((expires_at + pause, id));
        }
        if let Some(probe) = &mut self.probe {
            probe.delay(pause);
        }
    }
    fn my_record(&self) -> &Record {
        self.members
            .get(&self.me)
            .expect("this member is always in its own table")
    }
    fn my_record_mut(&mut self) -> &mut Record {
        self.members
            .get_mut(&self.me)
            .expect("this member is always in its own table")
    }
    fn emit(&mut self, event: Event) {
        self.outputs.push_back(Output::Event(event));
    }
    fn change(&mut self, event: Event) {
        self.counters.changes += 1;
        self.emit(event);
    }
    fn broadcast(&mut self, update: Update) {
        self.wake_gossip();
        self.broadcasts.push(update);
    }
    fn wake_gossip(&mut self) {
        if !self.has_payload && self.broadcasts.is_empty() && self.gossip_at < self.now_last {
            // The gossip clock was not looked at while there was nothing to say.
            self.gossip_at = tick_after(self.gossip_at, self.config.gossip_interval, self.now_last);
        }
    }

    // Rules on updates.

    fn handle_update(&mut self, now: Instant, source: SocketAddr, update: Update) {
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
                prune,
            } => self.apply_left(now, member, incarnation, from, prune),
        }
    }

    fn malformed(&mut self, from: SocketAddr, reason: InvalidMember) {
        self.counters.malformed += 1;
        self.emit(Event::Malformed { from, reason });
    }

    /// Why a peer may not exchange state with us, and so not join.
    fn admit(&mut self, peer: &MemberState) -> Result<(), Refusal> {
        let name = peer.name.clone();
        if let Err(reason) = peer.validate() {
            return Err(Refusal::Invalid {
                name,
                reason: reason.to_string(),
            });
        }
        if self.is_foreign(peer) {
            return Err(Refusal::WrongDatacenter {
                name,
                datacenter: peer.datacenter.clone(),
            });
        }
        if peer.id == self.me && peer.address != self.my_record().state.address {
            return Err(Refusal::IdTaken { name, id: peer.id });
        }
        if let Some(holder) = self.live_holder(peer) {
            return Err(Refusal::NameTaken {
                name,
                claimant: peer.id,
                holder,
            });
        }
        if !self.members.contains_key(&peer.id) && self.members.len() >= self.config.member_count_max {
            self.counters.refused_full += 1;
            return Err(Refusal::Full);
        }
        Ok(())
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
        let holder = *self.names.get(&claimant.name)?;
        // Our own name is never free, even while we leave.
        if holder == claimant.id || (holder != self.me && !self.members[&holder].status.is_live()) {
            return None;
        }
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
        if let Err(reason) = member.validate() {
            return self.malformed(source, reason);
        }
        let id = member.id;
        if id == self.me {
            return self.hear_of_self(&member, incarnation);
        }
        if self
            .members
            .get(&id)
            .is_some_and(|record| incarnation <= record.incarnation)
        {
            return;
        }
        if self.is_foreign(&member) || self.live_holder(&member).is_some() {
            return;
        }
        if !self.members.contains_key(&id) && self.members.len() >= self.config.member_count_max {
            self.counters.refused_full += 1;
            return self.emit(Event::Full { refused: id });
        }
        // A failed or left member's name may be taken: who comes back under it is somebody else.
        if let Some(holder) = self.names.get(&member.name).copied().filter(|holder| *holder != id) {
            self.forget(holder);
        }
        if self
            .members
            .get(&id)
            .is_some_and(|record| record.state.name != member.name)
        {
            // Renamed: those who know members by name see one go and another come.
            self.forget(id);
        }
        self.broadcast(Update::Alive {
            member: Arc::clone(&member),
            incarnation,
        });
        let Some(record) = self.members.get_mut(&id) else {
            return self.admit_new(now, member, incarnation);
        };
        let before = record.status;
        let is_updated = record.state != member;
        record.incarnation = incarnation;
        self.addresses.remove(&(record.state.address, id));
        self.addresses.insert((member.address, id));
        record.state = member;
        let was_leaving = record.leave_intent.take().is_some();
        record.left_by = id;
        self.set_status(now, id, Status::Alive);
        let member = self.members[&id].member();
        match before {
            Status::Dead | Status::Left => self.change(Event::Joined(member)),
            Status::Alive | Status::Suspect => {
                if before == Status::Suspect {
                    self.emit(Event::Cleared {
                        member: id,
                        incarnation,
                    });
                }
                if is_updated || was_leaving {
                    self.change(Event::Updated(member));
                }
            }
        }
    }
    fn admit_new(&mut self, now: Instant, state: Arc<MemberState>, incarnation: Incarnation) {
        let id = state.id;
        let record = Record {
            incarnation,
            status: Status::Alive,
            changed_at: now,
            suspicion: None,
            leave_intent: None,
            left_by: id,
            state,
        };
        let member = record.member();
        self.names.insert(member.name.clone(), id);
        self.addresses.insert((member.address, id));
        self.members.insert(id, record);
        self.live_count += 1;
        // At a random place, or the newest would wait longest for its first probe.
        let last = self.order.len();
        self.order.push(id);
        let place = below(&mut self.probe_rng, last + 1);
        self.order.swap(place, last);
        self.change(Event::Joined(member));
    }

    /// An alive about us: an echo of our own words, or of a predecessor's, or another member with our id.
    fn hear_of_self(&mut self, member: &MemberState, incarnation: Incarnation) {
        if self.leave != Leave::No {
            return;
        }
        let record = self.my_record();
        if incarnation < record.incarnation || (incarnation == record.incarnation && *member == *record.state) {
            return;
        }
        if member.address != record.state.address && incarnation == record.incarnation {
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
    fn raise_incarnation(&mut self, above: Incarnation) -> Incarnation {
        let record = self.my_record_mut();
        record.incarnation = record.incarnation.max(above).next();
        let incarnation = record.incarnation;
        let member = Arc::clone(&record.state);
        self.broadcast(Update::Alive { member, incarnation });
        incarnation
    }

    fn apply_suspect(&mut self, now: Instant, id: NodeId, incarnation: Incarnation, from: NodeId) {
        let Some(record) = self
            .members
            .get_mut(&id)
            .filter(|record| incarnation >= record.incarnation)
        else {
            return;
        };
        match record.status {
            Status::Dead | Status::Left => {}
            Status::Alive if id == self.me => self.refute(incarnation),
            Status::Alive => {
                record.incarnation = incarnation;
                self.suspect(now, id, incarnation, from);
            }
            Status::Suspect => {
                record.incarnation = incarnation;
                let suspicion = record.suspicion.as_mut().expect("a suspect has a suspicion");
                let expires_at = suspicion.expires_at();
                if suspicion.confirm(from) {
                    self.suspicions.remove(&(expires_at, id));
                    self.suspicions.insert((suspicion.expires_at(), id));
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
    fn suspect(&mut self, now: Instant, id: NodeId, incarnation: Incarnation, from: NodeId) {
        // Two probe intervals short of what the multiplier expects, as members' probes have no common phase; and without
        // enough members to confirm, none is expected (we and the suspect do not count).
        let confirmations = usize::try_from(self.config.suspicion_mult.saturating_sub(2)).unwrap_or(usize::MAX);
        let confirmations = if !self.config.lha_suspicion || self.live_count < confirmations + 2 {
            0
        } else {
            confirmations
        };
        let timeout_min = self.config.suspicion_timeout_min(self.live_count);
        let timeout_max = timeout_min.saturating_mul(self.config.suspicion_max_timeout_mult.max(1));
        let confirmations = u32::try_from(confirmations).expect("came from a u32");
        let suspicion = Suspicion::new(now, from, confirmations, timeout_min, timeout_max);
        self.set_status(now, id, Status::Suspect);
        self.suspicions.insert((suspicion.expires_at(), id));
        self.members.get_mut(&id).expect("suspects are known").suspicion = Some(suspicion);
        self.counters.suspicions += 1;
        self.broadcast(Update::Suspect {
            member: id,
            incarnation,
            from,
        });
        self.emit(Event::Suspected {
            member: id,
            incarnation,
            from,
        });
    }
    fn expire_suspicions(&mut self, now: Instant) {
        while let Some((_, id)) = self
            .suspicions
            .first()
            .copied()
            .filter(|(expires_at, _)| *expires_at <= now)
        {
            let incarnation = self.members[&id].incarnation;
            let me = self.me;
            self.declare_dead(now, id, incarnation, me);
        }
    }

    fn apply_dead(&mut self, now: Instant, id: NodeId, incarnation: Incarnation, from: NodeId) {
        let Some(record) = self
            .members
            .get_mut(&id)
            .filter(|record| incarnation >= record.incarnation)
        else {
            return;
        };
        match record.status {
            Status::Dead | Status::Left => {}
            Status::Alive if id == self.me => self.refute(incarnation),
            Status::Alive if !self.config.weighs_accusers => self.declare_dead(now, id, incarnation, from),
            // The word of one member that we heard no suspicion of. It may have been cut off itself, so the accused gets
            // the time of a suspicion to refute.
            Status::Alive => {
                record.incarnation = incarnation;
                self.suspect(now, id, incarnation, from);
            }
            Status::Suspect => self.declare_dead(now, id, incarnation, from),
        }
    }
    fn declare_dead(&mut self, now: Instant, id: NodeId, incarnation: Incarnation, from: NodeId) {
        let record = self.members.get_mut(&id).expect("only known members are declared dead");
        record.incarnation = incarnation;
        if let Some(intent) = record.leave_intent {
            return self.declare_left(now, id, incarnation, intent.from, intent.prune);
        }
        self.set_status(now, id, Status::Dead);
        self.broadcast(Update::Dead {
            member: id,
            incarnation,
            from,
        });
        let member = self.members[&id].member();
        self.change(Event::Failed(member));
    }

    fn apply_left(&mut self, now: Instant, id: NodeId, incarnation: Incarnation, from: NodeId, prune: bool) {
        let Some(record) = self
            .members
            .get_mut(&id)
            .filter(|record| incarnation >= record.incarnation)
        else {
            return;
        };
        let is_own_word = from == id;
        match record.status {
            Status::Left if id == self.me => {}
            _ if id == self.me => self.refute(incarnation),
            Status::Left if !prune => {}
            Status::Left | Status::Dead => self.declare_left(now, id, incarnation, from, prune),
            Status::Alive | Status::Suspect if is_own_word => self.declare_left(now, id, incarnation, from, false),
            Status::Alive | Status::Suspect => {
                let is_news = record.leave_intent.is_none_or(|intent| prune && !intent.prune);
                if !is_news {
                    return;
                }
                record.incarnation = incarnation;
                record.leave_intent = Some(LeaveIntent { from, prune });
                let member = record.member();
                self.broadcast(Update::Left {
                    member: id,
                    incarnation,
                    from,
                    prune,
                });
                self.change(Event::Leaving(member));
            }
        }
    }
    fn declare_left(&mut self, now: Instant, id: NodeId, incarnation: Incarnation, from: NodeId, prune: bool) {
        let record = self.members.get_mut(&id).expect("only known members are declared left");
        let was_left = record.status == Status::Left;
        record.incarnation = incarnation;
        record.left_by = from;
        record.leave_intent = None;
        self.set_status(now, id, Status::Left);
        self.broadcast(Update::Left {
            member: id,
            incarnation,
            from,
            prune,
        });
        if !was_left {
            let member = self.members[&id].member();
            self.change(Event::Left(member));
        }
        if prune {
            self.forget(id);
        }
    }

    fn set_status(&mut self, now: Instant, id: NodeId, status: Status) {
        let record = self.members.get_mut(&id).expect("only known members have a status");
        if let Some(suspicion) = record.suspicion.take() {
            self.suspicions.remove(&(suspicion.expires_at(), id));
        }
        if record.status == status {
            return;
        }
        match (record.status.is_live(), status.is_live()) {
            (true, false) => self.live_count -= 1,
            (false, true) => self.live_count += 1,
            _ => {}
        }
        record.status = status;
        record.changed_at = now;
        if status != Status::Dead {
            self.dead.remove(&id);
        } else if self.dead.insert(id) && self.dead.len() == 1 {
            self.wind_knocks(now);
        }
    }
    fn forget(&mut self, id: NodeId) {
        assert_ne!(id, self.me, "this member never forgets itself");
        let record = self.members.remove(&id).expect("only known members are forgotten");
        if let Some(suspicion) = &record.suspicion {
            self.suspicions.remove(&(suspicion.expires_at(), id));
        }
        if record.status.is_live() {
            self.live_count -= 1;
        }
        self.dead.remove(&id);
        self.addresses.remove(&(record.state.address, id));
        if let Some(coordinates) = &mut self.coordinates {
            coordinates.forget(id);
        }
        let holder = self.names.remove(&record.state.name);
        assert_eq!(holder, Some(id), "a member holds its name");
        let place = self
            .order
            .iter()
            .position(|other| *other == id)
            .expect("all but us are in the order");
        self.order.remove(place);
        if place < self.order_index {
            self.order_index -= 1;
        }
        self.probe.take_if(|probe| probe.target() == id);
        self.change(Event::Reaped(record.member()));
    }

    fn merge(&mut self, now: Instant, source: SocketAddr, theirs: PushPull) {
        let me = self.me;
        for remote in theirs.members {
            let RemoteMember {
                member,
                incarnation,
                status,
                from,
            } = remote;
            let id = member.id;
            let update = match status {
                Status::Alive => Update::Alive { member, incarnation },
                Status::Left => Update::Left {
                    member: id,
                    incarnation,
                    from,
                    prune: false,
                },
                // That they hold it dead may be old news: it gets the chance to refute.
                Status::Suspect | Status::Dead => Update::Suspect {
                    member: id,
                    incarnation,
                    from: me,
                },
            };
            self.handle_update(now, source, update);
        }
    }

    // Rounds.

    /// Up to `count` members that `accept` takes, at random.
    fn pick(
        &self,
        rng: &mut ChaCha8Rng,
        count: usize,
        accept: impl Fn(NodeId, &Record) -> bool,
    ) -> Vec<(NodeId, SocketAddr)> {
        let mut picked: Vec<(NodeId, SocketAddr)> = Vec::with_capacity(count);
        let total = self.order.len();
        let mut consider = |id: NodeId| {
            let record = &self.members[&id];
            if accept(id, record) && !picked.iter().any(|(other, _)| *other == id) {
                picked.push((id, record.state.address));
            }
            picked.len() < count
        };
        if count == 0 || total == 0 {
            return picked;
        }
        if total <= 64 {
            // Few enough to look at all of them, so that no fitting one is missed.
            let mut candidates = self.order.clone();
            shuffle(rng, &mut candidates);
            for id in candidates {
                if !consider(id) {
                    break;
                }
            }
        } else {
            for _ in 0..3 * total {
                if !consider(self.order[below(rng, total)]) {
                    break;
                }
            }
        }
        picked
    }

    fn gossip(&mut self, now: Instant) {
        if self.broadcasts.is_empty() && !self.has_payload {
            return;
        }
        let mut rng = self.gossip_rng.clone();
        let to_the_dead = self.config.gossip_to_the_dead_time;
        let peers = self.pick(&mut rng, self.config.gossip_node_count, |_, record| {
            match record.status {
                Status::Alive | Status::Suspect => true,
                Status::Dead => now - record.changed_at <= to_the_dead,
                Status::Left => false,
            }
        });
        self.gossip_rng = rng;
        for (_, to) in peers {
            let mut messages = Vec::new();
            self.fill(&mut messages);
            if messages.is_empty() && !self.has_payload {
                break;
            }
            self.outputs.push_back(Output::Packet { to, messages });
        }
    }
    /// Adds as many waiting updates as still fit the packet.
    fn fill(&mut self, messages: &mut Vec<Message>) {
        let used: usize = messages.iter().map(Message::len_bytes).sum();
        let free = self
            .config
            .packet_len_bytes_max
            .min(GOSSIP_PACKET_LEN_BYTES_MAX)
            .saturating_sub(PACKET_OVERHEAD_LEN_BYTES + used);
        let limit = self.config.retransmit_limit(self.live_count);
        let mut updates = Vec::new();
        self.broadcasts.take(free, limit, &mut updates);
        messages.extend(updates.into_iter().map(Message::Update));
        if matches!(self.leave, Leave::Until(_)) && !self.broadcasts.contains(self.me) {
            self.end_leave();
        }
    }
    /// Sends a message with as much news as fits.
    fn send(&mut self, to: SocketAddr, message: Message) {
        let mut messages = vec![message];
        self.fill(&mut messages);
        self.outputs.push_back(Output::Packet { to, messages });
    }
    fn end_leave(&mut self) {
        self.leave = Leave::Sent;
        self.emit(Event::LeaveSent);
    }
    fn push_pull(&mut self) {
        if self.leave != Leave::No {
            return;
        }
        let mut rng = self.stream_rng.clone();
        let peers = self.pick(&mut rng, 1, |_, record| record.status == Status::Alive);
        self.stream_rng = rng;
        for (_, to) in peers {
            self.outputs.push_back(Output::PushPull { to });
        }
    }
    /// Serf's rule: one failed member at random, the likelier the more of the pool failed.
    fn reconnect(&mut self) {
        if self.leave != Leave::No {
            return;
        }
        let failed_count = self
            .members
            .values()
            .filter(|record| record.status == Status::Dead)
            .count();
        if failed_count == 0 || below(&mut self.stream_rng, self.live_count.max(1)) >= failed_count {
            return;
        }
        let nth = below(&mut self.stream_rng, failed_count);
        let mut failed = self.members.values().filter(|record| record.status == Status::Dead);
        let to = failed.nth(nth).expect("drawn below their number").state.address;
        self.outputs.push_back(Output::PushPull { to });
    }
    fn reap(&mut self, now: Instant) {
        let due: Vec<NodeId> = self
            .members
            .iter()
            .filter(|(id, record)| {
                let age = now - record.changed_at;
                **id != self.me
                    && match record.status {
                        Status::Dead => age > self.config.reconnect_timeout,
                        Status::Left => age > self.config.tombstone_timeout,
                        Status::Alive | Status::Suspect => false,
                    }
            })
            .map(|(id, _)| *id)
            .collect();
        for id in due {
            self.forget(id);
        }
    }

    /// The invariants. Tests and the simulator call it after every step.
    pub fn check(&self) {
        assert!(self.members.contains_key(&self.me), "this member is in its own table");
        assert!(
            self.members.len() <= self.config.member_count_max.max(1),
            "the table is bounded"
        );
        assert_eq!(
            self.names.len(),
            self.members.len(),
            "a name has one holder, a member one name"
        );
        assert_eq!(self.order.len() + 1, self.members.len(), "all but us are probed");
        assert!(
            self.order_index <= self.order.len(),
            "the next to be probed is in the order"
        );
        let live = self.members.values().filter(|record| record.status.is_live()).count();
        assert_eq!(self.live_count, live, "live members are counted");
        let order: BTreeSet<NodeId> = self.order.iter().copied().collect();
        assert_eq!(order.len(), self.order.len(), "nobody is probed twice a round");
        assert!(!order.contains(&self.me), "nobody probes itself");
        for (id, record) in &self.members {
            assert_eq!(record.state.id, *id, "a record stands under its id");
            assert_eq!(self.names.get(&record.state.name), Some(id), "a member holds its name");
            assert_eq!(
                record.suspicion.is_some(),
                record.status == Status::Suspect,
                "a suspicion belongs to a suspect"
            );
            assert!(record.state.validate().is_ok(), "only valid members are kept");
            assert!(
                record.leave_intent.is_none() || record.status.is_live(),
                "an intent is about a live member"
            );
            if let Some(suspicion) = &record.suspicion {
                suspicion.check();
                assert!(
                    self.suspicions.contains(&(suspicion.expires_at(), *id)),
                    "a suspicion has its timer"
                );
            }
        }
        let suspect_count = self
            .members
            .values()
            .filter(|record| record.status == Status::Suspect)
            .count();
        assert_eq!(self.suspicions.len(), suspect_count, "a timer has its suspicion");
        let mine = self.my_record().status;
        assert_eq!(
            mine == Status::Left,
            self.leave != Leave::No,
            "we are left when we leave"
        );
        assert!(
            matches!(mine, Status::Alive | Status::Left),
            "we never think ill of ourselves"
        );
        self.awareness.check();
        self.broadcasts.check();
        self.check_probes();
        self.check_healing();
    }
}

fn shuffle(rng: &mut ChaCha8Rng, ids: &mut [NodeId]) {
    for last in (1..ids.len()).rev() {
        ids.swap(last, below(rng, last + 1));
    }
}
