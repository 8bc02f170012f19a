//! One server's replica of the state: starting it, writing, reading, and who leads.

use crate::identity::{self, IdentityError, Keeper};
use crate::log::{self, Log, LogError};
use crate::machine::{Machine, Published};
use crate::network::{AddressBook, Candidacy, Network, ServerGreeter};
use crate::service::{Answers, Contact};
use crate::snapshot::{SnapshotFileError, Snapshots};
use crate::transport::client::{CallFailure, Pool, Target};
use crate::transport::server;
use crate::types::{CommandBytes, RaftRt, StoredMembership, Types};
use crate::watches::Watches;
use futures::future::{Either, select};
use openraft::async_runtime::WatchReceiver as _;
use openraft::errors::{ClientWriteError, Fatal, ForwardToLeader, LinearizableReadError, RaftError};
use openraft::{Instant as _, LinearizerOption, Raft, ServerState, SnapshotPolicy};
use quorate_rt::{AnyDisk, Disk as _, Listener as _, Task};
use quorate_store::{Command, Consistency, Outcome, StateHash, Store};
use quorate_types::limits::RPC_FRAME_LEN_BYTES_MAX;
use quorate_types::{Instant, LogIndex, NodeId, Uuid};
use quorate_wire::codec;
use quorate_wire::frame::{ConnectionKind, What};
use quorate_wire::raft::Identity;
use quorate_wire::rpc::{Request, Response};
use quorate_wire::state::encode_command;
use std::collections::BTreeSet;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use thiserror::Error;
use tokio::sync::Notify;

/// A write that no quorum took within this has an unknown outcome: an isolated leader does not learn that it is one.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);
/// Calls that wait for consensus; the callers beyond wait for room.
const API_CALL_COUNT_MAX: u64 = 4096;
/// openraft's own limit on a snapshot's way. Ours are on each piece (`network`).
const SNAPSHOT_TIMEOUT: Duration = Duration::from_secs(24 * 3600);

/// Answers requests of other agents.
pub trait RequestHandler: Send + Sync + 'static {
    fn handle(&self, request: Request) -> impl Future<Output = Response> + Send;
}

pub struct ReplicaConfig<R: RaftRt> {
    pub node_id: NodeId,
    /// A hint for people, kept in the membership.
    pub node_name: String,
    /// The log and the snapshots are in `raft` below it.
    pub data_dir: PathBuf,
    pub disk: AnyDisk<R::Disk>,
    /// Where others reach this server; port 0 takes any.
    pub bind: SocketAddr,
    /// 1 is fast, 5 is Consul's default.
    pub raft_multiplier: u32,
    /// A snapshot is written after this many entries.
    pub snapshot_threshold: u64,
    /// Entries kept behind a snapshot, for followers that are a little behind.
    pub trailing_logs: u64,
    /// Connections from one address.
    pub connections_per_client_max: usize,
}

impl<R: RaftRt> ReplicaConfig<R> {
    /// Production's defaults for what has one.
    pub fn new(
        node_id: NodeId,
        node_name: String,
        data_dir: PathBuf,
        disk: AnyDisk<R::Disk>,
        bind: SocketAddr,
    ) -> Self {
        Self {
            node_id,
            node_name,
            data_dir,
            disk,
            bind,
            raft_multiplier: 5,
            snapshot_threshold: 16_384,
            trailing_logs: 10_000,
            connections_per_client_max: 100,
        }
    }
}

/// Why a replica did not start.
#[derive(Debug, Error)]
pub enum StartError {
    #[error("{doing} {path}")]
    Directory {
        doing: &'static str,
        path: PathBuf,
        #[source]
        err: io::Error,
    },
    /// In Consul's words, the system's reason included.
    #[error("Failed to start RPC layer: listen tcp {address}: bind: {}", quorate_rt::net::reason(.err))]
    Listen { address: SocketAddr, err: io::Error },
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error(transparent)]
    Log(#[from] LogError),
    #[error(transparent)]
    Snapshot(#[from] SnapshotFileError),
    #[error("start consensus: {0}")]
    Consensus(String),
}

/// Why a write was not acknowledged.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum WriteError {
    /// It did not happen here: ask the leader.
    #[error("not the leader")]
    NotLeader { leader: Option<NodeId> },
    /// It did not happen.
    #[error("No cluster leader")]
    NoLeader,
    /// It may have happened, or may yet happen.
    #[error("the outcome of the write is unknown: {0}")]
    Unknown(String),
    /// It did not happen: the replica is stopped.
    #[error("stopped")]
    Stopped,
    /// This server can go on no longer.
    #[error("{0}")]
    Fatal(String),
}

