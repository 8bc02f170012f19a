//! The Raft log on disk: our own, small and crash-safe.
//!
//! Promises:
//! - What a flush reported as done survives power loss. Records become durable in the order they were given: votes,
//!   entries, truncations, purges and commit points share one row of batches.
//! - Group commit: what is given while one batch is being written and synced becomes the next one. One batch is in flight
//!   at a time, so only the last one on disk can be torn. [`Log::open`] cuts it and says so; an unsound batch before a
//!   sound one is corruption, and opening fails naming the file and the offset of that batch.
//! - A failed write or sync is final: every later call fails. What a retried sync says is worth nothing.
//! - Memory is bounded: what waits to be written by [`Options::pending_len_bytes_max`] (the giver waits), cached entries
//!   by [`Options::cache_len_bytes_max`] (older ones are read back from disk).
//!
//! Segments are preallocated and zero-filled, so that a data sync carries no change of metadata. Each begins with the
//! state before it ([`Begin`](quorate_wire::log::Begin)); the oldest ones are reused once no live entry is in them
//! and a later segment's beginning says so.
//!
//! In: [`Log`] (give records, read entries), [`Writer`] (the one task that touches the disk). Out: completions.
//! Not here: bytes (`quorate_wire::log`), openraft's traits (`storage`), snapshots (`snapshot`).

mod recovery;
mod writer;

#[cfg(test)]
mod tests;

pub use recovery::{Opened, Torn};
pub use writer::Writer;

use bytes::Bytes;
use quorate_rt::Disk;
use quorate_types::Uuid;
use quorate_wire::codec::Malformed;
use quorate_wire::log::{self as bytes_of, Begin, Entry, Payload, Position, Record, Vote};
use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use thiserror::Error;
use tokio::sync::Notify;

/// Sizes. The defaults suit production; tests choose smaller ones.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// A fresh log's first segment: small, because a fresh server waits for it to be filled with zeros.
    pub first_segment_len_bytes: u64,
    pub segment_len_bytes: u64,
    pub cache_len_bytes_max: usize,
    pub pending_len_bytes_max: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            first_segment_len_bytes: 256 * 1024,
            segment_len_bytes: 8 * 1024 * 1024,
            cache_len_bytes_max: 32 * 1024 * 1024,
            pending_len_bytes_max: 64 * 1024 * 1024,
        }
    }
}

/// Why the log cannot be opened or go on.
#[derive(Clone, Debug, Error)]
pub enum LogError {
    #[error("{doing} {path}")]
    Io {
        doing: &'static str,
        path: PathBuf,
        #[source]
        err: Arc<io::Error>,
    },
    #[error("the log is corrupt: {path} at offset {offset}: {what}")]
    Corrupt { path: PathBuf, offset: u64, what: String },
    #[error("the log is of a format this version does not know: {path} at offset {offset}")]
    Format {
        path: PathBuf,
        offset: u64,
        #[source]
        err: Malformed,
    },
    #[error("the log is incomplete: in {directory} {what}")]
    Incomplete { directory: PathBuf, what: String },
    #[error(
        "the log {path} was written to up to offset {offset} and more, but the file `identity` beside it is missing: \
         restore it, or remove the whole folder to begin anew"
    )]
    Orphaned { path: PathBuf, offset: u64 },
    #[error("the log failed before: {reason}")]
    Failed { reason: String },
}

impl LogError {
    fn io(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |err| Self::Io {
            doing,
            path,
            err: Arc::new(err),
        }
    }
}

impl From<LogError> for io::Error {
    fn from(err: LogError) -> Self {
        Self::other(err)
    }
}

/// Called once its records are durable, or will never be.
pub type Completion = Box<dyn FnOnce(Result<(), LogError>) + Send>;

/// One file of the log.
#[derive(Debug)]
struct Segment<F> {
    file: F,
    path: PathBuf,
    generation: u64,
    len_bytes: u64,
}

/// Where an entry's record is.
#[derive(Debug)]
struct Location<F> {
    segment: Arc<Segment<F>>,
    offset: u64,
    len_bytes: usize,
}

