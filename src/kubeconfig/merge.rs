//! Puts a manager's entries into a kubeconfig and keeps all others.
//!
//! Pure: a tree and an update in, a tree out.

use std::path::Path;

use super::{
    ContextEntry, Exec, KubeconfigError, Server, Update,
    exec::ApiVersion,
    yaml::{Mapping, Node},
};

/// The extension by which entries of this program are known. kubectl keeps extensions when it edits a file.
const EXTENSION: &str = "autoheal-pa";

/// The lists of a kubeconfig, and what their items hold besides a name.
const SECTIONS: [(&str, &str); 3] = [("clusters", "cluster"), ("users", "user"), ("contexts", "context")];

/// A kubeconfig that is up to date.
#[derive(Debug)]
pub(super) struct Merged {
    /// The file's content.
    pub(super) root: Mapping,
    /// Its current context.
    pub(super) current: Option<String>,
}

/// Why a file is left as it is.
#[derive(Debug, PartialEq)]
pub(super) enum Refusal {
    NotAKubeconfig(String),
    NameTaken { section: &'static str, name: String, owner: Option<String> },
}

impl Refusal {
    /// Names the file.
    pub(super) fn at(self, path: &Path) -> KubeconfigError {
        let path = path.to_owned();
        match self {
            Self::NotAKubeconfig(reason) => KubeconfigError::NotAKubeconfig { path, reason },
            Self::NameTaken { section, name, owner } => KubeconfigError::NameTaken { path, section, name, owner },
        }
    }
}

/// Merges an update into the content of a file; null stands for a file without any.
pub(super) fn merge(root: Node, update: &Update<'_>) -> Result<Merged, Refusal> {
    let mut root = kubeconfig(root)?;
    let mut own_file = true;
    let mut former_contexts = Vec::new();
    let mut context_names = Vec::new();
    for (section, kind) in SECTIONS {
        let items = match root.get(section) {
            None => Vec::new(),
            Some(node) if node.is_null() => Vec::new(),
            Some(Node::Sequence(items)) => items.clone(),
            Some(_) => return Err(Refusal::NotAKubeconfig(format!("`{section}` is not a list"))),
        };
        let (ours, mut items): (Vec<_>, Vec<_>) =
            items.into_iter().partition(|item| owner(item, kind) == Some(update.manager));
        own_file &= items.iter().all(|item| owner(item, kind).is_some());
        for entry in update.contexts {
            if let Some(taken) = items.iter().find(|item| name(item) == Some(&entry.name)) {
                let owner = owner(taken, kind).map(ToOwned::to_owned);
                return Err(Refusal::NameTaken { section, name: entry.name.clone(), owner });
            }
        }
        for entry in update.contexts {
            let old = ours.iter().find(|item| name(item) == Some(&entry.name));
            items.push(item(kind, entry, update.manager, old));
        }
        if section == "contexts" {
            former_contexts = ours.iter().filter_map(name).map(ToOwned::to_owned).collect();
            context_names = items.iter().filter_map(name).map(ToOwned::to_owned).collect();
        }
        // An empty list may also be null or missing; that is no reason to touch the file.
        if !items.is_empty() || root.get(section).is_some_and(|node| !node.is_null()) {
            root.set(section, Node::Sequence(items));
        }
    }
    let old = root.get("current-context").and_then(Node::as_str).filter(|name| !name.is_empty());
    let current = current_context(old, update, own_file, &former_contexts, &context_names);
    if old != current.as_deref() {
        root.set("current-context", Node::text(current.clone().unwrap_or_default()));
    }
    Ok(Merged { root, current })
}

/// Makes sure that this is a kubeconfig, or nothing at all.
fn kubeconfig(root: Node) -> Result<Mapping, Refusal> {
    let mut root = match root {
        Node::Mapping(mapping) => mapping,
        node if node.is_null() => Mapping::default(),
        Node::Bare(_) | Node::Text(_) | Node::Sequence(_) => {
            return Err(Refusal::NotAKubeconfig("it does not hold a mapping".to_owned()));
        }
    };
    let is_known =
        root.0.is_empty() || root.get("kind").is_some() || SECTIONS.iter().any(|(key, _)| root.get(key).is_some());
    if !is_known {
        return Err(Refusal::NotAKubeconfig("it has no `kind`".to_owned()));
    }
    for (key, expected) in [("apiVersion", "v1"), ("kind", "Config")] {
        match root.get(key) {
            Some(node) if node.as_str() == Some(expected) => {}
            Some(node) if !node.is_null() => {
                return Err(Refusal::NotAKubeconfig(format!("its `{key}` is not `{expected}`")));
            }
            // client-go fills in what is missing.
            _ => root.set(key, Node::text(expected)),
        }
    }
    Ok(root)
}

/// Decides which context is the current one.
fn current_context(
    current: Option<&str>,
    update: &Update<'_>,
    own_file: bool,
    former: &[String],
    there: &[String],
) -> Option<String> {
    let first = || update.contexts.first().map(|entry| entry.name.clone());
    let is = |name: &String| Some(name.as_str()) == current;
    let is_there = there.iter().any(is);
    let is_ours = update.contexts.iter().any(|entry| is(&entry.name));
    if update.set_current && !is_ours && first().is_some() {
        first()
    } else if own_file && !is_there {
        first().or_else(|| there.first().cloned())
    } else if !is_there && former.iter().any(is) {
        None
    } else {
        current.map(ToOwned::to_owned)
    }
}

/// Returns the name of an entry.
fn name(item: &Node) -> Option<&str> {
    item.get("name")?.as_str()
}

/// Returns the manager that an entry belongs to, if it is of this program.
fn owner<'a>(item: &'a Node, kind: &str) -> Option<&'a str> {
    let extensions = item.get(kind)?.get("extensions")?.as_sequence()?;
    extensions.iter().find(|extension| name(extension) == Some(EXTENSION))?.get("extension")?.get("manager")?.as_str()
}

