//! The merged tree into the typed configuration: defaults, ranges, and the rules between keys.
//!
//! Every value that cannot be read is reported at once; the rules after that stop at the first that is broken.
//! Not here: types of keys (`decode` has checked them), definitions (`file_definition`).

use super::HostFacts;
use super::address::{self, HostPort, ListenAddress};
use super::definition::{self, ScriptPolicy};
use super::duration;
use super::file_definition::{self, Inherited};
use super::value::Value;
use ipnet::IpNet;
use quorate_gossip::RingKey;
use quorate_types::limits::{
    BLOCKING_WAIT_DEFAULT, BLOCKING_WAIT_MAX, CHECK_OUTPUT_LEN_BYTES_MAX, KV_VALUE_LEN_BYTES_MAX, RPC_HOLD_TIMEOUT,
};
use quorate_types::{CheckDefinition, NodeId, ServiceDefinition};
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

/// Ports; `None`: switched off.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ports {
    pub dns: Option<u16>,
    pub http: Option<u16>,
    pub https: Option<u16>,
    pub serf_lan: u16,
    pub serf_wan: Option<u16>,
    pub server: u16,
}

/// How to find the other members.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Join {
    /// Tried once; a failure ends the agent.
    pub start_join: Vec<HostPort>,
    pub start_join_wan: Vec<HostPort>,
    pub retry_join: Vec<HostPort>,
    pub retry_join_wan: Vec<HostPort>,
    pub retry_interval: Duration,
    pub retry_interval_wan: Duration,
    /// 0: for ever.
    pub retry_max: u32,
    pub retry_max_wan: u32,
    pub rejoin_after_leave: bool,
}

