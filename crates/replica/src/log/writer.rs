//! The writer: the one task that writes and syncs the log, a batch at a time.
//!
//! One loop: take all that is pending, make it one batch, write and sync it, tell who waits. While the disk works, the next
//! batch gathers. A batch that does not fit its segment begins the next one, which was prepared meanwhile.

use super::recovery::{UNFILLED, segment_path};
use super::*;
use futures::future::{BoxFuture, Either, select};
use quorate_rt::{File as _, OpenMode, Rt};
use quorate_wire::log::BatchWriter;
use std::pin::pin;
use std::time::Duration;

/// Freed segments kept for reuse; more are removed.
const SPARE_COUNT_MAX: usize = 2;
/// Zeros are written in pieces of this.
const FILL_LEN_BYTES: usize = 1024 * 1024;
/// How long a moved commit point waits for a batch to ride with.
const COMMIT_DELAY: Duration = Duration::from_millis(50);

/// A segment's file without content of ours, ready to be begun.
struct Spare<F> {
    file: F,
    path: PathBuf,
    len_bytes: u64,
}

/// Where a recovered log goes on.
pub(super) struct Resume<F> {
    pub segments: VecDeque<Arc<Segment<F>>>,
    pub offset: u64,
    pub sequence: u64,
    pub number_next: u64,
}

/// Touches the disk. There is one per log.
pub struct Writer<D: Disk> {
    disk: D,
    directory: PathBuf,
    shared: Arc<Shared<D::File>>,
    /// Live segments, oldest first; the last one is written to.
    segments: VecDeque<Arc<Segment<D::File>>>,
    /// Where the next batch goes in the last segment.
    offset: u64,
    /// Of the last batch.
    sequence: u64,
    spares: Vec<Spare<D::File>>,
    /// No longer needed, but the present segment's beginning does not say so yet: a torn use of them would look like
    /// damage.
    freed: Vec<Arc<Segment<D::File>>>,
    number_next: u64,
    /// The state that the batches so far amount to.
    written: Begin,
}

impl<D: Disk> Writer<D> {
    pub(super) fn fresh(disk: D, directory: &Path, key: Uuid, options: Options) -> Self {
        let state = State {
            vote: None,
            committed: None,
            commit_is_dirty: false,
            purged: None,
            last: None,
            slots: VecDeque::new(),
            cached_from: 0,
            cached_len_bytes: 0,
            pending: Pending::default(),
            failed: None,
            closed: false,
        };
        let resume = Resume {
            segments: VecDeque::new(),
            offset: 0,
            sequence: 0,
            number_next: 1,
        };
        Self::resumed(disk, directory, key, options, state, resume)
    }

    pub(super) fn resumed(
        disk: D,
        directory: &Path,
        key: Uuid,
        options: Options,
        state: State<D::File>,
        resume: Resume<D::File>,
    ) -> Self {
        let written = state.begin();
        Self {
            disk,
            directory: directory.to_owned(),
            shared: Arc::new(Shared {
                key,
                options,
                state: Mutex::new(state),
                work: Notify::new(),
                room: Notify::new(),
            }),
            segments: resume.segments,
            offset: resume.offset,
            sequence: resume.sequence,
            spares: Vec::new(),
            freed: Vec::new(),
            number_next: resume.number_next,
            written,
        }
    }

    pub(super) fn log(&self) -> Log<D> {
        Log {
            shared: Arc::clone(&self.shared),
        }
    }

    /// Writes a fresh log's first batch.
    pub(super) async fn start_first_segment(&mut self) -> Result<(), LogError> {
        self.make_spare(self.shared.options.first_segment_len_bytes).await?;
        let mut batch = BatchWriter::default();
        batch.push(&self.shared.key, &Record::Begin(self.beginning()));
        self.begin_segment(batch).await
    }

    fn beginning(&self) -> Begin {
        Begin {
            first_generation: self.segments.front().map_or(1, |segment| segment.generation),
            ..self.written.clone()
        }
    }

    /// Writes the last batch once more, as it was found, and syncs it. When a sync of it failed before the start, the kernel
    /// shows it and calls it clean: a further sync alone would save nothing, and the batch be missing after a loss of power.
    pub(super) async fn write_again(&self, last_batch: Bytes) -> Result<(), LogError> {
        let segment = self.segments.back().expect("a log has a segment");
        let offset = self.offset - last_batch.len() as u64;
        segment
            .file
            .write_at_synced(offset, last_batch)
            .await
            .map_err(LogError::io("write again and sync", &segment.path))
    }

    pub(super) async fn sync_names(&self) -> Result<(), LogError> {
        self.disk
            .sync_dir(&self.directory)
            .await
            .map_err(LogError::io("sync", &self.directory))
    }

    /// Takes a file that holds no live records.
    pub(super) async fn reuse(&mut self, file: D::File, path: PathBuf, len_bytes: u64) -> Result<(), LogError> {
        if self.spares.len() >= SPARE_COUNT_MAX || len_bytes < self.shared.options.segment_len_bytes {
            drop(file);
            return self
                .disk
                .remove_file(&path)
                .await
                .map_err(LogError::io("remove", &path));
        }
        self.spares.push(Spare { file, path, len_bytes });
        Ok(())
    }

