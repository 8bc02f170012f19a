//! What servers say to each other: Raft's messages, snapshots, and the forming of a cluster.
//!
//! Our own layouts, so that they change when we say and not with the consensus library. Entries are the log's bytes.

use crate::codec::{self, Malformed};
use crate::log::{self, Entry, Membership, Position, Vote};
use bytes::{BufMut, Bytes, BytesMut};
use quorate_types::limits::RPC_FRAME_LEN_BYTES_MAX;
use quorate_types::{NodeId, Uuid};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// Format of the messages here; the first byte of each.
const VERSION: u8 = 1;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AppendEntries {
    pub vote: Vote,
    pub previous: Option<Position>,
    pub committed: Option<Position>,
    pub entries: Vec<Entry>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VoteRequest {
    pub vote: Vote,
    pub last: Option<Position>,
    pub is_transfer: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransferLeader {
    pub from: Vote,
    pub to: NodeId,
    pub last: Option<Position>,
}

/// A call on a raft connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RaftRequest {
    Append(AppendEntries),
    Vote(VoteRequest),
    PreVote(VoteRequest),
    Transfer(TransferLeader),
}

/// The answer. New variants are appended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RaftReply {
    Appended,
    AppendedPartly(Option<Position>),
    Conflict,
    HigherVote(Vote),
    Voted {
        vote: Vote,
        is_granted: bool,
        last: Option<Position>,
    },
    TransferStarted,
    TransferVoteChanged {
        expected: Vote,
        actual: Vote,
    },
    TransferLogBehind {
        expected: Option<Position>,
        actual: Option<Position>,
    },
    /// Not now, or not at all; the text says why.
    Refused(String),
}

/// What a snapshot stands for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotMeta {
    pub last: Option<Position>,
    pub membership_at: Option<Position>,
    pub membership: Membership,
}

/// A call on a bulk connection. One snapshot at a time, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BulkRequest {
    Begin {
        vote: Vote,
        meta: SnapshotMeta,
        len_bytes: u64,
    },
    Chunk {
        offset: u64,
        content: Bytes,
    },
    /// All was sent: install it.
    End,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum BulkReply {
    Continue,
    Installed { vote: Vote },
    Refused(String),
}

/// A promise to form this cluster and no other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pledge {
    pub proposer: NodeId,
    pub cluster_id: Uuid,
    /// Raised by the proposer when it chooses another set.
    pub round: u64,
    pub servers: BTreeSet<NodeId>,
}

/// One server to another, about clusters.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Control {
    /// Promise this. `yielded`: proposers that gave up theirs for this one.
    Pledge { pledge: Pledge, yielded: BTreeSet<NodeId> },
    /// You are about to be added to this cluster.
    Adopt { cluster_id: Uuid },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ControlReply {
    /// Promised, durably, or already part of the cluster.
    Pledged {
        name: String,
        disk_id: Uuid,
    },
    Adopted {
        name: String,
        disk_id: Uuid,
    },
    /// Promised to another proposer before.
    PledgedTo {
        proposer: NodeId,
    },
    /// Part of a cluster already.
    Member {
        cluster_id: Uuid,
    },
    Refused(String),
}

/// What a server knows of itself and its cluster, besides the log. One small file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    pub node_id: NodeId,
    /// Random, made with the log.
    pub disk_id: Uuid,
    /// The cluster it is part of, or is about to be added to.
    pub cluster_id: Option<Uuid>,
    pub pledge: Option<Pledge>,
}

impl Identity {
    /// Behind a version and a checksum.
    pub fn to_file(&self) -> Bytes {
        let body = codec::encode(self);
        let mut bytes = BytesMut::with_capacity(5 + body.len());
        bytes.put_u8(VERSION);
        bytes.put_u32_le(crc32c::crc32c(&body));
        bytes.put_slice(&body);
        bytes.freeze()
    }
    pub fn from_file(bytes: &[u8]) -> Result<Self, Malformed> {
        let too_short = Malformed::TooShort { len_bytes: bytes.len() };
        let Some((&version, rest)) = bytes.split_first() else {
            return Err(too_short);
        };
        // The checksum does not cover it: there was never another one.
        if version != VERSION {
            return Err(Malformed::Version {
                version,
                version_max: VERSION,
            });
        }
        let Some((crc, body)) = rest.split_first_chunk::<4>() else {
            return Err(too_short);
        };
        if crc32c::crc32c(body) != u32::from_le_bytes(*crc) {
            return Err(Malformed::Checksum);
        }
        codec::decode(body, SMALL_LEN_BYTES_MAX)
    }
}

