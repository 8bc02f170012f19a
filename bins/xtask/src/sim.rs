//! `cargo xtask sim`: builds the simulator, and runs one process per scenario and seed.
//!
//! The simulator's last lines are its contract with this task: `claim=`, `seed=`, `digest=`, `verdict=pass|fail`, and exit
//! code 0 or 1. A process per seed keeps state of one run (allocator, interned names, thread-locals) out of the next.

use crate::command::{self, root};
use anyhow::{Context as _, Result, bail, ensure};
use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Mutex;

pub const HELP: &str = "\
cargo xtask sim [FILE...] [--seed N] [--seeds A..B] [--twice] [--tier T] [--until MS] [--trace NODE] [--jobs N]

Runs scenarios (all of tier fast without FILE), each with the seeds its file asks for: 1..=sweep and those pinned.

  --seed N       this seed only; its whole output is shown
  --seeds A..B   these seeds, B left out
  --twice        each seed in two processes, whose digests must be equal
  --tier T       without FILE: fast, slow, soak or all
  --until MS     stop after MS milliseconds of virtual time
  --trace NODE   show what this node did
  --jobs N       processes at a time (2)
";

const TIERS: &[&str] = &["fast", "slow", "soak"];
/// Lines of a failed run that are shown; the replay line brings back the rest.
const FAILURE_LINES_MAX: usize = 60;

/// What the task needs to know of a scenario file; the simulator itself knows the rest.
#[derive(Debug, PartialEq, Eq)]
pub struct Scenario {
    pub claim: String,
    pub tier: String,
    pub seeds: Vec<u64>,
}

/// Reads the parts of a scenario that decide how it is run, or says what is wrong with them.
pub fn read_scenario(text: &str) -> Result<Scenario> {
    let file: toml::Table = text.parse().context("no TOML")?;
    let text_of = |key: &str| {
        let value = file.get(key).and_then(toml::Value::as_str).unwrap_or_default().trim();
        ensure!(!value.is_empty(), "has no `{key}`");
        Ok(value.to_owned())
    };
    let claim = text_of("claim")?;
    let tier = text_of("tier")?;
    ensure!(
        TIERS.contains(&tier.as_str()),
        "`tier` is {tier:?}, not one of {TIERS:?}"
    );
    let seeds = file
        .get("seeds")
        .and_then(toml::Value::as_table)
        .context("has no `seeds = { sweep = N }`")?;
    for key in seeds.keys() {
        ensure!(key == "sweep" || key == "pinned", "`seeds.{key}` means nothing");
    }
    let number = |value: &toml::Value| {
        let number = value.as_integer().and_then(|number| u64::try_from(number).ok());
        number.with_context(|| format!("`seeds`: {value} is no seed"))
    };
    let sweep = seeds.get("sweep").map(number).transpose()?.unwrap_or(0);
    let mut all: Vec<u64> = (1..=sweep).collect();
    if let Some(pinned) = seeds.get("pinned") {
        for value in pinned.as_array().context("`seeds.pinned` is no list")? {
            let seed = number(value)?;
            if !all.contains(&seed) {
                all.push(seed);
            }
        }
    }
    ensure!(!all.is_empty(), "`seeds` names none");
    Ok(Scenario {
        claim,
        tier,
        seeds: all,
    })
}

#[derive(Debug, Default)]
struct Options {
    files: Vec<PathBuf>,
    seeds: Option<Vec<u64>>,
    is_single: bool,
    is_twice: bool,
    tier: Option<String>,
    /// Handed to the simulator as they are.
    passed_on: Vec<String>,
    jobs: usize,
}

