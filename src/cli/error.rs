//! What a command ends with when it fails: one sentence, its causes, what to do next, and an exit code.
//!
//! Every error of the layers below is converted here, once. Only this module knows hints and exit codes;
//! hints name the next step with the user's own names filled in.

use std::{borrow::Cow, error::Error, fmt, io, path::Path, process::ExitCode, sync::Arc};

use crate::{
    aws::{
        AwsError,
        advice::{self, Concern},
    },
    fault::{BoxError, Class, Fault},
    kubeconfig::KubeconfigError,
    manager::control::ControlError,
    remote::Remote,
    route::Caution,
    settings::{Problem, SettingsError, inputs::TOKEN_ITSELF},
    tunnel::{BindError, LinkStatus},
    util::{
        folder::OTHER_USER,
        peer_text::with_causes,
        quote::{Word, command},
        written::in_words,
    },
};

mod manager;

/// What kind of failure it is. The numbers are an interface: scripts look at them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Nothing that was foreseen.
    Unexpected = 1,
    /// Flags, variables or files say something that cannot be done.
    Usage = 2,
    /// Credentials are missing or not good, or do not allow what is needed.
    Credentials = 3,
    /// There is no such cluster or target.
    NotFound = 4,
    /// A tunnel could not be established.
    Tunnel = 5,
    /// `doctor` has found problems, or `setup --check`.
    Doctor = 6,
    /// SIGINT came before the work was done.
    Interrupted = 130,
    /// SIGTERM came before the work was done.
    Terminated = 143,
}

impl Kind {
    /// Every kind, in the order of the exit codes.
    pub const ALL: [Self; 8] = [
        Self::Unexpected,
        Self::Usage,
        Self::Credentials,
        Self::NotFound,
        Self::Tunnel,
        Self::Doctor,
        Self::Interrupted,
        Self::Terminated,
    ];

    #[must_use]
    pub fn exit_code(self) -> ExitCode {
        ExitCode::from(self as u8)
    }

    /// Says what the exit code means.
    #[must_use]
    pub fn meaning(self) -> &'static str {
        match self {
            Self::Unexpected => "unexpected error",
            Self::Usage => "usage: an option, a setting or a file",
            Self::Credentials => "credentials or permission",
            Self::NotFound => "cluster, bastion or manager not found",
            Self::Tunnel => "tunnel not established",
            Self::Doctor => "`doctor` or `setup` found problems",
            Self::Interrupted => "interrupted by SIGINT before the tunnels were ready",
            Self::Terminated => "ended by SIGTERM before the tunnels were ready",
        }
    }
}

/// What the exit code 0 means.
const SUCCESS: &str = "done; stopped by a signal after the tunnels had been ready";

/// Returns every exit code of this program with its meaning. The program's page is made of it, and the manual's chapter is checked by it.
pub fn exit_codes() -> impl Iterator<Item = (u8, &'static str)> {
    std::iter::once((0, SUCCESS)).chain(Kind::ALL.map(|kind| (kind as u8, kind.meaning())))
}

/// Why a command failed.
#[derive(Debug)]
pub struct CommandError {
    /// Decides the exit code.
    pub kind: Kind,
    message: String,
    source: Option<BoxError>,
    hints: Vec<String>,
}

impl CommandError {
    /// Makes an error from one sentence without full stop.
    #[must_use]
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), source: None, hints: Vec::new() }
    }

    /// Makes an error that says what its cause says.
    pub(super) fn of(kind: Kind, error: impl Error + Send + Sync + 'static) -> Self {
        // The cause itself is the message, so only what is behind it is still to be said.
        Self { kind, message: String::new(), source: Some(Box::new(error)), hints: Vec::new() }
    }

    /// Adds the cause.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<BoxError>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// Adds a hint: what to do next.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hints.push(hint.into());
        self
    }

    /// Whether the cause is that something is not there.
    #[must_use]
    pub(super) fn is_missing(&self) -> bool {
        let source = self.source.as_deref().and_then(|source| source.downcast_ref::<io::Error>());
        source.is_some_and(|source| source.kind() == io::ErrorKind::NotFound)
    }

    fn hints(mut self, hints: impl IntoIterator<Item = String>) -> Self {
        self.hints.extend(hints);
        self
    }

    /// Returns the message and its causes in one sentence.
    #[must_use]
    pub fn sentence(&self) -> String {
        match self.source.as_deref() {
            Some(source) => with_causes(self.message.clone(), source),
            None => self.message.clone(),
        }
    }

    #[must_use]
    pub fn next_steps(&self) -> &[String] {
        &self.hints
    }
}

