//! `/v1/session/...`: what locks are held with.

use crate::api::Api;
use crate::backend::{Backend, BackendError};
use crate::call::{Call, Failure, Reply};
use crate::catalog::{answer, write};
use crate::decode;
use crate::errors::{Fault, SessionFault};
use crate::json::{SessionJson, list as json_list};
use crate::params::ReadOptions;
use quorate_rt::Rt;
use quorate_store::{Answer, Command, Outcome, Query, SessionCommand};
use quorate_types::{Session, Uuid};
use serde_json::json;
use std::sync::Arc;

pub async fn create<R: Rt, B: Backend>(api: Api<R, B>, mut call: Call) -> Result<Reply, Failure> {
    let body = call.read_json_body(&api).await?;
    let session = decode::session(&body, api.backend().node_name(), api.config().session_ttl_min)?;
    let id = api.rt().uuid();
    let command = Command::Session(SessionCommand::Create(Session { id, ..session }));
    let datacenter = api.foreign(call.params.datacenter());
    match api.backend().write(datacenter, command).await? {
        Outcome::Done => Ok(call.json(&json!({ "ID": id.to_string() }))),
        Outcome::Refused(error) => Err(error.into()),
        _ => Err(BackendError::Failed("a server answered another command".to_owned()).into()),
    }
}

/// The session that the path names.
fn named(call: &Call) -> Result<Uuid, Fault> {
    let id = call.required("session")?;
    id.parse().map_err(|_| SessionFault::NotUuid.into())
}

pub async fn destroy<R: Rt, B: Backend>(api: Api<R, B>, call: Call) -> Result<Reply, Failure> {
    let command = Command::Session(SessionCommand::Destroy { id: named(&call)? });
    write(&api, &call, call.params.datacenter(), command).await
}

pub async fn renew<R: Rt, B: Backend>(api: Api<R, B>, call: Call) -> Result<Reply, Failure> {
    let id = named(&call)?;
    let datacenter = api.foreign(call.params.datacenter());
    match api.backend().renew_session(datacenter, id).await? {
        Some(session) => Ok(call.json(&[SessionJson(&session)])),
        None => Err(Fault::UnknownSession(call.rest.clone()).into()),
    }
}

async fn read<R: Rt, B: Backend>(api: &Api<R, B>, call: &Call, query: Query) -> Result<Reply, Failure> {
    let options = ReadOptions::parse(&call.params, api.config(), false)?;
    let reply = api.discover(call, query, &options).await?;
    let description = reply.description();
    let sessions: Vec<Arc<Session>> = answer!(reply.answer, Answer::Sessions);
    let json = call.json(&json_list(&sessions, |session| SessionJson(session)));
    Ok(json.described(description))
}

pub async fn info<R: Rt, B: Backend>(api: Api<R, B>, call: Call) -> Result<Reply, Failure> {
    let id = named(&call).map_err(|fault| match fault {
        // A server says so, as it looks the session up.
        fault @ Fault::Session(_) => Failure::described(fault),
        fault => fault.into(),
    })?;
    read(&api, &call, Query::Session { id }).await
}

pub async fn of_node<R: Rt, B: Backend>(api: Api<R, B>, call: Call) -> Result<Reply, Failure> {
    let node = call.required("node name")?.to_owned();
    read(&api, &call, Query::NodeSessions { node }).await
}

pub async fn list<R: Rt, B: Backend>(api: Api<R, B>, call: Call) -> Result<Reply, Failure> {
    read(&api, &call, Query::Sessions).await
}
