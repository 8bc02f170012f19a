//! A report as one self-contained page: tables and SVG charts, readable in light and dark themes, without scripts.

use crate::report::{Chart, ChartKind, Report, Table, figure};
use crate::text::goals_table;
use std::fmt::Write as _;

const STYLE: &str = "\
:root{color-scheme:light dark;--text:#1b1f24;--back:#ffffff;--line:#c9d1d9;--soft:#57606a;\
--s0:#0b62c4;--s1:#c2410c;--s2:#15803d;--s3:#a21caf;--s4:#a16207;--s5:#0e7490;--s6:#be123c;--s7:#4d7c0f}\
@media (prefers-color-scheme:dark){:root{--text:#e6edf3;--back:#0d1117;--line:#3d444d;--soft:#9198a1;\
--s0:#6cb6ff;--s1:#ff9e64;--s2:#56d364;--s3:#e58fff;--s4:#e3b341;--s5:#56d4dd;--s6:#ff8095;--s7:#a5d65b}}\
body{font:15px/1.5 system-ui,sans-serif;color:var(--text);background:var(--back);max-width:70rem;margin:2rem auto;padding:0 1rem}\
table{border-collapse:collapse;font-variant-numeric:tabular-nums;margin:.5rem 0 2rem}\
th,td{padding:.2rem .7rem;border-bottom:1px solid var(--line);text-align:right}\
th{font-weight:600;color:var(--soft);vertical-align:bottom}\
td:first-child,th:first-child{text-align:left}\
.wide{overflow-x:auto}code{font-family:ui-monospace,monospace}p,figcaption{color:var(--soft)}\
figure{margin:0 0 2rem}svg{width:100%;height:auto}svg text{fill:var(--text);font:12px system-ui,sans-serif}\
.grid{stroke:var(--line);stroke-width:1}";

const SERIES_COLORS: usize = 8;
const WIDTH: f64 = 960.0;
const HEIGHT: f64 = 340.0;
const LEFT: f64 = 70.0;
const TOP: f64 = 16.0;
const BOTTOM: f64 = 290.0;
const RIGHT: f64 = 940.0;

pub fn render(report: &Report) -> String {
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\"><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\n\
         <title>{title}</title>\n<style>{STYLE}</style>\n<h1>{title}</h1>\n<p><code>{command}</code></p>\n",
        title = escape(&report.title),
        command = escape(&report.command),
    );
    for note in &report.notes {
        let _ = writeln!(page, "<p>{}</p>", escape(note));
    }
    if !report.goals.is_empty() {
        table(&mut page, &goals_table(&report.goals));
    }
    for shown in &report.tables {
        table(&mut page, shown);
    }
    for shown in &report.charts {
        chart(&mut page, shown);
    }
    page.push_str("</html>\n");
    page
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

fn table(page: &mut String, table: &Table) {
    let _ = write!(
        page,
        "<h2>{}</h2>\n<div class=\"wide\"><table><tr>",
        escape(&table.title)
    );
    for cell in &table.head {
        let _ = write!(page, "<th>{}</th>", escape(cell));
    }
    page.push_str("</tr>\n");
    for row in &table.rows {
        page.push_str("<tr>");
        for cell in row {
            let _ = write!(page, "<td>{}</td>", escape(cell));
        }
        page.push_str("</tr>\n");
    }
    page.push_str("</table></div>\n");
}

/// From a value to its height on the page.
struct Scale {
    is_log: bool,
    low: f64,
    high: f64,
}

impl Scale {
    fn of(chart: &Chart) -> Self {
        let values = || chart.series.iter().flat_map(|(_, values)| values).flatten().copied();
        let max = values().fold(0.0_f64, f64::max);
        if !chart.is_log {
            return Self {
                is_log: false,
                low: 0.0,
                high: if max > 0.0 { max * 1.08 } else { 1.0 },
            };
        }
        // Whole powers of ten around what is above zero; zeros lie on the bottom line.
        let min = values().filter(|value| *value > 0.0).fold(f64::INFINITY, f64::min);
        let (min, max) = if min.is_finite() { (min, max) } else { (0.1, 1.0) };
        let low = 10_f64.powi(min.log10().floor() as i32);
        let high = 10_f64.powi(max.log10().ceil() as i32).max(low * 10.0);
        Self {
            is_log: true,
            low,
            high,
        }
    }
    fn y(&self, value: f64) -> f64 {
        let share = if self.is_log {
            (value.max(self.low) / self.low).log10() / (self.high / self.low).log10()
        } else {
            value / self.high
        };
        BOTTOM - share.clamp(0.0, 1.0) * (BOTTOM - TOP)
    }
    fn ticks(&self) -> Vec<f64> {
        if self.is_log {
            let decades = (self.high / self.low).log10().round() as i32;
            (0..=decades).map(|decade| self.low * 10_f64.powi(decade)).collect()
        } else {
            (0..=4).map(|quarter| self.high * f64::from(quarter) / 4.0).collect()
        }
    }
}

