//! Project tasks: `cargo xtask --help` is the index.
//!
//! Each task is a module with its own `HELP` and `run(arguments)`. A task prints what it runs, stops at the first
//! failure with exit code 1, and leaves nothing running behind.
//! Not here: any rule of the product; CI's machine setup beyond packages (`packages`).
#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "tasks drive real processes, files and time; nothing here runs in the simulator"
)]

mod bench;
mod ci;
mod command;
mod fuzz;
mod packages;
mod readme;
mod sim;
mod swim_lab;
mod tidy;

use std::process::ExitCode;

const HELP: &str = "\
cargo xtask TASK [--help]

  ci        all that CI runs, stage by stage
  tidy      the layers of the workspace and the rules of its source
  sim       simulated scenarios, one process per seed
  fuzz      fuzz targets, each for a while
  bench     figures beside the peers
  swim-lab  the gossip pool in virtual time: Lifeguard's experiments
";

type Run = fn(&[&str]) -> anyhow::Result<()>;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let Some((task, arguments)) = arguments.split_first() else {
        eprint!("{HELP}");
        return ExitCode::FAILURE;
    };
    let (help, run): (&str, Run) = match *task {
        "ci" => (ci::HELP, ci::run),
        "tidy" => (tidy::HELP, tidy::run),
        "sim" => (sim::HELP, sim::run),
        "fuzz" => (fuzz::HELP, fuzz::run),
        "bench" => (bench::HELP, bench::run),
        "swim-lab" => (swim_lab::HELP, swim_lab::run),
        "help" | "-h" | "-help" | "--help" => {
            print!("{HELP}");
            return ExitCode::SUCCESS;
        }
        other => {
            eprintln!("there is no task {other:?}\n\n{HELP}");
            return ExitCode::FAILURE;
        }
    };
    if arguments.iter().any(|argument| matches!(*argument, "-h" | "--help")) {
        print!("{help}");
        return ExitCode::SUCCESS;
    }
    match run(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{task}: {error:#}");
            ExitCode::FAILURE
        }
    }
}
