//! The control socket: how other processes of the same user ask the running manager.
//!
//! A manager owns a directory, mode 0700, with two files: `lock`, locked as long as it runs and holding its
//! process id, and `control.sock`, a Unix socket with mode 0600. Both sides check who is at the other end:
//! a process of another user gets no answer, and is not believed.
//!
//! # Protocol
//!
//! One JSON object per line, either way, each with `"version": 1`. A connection takes any number of requests,
//! one after another. `request` says what is asked:
//!
//! ```text
//! {"version":1,"request":"token","cluster":"prod","region":"us-east-1"}
//! {"version":1,"answer":"token","token":"k8s-aws-v1.…","expires":1795317508}
//! ```
//!
//! `expires` counts seconds since the Unix epoch. Everything that cannot be answered, a request that is not
//! known included, gets a code and a sentence, and the connection stays:
//!
//! ```text
//! {"version":1,"answer":"error","code":"unknown-request","message":"…"}
//! ```
//!
//! Fields that a side does not know are ignored. A line is at most 64 KiB.
//!
//! Leaves out what the answers are: a [`Handler`] knows.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, Permissions, TryLockError},
    io::{self, Read, Seek, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use futures_util::future::BoxFuture;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{UnixListener, UnixStream},
    task::JoinSet,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use crate::secret::Secret;

#[cfg(any(fuzzing, test))]
pub(crate) mod fuzzing;
mod wire;

/// Most connections at once; one more waits. It keeps a program gone wild from taking all file descriptors.
const MAX_CONNECTIONS: usize = 64;

/// Longest line, in bytes, line feed included. A token has at most 4 KiB.
const MAX_LINE_LEN: u64 = 64 << 10;

/// Time for a client to send its next request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// Time for an answer to be found and taken; credentials may have to be fetched for it.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// Pause after the system refuses a connection, most likely for lack of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Longest path of a socket, in bytes: the smallest limit of the systems we run on, macOS with 104.
const MAX_SOCKET_PATH_LEN: usize = 103;

/// Asks for a bearer token for a cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenRequest {
    /// What the token is to name: the cluster's name, or its id for a local cluster on Outposts.
    pub cluster: String,
    /// The cluster's region.
    pub region: String,
}

/// A bearer token for a cluster.
#[derive(Debug, Clone)]
pub struct TokenAnswer {
    /// The token.
    pub token: Secret<String>,
    /// When the token or the credentials behind it expire; travels in whole seconds.
    pub expires: SystemTime,
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
    /// Makes a refusal.
    #[must_use]
    pub fn new(code: &str, message: impl Into<String>) -> Self {
        Self { code: code.to_owned(), message: message.into() }
    }
}

/// Answers requests; the manager is behind it.
pub trait Handler: Send + Sync + 'static {
    /// Gives a bearer token for one of the manager's clusters.
    fn token<'a>(&'a self, request: &'a TokenRequest) -> BoxFuture<'a, Result<TokenAnswer, Refusal>>;
}

/// The manager's end: holds the lock and listens. Dropping it removes the socket and gives up the lock.
#[derive(Debug)]
pub struct Server {
    listener: UnixListener,
    socket: PathBuf,
    uid: u32,
    /// Locked until it is closed.
    _lock: File,
}

impl Server {
    /// Takes possession of a directory, which is made if it is missing, and listens in it. What a manager
    /// that was killed has left there is replaced.
    ///
    /// Has to be called within a tokio runtime.
    ///
    /// # Errors
    /// [`ControlError::Running`] if another manager has it, [`ControlError::NotPrivate`] if others could get
    /// at it, [`ControlError::PathTooLong`], [`ControlError::Directory`].
    pub fn bind(dir: &Path) -> Result<Self, ControlError> {
        let socket = socket_path(dir)?;
        let failed = |source| ControlError::Directory { dir: dir.to_owned(), source };
        // The one above has the directories of all of this user's managers, and may be in a place for everyone.
        for dir in dir.parent().into_iter().chain([dir]) {
            DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(failed)?;
            check_private(dir)?;
        }
        let lock = lock(dir)?;
        match fs::remove_file(&socket) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        let listener = UnixListener::bind(&socket).map_err(failed)?;
        fs::set_permissions(&socket, Permissions::from_mode(0o600)).map_err(failed)?;
        Ok(Self { listener, socket, uid: own_uid(), _lock: lock })
    }

