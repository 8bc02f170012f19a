//! Services and checks of configuration files: from trees to definitions.
//!
//! A value that cannot be read (a duration, a status) makes the configuration invalid. A definition that reads well and
//! breaks a rule is kept aside with its reason: as with Consul, `validate` accepts it and the agent refuses to start.
//! Not here: the rules (`definition`).

use super::decode::SOURCE_KEY;
use super::definition::{self, DefinitionError};
use super::duration;
use super::value::Value;
use quorate_types::{CheckDefinition, CheckKind, CheckStatus, Service, ServiceAddress, ServiceDefinition, Weights};
use std::collections::BTreeMap;
use std::time::Duration;

/// All definitions of all files.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Definitions {
    /// By order of the files; ids are unique.
    pub services: Vec<ServiceDefinition>,
    pub checks: Vec<CheckDefinition>,
    /// Definitions that cannot be registered, one sentence each.
    pub refused: Vec<String>,
    /// Values that cannot be read.
    pub invalid: Vec<String>,
    pub warnings: Vec<String>,
}

/// What definitions inherit from the configuration.
#[derive(Clone, Debug)]
pub struct Inherited {
    pub token: String,
    pub output_len_bytes_max: usize,
}

/// Reads the lists `services` and `checks` of a merged tree.
pub fn read(tree: &Value, inherited: &Inherited) -> Definitions {
    let mut out = Definitions::default();
    for value in list(tree, "services") {
        let source = text(value, SOURCE_KEY);
        let label = name_or_id(value);
        let mut invalid = Vec::new();
        let (definition, unsupported) = service(value, inherited, &mut invalid);
        out.invalid.extend(invalid.iter().map(|mistake| from(mistake, &source)));
        let mut reasons = unsupported;
        match definition::prepare_service(definition.clone()) {
            Ok(definition) if reasons.is_empty() => {
                out.warnings
                    .extend(definition::dns_name_warning("Service name", &definition.service.name));
                let id = definition.service.id.clone();
                if let Some(position) = out.services.iter().position(|known| known.service.id == id) {
                    out.warnings.push(format!(
                        "{source}: service {id:?} is defined again: the later definition is used"
                    ));
                    out.services.remove(position);
                }
                out.services.push(definition);
            }
            Ok(_) => {}
            Err(reason) => reasons.insert(0, blame_check(&definition, &reason)),
        }
        if let Some(reason) = reasons.first() {
            out.refused
                .push(format!("Failed to register service {label:?}: {source}: {reason}"));
        }
    }
    for value in list(tree, "checks") {
        let source = text(value, SOURCE_KEY);
        let label = name_or_id(value);
        let mut invalid = Vec::new();
        let (definition, unsupported) = check(value, &label, inherited, &mut invalid);
        out.invalid.extend(invalid.iter().map(|mistake| from(mistake, &source)));
        let prepared = match unsupported {
            Some(reason) => Err(reason),
            None => definition::prepare_check(definition).map_err(|reason| reason.to_string()),
        };
        match prepared {
            Ok(definition) => {
                if let Some(position) = out.checks.iter().position(|known| known.id == definition.id) {
                    out.warnings.push(format!(
                        "{source}: check {:?} is defined again: the later definition is used",
                        definition.id
                    ));
                    out.checks.remove(position);
                }
                out.checks.push(definition);
            }
            Err(reason) => out
                .refused
                .push(format!("Failed to register check {label:?}: {source}: {reason}")),
        }
    }
    out
}

/// A mistake with the file it is in.
fn from(mistake: &str, source: &str) -> String {
    format!("{mistake} (from {source})")
}

/// The reason with the name of the check it is about, if it is about one.
fn blame_check(definition: &ServiceDefinition, reason: &DefinitionError) -> String {
    let single = definition.checks.len() == 1;
    for (position, check) in definition.checks.iter().enumerate() {
        let mut named = check.clone();
        if named.name.is_empty() {
            named.name = "check".to_owned();
        }
        if definition::prepare_check(named).as_ref() == Err(reason) {
            let label = [&check.id, &check.name].into_iter().find(|label| !label.is_empty());
            return match label {
                Some(label) => format!("check {label:?}: {reason}"),
                None if single => format!("its check: {reason}"),
                None => format!("its check number {}: {reason}", position + 1),
            };
        }
    }
    reason.to_string()
}

