//! Keeps a tunnel open for 30 days of virtual time, through hourly closes, nights and faults by chance, and fails on any
//! byte, stream, task or memory that is lost or left behind:
//!
//! ```text
//! cargo run --release --example soak -- --days 30 --seed 7
//! ```

#[expect(dead_code, reason = "the matrix and the tests use the rest")]
#[path = "../tests/lab/lab.rs"]
mod lab;

use std::{error::Error, io::Write as _};

use autoheal_pa::clock;
use clap::Parser;

/// Lets a tunnel live for days.
#[derive(Debug, Parser)]
#[command(name = "soak")]
struct Args {
    /// How many days
    #[arg(long, value_name = "N", default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..))]
    days: u32,
    /// Seed of everything that happens by chance; a new one each time if none is given
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// How many sessions the tunnel may have
    #[arg(long, value_name = "N", default_value_t = 1)]
    sessions: usize,
}

fn main() -> Result<(), Box<dyn Error>> {
    let args = Args::parse();
    let seed = args.seed.unwrap_or_else(|| u64::from(clock::wall().subsec_nanos()));
    let mut stdout = std::io::stdout();
    writeln!(stdout, "{} days with --seed {seed} --sessions {}", args.days, args.sessions)?;
    let report = lab::soak::soak(args.days, seed, args.sessions)?;
    writeln!(
        stdout,
        "{} faults, {} resumes, {} new sessions; {} MB compared, none lost; memory {} MiB after 3 days, {} MiB at the end",
        report.faults,
        report.resumes,
        report.restarts,
        report.bytes / 1_000_000,
        report.memory.0 >> 20,
        report.memory.1 >> 20
    )?;
    Ok(())
}
