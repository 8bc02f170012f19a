//! `/v1/agent/...`: the local agent, its services and checks. Never forwarded; no index headers.

use crate::api::{Api, filter};
use crate::backend::{Backend, FaultyLink, LinkFault, LocalError};
use crate::call::{BARE_TEXT, Call, Failure, Reply, X_CONSUL_CONTENT_HASH, X_CONSUL_REASON};
use crate::errors::Fault;
use crate::filter::Filter;
use crate::go::{parse_bool, parse_duration_nanos};
use crate::json::{AgentServiceJson, CheckJson, LocalHealthJson, MemberJson, SelfJson, VersionJson, list, object};
use crate::{decode, records};
use futures::future::{Either, select};
use http::header::ACCEPT;
use http::{HeaderValue, StatusCode};
use quorate_rt::Rt;
use quorate_types::{Check, CheckStatus, Service, limits};
use serde::Serialize;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

const NODE_MAINTENANCE_ID: &str = "_node_maintenance";
const SERVICE_MAINTENANCE_PREFIX: &str = "_service_maintenance:";

pub async fn show_self<R: Rt, B: Backend>(api: Api<R, B>, call: Call) -> Result<Reply, Failure> {
    let mut facts = api.backend().facts();
    let (encoded, shared) = api.rendering_counts();
    let counts = [("answers_encoded", encoded), ("answers_shared", shared)];
    let counts = counts.map(|(name, count)| (name.to_owned(), count.to_string()));
    facts.stats.insert("http".to_owned(), counts.into());
    Ok(call.json(&SelfJson(&facts)))
}

pub async fn version<R: Rt, B: Backend>(api: Api<R, B>, call: Call) -> Result<Reply, Failure> {
    Ok(call.json(&VersionJson(&api.backend().facts().version)))
}

pub async fn members<R: Rt, B: Backend>(api: Api<R, B>, call: Call) -> Result<Reply, Failure> {
    if !matches!(call.params.get("segment"), "" | "_all") {
        return Err(Fault::Segments.into());
    }
    let filter = filter(&call.params, &records::MEMBER)?;
    let Some(mut members) = api.backend().members(!call.params.get("wan").is_empty()) else {
        return Ok(call.json(&None::<()>));
    };
    if let Some(filter) = filter {
        members.retain(|member| filter.matches(member));
    }
    Ok(call.json(&list(&members, MemberJson)))
}

/// How long members may take to answer, by default and at most.
const REACHABILITY_TIMEOUT: Duration = Duration::from_secs(5);
const REACHABILITY_TIMEOUT_MAX: Duration = Duration::from_secs(60);

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct LinkJson<'a> {
    from: &'a str,
    to: &'a str,
    fault: &'static str,
    lost: Option<u32>,
    sent: Option<u32>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct ReachabilityJson<'a> {
    members: usize,
    silent: &'a [String],
    links: Vec<LinkJson<'a>>,
    /// Members had more to tell than their answers hold.
    cut_off: bool,
}

/// Who cannot reach whom. Ours: Consul has no such endpoint.
pub async fn reachability<R: Rt, B: Backend>(api: Api<R, B>, call: Call) -> Result<Reply, Failure> {
    let timeout = match call.params.get("timeout") {
        "" => REACHABILITY_TIMEOUT,
        text => parse_duration_nanos(text)
            .ok()
            .and_then(|nanos| u64::try_from(nanos).ok())
            .map(Duration::from_nanos)
            .filter(|timeout| !timeout.is_zero() && *timeout <= REACHABILITY_TIMEOUT_MAX)
            .ok_or_else(|| Fault::BadRequest(format!("Invalid timeout {text:?}: must be in the range (0s, 60s]")))?,
    };
    let found = api.backend().reachability(timeout).await?;
    let links = found.links.iter().map(|FaultyLink { from, to, fault }| {
        let (fault, lost, sent) = match *fault {
            LinkFault::Cut => ("cut", None, None),
            LinkFault::OneWay => ("one-way", None, None),
            LinkFault::Lossy { lost_count, sent_count } => ("lossy", Some(lost_count), Some(sent_count)),
        };
        LinkJson {
            from,
            to,
            fault,
            lost,
            sent,
        }
    });
    Ok(call.json(&ReachabilityJson {
        members: found.member_count,
        silent: &found.silent,
        links: links.collect(),
        cut_off: found.is_cut_off,
    }))
}

