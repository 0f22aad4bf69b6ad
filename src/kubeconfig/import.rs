//! Contexts of the user's own kubeconfigs, whose clusters are to be reached through a tunnel: kops's, or any.
//!
//! Files are merged as kubectl merges them: of entries with one name the first counts, files that are missing do not, and paths
//! are relative to the file that they stand in.
//!
//! Invariants: of a user nothing is read but its name, and whether it has a client certificate; what cannot be proved by TLS is refused.

use std::{
    io,
    path::{Path, PathBuf},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use http::Uri;
use rustls::pki_types::ServerName;

use super::{KubeconfigError, merge::Owners, read};
use crate::{
    cluster::{Cluster, Destination, Imported, Origin},
    util::{
        read::{self as files, ReadError},
        yaml::{Content, Node},
    },
};

/// Largest file of a certificate authority that is read, in bytes. Those of Linux distributions have some 200 KiB.
const MAX_AUTHORITY_LEN: u64 = 4 << 20;

/// The port of a server whose URL has none.
const HTTPS_PORT: u16 = 443;

/// What is made of a context.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Import {
    /// The context's name.
    pub name: String,
    pub endpoint: Destination,
    /// PEM in base64; `None`: what the system trusts, as the cluster has no authority of its own.
    pub certificate_authority: Option<String>,
    pub imported: Imported,
    /// kubectl reaches the cluster through a proxy otherwise.
    pub has_proxy: bool,
}

impl Import {
    /// Returns what a cluster was made of, if it was imported.
    #[must_use]
    pub fn of(cluster: &Cluster) -> Option<Self> {
        Some(Self {
            name: cluster.name.clone(),
            endpoint: cluster.endpoint.clone(),
            certificate_authority: cluster.certificate_authority.clone(),
            imported: cluster.imported()?.clone(),
            has_proxy: false,
        })
    }

    /// Returns the cluster, as it is known to bastions of a region and an account.
    #[must_use]
    pub fn cluster(self, region: &str, account: &str) -> Cluster {
        Cluster {
            id: format!("context/{}", self.name),
            name: self.name,
            region: region.to_owned(),
            account: account.to_owned(),
            endpoint: self.endpoint,
            certificate_authority: self.certificate_authority,
            vpc: None,
            origin: Origin::Imported(self.imported),
        }
    }
}

/// Why a context cannot be imported.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// A file is there and cannot be read.
    #[error(transparent)]
    File(KubeconfigError),
    #[error("there is no kubeconfig to import contexts from: {} not exist", are_not(files))]
    NoFile { files: Vec<PathBuf> },
    #[error("there is no context `{name}` in {}", list(files))]
    NoContext {
        name: String,
        /// Where was looked.
        files: Vec<PathBuf>,
        /// The contexts that there are.
        known: Vec<String>,
    },
    #[error("cannot import the context `{name}`")]
    Unusable {
        name: String,
        #[source]
        reason: Unusable,
    },
}

