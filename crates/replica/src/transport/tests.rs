use super::client::{CallFailure, Greeter, Pool, Target};
use super::server::{Peer, Service, serve};
use super::*;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use quorate_rt::production::{TokioRt, block_on};
use quorate_rt::task::AbortOnDrop;
use quorate_rt::{Listener as _, Rt as _};
use quorate_types::{NodeId, Uuid};
use quorate_wire::frame::{ConnectionKind, Hello, HelloReply, preamble};
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::sync::Notify;

/// Echoes; holds calls that begin with `h` until they are let go, and finds no sense in those that begin with `x`.
#[derive(Default)]
struct Echo {
    held: Notify,
    cancelled: Arc<Notify>,
}

struct TellDrop(Arc<Notify>);

impl Drop for TellDrop {
    fn drop(&mut self) {
        self.0.notify_one();
    }
}

impl Service for Echo {
    fn greet(&self, kind: ConnectionKind, hello: &Hello) -> HelloReply {
        if kind == ConnectionKind::Raft && hello.cluster_id != Some(Uuid::NIL) {
            return HelloReply::Refused {
                reason: "another cluster".to_owned(),
            };
        }
        HelloReply::Welcome {
            node: NodeId::default(),
            disk: None,
        }
    }
    fn answer(self: Arc<Self>, _peer: Arc<Peer>, _what: What, body: Bytes) -> BoxFuture<'static, Option<Bytes>> {
        async move {
            match body.first() {
                Some(b'h') => {
                    let _told = TellDrop(Arc::clone(&self.cancelled));
                    self.held.notified().await;
                    Some(body)
                }
                Some(b'x') => None,
                _ => Some(body),
            }
        }
        .boxed()
    }
}

struct Nobody;

impl Greeter for Nobody {
    fn hello(&self, target: &Target) -> Hello {
        Hello {
            cluster_id: None,
            from: NodeId::default(),
            from_disk: None,
            to: target.node,
            to_disk: None,
        }
    }
}

