//! Runs every fault of the matrix and prints the page of what came of it; `--write` writes it to `tests/faults.md`, and the
//! names of the tests to `tests/it/matrix/rows.rs`. Of a page with some faults only, just these are written.
//! Those of SSH servers need OpenSSH's, `ssh` names them all. The last few concern the program itself, which has to be there, built
//! in the same profile.
//!
//! ```text
//! cargo build --release && cargo run --release --example faults -- --write
//! cargo run --release --example faults -- --seeds 3 silence half-open
//! cargo run --release --example faults -- --write silence
//! cargo run --release --example faults -- --write ssh
//! ```

#[expect(dead_code, reason = "the soak and the tests use the rest")]
#[path = "../tests/lab/lab.rs"]
mod lab;

use std::{error::Error, io::Write as _, path::PathBuf, sync::Mutex, thread};

use clap::Parser;

use self::lab::{
    line::{self, Cell},
    matrix::{self, Row, Run},
    page::{self, Runs},
    process::{PROCESS_ROWS, ProcessRow, ProcessRun, program},
    ssh::sshd,
    ssh_rows::{SSH_ROWS, SshRow},
};

/// All faults of SSH servers.
const SSH: &str = "ssh";

/// How often a fault in real time is run at most.
const MOST_LONG: u64 = 3;

/// Injects faults into a tunnel at work, and measures what they do.
#[derive(Debug, Parser)]
#[command(name = "faults")]
struct Args {
    /// How often each fault is run, with seeds from 1 on
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..))]
    seeds: u64,
    /// Write the page to tests/faults.md, or into it what was run
    #[arg(long)]
    write: bool,
    /// Faults to run; all if none is named
    names: Vec<String>,
}

fn main() -> Result<(), Box<dyn Error>> {
    let args = Args::parse();
    let all = matrix::rows();
    let real = || SSH_ROWS.iter().map(|row| row.name).chain(PROCESS_ROWS.iter().map(|row| row.name));
    let names = || all.iter().map(|row| row.name).chain(real()).chain([SSH]);
    if let Some(name) = args.names.iter().find(|name| names().all(|known| known != **name)) {
        let known: Vec<_> = names().collect();
        return Err(format!("there is no fault `{name}`; known are {}", known.join(", ")).into());
    }
    let wanted = |name: &str| args.names.is_empty() || args.names.iter().any(|wanted| wanted == name);
    let rows: Vec<Row> = all.iter().filter(|row| wanted(row.name)).copied().collect();
    let ssh_rows: Vec<SshRow> =
        SSH_ROWS.iter().filter(|row| wanted(row.name) || args.names.iter().any(|name| name == SSH)).copied().collect();
    let server = if ssh_rows.is_empty() { None } else { sshd()? };
    if args.write && !ssh_rows.is_empty() && server.is_none() {
        return Err(
            "rows of SSH servers cannot be written without `sshd`: install OpenSSH's server, or name other rows".into(),
        );
    }
    let process_rows: Vec<ProcessRow> = PROCESS_ROWS.iter().filter(|row| wanted(row.name)).copied().collect();
    let program = if process_rows.is_empty() { PathBuf::new() } else { program()? };
    let (mut texts, mut quick_texts) = (Vec::new(), Vec::new());
    let (mut checked, mut wrong) = (0, Vec::new());
    for row in rows {
        let (runs, failures) = run_all(&row, args.seeds);
        checked += runs.iter().map(|run| run.outcome.checked).sum::<u64>();
        let runs = Runs { row, runs };
        quick_texts.extend(page::busy_row(&runs));
        let text = page::row(&runs);
        writeln!(std::io::stderr(), "{text}")?;
        texts.push(text);
        for failure in failures {
            writeln!(std::io::stderr(), "{failure}")?;
            wrong.push(failure);
        }
    }
    let mut line_rows = Vec::new();
    if args.names.is_empty() {
        let cells = Cell::grid();
        for (cell, outcome) in line::run_all(&cells, |_cell, _outcome| {})? {
            let row = line::row(&cell, &outcome).to_vec();
            writeln!(std::io::stderr(), "{}", row.join(" | "))?;
            line_rows.push(row);
        }
    }
    let mut ssh_texts = Vec::new();
    for row in ssh_rows {
        let Some(server) = &server else { break };
        let (runs, failures) = one_by_one(args.seeds.min(MOST_LONG), |seed| row.run(server, seed));
        let text = page::ssh_row(&row, &runs);
        writeln!(std::io::stderr(), "{text}")?;
        ssh_texts.push(text);
        for failure in failures {
            writeln!(std::io::stderr(), "{failure}")?;
            wrong.push(failure);
        }
    }
    let mut process_texts = Vec::new();
    for row in process_rows {
        let seeds = if row.is_long { args.seeds.min(MOST_LONG) } else { args.seeds };
        let (runs, failures): (Vec<ProcessRun>, _) = one_by_one(seeds, |seed| row.run(&program, seed));
        let text = page::process_row(&row, &runs);
        writeln!(std::io::stderr(), "{text}")?;
        process_texts.push(text);
        for failure in failures {
            writeln!(std::io::stderr(), "{failure}")?;
            wrong.push(failure);
        }
    }
    if !wrong.is_empty() {
        return Err(format!("{} runs were not as expected", wrong.len()).into());
    }
    let page = if args.write && !args.names.is_empty() {
        page::with_rows(
            &std::fs::read_to_string(page::PATH)?,
            &all,
            &[texts, quick_texts, ssh_texts, process_texts].concat(),
        )
    } else {
        page::page(args.seeds, &texts, &quick_texts, &line_rows, &ssh_texts, &process_texts, checked)
    };
    if args.write {
        std::fs::write(page::PATH, page)?;
        std::fs::write(page::TESTS_PATH, page::tests(&all))?;
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

/// Runs a fault with every seed, one after the other: they take real time.
fn one_by_one<T>(seeds: u64, run: impl Fn(u64) -> Result<T, String>) -> (Vec<T>, Vec<String>) {
    let (runs, failures): (Vec<_>, Vec<_>) = (1..=seeds).map(run).partition(Result::is_ok);
    (runs.into_iter().flatten().collect(), failures.into_iter().filter_map(Result::err).collect())
}
