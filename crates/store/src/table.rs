//! A persistent map that knows the hash of what it holds.
//!
//! Promises: a clone is O(1); the hash is the wrapping sum of the hashes of its entries, so it depends on them and not on
//! the way they came, and each change costs the hashing of what it changes.
//! Duties of a caller: one kind for each table, so that entries of two tables do not stand for one another.

use crate::digest::hash_of;
use equivalent::Comparable;
use imbl::OrdMap;
use serde::Serialize;
use std::fmt::{self, Debug};
use std::ops::Deref;

#[derive(Clone)]
pub(crate) struct Table<const KIND: u8, K, V> {
    entries: OrdMap<K, V>,
    hash: u128,
}

impl<const KIND: u8, K, V> Default for Table<KIND, K, V> {
    fn default() -> Self {
        Self {
            entries: OrdMap::default(),
            hash: 0,
        }
    }
}

impl<const KIND: u8, K: Ord + Debug, V: Debug> Debug for Table<KIND, K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.entries.fmt(f)
    }
}

/// Reading, all of it. There is no `DerefMut`: a change goes through the table.
impl<const KIND: u8, K, V> Deref for Table<KIND, K, V> {
    type Target = OrdMap<K, V>;
    fn deref(&self) -> &OrdMap<K, V> {
        &self.entries
    }
}

impl<'a, const KIND: u8, K: Ord, V> IntoIterator for &'a Table<KIND, K, V> {
    type Item = (&'a K, &'a V);
    type IntoIter = <&'a OrdMap<K, V> as IntoIterator>::IntoIter;
    fn into_iter(self) -> Self::IntoIter {
        (&self.entries).into_iter()
    }
}

impl<const KIND: u8, K: Ord + Clone + Serialize, V: Clone + Serialize> Table<KIND, K, V> {
    fn entry_hash(key: &K, value: &V) -> u128 {
        hash_of(&(KIND, key, value))
    }

    pub(crate) fn insert(&mut self, key: K, value: V) -> Option<V> {
        self.hash = self.hash.wrapping_add(Self::entry_hash(&key, &value));
        let old = self.entries.get(&key).map(|old| Self::entry_hash(&key, old));
        self.hash = self.hash.wrapping_sub(old.unwrap_or(0));
        self.entries.insert(key, value)
    }

    pub(crate) fn remove_with_key<Q: Comparable<K> + ?Sized>(&mut self, key: &Q) -> Option<(K, V)> {
        let removed = self.entries.remove_with_key(key);
        if let Some((key, value)) = &removed {
            self.hash = self.hash.wrapping_sub(Self::entry_hash(key, value));
        }
        removed
    }

    pub(crate) fn remove<Q: Comparable<K> + ?Sized>(&mut self, key: &Q) -> Option<V> {
        self.remove_with_key(key).map(|(_, value)| value)
    }

    pub(crate) fn hash(&self) -> u128 {
        self.hash
    }

    /// The hash found anew from every entry.
    pub(crate) fn recomputed_hash(&self) -> u128 {
        self.entries.iter().fold(0, |sum: u128, (key, value)| {
            sum.wrapping_add(Self::entry_hash(key, value))
        })
    }
}
