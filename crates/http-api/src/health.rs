//! `/v1/health/...`: checks, and instances by their health.

use crate::api::Api;
use crate::backend::{Backend, ReadReply};
use crate::call::{Call, Failure, Reply};
use crate::catalog::{answer_ref, cache_miss, prepare, retain};
use crate::coordinate::sort_near;
use crate::errors::Fault;
use crate::filter::Filter;
use crate::go::parse_bool;
use crate::json::{CheckJson, CheckServiceNodeJson, list};
use crate::params::ReadOptions;
use crate::records;
use quorate_rt::Rt;
use quorate_store::{Answer, Instance, Query};
use quorate_types::{Check, CheckStatus};
use std::sync::Arc;

async fn list_checks<R: Rt, B: Backend>(
    api: &Api<R, B>,
    call: &Call,
    options: &ReadOptions,
    reply: ReadReply,
    filter: Option<&Filter>,
) -> Result<Reply, Failure> {
    let all = answer_ref!(reply.answer, Answer::Checks);
    let chosen = || {
        let mut checks: Vec<&Check> = all.iter().map(|check| &**check).collect();
        retain(&mut checks, filter, |filter, check| filter.matches(*check));
        checks
    };
    let encoded = |checks: &[&Check]| call.json(&list(checks, |check| CheckJson(check)));
    let json = if call.params.has("near") {
        let mut checks = chosen();
        sort_near(api, call, options, &mut checks, |check| &check.node).await?;
        encoded(&checks)
    } else {
        api.rendered(call, &reply.answer, "health/checks", || encoded(&chosen()))
    };
    Ok(json.described(reply.description()).obtained(reply.consistency))
}

pub async fn node<R: Rt, B: Backend>(api: Api<R, B>, call: Call) -> Result<Reply, Failure> {
    let (options, filter) = prepare(&api, &call, &records::CHECK)?;
    let node = call.required("node name")?.to_owned();
    let reply = api.discover(&call, Query::NodeChecks { node }, &options).await?;
    list_checks(&api, &call, &options, reply, filter.as_ref()).await
}

pub async fn checks<R: Rt, B: Backend>(api: Api<R, B>, call: Call) -> Result<Reply, Failure> {
    let (options, filter) = prepare(&api, &call, &records::CHECK)?;
    let service = call.required("service name")?.to_owned();
    let query = Query::ServiceChecks {
        service,
        node_meta: call.params.node_meta(),
    };
    let reply = api.discover(&call, query, &options).await?;
    list_checks(&api, &call, &options, reply, filter.as_ref()).await
}

pub async fn state<R: Rt, B: Backend>(api: Api<R, B>, call: Call) -> Result<Reply, Failure> {
    let (options, filter) = prepare(&api, &call, &records::CHECK)?;
    let word = call.required("check state")?;
    let status: Option<CheckStatus> = word.parse().ok();
    let query = Query::ChecksInState {
        status,
        node_meta: call.params.node_meta(),
    };
    let mut reply = api.discover(&call, query, &options).await?;
    if status.is_none() && word != "any" {
        // No check is in a state that does not exist; the index is that of all checks all the same.
        reply.answer = Arc::new(Answer::Checks(Vec::new()));
    }
    list_checks(&api, &call, &options, reply, filter.as_ref()).await
}

pub async fn service<R: Rt, B: Backend>(api: Api<R, B>, call: Call) -> Result<Reply, Failure> {
    let (options, filter) = prepare(&api, &call, &records::HEALTH_SERVICE)?;
    let service = call.required("service name")?.to_owned();
    let only_passing = match (call.params.has("passing"), call.params.get("passing")) {
        (false, _) => false,
        (true, "") => true,
        (true, value) => parse_bool(value).ok_or(Fault::Passing)?,
    };
    let query = Query::Instances {
        service,
        tags: call.params.tags(),
        node_meta: call.params.node_meta(),
    };
    let reply = api.discover(&call, query, &options).await?;
    let all = answer_ref!(reply.answer, Answer::Instances);
    let chosen = || {
        let mut instances: Vec<&Instance> = all.iter().collect();
        if only_passing {
            instances.retain(|instance| instance.status() == CheckStatus::Passing);
        }
        retain(&mut instances, filter.as_ref(), |filter, instance| {
            filter.matches(*instance)
        });
        instances
    };
    let encoded = |instances: &[&Instance]| {
        call.json(&list(instances, |instance| {
            CheckServiceNodeJson(instance, api.translation())
        }))
    };
    let json = if call.params.has("near") {
        let mut instances = chosen();
        sort_near(&api, &call, &options, &mut instances, |instance| &instance.node.name).await?;
        encoded(&instances)
    } else {
        api.rendered(&call, &reply.answer, "health/service", || encoded(&chosen()))
    };
    let json = json.described(reply.description()).obtained(reply.consistency);
    Ok(cache_miss(json, &options))
}
