//! The whole replicated state: commands in log order in, answers with indexes out.
//!
//! Promises: the same commands at the same indexes give the same state and outcomes everywhere; a clone is O(1) and never
//! changes, so readers hold one and wait for no writer; an index that a reader is shown is never 0.
//! Invariants: `check` asserts them.
//! Not here: clocks, configuration, the log itself, who waits for which topic.

use crate::catalog::Catalog;
use crate::command::{Command, CommandError, Outcome};
use crate::kv::KvTable;
use crate::query::{Evaluation, Query, Topic, fold};
use crate::touched::Touched;
use quorate_types::{LogIndex, ModifyIndex, Uuid, WallTime};
use serde::{Deserialize, Serialize};
use std::fmt::{self, Write};

/// The cluster's identity, and when it was given.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterName {
    pub id: Uuid,
    pub at: WallTime,
}

/// The replicated state.
#[derive(Clone, Debug, Default)]
pub struct Store {
    pub(crate) last_log_index: LogIndex,
    /// From a log index to the index clients see. A restore raises it above all indexes of its archive.
    pub(crate) offset: u64,
    pub(crate) cluster: Option<ClusterName>,
    pub(crate) catalog: Catalog,
    pub(crate) kv: KvTable,
}

/// What applying a command came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    pub outcome: Outcome,
    /// Sorted, without repeats.
    pub touched: Vec<Topic>,
}

impl Store {
    pub fn new() -> Self {
        Self::default()
    }

    /// Applies the command that the log holds at `index`, which is above all before it and not 0.
    pub fn apply(&mut self, index: LogIndex, command: &Command) -> Applied {
        assert!(index > self.last_log_index, "commands apply in log order");
        self.last_log_index = index;
        let at = self.last_index();
        let mut touched = Touched::default();
        let outcome = match command {
            Command::Batch(commands) => {
                let outcomes = commands
                    .iter()
                    .map(|command| self.apply_single(at, command, &mut touched));
                Outcome::Batch(outcomes.collect())
            }
            command => self.apply_single(at, command, &mut touched),
        };
        Applied {
            outcome,
            touched: touched.into_sorted(),
        }
    }

    fn apply_single(&mut self, at: ModifyIndex, command: &Command, touched: &mut Touched) -> Outcome {
        let done = |result: Result<(), CommandError>| match result {
            Ok(()) => Outcome::Done,
            Err(error) => Outcome::Refused(error),
        };
        match command {
            Command::Barrier => Outcome::Done,
            Command::Register(registration) => done(self.catalog.register(at, registration, touched)),
            Command::Deregister(deregistration) => done(self.catalog.deregister(at, deregistration, touched)),
            Command::Kv(command) => self.kv.apply(at, command, touched),
            Command::CollectTombstones { up_to } => {
                self.kv.collect_tombstones(*up_to, touched);
                Outcome::Done
            }
            Command::Batch(_) => Outcome::Refused(CommandError::BatchNested),
            Command::NameCluster { id, at } => {
                let name = self.cluster.get_or_insert(ClusterName { id: *id, at: *at });
                Outcome::Decided(name.id == *id)
            }
        }
    }

    /// The answer as of now, with the index that the contract gives this read.
    pub fn evaluate(&self, query: &Query) -> Evaluation {
        let catalog = &self.catalog;
        let (index, answer) = match query {
            Query::Nodes { node_meta } => catalog.read_nodes(node_meta),
            Query::Services { node_meta } => catalog.read_services(node_meta),
            Query::Instances {
                service,
                tags,
                node_meta,
            } => catalog.read_instances(service, tags, node_meta),
            Query::Node { node } => catalog.read_node(node),
            Query::NodeChecks { node } => catalog.read_node_checks(node),
            Query::ServiceChecks { service, node_meta } => catalog.read_service_checks(service, node_meta),
            Query::ChecksInState { status, node_meta } => catalog.read_checks_in_state(*status, node_meta),
            Query::Address { address } => catalog.read_address(*address),
            Query::KvGet { key } => self.kv.get(key),
            Query::KvList { prefix } => self.kv.list(prefix),
            Query::KvKeys { prefix, separator } => self.kv.keys(prefix, separator),
        };
        Evaluation {
            index: index.max(ModifyIndex(1)),
            answer,
        }
    }