async fn echo(rt: &TokioRt) -> (SocketAddr, Arc<Echo>, AbortOnDrop) {
    let listener = rt.tcp_listen(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
    let address = listener.local_addr().unwrap();
    let service = Arc::new(Echo::default());
    let task = rt.spawn("serve", serve(rt.clone(), listener, Arc::clone(&service), 10));
    (address, service, task.abort_on_drop())
}

fn target(address: SocketAddr) -> Target {
    Target {
        address,
        kind: ConnectionKind::Request,
        node: None,
    }
}

const LONG: Duration = Duration::from_secs(20);

#[test]
fn a_slow_call_holds_up_no_other_and_a_cancelled_one_ends_at_the_server() {
    block_on(2, |rt| async move {
        let (address, service, _task) = echo(&rt).await;
        let pool = Pool::new(rt.clone(), Nobody);
        let deadline = rt.now() + LONG;
        let held = pool.call(target(address), What::Call, Bytes::from_static(b"held"), deadline);
        let mut held = Box::pin(held);
        assert!(held.as_mut().now_or_never().is_none());
        for at in 0..100 {
            let body = Bytes::from(format!("{at}"));
            let answer = pool.call(target(address), What::Call, body.clone(), deadline).await;
            assert_eq!(answer, Ok(body));
            // It has to be on its way for its place to be freed.
            let _ = held.as_mut().now_or_never();
        }
        drop(held);
        rt.timeout(LONG, service.cancelled.notified())
            .await
            .expect("the server heard that nobody waits");
    })
    .unwrap();
}

#[test]
fn a_call_fails_at_its_deadline_with_an_unknown_outcome() {
    block_on(2, |rt| async move {
        let (address, _service, _task) = echo(&rt).await;
        let pool = Pool::new(rt.clone(), Nobody);
        let deadline = rt.now() + Duration::from_millis(50);
        let answer = pool
            .call(target(address), What::Call, Bytes::from_static(b"h"), deadline)
            .await;
        assert!(matches!(answer, Err(CallFailure::Unknown(_))), "{answer:?}");
    })
    .unwrap();
}

#[test]
fn large_bodies_pass_and_larger_ones_are_not_sent() {
    block_on(2, |rt| async move {
        let (address, _service, _task) = echo(&rt).await;
        let pool = Pool::new(rt.clone(), Nobody);
        let deadline = rt.now() + LONG;
        let body = Bytes::from(vec![b'.'; 3_000_000]);
        assert_eq!(
            pool.call(target(address), What::Call, body.clone(), deadline).await,
            Ok(body)
        );
        let body = Bytes::from(vec![b'.'; BODY_LEN_BYTES_MAX + 1]);
        let answer = pool.call(target(address), What::Call, body, deadline).await;
        assert!(matches!(answer, Err(CallFailure::NotSent(_))), "{answer:?}");
    })
    .unwrap();
}

#[test]
fn who_is_refused_or_meets_another_node_sends_nothing() {
    block_on(2, |rt| async move {
        let (address, _service, _task) = echo(&rt).await;
        let pool = Pool::new(rt.clone(), Nobody);
        let deadline = rt.now() + LONG;
        let refused = Target {
            kind: ConnectionKind::Raft,
            ..target(address)
        };
        let answer = pool.call(refused, What::Call, Bytes::new(), deadline).await;
        assert!(
            matches!(&answer, Err(CallFailure::NotSent(why)) if why.contains("another cluster")),
            "{answer:?}"
        );
        let other = Target {
            node: Some(NodeId(Uuid::from_bytes([1; 16]))),
            ..target(address)
        };
        let answer = pool.call(other, What::Call, Bytes::new(), deadline).await;
        assert!(matches!(answer, Err(CallFailure::NotSent(_))), "{answer:?}");
    })
    .unwrap();
}

/// What the server does with these bytes after a good handshake: it must close.
async fn closes_on(rt: &TokioRt, address: SocketAddr, bytes: &[u8]) {
    let mut stream = rt.tcp_connect(address).await.unwrap();
    stream.write_all(&preamble(ConnectionKind::Request)).await.unwrap();
    let hello = Frame {
        id: 0,
        what: What::Hello,
        body: Bytes::from(Nobody.hello(&target(address)).encode()),
    };
    write_frame(&mut stream, &hello).await.unwrap();
    let reply = read_frame(&mut stream, 4096, &Activity::default())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(reply.what, What::HelloReply);
    stream.write_all(bytes).await.unwrap();
    stream.flush().await.unwrap();
    let mut rest = Vec::new();
    // A reset is a close as well.
    let closed = rt.timeout(LONG, stream.read_to_end(&mut rest)).await;
    assert!(closed.is_ok(), "the connection stays open");
    assert!(rest.is_empty(), "it answered");
}

#[test]
fn a_length_that_lies_or_a_call_without_sense_closes_the_connection() {
    block_on(2, |rt| async move {
        let (address, _service, _task) = echo(&rt).await;
        let mut lie = vec![0xff; 4];
        lie.extend_from_slice(&[0; 8]);
        lie.push(3);
        closes_on(&rt, address, &lie).await;
        let call = |body: &'static [u8], what| {
            let header = FrameHeader {
                body_len_bytes: body.len(),
                id: 5,
                what,
            };
            [&header.encode()[..], body].concat()
        };
        closes_on(&rt, address, &call(b"x", What::Call)).await;
        closes_on(&rt, address, &call(b"", What::Reply)).await;
        let (other, _service, _task) = echo(&rt).await;
        let pool = Pool::new(rt.clone(), Nobody);
        let answer = pool
            .call(target(other), What::Call, Bytes::from_static(b"fine"), rt.now() + LONG)
            .await;
        assert_eq!(answer, Ok(Bytes::from_static(b"fine")));
    })
    .unwrap();
}

#[test]
fn nonsense_instead_of_a_handshake_closes_the_connection() {
    block_on(2, |rt| async move {
        let (address, _service, _task) = echo(&rt).await;
        for bytes in [
            &b"GET / HTTP/1.1\r\n\r\n"[..],
            &[1, 9, 0],
            &[1, 2, 255, 255, 255, 255, 0, 0, 0, 0, 0, 0, 0, 0, 1],
        ] {
            let mut stream = rt.tcp_connect(address).await.unwrap();
            stream.write_all(bytes).await.unwrap();
            let mut rest = Vec::new();
            let closed = rt.timeout(LONG, stream.read_to_end(&mut rest)).await;
            assert!(closed.is_ok() && rest.is_empty(), "{bytes:?}");
        }
    })
    .unwrap();
}

#[test]
fn connections_from_one_address_are_bounded() {
    block_on(2, |rt| async move {
        let (address, _service, _task) = echo(&rt).await;
        let mut open = Vec::new();
        for _ in 0..10 {
            let mut stream = rt.tcp_connect(address).await.unwrap();
            stream.write_all(&preamble(ConnectionKind::Request)).await.unwrap();
            let hello = Frame {
                id: 0,
                what: What::Hello,
                body: Bytes::from(Nobody.hello(&target(address)).encode()),
            };
            write_frame(&mut stream, &hello).await.unwrap();
            read_frame(&mut stream, 4096, &Activity::default())
                .await
                .unwrap()
                .unwrap();
            open.push(stream);
        }
        let mut stream = rt.tcp_connect(address).await.unwrap();
        let mut rest = Vec::new();
        let closed = rt.timeout(LONG, stream.read_to_end(&mut rest)).await;
        assert!(closed.is_ok(), "an eleventh was served");
    })
    .unwrap();
}
