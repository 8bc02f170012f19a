//! Writes the first inputs of the targets to `corpus/`: `cargo run --example corpus`, from `fuzz/`.
//!
//! What real clients and peers send, so that mutation starts behind the first checks.

#![allow(
    clippy::disallowed_methods,
    reason = "a tool that writes files, not a part of the product"
)]

use bytes::Bytes;
use quorate_dns_answer::{Name, encode_question, qtype};
use quorate_store::{
    Command, Consistency, KvCommand, KvOperation, KvVerb, Operation, Outcome, Query, SessionCommand, StateHash, Store,
};
use quorate_swim::{Intent, MemberState, Message, PushPull, Refusal, RemoteMember, Status, Update};
use quorate_types::{
    Check, Coordinate, Deregistration, Incarnation, Instant, KvPair, LogIndex, ModifyIndex, NodeCoordinate, NodeId,
    Registration, Service, Session, Uuid, WallTime,
};
use quorate_user_events::{EventState, LamportTime, Message as EventMessage, Query as EventQuery, QueryId, UserEvent};
use quorate_wire::codec;
use quorate_wire::events::{encode_payload, encode_state};
use quorate_wire::frame::{ConnectionKind, FrameHeader, Hello, HelloReply, What, preamble};
use quorate_wire::gossip::{StreamMessage, encode_frame, encode_packet};
use quorate_wire::keyring::{Keyring, RingKey};
use quorate_wire::log::{
    BatchWriter, Begin, Entry, Membership, Payload, Position, Record, Server, Vote, encode_entry, encode_record,
};
use quorate_wire::raft::{
    AppendEntries, BulkReply, BulkRequest, Control, ControlReply, Identity, Pledge, RaftReply, RaftRequest,
    SnapshotMeta, VoteRequest,
};
use quorate_wire::rpc::{ReadRequest, Request, Response, StatusReply, WriteRequest};
use quorate_wire::seal::{Binding, Direction, Greeting, Seal, StartId};
use quorate_wire::state::{encode_command, encode_snapshot};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// As in the targets.
const KEY: Uuid = Uuid::from_bytes([9; 16]);

fn write(target: &str, name: &str, input: &[u8]) -> io::Result<()> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
    fs::create_dir_all(&folder)?;
    fs::write(folder.join(name), input)
}

