//! Rules on the text of the source and of the scenario files.
//!
//! A scan, no parser: lines that are comments are left out, the rest is searched for fixed words. It is meant for
//! mistakes, not for malice.

use super::Finding;
use crate::sim::read_scenario;
use std::collections::BTreeMap;

/// A word that must not stand in code, where, and why.
struct Ban {
    word: &'static str,
    why: &'static str,
    /// Path prefixes where the word is fine.
    except: &'static [&'static str],
}

const BANS: &[Ban] = &[
    Ban {
        word: "cfg(madsim)",
        why: "only sim/ knows the simulator",
        except: &["sim/"],
    },
    Ban {
        word: "cfg(not(madsim))",
        why: "only sim/ knows the simulator",
        except: &["sim/"],
    },
    Ban {
        word: "todo!(",
        why: "unfinished code does not land",
        except: &[],
    },
    Ban {
        word: "unimplemented!(",
        why: "unfinished code does not land",
        except: &[],
    },
    Ban {
        word: "dbg!(",
        why: "a leftover of debugging",
        except: &[],
    },
    Ban {
        word: "#[ignore",
        why: "a test that does not run proves nothing",
        except: &[],
    },
    Ban {
        word: "#[should_panic",
        why: "it passes for any panic: match the error instead",
        except: &[],
    },
    Ban {
        word: "thread::sleep",
        why: "wait for a condition, through rt",
        except: &[],
    },
    Ban {
        word: "clippy::disallowed_",
        why: "what clippy.toml refuses goes through rt, and no attribute around it",
        except: OWN_WORLD,
    },
];

/// Who talks to the machine itself: the door, the simulator, which stands for the machine, the tasks of the project, and
/// what starts real processes. A core may import neither the door nor its runtime, so the runner of its transcripts,
/// which rewrites them when asked to, opens its own files.
const OWN_WORLD: &[&str] = &[
    "crates/rt/",
    "sim/",
    "bins/xtask/",
    "bins/quorate/tests/",
    "crates/swim/tests/transcripts.rs",
    "fuzz/examples/",
];

/// Ways around the door in std, with what to take instead. A name without `std::` is also found where its module was
/// imported.
const STD_AROUND_RT: &[(&str, &str)] = &[
    ("thread::spawn", "start tasks through rt"),
    ("thread::scope", "start tasks, or blocking work, through rt"),
    ("thread::Builder", "start tasks through rt"),
    ("Instant::now", "read time through rt"),
    ("SystemTime::now", "read wall time through rt"),
    ("std::fs", "files go through rt"),
    ("net::TcpStream", "sockets go through rt"),
    ("net::TcpListener", "sockets go through rt"),
    ("net::UdpSocket", "sockets go through rt"),
    ("unix::net", "sockets go through rt"),
    ("process::Command", "child processes go through rt"),
];
/// What ends a path whose `Instant::now` is the clock of openraft's runtime: that is rt's.
const CLOCKS_OVER_RT: &[&str] = &["openraft::", ">::"];

/// Parts of tokio with a runtime behind them.
const TOKIO_RUNTIME: &[&str] = &["time", "net", "fs", "spawn", "task", "runtime", "process", "signal"];

/// Findings of one file. `place` is its path from the root.
pub fn check(place: &str, text: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    let is_crate_root = place.ends_with("src/lib.rs") || place.ends_with("src/main.rs");
    if is_crate_root && !text.starts_with("//!") {
        findings.push(Finding::new(
            place,
            "a crate opens with a `//!` header: what it promises, what is not here",
        ));
    }
    let has_own_world = OWN_WORLD.iter().any(|prefix| place.starts_with(prefix));
    let code = code_of(text);
    for (number, line) in code.lines().enumerate() {
        let at = || format!("{place}:{}", number + 1);
        for ban in BANS {
            if line.contains(ban.word) && !ban.except.iter().any(|prefix| place.starts_with(prefix)) {
                findings.push(Finding::new(at(), format!("`{}`: {}", ban.word, ban.why)));
            }
        }
    }
    for (offset, path) in paths(&code) {
        let at = || format!("{place}:{}", code[..offset].matches('\n').count() + 1);
        if !place.starts_with("crates/rt/")
            && !place.starts_with("sim/")
            && let Some(part) = TOKIO_RUNTIME.iter().find(|&&part| begins(&path, &["tokio", part]))
        {
            findings.push(Finding::new(
                at(),
                format!("`tokio::{part}`: time, tasks, sockets and disk go through rt"),
            ));
        }
        if !has_own_world && let Some((name, instead)) = around_rt(&path) {
            findings.push(Finding::new(at(), format!("`{name}`: {instead}")));
        }
    }
    findings
}

