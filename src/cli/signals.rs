//! The signals that a command answers to.
//!
//! SIGHUP means two things. A terminal that is closed sends it to what runs there, which is to end. Where there is no
//! terminal, as in the background and under systemd, somebody sends it to have the clusters looked for again. And
//! whoever starts a program with `nohup` wants neither.

use std::fs;

use tokio::signal::unix::{SignalKind, signal};

use super::error::{CommandError, Kind};

/// A signal that asks for an end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Signal {
    /// SIGINT: Ctrl-C.
    Interrupt,
    /// SIGTERM, or SIGHUP of a terminal that has been closed.
    Terminate,
}

impl From<Signal> for CommandError {
    fn from(signal: Signal) -> Self {
        match signal {
            Signal::Interrupt => Self::new(Kind::Interrupted, "interrupted"),
            Signal::Terminate => Self::new(Kind::Terminated, "terminated"),
        }
    }
}

/// Listens for signals; from then on they do not end the process by themselves.
pub(super) struct Signals {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
    /// `None`: it is ignored.
    hangup: Option<tokio::signal::unix::Signal>,
    /// There is a terminal that may be closed.
    has_terminal: bool,
}

impl Signals {
    /// Starts to listen.
    ///
    /// # Errors
    /// If the system refuses.
    pub(super) fn listen() -> Result<Self, CommandError> {
        let listen = |kind| {
            signal(kind)
                .map_err(|error| CommandError::new(Kind::Unexpected, "cannot listen for signals").with_source(error))
        };
        Ok(Self {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
            hangup: if is_ignored(SignalKind::hangup()) { None } else { Some(listen(SignalKind::hangup())?) },
            has_terminal: has_terminal(),
        })
    }

    /// Waits for the next signal that asks for an end.
    ///
    /// # Cancel safety
    /// No signal is lost.
    pub(super) async fn next(&mut self) -> Signal {
        let Self { interrupt, terminate, hangup, has_terminal } = self;
        let hangup = async {
            match hangup {
                Some(hangup) if *has_terminal => hangup.recv().await,
                _ => None,
            }
        };
        tokio::select! {
            biased;
            Some(()) = interrupt.recv() => Signal::Interrupt,
            Some(()) = terminate.recv() => Signal::Terminate,
            Some(()) = hangup => Signal::Terminate,
            else => std::future::pending().await,
        }
    }

    /// Waits for an interrupt only.
    ///
    /// # Cancel safety
    /// No interrupt is lost.
    pub(super) async fn interrupt(&mut self) {
        if self.interrupt.recv().await.is_none() {
            std::future::pending::<()>().await;
        }
    }

    /// Returns what waits for somebody who wants the clusters to be looked for again.
    pub(super) fn reloads(&mut self) -> Reloads {
        Reloads(if self.has_terminal { None } else { self.hangup.take() })
    }
}

/// SIGHUP where there is no terminal.
pub(super) struct Reloads(Option<tokio::signal::unix::Signal>);

impl Reloads {
    /// Waits for the next.
    ///
    /// # Cancel safety
    /// None is lost.
    pub(super) async fn next(&mut self) {
        let next = match &mut self.0 {
            Some(hangup) => hangup.recv().await,
            None => None,
        };
        if next.is_none() {
            std::future::pending::<()>().await;
        }
    }
}

/// Tells whether this process has a controlling terminal.
pub(super) fn has_terminal() -> bool {
    fs::File::open("/dev/tty").is_ok()
}

/// Tells whether whoever started this process has it ignore a signal. Only Linux says so.
fn is_ignored(kind: SignalKind) -> bool {
    let Ok(status) = fs::read_to_string("/proc/self/status") else { return false };
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    let bit = u32::try_from(kind.as_raw_value() - 1).unwrap_or(u32::MAX);
    mask.zip(1_u64.checked_shl(bit)).is_some_and(|(mask, bit)| mask & bit != 0)
}
