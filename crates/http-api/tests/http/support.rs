//! A backend over one store: what an agent that is its own only server would answer.

use quorate_http_api::{
    AgentFacts, Backend, BackendError, DatacenterCoordinates, FaultyLink, KeyringOperation, KeyringPool, LinkFault,
    LocalError, Metrics, RaftConfiguration, RaftServer, Reachability, ReadReply, ReadRequest, StatusReply,
};
use quorate_rt::Rt;
use quorate_rt::production::TokioRt;
use quorate_store::{Answer, Command, Consistency, Outcome, Query, Store};
use quorate_types::{
    Check, CheckDefinition, CheckKind, CheckStatus, Deregistration, LogIndex, Member, MemberStatus, ModifyIndex,
    NodeCoordinate, NodeId, Registration, Service, ServiceDefinition, Session, Uuid, WallTime,
};
use quorate_user_events::{FireError, History, UserEvent, UserEvents};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::sync::Notify;

pub const NODE_ID: &str = "aaaaaaaa-0000-4000-8000-000000000001";

#[derive(Clone)]
pub struct TestBackend {
    rt: TokioRt,
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    changed: Notify,
    /// A blocking read found nothing and waits.
    parked: Notify,
}

struct State {
    store: Store,
    log_index: LogIndex,
    has_leader: bool,
    services: BTreeMap<String, Arc<Service>>,
    services_version: u64,
    checks: BTreeMap<String, Arc<Check>>,
    ttl: Vec<String>,
    events: UserEvents,
    history: History,
    evaluated: Option<Evaluated>,
}

/// A question, the state it was asked of, and its answer.
type Evaluated = (Query, ModifyIndex, ModifyIndex, Arc<Answer>);

fn texts(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs
        .iter()
        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
        .collect()
}

impl TestBackend {
    /// The server the captures were made on: node `g1`, its `consul` service and `serfHealth`.
    pub fn new(rt: TokioRt) -> Self {
        let state = State {
            store: Store::new(),
            log_index: LogIndex(4),
            has_leader: true,
            services: BTreeMap::new(),
            services_version: 0,
            checks: BTreeMap::new(),
            ttl: Vec::new(),
            events: UserEvents::new(
                NODE_ID.parse().unwrap(),
                "127.0.0.91:8301".parse().unwrap(),
                rt.rng("events"),
            ),
            history: History::default(),
            evaluated: None,
        };
        let shared = Shared {
            state: Mutex::new(state),
            changed: Notify::new(),
            parked: Notify::new(),
        };
        let backend = Self {
            rt,
            shared: Arc::new(shared),
        };
        let service = Service {
            id: "consul".to_owned(),
            name: "consul".to_owned(),
            port: 8300,
            meta: texts(&[
                ("non_voter", "false"),
                ("raft_version", "3"),
                ("serf_protocol_current", "2"),
                ("serf_protocol_max", "5"),
                ("serf_protocol_min", "1"),
                ("version", "1.8.7"),
            ]),
            ..Service::default()
        };
        let check = Check {
            node: "g1".to_owned(),
            check_id: "serfHealth".to_owned(),
            name: "Serf Health Status".to_owned(),
            status: CheckStatus::Passing,
            output: "Agent alive and reachable".to_owned(),
            ..Check::default()
        };
        backend.apply(&Command::Register(Box::new(Registration {
            service: Some(service),
            checks: vec![check],
            ..backend.node()
        })));
        backend
    }

