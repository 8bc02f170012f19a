//! Coordinates on their way from each agent into the replicated state.
//!
//! Every agent tells a server where it is, so seldom that a large pool makes no load; a server gathers what it is told and
//! writes it in batches. Bounds: at most `BATCH_COUNT_MAX` batches of `BATCH_LEN_MAX` wait, beyond which coordinates are
//! dropped, as Consul does: they are told again.
//! Not here: how a coordinate is found (`swim`), what is kept of it (`store`).

use crate::local::draw;
use crate::router::{Router, locked};
use quorate_gossip::Gossip;
use quorate_replica::RaftRt;
use quorate_store::Command;
use quorate_types::NodeCoordinate;
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

#[cfg(test)]
mod tests {
    use super::*;

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
