//! The experiments of "Lifeguard: Local Health Awareness for More Accurate Failure Detection" (Dadgar, Phillips, Currey;
//! DSN 2018; arXiv 1707.00788), section V, and the figures it gives that ours are held against.
//!
//! 128 members, of which C, drawn for each run, have an anomaly: they stop right before they send and right after they
//! receive, all at the same instants (`World::block`).
//! - Threshold run: one anomaly of length D. Told: for each member with the anomaly, how long until the first healthy
//!   member held it for failed, and until all healthy members did.
//! - Interval run: anomalies of length D, I apart, until 120 s. Told: false positives, messages, bytes.
//!
//! A false positive (FP) is the event at one member that another, which has no anomaly in this run, failed; it is also
//! an FP- when the member that holds it for failed has none either. A false failure told to the whole pool so counts
//! once for each member.
//! Where we differ: no processes and no real network, so that only the modelled disturbance disturbs.

use crate::world::{Block, Change, Observation, Totals, World, below};
use quorate_swim::Config;
use quorate_types::Instant;
use rand_chacha::ChaCha8Rng;
use rand_core::SeedableRng as _;
use serde::Serialize;
use std::collections::BTreeSet;
use std::time::Duration;

pub const MEMBER_COUNT: u32 = 128;
/// C: members with the anomaly.
pub const CONCURRENT: [u32; 9] = [1, 4, 8, 12, 16, 20, 24, 28, 32];
/// D: how long an anomaly lasts.
pub const DURATIONS_MS: [u64; 6] = [128, 512, 2048, 8192, 16_384, 32_768];
/// I: between the end of an anomaly and the next.
pub const INTERVALS_MS: [u64; 8] = [1, 4, 16, 64, 256, 1024, 4096, 16_384];
pub const REPEATS: u32 = 10;
/// Alpha and beta of the tuning table.
pub const ALPHAS: [u32; 3] = [2, 4, 5];
pub const BETAS: [u32; 3] = [2, 4, 6];
/// With these the paper compares its configurations.
pub const BASE: Tuning = Tuning { alpha: 5, beta: 6 };
/// memberlist's defaults since, and ours.
pub const DEFAULT: Tuning = Tuning { alpha: 4, beta: 6 };
const INTERVAL_SPAN: Duration = Duration::from_secs(120);
const THRESHOLD_SPAN: Duration = Duration::from_secs(60);
/// Before the first anomaly.
const QUIET: Duration = Duration::from_secs(15);

/// Which of Lifeguard's parts are on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum Parts {
    Swim,
    LhaProbe,
    LhaSuspicion,
    Buddy,
    Lifeguard,
    /// All of Lifeguard, and our own rules.
    Quorate,
}

impl Parts {
    pub const ALL: [Self; 6] = [
        Self::Swim,
        Self::LhaProbe,
        Self::LhaSuspicion,
        Self::Buddy,
        Self::Lifeguard,
        Self::Quorate,
    ];
    pub fn name(self) -> &'static str {
        match self {
            Self::Swim => "SWIM",
            Self::LhaProbe => "LHA-Probe",
            Self::LhaSuspicion => "LHA-Suspicion",
            Self::Buddy => "Buddy System",
            Self::Lifeguard => "Lifeguard",
            Self::Quorate => "Quorate",
        }
    }
    /// As on a command line.
    pub fn parse(text: &str) -> Option<Self> {
        let plain = |name: &str| name.to_ascii_lowercase().replace([' ', '-'], "");
        let wanted = plain(text);
        Self::ALL.into_iter().find(|parts| {
            let name = plain(parts.name());
            name == wanted || name.strip_suffix("system") == Some(&wanted)
        })
    }
}

/// Alpha times log10 of the pool is the shortest suspicion in probe intervals, beta times that the longest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Tuning {
    pub alpha: u32,
    pub beta: u32,
}

