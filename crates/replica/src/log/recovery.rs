//! Opening the log: replay of its segments, and what is torn told from what is corrupt.
//!
//! Segments with a sound first batch are put in the order of their generations. The newest one's beginning names the oldest
//! one that is needed: from there on none may be missing, and all are replayed. Older ones were freed. Each segment's
//! beginning has to agree with what was replayed before it, and live entries to begin right after the purged ones.
//!
//! What cannot be seen: that whole batches at the log's end, or its newest segment, were replaced by zeros, or that the
//! newest segment was removed. A crash leaves the same when nothing of the last batch reached the disk.

use super::*;
use quorate_rt::{File as _, OpenMode};
use quorate_wire::log::{BATCH_HEADER_LEN_BYTES, BatchWriter, Membership};

/// Segments are `log-` and eight digits.
const NAME_PREFIX: &str = "log-";
/// The extension of one that is being filled.
pub(super) const UNFILLED: &str = "unfilled";
/// Of generations, batches and entries. No counting reaches it, and what counts on from it does not overflow.
const NUMBER_MAX: u64 = 1 << 62;
/// A damaged length must not fill the memory. Far above any segment: batches are bounded by what may be pending.
const SEGMENT_LEN_BYTES_MAX: u64 = 1 << 30;

/// An opened log.
pub struct Opened<D: Disk> {
    pub log: Log<D>,
    pub writer: Writer<D>,
    /// The newest membership among the live entries.
    pub membership: Option<(Position, Membership)>,
    /// The last write was not whole, and was cut.
    pub torn: Option<Torn>,
}

/// Where a write began that is not whole: one that was under way, or the last one, damaged since. Which of the two
/// nothing tells. The leader gives again what is missing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Torn {
    pub path: PathBuf,
    pub offset: u64,
}

pub(super) fn segment_path(directory: &Path, number: u64) -> PathBuf {
    directory.join(format!("{NAME_PREFIX}{number:08}"))
}

fn segment_number(name: &str) -> Option<u64> {
    name.strip_prefix(NAME_PREFIX)?.parse().ok()
}

/// A segment's file as found.
struct Found<F> {
    file: F,
    path: PathBuf,
    content: Bytes,
    /// Of its first batch, when that is sound.
    generation: Option<u64>,
}

impl<F> Found<F> {
    /// What the first batch says of itself, sound or not: generation and sequence.
    fn claims(&self) -> Option<(u64, u64)> {
        bytes_of::header_at(&self.content, 0)
    }
    fn corrupt(&self, offset: usize, what: String) -> LogError {
        LogError::Corrupt {
            path: self.path.clone(),
            offset: offset as u64,
            what,
        }
    }
    /// Why it does not begin with a sound batch.
    fn head_fault(&self, key: &Uuid) -> String {
        match bytes_of::batch_fault(key, &self.content, 0) {
            _ if self.content.is_empty() => "the file is empty".to_owned(),
            Some(fault) => format!("its first batch is unsound ({fault})"),
            None => "its first batch numbers itself beyond all".to_owned(),
        }
    }
    /// Where zeros end and something else begins.
    fn used_from(&self, offset: usize) -> Option<usize> {
        let rest = self.content.get(offset..)?;
        rest.iter().position(|byte| *byte != 0).map(|at| offset + at)
    }
    /// Segments are filled with zeros and synced before they get their name: no crash leaves one short.
    fn check_len(&self, options: &Options) -> Result<(), LogError> {
        let name = self.path.file_name().and_then(|name| name.to_str());
        let len_min = match name.and_then(segment_number) == Some(1) {
            true => options.first_segment_len_bytes.min(options.segment_len_bytes),
            false => options.segment_len_bytes,
        };
        if (self.content.len() as u64) < len_min {
            let what = format!("the file was cut: a segment has at least {len_min} bytes");
            return Err(self.corrupt(self.content.len(), what));
        }
        Ok(())
    }
}

/// The state as the replay goes.
struct Replay<F> {
    begin: Begin,
    slots: VecDeque<Slot<F>>,
    memberships: Vec<(Position, Membership)>,
}

