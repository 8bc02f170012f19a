//! The layers: which package may import which.
//!
//! Normal and build dependencies keep every rule. Development dependencies may look sideways (a driver's test may use a
//! core it does not import) but not up.

use super::Finding;
use crate::command::{self, root};
use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

/// Layer of each of our packages, lowest first; arrows go down.
const LAYERS: &[(u8, &[&str])] = &[
    (0, &["types"]),
    (1, CORES),
    (2, &["rt", "gossip", "replica", "http-api", "dns-server", "checks"]),
    (3, &["agent", "api-client", "swim-lab"]),
];
const CORES: &[&str] = &[
    "swim",
    "user-events",
    "store",
    "acl",
    "anti-entropy",
    "dns-answer",
    "wire",
    "web-ui",
];
/// Packages above all layers: they import any, none imports them.
const TOPS: &[&str] = &["quorate", "xtask", "quorate-sim", "quorate-fuzz"];
const TOP: u8 = 4;
/// Layers 0 and 1 decide and encode; what runs, waits or listens is above them.
const FORBIDDEN_TO_CORES: &[&str] = &["tokio", "madsim", "openraft", "axum", "hyper"];
/// A library seen by few, so that it can be replaced in one place. Whether or not a test uses it does not matter.
const SEEN_ONLY_BY: &[(&str, &[&str])] = &[
    ("openraft", &["quorate-replica", "quorate-sim"]),
    ("axum", &["quorate-http-api"]),
    (
        "hickory",
        &[
            "quorate-dns-answer",
            "quorate-dns-server",
            "quorate-sim",
            "quorate-fuzz",
        ],
    ),
    ("madsim", &["quorate-sim"]),
];
/// All that layer 0 imports: serde and its helpers for byte strings.
const ALLOWED_TO_TYPES: &[&str] = &["serde", "serde_bytes"];
/// Features of tokio that bring no runtime.
const TOKIO_FEATURES: &[&str] = &["sync", "io-util"];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DependencyKind {
    Normal,
    Development,
}

#[derive(Clone, Debug)]
pub struct Dependency {
    pub name: String,
    pub kind: DependencyKind,
    pub features: Vec<String>,
    pub has_default_features: bool,
}

#[derive(Clone, Debug)]
pub struct Package {
    pub name: String,
    pub dependencies: Vec<Dependency>,
}

/// Our packages as cargo sees them; `fuzz` is a workspace of its own.
pub fn read_packages() -> Result<Vec<Package>> {
    let mut packages = Vec::new();
    for manifest in ["Cargo.toml", "fuzz/Cargo.toml"] {
        let manifest = root().join(manifest);
        if !manifest.exists() {
            continue;
        }
        let arguments = [
            "metadata",
            "--format-version",
            "1",
            "--no-deps",
            "--offline",
            "--manifest-path",
        ];
        let output = command::cargo()
            .args(arguments)
            .arg(&manifest)
            .output()
            .context("start cargo metadata")?;
        ensure!(
            output.status.success(),
            "cargo metadata: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        let metadata: Value = serde_json::from_slice(&output.stdout).context("read cargo metadata")?;
        packages.extend(list(&metadata, "packages").map(package_of));
    }
    ensure!(!packages.is_empty(), "cargo metadata names no package");
    Ok(packages)
}

fn list<'a>(value: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> {
    value[key].as_array().map(Vec::as_slice).unwrap_or_default().iter()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn package_of(package: &Value) -> Package {
    let dependencies = list(package, "dependencies").map(|dependency| Dependency {
        name: text(&dependency["name"]),
        kind: match dependency["kind"].as_str() {
            Some("dev") => DependencyKind::Development,
            _ => DependencyKind::Normal,
        },
        features: list(dependency, "features").map(text).collect(),
        has_default_features: dependency["uses_default_features"].as_bool().unwrap_or(true),
    });
    Package {
        name: text(&package["name"]),
        dependencies: dependencies.collect(),
    }
}

fn short(name: &str) -> &str {
    name.strip_prefix("quorate-").unwrap_or(name)
}

/// The layer of one of our packages. `None`: not ours, or new and not in the table yet.
fn layer(name: &str) -> Option<u8> {
    if TOPS.contains(&name) {
        return Some(TOP);
    }
    let short = name.strip_prefix("quorate-")?;
    LAYERS
        .iter()
        .find(|(_, names)| names.contains(&short))
        .map(|(layer, _)| *layer)
}

fn is_family(name: &str, family: &str) -> bool {
    name.strip_prefix(family)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with(['-', '_']))
}

