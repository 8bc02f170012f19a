//! What a server does for the cluster: learn the others' addresses, found the cluster, and, as leader, keep the catalog
//! and the Raft configuration in line with the pool, and time sessions.
//!
//! In: members of the pool, leadership. Out: commands and changes of the Raft configuration. Promises: only the leader
//! writes; a fresh leader reconciles everything, then each member that changes, and everything again every minute.
//! Not here: the rules (`anti-entropy::reconcile`), votes and pledges (`replica`), how long a session lasts (`sessions`).

use crate::local::command_of;
use crate::router::{Router, is_alive_server};
use crate::sessions::SessionTimers;
use quorate_anti_entropy::{Catalog, Change, reconcile};
use quorate_gossip::{Gossip, MemberEvent, MemberEvents};
use quorate_replica::{Bootstrapped, RaftRt, Replica};
use quorate_store::{Answer, Command, Consistency, Outcome, Query};
use quorate_types::{Instant, LogIndex, Member, MemberStatus, ModifyIndex, NodeId};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// Between two reconciliations of everything (semantics.md 4.2).
const RECONCILE_INTERVAL: Duration = Duration::from_secs(60);
/// Between two tries at what others must agree to: a pledge, a change of the configuration.
const RETRY_DELAY: Duration = Duration::from_secs(1);
/// Deletions of keys are remembered this long, so that who lists a prefix notices them (semantics.md 1).
const TOMBSTONE_TTL: Duration = Duration::from_secs(15 * 60);
/// How exact that is.
const TOMBSTONE_GRANULARITY: Duration = Duration::from_secs(30);
/// Between two looks at whether this server leads by now.
const LEADER_LOOK_INTERVAL: Duration = Duration::from_millis(100);
const BATCH_COUNT_MAX: usize = 64;
/// A node of the catalog that the pool does not know counts as failed after this long. A member that lives is heard of
/// within a push/pull interval (30 s) of the leader's start, and mostly at once: agents keep whom they knew.
const MISSING_GRACE: Duration = Duration::from_secs(30);
/// Between two looks while nodes are missing.
const MISSING_INTERVAL: Duration = Duration::from_secs(5);

/// What a server knows of itself.
#[derive(Clone)]
pub struct ServerDuties<R: RaftRt> {
    pub rt: R,
    pub replica: Replica<R>,
    pub gossip: Gossip<R>,
    pub datacenter: Arc<str>,
    pub node_id: NodeId,
    pub bootstrap: bool,
    /// 0: this server founds no cluster.
    pub bootstrap_expect: u32,
    /// A node that stays missing is forgotten after this long, like a failed member.
    pub reconnect_timeout: Duration,
    pub sessions: SessionTimers,
}

impl<R: RaftRt> ServerDuties<R> {
    /// Keeps the addresses of the other servers, and founds the cluster when enough of them are in sight.
    pub async fn track_servers(self) {
        let mut events = self.gossip.subscribe();
        loop {
            for member in self
                .gossip
                .members()
                .iter()
                .filter(|member| member.is_server() && self.is_local(member))
            {
                if let Some(address) = member.rpc_address()
                    && member.id != self.node_id
                {
                    self.replica.set_address(member.id, address);
                }
            }
            let founded = self.replica.is_initialized() || self.bootstrap_expect == 0 && !self.bootstrap;
            if founded {
                events.next().await;
                continue;
            }
            self.try_bootstrap().await;
            let _ = self.rt.timeout(RETRY_DELAY, events.next()).await;
        }
    }

    fn is_local(&self, member: &Member) -> bool {
        member.tags.get("dc").is_some_and(|dc| **dc == *self.datacenter)
    }

