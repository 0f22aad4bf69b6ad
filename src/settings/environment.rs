//! What surrounds the process: variables, directories, user and host. The only reader of all that.
//!
//! It is a value, so that a test gives the settings any environment it likes. It keeps variables as
//! they are; what they mean is decided in [`Settings`](super::Settings).

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::OnceLock,
};

use crate::{
    bastion::SshFiles,
    util::folder::{Folder, own_uid},
};

/// The variables by which programs find a proxy.
pub const PROXY_VARIABLES: [&str; 6] =
    ["HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"];

/// The variable with the proxy of this program that `env --proxy` has put into those: it is not for this program.
pub const OWN_PROXY: &str = "AUTOHEAL_PA_OWN_PROXY";

/// The surroundings of the process when it was started.
#[derive(Clone, Default)]
pub struct Environment {
    pub(super) variables: BTreeMap<String, String>,
    /// Names of variables whose values are not UTF-8.
    pub(super) undecodable: Vec<String>,
    /// The current directory, against which relative paths are read.
    pub current_dir: PathBuf,
    /// The home directory: `HOME`. Without it there is none, as for kubectl.
    pub home: Option<PathBuf>,
    /// Where temporary files go.
    pub temp_dir: PathBuf,
    /// The absolute path that this program was started by, links and all; else that of the binary, if the system tells.
    pub executable: Option<PathBuf>,
    /// The user id.
    pub uid: u32,
    pub host_name: Option<String>,
}

impl std::fmt::Debug for Environment {
    /// Shows the names of the variables only: some of the values are keys.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Environment").field("variables", &self.variables.keys()).finish_non_exhaustive()
    }
}

impl Environment {
    /// Reads the surroundings of this process.
    #[must_use]
    pub fn read() -> Self {
        let mut variables = BTreeMap::new();
        let mut undecodable = Vec::new();
        let mut home = None;
        for (name, value) in std::env::vars_os() {
            let name = name.to_string_lossy().into_owned();
            if name == "HOME" {
                home = Some(PathBuf::from(&value));
            }
            match value.into_string() {
                Ok(value) => drop(variables.insert(name, value)),
                Err(_) => undecodable.push(name),
            }
        }
        let host = rustix::system::uname();
        // A current directory that has been deleted leaves relative paths relative.
        let current_dir = std::env::current_dir().unwrap_or_default();
        // Once: the file may be replaced while this process runs, and the name that it was started by stays.
        static EXECUTABLE: OnceLock<Option<PathBuf>> = OnceLock::new();
        let executable = EXECUTABLE.get_or_init(|| {
            let name = std::env::args_os().next().unwrap_or_default();
            let path = variables.get("PATH").map(String::as_str).unwrap_or_default();
            // Linux tells it in /proc, which a bare root does not have.
            let actual = std::env::current_exe().ok();
            started_as(&name, &current_dir, path, actual.as_deref()).or(actual)
        });
        let executable = executable.clone();
        Self {
            variables,
            undecodable,
            current_dir,
            home: home.filter(|home| home.is_absolute()),
            temp_dir: std::env::temp_dir(),
            executable,
            uid: own_uid(),
            host_name: host.nodename().to_str().ok().filter(|name| !name.is_empty()).map(ToOwned::to_owned),
        }
    }

    /// Returns this environment with variables added or replaced.
    #[must_use]
    pub fn with<N: Into<String>, V: Into<String>>(mut self, variables: impl IntoIterator<Item = (N, V)>) -> Self {
        self.variables.extend(variables.into_iter().map(|(name, value)| (name.into(), value.into())));
        self
    }

