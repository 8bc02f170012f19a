//! The wire between users and agents: requests as real clients send them, and what a sabotage does to them.
//!
//! A sabotage breaks from outside what a scenario guards, to show that the scenario would notice: see `scenarios/README.md`.

use crate::client::{Client, HttpAnswer};
use crate::rt::SimRt;
use crate::story::Story;
use anyhow::{Result, bail};
use hickory_proto::op::ResponseCode;
use hickory_proto::rr::{RData, RecordType};
use hyper::{HeaderMap, Method, StatusCode};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

pub const USERS: &str = "users";
const HTTP_PORT: u16 = 8500;
const DNS_PORT: u16 = 8600;

/// What is broken on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sabotage {
    /// All disks acknowledge syncs and make nothing durable, once the cluster has formed.
    LyingSyncs,
    /// `?consistent` becomes `?stale` on the way to the agent.
    ConsistentAsStale,
    /// `?stale` becomes `?consistent` on the way to the agent.
    StaleAsConsistent,
    /// A resolver on the way repeats its first answer with instances for ever.
    DnsRepeatsOldAnswers,
    /// Nobody whom a scenario kills dies.
    KillsDoNothing,
    /// From the moment it is cut off, a leader's clock runs at a tenth of its speed.
    LeaderClockSlows,
    /// A disk whose syncs a scenario lets fail says that they succeed, and keeps nothing.
    HiddenSyncErrors,
    /// Whom a scenario pauses goes on only when the faults end.
    PausesLast,
    /// Cuts stay, even when the faults end.
    CutsNeverHeal,
    /// Who is cut off from one is cut off from all.
    OneWayCutsIsolate,
    /// Who is told to restart finds an empty disk.
    RestartsLoseDisks,
    /// Before a node takes another's name, that one dies.
    NameHolderGone,
    /// What is wrong with one disk is wrong with all.
    DisksFailTogether,
    /// Of several changes of the agents' files that are to last, only the last is made.
    RolloutsSkipSteps,
    /// A wall clock that jumps takes the machine's other clock back with it.
    WallJumpsMoveTimers,
    /// Removals of gossip keys are acknowledged on the way and reach nobody.
    KeyRemovalsLost,
    /// A cache on the way repeats the list of nodes that the cluster was formed with for ever.
    NodesRepeatOldAnswers,
    /// In transactions, `lock` becomes `set` on the way to the agent: everybody gets the lock.
    LocksAsSets,
    /// Sessions are opened without a lock-delay.
    NoLockDelay,
    /// Each operation of a transaction becomes a transaction of its own.
    TransactionsInParts,
    /// `?cas=` is taken off on the way to the agent.
    CasAsPut,
    /// Sessions are opened without the checks of their node.
    SessionsWithoutChecks,
}

impl FromStr for Sabotage {
    type Err = anyhow::Error;
    fn from_str(name: &str) -> Result<Self> {
        Ok(match name {
            "lying-syncs" => Self::LyingSyncs,
            "consistent-as-stale" => Self::ConsistentAsStale,
            "stale-as-consistent" => Self::StaleAsConsistent,
            "dns-repeats-old-answers" => Self::DnsRepeatsOldAnswers,
            "kills-do-nothing" => Self::KillsDoNothing,
            "leader-clock-slows" => Self::LeaderClockSlows,
            "hidden-sync-errors" => Self::HiddenSyncErrors,
            "pauses-last" => Self::PausesLast,
            "cuts-never-heal" => Self::CutsNeverHeal,
            "one-way-cuts-isolate" => Self::OneWayCutsIsolate,
            "restarts-lose-disks" => Self::RestartsLoseDisks,
            "name-holder-gone" => Self::NameHolderGone,
            "nodes-repeat-old-answers" => Self::NodesRepeatOldAnswers,
            "disks-fail-together" => Self::DisksFailTogether,
            "rollouts-skip-steps" => Self::RolloutsSkipSteps,
            "wall-jumps-move-timers" => Self::WallJumpsMoveTimers,
            "key-removals-lost" => Self::KeyRemovalsLost,
            "locks-as-sets" => Self::LocksAsSets,
            "no-lock-delay" => Self::NoLockDelay,
            "transactions-in-parts" => Self::TransactionsInParts,
            "cas-as-put" => Self::CasAsPut,
            "sessions-without-checks" => Self::SessionsWithoutChecks,
            _ => bail!(
                "--sabotage {name}: not one of lying-syncs, consistent-as-stale, stale-as-consistent, \
                 dns-repeats-old-answers, kills-do-nothing, leader-clock-slows, hidden-sync-errors, pauses-last, \
                 cuts-never-heal, one-way-cuts-isolate, restarts-lose-disks, name-holder-gone, nodes-repeat-old-answers, \
                 disks-fail-together, locks-as-sets, no-lock-delay, transactions-in-parts, cas-as-put, \
                 sessions-without-checks, rollouts-skip-steps, wall-jumps-move-timers, key-removals-lost"
            ),
        })
    }
}

