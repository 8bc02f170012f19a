//! Recorded answers of Consul 1.8.7, compared record by record; and what the records do not show: sizes, seeds, limits.

mod catalog;

use catalog::{Catalog, node, service, strings};
use hickory_proto::op::{Message, OpCode, ResponseCode};
use hickory_proto::rr::{DNSClass, RData, Record, RecordType};
use quorate_dns_answer::{
    DnsConfig, LookupFailure, Name, Received, Resolution, SoaNumbers, Step, Transport, encode_question, qtype, receive,
};
use quorate_store::{AddressOwner, Answer, Command, Outcome, Store};
use quorate_types::{CheckStatus, LogIndex, Node, Registration, ServiceAddress};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

const NOW_UNIX_SECS: u32 = 1_795_360_406;

#[derive(Clone)]
struct World {
    catalog: Catalog,
    config: DnsConfig,
    seed: u64,
    /// What the recursors answer to A questions: `(name, address)`.
    recursor: Vec<(&'static str, [u8; 4])>,
}

#[derive(Clone, Copy)]
enum Edns {
    None,
    Size(u16),
}

const DIG: Edns = Edns::Size(1232);

impl World {
    fn new() -> Self {
        Self {
            catalog: Catalog::recorded(),
            config: DnsConfig::new("consul.", "dc1").unwrap(),
            seed: 7,
            recursor: Vec::new(),
        }
    }

    fn configured(change: impl FnOnce(&mut DnsConfig)) -> Self {
        let mut world = Self::new();
        change(&mut world.config);
        world
    }

    fn message(name: &str, asked: u16, edns: Edns) -> Vec<u8> {
        let mut message = encode_question(4660, &Name::from_text(name).unwrap(), asked);
        if let Edns::Size(size) = edns {
            message[11] = 1;
            message.extend_from_slice(&[0, 0, 41]);
            message.extend_from_slice(&size.to_be_bytes());
            message.extend_from_slice(&[0; 6]);
        }
        message
    }

    fn bytes(&self, message: &[u8], transport: Transport) -> Vec<u8> {
        let question = match receive(message) {
            Received::Asked(question) => question,
            Received::Rejected(reply) => return reply,
            Received::Ignored => return Vec::new(),
        };
        let mut resolution = Resolution::new(Arc::new(self.config.clone()), question, NOW_UNIX_SECS);
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        for _ in 0..100 {
            match resolution.step() {
                Step::Lookup {
                    datacenter: Some(datacenter),
                    ..
                } if datacenter != "dc2" => resolution.handle_failure(LookupFailure::NoDatacenter),
                Step::Lookup { query, .. } => resolution.handle_answer(&self.catalog.evaluate(&query), &mut rng),
                Step::Recurse { name, qtype } => resolution.handle_recursed(self.recurse(&name, qtype).as_deref()),
                Step::Forward => resolution.handle_forward_failed(),
                Step::Done => return resolution.encode(transport),
            }
        }
        panic!("a resolution ends");
    }

    fn recurse(&self, name: &Name, asked: u16) -> Option<Vec<u8>> {
        let (_, address) = self.recursor.iter().find(|(known, _)| name.to_string() == *known)?;
        let mut reply = encode_question(1, name, asked);
        reply[2] = 0x81;
        reply[7] = 1;
        reply.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1, 0, 0, 1, 44, 0, 4]);
        reply.extend_from_slice(address);
        Some(reply)
    }

    fn dig_with(&self, name: &str, asked: u16, edns: Edns, transport: Transport) -> Message {
        let bytes = self.bytes(&Self::message(name, asked, edns), transport);
        Message::from_vec(&bytes).expect("hickory reads what is written")
    }

    fn dig(&self, name: &str, asked: u16) -> Message {
        self.dig_with(name, asked, DIG, Transport::Udp)
    }
}

/// A record as `dig` shows it, without the tabs.
fn text(record: &Record) -> String {
    let data = match &record.data {
        RData::TXT(text) => format!("{:?}", text.to_string()),
        other => other.to_string(),
    };
    let (name, ttl, class) = (record.name.to_ascii(), record.ttl, record.dns_class);
    format!("{name} {ttl} {class} {} {data}", record.record_type())
}

fn sorted(records: &[Record]) -> Vec<String> {
    let mut texts: Vec<_> = records.iter().map(text).collect();
    texts.sort();
    texts
}

/// One recorded exchange. Order inside a section is free, except that a CNAME comes first.
#[track_caller]
fn check(
    world: &World,
    name: &str,
    asked: u16,
    rcode: ResponseCode,
    answer: &[&str],
    authority: &[&str],
    additional: &[&str],
) {
    let reply = world.dig(name, asked);
    let expected = |lines: &[&str]| {
        let mut lines: Vec<_> = lines.iter().map(|line| (*line).to_owned()).collect();
        lines.sort();
        lines
    };
    let what = format!("{name} {asked}");
    assert_eq!(reply.metadata.response_code, rcode, "{what}");
    assert_eq!(sorted(&reply.answers), expected(answer), "ANSWER of {what}");
    assert_eq!(sorted(&reply.authorities), expected(authority), "AUTHORITY of {what}");
    assert_eq!(sorted(&reply.additionals), expected(additional), "ADDITIONAL of {what}");
    assert!(reply.metadata.authoritative, "aa of {what}");
    assert!(reply.metadata.recursion_desired, "rd of {what}");
    assert_eq!(
        reply.metadata.recursion_available, world.config.recursion_available,
        "ra of {what}"
    );
    assert_eq!(reply.metadata.id, 4660);
    assert_eq!(
        reply.queries[0].name.to_ascii().trim_end_matches('.'),
        name,
        "question echoed"
    );
    let edns = reply.edns.as_ref().expect("OPT is answered with OPT");
    assert_eq!((edns.version(), edns.max_payload()), (0, 1232));
}

#[track_caller]
fn answers(world: &World, name: &str, asked: u16, answer: &[&str]) {
    check(world, name, asked, ResponseCode::NoError, answer, &[], &[]);
}

const SOA: &str = "consul. 0 IN SOA ns.consul. hostmaster.consul. 1795360406 3600 600 86400 0";

#[track_caller]
fn missing(world: &World, name: &str, asked: u16) {
    check(world, name, asked, ResponseCode::NXDomain, &[], &[SOA], &[]);
}

