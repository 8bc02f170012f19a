//! `cargo xtask sim`: builds the simulator, and runs one process per scenario and seed.
//!
//! The simulator's last lines are its contract with this task: `claim=`, `seed=`, `digest=`, `verdict=pass|fail`, and exit
//! code 0 or 1. A process per seed keeps state of one run (allocator, interned names, thread-locals) out of the next.

use crate::command::{self, root};
use anyhow::{Context as _, Result, bail, ensure};
use std::collections::VecDeque;
use std::io::{self, BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

pub const HELP: &str = "\
cargo xtask sim [FILE...] [--seed N] [--seeds A..B] [--minutes M] [--twice] [--tier T] [--until MS] [--trace NODE] [--jobs N]
cargo xtask sim diverge FILE --seed N

Runs scenarios (all of tier fast without FILE), each with the seeds its file asks for: 1..=sweep and those pinned.
`diverge` runs one seed in two processes and shows the first event in which they differ.

  --seed N       this seed only; its whole output is shown
  --seeds A..B   these seeds, B left out
  --minutes M    begin no run after M minutes; seeds go up without end from 1, or from A of --seeds
  --twice        each seed in two processes, whose digests must be equal
  --tier T       without FILE: fast, slow, soak or all
  --until MS     stop after MS milliseconds of virtual time
  --trace NODE   show what this node did
  --jobs N       processes at a time (2)
";

const TIERS: &[&str] = &["fast", "slow", "soak"];
/// Lines of a failed run that are shown; the replay line brings back the rest.
const FAILURE_LINES_MAX: usize = 60;
/// Events that two runs have in common, shown before the one in which they differ.
const COMMON_EVENTS_MAX: usize = 12;

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
    minutes: Option<u64>,
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
            "--minutes" => {
                let minutes = value()?;
                options.minutes = Some(minutes.parse().with_context(|| format!("--minutes {minutes}"))?);
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
#[derive(Clone, Debug, PartialEq, Eq)]
struct Run {
    file: PathBuf,
    seed: u64,
}

pub fn run(arguments: &[&str]) -> Result<()> {
    if let ["diverge", arguments @ ..] = arguments {
        return diverge(&parse(arguments)?);
    }
    let options = parse(arguments)?;
    let runs = choose_runs(&options)?;
    let binary = build()?;
    let waiting = Mutex::new((runs_in_time(runs, &options), 0_usize));
    let failures = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..options.jobs {
            scope.spawn(|| {
                loop {
                    let next = {
                        let mut waiting = waiting.lock().expect("no worker panics");
                        let next = waiting.0.next();
                        waiting.1 += usize::from(next.is_some());
                        next
                    };
                    let Some(run) = next else { return };
                    if let Err(error) = run_one(&binary, &run, &options) {
                        println!("{error:#}");
                        failures.lock().expect("no worker panics").push(replay_line(&run));
                    }
                }
            });
        }
    });
    let (_, count) = waiting.into_inner().expect("no worker panics");
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

/// The runs that were chosen; with a time limit, each of their files with one seed more, round after round.
fn runs_in_time(runs: Vec<Run>, options: &Options) -> Box<dyn Iterator<Item = Run> + Send> {
    let Some(minutes) = options.minutes else {
        return Box::new(runs.into_iter());
    };
    let ends_at = Instant::now() + Duration::from_secs(minutes * 60);
    let first = options.seeds.as_ref().and_then(|seeds| seeds.first().copied());
    let mut files: Vec<PathBuf> = runs.into_iter().map(|run| run.file).collect();
    files.dedup();
    let seeds = first.unwrap_or(1)..;
    let runs = seeds.flat_map(move |seed| files.clone().into_iter().map(move |file| Run { file, seed }));
    Box::new(runs.take_while(move |_| Instant::now() < ends_at))
}

/// What two runs of one seed told.
#[derive(Debug, PartialEq, Eq)]
enum Compared {
    /// So many lines, all of them equal.
    Equal(usize),
    /// What came before, and what each told then, if anything.
    Differ {
        common: VecDeque<String>,
        told: [Option<String>; 2],
    },
}

fn compare(
    left: impl Iterator<Item = io::Result<String>>,
    right: impl Iterator<Item = io::Result<String>>,
) -> Result<Compared> {
    let (mut left, mut right) = (left.fuse(), right.fuse());
    let mut common = VecDeque::new();
    for count in 0.. {
        let told = [left.next().transpose()?, right.next().transpose()?];
        match told {
            [None, None] => return Ok(Compared::Equal(count)),
            [Some(left), Some(right)] if left == right => {
                if common.len() == COMMON_EVENTS_MAX {
                    common.pop_front();
                }
                common.push_back(left);
            }
            told => return Ok(Compared::Differ { common, told }),
        }
    }
    unreachable!("a run tells less than usize::MAX lines")
}

fn diverge(options: &Options) -> Result<()> {
    let ([file], Some([seed])) = (options.files.as_slice(), options.seeds.as_deref()) else {
        bail!("sim diverge needs one FILE and one --seed N\n\n{HELP}");
    };
    let binary = build()?;
    let start = || {
        let mut command = Command::new(&binary);
        command
            .arg(file)
            .args(["--seed", &seed.to_string(), "--events"])
            .args(&options.passed_on);
        command.stdout(Stdio::piped()).stderr(Stdio::null());
        command.spawn().with_context(|| format!("start {}", binary.display()))
    };
    let mut children = [start()?, start()?];
    let [left, right] = children
        .each_mut()
        .map(|child| BufReader::new(child.stdout.take().expect("it was piped")).lines());
    let compared = compare(left, right);
    for child in &mut children {
        // One that has ended already is no failure.
        let _ = child.kill();
        child.wait()?;
    }
    match compared? {
        Compared::Equal(count) => {
            println!("sim: two runs of seed {seed} told the same {count} lines");
            Ok(())
        }
        Compared::Differ { common, told } => {
            for line in &common {
                println!("  {line}");
            }
            for (sign, line) in ["-", "+"].into_iter().zip(&told) {
                println!("{sign} {}", line.as_deref().unwrap_or("(nothing more)"));
            }
            bail!("two runs of seed {seed} of {} differ", shown(file))
        }
    }
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
    fn the_first_difference_of_two_runs_is_found_with_what_came_before() {
        let lines = |text: &str| text.split(' ').map(|line| Ok(line.to_owned())).collect::<Vec<_>>();
        let compare = |left: &str, right: &str| compare(lines(left).into_iter(), lines(right).into_iter()).unwrap();
        assert_eq!(compare("a b c", "a b c"), Compared::Equal(3));
        let differ = |common: &[&str], told: [Option<&str>; 2]| Compared::Differ {
            common: common.iter().map(|line| (*line).to_owned()).collect(),
            told: told.map(|line| line.map(str::to_owned)),
        };
        assert_eq!(
            compare("a b c d", "a b x d"),
            differ(&["a", "b"], [Some("c"), Some("x")])
        );
        assert_eq!(compare("a b", "a"), differ(&["a"], [Some("b"), None]));
    }

    #[test]
    fn with_a_time_limit_seeds_go_up_round_after_round() {
        let run = |file: &str, seed: u64| Run {
            file: PathBuf::from(file),
            seed,
        };
        let chosen = vec![run("a", 1), run("a", 2), run("b", 1)];
        let options = parse(&["--minutes", "5", "--seeds", "7..8"]).unwrap();
        let runs: Vec<_> = runs_in_time(chosen.clone(), &options).take(4).collect();
        assert_eq!(runs, [run("a", 7), run("b", 7), run("a", 8), run("b", 8)]);
        let options = parse(&["--minutes", "0"]).unwrap();
        assert_eq!(runs_in_time(chosen.clone(), &options).count(), 0);
        let options = parse(&[]).unwrap();
        assert_eq!(runs_in_time(chosen, &options).count(), 3);
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
