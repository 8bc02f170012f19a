//! Files with explicit durability.

use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::io;
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

/// How a file is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenMode {
    /// For reading; it must exist.
    Read,
    /// For reading and writing; it must exist.
    Write,
    /// For reading and writing; it must not exist.
    CreateNew,
    /// For reading and writing; made when absent, kept as it is when present.
    Create,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct DirEntry {
    pub name: String,
    pub is_dir: bool,
}

/// A file system.
pub trait Disk: Clone + Send + Sync + 'static {
    type File: File;
    fn open(&self, path: &Path, mode: OpenMode) -> impl Future<Output = io::Result<Self::File>> + Send;
    fn create_dir_all(&self, path: &Path) -> impl Future<Output = io::Result<()>> + Send;
    /// The entries of a directory, sorted by name.
    fn list(&self, path: &Path) -> impl Future<Output = io::Result<Vec<DirEntry>>> + Send;
    fn rename(&self, from: &Path, to: &Path) -> impl Future<Output = io::Result<()>> + Send;
    fn remove_file(&self, path: &Path) -> impl Future<Output = io::Result<()>> + Send;
    /// Makes created, renamed and removed names of this directory durable.
    fn sync_dir(&self, path: &Path) -> impl Future<Output = io::Result<()>> + Send;
    /// Takes an exclusive lock, held while the value lives and lost with the process. `WouldBlock` when another has it.
    fn lock(&self, path: &Path) -> impl Future<Output = io::Result<Box<dyn std::any::Any + Send + Sync>>> + Send;

    /// A whole file. For small files; `len_bytes_max` guards against the rest (`InvalidData` beyond it).
    fn read(&self, path: &Path, len_bytes_max: u64) -> impl Future<Output = io::Result<Vec<u8>>> + Send {
        async move {
            let file = self.open(path, OpenMode::Read).await?;
            let len_bytes = file.len_bytes().await?;
            if len_bytes > len_bytes_max {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    format!("{} has {len_bytes} bytes, more than {len_bytes_max}", path.display()),
                ));
            }
            let len = usize::try_from(len_bytes).expect("bounded by len_bytes_max above");
            file.read_at(0, len).await
        }
    }
    /// Lets only this process' user read and write a file. Does nothing where there are no users.
    fn make_private(&self, path: &Path) -> impl Future<Output = io::Result<()>> + Send {
        let _ = path;
        async { Ok(()) }
    }
    /// Replaces a whole file durably: written beside, synced, renamed, the directory synced. A crash leaves either one.
    fn replace(&self, path: &Path, content: Bytes) -> impl Future<Output = io::Result<()>> + Send {
        self.replace_with(path, content, false)
    }
    /// The same of a file that holds secrets: from its first byte on, it is this process' user's alone.
    fn replace_private(&self, path: &Path, content: Bytes) -> impl Future<Output = io::Result<()>> + Send {
        self.replace_with(path, content, true)
    }
    /// What the two replacements rest on.
    fn replace_with(
        &self,
        path: &Path,
        content: Bytes,
        is_private: bool,
    ) -> impl Future<Output = io::Result<()>> + Send {
        async move {
            let mut beside = path.as_os_str().to_owned();
            beside.push(".tmp");
            let beside = PathBuf::from(beside);
            let file = self.open(&beside, OpenMode::Create).await?;
            file.set_len_bytes(0).await?;
            if is_private {
                self.make_private(&beside).await?;
            }
            file.write_at(0, content).await?;
            file.sync_all().await?;
            drop(file);
            self.rename(&beside, path).await?;
            match path.parent() {
                Some(parent) if !parent.as_os_str().is_empty() => self.sync_dir(parent).await,
                _ => self.sync_dir(Path::new(".")).await,
            }
        }
    }
}

