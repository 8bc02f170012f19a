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
    pub fn is_stopping(&self, node: &str) -> bool {
        self.state().stopping.contains(node)
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
