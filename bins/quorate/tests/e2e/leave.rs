//! A server that leaves: its vote goes with it, and it does not wait for ever.

use crate::support::*;

/// Names of the voters as this agent is told.
fn voters(agent: &Agent) -> Option<Vec<String>> {
    let configuration = agent.get("/v1/operator/raft/configuration")?;
    let servers = configuration["Servers"].as_array()?.iter();
    Some(
        servers
            .map(|server| server["Node"].as_str().unwrap_or_default().to_owned())
            .collect(),
    )
}

#[test]
fn a_server_that_left_was_removed_before_it_ended_whether_it_led_or_not() {
    let mut cluster = Cluster::start();
    for is_leader in [false, true] {
        let leader = cluster.leader();
        let running = (0..cluster.servers.len()).filter(|at| cluster.servers[*at].child.is_some());
        let leaving = running
            .clone()
            .find(|at| (*at == leader) == is_leader)
            .expect("one of each");
        let staying = running.clone().find(|at| *at != leaving).expect("another one");
        let name = cluster.servers[leaving].name.clone();
        cluster.servers[leaving]
            .cli(&["leave"])
            .check(0, "Graceful leave complete\n", "");
        assert_eq!(cluster.servers[leaving].wait_for_end(), 0);
        // It ended because the leader said that it is removed, not because it waited for long enough.
        assert!(
            !cluster.servers[leaving]
                .output()
                .contains("still in the Raft configuration")
        );
        let voters = wait_for("the others answer", || voters(&cluster.servers[staying]));
        assert!(!voters.contains(&name), "{name} is in {voters:?}");
    }
    cluster.write("alone", "1");
}

#[test]
fn a_server_that_can_ask_no_leader_leaves_in_bounded_time() {
    let mut cluster = Cluster::start();
    let leader = cluster.leader();
    for at in 0..cluster.servers.len() {
        if at != leader {
            cluster.servers[at].kill();
        }
    }
    // No quorum: nobody can hand over to, remove it, or say that it was removed. `leave` ends all the same.
    let left = cluster.servers[leader].cli(&["leave"]);
    left.check(0, "Graceful leave complete\n", "");
    assert_eq!(cluster.servers[leader].wait_for_end(), 0);
    check_contains(
        &cluster.servers[leader].output(),
        "this server is still in the Raft configuration: the leader removes it when it can",
    );
}
