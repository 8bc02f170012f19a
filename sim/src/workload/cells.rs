//! Clients that change groups of keys by compare-and-set and by transactions, and read whole groups.
//!
//! Setup: none, the keys are absent at first. Run: each client does one thing at a time, by what it saw last. Check: every
//! group's history has a linearization (`invariant::cells`). Some transactions must fail by their last operation: what they
//! wrote before is never seen. An honest client, as `kv_register`.

use crate::client::HttpAnswer;
use crate::invariant::cells::{self, Came, Cell, Operation};
use crate::rt::SimRt;
use crate::scenario::Cells;
use crate::story::Story;
use crate::wire::{Failure, Wire};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hyper::{Method, StatusCode};
use quorate_rt::{Rng, Rt as _, Task};
use rand_core::Rng as _;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Never written: what is said to expect it is never met.
const NO_VALUE: u64 = u64::MAX;

#[derive(Default)]
struct History {
    by_group: BTreeMap<String, Vec<Operation>>,
    values_given: u64,
}

/// The workload. Clones are the same one.
#[derive(Clone)]
pub struct CellClients {
    story: Story,
    wire: Wire,
    settings: Arc<Cells>,
    prefix: Arc<str>,
    at: Arc<[String]>,
    transaction_ratio: f64,
    history: Arc<Mutex<History>>,
}

/// What a client saw of a group last: value and `ModifyIndex` of each cell that is there.
type Seen = BTreeMap<Cell, (u64, u64)>;

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).expect("a world ends before 584 years")
}

fn unit(rng: &mut Rng) -> f64 {
    f64::from(rng.next_u32()) / (f64::from(u32::MAX) + 1.0)
}

