//! Puts a manager's entries into a kubeconfig and keeps all others.
//!
//! Pure: a tree and an update in, a tree out. The time that it takes grows with the number of entries, not with its
//! square.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use super::{ContextEntry, Exec, KubeconfigError, MANAGER_FLAG, Server, Update, User, exec::ApiVersion};
use crate::{
    cluster::{Cluster, Imported},
    util::yaml::Node,
};

/// The extension by which entries of this program are known. kubectl keeps extensions when it edits a file.
const EXTENSION: &str = "autoheal-pa";

/// The key of a context's namespace, and in the extension that of the one that was imported.
const NAMESPACE: &str = "namespace";

/// The lists of a kubeconfig, and what their items hold besides a name.
pub(super) const SECTIONS: [(&str, &str); 3] = [("clusters", "cluster"), ("users", "user"), ("contexts", "context")];

/// A kubeconfig that is up to date.
#[derive(Debug)]
pub(super) struct Merged {
    /// The file's content, a mapping.
    pub(super) root: Node,
    pub(super) current: Option<String>,
}

/// Why a file is left as it is.
#[derive(Debug, PartialEq)]
pub(super) enum Refusal {
    NotAKubeconfig(String),
    NameTaken { section: &'static str, name: String, owner: Option<String> },
    Shadowing { section: &'static str, name: String, other: PathBuf },
}

impl Refusal {
    /// Names the file.
    pub(super) fn at(self, path: &Path) -> KubeconfigError {
        let path = path.to_owned();
        match self {
            Self::NotAKubeconfig(reason) => KubeconfigError::NotAKubeconfig { path, reason },
            Self::NameTaken { section, name, owner } => KubeconfigError::NameTaken { path, section, name, owner },
            Self::Shadowing { section, name, other } => KubeconfigError::Shadowing { path, section, name, other },
        }
    }
}

/// Merges an update into the content of a file; null stands for a file without any.
pub(super) fn merge(root: Node, update: &Update<'_>) -> Result<Merged, Refusal> {
    let mut root = kubeconfig(root)?;
    let owners = Owners::of(&root);
    let mut own_file = true;
    let mut former_contexts = Vec::new();
    let mut context_names = Vec::new();
    let new_names: BTreeSet<&str> = update.contexts.iter().map(|entry| entry.name.as_str()).collect();
    for (section, kind) in SECTIONS {
        let (ours, mut items): (Vec<_>, Vec<_>) =
            items(&root, section)?.iter().cloned().partition(|item| owners.owner(item, kind) == Some(update.manager));
        own_file &= items.iter().all(|item| owners.owner(item, kind).is_some());
        let others: BTreeMap<&str, &Node> = items.iter().filter_map(|item| Some((name(item)?, item))).collect();
        for entry in update.contexts.iter().filter(|entry| has(entry, kind)) {
            if let Some(taken) = others.get(entry.name.as_str()) {
                let owner = owners.owner(taken, kind).map(ToOwned::to_owned);
                return Err(Refusal::NameTaken { section, name: entry.name.clone(), owner });
            }
        }
        if update.keeps_others {
            let is_new = |item: &&Node| name(item).is_some_and(|name| new_names.contains(name));
            items.extend(ours.iter().filter(|item| !is_new(item)).cloned());
        }
        let old: BTreeMap<&str, &Node> = ours.iter().filter_map(|item| Some((name(item)?, item))).collect();
        let new = update.contexts.iter().filter(|entry| has(entry, kind));
        items.extend(new.map(|entry| item(kind, entry, update.manager, old.get(entry.name.as_str()).copied())));
        if section == "contexts" {
            former_contexts = ours.iter().filter_map(name).map(ToOwned::to_owned).collect();
            context_names = items.iter().filter_map(name).map(ToOwned::to_owned).collect();
        }
        // An empty list may also be null or missing; that is no reason to touch the file.
        if !items.is_empty() || root.get(section).is_some_and(|node| !node.is_null()) {
            root.set(section, Node::sequence(items));
        }
    }
    let old = root.get("current-context").and_then(Node::as_str).filter(|name| !name.is_empty());
    let current = current_context(old, update, own_file, &former_contexts, &context_names);
    if old != current.as_deref() {
        root.set("current-context", Node::text(current.clone().unwrap_or_default()));
    }
    Ok(Merged { root, current })
}

/// Tells whether there is an item of a kind for a context: users of the user's own stay where they are.
fn has(entry: &ContextEntry, kind: &str) -> bool {
    kind != "user" || matches!(entry.user, User::Own(_))
}

/// Refuses entries that stand before others of their names, in a file that kubectl reads after this one: whatever names them
/// there would be led elsewhere, with its credentials. What is the same in both, or is this manager's own in both, does no harm.
pub(super) fn refuse_shadowing(root: &Node, manager: &str, path: &Path, other: &Node) -> Result<(), Refusal> {
    let owners = Owners::of(other);
    for (section, kind) in SECTIONS {
        let theirs = items(other, section)?.iter().filter(|item| owners.owner(item, kind) != Some(manager));
        let theirs: BTreeMap<&str, &Node> = theirs.filter_map(|item| Some((name(item)?, item))).collect();
        let ours = items(root, section)?.iter().filter_map(|item| Some((name(item)?, item)));
        let mut shadowing = ours.filter(|(name, item)| theirs.get(name).is_some_and(|other| other != item));
        if let Some((name, _)) = shadowing.next() {
            return Err(Refusal::Shadowing { section, name: name.to_owned(), other: path.to_owned() });
        }
    }
    Ok(())
}

/// Names the contexts in a file that need a manager: its own, and those that users have made for its users.
pub(super) fn contexts_of(root: &Node, manager: &str) -> Result<Vec<String>, Refusal> {
    let owners = Owners::of(root);
    let is_of = |user: &&Node| owners.owner(user, "user") == Some(manager) || served_by(user) == Some(manager);
    let users: BTreeSet<&str> = items(root, "users")?.iter().filter(is_of).filter_map(name).collect();
    let needs_it = |context: &&Node| {
        let user = context.get("context").and_then(|content| content.get("user")?.as_str());
        owners.owner(context, "context") == Some(manager) || user.is_some_and(|user| users.contains(user))
    };
    Ok(items(root, "contexts")?.iter().filter(needs_it).filter_map(name).map(ToOwned::to_owned).collect())
}

/// Returns what users of a manager have kubectl run, each program once.
pub(super) fn plugins_of(root: &Node, manager: &str) -> Result<Vec<Exec>, Refusal> {
    let mut plugins: Vec<Exec> = Vec::new();
    for plugin in execs_of(root, manager)? {
        if plugins.iter().all(|other| other.command != plugin.command) {
            plugins.push(plugin);
        }
    }
    Ok(plugins)
}

/// Returns what users of a manager have kubectl run.
pub(super) fn execs_of(root: &Node, manager: &str) -> Result<Vec<Exec>, Refusal> {
    let owners = Owners::of(root);
    let users = items(root, "users")?.iter().filter(|user| owners.owner(user, "user") == Some(manager));
    Ok(users.filter_map(|user| read_exec(user.get("user")?.get("exec")?)).collect())
}

/// Names all contexts in a file.
pub(super) fn contexts(root: &Node) -> Result<BTreeSet<&str>, Refusal> {
    Ok(items(root, "contexts")?.iter().filter_map(name).collect())
}

/// Returns one of the lists.
fn items<'a>(root: &'a Node, section: &str) -> Result<&'a [Node], Refusal> {
    match root.get(section) {
        None => Ok(&[]),
        Some(node) if node.is_null() => Ok(&[]),
        Some(node) => node.as_sequence().ok_or_else(|| Refusal::NotAKubeconfig(format!("`{section}` is not a list"))),
    }
}

