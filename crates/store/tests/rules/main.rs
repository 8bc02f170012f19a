//! The rules of the catalog, of the key/value table, of sessions and of transactions, one claim a test; the contract is the
//! oracle.

mod sessions;
mod transactions;

use quorate_store::{
    AddressOwner, Answer, Applied, Command, CommandError, KvCommand, Outcome, Query, Record, RecordError, StateHash,
    Store, Topic,
};
use quorate_types::{
    Check, CheckStatus, Deregistration, KvPair, LogIndex, ModifyIndex, Node, NodeId, Registration, Service, Uuid,
    WallTime,
};
use std::collections::BTreeMap;

/// A store that numbers its own commands and checks itself after each.
#[derive(Default)]
struct Bench {
    store: Store,
    index: u64,
}

impl Bench {
    #[track_caller]
    fn apply(&mut self, command: Command) -> Applied {
        self.index += 1;
        let applied = self.store.apply(LogIndex(self.index), &command);
        self.store.check();
        applied
    }
    #[track_caller]
    fn done(&mut self, command: Command) -> Vec<Topic> {
        let applied = self.apply(command);
        assert_eq!(applied.outcome, Outcome::Done);
        applied.touched
    }
    #[track_caller]
    fn unchanged(&mut self, command: Command) {
        assert_eq!(self.done(command), vec![], "nothing changed, so nothing is touched");
    }
    #[track_caller]
    fn refused(&mut self, command: Command) -> String {
        let before: Vec<Record> = self.store.records().skip(1).collect();
        let applied = self.apply(command);
        assert_eq!(applied.touched, vec![]);
        assert_eq!(self.store.records().skip(1).collect::<Vec<_>>(), before);
        match applied.outcome {
            Outcome::Refused(error) => error.to_string(),
            other => panic!("expected a refusal, got {other:?}"),
        }
    }
    fn index_of(&self, query: Query) -> u64 {
        self.store.evaluate(&query).index.0
    }
    fn nodes(&self) -> Vec<String> {
        match self.store.evaluate(&Query::Nodes { node_meta: vec![] }).answer {
            Answer::Nodes(nodes) => nodes.iter().map(|node| node.name.clone()).collect(),
            other => panic!("{other:?}"),
        }
    }
    fn node(&self, name: &str) -> Option<Node> {
        match self.store.evaluate(&Query::Node { node: name.into() }).answer {
            Answer::Node(view) => view.map(|view| (*view.node).clone()),
            other => panic!("{other:?}"),
        }
    }
    fn services_of(&self, name: &str) -> Vec<String> {
        match self.store.evaluate(&Query::Node { node: name.into() }).answer {
            Answer::Node(Some(view)) => view.services.iter().map(|service| service.id.clone()).collect(),
            other => panic!("{other:?}"),
        }
    }
    fn checks_of(&self, name: &str) -> Vec<Check> {
        match self.store.evaluate(&Query::NodeChecks { node: name.into() }).answer {
            Answer::Checks(checks) => checks.iter().map(|check| (**check).clone()).collect(),
            other => panic!("{other:?}"),
        }
    }
    /// Node and service id of each instance, and its status.
    fn instances(&self, service: &str, tags: &[&str]) -> Vec<(String, String, CheckStatus)> {
        let query = Query::Instances {
            service: service.into(),
            tags: tags.iter().map(|tag| (*tag).to_owned()).collect(),
            node_meta: vec![],
        };
        match self.store.evaluate(&query).answer {
            Answer::Instances(instances) => instances
                .iter()
                .map(|instance| {
                    (
                        instance.node.name.clone(),
                        instance.service.id.clone(),
                        instance.status(),
                    )
                })
                .collect(),
            other => panic!("{other:?}"),
        }
    }
    fn pair(&self, key: &str) -> Option<KvPair> {
        match self.store.evaluate(&Query::KvGet { key: key.into() }).answer {
            Answer::Kv(pair) => pair.map(|pair| (*pair).clone()),
            other => panic!("{other:?}"),
        }
    }
    fn keys(&self, prefix: &str, separator: &str) -> Vec<String> {
        let query = Query::KvKeys {
            prefix: prefix.into(),
            separator: separator.into(),
        };
        match self.store.evaluate(&query).answer {
            Answer::KvKeys(keys) => keys,
            other => panic!("{other:?}"),
        }
    }
    fn list_index(&self, prefix: &str) -> u64 {
        self.index_of(Query::KvList { prefix: prefix.into() })
    }
}

