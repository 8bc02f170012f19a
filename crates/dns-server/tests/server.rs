//! The server over real sockets of the loopback interface, against a catalog and recursors of the test's own.

#[path = "../../dns-answer/tests/catalog/mod.rs"]
mod catalog;

use catalog::Catalog as Recorded;
use hickory_proto::op::{Message, ResponseCode};
use quorate_dns_answer::{DnsConfig, Name, encode_question, qtype};
use quorate_dns_server::{Catalog, DnsServer, Limits, LookupError, RecursorStrategy, Settings};
use quorate_rt::production::{TokioRt, block_on};
use quorate_rt::{Listener as _, Rt, Udp as _};
use quorate_store::{Evaluation, Query};
use quorate_types::ModifyIndex;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::Semaphore;

/// For a test that would otherwise hang: nothing here takes a tenth of it.
const PATIENCE: Duration = Duration::from_secs(30);

/// Answers at once, after the gate opened, or not at all, by the datacenter that is asked.
#[derive(Clone)]
struct Fake {
    recorded: Arc<Recorded>,
    gate: Arc<Semaphore>,
}

impl Fake {
    fn new() -> Self {
        Self {
            recorded: Arc::new(Recorded::recorded()),
            gate: Arc::new(Semaphore::new(0)),
        }
    }
}

impl Catalog for Fake {
    fn observe_question(&self, _qtype: u16, _took: Duration) {}
    async fn evaluate(&self, datacenter: Option<&str>, query: Query) -> Result<Evaluation, LookupError> {
        match datacenter {
            Some("gated") => drop(self.gate.acquire().await),
            Some("silent") => std::future::pending().await,
            Some("broken") => return Err(LookupError::NoServers),
            Some(_) => return Err(LookupError::NoPath),
            None => {}
        }
        Ok(Evaluation {
            index: ModifyIndex(1),
            answer: self.recorded.evaluate(&query),
        })
    }
}

fn settings() -> Settings {
    Settings::new(DnsConfig::new("consul.", "dc1").unwrap())
}

fn loopback() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

fn question(id: u16, name: &str, asked: u16) -> Vec<u8> {
    encode_question(id, &Name::from_text(name).unwrap(), asked)
}

fn run<F: Future<Output = ()> + Send>(test: impl FnOnce(TokioRt) -> F) {
    block_on(2, |rt| async move {
        let patient = rt.clone();
        let done = patient.timeout(PATIENCE, test(rt)).await;
        done.expect("the test ends");
    })
    .expect("a runtime starts");
}

async fn start(rt: &TokioRt, settings: Settings, fake: &Fake) -> DnsServer<TokioRt, Fake> {
    DnsServer::start(rt.clone(), vec![loopback()], settings, fake.clone())
        .await
        .expect("free ports")
}

struct Client {
    udp: <TokioRt as Rt>::Udp,
    server: SocketAddr,
}

impl Client {
    async fn new(rt: &TokioRt, server: SocketAddr) -> Self {
        let udp = rt.udp_bind(loopback()).await.unwrap();
        Self { udp, server }
    }
    async fn send(&self, message: &[u8]) {
        self.udp.send_to(message, self.server).await.unwrap();
    }
    async fn receive(&self) -> Message {
        let mut buffer = vec![0; 65_535];
        let (len_bytes, from) = self.udp.recv_from(&mut buffer).await.unwrap();
        assert_eq!(from, self.server);
        Message::from_vec(&buffer[..len_bytes]).unwrap()
    }
    async fn ask(&self, name: &str, asked: u16) -> Message {
        self.send(&question(7, name, asked)).await;
        self.receive().await
    }
}

async fn write_framed(stream: &mut <TokioRt as Rt>::Stream, messages: &[Vec<u8>]) {
    let framed: Vec<u8> = messages
        .iter()
        .flat_map(|message| {
            let len_bytes = u16::try_from(message.len()).unwrap().to_be_bytes();
            [&len_bytes[..], message].concat()
        })
        .collect();
    stream.write_all(&framed).await.unwrap();
}

