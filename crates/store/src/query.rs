//! Reads as values: what is asked, what is answered, and what a waiting reader watches.

use crate::transaction::{Operation, TransactionReply};
use quorate_types::{Check, CheckStatus, KvPair, ModifyIndex, Node, NodeCoordinate, Service, Session, Uuid};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

/// A question to the replicated state. Names compare without case; ids and keys with it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Query {
    /// Every node (with all of these metadata pairs), by name.
    Nodes {
        node_meta: Vec<(String, String)>,
    },
    /// Every service name with the union of its instances' tags.
    Services {
        node_meta: Vec<(String, String)>,
    },
    /// The instances of one service that carry all `tags`, with their nodes and all checks that concern them,
    /// by node name, then service id.
    Instances {
        service: String,
        tags: Vec<String>,
        node_meta: Vec<(String, String)>,
    },
    /// One node by name, UUID, or unambiguous UUID prefix, with its services and checks.
    Node {
        node: String,
    },
    /// All checks of a node.
    NodeChecks {
        node: String,
    },
    /// All checks bound to instances of a service.
    ServiceChecks {
        service: String,
        node_meta: Vec<(String, String)>,
    },
    /// All checks in a status; `None`: in any.
    ChecksInState {
        status: Option<CheckStatus>,
        node_meta: Vec<(String, String)>,
    },
    /// Whose address is this: nodes first, then service instances (reverse DNS).
    Address {
        address: IpAddr,
    },
    KvGet {
        key: String,
    },
    KvList {
        prefix: String,
    },
    /// Keys only, each cut after the first `separator` beyond the prefix, without repeats.
    KvKeys {
        prefix: String,
        separator: String,
    },
    /// One session, if it lasts.
    Session {
        id: Uuid,
    },
    /// Every session, by id.
    Sessions,
    /// The sessions of one node, by id.
    NodeSessions {
        node: String,
    },
    /// Operations that read, all of one state.
    Transaction {
        operations: Vec<Operation>,
    },
    /// Where these nodes are in the network, by name; every node when none is named.
    Coordinates {
        nodes: Vec<String>,
    },
}

/// One instance of a service with what decides its health.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instance {
    pub node: Arc<Node>,
    pub service: Arc<Service>,
    /// Node-level checks of the node and the instance's own checks.
    pub checks: Vec<Arc<Check>>,
}

impl Instance {
    /// The worst status of all checks; passing without any.
    pub fn status(&self) -> CheckStatus {
        self.checks
            .iter()
            .map(|check| check.status)
            .max()
            .unwrap_or(CheckStatus::Passing)
    }
}

/// A node with all that lives on it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeView {
    pub node: Arc<Node>,
    /// By service id.
    pub services: Vec<Arc<Service>>,
    /// By check id.
    pub checks: Vec<Arc<Check>>,
}

/// What an address belongs to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum AddressOwner {
    Node(Arc<Node>),
    Service(Arc<Service>),
}

/// The answer to the [`Query`] of the same name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    Nodes(Vec<Arc<Node>>),
    Services(BTreeMap<String, BTreeSet<String>>),
    Instances(Vec<Instance>),
    Node(Option<NodeView>),
    Checks(Vec<Arc<Check>>),
    Address(Option<AddressOwner>),
    Kv(Option<Arc<KvPair>>),
    KvList(Vec<Arc<KvPair>>),
    KvKeys(Vec<String>),
    Sessions(Vec<Arc<Session>>),
    Transaction(TransactionReply),
    Coordinates(Vec<Arc<NodeCoordinate>>),
}

/// An answer with the index that the contract gives its read (`X-Consul-Index`), never 0.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evaluation {
    pub index: ModifyIndex,
    pub answer: Answer,
}

/// Something an applied command touched, and something a reader may watch.
///
/// A reader watches a small set of topics that covers every change of its answer's index; it may wake for a change that
/// is not one, and then evaluates again and waits on.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Topic {
    /// The table of nodes.
    Nodes,
    /// Any service registration.
    Services,
    /// Any check.
    Checks,
    /// One node, its services or its checks; the name in lower case.
    Node(String),
    /// The instances of one service, their checks or nodes; the name in lower case.
    Service(String),
    /// The last instance of some service disappeared.
    ServiceGone,
    Key(String),
    /// All keys with the prefix. A deleted tree touches its own prefix as a whole.
    KeyPrefix(String),
    /// The whole state was replaced: wakes everyone.
    Everything,
    /// Any session.
    Sessions,
    Session(Uuid),
    /// The sessions of one node; the name in lower case.
    NodeSessions(String),
    /// A lock-delay began or ended. In no answer: a leader times them.
    LockDelays,
    /// The table of coordinates.
    Coordinates,
}

