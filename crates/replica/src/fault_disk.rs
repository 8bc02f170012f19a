//! A disk for tests that crashes where it is told to: unsynced sectors are then lost, kept or mixed, unsynced names too;
//! or only the process ends, and what is unsynced stays so. And a door with this disk and nothing else behind it.

use crate::types::RaftRt;
use bytes::Bytes;
use futures::future::BoxFuture;
use quorate_rt::{
    DirEntry, Disk, Event, File, InterfaceAddress, Listener, OpenMode, ProcessEnd, ProcessOutput, ProcessSpec, Rng, Rt,
    Signal, Udp,
};
use quorate_types::{Instant, WallTime};
use rand_core::{Rng as _, SeedableRng as _};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

const SECTOR: usize = 512;

#[derive(Clone, Debug, Default)]
struct Content {
    durable: Vec<u8>,
    /// What readers see.
    seen: Vec<u8>,
    unsynced: Vec<(usize, Bytes)>,
    /// Sectors of which a sync failed: seen, and saved by no later sync until they are written again.
    given_up: BTreeSet<usize>,
}

#[derive(Debug, Default)]
struct Inner {
    next_id: u64,
    contents: BTreeMap<u64, Content>,
    names: BTreeMap<PathBuf, u64>,
    durable_names: BTreeMap<PathBuf, u64>,
    op_count: u64,
    crash_at: Option<u64>,
    is_down: bool,
}

impl Inner {
    fn step(&mut self) -> io::Result<()> {
        if self.is_down {
            return Err(io::Error::other("the machine is down"));
        }
        self.op_count += 1;
        if Some(self.op_count) == self.crash_at {
            self.is_down = true;
            return Err(io::Error::other("power lost"));
        }
        Ok(())
    }
}

#[derive(Clone, Debug, Default)]
pub struct FaultDisk {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug)]
pub struct FaultFile {
    id: u64,
    inner: Arc<Mutex<Inner>>,
}

fn locked(inner: &Mutex<Inner>) -> MutexGuard<'_, Inner> {
    inner.lock().expect("tests do not panic while they hold it")
}

impl FaultDisk {
    /// Power is lost at this operation, counted from now; it does not happen, or (a write) in part.
    pub fn crash_at(&self, op: u64) {
        let mut inner = locked(&self.inner);
        inner.crash_at = Some(inner.op_count + op);
    }
    pub fn op_count(&self) -> u64 {
        locked(&self.inner).op_count
    }
    /// The machine comes back: what was not synced was decided sector by sector and name by name.
    pub fn restart(&self, seed: u64) -> Self {
        let mut rng = Rng::seed_from_u64(seed);
        let mut inner = locked(&self.inner);
        let (mut contents, mut names) = (BTreeMap::new(), BTreeMap::new());
        let mut all: Vec<PathBuf> = inner.names.keys().chain(inner.durable_names.keys()).cloned().collect();
        all.sort();
        all.dedup();
        for name in all {
            let (now, durable) = (inner.names.get(&name), inner.durable_names.get(&name));
            let id = if rng.next_u32().is_multiple_of(2) { now } else { durable };
            if let Some(id) = id {
                names.insert(name, *id);
            }
        }
        for (id, content) in &inner.contents {
            let mut bytes = content.durable.clone();
            for (offset, written) in &content.unsynced {
                let end = offset + written.len();
                let mut at = *offset;
                while at < end {
                    let next = ((at / SECTOR + 1) * SECTOR).min(end);
                    if rng.next_u32().is_multiple_of(2) {
                        if bytes.len() < next {
                            bytes.resize(next, 0);
                        }
                        bytes[at..next].copy_from_slice(&written[at - offset..next - offset]);
                    }
                    at = next;
                }
            }
            contents.insert(
                *id,
                Content {
                    seen: bytes.clone(),
                    durable: bytes,
                    ..Content::default()
                },
            );
        }
        // The old machine is gone for good.
        inner.is_down = true;
        Self {
            inner: Arc::new(Mutex::new(Inner {
                next_id: inner.next_id,
                contents,
                durable_names: names.clone(),
                names,
                ..Inner::default()
            })),
        }
    }
    /// The process ended and the machine did not: all that was written is there, and what was unsynced still is.
    pub fn end_process(&self) -> Self {
        let mut inner = locked(&self.inner);
        // What the old process still holds reaches nothing any more.
        inner.is_down = true;
        Self {
            inner: Arc::new(Mutex::new(Inner {
                next_id: inner.next_id,
                contents: inner.contents.clone(),
                names: inner.names.clone(),
                durable_names: inner.durable_names.clone(),
                ..Inner::default()
            })),
        }
    }
    /// Every file and its durable bytes.
    pub fn files(&self) -> Vec<(PathBuf, Vec<u8>)> {
        let inner = locked(&self.inner);
        inner
            .durable_names
            .iter()
            .map(|(path, id)| (path.clone(), inner.contents[id].durable.clone()))
            .collect()
    }
    /// A disk with these files.
    pub fn with_files(files: &[(PathBuf, Vec<u8>)]) -> Self {
        let disk = Self::default();
        let mut inner = locked(&disk.inner);
        for (path, bytes) in files {
            let id = inner.next_id;
            inner.next_id += 1;
            inner.names.insert(path.clone(), id);
            inner.durable_names.insert(path.clone(), id);
            inner.contents.insert(
                id,
                Content {
                    durable: bytes.clone(),
                    seen: bytes.clone(),
                    ..Content::default()
                },
            );
        }
        drop(inner);
        disk
    }
}

