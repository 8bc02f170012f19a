//! Members of a gossip pool as clients see them.

use crate::ids::NodeId;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::SocketAddr;

/// A member's status in Serf's numbering, which `/v1/agent/members` shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum MemberStatus {
    Alive,
    Leaving,
    Left,
    Failed,
}

impl MemberStatus {
    /// The number in `/v1/agent/members` (Consul 1.8.7: 0 none, 1 alive, 2 leaving, 3 left, 4 failed).
    pub const fn as_number(self) -> u8 {
        match self {
            Self::Alive => 1,
            Self::Leaving => 2,
            Self::Left => 3,
            Self::Failed => 4,
        }
    }
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Alive => "alive",
            Self::Leaving => "leaving",
            Self::Left => "left",
            Self::Failed => "failed",
        }
    }
}

/// One member of the pool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    pub id: NodeId,
    pub name: String,
    /// Where its gossip is reached (UDP and TCP).
    pub address: SocketAddr,
    /// Serf's tags: `role` (`consul` or `node`), `dc`, `id`, `port`, `build`, `expect`, `bootstrap`, ...
    pub tags: BTreeMap<String, String>,
    pub status: MemberStatus,
}

impl Member {
    pub fn is_server(&self) -> bool {
        self.tags.get("role").is_some_and(|role| role == "consul")
    }
    /// Where a server's RPC is reached: its gossip IP and its `port` tag.
    pub fn rpc_address(&self) -> Option<SocketAddr> {
        let port = self.tags.get("port")?.parse().ok()?;
        Some(SocketAddr::new(self.address.ip(), port))
    }
}
