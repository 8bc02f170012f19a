//! A server's log, snapshots and state machine on a disk that crashes, without consensus: the steps are made in the order
//! in which consensus makes them, and recovery is its own.

use super::*;
use crate::fault_disk::{FaultDisk, FaultRt};
use crate::log::{Completion, LogError, Options, Writer};
use crate::machine::{Machine, Published};
use crate::storage::LogStorage;
use crate::types::{StoredMembership, Types};
use futures::executor::block_on;
use openraft::storage::{RaftLogStorage as _, RaftStateMachine as _};
use openraft::{RaftSnapshotBuilder as _, StorageHelper};
use proptest::prelude::*;
use quorate_rt::{MemoryDisk, Rng};
use quorate_store::{Command, KvCommand};
use quorate_types::{KvPair, LogIndex, NodeId, Uuid};
use quorate_wire::log::{Entry, Payload, Vote};
use quorate_wire::state::encode_command;
use rand_core::{Rng as _, SeedableRng as _};
use std::sync::LazyLock;

const KEY: Uuid = Uuid::from_bytes([9; 16]);
const DIRECTORY: &str = "/raft";
/// Small, so that a short script purges whole segments.
const OPTIONS: Options = Options {
    first_segment_len_bytes: 1024,
    segment_len_bytes: 2048,
    cache_len_bytes_max: 1024,
    pending_len_bytes_max: 1024 * 1024,
};

type Disks = AnyDisk<FaultDisk>;

fn ignore() -> Completion {
    Box::new(|_| {})
}

fn node() -> NodeId {
    NodeId(Uuid::from_bytes([1; 16]))
}

fn put(key: u64, value: Vec<u8>) -> Command {
    Command::Kv(KvCommand::Set(KvPair {
        key: format!("k{key}"),
        value,
        ..KvPair::default()
    }))
}

/// All that was ever decided or given to one server: its log from the very first entry on, purged or not. The very first
/// one is blank, as state begins at index 1.
#[derive(Clone, Debug, Default, PartialEq)]
struct History {
    entries: Vec<(Position, Command)>,
}

impl History {
    fn last(&self) -> Option<Position> {
        self.entries.last().map(|(position, _)| *position)
    }
    fn next_index(&self) -> u64 {
        self.entries.len() as u64
    }
    fn upto(&self, count: u64) -> Self {
        Self {
            entries: self.entries[..usize::try_from(count).unwrap()].to_vec(),
        }
    }
    fn push(&mut self, term: u64, rng: &mut Rng) {
        let index = self.next_index();
        let value = vec![rng.next_u32() as u8; rng.next_u32() as usize % 200];
        self.entries
            .push((Position { term, index }, put(rng.next_u64() % 20, value)));
    }
    fn store(&self) -> Store {
        let mut store = Store::new();
        for (position, command) in self.entries.iter().skip(1) {
            store.apply(LogIndex(position.index), command);
        }
        store
    }
    fn wire(&self, from: u64) -> Vec<Entry> {
        self.entries[usize::try_from(from).unwrap()..]
            .iter()
            .map(|(position, command)| Entry {
                position: *position,
                payload: match position.index {
                    0 => Payload::Blank,
                    _ => Payload::Command(Bytes::from(encode_command(command))),
                },
            })
            .collect()
    }
    fn meta(&self) -> SnapshotMeta {
        SnapshotMeta {
            last: self.last(),
            ..SnapshotMeta::default()
        }
    }
}

/// What a restart must come to, as far as it can be compared.
type Seen = (Option<Position>, u64);

fn seen_of(history: &History) -> Seen {
    (history.last(), history.store().hash())
}

struct Server {
    log: Log<Disks>,
    writer: Writer<Disks>,
    storage: LogStorage<FaultRt>,
    snapshots: Snapshots<FaultRt>,
    machine: Machine<FaultRt>,
    published: Arc<Published>,
    received_count: u64,
}

