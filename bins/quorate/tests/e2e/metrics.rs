//! What an agent measured, as its operators see it; and who is kept out of a pool, which is counted there.

use crate::support::*;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// The values of a kind (`Gauges`, `Counters`, `Samples`) by name and one label.
fn find<'a>(metrics: &'a Value, kind: &str, name: &str, label: (&str, &str)) -> Option<&'a Value> {
    metrics[kind]
        .as_array()?
        .iter()
        .find(|metric| metric["Name"] == name && (label.0.is_empty() || metric["Labels"][label.0] == label.1))
}

#[test]
fn metrics_are_told_as_json_and_to_prometheus_where_that_is_switched_on() {
    let telemetry = r#"{"telemetry": {"disable_hostname": true, "prometheus_retention_time": "1m"}}"#;
    let mut agent = Agent::new("n1", &["-dev"]).with_config("telemetry.json", telemetry);
    agent.start();
    agent.wait_for_leader();
    // Shown is the last whole interval: what is told now comes with a later one.
    let mut missing = BTreeSet::from([
        ("Gauges", "consul.raft.term"),
        ("Gauges", "consul.memberlist.health.score"),
        ("Gauges", "consul.runtime.alloc_bytes"),
        ("Gauges", "consul.runtime.num_goroutines"),
        ("Counters", "consul.raft.apply"),
        ("Counters", "consul.dns.replies"),
        ("Samples", "consul.raft.commitTime"),
        ("Samples", "consul.kvs.apply"),
        ("Samples", "consul.http.PUT.v1.kv._"),
        ("Samples", "consul.dns.domain_query.n1"),
        ("Samples", "consul.serf.queue.Event"),
    ]);
    let mut found = BTreeMap::new();
    wait_until("all of it was measured", || {
        assert_eq!(agent.put("/v1/kv/a", &Value::from(1)).status, 200);
        agent.dig_short("n1.node.consul", "A");
        let metrics = agent.get("/v1/agent/metrics").expect("answered");
        missing.retain(|(kind, name)| match find(&metrics, kind, name, ("", "")) {
            Some(metric) => {
                found.insert(*name, metric.clone());
                false
            }
            None => true,
        });
        missing.is_empty()
    });
    let metrics = agent.get("/v1/agent/metrics").expect("answered");
    assert_eq!(metrics["Points"], Value::Array(Vec::new()));
    let timestamp = metrics["Timestamp"].as_str().expect("a text");
    assert!(timestamp.ends_with(" +0000 UTC"), "{timestamp}");
    let (commit, memory) = (&found["consul.raft.commitTime"], &found["consul.runtime.alloc_bytes"]);
    for field in ["Count", "Rate", "Sum", "Min", "Max", "Mean", "Stddev"] {
        assert!(commit[field].is_number(), "{field}: {commit}");
    }
    assert!(memory["Value"].as_f64() > Some(1e6), "{memory}");

    let text = agent
        .http("GET", "/v1/agent/metrics?format=prometheus", "")
        .expect("answered");
    assert_eq!(text.status, 200);
    check_contains(&text.body, "# TYPE consul_raft_commitTime summary\n");
    check_contains(&text.body, "consul_http_PUT_v1_kv___count ");
    check_contains(&text.body, "consul_memberlist_health_score{network=\"lan\"} 0\n");

    let plain = Agent::dev("n2", &[]);
    let refused = plain
        .http("GET", "/v1/agent/metrics?format=prometheus", "")
        .expect("answered");
    assert_eq!(refused.status, 415);
    assert_eq!(
        refused.body,
        "Prometheus is not enabled since its retention time is not positive"
    );
}

#[test]
fn who_is_outside_of_the_allowed_blocks_is_kept_out_counted_and_named_in_the_log() {
    let data = |agent: &Agent| format!("-data-dir={}", agent.folder.0.join("data").display());
    let start = |name: &str, arguments: &[&str]| {
        let mut agent = Agent::new(name, arguments);
        let data = data(&agent);
        agent.arguments.push(data);
        agent.start();
        agent
    };
    let mut server = start(
        "s1",
        &[
            "-server",
            "-bootstrap-expect=1",
            "-bind=127.0.60.1",
            "-serf-lan-allowed-cidrs=127.0.60.1/32",
            "-serf-lan-allowed-cidrs=127.0.60.2/32",
        ],
    );
    server.wait_for_leader();
    let join = format!("-retry-join=127.0.60.1:{}", server.ports.serf_lan);
    // Reached where it says to be, whatever it is bound to.
    let inside = start("inside", &["-bind=127.0.60.2", &join]);
    let outside = start("outside", &["-bind=127.0.60.3", "-retry-interval=1s", &join]);
    let refusal = "Rejected node outside (127.0.60.3): 127.0.60.3 is not allowed";
    wait_until("the one outside is told why", || outside.output().contains(refusal));
    wait_until("the one inside is a member", || inside.leader().is_some());
    wait_until("the refusals are counted", || {
        let metrics = server.get("/v1/agent/metrics");
        metrics.is_some_and(|metrics| {
            find(
                &metrics,
                "Counters",
                "consul.memberlist.refused",
                ("cause", "not_allowed"),
            )
            .is_some()
        })
    });
    let members = server.get("/v1/agent/members").expect("answered").to_string();
    assert!(
        members.contains("127.0.60.2") && !members.contains("127.0.60.3"),
        "{members}"
    );
    let log = server.output();
    assert_eq!(
        log.matches("not_allowed").count(),
        1,
        "one line for all of them:\n{log}"
    );
}

#[test]
fn a_member_is_reached_at_its_gossip_address_and_known_by_what_it_advertises() {
    let member_of = |agent: &Agent| {
        let members = agent.get("/v1/agent/members").expect("answered");
        let address = members[0]["Addr"].as_str().expect("a text").to_owned();
        (address, members[0]["Port"].as_u64().expect("a number"))
    };
    let mut agent = Agent::new(
        "n1",
        &[
            "-dev",
            "-bind=127.0.60.4",
            "-serf-lan-bind=127.0.60.5",
            "-advertise=127.0.60.5",
        ],
    );
    agent.start();
    agent.wait_for_leader();
    let port = agent.ports.serf_lan;
    assert_eq!(member_of(&agent), ("127.0.60.5".to_owned(), u64::from(port)));
    // Nobody listens at the other address.
    assert!(std::net::TcpStream::connect(("127.0.60.4", port)).is_err());
    assert!(std::net::TcpStream::connect(("127.0.60.5", port)).is_ok());
    let nodes = agent.get("/v1/catalog/nodes").expect("answered");
    assert_eq!(nodes[0]["Address"], "127.0.60.5");
}
