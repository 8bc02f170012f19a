//! Twenty members of one pool on one machine, each at an address of its own: one is stopped for a while, one dies.

use crate::support::*;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

const MEMBERS: usize = 20;
/// Shorter than the shortest suspicion in a pool of this size: 4 s times log10 of 20.
const PAUSE: Duration = Duration::from_secs(3);

/// Name and status of every member as this agent sees them. 1 alive, 3 left, 4 failed (Serf's numbers).
fn statuses(agent: &Agent) -> Option<BTreeMap<String, u64>> {
    let members = agent.get("/v1/agent/members")?;
    let one = |member: &serde_json::Value| Some((member["Name"].as_str()?.to_owned(), member["Status"].as_u64()?));
    members.as_array()?.iter().map(one).collect()
}

fn all_see(agents: &[Agent], name: &str, status: u64) -> bool {
    let running = agents
        .iter()
        .filter(|agent| agent.child.is_some() && agent.name != name);
    running
        .map(statuses)
        .all(|seen| seen.is_some_and(|seen| seen.get(name) == Some(&status)))
}

#[test]
fn twenty_members_keep_one_that_pauses_and_fail_one_that_died() {
    let mut agents: Vec<Agent> = Vec::new();
    for number in 1..=MEMBERS {
        let mut agent = match agents.first() {
            None => Agent::new("m1", &["-server", "-bootstrap-expect=1", "-bind=127.0.0.1"]),
            Some(first) => Agent::new(
                &format!("m{number}"),
                &[
                    &format!("-bind=127.0.0.{number}"),
                    &format!("-retry-join=127.0.0.1:{}", first.ports.serf_lan),
                ],
            ),
        };
        let data = format!("-data-dir={}", agent.folder.0.join("data").display());
        agent.arguments.push(data);
        agent.start();
        agents.push(agent);
    }
    let started_at = Instant::now();
    wait_until("every list of members is complete", || {
        agents.iter().all(|agent| {
            statuses(agent).is_some_and(|seen| seen.len() == MEMBERS && seen.values().all(|status| *status == 1))
        })
    });
    println!("all lists complete after {:.1?}", started_at.elapsed());

    let reached = agents[3].cli(&["reachability"]);
    reached.check(0, "20 of 20 members answered.\nNo faulty link is known.\n", "");

    agents[6].signal("STOP");
    let stopped_at = Instant::now();
    let reached = agents[3].cli(&["reachability", "-timeout=1s"]);
    assert_eq!(reached.code, 2);
    assert!(
        reached
            .stdout
            .starts_with("19 of 20 members answered.\nNo answer in time: m7\n"),
        "{}",
        reached.stdout
    );
    wait_until("the pause is over", || {
        let seen = statuses(&agents[0]).expect("the first agent answers");
        assert_eq!(seen.get("m7"), Some(&1), "a short pause is no failure");
        stopped_at.elapsed() > PAUSE
    });
    agents[6].signal("CONT");
    wait_until("all see m7 alive", || all_see(&agents, "m7", 1));

    let paused = &agents[6];
    paused.signal("STOP");
    let stopped_at = Instant::now();
    agents[11].kill();
    wait_until("all but the paused one see m12 failed", || {
        let seers = agents
            .iter()
            .filter(|agent| agent.child.is_some() && agent.name != "m7");
        seers
            .map(statuses)
            .all(|seen| seen.is_some_and(|seen| seen.get("m12") == Some(&4)))
    });
    println!("m12 failed everywhere {:.1?} after it was killed", stopped_at.elapsed());
    wait_until("all see m7 failed", || all_see(&agents, "m7", 4));
    println!("m7 failed everywhere {:.1?} after it was stopped", stopped_at.elapsed());
    agents[6].signal("CONT");
    let resumed_at = Instant::now();
    wait_until("all see m7 alive again", || all_see(&agents, "m7", 1));
    println!("m7 alive everywhere {:.1?} after it went on", resumed_at.elapsed());
    // What it missed it learns; and nobody else was failed meanwhile.
    wait_until("m7 sees m12 failed, and all others are alive everywhere", || {
        agents.iter().filter(|agent| agent.child.is_some()).all(|agent| {
            statuses(agent).is_some_and(|seen| {
                seen.iter()
                    .all(|(name, status)| *status == if name == "m12" { 4 } else { 1 })
            })
        })
    });
}
