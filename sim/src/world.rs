//! The simulated world: machines, the network between them, and the one line of time they share.
//!
//! One process runs one world of one seed. madsim runs the tasks (a madsim node a machine, so that a kill drops all its
//! tasks at once) and gives virtual time; everything else is modelled here.
//! In: what a scenario does to the world (kill, cut, signal). Out: what it sees of it, and the digest.
//! Invariants: one seed and one build give one digest; a dead boot of a machine touches nothing any more; all randomness
//! comes from the seed by named streams.
//! Not here: which agents run and what they must keep (`install` takes any program).

use crate::clock::NodeClock;
use crate::digest::seed_of;
use crate::disk::{DiskFaults, DiskState};
use crate::net::{Cut, Link, Net};
use crate::rt::SimRt;
use crate::timeline::{EntryKey, Event, Timeline};
use anyhow::{Context as _, bail};
use futures::future::BoxFuture;
use madsim::runtime::{Handle, Runtime};
use madsim::task::NodeId;
use quorate_rt::{ProcessEnd, Rng, Rt as _, Signal};
use rand_core::SeedableRng as _;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::future::{Future, poll_fn};
use std::net::IpAddr;
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

/// madsim keeps memory for finished tasks until it is asked for their number.
const TIDY_INTERVAL: Duration = Duration::from_secs(10);
/// How often `run_until` looks.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);
/// Runs of scripted processes that are remembered for the scenario, at each machine; the oldest are dropped.
const PROCESS_RUNS_KEPT_MAX: usize = 1024;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct MachineId(pub usize);

/// Names a cut, for its mending.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CutId(u64);

/// What starts with a machine: the same after every restart.
pub type Program = Arc<dyn Fn(SimRt) -> BoxFuture<'static, ()> + Send + Sync>;

/// How a child process of a machine ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcessAnswer {
    pub end: ProcessEnd,
    pub output: Vec<u8>,
    pub delay: Duration,
}

pub(crate) struct Machine {
    pub name: String,
    node: NodeId,
    boot: u64,
    running: bool,
    paused: bool,
    pauses: u64,
    program: Option<Program>,
    pub clock: NodeClock,
    disk: DiskState,
    pub processes: Vec<(String, ProcessAnswer)>,
    pub process_runs: VecDeque<Vec<String>>,
    pub environment: BTreeMap<String, String>,
    pub signals: VecDeque<Signal>,
    pub signal_waiter: Option<Waker>,
    streams_given: BTreeMap<String, u64>,
}

pub(crate) struct State {
    pub timeline: Timeline,
    pub net: Net,
    machines: Vec<Machine>,
    by_name: BTreeMap<String, MachineId>,
    by_node: BTreeMap<NodeId, MachineId>,
}

impl State {
    pub fn machine(&mut self, machine: MachineId) -> &mut Machine {
        &mut self.machines[machine.0]
    }
}

