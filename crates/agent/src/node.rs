//! One node: started in order, run until told to stop, stopped in order.
//!
//! Start: configuration, data directory, replication (servers) or a way to it (clients), gossip, local services and
//! checks, HTTP and DNS, then the tasks. Whatever fails before the tasks leaves nothing running. Leave: leadership is
//! handed over, the pool told, the others given time; stop: listeners, checks, gossip, replication.
//! The same code runs in production and in the simulator: all it touches goes through `rt`.

use crate::backend::AgentBackend;
use crate::config::{Config, ConfigError, Flags, HostPort, ListenAddress, load};
use crate::coordinates;
use crate::data_dir::{DataDir, DataDirError, KeptPast};
use crate::dns::{DnsCatalog, Staleness, settings as dns_settings};
use crate::events::EventLog;
use crate::leader::ServerDuties;
use crate::local::{DefinitionsError, Local, LocalSettings, draw};
use crate::metrics::DnsTimers;
use crate::router::{ClientRole, MembersView, Role, Router, is_alive_server, locked};
use crate::{API_VERSION, Hooks, keyring, wan};
use arc_swap::ArcSwap;
use quorate_anti_entropy::NodeRecord;
use quorate_checks::Checks;
use quorate_dns_server::DnsServer;
use quorate_gossip::{Gossip, GossipConfig, Past};
use quorate_http_api::{HttpConfig, HttpServer};
use quorate_replica::{RaftRt, Replica, ReplicaConfig, RequestHandler, RpcClient};
use quorate_rt::task::AbortOnDrop;
use quorate_rt::{Rt, Signal};
use quorate_types::{Member, MemberStatus, NodeId};
use quorate_wire::rpc::{Request, Response};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;
use thiserror::Error;
use tokio::sync::Notify;

/// A stop that takes longer is forced (cli.md section 2).
const GRACEFUL_TIMEOUT: Duration = Duration::from_secs(15);
/// After the first failed join; doubles up to `retry_interval`.
const FIRST_JOIN_RETRY_DELAY: Duration = Duration::from_millis(500);
/// Members kept for a restart: whoever of them answers tells of all others.
const KEPT_MEMBER_COUNT_MAX: usize = 64;
const KEEP_MEMBERS_DELAY: Duration = Duration::from_millis(500);
/// Between two looks at what gossip has used, and how much may be used beyond what was kept. A life begins so much above
/// what was kept: less than the age at which packets are refused, so that nobody refuses those of whoever did not restart.
const PAST_LOOK_INTERVAL: Duration = Duration::from_secs(5);
const PAST_SLACK: Duration = Duration::from_secs(30);
/// A leader that leaves waits so long for another one to take over, and a leaving server to be removed.
const HAND_OVER_TIMEOUT: Duration = Duration::from_secs(5);

/// Why an agent did not start.
#[derive(Debug, Error)]
pub enum StartError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("{0}")]
    RefusedDefinition(String),
    #[error(transparent)]
    Definitions(#[from] DefinitionsError),
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    #[error(transparent)]
    Keyring(#[from] keyring::KeyringStartError),
    #[error("Failed to start Consul server: {}", chain(.0))]
    Replica(quorate_replica::StartError),
    #[error("{0}")]
    Gossip(quorate_gossip::StartError),
    #[error("Failed to start HTTP server: {0}")]
    Http(String),
    #[error("Failed to start DNS server: {0}")]
    Dns(String),
    #[error("{0}")]
    Unsupported(String),
    #[error("Failed to join cluster: {0}")]
    Join(String),
}

/// Why a reload was refused. Nothing has changed then.
#[derive(Debug, Error)]
pub enum ReloadError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("Failed reloading services: {0}")]
    RefusedDefinition(String),
    #[error("Failed reloading checks: {0}")]
    Definitions(#[from] DefinitionsError),
    #[error("Failed reloading DNS: {0}")]
    Dns(String),
}

/// How the agent ended, as the process tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// It left the pool: exit code 0.
    Left,
    /// It stopped without leaving: exit code 1, as Consul's.
    Stopped,
}

impl Ending {
    pub const fn exit_code(self) -> u8 {
        match self {
            Self::Left => 0,
            Self::Stopped => 1,
        }
    }
}

/// A running agent. Clones are handles of the same one.
pub struct Agent<R: RaftRt> {
    pub(crate) inner: Arc<Inner<R>>,
}

impl<R: RaftRt> Clone for Agent<R> {
    fn clone(&self) -> Self {
        Self {
            inner: Arc::clone(&self.inner),
        }
    }
}

