//! What is done to the world, and when.
//!
//! In: the scenario's faults. Out: a schedule, drawn from the seed before the run; then the deeds, with roles resolved at the
//! moment a fault fires. Everything that begins also ends: at its time, or when the faults end.

use crate::agent_file::{AgentFiles, script_of};
use crate::disk::DiskFaults;
use crate::net::Link;
use crate::runner::link_of;
use crate::scenario::{CheckKind, Fault, Spare, Whole};
use crate::story::Story;
use crate::wire::Sabotage;
use crate::world::{CutId, ProcessAnswer};
use anyhow::{Context as _, Result, ensure};
use quorate_rt::{ProcessEnd, Rng, Signal};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

/// A fault whose victim is missing (no leader just now) is put off so far at a time,
const PUT_OFF: Duration = Duration::from_millis(50);
/// and so long in all.
const PUT_OFF_MAX: Duration = Duration::from_secs(15);
/// Within this an agent that was told to stop has stopped.
const STOP_TIMEOUT: Duration = Duration::from_secs(20);
/// Less than has passed since the agents' starts: their time goes back, and not below zero.
const SABOTAGED_JUMP: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Edge {
    Begin,
    End,
}

/// A fault may fire more than once: each time is an occurrence.
type Occurrence = (usize, usize);

#[derive(Clone, Debug)]
struct Deed {
    at: Duration,
    edge: Edge,
    occurrence: Occurrence,
    put_off: Duration,
}

#[derive(Default)]
struct Fired {
    nodes: Vec<String>,
    cuts: Vec<CutId>,
    link: bool,
    checks: Vec<(String, String)>,
    /// How their clocks drifted before.
    drifts_ppm: Vec<(String, i32)>,
    /// They run, and serve no quorum.
    are_unfit: bool,
}

pub struct Faults {
    story: Story,
    files: AgentFiles,
    sabotage: Option<Sabotage>,
    rng: Rng,
    /// In order of time, from the story's start.
    schedule: Vec<Deed>,
    next: usize,
    fired: BTreeMap<Occurrence, Fired>,
    link: Link,
    addresses_given: u16,
    /// All faults end: nothing outlives that.
    is_ending: bool,
}

fn exit(code: i32, output: &str) -> ProcessAnswer {
    ProcessAnswer {
        end: ProcessEnd::Exited(code),
        output: output.as_bytes().to_vec(),
        delay: Duration::from_millis(5),
    }
}

/// Sets how a service's check script ends on a node.
pub fn set_script(story: &Story, node: &str, service: &str, passes: bool) {
    let answer = if passes { exit(0, "fine") } else { exit(2, "broken") };
    story.world.set_process(node, &script_of(service), answer);
}

/// When something happens that lasts so long each time, again and again.
fn repeated(
    at_ms: Whole,
    lasts_ms: Option<Whole>,
    every_ms: Option<Whole>,
    until_ms: Option<Whole>,
    draw: &mut impl FnMut(Whole) -> Duration,
) -> Vec<(Duration, Option<Duration>)> {
    let mut at = draw(at_ms);
    let mut spans = vec![(at, lasts_ms.map(|lasts_ms| at + draw(lasts_ms)))];
    if let (Some(every_ms), Some(until_ms)) = (every_ms, until_ms) {
        let until = draw(until_ms);
        loop {
            at += draw(every_ms);
            if at >= until {
                break;
            }
            spans.push((at, lasts_ms.map(|lasts_ms| at + draw(lasts_ms))));
        }
    }
    spans
}