impl<F> Replay<F> {
    fn first_index(&self) -> u64 {
        self.begin
            .last
            .map_or(0, |last| last.index + 1 - self.slots.len() as u64)
    }
    fn apply(&mut self, record: Record, location: Location<F>) -> Result<(), String> {
        check_positions(&record)?;
        match record {
            Record::Begin(begin) => {
                self.begin.first_generation = begin.first_generation;
                if begin != self.begin {
                    return Err(format!(
                        "it begins with {begin:?}, but what was before it ends with {:?}",
                        self.begin
                    ));
                }
            }
            Record::Vote(vote) => self.begin.vote = Some(vote),
            Record::Commit(committed) => self.begin.committed = committed,
            Record::Entry(entry) => {
                let position = entry.position;
                let expected = self.begin.last.map_or(0, |last| last.index + 1);
                if position.index != expected {
                    return Err(format!("entry {} where {expected} was due", position.index));
                }
                if let Some(last) = self.begin.last
                    && last.term > position.term
                {
                    return Err(format!("an entry at {position:?} after one at {last:?}"));
                }
                self.begin.last = Some(position);
                if let Payload::Membership(membership) = &entry.payload {
                    self.memberships.push((position, membership.clone()));
                }
                self.slots.push_back(Slot {
                    term: position.term,
                    location: Some(location),
                    cached: Some(entry),
                });
            }
            Record::Truncate(after) => {
                let next_index = after.map_or(0, |after| after.index + 1);
                while let Some(last) = self.begin.last
                    && last.index >= next_index
                {
                    // Without a slot, what is cut was in freed segments.
                    self.begin.last = match self.slots.pop_back() {
                        Some(_) if last.index > next_index => Some(Position {
                            term: last.term,
                            index: last.index - 1,
                        }),
                        _ => after,
                    };
                }
                self.memberships.retain(|(position, _)| position.index < next_index);
                if let (Some(slot), Some(last)) = (self.slots.back(), self.begin.last)
                    && slot.term != last.term
                {
                    return Err(format!(
                        "it cuts after {last:?}, but that entry is of term {}",
                        slot.term
                    ));
                }
            }
            Record::Purge(up_to) => {
                if self.begin.purged.is_none_or(|purged| purged.index < up_to.index) {
                    while !self.slots.is_empty() && self.first_index() <= up_to.index {
                        self.slots.pop_front();
                    }
                    self.begin.purged = Some(up_to);
                    if self.begin.last.is_none_or(|last| last.index <= up_to.index) {
                        self.begin.last = Some(up_to);
                    }
                    self.memberships.retain(|(position, _)| position.index > up_to.index);
                }
            }
        }
        Ok(())
    }
}

/// Each number has a next one.
fn check_positions(record: &Record) -> Result<(), String> {
    let positions = match record {
        Record::Begin(begin) => [begin.committed, begin.purged, begin.last],
        Record::Entry(entry) => [Some(entry.position), None, None],
        Record::Truncate(position) | Record::Commit(position) => [*position, None, None],
        Record::Purge(position) => [Some(*position), None, None],
        Record::Vote(_) => [None; 3],
    };
    match positions
        .into_iter()
        .flatten()
        .find(|position| position.index > NUMBER_MAX)
    {
        Some(position) => Err(format!("no entry is at {position:?}")),
        None => Ok(()),
    }
}

impl<D: Disk> Log<D> {
    /// Makes a fresh log in `directory`, which exists. Leftovers of an unfinished one are removed; a log that was used is
    /// not, and makes this fail: whoever asks for a fresh one has lost what belongs to it.
    pub async fn create(disk: D, directory: &Path, key: Uuid, options: Options) -> Result<Opened<D>, LogError> {
        let mut beginning = BatchWriter::default();
        beginning.push(
            &key,
            &Record::Begin(Begin {
                first_generation: 1,
                ..Begin::default()
            }),
        );
        // An unfinished start leaves the first segment, with its first batch or a part of it.
        let unused_from = |number| if number == 1 { beginning.len_bytes() } else { 0 };
        let mut leftovers = Vec::new();
        for (number, name) in segment_names(&disk, directory).await? {
            let found = read_segment(&disk, directory.join(name), &key).await?;
            if let Some(at) = found.used_from(unused_from(number)) {
                let (path, offset) = (found.path, at as u64);
                return Err(LogError::Orphaned { path, offset });
            }
            leftovers.push(found.path);
        }
        for path in leftovers {
            disk.remove_file(&path).await.map_err(LogError::io("remove", &path))?;
        }
        let mut writer = Writer::fresh(disk, directory, key, options);
        writer.start_first_segment().await?;
        Ok(Opened {
            log: writer.log(),
            writer,
            membership: None,
            torn: None,
        })
    }

