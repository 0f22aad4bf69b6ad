//! Tunnels over slow lines: every cell of the lab's grid, on virtual time, on as many threads as there are processors.

use std::{io::Write as _, sync::Mutex, thread, time::Duration};

use super::{
    BoxError,
    lab::line::{Cell, Outcome},
    report::{Form, digits, render},
};

/// What every cell should reach of what is possible, on one transport.
const TARGET: f64 = 0.9;

/// Measures all cells, or one with `quick`, and returns the table.
pub(crate) async fn measure(quick: bool, form: Form) -> Result<String, BoxError> {
    let mut cells = Cell::grid();
    if quick {
        cells.truncate(1);
    }
    let outcomes = tokio::task::spawn_blocking(move || run(&cells)).await?;
    let mut rows = Vec::new();
    for (cell, outcome) in outcomes {
        rows.push(row(&cell, &outcome?));
    }
    let header =
        ["line", "down", "of possible", "up", "of possible", "request, p50", "the queue takes", "transports", "met"];
    let table = render(header.map(str::to_owned).to_vec(), rows, form);
    Ok(format!(
        "\nSlow lines, on virtual time, five minutes each, seed 1; wanted: {TARGET} of what is possible on one transport.\n\n{table}"
    ))
}

/// Runs the cells; returns them in their order.
fn run(cells: &[Cell]) -> Vec<(Cell, Result<Outcome, String>)> {
    let next = Mutex::new(cells.iter().enumerate());
    let done = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                loop {
                    let Some((at, cell)) = next.lock().expect("no cell panics with it").next() else { return };
                    let outcome = cell.run(1);
                    let share = outcome.as_ref().map_or(0.0, Outcome::share);
                    let _unheard = writeln!(std::io::stderr(), "line, {}: {share:.2}", cell.name());
                    done.lock().expect("no cell panics with it").push((at, *cell, outcome));
                }
            });
        }
    });
    let mut done = done.into_inner().expect("no cell panics with it");
    done.sort_by_key(|(at, ..)| *at);
    done.into_iter().map(|(_, cell, outcome)| (cell, outcome)).collect()
}

fn row(cell: &Cell, outcome: &Outcome) -> Vec<String> {
    let rate = |got: f64, possible: f64| {
        if possible > 0.0 {
            [format!("{} kB/s", digits(got / 1e3)), digits(got / possible)]
        } else {
            [const { String::new() }; 2]
        }
    };
    let time = |time: Duration| format!("{} s", digits(time.as_secs_f64()));
    let [down, down_share] = rate(outcome.down, outcome.down_possible);
    let [up, up_share] = rate(outcome.up, outcome.up_possible);
    let met = outcome.share() >= TARGET && outcome.transports == 1;
    vec![
        cell.name(),
        down,
        down_share,
        up,
        up_share,
        time(outcome.request),
        time(outcome.request_least),
        outcome.transports.to_string(),
        if met { "yes" } else { "no" }.to_owned(),
    ]
}