/// Why a read may not be answered here.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ReadError {
    #[error("not the leader")]
    NotLeader { leader: Option<NodeId> },
    #[error("No cluster leader")]
    NoLeader,
    #[error("stopped")]
    Stopped,
    #[error("{0}")]
    Fatal(String),
}

/// How a replica stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReplicaStatus {
    /// `None` also when the one known was not heard of for too long.
    pub leader: Option<NodeId>,
    pub is_leader: bool,
    pub term: u64,
    pub last_log_index: LogIndex,
    pub commit_index: LogIndex,
    pub last_applied: LogIndex,
    pub last_snapshot_index: LogIndex,
    pub voters: Vec<NodeId>,
    pub learners: Vec<NodeId>,
    /// Names as the membership has them.
    pub names: Vec<(NodeId, String)>,
    /// Of the entry that holds the configuration.
    pub configuration_index: LogIndex,
    /// Since the leader was heard of; zero on the leader, `None` before the first time.
    pub last_contact: Option<Duration>,
}

/// The part of [`ReplicaStatus`] that every read looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    pub leader: Option<NodeId>,
    pub is_leader: bool,
    pub last_contact: Option<Duration>,
}

/// What is watched of leadership.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Leadership {
    leader: Option<NodeId>,
    term: u64,
    is_leader: bool,
}

/// The timing that follows from `raft_multiplier`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Timing {
    pub heartbeat: Duration,
    pub election_min: Duration,
    pub election_max: Duration,
}

impl Timing {
    fn new(raft_multiplier: u32) -> Self {
        let multiplier = raft_multiplier.clamp(1, 10);
        Self {
            heartbeat: Duration::from_millis(30)
                .saturating_mul(multiplier)
                .max(Duration::from_millis(50)),
            election_min: Duration::from_millis(100)
                .saturating_mul(multiplier)
                .max(Duration::from_millis(300)),
            election_max: Duration::from_millis(200)
                .saturating_mul(multiplier)
                .max(Duration::from_millis(600)),
        }
    }
    /// openraft's lease, for leader and followers alike.
    pub fn lease(&self) -> Duration {
        self.election_max
    }
}

type Metrics<R> = openraft::metrics::RaftMetrics<Types<R>>;
type ServerMetrics<R> = openraft::metrics::RaftServerMetrics<Types<R>>;
pub(crate) type Consensus<R> = Raft<Types<R>, Machine<R>>;

pub(crate) struct Inner<R: RaftRt> {
    pub rt: R,
    pub node_id: NodeId,
    pub node_name: String,
    pub raft: Consensus<R>,
    pub log: Log<AnyDisk<R::Disk>>,
    pub keeper: Arc<Keeper<R>>,
    pub book: Arc<AddressBook>,
    pub pool: Pool<R>,
    pub timing: Timing,
    published: Arc<Published>,
    contact: Arc<Contact>,
    local_addr: SocketAddr,
    leadership: Mutex<(u64, Leadership)>,
    leadership_moved: Notify,
    fatal: Mutex<Option<String>>,
    fatal_noted: Notify,
    is_stopping: Arc<AtomicBool>,
    /// Ends this server's own tasks with the last clone.
    tasks: Mutex<Vec<Task>>,
    writer: Mutex<Option<Task>>,
    clocks: Clocks<R>,
    lease_reads: LeaseReads,
    /// Held as long as the directory is ours.
    lock: Mutex<Option<Box<dyn std::any::Any + Send + Sync>>>,
}

/// One server's part in the cluster. Clones are the same replica; it ends with [`Replica::stop`] or the last clone.
pub struct Replica<R: RaftRt> {
    pub(crate) inner: Arc<Inner<R>>,
}

impl<R: RaftRt> Clone for Replica<R> {
    fn clone(&self) -> Self {
        Self {
            inner: Arc::clone(&self.inner),
        }
    }
}