fn dns() -> io::Result<()> {
    let questions = [
        ("node_a", 0, "n1.node.consul", qtype::A, None),
        ("node_any", 0, "N1.NODE.CONSUL", qtype::ANY, Some(1232)),
        ("node_dc", 0, "n1.node.dc9.consul", qtype::A, Some(512)),
        ("node_dc_newer", 0, "n1.node.default.ns.dc1.dc.consul", qtype::A, None),
        ("node_alias", 1, "chn.node.consul", qtype::A, Some(4096)),
        ("service_a", 0, "db.service.consul", qtype::A, Some(1232)),
        ("service_srv", 0, "db.service.consul", qtype::SRV, Some(1232)),
        (
            "service_many_cut",
            2 | 128,
            "many.service.consul",
            qtype::SRV,
            Some(1024),
        ),
        ("service_many_small", 2 | 192, "many.service.consul", qtype::A, None),
        ("service_many_plain", 4, "many.service.consul", qtype::SRV, Some(2048)),
        ("service_many_tcp", 1, "many.service.consul", qtype::SRV, None),
        ("service_tag", 0, "v1.2.web.service.consul", qtype::A, None),
        ("service_wan", 32, "wansvc.service.consul", qtype::SRV, Some(1232)),
        ("service_passing", 16, "db.service.consul", qtype::SRV, Some(1232)),
        ("service_chain", 0, "chain.service.consul", qtype::A, None),
        ("service_loop", 0, "loop.service.consul", qtype::SRV, None),
        ("service_outside", 8, "ext.db.service.consul", qtype::A, None),
        ("rfc2782", 0, "_db._tcp.service.consul", qtype::SRV, Some(1232)),
        ("rfc2782_short", 0, "_db._primary.consul", qtype::SRV, None),
        ("addr_v4", 0, "c0a80102.addr.dc1.consul", qtype::A, None),
        (
            "addr_v6",
            0,
            "20010db8000000000000000000000055.addr.consul",
            qtype::AAAA,
            None,
        ),
        ("zone_soa", 0, "consul", qtype::SOA, Some(1232)),
        ("zone_ns", 0, "consul", qtype::NS, None),
        ("zone_transfer", 1, "consul", qtype::AXFR, None),
        ("reverse_v4", 0, "1.0.0.10.in-addr.arpa", qtype::PTR, None),
        (
            "reverse_v6",
            0,
            "4.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa",
            qtype::PTR,
            None,
        ),
        ("foreign", 8, "example.com", qtype::A, Some(1232)),
        ("foreign_refused", 0, ".", qtype::NS, None),
    ];
    for (name, flags, qname, asked, size) in questions {
        let qname = Name::from_text(qname).map_err(io::Error::other)?;
        let mut input = vec![flags, 7];
        input.extend(encode_question(0x1234, &qname, asked));
        if let Some(size) = size {
            // OPT, with a client subnet where there is much room.
            let option: &[u8] = match size {
                4096 => &[0, 8, 0, 7, 0, 1, 24, 0, 192, 0, 2],
                _ => &[],
            };
            input[2 + 11] = 1;
            input.extend([0, 0, 41]);
            input.extend(u16::to_be_bytes(size));
            input.extend([0; 5]);
            input.push(u8::try_from(option.len()).map_err(io::Error::other)?);
            input.extend(option);
        }
        write("dns_question", name, &input)?;
    }
    // A version of EDNS that nobody speaks yet.
    let qname = Name::from_text("db.service.consul").map_err(io::Error::other)?;
    let mut input = vec![0, 7];
    input.extend(encode_question(0x1234, &qname, qtype::SRV));
    input[2 + 11] = 1;
    input.extend([0, 0, 41, 4, 208, 0, 128, 0, 0, 0, 0]);
    write("dns_question", "edns_version_128", &input)
}

fn gossip() -> io::Result<()> {
    let id = |last: u8| NodeId(Uuid::from_bytes([last; 16]));
    let suspect = Update::Suspect {
        member: id(1),
        incarnation: Incarnation(1_795_360_406_000),
        from: id(2),
    };
    let dead = Update::Dead {
        member: id(3),
        incarnation: Incarnation(2),
        from: id(2),
    };
    let left = Update::Left {
        member: id(3),
        incarnation: Incarnation(300),
        from: id(3),
        prune: true,
    };
    let tags = [("role", "consul"), ("dc", "dc1"), ("port", "8300")];
    let tags = tags.map(|(key, value)| (key.to_owned(), value.to_owned()));
    let alive = Update::Alive {
        member: Arc::new(MemberState {
            id: id(4),
            name: "s1".to_owned(),
            address: ([10, 0, 0, 4], 8301).into(),
            datacenter: "dc1".to_owned(),
            tags: BTreeMap::from(tags),
        }),
        incarnation: Incarnation(1_795_360_406_001),
    };
    let ping = Message::Ping {
        sequence: 70_000,
        target: id(1),
    };
    let packets = [
        ("empty", vec![]),
        ("ping", vec![ping.clone()]),
        (
            "ping_req",
            vec![Message::PingReq {
                sequence: 1,
                target: id(2),
                address: ([10, 0, 0, 1], 8301).into(),
                wants_nack: true,
            }],
        ),
        (
            "ack_nack",
            vec![
                Message::Ack {
                    sequence: 3,
                    target: id(1),
                },
                Message::Nack { sequence: 4 },
            ],
        ),
        ("alive", vec![Message::Update(alive)]),
        (
            "compound",
            vec![
                ping,
                Message::Update(suspect),
                Message::Update(dead),
                Message::Update(left),
            ],
        ),
    ];
    for (name, messages) in packets {
        let packet = encode_packet(&messages);
        write(
            "gossip_packet",
            &format!("packet_{name}"),
            &[&[0], &packet[..]].concat(),
        )?;
        write("gossip_packet", &format!("body_{name}"), &[&[1], &packet[6..]].concat())?;
    }
    let remote = |last: u8, status| RemoteMember {
        member: Arc::new(MemberState {
            id: id(last),
            name: format!("n{last}"),
            address: ([10, 0, 0, last], 8301).into(),
            datacenter: "dc1".to_owned(),
            tags: BTreeMap::new(),
        }),
        incarnation: Incarnation(1_795_360_406_000),
        status,
        from: id(last),
    };
    let intent = Intent {
        member: id(3),
        time: 4,
        leave: Some(id(2)),
    };
    let state = PushPull {
        from: id(2),
        members: vec![
            remote(2, Status::Alive),
            remote(3, Status::Dead),
            remote(4, Status::Suspect),
        ],
        payload: vec![1, 2],
        is_whole: true,
        digest: 77,
        time: 5,
        intents: vec![intent],
    };
    let refusal = Refusal::WrongDatacenter {
        name: "n2".to_owned(),
        datacenter: "dc2".to_owned(),
    };
    for (name, message) in [
        ("ping", StreamMessage::Ping { target: id(1) }),
        ("ack", StreamMessage::Ack { target: id(1) }),
        ("push_pull", StreamMessage::PushPull(state)),
        ("refused", StreamMessage::Refused(refusal)),
    ] {
        let frame = encode_frame(&message).map_err(io::Error::other)?;
        write("gossip_packet", &format!("frame_{name}"), &[&[2], &frame[..]].concat())?;
        write(
            "gossip_packet",
            &format!("frame_body_{name}"),
            &[&[3], &frame[10..]].concat(),
        )?;
    }
    Ok(())
}

