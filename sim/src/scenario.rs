//! The scenario language: what a file may say, and what is wrong with one that says something else.
//!
//! In: the text of a TOML file. Out: a checked [`Scenario`], or an error that names the file and the key.
//! Every key is described in `scenarios/README.md`. An unknown key is an error: a misspelt fault would test nothing.
//! Quantities that a file gives as `"a..=b"` are drawn from the seed when the run begins (`Whole::draw`).
//! Not here: what is done with it (`runner`).

use crate::invariant;
use anyhow::{Context as _, Result, bail, ensure};
use quorate_rt::Rng;
use quorate_types::MemberStatus;
use rand_core::Rng as _;
use serde::Deserialize;
use serde::de::{self, Deserializer, Visitor};
use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

/// A whole number, or one drawn from a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Whole {
    pub low: u64,
    pub high: u64,
}

impl Whole {
    pub const fn fixed(number: u64) -> Self {
        Self {
            low: number,
            high: number,
        }
    }
    pub fn draw(self, rng: &mut Rng) -> u64 {
        match (self.high - self.low).checked_add(1) {
            Some(width) => self.low + rng.next_u64() % width,
            None => rng.next_u64(),
        }
    }
}

/// A whole number that may be negative, or one drawn from a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Signed {
    pub low: i64,
    pub high: i64,
}

impl Signed {
    pub fn draw(self, rng: &mut Rng) -> i64 {
        let width = self.high.abs_diff(self.low);
        self.low.wrapping_add_unsigned(Whole { low: 0, high: width }.draw(rng))
    }
    /// The larger of its ends, whatever their signs.
    const fn magnitude(self) -> u64 {
        let (low, high) = (self.low.unsigned_abs(), self.high.unsigned_abs());
        if low > high { low } else { high }
    }
}

/// A probability in 0..=1, or one drawn from a range.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ratio {
    low: f64,
    high: f64,
}

impl Default for Ratio {
    /// Never.
    fn default() -> Self {
        no_loss()
    }
}

impl Ratio {
    pub fn draw(self, rng: &mut Rng) -> f64 {
        self.low + (self.high - self.low) * f64::from(rng.next_u32()) / f64::from(u32::MAX)
    }
}

fn range_of<T: FromStr + PartialOrd + Copy>(text: &str) -> Option<(T, T)> {
    let (low, high) = text.split_once("..=")?;
    let number = |part: &str| part.trim().replace('_', "").parse::<T>().ok();
    let (low, high) = (number(low)?, number(high)?);
    (low <= high).then_some((low, high))
}

impl<'de> Deserialize<'de> for Whole {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;
        impl Visitor<'_> for Reader {
            type Value = Whole;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a whole number or a range \"a..=b\"")
            }
            fn visit_i64<E: de::Error>(self, number: i64) -> Result<Whole, E> {
                let number = u64::try_from(number);
                number
                    .map(Whole::fixed)
                    .map_err(|_| E::custom("a whole number is not negative"))
            }
            fn visit_u64<E: de::Error>(self, number: u64) -> Result<Whole, E> {
                Ok(Whole::fixed(number))
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Whole, E> {
                let found = range_of(text).map(|(low, high)| Whole { low, high });
                found.ok_or_else(|| E::custom(format!("{text:?} is no range \"a..=b\" of whole numbers")))
            }
        }
        deserializer.deserialize_any(Reader)
    }
}

impl<'de> Deserialize<'de> for Signed {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;
        impl Visitor<'_> for Reader {
            type Value = Signed;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a whole number, negative or not, or a range \"a..=b\"")
            }
            fn visit_i64<E: de::Error>(self, number: i64) -> Result<Signed, E> {
                Ok(Signed {
                    low: number,
                    high: number,
                })
            }
            fn visit_u64<E: de::Error>(self, number: u64) -> Result<Signed, E> {
                let number = i64::try_from(number).map_err(|_| E::custom(format!("{number} is too large")))?;
                self.visit_i64(number)
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Signed, E> {
                let found = range_of(text).map(|(low, high)| Signed { low, high });
                found.ok_or_else(|| E::custom(format!("{text:?} is no range \"a..=b\" of whole numbers")))
            }
        }
        deserializer.deserialize_any(Reader)
    }
}

impl<'de> Deserialize<'de> for Ratio {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;
        impl Visitor<'_> for Reader {
            type Value = Ratio;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a ratio in 0..=1 or a range \"a..=b\" of them")
            }
            fn visit_f64<E: de::Error>(self, ratio: f64) -> Result<Ratio, E> {
                match (0.0..=1.0).contains(&ratio) {
                    true => Ok(Ratio {
                        low: ratio,
                        high: ratio,
                    }),
                    false => Err(E::custom(format!("{ratio} is not in 0..=1"))),
                }
            }
            fn visit_i64<E: de::Error>(self, ratio: i64) -> Result<Ratio, E> {
                self.visit_f64(ratio as f64)
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Ratio, E> {
                let found = range_of(text).filter(|(low, high)| (0.0..=1.0).contains(low) && *high <= 1.0);
                let found = found.map(|(low, high)| Ratio { low, high });
                found.ok_or_else(|| E::custom(format!("{text:?} is no range \"a..=b\" in 0..=1")))
            }
        }
        deserializer.deserialize_any(Reader)
    }
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    pub claim: String,
    pub tier: Tier,
    pub seeds: Seeds,
    /// How long faults and workloads go on, from the moment the cluster has formed.
    pub run_ms: Whole,
    pub expect: Expect,
    pub cluster: Cluster,
    #[serde(default, rename = "service")]
    pub services: Vec<Service>,
    #[serde(default, rename = "workload")]
    pub workloads: Vec<Workload>,
    #[serde(default, rename = "fault")]
    pub faults: Vec<Fault>,
    #[serde(default, rename = "require")]
    pub requirements: Vec<Requirement>,
}

