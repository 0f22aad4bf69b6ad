//! Files that are replaced whole: temporary file, sync, rename.
//!
//! A writer that is killed leaves its temporary file, and the next one removes it. Symbolic links are followed, so the
//! file behind them is replaced and they stay. Mode and owner of a file that is there are kept; a new one is for its
//! owner only.
//!
//! A file that something is mounted on, as Docker's `-v` and Kubernetes' `subPath` do with single files, cannot be
//! replaced by another. It is written in place, as kubectl writes all its files: whoever reads it at that moment without
//! holding a lock may see half of it.

use std::{
    ffi::OsStr,
    fs::{File, Metadata, Permissions, TryLockError},
    io::{self, ErrorKind, Write},
    os::unix::fs::{FileExt, MetadataExt, PermissionsExt},
    path::Path,
};

use rustix::{fs::OFlags, io::Errno};
use uuid::Uuid;

use super::folder::{End, Folder, Missing, OnMissing, Place, Refusal, walk};

/// How the names of temporary files begin and end.
const TEMPORARY: (&str, &str) = (".autoheal-pa.", ".tmp");

/// How often a temporary file is made anew when a sweep has taken it for one that was left behind.
const TEMPORARY_ATTEMPTS: u32 = 8;

/// Replaces a file, or makes it with its folder, so that there is either the old or the new one at every moment, also
/// after a crash.
///
/// # Errors
/// What the system says, or a [`Refusal`]; the file is then as it was.
pub fn replace(path: &Path, contents: &[u8]) -> io::Result<()> {
    replace_with(path, contents, 0o777)
}

/// As [`replace`], for a file with secrets: whatever mode it had, nobody but its owner may read it.
///
/// # Errors
/// As those of [`replace`].
pub fn replace_private(path: &Path, contents: &[u8]) -> io::Result<()> {
    replace_with(path, contents, 0o700)
}

/// Replaces a file, and keeps no more of its mode than is in `mask`.
fn replace_with(path: &Path, contents: &[u8], mask: u32) -> io::Result<()> {
    let place = Place::behind(path, Missing::Make)?;
    let old = old(&place)?;
    sweep(place.folder());
    let new = prepare(place.folder(), contents, old.as_ref(), mask)?;
    new.file.sync_all()?;
    match (new.rename_to(&place), old) {
        (Err(error), Some(old)) if error.kind() == ErrorKind::ResourceBusy => return overwrite(&old, contents),
        (renamed, _) => renamed?,
    }
    // Some file systems cannot do this for a folder. The rename itself is done.
    let _synced = place.folder().sync();
    Ok(())
}

/// Finds out whether [`replace`] will be able to write this many bytes, by doing all of it but the last step. Nothing is
/// changed: not even folders are made.
///
/// # Errors
/// What the system says, or a [`Refusal`].
pub fn check_replaceable(path: &Path, len: usize) -> io::Result<()> {
    let (folder, end) = walk(path, OnMissing::Stop, true)?;
    let old = match end {
        End::Name(name) => old(&folder.place(name))?,
        End::Missing => None,
        End::Folder => return Err(Refusal::NotRegular(folder.path().to_owned()).into()),
    };
    prepare(&folder, &vec![0; len], old.as_ref(), 0o777).map(drop)
}

