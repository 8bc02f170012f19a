//! The JSON shapes clients see: names, order, and what stands for nothing (`null`, `[]`, `{}`, left out).
//!
//! Each shape borrows its record and is written in one pass; nothing is copied into a tree first.
//! Shapes and order are Consul 1.8.7's, with the later fields the contract names.

use crate::backend::{AgentFacts, RaftConfiguration, RaftServer};
use crate::go::{format_duration, format_float};
use base64::Engine as _;
use base64::display::Base64Display;
use base64::engine::general_purpose::STANDARD;
use quorate_store::{Instance, OperationError, OperationResult, TransactionReply};
use quorate_types::{
    Check, Coordinate, HealthCheckDefinition, KvPair, Member, Node, NodeCoordinate, NodeId, Service, ServiceAddress,
    Session, Weights,
};
use quorate_user_events::UserEvent;
use serde::ser::{SerializeMap, SerializeSeq, SerializeStruct};
use serde::{Serialize, Serializer};
use std::collections::BTreeMap;

/// Where names of addresses are told: nodes of other datacenters show their WAN address while `translate_wan_addrs` is on.
#[derive(Clone, Copy, Debug)]
pub struct Translation<'a> {
    pub enabled: bool,
    pub local_datacenter: &'a str,
}

impl Translation<'_> {
    fn applies(self, node: &Node) -> bool {
        self.enabled && node.datacenter != self.local_datacenter
    }

    fn node_address(self, node: &Node) -> &str {
        if self.applies(node)
            && let Some(wan) = node.tagged_addresses.as_ref().and_then(|tagged| tagged.get("wan"))
            && !wan.is_empty()
        {
            return wan;
        }
        &node.address
    }

    fn service_address(self, node: &Node, service: &Service) -> (String, i64) {
        if self.applies(node)
            && let Some(wan) = service.tagged_addresses.get("wan")
            && !wan.address.is_empty()
        {
            return (wan.address.clone(), wan.port);
        }
        (service.address.clone(), service.port)
    }
}

/// `""` for the nil id.
struct Id(NodeId);

impl Serialize for Id {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.0.0.is_nil() {
            serializer.serialize_str("")
        } else {
            serializer.collect_str(&self.0)
        }
    }
}

struct AddressJson<'a>(&'a ServiceAddress);

impl Serialize for AddressJson<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut json = serializer.serialize_struct("ServiceAddress", 2)?;
        json.serialize_field("Address", &self.0.address)?;
        json.serialize_field("Port", &self.0.port)?;
        json.end()
    }
}

struct AddressesJson<'a>(&'a BTreeMap<String, ServiceAddress>);

impl Serialize for AddressesJson<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(name, address)| (name, AddressJson(address))))
    }
}

struct WeightsJson(Weights);

impl Serialize for WeightsJson {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut json = serializer.serialize_struct("Weights", 2)?;
        json.serialize_field("Passing", &self.0.passing)?;
        json.serialize_field("Warning", &self.0.warning)?;
        json.end()
    }
}

/// What services without a mesh have in `Proxy`, and in `Connect`.
struct ProxyJson;

impl Serialize for ProxyJson {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut json = serializer.serialize_struct("Proxy", 2)?;
        json.serialize_field("MeshGateway", &EmptyObject)?;
        json.serialize_field("Expose", &EmptyObject)?;
        json.end()
    }
}

pub struct EmptyObject;

impl Serialize for EmptyObject {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_map(Some(0))?.end()
    }
}

/// `null` for an empty map.
fn nullable<K, V>(map: &BTreeMap<K, V>) -> Option<&BTreeMap<K, V>> {
    (!map.is_empty()).then_some(map)
}

pub struct NodeJson<'a>(pub &'a Node, pub Translation<'a>);

impl Serialize for NodeJson<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self(node, translation) = self;
        let mut json = serializer.serialize_struct("Node", 8)?;
        json.serialize_field("ID", &Id(node.id))?;
        json.serialize_field("Node", &node.name)?;
        json.serialize_field("Address", translation.node_address(node))?;
        json.serialize_field("Datacenter", &node.datacenter)?;
        json.serialize_field("TaggedAddresses", &node.tagged_addresses)?;
        json.serialize_field("Meta", &node.meta)?;
        json.serialize_field("CreateIndex", &node.create_index.0)?;
        json.serialize_field("ModifyIndex", &node.modify_index.0)?;
        json.end()
    }
}

