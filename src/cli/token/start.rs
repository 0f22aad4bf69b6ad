//! Has kubectl start the manager: the plugin asks it for a token, and starts it first where none runs.
//!
//! Invariants:
//!
//! * However many programs ask at once, one of them starts the manager. The others wait for its outcome: the manager, or
//!   the sentence that it has failed with.
//! * A program that asks again and again, as kubectl does five times, waits for a failure once and reads of it once.
//! * A token is given only when the port that the program is about to connect to is the tunnel's.
//!
//! Leaves out who else may start one: that there is one manager of a name at most is its own lock's matter.

use std::{
    ffi::OsString,
    fs::File,
    io::{self, Read, Write},
    path::Path,
    process::ExitCode,
    time::{Duration, SystemTime},
};

use rustix::{
    fs::OFlags,
    process::{Pid, getppid},
};
use tokio::time::{Instant, sleep, timeout};

use crate::{
    aws::BearerToken,
    cli::{
        background::{exit_code_of, unexpected},
        error::{CommandError, Kind},
        output::Printer,
    },
    clock::{self, Clock},
    kubeconfig::MANAGER_FLAG,
    manager::{
        background::Background,
        control::{self, ControlError, TokenAnswer, TokenRequest},
    },
    settings::Environment,
    util::{folder::Missing, quote::command},
};

/// Name of the file that whoever starts a manager has locked.
const LOCK: &str = "start.lock";

/// Name of the file in which there is why there was no token.
const FAILED: &str = "start.failed";

/// How long a program that asks again is given the same answer.
const SAME_ANSWER: Duration = Duration::from_secs(10);

/// How long the manager may take for its answer: as long as the longest start, which it bounds itself.
const ANSWER_LIMIT: Duration = Duration::from_secs(24 * 3600);

/// How long a manager that ends, or another program that starts one, is waited for.
const PATIENCE: Duration = Duration::from_secs(300);

/// How often a manager is started that is gone when it is asked.
const MAX_STARTS: usize = 3;

/// How often to look whether a manager that is ending has ended.
const PAUSE: Duration = Duration::from_millis(20);

/// After how long without an answer it is said what is waited for.
const SILENCE: Duration = Duration::from_secs(3);

/// Most that is kept of what a manager that failed has said, in bytes.
const MAX_WORDS: usize = 16 << 10;

/// What is needed for a token of a manager that may have to be started.
pub(super) struct Start<'a> {
    /// The manager's directory.
    pub(super) dir: &'a Path,
    pub(super) request: TokenRequest,
    /// The port that the context leads to.
    pub(super) port: Option<u16>,
    /// Options of `up`.
    pub(super) options: &'a [OsString],
    pub(super) environment: &'a Environment,
}

/// What has come of it.
pub(super) enum Started {
    Token(BearerToken),
    /// No manager could be started; it has been said why.
    Failed(ExitCode),
}

/// What has become of an attempt to have a manager run.
enum Outcome {
    Started,
    /// Others have one run, or are at it, or it is ending.
    OfOthers,
    Failed(Failure),
}

/// Why there was no token.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Failure {
    code: u8,
    /// The process that was told, the one that runs the plugin, and of which cluster.
    asker: Option<(i32, String)>,
    /// Lines for people.
    words: String,
}

