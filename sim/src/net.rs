//! The network between the machines: datagrams and streams over links that delay, lose, duplicate and are cut.
//!
//! Datagrams: each draws its latency, so they overtake one another; lost at random, in a cut, or when the reader's queue is
//! full. Streams: ordered bytes with a handshake, a window, half close and reset. What a cut or a loss takes is sent again
//! with a backoff of at most [`RETRANSMIT_BACKOFF_MAX`], so that after a heal it still arrives.
//!
//! A connection's life, as its client sees it:
//! ```text
//! syn ──(listener)──> connected ──(shutdown)──> half closed ──(peer's end)──> closed
//!  ├──(no listener)──> refused, after a round trip           any ──(peer forgot us, or dropped unread bytes)──> reset
//!  └──(cut, no machine, machine without power)──> syn again, until the caller's patience or [`CONNECT_TIMEOUT`] ends
//! ```
//! After power loss a machine says nothing; once it is up again it resets what it no longer knows. A process that dies on
//! a machine that stays up has its connections closed by the kernel.
//! Invariants: bytes arrive in order, once, or not at all; at most [`WINDOW_LEN`] bytes are unread by the peer's program.
//! Not here: packet sizes, ICMP.

use crate::timeline::{Event, Timeline};
use bytes::Bytes;
use quorate_rt::Rng;
use rand_core::Rng as _;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

/// Bytes a stream carries that the peer's program has not read.
pub const WINDOW_LEN: u64 = 256 * 1024;
/// Longest piece that travels as one.
const SEGMENT_LEN_MAX: usize = 64 * 1024;
pub const RETRANSMIT_BACKOFF_MIN: Duration = Duration::from_millis(200);
pub const RETRANSMIT_BACKOFF_MAX: Duration = Duration::from_secs(3);
/// Linux gives up a connection attempt after about this long (6 repeats of the SYN).
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(127);
/// Linux gives up on a peer that acknowledges nothing after about this long (15 retransmissions).
pub const SILENCE_TIMEOUT: Duration = Duration::from_secs(924);
/// Connections that wait to be accepted, at each listener.
const BACKLOG_COUNT_MAX: usize = 1024;
/// What a datagram socket holds unread, as a kernel's default buffer does.
const DATAGRAM_QUEUE_LEN_BYTES_MAX: usize = 212_992;
/// The most a UDP datagram over IPv4 carries.
const DATAGRAM_LEN_MAX: usize = 65_507;
const EPHEMERAL_PORTS: Range<u16> = 32_768..61_000;

pub(crate) type Machine = usize;
pub(crate) type SocketId = u64;

/// How a direction between two machines behaves.
#[derive(Clone, Debug)]
pub struct Link {
    pub latency: Range<Duration>,
    /// Of datagrams that vanish, and of stream segments that have to be sent again.
    pub loss_ratio: f64,
    /// Of datagrams that arrive twice.
    pub duplicate_ratio: f64,
    /// What passes a second; all streams and datagrams of the direction share it. `None`: no bound.
    pub bytes_per_second: Option<u64>,
}

impl Default for Link {
    fn default() -> Self {
        Self {
            latency: Duration::from_micros(200)..Duration::from_micros(800),
            loss_ratio: 0.0,
            duplicate_ratio: 0.0,
            bytes_per_second: None,
        }
    }
}

/// Directions through which nothing passes while it lasts.
#[derive(Clone, Debug)]
pub(crate) enum Cut {
    /// From the first to the second, one way.
    Pairs(BTreeSet<(Machine, Machine)>),
    /// Machines of different sides. Who is on no side reaches all.
    Partition(Vec<BTreeSet<Machine>>),
    /// Both ways to and from all others.
    Isolate(Machine),
}

impl Cut {
    fn holds(&self, from: Machine, to: Machine) -> bool {
        match self {
            Self::Pairs(pairs) => pairs.contains(&(from, to)),
            Self::Partition(sides) => {
                let side = |machine| sides.iter().position(|side| side.contains(&machine));
                matches!((side(from), side(to)), (Some(from), Some(to)) if from != to)
            }
            Self::Isolate(machine) => (*machine == from) != (*machine == to),
        }
    }
}

/// What reaches its end.
#[derive(Debug)]
pub(crate) enum Arrival {
    Datagram {
        from_machine: Machine,
        to_machine: Machine,
        from: SocketAddr,
        to: SocketAddr,
        payload: Bytes,
    },
    Syn {
        connection: u64,
    },
    SynAgain {
        connection: u64,
    },
    Refused {
        connection: u64,
    },
    /// `side` is the receiver's.
    Segment {
        connection: u64,
        side: usize,
        offset: u64,
        piece: Piece,
    },
    /// `side` is the sender's.
    Retransmit {
        connection: u64,
        side: usize,
    },
    /// `side` is the one that may send more.
    Window {
        connection: u64,
        side: usize,
        read_len: u64,
    },
    Reset {
        connection: u64,
        side: usize,
    },
}

#[derive(Clone, Debug)]
pub(crate) enum Piece {
    SynAck,
    Data(Bytes),
    Fin,
}