/// One row of a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    pub label: String,
    pub config: Config,
    pub block: Block,
}

impl Setting {
    pub fn new(parts: Parts, tuning: Tuning) -> Self {
        let lan = Config {
            suspicion_mult: tuning.alpha,
            suspicion_max_timeout_mult: tuning.beta,
            ..Config::lan()
        };
        let mut config = match parts {
            Parts::Swim | Parts::LhaProbe | Parts::LhaSuspicion | Parts::Buddy => lan.swim(),
            Parts::Lifeguard => lan.lifeguard(),
            Parts::Quorate => lan,
        };
        config.lha_probe |= parts == Parts::LhaProbe;
        config.lha_suspicion |= parts == Parts::LhaSuspicion;
        config.buddy |= parts == Parts::Buddy;
        let label = match (parts, tuning) {
            (Parts::Swim, Tuning { alpha, .. }) => format!("SWIM a{alpha}"),
            (parts, Tuning { alpha, beta }) => format!("{} a{alpha} b{beta}", parts.name()),
        };
        let block = Block::default();
        Self { label, config, block }
    }
    pub fn with_block(mut self, block: Block) -> Self {
        if block == Block::Sends {
            self.label.push_str(" unaware");
        }
        self.block = block;
        self
    }
}

/// What a run disturbs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Anomaly {
    pub concurrent: u32,
    pub duration_ms: u64,
    /// Absent in Threshold runs.
    pub interval_ms: Option<u64>,
}

