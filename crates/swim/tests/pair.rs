//! A small cluster in memory: virtual time, latency, loss and cuts, no async runtime. After every step each member's
//! invariants are checked.

use quorate_swim::{
    Config, Event, InvalidMember, Link, LinkFault, MemberState, Message, Output, PACKET_OVERHEAD_LEN_BYTES, PushPull,
    Refusal, Status, Swim, Update,
};
use quorate_types::{Incarnation, Instant, MemberStatus, NodeId, Uuid};
use rand_chacha::ChaCha8Rng;
use rand_core::{Rng as _, SeedableRng as _};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

enum Delivery {
    Packet { from: SocketAddr, messages: Vec<Message> },
    PushPull { from: SocketAddr, state: PushPull },
    PushPullReply { from: SocketAddr, state: PushPull },
    StreamProbeResult { sequence: u64, is_answered: bool },
}

struct Node {
    swim: Swim,
    is_running: bool,
    /// Deaf to timers and packets, which wait: a stopped process.
    is_paused: bool,
    /// What came while it was paused: the socket's buffer.
    waiting: Vec<Delivery>,
    events: Vec<Event>,
}

struct Cluster {
    now: Instant,
    rng: ChaCha8Rng,
    seed: u64,
    nodes: BTreeMap<SocketAddr, Node>,
    queue: BTreeMap<(Instant, u64), (SocketAddr, Delivery)>,
    sequence: u64,
    isolated: BTreeSet<SocketAddr>,
    datagram_cuts: BTreeSet<(SocketAddr, SocketAddr)>,
    loss_permille: u64,
    /// To whom nothing is delivered.
    deaf: BTreeSet<SocketAddr>,
    refusals: Vec<Refusal>,
    packet_count: u64,
}

fn id(n: u8) -> NodeId {
    NodeId(Uuid::from_bytes([n; 16]))
}
fn address(n: u8) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, n], 8301))
}
fn describe(n: u8) -> MemberState {
    MemberState {
        id: id(n),
        name: format!("n{n}"),
        address: address(n),
        datacenter: "dc1".to_owned(),
        tags: BTreeMap::from([("role".to_owned(), "node".to_owned())]),
    }
}
fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

impl Cluster {
    fn empty(seed: u64) -> Self {
        Self {
            now: Instant::ZERO,
            rng: ChaCha8Rng::seed_from_u64(seed),
            seed,
            nodes: BTreeMap::new(),
            queue: BTreeMap::new(),
            sequence: 0,
            isolated: BTreeSet::new(),
            datagram_cuts: BTreeSet::new(),
            loss_permille: 0,
            deaf: BTreeSet::new(),
            refusals: Vec::new(),
            packet_count: 0,
        }
    }
    /// `count` members that joined through the first and know one another.
    #[track_caller]
    fn joined(count: u8, seed: u64) -> Self {
        let mut net = Self::empty(seed);
        for n in 1..=count {
            net.start(describe(n), 1);
            net.join(n, 1);
        }
        // Gossip tells nearly always in a second; who was left out learns of the others from the first push/pull.
        net.run_until("all know all", secs(90), |net| net.all_live(count));
        net.forget_events();
        net
    }
    fn start(&mut self, state: MemberState, incarnation: u64) {
        self.start_with(Config::lan(), state, incarnation);
    }
    fn start_with(&mut self, config: Config, state: MemberState, incarnation: u64) {
        let at = state.address;
        let rng = ChaCha8Rng::seed_from_u64(self.seed ^ u64::from(at.port()) ^ state.id.0.as_u128() as u64);
        let swim = Swim::new(config, state, Incarnation(incarnation), rng, self.now).unwrap();
        let node = Node {
            swim,
            is_running: true,
            is_paused: false,
            waiting: Vec::new(),
            events: Vec::new(),
        };
        self.nodes.insert(at, node);
    }
    fn node(&self, n: u8) -> &Swim {
        &self.nodes[&address(n)].swim
    }
    fn at(&mut self, n: u8) -> &mut Node {
        self.nodes.get_mut(&address(n)).unwrap()
    }
    fn events(&self, n: u8) -> &[Event] {
        &self.nodes[&address(n)].events
    }
    fn forget_events(&mut self) {
        for node in self.nodes.values_mut() {
            node.events.clear();
        }
    }
    fn join(&mut self, n: u8, via: u8) {
        if n != via {
            self.at(n).swim.join(address(via));
            self.carry_out(address(n));
        }
    }
    fn kill(&mut self, n: u8) {
        self.at(n).is_running = false;
    }
    fn pause(&mut self, n: u8, is_paused: bool) {
        self.at(n).is_paused = is_paused;
        if is_paused {
            return;
        }
        for delivery in std::mem::take(&mut self.at(n).waiting) {
            self.sequence += 1;
            self.queue.insert((self.now, self.sequence), (address(n), delivery));
        }
    }
    fn isolate(&mut self, n: u8) {
        self.isolated.insert(address(n));
    }
    fn heal(&mut self) {
        self.isolated.clear();
        self.datagram_cuts.clear();
    }
    fn is_cut(&self, from: SocketAddr, to: SocketAddr) -> bool {
        self.isolated.contains(&from) != self.isolated.contains(&to)
    }
    fn status(&self, viewer: u8, about: u8) -> Option<Status> {
        self.node(viewer).belief(id(about)).map(|(status, _)| status)
    }
    fn all_see(&self, viewers: &[u8], about: u8, status: Status) -> bool {
        viewers.iter().all(|viewer| self.status(*viewer, about) == Some(status))
    }
    fn all_live(&self, count: u8) -> bool {
        (1..=count).all(|viewer| (1..=count).all(|about| self.status(viewer, about) == Some(Status::Alive)))
    }

