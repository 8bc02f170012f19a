//! `swim-lab`: the lab's experiments from the command line. `cargo xtask swim-lab` builds and runs it.
//!
//! In: a command and its options. Out: a report as text, and as a page and as JSON when files for them are named. The
//! exit code says whether what was asked for could be done; `check`'s also whether its bounds held.
//! Not here: the experiments (`paper`, `stress`). Real time is read here, and only to say how fast the lab is.

use quorate_rt::production::{TokioRt, block_on, process_cpu_time};
use quorate_rt::{Disk as _, Rt as _};
use quorate_swim_lab::paper::{ALPHAS, BASE, BETAS, DEFAULT, Parts, Setting, Tuning, interval_grid, threshold_grid};
use quorate_swim_lab::report::{self, Chart, ChartKind, Goal, Report, Swept, Table, figure, fp_percents};
use quorate_swim_lab::stress::{Joined, Trouble, join, lossy, steady};
use quorate_swim_lab::sweep::{Plan, sweep};
use quorate_swim_lab::world::Block;
use quorate_swim_lab::{page, text};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;
use thiserror::Error;

const HELP: &str = "\
swim-lab COMMAND [OPTION...]

Runs many members of the gossip pool in virtual time. Equal options and seeds give equal figures, whatever the threads.

  sweep     Lifeguard's configurations and ours at its timings: false positives, detection, load (128 members)
  tuning    false positives and detection at alpha {2,4,5} and beta {2,4,6}
  own       faster settings of our own, and what they cost
  lossy     1 % of the members lose packets: are they removed, is nobody else, does the pool settle (1,000 members)
  scale     simulated seconds per second of a quiet pool, on one thread (10,000 members)
  join      all join through one member: until each list is complete (2,000 members)
  check     a small sample of it all against wide bounds; exit code 1 when one is broken

  --config NAME[,NAME]    sweep, lossy: swim, lha-probe, lha-suspicion, buddy, lifeguard, quorate (all of them)
  --sample N              Interval runs of each row, drawn from the 4,320 (432; `all`: each)
  --threshold N           Threshold runs of each row, drawn from the 540 (108; `all`: each)
  --block loops|sends     where a blocked member stops: its loop, at its first ping (as memberlist; the default), or only
                          what it sends and receives, while it goes on probing unaware (harsher)
  --members N             lossy, scale, join
  --seconds N             scale: simulated seconds (30); join: the limit (120)
  --threads N             (2)
  --seed N                (1)
  --html FILE             the report as one page with charts
  --json FILE             the report's numbers
";

#[derive(Debug, Error)]
enum Refused {
    #[error("there is no command {0:?}\n\n{HELP}")]
    Command(String),
    #[error("there is no option {0:?}\n\n{HELP}")]
    Option(String),
    #[error("{option} needs a value")]
    Absent { option: String },
    #[error("{option} {value:?}: {why}")]
    Value {
        option: String,
        value: String,
        why: &'static str,
    },
    #[error("start the lab: {0}")]
    Start(std::io::Error),
    #[error("read the processor clock: {0}")]
    Clock(std::io::Error),
    #[error("write {path}: {source}")]
    Write { path: String, source: std::io::Error },
    #[error("{0} of the bounds are broken")]
    Bounds(usize),
}

#[derive(Clone, Debug)]
struct Options {
    parts: Vec<Parts>,
    sample: usize,
    threshold: usize,
    members: Option<u32>,
    seconds: Option<u64>,
    block: Block,
    threads: usize,
    seed: u64,
    html: Option<PathBuf>,
    json: Option<PathBuf>,
}

