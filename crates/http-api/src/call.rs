//! One request and its reply, between transport and handlers.

use crate::api::Api;
use crate::backend::Backend;
use crate::config::{JSON_BODY_LEN_BYTES_MAX, REQUEST_BODY_TIMEOUT};
use crate::errors::Fault;
use crate::params::Params;
use axum::body::Body;
use bytes::{Bytes, BytesMut};
use futures::StreamExt as _;
use http::header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use quorate_rt::Rt;
use quorate_store::Consistency;
use serde::Serialize;
use serde_json::ser::PrettyFormatter;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

pub const X_CONSUL_INDEX: HeaderName = HeaderName::from_static("x-consul-index");
pub const X_CONSUL_KNOWN_LEADER: HeaderName = HeaderName::from_static("x-consul-knownleader");
pub const X_CONSUL_LAST_CONTACT: HeaderName = HeaderName::from_static("x-consul-lastcontact");
pub const X_CONSUL_EFFECTIVE_CONSISTENCY: HeaderName = HeaderName::from_static("x-consul-effective-consistency");
pub const X_CONSUL_CONTENT_HASH: HeaderName = HeaderName::from_static("x-consul-contenthash");
pub const X_CONSUL_REASON: HeaderName = HeaderName::from_static("x-consul-reason");
pub const X_CONSUL_TOKEN: HeaderName = HeaderName::from_static("x-consul-token");
pub const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
pub const X_CACHE: HeaderName = HeaderName::from_static("x-cache");
pub const TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");
pub const BARE_TEXT: HeaderValue = HeaderValue::from_static("text/plain");
pub const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// A request that has found its endpoint.
#[derive(Debug)]
pub struct Call {
    /// What follows the endpoint's path, decoded: a key, a name, an id; empty for endpoints without.
    pub rest: String,
    pub params: Params,
    pub headers: HeaderMap,
    pub pretty: bool,
    /// Who is connected.
    pub peer: Option<IpAddr>,
    /// In a mutex that is never locked: a body cannot be shared between threads, and a call is.
    pub body: Mutex<Body>,
}

impl Call {
    /// The rest of the path, which must be there.
    pub fn required(&self, what: &'static str) -> Result<&str, Fault> {
        if self.rest.is_empty() {
            Err(Fault::Missing(what))
        } else {
            Ok(&self.rest)
        }
    }

    /// Whom the request is from: the first of `X-Forwarded-For` (Consul believes it too), or who is connected.
    pub fn source(&self) -> Option<IpAddr> {
        let forwarded = self.headers.get(X_FORWARDED_FOR).and_then(|value| value.to_str().ok());
        let first = forwarded.and_then(|forwarded| forwarded.split(',').next()?.trim().parse::<IpAddr>().ok());
        first.or(self.peer).map(|ip| ip.to_canonical())
    }

    /// The ACL token the request was made with; empty: none.
    pub fn token(&self) -> &str {
        let header = |name: HeaderName| self.headers.get(name).and_then(|value| value.to_str().ok());
        let given = [
            Some(self.params.get("token")),
            header(X_CONSUL_TOKEN),
            header(AUTHORIZATION).and_then(|value| value.strip_prefix("Bearer ")),
        ];
        given
            .into_iter()
            .flatten()
            .map(str::trim)
            .find(|token| !token.is_empty())
            .unwrap_or("")
    }

    /// The whole body, at most `len_bytes_max`, which is the setting named.
    pub async fn read_body<R: Rt, B: Backend>(
        &mut self,
        api: &Api<R, B>,
        len_bytes_max: usize,
        setting: &'static str,
    ) -> Result<Bytes, Fault> {
        let announced = self
            .headers
            .get(CONTENT_LENGTH)
            .and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
        if let Some(len_bytes) = announced
            && usize::try_from(len_bytes).map_or(true, |len_bytes| len_bytes > len_bytes_max)
        {
            return Err(Fault::BodyTooLarge {
                len_bytes,
                len_bytes_max,
                setting,
            });
        }
        let mut chunks = std::mem::take(self.body.get_mut().unwrap_or_else(PoisonError::into_inner)).into_data_stream();
        let read = async {
            let mut body = BytesMut::new();
            while let Some(chunk) = chunks.next().await {
                let chunk = chunk.map_err(|error| Fault::BodyBroken(error.to_string()))?;
                if body.len() + chunk.len() > len_bytes_max {
                    return Err(Fault::StreamTooLarge { len_bytes_max, setting });
                }
                body.extend_from_slice(&chunk);
            }
            Ok(body.freeze())
        };
        api.rt()
            .timeout(REQUEST_BODY_TIMEOUT, read)
            .await
            .unwrap_or(Err(Fault::BodyTimeout))
    }

    pub async fn read_json_body<R: Rt, B: Backend>(&mut self, api: &Api<R, B>) -> Result<Bytes, Fault> {
        self.read_body(api, JSON_BODY_LEN_BYTES_MAX, "limits").await
    }

