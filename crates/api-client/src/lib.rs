//! Typed client of the HTTP API, for the command line and for workloads.
//!
//! In: an address in any form `CONSUL_HTTP_ADDR` takes, and calls. Out: answers, or errors in the words of Consul's own
//! client, which people and scripts know.
//! Promises: one connection a call, closed with it; an answer is bounded in size; no call outlives its future.
//! Not here: TLS and Unix sockets (refused with a text that says so), retries, output (`bins`).

pub mod address;
pub mod calls;
pub mod lock;
pub mod shapes;
pub mod target;

pub use address::{Address, AddressError};
pub use calls::EventOptions;
pub use http::Method;
pub use lock::{CleanUp, Lock, LockError, LockOptions};
pub use shapes::{CatalogNode, CatalogService, CoordinateEntry, KvEntry, Member};
pub use target::Target;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::{AUTHORIZATION, HOST};
use http::{HeaderMap, HeaderName, HeaderValue, Request, StatusCode};
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use quorate_rt::{Elapsed, Rt};
use serde::de::DeserializeOwned;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;
use thiserror::Error;

/// Time to open the connection: Go's default transport.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);
/// Largest answer taken.
pub const ANSWER_LEN_BYTES_MAX: usize = 256 * 1024 * 1024;

/// Whom to ask, and as whom.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientConfig {
    /// As `CONSUL_HTTP_ADDR` has it; empty: `127.0.0.1:8500`.
    pub address: String,
    /// ACL token; empty: none.
    pub token: String,
    /// `user:password` of a proxy before the agent (`CONSUL_HTTP_AUTH`); empty: none.
    pub basic_auth: String,
    /// `-datacenter`; empty: the agent's own.
    pub datacenter: String,
    /// `-stale`.
    pub stale: bool,
}

/// Why a call has no answer, or not the one that was wanted. Texts are those of Consul's Go client.
#[derive(Debug, Error)]
pub enum ClientError {
    /// The agent was not reached: `Get "http://127.0.0.1:8500/v1/...": dial tcp 127.0.0.1:8500: connect: connection refused`.
    #[error("{verb} \"{url}\": {reason}")]
    Unreached {
        verb: &'static str,
        url: String,
        reason: String,
    },
    /// The agent answered, but not with success.
    #[error("Unexpected response code: {} ({body})", .status.as_u16())]
    Status { status: StatusCode, body: String },
    /// The same, of a read of keys, where Consul's client leaves the body out.
    #[error("Unexpected response code: {}", .status.as_u16())]
    BareStatus { status: StatusCode },
    /// The answer is not the JSON it should be.
    #[error("{0}")]
    Shape(#[from] serde_json::Error),
    /// The request cannot be written as HTTP: a token or a key with characters no request has.
    #[error("invalid request: {0}")]
    Request(#[from] http::Error),
}

/// An answer, whatever its status.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Answer {
    /// The answer, if it is a success.
    pub fn ok(self) -> Result<Self, ClientError> {
        if self.status == StatusCode::OK {
            return Ok(self);
        }
        let body = String::from_utf8_lossy(&self.body).into_owned();
        Err(ClientError::Status {
            status: self.status,
            body,
        })
    }
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, ClientError> {
        Ok(serde_json::from_slice(&self.body)?)
    }
    /// `X-Consul-Index`, where there is one.
    pub fn index(&self) -> Option<u64> {
        self.headers.get("x-consul-index")?.to_str().ok()?.parse().ok()
    }
}

/// A client of one agent. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Client<R> {
    rt: R,
    config: ClientConfig,
    address: Address,
}

impl<R: Rt> Client<R> {
    pub fn new(rt: R, config: ClientConfig) -> Result<Self, AddressError> {
        let address = config.address.parse()?;
        Ok(Self { rt, config, address })
    }

    pub fn address(&self) -> &Address {
        &self.address
    }

    pub async fn get(&self, target: Target) -> Result<Answer, ClientError> {
        let target = if self.config.stale {
            target.flag("stale")
        } else {
            target
        };
        self.call(Method::GET, target, Bytes::new()).await
    }
    pub async fn put(&self, target: Target, body: impl Into<Bytes>) -> Result<Answer, ClientError> {
        self.call(Method::PUT, target, body.into()).await
    }
    pub async fn post(&self, target: Target, body: impl Into<Bytes>) -> Result<Answer, ClientError> {
        self.call(Method::POST, target, body.into()).await
    }
    pub async fn delete(&self, target: Target) -> Result<Answer, ClientError> {
        self.call(Method::DELETE, target, Bytes::new()).await
    }

