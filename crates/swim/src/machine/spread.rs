//! Spreading news: rounds of gossip, packets filled up with what waits, and attempts to reach the failed again.

use super::table::Record;
use super::{Event, Leave, Output, Seat, Swim, below, shuffle};
use crate::message::{Message, Status};
use quorate_types::Instant;
use rand_chacha::ChaCha8Rng;
use std::net::SocketAddr;

/// Pools up to this size are looked at as a whole, so that no fitting member is missed.
const ALL_COUNT_MAX: usize = 16;

impl Swim {
    /// Up to `count` members that `accept` takes, at random among the live ones and, with `with_dead`, those that died
    /// lately.
    pub(super) fn pick(
        &self,
        rng: &mut ChaCha8Rng,
        count: usize,
        with_dead: bool,
        accept: impl Fn(Seat, &Record) -> bool,
    ) -> Vec<(Seat, SocketAddr)> {
        let mut picked: Vec<(Seat, SocketAddr)> = Vec::with_capacity(count);
        let live_count = self.table.live_count();
        let total = live_count + if with_dead { self.recently_dead.len() } else { 0 };
        if count == 0 || total == 0 {
            return picked;
        }
        let mut consider = |nth: usize| {
            let seat = match nth.checked_sub(live_count) {
                None => self.table.live(nth),
                Some(nth) => {
                    let (at, seat) = self.recently_dead[nth];
                    // It may be back, or have gone again since.
                    if self.gone.get(&seat).is_none_or(|gone| gone.at != at) {
                        return true;
                    }
                    seat
                }
            };
            let record = self.table.get(seat);
            if accept(seat, record) && !picked.iter().any(|(other, _)| *other == seat) {
                picked.push((seat, record.address()));
            }
            picked.len() < count
        };
        if total <= ALL_COUNT_MAX {
            let mut order: [usize; ALL_COUNT_MAX] = std::array::from_fn(|nth| nth);
            shuffle(rng, &mut order[..total]);
            for nth in &order[..total] {
                if !consider(*nth) {
                    break;
                }
            }
        } else {
            for _ in 0..8 * count + 16 {
                if !consider(below(rng, total)) {
                    break;
                }
            }
        }
        picked
    }

    pub(super) fn note_recently_dead(&mut self, now: Instant, seat: Seat) {
        self.forget_long_dead(now);
        if self.recently_dead.len() >= self.config.member_count_max {
            self.recently_dead.pop_front();
        }
        self.recently_dead.push_back((now, seat));
    }
    fn forget_long_dead(&mut self, now: Instant) {
        let time = self.config.gossip_to_the_dead_time;
        while self.recently_dead.front().is_some_and(|(at, _)| now - *at > time) {
            self.recently_dead.pop_front();
        }
    }

    pub(super) fn gossip(&mut self, now: Instant) {
        if self.broadcasts.is_empty() && !self.has_payload {
            return;
        }
        self.forget_long_dead(now);
        let mut rng = self.gossip_rng.clone();
        let peers = self.pick(&mut rng, self.config.gossip_node_count, true, |_, record| {
            record.status() != Status::Left
        });
        self.gossip_rng = rng;
        for (_, to) in peers {
            let mut messages = Vec::new();
            self.fill(&mut messages);
            if messages.is_empty() && !self.has_payload {
                break;
            }
            self.outputs.push_back(Output::Packet { to, messages });
        }
    }
    /// Adds as many waiting updates as still fit the packet.
    pub(super) fn fill(&mut self, messages: &mut Vec<Message>) {
        if !self.broadcasts.is_empty() {
            let free = self.free_len_bytes(messages);
            let limit = self.transmit_limit();
            self.broadcasts.take(free, limit, messages);
        }
        if matches!(self.leave, Leave::Until(_)) && !self.broadcasts.contains(self.me) {
            self.end_leave();
        }
    }
    /// Sends a message with as much news as fits.
    pub(super) fn send(&mut self, to: SocketAddr, message: Message) {
        let mut messages = vec![message];
        self.fill(&mut messages);
        self.outputs.push_back(Output::Packet { to, messages });
    }
    pub(super) fn end_leave(&mut self) {
        self.leave = Leave::Sent;
        self.emit(Event::LeaveSent);
    }
    /// Serf's rule: one failed member at random, the likelier the more of the pool failed.
    pub(super) fn reconnect(&mut self) {
        if self.leave != Leave::No {
            return;
        }
        let failed_count = self.table.dead_count();
        let live_count = self.live_count().max(1);
        if failed_count == 0 || below(&mut self.stream_rng, live_count) >= failed_count {
            return;
        }
        let nth = below(&mut self.stream_rng, failed_count);
        let to = self.table.get(self.table.dead(nth)).address();
        self.outputs.push_back(Output::PushPull { to });
    }
}
