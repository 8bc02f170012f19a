//! One node: configuration, start, wiring, orderly stop.
//!
//! Layer 3. The drivers know nothing of one another; here each gets what it needs of its neighbours: HTTP and DNS a way to
//! the replicated state (`router`), replication a handler of requests, gossip's members a place in the catalog (`leader`),
//! checks a place for their results (`local`). [`Agent::start`] is the same for production and for the simulator.
//! Not here: any rule of a protocol, any layout of bytes, any JSON.

mod backend;
pub mod config;
mod coordinates;
mod data_dir;
mod dns;
mod evaluations;
mod events;
mod keyring;
mod leader;
mod local;
mod metrics;
mod node;
mod reachability;
mod router;
mod sessions;
mod telemetry;
#[cfg(test)]
mod testing;
mod wan;

use config::Config;
pub use keyring::KeyringStartError;
pub use local::DefinitionsError;
pub use node::{Agent, Ending, ReloadError, StartError, refusals};

use quorate_types::NodeId;
use std::sync::Arc;

/// The version of Consul's API that clients are told they talk to (`/v1/agent/self`, the `build` tag).
pub const API_VERSION: &str = "1.20.0";

/// Told with what the agent starts, and whether its gossip is encrypted.
pub type Starting = dyn Fn(&Config, NodeId, bool) + Send + Sync;

/// What an agent asks of the process around it.
#[derive(Clone)]
pub struct Hooks {
    /// Sets the level of the log: `trace`, `debug`, `info`, `warn` or `error`.
    pub set_log_level: Arc<dyn Fn(&str) + Send + Sync>,
    /// The configuration reads well and the data directory is this agent's: now it begins to work, and to log.
    pub starting: Arc<Starting>,
}

impl Default for Hooks {
    /// The log stays as it is, and nobody is told.
    fn default() -> Self {
        Self {
            set_log_level: Arc::new(|_| {}),
            starting: Arc::new(|_, _, _| {}),
        }
    }
}
