//! The leader's reconciliation: members of the pool against nodes of the catalog (Consul `leader_registrator_v1.go`).

use crate::local::Catalog;
use crate::{CONSUL_SERVICE_ID, Change, SERF_HEALTH_ID};
use quorate_types::{Check, CheckStatus, Deregistration, Member, MemberStatus, NodeId, Registration, Service};
use std::collections::BTreeMap;

/// What makes the catalog say of one member what the pool says. `catalog` is its node of that name, if there is one;
/// `me` is the leader itself, which it never deregisters.
pub fn member(member: &Member, datacenter: &str, me: NodeId, catalog: Option<Catalog<'_>>) -> Vec<Change> {
    match member.status {
        MemberStatus::Alive | MemberStatus::Leaving => alive(member, datacenter, catalog),
        MemberStatus::Failed => failed(member, datacenter, catalog),
        MemberStatus::Left => left(member, me, catalog),
    }
}

/// Whether a node whom the pool does not know is one that it should know: it has serfHealth, and is not the leader.
pub fn is_missing(catalog: Catalog<'_>, me: NodeId) -> bool {
    catalog.checks.iter().any(|check| check.check_id == SERF_HEALTH_ID) && catalog.node.id != me
}

/// A node that has been missing for longer than a member could take to be heard of: as one that failed. Consul
/// deregisters it at once; a fresh leader that has not heard of everyone yet would then drop living nodes.
pub fn missing(catalog: Catalog<'_>) -> Option<Change> {
    let is_critical = |check: &Check| check.check_id == SERF_HEALTH_ID && check.status == CheckStatus::Critical;
    if catalog.checks.iter().any(|check| is_critical(check)) {
        return None;
    }
    let node = catalog.node;
    Some(Change::Register(Box::new(Registration {
        node_id: node.id,
        node: node.name.clone(),
        address: node.address.clone(),
        datacenter: node.datacenter.clone(),
        checks: vec![serf_health(&node.name, CheckStatus::Critical, FAILED_OUTPUT)],
        skip_node_update: true,
        ..Registration::default()
    })))
}

/// A node that the pool has forgotten, or that has been missing for as long as it takes to be forgotten.
pub fn reaped(catalog: Catalog<'_>) -> Change {
    deregister(&catalog.node.name, catalog.node.id)
}

fn alive(member: &Member, datacenter: &str, catalog: Option<Catalog<'_>>) -> Vec<Change> {
    let mut changes = Vec::new();
    let replaced = catalog.is_some_and(|catalog| catalog.node.id != NodeId::default() && catalog.node.id != member.id);
    if let Some(catalog) = catalog
        && replaced
    {
        // The pool lets a name go to another id only once its holder failed or left: the old node is gone.
        changes.push(deregister(&catalog.node.name, catalog.node.id));
    }
    let service = consul_service(member);
    if let Some(catalog) = catalog
        && !replaced
        && service.is_none()
        && catalog.services.iter().any(|service| service.id == CONSUL_SERVICE_ID)
    {
        // It came back as a client.
        changes.push(Change::Deregister(Deregistration {
            node: catalog.node.name.clone(),
            service_id: CONSUL_SERVICE_ID.to_owned(),
            only_node_id: Some(member.id.0),
            ..Deregistration::default()
        }));
    }
    let up_to_date = catalog.is_some_and(|catalog| {
        let health_is = |check: &Check| {
            check.check_id == SERF_HEALTH_ID && check.status == CheckStatus::Passing && check.output == ALIVE_OUTPUT
        };
        let service_is = |wanted: &Service| {
            catalog
                .services
                .iter()
                .any(|service| service.id == wanted.id && service.port == wanted.port && service.meta == wanted.meta)
        };
        !replaced
            && catalog.node.id == member.id
            && catalog.checks.iter().any(|check| health_is(check))
            && service.as_ref().is_none_or(service_is)
    });
    if !up_to_date {
        changes.push(Change::Register(Box::new(Registration {
            service,
            checks: vec![serf_health(&member.name, CheckStatus::Passing, ALIVE_OUTPUT)],
            ..registration(member, datacenter)
        })));
    }
    changes
}

