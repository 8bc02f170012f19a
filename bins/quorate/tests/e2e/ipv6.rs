//! An agent on IPv6 alone.

use crate::support::*;
use serde_json::{Value, json};
use std::net::UdpSocket;
use std::process::Command;

fn output_of(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    let output = output.unwrap_or_else(|err| panic!("{program} is installed: {err}"));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn an_agent_on_ipv6_answers_http_and_dns_and_is_found_at_its_address() {
    if let Err(err) = UdpSocket::bind("[::1]:0") {
        eprintln!("not tested: this machine has no ::1 ({err})");
        return;
    }
    let mut agent = Agent::new("n6", &["-dev", "-bind=::1", "-client=::1"]);
    agent.start();
    let url = |path: &str| format!("http://[::1]:{}{path}", agent.ports.http);
    let get = |path: &str| {
        serde_json::from_str::<Value>(&output_of("curl", &["-s", "-g", "--max-time", "20", &url(path)])).ok()
    };
    let leader = wait_for("it knows a leader", || {
        get("/v1/status/leader")?
            .as_str()
            .filter(|leader| !leader.is_empty())
            .map(str::to_owned)
    });
    assert_eq!(leader, format!("[::1]:{}", agent.ports.server));
    let service = json!({"Name": "web", "Port": 80}).to_string();
    let register = ["-s", "-g", "--max-time", "20", "-X", "PUT", "--data-binary", &service];
    output_of("curl", &[&register[..], &[&url("/v1/agent/service/register")]].concat());
    let node = wait_for("the catalog has the service", || {
        get("/v1/catalog/service/web")?.as_array()?.first().cloned()
    });
    assert_eq!((&node["Node"], &node["Address"]), (&json!("n6"), &json!("::1")));
    let port = agent.ports.dns.to_string();
    let dig = |name: &str, qtype: &str| {
        output_of(
            "dig",
            &["@::1", "-p", &port, "+short", "+time=2", "+tries=1", name, qtype],
        )
    };
    for transport in ["+notcp", "+tcp"] {
        let answer = output_of(
            "dig",
            &["@::1", "-p", &port, "+short", transport, "n6.node.consul", "AAAA"],
        );
        assert_eq!(answer, "::1\n", "{transport}");
    }
    assert_eq!(dig("web.service.consul", "AAAA"), "::1\n");
    assert_eq!(dig("web.service.consul", "A"), "");
    assert_eq!(dig("web.service.consul", "SRV"), "1 1 80 n6.node.dc1.consul.\n");
    let members = cli(&format!("[::1]:{}", agent.ports.http), &["members"]);
    check_contains(&members.stdout, &format!("[::1]:{}", agent.ports.serf_lan));
}
