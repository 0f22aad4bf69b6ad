//! The only code that writes to stdout or stderr.
//!
//! stdout carries the result and nothing else, stderr progress, errors and the log. A reader that has gone
//! away is not an error. Colour and moving lines appear on a terminal only, and not with `NO_COLOR`.
//!
//! Nothing here decides what is said.

use std::{
    io::{self, IsTerminal, Write},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use tracing_subscriber::fmt::MakeWriter;

use super::error::{CommandError, Kind};
use crate::settings::Environment;

/// Time between two pictures of a spinner.
const SPINNER_TICK: Duration = Duration::from_millis(100);

/// Writes results, progress and errors. Cheap to clone; all clones share one terminal.
#[derive(Clone)]
pub struct Printer {
    inner: Arc<Inner>,
}

struct Inner {
    out: Mutex<Box<dyn Write + Send>>,
    err: Mutex<Box<dyn Write + Send>>,
    colour: bool,
    /// Colours on stdout.
    paint: Paint,
    /// Pictures on stdout replace each other.
    redraws: bool,
    /// What goes to stderr goes to the log as well, which is elsewhere.
    logged: bool,
    /// The moving lines; `None` where lines do not move.
    live: Option<MultiProgress>,
}

impl std::fmt::Debug for Printer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Printer").field("colour", &self.inner.colour).finish_non_exhaustive()
    }
}

impl Printer {
    /// Writes to this process's stdout and stderr.
    #[must_use]
    pub fn new(environment: &Environment) -> Self {
        let terminal = io::stderr().is_terminal() && environment.get("TERM") != Some("dumb");
        let live = terminal.then(|| MultiProgress::with_draw_target(ProgressDrawTarget::stderr_with_hz(10)));
        let colour = terminal && environment.get("NO_COLOR").is_none();
        let redraws = io::stdout().is_terminal() && environment.get("TERM") != Some("dumb");
        let paint = Paint { colour: redraws && environment.get("NO_COLOR").is_none() };
        let inner = Self::with(Box::new(io::stdout()), Box::new(io::stderr()), colour, live);
        Self { inner: Arc::new(Inner { paint, redraws, ..inner }) }
    }

    /// Writes to this process's stdout and stderr as long as somebody reads them, and what goes to stderr to the log
    /// as well.
    #[must_use]
    pub fn logged() -> Self {
        let inner = Self::with(Box::new(io::stdout()), Box::new(io::stderr()), false, None);
        Self { inner: Arc::new(Inner { logged: true, ..inner }) }
    }

    /// Writes elsewhere, without colour and moving lines.
    #[must_use]
    pub fn plain(out: impl Write + Send + 'static, err: impl Write + Send + 'static) -> Self {
        Self { inner: Arc::new(Self::with(Box::new(out), Box::new(err), false, None)) }
    }

    fn with(
        out: Box<dyn Write + Send>,
        err: Box<dyn Write + Send>,
        colour: bool,
        live: Option<MultiProgress>,
    ) -> Inner {
        let (out, err) = (Mutex::new(out), Mutex::new(err));
        Inner { out, err, colour, paint: Paint::plain(), redraws: false, logged: false, live }
    }

