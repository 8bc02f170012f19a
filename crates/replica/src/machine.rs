//! The state machine: applies entries to the store and publishes it.
//!
//! After each applied batch an O(1) clone of the store is published through one atomic pointer; then watchers of what was
//! touched wake, then writers get their answers: whoever hears of a change finds it published.

use crate::comparison::{self, Comparison};
use crate::snapshot::{SnapshotFile, Snapshots};
use crate::types::{self, LogId, RaftRt, Reply, Snapshot, StoredMembership, Types};
use crate::watches::Watches;
use arc_swap::ArcSwap;
use futures::{Stream, StreamExt as _};
use openraft::storage::{EntryResponder, RaftStateMachine};
use openraft::{EntryPayload, OptionalSend, RaftSnapshotBuilder};
use quorate_rt::Event;
use quorate_store::{Command, Store, Topic};
use quorate_types::LogIndex;
use quorate_wire::raft::SnapshotMeta;
use quorate_wire::state::decode_command;
use std::collections::BTreeSet;
use std::io;
use std::sync::{Arc, Mutex};
use tokio::sync::Notify;

/// Applied before the next publication, when entries come without a pause: writers wait no longer than this many.
const PUBLISH_COUNT_MAX: usize = 256;

/// What readers see.
#[derive(Default)]
pub struct Published {
    store: ArcSwap<Store>,
    pub watches: Watches,
    /// Of this server's own state; 0 is no index that is hashed.
    hashed: Mutex<(LogIndex, u64)>,
    hash_taken: Notify,
}

impl Published {
    pub fn store(&self) -> Arc<Store> {
        self.store.load_full()
    }

    /// Waits for a hash of the state that was taken after the one at `seen`, and returns the newest.
    pub async fn next_hash(&self, seen: LogIndex) -> (LogIndex, u64) {
        loop {
            let taken = self.hash_taken.notified();
            let newest = *self.hashed.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            if newest.0 > seen {
                return newest;
            }
            taken.await;
        }
    }

    fn note_hash(&self, at: LogIndex, hash: u64) {
        *self.hashed.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = (at, hash);
        self.hash_taken.notify_waiters();
    }
}

/// The snapshot that a restart would begin with.
type Current<R> = Arc<Mutex<Option<(SnapshotFile<R>, SnapshotMeta)>>>;

pub struct Machine<R: RaftRt> {
    rt: R,
    snapshots: Snapshots<R>,
    published: Arc<Published>,
    store: Store,
    applied: Option<LogId>,
    membership: StoredMembership,
    comparison: Comparison,
    current: Current<R>,
}

fn locked<R: RaftRt>(current: &Current<R>) -> std::sync::MutexGuard<'_, Option<(SnapshotFile<R>, SnapshotMeta)>> {
    current.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn stored_membership(meta: &SnapshotMeta) -> io::Result<StoredMembership> {
    let membership = types::membership_from_wire(meta.membership.clone()).map_err(io::Error::other)?;
    Ok(StoredMembership::new(meta.membership_at.map(types::log_id), membership))
}

fn to_openraft(meta: &SnapshotMeta) -> io::Result<types::SnapshotMeta> {
    Ok(types::SnapshotMeta {
        last_log_id: meta.last.map(types::log_id),
        last_membership: stored_membership(meta)?,
    })
}

impl<R: RaftRt> Machine<R> {
    /// Starts from the newest snapshot, or from nothing.
    pub fn new(
        rt: R,
        snapshots: Snapshots<R>,
        published: Arc<Published>,
        newest: Option<(SnapshotFile<R>, SnapshotMeta, Store)>,
    ) -> io::Result<Self> {
        let mut machine = Self {
            rt,
            snapshots,
            published,
            store: Store::new(),
            applied: None,
            membership: StoredMembership::default(),
            comparison: Comparison::default(),
            current: Arc::default(),
        };
        if let Some((file, meta, store)) = newest {
            machine.applied = meta.last.map(types::log_id);
            machine.membership = stored_membership(&meta)?;
            machine.store = store;
            *locked(&machine.current) = Some((file, meta));
        }
        machine.published.store.store(Arc::new(machine.store.clone()));
        Ok(machine)
    }

    fn publish(
        &mut self,
        touched: &mut BTreeSet<Topic>,
        waiting: &mut Vec<(openraft::storage::ApplyResponder<Types<R>>, Reply)>,
    ) {
        self.published.store.store(Arc::new(self.store.clone()));
        self.published.watches.touch(touched.iter());
        touched.clear();
        for (responder, reply) in waiting.drain(..) {
            responder.send(reply);
        }
    }
}