    /// Opens the log that was made in `directory` under this key.
    pub async fn open(disk: D, directory: &Path, key: Uuid, options: Options) -> Result<Opened<D>, LogError> {
        let mut found = Vec::new();
        let mut number_max = 0;
        for (number, name) in segment_names(&disk, directory).await? {
            number_max = number_max.max(number);
            found.push(read_segment(&disk, directory.join(name), &key).await?);
        }
        found.sort_by_key(|segment| segment.generation);
        let unsound = found.partition_point(|segment| segment.generation.is_none());
        let sound = found.split_off(unsound);
        let unsound = found;
        let Some(newest) = sound.last().and_then(|segment| segment.generation) else {
            return Err(headless(&key, directory, &unsound));
        };
        for segment in &unsound {
            // A torn beginning is the end of the log, so nothing sound of its generation can be behind it.
            if let Some(at) = bytes_of::find_newer_batch(&key, &segment.content, 0, newest + 1, 0) {
                let what = format!("{}, before a sound one at offset {at}", segment.head_fault(&key));
                return Err(segment.corrupt(0, what));
            }
            segment.check_len(&options)?;
        }
        let newest_found = sound.last().expect("there is a newest one");
        let first = first_generation(&key, newest_found)?;
        let mut freed = sound;
        let row = freed.split_off(freed.partition_point(|segment| segment.generation < Some(first)));
        check_row(&key, directory, &row, &unsound, first, newest)?;

        let mut replay: Option<Replay<D::File>> = None;
        let mut sequence = None;
        let mut segments: VecDeque<Arc<Segment<D::File>>> = VecDeque::new();
        let mut offset_end = 0;
        let mut last_batch = Bytes::new();
        let mut torn = None;
        for found in row {
            found.check_len(&options)?;
            let generation = found.generation.expect("it is in the row");
            let content = found.content;
            let segment = Arc::new(Segment {
                file: found.file,
                path: found.path,
                generation,
                len_bytes: content.len() as u64,
            });
            let corrupt = |offset: usize, what: String| LogError::Corrupt {
                path: segment.path.clone(),
                offset: offset as u64,
                what,
            };
            let mut offset = 0;
            while let Some(batch) = bytes_of::batch_at(&key, &content, offset) {
                if batch.generation != generation {
                    break;
                }
                if let Some(last) = sequence
                    && batch.sequence != last + 1
                {
                    return Err(match segments.back() {
                        // What is unsound is the end of the segment before.
                        Some(before) if offset == 0 => out_of_row(before, offset_end, last, &segment, batch.sequence),
                        _ => corrupt(offset, format!("batch {} right after batch {last}", batch.sequence)),
                    });
                }
                if batch.sequence > NUMBER_MAX {
                    return Err(corrupt(offset, format!("no batch has the number {}", batch.sequence)));
                }
                sequence = Some(batch.sequence);
                for record in bytes_of::records(&key, &batch.body) {
                    let body = offset + BATCH_HEADER_LEN_BYTES;
                    let (at, len_bytes, record) = match record {
                        Ok((at, len_bytes, record)) => (body + at, len_bytes, record),
                        Err((at, err @ Malformed::Version { .. })) => {
                            return Err(LogError::Format {
                                path: segment.path.clone(),
                                offset: (body + at) as u64,
                                err,
                            });
                        }
                        Err((at, malformed)) => return Err(corrupt(body + at, malformed.to_string())),
                    };
                    let location = Location {
                        segment: Arc::clone(&segment),
                        offset: at as u64,
                        len_bytes,
                    };
                    match (&mut replay, record) {
                        (None, record @ Record::Begin(_)) => {
                            check_positions(&record).map_err(|what| corrupt(at, what))?;
                            let Record::Begin(begin) = record else {
                                unreachable!("it was matched")
                            };
                            replay = Some(Replay {
                                begin,
                                slots: VecDeque::new(),
                                memberships: Vec::new(),
                            });
                        }
                        (None, _) => return Err(corrupt(at, "it does not begin with the log's state".to_owned())),
                        (Some(replay), record) => replay.apply(record, location).map_err(|what| corrupt(at, what))?,
                    }
                }
                last_batch = content.slice(offset..offset + batch.len_bytes);
                offset += batch.len_bytes;
            }
            let last = sequence.expect("the first batch is sound");
            if let Some(at) = bytes_of::find_newer_batch(&key, &content, offset, generation, last) {
                let fault = bytes_of::batch_fault(&key, &content, offset);
                let fault = fault.map_or_else(|| "an older one".to_owned(), |fault| fault.to_string());
                let what = format!("an unsound batch ({fault}) before a sound one at offset {at}");
                return Err(corrupt(offset, what));
            }
            let claims = bytes_of::header_at(&content, offset);
            torn = claims
                .is_some_and(|claims| is_next(claims, generation, last))
                .then(|| Torn {
                    path: segment.path.clone(),
                    offset: offset as u64,
                });
            offset_end = offset;
            segments.push_back(segment);
        }
        let replay = replay.expect("the row is not empty");
        let begin = &replay.begin;
        let live_from = begin.purged.map_or(0, |purged| purged.index + 1);
        let next_index = begin.last.map_or(0, |last| last.index + 1);
        if replay.first_index() > live_from && next_index > live_from || next_index < live_from {
            return Err(LogError::Corrupt {
                path: segments[0].path.clone(),
                offset: 0,
                what: format!(
                    "entries from index {live_from} on are missing, the first one is {}",
                    replay.first_index()
                ),
            });
        }
        let mut slots = replay.slots;
        while slots.len() as u64 > next_index - live_from {
            slots.pop_front();
        }
        let sequence = sequence.expect("the row is not empty");
        let torn = torn.or_else(|| {
            let begun = unsound.iter().find(|segment| {
                segment
                    .claims()
                    .is_some_and(|claims| is_next(claims, newest + 1, sequence))
            });
            begun.map(|segment| Torn {
                path: segment.path.clone(),
                offset: 0,
            })
        });
        if let Some(Torn { path, offset }) = &torn {
            tracing::warn!(path = %path.display(), offset, "the log's last write is not whole: cut it. What of it was acknowledged, if the disk lost it later, the leader gives again");
        }
        let cached_len_bytes = slots.iter().filter_map(|slot| slot.cached.as_ref()).map(weight).sum();
        let mut state = State {
            vote: begin.vote,
            committed: begin.committed,
            commit_is_dirty: false,
            purged: begin.purged,
            last: begin.last,
            slots,
            cached_from: 0,
            cached_len_bytes,
            pending: Pending::default(),
            failed: None,
            closed: false,
        };
        state.check();
        state.trim_cache(options.cache_len_bytes_max);
        let disk_of_it = disk.clone();
        let mut writer = Writer::resumed(
            disk,
            directory,
            key,
            options,
            state,
            writer::Resume {
                segments,
                offset: offset_end as u64,
                sequence,
                number_next: number_max + 1,
            },
        );
        // What was found, names included, may be in the page cache only, and is about to be told to others; and it may say
        // that the files below are free.
        writer.write_again(last_batch).await?;
        writer.sync_names().await?;
        for segment in &unsound {
            // Perhaps just filled: a segment is durable in its whole length before its first batch.
            let sync = segment.file.sync_all().await;
            sync.map_err(LogError::io("sync", &segment.path))?;
        }
        for segment in freed.into_iter().chain(unsound) {
            if torn.as_ref().is_some_and(|torn| torn.path == segment.path) {
                // Kept as it is, it would be told again and again.
                let removed = disk_of_it.remove_file(&segment.path).await;
                removed.map_err(LogError::io("remove", &segment.path))?;
                continue;
            }
            writer
                .reuse(segment.file, segment.path, segment.content.len() as u64)
                .await?;
        }
        Ok(Opened {
            log: writer.log(),
            writer,
            membership: replay.memberships.into_iter().next_back(),
            torn,
        })
    }
}

