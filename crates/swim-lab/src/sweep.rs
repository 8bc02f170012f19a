//! Many runs of one setting, on several threads, put together.
//!
//! Promises: the result depends on the setting, the seed and the runs chosen, not on the number of threads.

use crate::paper::{
    Anomaly, IntervalOutcome, Setting, ThresholdOutcome, interval_grid, run_interval, run_threshold, sample,
    seed_of_run, threshold_grid,
};
use futures::future::join_all;
use quorate_rt::Rt;
use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// Which runs, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    pub seed: u64,
    pub threads: usize,
    /// Interval runs drawn from the grid; all of them beyond its size.
    pub interval_count: usize,
    pub threshold_count: usize,
}

/// All results of `work` on `0..count`, in order, made by `threads` threads.
pub async fn in_parallel<R: Rt, T: Send + 'static>(
    rt: &R,
    threads: usize,
    count: usize,
    work: impl Fn(usize) -> T + Send + Sync + 'static,
) -> Vec<T> {
    let work = Arc::new(work);
    let next = Arc::new(AtomicUsize::new(0));
    let workers = (0..threads.clamp(1, count.max(1))).map(|_| {
        let (work, next) = (Arc::clone(&work), Arc::clone(&next));
        rt.run_blocking(move || {
            let numbers = std::iter::from_fn(|| Some(next.fetch_add(1, Ordering::Relaxed)));
            let numbers = numbers.take_while(|number| *number < count);
            numbers.map(|number| (number, work(number))).collect::<Vec<_>>()
        })
    });
    let done: BTreeMap<usize, T> = join_all(workers).await.into_iter().flatten().collect();
    assert_eq!(done.len(), count, "each number was worked on");
    done.into_values().collect()
}

/// Seconds at ranks of a sorted list.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Quantiles {
    pub count: usize,
    pub median_s: f64,
    pub p99_s: f64,
    pub p999_s: f64,
}

impl Quantiles {
    pub fn of(mut spans: Vec<Duration>) -> Option<Self> {
        spans.sort_unstable();
        let last = spans.len().checked_sub(1)?;
        // The smallest that at least this share does not exceed.
        let at = |permille: usize| spans[(spans.len() * permille).div_ceil(1000).saturating_sub(1).min(last)];
        Some(Self {
            count: spans.len(),
            median_s: at(500).as_secs_f64(),
            p99_s: at(990).as_secs_f64(),
            p999_s: at(999).as_secs_f64(),
        })
    }
}

/// FP by one parameter of the runs: its value, the runs, FP and FP-.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Share {
    pub value: u64,
    pub runs: u64,
    pub fp: u64,
    pub fp_healthy: u64,
}

/// A row of the tables.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Row {
    pub label: String,
    pub interval_runs: u64,
    pub fp: u64,
    pub fp_healthy: u64,
    pub messages: u64,
    pub bytes: u64,
    pub threshold_runs: u64,
    pub first: Option<Quantiles>,
    pub full: Option<Quantiles>,
    /// Of members with an anomaly in Threshold runs: held for failed by somebody, by all, by nobody.
    pub detected: u64,
    pub detected_by_all: u64,
    pub undetected: u64,
    pub by_concurrent: Vec<Share>,
    pub by_duration: Vec<Share>,
    pub by_interval: Vec<Share>,
    /// Calls into cores: the work, for whom measures its speed.
    pub steps: u64,
}

impl Row {
    pub fn fp_per_run(&self) -> f64 {
        self.fp as f64 / self.interval_runs.max(1) as f64
    }
    pub fn fp_healthy_per_run(&self) -> f64 {
        self.fp_healthy as f64 / self.interval_runs.max(1) as f64
    }
}

