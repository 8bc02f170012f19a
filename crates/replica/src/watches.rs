//! Who waits for which changes.
//!
//! A reader registers the topics of its question, then reads, then waits: a change between the two is not missed. It is
//! woken once: when something it watches was touched, when leadership was lost, or when the replica stops. The waiters of
//! one change wake in the order they registered. Their number is bounded.
//!
//! Not here: which topics a question has (`quorate_store`).

use quorate_store::Topic;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};
use tokio::sync::oneshot;

/// Blocking queries in flight on one server. Each costs some hundred bytes here.
const WAITER_COUNT_MAX: usize = 100_000;

/// Why a waiter woke.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wake {
    /// Something it watches was touched; the published state has it.
    Touched,
    /// This server no longer leads.
    LeadershipLost,
    Stopped,
}

/// Too many wait already.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("too many blocking queries")]
pub struct TooManyWatches;

#[derive(Debug)]
struct Waiter {
    topics: Vec<Topic>,
    wake: oneshot::Sender<Wake>,
}

#[derive(Debug, Default)]
struct Registry {
    next_id: u64,
    waiters: BTreeMap<u64, Waiter>,
    by_topic: BTreeMap<Topic, BTreeSet<u64>>,
    is_stopped: bool,
}

impl Registry {
    fn forget(&mut self, id: u64) -> Option<Waiter> {
        let waiter = self.waiters.remove(&id)?;
        for topic in &waiter.topics {
            if let Some(ids) = self.by_topic.get_mut(topic) {
                ids.remove(&id);
                if ids.is_empty() {
                    self.by_topic.remove(topic);
                }
            }
        }
        Some(waiter)
    }
    /// Adds those who must wake for `touched`, by looking topics up instead of asking every waiter.
    fn collect(&self, touched: &Topic, into: &mut BTreeSet<u64>) {
        let mut of = |topic: &Topic| into.extend(self.by_topic.get(topic).into_iter().flatten().copied());
        of(touched);
        of(&Topic::Everything);
        match touched {
            Topic::Everything => into.extend(self.waiters.keys().copied()),
            Topic::Key(key) => {
                for prefix in prefixes(key) {
                    of(&Topic::KeyPrefix(prefix.to_owned()));
                }
            }
            Topic::KeyPrefix(prefix) => {
                for shorter in prefixes(prefix) {
                    of(&Topic::KeyPrefix(shorter.to_owned()));
                }
                for (topic, ids) in self.by_topic.range(Topic::Key(prefix.clone())..) {
                    match topic {
                        Topic::Key(key) if key.starts_with(prefix.as_str()) => into.extend(ids.iter().copied()),
                        _ => break,
                    }
                }
                for (topic, ids) in self.by_topic.range(Topic::KeyPrefix(prefix.clone())..) {
                    match topic {
                        Topic::KeyPrefix(longer) if longer.starts_with(prefix.as_str()) => {
                            into.extend(ids.iter().copied());
                        }
                        _ => break,
                    }
                }
            }
            Topic::Nodes
            | Topic::Services
            | Topic::Checks
            | Topic::Node(_)
            | Topic::Service(_)
            | Topic::ServiceGone
            | Topic::Sessions
            | Topic::Session(_)
            | Topic::NodeSessions(_)
            | Topic::LockDelays
            | Topic::Coordinates => {}
        }
    }
}

/// Every prefix of a key, the empty one and itself included.
fn prefixes(key: &str) -> impl Iterator<Item = &str> {
    key.char_indices().map(|(at, _)| &key[..at]).chain(std::iter::once(key))
}

/// The registry. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Watches {
    registry: Arc<Mutex<Registry>>,
}

fn locked(registry: &Mutex<Registry>) -> MutexGuard<'_, Registry> {
    registry.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

impl Watches {
    /// Begins to watch. Read the state after this, then wait.
    pub fn register(&self, mut topics: Vec<Topic>) -> Result<Watch, TooManyWatches> {
        topics.sort();
        topics.dedup();
        let mut registry = locked(&self.registry);
        if registry.waiters.len() >= WAITER_COUNT_MAX {
            return Err(TooManyWatches);
        }
        let id = registry.next_id;
        registry.next_id += 1;
        let (wake, woken) = oneshot::channel();
        if registry.is_stopped {
            let _ = wake.send(Wake::Stopped);
        } else {
            for topic in &topics {
                registry.by_topic.entry(topic.clone()).or_default().insert(id);
            }
            registry.waiters.insert(id, Waiter { topics, wake });
        }
        Ok(Watch {
            id,
            woken,
            registry: Arc::clone(&self.registry),
        })
    }

