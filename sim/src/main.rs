//! Runs the simulator: see the library.

use std::process::ExitCode;

#[cfg(not(madsim))]
fn main() -> ExitCode {
    eprintln!("built without --cfg madsim; run it with `cargo xtask sim`");
    ExitCode::from(2)
}

#[cfg(madsim)]
fn main() -> ExitCode {
    match simulator::run(std::env::args().skip(1).collect()) {
        Ok(code) => code,
        Err(err) => {
            eprintln!("{err:#}");
            ExitCode::from(2)
        }
    }
}

#[cfg(madsim)]
mod simulator {
    use anyhow::{Context as _, Result, bail};
    use quorate_sim::runner::{self, Options, Report};
    use quorate_sim::scenario::Scenario;
    use quorate_sim::world::World;
    use std::fmt;
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::process::ExitCode;
    use std::time::Duration;
    use tracing_subscriber::fmt::format::Writer;
    use tracing_subscriber::fmt::time::FormatTime;

    const USAGE: &str = "\
usage: quorate-sim FILE --seed N [--trace NODE]... [--until MS] [--sabotage NAME] [--log LEVEL] [--events]
       quorate-sim self-check [--seed N] [--trace NODE]...";

    /// Virtual time and node instead of the machine's.
    struct WorldTime;

    impl FormatTime for WorldTime {
        fn format_time(&self, writer: &mut Writer<'_>) -> fmt::Result {
            match World::where_and_when() {
                Some((node, elapsed)) => write!(writer, "{:12.6} {node}", elapsed.as_secs_f64()),
                None => writer.write_str("           -"),
            }
        }
    }

    pub fn run(arguments: Vec<String>) -> Result<ExitCode> {
        let mut file = None;
        let mut options = Options::default();
        let mut arguments = arguments.into_iter();
        while let Some(argument) = arguments.next() {
            if !argument.starts_with("--") && file.is_none() {
                file = Some(argument);
                continue;
            }
            if argument == "--events" {
                options.tells_events = true;
                continue;
            }
            let value = arguments
                .next()
                .with_context(|| format!("{argument} needs a value\n{USAGE}"))?;
            let number = || value.parse().with_context(|| format!("{argument} {value}"));
            match argument.as_str() {
                "--seed" => options.seed = number()?,
                "--trace" => options.traced.push(value),
                "--until" => options.until = Some(Duration::from_millis(number()?)),
                "--sabotage" => options.sabotage = Some(value.parse()?),
                "--log" => {
                    let level: tracing::Level = value.parse().with_context(|| format!("--log {value}"))?;
                    let log = tracing_subscriber::fmt()
                        .with_max_level(level)
                        .with_timer(WorldTime)
                        .with_ansi(false);
                    log.with_writer(std::io::stderr).init();
                }
                _ => bail!("{argument}: no such flag\n{USAGE}"),
            }
        }
        let file = file.with_context(|| USAGE.to_owned())?;
        if file == "self-check" {
            let digest = quorate_sim::self_check::run(options.seed, &options.traced)?;
            println!("digest={digest:016x}");
            return Ok(ExitCode::SUCCESS);
        }
        run_scenario(&file, &options)
    }

    fn run_scenario(file: &str, options: &Options) -> Result<ExitCode> {
        // The scenario is read from the real disk, before there is a world.
        #[allow(clippy::disallowed_methods)]
        let text = std::fs::read_to_string(file).with_context(|| format!("read {file}"))?;
        let scenario = Scenario::parse(file, &text)?;
        let (claim, seed) = (scenario.claim.clone(), options.seed);
        // A panic of an agent unwinds through the executor; the world is not used again.
        let ended = catch_unwind(AssertUnwindSafe(|| runner::run(scenario, options)));
        let (digest, is_passed) = match ended {
            Ok(report) => show(&claim, file, seed, &report?),
            Err(_) => {
                println!(
                    "FAILED {claim}\n  seed {seed}: an agent panicked, see above\n  {}",
                    replay(file, seed)
                );
                ("none".to_owned(), false)
            }
        };
        println!("claim={claim}\nseed={seed}\ndigest={digest}");
        println!("verdict={}", if is_passed { "pass" } else { "fail" });
        Ok(if is_passed {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        })
    }

    fn replay(file: &str, seed: u64) -> String {
        format!("cargo xtask sim {file} --seed {seed}")
    }

    fn show(claim: &str, file: &str, seed: u64, report: &Report) -> (String, bool) {
        let counts = report.counts.iter().map(|(mark, count)| format!("{mark}={count}"));
        let counts = counts.collect::<Vec<_>>().join(" ");
        if let Some(broken) = &report.broken {
            println!("FAILED {claim}");
            println!("  seed {seed}, at {:.3} s of virtual time", broken.at.as_secs_f64());
            println!("  {}", broken.what);
            println!(
                "nodes at {:.3} s:\n{}",
                report.elapsed.as_secs_f64(),
                report.views.trim_end()
            );
            println!("replay: {}", replay(file, seed));
        } else if report.was_cut_short {
            println!("stopped by --until, nothing broken so far\n{}", report.views.trim_end());
        }
        println!("seen: {counts}");
        println!("virtual_ms={}", report.elapsed.as_millis());
        (format!("{:016x}", report.digest), report.broken.is_none())
    }
}
