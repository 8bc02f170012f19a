//! The state machine: fires, takes, sends on, asks and answers.
//!
//! ```text
//!   event   (unknown) ── fire, or heard of ──> delivered once ──> sent on `transmit_limit` times, kept for exchanges
//!   query   (unknown) ── ask, or heard of ───> delivered once ──> answered to its origin
//!           open at its origin ── time over, or all have answered ──> ended
//! ```
//!
//! Not here: what was seen when (`ring`), which message goes next (`broadcast`).

use crate::broadcast::Broadcasts;
use crate::clock::LamportClock;
use crate::event::{FireError, UserEvent};
use crate::message::{EventState, Message, Query, QueryError, QueryId, RESPONSE_LEN_BYTES_MAX};
use crate::ring::{Ring, Seen};
use crate::{LamportTime, QUERY_LEN_BYTES_MAX};
use quorate_types::{Instant, NodeId, Uuid};
use rand_chacha::ChaCha8Rng;
use rand_core::Rng as _;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// Queries of one origin at a time: operators ask them, one after the other.
const OPEN_QUERY_COUNT_MAX: usize = 64;
/// As many members as a pool may have.
const RESPONDER_COUNT_MAX: usize = 16_384;
/// A longer one is cut to it, whoever asks.
const QUERY_TIMEOUT_MAX: Duration = Duration::from_secs(3600);

/// Something the driver is to do, or to pass on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// One message to one member.
    Packet { to: SocketAddr, message: Message },
    /// An event, fired here or elsewhere.
    Event(Arc<UserEvent>),
    /// A query, asked here or elsewhere. It may be answered until `ends_at`.
    Query { query: Arc<Query>, ends_at: Instant },
    /// To a query asked here.
    QueryAck { query: QueryId, from: NodeId },
    QueryResponse {
        query: QueryId,
        from: NodeId,
        payload: Vec<u8>,
    },
    /// The time of a query asked here is over, or all have answered.
    QueryEnded { query: QueryId },
}

/// Things counted since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    pub events_taken: u64,
    pub queries_taken: u64,
    /// Heard of again.
    pub repeated: u64,
    /// From before this member's time, or fallen out of the window.
    pub too_old: u64,
    /// Too long, without a name, or at a time that cannot be.
    pub malformed: u64,
    /// Answers to what was not asked here, or is over, or was answered.
    pub responses_refused: u64,
    /// Not passed on to the end, as too many waited.
    pub dropped: u64,
}

#[derive(Clone, Debug)]
struct OpenQuery {
    ends_at: Instant,
    /// Members that may answer.
    member_count: usize,
    acked: BTreeSet<NodeId>,
    answered: BTreeSet<NodeId>,
}

/// One member's part in a pool's events and queries.
#[derive(Debug)]
pub struct UserEvents {
    me: NodeId,
    address: SocketAddr,
    event_clock: LamportClock,
    query_clock: LamportClock,
    events: Ring<Uuid, Arc<UserEvent>>,
    queries: Ring<QueryId, ()>,
    /// Before its first exchange a member cannot tell what is new from what its predecessor had.
    has_exchanged: bool,
    broadcasts: Broadcasts,
    open: BTreeMap<QueryId, OpenQuery>,
    outputs: VecDeque<Output>,
    rng: ChaCha8Rng,
    counters: Counters,
}

impl UserEvents {
    /// `address` is where this member's gossip is reached.
    pub fn new(me: NodeId, address: SocketAddr, rng: ChaCha8Rng) -> Self {
        Self {
            me,
            address,
            event_clock: LamportClock::new(),
            query_clock: LamportClock::new(),
            events: Ring::new(),
            queries: Ring::new(),
            has_exchanged: false,
            broadcasts: Broadcasts::default(),
            open: BTreeMap::new(),
            outputs: VecDeque::new(),
            rng,
            counters: Counters::default(),
        }
    }

    // Getters.

