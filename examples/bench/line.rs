//! Tunnels over slow lines: every cell of the lab's grid, on virtual time, on as many threads as there are processors.

use std::io::Write as _;

use super::{
    BoxError,
    lab::line::{self, Cell, Outcome},
    report::{Form, render},
};

/// Measures all cells, or one with `quick`, and returns the table.
pub(crate) async fn measure(quick: bool, form: Form) -> Result<String, BoxError> {
    let mut cells = Cell::grid();
    if quick {
        cells.truncate(1);
    }
    let say = |cell: &Cell, outcome: &Outcome| {
        let _unheard = writeln!(std::io::stderr(), "line, {}: {:.2}", cell.name(), outcome.share());
    };
    let outcomes = tokio::task::spawn_blocking(move || line::run_all(&cells, say)).await??;
    let rows = outcomes.iter().map(|(cell, outcome)| line::row(cell, outcome).to_vec()).collect();
    let table = render(line::HEADER.map(str::to_owned).to_vec(), rows, form);
    Ok(format!("\n{}\n\n{table}", line::CAPTION))
}
