//! What no recorded answer shows: waiting, limits, gates, broken handlers, real connections, the stop.

use crate::support::TestBackend;
use axum::Router;
use axum::body::Body;
use futures::future::join;
use http::{HeaderMap, Request, StatusCode};
use http_body_util::BodyExt as _;
use quorate_http_api::{Api, HttpConfig, HttpServer, Peer, answer, router};
use quorate_rt::Rt;
use quorate_rt::production::{TokioRt, block_on};
use quorate_store::{Command, KvCommand};
use quorate_types::KvPair;
use std::io::Read as _;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// An API without sockets.
struct World {
    rt: TokioRt,
    api: Api<TokioRt, TestBackend>,
    router: Router,
    backend: TestBackend,
}

struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Vec<u8>,
}

impl Answer {
    fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }
    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }
}

impl World {
    fn new(rt: TokioRt, config: HttpConfig) -> Self {
        let backend = TestBackend::new(rt.clone());
        let api = Api::new(rt.clone(), config, backend.clone());
        let router = router(&api);
        Self {
            rt,
            api,
            router,
            backend,
        }
    }
    async fn send(&self, request: Request<Body>) -> Answer {
        let peer = Peer("10.1.2.3".parse().unwrap());
        let (parts, body) = answer(&self.api, self.router.clone(), peer, request).await.into_parts();
        let body = body.collect().await.unwrap().to_bytes().into();
        Answer {
            status: parts.status,
            headers: parts.headers,
            body,
        }
    }
    async fn get(&self, path: &str) -> Answer {
        self.send(Request::get(path).body(Body::empty()).unwrap()).await
    }
    async fn put(&self, path: &str, body: impl Into<Body>) -> Answer {
        self.send(Request::put(path).body(body.into()).unwrap()).await
    }
    fn set(&self, key: &str, value: &str) {
        let pair = KvPair {
            key: key.to_owned(),
            value: value.into(),
            ..KvPair::default()
        };
        self.backend.apply(&Command::Kv(KvCommand::Set(pair)));
    }
}

fn run<Fut: Future<Output = ()>>(config: HttpConfig, test: impl FnOnce(World) -> Fut) {
    let within = Duration::from_secs(60);
    block_on(1, |rt| async move {
        let world = World::new(rt.clone(), config);
        let test = test(world);
        futures::pin_mut!(test);
        let late = rt.sleep(within);
        futures::pin_mut!(late);
        match futures::future::select(test, late).await {
            futures::future::Either::Left(_) => {}
            futures::future::Either::Right(_) => panic!("the test did not end within {within:?}"),
        }
    })
    .unwrap();
}

#[test]
fn a_blocking_read_answers_when_its_key_changes() {
    run(HttpConfig::default(), |world| async move {
        world.set("a", "1");
        let index = world.get("/v1/kv/a").await.header("x-consul-index").to_owned();
        let path = format!("/v1/kv/a?index={index}&wait=50s");
        let change = async {
            world.backend.parked().await;
            world.set("b", "another key");
            world.backend.parked().await;
            world.set("a", "2");
        };
        let (held, ()) = join(world.get(&path), change).await;
        assert!(held.text().contains("\"Value\":\"Mg==\""), "{}", held.text());
        assert_ne!(held.header("x-consul-index"), index);
    });
}

