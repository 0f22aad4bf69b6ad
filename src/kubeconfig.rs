//! Kubeconfigs: one context per cluster, merged into a file that may be the user's own.
//!
//! Invariants:
//!
//! * Entries of this program carry an extension called `autoheal-pa` that names their manager, and are known by what
//!   they say where a tool has dropped that. Only those of the same manager are replaced or removed; everything else is
//!   kept, fields that we do not know included.
//! * A reader never sees half a file, and two writers never lose each other's changes: client-go's lock file
//!   is held from reading to renaming. A writer that is killed leaves nothing that stops the next.
//! * Every string that is written is quoted, and whatever was in the file means the same as before to a
//!   reader of YAML 1.1 (the private module `yaml` says how). Comments are lost, as with `kubectl config`.
//! * A namespace that the user has set on one of our contexts survives.
//! * Credentials of the user's are never copied: the context of a cluster that was imported names the user's own entry.
//!
//! Everything here blocks; async callers use a thread for it. Leaves out what the exec entry has to say:
//! the caller knows that.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use rustix::fs::OFlags;

pub use crate::util::yaml::SyntaxError;
pub use files::Files;
pub use lock::Holder;

use crate::{
    cluster::Cluster,
    util::{
        folder::{Missing, Place, is_refusal},
        read::{ReadError, read_open_text},
        replace,
        yaml::Node,
    },
};

pub mod exec;
mod files;
#[cfg(any(fuzzing, test))]
pub(crate) mod fuzzing;
pub mod import;
mod lock;
mod merge;
mod yaml;

/// Largest kubeconfig that is read, in bytes. Ten thousand clusters fit.
const MAX_LEN: u64 = 32 << 20;

/// The flag by which the plugin is told the directory of its manager, whose last part is the manager's name.
pub const MANAGER_FLAG: &str = "--manager";

/// What stands before the words with which a manager is started.
const START: &str = "--";

/// Room on the disk that a kubeconfig is taken to need beyond what it has, in bytes: some five clusters.
const ROOM: usize = 16 << 10;

/// The program that gives kubectl its tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exec {
    /// Absolute path of the program.
    pub command: String,
    /// Its arguments, each flag joined to its value.
    pub args: Vec<String>,
    /// Variables that are set for it, name and value. Never a secret.
    pub env: Vec<(String, String)>,
}

impl Exec {
    /// Puts the words behind `--`, with which the program starts a manager where none runs.
    #[must_use]
    pub fn starting(mut self, words: impl IntoIterator<Item = String>) -> Self {
        self.args.push(START.to_owned());
        self.args.extend(words);
        self
    }

    /// Returns the same without these: it gives a token then, and starts nothing.
    #[must_use]
    pub fn starting_nothing(mut self) -> Self {
        self.args.truncate(self.args.iter().position(|arg| arg == START).unwrap_or(self.args.len()));
        self
    }

    /// Returns the words, if there are any.
    #[must_use]
    pub fn start(&self) -> Option<&[String]> {
        let at = self.args.iter().position(|arg| arg == START)?;
        self.args.get(at + 1..)
    }

    /// Returns the value of an option of the program itself.
    #[must_use]
    pub fn option(&self, flag: &str) -> Option<&str> {
        let own = self.args.iter().take_while(|arg| *arg != START);
        own.filter_map(|arg| arg.strip_prefix(flag)?.strip_prefix('=')).next()
    }
}

/// One cluster in a kubeconfig: a cluster and a context of the same name, and mostly a user as well.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContextEntry {
    /// The name, from [`context_names`].
    pub name: String,
    pub cluster: Cluster,
    /// Which server a client is told of.
    pub server: Server,
    pub user: User,
}

/// Whose credentials kubectl shows to a cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum User {
    /// A user of the context's name, for whom kubectl runs this for a token.
    Own(Exec),
    /// One that the user has in a kubeconfig already: nothing of it is copied.
    Theirs(String),
}