/// The text with every line that is a comment made empty, so that places stay as they are.
fn code_of(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    for line in text.lines() {
        if !line.trim_start().starts_with("//") {
            code.push_str(line);
        }
        code.push('\n');
    }
    code
}

/// Every path of two parts or more in this code, with where it begins. A group (`std::{fs, net::TcpStream}`) gives a path
/// for each of its names, over as many lines as it has.
fn paths(code: &str) -> Vec<(usize, String)> {
    let is_part = |c: char| c.is_alphanumeric() || c == '_';
    let mut found = Vec::new();
    let mut at = 0;
    while let Some(begin) = code[at..].find(is_part).map(|offset| at + offset) {
        let len = code[begin..]
            .find(|c: char| !is_part(c) && c != ':')
            .unwrap_or(code.len() - begin);
        at = begin + len;
        let path = &code[begin..at];
        if path.ends_with("::") && code[at..].starts_with('{') {
            at = group(code, at + 1, path, &mut found);
        } else if path.contains("::") {
            // `<R::Runtime as Trait>::Instant` and `a::<B>::c` go on behind the bracket.
            let before = if code[..begin].ends_with(">::") { ">::" } else { "" };
            found.push((begin, format!("{before}{path}")));
        }
    }
    found
}

/// The names of a group that begins at `at`, behind its brace; returns where it ends.
fn group(code: &str, mut at: usize, prefix: &str, found: &mut Vec<(usize, String)>) -> usize {
    let mut begin = at;
    while let Some(c) = code[at..].chars().next() {
        let name = code[begin..at].trim();
        match c {
            ',' | '}' => {
                if !name.is_empty() {
                    let blank = code[begin..].len() - code[begin..].trim_start().len();
                    found.push((begin + blank, format!("{prefix}{name}")));
                }
                at += 1;
                begin = at;
                if c == '}' {
                    return at;
                }
            }
            '{' => {
                at = group(code, at + 1, &format!("{prefix}{name}"), found);
                begin = at;
            }
            c => at += c.len_utf8(),
        }
    }
    at
}

/// Whether a path begins with these parts.
fn begins(path: &str, parts: &[&str]) -> bool {
    let mut own = path.split("::").map(|part| part.split(' ').next().unwrap_or(part));
    parts.iter().all(|part| own.next() == Some(*part))
}

/// The entry of [`STD_AROUND_RT`] that this path names.
fn around_rt(path: &str) -> Option<&'static (&'static str, &'static str)> {
    STD_AROUND_RT.iter().find(|(name, _)| {
        path.match_indices(name).any(|(at, _)| {
            let (before, after) = (&path[..at], &path[at + name.len()..]);
            (before.is_empty() || before.ends_with("::"))
                && (after.is_empty() || after.starts_with([':', ' ']))
                && !CLOCKS_OVER_RT.iter().any(|clock| before.ends_with(clock))
                && !before.starts_with("tokio::")
        })
    })
}