fn n1_texts(owner: &str) -> Vec<String> {
    ["instance_type=t2.medium", "v=spf1 -all", "zone=a"]
        .iter()
        .map(|text| format!("{owner} 0 IN TXT {text:?}"))
        .collect()
}

fn refs(lines: &[String]) -> Vec<&str> {
    lines.iter().map(String::as_str).collect()
}

#[test]
fn nodes_answer_as_recorded() {
    let world = World::new();
    let ok = ResponseCode::NoError;
    let texts = n1_texts("n1.node.consul.");
    let texts = refs(&texts);
    let a = "n1.node.consul. 0 IN A 10.0.0.1";
    check(&world, "n1.node.consul", qtype::A, ok, &[a], &[], &texts);
    check(&world, "n1.node.consul", qtype::AAAA, ok, &[], &[], &texts);
    answers(&world, "n1.node.consul", qtype::ANY, &[&[a], &texts[..]].concat());
    answers(&world, "n1.node.consul", qtype::TXT, &texts);
    for other in [qtype::SRV, qtype::CNAME, 15] {
        answers(&world, "n1.node.consul", other, &[]);
    }
    let upper = n1_texts("N1.NODE.CONSUL.");
    check(
        &world,
        "N1.NODE.CONSUL",
        qtype::A,
        ok,
        &["N1.NODE.CONSUL. 0 IN A 10.0.0.1"],
        &[],
        &refs(&upper),
    );
    answers(&world, "n4.node.consul", qtype::A, &[]);
    answers(
        &world,
        "n4.node.consul",
        qtype::AAAA,
        &["n4.node.consul. 0 IN AAAA 2001:db8::4"],
    );
    answers(
        &world,
        "host.example.com-n6.node.consul",
        qtype::A,
        &["host.example.com-n6.node.consul. 0 IN CNAME host.example.com."],
    );
    answers(
        &world,
        "node.dot.node.consul",
        qtype::A,
        &["node.dot.node.consul. 0 IN A 10.0.0.9"],
    );
    answers(
        &world,
        "upper.node.consul",
        qtype::A,
        &["upper.node.consul. 0 IN A 10.0.0.10"],
    );
    for name in ["nope.node.consul", "n1.node.dc9.consul"] {
        missing(&world, name, qtype::A);
    }
}

#[test]
fn services_answer_addresses_as_recorded() {
    let world = World::new();
    let db = ["10.0.0.1", "10.0.0.7", "192.168.1.2"].map(|address| format!("db.service.consul. 0 IN A {address}"));
    for asked in [qtype::A, qtype::ANY, qtype::TXT] {
        answers(&world, "db.service.consul", asked, &refs(&db));
    }
    for (name, asked, expected) in [
        ("db.service.consul", qtype::AAAA, "CNAME db.example.com."),
        ("ext.db.service.consul", qtype::A, "CNAME db.example.com."),
        ("ext.db.service.consul", qtype::AAAA, "CNAME db.example.com."),
        ("mixed.db.service.consul", qtype::A, "A 10.0.0.1"),
        ("Mixed.db.service.consul", qtype::A, "A 10.0.0.1"),
        ("cnsvc.service.consul", qtype::A, "CNAME host.example.com."),
        ("big.upsvc.service.consul", qtype::A, "A 10.0.0.10"),
        ("under_score.service.consul", qtype::A, "A 10.0.0.8"),
        ("wansvc.service.consul", qtype::A, "A 10.1.1.9"),
    ] {
        answers(&world, name, asked, &[&format!("{name}. 0 IN {expected}")]);
    }
    answers(
        &world,
        "v6svc.service.consul",
        qtype::AAAA,
        &[
            "v6svc.service.consul. 0 IN AAAA 2001:db8::4",
            "v6svc.service.consul. 0 IN AAAA 2001:db8::55",
        ],
    );
    check(
        &world,
        "v6svc.service.consul",
        qtype::A,
        ResponseCode::NoError,
        &[],
        &[SOA],
        &[],
    );
    for name in [
        "nope.db.service.consul",
        "nope.service.consul",
        "sick.service.consul",
        "dot.svc.service.consul",
        "svc.dot.service.consul",
        "dbq.query.consul",
        "nope.query.consul",
        "query.consul",
        "service.consul",
        "node.consul",
        "addr.consul",
        "consul",
        "dc1.consul",
        "foo.consul",
        "foo.bar.consul",
        "x.y.z.foo.consul",
        "ns.consul",
        "hostmaster.consul",
        "db.connect.consul",
        "db.ingress.consul",
        "db.virtual.consul",
    ] {
        missing(&world, name, qtype::A);
    }
    missing(&world, "consul", qtype::ANY);
}

