//! Transactions (http-api section 9).

use super::*;
use quorate_store::{
    CatalogVerb, CheckOperation, KvOperation, KvVerb, NodeOperation, Operation, OperationResult, ServiceOperation,
    SessionCommand, TransactionReply,
};
use quorate_types::{Session, limits};
use std::time::Duration;

fn kv(verb: KvVerb, key: &str, value: &str, index: u64) -> Operation {
    Operation::Kv(KvOperation {
        verb,
        key: key.into(),
        value: value.into(),
        index: ModifyIndex(index),
        ..KvOperation::default()
    })
}
fn kv_with(verb: KvVerb, key: &str, session: &str) -> Operation {
    Operation::Kv(KvOperation {
        verb,
        key: key.into(),
        session: session.into(),
        ..KvOperation::default()
    })
}
fn node_operation(verb: CatalogVerb, name: &str, modify_index: u64) -> Operation {
    let node = Node {
        name: name.into(),
        address: "10.9.9.9".into(),
        modify_index: ModifyIndex(modify_index),
        ..Node::default()
    };
    Operation::Node(NodeOperation { verb, node })
}
fn service_operation(verb: CatalogVerb, node: &str, id: &str, name: &str, modify_index: u64) -> Operation {
    let service = Box::new(Service {
        modify_index: ModifyIndex(modify_index),
        ..service(id, name, &[])
    });
    let node = node.to_owned();
    Operation::Service(ServiceOperation { verb, node, service })
}
fn check_operation(verb: CatalogVerb, node: &str, id: &str, service_id: &str, modify_index: u64) -> Operation {
    let check = Box::new(Check {
        node: node.into(),
        modify_index: ModifyIndex(modify_index),
        ..check(id, service_id, CheckStatus::Passing)
    });
    Operation::Check(CheckOperation { verb, check })
}

impl Bench {
    #[track_caller]
    fn transact(&mut self, operations: Vec<Operation>) -> (TransactionReply, Vec<Topic>) {
        let before: Vec<Record> = self.store.records().skip(1).collect();
        let applied = self.apply(Command::Transaction(operations));
        let Outcome::Transaction(reply) = applied.outcome else {
            panic!("{:?}", applied.outcome)
        };
        if !reply.is_done() {
            assert_eq!(reply.results, vec![], "errors without results");
            assert_eq!(applied.touched, vec![], "nothing happened, so nothing is touched");
            assert_eq!(self.store.records().skip(1).collect::<Vec<_>>(), before);
        }
        (reply, applied.touched)
    }
    #[track_caller]
    fn yields(&mut self, operations: Vec<Operation>) -> Vec<OperationResult> {
        let (reply, _) = self.transact(operations);
        assert_eq!(reply.errors, vec![]);
        reply.results
    }
    /// Position and text of each fault.
    #[track_caller]
    fn faults(&mut self, operations: Vec<Operation>) -> Vec<(u64, String)> {
        let (reply, _) = self.transact(operations);
        let faults = reply
            .errors
            .into_iter()
            .map(|error| (error.position, error.fault.to_string()));
        faults.collect()
    }
    #[track_caller]
    fn fault(&mut self, operation: Operation) -> String {
        let faults = self.faults(vec![operation]);
        assert_eq!(faults.len(), 1);
        faults[0].1.clone()
    }
    fn with_session() -> (Self, String) {
        let mut bench = Self::default();
        bench.done(register(node("n")));
        let session = Session {
            id: id(7).0,
            node: "n".into(),
            lock_delay: Duration::from_secs(15),
            ..Session::default()
        };
        bench.done(Command::Session(SessionCommand::Create(session)));
        (bench, id(7).to_string())
    }
}

fn pairs(results: &[OperationResult]) -> Vec<(&str, &[u8], u64)> {
    fn pair(result: &OperationResult) -> (&str, &[u8], u64) {
        match result {
            OperationResult::Kv(pair) => (&pair.key, &pair.value, pair.modify_index.0),
            other => panic!("{other:?}"),
        }
    }
    results.iter().map(pair).collect()
}

