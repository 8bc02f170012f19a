//! Events, queries and coordinates.

use crate::{PATIENCE, id, on_production, start_with};
use quorate_gossip::{Gossip, GossipConfig, QueryReply, Timing};
use quorate_rt::Rt;
use quorate_rt::production::TokioRt;
use quorate_types::Uuid;
use quorate_user_events::UserEvent;
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::time::Duration;

async fn start(rt: &TokioRt, test: u8, n: u8) -> Gossip<TokioRt> {
    let config = GossipConfig {
        timing: Timing {
            coordinates: true,
            probe_interval: Duration::from_millis(50),
            probe_timeout: Duration::from_millis(40),
            gossip_interval: Duration::from_millis(20),
            ..Timing::local()
        },
        ..crate::config(Ipv4Addr::new(127, 0, 4, test), n)
    };
    start_with(rt, config).await
}

async fn pool(rt: &TokioRt, test: u8) -> [Gossip<TokioRt>; 3] {
    let pool = [
        start(rt, test, 1).await,
        start(rt, test, 2).await,
        start(rt, test, 3).await,
    ];
    for joiner in &pool[1..] {
        joiner.join(&[pool[0].address()]).await.expect("join");
    }
    pool
}

fn event(name: &str) -> UserEvent {
    UserEvent {
        id: Uuid::from_bytes([7; 16]),
        name: name.to_owned(),
        payload: b"v2".to_vec(),
        version: 1,
        ..UserEvent::default()
    }
}

#[test]
fn an_event_reaches_every_member_once_and_none_that_joins_later() {
    on_production(|rt| async move {
        let pool = pool(&rt, 1).await;
        let mut heard: Vec<_> = pool.iter().map(Gossip::user_events).collect();
        let first = pool[0].fire(event("deploy")).expect("short enough");
        for events in &mut heard {
            assert_eq!(events.next().await, first);
        }
        let late = start(&rt, 1, 4).await;
        let mut heard_late = late.user_events();
        let mut members = pool[2].subscribe();
        late.join(&[pool[1].address()]).await.expect("join");
        while pool[2].members().len() < 4 {
            members.next().await;
        }
        let second = pool[2].fire(event("rollback")).expect("short enough");
        assert!(second.ltime > first.ltime);
        for events in heard.iter_mut().chain([&mut heard_late]) {
            assert_eq!(events.next().await, second);
        }
        let stats = late.stats();
        assert_eq!(stats["event_time"], second.ltime.to_string());
        pool[0].check();
        late.check();
    });
}

#[test]
fn a_query_is_answered_by_those_who_listen_and_ends_with_all_answers_or_its_time() {
    on_production(|rt| async move {
        let pool = pool(&rt, 2).await;
        for gossip in &pool {
            let mut queries = gossip.queries("whoami");
            let gossip = gossip.clone();
            rt.spawn("answer", async move {
                loop {
                    let query = queries.next().await;
                    let mut answer = query.query.payload.clone();
                    answer.extend_from_slice(gossip.local_member().name.as_bytes());
                    gossip.respond(&query, answer).expect("short enough and in time");
                }
            });
        }
        // Members learn of one another in moments; a query counts those alive when it is asked.
        let mut events = pool[2].subscribe();
        while pool[2].members().len() < 3 {
            events.next().await;
        }
        let mut replies = pool[2]
            .query("whoami", b"I am ".to_vec(), PATIENCE, true)
            .expect("short enough");
        let (mut acks, mut answers) = (BTreeSet::new(), BTreeMap::new());
        while let Some(reply) = replies.next().await {
            match reply {
                QueryReply::Ack { from } => assert!(acks.insert(from), "once each"),
                QueryReply::Response { from, payload } => {
                    assert!(answers.insert(from, String::from_utf8(payload).unwrap()).is_none());
                }
            }
        }
        let expected = [1, 2, 3].map(|n| (id(n), format!("I am n{n}")));
        assert_eq!(answers, BTreeMap::from(expected));
        assert!(acks.contains(&id(3)), "{acks:?}");

        // Nobody listens to this one: its time ends it.
        let mut replies = pool[0]
            .query("unknown", vec![], Duration::from_millis(50), false)
            .expect("short enough");
        assert_eq!(replies.next().await, None);
    });
}

#[test]
fn members_find_their_coordinates_from_their_probes() {
    on_production(|rt| async move {
        let pool = pool(&rt, 3).await;
        let knows_all = |gossip: &Gossip<TokioRt>| {
            let me = gossip.local_member().id;
            (1..=3)
                .map(id)
                .filter(|peer| *peer != me)
                .all(|peer| gossip.coordinate_of(peer).is_some())
        };
        while !pool.iter().all(knows_all) {
            rt.sleep(Duration::from_millis(20)).await;
        }
        let (a, b) = (pool[0].coordinate().unwrap(), pool[0].coordinate_of(id(2)).unwrap());
        assert!(a.is_plausible());
        assert!(a.error < quorate_types::coordinate::COORDINATE_ERROR_MAX, "it moved");
        // On one machine it cannot be far.
        assert!(a.distance(&b) < Duration::from_secs(1), "{:?}", a.distance(&b));
    });
}
