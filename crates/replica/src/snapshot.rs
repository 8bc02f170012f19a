//! Snapshot files: written beside, synced, renamed, the directory synced; read back whole and sound or not at all.
//!
//! A file is the length and checksum of its meta, the meta (what the snapshot stands for), then the state's records. Its
//! name tells its position, `snapshot-<term>-<index>`, so that a newer one never takes an older one's name.
//! A file that is being written or received has another name, and goes at the next start.
//!
//! What is damaged is refused with file and offset: that of the meta, frame or record that does not fit. A snapshot that
//! the log counts on and that is not there is refused too, by the position it should have.

use crate::log::Log;
use crate::types::{self, RaftRt};
use bytes::{BufMut, Bytes, BytesMut};
use quorate_rt::{AnyDisk, AnyFile, Disk, File as _, OpenMode};
use quorate_store::{Store, StoreBuilder};
use quorate_wire::codec::Malformed;
use quorate_wire::log::Position;
use quorate_wire::raft::SnapshotMeta;
use quorate_wire::state::{SnapshotDecoder, SnapshotError, encode_snapshot};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use thiserror::Error;

#[cfg(test)]
mod tests;

const NAME_PREFIX: &str = "snapshot-";
const BUILDING_NAME: &str = "snapshot.building";
const RECEIVING_PREFIX: &str = "snapshot.receiving-";
const META_HEADER_LEN_BYTES: usize = 8;
const META_LEN_BYTES_MAX: usize = 1024 * 1024;
/// Read, sent and decoded in pieces of this.
pub(crate) const CHUNK_LEN_BYTES: usize = 256 * 1024;

#[derive(Debug, Error)]
pub enum SnapshotFileError {
    #[error("{doing} {path}")]
    Io {
        doing: &'static str,
        path: PathBuf,
        #[source]
        err: io::Error,
    },
    #[error("the snapshot {path} is corrupt at offset {offset}: {what}")]
    Corrupt { path: PathBuf, offset: u64, what: String },
    #[error("the snapshot {path} is of a format this version does not know, at offset {offset}")]
    Format {
        path: PathBuf,
        offset: u64,
        #[source]
        err: Malformed,
    },
    #[error(
        "a snapshot is missing in {directory}: the log is purged up to index {purged}, and {}: a file snapshot-<term>-<index> \
         of index {purged} or above has to be there",
        newest_text(.newest)
    )]
    Missing {
        directory: PathBuf,
        purged: u64,
        newest: Option<PathBuf>,
    },
    #[error(
        "the log of the snapshot {path} is missing: the log beside it is a new one. Restore what is missing, or remove the \
         whole folder to begin anew"
    )]
    LogMissing { path: PathBuf },
}

fn newest_text(newest: &Option<PathBuf>) -> String {
    match newest {
        Some(path) => format!("the newest one is {}", path.display()),
        None => "there is none".to_owned(),
    }
}

impl From<SnapshotFileError> for io::Error {
    fn from(err: SnapshotFileError) -> Self {
        Self::other(err)
    }
}

