//! Where a request goes: answered here, forwarded to the leader, or, on a client agent, to a server.
//!
//! Promises: a default or consistent read is answered from a state that holds every write acknowledged before it; a stale
//! read is answered by whoever is asked and says how old it may be; a request without a leader is held for
//! `performance.rpc_hold_timeout`; a write that may have happened is never tried again and never called failed. A blocking
//! read is woken by changes of what it watches, and answers when its own index moved.
//! Not here: how servers agree (`replica`), what clients see (`http-api`, `dns-answer`).

use crate::coordinates::{self, Pending};
use crate::evaluations::Evaluations;
use crate::metrics::apply_metric;
use crate::sessions::SessionTimers;
use crate::telemetry::{Telemetry, metric};
use crate::{keyring, wan};
use futures::future::{Either, select};
use quorate_gossip::Gossip;
use quorate_replica::{CallFailure, RaftRt, ReadError, Replica, RpcClient, WriteError};
use quorate_rt::Rng;
use quorate_store::{Answer, Command, Consistency, Outcome, Query};
use quorate_types::{Instant, Member, MemberStatus, ModifyIndex, NodeCoordinate, NodeId, Session, Uuid};
use quorate_wire::rpc::{
    CallError, KeyringOperation, KeyringPool, RaftConfigurationReply, RaftServer, ReadReply, ReadRequest, Request,
    Response, StatusReply, WriteRequest,
};
use rand_core::Rng as _;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Forwarding ends here: client to follower to leader is two, one more for a leader that just changed.
const HOPS_MAX: u8 = 4;
/// A stale read is answered from memory. A server that takes longer is asked no more, and another one is.
const STALE_CALL_TIMEOUT: Duration = Duration::from_secs(1);
/// Between two looks whether the server that is waited for is still there.
const SERVER_CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// What an answer may need beyond the wait it was asked to keep.
const CALL_SLACK: Duration = Duration::from_secs(3);
/// Every member of every pool is asked, some of whom may not answer.
const KEYRING_CALL_TIMEOUT: Duration = Duration::from_secs(60);
/// Between two looks for a leader, when nothing says that there is one.
const LEADER_RETRY_DELAY: Duration = Duration::from_millis(50);
/// What a leader's answer may take once another leads.
const REPLACED_LEADER_PATIENCE: Duration = Duration::from_millis(500);

/// How long a client agent looks for a server that answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Patience {
    /// Again and again, until the hold is over.
    Hold,
    /// Each known server once.
    OneRound,
}

/// Who this agent is to the replicated state.
#[derive(Clone)]
pub enum Role<R: RaftRt> {
    Server(Replica<R>),
    Client(Arc<ClientRole<R>>),
}

/// A client agent's way to the servers: one chosen at random, kept until it fails.
pub struct ClientRole<R: RaftRt> {
    rpc: RpcClient<R>,
    gossip: Gossip<R>,
    chosen: Mutex<Chosen>,
}

struct Chosen {
    server: Option<NodeId>,
    rng: Rng,
}

/// Answers requests, here or elsewhere.
#[derive(Clone)]
pub struct Router<R: RaftRt> {
    rt: R,
    datacenter: Arc<str>,
    role: Role<R>,
    members: MembersView<R>,
    /// `performance.rpc_hold_timeout`.
    hold_timeout: Duration,
    pending_coordinates: Arc<Pending>,
    sessions: SessionTimers,
    evaluations: Evaluations,
    telemetry: Telemetry,
}

/// The pools as the router needs them; absent until gossip has started.
#[derive(Clone)]
pub struct MembersView<R: RaftRt> {
    pools: Arc<std::sync::OnceLock<Pools<R>>>,
}

/// The LAN pool, and the WAN pool where there is one.
type Pools<R> = (Gossip<R>, Option<Gossip<R>>);

impl<R: RaftRt> Default for MembersView<R> {
    fn default() -> Self {
        Self { pools: Arc::default() }
    }
}