    /// Writes a line, or several, of the result, and flushes them.
    ///
    /// # Errors
    /// If they cannot be written, unless that is because nobody reads them any more.
    pub fn result(&self, text: &str) -> Result<(), CommandError> {
        self.suspended(|| {
            let mut out = lock(&self.inner.out);
            match out.write_all(with_line_feed(text).as_bytes()).and_then(|()| out.flush()) {
                Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
                    Err(CommandError::new(Kind::Unexpected, "cannot write to the standard output").with_source(error))
                }
                _ => Ok(()),
            }
        })
    }

    /// Writes a picture of the result. On a terminal it takes the place of the one before.
    ///
    /// # Errors
    /// As [`result`](Self::result).
    pub fn picture(&self, text: &str) -> Result<(), CommandError> {
        if !self.inner.redraws {
            return self.result(text);
        }
        // From the upper left corner, each line to its end, and nothing below.
        self.result(&format!("\x1b[H{}\x1b[J", text.replace('\n', "\x1b[K\n")))
    }

    /// Writes to stdout what a terminal is to do, as it is.
    ///
    /// # Errors
    /// As [`result`](Self::result).
    pub fn write(&self, text: &str) -> Result<(), CommandError> {
        self.suspended(|| {
            let mut out = lock(&self.inner.out);
            out.write_all(text.as_bytes())
                .and_then(|()| out.flush())
                .map_err(|error| CommandError::new(Kind::Unexpected, "cannot write to the terminal").with_source(error))
        })
    }

    /// Tells whether somebody is there who can look and press keys.
    #[must_use]
    pub fn has_person(&self) -> bool {
        self.inner.redraws && io::stdin().is_terminal()
    }

    /// Tells whether a picture takes the place of the one before.
    #[must_use]
    pub fn redraws(&self) -> bool {
        self.inner.redraws
    }

    /// Returns the colours of stdout.
    #[must_use]
    pub fn paint(&self) -> Paint {
        self.inner.paint
    }

    /// Writes a line that another process of this program has written to its stderr, in this one's colours.
    pub fn relay(&self, line: &str) {
        let labels = [("error:", "31;1"), ("warning:", "33;1"), ("hint:", "36;1")];
        match labels.iter().find_map(|(label, code)| Some((label, code, line.strip_prefix(label)?))) {
            Some((label, code, rest)) => self.stderr(&format!("{}{rest}", self.painted(code, label))),
            None => self.stderr(line),
        }
    }

    pub fn progress(&self, text: &str) {
        self.stderr(text);
    }

    pub fn warning(&self, text: &str) {
        let label = self.painted("33;1", "warning:");
        self.stderr(&format!("{label} {text}"));
    }

    /// Writes what to do next.
    pub fn hint(&self, text: &str) {
        let label = self.painted("36;1", "hint:");
        self.stderr(&format!("{label} {text}"));
    }

    /// Writes a warning with its causes and hints.
    pub fn caution(&self, error: &CommandError) {
        self.with_hints(&self.painted("33;1", "warning:"), error);
    }

    /// Writes an error with its causes and hints.
    pub fn error(&self, error: &CommandError) {
        self.with_hints(&self.painted("31;1", "error:"), error);
    }

    fn with_hints(&self, label: &str, error: &CommandError) {
        let mut text = format!("{label} {}", error.sentence());
        for hint in error.next_steps() {
            text.push_str(&format!("\n{} {hint}", self.painted("36;1", "hint:")));
        }
        self.stderr(&text);
    }

    /// Adds a line for something that takes a while.
    #[must_use]
    pub fn line(&self, label: &str, text: &str) -> Line {
        let bar = self.inner.live.as_ref().map(|live| {
            let style =
                ProgressStyle::with_template("{spinner} {prefix} {wide_msg}").expect("the template is a constant");
            let bar = live.add(ProgressBar::new_spinner().with_style(style).with_prefix(label.to_owned()));
            bar.enable_steady_tick(SPINNER_TICK);
            bar
        });
        let mut line = Line { printer: self.clone(), label: label.to_owned(), bar, last: String::new() };
        line.set(text);
        line
    }

    /// Returns where the log goes: stderr, around the moving lines.
    #[must_use]
    pub fn log_writer(&self) -> LogWriter {
        LogWriter { printer: self.clone() }
    }

    /// Keeps lines from moving, so that somebody can type.
    #[must_use]
    pub fn hold_still(&self) -> Still {
        if let Some(live) = &self.inner.live {
            live.set_draw_target(ProgressDrawTarget::hidden());
        }
        Still { printer: self.clone() }
    }

    /// Tells whether stderr takes colours.
    #[must_use]
    pub fn colour(&self) -> bool {
        self.inner.colour
    }

    fn painted(&self, code: &str, text: &str) -> String {
        if self.inner.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    fn stderr(&self, text: &str) {
        if self.inner.logged {
            match text.split_once(' ').map_or(text, |(label, _)| label) {
                "error:" => tracing::error!(target: "autoheal_pa", "{text}"),
                "warning:" => tracing::warn!(target: "autoheal_pa", "{text}"),
                _ => tracing::info!(target: "autoheal_pa", "{text}"),
            }
        }
        self.suspended(|| {
            let mut err = lock(&self.inner.err);
            // There is nobody left to tell that stderr is gone.
            let _written = err.write_all(with_line_feed(text).as_bytes()).and_then(|()| err.flush());
        });
    }

    /// Runs something that writes, with the moving lines out of its way.
    fn suspended<T>(&self, write: impl FnOnce() -> T) -> T {
        match &self.inner.live {
            Some(live) => live.suspend(write),
            None => write(),
        }
    }
}

