//! Clients that compete for a few locks, each with a session of its own, and end in every way there is: they release the
//! lock, destroy the session, or fall silent.
//!
//! Setup: none. Run: each client opens a session, tries until it has a lock or gives up, holds it while renewing, ends. Check:
//! of every lock, that its tenures have one holder at a time (`invariant::holders`).

use crate::invariant::holders::{self, End, Tenure};
use crate::rt::SimRt;
use crate::scenario::Locks;
use crate::story::Story;
use crate::wire::Wire;
use crate::workload::session::{Attempt, SessionSpec, Sessions};
use quorate_rt::{Rng, Rt as _, Task};
use rand_core::Rng as _;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// The shortest that agents take. Sessions last twice as long.
const TTL: Duration = Duration::from_secs(10);
const LIFE: Duration = Duration::from_secs(20);
/// Attempts at one lock, before a client tries another with a new session.
const ATTEMPT_COUNT_MAX: u64 = 40;

/// The workload. Clones are the same one.
#[derive(Clone)]
pub struct LockClients {
    story: Story,
    sessions: Sessions,
    settings: Arc<Locks>,
    prefix: Arc<str>,
    at: Arc<[String]>,
    lock_delay: Duration,
    tenures: Arc<Mutex<BTreeMap<String, Vec<Tenure>>>>,
}

/// A session, and when it was last renewed for sure.
struct Held {
    id: String,
    renewed_at: Duration,
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).expect("a world ends before 584 years")
}

