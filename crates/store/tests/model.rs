//! Any commands against a model that keeps flat maps and finds every index by comparing the state before and after.
//!
//! After each step: answers and indexes are the model's, indexes do not go back (but where the contract says so), whatever
//! changed an evaluation touched a topic its reader watched, what touched nothing changed nothing, and the records make
//! the same store again.

use proptest::prelude::*;
use quorate_store::transaction::{RecordKind, RecordName};
use quorate_store::{
    AddressOwner, Answer, CatalogVerb, CheckOperation, Command, CommandError, Evaluation, Instance, KvCommand,
    KvOperation, KvVerb, LockDelay, NodeOperation, NodeView, Operation, OperationError, OperationFault,
    OperationResult, Outcome, Query, Record, ServiceOperation, SessionChange, SessionCommand, StateHash, Store, Topic,
    TransactionReply,
};
use quorate_types::{
    Check, CheckStatus, Coordinate, Deregistration, KvPair, LogIndex, ModifyIndex, Node, NodeCoordinate, NodeId,
    Registration, Service, Session, SessionBehavior, Uuid, WallTime,
};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

type OnNode = (String, String);

#[derive(Clone, Debug, Default, PartialEq)]
struct Tables {
    nodes: BTreeMap<String, Node>,
    services: BTreeMap<OnNode, Service>,
    checks: BTreeMap<OnNode, Check>,
    pairs: BTreeMap<String, KvPair>,
    /// Deletions, never merged: of a key (`false`) or of a tree (`true`).
    deletions: Vec<(u64, bool, String)>,
    sessions: BTreeMap<Uuid, Session>,
    delays: BTreeMap<String, LockDelay>,
    /// With when they were told.
    coordinates: BTreeMap<String, (NodeCoordinate, u64)>,
}

#[derive(Clone, Debug, Default)]
struct Model {
    tables: Tables,
    nodes: u64,
    services: u64,
    checks: u64,
    gone: u64,
    pairs: u64,
    sessions: u64,
    coordinates: u64,
    by_service: BTreeMap<String, u64>,
}

fn lower(text: &str) -> String {
    text.to_lowercase()
}

impl Tables {
    fn names(&self) -> BTreeSet<String> {
        self.services.values().map(|service| lower(&service.name)).collect()
    }

    fn instances(&self, name: &str) -> Vec<Instance> {
        let of_name = self.services.iter().filter(|(_, service)| lower(&service.name) == name);
        of_name
            .map(|((node, id), service)| {
                let own = |wanted: &str| {
                    let checks = self.checks.iter().filter(|((of, _), _)| of == node);
                    let checks = checks.filter(|(_, check)| check.service_id == wanted);
                    checks.map(|(_, check)| Arc::new(check.clone())).collect::<Vec<_>>()
                };
                Instance {
                    node: Arc::new(self.nodes[node].clone()),
                    service: Arc::new(service.clone()),
                    checks: [own(""), own(id)].concat(),
                }
            })
            .collect()
    }

    fn drop_node(&mut self, key: &str) {
        self.nodes.remove(key);
        self.services.retain(|(node, _), _| node != key);
        self.checks.retain(|(node, _), _| node != key);
        self.coordinates.remove(key);
    }

    /// The name under which a registration finds its id, when that is another.
    fn renames(&self, registration: &Registration) -> Option<String> {
        let key = lower(&registration.node);
        if registration.node_id == NodeId::default() || (registration.skip_node_update && self.nodes.contains_key(&key))
        {
            return None;
        }
        let mut same_id = self.nodes.iter().filter(|(_, node)| node.id == registration.node_id);
        same_id.next().map(|(old, _)| old.clone()).filter(|old| *old != key)
    }

    fn register(
        &mut self,
        at: u64,
        registration: &Registration,
        created: Option<ModifyIndex>,
    ) -> Result<(), CommandError> {
        let key = lower(&registration.node);
        let id = registration.node_id;
        if registration.node.is_empty() {
            return Err(CommandError::NodeMissing);
        }
        if registration.address.is_empty() && !registration.skip_node_update {
            return Err(CommandError::AddressMissing);
        }
        let mut service = registration.service.clone();
        if let Some(service) = &mut service {
            if service.name.is_empty() {
                return Err(CommandError::ServiceNameMissing);
            }
            if service.id.is_empty() {
                service.id = service.name.clone();
            }
        }
        let holder = self.nodes.get(&key).cloned();
        if holder.is_none() || !registration.skip_node_update {
            if let Some(holder) = &holder {
                let serf = self.checks.get(&(key.clone(), "serfHealth".to_owned()));
                let alive = serf.is_some_and(|check| check.status == CheckStatus::Passing);
                let nil = NodeId::default();
                if alive && holder.id != nil && id != nil && holder.id != id {
                    return Err(CommandError::NodeNameReserved {
                        new_id: id.to_string(),
                        name: holder.name.clone(),
                        old_id: holder.id.to_string(),
                        address: holder.address.clone(),
                    });
                }
            }
            let create_index = created.or(holder.map(|holder| holder.create_index));
            let node = Node {
                id,
                name: registration.node.clone(),
                address: registration.address.clone(),
                datacenter: registration.datacenter.clone(),
                tagged_addresses: registration.tagged_addresses.clone(),
                meta: registration.node_meta.clone(),
                create_index: create_index.unwrap_or(ModifyIndex(at)),
                modify_index: ModifyIndex(at),
            };
            self.nodes.insert(key.clone(), node);
        }
        if let Some(service) = service {
            self.services.insert((key.clone(), service.id.clone()), service);
        }
        for check in &registration.checks {
            let mut check = check.clone();
            if check.check_id.is_empty() {
                check.check_id = check.name.clone();
            }
            if check.check_id.is_empty() {
                return Err(CommandError::CheckIdMissing);
            }
            if !check.service_id.is_empty() && !self.services.contains_key(&(key.clone(), check.service_id.clone())) {
                return Err(CommandError::ServiceNotRegistered {
                    node: registration.node.clone(),
                });
            }
            self.checks.insert((key.clone(), check.check_id.clone()), check);
        }
        Ok(())
    }

    fn deregister(&mut self, deregistration: &Deregistration) -> Result<(), CommandError> {
        let key = lower(&deregistration.node);
        if key.is_empty() {
            return Err(CommandError::NodeMissing);
        }
        let other_id = |node: &Node| deregistration.only_node_id.is_some_and(|id| id != node.id.0);
        if self.nodes.get(&key).is_none_or(other_id) {
            return Ok(());
        }
        let (service_id, check_id) = (&deregistration.service_id, &deregistration.check_id);
        if !service_id.is_empty() {
            self.services.remove(&(key.clone(), service_id.clone()));
            self.checks
                .retain(|(node, _), check| *node != key || check.service_id != *service_id);
        } else if !check_id.is_empty() {
            self.checks.remove(&(key, check_id.clone()));
        } else {
            self.drop_node(&key);
        }
        Ok(())
    }

