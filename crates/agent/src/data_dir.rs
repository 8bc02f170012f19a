//! The data directory: who this node is, that nobody else uses the directory, and what was registered over HTTP.
//!
//! Layout: `node-id` (the UUID as text, as Consul's), `.lock`, `services/`, `checks/`, `checks/state/`, `members/` (one
//! record a file, `wire::local`), `raft/` (`replica`'s). In: changes of local registrations, members known alive. Out: them
//! again after a restart. A record is written beside, synced and renamed, so that a crash leaves the old one or the new one.
//! A file that cannot be read stops the start: silently dropping a registration would be losing it. Members are a hint only,
//! and a damaged list of them is forgotten with a warning.
//! Not here: file definitions (`config`), the log (`replica`).

use bytes::Bytes;
use quorate_gossip::Past;
use quorate_rt::{AnyDisk, Disk, MemoryDisk, OpenMode, Rt};
use quorate_types::{CheckDefinition, CheckStatus, NodeId, ServiceDefinition, Uuid, WallTime};
use quorate_wire::codec::Malformed;
use quorate_wire::local::{LEN_BYTES_MAX, LocalKind, decode_local, encode_local};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use thiserror::Error;

/// There is one list of members, and one past.
const MEMBERS_ID: &str = "members";
const PAST_ID: &str = "past";

/// Why the data directory cannot be used.
#[derive(Debug, Error)]
pub enum DataDirError {
    #[error("failed to setup node ID: mkdir {path}: {err}")]
    Create { path: PathBuf, err: io::Error },
    #[error("data_dir {path} is in use by another running agent: stop that agent or choose another data_dir")]
    InUse { path: PathBuf },
    #[error("failed to lock data_dir {path}: {err}")]
    Lock { path: PathBuf, err: io::Error },
    #[error(
        "failed to setup node ID: {path} holds no UUID ({err}): restore the file, or remove it to get a new identity"
    )]
    NodeIdMalformed {
        path: PathBuf,
        err: quorate_types::UuidError,
    },
    #[error(
        "data_dir {path} belongs to node {found}, but node_id is configured as {configured}: use another data_dir or that node_id"
    )]
    OtherNode {
        path: PathBuf,
        found: NodeId,
        configured: NodeId,
    },
    #[error("failed to read {path}: {err}")]
    Read { path: PathBuf, err: io::Error },
    #[error("{path} is damaged ({err}): remove the file to forget what was registered in it")]
    Damaged { path: PathBuf, err: Malformed },
    #[error("failed to write {path}: {err}")]
    Write { path: PathBuf, err: io::Error },
}

/// What the gossip of this node's lives used at most.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptPast {
    pub lan: Past,
    pub wan: Past,
}

/// A check registered over HTTP, by itself or within a service's definition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptCheck {
    pub definition: CheckDefinition,
}

/// What a TTL check was last told, and until when that holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptTtl {
    pub check_id: String,
    pub status: CheckStatus,
    pub output: String,
    pub expires_at: WallTime,
}

/// What was kept between two starts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Kept {
    pub services: Vec<ServiceDefinition>,
    pub checks: Vec<CheckDefinition>,
    pub ttls: Vec<KeptTtl>,
}

/// An opened data directory, locked while this value lives.
#[derive(Clone)]
pub struct DataDir<R: Rt> {
    disk: AnyDisk<R::Disk>,
    path: PathBuf,
    node_id: NodeId,
    _lock: Arc<Box<dyn std::any::Any + Send + Sync>>,
}