/// Whether a header is that of the batch after these, or was but for one damaged field. Remains of an older use of the
/// segment have both numbers lower.
fn is_next((generation, sequence): (u64, u64), generation_due: u64, last: u64) -> bool {
    generation == generation_due || sequence == last + 1
}

/// No segment begins with a sound batch.
fn headless<F>(key: &Uuid, directory: &Path, unsound: &[Found<F>]) -> LogError {
    // The newest one, as far as they say so themselves.
    match unsound.iter().max_by_key(|segment| segment.claims()) {
        None => LogError::Incomplete {
            directory: directory.to_owned(),
            what: format!("there is no segment (a file {NAME_PREFIX}<number>)"),
        },
        Some(segment) => segment.corrupt(
            0,
            format!(
                "{}, and no segment of {} begins with a sound one of the disk id in the file `identity` beside it",
                segment.head_fault(key),
                unsound.len()
            ),
        ),
    }
}

/// The sound segments from the first needed one on are to be without a gap.
fn check_row<F>(
    key: &Uuid,
    directory: &Path,
    row: &[Found<F>],
    unsound: &[Found<F>],
    first: u64,
    newest: u64,
) -> Result<(), LogError> {
    let mut due = first;
    let mut before: Option<&Found<F>> = None;
    for segment in row {
        let generation = segment.generation.expect("it is in the row");
        if let Some(before) = before
            && before.generation == segment.generation
        {
            let what = format!("its generation {generation} is that of {} too", before.path.display());
            return Err(segment.corrupt(0, what));
        }
        if generation != due {
            // A damaged one still says in some way that it is the one.
            let sequence_of = |found: &Found<F>| found.claims().map(|(_, sequence)| sequence);
            let (after, until) = (before.and_then(sequence_of).unwrap_or(0), sequence_of(segment));
            let is_due = |found: &Found<F>| {
                found.claims().is_some_and(|(generation, sequence)| {
                    generation == due || sequence > after && Some(sequence) < until
                }) || bytes_of::find_newer_batch(key, &found.content, 0, due, 0)
                    .and_then(|at| bytes_of::header_at(&found.content, at))
                    .is_some_and(|(generation, _)| generation == due)
            };
            return Err(match unsound.iter().find(|found| is_due(found)) {
                Some(damaged) => damaged.corrupt(
                    0,
                    format!(
                        "{}, and the segment after it, {}, needs it",
                        damaged.head_fault(key),
                        segment.path.display()
                    ),
                ),
                None => LogError::Incomplete {
                    directory: directory.to_owned(),
                    what: format!(
                        "the segment of generation {due} is missing, the one before {}",
                        segment.path.display()
                    ),
                },
            });
        }
        before = Some(segment);
        due = generation + 1;
    }
    assert!(due > newest || row.is_empty(), "the newest one ends the row");
    if row.is_empty() {
        return Err(LogError::Incomplete {
            directory: directory.to_owned(),
            what: format!("the newest segment is of generation {newest} and needs those from {first} on"),
        });
    }
    Ok(())
}

