use super::*;
use crate::gossip::decode_packet;
use proptest::collection::vec;
use proptest::prelude::*;
use quorate_swim::PACKET_OVERHEAD_LEN_BYTES;
use quorate_types::{NodeId, Uuid};

const HOUR: Duration = Duration::from_secs(3600);
/// 2026, as a wall clock.
const WALL_MS: u64 = 1_795_360_406_000;

fn key(first: u8) -> RingKey {
    RingKey::from_bytes(&[first; 32]).expect("32 bytes")
}
fn start_id(n: u8) -> StartId {
    StartId([n; 16])
}
fn at(seconds: u64) -> Instant {
    Instant::from_millis(seconds * 1000)
}
/// Started at its instant zero.
fn member_of(ring: Keyring, n: u8, wall_ms: u64) -> Seal {
    Seal::new(ring, start_id(n), wall_ms, Instant::ZERO, 8)
}
fn member(n: u8) -> Seal {
    member_of(Keyring::new(key(1)), n, WALL_MS)
}
fn binding(direction: Direction) -> Binding {
    Binding {
        client: Greeting([1; 16]),
        server: Greeting([2; 16]),
        direction,
    }
}
fn open_frame(seal: &Seal, binding: &Binding, frame: &[u8]) -> Result<OpenedFrame, SealError> {
    let (header, body) = frame
        .split_first_chunk()
        .ok_or(Malformed::TooShort { len_bytes: frame.len() })?;
    seal.frame_opener(header)?.open(binding, Zeroizing::new(body.to_vec()))
}
fn ack() -> StreamMessage {
    StreamMessage::Ack {
        target: NodeId(Uuid::from_bytes([3; 16])),
    }
}
/// `from` tells `to` something over a stream.
fn tell(from: &mut Seal, to: &mut Seal, now: Instant) {
    let binding = binding(Direction::Request);
    let frame = from.frame_sealer(now).seal(&binding, &ack()).expect("short");
    let opened = open_frame(to, &binding, &frame).expect("one ring");
    to.hear_frame(now, &opened);
}
/// Two members that have talked over a stream.
fn pair() -> (Seal, Seal) {
    let (mut one, mut two) = (member(1), member(2));
    tell(&mut one, &mut two, Instant::ZERO);
    tell(&mut two, &mut one, Instant::ZERO);
    (one, two)
}
fn nack(sequence: u64) -> Vec<Message> {
    vec![Message::Nack { sequence }]
}
fn open(seal: &mut Seal, now: Instant, packet: &[u8]) -> Result<Vec<Message>, SealError> {
    seal.open_packet(now, &mut packet.to_vec())
}

#[test]
fn a_packet_of_the_pool_is_opened_once() {
    let (mut one, mut two) = pair();
    let packet = one.seal_packet(at(1), &nack(7));
    assert_eq!(open(&mut two, at(1), &packet), Ok(nack(7)));
    assert_eq!(open(&mut two, at(1), &packet), Err(SealError::Duplicate));
    assert_eq!(open(&mut one, at(1), &packet), Err(SealError::Reflected));
    // Another receiver has not seen it.
    let mut three = member(3);
    tell(&mut one, &mut three, at(1));
    assert_eq!(open(&mut three, at(1), &packet), Ok(nack(7)));
}

#[test]
fn every_changed_byte_of_a_packet_is_noticed_and_changes_nothing() {
    let (mut one, mut two) = pair();
    let packet = one.seal_packet(at(1), &nack(7));
    for place in 0..packet.len() {
        for bit in 0..8 {
            let mut changed = packet.clone();
            changed[place] ^= 1 << bit;
            assert!(open(&mut two, at(1), &changed).is_err(), "byte {place} bit {bit}");
        }
    }
    for len in 0..packet.len() {
        assert!(open(&mut two, at(1), &packet[..len]).is_err(), "cut to {len}");
    }
    assert_eq!(two.sender_count(), 0);
    assert_eq!(open(&mut two, at(1), &packet), Ok(nack(7)));
}

#[test]
fn a_packet_sent_again_hours_later_is_refused_even_by_a_newcomer_with_a_slow_clock() {
    let (mut one, mut two) = pair();
    let packet = one.seal_packet(at(1), &nack(7));
    let later = at(1) + 5 * HOUR;
    assert!(matches!(open(&mut two, later, &packet), Err(SealError::Stale { .. })));
    // Started just now, and its clock says that it is the moment in which the packet was recorded.
    let mut newcomer = member_of(Keyring::new(key(1)), 9, WALL_MS);
    assert_eq!(open(&mut newcomer, Instant::ZERO, &packet), Err(SealError::Unsynced));
    // Whom it joins tells it what time it is.
    let binding = binding(Direction::Answer);
    let answer = two.frame_sealer(later).seal(&binding, &ack()).expect("short");
    let answer = open_frame(&newcomer, &binding, &answer).expect("one ring");
    newcomer.hear_frame(Instant::ZERO, &answer);
    assert!(matches!(
        open(&mut newcomer, Instant::ZERO, &packet),
        Err(SealError::Stale { .. })
    ));
    let fresh = two.seal_packet(later, &nack(8));
    assert_eq!(open(&mut newcomer, Instant::ZERO, &fresh), Ok(nack(8)));
}

