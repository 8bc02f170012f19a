//! The tasks and the handle.

use crate::counts::{Counts, Traffic};
use crate::errors::{ForceLeaveError, JoinError, StartError, StreamError};
use crate::events::{MemberEvent, MemberEvents, Subscribers};
use crate::keyring::{Encryption, Guard, KeyringAnswer, RefusedCause, keys_of};
use crate::streams::exchange;
use crate::user_events::{IncomingQueries, IncomingQuery, Listeners, QueryReplies, QueryReply, UserEvents};
use futures::future::{Either, join_all, select};
use quorate_rt::{Event as RtEvent, Listener as _, Rt, Task, Udp as _};
use quorate_swim::{Event, InvalidMember, MemberState, Message, Output, Reachability, Swim};
use quorate_types::limits::GOSSIP_PACKET_LEN_BYTES_MAX;
use quorate_types::{Coordinate, Incarnation, Instant, Member, MemberStatus, NodeId};
use quorate_user_events::{
    FireError, Message as EventMessage, Output as EventOutput, QueryError, UserEvent, UserEvents as EventMachine,
};
use quorate_wire::events::{PAYLOAD_OVERHEAD_LEN_BYTES, decode_payload, decode_state, encode_payload, encode_state};
use quorate_wire::gossip::{KeyringRequest, StreamMessage, Unreadable};
use quorate_wire::keyring::RingKey;
use quorate_wire::seal::Direction;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::io::AsyncWriteExt as _;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tracing::{debug, info, warn};

/// Streams that peers opened. More wait in the kernel's backlog. Each may hold one frame (16 MiB at most).
const INBOUND_STREAM_COUNT_MAX: usize = 32;
/// Streams that we opened because `swim` asked for it: a push/pull, a probe and a reconnect, and slow ones before them.
const OUTBOUND_STREAM_COUNT_MAX: usize = 16;
/// Addresses that a `join` contacts at a time.
const JOIN_COUNT_AT_A_TIME: usize = 8;
/// Members that are asked about their keyrings at a time.
const KEYRING_COUNT_AT_A_TIME: usize = 32;
/// Packets that wait to be sent. A socket takes them at once; thousands waiting are old news.
const PACKET_COUNT_MAX: usize = 4096;
/// After an error of the socket itself, so that one that stays does not keep a processor busy.
const SOCKET_ERROR_DELAY: Duration = Duration::from_millis(100);
/// With port 0 the system chooses one for streams; another process may hold it for datagrams.
const PORT_ATTEMPT_COUNT_MAX: usize = 16;

/// What a pool is started with.
#[derive(Clone, Debug)]
pub struct GossipConfig {
    pub id: NodeId,
    pub name: String,
    pub datacenter: String,
    /// Port 0: the system chooses one.
    pub bind: SocketAddr,
    /// Where others reach us, at the bound port.
    pub advertise: IpAddr,
    pub tags: BTreeMap<String, String>,
    pub timing: quorate_swim::Config,
    /// `lan` or `wan`: for errors, logs and traces.
    pub pool: &'static str,
    /// `None`: everything is plaintext.
    pub encryption: Option<Encryption>,
    /// Of earlier lives of this member: this one begins above, wherever the wall clock is now.
    pub past: Past,
}

/// What a member has used at most: what was recorded of it is no newer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Past {
    pub incarnation: u64,
    /// The pool's time in milliseconds, which sealed packets carry; 0 without encryption.
    pub time_ms: u64,
}

/// One member of a pool. Clones are handles of the same member.
pub struct Gossip<R: Rt> {
    handle: Arc<Handle<R>>,
}

impl<R: Rt> Clone for Gossip<R> {
    fn clone(&self) -> Self {
        Self {
            handle: Arc::clone(&self.handle),
        }
    }
}

/// Ends the tasks when the last [`Gossip`] goes: the tasks themselves share only `Shared`.
struct Handle<R: Rt> {
    shared: Arc<Shared<R>>,
}

impl<R: Rt> Drop for Handle<R> {
    fn drop(&mut self) {
        drop(self.shared.abort_tasks());
    }
}

struct Shared<R: Rt> {
    rt: R,
    pool: &'static str,
    guard: Guard<R>,
    address: SocketAddr,
    stream_timeout: Duration,
    leave_timeout: Duration,
    core: Mutex<Core>,
    tasks: Mutex<Tasks>,
    /// `swim` wants to be called earlier than the timer task thought.
    timer: Notify,
    /// Packets wait.
    packets: Notify,
    /// A leave may have made progress: told to all who wait.
    leave: Notify,
    inbound: Arc<Semaphore>,
    outbound: Arc<Semaphore>,
    traffic: Traffic,
}

struct Core {
    swim: Swim,
    timer_at: Instant,
    packets: VecDeque<(SocketAddr, Vec<Message>)>,
    /// The send task has taken packets that the socket did not take yet.
    is_sending: bool,
    subscribers: Subscribers,
    members: Option<Arc<Vec<Member>>>,
    events: EventMachine,
    listeners: Listeners,
    /// Of members and of packets that were dropped.
    counts: Counts,
}

