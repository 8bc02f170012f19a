//! The records filters select from: their fields (exact case) and how to read them.
//!
//! The schema of a record and its `value` stay side by side: a selector valid in one is answered by the other.

use crate::filter::{Record, Schema, Value};
use quorate_store::Instance;
use quorate_types::{Check, Member, Node, Service, ServiceAddress};
use std::borrow::Cow;
use std::collections::BTreeMap;

const ADDRESS: Schema = Schema::Struct(&[("Address", Schema::Text), ("Port", Schema::Int)]);
const WEIGHTS: Schema = Schema::Struct(&[("Passing", Schema::Int), ("Warning", Schema::Int)]);
const CONNECT: Schema = Schema::Struct(&[("Native", Schema::Bool)]);

/// `agent/services`, `catalog/node`, `catalog/node-services`.
pub const SERVICE: Schema = Schema::Struct(&[
    ("ID", Schema::Text),
    ("Service", Schema::Text),
    ("Kind", Schema::Text),
    ("Address", Schema::Text),
    ("Port", Schema::Int),
    ("EnableTagOverride", Schema::Bool),
    ("Tags", Schema::TextList),
    ("Meta", Schema::TextMap),
    ("TaggedAddresses", Schema::Map(&ADDRESS)),
    ("Weights", WEIGHTS),
    ("Connect", CONNECT),
    ("Proxy", Schema::Unset),
]);

/// `agent/checks`, `health/node`, `health/checks`, `health/state`.
pub const CHECK: Schema = Schema::Struct(&[
    ("CheckID", Schema::Text),
    ("Name", Schema::Text),
    ("Node", Schema::Text),
    ("Notes", Schema::Text),
    ("Output", Schema::Text),
    ("ServiceID", Schema::Text),
    ("ServiceName", Schema::Text),
    ("ServiceTags", Schema::TextList),
    ("Status", Schema::Text),
]);

/// `catalog/nodes`.
pub const NODE: Schema = Schema::Struct(&[
    ("ID", Schema::Text),
    ("Node", Schema::Text),
    ("Address", Schema::Text),
    ("Datacenter", Schema::Text),
    ("Meta", Schema::TextMap),
    ("TaggedAddresses", Schema::TextMap),
]);

/// `catalog/service`.
pub const CATALOG_SERVICE: Schema = Schema::Struct(&[
    ("ID", Schema::Text),
    ("Node", Schema::Text),
    ("Address", Schema::Text),
    ("Datacenter", Schema::Text),
    ("TaggedAddresses", Schema::TextMap),
    ("NodeMeta", Schema::TextMap),
    ("ServiceID", Schema::Text),
    ("ServiceName", Schema::Text),
    ("ServiceKind", Schema::Text),
    ("ServiceAddress", Schema::Text),
    ("ServicePort", Schema::Int),
    ("ServiceTags", Schema::TextList),
    ("ServiceMeta", Schema::TextMap),
    ("ServiceTaggedAddresses", Schema::Map(&ADDRESS)),
    ("ServiceWeights", WEIGHTS),
    ("ServiceEnableTagOverride", Schema::Bool),
    ("ServiceConnect", CONNECT),
    ("ServiceProxy", Schema::Unset),
]);

/// `health/service`.
pub const HEALTH_SERVICE: Schema =
    Schema::Struct(&[("Node", NODE), ("Service", SERVICE), ("Checks", Schema::List(&CHECK))]);

/// `agent/members` (Consul ≥ 1.9).
pub const MEMBER: Schema = Schema::Struct(&[
    ("Name", Schema::Text),
    ("Addr", Schema::Text),
    ("Port", Schema::Int),
    ("Tags", Schema::TextMap),
    ("Status", Schema::Int),
]);

fn text(text: &str) -> Value<'_> {
    Value::Text(Cow::Borrowed(text))
}

fn list(elements: &[String]) -> Value<'_> {
    Value::List(elements.iter().map(String::as_str).collect())
}

