//! Runs every fault of the matrix and prints the page of what came of it; `--write` writes it to `tests/faults.md`.
//!
//! ```text
//! cargo run --release --example faults -- --write
//! cargo run --release --example faults -- --seeds 3 silence half-open
//! ```

#[expect(dead_code, reason = "the soak and the tests use the rest")]
#[path = "../tests/lab/lab.rs"]
mod lab;

use std::{error::Error, io::Write as _, sync::Mutex, thread};

use clap::Parser;

use self::lab::{
    matrix::{ROWS, Row, Run},
    page::{self, Runs},
};

/// Injects faults into a tunnel at work, and measures what they do.
#[derive(Debug, Parser)]
#[command(name = "faults")]
struct Args {
    /// How often each fault is run, with seeds from 1 on
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..))]
    seeds: u64,
    /// Write the page to tests/faults.md
    #[arg(long, conflicts_with = "names")]
    write: bool,
    /// Faults to run; all if none is named
    names: Vec<String>,
}

fn main() -> Result<(), Box<dyn Error>> {
    let args = Args::parse();
    if let Some(name) = args.names.iter().find(|name| ROWS.iter().all(|row| row.name != **name)) {
        let known: Vec<_> = ROWS.iter().map(|row| row.name).collect();
        return Err(format!("there is no fault `{name}`; known are {}", known.join(", ")).into());
    }
    let rows: Vec<Row> = ROWS
        .iter()
        .filter(|row| args.names.is_empty() || args.names.iter().any(|name| name == row.name))
        .copied()
        .collect();
    let mut texts = Vec::new();
    let (mut checked, mut wrong) = (0, Vec::new());
    for row in rows {
        let (runs, failures) = run_all(&row, args.seeds);
        checked += runs.iter().map(|run| run.outcome.checked).sum::<u64>();
        let text = page::row(&Runs { row, runs });
        writeln!(std::io::stderr(), "{text}")?;
        texts.push(text);
        for failure in failures {
            writeln!(std::io::stderr(), "{failure}")?;
            wrong.push(failure);
        }
    }
    if !wrong.is_empty() {
        return Err(format!("{} runs were not as expected", wrong.len()).into());
    }
    let page = page::page(args.seeds, &texts, checked);
    if args.write {
        std::fs::write(page::PATH, page)?;
    } else {
        std::io::stdout().write_all(page.as_bytes())?;
    }
    Ok(())
}

/// Runs a fault with every seed, on as many threads as there are processors. Returns the runs in the seeds' order.
fn run_all(row: &Row, seeds: u64) -> (Vec<Run>, Vec<String>) {
    let next = Mutex::new(1..=seeds);
    let results = Mutex::new(Vec::new());
    let threads = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let Some(seed) = next.lock().expect("no run panics with it").next() else { return };
                    let result = row.run(seed);
                    results.lock().expect("no run panics with it").push((seed, result));
                }
            });
        }
    });
    let mut results = results.into_inner().expect("no run panics with it");
    results.sort_by_key(|(seed, _)| *seed);
    let (runs, failures): (Vec<_>, Vec<_>) = results.into_iter().map(|(_, result)| result).partition(Result::is_ok);
    (runs.into_iter().flatten().collect(), failures.into_iter().filter_map(Result::err).collect())
}