fn user_events() -> io::Result<()> {
    let event = Arc::new(UserEvent {
        ltime: LamportTime(2),
        id: Uuid::from_bytes([7; 16]),
        name: "deploy".to_owned(),
        payload: b"v2".to_vec(),
        node_filter: "^web-".to_owned(),
        service_filter: "web".to_owned(),
        tag_filter: "(blue|green)".to_owned(),
        version: 1,
    });
    let id = NodeId(Uuid::from_bytes([2; 16]));
    let query = Arc::new(EventQuery {
        ltime: LamportTime(3),
        id: QueryId(9),
        from: id,
        address: ([127, 0, 0, 2], 8301).into(),
        timeout: Duration::from_secs(15),
        wants_ack: true,
        name: "whoami".to_owned(),
        payload: b"?".to_vec(),
    });
    let response = EventMessage::QueryResponse {
        query: QueryId(9),
        from: id,
        payload: b"n2".to_vec(),
    };
    let ack = EventMessage::QueryAck {
        query: QueryId(9),
        from: id,
    };
    let messages = [
        EventMessage::Event(Arc::clone(&event)),
        EventMessage::Query(query),
        ack,
        response,
    ];
    let payload = encode_payload(&messages);
    write("user_events", "messages", &[&[0], &payload[1..]].concat())?;
    let state = encode_state(&EventState {
        event_clock: LamportTime(5),
        query_clock: LamportTime(3),
        events: vec![event],
    });
    write("user_events", "state", &[&[1], &state[1..]].concat())
}

fn node(last: u8) -> NodeId {
    NodeId(Uuid::from_bytes([last; 16]))
}

fn vote(term: u64) -> Vote {
    Vote {
        term,
        node: node(1),
        committed: true,
    }
}

fn membership() -> Membership {
    let server = Server {
        name: "s1".to_owned(),
        disk_id: KEY,
    };
    Membership {
        configs: vec![BTreeSet::from([node(1)])],
        servers: BTreeMap::from([(node(1), server)]),
    }
}

fn put(key: &str, value: &[u8]) -> Command {
    Command::Kv(KvCommand::Set(KvPair {
        key: key.to_owned(),
        value: value.to_vec(),
        ..KvPair::default()
    }))
}

