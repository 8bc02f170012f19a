//! What the lab has to show: tables in the paper's form with the paper's figures beside ours, charts, and goals with how
//! near we came.
//!
//! In: rows of sweeps and outcomes of stress runs. Out: a [`Report`], which `text` and `page` put on paper.

use crate::paper::{Parts, Published, Tuning, published};
use crate::stress::{Joined, Lossy};
use crate::sweep::{Quantiles, Row, Share};
use serde::Serialize;

#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Report {
    pub title: String,
    /// The line that makes this report again.
    pub command: String,
    pub notes: Vec<String>,
    pub tables: Vec<Table>,
    pub charts: Vec<Chart>,
    pub goals: Vec<Goal>,
    pub rows: Vec<Row>,
    pub lossy: Vec<Lossy>,
    pub joined: Vec<Joined>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Table {
    pub title: String,
    pub head: Vec<String>,
    pub rows: Vec<Vec<String>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum ChartKind {
    Bars,
    Lines,
}

/// One value a series and label; absent where there is none.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Chart {
    pub title: String,
    pub kind: ChartKind,
    pub x: String,
    pub y: String,
    pub is_log: bool,
    pub labels: Vec<String>,
    pub series: Vec<(String, Vec<Option<f64>>)>,
}

/// A figure to reach.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Goal {
    pub what: String,
    pub wanted: String,
    pub got: String,
    pub is_reached: bool,
}

impl Goal {
    pub fn at_most(what: &str, got: Option<f64>, limit: f64, unit: &str) -> Self {
        Self {
            what: what.to_owned(),
            wanted: format!("<= {}{unit}", figure(limit)),
            got: got.map_or_else(|| "not at all".to_owned(), |got| format!("{}{unit}", figure(got))),
            is_reached: got.is_some_and(|got| got <= limit),
        }
    }
    pub fn at_least(what: &str, got: f64, limit: f64, unit: &str) -> Self {
        Self {
            what: what.to_owned(),
            wanted: format!(">= {}{unit}", figure(limit)),
            got: format!("{}{unit}", figure(got)),
            is_reached: got >= limit,
        }
    }
    pub fn within(what: &str, got: f64, low: f64, high: f64, unit: &str) -> Self {
        Self {
            what: what.to_owned(),
            wanted: format!("{}..{}{unit}", figure(low), figure(high)),
            got: format!("{}{unit}", figure(got)),
            is_reached: (low..=high).contains(&got),
        }
    }
}

/// Three digits that tell something.
pub fn figure(value: f64) -> String {
    match value.abs() {
        zero if zero < 1e-9 => "0".to_owned(),
        large if large >= 100.0 => format!("{value:.0}"),
        medium if medium >= 10.0 => format!("{value:.1}"),
        small if small >= 0.01 => format!("{value:.2}"),
        _ => format!("{value:.4}"),
    }
}

pub fn percent(part: f64, of: f64) -> Option<f64> {
    (of > 0.0).then(|| 100.0 * part / of)
}

fn cell(value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_owned(), figure)
}

fn texts(cells: &[&str]) -> Vec<String> {
    cells.iter().map(|cell| (*cell).to_owned()).collect()
}

/// A swept row, whose setting it was.
pub type Swept = (Parts, Tuning, Row);

/// FP and FP- of a row as percentages of the baseline's.
pub fn fp_percents(row: &Row, baseline: &Row) -> (Option<f64>, Option<f64>) {
    (
        percent(row.fp_per_run(), baseline.fp_per_run()),
        percent(row.fp_healthy_per_run(), baseline.fp_healthy_per_run()),
    )
}

/// Bytes of a row's runs as a percentage of the baseline's.
pub fn bytes_percent(row: &Row, baseline: &Row) -> Option<f64> {
    let per_run = |row: &Row, total: u64| total as f64 / row.interval_runs.max(1) as f64;
    percent(per_run(row, row.bytes), per_run(baseline, baseline.bytes))
}

/// The paper's three tables over these rows; the first row is the baseline.
pub fn paper_tables(swept: &[Swept]) -> Vec<Table> {
    let Some((_, _, baseline)) = swept.first() else {
        return Vec::new();
    };
    vec![
        false_positives(swept, baseline),
        latencies(swept),
        loads(swept, baseline),
    ]
}