impl<F> Clone for Location<F> {
    fn clone(&self) -> Self {
        Self {
            segment: Arc::clone(&self.segment),
            offset: self.offset,
            len_bytes: self.len_bytes,
        }
    }
}

/// One live entry. It is cached, or located, or both.
#[derive(Debug)]
struct Slot<F> {
    term: u64,
    location: Option<Location<F>>,
    cached: Option<Entry>,
}

/// Records encoded and not yet handed to the writer's batch.
#[derive(Default)]
struct Pending {
    records: Vec<u8>,
    /// Position, offset in `records`, length.
    entries: Vec<(Position, usize, usize)>,
    completions: Vec<Completion>,
}

struct State<F> {
    vote: Option<Vote>,
    committed: Option<Position>,
    /// `committed` was moved since it was last written.
    commit_is_dirty: bool,
    purged: Option<Position>,
    last: Option<Position>,
    /// The live entries: `slots[0]` is the one after `purged`.
    slots: VecDeque<Slot<F>>,
    /// Slots before this one are not cached.
    cached_from: usize,
    cached_len_bytes: usize,
    pending: Pending,
    failed: Option<LogError>,
    closed: bool,
}

impl<F> State<F> {
    fn begin(&self) -> Begin {
        Begin {
            // The writer's to fill in.
            first_generation: 0,
            vote: self.vote,
            committed: self.committed,
            purged: self.purged,
            last: self.last,
        }
    }
    fn first_index(&self) -> u64 {
        self.purged.map_or(0, |purged| purged.index + 1)
    }
    fn next_index(&self) -> u64 {
        self.last.map_or(0, |last| last.index + 1)
    }
    fn usable(&self) -> Result<(), LogError> {
        match &self.failed {
            Some(err) => Err(LogError::Failed {
                reason: err.to_string(),
            }),
            None if self.closed => Err(LogError::Failed {
                reason: "the log is closed".to_owned(),
            }),
            None => Ok(()),
        }
    }
    fn check(&self) {
        assert_eq!(self.next_index() - self.first_index(), self.slots.len() as u64);
        if let Some(last) = self.slots.back() {
            assert_eq!(Some(last.term), self.last.map(|last| last.term));
        }
        debug_assert!(
            self.slots
                .iter()
                .all(|slot| slot.cached.is_some() || slot.location.is_some())
        );
    }
    fn push(&mut self, key: &Uuid, record: &Record) -> (usize, usize) {
        let offset = self.pending.records.len();
        (offset, bytes_of::encode_record(key, record, &mut self.pending.records))
    }
    /// Forgets cached entries beyond the bound, the oldest first; never one that is only in memory.
    fn trim_cache(&mut self, len_bytes_max: usize) {
        while self.cached_len_bytes > len_bytes_max && self.cached_from < self.slots.len() {
            let slot = &mut self.slots[self.cached_from];
            if slot.location.is_none() {
                return;
            }
            if let Some(entry) = slot.cached.take() {
                self.cached_len_bytes -= weight(&entry);
            }
            self.cached_from += 1;
        }
    }
    fn forget_front(&mut self) {
        let slot = self.slots.pop_front().expect("the caller counted them");
        if let Some(entry) = &slot.cached {
            self.cached_len_bytes -= weight(entry);
        }
        self.cached_from = self.cached_from.saturating_sub(1);
    }
    fn forget_back(&mut self) {
        let slot = self.slots.pop_back().expect("the caller counted them");
        if let Some(entry) = &slot.cached {
            self.cached_len_bytes -= weight(entry);
        }
        self.cached_from = self.cached_from.min(self.slots.len());
    }
    fn truncate(&mut self, after: Option<Position>) {
        assert!(after >= self.purged, "what is purged is committed, and not cut off");
        let next_index = after.map_or(0, |after| after.index + 1);
        let cut_count = self.next_index().saturating_sub(next_index);
        for _ in 0..cut_count {
            self.forget_back();
        }
        if cut_count > 0 {
            self.last = after;
        }
    }
    fn purge(&mut self, up_to: Position) {
        if self.purged.is_some_and(|purged| purged.index >= up_to.index) {
            return;
        }
        while !self.slots.is_empty() && self.first_index() <= up_to.index {
            let index = self.first_index();
            let term = self.slots[0].term;
            self.forget_front();
            self.purged = Some(Position { term, index });
        }
        self.purged = Some(up_to);
        if self.slots.is_empty() {
            self.last = Some(up_to);
        }
    }
    fn slot_at(&mut self, index: u64) -> Option<&mut Slot<F>> {
        let at = index.checked_sub(self.first_index())?;
        self.slots.get_mut(usize::try_from(at).ok()?)
    }
}

