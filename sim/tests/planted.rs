//! Each scenario passes as it is, and fails when what it guards is broken: a judge that cannot say no proves nothing.
//! `scenarios/README.md` says which sabotage stands for what.

#![cfg(madsim)]
// Tests run on the real machine: they make a scenario file of their own there.
#![allow(clippy::disallowed_methods)]

use std::path::{Path, PathBuf};
use std::process::Command;

/// The verdict of one run, and all it printed.
fn run(file: &Path, seed: u64, sabotage: Option<&str>) -> (String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_quorate-sim"));
    command.arg(file).args(["--seed", &seed.to_string()]);
    if let Some(sabotage) = sabotage {
        command.args(["--sabotage", sabotage]);
    }
    let output = command.output().expect("start the simulator");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let verdict = text.lines().rev().find_map(|line| line.strip_prefix("verdict="));
    let verdict = verdict.unwrap_or("none").to_owned();
    assert_eq!(output.status.success(), verdict == "pass", "{text}");
    (verdict, text)
}

/// The scenario passes without and fails with the sabotage, for the reason that `because` is part of.
#[track_caller]
fn check(scenario: &str, sabotage: &str, because: &str) {
    check_file(&path_of(scenario), sabotage, because);
}

fn path_of(scenario: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../scenarios")
        .join(scenario)
}

#[track_caller]
fn check_file(file: &Path, sabotage: &str, because: &str) {
    let scenario = file.display();
    let (verdict, text) = run(file, 1, None);
    assert_eq!(verdict, "pass", "{text}");
    let (verdict, text) = run(file, 1, Some(sabotage));
    assert_eq!(verdict, "fail", "{scenario} does not notice {sabotage}:\n{text}");
    assert!(
        text.contains(because),
        "{scenario} with {sabotage} fails for another reason:\n{text}"
    );
}

#[test]
fn a_leader_on_the_minority_side_that_answers_consistent_reads_is_noticed() {
    check(
        "raft/leader_on_minority_side.toml",
        "consistent-as-stale",
        "linearizable",
    );
}

#[test]
fn a_lease_that_outlives_its_promise_is_noticed() {
    // In the time of the leader's own clock its lease ends; for everybody else it answers old values for seconds.
    check(
        "raft/leader_on_minority_side.toml",
        "leader-clock-slows",
        "linearizable",
    );
}

#[test]
fn disks_that_lie_about_syncs_are_noticed() {
    // The servers apply other entries at the same indexes, which shows before any user reads.
    check("raft/all_servers_lose_power.toml", "lying-syncs", "equal_logs");
}

#[test]
fn acknowledged_writes_that_are_gone_are_noticed_by_their_users_alone() {
    let text = std::fs::read_to_string(path_of("raft/all_servers_lose_power.toml")).expect("read the scenario");
    assert!(text.contains("[\"all\"]"));
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join("users_alone.toml");
    std::fs::write(&file, text.replace("[\"all\"]", "[\"linearizable\"]")).expect("write the scenario");
    check_file(&file, "lying-syncs", "linearizable");
}

#[test]
fn a_dead_node_that_stays_in_the_catalog_is_noticed() {
    check("agent/client_node_killed.toml", "kills-do-nothing", "require[");
    check(
        "agent/client_node_killed.toml",
        "dns-repeats-old-answers",
        "dns_never_critical",
    );
}

#[test]
fn reads_that_need_a_leader_are_noticed() {
    check(
        "agent/leader_killed_reads_go_on.toml",
        "stale-as-consistent",
        "reads_go_on",
    );
}

#[test]
fn a_server_that_goes_on_after_a_failed_sync_is_noticed() {
    check(
        "raft/a_failed_sync_ends_the_server.toml",
        "hidden-sync-errors",
        "ends failing",
    );
}

#[test]
fn one_disk_that_holds_up_everybody_is_noticed() {
    check(
        "raft/a_slow_disk_holds_up_nobody.toml",
        "disks-fail-together",
        "writes_resume",
    );
    check(
        "raft/a_full_disk_loses_nothing.toml",
        "disks-fail-together",
        "ended by itself",
    );
}

#[test]
fn a_leader_that_answers_old_values_after_a_pause_is_noticed() {
    check(
        "raft/paused_leader_answers_nothing_old.toml",
        "consistent-as-stale",
        "linearizable",
    );
}

#[test]
fn a_slow_member_that_is_declared_dead_is_noticed() {
    check("swim/slow_member_is_not_failed.toml", "pauses-last", "require[");
}

#[test]
fn a_member_that_one_alone_declares_dead_is_noticed() {
    check("swim/one_way_cut.toml", "one-way-cuts-isolate", "never_failed");
}

#[test]
fn a_pool_that_stays_split_is_noticed() {
    check("swim/split_in_two_and_heal.toml", "cuts-never-heal", "member_is");
}

#[test]
fn a_node_that_stays_at_its_old_address_in_the_catalog_is_noticed() {
    check(
        "swim/new_address_same_name.toml",
        "nodes-repeat-old-answers",
        "the catalog has",
    );
}

#[test]
fn a_name_that_goes_to_who_claims_it_last_is_noticed() {
    check("swim/two_nodes_one_name.toml", "name-holder-gone", "require[");
}

#[test]
fn servers_that_forget_everything_in_a_restart_are_noticed() {
    check("agent/rolling_restart.toml", "restarts-lose-disks", "require[");
}

#[test]
fn dns_that_answers_with_a_critical_instance_is_noticed() {
    check(
        "checks/check_fails_and_recovers.toml",
        "dns-repeats-old-answers",
        "dns_never_critical",
    );
}

#[test]
fn a_lock_that_two_hold_is_noticed() {
    check("store/locks_have_one_holder.toml", "locks-as-sets", "one_holder");
}

#[test]
fn a_lock_delay_that_nobody_keeps_is_noticed() {
    check(
        "store/lock_delay_across_a_leader_change.toml",
        "no-lock-delay",
        "one_holder",
    );
}

#[test]
fn a_transaction_that_shows_in_parts_is_noticed() {
    check(
        "store/transactions_are_all_or_nothing.toml",
        "transactions-in-parts",
        "linearizable",
    );
}

#[test]
fn a_compare_and_set_that_does_not_compare_is_noticed() {
    check("store/cas_is_linearizable.toml", "cas-as-put", "linearizable");
}

#[test]
fn a_session_that_outlives_its_node_is_noticed() {
    check(
        "store/sessions_end_with_their_node.toml",
        "sessions-without-checks",
        "is not had at client2",
    );
}

#[test]
fn timers_that_run_by_the_wall_clock_are_noticed() {
    check("agent/clock_jumps.toml", "wall-jumps-move-timers", "an agent panicked");
}

#[test]
fn a_gossip_key_that_stays_though_its_removal_was_acknowledged_is_noticed() {
    check("agent/keys_rotated_under_load.toml", "key-removals-lost", "one_keyring");
}

#[test]
fn a_ring_that_does_not_outlive_a_restart_is_noticed() {
    check("agent/keys_rotated_under_load.toml", "restarts-lose-disks", "require[");
}

#[test]
fn encryption_switched_on_in_one_step_is_noticed() {
    check(
        "agent/encryption_switched_on.toml",
        "rollouts-skip-steps",
        "never_failed",
    );
}