impl Server {
    async fn create(disk: &FaultDisk) -> Self {
        let disk = AnyDisk::Real(disk.clone());
        let opened = Log::create(disk.clone(), Path::new(DIRECTORY), KEY, OPTIONS)
            .await
            .unwrap();
        let mut server = Self::assemble(disk, opened.log, opened.writer, None);
        server.vote(1).await.unwrap();
        server
    }

    fn assemble(
        disk: Disks,
        log: Log<Disks>,
        writer: Writer<Disks>,
        newest: Option<(SnapshotFile<FaultRt>, SnapshotMeta, Store)>,
    ) -> Self {
        let snapshots = Snapshots::new(disk, Path::new(DIRECTORY));
        let published = Arc::new(Published::default());
        let machine = Machine::new(FaultRt::default(), snapshots.clone(), Arc::clone(&published), newest).unwrap();
        Self {
            storage: LogStorage::new(log.clone()),
            log,
            writer,
            snapshots,
            machine,
            published,
            received_count: 0,
        }
    }

    /// As a start does it.
    async fn recover(disk: &FaultDisk) -> Result<Self, String> {
        let disk = AnyDisk::Real(disk.clone());
        let opened = Log::open(disk.clone(), Path::new(DIRECTORY), KEY, OPTIONS)
            .await
            .map_err(|err| err.to_string())?;
        let snapshots = Snapshots::<FaultRt>::new(disk.clone(), Path::new(DIRECTORY));
        let newest = snapshots.open_for(&opened.log).await.map_err(|err| err.to_string())?;
        let mut server = Self::assemble(disk, opened.log, opened.writer, newest);
        StorageHelper::<Types<FaultRt>, _, _>::new(&mut server.storage, &mut server.machine)
            .with_id(node())
            .get_initial_state()
            .await
            .map_err(|err| err.to_string())?;
        Ok(server)
    }

    /// What is there: the state with all the log behind it.
    async fn seen(&mut self) -> Result<Seen, LogError> {
        let mut store = Store::clone(&self.published.store());
        let next = self.applied().await.map_or(0, |applied| applied.index + 1);
        for entry in self.log.read(next, u64::MAX, usize::MAX).await? {
            let Payload::Command(command) = entry.payload else {
                continue;
            };
            let command = quorate_wire::state::decode_command(&command).unwrap();
            store.apply(LogIndex(entry.position.index), &command);
        }
        Ok((self.log.last(), store.hash()))
    }

    async fn applied(&mut self) -> Option<Position> {
        let (applied, _) = self.machine.applied_state().await.unwrap();
        applied.as_ref().map(types::position)
    }

    async fn vote(&mut self, term: u64) -> Result<(), String> {
        let vote = Vote {
            term,
            node: node(),
            committed: true,
        };
        self.log.save_vote(vote, ignore());
        self.writer.flush().await.map_err(|err| err.to_string())
    }

    async fn append(&mut self, entries: Vec<Entry>) -> Result<(), String> {
        self.log.append(entries, ignore()).await;
        self.writer.flush().await.map_err(|err| err.to_string())
    }

    async fn apply(&mut self, entries: Vec<Entry>) {
        let entries = entries.into_iter().map(|entry| {
            let entry = types::entry_from_wire(entry).map_err(io::Error::other)?;
            Ok((entry, None))
        });
        self.machine.apply(futures::stream::iter(entries)).await.unwrap();
    }

    async fn build(&mut self) -> Result<(), String> {
        let mut builder = self.machine.get_snapshot_builder().await;
        builder.build_snapshot().await.map(drop).map_err(|err| err.to_string())
    }

    async fn purge(&mut self, upto: Position) -> Result<(), String> {
        self.storage
            .purge(types::log_id(upto))
            .await
            .map_err(|err| err.to_string())?;
        self.writer.flush().await.map_err(|err| err.to_string())
    }

