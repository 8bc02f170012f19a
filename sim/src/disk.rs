//! A machine's disk: what is written is not what survives.
//!
//! Content is cached until its file is synced, and names until their directory is. A kill of the process keeps the cache.
//! Power loss keeps of the unsynced what the seed draws: per file all, nothing, or each 512-byte sector for itself; of the
//! unsynced names a prefix of their changes, because file systems keep them in an ordered journal.
//! A failed sync is final: what it should have made durable stays volatile until it is written again, as on Linux, where
//! pages are marked clean after a failed write-back.
//! In: operations of `SimDisk`. Out: bytes, errors, the digest.
//! Invariants: the content seen before a kill is what was written; after power loss each sector is its synced content or
//! the last written; a synced sector is never lost.
//! Not here: how long an operation takes (`SimDisk`), file content on a real machine.
//! Memory: pages of zeros are not stored, so preallocated files cost nothing.

use crate::world::{MachineId, World};
use bytes::Bytes;
use quorate_rt::{DirEntry, Disk, File, OpenMode, Rng};
use rand_core::Rng as _;
use std::any::Any;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Range;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

const SECTOR_LEN: u64 = 512;
const PAGE_LEN: u64 = 4096;

type InodeId = u64;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Entry {
    Directory,
    File(InodeId),
}

/// A change of a name that no sync has made durable yet.
#[derive(Clone, Debug)]
enum NameChange {
    Set(PathBuf, Entry),
    Remove(PathBuf, Entry),
    Rename(PathBuf, PathBuf, Entry),
}

impl NameChange {
    fn touches(&self, directory: &Path) -> bool {
        match self {
            Self::Set(path, _) | Self::Remove(path, _) => path.parent() == Some(directory),
            Self::Rename(from, to, _) => from.parent() == Some(directory) || to.parent() == Some(directory),
        }
    }
    fn paths(&self) -> Vec<&PathBuf> {
        match self {
            Self::Set(path, _) | Self::Remove(path, _) => vec![path],
            Self::Rename(from, to, _) => vec![from, to],
        }
    }
    fn apply(self, tree: &mut BTreeMap<PathBuf, Entry>) {
        match self {
            Self::Set(path, entry) => {
                tree.insert(path, entry);
            }
            Self::Remove(path, _) => {
                tree.remove(&path);
            }
            Self::Rename(from, to, entry) => {
                tree.remove(&from);
                tree.insert(to, entry);
            }
        }
    }
}

#[derive(Debug, Default)]
struct Inode {
    len_bytes: u64,
    /// Pages that hold anything but zeros.
    pages: BTreeMap<u64, Box<[u8]>>,
    /// Durable content of sectors that were changed since; empty stands for zeros.
    undo: BTreeMap<u64, Box<[u8]>>,
    durable_len_bytes: u64,
    /// Sectors a failed sync left volatile: a later sync does not save them.
    poisoned: BTreeSet<u64>,
    open_count: u32,
}

fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|&byte| byte == 0)
}