impl Piece {
    /// Its room in the sequence, as in TCP: the handshake's and the end's mark take one.
    fn len(&self) -> u64 {
        match self {
            Self::SynAck | Self::Fin => 1,
            Self::Data(bytes) => bytes.len() as u64,
        }
    }
}

#[derive(Debug)]
struct Host {
    ip: IpAddr,
    /// Has power: its kernel answers, whether or not a program runs.
    up: bool,
    next_port: u16,
}

#[derive(Debug)]
struct UdpSocket {
    machine: Machine,
    local: SocketAddr,
    queue: VecDeque<(SocketAddr, Bytes)>,
    queue_len_bytes: usize,
    readers: Vec<Waker>,
}

#[derive(Debug)]
struct Listening {
    machine: Machine,
    local: SocketAddr,
    backlog: VecDeque<u64>,
    acceptors: Vec<Waker>,
}

/// One end of a connection.
#[derive(Debug)]
struct End {
    machine: Machine,
    local: SocketAddr,
    /// A program (or a listener's backlog) holds it.
    open: bool,
    /// The machine's kernel knows it.
    known: bool,
    connected: bool,
    failed: Option<io::ErrorKind>,

    written: u64,
    data_written: u64,
    data_read_by_peer: u64,
    fin_written: bool,
    /// What has to be sent (again), held back in order behind the first.
    unsent: BTreeMap<u64, Piece>,
    retransmit_pending: bool,
    retransmit_count: u32,
    silent_since: Option<u64>,
    last_arrival_at: u64,

    received: u64,
    reassembly: BTreeMap<u64, Piece>,
    readable: VecDeque<Bytes>,
    data_read: u64,
    data_read_told: u64,
    ended: bool,

    reader: Option<Waker>,
    writer: Option<Waker>,
}

impl End {
    fn new(machine: Machine, local: SocketAddr) -> Self {
        Self {
            machine,
            local,
            open: false,
            known: false,
            connected: false,
            failed: None,
            written: 0,
            data_written: 0,
            data_read_by_peer: 0,
            fin_written: false,
            unsent: BTreeMap::new(),
            retransmit_pending: false,
            retransmit_count: 0,
            silent_since: None,
            last_arrival_at: 0,
            received: 0,
            reassembly: BTreeMap::new(),
            readable: VecDeque::new(),
            data_read: 0,
            data_read_told: 0,
            ended: false,
            reader: None,
            writer: None,
        }
    }
    fn wakers(&mut self) -> impl Iterator<Item = Waker> + use<> {
        self.reader.take().into_iter().chain(self.writer.take())
    }
}

#[derive(Debug)]
struct Connection {
    ends: [End; 2],
    syn_count: u32,
    syn_first_at: u64,
}

pub(crate) struct Net {
    rng: Rng,
    hosts: Vec<Host>,
    by_ip: BTreeMap<IpAddr, Machine>,
    pub link: Link,
    links: BTreeMap<(Machine, Machine), Link>,
    /// When a bounded direction has passed on what was given to it.
    busy_until: BTreeMap<(Machine, Machine), u64>,
    cuts: BTreeMap<u64, Cut>,
    cuts_made: u64,
    ids_made: u64,
    udp: BTreeMap<SocketId, UdpSocket>,
    udp_ports: BTreeMap<(Machine, u16), Vec<SocketId>>,
    listeners: BTreeMap<SocketId, Listening>,
    listener_ports: BTreeMap<(Machine, u16), Vec<SocketId>>,
    connections: BTreeMap<u64, Connection>,
    /// Local ports of connections, so that a new one takes a free port.
    client_ports: BTreeSet<(Machine, u16)>,
}

const CLIENT: usize = 0;
const SERVER: usize = 1;

/// What a router holds of a slow link's datagrams; later ones are dropped.
const QUEUEING_DELAY_MAX: Duration = Duration::from_millis(500);

fn loopback_link() -> Link {
    Link {
        latency: Duration::from_micros(15)..Duration::from_micros(45),
        ..Link::default()
    }
}

fn draw(rng: &mut Rng, ratio: f64) -> bool {
    ratio > 0.0 && f64::from(rng.next_u32()) < ratio * (f64::from(u32::MAX) + 1.0)
}

fn backoff(first: Duration, count: u32) -> Duration {
    (first * 2u32.saturating_pow(count.min(8))).min(RETRANSMIT_BACKOFF_MAX)
}

/// Of the sockets at a port, the one that takes what is sent to `ip`: bound to it, or to any.
fn serving(ids: Option<&Vec<SocketId>>, ip: IpAddr, local: impl Fn(SocketId) -> SocketAddr) -> Option<SocketId> {
    let ids = ids?;
    let bound = |wanted: &dyn Fn(IpAddr) -> bool| ids.iter().copied().find(|&id| wanted(local(id).ip()));
    bound(&|at| at == ip).or_else(|| bound(&|at| at.is_unspecified()))
}

