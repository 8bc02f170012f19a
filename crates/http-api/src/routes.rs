//! Which path and method is answered by which handler, and what every endpoint does alike: blocked paths, the write gate,
//! `OPTIONS`, 405, a panic made a 500, errors made texts.

use crate::api::Api;
use crate::backend::Backend;
use crate::call::{Call, Description, Failure, Reply, TEXT};
use crate::errors::Fault;
use crate::params::Params;
use crate::{agent, catalog, coordinate, event, health, keyring, kv, metrics, session, status, transaction};
use axum::Router;
use axum::body::Body;
use axum::routing::any;
use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use http::header::{ALLOW, CONNECTION};
use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode};
use quorate_rt::Rt;
use std::future::Future;
use std::net::IpAddr;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

/// Where a request comes from.
#[derive(Clone, Copy, Debug)]
pub struct Peer(pub IpAddr);

/// The request's path, decoded once by the transport.
#[derive(Clone, Debug)]
pub struct DecodedPath(pub Arc<str>);

type Handler<R, B> = Arc<dyn Fn(Api<R, B>, Call) -> BoxFuture<'static, Result<Reply, Failure>> + Send + Sync>;
type MethodHandler<R, B> = (Method, Handler<R, B>);

fn on<R, B, F, Fut>(method: Method, handler: F) -> MethodHandler<R, B>
where
    F: Fn(Api<R, B>, Call) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<Reply, Failure>> + Send + 'static,
{
    (method, Arc::new(move |api, call| handler(api, call).boxed()))
}

fn get<R, B, F, Fut>(handler: F) -> Vec<MethodHandler<R, B>>
where
    F: Fn(Api<R, B>, Call) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<Reply, Failure>> + Send + 'static,
{
    vec![on(Method::GET, handler)]
}

fn put<R, B, F, Fut>(handler: F) -> Vec<MethodHandler<R, B>>
where
    F: Fn(Api<R, B>, Call) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<Reply, Failure>> + Send + 'static,
{
    vec![on(Method::PUT, handler)]
}

