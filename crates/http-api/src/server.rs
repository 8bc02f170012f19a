//! The HTTP server: connections, their limits, and an orderly stop.
//!
//! Promises: a client address holds at most its number of connections; a request head is bounded in size, fields and
//! time; when the server stops, idle connections end at once, running requests get [`STOP_TIMEOUT`], and requests that
//! wait are answered as things are.
//!
//! Not here: TLS, Unix sockets; what is answered (`transport`, `routes`).

use crate::api::{Api, Once};
use crate::backend::Backend;
use crate::config::{HEADER_COUNT_MAX, HttpConfig, REQUEST_HEAD_TIMEOUT};
use crate::routes::{Peer, router};
use crate::transport;
use axum::Router;
use axum::body::Body;
use futures::future::{Either, select};
use http::Request;
use hyper::body::Incoming;
use hyper::rt::{Sleep, Timer};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use quorate_rt::task::AbortOnDrop;
use quorate_rt::{Listener, Rt};
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;
use thiserror::Error;
use tokio::sync::Notify;

/// Connections of all clients together: bounds memory when many addresses each keep within their limit.
pub const CONNECTION_COUNT_MAX: usize = 32 * 1024;
/// How long running requests may go on once the server stops.
pub const STOP_TIMEOUT: Duration = Duration::from_secs(5);
/// Pause after a failed accept: out of descriptors is the usual reason, and trying at once would spin.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(100);

/// Why the server did not start. The text is Go's.
#[derive(Debug, Error)]
#[error("listen tcp {address}: bind: {}", quorate_rt::net::reason(.source))]
pub struct StartError {
    pub address: SocketAddr,
    #[source]
    pub source: io::Error,
}

/// A running server. Dropping it stops it at once; [`HttpServer::stop`] does so in order.
#[derive(Debug)]
pub struct HttpServer<R: Rt, B: Backend> {
    api: Api<R, B>,
    connections: Arc<Connections>,
    addresses: Vec<SocketAddr>,
    accepting: Vec<AbortOnDrop>,
}

impl<R: Rt, B: Backend> HttpServer<R, B> {
    /// Listens on all `addresses`, or on none.
    pub async fn start(rt: R, addresses: &[SocketAddr], config: HttpConfig, backend: B) -> Result<Self, StartError> {
        let mut listeners = Vec::with_capacity(addresses.len());
        for &address in addresses {
            listeners.push(
                rt.tcp_listen(address)
                    .await
                    .map_err(|source| StartError { address, source })?,
            );
        }
        let connections = Arc::new(Connections::new(config.connections_per_client_count_max));
        let api = Api::new(rt.clone(), config, backend);
        let router = router(&api);
        let mut bound = Vec::with_capacity(listeners.len());
        let mut accepting = Vec::with_capacity(listeners.len());
        for (listener, &address) in listeners.into_iter().zip(addresses) {
            bound.push(listener.local_addr().unwrap_or(address));
            let work = accept(api.clone(), router.clone(), Arc::clone(&connections), listener);
            accepting.push(rt.spawn("http-accept", work).abort_on_drop());
        }
        Ok(Self {
            api,
            connections,
            addresses: bound,
            accepting,
        })
    }

    /// Where it listens: with the port the system chose when 0 was asked for.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Changes `limits.http_max_conns_per_client`; connections that are open stay.
    pub fn set_connections_per_client_count_max(&self, count_max: usize) {
        self.connections
            .per_client_count_max
            .store(count_max, Ordering::Relaxed);
    }

    /// Stops accepting, ends idle connections, answers what waits, and waits for running requests a bounded time.
    pub async fn stop(mut self) {
        self.accepting.clear();
        self.api.stopping().set();
        let idle = self.connections.idle();
        if self.api.rt().timeout(STOP_TIMEOUT, idle).await.is_err() {
            tracing::warn!(
                connections = self.connections.count(),
                "requests still run; their connections are closed"
            );
        }
        // What is left ends with the drop of this server.
    }
}

impl<R: Rt, B: Backend> Drop for HttpServer<R, B> {
    fn drop(&mut self) {
        self.api.stopping().set();
        self.connections.closed.set();
    }
}

/// Who is connected.
#[derive(Debug)]
struct Connections {
    per_client: Mutex<BTreeMap<IpAddr, usize>>,
    count: AtomicUsize,
    per_client_count_max: AtomicUsize,
    none_left: Notify,
    /// Ends every connection at once.
    closed: Once,
}

impl Connections {
    fn new(per_client_count_max: usize) -> Self {
        Self {
            per_client: Mutex::default(),
            count: AtomicUsize::new(0),
            per_client_count_max: AtomicUsize::new(per_client_count_max),
            none_left: Notify::new(),
            closed: Once::default(),
        }
    }

    fn per_client(&self) -> MutexGuard<'_, BTreeMap<IpAddr, usize>> {
        self.per_client.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn count(&self) -> usize {
        self.count.load(Ordering::SeqCst)
    }

