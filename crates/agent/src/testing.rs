//! Pieces of an agent on the real door, for unit tests: pools, servers that answer as a test wants, and no leader anywhere.

use crate::config::definition::ScriptPolicy;
use crate::data_dir::DataDir;
use crate::local::{Local, LocalSettings};
use crate::router::{ClientRole, MembersView, Role, Router};
use quorate_anti_entropy::NodeRecord;
use quorate_checks::{CheckUpdates, Checks};
use quorate_gossip::{Gossip, GossipConfig, Timing};
use quorate_replica::{Replica, ReplicaConfig, RequestHandler, RpcClient};
use quorate_rt::production::{TokioRt, block_on};
use quorate_rt::{AnyDisk, MemoryDisk, Rt as _};
use quorate_types::{NodeId, Uuid};
use quorate_wire::rpc::{CallError, Request, Response};
use std::collections::BTreeMap;
use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

/// Long enough for any of these on a loaded machine; a test that needs it fails.
const PATIENCE: Duration = Duration::from_secs(60);
const LOOPBACK: Ipv4Addr = Ipv4Addr::LOCALHOST;
const DATACENTER: &str = "dc1";

pub(crate) fn on_production<F: Future<Output = ()> + Send>(main: impl FnOnce(TokioRt) -> F) {
    block_on(2, |rt| async move {
        rt.timeout(PATIENCE, main(rt.clone()))
            .await
            .expect("the test ends in time");
    })
    .expect("start a runtime");
}

fn id(n: u8) -> NodeId {
    NodeId(Uuid::from_bytes([n; 16]))
}

/// Member `n` of a pool; a server when its RPC port is given.
pub(crate) async fn member(rt: &TokioRt, n: u8, server_port: Option<u16>) -> Gossip<TokioRt> {
    let mut tags = BTreeMap::from([("dc".to_owned(), DATACENTER.to_owned())]);
    let role = if server_port.is_some() { "consul" } else { "node" };
    tags.insert("role".to_owned(), role.to_owned());
    tags.extend(server_port.map(|port| ("port".to_owned(), port.to_string())));
    let config = GossipConfig {
        id: id(n),
        name: format!("n{n}"),
        datacenter: DATACENTER.to_owned(),
        bind: SocketAddr::from((LOOPBACK, 0)),
        advertise: IpAddr::V4(LOOPBACK),
        tags,
        timing: Timing::local(),
        pool: "lan",
        encryption: None,
        past: quorate_gossip::Past::default(),
    };
    Gossip::start(rt.clone(), config).await.expect("start a member")
}

/// The router of a client agent, the first of these members.
pub(crate) fn client_router(rt: &TokioRt, gossip: &Gossip<TokioRt>, hold_timeout: Duration) -> Router<TokioRt> {
    let members = MembersView::default();
    members.set(gossip.clone(), None);
    let rpc = RpcClient::new(rt.clone(), id(1));
    let role = Role::Client(Arc::new(ClientRole::new(rt, rpc, gossip.clone())));
    Router::new(rt.clone(), DATACENTER, role, members, hold_timeout)
}

/// A request as a server got it, and where its answer goes.
pub(crate) type Asked = (u8, Request, oneshot::Sender<Response>);

/// Hands every request to the test.
struct Forwarding {
    n: u8,
    asked: mpsc::UnboundedSender<Asked>,
}

impl RequestHandler for Forwarding {
    async fn handle(&self, request: Request) -> Response {
        let (answer, answered) = oneshot::channel();
        // A test that has ended wants no more.
        let _ = self.asked.send((self.n, request, answer));
        answered.await.unwrap_or(Response::Failed(CallError::NoLeader))
    }
}

/// Server `n`, of no cluster: its requests are answered by the test.
pub(crate) async fn server(rt: &TokioRt, n: u8, asked: mpsc::UnboundedSender<Asked>) -> Replica<TokioRt> {
    let disk = AnyDisk::Memory(MemoryDisk::default());
    let bind = SocketAddr::from((LOOPBACK, 0));
    let config = ReplicaConfig::new(id(n), format!("n{n}"), PathBuf::from("/"), disk, bind);
    let server = Replica::start(rt.clone(), config, Forwarding { n, asked }).await;
    server.expect("start a server")
}

/// A server's router that never finds a leader, as its server belongs to no cluster.
pub(crate) async fn leaderless_router(rt: &TokioRt, hold_timeout: Duration) -> Router<TokioRt> {
    let (asked, _) = mpsc::unbounded_channel();
    let replica = server(rt, 1, asked).await;
    let role = Role::Server(replica);
    Router::new(rt.clone(), DATACENTER, role, MembersView::default(), hold_timeout)
}

/// Local services and checks in memory, and the results of their checks.
pub(crate) async fn local(rt: &TokioRt, router: Router<TokioRt>) -> (Local<TokioRt>, DataDir<TokioRt>, CheckUpdates) {
    local_in(rt, router, None).await
}

/// The same, kept in a folder.
pub(crate) async fn local_in(
    rt: &TokioRt,
    router: Router<TokioRt>,
    folder: Option<&Path>,
) -> (Local<TokioRt>, DataDir<TokioRt>, CheckUpdates) {
    let data_dir = DataDir::open(rt, folder, None).await.expect("the folder can be opened");
    let (checks, results) = Checks::start(rt.clone());
    let node = NodeRecord {
        id: id(1),
        name: "n1".to_owned(),
        address: LOOPBACK.to_string(),
        datacenter: DATACENTER.to_owned(),
        tagged_addresses: BTreeMap::new(),
        meta: BTreeMap::new(),
    };
    let local = Local::new(rt.clone(), node, settings(), router, data_dir.clone(), checks);
    (local, data_dir, results)
}

pub(crate) fn settings() -> LocalSettings {
    LocalSettings {
        scripts: ScriptPolicy::default(),
        check_update_interval: Duration::ZERO,
        discard_check_output: false,
    }
}
