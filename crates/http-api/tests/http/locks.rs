//! Sessions, locks and transactions where no recorded answer shows them.

use crate::support::TestBackend;
use axum::body::Body;
use http::{Method, Request, StatusCode};
use http_body_util::BodyExt as _;
use quorate_http_api::{Api, HttpConfig, Peer, answer, router};
use quorate_rt::production::{TokioRt, block_on};
use quorate_store::{Command, SessionCommand};
use quorate_types::ModifyIndex;
use serde_json::Value;
use std::time::Duration;

struct World {
    api: Api<TokioRt, TestBackend>,
    backend: TestBackend,
}

impl World {
    fn new(rt: TokioRt) -> Self {
        let config = HttpConfig {
            session_ttl_min: Duration::from_secs(1),
            ..HttpConfig::default()
        };
        Self::with(rt, config)
    }
    fn with(rt: TokioRt, config: HttpConfig) -> Self {
        let backend = TestBackend::new(rt.clone());
        Self {
            api: Api::new(rt, config, backend.clone()),
            backend,
        }
    }
    async fn send(&self, method: Method, path: &str, body: impl Into<Body>) -> (StatusCode, String) {
        let request = Request::builder().method(method).uri(path).body(body.into()).unwrap();
        let peer = Peer("10.1.2.3".parse().unwrap());
        let (parts, body) = answer(&self.api, router(&self.api), peer, request).await.into_parts();
        let body = body.collect().await.unwrap().to_bytes().into();
        (parts.status, String::from_utf8(body).unwrap())
    }
    async fn put(&self, path: &str, body: &str) -> (u16, String) {
        let (status, body) = self.send(Method::PUT, path, body.to_owned()).await;
        (status.as_u16(), body)
    }
    async fn get(&self, path: &str) -> (u16, String) {
        let (status, body) = self.send(Method::GET, path, Body::empty()).await;
        (status.as_u16(), body)
    }
    async fn session(&self, body: &str) -> String {
        let (status, body) = self.put("/v1/session/create", body).await;
        assert_eq!(status, 200, "{body}");
        let body: Value = serde_json::from_str(&body).unwrap();
        body["ID"].as_str().unwrap().to_owned()
    }
}

