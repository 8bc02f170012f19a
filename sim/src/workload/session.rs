//! Sessions and locks as a client's requests: what became of each, told apart as an honest client must.

use crate::story::Story;
use crate::wire::{Failure, Wire};
use hyper::{Method, StatusCode};
use serde_json::{Value, json};
use std::time::Duration;

/// What a session is opened with.
#[derive(Clone, Copy, Debug)]
pub struct SessionSpec {
    /// `None`: it lasts as long as its node does.
    pub ttl: Option<Duration>,
    pub lock_delay: Duration,
    /// It ends when its node fails.
    pub is_bound_to_node: bool,
}

/// What became of an attempt to get a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attempt {
    Acquired {
        index: u64,
        lock_index: u64,
    },
    Refused,
    /// It did not happen.
    Failed,
    /// It may have happened, or may yet.
    Unknown,
}

/// Sends the requests. Clones are the same.
#[derive(Clone)]
pub struct Sessions {
    pub story: Story,
    pub wire: Wire,
}

impl Sessions {
    /// The id of a new session at the agent's node.
    pub async fn open(&self, agent: &str, spec: &SessionSpec) -> Option<String> {
        let millis = |duration: Duration| format!("{}ms", duration.as_millis());
        let mut body = json!({"Name": "rehearsal", "LockDelay": millis(spec.lock_delay)});
        if let Some(ttl) = spec.ttl {
            body["TTL"] = millis(ttl).into();
        }
        if !spec.is_bound_to_node {
            body["NodeChecks"] = json!([]);
        }
        let answer = self.put(agent, "/v1/session/create", &body).await?;
        let id = answer["ID"].as_str();
        id.map(str::to_owned)
    }
    /// Whether the session was renewed for sure.
    pub async fn renew(&self, agent: &str, session: &str) -> bool {
        let renewed = self
            .put(agent, &format!("/v1/session/renew/{session}"), &Value::Null)
            .await;
        renewed.is_some()
    }
    pub async fn destroy(&self, agent: &str, session: &str) -> bool {
        let path = format!("/v1/session/destroy/{session}");
        self.put(agent, &path, &Value::Null).await.is_some()
    }
    /// `Some(true)`: released; `Some(false)`: it was not held; `None`: nobody knows.
    pub async fn release(&self, agent: &str, key: &str, session: &str) -> Option<bool> {
        let path = format!("/v1/kv/{key}?release={session}");
        self.put(agent, &path, &Value::Null).await?.as_bool()
    }
    /// Takes the lock and reads its indexes in one transaction: the entry of the log that gave it.
    pub async fn acquire(&self, agent: &str, key: &str, session: &str) -> Attempt {
        let lock = json!([
            {"KV": {"Verb": "lock", "Key": key, "Value": null, "Session": session}},
            {"KV": {"Verb": "get", "Key": key}},
        ]);
        let answer = self.wire.http(Method::PUT, agent, "/v1/txn", lock.to_string()).await;
        let answer = match answer {
            Ok(answer) => answer,
            Err(Failure::NotSent(_)) => return Attempt::Failed,
            Err(Failure::Unanswered(_)) => return Attempt::Unknown,
        };
        match answer.status {
            StatusCode::OK => {
                let results: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
                let entry = &results["Results"][1]["KV"];
                match (entry["ModifyIndex"].as_u64(), entry["LockIndex"].as_u64()) {
                    (Some(index), Some(lock_index)) => Attempt::Acquired { index, lock_index },
                    _ => {
                        self.story
                            .breaks(format!("a lock at {agent} answered {}", answer.text()));
                        Attempt::Unknown
                    }
                }
            }
            StatusCode::CONFLICT => Attempt::Refused,
            _ if answer.text().contains("No cluster leader") => Attempt::Failed,
            status if status.is_client_error() => {
                self.story
                    .breaks(format!("a lock at {agent}: {status} {}", answer.text()));
                Attempt::Failed
            }
            _ => Attempt::Unknown,
        }
    }
    /// The JSON of a 200.
    async fn put(&self, agent: &str, path: &str, body: &Value) -> Option<Value> {
        let body = if body.is_null() {
            String::new()
        } else {
            body.to_string()
        };
        let answer = self.wire.http(Method::PUT, agent, path, body).await.ok()?;
        match answer.status {
            StatusCode::OK => serde_json::from_slice(&answer.body).ok(),
            // A session that is renewed and is gone.
            StatusCode::NOT_FOUND => None,
            status if status.is_client_error() => {
                self.story
                    .breaks(format!("{path} at {agent}: {status} {}", answer.text()));
                None
            }
            _ => None,
        }
    }
}