    /// Answers requests until `stop`. Requests that are being answered then are dropped.
    pub async fn serve(&self, handler: Arc<dyn Handler>, stop: CancellationToken) {
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                Some(ended) = connections.join_next() => {
                    if let Err(error) = ended {
                        tracing::error!(%error, "a connection to the control socket panicked");
                    }
                }
                accepted = self.listener.accept(), if connections.len() < MAX_CONNECTIONS => match accepted {
                    Ok((stream, _)) if is_peer(&stream, self.uid) => {
                        connections.spawn(converse(stream, Arc::clone(&handler)));
                    }
                    Ok(_) => tracing::warn!("refused a process of another user at the control socket"),
                    Err(error) => {
                        tracing::warn!(%error, "cannot accept a connection to the control socket");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                },
            }
        }
        connections.shutdown().await;
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // The lock file stays: were it removed, two managers could each hold the lock of a file of this name.
        if let Err(error) = fs::remove_file(&self.socket) {
            tracing::debug!(%error, "cannot remove the control socket");
        }
    }
}

/// Answers one client, request by request.
async fn converse(stream: UnixStream, handler: Arc<dyn Handler>) {
    let mut stream = BufReader::new(stream);
    loop {
        let line = match timeout(REQUEST_TIMEOUT, read_line(&mut stream)).await {
            Ok(Ok(Some(line))) => line,
            Ok(Ok(None)) | Err(_) => return,
            Ok(Err(error)) => {
                tracing::debug!(%error, "a client of the control socket is gone");
                return;
            }
        };
        let answer = async {
            let answer = match wire::decode_request(line.expose()) {
                Ok(wire::Request::Token(request)) => handler
                    .token(&request)
                    .await
                    .map_or_else(|refusal| wire::encode_refusal(&refusal), |t| wire::encode_token(&t)),
                Err(refusal) => wire::encode_refusal(&refusal),
            };
            stream.write_all(answer.expose().as_bytes()).await
        };
        match timeout(ANSWER_TIMEOUT, answer).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) | Err(_) => {
                tracing::debug!("a client of the control socket did not get its answer");
                return;
            }
        }
    }
}

/// Asks the manager whose directory this is for a token, within a deadline.
///
/// # Errors
/// [`ControlError::NotRunning`] if nobody listens there, [`ControlError::OtherUser`],
/// [`ControlError::Timeout`], [`ControlError::Refused`] with the manager's words,
/// [`ControlError::Connection`], [`ControlError::Malformed`], [`ControlError::PathTooLong`].
pub async fn request_token(
    dir: &Path,
    request: &TokenRequest,
    deadline: Duration,
) -> Result<TokenAnswer, ControlError> {
    match timeout(deadline, ask(dir, &wire::encode_token_request(request))).await {
        Ok(answer) => wire::decode_token(answer?.expose()),
        Err(_) => Err(ControlError::Timeout { dir: dir.to_owned(), deadline }),
    }
}

async fn ask(dir: &Path, line: &str) -> Result<Secret<String>, ControlError> {
    let failed = |source: io::Error| {
        let dir = dir.to_owned();
        if matches!(source.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) {
            ControlError::NotRunning { dir }
        } else {
            ControlError::Connection { dir, source }
        }
    };
    let mut stream = UnixStream::connect(socket_path(dir)?).await.map_err(failed)?;
    if !is_peer(&stream, own_uid()) {
        return Err(ControlError::OtherUser { dir: dir.to_owned() });
    }
    stream.write_all(line.as_bytes()).await.map_err(failed)?;
    let answer = read_line(&mut BufReader::new(stream)).await.map_err(failed)?;
    answer.ok_or_else(|| failed(io::ErrorKind::UnexpectedEof.into()))
}