fn registration() -> Command {
    Command::Register(Box::new(Registration {
        node_id: node(3),
        node: "n1".into(),
        address: "10.0.0.1".into(),
        service: Some(Service {
            name: "web".into(),
            tags: vec!["a".into()],
            ..Service::default()
        }),
        checks: vec![Check {
            check_id: "c".into(),
            service_id: "web".into(),
            ..Check::default()
        }],
        ..Registration::default()
    }))
}

fn commands() -> Vec<(&'static str, Vec<Command>)> {
    let set = || put("a/b", b"1");
    vec![
        ("barrier", vec![Command::Barrier]),
        ("register", vec![registration()]),
        (
            "register_and_deregister",
            vec![
                registration(),
                Command::Deregister(Deregistration {
                    node: "n1".into(),
                    ..Deregistration::default()
                }),
            ],
        ),
        (
            "keys",
            vec![
                set(),
                put("a/c", b"2"),
                Command::Kv(KvCommand::Cas {
                    pair: KvPair {
                        key: "a/b".to_owned(),
                        ..KvPair::default()
                    },
                    expected: ModifyIndex(1),
                }),
                Command::Kv(KvCommand::DeleteCas {
                    key: "a/b".to_owned(),
                    expected: ModifyIndex(3),
                }),
                Command::Kv(KvCommand::DeleteTree {
                    prefix: "a/".to_owned(),
                }),
                Command::CollectTombstones { up_to: ModifyIndex(4) },
            ],
        ),
        (
            "lock",
            vec![
                registration(),
                Command::Session(SessionCommand::Create(Session {
                    id: KEY,
                    node: "n1".to_owned(),
                    lock_delay: Duration::from_secs(15),
                    service_checks: vec!["c".to_owned()],
                    ..Session::default()
                })),
                Command::Kv(KvCommand::Acquire {
                    pair: KvPair {
                        key: "lock".to_owned(),
                        ..KvPair::default()
                    },
                    session: KEY,
                }),
                Command::Session(SessionCommand::Destroy { id: KEY }),
                Command::Session(SessionCommand::EndLockDelays {
                    delays: vec![("lock".to_owned(), ModifyIndex(4))],
                }),
            ],
        ),
        (
            "transaction",
            vec![
                set(),
                Command::Transaction(
                    [KvVerb::Set, KvVerb::Cas, KvVerb::Get, KvVerb::DeleteTree]
                        .map(|verb| {
                            Operation::Kv(KvOperation {
                                verb,
                                key: "a/b".to_owned(),
                                index: ModifyIndex(1),
                                ..KvOperation::default()
                            })
                        })
                        .to_vec(),
                ),
            ],
        ),
        (
            "coordinates",
            vec![
                registration(),
                Command::Coordinates(vec![NodeCoordinate {
                    node: "n1".to_owned(),
                    coordinate: Coordinate::default(),
                }]),
            ],
        ),
        (
            "state_hash",
            vec![Command::StateHash(StateHash {
                server: node(3),
                at: LogIndex(1024),
                rules: StateHash::RULES,
                hash: 7,
            })],
        ),
        ("batch", vec![Command::Batch(vec![set(), registration()]), set()]),
        (
            "cluster",
            vec![Command::NameCluster {
                id: KEY,
                at: WallTime::from_nanos(5),
            }],
        ),
    ]
}

