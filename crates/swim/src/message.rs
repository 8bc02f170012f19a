//! What members tell one another. `wire` gives these their bytes.
//!
//! Invariant: `len_bytes` of a message is never less than its encoded length, so that a packet that adds up fits.
//! Not here: byte layouts, versions and checksums (`wire::gossip`).

use quorate_types::{Coordinate, Incarnation, Member, MemberStatus, NodeId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use thiserror::Error;

/// Serf's limit on a node name.
pub const NAME_LEN_BYTES_MAX: usize = 128;
/// A datacenter's name is a DNS label.
pub const DATACENTER_LEN_BYTES_MAX: usize = 63;
/// memberlist's `MetaMaxSize`: all tags of a member together, encoded.
pub const TAGS_LEN_BYTES_MAX: usize = 512;
/// Incarnations begin at wall-clock milliseconds and grow by one; nobody honest comes near this (the year 146 million).
pub const INCARNATION_MAX: Incarnation = Incarnation(1 << 62);
/// Bytes of a packet that are not messages: version, kind, checksum, count, and what sealing will add.
pub const PACKET_OVERHEAD_LEN_BYTES: usize = 64;

/// Who a member is, as it says itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberState {
    pub id: NodeId,
    /// Unique among the live members of a pool.
    pub name: String,
    /// Where its gossip is reached (datagrams and streams).
    pub address: SocketAddr,
    pub datacenter: String,
    pub tags: BTreeMap<String, String>,
}

/// Why a member's description is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum InvalidMember {
    #[error("node id is nil")]
    NilId,
    #[error("node name is empty or longer than {NAME_LEN_BYTES_MAX} bytes")]
    Name,
    #[error("datacenter name is empty or longer than {DATACENTER_LEN_BYTES_MAX} bytes")]
    Datacenter,
    #[error("address cannot be reached: unspecified, multicast or without a port")]
    Address,
    #[error("Encoded length of tags exceeds limit of {TAGS_LEN_BYTES_MAX} bytes")]
    Tags,
    #[error("incarnation is out of range")]
    Incarnation,
}

impl MemberState {
    pub fn validate(&self) -> Result<(), InvalidMember> {
        let ip = self.address.ip();
        if self.id.0.is_nil() {
            Err(InvalidMember::NilId)
        } else if self.name.is_empty() || self.name.len() > NAME_LEN_BYTES_MAX {
            Err(InvalidMember::Name)
        } else if self.datacenter.is_empty() || self.datacenter.len() > DATACENTER_LEN_BYTES_MAX {
            Err(InvalidMember::Datacenter)
        } else if self.address.port() == 0 || ip.is_unspecified() || ip.is_multicast() {
            Err(InvalidMember::Address)
        } else {
            validate_tags(&self.tags)
        }
    }
    fn len_bytes(&self) -> usize {
        UUID + text_len_bytes(&self.name) + ADDRESS + text_len_bytes(&self.datacenter) + tags_len_bytes(&self.tags)
    }
}

/// Tags are limited because every member keeps and tells those of all others.
pub fn validate_tags(tags: &BTreeMap<String, String>) -> Result<(), InvalidMember> {
    match tags_len_bytes(tags) {
        0..=TAGS_LEN_BYTES_MAX => Ok(()),
        _ => Err(InvalidMember::Tags),
    }
}

/// One message of a packet. New variants are appended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Message {
    /// Answered with `Ack` by `target`, and by nobody else who may have its address now.
    Ping {
        sequence: u64,
        target: NodeId,
    },
    /// Asks the receiver to ping `target` and pass on its ack; a nack says that it tried in vain.
    PingReq {
        sequence: u64,
        target: NodeId,
        address: SocketAddr,
        wants_nack: bool,
    },
    Ack {
        sequence: u64,
        target: NodeId,
    },
    Nack {
        sequence: u64,
    },
    Update(Update),
    /// Where the sender is in the network; follows its own ack in the same packet.
    Coordinate(Coordinate),
    /// Of another layer, which fills up packets: passed to the driver as it is.
    Payload(#[serde(with = "serde_bytes")] Vec<u8>),
}

/// News about one member, gossiped on. Only the newest incarnation counts. New variants are appended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Update {
    Alive {
        member: Arc<MemberState>,
        incarnation: Incarnation,
    },
    Suspect {
        member: NodeId,
        incarnation: Incarnation,
        from: NodeId,
    },
    Dead {
        member: NodeId,
        incarnation: Incarnation,
        from: NodeId,
    },
    /// The member left. Its own word: `from` is the member, and from anybody else this says nothing.
    Left {
        member: NodeId,
        incarnation: Incarnation,
        from: NodeId,
        prune: bool,
    },
    /// An operator's word that the member will not come back. It takes effect once the member is dead; a live one answers
    /// with a `JoinIntent`. Serf's leave intent: only the latest intent about a member counts.
    LeaveIntent {
        member: NodeId,
        time: LamportTime,
        from: NodeId,
        /// Forget it at once.
        prune: bool,
    },
    /// The member's own word that it means to stay.
    JoinIntent { member: NodeId, time: LamportTime },
}

/// Orders what operators and members want, whatever happens to incarnations meanwhile (Lamport 1978).
pub type LamportTime = u64;
/// Every intent raises the clock by one; nobody honest comes near this.
pub const LAMPORT_TIME_MAX: LamportTime = 1 << 62;