fn id(byte: u8) -> NodeId {
    NodeId(Uuid::from_random_bytes([byte; 16]))
}
fn node(name: &str) -> Registration {
    Registration {
        node: name.into(),
        address: "10.0.0.1".into(),
        datacenter: "dc1".into(),
        ..Registration::default()
    }
}
fn register(registration: Registration) -> Command {
    Command::Register(Box::new(registration))
}
fn service(id: &str, name: &str, tags: &[&str]) -> Service {
    Service {
        id: id.into(),
        name: name.into(),
        tags: tags.iter().map(|tag| (*tag).to_owned()).collect(),
        ..Service::default()
    }
}
fn check(id: &str, service_id: &str, status: CheckStatus) -> Check {
    Check {
        check_id: id.into(),
        service_id: service_id.into(),
        status,
        ..Check::default()
    }
}
fn on(name: &str, service: Service) -> Command {
    register(Registration {
        service: Some(service),
        ..node(name)
    })
}
fn deregister(node: &str, service_id: &str, check_id: &str) -> Command {
    Command::Deregister(Deregistration {
        node: node.into(),
        service_id: service_id.into(),
        check_id: check_id.into(),
        only_node_id: None,
    })
}
fn pair(key: &str, value: &str) -> KvPair {
    KvPair {
        key: key.into(),
        value: value.into(),
        ..KvPair::default()
    }
}
fn set(key: &str, value: &str) -> Command {
    Command::Kv(KvCommand::Set(pair(key, value)))
}
fn cas(key: &str, value: &str, expected: u64) -> Command {
    Command::Kv(KvCommand::Cas {
        pair: pair(key, value),
        expected: ModifyIndex(expected),
    })
}
fn delete(key: &str) -> Command {
    Command::Kv(KvCommand::Delete { key: key.into() })
}
fn delete_cas(key: &str, expected: u64) -> Command {
    Command::Kv(KvCommand::DeleteCas {
        key: key.into(),
        expected: ModifyIndex(expected),
    })
}
fn delete_tree(prefix: &str) -> Command {
    Command::Kv(KvCommand::DeleteTree { prefix: prefix.into() })
}
fn collect(up_to: u64) -> Command {
    Command::CollectTombstones {
        up_to: ModifyIndex(up_to),
    }
}
fn instances(service: &str) -> Query {
    Query::Instances {
        service: service.into(),
        tags: vec![],
        node_meta: vec![],
    }
}

#[test]
fn a_registration_lacking_what_it_needs_is_refused_with_consuls_words() {
    let mut bench = Bench::default();
    assert_eq!(bench.refused(register(Registration::default())), "Must provide node");
    let without_address = || Registration {
        address: String::new(),
        ..node("n")
    };
    let text = "Must provide address if SkipNodeUpdate is not set";
    assert_eq!(bench.refused(register(without_address())), text);
    let text = "Must provide service name with ID";
    assert_eq!(bench.refused(on("n", service("noname", "", &[]))), text);
    assert_eq!(bench.refused(deregister("", "", "")), "Must provide node");
    let skipping = Registration {
        skip_node_update: true,
        ..without_address()
    };
    bench.done(register(skipping));
    assert_eq!(bench.nodes(), ["n"], "a missing node is created all the same");
}

#[test]
fn a_check_of_an_unknown_service_undoes_its_whole_registration() {
    let mut bench = Bench::default();
    let registration = Registration {
        service: Some(service("", "redis", &[])),
        checks: vec![
            check("ok", "redis", CheckStatus::Passing),
            check("z", "nope", CheckStatus::Passing),
        ],
        ..node("ext2")
    };
    assert_eq!(
        bench.refused(register(registration)),
        "failed inserting check: Missing service registration on node \"ext2\""
    );
    assert!(bench.nodes().is_empty());
}

