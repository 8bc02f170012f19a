//! Settings of the HTTP API.

use ipnet::IpNet;
use quorate_types::limits;
use std::time::Duration;

/// Connections of one client address at a time: `limits.http_max_conns_per_client`.
pub const CONNECTIONS_PER_CLIENT_COUNT_MAX: usize = 200;
/// Longest request head: Go's `http.DefaultMaxHeaderBytes`.
pub const HEADER_LEN_BYTES_MAX: usize = 1024 * 1024;
/// Header fields of one request. Go has no such limit; this one only bounds memory.
pub const HEADER_COUNT_MAX: usize = 256;
/// JSON body of one request: far above a node with all its checks, and below what one log entry may carry.
pub const JSON_BODY_LEN_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Time between requests of a kept connection, and for the head of a request. Longer than Go clients keep an idle
/// connection (90 s), so that they close first and no request crosses the close.
pub const REQUEST_HEAD_TIMEOUT: Duration = Duration::from_secs(120);
/// Time for the body of a request.
pub const REQUEST_BODY_TIMEOUT: Duration = Duration::from_secs(60);

/// Settings of the HTTP API, under Consul's names where they have one.
#[derive(Clone, Debug, PartialEq)]
pub struct HttpConfig {
    /// `http_config.block_endpoints`: path prefixes.
    pub block_endpoints: Vec<String>,
    /// `http_config.allow_write_http_from`; empty: anyone.
    pub allow_write_http_from: Vec<IpNet>,
    /// `http_config.response_headers`.
    pub response_headers: Vec<(String, String)>,
    /// `http_config.max_header_bytes`.
    pub header_len_bytes_max: usize,
    /// `http_config.use_cache`.
    pub use_cache: bool,
    /// `limits.http_max_conns_per_client`; 0: no limit.
    pub connections_per_client_count_max: usize,
    /// `limits.kv_max_value_size`.
    pub kv_value_len_bytes_max: usize,
    /// `limits.txn_max_req_len`; less than `kv_value_len_bytes_max` counts as that.
    pub transaction_len_bytes_max: usize,
    /// `default_query_time`, `max_query_time`.
    pub wait_default: Duration,
    pub wait_max: Duration,
    /// `discovery_max_stale`; zero: discovery reads are not stale by themselves.
    pub discovery_max_stale: Duration,
    /// `session_ttl_min`.
    pub session_ttl_min: Duration,
    /// `disable_coordinates`.
    pub disable_coordinates: bool,
    /// `translate_wan_addrs`.
    pub translate_wan_addrs: bool,
    /// `disable_http_unprintable_char_filter`.
    pub disable_unprintable_char_filter: bool,
    /// `disable_kv_key_validation`: keys that look like a way out of their folder, or begin or end with a blank, are taken.
    pub disable_kv_key_validation: bool,
    /// Pretty JSON whether asked for or not: `-dev`.
    pub pretty: bool,
    /// `acl.default_policy` as clients are told: `allow` or `deny`.
    pub default_acl_policy: &'static str,
}

impl Default for HttpConfig {
    fn default() -> Self {
        Self {
            block_endpoints: Vec::new(),
            allow_write_http_from: Vec::new(),
            response_headers: Vec::new(),
            header_len_bytes_max: HEADER_LEN_BYTES_MAX,
            use_cache: true,
            connections_per_client_count_max: CONNECTIONS_PER_CLIENT_COUNT_MAX,
            kv_value_len_bytes_max: limits::KV_VALUE_LEN_BYTES_MAX,
            transaction_len_bytes_max: limits::KV_VALUE_LEN_BYTES_MAX,
            wait_default: limits::BLOCKING_WAIT_DEFAULT,
            wait_max: limits::BLOCKING_WAIT_MAX,
            discovery_max_stale: Duration::ZERO,
            session_ttl_min: limits::SESSION_TTL_MIN,
            disable_coordinates: false,
            translate_wan_addrs: false,
            disable_unprintable_char_filter: false,
            disable_kv_key_validation: false,
            pretty: false,
            default_acl_policy: "allow",
        }
    }
}
