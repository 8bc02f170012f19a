//! A pool that forms at once: all join through one member, and every list is soon complete.

use quorate_swim::{Config, MemberState, Message, Output, PushPull, Swim};
use quorate_types::{Incarnation, Instant, NodeId, Uuid};
use rand_chacha::ChaCha8Rng;
use rand_core::{Rng as _, SeedableRng as _};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::net::SocketAddr;
use std::time::Duration;

enum Arrival {
    Wake,
    Packet { from: u16, messages: Vec<Message> },
    PushPull { from: u16, state: PushPull },
    PushPullReply { from: u16, state: PushPull },
}

struct Pool {
    now: Instant,
    rng: ChaCha8Rng,
    members: Vec<Swim>,
    wakes: Vec<Instant>,
    queue: BinaryHeap<Reverse<(Instant, u64, u16)>>,
    arrivals: BTreeMap<u64, Arrival>,
    sequence: u64,
    exchange_count: u64,
}

fn describe(n: u16) -> MemberState {
    let [high, low] = n.to_be_bytes();
    MemberState {
        id: NodeId(Uuid::from_bytes([high, low, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1])),
        name: format!("n{n}"),
        address: SocketAddr::from(([10, 0, high, low], 8301)),
        datacenter: "dc1".to_owned(),
        // About what an agent says of itself.
        tags: BTreeMap::from([("role".to_owned(), "x".repeat(150))]),
    }
}
fn index_of(address: SocketAddr) -> u16 {
    let std::net::IpAddr::V4(ip) = address.ip() else {
        unreachable!("members have IPv4 addresses")
    };
    let [_, _, high, low] = ip.octets();
    u16::from_be_bytes([high, low])
}

impl Pool {
    fn new(count: u16, seed: u64) -> Self {
        let members = (0..count).map(|n| {
            let rng = ChaCha8Rng::seed_from_u64(seed << 16 | u64::from(n));
            Swim::new(Config::lan(), describe(n), Incarnation(1), rng, Instant::ZERO).unwrap()
        });
        let mut pool = Self {
            now: Instant::ZERO,
            rng: ChaCha8Rng::seed_from_u64(seed),
            members: members.collect(),
            wakes: vec![Instant::FAR_FUTURE; usize::from(count)],
            queue: BinaryHeap::new(),
            arrivals: BTreeMap::new(),
            sequence: 0,
            exchange_count: 0,
        };
        for n in 0..count {
            if n > 0 {
                pool.members[usize::from(n)].join(describe(0).address);
            }
            pool.settle(n);
        }
        pool
    }
    fn push(&mut self, at: Instant, to: u16, arrival: Arrival) {
        self.sequence += 1;
        self.arrivals.insert(self.sequence, arrival);
        self.queue.push(Reverse((at, self.sequence, to)));
    }
    fn deliver(&mut self, to: u16, arrival: Arrival) {
        let latency = Duration::from_micros(200 + self.rng.next_u64() % 2000);
        self.push(self.now + latency, to, arrival);
    }
    fn settle(&mut self, n: u16) {
        while let Some(output) = self.members[usize::from(n)].poll_output() {
            match output {
                Output::Packet { to, messages } => self.deliver(index_of(to), Arrival::Packet { from: n, messages }),
                Output::PushPull { to } => {
                    self.exchange_count += 1;
                    let state = self.members[usize::from(n)].push_pull_request();
                    self.deliver(index_of(to), Arrival::PushPull { from: n, state });
                }
                // Nothing is lost here.
                Output::StreamProbe { .. } | Output::Payload { .. } | Output::Event(_) => {}
            }
        }
        let wake_at = self.members[usize::from(n)].next_timeout().max(self.now);
        if wake_at < self.wakes[usize::from(n)] {
            self.wakes[usize::from(n)] = wake_at;
            self.push(wake_at, n, Arrival::Wake);
        }
    }
    fn step(&mut self) {
        let Reverse((at, sequence, to)) = self.queue.pop().expect("there is always a timer");
        self.now = at;
        let arrival = self.arrivals.remove(&sequence).expect("each is delivered once");
        let swim = &mut self.members[usize::from(to)];
        match arrival {
            Arrival::Wake => {
                self.wakes[usize::from(to)] = Instant::FAR_FUTURE;
                if swim.next_timeout() <= at {
                    swim.handle_timeout(at);
                }
            }
            Arrival::Packet { from, messages } => swim.handle_packet(at, describe(from).address, messages),
            Arrival::PushPull { from, state } => {
                let state = swim.handle_push_pull(at, describe(from).address, state).unwrap();
                self.deliver(from, Arrival::PushPullReply { from: to, state });
            }
            Arrival::PushPullReply { from, state } => swim.handle_push_pull_reply(at, describe(from).address, state),
        }
        self.settle(to);
    }
    fn is_complete(&self) -> bool {
        let count = self.members.len();
        self.members.iter().all(|swim| swim.live_count() == count)
    }
}

#[test]
fn hundreds_that_join_through_one_member_all_know_one_another_within_seconds() {
    const COUNT: u16 = 300;
    let mut pool = Pool::new(COUNT, 1);
    while !pool.is_complete() {
        pool.step();
        assert!(pool.now < Instant::from_millis(5_000), "the lists are complete");
    }
    for swim in &pool.members {
        swim.check();
    }
    // The exchanges come to an end: what is left is the usual one in minutes.
    while pool.now < Instant::from_millis(15_000) {
        pool.step();
    }
    let before = pool.exchange_count;
    while pool.now < Instant::from_millis(25_000) {
        pool.step();
    }
    let in_ten_seconds = pool.exchange_count - before;
    assert!(
        in_ten_seconds < u64::from(COUNT) / 4,
        "{in_ten_seconds} exchanges in a pool that is complete"
    );
}
