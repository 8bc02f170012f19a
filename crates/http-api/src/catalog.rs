//! `/v1/catalog/...`: nodes, services and instances of a datacenter, and their registration.

use crate::api::{Api, filter};
use crate::backend::{Backend, BackendError};
use crate::call::{Call, Failure, Reply, X_CACHE};
use crate::coordinate::sort_near;
use crate::filter::Filter;
use crate::json::{CatalogServiceJson, EmptyObject, NodeJson, NodeServiceJson, list, object};
use crate::params::ReadOptions;
use crate::{decode, records};
use http::HeaderValue;
use quorate_rt::Rt;
use quorate_store::{Answer, Command, Instance, NodeView, Outcome, Query};
use quorate_types::Node;
use serde::Serialize;
use serde::ser::{SerializeStruct, Serializer};

/// Takes the answer that belongs to the question; a copy, where others hold it too.
macro_rules! answer {
    ($answer:expr, $variant:path) => {
        match std::sync::Arc::unwrap_or_clone($answer) {
            $variant(answer) => answer,
            _ => return Err($crate::catalog::mismatched()),
        }
    };
}
pub(crate) use answer;

/// The same by reference: others may hold the answer too, and need no copy of their own.
macro_rules! answer_ref {
    ($answer:expr, $variant:path) => {
        match &*$answer {
            $variant(answer) => answer,
            _ => return Err($crate::catalog::mismatched()),
        }
    };
}
pub(crate) use answer_ref;

/// A server answered another question: only one with a bug does.
pub(crate) fn mismatched() -> Failure {
    Failure::described(BackendError::Failed("a server answered another question".to_owned()))
}

/// What catalog and health reads begin with: their options and their filter.
pub(crate) fn prepare<R: Rt, B: Backend>(
    api: &Api<R, B>,
    call: &Call,
    schema: &'static crate::filter::Schema,
) -> Result<(ReadOptions, Option<Filter>), Failure> {
    let options = ReadOptions::parse(&call.params, api.config(), true)?;
    // Consul's servers evaluate filters: what is wrong with one looks like a failed read.
    let filter = filter(&call.params, schema).map_err(Failure::described)?;
    Ok((options, filter))
}

/// Keeps what the filter, if any, matches.
pub(crate) fn retain<T>(records: &mut Vec<T>, filter: Option<&Filter>, matches: impl Fn(&Filter, &T) -> bool) {
    if let Some(filter) = filter {
        records.retain(|record| matches(filter, record));
    }
}

/// `?cached` reads are fresh ones: a cache that never hits.
pub(crate) fn cache_miss(reply: Reply, options: &ReadOptions) -> Reply {
    if options.cached {
        reply.header(X_CACHE, HeaderValue::from_static("MISS"))
    } else {
        reply
    }
}

pub async fn register<R: Rt, B: Backend>(api: Api<R, B>, mut call: Call) -> Result<Reply, Failure> {
    let body = call.read_json_body(&api).await?;
    let (named, mut registration) = decode::registration(&body)?;
    let datacenter = Some(named.as_str())
        .filter(|name| !name.is_empty())
        .or(call.params.datacenter());
    registration.datacenter = api.foreign(datacenter).unwrap_or(api.local_datacenter()).to_owned();
    write(&api, &call, datacenter, Command::Register(Box::new(registration))).await
}

pub async fn deregister<R: Rt, B: Backend>(api: Api<R, B>, mut call: Call) -> Result<Reply, Failure> {
    let body = call.read_json_body(&api).await?;
    let (named, deregistration) = decode::deregistration(&body)?;
    let datacenter = Some(named.as_str())
        .filter(|name| !name.is_empty())
        .or(call.params.datacenter());
    write(&api, &call, datacenter, Command::Deregister(deregistration)).await
}

/// Writes one command; `true`, or whether its condition held.
pub(crate) async fn write<R: Rt, B: Backend>(
    api: &Api<R, B>,
    call: &Call,
    datacenter: Option<&str>,
    command: Command,
) -> Result<Reply, Failure> {
    match api.backend().write(api.foreign(datacenter), command).await? {
        Outcome::Done => Ok(call.json(&true)),
        Outcome::Decided(held) => Ok(call.json(&held)),
        Outcome::Refused(error) => Err(error.into()),
        Outcome::Batch(_) | Outcome::Transaction(_) => {
            Err(BackendError::Failed("a server answered one command as if it were several".to_owned()).into())
        }
    }
}

pub async fn datacenters<R: Rt, B: Backend>(api: Api<R, B>, call: Call) -> Result<Reply, Failure> {
    let options = ReadOptions::parse(&call.params, api.config(), true)?;
    let datacenters = api.backend().datacenters().await?;
    Ok(cache_miss(call.json(&datacenters), &options))
}

pub async fn nodes<R: Rt, B: Backend>(api: Api<R, B>, call: Call) -> Result<Reply, Failure> {
    let (options, filter) = prepare(&api, &call, &records::NODE)?;
    let query = Query::Nodes {
        node_meta: call.params.node_meta(),
    };
    let reply = api.discover(&call, query, &options).await?;
    let all = answer_ref!(reply.answer, Answer::Nodes);
    let chosen = || {
        let mut nodes: Vec<&Node> = all.iter().map(|node| &**node).collect();
        retain(&mut nodes, filter.as_ref(), |filter, node| filter.matches(*node));
        nodes
    };
    let encoded = |nodes: &[&Node]| call.json(&list(nodes, |node| NodeJson(node, api.translation())));
    let json = if call.params.has("near") {
        let mut nodes = chosen();
        sort_near(&api, &call, &options, &mut nodes, |node| &node.name).await?;
        encoded(&nodes)
    } else {
        api.rendered(&call, &reply.answer, "catalog/nodes", || encoded(&chosen()))
    };
    Ok(json.described(reply.description()).obtained(reply.consistency))
}

