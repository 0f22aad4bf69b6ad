//! client-go's lock on a kubeconfig: a file beside it that is created exclusively, and removed when the work is done.
//!
//! Whoever is killed meanwhile leaves the file. Ours says whose it is and is held by a lock of the kernel as well,
//! which ends with the process. So a lock of ours that nobody holds any more is taken over, whichever process has
//! that id by now. client-go's file is empty and is never taken over: kubectl may be at work.
//!
//! Invariants:
//!
//! * A lock of ours gets its name when it is complete and held: at no moment does it look like client-go's, or like one
//!   that nobody holds. (Where the file system has no hard links, there is such a moment.)
//! * It is taken over in place. Of two that find it, one gets the kernel's lock; the file is not moved for it, so nothing
//!   that a third has put there can be removed by mistake.
//! * One that was made on another machine, in a folder that is shared, is not taken over: kernels do not always tell
//!   each other of their locks.

use std::{
    fs::{File, TryLockError},
    io::{self, Read, Write},
    os::unix::fs::FileExt,
    path::Path,
    thread,
    time::Duration,
};

use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};

use super::KubeconfigError;
use crate::{
    clock,
    util::{
        folder::{Missing, Place},
        replace::{Temporary, sweep},
    },
};

/// How often a lock that is taken is tried: with [`LOCK_PAUSE`], for 5 s. kubectl holds it for milliseconds.
pub(super) const LOCK_ATTEMPTS: u32 = 50;

/// Time between two attempts to take a lock.
const LOCK_PAUSE: Duration = Duration::from_millis(100);

/// What our lock files name as their program.
const PROGRAM: &str = "autoheal-pa";

/// Length of a lock file of ours, in bytes: more than it says, so that another holder's words replace all of it at once.
const RECORD_LEN: usize = 256;

/// Most of a machine's name that is written, in characters; Linux has no longer ones.
const MAX_HOST_LEN: usize = 64;

/// A lock that is held. Dropping it removes the file.
#[derive(Debug)]
pub(super) struct Lock {
    place: Place,
    /// Locked until it is closed.
    file: File,
}

/// Who made a lock file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    program: String,
    /// The process id, as its machine knows it.
    pub pid: u32,
    /// The machine's name.
    pub host: String,
    /// Changes when the machine is started, and is the same in its containers, where the system has it.
    boot: Option<String>,
}

impl Holder {
    /// This process.
    fn own() -> Self {
        let host = rustix::system::uname().nodename().to_string_lossy().chars().take(MAX_HOST_LEN).collect();
        Self { program: PROGRAM.to_owned(), pid: std::process::id(), host, boot: boot_id() }
    }

    /// Reads a lock file; `None` if it is not ours.
    fn read(file: &File) -> Option<Self> {
        let mut text = String::new();
        file.take(RECORD_LEN as u64).read_to_string(&mut text).ok()?;
        serde_json::from_str(text.trim_end()).ok().filter(|holder: &Self| holder.program == PROGRAM)
    }

    fn encode(&self) -> String {
        let text = serde_json::to_string(self).expect("strings and numbers are always JSON");
        format!("{text:<width$}\n", width = RECORD_LEN - 1)
    }

    /// Whether it is the machine of `other`, as far as can be told: a restart changes the one, a container the other.
    #[must_use]
    pub fn shares_machine_with(&self, other: &Self) -> bool {
        (self.boot.is_some() && self.boot == other.boot) || self.host == other.host
    }

    /// Whether it is on this machine.
    #[must_use]
    pub fn is_here(&self) -> bool {
        self.shares_machine_with(&Self::own())
    }
}

/// Returns the id of this start of the machine.
fn boot_id() -> Option<String> {
    #[cfg(target_os = "linux")]
    {
        /// Most that is read of it, in bytes; it has 36 and a line feed.
        const MAX_LEN: u64 = 64;
        let id = crate::util::read::read_text(Path::new("/proc/sys/kernel/random/boot_id"), MAX_LEN).ok()?;
        Some(id.trim().to_owned())
    }
    #[cfg(target_os = "macos")]
    {
        crate::util::kernel::text("kern.bootsessionuuid")
    }
}

