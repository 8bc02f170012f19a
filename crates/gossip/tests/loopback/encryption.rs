//! Encrypted pools on the real kernel: who is let in, how encryption is switched on and keys are changed while members talk,
//! and what becomes of packets that somebody recorded.

use crate::{PATIENCE, alive, refused, refused_count, start_with, until, until_all_alive};
use futures::future::BoxFuture;
use quorate_gossip::{Encryption, Gossip, GossipConfig, KeyBytes, Keyring, KeyringRequest, NotKept, Past, RingKey};
use quorate_rt::production::{TokioRt, block_on};
use quorate_rt::{Elapsed, Event, InterfaceAddress, ProcessOutput, ProcessSpec, Rng, Rt, Signal, Udp};
use quorate_types::{Instant, NodeId, Uuid, WallTime};
use quorate_wire::gossip::{FRAME_HEADER_LEN_BYTES, StreamMessage, decode_frame_body, decode_frame_header};
use quorate_wire::seal::{Binding, Direction, GREETING_LEN_BYTES, Greeting, Seal, StartId};
use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use zeroize::Zeroizing;

/// The machine, with a clock that can be put forward and datagrams that are recorded.
#[derive(Clone)]
struct TapRt {
    inner: TokioRt,
    skipped: Arc<AtomicU64>,
    sent: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl TapRt {
    fn skipped(&self) -> Duration {
        Duration::from_millis(self.skipped.load(Ordering::SeqCst))
    }
    /// So much later for all members, at once.
    fn skip(&self, hours: u64) {
        self.skipped.fetch_add(hours * 3_600_000, Ordering::SeqCst);
    }
}

struct TapUdp<U> {
    inner: U,
    sent: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl<U: Udp> Udp for TapUdp<U> {
    async fn send_to(&self, datagram: &[u8], to: SocketAddr) -> io::Result<()> {
        self.sent.lock().expect("no holder panics").push(datagram.to_vec());
        self.inner.send_to(datagram, to).await
    }
    async fn recv_from(&self, buffer: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        self.inner.recv_from(buffer).await
    }
    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }
}

impl Rt for TapRt {
    type Stream = <TokioRt as Rt>::Stream;
    type Listener = <TokioRt as Rt>::Listener;
    type Udp = TapUdp<<TokioRt as Rt>::Udp>;
    type Disk = <TokioRt as Rt>::Disk;

    fn now(&self) -> Instant {
        self.inner.now() + self.skipped()
    }
    fn wall_now(&self) -> WallTime {
        self.inner.wall_now() + self.skipped()
    }
    async fn sleep_until(&self, at: Instant) {
        let left = at - self.now();
        self.inner.sleep(left).await;
    }
    fn rng(&self, stream: &str) -> Rng {
        self.inner.rng(stream)
    }
    fn spawn_detached(&self, name: &'static str, work: BoxFuture<'static, ()>) {
        self.inner.spawn_detached(name, work);
    }
    async fn run_blocking<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        self.inner.run_blocking(work).await
    }
    async fn tcp_connect(&self, to: SocketAddr) -> io::Result<Self::Stream> {
        self.inner.tcp_connect(to).await
    }
    async fn tcp_listen(&self, at: SocketAddr) -> io::Result<Self::Listener> {
        self.inner.tcp_listen(at).await
    }
    async fn udp_bind(&self, at: SocketAddr) -> io::Result<Self::Udp> {
        let inner = self.inner.udp_bind(at).await?;
        let sent = Arc::clone(&self.sent);
        Ok(TapUdp { inner, sent })
    }
    async fn resolve(&self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        self.inner.resolve(host, port).await
    }
    fn disk(&self) -> Self::Disk {
        self.inner.disk()
    }
    async fn run_process(&self, spec: ProcessSpec) -> ProcessOutput {
        self.inner.run_process(spec).await
    }
    fn host_name(&self) -> String {
        self.inner.host_name()
    }
    fn interface_addresses(&self) -> Vec<InterfaceAddress> {
        self.inner.interface_addresses()
    }
    fn environment(&self, name: &str) -> Option<String> {
        self.inner.environment(name)
    }
    fn process_id(&self) -> u32 {
        self.inner.process_id()
    }
    async fn next_signal(&self) -> Signal {
        self.inner.next_signal().await
    }
    fn event(&self, event: Event<'_>) {
        self.inner.event(event);
    }
}

