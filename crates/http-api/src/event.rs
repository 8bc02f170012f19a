//! `/v1/event/...`: user events, fired to all agents of a datacenter and listed by each.

use crate::api::Api;
use crate::backend::{Backend, BackendError};
use crate::call::{Call, Failure, Reply, X_CONSUL_INDEX};
use crate::errors::Fault;
use crate::json::{UserEventJson, list as json_list};
use crate::params::ReadOptions;
use futures::future::select;
use quorate_rt::Rt;
use quorate_types::ModifyIndex;
use quorate_user_events::{EventFilter, UserEvent, index_of};
use std::pin::pin;

/// The format of events that every agent understands.
const VERSION: u8 = 1;
/// The index of a list without events: not 0, which would make a client ask again at once.
const INDEX_OF_NONE: u64 = 1;

pub async fn fire<R: Rt, B: Backend>(api: Api<R, B>, mut call: Call) -> Result<Reply, Failure> {
    let name = call.required("name")?.to_owned();
    let payload = call.read_json_body(&api).await?;
    let (node, service, tag) = (
        call.params.get("node"),
        call.params.get("service"),
        call.params.get("tag"),
    );
    EventFilter::new(node, service, tag).map_err(Fault::EventFilter)?;
    if api.foreign(call.params.datacenter()).is_some() {
        return Err(BackendError::NoPath.into());
    }
    let event = UserEvent {
        id: api.rt().uuid(),
        name,
        payload: payload.into(),
        node_filter: node.to_owned(),
        service_filter: service.to_owned(),
        tag_filter: tag.to_owned(),
        version: VERSION,
        ..UserEvent::default()
    };
    api.backend().fire_event(event.clone()).map_err(Fault::Event)?;
    // Its time is for those who hear of it: Consul answers the event as it was before.
    Ok(call.json(&UserEventJson(&event)))
}

/// Waits while the index is exactly the one given: it has no order.
pub async fn list<R: Rt, B: Backend>(api: Api<R, B>, call: Call) -> Result<Reply, Failure> {
    let options = ReadOptions::parse(&call.params, api.config(), false)?;
    let name = Some(call.params.get("name")).filter(|name| !name.is_empty());
    let deadline = api.rt().now() + api.jittered(options.wait);
    loop {
        let version = api.backend().events_version();
        let events = api.backend().events(name);
        let index = events.last().map_or(INDEX_OF_NONE, |event| index_of(event.id));
        let is_over = api.stopping().is_set() || api.rt().now() >= deadline;
        if options.min_index == ModifyIndex::ZERO || options.min_index.0 != index || is_over {
            let json = call.json(&json_list(&events, |event| UserEventJson(event)));
            return Ok(json.header(X_CONSUL_INDEX, index));
        }
        let changed = pin!(api.backend().events_changed(version));
        let over = pin!(async {
            let (late, stopping) = (pin!(api.rt().sleep_until(deadline)), pin!(api.stopping().wait()));
            select(late, stopping).await;
        });
        select(changed, over).await;
    }
}
