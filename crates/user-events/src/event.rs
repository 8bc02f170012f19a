//! One user event, and how long it may be.

use crate::clock::LamportTime;
use crate::message::{NUMBER, TAG, UUID, bytes_len_bytes};
use quorate_types::Uuid;
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Serf's `UserEventSizeLimit`: every member keeps and sends on each event.
pub const EVENT_LEN_BYTES_MAX: usize = 512;

/// An event for the agents of a datacenter (`PUT /v1/event/fire/:name`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserEvent {
    /// Set when it is fired; 0 before.
    pub ltime: LamportTime,
    pub id: Uuid,
    pub name: String,
    #[serde(with = "serde_bytes")]
    pub payload: Vec<u8>,
    /// Regular expressions; empty: no condition.
    pub node_filter: String,
    pub service_filter: String,
    pub tag_filter: String,
    /// Of the format, as clients see it: 1.
    pub version: u8,
}

/// Why an event is not fired. The texts are Serf's, which Consul passes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum FireError {
    #[error("user event exceeds configured limit of {EVENT_LEN_BYTES_MAX} bytes before encoding")]
    TooLong,
    #[error("encoded user event exceeds configured limit of {EVENT_LEN_BYTES_MAX} bytes after encoding")]
    EncodedTooLong,
}

impl UserEvent {
    /// What Consul takes as its name in Serf.
    const NAME_PREFIX: &'static str = "consul:event:";

    /// Refused exactly when Consul refuses it, although our encoding is shorter: clients rely on where the limit is.
    pub(crate) fn validate(&self) -> Result<(), FireError> {
        let name = Self::NAME_PREFIX.len() + self.name.len();
        let payload = self.consul_payload_len_bytes();
        if name + payload > EVENT_LEN_BYTES_MAX {
            return Err(FireError::TooLong);
        }
        // A type byte and a map of `LTime`, `Name`, `Payload` and `CC`.
        let encoded = 1 + 1 + (6 + 9) + (5 + raw_len_bytes(name)) + (8 + raw_len_bytes(payload)) + (3 + 1);
        if encoded > EVENT_LEN_BYTES_MAX {
            return Err(FireError::EncodedTooLong);
        }
        Ok(())
    }
    /// The length of Consul's msgpack map of the event.
    fn consul_payload_len_bytes(&self) -> usize {
        let optional = |key: usize, len: usize| if len == 0 { 0 } else { key + raw_len_bytes(len) };
        1 + (3 + raw_len_bytes(36))
            + (2 + raw_len_bytes(self.name.len()))
            + optional(2, self.payload.len())
            + optional(3, self.node_filter.len())
            + optional(3, self.service_filter.len())
            + optional(3, self.tag_filter.len())
            + (2 + 1)
    }
    /// At least the encoded length as a message of a packet.
    pub(crate) fn len_bytes(&self) -> usize {
        TAG + NUMBER
            + UUID
            + bytes_len_bytes(self.name.len())
            + bytes_len_bytes(self.payload.len())
            + bytes_len_bytes(self.node_filter.len())
            + bytes_len_bytes(self.service_filter.len())
            + bytes_len_bytes(self.tag_filter.len())
            + TAG
    }
}

/// A text or byte string in msgpack.
fn raw_len_bytes(len: usize) -> usize {
    len + match len {
        0..=31 => 1,
        32..=0xffff => 3,
        _ => 5,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(name: usize, payload: usize) -> UserEvent {
        UserEvent {
            name: "n".repeat(name),
            payload: vec![0; payload],
            ..UserEvent::default()
        }
    }

    #[test]
    fn the_limit_is_where_consul_has_it() {
        // 13 + 6 in Serf's name; 1 + 42 + 9 + 3 + payload + 5 in the map; 37 around both.
        assert_eq!(event(6, 395).validate(), Ok(()));
        let encoded_too_long = (396..=432).find(|len| event(6, *len).validate() != Ok(()));
        assert_eq!(
            encoded_too_long.map(|len| event(6, len).validate()),
            Some(Err(FireError::EncodedTooLong))
        );
        assert_eq!(event(6, 500).validate(), Err(FireError::TooLong));
        assert_eq!(event(600, 0).validate(), Err(FireError::TooLong));
        assert_eq!(
            FireError::TooLong.to_string(),
            "user event exceeds configured limit of 512 bytes before encoding"
        );
    }

    #[test]
    fn an_event_within_the_limit_is_well_within_a_packet() {
        let mut longest = event(1, 1);
        while longest.validate().is_ok() {
            longest.payload.push(0);
        }
        assert!(longest.len_bytes() < 600);
    }
}
