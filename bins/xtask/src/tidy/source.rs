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
];
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
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.starts_with("//") {
            continue;
        }
        let at = || format!("{place}:{}", number + 1);
        for ban in BANS {
            if line.contains(ban.word) && !ban.except.iter().any(|prefix| place.starts_with(prefix)) {
                findings.push(Finding::new(at(), format!("`{}`: {}", ban.word, ban.why)));
            }
        }
        if !place.starts_with("crates/rt/")
            && !place.starts_with("sim/")
            && let Some(part) = tokio_runtime_part(line)
        {
            findings.push(Finding::new(
                at(),
                format!("`tokio::{part}`: time, tasks, sockets and disk go through rt"),
            ));
        }
    }
    findings
}

/// The first part of tokio's runtime that this line names, alone or in a `use tokio::{...}`.
fn tokio_runtime_part(line: &str) -> Option<&'static str> {
    let mut rest = line;
    while let Some(at) = rest.find("tokio::") {
        let is_word = !rest[..at].ends_with(|before: char| before.is_alphanumeric() || before == '_');
        rest = &rest[at + "tokio::".len()..];
        if !is_word {
            continue;
        }
        let names = match rest.strip_prefix('{') {
            Some(group) => group,
            None => rest
                .split([';', ',', '(', ' ', '<'])
                .next()
                .unwrap_or(rest)
                .split("::")
                .next()
                .unwrap_or(rest),
        };
        // In a group only the first word of each entry is a part of tokio itself.
        let mut depth = 0;
        let mut is_first = true;
        for word in names.split_inclusive([',', '{', '}', ':', ' ', ';']) {
            let name = word.trim_end_matches([',', '{', '}', ':', ' ', ';']);
            if depth == 0
                && is_first
                && let Some(part) = TOKIO_RUNTIME.iter().find(|&&part| part == name)
            {
                return Some(part);
            }
            is_first = is_first && name.is_empty();
            match word.chars().last() {
                Some('{') => depth += 1,
                Some('}') => depth -= 1,
                Some(',') if depth == 0 => is_first = true,
                _ => {}
            }
        }
    }
    None
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
