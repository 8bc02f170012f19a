//! The HTTP API: routes, JSON shapes, status codes, blocking queries.

pub mod backend;

pub use backend::{
    AgentFacts, Backend, BackendError, LocalError, RaftConfiguration, RaftServer, ReadReply, ReadRequest, StatusReply,
};
