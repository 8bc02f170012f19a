//! Questions to the catalog, and the index that the contract gives each (http-api section 2.2).
//!
//! A question that looks at nodes' metadata also reports changes of nodes: they may change its answer.

use crate::catalog::{Catalog, FirstOf};
use crate::query::{AddressOwner, Answer, Instance, NodeView, fold};
use quorate_types::{Check, CheckStatus, ModifyIndex, Node, NodeId, Uuid};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

/// Shortest prefix of a node's id that finds it (Consul 1.8.7).
const NODE_ID_PREFIX_LEN_MIN: usize = 2;

fn has_meta(node: &Node, wanted: &[(String, String)]) -> bool {
    wanted.iter().all(|(key, value)| {
        let has = node.meta.as_ref().and_then(|meta| meta.get(key));
        has == Some(value)
    })
}

fn has_tags(tags: &[String], wanted: &[String]) -> bool {
    wanted
        .iter()
        .all(|wanted| tags.iter().any(|tag| tag == wanted || fold(tag) == fold(wanted)))
}

impl Catalog {
    fn is_on_node_with(&self, node: &str, node_meta: &[(String, String)]) -> bool {
        node_meta.is_empty() || self.nodes.get(node).is_some_and(|node| has_meta(node, node_meta))
    }

    /// A table's index for a question that may look at nodes' metadata.
    fn index_with_meta(&self, table: ModifyIndex, node_meta: &[(String, String)]) -> ModifyIndex {
        if node_meta.is_empty() {
            table
        } else {
            table.max(self.indexes.nodes)
        }
    }

    /// The index of one service; of what is gone, when it has no instance.
    fn service_index(&self, name: &str) -> ModifyIndex {
        self.service_indexes
            .get(name)
            .copied()
            .unwrap_or(self.indexes.service_gone)
    }

    pub(crate) fn read_nodes(&self, node_meta: &[(String, String)]) -> (ModifyIndex, Answer) {
        let nodes = self.nodes.values().filter(|node| has_meta(node, node_meta));
        (self.indexes.nodes, Answer::Nodes(nodes.cloned().collect()))
    }

    pub(crate) fn read_services(&self, node_meta: &[(String, String)]) -> (ModifyIndex, Answer) {
        let mut services: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for (key, service) in &self.services {
            if !self.is_on_node_with(&key.node, node_meta) {
                continue;
            }
            let tags = match services.get_mut(&service.name) {
                Some(tags) => tags,
                None => services.entry(service.name.clone()).or_default(),
            };
            for tag in &service.tags {
                if !tags.contains(tag) {
                    tags.insert(tag.clone());
                }
            }
        }
        (
            self.index_with_meta(self.indexes.services, node_meta),
            Answer::Services(services),
        )
    }

    pub(crate) fn read_instances(
        &self,
        service: &str,
        tags: &[String],
        node_meta: &[(String, String)],
    ) -> (ModifyIndex, Answer) {
        let name = fold(service);
        let mut instances = Vec::new();
        for (key, service) in self.instances_of(&name) {
            let node = &self.nodes[key.as_ref()];
            if !has_tags(&service.tags, tags) || !has_meta(node, node_meta) {
                continue;
            }
            let of_node = self.checks_of_service(key, "");
            let own = self.checks_of_service(key, &service.id);
            instances.push(Instance {
                node: node.clone(),
                service: service.clone(),
                checks: of_node.chain(own).cloned().collect(),
            });
        }
        (self.service_index(&name), Answer::Instances(instances))
    }

    /// A node's folded name, found by name, by id, or by a prefix of its id that no other node shares.
    pub(crate) fn find_node(&self, name_or_id: &str) -> Option<&Arc<str>> {
        if let Some((key, _)) = self.nodes.get_key_value(fold(name_or_id).as_str()) {
            return Some(key);
        }
        let prefix = name_or_id.to_ascii_lowercase();
        if prefix.len() < NODE_ID_PREFIX_LEN_MIN || prefix.len() > 36 {
            return None;
        }
        // The least id that could begin so. What is no hexadecimal makes one that does not, or none.
        let mut first = prefix.clone();
        first.push_str(&"00000000-0000-0000-0000-000000000000"[prefix.len()..]);
        let first = NodeId(first.parse::<Uuid>().ok()?);
        let mut found = self
            .node_ids
            .range(first..)
            .take_while(|(id, _)| id.to_string().starts_with(&prefix))
            .map(|(_, key)| key);
        let only = found.next()?;
        found.next().is_none().then_some(only)
    }

    pub(crate) fn read_node(&self, name_or_id: &str) -> (ModifyIndex, Answer) {
        let Some(key) = self.find_node(name_or_id) else {
            return (ModifyIndex::ZERO, Answer::Node(None));
        };
        let view = NodeView {
            node: self.nodes[key.as_ref()].clone(),
            services: self.services_of_node(key).cloned().collect(),
            checks: self.checks_of_node(key).cloned().collect(),
        };
        let index = self.indexes.nodes.max(self.indexes.services);
        (index, Answer::Node(Some(view)))
    }

    pub(crate) fn read_node_checks(&self, name_or_id: &str) -> (ModifyIndex, Answer) {
        let checks = match self.find_node(name_or_id) {
            Some(key) => self.checks_of_node(key).cloned().collect(),
            None => Vec::new(),
        };
        (self.indexes.checks, Answer::Checks(checks))
    }

    /// By node, then check id.
    pub(crate) fn read_service_checks(&self, service: &str, node_meta: &[(String, String)]) -> (ModifyIndex, Answer) {
        let name = fold(service);
        let mut checks: Vec<(&Arc<str>, &Arc<Check>)> = Vec::new();
        for (key, service) in self.instances_of(&name) {
            if self.is_on_node_with(key, node_meta) {
                checks.extend(self.checks_of_service(key, &service.id).map(|check| (key, check)));
            }
        }
        checks.sort_by(|(left_key, left), (right_key, right)| {
            (left_key, &left.check_id).cmp(&(right_key, &right.check_id))
        });
        let checks = checks.into_iter().map(|(_, check)| check.clone()).collect();
        (
            self.index_with_meta(self.indexes.checks, node_meta),
            Answer::Checks(checks),
        )
    }

    pub(crate) fn read_checks_in_state(
        &self,
        status: Option<CheckStatus>,
        node_meta: &[(String, String)],
    ) -> (ModifyIndex, Answer) {
        let checks = self
            .checks
            .iter()
            .filter(|(_, check)| status.is_none_or(|status| check.status == status))
            .filter(|(key, _)| self.is_on_node_with(&key.node, node_meta))
            .map(|(_, check)| check.clone())
            .collect();
        (
            self.index_with_meta(self.indexes.checks, node_meta),
            Answer::Checks(checks),
        )
    }

    /// The contract gives this read no index; this one moves with all that may change its answer.
    pub(crate) fn read_address(&self, address: IpAddr) -> (ModifyIndex, Answer) {
        let node = self.node_addresses.range::<_, FirstOf>(FirstOf(address)..).next();
        let service = self.service_addresses.range::<_, FirstOf>(FirstOf(address)..).next();
        let owner = match (node, service) {
            (Some(node), _) if node.0 == address => Some(AddressOwner::Node(self.nodes[node.1.as_ref()].clone())),
            (_, Some(service)) if service.0 == address => Some(AddressOwner::Service(
                self.services[&(service.1.node.as_ref(), service.1.id.as_ref())].clone(),
            )),
            _ => None,
        };
        let index = self.indexes.nodes.max(self.indexes.services);
        (index, Answer::Address(owner))
    }
}
