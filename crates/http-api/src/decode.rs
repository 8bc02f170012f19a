//! Request bodies to definitions and registrations, as Go's `encoding/json` and Consul read them.
//!
//! Keys match without case; agent definitions take snake_case aliases too. Unknown keys are refused by name. What belongs
//! to the service mesh or to Enterprise is accepted and ignored.
//! Invariants: no body panics; nesting is bounded by serde_json; what comes out satisfies the limits of the contract.
//!
//! Not here: reading bodies from the connection (`call`), what becomes of a definition (the agent).

use crate::backend::BackendError;
use crate::errors::{DecodeError, Fault, SessionFault};
use crate::go::{format_duration, parse_duration_nanos};
use crate::json_syntax;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use quorate_store::{CatalogVerb, CheckOperation, KvOperation, KvVerb, NodeOperation, Operation, ServiceOperation};
use quorate_types::{
    Check, CheckDefinition, CheckKind, CheckStatus, Coordinate, Deregistration, HealthCheckDefinition, ModifyIndex,
    Node, NodeCoordinate, NodeId, Registration, Service, ServiceAddress, ServiceDefinition, Session, SessionBehavior,
    Weights, limits,
};
use serde::Deserialize;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

/// Shortest `DeregisterCriticalServiceAfter`: less is raised to it.
const DEREGISTER_AFTER_MIN: Duration = Duration::from_secs(60);
/// Of the service mesh and of Enterprise: accepted anywhere, never used.
const IGNORED: [&str; 10] = [
    "namespace",
    "partition",
    "peername",
    "locality",
    "socketpath",
    "kind",
    "proxy",
    "connect",
    "enterprisemeta",
    "writerequest",
];

fn describe(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Bool(_) => "bool".to_owned(),
        Value::Number(number) if number.is_f64() => format!("number {number}"),
        Value::Number(number) if number.as_i64().is_some_and(|number| number < 0) => format!("number {number}"),
        Value::Number(_) => "number".to_owned(),
        Value::String(_) => "string".to_owned(),
        Value::Array(_) => "array".to_owned(),
        Value::Object(_) => "object".to_owned(),
    }
}

/// The fields of one JSON object, taken one by one; what is left at the end is unknown.
struct Object {
    fields: Vec<(String, Value)>,
    aliases: bool,
}

/// The value that a body begins with. As Go's decoder: what follows it is not looked at.
fn parse_value(body: &[u8]) -> Result<Value, DecodeError> {
    if body.iter().all(u8::is_ascii_whitespace) {
        return Err(DecodeError::Empty);
    }
    let mut deserializer = serde_json::Deserializer::from_slice(body);
    Value::deserialize(&mut deserializer).map_err(|error| {
        if error.is_eof() {
            DecodeError::Truncated
        } else {
            let reason = json_syntax::describe(&String::from_utf8_lossy(body));
            DecodeError::Syntax(reason.unwrap_or_else(|| error.to_string()))
        }
    })
}

impl Object {
    fn parse(body: &[u8], aliases: bool) -> Result<Self, DecodeError> {
        match parse_value(body)? {
            Value::Null => Ok(Self {
                fields: Vec::new(),
                aliases,
            }),
            value => Self::of(value, "object", aliases),
        }
    }

    fn of(value: Value, wanted: &'static str, aliases: bool) -> Result<Self, DecodeError> {
        match value {
            Value::Object(fields) => Ok(Self::of_map(fields, aliases)),
            other => Err(DecodeError::WrongValue {
                found: describe(&other),
                wanted,
            }),
        }
    }

    fn of_map(fields: Map<String, Value>, aliases: bool) -> Self {
        Self {
            fields: fields.into_iter().collect(),
            aliases,
        }
    }

    /// The value of a field, `None` when absent or `null`.
    fn take(&mut self, name: &str) -> Option<Value> {
        let aliases = self.aliases;
        let is_it = |key: &str| {
            key.eq_ignore_ascii_case(name)
                || aliases
                    && key.contains('_')
                    && key
                        .bytes()
                        .filter(|byte| *byte != b'_')
                        .map(|byte| byte.to_ascii_lowercase())
                        .eq(name.bytes().map(|byte| byte.to_ascii_lowercase()))
        };
        let mut taken = None;
        // Spellings of one name may occur together; the last one counts, and none is unknown.
        self.fields.retain_mut(|(key, value)| {
            let found = is_it(key);
            if found {
                taken = Some(value.take());
            }
            !found
        });
        taken.filter(|value| !value.is_null())
    }

    fn wrong(field: &'static str, wanted: &'static str, value: &Value) -> DecodeError {
        DecodeError::WrongType {
            found: describe(value),
            field,
            wanted,
        }
    }

    fn text(&mut self, name: &'static str) -> Result<String, DecodeError> {
        match self.take(name) {
            None => Ok(String::new()),
            Some(Value::String(text)) => Ok(text),
            Some(other) => Err(Self::wrong(name, "string", &other)),
        }
    }

    fn bool(&mut self, name: &'static str) -> Result<bool, DecodeError> {
        match self.take(name) {
            None => Ok(false),
            Some(Value::Bool(value)) => Ok(value),
            Some(other) => Err(Self::wrong(name, "bool", &other)),
        }
    }

    fn int(&mut self, name: &'static str) -> Result<i64, DecodeError> {
        match self.take(name) {
            None => Ok(0),
            Some(value) => value.as_i64().ok_or_else(|| Self::wrong(name, "int", &value)),
        }
    }

    fn float(&mut self, name: &'static str) -> Result<f64, DecodeError> {
        match self.take(name) {
            None => Ok(0.0),
            Some(value) => value.as_f64().ok_or_else(|| Self::wrong(name, "float64", &value)),
        }
    }

    fn uint(&mut self, name: &'static str) -> Result<u64, DecodeError> {
        match self.take(name) {
            None => Ok(0),
            Some(value) => value.as_u64().ok_or_else(|| Self::wrong(name, "uint64", &value)),
        }
    }

    /// Bytes, in base64.
    fn bytes(&mut self, name: &'static str) -> Result<Vec<u8>, DecodeError> {
        let text = self.text(name)?;
        STANDARD.decode(&text).map_err(|err| {
            let position = match err {
                base64::DecodeError::InvalidByte(position, _) | base64::DecodeError::InvalidLastSymbol(position, _) => {
                    position
                }
                base64::DecodeError::InvalidLength(_) | base64::DecodeError::InvalidPadding => text.len(),
            };
            DecodeError::Syntax(format!("illegal base64 data at input byte {position}"))
        })
    }