impl Lock {
    /// Takes the lock of a kubeconfig, waiting for another holder.
    ///
    /// # Errors
    /// [`KubeconfigError::Locked`] after so many attempts, [`KubeconfigError::Unwritable`] if there can be none.
    pub(super) fn acquire(kubeconfig: &Path, missing: Missing, attempts: u32) -> Result<Self, KubeconfigError> {
        let failed = |source| KubeconfigError::Unwritable { path: kubeconfig.to_owned(), source };
        let place = Place::of(kubeconfig, missing).map_err(failed)?.with_suffix(".lock");
        for attempt in 1..=attempts {
            if let Some(file) = take(&place, &Holder::own()).map_err(failed)? {
                return Ok(Self { place, file });
            }
            if attempt < attempts {
                thread::sleep(LOCK_PAUSE);
            }
        }
        let file = place.open(OFlags::RDONLY).ok();
        let age = file.as_ref().and_then(|file| file.metadata().ok()?.modified().ok());
        let age = age.and_then(|made| (std::time::UNIX_EPOCH + clock::wall()).duration_since(made).ok());
        let holder = file.and_then(|file| Holder::read(&file)).map(Box::new);
        Err(KubeconfigError::Locked { path: kubeconfig.to_owned(), lock: place.path(), holder, age })
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // A user who took it for stale may have removed it, and another made one in its place.
        if self.place.is_of(&self.file)
            && let Err(error) = self.place.remove()
        {
            tracing::warn!(path = %self.place.path().display(), %error, "cannot remove the lock file of the kubeconfig");
        }
        // Whoever was killed just after making the lock has left it under its first name as well.
        let _unlocked = self.file.unlock();
        sweep(self.place.folder());
    }
}

