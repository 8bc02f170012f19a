//! User events and queries for those who want to hear of them, and the answers to those asked here.
//!
//! Invariants: every queue is bounded. Of events the oldest are dropped for one who does not keep up: each stands for
//! itself, and there is nothing to read again. Of queries the newest are: who asked has stopped waiting for the rest.
//! Not here: order, deduplication, deadlines (`user-events`).

use quorate_types::{Instant, NodeId};
use quorate_user_events::{Query, QueryId, UserEvent};
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, Weak};
use tokio::sync::Notify;

/// As many events as a member keeps for exchanges.
const EVENT_COUNT_MAX: usize = 1024;
const QUERY_COUNT_MAX: usize = 64;

/// A queue between the state machine and one task.
#[derive(Debug)]
struct Queue<T> {
    items: Mutex<(VecDeque<T>, bool)>,
    notify: Notify,
}

impl<T> Queue<T> {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            items: Mutex::new((VecDeque::new(), false)),
            notify: Notify::new(),
        })
    }
    fn with(&self, change: impl FnOnce(&mut VecDeque<T>, &mut bool)) {
        let mut items = self.items.lock().expect("no holder panics");
        let (queue, is_ended) = &mut *items;
        change(queue, is_ended);
        drop(items);
        self.notify.notify_one();
    }
    async fn next(&self) -> Option<T> {
        loop {
            {
                let mut items = self.items.lock().expect("no holder panics");
                if let Some(item) = items.0.pop_front() {
                    return Some(item);
                }
                if items.1 {
                    return None;
                }
            }
            self.notify.notified().await;
        }
    }
}

/// A subscription to all user events, fired here or elsewhere, ended by dropping it.
#[derive(Debug)]
pub struct UserEvents(Arc<Queue<Arc<UserEvent>>>);

impl UserEvents {
    /// The next event. Waits for ever once the pool is stopped.
    pub async fn next(&mut self) -> Arc<UserEvent> {
        self.0.next().await.expect("a subscription does not end by itself")
    }
}

/// A query to this member.
#[derive(Clone, Debug)]
pub struct IncomingQuery {
    pub query: Arc<Query>,
    /// Later answers count no more.
    pub ends_at: Instant,
}

/// The queries of one name, asked here or elsewhere. Ended by dropping it.
#[derive(Debug)]
pub struct IncomingQueries(Arc<Queue<IncomingQuery>>);

impl IncomingQueries {
    /// The next query. Waits for ever once the pool is stopped.
    pub async fn next(&mut self) -> IncomingQuery {
        self.0.next().await.expect("a subscription does not end by itself")
    }
}

/// What a member said to a query asked here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum QueryReply {
    /// The query arrived.
    Ack { from: NodeId },
    /// The member's answer.
    Response { from: NodeId, payload: Vec<u8> },
}

/// The replies to a query asked here, as they arrive. Dropping it gives the query up.
#[derive(Debug)]
pub struct QueryReplies(Arc<Queue<QueryReply>>);

impl QueryReplies {
    /// The next reply; `None` once all live members have answered, or the time is over.
    pub async fn next(&mut self) -> Option<QueryReply> {
        self.0.next().await
    }
}

/// Who wants to hear of what.
#[derive(Debug, Default)]
pub(crate) struct Listeners {
    events: Vec<Weak<Queue<Arc<UserEvent>>>>,
    queries: BTreeMap<String, Weak<Queue<IncomingQuery>>>,
    asked: BTreeMap<QueryId, Weak<Queue<QueryReply>>>,
}

impl Listeners {
    pub(crate) fn subscribe(&mut self) -> UserEvents {
        let queue = Queue::new();
        self.events.push(Arc::downgrade(&queue));
        UserEvents(queue)
    }
    /// One listener a name: a newer one takes an older one's place.
    pub(crate) fn listen(&mut self, name: &str) -> IncomingQueries {
        let queue = Queue::new();
        self.queries.insert(name.to_owned(), Arc::downgrade(&queue));
        IncomingQueries(queue)
    }
    pub(crate) fn asked(&mut self, query: QueryId) -> QueryReplies {
        let queue = Queue::new();
        self.asked.insert(query, Arc::downgrade(&queue));
        QueryReplies(queue)
    }
    pub(crate) fn publish(&mut self, event: &Arc<UserEvent>) {
        self.events.retain(|subscriber| match subscriber.upgrade() {
            Some(queue) => {
                queue.with(|events, _| {
                    if events.len() >= EVENT_COUNT_MAX {
                        events.pop_front();
                    }
                    events.push_back(Arc::clone(event));
                });
                true
            }
            None => false,
        });
    }
    pub(crate) fn publish_query(&mut self, query: IncomingQuery) {
        if let Some(queue) = self.queries.get(&query.query.name).and_then(Weak::upgrade) {
            queue.with(|queries, _| {
                if queries.len() < QUERY_COUNT_MAX {
                    queries.push_back(query);
                }
            });
        } else {
            self.queries.remove(&query.query.name);
        }
    }
    /// False when nobody waits for it any more. As many as there are members, so bounded by the state machine.
    pub(crate) fn reply(&mut self, query: QueryId, reply: QueryReply) -> bool {
        match self.asked.get(&query).and_then(Weak::upgrade) {
            Some(queue) => {
                queue.with(|replies, _| replies.push_back(reply));
                true
            }
            None => {
                self.asked.remove(&query);
                false
            }
        }
    }
    pub(crate) fn end(&mut self, query: QueryId) {
        if let Some(queue) = self.asked.remove(&query).and_then(|queue| queue.upgrade()) {
            queue.with(|_, is_ended| *is_ended = true);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt as _;

    fn event(n: u8) -> Arc<UserEvent> {
        Arc::new(UserEvent {
            version: n,
            ..UserEvent::default()
        })
    }

    #[test]
    fn a_slow_subscriber_loses_the_oldest_events() {
        let mut listeners = Listeners::default();
        let mut events = listeners.subscribe();
        drop(listeners.subscribe());
        listeners.publish(&event(1));
        for _ in 0..EVENT_COUNT_MAX {
            listeners.publish(&event(2));
        }
        assert_eq!(events.next().now_or_never(), Some(event(2)));
        assert_eq!(listeners.events.len(), 1, "the dropped one is gone");
    }

    #[test]
    fn replies_end_when_the_query_does_and_a_dropped_one_is_given_up() {
        let mut listeners = Listeners::default();
        let mut replies = listeners.asked(QueryId(1));
        let reply = QueryReply::Ack {
            from: NodeId::default(),
        };
        assert!(listeners.reply(QueryId(1), reply.clone()));
        listeners.end(QueryId(1));
        assert_eq!(replies.next().now_or_never(), Some(Some(reply.clone())));
        assert_eq!(replies.next().now_or_never(), Some(None));
        drop(listeners.asked(QueryId(2)));
        assert!(!listeners.reply(QueryId(2), reply));
        assert!(listeners.asked.is_empty());
    }
}