    pub fn event_time(&self) -> LamportTime {
        self.event_clock.now()
    }
    pub fn query_time(&self) -> LamportTime {
        self.query_clock.now()
    }
    /// Events and queries that wait to be gossiped.
    pub fn queued_counts(&self) -> (usize, usize) {
        let is_event = |message: &&Message| matches!(message, Message::Event(_));
        let events = self.broadcasts.messages().filter(is_event).count();
        (events, self.broadcasts.len() - events)
    }
    pub fn counters(&self) -> Counters {
        Counters {
            dropped: self.broadcasts.dropped_count(),
            ..self.counters
        }
    }
    /// Something waits to be gossiped.
    pub fn has_news(&self) -> bool {
        self.broadcasts.len() > 0
    }
    /// When `handle_timeout` is due.
    pub fn next_timeout(&self) -> Instant {
        let ends = self.open.values().map(|open| open.ends_at);
        ends.min().unwrap_or(Instant::FAR_FUTURE)
    }
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }
    /// Our half of an exchange.
    pub fn state(&self) -> EventState {
        EventState {
            event_clock: self.event_clock.now(),
            query_clock: self.query_clock.now(),
            events: self.events.values().cloned().collect(),
        }
    }

    // Commands.

    /// Messages for a packet, of together at most `len_bytes_max`. Each is given out `transmit_limit` times in all.
    pub fn take_news(&mut self, len_bytes_max: usize, transmit_limit: u32) -> Vec<Message> {
        self.broadcasts.take(len_bytes_max, transmit_limit)
    }
    /// Tells the pool. The event's time is given to it here; it is delivered here too.
    pub fn fire(&mut self, event: UserEvent) -> Result<Arc<UserEvent>, FireError> {
        event.validate()?;
        let event = Arc::new(UserEvent {
            ltime: self.event_clock.tick(),
            ..event
        });
        self.take_event(&event);
        Ok(event)
    }
    /// Asks the pool, of `member_count` members; asks this member too.
    pub fn ask(
        &mut self,
        now: Instant,
        name: &str,
        payload: Vec<u8>,
        timeout: Duration,
        wants_ack: bool,
        member_count: usize,
    ) -> Result<QueryId, QueryError> {
        if self.open.len() >= OPEN_QUERY_COUNT_MAX {
            return Err(QueryError::TooMany);
        }
        if name.len() + payload.len() > QUERY_LEN_BYTES_MAX {
            return Err(QueryError::TooLong);
        }
        let timeout = timeout.min(QUERY_TIMEOUT_MAX);
        let query = Arc::new(Query {
            ltime: self.query_clock.tick(),
            id: QueryId(self.rng.next_u64()),
            from: self.me,
            address: self.address,
            timeout,
            wants_ack,
            name: name.to_owned(),
            payload,
        });
        let open = OpenQuery {
            ends_at: now + timeout,
            member_count: member_count.clamp(1, RESPONDER_COUNT_MAX),
            acked: BTreeSet::new(),
            answered: BTreeSet::new(),
        };
        self.open.insert(query.id, open);
        self.take_query(now, &query);
        Ok(query.id)
    }
    /// Nobody waits for this query's answers any more.
    pub fn abandon(&mut self, query: QueryId) {
        self.open.remove(&query);
    }
    /// This member's answer to a query.
    pub fn respond(&mut self, now: Instant, query: &Query, payload: Vec<u8>) -> Result<(), QueryError> {
        if payload.len() > RESPONSE_LEN_BYTES_MAX {
            return Err(QueryError::ResponseTooLong);
        }
        let (id, from) = (query.id, self.me);
        if query.from == self.me {
            self.handle_response(now, id, from, payload);
        } else {
            let message = Message::QueryResponse {
                query: id,
                from,
                payload,
            };
            self.outputs.push_back(Output::Packet {
                to: query.address,
                message,
            });
        }
        Ok(())
    }

    // Input.

    /// What a packet of a peer said.
    pub fn handle_messages(&mut self, now: Instant, messages: Vec<Message>) {
        for message in messages {
            match message {
                Message::Event(event) => self.hear_event(event, true),
                Message::Query(query) => self.hear_query(now, &query),
                Message::QueryAck { query, from } => self.handle_ack(now, query, from),
                Message::QueryResponse { query, from, payload } => self.handle_response(now, query, from, payload),
            }
        }
    }
    /// A peer's half of an exchange. `ignores_old`: this member joins the peer's pool, so what was fired there before is
    /// not for it. So it is at a member's first exchange, whoever began it.
    pub fn handle_state(&mut self, theirs: EventState, ignores_old: bool) {
        if !self.event_clock.witness(theirs.event_clock) || !self.query_clock.witness(theirs.query_clock) {
            self.counters.malformed += 1;
            return;
        }
        if ignores_old || !self.has_exchanged {
            self.has_exchanged = true;
            self.events.raise_floor(LamportTime(theirs.event_clock.0 + 1));
            self.queries.raise_floor(LamportTime(theirs.query_clock.0 + 1));
        }
        for event in theirs.events {
            self.hear_event(event, false);
        }
    }
    /// Ends the queries whose time is over.
    pub fn handle_timeout(&mut self, now: Instant) {
        let outputs = &mut self.outputs;
        self.open.retain(|query, open| {
            let is_over = open.ends_at <= now;
            if is_over {
                outputs.push_back(Output::QueryEnded { query: *query });
            }
            !is_over
        });
    }

    fn hear_event(&mut self, event: Arc<UserEvent>, sends_on: bool) {
        if event.name.is_empty() || event.validate().is_err() || !self.event_clock.witness(event.ltime) {
            self.counters.malformed += 1;
        } else if !self.has_exchanged {
            self.counters.too_old += 1;
        } else {
            match self.events.insert(event.ltime, event.id, Arc::clone(&event)) {
                Seen::New => self.deliver_event(&event, sends_on),
                Seen::Before => self.counters.repeated += 1,
                Seen::TooOld => self.counters.too_old += 1,
            }
        }
    }
    /// An event of our own: it is above all times heard of, so above the floor.
    fn take_event(&mut self, event: &Arc<UserEvent>) {
        let seen = self.events.insert(event.ltime, event.id, Arc::clone(event));
        assert_eq!(seen, Seen::New, "a new time has nothing yet");
        self.deliver_event(event, true);
    }
    fn deliver_event(&mut self, event: &Arc<UserEvent>, sends_on: bool) {
        self.counters.events_taken += 1;
        if sends_on {
            self.broadcasts.push(Message::Event(Arc::clone(event)));
        }
        self.outputs.push_back(Output::Event(Arc::clone(event)));
    }

    fn hear_query(&mut self, now: Instant, query: &Arc<Query>) {
        if query.validate().is_err() || !self.query_clock.witness(query.ltime) {
            self.counters.malformed += 1;
        } else {
            self.take_query(now, query);
        }
    }
    fn take_query(&mut self, now: Instant, query: &Arc<Query>) {
        match self.queries.insert(query.ltime, query.id, ()) {
            Seen::New => {}
            Seen::Before => return self.counters.repeated += 1,
            Seen::TooOld => return self.counters.too_old += 1,
        }
        self.counters.queries_taken += 1;
        self.broadcasts.push(Message::Query(Arc::clone(query)));
        if query.wants_ack {
            let (id, from) = (query.id, self.me);
            if query.from == self.me {
                self.handle_ack(now, id, from);
            } else {
                self.outputs.push_back(Output::Packet {
                    to: query.address,
                    message: Message::QueryAck { query: id, from },
                });
            }
        }
        self.outputs.push_back(Output::Query {
            query: Arc::clone(query),
            ends_at: now + query.timeout.min(QUERY_TIMEOUT_MAX),
        });
    }

    fn handle_ack(&mut self, now: Instant, id: QueryId, from: NodeId) {
        let open = self.open.get_mut(&id).filter(|open| now < open.ends_at);
        if open.is_some_and(|open| open.acked.len() < RESPONDER_COUNT_MAX && open.acked.insert(from)) {
            self.outputs.push_back(Output::QueryAck { query: id, from });
        } else {
            self.counters.responses_refused += 1;
        }
    }
    fn handle_response(&mut self, now: Instant, id: QueryId, from: NodeId, payload: Vec<u8>) {
        if payload.len() > RESPONSE_LEN_BYTES_MAX {
            self.counters.malformed += 1;
            return;
        }
        let open = self.open.get_mut(&id).filter(|open| now < open.ends_at);
        let Some(open) = open else {
            self.counters.responses_refused += 1;
            return;
        };
        if open.answered.len() >= RESPONDER_COUNT_MAX || !open.answered.insert(from) {
            self.counters.responses_refused += 1;
            return;
        }
        let is_complete = open.answered.len() >= open.member_count;
        self.outputs.push_back(Output::QueryResponse {
            query: id,
            from,
            payload,
        });
        if is_complete {
            self.open.remove(&id);
            self.outputs.push_back(Output::QueryEnded { query: id });
        }
    }

    /// The invariants.
    pub fn check(&self) {
        self.events.check();
        self.queries.check();
        self.broadcasts.check();
        assert!(self.open.len() <= OPEN_QUERY_COUNT_MAX, "open queries are bounded");
        for open in self.open.values() {
            assert!(
                open.answered.len() < open.member_count,
                "a query that all answered is over"
            );
            assert!(open.acked.len() <= RESPONDER_COUNT_MAX, "acks are bounded");
        }
        for event in self.events.values() {
            assert!(event.ltime <= self.event_clock.now(), "the clock is above all events");
        }
    }
}

#[cfg(test)]
mod tests;