fn text_map<'a>(map: Option<&'a BTreeMap<String, String>>, path: &[String]) -> Value<'a> {
    match (map, path.first()) {
        (Some(map), Some(key)) => map.get(key).map_or(Value::Missing, |value| text(value)),
        (None, Some(_)) => Value::Missing,
        (map, None) => Value::List(map.into_iter().flatten().map(|(key, _)| key.as_str()).collect()),
    }
}

fn addresses<'a>(map: &'a BTreeMap<String, ServiceAddress>, path: &[String]) -> Value<'a> {
    match path {
        [] => Value::List(map.keys().map(String::as_str).collect()),
        [key, field] => match (map.get(key), field.as_str()) {
            (Some(address), "Address") => text(&address.address),
            (Some(address), "Port") => Value::Int(address.port),
            _ => Value::Missing,
        },
        _ => Value::Missing,
    }
}

/// A field of a node under the name it has in a node.
fn node_value<'a>(node: &'a Node, field: &str, rest: &[String]) -> Value<'a> {
    match field {
        "ID" if node.id.0.is_nil() => text(""),
        "ID" => Value::Text(Cow::Owned(node.id.to_string())),
        "Node" => text(&node.name),
        "Address" => text(&node.address),
        "Datacenter" => text(&node.datacenter),
        "Meta" => text_map(node.meta.as_ref(), rest),
        "TaggedAddresses" => text_map(node.tagged_addresses.as_ref(), rest),
        _ => Value::Missing,
    }
}

/// A field of a service under the name it has in a service.
fn service_value<'a>(service: &'a Service, field: &str, rest: &[String]) -> Value<'a> {
    match field {
        "ID" => text(&service.id),
        "Service" => text(&service.name),
        "Kind" => text(""),
        "Address" => text(&service.address),
        "Port" => Value::Int(service.port),
        "EnableTagOverride" => Value::Bool(service.enable_tag_override),
        "Tags" => list(&service.tags),
        "Meta" => text_map(Some(&service.meta), rest),
        "TaggedAddresses" => addresses(&service.tagged_addresses, rest),
        "Weights" => match rest.first().map(String::as_str) {
            Some("Passing") => Value::Int(service.weights.passing.into()),
            Some("Warning") => Value::Int(service.weights.warning.into()),
            _ => Value::Missing,
        },
        "Connect" => Value::Bool(false),
        _ => Value::Missing,
    }
}

impl Record for Node {
    fn value<'a>(&'a self, path: &[String]) -> Value<'a> {
        match path {
            [field, rest @ ..] => node_value(self, field, rest),
            [] => Value::Missing,
        }
    }
}

impl Record for Service {
    fn value<'a>(&'a self, path: &[String]) -> Value<'a> {
        match path {
            [field, rest @ ..] => service_value(self, field, rest),
            [] => Value::Missing,
        }
    }
}

impl Record for Check {
    fn value<'a>(&'a self, path: &[String]) -> Value<'a> {
        match path.first().map_or("", String::as_str) {
            "CheckID" => text(&self.check_id),
            "Name" => text(&self.name),
            "Node" => text(&self.node),
            "Notes" => text(&self.notes),
            "Output" => text(&self.output),
            "ServiceID" => text(&self.service_id),
            "ServiceName" => text(&self.service_name),
            "ServiceTags" => list(&self.service_tags),
            "Status" => text(self.status.as_str()),
            _ => Value::Missing,
        }
    }
}

/// An instance as `health/service` shows it.
impl Record for Instance {
    fn value<'a>(&'a self, path: &[String]) -> Value<'a> {
        match path {
            [part, rest @ ..] => match part.as_str() {
                "Node" => self.node.value(rest),
                "Service" => self.service.value(rest),
                "Checks" if rest.is_empty() => Value::Count(self.checks.len()),
                "Checks" => Value::Many(self.checks.iter().map(|check| check.value(rest)).collect()),
                _ => Value::Missing,
            },
            [] => Value::Missing,
        }
    }
}

/// An instance as `catalog/service` shows it: node and service in one.
pub struct CatalogService<'a>(pub &'a Instance);