    /// A duration: text in Go's form, or nanoseconds.
    fn duration(&mut self, name: &'static str) -> Result<Option<Duration>, DecodeError> {
        let nanos = match self.take(name) {
            None => return Ok(None),
            Some(Value::String(text)) if text.is_empty() => return Ok(None),
            Some(Value::String(text)) => parse_duration_nanos(&text)?,
            Some(value) => value
                .as_i64()
                .ok_or_else(|| Self::wrong(name, "time.Duration", &value))?,
        };
        // Negative ones count as not given: the checks for what is required refuse them.
        Ok(u64::try_from(nanos)
            .ok()
            .filter(|nanos| *nanos > 0)
            .map(Duration::from_nanos))
    }

    fn texts(&mut self, name: &'static str) -> Result<Vec<String>, DecodeError> {
        match self.take(name) {
            None => Ok(Vec::new()),
            Some(Value::Array(elements)) => elements
                .into_iter()
                .map(|element| match element {
                    Value::String(text) => Ok(text),
                    Value::Null => Ok(String::new()),
                    other => Err(Self::wrong(name, "string", &other)),
                })
                .collect(),
            Some(other) => Err(Self::wrong(name, "[]string", &other)),
        }
    }

    fn map(&mut self, name: &'static str) -> Result<Option<Map<String, Value>>, DecodeError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Object(fields)) => Ok(Some(fields)),
            Some(other) => Err(Self::wrong(name, "map", &other)),
        }
    }

    fn object(&mut self, name: &'static str) -> Result<Option<Object>, DecodeError> {
        let aliases = self.aliases;
        Ok(self.map(name)?.map(|fields| Object::of_map(fields, aliases)))
    }

    fn objects(&mut self, name: &'static str) -> Result<Vec<Object>, DecodeError> {
        let aliases = self.aliases;
        match self.take(name) {
            None => Ok(Vec::new()),
            Some(Value::Array(elements)) => elements
                .into_iter()
                .filter(|element| !element.is_null())
                .map(|element| Object::of(element, "object", aliases))
                .collect(),
            Some(other) => Err(Self::wrong(name, "[]object", &other)),
        }
    }

    fn text_map(&mut self, name: &'static str) -> Result<Option<BTreeMap<String, String>>, DecodeError> {
        let Some(fields) = self.map(name)? else {
            return Ok(None);
        };
        let pair = |(key, value)| match value {
            Value::String(text) => Ok((key, text)),
            Value::Null => Ok((key, String::new())),
            other => Err(Self::wrong(name, "string", &other)),
        };
        fields.into_iter().map(pair).collect::<Result<_, _>>().map(Some)
    }

    fn header(&mut self, name: &'static str) -> Result<BTreeMap<String, Vec<String>>, DecodeError> {
        let mut header = BTreeMap::new();
        for (key, value) in self.map(name)?.unwrap_or_default() {
            let Value::Array(values) = value else {
                return Err(Self::wrong(name, "[]string", &value));
            };
            let text = |value| match value {
                Value::String(text) => Ok(text),
                other => Err(Self::wrong(name, "string", &other)),
            };
            header.insert(key, values.into_iter().map(text).collect::<Result<_, _>>()?);
        }
        Ok(header)
    }

    fn is_empty(&self) -> bool {
        self.fields.iter().all(|(_, value)| value.is_null())
    }

    fn finish(self) -> Result<(), DecodeError> {
        let is_ignored = |key: &str| {
            let plain: String = key.chars().filter(|c| *c != '_').collect();
            IGNORED.iter().any(|ignored| plain.eq_ignore_ascii_case(ignored))
        };
        match self.fields.into_iter().find(|(key, _)| !is_ignored(key)) {
            Some((key, _)) => Err(DecodeError::UnknownField(key)),
            None => Ok(()),
        }
    }
}

fn tagged_addresses(object: &mut Object) -> Result<BTreeMap<String, ServiceAddress>, DecodeError> {
    let mut tagged = BTreeMap::new();
    for (name, value) in object.map("TaggedAddresses")?.unwrap_or_default() {
        let mut fields = Object::of(value, "object", object.aliases)?;
        tagged.insert(
            name,
            ServiceAddress {
                address: fields.text("Address")?,
                port: fields.int("Port")?,
            },
        );
        fields.finish()?;
    }
    Ok(tagged)
}

/// `Weights`: `None` when not given. Values beyond 16 bits and below zero are refused.
fn weights(object: &mut Object) -> Result<Option<Weights>, Fault> {
    let Some(mut fields) = object.object("Weights")? else {
        return Ok(None);
    };
    let (passing, warning) = (fields.int("Passing")?, fields.int("Warning")?);
    fields.finish()?;
    let narrow = |weight: i64| {
        u16::try_from(weight)
            .map_err(|_| Fault::Definition("Invalid Weights: DNS Weight must be between 0 and 65535".to_owned()))
    };
    Ok(Some(Weights {
        passing: narrow(passing)?,
        warning: narrow(warning)?,
    }))
}

/// The rules for metadata pairs that clients and files give, in Consul's words. Lengths are bytes, as Consul counts.
pub fn check_meta(meta: &BTreeMap<String, String>) -> Result<(), String> {
    if meta.len() > limits::META_PAIR_COUNT_MAX {
        return Err(format!(
            "Node metadata cannot contain more than {} key/value pairs",
            limits::META_PAIR_COUNT_MAX
        ));
    }
    for (key, value) in meta {
        let reason = if key.is_empty() {
            "Key cannot be blank".to_owned()
        } else if !key
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'))
        {
            "Key contains invalid characters".to_owned()
        } else if key.len() > limits::META_KEY_CHARS_MAX {
            format!("Key is too long (limit: {} characters)", limits::META_KEY_CHARS_MAX)
        } else if key.starts_with("consul-") {
            "Key prefix 'consul-' is reserved for internal use".to_owned()
        } else if value.len() > limits::META_VALUE_CHARS_MAX {
            format!("Value is too long (limit: {} characters)", limits::META_VALUE_CHARS_MAX)
        } else {
            continue;
        };
        return Err(format!("Couldn't load metadata pair ('{key}', '{value}'): {reason}"));
    }
    Ok(())
}