impl Disk for FaultDisk {
    type File = FaultFile;
    async fn open(&self, path: &Path, mode: OpenMode) -> io::Result<FaultFile> {
        let mut inner = locked(&self.inner);
        inner.step()?;
        let id = match (inner.names.get(path), mode) {
            (Some(_), OpenMode::CreateNew) => return Err(io::ErrorKind::AlreadyExists.into()),
            (Some(id), _) => *id,
            (None, OpenMode::Read | OpenMode::Write) => return Err(io::ErrorKind::NotFound.into()),
            (None, _) => {
                let id = inner.next_id;
                inner.next_id += 1;
                inner.names.insert(path.to_owned(), id);
                inner.contents.insert(id, Content::default());
                id
            }
        };
        Ok(FaultFile {
            id,
            inner: Arc::clone(&self.inner),
        })
    }
    async fn create_dir_all(&self, _path: &Path) -> io::Result<()> {
        Ok(())
    }
    async fn list(&self, path: &Path) -> io::Result<Vec<DirEntry>> {
        let mut inner = locked(&self.inner);
        inner.step()?;
        Ok(inner
            .names
            .keys()
            .filter(|name| name.parent() == Some(path))
            .map(|name| DirEntry {
                name: name
                    .file_name()
                    .expect("files have names")
                    .to_string_lossy()
                    .into_owned(),
                is_dir: false,
            })
            .collect())
    }
    async fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut inner = locked(&self.inner);
        inner.step()?;
        let id = inner.names.remove(from).ok_or(io::ErrorKind::NotFound)?;
        inner.names.insert(to.to_owned(), id);
        Ok(())
    }
    async fn remove_file(&self, path: &Path) -> io::Result<()> {
        let mut inner = locked(&self.inner);
        inner.step()?;
        inner
            .names
            .remove(path)
            .map(drop)
            .ok_or_else(|| io::ErrorKind::NotFound.into())
    }
    async fn sync_dir(&self, path: &Path) -> io::Result<()> {
        let mut inner = locked(&self.inner);
        inner.step()?;
        let inner = &mut *inner;
        inner.durable_names.retain(|name, _| name.parent() != Some(path));
        let here = inner.names.iter().filter(|(name, _)| name.parent() == Some(path));
        inner.durable_names.extend(here.map(|(name, id)| (name.clone(), *id)));
        Ok(())
    }
    async fn lock(&self, _path: &Path) -> io::Result<Box<dyn std::any::Any + Send + Sync>> {
        Ok(Box::new(()))
    }
}

