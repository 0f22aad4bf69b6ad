//! Folders and the names in them, reached by handles: what was looked at is what is used.
//!
//! Whoever may write a folder decides what a path through it leads to: a link that was there first, another folder, a
//! pipe that nobody ends. So paths are walked here, step by step, and only here.
//!
//! Invariants:
//!
//! * A [`Folder`] is open, and what is in it is reached by its name. No link is followed to that.
//! * On the way to a folder, a link that another user has made is followed only where none but this user and root may
//!   write.
//! * What is opened is a regular file, so nothing waits for the other end of a pipe.
//! * Where others may write, files and folders of others are not opened, unless the folder they are in is theirs as well.
//! * A private folder is this user's own, and nobody else has any access to it.
//!
//! Where others may rename folders, as in a temporary one without the sticky bit, what is open stays what it was, but its
//! path may lead elsewhere: [`Folder::may_be_swapped`].

use std::{
    ffi::{OsStr, OsString},
    fs::File,
    io::{self, ErrorKind},
    os::{
        fd::OwnedFd,
        unix::ffi::{OsStrExt, OsStringExt},
    },
    path::{Component, Path, PathBuf},
    sync::Arc,
};

use rustix::{
    fs::{self, AtFlags, CWD, Dir, FileType, Mode, OFlags, Stat},
    io::Errno,
};

/// Most symbolic links that are followed on one way, the same as Linux's own limit.
const MAX_LINKS: u32 = 40;

const FOLDER_MODE: Mode = Mode::RWXU;

/// Mode of files that are made.
const FILE_MODE: Mode = Mode::RUSR.union(Mode::WUSR);

/// How folders are opened: where the system knows how, without the right to list them, which passing through does not
/// need.
#[cfg(target_os = "linux")]
const AS_FOLDER: OFlags = OFlags::PATH.union(OFlags::DIRECTORY);
#[cfg(not(target_os = "linux"))]
const AS_FOLDER: OFlags = OFlags::DIRECTORY;

/// What is wrong with a folder of another user.
pub const OTHER_USER: &str = "it belongs to another user";

/// What becomes of folders on a way that are missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Missing {
    /// They are made, for their owner only.
    Make,
    /// They are an error.
    Fail,
}

/// Why something is not touched.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// Somebody else decides where it leads.
    #[error("`{}` is a symbolic link of another user, in a folder that others can write to", .0.display())]
    Link(PathBuf),
    /// Somebody else decides what is in it, or reads it.
    #[error("`{}` belongs to another user, in a folder that others can write to", .0.display())]
    Owner(PathBuf),
    /// It may be a file from elsewhere.
    #[error("`{}` has a second hard link, in a folder that others can write to", .0.display())]
    SecondName(PathBuf),
    /// It may never end, or be no file at all.
    #[error("`{}` is not a regular file", .0.display())]
    NotRegular(PathBuf),
}

impl From<Refusal> for io::Error {
    fn from(refusal: Refusal) -> Self {
        let kind = match refusal {
            Refusal::NotRegular(_) => ErrorKind::InvalidInput,
            Refusal::Link(_) | Refusal::Owner(_) | Refusal::SecondName(_) => ErrorKind::PermissionDenied,
        };
        Self::new(kind, refusal)
    }
}

pub fn is_refusal(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|error| error.is::<Refusal>())
}