impl Inode {
    fn read(&self, range: Range<u64>) -> Vec<u8> {
        let end = range.end.min(self.len_bytes);
        let mut content = Vec::new();
        let mut at = range.start;
        while at < end {
            let page = at / PAGE_LEN;
            let stop = end.min((page + 1) * PAGE_LEN);
            match self.pages.get(&page) {
                Some(bytes) => content.extend_from_slice(&bytes[(at % PAGE_LEN) as usize..][..(stop - at) as usize]),
                None => content.resize(content.len() + (stop - at) as usize, 0),
            }
            at = stop;
        }
        content
    }
    fn sector(&self, sector: u64) -> Box<[u8]> {
        let start = (sector * SECTOR_LEN % PAGE_LEN) as usize;
        match self.pages.get(&(sector * SECTOR_LEN / PAGE_LEN)) {
            Some(page) if !is_zero(&page[start..start + SECTOR_LEN as usize]) => {
                page[start..start + SECTOR_LEN as usize].into()
            }
            _ => Box::default(),
        }
    }
    /// Changes part of one sector. Its durable content is kept until a sync.
    fn write_in_sector(&mut self, at: u64, bytes: &[u8]) {
        let sector = at / SECTOR_LEN;
        self.poisoned.remove(&sector);
        let page = at / PAGE_LEN;
        let start = (at % PAGE_LEN) as usize;
        let unchanged = match self.pages.get(&page) {
            Some(page) => page[start..start + bytes.len()] == *bytes,
            None => is_zero(bytes),
        };
        if unchanged {
            return;
        }
        if !self.undo.contains_key(&sector) {
            let durable = self.sector(sector);
            self.undo.insert(sector, durable);
        }
        let content = self
            .pages
            .entry(page)
            .or_insert_with(|| vec![0; PAGE_LEN as usize].into());
        content[start..start + bytes.len()].copy_from_slice(bytes);
    }
    fn write(&mut self, offset: u64, mut bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        let mut at = offset;
        while !bytes.is_empty() {
            let room = (SECTOR_LEN - at % SECTOR_LEN) as usize;
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            self.write_in_sector(at, now);
            at += now.len() as u64;
            bytes = later;
        }
        self.len_bytes = self.len_bytes.max(at);
    }
    fn zero_from(&mut self, from: u64) {
        let pages: Vec<u64> = self.pages.range(from / PAGE_LEN..).map(|(&page, _)| page).collect();
        for page in pages {
            let mut at = (page * PAGE_LEN).max(from);
            while at < (page + 1) * PAGE_LEN {
                let stop = (at / SECTOR_LEN + 1) * SECTOR_LEN;
                self.write_in_sector(at, &vec![0; (stop - at) as usize]);
                at = stop;
            }
            if is_zero(&self.pages[&page]) {
                self.pages.remove(&page);
            }
        }
    }
    fn set_len_bytes(&mut self, len_bytes: u64) {
        if len_bytes < self.len_bytes {
            self.zero_from(len_bytes);
        }
        self.len_bytes = len_bytes;
    }
    fn sync(&mut self) {
        let poisoned = &self.poisoned;
        self.undo.retain(|sector, _| poisoned.contains(sector));
        self.durable_len_bytes = self.len_bytes;
    }
    /// Nothing of what is volatile will survive power loss.
    fn forget_at_power_loss(&mut self) {
        self.sync_failed();
        self.len_bytes = self.durable_len_bytes;
    }
    fn sync_failed(&mut self) {
        self.poisoned.extend(self.undo.keys());
    }
    fn lose_power(&mut self, rng: &mut Rng) {
        // 0: all lost, 1: all kept, else each sector for itself.
        let fate = rng.next_u32() % 4;
        for (sector, durable) in std::mem::take(&mut self.undo) {
            let lost = fate == 0 || (fate > 1 && rng.next_u32().is_multiple_of(2)) || self.poisoned.contains(&sector);
            if !lost {
                continue;
            }
            let start = (sector * SECTOR_LEN % PAGE_LEN) as usize;
            let page = self
                .pages
                .entry(sector * SECTOR_LEN / PAGE_LEN)
                .or_insert_with(|| vec![0; PAGE_LEN as usize].into());
            let content = &mut page[start..start + SECTOR_LEN as usize];
            match durable.is_empty() {
                true => content.fill(0),
                false => content.copy_from_slice(&durable),
            }
        }
        self.poisoned.clear();
        if fate == 0 || (fate > 1 && rng.next_u32().is_multiple_of(2)) {
            self.len_bytes = self.durable_len_bytes;
        }
        self.zero_from(self.len_bytes);
        self.undo.clear();
        self.durable_len_bytes = self.len_bytes;
    }
}

