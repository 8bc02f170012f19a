//! Healing: members that lost sight of each other meet again in seconds, not with the next exchange of the full state.
//!
//! - Members held for dead are pinged now and then, and told so: after a partition neither side pings the other else.
//! - A ping from a member held for suspect, dead or left is answered with that belief, so that it refutes at once.
//! - Whoever accuses us, of this incarnation or an earlier one, is told of this one.
//! - A ping from an address where nobody is known (we forgot all in a restart) begins an exchange with it.
//!
//! A packet names no sender: it is recognized by its source address. Behind address translation the rules above do
//! nothing, and the exchanges of the full state heal alone.
//! Bounds: whatever peers send, `ANSWER_COUNT_MAX` answers to accusations in `WINDOW`, one exchange with a stranger at a
//! time and in `WINDOW`, `BELIEF_COUNT_MAX` beliefs an ack.

use super::{Leave, Output, Record, Status, Swim, below, tick_after};
use crate::message::{Message, Update};
use quorate_types::{Instant, NodeId};
use std::net::SocketAddr;
use std::time::Duration;

const WINDOW: Duration = Duration::from_secs(1);
/// A pool that accuses us all at once is told by its own gossip as well.
const ANSWER_COUNT_MAX: u32 = 64;
/// Ids that failed at one address, one after the other.
const BELIEF_COUNT_MAX: usize = 4;
/// Dead members pinged at a time, and, about, how many members ping one of them each probe interval: the size of the
/// pool does not matter.
const KNOCK_COUNT: usize = 3;

#[derive(Debug)]
pub(super) struct Healing {
    knock_at: Instant,
    /// Until the reply, or until the stream is given up.
    exchange: Option<(SocketAddr, Instant)>,
    /// No exchange with a stranger before.
    exchange_at: Instant,
    answers_since: Instant,
    answer_count: u32,
}

impl Healing {
    pub(super) fn new(knock_at: Instant, now: Instant) -> Self {
        Self {
            knock_at,
            exchange: None,
            exchange_at: now,
            answers_since: now,
            answer_count: 0,
        }
    }
}

/// The belief about a member that is not alive, as it is to hear it.
fn accusation(me: NodeId, record: &Record) -> Option<Update> {
    let (member, incarnation) = (record.state.id, record.incarnation);
    match record.status {
        Status::Alive => None,
        Status::Suspect => Some(Update::Suspect {
            member,
            incarnation,
            from: me,
        }),
        Status::Dead => Some(Update::Dead {
            member,
            incarnation,
            from: me,
        }),
        Status::Left => Some(Update::Left {
            member,
            incarnation,
            from: record.left_by,
            prune: false,
        }),
    }
}

impl Swim {
    pub(super) fn next_knock_timeout(&self) -> Instant {
        if !self.config.heals_at_contact || self.dead.is_empty() || self.leave != Leave::No {
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
        // As with reconnecting: the likelier the more of the pool failed.
        if below(&mut self.knock_rng, self.live_count.max(1)) >= KNOCK_COUNT * self.dead.len() {
            return;
        }
        let mut targets: Vec<NodeId> = Vec::with_capacity(KNOCK_COUNT);
        if self.dead.len() <= KNOCK_COUNT {
            targets.extend(&self.dead);
        } else {
            let from = below(&mut self.knock_rng, self.dead.len());
            targets.extend(self.dead.iter().cycle().skip(from).take(KNOCK_COUNT));
        }
        for target in targets {
            let record = &self.members[&target];
            let to = record.state.address;
            let belief = accusation(self.me, record).expect("it is dead");
            let sequence = self.next_sequence();
            // The belief first, so that the ack carries the refutation.
            // No other news: if it was we who were cut off, what we think of the others is wrong as well.
            let messages = vec![Message::Update(belief), Message::Ping { sequence, target }];
            self.outputs.push_back(Output::Packet { to, messages });
        }
    }

    /// What whoever pings from here is to hear of itself.
    pub(super) fn beliefs_at(&self, from: SocketAddr) -> Vec<Message> {
        let from = canonical(from);
        let holders = self.holders(from);
        if holders.clone().any(|record| record.status == Status::Alive) {
            // It came from this one, not from those that failed here before it.
            return Vec::new();
        }
        holders
            .filter_map(|record| accusation(self.me, record))
            .map(Message::Update)
            .take(BELIEF_COUNT_MAX)
            .collect()
    }
    fn holders(&self, address: SocketAddr) -> impl Iterator<Item = &Record> + Clone {
        let least = NodeId(quorate_types::Uuid::from_bytes([0; 16]));
        self.addresses
            .range((address, least)..)
            .take_while(move |(other, _)| *other == address)
            .map(|(_, id)| &self.members[id])
    }

    /// A ping came from here.
    pub(super) fn meet(&mut self, now: Instant, from: SocketAddr) {
        if self.leave != Leave::No || now < self.healing.exchange_at || self.is_known_at(from) {
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
        address == self.my_record().state.address || self.holders(address).next().is_some()
    }

    /// Told once a packet: its news may accuse us many times.
    pub(super) fn answer_accusation(&mut self, now: Instant, to: SocketAddr) {
        if self.leave != Leave::No {
            return;
        }
        if now - self.healing.answers_since >= WINDOW {
            self.healing.answers_since = now;
            self.healing.answer_count = 0;
        }
        if self.healing.answer_count >= ANSWER_COUNT_MAX {
            return;
        }
        self.healing.answer_count += 1;
        let record = self.my_record();
        let (member, incarnation) = (record.state.clone(), record.incarnation);
        let messages = vec![Message::Update(Update::Alive { member, incarnation })];
        self.outputs.push_back(Output::Packet { to, messages });
    }
    pub(super) fn is_accusation(&self, message: &Message) -> bool {
        let Message::Update(update) = message else { return false };
        let is_alive = matches!(update, Update::Alive { .. });
        !is_alive && update.subject() == self.me && update.incarnation() < crate::message::INCARNATION_MAX
    }

    pub(super) fn check_healing(&self) {
        assert!(self.healing.answer_count <= ANSWER_COUNT_MAX, "answers are bounded");
        assert_eq!(
            self.addresses.len(),
            self.order.len(),
            "all but us stand under their address"
        );
        for (id, record) in &self.members {
            assert_eq!(
                self.dead.contains(id),
                record.status == Status::Dead,
                "the dead are known as such"
            );
            assert!(
                *id == self.me || self.addresses.contains(&(record.state.address, *id)),
                "a member stands under its address"
            );
        }
        assert!(self.dead.len() < self.members.len(), "only members are dead");
    }
}

/// A socket for both families shows IPv4 sources as mapped ones.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