    /// How many wait.
    pub fn count(&self) -> usize {
        locked(&self.registry).waiters.len()
    }

    /// Wakes whoever watches any of these.
    pub(crate) fn touch<'a>(&self, touched: impl IntoIterator<Item = &'a Topic>) {
        let mut registry = locked(&self.registry);
        if registry.waiters.is_empty() {
            return;
        }
        let mut ids = BTreeSet::new();
        for topic in touched {
            registry.collect(topic, &mut ids);
        }
        for id in ids {
            if let Some(waiter) = registry.forget(id) {
                // It may be about to give up: its deadline passed.
                let _ = waiter.wake.send(Wake::Touched);
            }
        }
    }

    pub(crate) fn leadership_lost(&self) {
        self.wake_all(Wake::LeadershipLost);
    }

    /// Wakes all, and from now on whoever registers.
    pub(crate) fn stop(&self) {
        locked(&self.registry).is_stopped = true;
        self.wake_all(Wake::Stopped);
    }

    fn wake_all(&self, why: Wake) {
        let mut registry = locked(&self.registry);
        registry.by_topic.clear();
        for waiter in std::mem::take(&mut registry.waiters).into_values() {
            let _ = waiter.wake.send(why);
        }
    }
}

/// A registration. Dropping it ends it.
#[derive(Debug)]
pub struct Watch {
    id: u64,
    woken: oneshot::Receiver<Wake>,
    registry: Arc<Mutex<Registry>>,
}

impl Watch {
    /// Waits until it is woken; more waiting is the same answer no more, so it is taken.
    pub async fn wait(mut self) -> Wake {
        (&mut self.woken).await.unwrap_or(Wake::Stopped)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        locked(&self.registry).forget(self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt as _;
    use proptest::prelude::*;

    fn topic() -> impl Strategy<Value = Topic> {
        let name = "[ab/é]{0,3}";
        prop_oneof![
            Just(Topic::Nodes),
            Just(Topic::Services),
            Just(Topic::Checks),
            Just(Topic::ServiceGone),
            Just(Topic::Everything),
            name.prop_map(Topic::Node),
            name.prop_map(Topic::Service),
            name.prop_map(Topic::Key),
            name.prop_map(Topic::KeyPrefix),
        ]
    }

    proptest! {
        #[test]
        fn exactly_those_wake_whose_topics_cover_what_was_touched(
            watched in prop::collection::vec(prop::collection::vec(topic(), 0..3), 0..12),
            touched in prop::collection::vec(topic(), 1..4),
        ) {
            let watches = Watches::default();
            let waiting: Vec<Watch> = watched
                .iter()
                .map(|topics| watches.register(topics.clone()).unwrap())
                .collect();
            watches.touch(&touched);
            for (topics, watch) in watched.iter().zip(waiting) {
                let must = topics.iter().any(|topic| touched.iter().any(|touched| topic.covers(touched)));
                let woken = watch.wait().now_or_never().is_some();
                // A reader that watches nothing still hears of a state that was replaced as a whole.
                let all = touched.contains(&Topic::Everything);
                prop_assert_eq!(woken, must || all, "{:?} with {:?} touched", topics, touched);
            }
            prop_assert_eq!(watches.count(), 0);
            prop_assert!(locked(&watches.registry).by_topic.is_empty());
        }
    }

    #[test]
    fn leadership_lost_wakes_all_and_a_stop_also_those_to_come() {
        let watches = Watches::default();
        let first = watches.register(vec![Topic::Nodes]).unwrap();
        watches.leadership_lost();
        assert_eq!(first.wait().now_or_never(), Some(Wake::LeadershipLost));
        let second = watches.register(vec![Topic::Nodes]).unwrap();
        watches.stop();
        assert_eq!(second.wait().now_or_never(), Some(Wake::Stopped));
        let late = watches.register(vec![Topic::Nodes]).unwrap();
        assert_eq!(late.wait().now_or_never(), Some(Wake::Stopped));
    }

    #[test]
    fn waiters_beyond_the_bound_are_refused() {
        let watches = Watches::default();
        let all: Vec<Watch> = (0..WAITER_COUNT_MAX)
            .map(|_| watches.register(vec![Topic::Nodes]).unwrap())
            .collect();
        assert_eq!(watches.register(vec![]).err(), Some(TooManyWatches));
        drop(all);
        assert!(watches.register(vec![]).is_ok());
    }
}
