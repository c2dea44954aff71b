//! Columns of text.

/// Lays rows out in columns, as wide as their widest cell; numbers stand at the right. Columns that are empty below their
/// heading are left out.
pub fn table(headings: &[&str], rows: &[Vec<String>]) -> String {
    let columns: Vec<usize> = (0..headings.len())
        .filter(|column| rows.iter().any(|row| row.get(*column).is_some_and(|cell| !cell.is_empty())))
        .collect();
    let cell = |row: &[String], column: usize| row.get(column).cloned().unwrap_or_default();
    let headings: Vec<String> = headings.iter().map(ToString::to_string).collect();
    let width = |column: &usize| {
        let cells = rows.iter().map(|row| cell(row, *column).chars().count());
        cells.chain([headings[*column].chars().count()]).max().unwrap_or(0)
    };
    let widths: Vec<_> = columns.iter().map(width).collect();
    let is_number = |column: usize| {
        let starts = |row: &Vec<String>| cell(row, column).starts_with(|c: char| c.is_ascii_digit());
        rows.iter().all(|row| cell(row, column).is_empty() || starts(row))
    };
    let line = |row: &[String]| {
        let cells = columns.iter().zip(&widths).map(|(column, width)| {
            let text = cell(row, *column);
            if is_number(*column) { format!("{text:>width$}") } else { format!("{text:<width$}") }
        });
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned() + "\n"
    };
    [headings.clone()].iter().chain(rows).map(|row| line(row)).collect()
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
}
