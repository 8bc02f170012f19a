//! The door of a simulated machine: `Rt` over the world.

use crate::disk::SimDisk;
use crate::net::SocketId;
use crate::world::{MachineId, World};
use bytes::Bytes;
use futures::future::BoxFuture;
use madsim::runtime::NodeHandle;
use quorate_rt::{Event, InterfaceAddress, Listener, ProcessEnd, ProcessOutput, ProcessSpec, Rng, Rt, Signal, Udp};
use quorate_types::{Instant, WallTime};
use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// [`Rt`] for the programs of one boot of one machine. After a kill its tasks do not run and its sockets are closed.
#[derive(Clone)]
pub struct SimRt {
    world: World,
    machine: MachineId,
    boot: u64,
    tasks: NodeHandle,
    started_at: u64,
}

impl SimRt {
    pub(crate) fn new(world: World, machine: MachineId, boot: u64, tasks: NodeHandle) -> Self {
        let started_at = world.local_now(Some(machine));
        Self {
            world,
            machine,
            boot,
            tasks,
            started_at,
        }
    }
    pub fn world(&self) -> &World {
        &self.world
    }
    fn check_alive(&self) -> io::Result<()> {
        match self.world.is_boot(self.machine, self.boot) {
            true => Ok(()),
            false => Err(io::Error::other("the machine was killed")),
        }
    }
}

impl Rt for SimRt {
    type Stream = SimStream;
    type Listener = SimListener;
    type Udp = SimUdp;
    type Disk = SimDisk;

    fn now(&self) -> Instant {
        Instant::from_nanos(self.world.local_now(Some(self.machine)) - self.started_at)
    }
    fn wall_now(&self) -> WallTime {
        WallTime::from_nanos(self.world.with(|state| {
            let now = state.timeline.now();
            state.machine(self.machine).clock.wall(now)
        }))
    }
    async fn sleep_until(&self, at: Instant) {
        // More than one round only when the clock was slowed meanwhile.
        while self.now() < at {
            let local = self.started_at.saturating_add(at.as_nanos());
            self.world
                .sleep_until_virtual(self.world.virtual_of(Some(self.machine), local))
                .await;
        }
    }

    fn rng(&self, stream: &str) -> Rng {
        self.world.rng(self.machine, self.boot, stream)
    }
    fn spawn_detached(&self, _name: &'static str, work: BoxFuture<'static, ()>) {
        // A panic in it ends the world with madsim's report of node and task.
        self.tasks.spawn(work);
    }
    async fn run_blocking<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        work()
    }

    async fn tcp_connect(&self, to: SocketAddr) -> io::Result<SimStream> {
        self.check_alive()?;
        let id = self
            .world
            .with(|state| state.net.connect(&mut state.timeline, self.machine.0, to))?;
        // Made first, so that giving up closes it.
        let stream = SimStream {
            world: self.world.clone(),
            id,
            side: 0,
        };
        poll_fn(|cx| self.world.with(|state| state.net.poll_connected(id, cx))).await?;
        Ok(stream)
    }
    async fn tcp_listen(&self, at: SocketAddr) -> io::Result<SimListener> {
        self.check_alive()?;
        let (id, local) = self.world.with(|state| state.net.listen(self.machine.0, at))?;
        Ok(SimListener {
            world: self.world.clone(),
            id,
            local,
        })
    }
    async fn udp_bind(&self, at: SocketAddr) -> io::Result<SimUdp> {
        self.check_alive()?;
        let (id, local) = self.world.with(|state| state.net.udp_bind(self.machine.0, at))?;
        Ok(SimUdp {
            world: self.world.clone(),
            id,
            local,
        })
    }
    async fn resolve(&self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        let found = match host {
            "localhost" => Some(IpAddr::V4(Ipv4Addr::LOCALHOST)),
            _ => host.parse().ok().or_else(|| self.world.addresses_of(host)),
        };
        match found {
            Some(ip) => Ok(vec![SocketAddr::new(ip, port)]),
            None => Err(io::Error::new(
                io::ErrorKind::NotFound,
                format!("no address for {host}"),
            )),
        }
    }

    fn disk(&self) -> SimDisk {
        SimDisk {
            world: self.world.clone(),
            machine: self.machine,
            boot: self.boot,
        }
    }

    async fn run_process(&self, spec: ProcessSpec) -> ProcessOutput {
        let answer = self.world.with(|state| {
            state
                .timeline
                .note(self.machine.0, "process", spec.argv.join(" ").as_bytes());
            let machine = state.machine(self.machine);
            World::remember_process(machine, spec.argv.clone());
            let matching = |part: &str| spec.argv.iter().any(|argument| argument.contains(part));
            machine
                .processes
                .iter()
                .rev()
                .find(|(part, _)| matching(part))
                .map(|(_, answer)| answer.clone())
        });
        let Some(mut answer) = answer else {
            let end = ProcessEnd::NotStarted("no such file or directory".to_owned());
            return ProcessOutput {
                end,
                output: Vec::new(),
                output_len_bytes: 0,
            };
        };
        self.sleep(answer.delay.min(spec.timeout)).await;
        if answer.delay > spec.timeout {
            answer.end = ProcessEnd::TimedOut;
        }
        let output_len_bytes = answer.output.len() as u64;
        let excess = answer.output.len().saturating_sub(spec.output_len_bytes_max);
        answer.output.drain(..excess);
        ProcessOutput {
            end: answer.end,
            output: answer.output,
            output_len_bytes,
        }
    }

    fn host_name(&self) -> String {
        self.world.with(|state| state.machine(self.machine).name.clone())
    }
    fn interface_addresses(&self) -> Vec<InterfaceAddress> {
        let ip = self.world.with(|state| state.net.ip(self.machine.0));
        let loopback = IpAddr::V4(Ipv4Addr::LOCALHOST);
        [("lo", loopback), ("eth0", ip)]
            .map(|(interface, address)| InterfaceAddress {
                interface: interface.to_owned(),
                address,
            })
            .into()
    }
    fn environment(&self, name: &str) -> Option<String> {
        self.world
            .with(|state| state.machine(self.machine).environment.get(name).cloned())
    }
    fn process_id(&self) -> u32 {
        1000 + u32::try_from(self.boot).unwrap_or(u32::MAX - 1000)
    }
    async fn next_signal(&self) -> Signal {
        poll_fn(|cx| {
            self.world.with(|state| {
                let machine = state.machine(self.machine);
                match machine.signals.pop_front() {
                    Some(signal) => Poll::Ready(signal),
                    None => {
                        machine.signal_waiter = Some(cx.waker().clone());
                        Poll::Pending
                    }
                }
            })
        })
        .await
    }

    fn event(&self, event: Event<'_>) {
        self.world
            .with(|state| state.timeline.note(self.machine.0, event.kind, event.payload));
        self.world.tell(self.machine, event.kind, event.payload);
    }
}

