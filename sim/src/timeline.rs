//! The world's agenda: what happens when, in one order for one seed.
//!
//! madsim gives virtual time and runs tasks; its own timers cannot be cancelled and its sleeps last a millisecond at least.
//! So all timers and all deliveries are entries of one ordered queue here, worked off by one task (the driver), and madsim
//! only knows the earliest.
//! Invariants: entries fall due in order of time, then of scheduling; a cancelled entry leaves nothing behind.

use crate::digest::Digest;
use crate::net::Arrival;
use madsim::time::TimeHandle;
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future as _;
use std::pin::pin;
use std::task::{Context, Waker};
use std::time::Duration;

/// What falls due.
#[derive(Debug)]
pub(crate) enum Event {
    Wake(Waker),
    Net(Arrival),
    /// Memory that madsim keeps for finished tasks is given back.
    Tidy,
}

/// Names an entry, for its cancellation.
pub(crate) type EntryKey = (u64, u64);

pub(crate) struct Timeline {
    time: TimeHandle,
    entries: BTreeMap<EntryKey, Event>,
    entries_made: u64,
    /// Times at which madsim will wake the driver.
    armed: BTreeSet<u64>,
    driver: Option<Waker>,
    /// To be woken once the world's lock is free.
    woken: Vec<Waker>,
    digest: Digest,
    names: Vec<String>,
    traced: BTreeSet<usize>,
    /// Every event goes to standard output, for the comparison with another run.
    is_told: bool,
}

impl Timeline {
    pub fn new(time: TimeHandle) -> Self {
        Self {
            time,
            entries: BTreeMap::new(),
            entries_made: 0,
            armed: BTreeSet::new(),
            driver: None,
            woken: Vec::new(),
            digest: Digest::default(),
            names: Vec::new(),
            traced: BTreeSet::new(),
            is_told: false,
        }
    }
    /// Nanoseconds since the world's start.
    pub fn now(&self) -> u64 {
        u64::try_from(self.time.elapsed().as_nanos()).expect("a world ends before 584 years")
    }
    pub fn schedule(&mut self, at: u64, event: Event) -> EntryKey {
        let key = (at, self.entries_made);
        self.entries_made += 1;
        self.entries.insert(key, event);
        self.arm();
        key
    }
    pub fn schedule_in(&mut self, delay: Duration, event: Event) -> EntryKey {
        let delay = u64::try_from(delay.as_nanos()).unwrap_or(u64::MAX);
        self.schedule(self.now().saturating_add(delay), event)
    }
    pub fn cancel(&mut self, key: EntryKey) {
        self.entries.remove(&key);
    }
    /// A pending wake gets a new waker: the sleeper moved to another task.
    pub fn set_waker(&mut self, key: EntryKey, waker: &Waker) {
        if let Some(Event::Wake(kept)) = self.entries.get_mut(&key) {
            kept.clone_from(waker);
        }
    }
    pub fn pop_due(&mut self) -> Option<Event> {
        let now = self.now();
        let entry = self.entries.first_entry()?;
        (entry.key().0 <= now).then(|| entry.remove())
    }
    /// The driver has done what was due and waits for the next.
    pub fn rest(&mut self, driver: &Waker) {
        self.driver = Some(driver.clone());
        let now = self.now();
        self.armed = self.armed.split_off(&(now + 1));
        self.arm();
    }
    /// Sees to it that madsim wakes the driver in time for the first entry.
    fn arm(&mut self) {
        let (Some(driver), Some(&(at, _))) = (&self.driver, self.entries.keys().next()) else {
            return;
        };
        if self.armed.first().is_some_and(|&armed| armed <= at) {
            return;
        }
        let now = self.now();
        if at <= now {
            self.woken.push(driver.clone());
            return;
        }
        let deadline = self.time.now_instant() + Duration::from_nanos(at - now);
        let mut sleep = pin!(self.time.sleep(Duration::ZERO));
        // A sleep asked for directly would last a millisecond at least.
        sleep.as_mut().reset(deadline);
        let registered = sleep.as_mut().poll(&mut Context::from_waker(driver));
        debug_assert!(registered.is_pending(), "the deadline is ahead");
        self.armed.insert(at);
    }
    pub fn wake(&mut self, waker: impl IntoIterator<Item = Waker>) {
        self.woken.extend(waker);
    }
    pub fn take_woken(&mut self) -> Vec<Waker> {
        std::mem::take(&mut self.woken)
    }

    pub fn add_name(&mut self, name: &str) {
        self.names.push(name.to_owned());
    }
    pub fn trace(&mut self, node: usize) {
        self.traced.insert(node);
    }
    pub fn tell_all(&mut self) {
        self.is_told = true;
    }
    /// Folds what happened into the digest, and shows it when its node is traced.
    pub fn note(&mut self, node: usize, kind: &'static str, payload: &[u8]) {
        let now = self.now();
        self.digest.add(now);
        self.digest.add(node as u64);
        self.digest.add_bytes(kind.as_bytes());
        self.digest.add_bytes(payload);
        if self.is_told {
            // The running digest tells payloads apart that begin alike.
            println!(
                "event {now} {} {kind} {} {} {:016x}",
                self.names[node],
                payload.len(),
                payload[..payload.len().min(48)].escape_ascii(),
                self.digest.value()
            );
        }
        if self.traced.contains(&node) {
            let seconds = Duration::from_nanos(now).as_secs_f64();
            let shown = &payload[..payload.len().min(48)];
            eprintln!(
                "{seconds:14.9} {} {kind} {} bytes {}",
                self.names[node],
                payload.len(),
                shown.escape_ascii()
            );
        }
    }
    pub fn digest(&self) -> u64 {
        self.digest.value()
    }
}
