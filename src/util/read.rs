//! Files that others have written: regular ones, and no more of them than fits what they are. And what programs say.

use std::{fs::File, io::Read, path::Path};

use rustix::fs::{self, FileType, Mode, OFlags, Stat};
use tokio::io::{AsyncRead, AsyncReadExt};

use crate::secret::Secret;

/// Why a file cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// It is a folder, a pipe, a device: something that may never end.
    #[error("it is not a regular file")]
    NotRegular,
    /// It cannot be what it should be.
    #[error("it has more than {0} bytes")]
    TooLong(u64),
    #[error("it is not UTF-8")]
    NotText,
    /// The system refuses.
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

/// Reads what a program writes, up to a limit; then the pipe is closed, which ends a program that goes on.
pub(crate) async fn read_pipe(pipe: Option<impl AsyncRead + Unpin>, max_len: u64) -> Secret<Vec<u8>> {
    let mut bytes = Secret::new(Vec::new());
    if let Some(pipe) = pipe {
        let _until_it_broke = pipe.take(max_len).read_to_end(bytes.expose_mut()).await;
    }
    bytes
}

/// Finds out whether there is a file that could be read to its end.
///
/// # Errors
/// See [`ReadError`].
pub fn check(path: &Path, max_len: u64) -> Result<(), ReadError> {
    is_readable(&fs::stat(path).map_err(std::io::Error::from)?, max_len)
}

/// Tells whether two paths lead to one file, by whatever links. It need not be there if they are the same.
#[must_use]
pub fn is_same(path: &Path, other: &Path) -> bool {
    let file = |path| fs::stat(path).map(|stat: Stat| (stat.st_dev, stat.st_ino));
    path == other || matches!((file(path), file(other)), (Ok(file), Ok(other)) if file == other)
}

fn is_readable(stat: &Stat, max_len: u64) -> Result<(), ReadError> {
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(ReadError::NotRegular);
    }
    let len = u64::try_from(stat.st_size).unwrap_or(u64::MAX);
    if len > max_len { Err(ReadError::TooLong(max_len)) } else { Ok(()) }
}

/// Reads a file of at most so many bytes.
///
/// # Errors
/// See [`ReadError`].
pub fn read(path: &Path, max_len: u64) -> Result<Vec<u8>, ReadError> {
    // Before as well, since opening a device may do something.
    check(path, max_len)?;
    // Opening a pipe would wait for its writer.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    read_open(File::from(fs::open(path, flags, Mode::empty()).map_err(std::io::Error::from)?), max_len)
}

/// Reads an open file of at most so many bytes.
fn read_open(file: File, max_len: u64) -> Result<Vec<u8>, ReadError> {
    is_readable(&fs::fstat(&file).map_err(std::io::Error::from)?, max_len)?;
    let mut bytes = Vec::new();
    // It may have grown, and those that the kernel makes up have no length.
    file.take(max_len + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > max_len { Err(ReadError::TooLong(max_len)) } else { Ok(bytes) }
}

/// Reads a text of at most so many bytes.
///
/// # Errors
/// See [`ReadError`].
pub fn read_text(path: &Path, max_len: u64) -> Result<String, ReadError> {
    String::from_utf8(read(path, max_len)?).map_err(|_error| ReadError::NotText)
}

/// Reads a text that is open.
///
/// # Errors
/// See [`ReadError`].
pub fn read_open_text(file: File, max_len: u64) -> Result<String, ReadError> {
    String::from_utf8(read_open(file, max_len)?).map_err(|_error| ReadError::NotText)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_regular_files_up_to_a_length() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, "12345678").unwrap();
        assert_eq!(read_text(&path, 8).unwrap(), "12345678");
        assert!(matches!(read(&path, 7), Err(ReadError::TooLong(7))));
        std::fs::write(&path, b"\xff").unwrap();
        assert!(matches!(read_text(&path, 8), Err(ReadError::NotText)));
        std::os::unix::fs::symlink("file", dir.path().join("link")).unwrap();
        assert_eq!(
            read(&dir.path().join("link"), 8).unwrap(),
            b"\xff",
            "whose links are followed is the user's choice"
        );
        let missing = read(&dir.path().join("none"), 8).unwrap_err();
        assert!(matches!(missing, ReadError::Io(error) if error.kind() == std::io::ErrorKind::NotFound));
    }

    #[test]
    fn what_may_never_end_is_not_read() {
        let dir = tempfile::tempdir().unwrap();
        let pipe = dir.path().join("pipe");
        fs::mkfifoat(fs::CWD, &pipe, Mode::RWXU).unwrap();
        for path in [&pipe, dir.path(), Path::new("/dev/zero"), Path::new("/dev/null")] {
            assert!(matches!(read(path, 8), Err(ReadError::NotRegular)), "{}", path.display());
        }
    }
}