#[test]
fn members_whose_clocks_parted_understand_one_another_once_the_slow_one_hears() {
    // An hour apart, as after a long partition with bad clocks, or with a wall clock that was wrong at the start.
    let (mut slow, mut two) = pair();
    let mut fast = member_of(Keyring::new(key(1)), 5, WALL_MS + 3_600_000);
    tell(&mut two, &mut fast, at(0));
    let unheard = slow.seal_packet(at(1), &nack(1));
    assert!(matches!(open(&mut fast, at(1), &unheard), Err(SealError::Stale { .. })));
    let news = fast.seal_packet(at(1), &nack(2));
    assert_eq!(open(&mut slow, at(1), &news), Ok(nack(2)));
    let heard = slow.seal_packet(at(2), &nack(3));
    assert_eq!(open(&mut fast, at(2), &heard), Ok(nack(3)));
}

#[test]
fn keys_rotate_without_a_lost_packet() {
    let (mut one, mut two) = pair();
    let mut wider = one.ring().clone();
    wider.install(key(2)).expect("room");
    one.set_ring(wider.clone());
    two.set_ring(wider.clone());
    wider.use_key(&key(2)).expect("installed");
    let before = one.seal_packet(at(1), &nack(1));
    one.set_ring(wider.clone());
    let after = one.seal_packet(at(1), &nack(2));
    // Two still seals under the old key, and opens both.
    let of_two = two.seal_packet(at(1), &nack(3));
    assert_eq!(open(&mut two, at(1), &before), Ok(nack(1)));
    assert_eq!(open(&mut two, at(1), &after), Ok(nack(2)));
    assert_eq!(open(&mut two, at(1), &before), Err(SealError::Duplicate));
    assert_eq!(open(&mut one, at(1), &of_two), Ok(nack(3)));
    wider.remove(&key(1)).expect("not the primary one");
    one.set_ring(wider);
    let of_two = two.seal_packet(at(2), &nack(4));
    assert_eq!(open(&mut one, at(2), &of_two), Err(SealError::UnknownKey));
}

#[test]
fn no_nonce_comes_twice_under_a_key_that_comes_back() {
    let (mut one, mut two) = pair();
    let mut ring = one.ring().clone();
    ring.install(key(2)).expect("room");
    two.set_ring(ring.clone());
    let packets: Vec<Vec<u8>> = [key(1), key(2), key(1)]
        .iter()
        .map(|primary| {
            ring.use_key(primary).expect("installed");
            one.set_ring(ring.clone());
            one.seal_packet(at(1), &nack(1))
        })
        .collect();
    for packet in &packets {
        assert_eq!(open(&mut two, at(1), packet), Ok(nack(1)));
    }
    assert_ne!(packets[0][38..], packets[2][38..]);
}

#[test]
fn keys_of_all_three_lengths_seal() {
    for len in [16, 24, 32] {
        let ring = Keyring::new(RingKey::from_bytes(&vec![9; len]).expect("a key"));
        let (mut one, mut two) = (member_of(ring.clone(), 1, WALL_MS), member_of(ring, 2, WALL_MS));
        tell(&mut one, &mut two, at(0));
        let packet = one.seal_packet(at(1), &nack(7));
        assert_eq!(open(&mut two, at(1), &packet), Ok(nack(7)));
    }
}

#[test]
fn senders_remembered_have_a_bound_and_a_forgotten_one_is_still_understood() {
    let (_, mut receiver) = pair();
    let mut first = member(20);
    let packet = first.seal_packet(at(1), &nack(1));
    assert_eq!(open(&mut receiver, at(1), &packet), Ok(nack(1)));
    for n in 30..60 {
        let packet = member(n).seal_packet(at(1), &nack(2));
        assert_eq!(open(&mut receiver, at(1), &packet), Ok(nack(2)));
        assert!(receiver.sender_count() <= 8);
    }
    let packet = first.seal_packet(at(1), &nack(3));
    assert_eq!(open(&mut receiver, at(1), &packet), Ok(nack(3)));
}

#[test]
fn strangers_take_no_place_among_the_senders() {
    let (mut one, mut two) = pair();
    let packet = one.seal_packet(at(1), &nack(1));
    for n in 0..100 {
        let mut forged = packet.clone();
        forged[6..22].fill(n + 100);
        assert_eq!(open(&mut two, at(1), &forged), Err(SealError::Forged));
    }
    assert_eq!(two.sender_count(), 0);
    // A far later time in a header that is not authentic moves no clock.
    let mut forged = packet.clone();
    forged[36] = 1;
    assert_eq!(open(&mut two, at(1), &forged), Err(SealError::Forged));
    assert_eq!(open(&mut two, at(1), &packet), Ok(nack(1)));
}

