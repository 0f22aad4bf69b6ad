//! `reload`: has the running manager look for clusters again, as SIGHUP does.

use std::{process::ExitCode, time::Duration};

use super::{
    GlobalArgs,
    error::{CommandError, Kind},
    output::Printer,
};
use crate::{
    manager::control::{self, Answer, Request},
    settings::{Environment, Settings},
};

/// Time for the manager to look for clusters and to close tunnels.
const DEADLINE: Duration = Duration::from_secs(120);

/// Has the manager look again, and says what has changed.
///
/// # Errors
/// No manager is running, or it refuses, or something could not be looked at again.
pub async fn run(global: GlobalArgs, printer: &Printer) -> Result<ExitCode, CommandError> {
    let settings = Settings::without_file(&global, &Environment::read())?;
    let changes = match control::ask(&settings.control_dir, &Request::Reload, DEADLINE).await? {
        Answer::Reloaded(changes) => changes,
        Answer::Token(_) | Answer::Status(_) | Answer::Stopping | Answer::Finding(_) | Answer::Done => {
            return Err(CommandError::new(Kind::Unexpected, "the manager gave an unexpected answer"));
        }
    };
    for context in &changes.added {
        printer.result(&format!("added {context}"))?;
    }
    for context in &changes.removed {
        printer.result(&format!("removed {context}"))?;
    }
    printer.result(&format!("kept {}", changes.kept))?;
    if let Some(later) = &changes.later {
        printer.warning(later);
    }
    match changes.problems.split_first() {
        None => Ok(ExitCode::SUCCESS),
        Some((first, others)) => {
            for problem in others {
                printer.warning(problem);
            }
            Err(CommandError::new(Kind::Unexpected, first.clone()).hint("the tunnels there were left as they are"))
        }
    }
}