#[test]
fn a_check_must_have_an_id_or_a_name_and_be_of_the_registered_node() {
    let mut bench = Bench::default();
    let with = |check: Check| {
        register(Registration {
            checks: vec![check],
            ..node("n")
        })
    };
    let refused = bench.refused(with(Check::default()));
    assert_eq!(refused, CommandError::CheckIdMissing.to_string());
    let elsewhere = Check {
        node: "other".into(),
        ..check("c", "", CheckStatus::Passing)
    };
    let refused = bench.refused(with(elsewhere));
    assert_eq!(refused, "check node \"other\" does not match node \"n\"");
    bench.done(with(Check {
        name: "by name".into(),
        node: "N".into(),
        ..Check::default()
    }));
    let checks = bench.checks_of("n");
    assert_eq!((checks[0].check_id.as_str(), checks[0].node.as_str()), ("by name", "n"));
    assert_eq!(checks[0].status, CheckStatus::Critical);
}

#[test]
fn a_service_takes_its_name_as_id_and_lends_its_name_and_tags_to_its_checks() {
    let mut bench = Bench::default();
    let registration = Registration {
        service: Some(service("", "redis", &["primary"])),
        checks: vec![Check {
            service_name: "lies".into(),
            ..check("c", "redis", CheckStatus::Passing)
        }],
        ..node("n")
    };
    bench.done(register(registration));
    assert_eq!(bench.services_of("n"), ["redis"]);
    let checks = bench.checks_of("n");
    assert_eq!(checks[0].service_name, "redis");
    assert_eq!(checks[0].service_tags, ["primary"]);

    bench.done(on("n", service("redis", "redis", &["replica"])));
    let checks = bench.checks_of("n");
    assert_eq!(checks[0].service_tags, ["replica"], "they follow their service");
    assert_eq!((checks[0].create_index.0, checks[0].modify_index.0), (1, 2));
}

#[test]
fn registering_the_same_again_moves_no_index_and_wakes_nobody() {
    let mut bench = Bench::default();
    let registration = Registration {
        service: Some(service("web1", "web", &["a"])),
        checks: vec![
            check("c", "web1", CheckStatus::Passing),
            check("n", "", CheckStatus::Passing),
        ],
        node_id: id(1),
        ..node("n")
    };
    bench.done(register(registration.clone()));
    let before: Vec<Record> = bench.store.records().skip(1).collect();
    bench.unchanged(register(registration));
    assert_eq!(bench.store.records().skip(1).collect::<Vec<_>>(), before);
}

#[test]
fn a_registration_replaces_the_node_unless_told_to_skip_it() {
    let mut bench = Bench::default();
    let full = Registration {
        node_id: id(1),
        node_meta: Some(BTreeMap::from([("rack".into(), "1".into())])),
        ..node("n")
    };
    bench.done(register(full));
    bench.unchanged(register(Registration {
        skip_node_update: true,
        address: "10.9.9.9".into(),
        ..node("n")
    }));
    bench.done(register(node("n")));
    let node = bench.node("n").unwrap();
    assert_eq!(
        (node.id, node.meta),
        (NodeId::default(), None),
        "what was left out is gone"
    );
    assert_eq!((node.create_index.0, node.modify_index.0), (1, 3));
    let by_old_id = Query::Node {
        node: id(1).to_string(),
    };
    assert_eq!(bench.index_of(by_old_id), 1, "an id that was dropped finds nobody");
}

#[test]
fn the_same_id_under_a_new_name_renames_the_node_and_its_services_go() {
    let mut bench = Bench::default();
    let registration = Registration {
        node_id: id(1),
        service: Some(service("", "web", &[])),
        checks: vec![check("serfHealth", "", CheckStatus::Passing)],
        ..node("old")
    };
    bench.done(register(registration));
    let touched = bench.done(register(Registration {
        node_id: id(1),
        ..node("new")
    }));
    assert_eq!(bench.nodes(), ["new"]);
    assert!(bench.services_of("new").is_empty() && bench.checks_of("new").is_empty());
    assert_eq!(bench.node("new").unwrap().create_index.0, 1);
    for topic in [
        Topic::Nodes,
        Topic::Services,
        Topic::ServiceGone,
        Topic::node("old"),
        Topic::service("web"),
    ] {
        assert!(touched.contains(&topic), "{topic:?} in {touched:?}");
    }
}

