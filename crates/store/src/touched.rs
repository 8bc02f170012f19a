//! What a command touched, gathered while it applies.
//!
//! In: topics, in any order and with repeats. Out: a sorted list without repeats.
//! Promises: the list covers every topic put in; at most [`KEY_TOPIC_COUNT_MAX`] of it name keys or prefixes (beyond
//! that, one topic stands for all keys), so that one large transaction does not make a wake-up of unbounded size.

use crate::query::Topic;
use std::collections::BTreeSet;

/// Above this, waking every reader of keys costs less than telling them apart.
pub(crate) const KEY_TOPIC_COUNT_MAX: usize = 4096;

#[derive(Debug, Default)]
pub(crate) struct Touched {
    topics: BTreeSet<Topic>,
    keys: BTreeSet<Topic>,
    every_key: bool,
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