async fn read_framed(stream: &mut <TokioRt as Rt>::Stream) -> Vec<u8> {
    let mut length = [0; 2];
    stream.read_exact(&mut length).await.unwrap();
    let mut message = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut message).await.unwrap();
    message
}

/// A reply with `rcode` and, if given, an A record.
fn recursor_reply(question: &[u8], rcode: u8, address: Option<[u8; 4]>) -> Vec<u8> {
    let mut reply = question.to_vec();
    reply[2] |= 0x80;
    reply[3] = 0x80 | rcode;
    if let Some(address) = address {
        reply[7] = 1;
        reply.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1, 0, 0, 1, 44, 0, 4]);
        reply.extend_from_slice(&address);
    }
    reply
}

/// A recursor on UDP that answers every question with what `answer` says; `None`: it stays silent.
async fn recursor(
    rt: &TokioRt,
    answer: impl Fn(&[u8]) -> Option<Vec<u8>> + Send + 'static,
) -> (SocketAddr, quorate_rt::task::AbortOnDrop) {
    let udp = rt.udp_bind(loopback()).await.unwrap();
    let address = udp.local_addr().unwrap();
    let task = rt.spawn("recursor", async move {
        let mut buffer = vec![0; 4096];
        loop {
            let (len_bytes, from) = udp.recv_from(&mut buffer).await.unwrap();
            if let Some(reply) = answer(&buffer[..len_bytes]) {
                udp.send_to(&reply, from).await.unwrap();
            }
        }
    });
    (address, task.abort_on_drop())
}

#[test]
fn questions_over_udp_are_answered_from_the_catalog() {
    run(|rt| async move {
        let server = start(&rt, settings(), &Fake::new()).await;
        let client = Client::new(&rt, server.bound()[0].udp).await;
        let reply = client.ask("n1.node.consul", qtype::A).await;
        assert_eq!(reply.answers[0].to_string(), "n1.node.consul. 0 IN A 10.0.0.1");
        assert_eq!(reply.metadata.id, 7);
        for (name, code) in [
            ("nope.service.consul", ResponseCode::NXDomain),
            ("db.service.unknown.consul", ResponseCode::NXDomain),
            ("db.service.broken.consul", ResponseCode::ServFail),
            ("example.com", ResponseCode::Refused),
        ] {
            let reply = client.ask(name, qtype::A).await;
            assert_eq!(reply.metadata.response_code, code, "{name}");
        }
        assert_eq!(server.counts().replies, 5);
        server.stop().await;
    });
}

#[test]
fn what_is_no_question_gets_no_answer_and_ends_nothing() {
    run(|rt| async move {
        let server = start(&rt, settings(), &Fake::new()).await;
        let client = Client::new(&rt, server.bound()[0].udp).await;
        let mut response = question(1, "n1.node.consul", qtype::A);
        response[2] |= 0x80;
        for message in [&b""[..], b"short", &response] {
            client.send(message).await;
        }
        let mut empty = question(2, "n1.node.consul", qtype::A);
        empty[5] = 0;
        client.send(&empty).await;
        let reply = client.receive().await;
        assert_eq!(
            (reply.metadata.id, reply.metadata.response_code),
            (2, ResponseCode::FormErr)
        );
        let mut later_edns = question(3, "n1.node.consul", qtype::A);
        later_edns[11] = 1;
        later_edns.extend_from_slice(&[0, 0, 41, 4, 208, 0, 1, 0, 0, 0, 0]);
        client.send(&later_edns).await;
        let reply = client.receive().await;
        // BADVERS.
        assert_eq!((reply.metadata.id, u16::from(reply.metadata.response_code)), (3, 16));
        server.stop().await;
    });
}

