//! Definitions: what an operator or a client asks an agent to register and to check.

use crate::catalog::{CheckStatus, Service};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::Duration;

/// A service to register with the local agent, and its checks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceDefinition {
    pub service: Service,
    /// Their `service_id` is this service's id.
    pub checks: Vec<CheckDefinition>,
    /// ACL token to register it with; empty: the agent's own.
    pub token: String,
}

/// A check to run, or to be told about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckDefinition {
    /// Unique on the node.
    pub id: String,
    pub name: String,
    pub notes: String,
    /// Empty: a check of the whole node.
    pub service_id: String,
    /// Status until the first result.
    pub status: CheckStatus,
    pub kind: CheckKind,
    /// Between the starts of two runs. Zero for kinds that do not run (`Ttl`).
    pub interval: Duration,
    /// Of one run. `None`: 30 s for scripts, 10 s for the rest.
    pub timeout: Option<Duration>,
    /// Consecutive results needed to change status; 0 and 1 mean at once.
    pub success_before_passing: u32,
    pub failures_before_warning: u32,
    pub failures_before_critical: u32,
    /// A service critical for longer than this is deregistered (at least one minute).
    pub deregister_critical_service_after: Option<Duration>,
    /// Tail of the output that is kept; at most `limits::CHECK_OUTPUT_LEN_BYTES_MAX`.
    pub output_len_bytes_max: usize,
    pub token: String,
}

/// How a check gets its result.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum CheckKind {
    /// Runs a program: exit code 0 passing, 1 warning, else critical.
    Script { args: Vec<String> },
    /// 2xx passing, 429 warning, else critical.
    Http {
        url: String,
        /// Empty: GET.
        method: String,
        header: BTreeMap<String, Vec<String>>,
        body: String,
        disable_redirects: bool,
        tls_skip_verify: bool,
        tls_server_name: String,
    },
    /// Passing when the connection opens. `host:port`.
    Tcp { address: String },
    /// Told by clients; critical when not told within `ttl`.
    Ttl { ttl: Duration },
    /// Set by the agent (maintenance); never run.
    Maintenance,
}

impl CheckKind {
    /// The word in `HealthCheck.Type`.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Script { .. } => "script",
            Self::Http { .. } => "http",
            Self::Tcp { .. } => "tcp",
            Self::Ttl { .. } => "ttl",
            Self::Maintenance => "maintenance",
        }
    }
}