impl Options {
    fn parse(arguments: &[String]) -> Result<Self, Refused> {
        let mut options = Self {
            parts: Parts::ALL.to_vec(),
            sample: 432,
            threshold: 108,
            members: None,
            seconds: None,
            block: Block::Loops,
            threads: 2,
            seed: 1,
            html: None,
            json: None,
        };
        let mut arguments = arguments.iter();
        while let Some(option) = arguments.next() {
            let value = arguments
                .next()
                .ok_or_else(|| Refused::Absent { option: option.clone() });
            let refused = |value: &str, why| Refused::Value {
                option: option.clone(),
                value: value.to_owned(),
                why,
            };
            let number = |value: &String| value.parse::<u64>().map_err(|_| refused(value, "not a number"));
            let count = |value: &String| match value.as_str() {
                "all" => Ok(usize::MAX),
                _ => number(value).map(|count| usize::try_from(count).unwrap_or(usize::MAX)),
            };
            match option.as_str() {
                "--config" => {
                    let value = value?;
                    let parts = value.split(',').map(Parts::parse).collect::<Option<Vec<_>>>();
                    options.parts = parts.ok_or_else(|| refused(value, "no configuration has this name"))?;
                }
                "--sample" => options.sample = count(value?)?,
                "--threshold" => options.threshold = count(value?)?,
                "--block" => {
                    options.block = match value?.as_str() {
                        "loops" => Block::Loops,
                        "sends" => Block::Sends,
                        other => return Err(refused(other, "not loops or sends")),
                    };
                }
                "--members" => {
                    let value = value?;
                    let members = number(value)?;
                    if !(2..=100_000).contains(&members) {
                        return Err(refused(value, "not in 2..=100000"));
                    }
                    options.members = u32::try_from(members).ok();
                }
                "--seconds" => options.seconds = Some(number(value?)?),
                "--threads" => options.threads = count(value?)?.clamp(1, 256),
                "--seed" => options.seed = number(value?)?,
                "--html" => options.html = Some(PathBuf::from(value?)),
                "--json" => options.json = Some(PathBuf::from(value?)),
                _ => return Err(Refused::Option(option.clone())),
            }
        }
        Ok(options)
    }
    fn plan(&self) -> Plan {
        Plan {
            seed: self.seed,
            threads: self.threads,
            interval_count: self.sample.min(interval_grid().len()),
            threshold_count: self.threshold.min(threshold_grid().len()),
        }
    }
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let is_help = |argument: &String| matches!(argument.as_str(), "help" | "-h" | "--help");
    if arguments.is_empty() || arguments.iter().any(is_help) {
        print!("{HELP}");
        return if arguments.is_empty() {
            ExitCode::FAILURE
        } else {
            ExitCode::SUCCESS
        };
    }
    let ran = block_on(1, |rt| async move { run(&rt, &arguments).await });
    match ran.map_err(Refused::Start).and_then(|ran| ran) {
        Ok(()) => ExitCode::SUCCESS,
        Err(refused) => {
            eprintln!("swim-lab: {refused}");
            ExitCode::FAILURE
        }
    }
}

async fn run(rt: &TokioRt, arguments: &[String]) -> Result<(), Refused> {
    let options = Options::parse(&arguments[1..])?;
    let mut report = match arguments[0].as_str() {
        "sweep" => sweep_report(rt, &options).await?,
        "tuning" => tuning_report(rt, &options).await?,
        "own" => own_report(rt, &options).await?,
        "lossy" => lossy_report(rt, &options),
        "scale" => scale_report(&options)?,
        "join" => join_report(&options),
        "check" => check_report(rt, &options).await?,
        other => return Err(Refused::Command(other.to_owned())),
    };
    report.command = format!("cargo xtask swim-lab {}", arguments.join(" "));
    print!("{}", text::render(&report));
    if let Some(path) = &options.html {
        write(rt, path, page::render(&report)).await?;
    }
    if let Some(path) = &options.json {
        let json = serde_json::to_string_pretty(&report).expect("a report has text keys and finite numbers");
        write(rt, path, json).await?;
    }
    let broken = report.goals.iter().filter(|goal| !goal.is_reached).count();
    if arguments[0] == "check" && broken > 0 {
        return Err(Refused::Bounds(broken));
    }
    Ok(())
}

async fn write(rt: &TokioRt, path: &Path, text: String) -> Result<(), Refused> {
    let written = rt.disk().replace(path, text.into()).await;
    written.map_err(|source| Refused::Write {
        path: path.display().to_string(),
        source,
    })
}