pub(crate) struct Inner<R: RaftRt> {
    pub(crate) rt: R,
    flags: Flags,
    hooks: Hooks,
    config: ArcSwap<Config>,
    pub(crate) node_id: NodeId,
    pub(crate) datacenter: Arc<str>,
    pub(crate) router: Router<R>,
    pub(crate) gossip: Gossip<R>,
    /// Servers only, and not with `ports.serf_wan` of -1.
    pub(crate) wan: Option<Gossip<R>>,
    pub(crate) local: Local<R>,
    pub(crate) events: Arc<EventLog>,
    data_dir: DataDir<R>,
    staleness: Arc<ArcSwap<Staleness>>,
    http: Mutex<Option<HttpServer<R, AgentBackend<R>>>>,
    dns: Mutex<Option<DnsServer<R, DnsCatalog<R>>>>,
    tasks: Mutex<Vec<AbortOnDrop>>,
    /// Told apart so that a leave can end it first: it would register again what the leave removes.
    sync_task: Mutex<Option<AbortOnDrop>>,
    /// One reload at a time.
    reload_lock: tokio::sync::Mutex<()>,
    leave_state: Mutex<LeaveState>,
    leave_done: Notify,
    /// Set once `run` is to end, with how.
    ended: Mutex<Option<Ending>>,
    end: Notify,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LeaveState {
    Member,
    Leaving,
    Left,
}

impl<R: RaftRt> Inner<R> {
    pub(crate) fn is_bootstrap(&self) -> bool {
        self.config.load().bootstrap
    }
}

/// Requests of other agents, from the moment the router exists.
struct Handler<R: RaftRt> {
    router: Arc<OnceLock<Router<R>>>,
}

impl<R: RaftRt> RequestHandler for Handler<R> {
    async fn handle(&self, request: Request) -> Response {
        match self.router.get() {
            Some(router) => router.serve(request).await,
            None => Response::Failed(quorate_wire::rpc::CallError::NoLeader),
        }
    }
}

impl<R: RaftRt> Agent<R> {
    /// Starts an agent from its flags and the files they name.
    pub async fn start(rt: R, flags: Flags, hooks: Hooks) -> Result<Self, StartError> {
        let config = load(&rt, &flags).await?;
        if let Some(refused) = config.refused_definitions.first() {
            return Err(StartError::RefusedDefinition(refused.clone()));
        }
        refuse_unsupported(&config)?;
        let data_dir = DataDir::open(&rt, config.data_dir.as_deref(), config.node_id).await?;
        let node_id = data_dir.node_id();
        let encryption = keyring::load(&config, &data_dir, keyring::Pool::Lan).await?;
        (hooks.starting)(&config, node_id, encryption.is_some());
        (hooks.set_log_level)(config.logging.level.as_str());
        for warning in &config.warnings {
            tracing::warn!("{warning}");
        }
        if encryption.is_some() && config.encrypt_verify_incoming && !config.encrypt_verify_outgoing {
            tracing::warn!(
                "encrypt_verify_incoming is on and encrypt_verify_outgoing is off: what this agent sends in plaintext is \
                 refused by all members that are set up as it is; turn outgoing on everywhere first, then incoming"
            );
        }
        for setting in settings_without_effect(&config) {
            tracing::warn!("{setting} is set, but has no effect in this release");
        }
        let kept = data_dir.load().await?;
        let past = begun_above(data_dir.kept_past().await);
        let datacenter: Arc<str> = config.datacenter.as_str().into();

        let members = MembersView::default();
        let handler_router = Arc::new(OnceLock::new());
        let replica = if config.server {
            let handler = Handler {
                router: Arc::clone(&handler_router),
            };
            let replica_config = ReplicaConfig {
                raft_multiplier: config.performance.raft_multiplier,
                snapshot_threshold: config.raft.snapshot_threshold,
                trailing_logs: config.raft.trailing_logs,
                connections_per_client_max: config.limits.rpc_max_conns_per_client as usize,
                ..ReplicaConfig::new(
                    node_id,
                    config.node_name.clone(),
                    data_dir.path(),
                    data_dir.disk(),
                    config.server_bind,
                )
            };
            Some(
                Replica::start(rt.clone(), replica_config, handler)
                    .await
                    .map_err(StartError::Replica)?,
            )
        } else {
            None
        };
        let rpc_port = replica
            .as_ref()
            .map_or(config.ports.server, |replica| replica.local_addr().port());
        let mut lan_tags = tags(&config, node_id, rpc_port);
        let pools = async {
            let wan_encryption = keyring::load(&config, &data_dir, keyring::Pool::Wan).await?;
            let wan = wan::start(&rt, &config, node_id, lan_tags.clone(), wan_encryption, past.wan).await?;
            if let Some(wan) = &wan {
                let port = wan.local_member().address.port();
                lan_tags.insert(wan::PORT_TAG.to_owned(), port.to_string());
            }
            let lan = GossipConfig {
                id: node_id,
                name: config.node_name.clone(),
                datacenter: config.datacenter.clone(),
                bind: config.serf_lan_bind,
                advertise: config.advertise_addr,
                tags: lan_tags,
                timing: timing(&config),
                pool: "lan",
                encryption,
                past: past.lan,
            };
            match Gossip::start(rt.clone(), lan).await {
                Ok(lan) => Ok((lan, wan)),
                Err(err) => {
                    if let Some(wan) = wan {
                        wan.stop().await;
                    }
                    Err(StartError::Gossip(err))
                }
            }
        };
        let (gossip, wan_pool) = match pools.await {
            Ok(pools) => pools,
            Err(err) => {
                if let Some(replica) = replica {
                    replica.stop().await;
                }
                return Err(err);
            }
        };
        members.set(gossip.clone(), wan_pool.clone());
        let role = match &replica {
            Some(replica) => Role::Server(replica.clone()),
            None => Role::Client(Arc::new(ClientRole::new(
                &rt,
                RpcClient::new(rt.clone(), node_id),
                gossip.clone(),
            ))),
        };
        let hold_timeout = config.performance.rpc_hold_timeout;
        let router = Router::new(rt.clone(), &datacenter, role, members, hold_timeout);
        // Nobody else sets it.
        let _ = handler_router.set(router.clone());

        let (checks, results) = Checks::start(rt.clone());
        let local = Local::new(
            rt.clone(),
            node_record(&config, node_id),
            local_settings(&config),
            router.clone(),
            data_dir.clone(),
            checks,
        );
        let staleness = Arc::new(ArcSwap::from_pointee(staleness(&config)));
        let agent = Self {
            inner: Arc::new(Inner {
                rt: rt.clone(),
                flags,
                hooks,
                config: ArcSwap::from_pointee(config),
                node_id,
                datacenter: Arc::clone(&datacenter),
                router,
                gossip,
                wan: wan_pool,
                local,
                events: Arc::default(),
                data_dir,
                staleness,
                http: Mutex::default(),
                dns: Mutex::default(),
                tasks: Mutex::default(),
                sync_task: Mutex::default(),
                reload_lock: tokio::sync::Mutex::default(),
                leave_state: Mutex::new(LeaveState::Member),
                leave_done: Notify::new(),
                ended: Mutex::default(),
                end: Notify::new(),
            }),
        };
        match agent.finish_start(kept, results).await {
            Ok(()) => Ok(agent),
            Err(err) => {
                agent.stop().await;
                Err(err)
            }
        }
    }