pub fn check(packages: &[Package]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for package in packages {
        let Some(from) = layer(&package.name) else {
            findings.push(Finding::new(
                &package.name,
                "is in no layer of bins/xtask/src/tidy/layers.rs",
            ));
            continue;
        };
        for dependency in &package.dependencies {
            for rule in broken_rules(package, from, dependency) {
                findings.push(Finding::new(format!("{} -> {}", package.name, dependency.name), rule));
            }
        }
    }
    findings
}

fn broken_rules(package: &Package, from: u8, dependency: &Dependency) -> Vec<String> {
    let mut broken = Vec::new();
    let name = dependency.name.as_str();
    let is_normal = dependency.kind == DependencyKind::Normal;
    if let Some(to) = layer(name) {
        if to == TOP {
            broken.push("bins, sim and fuzz are imported by none".to_owned());
        } else if to > from {
            broken.push(format!("an arrow goes up, from layer {from} to layer {to}"));
        } else if is_normal {
            broken.extend(sideways(short(&package.name), from, short(name), to).map(str::to_owned));
        }
        return broken;
    }
    if !is_normal {
        return broken;
    }
    if from == 0 && !ALLOWED_TO_TYPES.contains(&name) {
        broken.push("types imports std and serde only".to_owned());
    }
    if from == 1 && FORBIDDEN_TO_CORES.iter().any(|family| is_family(name, family)) {
        broken.push("a core imports no runtime, server or consensus library".to_owned());
    }
    for (family, seen_by) in SEEN_ONLY_BY {
        if is_family(name, family) && !seen_by.contains(&package.name.as_str()) {
            broken.push(format!("only {} may see {family}", seen_by.join(", ")));
        }
    }
    if name == "tokio" && package.name != "quorate-rt" && package.name != "quorate-sim" {
        let extra: Vec<&str> = dependency
            .features
            .iter()
            .map(String::as_str)
            .filter(|name| !TOKIO_FEATURES.contains(name))
            .collect();
        if !extra.is_empty() {
            broken.push(format!(
                "tokio outside rt has the features sync and io-util only, not {}",
                extra.join(", ")
            ));
        }
        if dependency.has_default_features {
            broken.push("tokio outside rt has no default features".to_owned());
        }
    }
    broken
}

