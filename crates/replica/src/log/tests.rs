use super::*;
use crate::fault_disk::FaultDisk;
use futures::executor::block_on;
use quorate_rt::Rng;
use quorate_types::NodeId;
use quorate_wire::log::Membership;
use rand_core::{Rng as _, SeedableRng as _};
use std::sync::atomic::{AtomicUsize, Ordering};

const KEY: Uuid = Uuid::from_bytes([9; 16]);
const DIRECTORY: &str = "/raft";
/// Small, so that a short script begins, frees and reuses segments.
const OPTIONS: Options = Options {
    first_segment_len_bytes: 1024,
    segment_len_bytes: 2048,
    cache_len_bytes_max: 1024,
    pending_len_bytes_max: 1024 * 1024,
};

/// What the log has to be.
#[derive(Clone, Debug, Default, PartialEq)]
struct Model {
    begin: Begin,
    entries: VecDeque<Entry>,
}

impl Model {
    fn next_index(&self) -> u64 {
        self.begin.last.map_or(0, |last| last.index + 1)
    }
}

fn ignore() -> Completion {
    Box::new(|_| {})
}

/// The log as it can be read.
async fn seen<D: Disk>(log: &Log<D>) -> Result<Model, LogError> {
    let begin = Begin {
        first_generation: 0,
        vote: log.vote(),
        committed: log.committed(),
        purged: log.purged(),
        last: log.last(),
    };
    let entries = log.read(0, u64::MAX, usize::MAX).await?.into();
    Ok(Model { begin, entries })
}

/// One random change, to the log and to the model alike.
async fn change(log: &Log<FaultDisk>, model: &mut Model, rng: &mut Rng) {
    let term = model
        .begin
        .vote
        .map_or(1, |vote| vote.term)
        .max(model.begin.last.map_or(1, |last| last.term));
    match rng.next_u32() % 12 {
        0 => {
            let vote = Vote {
                term: term + 1,
                node: NodeId(Uuid::from_bytes([rng.next_u32() as u8; 16])),
                committed: rng.next_u32().is_multiple_of(2),
            };
            model.begin.vote = Some(vote);
            log.save_vote(vote, ignore());
        }
        1 => {
            // Anywhere from right after the purged ones to the very end.
            let span = model.entries.len() as u64 + 1;
            let keep = rng.next_u64() % span;
            let after = match keep {
                0 => model.begin.purged,
                _ => Some(model.entries[keep as usize - 1].position),
            };
            model.entries.truncate(keep as usize);
            model.begin.last = after;
            log.truncate(after, ignore());
        }
        2 | 3 if !model.entries.is_empty() => {
            let count = 1 + rng.next_u64() % model.entries.len() as u64;
            let up_to = model.entries[count as usize - 1].position;
            model.entries.drain(..count as usize);
            model.begin.purged = Some(up_to);
            log.purge(up_to, ignore());
        }
        4 if rng.next_u32().is_multiple_of(8) => {
            // A snapshot from the leader, beyond all we have.
            let up_to = Position {
                term,
                index: model.next_index() + 5,
            };
            model.entries.clear();
            model.begin.purged = Some(up_to);
            model.begin.last = Some(up_to);
            log.purge(up_to, ignore());
        }
        5 => {
            model.begin.committed = model.begin.last;
            log.save_committed(model.begin.last).expect("the log works");
        }
        _ => {
            let mut entries = Vec::new();
            for _ in 0..1 + rng.next_u32() % 4 {
                let payload = match rng.next_u32() % 8 {
                    0 => Payload::Blank,
                    1 => Payload::Membership(Membership::default()),
                    _ => Payload::Command(Bytes::from(vec![rng.next_u32() as u8; rng.next_u32() as usize % 300])),
                };
                let position = Position {
                    term,
                    index: model.next_index(),
                };
                let entry = Entry { position, payload };
                model.begin.last = Some(position);
                model.entries.push_back(entry.clone());
                entries.push(entry);
            }
            log.append(entries, ignore()).await;
        }
    }
    // Given is readable, durable or not.
    assert_eq!(log.last(), model.begin.last);
    assert_eq!(log.purged(), model.begin.purged);
}

