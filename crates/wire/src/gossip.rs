//! Gossip's bytes: datagrams and stream frames.
//!
//! ```text
//! packet  version 1 | kind 1 | crc32c of body, LE 4 |                    body: a list of messages
//! frame   version 1 | kind 1 | crc32c of body, LE 4 | length of body, LE 4 | body: one stream message
//! ```
//!
//! In: messages of `swim`, or bytes. Out: bytes, or messages, or [`Malformed`].
//! Promises: a decoder never panics, takes no more memory than `codec` promises, and gives back what was encoded.
//! The kind says how the body is to be read: `KIND_PLAIN` as it is. What has another kind looks otherwise: see `seal`.
//! Not here: who may say what (`swim`), sockets (`gossip`).

use crate::codec::{Malformed, decode, encode};
use quorate_swim::{Message, PushPull, Refusal};
use quorate_types::NodeId;
use quorate_types::limits::GOSSIP_PACKET_LEN_BYTES_MAX;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use zeroize::Zeroizing;

/// The format this build speaks, and the newest it reads.
pub const VERSION: u8 = 1;
pub const KIND_PLAIN: u8 = 0;
/// Under a key of the ring: `seal`.
pub const KIND_SEALED: u8 = 1;
/// What both ends of a stream say before they send sealed frames: `seal`.
pub const KIND_GREETING: u8 = 2;
pub const PACKET_HEADER_LEN_BYTES: usize = 6;
pub const FRAME_HEADER_LEN_BYTES: usize = 10;
/// The full state of the largest pool, each member described at greatest length.
pub const FRAME_BODY_LEN_BYTES_MAX: usize = 16 * 1024 * 1024;

/// What is said over a stream. New variants are appended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum StreamMessage {
    Ping {
        target: NodeId,
    },
    Ack {
        target: NodeId,
    },
    PushPull(PushPull),
    /// In place of a `PushPull`: the sender is not let in.
    Refused(Refusal),
    /// In place of any answer: what was sent could not be read. Never sealed, so it is no more than a reason to tell.
    Unreadable(Unreadable),
    /// A question about the receiver's keyring, or a change of it. Sealed, where there is a keyring.
    Keyring(KeyringRequest),
    KeyringReply(KeyringReply),
}

/// Why a stream's first frame could not be read. memberlist's words, from where the reader of the answer stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error, Serialize, Deserialize)]
pub enum Unreadable {
    /// It was plaintext, and the answering member takes sealed frames only.
    #[error("remote state is encrypted and encryption is not configured, or encrypt_verify_outgoing is off")]
    Plaintext,
    /// It was to be sealed, and the answering member has no keyring.
    #[error("encryption is configured but remote state is not encrypted")]
    NoKeyring,
    #[error("no installed keys could decrypt the message")]
    UnknownKey,
    #[error("the message is not authentic")]
    Forged,
}

/// A gossip key under way: unlike `keyring::RingKey` of any length, as each receiver says for itself what is wrong with it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyBytes(pub Zeroizing<Vec<u8>>);

impl std::fmt::Debug for KeyBytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "KeyBytes({} bytes)", self.0.len())
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum KeyringRequest {
    List,
    Install(KeyBytes),
    Use(KeyBytes),
    Remove(KeyBytes),
}

/// What became of a request. New fields are appended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyringReply {
    /// Why the receiver did not do it.
    pub failure: Option<String>,
    /// All keys of its ring, the primary one first. Answered to `List` only.
    pub keys: Vec<KeyBytes>,
}

fn header(body: &[u8]) -> [u8; PACKET_HEADER_LEN_BYTES] {
    let [a, b, c, d] = crc32c::crc32c(body).to_le_bytes();
    [VERSION, KIND_PLAIN, a, b, c, d]
}

pub(crate) fn check_version(version: u8) -> Result<(), Malformed> {
    match version {
        VERSION => Ok(()),
        version => Err(Malformed::Version {
            version,
            version_max: VERSION,
        }),
    }
}

fn check_header(version: u8, kind: u8) -> Result<(), Malformed> {
    check_version(version)?;
    if kind != KIND_PLAIN {
        return Err(Malformed::Kind { kind });
    }
    Ok(())
}

/// One datagram. `swim` sees to it that the messages fit.
pub fn encode_packet(messages: &[Message]) -> Vec<u8> {
    let body = encode(&messages);
    let mut packet = Vec::with_capacity(PACKET_HEADER_LEN_BYTES + body.len());
    packet.extend_from_slice(&header(&body));
    packet.extend_from_slice(&body);
    packet
}

