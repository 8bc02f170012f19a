//! Exchanges of the state over streams: what gossip missed, and how a newcomer learns of all others.
//!
//! ```text
//!   asker: itself and its digest ─────────> answerer: the digests agree ── itself and its digest ─> done
//!                                                   └ they differ ── all that it knows ─> asker: does it know more?
//!          packets, or a second exchange that tells all <─ yes ────────────────────────────────┘
//!   asker: all that it knows ─────────────> answerer: what of that the asker does not know
//! ```
//!
//! Small pools always tell all. So does each `WHOLE_EVERY`th exchange of a large one: digests say nothing of who failed
//! and who left.
//! While an exchange brings news the next follows soon, with another member: in a pool that forms, gossip alone would
//! take a member as long as its packets hold few others, and one exchange tells only what the other has heard so far.
//! Each doubles what both know, so that a pool of N is complete after about log2(N) of them.

use super::{Leave, Output, Seat, Swim, within};
use crate::message::{Message, PushPull, Refusal, RemoteMember, Status, Update};
use quorate_types::{Instant, NodeId};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// Members for whom a digest saves less than it costs.
const WHOLE_COUNT_MAX: usize = 32;
const WHOLE_EVERY: u32 = 8;
/// News for one peer sent as packets; more is a second exchange.
const TOLD_COUNT_MAX: usize = 64;
/// Between exchanges while they bring news: half to one and a half of it.
const RESTLESS_INTERVAL: Duration = Duration::from_millis(500);
/// Exchanges that found both sides agreed, one after the other, after which nothing is likely to be missing.
const CALM_COUNT: u32 = 3;
/// Exchanges that brought news, one after the other, after which the usual interval is kept: some members may never
/// agree, say about one that flaps.
const RESTLESS_COUNT_MAX: u32 = 32;
/// Fewer news than this is gossip's usual work, and makes nobody restless.
const NEWS_COUNT_MIN: usize = 4;

#[derive(Debug)]
pub(super) struct Exchanges {
    pub(super) push_pull_at: Instant,
    /// The next request tells all.
    is_next_whole: bool,
    /// Since the last regular one that told all.
    count: u32,
    restless_count: u32,
    /// Exchanges that agree until the usual interval is kept.
    calm_left: u32,
}

impl Exchanges {
    pub(super) fn new(push_pull_at: Instant) -> Self {
        Self {
            push_pull_at,
            is_next_whole: false,
            count: 0,
            restless_count: 0,
            calm_left: 0,
        }
    }
}

/// What an exchange brought.
struct Merged {
    /// Members that were unknown, or not known to be that new.
    news_count: usize,
    /// By the index of their seats, those of whom the peer knows no less than we do.
    is_agreed: Vec<bool>,
}