impl<R: RaftRt> MembersView<R> {
    pub fn set(&self, lan: Gossip<R>, wan: Option<Gossip<R>>) {
        // Set once, at start.
        let _ = self.pools.set((lan, wan));
    }
    fn all(&self) -> Arc<Vec<Member>> {
        self.pools.get().map(|(lan, _)| lan.members()).unwrap_or_default()
    }
}

impl<R: RaftRt> ClientRole<R> {
    pub fn new(rt: &R, rpc: RpcClient<R>, gossip: Gossip<R>) -> Self {
        let chosen = Mutex::new(Chosen {
            server: None,
            rng: rt.rng("agent.server"),
        });
        Self { rpc, gossip, chosen }
    }

    /// The servers to try, the chosen one first.
    fn candidates(&self, datacenter: &str) -> Vec<(NodeId, SocketAddr)> {
        let members = self.gossip.members();
        let mut servers: Vec<(NodeId, SocketAddr)> = members
            .iter()
            .filter(|member| is_alive_server(member, datacenter))
            .filter_map(|member| Some((member.id, member.rpc_address()?)))
            .collect();
        let mut chosen = locked(&self.chosen);
        // Fisher and Yates, so that clients spread over the servers.
        for last in (1..servers.len()).rev() {
            let other = (chosen.rng.next_u64() % (last as u64 + 1)) as usize;
            servers.swap(last, other);
        }
        if let Some(kept) = chosen
            .server
            .and_then(|id| servers.iter().position(|server| server.0 == id))
        {
            servers.swap(0, kept);
        }
        chosen.server = servers.first().map(|server| server.0);
        servers
    }

    fn chose(&self, server: NodeId) {
        locked(&self.chosen).server = Some(server);
    }
}

pub(crate) fn is_alive_server(member: &Member, datacenter: &str) -> bool {
    member.status == MemberStatus::Alive
        && member.is_server()
        && member.tags.get("dc").is_some_and(|dc| dc == datacenter)
}

pub(crate) fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // No code that can panic runs under these locks; should one be poisoned, its data is still whole.
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

impl<R: RaftRt> Router<R> {
    pub fn new(rt: R, datacenter: &str, role: Role<R>, members: MembersView<R>, hold_timeout: Duration) -> Self {
        Self {
            telemetry: Telemetry::new(rt.wall_now()),
            rt,
            datacenter: datacenter.into(),
            role,
            members,
            hold_timeout,
            pending_coordinates: Arc::default(),
            sessions: SessionTimers::default(),
            evaluations: Evaluations::default(),
        }
    }

    /// What this agent measured.
    pub(crate) fn telemetry(&self) -> &Telemetry {
        &self.telemetry
    }
    /// How long sessions last, kept while this server leads.
    pub fn session_timers(&self) -> &SessionTimers {
        &self.sessions
    }

    /// Evaluations that were made for several readers at a time, since the start.
    pub fn evaluation_count(&self) -> u64 {
        self.evaluations.made_count()
    }

    pub fn replica(&self) -> Option<&Replica<R>> {
        match &self.role {
            Role::Server(replica) => Some(replica),
            Role::Client(_) => None,
        }
    }

    pub async fn read(&self, request: ReadRequest) -> Result<ReadReply, CallError> {
        self.read_with(request, Patience::Hold).await
    }

    /// A read whose asker has no time: each server is asked once.
    pub async fn read_once(&self, request: ReadRequest) -> Result<ReadReply, CallError> {
        self.read_with(request, Patience::OneRound).await
    }

    async fn read_with(&self, request: ReadRequest, patience: Patience) -> Result<ReadReply, CallError> {
        // Who waits is seldom alone: the same answer told to many by another server is made one again.
        let waiting = (request.min_index > ModifyIndex::ZERO).then(|| request.query.clone());
        let mut reply = self.read_anywhere(request, patience).await?;
        if let Some(query) = waiting {
            reply.answer = self.evaluations.told(query, reply.index, reply.answer);
        }
        Ok(reply)
    }