/// A service of a known node (`catalog/node`, `health/service`).
pub struct NodeServiceJson<'a>(pub &'a Node, pub &'a Service, pub Translation<'a>);

impl Serialize for NodeServiceJson<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self(node, service, translation) = self;
        let (address, port) = translation.service_address(node, service);
        let mut json = serializer.serialize_struct("NodeService", 13)?;
        json.serialize_field("ID", &service.id)?;
        json.serialize_field("Service", &service.name)?;
        json.serialize_field("Tags", &service.tags)?;
        json.serialize_field("Address", &address)?;
        if !service.tagged_addresses.is_empty() {
            json.serialize_field("TaggedAddresses", &AddressesJson(&service.tagged_addresses))?;
        }
        json.serialize_field("Meta", &nullable(&service.meta))?;
        json.serialize_field("Port", &port)?;
        json.serialize_field("Weights", &WeightsJson(service.weights))?;
        json.serialize_field("EnableTagOverride", &service.enable_tag_override)?;
        json.serialize_field("Proxy", &ProxyJson)?;
        json.serialize_field("Connect", &EmptyObject)?;
        json.serialize_field("CreateIndex", &service.create_index.0)?;
        json.serialize_field("ModifyIndex", &service.modify_index.0)?;
        json.end()
    }
}

/// Node and service in one (`catalog/service`).
pub struct CatalogServiceJson<'a>(pub &'a Instance, pub Translation<'a>);

impl Serialize for CatalogServiceJson<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self(instance, translation) = self;
        let (node, service) = (&instance.node, &instance.service);
        let (address, port) = translation.service_address(node, service);
        let mut json = serializer.serialize_struct("CatalogService", 20)?;
        json.serialize_field("ID", &Id(node.id))?;
        json.serialize_field("Node", &node.name)?;
        json.serialize_field("Address", translation.node_address(node))?;
        json.serialize_field("Datacenter", &node.datacenter)?;
        json.serialize_field("TaggedAddresses", &node.tagged_addresses)?;
        json.serialize_field("NodeMeta", &node.meta)?;
        json.serialize_field("ServiceKind", "")?;
        json.serialize_field("ServiceID", &service.id)?;
        json.serialize_field("ServiceName", &service.name)?;
        json.serialize_field("ServiceTags", &service.tags)?;
        json.serialize_field("ServiceAddress", &address)?;
        if !service.tagged_addresses.is_empty() {
            json.serialize_field("ServiceTaggedAddresses", &AddressesJson(&service.tagged_addresses))?;
        }
        json.serialize_field("ServiceWeights", &WeightsJson(service.weights))?;
        json.serialize_field("ServiceMeta", &service.meta)?;
        json.serialize_field("ServicePort", &port)?;
        json.serialize_field("ServiceEnableTagOverride", &service.enable_tag_override)?;
        json.serialize_field("ServiceProxy", &ProxyJson)?;
        json.serialize_field("ServiceConnect", &EmptyObject)?;
        json.serialize_field("CreateIndex", &service.create_index.0)?;
        json.serialize_field("ModifyIndex", &service.modify_index.0)?;
        json.end()
    }
}

/// One of this agent's own services.
pub struct AgentServiceJson<'a> {
    pub service: &'a Service,
    pub datacenter: &'a str,
    /// Only where one service is asked for.
    pub content_hash: Option<&'a str>,
}

impl Serialize for AgentServiceJson<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let service = self.service;
        let mut json = serializer.serialize_struct("AgentService", 11)?;
        json.serialize_field("ID", &service.id)?;
        json.serialize_field("Service", &service.name)?;
        json.serialize_field("Tags", &service.tags)?;
        json.serialize_field("Meta", &service.meta)?;
        json.serialize_field("Port", &service.port)?;
        json.serialize_field("Address", &service.address)?;
        if !service.tagged_addresses.is_empty() {
            json.serialize_field("TaggedAddresses", &AddressesJson(&service.tagged_addresses))?;
        }
        json.serialize_field("Weights", &WeightsJson(service.weights))?;
        json.serialize_field("EnableTagOverride", &service.enable_tag_override)?;
        if let Some(hash) = self.content_hash {
            json.serialize_field("ContentHash", hash)?;
        }
        json.serialize_field("Datacenter", self.datacenter)?;
        json.end()
    }
}

