//! What a command touched, gathered while it applies.
//!
//! In: topics, in any order and with repeats. Out: a sorted list without repeats. And what the catalog lost, which ends the
//! sessions that depend on it.
//! Promises: the list covers every topic put in; at most [`KEY_TOPIC_COUNT_MAX`] of it name keys or prefixes (beyond
//! that, one topic stands for all keys), so that one large transaction does not make a wake-up of unbounded size.

use crate::query::Topic;
use std::collections::BTreeSet;
use std::sync::Arc;

/// Above this, waking every reader of keys costs less than telling them apart.
pub(crate) const KEY_TOPIC_COUNT_MAX: usize = 4096;

#[derive(Debug, Default)]
pub(crate) struct Touched {
    topics: BTreeSet<Topic>,
    keys: BTreeSet<Topic>,
    every_key: bool,
    lost: Lost,
}

/// What sessions depend on and the catalog has no more. Names of nodes are folded.
#[derive(Debug, Default)]
pub(crate) struct Lost {
    pub(crate) nodes: BTreeSet<Arc<str>>,
    /// Checks that turned critical or are gone, each with its node.
    pub(crate) checks: BTreeSet<(Arc<str>, String)>,
}

impl Touched {
    pub(crate) fn insert(&mut self, topic: Topic) {
        match topic {
            Topic::Key(_) | Topic::KeyPrefix(_) if self.every_key => {}
            Topic::Key(_) | Topic::KeyPrefix(_) => {
                self.keys.insert(topic);
                if self.keys.len() > KEY_TOPIC_COUNT_MAX {
                    self.keys = BTreeSet::from([Topic::KeyPrefix(String::new())]);
                    self.every_key = true;
                }
            }
            topic => {
                self.topics.insert(topic);
            }
        }
    }

    pub(crate) fn lose_node(&mut self, node: &Arc<str>) {
        self.lost.nodes.insert(node.clone());
    }
    pub(crate) fn lose_check(&mut self, node: &Arc<str>, check: &str) {
        self.lost.checks.insert((node.clone(), check.to_owned()));
    }
    /// What was lost since this was asked last.
    pub(crate) fn take_lost(&mut self) -> Lost {
        std::mem::take(&mut self.lost)
    }

    /// Adds all that another list holds. Nothing in that was lost that was not taken.
    pub(crate) fn absorb(&mut self, other: Self) {
        for topic in other.topics.into_iter().chain(other.keys) {
            self.insert(topic);
        }
    }

    pub(crate) fn into_sorted(mut self) -> Vec<Topic> {
        self.topics.append(&mut self.keys);
        self.topics.into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topics_come_out_sorted_without_repeats() {
        let mut touched = Touched::default();
        for topic in [
            Topic::Key("b".into()),
            Topic::Nodes,
            Topic::Key("a".into()),
            Topic::Nodes,
        ] {
            touched.insert(topic);
        }
        let sorted = vec![Topic::Nodes, Topic::Key("a".into()), Topic::Key("b".into())];
        assert_eq!(touched.into_sorted(), sorted);
    }

    #[test]
    fn too_many_keys_become_one_topic_that_covers_them() {
        let mut touched = Touched::default();
        touched.insert(Topic::Services);
        for n in 0..=KEY_TOPIC_COUNT_MAX + 5 {
            touched.insert(Topic::Key(format!("k/{n}")));
        }
        let topics = touched.into_sorted();
        assert_eq!(topics, vec![Topic::Services, Topic::KeyPrefix(String::new())]);
        assert!(topics.iter().any(|topic| Topic::Key("k/7".into()).covers(topic)));
    }
}