/// Runs one setting.
pub async fn sweep<R: Rt>(rt: &R, setting: &Setting, plan: Plan) -> Row {
    let shared = Arc::new(setting.clone());
    let grid = interval_grid();
    let chosen = sample(grid.len(), plan.interval_count, plan.seed);
    let setting_of_it = Arc::clone(&shared);
    let outcomes = in_parallel(rt, plan.threads, chosen.len(), move |place| {
        let number = chosen[place];
        let seed = seed_of_run(plan.seed, number);
        (grid[number], run_interval(&setting_of_it, grid[number], seed))
    })
    .await;
    let mut row = Row {
        label: setting.label.clone(),
        ..Row::default()
    };
    add_intervals(&mut row, &outcomes);
    let grid = threshold_grid();
    let chosen = sample(grid.len(), plan.threshold_count, plan.seed);
    let outcomes = in_parallel(rt, plan.threads, chosen.len(), move |place| {
        let number = chosen[place];
        run_threshold(&shared, grid[number], seed_of_run(!plan.seed, number))
    })
    .await;
    add_thresholds(&mut row, &outcomes);
    row
}

fn add_intervals(row: &mut Row, outcomes: &[(Anomaly, IntervalOutcome)]) {
    let (mut concurrent, mut duration, mut interval) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
    for (anomaly, outcome) in outcomes {
        row.interval_runs += 1;
        row.fp += outcome.false_positives;
        row.fp_healthy += outcome.false_positives_at_healthy;
        row.messages += outcome.totals.messages();
        row.bytes += outcome.totals.bytes();
        row.steps += outcome.totals.steps;
        let add = |shares: &mut BTreeMap<u64, Share>, value: u64| {
            let share = shares.entry(value).or_insert_with(|| Share {
                value,
                ..Share::default()
            });
            share.runs += 1;
            share.fp += outcome.false_positives;
            share.fp_healthy += outcome.false_positives_at_healthy;
        };
        add(&mut concurrent, u64::from(anomaly.concurrent));
        add(&mut duration, anomaly.duration_ms);
        add(&mut interval, anomaly.interval_ms.unwrap_or_default());
    }
    row.by_concurrent = concurrent.into_values().collect();
    row.by_duration = duration.into_values().collect();
    row.by_interval = interval.into_values().collect();
}

fn add_thresholds(row: &mut Row, outcomes: &[ThresholdOutcome]) {
    let detections = || outcomes.iter().flat_map(|outcome| &outcome.detections);
    row.threshold_runs = outcomes.len() as u64;
    row.undetected = outcomes.iter().map(|outcome| outcome.undetected_count).sum();
    row.detected = detections().count() as u64;
    row.first = Quantiles::of(detections().map(|detection| detection.first).collect());
    let full: Vec<Duration> = detections().filter_map(|detection| detection.full).collect();
    row.detected_by_all = full.len() as u64;
    row.full = Quantiles::of(full);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::paper::{Parts, Tuning};
    use quorate_rt::production::block_on;

    #[test]
    fn a_sweep_is_the_same_whatever_the_threads() {
        let setting = Setting::new(Parts::Lifeguard, Tuning { alpha: 2, beta: 2 });
        let plan = |threads| Plan {
            seed: 7,
            threads,
            interval_count: 2,
            threshold_count: 1,
        };
        let swept = |threads| {
            let setting = setting.clone();
            block_on(1, |rt| async move { sweep(&rt, &setting, plan(threads)).await }).unwrap()
        };
        let alone = swept(1);
        assert_eq!(alone, swept(3));
        assert_eq!((alone.interval_runs, alone.threshold_runs), (2, 1));
        assert!(alone.messages > 0 && alone.bytes > 10 * alone.messages);
    }

    #[test]
    fn results_keep_the_order_of_their_numbers() {
        let doubled =
            |count| block_on(1, move |rt| async move { in_parallel(&rt, 4, count, |n| n * 2).await }).unwrap();
        assert_eq!(doubled(100), (0..100).map(|n| n * 2).collect::<Vec<_>>());
        assert_eq!(doubled(0), Vec::<usize>::new());
    }

    #[test]
    fn quantiles_are_nearest_ranks() {
        let spans = (1..=1000).map(Duration::from_secs).collect();
        let quantiles = Quantiles::of(spans).unwrap();
        assert_eq!(
            (quantiles.median_s, quantiles.p99_s, quantiles.p999_s),
            (500.0, 990.0, 999.0)
        );
        let one = Quantiles::of(vec![Duration::from_secs(3)]).unwrap();
        assert_eq!((one.median_s, one.p999_s), (3.0, 3.0));
        assert_eq!(Quantiles::of(Vec::new()), None);
    }
}