const RAFT_APPEND: u8 = 1;
const RAFT_VOTE: u8 = 2;
const RAFT_PRE_VOTE: u8 = 3;
const RAFT_TRANSFER: u8 = 4;
const BULK_BEGIN: u8 = 1;
const BULK_CHUNK: u8 = 2;
const BULK_END: u8 = 3;

/// Everything but entries and chunks is far smaller.
const SMALL_LEN_BYTES_MAX: usize = 1024 * 1024;

type AppendHeader = (Vote, Option<Position>, Option<Position>);

fn with_head(kind: u8, body: &[u8]) -> BytesMut {
    let mut bytes = BytesMut::with_capacity(2 + body.len());
    bytes.put_u8(VERSION);
    bytes.put_u8(kind);
    bytes.put_slice(body);
    bytes
}

fn split_head(bytes: &Bytes) -> Result<(u8, Bytes), Malformed> {
    match bytes[..] {
        [VERSION, kind, ..] => Ok((kind, bytes.slice(2..))),
        [version, ..] if version != VERSION => Err(Malformed::Version {
            version,
            version_max: VERSION,
        }),
        _ => Err(Malformed::TooShort { len_bytes: bytes.len() }),
    }
}

/// Takes a length-prefixed piece off the front.
fn split_piece(bytes: &mut Bytes) -> Result<Bytes, Malformed> {
    let too_short = Malformed::TooShort { len_bytes: bytes.len() };
    let len = match bytes.first_chunk::<4>() {
        Some(len) => u32::from_le_bytes(*len) as usize,
        None => return Err(too_short),
    };
    if bytes.len() - 4 < len {
        return Err(too_short);
    }
    let piece = bytes.slice(4..4 + len);
    *bytes = bytes.slice(4 + len..);
    Ok(piece)
}

fn put_piece(into: &mut BytesMut, write: impl FnOnce(&mut Vec<u8>)) {
    let mut piece = Vec::new();
    write(&mut piece);
    into.put_u32_le(u32::try_from(piece.len()).expect("a piece fits a frame"));
    into.put_slice(&piece);
}

impl RaftRequest {
    pub fn encode(&self) -> Bytes {
        match self {
            Self::Append(append) => {
                let mut bytes = with_head(RAFT_APPEND, &[]);
                let header: AppendHeader = (append.vote, append.previous, append.committed);
                put_piece(&mut bytes, |piece| *piece = codec::encode(&header));
                for entry in &append.entries {
                    put_piece(&mut bytes, |piece| log::encode_entry(entry, piece));
                }
                bytes.freeze()
            }
            Self::Vote(vote) => with_head(RAFT_VOTE, &codec::encode(vote)).freeze(),
            Self::PreVote(vote) => with_head(RAFT_PRE_VOTE, &codec::encode(vote)).freeze(),
            Self::Transfer(transfer) => with_head(RAFT_TRANSFER, &codec::encode(transfer)).freeze(),
        }
    }
    pub fn decode(bytes: &Bytes) -> Result<Self, Malformed> {
        let (kind, mut body) = split_head(bytes)?;
        Ok(match kind {
            RAFT_APPEND => {
                let (vote, previous, committed): AppendHeader =
                    codec::decode(&split_piece(&mut body)?, SMALL_LEN_BYTES_MAX)?;
                let mut entries = Vec::new();
                while !body.is_empty() {
                    entries.push(log::decode_entry(split_piece(&mut body)?)?);
                }
                Self::Append(AppendEntries {
                    vote,
                    previous,
                    committed,
                    entries,
                })
            }
            RAFT_VOTE => Self::Vote(codec::decode(&body, SMALL_LEN_BYTES_MAX)?),
            RAFT_PRE_VOTE => Self::PreVote(codec::decode(&body, SMALL_LEN_BYTES_MAX)?),
            RAFT_TRANSFER => Self::Transfer(codec::decode(&body, SMALL_LEN_BYTES_MAX)?),
            kind => return Err(Malformed::Kind { kind }),
        })
    }
}

impl BulkRequest {
    pub fn encode(&self) -> Bytes {
        match self {
            Self::Begin { vote, meta, len_bytes } => {
                with_head(BULK_BEGIN, &codec::encode(&(vote, meta, len_bytes))).freeze()
            }
            Self::Chunk { offset, content } => {
                let mut bytes = with_head(BULK_CHUNK, &offset.to_le_bytes());
                bytes.put_slice(content);
                bytes.freeze()
            }
            Self::End => with_head(BULK_END, &[]).freeze(),
        }
    }
    pub fn decode(bytes: &Bytes) -> Result<Self, Malformed> {
        let (kind, body) = split_head(bytes)?;
        Ok(match kind {
            BULK_BEGIN => {
                let (vote, meta, len_bytes) = codec::decode(&body, SMALL_LEN_BYTES_MAX)?;
                Self::Begin { vote, meta, len_bytes }
            }
            BULK_CHUNK => match body.first_chunk::<8>() {
                Some(offset) => Self::Chunk {
                    offset: u64::from_le_bytes(*offset),
                    content: body.slice(8..),
                },
                None => return Err(Malformed::TooShort { len_bytes: body.len() }),
            },
            BULK_END if body.is_empty() => Self::End,
            BULK_END => return Err(Malformed::Trailing { len_bytes: body.len() }),
            kind => return Err(Malformed::Kind { kind }),
        })
    }
}

