//! Locks and semaphores as Consul's own client keeps them, so that holders of both kinds of client respect each other.
//!
//! A lock is the key `PREFIX/.lock`, acquired by a session of its own. A semaphore (a limit above 1) is a contender key
//! `PREFIX/SESSION` for everybody who wants a slot, and `PREFIX/.lock` with the list of holders, changed by CAS; who is
//! listed but has no contender key is gone. Flags tell the two apart (the `api` package of Consul 1.8.7).
//!
//! In: calls. Out: requests to the agent, and [`Lock::lost`], which ends once the lock may be another's.
//! Promises: a session is renewed for as long as the lock is wanted and destroyed when it is given up; [`Lock::lost`] ends
//! before the session can expire, whatever became of the agent.
//! Not here: what is done while it is held (`bins`); fencing (use the `ModifyIndex` of the key's acquisition).

use crate::calls::{KvPutOptions, ReadOptions};
use crate::{Client, ClientError, KvEntry};
use futures::FutureExt as _;
use futures::future::{Either, Shared, select};
use http::StatusCode;
use quorate_rt::task::AbortOnDrop;
use quorate_rt::{Elapsed, Rt};
use quorate_types::Instant;
use serde::{Deserialize, Deserializer, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::pin::pin;
use std::time::Duration;
use thiserror::Error;
use tokio::sync::oneshot;

/// Flags of a lock's key.
pub const LOCK_FLAGS: u64 = 0x2ddc_cbc0_58a5_0c18;
/// Flags of a semaphore's keys.
pub const SEMAPHORE_FLAGS: u64 = 0xe0f6_9a2b_aa41_4de0;
/// The key below the prefix that decides who holds.
pub const LOCK_NAME: &str = ".lock";
/// Time to live of the session. Servers let a session live twice as long after its last renewal.
pub const SESSION_TTL: Duration = Duration::from_secs(15);
/// One blocking read of the lock takes at most this long, and so does noticing a silent agent, plus [`GRACE`].
const WAIT: Duration = Duration::from_secs(15);
/// What an answer may take beyond its wait: the jitter of waits, an election.
const GRACE: Duration = Duration::from_secs(10);
/// A lock that nobody holds and nobody gets is in its lock-delay: it is tried again after this time.
const RETRY_INTERVAL: Duration = Duration::from_secs(5);
/// Between attempts to see the lock, or to renew the session, after an error.
const ERROR_INTERVAL: Duration = Duration::from_secs(1);
/// A renewal takes no longer, so that there is time for more.
const RENEWAL_TIMEOUT: Duration = Duration::from_secs(5);
/// Giving the session back is a courtesy: without it others wait until it expires.
const DESTROY_TIMEOUT: Duration = Duration::from_secs(5);

/// What to lock, and how patiently.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LockOptions {
    /// Name of the session, for those who look.
    pub session_name: String,
    /// How many may hold at a time; 1 makes a lock, more a semaphore.
    pub limit: u32,
    /// Give up when it was not acquired within this time. `None`: wait for ever.
    pub wait: Option<Duration>,
    /// Errors in a row that are borne while the lock is held, a second apart, before it counts as lost.
    pub monitor_retry_count: u32,
}

