//! The catalog: nodes, the services on them and their checks, with an index for each table and each service.
//!
//! In: registrations and deregistrations with the index they apply at. Out: touched topics, or why one was refused.
//! Promises: a refused registration changes nothing; one that changes nothing moves no index; what an evaluation or a
//! deregistration costs is in proportion to what it is about, not to the catalog.
//! Invariants: `verify` lists them.
//! Not here: reading (`catalog_read`), sessions, who may register.
//!
//! The index of a service moves with any of its instances, their checks, their nodes and their nodes' checks. It lives as
//! long as the service has instances; then `service_gone` takes its place (Consul 1.8.7).

use crate::command::CommandError;
use crate::query::{Topic, fold};
use crate::table::Table;
use crate::touched::Touched;
use equivalent::Comparable;
use imbl::{OrdMap, OrdSet};
use quorate_types::{Check, CheckStatus, Deregistration, ModifyIndex, Node, NodeId, Registration, Service};
use serde::Serialize;
use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

/// The check by which the leader tells a member's health.
const SERF_HEALTH: &str = "serfHealth";

/// A service or a check: its node's folded name, and its id.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub(crate) struct OnNode {
    pub(crate) node: Arc<str>,
    pub(crate) id: Arc<str>,
}

impl Comparable<OnNode> for (&str, &str) {
    fn compare(&self, key: &OnNode) -> Ordering {
        (self.0, self.1).cmp(&(&key.node, &key.id))
    }
}

/// Something by a folded service name, then its node, then its id; or by its node, its service's id, and its own id.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Path(pub(crate) Arc<str>, pub(crate) Arc<str>, pub(crate) Arc<str>);

impl Comparable<Path> for (&str, &str, &str) {
    fn compare(&self, key: &Path) -> Ordering {
        (self.0, self.1, self.2).cmp(&(&key.0, &key.1, &key.2))
    }
}

/// An address, and whose it is. Ordered by address first.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct AddressOf<K>(pub(crate) IpAddr, pub(crate) K);

/// Finds the first of an address, whoever owns it.
pub(crate) struct FirstOf(pub(crate) IpAddr);

impl<K> Comparable<AddressOf<K>> for FirstOf {
    fn compare(&self, key: &AddressOf<K>) -> Ordering {
        self.0.cmp(&key.0).then(Ordering::Less)
    }
}

// Required by `Comparable`; never equal to a key, as it stands before all of its address.
impl<K> equivalent::Equivalent<AddressOf<K>> for FirstOf {
    fn equivalent(&self, _: &AddressOf<K>) -> bool {
        false
    }
}
impl equivalent::Equivalent<OnNode> for (&str, &str) {
    fn equivalent(&self, key: &OnNode) -> bool {
        self.compare(key).is_eq()
    }
}
impl equivalent::Equivalent<Path> for (&str, &str, &str) {
    fn equivalent(&self, key: &Path) -> bool {
        self.compare(key).is_eq()
    }
}

/// The last change of each table. `nodes` and `checks` include deletions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct TableIndexes {
    pub(crate) nodes: ModifyIndex,
    pub(crate) services: ModifyIndex,
    pub(crate) checks: ModifyIndex,
    /// When the last instance of some service disappeared.
    pub(crate) service_gone: ModifyIndex,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Catalog {
    pub(crate) indexes: TableIndexes,
    /// By folded name.
    pub(crate) nodes: Table<1, Arc<str>, Arc<Node>>,
    /// Folded names of the nodes that have an id.
    pub(crate) node_ids: OrdMap<NodeId, Arc<str>>,
    pub(crate) services: Table<2, OnNode, Arc<Service>>,
    pub(crate) checks: Table<3, OnNode, Arc<Check>>,
    /// Service name, node, service id.
    pub(crate) instances: OrdMap<Path, Arc<Service>>,
    /// Node, service id, check id. Checks of the whole node come first: their service id is empty.
    pub(crate) checks_by_service: OrdMap<Path, Arc<Check>>,
    /// By folded name: each service that has an instance.
    pub(crate) service_indexes: Table<7, Arc<str>, ModifyIndex>,
    pub(crate) node_addresses: OrdSet<AddressOf<Arc<str>>>,
    pub(crate) service_addresses: OrdSet<AddressOf<OnNode>>,
}

