//! Transactions: operations on keys and on the catalog that happen all or not at all.
//!
//! In: operations, in order; each sees what those before it did. Out: what they yielded, or every fault that was found.
//! Promises: with a fault nothing changes and nobody is woken; without one all changes carry the same index.
//! Not here: how many bytes a request may have, which operations a token allows.
//!
//! A transaction runs on a copy of the state, which costs nothing to make, and the copy takes the state's place when no
//! operation failed. As in Consul, operations that could be refused unseen (no key, a key in its lock-delay) are all looked
//! at first, and end the transaction before the others are tried.

use crate::command::{CommandError, KvCommand, Outcome};
use crate::query::fold;
use crate::state::Store;
use crate::touched::Touched;
use quorate_types::limits::TRANSACTION_OPERATION_COUNT_MAX;
use quorate_types::{Check, Deregistration, KvPair, ModifyIndex, Node, NodeId, Registration, Service, Uuid};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use thiserror::Error;

/// One step of a transaction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Operation {
    Kv(KvOperation),
    Node(NodeOperation),
    Service(ServiceOperation),
    Check(CheckOperation),
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KvOperation {
    pub verb: KvVerb,
    /// Of `*Tree`: the prefix.
    pub key: String,
    pub value: Vec<u8>,
    pub flags: u64,
    /// What `Cas`, `DeleteCas` and `CheckIndex` compare.
    pub index: ModifyIndex,
    /// As the client wrote it: what is no id is told so by its operation.
    pub session: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum KvVerb {
    Set,
    /// Index 0: the key must not exist.
    Cas,
    Lock,
    Unlock,
    #[default]
    Get,
    /// An absent key is an empty one.
    GetOrEmpty,
    GetTree,
    CheckIndex,
    CheckSession,
    CheckNotExists,
    Delete,
    DeleteCas,
    DeleteTree,
    /// Fails, by its name.
    Unknown(String),
}

/// What `Cas` and `DeleteCas` compare is the modify index of the record in the operation.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum CatalogVerb {
    #[default]
    Get,
    Set,
    Cas,
    Delete,
    DeleteCas,
    /// Fails, by its name.
    Unknown(String),
}

/// A node found by its id, when that is given, else by its name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeOperation {
    pub verb: CatalogVerb,
    pub node: Node,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceOperation {
    pub verb: CatalogVerb,
    pub node: String,
    pub service: Box<Service>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckOperation {
    pub verb: CatalogVerb,
    pub check: Box<Check>,
}

/// What an operation yielded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum OperationResult {
    /// Without its value, unless that was asked for.
    Kv(Arc<KvPair>),
    Node(Arc<Node>),
    Service(Arc<Service>),
    Check(Arc<Check>),
}

/// What a transaction came to: results without errors, or errors without results.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransactionReply {
    /// In the order of the operations; some yield nothing, `GetTree` one for each key.
    pub results: Vec<OperationResult>,
    /// In the order of the operations.
    pub errors: Vec<OperationError>,
}

impl TransactionReply {
    pub fn is_done(&self) -> bool {
        self.errors.is_empty()
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Error, Serialize, Deserialize)]
#[error("operation {position} failed")]
pub struct OperationError {
    /// From 0.
    pub position: u64,
    #[source]
    pub fault: OperationFault,
}

/// Why an operation failed. Texts are Consul 1.8.7's.
#[derive(Clone, Debug, PartialEq, Eq, Error, Serialize, Deserialize)]
pub enum OperationFault {
    #[error(transparent)]
    Command(CommandError),
    #[error("unknown {kind} verb {verb:?}")]
    UnknownVerb { kind: RecordKind, verb: String },
    #[error("failed to set key {key:?}, index is stale")]
    KeySetStale { key: String },
    #[error("failed to delete key {key:?}, index is stale")]
    KeyDeleteStale { key: String },
    #[error("missing session")]
    SessionMissing,
    #[error("failed session lookup: index error: UUID must be 36 characters")]
    SessionNotUuid,
    #[error("failed to lock key {key:?}, lock is already held")]
    LockHeld { key: String },
    #[error("failed to lock key {key:?} due to lock delay")]
    LockDelayed { key: String },
    #[error("failed to unlock key {key:?}, lock isn't held, or is held by another session")]
    LockNotHeld { key: String },
    #[error("key {key:?} doesn't exist")]
    KeyAbsent { key: String },
    #[error("key {key:?} exists")]
    KeyPresent { key: String },
    #[error("failed index check for key {key:?}, current modify index {current} != {expected}")]
    IndexDiffers {
        key: String,
        current: ModifyIndex,
        expected: ModifyIndex,
    },
    #[error("failed to check index, key {key:?} doesn't exist")]
    IndexOfAbsent { key: String },
    #[error("failed session check for key {key:?}, current session {current:?} != {expected:?}")]
    SessionDiffers {
        key: String,
        current: String,
        expected: String,
    },
    #[error("failed to check session, key {key:?} doesn't exist")]
    SessionOfAbsent { key: String },
    #[error("{what} doesn't exist")]
    RecordAbsent { what: RecordName },
    #[error("failed to set {what}, index is stale")]
    RecordSetStale { what: RecordName },
    #[error("failed to delete {what}, index is stale")]
    RecordDeleteStale { what: RecordName },
    #[error("Missing service registration")]
    ServiceNotRegistered,
    /// A reader asked for a change.
    #[error("a transaction that is read may not write")]
    Write,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RecordKind {
    Kv,
    Node,
    Service,
    Check,
}

impl std::fmt::Display for RecordKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Kv => "KV",
            Self::Node => "Node",
            Self::Service => "Service",
            Self::Check => "Check",
        })
    }
}