/// Writes a snapshot of the state as it was when this was made.
pub struct Builder<R: RaftRt> {
    snapshots: Snapshots<R>,
    store: Store,
    meta: SnapshotMeta,
    current: Current<R>,
}

impl<R: RaftRt> Builder<R> {
    async fn replace_current(&self, file: SnapshotFile<R>) -> io::Result<()> {
        let outdated = {
            let mut current = locked(&self.current);
            match &*current {
                // One that was installed while this one was being written.
                Some((_, newer)) if newer.last > self.meta.last => Some(file.clone()),
                _ => current
                    .replace((file.clone(), self.meta.clone()))
                    .map(|(old, _)| old)
                    .filter(|old| old.path != file.path),
            }
        };
        if let Some(outdated) = outdated {
            self.snapshots.remove(&outdated).await?;
        }
        Ok(())
    }
}

impl<R: RaftRt> RaftSnapshotBuilder<Types<R>> for Builder<R> {
    type SnapshotData = SnapshotFile<R>;

    async fn build_snapshot(&mut self) -> io::Result<Snapshot<SnapshotFile<R>>> {
        let file = self.snapshots.build(&self.meta, &self.store).await?;
        self.replace_current(file.clone()).await?;
        tracing::debug!(path = %file.path.display(), len_bytes = file.len_bytes, "wrote a snapshot");
        Ok(Snapshot {
            meta: to_openraft(&self.meta)?,
            snapshot: file,
        })
    }
}

