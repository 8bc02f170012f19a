//! What the HTTP API asks of the agent behind it. The agent implements [`Backend`]; this crate owns the words.
//!
//! Duties of an implementer, in order:
//! 1. `read` with `min_index > 0` answers when the read's index exceeds it, or after `wait` with the state as it is then.
//!    `wait` arrives clamped and jittered. A read of an absent key waits until that key exists.
//! 2. `write` answers `Unknown` when the change may yet happen, and any other error only when it certainly did not.
//! 3. A request without a known leader is held for `limits::RPC_HOLD_TIMEOUT` before it fails with `NoLeader`; stale reads
//!    are not held.
//! 4. Dropping a returned future gives up waiting and leaks nothing; a write it began may still happen.
//! 5. What concerns the local agent is never forwarded and never waits for a leader longer than a registration's sync.
//!
//! Not here: routes, JSON shapes and status codes (`routes`, `json`, `errors`).

use crate::metrics::Metrics;
use quorate_store::{Answer, Command, Consistency, Outcome, Query};
use quorate_types::{
    Check, CheckDefinition, CheckStatus, Member, ModifyIndex, NodeCoordinate, NodeId, Service, ServiceDefinition,
    Session, Uuid,
};
use quorate_user_events::{FireError, UserEvent};
use std::collections::BTreeMap;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use thiserror::Error;

/// A read of the replicated state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadRequest {
    pub query: Query,
    pub consistency: Consistency,
    /// 0: answer at once.
    pub min_index: ModifyIndex,
    /// How long to wait for an index above `min_index`; meaningless when that is 0.
    pub wait: Duration,
    /// With [`Consistency::Stale`]: ask the leader instead when the server's last contact is older than this.
    pub max_stale: Option<Duration>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadReply {
    /// Whoever asked the same of the same state may hold it too: it is then encoded once for all.
    pub answer: Arc<Answer>,
    /// Never 0.
    pub index: ModifyIndex,
    pub known_leader: bool,
    /// Since the answering server last heard from the leader; zero on the leader.
    pub last_contact: Duration,
    /// How the answer was obtained in the end: a stale read that exceeded `max_stale` was answered by the leader.
    pub consistency: Consistency,
}

/// Who leads, and who votes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StatusReply {
    /// RPC address.
    pub leader: Option<SocketAddr>,
    /// RPC addresses of the voters, sorted.
    pub peers: Vec<SocketAddr>,
}

/// The servers of the Raft configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RaftConfiguration {
    pub servers: Vec<RaftServer>,
    /// Of the log entry that holds this configuration.
    pub index: ModifyIndex,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RaftServer {
    pub id: NodeId,
    /// `(unknown)` when no member of the pool has this id.
    pub node: String,
    /// RPC address.
    pub address: String,
    pub leader: bool,
    pub voter: bool,
}

/// What the agent says of itself.
#[derive(Clone, Debug, PartialEq)]
pub struct AgentFacts {
    pub node_name: String,
    pub node_id: NodeId,
    pub datacenter: String,
    pub server: bool,
    /// `X.Y.Z`; clients sniff it.
    pub version: String,
    /// This agent as a member of the LAN pool.
    pub member: Member,
    pub meta: BTreeMap<String, String>,
    /// Group to name to value, all texts: `raft` -> `term` -> `2`.
    pub stats: BTreeMap<String, BTreeMap<String, String>>,
    /// The configuration in effect, free of form, secrets rendered `hidden`.
    pub debug_config: serde_json::Value,
}

/// What is wrong with the way of datagrams from one member to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkFault {
    /// None comes through.
    Cut,
    /// They come through in the other direction only.
    OneWay,
    /// Of `sent_count` pings, `lost_count` had no ack.
    Lossy { lost_count: u32, sent_count: u32 },
}

/// A link that loses datagrams though both its ends live.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FaultyLink {
    /// Names, or the id of a member that is no longer live.
    pub from: String,
    pub to: String,
    pub fault: LinkFault,
}

/// Who cannot reach whom, as the members of the LAN pool say themselves.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reachability {
    /// Live ones: all were asked.
    pub member_count: usize,
    /// Who gave no answer in time.
    pub silent: Vec<String>,
    pub links: Vec<FaultyLink>,
    /// Somebody had more links to tell than an answer holds.
    pub is_cut_off: bool,
}

/// What is asked of every member's gossip keyring. Keys are base64, not judged yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyringOperation {
    List,
    Install(String),
    Use(String),
    Remove(String),
}

