//! What a scenario requires beyond the invariants: somebody asks all the time, and every answer within the window must be right.
//!
//! The window opens `within_ms` after a moment: until then any answer will do. From then on each must be right, until the
//! window closes. A question counts when it was asked and answered inside. That nobody could ask is an error too.

use crate::scenario::{KvOperation, Requirement, Window, member_status};
use crate::story::{Failure, Story};
use crate::wire::Wire;
use crate::workload::kv_register::{Call, KvClients, Outcome};
use hyper::Method;
use quorate_rt::{Rt as _, Task};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

const ASK_INTERVAL: Duration = Duration::from_millis(100);
/// The patience with one write of `writes_resume`.
const WRITE_TIMEOUT: Duration = Duration::from_secs(1);
/// Loss takes a question now and then; so many in a row are silence.
const SILENCE_COUNT: usize = 5;

/// What an answer says of a requirement.
enum Answer {
    Right,
    Wrong(String),
    /// It was lost, or refused: no answer to the question.
    Missing(String),
}

#[derive(Clone)]
struct Asker {
    story: Story,
    wire: Wire,
    position: usize,
    requirement: Arc<Requirement>,
    /// Whose history the operations go into that must be refused.
    register: Option<KvClients>,
    /// How many answers were inside the window.
    counted: Arc<Mutex<u64>>,
}

/// The askers of one scenario.
pub struct Requirements {
    askers: Vec<Asker>,
}

impl Requirements {
    pub fn new(story: &Story, wire: &Wire, registers: &[KvClients]) -> Self {
        let requirements = story.scenario.requirements.iter().enumerate();
        let asker = |(position, requirement): (usize, &Requirement)| Asker {
            story: story.clone(),
            wire: wire.with_timeout(Duration::from_secs(1)),
            position,
            requirement: Arc::new(requirement.clone()),
            register: registers.first().cloned(),
            counted: Arc::default(),
        };
        Self {
            askers: requirements.map(asker).collect(),
        }
    }
    /// One asker an agent, on the users' machine. They end with the story.
    pub fn start(&self, rt: &crate::rt::SimRt) -> Vec<Task> {
        let askers = self.askers.iter();
        askers
            .map(|asker| rt.spawn("require", asker.clone().run(rt.clone())))
            .collect()
    }
    /// After the run: what the history tells, and whether anybody could ask at all.
    pub fn check(&self, calls: &[Call]) {
        for asker in &self.askers {
            if let Requirement::Refused { operations, window } = &*asker.requirement {
                asker.check_refused(operations, window, calls);
            }
            if *asker.counted.lock().unwrap_or_else(PoisonError::into_inner) == 0 {
                asker
                    .story
                    .breaks(format!("{}: nothing was asked in its window", asker.name()));
            }
        }
    }
}

impl Asker {
    fn name(&self) -> String {
        let requirement = match &*self.requirement {
            Requirement::DnsLists { service, .. } => format!("dns_lists {service}"),
            Requirement::DnsLacks { service, .. } => format!("dns_lacks {service}"),
            Requirement::CheckIs { check, status, .. } => format!("check_is {check} {status}"),
            Requirement::MemberIs { node, status, .. } => format!("member_is {node} {status}"),
            Requirement::NeverFailed { nodes, .. } => format!("never_failed {nodes:?}"),
            Requirement::Ends { node, .. } => format!("ends {node}"),
            Requirement::ReadsGoOn { service, .. } => format!("reads_go_on {service}"),
            Requirement::WritesResume { .. } => "writes_resume".to_owned(),
            Requirement::WritesAnswered { answer_ms, .. } => format!("writes_answered {answer_ms}"),
            Requirement::Refused { operations, .. } => format!("refused {operations:?}"),
        };
        format!("require[{}] {requirement}", self.position)
    }
    fn count(&self) {
        *self.counted.lock().unwrap_or_else(PoisonError::into_inner) += 1;
    }
    async fn wait_for(&self, moment: &str) -> bool {
        while self.story.moment(moment).is_none() {
            if self.story.is_over() {
                return false;
            }
            self.story.world.advance(Duration::from_millis(5)).await;
        }
        true
    }
    fn is_closed(&self) -> bool {
        self.story.is_over() || self.story.moment(&self.requirement.window().until).is_some()
    }

