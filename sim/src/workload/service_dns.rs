//! Somebody who resolves a service at every agent, by DNS and by `/v1/health/service`.
//!
//! Check, at each answer: DNS gave no instance that was critical on the server that answered; the index of the HTTP read did
//! not go back.

use crate::invariant::critical::{self, Look};
use crate::scenario::ServiceDns;
use crate::story::Story;
use crate::wire::Wire;
use quorate_rt::{Rt as _, Task};
use quorate_store::{Answer, Query};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

#[derive(Clone)]
pub struct Resolver {
    story: Story,
    wire: Wire,
    settings: Arc<ServiceDns>,
    position: usize,
}

impl Resolver {
    pub fn new(story: &Story, wire: &Wire, settings: &ServiceDns, position: usize) -> Self {
        Self {
            story: story.clone(),
            wire: wire.clone(),
            settings: Arc::new(settings.clone()),
            position,
        }
    }
    /// One resolver an agent.
    pub fn start(&self, rt: &crate::rt::SimRt) -> Vec<Task> {
        let mut rng = self.story.world.scenario_rng(&format!("workload.{}", self.position));
        let agents = self.story.resolve_all(&self.settings.at, &mut rng);
        agents
            .into_iter()
            .map(|agent| rt.spawn("workload.service_dns", self.clone().run(agent)))
            .collect()
    }

    async fn run(self, agent: String) {
        let mut rng = self
            .story
            .world
            .scenario_rng(&format!("workload.{}/{agent}", self.position));
        while !self.story.is_over() {
            if self.story.is_serving(&agent) {
                self.resolve(&agent).await;
                self.read(&agent).await;
            }
            let pause = self.settings.interval_ms.draw(&mut rng);
            self.story.world.advance(Duration::from_millis(pause)).await;
        }
    }

    /// What the servers that may answer for this agent know, with the boot that knows it.
    fn look(&self, agent: &str) -> BTreeMap<String, (u64, Look)> {
        let is_server = self.story.servers.iter().any(|server| server == agent);
        let servers = self
            .story
            .servers
            .iter()
            .filter(|server| !is_server || *server == agent);
        let looks = servers.filter_map(|server| {
            let query = Query::Instances {
                service: self.settings.service.clone(),
                tags: Vec::new(),
                node_meta: Vec::new(),
            };
            let Answer::Instances(instances) = self.story.store(server)?.evaluate(&query).answer else {
                unreachable!("a question for instances is answered with instances");
            };
            let instances = instances.iter().map(|instance| {
                let indexes: BTreeSet<u64> = instance.checks.iter().map(|check| check.modify_index.0).collect();
                (instance.node.name.clone(), (instance.status(), indexes))
            });
            let look = Look {
                instances: instances.collect(),
            };
            Some((server.clone(), (self.story.world.boot(server), look)))
        });
        looks.collect()
    }

    async fn resolve(&self, agent: &str) {
        let mut before = self.look(agent);
        let answered = self.wire.dns_instances(agent, &self.settings.service).await;
        let after = self.look(agent);
        let Ok(answered) = answered else {
            self.story.count("dns.unanswered");
            return;
        };
        self.story.count(if answered.is_empty() {
            "dns.empty"
        } else {
            "dns.answered"
        });
        if before.keys().ne(after.keys()) {
            // One that stopped or started meanwhile may have answered.
            return;
        }
        let pairs = after.into_iter().map(|(server, (boot, after))| {
            let (boot_before, before) = before.remove(&server).expect("the same servers");
            (server, boot_before == boot, (before, after))
        });
        let pairs: Vec<_> = pairs.collect();
        if pairs.iter().all(|(_, is_same_boot, _)| *is_same_boot) {
            let looks = pairs.into_iter().map(|(server, _, looks)| (server, looks)).collect();
            self.story
                .holds("dns_never_critical", critical::check(&answered, &looks));
        }
    }

    async fn read(&self, agent: &str) {
        let is_server = self.story.servers.iter().any(|server| server == agent);
        let path = format!("/v1/health/service/{}?stale", self.settings.service);
        let asked = self
            .story
            .state()
            .indexes
            .ask(agent, self.story.world.boot(agent), &path);
        let Ok(answer) = self.wire.get(agent, &path).await else {
            return;
        };
        let index = answer.header("x-consul-index").and_then(|index| index.parse().ok());
        // An absent service has another index by contract.
        if answer.status == 200 && answer.text().trim() != "[]" && is_server {
            let boot = self.story.world.boot(agent);
            let judged = match index {
                Some(index) => self.story.state().indexes.answer(asked, boot, index),
                None => Err(format!("{path} at {agent} came without an index")),
            };
            self.story.holds("index_never_back", judged);
        }
    }
}
