//! `/v1/operator/keyring`: the keys of the gossip pools.
//!
//! Not here: who is asked and how (`Backend::keyring`), the ring's rules (`wire`).

use crate::api::Api;
use crate::backend::{Backend, KeyringOperation, KeyringPool};
use crate::call::{Call, Failure, Reply};
use crate::decode;
use crate::errors::Fault;
use crate::go::parse_bool;
use quorate_rt::Rt;
use serde::Serialize;
use std::collections::BTreeMap;

/// Serf's. How many members pass an answer on; ours answers over a stream, which loses none, so that it changes nothing.
const RELAY_FACTOR_MAX: i64 = 5;

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct KeyringJson<'a> {
    #[serde(rename = "WAN")]
    wan: bool,
    datacenter: &'a str,
    segment: &'static str,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    messages: &'a BTreeMap<String, String>,
    keys: &'a BTreeMap<String, u64>,
    primary_keys: &'a BTreeMap<String, u64>,
    num_nodes: usize,
}

pub async fn list<R: Rt, B: Backend>(api: Api<R, B>, call: Call) -> Result<Reply, Failure> {
    let local_only = options(&call, true)?;
    let pools = run(&api, KeyringOperation::List, local_only).await?;
    let shown: Vec<KeyringJson<'_>> = pools
        .iter()
        .map(|pool| KeyringJson {
            wan: pool.wan,
            datacenter: &pool.datacenter,
            segment: "",
            messages: &pool.messages,
            keys: &pool.keys,
            primary_keys: &pool.primary_keys,
            num_nodes: pool.member_count,
        })
        .collect();
    Ok(call.json(&shown))
}

pub async fn install<R: Rt, B: Backend>(api: Api<R, B>, call: Call) -> Result<Reply, Failure> {
    change(api, call, KeyringOperation::Install).await
}
pub async fn use_key<R: Rt, B: Backend>(api: Api<R, B>, call: Call) -> Result<Reply, Failure> {
    change(api, call, KeyringOperation::Use).await
}
pub async fn remove<R: Rt, B: Backend>(api: Api<R, B>, call: Call) -> Result<Reply, Failure> {
    change(api, call, KeyringOperation::Remove).await
}

async fn change<R: Rt, B: Backend>(
    api: Api<R, B>,
    mut call: Call,
    operation: fn(String) -> KeyringOperation,
) -> Result<Reply, Failure> {
    let body = call.read_json_body(&api).await?;
    let key = decode::keyring_key(&body).map_err(|err| Fault::BadRequest(format!("Request decode failed: {err}")))?;
    options(&call, false)?;
    run(&api, operation(key), false).await?;
    Ok(Reply::empty())
}

/// Checks the parameters; whether only this datacenter's LAN is asked.
fn options(call: &Call, is_list: bool) -> Result<bool, Fault> {
    let text = call.params.get("relay-factor");
    if !text.is_empty() {
        let factor: i64 = text.parse().map_err(|_| {
            Fault::BadRequest(format!(
                "Error parsing relay factor: strconv.Atoi: parsing {text:?}: invalid syntax"
            ))
        })?;
        if !(0..=RELAY_FACTOR_MAX).contains(&factor) {
            let range = format!("Relay factor must be in range: [0, {RELAY_FACTOR_MAX}]");
            return Err(Fault::BadRequest(format!("Invalid relay-factor: {range}")));
        }
    }
    let text = call.params.get("local-only");
    if text.is_empty() {
        return Ok(false);
    }
    let local_only = parse_bool(text).ok_or_else(|| {
        Fault::BadRequest(format!(
            "Error parsing local-only: strconv.ParseBool: parsing {text:?}: invalid syntax"
        ))
    })?;
    if local_only && !is_list {
        let reason = "local-only can only be set for list requests";
        return Err(Fault::BadRequest(format!("Invalid use of local-only: {reason}")));
    }
    Ok(local_only)
}

/// Asks the pools. One that failed makes the whole request fail, and each of its members is named with its reason.
async fn run<R: Rt, B: Backend>(
    api: &Api<R, B>,
    operation: KeyringOperation,
    local_only: bool,
) -> Result<Vec<KeyringPool>, Fault> {
    let pools = api.backend().keyring(operation, local_only).await?;
    let mut failures = Vec::new();
    for pool in &pools {
        let Some(failure) = &pool.failure else {
            continue;
        };
        let name = if pool.wan {
            "WAN".to_owned()
        } else {
            format!("{} (LAN)", pool.datacenter)
        };
        failures.push(format!("{name} error: {failure}"));
        failures.extend(
            pool.messages
                .iter()
                .map(|(member, message)| format!("{member}: {message}")),
        );
    }
    match failures.is_empty() {
        true => Ok(pools),
        false => Err(Fault::Keyring(failures)),
    }
}
