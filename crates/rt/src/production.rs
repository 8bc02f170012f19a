//! The door over tokio and the kernel.
//!
//! Promises what the crate's page asks of an implementer: `now` counts suspension of the machine (`CLOCK_BOOTTIME` where
//! the kernel has it), a random stream is keyed by 256 bits of the system's entropy, files are synced with `fdatasync`,
//! and a check script is killed with everything it started.
//! In: calls of [`Rt`]. Out: system calls.
//! Invariants: at most [`BLOCKING_COUNT_MAX`] pieces of blocking work and [`disk::OPERATION_COUNT_MAX`] disk operations run
//! at a time; a task that panics ends the process, because an agent with a dead part still looks alive to its peers.
//! Not here: any decision what to do with an error; it is passed on as the kernel words it.
//! Tests: `tests/production.rs`.

// This module is what the bans point to: all other code reaches clocks, files and sockets through it.
#![allow(clippy::disallowed_methods)]

pub mod disk;
mod process;

use crate::{ChildProcess, ChildSpec, Event, InterfaceAddress, Listener, ProcessOutput, ProcessSpec, ProcessUsage};
use crate::{Rng, Rt, Signal, Udp};
use disk::OsDisk;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use quorate_types::{Instant, WallTime};
use rand_core::{Rng as _, SeedableRng as _};
use std::any::Any;
use std::future::{Future, poll_fn};
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs as _};
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::runtime::Handle;
use tokio::signal::unix::{Signal as SignalStream, SignalKind, signal};
use tokio::sync::Semaphore;

/// Pieces of blocking work that run at a time; more wait. Enough to keep every processor busy while some block.
pub const BLOCKING_COUNT_MAX: usize = 64;

/// tokio's timers stop while the machine is suspended and `now` does not: a long sleep looks at the clock this often, so
/// that it ends at most this late after a resume.
const SLEEP_SLICE: Duration = Duration::from_secs(60);

/// Asked of the kernel for datagram sockets: a burst of gossip must fit while the reader is busy. The kernel may give less.
const UDP_BUFFER_LEN_BYTES: usize = 2 * 1024 * 1024;

/// How long the runtime's end waits for blocking work that nobody waits for any more.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(2);

/// [`Rt`] over tokio and the kernel. Clones share everything.
#[derive(Clone, Debug)]
pub struct TokioRt {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    handle: Handle,
    started_at: Duration,
    root_seed: [u8; 32],
    streams_given: AtomicU64,
    blocking: Arc<Semaphore>,
    disk: OsDisk,
    signals: Mutex<Option<Signals>>,
}

/// Listening begins with the first `next_signal`: before it, and in a process that never asks, signals keep their default
/// effect, so that a command line tool still ends on an interrupt.
#[derive(Debug)]
struct Signals {
    interrupt: SignalStream,
    terminate: SignalStream,
    hangup: SignalStream,
}

impl Signals {
    fn register() -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Signal> {
        // The order decides between signals that arrive together: to stop comes before to reload.
        for (stream, kind) in [
            (&mut self.terminate, Signal::Terminate),
            (&mut self.interrupt, Signal::Interrupt),
            (&mut self.hangup, Signal::Hangup),
        ] {
            if let Poll::Ready(Some(())) = stream.poll_recv(cx) {
                return Poll::Ready(kind);
            }
        }
        Poll::Pending
    }
}

/// Time since some fixed point before this process, suspension included.
fn boot_time() -> io::Result<Duration> {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    let clock = nix::time::ClockId::CLOCK_BOOTTIME;
    // Elsewhere no such clock has a common name; on macOS this one counts suspension.
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    let clock = nix::time::ClockId::CLOCK_MONOTONIC;
    Ok(Duration::from(nix::time::clock_gettime(clock)?))
}

/// How long this process's threads, all together, have run on processors: for measurements that other load must not change.
pub fn process_cpu_time() -> io::Result<Duration> {
    let clock = nix::time::ClockId::CLOCK_PROCESS_CPUTIME_ID;
    Ok(Duration::from(nix::time::clock_gettime(clock)?))
}

