//! The binary: arguments, log, runtime, exit code.

use std::{path::PathBuf, process::ExitCode};

use autoheal_pa::{
    cli::{
        Cli, GlobalArgs, LogFormat,
        error::{CommandError, Kind},
        limits::forbid_core_dumps,
        log::LogFile,
        output::Printer,
    },
    manager::background::leave_terminal,
    settings::Environment,
};
use clap::Parser;
use tokio::runtime;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::{Layer, filter::Targets, fmt::MakeWriter, layer::SubscriberExt, util::SubscriberInitExt};

fn main() -> ExitCode {
    forbid_core_dumps();
    let cli = Cli::parse();
    let environment = Environment::read();
    let (printer, log) =
        if cli.is_in_background() { background(&cli, &environment) } else { (Printer::new(&environment), None) };
    let path = log.as_ref().map(|(_, path)| path.clone());
    match log {
        Some((file, _)) => start_log(&cli.global, LevelFilter::INFO, false, file),
        None => start_log(&cli.global, LevelFilter::WARN, printer.colour(), printer.log_writer()),
    }
    run(cli, path, &printer).unwrap_or_else(|error| {
        printer.error(&error);
        error.kind.exit_code()
    })
}

/// Leaves the terminal, and opens the log. Without a log everything else works.
fn background(cli: &Cli, environment: &Environment) -> (Printer, Option<(LogFile, PathBuf)>) {
    let printer = Printer::logged();
    if let Err(error) = leave_terminal() {
        printer.warning(&format!("cannot leave the terminal: {error}"));
    }
    let log = cli.open_log(environment).unwrap_or_else(|error| {
        printer.warning(&format!("there will be no log: {error}"));
        None
    });
    (printer, log)
}

fn run(cli: Cli, log: Option<PathBuf>, printer: &Printer) -> Result<ExitCode, CommandError> {
    let mut builder =
        if cli.needs_threads() { runtime::Builder::new_multi_thread() } else { runtime::Builder::new_current_thread() };
    let runtime = builder
        .enable_all()
        .build()
        .map_err(|error| CommandError::new(Kind::Unexpected, "cannot start the runtime").with_source(error))?;
    let outcome = runtime.block_on(cli.run(log, printer));
    // A blocking call that hangs, such as a look-up of a name, must not keep the process.
    runtime.shutdown_background();
    outcome
}

/// Sends the log where it is to go: warnings of everybody, and of this program as much as is asked for.
fn start_log<W>(global: &GlobalArgs, quiet: LevelFilter, colour: bool, writer: W)
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let level = match global.verbose {
        0 => quiet,
        1 => LevelFilter::INFO,
        2 => LevelFilter::DEBUG,
        _ => LevelFilter::TRACE,
    };
    // Other crates never get further: below WARN some of them show requests with their credentials.
    let aws = if global.verbose < 2 { LevelFilter::ERROR } else { LevelFilter::WARN };
    let filter =
        Targets::new().with_default(LevelFilter::WARN).with_target("aws_", aws).with_target("autoheal_pa", level);
    let layer = tracing_subscriber::fmt::layer().with_writer(writer).with_ansi(colour);
    let layer = match global.log_format {
        LogFormat::Text => layer.boxed(),
        LogFormat::Json => layer.json().boxed(),
    };
    tracing_subscriber::registry().with(layer.with_filter(filter)).init();
}
