//! The log of a manager in the background: a file that is rotated by size.
//!
//! `<name>.log` is being written; `<name>.log.1` and so on are older. The file is for its owner only: what is in it
//! is no secret, but whose clusters these are is nobody else's business.

use std::{
    io::{self, Write},
    sync::{Arc, Mutex, PoisonError},
};

use tracing_subscriber::fmt::MakeWriter;

use super::error::CommandError;
use crate::{
    manager::control,
    settings::Settings,
    util::{
        folder::{Missing, Place},
        rotated::Rotated,
    },
};

/// Size at which a new file is begun, in bytes.
const MAX_LEN: u64 = 8 << 20;

/// How many older files are kept.
const KEPT: u32 = 3;

/// A log that is rotated by size. Cheap to clone; all clones write one file.
#[derive(Debug, Clone)]
pub struct LogFile {
    inner: Arc<Mutex<Rotated>>,
}

/// Where a manager may log to, the best place first: among the user's logs, or else in its own directory.
pub(super) fn places(settings: &Settings, missing: Missing) -> impl Iterator<Item = Result<Place, CommandError>> {
    let given = settings.log_file.as_ref().map(|path| {
        let failed = |source| super::error::cannot_use("log", path, source);
        Place::behind(path, missing).map_err(failed)
    });
    let own = std::iter::once_with(move || {
        let folder = control::open(&settings.control_dir, missing)?;
        Ok(folder.map(|folder| folder.place("log")))
    });
    given.into_iter().chain(own.filter_map(Result::transpose))
}

impl LogFile {
    /// Opens the first of the manager's places that can be written, and makes it with its folder if it is missing. Returns
    /// its path as well.
    ///
    /// # Errors
    /// Why the last cannot.
    pub fn open(settings: &Settings) -> Result<(Self, std::path::PathBuf), CommandError> {
        let mut outcome = Err(super::error::cannot_use("log", &settings.control_dir, io::ErrorKind::NotFound.into()));
        for place in places(settings, Missing::Make) {
            outcome = place.and_then(|place| {
                let path = place.path();
                let log = Self::at(place, MAX_LEN).map_err(|source| super::error::cannot_use("log", &path, source))?;
                Ok((log, path))
            });
            if outcome.is_ok() {
                break;
            }
        }
        outcome
    }

    fn at(place: Place, max_len: u64) -> io::Result<Self> {
        Ok(Self { inner: Arc::new(Mutex::new(Rotated::open(place, max_len, KEPT)?)) })
    }
}

/// Writes whole events, one a call.
impl Write for LogFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).add(bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for LogFile {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt, path::Path};

    use super::*;

    #[test]
    fn takes_the_first_place_that_can_be_written() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        let settings = |log_file: Option<&Path>| Settings {
            control_dir: dir.path().join("run/default"),
            log_file: log_file.map(Path::to_owned),
            ..Settings::default()
        };
        let good = dir.path().join("good/log");
        assert_eq!(LogFile::open(&settings(Some(&good))).unwrap().1, good);
        let own = dir.path().join("run/default/log");
        assert_eq!(LogFile::open(&settings(Some(&file.join("log")))).unwrap().1, own);
        assert_eq!(LogFile::open(&settings(None)).unwrap().1, own);
        fs::set_permissions(own.parent().unwrap(), fs::Permissions::from_mode(0o755)).unwrap();
        let error = LogFile::open(&settings(None)).unwrap_err().sentence();
        assert!(error.contains("other users have access to it"), "{error}");
    }
}
