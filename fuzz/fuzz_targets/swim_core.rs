//! The membership core fed any packets, stream messages, silence and commands, in any order: no panic, its invariants after
//! each of them, and nothing that grows without a bound.
//!
//! Input: a byte for the configuration, then steps: a byte that says what happens, and what that takes. Ids, names,
//! addresses and incarnations are few, so that they meet; a step of bytes as they come from the wire has any of them.
#![no_main]

use libfuzzer_sys::fuzz_target;
use quorate_swim::{
    Config, INCARNATION_MAX, Intent, LAMPORT_TIME_MAX, LamportTime, MemberState, Message, Output,
    PACKET_OVERHEAD_LEN_BYTES, PushPull, RemoteMember, Status, Swim, Update,
};
use quorate_types::limits::GOSSIP_PACKET_LEN_BYTES_MAX;
use quorate_types::{Coordinate, Incarnation, Instant, NodeId, Uuid};
use quorate_wire::gossip::{KIND_PLAIN, StreamMessage, VERSION, decode_frame_body, decode_frame_header, decode_packet};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng as _;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

const MEMBER_COUNT_MAX: usize = 8;
const STEP_COUNT_MAX: usize = 512;
/// One call makes no more: far above what the pool and a full packet can ask for.
const OUTPUT_COUNT_MAX: usize = 1024;

struct Steps<'a>(&'a [u8]);

impl<'a> Steps<'a> {
    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }
    /// Behind two bytes of length.
    fn bytes(&mut self) -> Option<&'a [u8]> {
        let len = usize::from(u16::from_le_bytes([self.byte()?, self.byte()?]));
        let (bytes, rest) = self.0.split_at_checked(len.min(self.0.len()))?;
        self.0 = rest;
        Some(bytes)
    }
    fn bit(&mut self) -> Option<bool> {
        Some(self.byte()? % 2 == 1)
    }
    /// Nil among them, and our own: 1.
    fn id(&mut self) -> Option<NodeId> {
        Some(NodeId(Uuid::from_bytes([self.byte()? % 12; 16])))
    }
    fn address(&mut self) -> Option<SocketAddr> {
        let byte = self.byte()?;
        Some(SocketAddr::from(([10, 0, 0, byte % 8], 8300 + u16::from(byte / 8 % 2))))
    }
    /// Small ones and those at the edge.
    fn number(&mut self, edge: u64) -> Option<u64> {
        Some(match self.byte()? {
            255 => u64::MAX,
            254 => edge,
            253 => edge - 1,
            252 => 5_000,
            byte => u64::from(byte % 16),
        })
    }
    fn incarnation(&mut self) -> Option<Incarnation> {
        self.number(INCARNATION_MAX.0).map(Incarnation)
    }
    fn time(&mut self) -> Option<LamportTime> {
        self.number(LAMPORT_TIME_MAX)
    }
    fn member(&mut self) -> Option<Arc<MemberState>> {
        let (id, address, name) = (self.id()?, self.address()?, self.byte()?);
        let tags = BTreeMap::from([("t".to_owned(), "x".repeat(usize::from(name / 64) * 200))]);
        Some(Arc::new(MemberState {
            id,
            name: format!("n{}", name % 12),
            address,
            datacenter: ["dc1", "dc1", "dc2", ""][usize::from(name / 16 % 4)].to_owned(),
            tags,
        }))
    }
    fn update(&mut self) -> Option<Update> {
        Some(match self.byte()? % 6 {
            0 => Update::Alive {
                member: self.member()?,
                incarnation: self.incarnation()?,
            },
            1 => Update::Suspect {
                member: self.id()?,
                incarnation: self.incarnation()?,
                from: self.id()?,
            },
            2 => Update::Dead {
                member: self.id()?,
                incarnation: self.incarnation()?,
                from: self.id()?,
            },
            3 => Update::Left {
                member: self.id()?,
                incarnation: self.incarnation()?,
                from: self.id()?,
                prune: self.bit()?,
            },
            4 => Update::LeaveIntent {
                member: self.id()?,
                time: self.time()?,
                from: self.id()?,
                prune: self.bit()?,
            },
            _ => Update::JoinIntent {
                member: self.id()?,
                time: self.time()?,
            },
        })
    }
    fn coordinate(&mut self) -> Option<Coordinate> {
        let edge = [0.0, 0.01, -1.0, 1e9, f64::NAN, f64::INFINITY, f64::MIN_POSITIVE, 1e300];
        let mut part = || Some(edge[usize::from(self.byte()? % 8)]);
        Some(Coordinate {
            vector: [part()?; 8],
            error: part()?,
            adjustment: part()?,
            height: part()?,
        })
    }
    fn message(&mut self) -> Option<Message> {
        Some(match self.byte()? % 12 {
            0 => Message::Ping {
                sequence: 7,
                target: self.id()?,
            },
            1 => Message::PingReq {
                sequence: 8,
                target: self.id()?,
                address: self.address()?,
                wants_nack: self.bit()?,
            },
            2 => Message::Ack {
                sequence: 9,
                target: self.id()?,
            },
            3 => Message::Nack { sequence: 9 },
            4 => Message::Coordinate(self.coordinate()?),
            5 => Message::Payload(self.bytes()?.to_vec()),
            _ => Message::Update(self.update()?),
        })
    }
    fn state(&mut self) -> Option<PushPull> {
        let counts = self.byte()?;
        let mut members = Vec::new();
        for _ in 0..counts % 8 {
            let status = [Status::Alive, Status::Suspect, Status::Dead, Status::Left];
            members.push(RemoteMember {
                member: self.member()?,
                incarnation: self.incarnation()?,
                status: status[usize::from(self.byte()? % 4)],
                from: self.id()?,
            });
        }
        let mut intents = Vec::new();
        for _ in 0..counts / 8 % 4 {
            intents.push(Intent {
                member: self.id()?,
                time: self.time()?,
                leave: if self.bit()? { Some(self.id()?) } else { None },
            });
        }
        Some(PushPull {
            from: self.id()?,
            members,
            payload: Vec::new(),
            is_whole: self.bit()?,
            digest: u64::from(self.byte()?),
            time: self.time()?,
            intents,
        })
    }
}

