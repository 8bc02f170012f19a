//! The replicated state: `apply(index, command) -> outcome`, and questions to immutable snapshots of it.
//!
//! Layer 1: pure. [`Store`] is deterministic and reads no clock; a clone of it is O(1) and is what readers hold.
//! In: [`Command`]s in log order. Out: [`Outcome`]s, touched [`Topic`]s, [`Evaluation`]s, and [`Record`]s for snapshots.
//! Not here: the log, the bytes (`wire`), waiting for topics (`replica`), JSON (`http-api`).

mod catalog;
mod catalog_read;
pub mod command;
mod coordinate;
mod digest;
mod kv;
pub mod query;
mod record;
mod session;
mod state;
mod table;
mod touched;
pub mod transaction;

pub use command::{Command, CommandError, KvCommand, Outcome, SessionCommand, StateHash};
pub use query::{AddressOwner, Answer, Consistency, Evaluation, Instance, NodeView, Query, Topic, fold};
pub use record::{Record, RecordError, StoreBuilder};
pub use session::{LockDelay, SessionChange, SessionView};
pub use state::{Applied, ClusterName, Store};
pub use transaction::{
    CatalogVerb, CheckOperation, KvOperation, KvVerb, NodeOperation, Operation, OperationError, OperationFault,
    OperationResult, ServiceOperation, TransactionReply,
};