/// A record of the catalog as a fault calls it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RecordName {
    Node { node: String },
    Service { id: String, node: String },
    Check { id: String, node: String },
}

impl std::fmt::Display for RecordName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Node { node } => write!(f, "node {node:?}"),
            Self::Service { id, node } => write!(f, "service {id:?} on node {node:?}"),
            Self::Check { id, node } => write!(f, "check {id:?} on node {node:?}"),
        }
    }
}

impl From<CommandError> for OperationFault {
    fn from(err: CommandError) -> Self {
        Self::Command(err)
    }
}

impl Operation {
    /// Whether it may change something. What is no verb of keys changes nothing, as Consul 1.8.7 takes it.
    pub fn is_write(&self) -> bool {
        match self {
            Self::Kv(operation) => matches!(
                operation.verb,
                KvVerb::Set
                    | KvVerb::Cas
                    | KvVerb::Lock
                    | KvVerb::Unlock
                    | KvVerb::Delete
                    | KvVerb::DeleteCas
                    | KvVerb::DeleteTree
            ),
            Self::Node(NodeOperation { verb, .. })
            | Self::Service(ServiceOperation { verb, .. })
            | Self::Check(CheckOperation { verb, .. }) => *verb != CatalogVerb::Get,
        }
    }
}

type Done = Result<Vec<OperationResult>, OperationFault>;

/// Whether a record may be set, or deleted, by whoever last saw it at `expected`; 0: never.
fn may_set(current: Option<ModifyIndex>, expected: ModifyIndex) -> bool {
    current.unwrap_or(ModifyIndex::ZERO) == expected
}

impl Store {
    /// Runs operations; they happen when the reply has no errors.
    pub(crate) fn transact(
        &mut self,
        at: ModifyIndex,
        operations: &[Operation],
        touched: &mut Touched,
    ) -> Result<TransactionReply, CommandError> {
        let (count, count_max) = (operations.len() as u64, TRANSACTION_OPERATION_COUNT_MAX as u64);
        if count > count_max {
            return Err(CommandError::TransactionTooLong { count, count_max });
        }
        let mut trial = self.clone();
        let mut trial_touched = Touched::default();
        let reply = run(operations, |operation, is_first_look| {
            if is_first_look {
                trial.preview(operation).map(|()| Vec::new())
            } else {
                trial.operate(at, operation, &mut trial_touched)
            }
        });
        if reply.is_done() {
            *self = trial;
            touched.absorb(trial_touched);
        }
        Ok(reply)
    }

    /// Runs operations that read.
    pub(crate) fn read_transaction(&self, operations: &[Operation]) -> TransactionReply {
        let mut state = self.clone();
        let at = self.last_index();
        run(operations, |operation, is_first_look| match operation {
            operation if operation.is_write() => Err(OperationFault::Write),
            operation if is_first_look => state.preview(operation).map(|()| Vec::new()),
            operation => state.operate(at, operation, &mut Touched::default()),
        })
    }

