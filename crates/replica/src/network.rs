//! Raft's messages over the pool, and the book of addresses.
//!
//! A server is a node id; where it is reached is learned from gossip at any time. Each connection names both ends' node and
//! disk, so a reused address, or a disk that was lost, reaches nobody else's log.

use crate::identity::Keeper;
use crate::snapshot::SnapshotFile;
use crate::transport::client::{CallFailure, Greeter, Pool, Target};
use crate::types::{self, RaftRt, Snapshot, Types, Vote};
use futures::future::{Either, select};
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{RPCOption, RaftNetworkFactory, RaftNetworkV2};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest, TransferLeaderResponse,
    VoteRequest, VoteResponse,
};
use openraft::{OptionalSend, raft::TransferLeaderError};
use quorate_types::{Instant, NodeId, Uuid};
use quorate_wire::frame::{ConnectionKind, Hello, What};
use quorate_wire::log::{Position, Server, Vote as WireVote};
use quorate_wire::raft::{self as wire, BulkReply, BulkRequest, RaftReply, RaftRequest};
use std::collections::BTreeMap;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

/// Entries are written and synced within this; else they are sent again.
const APPEND_TIMEOUT_MIN: Duration = Duration::from_secs(1);
/// One piece of a snapshot is answered within this.
const CHUNK_TIMEOUT: Duration = Duration::from_secs(10);
/// After the last piece the snapshot is read as a whole.
const INSTALL_TIMEOUT: Duration = Duration::from_secs(300);

/// What is known of other servers.
#[derive(Default)]
pub struct AddressBook {
    book: Mutex<Book>,
}

#[derive(Default)]
struct Book {
    addresses: BTreeMap<NodeId, SocketAddr>,
    /// As the membership has them.
    disks: BTreeMap<NodeId, Uuid>,
}

impl AddressBook {
    fn locked(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
    /// Returns the address it had.
    pub fn set_address(&self, node: NodeId, address: SocketAddr) -> Option<SocketAddr> {
        self.locked().addresses.insert(node, address)
    }
    pub fn forget_address(&self, node: NodeId) -> Option<SocketAddr> {
        self.locked().addresses.remove(&node)
    }
    pub fn address(&self, node: NodeId) -> Option<SocketAddr> {
        self.locked().addresses.get(&node).copied()
    }
    pub fn disk(&self, node: NodeId) -> Option<Uuid> {
        self.locked().disks.get(&node).copied()
    }
    /// The membership changed.
    pub fn set_disks(&self, disks: BTreeMap<NodeId, Uuid>) {
        self.locked().disks = disks;
    }
    pub fn set_disk(&self, node: NodeId, disk: Uuid) {
        self.locked().disks.insert(node, disk);
    }
}

/// Greets as a server.
pub struct ServerGreeter<R: RaftRt> {
    pub keeper: Arc<Keeper<R>>,
    pub book: Arc<AddressBook>,
}

impl<R: RaftRt> Greeter for ServerGreeter<R> {
    fn hello(&self, target: &Target) -> Hello {
        let identity = self.keeper.get();
        let is_raft = target.kind != ConnectionKind::Request;
        Hello {
            cluster_id: self.keeper.cluster_id().filter(|_| is_raft),
            from: identity.node_id,
            from_disk: is_raft.then_some(identity.disk_id),
            to: target.node,
            to_disk: target.node.filter(|_| is_raft).and_then(|node| self.book.disk(node)),
        }
    }
}

/// Makes openraft's clients.
pub struct Network<R: RaftRt> {
    pub rt: R,
    pub pool: Pool<R>,
    pub book: Arc<AddressBook>,
    pub candidacy: Arc<Candidacy>,
}

/// Parts two servers that stand for the same term at the same moment.
///
/// A pre-vote binds nobody, so each grants the other's, both go on to vote for themselves, and a whole election timeout is
/// lost; with clocks that tick together, several in a row. While a server asks for pre-votes itself, it refuses them to one
/// with a lower id whose log is no better. Only the moment is decided by this: an election needs the same quorum as ever.
#[derive(Default)]
pub struct Candidacy {
    standing: Mutex<Option<Standing>>,
}

#[derive(Clone, Copy)]
struct Standing {
    at: Instant,
    vote: WireVote,
    last: Option<Position>,
}

impl Candidacy {
    fn stand(&self, now: Instant, request: &wire::VoteRequest) {
        let standing = Standing {
            at: now,
            vote: request.vote,
            last: request.last,
        };
        *self.standing.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(standing);
    }
    /// Whether this server stands for the same term itself, since less than `within`, and is to be preferred.
    pub fn is_preferred_to(&self, now: Instant, within: Duration, request: &wire::VoteRequest) -> bool {
        let standing = *self.standing.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        standing.is_some_and(|own| {
            now - own.at < within
                && own.vote.term == request.vote.term
                && own.vote.node > request.vote.node
                && own.last >= request.last
        })
    }
}

impl<R: RaftRt> RaftNetworkFactory<Types<R>> for Network<R> {
    type Network = Client<R>;
    async fn new_client(&mut self, target: NodeId, node: &Server) -> Client<R> {
        self.book.set_disk(target, node.disk_id);
        Client {
            rt: self.rt.clone(),
            pool: self.pool.clone(),
            book: Arc::clone(&self.book),
            candidacy: Arc::clone(&self.candidacy),
            target,
        }
    }
}

/// openraft's way to one server.
pub struct Client<R: RaftRt> {
    rt: R,
    pool: Pool<R>,
    book: Arc<AddressBook>,
    candidacy: Arc<Candidacy>,
    target: NodeId,
}

/// Why there is no reply, in openraft's terms: an unreachable server is left alone for a while.
fn failed<R: RaftRt>(failure: CallFailure) -> RPCError<Types<R>> {
    match failure {
        CallFailure::NotSent(why) => RPCError::Unreachable(Unreachable::from_string(why)),
        CallFailure::Unknown(why) => RPCError::Network(NetworkError::from_string(why)),
    }
}

fn unexpected<R: RaftRt>(reply: RaftReply) -> RPCError<Types<R>> {
    RPCError::Network(NetworkError::from_string(match reply {
        RaftReply::Refused(why) => why,
        reply => format!("the reply makes no sense: {reply:?}"),
    }))
}

impl<R: RaftRt> Client<R> {
    fn target(&self, kind: ConnectionKind) -> Result<Target, CallFailure> {
        match self.book.address(self.target) {
            Some(address) => Ok(Target {
                address,
                kind,
                node: Some(self.target),
            }),
            None => Err(CallFailure::NotSent(format!(
                "the address of server {} is not known",
                self.target
            ))),
        }
    }

