//! What is read of contexts, and what is refused.

use std::{error::Error as _, fs};

use super::*;

/// As `kops export kubeconfig --admin` writes it.
const KOPS: &str = "apiVersion: v1
kind: Config
clusters:
- cluster:
    certificate-authority-data: TFMwdA==
    server: https://api-kops-example-com-abc.elb.us-east-1.amazonaws.com:8443
    tls-server-name: api.internal.kops.example.com
  name: kops.example.com
contexts:
- context:
    cluster: kops.example.com
    user: kops.example.com
    namespace: demo
  name: kops.example.com
current-context: kops.example.com
users:
- name: kops.example.com
  user:
    client-certificate-data: c2VjcmV0
    client-key-data: c2VjcmV0
";

struct Files {
    dir: tempfile::TempDir,
    paths: Vec<PathBuf>,
}

/// Files with these contents, in a folder each.
fn files(texts: &[&str]) -> Files {
    let dir = tempfile::tempdir().unwrap();
    let paths = texts.iter().enumerate().map(|(index, text)| {
        let folder = dir.path().join(index.to_string());
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("config"), text).unwrap();
        folder.join("config")
    });
    let paths = paths.collect();
    Files { dir, paths }
}

fn one(files: &Files, name: &str) -> Result<Import, ImportError> {
    import(&files.paths, &[name.to_owned()]).map(|mut imports| imports.remove(0))
}

/// A kubeconfig with one context `c`, whose cluster says this.
fn with(cluster: &str) -> String {
    format!(
        "kind: Config\nclusters: [{{name: c, cluster: {{{cluster}}}}}]\nusers: [{{name: u, user: {{}}}}]\ncontexts: [{{name: c, \
         context: {{cluster: c, user: u}}}}]\n"
    )
}

/// Says why a context cannot be imported.
fn refusal(texts: &[&str]) -> String {
    let error = one(&files(texts), "c").unwrap_err();
    let source = error.source().map(|source| format!(": {source}")).unwrap_or_default();
    format!("{error}{source}")
}

#[test]
fn takes_what_kops_writes_and_none_of_its_keys() {
    let files = files(&[KOPS]);
    let import = one(&files, "kops.example.com").unwrap();
    assert!(!format!("{import:?}").contains("c2VjcmV0"));
    let host = "api-kops-example-com-abc.elb.us-east-1.amazonaws.com".to_owned();
    let expected = Import {
        name: "kops.example.com".into(),
        endpoint: Destination { host, port: 8443 },
        certificate_authority: Some("TFMwdA==".into()),
        imported: Imported {
            user: "kops.example.com".into(),
            namespace: Some("demo".into()),
            server_name: "api.internal.kops.example.com".into(),
            path: String::new(),
            authority_file: None,
            client_certificate: true,
            disable_compression: false,
        },
        has_proxy: false,
    };
    assert_eq!(import, expected);
    let cluster = import.cluster("us-east-1", "123456789012");
    assert_eq!((&*cluster.id, cluster.token_name()), ("context/kops.example.com", None));
}

#[test]
fn reads_servers() {
    for (server, endpoint, path, name) in [
        ("https://api.example.com", "api.example.com:443", "", "api.example.com"),
        ("https://api.example.com/", "api.example.com:443", "", "api.example.com"),
        ("https://api.example.com:6443", "api.example.com:6443", "", "api.example.com"),
        ("https://rancher.example/k8s/clusters/c-1/", "rancher.example:443", "/k8s/clusters/c-1", "rancher.example"),
        ("https://10.0.0.1:6443", "10.0.0.1:6443", "", "10.0.0.1"),
        ("https://[fd00::1]", "[fd00::1]:443", "", "fd00::1"),
        // As seen from the bastion, on which it may run.
        ("https://127.0.0.1:6443", "127.0.0.1:6443", "", "127.0.0.1"),
    ] {
        let import = one(&files(&[&with(&format!("server: \"{server}\""))]), "c").unwrap();
        let read = (import.endpoint.to_string(), import.imported.path, import.imported.server_name);
        assert_eq!(read, (endpoint.to_owned(), path.to_owned(), name.to_owned()), "{server}");
        assert_eq!(import.certificate_authority, None, "that of the system");
    }
}

