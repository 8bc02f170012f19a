//! One seed and one build give one run, whichever process runs it.

#![cfg(madsim)]

use std::process::Command;

fn run(seed: u64) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_quorate-sim"))
        .args(["self-check", "--seed", &seed.to_string()])
        .output()
        .expect("start the simulator");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).expect("text");
    assert!(text.starts_with("digest="), "{text}");
    text
}

#[test]
fn the_same_seed_in_two_processes_gives_the_same_digest() {
    for seed in 1..=5 {
        assert_eq!(run(seed), run(seed), "seed {seed}");
    }
}

#[test]
fn two_seeds_give_two_digests() {
    assert_ne!(run(1), run(2));
}
