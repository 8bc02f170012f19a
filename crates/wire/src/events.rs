//! The bytes of user events and queries: payloads of gossip's packets, and of its exchanges of full state.
//!
//! ```text
//! in a packet     version 1 | a list of messages
//! in an exchange  version 1 | the state
//! ```
//!
//! In: messages of `user-events`, or bytes. Out: bytes, or messages, or [`Malformed`].
//! Promises: a decoder never panics, takes no more memory than `codec` promises, and gives back what was encoded.
//! Not here: checksums and seals (of the packet or frame that carries them), who may say what (`user-events`).

use crate::codec::{Malformed, decode, encode};
use quorate_types::limits::GOSSIP_PACKET_LEN_BYTES_MAX;
use quorate_user_events::{EventState, Message};

/// The format this build speaks, and the newest it reads.
pub const VERSION: u8 = 1;
/// Bytes of a payload that are not messages: version, and the count of the messages.
pub const PAYLOAD_OVERHEAD_LEN_BYTES: usize = 4;
/// As many events as are kept, each at its longest, within the frame of the largest pool.
pub const STATE_LEN_BYTES_MAX: usize = 1024 * 1024;

fn with_version(mut body: Vec<u8>) -> Vec<u8> {
    body.insert(0, VERSION);
    body
}

fn body_of(payload: &[u8]) -> Result<&[u8], Malformed> {
    match payload.split_first() {
        None => Err(Malformed::TooShort { len_bytes: 0 }),
        Some((&VERSION, body)) => Ok(body),
        Some((&version, _)) => Err(Malformed::Version {
            version,
            version_max: VERSION,
        }),
    }
}

/// A packet's payload. The driver sees to it that the messages fit.
pub fn encode_payload(messages: &[Message]) -> Vec<u8> {
    with_version(encode(&messages))
}

pub fn decode_payload(payload: &[u8]) -> Result<Vec<Message>, Malformed> {
    decode(body_of(payload)?, GOSSIP_PACKET_LEN_BYTES_MAX)
}

/// An exchange's payload.
pub fn encode_state(state: &EventState) -> Vec<u8> {
    with_version(encode(state))
}

pub fn decode_state(payload: &[u8]) -> Result<EventState, Malformed> {
    decode(body_of(payload)?, STATE_LEN_BYTES_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;
    use quorate_types::{NodeId, Uuid};
    use quorate_user_events::{LamportTime, Query, QueryId, UserEvent};
    use std::net::{IpAddr, SocketAddr};
    use std::sync::Arc;
    use std::time::Duration;

    fn any_uuid() -> impl Strategy<Value = Uuid> {
        any::<[u8; 16]>().prop_map(Uuid::from_bytes)
    }
    fn any_bytes() -> impl Strategy<Value = Vec<u8>> {
        vec(any::<u8>(), 0..300)
    }
    fn any_event() -> impl Strategy<Value = Arc<UserEvent>> {
        let filters = (".{0,40}", ".{0,40}", ".{0,300}");
        (any::<u64>(), any_uuid(), ".{0,60}", any_bytes(), filters, any::<u8>()).prop_map(
            |(ltime, id, name, payload, (node_filter, service_filter, tag_filter), version)| {
                Arc::new(UserEvent {
                    ltime: LamportTime(ltime),
                    id,
                    name,
                    payload,
                    node_filter,
                    service_filter,
                    tag_filter,
                    version,
                })
            },
        )
    }
    fn any_query() -> impl Strategy<Value = Arc<Query>> {
        let address = (any::<IpAddr>(), any::<u16>()).prop_map(|(ip, port)| SocketAddr::new(ip, port));
        let about = (any::<u64>(), any::<u64>(), any_uuid(), address);
        let timeout = (any::<u64>(), 0..1_000_000_000_u32).prop_map(|(secs, nanos)| Duration::new(secs, nanos));
        (about, timeout, any::<bool>(), ".{0,300}", any_bytes()).prop_map(
            |((ltime, id, from, address), timeout, wants_ack, name, payload)| {
                Arc::new(Query {
                    ltime: LamportTime(ltime),
                    id: QueryId(id),
                    from: NodeId(from),
                    address,
                    timeout,
                    wants_ack,
                    name,
                    payload,
                })
            },
        )
    }
    fn any_message() -> impl Strategy<Value = Message> {
        let about = || (any::<u64>().prop_map(QueryId), any_uuid().prop_map(NodeId));
        prop_oneof![
            any_event().prop_map(Message::Event),
            any_query().prop_map(Message::Query),
            about().prop_map(|(query, from)| Message::QueryAck { query, from }),
            (about(), any_bytes()).prop_map(|((query, from), payload)| Message::QueryResponse { query, from, payload }),
        ]
    }

    proptest! {
        #[test]
        fn a_payload_survives_its_bytes_and_is_no_longer_than_counted(messages in vec(any_message(), 0..4)) {
            let counted = PAYLOAD_OVERHEAD_LEN_BYTES + messages.iter().map(Message::len_bytes).sum::<usize>();
            let payload = encode_payload(&messages);
            prop_assert!(payload.len() <= counted);
            if payload.len() <= GOSSIP_PACKET_LEN_BYTES_MAX {
                prop_assert_eq!(decode_payload(&payload), Ok(messages));
            }
        }
        #[test]
        fn a_state_survives_its_bytes(events in vec(any_event(), 0..4), event_clock: u64, query_clock: u64) {
            let (event_clock, query_clock) = (LamportTime(event_clock), LamportTime(query_clock));
            let state = EventState { event_clock, query_clock, events };
            prop_assert_eq!(decode_state(&encode_state(&state)), Ok(state));
        }
        #[test]
        fn garbage_is_refused_without_a_panic(mut bytes in vec(any::<u8>(), 0..1500)) {
            let _ = decode_payload(&bytes);
            let _ = decode_state(&bytes);
            if let Some(version) = bytes.first_mut() {
                *version = VERSION;
            }
            let _ = decode_payload(&bytes);
            let _ = decode_state(&bytes);
        }
    }

    #[test]
    fn a_newer_version_is_refused_by_name() {
        let mut payload = encode_payload(&[]);
        payload[0] = 2;
        let newer = Malformed::Version {
            version: 2,
            version_max: 1,
        };
        assert_eq!(decode_payload(&payload), Err(newer.clone()));
        assert_eq!(decode_state(&payload), Err(newer));
        assert!(decode_payload(&[]).is_err());
    }
}