/// What a registration wants of a service, with what it left out filled in.
fn normal_service(wanted: &Service) -> Service {
    let mut service = wanted.clone();
    if service.id.is_empty() {
        service.id.clone_from(&service.name);
    }
    service
}

fn same_service(left: &Service, right: &Service) -> bool {
    let mut left = left.clone();
    (left.create_index, left.modify_index) = (right.create_index, right.modify_index);
    left == *right
}

fn check_id(check: &Check) -> &str {
    if check.check_id.is_empty() {
        &check.name
    } else {
        &check.check_id
    }
}

impl Catalog {
    pub(crate) fn register(
        &mut self,
        at: ModifyIndex,
        registration: &Registration,
        touched: &mut Touched,
    ) -> Result<(), CommandError> {
        // All that may be refused is refused here: below, nothing fails.
        self.validate(registration)?;
        let node = self.ensure_node(at, registration, touched);
        if let Some(service) = &registration.service {
            self.ensure_service(at, &node, normal_service(service), touched);
        }
        for check in &registration.checks {
            self.ensure_check(at, &node, check, touched);
        }
        Ok(())
    }

    fn validate(&self, registration: &Registration) -> Result<(), CommandError> {
        if registration.node.is_empty() {
            return Err(CommandError::NodeMissing);
        }
        if registration.address.is_empty() && !registration.skip_node_update {
            return Err(CommandError::AddressMissing);
        }
        let service = registration.service.as_ref().map(normal_service);
        if service.as_ref().is_some_and(|service| service.name.is_empty()) {
            return Err(CommandError::ServiceNameMissing);
        }
        let key = fold(&registration.node);
        if let Some(holder) = self.nodes.get(key.as_str())
            && !registration.skip_node_update
            && self.is_reserved_by(holder, &key, registration.node_id)
        {
            return Err(CommandError::NodeNameReserved {
                new_id: registration.node_id.to_string(),
                name: holder.name.clone(),
                old_id: holder.id.to_string(),
                address: holder.address.clone(),
            });
        }
        for check in &registration.checks {
            if check_id(check).is_empty() {
                return Err(CommandError::CheckIdMissing);
            }
            if !check.node.is_empty() && fold(&check.node) != key {
                return Err(CommandError::CheckNodeMismatch {
                    check_node: check.node.clone(),
                    node: registration.node.clone(),
                });
            }
            let is_known = check.is_node_level()
                || service.as_ref().is_some_and(|service| service.id == check.service_id)
                || self.services.contains_key(&(key.as_str(), check.service_id.as_str()));
            if !is_known {
                return Err(CommandError::ServiceNotRegistered {
                    node: registration.node.clone(),
                });
            }
        }
        Ok(())
    }

    /// A member that is alive keeps its name: another id may take it over only once the holder's health fails. A holder
    /// without an id is being upgraded to one (http-api section 6).
    fn is_reserved_by(&self, holder: &Node, key: &str, id: NodeId) -> bool {
        let is_alive = self
            .checks
            .get(&(key, SERF_HEALTH))
            .is_some_and(|check| check.status == CheckStatus::Passing);
        !id.0.is_nil() && !holder.id.0.is_nil() && holder.id != id && is_alive
    }