pub fn decode_packet(packet: &[u8]) -> Result<Vec<Message>, Malformed> {
    if packet.len() > GOSSIP_PACKET_LEN_BYTES_MAX {
        return Err(Malformed::TooLong {
            len_bytes: packet.len(),
            len_bytes_max: GOSSIP_PACKET_LEN_BYTES_MAX,
        });
    }
    let Some(([version, kind, crc @ ..], body)) = packet.split_first_chunk::<PACKET_HEADER_LEN_BYTES>() else {
        return Err(Malformed::TooShort {
            len_bytes: packet.len(),
        });
    };
    check_header(*version, *kind)?;
    if crc32c::crc32c(body) != u32::from_le_bytes(*crc) {
        return Err(Malformed::Checksum);
    }
    decode_messages(body)
}

/// What a packet says, whether it was sealed or not.
pub(crate) fn decode_messages(body: &[u8]) -> Result<Vec<Message>, Malformed> {
    decode(body, GOSSIP_PACKET_LEN_BYTES_MAX)
}

/// The kind of a packet or frame, of its first two bytes.
pub fn kind(first: [u8; 2]) -> Result<u8, Malformed> {
    check_version(first[0])?;
    match first[1] {
        kind @ (KIND_PLAIN | KIND_SEALED | KIND_GREETING) => Ok(kind),
        kind => Err(Malformed::Kind { kind }),
    }
}

/// What is known of a frame before its body was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    /// At most `FRAME_BODY_LEN_BYTES_MAX`.
    pub body_len_bytes: usize,
    crc: u32,
}

/// One frame, or `TooLong` when the message does not fit one.
pub fn encode_frame(message: &StreamMessage) -> Result<Vec<u8>, Malformed> {
    let body = encode(message);
    let too_long = Malformed::TooLong {
        len_bytes: body.len(),
        len_bytes_max: FRAME_BODY_LEN_BYTES_MAX,
    };
    if body.len() > FRAME_BODY_LEN_BYTES_MAX {
        return Err(too_long);
    }
    let body_len = u32::try_from(body.len()).map_err(|_| too_long)?;
    let mut frame = Vec::with_capacity(FRAME_HEADER_LEN_BYTES + body.len());
    frame.extend_from_slice(&header(&body));
    frame.extend_from_slice(&body_len.to_le_bytes());
    frame.extend_from_slice(&body);
    Ok(frame)
}

pub fn decode_frame_header(header: &[u8; FRAME_HEADER_LEN_BYTES]) -> Result<FrameHeader, Malformed> {
    let [version, kind, a, b, c, d, w, x, y, z] = *header;
    check_header(version, kind)?;
    let body_len = u32::from_le_bytes([w, x, y, z]);
    let body_len_bytes = usize::try_from(body_len).unwrap_or(usize::MAX);
    if body_len_bytes > FRAME_BODY_LEN_BYTES_MAX {
        return Err(Malformed::TooLong {
            len_bytes: body_len_bytes,
            len_bytes_max: FRAME_BODY_LEN_BYTES_MAX,
        });
    }
    Ok(FrameHeader {
        body_len_bytes,
        crc: u32::from_le_bytes([a, b, c, d]),
    })
}

