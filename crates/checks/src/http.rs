//! HTTP checks: one request, its status code, and the beginning of its body.
//!
//! Texts are those of Go's client, which operators know. A connection serves one request. What a server sends is bounded:
//! hyper limits the head, and no more of the body is read than is shown.
//! Not here: TLS (definitions with `https` are refused before they get here; a redirect to it is an error).

use crate::tcp;
use crate::text::duration;
use base64::Engine as _;
use bytes::Bytes;
use futures::future::{Either, select};
use http::header::{ACCEPT, AUTHORIZATION, CONNECTION, COOKIE, HOST, LOCATION, USER_AGENT};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::ext::ReasonPhrase;
use hyper_util::rt::TokioIo;
use quorate_rt::Rt;
use quorate_types::CheckStatus;
use std::collections::BTreeMap;
use std::time::Duration;

/// As Go's client: the tenth redirect is the last one followed.
const REDIRECT_COUNT_MAX: usize = 10;

pub struct Probe<'a> {
    pub url: &'a str,
    /// Empty: GET.
    pub method: &'a str,
    pub header: &'a BTreeMap<String, Vec<String>>,
    pub body: &'a str,
    pub follow_redirects: bool,
    pub timeout: Duration,
    pub output_len_bytes_max: usize,
}

struct Answer {
    code: StatusCode,
    reason: String,
    location: Option<String>,
    body: Vec<u8>,
}

pub async fn run<R: Rt>(rt: &R, probe: &Probe<'_>) -> (CheckStatus, String) {
    let method = if probe.method.is_empty() { "GET" } else { probe.method };
    match exchange(rt, probe, method).await {
        Err(error) => (CheckStatus::Critical, error),
        Ok(answer) => {
            let status = match answer.code {
                code if code.is_success() => CheckStatus::Passing,
                StatusCode::TOO_MANY_REQUESTS => CheckStatus::Warning,
                _ => CheckStatus::Critical,
            };
            let body = String::from_utf8_lossy(&answer.body);
            let code = answer.code.as_u16();
            (
                status,
                format!("HTTP {method} {}: {code} {} Output: {body}", probe.url, answer.reason),
            )
        }
    }
}

/// The request and those it is redirected to; or the error's text.
async fn exchange<R: Rt>(rt: &R, probe: &Probe<'_>, method: &str) -> Result<Answer, String> {
    let deadline = rt.now() + probe.timeout;
    let blame = |method: &Method, url: &str, what: String| {
        let lower = method.as_str().to_lowercase();
        let title = lower.get(..1).map(str::to_uppercase).unwrap_or_default() + lower.get(1..).unwrap_or_default();
        format!("{title} {url:?}: {what}")
    };
    let mut method =
        Method::from_bytes(method.as_bytes()).map_err(|_| format!("net/http: invalid method {method:?}"))?;
    let mut target = Target::parse(probe.url).map_err(|what| blame(&method, probe.url, what))?;
    let mut headers = headers(probe.header)?;
    let mut body = Bytes::copy_from_slice(probe.body.as_bytes());
    for _ in 0..=REDIRECT_COUNT_MAX {
        let left = deadline - rt.now();
        let request =
            request(&method, &target, &headers, body.clone()).map_err(|what| blame(&method, &target.url, what))?;
        let answer = match rt
            .timeout(left, send(rt, &target, request, deadline, probe.output_len_bytes_max))
            .await
        {
            Ok(answer) => answer.map_err(|what| blame(&method, &target.url, what))?,
            Err(_) => {
                let what = "context deadline exceeded (Client.Timeout exceeded while awaiting headers)".to_owned();
                return Err(blame(&method, &target.url, what));
            }
        };
        let keeps_method = matches!(answer.code.as_u16(), 307 | 308);
        let is_redirect = keeps_method || matches!(answer.code.as_u16(), 301..=303);
        let Some(location) = answer
            .location
            .as_ref()
            .filter(|_| is_redirect && probe.follow_redirects)
        else {
            return Ok(answer);
        };
        let next = target.join(location).map_err(|what| blame(&method, location, what))?;
        if !keeps_method {
            if method != Method::HEAD {
                method = Method::GET;
            }
            body = Bytes::new();
        }
        if next.host != target.host {
            // Secrets for one host are not for another.
            headers.remove(AUTHORIZATION);
            headers.remove(COOKIE);
        }
        headers.remove(HOST);
        target = next;
    }
    Err(blame(
        &method,
        &target.url,
        format!("stopped after {REDIRECT_COUNT_MAX} redirects"),
    ))
}

fn headers(given: &BTreeMap<String, Vec<String>>) -> Result<HeaderMap, String> {
    let mut headers = HeaderMap::new();
    for (name, values) in given {
        let parsed = HeaderName::from_bytes(name.as_bytes())
            .map_err(|_| format!("net/http: invalid header field name {name:?}"))?;
        for value in values {
            let value = HeaderValue::from_str(value)
                .map_err(|_| format!("net/http: invalid header field value for {name:?}"))?;
            headers.append(parsed.clone(), value);
        }
    }
    let default = |headers: &mut HeaderMap, name: HeaderName, value: &'static str| {
        headers.entry(name).or_insert(HeaderValue::from_static(value));
    };
    default(&mut headers, USER_AGENT, "Consul Health Check");
    default(&mut headers, ACCEPT, "text/plain, text/*, */*");
    headers.insert(CONNECTION, HeaderValue::from_static("close"));
    Ok(headers)
}

