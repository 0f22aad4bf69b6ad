//! Tests of whole files: what is written, what is kept, what is refused.

use std::{fs, os::unix::fs::PermissionsExt};

use super::*;
use crate::cluster::{Destination, Imported, Origin};

fn cluster(name: &str, region: &str, account: &str) -> Cluster {
    Cluster {
        name: name.to_owned(),
        region: region.to_owned(),
        account: account.to_owned(),
        id: format!("arn:aws:eks:{region}:{account}:cluster/{name}"),
        endpoint: Destination { host: format!("{name}.gr7.{region}.eks.amazonaws.com"), port: 443 },
        certificate_authority: Some("TFMwdA==".to_owned()),
        origin: Origin::Eks { token_name: name.to_owned() },
        vpc: None,
    }
}

fn exec(name: &str) -> Exec {
    Exec {
        command: "/opt/bin/autoheal-pa".to_owned(),
        args: vec![
            "token".to_owned(),
            format!("--cluster-name={name}"),
            "--manager=/run/autoheal-pa/default".to_owned(),
        ],
        env: vec![("AWS_PROFILE".to_owned(), "no".to_owned())],
    }
}

fn entry(name: &str, port: u16) -> ContextEntry {
    ContextEntry {
        name: format!("pa-{name}"),
        cluster: cluster(name, "us-east-1", "123456789012"),
        server: Server::Tunnel(port),
        user: User::Own(exec(name)),
    }
}

fn update<'a>(contexts: &'a [ContextEntry]) -> Update<'a> {
    Update { manager: "default", contexts, keeps_others: false, set_current: false, beside: &[] }
}

/// Writes a file and tries to bring it up to date. Returns its content and what was wrong.
fn outcome(old: &str, update: &Update<'_>) -> (String, Option<KubeconfigError>) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("config");
    fs::write(&path, old).unwrap();
    let error = write(&path, update).err();
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "no lock and no temporary file is left");
    (fs::read_to_string(&path).unwrap(), error)
}

/// Brings a file up to date.
fn updated(old: &str, update: &Update<'_>) -> String {
    let (new, error) = outcome(old, update);
    assert!(error.is_none(), "{error:?}");
    new
}

/// Fails to bring a file up to date.
fn refused(old: &str, update: &Update<'_>) -> KubeconfigError {
    let (new, error) = outcome(old, update);
    assert_eq!(new, old, "a refused file stays as it is");
    error.unwrap()
}

fn current(text: &str) -> Option<String> {
    yaml::parse(text).unwrap().get("current-context").and_then(|node| node.as_str().map(ToOwned::to_owned))
}

const ONE: &str = r#"apiVersion: "v1"
kind: "Config"
clusters:
- name: "pa-no"
  cluster:
    server: "https://127.0.0.1:10100"
    tls-server-name: "no.gr7.us-east-1.eks.amazonaws.com"
    certificate-authority-data: "TFMwdA=="
    extensions:
    - name: "autoheal-pa"
      extension:
        manager: "default"
users:
- name: "pa-no"
  user:
    exec:
      apiVersion: "client.authentication.k8s.io/v1beta1"
      command: "/opt/bin/autoheal-pa"
      args:
      - "token"
      - "--cluster-name=no"
      - "--manager=/run/autoheal-pa/default"
      env:
      - name: "AWS_PROFILE"
        value: "no"
      interactiveMode: "Never"
      provideClusterInfo: false
    extensions:
    - name: "autoheal-pa"
      extension:
        manager: "default"
contexts:
- name: "pa-no"
  context:
    cluster: "pa-no"
    user: "pa-no"
    extensions:
    - name: "autoheal-pa"
      extension:
        manager: "default"
current-context: "pa-no"
"#;