/// What a check registered through the catalog was given; empty parts are left out.
struct DefinitionJson<'a>(&'a HealthCheckDefinition);

impl Serialize for DefinitionJson<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let definition = self.0;
        let mut json = serializer.serialize_map(None)?;
        for (name, duration) in [
            ("Interval", definition.interval),
            ("Timeout", definition.timeout),
            (
                "DeregisterCriticalServiceAfter",
                definition.deregister_critical_service_after,
            ),
        ] {
            if let Some(duration) = duration.filter(|duration| !duration.is_zero()) {
                json.serialize_entry(name, &format_duration(duration))?;
            }
        }
        let mut text = |name: &str, text: &str| {
            if text.is_empty() {
                Ok(())
            } else {
                json.serialize_entry(name, text)
            }
        };
        text("HTTP", &definition.http)?;
        if !definition.header.is_empty() {
            json.serialize_entry("Header", &definition.header)?;
        }
        let mut text = |name: &str, text: &str| {
            if text.is_empty() {
                Ok(())
            } else {
                json.serialize_entry(name, text)
            }
        };
        text("Method", &definition.method)?;
        text("Body", &definition.body)?;
        text("TLSServerName", &definition.tls_server_name)?;
        if definition.tls_skip_verify {
            json.serialize_entry("TLSSkipVerify", &true)?;
        }
        if !definition.tcp.is_empty() {
            json.serialize_entry("TCP", &definition.tcp)?;
        }
        json.end()
    }
}

/// The definition as `agent/health/service` writes it: every key with its zero value.
struct ZeroDefinitionJson;

impl Serialize for ZeroDefinitionJson {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut json = serializer.serialize_struct("Definition", 9)?;
        json.serialize_field("Interval", "0s")?;
        json.serialize_field("Timeout", "0s")?;
        json.serialize_field("DeregisterCriticalServiceAfter", "0s")?;
        json.serialize_field("HTTP", "")?;
        json.serialize_field("Header", &None::<()>)?;
        json.serialize_field("Method", "")?;
        json.serialize_field("Body", "")?;
        json.serialize_field("TLSSkipVerify", &false)?;
        json.serialize_field("TCP", "")?;
        json.end()
    }
}

pub struct CheckJson<'a>(pub &'a Check);

impl Serialize for CheckJson<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let check = self.0;
        let mut json = serializer.serialize_struct("HealthCheck", 16)?;
        check_head(&mut json, check, &check.kind)?;
        json.serialize_field("Definition", &DefinitionJson(&check.definition))?;
        json.serialize_field("CreateIndex", &check.create_index.0)?;
        json.serialize_field("ModifyIndex", &check.modify_index.0)?;
        json.end()
    }
}

/// A check as `agent/health/service` shows it: without its type.
struct LocalCheckJson<'a>(&'a Check);

impl Serialize for LocalCheckJson<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut json = serializer.serialize_struct("HealthCheck", 16)?;
        check_head(&mut json, self.0, "")?;
        json.serialize_field("Definition", &ZeroDefinitionJson)?;
        json.serialize_field("CreateIndex", &0)?;
        json.serialize_field("ModifyIndex", &0)?;
        json.end()
    }
}

fn check_head<S: SerializeStruct>(json: &mut S, check: &Check, kind: &str) -> Result<(), S::Error> {
    json.serialize_field("Node", &check.node)?;
    json.serialize_field("CheckID", &check.check_id)?;
    json.serialize_field("Name", &check.name)?;
    json.serialize_field("Status", check.status.as_str())?;
    json.serialize_field("Notes", &check.notes)?;
    json.serialize_field("Output", &check.output)?;
    json.serialize_field("ServiceID", &check.service_id)?;
    json.serialize_field("ServiceName", &check.service_name)?;
    json.serialize_field("ServiceTags", &check.service_tags)?;
    json.serialize_field("Type", kind)?;
    json.serialize_field("Interval", &check.interval)?;
    json.serialize_field("Timeout", &check.timeout)?;
    json.serialize_field("ExposedPort", &0)
}

/// A list written element by element.
pub struct ListJson<'a, T, F>(&'a [T], F);

pub fn list<'a, T, J: Serialize, F: Fn(&'a T) -> J>(elements: &'a [T], shape: F) -> ListJson<'a, T, F> {
    ListJson(elements, shape)
}

impl<'a, T, J: Serialize, F: Fn(&'a T) -> J> Serialize for ListJson<'a, T, F> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut json = serializer.serialize_seq(Some(self.0.len()))?;
        for element in self.0 {
            json.serialize_element(&(self.1)(element))?;
        }
        json.end()
    }
}

