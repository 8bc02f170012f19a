//! The key/value table and its tombstones.
//!
//! In: `KvCommand`s with the index they apply at. Out: outcomes and touched topics; the reads of one key and of a prefix
//! with the index that the contract gives each.
//! Invariants: `check_index` lists them. The index of a list never goes back, but for collected tombstones.
//! Not here: what a session's end does to its keys.
//!
//! A tombstone keeps the index of a deletion, so that the index of a list rises when a key leaves it. A key has one while
//! it is absent; a deleted tree has one for its prefix, which replaces those beneath it. Deleting every key leaves
//! none: lists under which nothing ever was report the index of the whole table, which that deletion raised.

use crate::command::{CommandError, KvCommand, Outcome};
use crate::query::{Answer, Topic};
use crate::touched::Touched;
use imbl::{OrdMap, OrdSet};
use quorate_types::{KvPair, ModifyIndex};
use std::ops::Bound;
use std::sync::Arc;

/// What a tombstone stands for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Grave {
    Key(Arc<str>),
    Tree(Arc<str>),
}

#[derive(Clone, Debug, Default)]
pub(crate) struct KvTable {
    pairs: OrdMap<Arc<str>, Arc<KvPair>>,
    key_tombstones: OrdMap<Arc<str>, ModifyIndex>,
    tree_tombstones: OrdMap<Arc<str>, ModifyIndex>,
    /// Both kinds by age, so that a collection costs what it collects.
    tombstones_by_age: OrdSet<(ModifyIndex, Grave)>,
    /// The last change of any key.
    index: ModifyIndex,
}

/// The entries under a prefix, in byte order.
fn under<'a, V: Clone>(map: &'a OrdMap<Arc<str>, V>, prefix: &'a str) -> impl Iterator<Item = (&'a Arc<str>, &'a V)> {
    map.range::<_, str>((Bound::Included(prefix), Bound::Unbounded))
        .take_while(move |(key, _)| key.starts_with(prefix))
}

/// The longest common prefix that ends at a character.
fn common_prefix<'a>(left: &'a str, right: &str) -> &'a str {
    let len = left
        .char_indices()
        .zip(right.chars())
        .find(|((_, a), b)| a != b)
        .map_or(left.len().min(right.len()), |((position, _), _)| position);
    &left[..len]
}

impl KvTable {
    pub(crate) fn apply(&mut self, at: ModifyIndex, command: &KvCommand, touched: &mut Touched) -> Outcome {
        match command {
            KvCommand::Set(KvPair { key, .. })
            | KvCommand::Cas {
                pair: KvPair { key, .. },
                ..
            }
            | KvCommand::Delete { key }
            | KvCommand::DeleteCas { key, .. }
                if key.is_empty() =>
            {
                Outcome::Refused(CommandError::KeyMissing)
            }
            KvCommand::Set(pair) => {
                self.set(at, pair, touched);
                Outcome::Done
            }
            KvCommand::Cas { pair, expected } => {
                let current = self.pairs.get(pair.key.as_str()).map(|pair| pair.modify_index);
                let held = match current {
                    None => *expected == ModifyIndex::ZERO,
                    Some(current) => *expected == current && current != ModifyIndex::ZERO,
                };
                if held {
                    self.set(at, pair, touched);
                }
                Outcome::Decided(held)
            }
            KvCommand::Delete { key } => {
                self.delete(at, key, touched);
                Outcome::Done
            }
            KvCommand::DeleteCas { key, expected } => {
                let Some(pair) = self.pairs.get(key.as_str()) else {
                    return Outcome::Decided(true);
                };
                let held = pair.modify_index == *expected;
                if held {
                    self.delete(at, key, touched);
                }
                Outcome::Decided(held)
            }
            KvCommand::DeleteTree { prefix } => {
                self.delete_tree(at, prefix, touched);
                Outcome::Done
            }
        }
    }

    fn set(&mut self, at: ModifyIndex, wanted: &KvPair, touched: &mut Touched) {
        let mut pair = KvPair {
            session: None,
            // Consul 1.8.7: a plain write keeps the lock's holder but forgets its count.
            lock_index: 0,
            create_index: at,
            modify_index: at,
            ..wanted.clone()
        };
        if let Some(existing) = self.pairs.get(wanted.key.as_str()) {
            pair.session = existing.session;
            pair.create_index = existing.create_index;
            // A write that changes nothing moves no index, and so wakes nobody.
            pair.modify_index = existing.modify_index;
            if pair == **existing {
                return;
            }
            pair.modify_index = at;
        }
        let key: Arc<str> = Arc::from(wanted.key.as_str());
        self.forget_key_tombstone(&key);
        self.pairs.insert(key, Arc::new(pair));
        self.index = at;
        touched.insert(Topic::Key(wanted.key.clone()));
    }

