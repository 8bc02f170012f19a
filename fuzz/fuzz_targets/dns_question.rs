//! A DNS message of a stranger, over a small fixed catalog: answered or ignored, never a panic; a reply is one that
//! hickory reads, and no longer than the client takes.
//!
//! Input: a byte of transport and settings, a seed, then the message. Recursors answer with the message itself.
#![no_main]

#[path = "../../crates/dns-answer/tests/catalog/mod.rs"]
mod catalog;

use catalog::Catalog;
use hickory_proto::op::Message;
use libfuzzer_sys::fuzz_target;
use quorate_dns_answer::{
    DnsConfig, LookupFailure, Received, Resolution, Step, TCP_MESSAGE_LEN_BYTES_MAX, Transport,
    UDP_REPLY_LEN_BYTES_MAX, UDP_REPLY_LEN_BYTES_MIN, receive,
};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use std::sync::{Arc, LazyLock};

/// A DNS header (RFC 1035 section 4.1.1).
const HEADER_LEN_BYTES: usize = 12;

// Response codes as numbers (RFC 1035 section 4.1.1, RFC 6891 section 9): hickory has another name for 16, BADSIG.
const FORMERR: u16 = 1;
const NOTIMP: u16 = 4;
const BADVERS: u16 = 16;

static CATALOG: LazyLock<Catalog> = LazyLock::new(Catalog::recorded);

fn config(flags: u8) -> DnsConfig {
    let mut config = DnsConfig::new("consul.", "dc1").expect("a valid domain");
    config.enable_truncate = flags & 2 != 0;
    config.disable_compression = flags & 4 != 0;
    config.recursion_available = flags & 8 != 0;
    config.only_passing = flags & 16 != 0;
    config.translate_wan_addrs = flags & 32 != 0;
    config.udp_answer_limit = usize::from(flags >> 6);
    config
}

fuzz_target!(|input: &[u8]| {
    let Some(([flags, seed], message)) = input.split_first_chunk::<2>() else {
        return;
    };
    let transport = if flags & 1 == 0 { Transport::Udp } else { Transport::Tcp };
    let question = match receive(message) {
        Received::Asked(question) => question,
        Received::Rejected(reply) => {
            // A rejection fits whatever the client takes: BADVERS repeats the question, the others are a header alone.
            assert!(reply.len() <= UDP_REPLY_LEN_BYTES_MIN, "{}", reply.len());
            let read = Message::from_vec(&reply).expect("hickory reads what is written");
            assert_eq!(read.metadata.id.to_be_bytes(), message[..2]);
            let rcode = u16::from(read.metadata.response_code);
            let is_bad_version = rcode == BADVERS;
            assert!(is_bad_version || matches!(rcode, FORMERR | NOTIMP), "{rcode}");
            assert_eq!(reply.len() > HEADER_LEN_BYTES, is_bad_version);
            return;
        }
        Received::Ignored => return,
    };
    let asked_len_bytes = question.edns.as_ref().map_or(0, |edns| usize::from(edns.udp_len_bytes));
    let budget = match transport {
        Transport::Udp => asked_len_bytes.clamp(UDP_REPLY_LEN_BYTES_MIN, UDP_REPLY_LEN_BYTES_MAX),
        Transport::Tcp => TCP_MESSAGE_LEN_BYTES_MAX,
    };
    let mut resolution = Resolution::new(Arc::new(config(*flags)), question, 1);
    let mut rng = ChaCha8Rng::seed_from_u64(u64::from(*seed));
    for _ in 0..100 {
        match resolution.step() {
            Step::Lookup {
                datacenter: Some(datacenter),
                ..
            } => resolution.handle_failure(match datacenter.len() % 2 {
                0 => LookupFailure::NoDatacenter,
                _ => LookupFailure::Failed,
            }),
            Step::Lookup { query, .. } => resolution.handle_answer(&CATALOG.evaluate(&query), &mut rng),
            Step::Recurse { .. } => resolution.handle_recursed(Some(message)),
            Step::Forward => resolution.handle_forward_failed(),
            Step::Done => {
                let reply = resolution.encode(transport);
                assert!(reply.len() <= budget, "{} of {budget}", reply.len());
                let read = Message::from_vec(&reply).expect("hickory reads what is written");
                assert_eq!(read.metadata.id.to_be_bytes(), message[..2]);
                return;
            }
        }
    }
    panic!("a resolution ends");
});
