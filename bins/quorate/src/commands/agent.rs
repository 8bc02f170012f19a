//! `agent`: runs a node until it is told to stop.

use std::process::ExitCode;

/// Wiring a node to this process is the agent crate's start; until that exists there is nothing here to run.
pub fn run(_arguments: &[String]) -> ExitCode {
    eprintln!("==> this build has no agent");
    ExitCode::FAILURE
}
