//! `/v1/kv/...`: keys and values.

use crate::api::Api;
use crate::backend::Backend;
use crate::call::{BARE_TEXT, Call, Failure, Reply};
use crate::catalog::{answer, write};
use crate::errors::{Fault, SessionFault};
use crate::go::{parse_uint, path_unescape};
use crate::json::{KvJson, list};
use crate::params::ReadOptions;
use http::header::{CONTENT_SECURITY_POLICY, X_CONTENT_TYPE_OPTIONS};
use http::{HeaderValue, StatusCode};
use quorate_rt::Rt;
use quorate_store::{Answer, Command, KvCommand, Query};
use quorate_types::{KvPair, ModifyIndex, Uuid};
use std::sync::Arc;

pub async fn get<R: Rt, B: Backend>(api: Api<R, B>, call: Call) -> Result<Reply, Failure> {
    let options = ReadOptions::parse(&call.params, api.config(), false)?;
    let key = call.rest.clone();
    if call.params.has("keys") {
        let separator = call.params.get("separator").to_owned();
        let all = key.is_empty();
        let reply = api
            .read(&call.params, Query::KvKeys { prefix: key, separator }, &options)
            .await?;
        let description = reply.description();
        let keys = answer!(reply.answer, Answer::KvKeys);
        if keys.is_empty() && !all {
            return Ok(Reply::empty().status(StatusCode::NOT_FOUND).described(description));
        }
        return Ok(call.json(&keys).described(description));
    }
    let mut single = false;
    let query = if call.params.has("recurse") {
        Query::KvList { prefix: key }
    } else {
        single = true;
        let key = call.required("key name")?.to_owned();
        check_name(&api, &key)?;
        Query::KvGet { key }
    };
    let reply = api.read(&call.params, query, &options).await?;
    let description = reply.description();
    let pairs: Vec<Arc<KvPair>> = match Arc::unwrap_or_clone(reply.answer) {
        Answer::Kv(pair) if single => pair.into_iter().collect(),
        Answer::KvList(pairs) if !single => pairs,
        _ => return Err(crate::catalog::mismatched()),
    };
    match pairs.first() {
        None => Ok(Reply::empty().status(StatusCode::NOT_FOUND).described(description)),
        Some(pair) if single && call.params.has("raw") => {
            // A value is anybody's bytes: no browser may take them for a page of this origin.
            Ok(Reply::new(StatusCode::OK, Some(BARE_TEXT), pair.value.clone().into())
                .header(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"))
                .header(CONTENT_SECURITY_POLICY, HeaderValue::from_static("sandbox"))
                .described(description))
        }
        Some(_) => Ok(call.json(&list(&pairs, |pair| KvJson(pair))).described(description)),
    }
}

/// Refuses options that exclude one another.
fn exclusive(call: &Call, options: &[&str]) -> Result<(), Fault> {
    if options.iter().filter(|option| call.params.has(option)).count() > 1 {
        return Err(Fault::ConflictingFlags(call.params.encode()));
    }
    Ok(())
}

/// Refuses names that Consul refuses since 1.22, unless `disable_kv_key_validation` is set: those that lead out of their folder
/// once something between a client and us decodes them again, and those with blanks at an end, which nobody sees. A prefix
/// is no name, and lists and deletes what is there.
fn check_name<R: Rt, B: Backend>(api: &Api<R, B>, key: &str) -> Result<(), Fault> {
    if api.config().disable_kv_key_validation {
        return Ok(());
    }
    if key.starts_with(' ') || key.ends_with(' ') {
        return Err(Fault::KeyName("it begins or ends with a blank"));
    }
    let mut text = key.to_owned();
    loop {
        if text.split(['/', '\\']).any(|part| part == "..") {
            return Err(Fault::KeyName("it leads out of its folder (`..`)"));
        }
        // Each turn takes an escape away.
        match path_unescape(&text) {
            Some(decoded) if decoded != text => text = decoded,
            _ => return Ok(()),
        }
    }
}

/// `?cas=`, when given; without a value it is not.
fn cas(call: &Call) -> Result<Option<ModifyIndex>, Fault> {
    match call.params.has("cas") {
        false => Ok(None),
        true => Ok(Some(ModifyIndex(parse_uint(call.params.get("cas"))?))),
    }
}

pub async fn put<R: Rt, B: Backend>(api: Api<R, B>, mut call: Call) -> Result<Reply, Failure> {
    let key = call.required("key name")?.to_owned();
    check_name(&api, &key)?;
    exclusive(&call, &["cas", "acquire", "release"])?;
    let flags = match call.params.has("flags") {
        false => 0,
        true => parse_uint(call.params.get("flags"))?,
    };
    let expected = cas(&call)?;
    let value = call
        .read_body(&api, api.config().kv_value_len_bytes_max, "kv_max_value_size")
        .await?;
    let pair = KvPair {
        key,
        value: value.into(),
        flags,
        ..KvPair::default()
    };
    let command = if let Some(expected) = expected {
        KvCommand::Cas { pair, expected }
    } else if call.params.has("acquire") {
        let session = session_id(call.params.get("acquire")).map_err(Fault::Session)?;
        KvCommand::Acquire { pair, session }
    } else if call.params.has("release") {
        match session_id(call.params.get("release")) {
            Ok(session) => KvCommand::Release { pair, session },
            // What is no session holds no lock.
            Err(SessionFault::NotUuid) => return Ok(call.json(&false)),
            Err(fault) => return Err(Fault::Session(fault).into()),
        }
    } else {
        KvCommand::Set(pair)
    };
    write(&api, &call, call.params.datacenter(), Command::Kv(command)).await
}

/// The session that holds, or is to hold, a lock.
fn session_id(text: &str) -> Result<Uuid, SessionFault> {
    if text.is_empty() {
        return Err(SessionFault::Missing);
    }
    text.parse().map_err(|_| SessionFault::NotUuid)
}

pub async fn delete<R: Rt, B: Backend>(api: Api<R, B>, call: Call) -> Result<Reply, Failure> {
    exclusive(&call, &["recurse", "cas"])?;
    let command = if call.params.has("recurse") {
        KvCommand::DeleteTree {
            prefix: call.rest.clone(),
        }
    } else {
        let key = call.required("key name")?.to_owned();
        check_name(&api, &key)?;
        match cas(&call)? {
            None => KvCommand::Delete { key },
            Some(expected) => KvCommand::DeleteCas { key, expected },
        }
    };
    write(&api, &call, call.params.datacenter(), Command::Kv(command)).await
}