fn io_err(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> SnapshotFileError {
    let path = path.to_owned();
    move |err| SnapshotFileError::Io { doing, path, err }
}

/// A snapshot on disk. It can be read as long as this lives, even when a newer one replaced it.
pub struct SnapshotFile<R: RaftRt> {
    file: Arc<AnyFile<<R::Disk as Disk>::File>>,
    pub path: PathBuf,
    pub len_bytes: u64,
}

impl<R: RaftRt> Clone for SnapshotFile<R> {
    fn clone(&self) -> Self {
        Self {
            file: Arc::clone(&self.file),
            path: self.path.clone(),
            len_bytes: self.len_bytes,
        }
    }
}

/// The directory of snapshots.
pub struct Snapshots<R: RaftRt> {
    disk: AnyDisk<R::Disk>,
    directory: PathBuf,
}

impl<R: RaftRt> Clone for Snapshots<R> {
    fn clone(&self) -> Self {
        Self {
            disk: self.disk.clone(),
            directory: self.directory.clone(),
        }
    }
}

impl<R: RaftRt> SnapshotFile<R> {
    /// The bytes from `offset` on, at most a chunk.
    pub async fn chunk(&self, offset: u64) -> Result<Bytes, SnapshotFileError> {
        let len = usize::try_from(self.len_bytes.saturating_sub(offset))
            .unwrap_or(usize::MAX)
            .min(CHUNK_LEN_BYTES);
        let bytes = self
            .file
            .read_at(offset, len)
            .await
            .map_err(io_err("read", &self.path))?;
        if bytes.len() < len {
            return Err(self.corrupt(offset + bytes.len() as u64, "it ends early"));
        }
        Ok(Bytes::from(bytes))
    }

    fn corrupt(&self, offset: u64, what: impl Into<String>) -> SnapshotFileError {
        SnapshotFileError::Corrupt {
            path: self.path.clone(),
            offset,
            what: what.into(),
        }
    }

    /// Bytes that do not decode, by where they are in the file.
    fn malformed(&self, offset: u64, err: Malformed) -> SnapshotFileError {
        match err {
            Malformed::Version { .. } => SnapshotFileError::Format {
                path: self.path.clone(),
                offset,
                err,
            },
            err => self.corrupt(offset, err.to_string()),
        }
    }

    /// What it stands for, and where the records begin.
    pub async fn meta(&self) -> Result<(SnapshotMeta, u64), SnapshotFileError> {
        let header = self
            .file
            .read_at(0, META_HEADER_LEN_BYTES)
            .await
            .map_err(io_err("read", &self.path))?;
        let Some((len, crc)) = header.split_first_chunk::<4>() else {
            return Err(self.corrupt(0, "it has no meta"));
        };
        let Some(crc) = crc.first_chunk::<4>() else {
            return Err(self.corrupt(4, "it has no meta"));
        };
        let len = u32::from_le_bytes(*len) as usize;
        if len > META_LEN_BYTES_MAX {
            return Err(self.corrupt(
                0,
                format!("its meta claims {len} bytes, more than {META_LEN_BYTES_MAX}"),
            ));
        }
        let meta = self
            .file
            .read_at(META_HEADER_LEN_BYTES as u64, len)
            .await
            .map_err(io_err("read", &self.path))?;
        if meta.len() != len {
            let what = format!("its meta claims {len} bytes, and the file has {}", self.len_bytes);
            return Err(self.corrupt(0, what));
        }
        if crc32c::crc32c(&meta) != u32::from_le_bytes(*crc) {
            return Err(self.corrupt(0, "its meta has a wrong checksum"));
        }
        let at = META_HEADER_LEN_BYTES as u64;
        let meta = SnapshotMeta::decode(&Bytes::from(meta)).map_err(|err| self.malformed(at, err))?;
        types::membership_from_wire(meta.membership.clone()).map_err(|err| self.corrupt(at, err))?;
        Ok((meta, at + len as u64))
    }

    /// The state it holds.
    pub async fn load(&self) -> Result<(SnapshotMeta, Store), SnapshotFileError> {
        let (meta, records_at) = self.meta().await?;
        let mut decoder = SnapshotDecoder::new();
        let mut builder = StoreBuilder::default();
        let mut offset = records_at;
        // The decoder counts from its first byte on.
        let unsound = |err: SnapshotError| self.malformed(records_at + err.offset, err.err);
        while offset < self.len_bytes {
            let chunk = self.chunk(offset).await?;
            offset += chunk.len() as u64;
            for (at, record) in decoder.push_located(&chunk).map_err(unsound)? {
                builder
                    .push(record)
                    .map_err(|err| self.corrupt(records_at + at, err.to_string()))?;
            }
        }
        decoder.finish().map_err(|err| match err.err {
            Malformed::TooShort { .. } => {
                let what = format!("what begins there is cut short, the file ends at {}", self.len_bytes);
                self.corrupt(records_at + err.offset, what)
            }
            _ => unsound(err),
        })?;
        let store = builder
            .finish()
            .map_err(|err| self.corrupt(records_at, err.to_string()))?;
        Ok((meta, store))
    }
}

impl<R: RaftRt> Snapshots<R> {
    pub fn new(disk: AnyDisk<R::Disk>, directory: &Path) -> Self {
        Self {
            disk,
            directory: directory.to_owned(),
        }
    }

    fn path_of(&self, meta: &SnapshotMeta) -> PathBuf {
        let (term, index) = meta.last.map_or((0, 0), |last| (last.term, last.index));
        self.directory.join(format!("{NAME_PREFIX}{term:016x}-{index:016x}"))
    }

    /// The newest snapshot that this log goes on from, if there is one. Older and unfinished ones are removed.
    pub async fn open_for(
        &self,
        log: &Log<AnyDisk<R::Disk>>,
    ) -> Result<Option<(SnapshotFile<R>, SnapshotMeta, Store)>, SnapshotFileError> {
        let (mut names, mut unfinished) = (Vec::new(), Vec::new());
        for entry in self
            .disk
            .list(&self.directory)
            .await
            .map_err(io_err("list", &self.directory))?
        {
            if entry.name == BUILDING_NAME || entry.name.starts_with(RECEIVING_PREFIX) {
                unfinished.push(entry.name);
            } else if entry.name.starts_with(NAME_PREFIX) {
                names.push(entry.name);
            }
        }
        // Terms and indexes are written with leading zeros: names order as positions do.
        names.sort();
        let newest = match names.pop() {
            Some(name) => {
                let snapshot = self.open_file(&name).await?;
                if log.is_pristine() {
                    // A vote is recorded before a snapshot is received, entries before one is written.
                    return Err(SnapshotFileError::LogMissing { path: snapshot.path });
                }
                let (meta, store) = snapshot.load().await?;
                if self.path_of(&meta) != snapshot.path {
                    let what = format!("its meta is that of {}", self.path_of(&meta).display());
                    return Err(snapshot.corrupt(META_HEADER_LEN_BYTES as u64, what));
                }
                Some((snapshot, meta, store))
            }
            None => None,
        };
        self.check_reaches(log.purged(), newest.as_ref().map(|(file, meta, _)| (&file.path, meta)))?;
        if newest.is_some() {
            // After the end of a process, but not of the machine, its name may be in the page cache only; and older ones
            // are about to go, and the log may be purged on the strength of it.
            self.disk
                .sync_dir(&self.directory)
                .await
                .map_err(io_err("sync", &self.directory))?;
        }
        for name in names.into_iter().chain(unfinished) {
            let path = self.directory.join(name);
            self.disk.remove_file(&path).await.map_err(io_err("remove", &path))?;
        }
        Ok(newest)
    }

    /// What the log no longer has, a snapshot has.
    fn check_reaches(
        &self,
        purged: Option<Position>,
        newest: Option<(&PathBuf, &SnapshotMeta)>,
    ) -> Result<(), SnapshotFileError> {
        let Some(purged) = purged else {
            return Ok(());
        };
        let reached = newest.and_then(|(_, meta)| meta.last);
        if reached.is_some_and(|reached| reached.index >= purged.index) {
            return Ok(());
        }
        Err(SnapshotFileError::Missing {
            directory: self.directory.clone(),
            purged: purged.index,
            newest: newest.map(|(path, _)| path.clone()),
        })
    }

    async fn open_file(&self, name: &str) -> Result<SnapshotFile<R>, SnapshotFileError> {
        let path = self.directory.join(name);
        let file = self
            .disk
            .open(&path, OpenMode::Read)
            .await
            .map_err(io_err("open", &path))?;
        let len_bytes = file.len_bytes().await.map_err(io_err("measure", &path))?;
        Ok(SnapshotFile {
            file: Arc::new(file),
            path,
            len_bytes,
        })
    }

    async fn fresh_file(&self, name: &str) -> Result<Receiving<R>, SnapshotFileError> {
        let path = self.directory.join(name);
        let file = self
            .disk
            .open(&path, OpenMode::Create)
            .await
            .map_err(io_err("create", &path))?;
        file.set_len_bytes(0).await.map_err(io_err("empty", &path))?;
        Ok(Receiving {
            file: Arc::new(file),
            path,
            len_bytes: 0,
        })
    }

    /// Begins to receive one from the leader. The number is of this run, and used once.
    pub async fn receive(&self, number: u64) -> Result<Receiving<R>, SnapshotFileError> {
        self.fresh_file(&format!("{RECEIVING_PREFIX}{number}")).await
    }

    /// Removes a received file that was not put in place.
    pub async fn discard(&self, path: &Path) -> Result<(), SnapshotFileError> {
        match self.disk.remove_file(path).await {
            Err(err) if err.kind() != io::ErrorKind::NotFound => Err(io_err("remove", path)(err)),
            _ => Ok(()),
        }
    }

    /// Writes a snapshot of this state.
    pub async fn build(&self, meta: &SnapshotMeta, store: &Store) -> Result<SnapshotFile<R>, SnapshotFileError> {
        let mut file = self.fresh_file(BUILDING_NAME).await?;
        let encoded = meta.encode();
        let mut head = BytesMut::with_capacity(META_HEADER_LEN_BYTES + encoded.len());
        head.put_u32_le(u32::try_from(encoded.len()).expect("a membership is small"));
        head.put_u32_le(crc32c::crc32c(&encoded));
        head.put_slice(&encoded);
        file.push(head.freeze()).await?;
        for piece in encode_snapshot(store.records()) {
            file.push(Bytes::from(piece)).await?;
        }
        let snapshot = file.finish().await?;
        self.put_in_place(snapshot, meta).await
    }

    /// Makes a whole and synced file the current snapshot: renamed, the directory synced.
    pub async fn put_in_place(
        &self,
        snapshot: SnapshotFile<R>,
        meta: &SnapshotMeta,
    ) -> Result<SnapshotFile<R>, SnapshotFileError> {
        let path = self.path_of(meta);
        if snapshot.path == path {
            return Ok(snapshot);
        }
        self.disk
            .rename(&snapshot.path, &path)
            .await
            .map_err(io_err("rename", &snapshot.path))?;
        self.disk
            .sync_dir(&self.directory)
            .await
            .map_err(io_err("sync", &self.directory))?;
        Ok(SnapshotFile { path, ..snapshot })
    }

    /// Removes one that a newer one replaced.
    pub async fn remove(&self, old: &SnapshotFile<R>) -> Result<(), SnapshotFileError> {
        self.disk
            .remove_file(&old.path)
            .await
            .map_err(io_err("remove", &old.path))
    }
}

/// A snapshot file that grows.
pub struct Receiving<R: RaftRt> {
    file: Arc<AnyFile<<R::Disk as Disk>::File>>,
    pub path: PathBuf,
    pub len_bytes: u64,
}

impl<R: RaftRt> Receiving<R> {
    pub async fn push(&mut self, content: Bytes) -> Result<(), SnapshotFileError> {
        let len_bytes = content.len() as u64;
        self.file
            .write_at(self.len_bytes, content)
            .await
            .map_err(io_err("write", &self.path))?;
        self.len_bytes += len_bytes;
        Ok(())
    }
    /// Syncs it. Only then may it get its name.
    pub async fn finish(self) -> Result<SnapshotFile<R>, SnapshotFileError> {
        self.file.sync_all().await.map_err(io_err("sync", &self.path))?;
        Ok(SnapshotFile {
            file: self.file,
            path: self.path,
            len_bytes: self.len_bytes,
        })
    }
}
