use super::*;
use crate::broadcast;
use crate::ring::{COUNT_MAX, WINDOW};
use proptest::prelude::*;
use rand_core::SeedableRng as _;

fn id(n: u8) -> NodeId {
    NodeId(Uuid::from_bytes([n; 16]))
}
fn address(n: u8) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, n], 8301))
}
fn member(n: u8) -> UserEvents {
    UserEvents::new(id(n), address(n), ChaCha8Rng::seed_from_u64(u64::from(n)))
}
fn event(name: &str, n: u128) -> UserEvent {
    UserEvent {
        id: Uuid::from_bytes(n.to_be_bytes()),
        name: name.to_owned(),
        version: 1,
        ..UserEvent::default()
    }
}
fn at(secs: u64) -> Instant {
    Instant::from_millis(secs * 1000)
}
fn outputs(member: &mut UserEvents) -> Vec<Output> {
    member.check();
    std::iter::from_fn(|| member.poll_output()).collect()
}
fn delivered(member: &mut UserEvents) -> Vec<(u64, String)> {
    let event = |output| match output {
        Output::Event(event) => Some((event.ltime.0, event.name.clone())),
        _ => None,
    };
    outputs(member).into_iter().filter_map(event).collect()
}
/// One exchange of full state, which `from` begins.
fn exchange(from: &mut UserEvents, to: &mut UserEvents) {
    let request = from.state();
    to.handle_state(request, false);
    let reply = to.state();
    from.handle_state(reply, false);
    from.check();
    to.check();
}
/// All that `from` has to gossip, to `to`.
fn gossip(now: Instant, from: &mut UserEvents, to: &mut UserEvents) {
    let messages = from.take_news(10_000, 1);
    to.handle_messages(now, messages);
}
fn pool() -> (UserEvents, UserEvents) {
    let (mut a, mut b) = (member(1), member(2));
    exchange(&mut a, &mut b);
    (a, b)
}

#[test]
fn an_event_is_delivered_once_here_and_there_and_sent_on() {
    let (mut a, mut b) = pool();
    let fired = a.fire(event("deploy", 1)).unwrap();
    assert_eq!(fired.ltime, LamportTime(2));
    assert_eq!(delivered(&mut a), [(2, "deploy".to_owned())]);
    gossip(at(0), &mut a, &mut b);
    assert_eq!(delivered(&mut b), [(2, "deploy".to_owned())]);
    assert!(b.has_news(), "it is sent on");
    gossip(at(0), &mut b, &mut a);
    assert_eq!(delivered(&mut a), []);
    assert_eq!(a.counters().repeated, 1);
    exchange(&mut a, &mut b);
    assert_eq!((delivered(&mut a), delivered(&mut b)), (vec![], vec![]));
    // What b fires later has a later time.
    assert_eq!(b.fire(event("rollback", 2)).unwrap().ltime, LamportTime(3));
}

#[test]
fn an_exchange_brings_what_gossip_lost_and_does_not_gossip_it_again() {
    let (mut a, mut b) = pool();
    a.fire(event("one", 1)).unwrap();
    a.fire(event("two", 2)).unwrap();
    exchange(&mut b, &mut a);
    assert_eq!(delivered(&mut b), [(2, "one".to_owned()), (3, "two".to_owned())]);
    assert!(!b.has_news());
}

#[test]
fn who_joins_is_not_told_what_was_fired_before_by_no_way() {
    let (mut a, mut b) = pool();
    a.fire(event("old", 1)).unwrap();
    for joiner_begins in [true, false] {
        let mut joiner = member(3);
        // Peers that knew its predecessor still gossip to it.
        let news = a.clone_news();
        joiner.handle_messages(at(0), news.clone());
        assert_eq!(delivered(&mut joiner), []);
        if joiner_begins {
            exchange(&mut joiner, &mut a);
        } else {
            exchange(&mut a, &mut joiner);
        }
        joiner.handle_messages(at(0), news);
        exchange(&mut b, &mut a);
        exchange(&mut joiner, &mut b);
        assert_eq!(delivered(&mut joiner), []);
        // But what is fired from now on, by itself too.
        let fired = joiner.fire(event("own", 9)).unwrap();
        assert_eq!(fired.ltime, LamportTime(a.event_time().0 + 1));
        let new = a.fire(event("new", 10)).unwrap();
        exchange(&mut joiner, &mut a);
        assert_eq!(
            delivered(&mut joiner),
            [(fired.ltime.0, "own".to_owned()), (new.ltime.0, "new".to_owned())]
        );
    }
}

