//! What the log carries: every change of the replicated state, as a value.

use crate::transaction::{Operation, TransactionReply};
use quorate_types::{
    Deregistration, KvPair, LogIndex, ModifyIndex, NodeCoordinate, NodeId, Registration, Session, Uuid, WallTime,
};
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// One change. Applied in log order on every server with the same result.
///
/// New variants are appended, never inserted: the log keeps a variant by its position.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// Changes nothing; a fresh leader commits one before it serves reads.
    Barrier,
    Register(Box<Registration>),
    Deregister(Deregistration),
    Kv(KvCommand),
    /// Forgets deletions of keys up to this index (Consul's tombstone collection).
    CollectTombstones {
        up_to: ModifyIndex,
    },
    /// Several commands as one entry, in order. A failed one does not undo the others. Not nested.
    Batch(#[serde(deserialize_with = "single::commands")] Vec<Command>),
    /// Names the cluster; the first one wins. Written by the server that bootstrapped it. `Decided`: whether this is now
    /// the cluster's id.
    NameCluster {
        id: Uuid,
        at: WallTime,
    },
    Session(SessionCommand),
    /// Operations that happen all or not at all.
    Transaction(Vec<Operation>),
    /// Where nodes are in the network. Of an unknown node: passed over.
    Coordinates(Vec<NodeCoordinate>),
    /// Changes nothing: servers compare their states by it.
    StateHash(StateHash),
}

/// What one server's state hashed to, for the others to compare with theirs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateHash {
    pub server: NodeId,
    /// The state once this entry of the log was applied.
    pub at: LogIndex,
    /// [`StateHash::RULES`] of that server: only hashes made by the same rules are alike.
    pub rules: u32,
    pub hash: u64,
}

impl StateHash {
    /// How [`crate::Store::hash`] is made. To be raised with every change of what it gives for a state.
    pub const RULES: u32 = 1;
}

/// A change of the sessions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SessionCommand {
    /// Its id was drawn at random by who proposed this. Indexes inside are ignored.
    Create(Session),
    /// Ends a session, if there is one: destroyed by a client, or not renewed in time.
    Destroy { id: Uuid },
    /// Ends the lock-delay of each of these keys that began at the index with it: the leader let it pass.
    EndLockDelays { delays: Vec<(String, ModifyIndex)> },
}

/// A change of the key/value table. Indexes inside `pair` are ignored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum KvCommand {
    /// Sets value and flags. On a locked key: keeps the session and resets `lock_index` to 0 (Consul 1.8.7).
    Set(KvPair),
    /// As `Set`, if the key's modify index is `expected`; 0: if the key is absent.
    Cas {
        pair: KvPair,
        expected: ModifyIndex,
    },
    Delete {
        key: String,
    },
    /// Absent: true. Present: deleted when the modify index is `expected`, which 0 never is.
    DeleteCas {
        key: String,
        expected: ModifyIndex,
    },
    /// Every key with this prefix; the empty prefix is every key.
    DeleteTree {
        prefix: String,
    },
    /// Sets value and flags and locks the key for the session. `Decided`: whether the session holds it now.
    Acquire {
        pair: KvPair,
        session: Uuid,
    },
    /// Sets value and flags and unlocks the key. `Decided`: whether the session held it.
    Release {
        pair: KvPair,
        session: Uuid,
    },
}

/// What a command came to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    Done,
    /// A conditional change: whether its condition held.
    Decided(bool),
    Refused(CommandError),
    /// One for each command of a batch.
    Batch(#[serde(deserialize_with = "single::outcomes")] Vec<Outcome>),
    Transaction(TransactionReply),
}