/// Why there is no private folder.
#[derive(Debug, thiserror::Error)]
pub enum PrivateError {
    /// Others have a hand in it.
    #[error("cannot use the folder `{}`: {reason}", path.display())]
    NotPrivate { path: PathBuf, reason: &'static str },
    /// The system refuses.
    #[error("cannot use the folder `{}`", path.display())]
    Io {
        path: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
}

/// Returns whose files are this process's own.
#[must_use]
pub fn own_uid() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// Tells whether a user can do nothing here that is not allowed anyway: this one, and root.
fn is_trusted(uid: u32) -> bool {
    // In a user namespace that does not know root, what is root's looks like somebody else's. So does this folder.
    let looks_like_root = || fs::stat("/proc").is_ok_and(|proc| proc.st_uid == uid);
    uid == own_uid() || uid == 0 || looks_like_root()
}

/// An open folder. Cheap to clone; all clones share one handle.
#[derive(Debug, Clone)]
pub struct Folder {
    handle: Arc<OwnedFd>,
    path: PathBuf,
    owner: u32,
    group: u32,
    mode: Mode,
}

impl Folder {
    /// Opens a folder.
    ///
    /// # Errors
    /// What the system says, or a [`Refusal`].
    pub fn open(path: &Path) -> io::Result<Self> {
        match walk(path, OnMissing::Fail, true)? {
            (folder, End::Name(name)) => folder.step(&name),
            (folder, End::Folder | End::Missing) => Ok(folder),
        }
    }

    /// Opens what `name` stands for in `folder`, without following a link there.
    fn open_in(folder: impl std::os::fd::AsFd, name: &OsStr, path: PathBuf) -> io::Result<Self> {
        let handle = fs::openat(folder, name, AS_FOLDER | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
        let stat = fs::fstat(&handle)?;
        let mode = Mode::from_raw_mode(stat.st_mode);
        Ok(Self { handle: Arc::new(handle), path, owner: stat.st_uid, group: stat.st_gid, mode })
    }

    fn step(&self, name: &OsStr) -> io::Result<Self> {
        Self::open_in(&*self.handle, name, self.path.join(name))
    }

    /// The path that has led here.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the owner's user id.
    #[must_use]
    pub fn owner(&self) -> u32 {
        self.owner
    }

    /// Names something in this folder, which may be missing.
    #[must_use]
    pub fn place(&self, name: impl Into<OsString>) -> Place {
        Place { folder: self.clone(), name: name.into() }
    }

    /// Tells whether it belongs to neither this user nor root.
    #[must_use]
    pub fn is_foreign(&self) -> bool {
        !is_trusted(self.owner)
    }

    /// Tells whether anybody but this user and root may make files here.
    #[must_use]
    pub fn others_may_write(&self) -> bool {
        !is_trusted(self.owner) || self.mode.intersects(Mode::WGRP | Mode::WOTH)
    }

    /// Tells whether what a user has here was put there by neither this user, root, nor whose folder it is.
    fn has_foreign(&self, uid: u32) -> bool {
        !is_trusted(uid) && uid != self.owner && self.others_may_write()
    }

    /// Tells whether others may put something else in place of a folder here. A group of one's own is taken for oneself.
    #[must_use]
    pub fn may_be_swapped(&self) -> bool {
        let own_group = self.group == rustix::process::getegid().as_raw();
        let writers = if own_group { Mode::WOTH } else { Mode::WGRP | Mode::WOTH };
        !is_trusted(self.owner) || (self.mode.intersects(writers) && !self.mode.contains(Mode::SVTX))
    }

    /// Returns the names of what is in this folder.
    ///
    /// # Errors
    /// What the system says.
    pub fn names(&self) -> io::Result<Vec<OsString>> {
        let mut names = Vec::new();
        for entry in Dir::new(self.readable()?)? {
            names.push(OsString::from_vec(entry?.file_name().to_bytes().to_vec()));
        }
        Ok(names)
    }

    /// Has the system write down which names there are.
    ///
    /// # Errors
    /// What the system says; some file systems cannot do this.
    pub fn sync(&self) -> io::Result<()> {
        File::from(self.readable()?).sync_all()
    }

    fn readable(&self) -> io::Result<OwnedFd> {
        Ok(fs::openat(&*self.handle, ".", OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
    }
}

/// A name in an open folder, of something that may be missing.
#[derive(Debug, Clone)]
pub struct Place {
    folder: Folder,
    name: OsString,
}

impl Place {
    /// Finds the place that a path names. If there is a link, it is that place.
    ///
    /// # Errors
    /// What the system says, or a [`Refusal`].
    pub fn of(path: &Path, missing: Missing) -> io::Result<Self> {
        Self::at_end(walk(path, missing.into(), false)?)
    }

    /// Finds the place that a path leads to.
    ///
    /// # Errors
    /// What the system says, or a [`Refusal`].
    pub fn behind(path: &Path, missing: Missing) -> io::Result<Self> {
        Self::at_end(walk(path, missing.into(), true)?)
    }

    fn at_end((folder, end): (Folder, End)) -> io::Result<Self> {
        match end {
            End::Name(name) => Ok(Self { folder, name }),
            End::Folder | End::Missing => Err(Refusal::NotRegular(folder.path).into()),
        }
    }

    #[must_use]
    pub fn folder(&self) -> &Folder {
        &self.folder
    }

    /// Returns a path to it.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.folder.path.join(&self.name)
    }

    /// Returns the place with more behind its name.
    #[must_use]
    pub fn with_suffix(&self, suffix: &str) -> Self {
        let mut name = self.name.clone();
        name.push(suffix);
        self.folder.place(name)
    }

    fn stat(&self) -> io::Result<Option<Stat>> {
        match fs::statat(&*self.folder.handle, &self.name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Tells whether something is there, be it a link that leads nowhere.
    ///
    /// # Errors
    /// What the system says.
    pub fn exists(&self) -> io::Result<bool> {
        Ok(self.stat()?.is_some())
    }

    /// Tells whether this is the name of an open file.
    #[must_use]
    pub fn is_of(&self, file: &File) -> bool {
        match (self.stat(), fs::fstat(file)) {
            (Ok(Some(there)), Ok(open)) => (there.st_dev, there.st_ino) == (open.st_dev, open.st_ino),
            _ => false,
        }
    }

    /// Opens a regular file. One that is made is for its owner only.
    ///
    /// # Errors
    /// What the system says, or a [`Refusal`].
    pub fn open(&self, flags: OFlags) -> io::Result<File> {
        // Before as well, since opening a device may do something.
        if let Some(stat) = self.stat()? {
            self.check(&stat)?;
        }
        let always = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let file = File::from(fs::openat(&*self.folder.handle, &self.name, flags | always, FILE_MODE)?);
        self.check(&fs::fstat(&file)?)?;
        Ok(file)
    }

    /// Opens a file to add to it, and makes it if it is missing.
    ///
    /// # Errors
    /// What the system says, or a [`Refusal`]: where others may write, also for a file with a second name, which may be
    /// one of this user's from elsewhere.
    pub fn append(&self) -> io::Result<File> {
        let file = self.open(OFlags::WRONLY | OFlags::APPEND | OFlags::CREATE)?;
        if self.folder.others_may_write() && fs::fstat(&file)?.st_nlink > 1 {
            return Err(Refusal::SecondName(self.path()).into());
        }
        Ok(file)
    }

    fn check(&self, stat: &Stat) -> Result<(), Refusal> {
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(Refusal::NotRegular(self.path()));
        }
        if self.folder.has_foreign(stat.st_uid) { Err(Refusal::Owner(self.path())) } else { Ok(()) }
    }

    /// Opens the folder here, which has to be private. Returns `None` if it is missing and is not to be made.
    ///
    /// # Errors
    /// See [`PrivateError`].
    pub fn private_folder(&self, missing: Missing) -> Result<Option<Folder>, PrivateError> {
        let path = self.path();
        let failed = |source: io::Error| PrivateError::Io { path: path.clone(), source };
        let not_private = |reason| Err(PrivateError::NotPrivate { path: path.clone(), reason });
        if missing == Missing::Make {
            match fs::mkdirat(&*self.folder.handle, &self.name, FOLDER_MODE) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => return Err(failed(error.into())),
            }
        }
        let Some(stat) = self.stat().map_err(failed)? else {
            return if missing == Missing::Make { Err(failed(ErrorKind::NotFound.into())) } else { Ok(None) };
        };
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind != FileType::Directory {
            return not_private(if kind == FileType::Symlink { "it is a symbolic link" } else { "it is not a folder" });
        }
        // Before it is opened, which others may have forbidden.
        if stat.st_uid != own_uid() {
            return not_private(OTHER_USER);
        }
        let folder = self.folder.step(&self.name).map_err(failed)?;
        if folder.owner != own_uid() {
            return not_private(OTHER_USER);
        }
        if folder.mode.intersects(Mode::RWXG | Mode::RWXO) {
            return not_private("other users have access to it");
        }
        Ok(Some(folder))
    }

    /// Gives it the name of another place in its folder; what is there is replaced.
    ///
    /// # Errors
    /// What the system says.
    pub fn rename_to(&self, other: &Self) -> io::Result<()> {
        Ok(fs::renameat(&*self.folder.handle, &self.name, &*other.folder.handle, &other.name)?)
    }

    /// Gives it a second name, which must be free.
    ///
    /// # Errors
    /// What the system says.
    pub fn link_to(&self, other: &Self) -> io::Result<()> {
        Ok(fs::linkat(&*self.folder.handle, &self.name, &*other.folder.handle, &other.name, AtFlags::empty())?)
    }

    /// Removes what is no folder.
    ///
    /// # Errors
    /// What the system says.
    pub fn remove(&self) -> io::Result<()> {
        Ok(fs::unlinkat(&*self.folder.handle, &self.name, AtFlags::empty())?)
    }

    /// Keeps everybody but its owner from a socket in a private folder.
    ///
    /// # Errors
    /// What the system says; `NotFound` as well if what is there is no socket.
    pub fn close_socket_to_others(&self) -> io::Result<()> {
        match self.stat()? {
            Some(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Socket => {
                Ok(fs::chmodat(&*self.folder.handle, &self.name, FILE_MODE, AtFlags::empty())?)
            }
            _ => Err(ErrorKind::NotFound.into()),
        }
    }
}

/// What a walk does where a folder is missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum OnMissing {
    Make,
    Fail,
    /// It ends there.
    Stop,
}

impl From<Missing> for OnMissing {
    fn from(missing: Missing) -> Self {
        match missing {
            Missing::Make => Self::Make,
            Missing::Fail => Self::Fail,
        }
    }
}

/// Where in the last folder a walk ends.
#[derive(Debug)]
pub(super) enum End {
    /// At a name, of something that may be missing.
    Name(OsString),
    /// In the folder itself, as with `..`.
    Folder,
    /// Where the next folder would be.
    Missing,
}

/// Goes along a path. With `follow`, a link at its end is followed as well.
pub(super) fn walk(path: &Path, missing: OnMissing, follow: bool) -> io::Result<(Folder, End)> {
    let start = Path::new(if path.is_absolute() { "/" } else { "." });
    let shown = if path.is_absolute() { start.to_owned() } else { PathBuf::new() };
    let mut folder = Folder::open_in(CWD, start.as_os_str(), shown)?;
    let mut ahead = Vec::new();
    let mut links = 0;
    let push = |ahead: &mut Vec<OsString>, path: &Path| {
        let steps = path.components().rev().filter(|step| *step != Component::CurDir);
        ahead.extend(steps.map(|step| step.as_os_str().to_owned()));
    };
    push(&mut ahead, path);
    while let Some(name) = ahead.pop() {
        if name == "/" {
            folder = Folder::open_in(CWD, &name, PathBuf::from("/"))?;
            continue;
        }
        if name == ".." {
            folder = folder.step(&name)?;
            continue;
        }
        let place = folder.place(name);
        let is_last = ahead.is_empty();
        match place.stat()? {
            Some(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Symlink && (follow || !is_last) => {
                links += 1;
                if links > MAX_LINKS {
                    return Err(io::Error::other("there are too many symbolic links to follow"));
                }
                if folder.others_may_write() && !is_trusted(stat.st_uid) {
                    return Err(Refusal::Link(place.path()).into());
                }
                let target = fs::readlinkat(&*folder.handle, &place.name, Vec::new())?;
                push(&mut ahead, Path::new(OsStr::from_bytes(target.as_bytes())));
            }
            _ if is_last => return Ok((folder, End::Name(place.name))),
            found => {
                match (found, missing) {
                    (Some(_), _) => {}
                    (None, OnMissing::Make) => match fs::mkdirat(&*folder.handle, &place.name, FOLDER_MODE) {
                        Ok(()) | Err(Errno::EXIST) => {}
                        Err(error) => return Err(error.into()),
                    },
                    (None, OnMissing::Fail) => return Err(ErrorKind::NotFound.into()),
                    (None, OnMissing::Stop) => return Ok((folder, End::Missing)),
                }
                // Also of one that was missing a moment ago: somebody else may have been quicker.
                let next = folder.step(&place.name)?;
                if folder.has_foreign(next.owner) {
                    return Err(Refusal::Owner(next.path).into());
                }
                folder = next;
            }
        }
    }
    Ok((folder, End::Folder))
}

#[cfg(test)]
mod tests {
    use std::{
        fs::{Permissions, create_dir, hard_link, read_to_string, set_permissions, write},
        os::unix::fs::{PermissionsExt, symlink},
    };

    use super::*;

    fn is_refused<T: std::fmt::Debug>(outcome: io::Result<T>, is: impl Fn(&Refusal) -> bool) -> bool {
        outcome.unwrap_err().get_ref().and_then(|error| error.downcast_ref()).is_some_and(is)
    }

    #[test]
    fn a_walk_goes_where_the_system_would() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        create_dir(path("a")).unwrap();
        write(path("a/file"), "x").unwrap();
        symlink("a", path("link")).unwrap();
        symlink(path("link"), path("b")).unwrap();
        symlink("../link/./file", path("a/hop")).unwrap();
        for name in ["a/file", "link/file", "b/file", "a/hop", "a/../b/./hop", "./b//file"] {
            let place = Place::behind(&path(name), Missing::Fail).unwrap();
            assert!(place.open(OFlags::RDONLY).is_ok(), "{name}");
            assert_eq!(read_to_string(place.path()).unwrap(), "x", "{name}");
        }
        assert_eq!(Place::of(&path("b/hop"), Missing::Fail).unwrap().path(), path("a/hop"), "the last is not followed");
        assert!(Place::of(&path("b/hop"), Missing::Fail).unwrap().open(OFlags::RDONLY).is_err());
        for name in ["a/file/x", "none/x", "a/.."] {
            assert!(Place::behind(&path(name), Missing::Fail).is_err(), "{name}");
        }
        assert!(Folder::open(&path("b")).is_ok() && Folder::open(&path("a/file")).is_err());
        assert_eq!(Place::behind(&path("new/deep/file"), Missing::Make).unwrap().path(), path("new/deep/file"));
        let mode = path("new/deep").metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
    }

    #[test]
    fn nothing_but_regular_files_is_opened() {
        let dir = tempfile::tempdir().unwrap();
        fs::mkfifoat(CWD, dir.path().join("pipe"), Mode::RWXU).unwrap();
        create_dir(dir.path().join("folder")).unwrap();
        symlink("file", dir.path().join("link")).unwrap();
        write(dir.path().join("file"), "").unwrap();
        let folder = Folder::open(dir.path()).unwrap();
        for name in ["pipe", "folder", "link"] {
            for flags in [OFlags::RDONLY, OFlags::WRONLY | OFlags::APPEND | OFlags::CREATE, OFlags::RDWR] {
                let opened = folder.place(name).open(flags);
                assert!(is_refused(opened, |refusal| matches!(refusal, Refusal::NotRegular(_))), "{name}");
            }
        }
    }

    #[test]
    fn what_is_added_to_where_others_may_write_has_one_name() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path().join("mine"), "").unwrap();
        hard_link(dir.path().join("mine"), dir.path().join("log")).unwrap();
        let appended = || Folder::open(dir.path()).unwrap().place("log").append();
        assert!(appended().is_ok());
        for mode in [0o1777, 0o777, 0o770] {
            set_permissions(dir.path(), Permissions::from_mode(mode)).unwrap();
            assert!(is_refused(appended(), |refusal| matches!(refusal, Refusal::SecondName(_))), "{mode:o}");
        }
    }

    #[test]
    fn one_s_own_links_are_followed_everywhere() {
        let dir = tempfile::tempdir().unwrap();
        set_permissions(dir.path(), Permissions::from_mode(0o1777)).unwrap();
        symlink("file", dir.path().join("link")).unwrap();
        let place = Place::behind(&dir.path().join("link"), Missing::Fail).unwrap();
        assert_eq!(place.path(), dir.path().join("file"));
    }

    #[test]
    fn what_is_open_stays_what_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("folder");
        let folder = Place::of(&path, Missing::Fail).unwrap().private_folder(Missing::Make).unwrap().unwrap();
        std::fs::rename(&path, dir.path().join("moved")).unwrap();
        create_dir(&path).unwrap();
        drop(folder.place("file").append().unwrap());
        assert!(dir.path().join("moved/file").exists() && !path.join("file").exists());
    }

    #[test]
    fn a_place_where_others_may_rename_is_told() {
        let dir = tempfile::tempdir().unwrap();
        for (mode, expected) in [(0o755, false), (0o1777, false), (0o777, true), (0o702, true), (0o770, false)] {
            set_permissions(dir.path(), Permissions::from_mode(mode)).unwrap();
            assert_eq!(Folder::open(dir.path()).unwrap().may_be_swapped(), expected, "{mode:o}");
        }
    }
}