impl Faults {
    pub fn new(story: &Story, files: &AgentFiles, link: Link, sabotage: Option<Sabotage>) -> Self {
        let mut schedule = Vec::new();
        for (position, fault) in story.scenario.faults.iter().enumerate() {
            // Each has a stream of its own: a fault more in the file moves no other.
            let mut rng = story.world.scenario_rng(&format!("fault.{position}"));
            let mut draw = |whole: Whole| Duration::from_millis(whole.draw(&mut rng));
            let mut spans = Vec::new();
            match fault {
                Fault::Partition { at_ms, until_ms, .. }
                | Fault::Isolate { at_ms, until_ms, .. }
                | Fault::OneWayCut { at_ms, until_ms, .. }
                | Fault::Disk { at_ms, until_ms, .. }
                | Fault::Clock { at_ms, until_ms, .. }
                | Fault::Loss { at_ms, until_ms, .. }
                | Fault::CheckFails { at_ms, until_ms, .. } => spans.push((draw(*at_ms), Some(draw(*until_ms)))),
                Fault::Reconfigure { at_ms, until_ms, .. } => spans.push((draw(*at_ms), until_ms.map(&mut draw))),
                Fault::Readdress { at_ms, down_ms, .. } | Fault::Wipe { at_ms, down_ms, .. } => {
                    let at = draw(*at_ms);
                    spans.push((at, Some(at + draw(*down_ms))));
                }
                Fault::Restart {
                    at_ms,
                    every_ms,
                    until_ms,
                    ..
                } => spans = repeated(*at_ms, None, *every_ms, *until_ms, &mut draw),
                Fault::Pause {
                    at_ms,
                    for_ms,
                    every_ms,
                    until_ms,
                    ..
                } => spans = repeated(*at_ms, Some(*for_ms), *every_ms, *until_ms, &mut draw),
                Fault::Kill {
                    at_ms,
                    down_ms,
                    every_ms,
                    until_ms,
                    ..
                } => spans = repeated(*at_ms, *down_ms, *every_ms, *until_ms, &mut draw),
            }
            for (count, (at, end)) in spans.into_iter().enumerate() {
                let occurrence = (position, count);
                schedule.push(Deed {
                    at,
                    edge: Edge::Begin,
                    occurrence,
                    put_off: Duration::ZERO,
                });
                schedule.extend(end.map(|end| Deed {
                    at: end.max(at),
                    edge: Edge::End,
                    occurrence,
                    put_off: Duration::ZERO,
                }));
            }
        }
        schedule.sort_by_key(|deed| (deed.at, deed.occurrence, deed.edge));
        Self {
            story: story.clone(),
            files: files.clone(),
            sabotage,
            rng: story.world.scenario_rng("roles"),
            schedule,
            next: 0,
            fired: BTreeMap::new(),
            link,
            addresses_given: 0,
            is_ending: false,
        }
    }

    /// When the next deed is due, from the story's start.
    pub fn next_at(&self) -> Option<Duration> {
        self.schedule.get(self.next).map(|deed| deed.at)
    }
    /// Does the next deed.
    pub async fn step(&mut self) -> Result<()> {
        let deed = self.schedule[self.next].clone();
        match deed.edge {
            Edge::Begin if self.is_somebody_missing(deed.occurrence) => {
                let fault = &self.story.scenario.faults[deed.occurrence.0];
                ensure!(
                    deed.put_off < PUT_OFF_MAX,
                    "{}: nobody had the role for {PUT_OFF_MAX:?}",
                    fault.mark()
                );
                self.put_off(deed.occurrence);
                Ok(())
            }
            Edge::Begin => {
                self.next += 1;
                self.begin(deed.occurrence).await
            }
            Edge::End => {
                self.next += 1;
                self.end(deed.occurrence).await
            }
        }
    }
    fn is_somebody_missing(&self, occurrence: Occurrence) -> bool {
        let roles = self.story.scenario.faults[occurrence.0].roles();
        let is_wanted = |wanted: &str| roles.iter().any(|role| *role == wanted);
        let leader = self.story.leader();
        let has_follower = || {
            let mut others = self
                .story
                .servers
                .iter()
                .filter(|server| Some(*server) != leader.as_ref());
            others.any(|server| self.story.is_serving(server))
        };
        is_wanted("leader") && leader.is_none()
            || is_wanted("any_follower") && !has_follower()
            || is_wanted("any_server") && !self.story.servers.iter().any(|server| self.story.is_serving(server))
            || is_wanted("any_client") && !self.story.clients.iter().any(|client| self.story.is_serving(client))
    }
    /// Moves beginning and end of one occurrence; the others go on meanwhile, or who is missing might never come back.
    fn put_off(&mut self, occurrence: Occurrence) {
        let rest = &mut self.schedule[self.next..];
        for deed in rest.iter_mut().filter(|deed| deed.occurrence == occurrence) {
            deed.at += PUT_OFF;
            deed.put_off += PUT_OFF;
        }
        rest.sort_by_key(|deed| (deed.at, deed.occurrence, deed.edge));
    }
    /// Ends all that has not ended, and whatever a run left behind.
    pub async fn end_all(&mut self) -> Result<()> {
        self.next = self.schedule.len();
        self.is_ending = true;
        for occurrence in self.fired.keys().copied().collect::<Vec<_>>() {
            self.end(occurrence).await?;
        }
        if self.sabotage != Some(Sabotage::CutsNeverHeal) {
            self.story.world.heal();
        }
        self.story.world.set_link(self.link.clone());
        for node in self.story.names() {
            self.story.world.resume(node);
        }
        let down: Vec<String> = self
            .story
            .names()
            .filter(|node| !self.story.world.is_running(node))
            .cloned()
            .collect();
        for node in down {
            self.story.boot(&node);
        }
        Ok(())
    }

