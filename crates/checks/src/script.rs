//! Script checks: a program's exit code and what it wrote.

use crate::text;
use quorate_rt::{ProcessEnd, ProcessOutput, ProcessSpec, Rt};
use quorate_types::CheckStatus;
use std::time::Duration;

pub async fn run<R: Rt>(rt: &R, args: &[String], timeout: Duration, len_bytes_max: usize) -> (CheckStatus, String) {
    let Some(program) = args.first() else {
        return (CheckStatus::Critical, "the check names no program".to_owned());
    };
    let spec = ProcessSpec {
        argv: args.to_vec(),
        environment: Vec::new(),
        timeout,
        output_len_bytes_max: len_bytes_max,
    };
    result(program, timeout, &rt.run_process(spec).await)
}

fn result(program: &str, timeout: Duration, ended: &ProcessOutput) -> (CheckStatus, String) {
    let kept = String::from_utf8_lossy(&ended.output);
    let output = match ended.output.len() {
        len if len as u64 == ended.output_len_bytes => kept.into_owned(),
        len => format!("Captured {len} of {} bytes\n...\n{kept}", ended.output_len_bytes),
    };
    match &ended.end {
        ProcessEnd::Exited(0) => (CheckStatus::Passing, output),
        ProcessEnd::Exited(1) => (CheckStatus::Warning, output),
        ProcessEnd::Exited(_) | ProcessEnd::Signaled(_) => (CheckStatus::Critical, output),
        ProcessEnd::TimedOut => {
            let text = format!("Timed out ({}) running check\n\n{output}", text::duration(timeout));
            (CheckStatus::Critical, text)
        }
        ProcessEnd::NotStarted(reason) if reason == "no such file or directory" && !program.contains('/') => (
            CheckStatus::Critical,
            format!("exec: {program:?}: executable file not found in $PATH"),
        ),
        ProcessEnd::NotStarted(reason) => (CheckStatus::Critical, format!("fork/exec {program}: {reason}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(end: ProcessEnd, output: &str, len_bytes: u64, want: (CheckStatus, &str)) {
        let ended = ProcessOutput {
            end,
            output: output.as_bytes().to_vec(),
            output_len_bytes: len_bytes,
        };
        let (status, text) = result("/no/such/bin", Duration::from_secs(1), &ended);
        assert_eq!((status, text.as_str()), want);
    }

    #[test]
    fn exit_codes_and_outputs_are_consuls() {
        check(ProcessEnd::Exited(0), "ok", 2, (CheckStatus::Passing, "ok"));
        check(ProcessEnd::Exited(1), "hm", 2, (CheckStatus::Warning, "hm"));
        check(ProcessEnd::Exited(2), "no", 2, (CheckStatus::Critical, "no"));
        check(ProcessEnd::Signaled(9), "", 0, (CheckStatus::Critical, ""));
        let captured = "Captured 2 of 7890 bytes\n...\nxy";
        check(ProcessEnd::Exited(0), "xy", 7890, (CheckStatus::Passing, captured));
        let timed_out = "Timed out (1s) running check\n\nxy";
        check(ProcessEnd::TimedOut, "xy", 2, (CheckStatus::Critical, timed_out));
        let missing = ProcessEnd::NotStarted("no such file or directory".to_owned());
        check(
            missing,
            "",
            0,
            (
                CheckStatus::Critical,
                "fork/exec /no/such/bin: no such file or directory",
            ),
        );
    }
}