impl UserEvents {
    fn clone_news(&self) -> Vec<Message> {
        self.broadcasts.messages().cloned().collect()
    }
}

#[test]
fn an_explicit_join_leaves_out_what_the_other_pool_fired_before() {
    let (mut a, _) = pool();
    let (mut c, _) = pool();
    c.fire(event("theirs", 1)).unwrap();
    a.handle_state(c.state(), true);
    assert_eq!(delivered(&mut a), []);
}

#[test]
fn events_are_sent_on_as_often_as_the_limit_says() {
    let (mut a, _) = pool();
    a.fire(event("deploy", 1)).unwrap();
    let counts: Vec<usize> = (0..5).map(|_| a.take_news(1000, 3).len()).collect();
    assert_eq!(counts, [1, 1, 1, 0, 0]);
    assert!(!a.has_news());
}

#[test]
fn a_query_is_answered_by_each_member_and_ends_when_all_have_answered() {
    let (mut a, mut b) = pool();
    let asked = a
        .ask(at(1), "keys", b"list".to_vec(), Duration::from_secs(5), true, 2)
        .unwrap();
    let Some(Output::QueryAck { query, from }) = a.poll_output() else {
        panic!("this member acks too")
    };
    assert_eq!((query, from), (asked, id(1)));
    let Some(Output::Query { query, ends_at }) = a.poll_output() else {
        panic!("this member is asked too")
    };
    assert_eq!((ends_at, query.name.as_str()), (at(6), "keys"));
    a.respond(at(1), &query, b"mine".to_vec()).unwrap();
    gossip(at(1), &mut a, &mut b);
    let packets = outputs(&mut b);
    assert_eq!(
        packets[0],
        Output::Packet {
            to: address(1),
            message: Message::QueryAck {
                query: asked,
                from: id(2)
            }
        }
    );
    let Output::Query { query, .. } = &packets[1] else {
        panic!("b is asked")
    };
    b.respond(at(2), query, b"theirs".to_vec()).unwrap();
    for output in outputs(&mut b) {
        let Output::Packet { to, message } = output else {
            panic!("only packets to the origin")
        };
        assert_eq!(to, address(1));
        // The network repeats it.
        a.handle_messages(at(2), vec![message.clone(), message]);
    }
    let answer = |from, payload: &[u8]| Output::QueryResponse {
        query: asked,
        from,
        payload: payload.to_vec(),
    };
    assert_eq!(
        outputs(&mut a),
        [
            answer(id(1), b"mine"),
            answer(id(2), b"theirs"),
            Output::QueryEnded { query: asked }
        ]
    );
    assert_eq!(a.counters().responses_refused, 1, "the repeated one");
    assert_eq!(a.next_timeout(), Instant::FAR_FUTURE);
}

#[test]
fn a_query_ends_with_its_time_and_late_answers_are_refused() {
    let (mut a, mut b) = pool();
    let asked = a.ask(at(1), "keys", vec![], Duration::from_secs(5), false, 2).unwrap();
    gossip(at(1), &mut a, &mut b);
    outputs(&mut a);
    assert_eq!(a.next_timeout(), at(6));
    a.handle_timeout(at(5));
    assert_eq!(outputs(&mut a), []);
    let late = |from| Message::QueryResponse {
        query: asked,
        from,
        payload: vec![],
    };
    a.handle_messages(at(6), vec![late(id(2))]);
    a.handle_timeout(at(6));
    assert_eq!(outputs(&mut a), [Output::QueryEnded { query: asked }]);
    a.handle_messages(at(6), vec![late(id(2))]);
    assert_eq!((outputs(&mut a), a.counters().responses_refused), (vec![], 2));
}

