//! An agent's own services and checks, and what the catalog does not know of them yet.

use crate::{CONSUL_SERVICE_ID, Change, SERF_HEALTH_ID};
use quorate_types::{Check, CheckStatus, Deregistration, Instant, Node, NodeId, Registration, Service, Uuid};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// What the agent says of its node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeRecord {
    pub id: NodeId,
    pub name: String,
    pub address: String,
    pub datacenter: String,
    pub tagged_addresses: BTreeMap<String, String>,
    pub meta: BTreeMap<String, String>,
}

/// The catalog's view of our node.
#[derive(Clone, Copy, Debug)]
pub struct Catalog<'a> {
    pub node: &'a Node,
    pub services: &'a [Arc<Service>],
    pub checks: &'a [Arc<Check>],
}

/// A record and whether the catalog has it as it is. `generation` tells an edit made while a write was under way.
#[derive(Clone, Debug)]
struct Synced<T> {
    value: Arc<T>,
    token: String,
    in_sync: bool,
    generation: u64,
}

#[derive(Clone, Debug)]
struct LocalCheck {
    record: Synced<Check>,
    /// An output that changed alone waits until then before it is told.
    output_due_at: Option<Instant>,
    critical_since: Option<Instant>,
}

/// What one change carries, so that its acknowledgement marks just that.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Carried {
    Node(u64),
    Service(String, u64),
    Check(String, u64),
    ServiceGone(String),
    CheckGone(String),
}

/// A change to write, with the token to write it with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pending {
    pub change: Change,
    /// Empty: the agent's own.
    pub token: String,
    carried: Vec<Carried>,
}

/// The local services and checks of one agent.
#[derive(Clone, Debug)]
pub struct LocalState {
    node: Synced<NodeRecord>,
    services: BTreeMap<String, Synced<Service>>,
    checks: BTreeMap<String, LocalCheck>,
    /// Ids the catalog may still have, with the token their record was registered with.
    services_gone: BTreeMap<String, String>,
    checks_gone: BTreeMap<String, String>,
    generation_last: u64,
    /// Counts edits of services.
    version: u64,
}

impl LocalState {
    pub fn new(node: NodeRecord) -> Self {
        Self {
            node: Synced {
                value: Arc::new(node),
                token: String::new(),
                in_sync: false,
                generation: 0,
            },
            services: BTreeMap::new(),
            checks: BTreeMap::new(),
            services_gone: BTreeMap::new(),
            checks_gone: BTreeMap::new(),
            generation_last: 0,
            version: 0,
        }
    }

    pub fn node(&self) -> &NodeRecord {
        &self.node.value
    }
    /// Grows with every added, changed or removed service.
    pub fn version(&self) -> u64 {
        self.version
    }
    pub fn services(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.services.values().map(|record| &record.value)
    }
    pub fn service(&self, id: &str) -> Option<&Arc<Service>> {
        self.services.get(id).map(|record| &record.value)
    }
    pub fn service_token(&self, id: &str) -> Option<&str> {
        self.services.get(id).map(|record| record.token.as_str())
    }
    pub fn checks(&self) -> impl Iterator<Item = &Arc<Check>> {
        self.checks.values().map(|check| &check.record.value)
    }
    pub fn check(&self, id: &str) -> Option<&Arc<Check>> {
        self.checks.get(id).map(|check| &check.record.value)
    }
    /// Since when a check has been critical without a break.
    pub fn critical_since(&self, id: &str) -> Option<Instant> {
        self.checks.get(id)?.critical_since
    }
    pub fn is_in_sync(&self) -> bool {
        self.node.in_sync
            && self.services.values().all(|record| record.in_sync)
            && self.checks.values().all(|check| check.record.in_sync)
            && self.services_gone.is_empty()
            && self.checks_gone.is_empty()
    }

    fn next_generation(&mut self) -> u64 {
        self.generation_last += 1;
        self.generation_last
    }

    /// Replaces what is said of the node.
    pub fn set_node(&mut self, node: NodeRecord) {
        if *self.node.value != node {
            self.node.generation = self.next_generation();
            self.node.value = Arc::new(node);
            self.node.in_sync = false;
        }
    }