impl<R: RaftRt> RaftStateMachine<Types<R>> for Machine<R> {
    type SnapshotData = SnapshotFile<R>;
    type SnapshotBuilder = Builder<R>;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, StoredMembership)> {
        Ok((self.applied, self.membership.clone()))
    }

    async fn apply<Strm>(&mut self, mut entries: Strm) -> io::Result<()>
    where
        Strm: Stream<Item = io::Result<EntryResponder<Types<R>>>> + Unpin + OptionalSend,
    {
        let mut touched = BTreeSet::new();
        let mut waiting = Vec::new();
        let mut count = 0;
        while let Some(next) = entries.next().await {
            let (entry, responder) = next?;
            let position = types::position(&entry.log_id);
            let mut crc = 0;
            let reply = match entry.payload {
                EntryPayload::Blank => Reply(None),
                EntryPayload::Membership(membership) => {
                    self.membership = StoredMembership::new(Some(entry.log_id), membership);
                    Reply(None)
                }
                EntryPayload::Normal(command) => {
                    crc = crc32c::crc32c(&command.0);
                    let command = decode_command(&command.0).map_err(|err| {
                        io::Error::other(format!("the command at log index {}: {err}", position.index))
                    })?;
                    if let Command::StateHash(hash) = &command {
                        let voters = self.membership.voter_ids().collect();
                        self.comparison.hear(hash, &voters).map_err(io::Error::other)?;
                    }
                    let applied = self.store.apply(LogIndex(position.index), &command);
                    touched.extend(applied.touched);
                    Reply(Some(applied.outcome))
                }
            };
            self.applied = Some(entry.log_id);
            if position.index.is_multiple_of(comparison::INTERVAL) {
                let (at, hash) = (LogIndex(position.index), self.store.hash());
                self.comparison.note(at, hash);
                self.published.note_hash(at, hash);
            }
            let mut payload = [0; 20];
            payload[0..8].copy_from_slice(&position.term.to_le_bytes());
            payload[8..16].copy_from_slice(&position.index.to_le_bytes());
            payload[16..20].copy_from_slice(&crc.to_le_bytes());
            self.rt.event(Event {
                kind: "apply",
                payload: &payload,
            });
            waiting.extend(responder.map(|responder| (responder, reply)));
            count += 1;
            if count % PUBLISH_COUNT_MAX == 0 {
                self.publish(&mut touched, &mut waiting);
            }
        }
        self.publish(&mut touched, &mut waiting);
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Builder<R> {
        Builder {
            snapshots: self.snapshots.clone(),
            store: self.store.clone(),
            meta: SnapshotMeta {
                last: self.applied.as_ref().map(types::position),
                membership_at: self.membership.log_id().as_ref().map(types::position),
                membership: types::membership_to_wire(self.membership.membership()),
            },
            current: Arc::clone(&self.current),
        }
    }

    async fn install_snapshot(&mut self, meta: &types::SnapshotMeta, snapshot: SnapshotFile<R>) -> io::Result<()> {
        // The file's own meta counts: it is under the checksums that were just verified.
        let (own, store) = snapshot.load().await?;
        if own.last.map(types::log_id) != meta.last_log_id {
            return Err(io::Error::other(format!(
                "the snapshot {} stands for {:?} and not for {:?}",
                snapshot.path.display(),
                own.last,
                meta.last_log_id
            )));
        }
        let membership = stored_membership(&own)?;
        let file = self.snapshots.put_in_place(snapshot, &own).await?;
        let builder = Builder {
            snapshots: self.snapshots.clone(),
            store: Store::new(),
            meta: own,
            current: Arc::clone(&self.current),
        };
        builder.replace_current(file).await?;
        self.applied = meta.last_log_id;
        self.membership = membership;
        self.store = store;
        self.comparison.clear();
        self.publish(&mut BTreeSet::from([Topic::Everything]), &mut Vec::new());
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<Snapshot<SnapshotFile<R>>>> {
        let current = locked(&self.current).clone();
        current
            .map(|(file, meta)| {
                Ok(Snapshot {
                    meta: to_openraft(&meta)?,
                    snapshot: file,
                })
            })
            .transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fault_disk::{FaultDisk, FaultRt};
    use crate::types::{CommandBytes, Membership};
    use futures::executor::block_on;
    use quorate_rt::AnyDisk;
    use quorate_store::{KvCommand, StateHash};
    use quorate_types::{KvPair, NodeId, Uuid};
    use quorate_wire::log::Server;
    use quorate_wire::state::encode_command;
    use std::collections::BTreeMap;
    use std::path::Path;

    fn server(n: u8) -> NodeId {
        NodeId(Uuid::from_bytes([n; 16]))
    }

    fn machine() -> Machine<FaultRt> {
        let disk = AnyDisk::Real(FaultDisk::default());
        let snapshots = Snapshots::new(disk, Path::new("/raft"));
        Machine::new(FaultRt::default(), snapshots, Arc::default(), None).unwrap()
    }

    fn entry(index: u64, payload: EntryPayload<CommandBytes, NodeId, Server>) -> types::Entry {
        types::Entry {
            log_id: LogId::new_term_index(1, index),
            payload,
        }
    }

    /// Applies a key each up to the index at which states are hashed, the last with this value.
    async fn fill(machine: &mut Machine<FaultRt>, value: &[u8]) -> StateHash {
        let servers: BTreeMap<NodeId, Server> = (1..=3).map(|n| (server(n), Server::default())).collect();
        let voters = vec![servers.keys().copied().collect()];
        let membership = Membership::new(voters, servers).unwrap();
        let put = |index: u64| {
            let command = Command::Kv(KvCommand::Set(KvPair {
                key: format!("k{index}"),
                value: if index == comparison::INTERVAL {
                    value.to_vec()
                } else {
                    Vec::new()
                },
                ..KvPair::default()
            }));
            entry(
                index,
                EntryPayload::Normal(CommandBytes(encode_command(&command).into())),
            )
        };
        let entries = std::iter::once(entry(0, EntryPayload::Membership(membership)))
            .chain((1..=comparison::INTERVAL).map(put))
            .map(|entry| Ok((entry, None)));
        machine.apply(futures::stream::iter(entries)).await.unwrap();
        let (at, hash) = machine.published.next_hash(LogIndex(0)).await;
        StateHash {
            server: server(1),
            at,
            rules: StateHash::RULES,
            hash,
        }
    }

    async fn tell(machine: &mut Machine<FaultRt>, index: u64, hash: StateHash) -> io::Result<()> {
        let command = CommandBytes(encode_command(&Command::StateHash(hash)).into());
        let entry = entry(index, EntryPayload::Normal(command));
        machine.apply(futures::stream::iter([Ok((entry, None))])).await
    }

    #[test]
    fn a_server_whose_state_is_not_the_majoritys_applies_nothing_more() {
        block_on(async {
            let (mut sound, mut damaged) = (machine(), machine());
            let theirs = fill(&mut sound, b"as written").await;
            let own = fill(&mut damaged, b"as wrItten").await;
            assert_eq!((theirs.at, own.at), (LogIndex(1024), LogIndex(1024)));
            assert_ne!(theirs.hash, own.hash);
            let mut index = comparison::INTERVAL;
            for (n, hash) in [(1, own.hash), (2, theirs.hash), (3, theirs.hash)] {
                index += 1;
                let told = StateHash {
                    server: server(n),
                    hash,
                    ..theirs.clone()
                };
                tell(&mut sound, index, told.clone()).await.unwrap();
                let heard = tell(&mut damaged, index, told).await;
                assert_eq!(heard.is_err(), n == 3, "{n}: {heard:?}");
                if let Err(err) = heard {
                    let text = err.to_string();
                    assert!(
                        text.starts_with("the state at log index 1024 differs from that of 2 of 3 servers"),
                        "{text}"
                    );
                }
            }
        });
    }
}
