//! Forming a cluster, once.
//!
//! The proposer is the lowest id of the lowest n in sight. It pledges itself, then asks the others in id order for a durable
//! pledge to exactly this set; with all of them it writes the configuration. Who finds a server pledged to another proposer
//! asks that one to yield, which only a higher id does. The caller calls again, as its view of the pool changes, until the
//! cluster is there.
//!
//! Not here: the rules of pledging (`identity`).

use crate::identity::IdentityError;
use crate::replica::Replica;
use crate::transport::client::{CallFailure, Target};
use crate::types::RaftRt;
use openraft::errors::{InitializeError, RaftError};

use quorate_types::NodeId;
use quorate_wire::codec::Malformed;
use quorate_wire::frame::{ConnectionKind, What};
use quorate_wire::log::Server;
use quorate_wire::raft::{Control, ControlReply, Pledge};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;
use thiserror::Error;

/// A server answers, and has synced its pledge, within this.
const CONTROL_TIMEOUT: Duration = Duration::from_secs(5);

/// What came of an attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Bootstrapped {
    /// This server wrote the configuration.
    Done,
    /// This server has a cluster already.
    Already,
    /// Not now; the text says what is missing.
    NotYet(String),
}

#[derive(Debug, Error)]
pub enum BootstrapError {
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error("write the first configuration: {0}")]
    Consensus(String),
}

#[derive(Debug, Error)]
pub(crate) enum ControlError {
    #[error(transparent)]
    Call(#[from] CallFailure),
    #[error("the answer makes no sense")]
    Malformed(#[from] Malformed),
}

impl<R: RaftRt> Replica<R> {
    /// Makes this server a cluster of its own, if it has none.
    pub async fn bootstrap_single(&self) -> Result<Bootstrapped, BootstrapError> {
        self.bootstrap_expect(Vec::new(), 1).await
    }

    /// Forms a cluster with the lowest `expect` of `candidates` and this server, when it falls to this server.
    pub async fn bootstrap_expect(
        &self,
        candidates: Vec<(NodeId, SocketAddr)>,
        expect: usize,
    ) -> Result<Bootstrapped, BootstrapError> {
        let inner = &self.inner;
        let me = inner.node_id;
        if self.is_initialized() {
            return Ok(Bootstrapped::Already);
        }
        if inner.keeper.get().cluster_id.is_some() {
            return Ok(Bootstrapped::NotYet("waiting to be added to a cluster".to_owned()));
        }
        let in_sight: BTreeMap<NodeId, SocketAddr> = candidates.into_iter().filter(|(node, _)| *node != me).collect();
        for (node, address) in &in_sight {
            self.set_address(*node, *address);
        }
        let mut lowest: BTreeSet<NodeId> = in_sight.keys().copied().chain([me]).collect();
        if lowest.len() < expect.max(1) {
            return Ok(Bootstrapped::NotYet(format!(
                "{} of {expect} servers are in sight",
                lowest.len()
            )));
        }
        while lowest.len() > expect.max(1) {
            lowest.pop_last();
        }
        let Some(pledge) = self.own_pledge(lowest).await? else {
            return Ok(Bootstrapped::NotYet("another server proposes".to_owned()));
        };
        let members = match self.collect(&pledge, &in_sight).await {
            Ok(members) => members,
            Err(why) => return Ok(Bootstrapped::NotYet(why)),
        };

        // Nobody can make this server yield from here on until the configuration is in the log.
        let _change = inner.keeper.changes.lock().await;
        if inner.keeper.get().pledge.as_ref() != Some(&pledge) {
            return Ok(Bootstrapped::NotYet("another server proposes by now".to_owned()));
        }
        tracing::info!(cluster = %pledge.cluster_id, servers = ?pledge.servers, "bootstrapping the cluster");
        match inner.raft.initialize(members).await {
            Ok(()) => Ok(Bootstrapped::Done),
            Err(RaftError::APIError(InitializeError::NotAllowed(_))) => Ok(Bootstrapped::Already),
            Err(err) => Err(BootstrapError::Consensus(err.to_string())),
        }
    }

    /// This server's pledge to itself for this set; `None` when it does not fall to this server.
    async fn own_pledge(&self, servers: BTreeSet<NodeId>) -> Result<Option<Pledge>, IdentityError> {
        let inner = &self.inner;
        let me = inner.node_id;
        let _change = inner.keeper.changes.lock().await;
        let mut identity = inner.keeper.get();
        let (cluster_id, round) = match &identity.pledge {
            Some(pledge) if pledge.proposer != me => return Ok(None),
            _ if !servers.contains(&me) => return Ok(None),
            Some(pledge) if pledge.servers == servers => return Ok(Some(pledge.clone())),
            Some(pledge) => (pledge.cluster_id, pledge.round + 1),
            None if servers.first() == Some(&me) => (inner.rt.uuid(), 1),
            None => return Ok(None),
        };
        let pledge = Pledge {
            proposer: me,
            cluster_id,
            round,
            servers,
        };
        identity.pledge = Some(pledge.clone());
        inner.keeper.save(identity).await?;
        Ok(Some(pledge))
    }

    /// Asks everyone of the set, in id order. An error says who did not pledge.
    async fn collect(
        &self,
        pledge: &Pledge,
        in_sight: &BTreeMap<NodeId, SocketAddr>,
    ) -> Result<BTreeMap<NodeId, Server>, String> {
        let inner = &self.inner;
        let mut yielded = BTreeSet::new();
        let own = Server {
            name: inner.node_name.clone(),
            disk_id: inner.keeper.get().disk_id,
        };
        let mut members = BTreeMap::from([(inner.node_id, own)]);
        for node in pledge.servers.iter().copied().filter(|node| *node != inner.node_id) {
            loop {
                match self.ask(node, pledge, &yielded, in_sight).await? {
                    ControlReply::Pledged { name, disk_id } => {
                        members.insert(node, Server { name, disk_id });
                        break;
                    }
                    ControlReply::PledgedTo { proposer }
                        if proposer > inner.node_id && !yielded.contains(&proposer) =>
                    {
                        match self.ask(proposer, pledge, &yielded, in_sight).await? {
                            ControlReply::Pledged { .. } => yielded.insert(proposer),
                            reply => return Err(format!("server {proposer} does not yield: {reply:?}")),
                        };
                    }
                    reply => return Err(format!("server {node} does not pledge: {reply:?}")),
                }
            }
        }
        Ok(members)
    }

    async fn ask(
        &self,
        node: NodeId,
        pledge: &Pledge,
        yielded: &BTreeSet<NodeId>,
        in_sight: &BTreeMap<NodeId, SocketAddr>,
    ) -> Result<ControlReply, String> {
        let address = in_sight
            .get(&node)
            .ok_or_else(|| format!("server {node} is not in sight"))?;
        let request = Control::Pledge {
            pledge: pledge.clone(),
            yielded: yielded.clone(),
        };
        self.control(node, *address, &request)
            .await
            .map_err(|err| format!("server {node}: {err}"))
    }

    pub(crate) async fn control(
        &self,
        node: NodeId,
        address: SocketAddr,
        request: &Control,
    ) -> Result<ControlReply, ControlError> {
        let inner = &self.inner;
        let target = Target {
            address,
            kind: ConnectionKind::Request,
            node: Some(node),
        };
        let deadline = inner.rt.now() + CONTROL_TIMEOUT;
        let reply = inner
            .pool
            .call(target, What::Control, request.encode(), deadline)
            .await?;
        Ok(ControlReply::decode(&reply)?)
    }
}