/// The mark and the length of a payload among a packet's messages.
const PAYLOAD_MESSAGE_LEN_BYTES: usize = 1 + 3;

impl Core {
    fn next_timeout(&self) -> Instant {
        self.swim.next_timeout().min(self.events.next_timeout())
    }
    /// Fills a packet of gossip up with events and queries. Not a ping or its answer: those of one moment may all go to
    /// one member, and use up in a small pool what was meant for several.
    fn load(&mut self, messages: &mut Vec<Message>) {
        let is_gossip = messages.iter().all(|message| matches!(message, Message::Update(_)));
        if !is_gossip || !self.events.has_news() {
            return;
        }
        let overhead = PAYLOAD_MESSAGE_LEN_BYTES + PAYLOAD_OVERHEAD_LEN_BYTES;
        let free_len_bytes = self.swim.free_len_bytes(messages).saturating_sub(overhead);
        // A round more than membership gets: a probe or a suspicion tells of a member again, but of an event only the next
        // exchange of full state does. In a small pool the limit alone is less than one round.
        let round = u32::try_from(self.swim.config().gossip_node_count).unwrap_or(u32::MAX);
        let limit = self.swim.transmit_limit().saturating_add(round);
        let news = self.events.take_news(free_len_bytes, limit);
        if !news.is_empty() {
            messages.push(Message::Payload(encode_payload(&news)));
        }
    }
    fn push_packet(&mut self, to: SocketAddr, messages: Vec<Message>) {
        if self.packets.len() >= PACKET_COUNT_MAX {
            self.packets.pop_front();
            self.counts.packets_dropped += 1;
        }
        self.packets.push_back((to, messages));
    }
}

#[derive(Default)]
struct Tasks {
    running: BTreeMap<u64, Task>,
    sequence_next: u64,
    is_stopping: bool,
}

/// A stream to open.
enum Errand {
    PushPull {
        to: SocketAddr,
    },
    Probe {
        to: SocketAddr,
        target: NodeId,
        sequence: u64,
        deadline_at: Instant,
    },
}

impl<R: Rt> Gossip<R> {
    /// Binds the sockets and starts a pool of one.
    pub async fn start(rt: R, config: GossipConfig) -> Result<Self, StartError> {
        let pool = config.pool;
        let (listener, udp, bound) = bind(&rt, pool, config.bind).await?;
        let address = SocketAddr::new(config.advertise, bound.port());
        let me = MemberState {
            id: config.id,
            name: config.name,
            address,
            datacenter: config.datacenter,
            tags: config.tags,
        };
        let incarnation = Incarnation(rt.wall_now().as_millis().max(config.past.incarnation.saturating_add(1)));
        let rng = rt.rng(&format!("gossip.{pool}"));
        let (stream_timeout, leave_timeout) = (config.timing.stream_timeout, config.timing.leave_timeout);
        let events = EventMachine::new(config.id, address, rt.rng(&format!("gossip.{pool}.events")));
        let guard = Guard::new(
            rt.clone(),
            pool,
            config.encryption,
            config.past,
            config.timing.member_count_max,
        );
        let swim =
            Swim::new(config.timing, me, incarnation, rng, rt.now()).map_err(|err| StartError::Member { pool, err })?;
        let shared = Arc::new(Shared {
            pool,
            guard,
            address,
            stream_timeout,
            leave_timeout,
            core: Mutex::new(Core {
                timer_at: Instant::ZERO,
                swim,
                packets: VecDeque::new(),
                is_sending: false,
                subscribers: Subscribers::default(),
                members: None,
                events,
                listeners: Listeners::default(),
                counts: Counts::default(),
            }),
            tasks: Mutex::default(),
            timer: Notify::new(),
            packets: Notify::new(),
            leave: Notify::new(),
            inbound: Arc::new(Semaphore::new(INBOUND_STREAM_COUNT_MAX)),
            outbound: Arc::new(Semaphore::new(OUTBOUND_STREAM_COUNT_MAX)),
            traffic: Traffic::default(),
            rt,
        });
        // The sockets are the tasks' alone, so that they close when the tasks end.
        let udp = Arc::new(udp);
        shared.spawn("gossip.receive", Arc::clone(&shared).receive(Arc::clone(&udp)));
        shared.spawn("gossip.send", Arc::clone(&shared).send(udp));
        shared.spawn("gossip.accept", Arc::clone(&shared).accept(listener));
        shared.spawn("gossip.timer", Arc::clone(&shared).run_timer());
        Ok(Self {
            handle: Arc::new(Handle { shared }),
        })
    }

