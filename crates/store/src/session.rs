//! Sessions, and the lock-delays that they leave behind.
//!
//! In: sessions to create and to end, with the index they apply at. Out: what ended, so that its locks are taken from it;
//! the reads of sessions.
//! Invariants: `verify` lists them.
//! Not here: the locks themselves (`kv`), time (a leader ends a session, and a lock-delay, by a command).
//!
//! A lock-delay is part of the state: an ended session leaves one for each key it held, and the key is not acquired until a
//! command of a leader that timed it ends it. Consul keeps it in its leader's memory, where a change of leader drops it.

use crate::catalog::OnNode;
use crate::command::CommandError;
use crate::query::{Answer, Topic, fold};
use crate::table::Table;
use crate::touched::Touched;
use equivalent::{Comparable, Equivalent};
use imbl::OrdSet;
use imbl::ordmap::DiffItem;
use quorate_types::limits::LOCK_DELAY_MAX;
use quorate_types::{ModifyIndex, Session, Uuid};
use serde::{Deserialize, Serialize};
use std::cmp::Ordering;
use std::sync::Arc;
use std::time::Duration;

/// A key that nobody may acquire for a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LockDelay {
    /// When the session that held it ended.
    pub since: ModifyIndex,
    pub delay: Duration,
}

/// What became of sessions and lock-delays between two states of one store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SessionChange {
    Created(Arc<Session>),
    Ended(Uuid),
    Delayed { key: Arc<str>, delay: LockDelay },
    DelayEnded { key: Arc<str> },
}

/// A session by its node's folded name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct OfNode(Arc<str>, Uuid);

/// A session by a check that it depends on.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct OfCheck(OnNode, Uuid);

impl Comparable<OfNode> for (&str, Uuid) {
    fn compare(&self, key: &OfNode) -> Ordering {
        (self.0, self.1).cmp(&(&key.0, key.1))
    }
}
impl Equivalent<OfNode> for (&str, Uuid) {
    fn equivalent(&self, key: &OfNode) -> bool {
        self.compare(key).is_eq()
    }
}
impl Comparable<OfCheck> for (&str, &str, Uuid) {
    fn compare(&self, key: &OfCheck) -> Ordering {
        (self.0, self.1, self.2).cmp(&(&key.0.node, &key.0.id, key.1))
    }
}
impl Equivalent<OfCheck> for (&str, &str, Uuid) {
    fn equivalent(&self, key: &OfCheck) -> bool {
        self.compare(key).is_eq()
    }
}

#[derive(Clone, Debug, Default)]
pub(crate) struct SessionTable {
    sessions: Table<8, Uuid, Arc<Session>>,
    by_node: OrdSet<OfNode>,
    by_check: OrdSet<OfCheck>,
    lock_delays: Table<9, Arc<str>, LockDelay>,
    /// The last session that was created or ended.
    index: ModifyIndex,
}

/// The sessions and lock-delays of one state, without the rest of it: whoever keeps this to compare holds nothing else in
/// memory.
#[derive(Clone, Debug, Default)]
pub struct SessionView(pub(crate) SessionTable);

impl SessionTable {
    /// Its node and checks are those of the catalog, and well: the caller looked.
    pub(crate) fn create(
        &mut self,
        at: ModifyIndex,
        wanted: &Session,
        node_name: &str,
        touched: &mut Touched,
    ) -> Result<(), CommandError> {
        if wanted.id.is_nil() {
            return Err(CommandError::SessionIdMissing);
        }
        if self.sessions.contains_key(&wanted.id) {
            return Err(CommandError::SessionIdTaken { id: wanted.id });
        }
        let session = Session {
            node: node_name.to_owned(),
            lock_delay: wanted.lock_delay.min(LOCK_DELAY_MAX),
            create_index: at,
            modify_index: at,
            ..wanted.clone()
        };
        self.touch(at, &session, touched);
        self.insert(Arc::new(session));
        Ok(())
    }

