//! `up --detach`: starts the manager in the background, and shows what it says until it is ready.

use std::{
    os::unix::process::ExitStatusExt,
    path::PathBuf,
    process::{ExitCode, ExitStatus},
};

use super::{
    error::{CommandError, Kind},
    output::Printer,
    signals::Signals,
};
use crate::{
    manager::{
        background::{Attended, Background, FLAG, READY_LINE},
        control::{self, ControlError},
    },
    settings::UpSettings,
};

/// Starts `up` in the background and waits until its tunnels are ready, or it has failed.
///
/// # Errors
/// It cannot be started, or a manager of its name is running. What it fails of itself is shown, and becomes the exit code.
pub(super) async fn launch(settings: &UpSettings, printer: &Printer) -> Result<ExitCode, CommandError> {
    let dir = &settings.common.control_dir;
    if let Some(holder) = control::holder(dir)? {
        // The other process would find out as well, and say so in the log of the one that is running.
        return Err(ControlError::Running { dir: dir.clone(), pid: holder.pid }.into());
    }
    let mut signals = Signals::listen()?;
    let Some(program) = &settings.common.executable else {
        return Err(unexpected("find the path of this program"));
    };
    let started = Background::start(program);
    let mut background =
        started.map_err(|error| unexpected(&format!("run `{}`", program.display())).with_source(error))?;
    let waiting = background.take_waiting();
    let mut relayed = Box::pin(background.relay(|line| printer.relay(line)));
    let outcome = tokio::select! {
        biased;
        signal = signals.next() => {
            // It notices, says what it does, and ends in good order.
            drop(waiting);
            tokio::select! {
                biased;
                _again = signals.next() => {}
                _ended = &mut relayed => {}
            }
            return Err(CommandError::from(signal));
        }
        outcome = &mut relayed => outcome,
    };
    match outcome.map_err(|error| unexpected("wait for the process in the background").with_source(error))? {
        None => printer.result(READY_LINE).map(|()| ExitCode::SUCCESS),
        Some(status) => Ok(exit_code(status)),
    }
}

/// Finds whoever waits for this process in the background to be ready; `log` is where it logs to.
///
/// # Errors
/// This process was not started by [`launch`].
pub(super) fn attended(log: Option<PathBuf>) -> Result<Attended, CommandError> {
    Attended::new(log).map_err(|error| {
        let message = format!("`{FLAG}` is for the process that `--detach` starts");
        CommandError::new(Kind::Usage, message).with_source(error).hint("use `--detach`")
    })
}

pub(super) fn unexpected(what: &str) -> CommandError {
    CommandError::new(Kind::Unexpected, format!("cannot {what}"))
}

/// Returns a status as a shell does: 128 and the signal's number for a command that a signal ended.
pub(super) fn exit_code(status: ExitStatus) -> ExitCode {
    ExitCode::from(exit_code_of(status))
}

/// Returns it as a number.
pub(super) fn exit_code_of(status: ExitStatus) -> u8 {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(1);
    u8::try_from(code).unwrap_or(1)
}
