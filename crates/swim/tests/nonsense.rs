//! Whatever peers say, in whatever order and at whatever time: no panic, no unbounded growth, and all invariants hold.

use proptest::prelude::*;
use quorate_swim::{
    Config, INCARNATION_MAX, Intent, LAMPORT_TIME_MAX, LamportTime, MemberState, Message, Output,
    PACKET_OVERHEAD_LEN_BYTES, PushPull, RemoteMember, Status, Swim, Update,
};
use quorate_types::{Incarnation, Instant, NodeId, Uuid};
use rand_chacha::ChaCha8Rng;
use rand_core::SeedableRng as _;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

const MEMBER_COUNT_MAX: usize = 6;

#[derive(Clone, Debug)]
enum Input {
    Packet(Vec<Message>),
    PushPull(PushPull),
    Reply(PushPull),
    StreamProbe {
        last: bool,
        is_answered: bool,
    },
    /// An ack, a nack or nothing for what was sent last.
    AnswerLast {
        is_nack: bool,
    },
    Wait(Duration),
    OnTime(u8),
    Leave,
    ForceLeave {
        n: u8,
        prune: bool,
    },
    SetTags(u8),
}

// Few ids, names and incarnations, so that they meet.
fn any_id() -> impl Strategy<Value = NodeId> {
    (0_u8..10).prop_map(|n| NodeId(Uuid::from_bytes([n; 16])))
}
fn any_address() -> impl Strategy<Value = SocketAddr> {
    (0_u8..6, 8300_u16..8302).prop_map(|(n, port)| SocketAddr::from(([10, 0, 0, n], port)))
}
fn any_incarnation() -> impl Strategy<Value = Incarnation> {
    prop_oneof![
        8 => (0_u64..12).prop_map(Incarnation),
        1 => Just(Incarnation(INCARNATION_MAX.0 - 1)),
        1 => Just(Incarnation(u64::MAX)),
    ]
}
fn any_time() -> impl Strategy<Value = LamportTime> {
    prop_oneof![8 => 0_u64..12, 1 => Just(LAMPORT_TIME_MAX - 1), 1 => Just(u64::MAX)]
}
fn any_member() -> impl Strategy<Value = Arc<MemberState>> {
    let datacenter = prop_oneof![9 => Just("dc1"), 1 => Just("dc2"), 1 => Just("")];
    (any_id(), 0_u8..8, any_address(), datacenter, 0_usize..3).prop_map(|(id, n, address, datacenter, tag)| {
        Arc::new(MemberState {
            id,
            name: format!("n{n}"),
            address,
            datacenter: datacenter.to_owned(),
            tags: BTreeMap::from([("t".to_owned(), "x".repeat(tag * 250))]),
        })
    })
}
fn any_update() -> impl Strategy<Value = Update> {
    let about = || (any_id(), any_incarnation(), any_id());
    prop_oneof![
        4 => (any_member(), any_incarnation()).prop_map(|(member, incarnation)| Update::Alive { member, incarnation }),
        3 => about().prop_map(|(member, incarnation, from)| Update::Suspect { member, incarnation, from }),
        2 => about().prop_map(|(member, incarnation, from)| Update::Dead { member, incarnation, from }),
        2 => (about(), any::<bool>()).prop_map(|((member, incarnation, from), prune)| {
            Update::Left { member, incarnation, from, prune }
        }),
        2 => (any_id(), any_incarnation()).prop_map(|(member, incarnation)| {
            Update::Left { member, incarnation, from: member, prune: false }
        }),
        2 => (any_id(), any_time(), any_id(), any::<bool>()).prop_map(|(member, time, from, prune)| {
            Update::LeaveIntent { member, time, from, prune }
        }),
        1 => (any_id(), any_time()).prop_map(|(member, time)| Update::JoinIntent { member, time }),
    ]
}
fn any_message() -> impl Strategy<Value = Message> {
    prop_oneof![
        8 => any_update().prop_map(Message::Update),
        1 => (any::<u64>(), any_id()).prop_map(|(sequence, target)| Message::Ping { sequence, target }),
        1 => (any::<u64>(), any_id()).prop_map(|(sequence, target)| Message::Ack { sequence, target }),
        1 => any::<u64>().prop_map(|sequence| Message::Nack { sequence }),
        1 => (any::<u64>(), any_id(), any_address(), any::<bool>()).prop_map(|(sequence, target, address, wants_nack)| {
            Message::PingReq { sequence, target, address, wants_nack }
        }),
    ]
}
fn any_state() -> impl Strategy<Value = PushPull> {
    let status = prop_oneof![
        Just(Status::Alive),
        Just(Status::Suspect),
        Just(Status::Dead),
        Just(Status::Left)
    ];
    let remote = (any_member(), any_incarnation(), status, any_id()).prop_map(|(member, incarnation, status, from)| {
        RemoteMember {
            member,
            incarnation,
            status,
            from,
        }
    });
    let intent = (any_id(), any_time(), prop::option::of(any_id()));
    let intent = intent.prop_map(|(member, time, leave)| Intent { member, time, leave });
    let members = prop::collection::vec(remote, 0..6);
    let rest = (any::<bool>(), 0_u64..3, any_time(), prop::collection::vec(intent, 0..4));
    (any_id(), members, rest).prop_map(|(from, members, (is_whole, digest, time, intents))| PushPull {
        from,
        members,
        payload: Vec::new(),
        is_whole,
        digest,
        time,
        intents,
    })
}
fn any_input() -> impl Strategy<Value = Input> {
    prop_oneof![
        8 => prop::collection::vec(any_message(), 0..4).prop_map(Input::Packet),
        2 => any_state().prop_map(Input::PushPull),
        2 => any_state().prop_map(Input::Reply),
        2 => (any::<bool>(), any::<bool>()).prop_map(|(last, is_answered)| Input::StreamProbe { last, is_answered }),
        3 => any::<bool>().prop_map(|is_nack| Input::AnswerLast { is_nack }),
        3 => (0_u64..100_000).prop_map(|ms| Input::Wait(Duration::from_millis(ms))),
        1 => (0_u64..80).prop_map(|hours| Input::Wait(Duration::from_secs(hours * 3600))),
        8 => (1_u8..20).prop_map(Input::OnTime),
        1 => Just(Input::Leave),
        1 => (0_u8..8, any::<bool>()).prop_map(|(n, prune)| Input::ForceLeave { n, prune }),
        1 => any::<u8>().prop_map(Input::SetTags),
    ]
}

