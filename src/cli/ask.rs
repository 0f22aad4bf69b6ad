//! Questions that only a person can answer, on the terminal.
//!
//! Invariants: nobody is asked who is not there: not in the background, not in a job that a shell has put there, not in CI.
//! A question holds up nothing: it is withdrawn with whoever has asked, and Ctrl-C ends the program as ever.

use std::{
    io::{self, IsTerminal},
    os::fd::OwnedFd,
    sync::Arc,
};

use futures_util::future::BoxFuture;
use rustix::{
    fs::{Mode, OFlags},
    process::getpgrp,
    termios::{QueueSelector, tcflush, tcgetpgrp},
};
use tokio::{io::unix::AsyncFd, sync::Mutex};

use super::output::Printer;
use crate::{
    aws::mfa::Wanted,
    route::ssh::{Ask, Question},
    secret::Secret,
    settings::Environment,
};

/// Longest answer, in bytes.
const MAX_ANSWER_LEN: usize = 256;

/// What STS takes for a code, in digits.
const MFA_CODE_LEN: usize = 6;

/// Returns what asks on the terminal, if there is somebody to ask.
pub(super) fn on_terminal(printer: &Printer) -> Option<Ask> {
    if !is_somebody_there() {
        return None;
    }
    // One question at a time.
    let (printer, alone) = (printer.clone(), Arc::new(Mutex::new(())));
    Some(Ask::new(move |question| {
        let (printer, alone) = (printer.clone(), Arc::clone(&alone));
        Box::pin(async move {
            let _alone = alone.lock().await;
            ask(&question, &printer).await.unwrap_or_else(|error| {
                tracing::debug!(%error, "nobody can be asked");
                false
            })
        })
    }))
}

/// Whether there is somebody to ask.
pub(super) fn is_somebody_there() -> bool {
    io::stdin().is_terminal() && io::stderr().is_terminal() && Environment::read().get("CI").is_none()
}

/// Asks something that is answered with `yes` or `no`; nobody there is a `no`.
pub(super) async fn yes_or_no(question: &str, printer: &Printer) -> bool {
    let answer = async {
        let terminal = Terminal::open()?;
        let still = printer.hold_still();
        terminal.forget_typed()?;
        loop {
            still.prompt(question);
            let Some(line) = terminal.line().await? else { return Ok(false) };
            match line.trim().to_ascii_lowercase().as_str() {
                "y" | "yes" => return Ok(true),
                "n" | "no" => return Ok(false),
                _ => printer.progress("please answer `yes` or `no`"),
            }
        }
    };
    answer.await.unwrap_or_else(|error: io::Error| {
        tracing::debug!(%error, "nobody can be asked");
        false
    })
}

/// Returns what asks for the codes of MFA devices on the terminal, if there is somebody to ask. They are shown as they are
/// typed: each is good once, and is spent when it has been read.
pub(super) fn for_codes(
    printer: &Printer,
) -> Option<impl Fn(Wanted) -> BoxFuture<'static, Option<Secret<String>>> + Send + Sync + 'static> {
    if !is_somebody_there() {
        return None;
    }
    let (printer, alone) = (printer.clone(), Arc::new(Mutex::new(())));
    Some(move |wanted| -> BoxFuture<'static, _> {
        let (printer, alone) = (printer.clone(), Arc::clone(&alone));
        Box::pin(async move {
            let _alone = alone.lock().await;
            code(&wanted, &printer).await.unwrap_or_else(|error| {
                tracing::debug!(%error, "nobody can be asked");
                None
            })
        })
    })
}