impl File for FaultFile {
    async fn read_at(&self, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        let mut inner = locked(&self.inner);
        inner.step()?;
        let seen = &inner.contents[&self.id].seen;
        let start = usize::try_from(offset).expect("tests are small").min(seen.len());
        Ok(seen[start..start.saturating_add(len).min(seen.len())].to_vec())
    }
    async fn write_at(&self, offset: u64, bytes: Bytes) -> io::Result<()> {
        let mut inner = locked(&self.inner);
        let result = inner.step();
        if inner.is_down && inner.crash_at != Some(inner.op_count) {
            return result;
        }
        let offset = usize::try_from(offset).expect("tests are small");
        let content = inner.contents.get_mut(&self.id).expect("it was opened");
        if content.seen.len() < offset + bytes.len() {
            content.seen.resize(offset + bytes.len(), 0);
        }
        content.seen[offset..offset + bytes.len()].copy_from_slice(&bytes);
        for sector in offset / SECTOR..(offset + bytes.len()).div_ceil(SECTOR) {
            if content.given_up.remove(&sector) {
                let start = sector * SECTOR;
                let end = (start + SECTOR).min(content.seen.len());
                let whole = Bytes::copy_from_slice(&content.seen[start..end]);
                content.unsynced.push((start, whole));
            }
        }
        content.unsynced.push((offset, bytes));
        result
    }
    async fn sync_data(&self) -> io::Result<()> {
        let mut inner = locked(&self.inner);
        let result = inner.step();
        if inner.is_down && inner.crash_at != Some(inner.op_count) {
            return result;
        }
        let content = inner.contents.get_mut(&self.id).expect("it was opened");
        if result.is_err() {
            let sectors = |(offset, bytes): &(usize, Bytes)| offset / SECTOR..(offset + bytes.len()).div_ceil(SECTOR);
            content.given_up.extend(content.unsynced.iter().flat_map(sectors));
            return result;
        }
        let mut durable = content.seen.clone();
        for sector in &content.given_up {
            let range = sector * SECTOR..((sector + 1) * SECTOR).min(durable.len());
            for at in range {
                durable[at] = content.durable.get(at).copied().unwrap_or(0);
            }
        }
        content.durable = durable;
        content.unsynced.clear();
        Ok(())
    }
    async fn sync_all(&self) -> io::Result<()> {
        self.sync_data().await
    }
    async fn len_bytes(&self) -> io::Result<u64> {
        let mut inner = locked(&self.inner);
        inner.step()?;
        Ok(inner.contents[&self.id].seen.len() as u64)
    }
    async fn set_len_bytes(&self, len_bytes: u64) -> io::Result<()> {
        let mut inner = locked(&self.inner);
        inner.step()?;
        let len = usize::try_from(len_bytes).expect("tests are small");
        let content = inner.contents.get_mut(&self.id).expect("it was opened");
        content.seen.resize(len, 0);
        content.durable.resize(len.min(content.durable.len()), 0);
        content.unsynced.retain(|(offset, bytes)| offset + bytes.len() <= len);
        Ok(())
    }
}

/// A door without clock, network and processes.
#[derive(Clone, Debug, Default)]
pub struct FaultRt {
    pub disk: FaultDisk,
}

/// There is none of it.
pub enum Never {}

impl Listener for Never {
    type Stream = tokio::io::DuplexStream;
    async fn accept(&self) -> io::Result<(Self::Stream, SocketAddr)> {
        match *self {}
    }
    fn local_addr(&self) -> io::Result<SocketAddr> {
        match *self {}
    }
}

impl Udp for Never {
    async fn send_to(&self, _datagram: &[u8], _to: SocketAddr) -> io::Result<()> {
        match *self {}
    }
    async fn recv_from(&self, _buffer: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        match *self {}
    }
    fn local_addr(&self) -> io::Result<SocketAddr> {
        match *self {}
    }
}

impl Rt for FaultRt {
    type Stream = tokio::io::DuplexStream;
    type Listener = Never;
    type Udp = Never;
    type Disk = FaultDisk;

    fn now(&self) -> Instant {
        Instant::ZERO
    }
    fn wall_now(&self) -> WallTime {
        WallTime::from_nanos(0)
    }
    async fn sleep_until(&self, _at: Instant) {}
    fn rng(&self, _stream: &str) -> Rng {
        Rng::seed_from_u64(0)
    }
    fn spawn_detached(&self, name: &'static str, _work: BoxFuture<'static, ()>) {
        panic!("there are no tasks behind this door: {name}");
    }
    async fn run_blocking<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        work()
    }
    async fn tcp_connect(&self, _to: SocketAddr) -> io::Result<Self::Stream> {
        Err(io::ErrorKind::Unsupported.into())
    }
    async fn tcp_listen(&self, _at: SocketAddr) -> io::Result<Never> {
        Err(io::ErrorKind::Unsupported.into())
    }
    async fn udp_bind(&self, _at: SocketAddr) -> io::Result<Never> {
        Err(io::ErrorKind::Unsupported.into())
    }
    async fn resolve(&self, _host: &str, _port: u16) -> io::Result<Vec<SocketAddr>> {
        Err(io::ErrorKind::Unsupported.into())
    }
    fn disk(&self) -> FaultDisk {
        self.disk.clone()
    }
    async fn run_process(&self, _spec: ProcessSpec) -> ProcessOutput {
        ProcessOutput {
            end: ProcessEnd::NotStarted("there are no processes behind this door".to_owned()),
            output: Vec::new(),
            output_len_bytes: 0,
        }
    }
    fn host_name(&self) -> String {
        String::new()
    }
    fn interface_addresses(&self) -> Vec<InterfaceAddress> {
        Vec::new()
    }
    fn environment(&self, _name: &str) -> Option<String> {
        None
    }
    fn process_id(&self) -> u32 {
        0
    }
    async fn next_signal(&self) -> Signal {
        futures::future::pending().await
    }
    fn event(&self, _event: Event<'_>) {}
}

impl RaftRt for FaultRt {
    /// For its types: nothing here is timed or spawned.
    type AsyncRuntime = openraft_rt_tokio::TokioRuntime;
}