#[test]
fn a_client_may_come_through_the_proxy() {
    let through = |name: &str, endpoint: &str, port: u16| {
        let mut entry = ContextEntry { server: Server::Proxy(([127, 0, 0, 1], 10099).into()), ..entry(name, 0) };
        entry.cluster.endpoint = Destination { host: endpoint.to_owned(), port };
        entry
    };
    let entries = [through("no", "ABC.gr7.us-east-1.eks.amazonaws.com", 443), through("local", "fd00::1", 6443)];
    let text = updated("", &update(&entries));
    for (name, server) in [("no", "https://ABC.gr7.us-east-1.eks.amazonaws.com"), ("local", "https://[fd00::1]:6443")] {
        let cluster = format!(
            "- name: \"pa-{name}\"\n  cluster:\n    server: \"{server}\"\n    proxy-url: \"http://127.0.0.1:10099\"\n    \
             certificate-authority-data: \"TFMwdA==\"\n"
        );
        assert!(text.contains(&cluster), "{text}");
    }
    assert!(!text.contains("tls-server-name"), "{text}");
    // And back: nothing of the proxy stays.
    let entries = [entry("no", 10100)];
    assert_eq!(updated(&text, &update(&entries)), ONE);
}

#[test]
fn contexts_that_are_not_asked_for_stay_if_they_are_to() {
    let all = updated(FOREIGN, &update(&[entry("a", 10100), entry("b", 10101)]));
    let moved = [entry("b", 10102)];
    let kept = updated(&all, &Update { keeps_others: true, ..update(&moved) });
    for server in ["https://127.0.0.1:10100", "https://127.0.0.1:10102"] {
        assert_eq!(kept.matches(server).count(), 1, "{kept}");
    }
    assert!(!kept.contains("10101"), "{kept}");
    assert_eq!(updated(&kept, &update(&moved)), updated(FOREIGN, &update(&moved)), "and later they go");
}

#[test]
fn tls_may_end_at_the_local_port() {
    let server = Server::LocalTls { port: 10100, authority: "T3VycwA=".into() };
    let file = Imported {
        path: "/k8s".into(),
        authority_file: Some("/ca.crt".into()),
        disable_compression: true,
        ..Imported::default()
    };
    let entries =
        [ContextEntry { server: server.clone(), ..entry("no", 0) }, ContextEntry { server, ..imported("kops", file) }];
    let text = updated("", &update(&entries));
    let authority = "    certificate-authority-data: \"T3VycwA=\"\n";
    assert!(text.contains(&format!("    server: \"https://127.0.0.1:10100\"\n{authority}    ext")), "{text}");
    let kops = format!("    server: \"https://127.0.0.1:10100/k8s\"\n{authority}    disable-compression: true\n");
    assert!(text.contains(&kops), "{text}");
    assert!(!text.contains("tls-server-name"), "{text}");
    // And back: nothing of it stays.
    let entries = [entry("no", 10100)];
    assert_eq!(updated(&text, &update(&entries)), ONE);
}

/// The context of a cluster that was imported.
fn imported(name: &str, more: Imported) -> ContextEntry {
    let mut entry = entry(name, 10101);
    let server_name = format!("api.internal.{name}");
    let user = User::Theirs("admin".to_owned());
    entry.cluster.endpoint = Destination { host: format!("lb.{name}"), port: 8443 };
    entry.cluster.origin = Origin::Imported(Imported { user: "admin".to_owned(), server_name, ..more });
    ContextEntry { user, ..entry }
}