    /// Waits until there is something to write. `false`: the log is closed and all is written.
    pub async fn ready(&self) -> bool {
        loop {
            let work = self.shared.work.notified();
            {
                let state = self.shared.locked();
                if !state.pending.completions.is_empty() || state.commit_is_dirty {
                    return true;
                }
                if state.closed || state.failed.is_some() {
                    return false;
                }
            }
            work.await;
        }
    }

    /// Whether anyone waits; else only the commit point moved, which may ride with the next batch.
    pub fn is_urgent(&self) -> bool {
        let state = self.shared.locked();
        !state.pending.completions.is_empty() || state.closed
    }

    /// Waits until [`Self::is_urgent`].
    pub async fn urgent(&self) {
        loop {
            let work = self.shared.work.notified();
            if self.is_urgent() {
                return;
            }
            work.await;
        }
    }

    /// Writes and syncs all that is pending as one batch, and the commit point with it. An error is final.
    pub async fn flush(&mut self) -> Result<(), LogError> {
        let ((records, entries, completions), begin, commit, first_needed) = {
            let mut state = self.shared.locked();
            state.usable_or_closed()?;
            let commit = std::mem::take(&mut state.commit_is_dirty).then_some(state.committed);
            // Asked now and not after the write: truncations and purges given meanwhile are not durable with this batch.
            let first_needed = state
                .slots
                .front()
                .and_then(|slot| slot.location.as_ref())
                .map(|location| location.segment.generation);
            let Pending {
                records,
                entries,
                completions,
            } = std::mem::take(&mut state.pending);
            ((records, entries, completions), state.begin(), commit, first_needed)
        };
        self.shared.room.notify_waiters();
        if records.is_empty() && commit.is_none() {
            for done in completions {
                done(Ok(()));
            }
            return Ok(());
        }
        match self.write(&records, &entries, &begin, commit).await {
            Ok(()) => {
                for done in completions {
                    done(Ok(()));
                }
                let active = self.segments.back().expect("a log has a segment").generation;
                self.free_before(first_needed.unwrap_or(active));
                Ok(())
            }
            Err(err) => {
                // First for all to see, so that whoever is told finds the log failed.
                let err = self.fail(err);
                for done in completions {
                    done(Err(err.clone()));
                }
                Err(err)
            }
        }
    }

    async fn write(
        &mut self,
        records: &[u8],
        entries: &[(Position, usize, usize)],
        begin: &Begin,
        commit: Option<Option<Position>>,
    ) -> Result<(), LogError> {
        let key = self.shared.key;
        let fill = |batch: &mut BatchWriter| {
            let base = batch.push_encoded(records);
            if let Some(committed) = commit {
                batch.push(&key, &Record::Commit(committed));
            }
            base
        };
        let mut batch = BatchWriter::default();
        let mut base = fill(&mut batch);
        let active = self.segments.back().expect("a log has a segment");
        let batch_offset;
        if self.offset + batch.len_bytes() as u64 <= active.len_bytes {
            let active = Arc::clone(active);
            let bytes = batch.finish(&key, active.generation, self.sequence + 1);
            let len_bytes = bytes.len() as u64;
            active
                .file
                .write_at_synced(self.offset, bytes)
                .await
                .map_err(LogError::io("write and sync", &active.path))?;
            batch_offset = self.offset;
            self.sequence += 1;
            self.offset += len_bytes;
        } else {
            batch = BatchWriter::default();
            batch.push(&key, &Record::Begin(self.beginning()));
            base = fill(&mut batch);
            self.begin_segment(batch).await?;
            batch_offset = 0;
        }
        self.written = begin.clone();

        let segment = Arc::clone(self.segments.back().expect("a log has a segment"));
        let mut state = self.shared.locked();
        for (position, offset, len_bytes) in entries {
            // It may have been cut off, and even replaced, while it was being written.
            if let Some(slot) = state.slot_at(position.index)
                && slot.term == position.term
                && slot.location.is_none()
            {
                slot.location = Some(Location {
                    segment: Arc::clone(&segment),
                    offset: batch_offset + (base + offset) as u64,
                    len_bytes: *len_bytes,
                });
            }
        }
        state.trim_cache(self.shared.options.cache_len_bytes_max);
        Ok(())
    }