    fn lock_of(&self, key: &str) -> (Option<Uuid>, u64) {
        self.pairs
            .get(key)
            .map_or((None, 0), |pair| (pair.session, pair.lock_index))
    }

    fn put(&mut self, pair: &KvPair, session: Option<Uuid>, lock_index: u64) {
        let mut pair = pair.clone();
        (pair.session, pair.lock_index) = (session, lock_index);
        self.pairs.insert(pair.key.clone(), pair);
    }

    fn set(&mut self, pair: &KvPair) {
        let (holder, _) = self.lock_of(&pair.key);
        self.put(pair, holder, 0);
    }

    /// Whether a session may last, by the state alone.
    fn is_carried(&self, session: &Session) -> Result<(), CommandError> {
        let node = lower(&session.node);
        if !self.nodes.contains_key(&node) {
            return Err(CommandError::NodeNotRegistered);
        }
        for id in session.node_checks.iter().chain(&session.service_checks) {
            let check = id.clone();
            match self.checks.get(&(node.clone(), check.clone())) {
                None => return Err(CommandError::CheckNotRegistered { check }),
                Some(found) if found.status == CheckStatus::Critical => {
                    return Err(CommandError::CheckCritical { check });
                }
                Some(_) => {}
            }
        }
        Ok(())
    }

    fn session(&mut self, at: u64, command: &SessionCommand) -> Result<(), CommandError> {
        match command {
            SessionCommand::Create(session) => {
                self.is_carried(session)?;
                if self.sessions.contains_key(&session.id) {
                    return Err(CommandError::SessionIdTaken { id: session.id });
                }
                let session = Session {
                    node: self.nodes[&lower(&session.node)].name.clone(),
                    create_index: ModifyIndex(at),
                    modify_index: ModifyIndex(at),
                    ..session.clone()
                };
                self.sessions.insert(session.id, session);
            }
            SessionCommand::Destroy { id } => self.end(at, *id),
            SessionCommand::EndLockDelays { delays } => {
                for (key, since) in delays {
                    if self.delays.get(key).is_some_and(|delay| delay.since == *since) {
                        self.delays.remove(key);
                    }
                }
            }
        }
        Ok(())
    }

    fn end(&mut self, at: u64, id: Uuid) {
        let Some(session) = self.sessions.remove(&id) else {
            return;
        };
        let held = self.pairs.values().filter(|pair| pair.session == Some(id));
        let held: Vec<KvPair> = held.cloned().collect();
        for pair in held {
            match session.behavior {
                SessionBehavior::Release => self.put(&pair, None, pair.lock_index),
                SessionBehavior::Delete => self.delete(at, &pair.key),
            }
            let since = ModifyIndex(at);
            let delay = session.lock_delay;
            if delay > Duration::ZERO {
                self.delays.insert(pair.key, LockDelay { since, delay });
            }
        }
    }

    fn end_those_not_carried(&mut self, at: u64) {
        let lost = self
            .sessions
            .values()
            .filter(|session| self.is_carried(session).is_err());
        let lost: Vec<Uuid> = lost.map(|session| session.id).collect();
        for id in lost {
            self.end(at, id);
        }
    }

    fn delete(&mut self, at: u64, key: &str) {
        if self.pairs.remove(key).is_some() {
            self.deletions.push((at, false, key.to_owned()));
        }
    }

    fn kv(&mut self, at: u64, command: &KvCommand) -> Outcome {
        let (KvCommand::Set(KvPair { key, .. })
        | KvCommand::Cas {
            pair: KvPair { key, .. },
            ..
        }
        | KvCommand::Acquire {
            pair: KvPair { key, .. },
            ..
        }
        | KvCommand::Release {
            pair: KvPair { key, .. },
            ..
        }
        | KvCommand::Delete { key }
        | KvCommand::DeleteCas { key, .. }
        | KvCommand::DeleteTree { prefix: key }) = command;
        if key.is_empty() && !matches!(command, KvCommand::DeleteTree { .. }) {
            return Outcome::Refused(CommandError::KeyMissing);
        }
        let current = self.pairs.get(key).map_or(0, |pair| pair.modify_index.0);
        match command {
            KvCommand::Set(pair) => self.set(pair),
            KvCommand::Delete { key } => self.delete(at, key),
            KvCommand::Cas { pair, expected } => {
                let held = current == expected.0;
                if held {
                    self.set(pair);
                }
                return Outcome::Decided(held);
            }
            KvCommand::DeleteCas { key, expected } => {
                let held = current == 0 || current == expected.0;
                if held {
                    self.delete(at, key);
                }
                return Outcome::Decided(held);
            }
            KvCommand::Acquire { pair, session } => {
                if self.delays.contains_key(key) {
                    return Outcome::Decided(false);
                }
                if !self.sessions.contains_key(session) {
                    return Outcome::Refused(CommandError::SessionUnknown { id: *session });
                }
                let (holder, count) = self.lock_of(key);
                let may = holder.is_none() || holder == Some(*session);
                if may {
                    let count = if holder.is_none() { count + 1 } else { count };
                    self.put(pair, Some(*session), count);
                }
                return Outcome::Decided(may);
            }
            KvCommand::Release { pair, session } => {
                let (holder, count) = self.lock_of(key);
                let may = holder == Some(*session);
                if may {
                    self.put(pair, None, count);
                }
                return Outcome::Decided(may);
            }
            KvCommand::DeleteTree { prefix } => {
                let count = self.pairs.len();
                self.pairs.retain(|key, _| !key.starts_with(prefix.as_str()));
                if self.pairs.len() < count {
                    self.deletions.push((at, true, prefix.clone()));
                    if prefix.is_empty() {
                        self.deletions.clear();
                    }
                }
            }
        }
        Outcome::Done
    }
}