#[test]
fn a_name_is_reserved_while_its_holder_has_an_id_and_is_alive() {
    let mut bench = Bench::default();
    let alive = Registration {
        node_id: id(1),
        checks: vec![check("serfHealth", "", CheckStatus::Passing)],
        ..node("s1")
    };
    let usurper = Registration {
        node_id: id(2),
        address: "10.0.0.2".into(),
        ..node("S1")
    };
    bench.done(register(alive.clone()));
    let text = format!(
        "failed inserting node: Error while renaming Node ID: \"{}\": Node name s1 is reserved by node {} with name s1 (10.0.0.1)",
        id(2),
        id(1)
    );
    assert_eq!(bench.refused(register(usurper.clone())), text);

    let failed = Registration {
        checks: vec![check("serfHealth", "", CheckStatus::Critical)],
        ..alive
    };
    bench.done(register(failed));
    bench.done(register(usurper));
    let node = bench.node("s1").unwrap();
    assert_eq!((node.id, node.name.as_str()), (id(2), "S1"));
    assert_eq!(
        bench.checks_of("s1")[0].node,
        "S1",
        "its checks are told of the new spelling"
    );
}

#[test]
fn a_holder_without_an_id_gives_its_name_to_one_with() {
    let mut bench = Bench::default();
    bench.done(register(Registration {
        checks: vec![check("serfHealth", "", CheckStatus::Passing)],
        ..node("n")
    }));
    bench.done(register(Registration {
        node_id: id(7),
        ..node("n")
    }));
    assert_eq!(bench.node(&id(7).to_string()).unwrap().name, "n");
}

#[test]
fn a_node_is_found_by_name_id_and_unambiguous_prefix_of_its_id() {
    let mut bench = Bench::default();
    for (name, uuid) in [
        ("a", "40e4a748-2192-161a-0510-9bf59fe950b5"),
        ("b", "40e4ffff-2192-161a-0510-9bf59fe950b5"),
    ] {
        bench.done(register(Registration {
            node_id: uuid.parse().unwrap(),
            ..node(name)
        }));
    }
    let found = |text: &str| bench.node(text).map(|node| node.name);
    assert_eq!(found("A").as_deref(), Some("a"));
    assert_eq!(found("40e4a748").as_deref(), Some("a"));
    assert_eq!(found("40E4FFFF-21").as_deref(), Some("b"));
    assert_eq!(found("40e4a748-2192-161a-0510-9bf59fe950b5").as_deref(), Some("a"));
    for nobody in [
        "40e4",
        "4",
        "",
        "41",
        "zz",
        "40e4a74é",
        "40e4a748-2192-161a-0510-9bf59fe950b5f",
    ] {
        assert_eq!(found(nobody), None, "{nobody}");
    }
}

#[test]
fn names_and_tags_compare_without_case_and_keep_theirs() {
    let mut bench = Bench::default();
    bench.done(on("B", service("1", "Web", &["Primary", "x"])));
    bench.done(on("a", service("1", "web", &["primary"])));
    let status = CheckStatus::Passing;
    let both = [
        ("a".to_owned(), "1".to_owned(), status),
        ("B".to_owned(), "1".to_owned(), status),
    ];
    assert_eq!(bench.instances("WEB", &["PRIMARY"]), both);
    assert_eq!(bench.instances("web", &["primary", "X"]), both[1..]);
    assert_eq!(bench.instances("web", &["y"]), []);
    bench.done(deregister("b", "1", ""));
    assert_eq!(bench.instances("Web", &[]), both[..1]);
}

#[test]
fn an_instance_is_as_healthy_as_the_worst_of_its_and_its_nodes_checks() {
    let mut bench = Bench::default();
    let with = |name: &str, checks: Vec<Check>| {
        register(Registration {
            service: Some(service("w1", "web", &[])),
            checks,
            ..node(name)
        })
    };
    use CheckStatus::{Critical, Passing, Warning};
    bench.done(with("n1", vec![check("own", "w1", Warning)]));
    bench.done(with("n2", vec![check("own", "w1", Passing)]));
    bench.done(on("n1", service("w2", "web", &[])));
    let status = |bench: &Bench| {
        bench
            .instances("web", &[])
            .iter()
            .map(|entry| entry.2)
            .collect::<Vec<_>>()
    };
    assert_eq!(status(&bench), [Warning, Passing, Passing]);
    bench.done(register(Registration {
        checks: vec![check("node", "", Critical)],
        ..node("n1")
    }));
    assert_eq!(status(&bench), [Critical, Critical, Passing]);
    bench.done(deregister("n1", "", "node"));
    assert_eq!(status(&bench), [Warning, Passing, Passing]);
}