    /// The node's folded name.
    fn ensure_node(&mut self, at: ModifyIndex, registration: &Registration, touched: &mut Touched) -> Arc<str> {
        let folded = fold(&registration.node);
        let existing = self.nodes.get_key_value(folded.as_str());
        if let Some((key, _)) = existing
            && registration.skip_node_update
        {
            return key.clone();
        }
        let key: Arc<str> = existing.map_or_else(|| Arc::from(folded.as_str()), |(key, _)| key.clone());
        let existing = existing.map(|(_, node)| node.clone());
        // An id under another name: the node is renamed, and all that lives under the old name goes with it.
        let renamed = self
            .node_ids
            .get(&registration.node_id)
            .filter(|old| **old != key)
            .cloned();
        let create_index = match &renamed {
            Some(old) => self.nodes[old.as_ref()].create_index,
            None => existing.as_ref().map_or(at, |node| node.create_index),
        };
        let mut node = Node {
            id: registration.node_id,
            name: registration.node.clone(),
            address: registration.address.clone(),
            datacenter: registration.datacenter.clone(),
            tagged_addresses: registration.tagged_addresses.clone(),
            meta: registration.node_meta.clone(),
            create_index,
            modify_index: at,
        };
        if let Some(existing) = &existing
            && renamed.is_none()
        {
            node.modify_index = existing.modify_index;
            if node == **existing {
                return key;
            }
            node.modify_index = at;
        }
        if let Some(old) = renamed {
            self.delete_node(at, &old, touched);
        }
        let is_respelled = existing.is_some_and(|existing| existing.name != node.name);
        self.insert_node(&key, node);
        self.indexes.nodes = at;
        touched.insert(Topic::Nodes);
        touched.insert(Topic::Node(key.to_string()));
        self.touch_services_of(at, &key, touched);
        if is_respelled {
            self.refresh_checks(at, &key, None, touched);
        }
        key
    }

    /// Puts a node in the place of any with its name.
    fn insert_node(&mut self, key: &Arc<str>, node: Node) {
        if !node.id.0.is_nil() {
            self.node_ids.insert(node.id, key.clone());
        }
        let (id, address) = (node.id, node.address.parse::<IpAddr>().ok());
        if let Some(old) = self.nodes.insert(key.clone(), Arc::new(node)) {
            if old.id != id {
                self.node_ids.remove(&old.id);
            }
            if let Ok(old_address) = old.address.parse() {
                self.node_addresses.remove(&AddressOf(old_address, key.clone()));
            }
        }
        if let Some(address) = address {
            self.node_addresses.insert(AddressOf(address, key.clone()));
        }
    }

    fn ensure_service(&mut self, at: ModifyIndex, node: &Arc<str>, mut service: Service, touched: &mut Touched) {
        let existing = self.services.get(&(node.as_ref(), service.id.as_str())).cloned();
        (service.create_index, service.modify_index) = (at, at);
        let mut describes_checks_anew = false;
        if let Some(existing) = &existing {
            if same_service(&service, existing) {
                return;
            }
            service.create_index = existing.create_index;
            describes_checks_anew = existing.name != service.name || existing.tags != service.tags;
        }
        let id: Arc<str> = Arc::from(service.id.as_str());
        let name: Arc<str> = self.service_key(&fold(&service.name));
        let moved_from = existing
            .as_ref()
            .map(|existing| fold(&existing.name))
            .filter(|old| **old != *name);
        if let Some(existing) = &existing {
            self.remove_service(node, existing);
        }
        self.insert_service(node.clone(), id.clone(), name.clone(), Arc::new(service));
        self.indexes.services = at;
        touched.insert(Topic::Services);
        touched.insert(Topic::Node(node.to_string()));
        self.touch_service(at, &name, touched);
        if let Some(old) = moved_from {
            self.touch_service(at, &old, touched);
        }
        if describes_checks_anew {
            self.refresh_checks(at, node, Some(&id), touched);
        }
    }

    /// The shared copy of a folded service name.
    fn service_key(&self, folded: &str) -> Arc<str> {
        self.service_indexes
            .get_key_value(folded)
            .map_or_else(|| Arc::from(folded), |(key, _)| key.clone())
    }

    fn insert_service(&mut self, node: Arc<str>, id: Arc<str>, name: Arc<str>, service: Arc<Service>) {
        if let Ok(address) = service.address.parse() {
            let owner = OnNode {
                node: node.clone(),
                id: id.clone(),
            };
            self.service_addresses.insert(AddressOf(address, owner));
        }
        self.instances
            .insert(Path(name, node.clone(), id.clone()), service.clone());
        self.services.insert(OnNode { node, id }, service);
    }

