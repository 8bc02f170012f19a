//! The state machine: the table of members and the rules that change it.
//!
//! Here: what a member is made of, commands, input, and what is due. Below: the rules on updates (`rules`), intents
//! (`intent`), whose word counts (`doubt`), probes (`probe`), exchanges of state (`exchange`), gossip (`spread`), contact
//! with those thought dead (`heal`).
//! Not here: how long a suspicion lasts (`suspicion`), which update goes next (`broadcast`).

mod doubt;
mod exchange;
mod flap;
mod heal;
mod intent;
mod link;
mod probe;
mod rules;
mod spread;
mod table;

use crate::awareness::Awareness;
use crate::broadcast::Broadcasts;
use crate::config::Config;
use crate::coordinate::{Coordinates, Implausible};
use crate::message::{
    INCARNATION_MAX, InvalidMember, LamportTime, MemberState, Message, PACKET_OVERHEAD_LEN_BYTES, Seen, Status, Update,
    validate_tags,
};
use crate::suspicion::Suspicion;
use doubt::Doubt;
use exchange::Exchanges;
use flap::Flaps;
use heal::Healing;
use intent::LeaveIntent;
use link::Links;
use probe::{Probe, Relay};
use quorate_types::limits::GOSSIP_PACKET_LEN_BYTES_MAX;
use quorate_types::{Coordinate, Incarnation, Instant, Member, MemberStatus, NodeId};
use rand_chacha::ChaCha8Rng;
use rand_core::{Rng as _, SeedableRng as _};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use table::{Seat, Table};
use thiserror::Error;

