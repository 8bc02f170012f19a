//! Rules that hold for every message, and agreement with hickory's reading of the same bytes.

mod catalog;

use catalog::{Catalog, node, service};
use hickory_proto::op::{Message, ResponseCode};
use proptest::prelude::*;
use quorate_dns_answer::{DnsConfig, LookupFailure, Name, Received, Resolution, Step, Transport, qtype, receive};
use quorate_types::CheckStatus;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use std::sync::{Arc, LazyLock};

static CATALOG: LazyLock<Catalog> = LazyLock::new(Catalog::recorded);

/// What the driver does, with every second recursor silent.
fn answer(catalog: &Catalog, config: &DnsConfig, message: &[u8], transport: Transport, seed: u64) -> Option<Vec<u8>> {
    let question = match receive(message) {
        Received::Ignored => return None,
        Received::Rejected(reply) => return Some(reply),
        Received::Asked(question) => question,
    };
    let mut resolution = Resolution::new(Arc::new(config.clone()), question, 1);
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    for step in 0..200_u32 {
        match resolution.step() {
            Step::Lookup {
                datacenter: Some(_), ..
            } => resolution.handle_failure(LookupFailure::NoDatacenter),
            Step::Lookup { query, .. } => resolution.handle_answer(&catalog.evaluate(&query), &mut rng),
            Step::Recurse { .. } => resolution.handle_recursed((step % 2 == 0).then_some(message)),
            Step::Forward => resolution.handle_forward_failed(),
            Step::Done => return Some(resolution.encode(transport)),
        }
    }
    panic!("a resolution ends");
}

fn transports() -> impl Strategy<Value = Transport> {
    prop_oneof![Just(Transport::Udp), Just(Transport::Tcp)]
}

fn configs() -> impl Strategy<Value = DnsConfig> {
    (any::<[bool; 5]>(), 0_usize..6, 0_usize..6).prop_map(|(flags, udp_answer_limit, a_record_limit)| {
        let mut config = DnsConfig::new("consul.", "dc1").unwrap();
        config.enable_truncate = flags[0];
        config.disable_compression = flags[1];
        config.recursion_available = flags[2];
        config.only_passing = flags[3];
        config.enable_additional_node_meta_txt = flags[4];
        config.udp_answer_limit = udp_answer_limit;
        config.a_record_limit = a_record_limit;
        config
    })
}

/// Names that mean something, and labels that do not.
fn names() -> impl Strategy<Value = Name> {
    let label = prop_oneof![
        4 => prop::sample::select(vec![
            "node", "service", "addr", "query", "n1", "db", "many", "_db", "_tcp", "_many", "primary", "dc1", "dc9",
            "c0a80102", "chn", "chain", "loop", "multi", "v6svc", "default", "ns", "ap", "dc", "consul", "Mixed",
        ])
        .prop_map(|word| word.as_bytes().to_vec()),
        1 => prop::collection::vec(any::<u8>(), 1..=63),
    ];
    let end = prop::sample::select(vec!["consul", "CONSUL", "example.com", "in-addr.arpa", "ip6.arpa"]);
    (prop::collection::vec(label, 0..5), end).prop_filter_map("fits 255 bytes", |(labels, end)| {
        let labels = labels.iter().map(Vec::as_slice);
        Name::from_labels(labels.chain(end.split('.').map(str::as_bytes))).ok()
    })
}

fn types() -> impl Strategy<Value = u16> {
    let known = vec![
        qtype::A,
        qtype::AAAA,
        qtype::SRV,
        qtype::ANY,
        qtype::TXT,
        qtype::SOA,
        qtype::NS,
        qtype::PTR,
    ];
    prop_oneof![9 => prop::sample::select(known), 1 => any::<u16>()]
}