#[test]
fn services_answer_srv_as_recorded() {
    let world = World::new();
    let ok = ResponseCode::NoError;
    let n1 = n1_texts("n1.node.dc1.consul.");
    let n1_extras = [&["n1.node.dc1.consul. 0 IN A 10.0.0.1"], &refs(&n1)[..]].concat();
    let db_extras = [
        &n1_extras[..],
        &[
            "n7.node.dc1.consul. 0 IN A 10.0.0.7",
            "c0a80102.addr.dc1.consul. 0 IN A 192.168.1.2",
        ],
    ]
    .concat();
    for name in [
        "db.service.consul",
        "db.service.dc1.consul",
        "_db._tcp.service.consul",
        "_db._tcp.consul",
        "_DB._TCP.SERVICE.CONSUL",
    ] {
        let db = [
            "1 10 5432 n1.node.dc1.consul.",
            "1 2 5439 n7.node.dc1.consul.",
            "1 1 5434 db.example.com.",
            "1 1 5433 c0a80102.addr.dc1.consul.",
        ]
        .map(|srv| format!("{name}. 0 IN SRV {srv}"));
        check(&world, name, qtype::SRV, ok, &refs(&db), &[], &db_extras);
    }
    for name in [
        "primary.db.service.consul",
        "_db._primary.service.consul",
        "_db._primary.service.dc1.consul",
    ] {
        let answer = format!("{name}. 0 IN SRV 1 10 5432 n1.node.dc1.consul.");
        check(&world, name, qtype::SRV, ok, &[&answer], &[], &n1_extras);
    }
    for (name, srv, extra) in [
        (
            "upsvc.service.consul",
            "87 UPPER.node.dc1.consul.",
            "UPPER.node.dc1.consul. 0 IN A 10.0.0.10",
        ),
        (
            "_under_score._v_1.service.consul",
            "84 n8.node.dc1.consul.",
            "n8.node.dc1.consul. 0 IN A 10.0.0.8",
        ),
        (
            "v_1.under_score.service.consul",
            "84 n8.node.dc1.consul.",
            "n8.node.dc1.consul. 0 IN A 10.0.0.8",
        ),
        (
            "wansvc.service.consul",
            "85 0a010109.addr.dc1.consul.",
            "0a010109.addr.dc1.consul. 0 IN A 10.1.1.9",
        ),
    ] {
        check(
            &world,
            name,
            qtype::SRV,
            ok,
            &[&format!("{name}. 0 IN SRV 1 1 {srv}")],
            &[],
            &[extra],
        );
    }
    answers(
        &world,
        "cnsvc.service.consul",
        qtype::SRV,
        &["cnsvc.service.consul. 0 IN SRV 1 1 82 host.example.com."],
    );
    check(
        &world,
        "v6svc.service.consul",
        qtype::SRV,
        ok,
        &[
            "v6svc.service.consul. 0 IN SRV 1 1 80 n4.node.dc1.consul.",
            "v6svc.service.consul. 0 IN SRV 1 1 81 20010db8000000000000000000000055.addr.dc1.consul.",
        ],
        &[],
        &[
            "n4.node.dc1.consul. 0 IN AAAA 2001:db8::4",
            "20010db8000000000000000000000055.addr.dc1.consul. 0 IN AAAA 2001:db8::55",
        ],
    );
    // Consul repeats the address for the second instance of a node; once is enough.
    check(
        &world,
        "multi.service.consul",
        qtype::SRV,
        ok,
        &[
            "multi.service.consul. 0 IN SRV 1 1 1 many1.node.dc1.consul.",
            "multi.service.consul. 0 IN SRV 1 1 2 many1.node.dc1.consul.",
        ],
        &[],
        &["many1.node.dc1.consul. 0 IN A 5.5.5.5"],
    );
    for name in [
        "nope.service.consul",
        "_db._udp.service.consul",
        "_db._nope.service.consul",
        "_db.service.consul",
        "dot.svc.service.consul",
    ] {
        missing(&world, name, qtype::SRV);
    }
}

#[test]
fn address_names_answer_as_recorded() {
    let world = World::new();
    for asked in [qtype::A, qtype::AAAA, qtype::SRV, qtype::ANY] {
        answers(
            &world,
            "c0a80102.addr.dc1.consul",
            asked,
            &["c0a80102.addr.dc1.consul. 0 IN A 192.168.1.2"],
        );
    }
    for name in ["c0a80102.addr.consul", "c0a80102.addr.dc9.consul"] {
        answers(&world, name, qtype::A, &[&format!("{name}. 0 IN A 192.168.1.2")]);
    }
    answers(
        &world,
        "C0A80102.addr.dc1.consul",
        qtype::A,
        &["c0a80102.addr.dc1.consul. 0 IN A 192.168.1.2"],
    );
    answers(&world, "c0a801.addr.dc1.consul", qtype::A, &[]);
    missing(&world, "zzzzzzzz.addr.dc1.consul", qtype::A);
    let v6 = "20010db8000000000000000000000055.addr.dc1.consul";
    for asked in [qtype::A, qtype::AAAA] {
        answers(&world, v6, asked, &[&format!("{v6}. 0 IN AAAA 2001:db8::55")]);
    }
}

#[test]
fn the_zone_answers_as_recorded() {
    let world = World::new();
    let ok = ResponseCode::NoError;
    let ns = ["s1", "s2", "s3"].map(|server| format!("consul. 0 IN NS {server}.node.dc1.consul."));
    let glue = [("s1", 11), ("s2", 12), ("s3", 13)]
        .map(|(server, last)| format!("{server}.node.dc1.consul. 0 IN A 127.0.0.{last}"));
    for name in ["consul", "n1.node.consul", "db.service.consul"] {
        check(&world, name, qtype::SOA, ok, &[SOA], &refs(&ns), &refs(&glue));
    }
    for name in ["consul", "n1.node.consul", "dc1.consul"] {
        check(&world, name, qtype::NS, ok, &refs(&ns), &[], &refs(&glue));
    }
}

#[test]
fn name_servers_are_at_most_three_healthy_servers_with_host_names() {
    let mut world = World::new();
    world.catalog = Catalog::default();
    for number in 1..=9 {
        let server = node(&format!("t{number}"), &format!("127.0.1.{number}"));
        world.catalog = world.catalog.with(server, service("consul", "consul", &[], "", 8300));
    }
    let odd = world.catalog.add_node(node("odd_name", "127.0.1.20"));
    world
        .catalog
        .add(&odd, service("consul", "consul", &[], "", 8300), CheckStatus::Passing);
    let ill = world.catalog.add_node(node("ill", "127.0.1.21"));
    world
        .catalog
        .add(&ill, service("consul", "consul", &[], "", 8300), CheckStatus::Critical);
    let mut seen = BTreeSet::new();
    for seed in 0..50 {
        world.seed = seed;
        let reply = world.dig("consul", qtype::NS);
        assert_eq!((reply.answers.len(), reply.additionals.len()), (3, 3));
        seen.extend(sorted(&reply.answers));
    }
    assert_eq!(seen.len(), 9, "each healthy server is drawn, and no other: {seen:?}");
}