fn request(method: &Method, target: &Target, headers: &HeaderMap, body: Bytes) -> Result<Request<Full<Bytes>>, String> {
    let mut request = Request::builder()
        .method(method)
        .uri(&target.path)
        .body(Full::new(body))
        .map_err(|err| format!("invalid URL: {err}"))?;
    *request.headers_mut() = headers.clone();
    let host = HeaderValue::from_str(&target.authority()).map_err(|_| "invalid URL: bad host name".to_owned())?;
    request.headers_mut().entry(HOST).or_insert(host);
    if let Some(user) = &target.user {
        let secret = base64::engine::general_purpose::STANDARD.encode(user);
        let value = HeaderValue::from_str(&format!("Basic {secret}")).expect("base64 is plain text");
        request.headers_mut().entry(AUTHORIZATION).or_insert(value);
    }
    Ok(request)
}

async fn send<R: Rt>(
    rt: &R,
    target: &Target,
    request: Request<Full<Bytes>>,
    deadline: quorate_types::Instant,
    body_len_bytes_max: usize,
) -> Result<Answer, String> {
    let stream = tcp::connect(rt, &target.host, target.port).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|err| describe(&err))?;
    let work = async {
        let response = sender.send_request(request).await.map_err(|err| describe(&err))?;
        Ok(read(rt, response, deadline, body_len_bytes_max).await)
    };
    futures::pin_mut!(work, connection);
    // The connection does the reading and writing; the answer may need what it read before it ended.
    match select(work, connection).await {
        Either::Left((answer, _)) => answer,
        Either::Right((_, work)) => work.await,
    }
}

/// The head, and as much of the body as is shown and comes in time: a slow body does not change the status.
async fn read<R: Rt>(
    rt: &R,
    response: Response<Incoming>,
    deadline: quorate_types::Instant,
    body_len_bytes_max: usize,
) -> Answer {
    let (head, mut incoming) = response.into_parts();
    let reason = match head.extensions.get::<ReasonPhrase>() {
        Some(reason) => String::from_utf8_lossy(reason.as_bytes()).into_owned(),
        None => head.status.canonical_reason().unwrap_or_default().to_owned(),
    };
    let location = head
        .headers
        .get(LOCATION)
        .and_then(|value| value.to_str().ok())
        .map(str::to_owned);
    let mut body = Vec::new();
    // A little before the deadline of the whole request, which would drop the answer.
    let left = deadline - rt.now();
    let left = left - left / 20;
    let reading = async {
        while body.len() < body_len_bytes_max {
            let Some(Ok(frame)) = incoming.frame().await else { break };
            if let Some(data) = frame.data_ref() {
                let room = body_len_bytes_max - body.len();
                body.extend_from_slice(&data[..data.len().min(room)]);
            }
        }
    };
    if rt.timeout(left, reading).await.is_err() {
        tracing::debug!(timeout = %duration(left), "the body of a check's answer did not end in time");
    }
    Answer {
        code: head.status,
        reason,
        location,
        body,
    }
}

fn describe(err: &hyper::Error) -> String {
    if err.is_incomplete_message() || err.is_closed() || err.is_canceled() {
        return "EOF".to_owned();
    }
    if err.is_parse() {
        return format!("net/http: HTTP/1.x transport connection broken: {err}");
    }
    let source = std::error::Error::source(err).and_then(|source| source.downcast_ref::<std::io::Error>());
    source.map_or_else(|| err.to_string(), quorate_rt::net::reason)
}

/// Where a request goes.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Target {
    url: String,
    user: Option<String>,
    /// Without brackets.
    host: String,
    port: u16,
    /// With the query, without the fragment.
    path: String,
}