#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum Tier {
    Fast,
    Slow,
    Soak,
}

/// Which seeds `cargo xtask sim` runs. A run itself has the one of its command line.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Seeds {
    #[serde(default)]
    pub sweep: u64,
    #[serde(default)]
    pub pinned: Vec<u64>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Expect {
    pub invariants: Vec<String>,
    pub converge_within_ms: u64,
    /// Marks that the run must have hit: else it proved nothing.
    #[serde(default)]
    pub cover: Vec<String>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cluster {
    pub servers: Whole,
    #[serde(default = "none")]
    pub clients: Whole,
    #[serde(default = "default_raft_multiplier")]
    pub raft_multiplier: Whole,
    #[serde(default)]
    pub network: Network,
    /// How many millionths each node's clock is fast or slow; every node draws its own, and the sign.
    #[serde(default = "none")]
    pub clock_drift_ppm: Whole,
    /// Further keys of every agent's configuration file, as Consul names them.
    #[serde(default)]
    pub config: toml::Table,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Network {
    /// Each packet draws its own.
    #[serde(default = "default_latency_ms")]
    pub latency_ms: Whole,
    #[serde(default = "no_loss")]
    pub loss_ratio: Ratio,
}

impl Default for Network {
    fn default() -> Self {
        Self {
            latency_ms: default_latency_ms(),
            loss_ratio: no_loss(),
        }
    }
}

const fn none() -> Whole {
    Whole::fixed(0)
}
const fn once() -> Whole {
    Whole::fixed(1)
}
const fn default_raft_multiplier() -> Whole {
    // Consul's default.
    Whole::fixed(5)
}
const fn default_latency_ms() -> Whole {
    Whole { low: 0, high: 2 }
}
const fn no_loss() -> Ratio {
    Ratio { low: 0.0, high: 0.0 }
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Service {
    pub name: String,
    pub port: u16,
    /// Nodes whose configuration file has it: each gets one instance.
    pub on: Vec<String>,
    #[serde(default)]
    pub tags: Vec<String>,
    pub check: Option<ServiceCheck>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServiceCheck {
    pub kind: CheckKind,
    pub interval_ms: u64,
    #[serde(default)]
    pub timeout_ms: Option<u64>,
}

#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum CheckKind {
    /// A child process, of which the machine's process table says how it ends.
    Script,
    /// A listener of the machine at the service's port.
    Tcp,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Workload {
    KvRegister(KvRegister),
    ServiceDns(ServiceDns),
    Cells(Cells),
    Locks(Locks),
    NodeLock(NodeLock),
    KeyRotation(KeyRotation),
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KvRegister {
    pub keys: u64,
    #[serde(default = "default_clients")]
    pub clients: u64,
    #[serde(default = "default_pause_ms")]
    pub pause_ms: Whole,
    #[serde(default = "half")]
    pub write_ratio: Ratio,
    pub reads: Reads,
    #[serde(default = "default_timeout_ms")]
    pub timeout_ms: u64,
    /// Agents that are asked.
    #[serde(default = "agents")]
    pub at: Vec<String>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reads {
    pub consistent_ratio: f64,
    pub default_ratio: f64,
    pub stale_ratio: f64,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServiceDns {
    pub service: String,
    #[serde(default = "default_interval_ms")]
    pub interval_ms: Whole,
    #[serde(default = "agents")]
    pub at: Vec<String>,
}

/// Gossip keys that are changed while the pool works.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyRotation {
    /// The key that the agents are configured with.
    pub first: String,
    /// Between two rotations.
    #[serde(default = "default_rotation_pause_ms")]
    pub pause_ms: Whole,
    /// No rotation begins later; without it they go on until the story ends.
    pub until_ms: Option<Whole>,
    #[serde(default = "agents")]
    pub at: Vec<String>,
}

const fn default_rotation_pause_ms() -> Whole {
    Whole {
        low: 1_000,
        high: 5_000,
    }
}

/// Groups of keys that are changed and read as one.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cells {
    pub groups: u64,
    /// Keys of a group.
    pub cells: u64,
    #[serde(default = "default_clients")]
    pub clients: u64,
    #[serde(default = "default_pause_ms")]
    pub pause_ms: Whole,
    /// Of the changes; the others are a compare-and-set of one key.
    #[serde(default = "half")]
    pub transaction_ratio: Ratio,
    #[serde(default = "default_timeout_ms")]
    pub timeout_ms: u64,
    #[serde(default = "agents")]
    pub at: Vec<String>,
}

/// Locks that clients compete for.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Locks {
    pub locks: u64,
    #[serde(default = "default_clients")]
    pub clients: u64,
    #[serde(default = "default_lock_pause_ms")]
    pub pause_ms: Whole,
    /// How long a lock is held.
    #[serde(default = "default_hold_ms")]
    pub hold_ms: Whole,
    pub lock_delay_ms: Whole,
    #[serde(default = "default_timeout_ms")]
    pub timeout_ms: u64,
    #[serde(default = "agents")]
    pub at: Vec<String>,
}

/// A lock that one node's session holds, and another's waits for.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeLock {
    pub node: String,
    pub contender: String,
    pub lock_delay_ms: u64,
    /// The fault that ends the node.
    pub fault: String,
    /// The contender has the lock so long after the fault.
    pub within_ms: u64,
}

const fn default_lock_pause_ms() -> Whole {
    Whole { low: 200, high: 1500 }
}
const fn default_hold_ms() -> Whole {
    Whole { low: 500, high: 12_000 }
}
const fn default_clients() -> u64 {
    4
}
const fn default_pause_ms() -> Whole {
    Whole { low: 10, high: 200 }
}
const fn half() -> Ratio {
    Ratio { low: 0.5, high: 0.5 }
}
const fn default_timeout_ms() -> u64 {
    3_000
}
const fn default_interval_ms() -> Whole {
    Whole { low: 200, high: 300 }
}
fn agents() -> Vec<String> {
    vec!["agents".to_owned()]
}

#[derive(Clone, Debug, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Fault {
    /// `side` against all other agents.
    Partition {
        name: Option<String>,
        side: Vec<String>,
        at_ms: Whole,
        until_ms: Whole,
    },
    /// Each of them against everybody, users included.
    Isolate {
        name: Option<String>,
        nodes: Vec<String>,
        at_ms: Whole,
        until_ms: Whole,
    },
    /// `to` hears nothing of `from`.
    OneWayCut {
        name: Option<String>,
        from: Vec<String>,
        to: Vec<String>,
        at_ms: Whole,
        until_ms: Whole,
    },
    Kill {
        name: Option<String>,
        nodes: Vec<String>,
        at_ms: Whole,
        /// Without it they stay down until the faults end.
        down_ms: Option<Whole>,
        #[serde(default)]
        power_loss: bool,
        /// Again after each such pause, until `until_ms`.
        every_ms: Option<Whole>,
        until_ms: Option<Whole>,
        #[serde(default)]
        spare: Spare,
    },
    /// Told to stop (SIGTERM), then started again.
    Restart {
        name: Option<String>,
        nodes: Vec<String>,
        at_ms: Whole,
        /// Again after each such pause, until `until_ms`.
        every_ms: Option<Whole>,
        until_ms: Option<Whole>,
        /// Each time only one of them, one after the other.
        #[serde(default)]
        in_turn: bool,
        /// Keys that their files have from then on.
        #[serde(default)]
        config: toml::Table,
    },
    /// Told to stop and started with another configuration file; at the end with its own again.
    Reconfigure {
        name: Option<String>,
        nodes: Vec<String>,
        at_ms: Whole,
        #[serde(default = "none")]
        down_ms: Whole,
        /// Without it until the faults end.
        until_ms: Option<Whole>,
        /// Keys that take the place of those in the file.
        config: toml::Table,
    },
    /// Killed, and booted with another address.
    Readdress {
        name: Option<String>,
        nodes: Vec<String>,
        at_ms: Whole,
        down_ms: Whole,
        /// They take one another's addresses, the first that of the last.
        #[serde(default)]
        swap: bool,
    },
    /// Killed, and booted with an empty disk.
    Wipe {
        name: Option<String>,
        nodes: Vec<String>,
        at_ms: Whole,
        down_ms: Whole,
    },
    /// Stopped as by SIGSTOP: nothing of them runs while their clocks and their kernels go on.
    Pause {
        name: Option<String>,
        nodes: Vec<String>,
        at_ms: Whole,
        for_ms: Whole,
        /// Again after each such pause, until `until_ms`.
        every_ms: Option<Whole>,
        until_ms: Option<Whole>,
    },
    Disk {
        name: Option<String>,
        nodes: Vec<String>,
        #[serde(default)]
        read_error_ratio: Ratio,
        #[serde(default)]
        write_error_ratio: Ratio,
        #[serde(default)]
        sync_error_ratio: Ratio,
        /// No space is left.
        #[serde(default)]
        full: bool,
        /// Every operation takes this many times longer.
        #[serde(default = "once")]
        slow_factor: Whole,
        /// Agents may end by themselves because of it: they are started again once it is over.
        #[serde(default)]
        may_end: bool,
        at_ms: Whole,
        until_ms: Whole,
    },
    /// The wall clock jumps, and jumps back at the end; the clock drifts otherwise than the cluster's do.
    Clock {
        name: Option<String>,
        nodes: Vec<String>,
        wall_offset_ms: Option<Signed>,
        drift_ppm: Option<Signed>,
        at_ms: Whole,
        until_ms: Whole,
    },
    Loss {
        name: Option<String>,
        #[serde(default)]
        loss_ratio: Ratio,
        /// Of datagrams that arrive twice.
        #[serde(default)]
        duplicate_ratio: Ratio,
        /// Each packet draws its own, so that datagrams overtake one another.
        latency_ms: Option<Whole>,
        at_ms: Whole,
        until_ms: Whole,
    },
    CheckFails {
        name: Option<String>,
        node: String,
        service: String,
        at_ms: Whole,
        until_ms: Whole,
    },
}

#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum Spare {
    #[default]
    Nobody,
    /// Never so many servers down that no quorum is left.
    Quorum,
}

impl Fault {
    pub fn name(&self) -> Option<&str> {
        match self {
            Self::Partition { name, .. }
            | Self::Isolate { name, .. }
            | Self::OneWayCut { name, .. }
            | Self::Kill { name, .. }
            | Self::Restart { name, .. }
            | Self::Reconfigure { name, .. }
            | Self::Readdress { name, .. }
            | Self::Wipe { name, .. }
            | Self::Pause { name, .. }
            | Self::Disk { name, .. }
            | Self::Clock { name, .. }
            | Self::Loss { name, .. }
            | Self::CheckFails { name, .. } => name.as_deref(),
        }
    }
    /// The mark that it fired.
    pub const fn mark(&self) -> &'static str {
        match self {
            Self::Partition { .. } => "fault.partition",
            Self::Isolate { .. } => "fault.isolate",
            Self::OneWayCut { .. } => "fault.one_way_cut",
            Self::Kill { .. } => "fault.kill",
            Self::Restart { .. } => "fault.restart",
            Self::Reconfigure { .. } => "fault.reconfigure",
            Self::Readdress { .. } => "fault.readdress",
            Self::Wipe { .. } => "fault.wipe",
            Self::Pause { .. } => "fault.pause",
            Self::Disk { .. } => "fault.disk",
            Self::Clock { .. } => "fault.clock",
            Self::Loss { .. } => "fault.loss",
            Self::CheckFails { .. } => "fault.check_fails",
        }
    }
    /// Whom it needs.
    pub fn roles(&self) -> Vec<&String> {
        match self {
            Self::Partition { side, .. } => side.iter().collect(),
            Self::Isolate { nodes, .. }
            | Self::Kill { nodes, .. }
            | Self::Restart { nodes, .. }
            | Self::Reconfigure { nodes, .. }
            | Self::Readdress { nodes, .. }
            | Self::Wipe { nodes, .. }
            | Self::Pause { nodes, .. }
            | Self::Disk { nodes, .. }
            | Self::Clock { nodes, .. } => nodes.iter().collect(),
            Self::OneWayCut { from, to, .. } => from.iter().chain(to).collect(),
            Self::CheckFails { node, .. } => vec![node],
            Self::Loss { .. } => Vec::new(),
        }
    }

    /// What no type says: quantities that mean nothing, and faults that do nothing.
    fn check(&self) -> Result<()> {
        if let Self::Kill { every_ms, until_ms, .. }
        | Self::Restart { every_ms, until_ms, .. }
        | Self::Pause { every_ms, until_ms, .. } = self
        {
            ensure!(
                every_ms.is_some() == until_ms.is_some(),
                "`fault.every_ms` and `fault.until_ms` need each other"
            );
            ensure!(
                every_ms.is_none_or(|every_ms| every_ms.low > 0),
                "`fault.every_ms` is not 0"
            );
        }
        match self {
            Self::Restart {
                in_turn: true,
                every_ms,
                ..
            } => ensure!(every_ms.is_some(), "`fault.in_turn` needs `every_ms`"),
            Self::Reconfigure { config, .. } => ensure!(!config.is_empty(), "`fault.config` changes nothing"),
            Self::Readdress { nodes, swap: true, .. } => {
                ensure!(nodes.len() > 1, "`fault.swap` needs two nodes")
            }
            Self::Pause { for_ms, every_ms, .. } => {
                ensure!(for_ms.low > 0, "`fault.for_ms` is not 0");
                ensure!(
                    every_ms.is_none_or(|every_ms| every_ms.low > for_ms.high),
                    "`fault.every_ms` counts from pause to pause: it is longer than `for_ms`"
                );
            }
            Self::Disk {
                read_error_ratio,
                write_error_ratio,
                sync_error_ratio,
                full,
                slow_factor,
                ..
            } => {
                let is_faulty = [read_error_ratio, write_error_ratio, sync_error_ratio]
                    .iter()
                    .any(|ratio| ratio.high > 0.0);
                ensure!(
                    (1..=SLOW_FACTOR_MAX).contains(&slow_factor.low) && slow_factor.high <= SLOW_FACTOR_MAX,
                    "`fault.slow_factor` is in 1..={SLOW_FACTOR_MAX}"
                );
                ensure!(
                    is_faulty || *full || slow_factor.high > 1,
                    "`fault`: nothing is wrong with this disk"
                );
            }
            Self::Clock {
                wall_offset_ms,
                drift_ppm,
                ..
            } => {
                ensure!(
                    wall_offset_ms.is_some() || drift_ppm.is_some(),
                    "`fault`: a clock needs `wall_offset_ms` or `drift_ppm`"
                );
                ensure!(
                    wall_offset_ms.is_none_or(|offset| offset.magnitude() <= WALL_OFFSET_MS_MAX),
                    "`fault.wall_offset_ms`: at most {WALL_OFFSET_MS_MAX} either way"
                );
                ensure!(
                    drift_ppm.is_none_or(|drift| drift.magnitude() <= DRIFT_PPM_MAX),
                    "`fault.drift_ppm`: at most {DRIFT_PPM_MAX} either way"
                );
            }
            Self::Loss {
                loss_ratio,
                duplicate_ratio,
                latency_ms,
                ..
            } => ensure!(
                loss_ratio.high > 0.0 || duplicate_ratio.high > 0.0 || latency_ms.is_some(),
                "`fault`: loss needs `loss_ratio`, `duplicate_ratio` or `latency_ms`"
            ),
            _ => {}
        }
        Ok(())
    }
}