fn questions() -> impl Strategy<Value = Vec<u8>> {
    (names(), types(), any::<u16>(), proptest::option::of(any::<u16>())).prop_map(|(name, asked, id, size)| {
        let mut message = quorate_dns_answer::encode_question(id, &name, asked);
        if let Some(size) = size {
            message[11] = 1;
            message.extend_from_slice(&[0, 0, 41]);
            message.extend_from_slice(&size.to_be_bytes());
            message.extend_from_slice(&[0; 6]);
        }
        message
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn any_bytes_are_answered_with_a_whole_message_or_not_at_all(
        message in prop::collection::vec(any::<u8>(), 0..200),
        config in configs(),
        transport in transports(),
    ) {
        if let Some(reply) = answer(&CATALOG, &config, &message, transport, 1) {
            prop_assert_eq!(&reply[..2], &message[..2]);
            prop_assert!(Message::from_vec(&reply).is_ok());
        }
    }

    #[test]
    fn a_question_with_bytes_changed_never_panics(
        question in questions(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        config in configs(),
    ) {
        let mut message = question;
        for (at, byte) in changes {
            let at = at.index(message.len());
            message[at] = byte;
        }
        let _ = answer(&CATALOG, &config, &message, Transport::Udp, 2);
    }

    #[test]
    fn replies_are_read_back_whole_and_within_the_budget(
        message in questions(),
        config in configs(),
        transport in transports(),
        seed in any::<u64>(),
    ) {
        let asked = Message::from_vec(&message).unwrap();
        let bytes = answer(&CATALOG, &config, &message, transport, seed).expect("a question is answered");
        let reply = Message::from_vec(&bytes).unwrap();
        let budget = match transport {
            Transport::Tcp => 65_535,
            Transport::Udp => usize::from(asked.max_payload()).min(65_507),
        };
        prop_assert!(bytes.len() <= budget, "{} of {budget}", bytes.len());
        prop_assert_eq!(reply.metadata.id, asked.metadata.id);
        prop_assert_eq!(reply.queries.len(), 1);
        prop_assert!(reply.queries[0].name.eq_case(&asked.queries[0].name));
        prop_assert_eq!(reply.queries[0].query_type, asked.queries[0].query_type);
        let is_refused = reply.metadata.response_code == ResponseCode::Refused;
        prop_assert_eq!(reply.edns.is_some(), asked.edns.is_some() && !is_refused);
        prop_assert!(config.enable_truncate || !reply.metadata.truncation);
    }

    #[test]
    fn the_question_is_read_as_hickory_reads_it(message in questions()) {
        let theirs = Message::from_vec(&message).unwrap();
        let Received::Asked(ours) = receive(&message) else {
            return Err(TestCaseError::fail("a plain question"));
        };
        let query = &theirs.queries[0];
        prop_assert!(ours.name.labels().eq(query.name.iter()));
        prop_assert_eq!(ours.qtype, u16::from(query.query_type));
        prop_assert_eq!(ours.qclass, u16::from(query.query_class));
        prop_assert_eq!(ours.id, theirs.metadata.id);
        prop_assert_eq!(ours.recursion_desired, theirs.metadata.recursion_desired);
        prop_assert_eq!(ours.edns.is_some(), theirs.edns.is_some());
    }

    #[test]
    fn a_later_version_of_edns_is_told_which_one_is_spoken(
        message in questions().prop_filter("with an OPT record", |message| message[11] == 1),
        version in 1_u8..,
        config in configs(),
        transport in transports(),
    ) {
        let asked = Message::from_vec(&message).unwrap();
        let mut message = message;
        // The TTL's second byte; the OPT record stands last and has no data.
        let at = message.len() - 5;
        message[at] = version;
        let bytes = answer(&CATALOG, &config, &message, transport, 3).expect("a question is answered");
        prop_assert!(bytes.len() <= 512);
        let reply = Message::from_vec(&bytes).unwrap();
        // hickory calls 16 BADSIG, its other meaning.
        prop_assert_eq!(u16::from(reply.metadata.response_code), 16);
        prop_assert_eq!(reply.metadata.id, asked.metadata.id);
        prop_assert_eq!(reply.metadata.recursion_desired, asked.metadata.recursion_desired);
        prop_assert_eq!(reply.edns.as_ref().map(|edns| edns.version()), Some(0));
        prop_assert_eq!(reply.queries.len(), 1);
        prop_assert!(reply.queries[0].name.eq_case(&asked.queries[0].name));
        prop_assert!(reply.answers.is_empty() && reply.authorities.is_empty() && reply.additionals.is_empty());
    }

    #[test]
    fn no_critical_instance_is_answered(
        statuses in prop::collection::vec(0_u8..3, 1..30),
        asked in prop::sample::select(vec![qtype::A, qtype::SRV, qtype::ANY]),
        config in configs(),
        seed in any::<u64>(),
    ) {
        let mut catalog = Catalog::default();
        for (number, status) in statuses.iter().enumerate() {
            let owner = catalog.add_node(node(&format!("n{number}"), &format!("10.{status}.0.{number}")));
            let status = [CheckStatus::Passing, CheckStatus::Warning, CheckStatus::Critical][usize::from(*status)];
            catalog.add(&owner, service(&format!("w{number}"), "web", &[], "", 80), status);
        }
        let question = quorate_dns_answer::encode_question(1, &Name::from_text("web.service.consul").unwrap(), asked);
        let bytes = answer(&catalog, &config, &question, Transport::Tcp, seed).unwrap();
        let reply = Message::from_vec(&bytes).unwrap();
        for record in reply.answers.iter().chain(&reply.additionals) {
            let text = record.data.to_string();
            prop_assert!(!text.starts_with("10.2."), "{text}");
            prop_assert!(!config.only_passing || !text.starts_with("10.1."), "{text}");
        }
        let worst = if config.only_passing { 1 } else { 2 };
        let is_any_left = statuses.iter().any(|status| *status < worst);
        prop_assert_eq!(reply.metadata.response_code == ResponseCode::NoError, is_any_left);
    }
}