    /// One request on one connection.
    pub async fn call(&self, method: Method, target: Target, body: Bytes) -> Result<Answer, ClientError> {
        let target = match self.config.datacenter.as_str() {
            "" => target,
            name => target.query("dc", name),
        };
        let path = format!("{}{}", self.address.base_path, target.as_str());
        let url = format!("http://{}{path}", self.address.authority());
        let verb = match method {
            Method::GET => "Get",
            Method::PUT => "Put",
            Method::POST => "Post",
            Method::DELETE => "Delete",
            _ => "Do",
        };
        let unreached = |reason: String| ClientError::Unreached {
            verb,
            url: url.clone(),
            reason,
        };
        let request = self.request(method, &path, body)?;

        let stream = self.connect().await.map_err(unreached)?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| unreached(reason_of(&error)))?;
        let driver = self.rt.spawn("http-client-connection", async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "the connection to the agent broke");
            }
        });
        let _driver = driver.abort_on_drop();
        let response = sender
            .send_request(request)
            .await
            .map_err(|error| unreached(reason_of(&error)))?;
        let (parts, body) = response.into_parts();
        let body = Limited::new(body, ANSWER_LEN_BYTES_MAX)
            .collect()
            .await
            .map_err(|error| {
                let reason = match error.downcast_ref::<LengthLimitError>() {
                    Some(_) => format!("the answer is longer than {ANSWER_LEN_BYTES_MAX} bytes"),
                    None => "unexpected EOF".to_owned(),
                };
                unreached(reason)
            })?;
        Ok(Answer {
            status: parts.status,
            headers: parts.headers,
            body: body.to_bytes(),
        })
    }

    fn request(&self, method: Method, path: &str, body: Bytes) -> Result<Request<Full<Bytes>>, ClientError> {
        let mut request = Request::builder().method(method).uri(path).body(Full::new(body))?;
        let headers = request.headers_mut();
        headers.insert(HOST, value(&self.address.authority())?);
        if !self.config.token.is_empty() {
            let mut token = value(&self.config.token)?;
            token.set_sensitive(true);
            headers.insert(HeaderName::from_static("x-consul-token"), token);
        }
        if !self.config.basic_auth.is_empty() {
            let mut basic = value(&format!("Basic {}", STANDARD.encode(&self.config.basic_auth)))?;
            basic.set_sensitive(true);
            headers.insert(AUTHORIZATION, basic);
        }
        Ok(request)
    }

    /// A connection to the first address of the host that takes one; the last failure otherwise, as Go says it.
    async fn connect(&self) -> Result<R::Stream, String> {
        let (host, port) = (&self.address.host, self.address.port);
        let addresses = match self.rt.resolve(host, port).await {
            Ok(addresses) if !addresses.is_empty() => addresses,
            Ok(_) => return Err(format!("dial tcp: lookup {host}: no such host")),
            Err(error) => return Err(format!("dial tcp: lookup {host}: {}", lookup_reason(&error))),
        };
        let mut failure = String::new();
        for address in addresses {
            match self.rt.timeout(CONNECT_TIMEOUT, self.rt.tcp_connect(address)).await {
                Ok(Ok(stream)) => return Ok(stream),
                Ok(Err(error)) => failure = dial_reason(address, &error),
                Err(Elapsed) => failure = format!("dial tcp {address}: i/o timeout"),
            }
        }
        Err(failure)
    }
}

fn value(text: &str) -> Result<HeaderValue, ClientError> {
    Ok(HeaderValue::try_from(text).map_err(http::Error::from)?)
}

fn lookup_reason(error: &io::Error) -> String {
    // The system's resolver words an unknown name in many ways; Go has one.
    match error.raw_os_error() {
        Some(_) => error.to_string(),
        None => "no such host".to_owned(),
    }
}

/// Go's text of a failed dial.
fn dial_reason(address: SocketAddr, error: &io::Error) -> String {
    format!("dial tcp {address}: connect: {}", quorate_rt::net::reason(error))
}

/// Go's text of a connection that broke before the answer.
fn reason_of(error: &hyper::Error) -> String {
    if error.is_incomplete_message() || error.is_canceled() || error.is_closed() {
        return "EOF".to_owned();
    }
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        if let Some(error) = cause.downcast_ref::<io::Error>() {
            return match error.kind() {
                io::ErrorKind::ConnectionReset => "read: connection reset by peer".to_owned(),
                io::ErrorKind::BrokenPipe => "write: broken pipe".to_owned(),
                _ => error.to_string(),
            };
        }
        source = cause.source();
    }
    error.to_string()
}
