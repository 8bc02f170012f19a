//! Events and queries of a stranger, in a packet or an exchange: decoded or refused, never a panic; what was decoded encodes
//! to the same, and a member that hears it keeps its invariants.
//!
//! Input: a byte that says what the rest is: the messages of a packet, or the state of an exchange, behind their version.
#![no_main]

use libfuzzer_sys::fuzz_target;
use quorate_types::{Instant, NodeId, Uuid};
use quorate_user_events::{EventFilter, EventState, Output, UserEvents};
use quorate_wire::events::{VERSION, decode_payload, decode_state, encode_payload, encode_state};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng as _;
use std::net::SocketAddr;

fn member() -> UserEvents {
    let address = SocketAddr::from(([127, 0, 0, 1], 8301));
    let id = NodeId(Uuid::from_bytes([1; 16]));
    let mut member = UserEvents::new(id, address, ChaCha8Rng::seed_from_u64(1));
    // Its first exchange, from which on it takes events.
    member.handle_state(EventState::default(), true);
    member
}

fn check(member: &mut UserEvents) {
    member.check();
    while let Some(output) = member.poll_output() {
        if let Output::Event(event) = output
            && let Ok(filter) = EventFilter::of(&event)
        {
            filter.accepts("n1", [("web", &["v1".to_owned()][..])]);
        }
    }
    member.take_news(1300, 4);
    member.check();
}

fuzz_target!(|input: &[u8]| {
    let Some((kind, rest)) = input.split_first() else {
        return;
    };
    let bytes = [&[VERSION][..], rest].concat();
    let mut member = member();
    if kind % 2 == 0 {
        if let Ok(messages) = decode_payload(&bytes) {
            assert_eq!(decode_payload(&encode_payload(&messages)).as_ref(), Ok(&messages));
            member.handle_messages(Instant::from_millis(1), messages);
        }
    } else if let Ok(state) = decode_state(&bytes) {
        assert_eq!(decode_state(&encode_state(&state)).as_ref(), Ok(&state));
        member.handle_state(state, false);
    }
    check(&mut member);
});