impl Model {
    fn apply(&mut self, at: u64, command: &Command) -> Outcome {
        match command {
            Command::Batch(commands) => {
                return Outcome::Batch(commands.iter().map(|command| self.apply(at, command)).collect());
            }
            Command::Transaction(operations) => return Outcome::Transaction(self.transact(at, operations)),
            _ => {}
        }
        let mut before = self.tables.clone();
        let done = |result: Result<(), CommandError>| result.map_or_else(Outcome::Refused, |()| Outcome::Done);
        let outcome = match command {
            Command::Barrier | Command::StateHash(_) => Outcome::Done,
            Command::Register(registration) => {
                let trial = self.tables.clone().register(at, registration, None);
                let old = self.tables.renames(registration).filter(|_| trial.is_ok());
                let created = old.as_ref().map(|old| self.tables.nodes[old].create_index);
                if let Some(old) = old {
                    // What lived under the old name goes first, even what comes back under the new one.
                    self.tables.drop_node(&old);
                    self.stamp(at, &before);
                    before = self.tables.clone();
                }
                done(self.tables.register(at, registration, created))
            }
            Command::Deregister(deregistration) => done(self.tables.deregister(deregistration)),
            Command::Kv(command) => self.tables.kv(at, command),
            Command::CollectTombstones { up_to } => {
                self.tables.deletions.retain(|(index, ..)| *index > up_to.0);
                Outcome::Done
            }
            Command::Session(command) => done(self.tables.session(at, command)),
            Command::Coordinates(updates) => {
                for update in updates {
                    let node = self.tables.nodes.get(&lower(&update.node));
                    if let Some(node) = node.filter(|_| update.coordinate.error <= 1.5) {
                        let named = NodeCoordinate {
                            node: node.name.clone(),
                            coordinate: update.coordinate,
                        };
                        self.tables.coordinates.insert(lower(&update.node), (named, at));
                    }
                }
                Outcome::Done
            }
            _ => panic!("not generated"),
        };
        if matches!(outcome, Outcome::Refused(_)) {
            self.tables = before;
        } else {
            self.tables.end_those_not_carried(at);
            self.stamp(at, &before);
        }
        outcome
    }

    /// Gives each record its indexes, and each table its own, by what differs from before.
    fn stamp(&mut self, at: u64, before: &Tables) {
        let Tables {
            nodes,
            services,
            checks,
            pairs,
            ..
        } = &mut self.tables;
        for ((key, id), check) in checks.iter_mut() {
            check.node = nodes[key].name.clone();
            let service = services.get(&(key.clone(), check.service_id.clone()));
            check.service_name = service.map_or_else(String::new, |service| service.name.clone());
            check.service_tags = service.map_or_else(Vec::new, |service| service.tags.clone());
            assert_eq!(check.check_id, *id);
        }
        macro_rules! stamp {
            ($after:ident, $record:ty) => {
                for (key, record) in $after.iter_mut() {
                    let old: Option<&$record> = before.$after.get(key);
                    record.create_index = old.map_or(ModifyIndex(at), |old| old.create_index);
                    record.modify_index = old.map_or(ModifyIndex(at), |old| old.modify_index);
                    if old.is_some_and(|old| old != record) {
                        record.modify_index = ModifyIndex(at);
                    }
                }
                if *$after != before.$after {
                    self.$after = at;
                }
            };
        }
        stamp!(services, Service);
        stamp!(checks, Check);
        stamp!(pairs, KvPair);
        // A node that was renamed brings its creation along.
        for (key, node) in nodes.iter_mut() {
            let created = node.create_index;
            if let Some(old) = before.nodes.get(key) {
                (node.create_index, node.modify_index) = (old.create_index, old.modify_index);
                if created == old.create_index && node == old {
                    continue;
                }
            }
            (node.create_index, node.modify_index) = (created, ModifyIndex(at));
        }
        if *nodes != before.nodes {
            self.nodes = at;
        }
        if self.tables.sessions != before.sessions {
            self.sessions = at;
        }
        if self.tables.coordinates != before.coordinates {
            self.coordinates = at;
        }
        for name in before.names().union(&self.tables.names()) {
            let instances = self.tables.instances(name);
            if instances.is_empty() {
                self.gone = at;
                self.by_service.remove(name);
            } else if instances != before.instances(name) {
                self.by_service.insert(name.clone(), at);
            }
        }
    }

    fn transact(&mut self, at: u64, operations: &[Operation]) -> TransactionReply {
        let mut reply = TransactionReply::default();
        let saved = self.clone();
        for is_first_look in [true, false] {
            for (position, operation) in (0..).zip(operations) {
                let done = match is_first_look {
                    true => self.preview(operation).map(|()| vec![]),
                    false => self.operate(at, operation),
                };
                match done {
                    Ok(results) => reply.results.extend(results),
                    Err(fault) => reply.errors.push(OperationError { position, fault }),
                }
            }
            if !reply.errors.is_empty() {
                *self = saved;
                reply.results.clear();
                break;
            }
        }
        reply
    }

