//! The driver on the real kernel: several members in one process, on the loopback.

mod bad_input;
mod encryption;
mod members;
mod user_events;

use quorate_gossip::{Gossip, GossipConfig, Past, Timing};
use quorate_rt::Rt;
use quorate_rt::production::{TokioRt, block_on};
use quorate_types::{MemberStatus, NodeId, Uuid};
use std::collections::BTreeMap;
use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

/// Long enough on a loaded machine; a test that needs it fails.
const PATIENCE: Duration = Duration::from_secs(60);

fn on_production<F: Future<Output = ()> + Send>(main: impl FnOnce(TokioRt) -> F) {
    block_on(2, |rt| async move {
        let done = rt.timeout(PATIENCE, main(rt.clone())).await;
        done.expect("the test ends in time");
    })
    .expect("start a runtime");
}

fn id(n: u8) -> NodeId {
    NodeId(Uuid::from_bytes([n; 16]))
}

/// Member `n` at an address that each test has for itself, so that a port it let go is not taken by another.
fn config(ip: Ipv4Addr, n: u8) -> GossipConfig {
    GossipConfig {
        id: id(n),
        name: format!("n{n}"),
        datacenter: "dc1".to_owned(),
        bind: SocketAddr::from((ip, 0)),
        advertise: IpAddr::V4(ip),
        tags: BTreeMap::from([("role".to_owned(), "node".to_owned())]),
        timing: Timing::local(),
        pool: "lan",
        encryption: None,
        past: Past::default(),
    }
}
async fn start_with<R: Rt>(rt: &R, config: GossipConfig) -> Gossip<R> {
    Gossip::start(rt.clone(), config).await.expect("start a member")
}

/// Looks until it is so.
async fn until<R: Rt>(rt: &R, what: &str, is_so: impl Fn() -> bool) {
    let attempts = 3000;
    for _ in 0..attempts {
        if is_so() {
            return;
        }
        rt.sleep(Duration::from_millis(10)).await;
    }
    panic!("not so in time: {what}");
}
fn alive<R: Rt>(member: &Gossip<R>) -> Vec<String> {
    let members = member.members();
    let alive = members.iter().filter(|member| member.status == MemberStatus::Alive);
    alive.map(|member| member.name.clone()).collect()
}
async fn until_all_alive<R: Rt>(rt: &R, members: &[&Gossip<R>], names: &[&str]) {
    until(rt, &format!("all see {names:?} alive"), || {
        members.iter().all(|member| alive(member) == names)
    })
    .await;
}
fn refused<R: Rt>(member: &Gossip<R>, cause: &str) -> u64 {
    member.refused_counts().get(cause).copied().unwrap_or(0)
}
/// Of all causes.
fn refused_count<R: Rt>(member: &Gossip<R>) -> u64 {
    member.refused_counts().values().sum()
}