/// Adds the addresses an agent tells of a service whose address is an IP and that names no other for its family.
pub fn fill_tagged_addresses(service: &mut Service) {
    let names = match service.address.parse::<IpAddr>() {
        Ok(IpAddr::V4(_)) => ["lan_ipv4", "wan_ipv4"],
        Ok(IpAddr::V6(_)) => ["lan_ipv6", "wan_ipv6"],
        Err(_) => return,
    };
    for name in names {
        let own = ServiceAddress {
            address: service.address.clone(),
            port: service.port,
        };
        service.tagged_addresses.entry(name.to_owned()).or_insert(own);
    }
}

/// The body of `agent/service/register`.
pub fn service_definition(body: &[u8]) -> Result<ServiceDefinition, Fault> {
    let mut fields = Object::parse(body, true)?;
    let name = fields.text("Name")?;
    let mut id = fields.text("ID")?;
    let mut service = Service {
        name,
        tags: fields.texts("Tags")?,
        address: fields.text("Address")?,
        tagged_addresses: tagged_addresses(&mut fields)?,
        meta: fields.text_map("Meta")?.unwrap_or_default(),
        port: fields.int("Port")?,
        enable_tag_override: fields.bool("EnableTagOverride")?,
        ..Service::default()
    };
    let given_weights = weights(&mut fields)?;
    let token = fields.text("Token")?;
    let mut checks = Vec::new();
    checks.extend(fields.object("Check")?);
    checks.extend(fields.objects("Checks")?);
    checks.retain(|check| !check.is_empty());
    fields.finish()?;

    if service.name.is_empty() {
        return Err(Fault::Missing("service name"));
    }
    if id.is_empty() {
        id.clone_from(&service.name);
    }
    service.id = id;
    if matches!(service.address.as_str(), "0.0.0.0" | "::" | "[::]") {
        return Err(Fault::Definition("Invalid service address".to_owned()));
    }
    check_meta(&service.meta).map_err(|reason| Fault::Definition(format!("Invalid Service Meta: {reason}")))?;
    if let Some(weights) = given_weights {
        if weights.passing == 0 {
            return Err(Fault::Definition(
                "Invalid Weights: Passing must be greater than 0".to_owned(),
            ));
        }
        service.weights = weights;
    }
    fill_tagged_addresses(&mut service);

    let count = checks.len();
    let mut definitions = Vec::with_capacity(count);
    for (position, check) in checks.into_iter().enumerate() {
        let given = check_fields(check)?;
        let status = match given.status.as_str() {
            "" => CheckStatus::Critical,
            text => text.parse().map_err(|()| {
                Fault::Definition("Status for checks must 'passing', 'warning', 'critical'".to_owned())
            })?,
        };
        let default_id = match count {
            1 => format!("service:{}", service.id),
            _ => format!("service:{}:{}", service.id, position + 1),
        };
        let default_name = format!("Service '{}' check", service.name);
        definitions.push(given.complete(default_id, default_name, service.id.clone(), status)?);
    }
    Ok(ServiceDefinition {
        service,
        checks: definitions,
        token,
    })
}

/// The body of `agent/check/register`.
pub fn check_definition(body: &[u8]) -> Result<CheckDefinition, Fault> {
    let given = check_fields(Object::parse(body, true)?)?;
    if given.name.is_empty() {
        return Err(Fault::Missing("check name"));
    }
    let status = match given.status.as_str() {
        "" => CheckStatus::Critical,
        text => text
            .parse()
            .map_err(|()| Fault::Definition("Bad check status".to_owned()))?,
    };
    let (default_id, service_id) = (given.name.clone(), given.service_id.clone());
    given.complete(default_id, String::new(), service_id, status)
}

/// A check as a client gave it.
struct GivenCheck {
    id: String,
    name: String,
    notes: String,
    token: String,
    status: String,
    service_id: String,
    ttl: Option<Duration>,
    interval: Option<Duration>,
    timeout: Option<Duration>,
    deregister_after: Option<Duration>,
    args: Vec<String>,
    http: String,
    method: String,
    header: BTreeMap<String, Vec<String>>,
    body: String,
    tls_server_name: String,
    tls_skip_verify: bool,
    disable_redirects: bool,
    tcp: String,
    success_before_passing: i64,
    failures_before_warning: Option<i64>,
    failures_before_critical: i64,
    output_len_bytes_max: i64,
    /// The first kind named that this agent does not run.
    unsupported: Option<&'static str>,
}

fn check_fields(mut fields: Object) -> Result<GivenCheck, DecodeError> {
    let check_id = fields.text("CheckID")?;
    let id = fields.text("ID")?;
    let mut args = fields.texts("Args")?;
    let script_args = fields.texts("ScriptArgs")?;
    if args.is_empty() {
        args = script_args;
    }
    let script = fields.text("Script")?;
    if args.is_empty() && !script.is_empty() {
        args = ["/bin/sh", "-c", &script].map(str::to_owned).to_vec();
    }
    let mut unsupported = None;
    for name in [
        "UDP",
        "GRPC",
        "H2PING",
        "DockerContainerID",
        "OSService",
        "AliasNode",
        "AliasService",
    ] {
        if !fields.text(name)?.is_empty() {
            unsupported = unsupported.or(Some(name));
        }
    }
    for name in ["GRPCUseTLS", "H2PingUseTLS"] {
        fields.bool(name)?;
    }
    fields.text("Shell")?;
    if fields.bool("TCPUseTLS")? {
        unsupported = unsupported.or(Some("TCPUseTLS"));
    }
    let failures_before_warning = fields.int("FailuresBeforeWarning")?;
    let given = GivenCheck {
        id: if id.is_empty() { check_id } else { id },
        name: fields.text("Name")?,
        notes: fields.text("Notes")?,
        token: fields.text("Token")?,
        status: fields.text("Status")?,
        service_id: fields.text("ServiceID")?,
        ttl: fields.duration("TTL")?,
        interval: fields.duration("Interval")?,
        timeout: fields.duration("Timeout")?,
        deregister_after: fields.duration("DeregisterCriticalServiceAfter")?,
        args,
        http: fields.text("HTTP")?,
        method: fields.text("Method")?,
        header: fields.header("Header")?,
        body: fields.text("Body")?,
        tls_server_name: fields.text("TLSServerName")?,
        tls_skip_verify: fields.bool("TLSSkipVerify")?,
        disable_redirects: fields.bool("DisableRedirects")?,
        tcp: fields.text("TCP")?,
        success_before_passing: fields.int("SuccessBeforePassing")?,
        failures_before_warning: (failures_before_warning > 0).then_some(failures_before_warning),
        failures_before_critical: fields.int("FailuresBeforeCritical")?,
        output_len_bytes_max: fields.int("OutputMaxSize")?,
        unsupported,
    };
    fields.finish()?;
    Ok(given)
}

