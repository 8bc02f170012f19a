//! A report as text: columns of equal width, goals with how near we came.

use crate::report::{Goal, Report, Table};
use std::fmt::Write as _;

pub fn render(report: &Report) -> String {
    let mut text = format!("{}\n  {}\n", report.title, report.command);
    for note in &report.notes {
        let _ = writeln!(text, "  {note}");
    }
    for table in &report.tables {
        text.push('\n');
        text.push_str(&render_table(table));
    }
    if !report.goals.is_empty() {
        text.push('\n');
        text.push_str(&render_table(&goals_table(&report.goals)));
    }
    text
}

/// Goals in the form of a table.
pub fn goals_table(goals: &[Goal]) -> Table {
    Table {
        title: "To reach".to_owned(),
        head: ["figure", "wanted", "reached", ""].map(str::to_owned).into(),
        rows: goals
            .iter()
            .map(|goal| {
                let verdict = if goal.is_reached { "yes" } else { "NO" };
                vec![
                    goal.what.clone(),
                    goal.wanted.clone(),
                    goal.got.clone(),
                    verdict.to_owned(),
                ]
            })
            .collect(),
    }
}

fn render_table(table: &Table) -> String {
    let widths: Vec<usize> = (0..table.head.len())
        .map(|column| {
            let cells = table.rows.iter().chain([&table.head]);
            cells
                .filter_map(|row| row.get(column))
                .map(|cell| cell.chars().count())
                .max()
                .unwrap_or(0)
        })
        .collect();
    let line = |row: &Vec<String>| {
        let mut line = String::new();
        for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
            if column == 0 {
                let _ = write!(line, "{cell:<width$}");
            } else {
                let _ = write!(line, "  {cell:>width$}");
            }
        }
        line.truncate(line.trim_end().len());
        line.push('\n');
        line
    };
    let mut text = format!("{}\n", table.title);
    let head = line(&table.head);
    text.push_str(&head);
    text.push_str(&"-".repeat(head.trim_end().chars().count()));
    text.push('\n');
    for row in &table.rows {
        text.push_str(&line(row));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let table = Table {
            title: "T".to_owned(),
            head: vec!["name".to_owned(), "n".to_owned()],
            rows: vec![
                vec!["a".to_owned(), "1000".to_owned()],
                vec!["long name".to_owned(), "7".to_owned()],
            ],
        };
        let expected = "T\nname          n\n---------------\na          1000\nlong name     7\n";
        assert_eq!(render_table(&table), expected);
    }
}
