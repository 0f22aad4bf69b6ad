//! What may be wrong with a profile, by what can be done about it. No value of a key is shown that may be a secret.

use std::{
    fmt, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::ini::Fault;
use crate::{
    aws::error::Cause,
    settings::inputs::{Wrong, shown},
};

/// A line of a profile file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    pub path: Arc<Path>,
    /// From 1.
    pub line: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.path.display(), self.line)
    }
}

/// What is wrong with a file, outside of the sections that are used.
#[derive(Debug, Clone, thiserror::Error)]
pub(super) enum FileFault {
    #[error("`{}` cannot be read", path.display())]
    Unreadable {
        path: PathBuf,
        /// What the system says.
        #[source]
        source: Arc<io::Error>,
    },
    /// A line means nothing.
    #[error("{place} {what}")]
    Line { place: Place, what: &'static str },
}

impl FileFault {
    pub(super) fn line(path: &Arc<Path>, fault: &Fault) -> Self {
        Self::Line { place: Place { path: Arc::clone(path), line: fault.line }, what: fault.what }
    }

    /// Returns the file, and the line in it; 0 for the whole of it.
    pub(super) fn place(&self) -> (&Path, usize) {
        match self {
            Self::Unreadable { path, .. } => (path, 0),
            Self::Line { place, .. } => (&place.path, place.line),
        }
    }
}

/// Why a profile cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ProfileFault {
    /// A line of it means nothing.
    #[error("{place} {what}")]
    Line { place: Place, what: &'static str },
    /// A value is not of the form that it must have.
    #[error("{place}: `{key}` {what}")]
    Value {
        place: Place,
        key: &'static str,
        /// What is wrong with the value, which is in it if it may be shown.
        what: String,
    },
    /// It names a section that is not there.
    #[error("its `{key}` names `{}`, and no file has a section `[{}]`", shown(name), header(key, name))]
    NoSuchSection {
        /// The key: `source_profile`, `sso_session` or `services`.
        key: &'static str,
        name: String,
    },
    /// Profiles name each other as their sources.
    #[error("its sources form a circle: {}", names.join(", "))]
    Circle {
        /// The profiles, in their order.
        names: Vec<String>,
    },
    /// A key needs others.
    #[error("`{profile}` has `{has}` but lacks {}", list(lacks))]
    Lacks {
        /// The profile or section, which may be that of a source.
        profile: String,
        has: &'static str,
        lacks: Vec<&'static str>,
    },
    /// Two keys say different things.
    #[error("`{profile}` has both `{one}` and `{other}`: only one of them is allowed")]
    Contradiction { profile: String, one: &'static str, other: &'static str },
    /// An IAM Identity Center session is described twice, and differently.
    #[error("its `{key}` differs from that of `[sso-session {session}]`")]
    SessionDiffers { key: &'static str, session: String },
    /// The source of its credentials is of a kind that there is not.
    #[error(
        "its `credential_source` is `{source_name}`, which is none of `Environment`, `Ec2InstanceMetadata`, `EcsContainer`"
    )]
    UnknownSource { source_name: String },
    /// The keys that it wants from the environment are not there.
    #[error("its `credential_source` is `Environment`, but `AWS_ACCESS_KEY_ID` or `AWS_SECRET_ACCESS_KEY` is not set")]
    NoKeysInEnvironment,
    /// A source has no credentials.
    #[error("its `source_profile` `{source_profile}` has no credentials")]
    EmptySource { source_profile: String },
    /// It is signed in with `aws login`.
    #[error("it is signed in with `aws login`, whose sessions only the AWS CLI can read")]
    Login { profile: String },
    /// Its role is not given without a code from a device.
    #[error("{}", if *asked {
        format!("its role is not given with this code of the MFA device `{serial}`")
    } else {
        format!("its role needs a code from the MFA device `{serial}`, which cannot be asked for here")
    })]
    Mfa {
        serial: String,
        /// Somebody has given a code.
        asked: bool,
        /// What AWS said.
        #[source]
        source: Cause,
    },
    /// Nobody is signed in to IAM Identity Center for it.
    #[error("{}", if *expired {
        "its sign-in to IAM Identity Center has expired"
    } else {
        "it is not signed in to IAM Identity Center"
    })]
    SignedOut {
        /// The profile that has to be signed in, which may be that of a source.
        profile: String,
        /// Somebody has signed in before.
        expired: bool,
        /// What the SDK says.
        #[source]
        source: Cause,
    },
    /// There is nothing to sign in to.
    #[error("it does not sign in to IAM Identity Center: {has}")]
    NoSignIn {
        /// What it has instead, in words.
        has: String,
    },
    /// Who was asked to approve of the sign-in has said no.
    #[error("its sign-in was denied in the browser")]
    SignInDenied,
    /// Nobody has approved of the sign-in.
    #[error("nobody has approved of its sign-in in time")]
    SignInLate,
    /// IAM Identity Center does not know what the profile names.
    #[error("IAM Identity Center in `{region}` refuses a sign-in at `{start_url}`")]
    SignInRefused {
        start_url: String,
        region: String,
        /// What it answered.
        #[source]
        source: Cause,
    },
    /// The token of a sign-in cannot be written.
    #[error("the token of its sign-in cannot be kept in `{}`", path.display())]
    TokenNotKept {
        path: PathBuf,
        /// What the system says.
        #[source]
        source: Arc<io::Error>,
    },
    /// The file of its web identity token cannot be read. The SDK would name neither of the two, and wait for ever for the
    /// writer of a pipe.
    #[error("its `web_identity_token_file` `{}` cannot be read", path.display())]
    TokenFile {
        path: PathBuf,
        /// What the system says, or why it is not tried.
        #[source]
        source: Cause,
    },
    /// Its program gives no credentials.
    #[error("its `credential_process` {what}")]
    Process { what: String },
    /// It has no credentials, and neither has anything else.
    #[error("it has no credentials: {}", if keys.is_empty() { "it is empty".to_owned() } else { format!("there is only {}", list(keys)) })]
    NoCredentials { keys: Vec<String> },
}

impl ProfileFault {
    pub(super) fn value(key: &'static str, place: Place, value: &str, wrong: Wrong) -> Self {
        let what = match wrong {
            Wrong::Is(reason) => reason.to_owned(),
            Wrong::Not(expected) => format!("is `{}`, which is not {expected}", shown(value)),
        };
        Self::Value { place, key, what }
    }
}

/// Writes a header as `aws configure` would.
fn header(key: &str, name: &str) -> String {
    let kind = match key {
        "source_profile" => "profile",
        "sso_session" => "sso-session",
        other => other,
    };
    let name = shown(name);
    if name.contains(char::is_whitespace) { format!("{kind} '{name}'") } else { format!("{kind} {name}") }
}

pub(super) fn list(keys: &[impl AsRef<str>]) -> String {
    let keys: Vec<_> = keys.iter().map(|key| format!("`{}`", key.as_ref())).collect();
    keys.join(", ")
}