    /// Takes a snapshot's bytes, and makes it the state. The log is purged by the caller.
    async fn install(&mut self, bytes: &[u8], meta: &SnapshotMeta) -> Result<(), String> {
        self.received_count += 1;
        let text = |err: SnapshotFileError| err.to_string();
        let mut receiving = self.snapshots.receive(self.received_count).await.map_err(text)?;
        for piece in bytes.chunks(700) {
            receiving.push(Bytes::copy_from_slice(piece)).await.map_err(text)?;
        }
        let path = receiving.path.clone();
        let file = receiving.finish().await.map_err(text)?;
        file.load().await.map_err(text)?;
        let meta = types::SnapshotMeta {
            last_log_id: meta.last.map(types::log_id),
            last_membership: StoredMembership::default(),
        };
        self.machine
            .install_snapshot(&meta, file)
            .await
            .map_err(|err| err.to_string())?;
        self.snapshots.discard(&path).await.map_err(text)
    }
}

/// A leader's snapshot, as it is sent.
async fn bytes_of(history: &History) -> Vec<u8> {
    let disk = MemoryDisk::default();
    disk.create_dir_all(Path::new(DIRECTORY)).await.unwrap();
    let snapshots = Snapshots::<FaultRt>::new(AnyDisk::Memory(disk), Path::new(DIRECTORY));
    let file = snapshots.build(&history.meta(), &history.store()).await.unwrap();
    let mut bytes = Vec::new();
    while (bytes.len() as u64) < file.len_bytes {
        bytes.extend_from_slice(&file.chunk(bytes.len() as u64).await.unwrap());
    }
    bytes
}

/// A server and what it has to be.
struct Run {
    /// What may be found after a crash: the last one is what all steps together come to, and the only one between steps.
    candidates: Vec<History>,
    /// How many entries are committed. They are applied, but perhaps the last ones.
    committed: u64,
    term: u64,
    rng: Rng,
}

impl Run {
    fn new(script: u64) -> Self {
        Self {
            candidates: vec![History::default()],
            committed: 0,
            term: 1,
            rng: Rng::seed_from_u64(script),
        }
    }
    fn now(&self) -> &History {
        self.candidates.last().expect("there is always one")
    }

    /// One random step; an error is the crash.
    async fn step(&mut self, server: &mut Server) -> Result<(), String> {
        match self.rng.next_u32() % 8 {
            0 | 1 => {
                let mut history = self.now().clone();
                for _ in 0..1 + self.rng.next_u32() % 4 {
                    history.push(self.term, &mut self.rng);
                }
                let entries = history.wire(self.now().next_index());
                self.candidates.push(history);
                server.append(entries).await?;
            }
            2 | 3 => {
                self.committed += self.rng.next_u64() % (self.now().next_index() - self.committed + 1);
                self.apply_committed(server).await?;
            }
            4 | 5 if self.committed > 0 => {
                self.apply_committed(server).await?;
                server.build().await?;
                // Some are kept for followers that are a little behind.
                let keep = self.rng.next_u64() % 4;
                if let Some(upto) = (self.committed - 1).checked_sub(keep) {
                    let upto = self.now().entries[usize::try_from(upto).unwrap()].0;
                    server.purge(upto).await?;
                }
            }
            6 => {
                // Another leader's entries are due where ours were.
                let history = self.now().upto(self.committed);
                let after = history.last();
                self.candidates.push(history);
                server.log.truncate(after, ignore());
                server.writer.flush().await.map_err(|err| err.to_string())?;
            }
            7 => {
                let is_known = self.rng.next_u32().is_multiple_of(4) && self.now().next_index() > self.committed;
                let from = if is_known {
                    let count = self.now().next_index() - self.committed;
                    let more = 1 + self.rng.next_u64() % count;
                    self.now().upto(self.committed + more)
                } else {
                    self.term += 1;
                    server.vote(self.term).await?;
                    let mut history = self.now().upto(self.committed);
                    for _ in 0..1 + self.rng.next_u32() % 8 {
                        history.push(self.term, &mut self.rng);
                    }
                    history
                };
                self.install(server, from).await?;
            }
            _ => {}
        }
        let now = self.now().clone();
        self.candidates = vec![now];
        Ok(())
    }