    async fn read_anywhere(&self, request: ReadRequest, patience: Patience) -> Result<ReadReply, CallError> {
        match &self.role {
            Role::Server(replica) => self.read_here(replica, request).await,
            Role::Client(client) => {
                let timeout = self.read_timeout(&request);
                let asked = self.ask_a_server(client, Request::Read(request), timeout, patience);
                match asked.await? {
                    Response::Read(reply) => Ok(reply),
                    Response::Failed(err) => Err(err),
                    _ => Err(mismatched()),
                }
            }
        }
    }

    pub async fn write(&self, command: Command) -> Result<Outcome, CallError> {
        let request = WriteRequest { command, hops: 0 };
        match &self.role {
            Role::Server(replica) => self.write_here(replica, request).await,
            Role::Client(client) => {
                let timeout = self.hold_timeout + CALL_SLACK;
                let request = Request::Write(request);
                match self.ask_a_server(client, request, timeout, Patience::Hold).await? {
                    Response::Write(outcome) => Ok(outcome),
                    Response::Failed(err) => Err(err),
                    _ => Err(mismatched()),
                }
            }
        }
    }

    pub async fn status(&self) -> Result<StatusReply, CallError> {
        match &self.role {
            Role::Server(replica) => Ok(self.status_here(replica)),
            Role::Client(client) => {
                let asked = self.ask_a_server(client, Request::Status, CALL_SLACK, Patience::Hold);
                match asked.await? {
                    Response::Status(reply) => Ok(reply),
                    Response::Failed(err) => Err(err),
                    _ => Err(mismatched()),
                }
            }
        }
    }

    pub async fn raft_configuration(&self, stale: bool) -> Result<RaftConfigurationReply, CallError> {
        match &self.role {
            Role::Server(replica) => self.raft_configuration_here(replica, stale, 0).await,
            Role::Client(client) => {
                let request = Request::RaftConfiguration { stale, hops: 0 };
                match self
                    .ask_a_server(client, request, self.hold_timeout + CALL_SLACK, Patience::Hold)
                    .await?
                {
                    Response::RaftConfiguration(reply) => Ok(reply),
                    Response::Failed(err) => Err(err),
                    _ => Err(mismatched()),
                }
            }
        }
    }

    /// Begins a session's time to live anew. `None`: there is no such session.
    pub async fn renew_session(&self, id: Uuid) -> Result<Option<Arc<Session>>, CallError> {
        match &self.role {
            Role::Server(replica) => self.renew_here(replica, id, 0).await,
            Role::Client(client) => {
                let request = Request::RenewSession { id, hops: 0 };
                match self
                    .ask_a_server(client, request, self.hold_timeout + CALL_SLACK, Patience::Hold)
                    .await?
                {
                    Response::Session(session) => Ok(session),
                    Response::Failed(err) => Err(err),
                    _ => Err(mismatched()),
                }
            }
        }
    }

    /// Tells a server where a node is.
    pub async fn update_coordinate(&self, coordinate: NodeCoordinate) -> Result<(), CallError> {
        match &self.role {
            Role::Server(_) => {
                self.pending_coordinates.push(coordinate);
                Ok(())
            }
            Role::Client(client) => {
                let request = Request::UpdateCoordinate(coordinate);
                let asked = self.ask_a_server(client, request, CALL_SLACK, Patience::OneRound);
                match asked.await? {
                    Response::CoordinateTaken => Ok(()),
                    Response::Failed(err) => Err(err),
                    _ => Err(mismatched()),
                }
            }
        }
    }

    /// What this server was told of nodes' coordinates and has not written yet.
    pub(crate) fn pending_coordinates(&self) -> &Pending {
        &self.pending_coordinates
    }

    /// What the members of the pools say about their keyrings. A client knows the LAN pool only, and asks a server.
    pub async fn keyring(&self, operation: KeyringOperation, local_only: bool) -> Result<Vec<KeyringPool>, CallError> {
        match &self.role {
            Role::Server(_) => Ok(self.keyring_here(operation, local_only).await),
            Role::Client(client) => {
                let request = Request::Keyring { operation, local_only };
                match self
                    .ask_a_server(client, request, KEYRING_CALL_TIMEOUT, Patience::Hold)
                    .await?
                {
                    Response::Keyring(pools) => Ok(pools),
                    Response::Failed(err) => Err(err),
                    _ => Err(mismatched()),
                }
            }
        }
    }

