//! The machine's file system.
//!
//! Every call is handed to a thread for blocking work. A call whose future is dropped may still happen, as a system call
//! under way would.

use super::run_bounded;
use crate::{DirEntry, Disk, File, OpenMode};
use bytes::Bytes;
use nix::fcntl::{Flock, FlockArg};
use std::any::Any;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::sync::Semaphore;

/// Disk operations that run at a time; more wait. They have a bound of their own, so that busy blocking work cannot hold up
/// the Raft log.
pub const OPERATION_COUNT_MAX: usize = 64;

/// The machine's file system. Clones share the bound on operations.
#[derive(Clone, Debug)]
pub struct OsDisk {
    operations: Arc<Semaphore>,
}

impl Default for OsDisk {
    fn default() -> Self {
        Self {
            operations: Arc::new(Semaphore::new(OPERATION_COUNT_MAX)),
        }
    }
}

impl OsDisk {
    async fn run<T: Send + 'static>(
        &self,
        path: &Path,
        work: impl FnOnce(PathBuf) -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let path = path.to_owned();
        run_bounded(&self.operations, move || work(path)).await
    }
}

impl Disk for OsDisk {
    type File = OsFile;

    async fn open(&self, path: &Path, mode: OpenMode) -> io::Result<OsFile> {
        let open = move |path: PathBuf| {
            let mut options = std::fs::File::options();
            options.read(true);
            match mode {
                OpenMode::Read => {}
                OpenMode::Write => {
                    options.write(true);
                }
                OpenMode::CreateNew => {
                    options.write(true).create_new(true);
                }
                OpenMode::Create => {
                    options.write(true).create(true).truncate(false);
                }
            }
            options.open(path)
        };
        let file = Arc::new(self.run(path, open).await?);
        Ok(OsFile {
            file,
            operations: Arc::clone(&self.operations),
        })
    }
    async fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        self.run(path, std::fs::create_dir_all).await
    }
    async fn list(&self, path: &Path) -> io::Result<Vec<DirEntry>> {
        let list = |path: PathBuf| {
            let mut entries = Vec::new();
            for entry in std::fs::read_dir(path)? {
                let entry = entry?;
                // A link counts as what it points to: mounted configuration is often links to files.
                let is_dir = match std::fs::metadata(entry.path()) {
                    Ok(metadata) => metadata.is_dir(),
                    Err(_) => entry.file_type()?.is_dir(),
                };
                entries.push(DirEntry {
                    name: entry.file_name().to_string_lossy().into_owned(),
                    is_dir,
                });
            }
            entries.sort();
            Ok(entries)
        };
        self.run(path, list).await
    }
    async fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let to = to.to_owned();
        self.run(from, |from| std::fs::rename(from, to)).await
    }
    async fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.run(path, std::fs::remove_file).await
    }
    async fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.run(path, |path| std::fs::File::open(path)?.sync_all()).await
    }
    async fn make_private(&self, path: &Path) -> io::Result<()> {
        use std::os::unix::fs::PermissionsExt as _;
        let private = |path: PathBuf| std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600));
        self.run(path, private).await
    }
    async fn lock(&self, path: &Path) -> io::Result<Box<dyn Any + Send + Sync>> {
        let lock = |path: PathBuf| {
            let file = std::fs::File::options()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .open(path)?;
            let locked =
                Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| io::Error::from(errno))?;
            Ok(Box::new(locked) as Box<dyn Any + Send + Sync>)
        };
        self.run(path, lock).await
    }
}

/// An open file of the machine.
#[derive(Debug)]
pub struct OsFile {
    file: Arc<std::fs::File>,
    operations: Arc<Semaphore>,
}

impl OsFile {
    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&std::fs::File) -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let file = Arc::clone(&self.file);
        run_bounded(&self.operations, move || work(&file)).await
    }
}

fn read_at(file: &std::fs::File, offset: u64, len: usize) -> io::Result<Vec<u8>> {
    // Memory is taken for what the file has, not for what was asked.
    let available = file.metadata()?.len().saturating_sub(offset);
    let len = usize::try_from(available).map_or(len, |available| available.min(len));
    let mut content = vec![0; len];
    let mut filled = 0;
    while filled < len {
        match file.read_at(&mut content[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
            Err(err) => return Err(err),
        }
    }
    content.truncate(filled);
    Ok(content)
}

impl File for OsFile {
    async fn read_at(&self, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        self.run(move |file| read_at(file, offset, len)).await
    }
    async fn write_at(&self, offset: u64, content: Bytes) -> io::Result<()> {
        self.run(move |file| file.write_all_at(&content, offset)).await
    }
    async fn sync_data(&self) -> io::Result<()> {
        self.run(std::fs::File::sync_data).await
    }
    async fn sync_all(&self) -> io::Result<()> {
        self.run(std::fs::File::sync_all).await
    }
    async fn len_bytes(&self) -> io::Result<u64> {
        self.run(|file| Ok(file.metadata()?.len())).await
    }
    async fn set_len_bytes(&self, len_bytes: u64) -> io::Result<()> {
        self.run(move |file| file.set_len(len_bytes)).await
    }
    async fn write_at_synced(&self, offset: u64, content: Bytes) -> io::Result<()> {
        self.run(move |file| {
            file.write_all_at(&content, offset)?;
            file.sync_data()
        })
        .await
    }
}