/// What is wrong with a context or its cluster.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    #[error("it is one that this program has written, for the manager `{0}`")]
    Ours(String),
    #[error("it names no {0}")]
    Unnamed(&'static str),
    #[error("there is no {kind} `{name}`, which it names")]
    Missing { kind: &'static str, name: String },
    #[error(
        "its cluster has `insecure-skip-tls-verify`, and without a certificate nothing proves where a tunnel leads"
    )]
    Insecure,
    #[error("its cluster has no `server`")]
    NoServer,
    #[error("its cluster's `server` is plain http, for which a bastion could read and change everything")]
    PlainHttp,
    #[error("its cluster's `server` is not an https URL with a host")]
    NotAUrl,
    #[error("its cluster's `tls-server-name` is neither a name nor an address")]
    NotAName,
    #[error("`{0}` is not text")]
    NotText(&'static str),
    #[error("cannot read its certificate authority `{}`", path.display())]
    Authority {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

fn list(files: &[PathBuf]) -> String {
    files.iter().map(|path| format!("`{}`", path.display())).collect::<Vec<_>>().join(" and ")
}

fn are_not(files: &[PathBuf]) -> String {
    format!("{} {}", list(files), if files.len() == 1 { "does" } else { "do" })
}

/// Reads contexts of these names from files, as kubectl would.
///
/// # Errors
/// See [`ImportError`].
pub fn import(files: &[PathBuf], names: &[String]) -> Result<Vec<Import>, ImportError> {
    let merged = Merged::read(files)?;
    names.iter().map(|name| merged.import(name)).collect()
}

/// Imports all contexts of one file, and checks what is made of them.
#[cfg(any(fuzzing, test))]
pub(super) fn look(root: Node) {
    let files = [PathBuf::from("/nonexistent/config")];
    let merged = Merged { files: &files, roots: vec![(&files[0], root)] };
    for import in merged.known().iter().filter_map(|name| merged.import(name).ok()) {
        let (url, path) = (import.endpoint.url(), &import.imported.path);
        let (endpoint, same) = server(Some(&format!("{url}{path}"))).unwrap_or_else(|_| panic!("{url}{path}"));
        assert_eq!((&endpoint, &same), (&import.endpoint, path));
        assert!(!import.imported.user.is_empty() && !import.imported.server_name.is_empty());
        assert_eq!(Import::of(&import.clone().cluster("", "")), Some(Import { has_proxy: false, ..import }));
    }
}

/// Files that kubectl reads as one.
struct Merged<'a> {
    files: &'a [PathBuf],
    /// Those that are there, in order.
    roots: Vec<(&'a Path, Node)>,
}

impl<'a> Merged<'a> {
    fn read(files: &'a [PathBuf]) -> Result<Self, ImportError> {
        let mut roots = Vec::new();
        for path in files {
            let root = read(path).map_err(ImportError::File)?;
            let Some(root) = root else { continue };
            let is_one = root.as_mapping().is_some() || root.is_null();
            if !is_one {
                let reason = "it does not hold a mapping".to_owned();
                return Err(ImportError::File(KubeconfigError::NotAKubeconfig { path: path.clone(), reason }));
            }
            roots.push((path.as_path(), root));
        }
        if roots.is_empty() { Err(ImportError::NoFile { files: files.to_vec() }) } else { Ok(Self { files, roots }) }
    }

    /// Returns the first item of a section with this name, and the file that it is in.
    fn find(&self, section: &str, name: &str) -> Option<(&Path, &Node, &Node)> {
        self.roots.iter().find_map(|(path, root)| {
            let mut items = root.get(section)?.as_sequence()?.iter();
            items.find(|item| named(item) == Some(name)).map(|item| (*path, root, item))
        })
    }

    /// Names the contexts that may be imported.
    fn known(&self) -> Vec<String> {
        let contexts = self.roots.iter().filter_map(|(_, root)| Some((root, root.get("contexts")?.as_sequence()?)));
        let theirs = contexts.flat_map(|(root, contexts)| {
            let owners = Owners::of(root);
            let is_theirs = |context: &&Node| owners.owner(context, "context").is_none();
            contexts.iter().filter(is_theirs).filter_map(named).map(ToOwned::to_owned).collect::<Vec<_>>()
        });
        let mut names: Vec<_> = theirs.collect();
        names.sort();
        names.dedup();
        names
    }

    fn import(&self, name: &str) -> Result<Import, ImportError> {
        let Some((_, root, context)) = self.find("contexts", name) else {
            let known = self.known();
            return Err(ImportError::NoContext { name: name.to_owned(), files: self.files.to_vec(), known });
        };
        self.usable(name, root, context).map_err(|reason| ImportError::Unusable { name: name.to_owned(), reason })
    }

    fn usable(&self, name: &str, root: &Node, context: &Node) -> Result<Import, Unusable> {
        refuse_own(root, context, "context")?;
        let content = context.get("context");
        let cluster_name = text(content, "cluster")?.ok_or(Unusable::Unnamed("cluster"))?;
        let user = text(content, "user")?.ok_or(Unusable::Unnamed("user"))?;
        let namespace = text(content, "namespace")?;
        let missing = |kind, name: &str| Unusable::Missing { kind, name: name.to_owned() };
        let (path, root, cluster) = self.find("clusters", cluster_name).ok_or(missing("cluster", cluster_name))?;
        let (_, _, shown) = self.find("users", user).ok_or(missing("user", user))?;
        let has = |key: &str| shown.get("user").and_then(|user| user.get(key)).is_some_and(|node| !node.is_null());
        let client_certificate = has("client-certificate") || has("client-certificate-data");
        refuse_own(root, cluster, "cluster")?;
        let cluster = cluster.get("cluster");
        if is_true(cluster, "insecure-skip-tls-verify") {
            return Err(Unusable::Insecure);
        }
        let (endpoint, url_path) = server(text(cluster, "server")?)?;
        let server_name = text(cluster, "tls-server-name")?.unwrap_or(&endpoint.host).to_owned();
        if ServerName::try_from(server_name.as_str()).is_err() {
            return Err(Unusable::NotAName);
        }
        let authority = authority(cluster, path.parent().unwrap_or(path))?;
        Ok(Import {
            name: name.to_owned(),
            endpoint,
            certificate_authority: authority.data,
            imported: Imported {
                user: user.to_owned(),
                namespace: namespace.map(ToOwned::to_owned),
                server_name,
                path: url_path,
                authority_file: authority.file,
                client_certificate,
                disable_compression: is_true(cluster, "disable-compression"),
            },
            has_proxy: text(cluster, "proxy-url")?.is_some(),
        })
    }
}

/// Refuses what this program has written: a tunnel to a tunnel.
fn refuse_own(root: &Node, item: &Node, kind: &str) -> Result<(), Unusable> {
    match Owners::of(root).owner(item, kind) {
        Some(manager) => Err(Unusable::Ours(manager.to_owned())),
        None => Ok(()),
    }
}

/// Reads a URL. The path, without a slash at the end, goes on to whoever is behind it.
fn server(url: Option<&str>) -> Result<(Destination, String), Unusable> {
    let uri: Uri = url.ok_or(Unusable::NoServer)?.parse().map_err(|_| Unusable::NotAUrl)?;
    let authority = uri.authority().ok_or(Unusable::NotAUrl)?;
    match uri.scheme_str() {
        Some("https") => {}
        Some("http") => return Err(Unusable::PlainHttp),
        Some(_) | None => return Err(Unusable::NotAUrl),
    }
    if authority.as_str().contains('@') || uri.query().is_some() {
        return Err(Unusable::NotAUrl);
    }
    let host = authority.host().trim_matches(['[', ']']);
    let port = match authority.as_str().strip_prefix(authority.host()) {
        Some("") => HTTPS_PORT,
        Some(port) => port.trim_start_matches(':').parse().ok().filter(|port| *port > 0).ok_or(Unusable::NotAUrl)?,
        None => return Err(Unusable::NotAUrl),
    };
    if ServerName::try_from(host).is_err() {
        return Err(Unusable::NotAUrl);
    }
    Ok((Destination { host: host.to_owned(), port }, uri.path().trim_end_matches('/').to_owned()))
}

#[derive(Default)]
struct Authority {
    /// PEM in base64.
    data: Option<String>,
    /// The file that it is in.
    file: Option<String>,
}

/// Reads the authority that a cluster has, as data or in a file. As for kubectl the data wins.
fn authority(cluster: Option<&Node>, dir: &Path) -> Result<Authority, Unusable> {
    if let Some(data) = text(cluster, "certificate-authority-data")? {
        return Ok(Authority { data: Some(data.to_owned()), file: None });
    }
    let Some(file) = text(cluster, "certificate-authority")? else { return Ok(Authority::default()) };
    let path = dir.join(file);
    let pem = files::read(&path, MAX_AUTHORITY_LEN).map_err(|error| Unusable::Authority {
        path: path.clone(),
        source: match error {
            ReadError::Io(source) => source,
            error @ (ReadError::NotRegular | ReadError::TooLong(_) | ReadError::NotText) => io::Error::other(error),
        },
    })?;
    // A path that no kubeconfig can name is not named.
    Ok(Authority { data: Some(STANDARD.encode(pem)), file: path.to_str().map(ToOwned::to_owned) })
}

fn named(item: &Node) -> Option<&str> {
    item.get("name")?.as_str()
}

/// Returns the text under a key, if there is one that is not empty. What is there and is no text is not passed over.
fn text<'a>(content: Option<&'a Node>, key: &'static str) -> Result<Option<&'a str>, Unusable> {
    match content.and_then(|content| content.get(key)).filter(|node| !node.is_null()) {
        None => Ok(None),
        Some(node) => Ok(Some(node.as_str().ok_or(Unusable::NotText(key))?).filter(|text| !text.is_empty())),
    }
}

/// Tells whether a key has anything but a word for no, in either version of YAML.
fn is_true(content: Option<&Node>, key: &str) -> bool {
    match content.and_then(|content| content.get(key)) {
        None => false,
        Some(node) if node.is_null() => false,
        Some(Node { content: Content::Bare(word), tag: None, .. }) => {
            !matches!(word.to_ascii_lowercase().as_str(), "false" | "no" | "off" | "n")
        }
        Some(_) => true,
    }
}

#[cfg(test)]
mod tests;