/// A segment goes on with another batch than the one before it ends with.
fn out_of_row<F>(before: &Segment<F>, offset_end: usize, last: u64, segment: &Segment<F>, sequence: u64) -> LogError {
    LogError::Corrupt {
        path: before.path.clone(),
        offset: offset_end as u64,
        what: format!(
            "no sound batch follows batch {last}, but {} goes on with batch {sequence}",
            segment.path.display()
        ),
    }
}

/// What the beginning of a segment says of the oldest one needed.
fn first_generation<F>(key: &Uuid, found: &Found<F>) -> Result<u64, LogError> {
    let batch = bytes_of::batch_at(key, &found.content, 0).expect("the caller knows its generation");
    match bytes_of::decode_record(key, &batch.body) {
        Ok((Record::Begin(begin), _)) => Ok(begin.first_generation),
        Err(err @ Malformed::Version { .. }) => Err(LogError::Format {
            path: found.path.clone(),
            offset: BATCH_HEADER_LEN_BYTES as u64,
            err,
        }),
        Ok(_) => Err(found.corrupt(
            BATCH_HEADER_LEN_BYTES,
            "it does not begin with the log's state".to_owned(),
        )),
        Err(err) => Err(found.corrupt(BATCH_HEADER_LEN_BYTES, err.to_string())),
    }
}

/// The segments that have their length; what a crash left of others is removed.
async fn segment_names<D: Disk>(disk: &D, directory: &Path) -> Result<Vec<(u64, String)>, LogError> {
    let entries = disk.list(directory).await.map_err(LogError::io("list", directory))?;
    for entry in &entries {
        let stem = entry
            .name
            .strip_suffix(UNFILLED)
            .and_then(|stem| stem.strip_suffix('.'));
        if stem.and_then(segment_number).is_some() {
            let path = directory.join(&entry.name);
            disk.remove_file(&path).await.map_err(LogError::io("remove", &path))?;
        }
    }
    Ok(entries
        .into_iter()
        .filter(|entry| !entry.is_dir)
        .filter_map(|entry| Some((segment_number(&entry.name)?, entry.name)))
        .collect())
}

async fn read_segment<D: Disk>(disk: &D, path: PathBuf, key: &Uuid) -> Result<Found<D::File>, LogError> {
    let file = disk
        .open(&path, OpenMode::Write)
        .await
        .map_err(LogError::io("open", &path))?;
    let len_bytes = file.len_bytes().await.map_err(LogError::io("measure", &path))?;
    if len_bytes > SEGMENT_LEN_BYTES_MAX {
        return Err(LogError::Corrupt {
            path,
            offset: 0,
            what: format!("{len_bytes} bytes are more than a segment has"),
        });
    }
    let len = usize::try_from(len_bytes).expect("bounded above");
    let content = Bytes::from(file.read_at(0, len).await.map_err(LogError::io("read", &path))?);
    let generation = bytes_of::batch_at(key, &content, 0).map(|batch| batch.generation);
    let generation = generation.filter(|generation| *generation <= NUMBER_MAX);
    Ok(Found {
        file,
        path,
        content,
        generation,
    })
}