/// Findings of one file below `scenarios/`; `claims` remembers those seen, since two files with one claim hide each other.
pub fn check_scenario(place: &str, text: &str, claims: &mut BTreeMap<String, String>) -> Vec<Finding> {
    let full = format!("scenarios/{place}");
    if place == "README.md" {
        // The language of scenarios, for people.
        return Vec::new();
    }
    if !place.ends_with(".toml") || place.matches('/').count() != 1 {
        return vec![Finding::new(
            full,
            "a scenario is scenarios/<part>/<claim>.toml: nothing would run this file",
        )];
    }
    match read_scenario(text) {
        Err(error) => vec![Finding::new(full, format!("{error:#}"))],
        Ok(scenario) => match claims.insert(scenario.claim, full.clone()) {
            Some(other) => vec![Finding::new(full, format!("makes the same claim as {other}"))],
            None => Vec::new(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_refused(place: &str, text: &str, rule: &str) {
        let findings = check(place, text);
        assert!(
            findings.iter().any(|finding| finding.to_string().contains(rule)),
            "{text}: {findings:?}"
        );
    }

    #[test]
    fn each_banned_word_is_found_with_its_line() {
        for ban in BANS {
            let line = format!("fn a() {{}}\n    {} \"x\")]\n", ban.word);
            check_refused(
                "crates/swim/src/probe.rs",
                &line,
                &format!("crates/swim/src/probe.rs:2: `{}`", ban.word),
            );
        }
    }

    #[test]
    fn comments_may_name_what_code_may_not() {
        assert_eq!(
            check("crates/rt/src/task.rs", "// thread::sleep would stop the executor.\n"),
            []
        );
        assert_eq!(check("sim/src/main.rs", "//! The simulator.\n#[cfg(madsim)]\n"), []);
    }

    #[test]
    fn tokios_runtime_is_named_in_rt_only() {
        for line in [
            "tokio::spawn(async {});",
            "let _ = tokio::time::sleep(d);",
            "use tokio::net::TcpStream;",
            "use tokio::{sync::Notify, time};",
            "use tokio::{io::{AsyncRead, AsyncWrite}, net::{TcpStream}};",
            "use ::tokio::fs;",
            "use tokio::{\n    io::{AsyncRead, AsyncWrite},\n    net::TcpStream,\n};",
        ] {
            check_refused("crates/gossip/src/driver.rs", line, "go through rt");
            assert_eq!(check("crates/rt/src/production.rs", line), []);
        }
        for line in [
            "use tokio::sync::{Notify, mpsc};",
            "use tokio::{io::AsyncRead, sync::oneshot};",
            "use tokio::io::AsyncReadExt as _;",
            "use hyper_tokio::net::X;",
        ] {
            assert_eq!(check("crates/gossip/src/driver.rs", line), [], "{line}");
        }
    }

    #[test]
    fn stds_ways_around_the_door_are_found() {
        for line in [
            "std::thread::spawn(work);",
            "use std::thread;\nthread::scope(|scope| {});",
            "let thread = std::thread::Builder::new();",
            "let now = std::time::Instant::now();",
            "use std::time::{Duration, Instant};\nlet now = Instant::now();",
            "let now = SystemTime::now();",
            "let text = std::fs::read_to_string(path);",
            "use std::fs;",
            "use std::fs as files;",
            "use std::{fmt, fs, io};",
            "use std::net::{IpAddr, TcpStream};",
            "use std::{\n    fmt,\n    net::{IpAddr, UdpSocket},\n};",
            "let listener = std::net::TcpListener::bind(at);",
            "use std::os::unix::net::UnixStream;",
            "use std::process::{Command, ExitCode};",
            "std::process::Command::new(\"true\");",
            "#[allow(clippy::disallowed_methods)]",
            "#![allow(\n    clippy::disallowed_types,\n)]",
            "#[expect(clippy::disallowed_methods)]",
        ] {
            for place in [
                "crates/gossip/src/driver.rs",
                "crates/replica/tests/a.rs",
                "bins/quorate/src/a.rs",
            ] {
                assert_eq!(check(place, line).len(), 1, "{line}");
            }
            for place in [
                "crates/rt/src/production.rs",
                "sim/src/a.rs",
                "bins/quorate/tests/e2e/a.rs",
            ] {
                assert_eq!(check(place, line), [], "{line}");
            }
        }
        let lines = "use std::{\n    fmt,\n    fs,\n};\n";
        check_refused(
            "crates/gossip/src/driver.rs",
            lines,
            "crates/gossip/src/driver.rs:3: `std::fs`",
        );
    }

    #[test]
    fn what_only_looks_like_a_way_around_the_door_is_not_found() {
        for line in [
            "use std::time::Duration;",
            "use std::time::Instant;",
            "use std::net::{IpAddr, SocketAddr};",
            "use std::process::ExitCode;",
            "use quorate_store::{Command, CommandError};",
            "let fs_kind = my_std::fs_like::read();",
            "std::thread::current();",
            "use std::thread::ThreadId;",
            "let now = openraft::Instant::now();",
            "let now = <R::AsyncRuntime as openraft::AsyncRuntime>::Instant::now();",
            "let text = \"a {brace\";",
            "// std::fs::read would block.",
        ] {
            assert_eq!(check("crates/replica/src/replica.rs", line), [], "{line}");
        }
    }

    #[test]
    fn a_crate_without_a_header_is_found() {
        check_refused("crates/swim/src/lib.rs", "mod probe;\n", "opens with a `//!` header");
        assert_eq!(check("crates/swim/src/lib.rs", "//! Membership.\n"), []);
    }

    #[test]
    fn a_scenario_that_nothing_can_run_is_found() {
        let text = "claim = \"c\"\ntier = \"fast\"\nseeds = { sweep = 1 }\n";
        let mut claims = BTreeMap::new();
        assert_eq!(check_scenario("raft/a.toml", text, &mut claims), []);
        let again = check_scenario("raft/b.toml", text, &mut claims);
        assert!(
            again[0].to_string().contains("same claim as scenarios/raft/a.toml"),
            "{again:?}"
        );
        for place in ["a.toml", "raft/deep/a.toml", "raft/a.tml"] {
            let findings = check_scenario(place, text, &mut BTreeMap::new());
            assert!(findings[0].to_string().contains("nothing would run"), "{findings:?}");
        }
        let findings = check_scenario("raft/a.toml", "tier = \"fast\"", &mut BTreeMap::new());
        assert!(findings[0].to_string().contains("has no `claim`"), "{findings:?}");
    }
}