    fn touch(&mut self, at: ModifyIndex, session: &Session, touched: &mut Touched) {
        self.index = at;
        touched.insert(Topic::Sessions);
        touched.insert(Topic::Session(session.id));
        touched.insert(Topic::sessions_of(&session.node));
    }

    fn insert(&mut self, session: Arc<Session>) {
        let node: Arc<str> = Arc::from(fold(&session.node));
        for check in session.checks() {
            let check = OnNode {
                node: node.clone(),
                id: Arc::from(check),
            };
            self.by_check.insert(OfCheck(check, session.id));
        }
        self.by_node.insert(OfNode(node, session.id));
        self.sessions.insert(session.id, session);
    }

    /// Takes a session out; what it held is the caller's to take from it.
    pub(crate) fn end(&mut self, at: ModifyIndex, id: Uuid, touched: &mut Touched) -> Option<Arc<Session>> {
        let session = self.sessions.remove(&id)?;
        let node = fold(&session.node);
        self.by_node.remove(&(node.as_str(), id));
        for check in session.checks() {
            self.by_check.remove(&(node.as_str(), check, id));
        }
        self.touch(at, &session, touched);
        Some(session)
    }

    /// Nobody acquires this key for a while.
    pub(crate) fn delay_lock(&mut self, at: ModifyIndex, key: Arc<str>, delay: Duration, touched: &mut Touched) {
        if delay.is_zero() {
            return;
        }
        self.lock_delays.insert(key, LockDelay { since: at, delay });
        touched.insert(Topic::LockDelays);
    }

    /// Ends the lock-delay that began at this index, and none that began later.
    pub(crate) fn end_lock_delay(&mut self, key: &str, since: ModifyIndex, touched: &mut Touched) {
        if self.lock_delays.get(key).is_some_and(|delay| delay.since == since) {
            self.lock_delays.remove(key);
            touched.insert(Topic::LockDelays);
        }
    }

    pub(crate) fn is_delayed(&self, key: &str) -> bool {
        self.lock_delays.contains_key(key)
    }
    pub(crate) fn contains(&self, id: Uuid) -> bool {
        self.sessions.contains_key(&id)
    }

    pub(crate) fn get(&self, id: Uuid) -> Option<&Arc<Session>> {
        self.sessions.get(&id)
    }

    /// The sessions of a node (its folded name), by id.
    pub(crate) fn of_node<'a>(&'a self, node: &'a str) -> impl Iterator<Item = Uuid> + 'a {
        self.by_node
            .range::<_, (&str, Uuid)>((node, Uuid::NIL)..)
            .take_while(move |of| *of.0 == *node)
            .map(|of| of.1)
    }

