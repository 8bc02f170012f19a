//! Coordinates on their way from each agent into the replicated state.
//!
//! Every agent tells a server where it is, so seldom that a large pool makes no load; a server gathers what it is told and
//! writes it in batches. Bounds: at most `BATCH_COUNT_MAX` batches of `BATCH_LEN_MAX` wait, beyond which coordinates are
//! dropped, as Consul does: they are told again.
//! Datacenters are sorted by the coordinates of their servers in the WAN pool.
//! Not here: how a coordinate is found (`swim`), what is kept of it (`store`).

use crate::local::draw;
use crate::router::{Router, locked};
use crate::wan;
use quorate_gossip::Gossip;
use quorate_http_api::DatacenterCoordinates;
use quorate_replica::RaftRt;
use quorate_rt::Rt;
use quorate_store::Command;
use quorate_types::{Coordinate, Member, MemberStatus, NodeCoordinate, NodeId};
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;

// Consul's `SyncCoordinateIntervalMin`, `SyncCoordinateRateTarget` and `CoordinateUpdate*`.
const TELL_INTERVAL_MIN: Duration = Duration::from_secs(15);
const TELLS_PER_SEC_MAX: u32 = 64;
const WRITE_INTERVAL: Duration = Duration::from_secs(5);
const BATCH_LEN_MAX: usize = 128;
const BATCH_COUNT_MAX: usize = 5;
/// What did not change is told again after this: the node may have been registered anew meanwhile.
const REPEAT_INTERVAL: Duration = Duration::from_secs(600);

/// What a server was told since its last write, the last word of each node.
#[derive(Debug, Default)]
pub(crate) struct Pending(Mutex<BTreeMap<String, NodeCoordinate>>);

impl Pending {
    pub(crate) fn push(&self, coordinate: NodeCoordinate) {
        let mut pending = locked(&self.0);
        if pending.len() < BATCH_LEN_MAX * BATCH_COUNT_MAX || pending.contains_key(&coordinate.node) {
            pending.insert(coordinate.node.clone(), coordinate);
        } else {
            tracing::debug!(node = %coordinate.node, "dropped a coordinate: too many wait");
        }
    }
    /// In batches, each for one command.
    fn take(&self) -> Vec<Vec<NodeCoordinate>> {
        let pending = std::mem::take(&mut *locked(&self.0));
        let mut coordinates = pending.into_values().peekable();
        let mut batches = Vec::new();
        while coordinates.peek().is_some() {
            batches.push(coordinates.by_ref().take(BATCH_LEN_MAX).collect());
        }
        batches
    }
}

/// So that all members together tell at most `TELLS_PER_SEC_MAX` a second.
fn tell_interval(member_count: usize) -> Duration {
    let count = u32::try_from(member_count).unwrap_or(u32::MAX);
    (Duration::from_secs(1) * count / TELLS_PER_SEC_MAX).max(TELL_INTERVAL_MIN)
}

/// Tells a server where this agent is, again and again.
pub(crate) async fn tell<R: RaftRt>(rt: R, gossip: Gossip<R>, router: Router<R>) {
    let mut rng = rt.rng("agent.coordinate");
    let mut told = None;
    loop {
        let interval = tell_interval(gossip.members().len());
        rt.sleep(interval + draw(&mut rng, interval)).await;
        let Some(coordinate) = gossip.coordinate() else { return };
        let now = rt.now();
        if told.is_some_and(|(before, at)| before == coordinate && now - at < REPEAT_INTERVAL) {
            continue;
        }
        let node = gossip.local_member().name;
        match router.update_coordinate(NodeCoordinate { node, coordinate }).await {
            Ok(()) => told = Some((coordinate, now)),
            Err(err) => tracing::debug!(%err, "tell the coordinate"),
        }
    }
}

/// Writes what this server was told, in batches.
pub(crate) async fn write<R: RaftRt>(rt: R, router: Router<R>) {
    loop {
        rt.sleep(WRITE_INTERVAL).await;
        for batch in router.pending_coordinates().take() {
            if let Err(err) = router.write(Command::Coordinates(batch)).await {
                tracing::debug!(%err, "write coordinates");
            }
        }
    }
}

/// Where the servers of each datacenter are: our own first, then by the median round trip to their servers. Those of no
/// known distance come last, by name.
pub(crate) fn by_datacenter<R: Rt>(pool: &Gossip<R>, own: &str) -> Vec<DatacenterCoordinates> {
    let me = pool.local_member().id;
    let place = |id| {
        if id == me {
            pool.coordinate()
        } else {
            pool.coordinate_of(id)
        }
    };
    group(&pool.members(), own, place(me), place)
}