#[test]
fn addresses_answer_their_owner_as_recorded() {
    let world = World::new();
    for (name, target) in [
        ("1.0.0.10.in-addr.arpa", "n1.node.dc1.consul."),
        ("10.0.0.10.in-addr.arpa", "UPPER.node.dc1.consul."),
        ("2.1.168.192.in-addr.arpa", "db.service.dc1.consul."),
        ("11.0.0.127.in-addr.arpa", "s1.node.dc1.consul."),
        (
            "4.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa",
            "n4.node.dc1.consul.",
        ),
        (
            "5.5.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa",
            "v6svc.service.dc1.consul.",
        ),
    ] {
        answers(&world, name, qtype::PTR, &[&format!("{name}. 0 IN PTR {target}")]);
    }
    for name in ["250.9.9.10.in-addr.arpa", "foo.in-addr.arpa", "10.in-addr.arpa"] {
        let reply = world.dig(name, qtype::PTR);
        assert_eq!(reply.metadata.response_code, ResponseCode::ServFail, "{name}");
        assert!(!reply.metadata.authoritative && reply.metadata.recursion_available);
        assert!(reply.edns.is_some() && reply.answers.is_empty() && reply.authorities.is_empty());
    }
}

#[test]
fn names_that_are_not_ours_are_refused_without_recursors() {
    let world = World::new();
    for (name, asked) in [("example.com", qtype::A), (".", qtype::NS), (".", qtype::SOA)] {
        let reply = world.dig(name, asked);
        assert_eq!(reply.metadata.response_code, ResponseCode::Refused, "{name}");
        assert!(!reply.metadata.authoritative && !reply.metadata.recursion_available);
        assert!(reply.edns.is_none() && reply.metadata.recursion_desired);
        assert_eq!(reply.queries.len(), 1);
    }
    let transfer = world.dig("consul", qtype::AXFR);
    assert_eq!(transfer.metadata.response_code, ResponseCode::Refused);
}

#[test]
fn host_names_in_our_domain_are_followed_as_recorded() {
    let world = World::new();
    let chain = world.dig("chain.service.consul", qtype::A);
    assert_eq!(
        text(&chain.answers[0]),
        "chain.service.consul. 0 IN CNAME db.service.consul."
    );
    assert_eq!(
        sorted(&chain.answers[1..]),
        ["10.0.0.1", "10.0.0.7", "192.168.1.2"].map(|address| format!("db.service.consul. 0 IN A {address}"))
    );
    let chn = world.dig("chn.node.consul", qtype::A);
    assert_eq!(text(&chn.answers[0]), "chn.node.consul. 0 IN CNAME n1.node.consul.");
    assert_eq!(text(&chn.answers[1]), "n1.node.consul. 0 IN A 10.0.0.1");
    assert_eq!(sorted(&chn.answers[2..]), n1_texts("n1.node.consul."));
    check(
        &world,
        "chain.service.consul",
        qtype::SRV,
        ResponseCode::NoError,
        &["chain.service.consul. 0 IN SRV 1 1 88 db.service.consul."],
        &[],
        &["10.0.0.1", "10.0.0.7", "192.168.1.2"]
            .map(|address| format!("db.service.consul. 0 IN A {address}"))
            .each_ref()
            .map(String::as_str),
    );
}

#[test]
fn a_host_name_that_names_itself_ends_after_four_records() {
    let reply = World::new().dig("loop.service.consul", qtype::A);
    let line = "loop.service.consul. 0 IN CNAME loop.service.consul.";
    assert_eq!(sorted(&reply.answers), [line; 4]);
}

#[test]
fn follow_ups_of_one_question_are_bounded() {
    let mut world = World::new();
    world.config.recursion_available = true;
    world.catalog = Catalog::default();
    for number in 0..200 {
        world.catalog = world.catalog.with(
            node(&format!("h{number}"), "10.0.0.1"),
            service("h", "h", &[], &format!("h{number}.example.com"), 1),
        );
    }
    let Received::Asked(question) = receive(&World::message("h.service.consul", qtype::SRV, DIG)) else {
        panic!("a plain question")
    };
    let mut resolution = Resolution::new(Arc::new(world.config.clone()), question, 0);
    let mut rng = ChaCha8Rng::seed_from_u64(0);
    let mut recursed = 0;
    loop {
        match resolution.step() {
            Step::Lookup { query, .. } => resolution.handle_answer(&world.catalog.evaluate(&query), &mut rng),
            Step::Recurse { .. } => {
                recursed += 1;
                resolution.handle_recursed(None);
            }
            Step::Forward => panic!("the name is ours"),
            Step::Done => break,
        }
    }
    assert_eq!(recursed, 32);
    assert_eq!(resolution.reply().answers.len(), 200);
}

#[test]
fn a_deadline_costs_only_what_was_not_known_by_then() {
    let world = World::configured(|config| config.recursion_available = true);
    let given_up = |name: &str, lookups: usize| {
        let Received::Asked(question) = receive(&World::message(name, qtype::A, DIG)) else {
            panic!("a plain question")
        };
        let mut resolution = Resolution::new(Arc::new(world.config.clone()), question, 0);
        for _ in 0..lookups {
            let Step::Lookup { query, .. } = resolution.step() else {
                panic!("a lookup")
            };
            resolution.handle_answer(&world.catalog.evaluate(&query), &mut ChaCha8Rng::seed_from_u64(0));
        }
        assert_ne!(resolution.step(), Step::Done);
        resolution.give_up();
        assert_eq!(resolution.step(), Step::Done);
        let reply = Message::from_vec(&resolution.encode(Transport::Udp)).unwrap();
        (reply.metadata.response_code, reply.answers.len())
    };
    assert_eq!(given_up("ext.db.service.consul", 0), (ResponseCode::ServFail, 0));
    assert_eq!(given_up("ext.db.service.consul", 1), (ResponseCode::NoError, 1));
    assert_eq!(given_up("example.com", 0), (ResponseCode::ServFail, 0));
}