    /// A place for a connection from `client`, unless the limits forbid it.
    fn enter(self: &Arc<Self>, client: IpAddr) -> Option<Place> {
        let mut per_client = self.per_client();
        let count = per_client.get(&client).copied().unwrap_or(0);
        let count_max = self.per_client_count_max.load(Ordering::Relaxed);
        if (count_max > 0 && count >= count_max) || self.count() >= CONNECTION_COUNT_MAX {
            return None;
        }
        per_client.insert(client, count + 1);
        self.count.fetch_add(1, Ordering::SeqCst);
        Some(Place {
            connections: Arc::clone(self),
            client,
        })
    }

    /// Ends when nobody is connected.
    async fn idle(&self) {
        loop {
            let none_left = self.none_left.notified();
            if self.count() == 0 {
                return;
            }
            none_left.await;
        }
    }
}

/// One connection's place; given back when dropped.
struct Place {
    connections: Arc<Connections>,
    client: IpAddr,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut per_client = self.connections.per_client();
        match per_client.get_mut(&self.client) {
            Some(count) if *count > 1 => *count -= 1,
            _ => {
                per_client.remove(&self.client);
            }
        }
        if self.connections.count.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.connections.none_left.notify_waiters();
        }
    }
}

async fn accept<R: Rt, B: Backend>(
    api: Api<R, B>,
    router: Router,
    connections: Arc<Connections>,
    listener: R::Listener,
) {
    loop {
        match listener.accept().await {
            Ok((stream, from)) => {
                let client = from.ip().to_canonical();
                let Some(place) = connections.enter(client) else {
                    // As Consul does: closed without a response.
                    tracing::debug!(%client, "connection refused: this client has too many");
                    continue;
                };
                let (api, router) = (api.clone(), router.clone());
                let rt = api.rt().clone();
                rt.spawn("http-connection", serve(api, router, place, stream));
            }
            Err(error) => {
                tracing::warn!(%error, "accept of an HTTP connection failed");
                api.rt().sleep(ACCEPT_RETRY_DELAY).await;
            }
        }
    }
}

async fn serve<R: Rt, B: Backend>(api: Api<R, B>, router: Router, place: Place, stream: R::Stream) {
    let peer = Peer(place.client);
    let service = service_fn(|request: Request<Incoming>| {
        let (api, router) = (api.clone(), router.clone());
        async move { Ok::<_, Infallible>(transport::answer(&api, router, peer, request.map(Body::new)).await) }
    });
    let mut connection = pin!(
        http1::Builder::new()
            .timer(RtTimer::new(api.rt().clone()))
            .header_read_timeout(REQUEST_HEAD_TIMEOUT)
            .max_headers(HEADER_COUNT_MAX)
            // hyper refuses less than 8 KiB.
            .max_buf_size(api.config().header_len_bytes_max.max(8 * 1024))
            // `Date` comes from the door's clock.
            .auto_date_header(false)
            // As Go writes names: `X-Consul-Index`.
            .title_case_headers(true)
            .serve_connection(TokioIo::new(stream), service)
    );
    let closed = place.connections.closed.wait();
    let mut closed = pin!(closed);
    let stopping = pin!(api.stopping().wait());
    let ended = match select(select(connection.as_mut(), stopping), closed.as_mut()).await {
        Either::Left((Either::Left((ended, _)), _)) => ended,
        Either::Left((Either::Right(_), _)) => {
            connection.as_mut().graceful_shutdown();
            match select(connection, closed).await {
                Either::Left((ended, _)) => ended,
                Either::Right(_) => Ok(()),
            }
        }
        Either::Right(_) => Ok(()),
    };
    if let Err(error) = ended {
        tracing::debug!(client = %place.client, %error, "an HTTP connection broke");
    }
}

/// hyper's timer over the door's clock.
struct RtTimer<R> {
    rt: R,
    /// hyper counts in the system's instants: this one stands for the door's zero.
    zero: std::time::Instant,
}

impl<R: Rt> RtTimer<R> {
    fn new(rt: R) -> Self {
        let zero = quorate_rt::zero_of_system_instants();
        Self { rt, zero }
    }
}

impl<R: Rt> Timer for RtTimer<R> {
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Sleep>> {
        let rt = self.rt.clone();
        Box::pin(RtSleep(Mutex::new(Box::pin(async move { rt.sleep(duration).await }))))
    }
    fn sleep_until(&self, deadline: std::time::Instant) -> Pin<Box<dyn Sleep>> {
        self.sleep(deadline.saturating_duration_since(self.now()))
    }
    fn now(&self) -> std::time::Instant {
        self.zero + Duration::from_nanos(self.rt.now().as_nanos())
    }
}

/// hyper asks for a timer that threads may share; the mutex is never contended.
struct RtSleep(Mutex<Pin<Box<dyn Future<Output = ()> + Send>>>);

impl Future for RtSleep {
    type Output = ();
    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let sleep = self.0.get_mut().unwrap_or_else(PoisonError::into_inner);
        sleep.as_mut().poll(context)
    }
}

impl Sleep for RtSleep {}
