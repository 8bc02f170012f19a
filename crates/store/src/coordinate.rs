//! Where nodes are in the network, as they said last.
//!
//! In: batches of coordinates. Out: the reads of them. Invariants: `verify` lists them.
//! Not here: how a node finds its coordinate (`swim`), sorting by distance (`http-api`).

use crate::catalog::Catalog;
use crate::query::{Answer, Topic, fold};
use crate::table::Table;
use crate::touched::Touched;
use quorate_types::ModifyIndex;
use quorate_types::coordinate::NodeCoordinate;
use std::collections::BTreeSet;
use std::sync::Arc;

#[derive(Clone, Debug, Default)]
pub(crate) struct CoordinateTable {
    /// By the node's folded name.
    entries: Table<10, Arc<str>, Arc<NodeCoordinate>>,
    /// The last change.
    index: ModifyIndex,
}

impl CoordinateTable {
    pub(crate) fn index(&self) -> ModifyIndex {
        self.index
    }
    pub(crate) fn hash(&self) -> u128 {
        self.entries.hash()
    }
    pub(crate) fn recomputed_hash(&self) -> u128 {
        self.entries.recomputed_hash()
    }
    pub(crate) fn values(&self) -> impl Iterator<Item = &Arc<NodeCoordinate>> {
        self.entries.values()
    }

    /// Coordinates of nodes that the catalog does not hold, or that cannot be, are passed over.
    pub(crate) fn update(
        &mut self,
        at: ModifyIndex,
        updates: &[NodeCoordinate],
        catalog: &Catalog,
        touched: &mut Touched,
    ) {
        for update in updates {
            let key = fold(&update.node);
            if let Some((key, node)) = catalog.nodes.get_key_value(key.as_str())
                && update.coordinate.is_plausible()
            {
                let entry = NodeCoordinate {
                    node: node.name.clone(),
                    coordinate: update.coordinate,
                };
                self.entries.insert(key.clone(), Arc::new(entry));
                self.index = at;
                touched.insert(Topic::Coordinates);
            }
        }
    }
    /// The node is gone, unless one of its name came in its place.
    pub(crate) fn forget(&mut self, at: ModifyIndex, node: &Arc<str>, catalog: &Catalog, touched: &mut Touched) {
        if !catalog.nodes.contains_key(node) && self.entries.remove(node).is_some() {
            self.index = at;
            touched.insert(Topic::Coordinates);
        }
    }

    /// Those of these nodes, or of all when none is named; by name.
    pub(crate) fn read(&self, nodes: &[String]) -> (ModifyIndex, Answer) {
        let coordinates = if nodes.is_empty() {
            self.values().cloned().collect()
        } else {
            let keys: BTreeSet<String> = nodes.iter().map(|node| fold(node)).collect();
            let entries = keys.iter().filter_map(|key| self.entries.get(key.as_str()));
            entries.cloned().collect()
        };
        (self.index, Answer::Coordinates(coordinates))
    }

    pub(crate) fn load_index(&mut self, index: ModifyIndex) {
        self.index = index;
    }
    pub(crate) fn load(&mut self, entry: Arc<NodeCoordinate>) -> bool {
        let key = Arc::from(fold(&entry.node));
        self.entries.insert(key, entry).is_none()
    }

    pub(crate) fn verify(&self, catalog: &Catalog, last_index: ModifyIndex) -> Result<(), String> {
        if self.index > last_index {
            return Err("a coordinate changed in the future".to_owned());
        }
        for (key, entry) in &self.entries {
            if !catalog.nodes.contains_key(key) {
                return Err(format!("a coordinate outlived its node: {}", entry.node));
            }
            if fold(&entry.node) != **key {
                return Err(format!("a coordinate stands under another node: {}", entry.node));
            }
            if !entry.coordinate.is_plausible() {
                return Err(format!("a coordinate is nonsense: {}", entry.node));
            }
        }
        Ok(())
    }
}