    async fn apply_committed(&mut self, server: &mut Server) -> Result<(), String> {
        let committed = self.now().upto(self.committed);
        server
            .log
            .save_committed(committed.last())
            .map_err(|err| err.to_string())?;
        let from = server.applied().await.map_or(0, |applied| applied.index + 1);
        if from < self.committed {
            server.apply(committed.wire(from)).await;
        }
        Ok(())
    }

    /// In consensus' order: what contradicts the snapshot is cut off, it is installed, the log purged.
    async fn install(&mut self, server: &mut Server, from: History) -> Result<(), String> {
        let last = from.last().expect("it has an entry");
        let at = usize::try_from(last.index).unwrap();
        let same = self.now().entries.get(at).map(|(position, _)| *position == last);
        if same == Some(false) {
            let kept = self.now().upto(self.committed);
            let after = kept.last();
            self.candidates.push(kept);
            server.log.truncate(after, ignore());
            server.writer.flush().await.map_err(|err| err.to_string())?;
        }
        let mut installed = from.clone();
        if same == Some(true) {
            let now = self.now().entries[at + 1..].to_vec();
            installed.entries.extend(now);
        }
        self.candidates.push(installed);
        server.install(&bytes_of(&from).await, &from.meta()).await?;
        // From here on the leader is told that it has it.
        self.candidates.drain(..self.candidates.len() - 1);
        self.committed = from.next_index();
        server.purge(last).await
    }

    async fn play(&mut self, server: &mut Server, steps: u32) -> Result<(), String> {
        for _ in 0..steps {
            self.step(server).await?;
            let seen = server.seen().await.map_err(|err| err.to_string())?;
            assert_eq!(seen, seen_of(self.now()), "what was done is there");
        }
        Ok(())
    }

    /// Judges what a restart found, and goes on from it. `false`: it crashed before it could be looked at.
    async fn found(&mut self, server: &mut Server, context: &str) -> bool {
        let Ok(seen) = server.seen().await else {
            return false;
        };
        let Some(history) = self.candidates.iter().rev().find(|history| seen_of(history) == seen) else {
            panic!("{context}: {seen:?} is none of {:?}", self.candidates);
        };
        self.candidates = vec![history.clone()];
        let applied = server.applied().await.map_or(0, |applied| applied.index + 1);
        self.committed = self.committed.max(applied);
        assert!(
            self.committed <= self.now().next_index(),
            "{context}: committed entries are gone"
        );
        true
    }
}

#[derive(Clone, Copy, Debug)]
enum Crash {
    /// Power is lost, then again while or after the server recovers.
    Power,
    /// Only the process ends, and power is lost while or after the server recovers.
    Process,
}

async fn crash_twice(script: u64, steps: u32, crash_at: u64, crash: Crash) {
    let context = format!("script {script}, {crash:?} lost at {crash_at}");
    let disk = FaultDisk::default();
    let mut server = Server::create(&disk).await;
    let mut run = Run::new(script);
    disk.crash_at(crash_at);
    run.play(&mut server, steps)
        .await
        .expect_err("it crashes at one of the operations of the whole script");
    drop(server);
    let disk = match crash {
        Crash::Power => disk.restart(crash_at),
        Crash::Process => disk.end_process(),
    };

    disk.crash_at(1 + crash_at * 7 % 60);
    if let Ok(mut server) = Server::recover(&disk).await
        && run.found(&mut server, &context).await
    {
        // It goes on from there; what it found once it does not lose any more.
        let _ = run.play(&mut server, steps).await;
    }

    let disk = disk.restart(crash_at + 1000);
    let mut server = Server::recover(&disk)
        .await
        .unwrap_or_else(|err| panic!("{context}, then power: {err}"));
    assert!(run.found(&mut server, &format!("{context}, then power")).await);
}

