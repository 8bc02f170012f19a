//! How many bytes messages would be, without making the bytes.
//!
//! Promises: exactly the length of what `wire::gossip` encodes (a test holds it to that).

use quorate_swim::{Message, PushPull, Update};
use quorate_wire::codec::encoded_len_bytes;
use quorate_wire::gossip::{FRAME_HEADER_LEN_BYTES, PACKET_HEADER_LEN_BYTES};

/// bincode's variable-length integer.
fn number_len_bytes(number: u64) -> u64 {
    match number {
        0..=250 => 1,
        251..=0xffff => 3,
        0x1_0000..=0xffff_ffff => 5,
        _ => 9,
    }
}

fn message_len_bytes(message: &Message) -> u64 {
    match message {
        // Most of what is gossiped in trouble: two marks, two ids and the incarnation.
        Message::Update(Update::Suspect { incarnation, .. } | Update::Dead { incarnation, .. }) => {
            2 + 16 + 16 + number_len_bytes(incarnation.0)
        }
        other => encoded_len_bytes(other) as u64,
    }
}

/// Bytes of one datagram.
pub fn packet_len_bytes(messages: &[Message]) -> u64 {
    let bodies: u64 = messages.iter().map(message_len_bytes).sum();
    PACKET_HEADER_LEN_BYTES as u64 + number_len_bytes(messages.len() as u64) + bodies
}

/// Bytes of one half of an exchange of the full state.
pub fn push_pull_len_bytes(state: &PushPull) -> u64 {
    FRAME_HEADER_LEN_BYTES as u64 + 1 + encoded_len_bytes(state) as u64
}

/// Bytes of a ping, or of an ack, over a stream.
pub const STREAM_PING_LEN_BYTES: u64 = FRAME_HEADER_LEN_BYTES as u64 + 1 + 16;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::{World, describe, id_of};
    use proptest::prelude::*;
    use quorate_swim::{RemoteMember, Status};
    use quorate_types::Incarnation;
    use quorate_wire::gossip::{StreamMessage, encode_frame, encode_packet};
    use std::sync::Arc;

    fn any_message() -> impl Strategy<Value = Message> {
        let number = prop_oneof![0_u64..300, 60_000_u64..70_000, any::<u64>()];
        (0_u8..8, number, any::<u32>()).prop_map(|(kind, number, index)| {
            let (member, from, incarnation) = (id_of(index), id_of(index / 2), Incarnation(number));
            let (sequence, target) = (number, member);
            let state = Arc::new(describe(index & 0xff_ffff));
            match kind {
                0 => Message::Ping { sequence, target },
                1 => Message::PingReq {
                    sequence,
                    target,
                    address: state.address,
                    wants_nack: true,
                },
                2 => Message::Nack { sequence },
                3 => Message::Update(Update::Alive {
                    member: state,
                    incarnation,
                }),
                4 | 5 => Message::Update(Update::Suspect {
                    member,
                    incarnation,
                    from,
                }),
                _ => Message::Update(Update::Dead {
                    member,
                    incarnation,
                    from,
                }),
            }
        })
    }

    proptest! {
        #[test]
        fn counted_bytes_are_encoded_bytes(messages in prop::collection::vec(any_message(), 0..300)) {
            prop_assert_eq!(packet_len_bytes(&messages), encode_packet(&messages).len() as u64);
        }
        #[test]
        fn counted_bytes_of_a_push_pull_are_encoded_bytes(count in 0_u32..300, incarnation in any::<u64>()) {
            let config = quorate_swim::Config::lan();
            let mut state = World::strangers(1, &config, 1).swim(0).push_pull_request();
            state.members = (0..count)
                .map(|index| RemoteMember {
                    member: Arc::new(describe(index)),
                    incarnation: Incarnation(incarnation),
                    status: Status::Suspect,
                    from: id_of(index),
                })
                .collect();
            let counted = push_pull_len_bytes(&state);
            prop_assert_eq!(counted, encode_frame(&StreamMessage::PushPull(state)).unwrap().len() as u64);
        }
    }

    #[test]
    fn a_ping_over_a_stream_has_its_length() {
        let frame = encode_frame(&StreamMessage::Ping { target: id_of(3) }).unwrap();
        assert_eq!(frame.len() as u64, STREAM_PING_LEN_BYTES);
    }
}
