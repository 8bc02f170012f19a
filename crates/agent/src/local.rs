//! The agent's own services and checks: registered, run, kept on disk, and told to the servers.
//!
//! In: definitions from files and from the HTTP API, results of checks, the catalog's view. Out: running checks, records
//! in the data directory, writes to the servers. Promises: an edit is on disk before it is acknowledged; it is pushed at
//! once and, when that fails, again until it succeeds; a full comparison with the catalog repairs what was changed behind
//! the agent's back; a reload applies whole or not at all.
//! Not here: what differs (`anti-entropy`), how a check runs (`checks`), how a definition is read (`config`).

use crate::config::definition::{DefinitionError, Origin, ScriptPolicy, scripts_allowed};
use crate::data_dir::{DataDir, DataDirError, Kept, KeptTtl};
use crate::router::{Router, locked};
use quorate_anti_entropy::local::Pending;
use quorate_anti_entropy::{Catalog, Change, LocalState, NodeRecord, sync_interval};
use quorate_checks::{CheckUpdate, CheckUpdates, Checks, Reported};
use quorate_replica::RaftRt;
use quorate_rt::Rng;
use quorate_store::{Answer, Command, Consistency, Outcome, Query};
use quorate_types::limits::CHECK_OUTPUT_LEN_BYTES_MAX;
use quorate_types::{
    Check, CheckDefinition, CheckKind, CheckStatus, Instant, ModifyIndex, Service, ServiceDefinition, WallTime,
};
use quorate_wire::local::LocalKind;
use quorate_wire::rpc::{CallError, ReadRequest};
use rand_core::Rng as _;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use thiserror::Error;
use tokio::sync::Notify;

/// Between two full comparisons in a small pool (semantics.md section 2).
const FULL_SYNC_INTERVAL: Duration = Duration::from_secs(60);
/// After a failed sync: soon, then ever rarer, so that a cluster without a leader is not flooded.
const RETRY_DELAY_MIN: Duration = Duration::from_secs(1);
const RETRY_DELAY_MAX: Duration = Duration::from_secs(15);
/// One log entry carries at most so many registrations: small enough for one frame, large enough to load thousands.
const BATCH_COUNT_MAX: usize = 64;
/// Between two looks for services that were critical for too long.
const REAP_INTERVAL: Duration = Duration::from_secs(30);
/// Id of the check that puts a node into maintenance, and the prefix of those that do so with a service.
const NODE_MAINTENANCE_ID: &str = "_node_maintenance";
const SERVICE_MAINTENANCE_PREFIX: &str = "_service_maintenance:";