    /// Where this member is reached: the advertised address and the bound port.
    pub fn address(&self) -> SocketAddr {
        self.handle.shared.address
    }
    pub fn local_member(&self) -> Member {
        self.handle.shared.core().swim.me()
    }
    /// All known members, failed and left ones included, sorted by name.
    pub fn members(&self) -> Arc<Vec<Member>> {
        let mut core = self.handle.shared.core();
        let Core { members, swim, .. } = &mut *core;
        Arc::clone(members.get_or_insert_with(|| Arc::new(swim.members())))
    }
    pub fn subscribe(&self) -> MemberEvents {
        self.handle.shared.core().subscribers.subscribe()
    }
    /// Exchanges state with each address, and so becomes part of its pool. Answers how many were contacted, or, when none
    /// was, why not.
    pub async fn join(&self, addresses: &[SocketAddr]) -> Result<usize, JoinError> {
        let mut contacted = 0;
        let mut failures = Vec::new();
        for addresses in addresses.chunks(JOIN_COUNT_AT_A_TIME) {
            let exchanges = addresses
                .iter()
                .map(|address| self.handle.shared.push_pull(*address, true));
            for (address, result) in addresses.iter().zip(join_all(exchanges).await) {
                match result {
                    Ok(()) => contacted += 1,
                    Err(err) => failures.push((*address, err)),
                }
            }
        }
        for (address, err) in &failures {
            debug!(pool = self.handle.shared.pool, %address, %err, "failed to join");
        }
        if contacted == 0 && !failures.is_empty() {
            return Err(JoinError { failures });
        }
        Ok(contacted)
    }
    /// Tells the pool that this member leaves, and waits until that was sent often enough, or the leave timeout is over.
    /// The member still answers until `stop`.
    pub async fn leave(&self) {
        let shared = &self.handle.shared;
        shared.apply(|swim, now| swim.leave(now));
        shared.core().members = None;
        let sent = async {
            loop {
                // Made before the look, so that what happens after the look wakes it.
                let progress = shared.leave.notified();
                let is_sent = {
                    let core = shared.core();
                    core.swim.is_leave_sent() && core.packets.is_empty() && !core.is_sending
                };
                if is_sent {
                    return;
                }
                progress.await;
            }
        };
        // Swim gives up at the timeout itself; twice as long is for a socket that takes nothing.
        if shared.rt.timeout(shared.leave_timeout * 2, sent).await.is_err() {
            warn!(pool = shared.pool, "gave up telling that this member leaves");
        }
    }
    /// Turns a failed member into one that left; with `prune` it is forgotten. A live one refutes it.
    pub async fn force_leave(&self, name: &str, prune: bool) -> Result<(), ForceLeaveError> {
        self.handle.shared.apply(|swim, now| swim.force_leave(now, name, prune))
    }
    /// Replaces this member's tags and tells the pool.
    pub async fn set_tags(&self, tags: BTreeMap<String, String>) -> Result<(), InvalidMember> {
        self.handle.shared.apply(|swim, now| swim.set_tags(now, tags))
    }
    /// Tells every member of the pool, this one included. Who joins later is not told.
    pub fn fire(&self, event: UserEvent) -> Result<Arc<UserEvent>, FireError> {
        self.handle.shared.call(|core, _| core.events.fire(event))
    }
    /// All events fired from now on, here or elsewhere.
    pub fn user_events(&self) -> UserEvents {
        self.handle.shared.core().listeners.subscribe()
    }
    /// Asks every live member, this one included. With `wants_ack` each tells that it was asked, whether it has an answer
    /// or not.
    pub fn query(
        &self,
        name: &str,
        payload: Vec<u8>,
        timeout: Duration,
        wants_ack: bool,
    ) -> Result<QueryReplies, QueryError> {
        self.handle.shared.call(|core, now| {
            let member_count = core.swim.live_count();
            let query = core.events.ask(now, name, payload, timeout, wants_ack, member_count)?;
            Ok(core.listeners.asked(query))
        })
    }
    /// The queries of this name that arrive from now on. One listener a name: a newer one takes an older one's place.
    pub fn queries(&self, name: &str) -> IncomingQueries {
        self.handle.shared.core().listeners.listen(name)
    }
    /// This member's answer to a query.
    pub fn respond(&self, query: &IncomingQuery, payload: Vec<u8>) -> Result<(), QueryError> {
        self.handle.shared.call(|core, now| {
            if now >= query.ends_at {
                return Err(QueryError::TooLate);
            }
            core.events.respond(now, &query.query, payload)
        })
    }
    /// Where this member is in the network; `None` when it does not care to know.
    pub fn coordinate(&self) -> Option<Coordinate> {
        self.handle.shared.core().swim.coordinate()
    }
    /// Where another member last said to be, once this one has pinged it.
    pub fn coordinate_of(&self, id: NodeId) -> Option<Coordinate> {
        self.handle.shared.core().swim.coordinates()?.peer(id)
    }
    /// Whom this member's datagrams do not reach, and who says that it does not answer.
    pub fn reachability(&self) -> Reachability {
        self.handle.shared.core().swim.reachability()
    }
    /// What was used so far. Kept on disk it is the `past` of the next life.
    pub fn past(&self) -> Past {
        let shared = &self.handle.shared;
        let core = shared.core();
        let own = core.swim.belief(core.swim.me().id);
        let incarnation = own.map_or(0, |(_, incarnation)| incarnation.0);
        drop(core);
        Past {
            incarnation,
            time_ms: shared.guard.pool_time(),
        }
    }
    /// What was counted since the start.
    pub fn counts(&self) -> Counts {
        let shared = &self.handle.shared;
        let core = shared.core();
        let counts = Counts {
            swim: core.swim.counters(),
            events: core.events.counters(),
            ..core.counts
        };
        drop(core);
        shared.traffic.add_to(counts)
    }
    /// News of members, events and queries that wait to be passed on.
    pub fn queued_counts(&self) -> (usize, usize, usize) {
        let core = self.handle.shared.core();
        let (events, queries) = core.events.queued_counts();
        (core.swim.broadcast_count(), events, queries)
    }
    /// The `serf_lan` and `serf_wan` of `/v1/agent/self`.
    pub fn stats(&self) -> BTreeMap<String, String> {
        let core = self.handle.shared.core();
        let (members, failed, left) = core.swim.counts();
        let queued = if members > 1 { core.swim.broadcast_count() } else { 0 };
        let clock = core.swim.lamport_time();
        let (events, queries) = if members > 1 {
            core.events.queued_counts()
        } else {
            (0, 0)
        };
        let (event_time, query_time) = (core.events.event_time(), core.events.query_time());
        let resets = core
            .swim
            .coordinates()
            .map_or(0, |coordinates| coordinates.reset_count());
        drop(core);
        let refused = self.refused_counts();
        [
            ("members", members.to_string()),
            ("failed", failed.to_string()),
            ("left", left.to_string()),
            ("health_score", self.health_score().to_string()),
            ("intent_queue", queued.to_string()),
            ("member_time", clock.to_string()),
            ("event_time", event_time.to_string()),
            ("event_queue", events.to_string()),
            ("query_time", query_time.to_string()),
            ("query_queue", queries.to_string()),
            ("coordinate_resets", resets.to_string()),
            ("encrypted", self.is_encrypted().to_string()),
        ]
        .into_iter()
        .map(|(key, value)| (key.to_owned(), value))
        // Consul tells nothing of these. A cause that never occurred is not among them, so the sum always is.
        .chain([("refused".to_owned(), refused.values().sum::<u64>().to_string())])
        .chain(
            refused
                .iter()
                .map(|(cause, count)| (format!("refused_{cause}"), count.to_string())),
        )
        .collect()
    }
    /// 0 is healthy.
    pub fn health_score(&self) -> u32 {
        self.handle.shared.core().swim.health_score()
    }
    /// What was refused of peers since the start, by the words of [`RefusedCause`]: what could not be read, may not be
    /// believed, or is too much.
    pub fn refused_counts(&self) -> BTreeMap<&'static str, u64> {
        self.handle.shared.guard.refused_counts()
    }
    pub fn is_encrypted(&self) -> bool {
        self.handle.shared.guard.is_encrypted()
    }
    /// Asks every live member for its keys, or to change its ring, this one included. Answers sorted by name.
    pub async fn keyring(&self, request: KeyringRequest) -> Vec<KeyringAnswer> {
        let shared = &self.handle.shared;
        let me = self.local_member().id;
        let live: Vec<Member> = (self.members().iter())
            .filter(|member| matches!(member.status, MemberStatus::Alive | MemberStatus::Leaving))
            .cloned()
            .collect();
        let mut answers = Vec::with_capacity(live.len());
        for members in live.chunks(KEYRING_COUNT_AT_A_TIME) {
            let asked = members.iter().map(|member| async {
                let result = if member.id == me {
                    keys_of(shared.guard.answer_keyring(None, &request).await)
                } else {
                    shared.ask_keyring(member.address, request.clone()).await
                };
                let member = member.clone();
                KeyringAnswer { member, result }
            });
            answers.extend(join_all(asked).await);
        }
        answers
    }
    /// The invariants of the state machine, for the simulator.
    pub fn check(&self) {
        let core = self.handle.shared.core();
        core.swim.check();
        core.events.check();
    }
    /// Ends all tasks and closes the sockets, without telling anybody.
    pub async fn stop(&self) {
        for task in self.handle.shared.abort_tasks() {
            // Aborted tasks end without a word.
            let _ = task.join().await;
        }
    }
}