impl Net {
    pub fn new(rng: Rng) -> Self {
        Self {
            rng,
            hosts: Vec::new(),
            by_ip: BTreeMap::new(),
            link: Link::default(),
            links: BTreeMap::new(),
            busy_until: BTreeMap::new(),
            cuts: BTreeMap::new(),
            cuts_made: 0,
            ids_made: 0,
            udp: BTreeMap::new(),
            udp_ports: BTreeMap::new(),
            listeners: BTreeMap::new(),
            listener_ports: BTreeMap::new(),
            connections: BTreeMap::new(),
            client_ports: BTreeSet::new(),
        }
    }
    pub fn add_host(&mut self, ip: IpAddr) -> Machine {
        assert!(
            !ip.is_loopback() && !ip.is_unspecified(),
            "a machine has an address that others reach"
        );
        let machine = self.hosts.len();
        let before = self.by_ip.insert(ip, machine);
        assert!(before.is_none(), "two machines with the address {ip}");
        self.hosts.push(Host {
            ip,
            up: true,
            next_port: EPHEMERAL_PORTS.start,
        });
        machine
    }
    pub fn ip(&self, machine: Machine) -> IpAddr {
        self.hosts[machine].ip
    }
    /// Moves a machine to a new address. What it had open at the old one hears no more.
    pub fn set_ip(&mut self, machine: Machine, ip: IpAddr) {
        self.by_ip.remove(&self.hosts[machine].ip);
        let before = self.by_ip.insert(ip, machine);
        assert!(before.is_none(), "two machines with the address {ip}");
        self.hosts[machine].ip = ip;
    }

    // Faults

    pub fn set_link(&mut self, from: Machine, to: Machine, link: Link) {
        self.links.insert((from, to), link);
    }
    pub fn clear_links(&mut self) {
        self.links.clear();
    }
    pub fn add_cut(&mut self, cut: Cut) -> u64 {
        self.cuts_made += 1;
        self.cuts.insert(self.cuts_made, cut);
        self.cuts_made
    }
    pub fn remove_cut(&mut self, cut: u64) {
        self.cuts.remove(&cut);
    }
    pub fn remove_cuts(&mut self) {
        self.cuts.clear();
    }
    pub fn is_cut(&self, from: Machine, to: Machine) -> bool {
        from != to && self.cuts.values().any(|cut| cut.holds(from, to))
    }
    fn link_between(&self, from: Machine, to: Machine) -> Link {
        match from == to {
            true => loopback_link(),
            false => self.links.get(&(from, to)).unwrap_or(&self.link).clone(),
        }
    }
    /// Whether something sent now is lost on the way.
    fn is_lost(&mut self, from: Machine, to: Machine) -> bool {
        self.is_cut(from, to) || {
            let ratio = self.link_between(from, to).loss_ratio;
            draw(&mut self.rng, ratio)
        }
    }
    fn latency(&mut self, from: Machine, to: Machine) -> Duration {
        let range = self.link_between(from, to).latency;
        let width = u64::try_from(range.end.saturating_sub(range.start).as_nanos()).unwrap_or(u64::MAX);
        match width {
            0 => range.start,
            _ => range.start + Duration::from_nanos(self.rng.next_u64() % width),
        }
    }

    /// How long something of this length waits for the direction and passes through it.
    fn queueing_delay(&self, now: u64, from: Machine, to: Machine, len_bytes: u64) -> Duration {
        let Some(rate) = self.link_between(from, to).bytes_per_second else {
            return Duration::ZERO;
        };
        let busy = self
            .busy_until
            .get(&(from, to))
            .map_or(0, |until| until.saturating_sub(now));
        Duration::from_nanos(busy.saturating_add(len_bytes.saturating_mul(1_000_000_000) / rate.max(1)))
    }
    fn occupy(&mut self, now: u64, from: Machine, to: Machine, delay: Duration) {
        if !delay.is_zero() {
            self.busy_until.insert((from, to), now + delay.as_nanos() as u64);
        }
    }

    /// The programs of a machine died. With power the kernel closes what they held; without, nobody hears of it.
    pub fn kill(&mut self, timeline: &mut Timeline, machine: Machine, power_loss: bool) {
        let udp: Vec<SocketId> = self
            .udp
            .iter()
            .filter(|(_, it)| it.machine == machine)
            .map(|(&id, _)| id)
            .collect();
        udp.into_iter().for_each(|id| self.udp_close(id));
        let listening = self.listeners.iter().filter(|(_, it)| it.machine == machine);
        let listening: Vec<SocketId> = listening.map(|(&id, _)| id).collect();
        if power_loss {
            self.hosts[machine].up = false;
            for connection in self.connections.values_mut() {
                for end in connection.ends.iter_mut().filter(|end| end.machine == machine) {
                    end.open = false;
                    end.known = false;
                    end.unsent.clear();
                }
            }
        } else {
            let held: Vec<(u64, usize)> = self
                .connections
                .iter()
                .flat_map(|(&id, it)| [CLIENT, SERVER].map(|side| (id, side, &it.ends[side])))
                .filter(|(_, _, end)| end.machine == machine && end.open)
                .map(|(id, side, _)| (id, side))
                .collect();
            held.into_iter().for_each(|(id, side)| self.close(timeline, id, side));
        }
        listening.into_iter().for_each(|id| self.listener_close(timeline, id));
        let ids: Vec<u64> = self.connections.keys().copied().collect();
        ids.into_iter().for_each(|id| self.forget_if_done(id));
    }
    pub fn power_on(&mut self, machine: Machine) {
        self.hosts[machine].up = true;
    }
    /// Resets every connection between two machines, as a firewall that lost its state does.
    pub fn reset_between(&mut self, timeline: &mut Timeline, a: Machine, b: Machine) {
        for connection in self.connections.values_mut() {
            let [client, server] = &mut connection.ends;
            if ![(a, b), (b, a)].contains(&(client.machine, server.machine)) {
                continue;
            }
            for end in [client, server] {
                end.failed = Some(io::ErrorKind::ConnectionReset);
                end.unsent.clear();
                timeline.note(end.machine, "net.reset", &end.local.port().to_le_bytes());
                timeline.wake(end.wakers());
            }
        }
    }