async fn code(wanted: &Wanted, printer: &Printer) -> io::Result<Option<Secret<String>>> {
    let terminal = Terminal::open()?;
    let still = printer.hold_still();
    terminal.forget_typed()?;
    let Wanted { serial, role, again } = wanted;
    if *again {
        printer.progress("this code is not taken: wait for the next one");
    }
    printer.progress(&format!("the role `{role}` needs a code from the MFA device `{serial}`"));
    loop {
        still.prompt("code: ");
        let Some(line) = terminal.line().await? else { return Ok(None) };
        let line = Secret::new(line);
        let code = line.expose().trim();
        if code.len() == MFA_CODE_LEN && code.bytes().all(|byte| byte.is_ascii_digit()) {
            return Ok(Some(Secret::new(code.to_owned())));
        }
        printer.progress("a code is 6 digits");
    }
}

async fn ask(question: &Question, printer: &Printer) -> io::Result<bool> {
    let terminal = Terminal::open()?;
    let Question { known_as, place, kind, fingerprint, hint } = question;
    let still = printer.hold_still();
    terminal.forget_typed()?;
    printer.progress(&format!("the host key of `{known_as}` is not known, at {place}: it is {fingerprint} ({kind})"));
    printer.hint(hint);
    loop {
        still.prompt("take it, and keep it (yes, no, or the fingerprint)? ");
        let line = terminal.line().await?;
        let Some(line) = line else { return Ok(false) };
        match read(&line, fingerprint) {
            Some(is_taken) => return Ok(is_taken),
            None => printer.progress("please answer `yes`, `no`, or with the fingerprint"),
        }
    }
}

/// Reads an answer.
fn read(line: &str, fingerprint: &str) -> Option<bool> {
    match line.trim() {
        answer if answer == fingerprint || answer.eq_ignore_ascii_case("yes") => Some(true),
        // Another fingerprint than the one that is expected is another server.
        answer if answer.eq_ignore_ascii_case("no") || answer.starts_with("SHA256:") => Some(false),
        _ => None,
    }
}

/// The terminal, whose input can be waited for.
struct Terminal(AsyncFd<OwnedFd>);

impl Terminal {
    fn open() -> io::Result<Self> {
        // Opened anew, as whoever shares stdin would have to live with reads that do not wait.
        let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let terminal = rustix::fs::open("/dev/tty", flags, Mode::empty())?;
        if !is_ours(&terminal)? {
            return Err(io::Error::other("the terminal is for another program"));
        }
        watched(terminal).map(Self)
    }

    /// Forgets what was typed before there was a question.
    fn forget_typed(&self) -> io::Result<()> {
        Ok(tcflush(self.0.get_ref(), QueueSelector::IFlush)?)
    }

    /// Reads a line; `None`: there is nobody left to type one.
    async fn line(&self) -> io::Result<Option<String>> {
        let mut line = [0; MAX_ANSWER_LEN];
        loop {
            let mut ready = self.0.readable().await?;
            // Whoever reads from the background is stopped.
            if !is_ours(self.0.get_ref())? {
                return Ok(None);
            }
            let read = ready.try_io(|terminal| Ok(rustix::io::read(terminal.get_ref(), &mut line)?));
            match read {
                Ok(Ok(0)) => return Ok(None),
                Ok(Ok(len)) => return Ok(Some(String::from_utf8(line[..len].to_vec()).unwrap_or_default())),
                Ok(Err(error)) => return Err(error),
                Err(_not_yet) => {}
            }
        }
    }
}

/// Whether this program is the one that a terminal is for.
fn is_ours(terminal: &OwnedFd) -> io::Result<bool> {
    Ok(tcgetpgrp(terminal)? == getpgrp())
}

#[expect(
    deprecated,
    reason = "it is unsound for what changes its descriptor, which this does not, and the other is unsafe"
)]
fn watched(terminal: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::new(terminal)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_a_yes_and_the_fingerprint_and_nothing_like_it() {
        for (line, expected) in [
            ("yes\n", Some(true)),
            (" YES \r\n", Some(true)),
            ("SHA256:abc\n", Some(true)),
            ("SHA256:ABC\n", Some(false)),
            ("no\n", Some(false)),
            ("y\n", None),
            ("\n", None),
        ] {
            assert_eq!(read(line, "SHA256:abc"), expected, "{line}");
        }
    }
}
