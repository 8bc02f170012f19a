//! The connections we make: one per address and kind, shared by all calls.

use super::*;
use futures::FutureExt as _;
use futures::future::{BoxFuture, Either, Shared, select};
use quorate_rt::{Rt, task::AbortOnDrop};
use quorate_types::{Instant, NodeId};
use quorate_wire::frame::{ConnectionKind, HELLO_LEN_BYTES_MAX, Hello, HelloReply, preamble};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard};
use thiserror::Error;
use tokio::sync::oneshot;

/// After a failed attempt the next one waits this long, doubling.
const BACKOFF_MIN: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_secs(5);
/// Addresses remembered; what is unused goes first.
const PEER_COUNT_MAX: usize = 1024;
/// Calls that wait on one connection; more are refused.
const PENDING_COUNT_MAX: usize = 65_536;

/// Why a call got no answer.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum CallFailure {
    /// It never left: whatever it asked for did not happen.
    #[error("not sent: {0}")]
    NotSent(String),
    /// It may have arrived, and may yet be carried out.
    #[error("no answer: {0}")]
    Unknown(String),
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// One connection.
struct Connection {
    outgoing: mpsc::Sender<Frame>,
    waiting: Arc<Mutex<Waiting>>,
    /// Ends with the last one who uses the connection.
    _task: AbortOnDrop,
}

#[derive(Default)]
struct Waiting {
    next_id: u64,
    calls: BTreeMap<u64, oneshot::Sender<Bytes>>,
    /// Why there will be no more answers.
    closed: Option<String>,
}

/// Removes its call when the caller stops waiting, and tells the peer.
struct Call<'a> {
    id: u64,
    connection: &'a Connection,
    is_sent: bool,
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        if locked(&self.connection.waiting).calls.remove(&self.id).is_some() && self.is_sent {
            // When the queue is full, the peer finishes in vain.
            let _ = self.connection.outgoing.try_send(Frame {
                id: self.id,
                what: What::Cancel,
                body: Bytes::new(),
            });
        }
    }
}

impl Connection {
    fn closed(&self) -> Option<String> {
        locked(&self.waiting).closed.clone()
    }

    async fn call(&self, what: What, body: Bytes) -> Result<Bytes, CallFailure> {
        let (answer, answered) = oneshot::channel();
        let id = {
            let mut waiting = locked(&self.waiting);
            if let Some(why) = &waiting.closed {
                return Err(CallFailure::NotSent(why.clone()));
            }
            if waiting.calls.len() >= PENDING_COUNT_MAX {
                return Err(CallFailure::NotSent("too many calls wait".to_owned()));
            }
            let id = waiting.next_id;
            waiting.next_id += 1;
            waiting.calls.insert(id, answer);
            id
        };
        let mut call = Call {
            id,
            connection: self,
            is_sent: false,
        };
        if self.outgoing.send(Frame { id, what, body }).await.is_err() {
            return Err(CallFailure::NotSent(
                self.closed().unwrap_or_else(|| "closed".to_owned()),
            ));
        }
        call.is_sent = true;
        match answered.await {
            Ok(body) => Ok(body),
            Err(_) => Err(CallFailure::Unknown(
                self.closed().unwrap_or_else(|| "closed".to_owned()),
            )),
        }
    }
}

/// A connection on its way. All who want it wait for the same attempt, which goes on whoever of them gives up.
type Connecting = Shared<BoxFuture<'static, Result<Arc<Connection>, CallFailure>>>;

/// What a slot knows of its peer.
#[derive(Default)]
struct Slot {
    connection: Option<Arc<Connection>>,
    connecting: Option<Connecting>,
    retry_at: Instant,
    backoff: Duration,
    failure: String,
}

/// Whom a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Target {
    pub address: SocketAddr,
    pub kind: ConnectionKind,
    /// Refuse anyone else who answers there.
    pub node: Option<NodeId>,
}

/// Makes the greeting for a connection: what it says changes as clusters form.
pub trait Greeter: Send + Sync + 'static {
    fn hello(&self, target: &Target) -> Hello;
}

struct Inner<R: Rt> {
    rt: R,
    greeter: Box<dyn Greeter>,
    slots: Mutex<BTreeMap<Target, Slot>>,
    stopped: std::sync::atomic::AtomicBool,
}

/// The connections. Clones share them.
pub struct Pool<R: Rt> {
    inner: Arc<Inner<R>>,
}