#[test]
fn the_context_of_an_imported_cluster_names_a_user_that_is_elsewhere() {
    let more = Imported { namespace: Some("on".into()), path: "/k8s/clusters/c-1".into(), ..Imported::default() };
    let kops = imported("kops", more.clone());
    let text = updated("", &update(std::slice::from_ref(&kops)));
    let expected = r#"apiVersion: "v1"
kind: "Config"
clusters:
- name: "pa-kops"
  cluster:
    server: "https://127.0.0.1:10101/k8s/clusters/c-1"
    tls-server-name: "api.internal.kops"
    certificate-authority-data: "TFMwdA=="
    extensions:
    - name: "autoheal-pa"
      extension:
        manager: "default"
contexts:
- name: "pa-kops"
  context:
    cluster: "pa-kops"
    user: "admin"
    namespace: "on"
    extensions:
    - name: "autoheal-pa"
      extension:
        manager: "default"
        namespace: "on"
current-context: "pa-kops"
"#;
    assert_eq!(text, expected);
    assert_eq!(updated(expected, &update(std::slice::from_ref(&kops))), expected);

    // A namespace follows that of the user's context, until the user has chosen another for ours.
    let moved = imported("kops", Imported { namespace: Some("off".into()), ..more.clone() });
    let text = updated(expected, &update(std::slice::from_ref(&moved)));
    assert_eq!(text.matches("namespace: \"off\"").count(), 2, "{text}");
    let chosen = expected.replace("    namespace: \"on\"\n    ext", "    namespace: mine\n    ext");
    let text = updated(&chosen, &update(std::slice::from_ref(&moved)));
    assert!(text.contains("    namespace: mine\n") && text.contains("        namespace: \"off\"\n"), "{text}");

    // And the way by the proxy, with a file of the authority.
    let file = Imported { authority_file: Some("/ca.crt".into()), disable_compression: true, ..more };
    let entry = ContextEntry { server: Server::Proxy(([127, 0, 0, 1], 10099).into()), ..imported("kops", file) };
    let text = updated(expected, &update(&[entry]));
    let cluster = r#"    server: "https://lb.kops:8443/k8s/clusters/c-1"
    proxy-url: "http://127.0.0.1:10099"
    tls-server-name: "api.internal.kops"
    certificate-authority: "/ca.crt"
    disable-compression: true
"#;
    assert!(text.contains(cluster), "{text}");
    assert!(!updated(&text, &update(&[])).contains("kops"), "all of it goes again");
}

#[test]
fn a_user_of_theirs_stays_as_it_is() {
    let theirs = "kind: Config\nusers:\n- name: admin\n  user: {token: secret}\n";
    let text = updated(theirs, &update(&[imported("kops", Imported::default())]));
    assert_eq!((text.matches("secret").count(), text.matches("user: \"admin\"").count()), (1, 1), "{text}");
    let text = updated(&text, &update(&[]));
    assert!(text.contains("secret") && !text.contains("kops"), "{text}");
}

const FOREIGN: &str = r#"# The user's own.
apiVersion: v1
kind: Config
preferences: {colors: true}
clusters:
- name: prod
  cluster: {server: "https://prod.example", extensions: [{name: x, extension: {on: off, mode: 0644}}]}
users:
- name: prod
  user: {token: "0123"}
contexts:
- name: prod
  context: {cluster: prod, user: prod, namespace: "on"}
current-context: prod
"#;

const FOREIGN_KEPT: &str = r#"apiVersion: v1
kind: Config
preferences:
  colors: true
clusters:
- name: prod
  cluster:
    server: "https://prod.example"
    extensions:
    - name: x
      extension:
        on: off
        mode: 0644
"#;

#[test]
fn a_new_file_holds_exactly_this() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(".kube/autoheal-pa.yaml");
    let contexts = [entry("no", 10100)];
    assert_eq!(write(&path, &update(&contexts)).unwrap().as_deref(), Some("pa-no"));
    assert_eq!(fs::read_to_string(&path).unwrap(), ONE);
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o600);
    assert_eq!(updated("", &update(&contexts)), ONE);
    assert_eq!(
        updated("apiVersion: v1\nkind: Config\nclusters: null\ncontexts: null\nusers: null\n", &update(&contexts))
            .matches("pa-no")
            .count(),
        6
    );
}

