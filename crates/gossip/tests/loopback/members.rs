//! Members that join, change, fail and leave, and what they are told when they cannot.

use crate::{on_production, refused_count, start_with};
use quorate_gossip::{Gossip, GossipConfig, JoinError, MemberEvent, MemberEvents, StartError};
use quorate_rt::production::TokioRt;
use quorate_rt::{Listener as _, Rt, Udp as _};
use quorate_types::{Member, MemberStatus};
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

fn ip(test: u8) -> Ipv4Addr {
    Ipv4Addr::new(127, 0, 1, test)
}
fn config(test: u8, n: u8) -> GossipConfig {
    crate::config(ip(test), n)
}
async fn start(rt: &TokioRt, test: u8, n: u8) -> Gossip<TokioRt> {
    start_with(rt, config(test, n)).await
}

/// The first event that `pick` takes.
async fn wait_for<T>(events: &mut MemberEvents, pick: impl Fn(MemberEvent) -> Option<T>) -> T {
    loop {
        if let Some(picked) = pick(events.next().await) {
            return picked;
        }
    }
}
async fn joined(events: &mut MemberEvents, name: &str) -> Member {
    wait_for(events, |event| match event {
        MemberEvent::Joined(member) if member.name == name => Some(member),
        _ => None,
    })
    .await
}

#[test]
fn members_join_learn_tags_fail_and_leave() {
    on_production(|rt| async move {
        let (one, two, three) = (start(&rt, 1, 1).await, start(&rt, 1, 2).await, start(&rt, 1, 3).await);
        let mut events = one.subscribe();
        assert_eq!(two.join(&[one.address()]).await.expect("join"), 1);
        assert_eq!(joined(&mut events, "n2").await.address, two.address());
        assert_eq!(three.join(&[two.address(), one.address()]).await.expect("join"), 2);
        joined(&mut events, "n3").await;
        let names: Vec<String> = three.members().iter().map(|member| member.name.clone()).collect();
        assert_eq!(names, ["n1", "n2", "n3"]);

        let tags = BTreeMap::from([("expect".to_owned(), "3".to_owned())]);
        two.set_tags(tags.clone()).await.expect("short tags");
        let updated = wait_for(&mut events, |event| match event {
            MemberEvent::Updated(member) => Some(member),
            _ => None,
        });
        assert_eq!(updated.await.tags, tags);

        two.leave().await;
        assert_eq!(two.local_member().status, MemberStatus::Left);
        two.stop().await;
        let left = wait_for(&mut events, |event| match event {
            MemberEvent::Left(member) => Some(member),
            MemberEvent::Failed(member) => panic!("{} failed", member.name),
            _ => None,
        });
        assert_eq!(left.await.name, "n2");

        three.stop().await;
        let failed = wait_for(&mut events, |event| match event {
            MemberEvent::Failed(member) => Some(member),
            _ => None,
        });
        assert_eq!(failed.await.name, "n3");
        let stats = one.stats();
        assert_eq!(
            (
                stats["members"].as_str(),
                stats["failed"].as_str(),
                stats["left"].as_str()
            ),
            ("3", "1", "1")
        );

        let unknown = one.force_leave("nope", false).await.expect_err("unknown");
        assert_eq!(unknown.to_string(), "No node found with name 'nope'");
        one.force_leave("n3", true).await.expect("known");
        let reaped = wait_for(&mut events, |event| match event {
            MemberEvent::Reaped(member) => Some(member),
            _ => None,
        });
        assert_eq!(reaped.await.name, "n3");
        one.check();
        one.stop().await;
    });
}

#[test]
fn a_busy_port_and_an_address_without_a_member_are_told_in_consuls_words() {
    on_production(|rt| async move {
        let one = start(&rt, 2, 1).await;
        let busy = GossipConfig {
            bind: one.address(),
            ..config(2, 2)
        };
        let Err(err) = Gossip::start(rt.clone(), busy.clone()).await else {
            panic!("the port is busy")
        };
        assert!(matches!(err, StartError::Bind { .. }));
        let text = err.to_string();
        assert!(text.starts_with("Failed to start LAN Serf: "), "{text}");
        let expected = format!("listen tcp {}: bind: address already in use", one.address());
        assert!(text.ends_with(&expected), "{text}");

        // A port that was just free.
        let listener = rt.tcp_listen(SocketAddr::from((ip(2), 0))).await.expect("listen");
        let nobody = listener.local_addr().expect("bound");
        drop(listener);
        let err: JoinError = one.join(&[nobody]).await.expect_err("nobody listens");
        assert_eq!(
            err.to_string(),
            format!(
                "1 error occurred:\n\t* Failed to join 127.0.1.2: dial tcp {nobody}: connect: connection refused\n\n"
            )
        );
        assert_eq!(one.join(&[nobody, one.address()]).await.expect("one of two"), 1);

        one.stop().await;
        let again = Gossip::start(rt.clone(), busy)
            .await
            .expect("stopped: the port is free");
        again.stop().await;
    });
}

#[test]
fn a_taken_name_and_another_datacenter_are_refused_with_a_reason() {
    on_production(|rt| async move {
        let one = start(&rt, 3, 1).await;
        let namesake = GossipConfig {
            name: "n1".to_owned(),
            ..config(3, 2)
        };
        let namesake = Gossip::start(rt.clone(), namesake).await.expect("start");
        let err = namesake.join(&[one.address()]).await.expect_err("refused").to_string();
        assert!(err.contains("Member 'n1' has conflicting node ID"), "{err}");
        let foreign = GossipConfig {
            datacenter: "dc2".to_owned(),
            ..config(3, 3)
        };
        let foreign = Gossip::start(rt.clone(), foreign).await.expect("start");
        let err = foreign.join(&[one.address()]).await.expect_err("refused").to_string();
        assert!(err.contains("Member 'n3' part of wrong datacenter 'dc2'"), "{err}");
        assert_eq!(one.members().len(), 1);
    });
}

#[test]
fn nonsense_is_counted_and_the_member_goes_on() {
    on_production(|rt| async move {
        let one = start(&rt, 4, 1).await;
        let udp = rt.udp_bind(SocketAddr::from((ip(4), 0))).await.expect("bind");
        udp.send_to(b"GET / HTTP/1.1", one.address()).await.expect("send");
        udp.send_to(&[1; 1500], one.address()).await.expect("send");
        let mut stream = rt.tcp_connect(one.address()).await.expect("connect");
        stream.write_all(b"GET / HTTP/1.1\r\n\r\n").await.expect("write");
        let mut rest = Vec::new();
        // The end of the stream, or its reset: the frame was refused.
        let _ = stream.read_to_end(&mut rest).await;
        assert!(rest.is_empty());
        let two = start(&rt, 4, 2).await;
        let mut events = one.subscribe();
        two.join(&[one.address()]).await.expect("join");
        joined(&mut events, "n2").await;
        // Another join's time is as good as any to wait for the datagrams.
        while refused_count(&one) < 3 {
            two.join(&[one.address()]).await.expect("join");
        }
        let stats = one.stats();
        let by_cause = stats.iter().filter(|(key, _)| key.starts_with("refused_"));
        let sum: u64 = by_cause.map(|(_, count)| count.parse::<u64>().expect("a number")).sum();
        assert_eq!((&*stats["refused"], sum), ("3", 3), "{stats:?}");
        assert_eq!(two.stats()["refused"], "0");
    });
}