/// Which server a client is told of, to get to a cluster's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Server {
    /// By the local port of its tunnel, on 127.0.0.1, with the endpoint's name told apart for TLS.
    Tunnel(u16),
    /// By the local port of its tunnel, where TLS ends.
    LocalTls {
        port: u16,
        /// Who vouches for the local port: PEM in base64.
        authority: Arc<str>,
    },
    /// By the endpoint's own address, through the proxy that listens here.
    Proxy(SocketAddr),
}

/// What a manager wants a kubeconfig to hold of it.
#[derive(Debug, Clone, Copy)]
pub struct Update<'a> {
    /// The manager's name.
    pub manager: &'a str,
    /// Its contexts, in order.
    pub contexts: &'a [ContextEntry],
    /// What it had before and is not among them stays; else it is removed.
    pub keeps_others: bool,
    /// The current context is set to the first of them even in a file with contexts of others, unless it is
    /// one of them already.
    pub set_current: bool,
    /// Files that kubectl is to read after this one.
    pub beside: &'a [PathBuf],
}

/// Finds out whether [`write()`] will be able to, as far as that can be known of contexts that are imported and without the
/// others. Nothing is changed.
///
/// # Errors
/// See [`KubeconfigError`].
pub fn check(path: &Path, manager: &str, beside: &[PathBuf]) -> Result<(), KubeconfigError> {
    let text =
        read_merged(path, &Update { manager, contexts: &[], keeps_others: false, set_current: false, beside })?.1;
    replace::check_replaceable(path, text.map_or(0, |text| text.len()) + ROOM)
        .map_err(|source| KubeconfigError::Unwritable { path: path.to_owned(), source })
}

/// Brings a kubeconfig up to date, and returns the name of its current context. The file is made if it
/// is missing. Its current context is left alone where it names a context that is there; where it does not,
/// it becomes the first context, if all contexts in the file are of this program.
///
/// # Errors
/// See [`KubeconfigError`]; the file is then as it was.
pub fn write(path: &Path, update: &Update<'_>) -> Result<Option<String>, KubeconfigError> {
    let _lock = lock::Lock::acquire(path, Missing::Make, lock::LOCK_ATTEMPTS)?;
    rewrite(path, update)
}

/// Removes all that a manager has in a kubeconfig. A file that is missing is as good.
///
/// # Errors
/// See [`KubeconfigError`]; the file is then as it was.
pub fn remove(path: &Path, manager: &str) -> Result<(), KubeconfigError> {
    if !path.exists() {
        return Ok(());
    }
    let _lock = lock::Lock::acquire(path, Missing::Fail, lock::LOCK_ATTEMPTS)?;
    rewrite(path, &Update { manager, contexts: &[], keeps_others: false, set_current: false, beside: &[] })?;
    Ok(())
}

/// Names the contexts in a kubeconfig that are of no use without a manager: its own, and those that use its users.
///
/// # Errors
/// See [`KubeconfigError`].
pub fn contexts_of(path: &Path, manager: &str) -> Result<Vec<String>, KubeconfigError> {
    merge::contexts_of(&read_or_empty(path)?, manager).map_err(|refusal| refusal.at(path))
}

/// Finds the contexts of these names that are in a kubeconfig.
///
/// # Errors
/// See [`KubeconfigError`].
pub fn still_there(path: &Path, names: &[String]) -> Result<Vec<String>, KubeconfigError> {
    let root = read_or_empty(path)?;
    let there = merge::contexts(&root).map_err(|refusal| refusal.at(path))?;
    Ok(names.iter().filter(|name| there.contains(name.as_str())).cloned().collect())
}

/// Returns what kubectl runs for the contexts of a manager, each program once, with the arguments of one of them.
///
/// # Errors
/// See [`KubeconfigError`].
pub fn plugins_of(path: &Path, manager: &str) -> Result<Vec<Exec>, KubeconfigError> {
    merge::plugins_of(&read_or_empty(path)?, manager).map_err(|refusal| refusal.at(path))
}

