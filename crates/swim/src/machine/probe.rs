//! Probing: is the next member in the round still there?
//!
//! ```text
//!   ping ── ack ─────────────────────────────────────────────────> healthy
//!     └ probe_timeout ─> ping_req to k others, ping over a stream ── ack ─> healthy
//!                           └ probe_interval * (awareness + 1) ── the stream answered ─> healthy, told as StreamOnly
//!                                                              └─ nothing ─> suspect; missing nacks worsen awareness
//! ```
//!
//! A relay is a ping for another member's ping_req. Bound: `RELAY_COUNT_MAX` of them; more are refused and counted.

use super::{Event, Leave, Output, Seat, Swim, tick_after};
use crate::message::{Message, Status, Update};
use quorate_types::{Incarnation, Instant, NodeId};
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

/// In one probe timeout a member is asked by a few others; thousands mean a flood.
const RELAY_COUNT_MAX: usize = 1024;

#[derive(Clone, Debug)]
pub(super) struct Probe {
    sequence: u64,
    target: NodeId,
    seat: Seat,
    address: SocketAddr,
    incarnation: Incarnation,
    started_at: Instant,
    /// When others are asked; `None` once they were.
    indirect_at: Option<Instant>,
    deadline_at: Instant,
    asked: BTreeSet<SocketAddr>,
    nacked: BTreeSet<SocketAddr>,
    stream_answered: bool,
}

impl Probe {
    pub(super) fn target(&self) -> NodeId {
        self.target
    }
    /// Others were asked, too, and nobody said anything yet.
    pub(super) fn is_unheard(&self) -> bool {
        self.indirect_at.is_none() && self.nacked.is_empty() && !self.stream_answered
    }
    pub(super) fn delay(&mut self, by: Duration) {
        self.deadline_at += by;
        if let Some(indirect_at) = &mut self.indirect_at {
            *indirect_at += by;
        }
    }
}

#[derive(Clone, Debug)]
pub(super) struct Relay {
    requester: SocketAddr,
    requester_sequence: u64,
    target: NodeId,
    expires_at: Instant,
}

impl Swim {
    pub(super) fn next_probe_timeout(&self) -> Instant {
        let relay_at = self
            .relays
            .values()
            .next()
            .map_or(Instant::FAR_FUTURE, |relay| relay.expires_at);
        let probe_at = match &self.probe {
            Some(probe) => probe.indirect_at.unwrap_or(probe.deadline_at).min(probe.deadline_at),
            None if self.leave != Leave::No || self.table.live_count() == 0 => Instant::FAR_FUTURE,
            None => self.probe_at,
        };
        let nack_at = self.nacks.front().map_or(Instant::FAR_FUTURE, |(nack_at, _)| *nack_at);
        relay_at.min(nack_at).min(probe_at)
    }

    pub(super) fn drive_probe(&mut self, now: Instant) {
        while let Some((_, sequence)) = self.nacks.front().copied().filter(|(nack_at, _)| *nack_at <= now) {
            self.nacks.pop_front();
            if let Some(relay) = self.relays.get(&sequence) {
                let (requester, sequence) = (relay.requester, relay.requester_sequence);
                self.send(requester, Message::Nack { sequence });
            }
        }
        while let Some(entry) = self.relays.first_entry().filter(|entry| entry.get().expires_at <= now) {
            entry.remove();
        }
        if let Some(probe) = &self.probe {
            if now >= probe.deadline_at {
                self.end_probe(now);
            } else if probe.indirect_at.is_some_and(|indirect_at| now >= indirect_at) {
                self.ask_others();
            }
        }
        if self.probe.is_none() && self.leave == Leave::No && now >= self.probe_at {
            self.probe_at = tick_after(self.probe_at, self.config.probe_interval, now);
            self.begin_probe(now);
        }
    }

    fn begin_probe(&mut self, now: Instant) {
        let Some(seat) = self.table.next_target(&mut self.probe_rng) else {
            return;
        };
        let record = self.table.get(seat);
        let (target, address) = (record.id(), record.address());
        let (incarnation, status) = (record.incarnation(), record.status());
        let sequence = self.next_sequence();
        let deadline_at = now + self.awareness.scale(self.config.probe_interval);
        self.probe = Some(Probe {
            sequence,
            target,
            seat,
            address,
            incarnation,
            started_at: now,
            // Not scaled: waiting longer does not help a lost datagram, but leaves less time for the other ways.
            indirect_at: Some(now + self.config.probe_timeout),
            deadline_at,
            asked: BTreeSet::new(),
            nacked: BTreeSet::new(),
            stream_answered: false,
        });
        self.counters.probes += 1;
        let ping = Message::Ping { sequence, target };
        if self.config.buddy && status == Status::Suspect {
            // Lifeguard's buddy system: a suspect hears of the suspicion with the ping, and can refute it first of all.
            let from = self.me;
            let suspect = Message::Update(Update::Suspect {
                member: target,
                incarnation,
                from,
            });
            let mut messages = vec![ping, suspect];
            self.fill(&mut messages);
            self.outputs.push_back(Output::Packet { to: address, messages });
        } else {
            self.send(address, ping);
        }
    }
    pub(super) fn next_sequence(&mut self) -> u64 {
        let sequence = self.sequence_next;
        self.sequence_next += 1;
        sequence
    }