    /// What comes after everything exists. On an error the caller stops what runs.
    async fn finish_start(
        &self,
        kept: crate::data_dir::Kept,
        results: quorate_checks::CheckUpdates,
    ) -> Result<(), StartError> {
        let inner = &self.inner;
        let rt = &inner.rt;
        let config = inner.config.load_full();
        inner.local.load(&config.services, &config.checks, kept).await?;
        if let Some(replica) = inner.router.replica() {
            let duties = ServerDuties {
                rt: rt.clone(),
                replica: replica.clone(),
                gossip: inner.gossip.clone(),
                datacenter: Arc::clone(&inner.datacenter),
                node_id: inner.node_id,
                bootstrap: config.bootstrap,
                bootstrap_expect: config.bootstrap_expect,
                reconnect_timeout: config.gossip_lan.reconnect_timeout,
                sessions: inner.router.session_timers().clone(),
            };
            self.keep(rt.spawn("agent.track", duties.clone().track_servers()));
            self.keep(rt.spawn("agent.lead", duties.clone().lead()));
            self.keep(rt.spawn("agent.hashes", duties.tell_state_hashes(inner.router.clone())));
            self.keep(rt.spawn("agent.fatal", self.clone().end_when_replica_fails(replica.clone())));
        }

        let mut http_addresses = Vec::new();
        for address in &config.http_addrs {
            if let Some(err) = refuse_address(address) {
                return Err(err);
            }
            if let ListenAddress::Tcp(address) = address {
                http_addresses.push(*address);
            }
        }
        let http = HttpServer::start(
            rt.clone(),
            &http_addresses,
            http_config(&config),
            AgentBackend::new(self),
        )
        .await;
        *locked(&inner.http) = Some(http.map_err(|err| StartError::Http(err.to_string()))?);

        let recursors = resolve_all(rt, &config.dns.recursors).await;
        let dns = dns_settings(
            &config.dns,
            &inner.datacenter,
            config.http.translate_wan_addrs,
            recursors,
        )
        .map_err(|err| StartError::Dns(err.to_string()))?;
        let catalog = DnsCatalog::new(
            inner.router.clone(),
            Arc::clone(&inner.datacenter),
            Arc::clone(&inner.staleness),
            DnsTimers::new(inner.router.telemetry(), &config.node_name),
        );
        let dns = DnsServer::start(rt.clone(), config.dns_addrs.clone(), dns, catalog).await;
        *locked(&inner.dns) = Some(dns.map_err(|err| StartError::Dns(err.to_string()))?);

        if let Some(path) = &config.pid_file {
            DataDir::write_pid_file(rt, path).await?;
        }
        if !config.join.start_join.is_empty() {
            self.join_once(&inner.gossip, &config.join.start_join)
                .await
                .map_err(StartError::Join)?;
        }
        if let Some(wan) = &inner.wan {
            if !config.join.start_join_wan.is_empty() {
                self.join_once(wan, &config.join.start_join_wan)
                    .await
                    .map_err(StartError::Join)?;
            }
            self.keep(rt.spawn("agent.flood-wan", self.clone().flood_wan(wan.clone())));
            if !config.join.retry_join_wan.is_empty() {
                self.keep(rt.spawn(
                    "agent.retry-join-wan",
                    self.clone().retry_join(wan.clone(), JoinPlan::wan),
                ));
            }
        }
        let gossip = inner.gossip.clone();
        let sync = inner.local.clone().keep_in_sync(move || gossip.members().len());
        *locked(&inner.sync_task) = Some(rt.spawn("agent.sync", sync).abort_on_drop());
        let events = Arc::clone(&inner.events);
        self.keep(rt.spawn("agent.events", events.keep(inner.gossip.clone(), inner.local.clone())));
        if !config.disable_coordinates {
            let tell = coordinates::tell(rt.clone(), inner.gossip.clone(), inner.router.clone());
            self.keep(rt.spawn("agent.coordinate", tell));
        }
        if inner.router.replica().is_some() {
            let write = coordinates::write(rt.clone(), inner.router.clone());
            self.keep(rt.spawn("agent.coordinates", write));
        }
        self.keep(rt.spawn("agent.results", inner.local.clone().take_results(results)));
        self.keep(rt.spawn("agent.reap", inner.local.clone().reap_critical()));
        self.keep(rt.spawn("agent.servers-seen", self.clone().watch_servers()));
        self.keep(rt.spawn("agent.reachability", self.clone().answer_reachability()));
        self.keep(rt.spawn("agent.past", self.clone().keep_past()));
        self.keep(rt.spawn("agent.metrics", self.clone().measure()));
        self.keep(rt.spawn("agent.members", self.clone().keep_members()));
        if !config.join.retry_join.is_empty() {
            self.keep(rt.spawn(
                "agent.retry-join",
                self.clone().retry_join(inner.gossip.clone(), JoinPlan::lan),
            ));
        }
        Ok(())
    }