/// An open file.
pub trait File: Send + Sync + 'static {
    /// Up to `len` bytes from `offset`; fewer only at the file's end.
    fn read_at(&self, offset: u64, len: usize) -> impl Future<Output = io::Result<Vec<u8>>> + Send;
    /// Writes all of `content`, growing the file as needed. Durable only after a sync.
    fn write_at(&self, offset: u64, content: Bytes) -> impl Future<Output = io::Result<()>> + Send;
    /// Syncs content and length. An error is final: what was unsynced may be lost, whatever a later sync says.
    fn sync_data(&self) -> impl Future<Output = io::Result<()>> + Send;
    fn sync_all(&self) -> impl Future<Output = io::Result<()>> + Send;
    fn len_bytes(&self) -> impl Future<Output = io::Result<u64>> + Send;
    fn set_len_bytes(&self, len_bytes: u64) -> impl Future<Output = io::Result<()>> + Send;
    /// `write_at` and `sync_data` in one hand-over.
    fn write_at_synced(&self, offset: u64, content: Bytes) -> impl Future<Output = io::Result<()>> + Send {
        async move {
            self.write_at(offset, content).await?;
            self.sync_data().await
        }
    }
}

/// Either the node's disk or memory: `-dev` promises no durability and must leave nothing behind.
#[derive(Clone, Debug)]
pub enum AnyDisk<D> {
    Real(D),
    Memory(MemoryDisk),
}

#[derive(Debug)]
pub enum AnyFile<F> {
    Real(F),
    Memory(MemoryFile),
}

macro_rules! either {
    ($self:ident, $it:ident => $call:expr) => {
        match $self {
            Self::Real($it) => $call.await,
            Self::Memory($it) => $call.await,
        }
    };
}

impl<D: Disk> Disk for AnyDisk<D> {
    type File = AnyFile<D::File>;
    async fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Self::File> {
        match self {
            Self::Real(disk) => disk.open(path, mode).await.map(AnyFile::Real),
            Self::Memory(disk) => disk.open(path, mode).await.map(AnyFile::Memory),
        }
    }
    async fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        either!(self, disk => disk.create_dir_all(path))
    }
    async fn list(&self, path: &Path) -> io::Result<Vec<DirEntry>> {
        either!(self, disk => disk.list(path))
    }
    async fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        either!(self, disk => disk.rename(from, to))
    }
    async fn remove_file(&self, path: &Path) -> io::Result<()> {
        either!(self, disk => disk.remove_file(path))
    }
    async fn sync_dir(&self, path: &Path) -> io::Result<()> {
        either!(self, disk => disk.sync_dir(path))
    }
    async fn lock(&self, path: &Path) -> io::Result<Box<dyn std::any::Any + Send + Sync>> {
        either!(self, disk => disk.lock(path))
    }
    async fn make_private(&self, path: &Path) -> io::Result<()> {
        either!(self, disk => disk.make_private(path))
    }
}

impl<F: File> File for AnyFile<F> {
    async fn read_at(&self, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        either!(self, file => file.read_at(offset, len))
    }
    async fn write_at(&self, offset: u64, content: Bytes) -> io::Result<()> {
        either!(self, file => file.write_at(offset, content))
    }
    async fn sync_data(&self) -> io::Result<()> {
        either!(self, file => file.sync_data())
    }
    async fn sync_all(&self) -> io::Result<()> {
        either!(self, file => file.sync_all())
    }
    async fn len_bytes(&self) -> io::Result<u64> {
        either!(self, file => file.len_bytes())
    }
    async fn set_len_bytes(&self, len_bytes: u64) -> io::Result<()> {
        either!(self, file => file.set_len_bytes(len_bytes))
    }
    async fn write_at_synced(&self, offset: u64, content: Bytes) -> io::Result<()> {
        either!(self, file => file.write_at_synced(offset, content))
    }
}

/// Files in memory, gone with the process.
#[derive(Clone, Debug, Default)]
pub struct MemoryDisk {
    tree: Arc<Mutex<MemoryTree>>,
}

#[derive(Debug, Default)]
struct MemoryTree {
    files: BTreeMap<PathBuf, Arc<Mutex<Vec<u8>>>>,
    directories: BTreeSet<PathBuf>,
}

