//! Services of the local agent: `services register`, `services deregister`.
//!
//! Files hold the same definitions as the agent's configuration and are read by the same code, so that a file registers
//! the same service here and there.

use super::Context;
use crate::report::Report;
use quorate_agent::config::{Config, Flags, duration, load};
use quorate_types::{CheckDefinition, CheckKind, ServiceDefinition};
use serde_json::{Map, Value, json};

/// The services that files define, and what is told of those files.
async fn services_of_files(context: &Context) -> Result<(Vec<ServiceDefinition>, Report), Report> {
    let mut services = Vec::new();
    let mut report = Report::default();
    for file in context.arguments() {
        // `dev` lets a file be valid that holds a service and nothing else of an agent's configuration.
        let sources = Flags {
            config_paths: vec![file.clone()],
            dev: true,
            // One that nothing is told of: this host's name does not matter here.
            fragments: vec![r#"{"node_name": "none"}"#.to_owned()],
            ..Flags::default()
        };
        let config: Config = load(&context.rt, &sources)
            .await
            .map_err(|error| format!("Error: {error}"))?;
        if let Some(refused) = config.refused_definitions.first() {
            return Err(Report::failure(format!("Error: {refused}")));
        }
        for warning in &config.warnings {
            report.add_warning(format!("{file}: {warning}"));
        }
        services.extend(config.services);
    }
    Ok((services, report))
}

pub async fn register(context: &Context) -> Result<Report, Report> {
    let flags = &context.flags;
    let mut report = Report::default();
    let bodies: Vec<Value> = match (context.arguments().is_empty(), flags.text("name")) {
        (true, "") => {
            return Err(Report::failure(
                "Service registration requires at least one argument or flags.",
            ));
        }
        (false, "") => {
            let (services, told) = services_of_files(context).await?;
            report = told;
            services.iter().map(registration).collect()
        }
        (false, _) => {
            return Err(Report::failure(
                "Service registration requires arguments or -name, not both.",
            ));
        }
        (true, _) => {
            for flag in ["kind", "socket"]
                .into_iter()
                .filter(|flag| !flags.text(flag).is_empty())
            {
                report.add_warning(format!(
                    "-{flag} is accepted and has no effect: this agent does not have the feature."
                ));
            }
            vec![registration_of_flags(context)?]
        }
    };
    let client = context.client().await?;
    for body in bodies {
        let name = body["Name"].as_str().unwrap_or_default();
        if let Err(error) = client.register_service(&body).await {
            report.add_failure(format!("Error registering service {name:?}: {error}"));
            return Err(report);
        }
        report.add_line(format!("Registered service: {name}"));
    }
    Ok(report)
}

pub async fn deregister(context: &Context) -> Result<Report, Report> {
    let ids: Vec<String> = match (context.arguments().is_empty(), context.flags.text("id")) {
        (true, "") => {
            return Err(Report::failure(
                "Service deregistration requires at least one argument or -id.",
            ));
        }
        (false, "") => services_of_files(context)
            .await?
            .0
            .into_iter()
            .map(|definition| definition.service.id)
            .collect(),
        (false, _) => {
            return Err(Report::failure(
                "Service deregistration requires arguments or -id, not both.",
            ));
        }
        (true, id) => vec![id.to_owned()],
    };
    let client = context.client().await?;
    let mut report = Report::default();
    for id in ids {
        if let Err(error) = client.deregister_service(&id).await {
            report.add_failure(format!("Error deregistering service {id:?}: {error}"));
            return Err(report);
        }
        report.add_line(format!("Deregistered service: {id}"));
    }
    Ok(report)
}

fn registration_of_flags(context: &Context) -> Result<Value, String> {
    let flags = &context.flags;
    let pair = |flag: &str, text: &str| {
        let (key, value) = text
            .split_once('=')
            .ok_or_else(|| format!("-{flag} {text:?} is not key=value"))?;
        Ok::<_, String>((key.to_owned(), value.to_owned()))
    };
    let mut meta = Map::new();
    for text in flags.texts("meta") {
        let (key, value) = pair("meta", text)?;
        meta.insert(key, value.into());
    }
    let mut tagged = Map::new();
    for text in flags.texts("tagged-address") {
        let (key, value) = pair("tagged-address", text)?;
        tagged.insert(key, tagged_address(&value)?);
    }
    let mut body = Map::new();
    for (flag, key) in [
        ("name", "Name"),
        ("id", "ID"),
        ("address", "Address"),
        ("kind", "Kind"),
        ("socket", "SocketPath"),
    ] {
        if !flags.text(flag).is_empty() {
            body.insert(key.to_owned(), flags.text(flag).into());
        }
    }
    body.insert("Port".to_owned(), flags.integer("port").into());
    body.insert("Tags".to_owned(), json!(flags.texts("tag")));
    body.insert("Meta".to_owned(), meta.into());
    body.insert("TaggedAddresses".to_owned(), tagged.into());
    Ok(body.into())
}

/// `host`, `host:port` or `scheme://host:port`.
fn tagged_address(text: &str) -> Result<Value, String> {
    let text = text.split_once("://").map_or(text, |(_, rest)| rest);
    let (host, port) = match text.rsplit_once(':') {
        // An IPv6 address without brackets has no port.
        Some((host, port)) if !host.contains(':') || host.ends_with(']') => (host, port),
        _ => (text, "0"),
    };
    let port: u16 = port
        .parse()
        .map_err(|_| format!("-tagged-address {text:?}: {port:?} is no port"))?;
    Ok(json!({"Address": host.trim_matches(['[', ']']), "Port": port}))
}

/// A definition as `PUT /v1/agent/service/register` takes it.
fn registration(definition: &ServiceDefinition) -> Value {
    let service = &definition.service;
    let tagged: Map<String, Value> = service
        .tagged_addresses
        .iter()
        .map(|(name, address)| (name.clone(), json!({"Address": address.address, "Port": address.port})))
        .collect();
    let mut body = json!({
        "ID": service.id,
        "Name": service.name,
        "Tags": service.tags,
        "Address": service.address,
        "TaggedAddresses": tagged,
        "Meta": service.meta,
        "Port": service.port,
        "Weights": {"Passing": service.weights.passing, "Warning": service.weights.warning},
        "EnableTagOverride": service.enable_tag_override,
        "Checks": definition.checks.iter().map(check).collect::<Vec<_>>(),
    });
    if !definition.token.is_empty() {
        body["Token"] = json!(definition.token);
    }
    body
}

fn check(check: &CheckDefinition) -> Value {
    let mut body = json!({
        "CheckID": check.id,
        "Name": check.name,
        "Notes": check.notes,
        "Status": check.status.as_str(),
        "SuccessBeforePassing": check.success_before_passing,
        "FailuresBeforeWarning": check.failures_before_warning,
        "FailuresBeforeCritical": check.failures_before_critical,
        "OutputMaxSize": check.output_len_bytes_max,
    });
    if !check.interval.is_zero() {
        body["Interval"] = json!(duration::format(check.interval));
    }
    if let Some(timeout) = check.timeout {
        body["Timeout"] = json!(duration::format(timeout));
    }
    if let Some(after) = check.deregister_critical_service_after {
        body["DeregisterCriticalServiceAfter"] = json!(duration::format(after));
    }
    match &check.kind {
        CheckKind::Script { args } => body["Args"] = json!(args),
        CheckKind::Http {
            url,
            method,
            header,
            body: sent,
            disable_redirects,
            tls_skip_verify,
            tls_server_name,
        } => {
            body["HTTP"] = json!(url);
            body["Method"] = json!(method);
            body["Header"] = json!(header);
            body["Body"] = json!(sent);
            body["DisableRedirects"] = json!(disable_redirects);
            body["TLSSkipVerify"] = json!(tls_skip_verify);
            body["TLSServerName"] = json!(tls_server_name);
        }
        CheckKind::Tcp { address } => body["TCP"] = json!(address),
        CheckKind::Ttl { ttl } => body["TTL"] = json!(duration::format(*ttl)),
        // Only the agent makes these; no file can.
        CheckKind::Maintenance => {}
    }
    body
}

#[cfg(test)]
mod tests {
    use super::*;
    use quorate_agent::config::Format;
    use quorate_agent::config::{HostFacts, SourceFile, from_sources};

    fn registrations(text: &str) -> Vec<Value> {
        let source = SourceFile {
            path: "a.json".to_owned(),
            text: text.to_owned(),
            format: Format::Json,
        };
        let flags = Flags {
            dev: true,
            ..Flags::default()
        };
        let facts = HostFacts {
            host_name: "n1".to_owned(),
            ..HostFacts::default()
        };
        let config = from_sources(&[source], &flags, &facts).unwrap();
        assert_eq!(config.refused_definitions, Vec::<String>::new());
        config.services.iter().map(registration).collect()
    }

    #[test]
    fn a_script_check_from_a_file_keeps_its_arguments() {
        let text = r#"{"service":{"name":"elasticsearch","port":9200,
            "check":{"script":"curl -s 127.0.0.1:9200","interval":"10s"}}}"#;
        let bodies = registrations(text);
        assert_eq!(bodies.len(), 1);
        assert_eq!(
            (&bodies[0]["Name"], &bodies[0]["Port"]),
            (&json!("elasticsearch"), &json!(9200))
        );
        let check = &bodies[0]["Checks"][0];
        assert_eq!(check["Args"], json!(["/bin/sh", "-c", "curl -s 127.0.0.1:9200"]));
        assert_eq!(
            (&check["Interval"], &check["CheckID"]),
            (&json!("10s"), &json!("service:elasticsearch"))
        );
    }

    #[test]
    fn every_kind_of_check_keeps_what_it_needs() {
        let text = r#"{"services":[{"name":"a","id":"a1","tags":["x"],"checks":[
            {"http":"http://localhost:1/h","interval":"1s","timeout":"2s","method":"POST"},
            {"tcp":"localhost:1","interval":"1m30s"},{"ttl":"15s","status":"passing"}]},{"name":"b"}]}"#;
        let bodies = registrations(text);
        assert_eq!(
            (&bodies[0]["ID"], &bodies[0]["Tags"], &bodies[1]["Name"]),
            (&json!("a1"), &json!(["x"]), &json!("b"))
        );
        let checks = &bodies[0]["Checks"];
        assert_eq!(
            (&checks[0]["HTTP"], &checks[0]["Method"]),
            (&json!("http://localhost:1/h"), &json!("POST"))
        );
        assert_eq!(
            (&checks[1]["TCP"], &checks[1]["Interval"]),
            (&json!("localhost:1"), &json!("1m30s"))
        );
        assert_eq!(
            (&checks[2]["TTL"], &checks[2]["Status"]),
            (&json!("15s"), &json!("passing"))
        );
        assert_eq!(checks[2].get("Interval"), None);
    }

    #[test]
    fn a_tagged_address_may_carry_a_port_and_a_scheme() {
        assert_eq!(
            tagged_address("1.2.3.4").unwrap(),
            json!({"Address": "1.2.3.4", "Port": 0})
        );
        assert_eq!(
            tagged_address("tcp://1.2.3.4:80").unwrap(),
            json!({"Address": "1.2.3.4", "Port": 80})
        );
        assert_eq!(
            tagged_address("[::1]:80").unwrap(),
            json!({"Address": "::1", "Port": 80})
        );
        assert_eq!(
            tagged_address("2001:db8::1").unwrap(),
            json!({"Address": "2001:db8::1", "Port": 0})
        );
        assert!(tagged_address("a:b").is_err());
    }
}