/// Lines move again when it is dropped.
#[derive(Debug)]
pub struct Still {
    printer: Printer,
}

impl Still {
    /// Writes what an answer is to stand behind.
    pub fn prompt(&self, text: &str) {
        let mut err = lock(&self.printer.inner.err);
        // There is nobody left to tell that stderr is gone.
        let _written = err.write_all(text.as_bytes()).and_then(|()| err.flush());
    }
}

impl Drop for Still {
    fn drop(&mut self) {
        if let Some(live) = &self.printer.inner.live {
            live.set_draw_target(ProgressDrawTarget::stderr_with_hz(10));
        }
    }
}

/// One line of progress: moving on a terminal, elsewhere a plain line each time it changes. It disappears
/// from a terminal when it is dropped, unless it was finished.
pub struct Line {
    printer: Printer,
    label: String,
    bar: Option<ProgressBar>,
    last: String,
}

impl std::fmt::Debug for Line {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Line").field("label", &self.label).field("last", &self.last).finish_non_exhaustive()
    }
}

impl Line {
    pub fn set(&mut self, text: &str) {
        if self.last == text {
            return;
        }
        text.clone_into(&mut self.last);
        match &self.bar {
            Some(bar) => bar.set_message(text.to_owned()),
            None => self.printer.stderr(&format!("{} {text}", self.label)),
        }
    }

    /// Stops the movement and leaves the line with its last text.
    pub fn finish(mut self, mark: Mark, text: &str) {
        let Some(bar) = self.bar.take() else {
            self.set(text);
            return;
        };
        bar.finish_and_clear();
        let mark = match mark {
            Mark::Done => self.printer.painted("32;1", "✓"),
            Mark::Failed => self.printer.painted("31;1", "✗"),
        };
        self.printer.stderr(&format!("{mark} {} {text}", self.label));
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

/// What is put before a line that has come to rest on a terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mark {
    Done,
    Failed,
}

/// Where the log goes.
#[derive(Debug, Clone)]
pub struct LogWriter {
    printer: Printer,
}

impl Write for LogWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // One call is one event.
        self.printer.suspended(|| lock(&self.printer.inner.err).write_all(bytes))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        lock(&self.printer.inner.err).flush()
    }
}

impl<'a> MakeWriter<'a> for LogWriter {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

/// Colours for results.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Paint {
    colour: bool,
}

impl Paint {
    /// No colours.
    #[must_use]
    pub fn plain() -> Self {
        Self { colour: false }
    }

    /// Colours for the states of managers and tunnels, and for how checks went; `text` is what is written.
    #[must_use]
    pub fn state(self, state: &str, text: &str) -> String {
        let code = match state {
            "active" | "ok" => "32",
            "failed" => "31",
            "stopped" | "stopping" | "skipped" => "2",
            _ => "33",
        };
        self.in_colour(code, text)
    }

    /// The colour for what to do next.
    #[must_use]
    pub fn hint(self, text: &str) -> String {
        self.in_colour("36;1", text)
    }

    /// The colour for what matters less.
    #[must_use]
    pub fn faint(self, text: &str) -> String {
        self.in_colour("2", text)
    }