/// Returns what kubectl runs for each context of a manager that has it start one.
///
/// # Errors
/// See [`KubeconfigError`].
pub fn starting(path: &Path, manager: &str) -> Result<Vec<Exec>, KubeconfigError> {
    let all = merge::execs_of(&read_or_empty(path)?, manager).map_err(|refusal| refusal.at(path))?;
    Ok(all.into_iter().filter(|exec| exec.start().is_some()).collect())
}

/// Reads, merges and writes. The caller holds the lock.
fn rewrite(path: &Path, update: &Update<'_>) -> Result<Option<String>, KubeconfigError> {
    let (current, changed) = read_merged(path, update)?;
    if let Some(text) = changed {
        replace::replace(path, text.as_bytes())
            .map_err(|source| KubeconfigError::Unwritable { path: path.to_owned(), source })?;
    }
    Ok(current)
}

/// Reads and merges. Returns the current context, and the new text unless nothing changes: such a file keeps its
/// comments and its time.
fn read_merged(path: &Path, update: &Update<'_>) -> Result<(Option<String>, Option<String>), KubeconfigError> {
    let root = read_or_empty(path)?;
    let merged = merge::merge(root.clone(), update).map_err(|refusal| refusal.at(path))?;
    for other in update.beside {
        merge::refuse_shadowing(&merged.root, update.manager, other, &read_or_empty(other)?)
            .map_err(|refusal| refusal.at(path))?;
    }
    if merged.root == root {
        return Ok((merged.current, None));
    }
    let text = yaml::emit(&merged.root).ok_or_else(|| KubeconfigError::TooLarge { path: path.to_owned() })?;
    Ok((merged.current, Some(text)))
}

/// Reads and parses; a file that is missing is empty.
fn read_or_empty(path: &Path) -> Result<Node, KubeconfigError> {
    Ok(read(path)?.unwrap_or_else(Node::null))
}

/// Reads and parses; `None` if there is no such file.
fn read(path: &Path) -> Result<Option<Node>, KubeconfigError> {
    let Some(text) = read_file(path)? else { return Ok(None) };
    yaml::parse(&text).map(Some).map_err(|source| KubeconfigError::Syntax { path: path.to_owned(), source })
}

