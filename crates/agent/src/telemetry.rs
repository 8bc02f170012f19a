//! What the agent measured: gauges, counters and samples, and what the last complete interval made of them.
//!
//! In: values, told as things happen or collected now and then (`metrics`), and the end of each interval. Out:
//! `http-api`'s [`Metrics`]. Aggregation is that of go-metrics' in-memory sink, which Consul's API shows.
//! Promises: at most [`METRIC_COUNT_MAX`] metrics are kept, beyond which new ones are dropped and counted; a metric's
//! memory is bounded; who tells a value through a handle waits for nobody but those who tell of the same metric.
//! Not here: clocks (intervals end when `end_interval` says so), which metrics there are (`metrics`).

use crate::router::locked;
use quorate_http_api::{Gauge, MetricId, Metrics, Sampled};
use quorate_types::WallTime;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// go-metrics' and Consul's.
pub(crate) const INTERVAL: Duration = Duration::from_secs(10);
/// Some hundred are usual; members' names and links may make more.
const METRIC_COUNT_MAX: usize = 4096;
/// Values of a sample that are kept for its quantiles.
const RECENT_COUNT_MAX: usize = 512;

#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Aggregate {
    count: u64,
    sum: f64,
    sum_of_squares: f64,
    min: f64,
    max: f64,
}

impl Aggregate {
    fn add(&mut self, value: f64) {
        (self.min, self.max) = match self.count {
            0 => (value, value),
            _ => (self.min.min(value), self.max.max(value)),
        };
        self.count += 1;
        self.sum += value;
        self.sum_of_squares += value * value;
    }
}

/// The values of one counter or sample.
#[derive(Debug, Default)]
struct Series {
    current: Aggregate,
    last: Aggregate,
    total_count: u64,
    total_sum: f64,
    /// The last values, the next one going to `recent_next`; only of samples.
    recent: Vec<f64>,
    recent_next: usize,
    idle: Duration,
}

impl Series {
    fn add(&mut self, value: f64, is_sample: bool) {
        self.current.add(value);
        self.total_count += 1;
        self.total_sum += value;
        self.idle = Duration::ZERO;
        if !is_sample {
            return;
        }
        if self.recent.len() < RECENT_COUNT_MAX {
            self.recent.push(value);
        } else {
            self.recent[self.recent_next] = value;
        }
        self.recent_next = (self.recent_next + 1) % RECENT_COUNT_MAX;
    }
    fn end_interval(&mut self) {
        self.last = std::mem::take(&mut self.current);
        if self.last.count == 0 {
            self.idle += INTERVAL;
        }
    }
    fn quantiles(&self) -> [f64; 3] {
        let mut sorted = self.recent.clone();
        sorted.sort_by(f64::total_cmp);
        // The smallest value that so many in a hundred do not exceed.
        [50, 90, 99].map(|percent| {
            let rank = (sorted.len() * percent).div_ceil(100);
            sorted.get(rank.saturating_sub(1)).copied().unwrap_or(0.0)
        })
    }
    fn shown(&self, id: &MetricId, shows_current: bool) -> Sampled {
        let shown = if shows_current { self.current } else { self.last };
        Sampled {
            id: id.clone(),
            count: shown.count,
            sum: shown.sum,
            sum_of_squares: shown.sum_of_squares,
            min: shown.min,
            max: shown.max,
            total_count: self.total_count,
            total_sum: self.total_sum,
            quantiles: self.quantiles(),
            idle: self.idle,
        }
    }
}

/// One sample's place, for those who tell many values.
#[derive(Clone, Debug, Default)]
pub(crate) struct Timer(Arc<Mutex<Series>>);

impl Timer {
    pub(crate) fn observe(&self, took: Duration) {
        locked(&self.0).add(took.as_secs_f64() * 1000.0, true);
    }
}

#[derive(Debug, Default)]
struct Registry {
    gauges: BTreeMap<MetricId, (f64, Duration)>,
    counters: BTreeMap<MetricId, Series>,
    samples: BTreeMap<MetricId, Timer>,
    /// What counters that others keep stood at when they were last collected.
    totals: BTreeMap<MetricId, u64>,
    /// When the current interval began, and the last one.
    current_began_at: WallTime,
    last_began_at: Option<WallTime>,
    dropped_count: u64,
}

