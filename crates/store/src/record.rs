//! The state as a sequence of records: what a snapshot holds.
//!
//! In: a store, or records from a disk or a peer. Out: the records, header first and nodes before what lives on them; or
//! a store that passes its own check, or why the records are none.
//! Not here: bytes and checksums (`wire`).

use crate::catalog::TableIndexes;
use crate::kv::Grave;
use crate::session::LockDelay;
use crate::state::{ClusterName, Store};
use quorate_types::{Check, KvPair, LogIndex, ModifyIndex, Node, NodeCoordinate, Service, Session};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use thiserror::Error;

/// One piece of the state. New variants are appended: a snapshot keeps a variant by its position.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Record {
    /// Once, before all others.
    Header {
        last_log_index: LogIndex,
        /// From a log index to the index clients see.
        offset: u64,
        cluster: Option<ClusterName>,
    },
    /// The last change of each table.
    Indexes {
        nodes: ModifyIndex,
        services: ModifyIndex,
        checks: ModifyIndex,
        service_gone: ModifyIndex,
        kv: ModifyIndex,
    },
    Node(Arc<Node>),
    Service {
        node: String,
        service: Arc<Service>,
    },
    Check(Arc<Check>),
    /// The name in lower case.
    ServiceIndex {
        service: String,
        index: ModifyIndex,
    },
    Kv(Arc<KvPair>),
    KeyTombstone {
        key: String,
        index: ModifyIndex,
    },
    TreeTombstone {
        prefix: String,
        index: ModifyIndex,
    },
    /// The last session that was created or ended. Absent while there never was one.
    SessionIndex {
        index: ModifyIndex,
    },
    Session(Arc<Session>),
    LockDelay {
        key: String,
        delay: LockDelay,
    },
    /// The last change of a coordinate. Absent while there never was one.
    CoordinateIndex {
        index: ModifyIndex,
    },
    Coordinate(Arc<NodeCoordinate>),
}

/// Why records are no state.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum RecordError {
    #[error("the records do not begin with a header")]
    HeaderMissing,
    #[error("record {position} is a second header")]
    HeaderAgain { position: u64 },
    #[error("record {position} repeats an earlier one, or lives on a node that no earlier one holds")]
    Misplaced { position: u64 },
    #[error("the records contradict each other: {reason}")]
    Contradiction { reason: String },
}

impl Store {
    /// The whole state, for a snapshot. Two stores are the same exactly when their records are.
    pub fn records(&self) -> impl Iterator<Item = Record> + '_ {
        let TableIndexes {
            nodes,
            services,
            checks,
            service_gone,
        } = self.catalog.indexes;
        let first = [
            Record::Header {
                last_log_index: self.last_log_index,
                offset: self.offset,
                cluster: self.cluster.clone(),
            },
            Record::Indexes {
                nodes,
                services,
                checks,
                service_gone,
                kv: self.kv.index(),
            },
        ];
        let catalog = &self.catalog;
        let nodes = catalog.nodes.values().cloned().map(Record::Node);
        let services = catalog.services.iter().map(|(key, service)| Record::Service {
            node: key.node.to_string(),
            service: service.clone(),
        });
        let checks = catalog.checks.values().cloned().map(Record::Check);
        let service_indexes = catalog
            .service_indexes
            .iter()
            .map(|(name, index)| Record::ServiceIndex {
                service: name.to_string(),
                index: *index,
            });
        let pairs = self.kv.pairs().cloned().map(Record::Kv);
        let tombstones = self.kv.tombstones().map(|(index, grave)| match grave {
            Grave::Key(key) => Record::KeyTombstone {
                key: key.to_string(),
                index: *index,
            },
            Grave::Tree(prefix) => Record::TreeTombstone {
                prefix: prefix.to_string(),
                index: *index,
            },
        });
        let session_index = Some(self.sessions.index()).filter(|index| *index > ModifyIndex::ZERO);
        let session_index = session_index.map(|index| Record::SessionIndex { index });
        let sessions = self.sessions.sessions().cloned().map(Record::Session);
        let lock_delays = self.sessions.lock_delays().map(|(key, delay)| Record::LockDelay {
            key: key.to_string(),
            delay: *delay,
        });
        let coordinate_index = Some(self.coordinates.index()).filter(|index| *index > ModifyIndex::ZERO);
        let coordinate_index = coordinate_index.map(|index| Record::CoordinateIndex { index });
        let coordinates = self.coordinates.values().cloned().map(Record::Coordinate);
        first
            .into_iter()
            .chain(nodes)
            .chain(services)
            .chain(checks)
            .chain(service_indexes)
            .chain(pairs)
            .chain(tombstones)
            .chain(session_index)
            .chain(sessions)
            .chain(lock_delays)
            .chain(coordinate_index)
            .chain(coordinates)
    }

    /// The state that these records are.
    pub fn from_records(records: impl IntoIterator<Item = Record>) -> Result<Self, RecordError> {
        let mut builder = StoreBuilder::default();
        for record in records {
            builder.push(record)?;
        }
        builder.finish()
    }
}

/// Makes a store of records that arrive one by one.
#[derive(Debug, Default)]
pub struct StoreBuilder {
    store: Store,
    record_count: u64,
}

impl StoreBuilder {
    pub fn push(&mut self, record: Record) -> Result<(), RecordError> {
        let position = self.record_count;
        self.record_count += 1;
        let store = &mut self.store;
        let is_header = matches!(record, Record::Header { .. });
        match (position, is_header) {
            (0, false) => return Err(RecordError::HeaderMissing),
            (1.., true) => return Err(RecordError::HeaderAgain { position }),
            _ => {}
        }
        let is_placed = match record {
            Record::Header {
                last_log_index,
                offset,
                cluster,
            } => {
                store.last_log_index = last_log_index;
                store.offset = offset;
                store.cluster = cluster;
                true
            }
            Record::Indexes {
                nodes,
                services,
                checks,
                service_gone,
                kv,
            } => {
                store.catalog.indexes = TableIndexes {
                    nodes,
                    services,
                    checks,
                    service_gone,
                };
                store.kv.load_index(kv);
                true
            }
            Record::Node(node) => store.catalog.load_node(Arc::unwrap_or_clone(node)),
            Record::Service { node, service } => store.catalog.load_service(&node, service),
            Record::Check(check) => store.catalog.load_check(check),
            Record::ServiceIndex { service, index } => store.catalog.load_service_index(&service, index),
            Record::Kv(pair) => store.kv.load_pair(pair),
            Record::KeyTombstone { key, index } => store.kv.load_tombstone(index, Grave::Key(key.into())),
            Record::TreeTombstone { prefix, index } => store.kv.load_tombstone(index, Grave::Tree(prefix.into())),
            Record::SessionIndex { index } => {
                store.sessions.load_index(index);
                true
            }
            Record::Session(session) => store.sessions.load(session),
            Record::CoordinateIndex { index } => {
                store.coordinates.load_index(index);
                true
            }
            Record::Coordinate(entry) => store.coordinates.load(entry),
            Record::LockDelay { key, delay } => store.sessions.load_lock_delay(&key, delay),
        };
        if is_placed {
            Ok(())
        } else {
            Err(RecordError::Misplaced { position })
        }
    }

    pub fn finish(self) -> Result<Store, RecordError> {
        if self.record_count == 0 {
            return Err(RecordError::HeaderMissing);
        }
        self.store
            .verify()
            .map_err(|reason| RecordError::Contradiction { reason })?;
        Ok(self.store)
    }
}
