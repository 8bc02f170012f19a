//! Membership changes for those who want to hear of them.
//!
//! Invariant: a subscriber's queue is bounded. One that does not keep up loses what waits for it and gets one `Resync`:
//! it then reads `members` again.

use quorate_types::Member;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, Weak};
use tokio::sync::Notify;

/// A pool that forms sends one event a member: this is room for a large one.
const QUEUE_COUNT_MAX: usize = 4096;

/// What happened to a member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MemberEvent {
    /// New, or back from failed or left.
    Joined(Member),
    /// Its tags, address or status (`Leaving`, or no longer) changed.
    Updated(Member),
    Failed(Member),
    Left(Member),
    /// Forgotten.
    Reaped(Member),
    /// Events were lost: read `members` again.
    Resync,
}

#[derive(Debug, Default)]
struct Subscriber {
    queue: Mutex<VecDeque<MemberEvent>>,
    notify: Notify,
}

impl Subscriber {
    fn push(&self, event: MemberEvent) {
        let mut queue = self.queue.lock().expect("no holder panics");
        if queue.len() >= QUEUE_COUNT_MAX {
            queue.clear();
            queue.push_back(MemberEvent::Resync);
        }
        queue.push_back(event);
        drop(queue);
        self.notify.notify_one();
    }
}

/// A subscription, ended by dropping it. Subscribe before reading `members`, and nothing is missed.
#[derive(Debug)]
pub struct MemberEvents(Arc<Subscriber>);

impl MemberEvents {
    /// The next event, in the order in which they were applied. Waits for ever once the pool is stopped.
    pub async fn next(&mut self) -> MemberEvent {
        loop {
            if let Some(event) = self.0.queue.lock().expect("no holder panics").pop_front() {
                return event;
            }
            self.0.notify.notified().await;
        }
    }
}

#[derive(Debug, Default)]
pub(crate) struct Subscribers(Vec<Weak<Subscriber>>);

impl Subscribers {
    pub(crate) fn subscribe(&mut self) -> MemberEvents {
        let subscriber = Arc::new(Subscriber::default());
        self.0.push(Arc::downgrade(&subscriber));
        MemberEvents(subscriber)
    }
    pub(crate) fn publish(&mut self, event: &MemberEvent) {
        self.0.retain(|subscriber| match subscriber.upgrade() {
            Some(subscriber) => {
                subscriber.push(event.clone());
                true
            }
            None => false,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt as _;

    #[test]
    fn a_slow_subscriber_is_told_to_read_the_members_again() {
        let mut subscribers = Subscribers::default();
        let mut events = subscribers.subscribe();
        drop(subscribers.subscribe());
        let member = Member {
            id: quorate_types::NodeId::default(),
            name: "n1".to_owned(),
            address: std::net::SocketAddr::from(([127, 0, 0, 1], 1)),
            tags: std::collections::BTreeMap::new(),
            status: quorate_types::MemberStatus::Alive,
        };
        for _ in 0..=QUEUE_COUNT_MAX {
            subscribers.publish(&MemberEvent::Joined(member.clone()));
        }
        assert_eq!(events.next().now_or_never(), Some(MemberEvent::Resync));
        assert_eq!(events.next().now_or_never(), Some(MemberEvent::Joined(member)));
        assert_eq!(events.next().now_or_never(), None);
        assert_eq!(subscribers.0.len(), 1, "the dropped one is gone");
    }
}
