//! The one door to time, entropy, tasks, sockets, processes and disk.
//!
//! Protocol code is generic over [`Rt`]. Two implementations exist: [`production`] over tokio and the kernel, and the
//! simulator's over virtual time, a modelled network and a modelled disk. Code that goes through this door runs on both
//! unchanged, and in the simulator one seed gives one run.
//!
//! Duties of an implementer, in order of how much depends on them:
//! 1. `now` never goes back and counts suspension of the machine (leases rest on it).
//! 2. What `File::sync_data` acknowledged survives power loss; a created, renamed or removed name survives only after
//!    `Disk::sync_dir` of its directory. A failed sync is reported, and never turned into success by a retry.
//! 3. `rng(stream)` gives independent streams: one more draw in one moves no other.
//! 4. Streams and datagrams behave as TCP and UDP do, backlog and loss included.
//! 5. `event` costs nothing when nobody listens.
//!
//! Not here: any protocol rule.

pub mod disk;
pub mod net;
pub mod process;
pub mod production;
pub mod task;

pub use disk::{AnyDisk, AnyFile, DirEntry, Disk, File, MemoryDisk, OpenMode};
pub use net::{Listener, Udp};
pub use process::{ChildDriver, ChildProcess, ChildSignal, ChildSpec, ProcessEnd, ProcessOutput, ProcessSpec};
pub use task::{Task, TaskDropped};

use quorate_types::{Instant, Uuid, WallTime};
use rand_core::Rng as _;
use std::fmt;
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};

/// The generator every random stream is made of: its output is fixed by its seed for ever.
pub type Rng = rand_chacha::ChaCha8Rng;

/// A wait was longer than allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Elapsed;

impl fmt::Display for Elapsed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("deadline has elapsed")
    }
}

impl std::error::Error for Elapsed {}

/// A name for zero where a library counts in the system's instants and asks for them through a timer it is given
/// (hyper's). What is added to it must come from [`Rt::now`]: then differences are the door's, and no decision depends on
/// when this was called.
pub fn zero_of_system_instants() -> std::time::Instant {
    #[allow(clippy::disallowed_methods)]
    std::time::Instant::now()
}

/// A signal the operator sent to the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    Interrupt,
    Terminate,
    Hangup,
}

/// One network interface's address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InterfaceAddress {
    pub interface: String,
    pub address: IpAddr,
}

/// What a process takes of its machine; zero where nobody knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProcessUsage {
    pub resident_bytes: u64,
    pub virtual_bytes: u64,
    /// Tasks that were started and have not ended.
    pub task_count: u64,
    pub thread_count: u64,
}

/// Something that happened, for the digest of a simulated run. Production drops it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event<'a> {
    /// A fixed word: `apply`, `gossip`, `check`, ...
    pub kind: &'static str,
    pub payload: &'a [u8],
}

/// The door. See the crate's page for the duties of an implementer.
pub trait Rt: Clone + Send + Sync + 'static {
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + Sync + 'static;
    type Listener: Listener<Stream = Self::Stream>;
    type Udp: Udp;
    type Disk: Disk;

    /// Monotonic time since this node's start.
    fn now(&self) -> Instant;
    fn wall_now(&self) -> WallTime;
    fn sleep_until(&self, at: Instant) -> impl Future<Output = ()> + Send;
    fn sleep(&self, duration: Duration) -> impl Future<Output = ()> + Send {
        self.sleep_until(self.now() + duration)
    }
    /// Runs `work` for at most `duration`; dropped, and so cancelled, when it takes longer.
    fn timeout<F: Future + Send>(
        &self,
        duration: Duration,
        work: F,
    ) -> impl Future<Output = Result<F::Output, Elapsed>> + Send
    where
        F::Output: Send,
    {
        async move {
            let sleep = self.sleep(duration);
            futures::pin_mut!(work);
            futures::pin_mut!(sleep);
            // `select` polls its first argument first: work that is ready in time is never called late.
            match futures::future::select(work, sleep).await {
                futures::future::Either::Left((output, _)) => Ok(output),
                futures::future::Either::Right(((), _)) => Err(Elapsed),
            }
        }
    }

    /// A seeded generator of its own for one concern, named by `stream`. Two calls with one name give two generators.
    fn rng(&self, stream: &str) -> Rng;
    /// A fresh version 4 UUID.
    fn uuid(&self) -> Uuid {
        let mut bytes = [0; 16];
        self.rng("uuid").fill_bytes(&mut bytes);
        Uuid::from_random_bytes(bytes)
    }

    /// Starts a task. Dropping the handle lets the task run on.
    fn spawn(&self, name: &'static str, work: impl Future<Output = ()> + Send + 'static) -> Task {
        let (task, work) = Task::new(work);
        self.spawn_detached(name, Box::pin(work));
        task
    }
    /// What `spawn` rests on.
    fn spawn_detached(&self, name: &'static str, work: futures::future::BoxFuture<'static, ()>);
    /// Runs work that keeps a processor busy or blocks, off the async threads. The number of such threads is bounded.
    fn run_blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> impl Future<Output = T> + Send;

    fn tcp_connect(&self, to: SocketAddr) -> impl Future<Output = io::Result<Self::Stream>> + Send;
    fn tcp_listen(&self, at: SocketAddr) -> impl Future<Output = io::Result<Self::Listener>> + Send;
    fn udp_bind(&self, at: SocketAddr) -> impl Future<Output = io::Result<Self::Udp>> + Send;
    /// Addresses of a host name or IP literal, in a stable order; an error when there is none.
    fn resolve(&self, host: &str, port: u16) -> impl Future<Output = io::Result<Vec<SocketAddr>>> + Send;

    fn disk(&self) -> Self::Disk;

    /// Runs a child process to its end or its timeout; at the timeout its whole process group is killed.
    fn run_process(&self, spec: ProcessSpec) -> impl Future<Output = ProcessOutput> + Send;
    /// Starts a child that writes where this process writes. An error is the system's reason why it did not start.
    ///
    /// Only commands do so, never the agent: a world without terminals need not have it, and then answers
    /// [`io::ErrorKind::Unsupported`].
    fn start_child(&self, _spec: ChildSpec) -> impl Future<Output = io::Result<ChildProcess>> + Send {
        std::future::ready(Err(io::ErrorKind::Unsupported.into()))
    }

    fn host_name(&self) -> String;
    fn interface_addresses(&self) -> Vec<InterfaceAddress>;
    fn environment(&self, name: &str) -> Option<String>;
    fn process_id(&self) -> u32;
    /// What this process takes of the machine.
    fn process_usage(&self) -> ProcessUsage {
        ProcessUsage::default()
    }
    /// Waits for the next signal. One listener at a time; signals sent meanwhile are kept.
    fn next_signal(&self) -> impl Future<Output = Signal> + Send;

    /// Tells the digest what happened.
    fn event(&self, event: Event<'_>);
}