#[test]
fn a_file_in_which_nothing_changes_is_not_written() {
    let contexts = [entry("no", 10100)];
    let commented = format!("# mine\n{ONE}");
    assert_eq!(updated(&commented, &update(&contexts)), commented);
    assert_eq!(updated(FOREIGN, &update(&[])), FOREIGN);
}

#[test]
fn keeps_everything_of_others() {
    let contexts = [entry("no", 10100)];
    let text = updated(FOREIGN, &update(&contexts));
    assert!(text.starts_with(FOREIGN_KEPT), "{text}");
    assert!(text.contains("  user:\n    token: \"0123\"\n"), "{text}");
    assert!(text.contains("    namespace: \"on\"\n"), "{text}");
    assert_eq!(current(&text).as_deref(), Some("prod"));

    // All of ours goes again, and nothing else.
    let text = updated(&text, &update(&[]));
    assert!(!text.contains("pa-no") && text.starts_with(FOREIGN_KEPT), "{text}");
    assert_eq!(current(&text).as_deref(), Some("prod"));
}

#[test]
fn reads_json() {
    let json = r#"{"apiVersion":"v1","kind":"Config","clusters":[],"users":[],"contexts":[{"name":"no","context":{"cluster":"no","user":"no"}}]}"#;
    let text = updated(json, &update(&[entry("a", 1)]));
    assert!(text.contains("\"name\": \"no\"\n  \"context\":\n    \"cluster\": \"no\"\n"), "{text}");
}

#[test]
fn replaces_what_it_had_before() {
    let text = updated(ONE, &update(&[entry("b", 10100), entry("a", 10101)]));
    assert!(!text.contains("pa-no"), "{text}");
    assert_eq!(current(&text).as_deref(), Some("pa-b"));
    let text = updated(&text, &update(&[entry("a", 10100)]));
    assert!(text.contains("https://127.0.0.1:10100") && !text.contains("10101"), "{text}");
    assert_eq!(current(&text).as_deref(), Some("pa-a"));
    let text = updated(&text, &update(&[]));
    assert!(!text.contains("pa-"), "{text}");
    assert_eq!(current(&text).as_deref(), Some(""));
}

#[test]
fn keeps_the_current_context_and_the_namespace() {
    let contexts = [entry("a", 1), entry("b", 2)];
    let text = updated("", &update(&contexts));
    // As kubectl leaves it after `config use-context` and `config set-context --current --namespace`.
    let text = text.replace("current-context: \"pa-a\"", "current-context: pa-b");
    let text = text.replace("    cluster: \"pa-b\"\n", "    cluster: pa-b\n    namespace: \"on\"\n");
    let again = updated(&text, &update(&[entry("a", 3), entry("b", 4)]));
    assert_eq!(current(&again).as_deref(), Some("pa-b"));
    assert!(again.contains("    user: \"pa-b\"\n    namespace: \"on\"\n"), "{again}");
    assert!(again.contains(":4\"") && !again.contains(":2\""), "{again}");
}

#[test]
fn managers_share_a_file() {
    let text = updated("", &update(&[entry("a", 1)]));
    let other = [entry("b", 2)];
    let text = updated(
        &text,
        &Update { manager: "ci", contexts: &other, keeps_others: false, set_current: false, beside: &[] },
    );
    assert!(text.contains("pa-a") && text.contains("pa-b"), "{text}");
    assert_eq!(current(&text).as_deref(), Some("pa-a"));
    let text = updated(&text, &update(&[]));
    assert!(!text.contains("pa-a") && text.contains("pa-b"), "{text}");
    assert_eq!(current(&text).as_deref(), Some("pa-b"));
}