pub async fn join<R: Rt, B: Backend>(api: Api<R, B>, call: Call) -> Result<Reply, Failure> {
    let address = call.required("address to join")?;
    api.backend().join(address, !call.params.get("wan").is_empty()).await?;
    Ok(Reply::empty())
}

pub async fn leave<R: Rt, B: Backend>(api: Api<R, B>, _call: Call) -> Result<Reply, Failure> {
    api.backend().leave().await?;
    Ok(Reply::empty())
}

pub async fn force_leave<R: Rt, B: Backend>(api: Api<R, B>, call: Call) -> Result<Reply, Failure> {
    let (prune, wan) = (call.params.has("prune"), call.params.has("wan"));
    api.backend().force_leave(&call.rest, prune, wan).await?;
    Ok(Reply::empty())
}

pub async fn reload<R: Rt, B: Backend>(api: Api<R, B>, _call: Call) -> Result<Reply, Failure> {
    api.backend().reload().await?;
    Ok(Reply::empty())
}

/// `?enable=` and the reason: `Some(reason)` to enter maintenance, `None` to end it.
fn maintenance_wish(call: &Call, of: &str) -> Result<Option<String>, Fault> {
    if !call.params.has("enable") {
        return Err(Fault::EnableMissing);
    }
    let text = call.params.get("enable");
    if !parse_bool(text).ok_or_else(|| Fault::Enable(text.to_owned()))? {
        return Ok(None);
    }
    Ok(Some(match call.params.get("reason") {
        "" => {
            format!("Maintenance mode is enabled for this {of}, but no reason was provided. This is a default message.")
        }
        reason => reason.to_owned(),
    }))
}

pub async fn node_maintenance<R: Rt, B: Backend>(api: Api<R, B>, call: Call) -> Result<Reply, Failure> {
    api.backend()
        .set_node_maintenance(maintenance_wish(&call, "node")?)
        .await?;
    Ok(Reply::empty())
}

pub async fn service_maintenance<R: Rt, B: Backend>(api: Api<R, B>, call: Call) -> Result<Reply, Failure> {
    let id = call.required("service ID")?;
    let wish = maintenance_wish(&call, "service")?;
    api.backend()
        .set_service_maintenance(id, wish)
        .await
        .map_err(|error| match error {
            LocalError::UnknownService(id) => Fault::NoServiceToMaintain(id),
            error => error.into(),
        })?;
    Ok(Reply::empty())
}

fn bare_filter(call: &Call, schema: &'static crate::filter::Schema) -> Result<Option<Filter>, Fault> {
    filter(&call.params, schema).map_err(|fault| match fault {
        Fault::Filter(error) => Fault::BareFilter(error),
        fault => fault,
    })
}

pub async fn services<R: Rt, B: Backend>(api: Api<R, B>, call: Call) -> Result<Reply, Failure> {
    let filter = filter(&call.params, &records::SERVICE)?;
    let mut services = api.backend().services();
    if let Some(filter) = filter {
        services.retain(|service| filter.matches(&**service));
    }
    let datacenter = api.local_datacenter();
    Ok(call.json(&object(&services, |service| {
        (
            service.id.as_str(),
            AgentServiceJson {
                service,
                datacenter,
                content_hash: None,
            },
        )
    })))
}

pub async fn checks<R: Rt, B: Backend>(api: Api<R, B>, call: Call) -> Result<Reply, Failure> {
    let filter = bare_filter(&call, &records::CHECK)?;
    let mut checks = api.backend().checks();
    if let Some(filter) = filter {
        checks.retain(|check| filter.matches(&**check));
    }
    Ok(call.json(&object(&checks, |check| (check.check_id.as_str(), CheckJson(check)))))
}

