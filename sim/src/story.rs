//! What a run knows of itself while it goes on: its agents, its moments, what was counted, and what was broken.
//!
//! Shared by the runner, the faults, the workloads and the requirements. All of them run on one thread; a lock is held for
//! a few lines and never across an await.
//! Invariant: the first broken rule stays; what comes after it may only follow from it.

use crate::invariant::index::Indexes;
use crate::invariant::leaders::Leaders;
use crate::invariant::logs::Logs;
use crate::rt::SimRt;
use crate::scenario::Scenario;
use crate::world::World;
use quorate_agent::Agent;
use quorate_replica::ReplicaStatus;
use quorate_rt::Rng;
use quorate_store::Store;
use rand_core::Rng as _;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// A broken rule.
#[derive(Clone, Debug)]
pub struct Broken {
    pub at: Duration,
    pub what: String,
}

/// Somebody declared a member failed.
#[derive(Clone, Debug)]
pub struct Failure {
    pub at: Duration,
    pub by: String,
    pub member: String,
}

#[derive(Default)]
pub struct State {
    /// Those that run, from the end of their start until their kill.
    agents: BTreeMap<String, Agent<SimRt>>,
    moments: BTreeMap<String, Duration>,
    /// Whom a named fault hit.
    hit: BTreeMap<String, Vec<String>>,
    counts: BTreeMap<&'static str, u64>,
    broken: Option<Broken>,
    pub indexes: Indexes,
    pub leaders: Leaders,
    pub logs: Logs,
    /// Agents that were told to stop: their end is no fault of theirs.
    stopping: BTreeSet<String>,
    /// Nodes with a fault now that their agent may end of, and how many such.
    ailing: BTreeMap<String, u64>,
    /// Nodes that had such a fault, and their boot when it was over.
    ailed: BTreeMap<String, u64>,
    /// Agents that ended by themselves and were not started again yet.
    ended: BTreeSet<String>,
    /// All that ever ended so.
    endings: Vec<(Duration, String)>,
    failures: Vec<Failure>,
    /// (node, service) whose check has to fail.
    pub failing: BTreeSet<(String, String)>,
}

/// Clones are the same story.
#[derive(Clone)]
pub struct Story {
    pub world: World,
    pub scenario: Arc<Scenario>,
    pub servers: Arc<[String]>,
    pub clients: Arc<[String]>,
    state: Arc<Mutex<State>>,
}

