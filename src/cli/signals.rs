//! The signals that end a command.

use tokio::signal::unix::{SignalKind, signal};

use super::error::{CommandError, Kind};

/// A signal that asks for an end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Signal {
    /// SIGINT: Ctrl-C.
    Interrupt,
    /// SIGTERM.
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
}

impl Signals {
    /// Starts to listen.
    ///
    /// # Errors
    /// If the system refuses.
    pub(super) fn listen() -> Result<Self, CommandError> {
        let failed = |error| CommandError::new(Kind::Unexpected, "cannot listen for signals").with_source(error);
        Ok(Self {
            interrupt: signal(SignalKind::interrupt()).map_err(failed)?,
            terminate: signal(SignalKind::terminate()).map_err(failed)?,
        })
    }

    /// Waits for the next signal.
    ///
    /// # Cancel safety
    /// No signal is lost.
    pub(super) async fn next(&mut self) -> Signal {
        tokio::select! {
            biased;
            Some(()) = self.interrupt.recv() => Signal::Interrupt,
            Some(()) = self.terminate.recv() => Signal::Terminate,
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
}