/// A name, which `telemetry.metrics_prefix` is put before, and labels.
pub(crate) fn metric(name: &str, labels: &[(&'static str, &str)]) -> MetricId {
    MetricId {
        name: name.to_owned(),
        labels: labels
            .iter()
            .map(|(name, value)| (*name, (*value).to_owned()))
            .collect(),
    }
}

/// Clones are the same measurements.
#[derive(Clone, Debug, Default)]
pub(crate) struct Telemetry(Arc<Mutex<Registry>>);

impl Registry {
    fn has_room(&mut self) -> bool {
        let has_room = self.gauges.len() + self.counters.len() + self.samples.len() < METRIC_COUNT_MAX;
        self.dropped_count += u64::from(!has_room);
        has_room
    }
}

impl Telemetry {
    pub(crate) fn new(began_at: WallTime) -> Self {
        let telemetry = Self::default();
        locked(&telemetry.0).current_began_at = began_at;
        telemetry
    }
    pub(crate) fn set(&self, id: MetricId, value: f64) {
        let mut registry = locked(&self.0);
        if registry.gauges.contains_key(&id) || registry.has_room() {
            registry.gauges.insert(id, (value, Duration::ZERO));
        }
    }
    /// Forgets the gauges of this name: those that still are will be set again.
    pub(crate) fn clear(&self, name: &str) {
        locked(&self.0).gauges.retain(|id, _| id.name != name);
    }
    pub(crate) fn count(&self, id: MetricId, by: u64) {
        let mut registry = locked(&self.0);
        if registry.counters.contains_key(&id) || registry.has_room() {
            registry.counters.entry(id).or_default().add(by as f64, false);
        }
    }
    /// Of a counter that somebody else keeps: what it stands at.
    pub(crate) fn count_to(&self, id: MetricId, total: u64) {
        let mut registry = locked(&self.0);
        if !registry.totals.contains_key(&id) && registry.totals.len() >= METRIC_COUNT_MAX {
            return;
        }
        let before = registry.totals.insert(id.clone(), total).unwrap_or(0);
        drop(registry);
        // Less than before: it was started anew.
        let by = if total >= before { total - before } else { total };
        if by > 0 {
            self.count(id, by);
        }
    }
    /// Adds one value to a sample.
    pub(crate) fn sample(&self, id: MetricId, value: f64) {
        let timer = self.timer(id);
        locked(&timer.0).add(value, true);
    }
    pub(crate) fn timer(&self, id: MetricId) -> Timer {
        let mut registry = locked(&self.0);
        if let Some(timer) = registry.samples.get(&id) {
            return timer.clone();
        }
        // One that there is no room for is told values that nobody sees.
        let timer = Timer::default();
        if registry.has_room() {
            registry.samples.insert(id, timer.clone());
        }
        timer
    }
    /// Values of metrics for which there was no room.
    pub(crate) fn dropped_count(&self) -> u64 {
        locked(&self.0).dropped_count
    }
    /// An interval is over, and the next begins.
    pub(crate) fn end_interval(&self, now: WallTime) {
        let mut registry = locked(&self.0);
        registry.last_began_at = Some(registry.current_began_at);
        registry.current_began_at = now;
        for (_, idle) in registry.gauges.values_mut() {
            *idle += INTERVAL;
        }
        for series in registry.counters.values_mut() {
            series.end_interval();
        }
        for timer in registry.samples.values() {
            locked(&timer.0).end_interval();
        }
    }
    /// What the last complete interval saw; before its end, what the first one saw so far.
    pub(crate) fn shown(&self, settings: &crate::config::Telemetry, host_name: String) -> Metrics {
        let registry = locked(&self.0);
        let shows_current = registry.last_began_at.is_none();
        let prefixed = |id: &MetricId| MetricId {
            name: format!("{}.{}", settings.metrics_prefix, id.name),
            labels: id.labels.clone(),
        };
        let is_wanted = |id: &MetricId| is_wanted(&id.name, &settings.prefix_filter, settings.filter_default);
        let gauges = registry.gauges.iter().map(|(id, (value, idle))| Gauge {
            id: prefixed(id),
            value: *value,
            idle: *idle,
        });
        let counters = registry.counters.iter();
        let counters = counters.map(|(id, series)| series.shown(&prefixed(id), shows_current));
        let samples = registry.samples.iter();
        let samples = samples.map(|(id, timer)| locked(&timer.0).shown(&prefixed(id), shows_current));
        Metrics {
            began_at: registry.last_began_at.unwrap_or(registry.current_began_at),
            interval: INTERVAL,
            gauges: gauges.filter(|gauge| is_wanted(&gauge.id)).collect(),
            counters: counters.filter(|counter| is_wanted(&counter.id)).collect(),
            samples: samples
                .filter(|sample| sample.total_count > 0 && is_wanted(&sample.id))
                .collect(),
            host_name: (!settings.disable_hostname).then_some(host_name),
            prometheus_retention: settings.prometheus_retention_time,
        }
    }
}

/// The longest prefix among the rules (`+consul.raft`, `-consul.raft.rpc`) decides.
fn is_wanted(name: &str, rules: &[String], default: bool) -> bool {
    let matching = rules.iter().filter_map(|rule| {
        let (sign, prefix) = rule.split_at_checked(1)?;
        let is_rule = matches!(sign, "+" | "-") && name.starts_with(prefix);
        is_rule.then_some((prefix.len(), sign == "+"))
    });
    matching.max().map_or(default, |(_, is_wanted)| is_wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> crate::config::Telemetry {
        crate::config::Telemetry {
            metrics_prefix: "consul".to_owned(),
            prometheus_retention_time: Duration::ZERO,
            disable_hostname: true,
            prefix_filter: Vec::new(),
            filter_default: true,
        }
    }
    fn at(secs: u64) -> WallTime {
        WallTime::from_nanos(secs * 1_000_000_000)
    }

    #[test]
    fn the_last_complete_interval_is_shown_and_before_its_end_the_first_so_far() {
        let telemetry = Telemetry::new(at(100));
        let id = || metric("serf.events", &[]);
        telemetry.count(id(), 1);
        telemetry.count(id(), 3);
        let shown = telemetry.shown(&settings(), "h".to_owned());
        assert_eq!((shown.began_at, shown.host_name), (at(100), None));
        let counter = &shown.counters[0];
        assert_eq!(counter.id.name, "consul.serf.events");
        assert_eq!(
            (counter.count, counter.sum, counter.min, counter.max),
            (2, 4.0, 1.0, 3.0)
        );

        telemetry.end_interval(at(110));
        telemetry.count(id(), 5);
        let counter = telemetry.shown(&settings(), String::new()).counters.remove(0);
        assert_eq!((counter.count, counter.sum, counter.total_sum), (2, 4.0, 9.0));
        telemetry.end_interval(at(120));
        telemetry.end_interval(at(130));
        let shown = telemetry.shown(&settings(), String::new());
        assert_eq!(shown.began_at, at(120));
        let counter = &shown.counters[0];
        assert_eq!((counter.count, counter.total_sum, counter.idle), (0, 9.0, INTERVAL));
    }

    #[test]
    fn a_counter_kept_elsewhere_counts_what_came_since() {
        let telemetry = Telemetry::new(at(0));
        let sum = || telemetry.shown(&settings(), String::new()).counters[0].total_sum;
        telemetry.count_to(metric("a", &[]), 7);
        telemetry.count_to(metric("a", &[]), 7);
        assert_eq!(sum(), 7.0);
        telemetry.count_to(metric("a", &[]), 9);
        assert_eq!(sum(), 9.0);
        telemetry.count_to(metric("a", &[]), 1);
        assert_eq!(sum(), 10.0);
    }

    #[test]
    fn quantiles_are_of_the_last_values() {
        let telemetry = Telemetry::new(at(0));
        let timer = telemetry.timer(metric("t", &[]));
        for _ in 0..RECENT_COUNT_MAX {
            timer.observe(Duration::from_secs(1000));
        }
        for millis in 1..=RECENT_COUNT_MAX as u64 {
            timer.observe(Duration::from_millis(millis));
        }
        let sample = telemetry.shown(&settings(), String::new()).samples.remove(0);
        assert_eq!(sample.quantiles, [256.0, 461.0, 507.0]);
        assert_eq!(sample.total_count, 2 * RECENT_COUNT_MAX as u64);
    }

    #[test]
    fn memory_is_bounded_whatever_names_come() {
        let telemetry = Telemetry::new(at(0));
        for n in 0..METRIC_COUNT_MAX + 10 {
            telemetry.set(metric(&n.to_string(), &[]), 1.0);
            telemetry.count(metric(&n.to_string(), &[]), 1);
            telemetry.sample(metric(&n.to_string(), &[]), 1.0);
        }
        let shown = telemetry.shown(&settings(), String::new());
        assert_eq!(
            shown.gauges.len() + shown.counters.len() + shown.samples.len(),
            METRIC_COUNT_MAX
        );
        assert!(telemetry.dropped_count() > 0);
        telemetry.clear("0");
        assert_eq!(
            telemetry.shown(&settings(), String::new()).gauges.len(),
            shown.gauges.len() - 1
        );
    }

    #[test]
    fn the_longest_rule_decides_what_is_shown() {
        let rules = ["-consul.raft", "+consul.raft.apply", "nonsense"].map(str::to_owned);
        let check = |name: &str, default: bool| is_wanted(name, &rules, default);
        assert!(check("consul.raft.apply", false));
        assert!(!check("consul.raft.commitTime", true));
        assert!(check("consul.serf.events", true));
        assert!(!check("consul.serf.events", false));
    }
}