impl Target {
    fn parse(url: &str) -> Result<Self, String> {
        if url.chars().any(|c| c.is_control() || c == ' ') {
            return Err("invalid URL: it has a blank or a control character".to_owned());
        }
        let (scheme, rest) = url.split_once("://").unwrap_or(("", url));
        if !scheme.eq_ignore_ascii_case("http") {
            return Err(format!("unsupported protocol scheme {:?}", scheme.to_lowercase()));
        }
        let rest = rest.split('#').next().unwrap_or_default();
        let (authority, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
        let (user, host_port) = match authority.rsplit_once('@') {
            Some((user, host_port)) => (Some(percent_decoded(user)), host_port),
            None => (None, authority),
        };
        let bad_port = |port: &str| format!("invalid port {port:?} after host");
        let (host, port) = match host_port.strip_prefix('[') {
            Some(inner) => {
                let (host, after) = inner.split_once(']').ok_or("missing ']' in host")?;
                match after {
                    "" => (host, ""),
                    after => (host, after.strip_prefix(':').ok_or_else(|| bad_port(after))?),
                }
            }
            None => host_port.split_once(':').unwrap_or((host_port, "")),
        };
        if host.is_empty() {
            return Err("http: no Host in request URL".to_owned());
        }
        Ok(Self {
            url: url.to_owned(),
            user,
            host: host.to_owned(),
            port: if port.is_empty() {
                80
            } else {
                port.parse().map_err(|_| bad_port(port))?
            },
            path: if path.starts_with('/') {
                path.to_owned()
            } else {
                format!("/{path}")
            },
        })
    }

    /// The value of `Host`: the port only when it is not HTTP's own.
    fn authority(&self) -> String {
        let host = if self.host.contains(':') {
            format!("[{}]", self.host)
        } else {
            self.host.clone()
        };
        if self.port == 80 {
            host
        } else {
            format!("{host}:{}", self.port)
        }
    }

    /// Where a `Location` leads from here (RFC 3986 section 5.2, without dot segments, which servers resolve).
    fn join(&self, location: &str) -> Result<Self, String> {
        let scheme_len = location
            .find("://")
            .filter(|len| !location[..*len].contains(['/', '?', '#']));
        if scheme_len.is_some() {
            return Self::parse(location);
        }
        if location.starts_with("//") {
            return Self::parse(&format!("http:{location}"));
        }
        let user = self
            .user
            .as_ref()
            .map(|_| self.url.split_once("://").map_or("", |(_, rest)| rest));
        let user = user.and_then(|rest| rest.split(['/', '?']).next()?.rsplit_once('@'));
        let user = user.map(|(user, _)| format!("{user}@")).unwrap_or_default();
        let directory = |path: &str| {
            let path = path.split('?').next().unwrap_or_default();
            path[..path.rfind('/').map_or(0, |at| at + 1)].to_owned()
        };
        let path = match location.chars().next() {
            Some('/') => location.to_owned(),
            Some('?') => format!("{}{location}", self.path.split('?').next().unwrap_or_default()),
            Some('#') | None => self.path.clone(),
            Some(_) => format!("{}{location}", directory(&self.path)),
        };
        Self::parse(&format!("http://{user}{}{path}", self.authority()))
    }
}

fn percent_decoded(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let digit = |offset: usize| bytes.get(at + offset).and_then(|byte| (*byte as char).to_digit(16));
        match (bytes[at], digit(1), digit(2)) {
            (b'%', Some(high), Some(low)) => {
                out.push(u8::try_from(high * 16 + low).expect("two hexadecimal digits make a byte"));
                at += 3;
            }
            (byte, _, _) => {
                out.push(byte);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_url_is_taken_apart() {
        let target = Target::parse("HTTP://us%3Aer:p@ss@[::1]:8080/a?b=c#d").unwrap();
        assert_eq!(
            (target.host.as_str(), target.port, target.path.as_str()),
            ("::1", 8080, "/a?b=c")
        );
        assert_eq!(target.user.as_deref(), Some("us:er:p@ss"));
        assert_eq!(target.authority(), "[::1]:8080");
        let target = Target::parse("http://web?x").unwrap();
        assert_eq!((target.authority().as_str(), target.path.as_str()), ("web", "/?x"));
        for (url, want) in [
            ("web:80", "unsupported protocol scheme \"\""),
            ("https://a", "unsupported protocol scheme \"https\""),
            ("http://", "http: no Host in request URL"),
            ("http://a:x/", "invalid port \"x\" after host"),
            ("http://a b/", "invalid URL: it has a blank or a control character"),
        ] {
            assert_eq!(Target::parse(url).unwrap_err(), want, "{url}");
        }
    }

    #[test]
    fn a_redirect_leads_where_a_browser_would_go() {
        let base = Target::parse("http://u:p@a:1/x/y?q").unwrap();
        for (location, authority, path) in [
            ("http://b/z", "b", "/z"),
            ("//b:2/z", "b:2", "/z"),
            ("/z?w", "a:1", "/z?w"),
            ("z", "a:1", "/x/z"),
            ("?w", "a:1", "/x/y?w"),
            ("", "a:1", "/x/y?q"),
        ] {
            let next = base.join(location).unwrap();
            assert_eq!(
                (next.authority().as_str(), next.path.as_str()),
                (authority, path),
                "{location}"
            );
            assert_eq!(next.user.is_some(), authority == "a:1", "{location}");
        }
        assert!(base.join("https://b/").is_err());
    }

    proptest! {
        #[test]
        fn no_url_and_no_redirect_makes_it_panic(url in "\\PC{0,30}", location in "[a-z:/?#@\\[\\]%é]{0,20}") {
            let _ = Target::parse(&url);
            let _ = Target::parse(&format!("http://{location}"));
            if let Ok(target) = Target::parse("http://u@h/p").unwrap().join(&location) {
                let _ = target.authority();
            }
        }
    }
}
