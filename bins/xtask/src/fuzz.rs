//! `cargo xtask fuzz`: each target of `fuzz/` for a while, from its corpus.
//!
//! cargo-fuzz needs unstable compiler flags; `RUSTC_BOOTSTRAP` lets the pinned stable compiler take them, so that what is
//! fuzzed is built by the compiler that builds the product.

use crate::command::{self, root, run as run_command};
use anyhow::{Context as _, Result, bail};

pub const HELP: &str = "\
cargo xtask fuzz [TARGET] [--seconds N]

Fuzzes TARGET, or every target of fuzz/, for N seconds each (10). A crash is kept below fuzz/artifacts; make it a
named test. It starts from fuzz/corpus/TARGET; inputs that reach new code are left in fuzz/target/corpus/TARGET, from
where those worth keeping are copied by hand.
";

/// A single input that takes longer than this is a finding: decoders work in time proportional to their input.
const INPUT_SECONDS_MAX: u32 = 5;
/// Memory beyond this is a finding: bad input must not grow memory without bound.
const MEMORY_MIB_MAX: u32 = 2048;

pub fn run(arguments: &[&str]) -> Result<()> {
    let mut chosen = None;
    let mut seconds: u64 = 10;
    let mut arguments = arguments.iter();
    while let Some(argument) = arguments.next() {
        match *argument {
            "--seconds" => {
                let number = arguments.next().context("--seconds needs a number")?;
                seconds = number.parse().with_context(|| format!("--seconds {number}"))?;
            }
            option if option.starts_with('-') => bail!("there is no option {option}\n\n{HELP}"),
            target => chosen = Some(target.to_owned()),
        }
    }
    let targets = match chosen {
        Some(target) => vec![target],
        None => all_targets()?,
    };
    for target in targets {
        // libFuzzer writes to the first folder only: a run must not change what is under version control.
        let found = root().join("fuzz/target/corpus").join(&target);
        let corpus = root().join("fuzz/corpus").join(&target);
        for folder in [&found, &corpus] {
            std::fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
        }
        let mut fuzz = command::cargo();
        fuzz.env("RUSTC_BOOTSTRAP", "1")
            .args(["fuzz", "run", &target])
            .arg(found)
            .arg(corpus)
            .args([
                "--".to_owned(),
                format!("-max_total_time={seconds}"),
                format!("-timeout={INPUT_SECONDS_MAX}"),
                format!("-rss_limit_mb={MEMORY_MIB_MAX}"),
                "-print_final_stats=1".to_owned(),
            ]);
        run_command(&mut fuzz)?;
    }
    Ok(())
}

/// The targets are the files of `fuzz/fuzz_targets`, so that one cannot be added and forgotten here.
fn all_targets() -> Result<Vec<String>> {
    let files = command::files_below(&root().join("fuzz/fuzz_targets"), "rs")?;
    let targets: Vec<String> = files
        .iter()
        .filter_map(|file| Some(file.file_stem()?.to_string_lossy().into_owned()))
        .collect();
    if targets.is_empty() {
        bail!("there is no fuzz target below fuzz/fuzz_targets");
    }
    Ok(targets)
}