    fn deliver(&mut self, to: SocketAddr, delivery: Delivery) {
        if self.deaf.contains(&to) {
            return;
        }
        let latency = Duration::from_micros(200 + self.rng.next_u64() % 2000);
        self.sequence += 1;
        self.queue.insert((self.now + latency, self.sequence), (to, delivery));
    }
    fn carry_out(&mut self, from: SocketAddr) {
        loop {
            let node = self.nodes.get_mut(&from).unwrap();
            node.swim.check();
            let Some(output) = node.swim.poll_output() else { return };
            match output {
                Output::Packet { to, messages } => {
                    let len = PACKET_OVERHEAD_LEN_BYTES + messages.iter().map(Message::len_bytes).sum::<usize>();
                    assert!(len <= 1400, "a packet of {len} bytes");
                    self.packet_count += 1;
                    let is_lost = self.rng.next_u64() % 1000 < self.loss_permille;
                    if !is_lost && !self.is_cut(from, to) && !self.datagram_cuts.contains(&(from, to)) {
                        self.deliver(to, Delivery::Packet { from, messages });
                    }
                }
                Output::PushPull { to } => {
                    let state = node.swim.push_pull_request();
                    if !self.is_cut(from, to) {
                        self.deliver(to, Delivery::PushPull { from, state });
                    }
                }
                Output::StreamProbe {
                    to, target, sequence, ..
                } => {
                    let is_answered = !self.is_cut(from, to)
                        && !self.deaf.contains(&to)
                        && self.nodes.get(&to).is_some_and(|peer| {
                            peer.is_running && !peer.is_paused && peer.swim.handle_stream_ping(target)
                        });
                    self.deliver(from, Delivery::StreamProbeResult { sequence, is_answered });
                }
                Output::Payload { .. } => {}
                Output::Event(event) => node.events.push(event),
            }
        }
    }
    /// The next thing that happens, no later than `until`; false when nothing does.
    fn step(&mut self, until: Instant) -> bool {
        let timer = self
            .nodes
            .iter()
            .filter(|(_, node)| node.is_running && !node.is_paused)
            .map(|(at, node)| (node.swim.next_timeout().max(self.now), *at))
            .min();
        let delivery_at = self.queue.first_key_value().map(|((at, _), _)| *at);
        let timer_at = timer.map_or(Instant::FAR_FUTURE, |(at, _)| at);
        if let Some(delivery_at) = delivery_at.filter(|at| *at <= timer_at && *at <= until) {
            let (_, (to, delivery)) = self.queue.pop_first().unwrap();
            self.now = self.now.max(delivery_at);
            let now = self.now;
            let Some(node) = self.nodes.get_mut(&to).filter(|node| node.is_running) else {
                return true;
            };
            if node.is_paused {
                node.waiting.push(delivery);
                return true;
            }
            match delivery {
                Delivery::Packet { from, messages } => node.swim.handle_packet(now, from, messages),
                Delivery::PushPull { from, state } => match node.swim.handle_push_pull(now, from, state) {
                    Ok(state) => self.deliver(from, Delivery::PushPullReply { from: to, state }),
                    Err(refusal) => self.refusals.push(refusal),
                },
                Delivery::PushPullReply { from, state } => node.swim.handle_push_pull_reply(now, from, state),
                Delivery::StreamProbeResult { sequence, is_answered } => {
                    node.swim.handle_stream_probe(now, sequence, is_answered);
                }
            }
            self.carry_out(to);
            return true;
        }
        match timer.filter(|(at, _)| *at <= until) {
            Some((at, node)) => {
                self.now = at;
                self.nodes.get_mut(&node).unwrap().swim.handle_timeout(at);
                self.carry_out(node);
                true
            }
            None => {
                self.now = until;
                false
            }
        }
    }
    fn run(&mut self, duration: Duration) {
        let until = self.now + duration;
        while self.step(until) {}
    }
    #[track_caller]
    fn run_until(&mut self, what: &str, within: Duration, condition: impl Fn(&Self) -> bool) {
        let until = self.now + within;
        while !condition(self) {
            assert!(self.step(until), "not within {within:?}: {what}");
        }
    }
}