/// The endpoints. Paths are cleaned and decoded before they come here (`transport`).
pub fn router<R: Rt, B: Backend>(api: &Api<R, B>) -> Router {
    let mut routes = Routes {
        api: api.clone(),
        router: Router::new(),
    };

    routes.fixed("/v1/agent/self", get(agent::show_self));
    routes.fixed("/v1/agent/metrics", get(metrics::show));
    routes.fixed("/v1/agent/members", get(agent::members));
    routes.fixed("/v1/agent/reachability", get(agent::reachability));
    routes.fixed("/v1/agent/version", get(agent::version));
    routes.prefix("/v1/agent/join/", put(agent::join));
    routes.fixed("/v1/agent/leave", put(agent::leave));
    routes.prefix("/v1/agent/force-leave/", put(agent::force_leave));
    routes.fixed("/v1/agent/reload", put(agent::reload));
    routes.fixed("/v1/agent/maintenance", put(agent::node_maintenance));
    routes.fixed("/v1/agent/services", get(agent::services));
    routes.prefix("/v1/agent/service/", get(agent::service));
    routes.fixed("/v1/agent/service/register", put(agent::register_service));
    routes.prefix("/v1/agent/service/deregister/", put(agent::deregister_service));
    routes.prefix("/v1/agent/service/maintenance/", put(agent::service_maintenance));
    routes.prefix("/v1/agent/health/service/id/", get(agent::health_by_id));
    routes.prefix("/v1/agent/health/service/name/", get(agent::health_by_name));
    routes.fixed("/v1/agent/checks", get(agent::checks));
    routes.fixed("/v1/agent/check/register", put(agent::register_check));
    routes.prefix("/v1/agent/check/deregister/", put(agent::deregister_check));
    routes.prefix("/v1/agent/check/pass/", put(agent::pass_check));
    routes.prefix("/v1/agent/check/warn/", put(agent::warn_check));
    routes.prefix("/v1/agent/check/fail/", put(agent::fail_check));
    routes.prefix("/v1/agent/check/update/", put(agent::update_check));

    routes.fixed("/v1/catalog/register", put(catalog::register));
    routes.fixed("/v1/catalog/deregister", put(catalog::deregister));
    routes.fixed("/v1/catalog/datacenters", get(catalog::datacenters));
    routes.fixed("/v1/catalog/nodes", get(catalog::nodes));
    routes.fixed("/v1/catalog/services", get(catalog::services));
    routes.prefix("/v1/catalog/service/", get(catalog::service));
    routes.prefix("/v1/catalog/node/", get(catalog::node));
    routes.prefix("/v1/catalog/node-services/", get(catalog::node_services));

    routes.prefix("/v1/health/node/", get(health::node));
    routes.prefix("/v1/health/checks/", get(health::checks));
    routes.prefix("/v1/health/service/", get(health::service));
    routes.prefix("/v1/health/state/", get(health::state));

    routes.prefix(
        "/v1/kv/",
        vec![
            on(Method::GET, kv::get),
            on(Method::PUT, kv::put),
            on(Method::DELETE, kv::delete),
        ],
    );

    routes.fixed("/v1/session/create", put(session::create));
    routes.prefix("/v1/session/destroy/", put(session::destroy));
    routes.prefix("/v1/session/renew/", put(session::renew));
    routes.prefix("/v1/session/info/", get(session::info));
    routes.prefix("/v1/session/node/", get(session::of_node));
    routes.fixed("/v1/session/list", get(session::list));
    routes.fixed("/v1/txn", put(transaction::transact));

    routes.prefix("/v1/event/fire/", put(event::fire));
    routes.fixed("/v1/event/list", get(event::list));
    routes.fixed("/v1/coordinate/datacenters", get(coordinate::datacenters));
    routes.fixed("/v1/coordinate/nodes", get(coordinate::nodes));
    routes.prefix("/v1/coordinate/node/", get(coordinate::node));
    routes.fixed("/v1/coordinate/update", put(coordinate::update));

    routes.fixed("/v1/status/leader", get(status::leader));
    routes.fixed("/v1/status/peers", get(status::peers));
    routes.fixed("/v1/operator/raft/configuration", get(status::raft_configuration));

    routes.fixed(
        "/v1/operator/keyring",
        vec![
            on(Method::GET, keyring::list),
            on(Method::POST, keyring::install),
            on(Method::PUT, keyring::use_key),
            on(Method::DELETE, keyring::remove),
        ],
    );

    // Of the service mesh: what a server without it answers, so that generic clients do not break.
    for path in [
        "/v1/catalog/connect/",
        "/v1/health/connect/",
        "/v1/health/ingress/",
        "/v1/config/",
    ] {
        routes.prefix(path, get(status::empty_list));
    }
    routes.prefix("/v1/catalog/gateway-services/", get(status::null));
    routes.fixed("/v1/connect/intentions", get(status::empty_list));
    routes.fixed("/v1/connect/ca/roots", get(status::connect_disabled));
    routes.prefix("/v1/discovery-chain/", get(status::connect_disabled));
    routes.prefix("/v1/agent/connect/", get(status::connect_disabled));

    routes
        .router
        .route("/", any(root))
        .fallback(|| async { StatusCode::NOT_FOUND })
}

/// Without a UI.
async fn root() -> Response<Body> {
    let reply = Reply::new(StatusCode::OK, Some(TEXT), Bytes::from_static(b"Consul Agent"));
    into_response(reply)
}

struct Routes<R, B> {
    api: Api<R, B>,
    router: Router,
}

impl<R: Rt, B: Backend> Routes<R, B> {
    fn fixed(&mut self, path: &'static str, methods: Vec<MethodHandler<R, B>>) {
        self.add(path, path, &Arc::from(methods));
    }

    /// A path that goes on: with a name, a key, or nothing. Without its slash it is redirected, as Go's mux does.
    fn prefix(&mut self, path: &'static str, methods: Vec<MethodHandler<R, B>>) {
        let methods = Arc::from(methods);
        self.add(path, path, &methods);
        self.add(&format!("{path}{{*rest}}"), path, &methods);
        let bare = path.strip_suffix('/').expect("a prefix ends with a slash");
        self.router = std::mem::take(&mut self.router).route(
            bare,
            any(move |request: Request<Body>| async move {
                crate::transport::redirect(request.method(), path, request.uri().query())
            }),
        );
    }

    fn add(&mut self, pattern: &str, path: &'static str, methods: &Arc<[MethodHandler<R, B>]>) {
        let (api, methods) = (self.api.clone(), Arc::clone(methods));
        self.router = std::mem::take(&mut self.router).route(
            pattern,
            any(move |request: Request<Body>| answer(api.clone(), Arc::clone(&methods), path, request)),
        );
    }
}