/// Why a lock was not acquired, released or removed. The texts are Consul's.
#[derive(Debug, Error)]
pub enum LockError {
    #[error("failed to create session: {0}")]
    CreateSession(#[source] ClientError),
    #[error("failed to read {what}: {source}")]
    Read { what: &'static str, source: ClientError },
    #[error("failed to acquire lock: {0}")]
    Acquire(#[source] ClientError),
    #[error("failed to make contender entry: {0}")]
    Contend(#[source] ClientError),
    #[error("failed to make contender entry")]
    NoContender,
    #[error("failed to update lock: {0}")]
    Update(#[source] ClientError),
    #[error("failed to release lock: {0}")]
    Release(#[source] ClientError),
    #[error("failed to remove {what}: {source}")]
    Remove { what: &'static str, source: ClientError },
    /// The key is there for another purpose.
    #[error("Existing key does not match {0} use")]
    Conflict(&'static str),
    #[error("semaphore limit conflict (lock: {theirs}, local: {ours})")]
    Limit { theirs: u32, ours: u32 },
    #[error("lock decoding failed: {0}")]
    Malformed(#[from] serde_json::Error),
    /// The agent took the request and did not answer in time.
    #[error("the agent does not answer")]
    Silent,
}

/// What became of the lock's key once it was released.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CleanUp {
    Removed,
    /// Somebody else holds it, or was about to.
    InUse,
}

/// The list of a semaphore's holders.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Slots {
    limit: u32,
    #[serde(default, deserialize_with = "or_none")]
    holders: BTreeMap<String, bool>,
}

fn or_none<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<String, bool>, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// A path as Go's `path.Join` cleans it, which Consul's client builds keys with.
fn clean(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." if parts.last().is_some_and(|last| *last != "..") => {
                parts.pop();
            }
            // A key has no parent above its beginning, but Go keeps the dots there.
            part => parts.push(part),
        }
    }
    parts.join("/")
}

/// A lock, or one slot of a semaphore.
#[derive(Debug)]
pub struct Lock<R> {
    rt: R,
    client: Client<R>,
    /// Without a slash at its end; empty: the root.
    prefix: String,
    options: LockOptions,
    session: Option<Session>,
}

#[derive(Debug)]
struct Session {
    id: String,
    /// Stops the renewals with the session.
    _renewals: AbortOnDrop,
    /// Told, or closed, when the session may have expired.
    expired: Shared<oneshot::Receiver<()>>,
}

enum Turn {
    Held,
    /// Somebody else holds it: wait for a change beyond this index.
    WaitFor(u64),
    /// Nobody holds it, but it cannot be had yet.
    Delayed,
    /// Somebody was faster: look again.
    Again,
}

impl<R: Rt> Lock<R> {
    pub fn new(rt: R, client: Client<R>, prefix: &str, options: LockOptions) -> Self {
        assert!(options.limit > 0, "a lock is held by one at least");
        Self {
            rt,
            client,
            prefix: clean(prefix),
            options,
            session: None,
        }
    }

    /// The key that decides who holds.
    pub fn key(&self) -> String {
        self.below(LOCK_NAME)
    }
    fn below(&self, name: &str) -> String {
        clean(&format!("{}/{name}", self.prefix))
    }
    const fn is_semaphore(&self) -> bool {
        self.options.limit > 1
    }
    const fn purpose(&self) -> &'static str {
        if self.is_semaphore() { "semaphore" } else { "lock" }
    }

    /// Waits until the lock is held: `true`. `false`: `stop` ended, or the time to wait did, and nothing is held.
    /// Whatever the outcome but `true`, the session is given back.
    pub async fn acquire(&mut self, stop: impl Future<Output = ()> + Send) -> Result<bool, LockError> {
        let outcome = self.try_acquire(stop).await;
        match outcome {
            Ok(true) => {}
            // The last attempt may have succeeded unheard: a release leaves no lock-delay behind, the session's end would.
            Ok(false) => {
                if let Err(error) = self.release().await {
                    tracing::debug!(%error, "what was given up is left to the session's end");
                }
            }
            Err(_) => self.give_session_back().await,
        }
        outcome
    }

    async fn try_acquire(&mut self, stop: impl Future<Output = ()> + Send) -> Result<bool, LockError> {
        let mut stop = pin!(stop);
        let session = self.open_session().await?;
        if self.is_semaphore() {
            let options = KvPutOptions {
                flags: SEMAPHORE_FLAGS,
                acquire: Some(session.clone()),
                ..KvPutOptions::default()
            };
            let contender = self.below(&session);
            let made = self.client.kv_put(&contender, "", &options);
            if !self.in_time(GRACE, made).await?.map_err(LockError::Contend)? {
                return Err(LockError::NoContender);
            }
        }
        let until = self.options.wait.map(|wait| self.rt.now() + wait);
        let mut index = 0;
        let mut is_first = true;
        loop {
            let left = until.map(|until| until - self.rt.now());
            // As Consul's, a first look is always taken.
            if left.is_some_and(|left| left.is_zero()) && !is_first {
                return Ok(false);
            }
            is_first = false;
            let wait = left.map_or(WAIT, |left| left.min(WAIT));
            let turn = pin!(self.turn(&session, index, wait));
            let turn = match select(&mut stop, turn).await {
                Either::Left(((), _)) => return Ok(false),
                Either::Right((turn, _)) => turn?,
            };
            match turn {
                Turn::Held => return Ok(true),
                Turn::WaitFor(seen) => index = seen,
                Turn::Again => index = 0,
                Turn::Delayed => {
                    index = 0;
                    let pause = left.map_or(RETRY_INTERVAL, |left| left.min(RETRY_INTERVAL));
                    let pause = pin!(self.rt.sleep(pause));
                    if let Either::Left(((), _)) = select(&mut stop, pause).await {
                        return Ok(false);
                    }
                }
            }
        }
    }

    /// One look at the lock, and one attempt to get it when it is free.
    async fn turn(&self, session: &str, index: u64, wait: Duration) -> Result<Turn, LockError> {
        let read = ReadOptions {
            index,
            wait: Some(wait),
            is_consistent: false,
        };
        if self.is_semaphore() {
            self.turn_of_semaphore(session, &read, wait).await
        } else {
            self.turn_of_lock(session, &read, wait).await
        }
    }

    async fn turn_of_lock(&self, session: &str, read: &ReadOptions, wait: Duration) -> Result<Turn, LockError> {
        let key = self.key();
        let failed = |source| LockError::Read { what: "lock", source };
        let look = self.client.kv_read(&key, read);
        let (entry, index) = self.in_time(wait + GRACE, look).await?.map_err(failed)?;
        if let Some(entry) = &entry {
            if entry.flags != LOCK_FLAGS {
                return Err(LockError::Conflict("lock"));
            }
            if entry.session == session {
                return Ok(Turn::Held);
            }
            if !entry.session.is_empty() {
                return Ok(Turn::WaitFor(index));
            }
        }
        let options = KvPutOptions {
            flags: LOCK_FLAGS,
            acquire: Some(session.to_owned()),
            ..KvPutOptions::default()
        };
        let put = self.client.kv_put(&key, "", &options);
        if self.in_time(GRACE, put).await?.map_err(LockError::Acquire)? {
            return Ok(Turn::Held);
        }
        // Either somebody was faster, and then there is a change to wait for; or it is in its lock-delay, whose end changes nothing.
        let now = ReadOptions::default();
        let look = self.client.kv_read(&key, &now);
        let (entry, index) = self.in_time(GRACE, look).await?.map_err(failed)?;
        Ok(match entry {
            Some(entry) if !entry.session.is_empty() => Turn::WaitFor(index),
            _ => Turn::Delayed,
        })
    }

    async fn turn_of_semaphore(&self, session: &str, read: &ReadOptions, wait: Duration) -> Result<Turn, LockError> {
        let (entries, index) = self.read_all(read, wait).await?;
        let (mut slots, modify_index) = self.slots(&entries)?;
        if slots.limit != self.options.limit {
            return Err(LockError::Limit {
                theirs: slots.limit,
                ours: self.options.limit,
            });
        }
        if slots.holders.contains_key(session) {
            return Ok(Turn::Held);
        }
        if slots.holders.len() >= slots.limit as usize {
            return Ok(Turn::WaitFor(index));
        }
        slots.holders.insert(session.to_owned(), true);
        Ok(if self.swap(&slots, modify_index).await? {
            Turn::Held
        } else {
            Turn::Again
        })
    }

    async fn read_all(&self, read: &ReadOptions, wait: Duration) -> Result<(Vec<KvEntry>, u64), LockError> {
        let prefix = format!("{}/", self.prefix);
        let failed = |source| LockError::Read { what: "prefix", source };
        let look = self.client.kv_read_all(prefix.trim_start_matches('/'), read);
        self.in_time(wait + GRACE, look).await?.map_err(failed)
    }

    /// The holders that live, and the index their list was written at (0: there is none).
    fn slots(&self, entries: &[KvEntry]) -> Result<(Slots, u64), LockError> {
        let key = self.key();
        let fresh = Slots {
            limit: self.options.limit,
            holders: BTreeMap::new(),
        };
        let Some(entry) = entries.iter().find(|entry| entry.key == key) else {
            return Ok((fresh, 0));
        };
        if entry.flags != SEMAPHORE_FLAGS {
            return Err(LockError::Conflict("semaphore"));
        }
        let mut slots: Slots = match entry.value.as_slice() {
            [] => fresh,
            value => serde_json::from_slice(value)?,
        };
        let contenders: BTreeSet<&str> = entries.iter().map(|entry| entry.session.as_str()).collect();
        slots.holders.retain(|holder, _| contenders.contains(holder.as_str()));
        Ok((slots, entry.modify_index))
    }

    async fn swap(&self, slots: &Slots, modify_index: u64) -> Result<bool, LockError> {
        let options = KvPutOptions {
            flags: SEMAPHORE_FLAGS,
            cas: Some(modify_index),
            ..KvPutOptions::default()
        };
        let key = self.key();
        let put = self.client.kv_put(&key, serde_json::to_vec(slots)?, &options);
        self.in_time(GRACE, put).await?.map_err(LockError::Update)
    }

    /// Ends once the lock may be another's: its key says so, the agent gave too many errors in a row, or the session was
    /// not renewed for as long as it can live. Call it while the lock is held.
    pub async fn lost(&self) {
        let Some(session) = &self.session else { return };
        let watched = pin!(self.watch(&session.id));
        select(watched, session.expired.clone()).await;
    }

    async fn watch(&self, session: &str) {
        let mut read = ReadOptions {
            index: 0,
            wait: Some(WAIT),
            is_consistent: true,
        };
        let mut errors = 0;
        loop {
            match self.is_held(session, &read).await {
                Ok((true, index)) => {
                    (read.index, errors) = (index, 0);
                }
                Ok((false, _)) => return,
                Err(error) if errors < self.options.monitor_retry_count && may_pass(&error) => {
                    tracing::debug!(%error, "look at the lock again");
                    errors += 1;
                    // At once, so that the first answer says that all is well again.
                    read.index = 0;
                    self.rt.sleep(ERROR_INTERVAL).await;
                }
                Err(error) => {
                    tracing::debug!(%error, "the lock cannot be seen");
                    return;
                }
            }
        }
    }

    async fn is_held(&self, session: &str, read: &ReadOptions) -> Result<(bool, u64), LockError> {
        if self.is_semaphore() {
            let (entries, index) = self.read_all(read, WAIT).await?;
            let (slots, _) = self.slots(&entries)?;
            return Ok((slots.holders.contains_key(session), index));
        }
        let failed = |source| LockError::Read { what: "lock", source };
        let key = self.key();
        let look = self.client.kv_read(&key, read);
        let (entry, index) = self.in_time(WAIT + GRACE, look).await?.map_err(failed)?;
        Ok((entry.is_some_and(|entry| entry.session == session), index))
    }

    /// Gives up the lock, and the session with it.
    pub async fn release(&mut self) -> Result<(), LockError> {
        let Some(session) = self.session.as_ref().map(|session| session.id.clone()) else {
            return Ok(());
        };
        let outcome = if self.is_semaphore() {
            self.release_slot(&session).await
        } else {
            let options = KvPutOptions {
                flags: LOCK_FLAGS,
                release: Some(session),
                ..KvPutOptions::default()
            };
            // `false`: it was lost already, which is as well.
            let key = self.key();
            let put = self.client.kv_put(&key, "", &options);
            self.in_time(GRACE, put)
                .await
                .and_then(|released| released.map(drop).map_err(LockError::Release))
        };
        self.give_session_back().await;
        outcome
    }

    async fn release_slot(&self, session: &str) -> Result<(), LockError> {
        loop {
            let (entries, _) = self.read_all(&ReadOptions::default(), Duration::ZERO).await?;
            let (mut slots, modify_index) = self.slots(&entries)?;
            if slots.holders.remove(session).is_none() || self.swap(&slots, modify_index).await? {
                break;
            }
        }
        let contender = self.below(session);
        let delete = self.client.kv_delete(&contender, None);
        self.in_time(GRACE, delete).await?.map(drop).map_err(LockError::Release)
    }

    /// Removes the lock's key when nobody holds it.
    pub async fn clean_up(&self) -> Result<CleanUp, LockError> {
        let now = ReadOptions::default();
        let (is_held, modify_index) = if self.is_semaphore() {
            let (entries, _) = self.read_all(&now, Duration::ZERO).await?;
            let (slots, modify_index) = self.slots(&entries)?;
            (!slots.holders.is_empty(), modify_index)
        } else {
            let failed = |source| LockError::Read { what: "lock", source };
            let key = self.key();
            let look = self.client.kv_read(&key, &now);
            let (entry, _) = self.in_time(GRACE, look).await?.map_err(failed)?;
            match entry {
                None => (false, 0),
                Some(entry) if entry.flags != LOCK_FLAGS => return Err(LockError::Conflict("lock")),
                Some(entry) => (!entry.session.is_empty(), entry.modify_index),
            }
        };
        if is_held {
            return Ok(CleanUp::InUse);
        }
        if modify_index == 0 {
            return Ok(CleanUp::Removed);
        }
        let what = self.purpose();
        let key = self.key();
        let delete = self.client.kv_delete(&key, Some(modify_index));
        let removed = self.in_time(GRACE, delete).await?;
        Ok(if removed.map_err(|source| LockError::Remove { what, source })? {
            CleanUp::Removed
        } else {
            CleanUp::InUse
        })
    }

    async fn in_time<T: Send>(&self, time: Duration, call: impl Future<Output = T> + Send) -> Result<T, LockError> {
        self.rt.timeout(time, call).await.map_err(|Elapsed| LockError::Silent)
    }

    /// A session for this lock, renewed from now on.
    async fn open_session(&mut self) -> Result<String, LockError> {
        let behavior = if self.is_semaphore() { "delete" } else { "" };
        let asked_at = self.rt.now();
        let create = self
            .client
            .create_session(&self.options.session_name, SESSION_TTL, behavior);
        let id = self.in_time(GRACE, create).await?.map_err(LockError::CreateSession)?;
        let (expired_tx, expired) = oneshot::channel();
        let renewals = renew(self.rt.clone(), self.client.clone(), id.clone(), asked_at);
        let renewals = self.rt.spawn("session-renewals", async move {
            renewals.await;
            // Nobody listens before the lock is held.
            let _ = expired_tx.send(());
        });
        self.session = Some(Session {
            id: id.clone(),
            _renewals: renewals.abort_on_drop(),
            expired: expired.shared(),
        });
        Ok(id)
    }

    async fn give_session_back(&mut self) {
        let Some(session) = self.session.take() else { return };
        let destroy = self.client.destroy_session(&session.id);
        if let Ok(Ok(())) = self.rt.timeout(DESTROY_TIMEOUT, destroy).await {
            return;
        }
        tracing::debug!(session = session.id, "the session is left to expire");
    }
}

/// Errors after which the agent may answer again: it could not be reached, was silent, or had no leader.
fn may_pass(error: &LockError) -> bool {
    let (LockError::Read { source, .. } | LockError::Update(source)) = error else {
        return matches!(error, LockError::Silent);
    };
    match source {
        ClientError::Unreached { .. } => true,
        ClientError::Status { status, .. } | ClientError::BareStatus { status } => {
            *status == StatusCode::INTERNAL_SERVER_ERROR
        }
        _ => false,
    }
}

/// Renews until the session is known to be gone, or was not renewed for as long as it can live. Its life is counted from
/// when a renewal was asked for: the server counts from later.
async fn renew<R: Rt>(rt: R, client: Client<R>, session: String, asked_at: Instant) {
    let mut renewed_at = asked_at;
    let mut pause = SESSION_TTL / 2;
    loop {
        let until = renewed_at + 2 * SESSION_TTL;
        rt.sleep(pause.min(until - rt.now())).await;
        let asked_at = rt.now();
        if asked_at >= until {
            tracing::debug!(session, "the session was not renewed in time");
            return;
        }
        match rt.timeout(RENEWAL_TIMEOUT, client.renew_session(&session)).await {
            Ok(Ok(true)) => {
                renewed_at = asked_at;
                pause = SESSION_TTL / 2;
            }
            Ok(Ok(false)) => return,
            Ok(Err(_)) | Err(Elapsed) => pause = ERROR_INTERVAL,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_joined_as_go_joins_them() {
        for (path, cleaned) in [
            ("", ""),
            ("/", ""),
            ("a", "a"),
            ("/a//b/./c/", "a/b/c"),
            ("a/../b", "b"),
            ("../a", "../a"),
            ("a/b/../../c", "c"),
        ] {
            assert_eq!(clean(path), cleaned, "{path}");
        }
    }

    #[test]
    fn the_list_of_holders_reads_and_writes_as_consuls() {
        let text = r#"{"Limit":2,"Holders":{"a":true,"b":true}}"#;
        let slots: Slots = serde_json::from_str(text).unwrap();
        assert_eq!((slots.limit, slots.holders.len()), (2, 2));
        assert_eq!(serde_json::to_string(&slots).unwrap(), text);
        let none: Slots = serde_json::from_str(r#"{"Limit":2,"Holders":null}"#).unwrap();
        assert!(none.holders.is_empty());
    }

    #[test]
    fn the_flags_are_the_ones_other_clients_look_for() {
        assert_eq!(LOCK_FLAGS, 3_304_740_253_564_472_344);
        assert_eq!(SEMAPHORE_FLAGS, 16_210_313_421_097_356_768);
    }
}
