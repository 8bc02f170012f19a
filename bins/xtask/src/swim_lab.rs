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
    cargo
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