impl CellClients {
    pub fn new(story: &Story, wire: &Wire, settings: &Cells, position: usize) -> Self {
        let mut rng = story.world.scenario_rng(&format!("workload.{position}"));
        Self {
            story: story.clone(),
            wire: wire.with_timeout(Duration::from_millis(settings.timeout_ms)),
            settings: Arc::new(settings.clone()),
            prefix: format!("cells/{position}").into(),
            at: story.resolve_all(&settings.at, &mut rng).into(),
            transaction_ratio: settings.transaction_ratio.draw(&mut rng),
            history: Arc::default(),
        }
    }
    /// Starts the clients on the users' machine; they end with the story.
    pub fn start(&self, rt: &SimRt) -> Vec<Task> {
        let clients = 0..self.settings.clients;
        clients
            .map(|client| rt.spawn("workload.cells", self.clone().run(client)))
            .collect()
    }
    fn history(&self) -> MutexGuard<'_, History> {
        self.history.lock().unwrap_or_else(PoisonError::into_inner)
    }
    pub fn groups(&self) -> impl Iterator<Item = String> {
        let prefix = Arc::clone(&self.prefix);
        (0..self.settings.groups).map(move |group| format!("{prefix}/{group}"))
    }

    async fn run(self, client: u64) {
        let mut rng = self.story.world.scenario_rng(&format!("{}/{client}", self.prefix));
        let mut seen: BTreeMap<String, Seen> = BTreeMap::new();
        while !self.story.is_over() {
            let group = format!("{}/{}", self.prefix, rng.next_u64() % self.settings.groups);
            let agent = self.at[rng.next_u32() as usize % self.at.len()].clone();
            // Mostly by what is true now: what was seen long ago is refused.
            let is_read = rng.next_u32() % 10 < 7;
            if is_read && let Some(now) = self.read(&agent, &group, &mut rng).await {
                seen.insert(group.clone(), now);
            }
            let seen = seen.get(&group).cloned().unwrap_or_default();
            self.write(&agent, &group, &seen, &mut rng).await;
            let pause = self.settings.pause_ms.draw(&mut rng);
            self.story.world.advance(Duration::from_millis(pause)).await;
        }
    }

    /// Reads all cells at one moment.
    pub async fn read(&self, agent: &str, group: &str, rng: &mut Rng) -> Option<Seen> {
        let mode = ["?consistent", ""][rng.next_u32() as usize % 2];
        let called_at = nanos(self.story.world.elapsed());
        let entries: Vec<Value> = if rng.next_u32().is_multiple_of(2) {
            let path = format!("/v1/kv/{group}/?recurse{}", mode.replace('?', "&"));
            let answer = self.wire.get(agent, &path).await.ok()?;
            match answer.status {
                StatusCode::OK => serde_json::from_slice(&answer.body).ok()?,
                StatusCode::NOT_FOUND if answer.header("x-consul-index").is_some() => Vec::new(),
                _ => return None,
            }
        } else {
            let tree = json!([{"KV": {"Verb": "get-tree", "Key": format!("{group}/")}}]).to_string();
            let answer = self
                .wire
                .http(Method::PUT, agent, &format!("/v1/txn{mode}"), tree)
                .await;
            let answer = answer.ok().filter(|answer| answer.status == StatusCode::OK)?;
            let found: Value = serde_json::from_slice(&answer.body).ok()?;
            let results = found["Results"].as_array()?;
            results.iter().map(|result| result["KV"].clone()).collect()
        };
        let mut seen = Seen::new();
        for entry in &entries {
            match entry_of(entry) {
                Some((cell, value, index)) => {
                    seen.insert(cell, (value, index));
                }
                None => self
                    .story
                    .breaks(format!("{group} at {agent} has {entry}, which nobody wrote")),
            }
        }
        self.story.count("cells.read");
        let all = 0..usize::try_from(self.settings.cells).unwrap_or(usize::MAX);
        let expects = all
            .map(|cell| (cell, seen.get(&cell).map(|(value, _)| *value)))
            .collect();
        self.record(group, called_at, Came::Done, expects, Vec::new());
        Some(seen)
    }

    /// One change by what was seen: a compare-and-set, a transaction, or one that must fail.
    async fn write(&self, agent: &str, group: &str, seen: &Seen, rng: &mut Rng) {
        let value = {
            let mut history = self.history();
            history.values_given += 1;
            history.values_given
        };
        let count = self.settings.cells;
        let guarded = usize::try_from(rng.next_u64() % count).unwrap_or_default();
        let (old, index) = match seen.get(&guarded) {
            Some((old, index)) => (Some(*old), *index),
            None => (None, 0),
        };
        let key = |cell: Cell| format!("{group}/{cell}");
        let called_at = nanos(self.story.world.elapsed());
        if unit(rng) >= self.transaction_ratio {
            let path = format!("/v1/kv/{}?cas={index}", key(guarded));
            let answer = self.wire.http(Method::PUT, agent, &path, value.to_string()).await;
            let came = self.came(agent, &answer, &["cells.cas_done", "cells.cas_refused"]);
            if let Some(came) = came {
                self.record(group, called_at, came, vec![(guarded, old)], vec![(guarded, value)]);
            }
            return;
        }
        let text = STANDARD.encode(value.to_string());
        let cells = 0..usize::try_from(count).unwrap_or(usize::MAX);
        let mut operations: Vec<Value> = Vec::new();
        for cell in cells.clone() {
            operations.push(if cell == guarded {
                json!({"KV": {"Verb": "cas", "Key": key(cell), "Value": text, "Index": index}})
            } else {
                json!({"KV": {"Verb": "set", "Key": key(cell), "Value": text}})
            });
        }
        // Half of these fail by their condition, half after everything was written.
        let must_fail = rng.next_u32().is_multiple_of(4);
        if must_fail {
            operations.push(json!({"KV": {"Verb": "check-index", "Key": key(guarded), "Index": 1}}));
        }
        let body = Value::from(operations).to_string();
        let answer = self.wire.http(Method::PUT, agent, "/v1/txn", body).await;
        let marks = match must_fail {
            true => ["cells.rollback_done", "cells.rolled_back"],
            false => ["cells.transaction_done", "cells.transaction_refused"],
        };
        let Some(came) = self.came(agent, &answer, &marks) else {
            return;
        };
        if must_fail {
            if came == Came::Done {
                self.story.breaks(format!("{agent} did a transaction that must fail"));
            }
            self.record(
                group,
                called_at,
                Came::Refused,
                vec![(guarded, Some(NO_VALUE))],
                Vec::new(),
            );
            return;
        }
        let writes = cells.map(|cell| (cell, value)).collect();
        self.record(group, called_at, came, vec![(guarded, old)], writes);
    }

    /// What a change came to; `None`: it did not happen.
    fn came(&self, agent: &str, answer: &Result<HttpAnswer, Failure>, marks: &[&'static str; 2]) -> Option<Came> {
        let came = match answer {
            Ok(answer) if answer.status == StatusCode::OK && answer.text().trim() == "false" => Came::Refused,
            Ok(answer) if answer.status == StatusCode::OK => Came::Done,
            Ok(answer) if answer.status == StatusCode::CONFLICT => Came::Refused,
            Ok(answer) if answer.status.is_client_error() => {
                self.story
                    .breaks(format!("{agent} refused a change: {} {}", answer.status, answer.text()));
                return None;
            }
            Ok(answer) if answer.text().contains("No cluster leader") => return None,
            Err(Failure::NotSent(_)) => return None,
            Ok(_) | Err(Failure::Unanswered(_)) => Came::Unknown,
        };
        self.story.count(match came {
            Came::Done => marks[0],
            Came::Refused => marks[1],
            Came::Unknown => "cells.unknown",
        });
        Some(came)
    }
    fn record(
        &self,
        group: &str,
        called_at: u64,
        came: Came,
        expects: Vec<(Cell, Option<u64>)>,
        writes: Vec<(Cell, u64)>,
    ) {
        let operation = Operation {
            called_at,
            returned_at: nanos(self.story.world.elapsed()),
            came,
            expects,
            writes,
        };
        self.history()
            .by_group
            .entry(group.to_owned())
            .or_default()
            .push(operation);
    }

    /// After the run.
    pub fn check(&self) {
        let by_group = self.history().by_group.clone();
        for (group, history) in by_group {
            let judged = cells::check(&history).map_err(|err| format!("{group}: {err}"));
            self.story.holds("linearizable", judged);
        }
    }
}

/// Cell, value and `ModifyIndex` of an entry.
fn entry_of(entry: &Value) -> Option<(Cell, u64, u64)> {
    let cell = entry["Key"].as_str()?.rsplit('/').next()?.parse().ok()?;
    let value = STANDARD.decode(entry["Value"].as_str()?).ok()?;
    let value = std::str::from_utf8(&value).ok()?.parse().ok()?;
    Some((cell, value, entry["ModifyIndex"].as_u64()?))
}