/// Hears of the events that programs tell of: node, kind, payload.
pub type Observer = Arc<dyn Fn(&str, &'static str, &[u8]) + Send + Sync>;

struct Shared {
    handle: Handle,
    seed: u64,
    state: Mutex<State>,
    observer: Mutex<Option<Observer>>,
}

/// The world. Clones are the same world.
#[derive(Clone)]
pub struct World {
    shared: Arc<Shared>,
}

thread_local! {
    /// The world of this thread, for code that is called without one: openraft's runtime is a type, not a value.
    static CURRENT: RefCell<Option<World>> = const { RefCell::new(None) };
}

impl World {
    /// Runs `main` in a new world of this seed, to its end.
    pub fn run<Fut: Future>(seed: u64, main: impl FnOnce(World) -> Fut) -> Fut::Output {
        let runtime = Runtime::with_seed_and_config(seed, madsim::Config::default());
        runtime.block_on(async { main(World::start(seed)).await })
    }
    /// A new world in the madsim runtime that runs the caller.
    pub fn start(seed: u64) -> Self {
        let state = State {
            timeline: Timeline::new(madsim::time::TimeHandle::current()),
            net: Net::new(Rng::from_seed(seed_of(seed, &[b"net"]))),
            machines: Vec::new(),
            by_name: BTreeMap::new(),
            by_node: BTreeMap::new(),
        };
        let world = Self {
            shared: Arc::new(Shared {
                handle: Handle::current(),
                seed,
                state: Mutex::new(state),
                observer: Mutex::default(),
            }),
        };
        CURRENT.set(Some(world.clone()));
        madsim::task::spawn(drive(world.clone()));
        world.with(|state| state.timeline.schedule_in(TIDY_INTERVAL, Event::Tidy));
        world
    }
    pub(crate) fn current() -> Self {
        CURRENT
            .with_borrow(Clone::clone)
            .expect("a world was started on this thread")
    }

    /// Works on the state, then wakes whom that concerns: never under the lock, which a woken task may want.
    pub(crate) fn with<T>(&self, work: impl FnOnce(&mut State) -> T) -> T {
        let (output, woken) = {
            let mut state = self.shared.state.lock().unwrap_or_else(PoisonError::into_inner);
            let output = work(&mut state);
            (output, state.timeline.take_woken())
        };
        woken.into_iter().for_each(Waker::wake);
        output
    }
    pub(crate) fn with_disk<T>(&self, machine: MachineId, work: impl FnOnce(&mut DiskState, &mut Timeline) -> T) -> T {
        self.with(|state| work(&mut state.machines[machine.0].disk, &mut state.timeline))
    }
    fn id(&self, node: &str) -> MachineId {
        self.with(|state| state.by_name.get(node).copied())
            .unwrap_or_else(|| panic!("no node is called {node}"))
    }
    fn on<T>(&self, node: &str, work: impl FnOnce(&mut Machine) -> T) -> T {
        let id = self.id(node);
        self.with(|state| work(state.machine(id)))
    }
    /// Whether this boot of the machine still runs.
    pub(crate) fn is_boot(&self, machine: MachineId, boot: u64) -> bool {
        self.with(|state| state.machines[machine.0].running && state.machines[machine.0].boot == boot)
    }
    /// The machine whose task calls, if it is not the scenario's own.
    pub(crate) fn calling_machine(&self) -> Option<MachineId> {
        let node = madsim::plugin::node();
        self.with(|state| state.by_node.get(&node).copied())
    }
    /// Local time in nanoseconds of a machine's clock; virtual time for the scenario itself.
    pub(crate) fn local_now(&self, machine: Option<MachineId>) -> u64 {
        self.with(|state| {
            let now = state.timeline.now();
            machine
                .map_or(NodeClock::default(), |machine| state.machines[machine.0].clock.clone())
                .local(now)
        })
    }
    pub(crate) fn virtual_of(&self, machine: Option<MachineId>, local_nanos: u64) -> u64 {
        self.with(|state| {
            machine
                .map_or(NodeClock::default(), |machine| state.machines[machine.0].clock.clone())
                .virtual_of(local_nanos)
        })
    }
    pub(crate) fn rng(&self, machine: MachineId, boot: u64, stream: &str) -> Rng {
        let seed = self.shared.seed;
        self.with(|state| {
            let machine = state.machine(machine);
            let given = machine.streams_given.entry(stream.to_owned()).or_default();
            *given += 1;
            let path: [&[u8]; 4] = [
                machine.name.as_bytes(),
                &boot.to_le_bytes(),
                stream.as_bytes(),
                &given.to_le_bytes(),
            ];
            Rng::from_seed(seed_of(seed, &path))
        })
    }
    pub(crate) fn sleep_virtual(&self, duration: Duration) -> VirtualSleep {
        let now = self.with(|state| state.timeline.now());
        self.sleep_until_virtual(now.saturating_add(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)))
    }
    pub(crate) fn sleep_until_virtual(&self, at: u64) -> VirtualSleep {
        VirtualSleep {
            world: self.clone(),
            at,
            entry: None,
        }
    }

    // What a scenario asks

    pub fn seed(&self) -> u64 {
        self.shared.seed
    }
    /// A generator for one concern of the scenario itself.
    pub fn scenario_rng(&self, stream: &str) -> Rng {
        Rng::from_seed(seed_of(self.shared.seed, &[b"scenario", stream.as_bytes()]))
    }
    /// Virtual time since the world's start.
    pub fn elapsed(&self) -> Duration {
        Duration::from_nanos(self.with(|state| state.timeline.now()))
    }
    /// The hash of all that happened so far.
    pub fn digest(&self) -> u64 {
        self.with(|state| state.timeline.digest())
    }
    /// Lets the world go on for a while.
    pub async fn advance(&self, duration: Duration) {
        self.sleep_virtual(duration).await;
    }
    /// Lets the world go on until `condition` holds. `claim` says what was waited for, should it never hold.
    pub async fn run_until(
        &self,
        claim: &str,
        within: Duration,
        mut condition: impl AsyncFnMut() -> bool,
    ) -> anyhow::Result<()> {
        let from = self.elapsed();
        while !condition().await {
            let waited = self.elapsed() - from;
            if waited >= within {
                bail!("{claim}: not so after {waited:?} of virtual time");
            }
            self.advance(LOOK_INTERVAL).await;
        }
        Ok(())
    }
    pub fn is_running(&self, node: &str) -> bool {
        self.on(node, |machine| machine.running)
    }
    pub fn ip(&self, node: &str) -> IpAddr {
        let id = self.id(node);
        self.with(|state| state.net.ip(id.0))
    }
    /// The last child processes a machine was asked to run, oldest first.
    pub fn process_runs(&self, node: &str) -> Vec<Vec<String>> {
        self.on(node, |machine| machine.process_runs.iter().cloned().collect())
    }
    pub fn read_file(&self, node: &str, path: &Path) -> Option<Vec<u8>> {
        let id = self.id(node);
        self.with_disk(id, |disk, _| disk.peek(path))
    }

    // Machines

    /// A machine with power on and nothing running. Its disk is empty.
    pub fn add_node(&self, name: &str, ip: IpAddr) {
        let node = self.shared.handle.create_node().name(name).build().id();
        let rng = Rng::from_seed(seed_of(self.shared.seed, &[b"disk", name.as_bytes()]));
        self.with(|state| {
            let id = MachineId(state.net.add_host(ip));
            let before = state.by_name.insert(name.to_owned(), id);
            assert!(before.is_none(), "two nodes are called {name}");
            state.by_node.insert(node, id);
            state.timeline.add_name(name);
            state.machines.push(Machine {
                name: name.to_owned(),
                node,
                boot: 1,
                running: true,
                paused: false,
                pauses: 0,
                program: None,
                clock: NodeClock::default(),
                disk: DiskState::new(rng),
                processes: Vec::new(),
                process_runs: VecDeque::new(),
                environment: BTreeMap::new(),
                signals: VecDeque::new(),
                signal_waiter: None,
                streams_given: BTreeMap::new(),
            });
        });
    }
    /// The door for a program on this machine, until its next kill.
    pub fn rt(&self, node: &str) -> SimRt {
        let machine = self.id(node);
        let (id, boot, running) = self.with(|state| {
            let machine = state.machine(machine);
            (machine.node, machine.boot, machine.running)
        });
        assert!(running, "{node} does not run");
        let tasks = self.shared.handle.get_node(id).expect("made by add_node");
        SimRt::new(self.clone(), machine, boot, tasks)
    }
    pub(crate) fn rt_of(&self, machine: MachineId) -> SimRt {
        let name = self.with(|state| state.machine(machine).name.clone());
        self.rt(&name)
    }
    /// Starts a program on the machine, now and after each restart.
    pub fn install<Fut>(&self, node: &str, program: impl Fn(SimRt) -> Fut + Send + Sync + 'static)
    where
        Fut: Future<Output = ()> + Send + 'static,
    {
        let program: Program = Arc::new(move |rt| Box::pin(program(rt)));
        self.on(node, |machine| machine.program = Some(Arc::clone(&program)));
        let rt = self.rt(node);
        rt.clone().spawn("program", program(rt));
    }
    /// Ends all programs of the machine at once. With power loss, what its disk had not synced is lost, kept or torn, and
    /// its peers hear nothing; without, its kernel keeps the cache and closes the connections.
    pub fn kill(&self, node: &str, power_loss: bool) {
        // Its tasks are dropped one after the other, as those of any other killed machine.
        self.resume(node);
        let id = self.id(node);
        let killed = self.with(|state| {
            let State {
                timeline,
                net,
                machines,
                ..
            } = state;
            let machine = &mut machines[id.0];
            if machine.running || power_loss {
                timeline.note(id.0, if power_loss { "power_loss" } else { "kill" }, &[]);
                net.kill(timeline, id.0, power_loss);
                match power_loss {
                    true => machine.disk.lose_power(),
                    false => machine.disk.close_all(),
                }
            }
            machine.signals.clear();
            machine.signal_waiter = None;
            std::mem::replace(&mut machine.running, false).then_some(machine.node)
        });
        if let Some(node) = killed {
            self.shared.handle.kill(node);
        }
    }
    /// Boots the machine (killing what ran) and starts what is installed on it.
    pub fn restart(&self, node: &str) {
        self.kill(node, false);
        let id = self.id(node);
        let (task_node, program) = self.with(|state| {
            state.net.power_on(id.0);
            state.timeline.note(id.0, "restart", &[]);
            let machine = state.machine(id);
            machine.boot += 1;
            machine.running = true;
            machine.streams_given.clear();
            (machine.node, machine.program.clone())
        });
        self.shared.handle.restart(task_node);
        if let Some(program) = program {
            let rt = self.rt(node);
            rt.clone().spawn("program", program(rt));
        }
    }
    /// Stops all tasks of the machine, its clock and network going on: a long collection, a stopped virtual machine.
    pub fn pause(&self, node: &str) {
        let id = self.id(node);
        let node = self.with(|state| {
            state.timeline.note(id.0, "pause", &[]);
            let machine = state.machine(id);
            machine.paused = true;
            machine.pauses += 1;
            machine.node
        });
        self.shared.handle.pause(node);
    }
    pub fn resume(&self, node: &str) {
        let id = self.id(node);
        let node = self.with(|state| {
            let machine = &mut state.machines[id.0];
            let was_paused = std::mem::replace(&mut machine.paused, false);
            if was_paused {
                state.timeline.note(id.0, "resume", &[]);
            }
            was_paused.then_some(machine.node)
        });
        if let Some(node) = node {
            self.shared.handle.resume(node);
        }
    }
    pub fn is_paused(&self, node: &str) -> bool {
        self.on(node, |machine| machine.paused)
    }
    /// How often the machine was booted, and how often paused: who sees the same twice saw it run in between.
    pub fn interruptions(&self, node: &str) -> (u64, u64) {
        self.on(node, |machine| (machine.boot, machine.pauses))
    }
    pub fn signal(&self, node: &str, signal: Signal) {
        let id = self.id(node);
        self.with(|state| {
            let machine = &mut state.machines[id.0];
            machine.signals.push_back(signal);
            state.timeline.wake(machine.signal_waiter.take());
        });
    }
    /// Moves a machine that does not run to another address.
    pub fn set_ip(&self, node: &str, ip: IpAddr) {
        let id = self.id(node);
        self.with(|state| {
            assert!(
                !state.machine(id).running,
                "{node} runs: its sockets are bound to its address"
            );
            state.net.set_ip(id.0, ip);
        });
    }
    pub fn set_environment(&self, node: &str, name: &str, value: &str) {
        self.on(node, |machine| {
            machine.environment.insert(name.to_owned(), value.to_owned())
        });
    }
    /// From now on the machine's clock runs this many millionths fast (slow when negative).
    pub fn set_drift_ppm(&self, node: &str, drift_ppm: i32) {
        let id = self.id(node);
        self.with(|state| {
            let now = state.timeline.now();
            state.machine(id).clock.set_drift_ppm(now, drift_ppm);
        });
    }
    /// Sets the machine's every clock back: for a sabotage.
    pub fn set_clock_back(&self, node: &str, by: Duration) {
        let id = self.id(node);
        self.with(|state| {
            let now = state.timeline.now();
            let nanos = u64::try_from(by.as_nanos()).unwrap_or(u64::MAX);
            state.machine(id).clock.set_back(now, nanos);
        });
    }
    pub fn drift_ppm(&self, node: &str) -> i32 {
        self.on(node, |machine| machine.clock.drift_ppm())
    }
    /// How far the machine's wall clock is from the world's.
    pub fn set_wall_offset_nanos(&self, node: &str, wall_offset_nanos: i64) {
        self.on(node, |machine| machine.clock.set_wall_offset_nanos(wall_offset_nanos));
    }
    /// Child processes of which an argument contains `argument_part` end so; of several entries the last set decides.
    pub fn set_process(&self, node: &str, argument_part: &str, answer: ProcessAnswer) {
        self.on(node, |machine| {
            machine.processes.retain(|(part, _)| part != argument_part);
            machine.processes.push((argument_part.to_owned(), answer));
        });
    }
    pub fn remove_process(&self, node: &str, argument_part: &str) {
        self.on(node, |machine| {
            machine.processes.retain(|(part, _)| part != argument_part)
        });
    }

    // Disks

    /// Puts a file on the machine's disk, durably: configuration, say.
    pub fn write_file(&self, node: &str, path: &Path, content: &[u8]) {
        let id = self.id(node);
        self.with_disk(id, |disk, _| disk.put(path, content));
    }
    pub fn make_dir(&self, node: &str, path: &Path) {
        let id = self.id(node);
        self.with_disk(id, |disk, _| disk.make_dir(path));
    }
    pub fn set_disk_faults(&self, node: &str, faults: DiskFaults) {
        let id = self.id(node);
        self.with_disk(id, |disk, _| disk.faults = faults);
    }
    /// A new, empty disk for a machine that does not run.
    pub fn wipe_disk(&self, node: &str) {
        let id = self.id(node);
        assert!(!self.is_running(node), "{node} runs on its disk");
        self.with_disk(id, |disk, _| disk.wipe());
    }

    // The network

    /// How all links behave that were not set on their own.
    pub fn set_link(&self, link: Link) {
        self.with(|state| state.net.link = link);
    }
    pub fn set_link_between(&self, from: &str, to: &str, link: Link) {
        let (from, to) = (self.id(from), self.id(to));
        self.with(|state| state.net.set_link(from.0, to.0, link));
    }
    pub fn clear_links_between(&self) {
        self.with(|state| state.net.clear_links());
    }
    fn add_cut(&self, cut: Cut) -> CutId {
        CutId(self.with(|state| state.net.add_cut(cut)))
    }
    /// Cuts one direction: `to` hears nothing from `from`.
    pub fn cut_one_way(&self, from: &str, to: &str) -> CutId {
        self.add_cut(Cut::Pairs(BTreeSet::from([(self.id(from).0, self.id(to).0)])))
    }
    /// Nodes of different sides do not hear one another. A node on no side hears all.
    pub fn partition(&self, sides: &[&[&str]]) -> CutId {
        let sides = sides
            .iter()
            .map(|side| side.iter().map(|node| self.id(node).0).collect());
        self.add_cut(Cut::Partition(sides.collect()))
    }
    pub fn isolate(&self, node: &str) -> CutId {
        self.add_cut(Cut::Isolate(self.id(node).0))
    }
    pub fn mend(&self, cut: CutId) {
        self.with(|state| state.net.remove_cut(cut.0));
    }
    /// Mends all cuts.
    pub fn heal(&self) {
        self.with(|state| state.net.remove_cuts());
    }
    /// Whether something sent from one to the other would be lost in a cut.
    pub fn is_cut(&self, from: &str, to: &str) -> bool {
        let (from, to) = (self.id(from), self.id(to));
        self.with(|state| state.net.is_cut(from.0, to.0))
    }
    /// Resets all connections between two nodes.
    pub fn reset_between(&self, a: &str, b: &str) {
        let (a, b) = (self.id(a), self.id(b));
        self.with(|state| state.net.reset_between(&mut state.timeline, a.0, b.0));
    }

    /// The node whose task runs now, or `world`, and the virtual time: for logs. Nothing when no world was started.
    pub fn where_and_when() -> Option<(String, Duration)> {
        let world = CURRENT.with_borrow(Clone::clone)?;
        let node = world.calling_machine();
        let name = node.map(|node| world.with(|state| state.machine(node).name.clone()));
        Some((name.unwrap_or_else(|| "world".to_owned()), world.elapsed()))
    }
    /// How often the machine has booted.
    pub fn boot(&self, node: &str) -> u64 {
        self.on(node, |machine| machine.boot)
    }
    /// From now on `observer` hears of every event that a program tells of.
    pub fn observe(&self, observer: Observer) {
        *self.shared.observer.lock().unwrap_or_else(PoisonError::into_inner) = Some(observer);
    }
    /// Not under the world's lock: the observer may look at the world.
    pub(crate) fn tell(&self, machine: MachineId, kind: &'static str, payload: &[u8]) {
        let observer = self
            .shared
            .observer
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        if let Some(observer) = observer {
            let name = self.with(|state| state.machine(machine).name.clone());
            observer(&name, kind, payload);
        }
    }

    /// Shows on standard error what happens at a node.
    pub fn trace(&self, node: &str) -> anyhow::Result<()> {
        let id = self.with(|state| state.by_name.get(node).copied());
        let id = id.with_context(|| format!("trace {node}: no such node"))?;
        self.with(|state| state.timeline.trace(id.0));
        Ok(())
    }
    /// Writes every event of every node to standard output, for a comparison with another run of the seed.
    pub fn tell_all(&self) {
        self.with(|state| state.timeline.tell_all());
    }
    pub(crate) fn addresses_of(&self, name: &str) -> Option<IpAddr> {
        self.with(|state| state.by_name.get(name).map(|id| state.net.ip(id.0)))
    }
    pub(crate) fn remember_process(machine: &mut Machine, argv: Vec<String>) {
        if machine.process_runs.len() >= PROCESS_RUNS_KEPT_MAX {
            machine.process_runs.pop_front();
        }
        machine.process_runs.push_back(argv);
    }
}

/// Works off the agenda.
async fn drive(world: World) {
    poll_fn(|cx| {
        loop {
            let due = world.with(|state| match state.timeline.pop_due() {
                Some(Event::Wake(waker)) => {
                    state.timeline.wake([waker]);
                    Some(false)
                }
                Some(Event::Net(arrival)) => {
                    state.net.arrive(&mut state.timeline, arrival);
                    Some(false)
                }
                Some(Event::Tidy) => {
                    state.timeline.schedule_in(TIDY_INTERVAL, Event::Tidy);
                    Some(true)
                }
                None => {
                    state.timeline.rest(cx.waker());
                    None
                }
            });
            match due {
                Some(true) => {
                    world.shared.handle.metrics().num_tasks();
                }
                Some(false) => {}
                None => return Poll::Pending,
            }
        }
    })
    .await
}

/// Ends at a virtual time. Dropped early it leaves nothing behind.
pub(crate) struct VirtualSleep {
    world: World,
    at: u64,
    entry: Option<EntryKey>,
}

impl Future for VirtualSleep {
    type Output = ();
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        this.world.with(|state| {
            if state.timeline.now() >= this.at {
                return Poll::Ready(());
            }
            match this.entry {
                Some(entry) => state.timeline.set_waker(entry, cx.waker()),
                None => this.entry = Some(state.timeline.schedule(this.at, Event::Wake(cx.waker().clone()))),
            }
            Poll::Pending
        })
    }
}

impl Drop for VirtualSleep {
    fn drop(&mut self) {
        if let Some(entry) = self.entry {
            self.world.with(|state| state.timeline.cancel(entry));
        }
    }
}
