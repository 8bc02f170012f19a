//! What this server answers to others on its port.

use crate::RequestHandler;
use crate::identity::Keeper;
use crate::log::Log;
use crate::machine::Machine;
use crate::network::{AddressBook, Candidacy};
use crate::snapshot::{Receiving, Snapshots};
use crate::transport::server::{Peer, Service};
use crate::types::{self, RaftRt, Snapshot, SnapshotMeta, StoredMembership, Types};
use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use openraft::Raft;
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, TransferLeaderError, TransferLeaderRequest, VoteRequest, VoteResponse,
};
use quorate_rt::AnyDisk;
use quorate_types::Instant;
use quorate_types::limits::RPC_FRAME_LEN_BYTES_MAX;
use quorate_wire::codec;
use quorate_wire::frame::{ConnectionKind, Hello, HelloReply, What};
use quorate_wire::log::Vote;
use quorate_wire::raft::{BulkReply, BulkRequest, Control, ControlReply, RaftReply, RaftRequest};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// A snapshot on its way in over one connection.
struct Transfer<R: RaftRt> {
    vote: Vote,
    meta: quorate_wire::raft::SnapshotMeta,
    len_bytes: u64,
    receiving: Receiving<R>,
}

/// Answers raft, bulk, control and request calls.
pub struct Answers<R: RaftRt, H> {
    pub rt: R,
    pub raft: Raft<Types<R>, Machine<R>>,
    pub log: Log<AnyDisk<R::Disk>>,
    pub keeper: Arc<Keeper<R>>,
    pub book: Arc<AddressBook>,
    pub snapshots: Snapshots<R>,
    pub contact: Arc<Contact>,
    pub handler: H,
    /// Until then this server may have promised its vote away before a restart it forgot that in.
    pub votes_from: Instant,
    /// From then on nobody gets an answer.
    pub is_stopping: Arc<AtomicBool>,
    pub transfer_count: AtomicU64,
    pub candidacy: Arc<Candidacy>,
    /// How long standing for a term may take. Then another may.
    pub candidacy_time: Duration,
}

/// When the leader was last heard of.
#[derive(Default)]
pub struct Contact {
    at: Mutex<Option<Instant>>,
}

impl Contact {
    fn note(&self, now: Instant) {
        *self.at.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(now);
    }
    pub fn last(&self) -> Option<Instant> {
        *self.at.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl<R: RaftRt, H: RequestHandler> Service for Answers<R, H> {
    fn greet(&self, kind: ConnectionKind, hello: &Hello) -> HelloReply {
        let identity = self.keeper.get();
        let refused = |reason: String| HelloReply::Refused { reason };
        if let Some(to) = hello.to
            && to != identity.node_id
        {
            return refused(format!("this is node {}, not {to}", identity.node_id));
        }
        if kind != ConnectionKind::Request {
            match (self.keeper.cluster_id(), hello.cluster_id) {
                (Some(ours), Some(theirs)) if ours == theirs => {}
                (Some(ours), Some(theirs)) => {
                    return refused(format!("this server is of cluster {ours}, not {theirs}"));
                }
                (None, _) => return refused("this server is of no cluster".to_owned()),
                (_, None) => return refused("the caller is of no cluster".to_owned()),
            }
            if hello.to_disk.is_some_and(|disk| disk != identity.disk_id) {
                return refused("this server's disk is another one now".to_owned());
            }
            if let Some(disk) = self.book.disk(hello.from)
                && hello.from_disk != Some(disk)
            {
                return refused(format!("server {} has another disk in the membership", hello.from));
            }
        }
        HelloReply::Welcome {
            node: identity.node_id,
            disk: Some(identity.disk_id),
        }
    }

    fn answer(self: Arc<Self>, peer: Arc<Peer>, what: What, body: Bytes) -> BoxFuture<'static, Option<Bytes>> {
        async move {
            if self.is_stopping.load(Ordering::Relaxed) {
                return None;
            }
            // Boxed but for requests, of which many wait: each is as large as the largest arm that is not.
            match (peer.kind, what) {
                (ConnectionKind::Raft, What::Call) => {
                    let request = RaftRequest::decode(&body).ok()?;
                    Some(Box::pin(self.raft_call(request)).await.encode())
                }
                (ConnectionKind::Bulk, What::Call) => {
                    let request = BulkRequest::decode(&body).ok()?;
                    Some(Box::pin(self.bulk_call(&peer, request)).await.encode())
                }
                (ConnectionKind::Request, What::Control) => {
                    let request = Control::decode(&body).ok()?;
                    Some(Box::pin(self.control_call(request)).await.encode())
                }
                (ConnectionKind::Request, What::Call) => {
                    let request = codec::decode(&body, RPC_FRAME_LEN_BYTES_MAX).ok()?;
                    let response = self.handler.handle(request).await;
                    Some(Bytes::from(codec::encode(&response)))
                }
                _ => None,
            }
        }
        .boxed()
    }
}

fn voted<R: RaftRt>(response: VoteResponse<Types<R>>) -> RaftReply {
    RaftReply::Voted {
        vote: types::vote_to_wire(&response.vote),
        is_granted: response.vote_granted,
        last: response.last_log_id.as_ref().map(types::position),
    }
}

impl<R: RaftRt, H: RequestHandler> Answers<R, H> {
    async fn raft_call(&self, request: RaftRequest) -> RaftReply {
        match self.try_raft_call(request).await {
            Ok(reply) => reply,
            Err(why) => RaftReply::Refused(why),
        }
    }