impl Story {
    pub fn new(world: World, scenario: Arc<Scenario>, servers: Vec<String>, clients: Vec<String>) -> Self {
        Self {
            world,
            scenario,
            servers: servers.into(),
            clients: clients.into(),
            state: Arc::default(),
        }
    }
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
    pub fn count(&self, mark: &'static str) {
        *self.state().counts.entry(mark).or_default() += 1;
    }
    pub fn counts(&self) -> BTreeMap<&'static str, u64> {
        self.state().counts.clone()
    }
    pub fn counted(&self, mark: &str) -> u64 {
        self.state().counts.get(mark).copied().unwrap_or(0)
    }
    pub fn breaks(&self, what: impl Into<String>) {
        let at = self.world.elapsed();
        self.state()
            .broken
            .get_or_insert_with(|| Broken { at, what: what.into() });
    }
    pub fn holds(&self, invariant: &str, judged: Result<(), String>) {
        let listed = &self.scenario.expect.invariants;
        if let Err(what) = judged
            && listed.iter().any(|name| name == invariant || name == "all")
        {
            self.breaks(format!("{invariant}: {what}"));
        }
    }
    pub fn broken(&self) -> Option<Broken> {
        self.state().broken.clone()
    }

    // Moments

    pub fn set_moment(&self, name: &str) {
        let now = self.world.elapsed();
        self.state().moments.insert(name.to_owned(), now);
    }
    pub fn moment(&self, name: &str) -> Option<Duration> {
        self.state().moments.get(name).copied()
    }
    pub fn is_over(&self) -> bool {
        self.moment("end").is_some()
    }
    pub fn set_hit(&self, fault: &str, nodes: &[String]) {
        self.state().hit.insert(fault.to_owned(), nodes.to_vec());
    }

    // Agents

    pub fn names(&self) -> impl Iterator<Item = &String> {
        self.servers.iter().chain(self.clients.iter())
    }
    pub fn agent_started(&self, node: &str, agent: Agent<SimRt>) {
        let mut state = self.state();
        state.stopping.remove(node);
        state.agents.insert(node.to_owned(), agent);
    }
    pub fn agent(&self, node: &str) -> Option<Agent<SimRt>> {
        self.state().agents.get(node).cloned()
    }
    pub fn is_serving(&self, node: &str) -> bool {
        self.state().agents.contains_key(node)
    }
    /// The agent is forgotten, before or because it ends.
    pub fn forget_agent(&self, node: &str) -> Option<Agent<SimRt>> {
        self.state().agents.remove(node)
    }
    pub fn tell_to_stop(&self, node: &str) {
        self.state().stopping.insert(node.to_owned());
    }
    /// The agent did not start, or ran and does no more.
    pub fn agent_ended(&self, node: &str, what: &str) {
        let (boot, now) = (self.world.boot(node), self.world.elapsed());
        let is_allowed = {
            let mut state = self.state();
            if state.stopping.contains(node) {
                return;
            }
            let is_allowed = state.ailing.contains_key(node) || state.ailed.get(node) == Some(&boot);
            state.ended.insert(node.to_owned());
            state.endings.push((now, node.to_owned()));
            is_allowed
        };
        tracing::info!(node, what, "an agent is gone");
        self.count("agent.ended");
        if !is_allowed {
            self.breaks(format!("{node} {what}"));
        }
    }
    /// From now on the node's agent may end by itself.
    pub fn begin_ailing(&self, node: &str) {
        *self.state().ailing.entry(node.to_owned()).or_default() += 1;
    }
    /// What it ended of, or still will in this boot, is over.
    pub fn end_ailing(&self, node: &str) {
        let boot = self.world.boot(node);
        let mut state = self.state();
        state.ailed.insert(node.to_owned(), boot);
        if let Some(count) = state.ailing.get_mut(node) {
            *count -= 1;
            if *count == 0 {
                state.ailing.remove(node);
            }
        }
    }
    /// When an agent ended by itself.
    pub fn endings_of(&self, node: &str) -> Vec<Duration> {
        let state = self.state();
        let endings = state.endings.iter().filter(|(_, ended)| ended == node);
        endings.map(|(at, _)| *at).collect()
    }
    /// Boots the machines whose agent ended of something that is over.
    pub fn start_those_that_ended(&self) {
        let recovered: Vec<String> = {
            let state = self.state();
            let ended = state.ended.iter().filter(|node| !state.ailing.contains_key(*node));
            ended.cloned().collect()
        };
        for node in recovered {
            if self.world.is_running(&node) {
                self.boot(&node);
            } else {
                // It was killed since: who did that boots it.
                self.state().ended.remove(&node);
            }
        }
    }
    pub fn boot(&self, node: &str) {
        self.count("agent.restarted");
        self.state().ended.remove(node);
        self.world.restart(node);
    }

    // Gossip

    /// What an agent tells of a pool: the pool, a word, and whom it is about.
    pub fn hear_gossip(&self, node: &str, payload: &[u8]) {
        let text = String::from_utf8_lossy(payload);
        let mut words = text.split(' ').skip(1);
        let mark = match words.next() {
            Some("failed") => "gossip.failed",
            Some("suspected") => "gossip.suspected",
            Some("refuted") => "gossip.refuted",
            Some("conflict") => "gossip.conflict",
            _ => return,
        };
        self.count(mark);
        if mark == "gossip.failed" {
            let failure = Failure {
                at: self.world.elapsed(),
                by: node.to_owned(),
                member: words.nth(1).unwrap_or_default().to_owned(),
            };
            self.state().failures.push(failure);
        }
    }
    /// Who was declared failed since the `skip`th time.
    pub fn failures(&self, skip: usize) -> Vec<Failure> {
        self.state().failures.iter().skip(skip).cloned().collect()
    }
    pub fn status(&self, server: &str) -> Option<ReplicaStatus> {
        self.agent(server)?.replica().map(|replica| replica.status())
    }
    /// The replicated state as this server has it.
    pub fn store(&self, server: &str) -> Option<Arc<Store>> {
        self.agent(server)?.replica().map(|replica| replica.snapshot())
    }
    /// Of those that think they lead, the one of the highest term: the others have not heard of it.
    pub fn leader(&self) -> Option<String> {
        let statuses = self
            .servers
            .iter()
            .filter_map(|server| Some((self.status(server)?, server)));
        let leaders = statuses.filter(|(status, _)| status.is_leader);
        leaders
            .max_by_key(|(status, _)| status.term)
            .map(|(_, server)| server.clone())
    }

    /// Who has the role now. Empty when nobody has: no leader, no follower that runs.
    pub fn resolve(&self, role: &str, rng: &mut Rng) -> Vec<String> {
        let any = |among: Vec<String>, rng: &mut Rng| match among.len() {
            0 => Vec::new(),
            count => vec![among[rng.next_u32() as usize % count].clone()],
        };
        let serving =
            |names: &[String]| -> Vec<String> { names.iter().filter(|name| self.is_serving(name)).cloned().collect() };
        match role {
            "leader" => self.leader().into_iter().collect(),
            "any_follower" => {
                let leader = self.leader();
                let mut followers = serving(&self.servers);
                followers.retain(|server| Some(server) != leader.as_ref());
                any(followers, rng)
            }
            "any_server" => any(serving(&self.servers), rng),
            "any_client" => any(serving(&self.clients), rng),
            "servers" => self.servers.to_vec(),
            "clients" => self.clients.to_vec(),
            "agents" => self.names().cloned().collect(),
            name => match self.state().hit.get(name) {
                Some(nodes) => nodes.clone(),
                None => self.names().filter(|node| *node == name).cloned().collect(),
            },
        }
    }
    /// All who have one of the roles, each once, in order of the roles. Of two random roles each takes another node.
    pub fn resolve_all(&self, roles: &[String], rng: &mut Rng) -> Vec<String> {
        let mut found: Vec<String> = Vec::new();
        for role in roles {
            let mut nodes = self.resolve(role, rng);
            for _ in 0..100 {
                if !role.starts_with("any_") || nodes.iter().all(|node| !found.contains(node)) {
                    break;
                }
                nodes = self.resolve(role, rng);
            }
            nodes.retain(|node| !found.contains(node));
            found.extend(nodes);
        }
        found
    }
}