    fn resolve(&mut self, roles: &[String]) -> Vec<String> {
        self.story.resolve_all(roles, &mut self.rng)
    }

    async fn begin(&mut self, occurrence: Occurrence) -> Result<()> {
        let scenario = std::sync::Arc::clone(&self.story.scenario);
        let fault = &scenario.faults[occurrence.0];
        let world = self.story.world.clone();
        let mut fired = Fired::default();
        match fault {
            Fault::Partition { side, .. } => {
                fired.nodes = self.resolve(side);
                if self.sabotage == Some(Sabotage::LeaderClockSlows)
                    && let Some(leader) = self.story.leader().filter(|leader| fired.nodes.contains(leader))
                {
                    world.set_drift_ppm(&leader, -900_000);
                }
                let others: Vec<&str> = self
                    .story
                    .names()
                    .filter(|node| !fired.nodes.contains(node))
                    .map(String::as_str)
                    .collect();
                let side: Vec<&str> = fired.nodes.iter().map(String::as_str).collect();
                fired.cuts.push(world.partition(&[&side, &others]));
            }
            Fault::Isolate { nodes, .. } => {
                fired.nodes = self.resolve(nodes);
                fired.cuts = fired.nodes.iter().map(|node| world.isolate(node)).collect();
            }
            Fault::Pause { nodes, .. } => {
                let mut nodes = self.resolve(nodes);
                nodes.retain(|node| world.is_running(node));
                nodes.iter().for_each(|node| world.pause(node));
                fired.nodes = nodes;
                fired.are_unfit = true;
            }
            Fault::OneWayCut { from, to, .. } => {
                let from = self.resolve(from);
                let to = self.resolve(to);
                for from in &from {
                    for to in to.iter().filter(|to| *to != from) {
                        fired.cuts.push(match self.sabotage {
                            Some(Sabotage::OneWayCutsIsolate) => world.isolate(from),
                            _ => world.cut_one_way(from, to),
                        });
                    }
                }
                fired.nodes = from;
            }
            Fault::Kill {
                nodes,
                power_loss,
                spare,
                ..
            } => {
                let mut nodes = self.resolve(nodes);
                nodes.retain(|node| world.is_running(node));
                if *spare == Spare::Quorum {
                    self.keep_quorum(&mut nodes);
                }
                // All at one moment: a power loss spares nobody who is later in a list.
                if self.sabotage != Some(Sabotage::KillsDoNothing) {
                    for node in &nodes {
                        self.kill(node, *power_loss);
                    }
                }
                fired.nodes = nodes;
            }
            Fault::Readdress { nodes, swap, .. } => {
                fired.nodes = self.resolve(nodes);
                for node in &fired.nodes {
                    self.kill(node, false);
                }
                self.readdress(&fired.nodes, *swap);
            }
            Fault::Wipe { nodes, .. } => {
                fired.nodes = self.resolve(nodes);
                for node in &fired.nodes {
                    self.kill(node, true);
                    world.wipe_disk(node);
                }
            }
            Fault::Restart {
                nodes, in_turn, config, ..
            } => {
                fired.nodes = self.resolve(nodes);
                if *in_turn && !fired.nodes.is_empty() {
                    let turn = occurrence.1 % fired.nodes.len();
                    fired.nodes = vec![fired.nodes.swap_remove(turn)];
                }
                for node in fired.nodes.clone() {
                    self.stop_orderly(&node).await?;
                    let loses_disk = self.sabotage == Some(Sabotage::RestartsLoseDisks);
                    if loses_disk {
                        world.wipe_disk(&node);
                    }
                    let is_changed = !config.is_empty() && !self.skips_step(occurrence.0);
                    if is_changed {
                        self.files.keep(&node, config);
                    }
                    if is_changed || loses_disk {
                        self.files.write(&node, &toml::Table::new())?;
                    }
                    self.story.boot(&node);
                }
            }
            Fault::Reconfigure { nodes, config, .. } => {
                fired.nodes = self.resolve(nodes);
                if self.sabotage == Some(Sabotage::NameHolderGone)
                    && let Some(holder) = config.get("node_name").and_then(toml::Value::as_str)
                {
                    self.kill(holder, false);
                }
                for node in fired.nodes.clone() {
                    self.stop_orderly(&node).await?;
                    self.files.write(&node, config)?;
                    self.story.boot(&node);
                }
            }
            Fault::Disk {
                nodes,
                read_error_ratio,
                write_error_ratio,
                sync_error_ratio,
                full,
                slow_factor,
                may_end,
                ..
            } => {
                fired.nodes = match self.sabotage {
                    Some(Sabotage::DisksFailTogether) => self.story.names().cloned().collect(),
                    _ => self.resolve(nodes),
                };
                let mut faults = DiskFaults {
                    read_error_ratio: read_error_ratio.draw(&mut self.rng),
                    write_error_ratio: write_error_ratio.draw(&mut self.rng),
                    sync_error_ratio: sync_error_ratio.draw(&mut self.rng),
                    full: *full,
                    slow_factor: u32::try_from(slow_factor.draw(&mut self.rng)).context("slow_factor")?,
                    ..DiskFaults::default()
                };
                if self.sabotage == Some(Sabotage::HiddenSyncErrors) {
                    faults.sync_error_ratio = 0.0;
                    faults.lies_about_syncs = true;
                }
                for node in &fired.nodes {
                    world.set_disk_faults(node, faults.clone());
                    if *may_end {
                        self.story.begin_ailing(node);
                    }
                }
                fired.are_unfit = true;
            }
            Fault::Clock {
                nodes,
                wall_offset_ms,
                drift_ppm,
                ..
            } => {
                fired.nodes = self.resolve(nodes);
                for node in &fired.nodes {
                    if wall_offset_ms.is_some() && self.sabotage == Some(Sabotage::WallJumpsMoveTimers) {
                        world.set_clock_back(node, SABOTAGED_JUMP);
                    }
                    if let Some(offset) = wall_offset_ms {
                        // Each its own, in bounds that the scenario was checked for.
                        world.set_wall_offset_nanos(node, offset.draw(&mut self.rng) * 1_000_000);
                    }
                    if let Some(drift) = drift_ppm {
                        fired.drifts_ppm.push((node.clone(), world.drift_ppm(node)));
                        let drift = i32::try_from(drift.draw(&mut self.rng)).context("drift_ppm")?;
                        world.set_drift_ppm(node, drift);
                    }
                }
            }
            Fault::Loss {
                loss_ratio,
                duplicate_ratio,
                latency_ms,
                ..
            } => {
                let ratio = loss_ratio.draw(&mut self.rng);
                let link = latency_ms.map_or_else(|| self.link.clone(), |latency_ms| link_of(latency_ms, ratio));
                world.set_link(Link {
                    loss_ratio: ratio,
                    duplicate_ratio: duplicate_ratio.draw(&mut self.rng),
                    ..link
                });
                fired.link = true;
            }
            Fault::CheckFails { node, service, .. } => {
                fired.nodes = self.resolve(std::slice::from_ref(node));
                for node in &fired.nodes {
                    self.set_check(node, service, false)?;
                    fired.checks.push((node.clone(), service.clone()));
                }
            }
        }
        tracing::info!(fault = fault.mark(), nodes = ?fired.nodes, "fault begins");
        self.story.count(fault.mark());
        if let Some(name) = fault.name() {
            self.story.set_hit(name, &fired.nodes);
            self.story.set_moment(name);
        }
        self.fired.insert(occurrence, fired);
        if matches!(fault, Fault::Restart { .. }) {
            self.end(occurrence).await?;
        }
        Ok(())
    }

