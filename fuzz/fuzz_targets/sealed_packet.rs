//! Sealed gossip of a stranger: never opened, never a panic, nothing remembered. Sealed gossip of a member: opened once, and
//! not with a changed byte.
//!
//! Input: a byte that says what the rest is: a packet or frame, as it is or with the header of a known key, or a change of
//! what a member sealed.
#![no_main]

use libfuzzer_sys::fuzz_target;
use quorate_swim::Message;
use quorate_types::{Instant, NodeId};
use quorate_wire::gossip::{KIND_SEALED, StreamMessage, VERSION};
use quorate_wire::keyring::{Keyring, RingKey};
use quorate_wire::seal::{Binding, Direction, GREETING_LEN_BYTES, Greeting, OpenedFrame, Seal, SealError, StartId};
use zeroize::Zeroizing;

const NOW: Instant = Instant::from_millis(1_000);
const BINDING: Binding = Binding {
    client: Greeting([1; 16]),
    server: Greeting([2; 16]),
    direction: Direction::Request,
};

fn key() -> RingKey {
    RingKey::from_bytes(&[7; 32]).expect("32 bytes")
}

fn open_frame(seal: &Seal, frame: &[u8]) -> Option<Result<OpenedFrame, SealError>> {
    let (header, body) = frame.split_first_chunk()?;
    let opener = seal.frame_opener(header).ok()?;
    Some(opener.open(&BINDING, Zeroizing::new(body.to_vec())))
}

/// Two members that have talked over a stream.
fn pair() -> (Seal, Seal) {
    let member = |n: u8| {
        Seal::new(
            Keyring::new(key()),
            StartId([n; 16]),
            1_795_360_406_000,
            Instant::ZERO,
            4,
        )
    };
    let (mut one, mut two) = (member(1), member(2));
    let target = NodeId::default();
    let frame = one
        .frame_sealer(NOW)
        .seal(&BINDING, &StreamMessage::Ack { target })
        .expect("short");
    let opened = open_frame(&two, &frame).expect("one ring").expect("as sent");
    two.hear_frame(NOW, &opened);
    (one, two)
}

fn with_header(rest: &[u8]) -> Vec<u8> {
    let mut bytes = rest.to_vec();
    if let Some(start) = bytes.first_chunk_mut::<6>() {
        (start[0], start[1]) = (VERSION, KIND_SEALED);
        start[2..].copy_from_slice(&key().id().0);
    }
    bytes
}

fn check_strange(bytes: &[u8]) {
    let (_, mut member) = pair();
    assert!(member.open_packet(NOW, &mut bytes.to_vec()).is_err());
    assert!(!matches!(open_frame(&member, bytes), Some(Ok(_))));
    assert_eq!(member.sender_count(), 0);
    if let Some(bytes) = bytes.first_chunk::<GREETING_LEN_BYTES>()
        && let Ok(greeting) = Greeting::decode(bytes)
    {
        assert_eq!(greeting.encode(), *bytes);
    }
}

fn check_changed(rest: &[u8]) {
    let Some(([place, change], rest)) = rest.split_first_chunk() else {
        return;
    };
    let (mut one, mut two) = pair();
    let nacks = rest.iter().take(32).map(|byte| u64::from(*byte) << (byte % 57));
    let messages: Vec<Message> = nacks.map(|sequence| Message::Nack { sequence }).collect();
    let packet = one.seal_packet(NOW, &messages);
    let mut changed = packet.clone();
    let place = usize::from(*place) % packet.len();
    changed[place] ^= change;
    if *change != 0 {
        assert!(two.open_packet(NOW, &mut changed).is_err());
    }
    assert_eq!(two.open_packet(NOW, &mut packet.clone()), Ok(messages));
    assert_eq!(two.open_packet(NOW, &mut packet.clone()), Err(SealError::Duplicate));
}

fuzz_target!(|input: &[u8]| {
    let Some((kind, rest)) = input.split_first() else {
        return;
    };
    match kind % 3 {
        0 => check_strange(rest),
        1 => check_strange(&with_header(rest)),
        _ => check_changed(rest),
    }
});