    /// 200 with JSON, pretty when asked for.
    pub fn json(&self, value: &impl Serialize) -> Reply {
        let mut body = Vec::with_capacity(256);
        let written = if self.pretty {
            let mut serializer =
                serde_json::Serializer::with_formatter(&mut body, PrettyFormatter::with_indent(b"    "));
            let written = value.serialize(&mut serializer);
            body.push(b'\n');
            written
        } else {
            serde_json::to_writer(&mut body, value)
        };
        written.expect("a shape has text keys and memory takes all bytes");
        Reply::new(StatusCode::OK, Some(JSON), body.into())
    }
}

/// A response with its whole body.
#[derive(Clone, Debug)]
pub struct Reply {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Reply {
    pub fn new(status: StatusCode, content_type: Option<HeaderValue>, body: Bytes) -> Self {
        let mut headers = HeaderMap::new();
        if let Some(content_type) = content_type {
            headers.insert(CONTENT_TYPE, content_type);
        }
        Self { status, headers, body }
    }
    /// 200 without a body.
    pub fn empty() -> Self {
        Self::new(StatusCode::OK, None, Bytes::new())
    }
    pub fn status(mut self, status: StatusCode) -> Self {
        self.status = status;
        self
    }
    pub fn header(mut self, name: HeaderName, value: impl Into<HeaderValue>) -> Self {
        self.headers.insert(name, value.into());
        self
    }
    /// How current the answer is.
    pub fn described(self, description: Description) -> Self {
        self.header(X_CONSUL_INDEX, description.index)
            .header(
                X_CONSUL_KNOWN_LEADER,
                HeaderValue::from_static(bool_text(description.known_leader)),
            )
            .header(
                X_CONSUL_LAST_CONTACT,
                u64::try_from(description.last_contact.as_millis()).unwrap_or(u64::MAX),
            )
    }
    /// How the answer was obtained.
    pub fn obtained(self, consistency: Consistency) -> Self {
        let text = match consistency {
            Consistency::Default => "leader",
            Consistency::Consistent => "consistent",
            Consistency::Stale => "stale",
        };
        self.header(X_CONSUL_EFFECTIVE_CONSISTENCY, HeaderValue::from_static(text))
    }
}

const fn bool_text(value: bool) -> &'static str {
    if value { "true" } else { "false" }
}

/// The headers that say how current an answer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Description {
    pub index: u64,
    pub known_leader: bool,
    pub last_contact: Duration,
}

impl Description {
    /// What goes with an answer that no server gave.
    pub const UNANSWERED: Self = Self {
        index: 1,
        known_leader: false,
        last_contact: Duration::ZERO,
    };
}

/// A fault, and whether the endpoint describes how current its answer is even so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    pub fault: Fault,
    pub described: bool,
}

impl Failure {
    pub fn described(fault: impl Into<Fault>) -> Self {
        Self {
            fault: fault.into(),
            described: true,
        }
    }
}

impl<F: Into<Fault>> From<F> for Failure {
    fn from(fault: F) -> Self {
        Self {
            fault: fault.into(),
            described: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_from_who_a_proxy_says_or_who_is_connected() {
        let source = |forwarded: &'static str| {
            let header = (X_FORWARDED_FOR, HeaderValue::from_static(forwarded));
            let call = Call {
                rest: String::new(),
                params: Params::parse(""),
                headers: HeaderMap::from_iter([header]),
                pretty: false,
                peer: Some(IpAddr::from([10, 0, 0, 9])),
                body: Mutex::default(),
            };
            call.source().expect("somebody is connected").to_string()
        };
        assert_eq!(source("10.0.0.1, 10.0.0.2"), "10.0.0.1");
        assert_eq!(source("::ffff:10.0.0.3"), "10.0.0.3");
        assert_eq!(source("unknown, 10.0.0.2"), "10.0.0.9");
    }

    #[test]
    fn a_token_is_taken_from_parameter_header_and_bearer_in_this_order() {
        let token = |query: &str, headers: &[(HeaderName, &'static str)]| {
            let headers = headers
                .iter()
                .map(|(name, value)| (name.clone(), HeaderValue::from_static(value)));
            let call = Call {
                rest: String::new(),
                params: Params::parse(query),
                headers: headers.collect(),
                pretty: false,
                peer: None,
                body: Mutex::default(),
            };
            call.token().to_owned()
        };
        let (own, bearer) = ((X_CONSUL_TOKEN, "own"), (AUTHORIZATION, "Bearer bearer"));
        assert_eq!(token("token=query", &[own.clone(), bearer.clone()]), "query");
        assert_eq!(token("token=", &[own, bearer.clone()]), "own");
        assert_eq!(token("", &[bearer]), "bearer");
        assert_eq!(token("", &[(AUTHORIZATION, "Basic x")]), "");
    }
}
