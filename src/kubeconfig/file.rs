//! Files that are replaced whole: read, lock, temporary file, rename.
//!
//! Symbolic links are followed, so the file behind them is replaced and they stay. Mode and owner of a
//! file that is there are kept; a new one is for its owner only.

use std::{
    fs::{self, DirBuilder, File, Metadata, OpenOptions, Permissions},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use super::KubeconfigError;

/// How often a lock that is taken is tried: with [`LOCK_PAUSE`], for 5 s. kubectl holds it for milliseconds.
pub(super) const LOCK_ATTEMPTS: u32 = 50;

/// Time between two attempts to take a lock.
const LOCK_PAUSE: Duration = Duration::from_millis(100);

/// Most symbolic links that are followed to a file, the same as Linux's own limit.
const MAX_LINKS: u32 = 40;

/// client-go's lock on a kubeconfig: a file beside it that is created exclusively.
#[derive(Debug)]
pub(super) struct Lock {
    path: PathBuf,
    /// Device and inode of the file that we made.
    id: (u64, u64),
}

impl Lock {
    /// Takes the lock of a kubeconfig, waiting for another holder.
    ///
    /// # Errors
    /// [`KubeconfigError::Locked`] after so many attempts, [`KubeconfigError::Unwritable`] if there can be none.
    pub(super) fn acquire(kubeconfig: &Path, attempts: u32) -> Result<Self, KubeconfigError> {
        let mut name = kubeconfig.as_os_str().to_owned();
        name.push(".lock");
        let path = PathBuf::from(name);
        for attempt in 1.. {
            match OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&path)
                .and_then(|file| file.metadata())
            {
                Ok(metadata) => return Ok(Self { path, id: id(&metadata) }),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists && attempt < attempts => {
                    thread::sleep(LOCK_PAUSE);
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => break,
                Err(source) => return Err(KubeconfigError::Unwritable { path: kubeconfig.to_owned(), source }),
            }
        }
        Err(KubeconfigError::Locked { path: kubeconfig.to_owned(), lock: path })
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Someone who took it for stale may have made another in its place.
        if fs::symlink_metadata(&self.path).is_ok_and(|metadata| id(&metadata) == self.id)
            && let Err(error) = fs::remove_file(&self.path)
        {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove the lock file of the kubeconfig");
        }
    }
}

fn id(metadata: &Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

/// Reads a kubeconfig; `None` if there is no such file.
///
/// # Errors
/// `Unreadable`, `TooLarge`, or `NotAKubeconfig` for what is no regular file or not UTF-8.
pub(super) fn read(path: &Path, max_len: u64) -> Result<Option<String>, KubeconfigError> {
    let unreadable = |source| KubeconfigError::Unreadable { path: path.to_owned(), source };
    let other = |reason: &str| KubeconfigError::NotAKubeconfig { path: path.to_owned(), reason: reason.to_owned() };
    // Looked at before it is opened: opening a pipe would wait for its writer.
    match fs::metadata(path) {
        Ok(metadata) if metadata.is_file() => {}
        Ok(_) => return Err(other("it is not a regular file")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(unreadable(error)),
    }
    let mut bytes = Vec::new();
    File::open(path).and_then(|file| file.take(max_len + 1).read_to_end(&mut bytes)).map_err(unreadable)?;
    if bytes.len() as u64 > max_len {
        return Err(KubeconfigError::TooLarge { path: path.to_owned() });
    }
    String::from_utf8(bytes).map(Some).map_err(|_error| other("it is not UTF-8"))
}

/// Makes the folder of a file, for its owner only, if it is missing.
///
/// # Errors
/// What the system says.
pub(crate) fn create_parent(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => DirBuilder::new().recursive(true).mode(0o700).create(parent),
        _ => Ok(()),
    }
}

/// Replaces a file, or makes it, so that there is either the old or the new one at every moment, also after a crash.
///
/// # Errors
/// What the system says; the file is then as it was.
pub(crate) fn replace(path: &Path, contents: &[u8]) -> io::Result<()> {
    let path = &follow(path)?;
    create_parent(path)?;
    let folder = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let old = match fs::symlink_metadata(path) {
        Ok(metadata) => {
            // A rename needs no permission on the file itself; whoever made it read-only means it.
            OpenOptions::new().write(true).open(path)?;
            Some(metadata)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    let mut new = tempfile::Builder::new()
        .prefix(".autoheal-pa.")
        .permissions(Permissions::from_mode(0o600))
        .tempfile_in(folder)?;
    new.write_all(contents)?;
    if let Some(old) = old {
        let made = new.as_file().metadata()?;
        if (old.uid(), old.gid()) != (made.uid(), made.gid()) {
            // Only root may give files away; for all others the file becomes their own, as if edited by hand.
            let _kept = std::os::unix::fs::fchown(new.as_file(), Some(old.uid()), Some(old.gid()));
        }
        new.as_file().set_permissions(Permissions::from_mode(old.mode() & 0o7777))?;
    }
    new.as_file().sync_all()?;
    new.persist(path).map_err(|error| error.error)?;
    // Some file systems cannot do this for a folder. The rename itself is done.
    let _synced = File::open(folder).and_then(|folder| folder.sync_all());
    Ok(())
}

/// Follows symbolic links to a file that may be missing.
fn follow(path: &Path) -> io::Result<PathBuf> {
    let mut path = path.to_owned();
    for _ in 0..MAX_LINKS {
        match fs::read_link(&path) {
            Ok(target) => path = path.parent().unwrap_or(Path::new("")).join(target),
            // It is no link, or there is nothing.
            Err(error) if matches!(error.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::NotFound) => {
                return Ok(path);
            }
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::other("there are too many symbolic links to follow"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().mode() & 0o7777
    }

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_new_file_and_its_folders_are_for_their_owner_only() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b/config");
        replace(&path, b"x").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"x");
        assert_eq!((mode(&path), mode(path.parent().unwrap()), mode(&dir.path().join("a"))), (0o600, 0o700, 0o700));
        assert_eq!(names(path.parent().unwrap()), ["config"]);
    }

    #[test]
    fn keeps_the_mode_and_the_links() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config");
        fs::write(&path, "old").unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o640)).unwrap();
        let link = dir.path().join("link");
        symlink("config", dir.path().join("hop")).unwrap();
        symlink(dir.path().join("hop"), &link).unwrap();
        replace(&link, b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(mode(&path), 0o640);
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(names(dir.path()), ["config", "hop", "link"]);
    }

    #[test]
    fn a_link_to_nowhere_gets_its_file() {
        let dir = tempfile::tempdir().unwrap();
        let link = dir.path().join("link");
        symlink("away/config", &link).unwrap();
        replace(&link, b"new").unwrap();
        assert_eq!(fs::read(dir.path().join("away/config")).unwrap(), b"new");
    }

    #[test]
    fn links_in_a_circle_are_an_error() {
        let dir = tempfile::tempdir().unwrap();
        symlink("b", dir.path().join("a")).unwrap();
        symlink("a", dir.path().join("b")).unwrap();
        assert!(replace(&dir.path().join("a"), b"x").is_err());
    }

    #[test]
    fn leaves_nothing_behind_when_it_fails() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config");
        fs::create_dir(&path).unwrap();
        assert!(replace(&path, b"x").is_err());
        assert_eq!(names(dir.path()), ["config"]);
    }

    #[test]
    fn reads_regular_files_only() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(read(&dir.path().join("none"), 9), Ok(None)));
        assert!(matches!(read(dir.path(), 9), Err(KubeconfigError::NotAKubeconfig { .. })));
        let path = dir.path().join("config");
        fs::write(&path, "123456789").unwrap();
        assert_eq!(read(&path, 9).unwrap().as_deref(), Some("123456789"));
        assert!(matches!(read(&path, 8), Err(KubeconfigError::TooLarge { .. })));
        fs::write(&path, b"\xff").unwrap();
        assert!(matches!(read(&path, 9), Err(KubeconfigError::NotAKubeconfig { .. })));
        assert!(matches!(read(&path.join("below"), 9), Err(KubeconfigError::Unreadable { .. })));
    }

    #[test]
    fn one_holds_the_lock_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config");
        let lock = Lock::acquire(&path, 1).unwrap();
        let error = Lock::acquire(&path, 1).unwrap_err();
        let expected = format!("the kubeconfig `{0}` is locked by `{0}.lock`", path.display());
        assert_eq!(error.to_string(), expected);
        drop(lock);
        assert_eq!(names(dir.path()), [""; 0]);
        drop(Lock::acquire(&path, 1).unwrap());
    }

    #[test]
    fn waits_for_another_holder() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config");
        let lock = Lock::acquire(&path, 1).unwrap();
        thread::scope(|scope| {
            let waiting = scope.spawn(|| Lock::acquire(&path, LOCK_ATTEMPTS).map(drop));
            drop(lock);
            assert!(waiting.join().unwrap().is_ok());
        });
    }

    #[test]
    fn removes_only_its_own_lock() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config");
        let file = dir.path().join("config.lock");
        let lock = Lock::acquire(&path, 1).unwrap();
        // Kept open under another name, so that its inode is not given to the next file.
        fs::rename(&file, dir.path().join("moved")).unwrap();
        fs::write(&file, "another's").unwrap();
        drop(lock);
        assert_eq!(fs::read_to_string(&file).unwrap(), "another's");
    }

    #[test]
    fn no_lock_without_a_folder() {
        let dir = tempfile::tempdir().unwrap();
        let error = Lock::acquire(&dir.path().join("none/config"), 1).unwrap_err();
        assert!(matches!(error, KubeconfigError::Unwritable { .. }), "{error}");
    }
}