    fn node(&self) -> Registration {
        let tagged = ["lan", "lan_ipv4", "wan", "wan_ipv4"].map(|name| (name, "127.0.0.91"));
        Registration {
            node_id: NODE_ID.parse().unwrap(),
            node: "g1".to_owned(),
            address: "127.0.0.91".to_owned(),
            datacenter: "dc1".to_owned(),
            tagged_addresses: Some(texts(&tagged)),
            node_meta: Some(texts(&[("consul-network-segment", ""), ("rack", "r1")])),
            ..Registration::default()
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap()
    }

    pub fn apply(&self, command: &Command) -> Outcome {
        let mut state = self.state();
        state.log_index = state.log_index.next();
        let index = state.log_index;
        let outcome = state.store.apply(index, command).outcome;
        drop(state);
        self.shared.changed.notify_waiters();
        outcome
    }

    pub fn lose_leader(&self) {
        self.state().has_leader = false;
    }

    /// Ends when a blocking read has found nothing to say yet.
    pub fn parked(&self) -> impl Future<Output = ()> {
        self.shared.parked.notified()
    }

    fn set_check(&self, check: Check) {
        let mut state = self.state();
        state.checks.insert(check.check_id.clone(), Arc::new(check.clone()));
        drop(state);
        let registration = Registration {
            checks: vec![check],
            ..self.node()
        };
        assert_eq!(self.apply(&Command::Register(Box::new(registration))), Outcome::Done);
    }

    fn drop_check(&self, id: &str) {
        self.state().checks.remove(id);
        self.apply(&Command::Deregister(Deregistration {
            node: "g1".to_owned(),
            check_id: id.to_owned(),
            ..Deregistration::default()
        }));
    }

    fn add_check(&self, definition: CheckDefinition) -> Result<(), LocalError> {
        let service = match definition.service_id.as_str() {
            "" => Service::default(),
            id => match self.state().services.get(id) {
                Some(service) => (**service).clone(),
                None => return Err(LocalError::NoServiceForCheck(id.to_owned())),
            },
        };
        if matches!(definition.kind, CheckKind::Ttl { .. }) {
            self.state().ttl.push(definition.id.clone());
        }
        self.set_check(Check {
            node: "g1".to_owned(),
            check_id: definition.id,
            name: definition.name,
            status: definition.status,
            notes: definition.notes,
            service_id: definition.service_id,
            service_name: service.name,
            service_tags: service.tags,
            kind: definition.kind.as_str().to_owned(),
            ..Check::default()
        });
        Ok(())
    }

    fn maintain(&self, id: &str, name: &str, service_id: &str, reason: Option<String>) {
        match reason {
            None => self.drop_check(id),
            Some(notes) => {
                let service_name = self
                    .state()
                    .services
                    .get(service_id)
                    .map(|service| service.name.clone());
                self.set_check(Check {
                    node: "g1".to_owned(),
                    check_id: id.to_owned(),
                    name: name.to_owned(),
                    notes,
                    service_id: service_id.to_owned(),
                    service_name: service_name.unwrap_or_default(),
                    kind: "maintenance".to_owned(),
                    ..Check::default()
                });
            }
        }
    }

    fn look(&self, request: &ReadRequest) -> ReadReply {
        let mut state = self.state();
        let at = state.store.last_index();
        let (index, answer) = match &state.evaluated {
            // One answer for all who ask the same of the same state, as an agent gives.
            Some((query, kept_at, index, answer)) if *query == request.query && *kept_at == at => {
                (*index, Arc::clone(answer))
            }
            _ => {
                let evaluation = state.store.evaluate(&request.query);
                let answer = Arc::new(evaluation.answer);
                state.evaluated = Some((request.query.clone(), at, evaluation.index, Arc::clone(&answer)));
                (evaluation.index, answer)
            }
        };
        ReadReply {
            answer,
            index,
            known_leader: state.has_leader,
            last_contact: Duration::ZERO,
            consistency: request.consistency,
        }
    }
}

impl Backend for TestBackend {
    /// One server without encryption, as the Consul whose answers are the golden ones; it knows what keys are all the same.
    fn metrics(&self) -> Metrics {
        Metrics {
            began_at: WallTime::from_nanos(1_795_359_920 * 1_000_000_000),
            interval: Duration::from_secs(10),
            gauges: Vec::new(),
            counters: Vec::new(),
            samples: Vec::new(),
            host_name: None,
            prometheus_retention: Duration::ZERO,
        }
    }
    fn observe_request(&self, _method: &str, endpoint: &'static str, _took: Duration) {
        assert!(endpoint.starts_with("/v1/"), "{endpoint}");
    }
    async fn reachability(&self, timeout: Duration) -> Result<Reachability, LocalError> {
        assert!(timeout <= Duration::from_secs(60));
        let link = |from: &str, to: &str, fault| FaultyLink {
            from: from.to_owned(),
            to: to.to_owned(),
            fault,
        };
        Ok(Reachability {
            member_count: 3,
            silent: vec!["c".to_owned()],
            links: vec![
                link("a", "b", LinkFault::OneWay),
                link(
                    "b",
                    "a",
                    LinkFault::Lossy {
                        lost_count: 2,
                        sent_count: 5,
                    },
                ),
            ],
            is_cut_off: false,
        })
    }

