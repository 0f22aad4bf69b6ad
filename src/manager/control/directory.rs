//! The directory of a manager: who may use it, and who has it.

use std::{
    fs::{File, TryLockError},
    io::{self, Read, Seek, Write},
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::fs::OFlags;
use tokio::{net::UnixStream, time::timeout};
use uuid::Uuid;

use super::{ControlError, MAX_SOCKET_PATH_LEN};
use crate::util::{
    folder::{Folder, Missing, OTHER_USER, Place, PrivateError},
    replace::Temporary,
};

/// Name of the file that tells one place of managers from another. No manager has a name that begins like this.
const PLACE: &str = ".place";

/// Name of the file that a running manager has locked.
const LOCK: &str = "lock";

pub(super) const SOCKET: &str = "control.sock";

/// Who has a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Holder {
    /// Its process id, if it has written that down.
    pub pid: Option<u32>,
}

/// Opens a manager's directory. Returns `None` if it is missing and is not to be made.
///
/// The one above has the directories of all of this user's managers, and may be in a place for everyone, so that has to
/// be private as well. That place must not be another user's, who could put something else there at any time.
///
/// # Errors
/// [`ControlError::NotPrivate`], [`ControlError::Directory`].
pub fn open(dir: &Path, missing: Missing) -> Result<Option<Folder>, ControlError> {
    let failed = |source| ControlError::Directory { dir: dir.to_owned(), source };
    let (Some(managers), Some(name)) = (dir.parent(), dir.file_name()) else {
        return Err(failed(io::ErrorKind::InvalidInput.into()));
    };
    let managers = match Place::of(managers, missing) {
        Ok(managers) => managers,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    if managers.folder().is_foreign() {
        let dir = managers.folder().path().to_owned();
        return Err(ControlError::NotPrivate { dir, reason: OTHER_USER });
    }
    let Some(managers) = managers.private_folder(missing)? else { return Ok(None) };
    Ok(managers.place(name).private_folder(missing)?)
}

/// Returns the folder in which the directories of all managers are, if others may put something else in their place: as in
/// a temporary folder without the sticky bit. What is open stays what it was, and other users of a container may all be
/// trusted, but whoever goes by a path should know.
#[must_use]
pub fn open_to_swaps(dir: &Path) -> Option<PathBuf> {
    let managers = Place::of(dir.parent()?, Missing::Fail).ok()?;
    managers.folder().may_be_swapped().then(|| managers.folder().path().to_owned())
}

impl From<PrivateError> for ControlError {
    fn from(error: PrivateError) -> Self {
        match error {
            PrivateError::NotPrivate { path, reason } => Self::NotPrivate { dir: path, reason },
            PrivateError::Io { path, source } => Self::Directory { dir: path, source },
        }
    }
}

pub(super) fn socket_path(dir: &Path) -> Result<PathBuf, ControlError> {
    let socket = dir.join(SOCKET);
    if socket.as_os_str().len() > MAX_SOCKET_PATH_LEN {
        return Err(ControlError::PathTooLong { socket });
    }
    Ok(socket)
}

/// Makes a directory of our own, and takes its lock.
pub(super) fn take(dir: &Path) -> Result<(Folder, File), ControlError> {
    match open(dir, Missing::Make)? {
        Some(folder) => Ok((folder.clone(), lock(dir, &folder)?)),
        None => Err(ControlError::Directory { dir: dir.to_owned(), source: io::ErrorKind::NotFound.into() }),
    }
}

/// Returns who has a directory, if somebody has.
///
/// # Errors
/// [`ControlError::NotPrivate`], [`ControlError::Directory`].
pub fn holder(dir: &Path) -> Result<Option<Holder>, ControlError> {
    let Some(mut file) = existing_lock(dir)? else { return Ok(None) };
    let pid = read_pid(&mut file);
    Ok(matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock)).then_some(Holder { pid }))
}

/// Returns the id of the place where the names of managers count: the folder of their directories. It is in a file there, so
/// that nobody has it who does not see the same locks: another host with the same home, say, or a container like another.
///
/// Where it cannot be kept, it is another one each time, so that nobody is taken for somebody else.
#[must_use]
pub fn place(dir: &Path) -> String {
    let new = format!("{:016x}", Uuid::new_v4().as_u64_pair().0);
    kept_place(dir, &new).unwrap_or_else(|error| {
        tracing::debug!(%error, "cannot keep the id of this place");
        new
    })
}

fn kept_place(dir: &Path, new: &str) -> io::Result<String> {
    let managers = Folder::open(dir.parent().ok_or(io::ErrorKind::InvalidInput)?)?;
    let place = managers.place(PLACE);
    match read_place(&place) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        known => return known,
    }
    let mut file = Temporary::make(&managers)?;
    file.file.write_all(format!("{new}\n").as_bytes())?;
    match file.link_to(&place) {
        Ok(()) => Ok(new.to_owned()),
        // Another manager was faster.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => read_place(&place),
        Err(error) => Err(error),
    }
}

fn read_place(place: &Place) -> io::Result<String> {
    let mut text = String::new();
    place.open(OFlags::RDONLY)?.take(32).read_to_string(&mut text)?;
    let is_id = |id: &&str| id.len() == 16 && id.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    text.strip_suffix('\n').filter(is_id).map(ToOwned::to_owned).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// Waits until no manager has a directory any more. Returns whoever has it when the time is up.
///
/// # Errors
/// [`ControlError::NotPrivate`], [`ControlError::Directory`] if the lock cannot be looked at.
///
/// # Cancel safety
/// Can be dropped at any time.
pub async fn until_free(dir: &Path, limit: Duration) -> Result<Option<Holder>, ControlError> {
    let failed = |source| ControlError::Directory { dir: dir.to_owned(), source };
    let Some(mut file) = existing_lock(dir)? else { return Ok(None) };
    let pid = read_pid(&mut file);
    let locked = tokio::task::spawn_blocking(move || file.lock_shared());
    match timeout(limit, locked).await {
        Ok(Ok(outcome)) => outcome.map(|()| None).map_err(failed),
        Ok(Err(error)) => Err(failed(io::Error::other(error))),
        Err(_) => Ok(Some(Holder { pid })),
    }
}

/// Opens the lock of a directory, if it is there.
fn existing_lock(dir: &Path) -> Result<Option<File>, ControlError> {
    let Some(folder) = open(dir, Missing::Fail)? else { return Ok(None) };
    match folder.place(LOCK).open(OFlags::RDONLY) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(ControlError::Directory { dir: dir.to_owned(), source }),
    }
}

/// Takes the lock in a directory and leaves our process id in it.
fn lock(dir: &Path, folder: &Folder) -> Result<File, ControlError> {
    let failed = |source| ControlError::Directory { dir: dir.to_owned(), source };
    let mut file = folder.place(LOCK).open(OFlags::RDWR | OFlags::CREATE).map_err(failed)?;
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

/// Tells whether the process at the other end is one of this user's.
pub(super) fn is_peer(stream: &UnixStream, uid: u32) -> bool {
    stream.peer_cred().is_ok_and(|peer| peer.uid() == uid)
}
