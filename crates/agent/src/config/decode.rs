//! Checks a file's tree against the schema, and brings it into the one form that merging and building expect.
//!
//! In: a tree as parsed. Out: a tree with canonical key names and types, definitions in the lists `services` and
//! `checks` (each with its file under [`SOURCE_KEY`]), and warnings; or every error at once, in Consul's words.
//! Not here: rules on values (`build`).

use super::schema::{self, Field, Kind, Use};
use super::value::Value;
use std::collections::BTreeMap;

/// Where a definition keeps the file it came from. No key of a file can be this: it is not in the schema.
pub const SOURCE_KEY: &str = "@source";

/// Of a key whose feature is not there.
const NO_EFFECT: &str = "is accepted and has no effect: this agent does not have the feature.";

/// What one file came to.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Decoded {
    pub tree: Value,
    pub warnings: Vec<String>,
}

/// Checks and normalises one file's tree.
pub fn decode(source: &str, is_json: bool, tree: Value) -> Result<Decoded, String> {
    let mut decoder = Decoder {
        is_json,
        wrong_types: Vec::new(),
        unknown: Vec::new(),
        warnings: Vec::new(),
        renamed: Vec::new(),
    };
    let mut tree = decoder.structure("", schema::AGENT, tree, false);
    if !decoder.wrong_types.is_empty() {
        decoder.wrong_types.sort();
        let list: Vec<String> = decoder.wrong_types.iter().map(|error| format!("* {error}")).collect();
        return Err(format!("{} error(s) decoding:\n\n{}", list.len(), list.join("\n")));
    }
    if !decoder.unknown.is_empty() {
        decoder.unknown.sort();
        let list = decoder.unknown.iter().map(|path| format!("invalid config key {path}"));
        return Err(errors_occurred(&list.collect::<Vec<_>>()));
    }
    for (old, new, value) in decoder.renamed {
        decoder.warnings.push(format!(
            "The '{old}' field is deprecated. Use the '{new}' field instead."
        ));
        if old == "acl_datacenter" && tree.get("acl.enabled").is_none() {
            tree.set("acl.enabled", Value::Bool(true));
        }
        if tree.get(new).is_none() {
            tree.set(new, value);
        }
    }
    for (single, list) in [("service", "services"), ("check", "checks")] {
        let mut all = Vec::new();
        for name in [single, list] {
            if let Some(Value::List(definitions)) = tree.get(name) {
                all.extend(definitions.iter().cloned());
            }
            tree.set(name, Value::Null);
        }
        for definition in &mut all {
            definition.set(SOURCE_KEY, Value::String(source.to_owned()));
        }
        tree.set(list, Value::List(all));
    }
    Ok(Decoded {
        tree,
        warnings: decoder.warnings,
    })
}

/// A list of errors as Go's multierror prints it.
pub fn errors_occurred(errors: &[String]) -> String {
    let head = match errors.len() {
        1 => "1 error occurred:".to_owned(),
        count => format!("{count} errors occurred:"),
    };
    let list: String = errors.iter().map(|error| format!("\n\t* {error}")).collect();
    format!("{head}{list}\n\n")
}

struct Decoder {
    is_json: bool,
    wrong_types: Vec<String>,
    unknown: Vec<String>,
    warnings: Vec<String>,
    renamed: Vec<(String, &'static str, Value)>,
}

impl Decoder {
    fn structure(&mut self, path: &str, fields: &'static [Field], value: Value, loose: bool) -> Value {
        let map = match value {
            Value::Map(map) => map,
            Value::Null => return Value::Null,
            other => {
                self.wrong_types.push(format!(
                    "'{path}' expected a map, got '{}'",
                    go_kind(&other, self.is_json)
                ));
                return Value::Null;
            }
        };
        let mut out = Value::default();
        for (written, value) in map {
            let at = if path.is_empty() {
                written.clone()
            } else {
                format!("{path}.{written}")
            };
            let Some(field) = schema::find(fields, &written, loose) else {
                self.unknown.push(at);
                continue;
            };
            if value == Value::Null {
                continue;
            }
            if field.usage == Use::Unsupported {
                self.warnings.push(format!("The '{at}' field {NO_EFFECT}"));
                continue;
            }
            let value = self.value(&at, field.kind, value);
            if field.usage == Use::Pending && asks_for_something(&value) {
                self.warnings.push(format!("The '{at}' field {NO_EFFECT}"));
            }
            match field.usage {
                Use::Used | Use::Pending => {
                    let mut one = Value::default();
                    one.set(field.name, value);
                    // Two spellings of one key, as `name` and `Name`, lay over each other like two files.
                    out.merge(one);
                }
                Use::RenamedTo(new) => self.renamed.push((at, new, value)),
                Use::Ignored | Use::Unsupported => {}
            }
        }
        out
    }

