//! Many `swim` cores in one virtual time, and the network between them.
//!
//! In: how many members, their configuration, what is wrong with whom. Out: who held whom for failed, and when; messages
//! and bytes. One seed gives one run.
//! - A datagram takes a time drawn evenly from [`LATENCY`], and is lost by the ratios of its sender and its receiver.
//! - A blocked member (the paper's anomaly) stops right before it sends and right after it receives. What it receives
//!   waits, in order, until it unblocks. With [`Block::Loops`], memberlist's structure, its loop stands still from
//!   its first ping on (which so is late when it is sent at last), and only suspicions run out; with [`Block::Sends`] the
//!   member notices nothing, all its timers run, and what it sends waits too.
//! - A stream passes when each of the four packets that open and use it passes within three tries. One that waited at a
//!   blocked member longer than the stream timeout is given up by the other side.
//!
//! Not here: which members are disturbed and when (`paper`, `stress`).

use crate::queue::Queue;
use crate::size;
use quorate_swim::{Config, Event, MemberState, Message, Output, PushPull, RemoteMember, Status, Swim};
use quorate_types::{Incarnation, Instant, NodeId, Uuid};
use rand_chacha::ChaCha8Rng;
use rand_core::{Rng as _, SeedableRng as _};
use std::collections::BTreeSet;
use std::hint::black_box;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// One way, within one datacenter.
pub const LATENCY: (Duration, Duration) = (Duration::from_micros(200), Duration::from_millis(1));
/// As wall-clock milliseconds would be, so that it has their length on the wire.
const INCARNATION: Incarnation = Incarnation(1_700_000_000_000);
/// Members are numbered in three bytes of their addresses.
pub const MEMBER_COUNT_MAX: u32 = 1 << 24;

/// Smaller pools are in the processor's caches.
const LOOK_AHEAD_COUNT_MIN: usize = 1000;

/// The id of a member by its number: scattered, so that the order of ids is not the order of numbers.
pub fn id_of(index: u32) -> NodeId {
    // SplitMix64's finalizer.
    let mut mixed = u64::from(index).wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    let mut bytes = [0x40; 16];
    bytes[..8].copy_from_slice(&(mixed ^ (mixed >> 31)).to_be_bytes());
    bytes[12..].copy_from_slice(&index.to_be_bytes());
    NodeId(Uuid::from_bytes(bytes))
}
fn index_of(id: NodeId) -> u32 {
    let [.., a, b, c, d] = *id.0.as_bytes();
    u32::from_be_bytes([a, b, c, d])
}
fn address_of(index: u32) -> SocketAddr {
    let [_, b, c, d] = index.to_be_bytes();
    SocketAddr::from(([10, b, c, d], 8301))
}
fn index_at(address: SocketAddr) -> u32 {
    match address {
        SocketAddr::V4(v4) => v4.ip().to_bits() & 0xff_ffff,
        SocketAddr::V6(_) => unreachable!("members of the lab have IPv4 addresses"),
    }
}
/// A member as it describes itself.
pub fn describe(index: u32) -> MemberState {
    let tag = |key: &str, value: &str| (key.to_owned(), value.to_owned());
    MemberState {
        id: id_of(index),
        name: format!("node-{index:05}"),
        address: address_of(index),
        datacenter: "dc1".to_owned(),
        tags: [tag("role", "node"), tag("dc", "dc1"), tag("build", "1.0.0")].into(),
    }
}

/// A number evenly drawn below `count`.
pub fn below(rng: &mut ChaCha8Rng, count: u64) -> u64 {
    // The high half of a product: its bias is below 2^-32 for every count used here.
    ((u128::from(rng.next_u64()) * u128::from(count)) >> 64) as u64
}

/// Share of packets lost, compared with 32 random bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LossRatio(u64);

impl LossRatio {
    pub const NONE: Self = Self(0);
    pub const ALL: Self = Self(1 << 32);
    /// `ratio` in 0..=1.
    pub fn new(ratio: f64) -> Self {
        assert!((0.0..=1.0).contains(&ratio), "a ratio is in 0..=1");
        Self((ratio * (1_u64 << 32) as f64) as u64)
    }
    fn is_lost(self, rng: &mut ChaCha8Rng) -> bool {
        match self {
            Self::NONE => false,
            Self::ALL => true,
            Self(ratio) => u64::from(rng.next_u32()) < ratio,
        }
    }
}

