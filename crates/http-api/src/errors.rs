//! Errors to status codes and texts: the one place that knows both. Texts are Consul's; clients match them.

use crate::backend::{BackendError, LocalError, list_failures};
use crate::filter::FilterError;
use crate::go::{DurationError, UintError};
use http::StatusCode;
use quorate_store::CommandError;
use thiserror::Error;

/// Why a request was not answered as asked.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Fault {
    #[error("Invalid index")]
    Index,
    #[error("Invalid wait time")]
    Wait,
    #[error("Invalid max_stale value {0:?}")]
    MaxStale(String),
    #[error("Cannot specify ?stale with ?consistent, conflicting semantics.")]
    StaleAndConsistent,
    #[error("Cannot specify ?cached with ?consistent, conflicting semantics.")]
    CachedAndConsistent,
    #[error("Invalid value for ?passing")]
    Passing,
    /// Part of a path is missing: `service name`, `node name`, ...
    #[error("Missing {0}")]
    Missing(&'static str),
    #[error("{0} missing")]
    IdMissing(&'static str),
    #[error("Bad request: Missing {0}")]
    HealthIdMissing(&'static str),
    #[error("Missing value for enable")]
    EnableMissing,
    #[error("Invalid value for enable: {0:?}")]
    Enable(String),
    #[error("Invalid check status: '{0}'")]
    UpdateStatus(String),
    #[error("Conflicting flags: {0}")]
    ConflictingFlags(String),
    #[error("invalid key name: {0}")]
    KeyName(&'static str),
    #[error(transparent)]
    Uint(#[from] UintError),
    #[error("Request decode failed: {0}")]
    Decode(#[from] DecodeError),
    /// A definition is understood, and wrong.
    #[error("{0}")]
    Definition(String),
    /// A session is named, or asked for, that cannot be.
    #[error(transparent)]
    Session(#[from] SessionFault),
    #[error("Session id '{0}' not found")]
    UnknownSession(String),
    #[error("Failed to parse body: {0}")]
    TransactionBody(DecodeError),
    #[error("Transaction contains too many operations ({count} > {count_max})")]
    TransactionTooLong { count: usize, count_max: usize },
    #[error("Value for key {key:?} is too large ({len_bytes} > {len_bytes_max} bytes)")]
    ValueTooLarge {
        key: String,
        len_bytes: usize,
        len_bytes_max: usize,
    },
    #[error("Bad node ID: {0}")]
    NodeId(quorate_types::UuidError),
    #[error("Network segments are not supported in this version of Consul")]
    Segments,
    #[error("Connect must be enabled in order to use this endpoint")]
    ConnectDisabled,
    #[error("unknown service ID: {0}")]
    UnknownAgentService(String),
    #[error("No service registered with ID {0:?}")]
    NoServiceToMaintain(String),
    #[error(
        "Request body({len_bytes} bytes) too large, max size: {len_bytes_max} bytes. See https://developer.hashicorp.com/consul/docs/agent/config/config-files#{setting}."
    )]
    BodyTooLarge {
        len_bytes: u64,
        len_bytes_max: usize,
        setting: &'static str,
    },
    /// The same, of a body that does not say its length.
    #[error(
        "Request body too large, max size: {len_bytes_max} bytes. See https://developer.hashicorp.com/consul/docs/agent/config/config-files#{setting}."
    )]
    StreamTooLarge {
        len_bytes_max: usize,
        setting: &'static str,
    },
    #[error("Request body could not be read in time")]
    BodyTimeout,
    #[error("Request body could not be read: {0}")]
    BodyBroken(String),
    #[error("Bad request: {0}")]
    BadRequest(String),
    #[error(transparent)]
    EventFilter(quorate_user_events::FilterError),
    #[error(transparent)]
    Event(quorate_user_events::FireError),
    /// Each text is one failure of a pool or of one of its members.
    #[error("{}", list_failures(.0))]
    Keyring(Vec<String>),
    #[error("Endpoint is blocked by agent configuration")]
    Blocked,
    #[error("Access is restricted")]
    WriteRestricted,
    #[error("method {0} not allowed")]
    Method(String),
    #[error("internal error")]
    Panicked,
    #[error("Failed to create boolean expression evaluator: {0}")]
    Filter(FilterError),
    /// The same, where Consul says only why.
    #[error("{0}")]
    BareFilter(FilterError),
    #[error(transparent)]
    Command(#[from] CommandError),
    #[error(transparent)]
    Backend(#[from] BackendError),
    #[error(transparent)]
    Local(#[from] LocalError),
}

/// Why a body is no definition. Texts are those of Go's `encoding/json`.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum DecodeError {
    #[error("EOF")]
    Empty,
    #[error("unexpected EOF")]
    Truncated,
    #[error("{0}")]
    Syntax(String),
    #[error("json: unknown field {0:?}")]
    UnknownField(String),
    #[error("json: cannot unmarshal {found} into Go struct field .{field} of type {wanted}")]
    WrongType {
        found: String,
        field: &'static str,
        wanted: &'static str,
    },
    #[error("json: cannot unmarshal {found} into Go value of type {wanted}")]
    WrongValue { found: String, wanted: &'static str },
    #[error(transparent)]
    Duration(#[from] DurationError),
}

#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum SessionFault {
    #[error("missing session")]
    Missing,
    #[error("failed session lookup: index error: UUID must be 36 characters")]
    NotUuid,
    #[error("Invalid Behavior setting '{0}'")]
    Behavior(String),
    #[error("Session TTL '{text}' invalid: {err}")]
    TtlText { text: String, err: DurationError },
    #[error("Invalid Session TTL '{nanos}', must be between [{min}={max}]")]
    TtlRange { nanos: i64, min: String, max: String },
}

impl Fault {
    pub fn status(&self) -> StatusCode {
        match self {
            Self::Index
            | Self::Wait
            | Self::MaxStale(_)
            | Self::StaleAndConsistent
            | Self::CachedAndConsistent
            | Self::Passing
            | Self::Missing(_)
            | Self::IdMissing(_)
            | Self::HealthIdMissing(_)
            | Self::EnableMissing
            | Self::Enable(_)
            | Self::UpdateStatus(_)
            | Self::ConflictingFlags(_)
            | Self::KeyName(_)
            | Self::Decode(_)
            | Self::TransactionBody(_)
            | Self::Definition(_)
            | Self::BadRequest(_)
            | Self::BodyBroken(_) => StatusCode::BAD_REQUEST,
            Self::UnknownAgentService(_) | Self::NoServiceToMaintain(_) | Self::UnknownSession(_) => {
                StatusCode::NOT_FOUND
            }
            Self::Blocked | Self::WriteRestricted => StatusCode::FORBIDDEN,
            Self::Method(_) => StatusCode::METHOD_NOT_ALLOWED,
            Self::BodyTimeout => StatusCode::REQUEST_TIMEOUT,
            Self::BodyTooLarge { .. }
            | Self::StreamTooLarge { .. }
            | Self::TransactionTooLong { .. }
            | Self::ValueTooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Local(error) => match error {
                LocalError::UnknownService(_) | LocalError::UnknownCheck(_) => StatusCode::NOT_FOUND,
                LocalError::Invalid(_) => StatusCode::BAD_REQUEST,
                LocalError::NotTtl(_)
                | LocalError::NoServiceForCheck(_)
                | LocalError::ScriptsDisabled
                | LocalError::UnknownMember(_)
                | LocalError::Join(_)
                | LocalError::Failed(_) => StatusCode::INTERNAL_SERVER_ERROR,
            },
            // Consul 1.8.7 answers 500 for a bad number, a bad filter, and whatever a server refused.
            Self::Uint(_)
            | Self::Session(_)
            | Self::NodeId(_)
            | Self::Segments
            | Self::ConnectDisabled
            | Self::Panicked
            | Self::Keyring(_)
            | Self::EventFilter(_)
            | Self::Event(_)
            | Self::Filter(_)
            | Self::BareFilter(_)
            | Self::Command(_)
            | Self::Backend(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// What is left of the connection's input is not worth reading.
    pub fn closes_connection(&self) -> bool {
        matches!(
            self,
            Self::BodyTooLarge { .. } | Self::StreamTooLarge { .. } | Self::BodyTimeout | Self::BodyBroken(_)
        )
    }
}