fn run<F: Future<Output = ()> + Send>(main: impl FnOnce(TapRt) -> F) {
    block_on(2, |inner| async move {
        let rt = TapRt {
            inner: inner.clone(),
            skipped: Arc::default(),
            sent: Arc::default(),
        };
        let done: Result<(), Elapsed> = inner.timeout(PATIENCE, main(rt)).await;
        done.expect("the test ends in time");
    })
    .expect("start a runtime");
}

fn ip(test: u8) -> Ipv4Addr {
    Ipv4Addr::new(127, 0, 2, test)
}
fn key(first: u8) -> RingKey {
    RingKey::from_bytes(&[first; 32]).expect("32 bytes")
}
fn sent_key(first: u8) -> KeyBytes {
    KeyBytes(Zeroizing::new(vec![first; 32]))
}
fn encryption(first: u8, verify_incoming: bool, verify_outgoing: bool) -> Encryption {
    Encryption {
        keyring: Keyring::new(key(first)),
        verify_incoming,
        verify_outgoing,
        keeper: Arc::new(NotKept),
    }
}
fn config(test: u8, n: u8, encryption: Option<Encryption>) -> GossipConfig {
    GossipConfig {
        encryption,
        ..crate::config(ip(test), n)
    }
}
async fn start(rt: &TapRt, test: u8, n: u8, first: u8) -> Gossip<TapRt> {
    start_with(rt, config(test, n, Some(encryption(first, true, true)))).await
}

#[test]
fn members_with_one_key_are_a_pool_and_nobody_else_is_let_in() {
    run(|rt| async move {
        let (one, two) = (start(&rt, 1, 1, 7).await, start(&rt, 1, 2, 7).await);
        two.join(&[one.address()]).await.expect("join");
        until_all_alive(&rt, &[&one, &two], &["n1", "n2"]).await;
        assert_eq!(one.stats()["encrypted"], "true");

        let keyless = start_with(&rt, config(1, 3, None)).await;
        let err = keyless.join(&[one.address()]).await.expect_err("no key").to_string();
        assert!(
            err.contains("remote state is encrypted and encryption is not configured"),
            "{err}"
        );
        let err = one.join(&[keyless.address()]).await.expect_err("no key").to_string();
        assert!(
            err.contains("encryption is configured but remote state is not encrypted"),
            "{err}"
        );
        let stranger = start(&rt, 1, 4, 8).await;
        let err = stranger
            .join(&[one.address()])
            .await
            .expect_err("another key")
            .to_string();
        assert!(err.contains("no installed keys could decrypt the message"), "{err}");
        // Known to the others in half the ways there are: it pings, and is not answered.
        assert_eq!(refused(&one, "plaintext"), 1);
        assert_eq!(refused(&one, "unknown_key"), 1);
        assert_eq!(refused(&keyless, "no_keyring"), 1);
        for member in [&one, &two] {
            assert_eq!(member.members().len(), 2);
            member.check();
        }
    });
}

#[test]
fn all_traffic_of_an_encrypted_pool_is_sealed() {
    run(|rt| async move {
        let (one, two) = (start(&rt, 2, 1, 7).await, start(&rt, 2, 2, 7).await);
        two.join(&[one.address()]).await.expect("join");
        until_all_alive(&rt, &[&one, &two], &["n1", "n2"]).await;
        let tags = BTreeMap::from([("secret-tag".to_owned(), "secret-value".to_owned())]);
        two.set_tags(tags).await.expect("short tags");
        until(&rt, "the tag is known", || {
            one.members()
                .iter()
                .any(|member| member.tags.contains_key("secret-tag"))
        })
        .await;
        let sent = rt.sent.lock().expect("no holder panics");
        assert!(!sent.is_empty());
        for packet in sent.iter() {
            assert_eq!(packet[..2], [1, 1], "sealed");
            assert!(!packet.windows(10).any(|window| window == b"secret-tag"));
            assert!(packet.len() <= 1400);
        }
    });
}

