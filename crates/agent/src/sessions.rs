//! How long sessions and lock-delays last: the leader's clock for them.
//!
//! In: what became of sessions, renewals, the time. Out: the commands that end what was not renewed, or has passed.
//! Promises: a session lasts at least its time to live after its creation, its last answered renewal, or a change of
//! leader, and ends by twice that; a renewal is answered only when leadership was confirmed after it arrived, and never
//! for a session whose end is on its way; a lock-delay lasts at least its time, and a change of leader times it anew.
//! Not here: what the end of a session does (`store`), who leads (`replica`).

use crate::router::locked;
use quorate_replica::{RaftRt, Replica, Wake};
use quorate_store::{Command, LockDelay, SessionChange, SessionCommand, SessionView, Topic};
use quorate_types::limits::SESSION_TTL_MULTIPLIER;
use quorate_types::{Instant, ModifyIndex, Session, Uuid};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Before what could not be written is tried again.
const RETRY_DELAY: Duration = Duration::from_secs(1);
/// Sessions that end by one entry of the log, so that an entry stays small.
const DUE_COUNT_MAX: usize = 64;
/// A look at the sessions without any news of them.
const LOOK_INTERVAL: Duration = Duration::from_secs(60);
/// The same, when no watch was free.
const LOOK_INTERVAL_UNWATCHED: Duration = Duration::from_secs(1);

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Timed {
    Session(Uuid),
    LockDelay(Arc<str>),
}

/// What has passed.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Due {
    Session(Uuid),
    LockDelay(Arc<str>, ModifyIndex),
}

#[derive(Debug)]
struct SessionTimer {
    /// `None`: its end is on its way, and no renewal stops it.
    ends_at: Option<Instant>,
}

#[derive(Debug)]
struct DelayTimer {
    since: ModifyIndex,
    ends_at: Instant,
}

/// Bounded by the sessions with a time to live, and by the keys in a lock-delay.
#[derive(Debug, Default)]
struct Timers {
    sessions: BTreeMap<Uuid, SessionTimer>,
    delays: BTreeMap<Arc<str>, DelayTimer>,
    /// All of these that are not due yet.
    by_end: BTreeSet<(Instant, Timed)>,
}

impl Timers {
    fn follow(&mut self, now: Instant, changes: Vec<SessionChange>) {
        for change in changes {
            match change {
                SessionChange::Created(session) => {
                    self.renew(now, &session);
                }
                SessionChange::Ended(id) => self.forget_session(id),
                SessionChange::Delayed { key, delay } => self.delay(now, key, delay),
                SessionChange::DelayEnded { key } => self.forget_delay(&key),
            }
        }
    }

    /// Whether the session lasts on.
    fn renew(&mut self, now: Instant, session: &Session) -> bool {
        if session.ttl.is_zero() {
            return true;
        }
        let renewed = now + session.ttl * SESSION_TTL_MULTIPLIER;
        match self.sessions.get_mut(&session.id) {
            Some(SessionTimer { ends_at: None }) => return false,
            Some(SessionTimer {
                ends_at: Some(ends_at), ..
            }) => {
                self.by_end.remove(&(*ends_at, Timed::Session(session.id)));
                *ends_at = renewed;
            }
            None => {
                let ends_at = Some(renewed);
                self.sessions.insert(session.id, SessionTimer { ends_at });
            }
        }
        self.by_end.insert((renewed, Timed::Session(session.id)));
        true
    }

    fn delay(&mut self, now: Instant, key: Arc<str>, LockDelay { since, delay }: LockDelay) {
        self.forget_delay(&key);
        let ends_at = now + delay;
        self.by_end.insert((ends_at, Timed::LockDelay(key.clone())));
        self.delays.insert(key, DelayTimer { since, ends_at });
    }

    fn forget_session(&mut self, id: Uuid) {
        if let Some(SessionTimer { ends_at: Some(ends_at) }) = self.sessions.remove(&id) {
            self.by_end.remove(&(ends_at, Timed::Session(id)));
        }
    }

    fn forget_delay(&mut self, key: &Arc<str>) {
        if let Some(timer) = self.delays.remove(key) {
            self.by_end.remove(&(timer.ends_at, Timed::LockDelay(key.clone())));
        }
    }

