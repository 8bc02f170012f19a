//! One run of one scenario: form the cluster, let faults and users loose (safety), end the faults and see it heal (liveness).
//!
//! In: a scenario, a seed, options. Out: a [`Report`], the same for one seed and one build.
//! The steps of the safety phase are [`STEP`] of virtual time: at each the leaders are looked at. What the servers apply is
//! judged as it happens, by the event they tell of it; what users see is judged where it is seen.
//! Not here: the language (`scenario`), the judges (`invariant`).

use crate::agent_file::{AgentFiles, CONFIG_PATH};
use crate::disk::DiskFaults;
use crate::faults::{Faults, set_script};
use crate::net::Link;
use crate::require::Requirements;
use crate::rt::SimRt;
use crate::scenario::{CheckKind, KvOperation, Scenario, Whole, Workload};
use crate::story::{Broken, Story};
use crate::wire::{Sabotage, USERS, Wire};
use crate::workload::cells::CellClients;
use crate::workload::key_rotation::Operator;
use crate::workload::kv_register::{KvClients, Outcome};
use crate::workload::locks::LockClients;
use crate::workload::node_lock::NodeLocks;
use crate::workload::service_dns::Resolver;
use crate::world::World;
use anyhow::{Context as _, Result};
use quorate_agent::config::parse_agent_flags;
use quorate_agent::{Agent, Hooks};
use quorate_rt::{Listener as _, Rt as _};
use rand_core::Rng as _;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

const STEP: Duration = Duration::from_millis(50);
/// Within this a cluster without faults has formed.
const FORM_TIMEOUT: Duration = Duration::from_secs(60);

#[derive(Clone, Debug, Default)]
pub struct Options {
    pub seed: u64,
    /// Nodes whose events are shown.
    pub traced: Vec<String>,
    /// The run stops at this virtual time.
    pub until: Option<Duration>,
    pub sabotage: Option<Sabotage>,
    /// Every event goes to standard output.
    pub tells_events: bool,
}

/// How a run ended.
pub struct Report {
    pub digest: u64,
    /// Virtual time of the whole run.
    pub elapsed: Duration,
    pub broken: Option<Broken>,
    /// Each node at the end, a line each.
    pub views: String,
    pub counts: BTreeMap<&'static str, u64>,
    pub was_cut_short: bool,
}

/// A link whose packets take one of these latencies.
pub fn link_of(latency_ms: Whole, loss_ratio: f64) -> Link {
    // A packet is never there at once.
    let least = Duration::from_micros(200);
    let low = Duration::from_millis(latency_ms.low).max(least);
    Link {
        latency: low..Duration::from_millis(latency_ms.high).max(low + least),
        loss_ratio,
        ..Link::default()
    }
}

/// Runs a scenario with one seed.
pub fn run(scenario: Scenario, options: &Options) -> Result<Report> {
    World::run(options.seed, |world| run_in(world, scenario, options.clone()))
}