fn group(
    members: &[Member],
    own: &str,
    origin: Option<Coordinate>,
    place: impl Fn(NodeId) -> Option<Coordinate>,
) -> Vec<DatacenterCoordinates> {
    let datacenters = wan::datacenters(members, own).into_iter();
    let mut datacenters: Vec<DatacenterCoordinates> = datacenters
        .map(|datacenter| {
            let is_here = |member: &&Member| {
                let named = member.tags.get("dc");
                member.is_server()
                    && member.status == MemberStatus::Alive
                    && named.is_some_and(|named| *named == datacenter)
            };
            let suffix = format!(".{datacenter}");
            let servers = members.iter().filter(is_here).filter_map(|member| {
                // The WAN pool calls a node `<node>.<datacenter>`.
                let node = member.name.strip_suffix(&suffix).unwrap_or(&member.name);
                Some(NodeCoordinate {
                    node: node.to_owned(),
                    coordinate: place(member.id)?,
                })
            });
            let servers = servers.collect();
            DatacenterCoordinates { datacenter, servers }
        })
        .collect();
    let distance = |datacenter: &DatacenterCoordinates| {
        let Some(origin) = origin else { return f64::INFINITY };
        let servers = datacenter.servers.iter();
        let mut distances: Vec<f64> = servers.map(|server| origin.distance_secs(&server.coordinate)).collect();
        distances.sort_by(f64::total_cmp);
        distances.get(distances.len() / 2).copied().unwrap_or(f64::INFINITY)
    };
    if let Some((_, others)) = datacenters.split_first_mut() {
        others.sort_by(|a, b| distance(a).total_cmp(&distance(b)));
    }
    datacenters
}

#[cfg(test)]
mod tests {
    use super::*;
    use quorate_types::Uuid;

    #[test]
    fn datacenters_come_our_own_first_then_the_nearest_and_the_unknown_last() {
        let server = |number: u8, datacenter: &str| Member {
            id: NodeId(Uuid::from_bytes([number; 16])),
            name: format!("s{number}.{datacenter}"),
            address: format!("10.0.0.{number}:8302").parse().expect("an address"),
            tags: [("role", "consul"), ("dc", datacenter)]
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .into(),
            status: MemberStatus::Alive,
        };
        let members = [
            server(1, "dc5"),
            server(2, "dc1"),
            server(3, "dc2"),
            server(4, "dc3"),
            server(5, "dc3"),
        ];
        let at = |x: f64| {
            let mut coordinate = Coordinate::default();
            coordinate.vector[0] = x;
            Some(coordinate)
        };
        // Nobody pinged dc1 yet.
        let place = |id: NodeId| match id.0.as_bytes()[0] {
            1 => at(0.0),
            3 => at(0.2),
            4 | 5 => at(0.1),
            _ => None,
        };
        let found = group(&members, "dc5", at(0.0), place);
        let names: Vec<&str> = found.iter().map(|datacenter| datacenter.datacenter.as_str()).collect();
        assert_eq!(names, ["dc5", "dc3", "dc2", "dc1"]);
        let nodes: Vec<&str> = found[1].servers.iter().map(|server| server.node.as_str()).collect();
        assert_eq!(nodes, ["s4", "s5"]);
        assert!(found[3].servers.is_empty());
    }

    fn coordinate(node: usize) -> NodeCoordinate {
        NodeCoordinate {
            node: format!("n{node:04}"),
            ..NodeCoordinate::default()
        }
    }

    #[test]
    fn the_last_word_of_each_node_is_written_in_batches_and_a_flood_is_dropped() {
        let pending = Pending::default();
        for node in 0..700 {
            pending.push(coordinate(node));
        }
        let mut last = coordinate(3);
        last.coordinate.error = 0.25;
        pending.push(last.clone());
        let batches = pending.take();
        assert_eq!(batches.iter().map(Vec::len).collect::<Vec<_>>(), [128; 5]);
        assert_eq!(batches[0][3], last);
        assert!(pending.take().is_empty());
    }

    #[test]
    fn a_large_pool_tells_no_more_than_a_server_can_take() {
        assert_eq!(tell_interval(1), Duration::from_secs(15));
        assert_eq!(tell_interval(960), Duration::from_secs(15));
        assert_eq!(tell_interval(6400), Duration::from_secs(100));
    }
}