#[test]
fn sets_the_current_context_of_others_only_on_request() {
    let contexts = [entry("a", 1), entry("b", 2)];
    let text = updated(FOREIGN, &Update { set_current: true, ..update(&contexts) });
    assert_eq!(current(&text).as_deref(), Some("pa-a"));
    let text = text.replace("current-context: \"pa-a\"", "current-context: \"pa-b\"");
    let text = updated(&text, &Update { set_current: true, ..update(&contexts) });
    assert_eq!(current(&text).as_deref(), Some("pa-b"));
    // A current context that goes away leaves nothing that kubectl would stumble over.
    let text = updated(&text, &update(&[]));
    assert_eq!(current(&text).as_deref(), Some(""));
    // One that was broken before is not ours to mend.
    let broken = FOREIGN.replace("current-context: prod", "current-context: gone");
    assert_eq!(current(&updated(&broken, &update(&contexts))).as_deref(), Some("gone"));
}

#[test]
fn does_not_take_names_of_others() {
    let foreign = FOREIGN.replace("prod", "pa-a");
    let error = refused(&foreign, &update(&[entry("a", 1)]));
    assert!(error.to_string().ends_with("has an entry `pa-a` in `clusters` that belongs to someone else"), "{error}");
    let text = updated("", &update(&[entry("a", 1)]));
    let error = refused(&text, &Update { manager: "ci", ..update(&[entry("a", 1)]) });
    assert!(error.to_string().ends_with("in `clusters` that belongs to the manager `default`"), "{error}");
}

/// What a tool leaves that writes the file anew with the fields that it knows.
fn without_extensions(text: &str) -> String {
    text.replace("    extensions:\n    - name: \"autoheal-pa\"\n      extension:\n        manager: \"default\"\n", "")
}

#[test]
fn entries_whose_extensions_were_dropped_are_ours_by_what_they_say() {
    let text = without_extensions(&updated("", &update(&[entry("a", 1), entry("b", 2)])));
    assert!(!text.contains("extensions"), "{text}");
    let again = updated(&text, &update(&[entry("a", 3)]));
    assert_eq!(again, updated("", &update(&[entry("a", 3)])));
    let removed = updated(&text, &update(&[]));
    assert!(!removed.contains("pa-"), "{removed}");

    // They are not another manager's, nor anybody's who has come to the name in another way.
    let error = refused(&text, &Update { manager: "ci", ..update(&[entry("a", 1)]) });
    assert!(error.to_string().ends_with("that belongs to the manager `default`"), "{error}");
    for (ours, other) in [("https://127.0.0.1:1\"", "https://a.example\""), ("- \"token\"", "- \"get-token\"")] {
        let error = refused(&text.replace(ours, other), &update(&[entry("a", 1)]));
        assert!(error.to_string().ends_with("that belongs to someone else"), "{error}");
    }
}

#[test]
fn what_a_user_has_made_of_an_entry_is_not_taken_for_it() {
    let text = updated("", &update(&[entry("a", 1)]));
    let user = |name: &str| {
        let users = text.split("users:\n").nth(1).unwrap().split("contexts:\n").next().unwrap();
        without_extensions(users).replace("pa-a", name)
    };
    // A user of another name, and one of the same, whose cluster and context are of something else.
    let mine = format!("users:\n{}", user("mine"));
    let kind = "clusters:\n- name: \"mine\"\n  cluster:\n    server: \"https://127.0.0.1:6443\"\n";
    let with_both = text.replace("users:\n", &mine).replace("clusters:\n", kind);
    let removed = updated(&with_both, &update(&[]));
    assert!(removed.contains(&mine) && removed.contains(kind) && !removed.contains("pa-a"), "{removed}");
    // One that was taken out of all three.
    let lone = format!("apiVersion: v1\nkind: Config\nusers:\n{}", user("pa-a"));
    let error = refused(&lone, &update(&[entry("a", 1)]));
    assert!(error.to_string().ends_with("has an entry `pa-a` in `users` that belongs to someone else"), "{error}");
    assert_eq!(updated(&lone, &update(&[])), lone);
    // Two users of one name, of which one is something else.
    let other = "users:\n- name: \"pa-a\"\n  user:\n    token: \"t\"\n";
    let twice = without_extensions(&text).replace("users:\n", other);
    assert!(updated(&twice, &update(&[])).contains(other));
}

