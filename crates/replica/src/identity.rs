//! Who this server is, which cluster it is part of, and to whom it is pledged. One small file, replaced durably.
//!
//! A pledge is a promise to form one proposer's cluster and no other. It is given once; it passes to another proposer only
//! when the first one gave up for it, which a proposer does only for a lower id and before it wrote a configuration.
//! So of two proposers whose sets overlap, one at most gets all its pledges: two views of the pool make no two clusters.
//! A server whose cluster never came to be joins the one that did: until it has a log, it may be adopted.
//!
//! Not here: asking others (`bootstrap`).

use crate::types::RaftRt;
use quorate_rt::{AnyDisk, Disk as _};
use quorate_types::{NodeId, Uuid};
use quorate_wire::codec::Malformed;
use quorate_wire::raft::{ControlReply, Identity, Pledge};
use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use thiserror::Error;

const FILE_NAME: &str = "identity";
const FILE_LEN_BYTES_MAX: u64 = 1024 * 1024;

#[derive(Debug, Error)]
pub enum IdentityError {
    #[error("{doing} {path}")]
    Io {
        doing: &'static str,
        path: PathBuf,
        #[source]
        err: io::Error,
    },
    #[error("the file {path} is damaged at offset {offset}")]
    Malformed {
        path: PathBuf,
        offset: u64,
        #[source]
        err: Malformed,
    },
    #[error("the log in {path} is node {found}'s, and this is node {wanted}")]
    OtherNode {
        path: PathBuf,
        found: NodeId,
        wanted: NodeId,
    },
}

/// The identity and its file.
pub struct Keeper<R: RaftRt> {
    disk: AnyDisk<R::Disk>,
    path: PathBuf,
    name: String,
    identity: Mutex<Identity>,
    /// Held while the identity changes, or must not.
    pub changes: tokio::sync::Mutex<()>,
}

/// The identity in a directory; `None` when there is no log yet.
pub async fn read<R: RaftRt>(
    disk: &AnyDisk<R::Disk>,
    directory: &Path,
    node_id: NodeId,
) -> Result<Option<Identity>, IdentityError> {
    let path = directory.join(FILE_NAME);
    let bytes = match disk.read(&path, FILE_LEN_BYTES_MAX).await {
        Ok(bytes) => bytes,
        Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(err) => {
            return Err(IdentityError::Io {
                doing: "read",
                path,
                err,
            });
        }
    };
    match Identity::from_file(&bytes) {
        Ok(identity) if identity.node_id != node_id => Err(IdentityError::OtherNode {
            path,
            found: identity.node_id,
            wanted: node_id,
        }),
        Ok(identity) => Ok(Some(identity)),
        Err(err) => {
            let offset = fault_offset(&err, bytes.len());
            Err(IdentityError::Malformed { path, offset, err })
        }
    }
}

/// Where the part of the file begins that does not fit: a version byte, a checksum of the rest, the rest.
fn fault_offset(err: &Malformed, len_bytes: usize) -> u64 {
    const CHECKSUM_AT: u64 = 1;
    const BODY_AT: u64 = 5;
    match err {
        Malformed::Version { .. } => 0,
        Malformed::TooShort { .. } if (len_bytes as u64) < BODY_AT => len_bytes as u64,
        Malformed::Checksum => CHECKSUM_AT,
        _ => BODY_AT,
    }
}

impl<R: RaftRt> Keeper<R> {
    pub fn new(disk: AnyDisk<R::Disk>, directory: &Path, name: String, identity: Identity) -> Self {
        Self {
            disk,
            path: directory.join(FILE_NAME),
            name,
            identity: Mutex::new(identity),
            changes: tokio::sync::Mutex::new(()),
        }
    }

    pub fn get(&self) -> Identity {
        self.locked().clone()
    }

    fn locked(&self) -> std::sync::MutexGuard<'_, Identity> {
        self.identity.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// The cluster it is part of, or pledged to.
    pub fn cluster_id(&self) -> Option<Uuid> {
        let identity = self.locked();
        identity
            .cluster_id
            .or_else(|| identity.pledge.as_ref().map(|pledge| pledge.cluster_id))
    }