#[test]
fn a_join_through_one_member_reaches_all() {
    for seed in 0..20 {
        let net = Cluster::joined(8, seed);
        assert!(net.now < Instant::from_millis(5_000), "seed {seed}: {:?}", net.now);
        assert_eq!(net.node(3).members().len(), 8);
    }
}

#[test]
fn a_killed_member_is_declared_failed_by_all_within_bounded_time() {
    for seed in 0..20 {
        let mut net = Cluster::joined(5, seed);
        net.kill(5);
        net.run_until("n5 is dead", secs(15), |net| {
            net.all_see(&[1, 2, 3, 4], 5, Status::Dead)
        });
        for viewer in 1..=4 {
            let failed = net
                .events(viewer)
                .iter()
                .filter(|event| matches!(event, Event::Failed(_)))
                .count();
            assert_eq!(failed, 1, "told once");
            assert_eq!(net.node(viewer).live_count(), 4);
        }
    }
}

#[test]
fn forty_members_hear_of_a_death_in_time_and_of_nothing_else() {
    let mut net = Cluster::joined(40, 1);
    net.loss_permille = 20;
    net.kill(40);
    let others: Vec<u8> = (1..40).collect();
    // A round of probes takes 40 s at the most, but 39 members probe: most of this is the suspicion.
    net.run_until("n40 is dead", secs(45), |net| net.all_see(&others, 40, Status::Dead));
    for viewer in others {
        let wrongly = |event: &Event| matches!(event, Event::Failed(member) if member.name != "n40");
        assert!(!net.events(viewer).iter().any(wrongly));
    }
}

#[test]
fn a_suspect_that_refutes_in_time_stays_alive() {
    let mut net = Cluster::joined(3, 7);
    net.isolate(2); // A cut of one link would not do: n3 would carry the ping_req.
    net.run_until("n1 suspects n2", secs(10), |net| {
        net.status(1, 2) == Some(Status::Suspect)
    });
    net.heal();
    net.run_until("all see n2 refute", secs(4), |net| {
        net.all_see(&[1, 3], 2, Status::Alive)
    });
    net.run(secs(30));
    for viewer in [1, 3] {
        assert!(!net.events(viewer).iter().any(|event| matches!(event, Event::Failed(_))));
        assert!(
            net.events(viewer)
                .iter()
                .any(|event| matches!(event, Event::Cleared { .. }))
        );
    }
    assert!(net.node(2).belief(id(2)).unwrap().1 > Incarnation(1));
}

#[test]
fn one_cut_off_member_does_not_have_healthy_ones_declared_dead() {
    for seed in 0..10 {
        let mut net = Cluster::joined(5, seed);
        net.isolate(1);
        net.run_until("n1 sees nobody", secs(120), |net| net.node(1).live_count() == 1);
        net.heal();
        net.run_until("the pool is whole", secs(300), |net| net.all_live(5));
        for viewer in 2..=5 {
            let wrongly = net
                .events(viewer)
                .iter()
                .any(|event| matches!(event, Event::Failed(member) if member.name != "n1"));
            assert!(!wrongly, "seed {seed}: n{viewer} believed n1");
        }
    }
}

#[test]
fn a_member_that_is_deaf_again_and_again_is_failed_once_more_and_then_kept_out_until_it_is_started_anew() {
    const COUNT: u8 = 34;
    let mut net = Cluster::joined(COUNT, 23);
    let others: Vec<u8> = (1..COUNT).collect();
    for _ in 0..2 {
        net.deaf.insert(address(COUNT));
        net.run(secs(20));
        assert!(net.all_see(&others, COUNT, Status::Dead), "deaf, it is failed");
        net.deaf.clear();
        net.run(secs(20));
    }
    assert!(net.all_see(&others, COUNT, Status::Dead), "and not believed any more");
    net.forget_events();
    for is_deaf in [true, false, true, false] {
        if is_deaf {
            net.deaf.insert(address(COUNT));
        } else {
            net.deaf.clear();
        }
        net.run(secs(20));
    }
    for viewer in &others {
        let flapped = |event: &Event| matches!(event, Event::Failed(_) | Event::Joined(_));
        assert!(!net.events(*viewer).iter().any(flapped), "n{viewer} sees no change");
    }
    // Healthy for long enough, it is back by itself.
    net.run_until("it is back", secs(400), |net| {
        net.all_see(&others, COUNT, Status::Alive)
    });

    let mut net = Cluster::joined(COUNT, 24);
    for _ in 0..2 {
        net.deaf.insert(address(COUNT));
        net.run(secs(20));
        net.deaf.clear();
        net.run(secs(20));
    }
    assert!(net.all_see(&others, COUNT, Status::Dead));
    net.start(describe(COUNT), 5_000_000);
    net.join(COUNT, 1);
    net.run_until("started anew, it is let in", secs(5), |net| {
        net.all_see(&others, COUNT, Status::Alive)
    });
}

