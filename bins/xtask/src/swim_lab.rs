//! `cargo xtask swim-lab`: the lab of the gossip pool, built for speed and run.
//!
//! The lab is a package of its own (`quorate-swim-lab`), which this task starts and does not import: whoever formats or
//! tidies the tree need not build it.

use crate::command;
use anyhow::Result;
use std::process::Command;

pub const HELP: &str = "\
cargo xtask swim-lab COMMAND [OPTION...]

Builds the lab with optimizations and runs it: Lifeguard's experiments on the gossip pool's own code in virtual time,
lossy members, pools of thousands. `cargo xtask swim-lab help` lists its commands and options.
";

pub fn run(arguments: &[&str]) -> Result<()> {
    command::run(&mut lab(arguments))
}

fn lab(arguments: &[&str]) -> Command {
    let mut cargo = command::cargo();
    // A pool of 10,000 members is gigabytes that are looked at in random order: large pages make it a third faster.
    // glibc's allocator asks for them; other systems ignore the variable.
    cargo
        .env("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")
        .args(["run", "--release", "--quiet", "--package", "quorate-swim-lab", "--"])
        .args(arguments);
    cargo
}

/// CI's sample: all of the lab once, against bounds that only a broken rule breaks.
pub fn check() -> Result<()> {
    run(&["check"])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_reach_the_lab_behind_the_dashes() {
        let line = command::line(&lab(&["sweep", "--sample", "12"]));
        assert_eq!(
            line,
            "cargo run --release --quiet --package quorate-swim-lab -- sweep --sample 12"
        );
    }
}