fn failed(member: &Member, datacenter: &str, catalog: Option<Catalog<'_>>) -> Vec<Change> {
    let Some(catalog) = catalog.filter(|catalog| catalog.node.id == member.id) else {
        // Never registered, or its name is another node's now.
        return Vec::new();
    };
    let is_critical = |check: &Check| check.check_id == SERF_HEALTH_ID && check.status == CheckStatus::Critical;
    if catalog.checks.iter().any(|check| is_critical(check)) {
        return Vec::new();
    }
    vec![Change::Register(Box::new(Registration {
        checks: vec![serf_health(&member.name, CheckStatus::Critical, FAILED_OUTPUT)],
        ..registration(member, datacenter)
    }))]
}

fn left(member: &Member, me: NodeId, catalog: Option<Catalog<'_>>) -> Vec<Change> {
    catalog
        .filter(|catalog| catalog.node.id == member.id && member.id != me)
        .map(|catalog| deregister(&catalog.node.name, member.id))
        .into_iter()
        .collect()
}

const ALIVE_OUTPUT: &str = "Agent alive and reachable";
const FAILED_OUTPUT: &str = "Agent not live or unreachable";

fn serf_health(node: &str, status: CheckStatus, output: &str) -> Check {
    Check {
        node: node.to_owned(),
        check_id: SERF_HEALTH_ID.to_owned(),
        name: "Serf Health Status".to_owned(),
        status,
        output: output.to_owned(),
        ..Check::default()
    }
}

fn registration(member: &Member, datacenter: &str) -> Registration {
    Registration {
        node_id: member.id,
        node: member.name.clone(),
        address: member.address.ip().to_string(),
        datacenter: datacenter.to_owned(),
        // What the agent says of its node (metadata, tagged addresses) stays.
        skip_node_update: true,
        ..Registration::default()
    }
}

fn deregister(name: &str, id: NodeId) -> Change {
    Change::Deregister(Deregistration {
        node: name.to_owned(),
        only_node_id: Some(id.0),
        ..Deregistration::default()
    })
}