/// memberlist's fastest failure of a small pool: a probe of a second, and the shortest suspicion of four.
#[test]
fn a_member_that_stands_still_for_five_seconds_again_and_again_is_not_failed_and_fails_nobody() {
    for seed in 0..40 {
        let mut net = Cluster::joined(8, seed);
        net.loss_permille = 5;
        for _ in 0..8 {
            net.pause(8, true);
            net.run(secs(5));
            net.pause(8, false);
            net.run(secs(2));
        }
        let mut suspected_count = 0;
        for viewer in 1..=8 {
            let events = net.events(viewer);
            assert!(
                !events.iter().any(|event| matches!(event, Event::Failed(_))),
                "seed {seed}: n{viewer} {events:?}"
            );
            let is_suspected = |event: &&Event| matches!(event, Event::Suspected { member, .. } if *member == id(8));
            suspected_count += events.iter().filter(is_suspected).count();
        }
        assert!(suspected_count > 7 * 4, "it was suspected most times");
    }
}

#[test]
fn a_member_stopped_for_a_while_declares_nobody_dead_when_it_runs_again() {
    for seed in 0..10 {
        let mut net = Cluster::joined(4, seed);
        // n4 goes away long enough for n1 to suspect it, and refutes while n1 is stopped.
        net.isolate(4);
        net.run_until("n1 suspects n4", secs(10), |net| {
            net.status(1, 4) == Some(Status::Suspect)
        });
        net.pause(1, true);
        net.heal();
        net.run(secs(10));
        net.pause(1, false);
        net.run(secs(20));
        assert!(
            !net.events(1).iter().any(|event| matches!(event, Event::Failed(_))),
            "seed {seed}"
        );
        assert_eq!(net.node(1).counters().pauses, 1);
    }
}

#[test]
fn lost_datagrams_alone_make_nobody_fail() {
    let mut net = Cluster::joined(6, 11);
    net.loss_permille = 200;
    net.run(secs(120));
    for viewer in 1..=6 {
        assert!(!net.events(viewer).iter().any(|event| matches!(event, Event::Failed(_))));
    }
}

#[test]
fn a_member_that_only_streams_reach_stays_alive() {
    let mut net = Cluster::joined(2, 3);
    net.datagram_cuts = BTreeSet::from([(address(1), address(2)), (address(2), address(1))]);
    net.run(secs(30));
    assert!(net.all_live(2));
    let told = net
        .events(1)
        .iter()
        .filter(|event| matches!(event, Event::StreamOnly { .. }))
        .count();
    assert!(told > 10, "told {told} times");
    assert_eq!(net.node(1).health_score(), 0);
}

#[test]
fn a_member_cut_off_from_one_other_is_vouched_for_by_the_rest() {
    let mut net = Cluster::empty(16);
    for n in 1..=3 {
        let config = Config {
            stream_probe: false,
            ..Config::lan()
        };
        net.start_with(config, describe(n), 1);
        net.join(n, 1);
    }
    net.run_until("joined", secs(90), |net| net.all_live(3));
    net.datagram_cuts = BTreeSet::from([(address(1), address(2)), (address(2), address(1))]);
    net.forget_events();
    net.run(secs(60));
    let cut = |member| Event::LinkFaulty {
        member,
        fault: LinkFault::Cut,
    };
    assert_eq!(net.events(1), [cut(id(2))], "nothing worse than that");
    assert_eq!(net.events(2), [cut(id(1))]);
    assert_eq!(net.events(3), []);
    let links = net.node(1).reachability().links;
    assert!(matches!(links.as_slice(), [Link { member, .. }] if *member == id(2)));
    net.heal();
    net.run_until("the link is seen to be mended", secs(90), |net| {
        let is_mended = |event: &Event| matches!(event, Event::LinkMended { .. });
        [1, 2].iter().all(|n| net.events(*n).iter().any(is_mended))
    });
}

