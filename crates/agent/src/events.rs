//! The user events that are for this agent.
//!
//! In: every event of the pool. Out: those whose filters match this node and its local services, kept for
//! `/v1/event/list`. Promises: memory is bounded (`History`, the subscription's queue).
//! Not here: order and deduplication (`user-events`), the list's JSON (`http-api`).

use crate::local::Local;
use crate::router::locked;
use quorate_gossip::Gossip;
use quorate_replica::RaftRt;
use quorate_types::Service;
use quorate_user_events::{EventFilter, History, UserEvent};
use std::sync::{Arc, Mutex};
use tokio::sync::Notify;

/// Newer formats than this are not understood: such an event is passed over.
const VERSION_MAX: u8 = 1;
/// What Consul's `exec` fires: an order to run a command, not an event to list.
const REMOTE_EXEC: &str = "_rexec";

/// The last events that were for this agent.
#[derive(Debug, Default)]
pub(crate) struct EventLog {
    kept: Mutex<Kept>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct Kept {
    history: History,
    version: u64,
}

impl EventLog {
    pub(crate) fn list(&self, name: Option<&str>) -> Vec<Arc<UserEvent>> {
        locked(&self.kept).history.list(name)
    }
    pub(crate) fn version(&self) -> u64 {
        locked(&self.kept).version
    }
    pub(crate) async fn changed(&self, seen: u64) {
        loop {
            // Made before the look, so that what happens after the look wakes it.
            let changed = self.changed.notified();
            if self.version() != seen {
                return;
            }
            changed.await;
        }
    }

    /// Keeps what is for this agent, for as long as it runs.
    pub(crate) async fn keep<R: RaftRt>(self: Arc<Self>, gossip: Gossip<R>, local: Local<R>) {
        let mut events = gossip.user_events();
        loop {
            let event = events.next().await;
            if is_for(&event, &gossip.local_member().name, &local.services()) {
                tracing::debug!(name = %event.name, id = %event.id, "user event");
                let mut kept = locked(&self.kept);
                kept.history.push(event);
                kept.version += 1;
                drop(kept);
                self.changed.notify_waiters();
            }
        }
    }
}

/// Services count by their names and by their ids: Consul documents the one and compares the other.
fn is_for(event: &UserEvent, node: &str, services: &[Arc<Service>]) -> bool {
    if event.version > VERSION_MAX || event.name == REMOTE_EXEC {
        tracing::debug!(name = %event.name, version = event.version, "passed over a user event");
        return false;
    }
    let words = services.iter().flat_map(|service| {
        let tags = service.tags.as_slice();
        [(service.name.as_str(), tags), (service.id.as_str(), tags)]
    });
    match EventFilter::of(event) {
        Ok(filter) => filter.accepts(node, words),
        Err(err) => {
            tracing::debug!(name = %event.name, %err, "passed over a user event");
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_for_those_whose_node_and_services_its_filters_match() {
        let service = Arc::new(Service {
            id: "web-1".to_owned(),
            name: "web".to_owned(),
            tags: vec!["v2".to_owned()],
            ..Service::default()
        });
        let check = |node_filter: &str, service_filter: &str, tag_filter: &str| {
            let event = UserEvent {
                name: "deploy".to_owned(),
                node_filter: node_filter.to_owned(),
                service_filter: service_filter.to_owned(),
                tag_filter: tag_filter.to_owned(),
                version: 1,
                ..UserEvent::default()
            };
            is_for(&event, "n1", &[Arc::clone(&service)])
        };
        assert!(check("", "", ""));
        assert!(check("^n", "^web$", "v2"));
        assert!(check("", "^web-1$", ""));
        assert!(!check("n2", "", ""));
        assert!(!check("", "redis", ""));
        assert!(!check("", "web", "v1"));
        assert!(!check("(", "", ""), "a peer's nonsense is for nobody");
    }

    #[test]
    fn newer_formats_and_orders_to_run_commands_are_passed_over() {
        let event = |name: &str, version| UserEvent {
            name: name.to_owned(),
            version,
            ..UserEvent::default()
        };
        assert!(is_for(&event("deploy", 1), "n1", &[]));
        assert!(!is_for(&event("deploy", 2), "n1", &[]));
        assert!(!is_for(&event(REMOTE_EXEC, 1), "n1", &[]));
    }
}
