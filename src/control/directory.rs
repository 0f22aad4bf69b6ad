//! The directory of a manager: who may use it, and who has it.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, TryLockError},
    io::{self, Read, Seek, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::{net::UnixStream, time::timeout};

use super::{ControlError, MAX_SOCKET_PATH_LEN};

/// Who has a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Holder {
    /// Its process id, if it has written that down.
    pub pid: Option<u32>,
}

/// Returns the path of the socket in a directory.
pub(super) fn socket_path(dir: &Path) -> Result<PathBuf, ControlError> {
    let socket = dir.join("control.sock");
    if socket.as_os_str().len() > MAX_SOCKET_PATH_LEN {
        return Err(ControlError::PathTooLong { socket });
    }
    Ok(socket)
}

/// Makes a directory of our own, and takes its lock.
pub(super) fn take(dir: &Path) -> Result<File, ControlError> {
    let failed = |source| ControlError::Directory { dir: dir.to_owned(), source };
    // The one above has the directories of all of this user's managers, and may be in a place for everyone.
    for dir in dir.parent().into_iter().chain([dir]) {
        DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(failed)?;
        check_private(dir)?;
    }
    lock(dir)
}

/// Returns who has a directory, if somebody has.
#[must_use]
pub fn holder(dir: &Path) -> Option<Holder> {
    let mut file = File::open(dir.join("lock")).ok()?;
    let pid = read_pid(&mut file);
    matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock)).then_some(Holder { pid })
}

/// Waits until no manager has a directory any more. Returns whoever has it when the time is up.
///
/// # Errors
/// [`ControlError::Directory`] if the lock cannot be looked at.
///
/// # Cancel safety
/// Can be dropped at any time.
pub async fn until_free(dir: &Path, limit: Duration) -> Result<Option<Holder>, ControlError> {
    let failed = |source| ControlError::Directory { dir: dir.to_owned(), source };
    let mut file = match File::open(dir.join("lock")) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let pid = read_pid(&mut file);
    let locked = tokio::task::spawn_blocking(move || file.lock_shared());
    match timeout(limit, locked).await {
        Ok(Ok(outcome)) => outcome.map(|()| None).map_err(failed),
        Ok(Err(error)) => Err(failed(io::Error::other(error))),
        Err(_) => Ok(Some(Holder { pid })),
    }
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
        Err(TryLockError::WouldBlock) => Err(ControlError::Running { dir: dir.to_owned(), pid: read_pid(&mut file) }),
        Err(TryLockError::Error(source)) => Err(failed(source)),
    }
}

/// Reads the process id in a lock. The holder may not have written it yet, or not all of it.
fn read_pid(file: &mut File) -> Option<u32> {
    let mut text = String::new();
    file.take(32).read_to_string(&mut text).ok()?;
    text.strip_suffix('\n')?.parse().ok()
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

/// Tells whether the process at the other end is one of this user's.
pub(super) fn is_peer(stream: &UnixStream, uid: u32) -> bool {
    stream.peer_cred().is_ok_and(|peer| peer.uid() == uid)
}

pub(super) fn own_uid() -> u32 {
    rustix::process::getuid().as_raw()
}