#[test]
fn peers_that_nack_keep_a_member_from_doubting_itself() {
    let mut net = Cluster::joined(5, 17);
    net.kill(5);
    let others = [1, 2, 3, 4];
    net.run_until("n5 is dead", secs(15), |net| net.all_see(&others, 5, Status::Dead));
    assert!(others.iter().all(|viewer| net.node(*viewer).health_score() == 0));
    // Cut off, it hears no nacks and blames itself.
    net.isolate(1);
    net.run(secs(10));
    assert!(net.node(1).health_score() > 0);
}

#[test]
fn who_takes_a_dead_members_address_does_not_answer_for_it() {
    let mut net = Cluster::joined(3, 18);
    net.kill(2);
    let mut state = describe(9);
    state.address = address(2);
    net.start(state, 1);
    net.at(2).swim.join(address(1));
    net.carry_out(address(2));
    net.run_until("n2 is dead, n9 lives", secs(20), |net| {
        net.all_see(&[1, 3], 2, Status::Dead) && net.all_see(&[1, 3], 9, Status::Alive)
    });
}

#[test]
fn one_exchange_after_a_partition_makes_both_sides_see_each_other() {
    let mut net = Cluster::joined(2, 19);
    net.isolate(1);
    net.run(secs(600));
    assert!(net.all_see(&[1], 2, Status::Dead) && net.all_see(&[2], 1, Status::Dead));
    net.heal();
    net.join(1, 2);
    net.run_until("both are live", secs(1), |net| net.all_live(2));
}

#[test]
fn a_restarted_member_with_a_new_address_is_known_there() {
    let mut net = Cluster::joined(3, 5);
    net.kill(3);
    let mut state = describe(3);
    state.address = address(33);
    net.start(state, 1000);
    net.at(33).swim.join(address(1));
    net.carry_out(address(33));
    net.run_until("all know the new address", secs(5), |net| {
        [1, 2]
            .iter()
            .all(|viewer| net.node(*viewer).member(id(3)).unwrap().address == address(33))
    });
    assert!(net.all_see(&[1, 2], 3, Status::Alive));
}

#[test]
fn a_restart_whose_clock_went_back_is_still_let_in() {
    let mut net = Cluster::empty(9);
    net.start(describe(1), 5_000_000);
    net.start(describe(2), 5_000_000);
    net.join(2, 1);
    net.run_until("joined", secs(5), |net| net.all_live(2));
    net.kill(2);
    net.run_until("n2 failed", secs(20), |net| net.all_see(&[1], 2, Status::Dead));
    net.start(describe(2), 7);
    net.join(2, 1);
    net.run_until("n2 is back", secs(5), |net| net.all_live(2));
    assert!(net.node(1).belief(id(2)).unwrap().1 > Incarnation(5_000_000));
}

#[test]
fn a_member_that_leaves_is_left_everywhere_and_never_failed() {
    let mut net = Cluster::joined(4, 2);
    let now = net.now;
    net.at(4).swim.leave(now);
    net.carry_out(address(4));
    net.run_until("the leave was sent", secs(5), |net| net.node(4).is_leave_sent());
    assert!(net.events(4).contains(&Event::LeaveSent));
    net.kill(4);
    net.run_until("all see it left", secs(5), |net| {
        net.all_see(&[1, 2, 3], 4, Status::Left)
    });
    net.run(secs(60));
    for viewer in 1..=3 {
        assert!(!net.events(viewer).iter().any(|event| matches!(event, Event::Failed(_))));
        assert_eq!(net.node(viewer).member(id(4)).unwrap().status, MemberStatus::Left);
    }
}

#[test]
fn a_lone_member_leaves_at_once() {
    let mut net = Cluster::empty(1);
    net.start(describe(1), 1);
    net.at(1).swim.leave(Instant::ZERO);
    net.carry_out(address(1));
    assert_eq!(net.events(1), [Event::LeaveSent]);
}

#[test]
fn a_forced_leave_turns_failed_into_left_everywhere_and_prune_forgets() {
    let mut net = Cluster::joined(4, 4);
    net.kill(4);
    net.run_until("n4 failed", secs(20), |net| net.all_see(&[1, 2, 3], 4, Status::Dead));
    let now = net.now;
    net.at(1).swim.force_leave(now, "n4", false).unwrap();
    net.carry_out(address(1));
    net.run_until("n4 left", secs(5), |net| net.all_see(&[1, 2, 3], 4, Status::Left));
    let now = net.now;
    net.at(2).swim.force_leave(now, "n4", true).unwrap();
    net.carry_out(address(2));
    net.run_until("n4 is forgotten", secs(5), |net| {
        (1..=3).all(|viewer| net.status(viewer, 4).is_none())
    });
    net.run(secs(120));
    assert!(
        (1..=3).all(|viewer| net.status(viewer, 4).is_none()),
        "and stays forgotten"
    );
    let unknown = net
        .at(1)
        .swim
        .force_leave(Instant::FAR_FUTURE, "nope", false)
        .unwrap_err();
    assert_eq!(unknown.to_string(), "No node found with name 'nope'");
}