/// Reads a kubeconfig; `None` if there is no such file. What is in it is run by kubectl, so one that another user has put
/// where all may write is not read, as it is not written.
fn read_file(path: &Path) -> Result<Option<String>, KubeconfigError> {
    let file = Place::behind(path, Missing::Fail).and_then(|place| place.open(OFlags::RDONLY));
    let text = file.map_err(ReadError::from).and_then(|file| read_open_text(file, MAX_LEN));
    let error = match text {
        Ok(text) => return Ok(Some(text)),
        Err(error) => error,
    };
    let path = path.to_owned();
    match error {
        ReadError::Io(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        ReadError::Io(error) if error.kind() == io::ErrorKind::InvalidInput && is_refusal(&error) => {
            Err(KubeconfigError::NotAKubeconfig { path, reason: ReadError::NotRegular.to_string() })
        }
        ReadError::Io(source) => Err(KubeconfigError::Unreadable { path, source }),
        ReadError::TooLong(_) => Err(KubeconfigError::TooLarge { path }),
        ReadError::NotRegular | ReadError::NotText => {
            Err(KubeconfigError::NotAKubeconfig { path, reason: error.to_string() })
        }
    }
}

/// Names the contexts of clusters, in their order: the prefix and the cluster's name. Where that is the same
/// for several, all of those get their region as well, and where it still is, their account. One that was imported has neither
/// of its own, and says that it was.
#[must_use]
pub fn context_names(prefix: &str, clusters: &[Cluster]) -> Vec<String> {
    // How much of a cluster its name tells: itself, with its region, with its account.
    let mut levels = vec![0_u8; clusters.len()];
    loop {
        let names: Vec<String> = clusters
            .iter()
            .zip(&levels)
            .map(|(cluster, level)| {
                let Cluster { name, region, account, .. } = cluster;
                match (level, cluster.imported()) {
                    (0, _) => format!("{prefix}{name}"),
                    (1, None) => format!("{prefix}{name}-{region}"),
                    (1, Some(_)) => format!("{prefix}{name}-imported"),
                    (_, None) => format!("{prefix}{name}-{region}-{account}"),
                    (_, Some(_)) => format!("{prefix}{name}-imported-{region}"),
                }
            })
            .collect();
        let mut holders: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
        for (index, name) in names.iter().enumerate() {
            holders.entry(name).or_default().push(index);
        }
        let mut changed = false;
        for index in holders.into_values().filter(|holders| holders.len() > 1).flatten() {
            if levels[index] < 2 {
                levels[index] += 1;
                changed = true;
            }
        }
        if !changed {
            return numbered(names);
        }
    }
}

/// Numbers names that are still the same: one cluster given twice, or one called like another with its
/// region and account.
fn numbered(names: Vec<String>) -> Vec<String> {
    let mut taken = BTreeSet::new();
    let number = |name: String| {
        let mut numbered = name.clone();
        let mut number = 2;
        while !taken.insert(numbered.clone()) {
            numbered = format!("{name}-{number}");
            number += 1;
        }
        numbered
    };
    names.into_iter().map(number).collect()
}

/// Why a kubeconfig could not be brought up to date. It is then as it was before.
#[derive(Debug, thiserror::Error)]
pub enum KubeconfigError {
    /// The file is there and cannot be read.
    #[error("cannot read the kubeconfig `{}`", path.display())]
    Unreadable {
        path: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// The file, its folder or its lock cannot be written.
    #[error("cannot write the kubeconfig `{}`", path.display())]
    Unwritable {
        path: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// The file is larger than any kubeconfig should be, or would be with what is to be added.
    #[error("`{}` is, or would become, larger than {MAX_LEN} bytes, which is too large for a kubeconfig", path.display())]
    TooLarge { path: PathBuf },
    /// The file is neither YAML nor JSON.
    #[error("cannot parse the kubeconfig `{}`", path.display())]
    Syntax {
        path: PathBuf,
        /// What the parser says, with line and column.
        #[source]
        source: SyntaxError,
    },
    /// The file is not a kubeconfig, so nothing is written over it.
    #[error("`{}` is not a kubeconfig: {reason}", path.display())]
    NotAKubeconfig { path: PathBuf, reason: String },
    /// There is an entry of this name that is not this manager's.
    #[error("the kubeconfig `{}` has an entry `{name}` in `{section}` that belongs to {}", path.display(), owner_text(owner.as_deref()))]
    NameTaken {
        path: PathBuf,
        /// `clusters`, `users` or `contexts`.
        section: &'static str,
        name: String,
        /// The manager that it belongs to; `None`: it is not of this program.
        owner: Option<String>,
    },
    /// An entry of the same name is in another file that is read with this one, and would not be seen there any more.
    #[error("the kubeconfig `{}` has an entry `{name}` in `{section}`, and so has `{}`, which kubectl reads with it and would lead elsewhere", path.display(), other.display())]
    Shadowing {
        path: PathBuf,
        /// `clusters`, `users` or `contexts`.
        section: &'static str,
        name: String,
        /// The file that it is in as well.
        other: PathBuf,
    },
    /// Another process holds the lock file, or has left it behind.
    #[error("the kubeconfig `{}` is locked by `{}`{}", path.display(), lock.display(), holder_text(holder.as_deref()))]
    Locked {
        path: PathBuf,
        lock: PathBuf,
        /// Who has made it, if it was this program.
        holder: Option<Box<Holder>>,
        /// How long ago it was made.
        age: Option<Duration>,
    },
}

fn holder_text(holder: Option<&Holder>) -> String {
    match holder {
        None => String::new(),
        Some(holder) if holder.is_here() => format!(", made by process {}", holder.pid),
        Some(holder) => format!(", made by process {} on `{}`", holder.pid, holder.host),
    }
}

fn owner_text(owner: Option<&str>) -> String {
    owner.map_or_else(|| "someone else".to_owned(), |manager| format!("the manager `{manager}`"))
}

#[cfg(test)]
mod tests;
