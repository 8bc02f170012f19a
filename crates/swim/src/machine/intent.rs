//! Intents: what operators want of members, and what members want themselves, in the order of Lamport time.
//!
//! Serf's rule: only the latest intent about a member counts, whatever its incarnation does meanwhile. A member that
//! hears that it is to leave, and lives, answers with the intent to stay.
//! Bounds: one intent a known member, of which an exchange tells the latest `INTENT_COUNT_MAX`; intents about unknown ones are dropped; one that is not the latest is not answered.

use super::{Event, Leave, Seat, Swim};
use crate::message::{Intent, LAMPORT_TIME_MAX, LamportTime, Status, Update};
use quorate_types::{Instant, NodeId};
use std::cmp::Reverse;

/// Operators want less than this in a day.
const INTENT_COUNT_MAX: usize = 1024;

#[derive(Clone, Copy, Debug)]
pub(super) struct LeaveIntent {
    pub(super) from: NodeId,
    pub(super) prune: bool,
}

impl Swim {
    pub(super) fn next_lamport_time(&mut self) -> LamportTime {
        self.lamport_time += 1;
        self.lamport_time
    }
    /// False for what no honest member says.
    pub(super) fn witness(&mut self, time: LamportTime) -> bool {
        if time >= LAMPORT_TIME_MAX {
            self.counters.malformed += 1;
            return false;
        }
        self.lamport_time = self.lamport_time.max(time);
        true
    }
    /// Whom it is about, when it is news.
    fn news_about(&mut self, member: NodeId, time: LamportTime) -> Option<Seat> {
        let seat = self.table.find(member)?;
        if self.intent_times.get(&seat).is_some_and(|latest| time <= *latest) || !self.witness(time) {
            return None;
        }
        self.intent_times.insert(seat, time);
        Some(seat)
    }

    pub(super) fn apply_leave_intent(
        &mut self,
        now: Instant,
        member: NodeId,
        time: LamportTime,
        from: NodeId,
        prune: bool,
    ) {
        let Some(seat) = self.news_about(member, time) else {
            return;
        };
        if seat == Seat::ME {
            if self.leave == Leave::No {
                self.counters.refutations += 1;
                let (member, time) = (self.me, self.next_lamport_time());
                self.intent_times.insert(seat, time);
                self.broadcast(Update::JoinIntent { member, time });
            }
            return;
        }
        self.broadcast(Update::LeaveIntent {
            member,
            time,
            from,
            prune,
        });
        match self.table.get(seat).status() {
            Status::Left if !prune => {}
            Status::Left | Status::Dead => self.declare_left(now, seat, from, prune),
            Status::Alive | Status::Suspect => {
                let before = self.leave_intents.insert(seat, LeaveIntent { from, prune });
                if before.is_none() {
                    self.change(Event::Leaving(self.seen(seat)));
                }
            }
        }
    }
    pub(super) fn apply_join_intent(&mut self, member: NodeId, time: LamportTime) {
        if member == self.me {
            // An echo, or a predecessor's: what we say next is later.
            self.witness(time);
            return;
        }
        let Some(seat) = self.news_about(member, time) else {
            return;
        };
        self.broadcast(Update::JoinIntent { member, time });
        if self.leave_intents.remove(&seat).is_some() {
            self.change(Event::Updated(self.seen(seat)));
        }
    }

    /// What an exchange of the state tells of intents.
    pub(super) fn intents(&self) -> Vec<Intent> {
        let intents = self.intent_times.iter().map(|(seat, time)| {
            let leave = self.leave_intents.get(seat).map(|intent| intent.from);
            let record = self.table.get(*seat);
            Intent {
                member: record.id(),
                time: *time,
                leave: match record.status() {
                    Status::Left => self.gone.get(seat).map(|gone| gone.by).filter(|by| *by != record.id()),
                    _ => leave,
                },
            }
        });
        let mut intents: Vec<Intent> = intents.collect();
        intents.sort_unstable_by_key(|intent| (Reverse(intent.time), intent.member));
        intents.truncate(INTENT_COUNT_MAX);
        intents
    }
    pub(super) fn merge_intents(&mut self, now: Instant, intents: Vec<Intent>) {
        for Intent { member, time, leave } in intents.into_iter().take(INTENT_COUNT_MAX) {
            match leave {
                Some(from) => self.apply_leave_intent(now, member, time, from, false),
                None => self.apply_join_intent(member, time),
            }
        }
    }
}
