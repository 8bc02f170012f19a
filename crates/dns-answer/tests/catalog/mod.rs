//! The catalog behind the recorded answers of Consul 1.8.7, and queries to it, without a store.
//!
//! Shared by the tests of the DNS crates and their fuzz target.
#![allow(dead_code, reason = "each user needs another part")]

use quorate_store::{AddressOwner, Answer, Instance, NodeView, Query};
use quorate_types::{Check, CheckStatus, Node, Service, ServiceAddress, Weights};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

/// Instances in order, and nodes; names compare without case.
#[derive(Clone, Debug, Default)]
pub struct Catalog {
    pub nodes: Vec<Arc<Node>>,
    pub instances: Vec<Instance>,
}

pub fn strings(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs
        .iter()
        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
        .collect()
}

pub fn node(name: &str, address: &str) -> Node {
    Node {
        name: name.to_owned(),
        address: address.to_owned(),
        datacenter: "dc1".to_owned(),
        ..Node::default()
    }
}

pub fn service(id: &str, name: &str, tags: &[&str], address: &str, port: i64) -> Service {
    Service {
        id: id.to_owned(),
        name: name.to_owned(),
        tags: tags.iter().map(|tag| (*tag).to_owned()).collect(),
        address: address.to_owned(),
        port,
        ..Service::default()
    }
}

impl Catalog {
    pub fn add_node(&mut self, node: Node) -> Arc<Node> {
        let node = Arc::new(node);
        self.nodes.push(node.clone());
        node
    }

    pub fn add(&mut self, node: &Arc<Node>, service: Service, status: CheckStatus) {
        let check = Check {
            node: node.name.clone(),
            check_id: format!("service:{}", service.id),
            status,
            service_id: service.id.clone(),
            ..Check::default()
        };
        self.instances.push(Instance {
            node: node.clone(),
            service: Arc::new(service),
            checks: vec![Arc::new(check)],
        });
    }

    pub fn with(mut self, node: Node, service: Service) -> Self {
        let node = self.add_node(node);
        self.add(&node, service, CheckStatus::Passing);
        self
    }

    /// What a store answers to the queries DNS asks.
    pub fn evaluate(&self, query: &Query) -> Answer {
        match query {
            Query::Instances { service, tags, .. } => Answer::Instances(
                self.instances
                    .iter()
                    .filter(|instance| {
                        let has = |tag: &String| instance.service.tags.iter().any(|own| own.eq_ignore_ascii_case(tag));
                        instance.service.name.eq_ignore_ascii_case(service) && tags.iter().all(has)
                    })
                    .cloned()
                    .collect(),
            ),
            Query::Node { node } => {
                let found = self.nodes.iter().find(|own| own.name.eq_ignore_ascii_case(node));
                Answer::Node(found.map(|node| NodeView {
                    node: node.clone(),
                    services: Vec::new(),
                    checks: Vec::new(),
                }))
            }
            Query::Address { address } => {
                let is_it = |text: &str| text.parse::<IpAddr>().is_ok_and(|parsed| parsed == *address);
                let node = self.nodes.iter().find(|node| is_it(&node.address));
                let service = || self.instances.iter().find(|instance| is_it(&instance.service.address));
                Answer::Address(match node {
                    Some(node) => Some(AddressOwner::Node(node.clone())),
                    None => service().map(|instance| AddressOwner::Service(instance.service.clone())),
                })
            }
            other => panic!("DNS asks no {other:?}"),
        }
    }

    /// `captures/dns-catalog.jsonl` on three servers, and the names of the sample answers that it leaves out.
    pub fn recorded() -> Self {
        let mut catalog = Self::default();
        let weights = Weights {
            passing: 10,
            warning: 2,
        };
        for (name, address) in [("s1", "127.0.0.11"), ("s2", "127.0.0.12"), ("s3", "127.0.0.13")] {
            let mut server = node(name, address);
            server.meta = Some(strings(&[("consul-network-segment", "")]));
            catalog = catalog.with(server, service("consul", "consul", &[], "", 8300));
        }
        let mut n1 = node("n1", "10.0.0.1");
        n1.tagged_addresses = Some(strings(&[("lan", "10.0.0.1"), ("wan", "198.51.100.1")]));
        n1.meta = Some(strings(&[
            ("instance_type", "t2.medium"),
            ("rfc1035-txt", "v=spf1 -all"),
            ("zone", "a"),
        ]));
        let mut db1 = service("db1", "db", &["primary", "Mixed"], "", 5432);
        db1.weights = weights;
        let mut catalog = catalog
            .with(n1, db1)
            .with(
                node("n2", "10.0.0.2"),
                service("db2", "db", &["replica"], "192.168.1.2", 5433),
            )
            .with(
                node("n3", "10.0.0.3"),
                service("db3", "db", &["ext"], "db.example.com", 5434),
            )
            .with(node("n4", "2001:db8::4"), service("v6", "v6svc", &[], "", 80))
            .with(node("n5", "10.0.0.5"), service("v6b", "v6svc", &[], "2001:db8::55", 81))
            .with(
                node("host.example.com-n6", "host.example.com"),
                service("cn", "cnsvc", &[], "", 82),
            );
        let n7 = catalog.add_node(node("n7", "10.0.0.7"));
        catalog.add(&n7, service("sick", "sick", &[], "", 83), CheckStatus::Critical);
        let mut meh = service("meh", "db", &["warn"], "", 5439);
        meh.weights = weights;
        catalog.add(&n7, meh, CheckStatus::Warning);
        let n8 = catalog.add_node(node("n8", "10.0.0.8"));
        catalog.add(&n8, service("u", "under_score", &["v_1"], "", 84), CheckStatus::Passing);
        let mut wan = service("wan", "wansvc", &[], "10.1.1.8", 85);
        for (kind, address, port) in [
            ("lan", "10.1.1.8", 85),
            ("wan", "203.0.113.8", 8500),
            ("lan_ipv4", "10.1.1.9", 86),
            ("virtual", "240.0.0.1", 1),
        ] {
            let address = ServiceAddress {
                address: address.to_owned(),
                port,
            };
            wan.tagged_addresses.insert(kind.to_owned(), address);
        }
        catalog.add(&n8, wan, CheckStatus::Passing);
        let mut catalog = catalog
            .with(node("node.dot", "10.0.0.9"), service("dot", "dot.svc", &[], "", 86))
            .with(node("UPPER", "10.0.0.10"), service("Up", "UpSvc", &["BIG"], "", 87))
            .with(
                node("n11", "10.0.0.11"),
                service("chain", "chain", &[], "db.service.consul", 88),
            )
            .with(
                node("n12", "10.0.0.12"),
                service("loop", "loop", &[], "loop.service.consul", 89),
            )
            .with(
                node("n13", "10.0.0.13"),
                service("cache-a", "cache-a", &[], "10.0.0.9", 90),
            );
        catalog.add_node(node("chn", "n1.node.consul"));
        let many1 = catalog.add_node(node("many1", "5.5.5.5"));
        for port in [1, 2] {
            catalog.add(
                &many1,
                service(&format!("multi{port}"), "multi", &[], "", port),
                CheckStatus::Passing,
            );
        }
        for number in 1..=40 {
            catalog = catalog.with(
                node(&format!("m{number}"), &format!("10.2.0.{number}")),
                service("many", "many", &["t"], "", 7000 + number),
            );
        }
        catalog
    }
}
