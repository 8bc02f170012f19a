//! Anti-entropy: what must change in the catalog so that it says what is true.
//!
//! Two truths exist. An agent is the source of truth for its own node's services and checks: [`local`] compares them with
//! the catalog's view and lists the differences. The gossip pool is the source of truth for who is alive: [`reconcile`]
//! compares it with the catalog's nodes on the leader's behalf. Both yield [`Change`]s, in the order to write them.
//!
//! In: local edits, check results, the catalog's view, members, the time. Out: changes. Invariants: a record is in sync
//! only when the servers acknowledged exactly its present content; a service is registered before or with its checks;
//! applying all changes to the view they were made from makes it equal to the local state.
//! Not here: who carries changes to the servers, and when it is tried again after a failure (`agent`).

pub mod local;
pub mod reconcile;

pub use local::{Catalog, LocalState, NodeRecord, sync_interval};

use quorate_types::{Deregistration, Registration};

/// The check the leader keeps for every member: is its agent alive.
pub const SERF_HEALTH_ID: &str = "serfHealth";
/// The service of the servers themselves, kept by the leader.
pub const CONSUL_SERVICE_ID: &str = "consul";

/// One write to the catalog.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    Register(Box<Registration>),
    Deregister(Deregistration),
}