#[test]
fn a_live_member_refutes_a_forced_leave() {
    let mut net = Cluster::joined(3, 6);
    let now = net.now;
    net.at(1).swim.force_leave(now, "n2", false).unwrap();
    net.carry_out(address(1));
    assert_eq!(net.node(1).member(id(2)).unwrap().status, MemberStatus::Leaving);
    net.run_until("n2 refutes", secs(5), |net| {
        [1, 3]
            .iter()
            .all(|viewer| net.node(*viewer).member(id(2)).unwrap().status == MemberStatus::Alive)
    });
    assert_eq!(
        net.node(1).belief(id(2)).unwrap().1,
        Incarnation(1),
        "nobody thought it dead"
    );
}

#[test]
fn a_member_forced_to_leave_before_it_is_seen_dead_goes_from_alive_to_left() {
    let mut net = Cluster::joined(3, 8);
    net.kill(3);
    let now = net.now;
    net.at(1).swim.force_leave(now, "n3", false).unwrap();
    net.carry_out(address(1));
    net.run_until("n3 left", secs(20), |net| net.all_see(&[1, 2], 3, Status::Left));
    assert!(!net.events(1).iter().any(|event| matches!(event, Event::Failed(_))));
}

#[test]
fn two_halves_of_a_pool_find_each_other_after_a_long_partition() {
    for seed in 0..5 {
        let mut net = Cluster::joined(6, seed);
        for n in 1..=3 {
            net.isolate(n);
        }
        net.run(secs(600));
        assert!(net.all_see(&[1, 2, 3], 5, Status::Dead) && net.all_see(&[4, 5, 6], 2, Status::Dead));
        net.heal();
        net.run_until("the pool is whole", secs(120), |net| net.all_live(6));
    }
}

#[test]
fn after_a_cut_long_enough_to_declare_failure_all_see_each_other_within_seconds() {
    for (cut_off, seeds) in [(vec![1], 0..10), (vec![1, 2], 10..20), (vec![1, 2, 3], 20..30)] {
        for seed in seeds {
            let mut net = Cluster::joined(7, seed);
            let others: Vec<u8> = (1..=7).filter(|n| !cut_off.contains(n)).collect();
            for n in &cut_off {
                net.isolate(*n);
            }
            net.run_until("both sides declare the other failed", secs(200), |net| {
                others.iter().all(|n| net.all_see(&cut_off, *n, Status::Dead))
                    && cut_off.iter().all(|n| net.all_see(&others, *n, Status::Dead))
            });
            net.heal();
            let what = format!("seed {seed}: the pool is whole");
            net.run_until(&what, secs(3), |net| net.all_live(7));
        }
    }
}

#[test]
fn a_restart_that_forgot_all_is_known_both_ways_within_seconds_and_never_declared_failed() {
    for seed in 0..20 {
        let mut net = Cluster::joined(3, seed);
        net.kill(3);
        if seed % 2 == 0 {
            net.run_until("n1 suspects n3", secs(10), |net| {
                net.status(1, 3) == Some(Status::Suspect)
            });
        }
        // It joins nobody: only the pings of the old members tell it of them.
        net.start(describe(3), 1_000);
        let what = format!("seed {seed}: all are live");
        net.run_until(&what, secs(3), |net| {
            net.all_live(3)
                && [1, 2]
                    .iter()
                    .all(|n| net.node(*n).belief(id(3)).unwrap().1 >= Incarnation(1_000))
        });
        net.run(secs(60));
        for viewer in 1..=3 {
            assert!(
                !net.events(viewer).iter().any(|event| matches!(event, Event::Failed(_))),
                "seed {seed}"
            );
        }
    }
}

fn lone() -> Swim {
    let rng = ChaCha8Rng::seed_from_u64(1);
    Swim::new(Config::lan(), describe(1), Incarnation(100), rng, Instant::ZERO).unwrap()
}
fn outputs(swim: &mut Swim) -> Vec<Output> {
    swim.check();
    std::iter::from_fn(|| swim.poll_output()).collect()
}