fn parse(arguments: &[&str]) -> Result<Options> {
    let mut options = Options {
        jobs: 2,
        ..Options::default()
    };
    let mut arguments = arguments.iter();
    while let Some(argument) = arguments.next() {
        let mut value = || {
            arguments
                .next()
                .copied()
                .with_context(|| format!("{argument} needs a value"))
        };
        match *argument {
            "--seed" => {
                let number = value()?;
                options.seeds = Some(vec![number.parse().with_context(|| format!("--seed {number}"))?]);
                options.is_single = true;
            }
            "--seeds" => {
                let range = value()?;
                let (first, end) = range
                    .split_once("..")
                    .with_context(|| format!("--seeds {range}: not A..B"))?;
                let seeds: Vec<u64> = (first.parse().with_context(|| format!("--seeds {range}"))?
                    ..end.parse().with_context(|| format!("--seeds {range}"))?)
                    .collect();
                ensure!(!seeds.is_empty(), "--seeds {range} is empty");
                options.seeds = Some(seeds);
            }
            "--twice" => options.is_twice = true,
            "--tier" => {
                let tier = value()?;
                ensure!(
                    tier == "all" || TIERS.contains(&tier),
                    "--tier {tier}: not one of {TIERS:?} or all"
                );
                options.tier = Some(tier.to_owned());
            }
            "--until" => {
                let until = value()?;
                until.parse::<u64>().with_context(|| format!("--until {until}"))?;
                options.passed_on.extend(["--until".to_owned(), until.to_owned()]);
            }
            "--trace" => options.passed_on.extend(["--trace".to_owned(), value()?.to_owned()]),
            "--jobs" => {
                let jobs = value()?;
                options.jobs = jobs.parse().with_context(|| format!("--jobs {jobs}"))?;
                ensure!(options.jobs > 0, "--jobs 0 would run nothing");
            }
            option if option.starts_with('-') => bail!("there is no option {option}\n\n{HELP}"),
            file => options.files.push(PathBuf::from(file)),
        }
    }
    Ok(options)
}

/// One seed of one scenario.
#[derive(Clone, Debug)]
struct Run {
    file: PathBuf,
    seed: u64,
}

pub fn run(arguments: &[&str]) -> Result<()> {
    let options = parse(arguments)?;
    let runs = choose_runs(&options)?;
    let binary = build()?;
    let count = runs.len();
    let waiting = Mutex::new(VecDeque::from(runs));
    let failures = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..options.jobs {
            scope.spawn(|| {
                loop {
                    let next = waiting.lock().expect("no worker panics").pop_front();
                    let Some(run) = next else { return };
                    if let Err(error) = run_one(&binary, &run, &options) {
                        println!("{error:#}");
                        failures.lock().expect("no worker panics").push(replay_line(&run));
                    }
                }
            });
        }
    });
    let mut failures = failures.into_inner().expect("no worker panics");
    failures.sort();
    let times = if options.is_twice {
        ", each twice with equal digests"
    } else {
        ""
    };
    if failures.is_empty() {
        println!("sim: {count} runs passed{times}");
        return Ok(());
    }
    bail!(
        "{} of {count} runs failed; replay:\n{}",
        failures.len(),
        failures.join("\n")
    )
}

fn choose_runs(options: &Options) -> Result<Vec<Run>> {
    let files = match options.files.as_slice() {
        [] => command::files_below(&root().join("scenarios"), "toml")?,
        files => files.to_vec(),
    };
    let tier = options.tier.as_deref().unwrap_or("fast");
    let mut runs = Vec::new();
    for file in files {
        let text = std::fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
        let scenario = read_scenario(&text).with_context(|| file.display().to_string())?;
        if options.files.is_empty() && tier != "all" && scenario.tier != tier {
            continue;
        }
        let seeds = options.seeds.clone().unwrap_or(scenario.seeds);
        runs.extend(seeds.into_iter().map(|seed| Run {
            file: file.clone(),
            seed,
        }));
    }
    ensure!(!runs.is_empty(), "there is no scenario of tier {tier}");
    Ok(runs)
}

/// Builds the simulator with its cfg, apart from everything else: the cfg replaces libc's time and entropy functions.
fn build() -> Result<PathBuf> {
    let target = root().join("target/sim");
    let arguments = [
        "build",
        "--quiet",
        "--package",
        "quorate-sim",
        "--profile",
        "sim",
        "--target-dir",
    ];
    command::run(
        command::cargo()
            .env("RUSTFLAGS", "--cfg madsim")
            .args(arguments)
            .arg(&target),
    )?;
    Ok(target.join("sim/quorate-sim"))
}

fn run_one(binary: &Path, run: &Run, options: &Options) -> Result<()> {
    let first = run_process(binary, run, options)?;
    if options.is_single {
        print!("{}", first.text);
    }
    if !first.is_passed {
        bail!("{}\n{}\n", first.tail(), replay_line(run));
    }
    let digest = first
        .value_of("digest")
        .with_context(|| format!("no digest from\n  {}", replay_line(run)))?;
    if options.is_twice {
        let second = run_process(binary, run, options)?;
        let again = second.value_of("digest").unwrap_or("none");
        if digest != again {
            bail!(
                "one seed gave two digests, {digest} and {again}\n{}\n",
                replay_line(run)
            );
        }
    }
    if !options.is_single {
        println!("pass {digest} seed={} {}", run.seed, shown(&run.file));
    }
    Ok(())
}