/// A script of changes and flushes. Returns what is surely durable and what may be.
async fn play(opened: &mut Opened<FaultDisk>, model: &mut Model, seed: u64, flushes: u32) -> (Model, Model) {
    let mut rng = Rng::seed_from_u64(seed);
    let mut durable = model.clone();
    for _ in 0..flushes {
        for _ in 0..1 + rng.next_u32() % 3 {
            change(&opened.log, model, &mut rng).await;
        }
        match opened.writer.flush().await {
            Ok(()) => durable = model.clone(),
            Err(_) => return (durable, model.clone()),
        }
        let now = seen(&opened.log).await;
        if let Ok(now) = now {
            assert_eq!(now, *model, "what was written is read back");
        } else {
            return (durable.clone(), durable);
        }
    }
    (durable.clone(), durable)
}

/// After the end of the process only, and with a second one before anything is synced again: what one start found, the
/// next one finds too. When it was a sync at which it ended, that sync failed: what it should have saved is seen, and lost
/// with the power unless it is written again.
#[test]
fn what_was_found_after_the_end_of_a_process_survives_a_loss_of_power() {
    const FLUSHES: u32 = 40;
    block_on(async {
        for script in 10..12 {
            let disk = FaultDisk::default();
            let mut opened = Log::create(disk.clone(), Path::new(DIRECTORY), KEY, OPTIONS)
                .await
                .unwrap();
            let created_at = disk.op_count();
            play(&mut opened, &mut Model::default(), script, FLUSHES).await;
            for crash_at in 1..=disk.op_count() - created_at {
                let disk = FaultDisk::default();
                let mut opened = Log::create(disk.clone(), Path::new(DIRECTORY), KEY, OPTIONS)
                    .await
                    .unwrap();
                disk.crash_at(crash_at);
                play(&mut opened, &mut Model::default(), script, FLUSHES).await;
                let disk = disk.end_process();
                let mut opened = Log::open(disk.clone(), Path::new(DIRECTORY), KEY, OPTIONS)
                    .await
                    .unwrap();
                let mut model = seen(&opened.log).await.unwrap();
                disk.crash_at(1 + crash_at % 50);
                let (durable, perhaps) = play(&mut opened, &mut model, script + 100, 12).await;
                let (_, _, model) = reopen(&disk, crash_at).await;
                assert!(
                    model == durable || model == perhaps,
                    "script {script}, the process ended at {crash_at}: {model:?}\nis neither {durable:?}\nnor {perhaps:?}"
                );
            }
        }
    });
}

async fn reopen(disk: &FaultDisk, seed: u64) -> (FaultDisk, Opened<FaultDisk>, Model) {
    let disk = disk.restart(seed);
    let opened = Log::open(disk.clone(), Path::new(DIRECTORY), KEY, OPTIONS)
        .await
        .unwrap_or_else(|err| panic!("open after a crash: {err}"));
    let now = seen(&opened.log).await.expect("just opened");
    (disk, opened, now)
}

#[test]
fn a_crash_at_any_operation_loses_nothing_that_was_acknowledged() {
    const FLUSHES: u32 = 60;
    block_on(async {
        for script in 0..4 {
            let disk = FaultDisk::default();
            let mut opened = Log::create(disk.clone(), Path::new(DIRECTORY), KEY, OPTIONS)
                .await
                .unwrap();
            let created_at = disk.op_count();
            play(&mut opened, &mut Model::default(), script, FLUSHES).await;
            let op_count = disk.op_count() - created_at;
            assert!(op_count > 200, "the script does too little: {op_count} operations");

            for crash_at in 1..=op_count {
                let disk = FaultDisk::default();
                let mut opened = Log::create(disk.clone(), Path::new(DIRECTORY), KEY, OPTIONS)
                    .await
                    .unwrap();
                disk.crash_at(crash_at);
                let (durable, perhaps) = play(&mut opened, &mut Model::default(), script, FLUSHES).await;
                let (disk, mut opened, mut model) = reopen(&disk, crash_at).await;
                assert!(
                    model == durable || model == perhaps,
                    "script {script}, crash at {crash_at}: {model:?}\nis neither {durable:?}\nnor {perhaps:?}"
                );
                // It goes on from there, through a second crash.
                disk.crash_at(1 + crash_at % 40);
                let (durable, perhaps) = play(&mut opened, &mut model, script + 100, 12).await;
                let (_, _, model) = reopen(&disk, crash_at + 1).await;
                assert!(
                    model == durable || model == perhaps,
                    "script {script}, second crash after {crash_at}"
                );
            }
        }
    });
}