/// One end of a simulated connection.
pub struct SimStream {
    world: World,
    id: u64,
    side: usize,
}

impl SimStream {
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        let found = self.world.with(|state| state.net.addresses(self.id, self.side));
        found
            .map(|(local, _)| local)
            .ok_or_else(|| io::ErrorKind::NotConnected.into())
    }
    pub fn peer_addr(&self) -> io::Result<SocketAddr> {
        let found = self.world.with(|state| state.net.addresses(self.id, self.side));
        found
            .map(|(_, peer)| peer)
            .ok_or_else(|| io::ErrorKind::NotConnected.into())
    }
}

impl AsyncRead for SimStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if buffer.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        let (id, side, len_max) = (self.id, self.side, buffer.remaining());
        let read: Poll<io::Result<Bytes>> = self
            .world
            .with(|state| state.net.poll_read(&mut state.timeline, id, side, len_max, cx));
        read.map_ok(|bytes| buffer.put_slice(&bytes))
    }
}

impl AsyncWrite for SimStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.world
            .with(|state| state.net.poll_write(&mut state.timeline, self.id, self.side, bytes, cx))
    }
    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(
            self.world
                .with(|state| state.net.shutdown(&mut state.timeline, self.id, self.side)),
        )
    }
}

impl Drop for SimStream {
    fn drop(&mut self) {
        self.world
            .with(|state| state.net.close(&mut state.timeline, self.id, self.side));
    }
}

/// A simulated listening socket.
pub struct SimListener {
    world: World,
    id: SocketId,
    local: SocketAddr,
}

impl Listener for SimListener {
    type Stream = SimStream;
    async fn accept(&self) -> io::Result<(SimStream, SocketAddr)> {
        let (id, peer) = poll_fn(|cx| self.world.with(|state| state.net.poll_accept(self.id, cx))).await?;
        Ok((
            SimStream {
                world: self.world.clone(),
                id,
                side: 1,
            },
            peer,
        ))
    }
    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.local)
    }
}

impl Drop for SimListener {
    fn drop(&mut self) {
        self.world
            .with(|state| state.net.listener_close(&mut state.timeline, self.id));
    }
}

/// A simulated datagram socket.
pub struct SimUdp {
    world: World,
    id: SocketId,
    local: SocketAddr,
}

impl Udp for SimUdp {
    async fn send_to(&self, datagram: &[u8], to: SocketAddr) -> io::Result<()> {
        self.world
            .with(|state| state.net.udp_send(&mut state.timeline, self.id, datagram, to))
    }
    async fn recv_from(&self, buffer: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        let (from, payload) = poll_fn(|cx| self.world.with(|state| state.net.poll_recv(self.id, cx))).await?;
        let len = payload.len().min(buffer.len());
        buffer[..len].copy_from_slice(&payload[..len]);
        Ok((len, from))
    }
    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.local)
    }
}

impl Drop for SimUdp {
    fn drop(&mut self) {
        self.world.with(|state| state.net.udp_close(self.id));
    }
}
