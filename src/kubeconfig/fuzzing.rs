//! What has to hold for any file that a kubeconfig is merged into: the body of the fuzz target `kubeconfig`.
//!
//! Built for the fuzzer and for unit tests only. Leaves out files and locks.

use std::sync::LazyLock;

use serde_yaml::{Mapping, Value};

use super::{
    ContextEntry, Exec, Server, SyntaxError, Update, User, import,
    merge::{self, Owners, Refusal, SECTIONS},
    yaml,
};
use crate::{
    cluster::{Cluster, Destination, Imported, Origin},
    util::yaml::Node,
};

/// The manager whose entries are merged.
const MANAGER: &str = "default";

/// The keys at the top of a kubeconfig that a merge may change.
const OURS: [&str; 6] = ["apiVersion", "kind", "clusters", "users", "contexts", "current-context"];

/// The user that the second context has from another file.
const THEIRS: &str = "prod";

/// One with a user of its own, and one that was imported.
static CONTEXTS: LazyLock<[ContextEntry; 2]> = LazyLock::new(|| {
    let mut imported = context("b", 10101);
    let origin = Imported { user: THEIRS.to_owned(), server_name: "b".to_owned(), ..Imported::default() };
    imported.cluster.origin = Origin::Imported(origin);
    imported.user = User::Theirs(THEIRS.to_owned());
    [context("no", 10100), imported]
});

fn context(name: &str, port: u16) -> ContextEntry {
    let cluster = Cluster {
        name: name.to_owned(),
        region: "us-east-1".to_owned(),
        account: "123456789012".to_owned(),
        id: format!("arn:aws:eks:us-east-1:123456789012:cluster/{name}"),
        endpoint: Destination { host: format!("{name}.gr7.us-east-1.eks.amazonaws.com"), port: 443 },
        certificate_authority: Some("TFMwdA==".to_owned()),
        origin: Origin::Eks { token_name: name.to_owned() },
        vpc: None,
    };
    let exec = Exec {
        command: "/opt/bin/autoheal-pa".to_owned(),
        args: vec!["token".to_owned(), format!("--cluster-name={name}"), format!("--manager=/run/{MANAGER}")],
        env: vec![("AWS_PROFILE".to_owned(), "no".to_owned())],
    };
    ContextEntry { name: format!("pa-{name}"), cluster, server: Server::Tunnel(port), user: User::Own(exec) }
}

/// Merges contexts, which the first byte chooses, into a file, and takes them out again.
pub fn kubeconfig(data: &[u8]) {
    let Some((&choice, text)) = data.split_first() else { return };
    let Ok(text) = std::str::from_utf8(text) else { return };
    let root = match yaml::parse(text) {
        Ok(root) => root,
        Err(error) => return assert_known_difference(text, &error),
    };

    import::look(root.clone());

    let contexts = &CONTEXTS[usize::from(choice & 1)..][..usize::from(choice >> 1 & 1) + usize::from(!choice & 1)];
    let update =
        Update { manager: MANAGER, contexts, keeps_others: false, set_current: choice >> 2 & 1 == 1, beside: &[] };
    let merged = match merge::merge(root.clone(), &update) {
        Ok(merged) => merged,
        Err(Refusal::NameTaken { section, name, .. }) => {
            let kind = SECTIONS.iter().find(|(other, _)| *other == section).map_or("", |(_, kind)| kind);
            assert!(of(&root, section, kind, false).iter().any(|item| named(item) == Some(&name)));
            return;
        }
        Err(Refusal::NotAKubeconfig(_) | Refusal::Shadowing { .. }) => return,
    };
    assert_kept(&root, &merged.root);
    let written = yaml::emit(&merged.root).expect("two contexts make nothing too large here");
    assert_kept_for_others(text, &root, &written, &merged.root);
    for (section, kind) in SECTIONS {
        let ours = of(&merged.root, section, kind, true);
        let expected = contexts.iter().filter(|entry| kind != "user" || matches!(entry.user, User::Own(_)));
        assert!(ours.iter().map(|item| named(item)).eq(expected.map(|entry| Some(entry.name.as_str()))));
    }
    assert_eq!(yaml::parse(&written).expect("what this program writes can be read"), merged.root);

    let again = merge::merge(merged.root.clone(), &update).expect("what was merged once can be again");
    assert_eq!((&again.root, &again.current), (&merged.root, &merged.current), "merging twice changes nothing");

    let removal = Update { manager: MANAGER, contexts: &[], keeps_others: false, set_current: false, beside: &[] };
    let removed = merge::merge(merged.root, &removal).expect("what was put in can be taken out");
    assert_kept(&root, &removed.root);
    assert!(SECTIONS.iter().all(|(section, kind)| of(&removed.root, section, kind, true).is_empty()));
    let current = removed.root.get("current-context").and_then(Node::as_str);
    assert!(contexts.iter().all(|entry| current != Some(&entry.name)), "no context is current that is not there");
}