    /// Adds a service, or replaces the one of its id. An equal one keeps its place.
    pub fn add_service(&mut self, mut service: Service, token: &str) {
        (service.create_index, service.modify_index) = Default::default();
        self.services_gone.remove(&service.id);
        if let Some(existing) = self.services.get(&service.id)
            && *existing.value == service
            && existing.token == token
        {
            return;
        }
        let generation = self.next_generation();
        self.version += 1;
        let (name, tags, id) = (service.name.clone(), service.tags.clone(), service.id.clone());
        let record = Synced {
            value: Arc::new(service),
            token: token.to_owned(),
            in_sync: false,
            generation,
        };
        self.services.insert(id.clone(), record);
        // A check shows its service's name and tags.
        let bound: Vec<String> = self
            .checks
            .iter()
            .filter(|(_, check)| check.record.value.service_id == id)
            .map(|(id, _)| id.clone())
            .collect();
        for check_id in bound {
            self.edit_check(&check_id, |check| {
                check.service_name.clone_from(&name);
                check.service_tags.clone_from(&tags);
            });
        }
    }

    /// Removes a service and its checks; the ids of those checks, or `None` when there is no such service.
    pub fn remove_service(&mut self, id: &str) -> Option<Vec<String>> {
        let record = self.services.remove(id)?;
        self.version += 1;
        self.services_gone.insert(id.to_owned(), record.token);
        let bound: Vec<String> = self
            .checks
            .iter()
            .filter(|(_, check)| check.record.value.service_id == id)
            .map(|(check_id, _)| check_id.clone())
            .collect();
        for check_id in &bound {
            // Deregistering the service takes them along.
            self.checks.remove(check_id);
        }
        Some(bound)
    }

    /// Adds a check, or replaces the one of its id. Its service, if any, is there (else `false`, and nothing happens).
    pub fn add_check(&mut self, now: Instant, mut check: Check, token: &str) -> bool {
        if !check.service_id.is_empty() {
            let Some(service) = self.services.get(&check.service_id) else {
                return false;
            };
            check.service_name.clone_from(&service.value.name);
            check.service_tags.clone_from(&service.value.tags);
        }
        check.node.clone_from(&self.node.value.name);
        (check.create_index, check.modify_index) = Default::default();
        self.checks_gone.remove(&check.check_id);
        let critical_since = match self.checks.get(&check.check_id) {
            Some(existing) if *existing.record.value == check && existing.record.token == token => return true,
            Some(existing) if check.status == CheckStatus::Critical => existing.critical_since.or(Some(now)),
            _ => (check.status == CheckStatus::Critical).then_some(now),
        };
        let generation = self.next_generation();
        let record = Synced {
            token: token.to_owned(),
            in_sync: false,
            generation,
            value: Arc::new(check),
        };
        self.checks.insert(
            record.value.check_id.clone(),
            LocalCheck {
                record,
                output_due_at: None,
                critical_since,
            },
        );
        true
    }

    /// Removes a check; whether there was one.
    pub fn remove_check(&mut self, id: &str) -> bool {
        let Some(check) = self.checks.remove(id) else {
            return false;
        };
        self.checks_gone.insert(id.to_owned(), check.record.token);
        true
    }

    fn edit_check(&mut self, id: &str, edit: impl FnOnce(&mut Check)) {
        let generation = self.next_generation();
        let Some(check) = self.checks.get_mut(id) else {
            return;
        };
        let mut value = (*check.record.value).clone();
        edit(&mut value);
        if value != *check.record.value {
            check.record.value = Arc::new(value);
            check.record.in_sync = false;
            check.record.generation = generation;
            check.output_due_at = None;
        }
    }