/// Where a blocked member stops.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Block {
    #[default]
    Loops,
    Sends,
}

/// Things sent since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    pub packets: u64,
    pub packet_bytes: u64,
    /// Halves of exchanges, pings and acks over streams.
    pub stream_messages: u64,
    pub stream_bytes: u64,
    /// Calls into cores: the work done.
    pub steps: u64,
}

impl Totals {
    pub fn messages(&self) -> u64 {
        self.packets + self.stream_messages
    }
    pub fn bytes(&self) -> u64 {
        self.packet_bytes + self.stream_bytes
    }
    /// What was added since `earlier`.
    pub fn since(&self, earlier: &Self) -> Self {
        Self {
            packets: self.packets - earlier.packets,
            packet_bytes: self.packet_bytes - earlier.packet_bytes,
            stream_messages: self.stream_messages - earlier.stream_messages,
            stream_bytes: self.stream_bytes - earlier.stream_bytes,
            steps: self.steps - earlier.steps,
        }
    }
}

/// A member's belief about another changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Observation {
    pub at: Instant,
    pub observer: u32,
    pub subject: u32,
    pub change: Change,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    Failed,
    /// New, or back.
    Joined,
}

/// What arrives at a member, or falls due there.
#[derive(Debug)]
enum Arrival {
    Wake,
    Packet {
        from: u32,
        messages: Vec<Message>,
    },
    PushPull {
        from: u32,
        begun_at: Instant,
        state: PushPull,
    },
    PushPullReply {
        from: u32,
        begun_at: Instant,
        state: PushPull,
    },
    StreamPing {
        from: u32,
        target: NodeId,
        sequence: u64,
    },
    StreamPong {
        sequence: u64,
    },
}

#[derive(Debug)]
struct Node {
    swim: Swim,
    blocked: Option<Block>,
    /// Blocked, and a ping waits to be sent.
    is_stalled: bool,
    held_outputs: Vec<Output>,
    held_arrivals: Vec<Arrival>,
    ingress_loss: LossRatio,
    egress_loss: LossRatio,
    is_complete: bool,
}

/// A pool of members and its network.
#[derive(Debug)]
pub struct World {
    now: Instant,
    nodes: Vec<Node>,
    /// The timer of each member in the queue that counts; others are stale. Apart from the nodes, so that a stale one
    /// costs no look at a member.
    wake_at: Vec<Instant>,
    /// When each member's timer is due by its own word: often later than that in the queue, as probes are answered.
    due_at: Vec<Instant>,
    queue: Queue<(u32, Arrival)>,
    rng: ChaCha8Rng,
    cuts: BTreeSet<(u32, u32)>,
    /// Somebody loses packets, or did: else nobody's ratios are looked at.
    is_lossy: bool,
    totals: Totals,
    complete_count: usize,
    is_observing: bool,
    observations: Vec<Observation>,
    /// Members about to be looked at, and who sent them what: memory used again.
    soon: Vec<(u32, Option<SocketAddr>)>,
    /// Bytes of exchanges of the full state are counted; in pools of thousands that costs more than it tells.
    pub is_counting_stream_bytes: bool,
}

impl World {
    /// `count` members that know nobody.
    pub fn strangers(count: u32, config: &Config, seed: u64) -> Self {
        assert!(count <= MEMBER_COUNT_MAX, "members are numbered in three bytes");
        let now = Instant::ZERO;
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let nodes = (0..count).map(|index| {
            let mut child = [0; 32];
            rng.fill_bytes(&mut child);
            let swim = Swim::new(
                config.clone(),
                describe(index),
                INCARNATION,
                ChaCha8Rng::from_seed(child),
                now,
            );
            Node {
                swim: swim.expect("the lab's members are valid"),
                blocked: None,
                is_stalled: false,
                held_outputs: Vec::new(),
                held_arrivals: Vec::new(),
                ingress_loss: LossRatio::NONE,
                egress_loss: LossRatio::NONE,
                is_complete: false,
            }
        });
        let nodes = nodes.collect();
        let mut world = Self {
            now,
            nodes,
            wake_at: vec![Instant::FAR_FUTURE; count as usize],
            due_at: vec![Instant::FAR_FUTURE; count as usize],
            queue: Queue::default(),
            rng,
            cuts: BTreeSet::new(),
            is_lossy: false,
            totals: Totals::default(),
            complete_count: 0,
            is_observing: false,
            observations: Vec::new(),
            soon: Vec::new(),
            is_counting_stream_bytes: true,
        };
        for index in 0..count {
            world.settle(index);
        }
        world
    }
    /// `count` members that know one another and have nothing to tell.
    pub fn pool(count: u32, config: &Config, seed: u64) -> Self {
        let mut world = Self::strangers(count, config, seed);
        let members: Vec<RemoteMember> = (0..count)
            .map(|index| RemoteMember {
                member: Arc::new(describe(index)),
                incarnation: INCARNATION,
                status: Status::Alive,
                from: id_of(index),
            })
            .collect();
        for index in 0..count {
            world.nodes[index as usize].swim.learn(world.now, &members);
            world.settle(index);
        }
        world
    }

