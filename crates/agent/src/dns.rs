//! The catalog as DNS reads it: this server's own state, or a server's.

use crate::config::Dns;
use crate::metrics::DnsTimers;
use crate::router::Router;
use quorate_dns_answer::{DnsConfig, Name, NameError, SoaNumbers, qtype};
use quorate_dns_server::{Catalog, LookupError, RecursorStrategy, Settings};
use quorate_replica::RaftRt;
use quorate_store::{Consistency, Evaluation, Query};
use quorate_wire::rpc::CallError;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// `dns_config.allow_stale` and `max_stale`, which a reload may change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Staleness {
    pub allow_stale: bool,
    pub max_stale: Duration,
}

/// Answers DNS' lookups.
#[derive(Clone)]
pub struct DnsCatalog<R: RaftRt> {
    router: Router<R>,
    datacenter: Arc<str>,
    staleness: Arc<arc_swap::ArcSwap<Staleness>>,
    timers: DnsTimers,
}

impl<R: RaftRt> DnsCatalog<R> {
    pub(crate) fn new(
        router: Router<R>,
        datacenter: Arc<str>,
        staleness: Arc<arc_swap::ArcSwap<Staleness>>,
        timers: DnsTimers,
    ) -> Self {
        Self {
            router,
            datacenter,
            staleness,
            timers,
        }
    }
}

impl<R: RaftRt> Catalog for DnsCatalog<R> {
    fn observe_question(&self, qtype: u16, took: Duration) {
        match qtype {
            qtype::PTR => self.timers.reverse.observe(took),
            _ => self.timers.domain.observe(took),
        }
    }
    async fn evaluate(&self, datacenter: Option<&str>, query: Query) -> Result<Evaluation, LookupError> {
        if datacenter.is_some_and(|datacenter| !datacenter.eq_ignore_ascii_case(&self.datacenter)) {
            return Err(LookupError::NoPath);
        }
        let staleness = **self.staleness.load();
        let request = if staleness.allow_stale {
            Router::<R>::dns_request(query, Consistency::Stale, Some(staleness.max_stale))
        } else {
            Router::<R>::dns_request(query, Consistency::Default, None)
        };
        // Whoever asks by DNS asks again after a few seconds: an answer after a hold would reach nobody.
        let reply = self.router.read_once(request).await.map_err(|err| match err {
            CallError::NoServers => LookupError::NoServers,
            CallError::NoPath => LookupError::NoPath,
            err => LookupError::Failed(err.to_string()),
        })?;
        Ok(Evaluation {
            index: reply.index,
            answer: Arc::unwrap_or_clone(reply.answer),
        })
    }
}

/// The settings of the DNS server. `recursors` are the resolved addresses of `dns.recursors`.
pub fn settings(
    dns: &Dns,
    datacenter: &str,
    translate_wan_addrs: bool,
    recursors: Vec<SocketAddr>,
) -> Result<Settings, NameError> {
    let config = DnsConfig {
        alt_domain: dns.alt_domain.as_deref().map(Name::from_text).transpose()?,
        node_ttl: dns.node_ttl,
        service_ttl: dns.service_ttl.clone(),
        only_passing: dns.only_passing,
        udp_answer_limit: dns.udp_answer_limit,
        a_record_limit: dns.a_record_limit,
        enable_truncate: dns.enable_truncate,
        soa: SoaNumbers {
            refresh: dns.soa.refresh,
            retry: dns.soa.retry,
            expire: dns.soa.expire,
            min_ttl: dns.soa.min_ttl,
        },
        enable_additional_node_meta_txt: dns.node_meta_txt,
        disable_compression: dns.disable_compression,
        translate_wan_addrs,
        recursion_available: !recursors.is_empty(),
        ..DnsConfig::new(&dns.domain, datacenter)?
    };
    Ok(Settings {
        recursors,
        recursor_strategy: match dns.recursor_strategy {
            crate::config::RecursorStrategy::Sequential => RecursorStrategy::Sequential,
            crate::config::RecursorStrategy::Random => RecursorStrategy::Random,
        },
        recursor_timeout: dns.recursor_timeout,
        ..Settings::new(config)
    })
}