/// A hash of what clients see of a service (FNV-1a, 64 bits): equal texts, equal hashes, in every process.
fn content_hash(service: &Service, datacenter: &str) -> String {
    let text = serde_json::to_vec(&AgentServiceJson {
        service,
        datacenter,
        content_hash: None,
    })
    .expect("a shape has text keys and memory takes all bytes");
    let hash = text.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    format!("{hash:x}")
}

pub async fn service<R: Rt, B: Backend>(api: Api<R, B>, call: Call) -> Result<Reply, Failure> {
    let id = call.required("service ID")?;
    let datacenter = api.local_datacenter();
    let seen = call.params.get("hash");
    let mut wait = api.config().wait_default;
    if let text @ [_, ..] = call.params.get("wait").as_bytes() {
        let nanos = std::str::from_utf8(text)
            .ok()
            .and_then(|text| parse_duration_nanos(text).ok())
            .ok_or(Fault::Wait)?;
        if let Ok(nanos @ 1..) = u64::try_from(nanos) {
            wait = Duration::from_nanos(nanos).min(api.config().wait_max);
        }
    }
    let deadline = api.rt().now() + api.jittered(wait);
    loop {
        let version = api.backend().services_version();
        let services = api.backend().services();
        let Some(service) = services.iter().find(|service| service.id == id) else {
            return Err(Fault::UnknownAgentService(id.to_owned()).into());
        };
        let hash = content_hash(service, datacenter);
        let expired = api.stopping().is_set() || api.rt().now() >= deadline;
        if seen.is_empty() || seen != hash || expired {
            let json = call.json(&AgentServiceJson {
                service,
                datacenter,
                content_hash: Some(&hash),
            });
            let hash = HeaderValue::try_from(hash).expect("hexadecimal digits are plain text");
            return Ok(json.header(X_CONSUL_CONTENT_HASH, hash));
        }
        let changed = pin!(api.backend().services_changed(version));
        let over = pin!(async {
            let (late, stopping) = (pin!(api.rt().sleep_until(deadline)), pin!(api.stopping().wait()));
            select(late, stopping).await;
        });
        match select(changed, over).await {
            Either::Left(_) | Either::Right(_) => {}
        }
    }
}

pub async fn register_service<R: Rt, B: Backend>(api: Api<R, B>, mut call: Call) -> Result<Reply, Failure> {
    let body = call.read_json_body(&api).await?;
    let mut definition = decode::service_definition(&body)?;
    // What was registered with a token is synced with it.
    let checks = definition.checks.iter_mut().map(|check| &mut check.token);
    for token in checks.chain([&mut definition.token]).filter(|token| token.is_empty()) {
        call.token().clone_into(token);
    }
    let replace = match (
        call.params.has("replace-existing-checks"),
        call.params.get("replace-existing-checks"),
    ) {
        (true, "" | "true") => true,
        (_, _) => false,
    };
    api.backend().register_service(definition, replace).await?;
    Ok(Reply::empty())
}

fn required_id<'a>(call: &'a Call, what: &'static str) -> Result<&'a str, Fault> {
    if call.rest.is_empty() {
        Err(Fault::IdMissing(what))
    } else {
        Ok(&call.rest)
    }
}

pub async fn deregister_service<R: Rt, B: Backend>(api: Api<R, B>, call: Call) -> Result<Reply, Failure> {
    api.backend()
        .deregister_service(required_id(&call, "ServiceID")?)
        .await?;
    Ok(Reply::empty())
}

pub async fn register_check<R: Rt, B: Backend>(api: Api<R, B>, mut call: Call) -> Result<Reply, Failure> {
    let body = call.read_json_body(&api).await?;
    let mut definition = decode::check_definition(&body)?;
    if definition.token.is_empty() {
        call.token().clone_into(&mut definition.token);
    }
    api.backend().register_check(definition).await?;
    Ok(Reply::empty())
}

pub async fn deregister_check<R: Rt, B: Backend>(api: Api<R, B>, call: Call) -> Result<Reply, Failure> {
    api.backend().deregister_check(required_id(&call, "CheckID")?).await?;
    Ok(Reply::empty())
}