impl GivenCheck {
    fn complete(
        self,
        default_id: String,
        default_name: String,
        service_id: String,
        status: CheckStatus,
    ) -> Result<CheckDefinition, Fault> {
        let invalid = |reason: &str| Fault::Definition(format!("Invalid check: {reason}"));
        let runs = !self.args.is_empty() || !self.http.is_empty() || !self.tcp.is_empty();
        if let Some(kind) = self.unsupported {
            return Err(invalid(&format!("{kind} checks are not supported by this agent")));
        }
        if self.interval.is_some() && self.ttl.is_some() {
            return Err(invalid("Interval and TTL cannot both be specified"));
        }
        if runs && self.interval.is_none() {
            return Err(invalid("Interval must be > 0 for Script, HTTP, or TCP checks"));
        }
        if !runs && self.ttl.is_none() {
            return Err(invalid("TTL must be > 0 for TTL checks"));
        }
        if self.output_len_bytes_max < 0 {
            return Err(invalid("MaxOutputMaxSize must be positive"));
        }
        let warning = self.failures_before_warning.unwrap_or(self.failures_before_critical);
        if warning > self.failures_before_critical {
            return Err(invalid(
                "FailuresBeforeWarning can't be higher than FailuresBeforeCritical",
            ));
        }
        let count = |count: i64| u32::try_from(count.max(0)).unwrap_or(u32::MAX);
        let kind = if !self.args.is_empty() {
            CheckKind::Script { args: self.args }
        } else if !self.http.is_empty() {
            CheckKind::Http {
                url: self.http,
                method: self.method,
                header: self.header,
                body: self.body,
                disable_redirects: self.disable_redirects,
                tls_skip_verify: self.tls_skip_verify,
                tls_server_name: self.tls_server_name,
            }
        } else if !self.tcp.is_empty() {
            CheckKind::Tcp { address: self.tcp }
        } else {
            CheckKind::Ttl {
                ttl: self.ttl.expect("required above when nothing runs"),
            }
        };
        let output_len_bytes_max = match usize::try_from(self.output_len_bytes_max) {
            Ok(given @ 1..) => given.min(limits::CHECK_OUTPUT_LEN_BYTES_MAX),
            _ => limits::CHECK_OUTPUT_LEN_BYTES_MAX,
        };
        Ok(CheckDefinition {
            id: if self.id.is_empty() { default_id } else { self.id },
            name: if self.name.is_empty() { default_name } else { self.name },
            notes: self.notes,
            service_id,
            status,
            kind,
            interval: self.interval.unwrap_or_default(),
            timeout: self.timeout,
            success_before_passing: count(self.success_before_passing),
            failures_before_warning: count(warning),
            failures_before_critical: count(self.failures_before_critical),
            deregister_critical_service_after: self.deregister_after.map(|after| after.max(DEREGISTER_AFTER_MIN)),
            output_len_bytes_max,
            token: self.token,
        })
    }
}

/// The body of `agent/check/update`: status and output, the status not yet judged.
pub fn check_update(body: &[u8]) -> Result<(String, String), Fault> {
    let mut fields = Object::parse(body, false)?;
    let update = (fields.text("Status")?, fields.text("Output")?);
    fields.finish()?;
    Ok(update)
}

/// The body of a change of `operator/keyring`: the key, in base64 as it should be.
pub fn keyring_key(body: &[u8]) -> Result<String, DecodeError> {
    let mut fields = Object::parse(body, false)?;
    let key = fields.text("Key")?;
    // The rest of Consul's argument, which its clients send empty.
    for ignored in ["Token", "RelayFactor", "LocalOnly"] {
        fields.take(ignored);
    }
    fields.finish()?;
    Ok(key)
}

/// The body of `catalog/register`, with the datacenter it names (empty: none). The registration's own is left empty.
pub fn registration(body: &[u8]) -> Result<(String, Registration), Fault> {
    let mut fields = Object::parse(body, false)?;
    let datacenter = fields.text("Datacenter")?;
    let id = fields.text("ID")?;
    let mut registration = Registration {
        node: fields.text("Node")?,
        address: fields.text("Address")?,
        tagged_addresses: fields.text_map("TaggedAddresses")?,
        node_meta: fields.text_map("NodeMeta")?,
        skip_node_update: fields.bool("SkipNodeUpdate")?,
        ..Registration::default()
    };
    let service = fields.object("Service")?;
    let mut checks = Vec::new();
    checks.extend(fields.object("Check")?);
    checks.extend(fields.objects("Checks")?);
    fields.finish()?;
    registration.service = service.map(catalog_service).transpose()?;
    let node = registration.node.clone();
    registration.checks = checks
        .into_iter()
        .map(|check| catalog_check(check, &node))
        .collect::<Result<_, Fault>>()?;
    // What is missing is told before what is malformed, as the store would refuse it.
    if registration.node.is_empty() {
        return Err(quorate_store::CommandError::NodeMissing.into());
    }
    if registration.address.is_empty() && !registration.skip_node_update {
        return Err(quorate_store::CommandError::AddressMissing.into());
    }
    if !id.is_empty() {
        registration.node_id = id.parse::<NodeId>().map_err(Fault::NodeId)?;
    }
    Ok((datacenter, registration))
}

fn catalog_service(mut fields: Object) -> Result<Service, Fault> {
    let name = fields.text("Service")?;
    let id = fields.text("ID")?;
    let mut service = Service {
        id: if id.is_empty() { name.clone() } else { id },
        name,
        tags: fields.texts("Tags")?,
        address: fields.text("Address")?,
        tagged_addresses: tagged_addresses(&mut fields)?,
        meta: fields.text_map("Meta")?.unwrap_or_default(),
        port: fields.int("Port")?,
        enable_tag_override: fields.bool("EnableTagOverride")?,
        ..Service::default()
    };
    if let Some(weights) = weights(&mut fields)? {
        service.weights = weights;
    }
    for index in ["CreateIndex", "ModifyIndex"] {
        fields.take(index);
    }
    fields.finish()?;
    Ok(service)
}