#[test]
fn merges_files_as_kubectl_does() {
    let files = files(&[
        "contexts: [{name: c, context: {cluster: k, user: u}}, {name: d, context: {cluster: k, user: v}}]\n",
        "clusters: [{name: k, cluster: {server: 'https://first', certificate-authority: pki/ca.crt}}]\n",
        "clusters: [{name: k, cluster: {server: 'https://second', tls-server-name: x}}]\nusers: [{name: u, user: {}}]\n\
         contexts: [{name: c, context: {cluster: k, user: u, namespace: x}}]\n",
    ]);
    fs::create_dir(files.dir.path().join("1/pki")).unwrap();
    let authority = files.dir.path().join("1/pki/ca.crt");
    fs::write(&authority, "LS0t").unwrap();
    let mut paths = files.paths.clone();
    paths.insert(0, files.dir.path().join("missing"));
    let import = &import(&paths, &["c".to_owned()]).unwrap()[0];
    assert_eq!((import.endpoint.host.as_str(), import.imported.server_name.as_str()), ("first", "first"));
    assert_eq!(import.imported.namespace, None, "nothing is taken from a second entry of a name");
    // The path is that of the file that the cluster stands in, and what is in it is at hand for a proof.
    assert_eq!(import.imported.authority_file.as_deref(), authority.to_str());
    assert_eq!(import.certificate_authority.as_deref(), Some("TFMwdA=="));

    let error = one(&files, "d").unwrap_err();
    assert_eq!(error.source().unwrap().to_string(), "there is no user `v`, which it names");
}

#[test]
fn data_wins_over_a_file_and_empty_is_absent() {
    let text = with("server: 'https://h', certificate-authority: /gone, certificate-authority-data: TFMwdA==");
    let import = one(&files(&[&text]), "c").unwrap();
    assert_eq!((import.certificate_authority.as_deref(), import.imported.authority_file), (Some("TFMwdA=="), None));
    let text =
        with("server: 'https://h', certificate-authority: '', tls-server-name: '', insecure-skip-tls-verify: false");
    let import = one(&files(&[&text]), "c").unwrap();
    assert_eq!((import.certificate_authority, import.imported.server_name.as_str()), (None, "h"));
    let text = with("server: 'https://h', proxy-url: 'http://p:1', disable-compression: yes");
    let import = one(&files(&[&text]), "c").unwrap();
    assert!(import.has_proxy && import.imported.disable_compression);
}

#[test]
fn what_cannot_be_imported_is_refused_with_the_reason() {
    let cluster = |text: &str| refusal(&[&with(text)]);
    for (text, reason) in [
        ("server: 'https://h', insecure-skip-tls-verify: true", "insecure-skip-tls-verify"),
        ("server: 'https://h', insecure-skip-tls-verify: yes", "insecure-skip-tls-verify"),
        ("server: 'https://h', insecure-skip-tls-verify: 'true'", "insecure-skip-tls-verify"),
        ("", "its cluster has no `server`"),
        ("server: ''", "its cluster has no `server`"),
        ("server: 'http://h:8080'", "its cluster's `server` is plain http"),
        ("server: 'https://'", "is not an https URL with a host"),
        ("server: 'https:///path'", "is not an https URL with a host"),
        ("server: 'h:6443'", "is not an https URL with a host"),
        ("server: 'https://u:p@h'", "is not an https URL with a host"),
        ("server: 'https://h:0'", "is not an https URL with a host"),
        ("server: 'https://h:99999'", "is not an https URL with a host"),
        ("server: 'https://h?x=y'", "is not an https URL with a host"),
        ("server: 'https://h', tls-server-name: 'a b'", "`tls-server-name` is neither a name nor an address"),
        ("server: [https]", "`server` is not text"),
        (
            "server: 'https://h', certificate-authority-data: !!binary TFMwdA==",
            "`certificate-authority-data` is not text",
        ),
        ("server: 'https://h', certificate-authority: /nowhere/ca.crt", "certificate authority `/nowhere/ca.crt`"),
        ("server: 'https://h', certificate-authority: /", "certificate authority `/`"),
    ] {
        let said = cluster(text);
        assert!(said.starts_with("cannot import the context `c`: ") && said.contains(reason), "{text}: {said}");
    }
    let users = "users: [{name: u, user: {}}]\n";
    for (text, reason) in [
        ("contexts: [{name: c}]", "it names no cluster"),
        ("contexts: [{name: c, context: {user: u}}]", "it names no cluster"),
        ("contexts: [{name: c, context: {cluster: k, user: ''}}]", "it names no user"),
        ("contexts: [{name: c, context: {cluster: k, user: u}}]", "there is no cluster `k`, which it names"),
    ] {
        let said = refusal(&[&format!("{users}{text}\n")]);
        assert!(said.ends_with(reason), "{text}: {said}");
    }
}