    async fn end(&mut self, occurrence: Occurrence) -> Result<()> {
        let Some(fired) = self.fired.remove(&occurrence) else {
            return Ok(());
        };
        let scenario = std::sync::Arc::clone(&self.story.scenario);
        let fault = &scenario.faults[occurrence.0];
        let world = self.story.world.clone();
        for cut in fired.cuts {
            if self.sabotage != Some(Sabotage::CutsNeverHeal) {
                world.mend(cut);
            }
        }
        if fired.link {
            world.set_link(self.link.clone());
        }
        for (node, drift_ppm) in &fired.drifts_ppm {
            world.set_drift_ppm(node, *drift_ppm);
        }
        for (node, service) in &fired.checks {
            self.set_check(node, service, true)?;
        }
        for node in &fired.nodes {
            match fault {
                Fault::Kill { .. } if !world.is_running(node) => self.story.boot(node),
                Fault::Readdress { .. } | Fault::Wipe { .. } => {
                    self.files.write(node, &toml::Table::new())?;
                    self.story.boot(node);
                }
                Fault::Reconfigure { .. } => {
                    self.stop_orderly(node).await?;
                    self.files.write(node, &toml::Table::new())?;
                    self.story.boot(node);
                }
                Fault::Pause { .. } if self.is_ending || self.sabotage != Some(Sabotage::PausesLast) => {
                    world.resume(node);
                }
                Fault::Disk { may_end, .. } => {
                    world.set_disk_faults(node, DiskFaults::default());
                    if *may_end {
                        self.story.end_ailing(node);
                    }
                }
                Fault::Clock {
                    wall_offset_ms: Some(_),
                    ..
                } => world.set_wall_offset_nanos(node, 0),
                _ => {}
            }
        }
        tracing::info!(fault = fault.mark(), nodes = ?fired.nodes, "fault ends");
        if let Some(name) = fault.name() {
            self.story.set_moment(&format!("{name}.end"));
        }
        Ok(())
    }