/// The `consul` service of a server, with the metadata Consul 1.8.7 gives it.
fn consul_service(member: &Member) -> Option<Service> {
    let port = member.rpc_address().filter(|_| member.is_server())?.port();
    let tag = |name: &str, default: &str| member.tags.get(name).map_or_else(|| default.to_owned(), String::clone);
    let build = tag("build", "");
    let meta = BTreeMap::from([
        ("non_voter".to_owned(), "false".to_owned()),
        ("read_replica".to_owned(), "false".to_owned()),
        ("raft_version".to_owned(), tag("raft_vsn", "3")),
        ("serf_protocol_current".to_owned(), tag("vsn", "2")),
        ("serf_protocol_max".to_owned(), "5".to_owned()),
        ("serf_protocol_min".to_owned(), "1".to_owned()),
        (
            "version".to_owned(),
            build.split(':').next().unwrap_or_default().to_owned(),
        ),
    ]);
    Some(Service {
        id: CONSUL_SERVICE_ID.to_owned(),
        name: CONSUL_SERVICE_ID.to_owned(),
        port: i64::from(port),
        meta,
        ..Service::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use quorate_types::{Node, Uuid};
    use std::sync::Arc;

    fn id(n: u8) -> NodeId {
        NodeId(Uuid::from_random_bytes([n; 16]))
    }

    fn server(status: MemberStatus) -> Member {
        let tags = [
            ("role", "consul"),
            ("port", "8300"),
            ("dc", "dc1"),
            ("build", "1.20.0:"),
        ];
        Member {
            id: id(1),
            name: "s1".to_owned(),
            address: "127.0.0.1:8301".parse().unwrap(),
            tags: tags
                .into_iter()
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .collect(),
            status,
        }
    }

    fn view(changes: &[Change]) -> (Node, Vec<Arc<Service>>, Vec<Arc<Check>>) {
        let Some(Change::Register(registration)) = changes.last() else {
            panic!("a registration, not {changes:?}");
        };
        let node = Node {
            id: registration.node_id,
            name: registration.node.clone(),
            ..Node::default()
        };
        let services = registration.service.iter().cloned().map(Arc::new).collect();
        (
            node,
            services,
            registration.checks.iter().cloned().map(Arc::new).collect(),
        )
    }

    #[test]
    fn an_alive_server_is_registered_once_with_health_and_service() {
        let changes = member(&server(MemberStatus::Alive), "dc1", id(9), None);
        let (node, services, checks) = view(&changes);
        assert_eq!(services[0].port, 8300);
        assert_eq!(services[0].meta["version"], "1.20.0");
        assert_eq!(checks[0].status, CheckStatus::Passing);
        let catalog = Catalog {
            node: &node,
            services: &services,
            checks: &checks,
        };
        assert!(member(&server(MemberStatus::Alive), "dc1", id(9), Some(catalog)).is_empty());
        let failed = member(&server(MemberStatus::Failed), "dc1", id(9), Some(catalog));
        assert_eq!(view(&failed).2[0].status, CheckStatus::Critical);
        let left = member(&server(MemberStatus::Left), "dc1", id(9), Some(catalog));
        assert!(matches!(&left[..], [Change::Deregister(gone)] if gone.node == "s1"));
        assert!(is_missing(catalog, id(9)));
        assert_eq!(view(&[missing(catalog).unwrap()]).2[0].status, CheckStatus::Critical);
        assert!(matches!(reaped(catalog), Change::Deregister(gone) if gone.node == "s1"));
    }

    #[test]
    fn the_leader_never_deregisters_itself_nor_an_external_node() {
        let changes = member(&server(MemberStatus::Alive), "dc1", id(1), None);
        let (node, services, checks) = view(&changes);
        let catalog = Catalog {
            node: &node,
            services: &services,
            checks: &checks,
        };
        assert!(member(&server(MemberStatus::Left), "dc1", id(1), Some(catalog)).is_empty());
        assert!(!is_missing(catalog, id(1)));
        let external = Catalog { checks: &[], ..catalog };
        assert!(!is_missing(external, id(9)));
    }

    #[test]
    fn a_server_that_comes_back_as_a_client_loses_the_servers_service() {
        let (node, services, checks) = view(&member(&server(MemberStatus::Alive), "dc1", id(9), None));
        let mut client = server(MemberStatus::Alive);
        client.tags.insert("role".to_owned(), "node".to_owned());
        let catalog = Catalog {
            node: &node,
            services: &services,
            checks: &checks,
        };
        let changes = member(&client, "dc1", id(9), Some(catalog));
        assert!(matches!(&changes[..], [Change::Deregister(gone)] if gone.service_id == CONSUL_SERVICE_ID));
    }

    #[test]
    fn a_name_taken_over_by_another_id_gets_a_node_of_its_own() {
        let old = Node {
            id: id(2),
            name: "s1".to_owned(),
            ..Node::default()
        };
        let catalog = Catalog {
            node: &old,
            services: &[],
            checks: &[],
        };
        let changes = member(&server(MemberStatus::Alive), "dc1", id(9), Some(catalog));
        assert!(matches!(&changes[0], Change::Deregister(gone) if gone.only_node_id == Some(id(2).0)));
        assert!(matches!(&changes[1], Change::Register(new) if new.node_id == id(1)));
        assert!(member(&server(MemberStatus::Failed), "dc1", id(9), Some(catalog)).is_empty());
    }
}