impl<R: RaftRt> Drop for Inner<R> {
    fn drop(&mut self) {
        for task in locked(&self.tasks).drain(..) {
            task.abort();
        }
        self.log.close();
        self.pool.stop();
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Tells time that consensus did not count.
///
/// The lease is kept by the clock of the consensus library's runtime, which may stand still while the machine is
/// suspended; the door's clock does not. When the two parted since the quorum last confirmed us, the lease is not believed.
struct Clocks<R: RaftRt> {
    raft_start: <R::AsyncRuntime as openraft::AsyncRuntime>::Instant,
    start: Instant,
    /// By how much the door's clock was ahead, in nanoseconds, when a quorum last confirmed us.
    ahead_nanos: AtomicU64,
}

impl<R: RaftRt> Clocks<R> {
    fn new(rt: &R) -> Self {
        Self {
            raft_start: openraft::Instant::now(),
            start: rt.now(),
            ahead_nanos: AtomicU64::new(0),
        }
    }
    fn ahead(&self, rt: &R) -> u64 {
        // The library's clock first: what passes between the two readings only makes us more careful.
        let raft = self.raft_start.elapsed();
        let door = rt.now() - self.start;
        u64::try_from(door.saturating_sub(raft).as_nanos()).unwrap_or(u64::MAX)
    }
    fn is_lease_credible(&self, rt: &R, margin: Duration) -> bool {
        let moved = self.ahead(rt).saturating_sub(self.ahead_nanos.load(Ordering::Relaxed));
        Duration::from_nanos(moved) < margin
    }
}

/// In which terms a lease read may be answered here without asking consensus' task, which is one for all reads.
#[derive(Default)]
struct LeaseReads {
    /// A read went the whole way in this term: the state holds all that leaders before acknowledged. 0: in none yet.
    confirmed_term: AtomicU64,
    /// Up to this term leadership was, or is being, handed over: the successor does not wait for the lease to end.
    handed_over_term: AtomicU64,
}

/// Keeps lease reads off while it lives, and in the term in which it ends: an order to take over may arrive late.
pub(crate) struct HandOver<'a, R: RaftRt>(&'a Replica<R>);

impl<R: RaftRt> Drop for HandOver<'_, R> {
    fn drop(&mut self) {
        let term = self.0.inner.raft.metrics().borrow_watched().current_term;
        self.0.inner.lease_reads.handed_over_term.store(term, Ordering::SeqCst);
    }
}