/// Arrows within a layer, and those that skip past what a package is for.
fn sideways(package: &str, from: u8, dependency: &str, to: u8) -> Option<&'static str> {
    match (from, to) {
        (1, 1) if package != "wire" && (package, dependency) != ("dns-answer", "store") => {
            Some("cores do not import one another, but for dns-answer -> store and wire -> any")
        }
        (2, 2) if package == "rt" => Some("rt imports types only"),
        (2, 1) if package == "rt" => Some("rt imports types only"),
        (2, 2) if dependency != "rt" => {
            Some("drivers do not import one another: what one needs of a neighbour is a trait it owns")
        }
        (3, _) if package == "api-client" && !["types", "rt"].contains(&dependency) => {
            Some("api-client imports types and rt only")
        }
        (TOP, 2 | 3) if package == "fuzz" => Some("fuzz imports layers 0 and 1 only"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use DependencyKind::{Development, Normal};

    fn arrow(from: &str, to: &str, kind: DependencyKind, features: &[&str]) -> Vec<String> {
        let dependency = Dependency {
            name: to.to_owned(),
            kind,
            features: features.iter().map(|&feature| feature.to_owned()).collect(),
            has_default_features: false,
        };
        let package = Package {
            name: from.to_owned(),
            dependencies: vec![dependency],
        };
        check(&[package]).iter().map(ToString::to_string).collect()
    }

    #[track_caller]
    fn check_refused(from: &str, to: &str, kind: DependencyKind, features: &[&str], rule: &str) {
        let findings = arrow(from, to, kind, features);
        assert!(
            findings.iter().any(|finding| finding.contains(rule)),
            "{from} -> {to}: {findings:?}"
        );
    }

    #[track_caller]
    fn check_allowed(from: &str, to: &str, kind: DependencyKind, features: &[&str]) {
        assert_eq!(arrow(from, to, kind, features), Vec::<String>::new());
    }

    #[test]
    fn an_arrow_that_goes_up_is_refused_even_for_a_test() {
        check_refused(
            "quorate-store",
            "quorate-rt",
            Normal,
            &[],
            "an arrow goes up, from layer 1 to layer 2",
        );
        check_refused("quorate-types", "quorate-store", Normal, &[], "goes up");
        check_refused("quorate-http-api", "quorate-agent", Development, &[], "goes up");
        check_refused("quorate-agent", "quorate-sim", Normal, &[], "imported by none");
        check_allowed("quorate-agent", "quorate-types", Normal, &[]);
        check_allowed("quorate", "quorate-agent", Normal, &[]);
    }

    #[test]
    fn cores_do_not_import_one_another_but_for_the_named_two() {
        check_refused(
            "quorate-swim",
            "quorate-store",
            Normal,
            &[],
            "cores do not import one another",
        );
        check_refused(
            "quorate-store",
            "quorate-dns-answer",
            Normal,
            &[],
            "cores do not import one another",
        );
        check_allowed("quorate-dns-answer", "quorate-store", Normal, &[]);
        check_allowed("quorate-wire", "quorate-swim", Normal, &[]);
        check_allowed("quorate-swim", "quorate-wire", Development, &[]);
    }

    #[test]
    fn drivers_import_rt_and_no_other_driver() {
        check_refused(
            "quorate-gossip",
            "quorate-checks",
            Normal,
            &[],
            "drivers do not import one another",
        );
        check_refused("quorate-rt", "quorate-gossip", Normal, &[], "rt imports types only");
        check_refused("quorate-rt", "quorate-wire", Normal, &[], "rt imports types only");
        check_allowed("quorate-gossip", "quorate-rt", Normal, &[]);
        check_allowed("quorate-rt", "quorate-types", Normal, &[]);
    }

    #[test]
    fn the_client_and_the_fuzz_targets_see_little() {
        check_refused(
            "quorate-api-client",
            "quorate-store",
            Normal,
            &[],
            "api-client imports types and rt only",
        );
        check_refused(
            "quorate-fuzz",
            "quorate-agent",
            Normal,
            &[],
            "fuzz imports layers 0 and 1 only",
        );
        check_allowed("quorate-api-client", "quorate-rt", Normal, &[]);
        check_allowed("quorate-fuzz", "quorate-wire", Normal, &[]);
    }

    #[test]
    fn a_package_outside_the_table_is_refused() {
        let findings = check(&[Package {
            name: "quorate-utils".to_owned(),
            dependencies: Vec::new(),
        }]);
        assert_eq!(findings.len(), 1);
    }

    #[test]
    fn a_core_imports_no_runtime() {
        for library in [
            "tokio",
            "tokio-util",
            "hyper",
            "hyper-util",
            "axum",
            "openraft",
            "madsim",
        ] {
            check_refused("quorate-swim", library, Normal, &["sync"], "a core imports no runtime");
        }
        check_allowed("quorate-swim", "rand_core", Normal, &[]);
        check_refused(
            "quorate-types",
            "bytes",
            Normal,
            &[],
            "types imports std and serde only",
        );
        check_allowed("quorate-types", "proptest", Development, &[]);
    }

    #[test]
    fn a_library_that_few_may_see_is_refused_to_the_rest() {
        check_refused(
            "quorate-agent",
            "openraft-rt",
            Normal,
            &[],
            "only quorate-replica, quorate-sim may see openraft",
        );
        check_refused("quorate-agent", "axum", Normal, &[], "may see axum");
        check_refused("quorate-http-api", "hickory-proto", Normal, &[], "may see hickory");
        check_refused("quorate-rt", "madsim", Normal, &[], "only quorate-sim may see madsim");
        check_allowed("quorate-replica", "openraft", Normal, &[]);
        check_allowed("quorate-http-api", "hickory-proto", Development, &[]);
    }

    #[test]
    fn tokio_outside_rt_brings_no_runtime() {
        check_refused(
            "quorate-gossip",
            "tokio",
            Normal,
            &["sync", "rt"],
            "sync and io-util only, not rt",
        );
        check_refused("quorate", "tokio", Normal, &["net"], "not net");
        check_allowed("quorate-gossip", "tokio", Normal, &["sync", "io-util"]);
        check_allowed("quorate-gossip", "tokio", Development, &["rt", "macros"]);
        check_allowed("quorate-rt", "tokio", Normal, &["rt-multi-thread", "net"]);
    }
}
