//! The words of Quorate: ids, indexes, instants, and the records of the catalog, the key/value store and the membership.
//!
//! Layer 0. Imports std and serde's derives only. Nothing here acts: no clock is read, no byte layout is defined and no
//! JSON shape is known (those are `http-api`'s). A record means the same in a core, on the wire, in the log and in a test.
//!
//! Not here: rules on the records (`store`), encodings (`wire`), what clients see (`http-api`, `dns-answer`).

pub mod catalog;
pub mod coordinate;
pub mod definition;
pub mod ids;
pub mod kv;
pub mod limits;
pub mod member;
pub mod session;
pub mod time;

pub use catalog::{
    Check, CheckStatus, Deregistration, HealthCheckDefinition, Node, Registration, Service, ServiceAddress, Weights,
};
pub use coordinate::{Coordinate, NodeCoordinate};
pub use definition::{CheckDefinition, CheckKind, ServiceDefinition};
pub use ids::{Incarnation, LogIndex, ModifyIndex, NodeId, Term, Uuid, UuidError};
pub use kv::KvPair;
pub use member::{Member, MemberStatus};
pub use session::{Session, SessionBehavior};
pub use time::{Instant, WallTime};