    fn keep(&self, task: quorate_rt::Task) {
        locked(&self.inner.tasks).push(task.abort_on_drop());
    }

    pub fn config(&self) -> Arc<Config> {
        self.inner.config.load_full()
    }
    pub fn node_id(&self) -> NodeId {
        self.inner.node_id
    }
    /// Where HTTP is answered.
    pub fn http_addresses(&self) -> Vec<SocketAddr> {
        locked(&self.inner.http)
            .as_ref()
            .map(|http| http.addresses().to_vec())
            .unwrap_or_default()
    }
    /// Where DNS is answered over UDP.
    pub fn dns_addresses(&self) -> Vec<SocketAddr> {
        let dns = locked(&self.inner.dns);
        dns.as_ref()
            .map(|dns| dns.bound().iter().map(|bound| bound.udp).collect())
            .unwrap_or_default()
    }
    pub fn local_member(&self) -> Member {
        self.inner.gossip.local_member()
    }
    /// For the simulator's judges: this server's replicated state, when it is one.
    pub fn replica(&self) -> Option<&Replica<R>> {
        self.inner.router.replica()
    }

    /// Runs until a signal, a leave or a fatal error of the replicated log ends it.
    pub async fn run(&self) -> Ending {
        loop {
            let signal = async { Some(self.inner.rt.next_signal().await) };
            let end = async {
                self.inner.end.notified().await;
                None
            };
            let (signal, end) = (std::pin::pin!(signal), std::pin::pin!(end));
            let signal = futures::future::select(signal, end).await.factor_first().0;
            let config = self.config();
            let leaves = match signal {
                None => {
                    let ending = locked(&self.inner.ended).unwrap_or(Ending::Stopped);
                    self.stop().await;
                    return ending;
                }
                Some(Signal::Hangup) => {
                    match self.reload().await {
                        Ok(()) => tracing::info!("configuration reloaded"),
                        Err(err) => tracing::error!(%err, "reload refused, nothing has changed"),
                    }
                    continue;
                }
                Some(Signal::Interrupt) => !config.skip_leave_on_interrupt,
                Some(Signal::Terminate) => config.leave_on_terminate,
            };
            tracing::info!(?signal, leaves, "stopping");
            let ending = async {
                if leaves {
                    self.leave().await;
                }
                self.stop().await;
                if leaves { Ending::Left } else { Ending::Stopped }
            };
            // A second signal ends it at once.
            let again = async {
                while self.inner.rt.next_signal().await == Signal::Hangup {}
                Ending::Stopped
            };
            let (ending, again) = (std::pin::pin!(ending), std::pin::pin!(again));
            let first = futures::future::select(ending, again);
            let ended = self.inner.rt.timeout(GRACEFUL_TIMEOUT, first).await;
            return ended.map_or(Ending::Stopped, |first| first.factor_first().0);
        }
    }

