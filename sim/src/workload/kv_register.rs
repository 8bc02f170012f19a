//! Clients that write unique values to a few keys and read them back, at any agent and in every mode.
//!
//! Setup: none, the keys are absent at first. Run: each client does one thing at a time. Check: every key's history of writes,
//! `consistent` and `default` reads has a linearization; a `stale` read returned something that somebody had begun to write.
//! An honest client: what was not answered may have happened (`Outcome::Unknown`); only "No cluster leader" and a
//! connection that was refused promise that nothing did.

use crate::invariant::register::{self, Action, Operation};
use crate::scenario::{KvOperation, KvRegister};
use crate::story::Story;
use crate::wire::{Failure, Wire};
use hyper::{Method, StatusCode};
use quorate_rt::{Rng, Rt as _, Task};
use rand_core::Rng as _;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Ok,
    Failed,
    Unknown,
}

/// One call, as its client saw it.
#[derive(Clone, Debug)]
pub struct Call {
    pub agent: String,
    pub operation: KvOperation,
    pub called_at: Duration,
    pub returned_at: Duration,
    pub outcome: Outcome,
}

#[derive(Default)]
struct History {
    by_key: BTreeMap<String, Vec<Operation>>,
    calls: Vec<Call>,
    values_given: u64,
    /// Values whose write was called, by key.
    called: BTreeMap<String, BTreeSet<u64>>,
}

/// The workload. Clones are the same one.
#[derive(Clone)]
pub struct KvClients {
    story: Story,
    wire: Wire,
    settings: Arc<KvRegister>,
    prefix: Arc<str>,
    at: Arc<[String]>,
    write_ratio: f64,
    history: Arc<Mutex<History>>,
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).expect("a world ends before 584 years")
}

fn unit(rng: &mut Rng) -> f64 {
    f64::from(rng.next_u32()) / (f64::from(u32::MAX) + 1.0)
}

