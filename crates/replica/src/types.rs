//! Our words and openraft's, each way.

use bytes::Bytes;
use openraft::impls::{BoxedErrorSource, InlineBatch, ProgressResponder, leader_id_std};
use openraft::{EntryPayload, OptionalSend, RaftTypeConfig};
use quorate_rt::Rt;
use quorate_store::Outcome;
use quorate_types::NodeId;
use quorate_wire::log::{self, Payload, Position, Server};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::marker::PhantomData;

/// A door that consensus can run on.
pub trait RaftRt: Rt {
    type AsyncRuntime: openraft::AsyncRuntime;
}

/// openraft's type configuration on a door.
pub struct Types<R>(PhantomData<fn() -> R>);

macro_rules! same_for_all {
    ($($trait:ident { $($item:item)* })*) => {$(
        impl<R> $trait for Types<R> { $($item)* }
    )*};
}

// By hand: derived ones would ask the same of the door, which has no order.
same_for_all! {
    Clone { fn clone(&self) -> Self { *self } }
    Copy {}
    Default { fn default() -> Self { Self(PhantomData) } }
    PartialEq { fn eq(&self, _: &Self) -> bool { true } }
    Eq {}
    PartialOrd { fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> { Some(self.cmp(other)) } }
    Ord { fn cmp(&self, _: &Self) -> std::cmp::Ordering { std::cmp::Ordering::Equal } }
}

impl<R> fmt::Debug for Types<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Types")
    }
}

/// An encoded command. Encoded once on the leader, decoded once on each server.
#[derive(Clone, PartialEq, Eq)]
pub struct CommandBytes(pub Bytes);

impl Serialize for CommandBytes {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for CommandBytes {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Vec::deserialize(deserializer).map(|bytes| Self(Bytes::from(bytes)))
    }
}

impl fmt::Debug for CommandBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a command of {} bytes", self.0.len())
    }
}

impl fmt::Display for CommandBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// What applying an entry came to; `None` for entries without a command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reply(pub Option<Outcome>);

type LeaderId = leader_id_std::LeaderId<u64, NodeId>;

impl<R: RaftRt> RaftTypeConfig for Types<R> {
    type D = CommandBytes;
    type R = Reply;
    type NodeId = NodeId;
    type Node = Server;
    type Term = u64;
    /// At most one leader a term, as in Raft's paper; openraft's default allows several.
    type LeaderId = LeaderId;
    type Vote = openraft::Vote<LeaderId>;
    type Payload = EntryPayload<CommandBytes, NodeId, Server>;
    type Entry = openraft::Entry<CommittedLeaderId, Self::Payload>;
    type AsyncRuntime = R::AsyncRuntime;
    type Responder<T>
        = ProgressResponder<Self, T>
    where
        T: OptionalSend + 'static;
    type Batch<T>
        = InlineBatch<T>
    where
        T: OptionalSend + 'static;
    type ErrorSource = BoxedErrorSource;
}

pub type CommittedLeaderId = <LeaderId as openraft::vote::RaftLeaderId>::Committed;
pub type LogId = openraft::LogId<CommittedLeaderId>;
pub type Vote = openraft::Vote<LeaderId>;
pub type Membership = openraft::Membership<NodeId, Server>;
pub type StoredMembership = openraft::StoredMembership<CommittedLeaderId, NodeId, Server>;
pub type SnapshotMeta = openraft::SnapshotMeta<CommittedLeaderId, NodeId, Server>;
pub type Snapshot<D> = openraft::Snapshot<CommittedLeaderId, NodeId, Server, D>;
pub type Entry = openraft::Entry<CommittedLeaderId, EntryPayload<CommandBytes, NodeId, Server>>;

pub fn position(log_id: &LogId) -> Position {
    Position {
        term: log_id.leader_id.term,
        index: log_id.index,
    }
}

pub fn log_id(position: Position) -> LogId {
    LogId::new_term_index(position.term, position.index)
}

pub fn vote_to_wire(vote: &Vote) -> log::Vote {
    log::Vote {
        term: vote.leader_id.term,
        node: vote.leader_id.voted_for,
        committed: vote.committed,
    }
}

pub fn vote_from_wire(vote: log::Vote) -> Vote {
    if vote.committed {
        Vote::new_committed(vote.term, vote.node)
    } else {
        Vote::new(vote.term, vote.node)
    }
}

pub fn membership_to_wire(membership: &Membership) -> log::Membership {
    log::Membership {
        configs: membership.get_joint_config().clone(),
        servers: membership.nodes().map(|(id, server)| (*id, server.clone())).collect(),
    }
}

/// An error when a voter is no member: no server writes such a membership.
pub fn membership_from_wire(membership: log::Membership) -> Result<Membership, String> {
    if membership.configs.is_empty() && membership.servers.is_empty() {
        return Ok(Membership::default());
    }
    Membership::new(membership.configs, membership.servers).map_err(|err| err.to_string())
}

pub fn entry_to_wire(entry: &Entry) -> log::Entry {
    log::Entry {
        position: position(&entry.log_id),
        payload: match &entry.payload {
            EntryPayload::Blank => Payload::Blank,
            EntryPayload::Normal(command) => Payload::Command(command.0.clone()),
            EntryPayload::Membership(membership) => Payload::Membership(membership_to_wire(membership)),
        },
    }
}

pub fn entry_from_wire(entry: log::Entry) -> Result<Entry, String> {
    Ok(Entry {
        log_id: log_id(entry.position),
        payload: match entry.payload {
            Payload::Blank => EntryPayload::Blank,
            Payload::Command(bytes) => EntryPayload::Normal(CommandBytes(bytes)),
            Payload::Membership(membership) => EntryPayload::Membership(membership_from_wire(membership)?),
        },
    })
}
