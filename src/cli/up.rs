//! `up`: opens the tunnels and keeps them open until it is told to stop, by a signal or by `down`.
//!
//! In the foreground it stays and keeps trying when not all tunnels are ready in time. In the background, where
//! somebody waits for it to be ready, it fails.

use std::{pin::pin, process::ExitCode, time::Duration};

use sd_notify::NotifyState;
use tokio::sync::watch;

use super::{
    ask, doctor,
    error::{CommandError, Kind},
    events::shown,
    limits,
    output::Printer,
    progress::{failure, in_time, report_unready, show_changes, until_ready},
    signals::{Reloads, Signal, Signals},
};
use crate::{
    manager::{
        Asked, Manager, Requests,
        background::{Attended, READY_LINE},
        control::Refusal,
        supervisor::Board,
    },
    settings::{SettingsError, UpSettings},
};

/// Reads the settings again, for a reload.
pub type Reread = Box<dyn Fn() -> Result<UpSettings, SettingsError> + Send + Sync>;

/// Opens the tunnels and keeps them open until it is told to stop. With `attended`, this is the process in the
/// background of whoever waits there.
///
/// # Errors
/// Whatever keeps every tunnel from being opened; a signal before the tunnels were ready.
pub async fn run(
    settings: UpSettings,
    reread: Reread,
    attended: Option<Attended>,
    printer: &Printer,
) -> Result<ExitCode, CommandError> {
    let mut signals = Signals::listen()?;
    limits::raise_open_files();
    let log = attended.as_ref().and_then(Attended::log);
    let ask = if attended.is_none() { ask::on_terminal(printer) } else { None };
    let (manager, requests) = Manager::bind(settings, log, shown(printer).asking(ask), doctor::entry)?;
    let mut up = Up { manager, reloads: signals.reloads(), requests, reread, attended, forget: false };
    let outcome = up.keep(&mut signals, printer).await;
    // Nobody has been told of the contexts of a background that did not come up.
    let forget = up.forget || up.attended.is_some();
    notify(&[NotifyState::Stopping]);
    if !up.manager.board().borrow().tunnels.is_empty() {
        printer.progress("stopping: ending the sessions");
    }
    tokio::select! {
        biased;
        () = signals.interrupt() => Err(Signal::Interrupt.into()),
        () = up.manager.stop(forget) => outcome.map(|()| ExitCode::SUCCESS),
    }
}

struct Up {
    manager: Manager,
    reloads: Reloads,
    requests: Requests,
    reread: Reread,
    attended: Option<Attended>,
    /// The contexts are to leave the kubeconfig.
    forget: bool,
}

impl Up {
    /// Keeps the tunnels open until it is told to stop. Fails if they cannot be had, or have never been ready.
    async fn keep(&mut self, signals: &mut Signals, printer: &Printer) -> Result<(), CommandError> {
        let Self { manager, requests, forget, attended, .. } = self;
        let is_attended = attended.is_some();
        let mut early = Box::pin(async {
            let (why, by_client) = tokio::select! {
                biased;
                signal = signals.next() => (CommandError::from(signal), false),
                () = until_stop(requests) => {
                    let message = "stopped by `autoheal-pa down` before the tunnels were ready";
                    (CommandError::new(Kind::Terminated, message), true)
                }
                () = Attended::abandoned(attended.as_mut()) => {
                    let message = "the process that waited for the tunnels is gone";
                    (CommandError::new(Kind::Terminated, message), true)
                }
            };
            *forget = by_client;
            why
        });
        tokio::select! {
            biased;
            told = &mut early => return Err(told),
            opened = manager.open() => opened?,
        }
        let (board, hope) = (manager.board(), manager.hope());
        let limit = manager.settings().timeout;
        let ready = tokio::select! {
            biased;
            told = &mut early => return Err(told),
            outcome = in_time(manager.settings(), &board, until_ready(board.clone(), &hope, printer)) => outcome,
        };
        match ready {
            Ok(Ok(())) => {}
            Ok(Err(hopeless)) => return Err(failure(&hopeless, printer)),
            Err(_) => {
                let now = board.borrow().clone();
                if is_attended || !hope.is_left(&now, true) {
                    return Err(failure(&now, printer));
                }
                report_unready(&now, limit.as_secs(), printer);
                printer.progress("still trying: Ctrl-C stops");
                // A unit that waited any longer would be restarted, with all that works.
                notify(&[NotifyState::Ready, NotifyState::Status(&summary(&now))]);
                drop(early);
                return self.serve(signals, board, false, printer).await;
            }
        }
        drop(early);
        announce(&board, printer)?;
        if let Some(attended) = self.attended.take()
            && let Err(error) = attended.release()
        {
            printer.warning(&format!("cannot detach from the process that waits for this one: {error}"));
        }
        self.serve(signals, board, true, printer).await
    }