/// Makes an entry of one of the lists.
fn item(kind: &str, entry: &ContextEntry, manager: &str, old: Option<&Node>) -> Node {
    let extension = Node::mapping([
        ("name", Node::text(EXTENSION)),
        ("extension", Node::mapping([("manager", Node::text(manager))])),
    ]);
    let mut content = match kind {
        "cluster" => {
            let mut content = match entry.server {
                Server::Tunnel(port) => vec![
                    ("server", Node::text(format!("https://127.0.0.1:{port}"))),
                    ("tls-server-name", Node::text(&entry.cluster.endpoint.host)),
                ],
                Server::Proxy(port) => vec![
                    ("server", Node::text(entry.cluster.endpoint.url())),
                    ("proxy-url", Node::text(format!("http://127.0.0.1:{port}"))),
                ],
            };
            content.push(("certificate-authority-data", Node::text(&entry.cluster.certificate_authority)));
            content
        }
        "user" => vec![("exec", exec(&entry.exec))],
        _ => vec![("cluster", Node::text(&entry.name)), ("user", Node::text(&entry.name))],
    };
    if kind == "context"
        && let Some(namespace) = old.and_then(|old| old.get(kind)?.get("namespace"))
    {
        content.push(("namespace", namespace.clone()));
    }
    content.push(("extensions", Node::Sequence(vec![extension])));
    let content = content.into_iter().map(|(key, value)| (Node::Bare(key.to_owned()), value)).collect();
    Node::mapping([("name", Node::text(&entry.name)), (kind, Node::Mapping(Mapping(content)))])
}

fn exec(exec: &Exec) -> Node {
    let env =
        exec.env.iter().map(|(name, value)| Node::mapping([("name", Node::text(name)), ("value", Node::text(value))]));
    Node::mapping([
        ("apiVersion", Node::text(ApiVersion::default().as_str())),
        ("command", Node::text(&exec.command)),
        ("args", Node::Sequence(exec.args.iter().map(Node::text).collect())),
        ("env", Node::Sequence(env.collect())),
        // Nothing is ever asked at the terminal.
        ("interactiveMode", Node::text("Never")),
        ("provideClusterInfo", Node::Bare("false".to_owned())),
    ])
}