/// A file that readers do not agree about has what they are known not to agree about: an anchor, an alias, a mark of a
/// key, or a tag and then a word that starts with a colon. So no mistake in what this program makes of a file is taken for
/// one of the file.
fn assert_known_difference(text: &str, error: &SyntaxError) {
    let is_known = text.contains(['&', '*', '?']) || has_tagged_colon(text);
    assert!(error.message != yaml::READ_OTHERWISE || is_known, "{error}");
}

/// Tells whether a colon starts a word behind a tag: `[!mine :x]` is one item in YAML 1.2, and a key without a name to
/// libyaml.
fn has_tagged_colon(text: &str) -> bool {
    let behind = text.split_once('!').map_or("", |(_, behind)| behind);
    behind.split_whitespace().skip(1).any(|word| word.starts_with(':'))
}

/// What a plain reader found in a file, it finds in what is written: all that is not this manager's.
fn assert_kept_for_others(text: &str, before: &Node, written: &str, after: &Node) {
    let plain = |text: &str| serde_yaml::from_str::<Value>(text.strip_prefix('\u{feff}').unwrap_or(text));
    // It does not take all that this one takes: no empty file, and no integer of more than 64 bits.
    let Ok(Value::Mapping(old)) = plain(text) else { return };
    let Ok(Value::Mapping(new)) = plain(written) else { panic!("nobody else can read what is written: {written}") };
    let others = |values: &Mapping, root: &Node, section: &str, kind: &str| -> Vec<Value> {
        let owners = Owners::of(root);
        let nodes = root.get(section).and_then(Node::as_sequence).unwrap_or_default().iter();
        let values = values.get(section).and_then(Value::as_sequence).into_iter().flatten();
        let not_ours = nodes.zip(values).filter(|(node, _)| owners.owner(node, kind) != Some(MANAGER));
        not_ours.map(|(_, value)| value.clone()).collect()
    };
    for (section, kind) in SECTIONS {
        assert_eq!(others(&old, before, section, kind), others(&new, after, section, kind), "{section}: {written}");
    }
    let rest = |values: &Mapping| -> Vec<(Value, Value)> {
        let is_rest = |key: &Value| !key.as_str().is_some_and(|key| OURS.contains(&key));
        values.iter().filter(|(key, _)| is_rest(key)).map(|(key, value)| (key.clone(), value.clone())).collect()
    };
    assert_eq!(rest(&old), rest(&new), "{written}");
}

/// Everything that is not this manager's is as it was.
fn assert_kept(before: &Node, after: &Node) {
    for (section, kind) in SECTIONS {
        assert_eq!(of(before, section, kind, false), of(after, section, kind, false), "{section}");
    }
    let rest = |root: &Node| -> Vec<(Node, Node)> {
        let is_rest = |key: &Node| !key.as_str().is_some_and(|key| OURS.contains(&key));
        root.as_mapping().unwrap_or_default().iter().filter(|(key, _)| is_rest(key)).cloned().collect()
    };
    assert_eq!(rest(before), rest(after));
}

/// The items of a section that are this manager's, or those that are not.
fn of(root: &Node, section: &str, kind: &str, ours: bool) -> Vec<Node> {
    let owners = Owners::of(root);
    let items = root.get(section).and_then(Node::as_sequence).unwrap_or_default().iter();
    items.filter(|item| (owners.owner(item, kind) == Some(MANAGER)) == ours).cloned().collect()
}

fn named(item: &Node) -> Option<&str> {
    item.get("name")?.as_str()
}