#[test]
fn recursors_and_an_alternative_domain_answer_as_recorded() {
    let mut world = World::configured(|config| {
        config.domain = Name::from_text("corp.internal").unwrap();
        config.alt_domain = Some(Name::from_text("alt.test.").unwrap());
        config.recursion_available = true;
    });
    world.recursor = vec![("db.example.com.", [9, 9, 9, 9]), ("db.service.consul.", [9, 9, 9, 9])];
    let ok = ResponseCode::NoError;
    for domain in ["corp.internal", "alt.test"] {
        let name = format!("n1.node.{domain}");
        let texts = n1_texts(&format!("{name}."));
        check(
            &world,
            &name,
            qtype::A,
            ok,
            &[&format!("{name}. 0 IN A 10.0.0.1")],
            &[],
            &refs(&texts),
        );
    }
    let srv = world.dig("db.service.alt.test", qtype::SRV);
    for record in &srv.answers {
        let RData::SRV(srv) = &record.data else { panic!("SRV") };
        let target = srv.target.to_ascii();
        assert!(
            target.ends_with(".dc1.corp.internal.") || target == "db.example.com.",
            "{target}"
        );
    }
    assert!(sorted(&srv.additionals).contains(&"db.example.com. 0 IN A 9.9.9.9".to_owned()));
    let soa = "corp.internal. 0 IN SOA ns.corp.internal. hostmaster.corp.internal. 1795360406 3600 600 86400 0";
    check(
        &world,
        "nope.service.alt.test",
        qtype::SRV,
        ResponseCode::NXDomain,
        &[],
        &[soa],
        &[],
    );
    for name in ["alt.test", "corp.internal"] {
        assert_eq!(sorted(&world.dig(name, qtype::SOA).answers), [soa]);
    }
    let ns = world.dig("alt.test", qtype::NS);
    assert!(
        ns.answers
            .iter()
            .all(|record| record.name.to_ascii() == "corp.internal.")
    );
    answers(
        &world,
        "ext.db.service.corp.internal",
        qtype::A,
        &[
            "ext.db.service.corp.internal. 0 IN CNAME db.example.com.",
            "db.example.com. 0 IN A 9.9.9.9",
        ],
    );
    // `consul.` is foreign here: its names go to the recursors.
    answers(
        &world,
        "chain.service.corp.internal",
        qtype::A,
        &[
            "chain.service.corp.internal. 0 IN CNAME db.service.consul.",
            "db.service.consul. 0 IN A 9.9.9.9",
        ],
    );
    // Forwarded, and no recursor answered.
    for name in ["n1.node.consul", "fail.example.com", "1.0.99.10.in-addr.arpa"] {
        let reply = world.dig(name, qtype::A);
        assert_eq!(reply.metadata.response_code, ResponseCode::ServFail, "{name}");
        assert!(!reply.metadata.authoritative && reply.metadata.recursion_available && reply.edns.is_some());
    }
}

#[test]
fn replies_are_cut_as_recorded() {
    let plain = World::new();
    let limit = |limit| World::configured(|config| config.a_record_limit = limit);
    let truncating = World::configured(|config| {
        config.enable_truncate = true;
        config.udp_answer_limit = 5;
    });
    let (udp, tcp) = (Transport::Udp, Transport::Tcp);
    // World, type, EDNS, transport; answers, additional, TC, size.
    for (case, (world, asked, edns, transport, answer, additional, tc, size)) in [
        (&plain, qtype::A, Edns::None, udp, 3, 0, false, Some(85)),
        (&truncating, qtype::A, Edns::None, udp, 5, 0, true, None),
        (&plain, qtype::A, Edns::Size(512), udp, 3, 0, false, Some(96)),
        (&plain, qtype::A, Edns::Size(100), udp, 3, 0, false, Some(96)),
        (&plain, qtype::A, Edns::Size(1024), udp, 40, 0, false, Some(688)),
        (&truncating, qtype::A, Edns::Size(8192), udp, 40, 0, false, Some(688)),
        (&plain, qtype::SRV, Edns::None, udp, 3, 3, false, None),
        (&plain, qtype::SRV, Edns::Size(1024), udp, 17, 17, false, None),
        (&plain, qtype::SRV, Edns::Size(1232), udp, 21, 21, false, None),
        (&truncating, qtype::SRV, Edns::Size(1232), udp, 21, 21, true, None),
        (&plain, qtype::SRV, Edns::Size(2048), udp, 36, 36, false, None),
        (&plain, qtype::SRV, Edns::Size(4096), udp, 40, 40, false, Some(2239)),
        (&truncating, qtype::SRV, Edns::Size(512), tcp, 40, 40, false, Some(2239)),
        (&limit(2), qtype::A, Edns::Size(1232), udp, 2, 0, false, None),
        (&limit(2), qtype::A, Edns::Size(1232), tcp, 2, 0, false, None),
        (&limit(2), qtype::SRV, Edns::Size(1232), udp, 21, 21, false, None),
    ]
    .into_iter()
    .enumerate()
    {
        let bytes = world.bytes(&World::message("many.service.consul", asked, edns), transport);
        let reply = Message::from_vec(&bytes).unwrap();
        assert_eq!(
            (reply.answers.len(), reply.additionals.len(), reply.metadata.truncation),
            (answer, additional, tc),
            "case {case}"
        );
        if let Some(size) = size {
            assert_eq!(bytes.len(), size, "size of case {case}");
        }
        // Every additional record belongs to an answer that is still there.
        let targets: BTreeSet<_> = reply.answers.iter().map(|record| record.data.to_string()).collect();
        for extra in &reply.additionals {
            let name = extra.name.to_ascii();
            assert!(targets.iter().any(|target| target.ends_with(&name)), "{name}");
        }
    }
}

#[test]
fn a_limit_of_zero_leaves_the_cut_to_the_size() {
    let world = World::configured(|config| config.udp_answer_limit = 0);
    let reply = world.dig_with("many.service.consul", qtype::A, Edns::None, Transport::Udp);
    // 37 bytes of header and question, 16 an answer.
    assert_eq!(reply.answers.len(), (512 - 37) / 16);
}

#[test]
fn a_thousand_instances_fit_what_the_client_takes() {
    let mut world = World::configured(|config| config.enable_truncate = true);
    world.catalog = Catalog::default();
    for number in 0..2000 {
        world.catalog = world.catalog.with(
            node(
                &format!("a-rather-long-node-name-{number}"),
                &format!("10.3.{}.{}", number / 250, number % 250),
            ),
            service("big", "big", &[], "", 1),
        );
    }
    for (edns, transport, budget) in [
        (Edns::None, Transport::Udp, 512),
        (Edns::Size(4096), Transport::Udp, 4096),
        (Edns::Size(65_535), Transport::Udp, 65_507),
        (Edns::None, Transport::Tcp, 65_535),
    ] {
        let bytes = world.bytes(&World::message("big.service.consul", qtype::SRV, edns), transport);
        assert!(bytes.len() <= budget, "{} of {budget}", bytes.len());
        let reply = Message::from_vec(&bytes).unwrap();
        assert!(reply.metadata.truncation);
        assert_eq!(reply.answers.len(), reply.additionals.len());
        let is_full = budget == 512 || bytes.len() + 150 > budget;
        assert!(is_full, "{} of {budget} used", bytes.len());
    }
}

