//! The terminal of a screen: taken over, drawn on, and given back as it was, whatever happens.
//!
//! Invariants: only lines that differ from what is shown are written; the terminal is given back when this is dropped, before
//! a panic is reported, and before the process is stopped.

use std::{
    io::{self, Write},
    panic,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use rustix::{
    io::Errno,
    process::{Signal, getpid, kill_process},
    termios::{InputModes, LocalModes, OptionalActions, SpecialCodeIndex, Termios, tcgetattr, tcgetwinsize, tcsetattr},
};
use tokio::sync::mpsc;

use super::{
    keys::{Decoder, Key},
    view::Size,
};
use crate::cli::{
    error::{CommandError, Kind},
    output::Printer,
};

/// The other screen, without a cursor, empty.
const ENTER: &str = "\x1b[?1049h\x1b[?25l\x1b[2J";

/// The screen as it was, with a cursor.
const LEAVE: &str = "\x1b[?25h\x1b[?1049l";

/// How long a read waits for a key, in tenths of a second.
const KEY_WAIT: u8 = 2;

/// Pause after a read that has brought nothing: where the terminal has gone, reads return at once.
const KEY_PAUSE: Duration = Duration::from_millis(10);

/// Room where the terminal does not say.
const USUAL: Size = Size { width: 79, height: 24 };

/// A terminal that has been taken over.
pub(super) struct Terminal {
    printer: Printer,
    original: Arc<Original>,
    shown: Vec<String>,
    keys: mpsc::UnboundedReceiver<Key>,
}

impl Terminal {
    /// Takes over the terminal of stdin and stdout.
    ///
    /// # Errors
    /// If it is none, or goes away.
    pub(super) fn enter(printer: &Printer) -> Result<Self, CommandError> {
        let attributes = tcgetattr(io::stdin()).map_err(failed)?;
        let original = Arc::new(Original { attributes, is_left: AtomicBool::new(true) });
        let (found, keys) = mpsc::unbounded_channel();
        let terminal = Self { printer: printer.clone(), original: Arc::clone(&original), shown: Vec::new(), keys };
        let report = panic::take_hook();
        panic::set_hook(Box::new({
            let original = Arc::clone(&original);
            move |info| {
                original.restore();
                report(info);
            }
        }));
        terminal.take()?;
        // A thread that nobody waits for: the end of the process ends it.
        thread::spawn(move || read_keys(&original, &found));
        Ok(terminal)
    }

    fn take(&self) -> Result<(), CommandError> {
        let mut raw = self.original.attributes.clone();
        raw.local_modes.remove(LocalModes::ICANON | LocalModes::ECHO | LocalModes::IEXTEN);
        raw.input_modes.remove(InputModes::IXON);
        raw.special_codes[SpecialCodeIndex::VMIN] = 0;
        raw.special_codes[SpecialCodeIndex::VTIME] = KEY_WAIT;
        self.original.is_left.store(false, Ordering::SeqCst);
        tcsetattr(io::stdin(), OptionalActions::Now, &raw).map_err(failed)?;
        self.printer.write(ENTER)
    }

    /// Waits for the next key.
    ///
    /// # Cancel safety
    /// No key is lost.
    pub(super) async fn key(&mut self) -> Key {
        match self.keys.recv().await {
            Some(key) => key,
            None => std::future::pending().await,
        }
    }

    /// Returns how much room there is. The last column is left free: what is written there moves the cursor in ways that
    /// terminals do not agree on.
    pub(super) fn size(&self) -> Size {
        match tcgetwinsize(io::stdout()) {
            Ok(size) if size.ws_col > 1 && size.ws_row > 0 => {
                Size { width: usize::from(size.ws_col) - 1, height: usize::from(size.ws_row) }
            }
            Ok(_) | Err(_) => USUAL,
        }
    }

    /// Shows lines, from the top on.
    ///
    /// # Errors
    /// If they cannot be written.
    pub(super) fn draw(&mut self, lines: Vec<String>) -> Result<(), CommandError> {
        let text = difference(&self.shown, &lines);
        self.shown = lines;
        if text.is_empty() { Ok(()) } else { self.printer.write(&text) }
    }

    /// Draws everything anew next time.
    ///
    /// # Errors
    /// If the terminal cannot be written to.
    pub(super) fn clear(&mut self) -> Result<(), CommandError> {
        self.shown.clear();
        self.printer.write("\x1b[2J")
    }

    /// Puts a text into the clipboard of whoever sits at the terminal, through any number of SSH connections.
    ///
    /// # Errors
    /// If the terminal cannot be written to.
    pub(super) fn copy(&self, text: &str) -> Result<(), CommandError> {
        self.printer.write(&format!("\x1b]52;c;{}\x07", STANDARD.encode(text)))
    }

    /// Gives the terminal back and stops the process, until somebody wants it to go on.
    ///
    /// # Errors
    /// If the terminal cannot be taken over again.
    pub(super) fn suspend(&mut self) -> Result<(), CommandError> {
        self.original.restore();
        kill_process(getpid(), Signal::STOP).map_err(failed)?;
        self.shown.clear();
        self.take()
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        self.original.restore();
    }
}

/// What a terminal was.
struct Original {
    attributes: Termios,
    /// The terminal is, or is to be, as it was.
    is_left: AtomicBool,
}

impl Original {
    fn restore(&self) {
        if self.is_left.swap(true, Ordering::SeqCst) {
            return;
        }
        // Nothing can be done about a terminal that has gone.
        let mut stdout = io::stdout();
        let _written = stdout.write_all(LEAVE.as_bytes()).and_then(|()| stdout.flush());
        let _outcome = tcsetattr(io::stdin(), OptionalActions::Now, &self.attributes);
    }
}

/// Reads keys until nobody wants them any more.
fn read_keys(original: &Original, found: &mpsc::UnboundedSender<Key>) {
    let mut decoder = Decoder::default();
    let mut buffer = [0; 256];
    while !found.is_closed() {
        if original.is_left.load(Ordering::SeqCst) {
            thread::sleep(KEY_PAUSE);
            continue;
        }
        let keys = match rustix::io::read(io::stdin(), &mut buffer) {
            Ok(0) => {
                thread::sleep(KEY_PAUSE);
                decoder.quiet().into_iter().collect()
            }
            Ok(len) => decoder.feed(&buffer[..len]),
            Err(Errno::INTR) => Vec::new(),
            Err(_) => return,
        };
        for key in keys {
            // Whoever does not take it has left.
            let _unheard = found.send(key);
        }
    }
}

/// Returns what changes the lines that are shown into others. None of them is as wide as the terminal.
fn difference(shown: &[String], lines: &[String]) -> String {
    let mut text = String::new();
    for row in 0..lines.len().max(shown.len()) {
        let line = lines.get(row).map_or("", |line| line);
        if shown.get(row).map_or("", |line| line) != line {
            text.push_str(&format!("\x1b[{};1H{line}\x1b[K", row + 1));
        }
    }
    text
}

fn failed(error: Errno) -> CommandError {
    CommandError::new(Kind::Unexpected, "cannot use the terminal").with_source(io::Error::from(error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_lines_that_differ_are_written() {
        let lines = |text: &[&str]| text.iter().map(|line| (*line).to_owned()).collect::<Vec<_>>();
        let first = lines(&["one", "", "three"]);
        assert_eq!(difference(&[], &first), "\x1b[1;1Hone\x1b[K\x1b[3;1Hthree\x1b[K");
        assert_eq!(difference(&first, &first), "");
        assert_eq!(difference(&first, &lines(&["one", "2"])), "\x1b[2;1H2\x1b[K\x1b[3;1H\x1b[K");
    }
}