/// Both sockets on one port.
async fn bind<R: Rt>(
    rt: &R,
    pool: &'static str,
    at: SocketAddr,
) -> Result<(R::Listener, R::Udp, SocketAddr), StartError> {
    let failed = |network, address, err| StartError::Bind {
        pool,
        network,
        address,
        err,
    };
    let mut attempt = 1;
    loop {
        let listener = rt.tcp_listen(at).await.map_err(|err| failed("tcp", at, err))?;
        let bound = listener.local_addr().map_err(|err| failed("tcp", at, err))?;
        match rt.udp_bind(bound).await {
            Ok(udp) => return Ok((listener, udp, bound)),
            Err(err)
                if at.port() == 0 && err.kind() == io::ErrorKind::AddrInUse && attempt < PORT_ATTEMPT_COUNT_MAX =>
            {
                attempt += 1;
            }
            Err(err) => return Err(failed("udp", bound, err)),
        }
    }
}

impl<R: Rt> Shared<R> {
    fn core(&self) -> MutexGuard<'_, Core> {
        self.core.lock().expect("a panic of the state machine ends the process")
    }

    fn spawn(&self, name: &'static str, work: impl Future<Output = ()> + Send + 'static) -> bool {
        self.spawn_with(|_| work, name)
    }
    fn spawn_with<F>(&self, work: impl FnOnce(u64) -> F, name: &'static str) -> bool
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let mut tasks = self.tasks.lock().expect("no holder panics");
        if tasks.is_stopping {
            return false;
        }
        let key = tasks.sequence_next;
        tasks.sequence_next += 1;
        // Under the lock: a task that ends at once finds its own entry to remove.
        let task = self.rt.spawn(name, work(key));
        tasks.running.insert(key, task);
        true
    }
    /// A task for one stream, forgotten when it ends.
    fn spawn_stream(
        self: &Arc<Self>,
        name: &'static str,
        permit: OwnedSemaphorePermit,
        work: impl Future<Output = ()> + Send + 'static,
    ) {
        let shared = Arc::clone(self);
        self.spawn_with(
            |key| async move {
                work.await;
                drop(permit);
                shared.tasks.lock().expect("no holder panics").running.remove(&key);
            },
            name,
        );
    }
    fn abort_tasks(&self) -> Vec<Task> {
        let mut tasks = self.tasks.lock().expect("no holder panics");
        tasks.is_stopping = true;
        let running: Vec<Task> = std::mem::take(&mut tasks.running).into_values().collect();
        for task in &running {
            task.abort();
        }
        running
    }

    fn apply<T>(self: &Arc<Self>, call: impl FnOnce(&mut Swim, Instant) -> T) -> T {
        self.call(|core, now| call(&mut core.swim, now))
    }
    /// Calls the state machines and carries out what they want done.
    fn call<T>(self: &Arc<Self>, call: impl FnOnce(&mut Core, Instant) -> T) -> T {
        let mut errands = Vec::new();
        let mut core = self.core();
        // Read under the lock: the state machine's time never goes back.
        let now = self.rt.now();
        let dropped_before = core.swim.counters().broadcasts_dropped;
        let result = call(&mut core, now);
        let dropped = core.swim.counters().broadcasts_dropped - dropped_before;
        if dropped > 0 {
            let what = "more news of members than can be passed on";
            self.guard.refuse_many(RefusedCause::Flooded, dropped, &what);
        }
        while let Some(output) = core.swim.poll_output() {
            match output {
                Output::Packet { to, mut messages } => {
                    core.load(&mut messages);
                    // Made for news that the packets before it took away.
                    if !messages.is_empty() {
                        core.push_packet(to, messages);
                    }
                }
                Output::PushPull { to } => errands.push(Errand::PushPull { to }),
                Output::StreamProbe {
                    to,
                    target,
                    sequence,
                    deadline_at,
                } => errands.push(Errand::Probe {
                    to,
                    target,
                    sequence,
                    deadline_at,
                }),
                Output::Payload { from, payload } => self.hear_payload(&mut core, now, from, &payload),
                Output::Event(event) => self.tell(&mut core, event),
            }
        }
        while let Some(output) = core.events.poll_output() {
            self.carry_out(&mut core, output);
        }
        let has_news = core.events.has_news();
        core.swim.set_has_payload(now, has_news);
        let is_earlier = core.next_timeout() < core.timer_at;
        let has_packets = !core.packets.is_empty();
        drop(core);
        if has_packets {
            self.packets.notify_one();
        }
        if is_earlier {
            self.timer.notify_one();
        }
        for errand in errands {
            self.run_errand(errand);
        }
        result
    }

    fn hear_payload(&self, core: &mut Core, now: Instant, from: SocketAddr, payload: &[u8]) {
        match decode_payload(payload) {
            Ok(mut messages) => {
                messages.retain(|message| match message {
                    EventMessage::QueryAck { from, .. } | EventMessage::QueryResponse { from, .. } => {
                        core.swim.belief(*from).is_some()
                    }
                    EventMessage::Event(_) | EventMessage::Query(_) => true,
                });
                self.watch_events(core, from, |events| events.handle_messages(now, messages));
            }
            Err(err) => {
                self.guard.refuse(RefusedCause::Malformed, from, &err);
            }
        }
    }
    /// What a peer's half of an exchange says about events. A member that joins is not told of those before.
    fn hear_state(&self, core: &mut Core, from: SocketAddr, payload: &[u8], is_join: bool) {
        match decode_state(payload) {
            Ok(theirs) => self.watch_events(core, from, |events| events.handle_state(theirs, is_join)),
            Err(err) => {
                self.guard.refuse(RefusedCause::Malformed, from, &err);
            }
        }
    }
    /// Counts and tells what the events' state machine refuses of a peer.
    fn watch_events(&self, core: &mut Core, from: SocketAddr, hear: impl FnOnce(&mut EventMachine)) {
        let before = core.events.counters();
        hear(&mut core.events);
        let after = core.events.counters();
        for (cause, before, after, what) in [
            (
                RefusedCause::MalformedEvent,
                before.malformed,
                after.malformed,
                "an event or a query that cannot be",
            ),
            (
                RefusedCause::Flooded,
                before.dropped,
                after.dropped,
                "more events and queries than can be passed on",
            ),
        ] {
            if after > before {
                self.guard
                    .refuse_many(cause, after - before, &format_args!("{what} (from {from})"));
            }
        }
    }
    fn carry_out(&self, core: &mut Core, output: EventOutput) {
        let pool = self.pool;
        match output {
            EventOutput::Packet { to, message } => {
                core.push_packet(to, vec![Message::Payload(encode_payload(&[message]))]);
            }
            EventOutput::Event(event) => {
                debug!(pool, name = %event.name, id = %event.id, ltime = %event.ltime, "user event");
                self.trace(format_args!("{pool} event {} {} {}", event.ltime, event.id, event.name));
                core.listeners.publish(&event);
            }
            EventOutput::Query { query, ends_at } => {
                debug!(pool, name = %query.name, from = %query.from, ltime = %query.ltime, "query");
                self.trace(format_args!(
                    "{pool} query {} {} {}",
                    query.ltime, query.from, query.name
                ));
                core.listeners.publish_query(IncomingQuery { query, ends_at });
            }
            EventOutput::QueryAck { query, from } => {
                if !core.listeners.reply(query, QueryReply::Ack { from }) {
                    core.events.abandon(query);
                }
            }
            EventOutput::QueryResponse { query, from, payload } => {
                if !core.listeners.reply(query, QueryReply::Response { from, payload }) {
                    core.events.abandon(query);
                }
            }
            EventOutput::QueryEnded { query } => core.listeners.end(query),
        }
    }

    fn tell(&self, core: &mut Core, event: Event) {
        let pool = self.pool;
        let (word, event) = match event {
            Event::Joined(member) => ("joined", MemberEvent::Joined(member.into())),
            Event::Updated(member) => ("updated", MemberEvent::Updated(member.into())),
            Event::Leaving(member) => ("leaving", MemberEvent::Updated(member.into())),
            Event::Failed(member) => ("failed", MemberEvent::Failed(member.into())),
            Event::Left(member) => ("left", MemberEvent::Left(member.into())),
            Event::Reaped(member) => ("reaped", MemberEvent::Reaped(member.into())),
            Event::Suspected {
                member,
                incarnation,
                from,
            } => {
                debug!(pool, %member, %incarnation, %from, "suspected");
                return self.trace(format_args!("{pool} suspected {member} {incarnation} {from}"));
            }
            Event::Cleared { member, incarnation } => {
                debug!(pool, %member, %incarnation, "suspicion cleared");
                return self.trace(format_args!("{pool} cleared {member} {incarnation}"));
            }
            Event::Refuted { incarnation } => {
                let what =
                    format_args!("others thought ill of this member, or spoke for it: incarnation {incarnation}");
                self.guard.refuse_many(RefusedCause::Refuted, 1, &what);
                return self.trace(format_args!("{pool} refuted {incarnation}"));
            }
            Event::Conflict {
                name,
                holder,
                claimant,
                claimant_address,
            } => {
                let what = format_args!(
                    "two members claim the name {name} or its id: {claimant} at {claimant_address} does not get it from {holder}"
                );
                self.guard.refuse_many(RefusedCause::NameConflict, 1, &what);
                return self.trace(format_args!("{pool} conflict {name} {holder} {claimant}"));
            }
            Event::WrongDatacenter { name, datacenter } => {
                let what = format_args!("member {name} is of another datacenter, {datacenter}");
                return self.guard.refuse_many(RefusedCause::WrongDatacenter, 1, &what);
            }
            Event::NotAllowed { name, address } => {
                let what = format_args!(
                    "member {name}: {} is not in the allowed blocks of addresses",
                    address.ip()
                );
                return self.guard.refuse_many(RefusedCause::NotAllowed, 1, &what);
            }
            Event::Full { refused } => {
                let what = format_args!("no room for member {refused}: the pool is full");
                return self.guard.refuse_many(RefusedCause::Full, 1, &what);
            }
            Event::Malformed { from, reason } => return self.guard.refuse(RefusedCause::Malformed, from, &reason),
            Event::StreamOnly { member } => {
                return warn!(pool, %member, "reached over a stream, but not by datagrams: is UDP let through?");
            }
            Event::Moved { member, address_before } => {
                return info!(pool, member = %member.name, id = %member.id, address = %member.address, %address_before,
                    "member is at another address now");
            }
            Event::NameTaken {
                name,
                holder_before,
                holder,
            } => {
                return warn!(pool, %name, %holder, %holder_before, "the name of a failed or left member has a new holder");
            }
            Event::LinkFaulty { member, fault } => {
                warn!(pool, %member, ?fault, "others reach this member, but our datagrams are lost");
                return self.trace(format_args!("{pool} link {member} {fault:?}"));
            }
            Event::LinkMended { member } => {
                info!(pool, %member, "datagrams reach this member again");
                return self.trace(format_args!("{pool} link {member} mended"));
            }
            Event::Implausible { member, reason } => {
                let what = format_args!("the coordinate of member {member}: {reason}");
                return self.guard.refuse_many(RefusedCause::Implausible, 1, &what);
            }
            Event::LeaveSent => return self.leave.notify_waiters(),
        };
        core.members = None;
        let counts = &mut core.counts;
        let count = match &event {
            MemberEvent::Joined(_) => &mut counts.joined,
            MemberEvent::Updated(_) => &mut counts.updated,
            MemberEvent::Failed(_) => &mut counts.failed,
            MemberEvent::Left(_) => &mut counts.left,
            MemberEvent::Reaped(_) | MemberEvent::Resync => &mut counts.reaped,
        };
        *count += 1;
        if let MemberEvent::Joined(member)
        | MemberEvent::Updated(member)
        | MemberEvent::Failed(member)
        | MemberEvent::Left(member)
        | MemberEvent::Reaped(member) = &event
        {
            info!(pool, member = %member.name, id = %member.id, address = %member.address, "member {word}");
            let Member {
                id,
                name,
                address,
                tags,
                ..
            } = member;
            self.trace(format_args!("{pool} {word} {id} {name} {address} {tags:?}"));
        }
        core.subscribers.publish(&event);
    }
    fn trace(&self, what: std::fmt::Arguments<'_>) {
        self.rt.event(RtEvent {
            kind: "gossip",
            payload: what.to_string().as_bytes(),
        });
    }

    // Tasks.

    async fn receive(self: Arc<Self>, udp: Arc<R::Udp>) {
        // One more, so that a longer datagram is seen to be too long.
        let mut buffer = [0; GOSSIP_PACKET_LEN_BYTES_MAX + 1];
        loop {
            match udp.recv_from(&mut buffer).await {
                Ok((len, from)) => {
                    self.traffic.count_received(len);
                    if let Some(messages) = self.guard.open_packet(from, &mut buffer[..len]) {
                        self.apply(|swim, now| swim.handle_packet(now, from, messages));
                    }
                }
                Err(err) => {
                    warn!(pool = self.pool, %err, "receive a packet");
                    self.rt.sleep(SOCKET_ERROR_DELAY).await;
                }
            }
        }
    }
    async fn send(self: Arc<Self>, udp: Arc<R::Udp>) {
        loop {
            let next = {
                let mut core = self.core();
                let next = core.packets.pop_front();
                core.is_sending = next.is_some();
                next
            };
            let Some((to, messages)) = next else {
                self.leave.notify_waiters();
                self.packets.notified().await;
                continue;
            };
            let packet = self.guard.packet(&messages);
            debug_assert!(packet.len() <= GOSSIP_PACKET_LEN_BYTES_MAX, "swim counts what fits");
            match udp.send_to(&packet, to).await {
                Ok(()) => self.traffic.count_sent(packet.len()),
                Err(err) => debug!(pool = self.pool, %to, %err, "send a packet"),
            }
        }
    }
    async fn run_timer(self: Arc<Self>) {
        loop {
            let at = {
                let mut core = self.core();
                core.timer_at = core.next_timeout();
                core.timer_at
            };
            let sleep = self.rt.sleep_until(at);
            let earlier = self.timer.notified();
            futures::pin_mut!(sleep, earlier);
            if let Either::Left(_) = select(sleep, earlier).await {
                self.call(|core, now| {
                    core.swim.handle_timeout(now);
                    core.events.handle_timeout(now);
                });
            }
        }
    }
    async fn accept(self: Arc<Self>, listener: R::Listener) {
        loop {
            let permit = Arc::clone(&self.inbound).acquire_owned().await;
            let permit = permit.expect("the semaphore is never closed");
            match listener.accept().await {
                Ok((stream, from)) => {
                    self.traffic.streams_accepted.fetch_add(1, Ordering::Relaxed);
                    let shared = Arc::clone(&self);
                    self.spawn_stream("gossip.serve", permit, async move {
                        let timeout = shared.stream_timeout;
                        let served = shared.rt.timeout(timeout, shared.serve(stream, from)).await;
                        if let Ok(Err(err)) = served {
                            shared.count_refused(from, &err);
                            debug!(pool = shared.pool, %from, %err, "serve a stream");
                        }
                    });
                }
                Err(err) => {
                    warn!(pool = self.pool, %err, "accept a stream");
                    self.rt.sleep(SOCKET_ERROR_DELAY).await;
                }
            }
        }
    }
    async fn serve(self: &Arc<Self>, mut stream: R::Stream, from: SocketAddr) -> Result<(), StreamError> {
        let (session, request) = self.guard.accept(&mut stream).await?;
        let answer = match request {
            StreamMessage::Ping { target } if self.core().swim.handle_stream_ping(target) => {
                StreamMessage::Ack { target }
            }
            // Meant for a former holder of this address.
            StreamMessage::Ping { .. } => return Ok(()),
            StreamMessage::PushPull(mut theirs) => match self.call(|core, now| {
                let payload = std::mem::take(&mut theirs.payload);
                let mut ours = core.swim.handle_push_pull(now, from, theirs)?;
                self.hear_state(core, from, &payload, false);
                ours.payload = encode_state(&core.events.state());
                Ok(ours)
            }) {
                Ok(ours) => StreamMessage::PushPull(ours),
                Err(refusal) => {
                    info!(pool = self.pool, %from, %refusal, "refused a member");
                    StreamMessage::Refused(refusal)
                }
            },
            StreamMessage::Keyring(request) => {
                StreamMessage::KeyringReply(self.guard.answer_keyring(Some(session), &request).await)
            }
            StreamMessage::Ack { .. }
            | StreamMessage::Refused(_)
            | StreamMessage::Unreadable(_)
            | StreamMessage::KeyringReply(_) => return Err(StreamError::Unexpected),
        };
        self.guard
            .write(&mut stream, session, Direction::Answer, &answer)
            .await?;
        stream.shutdown().await.map_err(StreamError::Io)
    }

    /// Counts what a peer sent over a stream and was not believed.
    fn count_refused(&self, from: SocketAddr, err: &StreamError) {
        let cause = match err {
            StreamError::Malformed(_) | StreamError::Unexpected => RefusedCause::Malformed,
            StreamError::Seal(err) => RefusedCause::of(err),
            StreamError::Unreadable(Unreadable::NoKeyring) => RefusedCause::NoKeyring,
            StreamError::Unreadable(_) | StreamError::Plaintext => RefusedCause::Plaintext,
            StreamError::Dial { .. } | StreamError::Timeout { .. } | StreamError::Io(_) | StreamError::Refused(_) => {
                return;
            }
        };
        self.guard.refuse(cause, from, err);
    }
    async fn exchange(
        &self,
        to: SocketAddr,
        timeout: Duration,
        message: StreamMessage,
    ) -> Result<StreamMessage, StreamError> {
        self.traffic.streams_opened.fetch_add(1, Ordering::Relaxed);
        exchange(&self.rt, &self.guard, to, timeout, message).await
    }
    async fn ask_keyring(&self, to: SocketAddr, request: KeyringRequest) -> Result<Vec<RingKey>, String> {
        match self
            .exchange(to, self.stream_timeout, StreamMessage::Keyring(request))
            .await
        {
            Ok(StreamMessage::KeyringReply(reply)) => keys_of(reply),
            Ok(_) => Err(StreamError::Unexpected.to_string()),
            Err(err) => Err(err.to_string()),
        }
    }

    fn run_errand(self: &Arc<Self>, errand: Errand) {
        let Ok(permit) = Arc::clone(&self.outbound).try_acquire_owned() else {
            // Peers that do not answer hold all streams; the next round tries again.
            return debug!(pool = self.pool, "too many streams are open");
        };
        let shared = Arc::clone(self);
        match errand {
            Errand::PushPull { to } => self.spawn_stream("gossip.push_pull", permit, async move {
                match shared.push_pull(to, false).await {
                    Ok(()) => {}
                    Err(StreamError::Refused(refusal)) => warn!(pool = shared.pool, %to, %refusal, "not let in"),
                    Err(err) => debug!(pool = shared.pool, %to, %err, "push/pull"),
                }
            }),
            Errand::Probe {
                to,
                target,
                sequence,
                deadline_at,
            } => self.spawn_stream("gossip.probe", permit, async move {
                let timeout = deadline_at - shared.rt.now();
                let answer = shared.exchange(to, timeout, StreamMessage::Ping { target }).await;
                let is_answered = matches!(answer, Ok(StreamMessage::Ack { target: acked }) if acked == target);
                shared.apply(|swim, now| swim.handle_stream_probe(now, sequence, is_answered));
            }),
        }
    }
    async fn push_pull(self: &Arc<Self>, to: SocketAddr, is_join: bool) -> Result<(), StreamError> {
        let ours = {
            let core = self.core();
            let mut ours = core.swim.push_pull_request();
            ours.payload = encode_state(&core.events.state());
            StreamMessage::PushPull(ours)
        };
        match self.exchange(to, self.stream_timeout, ours).await? {
            StreamMessage::PushPull(mut theirs) => {
                self.call(|core, now| {
                    let payload = std::mem::take(&mut theirs.payload);
                    core.swim.handle_push_pull_reply(now, to, theirs);
                    self.hear_state(core, to, &payload, is_join);
                });
                Ok(())
            }
            StreamMessage::Refused(refusal) => Err(StreamError::Refused(refusal)),
            _ => Err(StreamError::Unexpected),
        }
    }
}
