//! Columns of text.

use std::borrow::Cow;

/// The most characters of a cell. A longer one is another manager's, or of use in `--json` alone: every row is as wide as its
/// widest cell, and no wider than a format takes.
const CELL_MAX: usize = 200;

/// Lays rows out in columns, as wide as their widest cell; numbers stand at the right. Columns that are empty below their
/// heading are left out, and so is the end of a very long cell.
pub fn table(headings: &[&str], rows: &[Vec<String>]) -> String {
    let columns: Vec<_> =
        headings.iter().enumerate().filter_map(|(at, heading)| Column::of(at, heading, rows)).collect();
    let line = |cell: &dyn Fn(&Column) -> String| {
        let cells = columns.iter().map(|column| column.pad(&cell(column)));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned() + "\n"
    };
    let head = line(&|column| headings[column.at].to_owned());
    let body = rows.iter().map(|row| line(&|column| cell(row, column.at).into_owned()));
    [head].into_iter().chain(body).collect()
}

struct Column {
    at: usize,
    width: usize,
    is_number: bool,
}

impl Column {
    /// `None` for an empty one.
    fn of(at: usize, heading: &str, rows: &[Vec<String>]) -> Option<Self> {
        let mut column = Self { at, width: heading.chars().count(), is_number: true };
        let mut is_empty = true;
        for cell in rows.iter().map(|row| cell(row, at)).filter(|cell| !cell.is_empty()) {
            is_empty = false;
            column.width = column.width.max(cell.chars().count());
            column.is_number &= cell.starts_with(|c: char| c.is_ascii_digit());
        }
        (!is_empty).then_some(column)
    }

    fn pad(&self, text: &str) -> String {
        let width = self.width;
        if self.is_number { format!("{text:>width$}") } else { format!("{text:<width$}") }
    }
}

/// Returns a cell as it is printed; an empty one where the row has none.
fn cell(row: &[String], at: usize) -> Cow<'_, str> {
    let text = row.get(at).map_or("", String::as_str);
    match text.char_indices().nth(CELL_MAX) {
        None => text.into(),
        // The ellipsis is a character as well.
        Some(_) => text.chars().take(CELL_MAX - 1).chain(['…']).collect::<String>().into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_they_must_be() {
        let row = |cells: [&str; 4]| cells.map(String::from).to_vec();
        let rows = [row(["0", "ready", "", "π"]), row(["12", "draining", "", ""])];
        let expected = "\
SLOT  STATE     SAYS
   0  ready     π
  12  draining
";
        assert_eq!(table(&["SLOT", "STATE", "EMPTY", "SAYS"], &rows), expected);
    }

    #[test]
    fn a_cell_of_any_length_is_cut() {
        let rows: Vec<_> = ["π".repeat(CELL_MAX), "π".repeat(CELL_MAX + 1), "x".repeat(1 << 20)]
            .map(|cell| vec![cell, "end".into()])
            .into();
        let text = table(&["A", "B"], &rows);
        let cut = |letter: &str| format!("{}…  end", letter.repeat(CELL_MAX - 1));
        let lines: Vec<_> = text.lines().skip(1).collect();
        assert_eq!(lines, [format!("{}  end", "π".repeat(CELL_MAX)), cut("π"), cut("x")]);
    }
}
