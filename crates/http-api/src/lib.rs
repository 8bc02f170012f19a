//! The HTTP API: routes, JSON shapes, status codes, blocking queries. Drop-in for clients of Consul's `/v1`.
//!
//! In: requests over the door's streams. Out: what [`Backend`] answers, in the shapes clients know.
//! A request passes `transport` (path, compression), `routes` (endpoint, gate, errors) and one handler (`agent`, `catalog`,
//! `health`, `keyring`, `kv`, `session`, `status`, `transaction`); `params` and `decode` read what it says, `json` writes what it gets, `filter`
//! chooses from it.
//!
//! Invariants: nothing replicated is decided here; whatever a request says, it gets an answer or a closed connection, and
//! memory is bounded per connection; all compatibility quirks of HTTP live here and nowhere else.
//! Not here: queries, ACLs, TLS, Unix sockets, the UI.

mod agent;
mod api;
pub mod backend;
mod call;
mod catalog;
pub mod config;
mod coordinate;
pub mod decode;
pub mod errors;
mod event;
pub mod filter;
pub mod go;
mod health;
mod json;
pub mod json_syntax;
mod keyring;
mod kv;
mod metrics;
mod params;
pub mod records;
mod renderings;
mod routes;
mod server;
mod session;
mod status;
mod transaction;
mod transport;

pub use api::Api;
pub use backend::{
    AgentFacts, Backend, BackendError, DatacenterCoordinates, FaultyLink, KeyringOperation, KeyringPool, LinkFault,
    LocalError, RaftConfiguration, RaftServer, Reachability, ReadReply, ReadRequest, StatusReply,
};
pub use config::HttpConfig;
pub use decode::{check_meta, fill_tagged_addresses};
pub use errors::Fault;
pub use metrics::{Gauge, MetricId, Metrics, Sampled};
pub use routes::{Peer, router};
pub use server::{CONNECTION_COUNT_MAX, HttpServer, STOP_TIMEOUT, StartError};
pub use transport::answer;
