//! The events that an agent accepted, for `/v1/event/list`.
//!
//! In: `push`. Out: the last `HISTORY_COUNT_MAX`, oldest first, and the index clients wait on. Not here: whether an event
//! is for this agent (`filter`), waiting.

use crate::event::UserEvent;
use quorate_types::Uuid;
use std::collections::VecDeque;
use std::sync::Arc;

/// Consul's ring of events.
pub const HISTORY_COUNT_MAX: usize = 256;

/// The events an agent accepted, oldest first.
#[derive(Clone, Debug, Default)]
pub struct History(VecDeque<Arc<UserEvent>>);

impl History {
    pub fn push(&mut self, event: Arc<UserEvent>) {
        if self.0.len() >= HISTORY_COUNT_MAX {
            self.0.pop_front();
        }
        self.0.push_back(event);
    }
    /// All that are kept (with this name), oldest first.
    pub fn list(&self, name: Option<&str>) -> Vec<Arc<UserEvent>> {
        let is_named = |event: &&Arc<UserEvent>| name.is_none_or(|name| event.name == name);
        self.0.iter().filter(is_named).cloned().collect()
    }
}

/// The index of a list whose newest event has this id: the halves of the id, one upon the other. It has no order; a
/// client gives back the one it got.
pub fn index_of(id: Uuid) -> u64 {
    let bits = id.as_u128();
    (bits >> 64) as u64 ^ bits as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_index_is_the_one_consul_answered() {
        // Captured from Consul 1.8.7.
        for (id, index) in [
            ("feb664b2-af67-91e7-eff8-b039849996da", 1_247_167_841_031_817_021),
            ("77570f2c-bb16-6b81-f3c7-febc0a711e20", 9_552_400_413_406_754_209),
        ] {
            assert_eq!(index_of(id.parse().unwrap()), index);
        }
    }

    #[test]
    fn the_last_events_are_kept_in_order() {
        let mut history = History::default();
        for n in 0..=HISTORY_COUNT_MAX {
            history.push(Arc::new(UserEvent {
                name: if n % 2 == 0 { "even" } else { "odd" }.to_owned(),
                version: (n % 200) as u8,
                ..UserEvent::default()
            }));
        }
        assert_eq!(history.list(None).len(), HISTORY_COUNT_MAX);
        assert_eq!(history.list(None)[0].version, 1);
        assert_eq!(history.list(Some("even")).len(), HISTORY_COUNT_MAX / 2);
        assert_eq!(history.list(Some("even"))[0].version, 2);
        assert!(history.list(Some("none")).is_empty());
    }
}