    /// Returns the value of a variable, without blanks around it, such as the carriage return of a file with Windows line
    /// ends. One that is empty counts as not set, as it does for AWS tools, and so does a proxy that is this program's own.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        let value = |name: &str| self.variables.get(name).map(|value| value.trim()).filter(|value| !value.is_empty());
        // Calls of a manager that went through its own proxy would wait for themselves.
        value(name).filter(|found| !PROXY_VARIABLES.contains(&name) || value(OWN_PROXY) != Some(found))
    }

    /// Tells whether a variable is set to a word that means yes.
    #[must_use]
    pub fn is_true(&self, name: &str) -> bool {
        self.get(name).is_some_and(|value| value.eq_ignore_ascii_case("true") || value == "1")
    }

    /// Returns an absolute form of a path, with a leading `~/` taken as the home directory.
    #[must_use]
    pub fn absolute(&self, path: &Path) -> PathBuf {
        self.absolute_in(&self.current_dir, path)
    }

    /// Does the same for a path that is relative to another directory.
    pub(super) fn absolute_in(&self, dir: &Path, path: &Path) -> PathBuf {
        if let (Ok(rest), Some(home)) = (path.strip_prefix("~"), &self.home) {
            return home.join(rest);
        }
        dir.join(path)
    }

    /// Returns the path of the configuration file that is read if none is named: below `$XDG_CONFIG_HOME`, else below
    /// `~/.config`.
    #[must_use]
    pub fn config_file(&self) -> Option<PathBuf> {
        // The base directory specification wants relative paths to be ignored.
        let config = self.get("XDG_CONFIG_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
        let config = config.or_else(|| Some(self.home.as_ref()?.join(".config")))?;
        Some(config.join("autoheal-pa/config.yaml"))
    }

    /// Returns the directory for logs of this user's programs: `$XDG_STATE_HOME/autoheal-pa`, else the one in the home
    /// directory; `None` where there is neither.
    pub(super) fn state_dir(&self) -> Option<PathBuf> {
        let given = self.get("XDG_STATE_HOME").map(PathBuf::from).filter(|dir| dir.is_absolute());
        let state = given.or_else(|| self.home.as_ref().map(|home| home.join(".local/state")));
        state.map(|dir| dir.join("autoheal-pa"))
    }

    /// Returns the files and sockets that have to do with SSH servers.
    #[must_use]
    pub fn ssh_files(&self) -> SshFiles {
        let own =
            self.home.iter().flat_map(|home| ["known_hosts", "known_hosts2"].map(|name| home.join(".ssh").join(name)));
        SshFiles {
            known_hosts: own.chain([PathBuf::from("/etc/ssh/ssh_known_hosts")]).collect(),
            own_known_hosts: self.state_dir().map(|dir| dir.join("known_hosts")),
            agent: self.get("SSH_AUTH_SOCK").map(|path| self.absolute(Path::new(path))),
        }
    }

    /// Returns the directory for sockets of this user's programs: `$XDG_RUNTIME_DIR/autoheal-pa` where that directory is
    /// really this user's and nobody else may change it; on macOS else the one below `~/Library`; else
    /// `autoheal-pa-<uid>` in the temporary directory.
    pub(super) fn runtime_dir(&self) -> PathBuf {
        self.runtime_dir_on(cfg!(target_os = "macos"))
    }

    fn runtime_dir_on(&self, macos: bool) -> PathBuf {
        // After `su` or `sudo` the variable may still name the directory of another user.
        let is_own = |folder: Folder| folder.owner() == self.uid && !folder.may_be_swapped();
        let usable = |dir: &PathBuf| dir.is_absolute() && Folder::open(dir).is_ok_and(is_own);
        // macOS removes what is older than three days from the temporary directory, be it of a manager that is running.
        let lasting = || self.home.as_ref().filter(|_| macos).map(|home| home.join("Library/Application Support"));
        match self.get("XDG_RUNTIME_DIR").map(PathBuf::from).filter(usable).or_else(|| lasting().filter(usable)) {
            Some(dir) => dir.join("autoheal-pa"),
            None => self.current_dir.join(&self.temp_dir).join(format!("autoheal-pa-{}", self.uid)),
        }
    }
}

/// Finds the path that a program was started by: through a link in a folder of `PATH`, say, which leads to the next
/// version after an upgrade, where the path that the system tells goes with the old one. `None` if it leads elsewhere.
fn started_as(name: &OsStr, current_dir: &Path, path: &str, actual: Option<&Path>) -> Option<PathBuf> {
    let is_it = |candidate: &PathBuf| match (fs::metadata(candidate), actual.and_then(|path| fs::metadata(path).ok())) {
        (Ok(candidate), Some(actual)) => (candidate.dev(), candidate.ino()) == (actual.dev(), actual.ino()),
        // It has been replaced already, or the system does not tell.
        (Ok(candidate), None) => candidate.is_file(),
        (Err(_), _) => false,
    };
    let folders: Vec<_> = match Path::new(name).parent() {
        Some(folder) if folder.as_os_str().is_empty() => std::env::split_paths(path).collect(),
        _ => vec![PathBuf::new()],
    };
    let paths = folders.into_iter().map(|folder| current_dir.join(folder).join(name));
    // Without the dots in the middle.
    paths.map(|path| path.components().collect()).find(is_it)
}

#[cfg(test)]
mod tests {
    use std::{
        fs::Permissions,
        os::unix::fs::{PermissionsExt, symlink},
    };

    use super::*;