    /// Begins the next segment with this batch.
    async fn begin_segment(&mut self, batch: BatchWriter) -> Result<(), LogError> {
        let len_bytes_min = batch.len_bytes() as u64;
        if !self.spares.iter().any(|spare| spare.len_bytes >= len_bytes_min) {
            let len_bytes = len_bytes_min.max(self.shared.options.segment_len_bytes);
            self.make_spare(len_bytes).await?;
        }
        let at = self
            .spares
            .iter()
            .position(|spare| spare.len_bytes >= len_bytes_min)
            .expect("one was just made");
        let spare = self.spares.remove(at);
        let generation = self.segments.back().map_or(1, |segment| segment.generation + 1);
        let bytes = batch.finish(&self.shared.key, generation, self.sequence + 1);
        let offset = bytes.len() as u64;
        spare
            .file
            .write_at_synced(0, bytes)
            .await
            .map_err(LogError::io("begin segment", &spare.path))?;
        self.sequence += 1;
        self.offset = offset;
        self.segments.push_back(Arc::new(Segment {
            file: spare.file,
            path: spare.path,
            generation,
            len_bytes: spare.len_bytes,
        }));
        for segment in std::mem::take(&mut self.freed) {
            // A reader may still hold it; then the file is removed under its hands, which it survives.
            match Arc::try_unwrap(segment) {
                Ok(segment) => self.reuse(segment.file, segment.path, segment.len_bytes).await?,
                Err(segment) => self
                    .disk
                    .remove_file(&segment.path)
                    .await
                    .map_err(LogError::io("remove", &segment.path))?,
            }
        }
        Ok(())
    }

    /// Whether the next segment should be prepared: the present one is half full and none is at hand.
    fn wants_spare(&self) -> bool {
        let active = self.segments.back().expect("a log has a segment");
        self.spares.is_empty() && self.offset > active.len_bytes / 2
    }

    async fn make_spare(&mut self, len_bytes: u64) -> Result<(), LogError> {
        let spare = self.filling(len_bytes).await?;
        self.spares.push(spare);
        Ok(())
    }

    /// A new segment's file on its way. It gets its name once it has its length: a short one under that name was cut.
    fn filling(
        &mut self,
        len_bytes: u64,
    ) -> impl Future<Output = Result<Spare<D::File>, LogError>> + Send + 'static + use<D> {
        let path = segment_path(&self.directory, self.number_next);
        self.number_next += 1;
        let (disk, directory) = (self.disk.clone(), self.directory.clone());
        async move {
            let unfilled = path.with_extension(UNFILLED);
            let file = disk
                .open(&unfilled, OpenMode::CreateNew)
                .await
                .map_err(LogError::io("create", &unfilled))?;
            let mut offset = 0;
            while offset < len_bytes {
                let piece = FILL_LEN_BYTES.min(usize::try_from(len_bytes - offset).unwrap_or(usize::MAX));
                file.write_at(offset, Bytes::from(vec![0; piece]))
                    .await
                    .map_err(LogError::io("fill", &unfilled))?;
                offset += piece as u64;
            }
            file.sync_all().await.map_err(LogError::io("sync", &unfilled))?;
            disk.rename(&unfilled, &path)
                .await
                .map_err(LogError::io("name", &path))?;
            disk.sync_dir(&directory)
                .await
                .map_err(LogError::io("sync", &directory))?;
            Ok(Spare { file, path, len_bytes })
        }
    }

    /// Writes until the log is closed and all is written, or until an error, which is final.
    pub async fn run<R: Rt>(mut self, rt: R) -> Result<(), LogError> {
        let mut filling: Option<BoxFuture<'static, Result<Spare<D::File>, LogError>>> = None;
        loop {
            let filled = match filling.take() {
                None => {
                    if !self.ready().await {
                        return Ok(());
                    }
                    None
                }
                Some(on_its_way) => match select(pin!(self.ready()), on_its_way).await {
                    Either::Left((false, _)) => return Ok(()),
                    Either::Left((true, on_its_way)) => {
                        filling = Some(on_its_way);
                        None
                    }
                    Either::Right((filled, _)) => Some(filled),
                },
            };
            if let Some(filled) = filled {
                match filled {
                    Ok(spare) => self.spares.push(spare),
                    Err(err) => return Err(self.fail(err)),
                }
                continue;
            }
            if !self.is_urgent() {
                // Only the commit point moved. The next write takes it along; it goes alone when there is none for a while.
                select(pin!(self.urgent()), pin!(rt.sleep(COMMIT_DELAY))).await;
            }
            self.flush().await?;
            if filling.is_none() && self.wants_spare() {
                filling = Some(Box::pin(self.filling(self.shared.options.segment_len_bytes)));
            }
        }
    }

    fn fail(&self, err: LogError) -> LogError {
        let pending = {
            let mut state = self.shared.locked();
            state.failed = Some(err.clone());
            std::mem::take(&mut state.pending)
        };
        self.shared.room.notify_waiters();
        for done in pending.completions {
            done(Err(err.clone()));
        }
        err
    }

    fn free_before(&mut self, generation: u64) {
        while self.segments.len() > 1 && self.segments[0].generation < generation {
            self.freed.extend(self.segments.pop_front());
        }
    }
}

impl<F> State<F> {
    /// As `usable`, but what was given before a close is still written.
    fn usable_or_closed(&self) -> Result<(), LogError> {
        match &self.failed {
            Some(err) => Err(LogError::Failed {
                reason: err.to_string(),
            }),
            None => Ok(()),
        }
    }
}