#[test]
fn a_crash_while_the_log_is_made_leaves_nothing_in_the_way() {
    block_on(async {
        for crash_at in 1..12 {
            let disk = FaultDisk::default();
            disk.crash_at(crash_at);
            let made = Log::create(disk.clone(), Path::new(DIRECTORY), KEY, OPTIONS).await;
            let disk = disk.restart(crash_at);
            let again = Log::create(disk.clone(), Path::new(DIRECTORY), KEY, OPTIONS).await;
            assert!(again.is_ok(), "crash at {crash_at}");
            drop((made, again));
            reopen(&disk, crash_at).await;
        }
    });
}

/// Where the sound batches of a segment's present use are, without their padding, and the generation of that use.
fn batches(content: &[u8]) -> (u64, Vec<std::ops::Range<usize>>) {
    let content = Bytes::from(content.to_vec());
    let Some(first) = bytes_of::batch_at(&KEY, &content, 0) else {
        return (0, Vec::new());
    };
    let (mut found, mut at) = (Vec::new(), 0);
    while let Some(batch) = bytes_of::batch_at(&KEY, &content, at) {
        if batch.generation != first.generation {
            break;
        }
        found.push(at..at + bytes_of::BATCH_HEADER_LEN_BYTES + batch.body.len());
        at += batch.len_bytes;
    }
    (first.generation, found)
}

/// The oldest generation that the newest segment needs.
fn first_needed(files: &[(PathBuf, Vec<u8>)]) -> u64 {
    let newest = files
        .iter()
        .max_by_key(|(_, content)| batches(content).0)
        .expect("there is one");
    let batch = bytes_of::batch_at(&KEY, &Bytes::from(newest.1.clone()), 0).expect("it is sound");
    match bytes_of::decode_record(&KEY, &batch.body) {
        Ok((Record::Begin(begin), _)) => begin.first_generation,
        other => panic!("it begins with {other:?}"),
    }
}

async fn refusal(files: &[(PathBuf, Vec<u8>)]) -> LogError {
    let disk = FaultDisk::with_files(files);
    match Log::open(disk, Path::new(DIRECTORY), KEY, OPTIONS).await {
        Ok(_) => panic!("it was opened"),
        Err(err) => err,
    }
}

#[track_caller]
fn check_corrupt(err: &LogError, path: &Path, offset: u64) {
    let place = format!("the log is corrupt: {} at offset {offset}: ", path.display());
    assert!(err.to_string().starts_with(&place), "{err}\nand not {place}");
}

/// Files of a log with several segments, some of them purged, and what it is with and without its last batch.
async fn scripted(script: u64) -> (Vec<(PathBuf, Vec<u8>)>, Model, Model) {
    let disk = FaultDisk::default();
    let mut opened = Log::create(disk.clone(), Path::new(DIRECTORY), KEY, OPTIONS)
        .await
        .unwrap();
    let mut model = Model::default();
    play(&mut opened, &mut model, script, 40).await;
    let before_last = model.clone();
    opened.log.save_vote(
        Vote {
            term: 1000,
            node: NodeId::default(),
            committed: false,
        },
        ignore(),
    );
    opened.writer.flush().await.unwrap();
    let last = seen(&opened.log).await.unwrap();
    (disk.files(), last, before_last)
}