    fn value(&mut self, path: &str, kind: Kind, value: Value) -> Value {
        // A single value in a list stands for itself where no list is wanted: HCL's blocks are lists of one.
        let wants_list = matches!(kind, Kind::Strings | Kind::StructList(_) | Kind::Any);
        let value = match value {
            Value::List(mut items) if !wants_list && items.len() == 1 => items.remove(0),
            value => value,
        };
        match (kind, value) {
            (_, Value::Null) => Value::Null,
            (Kind::Any, value)
            | (Kind::Bool, value @ Value::Bool(_))
            | (Kind::Int, value @ Value::Int(_))
            | (Kind::Float, value @ Value::Float(_))
            | (Kind::String, value @ Value::String(_)) => value,
            // Beyond 2^53 a float may have lost digits: not taken for an integer.
            (Kind::Int, Value::Float(number)) if number.fract() == 0.0 && number.abs() < 9e15 => {
                Value::Int(number as i64)
            }
            (Kind::Float, Value::Int(number)) => Value::Float(number as f64),
            (Kind::Strings, Value::List(items)) => self.list(path, items, Kind::String),
            (Kind::StringMap, Value::Map(map)) => self.map(path, map, Kind::String),
            (Kind::StringsMap, Value::Map(map)) => self.map(path, map, Kind::Strings),
            (Kind::Struct(fields), value) => self.structure(path, fields, value, is_definition(path)),
            (Kind::StructMap(fields), Value::Map(map)) => self.map(path, map, Kind::Struct(fields)),
            (Kind::StructList(fields), Value::List(items)) => {
                // The one block of a single `service { }` or `check { }` is named without a number in errors.
                let single = items.len() == 1 && matches!(path.rsplit('.').next(), Some("service" | "check"));
                Value::List(
                    items
                        .into_iter()
                        .enumerate()
                        .map(|(position, item)| {
                            let at = if single {
                                path.to_owned()
                            } else {
                                format!("{path}[{position}]")
                            };
                            self.structure(&at, fields, item, true)
                        })
                        .filter(|item| *item != Value::Null)
                        .collect(),
                )
            }
            (Kind::StructList(fields), value @ Value::Map(_)) => {
                Value::List(vec![self.structure(path, fields, value, true)])
            }
            (Kind::Strings | Kind::StructList(_), other) => {
                self.wrong_types.push(format!(
                    "'{path}': source data must be an array or slice, got {}",
                    go_kind(&other, self.is_json)
                ));
                Value::Null
            }
            (Kind::StringMap | Kind::StringsMap | Kind::StructMap(_), other) => {
                self.wrong_types.push(format!(
                    "'{path}' expected a map, got '{}'",
                    go_kind(&other, self.is_json)
                ));
                Value::Null
            }
            (Kind::Bool | Kind::Int | Kind::Float | Kind::String, other) => {
                let wanted = match kind {
                    Kind::Bool => "bool",
                    Kind::Int => "int",
                    Kind::Float => "float64",
                    _ => "string",
                };
                let got = match go_kind(&other, self.is_json) {
                    "map" => "map[string]interface {}",
                    "slice" => "[]interface {}",
                    kind => kind,
                };
                self.wrong_types.push(format!(
                    "'{path}' expected type '{wanted}', got unconvertible type '{got}'"
                ));
                Value::Null
            }
        }
    }

    fn list(&mut self, path: &str, items: Vec<Value>, kind: Kind) -> Value {
        let items = items.into_iter().enumerate();
        Value::List(
            items
                .map(|(position, item)| self.value(&format!("{path}[{position}]"), kind, item))
                .filter(|item| *item != Value::Null)
                .collect(),
        )
    }

    fn map(&mut self, path: &str, map: BTreeMap<String, Value>, kind: Kind) -> Value {
        Value::Map(
            map.into_iter()
                .map(|(key, value)| {
                    let value = self.value(&format!("{path}[{key}]"), kind, value);
                    (key, value)
                })
                .filter(|(_, value)| *value != Value::Null)
                .collect(),
        )
    }
}

/// Whether there is anything in it that could have an effect: templates set keys to nothing.
fn asks_for_something(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => false,
        Value::Bool(true) | Value::Int(_) | Value::Float(_) => true,
        Value::String(text) => !text.is_empty(),
        Value::List(items) => !items.is_empty(),
        Value::Map(map) => map.values().any(asks_for_something),
    }
}

/// Whether a struct at this path lies within a service or check.
fn is_definition(path: &str) -> bool {
    let first = path.split(['.', '[']).next().unwrap_or_default().to_lowercase();
    matches!(first.as_str(), "service" | "services" | "check" | "checks")
}

fn go_kind(value: &Value, is_json: bool) -> &'static str {
    match value {
        Value::Null => "nil",
        Value::Bool(_) => "bool",
        // Go reads every number of a JSON file as a float.
        Value::Int(_) if !is_json => "int",
        Value::Int(_) | Value::Float(_) => "float64",
        Value::String(_) => "string",
        Value::List(_) => "slice",
        Value::Map(_) => "map",
    }
}

