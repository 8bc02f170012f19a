//! The keys of a configuration file: their names, types, and what becomes of each.
//!
//! One table, used to check files (`decode`) and to merge them. Keys that Consul knows and this agent does not use are
//! in it, so that a working configuration keeps loading.
//! Not here: defaults and rules on values (`build`).

/// The type a key's value must have.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    Bool,
    Int,
    Float,
    String,
    Strings,
    StringMap,
    /// Values are lists of strings (`header`).
    StringsMap,
    Struct(&'static [Field]),
    /// A list of structs; a single one counts as a list of one.
    StructList(&'static [Field]),
    /// Names to structs (`tagged_addresses`).
    StructMap(&'static [Field]),
    /// Anything: the key is not looked into.
    Any,
}

/// What becomes of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    Used,
    /// Accepted in silence: Consul's key for something this agent does always or needs not.
    Ignored,
    /// Accepted with one warning: a feature this agent does not have.
    Unsupported,
    /// The same of a key whose type is checked and whose value is kept: this agent is to have the feature.
    Pending,
    /// An old name of the key at this path.
    RenamedTo(&'static str),
}

/// One key.
#[derive(Clone, Copy, Debug)]
pub struct Field {
    /// A trailing `*` stands for any rest.
    pub name: &'static str,
    pub kind: Kind,
    pub usage: Use,
}

const fn key(name: &'static str, kind: Kind) -> Field {
    Field {
        name,
        kind,
        usage: Use::Used,
    }
}
const fn ignored(name: &'static str, kind: Kind) -> Field {
    Field {
        name,
        kind,
        usage: Use::Ignored,
    }
}
const fn unsupported(name: &'static str) -> Field {
    Field {
        name,
        kind: Kind::Any,
        usage: Use::Unsupported,
    }
}
const fn pending(name: &'static str, kind: Kind) -> Field {
    Field {
        name,
        kind,
        usage: Use::Pending,
    }
}
const fn renamed(name: &'static str, kind: Kind, to: &'static str) -> Field {
    Field {
        name,
        kind,
        usage: Use::RenamedTo(to),
    }
}

use Kind::{Any, Bool, Float, Int, String as Text, StringMap, Strings, StringsMap, Struct, StructList, StructMap};

const WEIGHTS: &[Field] = &[key("passing", Int), key("warning", Int)];
const SERVICE_ADDRESS: &[Field] = &[key("address", Text), key("port", Int)];

/// Keys of a check, at top level or within a service.
pub const CHECK: &[Field] = &[
    key("id", Text),
    // The HTTP API's name of `id` within a service.
    key("check_id", Text),
    key("name", Text),
    key("notes", Text),
    key("service_id", Text),
    key("token", Text),
    key("status", Text),
    key("script", Text),
    key("args", Strings),
    key("script_args", Strings),
    key("http", Text),
    key("header", StringsMap),
    key("method", Text),
    key("body", Text),
    key("disable_redirects", Bool),
    key("tcp", Text),
    key("tcp_use_tls", Bool),
    key("udp", Text),
    key("grpc", Text),
    key("grpc_use_tls", Bool),
    key("h2ping", Text),
    key("h2ping_use_tls", Bool),
    key("docker_container_id", Text),
    key("shell", Text),
    key("os_service", Text),
    key("alias_node", Text),
    key("alias_service", Text),
    key("ttl", Text),
    key("interval", Text),
    key("timeout", Text),
    key("tls_server_name", Text),
    key("tls_skip_verify", Bool),
    key("deregister_critical_service_after", Text),
    key("success_before_passing", Int),
    key("failures_before_warning", Int),
    key("failures_before_critical", Int),
    key("output_max_size", Int),
    ignored("namespace", Text),
    ignored("partition", Text),
];

/// Keys of a service.
pub const SERVICE: &[Field] = &[
    key("id", Text),
    key("name", Text),
    key("tags", Strings),
    key("address", Text),
    key("tagged_addresses", StructMap(SERVICE_ADDRESS)),
    key("meta", StringMap),
    key("port", Int),
    key("token", Text),
    key("enable_tag_override", Bool),
    key("weights", Struct(WEIGHTS)),
    key("check", StructList(CHECK)),
    key("checks", StructList(CHECK)),
    unsupported("kind"),
    unsupported("proxy"),
    unsupported("connect"),
    ignored("namespace", Text),
    ignored("partition", Text),
    ignored("locality", Any),
    unsupported("socket_path"),
];

const ADDRESSES: &[Field] = &[
    key("dns", Text),
    key("http", Text),
    key("https", Text),
    ignored("grpc", Text),
    ignored("grpc_tls", Text),
];

const PORTS: &[Field] = &[
    key("dns", Int),
    key("http", Int),
    key("https", Int),
    ignored("grpc", Int),
    ignored("grpc_tls", Int),
    key("serf_lan", Int),
    key("serf_wan", Int),
    key("server", Int),
    ignored("sidecar_*", Int),
    ignored("expose_*", Int),
    ignored("proxy_*", Int),
];

const GOSSIP: &[Field] = &[
    key("gossip_nodes", Int),
    key("gossip_interval", Text),
    key("probe_interval", Text),
    key("probe_timeout", Text),
    key("retransmit_mult", Int),
    key("suspicion_mult", Int),
];

const PERFORMANCE: &[Field] = &[
    key("raft_multiplier", Int),
    key("leave_drain_time", Text),
    key("rpc_hold_timeout", Text),
    ignored("grpc_keepalive_*", Any),
];

const AUTOPILOT: &[Field] = &[
    key("cleanup_dead_servers", Bool),
    key("last_contact_threshold", Text),
    key("max_trailing_logs", Int),
    key("min_quorum", Int),
    key("server_stabilization_time", Text),
    unsupported("redundancy_zone_tag"),
    unsupported("disable_upgrade_migration"),
    unsupported("upgrade_version_tag"),
];

const SOA: &[Field] = &[
    key("refresh", Int),
    key("retry", Int),
    key("expire", Int),
    key("min_ttl", Int),
];

const DNS: &[Field] = &[
    key("allow_stale", Bool),
    key("max_stale", Text),
    key("node_ttl", Text),
    key("service_ttl", StringMap),
    key("enable_truncate", Bool),
    key("only_passing", Bool),
    key("recursor_strategy", Text),
    key("recursor_timeout", Text),
    key("disable_compression", Bool),
    key("udp_answer_limit", Int),
    key("a_record_limit", Int),
    key("enable_additional_node_meta_txt", Bool),
    key("soa", Struct(SOA)),
    pending("use_cache", Bool),
    pending("cache_max_age", Text),
    ignored("prefer_namespace", Bool),
];

const HTTP: &[Field] = &[
    key("block_endpoints", Strings),
    key("response_headers", StringMap),
    key("allow_write_http_from", Strings),
    key("use_cache", Bool),
    key("max_header_bytes", Int),
];

const REQUEST_LIMITS: &[Field] = &[key("mode", Text), key("read_rate", Float), key("write_rate", Float)];

const LIMITS: &[Field] = &[
    key("http_max_conns_per_client", Int),
    pending("https_handshake_timeout", Text),
    pending("rpc_handshake_timeout", Text),
    key("rpc_max_conns_per_client", Int),
    key("rpc_rate", Float),
    key("rpc_max_burst", Int),
    pending("rpc_client_timeout", Text),
    key("kv_max_value_size", Int),
    key("txn_max_req_len", Int),
    key("request_limits", Struct(REQUEST_LIMITS)),
];

const UI: &[Field] = &[
    key("enabled", Bool),
    key("dir", Text),
    key("content_path", Text),
    unsupported("metrics_*"),
    unsupported("dashboard_url_templates"),
];

const TOKENS: &[Field] = &[
    key("initial_management", Text),
    renamed("master", Text, "acl.tokens.initial_management"),
    key("default", Text),
    key("agent", Text),
    key("agent_recovery", Text),
    renamed("agent_master", Text, "acl.tokens.agent_recovery"),
    key("replication", Text),
    key("config_file_service_registration", Text),
    key("dns", Text),
    ignored("managed_service_provider", Any),
];

const ACL: &[Field] = &[
    key("enabled", Bool),
    key("default_policy", Text),
    key("down_policy", Text),
    key("token_ttl", Text),
    key("policy_ttl", Text),
    key("role_ttl", Text),
    key("enable_key_list_policy", Bool),
    key("enable_token_persistence", Bool),
    key("enable_token_replication", Bool),
    pending("tokens", Struct(TOKENS)),
    ignored("msp_disable_bootstrap", Bool),
];

const TELEMETRY: &[Field] = &[
    key("metrics_prefix", Text),
    key("prometheus_retention_time", Text),
    key("disable_hostname", Bool),
    key("prefix_filter", Strings),
    key("filter_default", Bool),
    pending("statsd_address", Text),
    pending("statsite_address", Text),
    pending("dogstatsd_addr", Text),
    key("dogstatsd_tags", Strings),
    ignored("enable_host_metrics", Bool),
    ignored("disable_compat_1.9", Bool),
    ignored("disable_per_tenancy_usage_metrics", Bool),
    ignored("retry_failed_connection", Bool),
    unsupported("circonus_*"),
];

const TLS_LISTENER: &[Field] = &[
    key("ca_file", Text),
    key("ca_path", Text),
    key("cert_file", Text),
    key("key_file", Text),
    key("tls_min_version", Text),
    key("tls_cipher_suites", Text),
    key("verify_incoming", Bool),
    key("verify_outgoing", Bool),
    key("verify_server_hostname", Bool),
    ignored("use_auto_cert", Bool),
];

const TLS: &[Field] = &[
    key("defaults", Struct(TLS_LISTENER)),
    key("https", Struct(TLS_LISTENER)),
    key("grpc", Struct(TLS_LISTENER)),
    key("internal_rpc", Struct(TLS_LISTENER)),
    ignored("enable_agent_tls_for_checks", Bool),
];

const UNIX_SOCKETS: &[Field] = &[key("user", Text), key("group", Text), key("mode", Text)];

/// Keys of a configuration file.
pub const AGENT: &[Field] = &[
    // Identity and addresses.
    key("node_name", Text),
    key("node_id", Text),
    key("disable_host_node_id", Bool),
    key("node_meta", StringMap),
    key("datacenter", Text),
    key("primary_datacenter", Text),
    key("domain", Text),
    key("alt_domain", Text),
    key("data_dir", Text),
    key("bind_addr", Text),
    key("advertise_addr", Text),
    key("advertise_addr_ipv4", Text),
    key("advertise_addr_ipv6", Text),
    key("advertise_addr_wan", Text),
    key("advertise_addr_wan_ipv4", Text),
    key("advertise_addr_wan_ipv6", Text),
    key("client_addr", Text),
    key("addresses", Struct(ADDRESSES)),
    key("serf_lan", Text),
    key("serf_wan", Text),
    key("serf_lan_allowed_cidrs", Strings),
    key("serf_wan_allowed_cidrs", Strings),
    key("ports", Struct(PORTS)),
    pending("unix_sockets", Struct(UNIX_SOCKETS)),
    // Cluster.
    key("server", Bool),
    key("bootstrap", Bool),
    key("bootstrap_expect", Int),
    key("retry_join", Strings),
    key("retry_join_wan", Strings),
    key("retry_interval", Text),
    key("retry_interval_wan", Text),
    key("retry_max", Int),
    key("retry_max_wan", Int),
    key("start_join", Strings),
    key("start_join_wan", Strings),
    key("rejoin_after_leave", Bool),
    key("leave_on_terminate", Bool),
    key("skip_leave_on_interrupt", Bool),
    key("reconnect_timeout", Text),
    key("reconnect_timeout_wan", Text),
    pending("advertise_reconnect_timeout", Text),
    pending("server_rejoin_age_max", Text),
    key("encrypt", Text),
    key("encrypt_verify_incoming", Bool),
    key("encrypt_verify_outgoing", Bool),
    key("disable_keyring_file", Bool),
    key("gossip_lan", Struct(GOSSIP)),
    key("gossip_wan", Struct(GOSSIP)),
    key("performance", Struct(PERFORMANCE)),
    ignored("raft_protocol", Int),
    ignored("protocol", Int),
    key("raft_snapshot_threshold", Int),
    pending("raft_snapshot_interval", Text),
    key("raft_trailing_logs", Int),
    pending("autopilot", Struct(AUTOPILOT)),
    key("disable_coordinates", Bool),
    key("session_ttl_min", Text),
    ignored("non_voting_server", Bool),
    ignored("read_replica", Bool),
    // DNS.
    key("recursors", Strings),
    key("dns_config", Struct(DNS)),
    // HTTP, limits, reads.
    key("http_config", Struct(HTTP)),
    key("limits", Struct(LIMITS)),
    key("default_query_time", Text),
    key("max_query_time", Text),
    key("discovery_max_stale", Text),
    key("translate_wan_addrs", Bool),
    key("disable_http_unprintable_char_filter", Bool),
    key("disable_kv_key_validation", Bool),
    pending("enable_debug", Bool),
    key("ui", Bool),
    key("ui_dir", Text),
    key("ui_content_path", Text),
    key("ui_config", Struct(UI)),
    // Checks, exec, watches.
    key("enable_script_checks", Bool),
    key("enable_local_script_checks", Bool),
    key("check_update_interval", Text),
    key("check_output_max_size", Int),
    key("discard_check_output", Bool),
    pending("enable_agent_tls_for_checks", Bool),
    key("disable_remote_exec", Bool),
    key("service", StructList(SERVICE)),
    key("services", StructList(SERVICE)),
    key("check", StructList(CHECK)),
    key("checks", StructList(CHECK)),
    pending("watches", Any),
    ignored("enable_central_service_config", Bool),
    ignored("use_streaming_backend", Bool),
    // ACL.
    key("acl", Struct(ACL)),
    renamed("acl_datacenter", Text, "primary_datacenter"),
    renamed("acl_default_policy", Text, "acl.default_policy"),
    renamed("acl_down_policy", Text, "acl.down_policy"),
    renamed("acl_ttl", Text, "acl.token_ttl"),
    renamed("acl_enable_key_list_policy", Bool, "acl.enable_key_list_policy"),
    renamed("enable_acl_replication", Bool, "acl.enable_token_replication"),
    renamed("acl_master_token", Text, "acl.tokens.initial_management"),
    renamed("acl_token", Text, "acl.tokens.default"),
    renamed("acl_agent_token", Text, "acl.tokens.agent"),
    renamed("acl_agent_master_token", Text, "acl.tokens.agent_recovery"),
    renamed("acl_replication_token", Text, "acl.tokens.replication"),
    // TLS. The flat keys are Consul's before 1.12 and stay in common use: no warning.
    key("tls", Struct(TLS)),
    key("ca_file", Text),
    key("ca_path", Text),
    key("cert_file", Text),
    key("key_file", Text),
    key("tls_min_version", Text),
    key("tls_cipher_suites", Text),
    ignored("tls_prefer_server_cipher_suites", Bool),
    key("verify_incoming", Bool),
    key("verify_incoming_rpc", Bool),
    key("verify_incoming_https", Bool),
    key("verify_outgoing", Bool),
    key("verify_server_hostname", Bool),
    key("server_name", Text),
    // Logging and telemetry.
    key("log_level", Text),
    key("log_json", Bool),
    key("log_file", Text),
    key("log_rotate_bytes", Int),
    key("log_rotate_duration", Text),
    key("log_rotate_max_files", Int),
    key("enable_syslog", Bool),
    key("syslog_facility", Text),
    key("pid_file", Text),
    ignored("disable_update_check", Bool),
    ignored("disable_anonymous_signature", Bool),
    key("telemetry", Struct(TELEMETRY)),
    ignored("auto_reload_config", Bool),
    // Mesh, cloud, Enterprise.
    unsupported("auto_config"),
    unsupported("auto_encrypt"),
    unsupported("audit"),
    unsupported("cache"),
    unsupported("cloud"),
    unsupported("config_entries"),
    unsupported("connect"),
    unsupported("experiments"),
    unsupported("license_path"),
    unsupported("locality"),
    unsupported("partition"),
    unsupported("peering"),
    unsupported("primary_gateways"),
    unsupported("primary_gateways_interval"),
    unsupported("raft_boltdb"),
    unsupported("raft_logstore"),
    unsupported("reporting"),
    unsupported("rpc"),
    unsupported("segment"),
    unsupported("segments"),
    unsupported("sentinel"),
    unsupported("xds"),
];

/// The field for a key as written. Case does not matter; within definitions (`loose`) underscores do not either, so
/// that the HTTP API's `EnableTagOverride` is `enable_tag_override`.
pub fn find(fields: &'static [Field], written: &str, loose: bool) -> Option<&'static Field> {
    let written = written.to_lowercase();
    let same = |name: &str| match name.strip_suffix('*') {
        Some(prefix) => written.starts_with(prefix),
        None => name == written || (loose && bare(name) == bare(&written)),
    };
    fields.iter().find(|field| same(field.name))
}

fn bare(name: &str) -> String {
    name.chars().filter(|c| *c != '_').collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn each(fields: &'static [Field], see: &mut impl FnMut(&'static Field)) {
        for field in fields {
            see(field);
            if let Kind::Struct(inner) | Kind::StructList(inner) | Kind::StructMap(inner) = field.kind {
                each(inner, see);
            }
        }
    }

    #[test]
    fn names_are_unique_and_lower_case_and_old_names_lead_to_keys() {
        fn unique(fields: &'static [Field]) {
            for (position, field) in fields.iter().enumerate() {
                assert_eq!(field.name, field.name.to_lowercase());
                assert!(
                    fields[..position].iter().all(|f| f.name != field.name),
                    "{} twice",
                    field.name
                );
                if let Kind::Struct(inner) | Kind::StructList(inner) | Kind::StructMap(inner) = field.kind {
                    unique(inner);
                }
            }
        }
        unique(AGENT);
        each(AGENT, &mut |field| {
            if let Use::RenamedTo(path) = field.usage {
                let mut fields = AGENT;
                for part in path.split('.') {
                    let target = find(fields, part, false).expect("the new name is a key");
                    assert!(matches!(target.usage, Use::Used | Use::Pending), "{path}");
                    if let Kind::Struct(inner) = target.kind {
                        fields = inner;
                    }
                }
            }
        });
    }

    #[test]
    fn names_match_without_case_and_in_definitions_without_underscores() {
        assert!(find(AGENT, "Data_Dir", false).is_some());
        assert!(find(AGENT, "DataDir", false).is_none());
        assert_eq!(
            find(SERVICE, "EnableTagOverride", true).unwrap().name,
            "enable_tag_override"
        );
        assert!(find(TELEMETRY, "circonus_api_token", false).is_some());
    }
}