/// The 4,320 Interval runs of one configuration, in the order of their numbers.
pub fn interval_grid() -> Vec<Anomaly> {
    let mut grid = Vec::new();
    for concurrent in CONCURRENT {
        for duration_ms in DURATIONS_MS {
            for interval_ms in INTERVALS_MS {
                let anomaly = Anomaly {
                    concurrent,
                    duration_ms,
                    interval_ms: Some(interval_ms),
                };
                grid.extend((0..REPEATS).map(|_| anomaly));
            }
        }
    }
    grid
}
/// The 540 Threshold runs of one configuration.
pub fn threshold_grid() -> Vec<Anomaly> {
    let mut grid = Vec::new();
    for concurrent in CONCURRENT {
        for duration_ms in DURATIONS_MS {
            let anomaly = Anomaly {
                concurrent,
                duration_ms,
                interval_ms: None,
            };
            grid.extend((0..REPEATS).map(|_| anomaly));
        }
    }
    grid
}
/// `count` different numbers of a grid in ascending order, the same for every configuration so that they compare.
pub fn sample(grid_len: usize, count: usize, seed: u64) -> Vec<usize> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed ^ 0x5a4d_504c_4500_0000);
    let mut numbers: Vec<usize> = (0..grid_len).collect();
    for place in 0..count.min(grid_len) {
        let other = place + below(&mut rng, (grid_len - place) as u64) as usize;
        numbers.swap(place, other);
    }
    numbers.truncate(count);
    numbers.sort_unstable();
    numbers
}
/// The seed of one run: the same members are disturbed under every configuration.
pub fn seed_of_run(seed: u64, number: usize) -> u64 {
    seed.wrapping_mul(0x0000_0100_0000_01b3) ^ (number as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// What an Interval run told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IntervalOutcome {
    pub false_positives: u64,
    pub false_positives_at_healthy: u64,
    pub totals: Totals,
}

/// How long one member with an anomaly stayed undetected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Detection {
    pub first: Duration,
    /// Absent when not all healthy members held it for failed.
    pub full: Option<Duration>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ThresholdOutcome {
    /// Of those that were detected at all.
    pub detections: Vec<Detection>,
    pub undetected_count: u64,
}

/// FP and FP- in a history; `disturbed` is sorted.
pub fn count_false_positives(history: &[Observation], disturbed: &[u32]) -> (u64, u64) {
    let is_healthy = |index: u32| disturbed.binary_search(&index).is_err();
    let mut counts = (0, 0);
    for seen in history {
        if seen.change == Change::Failed && is_healthy(seen.subject) {
            counts.0 += 1;
            counts.1 += u64::from(is_healthy(seen.observer));
        }
    }
    counts
}

pub fn run_interval(setting: &Setting, anomaly: Anomaly, seed: u64) -> IntervalOutcome {
    let mut world = World::pool(MEMBER_COUNT, &setting.config, seed);
    world.run_for(QUIET);
    world.observe();
    let before = world.totals();
    let end_at = world.now() + INTERVAL_SPAN;
    let disturbed = world.draw(anomaly.concurrent);
    let interval_ms = anomaly.interval_ms.expect("an Interval run has an interval");
    while world.now() < end_at {
        for index in &disturbed {
            world.block(*index, setting.block);
        }
        world.run_until(end_at.min(world.now() + Duration::from_millis(anomaly.duration_ms)));
        for index in &disturbed {
            world.unblock(*index);
        }
        world.run_until(end_at.min(world.now() + Duration::from_millis(interval_ms)));
    }
    let (false_positives, false_positives_at_healthy) = count_false_positives(world.observations(), &disturbed);
    IntervalOutcome {
        false_positives,
        false_positives_at_healthy,
        totals: world.totals().since(&before),
    }
}

pub fn run_threshold(setting: &Setting, anomaly: Anomaly, seed: u64) -> ThresholdOutcome {
    let mut world = World::pool(MEMBER_COUNT, &setting.config, seed);
    world.run_for(QUIET);
    world.observe();
    let begun_at = world.now();
    let disturbed = world.draw(anomaly.concurrent);
    for index in &disturbed {
        world.block(*index, setting.block);
    }
    world.run_for(Duration::from_millis(anomaly.duration_ms));
    for index in &disturbed {
        world.unblock(*index);
    }
    world.run_until(begun_at + THRESHOLD_SPAN);
    detections(world.observations(), world.len(), &disturbed, begun_at)
}

/// When healthy members held each disturbed one for failed, in a history in the order of time.
fn detections(history: &[Observation], members: u32, disturbed: &[u32], begun_at: Instant) -> ThresholdOutcome {
    let healthy_count = members as usize - disturbed.len();
    let mut outcome = ThresholdOutcome::default();
    for subject in disturbed {
        let mut observers = BTreeSet::new();
        let mut detected_at: Vec<Instant> = Vec::new();
        for seen in history {
            if seen.subject == *subject
                && seen.change == Change::Failed
                && disturbed.binary_search(&seen.observer).is_err()
                && observers.insert(seen.observer)
            {
                detected_at.push(seen.at);
            }
        }
        match detected_at.first() {
            None => outcome.undetected_count += 1,
            Some(first) => outcome.detections.push(Detection {
                first: *first - begun_at,
                full: (detected_at.len() == healthy_count).then(|| detected_at[healthy_count - 1] - begun_at),
            }),
        }
    }
    outcome
}

/// What the paper gives of one of its rows, as far as ours are held against it. Percentages are of SWIM at alpha 5.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Published {
    pub fp_per_run: Option<f64>,
    pub fp_percent: Option<f64>,
    pub fp_healthy_percent: Option<f64>,
    pub first_median_s: Option<f64>,
    pub first_999_s: Option<f64>,
    pub bytes_percent: Option<f64>,
}