impl KvClients {
    pub fn new(story: &Story, wire: &Wire, settings: &KvRegister, position: usize) -> Self {
        let mut rng = story.world.scenario_rng(&format!("workload.{position}"));
        Self {
            story: story.clone(),
            wire: wire.with_timeout(Duration::from_millis(settings.timeout_ms)),
            settings: Arc::new(settings.clone()),
            prefix: format!("kv_register/{position}").into(),
            at: story.resolve_all(&settings.at, &mut rng).into(),
            write_ratio: settings.write_ratio.draw(&mut rng),
            history: Arc::default(),
        }
    }
    fn history(&self) -> MutexGuard<'_, History> {
        self.history.lock().unwrap_or_else(PoisonError::into_inner)
    }
    /// Starts the clients on the users' machine; they end with the story.
    pub fn start(&self, rt: &crate::rt::SimRt) -> Vec<Task> {
        let clients = 0..self.settings.clients;
        clients
            .map(|client| rt.spawn("workload.kv_register", self.clone().run(client)))
            .collect()
    }
    pub fn keys(&self) -> impl Iterator<Item = String> {
        let prefix = Arc::clone(&self.prefix);
        (0..self.settings.keys).map(move |key| format!("{prefix}/{key}"))
    }

    async fn run(self, client: u64) {
        let mut rng = self.story.world.scenario_rng(&format!("{}/{client}", self.prefix));
        while !self.story.is_over() {
            let key = format!("{}/{}", self.prefix, rng.next_u64() % self.settings.keys);
            let agent = &self.at[rng.next_u32() as usize % self.at.len()];
            if unit(&mut rng) < self.write_ratio {
                self.write(agent, &key).await;
            } else {
                let mode = unit(&mut rng);
                let reads = &self.settings.reads;
                let operation = match mode {
                    mode if mode < reads.consistent_ratio => KvOperation::ConsistentRead,
                    mode if mode < reads.consistent_ratio + reads.default_ratio => KvOperation::DefaultRead,
                    _ => KvOperation::StaleRead,
                };
                self.read(agent, &key, operation).await;
            }
            let pause = self.settings.pause_ms.draw(&mut rng);
            self.story.world.advance(Duration::from_millis(pause)).await;
        }
    }

    fn note(&self, agent: &str, operation: KvOperation, called_at: Duration, outcome: Outcome) {
        let returned_at = self.story.world.elapsed();
        self.history().calls.push(Call {
            agent: agent.to_owned(),
            operation,
            called_at,
            returned_at,
            outcome,
        });
    }

    pub async fn write(&self, agent: &str, key: &str) -> Outcome {
        let called_at = self.story.world.elapsed();
        let value = {
            let mut history = self.history();
            history.values_given += 1;
            let value = history.values_given;
            history.called.entry(key.to_owned()).or_default().insert(value);
            value
        };
        let answer = self
            .wire
            .http(Method::PUT, agent, &format!("/v1/kv/{key}"), value.to_string())
            .await;
        let outcome = match &answer {
            Ok(answer) if answer.status == StatusCode::OK && answer.text().trim() == "true" => Outcome::Ok,
            Ok(answer) if answer.status.is_client_error() => {
                self.story
                    .breaks(format!("{agent} refused a write: {} {}", answer.status, answer.text()));
                Outcome::Failed
            }
            Ok(answer) if answer.text().contains("No cluster leader") => Outcome::Failed,
            Err(Failure::NotSent(_)) => Outcome::Failed,
            Ok(_) | Err(Failure::Unanswered(_)) => Outcome::Unknown,
        };
        self.note(agent, KvOperation::Write, called_at, outcome);
        let mark = match outcome {
            Outcome::Ok => "kv.write_ok",
            Outcome::Failed => "kv.write_failed",
            Outcome::Unknown => "kv.write_unknown",
        };
        self.story.count(mark);
        if outcome != Outcome::Failed {
            let returned_at = (outcome == Outcome::Ok).then(|| nanos(self.story.world.elapsed()));
            self.record(key, called_at, returned_at, Action::Write(value));
        }
        outcome
    }
    fn record(&self, key: &str, called_at: Duration, returned_at: Option<u64>, action: Action) {
        self.history()
            .by_key
            .entry(key.to_owned())
            .or_default()
            .push(Operation {
                called_at: nanos(called_at),
                returned_at,
                action,
            });
    }

    /// The key's value, when there was an answer.
    pub async fn read(&self, agent: &str, key: &str, operation: KvOperation) -> Option<Option<u64>> {
        let mode = match operation {
            KvOperation::ConsistentRead => "&consistent",
            KvOperation::DefaultRead => "",
            KvOperation::StaleRead => "&stale",
            KvOperation::Write => unreachable!("a write is no read"),
        };
        let path = format!("/v1/kv/{key}?raw{mode}");
        let called_at = self.story.world.elapsed();
        let asked = self
            .story
            .state()
            .indexes
            .ask(agent, self.story.world.boot(agent), &path);
        let answer = self.wire.get(agent, &path).await;
        let value = match &answer {
            Ok(answer) if answer.status == StatusCode::OK => match answer.text().parse() {
                Ok(value) => Some(Some(value)),
                Err(_) => {
                    self.story.breaks(format!(
                        "{path} at {agent} answered {:?}, which nobody wrote",
                        answer.text()
                    ));
                    None
                }
            },
            Ok(answer) if answer.status == StatusCode::NOT_FOUND && answer.header("x-consul-index").is_some() => {
                Some(None)
            }
            Ok(answer) if answer.status.is_client_error() => {
                self.story
                    .breaks(format!("{path} at {agent}: {} {}", answer.status, answer.text()));
                None
            }
            Ok(_) | Err(_) => None,
        };
        let outcome = if value.is_some() { Outcome::Ok } else { Outcome::Unknown };
        self.note(agent, operation, called_at, outcome);
        let mark = match (value, operation) {
            (None, _) => "kv.read_refused",
            (_, KvOperation::ConsistentRead) => "kv.consistent_read_ok",
            (_, KvOperation::DefaultRead) => "kv.default_read_ok",
            (_, KvOperation::StaleRead | KvOperation::Write) => "kv.stale_read_ok",
        };
        self.story.count(mark);
        let value = value?;
        if operation == KvOperation::StaleRead {
            // Only then it is surely this server that answered.
            let index = answer
                .ok()
                .and_then(|answer| answer.header("x-consul-index")?.parse().ok());
            if self.story.servers.iter().any(|server| server == agent) {
                let boot = self.story.world.boot(agent);
                let judged = match index {
                    Some(index) => self.story.state().indexes.answer(asked, boot, index),
                    None => Err(format!("{path} at {agent} came without an index")),
                };
                self.story.holds("index_never_back", judged);
            }
            let is_written = value.is_none_or(|value| {
                self.history()
                    .called
                    .get(key)
                    .is_some_and(|called| called.contains(&value))
            });
            if !is_written {
                self.story.breaks(format!(
                    "{path} at {agent} answered {value:?}, which nobody wrote to it"
                ));
            }
        } else {
            self.record(
                key,
                called_at,
                Some(nanos(self.story.world.elapsed())),
                Action::Read(value),
            );
        }
        Some(value)
    }

    pub fn calls(&self) -> Vec<Call> {
        self.history().calls.clone()
    }
    /// After the run.
    pub fn check(&self) {
        let by_key = self.history().by_key.clone();
        for (key, history) in by_key {
            let judged = register::check(&history).map_err(|err| format!("{key}: {err}"));
            self.story.holds("linearizable", judged);
        }
    }
}