/// A disk this much slower has syncs of two seconds.
const SLOW_FACTOR_MAX: u64 = 1_000;
/// Ten years.
const WALL_OFFSET_MS_MAX: u64 = 315_360_000_000;
const DRIFT_PPM_MAX: u64 = 900_000;

/// What must be seen, in a window that opens `within_ms` after the moment `after` and closes at `until`.
///
/// A moment is `start`, `end`, a fault's name (it begins), or that name with `.end` (it ends).
#[derive(Clone, Debug, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Requirement {
    /// Every DNS answer of these agents has the instance on `node`.
    DnsLists {
        service: String,
        node: String,
        #[serde(flatten)]
        window: Window,
    },
    /// No DNS answer has it.
    DnsLacks {
        service: String,
        node: String,
        #[serde(flatten)]
        window: Window,
    },
    /// Every answer of `/v1/health/node?stale` has the check in this status.
    CheckIs {
        node: String,
        check: String,
        status: String,
        #[serde(flatten)]
        window: Window,
    },
    /// Every answer of `/v1/agent/members` has the member in this status.
    MemberIs {
        node: String,
        status: String,
        #[serde(flatten)]
        window: Window,
    },
    /// No agent declares one of these members failed, even for a moment.
    NeverFailed {
        #[serde(default = "agents")]
        nodes: Vec<String>,
        #[serde(flatten)]
        window: Window,
    },
    /// The agent on `node` ends by itself between the moment and the window's opening.
    Ends {
        node: String,
        #[serde(flatten)]
        window: Window,
    },
    /// Every question is answered at once, with instances: DNS, `/v1/health/service?stale` and `/v1/kv?stale`.
    ReadsGoOn {
        service: String,
        #[serde(flatten)]
        window: Window,
    },
    /// A write is acknowledged before the window opens.
    WritesResume {
        #[serde(flatten)]
        window: Window,
    },
    /// Every write asked within the window is answered within `answer_ms`, with success or with an error.
    WritesAnswered {
        answer_ms: u64,
        #[serde(flatten)]
        window: Window,
    },
    /// None of these operations of `kv_register` succeeds that was called and answered within the window.
    Refused {
        operations: Vec<KvOperation>,
        #[serde(flatten)]
        window: Window,
    },
}