    /// The server's own comes first, then the nearest. Needs no leader.
    pub async fn datacenters(&self) -> Result<Vec<String>, CallError> {
        match &self.role {
            Role::Server(_) => Ok(self.datacenters_here()),
            Role::Client(client) => {
                let asked = self.ask_a_server(client, Request::Datacenters, CALL_SLACK, Patience::Hold);
                match asked.await? {
                    Response::Datacenters(datacenters) => Ok(datacenters),
                    Response::Failed(err) => Err(err),
                    _ => Err(mismatched()),
                }
            }
        }
    }

    fn datacenters_here(&self) -> Vec<String> {
        let wan = self.members.pools.get().and_then(|(_, wan)| wan.as_ref());
        match wan {
            Some(wan) => {
                let datacenters = coordinates::by_datacenter(wan, &self.datacenter).into_iter();
                datacenters.map(|datacenter| datacenter.datacenter).collect()
            }
            None => wan::datacenters(&[], &self.datacenter),
        }
    }

    async fn keyring_here(&self, operation: KeyringOperation, local_only: bool) -> Vec<KeyringPool> {
        match self.members.pools.get() {
            Some((lan, wan)) => keyring::ask(lan, wan.as_ref(), operation, local_only).await,
            None => Vec::new(),
        }
    }

    /// Answers what another agent asked this server.
    pub async fn serve(&self, request: Request) -> Response {
        let Role::Server(replica) = &self.role else {
            return Response::Failed(CallError::Failed("this agent is no server".to_owned()));
        };
        self.telemetry.count(metric("rpc.request", &[]), 1);
        // Many reads wait here, and each is as large as the largest arm that is not boxed.
        let response = match request {
            Request::Read(request) => self.read_here(replica, request).await.map(Response::Read),
            Request::Write(request) => Box::pin(self.write_here(replica, request)).await.map(Response::Write),
            Request::Status => Ok(Response::Status(self.status_here(replica))),
            Request::RaftConfiguration { stale, hops } => Box::pin(self.raft_configuration_here(replica, stale, hops))
                .await
                .map(Response::RaftConfiguration),
            Request::Datacenters => Ok(Response::Datacenters(self.datacenters_here())),
            Request::Keyring { operation, local_only } => {
                let keyring = Box::pin(self.keyring_here(operation, local_only));
                Ok(Response::Keyring(keyring.await))
            }
            Request::RenewSession { id, hops } => Box::pin(self.renew_here(replica, id, hops))
                .await
                .map(Response::Session),
            Request::UpdateCoordinate(coordinate) => {
                self.pending_coordinates.push(coordinate);
                Ok(Response::CoordinateTaken)
            }
        };
        response.unwrap_or_else(Response::Failed)
    }

    fn read_timeout(&self, request: &ReadRequest) -> Duration {
        let waits = if request.min_index == ModifyIndex::ZERO {
            Duration::ZERO
        } else {
            request.wait
        };
        match request.consistency {
            Consistency::Stale => waits + STALE_CALL_TIMEOUT,
            _ => waits + self.hold_timeout + CALL_SLACK,
        }
    }

    /// Calls a server, and gives up when the pool says that it is gone: a machine that lost its power closes no
    /// connection, and a blocking query would wait for it to the end.
    async fn call_while_alive(
        &self,
        client: &ClientRole<R>,
        server: NodeId,
        address: SocketAddr,
        request: &Request,
        timeout: Duration,
    ) -> Result<Response, CallFailure> {
        let gone = async {
            loop {
                self.rt.sleep(SERVER_CHECK_INTERVAL).await;
                let members = client.gossip.members();
                let is_alive = |member: &Member| member.id == server && is_alive_server(member, &self.datacenter);
                if !members.iter().any(is_alive) {
                    return Err(CallFailure::Unknown(
                        "the server is no longer alive in the pool".to_owned(),
                    ));
                }
            }
        };
        let call = std::pin::pin!(client.rpc.call(address, request, self.rt.now() + timeout));
        futures::future::select(call, std::pin::pin!(gone))
            .await
            .factor_first()
            .0
    }