    /// Whether a later fault changes files for good too, and a sabotage lets only the last one do so.
    fn skips_step(&self, position: usize) -> bool {
        let later = &self.story.scenario.faults[position + 1..];
        let is_step = |fault: &Fault| matches!(fault, Fault::Restart { config, .. } if !config.is_empty());
        self.sabotage == Some(Sabotage::RolloutsSkipSteps) && later.iter().any(is_step)
    }
    fn keep_quorum(&self, nodes: &mut Vec<String>) {
        let servers = &self.story.servers;
        let quorum = servers.len() / 2 + 1;
        // Who is cut off serves no quorum either.
        let cut_off: Vec<&String> = self
            .fired
            .values()
            .filter(|fired| !fired.cuts.is_empty() || fired.are_unfit)
            .flat_map(|fired| &fired.nodes)
            .collect();
        let counts = |server: &String| self.story.world.is_running(server) && !cut_off.contains(&server);
        let mut up = servers.iter().filter(|server| counts(server)).count();
        nodes.retain(|node| {
            if !servers.contains(node) || cut_off.contains(&node) {
                return true;
            }
            let is_spared = up <= quorum;
            up -= usize::from(!is_spared);
            !is_spared
        });
    }
    fn kill(&self, node: &str, power_loss: bool) {
        // Its handle first: a dead boot must have nothing that still acts for it.
        let agent = self.story.forget_agent(node);
        self.story.world.kill(node, power_loss);
        drop(agent);
    }
    /// New addresses for machines that do not run.
    fn readdress(&mut self, nodes: &[String], swap: bool) {
        let world = self.story.world.clone();
        let before: Vec<IpAddr> = nodes.iter().map(|node| world.ip(node)).collect();
        for node in nodes {
            self.addresses_given += 1;
            let [high, low] = self.addresses_given.to_be_bytes();
            world.set_ip(node, IpAddr::from([10, 1, high, low]));
        }
        if swap {
            for (position, node) in nodes.iter().enumerate() {
                world.set_ip(node, before[(position + nodes.len() - 1) % nodes.len()]);
            }
        }
    }
    async fn stop_orderly(&self, node: &str) -> Result<()> {
        if !self.story.is_serving(node) {
            self.kill(node, false);
            return Ok(());
        }
        self.story.tell_to_stop(node);
        // Stopped by SIGSTOP it would take no notice.
        self.story.world.resume(node);
        self.story.world.signal(node, Signal::Terminate);
        let claim = format!("{node} stops when it is told to");
        let stopped = async || !self.story.is_serving(node);
        self.story.world.run_until(&claim, STOP_TIMEOUT, stopped).await?;
        self.story.world.kill(node, false);
        Ok(())
    }
    fn set_check(&self, node: &str, service: &str, passes: bool) -> Result<()> {
        let kind = self
            .story
            .scenario
            .service(service)?
            .check
            .as_ref()
            .map(|check| check.kind);
        match kind {
            Some(CheckKind::Script) => set_script(&self.story, node, service, passes),
            Some(CheckKind::Tcp) => {
                let pair = (node.to_owned(), service.to_owned());
                let failing = &mut self.story.state().failing;
                if passes {
                    failing.remove(&pair);
                } else {
                    failing.insert(pair);
                }
            }
            None => {}
        }
        Ok(())
    }
}
