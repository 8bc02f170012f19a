//! Handles of running tasks.

use futures::future::{AbortHandle, Abortable};
use std::future::Future;
use tokio::sync::oneshot;

/// The task was aborted, or died by a panic, before it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TaskDropped;

/// A running task. Dropping the handle lets it run on; see [`Task::abort_on_drop`].
#[derive(Debug)]
pub struct Task {
    abort: AbortHandle,
    done: oneshot::Receiver<()>,
}

impl Task {
    /// Wraps `work` so that the handle can stop it and wait for it.
    pub fn new(work: impl Future<Output = ()> + Send + 'static) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let (abort, registration) = AbortHandle::new_pair();
        let (done_tx, done) = oneshot::channel();
        let work = Abortable::new(work, registration);
        let task = async move {
            if work.await.is_ok() {
                // The handle may be gone; nobody waits then.
                let _ = done_tx.send(());
            }
        };
        (Self { abort, done }, task)
    }
    pub fn abort(&self) {
        self.abort.abort();
    }
    /// Waits for the task's end.
    pub async fn join(self) -> Result<(), TaskDropped> {
        self.done.await.map_err(|_| TaskDropped)
    }
    /// A guard that stops the task when it is dropped.
    pub fn abort_on_drop(self) -> AbortOnDrop {
        AbortOnDrop(self)
    }
}

/// Stops its task when dropped.
#[derive(Debug)]
pub struct AbortOnDrop(Task);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}