pub fn published(parts: Parts, tuning: Tuning) -> Published {
    match (parts, tuning) {
        (Parts::Swim, Tuning { alpha: 5, .. }) => Published {
            fp_per_run: Some(78.5),
            fp_percent: Some(100.0),
            fp_healthy_percent: Some(100.0),
            bytes_percent: Some(100.0),
            ..Published::default()
        },
        (Parts::Lifeguard | Parts::Quorate, DEFAULT) => Published {
            fp_percent: Some(3.18),
            fp_healthy_percent: Some(4.83),
            first_median_s: Some(10.3),
            first_999_s: Some(18.4),
            bytes_percent: Some(98.0),
            ..Published::default()
        },
        _ => Published::default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(at_ms: u64, observer: u32, subject: u32, change: Change) -> Observation {
        Observation {
            at: Instant::from_millis(at_ms),
            observer,
            subject,
            change,
        }
    }

    #[test]
    fn false_positives_are_failures_of_the_healthy_and_at_the_healthy_they_count_twice() {
        let disturbed = [2, 5];
        let history = [
            seen(1, 0, 2, Change::Failed), // right
            seen(2, 2, 0, Change::Failed), // FP at a disturbed member
            seen(3, 5, 2, Change::Failed), // right, whoever says it
            seen(4, 1, 0, Change::Failed), // FP and FP-
            seen(5, 1, 0, Change::Joined),
            seen(6, 1, 0, Change::Failed), // again
        ];
        assert_eq!(count_false_positives(&history, &disturbed), (3, 2));
        assert_eq!(count_false_positives(&[], &disturbed), (0, 0));
    }

    #[test]
    fn detection_is_timed_at_the_healthy_from_the_beginning_of_the_anomaly() {
        let (members, disturbed) = (4, [2, 3]);
        let history = [
            seen(1_500, 3, 2, Change::Failed), // not healthy: does not count
            seen(2_000, 0, 2, Change::Failed),
            seen(2_100, 0, 2, Change::Joined),
            seen(2_500, 0, 2, Change::Failed), // the same observer again
            seen(3_000, 1, 2, Change::Failed),
            seen(4_000, 1, 3, Change::Failed), // never at member 0
        ];
        let outcome = detections(&history, members, &disturbed, Instant::from_millis(1_000));
        let detection = |first, full: Option<u64>| Detection {
            first: Duration::from_millis(first),
            full: full.map(Duration::from_millis),
        };
        assert_eq!(
            outcome.detections,
            [detection(1_000, Some(2_000)), detection(3_000, None)]
        );
        assert_eq!(detections(&[], members, &disturbed, Instant::ZERO).undetected_count, 2);
    }

    #[test]
    fn the_grids_have_the_papers_sizes_and_samples_are_drawn_from_all_of_them() {
        assert_eq!((interval_grid().len(), threshold_grid().len()), (4320, 540));
        let drawn = sample(4320, 400, 1);
        assert_eq!(drawn, sample(4320, 400, 1));
        assert!(drawn.is_sorted_by(|a, b| a < b) && drawn.len() == 400);
        assert!(drawn[0] < 100 && drawn[399] > 4200, "{drawn:?}");
        assert_eq!(sample(540, 1000, 1), (0..540).collect::<Vec<_>>());
    }

    #[test]
    fn configurations_are_found_by_their_names() {
        for parts in Parts::ALL {
            assert_eq!(Parts::parse(parts.name()), Some(parts));
        }
        assert_eq!(Parts::parse("buddy"), Some(Parts::Buddy));
        assert_eq!(Parts::parse("lha-probe"), Some(Parts::LhaProbe));
        assert_eq!(Parts::parse(""), None);
    }

    #[test]
    fn a_dead_member_is_found_and_a_short_anomaly_is_not() {
        let setting = Setting::new(Parts::Swim, BASE);
        let anomaly = |duration_ms| Anomaly {
            concurrent: 2,
            duration_ms,
            interval_ms: None,
        };
        let long = run_threshold(&setting, anomaly(32_768), 3);
        assert_eq!((long.detections.len(), long.undetected_count), (2, 0));
        let first = long.detections[0].first;
        assert!(
            first > Duration::from_secs(10) && first < Duration::from_secs(20),
            "{first:?}"
        );
        assert_eq!(run_threshold(&setting, anomaly(128), 3).undetected_count, 2);
    }
}