fn service(value: &Value, inherited: &Inherited, invalid: &mut Vec<String>) -> (ServiceDefinition, Vec<String>) {
    let mut unsupported = Vec::new();
    let label = name_or_id(value);
    let mut weight = |key: &str| match int(value, key) {
        None => 1,
        Some(weight) => u16::try_from(weight).unwrap_or_else(|_| {
            invalid.push(format!(
                "service[{label}].weights: Invalid Weights: DNS Weight must be between 0 and 65535"
            ));
            1
        }),
    };
    let weights = Weights {
        passing: weight("weights.passing"),
        warning: weight("weights.warning"),
    };
    let mut tagged_addresses = BTreeMap::new();
    if let Some(Value::Map(map)) = value.get("tagged_addresses") {
        for (tag, address) in map {
            let address = ServiceAddress {
                address: text(address, "address"),
                port: int(address, "port").unwrap_or(0),
            };
            tagged_addresses.insert(tag.clone(), address);
        }
    }
    let mut token = text(value, "token");
    if token.is_empty() {
        token.clone_from(&inherited.token);
    }
    let mut checks = Vec::new();
    for each in list(value, "check").iter().chain(list(value, "checks")) {
        // `check {}` means none, as an empty `Check` does in the HTTP API.
        if matches!(each, Value::Map(map) if map.is_empty()) {
            continue;
        }
        // What has no name of its own goes by the id it would get.
        let check_label = match name_or_id(each) {
            own if own.is_empty() => format!("service:{label}"),
            own => own,
        };
        let (mut check, reason) = check(each, &check_label, inherited, invalid);
        if text(each, "token").is_empty() {
            check.token.clone_from(&token);
        }
        if let Some(reason) = reason {
            let label = [&check.id, &check.name].into_iter().find(|label| !label.is_empty());
            unsupported.push(match label {
                Some(label) => format!("check {label:?}: {reason}"),
                None => format!("its check: {reason}"),
            });
        }
        checks.push(check);
    }
    let service = Service {
        id: text(value, "id"),
        name: text(value, "name"),
        tags: strings(value, "tags"),
        address: text(value, "address"),
        tagged_addresses,
        meta: string_map(value, "meta"),
        port: int(value, "port").unwrap_or(0),
        weights,
        enable_tag_override: flag(value, "enable_tag_override"),
        ..Service::default()
    };
    (ServiceDefinition { service, checks, token }, unsupported)
}