    fn remove_service(&mut self, node: &str, service: &Service) {
        let removed = self.services.remove_with_key(&(node, service.id.as_str()));
        let (key, _) = removed.expect("a service that was just found is there");
        let name = fold(&service.name);
        self.instances
            .remove(&(name.as_str(), node, service.id.as_str()))
            .expect("every service is an instance of its name");
        if let Ok(address) = service.address.parse() {
            self.service_addresses.remove(&AddressOf(address, key));
        }
    }

    fn ensure_check(&mut self, at: ModifyIndex, node: &Arc<str>, wanted: &Check, touched: &mut Touched) {
        let mut check = Check {
            node: self.nodes[node.as_ref()].name.clone(),
            check_id: check_id(wanted).to_owned(),
            create_index: at,
            modify_index: at,
            ..wanted.clone()
        };
        self.describe_service(node, &mut check);
        let existing = self.checks.get(&(node.as_ref(), check.check_id.as_str())).cloned();
        if let Some(existing) = &existing {
            check.create_index = existing.create_index;
            check.modify_index = existing.modify_index;
            if check == **existing {
                return;
            }
            check.modify_index = at;
            self.remove_check(node, existing);
            if existing.service_id != check.service_id {
                self.touch_checked(at, node, existing, touched);
            }
        }
        self.touch_checked(at, node, &check, touched);
        if check.status == CheckStatus::Critical {
            touched.lose_check(node, &check.check_id);
        }
        self.insert_check(node.clone(), Arc::new(check));
    }

    /// Fills in what a check says of its service.
    fn describe_service(&self, node: &str, check: &mut Check) {
        if check.is_node_level() {
            check.service_name.clear();
            check.service_tags.clear();
        } else {
            let service = &self.services[&(node, check.service_id.as_str())];
            check.service_name.clone_from(&service.name);
            check.service_tags.clone_from(&service.tags);
        }
    }

    /// Brings the checks of a service, or of a whole node, in line with what they say of their service and node.
    ///
    /// Consul leaves them until they are registered again, and lists them under the old name meanwhile.
    fn refresh_checks(&mut self, at: ModifyIndex, node: &Arc<str>, service_id: Option<&str>, touched: &mut Touched) {
        let stale: Vec<Arc<Check>> = match service_id {
            Some(id) => self.checks_of_service(node, id).cloned().collect(),
            None => self.checks_of_node(node).cloned().collect(),
        };
        for check in stale {
            let mut fresh = (*check).clone();
            fresh.node.clone_from(&self.nodes[node.as_ref()].name);
            self.describe_service(node, &mut fresh);
            if fresh != *check {
                fresh.modify_index = at;
                self.touch_checked(at, node, &fresh, touched);
                self.insert_check(node.clone(), Arc::new(fresh));
            }
        }
    }

    fn insert_check(&mut self, node: Arc<str>, check: Arc<Check>) {
        let id: Arc<str> = Arc::from(check.check_id.as_str());
        let path = Path(node.clone(), Arc::from(check.service_id.as_str()), id.clone());
        self.checks_by_service.insert(path, check.clone());
        self.checks.insert(OnNode { node, id }, check);
    }

    fn remove_check(&mut self, node: &str, check: &Check) {
        let id = check.check_id.as_str();
        let removed = self.checks.remove(&(node, id));
        assert!(removed.is_some(), "a check that was just found is there");
        let removed = self.checks_by_service.remove(&(node, check.service_id.as_str(), id));
        assert!(removed.is_some(), "every check is filed under its service");
    }

