//! The agent behind its HTTP API.

use crate::API_VERSION;
use crate::config::HostPort;
use crate::config::definition::{DefinitionError, prepare_check, prepare_service};
use crate::coordinates;
use crate::events::EventLog;
use crate::local::EditError;
use crate::metrics::http_metric;
use crate::node::{Agent, Inner};
use crate::telemetry::metric;
use crate::{reachability, wan};
use quorate_gossip::Gossip;
use quorate_http_api::{
    AgentFacts, Backend, BackendError, DatacenterCoordinates, KeyringOperation, KeyringPool, LocalError, Metrics,
    RaftConfiguration, RaftServer, Reachability, ReadReply, ReadRequest, StatusReply,
};
use quorate_replica::RaftRt;
use quorate_store::{Command, Outcome};
use quorate_types::{
    Check, CheckDefinition, CheckStatus, Member, MemberStatus, ModifyIndex, NodeCoordinate, Service, ServiceDefinition,
    Session, Uuid,
};
use quorate_user_events::{FireError, UserEvent};
use quorate_wire::rpc::{self, CallError, ReadRequest as RpcReadRequest};
use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

/// Where a WAN pool is reached unless told otherwise (Consul's `ports.serf_wan`).
const WAN_PORT: u16 = 8302;

/// The agent as the HTTP API sees it. Weak: the agent owns the API's server, and must be able to end.
pub struct AgentBackend<R: RaftRt> {
    inner: Weak<Inner<R>>,
    // Cheap handles, so that reads need no upgrade.
    router: crate::router::Router<R>,
    gossip: Gossip<R>,
    wan: Option<Gossip<R>>,
    local: crate::local::Local<R>,
    events: Arc<EventLog>,
    datacenter: Arc<str>,
}

impl<R: RaftRt> Clone for AgentBackend<R> {
    fn clone(&self) -> Self {
        Self {
            inner: Weak::clone(&self.inner),
            router: self.router.clone(),
            gossip: self.gossip.clone(),
            wan: self.wan.clone(),
            local: self.local.clone(),
            events: Arc::clone(&self.events),
            datacenter: Arc::clone(&self.datacenter),
        }
    }
}

impl<R: RaftRt> AgentBackend<R> {
    pub fn new(agent: &Agent<R>) -> Self {
        let inner = &agent.inner;
        Self {
            inner: Arc::downgrade(inner),
            router: inner.router.clone(),
            gossip: inner.gossip.clone(),
            wan: inner.wan.clone(),
            local: inner.local.clone(),
            events: Arc::clone(&inner.events),
            datacenter: Arc::clone(&inner.datacenter),
        }
    }

    fn wan_pool(&self) -> Result<&Gossip<R>, LocalError> {
        let none = || {
            LocalError::Failed("this agent has no WAN pool: only servers do, unless ports.serf_wan is -1".to_owned())
        };
        self.wan.as_ref().ok_or_else(none)
    }

    fn agent(&self) -> Result<Agent<R>, LocalError> {
        let inner = self.inner.upgrade();
        inner
            .map(|inner| Agent { inner })
            .ok_or_else(|| LocalError::Failed("the agent is stopping".to_owned()))
    }

    /// Other datacenters are known by the WAN pool, and not asked yet.
    fn is_here(&self, datacenter: Option<&str>) -> Result<(), BackendError> {
        match datacenter {
            Some(datacenter) if !datacenter.eq_ignore_ascii_case(&self.datacenter) => Err(BackendError::NoPath),
            _ => Ok(()),
        }
    }
}

impl<R: RaftRt> Backend for AgentBackend<R> {
    async fn read(&self, datacenter: Option<&str>, request: ReadRequest) -> Result<ReadReply, BackendError> {
        self.is_here(datacenter)?;
        let request = RpcReadRequest {
            query: request.query,
            consistency: request.consistency,
            min_index: request.min_index,
            wait: request.wait,
            max_stale: request.max_stale,
            hops: 0,
        };
        let reply = self.router.read(request).await.map_err(backend_error)?;
        Ok(ReadReply {
            answer: reply.answer,
            index: reply.index,
            known_leader: reply.known_leader,
            last_contact: reply.last_contact,
            consistency: reply.consistency,
        })
    }

