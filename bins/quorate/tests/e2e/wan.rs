//! Two datacenters: servers of each find one another in the WAN pool, and clients see nobody but their own.

use crate::support::*;
use std::collections::BTreeSet;

fn wan_names(agent: &Agent) -> Option<BTreeSet<String>> {
    let members = agent.get("/v1/agent/members?wan=1")?;
    let alive = members.as_array()?.iter().filter(|member| member["Status"] == 1);
    alive.map(|member| Some(member["Name"].as_str()?.to_owned())).collect()
}

fn started(name: &str, datacenter: &str, arguments: &[&str]) -> Agent {
    let datacenter = format!("-datacenter={datacenter}");
    let mut agent = Agent::new(name, &[&["-bind=127.0.0.1", datacenter.as_str()], arguments].concat());
    let data = format!("-data-dir={}", agent.folder.0.join("data").display());
    agent.arguments.push(data);
    agent.start();
    agent
}

#[test]
fn one_wan_join_brings_all_servers_of_both_datacenters_together() {
    let a1 = started("a1", "east", &["-server", "-bootstrap-expect=2"]);
    let lan = format!("-retry-join=127.0.0.1:{}", a1.ports.serf_lan);
    let mut a2 = started("a2", "east", &["-server", "-bootstrap-expect=2", &lan]);
    let client = started("c1", "east", &[&lan]);
    let mut b1 = started("b1", "west", &["-server", "-bootstrap-expect=1"]);
    a2.wait_for_leader();
    b1.wait_for_leader();
    let servers = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<BTreeSet<_>>();
    wait_until("the servers of one datacenter are one WAN pool", || {
        [&a1, &a2]
            .iter()
            .all(|agent| wan_names(agent) == Some(servers(&["a1.east", "a2.east"])))
    });
    assert_eq!(wan_names(&b1), Some(servers(&["b1.west"])));

    let joined = b1.cli(&["join", "-wan", &format!("127.0.0.1:{}", a1.ports.serf_wan)]);
    joined.check(0, "Successfully joined cluster by contacting 1 nodes.\n", "");
    wait_until("both datacenters' servers know one another", || {
        [&a1, &a2, &b1]
            .iter()
            .all(|agent| wan_names(agent) == Some(servers(&["a1.east", "a2.east", "b1.west"])))
    });
    // Only the LAN pool counts for whom a datacenter's own members are.
    let lan_names = |agent: &Agent| {
        agent
            .get("/v1/agent/members")
            .map(|members| members.as_array().map(Vec::len))
    };
    assert_eq!(lan_names(&b1), Some(Some(1)));
    assert_eq!(
        b1.get("/v1/catalog/datacenters"),
        Some(serde_json::json!(["west", "east"]))
    );
    // A client has no WAN pool and asks a server.
    wait_until("the client hears of both", || {
        client.get("/v1/catalog/datacenters") == Some(serde_json::json!(["east", "west"]))
    });
    let none = client
        .http("GET", "/v1/agent/members?wan=1", "")
        .expect("the client answers");
    assert_eq!((none.status, none.body.trim()), (200, "null"));
    let refused = client
        .http("PUT", "/v1/agent/join/127.0.0.1?wan=1", "")
        .expect("the client answers");
    assert_eq!(refused.status, 500);
    assert!(refused.body.contains("no WAN pool"), "{}", refused.body);

    let listed = b1.cli(&["members", "-wan"]);
    assert_eq!(listed.code, 0);
    assert_eq!(listed.stdout.matches("alive").count(), 3, "{}", listed.stdout);

    // A server that leaves leaves both pools.
    assert_eq!(b1.cli(&["leave"]).code, 0);
    assert_eq!(b1.wait_for_end(), 0);
    wait_until("west has left the WAN pool", || {
        [&a1, &a2]
            .iter()
            .all(|agent| wan_names(agent) == Some(servers(&["a1.east", "a2.east"])))
    });
    assert_eq!(a1.get("/v1/catalog/datacenters"), Some(serde_json::json!(["east"])));
}