impl<R: RaftRt> Replica<R> {
    /// To be held from before the order to take over is given until its end is known.
    pub(crate) fn hand_over(&self) -> HandOver<'_, R> {
        self.inner
            .lease_reads
            .handed_over_term
            .store(u64::MAX, Ordering::SeqCst);
        HandOver(self)
    }

    /// The term in which this server leads, and when a quorum last confirmed it there.
    fn led_term(&self) -> Option<(u64, Option<Duration>)> {
        let metrics = self.inner.raft.metrics();
        let metrics = metrics.borrow_watched();
        (metrics.state == ServerState::Leader).then(|| {
            let acked = metrics.last_quorum_acked;
            (metrics.current_term, acked.map(|acked| acked.into_inner().elapsed()))
        })
    }

    /// Opens or makes the log, listens, and takes part in the cluster it belongs to, if any.
    pub async fn start(rt: R, config: ReplicaConfig<R>, handler: impl RequestHandler) -> Result<Self, StartError> {
        let directory = config.data_dir.join("raft");
        let failed = |doing, path: &PathBuf| {
            let path = path.clone();
            move |err| StartError::Directory { doing, path, err }
        };
        let disk = config.disk.clone();
        disk.create_dir_all(&directory)
            .await
            .map_err(failed("create", &directory))?;
        disk.sync_dir(&config.data_dir)
            .await
            .map_err(failed("sync", &config.data_dir))?;
        let lock = disk
            .lock(&directory.join("lock"))
            .await
            .map_err(failed("lock", &directory))?;

        let found = identity::read::<R>(&disk, &directory, config.node_id).await?;
        let is_known = found.is_some();
        let identity = found.unwrap_or_else(|| Identity {
            node_id: config.node_id,
            disk_id: rt.uuid(),
            cluster_id: None,
            pledge: None,
        });
        let options = log::Options::default();
        let disk_id = identity.disk_id;
        let keeper = Keeper::<R>::new(disk.clone(), &directory, config.node_name.clone(), identity.clone());
        let opened = if is_known {
            Log::open(disk.clone(), &directory, disk_id, options).await?
        } else {
            // The identity comes last: a log without one is the leftover of an unfinished start.
            let opened = Log::create(disk.clone(), &directory, disk_id, options).await?;
            keeper.save(identity).await?;
            opened
        };
        let snapshots = Snapshots::<R>::new(disk, &directory);
        let newest = snapshots.open_for(&opened.log).await?;

        let listener = rt.tcp_listen(config.bind).await.map_err(|err| StartError::Listen {
            address: config.bind,
            err,
        })?;
        let local_addr = listener.local_addr().map_err(|err| StartError::Listen {
            address: config.bind,
            err,
        })?;

        let timing = Timing::new(config.raft_multiplier);
        let membership = opened
            .membership
            .map(|(_, membership)| membership)
            .or_else(|| newest.as_ref().map(|(_, meta, _)| meta.membership.clone()))
            .unwrap_or_default();
        let is_only_voter = !membership.configs.is_empty()
            && membership
                .configs
                .iter()
                .all(|voters| *voters == BTreeSet::from([config.node_id]));
        let is_restart = !opened.log.is_pristine();
        let must_wait = is_restart && !is_only_voter;
        let votes_from = if must_wait {
            rt.now() + timing.lease()
        } else {
            Instant::ZERO
        };

        let published = Arc::new(Published::default());
        let machine = Machine::new(rt.clone(), snapshots.clone(), Arc::clone(&published), newest)
            .map_err(|err| StartError::Consensus(err.to_string()))?;
        let keeper = Arc::new(keeper);
        let book = Arc::new(AddressBook::default());
        book.set_disks(
            membership
                .servers
                .iter()
                .map(|(node, server)| (*node, server.disk_id))
                .collect(),
        );
        let pool = Pool::new(
            rt.clone(),
            ServerGreeter {
                keeper: Arc::clone(&keeper),
                book: Arc::clone(&book),
            },
        );
        let candidacy = Arc::new(Candidacy::default());
        let network = Network {
            rt: rt.clone(),
            pool: pool.clone(),
            book: Arc::clone(&book),
            candidacy: Arc::clone(&candidacy),
        };
        let log = opened.log;
        let written = Arc::new(Mutex::new(None));
        let writer = {
            let (rt_of_it, written, writer) = (rt.clone(), Arc::clone(&written), opened.writer);
            rt.spawn("raft-log", async move {
                if let Err(err) = writer.run(rt_of_it).await {
                    tracing::error!(err = chain(&err), "the raft log failed");
                    *locked(&written) = Some(chain(&err));
                }
            })
        };
        let raft_config = openraft_config(&config, timing, !must_wait)?;
        let raft = Raft::new(
            config.node_id,
            Arc::new(raft_config),
            network,
            crate::storage::LogStorage::<R>::new(log.clone()),
            machine,
        )
        .await
        .map_err(|err| StartError::Consensus(fatal_text(&err, &written)))?;

        let contact = Arc::new(Contact::default());
        let is_stopping = Arc::new(AtomicBool::new(false));
        let inner = Arc::new(Inner {
            clocks: Clocks::new(&rt),
            lease_reads: LeaseReads::default(),
            rt: rt.clone(),
            node_id: config.node_id,
            node_name: config.node_name,
            raft: raft.clone(),
            log: log.clone(),
            keeper: Arc::clone(&keeper),
            book: Arc::clone(&book),
            pool,
            timing,
            published,
            contact: Arc::clone(&contact),
            local_addr,
            leadership: Mutex::default(),
            leadership_moved: Notify::new(),
            fatal: Mutex::new(None),
            fatal_noted: Notify::new(),
            is_stopping: Arc::clone(&is_stopping),
            tasks: Mutex::default(),
            writer: Mutex::new(Some(writer)),
            lock: Mutex::new(Some(lock)),
        });
        let service = Arc::new(Answers {
            rt: rt.clone(),
            raft: raft.clone(),
            log,
            keeper,
            book,
            snapshots,
            contact,
            handler,
            votes_from,
            is_stopping,
            transfer_count: AtomicU64::new(0),
            candidacy,
            // Shorter than any election timeout.
            candidacy_time: timing.election_min / 2,
        });
        let serve = server::serve(rt.clone(), listener, service, config.connections_per_client_max);
        let mut tasks = vec![rt.spawn("rpc-accept", serve)];
        tasks.push(rt.spawn(
            "raft-watch",
            watch_consensus(Arc::downgrade(&inner), raft.clone(), written),
        ));
        if must_wait {
            let (rt_of_it, raft) = (rt.clone(), raft.clone());
            tasks.push(rt.spawn("raft-stand", async move {
                rt_of_it.sleep_until(votes_from).await;
                raft.runtime_config().elect(true);
            }));
        }
        *locked(&inner.tasks) = tasks;
        if is_only_voter {
            // Nobody else could be promised anything: there is nothing to wait for.
            let elect = raft.trigger().elect(false).await;
            elect.map_err(|err| StartError::Consensus(err.to_string()))?;
        }
        Ok(Self { inner })
    }

    pub fn node_id(&self) -> NodeId {
        self.inner.node_id
    }
    /// Where this server listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.inner.local_addr
    }
    /// The cluster this server is part of, or pledged to.
    pub fn cluster_id(&self) -> Option<Uuid> {
        self.inner.keeper.cluster_id()
    }
    /// Whether this server has a log: it took part in a cluster.
    pub fn is_initialized(&self) -> bool {
        !self.inner.log.is_pristine()
    }

    /// Gossip tells where a server is reached.
    pub fn set_address(&self, node: NodeId, address: SocketAddr) {
        let inner = &self.inner;
        if let Some(old) = inner.book.set_address(node, address)
            && old != address
        {
            inner.pool.forget(old);
        }
    }
    pub fn forget_address(&self, node: NodeId) {
        if let Some(old) = self.inner.book.forget_address(node) {
            self.inner.pool.forget(old);
        }
    }
    pub fn address(&self, node: NodeId) -> Option<SocketAddr> {
        if node == self.inner.node_id {
            return Some(self.inner.local_addr);
        }
        self.inner.book.address(node)
    }

    /// The state as of the last applied batch. It stays as it is while it is held.
    pub fn snapshot(&self) -> Arc<Store> {
        self.inner.published.store()
    }
    /// Who waits for changes: register, then read [`Self::snapshot`], then wait.
    pub fn watches(&self) -> &Watches {
        &self.inner.published.watches
    }

    /// Proposes a command; returns once it is committed and applied here.
    pub async fn write(&self, command: &Command) -> Result<(LogIndex, Outcome), WriteError> {
        let bytes = encode_command(command);
        if bytes.len() > RPC_FRAME_LEN_BYTES_MAX / 2 {
            return Err(WriteError::Fatal(format!(
                "a command of {} bytes is too large",
                bytes.len()
            )));
        }
        let inner = &self.inner;
        let propose = inner.raft.client_write(CommandBytes(bytes.into()));
        match inner.rt.timeout(WRITE_TIMEOUT, propose).await {
            Err(_) => Err(WriteError::Unknown("no quorum took it in time".to_owned())),
            Ok(Ok(written)) => {
                let outcome = written.data.0.expect("a command has an outcome");
                Ok((LogIndex(written.log_id.index), outcome))
            }
            Ok(Err(RaftError::APIError(ClientWriteError::ForwardToLeader(forward)))) => {
                Err(match self.elsewhere(&forward) {
                    Some(leader) => WriteError::NotLeader { leader: Some(leader) },
                    None => WriteError::NoLeader,
                })
            }
            Ok(Err(RaftError::APIError(err))) => Err(WriteError::Unknown(err.to_string())),
            Ok(Err(RaftError::Fatal(err))) => Err(if inner.is_stopping.load(Ordering::Relaxed) {
                // It may have been on its way to others.
                WriteError::Unknown("this server is stopping".to_owned())
            } else {
                WriteError::Unknown(self.fatal_reason().unwrap_or_else(|| err.to_string()))
            }),
        }
    }

    fn elsewhere(&self, forward: &ForwardToLeader<Types<R>>) -> Option<NodeId> {
        let leader = forward.leader_id?;
        (leader != self.inner.node_id && self.standing().leader == Some(leader)).then_some(leader)
    }

    /// On return, [`Self::snapshot`] is as fresh as asked.
    pub async fn read_barrier(&self, consistency: Consistency) -> Result<(), ReadError> {
        let inner = &self.inner;
        let lease = inner.timing.lease();
        let margin = lease / 20;
        let led = self.led_term();
        let ack_age_max = match (consistency, led) {
            (Consistency::Stale, _) => return Ok(()),
            // Openraft gives leader and follower the same lease; a tenth of it is the margin for drifting clocks.
            (Consistency::Default, Some((term, acked_age)))
                if inner.lease_reads.handed_over_term.load(Ordering::SeqCst) < term
                    && inner.clocks.is_lease_credible(&inner.rt, margin) =>
            {
                let ack_age_max = lease * 9 / 10;
                // What a leader acknowledged was published before. What leaders before it acknowledged was published
                // when the first read of the term came back. So the state is as fresh as asked while nobody else leads,
                // which the quorum promised; the single voter's promise to itself has no age and goes the whole way.
                if acked_age.is_some_and(|age| age < ack_age_max)
                    && inner.lease_reads.confirmed_term.load(Ordering::Acquire) == term
                {
                    return Ok(());
                }
                ack_age_max
            }
            (Consistency::Default | Consistency::Consistent, _) => Duration::ZERO,
        };
        let ahead = inner.clocks.ahead(&inner.rt);
        let option = LinearizerOption::new(Some(ack_age_max), true);
        let fatal = |err: Fatal<Types<R>>| match (inner.is_stopping.load(Ordering::Relaxed), err) {
            (true, _) => ReadError::Stopped,
            (false, err) => ReadError::Fatal(self.fatal_reason().unwrap_or_else(|| err.to_string())),
        };
        // Boxed: these are large, seldom needed, and would be part of every read that waits for a change.
        match Box::pin(inner.raft.get_read_linearizer(option)).await {
            Ok(linearizer) => {
                if ack_age_max.is_zero() {
                    inner.clocks.ahead_nanos.store(ahead, Ordering::Relaxed);
                }
                Box::pin(linearizer.await_ready(&inner.raft)).await.map_err(fatal)?;
                // Who led in one term before and after led in it when the read was made.
                if let (Some((before, _)), Some((after, _))) = (led, self.led_term())
                    && before == after
                {
                    inner.lease_reads.confirmed_term.store(before, Ordering::Release);
                }
                Ok(())
            }
            Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(forward))) => {
                Err(match self.elsewhere(&forward) {
                    Some(leader) => ReadError::NotLeader { leader: Some(leader) },
                    None => ReadError::NoLeader,
                })
            }
            Err(RaftError::APIError(LinearizableReadError::QuorumNotEnough(_))) => Err(ReadError::NoLeader),
            Err(RaftError::Fatal(err)) => Err(fatal(err)),
        }
    }

    /// Cheap: it allocates nothing.
    pub fn standing(&self) -> Standing {
        let metrics = self.inner.raft.metrics();
        let metrics = metrics.borrow_watched();
        let server = self.inner.raft.server_metrics();
        let server = server.borrow_watched();
        self.standing_in(&metrics, &server)
    }

    fn standing_in(&self, metrics: &Metrics<R>, server: &ServerMetrics<R>) -> Standing {
        let inner = &self.inner;
        let patience = inner.timing.lease() * 2;
        let mut voters = server.membership_config.voter_ids();
        let first = voters.next();
        let is_only_voter = voters.all(|voter| Some(voter) == first);
        let is_leader = server.state == ServerState::Leader
            && (is_only_voter
                || metrics
                    .last_quorum_acked
                    .is_some_and(|acked| acked.into_inner().elapsed() < patience));
        let last_contact = if is_leader {
            Some(Duration::ZERO)
        } else {
            inner.contact.last().map(|at| inner.rt.now() - at)
        };
        let leader = server.current_leader.filter(|leader| match *leader == inner.node_id {
            true => is_leader,
            false => last_contact.is_some_and(|since| since < patience),
        });
        Standing {
            leader,
            is_leader,
            last_contact,
        }
    }

    pub fn status(&self) -> ReplicaStatus {
        let inner = &self.inner;
        let metrics = inner.raft.metrics();
        let metrics = metrics.borrow_watched();
        // Leadership is read where `watch_consensus` reads it: the two channels are not written at one time, and who was
        // told of a move must find it here.
        let server = inner.raft.server_metrics();
        let server = server.borrow_watched();
        let index = |log_id: &Option<crate::types::LogId>| LogIndex(log_id.as_ref().map_or(0, |log_id| log_id.index));
        let membership: &StoredMembership = &server.membership_config;
        let voters: BTreeSet<NodeId> = membership.voter_ids().collect();
        let Standing {
            leader,
            is_leader,
            last_contact,
        } = self.standing_in(&metrics, &server);
        ReplicaStatus {
            leader,
            is_leader,
            term: metrics.current_term,
            last_log_index: LogIndex(metrics.last_log_index.unwrap_or(0)),
            commit_index: index(&metrics.local_committed),
            last_applied: index(&metrics.last_applied),
            last_snapshot_index: index(&metrics.snapshot),
            learners: membership
                .nodes()
                .map(|(node, _)| *node)
                .filter(|node| !voters.contains(node))
                .collect(),
            names: membership
                .nodes()
                .map(|(node, server)| (*node, server.name.clone()))
                .collect(),
            configuration_index: index(membership.log_id()),
            voters: voters.into_iter().collect(),
            last_contact,
        }
    }

    /// Moves with every change of leadership; what to pass to [`Self::leadership_changed`].
    pub fn leadership_version(&self) -> u64 {
        locked(&self.inner.leadership).0
    }

    /// Waits until leadership moved since `seen` (0 at first) and returns what to pass the next time.
    pub async fn leadership_changed(&self, seen: u64) -> u64 {
        loop {
            let moved = self.inner.leadership_moved.notified();
            let (now, _) = *locked(&self.inner.leadership);
            if now != seen {
                return now;
            }
            moved.await;
        }
    }

    /// Waits for a hash of this server's state taken after the one at `seen` (0 at first), to be written to the log.
    pub async fn next_state_hash(&self, seen: LogIndex) -> StateHash {
        let (at, hash) = self.inner.published.next_hash(seen).await;
        StateHash {
            server: self.inner.node_id,
            at,
            rules: StateHash::RULES,
            hash,
        }
    }

    /// Waits until this server can go on no longer, and says why.
    pub async fn failed(&self) -> String {
        loop {
            let noted = self.inner.fatal_noted.notified();
            if let Some(why) = self.fatal_reason() {
                return why;
            }
            noted.await;
        }
    }

    fn fatal_reason(&self) -> Option<String> {
        locked(&self.inner.fatal).clone()
    }

    /// Calls another agent by its address.
    pub async fn call(
        &self,
        address: SocketAddr,
        request: &Request,
        deadline: Instant,
    ) -> Result<Response, CallFailure> {
        request_call(&self.inner.pool, address, None, request, deadline).await
    }

    /// Calls a server by its id, where gossip last saw it.
    pub async fn call_server(
        &self,
        node: NodeId,
        request: &Request,
        deadline: Instant,
    ) -> Result<Response, CallFailure> {
        let address = self
            .inner
            .book
            .address(node)
            .ok_or_else(|| CallFailure::NotSent(format!("the address of server {node} is not known")))?;
        request_call(&self.inner.pool, address, Some(node), request, deadline).await
    }

    /// Ends this server's part: no more requests, consensus shut down, the log written.
    pub async fn stop(&self) {
        let inner = &self.inner;
        if inner.is_stopping.swap(true, Ordering::Relaxed) {
            return;
        }
        inner.published.watches.stop();
        let tasks = std::mem::take(&mut *locked(&inner.tasks));
        for task in tasks {
            task.abort();
            // Once it is gone, so is what it held: the port can be bound again.
            let _ = task.join().await;
        }
        inner.pool.stop();
        if let Err(err) = inner.raft.shutdown().await {
            tracing::warn!(%err, "shut consensus down");
        }
        inner.log.close();
        let writer = locked(&inner.writer).take();
        if let Some(writer) = writer {
            // An error was logged where it happened.
            let _ = writer.join().await;
        }
        locked(&inner.lock).take();
        inner.leadership_moved.notify_waiters();
    }
}

