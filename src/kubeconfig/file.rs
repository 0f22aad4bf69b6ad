//! Files that are replaced whole: temporary file, sync, rename.
//!
//! A writer that is killed leaves its temporary file, and the next one removes it. Symbolic links are followed, so the
//! file behind them is replaced and they stay. Mode and owner of a file that is there are kept; a new one is for its
//! owner only.

use std::{
    fs::{self, DirBuilder, File, Metadata, OpenOptions, Permissions, TryLockError},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use tempfile::NamedTempFile;

use super::KubeconfigError;

/// Most symbolic links that are followed to a file, the same as Linux's own limit.
const MAX_LINKS: u32 = 40;

/// How the names of temporary files begin and end.
const TEMPORARY: (&str, &str) = (".autoheal-pa.", ".tmp");

/// How often a temporary file is made anew when a sweep has taken it for one that was left behind.
const TEMPORARY_ATTEMPTS: u32 = 8;

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
    let folder = folder_of(path);
    let old = replaceable(path)?;
    sweep(folder);
    let mut new = temporary(folder)?;
    new.as_file_mut().write_all(contents)?;
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

/// Finds out whether [`replace`] will be able to write this many bytes, and changes nothing: not even folders are made.
///
/// # Errors
/// What the system says.
pub(crate) fn rehearse(path: &Path, len: usize) -> io::Result<()> {
    let path = &follow(path)?;
    replaceable(path)?;
    let folder = folder_of(path).ancestors().find(|folder| folder.exists()).unwrap_or(Path::new("."));
    temporary(folder)?.as_file_mut().write_all(&vec![0; len])
}

/// Returns the file that is to be replaced, if it is there and may be.
fn replaceable(path: &Path) -> io::Result<Option<Metadata>> {
    match fs::symlink_metadata(path) {
        Ok(metadata) => {
            // A rename needs no permission on the file itself; whoever made it read-only means it.
            OpenOptions::new().write(true).open(path)?;
            Ok(Some(metadata))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Returns the folder that a file is in.
pub(super) fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Makes a temporary file for its owner only. It is locked as long as it is open, by which [`sweep`] knows that
/// somebody is at work on it.
///
/// # Errors
/// What the system says.
pub(super) fn temporary(folder: &Path) -> io::Result<NamedTempFile> {
    let (prefix, suffix) = TEMPORARY;
    let mut builder = tempfile::Builder::new();
    let builder = builder.prefix(prefix).suffix(suffix);
    // Errors of the library's own way to open one name the file, which nobody has asked for.
    let open = |path: &Path| OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path);
    for _ in 0..TEMPORARY_ATTEMPTS {
        let file = builder.make_in(folder, open)?;
        match file.as_file().try_lock() {
            // A sweep may have come before the lock.
            Ok(()) if file.as_file().metadata()?.nlink() == 0 => {}
            // A sweep cannot lock it either where the file system has no locks.
            Ok(()) | Err(TryLockError::Error(_)) => return Ok(file),
            Err(TryLockError::WouldBlock) => {}
        }
    }
    Err(io::Error::other("temporary files are removed by somebody else as soon as they are made"))
}

/// Removes the temporary files that writers of ours have left in a folder when they were killed.
pub(super) fn sweep(folder: &Path) {
    let (prefix, suffix) = TEMPORARY;
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let is_ours = |name: &str| name.starts_with(prefix) && name.ends_with(suffix);
        if !entry.file_name().to_str().is_some_and(is_ours) || !entry.file_type().is_ok_and(|kind| kind.is_file()) {
            continue;
        }
        let path = entry.path();
        let left_behind = OpenOptions::new().read(true).write(true).open(&path);
        if left_behind.is_ok_and(|file| file.try_lock().is_ok() && fs::remove_file(&path).is_ok()) {
            tracing::debug!(path = %path.display(), "removed a temporary file of a process that is gone");
        }
    }
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
    fn an_error_does_not_name_the_temporary_file() {
        let dir = tempfile::tempdir().unwrap();
        let error = temporary(&dir.path().join("gone")).unwrap_err();
        assert_eq!(error.to_string(), io::Error::from_raw_os_error(2).to_string());
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
    fn a_rehearsal_tells_what_replacing_would_and_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config");
        rehearse(&path, 9).unwrap();
        rehearse(&dir.path().join("a/b/config"), 9).unwrap();
        assert!(names(dir.path()).is_empty());
        fs::write(&path, "old").unwrap();
        rehearse(&path, 9).unwrap();
        assert_eq!((names(dir.path()), fs::read(&path).unwrap()), (vec!["config".to_owned()], b"old".to_vec()));
        for wrong in ["config/below", "config/a/b"].map(|name| dir.path().join(name)) {
            let (told, seen) = (rehearse(&wrong, 9).unwrap_err(), replace(&wrong, b"x").unwrap_err());
            assert_eq!(told.kind(), seen.kind(), "{}", wrong.display());
        }
        fs::create_dir(dir.path().join("folder")).unwrap();
        assert!(rehearse(&dir.path().join("folder"), 9).is_err());
        symlink("b", dir.path().join("a")).unwrap();
        symlink("a", dir.path().join("b")).unwrap();
        assert!(rehearse(&dir.path().join("a"), 9).is_err());
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
    fn removes_what_killed_writers_left_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config");
        for name in [".autoheal-pa.Ab3dEf.tmp", ".autoheal-pa.yaml", "x.autoheal-pa.Ab3dEf.tmp", "mine.tmp"] {
            fs::write(dir.path().join(name), "half a file").unwrap();
        }
        fs::create_dir(dir.path().join(".autoheal-pa.folder.tmp")).unwrap();
        symlink("mine.tmp", dir.path().join(".autoheal-pa.link.tmp")).unwrap();
        let at_work = temporary(dir.path()).unwrap();
        replace(&path, b"new").unwrap();
        let left = names(dir.path());
        assert!(at_work.path().exists(), "{left:?}");
        drop(at_work);
        assert_eq!(
            names(dir.path()),
            [
                ".autoheal-pa.folder.tmp",
                ".autoheal-pa.link.tmp",
                ".autoheal-pa.yaml",
                "config",
                "mine.tmp",
                "x.autoheal-pa.Ab3dEf.tmp"
            ]
        );
    }

    #[test]
    fn writers_and_sweeps_do_not_hinder_each_other() {
        let dir = tempfile::tempdir().unwrap();
        let done = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            let sweeping = scope.spawn(|| {
                while !done.load(std::sync::atomic::Ordering::Relaxed) {
                    sweep(dir.path());
                }
            });
            let writers = [0, 1].map(|writer| {
                let path = dir.path().join(writer.to_string());
                scope.spawn(move || (0..200).for_each(|_| replace(&path, b"x").unwrap()))
            });
            writers.into_iter().for_each(|writer| writer.join().unwrap());
            done.store(true, std::sync::atomic::Ordering::Relaxed);
            sweeping.join().unwrap();
        });
        assert_eq!(names(dir.path()), ["0", "1"]);
    }
}
