//! The WAN pool: the servers of all datacenters, each as `<node>.<datacenter>` with timings for long ways.
//!
//! Who joins one server's WAN address joins them all to it: every server brings the servers of its own LAN pool along
//! (Consul's flooding), so an operator names one address of the other datacenter, once.
//! Not here: the LAN pool (`node`), forwarding of requests to other datacenters (`router`).

use crate::config::Config;
use crate::node::{Agent, StartError, tuned};
use quorate_gossip::{Encryption, Gossip, GossipConfig, Past, Timing};
use quorate_replica::RaftRt;
use quorate_rt::Rt;
use quorate_types::{Member, MemberStatus, NodeId};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

/// Members of the LAN pool tell by this tag where their WAN pool is reached.
pub(crate) const PORT_TAG: &str = "wan_join_port";
/// A server that could not be brought along is tried again after this.
const FLOOD_INTERVAL: Duration = Duration::from_secs(10);
/// Changes come in bursts: one look for all of them.
const FLOOD_DELAY: Duration = Duration::from_millis(50);

/// The name in the WAN pool.
pub(crate) fn name(node: &str, datacenter: &str) -> String {
    format!("{node}.{datacenter}")
}

/// Starts the pool of a server that has one: `ports.serf_wan` of -1 has none, and so have clients.
pub(crate) async fn start<R: Rt>(
    rt: &R,
    config: &Config,
    node_id: NodeId,
    tags: BTreeMap<String, String>,
    encryption: Option<Encryption>,
    past: Past,
) -> Result<Option<Gossip<R>>, StartError> {
    let Some(bind) = config.serf_wan_bind.filter(|_| config.server) else {
        return Ok(None);
    };
    let wan = GossipConfig {
        id: node_id,
        name: name(&config.node_name, &config.datacenter),
        datacenter: config.datacenter.clone(),
        bind,
        advertise: config.advertise_addr_wan,
        tags,
        timing: tuned(Timing::wan(), &config.gossip_wan, !config.disable_coordinates),
        pool: "wan",
        encryption,
        past,
    };
    let wan = Gossip::start(rt.clone(), wan).await.map_err(StartError::Gossip)?;
    Ok(Some(wan))
}

/// Datacenters that have a live server, ours first, the others by name.
pub(crate) fn datacenters(members: &[Member], own: &str) -> Vec<String> {
    let live = members.iter().filter(|member| member.status == MemberStatus::Alive);
    let others: BTreeSet<&String> = live
        .filter_map(|member| member.tags.get("dc"))
        .filter(|datacenter| *datacenter != own)
        .collect();
    std::iter::once(own.to_owned())
        .chain(others.into_iter().cloned())
        .collect()
}

/// WAN addresses of the live servers of our datacenter that the WAN pool does not know as live.
fn missing(lan: &[Member], wan: &[Member]) -> Vec<SocketAddr> {
    let known: BTreeSet<NodeId> = wan
        .iter()
        .filter(|member| matches!(member.status, MemberStatus::Alive | MemberStatus::Leaving))
        .map(|member| member.id)
        .collect();
    lan.iter()
        .filter(|member| member.status == MemberStatus::Alive && member.is_server() && !known.contains(&member.id))
        .filter_map(|member| {
            let port = member.tags.get(PORT_TAG)?.parse().ok()?;
            Some(SocketAddr::new(member.address.ip(), port))
        })
        .collect()
}

impl<R: RaftRt> Agent<R> {
    /// Brings the servers of the LAN pool into the WAN pool.
    pub(crate) async fn flood_wan(self, wan: Gossip<R>) {
        let rt = &self.inner.rt;
        let mut events = self.inner.gossip.subscribe();
        loop {
            let missing = missing(&self.inner.gossip.members(), &wan.members());
            if !missing.is_empty()
                && let Err(err) = wan.join(&missing).await
            {
                tracing::debug!(%err, "servers of this datacenter did not join the WAN pool, will retry");
            }
            // Either may bring news; a server that is not there yet brings none.
            let _ = rt.timeout(FLOOD_INTERVAL, events.next()).await;
            rt.sleep(FLOOD_DELAY).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use quorate_types::Uuid;

    fn member(number: u8, datacenter: &str, tags: &[(&str, &str)]) -> Member {
        let tags = tags.iter().copied().chain([("dc", datacenter)]);
        Member {
            id: NodeId(Uuid::from_bytes([number; 16])),
            name: format!("n{number}"),
            address: format!("10.0.0.{number}:8301").parse().expect("an address"),
            tags: tags.map(|(key, value)| (key.to_owned(), value.to_owned())).collect(),
            status: MemberStatus::Alive,
        }
    }

    #[test]
    fn live_servers_with_a_wan_port_that_the_wan_lacks_are_brought_along() {
        let server = [("role", "consul"), (PORT_TAG, "8302")];
        let mut failed = member(4, "dc1", &server);
        failed.status = MemberStatus::Failed;
        let lan = [
            member(1, "dc1", &server),
            member(2, "dc1", &server),
            member(3, "dc1", &[("role", "node"), (PORT_TAG, "8302")]),
            failed,
            member(5, "dc1", &[("role", "consul")]),
            member(6, "dc1", &[("role", "consul"), (PORT_TAG, "65536")]),
        ];
        assert_eq!(
            missing(&lan, &[member(1, "dc1", &server)]),
            ["10.0.0.2:8302".parse().expect("an address")]
        );
    }

    #[test]
    fn every_configured_number_of_a_pool_takes_effect() {
        let gossip = crate::config::Gossip {
            gossip_nodes: 5,
            gossip_interval: Duration::from_millis(1),
            probe_interval: Duration::from_millis(2),
            probe_timeout: Duration::from_millis(3),
            retransmit_mult: 6,
            suspicion_mult: 7,
            reconnect_timeout: Duration::from_secs(9 * 3600),
            allowed_cidrs: vec!["10.0.0.0/8".parse().expect("a block")],
        };
        let expected = Timing {
            gossip_node_count: 5,
            gossip_interval: Duration::from_millis(1),
            probe_interval: Duration::from_millis(2),
            probe_timeout: Duration::from_millis(3),
            retransmit_mult: 6,
            suspicion_mult: 7,
            reconnect_timeout: Duration::from_secs(9 * 3600),
            allowed_cidrs: gossip.allowed_cidrs.clone(),
            coordinates: true,
            ..Timing::wan()
        };
        assert_eq!(tuned(Timing::wan(), &gossip, true), expected);
    }

    #[test]
    fn datacenters_are_those_of_live_servers_and_always_our_own() {
        let mut gone = member(3, "dc3", &[]);
        gone.status = MemberStatus::Left;
        let members = [
            member(1, "dc9", &[]),
            member(2, "dc2", &[]),
            gone,
            member(4, "dc2", &[]),
        ];
        assert_eq!(datacenters(&members, "dc7"), ["dc7", "dc2", "dc9"]);
        assert_eq!(datacenters(&[], "dc1"), ["dc1"]);
    }
}