/// What the disk does wrong. Ratios are per operation.
#[derive(Clone, Debug, Default)]
pub struct DiskFaults {
    pub read_error_ratio: f64,
    pub write_error_ratio: f64,
    pub sync_error_ratio: f64,
    /// No space is left: nothing grows and no name is made.
    pub full: bool,
    /// Every operation takes this many times longer (0 and 1: as usual).
    pub slow_factor: u32,
    /// Syncs succeed and make nothing durable: a drive that keeps a volatile cache and denies it.
    pub lies_about_syncs: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operation {
    Read,
    Write,
    Sync,
}

/// One machine's disk, kept through kills.
#[derive(Debug)]
pub(crate) struct DiskState {
    inodes: BTreeMap<InodeId, Inode>,
    inodes_made: u64,
    tree: BTreeMap<PathBuf, Entry>,
    durable_tree: BTreeMap<PathBuf, Entry>,
    unsynced_names: Vec<NameChange>,
    locks: BTreeMap<PathBuf, u64>,
    locks_made: u64,
    pub faults: DiskFaults,
    rng: Rng,
}

fn error(kind: io::ErrorKind, path: &Path, reason: &str) -> io::Error {
    io::Error::new(kind, format!("{}: {reason}", path.display()))
}

fn not_found(path: &Path) -> io::Error {
    error(io::ErrorKind::NotFound, path, "no such file or directory")
}

fn io_error() -> io::Error {
    // The kernel's own word for it: EIO.
    io::Error::from_raw_os_error(5)
}

/// The path as the tree names it: absolute, the working directory being the root.
fn normal(path: &Path) -> PathBuf {
    let mut normal = PathBuf::from("/");
    for component in path.components() {
        match component {
            Component::Normal(part) => normal.push(part),
            Component::ParentDir => {
                normal.pop();
            }
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    normal
}

impl DiskState {
    pub fn new(rng: Rng) -> Self {
        let root = BTreeMap::from([(PathBuf::from("/"), Entry::Directory)]);
        Self {
            inodes: BTreeMap::new(),
            inodes_made: 0,
            tree: root.clone(),
            durable_tree: root,
            unsynced_names: Vec::new(),
            locks: BTreeMap::new(),
            locks_made: 0,
            faults: DiskFaults::default(),
            rng,
        }
    }

    fn draw(&mut self, ratio: f64) -> bool {
        ratio > 0.0 && f64::from(self.rng.next_u32()) < ratio * f64::from(u32::MAX)
    }
    fn fails(&mut self, operation: Operation) -> bool {
        let ratio = match operation {
            Operation::Read => self.faults.read_error_ratio,
            Operation::Write => self.faults.write_error_ratio,
            Operation::Sync => self.faults.sync_error_ratio,
        };
        self.draw(ratio)
    }
    /// How long an operation takes: some tens of microseconds, a sync up to two milliseconds.
    fn delay(&mut self, operation: Operation) -> Duration {
        let micros = match operation {
            Operation::Read => 5 + self.rng.next_u32() % 40,
            Operation::Write => 10 + self.rng.next_u32() % 60,
            Operation::Sync => 200 + self.rng.next_u32() % 1_800,
        };
        Duration::from_micros(u64::from(micros)) * self.faults.slow_factor.max(1)
    }

    fn check_parent(&self, path: &Path) -> io::Result<()> {
        match path.parent().map(|parent| self.tree.get(parent)) {
            Some(Some(Entry::Directory)) => Ok(()),
            Some(Some(Entry::File(_))) => Err(error(io::ErrorKind::NotADirectory, path, "not a directory")),
            _ => Err(not_found(path)),
        }
    }
    fn change(&mut self, change: NameChange) {
        change.clone().apply(&mut self.tree);
        self.unsynced_names.push(change);
    }
    fn open(&mut self, path: &Path, mode: OpenMode) -> io::Result<InodeId> {
        match self.tree.get(path) {
            Some(Entry::Directory) => return Err(error(io::ErrorKind::IsADirectory, path, "is a directory")),
            Some(Entry::File(_)) if mode == OpenMode::CreateNew => {
                return Err(error(io::ErrorKind::AlreadyExists, path, "file exists"));
            }
            Some(&Entry::File(inode)) => return Ok(inode),
            None if matches!(mode, OpenMode::Read | OpenMode::Write) => return Err(not_found(path)),
            None => {}
        }
        self.check_parent(path)?;
        if self.faults.full {
            return Err(error(io::ErrorKind::StorageFull, path, "no space left on device"));
        }
        self.inodes_made += 1;
        self.inodes.insert(self.inodes_made, Inode::default());
        self.change(NameChange::Set(path.to_owned(), Entry::File(self.inodes_made)));
        Ok(self.inodes_made)
    }
    fn create_dir_all(&mut self, path: &Path) -> io::Result<()> {
        let mut missing = Vec::new();
        for ancestor in path.ancestors() {
            match self.tree.get(ancestor) {
                Some(Entry::Directory) => break,
                Some(Entry::File(_)) => return Err(error(io::ErrorKind::NotADirectory, ancestor, "not a directory")),
                None => missing.push(ancestor.to_owned()),
            }
        }
        if self.faults.full && !missing.is_empty() {
            return Err(error(io::ErrorKind::StorageFull, path, "no space left on device"));
        }
        for directory in missing.into_iter().rev() {
            self.change(NameChange::Set(directory, Entry::Directory));
        }
        Ok(())
    }
    fn list(&self, path: &Path) -> io::Result<Vec<DirEntry>> {
        match self.tree.get(path) {
            Some(Entry::Directory) => {}
            Some(Entry::File(_)) => return Err(error(io::ErrorKind::NotADirectory, path, "not a directory")),
            None => return Err(not_found(path)),
        }
        let children = self.tree.iter().filter(|(child, _)| child.parent() == Some(path));
        let mut entries: Vec<DirEntry> = children
            .map(|(child, entry)| DirEntry {
                name: child
                    .file_name()
                    .expect("a child has a name")
                    .to_string_lossy()
                    .into_owned(),
                is_dir: *entry == Entry::Directory,
            })
            .collect();
        entries.sort();
        Ok(entries)
    }
    fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        let entry = *self.tree.get(from).ok_or_else(|| not_found(from))?;
        self.check_parent(to)?;
        if entry == Entry::Directory || self.tree.get(to) == Some(&Entry::Directory) {
            return Err(error(io::ErrorKind::Unsupported, from, "directories are not renamed"));
        }
        if from != to {
            self.change(NameChange::Rename(from.to_owned(), to.to_owned(), entry));
            self.forget_unnamed();
        }
        Ok(())
    }
    fn remove_file(&mut self, path: &Path) -> io::Result<()> {
        match self.tree.get(path) {
            Some(&entry @ Entry::File(_)) => {
                self.change(NameChange::Remove(path.to_owned(), entry));
                Ok(())
            }
            Some(Entry::Directory) => Err(error(io::ErrorKind::IsADirectory, path, "is a directory")),
            None => Err(not_found(path)),
        }
    }
    fn sync_dir(&mut self, directory: &Path) -> io::Result<()> {
        if self.tree.get(directory) != Some(&Entry::Directory) {
            return Err(not_found(directory));
        }
        if self.fails(Operation::Sync) {
            return Err(io_error());
        }
        // Walking back, a change is taken when it touches the directory or a path that a later taken change rests on.
        let mut needed: BTreeSet<PathBuf> = BTreeSet::new();
        let mut taken = vec![false; self.unsynced_names.len()];
        for (position, change) in self.unsynced_names.iter().enumerate().rev() {
            if change.touches(directory) || change.paths().iter().any(|path| needed.contains(*path)) {
                taken[position] = true;
                needed.extend(change.paths().into_iter().cloned());
            }
        }
        for (change, taken) in std::mem::take(&mut self.unsynced_names).into_iter().zip(taken) {
            match taken {
                true => change.apply(&mut self.durable_tree),
                false => self.unsynced_names.push(change),
            }
        }
        self.forget_unnamed();
        Ok(())
    }
    fn lock(&mut self, path: &Path) -> io::Result<u64> {
        self.open(path, OpenMode::Create)?;
        if self.locks.contains_key(path) {
            return Err(error(
                io::ErrorKind::WouldBlock,
                path,
                "resource temporarily unavailable",
            ));
        }
        self.locks_made += 1;
        self.locks.insert(path.to_owned(), self.locks_made);
        Ok(self.locks_made)
    }
    fn unlock(&mut self, path: &Path, lock: u64) {
        if self.locks.get(path) == Some(&lock) {
            self.locks.remove(path);
        }
    }

    /// Drops content that no name, no change of a name and no open file leads to.
    fn forget_unnamed(&mut self) {
        let changes = self.unsynced_names.iter().map(|change| match change {
            NameChange::Set(_, entry) | NameChange::Remove(_, entry) | NameChange::Rename(_, _, entry) => entry,
        });
        let entries = self.tree.values().chain(self.durable_tree.values()).chain(changes);
        let named: BTreeSet<InodeId> = entries
            .filter_map(|entry| match entry {
                Entry::File(inode) => Some(*inode),
                Entry::Directory => None,
            })
            .collect();
        self.inodes
            .retain(|id, inode| inode.open_count > 0 || named.contains(id));
    }

    /// Everything open is closed: the process died. The cache stays.
    pub fn close_all(&mut self) {
        self.locks.clear();
        for inode in self.inodes.values_mut() {
            inode.open_count = 0;
        }
        self.forget_unnamed();
    }
    /// The cache is gone, but for what the seed lets survive.
    pub fn lose_power(&mut self) {
        let changes = std::mem::take(&mut self.unsynced_names);
        let kept = match self.rng.next_u32() % 4 {
            0 => 0,
            1 => changes.len(),
            _ => self.rng.next_u32() as usize % (changes.len() + 1),
        };
        for change in changes.into_iter().take(kept) {
            change.apply(&mut self.durable_tree);
        }
        // A name in a directory that is itself lost leads nowhere.
        let mut reached = BTreeMap::new();
        for (path, entry) in std::mem::take(&mut self.durable_tree) {
            let parent = path.parent().map(|parent| reached.get(parent));
            if matches!(parent, None | Some(Some(Entry::Directory))) {
                reached.insert(path, entry);
            }
        }
        self.durable_tree = reached;
        self.tree = self.durable_tree.clone();
        for inode in self.inodes.values_mut() {
            if self.faults.lies_about_syncs {
                // All of it at once, or the torn rest would be noticed before the loss is.
                inode.forget_at_power_loss();
            }
            inode.lose_power(&mut self.rng);
        }
        self.close_all();
    }

    /// Puts a file on the disk, durably, as an operator would before the agent starts.
    pub fn put(&mut self, path: &Path, content: &[u8]) {
        let path = normal(path);
        self.make_dir(path.parent().expect("a file has a directory"));
        let inode = self.open(&path, OpenMode::Create).expect("the directory was made");
        let file = self.inodes.get_mut(&inode).expect("just opened");
        file.set_len_bytes(0);
        file.write(0, content);
        file.sync();
        self.commit_names();
    }
    pub fn make_dir(&mut self, path: &Path) {
        self.create_dir_all(&normal(path))
            .expect("no file stands where a directory is wanted");
        self.commit_names();
    }
    /// The file's content as programs see it.
    pub fn peek(&self, path: &Path) -> Option<Vec<u8>> {
        match self.tree.get(&normal(path))? {
            Entry::File(inode) => Some(self.inodes[inode].read(0..u64::MAX)),
            Entry::Directory => None,
        }
    }
    /// Everything gone: a new disk.
    pub fn wipe(&mut self) {
        *self = Self {
            faults: self.faults.clone(),
            ..Self::new(self.rng.clone())
        };
    }
    fn commit_names(&mut self) {
        for change in std::mem::take(&mut self.unsynced_names) {
            change.apply(&mut self.durable_tree);
        }
    }
}

/// The disk as the programs of one boot of one machine see it.
#[derive(Clone)]
pub struct SimDisk {
    pub(crate) world: World,
    pub(crate) machine: MachineId,
    pub(crate) boot: u64,
}

impl SimDisk {
    /// Lets the operation take its time, then does it and tells the digest.
    async fn run<T>(
        &self,
        operation: Operation,
        kind: &'static str,
        payload: &[u8],
        work: impl FnOnce(&mut DiskState) -> io::Result<T>,
    ) -> io::Result<T> {
        let delay = self.world.with_disk(self.machine, |disk, _| disk.delay(operation));
        self.world.sleep_virtual(delay).await;
        if !self.world.is_boot(self.machine, self.boot) {
            return Err(io::Error::other("the machine was killed"));
        }
        self.world.with_disk(self.machine, |disk, timeline| {
            timeline.note(self.machine.0, kind, payload);
            work(disk)
        })
    }
    fn file(&self, disk: &mut DiskState, inode: InodeId, writable: bool) -> SimFile {
        disk.inodes.get_mut(&inode).expect("just found").open_count += 1;
        SimFile {
            disk: self.clone(),
            inode,
            writable,
        }
    }
}

fn path_bytes(path: &Path) -> &[u8] {
    path.as_os_str().as_encoded_bytes()
}

struct Lock {
    disk: SimDisk,
    path: PathBuf,
    lock: u64,
}

impl Drop for Lock {
    fn drop(&mut self) {
        self.disk
            .world
            .with_disk(self.disk.machine, |disk, _| disk.unlock(&self.path, self.lock));
    }
}

impl Disk for SimDisk {
    type File = SimFile;
    async fn open(&self, path: &Path, mode: OpenMode) -> io::Result<SimFile> {
        let path = normal(path);
        let work = |disk: &mut DiskState| {
            if disk.fails(Operation::Read) {
                return Err(io_error());
            }
            let inode = disk.open(&path, mode)?;
            Ok(self.file(disk, inode, mode != OpenMode::Read))
        };
        self.run(Operation::Read, "disk.open", path_bytes(&path), work).await
    }
    async fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        let path = normal(path);
        self.run(Operation::Write, "disk.mkdir", path_bytes(&path), |disk| {
            disk.create_dir_all(&path)
        })
        .await
    }
    async fn list(&self, path: &Path) -> io::Result<Vec<DirEntry>> {
        let path = normal(path);
        self.run(Operation::Read, "disk.list", path_bytes(&path), |disk| disk.list(&path))
            .await
    }
    async fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let (from, to) = (normal(from), normal(to));
        self.run(Operation::Write, "disk.rename", path_bytes(&to), |disk| {
            disk.rename(&from, &to)
        })
        .await
    }
    async fn remove_file(&self, path: &Path) -> io::Result<()> {
        let path = normal(path);
        self.run(Operation::Write, "disk.remove", path_bytes(&path), |disk| {
            disk.remove_file(&path)
        })
        .await
    }
    async fn sync_dir(&self, path: &Path) -> io::Result<()> {
        let path = normal(path);
        self.run(Operation::Sync, "disk.sync_dir", path_bytes(&path), |disk| {
            disk.sync_dir(&path)
        })
        .await
    }
    async fn lock(&self, path: &Path) -> io::Result<Box<dyn Any + Send + Sync>> {
        let path = normal(path);
        let work = |disk: &mut DiskState| {
            let lock = disk.lock(&path)?;
            Ok(Lock {
                disk: self.clone(),
                path: path.clone(),
                lock,
            })
        };
        let lock = self.run(Operation::Read, "disk.lock", path_bytes(&path), work).await?;
        Ok(Box::new(lock))
    }
}