/// Stories in the steps of the target: `hear` n2..n7, then what becomes of them.
fn swim_core() -> io::Result<()> {
    // A packet from 10.0.0.n:8301 with an alive of incarnation 5.
    let alive = |n: u8| vec![0, n | 8, 1, 6, 0, n, n | 8, n, 5];
    let pool: Vec<u8> = (2..=7).flat_map(alive).collect();
    let accusation = |by: u8| [0, by | 8, 1, 6, 1, 2, 5, by];
    let suspected: Vec<u8> = [3, 4, 5].into_iter().flat_map(accusation).collect();
    let accused = [0, 8 | 2, 2, 6, 1, 1, 5, 2, 6, 2, 1, 5, 3];
    // From 10.0.0.2:8301, two members and an intent: itself alive, and 9 dead; 3 is to leave, says 2.
    let exchange = [
        &[6, 8 | 2, 0, 2 | 8][..],
        &[2, 8 | 2, 2, 5, 0, 2],
        &[9, 8 | 1, 9, 5, 2, 9],
        &[3, 4, 1, 2],
        &[2, 1, 7, 3],
    ]
    .concat();
    let stories: [(&str, u8, Vec<&[u8]>); 8] = [
        ("probes_unanswered", 0, vec![&[10, 31, 10, 31, 10, 31, 10, 31, 10, 31]]),
        (
            "probes_answered",
            0,
            vec![&[10, 1, 8, 0, 10, 1, 8, 0, 10, 2, 8, 1, 7, 1, 1, 10, 3]],
        ),
        (
            "suspected_to_the_end",
            0,
            vec![&suspected, &[10, 31, 10, 31, 10, 31, 9, 200, 16]],
        ),
        ("suspected_by_swim", 3, vec![&suspected, &[10, 31, 10, 31]]),
        ("accused", 4, vec![&accused, &[10, 9]]),
        ("exchanged", 0, vec![&exchange, &[10, 31, 14, 3, 14, 130, 9, 250, 20]]),
        ("left", 2, vec![&[15, 9, 13, 0, 10, 20]]),
        ("paused", 0, vec![&suspected, &[9, 200, 8, 10, 31, 13, 3, 200, 10, 31]]),
    ];
    for (name, choice, steps) in stories {
        let input = [&[choice][..], &pool, &steps.concat()].concat();
        write("swim_core", name, &input)?;
    }
    Ok(())
}

/// Behind two bytes of length.
fn piece(bytes: &[u8]) -> Vec<u8> {
    let len = u16::try_from(bytes.len()).expect("seeds are small");
    [&len.to_le_bytes()[..], bytes].concat()
}

fn command() -> io::Result<()> {
    for (name, commands) in commands() {
        let input: Vec<u8> = commands
            .iter()
            .flat_map(|command| piece(&encode_command(command)))
            .collect();
        write("command", name, &input)?;
    }
    Ok(())
}

fn snapshot() -> io::Result<()> {
    let mut store = Store::new();
    write(
        "snapshot",
        "empty",
        &[
            &[0],
            &encode_snapshot(store.records()).flatten().collect::<Vec<u8>>()[..],
        ]
        .concat(),
    )?;
    for (index, command) in (1..).zip(commands().into_iter().flat_map(|(_, commands)| commands)) {
        store.apply(LogIndex(index), &command);
    }
    let whole: Vec<u8> = encode_snapshot(store.records()).flatten().collect();
    write("snapshot", "whole", &[&[0], &whole[..]].concat())?;
    write("snapshot", "cut", &[&[0], &whole[..whole.len() / 2]].concat())?;
    // One frame of all records, and one frame each.
    let bodies: Vec<Vec<u8>> = store
        .records()
        .map(|record| {
            let bytes = codec::encode(&record);
            let len = u32::try_from(bytes.len()).expect("seeds are small");
            [&len.to_le_bytes()[..], &bytes].concat()
        })
        .collect();
    write("snapshot", "bodies_one", &[&[1], &piece(&bodies.concat())[..]].concat())?;
    let each: Vec<u8> = bodies.iter().flat_map(|body| piece(body)).collect();
    write("snapshot", "bodies_each", &[&[7], &each[..]].concat())
}

fn entry(term: u64, index: u64, payload: Payload) -> Entry {
    Entry {
        position: Position { term, index },
        payload,
    }
}

