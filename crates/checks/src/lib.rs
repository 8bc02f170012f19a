//! Runs health checks and reports edges.
//!
//! In: definitions (`add`, `remove`), what clients tell of TTL checks (`update_ttl`, `told`). Out: [`CheckUpdates`], a
//! bounded channel of results, already thresholded and cut, and only those that differ from what was reported before.
//! Promises: runs of one check never overlap and each ends by its timeout; a check that was removed or replaced reports
//! nothing more, not even what was waiting in the channel; a full channel holds the checks back instead of growing.
//! Not here: what a result means for a service, persistence of TTL states, who may run a script, reaping (the agent; it
//! asks `critical_since`).

mod http;
mod script;
mod tcp;
mod text;
pub mod threshold;

use crate::threshold::Threshold;
use quorate_rt::task::AbortOnDrop;
use quorate_rt::{Rng, Rt};
use quorate_types::{CheckDefinition, CheckKind, CheckStatus, Instant};
use rand_core::Rng as _;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use thiserror::Error;
use tokio::sync::{Notify, mpsc};

/// Results that wait for the agent. Beyond it checks wait: a result is reported late, never lost.
const UPDATE_COUNT_MAX: usize = 1024;
/// First runs are drawn from a window of this much a check, at most one interval: one check answers at once, and ten
/// thousand loaded together do not start together.
const FIRST_RUN_SPACING: Duration = Duration::from_millis(10);
/// Of one run, when the definition says nothing.
const SCRIPT_TIMEOUT: Duration = Duration::from_secs(30);
const PROBE_TIMEOUT: Duration = Duration::from_secs(10);

/// A check's result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckUpdate {
    pub id: String,
    pub status: CheckStatus,
    pub output: String,
}

/// Why a TTL check could not be told. Texts are Consul's.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum TtlError {
    #[error("Unknown check ID {0:?}. Ensure that the check ID is passed, not the check name.")]
    Unknown(String),
    #[error("CheckID {0:?} does not have associated TTL")]
    NotTtl(String),
}

/// The running checks of one agent. Clones share them; the last one dropped ends them.
pub struct Checks<R: Rt> {
    inner: Arc<Inner<R>>,
}

impl<R: Rt> Clone for Checks<R> {
    fn clone(&self) -> Self {
        Self {
            inner: Arc::clone(&self.inner),
        }
    }
}

struct Inner<R: Rt> {
    rt: R,
    table: Mutex<Table>,
}

struct Table {
    running: BTreeMap<String, Running>,
    /// `None` once stopped.
    updates: Option<mpsc::Sender<Queued>>,
    rng: Rng,
}

struct Running {
    slot: Arc<Slot>,
    _task: AbortOnDrop,
}

impl Drop for Running {
    fn drop(&mut self) {
        locked(&self.slot.state).generation += 1;
    }
}

/// What one check shares with its task and with its results in the channel.
struct Slot {
    id: String,
    output_len_bytes_max: usize,
    state: Mutex<SlotState>,
    /// A TTL check was told.
    told: Notify,
}

struct SlotState {
    /// Raised when results on their way are no longer true.
    generation: u64,
    status: CheckStatus,
    output: String,
    critical_since: Option<Instant>,
    ttl: Option<TtlState>,
}

struct TtlState {
    ttl: Duration,
    /// `None`: it has expired, or never does.
    expires_at: Option<Instant>,
}

struct Queued {
    update: CheckUpdate,
    slot: Arc<Slot>,
    generation: u64,
}

/// A result on its way to who takes it. What a client tells meanwhile overtakes it: who enters results under a lock asks
/// there whether this one is still true.
pub struct Reported {
    queued: Queued,
}

impl Reported {
    /// Whether nothing was told, and the check neither replaced nor removed, since this came to be.
    pub fn is_current(&self) -> bool {
        locked(&self.queued.slot.state).generation == self.queued.generation
    }
    pub fn update(&self) -> &CheckUpdate {
        &self.queued.update
    }
    pub fn into_update(self) -> CheckUpdate {
        self.queued.update
    }
}

/// Results in the order in which they came.
pub struct CheckUpdates {
    receiver: mpsc::Receiver<Queued>,
}