#[test]
fn a_crash_at_any_step_of_a_snapshot_loses_nothing_that_was_acknowledged() {
    const STEPS: u32 = 30;
    block_on(async {
        for script in 0..2 {
            let disk = FaultDisk::default();
            let mut server = Server::create(&disk).await;
            let made_at = disk.op_count();
            let mut run = Run::new(script);
            run.play(&mut server, STEPS).await.unwrap();
            let op_count = disk.op_count() - made_at;
            let purged = server.log.purged();
            assert!(
                op_count > 120 && purged.is_some() && server.received_count > 0,
                "script {script} does too little: {op_count} operations, purged {purged:?}, {} installed",
                server.received_count
            );
            for crash_at in 1..=op_count {
                for crash in [Crash::Power, Crash::Process] {
                    crash_twice(script, STEPS, crash_at, crash).await;
                }
            }
        }
    });
}

type Files = Vec<(PathBuf, Vec<u8>)>;

/// The files of a server that wrote a snapshot and purged its log, and which of them is the snapshot.
async fn snapshotted(entry_count: u64, value_len_bytes: usize) -> (Files, usize) {
    let disk = FaultDisk::default();
    let mut server = Server::create(&disk).await;
    let mut history = History::default();
    for index in 0..entry_count {
        let value = vec![index as u8; value_len_bytes];
        history.entries.push((Position { term: 1, index }, put(index, value)));
    }
    server.append(history.wire(0)).await.unwrap();
    server.apply(history.wire(0)).await;
    server.build().await.unwrap();
    server.purge(history.last().unwrap()).await.unwrap();
    let files = disk.files();
    let at = files
        .iter()
        .position(|(path, _)| path.to_string_lossy().contains(NAME_PREFIX))
        .unwrap();
    (files, at)
}

/// The meta, and each frame, with the preamble before the first.
fn parts(snapshot: &[u8]) -> Vec<std::ops::Range<usize>> {
    const PREAMBLE_LEN_BYTES: usize = 9;
    let u32_at = |at: usize| u32::from_le_bytes(snapshot[at..at + 4].try_into().unwrap()) as usize;
    let mut at = META_HEADER_LEN_BYTES + u32_at(0);
    let mut parts = vec![0..at, at..at + PREAMBLE_LEN_BYTES];
    at += PREAMBLE_LEN_BYTES;
    while at < snapshot.len() {
        let end = at + 9 + u32_at(at + 1);
        parts.push(at..end);
        at = end;
    }
    assert_eq!(at, snapshot.len());
    parts
}

async fn refusal(files: &[(PathBuf, Vec<u8>)]) -> SnapshotFileError {
    let disk = AnyDisk::Real(FaultDisk::with_files(files));
    let opened = Log::open(disk.clone(), Path::new(DIRECTORY), KEY, OPTIONS)
        .await
        .unwrap();
    let snapshots = Snapshots::<FaultRt>::new(disk, Path::new(DIRECTORY));
    match snapshots.open_for(&opened.log).await {
        Ok(_) => panic!("it was opened"),
        Err(err) => err,
    }
}

#[track_caller]
fn check_place(err: &SnapshotFileError, path: &Path, part: &std::ops::Range<usize>) {
    let (SnapshotFileError::Corrupt {
        path: named, offset, ..
    }
    | SnapshotFileError::Format {
        path: named, offset, ..
    }) = err
    else {
        panic!("{err}");
    };
    assert_eq!(named, path);
    assert!(part.contains(&usize::try_from(*offset).unwrap()), "{part:?}: {err}");
    let text = err.to_string();
    assert!(
        text.contains(path.to_str().unwrap()) && text.contains(&format!("at offset {offset}")),
        "{text}"
    );
}

