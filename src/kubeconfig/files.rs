//! What `KUBECONFIG` has to be for the contexts of a manager.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
};

use crate::util::read::is_same;

/// The kubeconfig with a manager's contexts, and those that have users which contexts name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Files {
    own: PathBuf,
    /// Without the own one.
    others: Vec<PathBuf>,
}

impl Files {
    /// Takes the kubeconfig that is written, and the files that clusters were imported from.
    #[must_use]
    pub fn new(own: PathBuf, imported_from: &[PathBuf]) -> Self {
        let mut others: Vec<PathBuf> = Vec::new();
        for path in imported_from.iter().filter(|path| !is_same(path, &own)) {
            if !others.contains(path) {
                others.push(path.clone());
            }
        }
        Self { own, others }
    }

    /// The one that is written.
    #[must_use]
    pub fn own(&self) -> &Path {
        &self.own
    }

    /// Those that have users, without the own one.
    #[must_use]
    pub fn others(&self) -> &[PathBuf] {
        &self.others
    }

    /// Tells whether kubectl needs more than one of them.
    #[must_use]
    pub fn are_several(&self) -> bool {
        !self.others.is_empty()
    }

    /// Returns the value of `KUBECONFIG`. Of entries with one name kubectl takes the first, so the own file is before the
    /// others.
    #[must_use]
    pub fn variable(&self) -> OsString {
        let mut value = self.own.clone().into_os_string();
        for path in &self.others {
            value.push(":");
            value.push(path);
        }
        value
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn the_own_file_is_first_and_each_is_there_once() {
        let value = |own: &str, others: &[&str]| {
            let others: Vec<_> = others.iter().map(PathBuf::from).collect();
            Files::new(own.into(), &others).variable().into_string().unwrap()
        };
        assert_eq!(value("/a", &[]), "/a");
        assert_eq!(value("/a", &["/b", "/c", "/b"]), "/a:/b:/c");
        // As after `eval "$(autoheal-pa env)"`.
        assert_eq!(value("/a", &["/a", "/b"]), "/a:/b");
        assert_eq!(value("/b", &["/a", "/b"]), "/b:/a");
    }

    #[test]
    fn a_file_is_the_same_by_a_link() {
        let dir = tempfile::tempdir().unwrap();
        let (file, link) = (dir.path().join("config"), dir.path().join("link"));
        fs::write(&file, "").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        assert!(!Files::new(link, std::slice::from_ref(&file)).are_several());
        assert!(Files::new(dir.path().join("other"), &[file]).are_several());
    }
}