fn catalog_check(mut fields: Object, node: &str) -> Result<Check, Fault> {
    let name = fields.text("Name")?;
    let check_id = fields.text("CheckID")?;
    let own_node = fields.text("Node")?;
    let status = match fields.text("Status")?.as_str() {
        "" => CheckStatus::Critical,
        text => text
            .parse()
            .map_err(|()| Fault::Definition(format!("Invalid check status: '{text}'")))?,
    };
    let definition = match fields.object("Definition")? {
        Some(definition) => health_check_definition(definition)?,
        None => HealthCheckDefinition::default(),
    };
    let mut kind = fields.text("Type")?;
    if kind.is_empty() {
        kind = match &definition {
            definition if !definition.http.is_empty() => "http",
            definition if !definition.tcp.is_empty() => "tcp",
            _ => "",
        }
        .to_owned();
    }
    let check = Check {
        node: if own_node.is_empty() { node.to_owned() } else { own_node },
        check_id: if check_id.is_empty() { name.clone() } else { check_id },
        name,
        status,
        notes: fields.text("Notes")?,
        output: fields.text("Output")?,
        service_id: fields.text("ServiceID")?,
        service_name: fields.text("ServiceName")?,
        service_tags: fields.texts("ServiceTags")?,
        kind,
        interval: fields.text("Interval")?,
        timeout: fields.text("Timeout")?,
        definition,
        ..Check::default()
    };
    for ignored in ["ExposedPort", "CreateIndex", "ModifyIndex"] {
        fields.take(ignored);
    }
    fields.finish()?;
    Ok(check)
}

fn health_check_definition(mut fields: Object) -> Result<HealthCheckDefinition, DecodeError> {
    let mut definition = HealthCheckDefinition {
        interval: fields.duration("Interval")?,
        timeout: fields.duration("Timeout")?,
        deregister_critical_service_after: fields.duration("DeregisterCriticalServiceAfter")?,
        http: fields.text("HTTP")?,
        header: fields.header("Header")?,
        method: fields.text("Method")?,
        body: fields.text("Body")?,
        tls_server_name: fields.text("TLSServerName")?,
        tls_skip_verify: fields.bool("TLSSkipVerify")?,
        tcp: fields.text("TCP")?,
    };
    // The same durations under the names Consul 1.4 gave them.
    for (name, duration) in [
        ("IntervalDuration", &mut definition.interval),
        ("TimeoutDuration", &mut definition.timeout),
        (
            "DeregisterCriticalServiceAfterDuration",
            &mut definition.deregister_critical_service_after,
        ),
    ] {
        if let Some(given) = fields.duration(name)? {
            *duration = Some(given);
        }
    }
    Ok(definition)
}

/// The body of `session/create`: a session without an id, of `node` unless it names another. Unknown keys are ignored.
pub fn session(body: &[u8], node: String, ttl_min: Duration) -> Result<Session, Fault> {
    let mut fields = match body {
        [] => Object::of_map(Map::new(), false),
        body => Object::parse(body, false)?,
    };
    let mut session = Session {
        name: fields.text("Name")?,
        node: fields.text("Node")?,
        lock_delay: lock_delay(&mut fields)?,
        ttl_text: fields.text("TTL")?,
        ..Session::default()
    };
    if session.node.is_empty() {
        session.node = node;
    }
    // An empty list of either is a list: then nothing but the node ends the session.
    let mut is_given = false;
    for name in ["NodeChecks", "Checks"] {
        if let Some(value) = fields.take(name) {
            is_given = true;
            fields.fields.push((name.to_owned(), value));
            session.node_checks.extend(fields.texts(name)?);
        }
    }
    if !is_given {
        session.node_checks.push("serfHealth".to_owned());
    }
    for mut check in fields.objects("ServiceChecks")? {
        session.service_checks.push(check.text("ID")?);
    }
    let behavior = fields.text("Behavior")?;
    session.behavior = match behavior.as_str() {
        "" => SessionBehavior::Release,
        text => text.parse().map_err(|()| SessionFault::Behavior(behavior.clone()))?,
    };
    if !session.ttl_text.is_empty() {
        session.ttl = session_ttl(&session.ttl_text, ttl_min)?;
    }
    Ok(session)
}

/// Text in Go's form, or a number: below 1000 of seconds, else of nanoseconds.
fn lock_delay(fields: &mut Object) -> Result<Duration, DecodeError> {
    let nanos = match fields.take("LockDelay") {
        None => return Ok(limits::LOCK_DELAY_DEFAULT),
        Some(Value::String(text)) => parse_duration_nanos(&text)?,
        Some(value) => {
            let number = value
                .as_i64()
                .ok_or_else(|| Object::wrong("LockDelay", "time.Duration", &value))?;
            if number < 1000 {
                number.saturating_mul(1_000_000_000)
            } else {
                number
            }
        }
    };
    let delay = Duration::from_nanos(u64::try_from(nanos).unwrap_or(0));
    Ok(delay.min(limits::LOCK_DELAY_MAX))
}

fn session_ttl(text: &str, min: Duration) -> Result<Duration, SessionFault> {
    let nanos = parse_duration_nanos(text).map_err(|err| SessionFault::TtlText {
        text: text.to_owned(),
        err,
    })?;
    let max = limits::SESSION_TTL_MAX;
    match u64::try_from(nanos).map(Duration::from_nanos) {
        Ok(ttl) if ttl.is_zero() || (min..=max).contains(&ttl) => Ok(ttl),
        _ => Err(SessionFault::TtlRange {
            nanos,
            min: format_duration(min),
            max: format_duration(max),
        }),
    }
}