/// Runs `main` on a runtime of its own with `threads` worker threads (0: one a processor), to its end.
pub fn block_on<F, Fut>(threads: usize, main: F) -> io::Result<Fut::Output>
where
    F: FnOnce(TokioRt) -> Fut,
    Fut: Future,
{
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    if threads > 0 {
        builder.worker_threads(threads);
    }
    let runtime = builder.enable_all().thread_name("quorate").build()?;
    let output = runtime.block_on(async { Ok(main(TokioRt::new()?).await) });
    runtime.shutdown_timeout(SHUTDOWN_TIMEOUT);
    output
}

/// What a panic said.
fn panic_text(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&'static str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("a value that is no text")
}

/// Runs blocking work under a bound. The permit goes with the work, which runs on when its caller is dropped.
async fn run_bounded<T: Send + 'static>(bound: &Arc<Semaphore>, work: impl FnOnce() -> T + Send + 'static) -> T {
    let permit = Arc::clone(bound)
        .acquire_owned()
        .await
        .expect("the semaphore is never closed");
    let work = tokio::task::spawn_blocking(move || {
        let output = work();
        drop(permit);
        output
    });
    match work.await {
        Ok(output) => output,
        Err(failed) => match failed.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // Cancelled: the runtime is shutting down, and this task goes with it at its next await.
            Err(_) => futures::future::pending().await,
        },
    }
}

impl TokioRt {
    /// Uses the current tokio runtime, which must have its timer and I/O drivers on.
    pub fn new() -> io::Result<Self> {
        let handle = Handle::try_current().map_err(io::Error::other)?;
        let mut root_seed = [0; 32];
        getrandom::fill(&mut root_seed).map_err(io::Error::from)?;
        Ok(Self {
            shared: Arc::new(Shared {
                handle,
                started_at: boot_time()?,
                root_seed,
                streams_given: AtomicU64::new(0),
                blocking: Arc::new(Semaphore::new(BLOCKING_COUNT_MAX)),
                disk: OsDisk::default(),
                signals: Mutex::new(None),
            }),
        })
    }
}

impl Rt for TokioRt {
    type Stream = TcpStream;
    type Listener = OsListener;
    type Udp = OsUdp;
    type Disk = OsDisk;

    fn now(&self) -> Instant {
        let now = boot_time().expect("the clock was read at the start");
        let since_start = now.saturating_sub(self.shared.started_at);
        Instant::from_nanos(u64::try_from(since_start.as_nanos()).unwrap_or(u64::MAX))
    }
    fn wall_now(&self) -> WallTime {
        // A clock set before 1970 reads as 1970.
        let since_epoch = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        WallTime::from_nanos(u64::try_from(since_epoch.as_nanos()).unwrap_or(u64::MAX))
    }
    async fn sleep_until(&self, at: Instant) {
        loop {
            let left = at - self.now();
            if left.is_zero() {
                return;
            }
            tokio::time::sleep(left.min(SLEEP_SLICE)).await;
        }
    }

    fn rng(&self, stream: &str) -> Rng {
        // The counter alone makes each stream a ChaCha stream of its own under a secret key; the name is mixed in so
        // that no two concerns could share one even if the counter went wrong.
        let mut root = Rng::from_seed(self.shared.root_seed);
        root.set_stream(self.shared.streams_given.fetch_add(1, Ordering::Relaxed));
        let mut seed = [0; 32];
        root.fill_bytes(&mut seed);
        for (position, byte) in stream.bytes().enumerate() {
            seed[position % seed.len()] ^= byte;
        }
        Rng::from_seed(seed)
    }