fn log_segment() -> io::Result<()> {
    let payload = || Payload::Command(Bytes::from(encode_command(&put("a", b"1"))));
    let position = Position { term: 2, index: 7 };
    let records = [
        (
            "begin",
            Record::Begin(Begin {
                first_generation: 1,
                vote: Some(vote(2)),
                committed: None,
                purged: Some(position),
                last: Some(position),
            }),
        ),
        ("vote", Record::Vote(vote(3))),
        ("entry", Record::Entry(entry(2, 8, payload()))),
        (
            "membership",
            Record::Entry(entry(2, 9, Payload::Membership(membership()))),
        ),
        ("blank", Record::Entry(entry(2, 10, Payload::Blank))),
        ("truncate", Record::Truncate(Some(position))),
        ("purge", Record::Purge(position)),
        ("commit", Record::Commit(None)),
    ];
    let mut segment = Vec::new();
    for (sequence, (name, record)) in (1..).zip(records) {
        let mut bytes = Vec::new();
        encode_record(&KEY, &record, &mut bytes);
        // The kind, and the body behind length and checksum.
        write(
            "log_segment",
            &format!("record_{name}"),
            &[&[1, bytes[0]], &bytes[9..]].concat(),
        )?;
        if let Record::Entry(entry) = &record {
            let mut bytes = vec![2];
            encode_entry(entry, &mut bytes);
            write("log_segment", &format!("entry_{name}"), &bytes)?;
        }
        let mut batch = BatchWriter::default();
        batch.push(&KEY, &record);
        segment.extend_from_slice(&batch.finish(&KEY, 1, sequence));
    }
    write("log_segment", "segment", &[&[0], &segment[..]].concat())?;
    segment[40..80].fill(0);
    write("log_segment", "segment_damaged", &[&[0], &segment[..]].concat())
}

fn rpc_frame() -> io::Result<()> {
    let hello = Hello {
        cluster_id: Some(KEY),
        from: node(1),
        from_disk: Some(KEY),
        to: Some(node(2)),
        to_disk: None,
    };
    let welcome = HelloReply::Welcome {
        node: node(2),
        disk: Some(KEY),
    };
    let position = Position { term: 2, index: 7 };
    let append = RaftRequest::Append(AppendEntries {
        vote: vote(2),
        previous: Some(position),
        committed: None,
        entries: vec![
            entry(2, 8, Payload::Blank),
            entry(2, 9, Payload::Command(Bytes::from(encode_command(&put("a", b"1"))))),
            entry(2, 10, Payload::Membership(membership())),
        ],
    });
    let ask = RaftRequest::PreVote(VoteRequest {
        vote: vote(3),
        last: Some(position),
        is_transfer: false,
    });
    let meta = SnapshotMeta {
        last: Some(position),
        membership_at: None,
        membership: membership(),
    };
    let begin = BulkRequest::Begin {
        vote: vote(2),
        meta: meta.clone(),
        len_bytes: 7,
    };
    let chunk = BulkRequest::Chunk {
        offset: 0,
        content: Bytes::from_static(b"content"),
    };
    let read = Request::Read(ReadRequest {
        query: Query::KvGet { key: "a".to_owned() },
        consistency: Consistency::Default,
        min_index: ModifyIndex(3),
        wait: Duration::from_secs(9),
        max_stale: None,
        hops: 0,
    });
    let change = Request::Write(WriteRequest {
        command: registration(),
        hops: 1,
    });
    let pledge = Pledge {
        proposer: node(1),
        cluster_id: KEY,
        round: 1,
        servers: BTreeSet::from([node(1), node(2)]),
    };
    let identity = Identity {
        node_id: node(1),
        disk_id: KEY,
        cluster_id: None,
        pledge: Some(pledge.clone()),
    };
    let control = Control::Pledge {
        pledge,
        yielded: BTreeSet::new(),
    };
    let pledged = ControlReply::Pledged {
        name: "s1".to_owned(),
        disk_id: KEY,
    };
    let status = Response::Status(StatusReply {
        leader: Some(([10, 0, 0, 1], 8300).into()),
        peers: vec![([10, 0, 0, 1], 8300).into()],
    });
    let bodies: [(&str, u8, Bytes); 16] = [
        ("hello", 1, hello.encode().into()),
        ("welcome", 2, welcome.encode().into()),
        ("append", 3, append.encode()),
        ("pre_vote", 3, ask.encode()),
        ("conflict", 4, RaftReply::Conflict.encode()),
        ("bulk_begin", 5, begin.encode()),
        ("bulk_chunk", 5, chunk.encode()),
        ("bulk_end", 5, BulkRequest::End.encode()),
        ("installed", 6, BulkReply::Installed { vote: vote(2) }.encode()),
        ("read", 7, codec::encode(&read).into()),
        ("write", 7, codec::encode(&change).into()),
        ("control", 8, control.encode()),
        ("pledged", 9, pledged.encode()),
        ("status", 9, codec::encode(&status).into()),
        ("meta", 10, meta.encode()),
        // Behind version and checksum.
        ("identity", 11, identity.to_file().slice(5..)),
    ];
    for (name, kind, body) in &bodies {
        write("rpc_frame", &format!("body_{name}"), &[&[*kind], &body[..]].concat())?;
    }
    let done = codec::encode(&Response::Write(Outcome::Done));
    write("rpc_frame", "body_done", &[&[9], &done[..]].concat())?;
    for (name, kind, calls) in [
        ("raft", ConnectionKind::Raft, vec![append.encode(), ask.encode()]),
        ("bulk", ConnectionKind::Bulk, vec![begin.encode(), chunk.encode()]),
        ("request", ConnectionKind::Request, vec![codec::encode(&read).into()]),
    ] {
        let mut input = vec![0];
        input.extend(preamble(kind));
        let mut frame = |id: u64, what: What, body: &[u8]| {
            let header = FrameHeader {
                body_len_bytes: body.len(),
                id,
                what,
            };
            input.extend(header.encode());
            input.extend(body);
        };
        frame(0, What::Hello, &hello.encode());
        for (id, call) in (1..).zip(&calls) {
            frame(id, What::Call, call);
        }
        frame(1, What::Cancel, &[]);
        write("rpc_frame", &format!("connection_{name}"), &input)?;
    }
    Ok(())
}

