//! The manager in the background: how `up --detach` or kubectl's plugin starts it, and how it parts from whoever has started it.
//!
//! The process in the background is this program again, with the same arguments or those in the kubeconfig, and
//! `--background`, in a session of its own. Until its tunnels are ready it speaks to the one in the foreground through pipes, which shows what it says
//! and ends as it ends; after that it has nothing open that anybody could wait for.
//!
//! ```text
//! foreground ── stdin: closes when nobody waits any more ──► background
//!            ◄── stdout, stderr: what `up` says ────────────
//! ```
//!
//! With the same arguments it keeps its current directory, as files that the SDK reads again may be named relative to that.

use std::{
    ffi::OsString,
    fs::File,
    io,
    os::fd::AsFd,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
};

use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, BufReader},
    net::unix::pipe,
    process::{Child, ChildStdin, Command},
};

/// The flag of the process in the background.
pub(crate) const FLAG: &str = "--background";

/// What `up` prints on stdout when every tunnel is proved to work. Callers wait for this line.
pub(crate) const READY_LINE: &str = "tunnel ready";

/// The process in the background, as the one in the foreground sees it.
pub(crate) struct Background {
    child: Child,
    waited_for: Option<ChildStdin>,
}

impl Background {
    /// Starts this program again with the same arguments, in the background.
    ///
    /// # Errors
    /// If the system refuses.
    pub(crate) fn start(program: &Path) -> io::Result<Self> {
        let arguments = std::env::args_os().skip(1).filter(|argument| argument != "--detach");
        Self::spawn(Command::new(program).args(arguments))
    }

    /// Starts this program with these arguments, in the background and away from the current directory.
    ///
    /// # Errors
    /// If the system refuses.
    pub(crate) fn start_as(program: &Path, arguments: &[OsString]) -> io::Result<Self> {
        Self::spawn(Command::new(program).args(arguments).current_dir("/"))
    }

    fn spawn(command: &mut Command) -> io::Result<Self> {
        let mut child =
            command.arg(FLAG).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let waited_for = child.stdin.take();
        Ok(Self { child, waited_for })
    }

    /// Returns what it notices the end of: then nobody waits any more, and it ends in good order.
    pub(crate) fn take_waiting(&mut self) -> Option<ChildStdin> {
        self.waited_for.take()
    }

    /// Gives each line that it says to `say` until it is ready, or has ended with a status.
    ///
    /// # Errors
    /// If the system refuses.
    pub(crate) async fn relay(&mut self, mut say: impl FnMut(&str)) -> io::Result<Option<ExitStatus>> {
        let child = &mut self.child;
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
                say(&line);
            }
            Ok::<_, io::Error>(())
        };
        // Both end when it is ready, or gone.
        tokio::try_join!(results, progress)?;
        if ready { Ok(None) } else { child.wait().await.map(Some) }
    }
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
    /// Stdin is not a pipe, so this process was not started as a [`Background`].
    ///
    /// # Panics
    /// Outside of a tokio runtime with IO enabled.
    pub(crate) fn new(log: Option<PathBuf>) -> io::Result<Self> {
        let waiting = io::stdin().as_fd().try_clone_to_owned().and_then(pipe::Receiver::from_owned_fd)?;
        Ok(Self { waiting, log })
    }

    /// Returns where this process logs to.
    pub(crate) fn log(&self) -> Option<PathBuf> {
        self.log.clone()
    }

    /// Waits until nobody waits any more; with `None` for ever.
    ///
    /// # Cancel safety
    /// Can be dropped at any time.
    pub(crate) async fn abandoned(this: Option<&mut Self>) {
        let Some(this) = this else { return std::future::pending().await };
        while this.waiting.read_u8().await.is_ok() {}
    }

    /// Lets whoever waits go. From then on there is only the log.
    ///
    /// # Errors
    /// If the system refuses: then whoever waits may wait for as long as this process runs.
    pub(crate) fn release(self) -> io::Result<()> {
        let null = File::options().read(true).write(true).open("/dev/null")?;
        rustix::stdio::dup2_stdin(&null)?;
        rustix::stdio::dup2_stdout(&null)?;
        rustix::stdio::dup2_stderr(&null)?;
        Ok(())
    }
}