    /// Asks the chosen server, and the others when it fails. A write goes on to the next one only while it certainly
    /// reached none. Ends within the request's wait, the hold and `CALL_SLACK`, whatever the servers do.
    async fn ask_a_server(
        &self,
        client: &ClientRole<R>,
        mut request: Request,
        mut timeout: Duration,
        patience: Patience,
    ) -> Result<Response, CallError> {
        self.telemetry.count(metric("client.rpc", &[]), 1);
        // What changes something must not happen twice.
        let is_write = matches!(request, Request::Write(_) | Request::Keyring { .. });
        let started_at = self.rt.now();
        let hold_until = match patience {
            Patience::OneRound => started_at,
            Patience::Hold if is_stale(&request) => started_at + STALE_CALL_TIMEOUT,
            Patience::Hold => started_at + self.hold_timeout,
        };
        let (wait, blocks_for) = match &request {
            Request::Read(read) if read.min_index > ModifyIndex::ZERO => (read.wait, read.wait),
            Request::Read(read) => (read.wait, Duration::ZERO),
            _ => (Duration::ZERO, Duration::ZERO),
        };
        let wait_until = started_at + wait;
        let give_up_at = started_at + blocks_for + self.hold_timeout + CALL_SLACK;
        let mut last_failure = None;
        loop {
            let candidates = client.candidates(&self.datacenter);
            if candidates.is_empty() && last_failure.is_none() {
                return Err(CallError::NoServers);
            }
            for (server, address) in candidates {
                let left = give_up_at.duration_since(self.rt.now());
                if left.is_zero() {
                    break;
                }
                if let Request::Read(read) = &mut request {
                    // What a server that failed has waited already is not waited again.
                    read.wait = wait_until.duration_since(self.rt.now()).min(read.wait);
                    timeout = self.read_timeout(read);
                }
                let timeout = timeout.min(left);
                match self.call_while_alive(client, server, address, &request, timeout).await {
                    Ok(Response::Failed(CallError::NoLeader)) if !is_stale(&request) => {
                        // It held the request as long as it may: the others know no more.
                        client.chose(server);
                        return Ok(Response::Failed(CallError::NoLeader));
                    }
                    Ok(response) => {
                        client.chose(server);
                        return Ok(response);
                    }
                    Err(CallFailure::Unknown(reason)) if is_write => return Err(CallError::Unknown(reason)),
                    Err(failure) => {
                        self.telemetry.count(metric("client.rpc.failed", &[]), 1);
                        tracing::debug!(%server, %address, %failure, "server did not answer, trying another");
                        last_failure = Some(failure);
                    }
                }
            }
            if self.rt.now() >= hold_until {
                // Clients know these words and try again. Whoever is asked for what only a leader may say did not find
                // one; a stale read needs none, only a server.
                let failure = last_failure.map(|failure| failure.to_string()).unwrap_or_default();
                tracing::debug!(%failure, "no server answered");
                let has_servers = !client.candidates(&self.datacenter).is_empty();
                return Err(match &request {
                    _ if !has_servers => CallError::NoServers,
                    request if is_stale(request) => CallError::NoServers,
                    _ => CallError::NoLeader,
                });
            }
            self.rt.sleep(LEADER_RETRY_DELAY * 2).await;
        }
    }