    /// What is refused before anything is tried.
    fn preview(&self, operation: &Operation) -> Result<(), OperationFault> {
        match operation {
            Operation::Kv(operation) => {
                let key = &operation.key;
                if key.is_empty() && !matches!(operation.verb, KvVerb::DeleteTree | KvVerb::GetTree) {
                    return Err(CommandError::KeyMissing.into());
                }
                if operation.verb == KvVerb::Lock && self.sessions.is_delayed(key) {
                    return Err(OperationFault::LockDelayed { key: key.clone() });
                }
            }
            Operation::Node(NodeOperation { node, .. }) if node.name.is_empty() && node.id.0.is_nil() => {
                return Err(CommandError::NodeMissing.into());
            }
            Operation::Service(ServiceOperation { verb, service, .. }) => {
                let is_set = matches!(verb, CatalogVerb::Set | CatalogVerb::Cas);
                if is_set && service.name.is_empty() {
                    return Err(CommandError::ServiceNameMissing.into());
                }
            }
            Operation::Check(CheckOperation { check, .. }) if check.check_id.is_empty() && check.name.is_empty() => {
                return Err(CommandError::CheckIdMissing.into());
            }
            Operation::Node(_) | Operation::Check(_) => {}
        }
        Ok(())
    }

    fn operate(&mut self, at: ModifyIndex, operation: &Operation, touched: &mut Touched) -> Done {
        match operation {
            Operation::Kv(operation) => self.operate_kv(at, operation, touched),
            Operation::Node(operation) => self.operate_node(at, operation, touched),
            Operation::Service(operation) => self.operate_service(at, operation, touched),
            Operation::Check(operation) => self.operate_check(at, operation, touched),
        }
    }

    fn operate_kv(&mut self, at: ModifyIndex, operation: &KvOperation, touched: &mut Touched) -> Done {
        let key = operation.key.as_str();
        let named = || key.to_owned();
        let wanted = || KvPair {
            key: named(),
            value: operation.value.clone(),
            flags: operation.flags,
            ..KvPair::default()
        };
        match &operation.verb {
            KvVerb::Set => self.kv.set(at, &wanted(), touched),
            KvVerb::Cas => {
                if !self.kv.cas(at, &wanted(), operation.index, touched) {
                    return Err(OperationFault::KeySetStale { key: named() });
                }
            }
            KvVerb::Lock => {
                let session = session_of(operation)?;
                if self.sessions.is_delayed(key) {
                    return Err(OperationFault::LockDelayed { key: named() });
                }
                let pair = wanted();
                match self.apply_kv(at, &KvCommand::Acquire { pair, session }, touched) {
                    Outcome::Refused(err) => return Err(err.into()),
                    Outcome::Decided(false) => return Err(OperationFault::LockHeld { key: named() }),
                    _ => {}
                }
            }
            KvVerb::Unlock => {
                let held = match session_of(operation) {
                    Ok(session) => self.kv.release(at, &wanted(), session, touched),
                    Err(OperationFault::SessionNotUuid) => false,
                    Err(fault) => return Err(fault),
                };
                if !held {
                    return Err(OperationFault::LockNotHeld { key: named() });
                }
            }
            KvVerb::Get => {
                let pair = self.kv.pair(key).cloned();
                let pair = pair.ok_or_else(|| OperationFault::KeyAbsent { key: named() })?;
                return Ok(vec![OperationResult::Kv(pair)]);
            }
            KvVerb::GetOrEmpty => {
                let empty = || {
                    Arc::new(KvPair {
                        key: named(),
                        ..KvPair::default()
                    })
                };
                let pair = self.kv.pair(key).cloned().unwrap_or_else(empty);
                return Ok(vec![OperationResult::Kv(pair)]);
            }
            KvVerb::GetTree => return Ok(self.kv.tree(key).cloned().map(OperationResult::Kv).collect()),
            KvVerb::CheckIndex => {
                let Some(pair) = self.kv.pair(key) else {
                    return Err(OperationFault::IndexOfAbsent { key: named() });
                };
                if pair.modify_index != operation.index {
                    return Err(OperationFault::IndexDiffers {
                        key: named(),
                        current: pair.modify_index,
                        expected: operation.index,
                    });
                }
            }
            KvVerb::CheckSession => {
                let Some(pair) = self.kv.pair(key) else {
                    return Err(OperationFault::SessionOfAbsent { key: named() });
                };
                let current = pair.session.map(|session| session.to_string()).unwrap_or_default();
                if !current.eq_ignore_ascii_case(&operation.session) {
                    return Err(OperationFault::SessionDiffers {
                        key: named(),
                        current,
                        expected: operation.session.clone(),
                    });
                }
            }
            KvVerb::CheckNotExists => {
                return match self.kv.pair(key) {
                    Some(_) => Err(OperationFault::KeyPresent { key: named() }),
                    None => Ok(Vec::new()),
                };
            }
            KvVerb::Delete => {
                self.kv.delete(at, key, touched);
                return Ok(Vec::new());
            }
            KvVerb::DeleteCas => {
                return match self.kv.delete_cas(at, key, operation.index, touched) {
                    true => Ok(Vec::new()),
                    false => Err(OperationFault::KeyDeleteStale { key: named() }),
                };
            }
            KvVerb::DeleteTree => {
                self.kv.delete_tree(at, key, touched);
                return Ok(Vec::new());
            }
            KvVerb::Unknown(verb) => {
                return Err(OperationFault::UnknownVerb {
                    kind: RecordKind::Kv,
                    verb: verb.clone(),
                });
            }
        }
        let pair = self.kv.pair(key).expect("what was just written or checked is there");
        let without_value = KvPair {
            key: pair.key.clone(),
            value: Vec::new(),
            ..**pair
        };
        Ok(vec![OperationResult::Kv(Arc::new(without_value))])
    }