/// A request's body, as a sabotage lets it arrive.
fn sabotaged_body(sabotage: Sabotage, path: &str, body: bytes::Bytes) -> bytes::Bytes {
    match sabotage {
        Sabotage::LocksAsSets if path.starts_with("/v1/txn") => {
            let text = String::from_utf8_lossy(&body).replace("\"Verb\":\"lock\"", "\"Verb\":\"set\"");
            text.into_bytes().into()
        }
        Sabotage::NoLockDelay | Sabotage::SessionsWithoutChecks if path.starts_with("/v1/session/create") => {
            let mut session: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
            match sabotage {
                Sabotage::NoLockDelay => session["LockDelay"] = "0s".into(),
                _ => session["NodeChecks"] = serde_json::json!([]),
            }
            session.to_string().into_bytes().into()
        }
        _ => body,
    }
}

/// Why there is no answer.
#[derive(Debug)]
pub enum Failure {
    /// The request never left: there was no connection.
    NotSent(String),
    Unanswered(String),
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NotSent(why) | Self::Unanswered(why) => f.write_str(why),
        }
    }
}

/// By agent and question: the nodes of the first answer that had any.
type OldAnswers = BTreeMap<(String, String), BTreeSet<String>>;

/// Users' way to the agents. Clones are the same way.
#[derive(Clone)]
pub struct Wire {
    story: Story,
    client: Client,
    sabotage: Option<Sabotage>,
    old_answers: Arc<Mutex<OldAnswers>>,
    old_nodes: Arc<Mutex<serde_json::Value>>,
}

