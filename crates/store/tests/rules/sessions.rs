//! Sessions, locks and lock-delays (http-api section 8, semantics section 5).

use super::*;
use quorate_store::{LockDelay, SessionChange, SessionCommand, SessionView};
use quorate_types::{Session, SessionBehavior, limits};
use std::time::Duration;

fn sid(byte: u8) -> Uuid {
    Uuid::from_random_bytes([byte; 16])
}

fn session(byte: u8, node: &str) -> Session {
    Session {
        id: sid(byte),
        node: node.into(),
        lock_delay: Duration::from_secs(15),
        ..Session::default()
    }
}

fn with_checks(byte: u8, node: &str, checks: &[&str]) -> Session {
    Session {
        node_checks: checks.iter().map(|check| (*check).to_owned()).collect(),
        ..session(byte, node)
    }
}

fn create(session: Session) -> Command {
    Command::Session(SessionCommand::Create(session))
}
fn destroy(byte: u8) -> Command {
    Command::Session(SessionCommand::Destroy { id: sid(byte) })
}
fn end_delay(key: &str, since: u64) -> Command {
    let delays = vec![(key.to_owned(), ModifyIndex(since))];
    Command::Session(SessionCommand::EndLockDelays { delays })
}
fn acquire(key: &str, value: &str, byte: u8) -> Command {
    let session = sid(byte);
    let pair = pair(key, value);
    Command::Kv(KvCommand::Acquire { pair, session })
}
fn release(key: &str, value: &str, byte: u8) -> Command {
    let session = sid(byte);
    let pair = pair(key, value);
    Command::Kv(KvCommand::Release { pair, session })
}
fn with_check(node_name: &str, status: CheckStatus) -> Command {
    register(Registration {
        checks: vec![check("c", "", status)],
        ..node(node_name)
    })
}

impl Bench {
    #[track_caller]
    fn decided(&mut self, command: Command) -> bool {
        match self.apply(command).outcome {
            Outcome::Decided(held) => held,
            other => panic!("{other:?}"),
        }
    }
    fn sessions_by(&self, query: Query) -> Vec<Uuid> {
        match self.store.evaluate(&query).answer {
            Answer::Sessions(sessions) => sessions.iter().map(|session| session.id).collect(),
            other => panic!("{other:?}"),
        }
    }
    fn sessions(&self) -> Vec<Uuid> {
        self.sessions_by(Query::Sessions)
    }
    /// Holder, count, and modify index.
    fn lock(&self, key: &str) -> (Option<Uuid>, u64, u64) {
        let pair = self.pair(key).expect("the key is there");
        (pair.session, pair.lock_index, pair.modify_index.0)
    }
    fn with_sessions(count: u8) -> Self {
        let mut bench = Self::default();
        bench.done(register(node("n")));
        for byte in 1..=count {
            bench.done(create(session(byte, "n")));
        }
        bench
    }
}

#[test]
fn a_session_needs_a_node_and_checks_that_are_not_critical() {
    let mut bench = Bench::default();
    assert_eq!(bench.refused(create(session(1, ""))), "Must provide Node");
    assert_eq!(bench.refused(create(session(1, "n"))), "Missing node registration");
    bench.done(with_check("n", CheckStatus::Critical));
    let missing = create(with_checks(1, "n", &["nope"]));
    assert_eq!(bench.refused(missing), "Missing check 'nope' registration");
    let critical = create(with_checks(1, "n", &["c"]));
    assert_eq!(bench.refused(critical), "Check 'c' is in critical state");
    bench.done(with_check("n", CheckStatus::Warning));
    bench.done(create(with_checks(1, "N", &["c"])));
    let mut nil = session(1, "n");
    nil.id = Uuid::NIL;
    assert_eq!(bench.refused(create(nil)), "Must provide ID");
    assert!(bench.refused(create(session(1, "n"))).contains("exists already"));
    let Answer::Sessions(sessions) = bench.store.evaluate(&Query::Session { id: sid(1) }).answer else {
        panic!("a question for sessions is answered with sessions")
    };
    assert_eq!(sessions[0].node, "n", "the node's own spelling");
}