#[test]
fn encryption_is_switched_on_member_by_member() {
    run(|rt| async move {
        let names = ["n1", "n2", "n3"];
        let mut members = Vec::new();
        let mut configs = Vec::new();
        for n in 1..=3 {
            let mut config = config(3, n, None);
            let member = start_with(&rt, config.clone()).await;
            config.bind = member.address();
            members.push(member);
            configs.push(config);
        }
        for member in &members[1..] {
            member.join(&[members[0].address()]).await.expect("join");
        }
        until_all_alive(&rt, &members.iter().collect::<Vec<_>>(), &names).await;
        // Keys everywhere; then everybody seals; then nobody takes plaintext.
        for (verify_incoming, verify_outgoing) in [(false, false), (false, true), (true, true)] {
            for n in 0..3 {
                members[n].stop().await;
                configs[n].encryption = Some(encryption(7, verify_incoming, verify_outgoing));
                members[n] = start_with(&rt, configs[n].clone()).await;
                let others: Vec<SocketAddr> = (0..3).filter(|m| *m != n).map(|m| configs[m].bind).collect();
                assert_eq!(members[n].join(&others).await.expect("join"), 2);
                until_all_alive(&rt, &members.iter().collect::<Vec<_>>(), &names).await;
            }
        }
        for member in &members {
            // A datagram of a member just before it was stopped may come late.
            assert_eq!(refused(member, "unknown_key") + refused(member, "forged"), 0);
            assert_eq!(member.health_score(), 0);
        }
        let keyless = start_with(&rt, config(3, 4, None)).await;
        keyless.join(&[members[0].address()]).await.expect_err("switched on");
    });
}

#[test]
fn keys_are_installed_used_and_removed_everywhere_while_members_talk() {
    run(|rt| async move {
        let names = ["n1", "n2", "n3"];
        let (one, two, three) = (
            start(&rt, 4, 1, 7).await,
            start(&rt, 4, 2, 7).await,
            start(&rt, 4, 3, 7).await,
        );
        for member in [&two, &three] {
            member.join(&[one.address()]).await.expect("join");
        }
        let all = [&one, &two, &three];
        until_all_alive(&rt, &all, &names).await;
        let unused = two.keyring(KeyringRequest::Use(sent_key(8))).await;
        assert_eq!(unused.len(), 3);
        for answer in unused {
            assert_eq!(answer.result, Err("Requested key is not in the keyring".to_owned()));
        }
        for (request, keys) in [
            (KeyringRequest::Install(sent_key(8)), vec![key(7), key(8)]),
            (KeyringRequest::Use(sent_key(8)), vec![key(8), key(7)]),
            (KeyringRequest::Remove(sent_key(7)), vec![key(8)]),
        ] {
            for answer in two.keyring(request).await {
                assert_eq!(answer.result, Ok(vec![]), "{}", answer.member.name);
            }
            for answer in three.keyring(KeyringRequest::List).await {
                assert_eq!(answer.result, Ok(keys.clone()), "{}", answer.member.name);
            }
        }
        for answer in one.keyring(KeyringRequest::Remove(sent_key(8))).await {
            assert_eq!(answer.result, Err("Removing the primary key is not allowed".to_owned()));
        }
        let short = KeyBytes(Zeroizing::new(vec![1, 2, 3]));
        for answer in one.keyring(KeyringRequest::Install(short)).await {
            assert_eq!(answer.result, Err("key size must be 16, 24 or 32 bytes".to_owned()));
        }
        until_all_alive(&rt, &all, &names).await;
        // With the key that is no longer there.
        let late = start(&rt, 4, 4, 7).await;
        late.join(&[one.address()]).await.expect_err("the old key");
        let right = start(&rt, 4, 5, 8).await;
        right.join(&[one.address()]).await.expect("the new key");
    });
}

#[test]
fn keys_do_not_travel_in_plaintext() {
    run(|rt| async move {
        let lenient = start_with(&rt, config(5, 1, Some(encryption(7, false, false)))).await;
        let keyless = start_with(&rt, config(5, 2, None)).await;
        keyless
            .join(&[lenient.address()])
            .await
            .expect("plaintext is let through");
        until_all_alive(&rt, &[&lenient, &keyless], &["n1", "n2"]).await;
        let [of_lenient, of_keyless] = &keyless.keyring(KeyringRequest::List).await[..] else {
            panic!("two members");
        };
        let err = "Keyring requests are answered over encrypted streams only";
        assert_eq!(of_lenient.result, Err(err.to_owned()));
        let err = "Keyring is empty (encryption not enabled)";
        assert_eq!(of_keyless.result, Err(err.to_owned()));
        // A member with the ring asks sealed, though it sends its gossip in plaintext.
        let second = start_with(&rt, config(5, 3, Some(encryption(7, false, false)))).await;
        second.join(&[lenient.address()]).await.expect("join");
        let answers = second.keyring(KeyringRequest::List).await;
        assert_eq!(answers[0].result, Ok(vec![key(7)]));
    });
}