    pub(crate) fn deregister(
        &mut self,
        at: ModifyIndex,
        deregistration: &Deregistration,
        touched: &mut Touched,
    ) -> Result<(), CommandError> {
        if deregistration.node.is_empty() {
            return Err(CommandError::NodeMissing);
        }
        let folded = fold(&deregistration.node);
        let Some((key, node)) = self.nodes.get_key_value(folded.as_str()) else {
            return Ok(());
        };
        if deregistration.only_node_id.is_some_and(|id| node.id.0 != id) {
            return Ok(());
        }
        let key = key.clone();
        if !deregistration.service_id.is_empty() {
            let service = self
                .services
                .get(&(folded.as_str(), deregistration.service_id.as_str()));
            if let Some(service) = service.cloned() {
                self.delete_service(at, &key, &service, touched);
            }
        } else if !deregistration.check_id.is_empty() {
            let check = self.checks.get(&(folded.as_str(), deregistration.check_id.as_str()));
            if let Some(check) = check.cloned() {
                self.delete_check(at, &key, &check, touched);
            }
        } else {
            self.delete_node(at, &key, touched);
        }
        Ok(())
    }

    fn delete_node(&mut self, at: ModifyIndex, key: &Arc<str>, touched: &mut Touched) {
        // Services first: a check of the whole node then has none left whose index would move again and again.
        let services: Vec<Arc<Service>> = self.services_of_node(key).cloned().collect();
        for service in services {
            self.delete_service(at, key, &service, touched);
        }
        let checks: Vec<Arc<Check>> = self.checks_of_node(key).cloned().collect();
        for check in checks {
            self.delete_check(at, key, &check, touched);
        }
        let node = self
            .nodes
            .remove(key.as_ref())
            .expect("a node that was just found is there");
        self.node_ids.remove(&node.id);
        if let Ok(address) = node.address.parse() {
            self.node_addresses.remove(&AddressOf(address, key.clone()));
        }
        self.indexes.nodes = at;
        touched.insert(Topic::Nodes);
        touched.insert(Topic::Node(key.to_string()));
        touched.lose_node(key);
    }

    fn delete_service(&mut self, at: ModifyIndex, node: &Arc<str>, service: &Service, touched: &mut Touched) {
        let checks: Vec<Arc<Check>> = self.checks_of_service(node, &service.id).cloned().collect();
        for check in checks {
            self.delete_check(at, node, &check, touched);
        }
        self.remove_service(node, service);
        self.indexes.services = at;
        touched.insert(Topic::Services);
        touched.insert(Topic::Node(node.to_string()));
        self.touch_service(at, &fold(&service.name), touched);
    }

    fn delete_check(&mut self, at: ModifyIndex, node: &Arc<str>, check: &Check, touched: &mut Touched) {
        self.remove_check(node, check);
        self.touch_checked(at, node, check, touched);
        touched.lose_check(node, &check.check_id);
    }

    /// A check changed: so did the health of its service, or of every service of its node.
    fn touch_checked(&mut self, at: ModifyIndex, node: &Arc<str>, check: &Check, touched: &mut Touched) {
        self.indexes.checks = at;
        touched.insert(Topic::Checks);
        touched.insert(Topic::Node(node.to_string()));
        if check.is_node_level() {
            self.touch_services_of(at, node, touched);
        } else {
            self.touch_service(at, &fold(&check.service_name), touched);
        }
    }

    fn touch_services_of(&mut self, at: ModifyIndex, node: &str, touched: &mut Touched) {
        let names: BTreeSet<String> = self.services_of_node(node).map(|service| fold(&service.name)).collect();
        for name in names {
            self.touch_service(at, &name, touched);
        }
    }

    /// Moves the index of a service, or when it has no instance any more the index of services that are gone.
    fn touch_service(&mut self, at: ModifyIndex, name: &str, touched: &mut Touched) {
        touched.insert(Topic::Service(name.to_owned()));
        if self.instances_of(name).next().is_some() {
            let key = self.service_key(name);
            self.service_indexes.insert(key, at);
        } else if self.service_indexes.remove(name).is_some() {
            self.indexes.service_gone = at;
            touched.insert(Topic::ServiceGone);
        }
    }

