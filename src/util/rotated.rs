//! Files of lines that are rotated by size.
//!
//! `<name>` is being written; `<name>.1` and so on are older. A file that somebody else has moved away, or another process
//! that writes the same has rotated, is begun anew. They are for their owner only.

use std::{
    fs::File,
    io::{self, Write},
};

use super::folder::Place;

/// A file of lines that is rotated by size.
#[derive(Debug)]
pub struct Rotated {
    place: Place,
    file: File,
    max_len: u64,
    /// How many older files are kept.
    kept: u32,
    /// Length above which it is tried again, after a rotation that failed.
    failed_at: u64,
    #[cfg(test)]
    stands_in: bool,
}

impl Rotated {
    /// Opens the file, and makes it if it is missing. A new one is begun before it has more than `max_len` bytes.
    ///
    /// # Errors
    /// What the system says, or that the file is not to be trusted.
    pub fn open(place: Place, max_len: u64, kept: u32) -> io::Result<Self> {
        let file = place.append()?;
        Ok(Self {
            place,
            file,
            max_len,
            kept,
            failed_at: 0,
            #[cfg(test)]
            stands_in: false,
        })
    }

    /// Adds whole lines, which stay together.
    ///
    /// # Errors
    /// What the system says. Nothing of them is there then, as far as that can be had.
    pub fn add(&mut self, lines: &[u8]) -> io::Result<()> {
        if !self.is_there()
            && let Ok(file) = self.place.append()
        {
            (self.file, self.failed_at) = (file, 0);
        }
        let len = self.file.metadata()?.len();
        if len > 0 && len + lines.len() as u64 > self.max_len + self.failed_at && self.rotate().is_err() {
            // Better a file that is too long than none; it is tried again after as much.
            self.failed_at = len;
        }
        let written = loop {
            match self.file.write(lines) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                outcome => break outcome?,
            }
        };
        if written == lines.len() {
            return Ok(());
        }
        // The disk is full: half a line would spoil the next.
        let len = self.file.metadata()?.len();
        self.file.set_len(len.saturating_sub(written as u64))?;
        Err(io::ErrorKind::StorageFull.into())
    }

    /// Writes to another file for as long as its place is nobody's.
    #[cfg(test)]
    pub(crate) fn stand_in(&mut self, file: File) {
        (self.file, self.stands_in) = (file, true);
    }

    fn rotate(&mut self) -> io::Result<()> {
        for number in (1..self.kept).rev() {
            match self.older(number).rename_to(&self.older(number + 1)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        self.place.rename_to(&self.older(1))?;
        (self.file, self.failed_at) = (self.place.append()?, 0);
        Ok(())
    }

    /// Tells whether the file is still the one of that name.
    fn is_there(&self) -> bool {
        #[cfg(test)]
        if self.stands_in {
            return true;
        }
        self.place.is_of(&self.file)
    }

    fn older(&self, number: u32) -> Place {
        older(&self.place, number)
    }
}

/// Returns where an older file is; the higher the number, the older.
#[must_use]
pub fn older(place: &Place, number: u32) -> Place {
    place.with_suffix(&format!(".{number}"))
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use super::*;
    use crate::util::folder::Missing;

    fn read(place: &Place) -> String {
        fs::read_to_string(place.path()).unwrap()
    }

    #[test]
    fn is_rotated_by_size() {
        let dir = tempfile::tempdir().unwrap();
        let place = Place::behind(&dir.path().join("state/autoheal-pa/default.log"), Missing::Make).unwrap();
        let mut file = Rotated::open(place.clone(), 20, 3).unwrap();
        for number in 0..12 {
            file.add(format!("event {number:02}\n").as_bytes()).unwrap();
        }
        drop(file);
        assert_eq!(read(&place), "event 10\nevent 11\n");
        assert_eq!(read(&older(&place, 1)), "event 08\nevent 09\n");
        assert_eq!(read(&older(&place, 3)), "event 04\nevent 05\n");
        assert!(!older(&place, 4).exists().unwrap());
        assert_eq!(fs::metadata(place.path()).unwrap().permissions().mode() & 0o777, 0o600);

        // It goes on where it was, and an event that is longer than a file is kept whole.
        let mut file = Rotated::open(place.clone(), 20, 3).unwrap();
        file.add(b"an event that is longer than that\n").unwrap();
        assert_eq!(read(&older(&place, 1)), "event 10\nevent 11\n");
        assert_eq!(read(&place), "an event that is longer than that\n");
    }

    #[test]
    fn two_that_write_the_same_lose_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let place = Place::behind(&dir.path().join("audit"), Missing::Make).unwrap();
        let mut files = [(); 2].map(|()| Rotated::open(place.clone(), 64, 20).unwrap());
        for number in 0..100 {
            files[number % 2].add(format!("line {number:03}\n").as_bytes()).unwrap();
        }
        let all = (1..=20).rev().map(|number| older(&place, number)).filter(|older| older.exists().unwrap());
        let text: String = all.chain([place.clone()]).map(|place| read(&place)).collect();
        assert_eq!(text, (0..100).map(|number| format!("line {number:03}\n")).collect::<String>());
    }

    #[test]
    fn a_file_that_was_moved_away_is_begun_anew() {
        let dir = tempfile::tempdir().unwrap();
        let place = Place::behind(&dir.path().join("audit"), Missing::Make).unwrap();
        let mut file = Rotated::open(place.clone(), 1 << 20, 3).unwrap();
        file.add(b"one\n").unwrap();
        fs::rename(place.path(), dir.path().join("away")).unwrap();
        file.add(b"two\n").unwrap();
        assert_eq!(
            (read(&place), fs::read_to_string(dir.path().join("away")).unwrap()),
            ("two\n".into(), "one\n".into())
        );
    }
}