/// An error and its sources on one line.
pub(crate) fn chain(err: &dyn std::error::Error) -> String {
    let mut text = err.to_string();
    let mut source = err.source();
    while let Some(err) = source {
        text.push_str(": ");
        text.push_str(&err.to_string());
        source = err.source();
    }
    text
}

/// The log's own reason comes before what consensus makes of it.
fn fatal_text<R: RaftRt>(err: &Fatal<Types<R>>, written: &Mutex<Option<String>>) -> String {
    locked(written).clone().unwrap_or_else(|| chain(err))
}

fn openraft_config<R: RaftRt>(
    config: &ReplicaConfig<R>,
    timing: Timing,
    may_stand: bool,
) -> Result<openraft::Config, StartError> {
    let millis = |duration: Duration| u64::try_from(duration.as_millis()).expect("seconds at most");
    openraft::Config {
        cluster_name: "quorate".to_owned(),
        heartbeat_interval: millis(timing.heartbeat),
        election_timeout_min: millis(timing.election_min),
        election_timeout_max: millis(timing.election_max),
        install_snapshot_timeout: millis(SNAPSHOT_TIMEOUT),
        max_payload_entries: 1024,
        replication_lag_threshold: config.snapshot_threshold.saturating_add(config.trailing_logs),
        snapshot_policy: SnapshotPolicy::LogsSinceLast(config.snapshot_threshold),
        max_in_snapshot_log_to_keep: config.trailing_logs,
        api_channel_size: Some(API_CALL_COUNT_MAX),
        enable_elect: may_stand,
        enable_pre_vote: Some(true),
        // A follower's last write may be damaged after it was acknowledged, and is cut then: it must be given again. Otherwise
        // the leader takes it for delivered for ever. What is committed stays so: a quorum still holds it.
        allow_log_reversion: Some(true),
        // A leader that restarts has forgotten what it promised, like everyone else.
        enable_leader_restore: Some(false),
        backoff: "20ms 40ms ...500ms".to_owned(),
        ..openraft::Config::default()
    }
    .validate()
    .map_err(|err| StartError::Consensus(err.to_string()))
}