async fn run_in(world: World, scenario: Scenario, options: Options) -> Result<Report> {
    let scenario = Arc::new(scenario);
    let mut rng = world.scenario_rng("cluster");
    let count = |prefix: &str, count: u64| (1..=count).map(|number| format!("{prefix}{number}")).collect();
    let servers: Vec<String> = count("server", scenario.cluster.servers.draw(&mut rng));
    let clients: Vec<String> = count("client", scenario.cluster.clients.draw(&mut rng));
    let raft_multiplier = scenario.cluster.raft_multiplier.draw(&mut rng);
    let loss_ratio = scenario.cluster.network.loss_ratio.draw(&mut rng);
    let run_for = Duration::from_millis(scenario.run_ms.draw(&mut rng));
    let story = Story::new(world.clone(), Arc::clone(&scenario), servers, clients);
    let link = link_of(scenario.cluster.network.latency_ms, loss_ratio);
    world.set_link(link.clone());
    if options.tells_events {
        world.tell_all();
    }
    observe(&story);
    let files = AgentFiles::new(&story, raft_multiplier);

    for (position, name) in story.names().enumerate() {
        let number = u8::try_from(position + 1).context("too many nodes")?;
        world.add_node(name, IpAddr::from([10, 0, 0, number]));
    }
    world.add_node(USERS, IpAddr::from([10, 0, 1, 1]));
    for name in &options.traced {
        world.trace(name)?;
    }
    for name in story.names() {
        files.write(name, &toml::Table::new())?;
        let drift_ppm =
            i32::try_from(scenario.cluster.clock_drift_ppm.draw(&mut rng)).context("cluster.clock_drift_ppm")?;
        world.set_drift_ppm(
            name,
            if rng.next_u32().is_multiple_of(2) {
                drift_ppm
            } else {
                -drift_ppm
            },
        );
        for service in &scenario.services {
            if service.on.contains(name) {
                set_script(&story, name, &service.name, true);
            }
        }
        let (story, name) = (story.clone(), name.clone());
        world.install(&name.clone(), move |rt| program(story.clone(), name.clone(), rt));
    }

    let run = Run {
        users: world.rt(USERS),
        wire: Wire::new(&story, world.rt(USERS), options.sabotage),
        sabotage: options.sabotage,
        until: options.until,
        story: story.clone(),
    };
    let mut faults = Faults::new(&story, &files, link, options.sabotage);
    let was_cut_short = match run.whole(&mut faults, run_for).await {
        Ok(()) => false,
        Err(Stop::Broken) => false,
        Err(Stop::Until) => true,
    };
    if story.broken().is_none() && !was_cut_short {
        for mark in &scenario.expect.cover {
            if story.counted(mark) == 0 {
                story.breaks(format!("cover: {mark} was never seen: the run proved nothing"));
            }
        }
    }
    Ok(Report {
        digest: world.digest(),
        elapsed: world.elapsed(),
        broken: story.broken(),
        views: views(&story),
        counts: story.counts(),
        was_cut_short,
    })
}

/// What runs on an agent's machine, after each boot.
async fn program(story: Story, name: String, rt: SimRt) {
    for service in &story.scenario.services {
        let is_tcp = service.check.as_ref().is_some_and(|check| check.kind == CheckKind::Tcp);
        if is_tcp && service.on.contains(&name) {
            rt.spawn(
                "service",
                serve(
                    story.clone(),
                    name.clone(),
                    rt.clone(),
                    service.name.clone(),
                    service.port,
                ),
            );
        }
    }
    let flags = ["-config-file", CONFIG_PATH].map(str::to_owned);
    let flags = parse_agent_flags(&flags).expect("two flags that exist");
    let agent = match Agent::start(rt, flags, Hooks::default()).await {
        Ok(agent) => agent,
        Err(err) => {
            story.agent_ended(&name, &format!("did not start: {}", chain(&err)));
            return;
        }
    };
    tracing::info!("agent started");
    story.agent_started(&name, agent.clone());
    let ending = agent.run().await;
    story.forget_agent(&name);
    story.agent_ended(&name, &format!("ended by itself: {ending:?}"));
}

fn chain(err: &dyn std::error::Error) -> String {
    let mut text = err.to_string();
    let mut source = err.source();
    while let Some(err) = source {
        let _ = write!(text, ": {err}");
        source = err.source();
    }
    text
}

/// A service that accepts connections, while its check is not to fail.
async fn serve(story: Story, node: String, rt: SimRt, service: String, port: u16) {
    let pair = (node, service);
    let is_failing = || story.state().failing.contains(&pair);
    loop {
        while is_failing() {
            rt.sleep(Duration::from_millis(20)).await;
        }
        let Ok(listener) = rt.tcp_listen(SocketAddr::from(([0, 0, 0, 0], port))).await else {
            return;
        };
        while !is_failing() {
            let _ = rt.timeout(Duration::from_millis(20), listener.accept()).await;
        }
    }
}

/// Hears of each applied entry, and of what each agent thinks of the others.
fn observe(story: &Story) {
    let judge = story.clone();
    story.world.observe(Arc::new(move |node, kind, payload| match kind {
        "apply" => {
            let boot = judge.world.boot(node);
            let judged = judge.state().logs.observe(node, boot, payload);
            judge.holds("equal_logs", judged);
        }
        "gossip" => judge.hear_gossip(node, payload),
        _ => {}
    }));
}

/// Why a run goes on no further.
enum Stop {
    Broken,
    Until,
}

struct Run {
    story: Story,
    users: SimRt,
    wire: Wire,
    sabotage: Option<Sabotage>,
    until: Option<Duration>,
}

