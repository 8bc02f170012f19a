//! Healing: members that lost sight of each other meet again in seconds, not with the next exchange of the full state.
//!
//! - Members held for dead are pinged now and then, and told so: after a partition neither side pings the other else.
//! - A ping from a member held for suspect, dead or left is answered with that belief, so that it refutes at once.
//! - A suspect about to be held for dead is pinged, and told so: it may have refuted without our hearing of it, or have
//!   stood still until now.
//! - Whoever accuses us, of this incarnation or an earlier one, is told of this one.
//! - A ping from an address where nobody is known (we forgot all in a restart) begins an exchange with it.
//!
//! A packet names no sender: it is recognized by its source address. Behind address translation the rules above do
//! nothing, and the exchanges of the full state heal alone.
//! Bounds: whatever peers send, `ANSWER_COUNT_MAX` answers to accusations and `ASK_COUNT_MAX` questions to suspects in
//! `WINDOW`, one exchange with a stranger at a
//! time and in `WINDOW`, `BELIEF_COUNT_MAX` beliefs an ack.

use super::{Leave, Output, Seat, Swim, below, tick_after};
use crate::message::{Message, Status, Update};
use quorate_types::Instant;
use std::net::SocketAddr;
use std::time::Duration;

const WINDOW: Duration = Duration::from_secs(1);
/// A pool that accuses us all at once is told by its own gossip as well.
const ANSWER_COUNT_MAX: u32 = 64;
/// Suspects asked in `WINDOW`: when more of them are due, the network broke.
const ASK_COUNT_MAX: u32 = 128;
/// Ids that failed at one address, one after the other.
const BELIEF_COUNT_MAX: usize = 4;
/// Dead members pinged at a time, and, about, how many members ping one of them each probe interval: the size of the
/// pool does not matter.
const KNOCK_COUNT: usize = 3;
/// After this, a dead member is knocked at `KNOCK_LESS` times less often.
const KNOCK_LESS_TIME: Duration = Duration::from_secs(3600);
const KNOCK_LESS: usize = 8;
/// For so many probe intervals after it was held for dead, a member knocks as often as it can.
pub(super) const BACK_INTERVAL_COUNT: u32 = 10;

#[derive(Debug)]
pub(super) struct Healing {
    knock_at: Instant,
    /// Among the dead, the next to be knocked at.
    knock_index: usize,
    /// We were held for dead a moment ago.
    pub(super) back_until: Instant,
    /// Until the reply, or until the stream is given up.
    exchange: Option<(SocketAddr, Instant)>,
    /// No exchange with a stranger before.
    exchange_at: Instant,
    answers: Allowance,
    /// Of questions to suspects.
    asks: Allowance,
}

/// So many times in `WINDOW`, and no more.
#[derive(Debug)]
struct Allowance {
    since: Instant,
    count: u32,
}

impl Allowance {
    fn new(now: Instant) -> Self {
        Self { since: now, count: 0 }
    }
    fn take(&mut self, now: Instant, count_max: u32) -> bool {
        if now - self.since >= WINDOW {
            *self = Self::new(now);
        }
        let is_left = self.count < count_max;
        self.count += u32::from(is_left);
        is_left
    }
}

impl Healing {
    pub(super) fn new(knock_at: Instant, now: Instant) -> Self {
        Self {
            knock_at,
            knock_index: 0,
            back_until: now,
            exchange: None,
            exchange_at: now,
            answers: Allowance::new(now),
            asks: Allowance::new(now),
        }
    }
}

impl Swim {
    /// The belief about a member that is not alive, as it is to hear it.
    fn accusation(&self, seat: Seat) -> Option<Update> {
        let record = self.table.get(seat);
        let (member, incarnation, from) = (record.id(), record.incarnation(), self.me);
        match record.status() {
            Status::Alive => None,
            Status::Suspect => Some(Update::Suspect {
                member,
                incarnation,
                from,
            }),
            // One that left, too: it is there, and nobody believes it.
            Status::Dead | Status::Left => Some(Update::Dead {
                member,
                incarnation,
                from,
            }),
        }
    }
    pub(super) fn next_knock_timeout(&self) -> Instant {
        if !self.config.heals_at_contact || self.table.dead_count() == 0 || self.leave != Leave::No {
            return Instant::FAR_FUTURE;
        }
        self.healing.knock_at
    }
    /// The clock is not looked at while nobody is dead.
    pub(super) fn wind_knocks(&mut self, now: Instant) {
        if self.healing.knock_at <= now {
            self.healing.knock_at = tick_after(self.healing.knock_at, self.config.probe_interval, now);
        }
    }
    pub(super) fn drive_knocks(&mut self, now: Instant) {
        if now < self.next_knock_timeout() {
            return;
        }
        self.wind_knocks(now);
        let (dead_count, live_count) = (self.table.dead_count(), self.live_count().max(1));
        // As with reconnecting: the likelier the more of the pool failed. Who was held for dead itself was likely cut off,
        // and those it holds for dead are the ones that it could not see.
        let was_dead = now < self.healing.back_until;
        if !was_dead && below(&mut self.knock_rng, live_count) >= KNOCK_COUNT * dead_count {
            return;
        }
        // In turn, so that none waits long.
        let from = self.healing.knock_index;
        self.healing.knock_index = (from + KNOCK_COUNT) % dead_count;
        for nth in 0..KNOCK_COUNT.min(dead_count) {
            let seat = self.table.dead((from + nth) % dead_count);
            // The longer it is dead, the less often: eight times less after an hour, as most do not come back.
            let age = now - self.gone[&seat].at;
            let hush = if age > KNOCK_LESS_TIME { KNOCK_LESS } else { 1 };
            let is_held = self.flaps.is_held(now, self.table.get(seat).id());
            if is_held || below(&mut self.knock_rng, hush) > 0 {
                continue;
            }
            self.confront(seat);
        }
    }

