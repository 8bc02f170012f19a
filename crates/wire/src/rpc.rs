//! Requests between agents over the server port (8300).

use quorate_store::{Answer, Command, Consistency, Outcome, Query};
use quorate_types::{LogIndex, ModifyIndex, NodeCoordinate, NodeId, Session, Uuid};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use thiserror::Error;

/// A request to a server. New variants are appended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    Read(ReadRequest),
    Write(WriteRequest),
    /// Who leads, and who votes.
    Status,
    /// The servers of the Raft configuration.
    RaftConfiguration {
        stale: bool,
        hops: u8,
    },
    /// Asks the members of the server's pools about their gossip keyrings: only servers are in the WAN pool.
    Keyring {
        operation: KeyringOperation,
        local_only: bool,
    },
    /// The datacenters whose servers are in the WAN pool.
    Datacenters,
    /// Begin a session's time to live anew. Asking twice is as good as once.
    RenewSession {
        id: Uuid,
        hops: u8,
    },
    /// Where a node is. Gathered by the server that is asked, and written with its next batch.
    UpdateCoordinate(NodeCoordinate),
}

/// Keys are base64, not judged yet. New variants are appended.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum KeyringOperation {
    List,
    Install(String),
    Use(String),
    Remove(String),
}

impl std::fmt::Debug for KeyringOperation {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Without the key: what is debugged is logged.
        formatter.write_str(match self {
            Self::List => "List",
            Self::Install(_) => "Install(..)",
            Self::Use(_) => "Use(..)",
            Self::Remove(_) => "Remove(..)",
        })
    }
}

/// What the members of one pool answered about their keyrings.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyringPool {
    pub is_wan: bool,
    pub member_count: usize,
    /// Keys in base64, with how many members have them.
    pub keys: BTreeMap<String, u64>,
    pub primary_keys: BTreeMap<String, u64>,
    /// By member: what it could not do, and why.
    pub messages: BTreeMap<String, String>,
    /// Not all of them did it.
    pub failure: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadRequest {
    pub query: Query,
    pub consistency: Consistency,
    /// Blocking query: answer when the index exceeds this, or `wait` is over. 0: at once.
    pub min_index: ModifyIndex,
    pub wait: Duration,
    /// With `Stale`: ask the leader instead when the server's last contact is older than this.
    pub max_stale: Option<Duration>,
    /// Servers this request went through; a bound against forwarding in a circle.
    pub hops: u8,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WriteRequest {
    pub command: Command,
    pub hops: u8,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Response {
    Read(ReadReply),
    Write(Outcome),
    Status(StatusReply),
    Failed(CallError),
    RaftConfiguration(RaftConfigurationReply),
    Keyring(Vec<KeyringPool>),
    Datacenters(Vec<String>),
    /// The renewed session; `None`: there is none.
    Session(Option<Arc<Session>>),
    CoordinateTaken,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadReply {
    /// Shared with other readers of the same state.
    pub answer: Arc<Answer>,
    /// Never 0.
    pub index: ModifyIndex,
    pub known_leader: bool,
    /// Since the answering server last heard from the leader; zero on the leader.
    pub last_contact: Duration,
    /// How the answer was obtained in the end: a stale read beyond `max_stale` was answered by the leader.
    pub consistency: Consistency,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatusReply {
    /// RPC address.
    pub leader: Option<SocketAddr>,
    /// RPC addresses of the voters, sorted.
    pub peers: Vec<SocketAddr>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RaftConfigurationReply {
    pub servers: Vec<RaftServer>,
    /// Of the log entry that holds this configuration.
    pub index: LogIndex,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RaftServer {
    pub id: NodeId,
    pub name: Option<String>,
    /// RPC address, when gossip knows it.
    pub address: Option<SocketAddr>,
    pub is_leader: bool,
    pub is_voter: bool,
}

/// Why a request failed. Texts are what Consul's clients match.
#[derive(Clone, Debug, PartialEq, Eq, Error, Serialize, Deserialize)]
pub enum CallError {
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
