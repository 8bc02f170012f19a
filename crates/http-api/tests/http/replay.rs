//! Golden answers: requests once made to a running Consul 1.8.7, made to this API over a backend of the same content.
//!
//! `fixtures/http.jsonl` holds them: method, path, body, and status, headers and body of the answer. Indexes differ from
//! run to run; where a current release answers otherwise than 1.8.7, the contract's later form counts.

use crate::support::TestBackend;
use axum::body::Body;
use http::{HeaderMap, Request, StatusCode};
use http_body_util::BodyExt as _;
use quorate_http_api::{Api, HttpConfig, Peer, answer, router};
use quorate_rt::production::{TokioRt, block_on};
use regex::Regex;
use serde_json::Value;

/// What a current release answers where 1.8.7 answered otherwise.
fn later_answer(n: u64) -> Option<(u16, &'static str)> {
    let unknown_check = "Unknown check ID \"nope\". Ensure that the check ID is passed, not the check name.";
    let unknown_service = "Unknown service ID \"nope\". Ensure that the service ID is passed, not the service name.";
    match n {
        5 => Some((200, "")), // HEAD is served wherever GET is.
        123 | 128 => Some((404, unknown_check)),
        149 => Some((404, unknown_service)),
        129 => Some((400, "CheckID missing")),
        150 => Some((400, "ServiceID missing")),
        _ => None,
    }
}

/// Without indexes, and without the fields later releases added.
fn normal(text: &str) -> String {
    let rules = [
        (r"current modify index \d+ !=", "current modify index 0 !="),
        (
            r#""(CreateIndex|ModifyIndex|ContentHash)": ?("[0-9a-f]*"|\d+)"#,
            "\"$1\":0",
        ),
        (
            r#""Type":("[^"]*"),"Interval":"[^"]*","Timeout":"[^"]*","ExposedPort":0,"#,
            "\"Type\":$1,",
        ),
        (
            r#"("EnableTagOverride":(?:true|false)(?:,"ContentHash":0)?),"Datacenter":"dc1"\}"#,
            "$1}",
        ),
    ];
    rules.iter().fold(text.to_owned(), |text, (pattern, replacement)| {
        Regex::new(pattern)
            .unwrap()
            .replace_all(&text, *replacement)
            .into_owned()
    })
}

/// Lists that Consul writes in no fixed order, sorted.
fn sorted(mut value: Value) -> Value {
    match &mut value {
        Value::Array(elements) => {
            for element in elements.iter_mut() {
                *element = sorted(element.take());
            }
            elements.sort_by_key(ToString::to_string);
        }
        Value::Object(fields) => {
            for (_, field) in fields.iter_mut() {
                *field = sorted(field.take());
            }
        }
        _ => {}
    }
    value
}

fn compare_headers(wanted: &Value, headers: &HeaderMap) -> Result<(), String> {
    let wanted = wanted.as_object().unwrap();
    for (name, value) in wanted {
        let found = headers.get(name).and_then(|value| value.to_str().ok());
        let fits = match name.as_str() {
            "X-Consul-Index" => found.is_some_and(|index| index.parse::<u64>().is_ok_and(|index| index > 0)),
            "X-Consul-Contenthash" => found.is_some_and(|hash| u64::from_str_radix(hash, 16).is_ok()),
            _ => found == value.as_str(),
        };
        if !fits {
            return Err(format!("header {name}: wanted {value}, found {found:?}"));
        }
    }
    let known =
        |name: &str| name == "x-consul-default-acl-policy" || wanted.keys().any(|key| key.eq_ignore_ascii_case(name));
    match headers
        .keys()
        .find(|name| name.as_str().starts_with("x-c") && !known(name.as_str()))
    {
        Some(name) => Err(format!("header {name} is not wanted")),
        None => Ok(()),
    }
}