/// Why a command was refused. Deterministic: every server refuses alike. Texts are Consul 1.8.7's.
#[derive(Clone, Debug, PartialEq, Eq, Error, Serialize, Deserialize)]
pub enum CommandError {
    #[error("Must provide node")]
    NodeMissing,
    #[error("Must provide address if SkipNodeUpdate is not set")]
    AddressMissing,
    #[error("Must provide service name with ID")]
    ServiceNameMissing,
    #[error("failed inserting check: Missing service registration on node \"{node}\"")]
    ServiceNotRegistered { node: String },
    #[error(
        "failed inserting node: Error while renaming Node ID: \"{new_id}\": Node name {name} is reserved by node {old_id} with name {name} ({address})"
    )]
    NodeNameReserved {
        new_id: String,
        name: String,
        old_id: String,
        address: String,
    },
    #[error("Must provide key")]
    KeyMissing,
    #[error("Must provide check ID or name")]
    CheckIdMissing,
    #[error("check node {check_node:?} does not match node {node:?}")]
    CheckNodeMismatch { check_node: String, node: String },
    #[error("a batch may not hold a batch")]
    BatchNested,
    #[error("Must provide ID")]
    SessionIdMissing,
    #[error("a session with the id {id} exists already")]
    SessionIdTaken { id: Uuid },
    #[error("Must provide Node")]
    SessionNodeMissing,
    #[error("Missing node registration")]
    NodeNotRegistered,
    #[error("Missing check '{check}' registration")]
    CheckNotRegistered { check: String },
    #[error("Check '{check}' is in critical state")]
    CheckCritical { check: String },
    #[error("invalid session \"{id}\"")]
    SessionUnknown { id: Uuid },
    #[error("Transaction contains too many operations ({count} > {count_max})")]
    TransactionTooLong { count: u64, count_max: u64 },
}

/// What a batch holds, as it is decoded: the same variants at the same positions, but no batch.
///
/// A derived decoder of a recursive type would follow bytes of a peer as deep as they claim to nest, and overflow the
/// stack.
mod single {
    use super::*;
    use serde::Deserializer;

    #[derive(Deserialize)]
    enum Never {}

    #[derive(Deserialize)]
    enum SingleCommand {
        Barrier,
        Register(Box<Registration>),
        Deregister(Deregistration),
        Kv(KvCommand),
        CollectTombstones { up_to: ModifyIndex },
        Batch(Never),
        NameCluster { id: Uuid, at: WallTime },
        Session(SessionCommand),
        Transaction(Vec<Operation>),
        Coordinates(Vec<NodeCoordinate>),
        StateHash(StateHash),
    }

    #[derive(Deserialize)]
    enum SingleOutcome {
        Done,
        Decided(bool),
        Refused(CommandError),
        Batch(Never),
        Transaction(TransactionReply),
    }

    impl From<SingleCommand> for Command {
        fn from(single: SingleCommand) -> Self {
            match single {
                SingleCommand::Barrier => Self::Barrier,
                SingleCommand::Register(registration) => Self::Register(registration),
                SingleCommand::Deregister(deregistration) => Self::Deregister(deregistration),
                SingleCommand::Kv(command) => Self::Kv(command),
                SingleCommand::CollectTombstones { up_to } => Self::CollectTombstones { up_to },
                SingleCommand::Batch(never) => match never {},
                SingleCommand::NameCluster { id, at } => Self::NameCluster { id, at },
                SingleCommand::Session(command) => Self::Session(command),
                SingleCommand::Transaction(operations) => Self::Transaction(operations),
                SingleCommand::Coordinates(updates) => Self::Coordinates(updates),
                SingleCommand::StateHash(hash) => Self::StateHash(hash),
            }
        }
    }

    impl From<SingleOutcome> for Outcome {
        fn from(single: SingleOutcome) -> Self {
            match single {
                SingleOutcome::Done => Self::Done,
                SingleOutcome::Decided(held) => Self::Decided(held),
                SingleOutcome::Refused(error) => Self::Refused(error),
                SingleOutcome::Batch(never) => match never {},
                SingleOutcome::Transaction(reply) => Self::Transaction(reply),
            }
        }
    }

    pub(super) fn commands<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Command>, D::Error> {
        let singles = Vec::<SingleCommand>::deserialize(deserializer)?;
        Ok(singles.into_iter().map(Command::from).collect())
    }

    pub(super) fn outcomes<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Outcome>, D::Error> {
        let singles = Vec::<SingleOutcome>::deserialize(deserializer)?;
        Ok(singles.into_iter().map(Outcome::from).collect())
    }
}