    fn found_node(&self, id: NodeId, name: &str) -> Option<Arc<Node>> {
        if id.0.is_nil() {
            return self.catalog.nodes.get(fold(name).as_str()).cloned();
        }
        let key = self.catalog.node_ids.get(&id)?;
        self.catalog.nodes.get(key).cloned()
    }

    fn register(
        &mut self,
        at: ModifyIndex,
        registration: &Registration,
        touched: &mut Touched,
    ) -> Result<(), OperationFault> {
        self.catalog.register(at, registration, touched)?;
        self.end_lost_sessions(at, touched);
        Ok(())
    }

    fn deregister(
        &mut self,
        at: ModifyIndex,
        deregistration: &Deregistration,
        touched: &mut Touched,
    ) -> Result<(), OperationFault> {
        self.catalog.deregister(at, deregistration, touched)?;
        self.end_lost_sessions(at, touched);
        Ok(())
    }

    fn operate_node(&mut self, at: ModifyIndex, operation: &NodeOperation, touched: &mut Touched) -> Done {
        let wanted = &operation.node;
        let current = self.found_node(wanted.id, &wanted.name);
        let named = || RecordName::Node {
            node: wanted.name.clone(),
        };
        let verdict = verdict(
            &operation.verb,
            RecordKind::Node,
            current.as_ref().map(|node| node.modify_index),
            wanted.modify_index,
            named,
        )?;
        match verdict {
            Verdict::Get => {}
            Verdict::Set => {
                let registration = Registration {
                    node_id: wanted.id,
                    node: wanted.name.clone(),
                    address: wanted.address.clone(),
                    datacenter: wanted.datacenter.clone(),
                    tagged_addresses: wanted.tagged_addresses.clone(),
                    node_meta: wanted.meta.clone(),
                    ..Registration::default()
                };
                self.register(at, &registration, touched)?;
            }
            Verdict::Delete => {
                if let Some(node) = current {
                    let deregistration = Deregistration {
                        node: node.name.clone(),
                        ..Deregistration::default()
                    };
                    self.deregister(at, &deregistration, touched)?;
                }
                return Ok(Vec::new());
            }
        }
        let node = self.found_node(wanted.id, &wanted.name);
        let node = node.ok_or_else(|| OperationFault::RecordAbsent { what: named() })?;
        Ok(vec![OperationResult::Node(node)])
    }

    fn operate_service(&mut self, at: ModifyIndex, operation: &ServiceOperation, touched: &mut Touched) -> Done {
        let mut wanted = (*operation.service).clone();
        if wanted.id.is_empty() {
            wanted.id.clone_from(&wanted.name);
        }
        let key = fold(&operation.node);
        let find = |store: &Self| store.catalog.services.get(&(key.as_str(), wanted.id.as_str())).cloned();
        let current = find(self);
        let named = || RecordName::Service {
            id: wanted.id.clone(),
            node: operation.node.clone(),
        };
        let verdict = verdict(
            &operation.verb,
            RecordKind::Service,
            current.as_ref().map(|service| service.modify_index),
            wanted.modify_index,
            named,
        )?;
        match verdict {
            Verdict::Get => {}
            Verdict::Set => {
                if !self.catalog.nodes.contains_key(key.as_str()) {
                    return Err(CommandError::NodeNotRegistered.into());
                }
                let registration = Registration {
                    node: operation.node.clone(),
                    service: Some(wanted.clone()),
                    skip_node_update: true,
                    ..Registration::default()
                };
                self.register(at, &registration, touched)?;
            }
            Verdict::Delete => {
                if current.is_some() {
                    let deregistration = Deregistration {
                        node: operation.node.clone(),
                        service_id: wanted.id.clone(),
                        ..Deregistration::default()
                    };
                    self.deregister(at, &deregistration, touched)?;
                }
                return Ok(Vec::new());
            }
        }
        let service = find(self).ok_or_else(|| OperationFault::RecordAbsent { what: named() })?;
        Ok(vec![OperationResult::Service(service)])
    }

