//! Query parameters: presence, values, and the ones many endpoints share (consistency, blocking, node metadata).

use crate::config::HttpConfig;
use crate::errors::Fault;
use crate::go::{encode_form, parse_duration_nanos, parse_uint, query_unescape};
use quorate_store::Consistency;
use quorate_types::ModifyIndex;
use std::time::Duration;

/// The pairs of a query string, in order. A pair with a broken escape is left out, as Go does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Params(Vec<(String, String)>);

impl Params {
    pub fn parse(query: &str) -> Self {
        let pair = |part: &str| {
            let (key, value) = part.split_once('=').unwrap_or((part, ""));
            (!part.is_empty() && !part.contains(';'))
                .then(|| Some((query_unescape(key)?, query_unescape(value)?)))
                .flatten()
        };
        Self(query.split('&').filter_map(pair).collect())
    }
    pub fn has(&self, key: &str) -> bool {
        self.0.iter().any(|(name, _)| name == key)
    }
    /// The first value; empty when absent.
    pub fn get(&self, key: &str) -> &str {
        self.0
            .iter()
            .find(|(name, _)| name == key)
            .map_or("", |(_, value)| value)
    }
    pub fn all<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a str> {
        self.0
            .iter()
            .filter(move |(name, _)| name == key)
            .map(|(_, value)| value.as_str())
    }
    /// The pairs that an answer's form depends on: not those that say which answer, when, or for whom.
    pub fn form(&self) -> String {
        const OTHERS: &[&str] = &[
            "index",
            "wait",
            "stale",
            "consistent",
            "cached",
            "leader",
            "max_stale",
            "token",
        ];
        let pairs = self.0.iter().filter(|(name, _)| !OTHERS.contains(&name.as_str()));
        encode_form(&pairs.cloned().collect::<Vec<_>>())
    }
    /// All pairs as a form, for messages.
    pub fn encode(&self) -> String {
        encode_form(&self.0)
    }
    /// `?dc=`; empty is the agent's own.
    pub fn datacenter(&self) -> Option<&str> {
        Some(self.get("dc")).filter(|name| !name.is_empty())
    }
    pub fn tags(&self) -> Vec<String> {
        self.all("tag").map(str::to_owned).collect()
    }
    /// `?node-meta=key:value`; without a colon the value is empty.
    pub fn node_meta(&self) -> Vec<(String, String)> {
        self.all("node-meta")
            .map(|pair| pair.split_once(':').unwrap_or((pair, "")))
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect()
    }
}

/// How a read is to be answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadOptions {
    pub consistency: Consistency,
    pub max_stale: Option<Duration>,
    pub cached: bool,
    pub min_index: ModifyIndex,
    /// Clamped, before jitter.
    pub wait: Duration,
}

impl ReadOptions {
    /// `discovery`: the endpoint is one of those `discovery_max_stale` makes stale by themselves.
    pub fn parse(params: &Params, config: &HttpConfig, discovery: bool) -> Result<Self, Fault> {
        let mut stale = params.has("stale");
        let consistent = params.has("consistent");
        let cached = params.has("cached") && config.use_cache;
        let mut max_stale = None;
        let text = params.get("max_stale");
        if !text.is_empty() {
            let nanos = parse_duration_nanos(text).map_err(|_| Fault::MaxStale(text.to_owned()))?;
            if let Ok(nanos @ 1..) = u64::try_from(nanos) {
                max_stale = Some(Duration::from_nanos(nanos));
                stale = true;
            }
        }
        let chosen = stale || consistent || cached || params.has("leader");
        if !chosen && discovery && !config.discovery_max_stale.is_zero() {
            max_stale = Some(config.discovery_max_stale);
            stale = true;
        }
        if stale && consistent {
            return Err(Fault::StaleAndConsistent);
        }
        if cached && consistent {
            return Err(Fault::CachedAndConsistent);
        }
        let mut wait = config.wait_default;
        let text = params.get("wait");
        if !text.is_empty() {
            let nanos = parse_duration_nanos(text).map_err(|_| Fault::Wait)?;
            if let Ok(nanos @ 1..) = u64::try_from(nanos) {
                wait = Duration::from_nanos(nanos).min(config.wait_max);
            }
        }
        let text = params.get("index");
        let min_index = if text.is_empty() {
            0
        } else {
            parse_uint(text).map_err(|_| Fault::Index)?
        };
        let consistency = match (stale, consistent) {
            (true, _) => Consistency::Stale,
            (false, true) => Consistency::Consistent,
            (false, false) => Consistency::Default,
        };
        Ok(Self {
            consistency,
            max_stale,
            cached,
            min_index: ModifyIndex(min_index),
            wait,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(query: &str) -> Result<ReadOptions, Fault> {
        ReadOptions::parse(&Params::parse(query), &HttpConfig::default(), true)
    }

    #[test]
    fn presence_is_enough_for_a_flag() {
        assert_eq!(read("stale").unwrap().consistency, Consistency::Stale);
        assert_eq!(read("stale=1&x=%zz").unwrap().consistency, Consistency::Stale);
        assert_eq!(read("consistent").unwrap().consistency, Consistency::Consistent);
        assert_eq!(read("").unwrap().consistency, Consistency::Default);
        assert!(read("cached").unwrap().cached);
    }

    #[test]
    fn conflicting_or_broken_parameters_are_refused() {
        assert_eq!(read("stale&consistent"), Err(Fault::StaleAndConsistent));
        assert_eq!(read("cached&consistent"), Err(Fault::CachedAndConsistent));
        assert_eq!(read("index=-1"), Err(Fault::Index));
        assert_eq!(read("wait=10"), Err(Fault::Wait));
        assert_eq!(
            read("max_stale=abc").unwrap_err().to_string(),
            "Invalid max_stale value \"abc\""
        );
    }

    #[test]
    fn a_wait_is_clamped_and_defaults() {
        assert_eq!(read("index=7").unwrap().wait, Duration::from_secs(300));
        assert_eq!(read("index=7&wait=1h").unwrap().wait, Duration::from_secs(600));
        assert_eq!(read("index=7&wait=-1s").unwrap().wait, Duration::from_secs(300));
        assert_eq!(
            read("index=7&wait=30s").unwrap(),
            ReadOptions {
                consistency: Consistency::Default,
                max_stale: None,
                cached: false,
                min_index: ModifyIndex(7),
                wait: Duration::from_secs(30),
            }
        );
    }

    #[test]
    fn discovery_reads_are_stale_when_configured_and_not_overridden() {
        let config = HttpConfig {
            discovery_max_stale: Duration::from_secs(5),
            ..HttpConfig::default()
        };
        let read = |query, discovery| ReadOptions::parse(&Params::parse(query), &config, discovery).unwrap();
        assert_eq!(read("", true).consistency, Consistency::Stale);
        assert_eq!(read("", true).max_stale, Some(Duration::from_secs(5)));
        assert_eq!(read("leader", true).consistency, Consistency::Default);
        assert_eq!(read("", false).consistency, Consistency::Default);
    }
}