fn false_positives(swept: &[Swept], baseline: &Row) -> Table {
    let head = "configuration|runs|FP events|FP- events|FP a run|FP % SWIM|FP- % SWIM|paper: FP a run|FP %|FP- %";
    let rows = swept.iter().map(|(parts, tuning, row)| {
        let Published {
            fp_per_run,
            fp_percent,
            fp_healthy_percent,
            ..
        } = published(*parts, *tuning);
        let (fp, fp_healthy) = fp_percents(row, baseline);
        vec![
            row.label.clone(),
            row.interval_runs.to_string(),
            row.fp.to_string(),
            row.fp_healthy.to_string(),
            figure(row.fp_per_run()),
            cell(fp),
            cell(fp_healthy),
            cell(fp_per_run),
            cell(fp_percent),
            cell(fp_healthy_percent),
        ]
    });
    Table {
        title: "False positives (Interval runs)".to_owned(),
        head: texts(&head.split('|').collect::<Vec<_>>()),
        rows: rows.collect(),
    }
}

fn latencies(swept: &[Swept]) -> Table {
    let head = "configuration|runs|detected|by all|not|first median s|99 %|99.9 %|all median s|99 %|99.9 %|paper: first median s|99.9 %";
    let three = |quantiles: Option<Quantiles>| {
        let cells = quantiles.map(|found| [found.median_s, found.p99_s, found.p999_s]);
        match cells {
            Some(found) => found.map(|value| format!("{value:.2}")),
            None => ["-", "-", "-"].map(str::to_owned),
        }
    };
    let rows = swept
        .iter()
        .filter(|(_, _, row)| row.threshold_runs > 0)
        .map(|(parts, tuning, row)| {
            let paper = published(*parts, *tuning);
            let mut cells = vec![row.label.clone()];
            cells
                .extend([row.threshold_runs, row.detected, row.detected_by_all, row.undetected].map(|n| n.to_string()));
            cells.extend(three(row.first));
            cells.extend(three(row.full));
            cells.extend([cell(paper.first_median_s), cell(paper.first_999_s)]);
            cells
        });
    Table {
        title: "First detection and full dissemination of members with an anomaly (Threshold runs)".to_owned(),
        head: texts(&head.split('|').collect::<Vec<_>>()),
        rows: rows.collect(),
    }
}

fn loads(swept: &[Swept], baseline: &Row) -> Table {
    let head = "configuration|messages (million)|bytes (MiB)|messages % SWIM|bytes % SWIM|paper: bytes %";
    let rows = swept.iter().map(|(parts, tuning, row)| {
        let per_run = |row: &Row, total: u64| total as f64 / row.interval_runs.max(1) as f64;
        vec![
            row.label.clone(),
            format!("{:.2}", row.messages as f64 / 1e6),
            format!("{:.1}", row.bytes as f64 / 1_048_576.0),
            cell(percent(
                per_run(row, row.messages),
                per_run(baseline, baseline.messages),
            )),
            cell(bytes_percent(row, baseline)),
            cell(published(*parts, *tuning).bytes_percent),
        ]
    });
    Table {
        title: "Message load (Interval runs)".to_owned(),
        head: texts(&head.split('|').collect::<Vec<_>>()),
        rows: rows.collect(),
    }
}