    /// Makes it durable, then visible. The caller holds `changes`, but for the very first one.
    pub async fn save(&self, identity: Identity) -> Result<(), IdentityError> {
        self.disk
            .replace(&self.path, identity.to_file())
            .await
            .map_err(|err| IdentityError::Io {
                doing: "replace",
                path: self.path.clone(),
                err,
            })?;
        *self.locked() = identity;
        Ok(())
    }

    /// Answers a proposer. `has_log`: whether there is a log yet; a server with a log is part of its cluster for good.
    pub async fn pledge(
        &self,
        asked: Pledge,
        yielded: &BTreeSet<NodeId>,
        has_log: impl Fn() -> bool,
    ) -> Result<ControlReply, IdentityError> {
        let _change = self.changes.lock().await;
        // Asked under the lock, which a proposer holds while it writes its configuration.
        let has_log = has_log();
        let mut identity = self.get();
        let pledged = ControlReply::Pledged {
            name: self.name.clone(),
            disk_id: identity.disk_id,
        };
        match decide(&identity, &asked, yielded, has_log) {
            Decision::Keep => Ok(pledged),
            Decision::Take => {
                tracing::info!(proposer = %asked.proposer, cluster = %asked.cluster_id, "pledged to a proposer");
                identity.pledge = Some(asked);
                self.save(identity).await?;
                Ok(pledged)
            }
            Decision::PledgedTo(proposer) => Ok(ControlReply::PledgedTo { proposer }),
            Decision::Member(cluster_id) => Ok(ControlReply::Member { cluster_id }),
        }
    }