fn keyring() -> io::Result<()> {
    let files = [
        (
            "two_keys",
            r#"["pUqJrVyVRj5jsiYEkM/tFQYfWyJIv4s3XkvDwy7Cu5s=", "Yj1Tl6n7r5uLyTtOmS8Bng=="]"#,
        ),
        ("one_key", "[\n  \"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA\"\n]\n"),
        ("no_key", "[]"),
        ("short_key", r#"["MTIz"]"#),
        ("no_list", r#"{"Key": "MTIz"}"#),
    ];
    for (name, content) in files {
        write("keyring_file", name, content.as_bytes())?;
    }
    Ok(())
}

fn sealed() -> io::Result<()> {
    // Another ring's key: what a member sealed is one undone byte away from being opened, and the fuzzer undoes it.
    let ring = Keyring::new(RingKey::from_bytes(&[8; 32]).map_err(io::Error::other)?);
    let mut member = Seal::new(ring, StartId([3; 16]), 1_795_360_406_000, Instant::ZERO, 4);
    let packet = member.seal_packet(Instant::ZERO, &[Message::Nack { sequence: 4 }]);
    let binding = Binding {
        client: Greeting([3; 16]),
        server: Greeting([4; 16]),
        direction: Direction::Answer,
    };
    let target = NodeId(Uuid::from_bytes([1; 16]));
    let frame = member
        .frame_sealer(Instant::ZERO)
        .seal(&binding, &StreamMessage::Ping { target });
    let frame = frame.map_err(io::Error::other)?;
    for (kind, way) in [(0, "as_it_is"), (1, "known_key")] {
        write(
            "sealed_packet",
            &format!("packet_{way}"),
            &[&[kind], &packet[..]].concat(),
        )?;
        write(
            "sealed_packet",
            &format!("frame_{way}"),
            &[&[kind], &frame[..]].concat(),
        )?;
    }
    let greeting = Greeting([5; 16]).encode();
    write("sealed_packet", "greeting", &[&[0], &greeting[..]].concat())?;
    write("sealed_packet", "changed_header", &[2, 30, 1, 1, 2, 3])?;
    write("sealed_packet", "changed_body", &[2, 40, 0x80, 200, 100])
}

fn main() -> io::Result<()> {
    keyring()?;
    sealed()?;
    dns()?;
    gossip()?;
    swim_core()?;
    user_events()?;
    log_segment()?;
    snapshot()?;
    rpc_frame()?;
    command()
}