/// Why an edit was refused.
#[derive(Debug, Error)]
pub enum EditError {
    #[error("Unknown service ID {0:?}. Ensure that the service ID is passed, not the service name.")]
    UnknownService(String),
    #[error("Unknown check ID {0:?}. Ensure that the check ID is passed, not the check name.")]
    UnknownCheck(String),
    #[error("CheckID {0:?} does not have associated TTL")]
    NotTtl(String),
    #[error("ServiceID {0:?} does not exist")]
    NoServiceForCheck(String),
    #[error(transparent)]
    Definition(DefinitionError),
    #[error(transparent)]
    DataDir(#[from] DataDirError),
}

/// Why the definitions of the files cannot be taken.
#[derive(Debug, Error)]
pub enum DefinitionsError {
    #[error("Failed to register service {id:?}: {err}")]
    Service { id: String, err: DefinitionError },
    #[error("Failed to register check '{id}': {err}")]
    Check { id: String, err: DefinitionError },
    #[error("Failed to register check '{id}': ServiceID {service_id:?} does not exist")]
    NoService { id: String, service_id: String },
}

/// What a reload may change.
#[derive(Clone, Debug)]
pub struct LocalSettings {
    pub scripts: ScriptPolicy,
    pub check_update_interval: Duration,
    pub discard_check_output: bool,
}

/// Where the agent's services and checks live. Clones share them.
pub struct Local<R: RaftRt> {
    inner: Arc<Inner<R>>,
}

impl<R: RaftRt> Clone for Local<R> {
    fn clone(&self) -> Self {
        Self {
            inner: Arc::clone(&self.inner),
        }
    }
}

struct Inner<R: RaftRt> {
    rt: R,
    router: Router<R>,
    data_dir: DataDir<R>,
    checks: Checks<R>,
    table: Mutex<Table>,
    /// One writer to the servers at a time, so that the writes keep their order. Within: the last push that ended.
    push_lock: tokio::sync::Mutex<LastPush>,
    /// Pushes that were begun.
    push_count: AtomicU64,
    /// An edit is the same on disk and in memory: one at a time.
    edit_lock: tokio::sync::Mutex<()>,
    /// An edit, a result or the servers' return: the sync task looks again.
    wake: Notify,
    /// Waiters for a change of services, woken in the order they came.
    version_waiters: Mutex<Vec<tokio::sync::oneshot::Sender<()>>>,
}

#[derive(Clone, Copy, Debug, Default)]
struct LastPush {
    number: u64,
    succeeded: bool,
}

struct Table {
    state: LocalState,
    settings: LocalSettings,
    definitions: BTreeMap<String, CheckDefinition>,
    service_origin: BTreeMap<String, Origin>,
    check_origin: BTreeMap<String, Origin>,
    rng: Rng,
    full_sync_wanted: bool,
}

/// When the next full comparison is due, and how long the next failure delays it.
struct Schedule {
    full_sync_at: Instant,
    retry_delay: Duration,
}

impl<R: RaftRt> Local<R> {
    pub fn new(
        rt: R,
        node: NodeRecord,
        settings: LocalSettings,
        router: Router<R>,
        data_dir: DataDir<R>,
        checks: Checks<R>,
    ) -> Self {
        let table = Table {
            state: LocalState::new(node),
            settings,
            definitions: BTreeMap::new(),
            service_origin: BTreeMap::new(),
            check_origin: BTreeMap::new(),
            rng: rt.rng("agent.sync"),
            full_sync_wanted: true,
        };
        let inner = Inner {
            rt,
            router,
            data_dir,
            checks,
            table: Mutex::new(table),
            push_lock: tokio::sync::Mutex::default(),
            push_count: AtomicU64::new(0),
            edit_lock: tokio::sync::Mutex::default(),
            wake: Notify::new(),
            version_waiters: Mutex::default(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Takes what the files define and what was kept, before anything runs. What the files define wins over what was
    /// kept under the same id.
    pub async fn load(
        &self,
        services: &[ServiceDefinition],
        checks: &[CheckDefinition],
        kept: Kept,
    ) -> Result<(), DefinitionsError> {
        self.admit(
            services,
            checks,
            &kept.services.iter().map(|kept| kept.service.id.clone()).collect(),
        )?;
        let now_wall = self.inner.rt.wall_now();
        let ttls: BTreeMap<String, KeptTtl> = kept
            .ttls
            .into_iter()
            .map(|state| (state.check_id.clone(), state))
            .collect();
        for definition in services {
            self.add_service(definition, Origin::File);
            for check in &definition.checks {
                self.add_check(check, Origin::File, ttls.get(&check.id), now_wall);
            }
        }
        self.forget_what_files_define(services, checks).await;
        let defined: BTreeSet<String> = services
            .iter()
            .map(|definition| definition.service.id.clone())
            .collect();
        for definition in kept.services.iter().filter(|kept| !defined.contains(&kept.service.id)) {
            self.add_service(definition, Origin::Remote);
        }
        for check in checks {
            self.add_check(check, Origin::File, ttls.get(&check.id), now_wall);
        }
        let policy = locked(&self.inner.table).settings.scripts;
        for check in &kept.checks {
            let known = locked(&self.inner.table).definitions.contains_key(&check.id);
            if known {
                continue;
            }
            if let Err(err) = scripts_allowed(check, Origin::Remote, policy) {
                // It was allowed when it was registered. Refusing to start would lose the rest; running it would go
                // against the operator's present word.
                tracing::warn!(check = %check.id, %err, "a stored check is left out");
                continue;
            }
            if !self.add_check(check, Origin::Remote, ttls.get(&check.id), now_wall) {
                tracing::warn!(check = %check.id, service = %check.service_id, "a stored check has no service: left out");
            }
        }
        Ok(())
    }

    /// Whether these definitions may be taken as a whole.
    fn admit(
        &self,
        services: &[ServiceDefinition],
        checks: &[CheckDefinition],
        others: &BTreeSet<String>,
    ) -> Result<(), DefinitionsError> {
        let policy = locked(&self.inner.table).settings.scripts;
        admit(policy, services, checks, others)
    }

    /// Takes the definitions of re-read files: all, or none when one is refused. Unchanged ones keep their state.
    pub async fn reload(
        &self,
        services: &[ServiceDefinition],
        checks: &[CheckDefinition],
        settings: LocalSettings,
        node: NodeRecord,
    ) -> Result<(), DefinitionsError> {
        // An edit between the steps would be forgotten on disk and kept in memory, or the other way round.
        let _edit = self.inner.edit_lock.lock().await;
        let (gone_services, gone_checks) = {
            let mut table = locked(&self.inner.table);
            let remote = |origin: &BTreeMap<String, Origin>| -> BTreeSet<String> {
                origin
                    .iter()
                    .filter(|(_, origin)| **origin == Origin::Remote)
                    .map(|(id, _)| id.clone())
                    .collect()
            };
            admit(settings.scripts, services, checks, &remote(&table.service_origin))?;
            table.settings = settings;
            table.state.set_node(node);
            let defined: BTreeSet<&str> = services.iter().map(|service| service.service.id.as_str()).collect();
            let from_files = |origin: &BTreeMap<String, Origin>| -> Vec<String> {
                origin
                    .iter()
                    .filter(|(_, origin)| **origin == Origin::File)
                    .map(|(id, _)| id.clone())
                    .collect()
            };
            let gone_services: Vec<String> = from_files(&table.service_origin)
                .into_iter()
                .filter(|id| !defined.contains(id.as_str()))
                .collect();
            let inline = services.iter().flat_map(|service| &service.checks);
            let defined: BTreeSet<&str> = inline.chain(checks).map(|check| check.id.as_str()).collect();
            let gone_checks: Vec<String> = from_files(&table.check_origin)
                .into_iter()
                .filter(|id| !defined.contains(id.as_str()))
                .collect();
            (gone_services, gone_checks)
        };
        for id in gone_checks {
            self.drop_check(&id);
        }
        for id in gone_services {
            self.drop_service(&id);
        }
        let now_wall = self.inner.rt.wall_now();
        for definition in services {
            self.add_service(definition, Origin::File);
            for check in &definition.checks {
                self.add_check(check, Origin::File, None, now_wall);
            }
        }
        for check in checks {
            self.add_check(check, Origin::File, None, now_wall);
        }
        self.forget_what_files_define(services, checks).await;
        self.inner.wake.notify_one();
        Ok(())
    }

    /// Removes the stored records of what files define now: they would come back once the file no longer does.
    async fn forget_what_files_define(&self, services: &[ServiceDefinition], checks: &[CheckDefinition]) {
        let inline = services.iter().flat_map(|definition| &definition.checks);
        let checks = inline.chain(checks).map(|check| (LocalKind::Check, &check.id));
        let services = services
            .iter()
            .map(|definition| (LocalKind::Service, &definition.service.id));
        for (kind, id) in services.chain(checks) {
            if let Err(err) = self.inner.data_dir.forget(kind, id).await {
                tracing::warn!(%id, %err, "a stored definition that a file replaced is still there");
            }
        }
    }

    fn add_service(&self, definition: &ServiceDefinition, origin: Origin) {
        let mut table = locked(&self.inner.table);
        table.state.add_service(definition.service.clone(), &definition.token);
        table.service_origin.insert(definition.service.id.clone(), origin);
        drop(table);
        self.services_changed_now();
    }

    /// Adds a check and starts it. One that is there with the same definition goes on as it is; a TTL check keeps what
    /// it was told. Whether its service is there.
    fn add_check(
        &self,
        definition: &CheckDefinition,
        origin: Origin,
        kept: Option<&KeptTtl>,
        now_wall: WallTime,
    ) -> bool {
        let now = self.inner.rt.now();
        let mut table = locked(&self.inner.table);
        let existing = table.definitions.get(&definition.id);
        if existing == Some(definition) && table.state.check(&definition.id).is_some() {
            table.check_origin.insert(definition.id.clone(), origin);
            return true;
        }
        let mut check = Check {
            check_id: definition.id.clone(),
            name: definition.name.clone(),
            status: definition.status,
            notes: definition.notes.clone(),
            service_id: definition.service_id.clone(),
            kind: definition.kind.as_str().to_owned(),
            interval: shown(definition.interval),
            timeout: definition.timeout.map(shown).unwrap_or_default(),
            ..Check::default()
        };
        let is_ttl = matches!(definition.kind, CheckKind::Ttl { .. });
        let was_ttl = existing.is_some_and(|existing| matches!(existing.kind, CheckKind::Ttl { .. }));
        let mut ttl_left = None;
        if is_ttl
            && was_ttl
            && let Some(known) = table.state.check(&definition.id)
        {
            check.status = known.status;
            check.output.clone_from(&known.output);
        } else if is_ttl
            && let Some(kept) = kept
            && kept.expires_at > now_wall
        {
            check.status = kept.status;
            check.output.clone_from(&kept.output);
            ttl_left = Some(Duration::from_nanos(kept.expires_at.as_nanos() - now_wall.as_nanos()));
        }
        let initial = (check.status, check.output.clone());
        if !table.state.add_check(now, check, &definition.token) {
            return false;
        }
        table.definitions.insert(definition.id.clone(), definition.clone());
        table.check_origin.insert(definition.id.clone(), origin);
        if !matches!(definition.kind, CheckKind::Maintenance) {
            // Under the lock: a result of the check that this one replaces must not be entered as this one's.
            self.inner
                .checks
                .add(definition.clone(), initial.0, initial.1, ttl_left);
        }
        true
    }

    fn drop_check(&self, id: &str) -> bool {
        self.inner.checks.remove(id);
        let mut table = locked(&self.inner.table);
        table.definitions.remove(id);
        table.check_origin.remove(id);
        table.state.remove_check(id)
    }

    /// Removes a service and its checks; the ids of the checks.
    fn drop_service(&self, id: &str) -> Option<Vec<String>> {
        let mut table = locked(&self.inner.table);
        let checks = table.state.remove_service(id)?;
        table.service_origin.remove(id);
        for check in &checks {
            table.definitions.remove(check);
            table.check_origin.remove(check);
        }
        drop(table);
        for check in &checks {
            self.inner.checks.remove(check);
        }
        self.services_changed_now();
        Some(checks)
    }

    pub fn services(&self) -> Vec<Arc<Service>> {
        locked(&self.inner.table).state.services().cloned().collect()
    }
    pub fn checks(&self) -> Vec<Arc<Check>> {
        locked(&self.inner.table).state.checks().cloned().collect()
    }
    pub fn node(&self) -> NodeRecord {
        locked(&self.inner.table).state.node().clone()
    }
    pub fn services_version(&self) -> u64 {
        locked(&self.inner.table).state.version()
    }
    /// Checks that run, and those that are told.
    pub fn check_counts(&self) -> (usize, usize) {
        let table = locked(&self.inner.table);
        let told = table
            .definitions
            .values()
            .filter(|check| matches!(check.kind, CheckKind::Ttl { .. }))
            .count();
        (table.definitions.len() - told, told)
    }

    pub async fn services_changed(&self, seen: u64) {
        let waiter = {
            // Under the waiters' lock: a change between the look and the entry would be missed.
            let mut waiters = locked(&self.inner.version_waiters);
            if self.services_version() != seen {
                return;
            }
            waiters.retain(|waiter| !waiter.is_closed());
            let (sender, waiter) = tokio::sync::oneshot::channel();
            waiters.push(sender);
            waiter
        };
        let _ = waiter.await;
    }

    fn services_changed_now(&self) {
        for waiter in locked(&self.inner.version_waiters).drain(..) {
            let _ = waiter.send(());
        }
    }

    pub async fn register_service(
        &self,
        definition: ServiceDefinition,
        replace_existing_checks: bool,
    ) -> Result<(), EditError> {
        let edit = self.inner.edit_lock.lock().await;
        let policy = locked(&self.inner.table).settings.scripts;
        for check in &definition.checks {
            scripts_allowed(check, Origin::Remote, policy).map_err(EditError::Definition)?;
        }
        let id = definition.service.id.clone();
        let kept = ServiceDefinition {
            checks: Vec::new(),
            ..definition.clone()
        };
        self.inner.data_dir.keep_service(&kept).await?;
        for check in &definition.checks {
            self.inner.data_dir.keep_check(check).await?;
        }
        self.add_service(&definition, Origin::Remote);
        let now_wall = self.inner.rt.wall_now();
        for check in &definition.checks {
            self.add_check(check, Origin::Remote, None, now_wall);
        }
        if replace_existing_checks {
            let named: BTreeSet<&str> = definition.checks.iter().map(|check| check.id.as_str()).collect();
            let others: Vec<String> = self
                .checks()
                .iter()
                .filter(|check| check.service_id == id && !named.contains(check.check_id.as_str()))
                .map(|check| check.check_id.clone())
                .collect();
            for other in others {
                self.forget_check(&other).await?;
                self.drop_check(&other);
            }
        }
        drop(edit);
        self.push_or_retry().await;
        Ok(())
    }

    pub async fn deregister_service(&self, id: &str) -> Result<(), EditError> {
        let edit = self.inner.edit_lock.lock().await;
        let Some(checks) = self.drop_service(id) else {
            return Err(EditError::UnknownService(id.to_owned()));
        };
        for check in checks {
            self.forget_check(&check).await?;
        }
        self.inner.data_dir.forget(LocalKind::Service, id).await?;
        drop(edit);
        self.push_or_retry().await;
        Ok(())
    }

    pub async fn register_check(&self, definition: CheckDefinition) -> Result<(), EditError> {
        let edit = self.inner.edit_lock.lock().await;
        {
            let table = locked(&self.inner.table);
            scripts_allowed(&definition, Origin::Remote, table.settings.scripts).map_err(EditError::Definition)?;
            if !definition.service_id.is_empty() && table.state.service(&definition.service_id).is_none() {
                return Err(EditError::NoServiceForCheck(definition.service_id));
            }
        }
        self.inner.data_dir.keep_check(&definition).await?;
        let now_wall = self.inner.rt.wall_now();
        self.add_check(&definition, Origin::Remote, None, now_wall);
        drop(edit);
        self.push_or_retry().await;
        Ok(())
    }

    pub async fn deregister_check(&self, id: &str) -> Result<(), EditError> {
        let edit = self.inner.edit_lock.lock().await;
        if !self.drop_check(id) {
            return Err(EditError::UnknownCheck(id.to_owned()));
        }
        self.forget_check(id).await?;
        drop(edit);
        self.push_or_retry().await;
        Ok(())
    }

    async fn forget_check(&self, id: &str) -> Result<(), DataDirError> {
        self.inner.data_dir.forget(LocalKind::Check, id).await?;
        self.inner.data_dir.forget(LocalKind::TtlState, id).await
    }

    /// A client tells a TTL check's result.
    pub async fn update_ttl(&self, id: &str, status: CheckStatus, output: String) -> Result<(), EditError> {
        let ttl = {
            let table = locked(&self.inner.table);
            match table.definitions.get(id).map(|definition| &definition.kind) {
                None => return Err(EditError::UnknownCheck(id.to_owned())),
                Some(CheckKind::Ttl { ttl }) => *ttl,
                Some(_) => return Err(EditError::NotTtl(id.to_owned())),
            }
        };
        let state = KeptTtl {
            check_id: id.to_owned(),
            status,
            output: output.clone(),
            expires_at: self.inner.rt.wall_now() + ttl,
        };
        self.inner.data_dir.keep_ttl(&state).await?;
        let update = CheckUpdate {
            id: id.to_owned(),
            status,
            output,
        };
        let is_to_be_told = {
            let mut table = locked(&self.inner.table);
            // Both under one lock: an expiry before it is overtaken, and one after it comes after it.
            self.inner.checks.told(id, status, &update.output);
            self.record(&mut table, &update)
        };
        if is_to_be_told {
            self.push_or_retry().await;
        }
        Ok(())
    }

    pub async fn set_node_maintenance(&self, reason: Option<String>) -> Result<(), EditError> {
        self.set_maintenance(NODE_MAINTENANCE_ID.to_owned(), "Node Maintenance Mode", "", reason)
            .await
    }

    pub async fn set_service_maintenance(&self, id: &str, reason: Option<String>) -> Result<(), EditError> {
        if locked(&self.inner.table).state.service(id).is_none() {
            return Err(EditError::UnknownService(id.to_owned()));
        }
        let check_id = format!("{SERVICE_MAINTENANCE_PREFIX}{id}");
        self.set_maintenance(check_id, "Service Maintenance Mode", id, reason)
            .await
    }

    async fn set_maintenance(
        &self,
        check_id: String,
        name: &str,
        service_id: &str,
        reason: Option<String>,
    ) -> Result<(), EditError> {
        let is_on = locked(&self.inner.table).definitions.contains_key(&check_id);
        match reason {
            // Enabled twice keeps the first reason (semantics.md 3.4).
            Some(notes) if !is_on => {
                self.register_check(CheckDefinition {
                    id: check_id,
                    name: name.to_owned(),
                    notes,
                    service_id: service_id.to_owned(),
                    status: CheckStatus::Critical,
                    kind: CheckKind::Maintenance,
                    interval: Duration::ZERO,
                    timeout: None,
                    success_before_passing: 0,
                    failures_before_warning: 0,
                    failures_before_critical: 0,
                    deregister_critical_service_after: None,
                    output_len_bytes_max: CHECK_OUTPUT_LEN_BYTES_MAX,
                    token: String::new(),
                })
                .await
            }
            None if is_on => self.deregister_check(&check_id).await,
            Some(_) | None => Ok(()),
        }
    }

    /// Takes what a check came to, unless a client told something else, or it was replaced, since then; whether it is to
    /// be told now.
    fn take_result(&self, reported: &Reported) -> bool {
        let mut table = locked(&self.inner.table);
        reported.is_current() && self.record(&mut table, reported.update())
    }

    /// Takes a check's result into the state; whether it is to be told now.
    fn record(&self, table: &mut Table, update: &CheckUpdate) -> bool {
        let now = self.inner.rt.now();
        let mut delay = table.settings.check_update_interval;
        if !delay.is_zero() {
            // Half of it is drawn, so that the outputs of many checks do not arrive together.
            let half = delay / 2;
            delay = half + draw(&mut table.rng, half);
        }
        let output = if table.settings.discard_check_output {
            ""
        } else {
            &update.output
        };
        let before = table.state.check(&update.id).map(|check| check.status);
        let told = table.state.update_check(now, &update.id, update.status, output, delay);
        if let Some(before) = before.filter(|before| *before != update.status) {
            tracing::info!(check = %update.id, from = %before, to = %update.status, "check status changed");
            let line = format!("{} {}", update.id, update.status);
            self.inner.rt.event(quorate_rt::Event {
                kind: "check",
                payload: line.as_bytes(),
            });
        }
        told
    }

    /// Writes what the servers do not know yet. Whether they now know all of it.
    async fn push(&self) -> bool {
        let begun_before = self.inner.push_count.load(Ordering::SeqCst);
        let mut last = self.inner.push_lock.lock().await;
        if last.number > begun_before {
            // One that began after the caller's edit has carried it, or has waited for a leader in vain: without this,
            // every edit of a queue would wait anew.
            return last.succeeded;
        }
        let number = self.inner.push_count.fetch_add(1, Ordering::SeqCst) + 1;
        let pending = {
            let table = locked(&self.inner.table);
            table.state.pending(self.inner.rt.now())
        };
        let mut succeeded = true;
        for batch in pending.chunks(BATCH_COUNT_MAX) {
            if !self.push_batch(batch).await {
                succeeded = false;
                break;
            }
        }
        *last = LastPush { number, succeeded };
        succeeded
    }

    /// Pushes an edit. What fails now is the sync task's to repeat.
    async fn push_or_retry(&self) {
        if !self.push().await {
            self.inner.wake.notify_one();
        }
    }

    async fn push_batch(&self, batch: &[Pending]) -> bool {
        let mut commands: Vec<Command> = batch.iter().map(|pending| command_of(&pending.change)).collect();
        let command = match commands.len() {
            1 => commands.swap_remove(0),
            _ => Command::Batch(commands),
        };
        let outcomes = match self.inner.router.write(command).await {
            Ok(Outcome::Batch(outcomes)) => outcomes,
            Ok(outcome) => vec![outcome],
            Err(err) => {
                tracing::warn!(%err, "the catalog was not updated, trying again later");
                return false;
            }
        };
        let mut table = locked(&self.inner.table);
        for (pending, outcome) in batch.iter().zip(outcomes) {
            match outcome {
                // Tried again after the next full comparison: until then nothing would change.
                Outcome::Refused(err) => tracing::warn!(%err, change = ?pending.change, "the catalog refused a change"),
                _ => table.state.acknowledge(pending),
            }
        }
        true
    }

    /// Compares with the catalog and repairs what differs.
    async fn full_sync(&self) -> Result<(), CallError> {
        let request = ReadRequest {
            query: Query::Node { node: self.node().name },
            consistency: Consistency::Default,
            min_index: ModifyIndex::ZERO,
            wait: Duration::ZERO,
            max_stale: None,
            hops: 0,
        };
        let reply = self.inner.router.read(request).await?;
        let Answer::Node(view) = Arc::unwrap_or_clone(reply.answer) else {
            return Err(CallError::Failed("the servers answered another question".to_owned()));
        };
        {
            let _one_at_a_time = self.inner.push_lock.lock().await;
            let mut table = locked(&self.inner.table);
            let version = table.state.version();
            table.state.compare(view.as_ref().map(|view| Catalog {
                node: &view.node,
                services: &view.services,
                checks: &view.checks,
            }));
            let changed = table.state.version() != version;
            drop(table);
            if changed {
                self.services_changed_now();
            }
        }
        if self.push().await {
            return Ok(());
        }
        Err(CallError::Failed("some changes were not written".to_owned()))
    }

    /// Asks for a full comparison soon: servers joined, or this agent's tokens changed.
    pub fn want_full_sync(&self) {
        locked(&self.inner.table).full_sync_wanted = true;
        self.inner.wake.notify_one();
    }

    /// Keeps the catalog in line until it is aborted. `member_count` scales the interval.
    pub async fn keep_in_sync(self, member_count: impl Fn() -> usize + Send) {
        let rt = self.inner.rt.clone();
        let mut schedule = Schedule {
            full_sync_at: rt.now(),
            retry_delay: RETRY_DELAY_MIN,
        };
        loop {
            let is_full = {
                let mut table = locked(&self.inner.table);
                std::mem::take(&mut table.full_sync_wanted) || rt.now() >= schedule.full_sync_at
            };
            let succeeded = if is_full {
                let result = self.full_sync().await;
                if let Err(err) = &result {
                    tracing::warn!(%err, "anti-entropy failed, trying again later");
                }
                result.is_ok()
            } else {
                self.push().await
            };
            let wake_at = self.after_sync(&mut schedule, succeeded, is_full, member_count());
            let pause = wake_at.duration_since(rt.now());
            let woken = rt.timeout(pause, self.inner.wake.notified()).await.is_ok();
            if woken && !succeeded {
                // News are worth a try before the delay is over, but never without a pause.
                rt.sleep(RETRY_DELAY_MIN).await;
            }
        }
    }

    /// Enters what came of a sync; when to look again at the latest.
    fn after_sync(&self, schedule: &mut Schedule, succeeded: bool, was_full: bool, member_count: usize) -> Instant {
        let now = self.inner.rt.now();
        let mut table = locked(&self.inner.table);
        if !succeeded {
            let delay = schedule.retry_delay + draw(&mut table.rng, schedule.retry_delay);
            schedule.retry_delay = (schedule.retry_delay * 2).min(RETRY_DELAY_MAX);
            schedule.full_sync_at = now + delay;
            return schedule.full_sync_at;
        }
        schedule.retry_delay = RETRY_DELAY_MIN;
        if was_full {
            let interval = sync_interval(FULL_SYNC_INTERVAL, member_count);
            schedule.full_sync_at = now + interval + draw(&mut table.rng, interval);
        }
        let output_due_at = table.state.next_output_due_at().unwrap_or(Instant::FAR_FUTURE);
        schedule.full_sync_at.min(output_due_at)
    }

    /// Ends all checks.
    pub fn stop_checks(&self) {
        self.inner.checks.stop();
    }

    /// Takes results of checks until the channel ends.
    pub async fn take_results(self, mut results: CheckUpdates) {
        while let Some(reported) = results.recv().await {
            if self.take_result(&reported) {
                self.inner.wake.notify_one();
            }
        }
    }

    /// Deregisters services whose checks stay critical for longer than they allow, until it is aborted.
    pub async fn reap_critical(self) {
        let rt = self.inner.rt.clone();
        loop {
            rt.sleep(REAP_INTERVAL).await;
            let now = rt.now();
            let overdue: BTreeSet<String> = {
                let table = locked(&self.inner.table);
                let is_overdue = |definition: &&CheckDefinition| {
                    let since = table.state.critical_since(&definition.id);
                    let after = definition.deregister_critical_service_after;
                    matches!((since, after), (Some(since), Some(after)) if now - since > after)
                };
                let overdue = table.definitions.values().filter(is_overdue);
                overdue
                    .map(|definition| definition.service_id.clone())
                    .filter(|id| !id.is_empty())
                    .collect()
            };
            for id in overdue {
                tracing::info!(service = %id, "deregistering a service that was critical for too long");
                if let Err(err) = self.deregister_service(&id).await {
                    tracing::warn!(service = %id, %err, "a critical service was not deregistered");
                }
            }
        }
    }
}

pub(crate) fn admit(
    policy: ScriptPolicy,
    services: &[ServiceDefinition],
    checks: &[CheckDefinition],
    others: &BTreeSet<String>,
) -> Result<(), DefinitionsError> {
    for definition in services {
        for check in &definition.checks {
            scripts_allowed(check, Origin::File, policy).map_err(|err| DefinitionsError::Service {
                id: definition.service.id.clone(),
                err,
            })?;
        }
    }
    let defined: BTreeSet<&str> = services
        .iter()
        .map(|definition| definition.service.id.as_str())
        .collect();
    for check in checks {
        scripts_allowed(check, Origin::File, policy).map_err(|err| DefinitionsError::Check {
            id: check.id.clone(),
            err,
        })?;
        let service_id = &check.service_id;
        if !service_id.is_empty() && !defined.contains(service_id.as_str()) && !others.contains(service_id) {
            return Err(DefinitionsError::NoService {
                id: check.id.clone(),
                service_id: service_id.clone(),
            });
        }
    }
    Ok(())
}

pub(crate) fn command_of(change: &Change) -> Command {
    match change {
        Change::Register(registration) => Command::Register(registration.clone()),
        Change::Deregister(deregistration) => Command::Deregister(deregistration.clone()),
    }
}

/// A duration as `HealthCheck.Interval` shows it; empty for none.
fn shown(duration: Duration) -> String {
    if duration.is_zero() {
        String::new()
    } else {
        crate::config::duration::format(duration)
    }
}

/// Evenly from zero up to `most`.
pub(crate) fn draw(rng: &mut Rng, most: Duration) -> Duration {
    let nanos = u64::try_from(most.as_nanos()).unwrap_or(u64::MAX);
    Duration::from_nanos(rng.next_u64() % nanos.max(1))
}

#[cfg(test)]
mod tests;
