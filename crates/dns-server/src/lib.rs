//! UDP and TCP around `dns-answer`: moves bytes, keeps time, asks the catalog and the recursors.
//!
//! In: datagrams and streams of clients, a [`Catalog`] that answers queries, [`Settings`] that a reload replaces.
//! Out: replies.
//! Promises: a question whose answer is at hand is answered in the task that received it; one that waits holds up no
//! other. What waits is bounded ([`Limits`]): beyond it datagrams are dropped and connections closed, and counted.
//! Every question is answered, dropped or given up within `Limits::question_timeout`. `stop`, or dropping the server,
//! ends everything it started.
//! Not here: which records answer (`dns-answer`), where the catalog is (the agent's), ACLs.

mod recursor;
mod settings;
mod tcp;
mod udp;

pub use settings::{Limits, RecursorStrategy, Settings};

use arc_swap::ArcSwap;
use quorate_dns_answer::{LookupFailure, Received, Resolution, Step, Transport, receive};
use quorate_rt::{Listener as _, Rng, Rt, Task, Udp as _};
use quorate_store::{Evaluation, Query};
use settings::Active;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use thiserror::Error;

/// Tasks that receive from one UDP socket: more than one so that several processors answer.
const UDP_RECEIVER_COUNT: usize = 4;

/// Why a query has no answer.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum LookupError {
    #[error("no servers are known")]
    NoServers,
    #[error("no path to the datacenter")]
    NoPath,
    #[error("{0}")]
    Failed(String),
}

/// What the DNS server needs of its agent.
///
/// Duties of an implementer: answer as fresh as `dns_config` asks for, with what the DNS token may see and no more; be
/// ready at once when the state is at hand; end by itself or be droppable at any point.
pub trait Catalog: Clone + Send + Sync + 'static {
    /// The answer of `datacenter`; `None`: the agent's own.
    fn evaluate(
        &self,
        datacenter: Option<&str>,
        query: Query,
    ) -> impl Future<Output = Result<Evaluation, LookupError>> + Send;
    /// A question of this type was answered, after so long. Costs next to nothing.
    fn observe_question(&self, qtype: u16, took: Duration);
}

/// Why the server does not start.
#[derive(Debug, Error)]
pub enum StartError {
    /// In Go's words, the system's reason included.
    #[error("listen {network} {address}: bind: {}", quorate_rt::net::reason(.err))]
    Listen {
        /// `udp` or `tcp`.
        network: &'static str,
        address: SocketAddr,
        err: io::Error,
    },
}

/// Where one configured address is served. The ports differ only when port 0 was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bound {
    pub udp: SocketAddr,
    pub tcp: SocketAddr,
}

/// What happened since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Messages that were answered, by any code.
    pub replies: u64,
    /// Datagrams dropped because too many questions were waiting.
    pub dropped_datagrams: u64,
    /// Connections closed because too many were open.
    pub refused_connections: u64,
    /// Questions given up at their deadline.
    pub timeouts: u64,
}

pub(crate) struct Shared<R: Rt, C> {
    rt: R,
    catalog: C,
    settings: ArcSwap<Active>,
    own_addresses: Vec<SocketAddr>,
    waiting_count: AtomicUsize,
    connection_count: AtomicUsize,
    replies: AtomicU64,
    dropped_datagrams: AtomicU64,
    refused_connections: AtomicU64,
    timeouts: AtomicU64,
}

/// A running DNS server.
pub struct DnsServer<R: Rt, C: Catalog> {
    shared: Arc<Shared<R, C>>,
    bound: Vec<Bound>,
    tasks: Vec<Task>,
}

impl<R: Rt, C: Catalog> DnsServer<R, C> {
    /// Serves UDP and TCP on every address, or fails without serving any.
    pub async fn start(rt: R, addresses: Vec<SocketAddr>, settings: Settings, catalog: C) -> Result<Self, StartError> {
        let (mut bound, mut sockets) = (Vec::new(), Vec::new());
        for address in addresses {
            let failed = |network| move |err| StartError::Listen { network, address, err };
            let udp = rt.udp_bind(address).await.map_err(failed("udp"))?;
            let tcp = rt.tcp_listen(address).await.map_err(failed("tcp"))?;
            bound.push(Bound {
                udp: udp.local_addr().map_err(failed("udp"))?,
                tcp: tcp.local_addr().map_err(failed("tcp"))?,
            });
            sockets.push((Arc::new(udp), tcp));
        }
        let own_addresses = bound
            .iter()
            .flat_map(|bound| [bound.udp, bound.tcp])
            .collect::<Vec<_>>();
        let shared = Arc::new(Shared {
            settings: ArcSwap::from_pointee(Active::new(settings, &own_addresses)),
            rt,
            catalog,
            own_addresses,
            waiting_count: AtomicUsize::new(0),
            connection_count: AtomicUsize::new(0),
            replies: AtomicU64::new(0),
            dropped_datagrams: AtomicU64::new(0),
            refused_connections: AtomicU64::new(0),
            timeouts: AtomicU64::new(0),
        });
        let mut tasks = Vec::new();
        for (udp, tcp) in sockets {
            for _ in 0..UDP_RECEIVER_COUNT {
                let work = udp::serve(Draws::new(&shared), udp.clone());
                tasks.push(shared.rt.spawn("dns-udp", work));
            }
            tasks.push(shared.rt.spawn("dns-tcp", tcp::serve(Draws::new(&shared), tcp)));
        }
        Ok(Self { shared, bound, tasks })
    }

    /// Questions received from now on are answered under these settings.
    pub fn reload(&self, settings: Settings) {
        let active = Active::new(settings, &self.shared.own_addresses);
        self.shared.settings.store(Arc::new(active));
    }