/// A file of a [`MemoryDisk`].
#[derive(Clone, Debug)]
pub struct MemoryFile {
    content: Arc<Mutex<Vec<u8>>>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic while the lock was held leaves bytes, not a broken structure: going on is sound.
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn normal(path: &Path) -> PathBuf {
    path.components()
        .filter(|component| !matches!(component, Component::CurDir))
        .collect()
}

fn not_found(path: &Path) -> io::Error {
    io::Error::new(
        io::ErrorKind::NotFound,
        format!("{}: no such file or directory", path.display()),
    )
}

impl Disk for MemoryDisk {
    type File = MemoryFile;
    async fn open(&self, path: &Path, mode: OpenMode) -> io::Result<MemoryFile> {
        let path = normal(path);
        let mut tree = locked(&self.tree);
        if let Some(content) = tree.files.get(&path) {
            if mode == OpenMode::CreateNew {
                return Err(io::Error::new(
                    io::ErrorKind::AlreadyExists,
                    format!("{}: file exists", path.display()),
                ));
            }
            return Ok(MemoryFile {
                content: Arc::clone(content),
            });
        }
        if matches!(mode, OpenMode::Read | OpenMode::Write) {
            return Err(not_found(&path));
        }
        let content = Arc::new(Mutex::new(Vec::new()));
        tree.files.insert(path, Arc::clone(&content));
        Ok(MemoryFile { content })
    }
    async fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        let path = normal(path);
        let mut tree = locked(&self.tree);
        for ancestor in path.ancestors() {
            tree.directories.insert(ancestor.to_owned());
        }
        Ok(())
    }
    async fn list(&self, path: &Path) -> io::Result<Vec<DirEntry>> {
        let path = normal(path);
        let tree = locked(&self.tree);
        let entry = |child: &PathBuf, is_dir| {
            let name = child.file_name()?.to_string_lossy().into_owned();
            (child.parent() == Some(path.as_path())).then_some(DirEntry { name, is_dir })
        };
        let mut entries: Vec<DirEntry> = tree.files.keys().filter_map(|child| entry(child, false)).collect();
        entries.extend(tree.directories.iter().filter_map(|child| entry(child, true)));
        if entries.is_empty() && !tree.directories.contains(&path) {
            return Err(not_found(&path));
        }
        entries.sort();
        Ok(entries)
    }
    async fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut tree = locked(&self.tree);
        let content = tree.files.remove(&normal(from)).ok_or_else(|| not_found(from))?;
        tree.files.insert(normal(to), content);
        Ok(())
    }
    async fn remove_file(&self, path: &Path) -> io::Result<()> {
        locked(&self.tree)
            .files
            .remove(&normal(path))
            .map(drop)
            .ok_or_else(|| not_found(path))
    }
    async fn sync_dir(&self, _path: &Path) -> io::Result<()> {
        Ok(())
    }
    async fn lock(&self, _path: &Path) -> io::Result<Box<dyn std::any::Any + Send + Sync>> {
        // Nobody else can reach this memory.
        Ok(Box::new(()))
    }
}

impl File for MemoryFile {
    async fn read_at(&self, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        let content = locked(&self.content);
        let start = usize::try_from(offset).unwrap_or(usize::MAX).min(content.len());
        let end = start.saturating_add(len).min(content.len());
        Ok(content[start..end].to_vec())
    }
    async fn write_at(&self, offset: u64, bytes: Bytes) -> io::Result<()> {
        let mut content = locked(&self.content);
        let start = usize::try_from(offset).map_err(|_| io::ErrorKind::FileTooLarge)?;
        let end = start.checked_add(bytes.len()).ok_or(io::ErrorKind::FileTooLarge)?;
        if content.len() < end {
            content.resize(end, 0);
        }
        content[start..end].copy_from_slice(&bytes);
        Ok(())
    }
    async fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }
    async fn sync_all(&self) -> io::Result<()> {
        Ok(())
    }
    async fn len_bytes(&self) -> io::Result<u64> {
        Ok(locked(&self.content).len() as u64)
    }
    async fn set_len_bytes(&self, len_bytes: u64) -> io::Result<()> {
        let len = usize::try_from(len_bytes).map_err(|_| io::ErrorKind::FileTooLarge)?;
        locked(&self.content).resize(len, 0);
        Ok(())
    }
}
