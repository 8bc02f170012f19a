//! `cargo xtask tidy`, also a test: the layers of the workspace and the rules of its source.
//!
//! In: `cargo metadata`, the text of the source, the scenario files. Out: findings, each naming its place and the rule.
//! Each rule has a unit test with an offender that it must reject.

mod layers;
mod source;

use crate::command::{self, root};
use anyhow::{Context as _, Result, bail};
use std::fmt;
use std::path::Path;

pub const HELP: &str = "\
cargo xtask tidy

Fails on an arrow between crates that goes up or across, an import a layer forbids, a way around the one door to time,
tasks, sockets and disk, unfinished code, tests that do not run, and scenario files that nothing can run.
";

/// A file longer than this is mentioned, not refused: some tables are long.
const FILE_LINES_MAX: usize = 1500;

/// A broken rule and its place.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    place: String,
    rule: String,
}

impl Finding {
    fn new(place: impl Into<String>, rule: impl Into<String>) -> Self {
        Self {
            place: place.into(),
            rule: rule.into(),
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.rule)
    }
}

pub fn run(arguments: &[&str]) -> Result<()> {
    if let Some(argument) = arguments.first() {
        bail!("there is no option {argument}\n\n{HELP}");
    }
    let (findings, warnings) = check_all()?;
    for warning in &warnings {
        println!("warning: {warning}");
    }
    if findings.is_empty() {
        println!("tidy: every rule holds");
        return Ok(());
    }
    let lines: Vec<String> = findings.iter().map(ToString::to_string).collect();
    bail!("{} findings\n{}", lines.len(), lines.join("\n"))
}

/// Findings, and warnings that fail nothing.
fn check_all() -> Result<(Vec<Finding>, Vec<Finding>)> {
    let mut findings = layers::check(&layers::read_packages()?);
    let mut warnings = Vec::new();
    for folder in ["crates", "bins/quorate", "sim", "fuzz"] {
        for file in command::files_below(&root().join(folder), "rs")? {
            let text = std::fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
            let place = shown(&file);
            findings.extend(source::check(&place, &text));
            let lines = text.lines().count();
            if lines > FILE_LINES_MAX {
                warnings.push(Finding::new(
                    place,
                    format!("{lines} lines, more than {FILE_LINES_MAX}"),
                ));
            }
        }
    }
    let scenarios = root().join("scenarios");
    let mut claims = std::collections::BTreeMap::new();
    for file in command::files_below(&scenarios, "")? {
        let text = std::fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
        let place = file
            .strip_prefix(&scenarios)
            .expect("listed below it")
            .display()
            .to_string();
        findings.extend(source::check_scenario(&place, &text, &mut claims));
    }
    findings.sort();
    Ok((findings, warnings))
}

fn shown(file: &Path) -> String {
    file.strip_prefix(root()).unwrap_or(file).display().to_string()
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_workspace_keeps_its_own_rules() {
        let (findings, _) = super::check_all().unwrap();
        let lines: Vec<String> = findings.iter().map(ToString::to_string).collect();
        assert!(lines.is_empty(), "\n{}", lines.join("\n"));
    }
}