    pub fn now(&self) -> Instant {
        self.now
    }
    pub fn len(&self) -> u32 {
        u32::try_from(self.nodes.len()).expect("at most MEMBER_COUNT_MAX")
    }
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }
    pub fn totals(&self) -> Totals {
        self.totals
    }
    /// Members whose list holds everybody alive.
    pub fn complete_count(&self) -> usize {
        self.complete_count
    }
    pub fn swim(&self, index: u32) -> &Swim {
        &self.nodes[index as usize].swim
    }
    /// What `observer` believes of `subject`.
    pub fn status(&self, observer: u32, subject: u32) -> Option<Status> {
        self.swim(observer).belief(id_of(subject)).map(|(status, _)| status)
    }
    /// From now on changes of belief are kept.
    pub fn observe(&mut self) {
        self.is_observing = true;
        self.observations.clear();
    }
    pub fn observations(&self) -> &[Observation] {
        &self.observations
    }
    /// `count` different members, drawn from the run's seed.
    pub fn draw(&mut self, count: u32) -> Vec<u32> {
        let mut all: Vec<u32> = (0..self.len()).collect();
        for place in 0..count.min(self.len()) {
            let rest = u64::from(self.len() - place);
            let other = u64::from(place) + below(&mut self.rng, rest);
            all.swap(place as usize, other as usize);
        }
        all.truncate(count as usize);
        all.sort_unstable();
        all
    }
    pub fn join(&mut self, index: u32, via: u32) {
        self.nodes[index as usize].swim.join(address_of(via));
        self.settle(index);
    }
    pub fn set_ingress_loss(&mut self, index: u32, ratio: LossRatio) {
        self.is_lossy = true;
        self.nodes[index as usize].ingress_loss = ratio;
    }
    pub fn set_egress_loss(&mut self, index: u32, ratio: LossRatio) {
        self.is_lossy = true;
        self.nodes[index as usize].egress_loss = ratio;
    }
    /// Nothing passes from `from` to `to` any more; the other way is as before.
    pub fn cut(&mut self, from: u32, to: u32) {
        self.cuts.insert((from, to));
    }
    pub fn heal(&mut self) {
        self.cuts.clear();
    }
    pub fn block(&mut self, index: u32, block: Block) {
        self.nodes[index as usize].blocked = Some(block);
    }
    /// Goes on: the loops with what is overdue, then what waited is sent and acted on, in its order.
    pub fn unblock(&mut self, index: u32) {
        let now = self.now;
        let node = &mut self.nodes[index as usize];
        if node.blocked.take().is_none() {
            return;
        }
        let was_stalled = std::mem::take(&mut node.is_stalled);
        let outputs = std::mem::take(&mut node.held_outputs);
        let arrivals = std::mem::take(&mut node.held_arrivals);
        for output in outputs {
            self.carry_out(index, output);
        }
        if was_stalled {
            let swim = &mut self.nodes[index as usize].swim;
            if swim.next_timeout() <= now {
                self.totals.steps += 1;
                swim.handle_timeout(now);
            }
            self.settle(index);
        }
        for arrival in arrivals {
            self.arrive(index, arrival);
        }
    }

    /// Until nothing is due at or before `until`.
    pub fn run_until(&mut self, until: Instant) {
        while self.step(until) {}
        self.now = self.now.max(until);
    }
    pub fn run_for(&mut self, span: Duration) {
        self.run_until(self.now + span);
    }
    /// One thing that is due at or before `until`; false when there is none.
    pub fn step(&mut self, until: Instant) -> bool {
        if self.queue.open_slot(until) && self.nodes.len() >= LOOK_AHEAD_COUNT_MIN {
            self.look_ahead();
        }
        let Some((at, (to, arrival))) = self.queue.pop_until(until) else {
            return false;
        };
        assert!(at >= self.now, "time went back");
        self.now = at;
        self.arrive(to, arrival);
        true
    }

    /// Looks at what the members that are soon to act will need. In a large pool that is in no cache: looked at one after
    /// the other, it is fetched all at once.
    fn look_ahead(&mut self) {
        let mut soon = std::mem::take(&mut self.soon);
        soon.clear();
        for (to, arrival) in self.queue.open_values() {
            match arrival {
                Arrival::Wake if self.due_at[*to as usize] > self.wake_at[*to as usize] => {}
                Arrival::Packet { from, .. } => soon.push((*to, Some(address_of(*from)))),
                _ => soon.push((*to, None)),
            }
        }
        // Each turn needs what the turn before fetched.
        for turn in 0..quorate_swim::LOOK_AHEAD_TURNS {
            for (to, from) in &soon {
                black_box(self.nodes[*to as usize].swim.look_ahead(turn, *from));
            }
        }
        self.soon = soon;
    }

    fn arrive(&mut self, to: u32, arrival: Arrival) {
        let now = self.now;
        if let Arrival::Wake = arrival {
            let wake_at = &mut self.wake_at[to as usize];
            if *wake_at != now {
                return;
            }
            *wake_at = Instant::FAR_FUTURE;
            if self.due_at[to as usize] > now {
                return self.wake(to);
            }
            let node = &mut self.nodes[to as usize];
            if node.is_stalled {
                if node.swim.next_suspicion_timeout() <= now {
                    self.totals.steps += 1;
                    node.swim.handle_suspicion_timeout(now);
                }
            } else if node.swim.next_timeout() <= now {
                self.totals.steps += 1;
                node.swim.handle_timeout(now);
            }
            return self.settle(to);
        }
        let node = &mut self.nodes[to as usize];
        if node.blocked.is_some() {
            node.held_arrivals.push(arrival);
            return;
        }
        self.totals.steps += 1;
        let stream_timeout = node.swim.config().stream_timeout;
        match arrival {
            Arrival::Wake => unreachable!("dealt with above"),
            Arrival::Packet { from, messages } => node.swim.handle_packet(now, address_of(from), messages),
            Arrival::PushPull { from, begun_at, state } => {
                if let Ok(state) = node.swim.handle_push_pull(now, address_of(from), state) {
                    self.count_push_pull(&state);
                    let reply = Arrival::PushPullReply {
                        from: to,
                        begun_at,
                        state,
                    };
                    self.deliver(from, reply);
                }
            }
            Arrival::PushPullReply { from, begun_at, state } => {
                if now - begun_at <= stream_timeout {
                    node.swim.handle_push_pull_reply(now, address_of(from), state);
                }
            }
            Arrival::StreamPing { from, target, sequence } => {
                if node.swim.handle_stream_ping(target) {
                    self.totals.stream_messages += 1;
                    self.totals.stream_bytes += size::STREAM_PING_LEN_BYTES;
                    self.deliver(from, Arrival::StreamPong { sequence });
                }
            }
            Arrival::StreamPong { sequence } => node.swim.handle_stream_probe(now, sequence, true),
        }
        self.settle(to);
    }
    /// After each call into a core: its outputs, and its next timer.
    fn settle(&mut self, index: u32) {
        while let Some(output) = self.nodes[index as usize].swim.poll_output() {
            if let Output::Event(event) = output {
                self.note(index, &event);
            } else if self.nodes[index as usize].blocked.is_some() {
                self.hold(index, output);
            } else {
                self.carry_out(index, output);
            }
        }
        let count = self.nodes.len();
        let node = &mut self.nodes[index as usize];
        let is_complete = node.swim.live_count() == count;
        if is_complete != std::mem::replace(&mut node.is_complete, is_complete) {
            match is_complete {
                true => self.complete_count += 1,
                false => self.complete_count -= 1,
            }
        }
        self.schedule(index);
    }
    /// Sees to it that the member's next timer is in the queue.
    fn schedule(&mut self, index: u32) {
        let node = &mut self.nodes[index as usize];
        let next_at = match node.is_stalled {
            true => node.swim.next_suspicion_timeout(),
            false => node.swim.next_timeout(),
        };
        self.due_at[index as usize] = next_at.max(self.now);
        self.wake(index);
    }
    fn wake(&mut self, index: u32) {
        let (due_at, wake_at) = (self.due_at[index as usize], &mut self.wake_at[index as usize]);
        if due_at < *wake_at {
            *wake_at = due_at;
            self.queue.push(due_at, (index, Arrival::Wake));
        }
    }
    fn hold(&mut self, index: u32, output: Output) {
        let node = &mut self.nodes[index as usize];
        let is_ping = |message: &Message| matches!(message, Message::Ping { .. } | Message::PingReq { .. });
        if let Output::Packet { messages, .. } = &output
            && node.blocked == Some(Block::Loops)
            && messages.iter().any(is_ping)
        {
            node.is_stalled = true;
        }
        node.held_outputs.push(output);
    }
    fn note(&mut self, observer: u32, event: &Event) {
        if !self.is_observing {
            return;
        }
        let (member, change) = match event {
            Event::Failed(member) => (member, Change::Failed),
            Event::Joined(member) => (member, Change::Joined),
            _ => return,
        };
        self.observations.push(Observation {
            at: self.now,
            observer,
            subject: index_of(member.id),
            change,
        });
    }
    fn carry_out(&mut self, from: u32, output: Output) {
        match output {
            Output::Packet { to, messages } => {
                self.totals.packets += 1;
                self.totals.packet_bytes += size::packet_len_bytes(&messages);
                let to = index_at(to);
                if self.passes(from, to) {
                    self.deliver(to, Arrival::Packet { from, messages });
                }
            }
            Output::PushPull { to } => {
                let to = index_at(to);
                let state = self.nodes[from as usize].swim.push_pull_request();
                self.count_push_pull(&state);
                if self.stream_passes(from, to) {
                    let begun_at = self.now;
                    self.deliver(to, Arrival::PushPull { from, begun_at, state });
                }
            }
            Output::StreamProbe {
                to, target, sequence, ..
            } => {
                self.totals.stream_messages += 1;
                self.totals.stream_bytes += size::STREAM_PING_LEN_BYTES;
                let to = index_at(to);
                if self.stream_passes(from, to) {
                    self.deliver(to, Arrival::StreamPing { from, target, sequence });
                }
            }
            // Nothing but membership is sent here.
            Output::Payload { .. } => {}
            Output::Event(_) => unreachable!("events are noted as they are polled"),
        }
    }
    fn count_push_pull(&mut self, state: &PushPull) {
        self.totals.stream_messages += 1;
        if self.is_counting_stream_bytes {
            self.totals.stream_bytes += size::push_pull_len_bytes(state);
        }
    }
    fn deliver(&mut self, to: u32, arrival: Arrival) {
        if to >= self.len() {
            return;
        }
        let (shortest, longest) = LATENCY;
        let spread = (longest - shortest).as_nanos() as u64;
        let latency = shortest + Duration::from_nanos(below(&mut self.rng, spread + 1));
        self.queue.push(self.now + latency, (to, arrival));
    }
    fn passes(&mut self, from: u32, to: u32) -> bool {
        if to >= self.len() || (!self.cuts.is_empty() && self.cuts.contains(&(from, to))) {
            return false;
        }
        if !self.is_lossy {
            return true;
        }
        let (egress, ingress) = (
            self.nodes[from as usize].egress_loss,
            self.nodes[to as usize].ingress_loss,
        );
        !egress.is_lost(&mut self.rng) && !ingress.is_lost(&mut self.rng)
    }
    fn stream_passes(&mut self, from: u32, to: u32) -> bool {
        const PACKETS: usize = 4;
        const TRIES: usize = 3;
        (0..PACKETS).all(|packet| {
            (0..TRIES).any(|_| match packet % 2 {
                0 => self.passes(from, to),
                _ => self.passes(to, from),
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secs(n: u64) -> Duration {
        Duration::from_secs(n)
    }
    /// A pool without the gossip of its beginning.
    fn quiet(count: u32, config: &Config, seed: u64) -> World {
        let mut world = World::pool(count, config, seed);
        world.run_for(secs(30));
        world.observe();
        world
    }
    #[track_caller]
    fn check_held(block: Block) {
        let mut world = quiet(5, &Config::lan(), 1);
        let refuted = world.swim(0).counters().refutations;
        world.block(0, block);
        // Long enough to be suspected, too short to fail.
        world.run_for(secs(3));
        let held = &world.nodes[0];
        assert!(held.held_arrivals.len() > 2, "pings of others wait");
        assert!(!held.held_outputs.is_empty(), "its own ping waits");
        assert_eq!(held.is_stalled, block == Block::Loops);
        assert_eq!(world.status(1, 0), Some(Status::Suspect));
        assert_eq!(world.swim(0).counters().refutations, refuted, "it has not heard of it");
        world.unblock(0);
        assert!(world.nodes[0].held_arrivals.is_empty() && world.nodes[0].held_outputs.is_empty());
        world.run_for(secs(3));
        assert!(
            world.swim(0).counters().refutations > refuted,
            "it read what had waited"
        );
        assert_eq!(world.status(1, 0), Some(Status::Alive));
        assert_eq!(world.observations(), []);
    }

    #[test]
    fn what_a_blocked_member_sends_and_receives_waits_until_it_unblocks() {
        check_held(Block::Loops);
        check_held(Block::Sends);
    }

    #[test]
    fn a_blocked_member_still_ends_its_suspicions() {
        let config = Config::lan().swim();
        for block in [Block::Loops, Block::Sends] {
            let mut world = quiet(4, &config, 2);
            // Nobody answers member 0, so that it suspects; blocked, it hears nobody refute.
            for other in 1..4 {
                world.cut(0, other);
            }
            while (1..4).all(|other| world.status(0, other) == Some(Status::Alive)) {
                assert!(world.now() < Instant::from_millis(60_000), "no suspicion");
                world.run_for(Duration::from_millis(10));
            }
            world.block(0, block);
            world.run_for(secs(20));
            let is_failure = |seen: &&Observation| seen.observer == 0 && seen.change == Change::Failed;
            assert!(world.observations().iter().any(|seen| is_failure(&seen)), "{block:?}");
        }
    }

    #[test]
    fn a_loss_ratio_is_kept() {
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        let ratio = LossRatio::new(0.25);
        let lost = (0..40_000).filter(|_| ratio.is_lost(&mut rng)).count();
        assert!((9_600..10_400).contains(&lost), "{lost}");
        assert!((0..100).all(|_| LossRatio::ALL.is_lost(&mut rng)));
        assert!((0..100).all(|_| !LossRatio::NONE.is_lost(&mut rng)));
        assert_eq!(LossRatio::new(1.0), LossRatio::ALL);
    }

    #[test]
    fn a_deaf_member_is_failed_though_it_speaks_and_a_cut_has_one_direction() {
        let config = Config::lan();
        let mut world = quiet(8, &config, 3);
        world.set_ingress_loss(7, LossRatio::ALL);
        world.run_for(secs(120));
        let failed = |world: &World, subject: u32| {
            let is_failure = |seen: &&Observation| seen.subject == subject && seen.change == Change::Failed;
            world.observations().iter().filter(is_failure).count()
        };
        assert!(failed(&world, 7) >= 4, "most members saw it fail");
        let mut world = quiet(8, &config, 3);
        world.cut(1, 2);
        assert!(!world.passes(1, 2) && world.passes(2, 1) && !world.stream_passes(2, 1));
        world.run_for(secs(60));
        assert_eq!(failed(&world, 1) + failed(&world, 2), 0, "others reach both");
        world.heal();
        assert!(world.passes(1, 2));
    }

    #[test]
    fn one_seed_is_one_run() {
        let run = |seed| {
            let mut world = World::pool(24, &Config::lan().swim(), seed);
            world.observe();
            let disturbed = world.draw(6);
            for index in &disturbed {
                world.block(*index, Block::Loops);
            }
            world.run_for(secs(25));
            for index in &disturbed {
                world.unblock(*index);
            }
            world.run_for(secs(5));
            (disturbed, world.totals(), world.observations().to_vec())
        };
        let first = run(1);
        assert!(!first.2.is_empty());
        assert_eq!(first, run(1));
        assert_ne!(first, run(2));
    }

    #[test]
    fn numbers_survive_ids_and_addresses() {
        for index in [0, 1, 255, 256, 70_000, MEMBER_COUNT_MAX - 1] {
            assert_eq!(index_of(id_of(index)), index);
            assert_eq!(index_at(address_of(index)), index);
            assert_eq!(describe(index).validate(), Ok(()));
        }
    }
}