impl Run {
    async fn whole(&self, faults: &mut Faults, run_for: Duration) -> Result<(), Stop> {
        self.form().await?;
        let story = &self.story;
        if self.sabotage == Some(Sabotage::LyingSyncs) {
            // From here on, so that it is users' writes that are lost and not the founding of the cluster.
            for node in story.names() {
                let faults = DiskFaults {
                    lies_about_syncs: true,
                    ..DiskFaults::default()
                };
                story.world.set_disk_faults(node, faults);
            }
        }
        let workloads = story.scenario.workloads.iter().enumerate();
        let mut registers = Vec::new();
        let mut users = Users::default();
        let mut tasks = Vec::new();
        for (position, workload) in workloads {
            match workload {
                Workload::KvRegister(settings) => {
                    let clients = KvClients::new(story, &self.wire, settings, position);
                    tasks.extend(clients.start(&self.users));
                    registers.push(clients);
                }
                Workload::ServiceDns(settings) => {
                    tasks.extend(Resolver::new(story, &self.wire, settings, position).start(&self.users));
                }
                Workload::KeyRotation(settings) => {
                    tasks.push(Operator::new(story, &self.wire, settings, position).start(&self.users));
                }
                Workload::Cells(settings) => {
                    let clients = CellClients::new(story, &self.wire, settings, position);
                    tasks.extend(clients.start(&self.users));
                    users.cells.push(clients);
                }
                Workload::Locks(settings) => {
                    let clients = LockClients::new(story, &self.wire, settings, position);
                    tasks.extend(clients.start(&self.users));
                    users.locks.push(clients);
                }
                Workload::NodeLock(settings) => {
                    tasks.push(NodeLocks::new(story, &self.wire, settings, position).start(&self.users));
                }
            }
        }
        let requirements = Requirements::new(story, &self.wire, &registers);
        tasks.extend(requirements.start(&self.users));
        story.set_moment("start");
        let begin = story.world.elapsed();

        // Safety.
        while let Some(at) = faults.next_at().filter(|at| *at < run_for) {
            self.advance_to(begin + at).await?;
            self.check_done(faults.step().await)?;
        }
        self.advance_to(begin + run_for).await?;
        story.set_moment("end");
        tracing::info!("the faults end");

        // Liveness.
        let ends_at = story.world.elapsed() + Duration::from_millis(story.scenario.expect.converge_within_ms);
        self.check_done(faults.end_all().await)?;
        self.converge(ends_at, &registers).await?;
        self.serve_users(ends_at, &users).await?;
        for task in tasks {
            // Their last questions have a timeout.
            let _ = task.join().await;
        }
        for register in &registers {
            register.check();
        }
        users.check();
        let calls: Vec<_> = registers.iter().flat_map(KvClients::calls).collect();
        requirements.check(&calls);
        self.look()
    }

    fn check_done(&self, done: Result<()>) -> Result<(), Stop> {
        if let Err(err) = done {
            self.story.breaks(format!("{err:#}"));
        }
        self.look()
    }

    /// What is looked at after each step.
    fn look(&self) -> Result<(), Stop> {
        let story = &self.story;
        for server in story.servers.iter() {
            if let Some(status) = story.status(server)
                && status.is_leader
            {
                let (judged, count_before, count) = {
                    let mut state = story.state();
                    let before = state.leaders.count();
                    let judged = state.leaders.observe(status.term, server);
                    (judged, before, state.leaders.count())
                };
                story.holds("one_leader_per_term", judged);
                if count_before > 0 && count > count_before {
                    story.count("raft.leader_changed");
                }
            }
        }
        story.start_those_that_ended();
        if story.broken().is_some() {
            return Err(Stop::Broken);
        }
        match self.until {
            Some(until) if story.world.elapsed() >= until => Err(Stop::Until),
            _ => Ok(()),
        }
    }

    async fn advance_to(&self, at: Duration) -> Result<(), Stop> {
        loop {
            self.look()?;
            let now = self.story.world.elapsed();
            if now >= at {
                return Ok(());
            }
            self.story.world.advance((at - now).min(STEP)).await;
        }
    }