    // Addresses

    fn check_bind(&self, machine: Machine, at: SocketAddr) -> io::Result<()> {
        let own = at.ip().is_unspecified() || at.ip().is_loopback() || at.ip() == self.hosts[machine].ip;
        match own {
            true => Ok(()),
            false => Err(io::Error::new(
                io::ErrorKind::AddrNotAvailable,
                format!("{at}: cannot assign requested address"),
            )),
        }
    }
    fn free_port(&mut self, machine: Machine, used: impl Fn(&Self, u16) -> bool) -> io::Result<u16> {
        for _ in EPHEMERAL_PORTS {
            let port = self.hosts[machine].next_port;
            self.hosts[machine].next_port = if port + 1 < EPHEMERAL_PORTS.end {
                port + 1
            } else {
                EPHEMERAL_PORTS.start
            };
            if !used(self, port) {
                return Ok(port);
            }
        }
        Err(io::Error::new(
            io::ErrorKind::AddrNotAvailable,
            "cannot assign requested address",
        ))
    }
    /// Which machine `ip` means to `machine`, if any.
    fn machine_at(&self, machine: Machine, ip: IpAddr) -> Option<Machine> {
        match ip.is_loopback() || ip.is_unspecified() {
            true => Some(machine),
            false => self.by_ip.get(&ip).copied(),
        }
    }
    /// The address others see something sent from.
    fn source_ip(&self, machine: Machine, bound: IpAddr, to: IpAddr) -> IpAddr {
        match bound.is_unspecified() {
            true if to.is_loopback() || to.is_unspecified() => to,
            true => self.hosts[machine].ip,
            false => bound,
        }
    }
    fn next_id(&mut self) -> u64 {
        self.ids_made += 1;
        self.ids_made
    }

    // Datagrams

    pub fn udp_bind(&mut self, machine: Machine, at: SocketAddr) -> io::Result<(SocketId, SocketAddr)> {
        self.check_bind(machine, at)?;
        let port = match at.port() {
            0 => self.free_port(machine, |net, port| net.udp_ports.contains_key(&(machine, port)))?,
            port => port,
        };
        let ids = self.udp_ports.get(&(machine, port)).into_iter().flatten();
        check_free(ids.map(|id| self.udp[id].local.ip()), SocketAddr::new(at.ip(), port))?;
        let id = self.next_id();
        let local = SocketAddr::new(at.ip(), port);
        self.udp_ports.entry((machine, port)).or_default().push(id);
        let socket = UdpSocket {
            machine,
            local,
            queue: VecDeque::new(),
            queue_len_bytes: 0,
            readers: Vec::new(),
        };
        self.udp.insert(id, socket);
        Ok((id, local))
    }
    pub fn udp_close(&mut self, id: SocketId) {
        if let Some(socket) = self.udp.remove(&id) {
            forget_port(&mut self.udp_ports, (socket.machine, socket.local.port()), id);
        }
    }
    pub fn udp_send(
        &mut self,
        timeline: &mut Timeline,
        id: SocketId,
        payload: &[u8],
        to: SocketAddr,
    ) -> io::Result<()> {
        let Some(socket) = self.udp.get(&id) else {
            return Err(io::ErrorKind::NotConnected.into());
        };
        if payload.len() > DATAGRAM_LEN_MAX {
            // EMSGSIZE
            return Err(io::Error::from_raw_os_error(90));
        }
        let (machine, local) = (socket.machine, socket.local);
        let Some(to_machine) = self.machine_at(machine, to.ip()) else {
            return Ok(());
        };
        let from = SocketAddr::new(self.source_ip(machine, local.ip(), to.ip()), local.port());
        if self.is_lost(machine, to_machine) {
            timeline.note(machine, "net.datagram_lost", payload);
            return Ok(());
        }
        let ratio = self.link_between(machine, to_machine).duplicate_ratio;
        let count = if draw(&mut self.rng, ratio) { 2 } else { 1 };
        let payload = Bytes::copy_from_slice(payload);
        for _ in 0..count {
            let now = timeline.now();
            let queueing = self.queueing_delay(now, machine, to_machine, payload.len() as u64);
            if queueing > QUEUEING_DELAY_MAX {
                timeline.note(machine, "net.datagram_lost", &payload);
                continue;
            }
            self.occupy(now, machine, to_machine, queueing);
            let latency = queueing + self.latency(machine, to_machine);
            let payload = payload.clone();
            let arrival = Arrival::Datagram {
                from_machine: machine,
                to_machine,
                from,
                to,
                payload,
            };
            timeline.schedule_in(latency, Event::Net(arrival));
        }
        Ok(())
    }
    fn datagram(
        &mut self,
        timeline: &mut Timeline,
        to_machine: Machine,
        from: SocketAddr,
        to: SocketAddr,
        payload: Bytes,
    ) {
        let ids = self.udp_ports.get(&(to_machine, to.port()));
        let Some(id) = serving(ids, to.ip(), |id| self.udp[&id].local) else {
            return;
        };
        let socket = self.udp.get_mut(&id).expect("a port leads to a socket");
        if socket.queue_len_bytes + payload.len() > DATAGRAM_QUEUE_LEN_BYTES_MAX {
            timeline.note(to_machine, "net.datagram_overflow", &payload);
            return;
        }
        timeline.note(to_machine, "net.datagram", &payload);
        socket.queue_len_bytes += payload.len();
        socket.queue.push_back((from, payload));
        timeline.wake(socket.readers.drain(..));
    }
    pub fn poll_recv(&mut self, id: SocketId, cx: &mut Context<'_>) -> Poll<io::Result<(SocketAddr, Bytes)>> {
        let Some(socket) = self.udp.get_mut(&id) else {
            return Poll::Ready(Err(io::ErrorKind::NotConnected.into()));
        };
        match socket.queue.pop_front() {
            Some((from, payload)) => {
                socket.queue_len_bytes -= payload.len();
                Poll::Ready(Ok((from, payload)))
            }
            None => {
                add_waker(&mut socket.readers, cx.waker());
                Poll::Pending
            }
        }
    }