impl fmt::Display for CommandError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.sentence())
    }
}

impl From<Class> for Kind {
    fn from(class: Class) -> Self {
        match class {
            Class::Denied | Class::Identity => Self::Credentials,
            Class::Away | Class::Replaced | Class::Gone => Self::NotFound,
            Class::Transient
            | Class::Throttled
            | Class::Refused
            | Class::Useless
            | Class::Unfit
            | Class::Over
            | Class::Bug => Self::Tunnel,
        }
    }
}

impl From<Concern> for Kind {
    fn from(concern: Concern) -> Self {
        match concern {
            Concern::Settings => Self::Usage,
            Concern::Identity => Self::Credentials,
            Concern::Missing => Self::NotFound,
            Concern::Service => Self::Unexpected,
        }
    }
}

impl CommandError {
    /// Says why there is no tunnel.
    #[must_use]
    pub fn tunnel(to: &Remote, fault: &Arc<Fault>) -> Self {
        let error = Self::new(fault.class.into(), format!("cannot open a tunnel to `{}`", to.name()));
        error.with_source(Arc::clone(fault)).hints(fault.hints.iter().cloned())
    }

    /// Says that the other end of a link has not answered yet.
    #[must_use]
    pub fn peer_awaited(to: &Remote, link: &LinkStatus) -> Self {
        let message = format!("the tunnel to `{}` is still waiting for the agent on `{}`", to.name(), link.place());
        Self::new(Kind::Tunnel, message).hints(link.silence_hints.iter().cloned())
    }

    /// Says what follows from credentials that cannot be renewed.
    #[must_use]
    pub fn credentials(message: impl Into<String>, error: &AwsError) -> Self {
        let (concern, hints) = advice::assess(error);
        Self::new(concern.into(), message).with_source(error.clone()).hints(hints)
    }
}

impl From<AwsError> for CommandError {
    fn from(error: AwsError) -> Self {
        let (concern, hints) = advice::assess(&error);
        Self::of(concern.into(), error).hints(hints)
    }
}

impl From<Caution> for CommandError {
    fn from(caution: Caution) -> Self {
        Self::new(caution.class.into(), caution.message).hints(caution.hints)
    }
}

/// Says that a file of ours cannot be used, and why.
pub(super) fn cannot_use(what: &str, path: &Path, source: io::Error) -> CommandError {
    CommandError::new(Kind::Unexpected, format!("cannot use the {what} `{}`", path.display())).with_source(source)
}

impl From<SettingsError> for CommandError {
    fn from(error: SettingsError) -> Self {
        let needs_bastion = error.problems.iter().any(|problem| matches!(problem, Problem::NoBastion));
        let hint = "give a machine that is registered with Systems Manager and reaches the clusters' endpoints, such as \
                    `--bastion i-0123456789abcdef0`";
        let is_token =
            |problem: &Problem| matches!(problem, Problem::Unusable { reason, .. } if *reason == TOKEN_ITSELF);
        let token = "write the token to a file and give its path: `printf %s \"$TOKEN\" >token; export \
                     AWS_WEB_IDENTITY_TOKEN_FILE=$PWD/token`";
        let is_token = error.problems.iter().any(is_token);
        let hints = [needs_bastion.then_some(hint), is_token.then_some(token)];
        // It is a list where there are several, and all of it is of this program and its user.
        Self::new(Kind::Usage, error.to_string()).hints(hints.into_iter().flatten().map(ToOwned::to_owned))
    }
}

impl From<BindError> for CommandError {
    fn from(error: BindError) -> Self {
        let hint = match &error {
            BindError::Taken(_) => "choose other ports with `--base-port`, or drop `--strict-ports` to skip taken ones",
            BindError::Exhausted { .. } => {
                "choose lower ports with `--base-port`, or any free ones with `--base-port 0`"
            }
            BindError::Io { .. } => {
                "choose other ports with `--base-port`; ports below 1024 are reserved for the system"
            }
        };
        Self::of(Kind::Tunnel, error).hint(hint)
    }
}