impl Start<'_> {
    /// Asks the manager for a token, and starts it if it does not run.
    ///
    /// # Errors
    /// The manager refuses, or cannot be asked or started.
    pub(super) async fn token(&self, printer: &Printer) -> Result<Started, CommandError> {
        self.has_runtime_folder()?;
        let asked_at = SystemTime::UNIX_EPOCH + clock::wall();
        let lately = asked_at.checked_sub(SAME_ANSWER).unwrap_or(asked_at);
        let told = Failure::since(lately, self.dir);
        if let Some(told) = told.filter(|told| told.asker.is_some() && told.asker == self.asker()) {
            return Ok(Started::Failed(ExitCode::from(told.code)));
        }
        let mut asking = Box::pin(self.token_of(asked_at));
        let outcome = match timeout(SILENCE, &mut asking).await {
            Ok(outcome) => outcome,
            Err(_) => {
                printer.progress(&format!("waiting for the tunnel to `{}`", self.request.cluster));
                asking.await
            }
        };
        let failure = match outcome {
            Ok(Ok(answer)) => {
                return Ok(Started::Token(BearerToken { token: answer.token, expires: answer.expires }));
            }
            Ok(Err(failure)) => failure,
            Err(error) => {
                let failure = Failure { code: error.kind as u8, asker: self.asker(), words: String::new() };
                failure.note(self.dir);
                return Err(error);
            }
        };
        failure.words.lines().for_each(|line| printer.relay(line));
        Ok(Started::Failed(ExitCode::from(failure.code)))
    }

    async fn token_of(&self, asked_at: SystemTime) -> Result<Result<TokenAnswer, Failure>, CommandError> {
        let give_up_at = after(PATIENCE);
        let mut starts = 0;
        loop {
            match control::request_token(self.dir, &self.request, ANSWER_LIMIT).await {
                Ok(answer) => return self.at_its_port(answer).map(Ok),
                Err(error) if !has_ended(&error) => return Err(self.refused(error)),
                // One that ends as soon as it runs does so again.
                Err(error) if is_over(give_up_at) || starts == MAX_STARTS => return Err(error.into()),
                Err(_) => {}
            }
            match self.have_one(asked_at).await? {
                Outcome::Failed(failure) => return Ok(Err(failure)),
                Outcome::Started => starts += 1,
                Outcome::OfOthers => {}
            }
        }
    }

    /// Makes sure that the folder is there in which the managers of a user are while he is logged in.
    fn has_runtime_folder(&self) -> Result<(), CommandError> {
        match self.dir.parent().and_then(Path::parent) {
            Some(folder) if !folder.is_dir() => {
                let message = format!("the folder `{}` is not there, in which the manager would be", folder.display());
                Err(CommandError::new(Kind::Usage, message)
                    .hint("it comes with a login; `loginctl enable-linger` has it there always")
                    .hint("`env -u XDG_RUNTIME_DIR autoheal-pa kubeconfig …` writes contexts that do without it"))
            }
            _ => Ok(()),
        }
    }

    /// Sees to it that a manager runs, unless there is one already, or somebody starts it.
    async fn have_one(&self, asked_at: SystemTime) -> Result<Outcome, CommandError> {
        let dir = self.dir;
        if !is_free(dir) {
            // It is beginning, or ending.
            sleep(PAUSE).await;
            return Ok(Outcome::OfOthers);
        }
        let _lock = lock(dir).await?;
        if !is_free(dir) {
            return Ok(Outcome::OfOthers);
        }
        // Whoever has waited while it failed need not see it fail again.
        if let Some(failure) = Failure::since(asked_at, dir).filter(|failure| !failure.words.is_empty()) {
            return Ok(Outcome::Failed(failure));
        }
        match self.start().await? {
            None => Ok(Outcome::Started),
            // A person has been faster.
            Some(_) if !is_free(dir) => Ok(Outcome::OfOthers),
            Some(failure) => {
                failure.note(dir);
                Ok(Outcome::Failed(failure))
            }
        }
    }

    /// Starts a manager, and waits until its ports are bound or it has failed.
    async fn start(&self) -> Result<Option<Failure>, CommandError> {
        let Some(program) = &self.environment.executable else {
            return Err(unexpected("find the path of this program"));
        };
        let mut arguments = vec![OsString::from("up")];
        arguments.extend(self.options.iter().cloned());
        let mut place = OsString::from(format!("{MANAGER_FLAG}="));
        place.push(self.dir);
        arguments.extend([place, "--started-by-plugin".into()]);
        let failed = |error| unexpected(&format!("run `{}`", program.display())).with_source(error);
        let mut background = Background::start_as(program, &arguments).map_err(failed)?;
        // It ends when this process does before it is ready.
        let _waiting = background.take_waiting();
        let mut words = String::new();
        let relayed = background.relay(|line| {
            // What it did before it failed is in its log.
            let is_of_failure = line.starts_with("error:") || !words.is_empty();
            if is_of_failure && words.len() < MAX_WORDS {
                words.push_str(line);
                words.push('\n');
            }
        });
        let ended = relayed.await.map_err(|error| unexpected("wait for the manager").with_source(error))?;
        Ok(ended.map(|status| {
            if words.is_empty() {
                let name = self.dir.file_name().unwrap_or_default().to_string_lossy();
                words = format!("error: the manager ended with {status} before its ports were bound\n");
                words.push_str(&command!("hint: `autoheal-pa logs --name {}` shows what it did\n", &*name));
            }
            Failure { code: exit_code_of(status), asker: self.asker(), words }
        }))
    }

    /// Returns the process that runs the plugin, if that is a client of Kubernetes and no person: it asks several times for a
    /// cluster.
    fn asker(&self) -> Option<(i32, String)> {
        let asks_again = self.environment.get("KUBERNETES_EXEC_INFO").is_some();
        let TokenRequest { cluster, region, .. } = &self.request;
        asks_again.then(|| (Pid::as_raw(getppid()), format!("{region}/{cluster}")))
    }

    /// Makes sure that the port of the context is the tunnel's.
    fn at_its_port(&self, answer: TokenAnswer) -> Result<TokenAnswer, CommandError> {
        match (self.port, answer.port) {
            (Some(was), Some(is)) if was != is => {
                let message = format!(
                    "another program has taken port {was}, so the tunnel to `{}` is on port {is} now",
                    self.request.cluster
                );
                Err(CommandError::new(Kind::Tunnel, message)
                    .hint("run the command again: the kubeconfig names the new port already"))
            }
            _ => Ok(answer),
        }
    }

    fn refused(&self, error: ControlError) -> CommandError {
        let ControlError::Refused { source } = &error else { return error.into() };
        let name = self.dir.file_name().unwrap_or_default().to_string_lossy();
        match source.code.as_str() {
            "tunnel" => {
                let mut lines = source.message.lines();
                let message = lines.next().unwrap_or_default();
                let hints = lines.filter_map(|line| line.strip_prefix("hint: "));
                hints.fold(CommandError::new(Kind::Tunnel, message), CommandError::hint)
            }
            "unknown-cluster" => {
                let hint = command!("`autoheal-pa reload --name {}` has it look for clusters again", &*name);
                CommandError::new(Kind::NotFound, source.message.clone()).hint(hint)
            }
            "other-kubeconfig" => CommandError::new(Kind::Usage, source.message.clone())
                .hint(command!("stop it with `autoheal-pa down --name {}`", &*name))
                .hint("give these contexts a manager of their own: `autoheal-pa kubeconfig --name NAME`"),
            "credentials" => CommandError::new(Kind::Credentials, source.message.clone())
                .hint(command!("`autoheal-pa status --name {}` shows whose credentials it has", &*name)),
            _ => error.into(),
        }
    }
}