fn cpu_time() -> Result<Duration, Refused> {
    process_cpu_time().map_err(Refused::Clock)
}

/// One row, with a line on how long it took.
async fn swept(rt: &TokioRt, parts: Parts, tuning: Tuning, setting: &Setting, plan: Plan) -> Result<Swept, Refused> {
    let (started_at, cpu_before) = (rt.now(), cpu_time()?);
    let row = sweep(rt, setting, plan).await;
    let seconds = (rt.now() - started_at).as_secs_f64();
    let cpu_seconds = (cpu_time()? - cpu_before).as_secs_f64();
    let runs = row.interval_runs + row.threshold_runs;
    eprintln!(
        "{}: {runs} runs in {seconds:.1} s on {} threads, {cpu_seconds:.1} s of processors; FP {} FP- {}",
        row.label, plan.threads, row.fp, row.fp_healthy
    );
    Ok((parts, tuning, row))
}

fn notes(plan: Plan) -> Vec<String> {
    vec![
        format!(
            "{} of 4320 Interval runs and {} of 540 Threshold runs of each row, seed {}.",
            plan.interval_count, plan.threshold_count, plan.seed
        ),
        "FP: a member without an anomaly held for failed, counted at each member; FP-: at members without one. a: alpha \
         (suspicion_mult), b: beta (suspicion_max_timeout_mult). Percentages are of SWIM at alpha 5."
            .to_owned(),
    ]
}

fn with_rows(title: &str, plan: Plan, rows: Vec<Swept>, goals: Vec<Goal>) -> Report {
    Report {
        title: title.to_owned(),
        notes: notes(plan),
        tables: report::paper_tables(&rows),
        charts: report::paper_charts(&rows),
        goals,
        rows: rows.into_iter().map(|(_, _, row)| row).collect(),
        ..Report::default()
    }
}

/// The baseline comes first and is always run: the rest is told as shares of it.
async fn baseline(rt: &TokioRt, plan: Plan, block: Block) -> Result<Swept, Refused> {
    let setting = Setting::new(Parts::Swim, BASE).with_block(block);
    swept(rt, Parts::Swim, BASE, &setting, plan).await
}

async fn sweep_report(rt: &TokioRt, options: &Options) -> Result<Report, Refused> {
    let plan = options.plan();
    let mut rows = vec![baseline(rt, plan, options.block).await?];
    let mut goals = Vec::new();
    for parts in &options.parts {
        let tunings: &[Tuning] = match parts {
            Parts::Swim => &[],
            Parts::LhaProbe | Parts::LhaSuspicion | Parts::Buddy => &[BASE],
            Parts::Lifeguard => &[BASE, DEFAULT],
            Parts::Quorate => &[DEFAULT],
        };
        for tuning in tunings {
            let setting = Setting::new(*parts, *tuning).with_block(options.block);
            let row = swept(rt, *parts, *tuning, &setting, plan).await?;
            if *parts == Parts::Quorate {
                goals.extend(report::default_goals(&row.2, &rows[0].2));
            }
            rows.push(row);
        }
        if *parts == Parts::Quorate {
            let row = swept_own(rt, own_faster().with_block(options.block), plan).await?;
            goals.extend(report::own_goals(&row.2, &rows[0].2));
            rows.push(row);
        }
    }
    Ok(with_rows("Lifeguard's experiments", plan, rows, goals))
}

async fn tuning_report(rt: &TokioRt, options: &Options) -> Result<Report, Refused> {
    let plan = options.plan();
    let parts: Vec<Parts> = if options.parts.len() == Parts::ALL.len() {
        vec![Parts::Lifeguard, Parts::Quorate]
    } else {
        options.parts.clone()
    };
    let mut rows = vec![baseline(rt, plan, options.block).await?];
    for parts in parts {
        for alpha in ALPHAS {
            for beta in BETAS {
                let tuning = Tuning { alpha, beta };
                let setting = Setting::new(parts, tuning).with_block(options.block);
                rows.push(swept(rt, parts, tuning, &setting, plan).await?);
            }
        }
    }
    Ok(with_rows("Alpha and beta", plan, rows, Vec::new()))
}

