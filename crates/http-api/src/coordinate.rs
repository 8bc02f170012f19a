//! `/v1/coordinate/...`: where nodes are in the network; and `?near=`, which sorts by it.

use crate::api::Api;
use crate::backend::{Backend, BackendError, DatacenterCoordinates};
use crate::call::{Call, Failure, Reply, TEXT};
use crate::catalog::answer;
use crate::decode;
use crate::json::{CoordinateJson, list as json_list};
use crate::params::ReadOptions;
use bytes::Bytes;
use http::StatusCode;
use quorate_rt::Rt;
use quorate_store::{Answer, Query, fold};
use quorate_types::{Coordinate, ModifyIndex, Node, NodeCoordinate};
use serde::Serialize;
use serde::ser::{SerializeStruct as _, Serializer};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

/// What every endpoint here answers where coordinates are switched off, as Consul's.
fn disabled<R: Rt, B: Backend>(api: &Api<R, B>) -> Option<Reply> {
    let text = Bytes::from_static(b"Coordinate support disabled");
    let reply = || Reply::new(StatusCode::UNAUTHORIZED, Some(TEXT), text);
    api.config().disable_coordinates.then(reply)
}

struct DatacenterJson<'a>(&'a DatacenterCoordinates);

impl Serialize for DatacenterJson<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut json = serializer.serialize_struct("DatacenterMap", 3)?;
        json.serialize_field("Datacenter", &self.0.datacenter)?;
        json.serialize_field("AreaID", "wan")?;
        json.serialize_field("Coordinates", &json_list(&self.0.servers, CoordinateJson))?;
        json.end()
    }
}

pub async fn datacenters<R: Rt, B: Backend>(api: Api<R, B>, call: Call) -> Result<Reply, Failure> {
    if let Some(reply) = disabled(&api) {
        return Ok(reply);
    }
    let datacenters = api.backend().datacenter_coordinates();
    Ok(call.json(&json_list(&datacenters, DatacenterJson)))
}

async fn read<R: Rt, B: Backend>(
    api: &Api<R, B>,
    call: &Call,
    nodes: Vec<String>,
) -> Result<(Vec<Arc<NodeCoordinate>>, crate::call::Description), Failure> {
    let options = ReadOptions::parse(&call.params, api.config(), false)?;
    let reply = api.discover(call, Query::Coordinates { nodes }, &options).await?;
    let description = reply.description();
    let mut coordinates = answer!(reply.answer, Answer::Coordinates);
    if !call.params.get("segment").is_empty() {
        // Segments are of Consul Enterprise: every node is in the one without a name.
        coordinates.clear();
    }
    Ok((coordinates, description))
}

pub async fn nodes<R: Rt, B: Backend>(api: Api<R, B>, call: Call) -> Result<Reply, Failure> {
    if let Some(reply) = disabled(&api) {
        return Ok(reply);
    }
    let (coordinates, description) = read(&api, &call, Vec::new()).await?;
    let json = call.json(&json_list(&coordinates, |coordinate| CoordinateJson(coordinate)));
    Ok(json.described(description))
}

pub async fn node<R: Rt, B: Backend>(api: Api<R, B>, call: Call) -> Result<Reply, Failure> {
    if let Some(reply) = disabled(&api) {
        return Ok(reply);
    }
    let node = call.required("node name")?.to_owned();
    let (coordinates, description) = read(&api, &call, vec![node]).await?;
    if coordinates.is_empty() {
        return Ok(Reply::empty().status(StatusCode::NOT_FOUND));
    }
    let json = call.json(&json_list(&coordinates, |coordinate| CoordinateJson(coordinate)));
    Ok(json.described(description))
}

/// Taken now, written with the next batch.
pub async fn update<R: Rt, B: Backend>(api: Api<R, B>, mut call: Call) -> Result<Reply, Failure> {
    if let Some(reply) = disabled(&api) {
        return Ok(reply);
    }
    let body = call.read_json_body(&api).await?;
    let coordinate = decode::coordinate(&body)?;
    if !coordinate.coordinate.is_plausible() {
        return Err(BackendError::Failed("invalid coordinate".to_owned()).into());
    }
    if api.foreign(call.params.datacenter()).is_some() {
        return Err(BackendError::NoPath.into());
    }
    api.backend().update_coordinate(coordinate).await?;
    Ok(Reply::empty())
}

/// The node whose address the request came from, or came from in the words of a proxy.
async fn node_at<R: Rt, B: Backend>(
    api: &Api<R, B>,
    call: &Call,
    options: &ReadOptions,
) -> Result<Option<String>, Failure> {
    let Some(source) = call.source() else {
        return Ok(None);
    };
    let query = Query::Nodes { node_meta: Vec::new() };
    let nodes = answer!(api.discover(call, query, options).await?.answer, Answer::Nodes);
    let is_there = |node: &&Arc<Node>| {
        node.address
            .parse::<IpAddr>()
            .is_ok_and(|ip| ip.to_canonical() == source)
    };
    Ok(nodes.iter().find(is_there).map(|node| node.name.clone()))
}

/// `?near=`: the nearest first, those of no known distance last; otherwise in the order they come in. An unknown node, and
/// one of another datacenter, is near nothing.
pub async fn sort_near<R: Rt, B: Backend, T>(
    api: &Api<R, B>,
    call: &Call,
    options: &ReadOptions,
    records: &mut [T],
    node_of: impl Fn(&T) -> &str,
) -> Result<(), Failure> {
    let near = match call.params.get("near") {
        "" => return Ok(()),
        "_agent" => api.backend().node_name(),
        node => node.to_owned(),
    };
    let at_once = ReadOptions {
        min_index: ModifyIndex::ZERO,
        ..options.clone()
    };
    if records.len() < 2 || api.foreign(call.params.datacenter()).is_some() {
        return Ok(());
    }
    let near = match near.as_str() {
        "_ip" => match node_at(api, call, &at_once).await? {
            Some(node) => node,
            None => return Ok(()),
        },
        _ => near,
    };
    let mut nodes: BTreeSet<String> = records.iter().map(|record| node_of(record).to_owned()).collect();
    nodes.insert(near.clone());
    let query = Query::Coordinates {
        nodes: nodes.into_iter().collect(),
    };
    let coordinates = answer!(api.discover(call, query, &at_once).await?.answer, Answer::Coordinates);
    let places: BTreeMap<String, Coordinate> = coordinates
        .iter()
        .map(|entry| (fold(&entry.node), entry.coordinate))
        .collect();
    if let Some(origin) = places.get(&fold(&near)) {
        let distance = |record: &T| match places.get(&fold(node_of(record))) {
            Some(place) => origin.distance_secs(place),
            None => f64::INFINITY,
        };
        records.sort_by_cached_key(|record| {
            // Not below 0 and no NaN: their bits are in their order.
            distance(record).to_bits()
        });
    }
    Ok(())
}