    fn preview(&self, operation: &Operation) -> Result<(), OperationFault> {
        match operation {
            Operation::Kv(KvOperation { verb, key, .. }) => {
                let is_tree = matches!(verb, KvVerb::GetTree | KvVerb::DeleteTree);
                if key.is_empty() && !is_tree {
                    return Err(OperationFault::Command(CommandError::KeyMissing));
                }
                if *verb == KvVerb::Lock && self.tables.delays.contains_key(key) {
                    return Err(OperationFault::LockDelayed { key: key.clone() });
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn operate(&mut self, at: u64, operation: &Operation) -> Result<Vec<OperationResult>, OperationFault> {
        let register = |model: &mut Self, registration: Registration| match model
            .apply(at, &Command::Register(Box::new(registration)))
        {
            Outcome::Refused(err) => Err(OperationFault::Command(err)),
            _ => Ok(()),
        };
        let deregister = |model: &mut Self, node: &str, service_id: &str, check_id: &str| {
            let deregistration = Deregistration {
                node: node.into(),
                service_id: service_id.into(),
                check_id: check_id.into(),
                only_node_id: None,
            };
            model.apply(at, &Command::Deregister(deregistration));
        };
        let stale = |verb: &CatalogVerb, current: u64, expected: ModifyIndex, what: &RecordName| match verb {
            CatalogVerb::Cas if current != expected.0 => Err(OperationFault::RecordSetStale { what: what.clone() }),
            CatalogVerb::DeleteCas if current == 0 || current != expected.0 => {
                Err(OperationFault::RecordDeleteStale { what: what.clone() })
            }
            _ => Ok(()),
        };
        let is_set = |verb: &CatalogVerb| matches!(verb, CatalogVerb::Set | CatalogVerb::Cas);
        let is_delete = |verb: &CatalogVerb| matches!(verb, CatalogVerb::Delete | CatalogVerb::DeleteCas);
        match operation {
            Operation::Kv(operation) => self.operate_kv(at, operation),
            Operation::Node(NodeOperation { verb, node }) => {
                let what = RecordName::Node {
                    node: node.name.clone(),
                };
                let current = self.tables.nodes.get(&lower(&node.name)).cloned();
                stale(
                    verb,
                    current.map_or(0, |node| node.modify_index.0),
                    node.modify_index,
                    &what,
                )?;
                if is_set(verb) {
                    let registration = Registration {
                        node: node.name.clone(),
                        address: node.address.clone(),
                        ..Registration::default()
                    };
                    register(self, registration)?;
                }
                if is_delete(verb) {
                    deregister(self, &node.name, "", "");
                    return Ok(vec![]);
                }
                match self.tables.nodes.get(&lower(&node.name)) {
                    Some(node) => Ok(vec![OperationResult::Node(Arc::new(node.clone()))]),
                    None => Err(OperationFault::RecordAbsent { what }),
                }
            }
            Operation::Service(ServiceOperation { verb, node, service }) => {
                let what = RecordName::Service {
                    id: service.id.clone(),
                    node: node.clone(),
                };
                let place = (lower(node), service.id.clone());
                let current = self.tables.services.get(&place);
                let current = current.map_or(0, |service| service.modify_index.0);
                stale(verb, current, service.modify_index, &what)?;
                if is_set(verb) {
                    if !self.tables.nodes.contains_key(&place.0) {
                        return Err(OperationFault::Command(CommandError::NodeNotRegistered));
                    }
                    let service = Service {
                        create_index: ModifyIndex::ZERO,
                        modify_index: ModifyIndex::ZERO,
                        ..(**service).clone()
                    };
                    let registration = Registration {
                        node: node.clone(),
                        service: Some(service),
                        skip_node_update: true,
                        ..Registration::default()
                    };
                    register(self, registration)?;
                }
                if is_delete(verb) {
                    deregister(self, node, &service.id, "");
                    return Ok(vec![]);
                }
                match self.tables.services.get(&place) {
                    Some(service) => Ok(vec![OperationResult::Service(Arc::new(service.clone()))]),
                    None => Err(OperationFault::RecordAbsent { what }),
                }
            }
            Operation::Check(CheckOperation { verb, check }) => {
                let what = RecordName::Check {
                    id: check.check_id.clone(),
                    node: check.node.clone(),
                };
                let place = (lower(&check.node), check.check_id.clone());
                let current = self.tables.checks.get(&place).map_or(0, |check| check.modify_index.0);
                stale(verb, current, check.modify_index, &what)?;
                if is_set(verb) {
                    if !self.tables.nodes.contains_key(&place.0) {
                        return Err(OperationFault::Command(CommandError::NodeNotRegistered));
                    }
                    let service = (place.0.clone(), check.service_id.clone());
                    if !check.service_id.is_empty() && !self.tables.services.contains_key(&service) {
                        return Err(OperationFault::ServiceNotRegistered);
                    }
                    let registration = Registration {
                        node: check.node.clone(),
                        checks: vec![(**check).clone()],
                        skip_node_update: true,
                        ..Registration::default()
                    };
                    register(self, registration)?;
                }
                if is_delete(verb) {
                    deregister(self, &check.node, "", &check.check_id);
                    return Ok(vec![]);
                }
                match self.tables.checks.get(&place) {
                    Some(check) => Ok(vec![OperationResult::Check(Arc::new(check.clone()))]),
                    None => Err(OperationFault::RecordAbsent { what }),
                }
            }
        }
    }

    fn operate_kv(&mut self, at: u64, operation: &KvOperation) -> Result<Vec<OperationResult>, OperationFault> {
        let key = operation.key.clone();
        let pair = KvPair {
            key: key.clone(),
            value: operation.value.clone(),
            flags: operation.flags,
            ..KvPair::default()
        };
        let expected = operation.index;
        let session = operation.session.parse::<Uuid>().unwrap_or(Uuid::NIL);
        let current = self.tables.pairs.get(&key).cloned();
        let (command, failure) = match &operation.verb {
            KvVerb::Set => (Some(KvCommand::Set(pair)), None),
            KvVerb::Cas => (
                Some(KvCommand::Cas { pair, expected }),
                Some(OperationFault::KeySetStale { key: key.clone() }),
            ),
            KvVerb::Lock => (
                Some(KvCommand::Acquire { pair, session }),
                Some(match self.tables.delays.contains_key(&key) {
                    true => OperationFault::LockDelayed { key: key.clone() },
                    false => OperationFault::LockHeld { key: key.clone() },
                }),
            ),
            KvVerb::Unlock => (
                Some(KvCommand::Release { pair, session }),
                Some(OperationFault::LockNotHeld { key: key.clone() }),
            ),
            KvVerb::Delete => (Some(KvCommand::Delete { key: key.clone() }), None),
            KvVerb::DeleteCas => (
                Some(KvCommand::DeleteCas {
                    key: key.clone(),
                    expected,
                }),
                Some(OperationFault::KeyDeleteStale { key: key.clone() }),
            ),
            KvVerb::DeleteTree => (Some(KvCommand::DeleteTree { prefix: key.clone() }), None),
            KvVerb::Get if current.is_none() => return Err(OperationFault::KeyAbsent { key }),
            KvVerb::Get | KvVerb::GetOrEmpty => {
                let empty = KvPair {
                    key,
                    ..KvPair::default()
                };
                return Ok(vec![OperationResult::Kv(Arc::new(current.unwrap_or(empty)))]);
            }
            KvVerb::GetTree => {
                let pairs = self.tables.pairs.values().filter(|pair| pair.key.starts_with(&key));
                return Ok(pairs.map(|pair| OperationResult::Kv(Arc::new(pair.clone()))).collect());
            }
            KvVerb::CheckNotExists => {
                return match current {
                    Some(_) => Err(OperationFault::KeyPresent { key }),
                    None => Ok(vec![]),
                };
            }
            KvVerb::CheckIndex => match current.map(|pair| pair.modify_index) {
                None => return Err(OperationFault::IndexOfAbsent { key }),
                Some(current) if current != expected => {
                    return Err(OperationFault::IndexDiffers { key, current, expected });
                }
                Some(_) => (None, None),
            },
            KvVerb::CheckSession => {
                let Some(pair) = current else {
                    return Err(OperationFault::SessionOfAbsent { key });
                };
                let current = pair.session.map(|session| session.to_string()).unwrap_or_default();
                if current != operation.session {
                    return Err(OperationFault::SessionDiffers {
                        key,
                        current,
                        expected: operation.session.clone(),
                    });
                }
                (None, None)
            }
            KvVerb::Unknown(verb) => {
                return Err(OperationFault::UnknownVerb {
                    kind: RecordKind::Kv,
                    verb: verb.clone(),
                });
            }
        };
        if let Some(command) = command {
            match self.apply(at, &Command::Kv(command)) {
                Outcome::Refused(err) => return Err(OperationFault::Command(err)),
                Outcome::Decided(false) => return Err(failure.expect("a condition has a failure")),
                _ => {}
            }
        }
        let is_gone = matches!(operation.verb, KvVerb::Delete | KvVerb::DeleteCas | KvVerb::DeleteTree);
        match self.tables.pairs.get(&key) {
            Some(pair) if !is_gone => {
                let value = vec![];
                Ok(vec![OperationResult::Kv(Arc::new(KvPair { value, ..pair.clone() }))])
            }
            _ => Ok(vec![]),
        }
    }

    fn list_index(&self, prefix: &str) -> u64 {
        if prefix.is_empty() {
            return self.pairs;
        }
        let present = self.tables.pairs.iter().filter(|(key, _)| key.starts_with(prefix));
        let present = present.map(|(_, pair)| pair.modify_index.0);
        let deleted =
            self.tables.deletions.iter().filter(|(_, is_tree, name)| {
                name.starts_with(prefix) || (*is_tree && prefix.starts_with(name.as_str()))
            });
        let deleted = deleted.map(|(index, ..)| *index);
        present.chain(deleted).max().unwrap_or(self.pairs)
    }

    fn evaluate(&self, query: &Query) -> Evaluation {
        let tables = &self.tables;
        let has_meta = |node: &Node, wanted: &[(String, String)]| {
            let none = BTreeMap::new();
            let meta = node.meta.as_ref().unwrap_or(&none);
            wanted.iter().all(|(key, value)| meta.get(key) == Some(value))
        };
        let table = |index: u64, meta: &[(String, String)]| if meta.is_empty() { index } else { index.max(self.nodes) };
        let checks = |keep: &dyn Fn(&Node, &Check) -> bool| {
            let kept = tables
                .checks
                .iter()
                .filter(|((node, _), check)| keep(&tables.nodes[node], check));
            Answer::Checks(kept.map(|(_, check)| Arc::new(check.clone())).collect())
        };
        let under = |prefix: &str| {
            let pairs = tables.pairs.values().filter(|pair| pair.key.starts_with(prefix));
            pairs.cloned().map(Arc::new).collect::<Vec<_>>()
        };
        let (index, answer) = match query {
            Query::Nodes { node_meta } => {
                let nodes = tables.nodes.values().filter(|node| has_meta(node, node_meta));
                (self.nodes, Answer::Nodes(nodes.cloned().map(Arc::new).collect()))
            }
            Query::Services { node_meta } => {
                let mut services: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
                for ((node, _), service) in &tables.services {
                    if has_meta(&tables.nodes[node], node_meta) {
                        let tags = services.entry(service.name.clone()).or_default();
                        tags.extend(service.tags.iter().cloned());
                    }
                }
                (table(self.services, node_meta), Answer::Services(services))
            }
            Query::Instances {
                service,
                tags,
                node_meta,
            } => {
                let name = lower(service);
                let mut instances = tables.instances(&name);
                instances.retain(|instance| {
                    let has: BTreeSet<String> = instance.service.tags.iter().map(|tag| lower(tag)).collect();
                    tags.iter().all(|tag| has.contains(&lower(tag))) && has_meta(&instance.node, node_meta)
                });
                let index = self.by_service.get(&name).copied().unwrap_or(self.gone);
                (index, Answer::Instances(instances))
            }
            Query::Node { node } => {
                let by_id = |found: &&Node| found.id.0 != Uuid::NIL && found.id.to_string() == *node;
                let found = tables.nodes.get(&lower(node));
                match found.or_else(|| tables.nodes.values().find(by_id)) {
                    None => (0, Answer::Node(None)),
                    Some(node) => {
                        let key = lower(&node.name);
                        let services = tables.services.iter().filter(|((on, _), _)| *on == key);
                        let checks = tables.checks.iter().filter(|((on, _), _)| *on == key);
                        let view = NodeView {
                            node: Arc::new(node.clone()),
                            services: services.map(|(_, service)| Arc::new(service.clone())).collect(),
                            checks: checks.map(|(_, check)| Arc::new(check.clone())).collect(),
                        };
                        (self.nodes.max(self.services), Answer::Node(Some(view)))
                    }
                }
            }
            Query::NodeChecks { node } => (self.checks, checks(&|on, _| lower(&on.name) == lower(node))),
            Query::ServiceChecks { service, node_meta } => {
                let keep =
                    |on: &Node, check: &Check| lower(&check.service_name) == lower(service) && has_meta(on, node_meta);
                (table(self.checks, node_meta), checks(&keep))
            }
            Query::ChecksInState { status, node_meta } => {
                let keep = |on: &Node, check: &Check| {
                    status.is_none_or(|status| check.status == status) && has_meta(on, node_meta)
                };
                (table(self.checks, node_meta), checks(&keep))
            }
            Query::Address { address } => {
                let text = address.to_string();
                let node = tables.nodes.values().find(|node| node.address == text);
                let service = tables.services.values().find(|service| service.address == text);
                let node = node.map(|node| AddressOwner::Node(Arc::new(node.clone())));
                let service = service.map(|service| AddressOwner::Service(Arc::new(service.clone())));
                (self.nodes.max(self.services), Answer::Address(node.or(service)))
            }
            Query::KvGet { key } => {
                let pair = tables.pairs.get(key).cloned();
                let index = pair.as_ref().map_or(self.pairs, |pair| pair.modify_index.0);
                (index, Answer::Kv(pair.map(Arc::new)))
            }
            Query::KvList { prefix } => (self.list_index(prefix), Answer::KvList(under(prefix))),
            Query::KvKeys { prefix, separator } => {
                let cut: BTreeSet<String> = under(prefix)
                    .iter()
                    .map(|pair| match pair.key[prefix.len()..].split_once(separator.as_str()) {
                        Some((first, _)) if !separator.is_empty() => format!("{prefix}{first}{separator}"),
                        _ => pair.key.clone(),
                    })
                    .collect();
                (self.list_index(prefix), Answer::KvKeys(cut.into_iter().collect()))
            }
            Query::Session { .. } | Query::Sessions | Query::NodeSessions { .. } => {
                let asked = |session: &&Session| match query {
                    Query::Session { id } => session.id == *id,
                    Query::NodeSessions { node } => lower(&session.node) == lower(node),
                    _ => true,
                };
                let sessions = tables.sessions.values().filter(asked).cloned().map(Arc::new);
                (self.sessions, Answer::Sessions(sessions.collect()))
            }
            Query::Coordinates { nodes } => {
                let wanted: Vec<String> = nodes.iter().map(|node| lower(node)).collect();
                let asked = tables
                    .coordinates
                    .iter()
                    .filter(|(key, _)| nodes.is_empty() || wanted.contains(key));
                let coordinates = asked.map(|(_, (coordinate, _))| Arc::new(coordinate.clone()));
                (self.coordinates, Answer::Coordinates(coordinates.collect()))
            }
            Query::Transaction { .. } => panic!("a transaction has no index of its own"),
        };
        Evaluation {
            index: ModifyIndex(index.max(1)),
            answer,
        }
    }
}

const KEYS: [&str; 9] = ["a", "a/", "a/b", "a/b/c", "a/b/d", "a/c", "b", "é/x", ""];
const PREFIXES: [&str; 11] = ["", "a", "a/", "a/b", "a/b/", "a/b/c", "a/x", "b", "é/", "z", "a/c"];

fn node_id(number: u8) -> NodeId {
    match number {
        0 => NodeId::default(),
        number => NodeId(Uuid::from_random_bytes([number * 0x11; 16])),
    }
}

fn session_id(number: u8) -> Uuid {
    Uuid::from_random_bytes([number * 0x21; 16])
}

fn queries() -> Vec<Query> {
    let mut queries = vec![Query::Sessions];
    for nodes in [vec![], vec!["N1".to_owned(), "none".to_owned()]] {
        queries.push(Query::Coordinates { nodes });
    }
    queries.extend((1..4).map(|number| Query::Session { id: session_id(number) }));
    let rack = vec![("rack".to_owned(), "1".to_owned())];
    for node_meta in [vec![], rack] {
        queries.push(Query::Nodes {
            node_meta: node_meta.clone(),
        });
        queries.push(Query::Services {
            node_meta: node_meta.clone(),
        });
        for status in [None, Some(CheckStatus::Passing), Some(CheckStatus::Critical)] {
            queries.push(Query::ChecksInState {
                status,
                node_meta: node_meta.clone(),
            });
        }
        for service in ["web", "DB", "none"] {
            for tags in [vec![], vec!["A".to_owned()]] {
                queries.push(Query::Instances {
                    service: service.into(),
                    tags,
                    node_meta: node_meta.clone(),
                });
            }
            queries.push(Query::ServiceChecks {
                service: service.into(),
                node_meta: node_meta.clone(),
            });
        }
    }
    for node in ["n1", "N2", "n3"] {
        queries.push(Query::Node { node: node.into() });
        queries.push(Query::NodeChecks { node: node.into() });
        queries.push(Query::NodeSessions { node: node.into() });
    }
    let node = node_id(1).to_string();
    queries.push(Query::Node { node });
    for address in ["10.0.0.1", "10.0.0.2", "10.0.0.3"] {
        let address = address.parse().expect("an address");
        queries.push(Query::Address { address });
    }
    queries.extend(KEYS.map(|key| Query::KvGet { key: key.into() }));
    for prefix in PREFIXES {
        queries.push(Query::KvList { prefix: prefix.into() });
        for separator in ["", "/"] {
            queries.push(Query::KvKeys {
                prefix: prefix.into(),
                separator: separator.into(),
            });
        }
    }
    queries
}

/// A command, some of whose expectations depend on the state it meets.
#[derive(Clone, Debug)]
enum Step {
    Plain(Command),
    CasCurrent(KvPair),
    DeleteCasCurrent(String),
    /// All but so many of the last indexes.
    Collect(u64),
    /// The lock-delay of a key, if it has one.
    EndDelay(String),
    /// Index 99 stands for the current one.
    Transaction(Vec<Operation>),
}

fn any_registration() -> impl Strategy<Value = Command> {
    let pick = |choices: &'static [&'static str]| proptest::sample::select(choices).prop_map(str::to_owned);
    let status = prop_oneof![
        Just(CheckStatus::Passing),
        Just(CheckStatus::Warning),
        Just(CheckStatus::Critical)
    ];
    let service = (
        pick(&["", "s1", "s2"]),
        pick(&["web", "Web", "db", ""]),
        proptest::sample::subsequence(vec!["a".to_owned(), "B".to_owned()], 0..=2),
        pick(&["", "10.0.0.2", "10.0.0.3"]),
    )
        .prop_map(|(id, name, tags, address)| Service {
            id,
            name,
            tags,
            address,
            ..Service::default()
        });
    let check = (
        pick(&["serfHealth", "c1", "c2", ""]),
        pick(&["", "", "s1", "s2", "web"]),
        status,
    )
        .prop_map(|(check_id, service_id, status)| Check {
            check_id,
            service_id,
            status,
            ..Check::default()
        });
    let checks = proptest::collection::vec(check, 0..3).prop_map(|mut checks| {
        checks.sort_by(|left, right| left.check_id.cmp(&right.check_id));
        checks.dedup_by(|left, right| left.check_id == right.check_id);
        checks
    });
    let node = (
        pick(&["n1", "N1", "n2", "n2", "n3", "n3", ""]),
        0_u8..3,
        pick(&["10.0.0.1", "10.0.0.2", "host", ""]),
        proptest::option::of(pick(&["1", "2"])),
        proptest::bool::weighted(0.3),
    );
    (node, proptest::option::of(service), checks).prop_map(
        |((name, id, address, rack, skip_node_update), service, checks)| {
            Command::Register(Box::new(Registration {
                node_id: node_id(id),
                node: name,
                address,
                node_meta: rack.map(|rack| BTreeMap::from([("rack".to_owned(), rack)])),
                service,
                checks,
                skip_node_update,
                ..Registration::default()
            }))
        },
    )
}

fn any_deregistration() -> impl Strategy<Value = Command> {
    let pick = |choices: &'static [&'static str]| proptest::sample::select(choices).prop_map(str::to_owned);
    (
        pick(&["n1", "N2", "n3", ""]),
        pick(&["", "", "s1", "web", "db"]),
        pick(&["", "", "serfHealth", "c1", "c2"]),
        proptest::option::weighted(0.2, 0_u8..3),
    )
        .prop_map(|(node, service_id, check_id, id)| {
            Command::Deregister(Deregistration {
                node,
                service_id,
                check_id,
                only_node_id: id.map(|id| node_id(id).0),
            })
        })
}

fn any_pair() -> impl Strategy<Value = KvPair> {
    (proptest::sample::select(&KEYS[..]), 0_u8..2, 0_u64..2).prop_map(|(key, value, flags)| KvPair {
        key: key.into(),
        value: vec![value],
        flags,
        ..KvPair::default()
    })
}

fn any_kv() -> impl Strategy<Value = Command> {
    let prefix = proptest::sample::select(&PREFIXES[..]).prop_map(str::to_owned);
    prop_oneof![
        5 => any_pair().prop_map(KvCommand::Set),
        1 => (any_pair(), 0_u64..9).prop_map(|(pair, expected)| KvCommand::Cas { pair, expected: ModifyIndex(expected) }),
        2 => any_pair().prop_map(|pair| KvCommand::Delete { key: pair.key }),
        1 => (any_pair(), 0_u64..9)
            .prop_map(|(pair, expected)| KvCommand::DeleteCas { key: pair.key, expected: ModifyIndex(expected) }),
        2 => prefix.prop_map(|prefix| KvCommand::DeleteTree { prefix }),
        4 => (any_pair(), 1_u8..4).prop_map(|(pair, id)| KvCommand::Acquire { pair, session: session_id(id) }),
        2 => (any_pair(), 1_u8..4).prop_map(|(pair, id)| KvCommand::Release { pair, session: session_id(id) }),
    ]
    .prop_map(Command::Kv)
}

fn any_session() -> impl Strategy<Value = Command> {
    let pick = |choices: &'static [&'static str]| proptest::sample::select(choices).prop_map(str::to_owned);
    let checks = || {
        let ids = vec!["serfHealth".to_owned(), "c1".to_owned(), "c2".to_owned()];
        proptest::sample::subsequence(ids, 0..=1)
    };
    let behavior = prop_oneof![Just(SessionBehavior::Release), Just(SessionBehavior::Delete)];
    let create = (
        1_u8..4,
        pick(&["n1", "N1", "n2", "n3"]),
        checks(),
        checks(),
        behavior,
        0_u64..2,
    )
        .prop_map(|(id, node, node_checks, service_checks, behavior, delay)| {
            SessionCommand::Create(Session {
                id: session_id(id),
                node,
                node_checks,
                service_checks,
                behavior,
                lock_delay: Duration::from_secs(delay * 15),
                ..Session::default()
            })
        });
    prop_oneof![
        4 => create,
        1 => (1_u8..4).prop_map(|id| SessionCommand::Destroy { id: session_id(id) }),
    ]
    .prop_map(Command::Session)
}

fn any_operation() -> impl Strategy<Value = Operation> {
    let pick = |choices: &'static [&'static str]| proptest::sample::select(choices).prop_map(str::to_owned);
    let index = || prop_oneof![2 => Just(99), 1 => 0_u64..9].prop_map(ModifyIndex);
    let kv_verb = prop_oneof![
        4 => Just(KvVerb::Set),
        4 => Just(KvVerb::GetTree),
        3 => Just(KvVerb::GetOrEmpty),
        3 => Just(KvVerb::Cas),
        3 => Just(KvVerb::Lock),
        2 => Just(KvVerb::Delete),
        2 => Just(KvVerb::DeleteCas),
        2 => Just(KvVerb::DeleteTree),
        1 => Just(KvVerb::Unlock),
        1 => Just(KvVerb::Get),
        1 => Just(KvVerb::CheckIndex),
        1 => Just(KvVerb::CheckSession),
        1 => Just(KvVerb::CheckNotExists),
        1 => Just(KvVerb::Unknown("bogus".into())),
    ];
    let kv = (kv_verb, any_pair(), index(), 1_u8..4).prop_map(|(verb, pair, index, id)| {
        Operation::Kv(KvOperation {
            verb,
            key: pair.key,
            value: pair.value,
            flags: pair.flags,
            index,
            session: session_id(id).to_string(),
        })
    });
    let verb = || {
        prop_oneof![
            4 => Just(CatalogVerb::Set),
            2 => Just(CatalogVerb::Cas),
            2 => Just(CatalogVerb::Delete),
            1 => Just(CatalogVerb::DeleteCas),
            1 => Just(CatalogVerb::Get),
        ]
    };
    let node = || pick(&["n1", "N1", "n2", "n3"]);
    let nodes = (verb(), node(), index()).prop_map(|(verb, name, modify_index)| {
        let node = Node {
            name,
            address: "10.0.0.9".into(),
            modify_index,
            ..Node::default()
        };
        Operation::Node(NodeOperation { verb, node })
    });
    let services = (verb(), node(), pick(&["s1", "s2"]), pick(&["web", "db"]), index()).prop_map(
        |(verb, node, id, name, modify_index)| {
            let service = Service {
                id,
                name,
                modify_index,
                ..Service::default()
            };
            let service = Box::new(service);
            Operation::Service(ServiceOperation { verb, node, service })
        },
    );
    let status = prop_oneof![Just(CheckStatus::Passing), Just(CheckStatus::Critical)];
    let checks = (verb(), node(), pick(&["c1", "c2"]), pick(&["", "s1"]), status, index()).prop_map(
        |(verb, node, check_id, service_id, status, modify_index)| {
            let check = Check {
                node,
                check_id,
                service_id,
                status,
                modify_index,
                ..Check::default()
            };
            let check = Box::new(check);
            Operation::Check(CheckOperation { verb, check })
        },
    );
    prop_oneof![6 => kv, 1 => nodes, 1 => services, 1 => checks]
}