/// The body of `txn`. Nodes without a datacenter are of this one.
pub fn transaction(body: &[u8], datacenter: &str) -> Result<Vec<Operation>, Fault> {
    let elements = match parse_value(body).map_err(Fault::TransactionBody)? {
        Value::Null => Vec::new(),
        Value::Array(elements) => elements,
        other => {
            return Err(Fault::TransactionBody(DecodeError::WrongValue {
                found: describe(&other),
                wanted: "api.TxnOps",
            }));
        }
    };
    let (count, count_max) = (elements.len(), limits::TRANSACTION_OPERATION_COUNT_MAX);
    if count > count_max {
        return Err(Fault::TransactionTooLong { count, count_max });
    }
    let mut operations = Vec::with_capacity(count);
    for element in elements {
        match operation(element, datacenter) {
            Ok(operation) => operations.extend(operation),
            Err(Fault::Decode(err)) => return Err(Fault::TransactionBody(err)),
            Err(fault) => return Err(Fault::TransactionBody(DecodeError::Syntax(fault.to_string()))),
        }
    }
    Ok(operations)
}

/// `None`: an element that asks for nothing.
fn operation(element: Value, datacenter: &str) -> Result<Option<Operation>, Fault> {
    if element.is_null() {
        return Ok(None);
    }
    let mut fields = Object::of(element, "api.TxnOp", false)?;
    let kv = fields.object("KV")?;
    let node = fields.object("Node")?;
    let service = fields.object("Service")?;
    let check = fields.object("Check")?;
    fields.finish()?;
    let operation = if let Some(mut fields) = kv {
        let operation = KvOperation {
            verb: kv_verb(fields.text("Verb")?),
            key: fields.text("Key")?,
            value: fields.bytes("Value")?,
            flags: fields.uint("Flags")?,
            index: ModifyIndex(fields.uint("Index")?),
            session: fields.text("Session")?,
        };
        fields.finish()?;
        Operation::Kv(operation)
    } else if let Some(mut fields) = node {
        let verb = catalog_verb(fields.text("Verb")?);
        let node = fields.object("Node")?.map(|node| catalog_node(node, datacenter));
        fields.finish()?;
        let node = node.transpose()?.unwrap_or_default();
        Operation::Node(NodeOperation { verb, node })
    } else if let Some(mut fields) = service {
        let verb = catalog_verb(fields.text("Verb")?);
        let node = fields.text("Node")?;
        let mut service = fields.object("Service")?;
        fields.finish()?;
        let modify_index = expected_index(&mut service)?;
        let service = Box::new(Service {
            modify_index,
            ..service.map(catalog_service).transpose()?.unwrap_or_default()
        });
        Operation::Service(ServiceOperation { verb, node, service })
    } else if let Some(mut fields) = check {
        let verb = catalog_verb(fields.text("Verb")?);
        let mut check = fields.object("Check")?;
        fields.finish()?;
        let modify_index = expected_index(&mut check)?;
        let check = check.map(|check| catalog_check(check, "")).transpose()?;
        let check = Box::new(Check {
            modify_index,
            ..check.unwrap_or_default()
        });
        Operation::Check(CheckOperation { verb, check })
    } else {
        return Ok(None);
    };
    Ok(Some(operation))
}

/// The index at which a client last saw the record that it gives.
fn expected_index(record: &mut Option<Object>) -> Result<ModifyIndex, DecodeError> {
    let index = record.as_mut().map(|fields| fields.uint("ModifyIndex")).transpose()?;
    Ok(ModifyIndex(index.unwrap_or(0)))
}

fn catalog_node(mut fields: Object, datacenter: &str) -> Result<Node, Fault> {
    let id = fields.text("ID")?;
    let mut node = Node {
        name: fields.text("Node")?,
        address: fields.text("Address")?,
        datacenter: fields.text("Datacenter")?,
        tagged_addresses: fields.text_map("TaggedAddresses")?,
        meta: fields.text_map("Meta")?,
        modify_index: ModifyIndex(fields.uint("ModifyIndex")?),
        ..Node::default()
    };
    fields.take("CreateIndex");
    fields.finish()?;
    if !id.is_empty() {
        node.id = id.parse::<NodeId>().map_err(Fault::NodeId)?;
    }
    if node.datacenter.is_empty() {
        node.datacenter = datacenter.to_owned();
    }
    Ok(node)
}

/// Verbs compare with case.
fn kv_verb(text: String) -> KvVerb {
    match text.as_str() {
        "set" => KvVerb::Set,
        "cas" => KvVerb::Cas,
        "lock" => KvVerb::Lock,
        "unlock" => KvVerb::Unlock,
        "get" => KvVerb::Get,
        "get-or-empty" => KvVerb::GetOrEmpty,
        "get-tree" => KvVerb::GetTree,
        "check-index" => KvVerb::CheckIndex,
        "check-session" => KvVerb::CheckSession,
        "check-not-exists" => KvVerb::CheckNotExists,
        "delete" => KvVerb::Delete,
        "delete-cas" => KvVerb::DeleteCas,
        "delete-tree" => KvVerb::DeleteTree,
        _ => KvVerb::Unknown(text),
    }
}

fn catalog_verb(text: String) -> CatalogVerb {
    match text.as_str() {
        "get" => CatalogVerb::Get,
        "set" => CatalogVerb::Set,
        "cas" => CatalogVerb::Cas,
        "delete" => CatalogVerb::Delete,
        "delete-cas" => CatalogVerb::DeleteCas,
        _ => CatalogVerb::Unknown(text),
    }
}

/// The body of `catalog/deregister`, with the datacenter it names.
pub fn coordinate(body: &[u8]) -> Result<NodeCoordinate, Fault> {
    let mut fields = Object::parse(body, false)?;
    let node = fields.text("Node")?;
    fields.text("Segment")?;
    fields.text("Datacenter")?;
    let mut place = fields
        .object("Coord")?
        .unwrap_or_else(|| Object::of_map(Map::new(), false));
    let mut vector = Vec::new();
    match place.take("Vec") {
        None => {}
        Some(Value::Array(components)) => {
            for component in components {
                vector.push(
                    component
                        .as_f64()
                        .ok_or_else(|| Object::wrong("Vec", "float64", &component))?,
                );
            }
        }
        Some(other) => return Err(Object::wrong("Vec", "[]float64", &other).into()),
    }
    let (error, adjustment, height) = (
        place.float("Error")?,
        place.float("Adjustment")?,
        place.float("Height")?,
    );
    place.finish()?;
    fields.finish()?;
    // What has other dimensions cannot be compared with the coordinates of this cluster.
    let vector = vector
        .try_into()
        .map_err(|_| BackendError::Failed("incompatible coordinate".to_owned()))?;
    let coordinate = Coordinate {
        vector,
        error,
        adjustment,
        height,
    };
    Ok(NodeCoordinate { node, coordinate })
}