    fn ask_others(&mut self) {
        let Some(mut probe) = self.probe.take() else { return };
        probe.indirect_at = None;
        let Probe {
            sequence,
            target,
            address,
            ..
        } = probe;
        let mut rng = self.probe_rng.clone();
        let peers = self.pick(&mut rng, self.config.indirect_check_count, false, |_, record| {
            record.id() != target && record.status() == Status::Alive
        });
        self.probe_rng = rng;
        let wants_nack = self.config.lha_probe;
        probe.asked = peers.iter().map(|(_, to)| *to).collect();
        if self.config.stream_probe {
            self.outputs.push_back(Output::StreamProbe {
                to: address,
                target,
                sequence,
                deadline_at: probe.deadline_at,
            });
        }
        self.probe = Some(probe);
        for (_, to) in peers {
            self.send(
                to,
                Message::PingReq {
                    sequence,
                    target,
                    address,
                    wants_nack,
                },
            );
        }
    }
    fn end_probe(&mut self, now: Instant) {
        let Some(probe) = self.probe.take() else { return };
        if probe.stream_answered {
            self.awareness.improve();
            self.links.missed(now, probe.target);
            return self.emit(Event::StreamOnly { member: probe.target });
        }
        self.counters.probes_failed += 1;
        // Members asked in vain that do not even nack are the more likely missing because of us.
        let missing = match probe.asked.len() {
            0 => 1,
            asked => asked - probe.nacked.len(),
        };
        self.awareness.worsen(u32::try_from(missing).unwrap_or(u32::MAX));
        if self.withholds_accusation(now, probe.asked.len(), probe.nacked.len()) {
            return;
        }
        let me = self.me;
        self.apply_suspect(now, probe.target, probe.incarnation, me);
    }

    pub(super) fn handle_ping(&mut self, now: Instant, from: SocketAddr, sequence: u64, target: NodeId) {
        // Meant for a former holder of this address: answering would keep a dead member alive.
        if target != self.me {
            return;
        }
        let mut messages = vec![Message::Ack { sequence, target }];
        messages.extend(self.coordinate().map(Message::Coordinate));
        self.greet(now, from, &mut messages);
        self.fill(&mut messages);
        self.outputs.push_back(Output::Packet { to: from, messages });
    }
    pub(super) fn handle_ping_req(
        &mut self,
        now: Instant,
        requester: SocketAddr,
        requester_sequence: u64,
        target: NodeId,
        address: SocketAddr,
        wants_nack: bool,
    ) {
        if self.relays.len().max(self.nacks.len()) >= RELAY_COUNT_MAX {
            self.counters.relays_refused += 1;
            return;
        }
        let sequence = self.next_sequence();
        self.relays.insert(
            sequence,
            Relay {
                requester,
                requester_sequence,
                target,
                expires_at: now + self.config.probe_timeout,
            },
        );
        if wants_nack {
            // Lifeguard's share of the timeout, so that the nack arrives before the requester's own deadline.
            let nack_at = now + self.config.probe_timeout * 4 / 5;
            self.nacks.push_back((nack_at, sequence));
        }
        self.send(address, Message::Ping { sequence, target });
    }
    /// Answers the round trip of a probe that its target itself answered in time.
    pub(super) fn handle_ack(
        &mut self,
        now: Instant,
        from: SocketAddr,
        sequence: u64,
        target: NodeId,
    ) -> Option<(NodeId, Duration)> {
        let acked = self
            .probe
            .take_if(|probe| probe.sequence == sequence && probe.target == target);
        if let Some(probe) = acked {
            self.awareness.improve();
            self.hear_answer(now);
            let is_direct = probe.indirect_at.is_some() && probe.address == from;
            if from == probe.address {
                self.links.reached(target);
                // Still its own: with a member that is forgotten, its probe ends.
                let record = self.table.get_mut(probe.seat);
                if !record.is_met {
                    record.is_met = true;
                }
            } else {
                self.links.missed(now, target);
            }
            return is_direct.then(|| (target, now - probe.started_at));
        }
        if self.relays.get(&sequence).is_some_and(|relay| relay.target == target) {
            let relay = self.relays.remove(&sequence).expect("looked up above");
            let sequence = relay.requester_sequence;
            self.send(relay.requester, Message::Ack { sequence, target });
            return None;
        }
        self.handle_link_ack(now, sequence, target);
        None
    }
    pub(super) fn handle_nack(&mut self, now: Instant, sequence: u64, from: SocketAddr) {
        if let Some(probe) = &mut self.probe
            && probe.sequence == sequence
            && probe.asked.contains(&from)
        {
            probe.nacked.insert(from);
            self.hear_answer(now);
        }
    }
    /// Whether the target of an `Output::StreamProbe` answered over its stream.
    pub fn handle_stream_probe(&mut self, now: Instant, sequence: u64, is_answered: bool) {
        self.advance(now);
        if let Some(probe) = &mut self.probe
            && probe.sequence == sequence
        {
            probe.stream_answered |= is_answered;
            if is_answered {
                self.hear_answer(now);
            }
        }
    }

    pub(super) fn check_probes(&self) {
        assert!(self.relays.len() <= RELAY_COUNT_MAX, "relays are bounded");
        assert!(self.nacks.len() <= RELAY_COUNT_MAX, "nacks are bounded");
        if let Some(probe) = &self.probe {
            assert_eq!(
                self.table.find(probe.target),
                Some(probe.seat),
                "the probed member is known"
            );
            assert!(probe.nacked.is_subset(&probe.asked), "only those asked nack");
        }
    }
}