/// What an entry counts in the cache: its payload, and what keeping it costs.
fn weight(entry: &Entry) -> usize {
    const OVERHEAD_LEN_BYTES: usize = 64;
    OVERHEAD_LEN_BYTES
        + match &entry.payload {
            Payload::Blank => 0,
            Payload::Command(bytes) => bytes.len(),
            Payload::Membership(membership) => membership.servers.len() * 64,
        }
}

struct Shared<F> {
    key: Uuid,
    options: Options,
    state: Mutex<State<F>>,
    /// The writer waits here for work.
    work: Notify,
    /// Givers wait here for room.
    room: Notify,
}

impl<F> Shared<F> {
    fn locked(&self) -> MutexGuard<'_, State<F>> {
        // A panic while the lock was held is a broken invariant; production aborts on it.
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// The log as its users see it. Clones share it.
pub struct Log<D: Disk> {
    shared: Arc<Shared<D::File>>,
}

impl<D: Disk> Clone for Log<D> {
    fn clone(&self) -> Self {
        Self {
            shared: Arc::clone(&self.shared),
        }
    }
}

impl<D: Disk> Log<D> {
    pub fn vote(&self) -> Option<Vote> {
        self.shared.locked().vote
    }
    pub fn committed(&self) -> Option<Position> {
        self.shared.locked().committed
    }
    pub fn purged(&self) -> Option<Position> {
        self.shared.locked().purged
    }
    /// The last entry, or where the purged ones end.
    pub fn last(&self) -> Option<Position> {
        self.shared.locked().last
    }
    /// Whether nothing was ever recorded.
    pub fn is_pristine(&self) -> bool {
        let state = self.shared.locked();
        state.vote.is_none() && state.last.is_none()
    }

    /// Records a vote. `done` is called when it is durable: only then may anyone be told.
    pub fn save_vote(&self, vote: Vote, done: Completion) {
        self.give(Vec::new(), done, |key, state| {
            state.vote = Some(vote);
            state.push(key, &Record::Vote(vote));
        });
    }

    /// Appends entries; they can be read at once, and `done` is called when they are durable.
    ///
    /// # Panics
    ///
    /// When they do not follow the last entry.
    pub async fn append(&self, entries: Vec<Entry>, done: Completion) {
        // Back-pressure: the giver waits while the disk is behind. The wait ends when the writer took what is pending.
        loop {
            let room = self.shared.room.notified();
            {
                let state = self.shared.locked();
                let is_full = state.pending.records.len() >= self.shared.options.pending_len_bytes_max;
                if !is_full || state.usable().is_err() {
                    break;
                }
            }
            room.await;
        }
        self.give(entries, done, |_, _| {});
    }

    /// Forgets entries beyond `after`; `None`: all. Durable before anything given later is.
    pub fn truncate(&self, after: Option<Position>, done: Completion) {
        self.give(Vec::new(), done, |key, state| {
            state.truncate(after);
            state.push(key, &Record::Truncate(after));
        });
    }

    /// Forgets entries up to `up_to`: a durable snapshot has them. Durable before anything given later is.
    pub fn purge(&self, up_to: Position, done: Completion) {
        self.give(Vec::new(), done, |key, state| {
            state.purge(up_to);
            state.push(key, &Record::Purge(up_to));
        });
    }