#[derive(Clone, Debug, Deserialize)]
pub struct Window {
    /// The agents asked: those that run then.
    #[serde(default = "agents")]
    pub at: Vec<String>,
    #[serde(default = "start")]
    pub after: String,
    #[serde(default)]
    pub within_ms: u64,
    #[serde(default = "end")]
    pub until: String,
}

fn start() -> String {
    "start".to_owned()
}
fn end() -> String {
    "end".to_owned()
}

#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum KvOperation {
    Write,
    ConsistentRead,
    DefaultRead,
    StaleRead,
}

impl Requirement {
    pub const fn window(&self) -> &Window {
        match self {
            Self::DnsLists { window, .. }
            | Self::DnsLacks { window, .. }
            | Self::CheckIs { window, .. }
            | Self::MemberIs { window, .. }
            | Self::NeverFailed { window, .. }
            | Self::Ends { window, .. }
            | Self::ReadsGoOn { window, .. }
            | Self::WritesResume { window }
            | Self::WritesAnswered { window, .. }
            | Self::Refused { window, .. } => window,
        }
    }
    fn service(&self) -> Option<&str> {
        match self {
            Self::DnsLists { service, .. } | Self::DnsLacks { service, .. } | Self::ReadsGoOn { service, .. } => {
                Some(service)
            }
            Self::CheckIs { .. }
            | Self::MemberIs { .. }
            | Self::NeverFailed { .. }
            | Self::Ends { .. }
            | Self::WritesResume { .. }
            | Self::WritesAnswered { .. }
            | Self::Refused { .. } => None,
        }
    }
    /// Whom it is about: one, or those of a list of roles.
    pub fn nodes(&self) -> &[String] {
        match self {
            Self::DnsLists { node, .. }
            | Self::DnsLacks { node, .. }
            | Self::CheckIs { node, .. }
            | Self::MemberIs { node, .. }
            | Self::Ends { node, .. } => std::slice::from_ref(node),
            Self::NeverFailed { nodes, .. } => nodes,
            Self::ReadsGoOn { .. } | Self::WritesResume { .. } | Self::WritesAnswered { .. } | Self::Refused { .. } => {
                &[]
            }
        }
    }
}

