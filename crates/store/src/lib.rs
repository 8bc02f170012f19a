//! The replicated state: `apply(index, command) -> outcome`, and questions to immutable snapshots of it.

pub mod command;
pub mod query;

pub use command::{Command, CommandError, KvCommand, Outcome};
pub use query::{AddressOwner, Answer, Consistency, Evaluation, Instance, NodeView, Query, Topic};
