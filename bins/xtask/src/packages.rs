//! What CI's machine must have: system packages, and tools of our own below `target/tools`.

use crate::command::{self, is_installed, run};
use anyhow::{Result, bail};
use std::os::unix::fs::MetadataExt as _;
use std::process::Command;

/// A program and the Debian package that brings it.
const SYSTEM: &[(&str, &str)] = &[("dig", "bind9-dnsutils"), ("curl", "curl"), ("g++", "g++")];
/// Pinned: a fuzzer that changes by itself would make a red build that nobody caused.
const CARGO_FUZZ_VERSION: &str = "0.13.2";

/// Installs what is missing, or names it when we may not.
pub fn install() -> Result<()> {
    let missing: Vec<&str> = SYSTEM
        .iter()
        .filter(|(program, _)| !is_installed(program))
        .map(|(_, package)| *package)
        .collect();
    if !missing.is_empty() {
        // The owner of our own /proc entry is our user: asking the kernel so needs no further crate.
        let is_root = std::fs::metadata("/proc/self").is_ok_and(|entry| entry.uid() == 0);
        if !is_root || !is_installed("apt-get") {
            bail!("missing system packages (Debian's names): {}", missing.join(" "));
        }
        run(Command::new("apt-get").args(["update", "-q"]))?;
        run(Command::new("apt-get")
            .env("DEBIAN_FRONTEND", "noninteractive")
            .args(["install", "-q", "-y", "--no-install-recommends"])
            .args(missing))?;
    }
    if !is_cargo_fuzz_installed() {
        let install = [
            "install",
            "cargo-fuzz",
            "--locked",
            "--version",
            CARGO_FUZZ_VERSION,
            "--root",
        ];
        run(command::cargo().args(install).arg(command::tools_dir()))?;
    }
    Ok(())
}

fn is_cargo_fuzz_installed() -> bool {
    let answer = command::cargo().args(["fuzz", "--version"]).output();
    answer.is_ok_and(|answer| {
        answer.status.success()
            && String::from_utf8_lossy(&answer.stdout)
                .trim()
                .ends_with(CARGO_FUZZ_VERSION)
    })
}