/// The number of a member's status in `/v1/agent/members`, as Serf numbers them.
pub fn member_status(name: &str) -> Option<u8> {
    let all = [
        MemberStatus::Alive,
        MemberStatus::Leaving,
        MemberStatus::Left,
        MemberStatus::Failed,
    ];
    let found = all.into_iter().find(|status| status.as_str() == name);
    found.map(MemberStatus::as_number)
}

/// Roles that are resolved when they are needed. `serverN`, `clientN` and faults' names come beside them.
pub const ROLES: &[&str] = &[
    "leader",
    "any_follower",
    "any_server",
    "any_client",
    "servers",
    "clients",
    "agents",
];

/// What `expect.cover` may name: counted by the runner and the workloads.
pub const MARKS: &[&str] = &[
    "agent.ended",
    "agent.restarted",
    "cells.cas_done",
    "cells.cas_refused",
    "cells.read",
    "cells.rolled_back",
    "cells.transaction_done",
    "cells.transaction_refused",
    "cells.unknown",
    "dns.answered",
    "dns.empty",
    "dns.unanswered",
    "fault.check_fails",
    "fault.clock",
    "fault.disk",
    "fault.isolate",
    "fault.kill",
    "fault.loss",
    "fault.one_way_cut",
    "fault.partition",
    "fault.pause",
    "fault.readdress",
    "fault.reconfigure",
    "fault.restart",
    "fault.wipe",
    "gossip.conflict",
    "gossip.failed",
    "gossip.refuted",
    "gossip.suspected",
    "keyring.refused",
    "keyring.rotated",
    "kv.consistent_read_ok",
    "kv.default_read_ok",
    "kv.read_refused",
    "kv.stale_read_ok",
    "kv.write_failed",
    "kv.write_ok",
    "kv.write_unknown",
    "lock.abandoned",
    "lock.acquired",
    "lock.destroyed",
    "lock.left_dead_node",
    "lock.refused",
    "lock.released",
    "lock.taken_over",
    "lock.unknown",
    "lock.was_lost",
    "raft.leader_changed",
];