pub fn decode_frame_body(header: FrameHeader, body: &[u8]) -> Result<StreamMessage, Malformed> {
    if body.len() != header.body_len_bytes {
        return Err(Malformed::TooShort { len_bytes: body.len() });
    }
    if crc32c::crc32c(body) != header.crc {
        return Err(Malformed::Checksum);
    }
    decode(body, FRAME_BODY_LEN_BYTES_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::{btree_map, vec};
    use proptest::prelude::*;
    use quorate_swim::{Config, Intent, MemberState, PACKET_OVERHEAD_LEN_BYTES, RemoteMember, Status, Update};
    use quorate_types::{Coordinate, Incarnation, Uuid};
    use std::collections::BTreeMap;
    use std::net::{IpAddr, SocketAddr};
    use std::sync::Arc;

    fn any_id() -> impl Strategy<Value = NodeId> {
        any::<[u8; 16]>().prop_map(|bytes| NodeId(Uuid::from_bytes(bytes)))
    }
    fn any_address() -> impl Strategy<Value = SocketAddr> {
        // Mapped addresses, scopes and flows do not travel: a gossip address has none.
        (any::<IpAddr>(), any::<u16>()).prop_map(|(ip, port)| SocketAddr::new(ip, port))
    }
    fn any_incarnation() -> impl Strategy<Value = Incarnation> {
        any::<u64>().prop_map(Incarnation)
    }
    fn any_member() -> impl Strategy<Value = Arc<MemberState>> {
        let tags = btree_map(".{0,12}", ".{0,300}", 0..6);
        (any_id(), ".{0,40}", any_address(), ".{0,20}", tags).prop_map(|(id, name, address, datacenter, tags)| {
            Arc::new(MemberState {
                id,
                name,
                address,
                datacenter,
                tags,
            })
        })
    }
    fn any_update() -> impl Strategy<Value = Update> {
        let about = || (any_id(), any_incarnation(), any_id());
        prop_oneof![
            (any_member(), any_incarnation()).prop_map(|(member, incarnation)| Update::Alive { member, incarnation }),
            about().prop_map(|(member, incarnation, from)| Update::Suspect {
                member,
                incarnation,
                from
            }),
            about().prop_map(|(member, incarnation, from)| Update::Dead {
                member,
                incarnation,
                from
            }),
            (about(), any::<bool>()).prop_map(|((member, incarnation, from), prune)| Update::Left {
                member,
                incarnation,
                from,
                prune
            }),
            (any_id(), any::<u64>(), any_id(), any::<bool>()).prop_map(|(member, time, from, prune)| {
                Update::LeaveIntent {
                    member,
                    time,
                    from,
                    prune,
                }
            }),
            (any_id(), any::<u64>()).prop_map(|(member, time)| Update::JoinIntent { member, time }),
        ]
    }
    fn any_coordinate() -> impl Strategy<Value = Coordinate> {
        (prop::array::uniform8(any::<f64>()), any::<[f64; 3]>()).prop_map(|(vector, [error, adjustment, height])| {
            Coordinate {
                vector,
                error,
                adjustment,
                height,
            }
        })
    }
    fn any_message() -> impl Strategy<Value = Message> {
        prop_oneof![
            (any::<u64>(), any_id()).prop_map(|(sequence, target)| Message::Ping { sequence, target }),
            (any::<u64>(), any_id()).prop_map(|(sequence, target)| Message::Ack { sequence, target }),
            any::<u64>().prop_map(|sequence| Message::Nack { sequence }),
            (any::<u64>(), any_id(), any_address(), any::<bool>()).prop_map(
                |(sequence, target, address, wants_nack)| {
                    Message::PingReq {
                        sequence,
                        target,
                        address,
                        wants_nack,
                    }
                }
            ),
            any_update().prop_map(Message::Update),
            vec(any::<u8>(), 0..300).prop_map(Message::Payload),
            any_coordinate().prop_map(Message::Coordinate),
        ]
    }
    fn any_intent() -> impl Strategy<Value = Intent> {
        let leave = proptest::option::of(any_id());
        (any_id(), any::<u64>(), leave).prop_map(|(member, time, leave)| Intent { member, time, leave })
    }
    fn any_stream_message() -> impl Strategy<Value = StreamMessage> {
        let status = prop_oneof![
            Just(Status::Alive),
            Just(Status::Suspect),
            Just(Status::Dead),
            Just(Status::Left)
        ];
        let remote =
            (any_member(), any_incarnation(), status, any_id()).prop_map(|(member, incarnation, status, from)| {
                RemoteMember {
                    member,
                    incarnation,
                    status,
                    from,
                }
            });
        prop_oneof![
            any_id().prop_map(|target| StreamMessage::Ping { target }),
            any_id().prop_map(|target| StreamMessage::Ack { target }),
            vec(any::<u8>(), 0..40).prop_map(|key| {
                let key = KeyBytes(Zeroizing::new(key));
                StreamMessage::Keyring(KeyringRequest::Install(key))
            }),
            (proptest::option::of(".{0,9}"), vec(vec(any::<u8>(), 0..33), 0..3)).prop_map(|(failure, keys)| {
                let keys = keys.into_iter().map(|key| KeyBytes(Zeroizing::new(key))).collect();
                StreamMessage::KeyringReply(KeyringReply { failure, keys })
            }),
            Just(StreamMessage::Unreadable(Unreadable::NoKeyring)),
            (
                any_id(),
                vec(remote, 0..5),
                vec(any::<u8>(), 0..40),
                vec(any_intent(), 0..4)
            )
                .prop_map(|(from, members, payload, intents)| StreamMessage::PushPull(PushPull {
                    from,
                    is_whole: members.len() > 1,
                    digest: from.0.as_u128() as u64,
                    time: intents.first().map_or(7, |intent| intent.time),
                    members,
                    payload,
                    intents,
                })),
            (".{0,9}", ".{0,9}").prop_map(|(name, reason)| StreamMessage::Refused(Refusal::Invalid { name, reason })),
        ]
    }
    fn read_frame(frame: &[u8]) -> Result<StreamMessage, Malformed> {
        let Some((header, body)) = frame.split_first_chunk() else {
            return Err(Malformed::TooShort { len_bytes: frame.len() });
        };
        decode_frame_body(decode_frame_header(header)?, body)
    }
    fn sealed_by_crc(mut bytes: Vec<u8>, header_len_bytes: usize) -> Vec<u8> {
        let crc = crc32c::crc32c(&bytes[header_len_bytes..]).to_le_bytes();
        bytes[0] = VERSION;
        bytes[1] = KIND_PLAIN;
        bytes[2..6].copy_from_slice(&crc);
        bytes
    }

    proptest! {
        #[test]
        fn a_packet_survives_its_bytes_and_is_no_longer_than_swim_counts(messages in vec(any_message(), 0..6)) {
            let counted = PACKET_OVERHEAD_LEN_BYTES + messages.iter().map(Message::len_bytes).sum::<usize>();
            let packet = encode_packet(&messages);
            prop_assert!(packet.len() <= counted);
            if packet.len() <= GOSSIP_PACKET_LEN_BYTES_MAX {
                prop_assert_eq!(decode_packet(&packet), Ok(messages));
            } else {
                let is_refused = matches!(decode_packet(&packet), Err(Malformed::TooLong { .. }));
                prop_assert!(is_refused);
            }
        }
        #[test]
        fn a_frame_survives_its_bytes(message in any_stream_message()) {
            let frame = encode_frame(&message).unwrap();
            prop_assert_eq!(read_frame(&frame), Ok(message));
        }
        #[test]
        fn garbage_is_refused_without_a_panic(bytes in vec(any::<u8>(), 10..1500)) {
            let _ = decode_packet(&bytes);
            let _ = read_frame(&bytes);
            // With a good header, so that the body is read.
            let _ = decode_packet(&sealed_by_crc(bytes.clone(), PACKET_HEADER_LEN_BYTES));
            let mut frame = bytes;
            let body_len = u32::try_from(frame.len() - FRAME_HEADER_LEN_BYTES).unwrap();
            frame[6..10].copy_from_slice(&body_len.to_le_bytes());
            let _ = read_frame(&sealed_by_crc(frame, FRAME_HEADER_LEN_BYTES));
        }
        #[test]
        fn a_changed_byte_is_noticed(messages in vec(any_message(), 1..3), place: prop::sample::Index, bit in 0_u8..8) {
            let mut packet = encode_packet(&messages);
            let place = place.index(packet.len());
            packet[place] ^= 1_u8 << bit;
            prop_assert!(decode_packet(&packet).is_err());
        }
    }

    #[test]
    fn newer_versions_and_sealed_packets_are_refused_by_name() {
        let mut packet = encode_packet(&[Message::Nack { sequence: 1 }]);
        packet[0] = 2;
        assert_eq!(
            decode_packet(&packet),
            Err(Malformed::Version {
                version: 2,
                version_max: 1
            })
        );
        packet[0] = VERSION;
        packet[1] = KIND_SEALED;
        assert_eq!(decode_packet(&packet), Err(Malformed::Kind { kind: KIND_SEALED }));
    }

    #[test]
    fn a_frame_that_claims_too_much_is_refused_from_its_header() {
        let mut frame = encode_frame(&StreamMessage::Ack {
            target: NodeId::default(),
        })
        .unwrap();
        frame[6..10].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(matches!(read_frame(&frame), Err(Malformed::TooLong { .. })));
    }

    #[test]
    fn the_largest_pool_of_the_longest_members_fits_one_frame() {
        let id = NodeId(Uuid::from_bytes([0xff; 16]));
        let member = Arc::new(MemberState {
            id,
            name: "n".repeat(quorate_swim::NAME_LEN_BYTES_MAX),
            address: SocketAddr::new(IpAddr::from([0x20_u8; 16]), u16::MAX),
            datacenter: "d".repeat(quorate_swim::DATACENTER_LEN_BYTES_MAX),
            tags: BTreeMap::from([("t".to_owned(), "v".repeat(506))]),
        });
        assert_eq!(member.validate(), Ok(()));
        let remote = RemoteMember {
            member,
            incarnation: Incarnation(u64::MAX),
            status: Status::Left,
            from: id,
        };
        let state = PushPull {
            from: id,
            members: vec![remote; Config::lan().member_count_max],
            payload: vec![0xff; crate::events::STATE_LEN_BYTES_MAX],
            is_whole: true,
            digest: u64::MAX,
            time: u64::MAX,
            intents: vec![
                Intent {
                    member: id,
                    time: u64::MAX,
                    leave: Some(id)
                };
                1024
            ],
        };
        assert!(encode_frame(&StreamMessage::PushPull(state)).is_ok());
    }
}