/// Follows consensus: tells leadership's moves, keeps the book of disks, names a fresh cluster, notes a fatal end.
async fn watch_consensus<R: RaftRt>(
    inner: std::sync::Weak<Inner<R>>,
    raft: Consensus<R>,
    written: Arc<Mutex<Option<String>>>,
) {
    let mut metrics = raft.server_metrics();
    let all = raft.metrics();
    loop {
        {
            let Some(inner) = inner.upgrade() else {
                return;
            };
            let leadership = {
                let now = metrics.borrow_and_update();
                let nodes = now.membership_config.nodes();
                let disks = nodes.map(|(node, server)| (*node, server.disk_id));
                inner.book.set_disks(disks.collect());
                Leadership {
                    leader: now.current_leader,
                    term: now.vote.leader_id.term,
                    is_leader: now.state == ServerState::Leader,
                }
            };
            let before = {
                let mut current = locked(&inner.leadership);
                let before = current.1;
                if before != leadership {
                    *current = (current.0 + 1, leadership);
                }
                before
            };
            if before != leadership {
                tracing::debug!(?leadership, "leadership moved");
                if before.is_leader && !leadership.is_leader {
                    inner.published.watches.leadership_lost();
                }
                inner.leadership_moved.notify_waiters();
                if leadership.is_leader {
                    let (inner, rt) = (Arc::downgrade(&inner), inner.rt.clone());
                    rt.spawn("raft-name-cluster", name_cluster(inner));
                }
            }
        }
        let is_over = metrics.changed().await.is_err();
        let running = all.borrow_watched().running_state.clone();
        if is_over || running.is_err() {
            if let Some(inner) = inner.upgrade()
                && !inner.is_stopping.load(Ordering::Relaxed)
            {
                let why = match &running {
                    Err(err) => fatal_text::<R>(err, &written),
                    Ok(()) => locked(&written).clone().unwrap_or_else(|| "consensus ended".to_owned()),
                };
                tracing::error!(%why, "this server can go on no longer");
                *locked(&inner.fatal) = Some(why);
                inner.fatal_noted.notify_waiters();
                inner.published.watches.stop();
            }
            return;
        }
    }
}