    // Listening

    pub fn listen(&mut self, machine: Machine, at: SocketAddr) -> io::Result<(SocketId, SocketAddr)> {
        self.check_bind(machine, at)?;
        let port = match at.port() {
            0 => self.free_port(machine, |net, port| {
                net.listener_ports.contains_key(&(machine, port)) || net.client_ports.contains(&(machine, port))
            })?,
            port => port,
        };
        let ids = self.listener_ports.get(&(machine, port)).into_iter().flatten();
        check_free(
            ids.map(|id| self.listeners[id].local.ip()),
            SocketAddr::new(at.ip(), port),
        )?;
        let id = self.next_id();
        let local = SocketAddr::new(at.ip(), port);
        self.listener_ports.entry((machine, port)).or_default().push(id);
        self.listeners.insert(
            id,
            Listening {
                machine,
                local,
                backlog: VecDeque::new(),
                acceptors: Vec::new(),
            },
        );
        Ok((id, local))
    }
    pub fn listener_close(&mut self, timeline: &mut Timeline, id: SocketId) {
        if let Some(listener) = self.listeners.remove(&id) {
            forget_port(&mut self.listener_ports, (listener.machine, listener.local.port()), id);
            for connection in listener.backlog {
                self.close(timeline, connection, SERVER);
            }
        }
    }
    pub fn poll_accept(&mut self, id: SocketId, cx: &mut Context<'_>) -> Poll<io::Result<(u64, SocketAddr)>> {
        let Some(listener) = self.listeners.get_mut(&id) else {
            return Poll::Ready(Err(io::ErrorKind::NotConnected.into()));
        };
        match listener.backlog.pop_front() {
            Some(connection) => {
                let peer = self.connections[&connection].ends[CLIENT].local;
                Poll::Ready(Ok((connection, peer)))
            }
            None => {
                add_waker(&mut listener.acceptors, cx.waker());
                Poll::Pending
            }
        }
    }

    // Connections

