//! Gossip encryption: who is let in, keys changed while agents work, and what the keyring file keeps.

use crate::support::*;
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

fn new_key() -> String {
    let made = cli("", &["keygen"]);
    assert_eq!(made.code, 0, "{made:?}");
    made.stdout.trim_end().to_owned()
}

fn keyring_file(agent: &Agent) -> PathBuf {
    agent.folder.0.join("data/serf/local.keyring")
}
fn kept_keys(agent: &Agent) -> Vec<String> {
    let content = fs::read(keyring_file(agent)).expect("the file is there");
    serde_json::from_slice(&content).expect("a list of keys")
}

/// A server that is not started yet.
fn server(name: &str, join: &[String], encrypt: Option<&str>) -> Agent {
    let mut agent = Agent::new(name, &["-bind=127.0.0.1"]);
    let mut config = json!({
        "data_dir": agent.folder.0.join("data"),
        "server": true,
        "bootstrap_expect": 3,
        "retry_join": join,
        "retry_interval": "1s",
        "performance": {"raft_multiplier": 1},
    });
    if let Some(key) = encrypt {
        config["encrypt"] = json!(key);
    }
    let path = agent.folder.write("config/agent.json", &config.to_string());
    agent.arguments.push(format!("-config-file={}", path.display()));
    agent
}

fn encrypted_servers(key: &str) -> Vec<Agent> {
    let mut servers: Vec<Agent> = Vec::new();
    for name in ["s1", "s2", "s3"] {
        let address = |server: &Agent| format!("127.0.0.1:{}", server.ports.serf_lan);
        let join: Vec<String> = servers.iter().map(address).collect();
        let mut agent = server(name, &join, Some(key));
        agent.start();
        servers.push(agent);
    }
    for server in &mut servers {
        server.wait_for_leader();
    }
    servers
}

/// `keyring -list` of servers that all have these keys.
fn listed(keys: &[&str]) -> String {
    let mut keys = keys.to_vec();
    keys.sort_unstable();
    let keys: String = keys.iter().map(|key| format!("  {key} [3/3]\n")).collect();
    format!("==> Gathering installed encryption keys...\n\nWAN:\n{keys}\ndc1 (LAN):\n{keys}")
}

fn alive_count(agent: &Agent) -> usize {
    let members = agent.get("/v1/agent/members").expect("the agent answers");
    let members = members.as_array().expect("a list");
    members.iter().filter(|member| member["Status"] == 1).count()
}

#[test]
fn an_encrypted_pool_lets_nobody_in_without_its_key() {
    let (key, other) = (new_key(), new_key());
    let servers = encrypted_servers(&key);
    let address = format!("127.0.0.1:{}", servers[0].ports.serf_lan);
    let refusals = [
        (None, "remote state is encrypted and encryption is not configured"),
        (Some(other.as_str()), "no installed keys could decrypt the message"),
    ];
    for (encrypt, reason) in refusals {
        let mut stranger = server("x1", &[], encrypt);
        stranger.start();
        wait_until("the stranger answers", || stranger.get("/v1/agent/self").is_some());
        let join = stranger.cli(&["join", &address]);
        assert_eq!(join.code, 1, "{join:?}");
        assert!(join.stderr.contains(reason), "{join:?}");
        assert_eq!(alive_count(&stranger), 1);
    }
    for server in &servers {
        assert_eq!(alive_count(server), 3, "{}", server.name);
        let members = server.cli(&["members"]);
        assert!(!members.stdout.contains("x1"), "{members:?}");
        let info = server.cli(&["info"]);
        assert!(info.stdout.contains("\tencrypted = true\n"), "{info:?}");
        assert!(server.output().contains("Encrypt: Gossip: true,"));
    }
    let warned = servers[0].output();
    assert!(
        warned.contains("plaintext") && warned.contains("unknown_key"),
        "{warned}"
    );
}

