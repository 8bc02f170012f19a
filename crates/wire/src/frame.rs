//! Frames between agents on the server port: preamble, handshake, and calls that share a connection.
//!
//! ```text
//! connection: version u8 | kind u8, then frames both ways: first Hello, answered by HelloReply
//! frame:      body length u32 | call id u64 | what u8 | body      (little-endian)
//! ```
//!
//! The one who connected numbers its calls; a reply carries its call's number. A body's length is checked against a limit
//! before any of it is read.
//! Not here: sockets (`replica`), what the bodies say (`rpc`, `raft`).

use crate::codec::{self, Malformed};
use quorate_types::{NodeId, Uuid};
use serde::{Deserialize, Serialize};

/// The newest protocol this code speaks.
pub const PROTOCOL_VERSION: u8 = 1;
pub const FRAME_HEADER_LEN_BYTES: usize = 13;
/// Before the handshake is over nobody may send more than this.
pub const HELLO_LEN_BYTES_MAX: usize = 4096;

/// What a connection is for. Each kind has connections of its own, so that no large frame holds up a heartbeat.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ConnectionKind {
    /// Votes, entries, heartbeats.
    Raft,
    /// Requests of agents and servers.
    Request,
    /// Snapshots.
    Bulk,
}

impl ConnectionKind {
    pub const fn as_byte(self) -> u8 {
        match self {
            Self::Raft => 1,
            Self::Request => 2,
            Self::Bulk => 3,
        }
    }
    pub const fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            1 => Some(Self::Raft),
            2 => Some(Self::Request),
            3 => Some(Self::Bulk),
            _ => None,
        }
    }
}

/// The first two bytes of a connection.
pub const fn preamble(kind: ConnectionKind) -> [u8; 2] {
    [PROTOCOL_VERSION, kind.as_byte()]
}

pub fn decode_preamble(bytes: [u8; 2]) -> Result<ConnectionKind, Malformed> {
    if bytes[0] == 0 || bytes[0] > PROTOCOL_VERSION {
        return Err(Malformed::Version {
            version: bytes[0],
            version_max: PROTOCOL_VERSION,
        });
    }
    ConnectionKind::from_byte(bytes[1]).ok_or(Malformed::Kind { kind: bytes[1] })
}

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    Hello,
    HelloReply,
    /// A call; its body is what the connection's kind says.
    Call,
    /// A call of one server to another about clusters (`raft::Control`); on request connections only.
    Control,
    Reply,
    /// The caller no longer waits.
    Cancel,
}

impl What {
    const fn as_byte(self) -> u8 {
        match self {
            Self::Hello => 1,
            Self::HelloReply => 2,
            Self::Call => 3,
            Self::Control => 4,
            Self::Reply => 5,
            Self::Cancel => 6,
        }
    }
    const fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            1 => Some(Self::Hello),
            2 => Some(Self::HelloReply),
            3 => Some(Self::Call),
            4 => Some(Self::Control),
            5 => Some(Self::Reply),
            6 => Some(Self::Cancel),
            _ => None,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    pub body_len_bytes: usize,
    pub id: u64,
    pub what: What,
}

impl FrameHeader {
    /// # Panics
    ///
    /// When the body is longer than a frame can say: its sender checks the limit first.
    pub fn encode(&self) -> [u8; FRAME_HEADER_LEN_BYTES] {
        let mut bytes = [0; FRAME_HEADER_LEN_BYTES];
        let len = u32::try_from(self.body_len_bytes).expect("bodies are limited far below 4 GiB");
        bytes[0..4].copy_from_slice(&len.to_le_bytes());
        bytes[4..12].copy_from_slice(&self.id.to_le_bytes());
        bytes[12] = self.what.as_byte();
        bytes
    }
    pub fn decode(bytes: &[u8; FRAME_HEADER_LEN_BYTES], body_len_bytes_max: usize) -> Result<Self, Malformed> {
        let body_len_bytes = u32::from_le_bytes(bytes[0..4].try_into().expect("four bytes")) as usize;
        if body_len_bytes > body_len_bytes_max {
            return Err(Malformed::TooLong {
                len_bytes: body_len_bytes,
                len_bytes_max: body_len_bytes_max,
            });
        }
        Ok(Self {
            body_len_bytes,
            id: u64::from_le_bytes(bytes[4..12].try_into().expect("eight bytes")),
            what: What::from_byte(bytes[12]).ok_or(Malformed::Kind { kind: bytes[12] })?,
        })
    }
}

/// Who calls, and whom it means to reach. `None`: it has none, or does not care.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    pub cluster_id: Option<Uuid>,
    pub from: NodeId,
    pub from_disk: Option<Uuid>,
    pub to: Option<NodeId>,
    pub to_disk: Option<Uuid>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum HelloReply {
    Welcome { node: NodeId, disk: Option<Uuid> },
    Refused { reason: String },
}

impl Hello {
    pub fn encode(&self) -> Vec<u8> {
        codec::encode(self)
    }
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        codec::decode(bytes, HELLO_LEN_BYTES_MAX)
    }
}

impl HelloReply {
    pub fn encode(&self) -> Vec<u8> {
        codec::encode(self)
    }
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        codec::decode(bytes, HELLO_LEN_BYTES_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_survive_their_bytes() {
        for what in [
            What::Hello,
            What::HelloReply,
            What::Call,
            What::Control,
            What::Reply,
            What::Cancel,
        ] {
            let header = FrameHeader {
                body_len_bytes: 77,
                id: u64::MAX,
                what,
            };
            assert_eq!(FrameHeader::decode(&header.encode(), 77), Ok(header));
        }
    }

    #[test]
    fn a_length_beyond_the_limit_is_refused_by_its_header() {
        let header = FrameHeader {
            body_len_bytes: 78,
            id: 1,
            what: What::Call,
        };
        assert_eq!(
            FrameHeader::decode(&header.encode(), 77),
            Err(Malformed::TooLong {
                len_bytes: 78,
                len_bytes_max: 77
            })
        );
    }

    #[test]
    fn other_versions_and_unknown_kinds_are_refused() {
        for kind in [ConnectionKind::Raft, ConnectionKind::Request, ConnectionKind::Bulk] {
            assert_eq!(decode_preamble(preamble(kind)), Ok(kind));
        }
        assert!(matches!(
            decode_preamble([PROTOCOL_VERSION + 1, 1]),
            Err(Malformed::Version { .. })
        ));
        assert_eq!(decode_preamble([PROTOCOL_VERSION, 9]), Err(Malformed::Kind { kind: 9 }));
    }
}
