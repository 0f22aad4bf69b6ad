//! The control socket: how other processes of the same user ask the running manager.
//!
//! A manager owns a directory, mode 0700, with two files: `lock`, locked as long as it runs and holding its
//! process id, and `control.sock`, a Unix socket with mode 0600. Both sides check who is at the other end:
//! a process of another user gets no answer, and is not believed.
//!
//! # Protocol
//!
//! One JSON object per line, either way, each with `"version": 1`, the version of the protocol, and with `program`, the version
//! of the program that has written it. A connection takes any number of requests,
//! one after another. `request` says what is asked, `answer` what is answered:
//!
//! | request | fields | answers |
//! |---|---|---|
//! | `token` | `cluster`, `region`, and where that is not enough `account` | `token` |
//! | `status` | `follow`: whether to go on, false if it is left out | `status`, and with `follow` another at every change |
//! | `reload` | | `reloaded`, when the tunnels that are gone have ended |
//! | `stop` | | `stopping` at once; the connection closes when the manager has ended its sessions |
//! | `doctor` | `clusters`: names, all if it is left out or empty | `finding` for each check, then `done` |
//!
//! ```text
//! {"version":1,"program":"0.1.0","request":"token","cluster":"prod","region":"us-east-1"}
//! {"version":1,"program":"0.1.0","answer":"token","token":"k8s-aws-v1.…","expires":1795317508}
//! {"version":1,"program":"0.1.0","request":"status"}
//! {"version":1,"program":"0.1.0","answer":"status","status":{"version":1,"name":"default","state":"active",…}}
//! ```
//!
//! `expires` counts seconds since the Unix epoch; `status` is what [`ManagerStatus`] says. Everything that cannot
//! be answered, a request that is not known included, gets a code and a sentence, and the connection stays:
//!
//! ```text
//! {"version":1,"program":"0.1.0","answer":"error","code":"unknown-request","message":"…"}
//! ```
//!
//! Fields that a side does not know are ignored, so programs of other versions understand each other as long as nothing is asked
//! that one of them does not know. Where they do not, it is the version that is told. A request has at most 64 KiB, an answer 8 MiB.
//!
//! Leaves out what the answers are: a [`Handler`] knows.

use std::{
    io,
    path::PathBuf,
    time::{Duration, SystemTime},
};

use futures_util::stream::BoxStream;

use crate::{secret::Secret, version};

mod client;
mod directory;
#[cfg(any(fuzzing, test))]
pub(crate) mod fuzzing;
mod server;
mod status;
mod wire;

pub use client::{ANSWER_LIMIT, Client, ask, late, request_token};
pub use directory::{Holder, holder, open, open_to_swaps, place, until_free};
pub use server::Server;
pub use status::{AccessStatus, ApprovalStatus, ManagerStatus, ProxyStatus, SessionReport, TunnelReport};

/// Longest request, in bytes, line feed included.
const MAX_REQUEST_LEN: u64 = 64 << 10;

/// Longest answer, in bytes, line feed included: the status of thousands of tunnels.
const MAX_ANSWER_LEN: u64 = 8 << 20;

/// Longest path of a socket, in bytes: the smallest limit of the systems we run on, macOS with 104.
const MAX_SOCKET_PATH_LEN: usize = 103;

/// What can be asked of a manager.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// A bearer token for one of its clusters.
    Token(TokenRequest),
    Status {
        /// Says it again whenever it changes.
        follow: bool,
    },
    /// To look for clusters again.
    Reload,
    Stop,
    /// To examine the ways to its clusters.
    Doctor {
        /// Names of clusters; empty: all.
        clusters: Vec<String>,
    },
}

/// Asks for a bearer token for a cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenRequest {
    /// What the token is to name: the cluster's name, or its id for a local cluster on Outposts.
    pub cluster: String,
    /// The cluster's region.
    pub region: String,
    /// The cluster's account id; `None`: whichever has it.
    pub account: Option<String>,
    /// A program is about to connect by a context in this kubeconfig, which has kubectl start the manager: the answer comes
    /// when the tunnel takes connections, or it is said why it does not.
    pub starts: Option<String>,
}

