//! Measures whole tunnels against the emulated AWS on loopback: throughput, latency, cost, memory, start. Next to each
//! figure stands a reference from the same run, and their ratio, which depends less on the machine.
//!
//! ```text
//! cargo build --profile dist && cargo run --profile dist --example bench
//! cargo run --profile dist --example bench -- --only download,cpu --runs 9
//! ```
//!
//! The program under test is the real one, which has to be there, built in the same profile. Everything else is this
//! program in other roles, each in a process of its own: the emulated AWS, the destination, both halves of a bare
//! WebSocket, and the load.
//!
//! It fails if something does not work, never because of a figure.

mod bare;
mod destination;
mod emulator;
mod figures;
#[expect(dead_code, reason = "the matrix, the soak and the tests use the rest")]
#[path = "../../tests/lab/lab.rs"]
mod lab;
mod least;
mod line;
mod load;
mod measure;
mod openssh;
mod processes;
mod report;
mod rivals;

use std::{
    io::{self, Write as _},
    net::SocketAddr,
    process::ExitCode,
    time::Duration,
};

use clap::{Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};

use self::{
    figures::{Group, Plan},
    processes::{released, say},
};

/// Any error, on its way to whoever has started this.
type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Measures whole tunnels against the emulated AWS.
#[derive(Debug, Parser)]
#[command(name = "bench")]
struct Args {
    /// How often each figure is measured; the median counts
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..))]
    runs: u16,
    /// Groups of figures to measure, separated by commas; all if none is named
    #[arg(long, value_name = "GROUP", value_enum, value_delimiter = ',')]
    only: Vec<Group>,
    /// Measures once, with hardly any load, to see whether everything works: the figures mean nothing
    #[arg(long)]
    quick: bool,
    /// Prints the table in Markdown
    #[arg(long)]
    markdown: bool,
    #[command(flatten)]
    rivals: rivals::Programs,
    #[command(subcommand)]
    role: Option<Role>,
}

/// What this process is, if it does not measure.
#[derive(Debug, Clone, Subcommand)]
enum Role {
    /// The emulated AWS
    #[command(hide = true)]
    Emulator(emulator::World),
    /// The destination
    #[command(hide = true)]
    Destination { api_server: SocketAddr, at: Option<SocketAddr> },
    /// The far half of the bare WebSocket
    #[command(hide = true)]
    BareServer { destination: SocketAddr, delay_ms: u64 },
    /// The least client of Session Manager
    #[command(hide = true)]
    LeastClient { url: String, token: String },
    /// The near half of the bare WebSocket
    #[command(hide = true)]
    BareClient { server: SocketAddr, relay: SocketAddr },
}

fn main() -> ExitCode {
    let args = Args::parse();
    let mut runtime = match args.role {
        // There are fewer processors than processes: what is not under test is not to fight for them with itself.
        Some(Role::Emulator(_) | Role::Destination { .. } | Role::BareServer { .. }) | None => {
            tokio::runtime::Builder::new_current_thread()
        }
        Some(Role::BareClient { .. } | Role::LeastClient { .. }) => tokio::runtime::Builder::new_multi_thread(),
    };
    let outcome = runtime.enable_all().build().map_err(BoxError::from).and_then(|runtime| {
        runtime.block_on(async {
            match &args.role {
                Some(role) => play(role.clone()).await.map(|()| ExitCode::SUCCESS),
                None => measure(&args).await,
            }
        })
    });
    outcome.unwrap_or_else(|error| {
        let _unheard = writeln!(io::stderr(), "error: {error}");
        ExitCode::FAILURE
    })
}

/// Plays a role until it is released.
async fn play(role: Role) -> Result<(), BoxError> {
    let role = async {
        match role {
            Role::Emulator(world) => emulator::run(world, |hello| say(&hello)).await?,
            Role::Destination { api_server, at } => destination::run(api_server, at, |hello| say(&hello)).await?,
            Role::BareServer { destination, delay_ms } => {
                bare::serve(destination, Duration::from_millis(delay_ms), |hello| say(&hello)).await?;
            }
            Role::LeastClient { url, token } => least::run(url, token, |hello| say(&hello)).await?,
            Role::BareClient { server, relay } => bare::run_client(server, relay, |hello| say(&hello)).await?,
        }
        Ok(())
    };
    tokio::select! {
        ended = role => ended,
        () = released() => Ok(()),
    }
}

/// Measures, and prints the report. A signal ends it, and all processes with it.
async fn measure(args: &Args) -> Result<ExitCode, BoxError> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let plan = if args.quick { Plan::quick() } else { Plan::full(args.runs.into()) };
    let form = if args.markdown { report::Form::Markdown } else { report::Form::Text };
    let text = async {
        let mut text = String::new();
        if args.only.is_empty() || args.only.iter().any(|group| *group != Group::Line) {
            let figures = figures::measure(&plan, &args.only, &args.rivals).await?;
            text.push_str(&report::table(&figures, form));
            text.push_str(&report::targets(&figures, form));
        }
        if args.only.is_empty() || args.only.contains(&Group::Line) {
            text.push_str(&line::measure(args.quick, form).await?);
        }
        Ok::<_, BoxError>(text)
    };
    let mut text = tokio::select! {
        biased;
        _ = interrupt.recv() => return Ok(ExitCode::from(130)),
        _ = terminate.recv() => return Ok(ExitCode::from(143)),
        text = text => text?,
    };
    if args.quick {
        text.push_str("\nThese figures mean nothing: they were measured once, with hardly any load.\n");
    }
    io::stdout().write_all(text.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}
