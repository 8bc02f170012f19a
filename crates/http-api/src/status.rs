//! `/v1/status/...`, the Raft configuration, and what stands in for the service mesh.

use crate::api::Api;
use crate::backend::Backend;
use crate::call::{Call, Failure, Reply};
use crate::errors::Fault;
use crate::json::{EmptyObject, RaftConfigurationJson};
use quorate_rt::Rt;

pub async fn leader<R: Rt, B: Backend>(api: Api<R, B>, call: Call) -> Result<Reply, Failure> {
    let status = api.backend().status(api.foreign(call.params.datacenter())).await?;
    Ok(call.json(&status.leader.map(|address| address.to_string()).unwrap_or_default()))
}

pub async fn peers<R: Rt, B: Backend>(api: Api<R, B>, call: Call) -> Result<Reply, Failure> {
    Ok(call.json(&api.backend().status(api.foreign(call.params.datacenter())).await?.peers))
}

pub async fn raft_configuration<R: Rt, B: Backend>(api: Api<R, B>, call: Call) -> Result<Reply, Failure> {
    let stale = call.params.has("stale");
    let configuration = api
        .backend()
        .raft_configuration(api.foreign(call.params.datacenter()), stale)
        .await?;
    Ok(call.json(&RaftConfigurationJson(&configuration)))
}

pub async fn empty_list<R: Rt, B: Backend>(_api: Api<R, B>, call: Call) -> Result<Reply, Failure> {
    Ok(call.json(&[(); 0]))
}

pub async fn null<R: Rt, B: Backend>(_api: Api<R, B>, call: Call) -> Result<Reply, Failure> {
    Ok(call.json(&None::<EmptyObject>))
}

pub async fn connect_disabled<R: Rt, B: Backend>(_api: Api<R, B>, _call: Call) -> Result<Reply, Failure> {
    Err(Fault::ConnectDisabled.into())
}