fn faster(alpha: u32, beta: u32, probe_interval_ms: u64, probe_timeout_ms: u64) -> Setting {
    let mut setting = Setting::new(Parts::Quorate, Tuning { alpha, beta });
    setting.config.probe_interval = Duration::from_millis(probe_interval_ms);
    setting.config.probe_timeout = Duration::from_millis(probe_timeout_ms);
    setting.label = format!("{} p{probe_interval_ms}/{probe_timeout_ms}", setting.label);
    setting
}
/// What we would choose to detect within 5 s (median) and 9 s (99.9 %).
fn own_faster() -> Setting {
    faster(3, 6, 500, 250)
}
/// Candidates for settings of our own.
fn own_settings() -> Vec<Setting> {
    vec![
        faster(2, 6, 1000, 500),
        own_faster(),
        faster(4, 6, 500, 250),
        faster(3, 8, 500, 300),
    ]
}
async fn swept_own(rt: &TokioRt, setting: Setting, plan: Plan) -> Result<Swept, Refused> {
    let tuning = Tuning {
        alpha: setting.config.suspicion_mult,
        beta: setting.config.suspicion_max_timeout_mult,
    };
    swept(rt, Parts::Quorate, tuning, &setting, plan).await
}

async fn own_report(rt: &TokioRt, options: &Options) -> Result<Report, Refused> {
    let plan = options.plan();
    let mut rows = vec![baseline(rt, plan, options.block).await?];
    let mut goals = Vec::new();
    for setting in own_settings() {
        let row = swept_own(rt, setting, plan).await?;
        goals.extend(report::own_goals(&row.2, &rows[0].2));
        rows.push(row);
    }
    let mut report = with_rows("Settings of our own", plan, rows, goals);
    report.notes.push(
        "p: probe interval and timeout in ms. The paper's figures are those at its default, alpha 4, beta 6."
            .to_owned(),
    );
    Ok(report)
}

fn lossy_report(rt: &TokioRt, options: &Options) -> Report {
    let members = options.members.unwrap_or(1000);
    let parts: Vec<Parts> = if options.parts.len() == Parts::ALL.len() {
        vec![Parts::Lifeguard, Parts::Quorate]
    } else {
        options.parts.clone()
    };
    let mut outcomes = Vec::new();
    for parts in parts {
        for trouble in Trouble::ALL {
            let started_at = rt.now();
            outcomes.push(lossy(&Setting::new(parts, DEFAULT), trouble, members, options.seed));
            eprintln!(
                "{}, {}: {:.1} s",
                parts.name(),
                trouble.name(),
                (rt.now() - started_at).as_secs_f64()
            );
        }
    }
    let ours = outcomes.iter().filter(|outcome| outcome.label.starts_with("Quorate"));
    Report {
        title: "Lossy members".to_owned(),
        notes: vec![
            "300 s. Removed: held for dead by more than half of the healthy members. A flap: a healthy member's event \
             that a faulty one came back, or failed once more."
                .to_owned(),
        ],
        goals: ours.flat_map(report::lossy_goals).collect(),
        tables: vec![report::lossy_table(&outcomes)],
        lossy: outcomes,
        ..Report::default()
    }
}

