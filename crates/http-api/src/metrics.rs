//! `/v1/agent/metrics`: what the agent measured in the last complete interval, as JSON or in Prometheus' text format.
//!
//! In: [`Metrics`]. Shapes as Consul 1.8.7's, which are those of go-metrics' in-memory sink and of Prometheus' client.
//! Not here: what is measured and when (the agent).

use crate::api::Api;
use crate::backend::Backend;
use crate::call::{Call, Failure, Reply, TEXT};
use crate::json::{FloatJson, list};
use bytes::Bytes;
use http::header::ACCEPT;
use http::{HeaderValue, StatusCode};
use quorate_rt::Rt;
use quorate_types::WallTime;
use serde::Serialize;
use serde::ser::{SerializeMap as _, SerializeStruct as _, Serializer};
use std::fmt::Write as _;
use std::time::Duration;

/// What sets one metric apart from others.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct MetricId {
    /// Parts joined by dots, the first being `telemetry.metrics_prefix`.
    pub name: String,
    pub labels: Vec<(&'static str, String)>,
}

/// A value as it was last seen.
#[derive(Clone, Debug, PartialEq)]
pub struct Gauge {
    pub id: MetricId,
    pub value: f64,
    /// Since it was last told.
    pub idle: Duration,
}

/// Values told one by one: increments of a counter, or durations in milliseconds.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampled {
    pub id: MetricId,
    /// Of the interval.
    pub count: u64,
    pub sum: f64,
    pub sum_of_squares: f64,
    pub min: f64,
    pub max: f64,
    /// Since the agent's start.
    pub total_count: u64,
    pub total_sum: f64,
    /// Of the last values: the median, and what 90 % and 99 % do not exceed.
    pub quantiles: [f64; 3],
    /// Since one was last told.
    pub idle: Duration,
}

/// What was measured, sorted by name.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Metrics {
    /// When the last complete interval began.
    pub began_at: WallTime,
    pub interval: Duration,
    pub gauges: Vec<Gauge>,
    pub counters: Vec<Sampled>,
    pub samples: Vec<Sampled>,
    /// Put after the first part of the gauges' names in JSON.
    pub host_name: Option<String>,
    /// `telemetry.prometheus_retention_time`; zero: Prometheus' format is off.
    pub prometheus_retention: Duration,
}

const QUANTILES: [&str; 3] = ["0.5", "0.9", "0.99"];
const PROMETHEUS: HeaderValue = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");

pub async fn show<R: Rt, B: Backend>(api: Api<R, B>, call: Call) -> Result<Reply, Failure> {
    let metrics = api.backend().metrics();
    let accept = call
        .headers
        .get(ACCEPT)
        .and_then(|accept| accept.to_str().ok())
        .unwrap_or("");
    let wants_prometheus = call.params.get("format") == "prometheus"
        || accept.contains("application/openmetrics-text")
        || accept.contains("version=0.0.4");
    if !wants_prometheus {
        return Ok(call.json(&MetricsJson(&metrics)));
    }
    if metrics.prometheus_retention.is_zero() {
        let text = "Prometheus is not enabled since its retention time is not positive";
        return Ok(Reply::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Some(TEXT),
            Bytes::from_static(text.as_bytes()),
        ));
    }
    Ok(Reply::new(
        StatusCode::OK,
        Some(PROMETHEUS),
        prometheus(&metrics).into(),
    ))
}

/// As Go prints a time in UTC: `2026-11-22 15:05:20 +0000 UTC`.
fn timestamp(at: WallTime) -> String {
    let (days, secs) = (at.as_secs() / 86_400, at.as_secs() % 86_400);
    // Howard Hinnant's civil_from_days, for days after 1970: years begin in March, so that a leap day is a year's last.
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = (month_from_march + 2) % 12 + 1;
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (secs / 3600, secs / 60 % 60, secs % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02} +0000 UTC")
}

struct LabelsJson<'a>(&'a MetricId);

impl Serialize for LabelsJson<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut json = serializer.serialize_map(Some(self.0.labels.len()))?;
        for (name, value) in &self.0.labels {
            json.serialize_entry(name, value)?;
        }
        json.end()
    }
}

struct GaugeJson<'a> {
    gauge: &'a Gauge,
    host_name: Option<&'a str>,
}

impl Serialize for GaugeJson<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Gauge { id, value, .. } = self.gauge;
        let mut name = id.name.clone();
        if let Some(host_name) = self.host_name
            && let Some(dot) = name.find('.')
        {
            name.insert_str(dot, &format!(".{host_name}"));
        }
        let mut json = serializer.serialize_struct("GaugeValue", 3)?;
        json.serialize_field("Name", &name)?;
        json.serialize_field("Value", &FloatJson(*value))?;
        json.serialize_field("Labels", &LabelsJson(id))?;
        json.end()
    }
}

