//! The client against an agent that answers from a script.

use quorate_api_client::calls::{CatalogOptions, KvPutOptions};
use quorate_api_client::{Client, ClientConfig};
use quorate_rt::production::{TokioRt, block_on};
use quorate_rt::{Listener as _, Rt};
use std::net::SocketAddr;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// Takes one request, answers it with `answer`, and gives the request.
async fn answer_one(listener: &<TokioRt as Rt>::Listener, answer: &str) -> String {
    let (mut stream, _) = listener.accept().await.unwrap();
    let mut request = Vec::new();
    let mut chunk = [0; 1024];
    loop {
        let len = stream.read(&mut chunk).await.unwrap();
        request.extend_from_slice(&chunk[..len]);
        let text = String::from_utf8_lossy(&request);
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let announced = head.lines().find_map(|line| line.strip_prefix("content-length: "));
            if announced.map_or(0, |len| len.parse().unwrap()) == body.len() {
                break;
            }
        }
        assert!(len > 0, "the request ended early: {text}");
    }
    stream.write_all(answer.as_bytes()).await.unwrap();
    String::from_utf8(request).unwrap()
}

fn answer(status: &str, body: &str) -> String {
    format!(
        "HTTP/1.1 {status}\r\nX-Consul-Index: 7\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

async fn listen(rt: &TokioRt) -> (<TokioRt as Rt>::Listener, SocketAddr) {
    let listener = rt.tcp_listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

fn client(rt: &TokioRt, address: SocketAddr) -> Client<TokioRt> {
    let config = ClientConfig {
        address: address.to_string(),
        token: "secret".to_owned(),
        datacenter: "dc2".to_owned(),
        stale: true,
        ..ClientConfig::default()
    };
    Client::new(rt.clone(), config).unwrap()
}

#[test]
fn a_call_says_whom_it_is_from_and_what_it_wants() {
    block_on(1, |rt| async move {
        let (listener, address) = listen(&rt).await;
        let client = client(&rt, address);
        let options = CatalogOptions {
            filter: "Node == n1".to_owned(),
            ..CatalogOptions::default()
        };
        let (nodes, request) = futures::future::join(
            client.catalog_nodes(&options),
            answer_one(&listener, &answer("200 OK", "[]")),
        )
        .await;
        assert_eq!(nodes.unwrap(), []);
        assert!(
            request.starts_with("GET /v1/catalog/nodes?filter=Node%20%3D%3D%20n1&stale&dc=dc2 HTTP/1.1\r\n"),
            "{request}"
        );
        assert!(request.contains(&format!("\r\nhost: {address}\r\n")), "{request}");
        assert!(request.contains("\r\nx-consul-token: secret\r\n"), "{request}");
    })
    .unwrap();
}

#[test]
fn keys_are_written_read_and_missed() {
    block_on(1, |rt| async move {
        let (listener, address) = listen(&rt).await;
        let client = client(&rt, address);
        let options = KvPutOptions {
            flags: 3,
            cas: Some(0),
            ..KvPutOptions::default()
        };
        let put = client.kv_put("a/b c", "value", &options);
        let (written, request) = futures::future::join(put, answer_one(&listener, &answer("200 OK", "false"))).await;
        assert!(!written.unwrap());
        assert!(
            request.starts_with("PUT /v1/kv/a/b%20c?flags=3&cas=0&dc=dc2 HTTP/1.1\r\n"),
            "{request}"
        );
        assert!(request.ends_with("\r\n\r\nvalue"), "{request}");

        let body = r#"[{"LockIndex":0,"Key":"a","Flags":0,"Value":"YmFy","CreateIndex":8,"ModifyIndex":8}]"#;
        let (entry, _) =
            futures::future::join(client.kv_get("a"), answer_one(&listener, &answer("200 OK", body))).await;
        assert_eq!(entry.unwrap().unwrap().value, b"bar");

        let (entry, _) =
            futures::future::join(client.kv_get("a"), answer_one(&listener, &answer("404 Not Found", ""))).await;
        assert_eq!(entry.unwrap(), None);

        let refused = answer("403 Forbidden", "Permission denied");
        let (entry, _) = futures::future::join(client.kv_get("a"), answer_one(&listener, &refused)).await;
        assert_eq!(entry.unwrap_err().to_string(), "Unexpected response code: 403");
    })
    .unwrap();
}

#[test]
fn failures_read_as_those_of_consuls_client() {
    block_on(1, |rt| async move {
        let (listener, address) = listen(&rt).await;
        let client = client(&rt, address);
        let answered = answer("500 Internal Server Error", "No cluster leader");
        let (failed, _) = futures::future::join(client.leave(), answer_one(&listener, &answered)).await;
        assert_eq!(
            failed.unwrap_err().to_string(),
            "Unexpected response code: 500 (No cluster leader)"
        );

        let (failed, _) = futures::future::join(client.reload(), answer_one(&listener, "")).await;
        assert_eq!(
            failed.unwrap_err().to_string(),
            format!("Put \"http://{address}/v1/agent/reload?dc=dc2\": EOF")
        );

        drop(listener);
        assert_eq!(
            client.agent_self().await.unwrap_err().to_string(),
            format!(
                "Get \"http://{address}/v1/agent/self?stale&dc=dc2\": dial tcp {address}: connect: connection refused"
            )
        );
    })
    .unwrap();
}