    fn spawn_detached(&self, name: &'static str, work: BoxFuture<'static, ()>) {
        self.shared.handle.spawn(async move {
            if let Err(panic) = AssertUnwindSafe(work).catch_unwind().await {
                tracing::error!(
                    task = name,
                    panic = panic_text(&*panic),
                    "a task panicked: stop the process"
                );
                std::process::abort();
            }
        });
    }
    async fn run_blocking<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        run_bounded(&self.shared.blocking, work).await
    }

    async fn tcp_connect(&self, to: SocketAddr) -> io::Result<TcpStream> {
        let stream = TcpStream::connect(to).await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }
    async fn tcp_listen(&self, at: SocketAddr) -> io::Result<OsListener> {
        // tokio sets SO_REUSEADDR, so that a restart need not wait for old connections to leave TIME_WAIT.
        TcpListener::bind(at).await.map(OsListener)
    }
    async fn udp_bind(&self, at: SocketAddr) -> io::Result<OsUdp> {
        let socket = UdpSocket::bind(at).await?;
        let buffers = socket2::SockRef::from(&socket);
        for enlarged in [
            buffers.set_recv_buffer_size(UDP_BUFFER_LEN_BYTES),
            buffers.set_send_buffer_size(UDP_BUFFER_LEN_BYTES),
        ] {
            if let Err(err) = enlarged {
                tracing::debug!(%at, %err, "keep the system's datagram buffer");
            }
        }
        Ok(OsUdp(socket))
    }
    async fn resolve(&self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        if let Ok(ip) = host.parse::<IpAddr>() {
            return Ok(vec![SocketAddr::new(ip, port)]);
        }
        let name = host.to_owned();
        let found = self
            .run_blocking(move || (name.as_str(), port).to_socket_addrs().map(Vec::from_iter))
            .await;
        let mut addresses = found?;
        addresses.sort();
        addresses.dedup();
        if addresses.is_empty() {
            return Err(io::Error::new(
                io::ErrorKind::NotFound,
                format!("no address for {host}"),
            ));
        }
        Ok(addresses)
    }

    fn disk(&self) -> OsDisk {
        self.shared.disk.clone()
    }

    async fn run_process(&self, spec: ProcessSpec) -> ProcessOutput {
        process::run(spec).await
    }
    async fn start_child(&self, spec: ChildSpec) -> io::Result<ChildProcess> {
        let (child, driver) = process::start_child(&spec)?;
        self.spawn_detached("child-process", Box::pin(driver));
        Ok(child)
    }

    fn host_name(&self) -> String {
        match nix::unistd::gethostname() {
            Ok(name) => name.to_string_lossy().into_owned(),
            Err(err) => {
                tracing::warn!(%err, "read the host name");
                String::new()
            }
        }
    }
    fn interface_addresses(&self) -> Vec<InterfaceAddress> {
        let addresses = match nix::ifaddrs::getifaddrs() {
            Ok(addresses) => addresses,
            Err(err) => {
                tracing::warn!(%err, "list the network interfaces");
                return Vec::new();
            }
        };
        addresses
            .filter_map(|entry| {
                let address = entry.address?;
                let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
                let v6 = || address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip()));
                let address = v4.or_else(v6)?;
                Some(InterfaceAddress {
                    interface: entry.interface_name,
                    address,
                })
            })
            .collect()
    }
    fn environment(&self, name: &str) -> Option<String> {
        std::env::var(name).ok()
    }
    fn process_id(&self) -> u32 {
        std::process::id()
    }
    fn process_usage(&self) -> ProcessUsage {
        // Where the kernel has no such file the numbers are not known.
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        ProcessUsage {
            task_count: self.shared.handle.metrics().num_alive_tasks() as u64,
            ..process::parse_status(&status)
        }
    }
    async fn next_signal(&self) -> Signal {
        poll_fn(|cx| {
            let mut signals = self.shared.signals.lock().unwrap_or_else(PoisonError::into_inner);
            if signals.is_none() {
                match Signals::register() {
                    Ok(registered) => *signals = Some(registered),
                    Err(err) => {
                        // Signals then keep their default effect, which still stops the process.
                        tracing::warn!(%err, "listen for signals");
                        return Poll::Pending;
                    }
                }
            }
            match &mut *signals {
                Some(signals) => signals.poll_next(cx),
                None => Poll::Pending,
            }
        })
        .await
    }

    fn event(&self, _event: Event<'_>) {}
}

/// A listening socket of the kernel.
#[derive(Debug)]
pub struct OsListener(TcpListener);

impl Listener for OsListener {
    type Stream = TcpStream;
    async fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        let (stream, peer) = self.0.accept().await?;
        stream.set_nodelay(true)?;
        Ok((stream, peer))
    }
    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }
}

/// A datagram socket of the kernel.
#[derive(Debug)]
pub struct OsUdp(UdpSocket);

impl Udp for OsUdp {
    async fn send_to(&self, datagram: &[u8], to: SocketAddr) -> io::Result<()> {
        self.0.send_to(datagram, to).await.map(drop)
    }
    async fn recv_from(&self, buffer: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        self.0.recv_from(buffer).await
    }
    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }
}