macro_rules! versioned {
    ($($name:ident),*) => {$(
        impl $name {
            pub fn encode(&self) -> Bytes {
                with_head(0, &codec::encode(self)).freeze()
            }
            pub fn decode(bytes: &Bytes) -> Result<Self, Malformed> {
                let (kind, body) = split_head(bytes)?;
                if kind != 0 {
                    return Err(Malformed::Kind { kind });
                }
                codec::decode(&body, RPC_FRAME_LEN_BYTES_MAX)
            }
        }
    )*};
}

versioned!(RaftReply, BulkReply, Control, ControlReply, SnapshotMeta);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::{Payload, Server};
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn vote() -> Vote {
        Vote {
            term: 3,
            node: NodeId(Uuid::from_bytes([1; 16])),
            committed: true,
        }
    }

    fn position() -> Position {
        Position { term: 3, index: 9 }
    }

    fn membership() -> Membership {
        let node = vote().node;
        Membership {
            configs: vec![BTreeSet::from([node])],
            servers: BTreeMap::from([(node, Server::default())]),
        }
    }

    #[test]
    fn raft_messages_survive_their_bytes() {
        let entry = |payload| Entry {
            position: position(),
            payload,
        };
        let request = VoteRequest {
            vote: vote(),
            last: Some(position()),
            is_transfer: true,
        };
        for message in [
            RaftRequest::Append(AppendEntries {
                vote: vote(),
                previous: None,
                committed: Some(position()),
                entries: vec![
                    entry(Payload::Blank),
                    entry(Payload::Command(Bytes::from_static(b"set"))),
                    entry(Payload::Membership(membership())),
                ],
            }),
            RaftRequest::Vote(request.clone()),
            RaftRequest::PreVote(request),
            RaftRequest::Transfer(TransferLeader {
                from: vote(),
                to: vote().node,
                last: None,
            }),
        ] {
            assert_eq!(RaftRequest::decode(&message.encode()), Ok(message));
        }
    }

    #[test]
    fn bulk_messages_survive_their_bytes() {
        let meta = SnapshotMeta {
            last: Some(position()),
            membership_at: None,
            membership: membership(),
        };
        for message in [
            BulkRequest::Begin {
                vote: vote(),
                meta: meta.clone(),
                len_bytes: 7,
            },
            BulkRequest::Chunk {
                offset: 5,
                content: Bytes::from_static(b"bytes"),
            },
            BulkRequest::End,
        ] {
            assert_eq!(BulkRequest::decode(&message.encode()), Ok(message));
        }
        assert_eq!(SnapshotMeta::decode(&meta.encode()), Ok(meta));
    }

    #[test]
    fn control_messages_survive_their_bytes() {
        let message = Control::Pledge {
            pledge: Pledge {
                proposer: vote().node,
                cluster_id: Uuid::NIL,
                round: 2,
                servers: BTreeSet::from([vote().node]),
            },
            yielded: BTreeSet::new(),
        };
        assert_eq!(Control::decode(&message.encode()), Ok(message));
    }

    #[test]
    fn an_identity_survives_its_file_and_a_flipped_byte_is_noticed() {
        let identity = Identity {
            node_id: vote().node,
            disk_id: Uuid::from_bytes([4; 16]),
            cluster_id: Some(Uuid::from_bytes([5; 16])),
            pledge: None,
        };
        let file = identity.to_file();
        assert_eq!(Identity::from_file(&file), Ok(identity));
        for at in 0..file.len() {
            for bit in 0..8 {
                let mut file = file.to_vec();
                file[at] ^= 1 << bit;
                assert!(Identity::from_file(&file).is_err(), "byte {at}, bit {bit}");
            }
        }
    }

    proptest! {
        #[test]
        fn nonsense_is_refused_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), kind in 0..6_u8) {
            let mut framed = vec![VERSION, kind];
            framed.extend_from_slice(&bytes);
            for bytes in [Bytes::from(bytes), Bytes::from(framed)] {
                let _ = RaftRequest::decode(&bytes);
                let _ = BulkRequest::decode(&bytes);
                let _ = RaftReply::decode(&bytes);
                let _ = Control::decode(&bytes);
                let _ = SnapshotMeta::decode(&bytes);
            }
        }
    }
}
