//! The binary: arguments, log, runtime, exit code.

use std::process::ExitCode;

use autoheal_pa::{
    cli::{Cli, GlobalArgs, LogFormat, error::CommandError, error::Kind, output::Printer},
    settings::Environment,
};
use clap::Parser;
use tokio::runtime;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::{Layer, filter::Targets, layer::SubscriberExt, util::SubscriberInitExt};

fn main() -> ExitCode {
    let cli = Cli::parse();
    let printer = Printer::new(&Environment::read());
    start_log(&cli.global, &printer);
    run(cli, &printer).unwrap_or_else(|error| {
        printer.error(&error);
        error.kind.exit_code()
    })
}

fn run(cli: Cli, printer: &Printer) -> Result<ExitCode, CommandError> {
    let mut builder =
        if cli.needs_threads() { runtime::Builder::new_multi_thread() } else { runtime::Builder::new_current_thread() };
    let runtime = builder
        .enable_all()
        .build()
        .map_err(|error| CommandError::new(Kind::Unexpected, "cannot start the runtime").with_source(error))?;
    let outcome = runtime.block_on(cli.run(printer));
    // A blocking call that hangs, such as a look-up of a name, must not keep the process.
    runtime.shutdown_background();
    outcome
}

/// Sends the log to stderr: warnings of everybody, and of this program as much as is asked for.
fn start_log(global: &GlobalArgs, printer: &Printer) {
    let level = match global.verbose {
        0 => LevelFilter::WARN,
        1 => LevelFilter::INFO,
        2 => LevelFilter::DEBUG,
        _ => LevelFilter::TRACE,
    };
    // Other crates never get further: below WARN some of them show requests with their credentials.
    let aws = if global.verbose < 2 { LevelFilter::ERROR } else { LevelFilter::WARN };
    let filter =
        Targets::new().with_default(LevelFilter::WARN).with_target("aws_", aws).with_target("autoheal_pa", level);
    let layer = tracing_subscriber::fmt::layer().with_writer(printer.log_writer()).with_ansi(printer.colour());
    let layer = match global.log_format {
        LogFormat::Text => layer.boxed(),
        LogFormat::Json => layer.json().boxed(),
    };
    tracing_subscriber::registry().with(layer.with_filter(filter)).init();
}