    /// What has passed; from here on it ends.
    fn take_due(&mut self, now: Instant) -> Vec<Due> {
        let mut due = Vec::new();
        while due.len() < DUE_COUNT_MAX
            && let Some((at, _)) = self.by_end.first()
            && *at <= now
        {
            match self.by_end.pop_first().expect("it was just seen").1 {
                Timed::Session(id) => {
                    let timer = self.sessions.get_mut(&id).expect("what has an end is timed");
                    timer.ends_at = None;
                    due.push(Due::Session(id));
                }
                Timed::LockDelay(key) => {
                    let timer = self.delays.get(&key).expect("what has an end is timed");
                    due.push(Due::LockDelay(key, timer.since));
                }
            }
        }
        due
    }

    /// What was due has ended.
    fn ended(&mut self, due: &[Due]) {
        for due in due {
            match due {
                Due::Session(id) => self.forget_session(*id),
                Due::LockDelay(key, since) => {
                    if self.delays.get(key).is_some_and(|timer| timer.since == *since) {
                        self.forget_delay(key);
                    }
                }
            }
        }
    }

    fn next_end(&self) -> Option<Instant> {
        self.by_end.first().map(|(at, _)| *at)
    }
}

/// The timers of the server that leads. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct SessionTimers {
    timers: Arc<Mutex<Timers>>,
}

impl SessionTimers {
    /// Begins a session's time to live anew. The caller has confirmed that this server leads.
    pub fn renew<R: RaftRt>(&self, rt: &R, replica: &Replica<R>, id: Uuid) -> Option<Arc<Session>> {
        let mut timers = locked(&self.timers);
        // Under the lock: whoever ends it marks it as ending first, so it is either renewed in time or seen as gone.
        let session = replica.snapshot().session(id)?;
        timers.renew(rt.now(), &session).then_some(session)
    }

    /// Sessions with a time to live, while this server leads.
    pub fn count(&self) -> usize {
        locked(&self.timers).sessions.len()
    }
    /// Times sessions and lock-delays, all of them from the start, and ends what passes. For as long as this server leads.
    pub async fn keep<R: RaftRt>(self, rt: R, replica: Replica<R>) {
        *locked(&self.timers) = Timers::default();
        let mut seen = SessionView::default();
        loop {
            let watch = replica.watches().register(vec![Topic::Sessions, Topic::LockDelays]);
            let snapshot = replica.snapshot();
            locked(&self.timers).follow(rt.now(), snapshot.session_changes_since(&seen));
            seen = snapshot.session_view();
            drop(snapshot);

            let due = locked(&self.timers).take_due(rt.now());
            if !due.is_empty() {
                self.end(&rt, &replica, &due).await;
                continue;
            }
            let pause = match locked(&self.timers).next_end() {
                Some(at) => at.duration_since(rt.now()).min(LOOK_INTERVAL),
                None => LOOK_INTERVAL,
            };
            match watch {
                Ok(watch) => match rt.timeout(pause, watch.wait()).await {
                    Ok(Wake::LeadershipLost | Wake::Stopped) => return,
                    Ok(Wake::Touched) | Err(_) => {}
                },
                Err(_) => rt.sleep(pause.min(LOOK_INTERVAL_UNWATCHED)).await,
            }
        }
    }

    /// Ends what is due, trying until it is written or this server leads no more.
    async fn end<R: RaftRt>(&self, rt: &R, replica: &Replica<R>, due: &[Due]) {
        let command = command(due);
        while let Err(err) = replica.write(&command).await {
            tracing::debug!(%err, count = due.len(), "what passed was not ended, trying again");
            rt.sleep(RETRY_DELAY).await;
        }
        for due in due {
            match due {
                Due::Session(id) => tracing::debug!(%id, "a session was not renewed in time"),
                Due::LockDelay(key, _) => tracing::debug!(key = &**key, "a lock-delay has passed"),
            }
        }
        locked(&self.timers).ended(due);
    }
}

