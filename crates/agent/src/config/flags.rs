//! The agent's command line: Go-style flags into overrides of configuration keys.
//!
//! In: the arguments after `agent`. Out: which files to read, and a tree laid over them; or Go's error text.
//! Not here: environment variables. Agent options are never read from the environment.

use super::value::Value;
use std::collections::BTreeMap;
use thiserror::Error;

/// Format of a configuration file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Json,
    Hcl,
}

impl Format {
    /// The format that a file's name tells.
    pub fn of(path: &str) -> Option<Self> {
        if path.ends_with(".json") {
            Some(Self::Json)
        } else if path.ends_with(".hcl") {
            Some(Self::Hcl)
        } else {
            None
        }
    }
}

/// What the command line asks for.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Flags {
    /// `-config-file` and `-config-dir`, in their order.
    pub config_paths: Vec<String>,
    /// `-config-format`: of every file, whatever its name.
    pub config_format: Option<Format>,
    /// `-hcl` fragments, in their order.
    pub fragments: Vec<String>,
    pub dev: bool,
    /// The keys that flags set.
    pub overrides: Value,
}

impl Flags {
    /// Whether the command line asks for a log in JSON.
    pub fn log_json(&self) -> bool {
        self.overrides.get("log_json") == Some(&Value::Bool(true))
    }
}

/// Why the command line is refused; texts are those of Go's flag package.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum FlagError {
    /// `-h` or `-help`.
    #[error("flag: help requested")]
    Help,
    #[error("flag provided but not defined: -{0}")]
    Unknown(String),
    #[error("bad flag syntax: {0}")]
    BadSyntax(String),
    #[error("flag needs an argument: -{0}")]
    ArgumentMissing(String),
    #[error("invalid boolean value {value:?} for -{flag}: parse error")]
    BadBool { flag: String, value: String },
    #[error("invalid value {value:?} for flag -{flag}: parse error")]
    BadValue { flag: String, value: String },
    #[error("Unexpected extra arguments: [{}]", .0.join(" "))]
    ExtraArguments(Vec<String>),
}