    /// Shows what happens, and looks for clusters again when asked to, until it is told to stop. `ready`: the tunnels
    /// have been, and whoever waits for that has been told.
    async fn serve(
        &mut self,
        signals: &mut Signals,
        board: watch::Receiver<Board>,
        mut ready: bool,
        printer: &Printer,
    ) -> Result<(), CommandError> {
        let mut shown = pin!(show_changes(board.clone(), printer));
        let mut told = pin!(tell_systemd(board.clone()));
        let mut manager_unused = pin!(self.manager.unused());
        let end = |signal: Signal, ready: bool| if ready { Ok(()) } else { Err(CommandError::from(signal)) };
        loop {
            let reply = tokio::select! {
                biased;
                signal = signals.next() => return end(signal, ready),
                () = self.reloads.next() => None,
                asked = self.requests.recv() => match asked {
                    Some(Asked::Reload { reply }) => Some(reply),
                    Some(Asked::Stop) | None => {
                        self.forget = true;
                        return end(Signal::Terminate, ready);
                    }
                },
                () = wait_ready(board.clone()), if !ready => {
                    ready = true;
                    announce(&board, printer)?;
                    continue;
                }
                () = manager_unused.as_mut() => {
                    printer.progress("nobody has used the tunnels for a while: ending");
                    return Ok(());
                }
                () = &mut shown => return Ok(()),
                () = &mut told => return Ok(()),
            };
            printer.progress("looking for clusters again");
            let Self { manager, requests, reread, .. } = self;
            let mut reload = Box::pin(async {
                let settings = reread()?;
                Ok::<_, CommandError>(manager.reload(settings).await?)
            });
            let outcome = loop {
                tokio::select! {
                    biased;
                    signal = signals.next() => return end(signal, ready),
                    asked = requests.recv() => match asked {
                        Some(Asked::Reload { reply }) => {
                            let refusal = Refusal::new("reloading", "the manager is already looking for clusters");
                            let _unsent = reply.send(Err(refusal));
                        }
                        Some(Asked::Stop) | None => {
                            self.forget = true;
                            return end(Signal::Terminate, ready);
                        }
                    },
                    outcome = &mut reload => break outcome,
                }
            };
            drop(reload);
            match &outcome {
                Ok(changes) => {
                    let (added, removed) = (changes.added.len(), changes.removed.len());
                    printer.progress(&format!("tunnels: {added} added, {removed} removed, {} kept", changes.kept));
                    for problem in changes.later.iter().chain(&changes.problems) {
                        printer.warning(problem);
                    }
                }
                Err(error) => printer.caution(error),
            }
            if let Some(reply) = reply {
                let refused = |error: CommandError| Refusal::new("reload", error.sentence());
                // Whoever asked may be gone.
                let _unsent = reply.send(outcome.map_err(refused));
            }
        }
    }
}

async fn wait_ready(mut board: watch::Receiver<Board>) {
    if board.wait_for(Board::is_ready).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Says that every tunnel is proved to work.
fn announce(board: &watch::Receiver<Board>, printer: &Printer) -> Result<(), CommandError> {
    printer.result(READY_LINE)?;
    let summary = summary(&board.borrow());
    notify(&[NotifyState::Ready, NotifyState::Status(&summary)]);
    Ok(())
}

/// Waits for somebody who wants an end. Other requests can wait until the tunnels are ready.
async fn until_stop(requests: &mut Requests) {
    loop {
        match requests.recv().await {
            Some(Asked::Stop) | None => return,
            Some(Asked::Reload { reply }) => {
                let refusal = Refusal::new("starting", "the tunnels are not ready yet: try again when they are");
                let _unsent = reply.send(Err(refusal));
            }
        }
    }
}

/// Keeps the status that systemd shows up to date. Never ends.
async fn tell_systemd(mut board: watch::Receiver<Board>) {
    let (mut said, mut seen) = (String::new(), board.borrow().news);
    while let Ok(now) = board.wait_for(|board| board.news != seen).await {
        seen = now.news;
        let summary = summary(&now);
        drop(now);
        if summary != said {
            notify(&[NotifyState::Status(&summary)]);
            said = summary;
        }
    }
    std::future::pending::<()>().await;
}

fn summary(board: &Board) -> String {
    let active = board.tunnels.iter().filter(|tunnel| tunnel.is_ready()).count();
    format!("{}: {active} of {} tunnels work", board.overall().as_str(), board.tunnels.len())
}

/// Tells systemd, if this is one of its services.
fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "cannot notify systemd");
    }
}

/// Time in which a stop that was asked for has to come to its end: the bounds of its steps, and some.
pub(super) const STOP_LIMIT: Duration = Duration::from_secs(20);
