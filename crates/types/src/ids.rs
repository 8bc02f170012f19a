//! Identities and positions, each a type of its own so that they cannot be mixed up.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// A 128-bit UUID in RFC 9562 text form (8-4-4-4-12 lower-case hexadecimal digits).
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Uuid([u8; 16]);

/// Why a text is no UUID. The wording is what Consul 1.8.7 answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UuidError {
    WrongLength,
    BadFormat,
}

impl fmt::Display for UuidError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::WrongLength => "uuid string is wrong length",
            Self::BadFormat => "uuid is improperly formatted",
        })
    }
}

impl std::error::Error for UuidError {}

impl Uuid {
    pub const NIL: Self = Self([0; 16]);

    /// A version 4 UUID (RFC 9562 section 5.4) from 128 random bits given by the caller.
    pub const fn from_random_bytes(mut bytes: [u8; 16]) -> Self {
        bytes[6] = (bytes[6] & 0x0f) | 0x40;
        bytes[8] = (bytes[8] & 0x3f) | 0x80;
        Self(bytes)
    }
    /// The UUID with exactly these bits.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
    pub const fn is_nil(&self) -> bool {
        u128::from_be_bytes(self.0) == 0
    }
    pub const fn as_u128(&self) -> u128 {
        u128::from_be_bytes(self.0)
    }
}

impl fmt::Display for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let n = self.as_u128();
        write!(
            f,
            "{:08x}-{:04x}-{:04x}-{:04x}-{:012x}",
            n >> 96,
            (n >> 80) & 0xffff,
            (n >> 64) & 0xffff,
            (n >> 48) & 0xffff,
            n & 0xffff_ffff_ffff
        )
    }
}

impl fmt::Debug for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Uuid {
    type Err = UuidError;
    fn from_str(text: &str) -> Result<Self, UuidError> {
        if text.len() != 36 {
            return Err(UuidError::WrongLength);
        }
        let mut n: u128 = 0;
        for (position, byte) in text.bytes().enumerate() {
            if matches!(position, 8 | 13 | 18 | 23) {
                if byte != b'-' {
                    return Err(UuidError::BadFormat);
                }
                continue;
            }
            let digit = (byte as char).to_digit(16).ok_or(UuidError::BadFormat)?;
            n = (n << 4) | u128::from(digit);
        }
        Ok(Self(n.to_be_bytes()))
    }
}

/// A node's identity: made once, kept in the data directory, and its identity in Raft and gossip whatever its address.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct NodeId(pub Uuid);

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl FromStr for NodeId {
    type Err = UuidError;
    fn from_str(text: &str) -> Result<Self, UuidError> {
        text.parse().map(Self)
    }
}

macro_rules! number {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub struct $name(pub u64);

        impl $name {
            pub const ZERO: Self = Self(0);
            pub const fn next(self) -> Self {
                Self(self.0 + 1)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }
    };
}

number!(
    /// Raft's term (Ongaro and Ousterhout 2014, section 5.1).
    Term
);
number!(
    /// A position in the Raft log.
    LogIndex
);
number!(
    /// The index that clients see: the log index plus the offset a restore raises.
    ModifyIndex
);
number!(
    /// SWIM's incarnation (Das, Gupta and Motivala 2002, section 4.2). Begins at the start's wall-clock milliseconds.
    Incarnation
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uuid_survives_its_text_form() {
        let text = "b1860f4a-837b-c44e-07af-081fdf153009";
        assert_eq!(text.parse::<Uuid>().unwrap().to_string(), text);
        assert_eq!(
            "B1860F4A-837B-C44E-07AF-081FDF153009"
                .parse::<Uuid>()
                .unwrap()
                .to_string(),
            text
        );
    }

    #[test]
    fn what_is_no_uuid_is_refused_with_consuls_words() {
        assert_eq!(
            "abc".parse::<Uuid>().unwrap_err().to_string(),
            "uuid string is wrong length"
        );
        let bad = "b1860f4a+837b-c44e-07af-081fdf153009".parse::<Uuid>().unwrap_err();
        assert_eq!(bad.to_string(), "uuid is improperly formatted");
        assert!("g1860f4a-837b-c44e-07af-081fdf153009".parse::<Uuid>().is_err());
    }

    #[test]
    fn random_uuids_carry_version_4_and_the_rfc_variant() {
        let text = Uuid::from_random_bytes([0xff; 16]).to_string();
        assert_eq!(text, "ffffffff-ffff-4fff-bfff-ffffffffffff");
    }
}