/// Makes sure that this is a kubeconfig, or nothing at all.
fn kubeconfig(root: Node) -> Result<Node, Refusal> {
    let refusal = |reason: &str| Refusal::NotAKubeconfig(reason.to_owned());
    let mut root = if root.is_null() { Node::mapping([]) } else { root };
    let entries = root.as_mapping().ok_or_else(|| refusal("it does not hold a mapping"))?;
    // What stands behind it would win over what is set, to some readers.
    if root.merged().next().is_some() {
        return Err(refusal("its top level has `<<`, which not every reader understands in the same way"));
    }
    let is_known = entries.is_empty()
        || root.get("kind").is_some()
        || SECTIONS.iter().any(|(section, _)| root.get(section).is_some());
    if !is_known {
        return Err(refusal("it has no `kind`"));
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

fn name(item: &Node) -> Option<&str> {
    item.get("name")?.as_str()
}

/// Who the entries of a file belong to. Tools that write it anew may drop what they do not know, extensions first of
/// all; such entries are known by what they say, where cluster, user and context of a name all say it: one alone may be
/// what the user has made of ours.
pub(super) struct Owners {
    /// Names of which all three entries are there, and the manager that the user's plugin asks.
    managers: BTreeMap<String, String>,
}

impl Owners {
    pub(super) fn of(root: &Node) -> Self {
        let of = |section| items(root, section).unwrap_or_default().iter();
        let names = |section, kind: &'static str| -> BTreeSet<&str> {
            of(section).filter(|item| says_so(item, kind)).filter_map(name).collect()
        };
        let (clusters, contexts) = (names("clusters", "cluster"), names("contexts", "context"));
        let whole = of("users").filter_map(|user| Some((name(user)?, served_by(user)?)));
        let whole = whole.filter(|(name, _)| clusters.contains(name) && contexts.contains(name));
        Self { managers: whole.map(|(name, manager)| (name.to_owned(), manager.to_owned())).collect() }
    }

    /// Returns the manager that an entry belongs to, if it is of this program.
    pub(super) fn owner<'a>(&'a self, item: &'a Node, kind: &str) -> Option<&'a str> {
        if let Some(ours) = extension(item.get(kind)?) {
            return ours.get("extension")?.get("manager")?.as_str();
        }
        let manager = self.managers.get(name(item)?)?;
        let is_ours = if kind == "user" { served_by(item) == Some(manager) } else { says_so(item, kind) };
        is_ours.then_some(manager.as_str())
    }
}

/// Returns what this program has noted in an entry of its own.
fn extension(content: &Node) -> Option<&Node> {
    let extensions = content.get("extensions").and_then(Node::as_sequence).unwrap_or_default();
    extensions.iter().find(|extension| name(extension) == Some(EXTENSION))
}

/// Tells whether a cluster or a context says what those of this program say.
fn says_so(item: &Node, kind: &str) -> bool {
    let text = |key: &str| item.get(kind).and_then(|content| content.get(key)?.as_str());
    let is_local = |url: &str| ["https://127.0.0.1:", "http://127.0.0.1:"].iter().any(|local| url.starts_with(local));
    match kind {
        "cluster" => [text("server"), text("proxy-url")].into_iter().flatten().any(is_local),
        _ => name(item).is_some_and(|name| text("cluster") == Some(name) && text("user") == Some(name)),
    }
}

/// Returns the manager that a user's plugin asks, if that is this program's.
fn served_by(user: &Node) -> Option<&str> {
    let args = user.get("user")?.get("exec")?.get("args")?.as_sequence()?;
    let (first, options) = args.split_first()?;
    let dir = options.iter().find_map(|option| option.as_str()?.strip_prefix(MANAGER_FLAG)?.strip_prefix('='))?;
    Path::new(dir).file_name().filter(|_| first.as_str() == Some("token"))?.to_str()
}

/// Makes an entry of one of the lists.
fn item(kind: &str, entry: &ContextEntry, manager: &str, old: Option<&Node>) -> Node {
    let mut extension = vec![("manager", Node::text(manager))];
    let mut content = match (kind, &entry.user) {
        ("cluster", _) => cluster(&entry.cluster, &entry.server),
        ("user", User::Own(run)) => vec![("exec", exec(run))],
        (_, User::Own(_)) => vec![("cluster", Node::text(&entry.name)), ("user", Node::text(&entry.name))],
        (_, User::Theirs(name)) => vec![("cluster", Node::text(&entry.name)), ("user", Node::text(name))],
    };
    if kind == "context" {
        let theirs = entry.cluster.imported().and_then(|imported| imported.namespace.as_ref()).map(Node::text);
        extension.extend(theirs.clone().map(|namespace| (NAMESPACE, namespace)));
        content.extend(namespace(old, theirs).map(|namespace| (NAMESPACE, namespace)));
    }
    let extension = Node::mapping([("name", Node::text(EXTENSION)), ("extension", Node::mapping(extension))]);
    content.push(("extensions", Node::sequence([extension])));
    Node::mapping([("name", Node::text(&entry.name)), (kind, Node::mapping(content))])
}

/// Says where a cluster is, and how it is known.
fn cluster(cluster: &Cluster, server: &Server) -> Vec<(&'static str, Node)> {
    let imported = cluster.imported();
    let path = imported.map(|imported| imported.path.as_str()).unwrap_or_default();
    let name = ("tls-server-name", Node::text(cluster.server_name()));
    let mut content = match server {
        Server::Tunnel(port) => vec![("server", Node::text(format!("https://127.0.0.1:{port}{path}"))), name],
        Server::LocalTls { port, .. } => vec![("server", Node::text(format!("https://127.0.0.1:{port}{path}")))],
        Server::Proxy(address) => {
            let mut content = vec![
                ("server", Node::text(format!("{}{path}", cluster.endpoint.url()))),
                ("proxy-url", Node::text(format!("http://{address}"))),
            ];
            // One that is not the host's own is needed this way, too.
            content.extend((cluster.server_name() != cluster.endpoint.host).then_some(name));
            content
        }
    };
    let file = imported.and_then(|imported| imported.authority_file.as_ref());
    match (server, file, &cluster.certificate_authority) {
        (Server::LocalTls { authority, .. }, ..) => {
            content.push(("certificate-authority-data", Node::text(&**authority)));
        }
        (_, Some(file), _) => content.push(("certificate-authority", Node::text(file))),
        (_, None, Some(data)) => content.push(("certificate-authority-data", Node::text(data))),
        (_, None, None) => {}
    }
    if let Some(Imported { disable_compression: true, .. }) = imported {
        content.push(("disable-compression", Node::bare("true")));
    }
    content
}

/// Returns the namespace that a context of ours is to have: what the user has made of it, else that of the context that it
/// was imported from, which may be another by now.
fn namespace(old: Option<&Node>, theirs: Option<Node>) -> Option<Node> {
    let Some(content) = old.and_then(|old| old.get("context")) else { return theirs };
    let written = extension(content).and_then(|ours| ours.get("extension")?.get(NAMESPACE));
    let now = content.get(NAMESPACE);
    if now == written { theirs } else { now.cloned() }
}

/// Reads what [`exec`] writes.
fn read_exec(exec: &Node) -> Option<Exec> {
    let text = |node: &Node| node.as_str().map(ToOwned::to_owned);
    let items = |key| exec.get(key).and_then(Node::as_sequence).unwrap_or_default().iter();
    let variable = |item: &Node| Some((text(item.get("name")?)?, text(item.get("value")?)?));
    Some(Exec {
        command: text(exec.get("command")?)?,
        args: items("args").filter_map(text).collect(),
        env: items("env").filter_map(variable).collect(),
    })
}

fn exec(exec: &Exec) -> Node {
    let env =
        exec.env.iter().map(|(name, value)| Node::mapping([("name", Node::text(name)), ("value", Node::text(value))]));
    Node::mapping([
        ("apiVersion", Node::text(ApiVersion::default().as_str())),
        ("command", Node::text(&exec.command)),
        ("args", Node::sequence(exec.args.iter().map(Node::text))),
        ("env", Node::sequence(env)),
        // Nothing is ever asked at the terminal.
        ("interactiveMode", Node::text("Never")),
        ("provideClusterInfo", Node::bare("false")),
    ])
}