impl Scenario {
    /// Reads a file's text.
    pub fn parse(file: &str, text: &str) -> Result<Self> {
        let scenario: Self = toml::from_str(text).with_context(|| format!("read {file}"))?;
        scenario.check().with_context(|| format!("read {file}"))?;
        Ok(scenario)
    }

    fn check(&self) -> Result<()> {
        ensure!(!self.claim.trim().is_empty(), "`claim` says nothing");
        ensure!(
            self.cluster.servers.low > 0,
            "`cluster.servers`: a cluster has a server"
        );
        ensure!(self.cluster.servers.high <= 9, "`cluster.servers`: at most 9");
        ensure!(
            self.cluster.clock_drift_ppm.high <= 100_000,
            "`cluster.clock_drift_ppm`: at most 100000"
        );
        ensure!(self.cluster.clients.high <= 100, "`cluster.clients`: at most 100");
        for name in &self.expect.invariants {
            ensure!(
                name == "all" || invariant::NAMES.contains(&name.as_str()),
                "`expect.invariants`: {name:?} is none of \"all\", {:?}",
                invariant::NAMES
            );
        }
        for mark in &self.expect.cover {
            ensure!(
                MARKS.contains(&mark.as_str()),
                "`expect.cover`: {mark:?} is none of {MARKS:?}"
            );
        }
        let mut names = BTreeSet::new();
        for fault in &self.faults {
            for role in fault.roles() {
                self.check_role(role, &names)?;
            }
            if let Some(name) = fault.name() {
                ensure!(
                    names.insert(name)
                        && !self.is_role(name)
                        && name != "start"
                        && name != "end"
                        && !name.contains('.'),
                    "`fault.name`: {name:?} is taken"
                );
            }
            fault.check()?;
            if let Fault::CheckFails { service, .. } = fault {
                let service = self.service(service)?;
                ensure!(
                    service.check.is_some(),
                    "`fault.service`: {} has no check",
                    service.name
                );
            }
        }
        for service in &self.services {
            ensure!(!service.on.is_empty(), "`service.on`: {} is on no node", service.name);
            for node in &service.on {
                ensure!(self.is_node(node), "`service.on`: no node is called {node:?}");
            }
        }
        for workload in &self.workloads {
            let at = match workload {
                Workload::KvRegister(kv) => {
                    let reads = &kv.reads;
                    let sum = reads.consistent_ratio + reads.default_ratio + reads.stale_ratio;
                    ensure!(
                        (sum - 1.0).abs() < 1e-9,
                        "`workload.reads`: the ratios add up to {sum}, not to 1"
                    );
                    ensure!(kv.keys > 0 && kv.clients > 0, "`workload`: it needs keys and clients");
                    &kv.at
                }
                Workload::ServiceDns(dns) => {
                    self.service(&dns.service)?;
                    &dns.at
                }
                Workload::KeyRotation(rotation) => {
                    let encrypt = self.cluster.config.get("encrypt").and_then(toml::Value::as_str);
                    ensure!(
                        encrypt == Some(&rotation.first),
                        "`workload.first` is not `cluster.config.encrypt`"
                    );
                    &rotation.at
                }
                Workload::Cells(cells) => {
                    let has_all = cells.groups > 0 && cells.cells > 0 && cells.clients > 0;
                    ensure!(has_all, "`workload`: it needs groups, cells and clients");
                    &cells.at
                }
                Workload::Locks(locks) => {
                    let has_all = locks.locks > 0 && locks.clients > 0;
                    ensure!(has_all, "`workload`: it needs locks and clients");
                    &locks.at
                }
                Workload::NodeLock(lock) => {
                    ensure!(
                        names.contains(lock.fault.as_str()),
                        "`workload.fault`: no fault is called {:?}",
                        lock.fault
                    );
                    for node in [&lock.node, &lock.contender] {
                        ensure!(self.is_node(node), "`workload`: no node is called {node:?}");
                    }
                    continue;
                }
            };
            for role in at {
                self.check_role(role, &names)?;
            }
        }
        for requirement in &self.requirements {
            if let Some(service) = requirement.service() {
                self.service(service)?;
            }
            if let Requirement::Refused { operations, .. } = requirement {
                let is_kv = |workload: &Workload| matches!(workload, Workload::KvRegister(_));
                ensure!(
                    self.workloads.iter().any(is_kv),
                    "`require`: refused needs a kv_register workload"
                );
                ensure!(!operations.is_empty(), "`require.operations` names none");
            }
            if let Requirement::MemberIs { status, .. } = requirement {
                ensure!(
                    member_status(status).is_some(),
                    "`require.status`: {status:?} is no status of a member: alive, leaving, left, failed"
                );
            }
            let window = requirement.window();
            for role in window.at.iter().chain(requirement.nodes()) {
                self.check_role(role, &names)?;
            }
            for moment in [&window.after, &window.until] {
                let name = moment.strip_suffix(".end").unwrap_or(moment);
                let known = matches!(moment.as_str(), "start" | "end") || names.contains(name);
                ensure!(
                    known,
                    "`require`: {moment:?} is no moment: start, end, or a fault's name with or without .end"
                );
            }
        }
        Ok(())
    }