impl Swim {
    /// A peer's half of an exchange, which it began. Answers with ours, or says why the peer is not let in.
    pub fn handle_push_pull(&mut self, now: Instant, from: SocketAddr, theirs: PushPull) -> Result<PushPull, Refusal> {
        self.advance(now);
        let Some(peer) = theirs.members.iter().find(|remote| remote.member.id == theirs.from) else {
            self.counters.malformed += 1;
            return Err(Refusal::Invalid {
                name: theirs.from.to_string(),
                reason: "it does not describe itself".to_owned(),
            });
        };
        let peer = Arc::clone(&peer.member);
        self.admit(&peer)?;
        let (digest, is_whole) = (theirs.digest, theirs.is_whole);
        // Its own word about itself, whatever address the stream comes from.
        let merged = self.merge(now, from, theirs);
        self.meet_member(peer.id);
        // Being asked by one that is calm proves little: only what we ask ourselves makes us calm.
        if merged.news_count > 0 {
            self.schedule_next(now, merged.news_count, false);
        }
        // Made after the merge, so that it holds our refutation of what they thought of us: after a partition, one
        // exchange is enough to see each other again.
        let is_all_known = digest == self.table.digest();
        Ok(if is_whole {
            self.push_pull_of(false, self.described(|seat| !merged.is_agreed[seat.index()]))
        } else if is_all_known {
            self.push_pull_of(false, self.described_alone())
        } else {
            self.push_pull_of(true, self.described(|_| true))
        })
    }
    /// A peer's half of an exchange that we began.
    pub fn handle_push_pull_reply(&mut self, now: Instant, from: SocketAddr, theirs: PushPull) {
        self.advance(now);
        self.hear_answer(now);
        self.exchanges.is_next_whole = false;
        let (peer, is_whole) = (theirs.from, theirs.is_whole);
        let merged = self.merge(now, from, theirs);
        self.meet_member(peer);
        self.met(now, from);
        if is_whole {
            self.tell_rest(from, peer, &merged);
        }
        self.schedule_next(now, merged.news_count, !is_whole);
    }
    /// Our half of an exchange.
    pub fn push_pull_request(&self) -> PushPull {
        let is_whole = self.exchanges.is_next_whole || self.table.len() <= WHOLE_COUNT_MAX;
        let members = if is_whole {
            self.described(|_| true)
        } else {
            self.described_alone()
        };
        self.push_pull_of(is_whole, members)
    }
    fn describe(&self, seat: Seat) -> RemoteMember {
        let record = self.table.get(seat);
        RemoteMember {
            member: Arc::clone(&record.state),
            incarnation: record.incarnation(),
            status: record.status(),
            from: match record.status() {
                Status::Left => self.gone.get(&seat).map_or(record.id(), |gone| gone.by),
                _ => record.id(),
            },
        }
    }
    /// Those of all members that `include` takes, and this one.
    fn described(&self, include: impl Fn(Seat) -> bool) -> Vec<RemoteMember> {
        let seats = self.table.iter().map(|(seat, _)| seat);
        let seats = seats.filter(|seat| *seat == Seat::ME || include(*seat));
        seats.map(|seat| self.describe(seat)).collect()
    }
    /// This one, without a look at the others: what most exchanges of a pool at rest take.
    fn described_alone(&self) -> Vec<RemoteMember> {
        vec![self.describe(Seat::ME)]
    }
    fn push_pull_of(&self, is_whole: bool, members: Vec<RemoteMember>) -> PushPull {
        PushPull {
            from: self.me,
            members,
            payload: Vec::new(),
            is_whole,
            digest: self.table.digest(),
            time: self.lamport_time,
            intents: self.intents(),
        }
    }

