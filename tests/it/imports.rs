//! `--import-context`: clusters of the user's own kubeconfig, with the real kubectl.

use std::{fs, os::unix::fs::PermissionsExt, path::PathBuf};

use autoheal_pa::emulator::{ApiServer, BastionConfig, ClusterConfig, Config, Place, SshServerConfig, SshdConfig};
use base64::{Engine, engine::general_purpose::STANDARD};
use rustix::process::Signal;
use serde_json::Value;

use super::{
    ssh::{address, sshd},
    support::{Ended, Lab, PROGRAM, Running, kubectl, within},
};

/// Where the API server of kops is for bastions, with the port that its load balancers have for certificates of clients.
const SERVER: &str = "api-kops-example-com.elb.us-east-1.amazonaws.com:8443";

/// A name that certificates of API servers have, whatever their load balancer is called.
const SERVER_NAME: &str = "kubernetes.default.svc";

/// A cluster of EKS, and one that EKS does not know, behind a bastion.
pub(super) async fn lab_with_kops() -> Lab {
    let mut config =
        Config { clusters: vec![ClusterConfig::new("payments"), ClusterConfig::new("kops")], ..Config::default() };
    config.settings.hidden_clusters.insert("kops".to_owned());
    let lab = Lab::start(config).await;
    for name in [SERVER, "10.100.0.1:6443", "fd00:10:100::1:6443"] {
        lab.emulator.route(name, api_server(&lab).place);
    }
    lab
}

fn api_server(lab: &Lab) -> ApiServer {
    lab.emulator.api_servers().into_iter().find(|server| server.cluster == "kops").unwrap()
}

/// Writes a file of the lab's home and returns its path.
fn write(lab: &Lab, name: &str, text: &str) -> PathBuf {
    let path = lab.path(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, text).unwrap();
    path
}

/// A user who logs in with a certificate, as YAML.
fn admin(lab: &Lab, name: &str) -> String {
    let certificate = lab.emulator.client_certificate("kops", &format!("{name}@kops")).unwrap();
    let (certificate, key) = (STANDARD.encode(certificate.certificate), STANDARD.encode(certificate.key));
    format!("users: [{{name: {name}, user: {{client-certificate-data: {certificate}, client-key-data: {key}}}}}]\n")
}

/// The user's own kubeconfig: a cluster of kops, whose authority is in a file beside it.
pub(super) fn own(lab: &Lab) -> PathBuf {
    let authority = STANDARD.decode(api_server(lab).certificate_authority).unwrap();
    write(lab, ".kube/pki/ca.crt", std::str::from_utf8(&authority).unwrap());
    let text = format!(
        "apiVersion: v1\nkind: Config\nclusters: [{{name: kops, cluster: {{server: 'https://{SERVER}', tls-server-name: \
         {SERVER_NAME}, certificate-authority: pki/ca.crt}}}}]\ncontexts: [{{name: kops, context: {{cluster: kops, user: \
         admin, namespace: demo}}}}]\ncurrent-context: kops\n{}",
        admin(lab, "admin")
    );
    write(lab, ".kube/config", &text)
}

/// Runs kubectl in a shell that has evaluated what `env` prints.
pub(super) async fn kubectl_after_env(lab: &Lab, args: &str) -> Ended {
    let program = kubectl().unwrap();
    let script = format!("eval \"$({PROGRAM} env --shell bash)\" && {} {args}", program.display());
    Running::start(lab.bare_command("sh").args(["-c", &script])).ended().await
}

