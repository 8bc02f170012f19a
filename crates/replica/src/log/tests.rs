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

#[test]
fn a_flipped_byte_is_corruption_or_cuts_the_last_batch_and_never_passes() {
    block_on(async {
        let disk = FaultDisk::default();
        let mut opened = Log::create(disk.clone(), Path::new(DIRECTORY), KEY, OPTIONS)
            .await
            .unwrap();
        let mut model = Model::default();
        play(&mut opened, &mut model, 3, 40).await;
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
        let files = disk.files();
        let mut refused_count = 0;
        for (at, (path, bytes)) in files.iter().enumerate() {
            for offset in 0..bytes.len() {
                let mut damaged = files.clone();
                damaged[at].1[offset] ^= 1 << (offset % 8);
                let disk = FaultDisk::with_files(&damaged);
                match Log::open(disk, Path::new(DIRECTORY), KEY, OPTIONS).await {
                    Ok(opened) => {
                        let now = seen(&opened.log).await.unwrap();
                        assert!(
                            now == last || now == before_last,
                            "a flip at {offset} of {} passed as {now:?}",
                            path.display()
                        );
                    }
                    Err(LogError::Corrupt { .. }) => refused_count += 1,
                    Err(err) => panic!("a flip at {offset} of {}: {err}", path.display()),
                }
            }
        }
        assert!(refused_count > 500, "too few flips mattered: {refused_count}");
    });
}

#[test]
fn corruption_is_reported_with_file_and_offset() {
    block_on(async {
        let disk = FaultDisk::default();
        let mut opened = Log::create(disk.clone(), Path::new(DIRECTORY), KEY, OPTIONS)
            .await
            .unwrap();
        for index in 0..3 {
            let position = Position { term: 1, index };
            let payload = Payload::Blank;
            opened.log.append(vec![Entry { position, payload }], ignore()).await;
            opened.writer.flush().await.unwrap();
        }
        let mut files = disk.files();
        let second_batch = {
            let content = Bytes::from(files[0].1.clone());
            bytes_of::batch_at(&KEY, &content, 0).unwrap().len_bytes
        };
        files[0].1[second_batch + 30] ^= 1;
        let disk = FaultDisk::with_files(&files);
        let Err(LogError::Corrupt { path, offset, .. }) = Log::open(disk, Path::new(DIRECTORY), KEY, OPTIONS).await
        else {
            panic!("it was opened");
        };
        assert_eq!((path, offset), (files[0].0.clone(), second_batch as u64));
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