/// Opens the file that is to be replaced, if it is there. It has to be writable: a rename needs no permission on the file
/// itself, and whoever made it read-only means it.
fn old(place: &Place) -> io::Result<Option<File>> {
    match place.open(OFlags::WRONLY) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Makes the file that is to take the place of another, complete but for its name.
fn prepare(folder: &Folder, contents: &[u8], old: Option<&File>, mask: u32) -> io::Result<Temporary> {
    let mut new = Temporary::make(folder)?;
    new.file.write_all(contents)?;
    if let Some(old) = old {
        take_after(&new.file, &old.metadata()?, mask)?;
    }
    Ok(new)
}

/// Gives a new file the owner of an old one, and what is in `mask` of its mode.
fn take_after(new: &File, old: &Metadata, mask: u32) -> io::Result<()> {
    let made = new.metadata()?;
    if (old.uid(), old.gid()) != (made.uid(), made.gid()) {
        // Only root may give files away; for all others the file becomes their own, as if edited by hand.
        let _kept = std::os::unix::fs::fchown(new, Some(old.uid()), Some(old.gid()));
    }
    let mode = old.mode() & mask;
    if made.mode() & 0o777 == mode {
        return Ok(());
    }
    match new.set_permissions(Permissions::from_mode(mode)) {
        Err(error) if has_no_modes(&error) => Ok(()),
        set => set,
    }
}

/// Tells whether a file system does not know modes, by what it says of the mode of a file that this process has made: there
/// all files have the mode that the mount says.
fn has_no_modes(error: &io::Error) -> bool {
    let without = [Errno::PERM, Errno::NOTSUP, Errno::OPNOTSUPP, Errno::NOSYS];
    Errno::from_io_error(error).is_some_and(|error| without.contains(&error))
}

fn overwrite(file: &File, contents: &[u8]) -> io::Result<()> {
    let old_len = file.metadata()?.len();
    let (over, beyond) = contents.split_at(contents.len().min(usize::try_from(old_len).unwrap_or(usize::MAX)));
    // First what needs room: if there is none, the file becomes what it was.
    if let Err(error) = file.write_all_at(beyond, over.len() as u64) {
        file.set_len(old_len)?;
        return Err(error);
    }
    file.write_all_at(over, 0)?;
    file.set_len(contents.len() as u64)?;
    file.sync_all()
}

/// A temporary file for its owner only. It is locked as long as it is open, by which [`sweep`] knows that somebody is at
/// work on it.
#[derive(Debug)]
pub struct Temporary {
    name: Name,
    pub file: File,
}

/// The name of a temporary file. Dropping it removes the name.
#[derive(Debug)]
struct Name(Place);

impl Drop for Name {
    fn drop(&mut self) {
        // It is gone if it was renamed.
        let _gone = self.0.remove();
    }
}

impl Temporary {
    /// Makes one.
    ///
    /// # Errors
    /// What the system says.
    pub fn make(folder: &Folder) -> io::Result<Self> {
        let (prefix, suffix) = TEMPORARY;
        for _ in 0..TEMPORARY_ATTEMPTS {
            let place = folder.place(format!("{prefix}{}{suffix}", Uuid::new_v4().simple()));
            let file = place.open(OFlags::RDWR | OFlags::CREATE | OFlags::EXCL)?;
            let new = Self { name: Name(place), file };
            match new.file.try_lock() {
                // A sweep may have come before the lock.
                Ok(()) if new.file.metadata()?.nlink() == 0 => {}
                // A sweep cannot lock it either where the file system has no locks.
                Ok(()) | Err(TryLockError::Error(_)) => return Ok(new),
                Err(TryLockError::WouldBlock) => {}
            }
        }
        Err(io::Error::other("somebody else removes temporary files as soon as they are made"))
    }

    /// Gives it its name; what is there is replaced.
    ///
    /// # Errors
    /// What the system says.
    pub fn rename_to(&self, place: &Place) -> io::Result<()> {
        self.name.0.rename_to(place)
    }

    /// Gives it a second name, which must be free.
    ///
    /// # Errors
    /// What the system says.
    pub fn link_to(&self, place: &Place) -> io::Result<()> {
        self.name.0.link_to(place)
    }
}

/// Removes the temporary files that writers of ours have left in a folder when they were killed.
pub fn sweep(folder: &Folder) {
    let (prefix, suffix) = TEMPORARY;
    let is_ours = |name: &OsStr| name.to_str().is_some_and(|name| name.starts_with(prefix) && name.ends_with(suffix));
    for name in folder.names().unwrap_or_default().into_iter().filter(|name| is_ours(name)) {
        let place = folder.place(name);
        let left_behind = place.open(OFlags::RDWR);
        if left_behind.is_ok_and(|file| file.try_lock().is_ok() && place.remove().is_ok()) {
            tracing::debug!(path = %place.path().display(), "removed a temporary file of a process that is gone");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

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
    fn a_check_tells_what_replacing_would_and_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config");
        check_replaceable(&path, 9).unwrap();
        check_replaceable(&dir.path().join("a/b/config"), 9).unwrap();
        assert!(names(dir.path()).is_empty());
        fs::write(&path, "old").unwrap();
        check_replaceable(&path, 9).unwrap();
        assert_eq!((names(dir.path()), fs::read(&path).unwrap()), (vec!["config".to_owned()], b"old".to_vec()));
        for wrong in ["config/below", "config/a/b"].map(|name| dir.path().join(name)) {
            let (told, seen) = (check_replaceable(&wrong, 9).unwrap_err(), replace(&wrong, b"x").unwrap_err());
            assert_eq!(told.kind(), seen.kind(), "{}", wrong.display());
        }
        fs::create_dir(dir.path().join("folder")).unwrap();
        assert!(check_replaceable(&dir.path().join("folder"), 9).is_err());
        symlink("b", dir.path().join("a")).unwrap();
        symlink("a", dir.path().join("b")).unwrap();
        assert!(check_replaceable(&dir.path().join("a"), 9).is_err());
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
    fn removes_what_killed_writers_left_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config");
        for name in [".autoheal-pa.Ab3dEf.tmp", ".autoheal-pa.yaml", "x.autoheal-pa.Ab3dEf.tmp", "mine.tmp"] {
            fs::write(dir.path().join(name), "half a file").unwrap();
        }
        fs::create_dir(dir.path().join(".autoheal-pa.folder.tmp")).unwrap();
        symlink("mine.tmp", dir.path().join(".autoheal-pa.link.tmp")).unwrap();
        let at_work = Temporary::make(&Folder::open(dir.path()).unwrap()).unwrap();
        replace(&path, b"new").unwrap();
        let left = names(dir.path());
        assert!(at_work.name.0.exists().unwrap(), "{left:?}");
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
        let folder = Folder::open(dir.path()).unwrap();
        let done = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            let sweeping = scope.spawn(|| {
                while !done.load(std::sync::atomic::Ordering::Relaxed) {
                    sweep(&folder);
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

    #[test]
    fn only_regular_files_are_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let pipe = dir.path().join("pipe");
        rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, rustix::fs::Mode::RWXU).unwrap();
        for path in [&pipe, dir.path(), Path::new("/"), Path::new("/dev/null")] {
            for error in [check_replaceable(path, 9).unwrap_err(), replace(path, b"x").unwrap_err()] {
                assert_eq!(error.to_string(), format!("`{}` is not a regular file", path.display()));
            }
        }
    }

    #[test]
    fn a_file_in_place_gets_longer_and_shorter() {
        let file = tempfile::tempfile().unwrap();
        for text in ["", "some", "something longer", "less", ""] {
            overwrite(&file, text.as_bytes()).unwrap();
            let mut read = vec![0; 99];
            let len = file.read_at(&mut read, 0).unwrap();
            assert_eq!(&read[..len], text.as_bytes());
        }
    }

    #[test]
    fn a_file_system_without_modes_is_no_reason_to_fail() {
        for code in [Errno::PERM, Errno::NOTSUP, Errno::OPNOTSUPP, Errno::NOSYS] {
            assert!(has_no_modes(&code.into()), "{code:?}");
        }
        for code in [Errno::ROFS, Errno::IO, Errno::NOSPC, Errno::ACCESS] {
            assert!(!has_no_modes(&code.into()), "{code:?}");
        }
    }
}