/// What the members of one pool answered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyringPool {
    pub wan: bool,
    pub datacenter: String,
    pub member_count: usize,
    /// Keys in base64, with how many members have them.
    pub keys: BTreeMap<String, u64>,
    pub primary_keys: BTreeMap<String, u64>,
    /// By member: what it could not do, and why.
    pub messages: BTreeMap<String, String>,
    /// Not all of them did it.
    pub failure: Option<String>,
}

/// Where the servers of a datacenter are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DatacenterCoordinates {
    pub datacenter: String,
    /// By name.
    pub servers: Vec<NodeCoordinate>,
}

/// Why a request to the servers failed. Texts are what Consul's clients match.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum BackendError {
    #[error("No cluster leader")]
    NoLeader,
    /// A client agent knows no server.
    #[error("No known Consul servers")]
    NoServers,
    #[error("No path to datacenter")]
    NoPath,
    /// The write may have happened, or may yet happen.
    #[error("the outcome of the write is unknown: {0}")]
    Unknown(String),
    /// It certainly did not happen.
    #[error("{0}")]
    Failed(String),
}

/// Why the local agent refused.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum LocalError {
    #[error("Unknown service ID {0:?}. Ensure that the service ID is passed, not the service name.")]
    UnknownService(String),
    #[error("Unknown check ID {0:?}. Ensure that the check ID is passed, not the check name.")]
    UnknownCheck(String),
    /// A result was told of a check that runs by itself.
    #[error("CheckID {0:?} does not have associated TTL")]
    NotTtl(String),
    /// A check was registered for a service that is not.
    #[error("ServiceID {0:?} does not exist")]
    NoServiceForCheck(String),
    #[error(
        "Scripts are disabled on this agent from remote calls; to enable, configure 'enable_script_checks' to true"
    )]
    ScriptsDisabled,
    /// `force-leave` of a name no member has.
    #[error("agent: No node found with name '{0}'")]
    UnknownMember(String),
    /// No address could be joined. Each text is one failure, `Failed to join 10.0.0.1: dial tcp ...`.
    #[error("{}", list_failures(.0))]
    Join(Vec<String>),
    /// The definition is wrong in a way this crate does not check: 400.
    #[error("{0}")]
    Invalid(String),
    /// Anything else: 500.
    #[error("{0}")]
    Failed(String),
}

/// Go's hashicorp/go-multierror layout, which Consul's `join` and `keyring` answer.
pub(crate) fn list_failures(failures: &[String]) -> String {
    let mut text = match failures.len() {
        1 => "1 error occurred:\n".to_owned(),
        count => format!("{count} errors occurred:\n"),
    };
    for failure in failures {
        text.push_str("\t* ");
        text.push_str(failure);
        text.push('\n');
    }
    text.push('\n');
    text
}

