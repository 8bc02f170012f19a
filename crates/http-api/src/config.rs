//! Settings of the HTTP API.

use quorate_types::limits;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;
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

/// A block of addresses, `10.0.0.0/8`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cidr {
    address: IpAddr,
    prefix_len: u8,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid CIDR address: {0}")]
pub struct CidrError(String);

impl FromStr for Cidr {
    type Err = CidrError;
    fn from_str(text: &str) -> Result<Self, CidrError> {
        let error = || CidrError(text.to_owned());
        let (address, prefix_len) = text.split_once('/').ok_or_else(error)?;
        let address: IpAddr = address.parse().map_err(|_| error())?;
        let prefix_len: u8 = prefix_len.parse().map_err(|_| error())?;
        let prefix_len_max = if address.is_ipv4() { 32 } else { 128 };
        if prefix_len > prefix_len_max {
            return Err(error());
        }
        Ok(Self { address, prefix_len })
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix_len)
    }
}

impl Cidr {
    /// An IPv4 address mapped into IPv6 counts as IPv4.
    pub fn contains(&self, address: IpAddr) -> bool {
        let bits_v4 = |address: Ipv4Addr| u128::from(address.to_bits());
        let bits_v6 = |address: Ipv6Addr| address.to_bits();
        let (mine, theirs, width) = match (self.address.to_canonical(), address.to_canonical()) {
            (IpAddr::V4(mine), IpAddr::V4(theirs)) => (bits_v4(mine), bits_v4(theirs), 32),
            (IpAddr::V6(mine), IpAddr::V6(theirs)) => (bits_v6(mine), bits_v6(theirs), 128),
            _ => return false,
        };
        let shift = u32::from(width - self.prefix_len.min(width));
        mine.checked_shr(shift).unwrap_or(0) == theirs.checked_shr(shift).unwrap_or(0)
    }
}

/// Settings of the HTTP API, under Consul's names where they have one.
#[derive(Clone, Debug, PartialEq)]
pub struct HttpConfig {
    /// `http_config.block_endpoints`: path prefixes.
    pub block_endpoints: Vec<String>,
    /// `http_config.allow_write_http_from`; empty: anyone.
    pub allow_write_http_from: Vec<Cidr>,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_holds_its_addresses_and_no_others() {
        let check = |block: &str, address: &str| block.parse::<Cidr>().unwrap().contains(address.parse().unwrap());
        assert!(check("10.0.0.0/8", "10.255.1.2"));
        assert!(!check("10.0.0.0/8", "11.0.0.1"));
        assert!(check("10.0.0.0/8", "::ffff:10.1.1.1"));
        assert!(check("0.0.0.0/0", "1.2.3.4"));
        assert!(!check("0.0.0.0/0", "::1"));
        assert!(check("::/0", "::1"));
        assert!(check("127.0.0.1/32", "127.0.0.1"));
        assert!(!check("127.0.0.1/32", "127.0.0.2"));
        assert!("10.0.0.0".parse::<Cidr>().is_err());
        assert!("10.0.0.0/33".parse::<Cidr>().is_err());
    }
}