async fn answer<R: Rt, B: Backend>(
    api: Api<R, B>,
    methods: Arc<[MethodHandler<R, B>]>,
    endpoint: &'static str,
    request: Request<Body>,
) -> Response<Body> {
    let (parts, body) = request.into_parts();
    let DecodedPath(path) = parts
        .extensions
        .get()
        .cloned()
        .expect("the transport decodes every path");
    let reply = match gate(&api, &methods, &path, &parts.method, parts.extensions.get().copied()) {
        Err(reply) => *reply,
        Ok(handler) => {
            let params = Params::parse(parts.uri.query().unwrap_or(""));
            let call = Call {
                rest: path
                    .strip_prefix(endpoint)
                    .expect("the router matched this endpoint")
                    .to_owned(),
                pretty: api.config().pretty || params.has("pretty"),
                params,
                peer: parts.extensions.get().map(|Peer(peer)| *peer),
                headers: parts.headers,
                body: body.into(),
            };
            // A broken request must not take its connection's other requests, or the agent, with it.
            let began_at = api.rt().now();
            let answered = AssertUnwindSafe(handler(api.clone(), call)).catch_unwind().await;
            let took = api.rt().now() - began_at;
            api.backend().observe_request(parts.method.as_str(), endpoint, took);
            match answered {
                Ok(Ok(reply)) => reply,
                Ok(Err(failure)) => refused(&failure),
                Err(_) => {
                    tracing::error!(method = %parts.method, %path, "a request's handler panicked");
                    refused(&Fault::Panicked.into())
                }
            }
        }
    };
    let mut response = into_response(reply);
    let headers = response.headers_mut();
    for (name, value) in &api.config().response_headers {
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::try_from(value)) {
            headers.insert(name, value);
        }
    }
    if api.config().translate_wan_addrs {
        headers.insert(
            HeaderName::from_static("x-consul-translate-addresses"),
            HeaderValue::from_static("true"),
        );
    }
    headers.insert(
        HeaderName::from_static("x-consul-default-acl-policy"),
        HeaderValue::from_static(api.config().default_acl_policy),
    );
    response
}

/// The handler for this method, or the reply that keeps it from being called.
fn gate<R: Rt, B: Backend>(
    api: &Api<R, B>,
    methods: &[MethodHandler<R, B>],
    path: &str,
    method: &Method,
    peer: Option<Peer>,
) -> Result<Handler<R, B>, Box<Reply>> {
    let config = api.config();
    if config
        .block_endpoints
        .iter()
        .any(|prefix| path.starts_with(prefix.as_str()))
    {
        return Err(Box::new(refused(&Fault::Blocked.into())));
    }
    let reads = matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS);
    if !reads && !config.allow_write_http_from.is_empty() {
        let allowed =
            peer.is_some_and(|Peer(peer)| config.allow_write_http_from.iter().any(|block| block.contains(&peer)));
        if !allowed {
            return Err(Box::new(refused(&Fault::WriteRestricted.into())));
        }
    }
    let allow = || {
        let names: Vec<&str> = methods.iter().map(|(method, _)| method.as_str()).collect();
        HeaderValue::try_from(format!("OPTIONS,{}", names.join(","))).expect("method names are plain text")
    };
    if method == Method::OPTIONS {
        return Err(Box::new(Reply::empty().header(ALLOW, allow())));
    }
    // HEAD is answered as GET is; hyper leaves the body out.
    let wanted = if method == Method::HEAD { &Method::GET } else { method };
    match methods.iter().find(|(method, _)| method == wanted) {
        Some((_, handler)) => Ok(Arc::clone(handler)),
        None => {
            let reply = refused(&Fault::Method(method.to_string()).into());
            Err(Box::new(reply.header(ALLOW, allow())))
        }
    }
}

fn refused(failure: &Failure) -> Reply {
    let Failure { fault, described } = failure;
    let mut reply = Reply::new(fault.status(), Some(TEXT), fault.to_string().into());
    if *described {
        reply = reply.described(Description::UNANSWERED);
    }
    if fault.closes_connection() {
        reply = reply.header(CONNECTION, HeaderValue::from_static("close"));
    }
    reply
}

fn into_response(reply: Reply) -> Response<Body> {
    let mut response = Response::new(Body::from(reply.body));
    *response.status_mut() = reply.status;
    *response.headers_mut() = reply.headers;
    response
}
