//! `cargo xtask ci`: what CI runs, in its order, stopping at the first failure.

use crate::command::{self, cargo, root, run as run_command};
use crate::{fuzz, packages, readme, sim, swim_lab, tidy};
use anyhow::{Context as _, Result, bail};
use std::time::{Duration, Instant};

pub const HELP: &str = "\
cargo xtask ci [STAGE...]

Runs all stages in this order, or those named, and stops at the first failure:

  packages  installs what the others need (as root), or names it
  fmt       cargo fmt --check
  clippy    all targets, warnings are errors; the simulator once more with its cfg
  tidy      cargo xtask tidy
  tests     unit, property, transcript and doc tests of the workspace
  sim       scenarios of tier fast, each seed in two processes with equal digests
  swim-lab  a sample of the gossip pool's experiments against wide bounds
  fuzz      each fuzz target for 10 s
  e2e       real agents, dig and curl against the release build
  readme    the README's commands are there and the first one starts an agent
";

type Stage = (&'static str, fn() -> Result<()>);

const STAGES: &[Stage] = &[
    ("packages", packages::install),
    ("fmt", fmt),
    ("clippy", clippy),
    ("tidy", || tidy::run(&[])),
    ("tests", tests),
    ("sim", simulation),
    ("swim-lab", swim_lab::check),
    ("fuzz", || fuzz::run(&[])),
    ("e2e", e2e),
    ("readme", readme::check),
];

pub fn run(arguments: &[&str]) -> Result<()> {
    for name in arguments {
        if !STAGES.iter().any(|(stage, _)| stage == name) {
            bail!("there is no stage {name}\n\n{HELP}");
        }
    }
    let mut summary = Vec::new();
    for (name, stage) in STAGES {
        if !arguments.is_empty() && !arguments.contains(name) {
            continue;
        }
        println!("\n== {name}");
        let started_at = Instant::now();
        let outcome = stage();
        let line = summary_line(name, started_at.elapsed(), outcome.is_ok());
        println!("== {line}");
        summary.push(line);
        if outcome.is_err() {
            println!("\n{}", summary.join("\n"));
            return outcome.with_context(|| format!("stage {name}"));
        }
    }
    println!("\n{}", summary.join("\n"));
    Ok(())
}

fn summary_line(name: &str, took: Duration, is_passed: bool) -> String {
    let verdict = if is_passed { "passed" } else { "FAILED" };
    format!("{name:<9} {verdict} {:>7.1} s", took.as_secs_f64())
}

fn fmt() -> Result<()> {
    run_command(cargo().args(["fmt", "--all", "--check"]))?;
    // A workspace of its own, which the first command does not see.
    run_command(cargo().args(["fmt", "--manifest-path", "fuzz/Cargo.toml", "--check"]))
}

fn clippy() -> Result<()> {
    run_command(cargo().args([
        "clippy",
        "--workspace",
        "--all-targets",
        "--quiet",
        "--",
        "-D",
        "warnings",
    ]))?;
    // A target directory of its own: the cfg would rebuild everything twice per run otherwise.
    let arguments = [
        "clippy",
        "--package",
        "quorate-sim",
        "--all-targets",
        "--quiet",
        "--target-dir",
        "target/sim",
    ];
    run_command(
        cargo()
            .env("RUSTFLAGS", "--cfg madsim")
            .args(arguments)
            .args(["--", "-D", "warnings"]),
    )
}

fn tests() -> Result<()> {
    // The end-to-end tests of package quorate have a stage of their own, against the release build. Both commands
    // span the workspace, so that cargo unifies features once and builds each crate once.
    run_command(cargo().args(["test", "--workspace", "--exclude", "quorate"]))?;
    run_command(cargo().args(["test", "--workspace", "--bin", "quorate"]))
}

/// The simulator's own tests, that each scenario can fail among them, and every scenario, each seed in two processes.
fn simulation() -> Result<()> {
    let arguments = [
        "test",
        "--package",
        "quorate-sim",
        "--profile",
        "sim",
        "--target-dir",
        "target/sim",
    ];
    run_command(cargo().env("RUSTFLAGS", "--cfg madsim").args(arguments))?;
    sim::run(&["--twice"])
}

fn e2e() -> Result<()> {
    // The build the README's first command makes: default members only, release profile.
    run_command(cargo().args(["build", "--release"]))?;
    let binary = root().join("target/release/quorate");
    run_command(
        cargo()
            .env("QUORATE_BIN", &binary)
            .args(["test", "--workspace", "--test", "e2e"]),
    )
    .with_context(|| {
        format!(
            "with QUORATE_BIN={}",
            binary.strip_prefix(command::root()).unwrap_or(&binary).display()
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn help_lists_each_stage_in_its_order() {
        let mut rest = HELP;
        for (name, _) in STAGES {
            let at = rest
                .find(&format!("\n  {name} "))
                .unwrap_or_else(|| panic!("{name} is missing or out of order"));
            rest = &rest[at + 1..];
        }
    }

    #[test]
    fn an_unknown_stage_is_named() {
        let error = run(&["bogus"]).unwrap_err().to_string();
        assert!(error.starts_with("there is no stage bogus"), "{error}");
    }

    #[test]
    fn a_summary_line_has_name_verdict_and_seconds() {
        assert_eq!(
            summary_line("fmt", Duration::from_millis(1540), true),
            "fmt       passed     1.5 s"
        );
        assert_eq!(
            summary_line("e2e", Duration::from_secs(61), false),
            "e2e       FAILED    61.0 s"
        );
    }
}