    async fn keyring(&self, operation: KeyringOperation, local_only: bool) -> Result<Vec<KeyringPool>, LocalError> {
        let pool = |wan: bool, name: &str| {
            let failed = KeyringPool {
                wan,
                datacenter: "dc1".to_owned(),
                member_count: 1,
                failure: Some("1/1 nodes reported failure".to_owned()),
                ..KeyringPool::default()
            };
            let message = |text: &str| BTreeMap::from([(name.to_owned(), text.to_owned())]);
            match &operation {
                KeyringOperation::Install(key) if key == "right" => KeyringPool {
                    failure: None,
                    ..failed
                },
                KeyringOperation::List => KeyringPool {
                    messages: message("Keyring is empty (encryption not enabled)"),
                    ..failed
                },
                _ => KeyringPool {
                    messages: message("No keyring to modify (encryption not enabled)"),
                    ..failed
                },
            }
        };
        let (lan, wan) = (pool(false, "g1"), pool(true, "g1.dc1"));
        Ok(if local_only { vec![lan] } else { vec![wan, lan] })
    }
    async fn read(&self, datacenter: Option<&str>, request: ReadRequest) -> Result<ReadReply, BackendError> {
        if datacenter.is_some_and(|name| name != "dc1") {
            return Err(BackendError::NoPath);
        }
        if !self.state().has_leader && request.consistency != Consistency::Stale {
            return Err(BackendError::NoLeader);
        }
        let waiting = async {
            let mut waited = false;
            loop {
                let changed = self.shared.changed.notified();
                let reply = self.look(&request);
                let still_absent = waited && *reply.answer == Answer::Kv(None);
                if reply.index > request.min_index && !still_absent {
                    return reply;
                }
                self.shared.parked.notify_one();
                changed.await;
                waited = true;
            }
        };
        if request.min_index == ModifyIndex::ZERO {
            return Ok(self.look(&request));
        }
        Ok(self
            .rt
            .timeout(request.wait, waiting)
            .await
            .unwrap_or_else(|_| self.look(&request)))
    }
    async fn write(&self, datacenter: Option<&str>, command: Command) -> Result<Outcome, BackendError> {
        if datacenter.is_some_and(|name| name != "dc1") {
            return Err(BackendError::NoPath);
        }
        if !self.state().has_leader {
            return Err(BackendError::NoLeader);
        }
        if matches!(&command, Command::Register(registration) if registration.node == "panic") {
            panic!("a handler that panics");
        }
        Ok(self.apply(&command))
    }
    async fn renew_session(&self, _datacenter: Option<&str>, id: Uuid) -> Result<Option<Arc<Session>>, BackendError> {
        if !self.state().has_leader {
            return Err(BackendError::NoLeader);
        }
        let evaluation = self.state().store.evaluate(&Query::Session { id });
        let Answer::Sessions(sessions) = evaluation.answer else {
            panic!("a question for sessions is answered with sessions")
        };
        Ok(sessions.into_iter().next())
    }
    async fn status(&self, _datacenter: Option<&str>) -> Result<StatusReply, BackendError> {
        let address: SocketAddr = "127.0.0.91:8300".parse().unwrap();
        Ok(StatusReply {
            leader: self.state().has_leader.then_some(address),
            peers: vec![address],
        })
    }
    async fn raft_configuration(
        &self,
        _datacenter: Option<&str>,
        _stale: bool,
    ) -> Result<RaftConfiguration, BackendError> {
        let server = RaftServer {
            id: NODE_ID.parse().unwrap(),
            node: "g1".to_owned(),
            address: "127.0.0.91:8300".to_owned(),
            leader: true,
            voter: true,
        };
        Ok(RaftConfiguration {
            servers: vec![server],
            index: ModifyIndex(0),
        })
    }
    async fn datacenters(&self) -> Result<Vec<String>, BackendError> {
        Ok(vec!["dc1".to_owned()])
    }

    fn node_name(&self) -> String {
        "g1".to_owned()
    }
    fn datacenter(&self) -> String {
        "dc1".to_owned()
    }
    fn facts(&self) -> AgentFacts {
        AgentFacts {
            node_name: "g1".to_owned(),
            node_id: NODE_ID.parse::<NodeId>().unwrap(),
            datacenter: "dc1".to_owned(),
            server: true,
            version: "1.20.0".to_owned(),
            member: self.members(false).unwrap().remove(0),
            meta: texts(&[("rack", "r1")]),
            stats: BTreeMap::from([("raft".to_owned(), texts(&[("term", "2")]))]),
            debug_config: serde_json::json!({ "Datacenter": "dc1" }),
        }
    }
    fn members(&self, _wan: bool) -> Option<Vec<Member>> {
        let tags = [
            ("acls", "0"),
            ("bootstrap", "1"),
            ("build", "1.8.7:"),
            ("dc", "dc1"),
            ("ft_fs", "1"),
            ("id", NODE_ID),
            ("port", "8300"),
            ("raft_vsn", "3"),
            ("role", "consul"),
            ("segment", ""),
            ("vsn", "2"),
            ("vsn_max", "3"),
            ("vsn_min", "2"),
            ("wan_join_port", "8302"),
        ];
        Some(vec![Member {
            id: NODE_ID.parse().unwrap(),
            name: "g1".to_owned(),
            address: "127.0.0.91:8301".parse().unwrap(),
            tags: texts(&tags),
            status: MemberStatus::Alive,
        }])
    }
    async fn join(&self, address: &str, _wan: bool) -> Result<(), LocalError> {
        Err(LocalError::Join(vec![format!(
            "Failed to join {address}: dial tcp {address}:8301: connect: connection refused"
        )]))
    }
    async fn leave(&self) -> Result<(), LocalError> {
        Ok(())
    }
    async fn force_leave(&self, name: &str, _prune: bool, _wan: bool) -> Result<(), LocalError> {
        Err(LocalError::UnknownMember(name.to_owned()))
    }
    async fn reload(&self) -> Result<(), LocalError> {
        Ok(())
    }