#[test]
fn sessions_are_listed_by_id_with_the_index_of_the_last_that_came_or_went() {
    let mut bench = Bench::with_sessions(0);
    assert_eq!(bench.index_of(Query::Sessions), 1, "never 0");
    bench.done(register(node("m")));
    for (byte, node) in [(3, "n"), (1, "n"), (2, "m")] {
        bench.done(create(session(byte, node)));
    }
    let mut ids = vec![sid(1), sid(2), sid(3)];
    ids.sort_unstable();
    assert_eq!(bench.sessions(), ids);
    let of_node = |bench: &Bench, node: &str| bench.sessions_by(Query::NodeSessions { node: node.into() });
    assert_eq!(of_node(&bench, "M"), vec![sid(2)]);
    assert_eq!(of_node(&bench, "nope"), vec![]);
    assert_eq!(bench.sessions_by(Query::Session { id: sid(9) }), vec![]);
    for query in [
        Query::Sessions,
        Query::Session { id: sid(1) },
        Query::Session { id: sid(9) },
        Query::NodeSessions { node: "nope".into() },
    ] {
        assert_eq!(bench.index_of(query), 5);
    }
    bench.done(destroy(1));
    bench.unchanged(destroy(1));
    assert_eq!(bench.index_of(Query::Sessions), 6);
    assert_eq!(of_node(&bench, "n"), vec![sid(3)]);
}

#[test]
fn a_reader_of_sessions_is_woken_only_by_those_in_its_answer() {
    let mut bench = Bench::with_sessions(1);
    bench.done(register(node("m")));
    let wakes = |bench: &Bench, query: Query, touched: &[Topic]| {
        let watched = bench.store.topics(&query);
        watched
            .iter()
            .any(|topic| touched.iter().any(|touched| topic.covers(touched)))
    };
    let one = || Query::Session { id: sid(1) };
    let of = |node: &str| Query::NodeSessions { node: node.into() };
    let touched = bench.done(create(session(2, "m")));
    assert!(wakes(&bench, Query::Sessions, &touched));
    assert!(wakes(&bench, of("M"), &touched));
    assert!(!wakes(&bench, of("n"), &touched));
    assert!(!wakes(&bench, one(), &touched));
    let touched = bench.done(destroy(1));
    assert!(wakes(&bench, one(), &touched));
    assert!(wakes(&bench, of("n"), &touched));
    assert!(!wakes(&bench, of("m"), &touched));
    // A key that is released wakes its own readers and those of its prefix, and nobody else.
    bench.decided(acquire("a/k", "v", 2));
    bench.done(set("b", "v"));
    let touched = bench.done(destroy(2));
    let key = |key: &str| Query::KvGet { key: key.into() };
    assert!(wakes(&bench, key("a/k"), &touched));
    assert!(wakes(&bench, Query::KvList { prefix: "a/".into() }, &touched));
    assert!(!wakes(&bench, key("b"), &touched));
    assert!(!wakes(&bench, key("a"), &touched));
}

#[test]
fn a_lock_has_one_holder_and_counts_its_acquisitions() {
    let mut bench = Bench::with_sessions(2);
    let unknown = format!("invalid session \"{}\"", sid(9));
    assert_eq!(bench.refused(acquire("lock", "x", 9)), unknown);
    assert_eq!(bench.refused(acquire("", "x", 1)), "Must provide key");
    assert!(bench.decided(acquire("lock", "held", 1)));
    assert_eq!(bench.lock("lock"), (Some(sid(1)), 1, 6));
    assert!(bench.decided(acquire("lock", "held", 1)), "its own lock, unchanged");
    assert_eq!(bench.lock("lock"), (Some(sid(1)), 1, 6));
    assert!(bench.decided(acquire("lock", "again", 1)));
    assert_eq!(bench.lock("lock"), (Some(sid(1)), 1, 8));
    assert!(!bench.decided(acquire("lock", "other", 2)));
    assert!(!bench.decided(release("lock", "other", 2)));
    assert!(!bench.decided(release("absent", "other", 2)));
    assert_eq!(bench.lock("lock"), (Some(sid(1)), 1, 8));
    assert!(bench.decided(release("lock", "rel", 1)));
    assert_eq!(bench.lock("lock"), (None, 1, 12));
    assert_eq!(bench.pair("lock").unwrap().value, b"rel");
    assert!(bench.decided(acquire("lock", "two", 2)), "a release imposes no delay");
    assert_eq!(bench.lock("lock"), (Some(sid(2)), 2, 13));
    // An index only grows: it is the fencing number.
}

