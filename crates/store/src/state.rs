//! The whole replicated state: commands in log order in, answers with indexes out.
//!
//! Promises: the same commands at the same indexes give the same state and outcomes everywhere; a clone is O(1) and never
//! changes, so readers hold one and wait for no writer; an index that a reader is shown is never 0.
//! Invariants: `check` asserts them.
//! Not here: clocks, configuration, the log itself, who waits for which topic.

use crate::catalog::Catalog;
use crate::command::{Command, CommandError, KvCommand, Outcome, SessionCommand};
use crate::coordinate::CoordinateTable;
use crate::digest::hash_of;
use crate::kv::KvTable;
use crate::query::{Answer, Evaluation, Query, Topic, fold};
use crate::session::{SessionChange, SessionTable, SessionView};
use crate::touched::{Lost, Touched};
use quorate_types::{CheckStatus, LogIndex, ModifyIndex, Session, Uuid, WallTime};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::sync::Arc;

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
    pub(crate) sessions: SessionTable,
    pub(crate) coordinates: CoordinateTable,
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
            Command::Barrier | Command::StateHash(_) => Outcome::Done,
            Command::Register(registration) => {
                let result = self.catalog.register(at, registration, touched);
                self.end_lost_sessions(at, touched);
                done(result)
            }
            Command::Deregister(deregistration) => {
                let result = self.catalog.deregister(at, deregistration, touched);
                self.end_lost_sessions(at, touched);
                done(result)
            }
            Command::Kv(command) => self.apply_kv(at, command, touched),
            Command::CollectTombstones { up_to } => {
                self.kv.collect_tombstones(*up_to, touched);
                Outcome::Done
            }
            Command::Batch(_) => Outcome::Refused(CommandError::BatchNested),
            Command::NameCluster { id, at } => {
                let name = self.cluster.get_or_insert(ClusterName { id: *id, at: *at });
                Outcome::Decided(name.id == *id)
            }
            Command::Session(SessionCommand::Create(session)) => done(self.create_session(at, session, touched)),
            Command::Session(SessionCommand::Destroy { id }) => {
                self.end_session(at, *id, touched);
                Outcome::Done
            }
            Command::Session(SessionCommand::EndLockDelays { delays }) => {
                for (key, since) in delays {
                    self.sessions.end_lock_delay(key, *since, touched);
                }
                Outcome::Done
            }
            Command::Coordinates(updates) => {
                self.coordinates.update(at, updates, &self.catalog, touched);
                Outcome::Done
            }
            Command::Transaction(operations) => match self.transact(at, operations, touched) {
                Ok(reply) => Outcome::Transaction(reply),
                Err(error) => Outcome::Refused(error),
            },
        }
    }

    /// A key in its lock-delay is acquired by nobody, and whether the session exists is not looked at then (Consul 1.8.7).
    pub(crate) fn apply_kv(&mut self, at: ModifyIndex, command: &KvCommand, touched: &mut Touched) -> Outcome {
        if let KvCommand::Acquire { pair, session } = command
            && !pair.key.is_empty()
        {
            if self.sessions.is_delayed(&pair.key) {
                return Outcome::Decided(false);
            }
            if !self.sessions.contains(*session) {
                return Outcome::Refused(CommandError::SessionUnknown { id: *session });
            }
        }
        self.kv.apply(at, command, touched)
    }

    fn create_session(
        &mut self,
        at: ModifyIndex,
        session: &Session,
        touched: &mut Touched,
    ) -> Result<(), CommandError> {
        if session.node.is_empty() {
            return Err(CommandError::SessionNodeMissing);
        }
        let key = fold(&session.node);
        let Some(node) = self.catalog.nodes.get(key.as_str()) else {
            return Err(CommandError::NodeNotRegistered);
        };
        for id in session.checks() {
            let check = id.to_owned();
            match self.catalog.checks.get(&(key.as_str(), id)).map(|check| check.status) {
                None => return Err(CommandError::CheckNotRegistered { check }),
                Some(CheckStatus::Critical) => return Err(CommandError::CheckCritical { check }),
                Some(CheckStatus::Passing | CheckStatus::Warning) => {}
            }
        }
        self.sessions.create(at, session, &node.name, touched)
    }

    /// Ends a session, if there is one: its keys are released or deleted, and rest for its lock-delay.
    fn end_session(&mut self, at: ModifyIndex, id: Uuid, touched: &mut Touched) {
        let Some(session) = self.sessions.end(at, id, touched) else {
            return;
        };
        for key in self.kv.take_from(at, &session, touched) {
            self.sessions.delay_lock(at, key, session.lock_delay, touched);
        }
    }

    /// Ends the sessions whose nodes or checks the catalog has just lost, and forgets where those nodes were.
    pub(crate) fn end_lost_sessions(&mut self, at: ModifyIndex, touched: &mut Touched) {
        let Lost { nodes, checks } = touched.take_lost();
        let mut lost: BTreeSet<Uuid> = BTreeSet::new();
        for node in &nodes {
            self.coordinates.forget(at, node, &self.catalog, touched);
            lost.extend(self.sessions.of_node(node));
        }
        for (node, check) in &checks {
            lost.extend(self.sessions.of_check(node, check));
        }
        for id in lost {
            self.end_session(at, id, touched);
        }
    }

    /// The sessions and lock-delays as of now.
    pub fn session_view(&self) -> SessionView {
        SessionView(self.sessions.clone())
    }
    /// What became of sessions and lock-delays since an earlier state. Costs in proportion to that, when this state was
    /// made of the earlier one.
    pub fn session_changes_since(&self, before: &SessionView) -> Vec<SessionChange> {
        self.sessions.changes_since(&before.0)
    }
    /// One session, if it lasts.
    pub fn session(&self, id: Uuid) -> Option<Arc<Session>> {
        self.sessions.get(id).cloned()
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
            Query::Session { id } => self.sessions.read(*id),
            Query::Sessions => self.sessions.read_all(),
            Query::NodeSessions { node } => self.sessions.read_of_node(node),
            Query::Coordinates { nodes } => self.coordinates.read(nodes),
            Query::Transaction { operations } => (
                self.last_index(),
                Answer::Transaction(self.read_transaction(operations)),
            ),
        };
        Evaluation {
            index: index.max(ModifyIndex(1)),
            answer,
        }
    }

    /// What a reader of this query watches until it evaluates again, on a newer state: whenever the index of its
    /// evaluation has changed, one of these was touched.
    ///
    /// But for two: the index of an absent key is that of the whole table, and its reader watches the key alone, because
    /// it keeps waiting until the key exists (Consul since 1.12); and the index of sessions is that of all sessions, where
    /// their reader watches those in its answer (as Consul's does). The topics depend on the state, as whether a service or
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
            // Their index is that of all sessions, but only their own answer is news to who waits for it.
            Query::Session { id } => vec![Topic::Session(*id)],
            Query::Sessions => vec![Topic::Sessions],
            Query::NodeSessions { node } => vec![Topic::sessions_of(node)],
            Query::Coordinates { .. } => vec![Topic::Coordinates],
            // Nobody waits for a transaction; who does is woken by the next restore.
            Query::Transaction { .. } => vec![],
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
        self.kv.verify(self.last_index())?;
        self.sessions.verify(self.last_index())?;
        self.coordinates.verify(&self.catalog, self.last_index())?;
        for session in self.sessions.sessions() {
            let node = fold(&session.node);
            if !self.catalog.nodes.contains_key(node.as_str()) {
                return Err(format!("a session outlived its node: {}", session.id));
            }
            let status = |id| self.catalog.checks.get(&(node.as_str(), id)).map(|check| check.status);
            if session
                .checks()
                .any(|id| status(id).is_none_or(|status| status == CheckStatus::Critical))
            {
                return Err(format!("a session outlived a check: {}", session.id));
            }
        }
        for (holder, key) in self.kv.holders() {
            if !self.sessions.contains(*holder) {
                return Err(format!("a key is held by no session: {key:?}"));
            }
            if self.sessions.is_delayed(key) {
                return Err(format!("a key was acquired in its lock-delay: {key:?}"));
            }
        }
        Ok(())
    }

    /// Asserts every invariant of the state. Costs in proportion to it.
    pub fn check(&self) {
        if let Err(broken) = self.verify() {
            panic!("the replicated state is broken: {broken}");
        }
        assert_eq!(
            self.tables_hash(),
            self.recomputed_tables_hash(),
            "the hash of the state is kept"
        );
    }

    fn tables_hash(&self) -> u128 {
        [self.kv.hash(), self.sessions.hash(), self.coordinates.hash()]
            .into_iter()
            .fold(self.catalog.hash(), u128::wrapping_add)
    }
    fn recomputed_tables_hash(&self) -> u128 {
        [
            self.kv.recomputed_hash(),
            self.sessions.recomputed_hash(),
            self.coordinates.recomputed_hash(),
        ]
        .into_iter()
        .fold(self.catalog.recomputed_hash(), u128::wrapping_add)
    }

    /// A digest of the whole state, to compare servers that applied the same log: equal states have equal ones, however
    /// they were reached. Kept along with the changes, so that asking costs nothing.
    pub fn hash(&self) -> u64 {
        let indexes = (
            self.catalog.indexes,
            self.kv.index(),
            self.sessions.index(),
            self.coordinates.index(),
        );
        let head = (self.last_log_index, self.offset, &self.cluster, indexes);
        let hash = hash_of(&(head, self.tables_hash()));
        (hash >> 64) as u64 ^ hash as u64
    }
}
