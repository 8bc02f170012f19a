//! Rules of definitions: what an agent accepts as a service or a check, and the defaults it fills in.
//!
//! Plain functions on `quorate_types` definitions, the same for files and for the HTTP API: only who may run scripts
//! depends on the origin. Error texts are those of Consul 1.8.7's `/v1/agent/service/register` and `check/register`.
//! In: a definition as given. Out: one that satisfies every rule, with ids and names filled in, or the first error.
//! Not here: how a file or a request becomes a definition (`file_definition`, the HTTP handlers).

use quorate_http_api::{check_meta, fill_tagged_addresses};
use quorate_types::limits::CHECK_OUTPUT_LEN_BYTES_MAX;
use quorate_types::{CheckDefinition, CheckKind, ServiceDefinition};
use std::time::Duration;
use thiserror::Error;

/// Checks run no more often: Consul raises shorter intervals to this.
pub const CHECK_INTERVAL_MIN: Duration = Duration::from_secs(1);
/// Services are not deregistered sooner after turning critical: Consul raises shorter times to this.
pub const DEREGISTER_CRITICAL_AFTER_MIN: Duration = Duration::from_secs(60);

/// Why a definition is refused.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum DefinitionError {
    #[error("Missing service name")]
    ServiceNameMissing,
    #[error("Invalid service address")]
    ServiceAddressInvalid,
    #[error("Invalid Weights: Passing must be greater than 0")]
    WeightPassingZero,
    #[error("Invalid Service Meta: {0}")]
    ServiceMeta(String),
    #[error("Missing check name")]
    CheckNameMissing,
    #[error("Invalid check: TTL must be > 0 for TTL checks")]
    TtlMissing,
    #[error("Invalid check: Interval must be > 0 for Script, HTTP, or TCP checks")]
    IntervalMissing,
    #[error("Invalid check: FailuresBeforeWarning can't be higher than FailuresBeforeCritical")]
    WarningAfterCritical,
    #[error("Invalid check: Args must name a program")]
    ProgramMissing,
    #[error("Invalid check: https checks are not supported, use an http or a tcp check instead of {0:?}")]
    HttpsUnsupported(String),
    #[error("Invalid port: {key} cannot be {port}. Must be between 0 and 65535")]
    PortOutOfRange { key: String, port: i64 },
    #[error("Invalid check: the id {0:?} is kept for the cluster's own health check")]
    IdReserved(String),
    #[error(
        "Scripts are disabled on this agent; to enable, configure 'enable_script_checks' or 'enable_local_script_checks' to true"
    )]
    ScriptsDisabled,
    #[error(
        "Scripts are disabled on this agent from remote calls; to enable, configure 'enable_script_checks' to true"
    )]
    ScriptsDisabledRemotely,
}

/// Where a definition came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A configuration file, or what was stored of one.
    File,
    /// The HTTP API, whoever called it.
    Remote,
}

/// Who may have the agent run programs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ScriptPolicy {
    /// `enable_local_script_checks` or `enable_script_checks`: definitions in files.
    pub from_files: bool,
    /// `enable_script_checks`: the HTTP API too.
    pub from_remote: bool,
}

/// Whether the agent may run this check, given where it came from. Only script checks are ever refused.
pub fn scripts_allowed(check: &CheckDefinition, origin: Origin, policy: ScriptPolicy) -> Result<(), DefinitionError> {
    if !matches!(check.kind, CheckKind::Script { .. }) {
        return Ok(());
    }
    match origin {
        Origin::File if !policy.from_files => Err(DefinitionError::ScriptsDisabled),
        Origin::Remote if !policy.from_remote => Err(DefinitionError::ScriptsDisabledRemotely),
        Origin::File | Origin::Remote => Ok(()),
    }
}

