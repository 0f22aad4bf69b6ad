//! The log of a manager in the background: a file that is rotated by size.
//!
//! `<name>.log` is being written; `<name>.log.1` and so on are older. The file is for its owner only: what is in it
//! is no secret, but whose clusters these are is nobody else's business.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use tracing_subscriber::fmt::MakeWriter;

/// Size at which a new file is begun, in bytes.
const MAX_LEN: u64 = 8 << 20;

/// How many older files are kept.
const KEPT: u32 = 3;

/// A log that is rotated by size. Cheap to clone; all clones write one file.
#[derive(Debug, Clone)]
pub struct LogFile {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    file: File,
    len: u64,
    max_len: u64,
}

impl LogFile {
    /// Opens the first of these files that can be written, and makes it with its folder if it is missing.
    ///
    /// # Errors
    /// What the system says of the last.
    pub fn open(candidates: &[&Path]) -> io::Result<(Self, PathBuf)> {
        let mut error = io::Error::from(io::ErrorKind::NotFound);
        for path in candidates {
            match Self::at(path, MAX_LEN) {
                Ok(log) => return Ok((log, path.to_path_buf())),
                Err(other) => error = other,
            }
        }
        Err(error)
    }

    fn at(path: &Path, max_len: u64) -> io::Result<Self> {
        if let Some(folder) = path.parent() {
            DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        }
        let file = append(path)?;
        let len = file.metadata()?.len();
        let inner = Inner { path: path.to_owned(), file, len, max_len };
        Ok(Self { inner: Arc::new(Mutex::new(inner)) })
    }
}

impl Inner {
    fn rotate(&mut self) -> io::Result<()> {
        let older = |number: u32| older(&self.path, number);
        for number in (1..KEPT).rev() {
            match fs::rename(older(number), older(number + 1)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        fs::rename(&self.path, older(1))?;
        self.file = append(&self.path)?;
        self.len = 0;
        Ok(())
    }
}

/// Writes whole events, one a call.
impl Write for LogFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if inner.len > 0 && inner.len + bytes.len() as u64 > inner.max_len && inner.rotate().is_err() {
            // Better a file that is too long than none; it is tried again after as much.
            inner.len = 0;
        }
        inner.file.write_all(bytes)?;
        inner.len += bytes.len() as u64;
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

/// Returns the path of an older file; the higher the number, the older.
pub(super) fn older(path: &Path, number: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{number}"));
    name.into()
}

fn append(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).mode(0o600).open(path)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn is_rotated_by_size() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state/autoheal-pa/default.log");
        let mut log = LogFile::at(&path, 20).unwrap();
        for number in 0..12 {
            log.write_all(format!("event {number:02}\n").as_bytes()).unwrap();
        }
        drop(log);
        let read = |path: PathBuf| fs::read_to_string(path).unwrap();
        assert_eq!(read(path.clone()), "event 10\nevent 11\n");
        assert_eq!(read(older(&path, 1)), "event 08\nevent 09\n");
        assert_eq!(read(older(&path, KEPT)), "event 04\nevent 05\n");
        assert!(!older(&path, KEPT + 1).exists());
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);

        // It goes on where it was, and an event that is longer than a file is kept whole.
        let mut log = LogFile::at(&path, 20).unwrap();
        log.write_all(b"an event that is longer than that\n").unwrap();
        assert_eq!(read(older(&path, 1)), "event 10\nevent 11\n");
        assert_eq!(read(path), "an event that is longer than that\n");
    }

    #[test]
    fn takes_the_first_place_that_can_be_written() {
        let dir = tempfile::tempdir().unwrap();
        let (file, good) = (dir.path().join("file"), dir.path().join("good/log"));
        fs::write(&file, "").unwrap();
        let (_, path) = LogFile::open(&[&file.join("log"), &good]).unwrap();
        assert_eq!(path, good);
        assert!(LogFile::open(&[&file.join("log")]).is_err());
    }
}