pub(super) const WHO_AM_I: &str = "auth whoami -o jsonpath={.status.userInfo.username}";

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_of_kops_is_reached_through_a_session_as_its_own_user() {
    if kubectl().is_none() {
        return;
    }
    let lab = lab_with_kops().await;
    let theirs = own(&lab);
    let before = fs::read(&theirs).unwrap();
    let env_file = lab.path("env");
    let up = lab.up(&["--import-context", "kops", "--env-file", env_file.to_str().unwrap()]).await;
    let list = format!("{}:{}", lab.kubeconfig().display(), theirs.display());
    assert!(up.stderr_so_far().contains(&format!("`export KUBECONFIG={list}`, as `autoheal-pa env` says")));
    assert_eq!(fs::read_to_string(&env_file).unwrap(), format!("export KUBECONFIG='{list}'\n"));

    let job = write(&lab, "job", "");
    let told = Running::start(lab.program(&["env", "--github-env"]).env("GITHUB_ENV", &job)).ended().await;
    told.assert_success();
    assert_eq!(fs::read_to_string(&job).unwrap(), format!("KUBECONFIG={list}\n"));

    let who = kubectl_after_env(&lab, &format!("--context pa-kops {WHO_AM_I}")).await;
    assert_eq!(who.assert_success(), "admin@kops\n");
    // In the namespace of the context that it was made of.
    let pods = kubectl_after_env(&lab, "--context pa-kops get pods -o name").await;
    assert!(pods.assert_success().contains("pod/chatty"), "{pods:#?}");
    let who = kubectl_after_env(&lab, &format!("--context pa-payments {WHO_AM_I}")).await;
    assert!(who.assert_success().contains(":assumed-role/"), "{who:#?}");

    let written = fs::read_to_string(lab.kubeconfig()).unwrap();
    assert!(!written.contains("client-key") && !written.contains("client-certificate"), "{written}");
    assert!(written.contains(&format!("certificate-authority: \"{}\"", lab.path(".kube/pki/ca.crt").display())));
    let status = lab.status(&[]).await;
    assert_eq!(status["imported_from"][0].as_str(), theirs.to_str());
    assert_eq!(status["tunnels"][1]["context"], "pa-kops");

    // All of it is looked at, but for what is of EKS and what the user's credentials are needed for.
    let examined = lab.run(&["doctor", "--cluster", "kops"]).await;
    let text = examined.assert_success();
    for wanted in [
        "EKS is not asked for what was imported from a kubeconfig",
        "ok       manager's tunnel     kops: 127.0.0.1:",
        "ok       certificate          kops through",
        "to a request without credentials, of which any answer will do",
        "with a user whose credentials are for kubectl alone",
    ] {
        assert!(text.contains(wanted), "{wanted}: {text}");
    }
    assert!(!text.contains("payments"), "{text}");
    let both = lab.run(&["doctor"]).await;
    assert!(both.assert_success().contains("ok       may list pods        payments through"), "{both:#?}");

    let using = lab.run(&["exec", "--import-context", "kops", "--", "sh", "-c", "echo $KUBECONFIG"]).await;
    assert_eq!(using.assert_success(), format!("{list}\n"));
    lab.run(&["down"]).await.assert_success();
    up.ended().await.assert_success();
    assert!(!fs::read_to_string(lab.kubeconfig()).unwrap().contains("kops"));
    assert_eq!(fs::read(&theirs).unwrap(), before, "what is the user's stays as it is");
    lab.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_of_files_and_an_exec_plugin_work_without_eks() {
    let Some(kubectl) = kubectl() else { return };
    let lab = lab_with_kops().await;
    lab.emulator.update(|settings| settings.denied_actions.extend(["eks:ListClusters".to_owned()]));
    let certificate = lab.emulator.client_certificate("kops", "plugin@kops\n").unwrap();
    let credential = serde_json::json!({
        "apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential",
        "status": { "clientCertificateData": certificate.certificate, "clientKeyData": certificate.key },
    });
    write(&lab, "credential.json", &credential.to_string());
    // Of the user's entry the path is relative to its file, too.
    let plugin = write(&lab, "users/bin/login", &format!("#!/bin/sh\ncat {}\n", lab.path("credential.json").display()));
    fs::set_permissions(&plugin, fs::Permissions::from_mode(0o700)).unwrap();
    let users = write(
        &lab,
        "users/config",
        "users: [{name: sso, user: {exec: {apiVersion: client.authentication.k8s.io/v1, command: ./bin/login, interactiveMode: \
         Never, provideClusterInfo: true}}}]\n",
    );
    // By its address, which the certificate is for as well.
    let clusters = write(
        &lab,
        "clusters",
        &format!(
            "clusters: [{{name: k, cluster: {{server: 'https://10.100.0.1:6443', certificate-authority-data: {}}}}}]\ncontexts: \
             [{{name: 'team/one', context: {{cluster: k, user: sso}}}}]\n",
            api_server(&lab).certificate_authority
        ),
    );
    let list = format!("{}:{}:{}", lab.path("missing").display(), clusters.display(), users.display());
    let kubectl = kubectl.to_str().unwrap();
    // An address of the other family is a name for TLS without the brackets of a URL.
    let six = fs::read_to_string(&clusters).unwrap().replace("10.100.0.1", "[fd00:10:100::1]");
    let six = format!("{}:{}", write(&lab, "six", &six).display(), users.display());
    let args = ["exec", "--base-port", "0", "--import-context", "team/one", "--", kubectl, "--context", "pa-team/one"];
    let ended = Running::start(lab.program(&args).args(WHO_AM_I.split(' ')).env("KUBECONFIG", &list)).ended().await;
    assert_eq!(ended.assert_success(), "plugin@kops\n");
    let ended = Running::start(lab.program(&args).args(WHO_AM_I.split(' ')).env("KUBECONFIG", &six)).ended().await;
    assert_eq!(ended.assert_success(), "plugin@kops\n");
    assert!(ended.stderr.contains("no clusters of EKS: not authorized to perform `eks:ListClusters`"), "{ended:#?}");

    // An access without anything to import still needs EKS.
    let ended = lab.run(&["exec", "--base-port", "0", "--", "true"]).await;
    assert_eq!(ended.code(), Some(3), "{ended:#?}");
    let bastion = lab.emulator.environment().into_iter().find(|(name, _)| name == "AUTOHEAL_PA_BASTION").unwrap().1;
    let args = ["doctor", "--bastion", &bastion, "--import-context", "team/one"];
    let examined = Running::start(lab.program(&args).env("KUBECONFIG", &list)).ended().await;
    let text = examined.assert_success();
    assert!(
        text.contains("warning  list clusters") && text.contains("ok       API answers          team/one"),
        "{text}"
    );
    lab.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ssh_server_and_no_bastion_lead_there_as_well() {
    if kubectl().is_none() {
        return;
    }
    let Some(sshd) = sshd(SshdConfig::default()) else { return };
    let mut bastion = BastionConfig::new("i-0dc03fbcae2a87472");
    bastion.public_address = Some("127.0.0.1".to_owned());
    bastion.ssh = Some(SshServerConfig::new(sshd.address(), sshd.user(), sshd.keys_of(sshd.user())));
    let cluster = ClusterConfig { local: true, ..ClusterConfig::new("kops") };
    let mut config = Config { clusters: vec![cluster], bastions: vec![bastion], ..Config::default() };
    config.settings.hidden_clusters.insert("kops".to_owned());
    let lab = Lab::start(config).await;
    let server = api_server(&lab);
    let Place::Socket(place) = server.place else { panic!("a lab has sockets") };
    // There are no clusters of EKS at all.
    let text = format!(
        "clusters: [{{name: k, cluster: {{server: 'https://{place}/', tls-server-name: {SERVER_NAME}, proxy-url: \
         'http://127.0.0.1:1', certificate-authority-data: {}}}}}]\ncontexts: [{{name: k3s, context: {{cluster: k, user: admin}}}}]\n{}",
        server.certificate_authority,
        admin(&lab, "admin")
    );
    let file = write(&lab, "k3s.yaml", &text);
    for bastion in [address(&sshd, "?host_key=new"), "direct".to_owned()] {
        let args = ["--bastion", &bastion, "--import-context", "k3s", "--import-kubeconfig", file.to_str().unwrap()];
        let up = lab.up(&args).await;
        assert!(up.stderr_so_far().contains("the `proxy-url` of `k3s` is not used"), "{}", up.stderr_so_far());
        let who = kubectl_after_env(&lab, &format!("--context pa-k3s {WHO_AM_I}")).await;
        assert_eq!(who.assert_success(), "admin@kops\n", "{bastion}");
        let examined = lab.run(&["doctor"]).await;
        let passed = "ok       API answers          k3s through";
        assert!(examined.assert_success().contains(passed), "{bastion}: {examined:#?}");
        up.stop().await.assert_success();
    }
    assert!(lab.emulator.sessions().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_proxy_leads_to_the_very_host_and_port() {
    let Some(kubectl) = kubectl() else { return };
    let lab = lab_with_kops().await;
    own(&lab);
    let args = ["--import-context", "kops", "--kubeconfig-mode", "proxy", "--proxy", "0"];
    let up = lab.up(&args).await;
    let written = fs::read_to_string(lab.kubeconfig()).unwrap();
    for wanted in [format!("server: \"https://{SERVER}\""), format!("tls-server-name: \"{SERVER_NAME}\"")] {
        assert!(written.contains(&wanted), "{wanted}: {written}");
    }
    let who = kubectl_after_env(&lab, &format!("--context pa-kops {WHO_AM_I}")).await;
    assert_eq!(who.assert_success(), "admin@kops\n");
    // Another port of the same host is another destination.
    let other = written.replace(&format!("https://{SERVER}"), &format!("https://{}", SERVER.replace(":8443", ":443")));
    let other = write(&lab, "other.yaml", &other);
    let list = format!("{}:{}", other.display(), lab.path(".kube/config").display());
    let mut refused = lab.bare_command(kubectl);
    refused.args(["--context", "pa-kops", "get", "pods", "--request-timeout=20s"]).env("KUBECONFIG", list);
    let refused = Running::start(&mut refused).ended().await;
    assert!(!refused.status.success() && refused.stderr.contains("Forbidden"), "{refused:#?}");
    up.stop().await.assert_success();
    lab.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn contexts_may_be_written_where_the_users_are() {
    let Some(kubectl) = kubectl() else { return };
    let lab = lab_with_kops().await;
    let theirs = own(&lab);
    let up = lab.up(&["--import-context", "kops", "--kubeconfig", theirs.to_str().unwrap()]).await;
    assert!(!up.stderr_so_far().contains("KUBECONFIG"), "{}", up.stderr_so_far());
    // kubectl reads this file without being told.
    let mut who = lab.bare_command(&kubectl);
    who.args(["--context", "pa-kops"]).args(WHO_AM_I.split(' '));
    assert_eq!(Running::start(&mut who).ended().await.assert_success(), "admin@kops\n");
    let env = lab.run(&["env", "--shell", "bash"]).await;
    assert_eq!(env.assert_success(), format!("export KUBECONFIG='{}'\n", theirs.display()));
    lab.run(&["down"]).await.assert_success();
    up.ended().await.assert_success();
    let left = fs::read_to_string(&theirs).unwrap();
    assert!(!left.contains("pa-") && left.contains("client-key-data") && left.contains(SERVER), "{left}");
    lab.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_an_authority_those_of_the_system_count() {
    let Some(kubectl) = kubectl() else { return };
    let lab = lab_with_kops().await;
    let authority = STANDARD.decode(api_server(&lab).certificate_authority).unwrap();
    let trusted = write(&lab, "trusted.pem", std::str::from_utf8(&authority).unwrap());
    let text = format!(
        "clusters: [{{name: k, cluster: {{server: 'https://{SERVER}', tls-server-name: {SERVER_NAME}}}}}]\ncontexts: [{{name: k, \
         context: {{cluster: k, user: admin}}}}]\n{}",
        admin(&lab, "admin")
    );
    write(&lab, ".kube/config", &text);
    let args = ["exec", "--base-port", "0", "--import-context", "k", "--cluster", "payments", "--"];
    let mut ended = lab.program(&args);
    ended.arg(&kubectl).args(["--context", "pa-k"]).args(WHO_AM_I.split(' '));
    ended.env("SSL_CERT_FILE", &trusted);
    assert_eq!(Running::start(&mut ended).ended().await.assert_success(), "admin@kops\n");
    let mut ended =
        lab.program(&["exec", "--base-port", "0", "--import-context", "k", "--timeout", "5s", "--", "true"]);
    let others = lab.emulator.api_servers().into_iter().find(|server| server.cluster == "payments").unwrap();
    let others = STANDARD.decode(others.certificate_authority).unwrap();
    let other = write(&lab, "other.pem", std::str::from_utf8(&others).unwrap());
    ended.env("SSL_CERT_FILE", other);
    let ended = Running::start(&mut ended).ended().await;
    assert_eq!(ended.code(), Some(5), "{ended:#?}");
    assert!(ended.stderr.contains(&format!("the certificate of `{SERVER_NAME}` does not verify")), "{ended:#?}");
    lab.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_follows_the_users_kubeconfig() {
    let lab = lab_with_kops().await;
    let theirs = own(&lab);
    let text = fs::read_to_string(&theirs).unwrap();
    let mut up = lab.up(&["--import-context", "kops"]).await;
    let tunnel = |status: &Value| {
        let tunnels = status["tunnels"].as_array().unwrap();
        tunnels.iter().find(|tunnel| tunnel["cluster"] == "kops").cloned().unwrap()
    };
    let before = tunnel(&lab.status(&[]).await);
    // Another namespace and another user: the tunnel is the same.
    let changed = text.replace("namespace: demo", "namespace: other").replace("admin", "second");
    fs::write(&theirs, &changed).unwrap();
    let reloaded = lab.run(&["reload"]).await;
    reloaded.assert_success();
    let after = tunnel(&lab.status(&[]).await);
    assert_eq!((&after["session_id"], &after["port"]), (&before["session_id"], &before["port"]));
    let written = fs::read_to_string(lab.kubeconfig()).unwrap();
    assert!(written.contains("namespace: \"other\"") && written.contains("user: \"second\""), "{written}");

    // Another server: another tunnel.
    fs::write(&theirs, changed.replace(SERVER, "10.100.0.1:6443")).unwrap();
    lab.run(&["reload"]).await.assert_success();
    let moved = async { while tunnel(&lab.status(&[]).await)["state"] != "active" {} };
    within("the tunnel to the other server", moved).await;
    let moved = tunnel(&lab.status(&[]).await);
    assert_ne!(moved["session_id"], before["session_id"]);

    // What cannot be read any more is said, and what works goes on.
    fs::write(&theirs, "kind: Config\n").unwrap();
    up.signal(Signal::HUP);
    assert!(up.says("there is no context `kops` in").await);
    assert!(up.says("0 added, 0 removed, 2 kept").await);
    assert_eq!(tunnel(&lab.status(&[]).await)["session_id"], moved["session_id"]);
    up.stop().await.assert_success();
    lab.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_imported_is_said_before_any_call() {
    let lab = lab_with_kops().await;
    let theirs = own(&lab);
    let text = fs::read_to_string(&theirs).unwrap();
    let with = |from: &str, to: &str| text.replace(from, to);
    let server = format!("https://{SERVER}");
    for (text, name, code, wanted) in [
        (with("pki/ca.crt", "pki/ca.crt, insecure-skip-tls-verify: true"), "kops", 2, "insecure-skip-tls-verify"),
        (text.clone(), "kosp", 4, "hint: did you mean `kops`?"),
        (text.clone(), "something-else", 4, "hint: there are `kops`"),
        (with("cluster: kops, user", "user"), "kops", 2, "cannot import the context `kops`: it names no cluster"),
        (with(", user: admin", ""), "kops", 2, "it names no user"),
        (with("user: admin", "user: nobody"), "kops", 2, "there is no user `nobody`, which it names"),
        (with("cluster: kops, user", "cluster: gone, user"), "kops", 2, "there is no cluster `gone`, which it names"),
        (with("https://", "http://"), "kops", 2, "`server` is plain http"),
        (with(&server, "https://"), "kops", 2, "`server` is not an https URL with a host"),
        (with("pki/ca.crt", "pki/gone.crt"), "kops", 2, "cannot read its certificate authority"),
        ("clusters: [".to_owned(), "kops", 2, "cannot parse the kubeconfig"),
        ("[]".to_owned(), "kops", 2, "is not a kubeconfig: it does not hold a mapping"),
    ] {
        fs::write(&theirs, text).unwrap();
        let ended = lab.run(&["exec", "--base-port", "0", "--import-context", name, "--", "true"]).await;
        assert_eq!(ended.code(), Some(code), "{wanted}: {ended:#?}");
        assert!(ended.stderr.contains(wanted) && ended.stderr.contains("\nhint: "), "{wanted}: {ended:#?}");
    }
    fs::remove_file(&theirs).unwrap();
    let ended = lab.run(&["exec", "--base-port", "0", "--import-context", "kops", "--", "true"]).await;
    assert_eq!(ended.code(), Some(2), "{ended:#?}");
    assert!(ended.stderr.contains("there is no kubeconfig to import contexts from: `"), "{ended:#?}");
    assert_eq!(lab.emulator.events(), [], "nothing was called");

    // One of ours is not imported, and a user of another file is not shadowed.
    fs::write(&theirs, &text).unwrap();
    let up = lab.up(&["--name", "first", "--import-context", "kops"]).await;
    let ours = lab.path(".kube/autoheal-pa-first.yaml");
    let args =
        ["exec", "--base-port", "0", "--import-context", "pa-kops", "--import-kubeconfig", ours.to_str().unwrap()];
    let ended = Running::start(lab.program(&args).args(["--", "true"])).ended().await;
    assert_eq!(ended.code(), Some(2), "{ended:#?}");
    assert!(ended.stderr.contains("it is one that this program has written, for the manager `first`"), "{ended:#?}");
    up.stop().await.assert_success();
    let calls = lab.emulator.events().len();
    let taken = "kind: Config\nusers: [{name: admin, user: {token: other}}]\n";
    let other = write(&lab, "other", taken);
    let args = ["up", "--base-port", "0", "--import-context", "kops", "--kubeconfig", other.to_str().unwrap()];
    let ended = lab.run(&args).await;
    assert_eq!(ended.code(), Some(2), "{ended:#?}");
    assert!(ended.stderr.contains("has an entry `admin` in `users`, and so has"), "{ended:#?}");
    assert_eq!(fs::read_to_string(&other).unwrap(), taken);
    assert_eq!(lab.emulator.events().len(), calls, "nothing was called");

    // Who tells the network of a cluster is EKS.
    for (bastion, wanted) in [
        ("fargate", "a kubeconfig does not tell which VPC `kops` is in, so no task can be started there"),
        ("auto", "a kubeconfig does not say in which network `kops` is"),
    ] {
        let args = ["--base-port", "0", "--bastion", bastion, "--import-context", "kops", "--timeout", "5s"];
        let ended = Running::start(lab.program(&["exec"]).args(args).args(["--", "true"])).ended().await;
        assert!(!ended.status.success() && ended.stderr.contains(wanted), "{bastion}: {ended:#?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_policy_for_it_has_nothing_of_eks() {
    let lab = lab_with_kops().await;
    let args = ["policy", "--region", "us-east-1", "--account-id", "123456789012", "--import-context", "kops"];
    let ended = lab.run(&args).await;
    let policy = ended.assert_success();
    assert!(policy.contains("ssm:StartSession") && !policy.contains("eks:"), "{policy}");
    let role = ["--terraform", "--role-arn", "arn:aws:iam::123456789012:role/ReadOnly"];
    let ended = Running::start(lab.program(&args).args(role)).ended().await;
    assert!(!ended.assert_success().contains("eks"), "{ended:#?}");
    let ended = Running::start(lab.program(&args).args(["--cluster", "payments"])).ended().await;
    assert!(ended.assert_success().contains("cluster/payments"), "{ended:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_that_imports_the_first_context_tells_where_its_user_is() {
    let lab = lab_with_kops().await;
    let (theirs, env) = (own(&lab), lab.path("env"));
    let settings = |more: &str| {
        let entry = format!("region: us-east-1, bastion: i-0dc03fbcae2a87472{more}");
        write(&lab, "config.yaml", &format!("env_file: {}\naccess: [{{{entry}}}]\n", env.display()))
    };
    let file = settings("");
    let up = lab.up(&["--config", file.to_str().unwrap()]).await;
    let ours = lab.path(".kube/autoheal-pa.yaml");
    let exported = || fs::read_to_string(&env).unwrap();
    assert_eq!(exported(), format!("export KUBECONFIG='{}'\n", ours.display()));
    // Names of clusters are none of contexts.
    let exec =
        async |args: &[&str]| Running::start(lab.program(&["exec"]).args(args).args(["--", "true"])).ended().await;
    let ended = exec(&["--import-context", "payments"]).await;
    assert_eq!(ended.code(), Some(4), "{ended:#?}");
    assert!(ended.stderr.contains("has no tunnel to the cluster of the context `payments`"), "{ended:#?}");
    settings(", import_contexts: [kops]");
    lab.run(&["reload"]).await.assert_success();
    assert_eq!(exported(), format!("export KUBECONFIG='{}:{}'\n", ours.display(), theirs.display()));
    let said = up.stderr_so_far();
    assert!(said.contains("imported contexts have their users elsewhere: `export KUBECONFIG="), "{said}");
    exec(&["--import-context", "kops"]).await.assert_success();
    let ended = exec(&["--cluster", "kops"]).await;
    assert!(ended.code() == Some(4) && ended.stderr.contains("has no tunnel to `kops`"), "{ended:#?}");
    up.stop().await.assert_success();
    lab.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_does_not_mix_up_two_clusters_with_one_address() {
    let mut config = Config { clusters: vec![ClusterConfig::new("a"), ClusterConfig::new("b")], ..Config::default() };
    config.bastions.push(BastionConfig::new("i-0dc03fbcae2a87473"));
    let lab = Lab::start(config).await;
    let clusters =
        ["one", "two"].map(|name| format!("{{name: {name}, cluster: {{server: 'https://10.0.0.10:6443'}}}}"));
    let contexts = ["one", "two"].map(|name| format!("{{name: {name}, context: {{cluster: {name}, user: u}}}}"));
    let text = format!(
        "kind: Config\nclusters: [{}]\ncontexts: [{}]\nusers: [{{name: u, user: {{token: secret}}}}]\n",
        clusters.join(", "),
        contexts.join(", ")
    );
    write(&lab, ".kube/config", &text);
    let entry = |bastion: &str, cluster: &str, context: &str| {
        format!("- {{region: us-east-1, bastion: {bastion}, clusters: [{cluster}], import_contexts: [{context}]}}\n")
    };
    let entries = [entry("i-0dc03fbcae2a87472", "a", "one"), entry("i-0dc03fbcae2a87473", "b", "two")].concat();
    let file = write(&lab, "config.yaml", &format!("kubeconfig_mode: proxy\nproxy: 0\naccess:\n{entries}"));
    let ended = lab.run(&["up", "--base-port", "0", "--config", file.to_str().unwrap()]).await;
    assert_eq!(ended.code(), Some(2), "{ended:#?}");
    let said = "`pa-one` and `pa-two` both lead to `10.0.0.10:6443`, which a proxy cannot tell apart";
    assert!(ended.stderr.contains(said) && ended.stderr.contains("--kubeconfig-mode direct"), "{ended:#?}");
    assert!(!lab.path(".kube/autoheal-pa.yaml").exists() && !ended.stderr.contains("secret"));
}