#[test]
fn a_flipped_byte_of_a_snapshot_is_refused_with_its_file_and_place() {
    block_on(async {
        let (files, at) = snapshotted(8, 20).await;
        let (path, sound) = files[at].clone();
        let parts = parts(&sound);
        for flipped in 0..sound.len() {
            let mut files = files.clone();
            files[at].1[flipped] ^= 1 << (flipped % 8);
            let part = parts.iter().find(|part| part.contains(&flipped)).unwrap();
            check_place(&refusal(&files).await, &path, part);
        }
    });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]
    #[test]
    fn damage_of_a_large_snapshot_is_placed_in_its_frame(flipped: prop::sample::Index, bit in 0..8_u8) {
        static LARGE: LazyLock<(Files, usize)> = LazyLock::new(|| block_on(snapshotted(30, 40_000)));
        let (mut files, at) = LARGE.clone();
        block_on(async {
            let (path, sound) = files[at].clone();
            let parts = parts(&sound);
            assert!(parts.len() > 5, "several frames: {parts:?}");
            let flipped = flipped.index(sound.len());
            files[at].1[flipped] ^= 1 << bit;
            let part = parts.iter().find(|part| part.contains(&flipped)).unwrap();
            check_place(&refusal(&files).await, &path, part);
        });
    }
}

#[test]
fn a_cut_or_lengthened_snapshot_is_refused_at_what_is_not_whole() {
    block_on(async {
        let (files, at) = snapshotted(8, 20).await;
        let (path, sound) = files[at].clone();
        let parts = parts(&sound);
        for len in 0..sound.len() {
            let mut files = files.clone();
            files[at].1.truncate(len);
            let part = parts.iter().find(|part| part.contains(&len)).unwrap();
            check_place(&refusal(&files).await, &path, part);
        }
        let mut files = files.clone();
        files[at].1.push(0);
        check_place(&refusal(&files).await, &path, &(sound.len()..sound.len() + 1));
    });
}

#[test]
fn a_snapshot_that_the_log_counts_on_and_that_is_gone_is_named() {
    block_on(async {
        let (mut files, at) = snapshotted(8, 20).await;
        let (path, content) = files.remove(at);
        let err = refusal(&files).await;
        assert_eq!(
            err.to_string(),
            "a snapshot is missing in /raft: the log is purged up to index 7, and there is none: a file \
             snapshot-<term>-<index> of index 7 or above has to be there"
        );

        // An older one does not do.
        let mut older = History::default();
        for index in 0..5 {
            older.entries.push((Position { term: 1, index }, put(index, vec![])));
        }
        let older_path = Path::new(DIRECTORY).join("snapshot-0000000000000001-0000000000000004");
        files.push((older_path.clone(), bytes_of(&older).await));
        let err = refusal(&files).await;
        assert!(
            matches!(&err, SnapshotFileError::Missing { purged: 7, newest: Some(newest), .. } if *newest == older_path),
            "{err}"
        );

        // Nor does it under another one's name.
        files.last_mut().unwrap().0 = path.clone();
        let err = refusal(&files).await;
        check_place(&err, &path, &(8..9));
        files.last_mut().unwrap().1 = content;
        let disk = FaultDisk::with_files(&files);
        assert!(Server::recover(&disk).await.is_ok());
    });
}

#[test]
fn a_snapshot_beside_a_new_log_is_refused() {
    block_on(async {
        let (files, at) = snapshotted(8, 20).await;
        let disk = AnyDisk::Real(FaultDisk::with_files(&[files[at].clone()]));
        let opened = Log::create(disk.clone(), Path::new(DIRECTORY), KEY, OPTIONS)
            .await
            .unwrap();
        let snapshots = Snapshots::<FaultRt>::new(disk, Path::new(DIRECTORY));
        let refused = snapshots.open_for(&opened.log).await.map(drop);
        assert!(matches!(refused, Err(SnapshotFileError::LogMissing { path }) if path == files[at].0));
    });
}
