//! One session holds a lock for as long as its node lives; another one, of another node, waits for it.
//!
//! Setup: the holder's session, with no more than the node's own health to end it, acquires. Run: the contender tries again
//! and again. Check: it does not get the lock before the node's fault and the lock-delay after it, and gets it in time.

use crate::rt::SimRt;
use crate::scenario::NodeLock;
use crate::story::Story;
use crate::wire::Wire;
use crate::workload::session::{Attempt, SessionSpec, Sessions};
use quorate_rt::{Rt as _, Task};
use std::time::Duration;

const LOOK_INTERVAL: Duration = Duration::from_millis(200);
/// How much faster than the world's the clock of whoever times the lock-delay may run.
const CLOCK_RATIO_MIN: f64 = 0.95;

#[derive(Clone)]
pub struct NodeLocks {
    story: Story,
    sessions: Sessions,
    settings: NodeLock,
    key: String,
}

impl NodeLocks {
    pub fn new(story: &Story, wire: &Wire, settings: &NodeLock, position: usize) -> Self {
        Self {
            story: story.clone(),
            sessions: Sessions {
                story: story.clone(),
                wire: wire.clone(),
            },
            settings: settings.clone(),
            key: format!("node_lock/{position}"),
        }
    }
    pub fn start(&self, rt: &SimRt) -> Task {
        rt.spawn("workload.node_lock", self.clone().run())
    }

    /// Opens a session and acquires; both are tried until they are acknowledged.
    async fn acquire(&self, agent: &str, mut may_go_on: impl FnMut(Duration) -> bool) -> Option<String> {
        let spec = SessionSpec {
            ttl: None,
            lock_delay: Duration::from_millis(self.settings.lock_delay_ms),
            is_bound_to_node: true,
        };
        let mut session = None;
        while may_go_on(self.story.world.elapsed()) {
            if session.is_none() {
                session = self.sessions.open(agent, &spec).await;
            }
            if let Some(id) = &session
                && let Attempt::Acquired { .. } = self.sessions.acquire(agent, &self.key, id).await
            {
                return session;
            }
            self.story.world.advance(LOOK_INTERVAL).await;
        }
        None
    }

    async fn run(self) {
        let NodeLock {
            node, contender, fault, ..
        } = &self.settings;
        let story = &self.story;
        let is_well = |_| story.moment(fault).is_none() && !story.is_over();
        let Some(held) = self.acquire(node, is_well).await else {
            story.breaks(format!("{node} does not get its lock while it is well"));
            return;
        };
        let within = Duration::from_millis(self.settings.within_ms);
        let is_in_time = |now| story.moment(fault).is_none_or(|at| now < at + within) && !story.is_over();
        if self.acquire(contender, is_in_time).await.is_none() {
            story.breaks(format!(
                "the lock of {node} is not had at {contender} within {within:?} of {fault}"
            ));
            return;
        }
        let acquired_at = story.world.elapsed();
        let delay = Duration::from_millis(self.settings.lock_delay_ms).mul_f64(CLOCK_RATIO_MIN);
        match story.moment(fault) {
            Some(at) if acquired_at >= at + delay => story.count("lock.left_dead_node"),
            _ => story.breaks(format!("the lock of {node} was had at {contender} too early")),
        }
        let path = format!("/v1/session/info/{held}?consistent");
        match self.sessions.wire.json(contender, &path).await {
            Ok(found) if found.as_array().is_some_and(Vec::is_empty) => {}
            // There may be no leader just now; whoever has the lock has it by the end of the other's session.
            Err(_) => {}
            Ok(found) => story.breaks(format!("the session of {node} lasts: {found}")),
        }
    }
}