/// Tells whether an error means that there is no manager, or soon none.
fn has_ended(error: &ControlError) -> bool {
    match error {
        ControlError::NotRunning { .. } | ControlError::Connection { .. } => true,
        ControlError::Refused { source } => source.code == "stopping",
        ControlError::Running { .. }
        | ControlError::NotPrivate { .. }
        | ControlError::Directory { .. }
        | ControlError::PathTooLong { .. }
        | ControlError::OtherUser { .. }
        | ControlError::Timeout { .. }
        | ControlError::OtherVersion { .. }
        | ControlError::Malformed { .. } => false,
    }
}

/// Tells whether nobody has a manager's directory.
fn is_free(dir: &Path) -> bool {
    !matches!(control::holder(dir), Ok(Some(_)))
}

fn after(time: Duration) -> Instant {
    Clock::start().instant(time)
}

fn is_over(at: Instant) -> bool {
    after(Duration::ZERO) >= at
}

/// Takes the right to start a manager, which ends with the file.
async fn lock(dir: &Path) -> Result<File, CommandError> {
    let failed = |source| ControlError::Directory { dir: dir.to_owned(), source };
    let folder = control::open(dir, Missing::Make)?;
    let folder = folder.ok_or_else(|| failed(io::ErrorKind::NotFound.into()))?;
    let file = folder.place(LOCK).open(OFlags::RDWR | OFlags::CREATE).map_err(failed)?;
    let locking = tokio::task::spawn_blocking(move || file.lock().map(|()| file));
    match timeout(PATIENCE, locking).await {
        Ok(Ok(locked)) => Ok(locked.map_err(failed)?),
        Ok(Err(error)) => Err(failed(io::Error::other(error)).into()),
        Err(_) => {
            let message = format!("another program has been starting the manager for {} s", PATIENCE.as_secs());
            Err(CommandError::new(Kind::Tunnel, message))
        }
    }
}