#[test]
fn keys_are_rotated_under_load_and_the_new_one_survives_a_restart() {
    let (old, new) = (new_key(), new_key());
    let mut servers = encrypted_servers(&old);
    wait_until("all know all", || servers.iter().all(|server| alive_count(server) == 3));
    let leader = servers[0].wait_for_leader();

    // Writes go on all the while.
    let is_over = Arc::new(AtomicBool::new(false));
    let (port, stop) = (servers[0].ports.http, Arc::clone(&is_over));
    let load = std::thread::spawn(move || {
        let mut acknowledged = 0_u64;
        while !stop.load(Ordering::SeqCst) {
            let put = cli(
                &format!("127.0.0.1:{port}"),
                &["kv", "put", "load", &acknowledged.to_string()],
            );
            assert_eq!(put.code, 0, "{put:?}");
            acknowledged += 1;
        }
        acknowledged
    });

    servers[0].cli(&["keyring", "-list"]).check(0, &listed(&[&old]), "");
    let used = servers[1].cli(&["keyring", "-use", &new]);
    let reason = "Requested key is not in the keyring";
    let text = format!(
        "error: Unexpected response code: 500 (8 errors occurred:\n\t* WAN error: 3/3 nodes reported failure\n\
         \t* s1.dc1: {reason}\n\t* s2.dc1: {reason}\n\t* s3.dc1: {reason}\n\
         \t* dc1 (LAN) error: 3/3 nodes reported failure\n\t* s1: {reason}\n\t* s2: {reason}\n\t* s3: {reason}\n\n)\n"
    );
    used.check(1, "==> Changing primary gossip encryption key...\n", &text);

    servers[1]
        .cli(&["keyring", "-install", &new])
        .check(0, "==> Installing new gossip encryption key...\n", "");
    servers[2]
        .cli(&["keyring", "-list"])
        .check(0, &listed(&[&old, &new]), "");
    servers[2]
        .cli(&["keyring", "-use", &new])
        .check(0, "==> Changing primary gossip encryption key...\n", "");
    let removed = servers[0].cli(&["keyring", "-remove", &new]);
    assert_eq!(removed.code, 1, "{removed:?}");
    assert!(
        removed.stderr.contains("s1: Removing the primary key is not allowed\n"),
        "{removed:?}"
    );
    servers[0]
        .cli(&["keyring", "-remove", &old])
        .check(0, "==> Removing gossip encryption key...\n", "");
    for server in &servers {
        server.cli(&["keyring", "-list"]).check(0, &listed(&[&new]), "");
        assert_eq!(kept_keys(server), [new.as_str()]);
        let mode = fs::metadata(keyring_file(server))
            .expect("the file is there")
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600, "{mode:o}");
    }

    // It is configured with the old key; the file counts. Not the leader: with it a write would be lost on its way, and nobody
    // could say whether it happened.
    let leads = |server: &Agent| leader.ends_with(&format!(":{}", server.ports.server));
    let (restarted, other) = if leads(&servers[2]) { (1, 2) } else { (2, 1) };
    servers[restarted].kill();
    servers[restarted].start();
    servers[restarted].wait_for_leader();
    wait_until("the restarted server is back", || {
        servers.iter().all(|server| alive_count(server) == 3)
    });
    assert!(
        servers[restarted]
            .output()
            .contains("keyring doesn't include key provided with -encrypt, using keyring")
    );
    servers[other].cli(&["keyring", "-list"]).check(0, &listed(&[&new]), "");

    is_over.store(true, Ordering::SeqCst);
    let acknowledged = load.join().expect("every write was acknowledged");
    assert!(acknowledged > 0);
    assert_eq!(servers[0].wait_for_leader(), leader, "no election was due");
}

#[test]
fn the_keyring_answers_over_http_as_consuls() {
    let key = new_key();
    let agent = Agent::dev("n1", &["-encrypt", &key]);
    let pool = |wan: bool| json!({"WAN": wan, "Datacenter": "dc1", "Segment": "", "Keys": {&key: 1}, "PrimaryKeys": {&key: 1}, "NumNodes": 1});
    let list = || agent.get("/v1/operator/keyring").expect("the agent answers");
    assert_eq!(list(), json!([pool(true), pool(false)]));
    let lan_only = agent.get("/v1/operator/keyring?local-only=true");
    assert_eq!(lan_only, Some(json!([pool(false)])));
    let refused = agent.put("/v1/operator/keyring", &json!({"Key": "bad"}));
    let reason = "illegal base64 data at input byte 0";
    let text = format!("2 errors occurred:\n\t* WAN error: {reason}\n\t* dc1 (LAN) error: {reason}\n\n");
    assert_eq!((refused.status, refused.body), (500, text));
    let unknown = agent.put("/v1/operator/keyring", &json!({"Key": new_key()}));
    assert_eq!(unknown.status, 500);
    assert!(
        unknown.body.contains("n1: Requested key is not in the keyring"),
        "{unknown:?}"
    );
    assert_eq!(list(), json!([pool(true), pool(false)]));
    // In memory only, as all of `-dev`.
    assert_eq!(agent.put("/v1/operator/keyring", &json!({"Key": key})).status, 200);

    let plain = Agent::dev("n2", &[]);
    let reply = plain
        .http("GET", "/v1/operator/keyring", "")
        .expect("the agent answers");
    let text = "4 errors occurred:\n\t* WAN error: 1/1 nodes reported failure\n\t* n2.dc1: Keyring is empty (encryption not \
                enabled)\n\t* dc1 (LAN) error: 1/1 nodes reported failure\n\t* n2: Keyring is empty (encryption not \
                enabled)\n\n";
    assert_eq!((reply.status, reply.body.as_str()), (500, text));
    plain
        .cli(&["keyring", "-list", "-use=x"])
        .check(1, "", "Only a single action is allowed\n");
    let none = plain.cli(&["keyring"]);
    assert!(
        none.code == 1 && none.stderr.starts_with("Usage: quorate keyring"),
        "{none:?}"
    );
}

#[test]
fn a_keyring_file_alone_encrypts_and_a_damaged_one_stops_the_start() {
    let key = new_key();
    let mut agent = Agent::new("n1", &["-bind=127.0.0.1", "-server", "-bootstrap"]);
    let data = agent.folder.0.join("data");
    agent.arguments.push(format!("-data-dir={}", data.display()));
    let file = agent.folder.write("data/serf/local.keyring", &format!("[\"{key}\"]"));
    agent.start();
    agent.wait_for_leader();
    let keys: Value = agent.get("/v1/operator/keyring?local-only=true").expect("encrypted");
    assert_eq!(keys[0]["PrimaryKeys"], json!({&key: 1}));
    agent.kill();
    for damaged in ["", "[]", "[\"bad\"]", "{}"] {
        fs::write(&file, damaged).expect("the temporary folder can be written");
        agent.start();
        assert_eq!(agent.wait_for_end(), 1);
        let output = agent.output();
        let text = format!("failed to load keyring {}: ", file.display());
        assert!(output.contains(&text), "{output}");
    }
}