/// Keeps the head of an output that is too long, and says so.
fn cut_output(output: String) -> String {
    let limit = limits::CHECK_OUTPUT_LEN_BYTES_MAX;
    if output.len() <= limit {
        return output;
    }
    let cut = output.floor_char_boundary_at(limit);
    format!("{} ... (captured {limit} of {} bytes)", &output[..cut], output.len())
}

trait FloorCharBoundary {
    fn floor_char_boundary_at(&self, at: usize) -> usize;
}

impl FloorCharBoundary for str {
    fn floor_char_boundary_at(&self, at: usize) -> usize {
        (0..=at).rev().find(|at| self.is_char_boundary(*at)).unwrap_or(0)
    }
}

async fn tell_check<R: Rt, B: Backend>(
    api: &Api<R, B>,
    call: &Call,
    status: CheckStatus,
    output: String,
) -> Result<Reply, Failure> {
    let id = required_id(call, "CheckID")?;
    api.backend().update_check(id, status, cut_output(output)).await?;
    Ok(Reply::empty())
}

pub async fn pass_check<R: Rt, B: Backend>(api: Api<R, B>, call: Call) -> Result<Reply, Failure> {
    tell_check(&api, &call, CheckStatus::Passing, call.params.get("note").to_owned()).await
}

pub async fn warn_check<R: Rt, B: Backend>(api: Api<R, B>, call: Call) -> Result<Reply, Failure> {
    tell_check(&api, &call, CheckStatus::Warning, call.params.get("note").to_owned()).await
}

pub async fn fail_check<R: Rt, B: Backend>(api: Api<R, B>, call: Call) -> Result<Reply, Failure> {
    tell_check(&api, &call, CheckStatus::Critical, call.params.get("note").to_owned()).await
}

pub async fn update_check<R: Rt, B: Backend>(api: Api<R, B>, mut call: Call) -> Result<Reply, Failure> {
    let body = call.read_json_body(&api).await?;
    let (status, output) = decode::check_update(&body)?;
    let status = status.parse().map_err(|()| Fault::UpdateStatus(status))?;
    tell_check(&api, &call, status, output).await
}

/// The health of a local service, from best to worst.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum LocalStatus {
    Passing,
    Warning,
    Critical,
    Maintenance,
}

impl LocalStatus {
    fn of(checks: &[Arc<Check>]) -> Self {
        let status = |check: &Arc<Check>| match check.status {
            _ if is_maintenance(&check.check_id) => Self::Maintenance,
            CheckStatus::Passing => Self::Passing,
            CheckStatus::Warning => Self::Warning,
            CheckStatus::Critical => Self::Critical,
        };
        checks.iter().map(status).max().unwrap_or(Self::Passing)
    }
    const fn as_str(self) -> &'static str {
        match self {
            Self::Passing => "passing",
            Self::Warning => "warning",
            Self::Critical => "critical",
            Self::Maintenance => "maintenance",
        }
    }
    const fn http_status(self) -> StatusCode {
        match self {
            Self::Passing => StatusCode::OK,
            Self::Warning => StatusCode::TOO_MANY_REQUESTS,
            Self::Critical | Self::Maintenance => StatusCode::SERVICE_UNAVAILABLE,
        }
    }
}

fn is_maintenance(check_id: &str) -> bool {
    check_id == NODE_MAINTENANCE_ID || check_id.starts_with(SERVICE_MAINTENANCE_PREFIX)
}

/// The checks that decide a local service's health: its own and the node's.
fn checks_of(checks: &[Arc<Check>], service_id: &str) -> Vec<Arc<Check>> {
    let concerns = |check: &&Arc<Check>| check.is_node_level() || check.service_id == service_id;
    checks.iter().filter(concerns).cloned().collect()
}

fn wants_text(call: &Call) -> bool {
    let accepts = call.headers.get(ACCEPT).and_then(|value| value.to_str().ok());
    call.params.get("format") == "text" || accepts.is_some_and(|accepts| accepts.starts_with("text/plain"))
}

fn reason(reply: Reply, text: &str) -> Reply {
    match HeaderValue::try_from(text) {
        Ok(value) => reply.header(X_CONSUL_REASON, value),
        // An id no header can carry is told in the body alone.
        Err(_) => reply,
    }
}