/// A name as it is compared: names of nodes, services and tags compare without case (Consul 1.8.7).
pub fn fold(name: &str) -> String {
    name.to_lowercase()
}

impl Topic {
    pub fn node(name: &str) -> Self {
        Self::Node(fold(name))
    }
    pub fn service(name: &str) -> Self {
        Self::Service(fold(name))
    }
    pub fn sessions_of(node: &str) -> Self {
        Self::NodeSessions(fold(node))
    }

    /// Whether a reader that watches `self` must wake when `touched` was touched.
    ///
    /// A touched prefix stands for each key under it, so it wakes those who watch such a key, a longer prefix, or a
    /// shorter one.
    pub fn covers(&self, touched: &Self) -> bool {
        match (self, touched) {
            (Self::Everything, _) | (_, Self::Everything) => true,
            (Self::KeyPrefix(watched), Self::Key(key)) => key.starts_with(watched.as_str()),
            (Self::Key(watched), Self::KeyPrefix(prefix)) => watched.starts_with(prefix.as_str()),
            (Self::KeyPrefix(watched), Self::KeyPrefix(prefix)) => {
                watched.starts_with(prefix.as_str()) || prefix.starts_with(watched.as_str())
            }
            (watched, touched) => watched == touched,
        }
    }
}

/// How fresh an answer must be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Consistency {
    /// From the leader under its lease, or a read index: never stale.
    #[default]
    Default,
    /// From the leader after a quorum confirmed it: linearizable.
    Consistent,
    /// From any server; the answer says how old it may be.
    Stale,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(key: &str) -> Topic {
        Topic::Key(key.into())
    }
    fn prefix(prefix: &str) -> Topic {
        Topic::KeyPrefix(prefix.into())
    }

    #[test]
    fn everything_covers_all_and_is_covered_by_all() {
        let topics = [
            Topic::Nodes,
            Topic::service("Web"),
            Topic::ServiceGone,
            key("a"),
            prefix(""),
            Topic::Everything,
        ];
        for topic in topics {
            assert!(topic.covers(&Topic::Everything), "{topic:?}");
            assert!(Topic::Everything.covers(&topic), "{topic:?}");
        }
    }

    #[test]
    fn a_watched_prefix_covers_keys_under_it_and_related_prefixes() {
        for (touched, covered) in [
            (key("a/b"), true),
            (key("a/"), true),
            (key("a"), false),
            (key("b"), false),
            (prefix("a/b/"), true),
            (prefix("a"), true),
            (prefix(""), true),
            (prefix("b"), false),
            (Topic::Nodes, false),
        ] {
            assert_eq!(prefix("a/").covers(&touched), covered, "{touched:?}");
        }
        assert!(prefix("").covers(&key("anything")));
    }

    #[test]
    fn a_watched_key_covers_itself_and_deleted_trees_above_it() {
        for (touched, covered) in [
            (key("a/b"), true),
            (key("a/b/c"), false),
            (key("a"), false),
            (prefix("a/"), true),
            (prefix("a/b"), true),
            (prefix("a/b/"), false),
            (prefix(""), true),
        ] {
            assert_eq!(key("a/b").covers(&touched), covered, "{touched:?}");
        }
    }

    #[test]
    fn tables_nodes_and_services_cover_themselves_only() {
        let topics = [
            Topic::Nodes,
            Topic::Services,
            Topic::Checks,
            Topic::node("a"),
            Topic::service("a"),
            Topic::ServiceGone,
            Topic::Sessions,
            Topic::Coordinates,
            Topic::Session(Uuid::from_random_bytes([1; 16])),
            Topic::Session(Uuid::from_random_bytes([2; 16])),
            Topic::sessions_of("a"),
            Topic::LockDelays,
        ];
        for watched in &topics {
            for touched in &topics {
                assert_eq!(watched.covers(touched), watched == touched);
            }
        }
        assert!(Topic::service("WEB").covers(&Topic::service("web")));
    }
}