    async fn write(&self, datacenter: Option<&str>, command: Command) -> Result<Outcome, BackendError> {
        self.is_here(datacenter)?;
        self.router.write(command).await.map_err(backend_error)
    }

    async fn renew_session(&self, datacenter: Option<&str>, id: Uuid) -> Result<Option<Arc<Session>>, BackendError> {
        self.is_here(datacenter)?;
        self.router.renew_session(id).await.map_err(backend_error)
    }

    async fn status(&self, datacenter: Option<&str>) -> Result<StatusReply, BackendError> {
        self.is_here(datacenter)?;
        let reply = self.router.status().await.map_err(backend_error)?;
        Ok(StatusReply {
            leader: reply.leader,
            peers: reply.peers,
        })
    }

    async fn raft_configuration(
        &self,
        datacenter: Option<&str>,
        stale: bool,
    ) -> Result<RaftConfiguration, BackendError> {
        self.is_here(datacenter)?;
        let reply = self.router.raft_configuration(stale).await.map_err(backend_error)?;
        let server = |server: quorate_wire::rpc::RaftServer| RaftServer {
            id: server.id,
            node: server.name.unwrap_or_else(|| "(unknown)".to_owned()),
            address: server.address.map(|address| address.to_string()).unwrap_or_default(),
            leader: server.is_leader,
            voter: server.is_voter,
        };
        Ok(RaftConfiguration {
            servers: reply.servers.into_iter().map(server).collect(),
            index: ModifyIndex(reply.index.0),
        })
    }

    async fn datacenters(&self) -> Result<Vec<String>, BackendError> {
        self.router.datacenters().await.map_err(backend_error)
    }

    fn node_name(&self) -> String {
        self.gossip.local_member().name
    }
    fn datacenter(&self) -> String {
        self.datacenter.to_string()
    }

    fn facts(&self) -> AgentFacts {
        let member = self.gossip.local_member();
        let node = self.local.node();
        let (stats, debug_config) = match self.inner.upgrade() {
            Some(inner) => (stats(&inner), debug_config(&Agent { inner })),
            None => (BTreeMap::new(), serde_json::Value::Null),
        };
        AgentFacts {
            node_name: node.name,
            node_id: node.id,
            datacenter: node.datacenter,
            server: member.is_server(),
            version: API_VERSION.to_owned(),
            member,
            meta: node.meta,
            stats,
            debug_config,
        }
    }

    fn members(&self, wan: bool) -> Option<Vec<Member>> {
        if !wan {
            return Some(self.gossip.members().to_vec());
        }
        // Without a WAN pool (`ports.serf_wan` of -1) a server is told nobody; a client has no answer.
        let is_server = self.router.replica().is_some();
        is_server.then(|| self.wan.as_ref().map(|wan| wan.members().to_vec()).unwrap_or_default())
    }

    async fn join(&self, address: &str, wan: bool) -> Result<(), LocalError> {
        let agent = self.agent()?;
        let config = agent.config();
        let (pool, port) = match wan {
            false => (&self.gossip, config.ports.serf_lan),
            true => (self.wan_pool()?, config.ports.serf_wan.unwrap_or(WAN_PORT)),
        };
        let target = HostPort::parse(address, port)
            .map_err(|err| LocalError::Join(vec![format!("Failed to join {address}: {err}")]))?;
        let addresses = agent.inner.rt.resolve(&target.host, target.port).await.map_err(|err| {
            LocalError::Join(vec![format!(
                "Failed to resolve {address}: lookup {}: {err}",
                target.host
            )])
        })?;
        if addresses.contains(&pool.local_member().address) {
            return Ok(());
        }
        match pool.join(&addresses).await {
            Ok(_) => Ok(()),
            Err(err) => Err(LocalError::Join(
                err.failures
                    .iter()
                    .map(|(address, reason)| format!("Failed to join {}: {reason}", address.ip()))
                    .collect(),
            )),
        }
    }