impl<R: Rt> Clone for Pool<R> {
    fn clone(&self) -> Self {
        Self {
            inner: Arc::clone(&self.inner),
        }
    }
}

impl<R: Rt> Pool<R> {
    pub fn new(rt: R, greeter: impl Greeter) -> Self {
        Self {
            inner: Arc::new(Inner {
                rt,
                greeter: Box::new(greeter),
                slots: Mutex::new(BTreeMap::new()),
                stopped: std::sync::atomic::AtomicBool::new(false),
            }),
        }
    }

    /// Makes one call. Fails at the deadline at the latest.
    pub async fn call(&self, target: Target, what: What, body: Bytes, deadline: Instant) -> Result<Bytes, CallFailure> {
        let rt = &self.inner.rt;
        if body.len() > BODY_LEN_BYTES_MAX {
            return Err(CallFailure::NotSent(format!(
                "{} bytes are too many for a call",
                body.len()
            )));
        }
        let connect = self.connection(target);
        let connection = match select(pin!(connect), pin!(rt.sleep_until(deadline))).await {
            Either::Left((connection, _)) => connection?,
            Either::Right(_) => {
                return Err(CallFailure::NotSent(format!(
                    "{} was not reached in time",
                    target.address
                )));
            }
        };
        match select(pin!(connection.call(what, body)), pin!(rt.sleep_until(deadline))).await {
            Either::Left((answer, _)) => answer,
            Either::Right(_) => Err(CallFailure::Unknown(format!(
                "{} did not answer in time",
                target.address
            ))),
        }
    }

    /// Closes every connection, also those of other clones, and makes no more.
    pub fn stop(&self) {
        self.inner.stopped.store(true, Ordering::Relaxed);
        locked(&self.inner.slots).clear();
    }

    /// Closes the connections to an address; the next call makes a new one.
    pub fn forget(&self, address: SocketAddr) {
        locked(&self.inner.slots).retain(|target, _| target.address != address);
    }

    async fn connection(&self, target: Target) -> Result<Arc<Connection>, CallFailure> {
        if self.inner.stopped.load(Ordering::Relaxed) {
            return Err(CallFailure::NotSent("stopped".to_owned()));
        }
        let connecting = {
            let mut slots = locked(&self.inner.slots);
            if slots.len() >= PEER_COUNT_MAX && !slots.contains_key(&target) {
                forget_one(&mut slots);
            }
            let slot = slots.entry(target).or_default();
            if let Some(connection) = &slot.connection
                && connection.closed().is_none()
            {
                return Ok(Arc::clone(connection));
            }
            slot.connection = None;
            match &slot.connecting {
                Some(connecting) => connecting.clone(),
                None if self.inner.rt.now() < slot.retry_at => {
                    return Err(CallFailure::NotSent(slot.failure.clone()));
                }
                None => slot.connecting.insert(self.start_connecting(target)).clone(),
            }
        };
        connecting.await
    }

    /// As a task of its own: a caller that is not polled, or gives up, holds up nobody.
    fn start_connecting(&self, target: Target) -> Connecting {
        let (done, wait) = oneshot::channel();
        let pool = self.clone();
        let attempt = async move {
            let result = match pool.connect(target).await {
                Ok(connection) => Ok(Arc::new(connection)),
                Err(err) => {
                    tracing::debug!(address = %target.address, kind = ?target.kind, %err, "connection failed");
                    Err(format!("{}: {err}", target.address))
                }
            };
            // Without a slot the address was forgotten meanwhile, and the connection ends with its last user.
            if let Some(slot) = locked(&pool.inner.slots).get_mut(&target) {
                slot.connecting = None;
                match &result {
                    Ok(connection) => {
                        slot.connection = Some(Arc::clone(connection));
                        slot.backoff = Duration::ZERO;
                        slot.retry_at = Instant::ZERO;
                    }
                    Err(failure) => {
                        slot.backoff = (slot.backoff * 2).clamp(BACKOFF_MIN, BACKOFF_MAX);
                        slot.retry_at = pool.inner.rt.now() + slot.backoff;
                        slot.failure.clone_from(failure);
                    }
                }
            }
            // All callers may have given up.
            let _ = done.send(result.map_err(CallFailure::NotSent));
        };
        // It ends by itself: connecting has a timeout.
        drop(self.inner.rt.spawn("rpc-connect", attempt));
        async move {
            match wait.await {
                Ok(result) => result,
                Err(_) => Err(CallFailure::NotSent("stopped".to_owned())),
            }
        }
        .boxed()
        .shared()
    }