    fn delete(&mut self, at: ModifyIndex, key: &str, touched: &mut Touched) {
        let Some((key, _)) = self.pairs.remove_with_key(key) else {
            return;
        };
        touched.insert(Topic::Key(key.to_string()));
        self.key_tombstones.insert(key.clone(), at);
        self.tombstones_by_age.insert((at, Grave::Key(key)));
        self.index = at;
    }

    fn delete_tree(&mut self, at: ModifyIndex, prefix: &str, touched: &mut Touched) {
        let keys: Vec<Arc<str>> = under(&self.pairs, prefix).map(|(key, _)| key.clone()).collect();
        if keys.is_empty() {
            return;
        }
        self.index = at;
        touched.insert(Topic::KeyPrefix(prefix.to_owned()));
        if prefix.is_empty() {
            *self = Self {
                index: at,
                ..Self::default()
            };
            return;
        }
        for key in &keys {
            self.pairs.remove(key.as_ref());
        }
        let key_tombstones: Vec<Arc<str>> = under(&self.key_tombstones, prefix)
            .map(|(key, _)| key.clone())
            .collect();
        for key in &key_tombstones {
            self.forget_key_tombstone(key);
        }
        let tree_tombstones: Vec<Arc<str>> = under(&self.tree_tombstones, prefix)
            .map(|(key, _)| key.clone())
            .collect();
        for tree in tree_tombstones {
            self.forget_tree_tombstone(&tree);
        }
        let prefix: Arc<str> = Arc::from(prefix);
        self.tree_tombstones.insert(prefix.clone(), at);
        self.tombstones_by_age.insert((at, Grave::Tree(prefix)));
    }

    fn forget_key_tombstone(&mut self, key: &Arc<str>) {
        if let Some(index) = self.key_tombstones.remove(key.as_ref()) {
            self.tombstones_by_age.remove(&(index, Grave::Key(key.clone())));
        }
    }

    fn forget_tree_tombstone(&mut self, prefix: &Arc<str>) {
        if let Some(index) = self.tree_tombstones.remove(prefix.as_ref()) {
            self.tombstones_by_age.remove(&(index, Grave::Tree(prefix.clone())));
        }
    }

    /// Forgets deletions up to an index. Readers of lists that these held up are told: their index may change.
    pub(crate) fn collect_tombstones(&mut self, up_to: ModifyIndex, touched: &mut Touched) {
        while let Some((index, grave)) = self.tombstones_by_age.get_min().cloned() {
            if index > up_to {
                break;
            }
            match grave {
                Grave::Key(key) => {
                    self.forget_key_tombstone(&key);
                    touched.insert(Topic::Key(key.to_string()));
                }
                Grave::Tree(prefix) => {
                    self.forget_tree_tombstone(&prefix);
                    touched.insert(Topic::KeyPrefix(prefix.to_string()));
                }
            }
        }
    }

    pub(crate) fn get(&self, key: &str) -> (ModifyIndex, Answer) {
        let pair = self.pairs.get(key).cloned();
        let index = pair.as_ref().map_or(self.index, |pair| pair.modify_index);
        (index, Answer::Kv(pair))
    }

    pub(crate) fn list(&self, prefix: &str) -> (ModifyIndex, Answer) {
        let pairs: Vec<Arc<KvPair>> = under(&self.pairs, prefix).map(|(_, pair)| pair.clone()).collect();
        let last = pairs.iter().map(|pair| pair.modify_index).max();
        (self.list_index(prefix, last), Answer::KvList(pairs))
    }

    pub(crate) fn keys(&self, prefix: &str, separator: &str) -> (ModifyIndex, Answer) {
        let mut last = None;
        let mut keys: Vec<String> = Vec::new();
        for (key, pair) in under(&self.pairs, prefix) {
            last = last.max(Some(pair.modify_index));
            let rest = &key[prefix.len()..];
            let len = match rest.find(separator) {
                Some(position) if !separator.is_empty() => prefix.len() + position + separator.len(),
                _ => key.len(),
            };
            // Keys that are cut to the same text stand side by side in byte order.
            if keys.last().is_none_or(|previous| **previous != key[..len]) {
                keys.push(key[..len].to_owned());
            }
        }
        (self.list_index(prefix, last), Answer::KvKeys(keys))
    }