    /// Goes on until `condition` says nothing more is missing, or breaks with the last it said.
    async fn until_nothing_is_missing(
        &self,
        claim: &str,
        ends_at: Duration,
        mut missing: impl AsyncFnMut() -> Option<String>,
    ) -> Result<(), Stop> {
        loop {
            self.look()?;
            let Some(what) = missing().await else { return Ok(()) };
            if self.story.world.elapsed() >= ends_at {
                self.story.breaks(format!("{claim}: {what}"));
                return Err(Stop::Broken);
            }
            self.story.world.advance(STEP).await;
        }
    }

    async fn form(&self) -> Result<(), Stop> {
        let missing = async || self.what_is_unequal().await;
        self.until_nothing_is_missing("a cluster without faults forms", FORM_TIMEOUT, missing)
            .await?;
        tracing::info!("the cluster has formed");
        Ok(())
    }

    /// All agents see the same members and the same catalog, all of it well.
    async fn what_is_unequal(&self) -> Option<String> {
        let story = &self.story;
        if let Some(node) = story.names().find(|node| !story.is_serving(node)) {
            return Some(format!("{node} does not run"));
        }
        let mut first: Option<(String, BTreeMap<String, Value>)> = None;
        for node in story.names() {
            match self.view_of(node).await {
                Ok(view) => match &first {
                    None => first = Some((node.clone(), view)),
                    Some((other, seen)) => {
                        if let Some((path, _)) = seen.iter().find(|(path, value)| view.get(*path) != Some(value)) {
                            return Some(format!("{path} differs at {node} and {other}"));
                        }
                    }
                },
                Err(what) => return Some(format!("{node}: {what}")),
            }
        }
        None
    }

    /// What one agent says of the pool and of the catalog; an error when part of it is not well.
    async fn view_of(&self, agent: &str) -> Result<BTreeMap<String, Value>, String> {
        let story = &self.story;
        let all: Vec<&String> = story.names().collect();
        let mut view = BTreeMap::new();
        let ask = async |path: &str| self.wire.json(agent, path).await.map_err(|why| why.to_string());
        let members = ask("/v1/agent/members").await?;
        let mut alive = BTreeMap::new();
        for member in members.as_array().into_iter().flatten() {
            let name = member["Name"].as_str().unwrap_or_default();
            if all.iter().any(|node| *node == name) && member["Addr"] != story.world.ip(name).to_string() {
                return Err(format!("member {name} is said to be at {}", member["Addr"]));
            }
            alive.insert(name.to_owned(), member["Status"].clone());
        }
        let well = |name: &str| alive.get(name).is_some_and(|status| status == 1);
        if let Some(name) = all.iter().find(|name| !well(name)) {
            return Err(format!("member {name} is {:?}", alive.get(name.as_str())));
        }
        view.insert("members".to_owned(), json!(alive));
        let nodes = ask("/v1/catalog/nodes?stale").await?;
        let listed = |name: &str| nodes.as_array().into_iter().flatten().any(|node| node["Node"] == name);
        if let Some(name) = all.iter().find(|name| !listed(name)) {
            return Err(format!("the catalog has no node {name}"));
        }
        for node in nodes.as_array().into_iter().flatten() {
            let name = node["Node"].as_str().unwrap_or_default();
            if all.iter().any(|node| *node == name) && node["Address"] != story.world.ip(name).to_string() {
                return Err(format!("the catalog has {name} at {}", node["Address"]));
            }
        }
        view.insert("/v1/catalog/nodes".to_owned(), nodes);
        let checks = ask("/v1/health/state/any?stale").await?;
        let mut all_checks = checks.as_array().into_iter().flatten();
        if let Some(check) = all_checks.find(|check| check["Status"] != "passing") {
            return Err(format!(
                "check {} of {} is {}",
                check["CheckID"], check["Node"], check["Status"]
            ));
        }
        let health = |name: &str| {
            let mut checks = checks.as_array().into_iter().flatten();
            checks.any(|check| check["Node"] == name && check["CheckID"] == "serfHealth")
        };
        if let Some(name) = all.iter().find(|name| !health(name)) {
            return Err(format!("{name} has no serfHealth"));
        }
        view.insert("/v1/health/state/any".to_owned(), checks);
        for service in &story.scenario.services {
            let path = format!("/v1/health/service/{}?stale", service.name);
            let instances = ask(&path).await?;
            let count = instances.as_array().map_or(0, Vec::len);
            if count != service.on.len() {
                return Err(format!(
                    "{} has {count} instances of {}",
                    service.name,
                    service.on.len()
                ));
            }
            view.insert(path, instances);
        }
        Ok(view)
    }