impl<R: Rt> DataDir<R> {
    /// Opens and locks the directory, making what is absent. `None`: memory only, as `-dev` promises.
    pub async fn open(rt: &R, path: Option<&Path>, configured: Option<NodeId>) -> Result<Self, DataDirError> {
        let disk = match path {
            Some(_) => AnyDisk::Real(rt.disk()),
            None => AnyDisk::Memory(MemoryDisk::default()),
        };
        let path = path.unwrap_or_else(|| Path::new("/")).to_owned();
        for folder in [
            path.clone(),
            path.join("services"),
            path.join("members"),
            path.join("checks/state"),
        ] {
            disk.create_dir_all(&folder)
                .await
                .map_err(|err| DataDirError::Create { path: folder, err })?;
        }
        // A folder's name lasts once the folder above has it on disk, and so on upwards. What belongs to others (and may
        // not be opened by us) was there before.
        for folder in path.join("checks").ancestors() {
            if let Err(err) = disk.sync_dir(folder).await
                && folder.starts_with(&path)
            {
                return Err(DataDirError::Create {
                    path: folder.to_owned(),
                    err,
                });
            }
        }
        let lock_path = path.join(".lock");
        let lock = disk.lock(&lock_path).await.map_err(|err| match err.kind() {
            io::ErrorKind::WouldBlock => DataDirError::InUse { path: path.clone() },
            _ => DataDirError::Lock {
                path: path.clone(),
                err,
            },
        })?;
        let node_id = Self::node_id_of(rt, &disk, &path, configured).await?;
        Ok(Self {
            disk,
            path,
            node_id,
            _lock: Arc::new(lock),
        })
    }

    async fn node_id_of(
        rt: &R,
        disk: &AnyDisk<R::Disk>,
        path: &Path,
        configured: Option<NodeId>,
    ) -> Result<NodeId, DataDirError> {
        let file = path.join("node-id");
        match disk.read(&file, 1024).await {
            Ok(bytes) => {
                let found: NodeId = String::from_utf8_lossy(&bytes)
                    .trim()
                    .parse()
                    .map_err(|err| DataDirError::NodeIdMalformed { path: file, err })?;
                match configured {
                    Some(configured) if configured != found => Err(DataDirError::OtherNode {
                        path: path.to_owned(),
                        found,
                        configured,
                    }),
                    _ => Ok(found),
                }
            }
            Err(err) if err.kind() == io::ErrorKind::NotFound => {
                let node_id = configured.unwrap_or_else(|| NodeId(rt.uuid()));
                disk.replace(&file, Bytes::from(node_id.to_string()))
                    .await
                    .map_err(|err| DataDirError::Write { path: file, err })?;
                Ok(node_id)
            }
            Err(err) => Err(DataDirError::Read { path: file, err }),
        }
    }

    pub fn node_id(&self) -> NodeId {
        self.node_id
    }
    pub fn disk(&self) -> AnyDisk<R::Disk> {
        self.disk.clone()
    }
    pub fn path(&self) -> PathBuf {
        self.path.clone()
    }

    /// Everything kept, in the order of file names.
    pub async fn load(&self) -> Result<Kept, DataDirError> {
        Ok(Kept {
            services: self.load_all(LocalKind::Service).await?,
            checks: self
                .load_all::<KeptCheck>(LocalKind::Check)
                .await?
                .into_iter()
                .map(|kept| kept.definition)
                .collect(),
            ttls: self.load_all(LocalKind::TtlState).await?,
        })
    }

    async fn load_all<T: DeserializeOwned>(&self, kind: LocalKind) -> Result<Vec<T>, DataDirError> {
        let folder = self.folder(kind);
        let entries = self.disk.list(&folder).await.map_err(|err| DataDirError::Read {
            path: folder.clone(),
            err,
        })?;
        let mut all = Vec::new();
        for entry in entries {
            // What was being written when the power went is not there yet: the rename makes it so.
            if entry.is_dir || entry.name.ends_with(".tmp") {
                continue;
            }
            let path = folder.join(&entry.name);
            let bytes = self
                .disk
                .read(&path, LEN_BYTES_MAX as u64)
                .await
                .map_err(|err| DataDirError::Read {
                    path: path.clone(),
                    err,
                })?;
            all.push(decode_local(kind, &bytes).map_err(|err| DataDirError::Damaged { path, err })?);
        }
        Ok(all)
    }