#[test]
fn operations_see_what_those_before_them_did_and_share_one_index() {
    let mut bench = Bench::default();
    let results = bench.yields(vec![
        kv(KvVerb::Set, "t/a", "1", 0),
        kv(KvVerb::Get, "t/a", "", 0),
        kv(KvVerb::GetTree, "t/", "", 0),
        kv(KvVerb::CheckNotExists, "t/zz", "", 0),
        kv(KvVerb::GetOrEmpty, "t/zz", "", 0),
    ]);
    let seen: [(&str, &[u8], u64); 4] = [("t/a", b"", 1), ("t/a", b"1", 1), ("t/a", b"1", 1), ("t/zz", b"", 0)];
    assert_eq!(pairs(&results), seen);
    let results = bench.yields(vec![
        kv(KvVerb::CheckIndex, "t/a", "", 1),
        kv(KvVerb::Set, "t/a", "1", 0),
        kv(KvVerb::Cas, "t/b", "2", 0),
        kv(KvVerb::Delete, "t/none", "", 0),
        kv(KvVerb::DeleteCas, "t/b", "", 2),
    ]);
    let seen: [(&str, &[u8], u64); 3] = [("t/a", b"", 1), ("t/a", b"", 1), ("t/b", b"", 2)];
    assert_eq!(pairs(&results), seen, "a write that changes nothing moves no index");
    let results = bench.yields(vec![
        kv(KvVerb::DeleteTree, "t/", "", 0),
        kv(KvVerb::GetTree, "", "", 0),
    ]);
    assert_eq!(results, vec![]);
    assert_eq!(bench.yields(vec![]), vec![]);
}

#[test]
fn one_failure_undoes_all_and_every_failure_is_told() {
    let mut bench = Bench::default();
    bench.done(set("t/a", "1"));
    let faults = bench.faults(vec![
        kv(KvVerb::Set, "t/b", "1", 0),
        kv(KvVerb::Cas, "t/a", "1", 9),
        kv(KvVerb::CheckIndex, "t/a", "", 9),
        kv(KvVerb::CheckIndex, "t/b", "", 1),
        kv(KvVerb::Get, "t/nope", "", 0),
        kv(KvVerb::DeleteCas, "t/a", "", 9),
        kv(KvVerb::CheckNotExists, "t/a", "", 0),
        kv(KvVerb::CheckIndex, "t/nope", "", 1),
        kv_with(KvVerb::CheckSession, "t/nope", "x"),
        kv_with(KvVerb::CheckSession, "t/a", "x"),
        kv(KvVerb::Unknown("bogus".into()), "t/a", "", 0),
    ]);
    let texts = [
        (1, "failed to set key \"t/a\", index is stale"),
        (2, "failed index check for key \"t/a\", current modify index 1 != 9"),
        (3, "failed index check for key \"t/b\", current modify index 2 != 1"),
        (4, "key \"t/nope\" doesn't exist"),
        (5, "failed to delete key \"t/a\", index is stale"),
        (6, "key \"t/a\" exists"),
        (7, "failed to check index, key \"t/nope\" doesn't exist"),
        (8, "failed to check session, key \"t/nope\" doesn't exist"),
        (9, "failed session check for key \"t/a\", current session \"\" != \"x\""),
        (10, "unknown KV verb \"bogus\""),
    ];
    assert_eq!(faults, texts.map(|(position, text)| (position, text.to_owned())));
    assert!(bench.pair("t/b").is_none());
}

#[test]
fn what_could_be_refused_unseen_is_told_before_anything_is_tried() {
    let mut bench = Bench::default();
    let faults = bench.faults(vec![
        kv(KvVerb::Get, "nope", "", 0),
        kv(KvVerb::Set, "", "1", 0),
        node_operation(CatalogVerb::Set, "", 0),
        service_operation(CatalogVerb::Set, "n", "s", "", 0),
        check_operation(CatalogVerb::Set, "n", "", "", 0),
    ]);
    let texts = [
        (1, "Must provide key"),
        (2, "Must provide node"),
        (3, "Must provide service name with ID"),
        (4, "Must provide check ID or name"),
    ];
    // A check's name stands for its id.
    assert_eq!(
        faults[..3],
        texts.map(|(position, text)| (position, text.to_owned()))[..3]
    );
}