    async fn run(self, rt: crate::rt::SimRt) {
        let window = self.requirement.window();
        if !self.wait_for(&window.after).await {
            return;
        }
        let mut rng = self.story.world.scenario_rng(&format!("require.{}", self.position));
        let nodes = self.story.resolve_all(self.requirement.nodes(), &mut rng);
        let after = self.story.moment(&window.after).expect("it was waited for");
        let opens_at = after + Duration::from_millis(window.within_ms);
        match &*self.requirement {
            Requirement::NeverFailed { .. } => {
                let agents = self.story.resolve_all(&window.at, &mut rng);
                return self.watch_failures(&agents, &nodes, opens_at).await;
            }
            Requirement::Ends { .. } => return self.wait_for_ends(&nodes, after, opens_at).await,
            _ => {}
        }
        let node = nodes.first().cloned().unwrap_or_default();
        for agent in self.story.resolve_all(&window.at, &mut rng) {
            let (asker, node) = (self.clone(), node.clone());
            rt.spawn("require.agent", async move {
                match &*asker.requirement {
                    Requirement::WritesResume { .. } => asker.write(&agent, opens_at).await,
                    Requirement::WritesAnswered { answer_ms, .. } => {
                        let patience = Duration::from_millis(*answer_ms);
                        asker.write_on(&agent, patience, opens_at).await
                    }
                    Requirement::Refused { operations, .. } => asker.operate(&agent, operations, opens_at).await,
                    _ => asker.ask_on(&agent, &node, opens_at).await,
                }
            });
        }
    }

    /// Asks one agent until the window closes.
    async fn ask_on(&self, agent: &str, node: &str, opens_at: Duration) {
        let world = &self.story.world;
        let mut missing = Vec::new();
        while !self.is_closed() {
            let (asked_at, interruptions) = (world.elapsed(), world.interruptions(agent));
            if self.story.is_serving(agent) && !world.is_paused(agent) {
                let answer = self.ask(agent, node).await;
                let is_inside = asked_at >= opens_at && !self.is_closed();
                // One that was killed or paused meanwhile owed no answer.
                let is_fair = self.story.is_serving(agent) && world.interruptions(agent) == interruptions;
                if is_inside && is_fair {
                    match answer {
                        Answer::Right => {
                            missing.clear();
                            self.count();
                        }
                        Answer::Wrong(what) => {
                            self.count();
                            self.story.breaks(format!("{} at {agent}: {what}", self.name()));
                            return;
                        }
                        Answer::Missing(why) => missing.push(why),
                    }
                }
            }
            world.advance(ASK_INTERVAL).await;
        }
        if let Some(why) = missing.last().filter(|_| missing.len() >= SILENCE_COUNT) {
            self.story
                .breaks(format!("{} at {agent}: no answer at last: {why}", self.name()));
        }
    }