/// Timing of one gossip pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gossip {
    pub gossip_nodes: u32,
    pub gossip_interval: Duration,
    pub probe_interval: Duration,
    pub probe_timeout: Duration,
    pub retransmit_mult: u32,
    pub suspicion_mult: u32,
    pub reconnect_timeout: Duration,
    /// Empty: members may be anywhere.
    pub allowed_cidrs: Vec<IpNet>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Performance {
    /// 1..=10; scales Raft's timing.
    pub raft_multiplier: u32,
    pub leave_drain_time: Duration,
    pub rpc_hold_timeout: Duration,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Raft {
    pub snapshot_threshold: u64,
    pub snapshot_interval: Duration,
    pub trailing_logs: u64,
}

/// What seeds the replicated autopilot configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Autopilot {
    pub cleanup_dead_servers: bool,
    pub last_contact_threshold: Duration,
    pub max_trailing_logs: u64,
    pub min_quorum: u32,
    pub server_stabilization_time: Duration,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RecursorStrategy {
    #[default]
    Sequential,
    Random,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Soa {
    pub refresh: u32,
    pub retry: u32,
    pub expire: u32,
    pub min_ttl: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dns {
    /// Ends with a dot.
    pub domain: String,
    pub alt_domain: Option<String>,
    pub recursors: Vec<HostPort>,
    pub recursor_strategy: RecursorStrategy,
    pub recursor_timeout: Duration,
    pub allow_stale: bool,
    pub max_stale: Duration,
    pub node_ttl: Duration,
    /// By service name, prefix with `*`, or `*`.
    pub service_ttl: BTreeMap<String, Duration>,
    pub enable_truncate: bool,
    pub only_passing: bool,
    pub disable_compression: bool,
    pub udp_answer_limit: usize,
    /// 0: none.
    pub a_record_limit: usize,
    pub node_meta_txt: bool,
    pub soa: Soa,
    pub use_cache: bool,
    pub cache_max_age: Duration,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Http {
    /// Path prefixes answered with 403.
    pub block_endpoints: Vec<String>,
    pub response_headers: BTreeMap<String, String>,
    /// CIDRs; empty: everyone may write.
    pub allow_write_http_from: Vec<IpNet>,
    pub use_cache: bool,
    pub max_header_bytes: usize,
    /// Answers are indented without being asked (`-dev`).
    pub pretty: bool,
    pub enable_debug: bool,
    pub default_query_time: Duration,
    pub max_query_time: Duration,
    pub discovery_max_stale: Duration,
    pub disable_unprintable_char_filter: bool,
    pub disable_kv_key_validation: bool,
    pub translate_wan_addrs: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RequestLimitMode {
    #[default]
    Disabled,
    Permissive,
    Enforcing,
}

#[derive(Clone, Debug, PartialEq)]
pub struct RequestLimits {
    pub mode: RequestLimitMode,
    /// Requests a second; `None`: no limit.
    pub read_rate: Option<f64>,
    pub write_rate: Option<f64>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Limits {
    /// 0: no limit.
    pub http_max_conns_per_client: u32,
    pub https_handshake_timeout: Duration,
    pub rpc_handshake_timeout: Duration,
    pub rpc_max_conns_per_client: u32,
    /// Requests a second of a client agent; `None`: no limit.
    pub rpc_rate: Option<f64>,
    pub rpc_max_burst: u32,
    pub rpc_client_timeout: Duration,
    pub kv_max_value_size: usize,
    pub txn_max_req_len: usize,
    pub request_limits: RequestLimits,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ui {
    pub enabled: bool,
    pub dir: Option<PathBuf>,
    /// Begins and ends with a slash.
    pub content_path: String,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AclPolicy {
    #[default]
    Allow,
    Deny,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AclTokens {
    pub initial_management: String,
    pub default: String,
    pub agent: String,
    pub agent_recovery: String,
    pub replication: String,
    pub config_file_service_registration: String,
    pub dns: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Acl {
    pub enabled: bool,
    pub default_policy: AclPolicy,
    /// `allow`, `deny`, `extend-cache` or `async-cache`.
    pub down_policy: String,
    pub token_ttl: Duration,
    pub policy_ttl: Duration,
    pub role_ttl: Duration,
    pub enable_key_list_policy: bool,
    pub enable_token_persistence: bool,
    pub enable_token_replication: bool,
    pub tokens: AclTokens,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogLevel {
    Trace,
    Debug,
    Info,
    Warn,
    Error,
}

impl LogLevel {
    /// As `tracing` names it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Trace => "trace",
            Self::Debug => "debug",
            Self::Info => "info",
            Self::Warn => "warn",
            Self::Error => "error",
        }
    }
}

impl std::str::FromStr for LogLevel {
    type Err = ();
    fn from_str(text: &str) -> Result<Self, ()> {
        match text.to_ascii_lowercase().as_str() {
            "trace" => Ok(Self::Trace),
            "debug" => Ok(Self::Debug),
            "info" => Ok(Self::Info),
            "warn" => Ok(Self::Warn),
            "err" | "error" => Ok(Self::Error),
            _ => Err(()),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Logging {
    pub level: LogLevel,
    pub json: bool,
    pub file: Option<PathBuf>,
    /// 0: no rotation by size.
    pub rotate_bytes: u64,
    pub rotate_duration: Duration,
    pub rotate_max_files: i64,
    pub syslog: bool,
    pub syslog_facility: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Telemetry {
    pub metrics_prefix: String,
    /// Zero: no Prometheus format.
    pub prometheus_retention_time: Duration,
    pub disable_hostname: bool,
    /// `+prefix` or `-prefix`; the longest that matches decides.
    pub prefix_filter: Vec<String>,
    pub filter_default: bool,
}

/// The whole configuration of an agent, validated.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    pub dev_mode: bool,
    pub node_name: String,
    /// `None`: the one kept in the data directory, or a fresh one.
    pub node_id: Option<NodeId>,
    pub disable_host_node_id: bool,
    pub node_meta: BTreeMap<String, String>,
    /// In lower case.
    pub datacenter: String,
    pub primary_datacenter: String,
    /// `None` in dev mode: everything is kept in memory.
    pub data_dir: Option<PathBuf>,
    pub pid_file: Option<PathBuf>,

    pub server: bool,
    pub bootstrap: bool,
    /// 0: not given. Never 1: that is `bootstrap`.
    pub bootstrap_expect: u32,
    pub join: Join,
    pub leave_on_terminate: bool,
    pub skip_leave_on_interrupt: bool,
    /// The gossip key a keyring file begins with.
    pub encrypt: Option<RingKey>,
    pub encrypt_verify_incoming: bool,
    pub encrypt_verify_outgoing: bool,
    pub disable_keyring_file: bool,
    pub disable_coordinates: bool,
    pub session_ttl_min: Duration,
    pub server_rejoin_age_max: Duration,

    pub ports: Ports,
    pub bind_addr: IpAddr,
    pub advertise_addr: IpAddr,
    pub advertise_addr_wan: IpAddr,
    /// Extra tagged addresses of the node (`lan_ipv4`, ...), beside `lan` and `wan`.
    pub tagged_addresses: BTreeMap<String, String>,
    /// Where the server's RPC listens.
    pub server_bind: SocketAddr,
    pub serf_lan_bind: SocketAddr,
    /// `None`: no WAN pool.
    pub serf_wan_bind: Option<SocketAddr>,
    pub client_addrs: Vec<IpAddr>,
    /// Empty when the port is off.
    pub http_addrs: Vec<ListenAddress>,
    pub https_addrs: Vec<ListenAddress>,
    pub dns_addrs: Vec<SocketAddr>,

    pub gossip_lan: Gossip,
    pub gossip_wan: Gossip,
    pub performance: Performance,
    pub raft: Raft,
    pub autopilot: Autopilot,
    pub dns: Dns,
    pub http: Http,
    pub limits: Limits,
    pub ui: Ui,
    pub acl: Acl,
    pub logging: Logging,
    pub telemetry: Telemetry,

    pub scripts: ScriptPolicy,
    pub check_update_interval: Duration,
    pub check_output_max_size: usize,
    pub discard_check_output: bool,
    pub disable_remote_exec: bool,
    /// Ids are unique; the checks within are complete.
    pub services: Vec<ServiceDefinition>,
    /// Checks of no or of another definition's service.
    pub checks: Vec<CheckDefinition>,
    /// Definitions that read well and cannot be registered, one sentence each. `validate` accepts them; an agent with
    /// any refuses to start or to reload.
    pub refused_definitions: Vec<String>,
    pub warnings: Vec<String>,
}

/// What `-dev` sets beneath all files: one server in memory that answers at once.
pub fn dev_defaults() -> Value {
    let mut tree = Value::default();
    let text = |text: &str| Value::String(text.to_owned());
    for key in [
        "server",
        "bootstrap",
        "disable_keyring_file",
        "disable_host_node_id",
        "enable_debug",
    ] {
        tree.set(key, Value::Bool(true));
    }
    tree.set("ui_config.enabled", Value::Bool(true));
    tree.set("enable_local_script_checks", Value::Bool(true));
    tree.set("bind_addr", text("127.0.0.1"));
    tree.set("client_addr", text("127.0.0.1"));
    tree.set("log_level", text("DEBUG"));
    tree.set("performance.raft_multiplier", Value::Int(1));
    tree.set("performance.leave_drain_time", text("0s"));
    for pool in ["gossip_lan", "gossip_wan"] {
        for key in ["gossip_interval", "probe_interval", "probe_timeout"] {
            tree.set(&format!("{pool}.{key}"), text("100ms"));
        }
        tree.set(&format!("{pool}.suspicion_mult"), Value::Int(3));
    }
    tree
}

/// Typed reads of the merged tree; what cannot be read is noted and replaced by the default.
struct Reader<'a> {
    tree: &'a Value,
    /// Values that cannot be read.
    errors: Vec<String>,
    /// Values that can be read and break a rule.
    broken: Vec<String>,
}

impl Reader<'_> {
    fn flag(&self, path: &str, default: bool) -> bool {
        match self.tree.get(path) {
            Some(Value::Bool(value)) => *value,
            _ => default,
        }
    }

    fn int(&self, path: &str, default: i64) -> i64 {
        match self.tree.get(path) {
            Some(Value::Int(value)) => *value,
            _ => default,
        }
    }

    /// An integer that is not negative and fits its type.
    fn count<T: TryFrom<i64> + Default>(&mut self, path: &str, default: i64) -> T {
        let value = self.int(path, default);
        T::try_from(value).unwrap_or_else(|_| {
            self.broken.push(if value < 0 {
                format!("{path} cannot be {value}. Must be greater than or equal to zero")
            } else {
                format!("{path} cannot be {value}: it is too large")
            });
            T::default()
        })
    }

    fn rate(&self, path: &str) -> Option<f64> {
        match self.tree.get(path) {
            Some(Value::Float(rate)) if *rate >= 0.0 => Some(*rate),
            _ => None,
        }
    }

    fn text(&self, path: &str) -> String {
        self.text_or(path, "")
    }

    /// The text at `path`; an empty one counts as none.
    fn text_or(&self, path: &str, default: &str) -> String {
        let text = self.tree.get(path).and_then(Value::as_str).unwrap_or_default();
        if text.is_empty() {
            default.to_owned()
        } else {
            text.to_owned()
        }
    }

    fn path(&self, path: &str) -> Option<PathBuf> {
        let text = self.text(path);
        (!text.is_empty()).then(|| PathBuf::from(text))
    }

    fn time(&mut self, path: &str, default: Duration) -> Duration {
        let text = self.text(path);
        if text.is_empty() {
            return default;
        }
        duration::parse(&text).unwrap_or_else(|reason| {
            self.errors
                .push(format!("{path}: invalid duration: {text:?}: {reason}"));
            default
        })
    }

    /// A time that must not be zero: nothing could run at an interval of zero.
    fn interval(&mut self, path: &str, default: Duration) -> Duration {
        let interval = self.time(path, default);
        if interval.is_zero() {
            self.broken.push(format!("{path} cannot be zero"));
            return default;
        }
        interval
    }

    fn strings(&self, path: &str) -> Vec<String> {
        match self.tree.get(path) {
            Some(Value::List(items)) => items
                .iter()
                .filter_map(|item| item.as_str().map(str::to_owned))
                .collect(),
            _ => Vec::new(),
        }
    }

    fn string_map(&self, path: &str) -> BTreeMap<String, String> {
        match self.tree.get(path) {
            Some(Value::Map(map)) => map
                .iter()
                .filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned())))
                .collect(),
            _ => BTreeMap::new(),
        }
    }

    /// `None`: switched off, by a port of zero or less.
    fn port(&mut self, path: &str, default: i64) -> Option<u16> {
        let port = self.int(path, default);
        if port <= 0 {
            return None;
        }
        u16::try_from(port)
            .map_err(|_| self.errors.push(format!("{path}: invalid port: {port}")))
            .ok()
    }

    fn needed_port(&mut self, path: &str, default: u16) -> u16 {
        let before = self.errors.len();
        let port = self.port(path, i64::from(default));
        if port.is_none() && self.errors.len() == before {
            self.broken.push(format!("{path} must be a valid port from 1 to 65535"));
        }
        port.unwrap_or(default)
    }

    fn note<T>(&mut self, result: Result<T, String>) -> Option<T> {
        result.map_err(|error| self.errors.push(error)).ok()
    }

    fn hosts(&mut self, path: &str, default_port: u16, facts: &HostFacts) -> Vec<HostPort> {
        let mut hosts = Vec::new();
        for text in self.strings(path) {
            let expanded = address::expand(&text, &facts.interfaces).map_err(|why| format!("{path}: {why}"));
            let Some(expanded) = self.note(expanded) else { continue };
            for word in expanded.split_whitespace() {
                let host = HostPort::parse(word, default_port).map_err(|why| format!("{path}: {why}"));
                hosts.extend(self.note(host));
            }
        }
        hosts
    }

    fn cidrs(&mut self, path: &str) -> Vec<IpNet> {
        let mut cidrs = Vec::new();
        for text in self.strings(path) {
            match text.parse() {
                Ok(cidr) => cidrs.push(cidr),
                Err(_) => self.errors.push(format!("{path}: invalid cidr: {text}")),
            }
        }
        cidrs
    }

    fn gossip(&mut self, pool: &str, defaults: &Gossip) -> Gossip {
        let at = |key: &str| format!("gossip_{pool}.{key}");
        let suffix = if pool == "wan" { "_wan" } else { "" };
        Gossip {
            gossip_nodes: self.count(&at("gossip_nodes"), i64::from(defaults.gossip_nodes)),
            gossip_interval: self.interval(&at("gossip_interval"), defaults.gossip_interval),
            probe_interval: self.interval(&at("probe_interval"), defaults.probe_interval),
            probe_timeout: self.interval(&at("probe_timeout"), defaults.probe_timeout),
            retransmit_mult: self.count(&at("retransmit_mult"), i64::from(defaults.retransmit_mult)),
            suspicion_mult: self.count(&at("suspicion_mult"), i64::from(defaults.suspicion_mult)),
            reconnect_timeout: self.time(&format!("reconnect_timeout{suffix}"), defaults.reconnect_timeout),
            allowed_cidrs: self.cidrs(&format!("serf_{pool}_allowed_cidrs")),
        }
    }
}

const fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

/// Members that failed are forgotten after this; a shorter time than the minimum would forget a rebooting machine.
const RECONNECT_TIMEOUT: Duration = secs(72 * 3600);
const RECONNECT_TIMEOUT_MIN: Duration = secs(8 * 3600);
const SERVER_REJOIN_AGE_MAX_MIN: Duration = secs(6 * 3600);

/// Why no configuration comes of the merged tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mistake {
    /// Values that cannot be read: all of them.
    Values(Vec<String>),
    /// The first rule that is broken.
    Rule(String),
}

/// Builds the configuration, or says why not.
pub fn build(tree: &Value, dev: bool, facts: &HostFacts) -> Result<Config, Mistake> {
    let mut r = Reader {
        tree,
        errors: Vec::new(),
        broken: Vec::new(),
    };
    let mut warnings = Vec::new();
    let interfaces = facts.interfaces.as_slice();

    let ports = Ports {
        dns: r.port("ports.dns", 8600),
        http: r.port("ports.http", 8500),
        https: r.port("ports.https", -1),
        serf_lan: r.needed_port("ports.serf_lan", 8301),
        serf_wan: r.port("ports.serf_wan", 8302),
        server: r.needed_port("ports.server", 8300),
    };

    // Addresses.
    let any = IpAddr::from([0, 0, 0, 0]);
    let bind_text = r.text_or("bind_addr", "0.0.0.0");
    let bind_addr = r
        .note(address::one_ip("bind_addr", &bind_text, interfaces))
        .flatten()
        .unwrap_or(any);
    let mut optional_ip = |key: &str| {
        let text = r.text(key);
        r.note(address::one_ip(key, &text, interfaces)).flatten()
    };
    let advertise = optional_ip("advertise_addr");
    let advertise_wan = optional_ip("advertise_addr_wan");
    let serf_lan = optional_ip("serf_lan").unwrap_or(bind_addr);
    let serf_wan = optional_ip("serf_wan").unwrap_or(bind_addr);
    let extra: Vec<(&str, Option<IpAddr>)> = [
        ("lan_ipv4", "advertise_addr_ipv4"),
        ("lan_ipv6", "advertise_addr_ipv6"),
        ("wan_ipv4", "advertise_addr_wan_ipv4"),
        ("wan_ipv6", "advertise_addr_wan_ipv6"),
    ]
    .into_iter()
    .map(|(tag, key)| (tag, optional_ip(key)))
    .collect();
    for (key, ip) in [("Advertise", advertise), ("Advertise WAN", advertise_wan)] {
        if ip.is_some_and(|ip| ip.is_unspecified()) {
            r.broken.push(format!("{key} address cannot be 0.0.0.0, :: or [::]"));
        }
    }
    let detected = match advertise {
        Some(ip) => Ok(ip),
        None => address::detect_advertise(bind_addr, interfaces),
    };
    let advertise_addr = *detected.as_ref().unwrap_or(&bind_addr);
    let advertise_addr_wan = advertise_wan.unwrap_or(advertise_addr);
    let mut tagged_addresses = BTreeMap::new();
    for (tag, ip) in [("lan", advertise_addr), ("wan", advertise_addr_wan)] {
        let family = if ip.is_ipv4() { "ipv4" } else { "ipv6" };
        tagged_addresses.insert(tag.to_owned(), ip.to_string());
        tagged_addresses.insert(format!("{tag}_{family}"), ip.to_string());
    }
    for (tag, ip) in extra {
        if let Some(ip) = ip {
            tagged_addresses.insert(tag.to_owned(), ip.to_string());
        }
    }
    let client_text = r.text_or("client_addr", "127.0.0.1");
    let client_addrs = address::ip_list("client_addr", &client_text, interfaces);
    let client_addrs = r.note(client_addrs).unwrap_or_default();
    let mut listen = |key: &str, port: Option<u16>, allow_unix: bool| {
        let path = format!("addresses.{key}");
        let own = r.text(&path);
        match port {
            None => Vec::new(),
            Some(port) if own.trim().is_empty() => client_addrs
                .iter()
                .map(|ip| ListenAddress::Tcp(SocketAddr::new(*ip, port)))
                .collect(),
            Some(port) => {
                let list = address::listen_list(&path, &own, port, allow_unix, interfaces);
                r.note(list).unwrap_or_default()
            }
        }
    };
    let dns_listen = listen("dns", ports.dns, false);
    let http_addrs = listen("http", ports.http, true);
    let https_addrs = listen("https", ports.https, true);
    let dns_addrs = dns_listen
        .into_iter()
        .filter_map(|address| match address {
            ListenAddress::Tcp(address) => Some(address),
            ListenAddress::Unix(_) => None,
        })
        .collect::<Vec<_>>();

    let node_id_text = r.text("node_id");
    let node_id = match node_id_text.as_str() {
        "" => None,
        text => {
            let id = text
                .parse::<NodeId>()
                .map_err(|why| format!("node_id: {why}: {text:?}"));
            r.note(id)
        }
    };
    let encrypt_text = r.text("encrypt");
    let encrypt = match encrypt_text.as_str() {
        "" => None,
        text => match RingKey::from_base64(text) {
            Ok(key) => Some(key),
            Err(why) => {
                r.broken.push(format!("encrypt has invalid key: {why}"));
                None
            }
        },
    };

    let server = r.flag("server", false);
    let join = Join {
        start_join: r.hosts("start_join", ports.serf_lan, facts),
        start_join_wan: r.hosts("start_join_wan", ports.serf_wan.unwrap_or(8302), facts),
        retry_join: r.hosts("retry_join", ports.serf_lan, facts),
        retry_join_wan: r.hosts("retry_join_wan", ports.serf_wan.unwrap_or(8302), facts),
        retry_interval: r.interval("retry_interval", secs(30)),
        retry_interval_wan: r.interval("retry_interval_wan", secs(30)),
        retry_max: r.count("retry_max", 0),
        retry_max_wan: r.count("retry_max_wan", 0),
        rejoin_after_leave: r.flag("rejoin_after_leave", false),
    };
    // memberlist's LAN and WAN profiles.
    let gossip_lan = r.gossip(
        "lan",
        &Gossip {
            gossip_nodes: 3,
            gossip_interval: Duration::from_millis(200),
            probe_interval: secs(1),
            probe_timeout: Duration::from_millis(500),
            retransmit_mult: 4,
            suspicion_mult: 4,
            reconnect_timeout: RECONNECT_TIMEOUT,
            allowed_cidrs: Vec::new(),
        },
    );
    let gossip_wan = r.gossip(
        "wan",
        &Gossip {
            gossip_nodes: 4,
            gossip_interval: Duration::from_millis(500),
            probe_interval: secs(5),
            probe_timeout: secs(3),
            retransmit_mult: 4,
            suspicion_mult: 6,
            reconnect_timeout: RECONNECT_TIMEOUT,
            allowed_cidrs: Vec::new(),
        },
    );
    let raft_multiplier = r.int("performance.raft_multiplier", 5);
    let performance = Performance {
        raft_multiplier: u32::try_from(raft_multiplier).unwrap_or_default(),
        leave_drain_time: r.time("performance.leave_drain_time", secs(5)),
        rpc_hold_timeout: r.time("performance.rpc_hold_timeout", RPC_HOLD_TIMEOUT),
    };
    let raft = Raft {
        snapshot_threshold: r.count("raft_snapshot_threshold", 16_384),
        snapshot_interval: r.interval("raft_snapshot_interval", secs(30)),
        trailing_logs: r.count("raft_trailing_logs", 10_000),
    };
    let autopilot = Autopilot {
        cleanup_dead_servers: r.flag("autopilot.cleanup_dead_servers", true),
        last_contact_threshold: r.time("autopilot.last_contact_threshold", Duration::from_millis(200)),
        max_trailing_logs: r.count("autopilot.max_trailing_logs", 250),
        min_quorum: r.count("autopilot.min_quorum", 0),
        server_stabilization_time: r.time("autopilot.server_stabilization_time", secs(10)),
    };

    // DNS.
    let mut recursors = Vec::new();
    for text in r.strings("recursors") {
        let expanded = address::expand(&text, interfaces).map_err(|why| format!("recursors: {why}"));
        let Some(expanded) = r.note(expanded) else { continue };
        match HostPort::parse(&expanded, 53) {
            Ok(recursor) if recursors.contains(&recursor) => {}
            Ok(recursor) => recursors.push(recursor),
            // Consul's `validate` accepts it.
            Err(why) => warnings.push(format!("recursors: {why}: it is left out")),
        }
    }
    let mut service_ttl = BTreeMap::new();
    for (name, text) in r.string_map("dns_config.service_ttl") {
        match duration::parse(&text) {
            Ok(ttl) => {
                service_ttl.insert(name, ttl);
            }
            Err(why) => r.errors.push(format!(
                "dns_config.service_ttl[{name:?}]: invalid duration: {text:?}: {why}"
            )),
        }
    }
    let strategy = r.text_or("dns_config.recursor_strategy", "sequential");
    let recursor_strategy = match strategy.as_str() {
        "sequential" => RecursorStrategy::Sequential,
        "random" => RecursorStrategy::Random,
        other => {
            r.errors.push(format!(
                "dns_config.recursor_strategy: invalid value {other:?}, expected \"sequential\" or \"random\""
            ));
            RecursorStrategy::Sequential
        }
    };
    let domain = |text: String| {
        let text = text.trim_matches('.').to_lowercase();
        format!("{text}.")
    };
    let alt_domain = r.text("alt_domain");
    let dns = Dns {
        domain: domain(r.text_or("domain", "consul.")),
        alt_domain: (!alt_domain.is_empty()).then(|| domain(alt_domain)),
        recursors,
        recursor_strategy,
        recursor_timeout: r.interval("dns_config.recursor_timeout", secs(2)),
        allow_stale: r.flag("dns_config.allow_stale", true),
        max_stale: r.time("dns_config.max_stale", secs(87_600 * 3600)),
        node_ttl: r.time("dns_config.node_ttl", Duration::ZERO),
        service_ttl,
        enable_truncate: r.flag("dns_config.enable_truncate", false),
        only_passing: r.flag("dns_config.only_passing", false),
        disable_compression: r.flag("dns_config.disable_compression", false),
        udp_answer_limit: usize::try_from(r.int("dns_config.udp_answer_limit", 3)).unwrap_or_default(),
        a_record_limit: usize::try_from(r.int("dns_config.a_record_limit", 0)).unwrap_or_default(),
        node_meta_txt: r.flag("dns_config.enable_additional_node_meta_txt", true),
        soa: Soa {
            refresh: r.count("dns_config.soa.refresh", 3600),
            retry: r.count("dns_config.soa.retry", 600),
            expire: r.count("dns_config.soa.expire", 86_400),
            min_ttl: r.count("dns_config.soa.min_ttl", 0),
        },
        use_cache: r.flag("dns_config.use_cache", false),
        cache_max_age: r.time("dns_config.cache_max_age", Duration::ZERO),
    };

    // HTTP, limits, reads.
    let max_header_bytes: usize = r.count("http_config.max_header_bytes", 0);
    let http = Http {
        block_endpoints: r.strings("http_config.block_endpoints"),
        response_headers: r.string_map("http_config.response_headers"),
        allow_write_http_from: r.cidrs("http_config.allow_write_http_from"),
        use_cache: r.flag("http_config.use_cache", true),
        max_header_bytes: if max_header_bytes == 0 {
            1 << 20
        } else {
            max_header_bytes
        },
        pretty: dev,
        enable_debug: r.flag("enable_debug", false),
        default_query_time: r.interval("default_query_time", BLOCKING_WAIT_DEFAULT),
        max_query_time: r.interval("max_query_time", BLOCKING_WAIT_MAX),
        discovery_max_stale: r.time("discovery_max_stale", Duration::ZERO),
        disable_unprintable_char_filter: r.flag("disable_http_unprintable_char_filter", false),
        disable_kv_key_validation: r.flag("disable_kv_key_validation", false),
        translate_wan_addrs: r.flag("translate_wan_addrs", false),
    };
    let mode = r.text_or("limits.request_limits.mode", "disabled");
    let mode = match mode.as_str() {
        "disabled" => RequestLimitMode::Disabled,
        "permissive" => RequestLimitMode::Permissive,
        "enforcing" => RequestLimitMode::Enforcing,
        other => {
            r.errors
                .push(format!("limits.request_limits.mode: invalid value {other:?}"));
            RequestLimitMode::Disabled
        }
    };
    let kv_max_value_size = r.count("limits.kv_max_value_size", KV_VALUE_LEN_BYTES_MAX as i64);
    let limits = Limits {
        http_max_conns_per_client: r.count("limits.http_max_conns_per_client", 200),
        https_handshake_timeout: r.time("limits.https_handshake_timeout", secs(5)),
        rpc_handshake_timeout: r.time("limits.rpc_handshake_timeout", secs(5)),
        rpc_max_conns_per_client: r.count("limits.rpc_max_conns_per_client", 100),
        rpc_rate: r.rate("limits.rpc_rate"),
        rpc_max_burst: r.count("limits.rpc_max_burst", 1000),
        rpc_client_timeout: r.time("limits.rpc_client_timeout", secs(60)),
        kv_max_value_size,
        txn_max_req_len: r.count("limits.txn_max_req_len", KV_VALUE_LEN_BYTES_MAX as i64),
        request_limits: RequestLimits {
            mode,
            read_rate: r.rate("limits.request_limits.read_rate"),
            write_rate: r.rate("limits.request_limits.write_rate"),
        },
    };
    let content_path = r.text_or("ui_config.content_path", &r.text_or("ui_content_path", "/ui/"));
    let ui = Ui {
        enabled: r.flag("ui_config.enabled", r.flag("ui", false)),
        dir: r.path("ui_config.dir").or_else(|| r.path("ui_dir")),
        content_path: match content_path.trim_matches('/') {
            "" => "/".to_owned(),
            inner => format!("/{inner}/"),
        },
    };

    // ACL, logging, telemetry.
    let policy = r.text_or("acl.default_policy", "allow");
    let default_policy = match policy.as_str() {
        "allow" => AclPolicy::Allow,
        "deny" => AclPolicy::Deny,
        other => {
            r.errors.push(format!(
                "acl.default_policy: invalid value {other:?}, expected \"allow\" or \"deny\""
            ));
            AclPolicy::Deny
        }
    };
    let down_policy = r.text_or("acl.down_policy", "extend-cache");
    if !matches!(down_policy.as_str(), "allow" | "deny" | "extend-cache" | "async-cache") {
        r.errors.push(format!(
            "acl.down_policy: invalid value {down_policy:?}, expected \"allow\", \"deny\", \"extend-cache\" or \"async-cache\""
        ));
    }
    let acl = Acl {
        enabled: r.flag("acl.enabled", false),
        default_policy,
        down_policy,
        token_ttl: r.time("acl.token_ttl", secs(30)),
        policy_ttl: r.time("acl.policy_ttl", secs(30)),
        role_ttl: r.time("acl.role_ttl", secs(30)),
        enable_key_list_policy: r.flag("acl.enable_key_list_policy", false),
        enable_token_persistence: r.flag("acl.enable_token_persistence", false),
        enable_token_replication: r.flag("acl.enable_token_replication", false),
        tokens: AclTokens {
            initial_management: r.text("acl.tokens.initial_management"),
            default: r.text("acl.tokens.default"),
            agent: r.text("acl.tokens.agent"),
            agent_recovery: r.text("acl.tokens.agent_recovery"),
            replication: r.text("acl.tokens.replication"),
            config_file_service_registration: r.text("acl.tokens.config_file_service_registration"),
            dns: r.text("acl.tokens.dns"),
        },
    };
    let level = r.text_or("log_level", "INFO");
    let level = level.parse().unwrap_or_else(|()| {
        r.broken.push(format!(
            "Invalid log level: {level}. Valid log levels are: [TRACE DEBUG INFO WARN ERR]"
        ));
        LogLevel::Info
    });
    let logging = Logging {
        level,
        json: r.flag("log_json", false),
        file: r.path("log_file"),
        rotate_bytes: r.count("log_rotate_bytes", 0),
        rotate_duration: r.time("log_rotate_duration", secs(24 * 3600)),
        rotate_max_files: r.int("log_rotate_max_files", 0),
        syslog: r.flag("enable_syslog", false),
        syslog_facility: r.text_or("syslog_facility", "LOCAL0"),
    };
    let (prefix_filter, bad_rules): (Vec<String>, Vec<String>) = r
        .strings("telemetry.prefix_filter")
        .into_iter()
        .partition(|rule| rule.starts_with(['+', '-']));
    for rule in bad_rules {
        warnings.push(format!("Filter rule must begin with either '+' or '-': {rule:?}"));
    }
    let telemetry = Telemetry {
        metrics_prefix: r.text_or("telemetry.metrics_prefix", "consul"),
        prometheus_retention_time: r.time("telemetry.prometheus_retention_time", Duration::ZERO),
        disable_hostname: r.flag("telemetry.disable_hostname", false),
        prefix_filter,
        filter_default: r.flag("telemetry.filter_default", true),
    };

    // Checks and definitions.
    let check_output_max_size = r.int("check_output_max_size", CHECK_OUTPUT_LEN_BYTES_MAX as i64);
    if check_output_max_size > CHECK_OUTPUT_LEN_BYTES_MAX as i64 {
        warnings.push(format!(
            "check_output_max_size = {check_output_max_size}: {CHECK_OUTPUT_LEN_BYTES_MAX} bytes of a check's output are kept at most"
        ));
    }
    let output_len_bytes_max = usize::try_from(check_output_max_size)
        .unwrap_or_default()
        .min(CHECK_OUTPUT_LEN_BYTES_MAX);
    let script_checks = r.flag("enable_script_checks", false);
    let scripts = ScriptPolicy {
        from_files: script_checks || r.flag("enable_local_script_checks", false),
        from_remote: script_checks,
    };
    let inherited = Inherited {
        token: acl.tokens.config_file_service_registration.clone(),
        output_len_bytes_max,
    };
    let definitions = file_definition::read(tree, &inherited);
    r.errors.extend(definitions.invalid);

    let bootstrap_expect = r.int("bootstrap_expect", 0);
    let datacenter = r.text_or("datacenter", "dc1").to_lowercase();
    let mut config = Config {
        dev_mode: dev,
        node_name: r.text_or("node_name", &facts.host_name),
        node_id,
        disable_host_node_id: r.flag("disable_host_node_id", true),
        node_meta: r.string_map("node_meta"),
        primary_datacenter: r.text_or("primary_datacenter", &datacenter).to_lowercase(),
        datacenter,
        data_dir: r.path("data_dir").filter(|_| !dev),
        pid_file: r.path("pid_file"),
        server,
        bootstrap: r.flag("bootstrap", false),
        bootstrap_expect: u32::try_from(bootstrap_expect).unwrap_or_default(),
        join,
        leave_on_terminate: r.flag("leave_on_terminate", !server),
        skip_leave_on_interrupt: r.flag("skip_leave_on_interrupt", server),
        encrypt,
        encrypt_verify_incoming: r.flag("encrypt_verify_incoming", true),
        encrypt_verify_outgoing: r.flag("encrypt_verify_outgoing", true),
        disable_keyring_file: r.flag("disable_keyring_file", false),
        disable_coordinates: r.flag("disable_coordinates", false),
        session_ttl_min: r.time("session_ttl_min", secs(10)),
        server_rejoin_age_max: r.time("server_rejoin_age_max", secs(168 * 3600)),
        server_bind: SocketAddr::new(bind_addr, ports.server),
        serf_lan_bind: SocketAddr::new(serf_lan, ports.serf_lan),
        serf_wan_bind: ports.serf_wan.map(|port| SocketAddr::new(serf_wan, port)),
        ports,
        bind_addr,
        advertise_addr,
        advertise_addr_wan,
        tagged_addresses,
        client_addrs,
        http_addrs,
        https_addrs,
        dns_addrs,
        gossip_lan,
        gossip_wan,
        performance,
        raft,
        autopilot,
        dns,
        http,
        limits,
        ui,
        acl,
        logging,
        telemetry,
        scripts,
        check_update_interval: r.time("check_update_interval", secs(300)),
        check_output_max_size: output_len_bytes_max,
        discard_check_output: r.flag("discard_check_output", false),
        disable_remote_exec: r.flag("disable_remote_exec", true),
        services: definitions.services,
        checks: definitions.checks,
        refused_definitions: definitions.refused,
        warnings: Vec::new(),
    };
    // Consul lists what it could not read, and tells a broken rule as a bare sentence.
    if !r.errors.is_empty() {
        return Err(Mistake::Values(r.errors));
    }
    if let Some(first) = r.broken.first() {
        return Err(Mistake::Rule(first.clone()));
    }
    let numbers = Numbers {
        raft_multiplier,
        bootstrap_expect,
        check_output_max_size,
        udp_answer_limit: r.int("dns_config.udp_answer_limit", 3),
        a_record_limit: r.int("dns_config.a_record_limit", 0),
    };
    validate(&mut config, &numbers, &mut warnings).map_err(Mistake::Rule)?;
    // What is wrong with the machine comes last: a mistake in the files is the same on every one.
    detected.map_err(Mistake::Rule)?;
    let tls_keys = [
        "verify_incoming",
        "verify_incoming_rpc",
        "verify_incoming_https",
        "verify_outgoing",
        "verify_server_hostname",
        "tls.defaults.verify_incoming",
        "tls.defaults.verify_outgoing",
        "tls.https.verify_incoming",
        "tls.internal_rpc.verify_incoming",
        "tls.internal_rpc.verify_outgoing",
        "tls.internal_rpc.verify_server_hostname",
    ];
    for key in tls_keys {
        if r.flag(key, false) {
            warnings.push(format!(
                "The '{key}' field has no effect: this agent does not use TLS, nothing is verified."
            ));
        }
    }
    warnings.extend(definitions.warnings);
    config.warnings = warnings;
    Ok(config)
}

/// Numbers as given, where the configuration's type cannot hold what a rule refuses.
struct Numbers {
    raft_multiplier: i64,
    bootstrap_expect: i64,
    check_output_max_size: i64,
    udp_answer_limit: i64,
    a_record_limit: i64,
}

/// The rules between keys, in Consul's order. Adds warnings, and settles what one key means for another.
fn validate(config: &mut Config, numbers: &Numbers, warnings: &mut Vec<String>) -> Result<(), String> {
    let negative = |key: &str, value: i64| {
        (value < 0).then(|| format!("{key} cannot be {value}. Must be greater than or equal to zero"))
    };
    let name_char = |c: char| matches!(c, 'a'..='z' | '0'..='9' | '-' | '_');
    for (key, name) in [
        ("datacenter", &config.datacenter),
        ("primary_datacenter", &config.primary_datacenter),
    ] {
        if !name.chars().all(name_char) {
            return Err(format!("{key} cannot be {name:?}. Please use only [a-z0-9-_]"));
        }
    }
    if config.data_dir.is_none() && !config.dev_mode {
        return Err("data_dir cannot be empty".to_owned());
    }
    if config.node_name.is_empty() {
        return Err("node_name cannot be empty".to_owned());
    }
    if let Some(error) = negative("dns_config.udp_answer_limit", numbers.udp_answer_limit)
        .or_else(|| negative("dns_config.a_record_limit", numbers.a_record_limit))
        .or_else(|| negative("bootstrap_expect", numbers.bootstrap_expect))
    {
        return Err(error);
    }
    if !(1..=10).contains(&numbers.raft_multiplier) {
        return Err(format!(
            "performance.raft_multiplier cannot be {}. Must be between 1 and 10",
            numbers.raft_multiplier
        ));
    }
    if numbers.check_output_max_size < 1 {
        return Err(format!(
            "check_output_max_size must be positive, received {}. To discard check output completely, use discard_check_output",
            numbers.check_output_max_size
        ));
    }
    quorate_http_api::check_meta(&config.node_meta).map_err(|why| format!("node_meta invalid: {why}"))?;
    if config.bootstrap_expect > 0 && config.dev_mode {
        return Err("'bootstrap_expect > 0' not allowed in dev mode".to_owned());
    }
    if config.bootstrap_expect > 0 && config.bootstrap {
        return Err("'bootstrap_expect > 0' and 'bootstrap = true' are mutually exclusive".to_owned());
    }
    if config.bootstrap_expect > 0 && !config.server {
        return Err("'bootstrap_expect > 0' requires 'server = true'".to_owned());
    }
    if config.bootstrap && !config.server {
        return Err("'bootstrap = true' requires 'server = true'".to_owned());
    }
    for (key, pool) in [
        ("reconnect_timeout", &config.gossip_lan),
        ("reconnect_timeout_wan", &config.gossip_wan),
    ] {
        if pool.reconnect_timeout < RECONNECT_TIMEOUT_MIN {
            return Err(format!("{key} must be >= {}", duration::format(RECONNECT_TIMEOUT_MIN)));
        }
    }
    if config.server_rejoin_age_max < SERVER_REJOIN_AGE_MAX_MIN {
        return Err(format!(
            "server_rejoin_age_max cannot be less than {}",
            duration::format(SERVER_REJOIN_AGE_MAX_MIN)
        ));
    }
    if config.http.default_query_time > config.http.max_query_time {
        return Err("default_query_time cannot be greater than max_query_time".to_owned());
    }
    addresses_are_distinct(config)?;

    warnings.extend(definition::dns_name_warning("Node name", &config.node_name));
    if config.bootstrap_expect == 1 {
        warnings.push("BootstrapExpect is set to 1; this is the same as Bootstrap mode.".to_owned());
        config.bootstrap = true;
        config.bootstrap_expect = 0;
    }
    if config.bootstrap_expect == 2 {
        warnings.push("bootstrap_expect = 2: A cluster with 2 servers will provide no failure tolerance. See https://www.consul.io/docs/internals/consensus.html#deployment-table".to_owned());
    } else if config.bootstrap_expect > 2 && config.bootstrap_expect.is_multiple_of(2) {
        warnings.push(
            "bootstrap_expect is even number: an even number of servers does not provide more failure tolerance than one server less"
                .to_owned(),
        );
    }
    if config.bootstrap_expect > 0 {
        warnings.push(format!(
            "bootstrap_expect > 0: expecting {} servers",
            config.bootstrap_expect
        ));
    }
    if config.bootstrap && !config.dev_mode {
        warnings.push("bootstrap = true: do not enable unless necessary".to_owned());
    }
    if config.scripts.from_remote && !config.acl.enabled && config.http.allow_write_http_from.is_empty() {
        warnings.push("using enable-script-checks without ACLs and without allow_write_http_from is DANGEROUS, use enable-local-script-checks instead, see https://www.hashicorp.com/blog/protecting-consul-from-rce-risk-in-specific-configurations/".to_owned());
    }
    Ok(())
}

/// No two TCP listeners share an address.
fn addresses_are_distinct(config: &Config) -> Result<(), String> {
    let mut in_use: BTreeMap<String, &str> = BTreeMap::new();
    let mut listeners: Vec<(&str, String)> = Vec::new();
    listeners.extend(config.dns_addrs.iter().map(|address| ("DNS", address.to_string())));
    listeners.extend(config.http_addrs.iter().map(|address| ("HTTP", address.to_string())));
    listeners.extend(config.https_addrs.iter().map(|address| ("HTTPS", address.to_string())));
    let port = |port: u16| SocketAddr::new(config.advertise_addr, port).to_string();
    if config.server {
        listeners.push(("RPC Advertise", port(config.ports.server)));
    }
    listeners.push(("Serf Advertise LAN", port(config.ports.serf_lan)));
    if let (true, Some(wan)) = (config.server, config.ports.serf_wan) {
        listeners.push((
            "Serf Advertise WAN",
            SocketAddr::new(config.advertise_addr_wan, wan).to_string(),
        ));
    }
    for (name, address) in listeners {
        if let Some(other) = in_use.get(&address) {
            return Err(format!("{name} address {address} already configured for {other}"));
        }
        in_use.insert(address, name);
    }
    Ok(())
}