    /// What a reader of this query watches until it evaluates again, on a newer state: whenever the index of its
    /// evaluation has changed, one of these was touched.
    ///
    /// But for one: the index of an absent key is that of the whole table, and its reader watches the key alone, because
    /// it keeps waiting until the key exists (Consul since 1.12). The topics depend on the state, as whether a service or
    /// anything under a prefix exists decides which index is reported: take them from the state that was evaluated.
    pub fn topics(&self, query: &Query) -> Vec<Topic> {
        // Metadata of nodes may change an answer without touching the table it comes from.
        let with_nodes = |table: Topic, node_meta: &[(String, String)]| match node_meta {
            [] => vec![table],
            _ => vec![Topic::Nodes, table],
        };
        match query {
            Query::Nodes { .. } => vec![Topic::Nodes],
            Query::Services { node_meta } => with_nodes(Topic::Services, node_meta),
            Query::Instances { service, .. } => {
                let name = fold(service);
                let is_gone = !self.catalog.service_indexes.contains_key(name.as_str());
                let mut topics = vec![Topic::Service(name)];
                if is_gone {
                    topics.push(Topic::ServiceGone);
                }
                topics
            }
            Query::Node { node } => {
                let mut topics = vec![Topic::Nodes, Topic::Services];
                // Its checks are in the answer, though its index does not move with them.
                topics.extend(self.catalog.find_node(node).map(|key| Topic::Node(key.to_string())));
                topics
            }
            // An id finds another node, or none, when nodes come and go; their checks go with them.
            Query::NodeChecks { .. } => vec![Topic::Checks],
            Query::ServiceChecks { node_meta, .. } | Query::ChecksInState { node_meta, .. } => {
                with_nodes(Topic::Checks, node_meta)
            }
            Query::Address { .. } => vec![Topic::Nodes, Topic::Services],
            Query::KvGet { key } => vec![Topic::Key(key.clone())],
            Query::KvList { prefix } | Query::KvKeys { prefix, .. } => {
                let watched = if self.kv.has_own_index(prefix) {
                    prefix.as_str()
                } else {
                    ""
                };
                vec![Topic::KeyPrefix(watched.to_owned())]
            }
        }
    }

    /// The index that clients see of the last applied command; 0 before the first.
    pub fn last_index(&self) -> ModifyIndex {
        ModifyIndex(self.last_log_index.0.saturating_add(self.offset))
    }

    /// Where the log stood at the last applied command; 0 before the first.
    pub fn last_log_index(&self) -> LogIndex {
        self.last_log_index
    }

    pub fn cluster_id(&self) -> Option<Uuid> {
        self.cluster.as_ref().map(|name| name.id)
    }

    /// The first broken invariant, in words.
    pub(crate) fn verify(&self) -> Result<(), String> {
        self.catalog.verify(self.last_index())?;
        self.kv.verify(self.last_index())
    }

    /// Asserts every invariant of the state. Costs in proportion to it.
    pub fn check(&self) {
        if let Err(broken) = self.verify() {
            panic!("the replicated state is broken: {broken}");
        }
    }

    /// A digest of the whole state (FNV-1a over its records), to compare servers that run the same build.
    pub fn hash(&self) -> u64 {
        struct Fnv(u64);
        impl Write for Fnv {
            fn write_str(&mut self, text: &str) -> fmt::Result {
                for byte in text.bytes() {
                    self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
                }
                Ok(())
            }
        }
        let mut digest = Fnv(0xcbf2_9ce4_8422_2325);
        for record in self.records() {
            write!(digest, "{record:?};").expect("a digest takes all it is given");
        }
        digest.0
    }
}
