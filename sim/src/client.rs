//! Clients of the agents' public interfaces, run from a node of the world.

use crate::rt::{SimRt, SimStream};
use anyhow::{Context as _, anyhow, bail};
use bytes::Bytes;
use hickory_proto::op::{Message, MessageType, OpCode, Query};
use hickory_proto::rr::{Name, RecordType};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{HeaderMap, Method, Request, StatusCode, Uri, client::conn::http1};
use hyper_util::rt::TokioIo;
use quorate_rt::{Rt, Udp as _};
use rand_core::Rng as _;
use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::str::FromStr as _;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// The most of an answer's body that is read.
const BODY_LEN_MAX: usize = 64 * 1024 * 1024;

/// What an agent answered.
#[derive(Clone, Debug)]
pub struct HttpAnswer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl HttpAnswer {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }
}

/// A client on one machine. Each request has a connection of its own.
#[derive(Clone)]
pub struct Client {
    rt: SimRt,
    timeout: Duration,
}

impl Client {
    /// `timeout` bounds each request; a blocking query needs more than its wait.
    pub fn new(rt: SimRt, timeout: Duration) -> Self {
        Self { rt, timeout }
    }
    pub fn with_timeout(&self, timeout: Duration) -> Self {
        Self {
            rt: self.rt.clone(),
            timeout,
        }
    }

    async fn within<T: Send>(&self, work: impl Future<Output = anyhow::Result<T>> + Send) -> anyhow::Result<T> {
        match self.rt.timeout(self.timeout, work).await {
            Ok(done) => done,
            Err(_) => bail!("no answer within {:?}", self.timeout),
        }
    }
    pub async fn http(&self, method: Method, url: &str, body: impl Into<Bytes>) -> anyhow::Result<HttpAnswer> {
        self.http_with(method, url, &[], body).await
    }
    pub async fn http_with(
        &self,
        method: Method,
        url: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> anyhow::Result<HttpAnswer> {
        let work = self.exchange(method.clone(), url, headers, body.into());
        self.within(work).await.with_context(|| format!("{method} {url}"))
    }
    async fn exchange(
        &self,
        method: Method,
        url: &str,
        headers: &[(&str, &str)],
        body: Bytes,
    ) -> anyhow::Result<HttpAnswer> {
        let uri: Uri = url.parse().context("parse the address")?;
        let host = uri.host().context("the address names no host")?;
        let authority = uri
            .authority()
            .context("the address names no host")?
            .as_str()
            .to_owned();
        let resolved = self
            .rt
            .resolve(host.trim_matches(['[', ']']), uri.port_u16().unwrap_or(80))
            .await?;
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        let mut request = Request::builder().method(method).uri(path).header("host", authority);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(body))?;
        let stream: SimStream = self.rt.tcp_connect(resolved[0]).await.context("connect")?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        // The guard ends the connection with the request.
        let _connection = self
            .rt
            .spawn("client.http", async move {
                // A failure shows in the request it breaks.
                let _ = connection.await;
            })
            .abort_on_drop();
        let answer = sender.send_request(request).await?;
        let (head, body) = answer.into_parts();
        let body = Limited::new(body, BODY_LEN_MAX)
            .collect()
            .await
            .map_err(|err| anyhow!(err))
            .context("read the body")?;
        Ok(HttpAnswer {
            status: head.status,
            headers: head.headers,
            body: body.to_bytes(),
        })
    }

    fn question(&self, qname: &str, qtype: RecordType) -> anyhow::Result<Message> {
        let id = (self.rt.rng("client.dns").next_u32() & 0xffff) as u16;
        let mut message = Message::new(id, MessageType::Query, OpCode::Query);
        message.metadata.recursion_desired = true;
        message.add_query(Query::query(Name::from_str(qname)?, qtype));
        Ok(message)
    }
    /// One question by UDP, asked once: a lost datagram is a timeout.
    pub async fn dns(&self, server: SocketAddr, qname: &str, qtype: RecordType) -> anyhow::Result<Message> {
        let question = self.question(qname, qtype)?;
        let work = async {
            let socket = self
                .rt
                .udp_bind(SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0))
                .await?;
            socket.send_to(&question.to_vec()?, server).await?;
            let mut buffer = vec![0; 65_535];
            loop {
                let (len, from) = socket.recv_from(&mut buffer).await?;
                let answer = Message::from_vec(&buffer[..len])?;
                if from == server && answer.metadata.id == question.metadata.id {
                    return anyhow::Ok(answer);
                }
            }
        };
        self.within(work)
            .await
            .with_context(|| format!("{qtype} {qname} at {server}"))
    }
    /// One question by TCP.
    pub async fn dns_tcp(&self, server: SocketAddr, qname: &str, qtype: RecordType) -> anyhow::Result<Message> {
        let question = self.question(qname, qtype)?;
        let work = async {
            let mut stream = self.rt.tcp_connect(server).await.context("connect")?;
            let content = question.to_vec()?;
            let mut framed = u16::try_from(content.len())?.to_be_bytes().to_vec();
            framed.extend(content);
            stream.write_all(&framed).await?;
            let mut answer = vec![0; usize::from(stream.read_u16().await?)];
            stream.read_exact(&mut answer).await?;
            let answer = Message::from_vec(&answer)?;
            if answer.metadata.id != question.metadata.id {
                bail!("the answer is to another question");
            }
            anyhow::Ok(answer)
        };
        self.within(work)
            .await
            .with_context(|| format!("{qtype} {qname} at {server}"))
    }
}