/// The header that a body from the wire needs, as a checksum is more than mutation finds.
fn header(body: &[u8]) -> Vec<u8> {
    [&[VERSION, KIND_PLAIN][..], &crc32c::crc32c(body).to_le_bytes()].concat()
}

fn stream_message(body: &[u8]) -> Option<StreamMessage> {
    let len = u32::try_from(body.len()).expect("inputs are short").to_le_bytes();
    let header = [&header(body)[..], &len].concat();
    let header = decode_frame_header(header.first_chunk().expect("a header")).ok()?;
    decode_frame_body(header, body).ok()
}

fn config(choice: u8) -> Config {
    let profile = match choice % 4 {
        0 => Config::lan(),
        1 => Config::wan(),
        2 => Config::local(),
        _ => Config::lan().swim(),
    };
    Config {
        member_count_max: MEMBER_COUNT_MAX,
        coordinates: choice / 4 % 2 == 1,
        lha_probe: profile.lha_probe ^ (choice / 8 % 2 == 1),
        lha_suspicion: profile.lha_suspicion ^ (choice / 16 % 2 == 1),
        weighs_accusers: profile.weighs_accusers ^ (choice / 32 % 2 == 1),
        excuses_pauses: profile.excuses_pauses ^ (choice / 64 % 2 == 1),
        asks_suspects: profile.asks_suspects ^ (choice / 128 % 2 == 1),
        ..profile
    }
}

struct Member {
    swim: Swim,
    now: Instant,
    /// Of the last question over datagrams, and over a stream.
    asked: Option<(SocketAddr, u64, NodeId)>,
    stream_sequence: u64,
}