    async fn leave(&self) -> Result<(), LocalError> {
        let agent = self.agent()?;
        agent.leave().await;
        agent.end(crate::node::Ending::Left);
        Ok(())
    }

    async fn force_leave(&self, name: &str, prune: bool, wan: bool) -> Result<(), LocalError> {
        let unknown = |_| LocalError::UnknownMember(name.to_owned());
        if wan {
            return self.wan_pool()?.force_leave(name, prune).await.map_err(unknown);
        }
        self.gossip.force_leave(name, prune).await.map_err(unknown)?;
        if let Some(wan) = &self.wan {
            // Of this pool's members only servers are there.
            let _ = wan.force_leave(&wan::name(name, &self.datacenter), prune).await;
        }
        Ok(())
    }

    async fn reload(&self) -> Result<(), LocalError> {
        self.agent()?
            .reload()
            .await
            .map_err(|err| LocalError::Failed(err.to_string()))
    }

    async fn keyring(&self, operation: KeyringOperation, local_only: bool) -> Result<Vec<KeyringPool>, LocalError> {
        let operation = match operation {
            KeyringOperation::List => rpc::KeyringOperation::List,
            KeyringOperation::Install(key) => rpc::KeyringOperation::Install(key),
            KeyringOperation::Use(key) => rpc::KeyringOperation::Use(key),
            KeyringOperation::Remove(key) => rpc::KeyringOperation::Remove(key),
        };
        let pools = self.router.keyring(operation, local_only).await;
        let pool = |pool: rpc::KeyringPool| KeyringPool {
            wan: pool.is_wan,
            datacenter: self.datacenter.to_string(),
            member_count: pool.member_count,
            keys: pool.keys,
            primary_keys: pool.primary_keys,
            messages: pool.messages,
            failure: pool.failure,
        };
        Ok(pools
            .map_err(|err| LocalError::Failed(err.to_string()))?
            .into_iter()
            .map(pool)
            .collect())
    }

    fn fire_event(&self, event: UserEvent) -> Result<(), FireError> {
        self.gossip.fire(event).map(drop)
    }
    fn events(&self, name: Option<&str>) -> Vec<Arc<UserEvent>> {
        self.events.list(name)
    }
    fn events_version(&self) -> u64 {
        self.events.version()
    }
    async fn events_changed(&self, seen: u64) {
        self.events.changed(seen).await;
    }

    async fn update_coordinate(&self, coordinate: NodeCoordinate) -> Result<(), BackendError> {
        self.router.update_coordinate(coordinate).await.map_err(backend_error)
    }
    /// A client, which has no WAN pool, tells of its own datacenter's servers as its LAN pool sees them.
    fn datacenter_coordinates(&self) -> Vec<DatacenterCoordinates> {
        coordinates::by_datacenter(self.wan.as_ref().unwrap_or(&self.gossip), &self.datacenter)
    }

    fn metrics(&self) -> Metrics {
        let Ok(agent) = self.agent() else {
            return Metrics::default();
        };
        let host_name = agent.inner.rt.host_name();
        self.router.telemetry().shown(&agent.config().telemetry, host_name)
    }
    fn observe_request(&self, method: &str, endpoint: &'static str, took: Duration) {
        let name = http_metric(method, endpoint);
        self.router.telemetry().timer(metric(&name, &[])).observe(took);
    }

    async fn reachability(&self, timeout: Duration) -> Result<Reachability, LocalError> {
        reachability::ask(&self.gossip, timeout)
            .await
            .map_err(LocalError::Failed)
    }

    fn services(&self) -> Vec<Arc<Service>> {
        self.local.services()
    }
    fn checks(&self) -> Vec<Arc<Check>> {
        self.local.checks()
    }
    fn services_version(&self) -> u64 {
        self.local.services_version()
    }
    async fn services_changed(&self, seen: u64) {
        self.local.services_changed(seen).await;
    }