    async fn try_bootstrap(&self) {
        if self.bootstrap {
            if let Err(err) = self.replica.bootstrap_single().await {
                tracing::error!(%err, "the cluster of one could not be founded");
            }
            return;
        }
        let mut candidates: Vec<(NodeId, SocketAddr)> = Vec::new();
        for member in self
            .gossip
            .members()
            .iter()
            .filter(|member| is_alive_server(member, &self.datacenter))
        {
            let expect = member.tags.get("expect").and_then(|expect| expect.parse::<u32>().ok());
            match (expect, member.rpc_address()) {
                (Some(expect), Some(address)) if expect == self.bootstrap_expect => {
                    candidates.push((member.id, address))
                }
                _ if member.tags.contains_key("bootstrap") => {
                    tracing::debug!(member = %member.name, "a server bootstraps by itself: waiting to be added by it");
                    return;
                }
                _ => {
                    tracing::error!(
                        member = %member.name, ?expect, ours = self.bootstrap_expect,
                        "a server has another bootstrap_expect: no cluster is founded until they agree"
                    );
                    return;
                }
            }
        }
        if candidates.len() < self.bootstrap_expect as usize {
            return;
        }
        match self
            .replica
            .bootstrap_expect(candidates, self.bootstrap_expect as usize)
            .await
        {
            Ok(Bootstrapped::Done) => tracing::info!("the cluster is founded"),
            Ok(outcome) => tracing::debug!(?outcome, "the cluster is not founded yet"),
            Err(err) => tracing::warn!(%err, "founding the cluster failed, trying again"),
        }
    }

    /// Writes the hash of this server's state to the log now and then, for all to compare: leader or not.
    pub async fn tell_state_hashes(self, router: Router<R>) {
        let mut seen = LogIndex(0);
        loop {
            let hash = self.replica.next_state_hash(seen).await;
            seen = hash.at;
            if let Err(err) = router.write(Command::StateHash(hash)).await {
                // One less to compare with: the next comes soon enough.
                tracing::debug!(%err, at = seen.0, "tell the others this state's hash");
            }
        }
    }

    /// Leads while this server is the leader, for as long as it runs.
    pub async fn lead(self) {
        let mut events = self.gossip.subscribe();
        loop {
            let seen = self.replica.leadership_version();
            if !self.replica.status().is_leader {
                // A fresh leader is called one only once a quorum has answered it, and that is no move that anybody is told
                // of: so it is looked at again.
                let moved = self.replica.leadership_changed(seen);
                let _ = self.rt.timeout(LEADER_LOOK_INTERVAL, moved).await;
                continue;
            }
            if self.replica.read_barrier(Consistency::Consistent).await.is_err() {
                // Deposed already, or not confirmed yet: a change of leadership or a moment later tells.
                let _ = self
                    .rt
                    .timeout(Duration::from_millis(20), self.replica.leadership_changed(seen))
                    .await;
                continue;
            }
            tracing::info!("this server is the leader");
            let servers = self
                .rt
                .spawn("agent.servers", self.clone().keep_configuration())
                .abort_on_drop();
            let timing = self.sessions.clone().keep(self.rt.clone(), self.replica.clone());
            let sessions = self.rt.spawn("agent.sessions", timing).abort_on_drop();
            self.lead_one_term(seen, &mut events).await;
            drop((servers, sessions));
            tracing::info!("this server is no longer the leader");
        }
    }

    async fn lead_one_term(&self, seen: u64, events: &mut MemberEvents) {
        let mut tombstones = Tombstones::default();
        let mut missing_since: BTreeMap<NodeId, Instant> = BTreeMap::new();
        let mut reconcile_at = self.rt.now();
        loop {
            let now = self.rt.now();
            if now >= reconcile_at {
                let written = self.reconcile_all(&mut missing_since).await;
                reconcile_at = now
                    + match (written, missing_since.is_empty()) {
                        (false, _) => RETRY_DELAY,
                        (true, false) => MISSING_INTERVAL,
                        (true, true) => RECONCILE_INTERVAL,
                    };
            }
            let index = self.replica.snapshot().last_index();
            if let Some(up_to) = tombstones.due(self.rt.now().as_millis(), index) {
                let _ = self.replica.write(&Command::CollectTombstones { up_to }).await;
            }
            if self.replica.leadership_version() != seen {
                return;
            }
            let pause = reconcile_at.duration_since(self.rt.now()).min(TOMBSTONE_GRANULARITY);
            let pause = pause.max(Duration::from_millis(1));
            let news = async {
                let event = std::pin::pin!(events.next());
                let lost = std::pin::pin!(self.replica.leadership_changed(seen));
                match futures::future::select(event, lost).await {
                    futures::future::Either::Left((event, _)) => Some(event),
                    futures::future::Either::Right(_) => None,
                }
            };
            match self.rt.timeout(pause, news).await {
                Err(_) => {}
                Ok(None) => return,
                Ok(Some(MemberEvent::Resync)) => reconcile_at = self.rt.now(),
                Ok(Some(MemberEvent::Reaped(member))) => {
                    let gone = Member {
                        status: MemberStatus::Left,
                        ..member
                    };
                    if !self.reconcile(&[gone]).await {
                        reconcile_at = self.rt.now() + RETRY_DELAY;
                    }
                }
                Ok(Some(
                    MemberEvent::Joined(member)
                    | MemberEvent::Updated(member)
                    | MemberEvent::Failed(member)
                    | MemberEvent::Left(member),
                )) => {
                    if !self.reconcile(&[member]).await {
                        reconcile_at = self.rt.now() + RETRY_DELAY;
                    }
                }
            }
        }
    }

