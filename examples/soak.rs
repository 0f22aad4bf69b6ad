//! Keeps a tunnel open for 30 days of virtual time, through hourly closes, nights and faults by chance, and fails on any
//! byte, stream, task or memory that is lost or left behind:
//!
//! ```text
//! cargo run --release --example soak -- --days 30 --seed 7
//! ```
//!
//! Or replaces the bastion of the real program again and again, in real time, and fails on any new connection that is
//! refused or waits for long. The program has to be there, built in the same profile:
//!
//! ```text
//! cargo build && cargo run --example soak -- --redeploy 10
//! ```

//! Or lives through so many closes of an EC2 Instance Connect Endpoint, 720 of which are a month, against OpenSSH's own server, and
//! fails on any new connection that is refused. It takes 1.25 s for each:
//!
//! ```text
//! cargo run --release --example soak -- --endpoint-closes 720
//! ```

#[expect(dead_code, reason = "the matrix and the tests use the rest")]
#[path = "../tests/lab/lab.rs"]
mod lab;

use std::{error::Error, io::Write as _};

use autoheal_pa::clock;
use clap::Parser;

use self::lab::{
    process::program,
    replaced::{Report, Trial},
    ssh::sshd,
    ssh_soak::{Rest, SshReport, ssh_soak},
};

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
    /// Instead: for so many minutes, deploy the ECS service that is the bastion anew every 30 s
    #[arg(long, value_name = "MINUTES", value_parser = clap::value_parser!(u32).range(1..))]
    redeploy: Option<u32>,
    /// Instead: for so many minutes, replace the bastion of an Auto Scaling group once a minute
    #[arg(long, value_name = "MINUTES", conflicts_with = "redeploy", value_parser = clap::value_parser!(u32).range(1..))]
    replace: Option<u32>,
    /// Instead: let an EC2 Instance Connect Endpoint close the connection so many times, as it does after each hour
    #[arg(long, value_name = "N", conflicts_with_all = ["redeploy", "replace"], value_parser = clap::value_parser!(u32).range(1..))]
    endpoint_closes: Option<u32>,
}

fn main() -> Result<(), Box<dyn Error>> {
    let args = Args::parse();
    let seed = args.seed.unwrap_or_else(|| u64::from(clock::wall().subsec_nanos()));
    let mut stdout = std::io::stdout();
    let trial = args.redeploy.map(Trial::long_deployments).or(args.replace.map(Trial::long_replacements));
    if let Some(trial) = trial {
        let Report { visits, cuts, longest, sessions, checked, said } = trial.run(&program()?)?;
        writeln!(std::io::stderr(), "{said}")?;
        writeln!(
            stdout,
            "{} new connections answered, {} refused, the longest wait {:.1} s; {cuts} connections cut, {sessions} sessions; \
             {} MB compared, none lost",
            visits.answered,
            visits.refused,
            longest.as_secs_f64(),
            checked / 1_000_000
        )?;
        return Ok(());
    }
    if let Some(closes) = args.endpoint_closes {
        let Some(server) = sshd()? else { return Ok(()) };
        writeln!(stdout, "{closes} closes of an endpoint with --seed {seed}")?;
        let SshReport { closes, answered, cuts, longest, bytes, rest: (then, now) } = ssh_soak(&server, closes, seed)?;
        writeln!(
            stdout,
            "{closes} closed; {answered} new connections answered, none refused, the longest wait {:.1} s; {cuts} connections cut at \
             their close; {} MB compared, none lost",
            longest.as_secs_f64(),
            bytes / 1_000_000
        )?;
        for (when, Rest { memory, tasks, files }) in [("after the first days", then), ("at the end", now)] {
            writeln!(stdout, "{when}: memory {} MiB, {tasks} tasks, {files} open files", memory >> 20)?;
        }
        return Ok(());
    }
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