    /// Leaves the pool gracefully. Called twice, the second call waits for the first.
    pub async fn leave(&self) {
        let inner = &self.inner;
        {
            let done = inner.leave_done.notified();
            let mut done = std::pin::pin!(done);
            done.as_mut().enable();
            let before = std::mem::replace(&mut *locked(&inner.leave_state), LeaveState::Leaving);
            match before {
                LeaveState::Member => {}
                LeaveState::Leaving => return done.await,
                LeaveState::Left => {
                    *locked(&inner.leave_state) = LeaveState::Left;
                    return;
                }
            }
        }
        *locked(&inner.sync_task) = None;
        if !self.config().join.rejoin_after_leave
            && let Err(err) = inner.data_dir.forget_members().await
        {
            tracing::warn!(%err, "the members known now are not forgotten: a restart will join them");
        }
        let others = inner
            .router
            .replica()
            .filter(|replica| replica.status().voters.len() > 1);
        if let Some(replica) = others
            && replica.status().is_leader
        {
            match inner
                .rt
                .timeout(HAND_OVER_TIMEOUT, replica.transfer_leadership(None))
                .await
            {
                Ok(Ok(())) => tracing::info!("leadership was handed over"),
                Ok(Err(err)) => tracing::warn!(%err, "leadership was not handed over"),
                Err(_) => tracing::warn!("leadership was not handed over in time"),
            }
        }
        let peers: Vec<NodeId> = others
            .map(|replica| replica.status().voters)
            .unwrap_or_default()
            .into_iter()
            .filter(|voter| *voter != inner.node_id)
            .collect();
        let leave_wan = async {
            if let Some(wan) = &inner.wan {
                wan.leave().await;
            }
        };
        futures::future::join(leave_wan, inner.gossip.leave()).await;
        if let Some(replica) = others {
            // The new leader removes this server. It is waited for, so that the quorum never counts one that is gone.
            let removed = async {
                loop {
                    // The others are asked, who know their leader: who is removed hears no more of the log, and soon
                    // follows nobody.
                    for peer in &peers {
                        if let Some(servers) = inner.router.configuration_at(replica, *peer).await
                            && servers.iter().all(|server| server.id != inner.node_id)
                        {
                            return;
                        }
                    }
                    inner.rt.sleep(Duration::from_millis(50)).await;
                }
            };
            if inner.rt.timeout(HAND_OVER_TIMEOUT, removed).await.is_err() {
                tracing::warn!("this server is still in the Raft configuration: the leader removes it when it can");
            }
            // Who asked this server a moment ago may ask again before it heard of the leave.
            inner.rt.sleep(self.config().performance.leave_drain_time).await;
        }
        *locked(&inner.leave_state) = LeaveState::Left;
        inner.leave_done.notify_waiters();
    }

    /// Tells `run` to end.
    pub(crate) fn end(&self, ending: Ending) {
        locked(&self.inner.ended).get_or_insert(ending);
        self.inner.end.notify_one();
    }

    /// Stops everything. The pool is not told: a leave does that.
    pub async fn stop(&self) {
        let inner = &self.inner;
        let http = locked(&inner.http).take();
        if let Some(http) = http {
            http.stop().await;
        }
        let dns = locked(&inner.dns).take();
        if let Some(dns) = dns {
            dns.stop().await;
        }
        *locked(&inner.sync_task) = None;
        locked(&inner.tasks).clear();
        inner.local.stop_checks();
        inner.gossip.stop().await;
        if let Some(wan) = &inner.wan {
            wan.stop().await;
        }
        if let Some(replica) = inner.router.replica() {
            replica.stop().await;
        }
    }

    /// Re-reads the configuration and applies what may change while running: all of it or nothing.
    pub async fn reload(&self) -> Result<(), ReloadError> {
        let inner = &self.inner;
        let _one_at_a_time = inner.reload_lock.lock().await;
        let config = load(&inner.rt, &inner.flags).await?;
        if let Some(refused) = config.refused_definitions.first() {
            return Err(ReloadError::RefusedDefinition(refused.clone()));
        }
        let recursors = resolve_all(&inner.rt, &config.dns.recursors).await;
        let dns = dns_settings(
            &config.dns,
            &inner.datacenter,
            config.http.translate_wan_addrs,
            recursors,
        )
        .map_err(|err| ReloadError::Dns(err.to_string()))?;
        // The last step that can be refused; from here on everything is applied.
        let node = node_record(&config, inner.node_id);
        inner
            .local
            .reload(&config.services, &config.checks, local_settings(&config), node)
            .await?;
        for warning in &config.warnings {
            tracing::warn!("{warning}");
        }
        (inner.hooks.set_log_level)(config.logging.level.as_str());
        if let Some(server) = locked(&inner.dns).as_ref() {
            server.reload(dns);
        }
        if let Some(server) = locked(&inner.http).as_ref() {
            server.set_connections_per_client_count_max(config.limits.http_max_conns_per_client as usize);
        }
        inner.staleness.store(Arc::new(staleness(&config)));
        inner.config.store(Arc::new(config));
        Ok(())
    }

    /// Of the DNS server, unless it has ended.
    pub(crate) fn dns_counts(&self) -> Option<quorate_dns_server::Counts> {
        locked(&self.inner.dns).as_ref().map(DnsServer::counts)
    }
    /// Contacts these addresses once; how many members answered.
    async fn join_once(&self, pool: &Gossip<R>, targets: &[HostPort]) -> Result<usize, String> {
        let (mut addresses, mut failures) = (Vec::new(), Vec::new());
        for target in targets {
            match self.inner.rt.resolve(&target.host, target.port).await {
                Ok(found) => addresses.extend(found),
                Err(err) => failures.push(format!("Failed to resolve {}: {err}", target.host)),
            }
        }
        let own = pool.local_member().address;
        if addresses.iter().all(|address| *address == own) && !addresses.is_empty() {
            // Only itself: nobody new, and no failure.
            return Ok(1);
        }
        addresses.retain(|address| *address != own);
        match pool.join(&addresses).await {
            Ok(count) if count > 0 => Ok(count),
            Ok(_) => Err(failures.join(", ")),
            Err(err) => {
                failures.push(err.to_string());
                Err(failures.join(", "))
            }
        }
    }

    /// A log that cannot be written or synced is the end of this server: it could promise nothing any more.
    async fn end_when_replica_fails(self, replica: Replica<R>) {
        let reason = replica.failed().await;
        tracing::error!(%reason, "the replicated log failed: this server ends, restart it once its disk is sound");
        self.end(Ending::Stopped);
    }

