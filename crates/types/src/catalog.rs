//! Catalog records: nodes, services, checks, and the requests that change them.

use crate::ids::{ModifyIndex, NodeId, Uuid};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// Health of a check. Ordered from best to worst, so that an aggregate is the maximum.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum CheckStatus {
    Passing,
    Warning,
    #[default]
    Critical,
}

impl CheckStatus {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Passing => "passing",
            Self::Warning => "warning",
            Self::Critical => "critical",
        }
    }
}

impl fmt::Display for CheckStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for CheckStatus {
    type Err = ();
    fn from_str(text: &str) -> Result<Self, ()> {
        match text {
            "passing" => Ok(Self::Passing),
            "warning" => Ok(Self::Warning),
            "critical" => Ok(Self::Critical),
            _ => Err(()),
        }
    }
}

/// A node of the catalog. `id` is nil for external nodes registered without one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    pub id: NodeId,
    pub name: String,
    /// An IP address, or a host name for external nodes.
    pub address: String,
    pub datacenter: String,
    /// `lan`, `wan`, `lan_ipv4`, ...; `None` when registered without (clients see `null`).
    pub tagged_addresses: Option<BTreeMap<String, String>>,
    pub meta: Option<BTreeMap<String, String>>,
    pub create_index: ModifyIndex,
    pub modify_index: ModifyIndex,
}

/// DNS weights of an instance by its aggregate status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Weights {
    pub passing: u16,
    pub warning: u16,
}

impl Default for Weights {
    fn default() -> Self {
        Self { passing: 1, warning: 1 }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceAddress {
    pub address: String,
    pub port: i64,
}

/// One instance of a service on one node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// Unique on its node; defaults to the name.
    pub id: String,
    pub name: String,
    pub tags: Vec<String>,
    /// Empty: the node's address.
    pub address: String,
    pub tagged_addresses: BTreeMap<String, ServiceAddress>,
    pub meta: BTreeMap<String, String>,
    /// Not range-checked by Consul's catalog; DNS leaves out what does not fit 16 bits.
    pub port: i64,
    pub weights: Weights,
    pub enable_tag_override: bool,
    pub create_index: ModifyIndex,
    pub modify_index: ModifyIndex,
}

/// What `HealthCheck.Definition` shows of a check registered through the catalog.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthCheckDefinition {
    pub interval: Option<Duration>,
    pub timeout: Option<Duration>,
    pub deregister_critical_service_after: Option<Duration>,
    pub http: String,
    pub header: BTreeMap<String, Vec<String>>,
    pub method: String,
    pub body: String,
    pub tls_server_name: String,
    pub tls_skip_verify: bool,
    pub tcp: String,
}

/// A health check's state in the catalog.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    pub node: String,
    /// Unique on its node.
    pub check_id: String,
    pub name: String,
    pub status: CheckStatus,
    pub notes: String,
    pub output: String,
    /// Empty: the check is of the whole node.
    pub service_id: String,
    pub service_name: String,
    pub service_tags: Vec<String>,
    /// `http`, `tcp`, `ttl`, `script`, ... or empty (serfHealth, catalog checks).
    pub kind: String,
    /// As configured, for display; empty when there is none.
    pub interval: String,
    pub timeout: String,
    pub definition: HealthCheckDefinition,
    pub create_index: ModifyIndex,
    pub modify_index: ModifyIndex,
}

impl Check {
    pub fn is_node_level(&self) -> bool {
        self.service_id.is_empty()
    }
}

/// A registration, applied as one entry: a node, and on it a service and checks (`PUT /v1/catalog/register`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registration {
    pub node_id: NodeId,
    pub node: String,
    pub address: String,
    pub datacenter: String,
    pub tagged_addresses: Option<BTreeMap<String, String>>,
    pub node_meta: Option<BTreeMap<String, String>>,
    pub service: Option<Service>,
    pub checks: Vec<Check>,
    /// Leave an existing node record as it is.
    pub skip_node_update: bool,
}

/// A deregistration: of a service with its checks, of a check, or of the whole node when neither is named.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deregistration {
    pub node: String,
    pub service_id: String,
    pub check_id: String,
    /// When set, nothing happens unless the node still has this id: it may have been replaced meanwhile.
    pub only_node_id: Option<Uuid>,
}
