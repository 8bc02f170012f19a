//! The key/value table and its tombstones.
//!
//! In: `KvCommand`s with the index they apply at. Out: outcomes and touched topics; the reads of one key and of a prefix
//! with the index that the contract gives each.
//! Invariants: `check_index` lists them. The index of a list never goes back, but for collected tombstones.
//! Not here: which sessions there are, and which keys may not be acquired for a while (`session`).
//!
//! A tombstone keeps the index of a deletion, so that the index of a list rises when a key leaves it. A key has one while
//! it is absent; a deleted tree has one for its prefix, which replaces those beneath it. Deleting every key leaves
//! none: lists under which nothing ever was report the index of the whole table, which that deletion raised.

use crate::command::{CommandError, KvCommand, Outcome};
use crate::query::{Answer, Topic};
use crate::table::Table;
use crate::touched::Touched;
use imbl::{OrdMap, OrdSet};
use quorate_types::{KvPair, ModifyIndex, Session, SessionBehavior, Uuid};
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
    pairs: Table<4, Arc<str>, Arc<KvPair>>,
    /// Locked keys by the session that holds them.
    held: OrdSet<(Uuid, Arc<str>)>,
    key_tombstones: Table<5, Arc<str>, ModifyIndex>,
    tree_tombstones: Table<6, Arc<str>, ModifyIndex>,
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
    /// A session that acquires exists, and the key may be acquired: the caller looked.
    pub(crate) fn apply(&mut self, at: ModifyIndex, command: &KvCommand, touched: &mut Touched) -> Outcome {
        match command {
            KvCommand::Set(KvPair { key, .. })
            | KvCommand::Cas {
                pair: KvPair { key, .. },
                ..
            }
            | KvCommand::Acquire {
                pair: KvPair { key, .. },
                ..
            }
            | KvCommand::Release {
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
            KvCommand::Cas { pair, expected } => Outcome::Decided(self.cas(at, pair, *expected, touched)),
            KvCommand::Acquire { pair, session } => Outcome::Decided(self.acquire(at, pair, *session, touched)),
            KvCommand::Release { pair, session } => Outcome::Decided(self.release(at, pair, *session, touched)),
            KvCommand::Delete { key } => {
                self.delete(at, key, touched);
                Outcome::Done
            }
            KvCommand::DeleteCas { key, expected } => Outcome::Decided(self.delete_cas(at, key, *expected, touched)),
            KvCommand::DeleteTree { prefix } => {
                self.delete_tree(at, prefix, touched);
                Outcome::Done
            }
        }
    }

    /// Consul 1.8.7: a plain write keeps the lock's holder but forgets its count.
    pub(crate) fn set(&mut self, at: ModifyIndex, wanted: &KvPair, touched: &mut Touched) {
        let session = self.pair(&wanted.key).and_then(|pair| pair.session);
        self.put(at, wanted, session, 0, touched);
    }

    pub(crate) fn cas(
        &mut self,
        at: ModifyIndex,
        wanted: &KvPair,
        expected: ModifyIndex,
        touched: &mut Touched,
    ) -> bool {
        let current = self.pair(&wanted.key).map(|pair| pair.modify_index);
        let held = match current {
            None => expected == ModifyIndex::ZERO,
            Some(current) => expected == current && current != ModifyIndex::ZERO,
        };
        if held {
            self.set(at, wanted, touched);
        }
        held
    }

    /// Whether the session holds the key now. Its own lock it takes again with new contents, which counts no acquisition.
    pub(crate) fn acquire(&mut self, at: ModifyIndex, wanted: &KvPair, session: Uuid, touched: &mut Touched) -> bool {
        let lock_index = match self.pair(&wanted.key) {
            None => 1,
            Some(pair) => match pair.session {
                None => pair.lock_index + 1,
                Some(holder) if holder == session => pair.lock_index,
                Some(_) => return false,
            },
        };
        self.put(at, wanted, Some(session), lock_index, touched);
        true
    }

    /// Whether the session held the key.
    pub(crate) fn release(&mut self, at: ModifyIndex, wanted: &KvPair, session: Uuid, touched: &mut Touched) -> bool {
        let Some(pair) = self.pair(&wanted.key).filter(|pair| pair.session == Some(session)) else {
            return false;
        };
        let lock_index = pair.lock_index;
        self.put(at, wanted, None, lock_index, touched);
        true
    }

    /// Whether the key is gone now.
    pub(crate) fn delete_cas(
        &mut self,
        at: ModifyIndex,
        key: &str,
        expected: ModifyIndex,
        touched: &mut Touched,
    ) -> bool {
        let Some(pair) = self.pair(key) else {
            return true;
        };
        let held = pair.modify_index == expected;
        if held {
            self.delete(at, key, touched);
        }
        held
    }

    /// Takes from an ended session what it held: the keys.
    pub(crate) fn take_from(&mut self, at: ModifyIndex, session: &Session, touched: &mut Touched) -> Vec<Arc<str>> {
        let held: Vec<Arc<str>> = self.held_by(session.id).cloned().collect();
        for key in &held {
            match session.behavior {
                SessionBehavior::Delete => self.delete(at, key, touched),
                SessionBehavior::Release => {
                    let pair = self.pairs[key].clone();
                    self.put(at, &pair, None, pair.lock_index, touched);
                }
            }
        }
        held
    }

    fn held_by(&self, session: Uuid) -> impl Iterator<Item = &Arc<str>> + '_ {
        let first: Arc<str> = Arc::from("");
        self.held
            .range((session, first)..)
            .take_while(move |(holder, _)| *holder == session)
            .map(|(_, key)| key)
    }

    /// Writes a pair under its key; value, flags, holder and count as given.
    fn put(&mut self, at: ModifyIndex, wanted: &KvPair, session: Option<Uuid>, lock_index: u64, touched: &mut Touched) {
        let mut pair = KvPair {
            session,
            lock_index,
            create_index: at,
            modify_index: at,
            ..wanted.clone()
        };
        let existing = self.pairs.get_key_value(wanted.key.as_str());
        if let Some((_, existing)) = existing {
            pair.create_index = existing.create_index;
            // A write that changes nothing moves no index, and so wakes nobody.
            pair.modify_index = existing.modify_index;
            if pair == **existing {
                return;
            }
            pair.modify_index = at;
        }
        let key: Arc<str> = existing.map_or_else(|| Arc::from(wanted.key.as_str()), |(key, _)| key.clone());
        let holder = existing.and_then(|(_, existing)| existing.session);
        if holder != session {
            self.held.extend(session.map(|session| (session, key.clone())));
            if let Some(holder) = holder {
                self.held.remove(&(holder, key.clone()));
            }
        }
        self.forget_key_tombstone(&key);
        self.pairs.insert(key, Arc::new(pair));
        self.index = at;
        touched.insert(Topic::Key(wanted.key.clone()));
    }

    /// Takes a pair out, and its lock with it.
    fn remove_pair(&mut self, key: &str) -> Option<Arc<str>> {
        let (key, pair) = self.pairs.remove_with_key(key)?;
        if let Some(holder) = pair.session {
            self.held.remove(&(holder, key.clone()));
        }
        Some(key)
    }

    pub(crate) fn delete(&mut self, at: ModifyIndex, key: &str, touched: &mut Touched) {
        let Some(key) = self.remove_pair(key) else {
            return;
        };
        touched.insert(Topic::Key(key.to_string()));
        self.key_tombstones.insert(key.clone(), at);
        self.tombstones_by_age.insert((at, Grave::Key(key)));
        self.index = at;
    }

    pub(crate) fn delete_tree(&mut self, at: ModifyIndex, prefix: &str, touched: &mut Touched) {
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
            self.remove_pair(key);
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

    pub(crate) fn pair(&self, key: &str) -> Option<&Arc<KvPair>> {
        self.pairs.get(key)
    }
    /// Every pair under a prefix, in byte order.
    pub(crate) fn tree<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = &'a Arc<KvPair>> {
        under(&self.pairs, prefix).map(|(_, pair)| pair)
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
    /// The sessions that hold a key, once for each.
    pub(crate) fn holders(&self) -> impl Iterator<Item = &(Uuid, Arc<str>)> + '_ {
        self.held.iter()
    }
    /// Whether the key was new.
    pub(crate) fn load_pair(&mut self, pair: Arc<KvPair>) -> bool {
        let key: Arc<str> = Arc::from(pair.key.as_str());
        self.held.extend(pair.session.map(|session| (session, key.clone())));
        self.pairs.insert(key, pair).is_none()
    }
    pub(crate) fn hash(&self) -> u128 {
        let tombstones = self.key_tombstones.hash().wrapping_add(self.tree_tombstones.hash());
        self.pairs.hash().wrapping_add(tombstones)
    }
    pub(crate) fn recomputed_hash(&self) -> u128 {
        let tombstones = self.key_tombstones.recomputed_hash();
        let tombstones = tombstones.wrapping_add(self.tree_tombstones.recomputed_hash());
        self.pairs.recomputed_hash().wrapping_add(tombstones)
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
        let mut held_count = 0;
        for (key, pair) in &self.pairs {
            if let Some(session) = pair.session {
                held_count += 1;
                if !self.held.contains(&(session, key.clone())) {
                    return fail("a locked key is not filed under its holder", key);
                }
            }
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
        if held_count != self.held.len() {
            return Err("a session holds a key that is not locked by it".to_owned());
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