    async fn call(&self, request: RaftRequest, timeout: Duration) -> Result<RaftReply, RPCError<Types<R>>> {
        let target = self.target(ConnectionKind::Raft).map_err(failed)?;
        let deadline = self.rt.now() + timeout;
        let reply = self
            .pool
            .call(target, What::Call, request.encode(), deadline)
            .await
            .map_err(failed)?;
        RaftReply::decode(&reply).map_err(|err| RPCError::Network(NetworkError::new(&err)))
    }

    async fn bulk(&self, request: BulkRequest, timeout: Duration) -> Result<BulkReply, RPCError<Types<R>>> {
        let target = self.target(ConnectionKind::Bulk).map_err(failed)?;
        let deadline = self.rt.now() + timeout;
        let reply = self
            .pool
            .call(target, What::Call, request.encode(), deadline)
            .await
            .map_err(failed)?;
        BulkReply::decode(&reply).map_err(|err| RPCError::Network(NetworkError::new(&err)))
    }

    async fn send_snapshot(&self, vote: Vote, snapshot: SnapshotFile<R>) -> Result<Vote, RPCError<Types<R>>> {
        let broken = |err: String| RPCError::Network(NetworkError::from_string(err));
        let (meta, _) = snapshot.meta().await.map_err(|err| broken(err.to_string()))?;
        let mut request = BulkRequest::Begin {
            vote: types::vote_to_wire(&vote),
            meta,
            len_bytes: snapshot.len_bytes,
        };
        let mut offset = 0;
        loop {
            let is_end = request == BulkRequest::End;
            let timeout = if is_end { INSTALL_TIMEOUT } else { CHUNK_TIMEOUT };
            match self.bulk(request, timeout).await? {
                BulkReply::Continue if !is_end => {}
                BulkReply::Installed { vote } => return Ok(types::vote_from_wire(vote)),
                BulkReply::Refused(why) => return Err(broken(why)),
                BulkReply::Continue => return Err(broken("a snapshot's end was not acknowledged".to_owned())),
            }
            request = if offset < snapshot.len_bytes {
                let content = snapshot.chunk(offset).await.map_err(|err| broken(err.to_string()))?;
                let at = offset;
                offset += content.len() as u64;
                BulkRequest::Chunk { offset: at, content }
            } else {
                BulkRequest::End
            };
        }
    }
}

fn vote_request<R: RaftRt>(request: &VoteRequest<Types<R>>) -> wire::VoteRequest {
    wire::VoteRequest {
        vote: types::vote_to_wire(&request.vote),
        last: request.last_log_id.as_ref().map(types::position),
        is_transfer: request.leadership_transfer,
    }
}

fn vote_response<R: RaftRt>(reply: RaftReply) -> Result<VoteResponse<Types<R>>, RPCError<Types<R>>> {
    match reply {
        RaftReply::Voted { vote, is_granted, last } => Ok(VoteResponse::new(
            types::vote_from_wire(vote),
            last.map(types::log_id),
            is_granted,
        )),
        reply => Err(unexpected(reply)),
    }
}

impl<R: RaftRt> RaftNetworkV2<Types<R>> for Client<R> {
    type SnapshotData = SnapshotFile<R>;

    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<Types<R>>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<Types<R>>, RPCError<Types<R>>> {
        // openraft gives every append a heartbeat's time. One with entries waits for the other side's disk.
        let timeout = if request.entries.is_empty() {
            option.soft_ttl()
        } else {
            APPEND_TIMEOUT_MIN.max(option.hard_ttl() * 10)
        };
        let request = RaftRequest::Append(wire::AppendEntries {
            vote: types::vote_to_wire(&request.vote),
            previous: request.prev_log_id.as_ref().map(types::position),
            committed: request.leader_commit.as_ref().map(types::position),
            entries: request.entries.iter().map(types::entry_to_wire).collect(),
        });
        match self.call(request, timeout).await? {
            RaftReply::Appended => Ok(AppendEntriesResponse::Success),
            RaftReply::AppendedPartly(up_to) => Ok(AppendEntriesResponse::PartialSuccess(up_to.map(types::log_id))),
            RaftReply::Conflict => Ok(AppendEntriesResponse::Conflict),
            RaftReply::HigherVote(vote) => Ok(AppendEntriesResponse::HigherVote(types::vote_from_wire(vote))),
            reply => Err(unexpected(reply)),
        }
    }

