//! The configuration file on each agent's machine, written before its first boot and again when a fault changes it.
//!
//! In: what the scenario says of the cluster, and the addresses the machines have now. Out: a JSON file on their disks.
//! Not here: what starts with it (`runner`).

use crate::scenario::{CheckKind, ServiceCheck};
use crate::story::Story;
use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

pub const CONFIG_PATH: &str = "/etc/quorate/agent.json";
const DATA_DIR: &str = "/var/quorate";

/// The part of a child process's command line that its answer is found by.
pub fn script_of(service: &str) -> String {
    format!("/usr/local/bin/check-{service}")
}

/// Writes the files of one run. Clones write the same.
#[derive(Clone)]
pub struct AgentFiles {
    story: Story,
    raft_multiplier: u64,
    /// By node: keys that its file has for good since a fault put them there.
    lasting: Arc<Mutex<BTreeMap<String, toml::Table>>>,
}

impl AgentFiles {
    pub fn new(story: &Story, raft_multiplier: u64) -> Self {
        Self {
            story: story.clone(),
            raft_multiplier,
            lasting: Arc::default(),
        }
    }

    /// From now on a node's file has these keys.
    pub fn keep(&self, node: &str, changes: &toml::Table) {
        let mut lasting = self.lasting.lock().unwrap_or_else(PoisonError::into_inner);
        lasting.entry(node.to_owned()).or_default().extend(changes.clone());
    }
    /// Writes a machine's file, with the addresses of this moment. `changes` take the place of the keys they name.
    pub fn write(&self, node: &str, changes: &toml::Table) -> Result<()> {
        let config = self.config_of(node, changes)?;
        let world = &self.story.world;
        world.write_file(node, Path::new(CONFIG_PATH), config.to_string().as_bytes());
        world.make_dir(node, Path::new(DATA_DIR));
        Ok(())
    }

    fn config_of(&self, name: &str, changes: &toml::Table) -> Result<Value> {
        let story = &self.story;
        let scenario = &story.scenario;
        let is_server = story.servers.iter().any(|server| server == name);
        let addresses: Vec<String> = story
            .servers
            .iter()
            .map(|server| story.world.ip(server).to_string())
            .collect();
        let mut config = json!({
            "node_name": name,
            "server": is_server,
            "data_dir": DATA_DIR,
            "bind_addr": story.world.ip(name).to_string(),
            "client_addr": "0.0.0.0",
            "retry_join": addresses,
            // Machines that start together miss each other at first; the default of 30 s would only make runs longer.
            "retry_interval": "1s",
            "performance": { "raft_multiplier": self.raft_multiplier },
            "enable_local_script_checks": true,
        });
        let services: Vec<Value> = scenario
            .services
            .iter()
            .filter(|service| service.on.iter().any(|node| node == name))
            .map(|service| {
                let mut definition = json!({ "name": service.name, "port": service.port, "tags": service.tags });
                if let Some(check) = &service.check {
                    definition["check"] = check_of(check, &service.name, service.port);
                }
                definition
            })
            .collect();
        let object = config.as_object_mut().expect("written as an object above");
        if !services.is_empty() {
            object.insert("services".to_owned(), Value::Array(services));
        }
        if is_server {
            object.insert("bootstrap_expect".to_owned(), json!(story.servers.len()));
        }
        let lasting = self.lasting.lock().unwrap_or_else(PoisonError::into_inner);
        let lasting = lasting.get(name).cloned().unwrap_or_default();
        for (key, value) in scenario.cluster.config.iter().chain(&lasting).chain(changes) {
            let value = serde_json::to_value(value).with_context(|| format!("configuration key {key}"))?;
            object.insert(key.clone(), value);
        }
        Ok(config)
    }
}

fn check_of(check: &ServiceCheck, service: &str, port: u16) -> Value {
    let mut definition = json!({
        "id": format!("service:{service}"),
        "interval": format!("{}ms", check.interval_ms),
        "timeout": format!("{}ms", check.timeout_ms.unwrap_or(check.interval_ms.min(5_000))),
    });
    match check.kind {
        CheckKind::Script => definition["args"] = json!([script_of(service)]),
        CheckKind::Tcp => definition["tcp"] = json!(format!("127.0.0.1:{port}")),
    }
    definition
}