#[test]
fn what_this_program_has_written_is_not_imported_again() {
    let ours = "extensions: [{name: autoheal-pa, extension: {manager: ci}}]";
    let text = with(&format!("server: 'https://127.0.0.1:10100', {ours}"));
    assert!(refusal(&[&text]).ends_with("it is one that this program has written, for the manager `ci`"));
    let text = with("server: 'https://h'").replace("user: u}", &format!("user: u, {ours}}}"));
    assert!(refusal(&[&text]).ends_with("it is one that this program has written, for the manager `ci`"));
}

#[test]
fn a_context_that_is_not_there_is_told_with_those_that_are() {
    let ours = "contexts: [{name: pa-x, context: {cluster: pa-x, user: x, extensions: [{name: autoheal-pa, extension: {manager: \
                m}}]}}]\n";
    let files = files(&[KOPS, &with("server: 'https://h'"), ours]);
    let error = one(&files, "kops").unwrap_err();
    let [first, second, third] = [0, 1, 2].map(|index| files.paths[index].display());
    assert_eq!(error.to_string(), format!("there is no context `kops` in `{first}` and `{second}` and `{third}`"));
    assert!(matches!(error, ImportError::NoContext { known, .. } if known == ["c", "kops.example.com"]));

    let nowhere = [files.dir.path().join("none")];
    let error = import(&nowhere, &["c".to_owned()]).unwrap_err();
    let message = format!("there is no kubeconfig to import contexts from: `{}` does not exist", nowhere[0].display());
    assert_eq!(error.to_string(), message);
}

#[test]
fn a_file_that_is_no_kubeconfig_is_named() {
    for (text, reason) in [
        ("a: [", "cannot parse the kubeconfig"),
        ("text", "it does not hold a mapping"),
        ("- list", "it does not hold a mapping"),
    ] {
        let said = refusal(&[text]);
        assert!(said.contains(reason), "{text}: {said}");
    }
    let dir = tempfile::tempdir().unwrap();
    let error = import(&[dir.path().to_owned()], &["c".to_owned()]).unwrap_err();
    assert!(error.to_string().ends_with("is not a kubeconfig: it is not a regular file"), "{error}");
}

#[test]
fn contexts_of_one_name_are_told_apart() {
    let eks = Cluster {
        id: "arn".into(),
        name: "c".into(),
        origin: Origin::Eks { token_name: "c".into() },
        ..one(&files(&[&with("server: 'https://h'")]), "c").unwrap().cluster("us-east-1", "123456789012")
    };
    let imported = one(&files(&[&with("server: 'https://h'")]), "c").unwrap().cluster("us-east-1", "123456789012");
    let names = |clusters: &[&Cluster]| {
        super::super::context_names("pa-", &clusters.iter().map(|cluster| (*cluster).clone()).collect::<Vec<_>>())
    };
    assert_eq!(names(&[&imported]), ["pa-c"]);
    assert_eq!(names(&[&eks, &imported]), ["pa-c-us-east-1", "pa-c-imported"]);
    assert_eq!(names(&[&imported, &imported]), ["pa-c-imported-us-east-1", "pa-c-imported-us-east-1-2"]);
}