impl From<KubeconfigError> for CommandError {
    fn from(error: KubeconfigError) -> Self {
        let another = "give another file with `--kubeconfig`";
        let (kind, hint) = match &error {
            KubeconfigError::Unwritable { path, source } if is_full(source) => {
                let folder = path.parent().unwrap_or(path);
                (Kind::Usage, format!("free some space for `{}`, or {another}; nothing was changed", folder.display()))
            }
            KubeconfigError::Unreadable { .. }
            | KubeconfigError::Unwritable { .. }
            | KubeconfigError::TooLarge { .. } => (Kind::Usage, another.to_owned()),
            KubeconfigError::Syntax { path, .. } => {
                (Kind::Usage, format!("fix `{}`, or {another}; nothing was changed in it", path.display()))
            }
            KubeconfigError::NotAKubeconfig { .. } => {
                (Kind::Usage, format!("{another}; nothing was changed in this one"))
            }
            KubeconfigError::NameTaken { owner, .. } => {
                let also = match owner {
                    Some(manager) => format!("stop the manager `{manager}`"),
                    None => "rename that entry".to_owned(),
                };
                (Kind::Usage, format!("choose other names with `--context-prefix`, {another}, or {also}"))
            }
            KubeconfigError::Shadowing { .. } => (
                Kind::Usage,
                format!("choose other names with `--context-prefix`, {another}, or rename one of the two entries"),
            ),
            KubeconfigError::Locked { lock, holder, age, .. } => {
                let age = age.map(|age| format!("it was made {} ago; ", in_words(age))).unwrap_or_default();
                let age = Word::raw(age);
                let hint = match holder {
                    None => command!(
                        "{}if no kubectl is running, it was left behind: remove it with `rm {}`",
                        age,
                        lock.as_path()
                    ),
                    Some(holder) if holder.is_here() => format!("{age}wait for process {} to end", holder.pid),
                    Some(_) => command!(
                        "{}if that process is gone, it was left behind: remove it with `rm {}`",
                        age,
                        lock.as_path()
                    ),
                };
                (Kind::Unexpected, hint)
            }
        };
        Self::of(kind, error).hint(hint)
    }
}

/// What to do about a manager's directory that cannot be used.
const OWN_DIRECTORY: &str = "set `XDG_RUNTIME_DIR` to a directory of your own that nobody else can write to";

/// How to stop the manager in a directory.
fn stop_hint(dir: &Path) -> String {
    command!("stop it with `autoheal-pa down{}`, or give this one another `--name`", name_option(&manager_name(dir)))
}

/// The name of the manager in a directory, which is called as it is.
fn manager_name(dir: &Path) -> Cow<'_, str> {
    dir.file_name().unwrap_or_default().to_string_lossy()
}

/// The option that names a manager, with a blank before it, where it has to be given.
pub(super) fn name_option(name: &str) -> Word {
    Word::raw(if name == "default" { String::new() } else { command!(" --name {}", name) })
}

/// Whether there is no room for a file.
fn is_full(error: &io::Error) -> bool {
    use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    matches!(error.kind(), StorageFull | QuotaExceeded | FileTooLarge)
}

impl From<ControlError> for CommandError {
    fn from(error: ControlError) -> Self {
        let (kind, hint) = match &error {
            ControlError::Running { dir, .. } => (Kind::Usage, Some(stop_hint(dir))),
            // Nobody may remove what is another user's.
            ControlError::NotPrivate { reason: OTHER_USER, .. } => (Kind::Usage, Some(OWN_DIRECTORY.to_owned())),
            ControlError::NotPrivate { dir, .. } => (
                Kind::Usage,
                Some(command!(
                    "check what is in it, then remove it with `rm -r {}`, or {}",
                    dir.as_path(),
                    Word::raw(OWN_DIRECTORY)
                )),
            ),
            ControlError::Directory { .. } => (Kind::Usage, Some(OWN_DIRECTORY.to_owned())),
            ControlError::PathTooLong { .. } => {
                (Kind::Usage, Some("set `XDG_RUNTIME_DIR` to a shorter path, or choose a shorter `--name`".to_owned()))
            }
            ControlError::NotRunning { .. } => (Kind::NotFound, Some("start it with `autoheal-pa up`".to_owned())),
            ControlError::OtherVersion { dir, .. } => (
                Kind::Unexpected,
                Some(command!(
                    "`autoheal-pa down{}` stops it whatever its version, then start it again",
                    name_option(&manager_name(dir))
                )),
            ),
            ControlError::Timeout { pid: Some(pid), .. } => (
                Kind::Unexpected,
                Some(command!(
                    "process {} may be stopped or stuck: `kill -9 {}` ends it, and the next `up` or `down` ends its sessions",
                    *pid,
                    *pid
                )),
            ),
            ControlError::OtherUser { .. }
            | ControlError::Timeout { pid: None, .. }
            | ControlError::Connection { .. }
            | ControlError::Malformed { .. }
            | ControlError::Refused { .. } => (Kind::Unexpected, None),
        };
        Self::of(kind, error).hints(hint)
    }
}

#[cfg(test)]
mod tests;