impl LockClients {
    pub fn new(story: &Story, wire: &Wire, settings: &Locks, position: usize) -> Self {
        let mut rng = story.world.scenario_rng(&format!("workload.{position}"));
        let wire = wire.with_timeout(Duration::from_millis(settings.timeout_ms));
        Self {
            story: story.clone(),
            sessions: Sessions {
                story: story.clone(),
                wire,
            },
            settings: Arc::new(settings.clone()),
            prefix: format!("locks/{position}").into(),
            at: story.resolve_all(&settings.at, &mut rng).into(),
            lock_delay: Duration::from_millis(settings.lock_delay_ms.draw(&mut rng)),
            tenures: Arc::default(),
        }
    }
    /// Starts the clients on the users' machine; they end with the story.
    pub fn start(&self, rt: &SimRt) -> Vec<Task> {
        let clients = 0..self.settings.clients;
        clients
            .map(|client| rt.spawn("workload.locks", self.clone().run(client)))
            .collect()
    }
    pub fn keys(&self) -> impl Iterator<Item = String> {
        let prefix = Arc::clone(&self.prefix);
        (0..self.settings.locks).map(move |lock| format!("{prefix}/{lock}"))
    }
    fn tenures(&self) -> MutexGuard<'_, BTreeMap<String, Vec<Tenure>>> {
        self.tenures.lock().unwrap_or_else(PoisonError::into_inner)
    }
    fn spec(&self) -> SessionSpec {
        SessionSpec {
            ttl: Some(TTL),
            lock_delay: self.lock_delay,
            is_bound_to_node: false,
        }
    }
    fn agent(&self, rng: &mut Rng) -> &str {
        &self.at[rng.next_u32() as usize % self.at.len()]
    }
    async fn pause(&self, rng: &mut Rng) {
        let pause = self.settings.pause_ms.draw(rng);
        self.story.world.advance(Duration::from_millis(pause)).await;
    }

    async fn run(self, client: u64) {
        let mut rng = self.story.world.scenario_rng(&format!("{}/{client}", self.prefix));
        while !self.story.is_over() {
            self.pause(&mut rng).await;
            let called_at = self.story.world.elapsed();
            let opened = self.sessions.open(self.agent(&mut rng), &self.spec()).await;
            let Some(id) = opened else { continue };
            let mut session = Held {
                id,
                renewed_at: called_at,
            };
            let key = format!("{}/{}", self.prefix, rng.next_u64() % self.settings.locks);
            let holder = format!("client {client} by {}", session.id);
            if let Some(position) = self.compete(&mut session, &key, &holder, &mut rng).await {
                self.hold(&mut session, &key, position, &mut rng).await;
            } else {
                self.sessions.destroy(self.agent(&mut rng), &session.id).await;
            }
        }
    }

    async fn renew_in_time(&self, session: &mut Held, rng: &mut Rng) -> bool {
        let called_at = self.story.world.elapsed();
        if called_at - session.renewed_at < TTL / 2 {
            return false;
        }
        let is_renewed = self.sessions.renew(self.agent(rng), &session.id).await;
        if is_renewed {
            session.renewed_at = called_at;
        }
        is_renewed
    }

    /// Tries to get the lock; the position of its tenure.
    async fn compete(&self, session: &mut Held, key: &str, holder: &str, rng: &mut Rng) -> Option<usize> {
        for _ in 0..ATTEMPT_COUNT_MAX {
            if self.story.is_over() {
                return None;
            }
            self.renew_in_time(session, rng).await;
            let called_at = self.story.world.elapsed();
            match self.sessions.acquire(self.agent(rng), key, &session.id).await {
                Attempt::Acquired { index, lock_index } => {
                    self.story.count("lock.acquired");
                    let tenure = Tenure {
                        holder: holder.to_owned(),
                        called_at: nanos(called_at),
                        returned_at: nanos(self.story.world.elapsed()),
                        index,
                        lock_index,
                        ends: vec![self.expiry(session)],
                    };
                    let mut tenures = self.tenures();
                    let of_key = tenures.entry(key.to_owned()).or_default();
                    of_key.push(tenure);
                    return Some(of_key.len() - 1);
                }
                Attempt::Refused => self.story.count("lock.refused"),
                Attempt::Failed => {}
                // It may hold the lock, and does not know: nobody acts on that.
                Attempt::Unknown => {
                    self.story.count("lock.unknown");
                    return None;
                }
            }
            self.pause(rng).await;
        }
        None
    }
    /// The earliest end of a session that is not renewed again.
    fn expiry(&self, session: &Held) -> End {
        End::Lost {
            from: nanos(session.renewed_at),
            after: nanos(LIFE),
            delay: nanos(self.lock_delay),
        }
    }

    async fn hold(&self, session: &mut Held, key: &str, position: usize, rng: &mut Rng) {
        let until = self.story.world.elapsed() + Duration::from_millis(self.settings.hold_ms.draw(rng));
        let change = |what: &dyn Fn(&mut Tenure)| {
            what(&mut self.tenures().get_mut(key).expect("it was acquired")[position]);
        };
        while self.story.world.elapsed() < until && !self.story.is_over() {
            if self.renew_in_time(session, rng).await {
                change(&|tenure| tenure.ends[0] = self.expiry(session));
            }
            self.pause(rng).await;
        }
        let called_at = nanos(self.story.world.elapsed());
        match rng.next_u32() % 4 {
            0 | 1 => {
                change(&|tenure| tenure.ends.push(End::Released { called_at }));
                match self.sessions.release(self.agent(rng), key, &session.id).await {
                    Some(true) => self.story.count("lock.released"),
                    Some(false) => self.story.count("lock.was_lost"),
                    None => {}
                }
                // By then it holds nothing, or may hold it yet by a release that is on its way.
                self.sessions.destroy(self.agent(rng), &session.id).await;
            }
            2 => {
                let end = End::Lost {
                    from: called_at,
                    after: 0,
                    delay: nanos(self.lock_delay),
                };
                change(&|tenure| tenure.ends.push(end));
                self.sessions.destroy(self.agent(rng), &session.id).await;
                self.story.count("lock.destroyed");
            }
            _ => self.story.count("lock.abandoned"),
        }
    }

    /// Whether the lock can be had at this agent: after the faults, and after those who fell silent, everybody can.
    pub async fn can_be_had(&self, agent: &str, key: &str) -> bool {
        let spec = SessionSpec {
            lock_delay: Duration::ZERO,
            ..self.spec()
        };
        let Some(session) = self.sessions.open(agent, &spec).await else {
            return false;
        };
        let attempt = self.sessions.acquire(agent, key, &session).await;
        let is_destroyed = self.sessions.destroy(agent, &session).await;
        matches!(attempt, Attempt::Acquired { .. }) && is_destroyed
    }
    /// After the run.
    pub fn check(&self) {
        let tenures = self.tenures().clone();
        for (key, mut tenures) in tenures {
            let judged = holders::check(&tenures).map_err(|what| format!("{key}: {what}"));
            self.story.holds("one_holder", judged);
            tenures.sort_by_key(|tenure| tenure.index);
            for pair in tenures.windows(2) {
                if !pair[0].ends.iter().any(|end| matches!(end, End::Released { .. })) {
                    self.story.count("lock.taken_over");
                }
            }
        }
    }
}