/// The first leader of a cluster writes its name into the state; it tries for as long as it leads.
async fn name_cluster<R: RaftRt>(inner: std::sync::Weak<Inner<R>>) {
    loop {
        let Some(replica) = inner.upgrade().map(|inner| Replica { inner }) else {
            return;
        };
        let is_over = replica.inner.is_stopping.load(Ordering::Relaxed) || replica.fatal_reason().is_some();
        let leads = locked(&replica.inner.leadership).1.is_leader;
        let Some(id) = replica.cluster_id().filter(|_| leads && !is_over) else {
            return;
        };
        if replica.read_barrier(Consistency::Default).await.is_ok() {
            if replica.snapshot().cluster_id().is_some() {
                return;
            }
            let at = replica.inner.rt.wall_now();
            if let Err(err) = replica.write(&Command::NameCluster { id, at }).await {
                tracing::debug!(%err, "name the cluster");
            }
        }
        let (rt, delay) = (replica.inner.rt.clone(), replica.inner.timing.lease());
        // Nobody is kept alive by waiting.
        drop(replica);
        rt.sleep(delay).await;
    }
}

/// Makes an application's call.
pub(crate) async fn request_call<R: quorate_rt::Rt>(
    pool: &Pool<R>,
    address: SocketAddr,
    node: Option<NodeId>,
    request: &Request,
    deadline: Instant,
) -> Result<Response, CallFailure> {
    let target = Target {
        address,
        kind: ConnectionKind::Request,
        node,
    };
    let body = codec::encode(request);
    let reply = pool.call(target, What::Call, body.into(), deadline).await?;
    codec::decode(&reply, RPC_FRAME_LEN_BYTES_MAX)
        .map_err(|err| CallFailure::Unknown(format!("the answer of {address} makes no sense: {err}")))
}

/// Waits for `work`, but no longer than until `deadline`.
pub(crate) async fn by<R: quorate_rt::Rt, T>(rt: &R, deadline: Instant, work: impl Future<Output = T>) -> Option<T> {
    match select(pin!(work), pin!(rt.sleep_until(deadline))).await {
        Either::Left((done, _)) => Some(done),
        Either::Right(_) => None,
    }
}