struct SampledJson<'a> {
    sampled: &'a Sampled,
    interval: Duration,
}

impl Serialize for SampledJson<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let sampled = self.sampled;
        let count = sampled.count as f64;
        let mean = if sampled.count == 0 { 0.0 } else { sampled.sum / count };
        let stddev = if sampled.count < 2 {
            0.0
        } else {
            let variance = (count * sampled.sum_of_squares - sampled.sum * sampled.sum) / (count * (count - 1.0));
            // Below zero by rounding only.
            variance.max(0.0).sqrt()
        };
        let mut json = serializer.serialize_struct("SampledValue", 9)?;
        json.serialize_field("Name", &sampled.id.name)?;
        json.serialize_field("Count", &sampled.count)?;
        json.serialize_field("Rate", &FloatJson(sampled.sum / self.interval.as_secs_f64()))?;
        json.serialize_field("Sum", &FloatJson(sampled.sum))?;
        json.serialize_field("Min", &FloatJson(sampled.min))?;
        json.serialize_field("Max", &FloatJson(sampled.max))?;
        json.serialize_field("Mean", &FloatJson(mean))?;
        json.serialize_field("Stddev", &FloatJson(stddev))?;
        json.serialize_field("Labels", &LabelsJson(&sampled.id))?;
        json.end()
    }
}

struct MetricsJson<'a>(&'a Metrics);

impl Serialize for MetricsJson<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let metrics = self.0;
        let in_interval = |sampled: &&Sampled| sampled.count > 0;
        let sampled_json = |sampled| SampledJson {
            sampled,
            interval: metrics.interval,
        };
        let gauge_json = |gauge| GaugeJson {
            gauge,
            host_name: metrics.host_name.as_deref(),
        };
        let counters: Vec<&Sampled> = metrics.counters.iter().filter(in_interval).collect();
        let samples: Vec<&Sampled> = metrics.samples.iter().filter(in_interval).collect();
        let mut json = serializer.serialize_struct("MetricsSummary", 5)?;
        json.serialize_field("Timestamp", &timestamp(metrics.began_at))?;
        json.serialize_field("Gauges", &list(&metrics.gauges, gauge_json))?;
        json.serialize_field("Points", &[(); 0])?;
        json.serialize_field("Counters", &list(&counters, |sampled| sampled_json(sampled)))?;
        json.serialize_field("Samples", &list(&samples, |sampled| sampled_json(sampled)))?;
        json.end()
    }
}

/// A name as Prometheus takes it: letters, digits and underscores.
fn prometheus_name(name: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    name.chars().map(|c| if is_plain(c) { c } else { '_' }).collect()
}

/// `{a="1",b="2"}`, or nothing.
fn prometheus_labels(id: &MetricId, quantile: Option<&str>) -> String {
    let quantile = quantile.map(|quantile| ("quantile", quantile.to_owned()));
    let pairs: Vec<String> = (id.labels.iter().cloned().chain(quantile))
        .map(|(name, value)| {
            let value = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            format!("{name}=\"{value}\"")
        })
        .collect();
    if pairs.is_empty() {
        return String::new();
    }
    format!("{{{}}}", pairs.join(","))
}

