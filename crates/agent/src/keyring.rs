//! The gossip keyring of this agent: its file, and what operators ask of the whole pool's rings.
//!
//! Layout as Consul's: `serf/local.keyring` (and a server's `serf/remote.keyring` for the WAN) in the data directory, a JSON list of keys, readable by this agent's user only.
//! The key given as `encrypt` makes the first file. From then on the file counts, so that a rotated key survives restarts with
//! an old configuration; a file alone turns encryption on. With `disable_keyring_file` there is only the given key.
//! Not here: the ring's rules (`wire::keyring`), how members are asked (`gossip`).

use crate::config::Config;
use crate::data_dir::DataDir;
use bytes::Bytes;
use futures::future::BoxFuture;
use quorate_gossip::{
    Encryption, Gossip, KeyBytes, KeyError, Keyring, KeyringFileError, KeyringKeeper, KeyringRequest, NotKept,
};
use quorate_rt::{AnyDisk, Disk, Rt};
use quorate_wire::keyring::{KEYRING_FILE_LEN_BYTES_MAX, decode_base64};
use quorate_wire::rpc::{KeyringOperation, KeyringPool};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use thiserror::Error;

const FOLDER: &str = "serf";

/// Each pool has a ring of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pool {
    Lan,
    Wan,
}

impl Pool {
    const fn file(self) -> &'static str {
        match self {
            Self::Lan => "local.keyring",
            Self::Wan => "remote.keyring",
        }
    }
    const fn name(self) -> &'static str {
        match self {
            Self::Lan => "LAN",
            Self::Wan => "WAN",
        }
    }
}

/// Why the keyring cannot be used.
#[derive(Debug, Error)]
pub enum KeyringStartError {
    #[error("failed to load keyring {path}: {err}")]
    Read { path: PathBuf, err: io::Error },
    #[error("failed to load keyring {path}: {err}: restore the file, or remove it to begin with the key of encrypt")]
    Damaged { path: PathBuf, err: KeyringFileError },
    #[error("failed to write keyring {path}: {err}")]
    Write { path: PathBuf, err: io::Error },
}

struct KeyringFile<D> {
    disk: AnyDisk<D>,
    folder: PathBuf,
    pool: Pool,
}

impl<D: Disk> KeyringFile<D> {
    fn path(&self) -> PathBuf {
        self.folder.join(self.pool.file())
    }
    async fn write(&self, content: Bytes) -> io::Result<()> {
        self.disk.create_dir_all(&self.folder).await?;
        if let Some(above) = self.folder.parent() {
            self.disk.sync_dir(above).await?;
        }
        self.disk.replace_private(&self.path(), content).await
    }
}

impl<D: Disk> KeyringKeeper for KeyringFile<D> {
    fn keep(&self, ring: &Keyring) -> BoxFuture<'_, io::Result<()>> {
        let content = Bytes::from(ring.encode_file());
        Box::pin(self.write(content))
    }
}

/// The ring to start with and how it is used; `None`: everything is plaintext.
pub(crate) async fn load<R: Rt>(
    config: &Config,
    data_dir: &DataDir<R>,
    pool: Pool,
) -> Result<Option<Encryption>, KeyringStartError> {
    let encryption = |keyring, keeper| Encryption {
        keyring,
        verify_incoming: config.encrypt_verify_incoming,
        verify_outgoing: config.encrypt_verify_outgoing,
        keeper,
    };
    let given = config.encrypt.clone();
    if config.disable_keyring_file {
        return Ok(given.map(|key| encryption(Keyring::new(key), Arc::new(NotKept))));
    }
    let file = KeyringFile {
        disk: data_dir.disk(),
        folder: data_dir.path().join(FOLDER),
        pool,
    };
    let path = file.path();
    let ring = match file.disk.read(&path, KEYRING_FILE_LEN_BYTES_MAX as u64).await {
        Ok(content) => {
            let ring = Keyring::decode_file(&content).map_err(|err| KeyringStartError::Damaged { path, err })?;
            if given.is_some_and(|key| !ring.contains(&key)) {
                tracing::warn!(
                    "{} keyring doesn't include key provided with -encrypt, using keyring",
                    pool.name()
                );
            }
            ring
        }
        Err(err) if err.kind() == io::ErrorKind::NotFound => {
            let Some(key) = given else {
                return Ok(None);
            };
            let ring = Keyring::new(key);
            let kept = file.keep(&ring).await;
            kept.map_err(|err| KeyringStartError::Write { path, err })?;
            ring
        }
        Err(err) => return Err(KeyringStartError::Read { path, err }),
    };
    Ok(Some(encryption(ring, Arc::new(file))))
}

