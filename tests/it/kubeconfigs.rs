//! Real and odd kubeconfigs: what the real kubectl reads in them is the same after a merge, but for our entries.
//!
//! The files are in `tests/fixtures/kubeconfigs`, each with its origin in the page there.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
    time::Duration,
};

use autoheal_pa::{
    clock::Clock,
    cluster::{Cluster, Destination, Origin},
    kubeconfig::{self, ContextEntry, Exec, Server, Update, User},
};
use serde_json::Value;

use super::support::kubectl;

/// Files that are left alone, and what is said about each.
const REFUSED: [(&str, &str); 5] = [
    ("merged-top-level.yaml", "its top level has `<<`"),
    ("non-specific-tag.yaml", "line 5, column 17: there is a tag that not every reader understands in the same way"),
    ("odd-key.yaml", "line 3, column 10: a key is not a short scalar"),
    ("two-documents.yaml", "line 6, column 1: a second document starts here"),
    ("unicode-line-break.yaml", "line 5, column 19: it has a Unicode line break"),
];

/// Time to merge into a file of ten thousand contexts in a debug build on a busy machine.
const LARGE_LIMIT: Duration = Duration::from_secs(60);

fn dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/kubeconfigs")
}

/// The files of the corpus, in order.
fn corpus() -> Vec<PathBuf> {
    let entries = fs::read_dir(dir()).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> = entries.filter(|path| !path.ends_with("README.md")).collect();
    files.sort();
    files
}

fn entry(name: &str, port: u16) -> ContextEntry {
    ContextEntry {
        name: format!("pa-{name}"),
        cluster: Cluster {
            name: name.to_owned(),
            region: "us-east-1".to_owned(),
            account: "123456789012".to_owned(),
            id: format!("arn:aws:eks:us-east-1:123456789012:cluster/{name}"),
            endpoint: Destination { host: format!("{name}.gr7.us-east-1.eks.amazonaws.com"), port: 443 },
            certificate_authority: Some("TFMwdA==".to_owned()),
            origin: Origin::Eks { token_name: name.to_owned() },
            vpc: None,
        },
        server: Server::Tunnel(port),
        user: User::Own(Exec {
            command: "/opt/bin/autoheal-pa".to_owned(),
            args: ["token", "--cluster-name=no", "--manager=/run/autoheal-pa/default"].map(str::to_owned).into(),
            env: Vec::new(),
        }),
    }
}

/// What kubectl reads in a file.
fn view(path: &Path) -> Result<Value, String> {
    let output = run_view(path);
    if output.status.success() {
        serde_json::from_slice(&output.stdout).map_err(|error| error.to_string())
    } else {
        let words = String::from_utf8_lossy(&output.stderr).into_owned();
        Err(words.replace(&path.display().to_string(), ""))
    }
}

fn run_view(path: &Path) -> Output {
    let mut command = Command::new(kubectl().expect("asked before"));
    command.arg("--kubeconfig").arg(path).args(["config", "view", "--raw", "-o", "json"]).output().unwrap()
}

/// What is read of everybody else, and the names that are ours.
fn others(view: &Value) -> (Value, BTreeSet<String>) {
    let mut others = view.clone();
    let mut ours = BTreeSet::new();
    for section in ["clusters", "users", "contexts"] {
        let items = view[section].as_array().cloned().unwrap_or_default();
        let is_ours = |item: &Value| item["name"].as_str().is_some_and(|name| name.starts_with("pa-"));
        ours.extend(items.iter().filter(|item| is_ours(item)).map(|item| format!("{section} {}", item["name"])));
        others[section] = items.into_iter().filter(|item| !is_ours(item)).collect();
    }
    // In a file of nobody else the first of ours becomes the current one.
    if others["contexts"].as_array().is_none_or(Vec::is_empty) {
        others["current-context"] = Value::Null;
    }
    (others, ours)
}