#[test]
fn packets_that_overtake_one_another_are_opened() {
    let (mut one, mut two) = pair();
    let mut packets: Vec<Vec<u8>> = (0..SEEN_COUNT_MAX as u64)
        .map(|n| one.seal_packet(at(1), &nack(n)))
        .collect();
    packets.reverse();
    for packet in &packets {
        assert!(open(&mut two, at(1), packet).is_ok());
    }
    for packet in &packets {
        assert_eq!(open(&mut two, at(1), packet), Err(SealError::Duplicate));
    }
}

#[test]
fn a_frame_holds_for_its_stream_and_direction_only() {
    let (mut one, two) = pair();
    let request = binding(Direction::Request);
    let frame = one.frame_sealer(at(1)).seal(&request, &ack()).expect("short");
    assert_eq!(open_frame(&two, &request, &frame).expect("as sent").message, ack());
    let others = [
        binding(Direction::Answer),
        Binding {
            client: Greeting([7; 16]),
            ..request
        },
        Binding {
            server: Greeting([7; 16]),
            ..request
        },
    ];
    for other in others {
        assert_eq!(open_frame(&two, &other, &frame), Err(SealError::Forged));
    }
}

#[test]
fn every_changed_byte_of_a_frame_is_noticed() {
    let (mut one, two) = pair();
    let binding = binding(Direction::Request);
    let frame = one.frame_sealer(at(1)).seal(&binding, &ack()).expect("short");
    for place in 0..frame.len() {
        let mut changed = frame.clone();
        changed[place] ^= 0x10;
        assert!(open_frame(&two, &binding, &changed).is_err(), "byte {place}");
    }
    for len in 0..frame.len() {
        assert!(open_frame(&two, &binding, &frame[..len]).is_err(), "cut to {len}");
    }
    let longer = [&frame[..], &[0]].concat();
    assert!(open_frame(&two, &binding, &longer).is_err());
}

#[test]
fn a_frame_that_claims_too_much_is_refused_from_its_header() {
    let (mut one, two) = pair();
    let binding = binding(Direction::Request);
    let mut frame = one.frame_sealer(at(1)).seal(&binding, &ack()).expect("short");
    frame[38..42].copy_from_slice(&u32::MAX.to_le_bytes());
    assert!(matches!(
        open_frame(&two, &binding, &frame),
        Err(SealError::Malformed(Malformed::TooLong { .. }))
    ));
}

#[test]
fn greetings_survive_their_bytes_and_nothing_else_is_one() {
    let greeting = Greeting([5; 16]);
    let mut bytes = greeting.encode();
    assert_eq!(Greeting::decode(&bytes), Ok(greeting));
    bytes[1] = KIND_SEALED;
    assert_eq!(Greeting::decode(&bytes), Err(Malformed::Kind { kind: KIND_SEALED }));
    bytes[0] = VERSION + 1;
    assert!(matches!(Greeting::decode(&bytes), Err(Malformed::Version { .. })));
}

#[test]
fn what_is_sealed_is_not_read_as_plain() {
    let packet = member(1).seal_packet(at(1), &nack(1));
    assert_eq!(decode_packet(&packet), Err(Malformed::Kind { kind: KIND_SEALED }));
}

proptest! {
    #[test]
    fn packets_survive_sealing_and_are_no_longer_than_swim_counts(sequences in vec(any::<u64>(), 0..80)) {
        let messages: Vec<Message> = sequences.into_iter().map(|sequence| Message::Nack { sequence }).collect();
        let (mut one, mut two) = pair();
        let packet = one.seal_packet(at(1), &messages);
        let counted = PACKET_OVERHEAD_LEN_BYTES + messages.iter().map(Message::len_bytes).sum::<usize>();
        prop_assert!(packet.len() <= counted);
        prop_assert_eq!(open(&mut two, at(1), &packet), Ok(messages));
    }
    #[test]
    fn garbage_is_refused_without_a_panic(mut bytes in vec(any::<u8>(), 0..1500), has_key: bool) {
        let (mut one, _) = pair();
        let _ = open(&mut one, at(1), &bytes);
        if let Some(start) = bytes.first_chunk_mut::<6>() {
            (start[0], start[1]) = (VERSION, KIND_SEALED);
            if has_key {
                start[2..].copy_from_slice(&key(1).id().0);
            }
        }
        prop_assert!(open(&mut one, at(1), &bytes).is_err());
        prop_assert!(open_frame(&one, &binding(Direction::Answer), &bytes).is_err());
        prop_assert_eq!(one.sender_count(), 0);
    }
}