    fn fire_event(&self, event: UserEvent) -> Result<(), FireError> {
        let mut state = self.state();
        let fired = state.events.fire(event)?;
        state.history.push(fired);
        state.services_version += 1;
        drop(state);
        self.shared.changed.notify_waiters();
        Ok(())
    }
    fn events(&self, name: Option<&str>) -> Vec<Arc<UserEvent>> {
        self.state().history.list(name)
    }
    fn events_version(&self) -> u64 {
        self.services_version()
    }
    async fn events_changed(&self, seen: u64) {
        self.services_changed(seen).await;
    }
    async fn update_coordinate(&self, coordinate: NodeCoordinate) -> Result<(), BackendError> {
        self.apply(&Command::Coordinates(vec![coordinate]));
        Ok(())
    }
    fn datacenter_coordinates(&self) -> Vec<DatacenterCoordinates> {
        let server = NodeCoordinate {
            node: "g1".to_owned(),
            ..NodeCoordinate::default()
        };
        vec![DatacenterCoordinates {
            datacenter: "dc1".to_owned(),
            servers: vec![server],
        }]
    }

    fn services(&self) -> Vec<Arc<Service>> {
        self.state().services.values().cloned().collect()
    }
    fn checks(&self) -> Vec<Arc<Check>> {
        self.state().checks.values().cloned().collect()
    }
    fn services_version(&self) -> u64 {
        self.state().services_version
    }
    async fn services_changed(&self, seen: u64) {
        loop {
            let changed = self.shared.changed.notified();
            if self.services_version() != seen {
                return;
            }
            self.shared.parked.notify_one();
            changed.await;
        }
    }
    async fn register_service(
        &self,
        definition: ServiceDefinition,
        _replace_existing_checks: bool,
    ) -> Result<(), LocalError> {
        let service = definition.service;
        let mut state = self.state();
        state.services.insert(service.id.clone(), Arc::new(service.clone()));
        state.services_version += 1;
        drop(state);
        let registration = Registration {
            service: Some(service),
            ..self.node()
        };
        assert_eq!(self.apply(&Command::Register(Box::new(registration))), Outcome::Done);
        definition
            .checks
            .into_iter()
            .try_for_each(|check| self.add_check(check))
    }
    async fn deregister_service(&self, service_id: &str) -> Result<(), LocalError> {
        let mut state = self.state();
        state.services_version += 1;
        let removed = state.services.remove(service_id);
        drop(state);
        self.shared.changed.notify_waiters();
        removed
            .map(drop)
            .ok_or_else(|| LocalError::UnknownService(service_id.to_owned()))
    }
    async fn register_check(&self, definition: CheckDefinition) -> Result<(), LocalError> {
        self.add_check(definition)
    }
    async fn deregister_check(&self, check_id: &str) -> Result<(), LocalError> {
        if !self.state().checks.contains_key(check_id) {
            return Err(LocalError::UnknownCheck(check_id.to_owned()));
        }
        self.drop_check(check_id);
        Ok(())
    }
    async fn update_check(&self, check_id: &str, status: CheckStatus, output: String) -> Result<(), LocalError> {
        let state = self.state();
        let Some(check) = state.checks.get(check_id).map(|check| (**check).clone()) else {
            return Err(LocalError::UnknownCheck(check_id.to_owned()));
        };
        if !state.ttl.iter().any(|id| id == check_id) {
            return Err(LocalError::NotTtl(check_id.to_owned()));
        }
        drop(state);
        self.set_check(Check {
            status,
            output,
            ..check
        });
        Ok(())
    }
    async fn set_service_maintenance(&self, service_id: &str, reason: Option<String>) -> Result<(), LocalError> {
        if !self.state().services.contains_key(service_id) {
            return Err(LocalError::UnknownService(service_id.to_owned()));
        }
        let id = format!("_service_maintenance:{service_id}");
        self.maintain(&id, "Service Maintenance Mode", service_id, reason);
        Ok(())
    }
    async fn set_node_maintenance(&self, reason: Option<String>) -> Result<(), LocalError> {
        self.maintain("_node_maintenance", "Node Maintenance Mode", "", reason);
        Ok(())
    }
}