impl Failure {
    /// Returns what was noted since then.
    fn since(time: SystemTime, dir: &Path) -> Option<Self> {
        let file = control::open(dir, Missing::Fail).ok()??.place(FAILED).open(OFlags::RDONLY).ok()?;
        // One of the future is of a clock that has been set back.
        let now = SystemTime::UNIX_EPOCH + clock::wall();
        if !file.metadata().and_then(|metadata| metadata.modified()).is_ok_and(|at| (time..=now).contains(&at)) {
            return None;
        }
        let mut text = String::new();
        file.take(2 * MAX_WORDS as u64).read_to_string(&mut text).ok()?;
        let (head, words) = text.split_once('\n')?;
        let mut head = head.splitn(3, ' ');
        let code = head.next()?.parse().ok()?;
        let asker = head.next().and_then(|pid| pid.parse().ok()).zip(head.next().map(ToOwned::to_owned));
        Some(Self { code, asker, words: words.to_owned() })
    }

    /// Notes it. Without that, each that asks tries itself.
    fn note(&self, dir: &Path) {
        let Self { code, asker, words } = self;
        let asker = asker.as_ref().map(|(pid, cluster)| format!(" {pid} {cluster}")).unwrap_or_default();
        let text = format!("{code}{asker}\n{words}");
        let noted = control::open(dir, Missing::Make).map(|folder| {
            let place = folder.ok_or(io::ErrorKind::NotFound)?.place(FAILED);
            place.open(OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC)?.write_all(text.as_bytes())
        });
        if !matches!(noted, Ok(Ok(()))) {
            tracing::debug!(?noted, "cannot note why there was no token");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_told_to_whoever_has_waited_for_it_and_to_nobody_later() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("run/default");
        let before = SystemTime::UNIX_EPOCH;
        assert_eq!(Failure::since(before, &dir), None);
        for failure in [
            Failure {
                code: 3,
                asker: Some((4711, "eu-west-1/a".to_owned())),
                words: "error: no credentials\nhint: sign in\n".to_owned(),
            },
            Failure { code: 5, asker: None, words: String::new() },
        ] {
            failure.note(&dir);
            assert_eq!(Failure::since(before, &dir), Some(failure));
        }
        let later = SystemTime::UNIX_EPOCH + clock::wall() + Duration::from_secs(60);
        assert_eq!(Failure::since(later, &dir), None);
        std::fs::write(dir.join(FAILED), "no failure at all").unwrap();
        assert_eq!(Failure::since(before, &dir), None);
    }
}
