//! Servers that join, leave, and hand over leadership.
//!
//! A server joins as a learner and votes once it has the log: until then it would only weaken the quorum. A change that
//! would leave no live quorum is refused. One change at a time; the consensus library takes each through a joint
//! configuration.

use crate::replica::{Replica, by};
use crate::types::{self, RaftRt, Types};
use openraft::async_runtime::WatchReceiver as _;
use openraft::errors::{ChangeMembershipError, ClientWriteError, ForwardReason, RaftError};
use openraft::{ChangeMembers, Instant as _, ServerState};

use quorate_types::{Instant, NodeId};
use quorate_wire::log::Server;
use quorate_wire::raft::{Control, ControlReply};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use thiserror::Error;

/// A fresh leader refuses changes for a moment, and so does one that has another change under way.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(10);
const CHANGE_RETRY_DELAY: Duration = Duration::from_millis(50);
/// A joining server has the log within this, or is asked again later.
const CATCH_UP_TIMEOUT: Duration = Duration::from_secs(60);
/// Entries a server may be behind when it becomes a voter: a moment's worth.
const CATCH_UP_LAG_MAX: u64 = 64;

#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum MembershipError {
    #[error("not the leader")]
    NotLeader { leader: Option<NodeId> },
    #[error("the address of server {0} is not known")]
    NoAddress(NodeId),
    /// It is of another cluster, or could not be asked.
    #[error("server {node} does not join: {reason}")]
    Refused { node: NodeId, reason: String },
    #[error("server {0} has not caught up yet")]
    NotCaughtUp(NodeId),
    #[error("without server {node} only {live_count} of {voter_count} voters would be alive, which is no quorum")]
    QuorumLost {
        node: NodeId,
        live_count: usize,
        voter_count: usize,
    },
    #[error("there is nobody to hand leadership to")]
    NoSuccessor,
    #[error("another change is under way")]
    Busy,
    #[error("{0}")]
    Failed(String),
}

impl<R: RaftRt> Replica<R> {
    /// Adds a server to the cluster: as a learner, and as a voter once it has caught up. On the leader. May be called again
    /// until it succeeds; a server that is a voter already is left alone. One that lost its disk is removed first.
    pub async fn add_server(&self, node: NodeId) -> Result<(), MembershipError> {
        self.require_leadership()?;
        let inner = &self.inner;
        if node == inner.node_id {
            return Ok(());
        }
        let address = inner.book.address(node).ok_or(MembershipError::NoAddress(node))?;
        let cluster_id = self
            .cluster_id()
            .ok_or_else(|| MembershipError::Failed("this server has no cluster".to_owned()))?;
        let refused = |reason: String| MembershipError::Refused { node, reason };
        let server = match self.control(node, address, &Control::Adopt { cluster_id }).await {
            Ok(ControlReply::Adopted { name, disk_id }) => Server { name, disk_id },
            Ok(ControlReply::Member { cluster_id }) => return Err(refused(format!("it is of cluster {cluster_id}"))),
            Ok(reply) => return Err(refused(format!("{reply:?}"))),
            Err(err) => return Err(refused(err.to_string())),
        };
        let (mut known, mut is_voter) = self.member(node);
        if known.as_ref().is_some_and(|known| known.disk_id != server.disk_id) {
            // Its votes and its log are gone: it must not stand for what the old disk promised.
            tracing::info!(%node, "server lost its disk: removing it before it is added again");
            self.remove_server(node).await?;
            (known, is_voter) = (None, false);
        }
        if is_voter {
            return Ok(());
        }
        if known.is_none() {
            tracing::info!(%node, name = %server.name, "adding a server");
            let learner = ChangeMembers::AddNodes(BTreeMap::from([(node, server)]));
            self.change(learner).await?;
        }
        self.caught_up(node).await?;
        tracing::info!(%node, "server has caught up and becomes a voter");
        self.change(ChangeMembers::AddVoterIds(BTreeSet::from([node]))).await
    }

    /// Removes a server from the cluster. On the leader. Refused when no live quorum would be left.
    pub async fn remove_server(&self, node: NodeId) -> Result<(), MembershipError> {
        self.require_leadership()?;
        match self.member(node) {
            (None, _) => return Ok(()),
            (Some(_), false) => return self.change(ChangeMembers::RemoveNodes(BTreeSet::from([node]))).await,
            (Some(_), true) => {}
        }
        let rest: Vec<NodeId> = self
            .status()
            .voters
            .into_iter()
            .filter(|voter| *voter != node)
            .collect();
        let quorum = rest.len() / 2 + 1;
        let live_count = self.answering(&rest, quorum).await;
        if live_count < quorum {
            return Err(MembershipError::QuorumLost {
                node,
                live_count,
                voter_count: rest.len(),
            });
        }
        tracing::info!(%node, "removing a server");
        self.change(ChangeMembers::RemoveVoters(BTreeSet::from([node]))).await
    }

