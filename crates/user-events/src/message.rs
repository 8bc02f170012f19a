//! What members tell one another about events and queries. `wire` gives these their bytes.
//!
//! Invariant: `len_bytes` of a message is never less than its encoded length, so that a packet that adds up fits.

use crate::clock::LamportTime;
use crate::event::UserEvent;
use quorate_types::NodeId;
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use thiserror::Error;

/// Serf's `QuerySizeLimit` and `QueryResponseSizeLimit`: either fits one packet.
pub const QUERY_LEN_BYTES_MAX: usize = 1024;
pub const RESPONSE_LEN_BYTES_MAX: usize = 1024;

/// A query's random number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct QueryId(pub u64);

/// A question to every member.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Query {
    pub ltime: LamportTime,
    pub id: QueryId,
    /// Who asks, and where answers go.
    pub from: NodeId,
    pub address: SocketAddr,
    /// Answers count until so long after the question was asked.
    pub timeout: Duration,
    pub wants_ack: bool,
    pub name: String,
    #[serde(with = "serde_bytes")]
    pub payload: Vec<u8>,
}

/// One message of a packet. New variants are appended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Message {
    Event(Arc<UserEvent>),
    Query(Arc<Query>),
    /// The query arrived; to its origin only.
    QueryAck {
        query: QueryId,
        from: NodeId,
    },
    /// To its origin only.
    QueryResponse {
        query: QueryId,
        from: NodeId,
        #[serde(with = "serde_bytes")]
        payload: Vec<u8>,
    },
}

/// What a member knows, exchanged in both directions along with the members.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventState {
    pub event_clock: LamportTime,
    pub query_clock: LamportTime,
    /// The last events, oldest first.
    pub events: Vec<Arc<UserEvent>>,
}

/// Why a query is not asked, or not answered. The texts are Serf's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum QueryError {
    #[error("query exceeds limit of {QUERY_LEN_BYTES_MAX} bytes")]
    TooLong,
    #[error("response exceeds limit of {RESPONSE_LEN_BYTES_MAX} bytes")]
    ResponseTooLong,
    #[error("response is past the deadline")]
    TooLate,
    #[error("too many queries are open")]
    TooMany,
}

pub(crate) const TAG: usize = 1;
pub(crate) const UUID: usize = 16;
/// A 64-bit number: a mark and eight bytes.
pub(crate) const NUMBER: usize = 9;
const BOOL: usize = 1;
/// The family, the longer kind of IP address, and a port.
const ADDRESS: usize = 1 + 16 + 3;
/// Seconds and nanoseconds.
const DURATION: usize = NUMBER + 5;

/// Text or bytes of this length.
pub(crate) const fn bytes_len_bytes(len: usize) -> usize {
    len + match len {
        0..=250 => 1,
        251..=0xffff => 3,
        _ => NUMBER,
    }
}

impl Query {
    pub(crate) fn len_bytes(&self) -> usize {
        TAG + NUMBER
            + NUMBER
            + UUID
            + ADDRESS
            + DURATION
            + BOOL
            + bytes_len_bytes(self.name.len())
            + bytes_len_bytes(self.payload.len())
    }
    pub(crate) fn validate(&self) -> Result<(), QueryError> {
        if self.name.len() + self.payload.len() > QUERY_LEN_BYTES_MAX {
            return Err(QueryError::TooLong);
        }
        Ok(())
    }
}

impl Message {
    /// At least the encoded length.
    pub fn len_bytes(&self) -> usize {
        match self {
            Self::Event(event) => event.len_bytes(),
            Self::Query(query) => query.len_bytes(),
            Self::QueryAck { .. } => TAG + NUMBER + UUID,
            Self::QueryResponse { payload, .. } => TAG + NUMBER + UUID + bytes_len_bytes(payload.len()),
        }
    }
}