    async fn reconcile_all(&self, missing_since: &mut BTreeMap<NodeId, Instant>) -> bool {
        let members = self.gossip.members();
        let written = self.reconcile(&members).await;
        let names: BTreeSet<String> = members.iter().map(|member| member.name.to_lowercase()).collect();
        let snapshot = self.replica.snapshot();
        let now = self.rt.now();
        let mut still_missing = BTreeMap::new();
        let mut changes = Vec::new();
        if let Answer::Nodes(nodes) = snapshot.evaluate(&Query::Nodes { node_meta: Vec::new() }).answer {
            for node in nodes.iter().filter(|node| !names.contains(&node.name.to_lowercase())) {
                let query = Query::Node {
                    node: node.name.clone(),
                };
                let Answer::Node(Some(view)) = snapshot.evaluate(&query).answer else {
                    continue;
                };
                let catalog = Catalog {
                    node: &view.node,
                    services: &view.services,
                    checks: &view.checks,
                };
                if !reconcile::is_missing(catalog, self.node_id) {
                    continue;
                }
                let since = *missing_since.get(&node.id).unwrap_or(&now);
                match now - since {
                    missing if missing >= self.reconnect_timeout => changes.push(reconcile::reaped(catalog)),
                    missing if missing >= MISSING_GRACE => changes.extend(reconcile::missing(catalog)),
                    _ => {}
                }
                still_missing.insert(node.id, since);
            }
        }
        *missing_since = still_missing;
        self.write(&changes).await && written
    }

    /// Brings the catalog in line with these members; whether all was written.
    async fn reconcile(&self, members: &[Member]) -> bool {
        let snapshot = self.replica.snapshot();
        let mut changes = Vec::new();
        for member in members.iter().filter(|member| self.is_local(member)) {
            let query = Query::Node {
                node: member.name.clone(),
            };
            let Answer::Node(view) = snapshot.evaluate(&query).answer else {
                unreachable!("a question for a node is answered with a node");
            };
            // A UUID that begins like a member's name would find another node.
            let view = view.filter(|view| view.node.name.eq_ignore_ascii_case(&member.name));
            let catalog = view.as_ref().map(|view| Catalog {
                node: &view.node,
                services: &view.services,
                checks: &view.checks,
            });
            changes.extend(reconcile::member(member, &self.datacenter, self.node_id, catalog));
        }
        self.write(&changes).await
    }

    async fn write(&self, changes: &[Change]) -> bool {
        for batch in changes.chunks(BATCH_COUNT_MAX) {
            let commands: Vec<Command> = batch.iter().map(command_of).collect();
            match self.replica.write(&Command::Batch(commands)).await {
                Ok((_, Outcome::Batch(outcomes))) => {
                    for (outcome, change) in outcomes.iter().zip(batch) {
                        if let Outcome::Refused(err) = outcome {
                            tracing::warn!(%err, ?change, "the catalog refused a member's change");
                        }
                    }
                }
                Ok(_) => {}
                Err(err) => {
                    tracing::warn!(%err, "members were not reconciled, trying again");
                    return false;
                }
            }
        }
        true
    }

