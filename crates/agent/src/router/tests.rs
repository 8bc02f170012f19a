use super::*;
use crate::testing::{Asked, client_router, member, on_production, server};
use quorate_rt::production::TokioRt;
use quorate_rt::{Listener as _, Rt as _};
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::sync::mpsc;

const HOLD_TIMEOUT: Duration = Duration::from_millis(300);

fn read(consistency: Consistency) -> ReadRequest {
    ReadRequest {
        query: Query::Node { node: "n1".to_owned() },
        consistency,
        min_index: ModifyIndex::ZERO,
        wait: Duration::ZERO,
        max_stale: None,
        hops: 0,
    }
}

/// Client agent `n1` in a pool with servers that listen at these ports.
async fn client_of(rt: &TokioRt, ports: &[u16]) -> (Router<TokioRt>, Vec<Gossip<TokioRt>>) {
    let client = member(rt, 1, None).await;
    let mut pool = vec![client.clone()];
    for (n, port) in (2..).zip(ports) {
        let server = member(rt, n, Some(*port)).await;
        client.join(&[server.address()]).await.expect("the server answers");
        pool.push(server);
    }
    (client_router(rt, &client, HOLD_TIMEOUT), pool)
}

/// A server's port that closes every connection, and how many there were.
async fn dead_server(rt: &TokioRt) -> (u16, Arc<AtomicUsize>) {
    let listener = rt
        .tcp_listen("127.0.0.1:0".parse().unwrap())
        .await
        .expect("a port is free");
    let port = listener.local_addr().expect("it is bound").port();
    let count = Arc::new(AtomicUsize::new(0));
    rt.spawn("dead-server", {
        let count = Arc::clone(&count);
        async move {
            while listener.accept().await.is_ok() {
                count.fetch_add(1, Ordering::SeqCst);
            }
        }
    });
    (port, count)
}

#[test]
fn a_client_that_knows_no_server_says_so_at_once() {
    on_production(|rt| async move {
        let (router, _pool) = client_of(&rt, &[]).await;
        for consistency in [Consistency::Default, Consistency::Stale] {
            assert_eq!(router.read(read(consistency)).await, Err(CallError::NoServers));
        }
        let write = router.write(Command::Batch(Vec::new())).await;
        assert_eq!(write, Err(CallError::NoServers));
        assert_eq!(router.status().await, Err(CallError::NoServers));
    });
}

#[test]
fn a_client_whose_servers_are_dead_says_so_in_consuls_words_once_the_hold_is_over() {
    on_production(|rt| async move {
        let (port, _) = dead_server(&rt).await;
        let (router, _pool) = client_of(&rt, &[port]).await;
        let started_at = rt.now();
        assert_eq!(router.read(read(Consistency::Default)).await, Err(CallError::NoLeader));
        assert!(rt.now() - started_at >= HOLD_TIMEOUT);
        assert_eq!(router.read(read(Consistency::Stale)).await, Err(CallError::NoServers));
        assert_eq!(CallError::NoLeader.to_string(), "No cluster leader");
        assert_eq!(CallError::NoServers.to_string(), "No known Consul servers");
    });
}

#[test]
fn dns_asks_each_dead_server_once_and_gives_up() {
    on_production(|rt| async move {
        let ((one, one_count), (two, two_count)) = (dead_server(&rt).await, dead_server(&rt).await);
        let (router, _pool) = client_of(&rt, &[one, two]).await;
        let answer = router.read_once(read(Consistency::Stale)).await;
        assert_eq!(answer, Err(CallError::NoServers));
        let counts = (one_count.load(Ordering::SeqCst), two_count.load(Ordering::SeqCst));
        assert_eq!(counts, (1, 1));
    });
}

#[test]
fn a_blocking_read_through_a_client_waits_no_longer_when_its_server_dies() {
    on_production(|rt| async move {
        let (asked, mut questions) = mpsc::unbounded_channel::<Asked>();
        let two = server(&rt, 2, asked.clone()).await;
        let three = server(&rt, 3, asked).await;
        let ports = [two.local_addr().port(), three.local_addr().port()];
        let (router, _pool) = client_of(&rt, &ports).await;
        let wait = Duration::from_secs(20);
        let request = ReadRequest {
            min_index: ModifyIndex(7),
            wait,
            ..read(Consistency::Default)
        };
        let started_at = rt.now();
        let reader = async { (router.read(request).await, rt.now() - started_at) };
        let servers = async {
            let (n, first, _unanswered) = questions.recv().await.expect("a server is asked");
            let Request::Read(first) = first else {
                panic!("a read: {first:?}")
            };
            assert!(first.wait <= wait);
            let dying = if n == 2 { &two } else { &three };
            dying.stop().await;
            let (other, second, answer) = questions.recv().await.expect("the other server is asked");
            let Request::Read(second) = second else {
                panic!("a read: {second:?}")
            };
            assert_ne!(other, n);
            // What is left of it: the first server's part is not waited again.
            assert!(second.wait < first.wait, "{:?} after {:?}", second.wait, first.wait);
            assert!(second.wait + (rt.now() - started_at) >= wait, "no part is lost");
            let reply = ReadReply {
                answer: Arc::new(Answer::Kv(None)),
                index: ModifyIndex(7),
                known_leader: true,
                last_contact: Duration::ZERO,
                consistency: Consistency::Default,
            };
            // The client waits for it.
            let _ = answer.send(Response::Read(reply));
        };
        let ((reply, took), ()) = futures::future::join(reader, servers).await;
        assert_eq!(reply.expect("answered").index, ModifyIndex(7));
        assert!(took < wait, "{took:?}");
    });
}