    fn merge(&mut self, now: Instant, source: SocketAddr, theirs: PushPull) -> Merged {
        let mut news_count = 0;
        let mut is_agreed = vec![false; self.table.seat_index_end()];
        let mut agree = |seat: Seat| {
            if is_agreed.len() <= seat.index() {
                is_agreed.resize(seat.index() + 1, false);
            }
            is_agreed[seat.index()] = true;
        };
        for remote in theirs.members {
            let id = remote.member.id;
            let known = self.table.find(id);
            if let Some(seat) = known.filter(|seat| *seat != Seat::ME) {
                let record = self.table.get(seat);
                let is_same = remote.incarnation == record.incarnation();
                if is_same && remote.status.is_live() == record.status().is_live() {
                    agree(seat);
                }
                let is_old = remote.incarnation < record.incarnation();
                if is_old || is_same && remote.status == Status::Alive {
                    continue;
                }
            }
            let RemoteMember {
                member,
                incarnation,
                status,
                from,
            } = remote;
            // That they hold it dead may be old news: it gets the chance to refute. The word is theirs, though memberlist
            // makes it its own.
            let accuser = if self.config.weighs_accusers {
                theirs.from
            } else {
                self.me
            };
            let suspect = Update::Suspect {
                member: id,
                incarnation,
                from: accuser,
            };
            match status {
                Status::Alive => {
                    let before = self.counters.changes;
                    // Second hand, unless it is about themselves.
                    let source = if id == theirs.from { member.address } else { source };
                    self.handle_update(now, source, Update::Alive { member, incarnation });
                    news_count += usize::from(self.counters.changes > before);
                }
                Status::Left if from == id => self.handle_update(
                    now,
                    source,
                    Update::Left {
                        member: id,
                        incarnation,
                        from,
                        prune: false,
                    },
                ),
                // By an operator's word, which the intents tell.
                Status::Suspect | Status::Dead | Status::Left => self.handle_update(now, source, suspect),
            }
            let seat = self.table.find(id).filter(|seat| *seat != Seat::ME);
            if let Some(seat) = seat.filter(|seat| self.table.get(*seat).incarnation() == incarnation)
                && self.table.get(seat).status().is_live() == status.is_live()
            {
                agree(seat);
            }
        }
        self.witness(theirs.time);
        self.merge_intents(now, theirs.intents);
        is_agreed.resize(self.table.seat_index_end().max(is_agreed.len()), false);
        Merged { news_count, is_agreed }
    }
    /// The peer told us all, and we know more.
    fn tell_rest(&mut self, to: SocketAddr, peer: NodeId, merged: &Merged) {
        if self.leave != Leave::No {
            return;
        }
        let rest: Vec<Update> = self
            .table
            .iter()
            .filter(|(seat, record)| {
                let is_other = *seat != Seat::ME && record.id() != peer;
                is_other && record.status() != Status::Left && !merged.is_agreed[seat.index()]
            })
            .filter_map(|(_, record)| {
                let (member, incarnation) = (record.id(), record.incarnation());
                match record.status() {
                    Status::Alive | Status::Suspect => Some(Update::Alive {
                        member: Arc::clone(&record.state),
                        incarnation,
                    }),
                    Status::Dead => Some(Update::Suspect {
                        member,
                        incarnation,
                        from: self.me,
                    }),
                    Status::Left => None,
                }
            })
            .take(TOLD_COUNT_MAX + 1)
            .collect();
        if rest.len() > TOLD_COUNT_MAX {
            self.exchanges.is_next_whole = true;
            self.outputs.push_back(Output::PushPull { to });
            return;
        }
        let mut messages = Vec::new();
        for update in rest {
            let message = Message::Update(update);
            if self.free_len_bytes(&messages) < message.len_bytes() {
                let messages = std::mem::take(&mut messages);
                self.outputs.push_back(Output::Packet { to, messages });
            }
            messages.push(message);
        }
        if !messages.is_empty() {
            self.outputs.push_back(Output::Packet { to, messages });
        }
    }
    fn schedule_next(&mut self, now: Instant, news_count: usize, did_agree: bool) {
        let exchanges = &mut self.exchanges;
        let is_restless = exchanges.calm_left > 0;
        if news_count >= NEWS_COUNT_MIN || is_restless && (news_count > 0 || !did_agree) {
            exchanges.calm_left = CALM_COUNT;
        } else {
            exchanges.calm_left = exchanges.calm_left.saturating_sub(1);
        }
        if exchanges.calm_left == 0 || exchanges.restless_count >= RESTLESS_COUNT_MAX {
            exchanges.calm_left = 0;
            exchanges.restless_count = 0;
            return;
        }
        exchanges.restless_count += 1;
        // The digests would differ.
        self.exchanges.is_next_whole |= news_count > TOLD_COUNT_MAX;
        let soon = RESTLESS_INTERVAL / 2 + within(&mut self.stream_rng, RESTLESS_INTERVAL);
        self.exchanges.push_pull_at = self.exchanges.push_pull_at.min(now + soon);
    }
    pub(super) fn drive_exchanges(&mut self, now: Instant) {
        if now < self.exchanges.push_pull_at {
            return;
        }
        self.exchanges.push_pull_at = now + self.config.push_pull_interval_scaled(self.live_count());
        if self.leave != Leave::No {
            return;
        }
        self.exchanges.count += 1;
        if self.exchanges.count >= WHOLE_EVERY {
            self.exchanges.count = 0;
            self.exchanges.is_next_whole = true;
        }
        let mut rng = self.stream_rng.clone();
        let peers = self.pick(&mut rng, 1, false, |_, record| record.status() == Status::Alive);
        self.stream_rng = rng;
        for (_, to) in peers {
            self.outputs.push_back(Output::PushPull { to });
        }
    }
    /// We heard from it ourselves.
    pub(super) fn meet_member(&mut self, id: NodeId) {
        if let Some(seat) = self.table.find(id) {
            self.table.get_mut(seat).is_met = true;
        }
    }
}