    /// Notes the commit point. It becomes durable with the next batch, or by [`Writer::flush_commit`].
    pub fn save_committed(&self, committed: Option<Position>) -> Result<(), LogError> {
        let mut state = self.shared.locked();
        state.usable()?;
        if state.committed != committed {
            state.committed = committed;
            state.commit_is_dirty = true;
            drop(state);
            self.shared.work.notify_one();
        }
        Ok(())
    }

    fn give(&self, entries: Vec<Entry>, done: Completion, change: impl FnOnce(&Uuid, &mut State<D::File>)) {
        let mut state = self.shared.locked();
        if let Err(err) = state.usable() {
            drop(state);
            done(Err(err));
            return;
        }
        change(&self.shared.key, &mut state);
        for entry in entries {
            let position = entry.position;
            assert_eq!(position.index, state.next_index(), "appended entries leave no hole");
            assert!(
                state.last.is_none_or(|last| last.term <= position.term),
                "terms do not go back"
            );
            let record = Record::Entry(entry);
            let (offset, len_bytes) = state.push(&self.shared.key, &record);
            let Record::Entry(entry) = record else {
                unreachable!("made above")
            };
            state.pending.entries.push((position, offset, len_bytes));
            state.cached_len_bytes += weight(&entry);
            state.slots.push_back(Slot {
                term: position.term,
                location: None,
                cached: Some(entry),
            });
            state.last = Some(position);
        }
        state.pending.completions.push(done);
        state.check();
        drop(state);
        self.shared.work.notify_one();
    }

    /// The live entries of `start..end`, as many as there are and as fit `len_bytes_max` (but at least one).
    pub async fn read(&self, start: u64, end: u64, len_bytes_max: usize) -> Result<Vec<Entry>, LogError> {
        let (wanted, first) = {
            let state = self.shared.locked();
            let first = start.max(state.first_index());
            let end = end.min(state.next_index());
            let mut wanted = Vec::new();
            let mut len_bytes = 0_usize;
            for index in first..end {
                let at = usize::try_from(index - state.first_index()).expect("slots are in memory");
                let slot = &state.slots[at];
                len_bytes = len_bytes.saturating_add(match (&slot.cached, &slot.location) {
                    (Some(entry), _) => weight(entry),
                    (None, Some(location)) => location.len_bytes,
                    (None, None) => unreachable!("a slot is cached or located"),
                });
                if len_bytes > len_bytes_max && !wanted.is_empty() {
                    break;
                }
                wanted.push((slot.term, slot.cached.clone(), slot.location.clone()));
            }
            (wanted, first)
        };
        let mut entries = Vec::with_capacity(wanted.len());
        for (index, (term, cached, location)) in (first..).zip(wanted) {
            let entry = match (cached, location) {
                (Some(entry), _) => entry,
                (None, location) => {
                    let location = location.expect("a slot is cached or located");
                    match self.read_back(Position { term, index }, &location).await {
                        Ok(entry) => entry,
                        // Purged meanwhile, and the segment perhaps reused: gone from the beginning of the range.
                        Err(_) if self.shared.locked().first_index() > index => {
                            entries.clear();
                            continue;
                        }
                        Err(err) => return Err(err),
                    }
                }
            };
            entries.push(entry);
        }
        Ok(entries)
    }

    async fn read_back(&self, position: Position, location: &Location<D::File>) -> Result<Entry, LogError> {
        use quorate_rt::File as _;
        let segment = &location.segment;
        let corrupt = |what: String| LogError::Corrupt {
            path: segment.path.clone(),
            offset: location.offset,
            what,
        };
        let bytes = segment
            .file
            .read_at(location.offset, location.len_bytes)
            .await
            .map_err(LogError::io("read", &segment.path))?;
        match bytes_of::decode_record(&self.shared.key, &Bytes::from(bytes)) {
            Ok((Record::Entry(entry), _)) if entry.position == position => Ok(entry),
            Ok(_) => Err(corrupt(format!("it is not the entry at index {}", position.index))),
            Err(malformed) => Err(corrupt(malformed.to_string())),
        }
    }

    /// No more is taken; the writer ends after what was given.
    pub fn close(&self) {
        self.shared.locked().closed = true;
        self.shared.work.notify_one();
        self.shared.room.notify_waiters();
    }
}