    async fn read_here(&self, replica: &Replica<R>, mut request: ReadRequest) -> Result<ReadReply, CallError> {
        if request.consistency == Consistency::Stale {
            let contact = replica.standing().last_contact.unwrap_or(self.rt.now() - Instant::ZERO);
            let too_old = request.max_stale.is_some_and(|max| contact > max);
            if !too_old {
                return self.evaluate_here(replica, &request).await;
            }
            // Too old for the caller: the leader answers.
            request.consistency = Consistency::Default;
        }
        let wait_until = self.rt.now() + request.wait;
        let mut hold_until = self.rt.now() + self.hold_timeout;
        loop {
            let tried_at = self.rt.now();
            let seen = replica.leadership_version();
            let status = replica.standing();
            if status.is_leader {
                match self.evaluate_here(replica, &request).await {
                    Ok(reply) => return Ok(reply),
                    Err(CallError::NoLeader) => {}
                    Err(err) => return Err(err),
                }
            } else if let Some(leader) = status.leader
                && request.hops < HOPS_MAX
            {
                let mut forwarded = request.clone();
                forwarded.hops += 1;
                forwarded.wait = wait_until - self.rt.now();
                let timeout = self.read_timeout(&forwarded);
                match self
                    .call_leader(replica, leader, &Request::Read(forwarded), self.rt.now() + timeout)
                    .await
                {
                    Ok(Response::Read(reply)) => return Ok(reply),
                    Ok(Response::Failed(CallError::NoLeader)) | Err(_) => {}
                    Ok(Response::Failed(err)) => return Err(err),
                    Ok(_) => return Err(mismatched()),
                }
            }
            let now = self.rt.now();
            if request.min_index > ModifyIndex::ZERO && now - tried_at > LEADER_RETRY_DELAY {
                // A leader was lost after it had served the wait for a while: the hold begins there.
                hold_until = now + self.hold_timeout;
            }
            if now >= hold_until {
                return Err(CallError::NoLeader);
            }
            self.leadership_may_change(replica, seen).await;
        }
    }

    async fn leadership_may_change(&self, replica: &Replica<R>, seen: u64) {
        // The pause is what bounds a miss: an address learned by gossip changes no leadership.
        let _ = self
            .rt
            .timeout(LEADER_RETRY_DELAY, replica.leadership_changed(seen))
            .await;
    }

    /// Evaluates here, waiting when asked to. `NoLeader` when this server may not answer (any more).
    async fn evaluate_here(&self, replica: &Replica<R>, request: &ReadRequest) -> Result<ReadReply, CallError> {
        let blocking = request.min_index > ModifyIndex::ZERO;
        let deadline = self.rt.now() + request.wait;
        let mut was_absent = None;
        loop {
            replica
                .read_barrier(request.consistency)
                .await
                .map_err(|err| match err {
                    ReadError::NotLeader { .. } | ReadError::NoLeader => CallError::NoLeader,
                    err => CallError::Failed(err.to_string()),
                })?;
            let store = replica.snapshot();
            let evaluation = self.evaluations.of(&store, &request.query);
            let absent = matches!(*evaluation.answer, Answer::Kv(None));
            // A key that is not there has the whole table's index (http-api.md 2.2); once its waiter found the index it
            // came with to be current, only the key's appearance is news (Consul 1.12).
            let still_absent = absent && was_absent == Some(true);
            let moved = evaluation.index > request.min_index && !still_absent;
            let now = self.rt.now();
            if !blocking || moved || now >= deadline {
                let status = replica.standing();
                return Ok(ReadReply {
                    answer: evaluation.answer,
                    index: evaluation.index,
                    known_leader: status.leader.is_some(),
                    last_contact: status.last_contact.unwrap_or(self.rt.now() - Instant::ZERO),
                    consistency: request.consistency,
                });
            }
            was_absent = Some(absent);
            let watch = replica
                .watches()
                .register(store.topics(&request.query))
                .map_err(|err| CallError::Failed(err.to_string()))?;
            if replica.snapshot().last_index() != store.last_index() {
                // Something changed before the watch was there, and what to watch depends on what there is.
                continue;
            }
            // A wake-up, a lost leadership and the end of the wait all lead to a fresh evaluation.
            let _ = self.rt.timeout(deadline - now, watch.wait()).await;
        }
    }

