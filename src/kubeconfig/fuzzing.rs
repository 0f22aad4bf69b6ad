//! What has to hold for any file that a kubeconfig is merged into: the body of the fuzz target `kubeconfig`.
//!
//! Built for the fuzzer and for unit tests only. Leaves out files and locks.

use std::sync::LazyLock;

use super::{
    ContextEntry, Exec, Server, Update,
    merge::{self, Refusal},
    yaml::{self, Mapping, Node},
};
use crate::cluster::{Cluster, Destination};

/// The manager whose entries are merged.
const MANAGER: &str = "default";

/// The lists of a kubeconfig, and what their items hold besides a name.
const SECTIONS: [(&str, &str); 3] = [("clusters", "cluster"), ("users", "user"), ("contexts", "context")];

static CONTEXTS: LazyLock<[ContextEntry; 2]> = LazyLock::new(|| [context("no", 10100), context("b", 10101)]);

fn context(name: &str, port: u16) -> ContextEntry {
    let cluster = Cluster {
        name: name.to_owned(),
        region: "us-east-1".to_owned(),
        account: "123456789012".to_owned(),
        arn: format!("arn:aws:eks:us-east-1:123456789012:cluster/{name}"),
        endpoint: Destination { host: format!("{name}.gr7.us-east-1.eks.amazonaws.com"), port: 443 },
        certificate_authority: "TFMwdA==".to_owned(),
        token_name: name.to_owned(),
    };
    let exec = Exec {
        command: "/opt/bin/autoheal-pa".to_owned(),
        args: vec!["token".to_owned(), format!("--cluster-name={name}")],
        env: vec![("AWS_PROFILE".to_owned(), "no".to_owned())],
    };
    ContextEntry { name: format!("pa-{name}"), cluster, server: Server::Tunnel(port), exec }
}

/// Merges contexts, which the first byte chooses, into a file, and takes them out again.
pub fn kubeconfig(data: &[u8]) {
    let Some((&choice, text)) = data.split_first() else { return };
    let Ok(text) = std::str::from_utf8(text) else { return };
    let Ok(root) = yaml::parse(text) else { return };
    // Only a mapping is ever written.
    if root.as_mapping().is_some() {
        assert_same_meaning(text, &root);
    }

    let contexts = &CONTEXTS[usize::from(choice & 1)..][..usize::from(choice >> 1 & 1) + usize::from(!choice & 1)];
    let update = Update { manager: MANAGER, contexts, set_current: choice >> 2 & 1 == 1 };
    let merged = match merge::merge(root.clone(), &update) {
        Ok(merged) => merged,
        Err(Refusal::NameTaken { section, name, .. }) => {
            assert!(others(&root, section).iter().any(|item| named(item) == Some(&name)));
            return;
        }
        Err(Refusal::NotAKubeconfig(_)) => return,
    };
    assert_kept(&root, &merged.root);
    for (section, kind) in SECTIONS {
        let ours = items(&merged.root, section).iter().filter(|item| is_ours(item, kind));
        assert!(ours.map(|item| named(item)).eq(contexts.iter().map(|entry| Some(entry.name.as_str()))));
    }
    let merged_root = Node::Mapping(merged.root.clone());
    let written = yaml::emit(&merged_root);
    assert_eq!(yaml::parse(&written).expect("what this program writes can be read"), merged_root);
    assert_same_meaning(&written, &merged_root);

    let again = merge::merge(merged_root.clone(), &update).expect("what was merged once can be again");
    assert_eq!((&again.root, &again.current), (&merged.root, &merged.current), "merging twice changes nothing");

    let removal = Update { manager: MANAGER, contexts: &[], set_current: false };
    let removed = merge::merge(merged_root, &removal).expect("what was put in can be taken out");
    assert_kept(&root, &removed.root);
    assert!(
        SECTIONS.iter().all(|(section, kind)| items(&removed.root, section).iter().all(|item| !is_ours(item, kind)))
    );
    let current = removed.root.get("current-context").and_then(Node::as_str);
    assert!(contexts.iter().all(|entry| current != Some(&entry.name)), "no context is current that is not there");
}

/// What is written means what was read: to this reader and to a plain one.
fn assert_same_meaning(text: &str, root: &Node) {
    let written = yaml::emit(root);
    let again = yaml::parse(&written);
    assert_eq!(again.as_ref().ok(), Some(root), "{written}");
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let plain = |text: &str| serde_yaml::from_str::<serde_yaml::Value>(text);
    // It does not take all that this one takes: no empty file, and no integer of more than 64 bits.
    if let Ok(value) = plain(text) {
        assert_eq!(plain(&written).ok(), Some(value), "{written}");
    }
}

/// Everything that is not this manager's is as it was.
fn assert_kept(before: &Node, after: &Mapping) {
    let empty = Mapping::default();
    let before_map = before.as_mapping().unwrap_or(&empty);
    for (section, _) in SECTIONS {
        let after = Node::Mapping(after.clone());
        assert_eq!(others(before, section), others(&after, section), "{section}");
    }
    let ours = ["apiVersion", "kind", "clusters", "users", "contexts", "current-context"];
    let rest = |mapping: &Mapping| -> Vec<(Node, Node)> {
        let is_rest = |key: &Node| !key.as_str().is_some_and(|key| ours.contains(&key));
        mapping.0.iter().filter(|(key, _)| is_rest(key)).cloned().collect()
    };
    assert_eq!(rest(before_map), rest(after));
}

fn items<'a>(root: &'a Mapping, section: &str) -> &'a [Node] {
    root.get(section).and_then(Node::as_sequence).unwrap_or_default()
}

/// The items of a section that are not this manager's.
fn others(root: &Node, section: &'static str) -> Vec<Node> {
    let kind = SECTIONS.iter().find(|(name, _)| *name == section).map_or("", |(_, kind)| kind);
    let items = root.get(section).and_then(Node::as_sequence).unwrap_or_default();
    items.iter().filter(|item| !is_ours(item, kind)).cloned().collect()
}

fn named(item: &Node) -> Option<&str> {
    item.get("name")?.as_str()
}

fn is_ours(item: &Node, kind: &str) -> bool {
    let extensions = item.get(kind).and_then(|content| content.get("extensions")).and_then(Node::as_sequence);
    let extension = extensions.unwrap_or_default().iter().find(|extension| named(extension) == Some("autoheal-pa"));
    let manager = extension.and_then(|extension| extension.get("extension")?.get("manager")?.as_str());
    manager == Some(MANAGER)
}