/// What all members of a server's pools say to an operator's request: the WAN pool first, as Consul tells it.
pub(crate) async fn ask<R: Rt>(
    lan: &Gossip<R>,
    wan: Option<&Gossip<R>>,
    operation: KeyringOperation,
    local_only: bool,
) -> Vec<KeyringPool> {
    let wan = wan.filter(|_| !local_only);
    let request = request(operation);
    let ask = async |gossip: &Gossip<R>, is_wan| {
        let mut pool = KeyringPool {
            is_wan,
            ..KeyringPool::default()
        };
        match &request {
            Err(err) => pool.failure = Some(err.to_string()),
            Ok(request) => {
                for answer in gossip.keyring(request.clone()).await {
                    add(&mut pool, answer.member.name, &answer.result);
                }
                conclude(&mut pool);
            }
        }
        pool
    };
    let ask_wan = async {
        match wan {
            Some(wan) => Some(ask(wan, true).await),
            None => None,
        }
    };
    let (wan, lan) = futures::future::join(ask_wan, ask(lan, false)).await;
    wan.into_iter().chain([lan]).collect()
}

fn request(operation: KeyringOperation) -> Result<KeyringRequest, KeyError> {
    // Of any length: each member says what is wrong with it, as in Serf.
    let bytes = |key: &str| decode_base64(key).map(KeyBytes);
    Ok(match operation {
        KeyringOperation::List => KeyringRequest::List,
        KeyringOperation::Install(key) => KeyringRequest::Install(bytes(&key)?),
        KeyringOperation::Use(key) => KeyringRequest::Use(bytes(&key)?),
        KeyringOperation::Remove(key) => KeyringRequest::Remove(bytes(&key)?),
    })
}

fn add(pool: &mut KeyringPool, member: String, result: &Result<Vec<quorate_gossip::RingKey>, String>) {
    pool.member_count += 1;
    match result {
        Ok(keys) => {
            for key in keys {
                *pool.keys.entry(key.to_base64()).or_default() += 1;
            }
            if let Some(primary) = keys.first() {
                *pool.primary_keys.entry(primary.to_base64()).or_default() += 1;
            }
        }
        Err(reason) => {
            pool.messages.insert(member, reason.clone());
        }
    }
}

fn conclude(pool: &mut KeyringPool) {
    let (failed, all) = (pool.messages.len(), pool.member_count);
    if failed > 0 {
        pool.failure = Some(format!("{failed}/{all} nodes reported failure"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_counted_by_key_and_failures_told_by_member() {
        let key = |first: u8| quorate_gossip::RingKey::from_bytes(&[first; 16]).expect("a key");
        let mut pool = KeyringPool::default();
        add(&mut pool, "a".to_owned(), &Ok(vec![key(1), key(2)]));
        add(&mut pool, "b".to_owned(), &Ok(vec![key(2), key(1)]));
        conclude(&mut pool);
        assert_eq!(pool.failure, None);
        add(&mut pool, "c".to_owned(), &Err("why".to_owned()));
        conclude(&mut pool);
        assert_eq!(pool.failure.as_deref(), Some("1/3 nodes reported failure"));
        assert_eq!(pool.messages["c"], "why");
        assert_eq!(pool.keys[&key(1).to_base64()], 2);
        assert_eq!(pool.primary_keys[&key(2).to_base64()], 1);
    }

    #[test]
    fn a_key_that_is_no_base64_is_refused_before_anybody_is_asked() {
        let err = request(KeyringOperation::Install("*".to_owned())).expect_err("no base64");
        assert_eq!(err.to_string(), "illegal base64 data at input byte 0");
        assert!(request(KeyringOperation::Use("MTIz".to_owned())).is_ok());
    }
}