#[test]
fn room_is_made_by_extras_before_answers() {
    let mut world = World::configured(|config| config.enable_truncate = true);
    let mut large = node("large", "10.0.0.1");
    let value = "x".repeat(300);
    large.meta = Some(strings(&[("a", &value), ("b", &value), ("c", "short")]));
    world.catalog.add_node(large);
    let reply = world.dig_with("large.node.consul", qtype::A, Edns::None, Transport::Udp);
    assert_eq!((reply.answers.len(), reply.additionals.len()), (1, 1));
    assert!(!reply.metadata.truncation, "the answer is whole");
    let reply = world.dig_with("large.node.consul", qtype::ANY, Edns::None, Transport::Udp);
    assert!(reply.answers.len() < 4 && reply.metadata.truncation);
    let reply = world.dig_with("large.node.consul", qtype::TXT, Edns::None, Transport::Tcp);
    let RData::TXT(txt) = &reply.answers[0].data else {
        panic!("TXT")
    };
    let lengths: Vec<_> = txt.txt_data.iter().map(|string| string.len()).collect();
    assert_eq!(lengths, [255, 47], "long text is split into strings of 255 bytes");
}

#[test]
fn times_to_live_are_as_recorded() {
    let world = World::configured(|config| {
        config.node_ttl = Duration::from_secs(11);
        for (rule, secs) in [("*", 5), ("db", 12), ("cache*", 9)] {
            config.service_ttl.insert(rule.to_owned(), Duration::from_secs(secs));
        }
        config.soa = SoaNumbers {
            refresh: 1,
            retry: 2,
            expire: 3,
            min_ttl: 4,
        };
        config.only_passing = true;
    });
    let soa = "consul. 4 IN SOA ns.consul. hostmaster.consul. 1795360406 1 2 3 4";
    let ttls = |name: &str, asked| {
        let reply = world.dig(name, asked);
        let ttls = |records: &[Record]| records.iter().map(|record| record.ttl).collect::<BTreeSet<_>>();
        (ttls(&reply.answers), ttls(&reply.additionals))
    };
    let only = |ttl: u32| BTreeSet::from([ttl]);
    assert_eq!(ttls("n1.node.consul", qtype::ANY).0, only(11));
    assert_eq!(ttls("n1.node.consul", qtype::A), (only(11), only(11)));
    assert_eq!(ttls("0a000001.addr.consul", qtype::A).0, only(11));
    assert_eq!(ttls("db.service.consul", qtype::SRV), (only(12), only(12)));
    assert_eq!(ttls("many.service.consul", qtype::A).0, only(5));
    assert_eq!(ttls("cache-a.service.consul", qtype::A).0, only(9));
    assert_eq!(ttls("consul", qtype::NS), (only(11), only(11)));
    assert_eq!(ttls("consul", qtype::SOA), (only(4), only(11)));
    assert_eq!(ttls("1.0.0.10.in-addr.arpa", qtype::PTR).0, only(0));
    check(
        &world,
        "nope.service.consul",
        qtype::A,
        ResponseCode::NXDomain,
        &[],
        &[soa],
        &[],
    );
    let reply = world.dig("db.service.consul", qtype::SRV);
    assert!(!sorted(&reply.answers).iter().any(|line| line.contains("n7")));
    assert_eq!(reply.answers.len(), 3, "only_passing leaves the warning out");
}

#[test]
fn without_additional_texts_only_the_extras_go() {
    let world = World::configured(|config| config.enable_additional_node_meta_txt = false);
    assert!(world.dig("n1.node.consul", qtype::A).additionals.is_empty());
    assert_eq!(world.dig("n1.node.consul", qtype::ANY).answers.len(), 4);
    assert_eq!(world.dig("n1.node.consul", qtype::TXT).answers.len(), 3);
    let srv = world.dig("primary.db.service.consul", qtype::SRV);
    assert_eq!(sorted(&srv.additionals), ["n1.node.dc1.consul. 0 IN A 10.0.0.1"]);
}

#[test]
fn wan_addresses_are_for_other_datacenters() {
    let from = |datacenter: &str| {
        World::configured(|config| {
            config.datacenter = datacenter.to_owned();
            config.translate_wan_addrs = true;
        })
    };
    let first = |world: &World, name: &str, asked| text(&world.dig(name, asked).answers[0]);
    let (near, far) = (from("dc1"), from("dc9"));
    assert!(first(&near, "n1.node.consul", qtype::A).ends_with("A 10.0.0.1"));
    assert!(first(&far, "n1.node.consul", qtype::A).ends_with("A 198.51.100.1"));
    assert!(first(&near, "wansvc.service.consul", qtype::SRV).ends_with("1 1 85 0a010109.addr.dc1.consul."));
    assert!(first(&far, "wansvc.service.consul", qtype::SRV).ends_with("1 1 8500 0a010109.addr.dc1.consul."));
    assert!(first(&far, "wansvc.service.consul", qtype::A).ends_with("A 10.1.1.9"));
    // A node seen from afar is named by the address that reaches it, not by its name.
    let far_db = far.dig("primary.db.service.consul", qtype::SRV);
    assert!(text(&far_db.answers[0]).ends_with("c6336401.addr.dc1.consul."));
}

#[test]
fn both_families_of_one_instance_answer_their_own_question() {
    let mut world = World::new();
    let mut dual = service("dual", "dual", &[], "10.5.0.1", 1);
    for (kind, address) in [("lan_ipv4", "10.5.0.1"), ("lan_ipv6", "2001:db8::5")] {
        let address = ServiceAddress {
            address: address.to_owned(),
            port: 1,
        };
        dual.tagged_addresses.insert(kind.to_owned(), address);
    }
    world.catalog = world.catalog.with(node("d", "10.5.0.1"), dual);
    answers(
        &world,
        "dual.service.consul",
        qtype::A,
        &["dual.service.consul. 0 IN A 10.5.0.1"],
    );
    answers(
        &world,
        "dual.service.consul",
        qtype::AAAA,
        &["dual.service.consul. 0 IN AAAA 2001:db8::5"],
    );
}