#[derive(Clone, Copy)]
enum Sets {
    Bool(&'static str),
    Int(&'static str),
    Text(&'static str),
    /// Each use adds one.
    Strings(&'static str),
    /// `key:value`; each use adds one.
    Pair(&'static str),
    ConfigPath,
    ConfigFormat,
    Fragment,
    Dev,
    IgnoredBool,
    IgnoredText,
}

use Sets::{Bool, Int, Pair, Strings, Text};

const FLAGS: &[(&str, Sets)] = &[
    ("advertise", Text("advertise_addr")),
    ("advertise-wan", Text("advertise_addr_wan")),
    ("allow-write-http-from", Strings("http_config.allow_write_http_from")),
    ("alt-domain", Text("alt_domain")),
    ("auto-reload-config", Sets::IgnoredBool),
    ("bind", Text("bind_addr")),
    ("bootstrap", Bool("bootstrap")),
    ("bootstrap-expect", Int("bootstrap_expect")),
    ("check_output_max_size", Int("check_output_max_size")),
    ("client", Text("client_addr")),
    ("config-dir", Sets::ConfigPath),
    ("config-file", Sets::ConfigPath),
    ("config-format", Sets::ConfigFormat),
    ("data-dir", Text("data_dir")),
    ("datacenter", Text("datacenter")),
    ("default-query-time", Text("default_query_time")),
    ("dev", Sets::Dev),
    ("disable-host-node-id", Bool("disable_host_node_id")),
    ("disable-keyring-file", Bool("disable_keyring_file")),
    ("dns-port", Int("ports.dns")),
    ("domain", Text("domain")),
    ("enable-local-script-checks", Bool("enable_local_script_checks")),
    ("enable-script-checks", Bool("enable_script_checks")),
    ("encrypt", Text("encrypt")),
    ("grpc-port", Sets::IgnoredText),
    ("grpc-tls-port", Sets::IgnoredText),
    ("hcl", Sets::Fragment),
    ("http-port", Int("ports.http")),
    ("https-port", Int("ports.https")),
    ("join", Strings("start_join")),
    ("join-wan", Strings("start_join_wan")),
    ("log-file", Text("log_file")),
    ("log-json", Bool("log_json")),
    ("log-level", Text("log_level")),
    ("log-rotate-bytes", Int("log_rotate_bytes")),
    ("log-rotate-duration", Text("log_rotate_duration")),
    ("log-rotate-max-files", Int("log_rotate_max_files")),
    ("max-query-time", Text("max_query_time")),
    ("node", Text("node_name")),
    ("node-id", Text("node_id")),
    ("node-meta", Pair("node_meta")),
    ("non-voting-server", Sets::IgnoredBool),
    ("pid-file", Text("pid_file")),
    ("primary-gateway", Sets::IgnoredText),
    ("protocol", Sets::IgnoredText),
    ("raft-protocol", Sets::IgnoredText),
    ("read-replica", Sets::IgnoredBool),
    ("recursor", Strings("recursors")),
    ("rejoin", Bool("rejoin_after_leave")),
    ("retry-interval", Text("retry_interval")),
    ("retry-interval-wan", Text("retry_interval_wan")),
    ("retry-join", Strings("retry_join")),
    ("retry-join-wan", Strings("retry_join_wan")),
    ("retry-max", Int("retry_max")),
    ("retry-max-wan", Int("retry_max_wan")),
    ("segment", Sets::IgnoredText),
    ("serf-lan-allowed-cidrs", Strings("serf_lan_allowed_cidrs")),
    ("serf-lan-bind", Text("serf_lan")),
    ("serf-lan-port", Int("ports.serf_lan")),
    ("serf-wan-allowed-cidrs", Strings("serf_wan_allowed_cidrs")),
    ("serf-wan-bind", Text("serf_wan")),
    ("serf-wan-port", Int("ports.serf_wan")),
    ("server", Bool("server")),
    ("server-port", Int("ports.server")),
    ("syslog", Bool("enable_syslog")),
    ("ui", Bool("ui_config.enabled")),
    ("ui-content-path", Text("ui_config.content_path")),
    ("ui-dir", Text("ui_config.dir")),
];

/// Reads the agent's command line.
pub fn parse_agent_flags(args: &[String]) -> Result<Flags, FlagError> {
    let mut flags = Flags::default();
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        // As in Go: "-" and the first word without a dash end the flags; "--" ends them and is dropped.
        if !arg.starts_with('-') || arg == "-" {
            let extra = std::iter::once(arg).chain(args).cloned().collect();
            return Err(FlagError::ExtraArguments(extra));
        }
        if arg == "--" {
            let extra: Vec<String> = args.cloned().collect();
            return if extra.is_empty() {
                Ok(flags)
            } else {
                Err(FlagError::ExtraArguments(extra))
            };
        }
        let body = arg.strip_prefix("--").unwrap_or(&arg[1..]);
        if body.is_empty() || body.starts_with(['-', '=']) {
            return Err(FlagError::BadSyntax(arg.clone()));
        }
        let (name, inline) = match body.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (body, None),
        };
        if matches!(name, "h" | "help") {
            return Err(FlagError::Help);
        }
        let Some((_, sets)) = FLAGS.iter().find(|(known, _)| *known == name) else {
            return Err(FlagError::Unknown(name.to_owned()));
        };
        if let Bool(_) | Sets::Dev | Sets::IgnoredBool = sets {
            let text = inline.unwrap_or("true");
            let value = match text {
                "1" | "t" | "T" | "true" | "TRUE" | "True" => true,
                "0" | "f" | "F" | "false" | "FALSE" | "False" => false,
                _ => {
                    return Err(FlagError::BadBool {
                        flag: name.to_owned(),
                        value: text.to_owned(),
                    });
                }
            };
            match sets {
                Bool(key) => flags.overrides.set(key, Value::Bool(value)),
                Sets::Dev => flags.dev = value,
                _ => {}
            }
            continue;
        }
        let value = match inline {
            Some(value) => value.to_owned(),
            None => args
                .next()
                .ok_or_else(|| FlagError::ArgumentMissing(name.to_owned()))?
                .clone(),
        };
        let bad = || FlagError::BadValue {
            flag: name.to_owned(),
            value: value.clone(),
        };
        match sets {
            Int(key) => {
                let number = value.parse().map_err(|_| bad())?;
                flags.overrides.set(key, Value::Int(number));
            }
            // An empty value is as good as none: programs that start an agent pass `-bind=`.
            Text(_) | Strings(_) | Sets::ConfigPath if value.is_empty() => {}
            Text(key) => flags.overrides.set(key, Value::String(value)),
            Strings(key) => {
                let mut one = Value::default();
                one.set(key, Value::List(vec![Value::String(value)]));
                flags.overrides.merge(one);
            }
            Pair(key) => {
                let (name, value) = value.split_once(':').unwrap_or((value.as_str(), ""));
                let pair = BTreeMap::from([(name.to_owned(), Value::String(value.to_owned()))]);
                let mut one = Value::default();
                one.set(key, Value::Map(pair));
                flags.overrides.merge(one);
            }
            Sets::ConfigPath => flags.config_paths.push(value),
            Sets::ConfigFormat => {
                flags.config_format = match value.as_str() {
                    "" => None,
                    "json" => Some(Format::Json),
                    "hcl" => Some(Format::Hcl),
                    _ => return Err(bad()),
                };
            }
            Sets::Fragment => flags.fragments.push(value),
            Bool(_) | Sets::Dev | Sets::IgnoredBool | Sets::IgnoredText => {}
        }
    }
    Ok(flags)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Flags, FlagError> {
        let args: Vec<String> = line
            .split(' ')
            .filter(|word| !word.is_empty())
            .map(str::to_owned)
            .collect();
        parse_agent_flags(&args)
    }

    #[test]
    fn flags_set_keys_in_all_of_gos_forms() {
        let flags = parse("-server --bootstrap=false -node n1 -http-port=0x -bind");
        assert_eq!(
            flags.unwrap_err().to_string(),
            "invalid value \"0x\" for flag -http-port: parse error"
        );
        let flags = parse(
            "-dev -server --bootstrap=false -node n1 --http-port=-1 -retry-join a -retry-join=b:1 -node-meta k:v:w -node-meta x -config-file f.json -config-dir=d -hcl a=1 -config-format=hcl -bind= -ui",
        )
        .unwrap();
        assert!(flags.dev);
        assert_eq!(flags.overrides.get("server"), Some(&Value::Bool(true)));
        assert_eq!(flags.overrides.get("bootstrap"), Some(&Value::Bool(false)));
        assert_eq!(flags.overrides.get("node_name").unwrap().as_str(), Some("n1"));
        assert_eq!(flags.overrides.get("ports.http"), Some(&Value::Int(-1)));
        let list = ["a", "b:1"].map(|text| Value::String(text.to_owned()));
        assert_eq!(flags.overrides.get("retry_join"), Some(&Value::List(list.to_vec())));
        assert_eq!(flags.overrides.get("node_meta.k").unwrap().as_str(), Some("v:w"));
        assert_eq!(flags.overrides.get("node_meta.x").unwrap().as_str(), Some(""));
        assert_eq!(flags.config_paths, ["f.json", "d"]);
        assert_eq!(flags.fragments, ["a=1"]);
        assert_eq!(flags.config_format, Some(Format::Hcl));
        assert_eq!(flags.overrides.get("bind_addr"), None);
        assert_eq!(flags.overrides.get("ui_config.enabled"), Some(&Value::Bool(true)));
    }

    #[test]
    fn errors_read_as_gos() {
        for (line, want) in [
            ("-bogus", "flag provided but not defined: -bogus"),
            ("--bogus=1", "flag provided but not defined: -bogus"),
            ("-dev a b", "Unexpected extra arguments: [a b]"),
            ("-- a", "Unexpected extra arguments: [a]"),
            ("-node", "flag needs an argument: -node"),
            (
                "-server=maybe",
                "invalid boolean value \"maybe\" for -server: parse error",
            ),
            (
                "-http-port=abc",
                "invalid value \"abc\" for flag -http-port: parse error",
            ),
            ("---x", "bad flag syntax: ---x"),
            ("-=x", "bad flag syntax: -=x"),
            ("-help", "flag: help requested"),
        ] {
            assert_eq!(parse(line).unwrap_err().to_string(), want, "{line}");
        }
    }

    #[test]
    fn every_flag_sets_a_key_of_the_schema_with_its_type() {
        use super::super::schema::{self, Kind};
        for (flag, sets) in FLAGS {
            let (Bool(path) | Int(path) | Text(path) | Strings(path) | Pair(path)) = sets else {
                continue;
            };
            let mut fields = schema::AGENT;
            let mut kind = Kind::Any;
            for part in path.split('.') {
                kind = schema::find(fields, part, false)
                    .unwrap_or_else(|| panic!("-{flag}: {path}"))
                    .kind;
                if let Kind::Struct(inner) = kind {
                    fields = inner;
                }
            }
            let fits = matches!(
                (sets, kind),
                (Bool(_), Kind::Bool)
                    | (Int(_), Kind::Int)
                    | (Text(_), Kind::String)
                    | (Strings(_), Kind::Strings)
                    | (Pair(_), Kind::StringMap)
            );
            assert!(fits, "-{flag} does not fit {path}");
        }
    }
}