impl Member {
    fn new(choice: u8) -> Self {
        let me = MemberState {
            id: NodeId(Uuid::from_bytes([1; 16])),
            name: "n1".to_owned(),
            address: SocketAddr::from(([10, 0, 0, 1], 8301)),
            datacenter: "dc1".to_owned(),
            tags: BTreeMap::new(),
        };
        let rng = ChaCha8Rng::seed_from_u64(u64::from(choice));
        let swim = Swim::new(config(choice), me, Incarnation(5), rng, Instant::ZERO).expect("we are valid");
        Self {
            swim,
            now: Instant::ZERO,
            asked: None,
            stream_sequence: 0,
        }
    }
    fn handle_stream(&mut self, from: SocketAddr, message: StreamMessage, is_reply: bool) {
        match message {
            StreamMessage::PushPull(state) if is_reply => self.swim.handle_push_pull_reply(self.now, from, state),
            StreamMessage::PushPull(state) => drop(self.swim.handle_push_pull(self.now, from, state)),
            StreamMessage::Ping { target } => drop(self.swim.handle_stream_ping(target)),
            _ => {}
        }
    }
    fn step(&mut self, steps: &mut Steps<'_>) -> Option<()> {
        let now = self.now;
        match steps.byte()? % 16 {
            0..=3 => {
                let (from, count) = (steps.address()?, steps.byte()? % 6);
                let mut messages = Vec::new();
                for _ in 0..count {
                    messages.push(steps.message()?);
                }
                self.swim.handle_packet(now, from, messages);
            }
            4 => {
                let (from, body) = (steps.address()?, steps.bytes()?);
                if let Ok(messages) = decode_packet(&[&header(body), body].concat()) {
                    self.swim.handle_packet(now, from, messages);
                }
            }
            5 => {
                let (from, is_reply, body) = (steps.address()?, steps.bit()?, steps.bytes()?);
                if let Some(message) = stream_message(body) {
                    self.handle_stream(from, message, is_reply);
                }
            }
            6 => {
                let (from, is_reply, state) = (steps.address()?, steps.bit()?, steps.state()?);
                self.handle_stream(from, StreamMessage::PushPull(state), is_reply);
            }
            7 => {
                let (is_last, is_answered) = (steps.bit()?, steps.bit()?);
                let sequence = if is_last { self.stream_sequence } else { 7 };
                self.swim.handle_stream_probe(now, sequence, is_answered);
            }
            8 => {
                let is_nack = steps.bit()?;
                if let Some((to, sequence, target)) = self.asked {
                    let answer = if is_nack {
                        Message::Nack { sequence }
                    } else {
                        Message::Ack { sequence, target }
                    };
                    self.swim.handle_packet(now, to, vec![answer]);
                }
            }
            9 => {
                // From no time to three days.
                let (mantissa, shift) = (steps.byte()?, steps.byte()? % 21);
                self.now += Duration::from_millis(u64::from(mantissa) << shift);
                self.timeout();
            }
            10..=12 => {
                for _ in 0..steps.byte()? % 32 {
                    self.now = self.now.max(self.swim.next_timeout());
                    self.timeout();
                }
            }
            13 => match steps.byte()? % 4 {
                0 => self.swim.leave(now),
                1 => self.swim.join(steps.address()?),
                2 => self.swim.set_has_payload(now, steps.bit()?),
                _ => {
                    self.now += Duration::from_millis(u64::from(steps.byte()?) * 10);
                    self.swim.handle_suspicion_timeout(self.now);
                }
            },
            14 => {
                let name = steps.byte()?;
                drop(self.swim.force_leave(now, &format!("n{}", name % 12), name >= 128));
            }
            _ => {
                let len = usize::from(steps.byte()?) * 4;
                let tags = BTreeMap::from([("n".to_owned(), "x".repeat(len))]);
                drop(self.swim.set_tags(now, tags));
            }
        }
        self.check();
        Some(())
    }
    fn timeout(&mut self) {
        self.swim.handle_timeout(self.now);
        assert!(self.swim.next_timeout() > self.now, "what was due is done");
        self.check();
    }
    fn check(&mut self) {
        self.swim.check();
        assert!(self.swim.members().len() <= MEMBER_COUNT_MAX, "members are bounded");
        assert!(
            self.swim.broadcast_count() <= MEMBER_COUNT_MAX,
            "waiting news is bounded"
        );
        let mut output_count = 0;
        while let Some(output) = self.swim.poll_output() {
            output_count += 1;
            match output {
                Output::Packet { to, messages } => {
                    let len = PACKET_OVERHEAD_LEN_BYTES + messages.iter().map(Message::len_bytes).sum::<usize>();
                    assert!(len <= GOSSIP_PACKET_LEN_BYTES_MAX, "a packet of {len} bytes");
                    for message in &messages {
                        if let Message::Ping { sequence, target } | Message::PingReq { sequence, target, .. } = message
                        {
                            self.asked = Some((to, *sequence, *target));
                        }
                    }
                }
                Output::StreamProbe { sequence, .. } => self.stream_sequence = sequence,
                Output::PushPull { .. } => {
                    let state = self.swim.push_pull_request();
                    assert!(state.members.len() <= MEMBER_COUNT_MAX);
                }
                Output::Payload { .. } | Output::Event(_) => {}
            }
        }
        assert!(output_count <= OUTPUT_COUNT_MAX, "{output_count} outputs of one call");
    }
}

fuzz_target!(|input: &[u8]| {
    let mut steps = Steps(input);
    let Some(choice) = steps.byte() else { return };
    let mut member = Member::new(choice);
    for _ in 0..STEP_COUNT_MAX {
        if member.step(&mut steps).is_none() {
            break;
        }
    }
});
