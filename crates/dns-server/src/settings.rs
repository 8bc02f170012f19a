//! What may be changed while the server runs.

use quorate_dns_answer::DnsConfig;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// `dns_config.recursor_strategy`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RecursorStrategy {
    #[default]
    Sequential,
    Random,
}

/// Bounds on what clients can make the server hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Questions over UDP that wait for a lookup or a recursor; one more datagram is dropped: its client asks again.
    pub waiting_count_max: usize,
    /// Open TCP connections; one more is closed at once.
    pub connection_count_max: usize,
    /// For a client's next whole question, and for it to take a reply.
    pub tcp_idle_timeout: Duration,
    /// From a question's receipt to SERVFAIL. Clients' own patience is about half of it.
    pub question_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            waiting_count_max: 4096,
            connection_count_max: 512,
            tcp_idle_timeout: Duration::from_secs(10),
            question_timeout: Duration::from_secs(10),
        }
    }
}

/// The operator's settings of DNS.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Its `recursion_available` is set from `recursors`.
    pub dns: DnsConfig,
    pub recursors: Vec<SocketAddr>,
    pub recursor_strategy: RecursorStrategy,
    /// For each recursor that is tried.
    pub recursor_timeout: Duration,
    pub limits: Limits,
}

impl Settings {
    /// Without recursors.
    pub fn new(dns: DnsConfig) -> Self {
        Self {
            dns,
            recursors: Vec::new(),
            recursor_strategy: RecursorStrategy::default(),
            recursor_timeout: Duration::from_secs(2),
            limits: Limits::default(),
        }
    }
}

/// Settings in force.
pub(crate) struct Active {
    pub(crate) dns: Arc<DnsConfig>,
    pub(crate) recursors: Vec<SocketAddr>,
    pub(crate) recursor_strategy: RecursorStrategy,
    pub(crate) recursor_timeout: Duration,
    pub(crate) limits: Limits,
}

impl Active {
    pub(crate) fn new(settings: Settings, own_addresses: &[SocketAddr]) -> Self {
        let mut recursors = settings.recursors;
        // A server that is its own recursor would forward each question to itself until the deadline.
        recursors.retain(|recursor| !own_addresses.iter().any(|own| is_reached_by(*own, *recursor)));
        let mut dns = settings.dns;
        dns.recursion_available = !recursors.is_empty();
        Self {
            dns: Arc::new(dns),
            recursors,
            recursor_strategy: settings.recursor_strategy,
            recursor_timeout: settings.recursor_timeout,
            limits: settings.limits,
        }
    }
}

fn is_reached_by(own: SocketAddr, address: SocketAddr) -> bool {
    let is_any = own.ip().is_unspecified() && (address.ip().is_loopback() || address.ip().is_unspecified());
    own.port() == address.port() && (own.ip() == address.ip() || is_any)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_server_itself_is_no_recursor() {
        let dns = DnsConfig::new("consul.", "dc1").unwrap();
        let active = |own: &str, recursors: &[&str]| {
            let mut settings = Settings::new(dns.clone());
            settings.recursors = recursors.iter().map(|text| text.parse().unwrap()).collect();
            Active::new(settings, &[own.parse().unwrap()])
        };
        let alone = active("127.0.0.1:8600", &["127.0.0.1:8600"]);
        assert!(alone.recursors.is_empty() && !alone.dns.recursion_available);
        assert!(active("0.0.0.0:53", &["127.0.0.1:53"]).recursors.is_empty());
        let other = active("127.0.0.1:8600", &["127.0.0.1:8600", "127.0.0.1:53", "9.9.9.9:8600"]);
        assert!(other.recursors.len() == 2 && other.dns.recursion_available);
    }
}