pub async fn services<R: Rt, B: Backend>(api: Api<R, B>, call: Call) -> Result<Reply, Failure> {
    let (options, filter) = prepare(&api, &call, &records::CATALOG_SERVICE)?;
    let node_meta = call.params.node_meta();
    let reply = api
        .discover(
            &call,
            Query::Services {
                node_meta: node_meta.clone(),
            },
            &options,
        )
        .await?;
    let (description, consistency) = (reply.description(), reply.consistency);
    let mut services = answer!(reply.answer, Answer::Services);
    if let Some(filter) = filter {
        // A name stays when an instance of it matches, with the tags of those that do.
        let mut kept = std::collections::BTreeMap::new();
        let at_once = ReadOptions {
            min_index: quorate_types::ModifyIndex::ZERO,
            ..options.clone()
        };
        for (name, _) in services {
            let query = Query::Instances {
                service: name.clone(),
                tags: Vec::new(),
                node_meta: node_meta.clone(),
            };
            let instances = answer!(api.discover(&call, query, &at_once).await?.answer, Answer::Instances);
            let mut tags = None;
            for instance in instances
                .iter()
                .filter(|instance| filter.matches(&records::CatalogService(instance)))
            {
                tags.get_or_insert_with(std::collections::BTreeSet::new)
                    .extend(instance.service.tags.iter().cloned());
            }
            if let Some(tags) = tags {
                kept.insert(name, tags);
            }
        }
        services = kept;
    }
    let json = call.json(&services).described(description).obtained(consistency);
    Ok(cache_miss(json, &options))
}

pub async fn service<R: Rt, B: Backend>(api: Api<R, B>, call: Call) -> Result<Reply, Failure> {
    let (options, filter) = prepare(&api, &call, &records::CATALOG_SERVICE)?;
    let service = call.required("service name")?.to_owned();
    let query = Query::Instances {
        service,
        tags: call.params.tags(),
        node_meta: call.params.node_meta(),
    };
    let reply = api.discover(&call, query, &options).await?;
    let all = answer_ref!(reply.answer, Answer::Instances);
    let chosen = || {
        let mut instances: Vec<&Instance> = all.iter().collect();
        retain(&mut instances, filter.as_ref(), |filter, instance| {
            filter.matches(&records::CatalogService(instance))
        });
        instances
    };
    let encoded = |instances: &[&Instance]| {
        call.json(&list(instances, |instance| {
            CatalogServiceJson(instance, api.translation())
        }))
    };
    let json = if call.params.has("near") {
        let mut instances = chosen();
        sort_near(&api, &call, &options, &mut instances, |instance| &instance.node.name).await?;
        encoded(&instances)
    } else {
        api.rendered(&call, &reply.answer, "catalog/service", || encoded(&chosen()))
    };
    let json = json.described(reply.description()).obtained(reply.consistency);
    Ok(cache_miss(json, &options))
}

/// A node with its services by id.
struct NodeServicesJson<'a, S> {
    node: Option<NodeJson<'a>>,
    services: Option<S>,
}

impl<T: Serialize> Serialize for NodeServicesJson<'_, T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut json = serializer.serialize_struct("NodeServices", 2)?;
        json.serialize_field("Node", &self.node)?;
        json.serialize_field("Services", &self.services)?;
        json.end()
    }
}

/// One node, its services filtered, and the head of the reply.
async fn read_node<R: Rt, B: Backend>(
    api: &Api<R, B>,
    call: &Call,
) -> Result<(Option<NodeView>, impl FnOnce(Reply) -> Reply), Failure> {
    let (options, filter) = prepare(api, call, &records::SERVICE)?;
    let node = call.required("node name")?.to_owned();
    let reply = api.discover(call, Query::Node { node }, &options).await?;
    let (description, consistency) = (reply.description(), reply.consistency);
    let mut view = answer!(reply.answer, Answer::Node);
    if let Some(view) = &mut view {
        retain(&mut view.services, filter.as_ref(), |filter, service| {
            filter.matches(&**service)
        });
    }
    Ok((view, move |json: Reply| {
        json.described(description).obtained(consistency)
    }))
}

pub async fn node<R: Rt, B: Backend>(api: Api<R, B>, call: Call) -> Result<Reply, Failure> {
    let (view, with_head) = read_node(&api, &call).await?;
    let translation = api.translation();
    let json = match &view {
        None => call.json(&None::<EmptyObject>),
        Some(NodeView { node, services, .. }) => {
            let services = object(services, |service| {
                (service.id.as_str(), NodeServiceJson(node, service, translation))
            });
            call.json(&NodeServicesJson {
                node: Some(NodeJson(node, translation)),
                services: Some(services),
            })
        }
    };
    Ok(with_head(json))
}

pub async fn node_services<R: Rt, B: Backend>(api: Api<R, B>, call: Call) -> Result<Reply, Failure> {
    let (view, with_head) = read_node(&api, &call).await?;
    let translation = api.translation();
    let json = match &view {
        None => call.json(&NodeServicesJson::<EmptyObject> {
            node: None,
            services: None,
        }),
        Some(NodeView { node, services, .. }) => {
            let services = list(services, |service| NodeServiceJson(node, service, translation));
            call.json(&NodeServicesJson {
                node: Some(NodeJson(node, translation)),
                services: Some(services),
            })
        }
    };
    Ok(with_head(json))
}