    async fn ask(&self, agent: &str, node: &str) -> Answer {
        match &*self.requirement {
            Requirement::DnsLists { service, .. } | Requirement::DnsLacks { service, .. } => {
                let is_wanted = matches!(*self.requirement, Requirement::DnsLists { .. });
                match self.wire.dns_instances(agent, service).await {
                    Ok(nodes) if nodes.contains(node) == is_wanted => Answer::Right,
                    Ok(nodes) => Answer::Wrong(format!("DNS has {service} on {nodes:?}, asked for {node}")),
                    Err(why) => Answer::Missing(why.to_string()),
                }
            }
            Requirement::CheckIs { check, status, .. } => {
                let path = format!("/v1/health/node/{node}?stale");
                let checks = match self.wire.json(agent, &path).await {
                    Ok(checks) => checks,
                    Err(why) => return Answer::Missing(why.to_string()),
                };
                let mut all = checks.as_array().into_iter().flatten();
                match all
                    .find(|found| found["CheckID"] == **check)
                    .map(|found| &found["Status"])
                {
                    Some(found) if found == &**status => Answer::Right,
                    found => Answer::Wrong(format!("{check} of {node} is {found:?}")),
                }
            }
            Requirement::MemberIs { status, .. } => {
                let members = match self.wire.json(agent, "/v1/agent/members").await {
                    Ok(members) => members,
                    Err(why) => return Answer::Missing(why.to_string()),
                };
                let mut all = members.as_array().into_iter().flatten();
                let found = all
                    .find(|member| member["Name"] == node)
                    .map(|member| &member["Status"]);
                match found.and_then(serde_json::Value::as_u64) {
                    Some(number) if member_status(status).map(u64::from) == Some(number) => Answer::Right,
                    _ => Answer::Wrong(format!("the status of {node} is {found:?}")),
                }
            }
            Requirement::ReadsGoOn { service, .. } => self.read_all(agent, service).await,
            Requirement::NeverFailed { .. }
            | Requirement::Ends { .. }
            | Requirement::WritesResume { .. }
            | Requirement::WritesAnswered { .. }
            | Requirement::Refused { .. } => {
                unreachable!("these are not asked again and again")
            }
        }
    }

    /// Agents tell what they think of the others at the moment they think it: a flap between two looks is seen.
    async fn watch_failures(&self, agents: &[String], nodes: &[String], opens_at: Duration) {
        let world = &self.story.world;
        let mut seen_count = 0;
        loop {
            let is_closed = self.is_closed();
            for failure in self.story.failures(seen_count) {
                seen_count += 1;
                if failure.at >= opens_at && agents.contains(&failure.by) && nodes.contains(&failure.member) {
                    self.count();
                    let Failure { at, by, member } = failure;
                    self.story
                        .breaks(format!("{}: {by} declared {member} failed at {at:?}", self.name()));
                    return;
                }
            }
            if world.elapsed() >= opens_at {
                self.count();
            }
            if is_closed {
                return;
            }
            world.advance(ASK_INTERVAL).await;
        }
    }

    async fn wait_for_ends(&self, nodes: &[String], after: Duration, opens_at: Duration) {
        let world = &self.story.world;
        world.advance(opens_at.saturating_sub(world.elapsed())).await;
        for node in nodes {
            self.count();
            let endings = self.story.endings_of(node);
            if !endings.iter().any(|at| (after..=opens_at).contains(at)) {
                self.story
                    .breaks(format!("{}: {node} goes on {opens_at:?} after the start", self.name()));
            }
        }
    }

    /// Here silence is wrong as well.
    async fn read_all(&self, agent: &str, service: &str) -> Answer {
        match self.wire.dns_instances(agent, service).await {
            Ok(nodes) if !nodes.is_empty() => {}
            Ok(_) => return Answer::Wrong(format!("DNS has no {service}")),
            Err(why) => return Answer::Wrong(format!("DNS: {why}")),
        }
        match self
            .wire
            .json(agent, &format!("/v1/health/service/{service}?stale"))
            .await
        {
            Ok(serde_json::Value::Array(instances)) if !instances.is_empty() => {}
            Ok(other) => return Answer::Wrong(format!("/v1/health/service answered {other}")),
            Err(why) => return Answer::Wrong(why.to_string()),
        }
        // A key that nobody writes: the answer is that there is none.
        match self.wire.get(agent, "/v1/kv/absent?stale").await {
            Ok(answer) if answer.status == 404 => Answer::Right,
            Ok(answer) => Answer::Wrong(format!("/v1/kv?stale: {} {}", answer.status, answer.text())),
            Err(why) => Answer::Wrong(why.to_string()),
        }
    }

