//! `logs`: the log of the manager in the background.
//!
//! Following it goes on across rotations, and ends with the manager.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    path::Path,
    process::ExitCode,
    time::Duration,
};

use clap::Args;
use rustix::fs::OFlags;

use super::{
    GlobalArgs,
    error::{CommandError, Kind, cannot_use},
    log::places,
    output::Printer,
    signals::Signals,
};
use crate::{
    manager::control::{self, Answer, Client, Request},
    settings::{Environment, Settings},
    util::folder::{Missing, Place},
};

/// Time for the manager to answer.
const MANAGER_DEADLINE: Duration = Duration::from_secs(2);

/// How often a file that is followed is looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);

#[derive(Debug, Clone, Default, Args)]
pub struct LogsArgs {
    /// Follows the log until Ctrl-C or until the manager ends
    #[arg(long, short)]
    pub follow: bool,
    /// Number of lines to begin with, counted from the end [default: all of the current file]
    #[arg(long, short = 'n', value_name = "N")]
    pub lines: Option<usize>,
}

/// Shows the log.
///
/// # Errors
/// There is none, or it cannot be read.
pub async fn run(args: LogsArgs, global: GlobalArgs, printer: &Printer) -> Result<ExitCode, CommandError> {
    let settings = Settings::without_file(&global, &Environment::read())?;
    let place = find(&settings).await?;
    let path = place.path();
    let failed = |error| cannot_use("log", &path, error);
    let mut tail = Tail::open(place).map_err(failed)?;
    let text = tail.more().map_err(failed)?;
    printer.result(last_lines(&text, args.lines))?;
    if !args.follow {
        return Ok(ExitCode::SUCCESS);
    }
    let mut signals = Signals::listen()?;
    // The connection ends with the manager.
    let mut manager = Client::connect(&settings.control_dir).await.ok();
    if let Some(manager) = &mut manager {
        manager.send(&Request::Status { follow: true }).await?;
    }
    loop {
        let ended = async {
            match &mut manager {
                Some(manager) => while matches!(manager.next().await, Ok(Some(_))) {},
                None => std::future::pending().await,
            }
        };
        let has_ended = tokio::select! {
            biased;
            _signal = signals.next() => return Ok(ExitCode::SUCCESS),
            () = ended => true,
            () = tokio::time::sleep(LOOK_INTERVAL) => false,
        };
        printer.result(&tail.more().map_err(failed)?)?;
        if has_ended {
            return Ok(ExitCode::SUCCESS);
        }
    }
}

/// Finds the log: the running manager knows its own, and what one has left behind is where it would be.
async fn find(settings: &Settings) -> Result<Place, CommandError> {
    let name = &settings.name;
    match control::ask(&settings.control_dir, &Request::Status { follow: false }, MANAGER_DEADLINE).await {
        Ok(Answer::Status(status)) => match status.log {
            Some(path) => {
                let path = Path::new(&path);
                Place::behind(path, Missing::Fail).map_err(|source| cannot_use("log", path, source))
            }
            None => {
                let message = format!("the manager `{name}` runs in the foreground, as process {}", status.pid);
                Err(CommandError::new(Kind::NotFound, message)
                    .hint("its log goes to its own stderr; use `autoheal-pa up --detach` for a log file"))
            }
        },
        Ok(Answer::Token(_) | Answer::Reloaded(_) | Answer::Stopping | Answer::Finding(_) | Answer::Done) | Err(_) => {
            let mut refused = None;
            for place in places(settings, Missing::Fail) {
                match place {
                    Ok(place) if place.exists().unwrap_or(false) => return Ok(place),
                    Ok(_) => {}
                    Err(error) if error.is_missing() => {}
                    Err(error) => refused = Some(error),
                }
            }
            Err(refused.unwrap_or_else(|| {
                CommandError::new(Kind::NotFound, format!("there is no log of the manager `{name}`"))
                    .hint("`autoheal-pa up --detach` writes one")
            }))
        }
    }
}

/// A file that grows, and may be replaced by another of its name.
struct Tail {
    place: Place,
    file: File,
}

impl Tail {
    fn open(place: Place) -> io::Result<Self> {
        let file = place.open(OFlags::RDONLY)?;
        Ok(Self { place, file })
    }

    /// Returns what has been added since the last time.
    fn more(&mut self) -> io::Result<String> {
        let mut bytes = Vec::new();
        self.read(&mut bytes)?;
        if !self.place.is_of(&self.file) {
            // The rest of the old one has been written before it was replaced. There may be no new one yet.
            self.read(&mut bytes)?;
            if let Ok(next) = Self::open(self.place.clone()) {
                *self = next;
                self.read(&mut bytes)?;
            }
        }
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    fn read(&mut self, bytes: &mut Vec<u8>) -> io::Result<()> {
        if self.file.metadata()?.len() < self.file.stream_position()? {
            // Somebody has emptied it.
            self.file.seek(SeekFrom::Start(0))?;
        }
        self.file.read_to_end(bytes)?;
        Ok(())
    }
}

fn last_lines(text: &str, count: Option<usize>) -> &str {
    let Some(count) = count else { return text };
    let before: usize = text.split_inclusive('\n').rev().skip(count).map(str::len).sum();
    &text[before..]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::util::rotated::older;

    #[test]
    fn begins_with_the_last_lines() {
        assert_eq!(last_lines("a\nb\nc\n", None), "a\nb\nc\n");
        assert_eq!(last_lines("a\nb\nc\n", Some(2)), "b\nc\n");
        assert_eq!(last_lines("a\nb\nc", Some(1)), "c");
        assert_eq!(last_lines("a\n", Some(0)), "");
        assert_eq!(last_lines("", Some(3)), "");
    }

    #[test]
    fn goes_on_across_a_rotation() {
        let dir = tempfile::tempdir().unwrap();
        let place = Place::of(&dir.path().join("log"), Missing::Fail).unwrap();
        let append = |text: &str| {
            use std::io::Write;
            place.append().unwrap().write_all(text.as_bytes()).unwrap();
        };
        append("a\n");
        let mut tail = Tail::open(place.clone()).unwrap();
        assert_eq!(tail.more().unwrap(), "a\n");
        append("b\n");
        place.rename_to(&older(&place, 1)).unwrap();
        append("c and more\n");
        assert_eq!(tail.more().unwrap(), "b\nc and more\n");
        assert_eq!(tail.more().unwrap(), "");
        std::fs::write(place.path(), "").unwrap();
        append("d\n");
        assert_eq!(tail.more().unwrap(), "d\n");
    }
}