/// Fills in a service's defaults and applies every rule to it and its checks.
pub fn prepare_service(mut definition: ServiceDefinition) -> Result<ServiceDefinition, DefinitionError> {
    let service = &mut definition.service;
    if service.name.is_empty() {
        return Err(DefinitionError::ServiceNameMissing);
    }
    if service.id.is_empty() {
        service.id.clone_from(&service.name);
    }
    if matches!(service.address.as_str(), "0.0.0.0" | "::" | "[::]") {
        return Err(DefinitionError::ServiceAddressInvalid);
    }
    if service.weights.passing == 0 {
        return Err(DefinitionError::WeightPassingZero);
    }
    // An SRV record has 16 bits for it: Consul 1.8.7 takes any number, and answers no question for such an instance.
    let tagged = service.tagged_addresses.iter();
    let tagged = tagged.map(|(tag, address)| (format!("tagged_addresses.{tag}.port"), address.port));
    for (key, port) in std::iter::once(("port".to_owned(), service.port)).chain(tagged) {
        if u16::try_from(port).is_err() {
            return Err(DefinitionError::PortOutOfRange { key, port });
        }
    }
    check_meta(&service.meta).map_err(DefinitionError::ServiceMeta)?;
    fill_tagged_addresses(service);
    let count = definition.checks.len();
    for (position, check) in definition.checks.iter_mut().enumerate() {
        if check.id.is_empty() {
            check.id = match count {
                1 => format!("service:{}", service.id),
                _ => format!("service:{}:{}", service.id, position + 1),
            };
        }
        if check.name.is_empty() {
            check.name = format!("Service '{}' check", service.name);
        }
        check.service_id.clone_from(&service.id);
        if check.token.is_empty() {
            check.token.clone_from(&definition.token);
        }
        *check = prepare_check(check.clone())?;
    }
    Ok(definition)
}

/// Fills in a check's defaults and applies every rule to it.
pub fn prepare_check(mut check: CheckDefinition) -> Result<CheckDefinition, DefinitionError> {
    if check.name.is_empty() {
        return Err(DefinitionError::CheckNameMissing);
    }
    if check.id.is_empty() {
        check.id.clone_from(&check.name);
    }
    if check.id == "serfHealth" {
        // The leader writes this one: a local one of that name would fight with it.
        return Err(DefinitionError::IdReserved(check.id));
    }
    match &check.kind {
        CheckKind::Ttl { ttl } if ttl.is_zero() => return Err(DefinitionError::TtlMissing),
        CheckKind::Ttl { .. } | CheckKind::Maintenance => check.interval = Duration::ZERO,
        CheckKind::Script { args } if args.iter().all(String::is_empty) => {
            return Err(DefinitionError::ProgramMissing);
        }
        CheckKind::Http { url, .. } if is_https(url) => {
            return Err(DefinitionError::HttpsUnsupported(url.clone()));
        }
        CheckKind::Script { .. } | CheckKind::Http { .. } | CheckKind::Tcp { .. } => {
            if check.interval.is_zero() {
                return Err(DefinitionError::IntervalMissing);
            }
            check.interval = check.interval.max(CHECK_INTERVAL_MIN);
        }
    }
    if check.timeout.is_some_and(|timeout| timeout.is_zero()) {
        check.timeout = None;
    }
    if check.failures_before_warning > check.failures_before_critical {
        return Err(DefinitionError::WarningAfterCritical);
    }
    if check.failures_before_warning == 0 {
        check.failures_before_warning = check.failures_before_critical;
    }
    check.deregister_critical_service_after = check
        .deregister_critical_service_after
        .filter(|after| !after.is_zero())
        .map(|after| after.max(DEREGISTER_CRITICAL_AFTER_MIN));
    if check.output_len_bytes_max == 0 || check.output_len_bytes_max > CHECK_OUTPUT_LEN_BYTES_MAX {
        check.output_len_bytes_max = CHECK_OUTPUT_LEN_BYTES_MAX;
    }
    Ok(check)
}

fn is_https(url: &str) -> bool {
    url.trim_start()
        .get(..6)
        .is_some_and(|scheme| scheme.eq_ignore_ascii_case("https:"))
}