/// Time is that of the processor, so that whatever else runs does not count.
fn scale_report(options: &Options) -> Result<Report, Refused> {
    let members = options.members.unwrap_or(10_000);
    let seconds = options.seconds.unwrap_or(30);
    let built_at = cpu_time()?;
    let mut world = steady(&Setting::new(Parts::Quorate, DEFAULT), members, options.seed);
    // What starting left in queues is not the steady state.
    world.run_for(Duration::from_secs(30));
    let started_at = cpu_time()?;
    let built = (started_at - built_at).as_secs_f64();
    let before = world.totals();
    world.run_for(Duration::from_secs(seconds));
    let took = (cpu_time()? - started_at).as_secs_f64();
    let totals = world.totals().since(&before);
    let speed = seconds as f64 / took;
    let table = Table {
        title: "Steady state on one thread".to_owned(),
        head: [
            "members",
            "simulated s",
            "CPU s",
            "simulated s a second of a core",
            "calls into members a second",
            "messages a member and s",
            "to start, s",
        ]
        .map(str::to_owned)
        .into(),
        rows: vec![vec![
            members.to_string(),
            seconds.to_string(),
            figure(took),
            figure(speed),
            format!("{:.0}", totals.steps as f64 / took),
            figure(totals.messages() as f64 / f64::from(members) / seconds as f64),
            figure(built),
        ]],
    };
    Ok(Report {
        title: "Scale".to_owned(),
        tables: vec![table],
        goals: vec![Goal::at_least(
            &format!("simulated seconds a second of a core, {members} members"),
            speed,
            20.0,
            "",
        )],
        ..Report::default()
    })
}

fn join_report(options: &Options) -> Report {
    let limit = Duration::from_secs(options.seconds.unwrap_or(120));
    let setting = Setting::new(Parts::Quorate, DEFAULT);
    let joined: Vec<Joined> = vec![join(&setting, options.members.unwrap_or(2000), limit, options.seed)];
    let label = |joined: &Joined| joined.members.to_string();
    Report {
        title: "Mass join".to_owned(),
        tables: vec![report::join_table(&joined)],
        charts: vec![Chart {
            title: "Time until lists are complete".to_owned(),
            kind: ChartKind::Bars,
            x: String::new(),
            y: "seconds".to_owned(),
            is_log: false,
            labels: joined.iter().map(label).collect(),
            series: vec![
                ("half".to_owned(), joined.iter().map(|j| j.half_complete_s).collect()),
                ("99 %".to_owned(), joined.iter().map(|j| j.p99_complete_s).collect()),
                ("all".to_owned(), joined.iter().map(|j| j.all_complete_s).collect()),
            ],
        }],
        goals: joined.iter().map(report::join_goal).collect(),
        joined,
        ..Report::default()
    }
}

/// Bounds wide enough that only a broken rule breaks them.
async fn check_report(rt: &TokioRt, options: &Options) -> Result<Report, Refused> {
    let plan = Plan {
        interval_count: options.sample.min(24),
        threshold_count: options.threshold.min(12),
        ..options.plan()
    };
    let mut rows = Vec::new();
    for (parts, tuning) in [(Parts::Swim, BASE), (Parts::Lifeguard, BASE), (Parts::Quorate, DEFAULT)] {
        rows.push(swept(rt, parts, tuning, &Setting::new(parts, tuning), plan).await?);
    }
    let (swim, lifeguard, ours) = (&rows[0].2, &rows[1].2, &rows[2].2);
    let mut goals = vec![
        Goal::within("SWIM's FP a run", swim.fp_per_run(), 4.0, 800.0, ""),
        Goal::at_most("Lifeguard's FP, of SWIM's", fp_percents(lifeguard, swim).0, 30.0, " %"),
        Goal::at_most("our FP, of SWIM's", fp_percents(ours, swim).0, 10.0, " %"),
        Goal::at_most("our FP-, of SWIM's", fp_percents(ours, swim).1, 10.0, " %"),
        Goal::at_most("our bytes, of SWIM's", report::bytes_percent(ours, swim), 150.0, " %"),
        Goal::at_most(
            "our first detection, median",
            ours.first.map(|q| q.median_s),
            14.0,
            " s",
        ),
    ];
    let joined = join(
        &Setting::new(Parts::Quorate, DEFAULT),
        options.members.unwrap_or(200),
        Duration::from_secs(120),
        options.seed,
    );
    goals.push(Goal::at_most("200 members join", joined.all_complete_s, 60.0, " s"));
    let mut report = with_rows("A sample against wide bounds", plan, rows, goals);
    report.tables.push(report::join_table(std::slice::from_ref(&joined)));
    report.joined = vec![joined];
    Ok(report)
}