#[test]
fn what_is_too_long_is_not_asked_answered_or_taken() {
    let (mut a, mut b) = pool();
    let second = Duration::from_secs(1);
    assert_eq!(
        a.ask(at(0), "q", vec![0; 1024], second, false, 1),
        Err(QueryError::TooLong)
    );
    a.ask(at(0), "q", vec![0; 1023], second, false, 1).unwrap();
    let Some(Output::Query { query, .. }) = a.poll_output() else {
        panic!("asked")
    };
    assert_eq!(
        a.respond(at(0), &query, vec![0; 1025]),
        Err(QueryError::ResponseTooLong)
    );
    let too_long = UserEvent {
        payload: vec![0; 600],
        ..event("deploy", 1)
    };
    assert_eq!(a.fire(too_long.clone()), Err(FireError::TooLong));
    for bad in [
        too_long,
        event("", 1),
        UserEvent {
            ltime: LamportTime(u64::MAX),
            ..event("deploy", 1)
        },
    ] {
        b.handle_messages(at(0), vec![Message::Event(Arc::new(bad))]);
    }
    assert_eq!((outputs(&mut b), b.counters().malformed), (vec![], 3));
    let state = EventState {
        event_clock: LamportTime(u64::MAX),
        ..EventState::default()
    };
    b.handle_state(state, false);
    assert_eq!((b.event_time(), b.counters().malformed), (LamportTime(1), 4));
}

#[test]
fn floods_cost_the_oldest_and_no_memory() {
    let (mut a, mut b) = pool();
    for n in 0..3000 {
        a.fire(event("flood", n)).unwrap();
    }
    outputs(&mut a);
    assert!(a.state().events.len() as u64 <= WINDOW && a.broadcasts.len() <= broadcast::COUNT_MAX);
    let forged = |n: u128| {
        Message::Event(Arc::new(UserEvent {
            ltime: LamportTime(7),
            ..event("forged", n)
        }))
    };
    b.handle_messages(at(0), (0..3000).map(forged).collect());
    outputs(&mut b);
    assert!(b.state().events.len() <= COUNT_MAX);
    let second = Duration::from_secs(1);
    let refused = (0..100).find_map(|_| a.ask(at(0), "q", vec![], second, false, 3).err());
    assert_eq!(refused, Some(QueryError::TooMany));
}

fn any_message() -> impl Strategy<Value = Message> {
    let time = || prop_oneof![0..1200_u64, any::<u64>()].prop_map(LamportTime);
    let event = (time(), 0..4_u8, "[ab]{0,2}", 0..600_usize).prop_map(|(ltime, n, name, len)| {
        Message::Event(Arc::new(UserEvent {
            ltime,
            payload: vec![0; len],
            ..event(&name, u128::from(n))
        }))
    });
    let query = (time(), 0..4_u64, 0..4_u8, any::<bool>(), any::<u64>(), 0..1100_usize).prop_map(
        |(ltime, query, from, wants_ack, secs, len)| {
            Message::Query(Arc::new(Query {
                ltime,
                id: QueryId(query),
                from: id(from),
                address: address(from),
                timeout: Duration::from_secs(secs),
                wants_ack,
                name: "q".to_owned(),
                payload: vec![0; len],
            }))
        },
    );
    let about = || ((0..4_u64).prop_map(QueryId), (0..4_u8).prop_map(id));
    prop_oneof![
        4 => event,
        4 => query,
        1 => about().prop_map(|(query, from)| Message::QueryAck { query, from }),
        1 => (about(), 0..1100_usize).prop_map(|((query, from), len)| Message::QueryResponse { query, from, payload: vec![0; len] }),
    ]
}

proptest! {
    #[test]
    fn whatever_peers_send_the_invariants_hold_and_nothing_is_delivered_twice(
        steps in proptest::collection::vec((proptest::collection::vec(any_message(), 0..12), 0..4_u8), 0..40),
    ) {
        let mut events = member(1);
        let mut seen = BTreeSet::new();
        for (n, (messages, command)) in steps.into_iter().enumerate() {
            let now = at(n as u64);
            match command {
                0 => events.handle_state(EventState { events: messages.iter().filter_map(|message| match message {
                    Message::Event(event) => Some(Arc::clone(event)),
                    _ => None,
                }).collect(), ..EventState::default() }, false),
                1 => { let _ = events.fire(event("own", 100 + n as u128)); }
                2 => { let _ = events.ask(now, "q", vec![], Duration::from_secs(3), true, 2); }
                _ => { events.take_news(800, 2); }
            }
            events.handle_messages(now, messages);
            events.handle_timeout(now);
            for output in outputs(&mut events) {
                if let Output::Event(event) = output {
                    prop_assert!(seen.insert((event.ltime, event.id)), "{:?} twice", event);
                }
            }
        }
    }
}