/// Reads a line; `None` at the end of the stream. It may hold a token.
async fn read_line(stream: &mut BufReader<UnixStream>) -> io::Result<Option<Secret<String>>> {
    let mut line = String::new();
    stream.take(MAX_LINE_LEN).read_line(&mut line).await?;
    let line = Secret::new(line);
    match line.expose() {
        text if text.is_empty() => Ok(None),
        text if text.ends_with('\n') => Ok(Some(line)),
        text if text.len() as u64 == MAX_LINE_LEN => Err(io::Error::other("a line is too long")),
        _ => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

fn socket_path(dir: &Path) -> Result<PathBuf, ControlError> {
    let socket = dir.join("control.sock");
    if socket.as_os_str().len() > MAX_SOCKET_PATH_LEN {
        return Err(ControlError::PathTooLong { socket });
    }
    Ok(socket)
}

/// Takes the lock in a directory and leaves our process id in it.
fn lock(dir: &Path) -> Result<File, ControlError> {
    let failed = |source| ControlError::Directory { dir: dir.to_owned(), source };
    let path = dir.join("lock");
    let options = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).clone();
    let mut file = options.open(path).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => {
            // Only for the eyes of whoever is refused: a full disk is no reason not to run.
            let written = file
                .set_len(0)
                .and_then(|()| file.rewind())
                .and_then(|()| file.write_all(format!("{}\n", std::process::id()).as_bytes()));
            if let Err(error) = written {
                tracing::debug!(%error, "cannot write the process id into the lock file");
            }
            Ok(file)
        }
        Err(TryLockError::WouldBlock) => {
            let mut text = String::new();
            // The holder may not have written its id yet, or not all of it.
            let read = file.take(32).read_to_string(&mut text).ok();
            let pid = read.and_then(|_| text.strip_suffix('\n')?.parse().ok());
            Err(ControlError::Running { dir: dir.to_owned(), pid })
        }
        Err(TryLockError::Error(source)) => Err(failed(source)),
    }
}

/// Makes sure that a directory is really one, is ours, and that nobody else may look into it.
fn check_private(dir: &Path) -> Result<(), ControlError> {
    let metadata =
        fs::symlink_metadata(dir).map_err(|source| ControlError::Directory { dir: dir.to_owned(), source })?;
    let reason = if !metadata.is_dir() {
        "it is not a directory"
    } else if metadata.uid() != own_uid() {
        "it belongs to another user"
    } else if metadata.mode() & 0o077 != 0 {
        "other users have access to it"
    } else {
        return Ok(());
    };
    Err(ControlError::NotPrivate { dir: dir.to_owned(), reason })
}

fn is_peer(stream: &UnixStream, uid: u32) -> bool {
    stream.peer_cred().is_ok_and(|peer| peer.uid() == uid)
}

fn own_uid() -> u32 {
    rustix::process::getuid().as_raw()
}

/// Why there is no control socket, or no answer from it.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// A manager of this name runs already.
    #[error("a manager is already running{} in `{}`", pid.map(|pid| format!(" as process {pid}")).unwrap_or_default(), dir.display())]
    Running {
        /// Its directory.
        dir: PathBuf,
        /// Its process id, if it has written that down.
        pid: Option<u32>,
    },
    /// The manager's directory cannot be trusted.
    #[error("cannot use the directory `{}` for the control socket: {reason}", dir.display())]
    NotPrivate {
        /// The directory.
        dir: PathBuf,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The manager's directory cannot be used.
    #[error("cannot use the directory `{}` for the control socket", dir.display())]
    Directory {
        /// The directory.
        dir: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// The socket's path is longer than the system allows.
    #[error("the path of the control socket `{}` has more than {MAX_SOCKET_PATH_LEN} bytes", socket.display())]
    PathTooLong {
        /// The path.
        socket: PathBuf,
    },
    /// No manager runs there.
    #[error("no manager is running in `{}`", dir.display())]
    NotRunning {
        /// Its directory.
        dir: PathBuf,
    },
    /// The socket is served by a process of another user.
    #[error("the manager in `{}` belongs to another user", dir.display())]
    OtherUser {
        /// Its directory.
        dir: PathBuf,
    },
    /// The manager did not answer in time.
    #[error("the manager in `{}` did not answer within {} s", dir.display(), deadline.as_secs_f32())]
    Timeout {
        /// Its directory.
        dir: PathBuf,
        /// The limit.
        deadline: Duration,
    },
    /// The connection to the manager failed.
    #[error("the connection to the manager in `{}` failed", dir.display())]
    Connection {
        /// Its directory.
        dir: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// The manager's answer cannot be understood: it may be of another version.
    #[error("cannot understand the answer of the manager")]
    Malformed {
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// The manager refuses.
    #[error("the manager has no answer")]
    Refused {
        /// Its words.
        #[source]
        source: Refusal,
    },
}

#[cfg(test)]
mod tests;