pub fn deregistration(body: &[u8]) -> Result<(String, Deregistration), Fault> {
    let mut fields = Object::parse(body, false)?;
    let datacenter = fields.text("Datacenter")?;
    let deregistration = Deregistration {
        node: fields.text("Node")?,
        service_id: fields.text("ServiceID")?,
        check_id: fields.text("CheckID")?,
        only_node_id: None,
    };
    fields.take("Address");
    fields.finish()?;
    if deregistration.node.is_empty() {
        return Err(quorate_store::CommandError::NodeMissing.into());
    }
    Ok((datacenter, deregistration))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_service_error(body: &str, wanted: &str) {
        assert_eq!(
            service_definition(body.as_bytes()).unwrap_err().to_string(),
            wanted,
            "{body}"
        );
    }

    #[track_caller]
    fn check_check_error(body: &str, wanted: &str) {
        assert_eq!(
            check_definition(body.as_bytes()).unwrap_err().to_string(),
            wanted,
            "{body}"
        );
    }

    #[test]
    fn keys_match_without_case_and_in_snake_case() {
        let plain = r#"{"Name":"w","EnableTagOverride":true,"Check":{"HTTP":"http://x","Interval":"10s",
            "DeregisterCriticalServiceAfter":"90m"}}"#;
        let other = r#"{"name":"w","enable_tag_override":true,"check":{"http":"http://x","interval":10000000000,
            "deregister_critical_service_after":"90m"}}"#;
        let definition = service_definition(plain.as_bytes()).unwrap();
        assert_eq!(definition, service_definition(other.as_bytes()).unwrap());
        assert_eq!(definition.service.id, "w");
        assert_eq!(definition.checks[0].id, "service:w");
        assert_eq!(definition.checks[0].name, "Service 'w' check");
        assert_eq!(definition.checks[0].interval, Duration::from_secs(10));
    }

    #[test]
    fn what_is_wrong_with_a_service_is_said_as_consul_says_it() {
        check_service_error("", "Request decode failed: EOF");
        check_service_error("{", "Request decode failed: unexpected EOF");
        check_service_error(
            r#"{"Name":"w",}"#,
            "Request decode failed: invalid character '}' looking for beginning of object key string",
        );
        check_service_error("{}", "Missing service name");
        check_service_error(
            r#"{"Name":"w","Bogus":1}"#,
            "Request decode failed: json: unknown field \"Bogus\"",
        );
        check_service_error(
            r#"{"Name":"w","Port":"abc"}"#,
            "Request decode failed: json: cannot unmarshal string into Go struct field .Port of type int",
        );
        check_service_error(r#"{"Name":"w","Address":"0.0.0.0"}"#, "Invalid service address");
        check_service_error(
            r#"{"Name":"w","Meta":{"a.b":"1"}}"#,
            "Invalid Service Meta: Couldn't load metadata pair ('a.b', '1'): Key contains invalid characters",
        );
        check_service_error(
            r#"{"Name":"w","Weights":{"Passing":0,"Warning":1}}"#,
            "Invalid Weights: Passing must be greater than 0",
        );
        check_service_error(
            r#"{"Name":"w","Weights":{"Passing":70000}}"#,
            "Invalid Weights: DNS Weight must be between 0 and 65535",
        );
        check_service_error(
            r#"{"Name":"w","Check":{"TTL":"1s","Status":"x"}}"#,
            "Status for checks must 'passing', 'warning', 'critical'",
        );
    }

    #[test]
    fn what_is_wrong_with_a_check_is_said_as_consul_says_it() {
        check_check_error("{}", "Missing check name");
        check_check_error(r#"{"Name":"m"}"#, "Invalid check: TTL must be > 0 for TTL checks");
        check_check_error(r#"{"Name":"m","TTL":"1s","Status":"x"}"#, "Bad check status");
        check_check_error(
            r#"{"Name":"m","HTTP":"http://x"}"#,
            "Invalid check: Interval must be > 0 for Script, HTTP, or TCP checks",
        );
        check_check_error(
            r#"{"Name":"m","TTL":"abc"}"#,
            "Request decode failed: time: invalid duration \"abc\"",
        );
        check_check_error(
            r#"{"Name":"m","TTL":"1s","OutputMaxSize":-1}"#,
            "Invalid check: MaxOutputMaxSize must be positive",
        );
    }

    #[test]
    fn a_bare_number_is_nanoseconds() {
        let definition = check_definition(br#"{"Name":"m","TTL":15}"#).unwrap();
        assert_eq!(
            definition.kind,
            CheckKind::Ttl {
                ttl: Duration::from_nanos(15)
            }
        );
    }

    #[test]
    fn several_checks_of_a_service_are_numbered() {
        let body =
            br#"{"Name":"w","Check":{"TTL":"1s"},"Checks":[{"TTL":"1s","Name":"n"},{"CheckID":"c","TTL":"1s"},{}]}"#;
        let definition = service_definition(body).unwrap();
        let ids: Vec<&str> = definition.checks.iter().map(|check| check.id.as_str()).collect();
        assert_eq!(ids, ["service:w:1", "service:w:2", "c"]);
        assert_eq!(definition.checks[1].name, "n");
    }

    #[test]
    fn an_ip_address_fills_the_tagged_addresses_of_its_family() {
        let body = br#"{"Name":"w","Address":"10.1.1.1","Port":80,"TaggedAddresses":{"wan_ipv4":{"Address":"1.2.3.4","Port":1}}}"#;
        let tagged = service_definition(body).unwrap().service.tagged_addresses;
        assert_eq!(
            tagged["lan_ipv4"],
            ServiceAddress {
                address: "10.1.1.1".to_owned(),
                port: 80
            }
        );
        assert_eq!(tagged["wan_ipv4"].address, "1.2.3.4");
        let named = service_definition(br#"{"Name":"w","Address":"db.example"}"#).unwrap();
        assert!(named.service.tagged_addresses.is_empty());
    }

    #[test]
    fn what_belongs_to_the_mesh_is_ignored() {
        let body = br#"{"Name":"w","Kind":"","Proxy":{"a":1},"Connect":{},"Namespace":"default","Partition":"p"}"#;
        assert_eq!(service_definition(body).unwrap().service.name, "w");
    }

    #[test]
    fn a_catalog_registration_takes_its_defaults() {
        let body = br#"{"Node":"n","Address":"10.0.0.2","Service":{"Service":"redis"},
            "Check":{"Name":"c","Definition":{"TCP":"localhost:1","Interval":"5s"}}}"#;
        let (_, registration) = registration(body).unwrap();
        assert_eq!(registration.service.unwrap().id, "redis");
        let check = &registration.checks[0];
        assert_eq!(
            (check.node.as_str(), check.check_id.as_str(), check.kind.as_str()),
            ("n", "c", "tcp")
        );
        assert_eq!(check.status, CheckStatus::Critical);
        let error = super::registration(br#"{"Node":"n","Address":"a","ID":"bad"}"#).unwrap_err();
        assert_eq!(error.to_string(), "Bad node ID: uuid string is wrong length");
    }

    fn session_of(body: &str) -> Result<Session, String> {
        session(body.as_bytes(), "me".to_owned(), limits::SESSION_TTL_MIN).map_err(|fault| fault.to_string())
    }

    #[test]
    fn a_session_takes_its_defaults_and_ignores_what_it_does_not_know() {
        let plain = session_of("").unwrap();
        assert_eq!(
            (plain.node.as_str(), plain.node_checks.as_slice()),
            ("me", ["serfHealth".to_owned()].as_slice())
        );
        assert_eq!((plain.lock_delay, plain.ttl), (Duration::from_secs(15), Duration::ZERO));
        assert_eq!(session_of(r#"{"Bogus":1,"ID":"x"}"#).unwrap(), plain);
        for (body, checks) in [
            (r#"{"Checks":["a"]}"#, vec!["a"]),
            (r#"{"nodechecks":["a","b"]}"#, vec!["a", "b"]),
            (r#"{"NodeChecks":[]}"#, vec![]),
            (r#"{"Checks":[]}"#, vec![]),
            (r#"{"Checks":null}"#, vec!["serfHealth"]),
        ] {
            assert_eq!(session_of(body).unwrap().node_checks, checks, "{body}");
        }
        let of_service = session_of(r#"{"ServiceChecks":[{"ID":"s","Namespace":"x"}]}"#).unwrap();
        assert_eq!(of_service.service_checks, ["s"]);
    }

    #[test]
    fn a_lock_delay_is_text_seconds_or_nanoseconds_and_at_most_a_minute() {
        for (given, wanted) in [
            (r#""1s""#, Duration::from_secs(1)),
            ("15", Duration::from_secs(15)),
            ("999", Duration::from_secs(60)),
            ("1000", Duration::from_nanos(1000)),
            ("0", Duration::ZERO),
            ("-1", Duration::ZERO),
            (r#""1h""#, Duration::from_secs(60)),
        ] {
            let session = session_of(&format!(r#"{{"LockDelay":{given}}}"#)).unwrap();
            assert_eq!(session.lock_delay, wanted, "{given}");
        }
        let refused = session_of(r#"{"LockDelay":"abc"}"#).unwrap_err();
        assert_eq!(refused, "Request decode failed: time: invalid duration \"abc\"");
    }

    #[test]
    fn a_time_to_live_out_of_range_is_refused_with_consuls_words() {
        let ttl = |text: &str| session_of(&format!(r#"{{"TTL":"{text}"}}"#)).map(|session| session.ttl);
        assert_eq!(ttl("10s"), Ok(Duration::from_secs(10)));
        assert_eq!(ttl("24h"), Ok(Duration::from_secs(86_400)));
        assert_eq!(ttl("0s"), Ok(Duration::ZERO));
        let range = "must be between [10s=24h0m0s]";
        for (text, nanos) in [
            ("5s", "5000000000"),
            ("24h1ns", "86400000000001"),
            ("-5s", "-5000000000"),
        ] {
            assert_eq!(ttl(text), Err(format!("Invalid Session TTL '{nanos}', {range}")));
        }
        let invalid = "Session TTL 'abc' invalid: time: invalid duration \"abc\"".to_owned();
        assert_eq!(ttl("abc"), Err(invalid));
    }

    #[test]
    fn a_transaction_that_cannot_be_read_is_refused_as_a_whole() {
        let refused = |body: &str| transaction(body.as_bytes(), "dc1").unwrap_err().to_string();
        for (body, text) in [
            ("", "EOF"),
            ("[", "unexpected EOF"),
            ("[{} {}]", "invalid character '{' after array element"),
            ("{}", "json: cannot unmarshal object into Go value of type api.TxnOps"),
            (
                r#"[{"KV":{"Verb":"set","Value":"?"}}]"#,
                "illegal base64 data at input byte 0",
            ),
            (r#"[{"KV":{"Bogus":1}}]"#, "json: unknown field \"Bogus\""),
            (r#"[{"Bogus":{}}]"#, "json: unknown field \"Bogus\""),
            (
                r#"[{"Node":{"Verb":"set","Node":{"ID":"x"}}}]"#,
                "Bad node ID: uuid string is wrong length",
            ),
            (
                r#"[{"KV":{"Index":-1}}]"#,
                "json: cannot unmarshal number -1 into Go struct field .Index of type uint64",
            ),
        ] {
            assert_eq!(refused(body), format!("Failed to parse body: {text}"), "{body}");
        }
        let many = format!("[{}]", vec!["{}"; 129].join(","));
        assert_eq!(refused(&many), "Transaction contains too many operations (129 > 128)");
        assert_eq!(transaction(b"null", "dc1").unwrap(), vec![]);
        assert_eq!(
            transaction(b"[null,{}]", "dc1").unwrap(),
            vec![],
            "what asks for nothing is left out"
        );
    }

    proptest::proptest! {
        #[test]
        fn no_body_breaks_a_decoder(body in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..64),
                                    text in "[{}\\[\\]\":,a-zNameCheckTTL0-9 ]{0,60}") {
            for body in [body.as_slice(), text.as_bytes()] {
                let _ = service_definition(body);
                let _ = check_definition(body);
                let _ = registration(body);
                let _ = deregistration(body);
                let _ = check_update(body);
                let _ = session(body, String::new(), Duration::ZERO);
                let _ = transaction(body, "dc1");
            }
        }
    }
}