fn prometheus(metrics: &Metrics) -> String {
    let mut text = String::new();
    let mut head_of = String::new();
    // Names that differ only in what is no letter would be told of twice: the labels still set their lines apart.
    let mut head = |text: &mut String, name: &str, kind: &str| {
        if head_of != name {
            name.clone_into(&mut head_of);
            let _ = writeln!(text, "# HELP {name} {name}\n# TYPE {name} {kind}");
        }
    };
    let is_fresh = |idle: Duration| idle <= metrics.prometheus_retention;
    // Writing to a string does not fail.
    for gauge in metrics.gauges.iter().filter(|gauge| is_fresh(gauge.idle)) {
        let name = prometheus_name(&gauge.id.name);
        head(&mut text, &name, "gauge");
        let _ = writeln!(text, "{name}{} {}", prometheus_labels(&gauge.id, None), gauge.value);
    }
    for counter in metrics.counters.iter().filter(|counter| is_fresh(counter.idle)) {
        let name = prometheus_name(&counter.id.name);
        head(&mut text, &name, "counter");
        let labels = prometheus_labels(&counter.id, None);
        let _ = writeln!(text, "{name}{labels} {}", counter.total_sum);
    }
    for sample in metrics.samples.iter().filter(|sample| is_fresh(sample.idle)) {
        let name = prometheus_name(&sample.id.name);
        head(&mut text, &name, "summary");
        for (quantile, value) in QUANTILES.iter().zip(sample.quantiles) {
            let _ = writeln!(text, "{name}{} {value}", prometheus_labels(&sample.id, Some(quantile)));
        }
        let labels = prometheus_labels(&sample.id, None);
        let _ = writeln!(text, "{name}_sum{labels} {}", sample.total_sum);
        let _ = writeln!(text, "{name}_count{labels} {}", sample.total_count);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metrics() -> Metrics {
        let id = |name: &str, labels: &[(&'static str, &str)]| MetricId {
            name: name.to_owned(),
            labels: labels
                .iter()
                .map(|(name, value)| (*name, (*value).to_owned()))
                .collect(),
        };
        let sampled = |id, values: &[f64]| Sampled {
            id,
            count: values.len() as u64,
            sum: values.iter().sum(),
            sum_of_squares: values.iter().map(|value| value * value).sum(),
            min: values.iter().copied().fold(f64::INFINITY, f64::min),
            max: values.iter().copied().fold(0.0, f64::max),
            total_count: 10,
            total_sum: 100.0,
            quantiles: [1.0, 2.0, 3.5],
            idle: Duration::ZERO,
        };
        Metrics {
            began_at: WallTime::from_nanos(1_795_359_920 * 1_000_000_000),
            interval: Duration::from_secs(10),
            gauges: vec![Gauge {
                id: id("consul.raft.last_index", &[]),
                value: 7.0,
                idle: Duration::from_secs(30),
            }],
            counters: vec![sampled(
                id("consul.memberlist.refused", &[("cause", "a\"b"), ("network", "lan")]),
                &[2.0],
            )],
            samples: vec![sampled(id("consul.http.GET.v1.kv._", &[]), &[1.0, 2.0, 3.0])],
            host_name: Some("web-1".to_owned()),
            prometheus_retention: Duration::from_secs(60),
        }
    }

    #[test]
    fn the_json_is_go_metrics() {
        let json = serde_json::to_string(&MetricsJson(&metrics())).unwrap();
        let expected = concat!(
            r#"{"Timestamp":"2026-11-22 15:05:20 +0000 UTC","#,
            r#""Gauges":[{"Name":"consul.web-1.raft.last_index","Value":7,"Labels":{}}],"Points":[],"#,
            r#""Counters":[{"Name":"consul.memberlist.refused","Count":1,"Rate":0.2,"Sum":2,"Min":2,"Max":2,"Mean":2,"#,
            r#""Stddev":0,"Labels":{"cause":"a\"b","network":"lan"}}],"#,
            r#""Samples":[{"Name":"consul.http.GET.v1.kv._","Count":3,"Rate":0.6,"Sum":6,"Min":1,"Max":3,"Mean":2,"#,
            r#""Stddev":1,"Labels":{}}]}"#
        );
        assert_eq!(json, expected);
    }

    #[test]
    fn what_the_interval_did_not_see_is_left_out_of_the_json() {
        let mut metrics = metrics();
        metrics.counters[0].count = 0;
        let json = serde_json::to_string(&MetricsJson(&metrics)).unwrap();
        assert!(json.contains(r#""Counters":[],"Samples":[{"#), "{json}");
    }

    #[test]
    fn prometheus_gets_totals_quantiles_and_nothing_older_than_the_retention() {
        let mut metrics = metrics();
        let expected = concat!(
            "# HELP consul_raft_last_index consul_raft_last_index\n# TYPE consul_raft_last_index gauge\n",
            "consul_raft_last_index 7\n",
            "# HELP consul_memberlist_refused consul_memberlist_refused\n# TYPE consul_memberlist_refused counter\n",
            "consul_memberlist_refused{cause=\"a\\\"b\",network=\"lan\"} 100\n",
            "# HELP consul_http_GET_v1_kv__ consul_http_GET_v1_kv__\n# TYPE consul_http_GET_v1_kv__ summary\n",
            "consul_http_GET_v1_kv__{quantile=\"0.5\"} 1\n",
            "consul_http_GET_v1_kv__{quantile=\"0.9\"} 2\n",
            "consul_http_GET_v1_kv__{quantile=\"0.99\"} 3.5\n",
            "consul_http_GET_v1_kv___sum 100\n",
            "consul_http_GET_v1_kv___count 10\n",
        );
        assert_eq!(prometheus(&metrics), expected);
        metrics.prometheus_retention = Duration::from_secs(29);
        assert!(!prometheus(&metrics).contains("last_index"));
    }

    #[test]
    fn times_are_printed_as_go_prints_them() {
        for (secs, text) in [
            (0, "1970-01-01 00:00:00 +0000 UTC"),
            (951_782_400, "2000-02-29 00:00:00 +0000 UTC"),
            (1_709_251_199, "2024-02-29 23:59:59 +0000 UTC"),
            (1_735_689_600, "2025-01-01 00:00:00 +0000 UTC"),
        ] {
            assert_eq!(timestamp(WallTime::from_nanos(secs * 1_000_000_000)), text);
        }
    }
}
