//! What an agent keeps on its own disk between restarts: one small record a file.
//!
//! Layout: format version (1 byte), kind (1 byte), CRC32C of the body (4 bytes, little-endian), body (bincode).
//! In: a value, or a file's bytes. Out: bytes, or the value, or [`Malformed`]: a flipped or missing byte is found.

use crate::codec::{self, Malformed};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Written now; anything above is from a newer release and refused by number.
pub const VERSION: u8 = 1;
/// No record of this kind is larger: a service with 64 metadata pairs and hundreds of checks stays far below.
pub const LEN_BYTES_MAX: usize = 1024 * 1024;
const HEADER_LEN_BYTES: usize = 6;

/// What a file holds, so that one kind is never read as another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum LocalKind {
    Service = 1,
    Check = 2,
    TtlState = 3,
    /// Gossip addresses of the members last known alive.
    Members = 4,
    /// What this agent's gossip used at most, so that its next life begins above.
    Past = 5,
}

/// A record as a file's content.
pub fn encode_local<T: Serialize>(kind: LocalKind, value: &T) -> Vec<u8> {
    let body = codec::encode(value);
    let mut bytes = Vec::with_capacity(HEADER_LEN_BYTES + body.len());
    bytes.push(VERSION);
    bytes.push(kind as u8);
    bytes.extend_from_slice(&crc32c::crc32c(&body).to_le_bytes());
    bytes.extend_from_slice(&body);
    bytes
}

/// The record in a file's content.
pub fn decode_local<T: DeserializeOwned>(kind: LocalKind, bytes: &[u8]) -> Result<T, Malformed> {
    let Some((header, body)) = bytes.split_at_checked(HEADER_LEN_BYTES) else {
        return Err(Malformed::TooShort { len_bytes: bytes.len() });
    };
    if header[0] != VERSION {
        return Err(Malformed::Version {
            version: header[0],
            version_max: VERSION,
        });
    }
    if header[1] != kind as u8 {
        return Err(Malformed::Kind { kind: header[1] });
    }
    if header[2..6] != crc32c::crc32c(body).to_le_bytes() {
        return Err(Malformed::Checksum);
    }
    codec::decode(body, LEN_BYTES_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use quorate_types::ServiceDefinition;

    #[test]
    fn every_flipped_or_missing_byte_is_found() {
        let value = ServiceDefinition::default();
        let bytes = encode_local(LocalKind::Service, &value);
        assert_eq!(decode_local::<ServiceDefinition>(LocalKind::Service, &bytes), Ok(value));
        for position in 0..bytes.len() {
            let mut flipped = bytes.clone();
            flipped[position] ^= 0x10;
            assert!(
                decode_local::<ServiceDefinition>(LocalKind::Service, &flipped).is_err(),
                "byte {position}"
            );
            assert!(decode_local::<ServiceDefinition>(LocalKind::Service, &bytes[..position]).is_err());
        }
        assert!(decode_local::<ServiceDefinition>(LocalKind::Check, &bytes).is_err());
    }
}