/// Makes the lock file, or takes over one that a process has left behind. `None`: somebody holds it.
fn take(place: &Place, own: &Holder) -> io::Result<Option<File>> {
    match place.open(OFlags::RDWR) {
        Ok(file) => Ok(take_over(file, place, own)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => make(place, own),
        // client-go's may be neither read nor written, and what somebody else has put there may be anything.
        Err(error) if place.exists()? => {
            tracing::debug!(path = %place.path().display(), %error, "the lock file of the kubeconfig is not ours");
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

fn make(place: &Place, own: &Holder) -> io::Result<Option<File>> {
    let mut new = Temporary::make(place.folder())?;
    new.file.write_all(own.encode().as_bytes())?;
    let file = match new.link_to(place) {
        Ok(()) => return Ok(Some(new.file)),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(None),
        // The folder can be written, so it is the file system that has no links.
        Err(_) => place.open(OFlags::RDWR | OFlags::CREATE | OFlags::EXCL),
    };
    match file {
        Ok(mut file) => {
            // Without locks of the kernel it is as good as client-go's.
            let _locked = file.try_lock();
            file.write_all(own.encode().as_bytes())?;
            Ok(Some(file))
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(None),
        Err(error) => Err(error),
    }
}

fn take_over(file: File, place: &Place, own: &Holder) -> Option<File> {
    let holder = Holder::read(&file).filter(|holder| holder.shares_machine_with(own))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock | TryLockError::Error(_)) => return None,
    }
    // It may have been removed since it was opened, by its holder.
    if !place.is_of(&file) {
        return None;
    }
    tracing::info!(path = %place.path().display(), pid = holder.pid, "took over a lock file whose process is gone");
    // Only for the eyes of whoever waits; nothing depends on it.
    let _written = file.write_all_at(own.encode().as_bytes(), 0);
    Some(file)
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        path::PathBuf,
        sync::atomic::{AtomicUsize, Ordering},
    };

    use super::*;

    struct Place {
        dir: tempfile::TempDir,
    }

    impl Place {
        fn new() -> Self {
            Self { dir: tempfile::tempdir().unwrap() }
        }

        fn kubeconfig(&self) -> PathBuf {
            self.dir.path().join("config")
        }

        fn lock(&self) -> PathBuf {
            self.dir.path().join("config.lock")
        }

        fn names(&self) -> Vec<String> {
            let entries = fs::read_dir(self.dir.path()).unwrap();
            let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
            names.sort();
            names
        }

        fn acquire(&self) -> Result<Lock, KubeconfigError> {
            Lock::acquire(&self.kubeconfig(), Missing::Fail, 1)
        }
    }

    /// A process that has been.
    fn gone() -> Holder {
        Holder { pid: 1, ..Holder::own() }
    }

    #[test]
    fn one_holds_the_lock_at_a_time() {
        let place = Place::new();
        let lock = place.acquire().unwrap();
        assert_eq!(place.names(), ["config.lock"], "the temporary file is gone");
        let error = place.acquire().unwrap_err();
        let expected = format!(
            "the kubeconfig `{}` is locked by `{}`, made by process {}",
            place.kubeconfig().display(),
            place.lock().display(),
            std::process::id()
        );
        assert_eq!(error.to_string(), expected);
        assert!(
            matches!(error, KubeconfigError::Locked { holder: Some(holder), age: Some(age), .. } if holder.is_here() && age < Duration::from_secs(60))
        );
        drop(lock);
        assert_eq!(place.names(), [""; 0]);
        drop(place.acquire().unwrap());
    }

    #[test]
    fn waits_for_another_holder() {
        let place = Place::new();
        let lock = place.acquire().unwrap();
        thread::scope(|scope| {
            let waiting = scope.spawn(|| Lock::acquire(&place.kubeconfig(), Missing::Fail, LOCK_ATTEMPTS).map(drop));
            drop(lock);
            assert!(waiting.join().unwrap().is_ok());
        });
    }

    #[test]
    fn what_a_killed_process_of_ours_left_is_taken_over() {
        let place = Place::new();
        fs::write(place.lock(), gone().encode()).unwrap();
        let lock = place.acquire().unwrap();
        assert_eq!(Holder::read(&File::open(place.lock()).unwrap()), Some(Holder::own()));
        assert!(place.acquire().is_err(), "it is held again");
        drop(lock);
        assert_eq!(place.names(), [""; 0]);

        // Killed while the lock had both its names.
        fs::write(place.lock(), gone().encode()).unwrap();
        fs::hard_link(place.lock(), place.dir.path().join(".autoheal-pa.Ab3dEf.tmp")).unwrap();
        drop(place.acquire().unwrap());
        assert_eq!(place.names(), [""; 0]);
    }

    #[test]
    fn of_many_that_find_a_dead_lock_one_has_it_at_a_time() {
        let place = Place::new();
        for _ in 0..20 {
            fs::write(place.lock(), gone().encode()).unwrap();
            let (inside, total) = (AtomicUsize::new(0), AtomicUsize::new(0));
            thread::scope(|scope| {
                for _ in 0..8 {
                    scope.spawn(|| {
                        loop {
                            // Without the pause between attempts.
                            if let Ok(lock) = place.acquire() {
                                assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0, "two hold it");
                                thread::yield_now();
                                inside.fetch_sub(1, Ordering::SeqCst);
                                drop(lock);
                                total.fetch_add(1, Ordering::SeqCst);
                                break;
                            }
                            thread::yield_now();
                        }
                    });
                }
            });
            assert_eq!(total.load(Ordering::SeqCst), 8);
            assert_eq!(place.names(), [""; 0]);
        }
    }

    #[test]
    fn the_locks_of_others_are_left_alone() {
        let elsewhere = Holder { host: "elsewhere".into(), boot: Some("another".into()), ..gone() };
        let other_program = Holder { program: "another".into(), ..gone() };
        for text in ["", "12\n", "{}", &elsewhere.encode(), &other_program.encode()] {
            let place = Place::new();
            fs::write(place.lock(), text).unwrap();
            let error = place.acquire().unwrap_err();
            assert!(matches!(error, KubeconfigError::Locked { .. }), "{error}");
            assert_eq!(fs::read_to_string(place.lock()).unwrap(), text);
            assert_eq!(place.names(), ["config.lock"]);
        }
    }

    #[test]
    fn a_machine_is_known_by_its_name_or_its_start() {
        let own = Holder { boot: Some("b".into()), host: "h".into(), ..Holder::own() };
        let of =
            |host: &str, boot: Option<&str>| Holder { host: host.into(), boot: boot.map(str::to_owned), ..own.clone() };
        assert!(own.shares_machine_with(&of("container", Some("b"))));
        assert!(own.shares_machine_with(&of("h", Some("before the restart"))));
        assert!(own.shares_machine_with(&of("h", None)));
        assert!(!own.shares_machine_with(&of("other", Some("c"))));
        assert!(!of("h", None).shares_machine_with(&of("other", None)));
    }

    #[test]
    fn a_lock_file_has_always_the_same_length() {
        let longest =
            Holder { host: "h".repeat(MAX_HOST_LEN), boot: Some("b".repeat(36)), pid: u32::MAX, ..Holder::own() };
        assert_eq!((longest.encode().len(), gone().encode().len()), (RECORD_LEN, RECORD_LEN));
    }

    #[test]
    fn removes_only_its_own_lock() {
        let place = Place::new();
        let lock = place.acquire().unwrap();
        // Kept open under another name, so that its inode is not given to the next file.
        fs::rename(place.lock(), place.dir.path().join("moved")).unwrap();
        fs::write(place.lock(), "another's").unwrap();
        drop(lock);
        assert_eq!(fs::read_to_string(place.lock()).unwrap(), "another's");
    }

    #[test]
    fn no_lock_without_a_folder() {
        let place = Place::new();
        let error = Lock::acquire(&place.dir.path().join("none/config"), Missing::Fail, 1).unwrap_err();
        assert!(matches!(error, KubeconfigError::Unwritable { .. }), "{error}");
    }
}