/// An object whose keys come from its elements.
pub struct ObjectJson<'a, T, F>(&'a [T], F);

pub fn object<'a, T, J: Serialize, F: Fn(&'a T) -> (&'a str, J)>(elements: &'a [T], shape: F) -> ObjectJson<'a, T, F> {
    ObjectJson(elements, shape)
}

impl<'a, T, J: Serialize, F: Fn(&'a T) -> (&'a str, J)> Serialize for ObjectJson<'a, T, F> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut json = serializer.serialize_map(Some(self.0.len()))?;
        for element in self.0 {
            let (key, value) = (self.1)(element);
            json.serialize_entry(key, &value)?;
        }
        json.end()
    }
}

/// Node, service and checks (`health/service`).
pub struct CheckServiceNodeJson<'a>(pub &'a Instance, pub Translation<'a>);

impl Serialize for CheckServiceNodeJson<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self(instance, translation) = self;
        let mut json = serializer.serialize_struct("CheckServiceNode", 3)?;
        json.serialize_field("Node", &NodeJson(&instance.node, *translation))?;
        json.serialize_field(
            "Service",
            &NodeServiceJson(&instance.node, &instance.service, *translation),
        )?;
        json.serialize_field("Checks", &list(&instance.checks, |check| CheckJson(check)))?;
        json.end()
    }
}

pub struct KvJson<'a>(pub &'a KvPair);

impl Serialize for KvJson<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let pair = self.0;
        let mut json = serializer.serialize_struct("KVPair", 7)?;
        json.serialize_field("LockIndex", &pair.lock_index)?;
        json.serialize_field("Key", &pair.key)?;
        json.serialize_field("Flags", &pair.flags)?;
        json.serialize_field("Value", &(!pair.value.is_empty()).then_some(Base64(&pair.value)))?;
        if let Some(session) = pair.session {
            json.serialize_field("Session", &session.to_string())?;
        }
        json.serialize_field("CreateIndex", &pair.create_index.0)?;
        json.serialize_field("ModifyIndex", &pair.modify_index.0)?;
        json.end()
    }
}

pub struct SessionJson<'a>(pub &'a Session);

impl Serialize for SessionJson<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let session = self.0;
        let mut json = serializer.serialize_struct("Session", 10)?;
        json.serialize_field("ID", &session.id.to_string())?;
        json.serialize_field("Name", &session.name)?;
        json.serialize_field("Node", &session.node)?;
        json.serialize_field(
            "LockDelay",
            &u64::try_from(session.lock_delay.as_nanos()).unwrap_or(u64::MAX),
        )?;
        json.serialize_field("Behavior", session.behavior.as_str())?;
        json.serialize_field("TTL", &session.ttl_text)?;
        json.serialize_field("NodeChecks", &session.node_checks)?;
        let of_services = list(&session.service_checks, |id| ServiceCheckJson(id));
        json.serialize_field(
            "ServiceChecks",
            &(!session.service_checks.is_empty()).then_some(of_services),
        )?;
        json.serialize_field("CreateIndex", &session.create_index.0)?;
        json.serialize_field("ModifyIndex", &session.modify_index.0)?;
        json.end()
    }
}

struct ServiceCheckJson<'a>(&'a str);

impl Serialize for ServiceCheckJson<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut json = serializer.serialize_struct("ServiceCheck", 2)?;
        json.serialize_field("ID", self.0)?;
        json.serialize_field("Namespace", "")?;
        json.end()
    }
}

/// What a transaction came to; of one that only reads, also how current that is.
pub struct TransactionJson<'a> {
    pub reply: &'a TransactionReply,
    pub datacenter: &'a str,
    pub read: Option<ReadJson>,
}

/// How current the answer of a transaction is.
#[derive(Clone, Copy, Debug)]
pub struct ReadJson {
    pub known_leader: bool,
    pub last_contact: std::time::Duration,
}