#[test]
fn what_was_recorded_is_of_no_use_hours_later_even_at_a_newcomer() {
    run(|rt| async move {
        let (one, two, gone) = (
            start(&rt, 6, 1, 7).await,
            start(&rt, 6, 2, 7).await,
            start(&rt, 6, 3, 7).await,
        );
        for member in [&two, &gone] {
            member.join(&[one.address()]).await.expect("join");
        }
        until_all_alive(&rt, &[&one, &two, &gone], &["n1", "n2", "n3"]).await;
        let tags = BTreeMap::from([("role".to_owned(), "consul".to_owned())]);
        gone.set_tags(tags).await.expect("short tags");
        until(&rt, "the news of n3 were sent", || {
            let is_server = |member: &Gossip<TapRt>| member.members().iter().any(|member| member.is_server());
            is_server(&one) && is_server(&two)
        })
        .await;
        gone.leave().await;
        gone.stop().await;
        until(&rt, "n3 left", || alive(&one).len() == 2 && alive(&two).len() == 2).await;
        let recorded = rt.sent.lock().expect("no holder panics").clone();
        assert!(recorded.len() > 5);

        // Whoever left is forgotten after a day: nobody holds an incarnation against what was said of it.
        rt.skip(30);
        until(&rt, "n3 is forgotten", || {
            one.members().len() == 2 && two.members().len() == 2
        })
        .await;
        let newcomer = start(&rt, 6, 4, 7).await;
        let udp = rt.udp_bind(SocketAddr::from((ip(6), 0))).await.expect("bind");
        let replay = async |to: &Gossip<TapRt>| {
            let refused = refused_count(to);
            for packet in &recorded {
                udp.send_to(packet, to.address()).await.expect("send");
            }
            until(&rt, "all that was recorded is refused", || {
                refused_count(to) >= refused + recorded.len() as u64
            })
            .await;
        };
        replay(&newcomer).await;
        assert_eq!(newcomer.members().len(), 1, "before it joins");
        newcomer.join(&[one.address()]).await.expect("join");
        until_all_alive(&rt, &[&one, &two, &newcomer], &["n1", "n2", "n4"]).await;
        for member in [&one, &two, &newcomer] {
            replay(member).await;
            assert_eq!(member.members().len(), 3);
            member.check();
        }
        assert!(refused(&newcomer, "unsynced") > 0 && refused(&newcomer, "stale") > 0);
    });
}

#[test]
fn what_was_recorded_wins_nothing_when_all_restart_with_clocks_behind() {
    run(|rt| async move {
        // An earlier life of the pool, whose clocks were ahead.
        rt.skip(30);
        let (one, two) = (start(&rt, 9, 1, 7).await, start(&rt, 9, 2, 7).await);
        two.join(&[one.address()]).await.expect("join");
        until_all_alive(&rt, &[&one, &two], &["n1", "n2"]).await;
        let tags = BTreeMap::from([("role".to_owned(), "consul".to_owned())]);
        two.set_tags(tags).await.expect("short tags");
        until(&rt, "the news of n2 were sent", || {
            one.members().iter().any(|member| member.is_server())
        })
        .await;
        let recorded = rt.sent.lock().expect("no holder panics").clone();
        assert!(!recorded.is_empty());
        rt.skip(1);
        let before = [one.past(), two.past()];
        for member in [&one, &two] {
            member.stop().await;
        }

        let behind = TapRt {
            inner: rt.inner.clone(),
            skipped: Arc::default(),
            sent: Arc::default(),
        };
        let again = async |n: u8, past: Past| {
            let config = GossipConfig {
                past,
                ..config(9, n, Some(encryption(7, true, true)))
            };
            start_with(&behind, config).await
        };
        let (one, two) = (again(1, before[0]).await, again(2, before[1]).await);
        for (member, before) in [(&one, before[0]), (&two, before[1])] {
            let past = member.past();
            assert!(
                past.incarnation > before.incarnation && past.time_ms >= before.time_ms,
                "{past:?}"
            );
        }
        two.join(&[one.address()]).await.expect("join");
        until_all_alive(&behind, &[&one, &two], &["n1", "n2"]).await;
        let udp = behind.udp_bind(SocketAddr::from((ip(9), 0))).await.expect("bind");
        for packet in &recorded {
            udp.send_to(packet, one.address()).await.expect("send");
        }
        until(&behind, "all that was recorded is refused", || {
            refused(&one, "stale") >= recorded.len() as u64
        })
        .await;
        let addresses: Vec<SocketAddr> = one.members().iter().map(|member| member.address).collect();
        assert_eq!(addresses, [one.address(), two.address()]);

        // Who keeps nothing of its past believes what it is sent, until others tell it the time.
        let (naive, other) = (again(1, Past::default()).await, again(2, Past::default()).await);
        other.join(&[naive.address()]).await.expect("join");
        for packet in &recorded {
            udp.send_to(packet, naive.address()).await.expect("send");
        }
        until(&behind, "it hears of a later time", || {
            naive.past().time_ms + 60_000 > before[0].time_ms - 3_600_000
        })
        .await;
        assert_eq!(refused(&naive, "stale"), 0);
    });
}