#[test]
fn pings_of_strangers_cost_at_most_one_exchange_at_a_time_and_one_a_second() {
    let mut swim = lone();
    let ping = |swim: &mut Swim, ms: u64, n: u8| -> Vec<SocketAddr> {
        let message = Message::Ping {
            sequence: 1,
            target: id(1),
        };
        swim.handle_packet(Instant::from_millis(ms), address(n), vec![message]);
        let asked = outputs(swim).into_iter().filter_map(|output| match output {
            Output::PushPull { to } => Some(to),
            _ => None,
        });
        asked.collect()
    };
    assert_eq!(ping(&mut swim, 1_000, 2), [address(2)]);
    for n in 2..200 {
        assert_eq!(ping(&mut swim, 2_500, n), [], "one exchange is in flight");
    }
    let of_themselves = |n: u8| {
        let mut swim = Swim::new(
            Config::lan(),
            describe(n),
            Incarnation(1),
            ChaCha8Rng::seed_from_u64(2),
            Instant::ZERO,
        )
        .unwrap();
        swim.join(address(1));
        swim.push_pull_request()
    };
    swim.handle_push_pull_reply(Instant::from_millis(2_600), address(2), of_themselves(2));
    assert_eq!(ping(&mut swim, 2_700, 2), [], "it is known");
    assert_eq!(ping(&mut swim, 2_700, 3), [address(3)]);
    swim.handle_push_pull_reply(Instant::from_millis(2_800), address(3), of_themselves(3));
    assert_eq!(ping(&mut swim, 3_600, 4), [], "within the second");
    assert_eq!(ping(&mut swim, 3_700, 4), [address(4)]);
    // No reply: given up with the stream.
    assert_eq!(ping(&mut swim, 13_600, 5), []);
    assert_eq!(ping(&mut swim, 13_700, 5), [address(5)]);
    // Who describes itself at another address stays a stranger, and is not asked every second.
    swim.handle_push_pull_reply(Instant::from_millis(13_800), address(5), of_themselves(6));
    assert_eq!(ping(&mut swim, 20_000, 5), []);
    assert_eq!(ping(&mut swim, 43_800, 5), [address(5)]);
    assert_eq!(ping(&mut swim, 60_000, 1), [], "our own address");
}

#[test]
fn who_accuses_an_earlier_incarnation_is_told_of_this_one_once_a_packet_and_within_a_budget() {
    let mut swim = lone();
    let accuse = |swim: &mut Swim, ms: u64| -> usize {
        let suspect = Message::Update(Update::Suspect {
            member: id(1),
            incarnation: Incarnation(7),
            from: id(2),
        });
        swim.handle_packet(Instant::from_millis(ms), address(2), vec![suspect; 20]);
        let told = outputs(swim).into_iter().filter(|output| match output {
            Output::Packet { to, messages } => {
                *to == address(2)
                    && messages.iter().any(|message| {
                        matches!(message, Message::Update(Update::Alive { member, incarnation })
                            if member.id == id(1) && *incarnation == Incarnation(100))
                    })
            }
            _ => false,
        });
        told.count()
    };
    assert_eq!(accuse(&mut swim, 10), 1);
    assert!((0..1_000).map(|_| accuse(&mut swim, 20)).sum::<usize>() < 100);
    assert_eq!(accuse(&mut swim, 20), 0);
    assert_eq!(accuse(&mut swim, 1_020), 1);
    assert_eq!(swim.counters().refutations, 0);
}

#[test]
fn tags_reach_all_and_too_many_are_refused() {
    let mut net = Cluster::joined(4, 12);
    let now = net.now;
    let tags = BTreeMap::from([("expect".to_owned(), "3".to_owned())]);
    net.at(2).swim.set_tags(now, tags.clone()).unwrap();
    net.carry_out(address(2));
    net.run_until("all know", secs(5), |net| {
        (1..=4).all(|viewer| net.node(viewer).member(id(2)).unwrap().tags == tags)
    });
    assert!(
        net.events(1)
            .iter()
            .any(|event| matches!(event, Event::Updated(member) if member.name == "n2"))
    );
    let long = BTreeMap::from([("a".to_owned(), "b".repeat(510))]);
    let now = net.now;
    assert_eq!(net.at(2).swim.set_tags(now, long), Err(InvalidMember::Tags));
}

#[test]
fn the_name_of_a_live_member_is_refused_and_that_of_a_failed_one_may_be_taken() {
    let mut net = Cluster::joined(2, 13);
    let mut other = describe(9);
    other.name = "n2".to_owned();
    net.start(other, 5);
    net.join(9, 1);
    net.run(secs(5));
    assert!(matches!(net.refusals.as_slice(), [Refusal::NameTaken { .. }]));
    assert_eq!(net.node(1).counters().conflicts, 1);
    assert_eq!(net.status(1, 9), None);
    net.kill(2);
    net.run_until("n2 failed", secs(20), |net| net.all_see(&[1], 2, Status::Dead));
    net.join(9, 1);
    net.run_until("the name has a new holder", secs(5), |net| {
        net.all_see(&[1], 9, Status::Alive)
    });
    assert_eq!(net.status(1, 2), None);
    let names: Vec<String> = net.node(1).members().into_iter().map(|member| member.name).collect();
    assert_eq!(names, ["n1", "n2"]);
}