fn any_coordinates() -> impl Strategy<Value = Command> {
    // One of the errors is out of range.
    let update = (prop_oneof!["n1", "N1", "n2", "n3"], 0_u8..3).prop_map(|(node, error)| NodeCoordinate {
        node,
        coordinate: Coordinate {
            error: f64::from(error),
            ..Coordinate::default()
        },
    });
    proptest::collection::vec(update, 0..3).prop_map(Command::Coordinates)
}

fn any_step() -> impl Strategy<Value = Step> {
    let single = || {
        prop_oneof![
            4 => any_registration(),
            2 => any_deregistration(),
            5 => any_kv(),
            4 => any_session(),
            1 => any_coordinates(),
        ]
    };
    prop_oneof![
        20 => single().prop_map(Step::Plain),
        2 => proptest::collection::vec(single(), 0..4).prop_map(|commands| Step::Plain(Command::Batch(commands))),
        1 => Just(Step::Plain(Command::Barrier)),
        1 => Just(Step::Plain(Command::StateHash(StateHash {
            server: NodeId::default(),
            at: LogIndex(1024),
            rules: StateHash::RULES,
            hash: 7,
        }))),
        2 => any_pair().prop_map(Step::CasCurrent),
        1 => any_pair().prop_map(|pair| Step::DeleteCasCurrent(pair.key)),
        1 => (0_u64..12).prop_map(Step::Collect),
        2 => any_pair().prop_map(|pair| Step::EndDelay(pair.key)),
        6 => proptest::collection::vec(any_operation(), 0..4).prop_map(Step::Transaction),
    ]
}