/// A warning for a name that DNS cannot carry; the service is accepted all the same.
pub fn dns_name_warning(kind: &str, name: &str) -> Option<String> {
    if name.is_empty() || !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-') {
        return Some(format!(
            "{kind} {name:?} will not be discoverable via DNS due to invalid characters. Valid characters include all alpha-numerics and dashes."
        ));
    }
    (name.len() > 63).then(|| {
        format!(
            "{kind} {name:?} will not be discoverable via DNS due to it being too long. Valid lengths are between 1 and 63 bytes."
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use quorate_types::{CheckStatus, Service, ServiceAddress, Weights};
    use std::collections::BTreeMap;

    pub(super) fn check(kind: CheckKind) -> CheckDefinition {
        CheckDefinition {
            id: String::new(),
            name: "mem".to_owned(),
            notes: String::new(),
            service_id: String::new(),
            status: CheckStatus::Critical,
            kind,
            interval: Duration::ZERO,
            timeout: None,
            success_before_passing: 0,
            failures_before_warning: 0,
            failures_before_critical: 0,
            deregister_critical_service_after: None,
            output_len_bytes_max: 0,
            token: String::new(),
        }
    }

    fn service(name: &str) -> ServiceDefinition {
        ServiceDefinition {
            service: Service {
                name: name.to_owned(),
                ..Service::default()
            },
            ..ServiceDefinition::default()
        }
    }

    fn ttl(secs: u64) -> CheckKind {
        CheckKind::Ttl {
            ttl: Duration::from_secs(secs),
        }
    }

    #[test]
    fn ids_and_names_are_filled_in() {
        let mut web = service("web");
        web.token = "t".to_owned();
        web.checks = vec![CheckDefinition {
            name: String::new(),
            ..check(ttl(1))
        }];
        let one = prepare_service(web.clone()).unwrap();
        assert_eq!(one.service.id, "web");
        assert_eq!(one.checks[0].id, "service:web");
        assert_eq!(one.checks[0].name, "Service 'web' check");
        assert_eq!(one.checks[0].service_id, "web");
        assert_eq!(one.checks[0].token, "t");
        web.checks.push(check(ttl(1)));
        let two = prepare_service(web).unwrap();
        assert_eq!(
            (two.checks[0].id.as_str(), two.checks[1].id.as_str()),
            ("service:web:1", "service:web:2")
        );
        assert_eq!(prepare_check(check(ttl(1))).unwrap().id, "mem");
    }

    #[test]
    fn an_ip_address_tags_itself_and_a_host_name_does_not() {
        let mut web = service("web");
        web.service.address = "10.0.0.1".to_owned();
        web.service.port = 80;
        let web = prepare_service(web).unwrap();
        assert_eq!(
            web.service.tagged_addresses.keys().collect::<Vec<_>>(),
            ["lan_ipv4", "wan_ipv4"]
        );
        assert_eq!(web.service.tagged_addresses["lan_ipv4"].port, 80);
        let mut named = service("web");
        named.service.address = "db.example".to_owned();
        assert!(prepare_service(named).unwrap().service.tagged_addresses.is_empty());
    }

    #[test]
    fn rules_are_told_in_consuls_words() {
        let text = |definition| prepare_service(definition).unwrap_err().to_string();
        assert_eq!(text(service("")), "Missing service name");
        let mut bad = service("a");
        bad.service.address = "[::]".to_owned();
        assert_eq!(text(bad), "Invalid service address");
        let mut bad = service("a");
        bad.service.weights = Weights { passing: 0, warning: 0 };
        assert_eq!(text(bad), "Invalid Weights: Passing must be greater than 0");
        for (key, value, reason) in [
            ("a.b", "1", "Key contains invalid characters"),
            ("", "1", "Key cannot be blank"),
            ("consul-x", "1", "Key prefix 'consul-' is reserved for internal use"),
        ] {
            let mut bad = service("a");
            bad.service.meta.insert(key.to_owned(), value.to_owned());
            assert_eq!(
                text(bad),
                format!("Invalid Service Meta: Couldn't load metadata pair ('{key}', '{value}'): {reason}")
            );
        }
        let mut bad = service("a");
        bad.service.meta = (0..65).map(|n| (format!("k{n}"), String::new())).collect();
        assert_eq!(
            text(bad),
            "Invalid Service Meta: Node metadata cannot contain more than 64 key/value pairs"
        );
    }

    #[test]
    fn a_check_needs_a_ttl_or_an_interval_and_no_https() {
        let text = |definition| prepare_check(definition).unwrap_err().to_string();
        assert_eq!(text(check(ttl(0))), "Invalid check: TTL must be > 0 for TTL checks");
        let tcp = CheckKind::Tcp {
            address: "a:1".to_owned(),
        };
        assert_eq!(
            text(check(tcp.clone())),
            "Invalid check: Interval must be > 0 for Script, HTTP, or TCP checks"
        );
        let mut short = check(tcp);
        short.interval = Duration::from_millis(1);
        short.deregister_critical_service_after = Some(Duration::from_secs(5));
        let short = prepare_check(short).unwrap();
        assert_eq!(short.interval, CHECK_INTERVAL_MIN);
        assert_eq!(
            short.deregister_critical_service_after,
            Some(DEREGISTER_CRITICAL_AFTER_MIN)
        );
        assert_eq!(short.output_len_bytes_max, CHECK_OUTPUT_LEN_BYTES_MAX);
        let mut https = check(CheckKind::Http {
            url: "HTTPS://x/".to_owned(),
            method: String::new(),
            header: BTreeMap::new(),
            body: String::new(),
            disable_redirects: false,
            tls_skip_verify: false,
            tls_server_name: String::new(),
        });
        https.interval = Duration::from_secs(1);
        assert!(text(https).contains("https checks are not supported"));
    }

    #[test]
    fn a_port_that_no_record_can_carry_is_refused_with_its_key_and_value() {
        for port in [-1, 65_536, 70_000, i64::MAX] {
            let mut bad = service("a");
            bad.service.port = port;
            assert_eq!(
                prepare_service(bad).unwrap_err().to_string(),
                format!("Invalid port: port cannot be {port}. Must be between 0 and 65535")
            );
            let mut bad = service("a");
            let address = ServiceAddress {
                address: "10.0.0.1".to_owned(),
                port,
            };
            bad.service.tagged_addresses.insert("wan".to_owned(), address);
            assert_eq!(
                prepare_service(bad).unwrap_err().to_string(),
                format!("Invalid port: tagged_addresses.wan.port cannot be {port}. Must be between 0 and 65535")
            );
        }
        for port in [0, 1, 65_535] {
            let mut good = service("a");
            good.service.port = port;
            assert_eq!(prepare_service(good).unwrap().service.port, port);
        }
    }

    #[test]
    fn scripts_run_only_for_whom_they_are_enabled() {
        let script = check(CheckKind::Script {
            args: vec!["true".to_owned()],
        });
        let off = ScriptPolicy::default();
        let files_only = ScriptPolicy {
            from_files: true,
            from_remote: false,
        };
        assert_eq!(
            scripts_allowed(&script, Origin::File, off).unwrap_err().to_string(),
            "Scripts are disabled on this agent; to enable, configure 'enable_script_checks' or 'enable_local_script_checks' to true"
        );
        assert_eq!(
            scripts_allowed(&script, Origin::Remote, files_only)
                .unwrap_err()
                .to_string(),
            "Scripts are disabled on this agent from remote calls; to enable, configure 'enable_script_checks' to true"
        );
        assert_eq!(scripts_allowed(&script, Origin::File, files_only), Ok(()));
        assert_eq!(scripts_allowed(&check(ttl(1)), Origin::Remote, off), Ok(()));
    }
}
