//! What the operator configured of DNS (`domain`, `alt_domain`, `dns_config.*`), as far as it shapes answers.
//!
//! Not here: recursors' addresses and time limits, which are the driver's.

use crate::name::{Name, NameError};
use std::collections::BTreeMap;
use std::time::Duration;

/// The numbers of the zone's SOA record, in seconds (`dns_config.soa`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SoaNumbers {
    pub refresh: u32,
    pub retry: u32,
    pub expire: u32,
    pub min_ttl: u32,
}

impl Default for SoaNumbers {
    fn default() -> Self {
        Self {
            refresh: 3600,
            retry: 600,
            expire: 86400,
            min_ttl: 0,
        }
    }
}

/// Consul's settings of the same names.
#[derive(Clone, Debug)]
pub struct DnsConfig {
    pub domain: Name,
    pub alt_domain: Option<Name>,
    /// This agent's; a name without a datacenter means this one.
    pub datacenter: String,
    pub node_ttl: Duration,
    /// By service name, by prefix (`"cache*"`), or for all (`"*"`).
    pub service_ttl: BTreeMap<String, Duration>,
    /// Leave out instances with a warning too.
    pub only_passing: bool,
    /// Answers in a UDP reply of at most 512 bytes; 0: as many as fit.
    pub udp_answer_limit: usize,
    /// Address answers of a service in any reply; 0: no limit.
    pub a_record_limit: usize,
    /// Set TC when answers were dropped.
    pub enable_truncate: bool,
    pub soa: SoaNumbers,
    /// Node metadata as TXT records in ADDITIONAL.
    pub enable_additional_node_meta_txt: bool,
    pub disable_compression: bool,
    /// Answer for other datacenters with their `wan` addresses.
    pub translate_wan_addrs: bool,
    /// Recursors are configured: names that are not ours are forwarded.
    pub recursion_available: bool,
}

impl DnsConfig {
    /// Consul's defaults for a domain (`"consul."`) and a datacenter.
    pub fn new(domain: &str, datacenter: &str) -> Result<Self, NameError> {
        Ok(Self {
            domain: Name::from_text(domain)?,
            alt_domain: None,
            datacenter: datacenter.to_owned(),
            node_ttl: Duration::ZERO,
            service_ttl: BTreeMap::new(),
            only_passing: false,
            udp_answer_limit: 3,
            a_record_limit: 0,
            enable_truncate: false,
            soa: SoaNumbers::default(),
            enable_additional_node_meta_txt: true,
            disable_compression: false,
            translate_wan_addrs: false,
            recursion_available: false,
        })
    }

    pub(crate) fn node_ttl_secs(&self) -> u32 {
        ttl_secs(self.node_ttl)
    }

    /// The exact rule, else the one with the longest prefix, `"*"` being the shortest, else 0.
    pub(crate) fn service_ttl_secs(&self, service: &str) -> u32 {
        let rule = self
            .service_ttl
            .iter()
            .filter_map(|(rule, ttl)| match rule.strip_suffix('*') {
                None => rule.eq_ignore_ascii_case(service).then_some((usize::MAX, ttl)),
                Some(prefix) => service
                    .get(..prefix.len())
                    .is_some_and(|start| start.eq_ignore_ascii_case(prefix))
                    .then_some((prefix.len(), ttl)),
            })
            .max_by_key(|(len_bytes, _)| *len_bytes);
        rule.map_or(0, |(_, ttl)| ttl_secs(*ttl))
    }

    /// Whether a name is answered from the catalog, and the labels left of our domain.
    pub(crate) fn labels_in_our_domains<'a>(&self, name: &'a Name) -> Option<Vec<&'a [u8]>> {
        let alt = || self.alt_domain.as_ref().and_then(|alt| name.labels_below(alt));
        name.labels_below(&self.domain).or_else(alt)
    }
}

/// RFC 2181 section 8: a TTL has 31 bits.
fn ttl_secs(ttl: Duration) -> u32 {
    u32::try_from(ttl.as_secs()).unwrap_or(u32::MAX).min(u32::MAX >> 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_closest_service_ttl_rule_wins() {
        let mut config = DnsConfig::new("consul.", "dc1").unwrap();
        assert_eq!(config.service_ttl_secs("db"), 0);
        for (rule, secs) in [("*", 5), ("db", 12), ("cache*", 9), ("cache-b*", 8)] {
            config.service_ttl.insert(rule.to_owned(), Duration::from_secs(secs));
        }
        for (service, secs) in [
            ("db", 12),
            ("DB", 12),
            ("db2", 5),
            ("cache-a", 9),
            ("cache-b1", 8),
            ("é", 5),
            ("", 5),
        ] {
            assert_eq!(config.service_ttl_secs(service), secs, "{service}");
        }
        config
            .service_ttl
            .insert("db".into(), Duration::from_secs(u64::from(u32::MAX)));
        assert_eq!(config.service_ttl_secs("db"), u32::MAX >> 1);
    }
}