    /// Answers a leader that is about to add this server to its cluster.
    pub async fn adopt(&self, cluster_id: Uuid, has_log: impl Fn() -> bool) -> Result<ControlReply, IdentityError> {
        let _change = self.changes.lock().await;
        let has_log = has_log();
        let mut identity = self.get();
        let part_of = match (&identity.pledge, has_log) {
            (Some(pledge), true) => identity.cluster_id.or(Some(pledge.cluster_id)),
            _ => identity.cluster_id,
        };
        match part_of {
            Some(part_of) if part_of != cluster_id => return Ok(ControlReply::Member { cluster_id: part_of }),
            Some(_) => {}
            None => {
                tracing::info!(cluster = %cluster_id, "joining a cluster");
                identity.cluster_id = Some(cluster_id);
                identity.pledge = None;
                self.save(identity.clone()).await?;
            }
        }
        Ok(ControlReply::Adopted {
            name: self.name.clone(),
            disk_id: identity.disk_id,
        })
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Decision {
    Keep,
    Take,
    PledgedTo(NodeId),
    Member(Uuid),
}

fn decide(identity: &Identity, asked: &Pledge, yielded: &BTreeSet<NodeId>, has_log: bool) -> Decision {
    let pledged_cluster = identity.pledge.as_ref().map(|pledge| pledge.cluster_id);
    if let Some(part_of) = identity.cluster_id.or(pledged_cluster.filter(|_| has_log)) {
        return if part_of == asked.cluster_id {
            Decision::Keep
        } else {
            Decision::Member(part_of)
        };
    }
    let Some(pledge) = &identity.pledge else {
        return Decision::Take;
    };
    if pledge == asked {
        Decision::Keep
    } else if pledge.proposer == asked.proposer && pledge.cluster_id == asked.cluster_id {
        // Only the proposer writes the configuration, so it knows that no older round came to be.
        if asked.round > pledge.round {
            Decision::Take
        } else {
            Decision::PledgedTo(pledge.proposer)
        }
    } else if yielded.contains(&pledge.proposer)
        || pledge.proposer == identity.node_id && asked.proposer < identity.node_id
    {
        Decision::Take
    } else {
        Decision::PledgedTo(pledge.proposer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fault_disk::{FaultDisk, FaultRt};
    use futures::executor::block_on;

    fn node(number: u8) -> NodeId {
        NodeId(Uuid::from_bytes([number; 16]))
    }

    fn identity(number: u8, pledge: Option<Pledge>) -> Identity {
        Identity {
            node_id: node(number),
            disk_id: Uuid::from_bytes([100 + number; 16]),
            cluster_id: None,
            pledge,
        }
    }

    fn pledge(proposer: u8, round: u64, servers: &[u8]) -> Pledge {
        Pledge {
            proposer: node(proposer),
            cluster_id: Uuid::from_bytes([200 + proposer; 16]),
            round,
            servers: servers.iter().map(|number| node(*number)).collect(),
        }
    }

    #[test]
    fn damage_is_told_with_its_place_and_a_sound_file_is_read() {
        let directory = Path::new("/raft");
        let path = directory.join(FILE_NAME);
        let sound = identity(1, None).to_file().to_vec();
        let check = |content: &[u8]| {
            let disk = AnyDisk::Real(FaultDisk::with_files(&[(path.clone(), content.to_vec())]));
            block_on(read::<FaultRt>(&disk, directory, node(1)))
        };
        assert_eq!(check(&sound).unwrap(), Some(identity(1, None)));
        for at in 0..sound.len() {
            let mut flipped = sound.clone();
            flipped[at] ^= 1 << (at % 8);
            let err = check(&flipped).expect_err("it is damaged").to_string();
            let offset = at.min(1);
            assert_eq!(
                err,
                format!("the file /raft/identity is damaged at offset {offset}"),
                "byte {at}"
            );
        }
        for len in 0..sound.len() {
            let err = check(&sound[..len]).expect_err("it was cut").to_string();
            let offset = if len < 5 { len } else { 1 };
            assert_eq!(
                err,
                format!("the file /raft/identity is damaged at offset {offset}"),
                "cut to {len}"
            );
        }
    }

    fn none() -> BTreeSet<NodeId> {
        BTreeSet::new()
    }

    #[test]
    fn a_server_pledges_once() {
        let first = pledge(1, 1, &[1, 2, 3]);
        assert_eq!(decide(&identity(3, None), &first, &none(), false), Decision::Take);
        let pledged = identity(3, Some(first.clone()));
        assert_eq!(decide(&pledged, &first, &none(), false), Decision::Keep);
        let second = pledge(2, 1, &[2, 3, 4]);
        assert_eq!(decide(&pledged, &second, &none(), false), Decision::PledgedTo(node(1)));
    }

    #[test]
    fn a_proposer_may_choose_another_set_but_not_return_to_an_older_one() {
        let pledged = identity(3, Some(pledge(1, 2, &[1, 2, 3])));
        let newer = pledge(1, 3, &[1, 3, 4]);
        assert_eq!(decide(&pledged, &newer, &none(), false), Decision::Take);
        let older = pledge(1, 1, &[1, 3, 4]);
        assert_eq!(decide(&pledged, &older, &none(), false), Decision::PledgedTo(node(1)));
    }

    #[test]
    fn a_proposer_yields_to_a_lower_id_only_and_those_pledged_to_it_follow() {
        let own = identity(2, Some(pledge(2, 1, &[2, 3, 4])));
        let lower = pledge(1, 1, &[1, 2, 3]);
        assert_eq!(decide(&own, &lower, &none(), false), Decision::Take);
        let higher = pledge(3, 1, &[2, 3, 4]);
        assert_eq!(decide(&own, &higher, &none(), false), Decision::PledgedTo(node(2)));
        let follower = identity(3, Some(pledge(2, 1, &[2, 3, 4])));
        assert_eq!(decide(&follower, &lower, &none(), false), Decision::PledgedTo(node(2)));
        let yielded = BTreeSet::from([node(2)]);
        assert_eq!(decide(&follower, &lower, &yielded, false), Decision::Take);
    }

    #[test]
    fn a_server_with_a_log_stays_with_its_cluster() {
        let own = pledge(2, 1, &[2, 3, 4]);
        let member = identity(2, Some(own.clone()));
        let lower = pledge(1, 1, &[1, 2, 3]);
        let yielded = BTreeSet::from([node(2)]);
        assert_eq!(
            decide(&member, &lower, &yielded, true),
            Decision::Member(own.cluster_id)
        );
        assert_eq!(decide(&member, &own, &none(), true), Decision::Keep);
        let adopted = Identity {
            cluster_id: Some(own.cluster_id),
            ..identity(5, None)
        };
        assert_eq!(
            decide(&adopted, &lower, &none(), false),
            Decision::Member(own.cluster_id)
        );
    }
}