    /// A check's result. A new status is told at once; an output that changed alone after `output_delay` (zero: at
    /// once), counted from the first such change. Whether something is to be told now.
    pub fn update_check(
        &mut self,
        now: Instant,
        id: &str,
        status: CheckStatus,
        output: &str,
        output_delay: Duration,
    ) -> bool {
        let Some(check) = self.checks.get(id) else {
            return false;
        };
        let (was_status, was_in_sync, was_due_at) =
            (check.record.value.status, check.record.in_sync, check.output_due_at);
        if was_status == status && check.record.value.output == output {
            return false;
        }
        self.edit_check(id, |check| {
            check.status = status;
            output.clone_into(&mut check.output);
        });
        let check = self.checks.get_mut(id).expect("looked up above");
        check.critical_since = match status {
            CheckStatus::Critical => check.critical_since.or(Some(now)),
            _ => None,
        };
        let only_output = was_status == status && (was_in_sync || was_due_at.is_some());
        if only_output && !output_delay.is_zero() {
            check.output_due_at = Some(was_due_at.unwrap_or(now + output_delay));
        }
        check.output_due_at.is_none()
    }

    /// When the next deferred output is due.
    pub fn next_output_due_at(&self) -> Option<Instant> {
        self.checks.values().filter_map(|check| check.output_due_at).min()
    }

    /// Compares everything with the catalog's view of this node (`None`: it has none). Afterwards [`Self::pending`]
    /// lists every difference.
    pub fn compare(&mut self, catalog: Option<Catalog<'_>>) {
        let Some(catalog) = catalog else {
            self.node.in_sync = false;
            self.services.values_mut().for_each(|record| record.in_sync = false);
            for check in self.checks.values_mut() {
                check.record.in_sync = false;
                check.output_due_at = None;
            }
            // What the catalog does not have needs no removal.
            self.services_gone.clear();
            self.checks_gone.clear();
            return;
        };
        self.node.in_sync = same_node(&self.node.value, catalog.node);
        let theirs: BTreeMap<&str, &Arc<Service>> = catalog
            .services
            .iter()
            .map(|service| (service.id.as_str(), service))
            .collect();
        self.services_gone.retain(|id, _| theirs.contains_key(id.as_str()));
        for id in theirs.keys().filter(|id| **id != CONSUL_SERVICE_ID) {
            if !self.services.contains_key(*id) {
                self.services_gone.entry((*id).to_owned()).or_default();
            }
        }
        let mut adopted = Vec::new();
        for (id, record) in &mut self.services {
            let their = theirs.get(id.as_str());
            if let Some(their) = their
                && record.value.enable_tag_override
                && record.value.tags != their.tags
            {
                adopted.push((id.clone(), their.tags.clone()));
                let mut value = (*record.value).clone();
                value.tags.clone_from(&their.tags);
                record.value = Arc::new(value);
            }
            record.in_sync = their.is_some_and(|their| same_service(&record.value, their));
        }
        for (service_id, tags) in adopted {
            self.version += 1;
            for check in self
                .checks
                .values_mut()
                .filter(|check| check.record.value.service_id == service_id)
            {
                let mut value = (*check.record.value).clone();
                value.service_tags.clone_from(&tags);
                check.record.value = Arc::new(value);
            }
        }
        let theirs: BTreeMap<&str, &Arc<Check>> = catalog
            .checks
            .iter()
            .map(|check| (check.check_id.as_str(), check))
            .collect();
        self.checks_gone.retain(|id, _| theirs.contains_key(id.as_str()));
        for (id, their) in theirs.iter().filter(|(id, _)| **id != SERF_HEALTH_ID) {
            // A check goes with its service; one of the servers' own service is the leader's.
            let goes_along =
                self.services_gone.contains_key(&their.service_id) || their.service_id == CONSUL_SERVICE_ID;
            if !self.checks.contains_key(*id) && !goes_along {
                self.checks_gone.entry((*id).to_owned()).or_default();
            }
        }
        for (id, check) in &mut self.checks {
            let their = theirs
                .get(id.as_str())
                .filter(|their| same_check(&check.record.value, their));
            if their.is_none() {
                check.output_due_at = None;
            }
            // Outputs are not compared as such, but one that was changed here and not told yet is still to be told.
            let told = their.is_some_and(|their| check.record.in_sync || their.output == check.record.value.output);
            check.record.in_sync = told && check.output_due_at.is_none();
        }
    }