    async fn try_raft_call(&self, request: RaftRequest) -> Result<RaftReply, String> {
        Ok(match request {
            RaftRequest::Append(append) => {
                let entries: Result<Vec<_>, String> = append.entries.into_iter().map(types::entry_from_wire).collect();
                let request = AppendEntriesRequest {
                    vote: types::vote_from_wire(append.vote),
                    prev_log_id: append.previous.map(types::log_id),
                    entries: entries?,
                    leader_commit: append.committed.map(types::log_id),
                };
                let began_at = self.rt.now();
                let response = self.raft.append_entries(request).await.map_err(|err| err.to_string())?;
                if !matches!(response, AppendEntriesResponse::HigherVote(_)) {
                    self.contact.note(began_at);
                }
                match response {
                    AppendEntriesResponse::Success => RaftReply::Appended,
                    AppendEntriesResponse::PartialSuccess(up_to) => {
                        RaftReply::AppendedPartly(up_to.as_ref().map(types::position))
                    }
                    AppendEntriesResponse::Conflict => RaftReply::Conflict,
                    AppendEntriesResponse::HigherVote(vote) => RaftReply::HigherVote(types::vote_to_wire(&vote)),
                }
            }
            RaftRequest::Vote(request) => {
                let response = self.raft.vote(self.vote_request(request)?).await;
                voted(response.map_err(|err| err.to_string())?)
            }
            RaftRequest::PreVote(request) => {
                if self
                    .candidacy
                    .is_preferred_to(self.rt.now(), self.candidacy_time, &request)
                {
                    return Err("this server stands for the same term".to_owned());
                }
                let response = self.raft.pre_vote(self.vote_request(request)?).await;
                voted(response.map_err(|err| err.to_string())?)
            }
            RaftRequest::Transfer(transfer) => {
                if self.rt.now() < self.votes_from {
                    return Err("this server has just restarted and stands for no vote yet".to_owned());
                }
                let request = TransferLeaderRequest::new(
                    types::vote_from_wire(transfer.from),
                    transfer.to,
                    transfer.last.map(types::log_id),
                );
                let response = self.raft.handle_transfer_leader(request).await;
                match response.map_err(|err| err.to_string())? {
                    Ok(()) => RaftReply::TransferStarted,
                    Err(TransferLeaderError::VoteChanged { expected, actual }) => RaftReply::TransferVoteChanged {
                        expected: types::vote_to_wire(&expected),
                        actual: types::vote_to_wire(&actual),
                    },
                    Err(TransferLeaderError::LogNotFlushed { expected, actual }) => RaftReply::TransferLogBehind {
                        expected: expected.as_ref().map(types::position),
                        actual: actual.as_ref().map(types::position),
                    },
                }
            }
        })
    }

    /// A restart forgets to whom a lease was promised: until one lease later no vote is granted, not even a pre-vote.
    fn vote_request(&self, request: quorate_wire::raft::VoteRequest) -> Result<VoteRequest<Types<R>>, String> {
        if self.rt.now() < self.votes_from {
            return Err("this server has just restarted and grants no vote yet".to_owned());
        }
        let mut vote = VoteRequest::new(types::vote_from_wire(request.vote), request.last.map(types::log_id));
        vote.leadership_transfer = request.is_transfer;
        Ok(vote)
    }

