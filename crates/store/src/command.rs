//! What the log carries: every change of the replicated state, as a value.

use quorate_types::{Deregistration, KvPair, ModifyIndex, Registration, WallTime};
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
    Batch(Vec<Command>),
    /// Names the cluster; the first one wins. Written by the server that bootstrapped it.
    NameCluster {
        id: quorate_types::Uuid,
        at: WallTime,
    },
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
}

/// What a command came to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    Done,
    /// A conditional change: whether its condition held.
    Decided(bool),
    Refused(CommandError),
    /// One for each command of a batch.
    Batch(Vec<Outcome>),
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
}
