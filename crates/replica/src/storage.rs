//! The log as openraft wants it.

use crate::log::{Completion, Log, LogError};
use crate::types::{self, Entry, LogId, RaftRt, Types, Vote};
use openraft::OptionalSend;
use openraft::storage::{IOFlushed, LogState, RaftLogReader, RaftLogStorage};
use quorate_rt::AnyDisk;
use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use tokio::sync::oneshot;

/// Entries of one replication message: far below a frame, so that heartbeats find a gap.
const READ_LEN_BYTES_MAX: usize = 1024 * 1024;

/// openraft's log storage over ours.
pub struct LogStorage<R: RaftRt> {
    log: Log<AnyDisk<R::Disk>>,
}

impl<R: RaftRt> Clone for LogStorage<R> {
    fn clone(&self) -> Self {
        Self { log: self.log.clone() }
    }
}

impl<R: RaftRt> LogStorage<R> {
    pub fn new(log: Log<AnyDisk<R::Disk>>) -> Self {
        Self { log }
    }
}

/// A completion to wait for.
fn waited() -> (Completion, impl Future<Output = io::Result<()>>) {
    let (done, wait) = oneshot::channel::<Result<(), LogError>>();
    let completion: Completion = Box::new(move |result| {
        // openraft may have stopped waiting because it was shut down.
        let _ = done.send(result);
    });
    let wait = async move {
        match wait.await {
            Ok(result) => result.map_err(io::Error::from),
            Err(_) => Err(io::Error::other("the log was dropped")),
        }
    };
    (completion, wait)
}

impl<R: RaftRt> RaftLogReader<Types<R>> for LogStorage<R> {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> io::Result<Vec<Entry>> {
        let start = match range.start_bound() {
            Bound::Included(start) => *start,
            Bound::Excluded(before) => before + 1,
            Bound::Unbounded => 0,
        };
        let end = match range.end_bound() {
            Bound::Included(last) => last + 1,
            Bound::Excluded(end) => *end,
            Bound::Unbounded => u64::MAX,
        };
        let entries = self.log.read(start, end, usize::MAX).await?;
        entries
            .into_iter()
            .map(|entry| types::entry_from_wire(entry).map_err(io::Error::other))
            .collect()
    }

    async fn read_vote(&mut self) -> io::Result<Option<Vote>> {
        Ok(self.log.vote().map(types::vote_from_wire))
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> io::Result<Vec<Entry>> {
        let entries = self.log.read(start, end, READ_LEN_BYTES_MAX).await?;
        entries
            .into_iter()
            .map(|entry| types::entry_from_wire(entry).map_err(io::Error::other))
            .collect()
    }
}

impl<R: RaftRt> RaftLogStorage<Types<R>> for LogStorage<R> {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> io::Result<LogState<Types<R>>> {
        Ok(LogState {
            last_purged_log_id: self.log.purged().map(types::log_id),
            last_log_id: self.log.last().map(types::log_id),
        })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> io::Result<()> {
        let (done, wait) = waited();
        self.log.save_vote(types::vote_to_wire(vote), done);
        wait.await
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> io::Result<()> {
        self.log.save_committed(committed.as_ref().map(types::position))?;
        Ok(())
    }

    async fn read_committed(&mut self) -> io::Result<Option<LogId>> {
        Ok(self.log.committed().map(types::log_id))
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<Types<R>>) -> io::Result<()>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries = entries.into_iter().map(|entry| types::entry_to_wire(&entry)).collect();
        let done: Completion = Box::new(move |result| callback.io_completed(result.map_err(io::Error::from)));
        self.log.append(entries, done).await;
        Ok(())
    }

    async fn truncate_after(&mut self, last_log_id: Option<LogId>) -> io::Result<()> {
        let (done, wait) = waited();
        self.log.truncate(last_log_id.as_ref().map(types::position), done);
        wait.await
    }

    async fn purge(&mut self, log_id: LogId) -> io::Result<()> {
        // Nobody needs it durable: it rides with the next batch, in order.
        self.log.purge(types::position(&log_id), Box::new(|_| {}));
        Ok(())
    }
}