#[test]
fn a_flipped_byte_is_refused_at_its_batch_or_cuts_the_last_one_and_never_passes() {
    block_on(async {
        for script in [3, 4] {
            let (files, last, before_last) = scripted(script).await;
            let first = first_needed(&files);
            let newest = files.iter().map(|(_, content)| batches(content).0).max().unwrap();
            let (mut refused_count, mut cut_count) = (0, 0);
            for (at, (path, bytes)) in files.iter().enumerate() {
                let (generation, batches) = batches(bytes);
                let is_needed = generation >= first;
                for offset in 0..bytes.len() {
                    let mut damaged = files.clone();
                    damaged[at].1[offset] ^= 1 << (offset % 8);
                    let place = format!("script {script}, a flip at {offset} of {}", path.display());
                    let batch = batches.iter().find(|batch| batch.contains(&offset) && is_needed);
                    let is_last = generation == newest && batch.is_some() && batch == batches.last();
                    let disk = FaultDisk::with_files(&damaged);
                    match Log::open(disk, Path::new(DIRECTORY), KEY, OPTIONS).await {
                        Ok(opened) => {
                            let now = seen(&opened.log).await.unwrap();
                            let expected = if is_last { &before_last } else { &last };
                            assert_eq!(now, *expected, "{place} passed");
                            assert!(is_last || batch.is_none(), "{place} passed");
                            let start = batch.map_or(0, |batch| batch.start as u64);
                            let torn = Torn {
                                path: path.clone(),
                                offset: start,
                            };
                            assert_eq!(opened.torn, is_last.then_some(torn), "{place}");
                            cut_count += u32::from(is_last);
                        }
                        Err(LogError::Corrupt {
                            path: named,
                            offset: at,
                            ..
                        }) => {
                            let batch = batch.unwrap_or_else(|| panic!("{place} is nowhere, and refused"));
                            assert_eq!((&named, at), (path, batch.start as u64), "{place}");
                            assert!(!is_last, "{place}");
                            refused_count += 1;
                        }
                        Err(err) => panic!("{place}: {err}"),
                    }
                }
            }
            assert!(
                refused_count > 500 && cut_count > 40,
                "too few flips mattered: {refused_count} refused, {cut_count} cut"
            );
        }
    });
}

#[test]
fn a_log_whose_head_is_damaged_names_its_file() {
    block_on(async {
        let disk = FaultDisk::default();
        let mut opened = Log::create(disk.clone(), Path::new(DIRECTORY), KEY, OPTIONS)
            .await
            .unwrap();
        assert_eq!(opened.torn, None);
        let position = Position { term: 1, index: 0 };
        let payload = Payload::Command(Bytes::from(vec![5; 300]));
        opened.log.append(vec![Entry { position, payload }], ignore()).await;
        opened.writer.flush().await.unwrap();
        let files = disk.files();
        let path = files[0].0.clone();

        let mut flipped = files.clone();
        flipped[0].1[30] ^= 1;
        let err = refusal(&flipped).await;
        check_corrupt(&err, &path, 0);
        assert!(err.to_string().contains("wrong checksum"), "{err}");

        let mut zeroed = files.clone();
        zeroed[0].1.fill(0);
        check_corrupt(&refusal(&zeroed).await, &path, 0);

        let mut emptied = files.clone();
        emptied[0].1.clear();
        let err = refusal(&emptied).await;
        check_corrupt(&err, &path, 0);
        assert!(err.to_string().contains("the file is empty"), "{err}");

        let mut short = files.clone();
        short[0].1.truncate(10);
        check_corrupt(&refusal(&short).await, &path, 0);

        let err = refusal(&[]).await;
        assert_eq!(
            err.to_string(),
            "the log is incomplete: in /raft there is no segment (a file log-<number>)"
        );
    });
}

#[test]
fn a_segment_that_is_missing_or_cut_is_refused() {
    block_on(async {
        let (files, ..) = scripted(3).await;
        let first = first_needed(&files);
        let newest = files.iter().map(|(_, content)| batches(content).0).max().unwrap();
        assert!(newest > first, "one of several is to go");
        for (at, (path, content)) in files.iter().enumerate() {
            let (generation, batches) = batches(content);
            if generation < first {
                continue;
            }
            for len in [0, batches[0].end / 2, batches[0].end, content.len() - 1] {
                let mut cut = files.clone();
                cut[at].1.truncate(len);
                let err = refusal(&cut).await;
                assert!(
                    matches!(&err, LogError::Corrupt { path: named, offset, .. }
                        if named == path && *offset <= len as u64),
                    "generation {generation} cut to {len}: {err}"
                );
            }
            if generation < newest {
                let mut files = files.clone();
                files.remove(at);
                let err = refusal(&files).await;
                assert!(
                    err.to_string().contains(&format!("generation {generation} is missing")),
                    "{err}"
                );
            }
        }
    });
}