/// Found by the fuzz target `swim_core`.
#[test]
fn nothing_is_overdue_when_the_member_under_probe_was_forgotten() {
    let describe = |n: u8| MemberState {
        id: NodeId(Uuid::from_bytes([n; 16])),
        name: format!("n{n}"),
        address: SocketAddr::from(([10, 0, 0, n], 8301)),
        datacenter: "dc1".to_owned(),
        tags: BTreeMap::new(),
    };
    let rng = ChaCha8Rng::seed_from_u64(1);
    let mut swim = Swim::new(Config::lan(), describe(1), Incarnation(5), rng, Instant::ZERO).unwrap();
    let others = [2, 3].map(|n| RemoteMember {
        member: Arc::new(describe(n)),
        incarnation: Incarnation(1),
        status: Status::Alive,
        from: describe(n).id,
    });
    swim.learn(Instant::ZERO, &others);
    let probed_at = swim.next_timeout();
    swim.handle_timeout(probed_at);
    let probed = std::iter::from_fn(|| swim.poll_output()).find_map(|output| match output {
        Output::Packet { messages, .. } => messages.into_iter().find_map(|message| match message {
            Message::Ping { target, .. } => Some(target),
            _ => None,
        }),
        _ => None,
    });
    let member = probed.expect("somebody is probed");
    let left = Message::Update(Update::Left {
        member,
        incarnation: Incarnation(1),
        from: member,
        prune: false,
    });
    swim.handle_packet(probed_at, describe(2).address, vec![left]);
    // Suspended for so long that it is forgotten as soon as we run again, while its probe has all of its time left.
    let now = probed_at + Duration::from_secs(30 * 3600);
    swim.handle_timeout(now);
    assert_eq!(swim.member_count(), 2);
    assert!(swim.next_timeout() > now, "what was due is done");
    swim.check();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]
    #[test]
    fn any_sequence_of_inputs_keeps_the_invariants(inputs in prop::collection::vec(any_input(), 1..60), seed in any::<u64>()) {
        let me = MemberState {
            id: NodeId(Uuid::from_bytes([1; 16])),
            name: "n1".to_owned(),
            address: SocketAddr::from(([10, 0, 0, 1], 8301)),
            datacenter: "dc1".to_owned(),
            tags: BTreeMap::new(),
        };
        let config = Config { member_count_max: MEMBER_COUNT_MAX, ..Config::lan() };
        let rng = ChaCha8Rng::seed_from_u64(seed);
        let mut now = Instant::ZERO;
        let mut swim = Swim::new(config, me, Incarnation(5), rng, now).unwrap();
        let from = SocketAddr::from(([10, 0, 0, 2], 8301));
        let (mut stream_sequence, mut last) = (0, None);
        for input in inputs {
            match input {
                Input::Packet(messages) => swim.handle_packet(now, from, messages),
                Input::PushPull(state) => drop(swim.handle_push_pull(now, from, state)),
                Input::Reply(state) => swim.handle_push_pull_reply(now, from, state),
                Input::StreamProbe { last, is_answered } => {
                    swim.handle_stream_probe(now, if last { stream_sequence } else { 7 }, is_answered);
                }
                Input::AnswerLast { is_nack } => {
                    if let Some((to, sequence, target)) = last {
                        let answer = if is_nack { Message::Nack { sequence } } else { Message::Ack { sequence, target } };
                        swim.handle_packet(now, to, vec![answer]);
                    }
                }
                Input::Wait(duration) => {
                    now += duration;
                    swim.handle_timeout(now);
                    prop_assert!(swim.next_timeout() > now, "what was due is done");
                }
                Input::OnTime(count) => {
                    for _ in 0..count {
                        let before = now;
                        now = now.max(swim.next_timeout());
                        prop_assert!(now >= before);
                        swim.handle_timeout(now);
                        prop_assert!(swim.next_timeout() > now, "what was due is done");
                    }
                }
                Input::Leave => swim.leave(now),
                Input::ForceLeave { n, prune } => drop(swim.force_leave(now, &format!("n{n}"), prune)),
                Input::SetTags(n) => {
                    let tags = BTreeMap::from([("n".to_owned(), n.to_string())]);
                    swim.set_tags(now, tags).unwrap();
                }
            }
            swim.check();
            prop_assert!(swim.members().len() <= MEMBER_COUNT_MAX);
            prop_assert!(swim.broadcast_count() <= MEMBER_COUNT_MAX);
            while let Some(output) = swim.poll_output() {
                match output {
                    Output::Packet { to, messages } => {
                        let len = PACKET_OVERHEAD_LEN_BYTES + messages.iter().map(Message::len_bytes).sum::<usize>();
                        prop_assert!(len <= 1400, "a packet of {} bytes", len);
                        for message in &messages {
                            if let Message::Ping { sequence, target } | Message::PingReq { sequence, target, .. } = message {
                                last = Some((to, *sequence, *target));
                            }
                        }
                    }
                    Output::StreamProbe { sequence, .. } => stream_sequence = sequence,
                    Output::PushPull { .. } | Output::Payload { .. } | Output::Event(_) => {}
                }
            }
        }
    }
}