impl Record for CatalogService<'_> {
    fn value<'a>(&'a self, path: &[String]) -> Value<'a> {
        let Some((field, rest)) = path.split_first() else {
            return Value::Missing;
        };
        match field.as_str() {
            "NodeMeta" => node_value(&self.0.node, "Meta", rest),
            "ServiceName" => service_value(&self.0.service, "Service", rest),
            field => match field.strip_prefix("Service") {
                Some(field) => service_value(&self.0.service, field, rest),
                None => node_value(&self.0.node, field, rest),
            },
        }
    }
}

impl Record for Member {
    fn value<'a>(&'a self, path: &[String]) -> Value<'a> {
        match path {
            [field, rest @ ..] => match field.as_str() {
                "Name" => text(&self.name),
                "Addr" => Value::Text(Cow::Owned(self.address.ip().to_string())),
                "Port" => Value::Int(self.address.port().into()),
                "Tags" => text_map(Some(&self.tags), rest),
                "Status" => Value::Int(self.status.as_number().into()),
                _ => Value::Missing,
            },
            [] => Value::Missing,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::filter::Filter;
    use quorate_types::{CheckStatus, Weights};
    use std::sync::Arc;

    fn instance() -> Instance {
        let pairs = |key: &str, value: &str| BTreeMap::from([(key.to_owned(), value.to_owned())]);
        let node = Node {
            name: "n1".to_owned(),
            address: "10.0.0.1".to_owned(),
            meta: Some(pairs("rack", "r1")),
            ..Node::default()
        };
        let service = Service {
            id: "web1".to_owned(),
            name: "web".to_owned(),
            tags: vec!["a".to_owned()],
            port: 80,
            meta: pairs("v", "1"),
            tagged_addresses: BTreeMap::from([(
                "lan".to_owned(),
                ServiceAddress {
                    address: "10.0.0.2".to_owned(),
                    port: 81,
                },
            )]),
            weights: Weights {
                passing: 10,
                warning: 1,
            },
            ..Service::default()
        };
        let check = Check {
            check_id: "c".to_owned(),
            status: CheckStatus::Warning,
            ..Check::default()
        };
        Instance {
            node: Arc::new(node),
            service: Arc::new(service),
            checks: vec![Arc::new(check)],
        }
    }

    #[test]
    fn every_selector_of_the_contract_reads_its_field() {
        let instance = instance();
        for text in [
            "Node.Node == n1 and Node.Meta.rack == r1 and Node.TaggedAddresses is empty",
            "Node.ID == \"\" and Node.Address == `10.0.0.1` and Node.Datacenter == \"\"",
            "Service.Service == web and Service.ID == web1 and Service.Port == 80 and Service.Weights.Passing == 10",
            "a in Service.Tags and Service.Meta.v == 1 and Service.TaggedAddresses.lan.Port == 81",
            "Service.Connect.Native == false and Service.Kind == \"\" and Service.EnableTagOverride == false",
            "Checks is not empty and Checks.Status == warning and Checks.CheckID == c",
            "lan in Service.TaggedAddresses and Service.TaggedAddresses.none.Address != x",
        ] {
            assert!(
                Filter::parse(text, &HEALTH_SERVICE).unwrap().matches(&instance),
                "{text}"
            );
        }
        for text in [
            "ID == \"\" and Node == n1 and NodeMeta.rack == r1 and ServiceID == web1 and ServiceName == web",
            "ServiceKind == \"\" and ServicePort == 80 and a in ServiceTags and ServiceMeta.v == 1",
            "ServiceTaggedAddresses.lan.Address == `10.0.0.2` and ServiceWeights.Warning == 1",
            "ServiceEnableTagOverride == false and ServiceConnect.Native == false and ServiceAddress == \"\"",
        ] {
            assert!(
                Filter::parse(text, &CATALOG_SERVICE)
                    .unwrap()
                    .matches(&CatalogService(&instance)),
                "{text}"
            );
        }
    }
}