fn command(due: &[Due]) -> Command {
    let mut delays = Vec::new();
    let mut commands = Vec::new();
    for due in due {
        match due {
            Due::Session(id) => commands.push(Command::Session(SessionCommand::Destroy { id: *id })),
            Due::LockDelay(key, since) => delays.push((key.to_string(), *since)),
        }
    }
    if !delays.is_empty() {
        commands.push(Command::Session(SessionCommand::EndLockDelays { delays }));
    }
    Command::Batch(commands)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session(byte: u8, ttl_secs: u64) -> Session {
        Session {
            id: Uuid::from_random_bytes([byte; 16]),
            ttl: Duration::from_secs(ttl_secs),
            ..Session::default()
        }
    }
    fn created(session: &Session) -> Vec<SessionChange> {
        vec![SessionChange::Created(Arc::new(session.clone()))]
    }
    fn delayed(key: &str, since: u64, secs: u64) -> Vec<SessionChange> {
        let delay = LockDelay {
            since: ModifyIndex(since),
            delay: Duration::from_secs(secs),
        };
        vec![SessionChange::Delayed { key: key.into(), delay }]
    }
    fn at(secs: u64) -> Instant {
        Instant::from_millis(secs * 1000)
    }

    #[test]
    fn a_session_lasts_twice_its_time_to_live_from_its_last_renewal() {
        let mut timers = Timers::default();
        let session = session(1, 10);
        timers.follow(at(0), created(&session));
        assert_eq!(timers.next_end(), Some(at(20)));
        assert_eq!(timers.take_due(at(19)), vec![]);
        assert!(timers.renew(at(19), &session));
        assert_eq!(timers.take_due(at(38)), vec![]);
        assert_eq!(timers.take_due(at(39)), vec![Due::Session(session.id)]);
        assert_eq!(timers.next_end(), None, "what is due is not due again");
    }

    #[test]
    fn a_session_whose_end_is_on_its_way_is_not_renewed() {
        let mut timers = Timers::default();
        let session = session(1, 10);
        timers.follow(at(0), created(&session));
        let due = timers.take_due(at(20));
        assert!(!timers.renew(at(20), &session));
        assert_eq!(timers.take_due(at(60)), vec![]);
        timers.ended(&due);
        assert!(timers.sessions.is_empty());
        timers.follow(at(21), vec![SessionChange::Ended(session.id)]);
    }

    #[test]
    fn a_session_without_a_time_to_live_is_not_timed_and_a_destroyed_one_no_more() {
        let mut timers = Timers::default();
        timers.follow(at(0), created(&session(1, 0)));
        assert!(timers.renew(at(5), &session(1, 0)));
        timers.follow(at(0), created(&session(2, 10)));
        timers.follow(at(1), vec![SessionChange::Ended(session(2, 10).id)]);
        assert_eq!((timers.next_end(), timers.sessions.len()), (None, 0));
    }

    #[test]
    fn a_lock_delay_passes_once_and_only_the_one_that_was_timed() {
        let mut timers = Timers::default();
        timers.follow(at(0), delayed("k", 7, 15));
        assert_eq!(timers.take_due(at(14)), vec![]);
        let due = timers.take_due(at(15));
        assert_eq!(due, vec![Due::LockDelay("k".into(), ModifyIndex(7))]);
        // A later session held the key and ended before the first delay's end was told.
        timers.follow(at(16), delayed("k", 9, 15));
        timers.ended(&due);
        assert_eq!(timers.next_end(), Some(at(31)));
        timers.follow(at(17), vec![SessionChange::DelayEnded { key: "k".into() }]);
        assert_eq!((timers.next_end(), timers.delays.len()), (None, 0));
    }

    #[test]
    fn many_that_pass_at_once_end_by_several_small_commands() {
        let mut timers = Timers::default();
        for byte in 0..100 {
            timers.follow(at(0), created(&session(byte, 10)));
        }
        timers.follow(at(0), delayed("k", 7, 20));
        let first = timers.take_due(at(20));
        assert_eq!(first.len(), DUE_COUNT_MAX);
        let rest = timers.take_due(at(20));
        assert_eq!(first.len() + rest.len(), 101);
        let Command::Batch(commands) = command(&rest) else {
            panic!("what passes ends by a batch")
        };
        assert_eq!(commands.len(), rest.len());
    }
}