    async fn write(&self, agent: &str, opens_at: Duration) {
        let world = &self.story.world;
        let boot = world.boot(agent);
        let mut failures = Vec::new();
        loop {
            if !self.story.is_serving(agent) || world.boot(agent) != boot {
                // One that is down owes nothing.
                return;
            }
            let now = world.elapsed();
            if now >= opens_at {
                break;
            }
            // One that hangs at a leader that died is given up: its user asks again.
            let wire = self.wire.with_timeout(WRITE_TIMEOUT.min(opens_at - now));
            let path = format!("/v1/kv/writes_resume/{}/{agent}", self.position);
            match wire.http(Method::PUT, agent, &path, "x").await {
                Ok(answer) if answer.status == 200 && world.elapsed() <= opens_at => {
                    self.count();
                    return;
                }
                Ok(answer) => failures.push(format!("{} {}", answer.status, answer.text())),
                Err(why) => failures.push(why.to_string()),
            }
            world.advance(ASK_INTERVAL).await;
        }
        if !self.story.is_serving(agent) || world.boot(agent) != boot {
            return;
        }
        self.story.breaks(format!(
            "{} at {agent}: no write was acknowledged: {failures:?}",
            self.name()
        ));
    }

    /// Writes again and again; what counts is that it learns what became of it, or that nobody knows.
    async fn write_on(&self, agent: &str, patience: Duration, opens_at: Duration) {
        let world = &self.story.world;
        let wire = self.wire.with_timeout(patience);
        let path = format!("/v1/kv/writes_answered/{}/{agent}", self.position);
        world.advance(opens_at.saturating_sub(world.elapsed())).await;
        while !self.is_closed() {
            let (asked_at, interruptions) = (world.elapsed(), world.interruptions(agent));
            if self.story.is_serving(agent) && !world.is_paused(agent) {
                let answer = wire.http(Method::PUT, agent, &path, "x").await;
                let is_fair = self.story.is_serving(agent) && world.interruptions(agent) == interruptions;
                match answer {
                    Ok(_) => self.count(),
                    Err(_) if !is_fair => {}
                    Err(why) => {
                        self.count();
                        let name = self.name();
                        self.story
                            .breaks(format!("{name} at {agent}: asked at {asked_at:?}, no answer: {why}"));
                        return;
                    }
                }
            }
            world.advance(ASK_INTERVAL).await;
        }
    }

    /// Tries what must be refused. The history judges it, as it judges those of the workload.
    async fn operate(&self, agent: &str, operations: &[KvOperation], opens_at: Duration) {
        let world = &self.story.world;
        let Some(register) = &self.register else { return };
        world.advance(opens_at.saturating_sub(world.elapsed())).await;
        for key in register.keys().collect::<Vec<_>>().iter().cycle() {
            for operation in operations {
                if self.is_closed() {
                    return;
                }
                match operation {
                    KvOperation::Write => drop(register.write(agent, key).await),
                    read => drop(register.read(agent, key, *read).await),
                }
                world.advance(ASK_INTERVAL).await;
            }
        }
    }

    fn check_refused(&self, operations: &[KvOperation], window: &Window, calls: &[Call]) {
        let (Some(after), Some(until)) = (self.story.moment(&window.after), self.story.moment(&window.until)) else {
            return;
        };
        let mut rng = self.story.world.scenario_rng(&format!("require.{}", self.position));
        let at = self.story.resolve_all(&window.at, &mut rng);
        let opens_at = after + Duration::from_millis(window.within_ms);
        let inside = |call: &&Call| {
            at.contains(&call.agent)
                && operations.contains(&call.operation)
                && call.called_at >= opens_at
                && call.called_at < until
        };
        for call in calls.iter().filter(inside) {
            self.count();
            if call.outcome == Outcome::Ok && call.returned_at < until {
                self.story.breaks(format!(
                    "{} at {}: {:?} called {:?} was answered {:?}",
                    self.name(),
                    call.agent,
                    call.operation,
                    call.called_at,
                    call.returned_at
                ));
                return;
            }
        }
    }
}