#[test]
fn what_does_not_fit_a_record_is_left_out() {
    let mut world = World::new();
    world.catalog = Catalog::default()
        .with(node(&"n".repeat(64), "10.0.0.1"), service("a", "odd", &[], "", 1))
        .with(node("ok", "10.0.0.2"), service("b", "odd", &[], "", 70_000))
        .with(node("ok2", "10.0.0.3"), service("c", "odd", &[], "", -1))
        .with(
            node("ok3", "10.0.0.4"),
            service("d", "odd", &[], &"long.".repeat(60), 1),
        )
        .with(node("ok4", "10.0.0.5"), service("e", "odd", &[], "", 0));
    let reply = world.dig("odd.service.consul", qtype::SRV);
    assert_eq!(
        sorted(&reply.answers),
        ["odd.service.consul. 0 IN SRV 1 1 0 ok4.node.dc1.consul."]
    );
    assert_eq!(world.dig("odd.service.consul", qtype::A).answers.len(), 4);
    // None left of the asked kind: no data, with the SOA.
    world.catalog.instances.truncate(3);
    let reply = world.dig("odd.service.consul", qtype::SRV);
    assert_eq!(
        (
            reply.answers.len(),
            reply.authorities.len(),
            reply.metadata.response_code
        ),
        (0, 1, ResponseCode::NoError)
    );
}

#[test]
fn a_seed_decides_the_order_and_every_instance_comes_first_sometimes() {
    let mut world = World::new();
    let name = "many.service.consul";
    let order = |world: &World| {
        let reply = world.dig(name, qtype::A);
        reply.answers.iter().map(text).collect::<Vec<_>>()
    };
    assert_eq!(order(&world), order(&world));
    let first: BTreeSet<_> = (0..500)
        .map(|seed| {
            world.seed = seed;
            order(&world).remove(0)
        })
        .collect();
    assert_eq!(first.len(), 40);
}

#[test]
fn a_node_is_found_by_its_name_only() {
    let world = World::new();
    let Received::Asked(question) = receive(&World::message("b1860f4a.node.consul", qtype::A, DIG)) else {
        panic!("a plain question")
    };
    let mut resolution = Resolution::new(Arc::new(world.config.clone()), question, 0);
    // What a store finds by a prefix of the node's id.
    let by_id = world
        .catalog
        .evaluate(&quorate_store::Query::Node { node: "n1".to_owned() });
    assert!(matches!(by_id, Answer::Node(Some(_))));
    resolution.handle_answer(&by_id, &mut ChaCha8Rng::seed_from_u64(0));
    assert_eq!(resolution.reply().rcode, quorate_dns_answer::Rcode::NxDomain);
}

#[test]
fn failures_are_told_apart() {
    let fail = |name: &str, asked, failure| {
        let Received::Asked(question) = receive(&World::message(name, asked, DIG)) else {
            panic!("a plain question")
        };
        let mut resolution = Resolution::new(Arc::new(World::new().config), question, NOW_UNIX_SECS);
        resolution.handle_failure(failure);
        assert_eq!(resolution.step(), Step::Done);
        let reply = Message::from_vec(&resolution.encode(Transport::Udp)).unwrap();
        (
            reply.metadata.response_code,
            reply.metadata.authoritative,
            reply.answers.len(),
            reply.authorities.len(),
        )
    };
    let (failed, unknown) = (LookupFailure::Failed, LookupFailure::NoDatacenter);
    assert_eq!(
        fail("db.service.consul", qtype::A, failed),
        (ResponseCode::ServFail, true, 0, 0)
    );
    assert_eq!(
        fail("db.service.dc9.consul", qtype::A, unknown),
        (ResponseCode::NXDomain, true, 0, 1)
    );
    assert_eq!(fail("consul", qtype::SOA, failed), (ResponseCode::NoError, true, 1, 0));
    assert_eq!(fail("consul", qtype::NS, failed), (ResponseCode::ServFail, true, 0, 0));
    assert_eq!(
        fail("1.0.0.10.in-addr.arpa", qtype::PTR, failed),
        (ResponseCode::ServFail, false, 0, 0)
    );
}

#[test]
fn messages_that_are_no_question_get_what_they_deserve() {
    let world = World::new();
    let good = World::message("n1.node.consul", qtype::A, DIG);
    let reply = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut message = good.clone();
        change(&mut message);
        world.bytes(&message, Transport::Udp)
    };
    for length in 0..12 {
        assert!(
            reply(&|message| message.truncate(length)).is_empty(),
            "shorter than a header"
        );
    }
    assert!(reply(&|message| message[2] |= 0x80).is_empty(), "a response");
    let rcode = |bytes: &[u8]| Message::from_vec(bytes).unwrap().metadata.response_code;
    for (what, change) in [
        (
            "no question",
            (&|message: &mut Vec<u8>| message[5] = 0) as &dyn Fn(&mut Vec<u8>),
        ),
        ("two questions", &|message| message[5] = 2),
        ("cut in the question", &|message| message.truncate(20)),
        ("cut in OPT", &|message| {
            message.pop();
        }),
        ("a compressed question", &|message| message[12] = 0xc0),
        ("two OPT", &|message| {
            message[11] = 2;
            let opt = message[message.len() - 11..].to_vec();
            message.extend(opt);
        }),
        ("records that are not there", &|message| message[7] = 9),
    ] {
        let bytes = reply(change);
        assert_eq!(rcode(&bytes), ResponseCode::FormErr, "{what}");
        assert_eq!((bytes.len(), &bytes[..2]), (12, &good[..2]), "{what}");
    }
    for opcode in [1_u8, 2, 3, 5, 15] {
        let bytes = reply(&|message| message[2] |= opcode << 3);
        assert_eq!(rcode(&bytes), ResponseCode::NotImp, "opcode {opcode}");
        assert_eq!((bytes[2] >> 3) & 0x0f, opcode);
    }
    let notify = Message::from_vec(&reply(&|message| message[2] = 4 << 3)).unwrap();
    assert_eq!(
        (notify.metadata.op_code, notify.answers.len()),
        (OpCode::Notify, 1),
        "answered like a query"
    );
    assert!(!notify.metadata.recursion_desired);
    let chaos = reply(&|message| message[31] = 3);
    let chaos = Message::from_vec(&chaos).unwrap();
    assert_eq!(chaos.queries[0].query_class, DNSClass::CH);
    assert_eq!(chaos.answers[0].dns_class, DNSClass::IN);
    let without = world.dig_with("n1.node.consul", qtype::A, Edns::None, Transport::Udp);
    assert!(without.edns.is_none(), "no OPT without OPT");
    assert_eq!(without.answers[0].record_type(), RecordType::A);
}