    fn operate_check(&mut self, at: ModifyIndex, operation: &CheckOperation, touched: &mut Touched) -> Done {
        let mut wanted = (*operation.check).clone();
        if wanted.check_id.is_empty() {
            wanted.check_id.clone_from(&wanted.name);
        }
        let key = fold(&wanted.node);
        let find = |store: &Self| {
            let id = (key.as_str(), wanted.check_id.as_str());
            store.catalog.checks.get(&id).cloned()
        };
        let current = find(self);
        let named = || RecordName::Check {
            id: wanted.check_id.clone(),
            node: wanted.node.clone(),
        };
        let verdict = verdict(
            &operation.verb,
            RecordKind::Check,
            current.as_ref().map(|check| check.modify_index),
            wanted.modify_index,
            named,
        )?;
        match verdict {
            Verdict::Get => {}
            Verdict::Set => {
                if !self.catalog.nodes.contains_key(key.as_str()) {
                    return Err(CommandError::NodeNotRegistered.into());
                }
                let service = (key.as_str(), wanted.service_id.as_str());
                if !wanted.is_node_level() && !self.catalog.services.contains_key(&service) {
                    return Err(OperationFault::ServiceNotRegistered);
                }
                let registration = Registration {
                    node: wanted.node.clone(),
                    checks: vec![wanted.clone()],
                    skip_node_update: true,
                    ..Registration::default()
                };
                self.register(at, &registration, touched)?;
            }
            Verdict::Delete => {
                if current.is_some() {
                    let deregistration = Deregistration {
                        node: wanted.node.clone(),
                        check_id: wanted.check_id.clone(),
                        ..Deregistration::default()
                    };
                    self.deregister(at, &deregistration, touched)?;
                }
                return Ok(Vec::new());
            }
        }
        let check = find(self).ok_or_else(|| OperationFault::RecordAbsent { what: named() })?;
        Ok(vec![OperationResult::Check(check)])
    }
}

/// What an operation on the catalog goes on to do.
enum Verdict {
    Get,
    Set,
    Delete,
}

/// Whether a conditional change of the catalog may go on.
fn verdict(
    verb: &CatalogVerb,
    kind: RecordKind,
    current: Option<ModifyIndex>,
    expected: ModifyIndex,
    named: impl Fn() -> RecordName,
) -> Result<Verdict, OperationFault> {
    match verb {
        CatalogVerb::Get => Ok(Verdict::Get),
        CatalogVerb::Set => Ok(Verdict::Set),
        CatalogVerb::Cas if may_set(current, expected) => Ok(Verdict::Set),
        CatalogVerb::Cas => Err(OperationFault::RecordSetStale { what: named() }),
        CatalogVerb::Delete => Ok(Verdict::Delete),
        // Unlike a key, a record that is absent is stale to whoever expects it (Consul 1.8.7).
        CatalogVerb::DeleteCas if current == Some(expected) => Ok(Verdict::Delete),
        CatalogVerb::DeleteCas => Err(OperationFault::RecordDeleteStale { what: named() }),
        CatalogVerb::Unknown(verb) => Err(OperationFault::UnknownVerb {
            kind,
            verb: verb.clone(),
        }),
    }
}

fn session_of(operation: &KvOperation) -> Result<Uuid, OperationFault> {
    if operation.session.is_empty() {
        return Err(OperationFault::SessionMissing);
    }
    operation.session.parse().map_err(|_| OperationFault::SessionNotUuid)
}

/// Looks at every operation, then does every one; all faults of the first round that has any.
fn run(operations: &[Operation], mut each: impl FnMut(&Operation, bool) -> Done) -> TransactionReply {
    let mut reply = TransactionReply::default();
    for is_first_look in [true, false] {
        for (position, operation) in (0..).zip(operations) {
            match each(operation, is_first_look) {
                Ok(results) => reply.results.extend(results),
                Err(fault) => reply.errors.push(OperationError { position, fault }),
            }
        }
        if !reply.errors.is_empty() {
            reply.results.clear();
            break;
        }
    }
    reply
}