    /// Everything to write now: removals first, then services each with its checks, then checks alone, then the node
    /// when nothing else carries it.
    pub fn pending(&self, now: Instant) -> Vec<Pending> {
        let mut all = Vec::new();
        for (id, token) in &self.services_gone {
            all.push(Pending {
                change: Change::Deregister(self.deregistration(id, "")),
                token: token.clone(),
                carried: vec![Carried::ServiceGone(id.clone())],
            });
        }
        for (id, token) in &self.checks_gone {
            all.push(Pending {
                change: Change::Deregister(self.deregistration("", id)),
                token: token.clone(),
                carried: vec![Carried::CheckGone(id.clone())],
            });
        }
        let is_due =
            |check: &LocalCheck| !check.record.in_sync && check.output_due_at.is_none_or(|due_at| due_at <= now);
        let mut by_service: BTreeMap<&str, Vec<&LocalCheck>> = BTreeMap::new();
        for check in self.checks.values().filter(|check| is_due(check)) {
            by_service
                .entry(&check.record.value.service_id)
                .or_default()
                .push(check);
        }
        for (id, record) in self.services.iter().filter(|(_, record)| !record.in_sync) {
            let (with, apart): (Vec<&LocalCheck>, Vec<&LocalCheck>) = by_service
                .remove(id.as_str())
                .unwrap_or_default()
                .into_iter()
                .partition(|check| check.record.token == record.token);
            let service = Some((*record.value).clone());
            let carried = Carried::Service(id.clone(), record.generation);
            all.push(self.registration(service, &with, record.token.clone(), carried));
            for check in apart {
                all.push(self.check_alone(check));
            }
        }
        for check in by_service.into_values().flatten() {
            all.push(self.check_alone(check));
        }
        let carries_node = |pending: &Pending| matches!(pending.change, Change::Register(_));
        if !self.node.in_sync && !all.iter().any(carries_node) {
            all.push(Pending {
                change: Change::Register(Box::new(self.node_registration())),
                token: String::new(),
                carried: vec![Carried::Node(self.node.generation)],
            });
        }
        all
    }

    fn check_alone(&self, check: &LocalCheck) -> Pending {
        let carried = Carried::Check(check.record.value.check_id.clone(), check.record.generation);
        self.registration_of(
            None,
            vec![(*check.record.value).clone()],
            check.record.token.clone(),
            vec![carried],
        )
    }

    fn registration(
        &self,
        service: Option<Service>,
        checks: &[&LocalCheck],
        token: String,
        carried: Carried,
    ) -> Pending {
        let mut carried = vec![carried];
        carried.extend(
            checks
                .iter()
                .map(|check| Carried::Check(check.record.value.check_id.clone(), check.record.generation)),
        );
        let checks = checks.iter().map(|check| (*check.record.value).clone()).collect();
        self.registration_of(service, checks, token, carried)
    }

    fn registration_of(
        &self,
        service: Option<Service>,
        checks: Vec<Check>,
        token: String,
        mut carried: Vec<Carried>,
    ) -> Pending {
        carried.push(Carried::Node(self.node.generation));
        Pending {
            change: Change::Register(Box::new(Registration {
                service,
                checks,
                ..self.node_registration()
            })),
            token,
            carried,
        }
    }

    fn node_registration(&self) -> Registration {
        let node = &self.node.value;
        Registration {
            node_id: node.id,
            node: node.name.clone(),
            address: node.address.clone(),
            datacenter: node.datacenter.clone(),
            tagged_addresses: Some(node.tagged_addresses.clone()),
            node_meta: Some(node.meta.clone()),
            service: None,
            checks: Vec::new(),
            skip_node_update: self.node.in_sync,
        }
    }

    fn deregistration(&self, service_id: &str, check_id: &str) -> Deregistration {
        let id: Uuid = self.node.value.id.0;
        Deregistration {
            node: self.node.value.name.clone(),
            service_id: service_id.to_owned(),
            check_id: check_id.to_owned(),
            only_node_id: Some(id),
        }
    }