    pub fn service(&self, name: &str) -> Result<&Service> {
        let found = self.services.iter().find(|service| service.name == name);
        found.with_context(|| format!("no service is called {name:?}"))
    }
    /// A node there is whatever the seed draws.
    fn is_node(&self, name: &str) -> bool {
        let numbered = |prefix: &str, count: u64| {
            let number = name.strip_prefix(prefix).and_then(|number| number.parse::<u64>().ok());
            number.is_some_and(|number| (1..=count).contains(&number))
        };
        numbered("server", self.cluster.servers.low) || numbered("client", self.cluster.clients.low)
    }
    fn is_role(&self, name: &str) -> bool {
        ROLES.contains(&name) || self.is_node(name)
    }
    fn check_role(&self, name: &str, faults: &BTreeSet<&str>) -> Result<()> {
        if !self.is_role(name) && !faults.contains(name) {
            bail!("{name:?} is no role: {ROLES:?}, serverN, clientN, or the name of an earlier fault");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand_core::SeedableRng as _;

    const GOOD: &str = r#"
        claim = "c"
        tier = "fast"
        seeds = { sweep = 3 }
        run_ms = "1_000..=2000"
        expect.invariants = ["all"]
        expect.converge_within_ms = 1000
        expect.cover = ["kv.write_ok"]
        [cluster]
        servers = 3
        clients = "1..=4"
        network = { latency_ms = "1..=40", loss_ratio = "0.0..=0.05" }
        config.dns_config = { only_passing = false }
        [[service]]
        name = "web"
        port = 80
        on = ["client1"]
        check = { kind = "script", interval_ms = 1000 }
        [[workload]]
        kind = "kv_register"
        keys = 8
        reads = { consistent_ratio = 0.7, default_ratio = 0.2, stale_ratio = 0.1 }
        [[fault]]
        kind = "kill"
        name = "killed"
        nodes = ["leader"]
        at_ms = 100
        [[require]]
        kind = "dns_lacks"
        service = "web"
        node = "client1"
        at = ["servers"]
        after = "killed"
        within_ms = 5
    "#;

    #[track_caller]
    fn check_refused(from: &str, to: &str, reason: &str) {
        assert!(GOOD.contains(from));
        let err = Scenario::parse("f.toml", &GOOD.replace(from, to)).expect_err("it must be refused");
        let text = format!("{err:#}");
        assert!(text.contains("f.toml") && text.contains(reason), "{text}");
    }

    #[test]
    fn a_good_file_is_read() {
        let scenario = Scenario::parse("f.toml", GOOD).unwrap();
        assert_eq!(scenario.cluster.clients, Whole { low: 1, high: 4 });
        assert_eq!(scenario.run_ms, Whole { low: 1000, high: 2000 });
    }

    #[test]
    fn an_unknown_key_anywhere_is_named() {
        check_refused("claim =", "clam = 1\nclaim =", "clam");
        check_refused("sweep = 3", "sweep = 3, swep = 1", "swep");
        check_refused("servers = 3", "servers = 3\nserver = 1", "`server`");
        check_refused("port = 80", "port = 80\nprot = 1", "prot");
        check_refused("keys = 8", "keys = 8\nkees = 1", "kees");
        check_refused("at_ms = 100", "at_ms = 100\nuntill_ms = 1", "untill_ms");
        check_refused("within_ms = 5", "within_ms = 5\nwithin = 1", "`within`");
        check_refused("interval_ms = 1000", "interval = 1", "interval");
    }

    #[test]
    fn what_means_nothing_is_refused_with_the_reason() {
        check_refused("\"all\"", "\"al\"", "al");
        check_refused("kv.write_ok", "kv.write", "kv.write");
        check_refused("[\"leader\"]", "[\"lader\"]", "lader");
        check_refused("[\"client1\"]", "[\"client2\"]", "client2");
        check_refused("after = \"killed\"", "after = \"kiled\"", "kiled");
        check_refused("= 0.7", "= 0.6", "add up");
        check_refused("1..=40", "40..=1", "40..=1");
        check_refused("0.05", "1.05", "0..=1");
        check_refused("kind = \"kill\"", "kind = \"kil\"", "kil");
        check_refused("service = \"web\"", "service = \"wob\"", "wob");
    }

    #[track_caller]
    fn check_fault(fault: &str, reason: Option<&str>) {
        let text = format!("{GOOD}\n[[fault]]\nat_ms = 100\n{fault}");
        match (Scenario::parse("f.toml", &text), reason) {
            (Ok(_), None) => {}
            (Err(err), Some(reason)) => {
                let text = format!("{err:#}");
                assert!(text.contains("f.toml") && text.contains(reason), "{text}");
            }
            (Ok(_), Some(_)) => panic!("it must be refused: {fault}"),
            (Err(err), None) => panic!("{fault}: {err:#}"),
        }
    }

    #[test]
    fn every_kind_of_fault_is_read() {
        for fault in [
            "kind = \"restart\"\nnodes = [\"servers\"]\nevery_ms = 5\nuntil_ms = 50\nin_turn = true",
            "kind = \"reconfigure\"\nnodes = [\"client1\"]\nuntil_ms = 5\nconfig = { node_name = \"server1\" }",
            "kind = \"readdress\"\nnodes = [\"server1\", \"server2\"]\ndown_ms = 5\nswap = true",
            "kind = \"wipe\"\nnodes = [\"any_server\"]\ndown_ms = \"1..=2\"",
            "kind = \"pause\"\nnodes = [\"leader\"]\nfor_ms = 5\nevery_ms = 6\nuntil_ms = 50",
            "kind = \"disk\"\nnodes = [\"leader\"]\nuntil_ms = 5\nsync_error_ratio = 1\nmay_end = true",
            "kind = \"disk\"\nnodes = [\"leader\"]\nuntil_ms = 5\nfull = true",
            "kind = \"disk\"\nnodes = [\"leader\"]\nuntil_ms = 5\nslow_factor = \"1..=9\"",
            "kind = \"clock\"\nnodes = [\"agents\"]\nuntil_ms = 5\nwall_offset_ms = \"-5..=5\"\ndrift_ppm = -7",
            "kind = \"loss\"\nuntil_ms = 5\nduplicate_ratio = 0.5",
        ] {
            check_fault(fault, None);
        }
    }

    #[test]
    fn a_fault_that_means_nothing_is_refused_with_the_reason() {
        let restart = "kind = \"restart\"\nnodes = [\"servers\"]\n";
        check_fault(&format!("{restart}every_ms = 5"), Some("need each other"));
        check_fault(&format!("{restart}until_ms = 5"), Some("need each other"));
        check_fault(&format!("{restart}every_ms = 0\nuntil_ms = 5"), Some("not 0"));
        check_fault(&format!("{restart}in_turn = true"), Some("`every_ms`"));
        let reconfigure = "kind = \"reconfigure\"\nnodes = [\"client1\"]\n";
        check_fault(&format!("{reconfigure}config = {{}}"), Some("changes nothing"));
        check_fault(reconfigure, Some("config"));
        let readdress = "kind = \"readdress\"\nnodes = [\"server1\"]\n";
        check_fault(readdress, Some("down_ms"));
        check_fault(&format!("{readdress}down_ms = 1\nswap = true"), Some("two nodes"));
        check_fault("kind = \"wipe\"\nnodes = [\"servr1\"]\ndown_ms = 1", Some("servr1"));
        let pause = "kind = \"pause\"\nnodes = [\"server1\"]\n";
        check_fault(&format!("{pause}for_ms = 0"), Some("`fault.for_ms`"));
        check_fault(
            &format!("{pause}for_ms = 5\nevery_ms = 5\nuntil_ms = 9"),
            Some("longer than"),
        );
        let disk = "kind = \"disk\"\nnodes = [\"server1\"]\nuntil_ms = 5\n";
        check_fault(disk, Some("nothing is wrong"));
        check_fault(&format!("{disk}read_error_ratio = 1.5"), Some("0..=1"));
        check_fault(&format!("{disk}slow_factor = 0"), Some("slow_factor"));
        check_fault(&format!("{disk}slow_factor = \"2..=5000\""), Some("slow_factor"));
        check_fault(&format!("{disk}fuller = true"), Some("fuller"));
        let clock = "kind = \"clock\"\nnodes = [\"server1\"]\nuntil_ms = 5\n";
        check_fault(clock, Some("`wall_offset_ms` or `drift_ppm`"));
        check_fault(&format!("{clock}wall_offset_ms = -999_999_999_999"), Some("either way"));
        check_fault(&format!("{clock}wall_offset_ms = \"5..=-5\""), Some("5..=-5"));
        check_fault(&format!("{clock}drift_ppm = 1_000_000"), Some("`fault.drift_ppm`"));
        check_fault("kind = \"loss\"\nuntil_ms = 5", Some("loss needs"));
    }

    #[test]
    fn a_requirement_that_means_nothing_is_refused_with_the_reason() {
        let with = |requirement: &str| {
            let text = format!("{GOOD}\n[[require]]\n{requirement}");
            Scenario::parse("f.toml", &text).map_err(|err| format!("{err:#}"))
        };
        assert!(with("kind = \"member_is\"\nnode = \"client1\"\nstatus = \"alive\"").is_ok());
        assert!(with("kind = \"never_failed\"").is_ok());
        assert!(with("kind = \"ends\"\nnode = \"killed\"\nafter = \"killed\"").is_ok());
        let refused = with("kind = \"member_is\"\nnode = \"client1\"\nstatus = \"dead\"").unwrap_err();
        assert!(refused.contains("\"dead\" is no status"), "{refused}");
        let refused = with("kind = \"never_failed\"\nnodes = [\"clint1\"]").unwrap_err();
        assert!(refused.contains("clint1"), "{refused}");
    }

    #[test]
    fn draws_cover_their_range_and_nothing_else() {
        let mut rng = Rng::from_seed([1; 32]);
        let drawn: BTreeSet<u64> = (0..200).map(|_| Whole { low: 3, high: 5 }.draw(&mut rng)).collect();
        assert_eq!(drawn, BTreeSet::from([3, 4, 5]));
        assert_eq!(Whole::fixed(9).draw(&mut rng), 9);
        let signed = Signed { low: -1, high: 1 };
        let drawn: BTreeSet<i64> = (0..200).map(|_| signed.draw(&mut rng)).collect();
        assert_eq!(drawn, BTreeSet::from([-1, 0, 1]));
        let ratio = Ratio { low: 0.25, high: 0.5 };
        assert!((0..200).all(|_| (0.25..=0.5).contains(&ratio.draw(&mut rng))));
    }
}