    /// The faults are over: everything heals, serves, and has kept what it acknowledged.
    async fn converge(&self, ends_at: Duration, registers: &[KvClients]) -> Result<(), Stop> {
        let missing = async || self.what_is_unequal().await;
        self.until_nothing_is_missing("all agents agree after the faults", ends_at, missing)
            .await?;
        let agents: Vec<&String> = self.story.names().collect();
        for register in registers {
            // Each key is written once more, at one agent after another, and read at every one.
            for (position, key) in register.keys().enumerate() {
                let writer = agents[position % agents.len()];
                let before = async || match register.read(writer, &key, KvOperation::ConsistentRead).await {
                    Some(_) => None,
                    None => Some(format!("no consistent read of {key} at {writer}")),
                };
                self.until_nothing_is_missing("reads serve after the faults", ends_at, before)
                    .await?;
                let missing = async || match register.write(writer, &key).await {
                    Outcome::Ok => None,
                    other => Some(format!("a write of {key} at {writer} was {other:?}")),
                };
                self.until_nothing_is_missing("writes serve after the faults", ends_at, missing)
                    .await?;
            }
            for key in register.keys() {
                for agent in &agents {
                    let missing = async || {
                        let consistent = register.read(agent, &key, KvOperation::ConsistentRead).await;
                        let stale = register.read(agent, &key, KvOperation::StaleRead).await;
                        match (consistent, stale) {
                            (Some(Some(consistent)), Some(Some(stale))) if consistent == stale => None,
                            other => Some(format!("consistent and stale reads of {key} at {agent} are {other:?}")),
                        }
                    };
                    self.until_nothing_is_missing("reads agree after the faults", ends_at, missing)
                        .await?;
                }
            }
        }
        Ok(())
    }
}

impl Run {
    /// Every group is read and every lock had once more, at one agent after another: holders that fell silent expire.
    async fn serve_users(&self, ends_at: Duration, users: &Users) -> Result<(), Stop> {
        let agents: Vec<&String> = self.story.names().collect();
        let mut rng = self.story.world.scenario_rng("after the faults");
        for clients in &users.cells {
            for group in clients.groups() {
                for agent in &agents {
                    let missing = async || match clients.read(agent, &group, &mut rng).await {
                        Some(_) => None,
                        None => Some(format!("no read of {group} at {agent}")),
                    };
                    self.until_nothing_is_missing("reads serve after the faults", ends_at, missing)
                        .await?;
                }
            }
        }
        for clients in &users.locks {
            for (position, key) in clients.keys().enumerate() {
                let agent = agents[position % agents.len()];
                let missing = async || match clients.can_be_had(agent, &key).await {
                    true => None,
                    false => Some(format!("{key} cannot be had at {agent}")),
                };
                self.until_nothing_is_missing("locks are free after the faults", ends_at, missing)
                    .await?;
            }
        }
        Ok(())
    }
}

/// Who locks, and who changes keys together.
#[derive(Default)]
struct Users {
    cells: Vec<CellClients>,
    locks: Vec<LockClients>,
}

impl Users {
    /// After the run.
    fn check(&self) {
        for clients in &self.cells {
            clients.check();
        }
        for clients in &self.locks {
            clients.check();
        }
    }
}

/// Each node as it stands.
fn views(story: &Story) -> String {
    let mut text = String::new();
    for node in story.names() {
        let is_running = story.world.is_running(node);
        let _ = write!(text, "  {node} boot {}", story.world.boot(node));
        match (is_running, story.is_serving(node)) {
            (false, _) => text.push_str(" down"),
            (true, false) => text.push_str(" not serving"),
            (true, true) => {}
        }
        if let Some(status) = story.status(node) {
            let leader = story.names().find(|name| {
                story
                    .agent(name)
                    .is_some_and(|agent| Some(agent.node_id()) == status.leader)
            });
            let _ = write!(
                text,
                " term {} leader {}{} applied {} committed {} last {} voters {}",
                status.term,
                leader.map_or("none", String::as_str),
                if status.is_leader { " (itself)" } else { "" },
                status.last_applied.0,
                status.commit_index.0,
                status.last_log_index.0,
                status.voters.len()
            );
        }
        text.push('\n');
    }
    text
}