/// The charts over these rows.
pub fn paper_charts(swept: &[Swept]) -> Vec<Chart> {
    let Some((_, _, baseline)) = swept.first() else {
        return Vec::new();
    };
    let mut charts = vec![Chart {
        title: "False positives, % of SWIM".to_owned(),
        kind: ChartKind::Bars,
        x: String::new(),
        y: "% of SWIM's".to_owned(),
        is_log: true,
        labels: swept.iter().map(|(_, _, row)| row.label.clone()).collect(),
        series: vec![
            (
                "FP".to_owned(),
                swept.iter().map(|(_, _, row)| fp_percents(row, baseline).0).collect(),
            ),
            (
                "FP-".to_owned(),
                swept.iter().map(|(_, _, row)| fp_percents(row, baseline).1).collect(),
            ),
        ],
    }];
    let mut by = |title: &str, x: &str, shares: fn(&Row) -> &[Share]| {
        let labels: Vec<u64> = shares(baseline).iter().map(|share| share.value).collect();
        let series = swept.iter().map(|(_, _, row)| {
            let at = |value: &u64| {
                let share = shares(row).iter().find(|share| share.value == *value)?;
                Some(share.fp as f64 / share.runs.max(1) as f64)
            };
            (row.label.clone(), labels.iter().map(at).collect())
        });
        charts.push(Chart {
            title: title.to_owned(),
            kind: ChartKind::Lines,
            x: x.to_owned(),
            y: "FP a run".to_owned(),
            is_log: true,
            labels: labels.iter().map(u64::to_string).collect(),
            series: series.collect(),
        });
    };
    by("False positives by members disturbed", "C", |row| &row.by_concurrent);
    by("False positives by length of an anomaly", "D, ms", |row| {
        &row.by_duration
    });
    by("False positives by time between anomalies", "I, ms", |row| {
        &row.by_interval
    });
    let latency = |pick: fn(&Quantiles) -> f64, of: fn(&Row) -> Option<Quantiles>| {
        swept
            .iter()
            .map(move |(_, _, row)| of(row).as_ref().map(pick))
            .collect()
    };
    charts.push(Chart {
        title: "Detection of members with an anomaly".to_owned(),
        kind: ChartKind::Bars,
        x: String::new(),
        y: "seconds".to_owned(),
        is_log: false,
        labels: swept.iter().map(|(_, _, row)| row.label.clone()).collect(),
        series: vec![
            ("first, median".to_owned(), latency(|q| q.median_s, |row| row.first)),
            ("first, 99.9 %".to_owned(), latency(|q| q.p999_s, |row| row.first)),
            ("all, median".to_owned(), latency(|q| q.median_s, |row| row.full)),
            ("all, 99.9 %".to_owned(), latency(|q| q.p999_s, |row| row.full)),
        ],
    });
    charts
}

/// Goals on a row at the default tuning.
pub fn default_goals(row: &Row, baseline: &Row) -> Vec<Goal> {
    let (fp, fp_healthy) = fp_percents(row, baseline);
    let mut goals = vec![
        Goal::within("SWIM's FP a run (paper 78.5)", baseline.fp_per_run(), 39.25, 157.0, ""),
        Goal::at_most(&format!("FP of {}, of SWIM's", row.label), fp, 0.5, " %"),
        Goal::at_most(&format!("FP- of {}, of SWIM's", row.label), fp_healthy, 0.0, " %"),
        Goal::at_most(
            &format!("bytes of {}, of SWIM's", row.label),
            bytes_percent(row, baseline),
            98.0,
            " %",
        ),
    ];
    if row.threshold_runs > 0 {
        let what = |rank: &str| format!("first detection by {}, {rank}", row.label);
        goals.push(Goal::at_most(
            &what("median"),
            row.first.map(|q| q.median_s),
            10.3,
            " s",
        ));
        goals.push(Goal::at_most(&what("99.9 %"), row.first.map(|q| q.p999_s), 18.4, " s"));
    }
    goals
}

/// Goals on a row with settings of our own.
pub fn own_goals(row: &Row, baseline: &Row) -> Vec<Goal> {
    let (fp, fp_healthy) = fp_percents(row, baseline);
    let what = |rank: &str| format!("first detection by {}, {rank}", row.label);
    vec![
        Goal::at_most(&what("median"), row.first.map(|q| q.median_s), 5.0, " s"),
        Goal::at_most(&what("99.9 %"), row.first.map(|q| q.p999_s), 9.0, " s"),
        Goal::at_most(&format!("FP of {}, of SWIM's", row.label), fp, 3.18, " %"),
        Goal::at_most(&format!("FP- of {}, of SWIM's", row.label), fp_healthy, 4.83, " %"),
    ]
}