#[test]
fn a_question_that_waits_holds_up_no_other() {
    run(|rt| async move {
        let fake = Fake::new();
        let server = start(&rt, settings(), &fake).await;
        let client = Client::new(&rt, server.bound()[0].udp).await;
        for id in 0..20 {
            client.send(&question(id, "db.service.gated.consul", qtype::A)).await;
        }
        let reply = client.ask("n1.node.consul", qtype::A).await;
        assert_eq!(reply.metadata.id, 7);
        assert_eq!(reply.queries[0].name.to_ascii(), "n1.node.consul.");
        fake.gate.add_permits(1);
        let mut ids = Vec::new();
        for _ in 0..20 {
            ids.push(client.receive().await.metadata.id);
        }
        ids.sort_unstable();
        assert_eq!(ids, (0..20).collect::<Vec<_>>());
        server.stop().await;
    });
}

#[test]
fn beyond_the_bound_datagrams_are_dropped_and_the_rest_is_given_up_in_time() {
    run(|rt| async move {
        let mut settings = settings();
        settings.limits = Limits {
            waiting_count_max: 3,
            question_timeout: Duration::from_millis(300),
            ..Limits::default()
        };
        let server = start(&rt, settings, &Fake::new()).await;
        let client = Client::new(&rt, server.bound()[0].udp).await;
        for id in 0..10 {
            client.send(&question(id, "db.service.silent.consul", qtype::A)).await;
        }
        for _ in 0..3 {
            let reply = client.receive().await;
            assert_eq!(reply.metadata.response_code, ResponseCode::ServFail);
        }
        // Those that were given up make room; a client asks again until they have.
        loop {
            let reply = rt.timeout(Duration::from_millis(100), client.ask("n1.node.consul", qtype::A));
            if reply.await.is_ok_and(|reply| !reply.answers.is_empty()) {
                break;
            }
        }
        let counts = server.counts();
        assert!(counts.timeouts >= 3 && counts.dropped_datagrams >= 1, "{counts:?}");
        assert!(counts.timeouts + counts.dropped_datagrams >= 10, "{counts:?}");
        server.stop().await;
    });
}

#[test]
fn questions_on_one_connection_are_answered_in_order_and_whole() {
    run(|rt| async move {
        let server = start(&rt, settings(), &Fake::new()).await;
        let mut stream = rt.tcp_connect(server.bound()[0].tcp).await.unwrap();
        let messages: Vec<_> = (0..5)
            .map(|id| question(id, "many.service.consul", qtype::SRV))
            .collect();
        write_framed(&mut stream, &messages).await;
        for id in 0..5 {
            let reply = Message::from_vec(&read_framed(&mut stream).await).unwrap();
            assert_eq!((reply.metadata.id, reply.answers.len()), (id, 40));
        }
        // What is no question ends the connection.
        write_framed(&mut stream, &[b"garbage".to_vec()]).await;
        assert_eq!(stream.read(&mut [0; 1]).await.unwrap(), 0);
        server.stop().await;
    });
}

#[test]
fn silent_and_surplus_connections_are_closed() {
    run(|rt| async move {
        let mut settings = settings();
        settings.limits = Limits {
            connection_count_max: 2,
            tcp_idle_timeout: Duration::from_millis(200),
            ..Limits::default()
        };
        let server = start(&rt, settings, &Fake::new()).await;
        let address = server.bound()[0].tcp;
        let mut streams = Vec::new();
        for _ in 0..3 {
            streams.push(rt.tcp_connect(address).await.unwrap());
        }
        // Half a length, then silence.
        streams[0].write_all(&[0]).await.unwrap();
        for stream in &mut streams {
            // Closed, or reset where something was left unread.
            assert!(matches!(stream.read(&mut [0; 1]).await, Ok(0) | Err(_)));
        }
        assert_eq!(server.counts().refused_connections, 1);
        let mut stream = rt.tcp_connect(address).await.unwrap();
        write_framed(&mut stream, &[question(9, "n1.node.consul", qtype::A)]).await;
        assert_eq!(read_framed(&mut stream).await[..2], [0, 9]);
        server.stop().await;
    });
}