    /// Each instance of a service (its folded name): its node's folded name, and itself.
    pub(crate) fn instances_of<'a>(&'a self, name: &'a str) -> impl Iterator<Item = (&'a Arc<str>, &'a Arc<Service>)> {
        self.instances
            .range::<_, (&str, &str, &str)>((name, "", "")..)
            .take_while(move |(path, _)| *path.0 == *name)
            .map(|(path, service)| (&path.1, service))
    }

    /// By service id.
    pub(crate) fn services_of_node<'a>(&'a self, node: &'a str) -> impl Iterator<Item = &'a Arc<Service>> {
        self.services
            .range::<_, (&str, &str)>((node, "")..)
            .take_while(move |(key, _)| *key.node == *node)
            .map(|(_, service)| service)
    }

    /// By check id.
    pub(crate) fn checks_of_node<'a>(&'a self, node: &'a str) -> impl Iterator<Item = &'a Arc<Check>> {
        self.checks
            .range::<_, (&str, &str)>((node, "")..)
            .take_while(move |(key, _)| *key.node == *node)
            .map(|(_, check)| check)
    }

    /// By check id. The empty service id: checks of the whole node.
    pub(crate) fn checks_of_service<'a>(
        &'a self,
        node: &'a str,
        service_id: &'a str,
    ) -> impl Iterator<Item = &'a Arc<Check>> {
        self.checks_by_service
            .range::<_, (&str, &str, &str)>((node, service_id, "")..)
            .take_while(move |(path, _)| *path.0 == *node && *path.1 == *service_id)
            .map(|(_, check)| check)
    }

    pub(crate) fn hash(&self) -> u128 {
        [self.services.hash(), self.checks.hash(), self.service_indexes.hash()]
            .into_iter()
            .fold(self.nodes.hash(), u128::wrapping_add)
    }
    pub(crate) fn recomputed_hash(&self) -> u128 {
        [
            self.services.recomputed_hash(),
            self.checks.recomputed_hash(),
            self.service_indexes.recomputed_hash(),
        ]
        .into_iter()
        .fold(self.nodes.recomputed_hash(), u128::wrapping_add)
    }

    /// Whether the node and its id were new.
    pub(crate) fn load_node(&mut self, node: Node) -> bool {
        let key: Arc<str> = Arc::from(fold(&node.name));
        let is_new = !self.nodes.contains_key(key.as_ref()) && !self.node_ids.contains_key(&node.id);
        if is_new {
            self.insert_node(&key, node);
        }
        is_new
    }

    /// Whether its node is known, and it was new.
    pub(crate) fn load_service(&mut self, node: &str, service: Arc<Service>) -> bool {
        let Some((key, _)) = self.nodes.get_key_value(fold(node).as_str()) else {
            return false;
        };
        let key = key.clone();
        let is_new = !self.services.contains_key(&(key.as_ref(), service.id.as_str()));
        if is_new {
            let name = self.service_key(&fold(&service.name));
            self.insert_service(key, Arc::from(service.id.as_str()), name, service);
        }
        is_new
    }

    /// Whether its node is known, and it was new.
    pub(crate) fn load_check(&mut self, check: Arc<Check>) -> bool {
        let Some((key, _)) = self.nodes.get_key_value(fold(&check.node).as_str()) else {
            return false;
        };
        let key = key.clone();
        let is_new = !self.checks.contains_key(&(key.as_ref(), check.check_id.as_str()));
        if is_new {
            self.insert_check(key, check);
        }
        is_new
    }

    /// Whether it was new.
    pub(crate) fn load_service_index(&mut self, name: &str, index: ModifyIndex) -> bool {
        self.service_indexes.insert(Arc::from(name), index).is_none()
    }

    /// The first broken invariant, in words.
    pub(crate) fn verify(&self, last_index: ModifyIndex) -> Result<(), String> {
        let fail = |what: &str, of: &str| Err(format!("{what}: {of:?}"));
        let TableIndexes {
            nodes,
            services,
            checks,
            service_gone,
        } = self.indexes;
        if nodes.max(services).max(checks) > last_index || service_gone > services {
            return Err("an index of the catalog is in the future".to_owned());
        }
        let ordered = |create: ModifyIndex, modify: ModifyIndex, table: ModifyIndex| {
            ModifyIndex::ZERO < create && create <= modify && modify <= table
        };

        let mut id_count = 0;
        let mut address_count = 0;
        for (key, node) in &self.nodes {
            if **key != *fold(&node.name) || key.is_empty() {
                return fail("a node is filed under another name", key);
            }
            if !ordered(node.create_index, node.modify_index, nodes) {
                return fail("the indexes of a node are out of order", key);
            }
            if !node.id.0.is_nil() {
                id_count += 1;
                if self.node_ids.get(&node.id) != Some(key) {
                    return fail("a node is not found by its id", key);
                }
            }
            if let Ok(address) = node.address.parse() {
                address_count += 1;
                if !self.node_addresses.contains(&AddressOf(address, key.clone())) {
                    return fail("a node is not found by its address", key);
                }
            }
        }
        if id_count != self.node_ids.len() || address_count != self.node_addresses.len() {
            return Err("an id or an address finds no node".to_owned());
        }

        let mut address_count = 0;
        for (key, service) in &self.services {
            if !self.nodes.contains_key(key.node.as_ref()) {
                return fail("a service has no node", &service.id);
            }
            if *key.id != *service.id || service.name.is_empty() {
                return fail("a service is filed under another id", &service.id);
            }
            if !ordered(service.create_index, service.modify_index, services) {
                return fail("the indexes of a service are out of order", &service.id);
            }
            let name = fold(&service.name);
            let path = (name.as_str(), key.node.as_ref(), key.id.as_ref());
            if !self
                .instances
                .get(&path)
                .is_some_and(|instance| Arc::ptr_eq(instance, service))
            {
                return fail("a service is no instance of its name", &service.id);
            }
            if let Ok(address) = service.address.parse() {
                address_count += 1;
                if !self.service_addresses.contains(&AddressOf(address, key.clone())) {
                    return fail("a service is not found by its address", &service.id);
                }
            }
        }
        if self.instances.len() != self.services.len() || address_count != self.service_addresses.len() {
            return Err("an instance or an address finds no service".to_owned());
        }

        for (key, check) in &self.checks {
            let Some(node) = self.nodes.get(key.node.as_ref()) else {
                return fail("a check has no node", &check.check_id);
            };
            if *key.id != *check.check_id || check.check_id.is_empty() || check.node != node.name {
                return fail("a check is filed under another id or node", &check.check_id);
            }
            if !ordered(check.create_index, check.modify_index, checks) {
                return fail("the indexes of a check are out of order", &check.check_id);
            }
            let path = (key.node.as_ref(), check.service_id.as_str(), key.id.as_ref());
            let filed = self.checks_by_service.get(&path);
            if !filed.is_some_and(|filed| Arc::ptr_eq(filed, check)) {
                return fail("a check is not filed under its service", &check.check_id);
            }
            if check.is_node_level() {
                if !check.service_name.is_empty() || !check.service_tags.is_empty() {
                    return fail("a check of a node names a service", &check.check_id);
                }
            } else {
                let service = self.services.get(&(key.node.as_ref(), check.service_id.as_str()));
                let says_so = service
                    .is_some_and(|service| service.name == check.service_name && service.tags == check.service_tags);
                if !says_so {
                    return fail("a check misnames its service", &check.check_id);
                }
            }
        }
        if self.checks_by_service.len() != self.checks.len() {
            return Err("a check is filed twice".to_owned());
        }

        for (path, _) in &self.instances {
            if !self.service_indexes.contains_key(path.0.as_ref()) {
                return fail("a service with instances has no index", &path.0);
            }
        }
        for (name, index) in &self.service_indexes {
            // Its instances, its checks, its nodes and the checks of these.
            let mut last = ModifyIndex::ZERO;
            for (node, service) in self.instances_of(name) {
                last = last
                    .max(service.modify_index)
                    .max(self.nodes[node.as_ref()].modify_index);
                let own = self.checks_of_service(node, &service.id);
                for check in self.checks_of_service(node, "").chain(own) {
                    last = last.max(check.modify_index);
                }
            }
            if last == ModifyIndex::ZERO {
                return fail("a service without instances has an index", name);
            }
            if *index < last || *index > last_index {
                return fail("the index of a service is not its last change", name);
            }
        }
        Ok(())
    }
}
