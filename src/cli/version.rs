//! `version`: what this program is.

use std::process::ExitCode;

use clap::Args;

use super::{
    error::{CommandError, Kind},
    output::Printer,
};
use crate::version::Program;

#[derive(Debug, Clone, Default, Args)]
pub struct VersionArgs {
    /// Writes JSON
    #[arg(long)]
    pub json: bool,
}

/// Prints version, commit, target and profile.
///
/// # Errors
/// Nobody takes what is printed.
pub fn run(args: &VersionArgs, printer: &Printer) -> Result<ExitCode, CommandError> {
    let program = Program::this();
    let text = if args.json {
        serde_json::to_string_pretty(&program).map_err(|error| {
            CommandError::new(Kind::Unexpected, "cannot write the version as JSON").with_source(error)
        })?
    } else {
        let commit = program.commit.unwrap_or("not known: a build for development, or of sources without a repository");
        let lines = [
            ("version", program.version),
            ("commit", commit),
            ("target", program.target),
            ("profile", program.profile),
            ("demo", if program.demo { "yes" } else { "no" }),
        ];
        lines.map(|(label, value)| format!("{label:<8} {value}")).join("\n")
    };
    printer.result(&text)?;
    Ok(ExitCode::SUCCESS)
}