    /// The servers have applied `pending`: what it carried and was not edited since is in sync.
    pub fn acknowledge(&mut self, pending: &Pending) {
        for carried in &pending.carried {
            match carried {
                Carried::Node(generation) if self.node.generation == *generation => self.node.in_sync = true,
                Carried::Service(id, generation) => {
                    if let Some(record) = self
                        .services
                        .get_mut(id)
                        .filter(|record| record.generation == *generation)
                    {
                        record.in_sync = true;
                    }
                }
                Carried::Check(id, generation) => {
                    if let Some(check) = self
                        .checks
                        .get_mut(id)
                        .filter(|check| check.record.generation == *generation)
                    {
                        check.record.in_sync = true;
                        check.output_due_at = None;
                    }
                }
                Carried::ServiceGone(id) => drop(self.services_gone.remove(id)),
                Carried::CheckGone(id) => drop(self.checks_gone.remove(id)),
                Carried::Node(_) => {}
            }
        }
    }
}

fn same_node(ours: &NodeRecord, theirs: &Node) -> bool {
    ours.id == theirs.id
        && ours.address == theirs.address
        && theirs.tagged_addresses.as_ref() == Some(&ours.tagged_addresses)
        && theirs.meta.as_ref() == Some(&ours.meta)
}

fn same_service(ours: &Service, theirs: &Service) -> bool {
    *ours
        == Service {
            create_index: ours.create_index,
            modify_index: ours.modify_index,
            ..theirs.clone()
        }
}

/// Equal but for the output, whose sync is deferred, and what the catalog adds.
fn same_check(ours: &Check, theirs: &Check) -> bool {
    *ours
        == Check {
            node: ours.node.clone(),
            output: ours.output.clone(),
            create_index: ours.create_index,
            modify_index: ours.modify_index,
            ..theirs.clone()
        }
}