#[test]
fn a_member_of_another_datacenter_and_a_copied_id_are_refused() {
    let mut net = Cluster::joined(2, 14);
    let mut foreign = describe(7);
    foreign.datacenter = "dc2".to_owned();
    net.start(foreign, 1);
    net.join(7, 1);
    let mut copied = describe(1);
    copied.address = address(8);
    copied.name = "copy".to_owned();
    net.start(copied, 9);
    net.at(8).swim.join(address(1));
    net.carry_out(address(8));
    net.run(secs(1));
    assert!(matches!(
        net.refusals.as_slice(),
        [
            Refusal::WrongDatacenter { .. } | Refusal::IdTaken { .. },
            Refusal::WrongDatacenter { .. } | Refusal::IdTaken { .. }
        ]
    ));
    assert_eq!(
        (net.node(1).members().len(), net.node(1).counters().wrong_datacenter),
        (2, 1)
    );
}

#[test]
fn failed_and_left_members_are_reaped_in_time() {
    let mut net = Cluster::joined(3, 15);
    let now = net.now;
    net.at(2).swim.leave(now);
    net.carry_out(address(2));
    net.run(secs(5));
    net.kill(2);
    net.kill(3);
    net.run(secs(23 * 3600));
    assert!(net.all_see(&[1], 2, Status::Left) && net.all_see(&[1], 3, Status::Dead));
    net.run(secs(2 * 3600));
    assert_eq!((net.status(1, 2), net.status(1, 3)), (None, Some(Status::Dead)));
    net.run(secs(49 * 3600));
    assert_eq!(net.status(1, 3), None);
    assert!(
        net.events(1)
            .iter()
            .any(|event| matches!(event, Event::Reaped(member) if member.name == "n3"))
    );
}

#[test]
fn one_seed_gives_one_run() {
    let run = |seed| {
        let mut net = Cluster::joined(5, seed);
        net.loss_permille = 100;
        net.run(secs(60));
        (net.packet_count, net.now, net.node(1).counters())
    };
    assert_eq!(run(21), run(21));
    assert_ne!(run(21).0, run(22).0);
}

/// Safety while faults are on (each step checks invariants); then liveness: faults off, and all running members agree.
#[test]
fn after_any_mix_of_kills_restarts_partitions_loss_and_pauses_the_running_members_agree() {
    const COUNT: u8 = 6;
    for seed in 100..130 {
        let mut net = Cluster::joined(COUNT, seed);
        let mut incarnation = 1_000;
        for _ in 0..30 {
            let n = 1 + (net.rng.next_u64() % u64::from(COUNT)) as u8;
            match net.rng.next_u64() % 7 {
                0 => net.kill(n),
                1 if !net.at(n).is_running => {
                    // Now and then the clock went back.
                    incarnation += 1_000;
                    let back = if net.rng.next_u64().is_multiple_of(4) {
                        incarnation
                    } else {
                        0
                    };
                    net.start(describe(n), incarnation - back);
                    let via = 1 + n % COUNT;
                    net.join(n, via);
                }
                2 => net.isolate(n),
                3 => net.heal(),
                4 => net.loss_permille = net.rng.next_u64() % 400,
                5 => net.pause(n, true),
                _ => net.pause(n, false),
            }
            let ms = net.rng.next_u64() % 20_000;
            net.run(Duration::from_millis(ms));
        }
        net.heal();
        net.loss_permille = 0;
        for n in 1..=COUNT {
            net.pause(n, false);
            if !net.at(n).is_running {
                incarnation += 1_000;
                net.start(describe(n), incarnation);
            }
            // An agent's retry_join: who forgot all others must be told of one.
            net.join(n, 1 + n % COUNT);
        }
        // Probes that began in bad times end.
        net.run(secs(15));
        let what = format!("seed {seed}: all are live for all");
        net.run_until(&what, secs(120), |net| net.all_live(COUNT));
        net.forget_events();
        net.run(secs(60));
        assert!(net.all_live(COUNT), "seed {seed}: and stay so");
        for n in 1..=COUNT {
            let is_calm = !net
                .events(n)
                .iter()
                .any(|event| matches!(event, Event::Failed(_) | Event::Suspected { .. }));
            assert!(is_calm, "seed {seed}: n{n} saw {:?}", net.events(n));
        }
    }
}