#[test]
fn a_plain_write_keeps_the_holder_of_a_lock_and_resets_its_count() {
    let mut bench = Bench::with_sessions(1);
    assert!(bench.decided(acquire("lock", "me", 1)));
    bench.done(set("lock", "me"));
    assert_eq!(bench.lock("lock"), (Some(sid(1)), 0, 4));
    bench.unchanged(set("lock", "me"));
    assert!(bench.decided(cas("lock", "you", 4)));
    assert_eq!(bench.lock("lock"), (Some(sid(1)), 0, 6));
    bench.done(delete("lock"));
    assert!(
        bench.decided(acquire("lock", "me", 1)),
        "a delete ignores locks and imposes no delay"
    );
    assert_eq!(bench.lock("lock"), (Some(sid(1)), 1, 8));
    bench.done(delete_tree("lo"));
    bench.done(set("lock", "me"));
    assert_eq!(
        bench.lock("lock"),
        (None, 0, 10),
        "a deleted tree takes its locks along"
    );
    bench.decided(acquire("lock", "me", 1));
    bench.done(delete_tree(""));
    bench.done(destroy(1));
    assert!(bench.pair("lock").is_none());
}

#[test]
fn a_session_that_ends_gives_up_its_keys_at_one_index() {
    let mut bench = Bench::with_sessions(1);
    bench.done(create(Session {
        behavior: SessionBehavior::Delete,
        ..session(2, "n")
    }));
    for key in ["a", "b"] {
        bench.decided(acquire(key, "x", 1));
    }
    bench.decided(acquire("e/1", "x", 2));
    let touched = bench.done(destroy(1));
    let index = bench.index;
    assert_eq!(bench.lock("a"), (None, 1, index));
    assert_eq!(bench.lock("b"), (None, 1, index));
    assert_eq!(bench.index_of(Query::Sessions), index);
    assert!(touched.contains(&Topic::Key("a".into())) && touched.contains(&Topic::Key("b".into())));
    bench.done(destroy(2));
    assert!(bench.pair("e/1").is_none());
    assert_eq!(bench.list_index("e/"), bench.index, "its tombstone keeps the index");
}

#[test]
fn a_lock_delay_keeps_a_key_from_everybody_until_the_leader_ends_it() {
    let mut bench = Bench::with_sessions(3);
    bench.decided(acquire("lock", "x", 1));
    bench.done(destroy(1));
    let since = bench.index;
    assert!(!bench.decided(acquire("lock", "x", 2)));
    assert!(
        !bench.decided(acquire("lock", "x", 9)),
        "whether a session exists is not looked at in a delay"
    );
    bench.done(set("lock", "plain"));
    bench.unchanged(end_delay("lock", since + 1));
    bench.unchanged(end_delay("other", since));
    assert!(!bench.decided(acquire("lock", "x", 2)));
    let changes = bench.store.session_changes_since(&SessionView::default());
    let delay = LockDelay {
        since: ModifyIndex(since),
        delay: Duration::from_secs(15),
    };
    let delayed = SessionChange::Delayed {
        key: "lock".into(),
        delay,
    };
    assert!(changes.contains(&delayed), "{changes:?}");
    assert_eq!(bench.done(end_delay("lock", since)), vec![Topic::LockDelays]);
    assert!(bench.decided(acquire("lock", "x", 2)));
    // Deleting a held key, or every key, ends no delay.
    bench.done(destroy(2));
    let since = bench.index;
    bench.done(delete_tree(""));
    assert!(!bench.decided(acquire("lock", "x", 3)));
    bench.done(end_delay("lock", since));
    assert!(bench.decided(acquire("lock", "x", 3)));
}

#[test]
fn a_lock_delay_of_nothing_is_none_and_a_long_one_is_cut() {
    let mut bench = Bench::with_sessions(1);
    for (byte, lock_delay) in [(2, Duration::ZERO), (3, Duration::from_secs(3600))] {
        bench.done(create(Session {
            lock_delay,
            ..session(byte, "n")
        }));
    }
    bench.decided(acquire("k", "x", 2));
    bench.done(destroy(2));
    assert!(bench.decided(acquire("k", "x", 3)));
    let before = bench.store.session_view();
    bench.done(destroy(3));
    let changes = bench.store.session_changes_since(&before);
    let delay = LockDelay {
        since: ModifyIndex(bench.index),
        delay: limits::LOCK_DELAY_MAX,
    };
    let key = || "k".into();
    assert_eq!(
        changes,
        vec![
            SessionChange::Ended(sid(3)),
            SessionChange::Delayed { key: key(), delay }
        ]
    );
    let before = bench.store.session_view();
    bench.done(end_delay("k", delay.since.0));
    let changes = bench.store.session_changes_since(&before);
    assert_eq!(changes, vec![SessionChange::DelayEnded { key: key() }]);
}