    async fn write_here(&self, replica: &Replica<R>, request: WriteRequest) -> Result<Outcome, CallError> {
        let hold_until = self.rt.now() + self.hold_timeout;
        loop {
            let seen = replica.leadership_version();
            let status = replica.standing();
            if status.is_leader {
                let began_at = self.rt.now();
                let written = replica.write(&request.command).await;
                self.measure_write(&request.command, began_at, written.is_ok());
                match written {
                    Ok((_, outcome)) => return Ok(outcome),
                    Err(WriteError::NotLeader { .. } | WriteError::NoLeader) => {}
                    Err(WriteError::Unknown(reason)) => return Err(CallError::Unknown(reason)),
                    Err(err) => return Err(CallError::Failed(err.to_string())),
                }
            } else if let Some(leader) = status.leader
                && request.hops < HOPS_MAX
            {
                let forwarded = WriteRequest {
                    command: request.command.clone(),
                    hops: request.hops + 1,
                };
                let timeout = self.hold_timeout + CALL_SLACK;
                match self
                    .call_leader(replica, leader, &Request::Write(forwarded), self.rt.now() + timeout)
                    .await
                {
                    Ok(Response::Write(outcome)) => return Ok(outcome),
                    Ok(Response::Failed(CallError::NoLeader)) | Err(CallFailure::NotSent(_)) => {}
                    Ok(Response::Failed(err)) => return Err(err),
                    Err(CallFailure::Unknown(reason)) => return Err(CallError::Unknown(reason)),
                    Ok(_) => return Err(mismatched()),
                }
            }
            if self.rt.now() >= hold_until {
                return Err(CallError::NoLeader);
            }
            self.leadership_may_change(replica, seen).await;
        }
    }

    fn measure_write(&self, command: &Command, began_at: Instant, is_committed: bool) {
        self.telemetry.count(metric("raft.apply", &[]), 1);
        if !is_committed {
            return;
        }
        let took = self.rt.now() - began_at;
        self.telemetry.timer(metric("raft.commitTime", &[])).observe(took);
        if let Some(name) = apply_metric(command) {
            self.telemetry.timer(metric(name, &[])).observe(took);
        }
    }
    /// The leader renews, once a quorum has confirmed it since the request came: a deposed one would promise a time that
    /// its successor does not know of.
    async fn renew_here(&self, replica: &Replica<R>, id: Uuid, hops: u8) -> Result<Option<Arc<Session>>, CallError> {
        let hold_until = self.rt.now() + self.hold_timeout;
        loop {
            let seen = replica.leadership_version();
            let status = replica.status();
            if status.is_leader {
                match replica.read_barrier(Consistency::Consistent).await {
                    Ok(()) => return Ok(self.sessions.renew(&self.rt, replica, id)),
                    Err(ReadError::NotLeader { .. } | ReadError::NoLeader) => {}
                    Err(err) => return Err(CallError::Failed(err.to_string())),
                }
            } else if let Some(leader) = status.leader
                && hops < HOPS_MAX
            {
                let request = Request::RenewSession { id, hops: hops + 1 };
                match self.ask_leader(replica, leader, &request).await? {
                    Some(Response::Session(session)) => return Ok(session),
                    Some(_) => return Err(mismatched()),
                    None => {}
                }
            }
            if self.rt.now() >= hold_until {
                return Err(CallError::NoLeader);
            }
            self.leadership_may_change(replica, seen).await;
        }
    }

    /// What the leader says to a request that may as well be asked twice. `None`: it could not be asked, or leads no more.
    async fn ask_leader(
        &self,
        replica: &Replica<R>,
        leader: NodeId,
        request: &Request,
    ) -> Result<Option<Response>, CallError> {
        let deadline = self.rt.now() + self.hold_timeout + CALL_SLACK;
        match self.call_leader(replica, leader, request, deadline).await {
            Ok(Response::Failed(CallError::NoLeader)) | Err(_) => Ok(None),
            Ok(Response::Failed(err)) => Err(err),
            Ok(response) => Ok(Some(response)),
        }
    }