fn compare(line: &Value, status: StatusCode, headers: &HeaderMap, body: &str) -> Result<(), String> {
    let n = line["n"].as_u64().unwrap();
    let later = later_answer(n);
    let (wanted_status, wanted_body) = match later {
        Some((status, body)) => (u64::from(status), body),
        None => (line["status"].as_u64().unwrap(), line["r"].as_str().unwrap()),
    };
    if u64::from(status.as_u16()) != wanted_status {
        return Err(format!("status: wanted {wanted_status}, found {status}: {body}"));
    }
    if later.is_none() {
        compare_headers(&line["h"], headers)?;
    }
    let (wanted, found) = (normal(wanted_body), normal(body));
    if wanted == found || n == 5 {
        return Ok(());
    }
    // The lists of these are in no fixed order; all else is compared to the letter, order of fields included.
    let unordered = [
        "/v1/catalog/services",
        "/v1/agent/health/",
        "/v1/health/node/",
        "/v1/health/checks/",
        "/v1/health/state/",
        "/v1/session/",
    ];
    let path = line["p"].as_str().unwrap();
    if unordered.iter().any(|prefix| path.starts_with(prefix))
        && let (Ok(wanted), Ok(found)) = (serde_json::from_str(&wanted), serde_json::from_str(&found))
        && sorted(wanted) == sorted(found)
    {
        return Ok(());
    }
    Err(format!("body: wanted\n  {wanted}\nfound\n  {found}"))
}

/// Ids that were drawn at random: what the recorded answer calls by a name, and what this run's does.
#[derive(Default)]
struct Drawn(Vec<(String, String, String)>);

impl Drawn {
    /// Remembers the ids that a recorded exchange saved.
    fn save(&mut self, line: &Value, body: &str) {
        let Some(saved) = line["o"]["save"].as_object() else {
            return;
        };
        let recorded: Value = serde_json::from_str(line["r"].as_str().unwrap()).unwrap();
        let found: Value = serde_json::from_str(body).unwrap();
        for (name, field) in saved {
            let id = |value: &Value| value[field[0].as_str().unwrap()].as_str().unwrap().to_owned();
            self.0.push((format!("{{{{{name}}}}}"), id(&recorded), id(&found)));
        }
    }
    /// A request with this run's ids.
    fn fill(&self, text: &str) -> String {
        self.0
            .iter()
            .fold(text.to_owned(), |text, (name, _, found)| text.replace(name, found))
    }
    /// An answer with the recorded ids.
    fn recorded(&self, text: &str) -> String {
        self.0.iter().fold(text.to_owned(), |text, (_, recorded, found)| {
            text.replace(found, recorded)
        })
    }
}

async fn replay(rt: TokioRt) -> Vec<String> {
    let backend = TestBackend::new(rt.clone());
    let api = Api::new(rt, HttpConfig::default(), backend);
    let router = router(&api);
    let peer = Peer("127.0.0.1".parse().unwrap());
    let mut failures = Vec::new();
    let mut drawn = Drawn::default();
    for line in include_str!("../fixtures/http.jsonl").lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        let (method, path) = (line["m"].as_str().unwrap(), line["p"].as_str().unwrap());
        let body = drawn.fill(line["b"].as_str().unwrap_or(""));
        let request = Request::builder()
            .method(method)
            .uri(drawn.fill(path))
            .body(Body::from(body))
            .unwrap();
        let (parts, body) = answer(&api, router.clone(), peer, request).await.into_parts();
        let body = String::from_utf8(body.collect().await.unwrap().to_bytes().into()).unwrap();
        drawn.save(&line, &body);
        let body = drawn.recorded(&body);
        if let Err(difference) = compare(&line, parts.status, &parts.headers, &body) {
            failures.push(format!("{} {method} {path}\n{difference}", line["n"]));
        }
    }
    failures
}

#[test]
fn recorded_requests_are_answered_as_consul_answered_them() {
    let failures = block_on(1, replay).unwrap();
    assert!(
        failures.is_empty(),
        "{} answers differ:\n{}",
        failures.len(),
        failures.join("\n")
    );
}