    async fn register_service(
        &self,
        definition: ServiceDefinition,
        replace_existing_checks: bool,
    ) -> Result<(), LocalError> {
        let definition = prepare_service(definition).map_err(definition_error)?;
        self.local
            .register_service(definition, replace_existing_checks)
            .await
            .map_err(local_error)
    }
    async fn deregister_service(&self, service_id: &str) -> Result<(), LocalError> {
        self.local.deregister_service(service_id).await.map_err(local_error)
    }
    async fn register_check(&self, definition: CheckDefinition) -> Result<(), LocalError> {
        let definition = prepare_check(definition).map_err(definition_error)?;
        self.local.register_check(definition).await.map_err(local_error)
    }
    async fn deregister_check(&self, check_id: &str) -> Result<(), LocalError> {
        self.local.deregister_check(check_id).await.map_err(local_error)
    }
    async fn update_check(&self, check_id: &str, status: CheckStatus, output: String) -> Result<(), LocalError> {
        self.local
            .update_ttl(check_id, status, output)
            .await
            .map_err(local_error)
    }
    async fn set_service_maintenance(&self, service_id: &str, reason: Option<String>) -> Result<(), LocalError> {
        self.local
            .set_service_maintenance(service_id, reason)
            .await
            .map_err(local_error)
    }
    async fn set_node_maintenance(&self, reason: Option<String>) -> Result<(), LocalError> {
        self.local.set_node_maintenance(reason).await.map_err(local_error)
    }
}

fn backend_error(err: CallError) -> BackendError {
    match err {
        CallError::NoLeader => BackendError::NoLeader,
        CallError::NoServers => BackendError::NoServers,
        CallError::NoPath => BackendError::NoPath,
        CallError::Unknown(reason) => BackendError::Unknown(reason),
        CallError::Failed(reason) => BackendError::Failed(reason),
    }
}

fn definition_error(err: DefinitionError) -> LocalError {
    match err {
        DefinitionError::ScriptsDisabledRemotely => LocalError::ScriptsDisabled,
        err => LocalError::Invalid(err.to_string()),
    }
}

fn local_error(err: EditError) -> LocalError {
    match err {
        EditError::UnknownService(id) => LocalError::UnknownService(id),
        EditError::UnknownCheck(id) => LocalError::UnknownCheck(id),
        EditError::NotTtl(id) => LocalError::NotTtl(id),
        EditError::NoServiceForCheck(id) => LocalError::NoServiceForCheck(id),
        EditError::Definition(err) => definition_error(err),
        EditError::DataDir(err) => LocalError::Failed(err.to_string()),
    }
}

type Stats = BTreeMap<String, BTreeMap<String, String>>;