#[test]
fn foreign_names_go_to_the_first_recursor_that_answers() {
    run(|rt| async move {
        let (refusing, _refusing) = recursor(&rt, |question| Some(recursor_reply(question, 5, None))).await;
        let (forging, _forging) = recursor(&rt, |question| {
            let mut reply = recursor_reply(question, 0, Some([6, 6, 6, 6]));
            reply[0] ^= 0xff;
            Some(reply)
        })
        .await;
        let (good, _good) = recursor(&rt, |question| {
            let is_absent = question.windows(2).any(|bytes| bytes == b"nx");
            Some(match is_absent {
                true => recursor_reply(question, 3, None),
                false => recursor_reply(question, 0, Some([9, 9, 9, 9])),
            })
        })
        .await;
        let mut settings = settings();
        settings.recursors = vec![refusing, forging, good];
        settings.recursor_timeout = Duration::from_millis(200);
        let server = start(&rt, settings.clone(), &Fake::new()).await;
        let client = Client::new(&rt, server.bound()[0].udp).await;
        let reply = client.ask("example.com", qtype::A).await;
        assert_eq!(reply.answers[0].to_string(), "example.com. 300 IN A 9.9.9.9");
        assert_eq!((reply.metadata.id, reply.metadata.authoritative), (7, false));
        let absent = client.ask("nx.example.com", qtype::A).await;
        assert_eq!(absent.metadata.response_code, ResponseCode::NXDomain);
        let alias = client.ask("ext.db.service.consul", qtype::A).await;
        let texts: Vec<_> = alias.answers.iter().map(ToString::to_string).collect();
        assert_eq!(
            texts,
            [
                "ext.db.service.consul. 0 IN CNAME db.example.com.",
                "db.example.com. 0 IN A 9.9.9.9"
            ]
        );
        assert!(alias.metadata.authoritative && alias.metadata.recursion_available);
        let reverse = client.ask("1.0.99.10.in-addr.arpa", qtype::PTR).await;
        assert_eq!(reverse.metadata.response_code, ResponseCode::NoError);

        // Without the good one nobody answers.
        settings.recursors.pop();
        settings.recursor_strategy = RecursorStrategy::Random;
        server.reload(settings);
        let reply = client.ask("example.com", qtype::A).await;
        assert_eq!(reply.metadata.response_code, ResponseCode::ServFail);
        assert!(reply.metadata.recursion_available && !reply.metadata.authoritative);
        server.stop().await;
    });
}

#[test]
fn foreign_names_over_tcp_go_to_recursors_over_tcp() {
    run(|rt| async move {
        let listener = rt.tcp_listen(loopback()).await.unwrap();
        let recursor = listener.local_addr().unwrap();
        let task = rt.spawn("recursor", async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let question = read_framed(&mut stream).await;
            write_framed(&mut stream, &[recursor_reply(&question, 0, Some([9, 9, 9, 9]))]).await;
        });
        let mut settings = settings();
        settings.recursors = vec![recursor];
        let server = start(&rt, settings, &Fake::new()).await;
        let mut stream = rt.tcp_connect(server.bound()[0].tcp).await.unwrap();
        write_framed(&mut stream, &[question(3, "example.com", qtype::A)]).await;
        let reply = Message::from_vec(&read_framed(&mut stream).await).unwrap();
        assert_eq!((reply.metadata.id, reply.answers.len()), (3, 1));
        task.join().await.unwrap();
        server.stop().await;
    });
}

#[test]
fn a_stopped_server_leaves_its_ports() {
    run(|rt| async move {
        // An address of its own, so that no socket of another test takes the port meanwhile.
        let addresses = vec!["127.0.0.2:0".parse().unwrap()];
        let server = DnsServer::start(rt.clone(), addresses, settings(), Fake::new())
            .await
            .expect("free ports");
        let bound = server.bound()[0];
        let taken = DnsServer::start(rt.clone(), vec![bound.udp], settings(), Fake::new()).await;
        let message = taken.err().expect("the port is taken").to_string();
        assert_eq!(
            message,
            format!("listen udp {}: bind: address already in use", bound.udp)
        );
        server.stop().await;
        assert!(rt.tcp_connect(bound.tcp).await.is_err());
        drop(rt.tcp_listen(bound.tcp).await.unwrap());
    });
}