impl Serialize for TransactionJson<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let TransactionReply { results, errors } = self.reply;
        let mut json = serializer.serialize_struct("TxnResponse", 6)?;
        let result = |result| OperationResultJson {
            result,
            datacenter: self.datacenter,
        };
        json.serialize_field("Results", &errors.is_empty().then(|| list(results, result)))?;
        let has_errors = !errors.is_empty();
        json.serialize_field("Errors", &has_errors.then(|| list(errors, OperationErrorJson)))?;
        if let Some(read) = self.read {
            json.serialize_field("Index", &0)?;
            json.serialize_field(
                "LastContact",
                &u64::try_from(read.last_contact.as_nanos()).unwrap_or(u64::MAX),
            )?;
            json.serialize_field("KnownLeader", &read.known_leader)?;
            json.serialize_field("ConsistencyLevel", "")?;
        }
        json.end()
    }
}

struct OperationResultJson<'a> {
    result: &'a OperationResult,
    datacenter: &'a str,
}

impl Serialize for OperationResultJson<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        // Whoever writes back what was read must read what is there.
        let as_it_is = Translation {
            enabled: false,
            local_datacenter: self.datacenter,
        };
        let mut json = serializer.serialize_map(Some(1))?;
        match self.result {
            OperationResult::Kv(pair) => json.serialize_entry("KV", &KvJson(pair))?,
            OperationResult::Node(node) => json.serialize_entry("Node", &NodeJson(node, as_it_is))?,
            OperationResult::Service(service) => {
                json.serialize_entry("Service", &NodeServiceJson(&Node::default(), service, as_it_is))?;
            }
            OperationResult::Check(check) => json.serialize_entry("Check", &CheckJson(check))?,
        }
        json.end()
    }
}

struct OperationErrorJson<'a>(&'a OperationError);

impl Serialize for OperationErrorJson<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut json = serializer.serialize_struct("TxnError", 2)?;
        json.serialize_field("OpIndex", &self.0.position)?;
        json.serialize_field("What", &self.0.fault.to_string())?;
        json.end()
    }
}

struct Base64<'a>(&'a [u8]);

impl Serialize for Base64<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.0.len() < 1024 {
            // Short values are written without an allocation of their own.
            return serializer.collect_str(&Base64Display::new(self.0, &STANDARD));
        }
        serializer.serialize_str(&STANDARD.encode(self.0))
    }
}

pub struct UserEventJson<'a>(pub &'a UserEvent);

impl Serialize for UserEventJson<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let event = self.0;
        let mut json = serializer.serialize_struct("UserEvent", 8)?;
        json.serialize_field("ID", &event.id.to_string())?;
        json.serialize_field("Name", &event.name)?;
        json.serialize_field(
            "Payload",
            &(!event.payload.is_empty()).then_some(Base64(&event.payload)),
        )?;
        json.serialize_field("NodeFilter", &event.node_filter)?;
        json.serialize_field("ServiceFilter", &event.service_filter)?;
        json.serialize_field("TagFilter", &event.tag_filter)?;
        json.serialize_field("Version", &event.version)?;
        json.serialize_field("LTime", &event.ltime.0)?;
        json.end()
    }
}

/// A number as Go writes it.
pub(crate) struct FloatJson(pub(crate) f64);

impl Serialize for FloatJson {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match serde_json::value::RawValue::from_string(format_float(self.0)) {
            Ok(number) => number.serialize(serializer),
            // Not a number: JSON has none for it, and no plausible coordinate holds one.
            Err(_) => serializer.serialize_unit(),
        }
    }
}

struct PlaceJson<'a>(&'a Coordinate);

impl Serialize for PlaceJson<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut json = serializer.serialize_struct("Coordinate", 4)?;
        json.serialize_field("Vec", &self.0.vector.map(FloatJson))?;
        json.serialize_field("Error", &FloatJson(self.0.error))?;
        json.serialize_field("Adjustment", &FloatJson(self.0.adjustment))?;
        json.serialize_field("Height", &FloatJson(self.0.height))?;
        json.end()
    }
}

pub struct CoordinateJson<'a>(pub &'a NodeCoordinate);

impl Serialize for CoordinateJson<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut json = serializer.serialize_struct("CoordinateEntry", 3)?;
        json.serialize_field("Node", &self.0.node)?;
        json.serialize_field("Segment", "")?;
        json.serialize_field("Coord", &PlaceJson(&self.0.coordinate))?;
        json.end()
    }
}

pub struct MemberJson<'a>(pub &'a Member);

