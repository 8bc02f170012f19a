//! The one place that knows how a value becomes bytes: bincode with variable-length integers, under a limit.
//!
//! In: a value, or bytes of a peer or a disk. Out: bytes, or a value, or [`Malformed`].
//! Promises: what a decoder allocates is in proportion to the bytes it was given (64 KiB for short ones, else at most
//! 256 times as many), whatever lengths those bytes claim; all bytes are consumed; nonsense is an error, never a panic.
//! Duties of a caller: types that are decoded are not recursive (the stack is not counted), hold no sequence of empty
//! things (its length costs nothing to claim), are at most 64 MiB, and stand behind a version byte of their format.
//! Not here: versions, checksums, frames (`gossip`, the RPC connection, the log).

use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;

/// Bytes that are no message of the format they claim to be.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Malformed {
    #[error("{len_bytes} bytes, more than {len_bytes_max}")]
    TooLong { len_bytes: usize, len_bytes_max: usize },
    #[error("cut short after {len_bytes} bytes")]
    TooShort { len_bytes: usize },
    #[error("{len_bytes} bytes after the end")]
    Trailing { len_bytes: usize },
    #[error("format version {version}, newer than {version_max}")]
    Version { version: u8, version_max: u8 },
    #[error("unknown kind {kind}")]
    Kind { kind: u8 },
    #[error("wrong checksum")]
    Checksum,
    #[error("{reason}")]
    Body { reason: String },
}

/// A value as bytes.
///
/// # Panics
///
/// When the type cannot be expressed at all (a sequence of unknown length): a bug in the type, found by its first test.
pub fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    bincode::serde::encode_to_vec(value, bincode::config::standard())
        .expect("writing to memory fails only for a type that cannot be expressed")
}

/// The length of [`encode`]'s result, without making it.
///
/// # Panics
///
/// As [`encode`].
pub fn encoded_len_bytes<T: Serialize>(value: &T) -> usize {
    let mut counter = bincode::enc::write::SizeWriter::default();
    bincode::serde::encode_into_writer(value, &mut counter, bincode::config::standard())
        .expect("counting fails only for a type that cannot be expressed");
    counter.bytes_written
}

/// The value that exactly these bytes are, when there are at most `len_bytes_max` of them.
pub fn decode<T: DeserializeOwned>(bytes: &[u8], len_bytes_max: usize) -> Result<T, Malformed> {
    const KIB: usize = 1024;
    const MIB: usize = 1024 * KIB;
    if bytes.len() > len_bytes_max {
        return Err(Malformed::TooLong {
            len_bytes: bytes.len(),
            len_bytes_max,
        });
    }
    // bincode counts an integer at its full width (16 bytes for the widest) though it may be written in one byte, so 16
    // times the length is never too little. Its limit is a constant of the type, hence the classes.
    let (value, consumed) = match bytes.len().saturating_mul(16) {
        0..=65_536 => decode_within::<T, { 64 * KIB }>(bytes),
        65_537..=1_048_576 => decode_within::<T, MIB>(bytes),
        1_048_577..=16_777_216 => decode_within::<T, { 16 * MIB }>(bytes),
        16_777_217..=268_435_456 => decode_within::<T, { 256 * MIB }>(bytes),
        _ => decode_within::<T, { 1024 * MIB }>(bytes),
    }?;
    match bytes.len() - consumed {
        0 => Ok(value),
        len_bytes => Err(Malformed::Trailing { len_bytes }),
    }
}

fn decode_within<T: DeserializeOwned, const LIMIT: usize>(bytes: &[u8]) -> Result<(T, usize), Malformed> {
    bincode::serde::decode_from_slice(bytes, bincode::config::standard().with_limit::<LIMIT>()).map_err(|err| match err
    {
        bincode::error::DecodeError::UnexpectedEnd { .. } => Malformed::TooShort { len_bytes: bytes.len() },
        err => Malformed::Body {
            reason: err.to_string(),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    type Sample = (u64, String, Option<u128>, BTreeMap<String, Vec<u64>>);

    fn sample() -> Sample {
        let lists = BTreeMap::from([("a".to_owned(), vec![1, u64::MAX]), (String::new(), vec![])]);
        (300, "väl".to_owned(), Some(7), lists)
    }

    #[test]
    fn a_value_survives_its_bytes() {
        let bytes = encode(&sample());
        assert_eq!(decode::<Sample>(&bytes, bytes.len()), Ok(sample()));
        assert_eq!(encoded_len_bytes(&sample()), bytes.len());
    }

    #[test]
    fn cut_lengthened_and_too_long_bytes_are_refused() {
        let mut bytes = encode(&sample());
        for len in 0..bytes.len() {
            assert!(decode::<Sample>(&bytes[..len], 1024).is_err(), "cut to {len}");
        }
        let len_bytes = bytes.len();
        assert_eq!(
            decode::<Sample>(&bytes, len_bytes - 1),
            Err(Malformed::TooLong {
                len_bytes,
                len_bytes_max: len_bytes - 1
            })
        );
        bytes.push(0);
        assert_eq!(
            decode::<Sample>(&bytes, 1024),
            Err(Malformed::Trailing { len_bytes: 1 })
        );
    }

    #[test]
    fn a_claimed_length_beyond_the_limit_is_refused_before_it_is_allocated() {
        // 253: a 64-bit length follows.
        let mut bytes = vec![253];
        bytes.extend_from_slice(&u64::MAX.to_le_bytes());
        assert!(matches!(decode::<String>(&bytes, 1024), Err(Malformed::Body { .. })));
        assert!(decode::<Vec<u64>>(&bytes, 1024).is_err());
    }

    #[test]
    fn the_densest_values_of_every_class_are_within_its_limit() {
        for count in [4_000_usize, 5_000, 70_000, 1_100_000] {
            let dense = vec![0_u128; count];
            let bytes = encode(&dense);
            assert_eq!(
                decode::<Vec<u128>>(&bytes, bytes.len()).map(|read| read.len()),
                Ok(count)
            );
        }
    }
}