    pub fn connect(&mut self, timeline: &mut Timeline, machine: Machine, to: SocketAddr) -> io::Result<u64> {
        let port = self.free_port(machine, |net, port| {
            net.listener_ports.contains_key(&(machine, port)) || net.client_ports.contains(&(machine, port))
        })?;
        self.client_ports.insert((machine, port));
        let local_ip = self.source_ip(machine, IpAddr::from([0, 0, 0, 0]), to.ip());
        let mut client = End::new(machine, SocketAddr::new(local_ip, port));
        client.open = true;
        client.known = true;
        // An address of nobody is a machine that never answers: the largest number there is stands for it.
        let server = End::new(self.machine_at(machine, to.ip()).unwrap_or(Machine::MAX), to);
        let id = self.next_id();
        let syn_first_at = timeline.now();
        self.connections.insert(
            id,
            Connection {
                ends: [client, server],
                syn_count: 0,
                syn_first_at,
            },
        );
        self.send_syn(timeline, id);
        Ok(id)
    }
    fn send_syn(&mut self, timeline: &mut Timeline, id: u64) {
        let Some(connection) = self.connections.get(&id) else {
            return;
        };
        let [client, server] = &connection.ends;
        if !client.open || !client.known || client.connected || client.failed.is_some() {
            return;
        }
        let (from, to) = (client.machine, server.machine);
        if timeline.now() - connection.syn_first_at > CONNECT_TIMEOUT.as_nanos() as u64 {
            self.fail(timeline, id, CLIENT, io::ErrorKind::TimedOut);
        } else if to == Machine::MAX || self.is_lost(from, to) {
            self.send_syn_later(timeline, id);
        } else {
            let latency = self.latency(from, to);
            timeline.schedule_in(latency, Event::Net(Arrival::Syn { connection: id }));
        }
    }
    fn send_syn_later(&mut self, timeline: &mut Timeline, id: u64) {
        let Some(connection) = self.connections.get_mut(&id) else {
            return;
        };
        let delay = backoff(Duration::from_secs(1), connection.syn_count);
        connection.syn_count += 1;
        timeline.schedule_in(delay, Event::Net(Arrival::SynAgain { connection: id }));
    }
    fn syn(&mut self, timeline: &mut Timeline, id: u64) {
        let Some(connection) = self.connections.get(&id) else {
            return;
        };
        let (client, to) = (connection.ends[CLIENT].machine, connection.ends[SERVER].local);
        let server = connection.ends[SERVER].machine;
        if self.is_cut(client, server) || !self.hosts[server].up {
            return self.send_syn_later(timeline, id);
        }
        let listener = serving(self.listener_ports.get(&(server, to.port())), to.ip(), |id| {
            self.listeners[&id].local
        });
        // A machine that moved away from the address does not answer there.
        let listener = listener.filter(|_| self.machine_at(client, to.ip()) == Some(server));
        let Some(listener) = listener else {
            if self.is_cut(server, client) {
                return self.send_syn_later(timeline, id);
            }
            let latency = self.latency(server, client);
            timeline.schedule_in(latency, Event::Net(Arrival::Refused { connection: id }));
            return;
        };
        let listener = self.listeners.get_mut(&listener).expect("a port leads to a listener");
        if listener.backlog.len() >= BACKLOG_COUNT_MAX {
            return self.send_syn_later(timeline, id);
        }
        listener.backlog.push_back(id);
        timeline.wake(listener.acceptors.drain(..));
        timeline.note(server, "net.accept", &to.port().to_le_bytes());
        let end = &mut self.connections.get_mut(&id).expect("looked up above").ends[SERVER];
        end.open = true;
        end.known = true;
        end.connected = true;
        self.send(timeline, id, SERVER, Piece::SynAck);
    }
    pub fn poll_connected(&mut self, id: u64, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some(end) = self.end_mut(id, CLIENT) else {
            return Poll::Ready(Err(io::ErrorKind::NotConnected.into()));
        };
        match end.failed {
            Some(kind) => Poll::Ready(Err(kind.into())),
            None if end.connected => Poll::Ready(Ok(())),
            None => {
                end.writer = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
    fn end_mut(&mut self, id: u64, side: usize) -> Option<&mut End> {
        self.connections
            .get_mut(&id)
            .map(|connection| &mut connection.ends[side])
    }
    pub fn addresses(&self, id: u64, side: usize) -> Option<(SocketAddr, SocketAddr)> {
        let connection = self.connections.get(&id)?;
        Some((connection.ends[side].local, connection.ends[1 - side].local))
    }
    fn fail(&mut self, timeline: &mut Timeline, id: u64, side: usize, kind: io::ErrorKind) {
        let Some(end) = self.end_mut(id, side) else { return };
        end.failed = Some(kind);
        end.unsent.clear();
        timeline.wake(end.wakers());
    }

    /// Gives a piece its place in the sequence and sends it, or holds it behind what waits already.
    fn send(&mut self, timeline: &mut Timeline, id: u64, side: usize, piece: Piece) {
        let end = self.end_mut(id, side).expect("its program just used it");
        let offset = end.written;
        end.written += piece.len();
        if end.unsent.is_empty() {
            self.transmit(timeline, id, side, offset, piece);
        } else {
            end.unsent.insert(offset, piece);
        }
    }
    fn transmit(&mut self, timeline: &mut Timeline, id: u64, side: usize, offset: u64, piece: Piece) {
        let connection = &self.connections[&id];
        let (from, to) = (connection.ends[side].machine, connection.ends[1 - side].machine);
        if self.is_lost(from, to) {
            return self.hold(timeline, id, side, offset, piece);
        }
        let now = timeline.now();
        let queueing = self.queueing_delay(now, from, to, piece.len());
        self.occupy(now, from, to, queueing);
        let latency = u64::try_from((queueing + self.latency(from, to)).as_nanos()).unwrap_or(u64::MAX);
        let end = self.end_mut(id, side).expect("looked up above");
        // Segments of one stream share a path: they do not overtake.
        let at = now.saturating_add(latency).max(end.last_arrival_at);
        end.last_arrival_at = at;
        let arrival = Arrival::Segment {
            connection: id,
            side: 1 - side,
            offset,
            piece,
        };
        timeline.schedule(at, Event::Net(arrival));
    }
    /// What got lost waits to be sent again.
    fn hold(&mut self, timeline: &mut Timeline, id: u64, side: usize, offset: u64, piece: Piece) {
        let now = timeline.now();
        let end = self.end_mut(id, side).expect("the caller looked it up");
        end.unsent.insert(offset, piece);
        end.silent_since.get_or_insert(now);
        if !end.retransmit_pending {
            end.retransmit_pending = true;
            let delay = backoff(RETRANSMIT_BACKOFF_MIN, end.retransmit_count);
            end.retransmit_count += 1;
            timeline.schedule_in(delay, Event::Net(Arrival::Retransmit { connection: id, side }));
        }
    }
    fn retransmit(&mut self, timeline: &mut Timeline, id: u64, side: usize) {
        let now = timeline.now();
        let Some(end) = self.end_mut(id, side) else { return };
        end.retransmit_pending = false;
        if !end.known || end.failed.is_some() {
            end.unsent.clear();
            return;
        }
        let silent = end.silent_since.map_or(0, |since| now - since);
        if silent > SILENCE_TIMEOUT.as_nanos() as u64 {
            self.fail(timeline, id, side, io::ErrorKind::TimedOut);
            return self.forget_if_done(id);
        }
        let unsent = std::mem::take(&mut end.unsent);
        for (offset, piece) in unsent {
            let end = self.end_mut(id, side).expect("looked up above");
            match end.unsent.is_empty() {
                true => self.transmit(timeline, id, side, offset, piece),
                false => {
                    end.unsent.insert(offset, piece);
                }
            }
        }
    }
    fn segment(&mut self, timeline: &mut Timeline, id: u64, side: usize, offset: u64, piece: Piece) {
        let Some(connection) = self.connections.get(&id) else {
            return;
        };
        let (to, from) = (&connection.ends[side], &connection.ends[1 - side]);
        let (to_machine, from_machine, sender_known) = (to.machine, from.machine, from.known);
        // A machine that took a new address is no longer where this was sent.
        let moved = self.machine_at(from_machine, to.local.ip()) != Some(to_machine);
        if self.is_cut(from_machine, to_machine) || !self.hosts[to_machine].up || moved {
            if sender_known {
                self.hold(timeline, id, 1 - side, offset, piece);
            }
            return;
        }
        let fin = matches!(piece, Piece::Fin);
        if !to.known || (!to.open && !fin) {
            // Nobody reads this any more.
            if self.is_lost(to_machine, from_machine) {
                if sender_known {
                    self.hold(timeline, id, 1 - side, offset, piece);
                }
                return;
            }
            return self.send_reset(timeline, id, 1 - side);
        }
        let connection = self.connections.get_mut(&id).expect("looked up above");
        let sender = &mut connection.ends[1 - side];
        sender.retransmit_count = 0;
        sender.silent_since = None;
        let end = &mut connection.ends[side];
        end.reassembly.insert(offset, piece);
        while let Some(piece) = end.reassembly.remove(&end.received) {
            end.received += piece.len();
            match piece {
                Piece::SynAck => {
                    end.connected = true;
                    timeline.note(to_machine, "net.connected", &[]);
                }
                Piece::Data(bytes) => {
                    timeline.note(to_machine, "net.segment", &bytes);
                    end.readable.push_back(bytes);
                }
                Piece::Fin => {
                    timeline.note(to_machine, "net.fin", &[]);
                    end.ended = true;
                }
            }
        }
        timeline.wake(end.wakers());
    }
    /// Tells one side that the other knows no such connection.
    fn send_reset(&mut self, timeline: &mut Timeline, id: u64, side: usize) {
        let connection = &self.connections[&id];
        let (from, to) = (connection.ends[1 - side].machine, connection.ends[side].machine);
        let latency = self.latency(from, to);
        timeline.schedule_in(latency, Event::Net(Arrival::Reset { connection: id, side }));
    }

    pub fn arrive(&mut self, timeline: &mut Timeline, arrival: Arrival) {
        match arrival {
            Arrival::Datagram {
                from_machine,
                to_machine,
                from,
                to,
                payload,
            } => {
                let reached = self.hosts[to_machine].up && self.machine_at(from_machine, to.ip()) == Some(to_machine);
                if reached && !self.is_cut(from_machine, to_machine) {
                    self.datagram(timeline, to_machine, from, to, payload);
                }
            }
            Arrival::Syn { connection } => self.syn(timeline, connection),
            Arrival::SynAgain { connection } => self.send_syn(timeline, connection),
            Arrival::Refused { connection } => {
                self.fail(timeline, connection, CLIENT, io::ErrorKind::ConnectionRefused);
            }
            Arrival::Segment {
                connection,
                side,
                offset,
                piece,
            } => {
                self.segment(timeline, connection, side, offset, piece);
            }
            Arrival::Retransmit { connection, side } => self.retransmit(timeline, connection, side),
            Arrival::Window {
                connection,
                side,
                read_len,
            } => self.window(timeline, connection, side, read_len),
            Arrival::Reset { connection, side } => {
                let Some(it) = self.connections.get(&connection) else {
                    return;
                };
                let (from, to) = (it.ends[1 - side].machine, it.ends[side].machine);
                if !self.is_cut(from, to) && self.hosts[to].up {
                    timeline.note(to, "net.reset", &[]);
                    self.fail(timeline, connection, side, io::ErrorKind::ConnectionReset);
                }
            }
        }
    }
    fn window(&mut self, timeline: &mut Timeline, id: u64, side: usize, read_len: u64) {
        let Some(connection) = self.connections.get(&id) else {
            return;
        };
        let (from, to) = (connection.ends[1 - side].machine, connection.ends[side].machine);
        if self.is_cut(from, to) || !self.hosts[to].up {
            // The sender probes a closed window, so the news comes through in the end.
            let again = Arrival::Window {
                connection: id,
                side,
                read_len,
            };
            timeline.schedule_in(RETRANSMIT_BACKOFF_MAX, Event::Net(again));
            return;
        }
        let end = self.end_mut(id, side).expect("looked up above");
        end.data_read_by_peer = end.data_read_by_peer.max(read_len);
        timeline.wake(end.writer.take());
    }

    pub fn poll_read(
        &mut self,
        timeline: &mut Timeline,
        id: u64,
        side: usize,
        len_max: usize,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<Bytes>> {
        let Some(end) = self.end_mut(id, side) else {
            return Poll::Ready(Err(io::ErrorKind::NotConnected.into()));
        };
        if let Some(first) = end.readable.front_mut() {
            let content = first.split_to(len_max.min(first.len()));
            if first.is_empty() {
                end.readable.pop_front();
            }
            end.data_read += content.len() as u64;
            if end.data_read - end.data_read_told >= WINDOW_LEN / 4 {
                end.data_read_told = end.data_read;
                let (from, read_len) = (end.machine, end.data_read);
                let to = self.connections[&id].ends[1 - side].machine;
                let latency = self.latency(from, to);
                let arrival = Arrival::Window {
                    connection: id,
                    side: 1 - side,
                    read_len,
                };
                timeline.schedule_in(latency, Event::Net(arrival));
            }
            return Poll::Ready(Ok(content));
        }
        match end.failed {
            Some(kind) => Poll::Ready(Err(kind.into())),
            None if end.ended => Poll::Ready(Ok(Bytes::new())),
            None => {
                end.reader = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
    pub fn poll_write(
        &mut self,
        timeline: &mut Timeline,
        id: u64,
        side: usize,
        bytes: &[u8],
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        let Some(end) = self.end_mut(id, side) else {
            return Poll::Ready(Err(io::ErrorKind::NotConnected.into()));
        };
        if let Some(kind) = end.failed {
            return Poll::Ready(Err(kind.into()));
        }
        if end.fin_written {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let room = WINDOW_LEN - (end.data_written - end.data_read_by_peer);
        let len = bytes.len().min(SEGMENT_LEN_MAX).min(room as usize);
        if len == 0 && !bytes.is_empty() {
            end.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        if len > 0 {
            end.data_written += len as u64;
            self.send(timeline, id, side, Piece::Data(Bytes::copy_from_slice(&bytes[..len])));
        }
        Poll::Ready(Ok(len))
    }
    pub fn shutdown(&mut self, timeline: &mut Timeline, id: u64, side: usize) -> io::Result<()> {
        let Some(end) = self.end_mut(id, side) else {
            return Err(io::ErrorKind::NotConnected.into());
        };
        if end.failed.is_none() && !end.fin_written {
            end.fin_written = true;
            self.send(timeline, id, side, Piece::Fin);
        }
        Ok(())
    }
    /// The program dropped its end. Unread bytes make it a reset, as kernels do; else it is an orderly end.
    pub fn close(&mut self, timeline: &mut Timeline, id: u64, side: usize) {
        let Some(end) = self.end_mut(id, side) else { return };
        if !end.open {
            return;
        }
        end.open = false;
        end.reader = None;
        end.writer = None;
        let unread = !end.readable.is_empty();
        end.readable.clear();
        if end.failed.is_none() && end.connected {
            if unread {
                end.known = false;
                end.unsent.clear();
                self.send_reset(timeline, id, 1 - side);
            } else if !end.fin_written {
                end.fin_written = true;
                self.send(timeline, id, side, Piece::Fin);
            }
        }
        self.forget_if_done(id);
    }
    /// A connection that no program holds is of no more interest to anyone.
    fn forget_if_done(&mut self, id: u64) {
        let Some(connection) = self.connections.get(&id) else {
            return;
        };
        let [client, server] = &connection.ends;
        if !client.open && !server.open {
            self.client_ports.remove(&(client.machine, client.local.port()));
            self.connections.remove(&id);
        }
    }
}

fn add_waker(wakers: &mut Vec<Waker>, waker: &Waker) {
    if !wakers.iter().any(|kept| kept.will_wake(waker)) {
        wakers.push(waker.clone());
    }
}

fn forget_port(ports: &mut BTreeMap<(Machine, u16), Vec<SocketId>>, at: (Machine, u16), id: SocketId) {
    if let Some(ids) = ports.get_mut(&at) {
        ids.retain(|&kept| kept != id);
        if ids.is_empty() {
            ports.remove(&at);
        }
    }
}

fn check_free(bound: impl IntoIterator<Item = IpAddr>, at: SocketAddr) -> io::Result<()> {
    let taken = |ip: IpAddr| ip == at.ip() || ip.is_unspecified() || at.ip().is_unspecified();
    match bound.into_iter().any(taken) {
        true => Err(io::Error::new(
            io::ErrorKind::AddrInUse,
            format!("bind {at}: address already in use"),
        )),
        false => Ok(()),
    }
}