    /// Joins whom this agent knew before its restart, then keeps whom it knows. A server that comes back thus hears at once
    /// of the clients that no configuration names.
    async fn keep_members(self) {
        let rt = &self.inner.rt;
        let data_dir = &self.inner.data_dir;
        let mut kept = data_dir.kept_members().await;
        if !kept.is_empty()
            && let Err(err) = self.inner.gossip.join(&kept).await
        {
            tracing::debug!(%err, "nobody known before the restart answered");
        }
        let mut events = self.inner.gossip.subscribe();
        loop {
            let members = self.inner.gossip.members();
            let alive = members
                .iter()
                .filter(|member| member.status == MemberStatus::Alive && member.id != self.inner.node_id)
                .map(|member| member.address);
            let known: Vec<SocketAddr> = alive.take(KEPT_MEMBER_COUNT_MAX).collect();
            if known != kept && !known.is_empty() {
                match data_dir.keep_members(&known).await {
                    Ok(()) => kept = known,
                    Err(err) => tracing::warn!(%err, "the members known now are not kept for a restart"),
                }
            }
            events.next().await;
            // Events come in bursts: one write for all of them.
            rt.sleep(KEEP_MEMBERS_DELAY).await;
        }
    }

    /// Keeps what gossip has used, so that the next life of this agent begins above it wherever its clock is then: what was
    /// recorded of this life must not pass for news.
    async fn keep_past(self) {
        let (rt, data_dir) = (&self.inner.rt, &self.inner.data_dir);
        let mut kept = data_dir.kept_past().await;
        loop {
            let past = KeptPast {
                lan: self.inner.gossip.past(),
                wan: self.inner.wan.as_ref().map(Gossip::past).unwrap_or_default(),
            };
            if is_beyond(past, kept) {
                match data_dir.keep_past(&past).await {
                    Ok(()) => kept = past,
                    Err(err) => tracing::warn!(%err, "what gossip used is not kept for a restart"),
                }
            }
            rt.sleep(PAST_LOOK_INTERVAL).await;
        }
    }

    async fn retry_join(self, pool: Gossip<R>, plan: fn(&Config) -> JoinPlan<'_>) {
        let rt = &self.inner.rt;
        let mut attempt = 0_u32;
        // Agents that are started together miss one another by moments: the first tries follow sooner than the interval
        // that Consul waits from the beginning. Who counts the tries gets the interval.
        let mut delay = FIRST_JOIN_RETRY_DELAY;
        loop {
            let config = self.config();
            let plan = plan(&config);
            match self.join_once(&pool, plan.targets).await {
                Ok(count) => {
                    tracing::info!(count, "joined");
                    let others = pool
                        .members()
                        .iter()
                        .any(|member| member.id != self.inner.node_id && member.status == MemberStatus::Alive);
                    if others {
                        return;
                    }
                    // Only this agent itself was among the addresses. The others come by themselves or later.
                }
                Err(err) => {
                    attempt += 1;
                    if plan.retry_max > 0 && attempt >= plan.retry_max {
                        tracing::error!(%err, "max join retry exhausted, exiting");
                        self.end(Ending::Stopped);
                        return;
                    }
                    tracing::warn!(%err, "join failed, will retry");
                }
            }
            let pause = if plan.retry_max > 0 {
                plan.interval
            } else {
                delay.min(plan.interval)
            };
            delay = delay.saturating_mul(2);
            rt.sleep(pause).await;
        }
    }