/// Reads the plain frame that says why.
async fn read_refusal(stream: &mut <TokioRt as Rt>::Stream) -> StreamMessage {
    let mut header = [0; FRAME_HEADER_LEN_BYTES];
    stream.read_exact(&mut header).await.expect("a header");
    let header = decode_frame_header(&header).expect("plain");
    let mut body = vec![0; header.body_len_bytes];
    stream.read_exact(&mut body).await.expect("a body");
    decode_frame_body(header, &body).expect("a message")
}

#[test]
fn a_frame_of_another_stream_is_refused() {
    run(|rt| async move {
        let one = start(&rt, 7, 1, 7).await;
        let mut insider = Seal::new(Keyring::new(key(7)), StartId([9; 16]), 0, rt.now(), 8);
        let mut stream = rt.tcp_connect(one.address()).await.expect("connect");
        let client = Greeting([1; 16]);
        stream.write_all(&client.encode()).await.expect("write");
        let mut server = [0; GREETING_LEN_BYTES];
        stream.read_exact(&mut server).await.expect("read");
        let server = Greeting::decode(&server).expect("a greeting");
        let target = NodeId(Uuid::from_bytes([1; 16]));
        // As recorded from a stream whose server greeted otherwise.
        let binding = Binding {
            client,
            server: Greeting([2; 16]),
            direction: Direction::Request,
        };
        assert_ne!(binding.server, server);
        let ping = StreamMessage::Ping { target };
        let frame = insider.frame_sealer(rt.now()).seal(&binding, &ping).expect("short");
        stream.write_all(&frame).await.expect("write");
        let answer = read_refusal(&mut stream).await;
        assert!(matches!(answer, StreamMessage::Unreadable(_)), "{answer:?}");
        until(&rt, "counted", || refused(&one, "forged") == 1).await;
    });
}

#[test]
fn nonsense_at_an_encrypted_member_is_counted_by_its_cause() {
    run(|rt| async move {
        let one = start(&rt, 8, 1, 7).await;
        let udp = rt.udp_bind(SocketAddr::from((ip(8), 0))).await.expect("bind");
        let mut stranger = Seal::new(Keyring::new(key(8)), StartId([9; 16]), 0, rt.now(), 8);
        let cut = |packet: Vec<u8>| packet[..packet.len() / 2].to_vec();
        let packets = [
            (quorate_wire::gossip::encode_packet(&[]), "plaintext"),
            (stranger.seal_packet(rt.now(), &[]), "unknown_key"),
            (cut(stranger.seal_packet(rt.now(), &[])), "malformed"),
            (b"GET / HTTP/1.1".to_vec(), "malformed"),
            (vec![1], "malformed"),
            (vec![], "malformed"),
            (vec![1; 1500], "malformed"),
        ];
        for (packet, cause) in packets {
            let before = refused(&one, cause);
            udp.send_to(&packet, one.address()).await.expect("send");
            until(&rt, cause, || refused(&one, cause) == before + 1).await;
        }
        one.check();
        let two = start(&rt, 8, 2, 7).await;
        two.join(&[one.address()]).await.expect("join");
        until_all_alive(&rt, &[&one, &two], &["n1", "n2"]).await;
    });
}