#[test]
fn a_segment_that_ends_early_is_blamed_and_not_the_one_after_it() {
    block_on(async {
        let (mut files, ..) = scripted(3).await;
        let newest = files.iter().map(|(_, content)| batches(content).0).max().unwrap();
        let at = files
            .iter()
            .position(|(_, content)| batches(content).0 == newest - 1)
            .unwrap();
        let last = batches(&files[at].1).1.pop().unwrap();
        files[at].1[last.clone()].fill(0);
        check_corrupt(&refusal(&files).await, &files[at].0, last.start as u64);
    });
}

#[test]
fn a_torn_write_is_cut_and_told_and_the_log_goes_on_from_there() {
    block_on(async {
        let disk = FaultDisk::default();
        let mut opened = Log::create(disk.clone(), Path::new(DIRECTORY), KEY, OPTIONS)
            .await
            .unwrap();
        let entry = |index| Entry {
            position: Position { term: 1, index },
            payload: Payload::Command(Bytes::from(vec![index as u8 + 1; 80])),
        };
        opened.log.append(vec![entry(0)], ignore()).await;
        opened.writer.flush().await.unwrap();
        opened.log.append(vec![entry(1)], ignore()).await;
        opened.writer.flush().await.unwrap();
        let mut files = disk.files();
        let last = batches(&files[0].1).1.pop().unwrap();
        files[0].1[last.start + last.len() / 2..last.end].fill(0);

        let disk = FaultDisk::with_files(&files);
        let mut opened = Log::open(disk.clone(), Path::new(DIRECTORY), KEY, OPTIONS)
            .await
            .unwrap();
        let torn = Torn {
            path: files[0].0.clone(),
            offset: last.start as u64,
        };
        assert_eq!(opened.torn, Some(torn));
        assert_eq!(opened.log.last(), Some(entry(0).position));
        opened.log.append(vec![entry(1)], ignore()).await;
        opened.writer.flush().await.unwrap();
        let (_, opened, _) = reopen(&disk, 1).await;
        assert_eq!(opened.torn, None);
        assert_eq!(opened.log.read(0, 9, usize::MAX).await.unwrap(), [entry(0), entry(1)]);
    });
}

/// Found by fuzzing: the file was kept for reuse with its torn beginning.
#[test]
fn a_torn_beginning_of_a_segment_is_told_once() {
    block_on(async {
        let disk = FaultDisk::default();
        let mut opened = Log::create(disk.clone(), Path::new(DIRECTORY), KEY, OPTIONS)
            .await
            .unwrap();
        let mut given = Vec::new();
        while disk.files().iter().all(|(_, content)| batches(content).0 < 2) {
            let entry = Entry {
                position: Position {
                    term: 1,
                    index: given.len() as u64,
                },
                payload: Payload::Command(Bytes::from(vec![1; 200])),
            };
            given.push(entry.clone());
            opened.log.append(vec![entry], ignore()).await;
            opened.writer.flush().await.unwrap();
        }
        let mut files = disk.files();
        let at = files.iter().position(|(_, content)| batches(content).0 == 2).unwrap();
        files[at].1[30] ^= 1;
        let disk = FaultDisk::with_files(&files);
        let mut opened = Log::open(disk.clone(), Path::new(DIRECTORY), KEY, OPTIONS)
            .await
            .unwrap();
        let path = files[at].0.clone();
        assert_eq!(opened.torn, Some(Torn { path, offset: 0 }));
        opened.log.save_vote(
            Vote {
                term: 2,
                node: NodeId::default(),
                committed: false,
            },
            ignore(),
        );
        opened.writer.flush().await.unwrap();
        let (_, opened, model) = reopen(&disk, 1).await;
        assert_eq!(opened.torn, None);
        given.pop();
        assert_eq!(model.entries, given);
    });
}

#[test]
fn a_log_that_was_used_is_not_replaced_by_a_fresh_one() {
    block_on(async {
        let (files, last, _) = scripted(3).await;
        for files in [&files[..], &files[..1]] {
            let disk = FaultDisk::with_files(files);
            let made = Log::create(disk.clone(), Path::new(DIRECTORY), Uuid::from_bytes([8; 16]), OPTIONS).await;
            let Err(LogError::Orphaned { path, .. }) = made.map(drop) else {
                panic!("it was replaced");
            };
            assert!(files.iter().any(|(name, _)| *name == path));
            assert_eq!(disk.files(), files, "nothing was touched");
        }
        let disk = FaultDisk::with_files(&files);
        let opened = Log::open(disk, Path::new(DIRECTORY), KEY, OPTIONS).await.unwrap();
        assert_eq!(seen(&opened.log).await.unwrap(), last);
    });
}