    async fn vote(
        &mut self,
        request: VoteRequest<Types<R>>,
        option: RPCOption,
    ) -> Result<VoteResponse<Types<R>>, RPCError<Types<R>>> {
        let request = RaftRequest::Vote(vote_request(&request));
        vote_response(self.call(request, option.soft_ttl()).await?)
    }

    async fn pre_vote(
        &mut self,
        request: VoteRequest<Types<R>>,
        option: RPCOption,
    ) -> Result<VoteResponse<Types<R>>, RPCError<Types<R>>> {
        let request = vote_request(&request);
        self.candidacy.stand(self.rt.now(), &request);
        let request = RaftRequest::PreVote(request);
        vote_response(self.call(request, option.soft_ttl()).await?)
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot<SnapshotFile<R>>,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<Types<R>>, StreamingError<Types<R>>> {
        let send = self.send_snapshot(vote, snapshot.snapshot);
        match select(pin!(cancel), pin!(send)).await {
            Either::Left((closed, _)) => Err(closed.into()),
            Either::Right((sent, _)) => Ok(SnapshotResponse::new(sent?)),
        }
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<Types<R>>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<Types<R>>, RPCError<Types<R>>> {
        let request = RaftRequest::Transfer(wire::TransferLeader {
            from: types::vote_to_wire(request.from_leader()),
            to: *request.to_node_id(),
            last: request.last_log_id().map(types::position),
        });
        match self.call(request, option.soft_ttl()).await? {
            RaftReply::TransferStarted => Ok(Ok(())),
            RaftReply::TransferVoteChanged { expected, actual } => Ok(Err(TransferLeaderError::VoteChanged {
                expected: types::vote_from_wire(expected),
                actual: types::vote_from_wire(actual),
            })),
            RaftReply::TransferLogBehind { expected, actual } => Ok(Err(TransferLeaderError::LogNotFlushed {
                expected: expected.map(types::log_id),
                actual: actual.map(types::log_id),
            })),
            reply => Err(unexpected(reply)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(term: u64, node: u8, last: u64) -> wire::VoteRequest {
        wire::VoteRequest {
            vote: WireVote {
                term,
                node: NodeId(Uuid::from_bytes([node; 16])),
                committed: false,
            },
            last: Some(Position { term: 1, index: last }),
            is_transfer: false,
        }
    }

    #[test]
    fn of_two_that_stand_for_a_term_at_once_one_yields_and_never_the_one_with_the_better_log() {
        let within = Duration::from_millis(250);
        let at = |millis| Instant::ZERO + Duration::from_millis(millis);
        let candidacy = Candidacy::default();
        assert!(
            !candidacy.is_preferred_to(at(0), within, &request(2, 1, 7)),
            "it does not stand"
        );
        candidacy.stand(at(1000), &request(2, 5, 7));
        let is_preferred =
            |now, node, last, term| candidacy.is_preferred_to(at(now), within, &request(term, node, last));
        assert!(is_preferred(1000, 1, 7, 2));
        assert!(is_preferred(1249, 1, 6, 2));
        assert!(!is_preferred(1250, 1, 7, 2), "its moment is over");
        assert!(!is_preferred(1000, 9, 7, 2), "the higher id goes first");
        assert!(!is_preferred(1000, 1, 8, 2), "a better log goes first");
        assert!(!is_preferred(1000, 1, 7, 3), "another term is another election");
    }
}