    #[test]
    fn a_program_is_known_by_the_path_that_it_was_started_by() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        fs::create_dir_all(root.join("Cellar/1.0")).unwrap();
        fs::create_dir(root.join("bin")).unwrap();
        let actual = root.join("Cellar/1.0/autoheal-pa");
        fs::write(&actual, "").unwrap();
        symlink(&actual, root.join("bin/autoheal-pa")).unwrap();
        let by = |name: &str, path: &str| started_as(OsStr::new(name), root, path, Some(&actual));
        let stable = Some(root.join("bin/autoheal-pa"));
        let path = format!("/nowhere:{}:/bin", root.join("bin").display());
        assert_eq!(by("autoheal-pa", &path), stable);
        assert_eq!(by("./bin/autoheal-pa", ""), stable);
        assert_eq!(by(root.join("bin/autoheal-pa").to_str().unwrap(), ""), stable);
        assert_eq!(by("autoheal-pa", "bin"), stable);
        // Another program of the name, and none.
        fs::create_dir(root.join("other")).unwrap();
        fs::write(root.join("other/autoheal-pa"), "").unwrap();
        assert_eq!(by("autoheal-pa", "other"), None);
        assert_eq!(by("autoheal-pa", ""), None);
        assert_eq!(by("", "bin"), None);
        // Replaced since: the name leads to the next version.
        fs::remove_file(&actual).unwrap();
        assert_eq!(by("bin/autoheal-pa", ""), None);
        fs::remove_file(root.join("bin/autoheal-pa")).unwrap();
        fs::write(root.join("bin/autoheal-pa"), "").unwrap();
        assert_eq!(by("bin/autoheal-pa", ""), stable);
        // Where the system does not tell it, as without /proc.
        let alone = |name: &str, path: &str| started_as(OsStr::new(name), root, path, None);
        assert_eq!(alone("autoheal-pa", &path), stable);
        assert_eq!((alone("bin/autoheal-pa", ""), alone("bin", ""), alone("", "bin")), (stable, None, None));
    }

    #[test]
    fn an_empty_variable_is_not_set() {
        let environment = Environment::default().with([("A", ""), ("B", "x\r\n"), ("D", " \t")]);
        assert_eq!(environment.get("A"), None);
        assert_eq!(environment.get("D"), None);
        assert_eq!(environment.get("B"), Some("x"));
        assert_eq!(environment.get("C"), None);
    }

    #[test]
    fn does_not_show_values() {
        let text = format!("{:?}", Environment::default().with([("AWS_SECRET_ACCESS_KEY", "hunter2")]));
        assert!(text.contains("AWS_SECRET_ACCESS_KEY") && !text.contains("hunter2"), "{text}");
    }

    #[test]
    fn makes_paths_absolute() {
        let environment =
            Environment { current_dir: "/work".into(), home: Some("/home/alice".into()), ..Environment::default() };
        assert_eq!(environment.absolute(Path::new("a/b")), Path::new("/work/a/b"));
        assert_eq!(environment.absolute(Path::new("/a")), Path::new("/a"));
        assert_eq!(environment.absolute(Path::new("~/a")), Path::new("/home/alice/a"));
        assert_eq!(environment.absolute(Path::new("~bob/a")), Path::new("/work/~bob/a"));
    }

    #[test]
    fn a_relative_temporary_directory_is_one_of_where_the_program_was_started() {
        let environment =
            Environment { temp_dir: "tmp".into(), current_dir: "/work".into(), uid: 7, ..Environment::default() };
        assert_eq!(environment.runtime_dir(), Path::new("/work/tmp/autoheal-pa-7"));
    }

    #[test]
    fn takes_only_an_own_runtime_directory() {
        let dir = tempfile::tempdir().unwrap();
        let uid = dir.path().metadata().unwrap().uid();
        let path = dir.path().to_str().unwrap();
        let base = || Environment { temp_dir: "/tmp".into(), uid, ..Environment::default() };
        assert_eq!(base().with([("XDG_RUNTIME_DIR", path)]).runtime_dir(), dir.path().join("autoheal-pa"));
        let other = Environment { uid: uid + 1, ..base() }.with([("XDG_RUNTIME_DIR", path)]);
        assert_eq!(other.runtime_dir(), Path::new("/tmp").join(format!("autoheal-pa-{}", uid + 1)));
        for (mode, usable) in [(0o777, false), (0o702, false), (0o1777, true), (0o755, true)] {
            fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
            let found = base().with([("XDG_RUNTIME_DIR", path)]).runtime_dir();
            assert_eq!(found.starts_with(path), usable, "{mode:o}");
        }
        for unusable in ["", "relative", "/does/not/exist"] {
            let environment = base().with([("XDG_RUNTIME_DIR", unusable)]);
            assert_eq!(environment.runtime_dir(), Path::new("/tmp").join(format!("autoheal-pa-{uid}")));
        }
    }
    #[test]
    fn macos_has_a_directory_that_it_does_not_sweep() {
        let home = tempfile::tempdir().unwrap();
        let uid = home.path().metadata().unwrap().uid();
        let environment =
            Environment { home: Some(home.path().to_owned()), temp_dir: "/tmp".into(), uid, ..Environment::default() };
        let temporary = Path::new("/tmp").join(format!("autoheal-pa-{uid}"));
        assert_eq!(environment.runtime_dir_on(true), temporary, "it is not there");
        let lasting = home.path().join("Library/Application Support");
        fs::create_dir_all(&lasting).unwrap();
        assert_eq!(environment.runtime_dir_on(true), lasting.join("autoheal-pa"));
        assert_eq!(environment.runtime_dir_on(false), temporary);
        let other = Environment { uid: uid + 1, ..environment.clone() };
        assert_eq!(other.runtime_dir_on(true), Path::new("/tmp").join(format!("autoheal-pa-{}", uid + 1)));
        let given = home.path().to_str().unwrap();
        let given = environment.with([("XDG_RUNTIME_DIR", given)]).runtime_dir_on(true);
        assert_eq!(given, home.path().join("autoheal-pa"));
    }
}