#[test]
fn after_a_failed_sync_nothing_succeeds_any_more() {
    block_on(async {
        let disk = FaultDisk::default();
        let mut opened = Log::create(disk.clone(), Path::new(DIRECTORY), KEY, OPTIONS)
            .await
            .unwrap();
        let failures = Arc::new(AtomicUsize::new(0));
        let count_failure = || -> Completion {
            let failures = Arc::clone(&failures);
            Box::new(move |result| {
                failures.fetch_add(usize::from(result.is_err()), Ordering::Relaxed);
            })
        };
        let vote = Vote {
            term: 1,
            node: NodeId::default(),
            committed: false,
        };
        disk.crash_at(2);
        opened.log.save_vote(vote, count_failure());
        assert!(opened.writer.flush().await.is_err());
        opened.log.save_vote(vote, count_failure());
        assert_eq!(failures.load(Ordering::Relaxed), 2);
        assert!(opened.log.save_committed(None).is_err());
        assert!(opened.writer.flush().await.is_err());
    });
}

#[test]
fn a_batch_larger_than_a_segment_gets_one_of_its_own() {
    block_on(async {
        let disk = FaultDisk::default();
        let mut opened = Log::create(disk.clone(), Path::new(DIRECTORY), KEY, OPTIONS)
            .await
            .unwrap();
        let position = Position { term: 1, index: 0 };
        let payload = Payload::Command(Bytes::from(vec![5; 100_000]));
        let entry = Entry { position, payload };
        opened.log.append(vec![entry.clone()], ignore()).await;
        opened.writer.flush().await.unwrap();
        let (_, opened, _) = reopen(&disk, 1).await;
        assert_eq!(opened.log.read(0, 1, usize::MAX).await.unwrap(), vec![entry]);
    });
}

#[test]
fn cached_entries_are_bounded_and_the_rest_is_read_from_disk() {
    block_on(async {
        let disk = FaultDisk::default();
        let mut opened = Log::create(disk.clone(), Path::new(DIRECTORY), KEY, OPTIONS)
            .await
            .unwrap();
        for index in 0..200 {
            let position = Position { term: 1, index };
            let payload = Payload::Command(Bytes::from(vec![index as u8; 100]));
            opened.log.append(vec![Entry { position, payload }], ignore()).await;
            opened.writer.flush().await.unwrap();
        }
        assert!(opened.log.shared.locked().cached_len_bytes <= OPTIONS.cache_len_bytes_max);
        let reads_before = disk.op_count();
        let entries = opened.log.read(0, 200, usize::MAX).await.unwrap();
        assert_eq!(entries.len(), 200);
        assert!(disk.op_count() - reads_before > 150, "most of it came from the disk");
        assert_eq!(entries[7].payload, Payload::Command(Bytes::from(vec![7; 100])));
        let few = opened.log.read(50, 200, 1000).await.unwrap();
        assert!(
            !few.is_empty() && few.len() < 10,
            "a bounded read is bounded: {}",
            few.len()
        );
    });
}

#[test]
fn freed_segments_are_reused_and_the_directory_does_not_grow() {
    block_on(async {
        let disk = FaultDisk::default();
        let mut opened = Log::create(disk.clone(), Path::new(DIRECTORY), KEY, OPTIONS)
            .await
            .unwrap();
        for index in 0..1000 {
            let position = Position { term: 1, index };
            let payload = Payload::Command(Bytes::from(vec![1; 100]));
            opened.log.append(vec![Entry { position, payload }], ignore()).await;
            if index % 10 == 9 {
                opened.log.purge(
                    Position {
                        term: 1,
                        index: index - 5,
                    },
                    ignore(),
                );
            }
            opened.writer.flush().await.unwrap();
        }
        assert!(disk.files().len() <= 6, "{} files", disk.files().len());
        let (_, opened, _) = reopen(&disk, 5).await;
        assert_eq!(opened.log.last(), Some(Position { term: 1, index: 999 }));
        assert_eq!(opened.log.purged(), Some(Position { term: 1, index: 994 }));
    });
}