/// The check, and the reason why its kind cannot run here, if so. Mistakes are told by its label.
fn check(
    value: &Value,
    label: &str,
    inherited: &Inherited,
    invalid: &mut Vec<String>,
) -> (CheckDefinition, Option<String>) {
    let mut bad = |key: &str, what: String| invalid.push(format!("check[{label}].{key}: {what}"));
    let mut time = |key: &str| -> Duration {
        let text = text(value, key);
        if text.is_empty() {
            return Duration::ZERO;
        }
        duration::parse(&text).unwrap_or_else(|reason| {
            bad(key, format!("invalid duration: {text:?}: {reason}"));
            Duration::ZERO
        })
    };
    let ttl = time("ttl");
    let interval = time("interval");
    let timeout = time("timeout");
    let deregister_after = time("deregister_critical_service_after");
    let mut count = |key: &str| match int(value, key) {
        None => 0,
        Some(number) => u32::try_from(number).unwrap_or_else(|_| {
            bad(key, format!("{number} is out of range"));
            0
        }),
    };
    let success_before_passing = count("success_before_passing");
    let failures_before_warning = count("failures_before_warning");
    let failures_before_critical = count("failures_before_critical");
    let output_len_bytes_max = match int(value, "output_max_size") {
        None | Some(0) => inherited.output_len_bytes_max,
        Some(size) => usize::try_from(size).unwrap_or_else(|_| {
            bad("output_max_size", "MaxOutputMaxSize must be positive".to_owned());
            inherited.output_len_bytes_max
        }),
    };
    let status = match text(value, "status").as_str() {
        "" => CheckStatus::Critical,
        word => word.parse().unwrap_or_else(|()| {
            bad("status", format!("Bad check status {word:?}"));
            CheckStatus::Critical
        }),
    };
    let script = text(value, "script");
    let mut args = strings(value, "args");
    args.extend(strings(value, "script_args"));
    if args.is_empty() && !script.is_empty() {
        args = vec!["/bin/sh".to_owned(), "-c".to_owned(), script];
    }
    let given = |key: &str| !text(value, key).is_empty();
    // Kinds without an implementation come before `args`, which a docker check has too.
    let other = [
        "udp",
        "grpc",
        "h2ping",
        "docker_container_id",
        "os_service",
        "alias_node",
        "alias_service",
    ]
    .into_iter()
    .find(|key| given(key));
    let mut unsupported = None;
    let kind = if !ttl.is_zero() {
        CheckKind::Ttl { ttl }
    } else if given("http") {
        CheckKind::Http {
            url: text(value, "http"),
            method: text(value, "method"),
            header: strings_map(value, "header"),
            body: text(value, "body"),
            disable_redirects: flag(value, "disable_redirects"),
            tls_skip_verify: flag(value, "tls_skip_verify"),
            tls_server_name: text(value, "tls_server_name"),
        }
    } else if given("tcp") {
        if flag(value, "tcp_use_tls") {
            unsupported = Some("tcp checks with 'tcp_use_tls' are not supported by this agent".to_owned());
        }
        CheckKind::Tcp {
            address: text(value, "tcp"),
        }
    } else if let Some(key) = other {
        unsupported = Some(format!("checks with '{key}' are not supported by this agent"));
        CheckKind::Maintenance
    } else if !args.is_empty() {
        CheckKind::Script { args }
    } else {
        if interval.is_zero() {
            unsupported = Some(
                "it has neither a 'ttl' nor an 'interval' with something to run ('args', 'script', 'http' or 'tcp')"
                    .to_owned(),
            );
        } else {
            unsupported =
                Some("it has an 'interval' and nothing to run: give it 'args', 'script', 'http' or 'tcp'".to_owned());
        }
        CheckKind::Maintenance
    };
    let mut id = text(value, "id");
    if id.is_empty() {
        id = text(value, "check_id");
    }
    let mut token = text(value, "token");
    if token.is_empty() {
        token.clone_from(&inherited.token);
    }
    let definition = CheckDefinition {
        id,
        name: text(value, "name"),
        notes: text(value, "notes"),
        service_id: text(value, "service_id"),
        status,
        kind,
        interval,
        timeout: (!timeout.is_zero()).then_some(timeout),
        success_before_passing,
        failures_before_warning,
        failures_before_critical,
        deregister_critical_service_after: (!deregister_after.is_zero()).then_some(deregister_after),
        output_len_bytes_max,
        token,
    };
    (definition, unsupported)
}

fn name_or_id(value: &Value) -> String {
    let id = text(value, "id");
    if id.is_empty() { text(value, "name") } else { id }
}

fn text(value: &Value, key: &str) -> String {
    value.get(key).and_then(Value::as_str).unwrap_or_default().to_owned()
}

fn int(value: &Value, path: &str) -> Option<i64> {
    match value.get(path) {
        Some(Value::Int(number)) => Some(*number),
        _ => None,
    }
}

fn flag(value: &Value, key: &str) -> bool {
    value.get(key) == Some(&Value::Bool(true))
}

fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    match value.get(key) {
        Some(Value::List(items)) => items,
        _ => &[],
    }
}

fn strings(value: &Value, key: &str) -> Vec<String> {
    list(value, key)
        .iter()
        .filter_map(|item| item.as_str().map(str::to_owned))
        .collect()
}

fn string_map(value: &Value, key: &str) -> BTreeMap<String, String> {
    match value.get(key) {
        Some(Value::Map(map)) => map
            .iter()
            .filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned())))
            .collect(),
        _ => BTreeMap::new(),
    }
}