/// Merges into a copy of a file, looks at it with kubectl, and takes the entries out again.
fn compare(path: &Path, copy: &Path) {
    let name = path.file_name().unwrap().to_str().unwrap();
    let before = view(path);
    fs::copy(path, copy).unwrap();
    let contexts = [entry("no", 10100), entry("payments", 10101)];
    let merged = kubeconfig::write(
        copy,
        &Update { manager: "default", contexts: &contexts, keeps_others: false, set_current: false, beside: &[] },
    );
    if let Some((_, words)) = REFUSED.iter().find(|(refused, _)| *refused == name) {
        let error = merged.expect_err(name);
        let source = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
        assert!(format!("{error}: {source}").contains(words), "{name}: {error}: {source}");
        assert_eq!(fs::read(copy).unwrap(), fs::read(path).unwrap(), "{name}");
        return;
    }
    merged.unwrap_or_else(|error| panic!("{name}: {error}: {:?}", std::error::Error::source(&error)));
    let text = fs::read_to_string(copy).unwrap();
    let before = match before {
        Ok(before) => before,
        // What it cannot read it still cannot, for the same reason.
        Err(before) => return assert_eq!(view(copy).unwrap_err(), before, "{name}\n{text}"),
    };
    let after = view(copy).unwrap_or_else(|error| panic!("{name}: {error}\n{text}"));
    let (kept, ours) = others(&after);
    assert_eq!(kept, others(&before).0, "{name}\n{text}");
    assert_eq!(ours.len(), 6, "{name}: {ours:?}");
    let ports: BTreeSet<_> = after["clusters"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|item| item["name"].as_str().unwrap().starts_with("pa-"))
        .map(|item| item["cluster"]["server"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(ports, BTreeSet::from(["https://127.0.0.1:10100".to_owned(), "https://127.0.0.1:10101".to_owned()]));

    kubeconfig::remove(copy, "default").unwrap();
    let (kept, ours) = others(&view(copy).unwrap());
    assert_eq!((kept, ours), (others(&before).0, BTreeSet::new()), "{name}");
}

#[test]
fn the_real_kubectl_reads_of_others_what_it_read_before() {
    if kubectl().is_none() {
        return;
    }
    let temporary = tempfile::tempdir().unwrap();
    for path in corpus() {
        compare(&path, &temporary.path().join("config"));
    }
}

#[test]
fn ten_thousand_contexts_of_others_are_kept_and_cost_little() {
    let temporary = tempfile::tempdir().unwrap();
    let (path, copy) = (temporary.path().join("large"), temporary.path().join("config"));
    let number = 10_000;
    let mut text = "apiVersion: v1\nkind: Config\nclusters:\n".to_owned();
    let ca = "TFMwdA==".repeat(30).replace('=', "A");
    for index in 0..number {
        text.push_str(&format!(
            "- name: c{index}\n  cluster:\n    server: https://c{index}.example\n    certificate-authority-data: {ca}\n"
        ));
    }
    text.push_str("users:\n");
    for index in 0..number {
        text.push_str(&format!("- name: c{index}\n  user: {{token: !!binary YWJj}}\n"));
    }
    text.push_str("contexts:\n");
    for index in 0..number {
        text.push_str(&format!("- context:\n    cluster: c{index}\n    user: c{index}\n  name: c{index}\n"));
    }
    text.push_str("current-context: c7\n");
    assert!(text.len() > 3 << 20);
    fs::write(&path, &text).unwrap();
    fs::write(&copy, &text).unwrap();

    let contexts: Vec<_> = (0..1000).map(|port| entry(&format!("x{port}"), port)).collect();
    let clock = Clock::start();
    kubeconfig::write(
        &copy,
        &Update { manager: "default", contexts: &contexts, keeps_others: false, set_current: false, beside: &[] },
    )
    .unwrap();
    kubeconfig::remove(&copy, "default").unwrap();
    let took = clock.now().mono;
    assert!(took < LARGE_LIMIT, "{took:?}");
    if kubectl().is_some() {
        compare(&path, &copy);
    }
}

#[test]
fn every_file_of_the_corpus_has_its_origin() {
    let page = fs::read_to_string(dir().join("README.md")).unwrap();
    let listed: Vec<_> = page.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next()).collect();
    let mut files: Vec<_> =
        corpus().iter().map(|path| path.file_name().unwrap().to_str().unwrap().to_owned()).collect();
    let mut listed: Vec<_> = listed.into_iter().map(str::to_owned).collect();
    files.sort();
    listed.sort();
    assert_eq!(files, listed);
}