    pub async fn keep_service(&self, definition: &ServiceDefinition) -> Result<(), DataDirError> {
        self.keep(LocalKind::Service, &definition.service.id, definition).await
    }
    pub async fn keep_check(&self, definition: &CheckDefinition) -> Result<(), DataDirError> {
        let kept = KeptCheck {
            definition: definition.clone(),
        };
        self.keep(LocalKind::Check, &definition.id, &kept).await
    }
    pub async fn keep_ttl(&self, state: &KeptTtl) -> Result<(), DataDirError> {
        self.keep(LocalKind::TtlState, &state.check_id, state).await
    }
    /// Forgets a record; one that is not there is forgotten already.
    pub async fn forget(&self, kind: LocalKind, id: &str) -> Result<(), DataDirError> {
        let folder = self.folder(kind);
        let path = folder.join(file_name(id));
        match self.disk.remove_file(&path).await {
            Ok(()) => self
                .disk
                .sync_dir(&folder)
                .await
                .map_err(|err| DataDirError::Write { path, err }),
            Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(err) => Err(DataDirError::Write { path, err }),
        }
    }

    async fn keep<T: Serialize>(&self, kind: LocalKind, id: &str, value: &T) -> Result<(), DataDirError> {
        let path = self.folder(kind).join(file_name(id));
        let content = Bytes::from(encode_local(kind, value));
        self.disk
            .replace(&path, content)
            .await
            .map_err(|err| DataDirError::Write { path, err })
    }

    fn folder(&self, kind: LocalKind) -> PathBuf {
        self.path.join(match kind {
            LocalKind::Service => "services",
            LocalKind::Check => "checks",
            LocalKind::TtlState => "checks/state",
            LocalKind::Members | LocalKind::Past => "members",
        })
    }

    /// Keeps whom to ask for the pool after a restart.
    pub async fn keep_members(&self, addresses: &[SocketAddr]) -> Result<(), DataDirError> {
        self.keep(LocalKind::Members, MEMBERS_ID, &addresses).await
    }
    /// Whom this agent knew before its restart; none after it had left. A damaged file is no more than forgotten:
    /// whoever is joined tells the same.
    pub async fn kept_members(&self) -> Vec<SocketAddr> {
        self.kept_hint(LocalKind::Members, MEMBERS_ID).await
    }
    /// Keeps what gossip has used so far.
    pub async fn keep_past(&self, past: &KeptPast) -> Result<(), DataDirError> {
        self.keep(LocalKind::Past, PAST_ID, past).await
    }
    /// What earlier lives used. Lost with a damaged file: the wall clock alone orders lives then.
    pub async fn kept_past(&self) -> KeptPast {
        self.kept_hint(LocalKind::Past, PAST_ID).await
    }
    /// A record that the agent can do without.
    async fn kept_hint<T: DeserializeOwned + Default>(&self, kind: LocalKind, id: &str) -> T {
        let path = self.folder(kind).join(file_name(id));
        match self.disk.read(&path, LEN_BYTES_MAX as u64).await {
            Ok(bytes) => decode_local(kind, &bytes).unwrap_or_else(|err| {
                tracing::warn!(path = %path.display(), %err, "what was kept of the pool is forgotten: the file is damaged");
                T::default()
            }),
            Err(_) => T::default(),
        }
    }
    pub async fn forget_members(&self) -> Result<(), DataDirError> {
        self.forget(LocalKind::Members, MEMBERS_ID).await
    }

    /// Writes the process id where the operator asked for it.
    pub async fn write_pid_file(rt: &R, path: &Path) -> Result<(), DataDirError> {
        let disk = rt.disk();
        let wrote = async {
            let file = disk.open(path, OpenMode::Create).await?;
            quorate_rt::File::set_len_bytes(&file, 0).await?;
            quorate_rt::File::write_at(&file, 0, Bytes::from(rt.process_id().to_string())).await
        };
        wrote.await.map_err(|err| DataDirError::Write {
            path: path.to_owned(),
            err,
        })
    }
}

/// A file name for any id: ids may hold slashes and be longer than a name may be. 128 bits of FNV-1a (Fowler, Noll, Vo)
/// make two ids of one agent meet in one name about never, and the same id always.
fn file_name(id: &str) -> String {
    let mut hash: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
    for byte in id.bytes() {
        hash ^= u128::from(byte);
        hash = hash.wrapping_mul(0x0000_0000_0100_0000_0000_0000_0000_013b);
    }
    Uuid::from_bytes(hash.to_be_bytes()).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_id_has_a_name_of_its_own() {
        assert_ne!(file_name("a/../b"), file_name("a/b"));
        assert_eq!(file_name(&"x".repeat(10_000)).len(), 36);
    }
}
