//! `status --watch` for people: a view of the tunnels that changes as they do, and takes keys.
//!
//! ```text
//! manager ── status ──► Screen ── draw ──► lines ── difference ──► terminal
//!                         ▲                                           │
//!                         └───────────────── keys ────────────────────┘
//! ```
//!
//! It asks what `status --watch` asks, and `doctor` for a row when a key asks for it. Nothing is drawn that has not changed, and
//! nothing more often than a slow line can bear.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, SystemTime},
};

use tokio::{
    signal::unix::{SignalKind, signal},
    sync::mpsc,
    task::JoinSet,
    time::{MissedTickBehavior, interval, sleep_until},
};

use model::{Act, Progress, Screen};
use terminal::Terminal;

use super::{
    error::{CommandError, Kind},
    output::Printer,
    signals::Signals,
    status::next,
};
use crate::{
    clock::{self, Clock},
    doctor::Entry,
    manager::control::{Answer, Client, ManagerStatus, Request},
};

mod keys;
mod model;
mod terminal;
#[cfg(test)]
mod tests;
mod view;

/// How often traffic is measured, and ages are looked at.
const SAMPLE_INTERVAL: Duration = Duration::from_secs(1);

/// Shortest time between two pictures.
const FRAME_INTERVAL: Duration = Duration::from_millis(50);

/// Shows the status until a key or a signal ends it, or the manager ends.
///
/// # Errors
/// If the terminal or the manager cannot be talked to.
pub(super) async fn run(
    client: Client,
    status: ManagerStatus,
    dir: &Path,
    printer: &Printer,
) -> Result<ExitCode, CommandError> {
    let name = status.name.clone();
    let end = show(client, status, dir, printer).await?;
    if end == End::Manager {
        printer.progress(&format!("the manager `{name}` has stopped"));
    }
    Ok(ExitCode::SUCCESS)
}

/// Why the screen has gone.
#[derive(Debug, PartialEq, Eq)]
enum End {
    User,
    Manager,
}

async fn show(mut client: Client, status: ManagerStatus, dir: &Path, printer: &Printer) -> Result<End, CommandError> {
    let mut signals = Signals::listen()?;
    let mut stops = listen(SignalKind::from_raw(rustix::process::Signal::TSTP.as_raw()))?;
    let mut resizes = listen(SignalKind::window_change())?;
    let clock = Clock::start();
    let mut terminal = Terminal::enter(printer)?;
    let mut screen = Screen::new(status);
    let mut examinations = Examinations::new(dir);
    let mut samples = interval(SAMPLE_INTERVAL);
    samples.set_missed_tick_behavior(MissedTickBehavior::Delay);
    samples.reset();
    let (mut sampled, mut drawn) = (clock.now().mono, None::<Duration>);
    let mut is_new = true;
    loop {
        let draw_at = drawn.map_or(Duration::ZERO, |drawn| drawn + FRAME_INTERVAL);
        tokio::select! {
            biased;
            _signal = signals.next() => return Ok(End::User),
            Some(()) = stops.recv() => terminal.suspend()?,
            Some(()) = resizes.recv() => terminal.clear()?,
            () = sleep_until(clock.instant(draw_at)), if is_new => {
                terminal.draw(view::draw(&screen, terminal.size(), now(), printer.paint()))?;
                (drawn, is_new) = (Some(clock.now().mono), false);
                continue;
            }
            key = terminal.key() => match screen.press(key) {
                Some(Act::Quit) => return Ok(End::User),
                Some(Act::Examine(name)) => examinations.start(name),
                Some(Act::Leave) => examinations.leave(),
                Some(Act::Copy(text)) => terminal.copy(&text)?,
                None => {}
            },
            told = next(&mut client) => match told? {
                Some(status) => screen.tell(status, now()),
                None => return Ok(End::Manager),
            },
            found = examinations.next() => match found {
                Found::Entry(entry) => screen.found(*entry),
                Found::End(progress) => screen.examined(progress),
            },
            _ = samples.tick() => {
                let at = clock.now().mono;
                screen.sample(at.saturating_sub(std::mem::replace(&mut sampled, at)));
            }
        }
        is_new = true;
    }
}

fn listen(kind: SignalKind) -> Result<tokio::signal::unix::Signal, CommandError> {
    signal(kind).map_err(|error| CommandError::new(Kind::Unexpected, "cannot listen for signals").with_source(error))
}

fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + clock::wall()
}

/// What comes of an examination.
#[derive(Debug)]
enum Found {
    Entry(Box<Entry>),
    End(Progress),
}

/// Has the manager examine one tunnel at a time.
struct Examinations {
    dir: PathBuf,
    running: JoinSet<()>,
    found: Option<mpsc::UnboundedReceiver<Found>>,
}

impl Examinations {
    fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned(), running: JoinSet::new(), found: None }
    }

    /// Starts one, of the cluster or forward of this name, in the place of the one before.
    fn start(&mut self, name: String) {
        self.leave();
        let (sender, found) = mpsc::unbounded_channel();
        let dir = self.dir.clone();
        self.running.spawn(async move {
            let progress = match examine(&dir, name, &sender).await {
                Ok(()) => Progress::Done,
                Err(error) => Progress::Failed(error.sentence()),
            };
            // Nobody may look any more.
            let _unheard = sender.send(Found::End(progress));
        });
        self.found = Some(found);
    }

    /// Ends the one that runs: the manager ends what nobody listens to.
    fn leave(&mut self) {
        self.running.abort_all();
        self.found = None;
    }

    /// Waits for what is found next.
    ///
    /// # Cancel safety
    /// Nothing is lost.
    async fn next(&mut self) -> Found {
        let next = match &mut self.found {
            Some(found) => found.recv().await,
            None => None,
        };
        match next {
            Some(next) => next,
            None => std::future::pending().await,
        }
    }
}

async fn examine(dir: &Path, name: String, found: &mpsc::UnboundedSender<Found>) -> Result<(), CommandError> {
    let mut manager = Client::connect_if_it_answers(dir).await?;
    manager.send(&Request::Doctor { clusters: vec![name] }).await?;
    loop {
        match manager.next().await? {
            Some(Answer::Finding(entry)) => {
                let entry = serde_json::from_value(entry).map_err(|error| {
                    CommandError::new(Kind::Unexpected, "cannot understand the manager's answer").with_source(error)
                })?;
                // Nobody may look any more.
                let _unheard = found.send(Found::Entry(Box::new(entry)));
            }
            Some(Answer::Done) => return Ok(()),
            Some(Answer::Token(_) | Answer::Status(_) | Answer::Reloaded(_) | Answer::Stopping) => {
                return Err(CommandError::new(Kind::Unexpected, "the manager gave an unexpected answer"));
            }
            None => return Err(CommandError::new(Kind::Unexpected, "the manager has stopped in the meantime")),
        }
    }
}