    async fn connect(&self, target: Target) -> io::Result<Connection> {
        let rt = &self.inner.rt;
        let hello = self.inner.greeter.hello(&target);
        let made = async {
            let mut stream = rt.tcp_connect(target.address).await?;
            stream.write_all(&preamble(target.kind)).await?;
            let frame = Frame {
                id: 0,
                what: What::Hello,
                body: Bytes::from(hello.encode()),
            };
            write_frame(&mut stream, &frame).await?;
            let reply = read_frame(&mut stream, HELLO_LEN_BYTES_MAX, &Activity::default())
                .await?
                .ok_or(io::ErrorKind::UnexpectedEof)?;
            if reply.what != What::HelloReply {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "it does not shake hands"));
            }
            match HelloReply::decode(&reply.body).map_err(malformed)? {
                HelloReply::Welcome { node, disk } => {
                    if hello.to.is_some_and(|to| to != node) {
                        return Err(io::Error::other(format!("it is node {node}")));
                    }
                    if hello.to_disk.is_some_and(|to_disk| Some(to_disk) != disk) {
                        return Err(io::Error::other(format!("node {node} lost its disk")));
                    }
                    Ok(stream)
                }
                HelloReply::Refused { reason } => Err(io::Error::other(format!("refused: {reason}"))),
            }
        };
        let stream = match rt.timeout(CONNECT_TIMEOUT, made).await {
            Ok(made) => made?,
            Err(_) => return Err(io::ErrorKind::TimedOut.into()),
        };
        let (outgoing, frames) = mpsc::channel(OUTGOING_COUNT_MAX);
        let waiting = Arc::new(Mutex::new(Waiting::default()));
        let serve = serve::<R>(rt.clone(), stream, frames, Arc::clone(&waiting));
        let task = rt.spawn("rpc-connection", serve).abort_on_drop();
        Ok(Connection {
            outgoing,
            waiting,
            _task: task,
        })
    }
}

/// Makes room for another address: one that nobody is connected to, else any.
fn forget_one(slots: &mut BTreeMap<Target, Slot>) {
    let is_unused = |slot: &Slot| {
        slot.connecting.is_none()
            && slot
                .connection
                .as_ref()
                .is_none_or(|connection| connection.closed().is_some())
    };
    let unused = slots.iter().find(|(_, slot)| is_unused(slot));
    if let Some(target) = unused.or_else(|| slots.iter().next()).map(|(target, _)| *target) {
        slots.remove(&target);
    }
}

/// Says goodbye to those who wait, however the task ends.
struct Goodbye(Arc<Mutex<Waiting>>);

impl Drop for Goodbye {
    fn drop(&mut self) {
        let mut waiting = locked(&self.0);
        waiting
            .closed
            .get_or_insert_with(|| "the connection was closed".to_owned());
        waiting.calls.clear();
    }
}

async fn serve<R: Rt>(rt: R, stream: R::Stream, mut outgoing: mpsc::Receiver<Frame>, waiting: Arc<Mutex<Waiting>>) {
    let goodbye = Goodbye(Arc::clone(&waiting));
    let activity = Activity::default();
    let (read_half, mut write_half) = tokio::io::split(stream);
    let mut read_half = BufReader::with_capacity(BUFFER_LEN_BYTES, read_half);
    let reads = async {
        while let Some(frame) = read_frame(&mut read_half, BODY_LEN_BYTES_MAX, &activity).await? {
            if frame.what != What::Reply {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "it answers with no reply"));
            }
            let answer = locked(&waiting).calls.remove(&frame.id);
            if let Some(answer) = answer {
                // The caller may have given up just now.
                let _ = answer.send(frame.body);
            }
        }
        Err(io::Error::from(io::ErrorKind::UnexpectedEof))
    };
    let writes = write_frames(&mut write_half, &mut outgoing, &activity);
    let watch = watch_over(&rt, &activity, || !locked(&waiting).calls.is_empty());
    let why = match select(select(pin!(reads), pin!(writes)), pin!(watch)).await {
        Either::Left((Either::Left((read, _)), _)) => {
            let read: io::Result<()> = read;
            read.err().map_or_else(|| "closed".to_owned(), |err| err.to_string())
        }
        Either::Left((Either::Right((written, _)), _)) => {
            written.err().map_or_else(|| "closed".to_owned(), |err| err.to_string())
        }
        Either::Right((why, _)) => why.to_owned(),
    };
    locked(&waiting).closed = Some(why);
    drop(goodbye);
}