    fn in_colour(self, code: &str, text: &str) -> String {
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

#[cfg(test)]
impl Paint {
    pub(crate) fn coloured() -> Self {
        Self { colour: true }
    }
}

fn with_line_feed(text: &str) -> String {
    if text.is_empty() || text.ends_with('\n') { text.to_owned() } else { format!("{text}\n") }
}

/// A panic elsewhere leaves a writer as good as before.
fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Collects what a printer writes.
#[cfg(test)]
#[derive(Debug, Clone, Default)]
pub(crate) struct Captured(Arc<Mutex<Vec<u8>>>);

#[cfg(test)]
impl Captured {
    /// A printer with what it writes to stdout and to stderr.
    pub(crate) fn printer() -> (Printer, Self, Self) {
        let (out, err) = (Self::default(), Self::default());
        (Printer::plain(out.clone(), err.clone()), out, err)
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8(lock(&self.0).clone()).unwrap()
    }
}

#[cfg(test)]
impl Write for Captured {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        lock(&self.0).write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fails every write.
    struct Broken(io::ErrorKind);

    impl Write for Broken {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(self.0.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Err(self.0.into())
        }
    }

    #[test]
    fn keeps_result_and_progress_apart() {
        let (printer, out, err) = Captured::printer();
        printer.progress("working");
        printer.result("tunnel ready").unwrap();
        printer.result("two\nlines\n").unwrap();
        printer.warning("careful");
        assert_eq!(out.text(), "tunnel ready\ntwo\nlines\n");
        assert_eq!(err.text(), "working\nwarning: careful\n");
    }

    #[test]
    fn writes_errors_with_their_hints() {
        let (printer, _, err) = Captured::printer();
        let error = CommandError::new(Kind::Tunnel, "cannot open a tunnel to `a`")
            .with_source(io::Error::other("it rains"))
            .hint("wait")
            .hint("or take an umbrella");
        printer.error(&error);
        assert_eq!(err.text(), "error: cannot open a tunnel to `a`: it rains\nhint: wait\nhint: or take an umbrella\n");
        let (printer, _, err) = Captured::printer();
        printer.caution(&error);
        assert_eq!(
            err.text(),
            "warning: cannot open a tunnel to `a`: it rains\nhint: wait\nhint: or take an umbrella\n"
        );
    }

    #[test]
    fn colours_only_where_asked_for() {
        let err = Captured::default();
        let printer =
            Printer { inner: Arc::new(Printer::with(Box::new(io::sink()), Box::new(err.clone()), true, None)) };
        printer.error(&CommandError::new(Kind::Usage, "no").hint("yes"));
        assert_eq!(err.text(), "\x1b[31;1merror:\x1b[0m no\n\x1b[36;1mhint:\x1b[0m yes\n");
    }

    #[test]
    fn a_line_says_what_changes() {
        let (printer, _, err) = Captured::printer();
        let mut line = printer.line("a", "starting");
        line.set("starting");
        line.set("active");
        line.finish(Mark::Done, "ready");
        assert_eq!(err.text(), "a starting\na active\na ready\n");
    }

    #[test]
    fn moving_lines_and_log_share_a_terminal() {
        let err = Captured::default();
        let live = MultiProgress::with_draw_target(ProgressDrawTarget::hidden());
        let printer =
            Printer { inner: Arc::new(Printer::with(Box::new(io::sink()), Box::new(err.clone()), false, Some(live))) };
        let mut line = printer.line("a", "starting");
        line.set("active");
        printer.log_writer().write_all(b"INFO event\n").unwrap();
        line.finish(Mark::Failed, "no bastion");
        drop(printer.line("b", "starting"));
        assert_eq!(err.text(), "INFO event\n✗ a no bastion\n");
    }

    #[test]
    fn nobody_reading_is_no_error() {
        let printer = Printer::plain(Broken(io::ErrorKind::BrokenPipe), Broken(io::ErrorKind::BrokenPipe));
        printer.result("x").unwrap();
        printer.progress("x");
        printer.error(&CommandError::new(Kind::Usage, "x"));
        let printer = Printer::plain(Broken(io::ErrorKind::StorageFull), io::sink());
        let error = printer.result("x").unwrap_err();
        assert_eq!(error.kind, Kind::Unexpected);
        assert!(error.sentence().starts_with("cannot write to the standard output: "), "{error}");
    }
}