/// The agent behind the HTTP API. `datacenter: None` is the agent's own, which is never named.
pub trait Backend: Clone + Send + Sync + 'static {
    // Replicated state, wherever its servers are.
    fn read(
        &self,
        datacenter: Option<&str>,
        request: ReadRequest,
    ) -> impl Future<Output = Result<ReadReply, BackendError>> + Send;
    fn write(
        &self,
        datacenter: Option<&str>,
        command: Command,
    ) -> impl Future<Output = Result<Outcome, BackendError>> + Send;
    /// Begins a session's time to live anew, once the leader is sure that it leads. `None`: there is no such session.
    fn renew_session(
        &self,
        datacenter: Option<&str>,
        id: Uuid,
    ) -> impl Future<Output = Result<Option<Arc<Session>>, BackendError>> + Send;
    /// Answers at once, without a leader too.
    fn status(&self, datacenter: Option<&str>) -> impl Future<Output = Result<StatusReply, BackendError>> + Send;
    fn raft_configuration(
        &self,
        datacenter: Option<&str>,
        stale: bool,
    ) -> impl Future<Output = Result<RaftConfiguration, BackendError>> + Send;
    /// Known datacenters, nearest first; at least the agent's own. Needs no leader.
    fn datacenters(&self) -> impl Future<Output = Result<Vec<String>, BackendError>> + Send;

    // The local agent.
    fn node_name(&self) -> String;
    fn datacenter(&self) -> String;
    fn facts(&self) -> AgentFacts;
    /// Members of the LAN or the WAN pool; `None` when this agent is not in that pool.
    fn members(&self, wan: bool) -> Option<Vec<Member>>;
    fn join(&self, address: &str, wan: bool) -> impl Future<Output = Result<(), LocalError>> + Send;
    /// Leaves gracefully; answers when that is done. The process ends soon after.
    fn leave(&self) -> impl Future<Output = Result<(), LocalError>> + Send;
    fn force_leave(&self, name: &str, prune: bool, wan: bool) -> impl Future<Output = Result<(), LocalError>> + Send;
    fn reload(&self) -> impl Future<Output = Result<(), LocalError>> + Send;
    /// Asks every member of the pools, the WAN first; `local_only`: of the LAN alone.
    fn keyring(
        &self,
        operation: KeyringOperation,
        local_only: bool,
    ) -> impl Future<Output = Result<Vec<KeyringPool>, LocalError>> + Send;

    /// Tells every agent of this datacenter, this one included. Needs no leader.
    fn fire_event(&self, event: UserEvent) -> Result<(), FireError>;
    /// The last events that were for this agent (of this name), oldest first.
    fn events(&self, name: Option<&str>) -> Vec<Arc<UserEvent>>;
    /// Changes with every event that is for this agent.
    fn events_version(&self) -> u64;
    /// Ends when `events_version` is no longer `seen`; at once when it already is not.
    fn events_changed(&self, seen: u64) -> impl Future<Output = ()> + Send;

    /// Where a node says to be. Taken once it answers, replicated with the next batch; of an unknown node: dropped then.
    fn update_coordinate(&self, coordinate: NodeCoordinate) -> impl Future<Output = Result<(), BackendError>> + Send;
    /// The servers of each known datacenter, as far as this agent knows where they are, nearest datacenter first.
    fn datacenter_coordinates(&self) -> Vec<DatacenterCoordinates>;

    /// Asks every live member of the LAN pool whom it cannot reach; answers after `timeout` at the latest.
    fn reachability(&self, timeout: Duration) -> impl Future<Output = Result<Reachability, LocalError>> + Send;

    /// What was measured of late.
    fn metrics(&self) -> Metrics;
    /// A request to an endpoint was answered, after so long. Costs next to nothing.
    fn observe_request(&self, method: &str, endpoint: &'static str, took: Duration);

    /// Local services by id. Their indexes are 0.
    fn services(&self) -> Vec<Arc<Service>>;
    /// Local checks by id, the maintenance ones included. Their indexes are 0.
    fn checks(&self) -> Vec<Arc<Check>>;
    /// Changes whenever a local service is added, changed or removed.
    fn services_version(&self) -> u64;
    /// Ends when `services_version` is no longer `seen`; at once when it already is not.
    fn services_changed(&self, seen: u64) -> impl Future<Output = ()> + Send;
    /// Adds or replaces a service and its checks, and starts a sync with the catalog. Ids, names, weights and tagged
    /// addresses are filled in. Checks of the service that are not in the definition stay, unless
    /// `replace_existing_checks`.
    fn register_service(
        &self,
        definition: ServiceDefinition,
        replace_existing_checks: bool,
    ) -> impl Future<Output = Result<(), LocalError>> + Send;
    fn deregister_service(&self, service_id: &str) -> impl Future<Output = Result<(), LocalError>> + Send;
    fn register_check(&self, definition: CheckDefinition) -> impl Future<Output = Result<(), LocalError>> + Send;
    fn deregister_check(&self, check_id: &str) -> impl Future<Output = Result<(), LocalError>> + Send;
    /// A client tells a TTL check's result. `output` is already cut to its limit.
    fn update_check(
        &self,
        check_id: &str,
        status: CheckStatus,
        output: String,
    ) -> impl Future<Output = Result<(), LocalError>> + Send;
    /// `Some(reason)` enters maintenance, `None` ends it; both may be asked for twice. The reason is never empty.
    fn set_service_maintenance(
        &self,
        service_id: &str,
        reason: Option<String>,
    ) -> impl Future<Output = Result<(), LocalError>> + Send;
    fn set_node_maintenance(&self, reason: Option<String>) -> impl Future<Output = Result<(), LocalError>> + Send;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn join_failures_read_as_consuls() {
        let failure = "Failed to join 127.0.0.250: dial tcp 127.0.0.250:8301: connect: connection refused";
        assert_eq!(
            LocalError::Join(vec![failure.to_owned()]).to_string(),
            format!("1 error occurred:\n\t* {failure}\n\n")
        );
        let two = LocalError::Join(vec!["a".to_owned(), "b".to_owned()]).to_string();
        assert_eq!(two, "2 errors occurred:\n\t* a\n\t* b\n\n");
    }
}