    /// Hands leadership to `to`, or to the voter that is furthest. Returns once this server follows.
    pub async fn transfer_leadership(&self, to: Option<NodeId>) -> Result<(), MembershipError> {
        self.require_leadership()?;
        let inner = &self.inner;
        let status = self.status();
        let successor = match to {
            Some(to) if status.voters.contains(&to) && to != inner.node_id => to,
            Some(_) => return Err(MembershipError::NoSuccessor),
            None => {
                let metrics = inner.raft.metrics();
                let metrics = metrics.borrow_watched();
                let reached = |node: &NodeId| {
                    let log_ids = metrics.replication.as_ref()?;
                    log_ids.get(node)?.as_ref().map(types::position)
                };
                status
                    .voters
                    .iter()
                    .filter(|voter| **voter != inner.node_id && self.live(&[**voter]) == 1)
                    .max_by_key(|voter| reached(voter))
                    .copied()
                    .ok_or(MembershipError::NoSuccessor)?
            }
        };
        let failed = |err: openraft::errors::Fatal<Types<R>>| MembershipError::Failed(err.to_string());
        let hand_over = self.hand_over();
        inner.raft.trigger().transfer_leader(successor).await.map_err(failed)?;
        let deadline = inner.rt.now() + inner.timing.lease() * 3;
        let mut metrics = inner.raft.server_metrics();
        let follows = async {
            loop {
                {
                    let now = metrics.borrow_and_update();
                    if now.state != ServerState::Leader
                        && now.current_leader.is_some_and(|leader| leader != inner.node_id)
                    {
                        return;
                    }
                }
                if metrics.changed().await.is_err() {
                    return;
                }
            }
        };
        let followed = by(&inner.rt, deadline, follows).await;
        drop(hand_over);
        followed.ok_or_else(|| MembershipError::Failed(format!("server {successor} did not take over in time")))
    }

    fn require_leadership(&self) -> Result<(), MembershipError> {
        let status = self.status();
        if status.is_leader {
            Ok(())
        } else {
            Err(MembershipError::NotLeader { leader: status.leader })
        }
    }

    /// What the membership has of a server, and whether it votes.
    fn member(&self, node: NodeId) -> (Option<Server>, bool) {
        let metrics = self.inner.raft.server_metrics();
        let metrics = metrics.borrow_watched();
        let membership = &metrics.membership_config;
        let is_voter = membership.voter_ids().any(|voter| voter == node);
        (membership.get_node(&node).cloned(), is_voter)
    }

    /// How many of these answer from now on; does not wait for more than `enough`.
    async fn answering(&self, voters: &[NodeId], enough: usize) -> usize {
        let inner = &self.inner;
        let asked_at = <R::AsyncRuntime as openraft::AsyncRuntime>::Instant::now();
        let mut metrics = inner.raft.data_metrics();
        let mut count = 0;
        let wait = async {
            loop {
                {
                    let now = metrics.borrow_and_update();
                    let acked_at = |voter: &NodeId| now.heartbeat.as_ref()?.get(voter).copied().flatten();
                    let answers = |voter: &&NodeId| {
                        **voter == inner.node_id || acked_at(voter).is_some_and(|acked| acked.into_inner() >= asked_at)
                    };
                    count = voters.iter().filter(answers).count();
                }
                if count >= enough || metrics.changed().await.is_err() {
                    return;
                }
            }
        };
        // Many heartbeats pass in two leases.
        by(&inner.rt, inner.rt.now() + inner.timing.lease() * 2, wait).await;
        count
    }

    /// How many of these answered lately.
    fn live(&self, voters: &[NodeId]) -> usize {
        let metrics = self.inner.raft.metrics();
        let metrics = metrics.borrow_watched();
        let patience = self.inner.timing.lease() * 2;
        voters
            .iter()
            .filter(|voter| {
                **voter == self.inner.node_id
                    || metrics
                        .heartbeat
                        .as_ref()
                        .and_then(|acks| acks.get(*voter).copied().flatten())
                        .is_some_and(|acked| acked.into_inner().elapsed() < patience)
            })
            .count()
    }

    async fn caught_up(&self, node: NodeId) -> Result<(), MembershipError> {
        let inner = &self.inner;
        let mut metrics = inner.raft.data_metrics();
        let wait = async {
            loop {
                {
                    let now = metrics.borrow_and_update();
                    let last = now.last_log.as_ref().map_or(0, |last| last.index);
                    let Some(replication) = &now.replication else {
                        return Err(MembershipError::NotLeader { leader: None });
                    };
                    let reached = replication.get(&node).and_then(|reached| reached.as_ref());
                    if reached.is_some_and(|reached| reached.index + CATCH_UP_LAG_MAX >= last) {
                        return Ok(());
                    }
                }
                if metrics.changed().await.is_err() {
                    return Err(MembershipError::Failed("stopped".to_owned()));
                }
            }
        };
        by(&inner.rt, inner.rt.now() + CATCH_UP_TIMEOUT, wait)
            .await
            .unwrap_or(Err(MembershipError::NotCaughtUp(node)))
    }

    async fn change(&self, change: ChangeMembers<NodeId, Server>) -> Result<(), MembershipError> {
        let inner = &self.inner;
        let deadline: Instant = inner.rt.now() + CHANGE_TIMEOUT;
        loop {
            let attempt = inner.raft.change_membership(change.clone(), false);
            let Some(result) = by(&inner.rt, deadline, attempt).await else {
                return Err(MembershipError::Busy);
            };
            match result {
                Ok(_) => return Ok(()),
                Err(RaftError::APIError(ClientWriteError::ForwardToLeader(forward))) => {
                    if forward.reason == ForwardReason::NotLeader {
                        return Err(MembershipError::NotLeader {
                            leader: forward.leader_id,
                        });
                    }
                }
                Err(RaftError::APIError(ClientWriteError::ChangeMembershipError(
                    ChangeMembershipError::InProgress(_) | ChangeMembershipError::UncommittedLeaderLog(_),
                ))) => {}
                Err(err) => return Err(MembershipError::Failed(err.to_string())),
            }
            if inner.rt.now() + CHANGE_RETRY_DELAY >= deadline {
                return Err(MembershipError::Busy);
            }
            inner.rt.sleep(CHANGE_RETRY_DELAY).await;
        }
    }
}