#[test]
fn a_lock_is_taken_and_given_back_inside_a_transaction() {
    let (mut bench, session) = Bench::with_session();
    let results = bench.yields(vec![
        kv_with(KvVerb::Lock, "k", &session),
        kv_with(KvVerb::CheckSession, "k", &session),
        kv_with(KvVerb::Lock, "k", &session),
        kv_with(KvVerb::Unlock, "k", &session),
        kv_with(KvVerb::Lock, "k", &session),
    ]);
    let counts: Vec<(bool, u64)> = results
        .iter()
        .map(|result| match result {
            OperationResult::Kv(pair) => (pair.session.is_some(), pair.lock_index),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(counts, [(true, 1), (true, 1), (true, 1), (false, 1), (true, 2)]);
    let other = id(8).to_string();
    for (operation, text) in [
        (kv_with(KvVerb::Lock, "k", ""), "missing session".to_owned()),
        (
            kv_with(KvVerb::Lock, "k", &other),
            format!("invalid session \"{other}\""),
        ),
        (
            kv_with(KvVerb::Lock, "k", "x"),
            "failed session lookup: index error: UUID must be 36 characters".to_owned(),
        ),
        (
            kv_with(KvVerb::Unlock, "k", &other),
            "failed to unlock key \"k\", lock isn't held, or is held by another session".to_owned(),
        ),
        (
            kv_with(KvVerb::Unlock, "none", &session),
            "failed to unlock key \"none\", lock isn't held, or is held by another session".to_owned(),
        ),
        (kv_with(KvVerb::Unlock, "k", ""), "missing session".to_owned()),
    ] {
        assert_eq!(bench.fault(operation), text);
    }
    let second = Session {
        id: id(8).0,
        node: "n".into(),
        ..Session::default()
    };
    bench.done(Command::Session(SessionCommand::Create(second)));
    let held = bench.fault(kv_with(KvVerb::Lock, "k", &other));
    assert_eq!(held, "failed to lock key \"k\", lock is already held");
    bench.done(Command::Session(SessionCommand::Destroy { id: id(7).0 }));
    let delayed = bench.fault(kv_with(KvVerb::Lock, "k", &other));
    assert_eq!(delayed, "failed to lock key \"k\" due to lock delay");
}

#[test]
fn nodes_services_and_checks_are_set_read_and_deleted_together() {
    let mut bench = Bench::default();
    let results = bench.yields(vec![
        node_operation(CatalogVerb::Set, "ext1", 0),
        service_operation(CatalogVerb::Set, "ext1", "es", "esvc", 0),
        check_operation(CatalogVerb::Set, "ext1", "ck", "es", 0),
        node_operation(CatalogVerb::Get, "EXT1", 0),
        service_operation(CatalogVerb::Get, "ext1", "es", "", 0),
        check_operation(CatalogVerb::Get, "ext1", "ck", "", 0),
    ]);
    assert_eq!(results.len(), 6);
    let (OperationResult::Check(set), OperationResult::Check(read)) = (&results[2], &results[5]) else {
        panic!("{results:?}")
    };
    assert_eq!(set, read);
    assert_eq!((set.service_name.as_str(), set.modify_index.0), ("esvc", 1));
    assert_eq!(bench.instances("esvc", &[]).len(), 1);
    let results = bench.yields(vec![
        service_operation(CatalogVerb::DeleteCas, "ext1", "es", "", 1),
        node_operation(CatalogVerb::Cas, "ext1", 1),
        node_operation(CatalogVerb::Delete, "ext1", 0),
        node_operation(CatalogVerb::Delete, "ext1", 0),
        check_operation(CatalogVerb::Delete, "ext1", "ck", "", 0),
    ]);
    assert_eq!(results.len(), 1, "a deletion yields nothing");
    assert!(bench.node("ext1").is_none());
}

#[test]
fn operations_on_the_catalog_fail_with_consuls_words() {
    let mut bench = Bench::default();
    bench.done(register(node("n")));
    let mut unknown = |operation| bench.fault(operation);
    let verb = || CatalogVerb::Unknown("bogus".into());
    for (operation, text) in [
        (node_operation(CatalogVerb::Get, "x", 0), "node \"x\" doesn't exist"),
        (
            node_operation(CatalogVerb::Cas, "n", 9),
            "failed to set node \"n\", index is stale",
        ),
        (
            node_operation(CatalogVerb::DeleteCas, "n", 9),
            "failed to delete node \"n\", index is stale",
        ),
        (node_operation(verb(), "n", 0), "unknown Node verb \"bogus\""),
        (
            service_operation(CatalogVerb::Get, "n", "s", "", 0),
            "service \"s\" on node \"n\" doesn't exist",
        ),
        (
            service_operation(CatalogVerb::Cas, "n", "s", "s", 3),
            "failed to set service \"s\" on node \"n\", index is stale",
        ),
        (
            service_operation(CatalogVerb::DeleteCas, "n", "s", "s", 3),
            "failed to delete service \"s\" on node \"n\", index is stale",
        ),
        (
            service_operation(CatalogVerb::Set, "x", "s", "s", 0),
            "Missing node registration",
        ),
        (
            service_operation(verb(), "n", "s", "s", 0),
            "unknown Service verb \"bogus\"",
        ),
        (
            check_operation(CatalogVerb::Get, "n", "c", "", 0),
            "check \"c\" on node \"n\" doesn't exist",
        ),
        (
            check_operation(CatalogVerb::Cas, "n", "c", "", 3),
            "failed to set check \"c\" on node \"n\", index is stale",
        ),
        (
            check_operation(CatalogVerb::DeleteCas, "n", "c", "", 3),
            "failed to delete check \"c\" on node \"n\", index is stale",
        ),
        (
            check_operation(CatalogVerb::Set, "x", "c", "", 0),
            "Missing node registration",
        ),
        (
            check_operation(CatalogVerb::Set, "n", "c", "s", 0),
            "Missing service registration",
        ),
        (check_operation(verb(), "n", "c", "", 0), "unknown Check verb \"bogus\""),
    ] {
        assert_eq!(unknown(operation), text);
    }
}

#[test]
fn a_node_is_found_by_its_id_before_its_name() {
    let mut bench = Bench::default();
    bench.done(register(Registration {
        node_id: id(1),
        ..node("one")
    }));
    bench.done(register(node("two")));
    let by_id = Operation::Node(NodeOperation {
        verb: CatalogVerb::Delete,
        node: Node {
            id: id(1),
            name: "two".into(),
            ..Node::default()
        },
    });
    assert_eq!(bench.yields(vec![by_id]), vec![]);
    assert_eq!(bench.nodes(), ["two"]);
}

#[test]
fn a_check_that_turns_critical_in_a_transaction_ends_its_sessions_with_it() {
    let mut bench = Bench::default();
    bench.done(register(Registration {
        checks: vec![check("c", "", CheckStatus::Passing)],
        ..node("n")
    }));
    bench.done(Command::Session(SessionCommand::Create(Session {
        id: id(7).0,
        node: "n".into(),
        node_checks: vec!["c".into()],
        ..Session::default()
    })));
    let critical = || {
        Operation::Check(CheckOperation {
            verb: CatalogVerb::Set,
            check: Box::new(Check {
                node: "n".into(),
                ..check("c", "", CheckStatus::Critical)
            }),
        })
    };
    let holder = id(7).to_string();
    let faults = bench.faults(vec![critical(), kv_with(KvVerb::Lock, "k", &holder)]);
    assert_eq!(faults, vec![(1, format!("invalid session \"{holder}\""))]);
    let (reply, touched) = bench.transact(vec![kv_with(KvVerb::Lock, "k", &holder), critical()]);
    assert!(reply.is_done());
    assert_eq!(bench.pair("k").unwrap().session, None);
    assert!(touched.contains(&Topic::Sessions) && touched.contains(&Topic::Key("k".into())));
}

#[test]
fn a_transaction_beyond_the_limit_is_refused_and_one_at_it_is_not() {
    let mut bench = Bench::default();
    let operations = |count: usize| (0..count).map(|n| kv(KvVerb::Set, &format!("k{n}"), "v", 0)).collect();
    let max = limits::TRANSACTION_OPERATION_COUNT_MAX;
    let refused = bench.refused(Command::Transaction(operations(max + 1)));
    assert_eq!(refused, "Transaction contains too many operations (129 > 128)");
    assert_eq!(bench.yields(operations(max)).len(), max);
}

#[test]
fn a_transaction_that_is_read_answers_of_one_state_and_writes_nothing() {
    let mut bench = Bench::default();
    bench.done(set("a", "1"));
    let digest = bench.store.hash();
    let read = |bench: &Bench, operations: Vec<Operation>| {
        assert!(
            bench
                .store
                .topics(&Query::Transaction { operations: vec![] })
                .is_empty()
        );
        match bench.store.evaluate(&Query::Transaction { operations }).answer {
            Answer::Transaction(reply) => reply,
            other => panic!("{other:?}"),
        }
    };
    let reply = read(
        &bench,
        vec![kv(KvVerb::Get, "a", "", 0), kv(KvVerb::GetOrEmpty, "b", "", 0)],
    );
    assert_eq!(pairs(&reply.results)[0], ("a", b"1".as_slice(), 1));
    let reply = read(&bench, vec![kv(KvVerb::Get, "nope", "", 0)]);
    assert_eq!(reply.errors[0].fault.to_string(), "key \"nope\" doesn't exist");
    let reply = read(&bench, vec![kv(KvVerb::Set, "b", "1", 0)]);
    assert_eq!((reply.is_done(), reply.results.len()), (false, 0));
    assert_eq!(bench.store.hash(), digest);
}