    /// Asks for a full sync when a server comes into sight: it may be the first one.
    async fn watch_servers(self) {
        let mut events = self.inner.gossip.subscribe();
        let mut rng = self.inner.rt.rng("agent.servers-seen");
        let mut seen: BTreeSet<NodeId> = BTreeSet::new();
        loop {
            let members = self.inner.gossip.members();
            let alive: BTreeSet<NodeId> = members
                .iter()
                .filter(|member| is_alive_server(member, &self.inner.datacenter))
                .map(|member| member.id)
                .collect();
            if alive.difference(&seen).next().is_some() {
                // Drawn, so that a thousand agents do not all ask a returning server at once.
                let most = Duration::from_millis(members.len() as u64 * 2);
                self.inner.rt.sleep(draw(&mut rng, most)).await;
                self.inner.local.want_full_sync();
            }
            seen = alive;
            events.next().await;
        }
    }
}

fn slack_ms() -> u64 {
    u64::try_from(PAST_SLACK.as_millis()).expect("seconds")
}

/// Above all that may have been used since the last look.
fn begun_above(kept: KeptPast) -> KeptPast {
    let above = |past: Past| Past {
        // An incarnation grows by one with each refutation, far more seldom than once a millisecond.
        incarnation: past.incarnation.saturating_add(slack_ms()),
        // 0: the pool had no time, as it was not encrypted.
        time_ms: if past.time_ms == 0 {
            0
        } else {
            past.time_ms.saturating_add(slack_ms())
        },
    };
    KeptPast {
        lan: above(kept.lan),
        wan: above(kept.wan),
    }
}

/// Whether a look later more might be used than a life that begins above `kept` expects.
fn is_beyond(past: KeptPast, kept: KeptPast) -> bool {
    let look_ms = u64::try_from(PAST_LOOK_INTERVAL.as_millis()).expect("seconds");
    let is_beyond = |used: u64, kept: u64| used.saturating_add(2 * look_ms) > kept.saturating_add(slack_ms());
    [(past.lan, kept.lan), (past.wan, kept.wan)]
        .into_iter()
        .any(|(past, kept)| {
            past.incarnation != 0 && is_beyond(past.incarnation, kept.incarnation)
                || past.time_ms != 0 && is_beyond(past.time_ms, kept.time_ms)
        })
}

/// Why an agent would not start with this configuration, which reads well: one sentence each. What only the machine can
/// say (ports, the data directory) is not among them.
pub fn refusals(config: &Config) -> Vec<String> {
    let mut refusals = config.refused_definitions.clone();
    // Kept services are not known here: a check may be for one of them.
    let kept = config.checks.iter().map(|check| check.service_id.clone()).collect();
    let admitted = crate::local::admit(config.scripts, &config.services, &config.checks, &kept);
    refusals.extend(admitted.err().map(|err| err.to_string()));
    refusals.extend(refuse_unsupported(config).err().map(|err| err.to_string()));
    refusals.extend(
        config
            .http_addrs
            .iter()
            .filter_map(refuse_address)
            .map(|err| err.to_string()),
    );
    refusals
}

fn refuse_address(address: &ListenAddress) -> Option<StartError> {
    match address {
        ListenAddress::Tcp(_) => None,
        ListenAddress::Unix(path) => Some(StartError::Unsupported(format!(
            "addresses.http: unix sockets are not available in this release: remove unix://{}",
            path.display()
        ))),
    }
}

/// What a pool is to join, again and again until it did.
struct JoinPlan<'a> {
    targets: &'a [HostPort],
    interval: Duration,
    /// 0: for ever.
    retry_max: u32,
}

impl JoinPlan<'_> {
    fn lan(config: &Config) -> JoinPlan<'_> {
        JoinPlan {
            targets: &config.join.retry_join,
            interval: config.join.retry_interval,
            retry_max: config.join.retry_max,
        }
    }
    fn wan(config: &Config) -> JoinPlan<'_> {
        JoinPlan {
            targets: &config.join.retry_join_wan,
            interval: config.join.retry_interval_wan,
            retry_max: config.join.retry_max_wan,
        }
    }
}

/// Settings that promise protection which is not there: going on without it would be worse than not starting.
fn refuse_unsupported(config: &Config) -> Result<(), StartError> {
    let refused = if config.acl.enabled && config.acl.default_policy == crate::config::AclPolicy::Deny {
        "acl.default_policy is \"deny\", but ACLs are not available in this release and everything would be open: \
         remove acl.enabled to run without them"
    } else {
        return Ok(());
    };
    Err(StartError::Unsupported(refused.to_owned()))
}

/// Settings that are read and not acted upon, as the operator wrote them.
fn settings_without_effect(config: &Config) -> Vec<&'static str> {
    let limits = &config.limits.request_limits;
    [
        ("acl.enabled", config.acl.enabled),
        ("ports.https", !config.https_addrs.is_empty()),
        (
            "limits.request_limits",
            limits.mode != crate::config::RequestLimitMode::Disabled,
        ),
        ("limits.rpc_rate", config.limits.rpc_rate.is_some()),
        ("log_file", config.logging.file.is_some()),
        ("enable_syslog", config.logging.syslog),
        ("ui_config", config.ui.enabled && !config.dev_mode),
    ]
    .into_iter()
    .filter_map(|(setting, is_set)| is_set.then_some(setting))
    .collect()
}

async fn resolve_all<R: Rt>(rt: &R, targets: &[HostPort]) -> Vec<SocketAddr> {
    let mut addresses = Vec::new();
    for target in targets {
        match rt.resolve(&target.host, target.port).await {
            Ok(found) => addresses.extend(found.first()),
            Err(err) => tracing::warn!(recursor = %target.host, %err, "a recursor has no address: left out"),
        }
    }
    addresses
}

fn staleness(config: &Config) -> Staleness {
    Staleness {
        allow_stale: config.dns.allow_stale,
        max_stale: config.dns.max_stale,
    }
}

fn local_settings(config: &Config) -> LocalSettings {
    LocalSettings {
        scripts: config.scripts,
        check_update_interval: config.check_update_interval,
        discard_check_output: config.discard_check_output,
    }
}

fn timing(config: &Config) -> quorate_gossip::Timing {
    let profile = if config.dev_mode {
        quorate_gossip::Timing::local()
    } else {
        quorate_gossip::Timing::lan()
    };
    tuned(profile, &config.gossip_lan, !config.disable_coordinates)
}

/// A profile with what is configured of it.
pub(crate) fn tuned(
    profile: quorate_gossip::Timing,
    gossip: &crate::config::Gossip,
    coordinates: bool,
) -> quorate_gossip::Timing {
    quorate_gossip::Timing {
        gossip_node_count: gossip.gossip_nodes as usize,
        gossip_interval: gossip.gossip_interval,
        probe_interval: gossip.probe_interval,
        probe_timeout: gossip.probe_timeout,
        retransmit_mult: gossip.retransmit_mult,
        suspicion_mult: gossip.suspicion_mult,
        reconnect_timeout: gossip.reconnect_timeout,
        allowed_cidrs: gossip.allowed_cidrs.clone(),
        coordinates,
        ..profile
    }
}