#[test]
fn contexts_that_need_a_manager_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("config");
    assert_eq!(contexts_of(&path, "default").unwrap(), [""; 0]);
    let context = "contexts:\n- name: mine\n  context: {cluster: pa-a, user: pa-a, namespace: web}\n- name: other\n  \
                   context: {cluster: prod, user: prod}\n";
    let text = updated("", &update(&[entry("a", 1)])).replace("contexts:\n", context);
    for text in [without_extensions(&text), text] {
        fs::write(&path, text).unwrap();
        assert_eq!(contexts_of(&path, "default").unwrap(), ["mine", "pa-a"]);
        assert_eq!(still_there(&path, &["pa-a".to_owned(), "gone".to_owned()]).unwrap(), ["pa-a"]);
        assert_eq!(plugins_of(&path, "default").unwrap(), [exec("a")]);
        assert_eq!(contexts_of(&path, "ci").unwrap(), [""; 0]);
    }
}

#[test]
fn a_file_of_nested_maps_is_refused_at_once() {
    let error = refused(&format!("kind: Config\nx: {}", "{a: ".repeat(200_000)), &update(&[entry("a", 1)]));
    assert!(matches!(error, KubeconfigError::Syntax { .. }), "{error}");
}

#[test]
fn refuses_what_is_no_kubeconfig() {
    for (text, message) in [
        ("[]", "does not hold a mapping"),
        ("just words", "does not hold a mapping"),
        ("a: 1", "has no `kind`"),
        ("apiVersion: v1\nkind: Pod\n", "its `kind` is not `Config`"),
        ("apiVersion: v2\nkind: Config\n", "its `apiVersion` is not `v1`"),
        ("kind: Config\nclusters: {}\n", "`clusters` is not a list"),
        ("kind: Config\ncontexts: x\n", "`contexts` is not a list"),
    ] {
        let error = refused(text, &update(&[entry("a", 1)]));
        assert!(error.to_string().ends_with(message), "{text:?}: {error}");
    }
    let error = refused("kind: Config\nclusters: [\n", &update(&[]));
    let source = std::error::Error::source(&error).unwrap().to_string();
    assert!(source.starts_with("line 2, column 11: "), "{source}");
    updated("clusters: []", &update(&[entry("a", 1)]));
    // Entries of a strange shape are the user's business.
    updated("kind: Config\nclusters: [1, {}, {name: x}]\n", &update(&[entry("a", 1)]));
}

#[test]
fn two_writers_lose_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("config");
    std::thread::scope(|scope| {
        for number in 0..4_u16 {
            let path = &path;
            scope.spawn(move || {
                let contexts = [entry(&format!("c{number}"), number)];
                write(
                    path,
                    &Update {
                        manager: &format!("m{number}"),
                        contexts: &contexts,
                        keeps_others: false,
                        set_current: false,
                        beside: &[],
                    },
                )
                .unwrap();
            });
        }
    });
    let text = fs::read_to_string(&path).unwrap();
    for number in 0..4 {
        assert!(text.contains(&format!("- name: \"pa-c{number}\"")), "{text}");
    }
}

#[test]
fn removes_from_a_file_that_may_be_missing() {
    let dir = tempfile::tempdir().unwrap();
    remove(&dir.path().join("none/config"), "default").unwrap();
    let path = dir.path().join("config");
    fs::write(&path, ONE).unwrap();
    remove(&path, "ci").unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), ONE);
    remove(&path, "default").unwrap();
    assert!(!fs::read_to_string(&path).unwrap().contains("pa-no"));
}