fn concrete(step: Step, model: &Model, index: u64) -> Command {
    let current = |key: &str| {
        model
            .tables
            .pairs
            .get(key)
            .map_or(ModifyIndex::ZERO, |pair| pair.modify_index)
    };
    match step {
        Step::Plain(command) => command,
        Step::CasCurrent(pair) => {
            let expected = current(&pair.key);
            Command::Kv(KvCommand::Cas { pair, expected })
        }
        Step::DeleteCasCurrent(key) => {
            let expected = current(&key);
            Command::Kv(KvCommand::DeleteCas { key, expected })
        }
        Step::Collect(spared) => Command::CollectTombstones {
            up_to: ModifyIndex(index.saturating_sub(spared)),
        },
        Step::EndDelay(key) => {
            let since = model
                .tables
                .delays
                .get(&key)
                .map_or(ModifyIndex(1), |delay| delay.since);
            let delays = vec![(key, since)];
            Command::Session(SessionCommand::EndLockDelays { delays })
        }
        Step::Transaction(mut operations) => {
            let fill = |place: &mut ModifyIndex, current: Option<ModifyIndex>| {
                if *place == ModifyIndex(99) {
                    *place = current.unwrap_or_default();
                }
            };
            let tables = &model.tables;
            for operation in &mut operations {
                match operation {
                    Operation::Kv(KvOperation { key, index, .. }) => fill(index, Some(current(key))),
                    Operation::Node(NodeOperation { node, .. }) => {
                        let found = tables.nodes.get(&lower(&node.name));
                        fill(&mut node.modify_index, found.map(|found| found.modify_index));
                    }
                    Operation::Service(ServiceOperation { node, service, .. }) => {
                        let found = tables.services.get(&(lower(node), service.id.clone()));
                        fill(&mut service.modify_index, found.map(|found| found.modify_index));
                    }
                    Operation::Check(CheckOperation { check, .. }) => {
                        let found = tables.checks.get(&(lower(&check.node), check.check_id.clone()));
                        fill(&mut check.modify_index, found.map(|found| found.modify_index));
                    }
                }
            }
            Command::Transaction(operations)
        }
    }
}