#[test]
fn a_change_is_encoded_once_for_all_who_watch_in_the_same_words() {
    const WATCHERS: usize = 50;
    run(HttpConfig::default(), |world| async move {
        let register =
            |port: u16| format!(r#"{{"Node":"n","Address":"10.0.0.1","Service":{{"Service":"w","Port":{port}}}}}"#);
        let registered = world.put("/v1/catalog/register", register(1)).await;
        assert_eq!(registered.status, 200);
        let path = "/v1/health/service/w?passing";
        let first = world.get(path).await;
        let index = first.header("x-consul-index").to_owned();
        let (encoded_before, shared_before) = world.api.rendering_counts();
        let watchers = (0..WATCHERS).map(|n| {
            // The wait is each one's own.
            let path = format!("{path}&index={index}&wait={}s", 60 + n);
            let world = &world;
            async move { world.get(&path).await }
        });
        let other = format!("/v1/catalog/service/w?index={index}");
        let change = async {
            world.backend.parked().await;
            world.put("/v1/catalog/register", register(2)).await
        };
        let (seen, other, _) = futures::join!(futures::future::join_all(watchers), world.get(&other), change);
        for answer in &seen {
            assert!(answer.text().contains(r#""Port":2"#), "{}", answer.text());
            assert_eq!(answer.text(), seen[0].text());
        }
        assert!(other.text().contains(r#""ServicePort":2"#));
        let (encoded, shared) = world.api.rendering_counts();
        assert_eq!(encoded - encoded_before, 2, "one for each endpoint");
        assert_eq!(shared - shared_before, WATCHERS as u64 - 1);
        let told = world.get("/v1/agent/self").await;
        assert!(told.text().contains(&format!(r#""answers_encoded":"{encoded}""#)));
    });
}

#[test]
fn a_read_of_an_absent_key_waits_until_it_exists() {
    run(HttpConfig::default(), |world| async move {
        world.set("b", "1");
        let absent = world.get("/v1/kv/a").await;
        assert_eq!(absent.status, StatusCode::NOT_FOUND);
        let path = format!("/v1/kv/a?index={}&wait=50s", absent.header("x-consul-index"));
        let change = async {
            world.backend.parked().await;
            world.set("b", "2");
            world.backend.parked().await;
            world.set("a", "1");
        };
        let (held, ()) = join(world.get(&path), change).await;
        assert_eq!(held.status, StatusCode::OK);
    });
}

#[test]
fn a_wait_that_is_over_answers_what_is() {
    run(HttpConfig::default(), |world| async move {
        world.set("a", "1");
        let held = world.get("/v1/kv/a?index=1000&wait=10ms").await;
        assert_eq!(held.status, StatusCode::OK);
        assert_eq!(held.header("x-consul-index"), "6");
    });
}

#[test]
fn a_local_service_is_watched_by_its_hash() {
    run(HttpConfig::default(), |world| async move {
        assert_eq!(
            world
                .put("/v1/agent/service/register", r#"{"Name":"web"}"#)
                .await
                .status,
            StatusCode::OK
        );
        let first = world.get("/v1/agent/service/web").await;
        let hash = first.header("x-consul-contenthash").to_owned();
        assert!(
            first.text().contains(&format!("\"ContentHash\":\"{hash}\"")),
            "{}",
            first.text()
        );
        let same = world.get(&format!("/v1/agent/service/web?hash={hash}&wait=10ms")).await;
        assert_eq!(same.header("x-consul-contenthash"), hash);
        let path = format!("/v1/agent/service/web?hash={hash}&wait=50s");
        let change = async {
            world.backend.parked().await;
            world
                .put("/v1/agent/service/register", r#"{"Name":"web","Port":80}"#)
                .await;
        };
        let (held, ()) = join(world.get(&path), change).await;
        assert_ne!(held.header("x-consul-contenthash"), hash);
        assert!(held.text().contains("\"Port\":80"));
        let path = format!(
            "/v1/agent/service/web?hash={}&wait=50s",
            held.header("x-consul-contenthash")
        );
        let remove = async {
            world.backend.parked().await;
            world.put("/v1/agent/service/deregister/web", "").await;
        };
        let (held, ()) = join(world.get(&path), remove).await;
        assert_eq!(held.status, StatusCode::NOT_FOUND);
    });
}

#[test]
fn without_a_leader_only_stale_reads_are_answered() {
    run(HttpConfig::default(), |world| async move {
        world.set("a", "1");
        world.backend.lose_leader();
        let read = world.get("/v1/kv/a").await;
        assert_eq!((read.status.as_u16(), read.text()), (500, "No cluster leader"));
        assert_eq!(read.header("x-consul-index"), "");
        let read = world.get("/v1/catalog/services").await;
        assert_eq!((read.status.as_u16(), read.text()), (500, "No cluster leader"));
        let meta = ["x-consul-index", "x-consul-knownleader", "x-consul-lastcontact"].map(|name| read.header(name));
        assert_eq!(meta, ["1", "false", "0"]);
        let read = world.get("/v1/catalog/services?stale").await;
        assert_eq!(
            (read.status.as_u16(), read.header("x-consul-knownleader")),
            (200, "false")
        );
        assert_eq!(world.put("/v1/kv/a", "2").await.text(), "No cluster leader");
        assert_eq!(world.get("/v1/status/leader").await.text(), "\"\"");
    });
}

#[test]
fn a_value_has_a_limit_and_the_answer_names_it() {
    run(HttpConfig::default(), |world| async move {
        let limit = HttpConfig::default().kv_value_len_bytes_max;
        assert_eq!(world.put("/v1/kv/a", vec![b'x'; limit]).await.text(), "true");
        let sized = Request::put("/v1/kv/a")
            .header("content-length", limit + 1)
            .body(Body::from(vec![b'x'; limit + 1]));
        let refused = world.send(sized.unwrap()).await;
        assert_eq!(refused.status, StatusCode::PAYLOAD_TOO_LARGE);
        assert!(
            refused
                .text()
                .starts_with("Request body(524289 bytes) too large, max size: 524288 bytes. See ")
        );
        assert_eq!(refused.header("connection"), "close");
        let streamed = world.put("/v1/kv/a", vec![b'x'; limit + 1]).await;
        assert_eq!(streamed.status, StatusCode::PAYLOAD_TOO_LARGE);
    });
}

#[test]
fn blocked_paths_and_writes_from_elsewhere_are_refused() {
    let config = HttpConfig {
        block_endpoints: vec!["/v1/agent".to_owned()],
        allow_write_http_from: vec!["127.0.0.0/8".parse().unwrap()],
        response_headers: vec![("X-Own".to_owned(), "yes".to_owned())],
        ..HttpConfig::default()
    };
    run(config, |world| async move {
        let blocked = world.get("/v1/agent/self").await;
        assert_eq!(blocked.status, StatusCode::FORBIDDEN);
        assert_eq!(blocked.text(), "Endpoint is blocked by agent configuration");
        assert_eq!(blocked.header("x-own"), "yes");
        let refused = world.put("/v1/kv/a", "1").await;
        assert_eq!(
            (refused.status, refused.text()),
            (StatusCode::FORBIDDEN, "Access is restricted")
        );
        assert_eq!(world.get("/v1/kv/?keys").await.status, StatusCode::OK);
    });
}

#[test]
fn a_handler_that_panics_is_a_500_and_the_next_request_is_answered() {
    run(HttpConfig::default(), |world| async move {
        let broken = world
            .put("/v1/catalog/register", r#"{"Node":"panic","Address":"10.0.0.1"}"#)
            .await;
        assert_eq!((broken.status.as_u16(), broken.text()), (500, "internal error"));
        assert_eq!(world.get("/v1/status/leader").await.status, StatusCode::OK);
    });
}

#[test]
fn a_keyring_request_is_judged_before_anybody_is_asked() {
    run(HttpConfig::default(), async |world| {
        let path = "/v1/operator/keyring";
        let send = async |method: &str, query: &str, body: &'static str| {
            let request = Request::builder().method(method).uri(format!("{path}{query}"));
            let answer = world.send(request.body(Body::from(body)).unwrap()).await;
            (answer.status.as_u16(), answer.text().to_owned())
        };
        let bad = |text: &str| (400, format!("Bad request: {text}"));
        let key = r#"{"Key":"right"}"#;
        assert_eq!(
            send("GET", "?relay-factor=9", "").await,
            bad("Invalid relay-factor: Relay factor must be in range: [0, 5]")
        );
        assert_eq!(send("POST", "?relay-factor=5", key).await, (200, String::new()));
        assert_eq!(
            send("POST", "?relay-factor=x", key).await,
            bad("Error parsing relay factor: strconv.Atoi: parsing \"x\": invalid syntax")
        );
        assert_eq!(
            send("PUT", "?local-only=true", key).await,
            bad("Invalid use of local-only: local-only can only be set for list requests")
        );
        assert_eq!(send("POST", "?local-only=0", key).await.0, 200);
        assert_eq!(send("POST", "", "").await, bad("Request decode failed: EOF"));
        assert_eq!(
            send("DELETE", "", "{").await,
            bad("Request decode failed: unexpected EOF")
        );
        let lan_only = send("GET", "?local-only=1", "").await.1;
        assert_eq!(
            lan_only,
            "2 errors occurred:\n\t* dc1 (LAN) error: 1/1 nodes reported failure\n\t* g1: Keyring is empty (encryption not \
             enabled)\n\n"
        );
        assert_eq!(send("PATCH", "", "").await.0, 405);
    });
}

#[test]
fn an_answer_is_compressed_only_when_asked_for() {
    run(HttpConfig::default(), |world| async move {
        let plain = world.get("/v1/catalog/nodes").await;
        assert_eq!(plain.header("vary"), "Accept-Encoding");
        let request = Request::get("/v1/catalog/nodes")
            .header("accept-encoding", "gzip")
            .body(Body::empty())
            .unwrap();
        let packed = world.send(request).await;
        assert_eq!(packed.header("content-encoding"), "gzip");
        let mut unpacked = Vec::new();
        flate2::read::GzDecoder::new(packed.body.as_slice())
            .read_to_end(&mut unpacked)
            .unwrap();
        assert_eq!(unpacked, plain.body);
    });
}

#[test]
fn self_tells_who_this_agent_is() {
    run(HttpConfig::default(), |world| async move {
        let body = world.get("/v1/agent/self").await;
        assert!(body.text().starts_with(
            r#"{"Config":{"Datacenter":"dc1","NodeName":"g1","NodeID":"aaaaaaaa-0000-4000-8000-000000000001","Revision":"","Server":true,"Version":"1.20.0"},"DebugConfig":{"#
        ));
        assert!(body.text().ends_with(
            r#""Stats":{"http":{"answers_encoded":"0","answers_shared":"0"},"raft":{"term":"2"}},"Meta":{"rack":"r1"}}"#
        ));
    });
}

#[test]
fn an_escaped_letter_hides_no_endpoint_and_an_escaped_slash_belongs_to_the_key() {
    run(HttpConfig::default(), |world| async move {
        assert_eq!(world.put("/v1/kv/a%2Fb%20c", "1").await.text(), "true");
        assert!(world.get("/v1/k%76/a/b%20c").await.text().contains("\"Key\":\"a/b c\""));
        let moved = world.put("/v1/kv/%2Fa?flags=1", "1").await;
        assert_eq!(
            (moved.status.as_u16(), moved.header("location")),
            (301, "/v1/kv/a?flags=1")
        );
        assert_eq!(world.get("/v1/kv/a%ff").await.status, StatusCode::BAD_REQUEST);
        assert_eq!(world.get("/v1/catalog/nodes/").await.status, StatusCode::NOT_FOUND);
    });
}

#[test]
fn a_filter_on_services_keeps_the_names_whose_instances_match() {
    run(HttpConfig::default(), |world| async move {
        for (id, tag, port) in [("w1", "a", 80), ("w2", "b", 81)] {
            let body = format!(r#"{{"Name":"web","ID":"{id}","Tags":["{tag}"],"Port":{port}}}"#);
            world.put("/v1/agent/service/register", body).await;
        }
        let found = world.get("/v1/catalog/services?filter=ServicePort==81").await;
        assert_eq!(found.text(), r#"{"web":["b"]}"#);
        let found = world.get("/v1/agent/services?filter=Port==81").await;
        assert!(found.text().starts_with(r#"{"w2":{"#), "{}", found.text());
        let cached = world.get("/v1/health/service/web?cached").await;
        assert_eq!(cached.header("x-cache"), "MISS");
    });
}

// On real connections.

async fn served(rt: &TokioRt, config: HttpConfig) -> (HttpServer<TokioRt, TestBackend>, TestBackend, SocketAddr) {
    let backend = TestBackend::new(rt.clone());
    let at: SocketAddr = "127.0.0.1:0".parse().unwrap();
    let server = HttpServer::start(rt.clone(), &[at], config, backend.clone())
        .await
        .unwrap();
    let address = server.addresses()[0];
    (server, backend, address)
}

/// Reads what the server sends until it closes.
async fn rest(stream: &mut <TokioRt as Rt>::Stream) -> String {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).await.unwrap();
    String::from_utf8(bytes).unwrap()
}

#[test]
fn a_connection_carries_several_requests_and_names_headers_as_go_does() {
    run(HttpConfig::default(), |world| async move {
        let (_server, _, address) = served(&world.rt, HttpConfig::default()).await;
        let mut stream = world.rt.tcp_connect(address).await.unwrap();
        let text = "PUT /v1/kv/a HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\n1\
                    HEAD /v1/kv/a HTTP/1.1\r\nHost: x\r\n\r\n\
                    GET /v1/kv/a?raw HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
        stream.write_all(text.as_bytes()).await.unwrap();
        let answers = rest(&mut stream).await;
        assert_eq!(answers.matches("HTTP/1.1 200 OK\r\n").count(), 3, "{answers}");
        assert!(answers.contains("X-Consul-Index: 6\r\n"), "{answers}");
        assert!(answers.contains("Date: "), "{answers}");
        assert!(answers.ends_with("\r\n\r\n1"), "{answers}");
    });
}

#[test]
fn a_client_has_its_number_of_connections_and_no_more() {
    run(HttpConfig::default(), |world| async move {
        let config = HttpConfig {
            connections_per_client_count_max: 1,
            ..HttpConfig::default()
        };
        let (server, _, address) = served(&world.rt, config).await;
        let request = b"GET /v1/status/leader HTTP/1.1\r\nHost: x\r\n\r\n";
        let mut first = world.rt.tcp_connect(address).await.unwrap();
        first.write_all(request).await.unwrap();
        let mut answered = [0; 12];
        first.read_exact(&mut answered).await.unwrap();
        assert_eq!(&answered, b"HTTP/1.1 200");
        let mut second = world.rt.tcp_connect(address).await.unwrap();
        let mut nothing = [0; 1];
        // Closed, or reset when the request was already on its way.
        assert_eq!(second.read(&mut nothing).await.unwrap_or(0), 0);
        server.set_connections_per_client_count_max(2);
        let mut third = world.rt.tcp_connect(address).await.unwrap();
        third.write_all(request).await.unwrap();
        third.read_exact(&mut answered).await.unwrap();
        assert_eq!(&answered, b"HTTP/1.1 200");
    });
}

#[test]
fn a_stop_answers_what_waits_and_ends_what_is_idle() {
    run(HttpConfig::default(), |world| async move {
        let (server, backend, address) = served(&world.rt, HttpConfig::default()).await;
        let mut idle = world.rt.tcp_connect(address).await.unwrap();
        idle.write_all(b"GET /v1/status/leader HTTP/1.1\r\nHost: x\r\n\r\n")
            .await
            .unwrap();
        let mut answered = [0; 12];
        idle.read_exact(&mut answered).await.unwrap();
        let mut waiting = world.rt.tcp_connect(address).await.unwrap();
        waiting
            .write_all(b"GET /v1/catalog/nodes?index=1000 HTTP/1.1\r\nHost: x\r\n\r\n")
            .await
            .unwrap();
        backend.parked().await;
        server.stop().await;
        assert!(rest(&mut waiting).await.contains("\"Node\":\"g1\""));
        rest(&mut idle).await;
        assert!(world.rt.tcp_connect(address).await.is_err(), "nobody listens any more");
    });
}

#[test]
fn an_address_in_use_is_said_in_gos_words() {
    run(HttpConfig::default(), |world| async move {
        let (_server, backend, address) = served(&world.rt, HttpConfig::default()).await;
        let second = HttpServer::start(world.rt.clone(), &[address], HttpConfig::default(), backend).await;
        let error = second.err().expect("the address is taken");
        assert_eq!(
            error.to_string(),
            format!("listen tcp {address}: bind: address already in use")
        );
    });
}

#[test]
fn a_head_beyond_its_limit_is_refused() {
    run(HttpConfig::default(), |world| async move {
        let config = HttpConfig {
            header_len_bytes_max: 8 * 1024,
            ..HttpConfig::default()
        };
        let (_server, _, address) = served(&world.rt, config).await;
        let mut stream = world.rt.tcp_connect(address).await.unwrap();
        let head = format!("GET /v1/kv/a HTTP/1.1\r\nX-Long: {}", "x".repeat(9 * 1024));
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut answered = [0; 12];
        stream.read_exact(&mut answered).await.unwrap();
        assert_eq!(&answered, b"HTTP/1.1 431");
    });
}

#[test]
fn who_cannot_reach_whom_is_told_and_a_timeout_out_of_range_refused() {
    block_on(2, |rt| async move {
        let world = World::new(rt, HttpConfig::default());
        let get = |path: &str| Request::get(path).body(Body::empty()).unwrap();
        let told = world.send(get("/v1/agent/reachability?timeout=10s")).await;
        assert_eq!(told.status, StatusCode::OK);
        assert_eq!(
            told.text().trim(),
            r#"{"Members":3,"Silent":["c"],"Links":[{"From":"a","To":"b","Fault":"one-way","Lost":null,"Sent":null},{"From":"b","To":"a","Fault":"lossy","Lost":2,"Sent":5}],"CutOff":false}"#
        );
        for wrong in ["0s", "61s", "-1s", "soon", "99999999999999999999s"] {
            let refused = world.send(get(&format!("/v1/agent/reachability?timeout={wrong}"))).await;
            assert_eq!(refused.status, StatusCode::BAD_REQUEST, "{wrong}");
            assert!(refused.text().contains("Invalid timeout"), "{}", refused.text());
        }
    })
    .unwrap();
}

#[test]
fn an_event_list_waits_while_its_index_is_the_one_given() {
    run(HttpConfig::default(), |world| async move {
        assert_eq!(world.put("/v1/event/fire/deploy", "v1").await.status, StatusCode::OK);
        let list = world.get("/v1/event/list?name=deploy").await;
        let index = list.header("x-consul-index").to_owned();
        // Any other index is news, higher or not.
        assert_eq!(world.get("/v1/event/list?name=deploy&index=7").await.body, list.body);
        let path = format!("/v1/event/list?name=deploy&index={index}&wait=60s");
        let fire = async {
            world.backend.parked().await;
            world.put("/v1/event/fire/other", "").await;
            world.backend.parked().await;
            world.put("/v1/event/fire/deploy", "v2").await;
        };
        let (woken, ()) = join(world.get(&path), fire).await;
        assert_ne!(woken.header("x-consul-index"), index);
        assert_eq!(woken.text().matches("\"deploy\"").count(), 2, "{}", woken.text());
        // No event of this name: the index of nothing.
        let none = world.get("/v1/event/list?name=none").await;
        assert_eq!((none.text(), none.header("x-consul-index")), ("[]", "1"));
    });
}

#[test]
fn event_filters_are_refused_in_consuls_words() {
    run(HttpConfig::default(), |world| async move {
        for (query, text) in [
            (
                "node=(",
                "Invalid node filter: error parsing regexp: missing closing ): `(`",
            ),
            (
                "service=*",
                "Invalid service filter: error parsing regexp: missing argument to repetition operator: `*`",
            ),
        ] {
            let refused = world.put(&format!("/v1/event/fire/x?{query}"), "").await;
            assert_eq!((refused.status.as_u16(), refused.text()), (500, text));
        }
        let foreign = world.put("/v1/event/fire/x?dc=dc9", "").await;
        assert_eq!(
            (foreign.status.as_u16(), foreign.text()),
            (500, "No path to datacenter")
        );
    });
}

#[test]
fn near_sorts_every_list_of_nodes_and_keeps_the_order_of_those_without_a_coordinate() {
    run(HttpConfig::default(), |world| async move {
        // By name: a, b, c, g1. The last has no coordinate, nor has b.
        for (node, distance) in [("a", Some(0.2)), ("b", None), ("c", Some(0.1))] {
            let check = r#"{"Name":"up","Status":"passing","ServiceID":"db"}"#;
            let node_number = node.as_bytes()[0] - b'a' + 1;
            let body = format!(
                r#"{{"Node":"{node}","Address":"10.0.0.{node_number}","Service":{{"Service":"db"}},"Check":{check}}}"#
            );
            assert_eq!(world.put("/v1/catalog/register", body).await.status, StatusCode::OK);
            if let Some(distance) = distance {
                let coordinate =
                    format!(r#"{{"Vec":[{distance},0,0,0,0,0,0,0],"Error":1,"Adjustment":0,"Height":0.00001}}"#);
                let body = format!(r#"{{"Node":"{node}","Coord":{coordinate}}}"#);
                assert_eq!(world.put("/v1/coordinate/update", body).await.status, StatusCode::OK);
            }
        }
        let order = |body: &str| {
            let nodes = body.split("\"Node\":\"").skip(1);
            nodes
                .map(|rest| rest.split('"').next().unwrap().to_owned())
                .collect::<Vec<_>>()
        };
        for path in [
            "catalog/nodes",
            "catalog/service/db",
            "health/service/db",
            "health/checks/db",
            "health/state/any",
        ] {
            let near = world.get(&format!("/v1/{path}?near=C")).await;
            let mut found = order(near.text());
            found.dedup();
            let others = found.split_off(2);
            assert_eq!(found, ["c", "a"], "{path}");
            assert_eq!(others[0], "b", "{path}");
            // A node that is nowhere is near nothing.
            let plain = world.get(&format!("/v1/{path}")).await;
            assert_eq!(
                world.get(&format!("/v1/{path}?near=b")).await.body,
                plain.body,
                "{path}"
            );
            // The node that the request comes from, in the words of a proxy.
            for (source, expected) in [("10.0.0.3", near.text()), ("10.0.0.77", plain.text())] {
                let request = Request::get(format!("/v1/{path}?near=_ip")).header("X-Forwarded-For", source);
                let answer = world.send(request.body(Body::empty()).unwrap()).await;
                assert_eq!(answer.text(), expected, "{path} from {source}");
            }
        }
    });
}

#[test]
fn coordinates_that_cannot_be_are_refused_and_all_are_where_they_are_switched_off() {
    run(HttpConfig::default(), |world| async move {
        for (coordinate, status, text) in [
            (r#"{"Vec":[0,0],"Error":1}"#, 500, "incompatible coordinate"),
            (
                r#"{"Vec":[1e9,0,0,0,0,0,0,0],"Error":1,"Height":0}"#,
                500,
                "invalid coordinate",
            ),
            (
                r#"{"Vec":[0,0,0,0,0,0,0,0],"Error":-1,"Height":0}"#,
                500,
                "invalid coordinate",
            ),
        ] {
            let refused = world
                .put(
                    "/v1/coordinate/update",
                    format!(r#"{{"Node":"g1","Coord":{coordinate}}}"#),
                )
                .await;
            assert_eq!((refused.status.as_u16(), refused.text()), (status, text));
        }
        let broken = world
            .put("/v1/coordinate/update", r#"{"Node":"g1","Coord":{"Vec":"x"}}"#)
            .await;
        assert_eq!(broken.status, StatusCode::BAD_REQUEST);
    });
    let config = HttpConfig {
        disable_coordinates: true,
        ..HttpConfig::default()
    };
    run(config, |world| async move {
        for path in [
            "/v1/coordinate/nodes",
            "/v1/coordinate/node/g1",
            "/v1/coordinate/datacenters",
        ] {
            let refused = world.get(path).await;
            assert_eq!(
                (refused.status.as_u16(), refused.text()),
                (401, "Coordinate support disabled")
            );
        }
        assert_eq!(
            world.put("/v1/coordinate/update", "{}").await.status,
            StatusCode::UNAUTHORIZED
        );
    });
}
