//! Tables: columns lined up, two spaces apart. Everything in them is ASCII or of the same width.

/// How wide each column is.
pub(super) struct Columns(Vec<usize>);

impl Columns {
    /// Makes columns that all these rows fit in.
    pub(super) fn of<'a>(rows: impl IntoIterator<Item = &'a [String]>) -> Self {
        let mut widths: Vec<usize> = Vec::new();
        for row in rows {
            widths.resize(widths.len().max(row.len()), 0);
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        Self(widths)
    }

    /// Writes one row. `paint` is given the column, the cell, and the cell as wide as its column.
    pub(super) fn line(&self, row: &[String], paint: impl Fn(usize, &str, String) -> String) -> String {
        let cells = row.iter().zip(&self.0).enumerate();
        let cells = cells.map(|(column, (cell, &width))| paint(column, cell, format!("{cell:<width$}")));
        format!("{}\n", cells.collect::<Vec<_>>().join("  ").trim_end())
    }

    /// Writes one row without colour.
    pub(super) fn plain(&self, row: &[String]) -> String {
        self.line(row, |_, _, padded| padded)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_up_what_is_of_different_widths() {
        let row = |cells: &[&str]| cells.iter().map(|cell| (*cell).to_owned()).collect::<Vec<_>>();
        let rows = [row(&["NAME", "STATE"]), row(&["é", "ok", "more"]), row(&["payments", ""])];
        let columns = Columns::of(rows.iter().map(Vec::as_slice));
        let text: String = rows.iter().map(|row| columns.plain(row)).collect();
        assert_eq!(text, "NAME      STATE\né         ok     more\npayments\n");
    }
}