fn group(pairs: impl IntoIterator<Item = (&'static str, String)>) -> BTreeMap<String, String> {
    pairs.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
}

/// `Stats` of `/v1/agent/self`, which `info` prints (http-api.md 5.1).
fn stats<R: RaftRt>(inner: &Inner<R>) -> Stats {
    let (monitors, ttls) = inner.local.check_counts();
    let mut stats = Stats::from([
        (
            "agent".to_owned(),
            group([
                ("check_monitors", monitors.to_string()),
                ("check_ttls", ttls.to_string()),
                ("checks", inner.local.checks().len().to_string()),
                ("services", inner.local.services().len().to_string()),
            ]),
        ),
        (
            "build".to_owned(),
            group([
                ("prerelease", String::new()),
                ("revision", String::new()),
                ("version", API_VERSION.to_owned()),
            ]),
        ),
        (
            "runtime".to_owned(),
            group([
                ("arch", std::env::consts::ARCH.to_owned()),
                ("os", std::env::consts::OS.to_owned()),
            ]),
        ),
        ("serf_lan".to_owned(), inner.gossip.stats()),
    ]);
    let members = inner.gossip.members();
    let alive_servers = members
        .iter()
        .filter(|member| member.is_server() && member.status == MemberStatus::Alive)
        .count();
    let Some(replica) = inner.router.replica() else {
        let consul = group([
            ("acl", "disabled".to_owned()),
            ("known_servers", alive_servers.to_string()),
            ("server", "false".to_owned()),
        ]);
        stats.insert("consul".to_owned(), consul);
        return stats;
    };
    let status = replica.status();
    let address = |id| {
        members
            .iter()
            .find(|member| member.id == id)
            .and_then(Member::rpc_address)
    };
    let wan_members = inner.wan.as_ref().map(Gossip::members).unwrap_or_default();
    let known_datacenters = wan::datacenters(&wan_members, &inner.datacenter).len();
    if let Some(wan) = &inner.wan {
        stats.insert("serf_wan".to_owned(), wan.stats());
    }
    stats.insert(
        "reads".to_owned(),
        group([("evaluations_shared", inner.router.evaluation_count().to_string())]),
    );
    stats.insert(
        "consul".to_owned(),
        group([
            ("acl", "disabled".to_owned()),
            ("bootstrap", inner.is_bootstrap().to_string()),
            ("known_datacenters", known_datacenters.to_string()),
            ("leader", status.is_leader.to_string()),
            (
                "leader_addr",
                status
                    .leader
                    .and_then(address)
                    .map(|address| address.to_string())
                    .unwrap_or_default(),
            ),
            ("server", "true".to_owned()),
        ]),
    );
    let state = match (status.is_leader, status.leader) {
        (true, _) => "Leader",
        (false, Some(_)) => "Follower",
        (false, None) => "Candidate",
    };
    stats.insert(
        "raft".to_owned(),
        group([
            ("applied_index", status.last_applied.to_string()),
            ("commit_index", status.commit_index.to_string()),
            (
                "fsm_pending",
                status.commit_index.0.saturating_sub(status.last_applied.0).to_string(),
            ),
            (
                "last_contact",
                status
                    .last_contact
                    .map_or_else(|| "never".to_owned(), |contact| format!("{contact:?}")),
            ),
            ("last_log_index", status.last_log_index.to_string()),
            ("last_log_term", status.term.to_string()),
            ("last_snapshot_index", status.last_snapshot_index.to_string()),
            ("num_peers", status.voters.len().saturating_sub(1).to_string()),
            ("protocol_version", "3".to_owned()),
            ("state", state.to_owned()),
            ("term", status.term.to_string()),
        ]),
    );
    stats
}

/// The configuration in effect. Free of form; nothing in it is secret as long as there are no tokens or keys.
fn debug_config<R: RaftRt>(agent: &Agent<R>) -> serde_json::Value {
    let config = agent.config();
    serde_json::json!({
        "AdvertiseAddrLAN": config.advertise_addr.to_string(),
        "AdvertiseAddrWAN": config.advertise_addr_wan.to_string(),
        "BindAddr": config.bind_addr.to_string(),
        "Bootstrap": config.bootstrap,
        "BootstrapExpect": config.bootstrap_expect,
        "CheckUpdateInterval": crate::config::duration::format(config.check_update_interval),
        "ClientAddrs": config.client_addrs.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "DNSAddrs": config.dns_addrs.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "DNSDomain": config.dns.domain,
        "DNSOnlyPassing": config.dns.only_passing,
        "DataDir": config.data_dir.as_ref().map(|path| path.display().to_string()).unwrap_or_default(),
        "Datacenter": config.datacenter,
        "DevMode": config.dev_mode,
        "EnableLocalScriptChecks": config.scripts.from_files,
        "EnableRemoteScriptChecks": config.scripts.from_remote,
        "HTTPAddrs": config.http_addrs.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "LeaveOnTerm": config.leave_on_terminate,
        "Logging": { "LogLevel": config.logging.level.as_str().to_uppercase() },
        "NodeID": agent.node_id().to_string(),
        "NodeMeta": config.node_meta,
        "NodeName": config.node_name,
        "PrimaryDatacenter": config.primary_datacenter,
        "SerfPortLAN": config.ports.serf_lan,
        "ServerMode": config.server,
        "ServerPort": config.ports.server,
        "SkipLeaveOnInt": config.skip_leave_on_interrupt,
        "Version": API_VERSION,
    })
}