#[test]
fn the_index_of_a_service_moves_only_with_what_it_shows() {
    let mut bench = Bench::default();
    bench.done(on("n1", service("", "web", &[])));
    bench.done(on("n2", service("", "db", &[])));
    assert_eq!(bench.index_of(instances("web")), 1);
    let touched = bench.done(register(Registration {
        checks: vec![check("node", "", CheckStatus::Passing)],
        ..node("n1")
    }));
    assert!(touched.contains(&Topic::service("web")) && !touched.contains(&Topic::service("db")));
    assert_eq!(
        (bench.index_of(instances("web")), bench.index_of(instances("db"))),
        (3, 2)
    );

    let touched = bench.done(deregister("n1", "", ""));
    assert!(touched.contains(&Topic::ServiceGone));
    assert_eq!(bench.index_of(instances("web")), 4);
    assert_eq!(
        bench.index_of(instances("never")),
        4,
        "a watch of nothing wakes when any service goes"
    );
    assert_eq!(bench.index_of(instances("db")), 2);
}

#[test]
fn a_service_id_that_changes_its_name_leaves_the_old_service() {
    let mut bench = Bench::default();
    bench.done(register(Registration {
        service: Some(service("1", "web", &[])),
        checks: vec![check("c", "1", CheckStatus::Passing)],
        ..node("n")
    }));
    let touched = bench.done(on("n", service("1", "api", &[])));
    assert!(touched.contains(&Topic::service("web")) && touched.contains(&Topic::service("api")));
    assert_eq!(bench.instances("web", &[]), []);
    assert_eq!(bench.instances("api", &[]).len(), 1);
    assert_eq!(bench.checks_of("n")[0].service_name, "api");
    assert_eq!(bench.index_of(instances("web")), 2, "it is gone");
}

#[test]
fn a_check_that_moves_to_another_service_touches_both() {
    let mut bench = Bench::default();
    bench.done(on("n", service("", "a", &[])));
    bench.done(on("n", service("", "b", &[])));
    let with = |service_id: &str| {
        register(Registration {
            checks: vec![check("c", service_id, CheckStatus::Critical)],
            ..node("n")
        })
    };
    bench.done(with("a"));
    let touched = bench.done(with("b"));
    assert!(touched.contains(&Topic::service("a")) && touched.contains(&Topic::service("b")));
    assert_eq!(bench.instances("a", &[])[0].2, CheckStatus::Passing);
    assert_eq!(bench.instances("b", &[])[0].2, CheckStatus::Critical);
}

#[test]
fn deregistering_takes_what_it_names_with_its_checks_and_nothing_else() {
    let mut bench = Bench::default();
    for name in ["n", "n2"] {
        bench.done(register(Registration {
            service: Some(service("", "web", &[])),
            checks: vec![
                check("c1", "web", CheckStatus::Passing),
                check("c2", "", CheckStatus::Passing),
            ],
            ..node(name)
        }));
    }
    bench.unchanged(deregister("nope", "", ""));
    bench.unchanged(deregister("n", "nope", ""));
    bench.unchanged(deregister("n", "", "nope"));
    bench.done(deregister("N", "", "c2"));
    assert_eq!(bench.checks_of("n").len(), 1);
    bench.done(deregister("n", "web", "c2"));
    assert!(bench.services_of("n").is_empty() && bench.checks_of("n").is_empty());
    bench.done(deregister("n2", "", ""));
    assert_eq!(bench.nodes(), ["n"]);
    assert!(bench.checks_of("n2").is_empty());
}

#[test]
fn a_deregistration_for_one_id_spares_the_node_that_took_the_name() {
    let mut bench = Bench::default();
    bench.done(register(Registration {
        node_id: id(2),
        ..node("n")
    }));
    let only = |wanted: NodeId| {
        Command::Deregister(Deregistration {
            node: "n".into(),
            only_node_id: Some(wanted.0),
            ..Deregistration::default()
        })
    };
    bench.unchanged(only(id(1)));
    bench.done(only(id(2)));
    assert!(bench.nodes().is_empty());
}