/// An open file of a simulated disk.
pub struct SimFile {
    disk: SimDisk,
    inode: InodeId,
    writable: bool,
}

impl SimFile {
    async fn run<T>(
        &self,
        operation: Operation,
        kind: &'static str,
        payload: &[u8],
        work: impl FnOnce(&mut Inode, &DiskFaults) -> io::Result<T>,
    ) -> io::Result<T> {
        if operation == Operation::Write && !self.writable {
            // EBADF, as the kernel says it.
            return Err(io::Error::from_raw_os_error(9));
        }
        self.disk
            .run(operation, kind, payload, |disk| {
                let fails = disk.fails(operation);
                let inode = disk.inodes.get_mut(&self.inode).expect("an open file has its content");
                if fails {
                    if operation == Operation::Sync {
                        inode.sync_failed();
                    }
                    return Err(io_error());
                }
                work(inode, &disk.faults)
            })
            .await
    }
    async fn sync(&self) -> io::Result<()> {
        let payload = self.inode.to_le_bytes();
        let work = |inode: &mut Inode, faults: &DiskFaults| {
            if !faults.lies_about_syncs {
                inode.sync();
            }
            Ok(())
        };
        self.run(Operation::Sync, "disk.sync", &payload, work).await
    }
}

impl File for SimFile {
    async fn read_at(&self, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        let payload = offset.to_le_bytes();
        let range = offset..offset.saturating_add(len as u64);
        self.run(Operation::Read, "disk.read", &payload, |inode, _| Ok(inode.read(range)))
            .await
    }
    async fn write_at(&self, offset: u64, content: Bytes) -> io::Result<()> {
        let work = |inode: &mut Inode, faults: &DiskFaults| {
            let end = offset
                .checked_add(content.len() as u64)
                .ok_or(io::ErrorKind::FileTooLarge)?;
            if faults.full && end > inode.len_bytes {
                return Err(io::ErrorKind::StorageFull.into());
            }
            inode.write(offset, &content);
            Ok(())
        };
        self.run(Operation::Write, "disk.write", &content, work).await
    }
    async fn sync_data(&self) -> io::Result<()> {
        self.sync().await
    }
    async fn sync_all(&self) -> io::Result<()> {
        self.sync().await
    }
    async fn len_bytes(&self) -> io::Result<u64> {
        self.run(Operation::Read, "disk.len", &[], |inode, _| Ok(inode.len_bytes))
            .await
    }
    async fn set_len_bytes(&self, len_bytes: u64) -> io::Result<()> {
        let work = |inode: &mut Inode, faults: &DiskFaults| {
            if faults.full && len_bytes > inode.len_bytes {
                return Err(io::ErrorKind::StorageFull.into());
            }
            inode.set_len_bytes(len_bytes);
            Ok(())
        };
        self.run(Operation::Write, "disk.set_len", &len_bytes.to_le_bytes(), work)
            .await
    }
}

