//! The gossip keyring of this agent: its file, and what operators ask of the whole pool's rings.
//!
//! Layout as Consul's: `serf/local.keyring` in the data directory, a JSON list of keys, readable by this agent's user only.
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
use quorate_http_api::{KeyringOperation, KeyringPool};
use quorate_rt::{AnyDisk, Disk, Rt};
use quorate_wire::keyring::{KEYRING_FILE_LEN_BYTES_MAX, decode_base64};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use thiserror::Error;

const FOLDER: &str = "serf";
const LAN_FILE: &str = "local.keyring";

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
}

impl<D: Disk> KeyringFile<D> {
    fn path(&self) -> PathBuf {
        self.folder.join(LAN_FILE)
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
    };
    let path = file.path();
    let ring = match file.disk.read(&path, KEYRING_FILE_LEN_BYTES_MAX as u64).await {
        Ok(content) => {
            let ring = Keyring::decode_file(&content).map_err(|err| KeyringStartError::Damaged { path, err })?;
            if given.is_some_and(|key| !ring.contains(&key)) {
                tracing::warn!(
                    keyring = "LAN",
                    "LAN keyring doesn't include key provided with -encrypt, using keyring"
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

/// What all members say to an operator's request, as Consul tells it: the WAN pool first, which is the servers as long as
/// there is one datacenter.
pub(crate) async fn ask<R: Rt>(
    gossip: &Gossip<R>,
    datacenter: &str,
    operation: KeyringOperation,
    local_only: bool,
) -> Vec<KeyringPool> {
    let mut lan = KeyringPool {
        datacenter: datacenter.to_owned(),
        ..KeyringPool::default()
    };
    let mut wan = KeyringPool {
        wan: true,
        ..lan.clone()
    };
    match request(operation) {
        Err(err) => {
            lan.failure = Some(err.to_string());
            wan.failure = lan.failure.clone();
        }
        Ok(request) => {
            for answer in gossip.keyring(request).await {
                let name = &answer.member.name;
                if answer.member.is_server() {
                    add(&mut wan, format!("{name}.{datacenter}"), &answer.result);
                }
                add(&mut lan, name.clone(), &answer.result);
            }
            conclude(&mut lan);
            conclude(&mut wan);
        }
    }
    if local_only { vec![lan] } else { vec![wan, lan] }
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