fn chart(page: &mut String, chart: &Chart) {
    let scale = Scale::of(chart);
    let count = chart.labels.len().max(1) as f64;
    let slot = (RIGHT - LEFT) / count;
    let _ = write!(
        page,
        "<h2>{title}</h2>\n<figure><svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{title}\">\n",
        title = escape(&chart.title)
    );
    for tick in scale.ticks() {
        let y = scale.y(tick);
        let _ = writeln!(
            page,
            "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{RIGHT}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            LEFT - 8.0,
            y + 4.0,
            figure(tick)
        );
    }
    for (place, label) in chart.labels.iter().enumerate() {
        let x = LEFT + slot * (place as f64 + 0.5);
        let _ = writeln!(
            page,
            "<text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
            BOTTOM + 18.0,
            escape(label)
        );
    }
    for (number, (name, values)) in chart.series.iter().enumerate() {
        let color = format!("var(--s{})", number % SERIES_COLORS);
        match chart.kind {
            ChartKind::Bars => bars(page, chart, &scale, slot, number, name, values, &color),
            ChartKind::Lines => lines(page, chart, &scale, slot, name, values, &color),
        }
    }
    let _ = write!(
        page,
        "<text x=\"{LEFT}\" y=\"{:.1}\">{}{}</text></svg>\n<figcaption>",
        BOTTOM + 42.0,
        escape(&chart.y),
        if chart.x.is_empty() {
            String::new()
        } else {
            format!(" by {}", escape(&chart.x))
        }
    );
    for (number, (name, _)) in chart.series.iter().enumerate() {
        let _ = write!(
            page,
            "<span style=\"color:var(--s{})\">&#9632;</span> {} &nbsp; ",
            number % SERIES_COLORS,
            escape(name)
        );
    }
    page.push_str("</figcaption></figure>\n");
}

#[expect(clippy::too_many_arguments, reason = "the parts of one drawing")]
fn bars(
    page: &mut String,
    chart: &Chart,
    scale: &Scale,
    slot: f64,
    number: usize,
    name: &str,
    values: &[Option<f64>],
    color: &str,
) {
    let width = slot * 0.8 / chart.series.len().max(1) as f64;
    for (place, value) in values.iter().enumerate() {
        let Some(value) = value else { continue };
        let x = LEFT + slot * (place as f64 + 0.1) + width * number as f64;
        let y = scale.y(*value);
        let label = chart.labels.get(place).map_or("", String::as_str);
        let _ = writeln!(
            page,
            "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{:.1}\" fill=\"{color}\">\
             <title>{} {}: {}</title></rect>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\" style=\"font-size:10px\">{}</text>",
            (width - 2.0).max(1.0),
            (BOTTOM - y).max(0.5),
            escape(label),
            escape(name),
            figure(*value),
            x + width / 2.0,
            y - 3.0,
            figure(*value)
        );
    }
}

fn lines(page: &mut String, chart: &Chart, scale: &Scale, slot: f64, name: &str, values: &[Option<f64>], color: &str) {
    let mut path = String::new();
    for (place, value) in values.iter().enumerate() {
        let Some(value) = value else { continue };
        let (x, y) = (LEFT + slot * (place as f64 + 0.5), scale.y(*value));
        let _ = write!(path, "{x:.1},{y:.1} ");
        let label = chart.labels.get(place).map_or("", String::as_str);
        let _ = writeln!(
            page,
            "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3.5\" fill=\"{color}\"><title>{}, {} {}: {}</title></circle>",
            escape(name),
            escape(&chart.x),
            escape(label),
            figure(*value)
        );
    }
    let _ = writeln!(
        page,
        "<polyline points=\"{}\" fill=\"none\" stroke=\"{color}\" stroke-width=\"2\"/>",
        path.trim_end()
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let chart = |kind, is_log| Chart {
            title: "A <chart> & more".to_owned(),
            kind,
            x: "C".to_owned(),
            y: "FP".to_owned(),
            is_log,
            labels: vec!["1".to_owned(), "4".to_owned()],
            series: vec![
                ("a".to_owned(), vec![Some(100.0), Some(0.0)]),
                ("b".to_owned(), vec![None, Some(3.0)]),
            ],
        };
        Report {
            title: "Lab".to_owned(),
            command: "cargo xtask swim-lab sweep".to_owned(),
            charts: vec![
                chart(ChartKind::Bars, true),
                chart(ChartKind::Lines, true),
                chart(ChartKind::Lines, false),
            ],
            ..Report::default()
        }
    }

    #[test]
    fn the_page_is_self_contained_and_escaped() {
        let page = render(&report());
        assert!(page.contains("A &lt;chart&gt; &amp; more"));
        assert!(!page.contains("<script") && !page.contains("http") && !page.contains("NaN") && !page.contains("inf"));
        assert_eq!(page.matches("<svg").count(), 3);
        assert_eq!(page.matches("<rect").count(), 3, "a bar for each value there is");
        assert!(page.contains("prefers-color-scheme:dark"));
    }

    #[test]
    fn a_logarithmic_scale_keeps_zero_on_the_bottom_line_and_the_largest_within() {
        let scale = Scale::of(&report().charts[0]);
        assert_eq!(scale.y(0.0), BOTTOM);
        assert_eq!(scale.y(100.0), TOP);
        assert_eq!(scale.ticks(), [1.0, 10.0, 100.0]);
        let empty = Chart {
            series: Vec::new(),
            ..report().charts.remove(0)
        };
        assert_eq!(Scale::of(&empty).y(0.0), BOTTOM);
    }
}
