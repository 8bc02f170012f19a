//! `quorate`: the agent, and the command line that talks to one.
//!
//! Parses arguments, calls, prints, exits; what a command does with an agent goes through its public HTTP API.
//! Exit codes: 0 done, 1 failed, 2 nothing matched (`members`), 127 no such command.
//! Not here: any rule of the agent (`quorate_agent`), any request's form (`quorate_api_client`).

mod api;
mod commands;
mod flags;
mod logging;
mod report;
mod table;

use commands::Context;
use quorate_rt::production;
use report::Report;
use std::process::ExitCode;

/// Threads of a command's runtime: it does one thing after another.
const COMMAND_THREADS: usize = 1;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.first().map(String::as_str) {
        Some("agent") => commands::agent::run(&arguments[1..]),
        _ => run_command(&arguments).print(),
    }
}

fn run_command(arguments: &[String]) -> Report {
    let version_asked = [String::from("version")];
    let arguments = match arguments.first().map(String::as_str) {
        Some("-v" | "-version" | "--version") => &version_asked[..],
        _ => arguments,
    };
    let Some((command, rest)) = commands::find(arguments) else {
        return overview(arguments);
    };
    let flags = match command.parse(rest) {
        Ok(flags) => flags,
        Err(report) => return report,
    };
    let run = async |rt| command.run(&Context { rt, flags }).await;
    production::block_on(COMMAND_THREADS, run).unwrap_or_else(|error| Report::failure(format!("start: {error}")))
}