pub async fn health_by_id<R: Rt, B: Backend>(api: Api<R, B>, call: Call) -> Result<Reply, Failure> {
    let id = call.rest.as_str();
    if id.is_empty() {
        return Err(Fault::HealthIdMissing("serviceID").into());
    }
    let services = api.backend().services();
    let Some(service) = services.iter().find(|service| service.id == id) else {
        let text = format!("ServiceId {id} not found");
        let reply = if wants_text(&call) {
            call.json(&text)
        } else {
            call.json(&LocalHealthJson {
                status: "critical",
                service: None,
                checks: None,
            })
        };
        return Ok(reason(reply.status(StatusCode::NOT_FOUND), &text));
    };
    let checks = checks_of(&api.backend().checks(), id);
    let status = LocalStatus::of(&checks);
    let reply = if wants_text(&call) {
        Reply::new(StatusCode::OK, Some(BARE_TEXT), status.as_str().into())
    } else {
        call.json(&LocalHealthJson {
            status: status.as_str(),
            service: Some((service, api.local_datacenter())),
            checks: Some(&checks),
        })
    };
    Ok(reason(reply.status(status.http_status()), status.as_str()))
}

/// A local service, the checks that decide its health, and that health.
type Instance<'a> = (&'a Arc<Service>, Vec<Arc<Check>>, LocalStatus);

pub async fn health_by_name<R: Rt, B: Backend>(api: Api<R, B>, call: Call) -> Result<Reply, Failure> {
    let name = call.rest.as_str();
    if name.is_empty() {
        return Err(Fault::HealthIdMissing("service Name").into());
    }
    let services = api.backend().services();
    let checks = api.backend().checks();
    let found: Vec<Instance<'_>> = services
        .iter()
        .filter(|service| service.name == name)
        .map(|service| {
            let checks = checks_of(&checks, &service.id);
            let status = LocalStatus::of(&checks);
            (service, checks, status)
        })
        .collect();
    let Some(worst) = found.iter().map(|(_, _, status)| *status).max() else {
        let text = format!("ServiceName {name} Not Found");
        let reply = if wants_text(&call) {
            Reply::new(StatusCode::OK, Some(BARE_TEXT), text.clone().into())
        } else {
            call.json(&[(); 0])
        };
        return Ok(reason(reply.status(StatusCode::NOT_FOUND), &text));
    };
    let reply = if wants_text(&call) {
        Reply::new(StatusCode::OK, Some(BARE_TEXT), worst.as_str().into())
    } else {
        call.json(&list(&found, |(service, checks, status)| LocalHealthJson {
            status: status.as_str(),
            service: Some((service, api.local_datacenter())),
            checks: Some(checks),
        }))
    };
    Ok(reason(reply.status(worst.http_status()), worst.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_output_keeps_its_head_and_says_what_is_gone() {
        let cut = cut_output("x".repeat(6000));
        assert!(cut.ends_with("x ... (captured 4096 of 6000 bytes)"));
        assert_eq!(cut.len(), 4096 + " ... (captured 4096 of 6000 bytes)".len());
        // A character on the limit is left out whole.
        assert!(cut_output("é".repeat(4000) + "x").starts_with("éé"));
        assert_eq!(cut_output("short".to_owned()), "short");
    }

    #[test]
    fn the_worst_check_decides_and_maintenance_is_worst_of_all() {
        let check = |id: &str, status| {
            Arc::new(Check {
                check_id: id.to_owned(),
                status,
                ..Check::default()
            })
        };
        let warning = check("a", CheckStatus::Warning);
        let critical = check("b", CheckStatus::Critical);
        let maintenance = check("_node_maintenance", CheckStatus::Critical);
        assert_eq!(LocalStatus::of(&[]), LocalStatus::Passing);
        assert_eq!(
            LocalStatus::of(&[warning.clone(), critical.clone()]),
            LocalStatus::Critical
        );
        assert_eq!(
            LocalStatus::of(&[critical, maintenance, warning]),
            LocalStatus::Maintenance
        );
    }
}
