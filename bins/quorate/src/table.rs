//! Aligned columns. No line ends in blanks.

/// Rows whose cells are padded to their column's widest, plus `gap` blanks. The last cell of a row is not padded.
pub fn aligned(rows: &[Vec<String>], gap: usize) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns)
        .map(|column| {
            rows.iter()
                .filter_map(|row| row.get(column))
                .map(|cell| cell.chars().count())
                .max()
                .unwrap_or(0)
        })
        .collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            line.push_str(cell);
            let padding = width - cell.chars().count() + gap;
            line.extend(std::iter::repeat_n(' ', padding));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// A row from what can be shown.
pub fn row<const N: usize>(cells: [&str; N]) -> Vec<String> {
    cells.iter().map(|&cell| cell.to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell_and_lines_end_without_blanks() {
        let rows = [
            row(["Node", "ID", "DC"]),
            row(["a-long-name", "", "dc1"]),
            row(["b", "x", ""]),
        ];
        assert_eq!(
            aligned(&rows, 2),
            "Node         ID  DC\na-long-name      dc1\nb            x\n"
        );
        assert_eq!(aligned(&[], 2), "");
    }
}