#[cfg(test)]
mod tests {
    use super::super::{hcl, json};
    use super::*;

    fn check_json(text: &str) -> Result<Decoded, String> {
        decode("f.json", true, json::parse(text).unwrap())
    }

    #[test]
    fn unknown_keys_are_listed_with_their_paths() {
        assert_eq!(
            check_json(r#"{"bogus":1}"#).unwrap_err(),
            "1 error occurred:\n\t* invalid config key bogus\n\n"
        );
        assert_eq!(
            check_json(r#"{"ports":{"bogus":1},"dns_config":{"foo":2},"services":[{},{"x":1}]}"#).unwrap_err(),
            "3 errors occurred:\n\t* invalid config key dns_config.foo\n\t* invalid config key ports.bogus\n\t* invalid config key services[1].x\n\n"
        );
    }

    #[test]
    fn wrong_types_are_named_as_consul_names_them() {
        for (text, want) in [
            (
                r#"{"server":"yes"}"#,
                "1 error(s) decoding:\n\n* 'server' expected type 'bool', got unconvertible type 'string'",
            ),
            (
                r#"{"retry_join":"1.1.1.1"}"#,
                "1 error(s) decoding:\n\n* 'retry_join': source data must be an array or slice, got string",
            ),
            (
                r#"{"node_name":1,"ports":3}"#,
                "2 error(s) decoding:\n\n* 'node_name' expected type 'string', got unconvertible type 'float64'\n* 'ports' expected a map, got 'float64'",
            ),
            (
                r#"{"recursors":["a",1]}"#,
                "1 error(s) decoding:\n\n* 'recursors[1]' expected type 'string', got unconvertible type 'float64'",
            ),
        ] {
            assert_eq!(check_json(text).unwrap_err(), want, "{text}");
        }
    }

    #[test]
    fn definitions_gather_in_lists_with_their_file_and_camel_case_is_accepted() {
        let tree = hcl::parse(
            r#"service { Name = "a" EnableTagOverride = true Check { TTL = "1s" } } service { name = "b" } services = [{ name = "c" }] check { name = "d" }"#,
        )
        .unwrap();
        let decoded = decode("x.hcl", false, tree).unwrap();
        let Some(Value::List(services)) = decoded.tree.get("services") else {
            panic!("services is a list")
        };
        let names: Vec<_> = services
            .iter()
            .map(|s| s.get("name").unwrap().as_str().unwrap())
            .collect();
        assert_eq!(names, ["a", "b", "c"]);
        assert_eq!(services[0].get("enable_tag_override"), Some(&Value::Bool(true)));
        assert_eq!(services[0].get(SOURCE_KEY).unwrap().as_str(), Some("x.hcl"));
        assert!(decoded.tree.get("service").is_none());
    }

    #[test]
    fn mesh_keys_warn_once_each_and_nulls_are_absent() {
        let decoded =
            check_json(r#"{"connect":{"enabled":true,"ca_config":{"x":1}},"segments":null,"xds":{}}"#).unwrap();
        assert_eq!(decoded.warnings.len(), 2);
        assert!(decoded.warnings[0].contains("'connect'"));
    }

    #[test]
    fn a_key_whose_feature_is_to_come_is_checked_kept_and_named_unless_it_asks_for_nothing() {
        let text =
            r#"{"watches":[{"type":"key"}],"autopilot":{"min_quorum":3},"acl":{"tokens":{"agent":"a","default":""}}}"#;
        let decoded = check_json(text).unwrap();
        let keys = ["acl.tokens", "autopilot", "watches"];
        assert_eq!(
            decoded.warnings,
            keys.map(|key| format!(
                "The '{key}' field is accepted and has no effect: this agent does not have the feature."
            ))
        );
        assert_eq!(decoded.tree.get("autopilot.min_quorum"), Some(&Value::Int(3)));
        let nothing = r#"{"watches":[],"acl":{"tokens":{}},"enable_debug":false,"unix_sockets":{"mode":""}}"#;
        assert_eq!(check_json(nothing).unwrap().warnings, Vec::<String>::new());
        assert!(check_json(r#"{"autopilot":{"min_quorum":"x"}}"#).is_err());
    }

    #[test]
    fn old_names_move_with_a_warning_and_never_over_the_new_name() {
        let decoded =
            check_json(r#"{"acl_datacenter":"dc9","acl_token":"old","acl":{"tokens":{"default":"new"}}}"#).unwrap();
        let deprecated = "The 'acl_datacenter' field is deprecated. Use the 'primary_datacenter' field instead.";
        assert!(decoded.warnings.iter().any(|warning| warning == deprecated));
        assert_eq!(decoded.tree.get("primary_datacenter").unwrap().as_str(), Some("dc9"));
        assert_eq!(decoded.tree.get("acl.enabled"), Some(&Value::Bool(true)));
        assert_eq!(decoded.tree.get("acl.tokens.default").unwrap().as_str(), Some("new"));
    }
}