    async fn bulk_call(&self, peer: &Peer, request: BulkRequest) -> BulkReply {
        // One piece at a time, in the order of the connection.
        let mut memory = peer.memory.lock().await;
        let transfer = memory
            .take()
            .and_then(|memory| memory.downcast::<Transfer<R>>().ok())
            .map(|transfer| *transfer);
        match self.try_bulk_call(transfer, request).await {
            Ok((reply, transfer)) => {
                *memory = transfer.map(|transfer| Box::new(transfer) as _);
                reply
            }
            Err(why) => {
                tracing::warn!(from = %peer.hello.from, %why, "refused a snapshot");
                BulkReply::Refused(why)
            }
        }
    }

    async fn try_bulk_call(
        &self,
        transfer: Option<Transfer<R>>,
        request: BulkRequest,
    ) -> Result<(BulkReply, Option<Transfer<R>>), String> {
        match (request, transfer) {
            (BulkRequest::Begin { vote, meta, len_bytes }, old) => {
                if let Some(old) = old {
                    let path = old.receiving.path.clone();
                    self.snapshots.discard(&path).await.map_err(|err| err.to_string())?;
                }
                let number = self.transfer_count.fetch_add(1, Ordering::Relaxed);
                let receiving = self.snapshots.receive(number).await.map_err(|err| err.to_string())?;
                let transfer = Transfer {
                    vote,
                    meta,
                    len_bytes,
                    receiving,
                };
                Ok((BulkReply::Continue, Some(transfer)))
            }
            (BulkRequest::Chunk { offset, content }, Some(mut transfer)) => {
                let end = offset.saturating_add(content.len() as u64);
                if offset != transfer.receiving.len_bytes || end > transfer.len_bytes {
                    self.abandon(&transfer).await;
                    return Err(format!(
                        "a piece at {offset} where {} was due",
                        transfer.receiving.len_bytes
                    ));
                }
                transfer.receiving.push(content).await.map_err(|err| err.to_string())?;
                Ok((BulkReply::Continue, Some(transfer)))
            }
            (BulkRequest::End, Some(transfer)) => {
                if transfer.receiving.len_bytes != transfer.len_bytes {
                    self.abandon(&transfer).await;
                    return Err("it ends early".to_owned());
                }
                let membership =
                    types::membership_from_wire(transfer.meta.membership.clone()).map_err(|err| err.to_string())?;
                let path = transfer.receiving.path.clone();
                let file = transfer.receiving.finish().await.map_err(|err| err.to_string())?;
                // Read as a whole before consensus hears of it: there a damaged one would be fatal.
                if let Err(err) = file.load().await {
                    let _ = self.snapshots.discard(&path).await;
                    return Err(err.to_string());
                }
                let snapshot = Snapshot {
                    meta: SnapshotMeta {
                        last_log_id: transfer.meta.last.map(types::log_id),
                        last_membership: StoredMembership::new(
                            transfer.meta.membership_at.map(types::log_id),
                            membership,
                        ),
                    },
                    snapshot: file,
                };
                let installed = self
                    .raft
                    .install_full_snapshot(types::vote_from_wire(transfer.vote), snapshot)
                    .await;
                // It has its own name now, unless it was not wanted.
                self.snapshots.discard(&path).await.map_err(|err| err.to_string())?;
                let vote = types::vote_to_wire(&installed.map_err(|err| err.to_string())?.vote);
                self.contact.note(self.rt.now());
                Ok((BulkReply::Installed { vote }, None))
            }
            (BulkRequest::Chunk { .. } | BulkRequest::End, None) => Err("no snapshot was begun".to_owned()),
        }
    }

    async fn abandon(&self, transfer: &Transfer<R>) {
        if let Err(err) = self.snapshots.discard(&transfer.receiving.path).await {
            tracing::warn!(%err, "discard an unfinished snapshot");
        }
    }

    async fn control_call(&self, request: Control) -> ControlReply {
        let has_log = || !self.log.is_pristine();
        let reply = match request {
            Control::Pledge { pledge, yielded } => self.keeper.pledge(pledge, &yielded, has_log).await,
            Control::Adopt { cluster_id } => self.keeper.adopt(cluster_id, has_log).await,
        };
        reply.unwrap_or_else(|err| {
            tracing::error!(%err, "change the identity");
            ControlReply::Refused(err.to_string())
        })
    }
}
