//! The manager in the background: how `up --detach` starts it, and how it parts from whoever has started it.
//!
//! The process in the background is this program again, with the same arguments and `--background`, in a session of
//! its own. Until its tunnels are ready it speaks to the one in the foreground through pipes, which shows what it says
//! and ends as it ends; after that it has nothing open that anybody could wait for.
//!
//! ```text
//! foreground ── stdin: closes when nobody waits any more ──► background
//!            ◄── stdout, stderr: what `up` says ────────────
//! ```
//!
//! It keeps its current directory, as files that the SDK reads again may be named relative to that.

use std::{
    ffi::OsString,
    fs::File,
    io,
    os::{fd::AsFd, unix::process::ExitStatusExt},
    path::PathBuf,
    process::{ExitCode, ExitStatus, Stdio},
};

use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, BufReader},
    net::unix::pipe,
    process::{Child, Command},
};

use super::{
    error::{CommandError, Kind},
    output::Printer,
    signals::Signals,
    up::READY_LINE,
};
use crate::{
    manager::control::{self, ControlError},
    settings::UpSettings,
};

/// The flag of the process in the background.
const FLAG: &str = "--background";

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
    let mut child = spawn(settings)?;
    let waited_for = child.stdin.take();
    let mut relayed = Box::pin(relay(&mut child, printer));
    let outcome = tokio::select! {
        biased;
        signal = signals.next() => {
            // It notices, says what it does, and ends in good order.
            drop(waited_for);
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

fn spawn(settings: &UpSettings) -> Result<Child, CommandError> {
    let Some(program) = &settings.common.executable else {
        return Err(unexpected("find the path of this program"));
    };
    let arguments: Vec<OsString> = std::env::args_os().skip(1).filter(|argument| argument != "--detach").collect();
    Command::new(program)
        .args(arguments)
        .arg(FLAG)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| unexpected(&format!("run `{}`", program.display())).with_source(error))
}

/// Shows what the process in the background says until it is ready, or has ended with a status.
async fn relay(child: &mut Child, printer: &Printer) -> io::Result<Option<ExitStatus>> {
    let (Some(out), Some(err)) = (child.stdout.take(), child.stderr.take()) else {
        return child.wait().await.map(Some);
    };
    let mut ready = false;
    let results = async {
        let mut lines = BufReader::new(out).lines();
        while let Some(line) = lines.next_line().await? {
            ready |= line == READY_LINE;
        }
        Ok::<_, io::Error>(())
    };
    let progress = async {
        let mut lines = BufReader::new(err).lines();
        while let Some(line) = lines.next_line().await? {
            printer.relay(&line);
        }
        Ok::<_, io::Error>(())
    };
    // Both end when it is ready, or gone.
    tokio::try_join!(results, progress)?;
    if ready { Ok(None) } else { child.wait().await.map(Some) }
}

/// Makes this process one of the background: neither a terminal nor whoever reads a job's output has a hold on it.
///
/// # Errors
/// If the system refuses.
pub fn leave_terminal() -> io::Result<()> {
    rustix::process::setsid()?;
    Ok(())
}

/// Whoever waits for this process in the background to be ready.
pub struct Attended {
    /// Has nothing to read, and ends when nobody waits any more.
    waiting: pipe::Receiver,
    log: Option<PathBuf>,
}

impl Attended {
    /// Makes it from this process's stdin; `log` is where this process logs to.
    ///
    /// # Errors
    /// Stdin is not a pipe, so this process was not started by [`launch`].
    ///
    /// # Panics
    /// Outside of a tokio runtime with IO enabled.
    pub(super) fn new(log: Option<PathBuf>) -> Result<Self, CommandError> {
        let waiting = io::stdin().as_fd().try_clone_to_owned().and_then(pipe::Receiver::from_owned_fd);
        waiting.map(|waiting| Self { waiting, log }).map_err(|error| {
            let message = format!("`{FLAG}` is for the process that `--detach` starts");
            CommandError::new(Kind::Usage, message).with_source(error).hint("use `--detach`")
        })
    }

    /// Returns where this process logs to.
    pub(super) fn log(&self) -> Option<PathBuf> {
        self.log.clone()
    }

    /// Waits until nobody waits any more; with `None` for ever.
    ///
    /// # Cancel safety
    /// Can be dropped at any time.
    pub(super) async fn abandoned(this: Option<&mut Self>) {
        let Some(this) = this else { return std::future::pending().await };
        while this.waiting.read_u8().await.is_ok() {}
    }

    /// Lets whoever waits go. From then on there is only the log.
    pub(super) fn release(self, printer: &Printer) {
        let redirect = || -> io::Result<()> {
            let null = File::options().read(true).write(true).open("/dev/null")?;
            rustix::stdio::dup2_stdin(&null)?;
            rustix::stdio::dup2_stdout(&null)?;
            rustix::stdio::dup2_stderr(&null)?;
            Ok(())
        };
        if let Err(error) = redirect() {
            printer.warning(&format!("cannot part from whoever waits for this process: {error}"));
        }
    }
}

fn unexpected(what: &str) -> CommandError {
    CommandError::new(Kind::Unexpected, format!("cannot {what}"))
}

/// Returns a status as a shell does: 128 and the signal's number for a command that a signal ended.
pub(super) fn exit_code(status: ExitStatus) -> ExitCode {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(1);
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}
