//! Writes the first inputs of the targets to `corpus/`: `cargo run --example corpus`, from `fuzz/`.
//!
//! What real clients and peers send, so that mutation starts behind the first checks.

#![allow(
    clippy::disallowed_methods,
    reason = "a tool that writes files, not a part of the product"
)]

use quorate_dns_answer::{Name, encode_question, qtype};
use quorate_swim::{MemberState, Message, Update};
use quorate_types::{Incarnation, NodeId, Uuid};
use quorate_wire::gossip::{StreamMessage, encode_frame, encode_packet};
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;

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
    Ok(())
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
    for (name, message) in [
        ("ping", StreamMessage::Ping { target: id(1) }),
        ("ack", StreamMessage::Ack { target: id(1) }),
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

fn main() -> io::Result<()> {
    dns()?;
    gossip()
}