fn node_record(config: &Config, id: NodeId) -> NodeRecord {
    let family = if config.advertise_addr.is_ipv4() {
        "ipv4"
    } else {
        "ipv6"
    };
    let mut tagged_addresses = BTreeMap::from([
        ("lan".to_owned(), config.advertise_addr.to_string()),
        (format!("lan_{family}"), config.advertise_addr.to_string()),
        ("wan".to_owned(), config.advertise_addr_wan.to_string()),
        (format!("wan_{family}"), config.advertise_addr_wan.to_string()),
    ]);
    tagged_addresses.extend(config.tagged_addresses.clone());
    let mut meta = config.node_meta.clone();
    meta.insert("consul-network-segment".to_owned(), String::new());
    meta.insert("consul-version".to_owned(), API_VERSION.to_owned());
    NodeRecord {
        id,
        name: config.node_name.clone(),
        address: config.advertise_addr.to_string(),
        datacenter: config.datacenter.clone(),
        tagged_addresses,
        meta,
    }
}

/// Serf's tags (http-api.md 4.1).
fn tags(config: &Config, id: NodeId, rpc_port: u16) -> BTreeMap<String, String> {
    let mut tags: BTreeMap<String, String> = [
        ("role", if config.server { "consul" } else { "node" }),
        ("dc", &config.datacenter),
        ("segment", ""),
        ("acls", "0"),
        ("vsn", "2"),
        ("vsn_min", "2"),
        ("vsn_max", "3"),
    ]
    .into_iter()
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
    .collect();
    tags.insert("id".to_owned(), id.to_string());
    tags.insert("build".to_owned(), format!("{API_VERSION}:"));
    if config.server {
        tags.insert("port".to_owned(), rpc_port.to_string());
        tags.insert("raft_vsn".to_owned(), "3".to_owned());
        tags.insert("ft_fs".to_owned(), "1".to_owned());
        if config.bootstrap {
            tags.insert("bootstrap".to_owned(), "1".to_owned());
        } else if config.bootstrap_expect > 0 {
            tags.insert("expect".to_owned(), config.bootstrap_expect.to_string());
        }
    }
    tags
}

fn http_config(config: &Config) -> HttpConfig {
    let defaults = HttpConfig::default();
    HttpConfig {
        block_endpoints: config.http.block_endpoints.clone(),
        allow_write_http_from: config.http.allow_write_http_from.clone(),
        response_headers: config.http.response_headers.clone().into_iter().collect(),
        header_len_bytes_max: match config.http.max_header_bytes {
            0 => defaults.header_len_bytes_max,
            len_bytes => len_bytes,
        },
        use_cache: config.http.use_cache,
        connections_per_client_count_max: config.limits.http_max_conns_per_client as usize,
        kv_value_len_bytes_max: config.limits.kv_max_value_size,
        transaction_len_bytes_max: config.limits.txn_max_req_len,
        wait_default: config.http.default_query_time,
        wait_max: config.http.max_query_time,
        discovery_max_stale: config.http.discovery_max_stale,
        session_ttl_min: config.session_ttl_min,
        disable_coordinates: config.disable_coordinates,
        translate_wan_addrs: config.http.translate_wan_addrs,
        disable_unprintable_char_filter: config.http.disable_unprintable_char_filter,
        disable_kv_key_validation: config.http.disable_kv_key_validation,
        pretty: config.http.pretty,
        default_acl_policy: match config.acl.default_policy {
            crate::config::AclPolicy::Allow => "allow",
            crate::config::AclPolicy::Deny => "deny",
        },
    }
}

/// An error with its sources: what was attempted, and why it failed.
fn chain(err: &dyn std::error::Error) -> String {
    let mut text = err.to_string();
    let mut source = err.source();
    while let Some(err) = source {
        text.push_str(": ");
        text.push_str(&err.to_string());
        source = err.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(incarnation: u64, time_ms: u64) -> KeptPast {
        let lan = Past { incarnation, time_ms };
        KeptPast {
            lan,
            wan: Past::default(),
        }
    }

    #[test]
    fn a_life_begins_above_all_that_may_have_been_used_between_two_looks() {
        let look_ms = PAST_LOOK_INTERVAL.as_millis() as u64;
        let mut on_disk = KeptPast::default();
        for at_ms in (1_000_000..2_000_000_u64).step_by(usize::try_from(look_ms).expect("small")) {
            // Killed just before the next look.
            let used_ms = at_ms + look_ms;
            if is_beyond(kept(1_000_000, at_ms), on_disk) {
                on_disk = kept(1_000_000, at_ms);
            }
            let next = begun_above(on_disk);
            assert!(
                next.lan.time_ms > used_ms && next.lan.incarnation > 1_000_000,
                "at {at_ms}"
            );
            // Nor so far above that those who did not restart seem to be of long ago.
            assert!(next.lan.time_ms - at_ms <= 60_000, "at {at_ms}");
        }
        assert_eq!(begun_above(KeptPast::default()).lan.time_ms, 0);
    }
}