    /// In the order of the configured addresses.
    pub fn bound(&self) -> &[Bound] {
        &self.bound
    }

    pub fn counts(&self) -> Counts {
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Counts {
            replies: read(&self.shared.replies),
            dropped_datagrams: read(&self.shared.dropped_datagrams),
            refused_connections: read(&self.shared.refused_connections),
            timeouts: read(&self.shared.timeouts),
        }
    }

    /// Ends all tasks and closes the sockets before it returns.
    pub async fn stop(mut self) {
        let tasks = std::mem::take(&mut self.tasks);
        tasks.iter().for_each(Task::abort);
        for task in tasks {
            // Aborted is how it is meant to end.
            let _ = task.join().await;
        }
    }
}

impl<R: Rt, C: Catalog> Drop for DnsServer<R, C> {
    fn drop(&mut self) {
        self.tasks.iter().for_each(Task::abort);
    }
}

/// The server as one of its tasks sees it: with a generator of its own, so that tasks do not wait for one another.
pub(crate) struct Draws<R: Rt, C> {
    shared: Arc<Shared<R, C>>,
    /// Locked for one draw or one shuffle, never across an await.
    rng: Arc<Mutex<Rng>>,
}

impl<R: Rt, C> Clone for Draws<R, C> {
    fn clone(&self) -> Self {
        Self {
            shared: self.shared.clone(),
            rng: self.rng.clone(),
        }
    }
}

impl<R: Rt, C: Catalog> Draws<R, C> {
    fn new(shared: &Arc<Shared<R, C>>) -> Self {
        Self {
            shared: shared.clone(),
            rng: Arc::new(Mutex::new(shared.rt.rng("dns"))),
        }
    }

    /// A generator is as good after a panic as before.
    pub(crate) fn with_rng<T>(&self, draw: impl FnOnce(&mut Rng) -> T) -> T {
        draw(&mut self.rng.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The bytes to send back; `None`: none.
    pub(crate) async fn reply_to(&self, message: &[u8], transport: Transport) -> Option<Vec<u8>> {
        let question = match receive(message) {
            Received::Ignored => return None,
            Received::Rejected(reply) => {
                self.shared.replies.fetch_add(1, Ordering::Relaxed);
                return Some(reply);
            }
            Received::Asked(question) => question,
        };
        let (qtype, began_at) = (question.qtype, self.shared.rt.now());
        let active = self.shared.settings.load_full();
        // The serial is 32 bits of wall time (RFC 1982 arithmetic lets it wrap).
        let now_unix_secs = self.shared.rt.wall_now().as_secs() as u32;
        let mut resolution = Resolution::new(active.dns.clone(), question, now_unix_secs);
        let work = self.resolve(&active, &mut resolution, message, transport);
        let resolved = self.shared.rt.timeout(active.limits.question_timeout, work).await;
        let passed_on = resolved.unwrap_or_else(|_| {
            self.shared.timeouts.fetch_add(1, Ordering::Relaxed);
            resolution.give_up();
            None
        });
        self.shared.replies.fetch_add(1, Ordering::Relaxed);
        let reply = passed_on.unwrap_or_else(|| resolution.encode(transport));
        self.shared
            .catalog
            .observe_question(qtype, self.shared.rt.now() - began_at);
        Some(reply)
    }

    /// Does the steps of a resolution. `Some`: a recursor's reply, to be passed on instead.
    async fn resolve(
        &self,
        active: &Active,
        resolution: &mut Resolution,
        message: &[u8],
        transport: Transport,
    ) -> Option<Vec<u8>> {
        loop {
            match resolution.step() {
                Step::Lookup { datacenter, query } => {
                    match self.shared.catalog.evaluate(datacenter.as_deref(), query).await {
                        Ok(evaluation) => self.with_rng(|rng| resolution.handle_answer(&evaluation.answer, rng)),
                        Err(err) => {
                            tracing::debug!(name = %resolution.question().name, %err, "DNS lookup failed");
                            resolution.handle_failure(match err {
                                LookupError::NoPath => LookupFailure::NoDatacenter,
                                LookupError::NoServers | LookupError::Failed(_) => LookupFailure::Failed,
                            });
                        }
                    }
                }
                Step::Recurse { name, qtype } => {
                    let question = quorate_dns_answer::encode_question(0, &name, qtype);
                    let reply = self.ask_recursors(active, question, transport).await;
                    resolution.handle_recursed(reply.as_deref());
                }
                Step::Forward => match self.ask_recursors(active, message.to_vec(), transport).await {
                    Some(mut reply) => {
                        let id = resolution.question().id.to_be_bytes();
                        reply[..2].copy_from_slice(&id);
                        return Some(reply);
                    }
                    None => resolution.handle_forward_failed(),
                },
                Step::Done => return None,
            }
        }
    }
}

/// Counts what is going on now, as long as it lives.
pub(crate) struct Counted<R: Rt, C> {
    shared: Arc<Shared<R, C>>,
    count: fn(&Shared<R, C>) -> &AtomicUsize,
}

impl<R: Rt, C> Counted<R, C> {
    /// `None`: there are `count_max` already.
    pub(crate) fn try_new(
        shared: &Arc<Shared<R, C>>,
        count: fn(&Shared<R, C>) -> &AtomicUsize,
        count_max: usize,
    ) -> Option<Self> {
        let add = |now: usize| (now < count_max).then_some(now + 1);
        let added = count(shared).fetch_update(Ordering::Relaxed, Ordering::Relaxed, add);
        added.ok().map(|_| Self {
            shared: shared.clone(),
            count,
        })
    }
}

impl<R: Rt, C> Drop for Counted<R, C> {
    fn drop(&mut self) {
        (self.count)(&self.shared).fetch_sub(1, Ordering::Relaxed);
    }
}