/// Between two full syncs: `base` (one minute) up to 128 members, and once more for every doubling beyond, so that the
/// servers' load grows with the logarithm of the pool (Consul `agent/ae`, `scaleFactor`).
pub fn sync_interval(base: Duration, member_count: usize) -> Duration {
    let mut factor = 1;
    let mut reach = 128_usize;
    while reach < member_count {
        reach = reach.saturating_mul(2);
        factor += 1;
    }
    base * factor
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(millis: u64) -> Instant {
        Instant::from_millis(millis)
    }

    fn state() -> LocalState {
        LocalState::new(NodeRecord {
            id: NodeId(Uuid::from_random_bytes([7; 16])),
            name: "n1".to_owned(),
            address: "10.0.0.1".to_owned(),
            datacenter: "dc1".to_owned(),
            ..NodeRecord::default()
        })
    }

    fn service(id: &str, port: i64) -> Service {
        Service {
            id: id.to_owned(),
            name: id.to_owned(),
            port,
            ..Service::default()
        }
    }

    fn check(id: &str, service_id: &str) -> Check {
        Check {
            check_id: id.to_owned(),
            name: id.to_owned(),
            service_id: service_id.to_owned(),
            ..Check::default()
        }
    }

    /// The catalog as far as one node goes.
    #[derive(Default)]
    struct Model {
        node: Option<Node>,
        services: BTreeMap<String, Arc<Service>>,
        checks: BTreeMap<String, Arc<Check>>,
    }

    impl Model {
        fn apply(&mut self, change: &Change) {
            match change {
                Change::Register(registration) => {
                    if self.node.is_none() || !registration.skip_node_update {
                        self.node = Some(Node {
                            id: registration.node_id,
                            name: registration.node.clone(),
                            address: registration.address.clone(),
                            datacenter: registration.datacenter.clone(),
                            tagged_addresses: registration.tagged_addresses.clone(),
                            meta: registration.node_meta.clone(),
                            ..Node::default()
                        });
                    }
                    if let Some(service) = &registration.service {
                        self.services.insert(service.id.clone(), Arc::new(service.clone()));
                    }
                    for check in &registration.checks {
                        assert!(
                            check.service_id.is_empty() || self.services.contains_key(&check.service_id),
                            "check {} before its service",
                            check.check_id
                        );
                        self.checks.insert(check.check_id.clone(), Arc::new(check.clone()));
                    }
                }
                Change::Deregister(gone) if !gone.service_id.is_empty() => {
                    self.services.remove(&gone.service_id);
                    self.checks.retain(|_, check| check.service_id != gone.service_id);
                }
                Change::Deregister(gone) => drop(self.checks.remove(&gone.check_id)),
            }
        }
        fn compare(&self, state: &mut LocalState) {
            let services: Vec<Arc<Service>> = self.services.values().cloned().collect();
            let checks: Vec<Arc<Check>> = self.checks.values().cloned().collect();
            state.compare(self.node.as_ref().map(|node| Catalog {
                node,
                services: &services,
                checks: &checks,
            }));
        }
        fn sync(&mut self, state: &mut LocalState, now: Instant) {
            for pending in state.pending(now) {
                self.apply(&pending.change);
                state.acknowledge(&pending);
            }
        }
    }

    #[test]
    fn a_service_goes_out_with_its_checks_and_the_node_in_one_change() {
        let mut state = state();
        state.add_service(service("web", 80), "");
        assert!(state.add_check(at(0), check("service:web", "web"), ""));
        let pending = state.pending(at(0));
        assert_eq!(pending.len(), 1);
        let Change::Register(registration) = &pending[0].change else {
            panic!("a registration");
        };
        assert_eq!(registration.checks.len(), 1);
        assert!(!registration.skip_node_update);
        state.acknowledge(&pending[0]);
        assert!(state.is_in_sync());
    }

    #[test]
    fn an_edit_while_a_write_was_under_way_is_written_too() {
        let mut state = state();
        state.add_service(service("web", 80), "");
        let pending = state.pending(at(0));
        state.add_service(service("web", 81), "");
        state.acknowledge(&pending[0]);
        assert!(!state.is_in_sync());
        assert_eq!(state.pending(at(0)).len(), 1);
    }

    #[test]
    fn a_check_of_an_unknown_service_is_refused() {
        assert!(!state().add_check(at(0), check("c", "nope"), ""));
    }

    #[test]
    fn a_status_is_told_at_once_and_an_output_alone_later() {
        let (mut state, mut model) = (state(), Model::default());
        state.add_check(at(0), check("c", ""), "");
        model.sync(&mut state, at(0));
        let delay = Duration::from_secs(300);
        assert!(!state.update_check(at(1), "c", CheckStatus::Critical, "one", delay));
        assert!(state.pending(at(1)).is_empty());
        assert!(!state.update_check(at(2), "c", CheckStatus::Critical, "two", delay));
        assert_eq!(state.next_output_due_at(), Some(at(300_001)));
        assert_eq!(state.pending(at(300_001)).len(), 1);
        assert!(state.update_check(at(3), "c", CheckStatus::Passing, "three", delay));
        assert_eq!(state.pending(at(3)).len(), 1);
        assert_eq!(state.critical_since("c"), None);
    }

    #[test]
    fn what_is_changed_behind_the_agents_back_is_repaired() {
        let (mut state, mut model) = (state(), Model::default());
        state.add_service(service("web", 80), "");
        state.add_check(at(0), check("service:web", "web"), "");
        model.sync(&mut state, at(0));
        model.services.insert("bogus".to_owned(), Arc::new(service("bogus", 1)));
        model.services.insert("web".to_owned(), Arc::new(service("web", 99)));
        model
            .services
            .insert("consul".to_owned(), Arc::new(service("consul", 8300)));
        model.checks.clear();
        model
            .checks
            .insert("serfHealth".to_owned(), Arc::new(check("serfHealth", "")));
        model.compare(&mut state);
        model.sync(&mut state, at(1));
        assert_eq!(model.services.keys().collect::<Vec<_>>(), ["consul", "web"]);
        assert_eq!(model.services["web"].port, 80);
        assert_eq!(model.checks.keys().collect::<Vec<_>>(), ["serfHealth", "service:web"]);
    }

    #[test]
    fn tags_changed_in_the_catalog_are_adopted_where_the_service_allows_it() {
        let (mut state, mut model) = (state(), Model::default());
        let overridable = Service {
            enable_tag_override: true,
            ..service("web", 80)
        };
        state.add_service(overridable.clone(), "");
        model.sync(&mut state, at(0));
        let tagged = Service {
            tags: vec!["theirs".to_owned()],
            port: 99,
            ..overridable
        };
        model.services.insert("web".to_owned(), Arc::new(tagged));
        model.compare(&mut state);
        model.sync(&mut state, at(1));
        assert_eq!(model.services["web"].tags, ["theirs"]);
        assert_eq!(model.services["web"].port, 80);
        assert_eq!(state.service("web").unwrap().tags, ["theirs"]);
    }

    #[test]
    fn a_deregistered_service_takes_its_checks_along() {
        let (mut state, mut model) = (state(), Model::default());
        state.add_service(service("web", 80), "");
        state.add_check(at(0), check("service:web", "web"), "");
        model.sync(&mut state, at(0));
        assert_eq!(state.remove_service("web"), Some(vec!["service:web".to_owned()]));
        assert_eq!(state.remove_service("web"), None);
        assert_eq!(state.pending(at(0)).len(), 1);
        model.sync(&mut state, at(0));
        assert!(model.services.is_empty() && model.checks.is_empty() && state.is_in_sync());
    }

    #[test]
    fn full_syncs_grow_rarer_with_the_pool() {
        let base = Duration::from_secs(60);
        for (members, minutes) in [(1, 1), (128, 1), (129, 2), (256, 2), (512, 3), (513, 4), (1024, 4)] {
            assert_eq!(sync_interval(base, members), base * minutes, "{members}");
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        AddService(u8, i64),
        RemoveService(u8),
        AddCheck(u8, u8),
        RemoveCheck(u8),
        Update(u8, bool, u8),
        Tamper(u8, bool),
        Sync,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            (0..4_u8, 0..3_i64).prop_map(|(id, port)| Step::AddService(id, port)),
            (0..4_u8).prop_map(Step::RemoveService),
            (0..4_u8, 0..5_u8).prop_map(|(id, service)| Step::AddCheck(id, service)),
            (0..4_u8).prop_map(Step::RemoveCheck),
            (0..4_u8, any::<bool>(), 0..3_u8).prop_map(|(id, passing, output)| Step::Update(id, passing, output)),
            (0..6_u8, any::<bool>()).prop_map(|(id, remove)| Step::Tamper(id, remove)),
            Just(Step::Sync),
        ];
        prop::collection::vec(step, 0..60)
    }

    proptest! {
        #[test]
        fn after_a_comparison_the_changes_make_the_catalog_equal(steps in steps()) {
            let (mut state, mut model) = (state(), Model::default());
            for (millis, step) in steps.into_iter().enumerate() {
                let now = at(millis as u64);
                match step {
                    Step::AddService(id, port) => state.add_service(service(&format!("s{id}"), port), ""),
                    Step::RemoveService(id) => drop(state.remove_service(&format!("s{id}"))),
                    Step::AddCheck(id, owner) => {
                        let owner = if owner == 4 { String::new() } else { format!("s{owner}") };
                        state.add_check(now, check(&format!("c{id}"), &owner), "");
                    }
                    Step::RemoveCheck(id) => drop(state.remove_check(&format!("c{id}"))),
                    Step::Update(id, passing, output) => {
                        let status = if passing { CheckStatus::Passing } else { CheckStatus::Critical };
                        state.update_check(now, &format!("c{id}"), status, &output.to_string(), Duration::from_secs(9));
                    }
                    Step::Tamper(id, true) => drop(model.services.remove(&format!("s{id}"))),
                    Step::Tamper(id, false) => {
                        model.services.insert(format!("s{id}"), Arc::new(service(&format!("s{id}"), 77)));
                    }
                    Step::Sync => {
                        model.compare(&mut state);
                        model.sync(&mut state, now);
                    }
                }
            }
            model.compare(&mut state);
            model.sync(&mut state, Instant::FAR_FUTURE);
            // A check whose service was tampered away went with it: the second look restores it.
            model.compare(&mut state);
            model.sync(&mut state, Instant::FAR_FUTURE);
            prop_assert_eq!(
                model.services.values().collect::<Vec<_>>(),
                state.services().collect::<Vec<_>>()
            );
            prop_assert_eq!(model.checks.values().collect::<Vec<_>>(), state.checks().collect::<Vec<_>>());
            prop_assert!(state.is_in_sync());
        }
    }
}