    /// The index of a list whose present keys changed last at `last`.
    fn list_index(&self, prefix: &str, last: Option<ModifyIndex>) -> ModifyIndex {
        if prefix.is_empty() {
            return self.index;
        }
        last.max(self.last_deletion(prefix)).unwrap_or(self.index)
    }

    /// The last deletion that may have taken keys with this prefix.
    fn last_deletion(&self, prefix: &str) -> Option<ModifyIndex> {
        let keys = under(&self.key_tombstones, prefix).map(|(_, index)| *index).max();
        let trees = under(&self.tree_tombstones, prefix).map(|(_, index)| *index).max();
        keys.max(trees).max(self.last_deletion_above(prefix))
    }

    /// The deletion of a tree that held this prefix. Of nested trees the inner one was deleted last.
    fn last_deletion_above(&self, prefix: &str) -> Option<ModifyIndex> {
        let mut rest = prefix;
        loop {
            let (tree, index) = self.tree_tombstones.get_prev(rest)?;
            if rest.starts_with(tree.as_ref()) {
                return Some(*index);
            }
            rest = common_prefix(rest, tree);
        }
    }

    /// Whether anything under the prefix, now or deleted, gives a list an index of its own.
    pub(crate) fn has_own_index(&self, prefix: &str) -> bool {
        !prefix.is_empty()
            && (under(&self.pairs, prefix).next().is_some()
                || under(&self.key_tombstones, prefix).next().is_some()
                || under(&self.tree_tombstones, prefix).next().is_some()
                || self.last_deletion_above(prefix).is_some())
    }

    pub(crate) fn index(&self) -> ModifyIndex {
        self.index
    }
    pub(crate) fn pairs(&self) -> impl Iterator<Item = &Arc<KvPair>> + '_ {
        self.pairs.values()
    }
    pub(crate) fn tombstones(&self) -> impl Iterator<Item = &(ModifyIndex, Grave)> + '_ {
        self.tombstones_by_age.iter()
    }

    pub(crate) fn load_index(&mut self, index: ModifyIndex) {
        self.index = index;
    }
    /// Whether the key was new.
    pub(crate) fn load_pair(&mut self, pair: Arc<KvPair>) -> bool {
        self.pairs.insert(Arc::from(pair.key.as_str()), pair).is_none()
    }
    /// Whether the tombstone was new.
    pub(crate) fn load_tombstone(&mut self, index: ModifyIndex, grave: Grave) -> bool {
        let previous = match &grave {
            Grave::Key(key) => self.key_tombstones.insert(key.clone(), index),
            Grave::Tree(prefix) => self.tree_tombstones.insert(prefix.clone(), index),
        };
        self.tombstones_by_age.insert((index, grave));
        previous.is_none()
    }

    /// The first broken invariant, in words.
    pub(crate) fn verify(&self, last_index: ModifyIndex) -> Result<(), String> {
        let fail = |what: &str, of: &str| Err(format!("{what}: {of:?}"));
        if self.index > last_index {
            return Err("the index of the key/value table is in the future".to_owned());
        }
        for (key, pair) in &self.pairs {
            if pair.key != **key || key.is_empty() {
                return fail("a key is filed under another", key);
            }
            if pair.create_index > pair.modify_index || pair.modify_index > self.index {
                return fail("the indexes of a key are out of order", key);
            }
            if pair.modify_index == ModifyIndex::ZERO {
                return fail("a key was never written", key);
            }
            if self.key_tombstones.contains_key(key.as_ref()) {
                return fail("a present key has a tombstone", key);
            }
        }
        if self.tombstones_by_age.len() != self.key_tombstones.len() + self.tree_tombstones.len() {
            return Err("tombstones by age are not the tombstones".to_owned());
        }
        for (index, grave) in &self.tombstones_by_age {
            let (filed, name) = match grave {
                Grave::Key(key) => (self.key_tombstones.get(key.as_ref()), key),
                Grave::Tree(prefix) => (self.tree_tombstones.get(prefix.as_ref()), prefix),
            };
            if filed != Some(index) {
                return fail("a tombstone has another age", name);
            }
            if *index > self.index || name.is_empty() {
                return fail("a tombstone is younger than its table", name);
            }
            // Else the index of a list under both would be the older one's.
            let mut rest: &str = name;
            while let Some((tree, above)) = self.tree_tombstones.get_prev(rest) {
                if name.starts_with(tree.as_ref()) {
                    if above > index {
                        return fail("a tombstone outlived the deletion of its tree", name);
                    }
                    let Some((last, _)) = tree.char_indices().next_back() else {
                        break;
                    };
                    rest = &name[..last];
                } else {
                    rest = common_prefix(rest, tree);
                }
            }
        }
        Ok(())
    }
}