impl Wire {
    pub fn new(story: &Story, rt: SimRt, sabotage: Option<Sabotage>) -> Self {
        Self {
            story: story.clone(),
            client: Client::new(rt, Duration::from_secs(3)),
            sabotage,
            old_answers: Arc::default(),
            old_nodes: Arc::default(),
        }
    }
    pub fn with_timeout(&self, timeout: Duration) -> Self {
        Self {
            client: self.client.with_timeout(timeout),
            ..self.clone()
        }
    }
    pub async fn http(
        &self,
        method: Method,
        agent: &str,
        path: &str,
        body: impl Into<bytes::Bytes>,
    ) -> Result<HttpAnswer, Failure> {
        let mut body = body.into();
        let path = match self.sabotage {
            Some(Sabotage::ConsistentAsStale) => path.replace("consistent", "stale"),
            Some(Sabotage::StaleAsConsistent) => path.replace("stale", "consistent"),
            Some(Sabotage::CasAsPut) => path.split("?cas=").next().unwrap_or_default().to_owned(),
            _ => path.to_owned(),
        };
        if self.sabotage == Some(Sabotage::KeyRemovalsLost)
            && method == Method::DELETE
            && path == "/v1/operator/keyring"
        {
            return Ok(HttpAnswer {
                status: StatusCode::OK,
                headers: HeaderMap::new(),
                body: bytes::Bytes::new(),
            });
        }
        if let Some(sabotage) = self.sabotage {
            if sabotage == Sabotage::TransactionsInParts && path.starts_with("/v1/txn") {
                return self.in_parts(method, agent, &path, &body).await;
            }
            body = sabotaged_body(sabotage, &path, body);
        }
        self.send(method, agent, &path, body).await
    }
    /// The answer to the last part, or to the first that was refused.
    async fn in_parts(&self, method: Method, agent: &str, path: &str, body: &[u8]) -> Result<HttpAnswer, Failure> {
        let parts: Vec<serde_json::Value> = serde_json::from_slice(body).unwrap_or_default();
        let mut last = Err(Failure::NotSent("a transaction of nothing".to_owned()));
        for part in parts {
            let part = serde_json::json!([part]).to_string();
            last = self.send(method.clone(), agent, path, part.into()).await;
            if !last.as_ref().is_ok_and(|answer| answer.status == 200) {
                break;
            }
        }
        last
    }
    async fn send(&self, method: Method, agent: &str, path: &str, body: bytes::Bytes) -> Result<HttpAnswer, Failure> {
        let url = format!("http://{}:{HTTP_PORT}{path}", self.story.world.ip(agent));
        self.client.http(method, &url, body).await.map_err(|err| {
            let why = format!("{err:#}");
            // The client's own word for where it failed.
            match err.downcast_ref::<&'static str>() {
                Some(&"connect") => Failure::NotSent(why),
                _ => Failure::Unanswered(why),
            }
        })
    }
    pub async fn get(&self, agent: &str, path: &str) -> Result<HttpAnswer, Failure> {
        self.http(Method::GET, agent, path, "").await
    }
    /// JSON of a GET; an error for any other status than 200.
    pub async fn json(&self, agent: &str, path: &str) -> Result<serde_json::Value, Failure> {
        let answer = self.get(agent, path).await?;
        match serde_json::from_slice::<serde_json::Value>(&answer.body) {
            Ok(value) if answer.status == 200 => {
                if self.sabotage == Some(Sabotage::NodesRepeatOldAnswers) && path.starts_with("/v1/catalog/nodes") {
                    // What the cluster was formed with, at whatever agent it is asked for.
                    let mut old = self.old_nodes.lock().unwrap_or_else(PoisonError::into_inner);
                    if self.story.moment("start").is_none() {
                        *old = value.clone();
                        return Ok(value);
                    }
                    return Ok(old.clone());
                }
                Ok(value)
            }
            _ => Err(Failure::Unanswered(format!(
                "{path} at {agent}: {} {}",
                answer.status,
                answer.text()
            ))),
        }
    }
    /// The nodes that have an instance of the service, by SRV records.
    pub async fn dns_instances(&self, agent: &str, service: &str) -> Result<BTreeSet<String>, Failure> {
        let server = SocketAddr::new(self.story.world.ip(agent), DNS_PORT);
        let qname = format!("{service}.service.consul.");
        let answer = self.client.dns(server, &qname, RecordType::SRV).await;
        let answer = answer.map_err(|err| Failure::Unanswered(format!("{err:#}")))?;
        let code = answer.metadata.response_code;
        if !matches!(code, ResponseCode::NoError | ResponseCode::NXDomain) {
            return Err(Failure::Unanswered(format!("{qname} at {agent}: {code}")));
        }
        let mut nodes = BTreeSet::new();
        for record in &answer.answers {
            if let RData::SRV(srv) = &record.data {
                let target = srv.target.to_utf8();
                nodes.insert(target.split('.').next().unwrap_or_default().to_owned());
            }
        }
        if self.sabotage == Some(Sabotage::DnsRepeatsOldAnswers) {
            let mut old = self.old_answers.lock().unwrap_or_else(PoisonError::into_inner);
            let kept = old.entry((agent.to_owned(), qname)).or_insert_with(|| nodes.clone());
            if kept.is_empty() {
                *kept = nodes;
            }
            return Ok(kept.clone());
        }
        Ok(nodes)
    }
}