#[test]
fn a_session_ends_with_its_node_and_with_any_of_its_checks() {
    let with_service = || {
        register(Registration {
            service: Some(service("s", "web", &[])),
            checks: vec![check("sc", "s", CheckStatus::Passing)],
            ..node("n")
        })
    };
    let ends: [(&str, Command); 6] = [
        ("its node check is critical", with_check("n", CheckStatus::Critical)),
        ("its node check is gone", deregister("N", "", "c")),
        (
            "its service check is critical",
            register(Registration {
                checks: vec![check("sc", "s", CheckStatus::Critical)],
                ..node("n")
            }),
        ),
        ("its service is gone", deregister("n", "s", "")),
        ("its node is gone", deregister("n", "", "")),
        ("a batch ends it", Command::Batch(vec![deregister("n", "", "c")])),
    ];
    for (why, end) in ends {
        let mut bench = Bench::default();
        bench.done(with_check("n", CheckStatus::Passing));
        bench.done(with_service());
        bench.done(create(Session {
            service_checks: vec!["sc".into()],
            ..with_checks(1, "n", &["c", "c"])
        }));
        bench.done(create(with_checks(2, "n", &[])));
        bench.decided(acquire("k", "x", 1));
        // What does not concern it leaves it alone.
        bench.done(with_check("n", CheckStatus::Warning));
        bench.done(on("n", service("other", "other", &[])));
        assert_eq!(bench.sessions().len(), 2, "{why}");
        bench.apply(end);
        let left = if why == "its node is gone" {
            vec![]
        } else {
            vec![sid(2)]
        };
        assert_eq!(bench.sessions(), left, "{why}");
        assert_eq!(bench.lock("k"), (None, 1, bench.index), "{why}");
    }
}

#[test]
fn a_node_that_takes_another_name_loses_its_sessions() {
    let mut bench = Bench::default();
    bench.done(register(Registration {
        node_id: id(1),
        ..node("old")
    }));
    bench.done(create(session(1, "old")));
    bench.done(register(Registration {
        node_id: id(1),
        ..node("new")
    }));
    assert_eq!(bench.sessions(), vec![]);
}

#[test]
fn equal_states_have_equal_hashes_however_they_were_reached() {
    let mut straight = Bench::with_sessions(1);
    straight.done(set("a", "1"));
    straight.done(set("b", "2"));
    let mut winding = Bench::with_sessions(1);
    winding.done(set("a", "1"));
    let before = winding.store.hash();
    winding.done(set("b", "2"));
    assert_ne!(winding.store.hash(), before);
    assert_eq!(straight.store.hash(), winding.store.hash());
    let restored = Store::from_records(straight.store.records()).unwrap();
    assert_eq!(restored.hash(), straight.store.hash());
    winding.done(Command::Barrier);
    straight.done(end_delay("none", 1));
    assert_eq!(
        straight.store.hash(),
        winding.store.hash(),
        "only the state counts, and how far the log went"
    );
}

#[test]
fn records_of_sessions_that_are_no_state_are_refused() {
    let mut bench = Bench::with_sessions(2);
    bench.decided(acquire("k", "x", 1));
    bench.decided(acquire("d", "x", 2));
    bench.done(destroy(2));
    let records: Vec<Record> = bench.store.records().collect();
    assert_eq!(Store::from_records(records.clone()).unwrap().hash(), bench.store.hash());
    let without = |drop: fn(&Record) -> bool| {
        let kept = records.iter().filter(|record| !drop(record)).cloned();
        Store::from_records(kept).unwrap_err()
    };
    // A held key without its session, sessions without their node, and without their table's index.
    for error in [
        without(|record| matches!(record, Record::Session(_))),
        without(|record| matches!(record, Record::Node(_))),
        without(|record| matches!(record, Record::SessionIndex { .. })),
    ] {
        assert!(matches!(error, RecordError::Contradiction { .. }), "{error:?}");
    }
    for record in records
        .iter()
        .filter(|record| matches!(record, Record::Session(_) | Record::LockDelay { .. }))
    {
        let mut twice = records.clone();
        twice.push(record.clone());
        assert!(matches!(Store::from_records(twice), Err(RecordError::Misplaced { .. })));
    }
}