    /// Calls who leads, and waits no longer than a moment once another is known to lead: who vanished without closing its
    /// connections would be waited for until the deadline (`scenarios/raft/a_lost_leader_hangs_nobody.toml`). Who handed over in order answers within that moment.
    async fn call_leader(
        &self,
        replica: &Replica<R>,
        leader: NodeId,
        request: &Request,
        deadline: Instant,
    ) -> Result<Response, CallFailure> {
        let replaced = async {
            let mut seen = replica.leadership_version();
            loop {
                seen = replica.leadership_changed(seen).await;
                self.rt.sleep(REPLACED_LEADER_PATIENCE).await;
                if replica.standing().leader.is_some_and(|now| now != leader) {
                    return;
                }
            }
        };
        let call = replica.call_server(leader, request, deadline);
        match select(pin!(call), pin!(replaced)).await {
            Either::Left((answer, _)) => answer,
            Either::Right(_) => Err(CallFailure::Unknown(format!(
                "server {leader}, which led, was replaced before it answered"
            ))),
        }
    }

    fn server_address(&self, server: NodeId) -> Option<SocketAddr> {
        self.members
            .all()
            .iter()
            .find(|member| member.id == server && member.is_server())?
            .rpc_address()
    }

    fn status_here(&self, replica: &Replica<R>) -> StatusReply {
        let status = replica.status();
        let mut peers: Vec<SocketAddr> = status.voters.iter().filter_map(|id| self.server_address(*id)).collect();
        peers.sort_unstable();
        StatusReply {
            leader: status.leader.and_then(|leader| self.server_address(leader)),
            peers,
        }
    }

    /// The servers of the configuration, as another server has them from the leader it knows; `None` without an answer.
    pub async fn configuration_at(&self, replica: &Replica<R>, server: NodeId) -> Option<Vec<RaftServer>> {
        // One hop less than the most: it asks its leader, and that one nobody.
        let request = Request::RaftConfiguration {
            stale: false,
            hops: HOPS_MAX.saturating_sub(1),
        };
        let deadline = self.rt.now() + STALE_CALL_TIMEOUT;
        match replica.call_server(server, &request, deadline).await {
            Ok(Response::RaftConfiguration(reply)) => Some(reply.servers),
            _ => None,
        }
    }

    async fn raft_configuration_here(
        &self,
        replica: &Replica<R>,
        stale: bool,
        hops: u8,
    ) -> Result<RaftConfigurationReply, CallError> {
        let hold_until = self.rt.now() + self.hold_timeout;
        loop {
            let seen = replica.leadership_version();
            let status = replica.status();
            if stale || status.is_leader {
                let members = self.members.all();
                let server = |id: &NodeId, is_voter| {
                    let member = members.iter().find(|member| member.id == *id);
                    RaftServer {
                        id: *id,
                        name: member.map(|member| member.name.clone()),
                        address: member.and_then(Member::rpc_address),
                        is_leader: status.leader == Some(*id),
                        is_voter,
                    }
                };
                let voters = status.voters.iter().map(|id| server(id, true));
                let learners = status.learners.iter().map(|id| server(id, false));
                return Ok(RaftConfigurationReply {
                    servers: voters.chain(learners).collect(),
                    index: status.configuration_index,
                });
            }
            if let Some(leader) = status.leader
                && hops < HOPS_MAX
            {
                let request = Request::RaftConfiguration { stale, hops: hops + 1 };
                match self.ask_leader(replica, leader, &request).await? {
                    Some(Response::RaftConfiguration(reply)) => return Ok(reply),
                    Some(_) => return Err(mismatched()),
                    None => {}
                }
            }
            if self.rt.now() >= hold_until {
                return Err(CallError::NoLeader);
            }
            self.leadership_may_change(replica, seen).await;
        }
    }

    /// A read for DNS: stale unless told otherwise, never blocking.
    pub fn dns_request(query: Query, consistency: Consistency, max_stale: Option<Duration>) -> ReadRequest {
        ReadRequest {
            query,
            consistency,
            min_index: ModifyIndex::ZERO,
            wait: Duration::ZERO,
            max_stale,
            hops: 0,
        }
    }
}

/// Whether any server answers it by itself, at once: nobody needs to wait for a leader.
fn is_stale(request: &Request) -> bool {
    matches!(
        request,
        Request::Status
            | Request::Datacenters
            | Request::Read(ReadRequest {
                consistency: Consistency::Stale,
                ..
            })
    )
}

fn mismatched() -> CallError {
    CallError::Failed("the server answered another kind of request".to_owned())
}

#[cfg(test)]
mod tests;