#[test]
fn metadata_of_nodes_filters_and_moves_the_index_of_what_it_filters() {
    let mut bench = Bench::default();
    let rack = |value: &str| Registration {
        node_meta: Some(BTreeMap::from([("rack".into(), value.into())])),
        service: Some(service("", "web", &["a"])),
        checks: vec![check("c", "web", CheckStatus::Critical)],
        ..node("n")
    };
    bench.done(register(rack("1")));
    let node_meta = vec![("rack".to_owned(), "2".to_owned())];
    let queries = [
        Query::Nodes {
            node_meta: node_meta.clone(),
        },
        Query::Services {
            node_meta: node_meta.clone(),
        },
        Query::Instances {
            service: "web".into(),
            tags: vec![],
            node_meta: node_meta.clone(),
        },
        Query::ServiceChecks {
            service: "web".into(),
            node_meta: node_meta.clone(),
        },
        Query::ChecksInState {
            status: None,
            node_meta,
        },
    ];
    let before = queries.each_ref().map(|query| bench.store.evaluate(query));
    bench.done(register(rack("2")));
    for (query, before) in queries.iter().zip(before) {
        let after = bench.store.evaluate(query);
        assert_ne!(after.answer, before.answer, "{query:?}");
        assert_eq!(after.index.0, 2, "{query:?}");
    }
}

#[test]
fn an_address_belongs_to_a_node_before_a_service() {
    let mut bench = Bench::default();
    let at = |name: &str, address: &str| Service {
        address: address.into(),
        ..service("", name, &[])
    };
    let owner = |bench: &Bench, address: &str| {
        let address = address.parse().unwrap();
        match bench.store.evaluate(&Query::Address { address }).answer {
            Answer::Address(Some(AddressOwner::Node(node))) => node.name.clone(),
            Answer::Address(Some(AddressOwner::Service(service))) => service.id.clone(),
            Answer::Address(None) => "nobody".to_owned(),
            other => panic!("{other:?}"),
        }
    };
    bench.done(on("n1", at("web", "10.0.0.7")));
    assert_eq!(owner(&bench, "10.0.0.1"), "n1");
    assert_eq!(owner(&bench, "10.0.0.7"), "web");
    assert_eq!(owner(&bench, "10.0.0.8"), "nobody");
    bench.done(register(Registration {
        address: "10.0.0.7".into(),
        ..node("n2")
    }));
    assert_eq!(owner(&bench, "10.0.0.7"), "n2");
    bench.done(deregister("n2", "", ""));
    bench.done(on("n1", at("web", "fd00::1")));
    assert_eq!(owner(&bench, "10.0.0.7"), "nobody");
    assert_eq!(owner(&bench, "fd00:0::1"), "web");
}

#[test]
fn a_write_that_changes_nothing_of_a_key_is_true_and_leaves_its_index() {
    let mut bench = Bench::default();
    assert_eq!(bench.done(set("foo", "bar")), [Topic::Key("foo".into())]);
    bench.unchanged(set("foo", "bar"));
    assert_eq!(bench.pair("foo").unwrap().modify_index.0, 1);
    let applied = bench.apply(cas("foo", "bar", 1));
    assert_eq!((applied.outcome, applied.touched), (Outcome::Decided(true), vec![]));
    let flagged = KvPair {
        flags: 42,
        ..pair("foo", "bar")
    };
    bench.done(Command::Kv(KvCommand::Set(flagged)));
    let stored = bench.pair("foo").unwrap();
    assert_eq!((stored.create_index.0, stored.modify_index.0, stored.flags), (1, 4, 42));
}

#[test]
fn conditional_changes_hold_only_at_the_index_they_expect() {
    let mut bench = Bench::default();
    let decided = |bench: &mut Bench, command| match bench.apply(command).outcome {
        Outcome::Decided(held) => held,
        other => panic!("{other:?}"),
    };
    assert!(
        !decided(&mut bench, cas("k", "1", 7)),
        "absent, but expected to be there"
    );
    assert!(decided(&mut bench, cas("k", "1", 0)));
    assert!(
        !decided(&mut bench, cas("k", "2", 0)),
        "present, but expected to be absent"
    );
    assert!(!decided(&mut bench, cas("k", "2", 1)));
    assert!(decided(&mut bench, cas("k", "2", 2)));
    assert_eq!(bench.pair("k").unwrap().value, b"2");
    assert!(!decided(&mut bench, delete_cas("k", 0)));
    assert!(!decided(&mut bench, delete_cas("k", 2)));
    assert!(decided(&mut bench, delete_cas("k", 5)));
    assert!(
        decided(&mut bench, delete_cas("k", 5)),
        "an absent key is as good as deleted"
    );
    assert_eq!(bench.pair("k"), None);
}