impl Drop for SimFile {
    fn drop(&mut self) {
        if !self.disk.world.is_boot(self.disk.machine, self.disk.boot) {
            return;
        }
        self.disk.world.with_disk(self.disk.machine, |disk, _| {
            if let Some(inode) = disk.inodes.get_mut(&self.inode) {
                inode.open_count -= 1;
                if inode.open_count == 0 {
                    disk.forget_unnamed();
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand_core::SeedableRng as _;

    const LEN_MAX: u64 = 20_000;

    fn padded(content: &[u8]) -> Vec<u8> {
        let mut content = content.to_vec();
        content.resize(LEN_MAX as usize + 2_000, 0);
        content
    }

    /// Any sequence of operations, beside a plain vector.
    #[test]
    fn a_file_is_what_was_written_and_after_power_loss_a_mix_of_that_and_the_synced() {
        for seed in 0..300 {
            let mut rng = Rng::seed_from_u64(seed);
            let (mut inode, mut cached, mut durable) = (Inode::default(), Vec::new(), Vec::new());
            for _ in 0..40 {
                let at = u64::from(rng.next_u32()) % LEN_MAX;
                match rng.next_u32() % 8 {
                    0 => {
                        inode.sync();
                        durable.clone_from(&cached);
                    }
                    1 => {
                        inode.set_len_bytes(at);
                        cached.resize(at as usize, 0);
                    }
                    2 => {
                        inode.lose_power(&mut rng);
                        let left = inode.read(0..u64::MAX);
                        assert!(left.len() == cached.len() || left.len() == durable.len());
                        let sectors = |content: &[u8]| -> Vec<Vec<u8>> {
                            let content = padded(content);
                            content[..left.len()]
                                .chunks(SECTOR_LEN as usize)
                                .map(<[u8]>::to_vec)
                                .collect()
                        };
                        let (was, synced) = (sectors(&cached), sectors(&durable));
                        for (position, sector) in sectors(&left).into_iter().enumerate() {
                            assert!(sector == was[position] || sector == synced[position], "seed {seed}");
                        }
                        cached.clone_from(&left);
                        durable = left;
                    }
                    _ => {
                        let bytes = vec![(rng.next_u32() % 3) as u8; rng.next_u32() as usize % 2_000];
                        inode.write(at, &bytes);
                        if !bytes.is_empty() {
                            let end = at as usize + bytes.len();
                            cached.resize(cached.len().max(end), 0);
                            cached[at as usize..end].copy_from_slice(&bytes);
                        }
                    }
                }
                assert!(inode.read(0..u64::MAX) == cached, "seed {seed}");
            }
        }
    }

    #[test]
    fn a_file_filled_with_zeros_takes_no_memory() {
        let mut inode = Inode::default();
        inode.write(0, &vec![0; 1 << 20]);
        assert_eq!((inode.len_bytes, inode.pages.len(), inode.undo.len()), (1 << 20, 0, 0));
    }

    #[test]
    fn a_directory_sync_saves_its_names_and_what_they_rest_on() {
        let mut disk = DiskState::new(Rng::seed_from_u64(1));
        disk.make_dir(Path::new("/a"));
        disk.make_dir(Path::new("/b"));
        disk.open(Path::new("/a/x"), OpenMode::CreateNew).unwrap();
        disk.open(Path::new("/a/y"), OpenMode::CreateNew).unwrap();
        disk.rename(Path::new("/a/x"), Path::new("/b/x")).unwrap();
        disk.sync_dir(Path::new("/b")).unwrap();
        let names: Vec<&str> = disk.durable_tree.keys().map(|path| path.to_str().unwrap()).collect();
        assert_eq!(names, ["/", "/a", "/b", "/b/x"]);
    }

    #[test]
    fn a_name_in_a_lost_directory_is_lost() {
        for seed in 0..20 {
            let mut disk = DiskState::new(Rng::seed_from_u64(seed));
            disk.create_dir_all(Path::new("/made/deep")).unwrap();
            disk.open(Path::new("/made/deep/f"), OpenMode::CreateNew).unwrap();
            disk.sync_dir(Path::new("/made/deep")).unwrap();
            disk.lose_power();
            let has = |path: &str| disk.tree.contains_key(Path::new(path));
            assert!(!has("/made/deep/f") || (has("/made/deep") && has("/made")));
        }
    }
}