#[derive(Debug, Clone)]
pub enum Answer {
    Token(TokenAnswer),
    Status(Box<ManagerStatus>),
    /// It has looked for clusters again.
    Reloaded(Reloaded),
    Stopping,
    /// The outcome of a check; the examination knows its fields.
    Finding(serde_json::Value),
    /// There is no more to come.
    Done,
}

/// A bearer token for a cluster.
#[derive(Debug, Clone)]
pub struct TokenAnswer {
    pub token: Secret<String>,
    /// When the token or the credentials behind it expire; travels in whole seconds.
    pub expires: SystemTime,
    /// The local port that the cluster's context leads to.
    pub port: Option<u16>,
}

/// What has changed since a manager looked for clusters before.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Reloaded {
    /// Contexts of tunnels that are new.
    pub added: Vec<String>,
    /// Contexts of tunnels that have been closed.
    pub removed: Vec<String>,
    /// How many tunnels were not touched.
    pub kept: usize,
    /// What could not be looked at again, in sentences; the tunnels there were not touched either.
    pub problems: Vec<String>,
    /// What has changed in the settings and counts from the next start on only, as a sentence.
    #[serde(default)]
    pub later: Option<String>,
}

/// Why a request is not answered, for the client's user.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// A short name that programs can tell apart, such as `unknown-cluster`.
    pub code: String,
    /// One sentence without full stop.
    pub message: String,
}

impl Refusal {
    #[must_use]
    pub fn new(code: &str, message: impl Into<String>) -> Self {
        Self { code: code.to_owned(), message: message.into() }
    }
}

/// Answers requests; the manager is behind it.
pub trait Handler: Send + Sync + 'static {
    /// Answers a request: one item for each line of the answer.
    fn answer(&self, request: Request) -> BoxStream<'static, Result<Answer, Refusal>>;
}

/// Why there is no control socket, or no answer from it.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// A manager of this name runs already.
    #[error("a manager is already running{} in `{}`", pid.map(|pid| format!(" as process {pid}")).unwrap_or_default(), dir.display())]
    Running {
        dir: PathBuf,
        /// Its process id, if it has written that down.
        pid: Option<u32>,
    },
    /// The manager's directory cannot be trusted.
    #[error("cannot use the directory `{}` for the control socket: {reason}", dir.display())]
    NotPrivate { dir: PathBuf, reason: &'static str },
    /// The manager's directory cannot be used.
    #[error("cannot use the directory `{}` for the control socket", dir.display())]
    Directory {
        dir: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// The socket's path is longer than the system allows.
    #[error("the path of the control socket `{}` is longer than {MAX_SOCKET_PATH_LEN} bytes", socket.display())]
    PathTooLong { socket: PathBuf },
    /// No manager runs there.
    #[error("no manager is running in `{}`", dir.display())]
    NotRunning { dir: PathBuf },
    /// The socket is served by a process of another user.
    #[error("the manager in `{}` belongs to another user", dir.display())]
    OtherUser { dir: PathBuf },
    /// The manager did not answer in time.
    #[error("the manager in `{}` did not answer within {} s", dir.display(), deadline.as_secs_f32())]
    Timeout {
        dir: PathBuf,
        deadline: Duration,
        /// The manager's process, if that is known.
        pid: Option<u32>,
    },
    /// The connection to the manager failed.
    #[error("the connection to the manager in `{}` failed", dir.display())]
    Connection {
        dir: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// The manager is of another version, and they do not understand each other.
    #[error(
        "the manager in `{}` is {}, which does not understand this one, {}",
        dir.display(),
        program.as_ref().map_or("an older version".to_owned(), |program| format!("version {program}")),
        version::short()
    )]
    OtherVersion {
        dir: PathBuf,
        /// Its version, if it says so.
        program: Option<String>,
    },
    /// The manager's answer cannot be understood.
    #[error("cannot understand the manager's answer")]
    Malformed {
        #[source]
        source: serde_json::Error,
    },
    #[error("the manager refused")]
    Refused {
        #[source]
        source: Refusal,
    },
}

#[cfg(test)]
mod tests;