    /// The sessions that depend on a check of a node (its folded name), by id.
    pub(crate) fn of_check<'a>(&'a self, node: &'a str, check: &'a str) -> impl Iterator<Item = Uuid> + 'a {
        self.by_check
            .range::<_, (&str, &str, Uuid)>((node, check, Uuid::NIL)..)
            .take_while(move |of| *of.0.node == *node && *of.0.id == *check)
            .map(|of| of.1)
    }

    pub(crate) fn read(&self, id: Uuid) -> (ModifyIndex, Answer) {
        let session = self.sessions.get(&id).cloned();
        (self.index, Answer::Sessions(session.into_iter().collect()))
    }
    pub(crate) fn read_all(&self) -> (ModifyIndex, Answer) {
        (self.index, Answer::Sessions(self.sessions.values().cloned().collect()))
    }
    pub(crate) fn read_of_node(&self, node: &str) -> (ModifyIndex, Answer) {
        let folded = fold(node);
        let sessions = self.of_node(&folded).map(|id| self.sessions[&id].clone());
        (self.index, Answer::Sessions(sessions.collect()))
    }

    pub(crate) fn changes_since(&self, before: &Self) -> Vec<SessionChange> {
        let mut changes = Vec::new();
        for change in before.sessions.diff(&self.sessions) {
            match change {
                DiffItem::Add(_, session) => changes.push(SessionChange::Created(session.clone())),
                DiffItem::Remove(id, _) => changes.push(SessionChange::Ended(*id)),
                DiffItem::Update { new: (id, session), .. } => {
                    changes.extend([SessionChange::Ended(*id), SessionChange::Created(session.clone())]);
                }
            }
        }
        for change in before.lock_delays.diff(&self.lock_delays) {
            changes.push(match change {
                DiffItem::Add(key, delay) | DiffItem::Update { new: (key, delay), .. } => SessionChange::Delayed {
                    key: key.clone(),
                    delay: *delay,
                },
                DiffItem::Remove(key, _) => SessionChange::DelayEnded { key: key.clone() },
            });
        }
        changes
    }

    pub(crate) fn index(&self) -> ModifyIndex {
        self.index
    }
    pub(crate) fn sessions(&self) -> impl Iterator<Item = &Arc<Session>> + '_ {
        self.sessions.values()
    }
    pub(crate) fn lock_delays(&self) -> impl Iterator<Item = (&Arc<str>, &LockDelay)> + '_ {
        self.lock_delays.iter()
    }

    pub(crate) fn load_index(&mut self, index: ModifyIndex) {
        self.index = index;
    }
    /// Whether it was new.
    pub(crate) fn load(&mut self, session: Arc<Session>) -> bool {
        let is_new = !self.sessions.contains_key(&session.id);
        if is_new {
            self.insert(session);
        }
        is_new
    }
    /// Whether it was new.
    pub(crate) fn load_lock_delay(&mut self, key: &str, delay: LockDelay) -> bool {
        self.lock_delays.insert(Arc::from(key), delay).is_none()
    }

    pub(crate) fn hash(&self) -> u128 {
        self.sessions.hash().wrapping_add(self.lock_delays.hash())
    }
    pub(crate) fn recomputed_hash(&self) -> u128 {
        let sessions = self.sessions.recomputed_hash();
        sessions.wrapping_add(self.lock_delays.recomputed_hash())
    }

    /// The first broken invariant, in words.
    pub(crate) fn verify(&self, last_index: ModifyIndex) -> Result<(), String> {
        if self.index > last_index {
            return Err("the index of sessions is in the future".to_owned());
        }
        let mut check_count = 0;
        for (id, session) in &self.sessions {
            let fail = |what: &str| Err(format!("{what}: {id}"));
            if session.id != *id || id.is_nil() {
                return fail("a session is filed under another id");
            }
            if session.create_index != session.modify_index
                || session.create_index == ModifyIndex::ZERO
                || session.create_index > self.index
            {
                return fail("the indexes of a session are out of order");
            }
            if session.lock_delay > LOCK_DELAY_MAX {
                return fail("the lock-delay of a session is too long");
            }
            let node = fold(&session.node);
            if !self.by_node.contains(&(node.as_str(), *id)) {
                return fail("a session is not filed under its node");
            }
            let mut checks: Vec<&str> = session.checks().collect();
            checks.sort_unstable();
            checks.dedup();
            check_count += checks.len();
            let is_filed = |check: &&str| self.by_check.contains(&(node.as_str(), *check, *id));
            if !checks.iter().all(is_filed) {
                return fail("a session is not filed under its checks");
            }
        }
        if self.by_node.len() != self.sessions.len() || self.by_check.len() != check_count {
            return Err("a session is filed twice".to_owned());
        }
        for (key, delay) in &self.lock_delays {
            let is_sound = !key.is_empty()
                && !delay.delay.is_zero()
                && delay.delay <= LOCK_DELAY_MAX
                && delay.since > ModifyIndex::ZERO
                && delay.since <= self.index;
            if !is_sound {
                return Err(format!("a lock-delay is out of order: {key:?}"));
            }
        }
        Ok(())
    }
}