impl Update {
    pub fn subject(&self) -> NodeId {
        match self {
            Self::Alive { member, .. } => member.id,
            Self::Suspect { member, .. }
            | Self::Dead { member, .. }
            | Self::Left { member, .. }
            | Self::LeaveIntent { member, .. }
            | Self::JoinIntent { member, .. } => *member,
        }
    }
    /// Of the member that this is about; intents are about all of them.
    pub fn incarnation(&self) -> Incarnation {
        match self {
            Self::LeaveIntent { .. } | Self::JoinIntent { .. } => Incarnation::ZERO,
            Self::Alive { incarnation, .. }
            | Self::Suspect { incarnation, .. }
            | Self::Dead { incarnation, .. }
            | Self::Left { incarnation, .. } => *incarnation,
        }
    }
    /// What a member wants or is wanted to do, not how it is.
    pub fn is_intent(&self) -> bool {
        matches!(self, Self::LeaveIntent { .. } | Self::JoinIntent { .. })
    }
    /// At least the encoded length as a message of a packet.
    pub fn len_bytes(&self) -> usize {
        2 * TAG
            + match self {
                Self::Alive { member, .. } => member.len_bytes() + NUMBER,
                Self::Suspect { .. } | Self::Dead { .. } => UUID + NUMBER + UUID,
                Self::Left { .. } | Self::LeaveIntent { .. } => UUID + NUMBER + UUID + BOOL,
                Self::JoinIntent { .. } => UUID + NUMBER,
            }
    }
}

impl Message {
    /// At least the encoded length.
    pub fn len_bytes(&self) -> usize {
        match self {
            Self::Ping { .. } | Self::Ack { .. } => TAG + NUMBER + UUID,
            Self::PingReq { .. } => TAG + NUMBER + UUID + ADDRESS + BOOL,
            Self::Nack { .. } => TAG + NUMBER,
            Self::Update(update) => update.len_bytes(),
            Self::Coordinate(_) => TAG + COORDINATE,
            Self::Payload(payload) => TAG + length_len_bytes(payload.len()) + payload.len(),
        }
    }
}

/// What a member believes of another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Status {
    Alive,
    Suspect,
    Dead,
    Left,
}

impl Status {
    /// Still part of the pool.
    pub const fn is_live(self) -> bool {
        matches!(self, Self::Alive | Self::Suspect)
    }
}

/// One member in a full exchange of state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemoteMember {
    pub member: Arc<MemberState>,
    pub incarnation: Incarnation,
    pub status: Status,
    /// Who said that it left; the member itself otherwise.
    pub from: NodeId,
}

/// What a member knows, exchanged over a stream in both directions.
///
/// An exchange between members that may well know the same begins with a digest, and only when the digests differ does
/// the answer hold all that the other side knows. What only the asker knew it then sends as packets, or, when that is
/// much, in a second exchange.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PushPull {
    pub from: NodeId,
    /// The sender, and those of whom the other side may not know; all when `is_whole`.
    pub members: Vec<RemoteMember>,
    /// Of another layer, exchanged along: set and taken by the driver.
    #[serde(with = "serde_bytes")]
    pub payload: Vec<u8>,
    pub is_whole: bool,
    /// Of the live members that the sender knows and their incarnations. Equal digests: nothing to tell.
    pub digest: u64,
    /// The sender's Lamport clock.
    pub time: LamportTime,
    /// The latest intents about members that the sender knows.
    pub intents: Vec<Intent>,
}

/// The latest that is wanted of a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Intent {
    pub member: NodeId,
    pub time: LamportTime,
    /// Who wants it to leave; `None`: it means to stay.
    pub leave: Option<NodeId>,
}

/// A member as it is seen; what it says of itself is shared, not copied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    pub state: Arc<MemberState>,
    pub status: MemberStatus,
}

impl std::ops::Deref for Seen {
    type Target = MemberState;
    fn deref(&self) -> &MemberState {
        &self.state
    }
}

impl From<Seen> for Member {
    fn from(seen: Seen) -> Self {
        Self {
            id: seen.state.id,
            name: seen.state.name.clone(),
            address: seen.state.address,
            tags: seen.state.tags.clone(),
            status: seen.status,
        }
    }
}

/// Why a member is not let in.
#[derive(Clone, Debug, PartialEq, Eq, Error, Serialize, Deserialize)]
pub enum Refusal {
    #[error("Member '{name}' part of wrong datacenter '{datacenter}'")]
    WrongDatacenter { name: String, datacenter: String },
    #[error("Member '{name}' has conflicting node ID '{claimant}' with member of ID '{holder}'")]
    NameTaken {
        name: String,
        claimant: NodeId,
        holder: NodeId,
    },
    #[error("Member '{name}' has conflicting node ID '{id}' with this agent's ID")]
    IdTaken { name: String, id: NodeId },
    #[error("Member '{name}' is invalid: {reason}")]
    Invalid { name: String, reason: String },
    #[error("Pool is full")]
    Full,
    /// The text is memberlist's.
    #[error("Rejected node {name} ({address}): {address} is not allowed")]
    NotAllowed { name: String, address: IpAddr },
}

const TAG: usize = 1;
const BOOL: usize = 1;
const UUID: usize = 16;
/// A 64-bit number: a mark and eight bytes.
const NUMBER: usize = 9;
/// Eight dimensions, error, adjustment and height, at their full width.
const COORDINATE: usize = 11 * 8;
/// The family, the longer kind of IP address, and a port.
const ADDRESS: usize = 1 + 16 + 3;

fn text_len_bytes(text: &str) -> usize {
    length_len_bytes(text.len()) + text.len()
}

fn length_len_bytes(len: usize) -> usize {
    match len {
        0..=250 => 1,
        251..=0xffff => 3,
        _ => NUMBER,
    }
}

fn tags_len_bytes(tags: &BTreeMap<String, String>) -> usize {
    let pairs = tags
        .iter()
        .map(|(key, value)| text_len_bytes(key) + text_len_bytes(value));
    length_len_bytes(tags.len()) + pairs.sum::<usize>()
}