/// What a run printed, and how it ended.
struct Finished {
    text: String,
    is_passed: bool,
}

impl Finished {
    fn new(output: &Output) -> Self {
        let mut text = String::from_utf8_lossy(&output.stderr).into_owned();
        text.push_str(&String::from_utf8_lossy(&output.stdout));
        let mut finished = Self { text, is_passed: false };
        // Both must agree: an exit code alone would call a simulator that did nothing a success.
        finished.is_passed = output.status.success() && finished.value_of("verdict") == Some("pass");
        finished
    }
    fn value_of(&self, key: &str) -> Option<&str> {
        let mut lines = self.text.lines().rev();
        lines.find_map(|line| line.strip_prefix(key)?.strip_prefix('='))
    }
    fn tail(&self) -> String {
        let lines: Vec<&str> = self.text.lines().collect();
        lines[lines.len().saturating_sub(FAILURE_LINES_MAX)..].join("\n")
    }
}

fn run_process(binary: &Path, run: &Run, options: &Options) -> Result<Finished> {
    let mut command = Command::new(binary);
    command
        .arg(&run.file)
        .args(["--seed", &run.seed.to_string()])
        .args(&options.passed_on);
    let output = command
        .output()
        .with_context(|| format!("start {}", binary.display()))?;
    Ok(Finished::new(&output))
}

fn shown(file: &Path) -> String {
    file.strip_prefix(root()).unwrap_or(file).display().to_string()
}

fn replay_line(run: &Run) -> String {
    format!("  cargo xtask sim {} --seed {}", shown(&run.file), run.seed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt as _;
    use std::process::ExitStatus;

    const SCENARIO: &str = "claim = \"c\"\ntier = \"fast\"\nseeds = { sweep = 3, pinned = [2, 3053] }\n";

    #[test]
    fn a_scenario_runs_its_sweep_and_its_pinned_seeds_once_each() {
        let scenario = read_scenario(SCENARIO).unwrap();
        assert_eq!(scenario.seeds, [1, 2, 3, 3053]);
        assert_eq!(scenario.tier, "fast");
    }

    #[track_caller]
    fn check_refused(text: &str, reason: &str) {
        let error = format!("{:#}", read_scenario(text).unwrap_err());
        assert!(error.contains(reason), "{error}");
    }

    #[test]
    fn a_scenario_that_cannot_be_run_is_refused_with_the_reason() {
        check_refused("claim = ", "no TOML");
        check_refused(&SCENARIO.replace("\"c\"", "\" \""), "has no `claim`");
        check_refused(&SCENARIO.replace("fast", "quick"), "`tier` is \"quick\"");
        check_refused(&SCENARIO.replace("sweep = 3", "sweep = -3"), "-3 is no seed");
        check_refused(&SCENARIO.replace("sweep", "swep"), "`seeds.swep` means nothing");
        check_refused("claim = \"c\"\ntier = \"fast\"\nseeds = {}\n", "`seeds` names none");
    }

    #[test]
    fn options_are_taken_in_any_order_and_mistakes_are_named() {
        let options = parse(&["a.toml", "--twice", "--seeds", "2..4", "--trace", "n2", "b.toml"]).unwrap();
        assert_eq!(options.files, [PathBuf::from("a.toml"), PathBuf::from("b.toml")]);
        assert_eq!(options.seeds, Some(vec![2, 3]));
        assert_eq!(options.passed_on, ["--trace", "n2"]);
        assert!(options.is_twice);
        assert!(
            parse(&["--seeds", "4..2"])
                .unwrap_err()
                .to_string()
                .contains("is empty")
        );
        assert!(parse(&["--bogus"]).unwrap_err().to_string().contains("--bogus"));
    }

    #[test]
    fn a_run_passes_only_when_exit_code_and_verdict_say_so() {
        let finished = |code: i32, stdout: &str| {
            let status = ExitStatus::from_raw(code << 8);
            Finished::new(&Output {
                status,
                stdout: stdout.as_bytes().to_vec(),
                stderr: Vec::new(),
            })
        };
        let passed = finished(0, "claim=c\nseed=1\ndigest=ab12\nverdict=pass\n");
        assert!(passed.is_passed);
        assert_eq!(passed.value_of("digest"), Some("ab12"));
        assert!(!finished(0, "").is_passed);
        assert!(!finished(1, "verdict=pass\n").is_passed);
        assert!(!finished(0, "verdict=fail\n").is_passed);
    }
}