#[test]
fn an_empty_key_is_refused_but_an_empty_prefix_is_every_key() {
    let mut bench = Bench::default();
    for command in [set("", "x"), cas("", "x", 0), delete(""), delete_cas("", 0)] {
        assert_eq!(bench.refused(command), "Must provide key");
    }
    bench.done(set("a", "1"));
    bench.done(delete_tree(""));
    assert!(bench.keys("", "").is_empty());
}

#[test]
fn lists_of_keys_are_in_byte_order_and_cut_after_the_separator() {
    let mut bench = Bench::default();
    for key in ["a/b/c", "a/b/d", "a/e", "a/b"] {
        bench.done(set(key, "1"));
    }
    // http.jsonl, requests 46 to 48.
    assert_eq!(bench.keys("a", ""), ["a/b", "a/b/c", "a/b/d", "a/e"]);
    assert_eq!(bench.keys("a/", "/"), ["a/b", "a/b/", "a/e"]);
    assert_eq!(bench.keys("a", "/"), ["a/"]);
    assert_eq!(bench.keys("a/b/", "/"), ["a/b/c", "a/b/d"]);
    assert_eq!(bench.keys("none", "/"), Vec::<String>::new());
}

#[test]
fn the_indexes_of_keys_are_the_captured_ones() {
    let mut bench = Bench::default();
    assert_eq!(bench.index_of(Query::KvGet { key: "foo".into() }), 1);
    assert_eq!((bench.list_index(""), bench.list_index("x")), (1, 1));
    bench.index = 18;
    for key in ["a/b/c", "a/b/d", "a/e", "a/b"] {
        bench.done(set(key, "1"));
    }
    assert_eq!(bench.list_index("a/"), 22);
    assert_eq!(bench.list_index("none/"), 22, "nothing ever matched: the table's");
    bench.done(delete("a/e"));
    bench.unchanged(delete("a/nope"));
    assert_eq!(bench.list_index("a/"), 23);
    bench.index = 25;
    bench.done(delete_tree("a/b/"));
    assert_eq!(bench.list_index("a/"), 26);
    assert_eq!(bench.keys("a/", ""), ["a/b"]);
    bench.done(delete_tree(""));
    assert_eq!(bench.list_index(""), 27);
    bench.unchanged(delete_tree("a/"));
    bench.unchanged(delete_tree(""));
}

#[test]
fn a_list_below_a_deleted_tree_misses_no_deletion() {
    let mut bench = Bench::default();
    bench.done(set("a/b/1", "x"));
    bench.done(delete("a/b/1"));
    bench.done(set("a/b/2", "x"));
    assert_eq!(bench.list_index("a/b/"), 3);
    let watched = bench.store.topics(&Query::KvList { prefix: "a/b/".into() });
    assert_eq!(watched, [Topic::KeyPrefix("a/b/".into())]);
    let touched = bench.done(delete_tree("a/"));
    assert!(watched[0].covers(&touched[0]));
    assert_eq!(bench.list_index("a/b/"), 4, "not 2, the index of the older tombstone");
    bench.done(set("z", "x"));
    assert_eq!(bench.list_index("a/b/"), 4);
}

#[test]
fn collected_tombstones_may_take_the_index_of_a_list_back() {
    let mut bench = Bench::default();
    bench.done(set("a/1", "x"));
    bench.done(set("a/2", "x"));
    bench.done(delete("a/2"));
    bench.done(set("t/1", "x"));
    bench.done(delete_tree("t/"));
    bench.unchanged(collect(2));
    assert_eq!(bench.list_index("a/"), 3);
    assert_eq!(bench.done(collect(3)), [Topic::Key("a/2".into())]);
    assert_eq!((bench.list_index("a/"), bench.list_index("t/")), (1, 5));
    assert_eq!(bench.done(collect(100)), [Topic::KeyPrefix("t/".into())]);
    bench.unchanged(collect(100));
    assert_eq!(bench.list_index("t/"), 5, "nothing matches: the table's");
}