    /// Adds alive servers to the Raft configuration and removes those that left, one at a time.
    async fn keep_configuration(self) {
        let mut events = self.gossip.subscribe();
        // Servers the pool let go, until they are out of the configuration.
        let mut gone: BTreeSet<NodeId> = BTreeSet::new();
        let mut missing_since: BTreeMap<NodeId, Instant> = BTreeMap::new();
        loop {
            let members = self.gossip.members();
            for member in members
                .iter()
                .filter(|member| member.is_server() && self.is_local(member))
            {
                match member.status {
                    MemberStatus::Left => drop(gone.insert(member.id)),
                    MemberStatus::Alive => drop(gone.remove(&member.id)),
                    MemberStatus::Leaving | MemberStatus::Failed => {}
                }
            }
            let status = self.replica.status();
            let known: BTreeSet<NodeId> = status.voters.iter().chain(&status.learners).copied().collect();
            // One that no member has the id of was reaped before this server led, or is not heard of yet.
            let now = self.rt.now();
            missing_since = known
                .iter()
                .filter(|id| members.iter().all(|member| member.id != **id))
                .map(|id| (*id, *missing_since.get(id).unwrap_or(&now)))
                .collect();
            let overdue = missing_since
                .iter()
                .filter(|(_, since)| now - **since >= self.reconnect_timeout);
            gone.extend(overdue.map(|(id, _)| *id));
            gone.retain(|id| known.contains(id) && *id != self.node_id);
            let done = self.change_configuration(&members, &status.voters, &gone).await;
            let pause = if done { RECONCILE_INTERVAL } else { RETRY_DELAY };
            if let Ok(MemberEvent::Reaped(member)) = self.rt.timeout(pause, events.next()).await
                && member.is_server()
                && self.is_local(&member)
            {
                gone.insert(member.id);
            }
        }
    }

    /// Adds alive servers and removes those that are gone; whether all of it was done.
    async fn change_configuration(&self, members: &[Member], voters: &[NodeId], gone: &BTreeSet<NodeId>) -> bool {
        let mut done = true;
        let is_new = |member: &&Member| {
            member.status == MemberStatus::Alive
                && member.is_server()
                && self.is_local(member)
                && !voters.contains(&member.id)
        };
        for member in members.iter().filter(is_new) {
            let Some(address) = member.rpc_address() else { continue };
            self.replica.set_address(member.id, address);
            tracing::info!(server = %member.name, id = %member.id, "adding a server");
            if let Err(err) = self.replica.add_server(member.id).await {
                tracing::warn!(server = %member.name, %err, "a server was not added, trying again");
                done = false;
            }
        }
        for id in gone {
            tracing::info!(%id, "removing a server that left or was forgotten");
            if let Err(err) = self.replica.remove_server(*id).await {
                tracing::warn!(%id, %err, "a server was not removed, trying again");
                done = false;
            }
        }
        done
    }
}

/// When which deletions may be forgotten: marks of the index in the past, one each granule.
#[derive(Debug, Default)]
struct Tombstones {
    /// Time in milliseconds -> index then. Bounded: one entry a granule, for the time to live.
    marks: BTreeMap<u64, ModifyIndex>,
    collected: ModifyIndex,
}

impl Tombstones {
    fn due(&mut self, now_ms: u64, index: ModifyIndex) -> Option<ModifyIndex> {
        let granule = TOMBSTONE_GRANULARITY.as_millis() as u64;
        if self.marks.last_key_value().is_none_or(|(at, _)| now_ms >= at + granule) {
            self.marks.insert(now_ms, index);
        }
        let expired_until = now_ms.checked_sub(TOMBSTONE_TTL.as_millis() as u64)?;
        let (&at, &up_to) = self.marks.range(..=expired_until).next_back()?;
        self.marks.retain(|mark, _| *mark > at);
        (up_to > self.collected).then(|| {
            self.collected = up_to;
            up_to
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deletions_are_forgotten_after_their_time_to_live_and_once() {
        let mut tombstones = Tombstones::default();
        assert_eq!(tombstones.due(0, ModifyIndex(5)), None);
        assert_eq!(tombstones.due(30_000, ModifyIndex(9)), None);
        assert_eq!(tombstones.due(900_000, ModifyIndex(20)), Some(ModifyIndex(5)));
        assert_eq!(tombstones.due(930_000, ModifyIndex(20)), Some(ModifyIndex(9)));
        assert_eq!(tombstones.due(930_001, ModifyIndex(20)), None);
    }
}
