//! Opening the log: replay of its segments, and what is torn told from what is corrupt.
//!
//! Segments with a sound first batch are put in the order of their generations. The newest one's beginning names the oldest
//! one that is needed: from there on none may be missing, and all are replayed. Older ones were freed. Each segment's
//! beginning has to agree with what was replayed before it, and live entries to begin right after the purged ones.

use super::*;
use quorate_rt::{File as _, OpenMode};
use quorate_wire::log::{BATCH_HEADER_LEN_BYTES, Membership};

/// Segments are `log-` and eight digits.
const NAME_PREFIX: &str = "log-";
/// A damaged length must not fill the memory. Far above any segment: batches are bounded by what may be pending.
const SEGMENT_LEN_BYTES_MAX: u64 = 1 << 30;

/// An opened log.
pub struct Opened<D: Disk> {
    pub log: Log<D>,
    pub writer: Writer<D>,
    /// The newest membership among the live entries.
    pub membership: Option<(Position, Membership)>,
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

impl<D: Disk> Log<D> {
    /// Makes a fresh log in `directory`, which exists. Leftovers of an unfinished one are removed.
    pub async fn create(disk: D, directory: &Path, key: Uuid, options: Options) -> Result<Opened<D>, LogError> {
        for name in segment_names(&disk, directory).await? {
            let path = directory.join(name.1);
            disk.remove_file(&path).await.map_err(LogError::io("remove", &path))?;
        }
        let mut writer = Writer::fresh(disk, directory, key, options);
        writer.start_first_segment().await?;
        Ok(Opened {
            log: writer.log(),
            writer,
            membership: None,
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
            return Err(LogError::Corrupt {
                path: directory.to_owned(),
                offset: 0,
                what: "no segment begins with a sound batch".to_owned(),
            });
        };
        for segment in &unsound {
            // A torn beginning is the end of the log, so nothing sound of its generation can be behind it.
            if bytes_of::find_newer_batch(&key, &segment.content, 0, newest + 1, 0).is_some() {
                return Err(LogError::Corrupt {
                    path: segment.path.clone(),
                    offset: 0,
                    what: "an unsound batch before a sound one".to_owned(),
                });
            }
        }
        let newest_found = sound.last().expect("there is a newest one");
        let first = first_generation(&key, newest_found)?;
        let mut freed = sound;
        let row = freed.split_off(freed.partition_point(|segment| segment.generation < Some(first)));
        if row.len() as u64 != (newest + 1).saturating_sub(first)
            || row.windows(2).any(|pair| pair[0].generation == pair[1].generation)
        {
            return Err(LogError::Corrupt {
                path: directory.to_owned(),
                offset: 0,
                what: format!(
                    "{} segments of the generations {first} to {newest} are sound",
                    row.len()
                ),
            });
        }

        let mut replay: Option<Replay<D::File>> = None;
        let mut sequence = None;
        let mut segments = VecDeque::new();
        let mut offset_end = 0;
        for found in row {
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
            // Segments are filled with zeros and synced before their first batch: no crash leaves a short one.
            let name = segment.path.file_name().and_then(|name| name.to_str());
            let is_first = name.and_then(segment_number) == Some(1);
            let len_min = match is_first {
                true => options.first_segment_len_bytes.min(options.segment_len_bytes),
                false => options.segment_len_bytes,
            };
            if segment.len_bytes < len_min {
                return Err(corrupt(
                    content.len(),
                    format!("the file was cut: a segment has at least {len_min} bytes"),
                ));
            }
            let mut offset = 0;
            while let Some(batch) = bytes_of::batch_at(&key, &content, offset) {
                if batch.generation != generation {
                    break;
                }
                if sequence.is_some_and(|sequence| batch.sequence != sequence + 1) {
                    let what = format!(
                        "batch {} where {:?} was due",
                        batch.sequence,
                        sequence.map(|last: u64| last + 1)
                    );
                    return Err(corrupt(offset, what));
                }
                sequence = Some(batch.sequence);
                for record in bytes_of::records(&key, &batch.body) {
                    let (at, len_bytes, record) = match record {
                        Ok(record) => record,
                        Err(err @ Malformed::Version { .. }) => {
                            return Err(LogError::Format {
                                path: segment.path.clone(),
                                err,
                            });
                        }
                        Err(malformed) => return Err(corrupt(offset, malformed.to_string())),
                    };
                    let location = Location {
                        segment: Arc::clone(&segment),
                        offset: (offset + BATCH_HEADER_LEN_BYTES + at) as u64,
                        len_bytes,
                    };
                    match (&mut replay, record) {
                        (None, Record::Begin(begin)) => {
                            replay = Some(Replay {
                                begin,
                                slots: VecDeque::new(),
                                memberships: Vec::new(),
                            });
                        }
                        (None, _) => return Err(corrupt(offset, "it does not begin with the log's state".to_owned())),
                        (Some(replay), record) => {
                            replay.apply(record, location).map_err(|what| corrupt(offset, what))?
                        }
                    }
                }
                offset += batch.len_bytes;
            }
            let last = sequence.expect("the first batch is sound");
            if let Some(at) = bytes_of::find_newer_batch(&key, &content, offset, generation, last) {
                return Err(corrupt(
                    offset,
                    format!("an unsound batch before a sound one at offset {at}"),
                ));
            }
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
        let mut writer = Writer::resumed(
            disk,
            directory,
            key,
            options,
            state,
            writer::Resume {
                segments,
                offset: offset_end as u64,
                sequence: sequence.expect("the row is not empty"),
                number_next: number_max + 1,
            },
        );
        // What was found may be in the page cache only, and is about to be told to others; and it may say that the files
        // below are free.
        writer.sync_active().await?;
        for segment in freed.into_iter().chain(unsound) {
            writer
                .reuse(segment.file, segment.path, segment.content.len() as u64)
                .await?;
        }
        Ok(Opened {
            log: writer.log(),
            writer,
            membership: replay.memberships.into_iter().next_back(),
        })
    }
}

/// What the beginning of a segment says of the oldest one needed.
fn first_generation<F>(key: &Uuid, found: &Found<F>) -> Result<u64, LogError> {
    let batch = bytes_of::batch_at(key, &found.content, 0).expect("the caller knows its generation");
    match bytes_of::decode_record(key, &batch.body) {
        Ok((Record::Begin(begin), _)) => Ok(begin.first_generation),
        Err(err @ Malformed::Version { .. }) => Err(LogError::Format {
            path: found.path.clone(),
            err,
        }),
        Ok(_) | Err(_) => Err(LogError::Corrupt {
            path: found.path.clone(),
            offset: 0,
            what: "it does not begin with the log's state".to_owned(),
        }),
    }
}

async fn segment_names<D: Disk>(disk: &D, directory: &Path) -> Result<Vec<(u64, String)>, LogError> {
    let entries = disk.list(directory).await.map_err(LogError::io("list", directory))?;
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
    Ok(Found {
        file,
        path,
        content,
        generation,
    })
}