    /// A ping came from here: the one who sent it is to hear what is thought of it, when it is not thought well of.
    pub(super) fn greet(&mut self, now: Instant, from: SocketAddr, messages: &mut Vec<Message>) {
        // The usual case at the least cost: all are well and long known, and so is this one.
        let is_quiet = self.suspicions.is_empty() && self.gone.is_empty() && self.links.is_empty();
        if is_quiet && !self.rules.has_young(now) && self.table.is_held(canonical(from)) {
            return;
        }
        if let Some(alive) = self.table.alive_at(canonical(from)) {
            // It came from this one, not from those that failed here before it.
            let record = self.table.get_mut(alive);
            if !record.is_met {
                record.is_met = true;
            }
            let id = record.id();
            self.links.heard_from(id);
            return;
        }
        if !self.config.heals_at_contact {
            return;
        }
        let holders = self.table.holders(canonical(from));
        if holders.is_empty() && canonical(from) != self.my_record().address() {
            return self.meet(now, from);
        }
        // One that is held would refute for nothing.
        let holders = holders.into_iter();
        let beliefs = holders
            .filter(|seat| !self.flaps.is_held(now, self.table.get(*seat).id()))
            .filter_map(|seat| self.accusation(seat));
        messages.extend(beliefs.map(Message::Update).take(BELIEF_COUNT_MAX));
    }
    /// A ping came from somebody unknown.
    fn meet(&mut self, now: Instant, from: SocketAddr) {
        if self.leave != Leave::No || now < self.healing.exchange_at {
            return;
        }
        if self.healing.exchange.is_some_and(|(_, until_at)| now < until_at) {
            return;
        }
        self.healing.exchange = Some((from, now + self.config.stream_timeout));
        self.healing.exchange_at = now + WINDOW;
        self.outputs.push_back(Output::PushPull { to: from });
    }
    /// An exchange that we began with this address is over.
    pub(super) fn met(&mut self, now: Instant, with: SocketAddr) {
        if self.healing.exchange.take_if(|(to, _)| *to == with).is_some() && !self.is_known_at(with) {
            // It describes itself at another address, and would be a stranger with every ping.
            self.healing.exchange_at = now + self.config.push_pull_interval;
        }
    }
    fn is_known_at(&self, address: SocketAddr) -> bool {
        let address = canonical(address);
        address == self.my_record().address() || !self.table.holders(address).is_empty()
    }

    /// Its suspicion is nearly over: it may have refuted without our hearing of it, or have stood still until now.
    pub(super) fn ask_suspect(&mut self, now: Instant, seat: Seat) {
        if self.leave == Leave::No && self.healing.asks.take(now, ASK_COUNT_MAX) {
            self.counters.suspects_asked += 1;
            self.confront(seat);
        }
    }
    /// Pings a member that is not thought well of, and tells it so.
    fn confront(&mut self, seat: Seat) {
        let Some(belief) = self.accusation(seat) else { return };
        let record = self.table.get(seat);
        let (target, to) = (record.id(), record.address());
        let sequence = self.next_sequence();
        // The belief first, so that the ack carries the refutation.
        // No other news: if it was we who were cut off, what we think of the others is wrong as well.
        let messages = vec![Message::Update(belief), Message::Ping { sequence, target }];
        self.outputs.push_back(Output::Packet { to, messages });
    }

    /// Told once a packet: its news may accuse us many times.
    pub(super) fn answer_accusation(&mut self, now: Instant, to: SocketAddr) {
        if self.leave != Leave::No || !self.healing.answers.take(now, ANSWER_COUNT_MAX) {
            return;
        }
        let record = self.my_record();
        let (member, incarnation) = (record.state.clone(), record.incarnation());
        let messages = vec![Message::Update(Update::Alive { member, incarnation })];
        self.outputs.push_back(Output::Packet { to, messages });
    }
    pub(super) fn is_accusation(&self, message: &Message) -> bool {
        let Message::Update(update) = message else { return false };
        let is_alive = matches!(update, Update::Alive { .. });
        self.config.heals_at_contact
            && !is_alive
            && !update.is_intent()
            && update.subject() == self.me
            && update.incarnation() < crate::message::INCARNATION_MAX
    }

    pub(super) fn check_healing(&self) {
        assert!(self.healing.answers.count <= ANSWER_COUNT_MAX, "answers are bounded");
        assert!(self.healing.asks.count <= ASK_COUNT_MAX, "questions are bounded");
    }
}

/// A socket for both families shows IPv4 sources as mapped ones.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