#[test]
fn a_session_is_refused_where_it_cannot_be() {
    block_on(1, |rt| async move {
        let world = World::new(rt);
        let uuid = "failed session lookup: index error: UUID must be 36 characters".to_owned();
        for (path, wanted) in [
            ("/v1/session/destroy/", (400, "Missing session".to_owned())),
            ("/v1/session/renew/", (400, "Missing session".to_owned())),
            ("/v1/session/destroy/x", (500, uuid.clone())),
            ("/v1/session/renew/x", (500, uuid.clone())),
            ("/v1/kv/k?release=x", (200, "false".to_owned())),
            ("/v1/kv/k?release=", (500, "missing session".to_owned())),
        ] {
            assert_eq!(world.put(path, "").await, wanted, "{path}");
        }
        assert_eq!(
            world.get("/v1/session/info/").await,
            (400, "Missing session".to_owned())
        );
        assert_eq!(
            world.get("/v1/session/node/").await,
            (400, "Missing node name".to_owned())
        );
        let ranges = "Invalid Session TTL '500000000', must be between [1s=24h0m0s]".to_owned();
        assert_eq!(
            world.put("/v1/session/create", r#"{"TTL":"500ms"}"#).await,
            (500, ranges)
        );
        let none = "Missing check 'c' registration".to_owned();
        let body = r#"{"ServiceChecks":[{"ID":"c"}]}"#;
        assert_eq!(world.put("/v1/session/create", body).await, (500, none));
        world.backend.lose_leader();
        let (status, body) = world
            .put("/v1/session/renew/11111111-2222-3333-4444-555555555555", "")
            .await;
        assert_eq!((status, body.as_str()), (500, "No cluster leader"));
    })
    .unwrap();
}

#[test]
fn keys_options_and_bodies_that_cannot_be_are_refused_and_change_nothing() {
    block_on(1, |rt| async move {
        let world = World::new(rt.clone());
        let redirected = (301, String::new());
        let refused = |why: &str| (400, format!("invalid key name: {why}"));
        let out = "it leads out of its folder (`..`)";
        let blank = "it begins or ends with a blank";
        let range = |text: &str| {
            (
                500,
                format!("strconv.ParseUint: parsing \"{text}\": value out of range"),
            )
        };
        let over = "18446744073709551616";
        for (path, wanted) in [
            // The path is cleaned before it names a key, escaped or not.
            ("/v1/kv/a/../b", redirected.clone()),
            ("/v1/kv/a//b", redirected.clone()),
            ("/v1/kv/a/%2e%2e/b", redirected.clone()),
            ("/v1/kv/a%2F..%2Fb", redirected),
            // What a second decoding would clean is no name.
            ("/v1/kv/a/%252e%252e/b", refused(out)),
            ("/v1/kv/..%252Fb", refused(out)),
            ("/v1/kv/a%5C..%5Cb", refused(out)),
            ("/v1/kv/%20a", refused(blank)),
            ("/v1/kv/a%20", refused(blank)),
            // NUL, a line end, and what is no UTF-8.
            ("/v1/kv/a%00b", (400, String::new())),
            ("/v1/kv/a%0Ab", (400, String::new())),
            ("/v1/kv/a%FFb", (400, String::new())),
            (&format!("/v1/kv/k?flags={over}"), range(over)),
            (&format!("/v1/kv/k?cas={over}"), range(over)),
            (
                "/v1/kv/k?cas=-1",
                (500, "strconv.ParseUint: parsing \"-1\": invalid syntax".to_owned()),
            ),
            (
                "/v1/kv/k?cas=1&release=x",
                (400, "Conflicting flags: cas=1&release=x".to_owned()),
            ),
            (
                "/v1/kv/k?acquire=11111111-2222-3333-4444-555555555555",
                (
                    500,
                    "invalid session \"11111111-2222-3333-4444-555555555555\"".to_owned(),
                ),
            ),
        ] {
            assert_eq!(world.put(path, "x").await, wanted, "{path}");
        }
        assert_eq!(world.get("/v1/kv/?keys").await, (200, "[]".to_owned()));
        for (ttl, shown) in [
            ("9s", "9000000000"),
            ("24h0m1s", "86401000000000"),
            ("-10s", "-10000000000"),
        ] {
            let world = World::with(rt.clone(), HttpConfig::default());
            let text = format!("Invalid Session TTL '{shown}', must be between [10s=24h0m0s]");
            let body = format!(r#"{{"TTL":"{ttl}"}}"#);
            assert_eq!(world.put("/v1/session/create", &body).await, (500, text));
        }

        // Long, and with every character that is one: names like any other.
        let long = "k".repeat(4096);
        for key in [long.as_str(), "a%20b", "%C3%A7", "a:b;c", "con..fig", "100%25"] {
            assert_eq!(world.put(&format!("/v1/kv/{key}"), "x").await.0, 200, "{key}");
            assert_eq!(
                world.get(&format!("/v1/kv/{key}?raw")).await,
                (200, "x".to_owned()),
                "{key}"
            );
        }
        let config = HttpConfig {
            disable_kv_key_validation: true,
            ..HttpConfig::default()
        };
        let world = World::with(rt, config);
        for key in ["..%252Fb", "%20a"] {
            assert_eq!(world.put(&format!("/v1/kv/{key}"), "x").await, (200, "true".to_owned()));
            assert_eq!(world.get(&format!("/v1/kv/{key}?raw")).await, (200, "x".to_owned()));
        }

        // A field given twice: the last one counts, as Go has it, and the operation is one.
        let twice = r#"[{"KV":{"Verb":"get","Key":"a","Verb":"set","key":"b","Value":"MQ=="}}]"#;
        assert_eq!(world.put("/v1/txn", twice).await.0, 200);
        assert_eq!(world.get("/v1/kv/b?raw").await, (200, "1".to_owned()));
        assert_eq!(world.get("/v1/kv/a").await.0, 404);
    })
    .unwrap();
}

#[test]
fn a_lock_is_taken_renewed_lost_and_taken_again_after_its_delay() {
    block_on(1, |rt| async move {
        let world = World::new(rt);
        let first = world
            .session(r#"{"Name":"svc","TTL":"1s","LockDelay":"5s","Checks":[]}"#)
            .await;
        let second = world.session("").await;
        let acquire = |id: &str| format!("/v1/kv/svc/leader?acquire={id}&flags=7");
        assert_eq!(world.put(&acquire(&first), "me").await, (200, "true".to_owned()));
        let (status, renewed) = world.put(&format!("/v1/session/renew/{first}"), "").await;
        assert_eq!(status, 200);
        assert!(renewed.contains(r#""Name":"svc","Node":"g1","LockDelay":5000000000,"Behavior":"release","TTL":"1s""#));
        assert!(renewed.contains(r#""NodeChecks":[],"ServiceChecks":null"#), "{renewed}");
        assert_eq!(world.put(&acquire(&second), "you").await, (200, "false".to_owned()));
        world.put(&format!("/v1/session/destroy/{first}"), "").await;
        let (_, pair) = world.get("/v1/kv/svc/leader").await;
        assert!(pair.contains(r#""LockIndex":1"#) && pair.contains(r#""Flags":7"#) && !pair.contains("Session"));
        let pair: Value = serde_json::from_str(&pair).unwrap();
        let since = ModifyIndex(pair[0]["ModifyIndex"].as_u64().unwrap());
        assert_eq!(world.put(&acquire(&second), "you").await, (200, "false".to_owned()));
        let lock = format!(r#"[{{"KV":{{"Verb":"lock","Key":"svc/leader","Session":"{second}"}}}}]"#);
        let (status, body) = world.put("/v1/txn", &lock).await;
        assert_eq!(status, 409);
        assert!(
            body.contains(r#"failed to lock key \"svc/leader\" due to lock delay"#),
            "{body}"
        );
        let delays = vec![("svc/leader".to_owned(), since)];
        world
            .backend
            .apply(&Command::Session(SessionCommand::EndLockDelays { delays }));
        let (status, body) = world.put("/v1/txn", &lock).await;
        assert_eq!(status, 200);
        assert!(body.contains(&format!(
            r#""LockIndex":2,"Key":"svc/leader","Flags":0,"Value":null,"Session":"{second}""#
        )));
    })
    .unwrap();
}

#[test]
fn a_transaction_beyond_its_limits_is_refused_and_nothing_of_it_happens() {
    block_on(1, |rt| async move {
        let world = World::new(rt.clone());
        let set = |key: usize| format!(r#"{{"KV":{{"Verb":"set","Key":"k{key}","Value":"MQ=="}}}}"#);
        let body = |count: usize| format!("[{}]", (0..count).map(set).collect::<Vec<_>>().join(","));
        let too_many = "Transaction contains too many operations (129 > 128)".to_owned();
        assert_eq!(world.put("/v1/txn", &body(129)).await, (413, too_many));
        assert_eq!(world.get("/v1/kv/k0").await.0, 404);
        assert_eq!(world.put("/v1/txn", &body(128)).await.0, 200);
        assert_eq!(world.get("/v1/kv/k127").await.0, 200);
        let large = format!(
            r#"[{{"KV":{{"Verb":"set","Key":"l","Value":"{}"}}}}]"#,
            "A".repeat(524_288)
        );
        let (status, text) = world.put("/v1/txn", &large).await;
        assert_eq!(status, 413);
        assert!(
            text.contains("too large, max size: 524288 bytes") && text.ends_with("#txn_max_req_len."),
            "{text}"
        );
        // With a larger limit for the whole, each value still has its own.
        let config = HttpConfig {
            transaction_len_bytes_max: 2 << 20,
            ..HttpConfig::default()
        };
        let world = World::with(rt, config);
        let of = |len_bytes: usize| {
            format!(
                r#"[{{"KV":{{"Verb":"set","Key":"l","Value":"{}"}}}}]"#,
                "A".repeat(len_bytes)
            )
        };
        assert_eq!(world.put("/v1/txn", &of(524_288)).await.0, 200);
        let too_large = "Value for key \"l\" is too large (786432 > 524288 bytes)".to_owned();
        assert_eq!(world.put("/v1/txn", &of(1 << 20)).await, (413, too_large));
        // Verbs of the catalog that nobody knows are no reads.
        let (status, body) = world
            .put("/v1/txn", r#"[{"Node":{"Verb":"Set","Node":{"Node":"n"}}}]"#)
            .await;
        assert_eq!(status, 409);
        assert_eq!(
            body,
            r#"{"Results":null,"Errors":[{"OpIndex":0,"What":"unknown Node verb \"Set\""}]}"#
        );
    })
    .unwrap();
}