/// Sessions and lock-delays after these changes of an earlier state.
fn follow(
    sessions: &mut BTreeMap<Uuid, Session>,
    delays: &mut BTreeMap<String, LockDelay>,
    changes: Vec<SessionChange>,
) {
    for change in changes {
        match change {
            SessionChange::Created(session) => drop(sessions.insert(session.id, (*session).clone())),
            SessionChange::Ended(id) => drop(sessions.remove(&id)),
            SessionChange::Delayed { key, delay } => drop(delays.insert(key.to_string(), delay)),
            SessionChange::DelayEnded { key } => drop(delays.remove(&*key)),
        }
    }
}

/// All but the header, which says how far the log was applied.
fn body(store: &Store) -> Vec<Record> {
    store.records().skip(1).collect()
}

fn wakes(watched: &[Topic], touched: &[Topic]) -> bool {
    watched
        .iter()
        .any(|watched| touched.iter().any(|topic| watched.covers(topic)))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn any_commands_answer_like_the_model_and_wake_every_reader_they_concern(
        steps in proptest::collection::vec((1_u64..3, any_step()), 1..60),
    ) {
        let queries = queries();
        let mut store = Store::new();
        let mut model = Model::default();
        // The first entries of a log are the cluster's own; and 1 is what an empty table reports.
        let mut index = 1;
        let (mut sessions, mut delays) = (BTreeMap::new(), BTreeMap::new());
        for (gap, step) in steps {
            index += gap;
            let command = concrete(step, &model, index);
            let before = store.clone();
            let before_body = body(&store);
            let seen: Vec<(Evaluation, Vec<Topic>)> =
                queries.iter().map(|query| (before.evaluate(query), before.topics(query))).collect();

            let applied = store.apply(LogIndex(index), &command);
            store.check();
            prop_assert_eq!(&applied.outcome, &model.apply(index, &command), "{:?}", command);
            prop_assert!(applied.touched.is_sorted_by(|left, right| left < right));
            prop_assert_eq!(body(&before), before_body.clone(), "a clone does not change");
            prop_assert_eq!(applied.touched.is_empty(), body(&store) == before_body, "{:?}", command);

            let may_go_back = matches!(command, Command::CollectTombstones { .. });
            for (query, (old, watched)) in queries.iter().zip(seen) {
                let new = store.evaluate(query);
                prop_assert_eq!(&new, &model.evaluate(query), "{:?} after {:?}", query, command);
                prop_assert!(new.index.0 >= 1 && new.index.0 <= index);

                let is_absent = matches!(new.answer, Answer::Node(None));
                prop_assert!(
                    new.index >= old.index || may_go_back || is_absent,
                    "{:?} went back from {} after {:?}", query, old.index, command
                );
                let waits_for_key = matches!((&old.answer, &new.answer), (Answer::Kv(None), Answer::Kv(None)));
                let is_of_some_sessions = matches!(query, Query::Session { .. } | Query::NodeSessions { .. });
                let has_news =
                    new.answer != old.answer || new.index != old.index && !waits_for_key && !is_of_some_sessions;
                prop_assert!(
                    !is_of_some_sessions || new.answer != old.answer || !wakes(&watched, &applied.touched),
                    "{:?} was woken without news by {:?}", query, command
                );
                prop_assert!(
                    !has_news || wakes(&watched, &applied.touched),
                    "{:?} watched {:?}, but {:?} touched {:?}", query, watched, command, applied.touched
                );
                prop_assert!(new.answer == old.answer || new.index > old.index || is_absent
                    || matches!(query, Query::Node { .. }), "{:?} changed behind its index by {:?}", query, command);
            }

            follow(&mut sessions, &mut delays, store.session_changes_since(&before.session_view()));
            prop_assert_eq!(&sessions, &model.tables.sessions);
            prop_assert_eq!(&delays, &model.tables.delays);

            let again = Store::from_records(store.records());
            let again = again.expect("the records of a store are a store");
            prop_assert_eq!(again.records().collect::<Vec<_>>(), store.records().collect::<Vec<_>>());
            prop_assert_eq!(again.hash(), store.hash());
        }
        let name = Command::NameCluster { id: node_id(1).0, at: WallTime::from_nanos(1) };
        store.apply(LogIndex(index + 1), &name);
        let named = Store::from_records(store.records()).expect("the records of a store are a store");
        prop_assert_eq!(named.cluster_id(), Some(node_id(1).0));
    }
}