pub use link::{Accusation, Link, LinkFault, Reachability};

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
    Joined(Seen),
    /// Its tags, address or intent changed while it was live.
    Updated(Seen),
    Failed(Seen),
    Left(Seen),
    /// Forgotten; its name is free.
    Reaped(Seen),
    /// An operator said that it will not come back; it is still live.
    Leaving(Seen),
    /// The same member is reached at another address now: it was started anew.
    Moved {
        member: Seen,
        address_before: SocketAddr,
    },
    /// A member has the name of another that failed or left, which is forgotten for it.
    NameTaken {
        name: String,
        holder_before: NodeId,
        holder: NodeId,
    },
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
    /// A member at an address, or news from one, that `allowed_cidrs` do not hold.
    NotAllowed {
        name: String,
        address: SocketAddr,
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
    /// Datagrams between us and a member that others reach are lost, some or all. Told when it begins.
    LinkFaulty {
        member: NodeId,
        fault: LinkFault,
    },
    /// They arrive again.
    LinkMended {
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
    pub not_allowed: u64,
    pub refused_full: u64,
    pub relays_refused: u64,
    /// Suspects asked whether they live before they are held for dead.
    pub suspects_asked: u64,
    /// Accusations that we kept to ourselves, as nobody answered us.
    pub accusations_withheld: u64,
    /// Members kept out for a while, as they failed again and again.
    pub held: u64,
    /// News of members that are forgotten, which came too late.
    pub departed_refused: u64,
    /// Updates dropped as too many waited.
    pub broadcasts_dropped: u64,
    /// Times this member did not run although something was due.
    pub pauses: u64,
    /// Changes of the table that are told as events.
    pub changes: u64,
}

/// Nobody has this name.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("No node found with name '{0}'")]
pub struct UnknownName(pub String);

/// What is kept of a dead or left member beside its record.
#[derive(Clone, Copy, Debug)]
struct Gone {
    at: Instant,
    /// Who said that it left; itself otherwise.
    by: NodeId,
    /// Nobody we know of heard from it: it came and went as hearsay, and is forgotten soon.
    is_brief: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Leave {
    No,
    /// Until sent often enough, or this.
    Until(Instant),
    Sent,
}

/// News of more members than this at a time is left to the exchanges of state: gossip would tell each of them too late.
const BROADCAST_COUNT_MAX: usize = 1024;
/// Outputs for which memory is kept between calls.
const OUTPUT_COUNT_KEPT: usize = 32;

/// Of `Swim::look_ahead`.
pub const LOOK_AHEAD_TURNS: usize = 4;

/// One member's view of its pool.
#[derive(Debug)]
pub struct Swim {
    config: Config,
    me: NodeId,
    table: Table,
    /// Exactly of the suspects.
    suspicions: BTreeMap<Seat, Suspicion>,
    /// When the suspects are asked, or their suspicions end.
    expiries: BTreeSet<(Instant, Seat)>,
    /// Exactly of the dead and left ones.
    gone: BTreeMap<Seat, Gone>,
    /// An operator's word about a live member: it counts as left, not failed, once it is dead.
    leave_intents: BTreeMap<Seat, LeaveIntent>,
    /// The latest intent about a member, of those about whom there were any.
    intent_times: BTreeMap<Seat, LamportTime>,
    lamport_time: LamportTime,
    /// In the order of their deaths; some may be back.
    recently_dead: VecDeque<(Instant, Seat)>,
    rules: rules::Hearsay,
    doubt: Doubt,
    flaps: Flaps,
    links: Links,
    healing: Healing,
    exchanges: Exchanges,
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

fn shuffle<T>(rng: &mut ChaCha8Rng, list: &mut [T]) {
    for last in (1..list.len()).rev() {
        list.swap(last, below(rng, last + 1));
    }
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
        let mut hash_rng = child();
        let id = me.id;
        let state = Arc::new(me);
        let broadcast_count_max = config.member_count_max.min(BROADCAST_COUNT_MAX);
        let push_pull_at = now + within(&mut stream_rng, config.push_pull_interval) + config.push_pull_interval;
        let mut swim = Self {
            me: id,
            table: Table::new(Arc::clone(&state), incarnation, &mut hash_rng),
            suspicions: BTreeMap::new(),
            expiries: BTreeSet::new(),
            gone: BTreeMap::new(),
            leave_intents: BTreeMap::new(),
            intent_times: BTreeMap::new(),
            lamport_time: 0,
            recently_dead: VecDeque::new(),
            rules: rules::Hearsay::default(),
            doubt: Doubt::new(now),
            flaps: Flaps::default(),
            links: Links::default(),
            healing: Healing::new(now + within(&mut knock_rng, config.probe_interval), now),
            exchanges: Exchanges::new(push_pull_at),
            broadcasts: Broadcasts::new(broadcast_count_max, hash_rng.next_u64() | 1),
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
        self.seen(Seat::ME).into()
    }
    pub fn member(&self, id: NodeId) -> Option<Member> {
        self.table.find(id).map(|seat| self.seen(seat).into())
    }
    /// All that are known, failed and left ones included, sorted by name.
    pub fn members(&self) -> Vec<Member> {
        let mut seats: Vec<Seat> = self.table.iter().map(|(seat, _)| seat).collect();
        seats.sort_unstable_by_key(|seat| &self.table.get(*seat).state.name);
        seats.into_iter().map(|seat| self.seen(seat).into()).collect()
    }
    /// All that are known: all, and how many of them.
    pub fn member_count(&self) -> usize {
        self.table.len()
    }
    /// What this member believes of another.
    pub fn belief(&self, id: NodeId) -> Option<(Status, Incarnation)> {
        let record = self.table.get(self.table.find(id)?);
        Some((record.status(), record.incarnation()))
    }
    /// Alive and suspect members, this one included unless it left.
    pub fn live_count(&self) -> usize {
        self.table.live_count() + usize::from(self.leave == Leave::No)
    }
    /// Members by status: all, failed, left.
    pub fn counts(&self) -> (usize, usize, usize) {
        let left = self.table.left_count() + usize::from(self.leave != Leave::No);
        (self.table.len(), self.table.dead_count(), left)
    }
    /// Of the live members and their incarnations: equal at members that know the same.
    pub fn digest(&self) -> u64 {
        self.table.digest()
    }
    pub fn health_score(&self) -> u32 {
        self.awareness.score()
    }
    /// Serf's member time: above that of every intent heard of.
    pub fn lamport_time(&self) -> LamportTime {
        self.lamport_time + 1
    }
    pub fn broadcast_count(&self) -> usize {
        self.broadcasts.len()
    }
    pub fn counters(&self) -> Counters {
        Counters {
            broadcasts_dropped: self.broadcasts.dropped_count(),
            ..self.counters
        }
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
        self.config.retransmit_limit(self.live_count())
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
        let mut next_at = self.exchanges.push_pull_at.min(self.reap_at).min(self.reconnect_at);
        if (self.has_payload || !self.broadcasts.is_empty()) && self.table.len() > 1 {
            next_at = next_at.min(self.gossip_at);
        }
        next_at = next_at.min(self.next_suspicion_timeout());
        if let Leave::Until(until_at) = self.leave {
            next_at = next_at.min(until_at);
        }
        next_at
            .min(self.next_probe_timeout())
            .min(self.next_knock_timeout())
            .min(self.next_link_timeout())
    }
    /// When `handle_suspicion_timeout` is due.
    pub fn next_suspicion_timeout(&self) -> Instant {
        self.expiries.first().map_or(Instant::FAR_FUTURE, |(due_at, _)| *due_at)
    }
    /// Reads what the next steps of this member will read: its own state, its next target, or who is at `from`. A harness
    /// with thousands of members calls this, turn after turn, for those that are to act soon: their memory is fetched at
    /// once, not one after the other. Means nothing but that.
    pub fn look_ahead(&self, turn: usize, from: Option<SocketAddr>) -> u64 {
        match (turn, from) {
            (0, _) => self.next_timeout().as_nanos() ^ self.counters.probes,
            (_, Some(from)) => u64::from(turn == 1 && self.table.is_held(from)),
            (_, None) => self.table.look_ahead(turn),
        }
    }
    pub fn poll_output(&mut self) -> Option<Output> {
        let output = self.outputs.pop_front();
        if self.outputs.is_empty() && self.outputs.capacity() > OUTPUT_COUNT_KEPT {
            // A pool that forms makes an event a member; that memory is not kept for ever.
            self.outputs = VecDeque::new();
        }
        output
    }

    // Commands.

    /// Exchanges state with this address, as every push/pull does.
    pub fn join(&mut self, address: SocketAddr) {
        self.outputs.push_back(Output::PushPull { to: address });
    }
    /// Takes these members for alive, without events and without telling anybody: a harness begins with a pool that is
    /// complete and quiet.
    pub fn learn(&mut self, now: Instant, members: &[crate::message::RemoteMember]) {
        self.advance(now);
        let room = self.config.member_count_max.saturating_sub(self.table.len());
        self.table.reserve(members.len().min(room));
        for remote in members {
            let (member, incarnation) = (&remote.member, remote.incarnation);
            let is_free = self.table.find(member.id).is_none() && self.table.holder(&member.name).is_none();
            let has_room = self.table.len() < self.config.member_count_max;
            if is_free && has_room && member.validate().is_ok() && incarnation < INCARNATION_MAX {
                self.table.insert(Arc::clone(member), incarnation, &mut self.probe_rng);
            }
        }
        self.broadcasts.clear();
    }
    /// Tells the pool that this member leaves. `Event::LeaveSent` says when the process may end.
    pub fn leave(&mut self, now: Instant) {
        self.advance(now);
        if self.leave != Leave::No {
            return;
        }
        self.leave = Leave::Until(now + self.config.leave_timeout);
        self.probe = None;
        let (me, incarnation) = (self.me, self.my_record().incarnation());
        self.set_status(now, Seat::ME, Status::Left, me);
        self.broadcast(Update::Left {
            member: me,
            incarnation,
            from: me,
            prune: false,
        });
        if self.table.live_count() == 0 {
            self.end_leave();
        }
    }
    /// An operator's word that a member will not come back: failed becomes left, or forgotten with `prune`. A live
    /// member refutes it.
    pub fn force_leave(&mut self, now: Instant, name: &str, prune: bool) -> Result<(), UnknownName> {
        self.advance(now);
        let seat = self.table.holder(name).ok_or_else(|| UnknownName(name.to_owned()))?;
        if seat != Seat::ME {
            let (member, from) = (self.table.get(seat).id(), self.me);
            let time = self.next_lamport_time();
            self.apply_leave_intent(now, member, time, from, prune);
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
        let mut state = MemberState::clone(&self.my_record().state);
        state.tags = tags;
        self.table.set_state(Seat::ME, Arc::new(state));
        self.raise_incarnation(Incarnation::ZERO);
        self.change(Event::Updated(self.seen(Seat::ME)));
        Ok(())
    }

    // Input.

    /// One datagram's messages.
    pub fn handle_packet(&mut self, now: Instant, from: SocketAddr, messages: Vec<Message>) {
        self.advance(now);
        let mut is_accused = false;
        let mut round_trip = None;
        for message in messages {
            is_accused |= self.is_accusation(&message);
            match message {
                Message::Ping { sequence, target } => self.handle_ping(now, from, sequence, target),
                Message::PingReq {
                    sequence,
                    target,
                    address,
                    wants_nack,
                } => self.handle_ping_req(now, from, sequence, target, address, wants_nack),
                Message::Ack { sequence, target } => round_trip = self.handle_ack(now, from, sequence, target),
                Message::Nack { sequence } => self.handle_nack(now, sequence, from),
                // memberlist's rule. A stream's address says less: it need not be the one that its sender is bound to.
                Message::Update(Update::Alive { member, .. }) if self.is_outside(from, &member) => {}
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
    /// True when this member is the target: the driver answers the stream with an ack.
    pub fn handle_stream_ping(&self, target: NodeId) -> bool {
        target == self.me
    }
    /// Acts on all that is due.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.advance(now);
        self.expire_suspicions(now);
        // Before the probes: with a member that is forgotten its probe ends, and the next may be due.
        if now >= self.reap_at {
            self.reap_at = tick_after(self.reap_at, self.config.reap_interval, now);
            self.reap(now);
        }
        self.drive_probe(now);
        self.drive_knocks(now);
        self.drive_links(now);
        if now >= self.gossip_at {
            self.gossip_at = tick_after(self.gossip_at, self.config.gossip_interval, now);
            self.gossip(now);
        }
        self.drive_exchanges(now);
        if now >= self.reconnect_at {
            self.reconnect_at = tick_after(self.reconnect_at, self.config.reconnect_interval, now);
            self.reconnect();
        }
        if matches!(self.leave, Leave::Until(until_at) if now >= until_at) {
            self.end_leave();
        }
    }

    /// Sees to suspicions that are due, and nothing else: for a driver whose sends are held up.
    pub fn handle_suspicion_timeout(&mut self, now: Instant) {
        self.advance(now);
        self.expire_suspicions(now);
    }

    fn advance(&mut self, now: Instant) {
        assert!(now >= self.now_last, "time went back");
        // The cheap half first: nothing was due before `now_last`.
        if now - self.now_last > self.config.probe_timeout {
            let idle_until = self.next_timeout().max(self.now_last);
            let pause = now - idle_until;
            if self.config.excuses_pauses && pause > self.config.probe_timeout {
                self.handle_pause(pause);
            }
        }
        self.now_last = now;
    }
    /// We did not run although something was due: stopped, starved or suspended. What others said meanwhile is still to
    /// be read, so that the time does not count against them.
    fn handle_pause(&mut self, pause: Duration) {
        self.counters.pauses += 1;
        self.awareness.worsen(1);
        self.expiries.clear();
        for (seat, suspicion) in &mut self.suspicions {
            suspicion.delay(pause);
            self.expiries.insert((suspicion.due_at(), *seat));
        }
        if let Some(probe) = &mut self.probe {
            probe.delay(pause);
        }
    }
    fn my_record(&self) -> &table::Record {
        self.table.get(Seat::ME)
    }
    fn seen(&self, seat: Seat) -> Seen {
        let record = self.table.get(seat);
        Seen {
            state: Arc::clone(&record.state),
            status: match record.status() {
                Status::Alive | Status::Suspect if self.leave_intents.contains_key(&seat) => MemberStatus::Leaving,
                Status::Alive | Status::Suspect => MemberStatus::Alive,
                Status::Dead => MemberStatus::Failed,
                Status::Left => MemberStatus::Left,
            },
        }
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

    /// The invariants. Tests and the simulator call it after every step.
    pub fn check(&self) {
        self.table.check();
        assert_eq!(self.my_record().id(), self.me, "this member is in its own table");
        assert!(
            self.table.len() <= self.config.member_count_max.max(1),
            "the table is bounded"
        );
        for (seat, record) in self.table.iter() {
            assert_eq!(
                self.suspicions.contains_key(&seat),
                record.status() == Status::Suspect,
                "a suspicion belongs to a suspect"
            );
            assert_eq!(
                self.gone.contains_key(&seat),
                !record.status().is_live(),
                "it is known since when a member is gone"
            );
            assert!(
                record.status().is_live() || !self.leave_intents.contains_key(&seat),
                "an intent is about a live member"
            );
        }
        for (seat, suspicion) in &self.suspicions {
            suspicion.check();
            assert!(
                self.expiries.contains(&(suspicion.due_at(), *seat)),
                "a suspicion has its timer"
            );
        }
        assert_eq!(self.expiries.len(), self.suspicions.len(), "a timer has its suspicion");
        for seats in [
            self.suspicions.keys().collect::<Vec<_>>(),
            self.gone.keys().collect(),
            self.leave_intents.keys().collect(),
            self.intent_times.keys().collect(),
        ] {
            for seat in seats {
                // Only of known members is more known: no other seat is taken.
                self.table.get(*seat);
            }
        }
        let mine = self.my_record().status();
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
        self.rules.check();
        self.doubt.check();
        self.flaps.check();
        self.check_probes();
        self.check_healing();
        self.check_links();
    }
}