#[test]
fn the_client_subnet_comes_back_with_scope_zero() {
    let mut message = World::message("n1.node.consul", qtype::A, DIG);
    let length = message.len();
    // Family 1, source prefix 24, scope 7, 192.0.2.
    let option = [0, 8, 0, 7, 0, 1, 24, 7, 192, 0, 2];
    message[length - 1] = 11;
    message.extend_from_slice(&option);
    let reply = World::new().bytes(&message, Transport::Udp);
    assert_eq!(reply[reply.len() - 11..], [0, 8, 0, 7, 0, 1, 24, 0, 192, 0, 2]);
    assert!(Message::from_vec(&reply).is_ok());
}

#[test]
fn a_client_subnet_of_no_known_form_is_not_echoed() {
    for (what, option) in [
        ("an unknown family", &[0, 8, 0, 7, 1, 0, 24, 0, 192, 0, 2][..]),
        ("no family", &[0, 8, 0, 7, 0, 0, 0, 0, 1, 3, 99]),
        ("too long a prefix", &[0, 8, 0, 9, 0, 1, 33, 0, 192, 0, 2, 1, 0]),
        ("too short an address", &[0, 8, 0, 6, 0, 1, 24, 0, 192, 0]),
        ("a header cut short", &[0, 8, 0, 3, 0, 1, 24]),
        ("a length beyond the option", &[0, 8, 0, 99, 0, 1, 24, 0]),
    ] {
        let mut message = World::message("n1.node.consul", qtype::A, DIG);
        let length = message.len();
        message[length - 1] = u8::try_from(option.len()).unwrap();
        message.extend_from_slice(option);
        let reply = World::new().bytes(&message, Transport::Udp);
        let reply = Message::from_vec(&reply).expect(what);
        assert_eq!(reply.answers.len(), 1, "{what}");
        assert!(reply.edns.expect(what).options().as_ref().is_empty(), "{what}");
    }
}

#[test]
fn without_compression_nothing_points() {
    let world = World::configured(|config| config.disable_compression = true);
    for name in ["db.service.consul", "n1.node.consul", "consul"] {
        for asked in [qtype::A, qtype::SRV, qtype::SOA] {
            let message = World::message(name, asked, Edns::Size(4096));
            let bytes = world.bytes(&message, Transport::Udp);
            // Here every name that occurs twice would point into the question.
            assert!(!bytes.windows(2).any(|pair| pair[0] == 0xc0 && pair[1] < 40), "{name}");
            let plain = Message::from_vec(&bytes).unwrap();
            let small = Message::from_vec(&World::new().bytes(&message, Transport::Udp)).unwrap();
            assert_eq!(sorted(&plain.answers), sorted(&small.answers));
        }
    }
}

/// The catalog of these tests stands for a store: where DNS asks, both must answer alike.
#[test]
fn the_store_answers_dns_as_the_catalog_of_these_tests_does() {
    let catalog = Catalog::recorded();
    let mut store = Store::new();
    let mut log_index = LogIndex(0);
    let mut register = |registration: Registration| {
        log_index = log_index.next();
        let applied = store.apply(log_index, &Command::Register(Box::new(registration)));
        assert_eq!(applied.outcome, Outcome::Done);
    };
    let of_node = |node: &Node| Registration {
        node: node.name.clone(),
        address: node.address.clone(),
        datacenter: node.datacenter.clone(),
        tagged_addresses: node.tagged_addresses.clone(),
        node_meta: node.meta.clone(),
        ..Registration::default()
    };
    for node in &catalog.nodes {
        register(of_node(node));
    }
    for instance in &catalog.instances {
        register(Registration {
            service: Some((*instance.service).clone()),
            checks: instance.checks.iter().map(|check| (**check).clone()).collect(),
            ..of_node(&instance.node)
        });
    }
    let shown = |answer: &Answer| match answer {
        Answer::Instances(instances) => {
            let mut shown: Vec<_> = instances
                .iter()
                .map(|instance| format!("{} {} {}", instance.node.name, instance.service.id, instance.status()))
                .collect();
            shown.sort();
            shown
        }
        Answer::Node(view) => view.iter().map(|view| view.node.name.clone()).collect(),
        Answer::Address(owner) => owner
            .iter()
            .map(|owner| match owner {
                AddressOwner::Node(node) => node.name.clone(),
                AddressOwner::Service(service) => service.id.clone(),
            })
            .collect(),
        other => panic!("DNS asks for no {other:?}"),
    };
    for (name, asked) in [
        ("db.service.consul", qtype::A),
        ("DB.service.consul", qtype::A),
        ("upsvc.service.consul", qtype::A),
        ("mixed.db.service.consul", qtype::A),
        ("MIXED.db.service.consul", qtype::A),
        ("nope.db.service.consul", qtype::A),
        ("sick.service.consul", qtype::A),
        ("nope.service.consul", qtype::A),
        ("consul", qtype::NS),
        ("n1.node.consul", qtype::A),
        ("upper.node.consul", qtype::A),
        ("NODE.dot.node.consul", qtype::A),
        ("nope.node.consul", qtype::A),
        ("1.0.0.10.in-addr.arpa", qtype::PTR),
        ("2.1.168.192.in-addr.arpa", qtype::PTR),
        ("250.9.9.10.in-addr.arpa", qtype::PTR),
        (
            "4.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa",
            qtype::PTR,
        ),
    ] {
        let config = DnsConfig::new("consul.", "dc1").unwrap();
        let plan = quorate_dns_answer::plan(&config, &Name::from_text(name).unwrap(), asked);
        let query = plan.query().expect(name);
        assert_eq!(
            shown(&store.evaluate(&query).answer),
            shown(&catalog.evaluate(&query)),
            "{name}"
        );
    }
}
