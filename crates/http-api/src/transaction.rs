//! `/v1/txn`: operations that happen all or not at all.

use crate::api::Api;
use crate::backend::{Backend, BackendError};
use crate::call::{Call, Failure, Reply, X_CONSUL_INDEX};
use crate::catalog::answer;
use crate::decode;
use crate::errors::Fault;
use crate::json::{ReadJson, TransactionJson};
use crate::params::ReadOptions;
use http::StatusCode;
use quorate_rt::Rt;
use quorate_store::{Answer, Command, KvOperation, Operation, Outcome, Query, TransactionReply};
use quorate_types::ModifyIndex;

pub async fn transact<R: Rt, B: Backend>(api: Api<R, B>, mut call: Call) -> Result<Reply, Failure> {
    let value_len_bytes_max = api.config().kv_value_len_bytes_max;
    let len_bytes_max = api.config().transaction_len_bytes_max.max(value_len_bytes_max);
    let body = call.read_body(&api, len_bytes_max, "txn_max_req_len").await?;
    let operations = decode::transaction(&body, api.local_datacenter())?;
    for operation in &operations {
        if let Operation::Kv(KvOperation { key, value, .. }) = operation
            && value.len() > value_len_bytes_max
        {
            return Err(Fault::ValueTooLarge {
                key: key.clone(),
                len_bytes: value.len(),
                len_bytes_max: value_len_bytes_max,
            }
            .into());
        }
    }
    if !operations.iter().any(Operation::is_write) {
        return read(&api, &call, operations).await;
    }
    let datacenter = api.foreign(call.params.datacenter());
    match api
        .backend()
        .write(datacenter, Command::Transaction(operations))
        .await?
    {
        Outcome::Transaction(reply) => Ok(reply_of(&api, &call, &reply, None)),
        Outcome::Refused(error) => Err(error.into()),
        _ => Err(BackendError::Failed("a server answered another command".to_owned()).into()),
    }
}

/// A transaction that only reads is no entry of the log. It waits for nothing, and has no index to wait for.
async fn read<R: Rt, B: Backend>(api: &Api<R, B>, call: &Call, operations: Vec<Operation>) -> Result<Reply, Failure> {
    let options = ReadOptions {
        min_index: ModifyIndex::ZERO,
        ..ReadOptions::parse(&call.params, api.config(), false)?
    };
    let reply = api
        .read(&call.params, Query::Transaction { operations }, &options)
        .await?;
    let description = reply.description();
    let transaction = answer!(reply.answer, Answer::Transaction);
    let read = ReadJson {
        known_leader: description.known_leader,
        last_contact: description.last_contact,
    };
    let mut reply = reply_of(api, call, &transaction, Some(read)).described(description);
    reply.headers.remove(X_CONSUL_INDEX);
    Ok(reply)
}

fn reply_of<R: Rt, B: Backend>(
    api: &Api<R, B>,
    call: &Call,
    reply: &TransactionReply,
    read: Option<ReadJson>,
) -> Reply {
    let json = TransactionJson {
        reply,
        datacenter: api.local_datacenter(),
        read,
    };
    let status = if reply.is_done() {
        StatusCode::OK
    } else {
        StatusCode::CONFLICT
    };
    call.json(&json).status(status)
}