#[test]
fn names_contexts() {
    let names = |clusters: &[(&str, &str, &str)]| {
        let clusters: Vec<_> = clusters.iter().map(|(name, region, account)| cluster(name, region, account)).collect();
        context_names("pa-", &clusters)
    };
    assert_eq!(names(&[("no", "r1", "1"), ("b", "r1", "1")]), ["pa-no", "pa-b"]);
    assert_eq!(names(&[("a", "r1", "1"), ("b", "r1", "1"), ("a", "r2", "1")]), ["pa-a-r1", "pa-b", "pa-a-r2"]);
    assert_eq!(names(&[("a", "r1", "1"), ("a", "r1", "2"), ("a", "r2", "1")]), ["pa-a-r1-1", "pa-a-r1-2", "pa-a-r2"]);
    // One that is called like another with its region.
    assert_eq!(
        names(&[("a", "r1", "1"), ("a", "r2", "1"), ("a-r1", "r3", "1")]),
        ["pa-a-r1-1", "pa-a-r2", "pa-a-r1-r3"]
    );
    assert_eq!(names(&[("a", "r1", "1"), ("a", "r1", "1")]), ["pa-a-r1-1", "pa-a-r1-1-2"]);
    assert_eq!(names(&[]), [""; 0]);
}

#[test]
fn only_text_of_a_regular_file_is_read() {
    let dir = tempfile::tempdir().unwrap();
    assert!(matches!(read_file(&dir.path().join("none")), Ok(None)));
    assert!(matches!(read_file(dir.path()), Err(KubeconfigError::NotAKubeconfig { .. })));
    let path = dir.path().join("config");
    fs::write(&path, "text").unwrap();
    assert_eq!(read_file(&path).unwrap().as_deref(), Some("text"));
    fs::write(&path, vec![b' '; MAX_LEN as usize + 1]).unwrap();
    assert!(matches!(read_file(&path), Err(KubeconfigError::TooLarge { .. })));
    fs::write(&path, b"\xff").unwrap();
    assert!(matches!(read_file(&path), Err(KubeconfigError::NotAKubeconfig { .. })));
    assert!(matches!(read_file(&path.join("below")), Err(KubeconfigError::Unreadable { .. })));
}

#[test]
fn what_is_read_beside_a_file_is_not_led_elsewhere() {
    let dir = tempfile::tempdir().unwrap();
    let (path, other) = (dir.path().join("ours"), dir.path().join("theirs"));
    let contexts = [entry("prod", 10100)];
    let beside = [other.clone(), dir.path().join("missing")];
    let update = Update { beside: &beside, ..update(&contexts) };
    let theirs = |section: &str, item: &str| {
        fs::write(&other, format!("apiVersion: v1\nkind: Config\n{section}: [{{name: {item}}}]\n")).unwrap();
    };
    let cluster = "pa-prod, cluster: {server: 'https://10.0.0.1'}";
    let user = "pa-prod, user: {token: secret}";
    let context = "pa-prod, context: {cluster: a, user: b}";
    for (section, item) in [("clusters", cluster), ("users", user), ("contexts", context)] {
        theirs(section, item);
        let error = write(&path, &update).unwrap_err();
        let KubeconfigError::Shadowing { section: of, name, other: file, .. } = &error else { panic!("{error:?}") };
        assert_eq!((*of, name.as_str(), file), (section, "pa-prod", &other));
        assert!(!path.exists() && !error.to_string().contains("secret"), "{error}");
    }
    // Other names, the same entry, and our own that somebody has copied there.
    theirs("users", "prod, user: {token: secret}");
    write(&path, &update).unwrap();
    fs::copy(&path, &other).unwrap();
    write(&path, &Update { contexts: &[entry("prod", 10101)], ..update }).unwrap();
    check(&path, "default", &beside).unwrap();
    fs::write(&path, "kind: Config\nusers: [{name: a, user: {token: x}}]\n").unwrap();
    theirs("users", "a, user: {token: x}");
    check(&path, "default", &beside).unwrap();
    theirs("users", "a, user: {token: y}");
    assert!(matches!(check(&path, "default", &beside), Err(KubeconfigError::Shadowing { .. })));
}