impl CheckUpdates {
    /// The next result that is still true; `None` once the checks were stopped.
    pub async fn recv(&mut self) -> Option<Reported> {
        loop {
            let queued = self.receiver.recv().await?;
            let reported = Reported { queued };
            if reported.is_current() {
                return Some(reported);
            }
        }
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // No code under these locks leaves a value half changed.
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

impl SlotState {
    fn set(&mut self, status: CheckStatus, output: String, now: Instant) {
        self.critical_since = match status {
            CheckStatus::Critical => self.critical_since.or(Some(now)),
            CheckStatus::Passing | CheckStatus::Warning => None,
        };
        self.status = status;
        self.output = output;
    }
}

impl<R: Rt> Checks<R> {
    /// Nothing runs until something is added.
    pub fn start(rt: R) -> (Self, CheckUpdates) {
        let (sender, receiver) = mpsc::channel(UPDATE_COUNT_MAX);
        let table = Table {
            running: BTreeMap::new(),
            updates: Some(sender),
            rng: rt.rng("checks"),
        };
        let inner = Inner {
            rt,
            table: Mutex::new(table),
        };
        (Self { inner: Arc::new(inner) }, CheckUpdates { receiver })
    }

    /// Runs a check from now on; one of the same id is replaced. `status` and `output` are what is shown until its first
    /// result, and are not reported. `ttl_left`: when a TTL check expires, if not in a whole TTL.
    pub fn add(&self, definition: CheckDefinition, status: CheckStatus, output: String, ttl_left: Option<Duration>) {
        let rt = &self.inner.rt;
        let now = rt.now();
        let mut table = locked(&self.inner.table);
        table.running.remove(&definition.id);
        let Some(updates) = table.updates.clone() else {
            return;
        };
        let ttl = match definition.kind {
            CheckKind::Ttl { ttl } => Some(TtlState {
                ttl,
                expires_at: Some(now + ttl_left.unwrap_or(ttl)),
            }),
            CheckKind::Maintenance => return,
            CheckKind::Script { .. } | CheckKind::Http { .. } | CheckKind::Tcp { .. } => None,
        };
        let is_ttl = ttl.is_some();
        let slot = Arc::new(Slot {
            id: definition.id.clone(),
            output_len_bytes_max: definition.output_len_bytes_max,
            state: Mutex::new(SlotState {
                generation: 0,
                status,
                output,
                critical_since: (status == CheckStatus::Critical).then_some(now),
                ttl,
            }),
            told: Notify::new(),
        });
        let id = definition.id.clone();
        let task = if is_ttl {
            rt.spawn("check.ttl", watch_ttl(rt.clone(), Arc::clone(&slot), updates))
        } else {
            let count = u32::try_from(table.running.len() + 1).unwrap_or(u32::MAX);
            let window = definition.interval.min(FIRST_RUN_SPACING.saturating_mul(count));
            let first_at = now + draw(&mut table.rng, window);
            rt.spawn(
                "check.run",
                run(rt.clone(), definition, Arc::clone(&slot), updates, first_at),
            )
        };
        table.running.insert(
            id,
            Running {
                slot,
                _task: task.abort_on_drop(),
            },
        );
    }

    /// Ends a check. What it was doing is dropped, a script is killed. False: there is none.
    pub fn remove(&self, id: &str) -> bool {
        locked(&self.inner.table).running.remove(id).is_some()
    }

    /// Ends all checks, and the channel of results.
    pub fn stop(&self) {
        let mut table = locked(&self.inner.table);
        table.updates = None;
        table.running.clear();
    }

    /// Since when a check is critical without a break, by what it was started with and what it came to.
    pub fn critical_since(&self, id: &str) -> Option<Instant> {
        let table = locked(&self.inner.table);
        locked(&table.running.get(id)?.slot.state).critical_since
    }

    /// A client told a TTL check's result, and the caller has taken it: the TTL begins anew, and nothing is reported.
    pub fn told(&self, id: &str, status: CheckStatus, output: &str) {
        // The caller knows the check; one that was removed meanwhile needs no timer.
        let _ = self.take_told(id, status, output.to_owned());
    }

    /// A client tells a TTL check's result: it is reported as any other, cut to the check's length.
    pub async fn update_ttl(&self, id: &str, status: CheckStatus, output: &str) -> Result<(), TtlError> {
        let slot = self.slot(id)?;
        let output = text::cut_head(output, slot.output_len_bytes_max);
        let generation = self.take_told(id, status, output.clone())?;
        let updates = locked(&self.inner.table).updates.clone();
        if let Some(updates) = updates {
            let update = CheckUpdate {
                id: id.to_owned(),
                status,
                output,
            };
            // A closed channel: the agent is stopping, nobody is left to be told.
            let _ = updates
                .send(Queued {
                    update,
                    slot,
                    generation,
                })
                .await;
        }
        Ok(())
    }

    fn slot(&self, id: &str) -> Result<Arc<Slot>, TtlError> {
        let table = locked(&self.inner.table);
        let running = table.running.get(id).ok_or_else(|| TtlError::Unknown(id.to_owned()))?;
        Ok(Arc::clone(&running.slot))
    }

    fn take_told(&self, id: &str, status: CheckStatus, output: String) -> Result<u64, TtlError> {
        let now = self.inner.rt.now();
        let slot = self.slot(id)?;
        let mut state = locked(&slot.state);
        let ttl = state.ttl.as_mut().ok_or_else(|| TtlError::NotTtl(id.to_owned()))?;
        ttl.expires_at = Some(now + ttl.ttl);
        // An expiry that waits in the channel was overtaken.
        state.generation += 1;
        let generation = state.generation;
        state.set(status, output, now);
        drop(state);
        slot.told.notify_one();
        Ok(generation)
    }
}

/// Waits for a TTL check to expire, again after each time it was told.
async fn watch_ttl<R: Rt>(rt: R, slot: Arc<Slot>, updates: mpsc::Sender<Queued>) {
    loop {
        let now = rt.now();
        let mut expired = None;
        let expires_at = {
            let mut state = locked(&slot.state);
            let ttl = state.ttl.as_mut().expect("only TTL checks are watched");
            if ttl.expires_at.is_some_and(|at| at <= now) {
                ttl.expires_at = None;
                let output = text::cut_head(&text::ttl_expired(&state.output), slot.output_len_bytes_max);
                state.set(CheckStatus::Critical, output.clone(), now);
                expired = Some((output, state.generation));
                None
            } else {
                ttl.expires_at
            }
        };
        if let Some((output, generation)) = expired {
            tracing::debug!(check = %slot.id, "TTL expired");
            let update = CheckUpdate {
                id: slot.id.clone(),
                status: CheckStatus::Critical,
                output,
            };
            if updates
                .send(Queued {
                    update,
                    slot: Arc::clone(&slot),
                    generation,
                })
                .await
                .is_err()
            {
                return;
            }
            continue;
        }
        match expires_at {
            None => slot.told.notified().await,
            Some(at) => {
                // Either way the loop looks at the time again.
                let _ = rt.timeout(at - now, slot.told.notified()).await;
            }
        }
    }
}

/// Runs a check at its interval, one run after the other.
async fn run<R: Rt>(
    rt: R,
    definition: CheckDefinition,
    slot: Arc<Slot>,
    updates: mpsc::Sender<Queued>,
    first_at: Instant,
) {
    let mut threshold = Threshold::new(
        locked(&slot.state).status,
        definition.success_before_passing,
        definition.failures_before_warning,
        definition.failures_before_critical,
    );
    let mut start_at = first_at;
    loop {
        rt.sleep_until(start_at).await;
        let started_at = rt.now();
        let (status, output) = run_once(&rt, &definition).await;
        let now = rt.now();
        match threshold.take(status) {
            None => tracing::debug!(check = %slot.id, %status, "result held back by its threshold"),
            Some(status) => {
                let changed = {
                    let mut state = locked(&slot.state);
                    let changed = state.status != status || state.output != output;
                    state.set(status, output.clone(), now);
                    changed.then_some(state.generation)
                };
                if let Some(generation) = changed {
                    let update = CheckUpdate {
                        id: slot.id.clone(),
                        status,
                        output,
                    };
                    if updates
                        .send(Queued {
                            update,
                            slot: Arc::clone(&slot),
                            generation,
                        })
                        .await
                        .is_err()
                    {
                        return;
                    }
                }
            }
        }
        // A run longer than the interval is followed by the next at once, never by those that were missed.
        start_at = (started_at + definition.interval).max(rt.now());
    }
}

async fn run_once<R: Rt>(rt: &R, definition: &CheckDefinition) -> (CheckStatus, String) {
    let len_bytes_max = definition.output_len_bytes_max;
    match &definition.kind {
        CheckKind::Script { args } => {
            script::run(rt, args, definition.timeout.unwrap_or(SCRIPT_TIMEOUT), len_bytes_max).await
        }
        CheckKind::Http {
            url,
            method,
            header,
            body,
            disable_redirects,
            ..
        } => {
            let probe = http::Probe {
                url,
                method,
                header,
                body,
                follow_redirects: !disable_redirects,
                timeout: definition.timeout.unwrap_or(PROBE_TIMEOUT),
                output_len_bytes_max: len_bytes_max,
            };
            http::run(rt, &probe).await
        }
        CheckKind::Tcp { address } => tcp::run(rt, address, definition.timeout.unwrap_or(PROBE_TIMEOUT)).await,
        CheckKind::Ttl { .. } | CheckKind::Maintenance => unreachable!("add starts no runs of these kinds"),
    }
}

/// Evenly from zero up to `below`.
fn draw(rng: &mut Rng, below: Duration) -> Duration {
    let nanos = (u128::from(rng.next_u64()) * below.as_nanos()) >> 64;
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}