impl Serialize for MemberJson<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let member = self.0;
        let mut json = serializer.serialize_struct("Member", 11)?;
        json.serialize_field("Name", &member.name)?;
        json.serialize_field("Addr", &member.address.ip())?;
        json.serialize_field("Port", &member.address.port())?;
        json.serialize_field("Tags", &member.tags)?;
        json.serialize_field("Status", &member.status.as_number())?;
        // Serf's protocol versions as Consul 1.8.7 tells them; clients show and never use them.
        for (name, version) in [
            ("ProtocolMin", 1),
            ("ProtocolMax", 5),
            ("ProtocolCur", 2),
            ("DelegateMin", 2),
            ("DelegateMax", 5),
            ("DelegateCur", 4),
        ] {
            json.serialize_field(name, &version)?;
        }
        json.end()
    }
}

/// `agent/self`.
pub struct SelfJson<'a>(pub &'a AgentFacts);

impl Serialize for SelfJson<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        struct Config<'a>(&'a AgentFacts);
        impl Serialize for Config<'_> {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                let facts = self.0;
                let mut json = serializer.serialize_struct("Config", 6)?;
                json.serialize_field("Datacenter", &facts.datacenter)?;
                json.serialize_field("NodeName", &facts.node_name)?;
                json.serialize_field("NodeID", &Id(facts.node_id))?;
                json.serialize_field("Revision", "")?;
                json.serialize_field("Server", &facts.server)?;
                json.serialize_field("Version", &facts.version)?;
                json.end()
            }
        }
        struct Coord;
        impl Serialize for Coord {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                // Where a node stands that has measured nothing yet (Vivaldi's origin, with Serf's initial error).
                let mut json = serializer.serialize_struct("Coord", 4)?;
                json.serialize_field("Vec", &[0; 8])?;
                json.serialize_field("Error", &1.5)?;
                json.serialize_field("Adjustment", &0)?;
                json.serialize_field("Height", &0.000_01)?;
                json.end()
            }
        }
        let facts = self.0;
        let mut json = serializer.serialize_struct("Self", 6)?;
        json.serialize_field("Config", &Config(facts))?;
        json.serialize_field("DebugConfig", &facts.debug_config)?;
        json.serialize_field("Coord", &Coord)?;
        json.serialize_field("Member", &MemberJson(&facts.member))?;
        json.serialize_field("Stats", &facts.stats)?;
        json.serialize_field("Meta", &facts.meta)?;
        json.end()
    }
}

/// `agent/version`.
pub struct VersionJson<'a>(pub &'a str);

impl Serialize for VersionJson<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut json = serializer.serialize_struct("Version", 4)?;
        json.serialize_field("SHA", "")?;
        json.serialize_field("BuildDate", "1970-01-01T00:00:01Z")?;
        json.serialize_field("HumanVersion", self.0)?;
        json.serialize_field("FIPS", "")?;
        json.end()
    }
}

/// A local service with its checks (`agent/health/service`).
pub struct LocalHealthJson<'a> {
    pub status: &'a str,
    pub service: Option<(&'a Service, &'a str)>,
    pub checks: Option<&'a [std::sync::Arc<Check>]>,
}

impl Serialize for LocalHealthJson<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut json = serializer.serialize_struct("LocalHealth", 3)?;
        json.serialize_field("AggregatedStatus", self.status)?;
        let service = self.service.map(|(service, datacenter)| AgentServiceJson {
            service,
            datacenter,
            content_hash: None,
        });
        json.serialize_field("Service", &service)?;
        json.serialize_field(
            "Checks",
            &self.checks.map(|checks| list(checks, |check| LocalCheckJson(check))),
        )?;
        json.end()
    }
}

pub struct RaftConfigurationJson<'a>(pub &'a RaftConfiguration);

impl Serialize for RaftConfigurationJson<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        struct Server<'a>(&'a RaftServer);
        impl Serialize for Server<'_> {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                let server = self.0;
                let mut json = serializer.serialize_struct("RaftServer", 6)?;
                json.serialize_field("ID", &Id(server.id))?;
                json.serialize_field("Node", &server.node)?;
                json.serialize_field("Address", &server.address)?;
                json.serialize_field("Leader", &server.leader)?;
                json.serialize_field("ProtocolVersion", "3")?;
                json.serialize_field("Voter", &server.voter)?;
                json.end()
            }
        }
        let mut json = serializer.serialize_struct("RaftConfiguration", 2)?;
        json.serialize_field("Servers", &list(&self.0.servers, Server))?;
        json.serialize_field("Index", &self.0.index.0)?;
        json.end()
    }
}