/// What is there, for those who named nothing that is. A group such as `kv` shows its own commands and exits with 1.
fn overview(arguments: &[String]) -> Report {
    let first = arguments.first().map(String::as_str);
    let group = first.map(|first| format!("{first} "));
    let is_in_group = |name: &str| group.as_ref().is_some_and(|group| name.starts_with(group));
    let mut rows: Vec<Vec<String>> = Vec::new();
    for command in commands::COMMANDS.iter().filter(|command| is_in_group(command.name)) {
        rows.push(table::row([&format!("    {}", command.name), command.synopsis]));
    }
    let is_help = arguments
        .iter()
        .any(|argument| matches!(argument.as_str(), "-h" | "-help" | "--help"));
    let (usage, code) = if rows.is_empty() {
        rows.push(table::row(["    agent", "Runs an agent"]));
        for command in commands::COMMANDS {
            rows.push(table::row([&format!("    {}", command.name), command.synopsis]));
        }
        ("Usage: quorate [--version] [--help] <command> [<args>]".to_owned(), 127)
    } else {
        (
            format!(
                "Usage: quorate {} <subcommand> [options] [args]",
                first.unwrap_or_default()
            ),
            1,
        )
    };
    let text = format!("{usage}\n\nAvailable commands are:\n{}\n", table::aligned(&rows, 4));
    if is_help {
        Report::text(text)
    } else {
        Report {
            stderr: text,
            code,
            ..Report::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(line: &str) -> Report {
        run_command(&line.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn no_command_and_an_unknown_one_exit_with_127_and_help_on_stderr() {
        for line in ["", "bogus", "intention list"] {
            let report = run(line);
            assert_eq!((report.code, report.stdout.as_slice()), (127, &b""[..]), "{line}");
            assert!(report.stderr.contains("    members  "), "{}", report.stderr);
        }
    }

    #[test]
    fn a_group_alone_shows_its_commands_and_exits_with_1() {
        let report = run("kv");
        assert_eq!(report.code, 1);
        assert!(
            report.stderr.contains("kv put") && !report.stderr.contains("members"),
            "{}",
            report.stderr
        );
        assert_eq!(run("kv -h").code, 0);
        assert_eq!(run("--help").code, 0);
    }

    #[test]
    fn the_version_is_shown_by_command_and_by_flag() {
        let shown = String::from_utf8(run("version").stdout).unwrap();
        assert!(
            shown.starts_with(concat!(
                "Quorate v",
                env!("CARGO_PKG_VERSION"),
                "\nConsul API v1.20 compatible\nProtocol 2 spoken"
            )),
            "{shown}"
        );
        for flag in ["-v", "--version", "-version"] {
            assert_eq!(String::from_utf8(run(flag).stdout).unwrap(), shown);
        }
    }

    #[test]
    fn keys_are_32_bytes_and_never_the_same() {
        let key = run("keygen").stdout;
        assert_eq!(key.len(), 45);
        assert_ne!(key, run("keygen").stdout);
    }

    #[test]
    fn mistakes_in_arguments_need_no_agent() {
        #[track_caller]
        fn check(line: &str, text: &str) {
            let report = run(line);
            assert_eq!(report.code, 1, "{line}");
            assert!(report.stderr.starts_with(text), "{line}: {}", report.stderr);
        }
        check("kv get", "Error! Missing KEY argument\n");
        check("kv put", "Error! Missing KEY argument\n");
        check("kv put a b c", "Error! Too many arguments (expected 1 or 2, got 3)\n");
        check(
            "kv put -flags=abc cli/b world",
            "invalid value \"abc\" for flag -flags: parse error\n",
        );
        check(
            "kv put -base64 cli/c ***",
            "Error! Cannot base 64 decode data: illegal base64 data at input byte 0\n",
        );
        check("kv put -cas cli/a x", "Must specify -modify-index with -cas!\n");
        check(
            "kv put -acquire cli/a x",
            "Error! Missing -session (required with -acquire and -release)\n",
        );
        check("kv delete", "Error! Missing KEY argument\n");
        check("kv delete -cas cli/b", "Must specify -modify-index with -cas!\n");
        check("kv import bad", "Cannot unmarshal data: ");
        check(
            "members -status=(",
            "Failed to compile status regexp: error parsing regexp: missing closing ): `(`\n",
        );
        check("members -bogus", "flag provided but not defined: -bogus\n");
        check("lock", "Key prefix and child command must be specified\n");
        check("lock p", "Key prefix and child command must be specified\n");
        check("lock -n=0 p true", "Lock holder limit must be positive\n");
        check("lock -n=-1 p true", "Lock holder limit must be positive\n");
        check("lock -timeout=-1s p true", "Timeout must be positive\n");
        check(
            "lock -try=abc p true",
            "invalid value \"abc\" for flag -try: parse error\n",
        );
        check(
            "lock -monitor-retry=-1 p true",
            "Number for 'monitor-retry' must be >= 0\n",
        );
        check("join", "At least one address to join must be specified.\n\n");
        check(
            "force-leave",
            "A single node name must be specified to force leave.\n\n",
        );
        check(
            "maint -enable -disable",
            "Only one of -enable or -disable may be provided\n",
        );
        check(
            "services register",
            "Service registration requires at least one argument or flags.\n",
        );
        check(
            "services deregister",
            "Service deregistration requires at least one argument or -id.\n",
        );
        check("validate", "Must specify at least one config file or directory\n");
    }

    #[test]
    fn commands_that_take_no_arguments_refuse_them() {
        let mut refusing = 0;
        for command in commands::COMMANDS {
            let report = run(&format!("{} -http-addr=127.0.0.1:1 a b", command.name));
            let alone = run(&format!("{} a b", command.name));
            let report = if report.stderr.starts_with("flag provided") {
                alone
            } else {
                report
            };
            assert_eq!(report.code, 1, "{}", command.name);
            if report.stderr == "Too many arguments (expected 0, got 2)\n" {
                refusing += 1;
            } else if command.name == "leave" {
                assert_eq!(report.stderr, "Error found unexpected args: [a b]\n");
                assert!(report.stdout.starts_with(b"Usage: quorate leave [options]\n"));
            } else {
                // Its usage names them.
                let named = command.usage.trim_start_matches("[options] ");
                assert!(
                    named.contains(char::is_uppercase),
                    "{}: {}",
                    command.name,
                    report.stderr
                );
            }
        }
        assert!(refusing >= 8, "{refusing}");
    }

    #[test]
    fn an_agent_that_is_not_there_is_named_in_gos_words() {
        let refused = "dial tcp 127.0.0.1:1: connect: connection refused\n";
        let report = run("members -http-addr=127.0.0.1:1");
        let url = "http://127.0.0.1:1/v1/agent/members?segment=_all";
        assert_eq!(
            report.stderr,
            format!("Error retrieving members: Get \"{url}\": {refused}")
        );
        let report = run("leave -http-addr=127.0.0.1:1");
        assert_eq!(
            report.stderr,
            format!("Error leaving: Put \"http://127.0.0.1:1/v1/agent/leave\": {refused}")
        );
        assert_eq!(report.code, 1);
    }
}