fn strings_map(value: &Value, key: &str) -> BTreeMap<String, Vec<String>> {
    match value.get(key) {
        Some(Value::Map(map)) => map
            .iter()
            .map(|(key, items)| {
                let items = match items {
                    Value::List(items) => items
                        .iter()
                        .filter_map(|item| item.as_str().map(str::to_owned))
                        .collect(),
                    _ => Vec::new(),
                };
                (key.clone(), items)
            })
            .collect(),
        _ => BTreeMap::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{decode, json};
    use super::*;

    fn read_json(text: &str) -> Definitions {
        let tree = decode::decode("f.json", true, json::parse(text).unwrap()).unwrap().tree;
        let inherited = Inherited {
            token: "registration".to_owned(),
            output_len_bytes_max: 4096,
        };
        read(&tree, &inherited)
    }

    #[test]
    fn the_founding_file_loads() {
        let definitions = read_json(
            r#"{"service":{"name":"elasticsearch","port":9200,"check":{"script":"curl -s localhost:9200","interval":"10s"}}}"#,
        );
        assert_eq!(definitions.refused, Vec::<String>::new());
        let service = &definitions.services[0];
        assert_eq!(
            (service.service.id.as_str(), service.service.port),
            ("elasticsearch", 9200)
        );
        assert_eq!(service.token, "registration");
        let check = &service.checks[0];
        assert_eq!(check.id, "service:elasticsearch");
        assert_eq!(check.name, "Service 'elasticsearch' check");
        assert_eq!(check.interval, Duration::from_secs(10));
        let CheckKind::Script { args } = &check.kind else {
            panic!("a script check")
        };
        assert_eq!(args, &["/bin/sh", "-c", "curl -s localhost:9200"]);
    }

    #[test]
    fn args_win_over_script() {
        let definitions = read_json(r#"{"check":{"name":"c","args":["true"],"script":"false","interval":"10s"}}"#);
        let want = CheckKind::Script {
            args: vec!["true".to_owned()],
        };
        assert_eq!(definitions.checks[0].kind, want);
    }

    #[test]
    fn what_cannot_be_registered_is_named_in_one_sentence() {
        for (text, want) in [
            (
                r#"{"service":{"name":"w","check":{"interval":"10s"}}}"#,
                r#"Failed to register service "w": f.json: its check: it has an 'interval' and nothing to run: give it 'args', 'script', 'http' or 'tcp'"#,
            ),
            (
                r#"{"service":{"port":1}}"#,
                r#"Failed to register service "": f.json: Missing service name"#,
            ),
            (
                r#"{"service":{"name":"w","port":70000}}"#,
                r#"Failed to register service "w": f.json: Invalid port: port cannot be 70000. Must be between 0 and 65535"#,
            ),
            (
                r#"{"service":{"name":"w","tagged_addresses":{"lan":{"address":"a","port":-1}}}}"#,
                r#"Failed to register service "w": f.json: Invalid port: tagged_addresses.lan.port cannot be -1. Must be between 0 and 65535"#,
            ),
            (
                r#"{"check":{"id":"m"}}"#,
                r#"Failed to register check "m": f.json: it has neither a 'ttl' nor an 'interval' with something to run ('args', 'script', 'http' or 'tcp')"#,
            ),
            (
                r#"{"service":{"name":"w","checks":[{"ttl":"1s"},{"id":"g","grpc":"a:1","interval":"1s"}]}}"#,
                r#"Failed to register service "w": f.json: check "g": checks with 'grpc' are not supported by this agent"#,
            ),
            (
                r#"{"service":{"name":"w","check":{"name":"x","http":"http://a/"}}}"#,
                r#"Failed to register service "w": f.json: check "x": Invalid check: Interval must be > 0 for Script, HTTP, or TCP checks"#,
            ),
            (
                r#"{"check":{"name":"x","http":"https://a/","interval":"5s"}}"#,
                r#"Failed to register check "x": f.json: Invalid check: https checks are not supported, use an http or a tcp check instead of "https://a/""#,
            ),
        ] {
            assert_eq!(read_json(text).refused, [want], "{text}");
        }
    }

    #[test]
    fn one_id_twice_keeps_the_later_with_a_warning() {
        let definitions = read_json(r#"{"services":[{"name":"w"},{"name":"x"},{"id":"w","name":"w2"}]}"#);
        let names: Vec<_> = definitions.services.iter().map(|s| s.service.name.as_str()).collect();
        assert_eq!(names, ["x", "w2"]);
        assert_eq!(
            definitions.warnings,
            [r#"f.json: service "w" is defined again: the later definition is used"#]
        );
    }

    #[test]
    fn unreadable_values_make_the_file_invalid() {
        let definitions = read_json(
            r#"{"check":{"id":"m","name":"m","ttl":"10s","interval":"5","status":"bogus"},"service":{"name":"w","weights":{"passing":70000},"check":{"ttl":"10"}}}"#,
        );
        assert_eq!(
            definitions.invalid,
            [
                "service[w].weights: Invalid Weights: DNS Weight must be between 0 and 65535 (from f.json)",
                "check[service:w].ttl: invalid duration: \"10\": time: missing unit in duration \"10\" (from f.json)",
                "check[m].interval: invalid duration: \"5\": time: missing unit in duration \"5\" (from f.json)",
                "check[m].status: Bad check status \"bogus\" (from f.json)",
            ]
        );
    }
}
