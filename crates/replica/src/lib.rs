//! Raft: log store, network, snapshots, leader forwarding.
//!
//! A [`Replica`] is one server's part in a cluster: it keeps the log (`log`), applies it to the store (`machine`), talks
//! to the other servers over one port (`transport`, `network`, `service`), forms and changes clusters (`bootstrap`,
//! `membership`), and says how fresh a read is. A client agent has an [`RpcClient`]: the calls without the rest.
//!
//! Invariants: an acknowledged write is on the stable storage of a quorum; a server that lost its disk, or belongs to another
//! cluster, is talked to by nobody; consensus' library is seen in no other crate.
//! Not here: what commands do (`quorate_store`), byte layouts (`quorate_wire`), which requests there are and who forwards
//! them (`agent`).

mod bootstrap;
mod client;
mod comparison;
mod identity;
pub mod log;
mod machine;
mod membership;
mod network;

mod production;
mod replica;
mod service;
mod snapshot;
mod storage;
mod transport;
mod types;
mod watches;

pub use bootstrap::{BootstrapError, Bootstrapped};
pub use client::RpcClient;
pub use identity::IdentityError;
pub use membership::MembershipError;
pub use replica::{ReadError, Replica, ReplicaConfig, ReplicaStatus, RequestHandler, Standing, StartError, WriteError};
pub use snapshot::SnapshotFileError;
pub use transport::client::CallFailure;
pub use types::RaftRt;
pub use watches::{TooManyWatches, Wake, Watch, Watches};

/// What a door has to bring for consensus to run on it.
pub mod runtime {
    pub use openraft::AsyncRuntime;
}

#[cfg(test)]
mod fault_disk;