#[test]
fn a_batch_applies_in_order_at_one_index_and_fails_command_by_command() {
    let mut bench = Bench::default();
    let nested = Command::Batch(vec![Command::Barrier]);
    let applied = bench.apply(Command::Batch(vec![
        set("k", "1"),
        set("", "x"),
        cas("k", "2", 1),
        nested,
        Command::Barrier,
    ]));
    let outcomes = vec![
        Outcome::Done,
        Outcome::Refused(CommandError::KeyMissing),
        Outcome::Decided(true),
        Outcome::Refused(CommandError::BatchNested),
        Outcome::Done,
    ];
    assert_eq!(applied.outcome, Outcome::Batch(outcomes));
    assert_eq!(applied.touched, [Topic::Key("k".into())]);
    assert_eq!(bench.pair("k").unwrap().modify_index.0, 1);
}

#[test]
fn the_first_name_of_a_cluster_stays() {
    let mut bench = Bench::default();
    let name = |byte: u8| Command::NameCluster {
        id: id(byte).0,
        at: WallTime::from_nanos(u64::from(byte)),
    };
    assert_eq!(bench.store.cluster_id(), None);
    assert_eq!(bench.apply(name(1)).outcome, Outcome::Decided(true));
    assert_eq!(bench.apply(name(2)).outcome, Outcome::Decided(false));
    assert_eq!(bench.apply(name(1)).outcome, Outcome::Decided(true));
    assert_eq!(bench.store.cluster_id(), Some(id(1).0));
}

#[test]
fn the_rules_of_the_hash_are_the_ones_that_its_number_says() {
    let mut bench = Bench::default();
    bench.done(set("k", "v"));
    bench.done(on("n", service("", "web", &["a"])));
    // Servers of another build compare with this one: who changes what a state hashes to raises `StateHash::RULES`.
    assert_eq!((StateHash::RULES, bench.store.hash()), (1, 15_065_610_269_772_786_610));
}

#[test]
fn a_clone_keeps_its_answers_while_the_original_moves_on() {
    let mut bench = Bench::default();
    bench.done(set("k", "old"));
    bench.done(on("n", service("", "web", &[])));
    let reader = bench.store.clone();
    let digest = reader.hash();
    bench.done(set("k", "new"));
    bench.done(deregister("n", "", ""));
    assert_eq!(reader.hash(), digest);
    assert_ne!(bench.store.hash(), digest);
    let reader = Bench {
        store: reader,
        index: 2,
    };
    assert_eq!(reader.pair("k").unwrap().value, b"old");
    assert_eq!(reader.instances("web", &[]).len(), 1);
}

#[test]
fn records_that_are_no_state_are_refused() {
    let mut bench = Bench::default();
    bench.done(register(Registration {
        node_id: id(1),
        service: Some(service("", "web", &[])),
        checks: vec![check("c", "web", CheckStatus::Passing)],
        ..node("n")
    }));
    bench.done(set("k", "v"));
    let records: Vec<Record> = bench.store.records().collect();
    assert_eq!(Store::from_records(records.clone()).unwrap().hash(), bench.store.hash());

    let refused = |records: Vec<Record>| Store::from_records(records).unwrap_err();
    assert_eq!(refused(vec![]), RecordError::HeaderMissing);
    assert_eq!(refused(records[1..].to_vec()), RecordError::HeaderMissing);
    for position in 2..records.len() {
        let mut twice = records.clone();
        twice.push(records[position].clone());
        let again = RecordError::Misplaced {
            position: records.len() as u64,
        };
        assert_eq!(refused(twice), again, "{:?}", records[position]);
    }
    let mut twice = records.clone();
    twice.push(records[0].clone());
    let again = RecordError::HeaderAgain {
        position: records.len() as u64,
    };
    assert_eq!(refused(twice), again);
    // Without its node a service is misplaced; without its service a check, and without its index a service, contradict.
    for position in [2, 3, 5] {
        let mut missing = records.clone();
        missing.remove(position);
        refused(missing);
    }
    let mut future = records.clone();
    let Record::Header { last_log_index, .. } = &mut future[0] else {
        panic!("the header comes first")
    };
    *last_log_index = LogIndex(1);
    assert!(matches!(refused(future), RecordError::Contradiction { .. }));
}