pub fn lossy_table(outcomes: &[Lossy]) -> Table {
    let head = "configuration|trouble of 1 %|members|healthy removed|faulty removed at 60 s|at 300 s|removed by half, median s|flaps after 60 s, each observer and faulty member|messages a member and s";
    let rows = outcomes.iter().map(|outcome| {
        vec![
            outcome.label.clone(),
            outcome.trouble.name().to_owned(),
            outcome.members.to_string(),
            outcome.healthy_removed.to_string(),
            format!("{} of {}", outcome.faulty_removed_at_60_s, outcome.faulty),
            format!("{} of {}", outcome.faulty_removed_at_end, outcome.faulty),
            cell(outcome.removed_median_s),
            figure(outcome.flaps_each_after_60_s),
            figure(outcome.messages_a_member_and_second),
        ]
    });
    Table {
        title: "Lossy members".to_owned(),
        head: texts(&head.split('|').collect::<Vec<_>>()),
        rows: rows.collect(),
    }
}

pub fn lossy_goals(outcome: &Lossy) -> Vec<Goal> {
    let what = |text: &str| format!("{text} ({}, {})", outcome.label, outcome.trouble.name());
    vec![
        Goal::at_least(
            &what("faulty members removed at 300 s"),
            outcome.faulty_removed_at_end as f64,
            f64::from(outcome.faulty),
            "",
        ),
        Goal::at_most(
            &what("healthy members removed"),
            Some(outcome.healthy_removed as f64),
            0.0,
            "",
        ),
        Goal::at_most(
            &what("flaps after 60 s, each"),
            Some(outcome.flaps_each_after_60_s),
            0.0,
            "",
        ),
    ]
}

pub fn join_table(outcomes: &[Joined]) -> Table {
    let head = "members|half complete s|99 % s|all s|complete at the end|messages a member";
    let rows = outcomes.iter().map(|joined| {
        vec![
            joined.members.to_string(),
            cell(joined.half_complete_s),
            cell(joined.p99_complete_s),
            cell(joined.all_complete_s),
            joined.complete.to_string(),
            figure(joined.messages_a_member),
        ]
    });
    Table {
        title: "All join through one member in the first second".to_owned(),
        head: texts(&head.split('|').collect::<Vec<_>>()),
        rows: rows.collect(),
    }
}

pub fn join_goal(joined: &Joined) -> Goal {
    let limit = if joined.members <= 2000 { 10.0 } else { 20.0 };
    Goal::at_most(
        &format!("{} members join, all lists complete", joined.members),
        joined.all_complete_s,
        limit,
        " s",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::paper::{BASE, DEFAULT};

    fn row(label: &str, runs: u64, fp: u64, bytes: u64) -> Row {
        Row {
            label: label.to_owned(),
            interval_runs: runs,
            fp,
            fp_healthy: fp / 10,
            bytes,
            ..Row::default()
        }
    }

    #[test]
    fn figures_keep_three_digits() {
        assert_eq!(
            [0.0, 0.0031, 0.5, 3.18, 10.3, 339.4].map(figure),
            ["0", "0.0031", "0.50", "3.18", "10.3", "339"]
        );
    }

    #[test]
    fn rows_are_set_beside_the_papers_as_shares_of_the_baseline() {
        // Different numbers of runs: shares are of the figures a run.
        let swept = [
            (Parts::Swim, BASE, row("SWIM", 10, 800, 1000)),
            (Parts::Quorate, DEFAULT, row("ours", 5, 40, 490)),
        ];
        let tables = paper_tables(&swept);
        assert_eq!(tables[0].rows[1][4..7], ["8.00", "10.0", "10.0"]);
        assert_eq!(tables[0].rows[1][8..], ["3.18", "4.83"]);
        assert_eq!(tables[2].rows[1][4], "98.0");
        let goals = default_goals(&swept[1].2, &swept[0].2);
        let reached: Vec<bool> = goals.iter().map(|goal| goal.is_reached).collect();
        assert_eq!(reached, [true, false, false, true], "{goals:?}");
        for table in tables {
            assert!(table.rows.iter().all(|row| row.len() == table.head.len()), "{table:?}");
        }
        assert_eq!(paper_charts(&swept)[0].series[0].1, [Some(100.0), Some(10.0)]);
    }
}
