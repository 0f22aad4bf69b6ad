//! `--bastion ssh://…`: OpenSSH's own server, and an emulated EC2 Instance Connect.

use std::{
    io::Write as _,
    path::{Path, PathBuf},
};

use autoheal_pa::emulator::{
    BastionConfig, ClusterConfig, Config, ConnectEndpointConfig, Event, SshServerConfig, Sshd, SshdConfig,
};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client,
    config::{KubeConfigOptions, Kubeconfig},
};
use tokio::io::AsyncWriteExt as _;

use super::support::{Lab, PROGRAM, Running, kubectl, path_variable, within};

const ID: &str = "i-0dc03fbcae2a87472";

/// Starts OpenSSH's server, if there is one.
pub(crate) fn sshd(config: SshdConfig) -> Option<Sshd> {
    program().map(|program| Sshd::start(&program, config).expect("it starts"))
}

/// OpenSSH's server, if there is one. In the gate there has to be.
#[expect(clippy::disallowed_methods, reason = "the gate asks for it by a variable")]
pub(crate) fn program() -> Option<PathBuf> {
    let found = Sshd::find(std::env::split_paths(&path_variable()));
    let required = std::env::var_os("AUTOHEAL_PA_TEST_REQUIRES_SSHD").is_some();
    assert!(found.is_some() || !required, "sshd is not on the PATH");
    if found.is_none() {
        // Past the test runner, which keeps back what passing tests print.
        let _written = writeln!(std::io::stderr(), "SKIPPED: there is no sshd to connect to");
    }
    found
}

/// Two clusters behind a bastion with this server.
pub(crate) async fn lab(sshd: &Sshd) -> Lab {
    lab_with(sshd, |_| ()).await
}

/// The same with something else about it.
async fn lab_with(sshd: &Sshd, change: impl FnOnce(&mut Config)) -> Lab {
    let cluster = |name: &str| ClusterConfig { local: true, ..ClusterConfig::new(name) };
    let mut bastion = BastionConfig::new(ID);
    bastion.public_address = Some("127.0.0.1".to_owned());
    bastion.ssh = Some(SshServerConfig::new(sshd.address(), sshd.user(), sshd.keys_of(sshd.user())));
    let endpoint = ConnectEndpointConfig {
        id: "eice-0123456789abcdef0".to_owned(),
        vpc: bastion.vpc.clone(),
        subnet: "subnet-0a1b2c3d4e5f60718".to_owned(),
        dns_name: None,
        state: "create-complete".to_owned(),
    };
    let clusters = vec![cluster("payments"), cluster("search")];
    let mut config =
        Config { clusters, bastions: vec![bastion], connect_endpoints: vec![endpoint], ..Config::default() };
    change(&mut config);
    Lab::start(config).await
}

/// The address of the bastion, with these options.
pub(crate) fn address(sshd: &Sshd, options: &str) -> String {
    format!("ssh://{}@{ID}:{}{options}", sshd.user(), sshd.address().port())
}

/// Lists the pods of the cluster that the kubeconfig is about.
async fn pods(lab: &Lab) -> usize {
    let kubeconfig = Kubeconfig::read_from(lab.kubeconfig()).unwrap();
    let config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
    let pods: Api<Pod> = Api::namespaced(Client::try_from(config).unwrap(), "demo");
    within("the pods", pods.list(&Default::default())).await.unwrap().items.len()
}

#[tokio::test(flavor = "multi_thread")]
async fn one_connection_leads_to_all_clusters() {
    let Some(sshd) = sshd(SshdConfig::default()) else { return };
    let lab = lab(&sshd).await;
    let bastion = address(&sshd, "?host_key=new");
    let up = lab.up(&["--bastion", &bastion]).await;
    assert!(pods(&lab).await > 0);
    let tunnels = lab.status(&[]).await["tunnels"].clone();
    for tunnel in tunnels.as_array().unwrap() {
        let through = format!("{ID}, {}, SHA256:", sshd.address());
        assert_eq!((tunnel["state"].as_str(), tunnel["bastion"].as_str()), (Some("active"), Some(bastion.as_str())));
        assert!(tunnel["target"].as_str().is_some_and(|target| target.starts_with(&through)), "{tunnel}");
    }
    assert_eq!(tunnels.as_array().map(Vec::len), Some(2));
    assert_eq!(lab.count(|event| matches!(event, Event::KeyPushed { .. })), 1);
    assert!(lab.emulator.sessions().is_empty(), "nothing is asked of Systems Manager");
    let known = std::fs::read_to_string(lab.path(".local/state/autoheal-pa/known_hosts")).unwrap();
    assert_eq!(known, format!("{ID} {}\n", sshd.host_key().unwrap()));

    // The key is known by now.
    let examined = lab.run(&["doctor", "--bastion", &address(&sshd, "")]).await;
    let text = examined.assert_success();
    for wanted in ["ok       bastion known ", "ok       host key ", "ok       key pushed ", "ok       login "] {
        assert!(text.contains(wanted), "{wanted}: {text}");
    }
    assert!(text.contains("ok       bastion reaches API  payments through ssh://"), "{text}");
    let examined = lab.run(&["doctor", "--bastion", &format!("ssh://somebody@{ID}:{}", sshd.address().port())]).await;
    assert_eq!(examined.code(), Some(6), "{examined:#?}");
    for wanted in ["ok       key pushed ", "failed   login ", "not tried without `login`", "`ec2-user`, `ubuntu`"] {
        assert!(examined.stdout.contains(wanted), "{wanted}: {}", examined.stdout);
    }
    up.stop().await.assert_success();
    lab.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bastion_that_comes_back_is_used_again_and_the_port_stays() {
    let Some(mut sshd) = sshd(SshdConfig::default()) else { return };
    let lab = lab(&sshd).await;
    let up = lab.up(&["--bastion", &address(&sshd, "?host_key=new")]).await;
    assert!(pods(&lab).await > 0);
    sshd.kill().unwrap();
    let down = async { while lab.status(&[]).await["tunnels"][0]["state"] == "active" {} };
    within("the loss to be noticed", down).await;
    sshd.start_again().unwrap();
    // It waits for the tunnel.
    assert!(pods(&lab).await > 0);
    up.stop().await.assert_success();
    lab.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_leads_to_a_private_address() {
    let Some(sshd) = sshd(SshdConfig::default()) else { return };
    let lab = lab(&sshd).await;
    let up = lab.up(&["--bastion", &format!("ssh://{}@{ID}?via=eice", sshd.user())]).await;
    assert!(pods(&lab).await > 0);
    let target = lab.status(&[]).await["tunnels"][0]["target"].clone();
    assert!(target.as_str().unwrap().contains(" through eice-0123456789abcdef0, SHA256:"), "{target}");
    assert_eq!(lab.count(|event| matches!(event, Event::TunnelOpened { .. })), 1);
    up.stop().await.assert_success();
    lab.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_is_said_with_its_exit_code() {
    let Some(sshd) = sshd(SshdConfig::default()) else { return };
    let lab = lab(&sshd).await;
    let port = sshd.address().port();
    for (bastion, code, wanted) in [
        (address(&sshd, ""), 5, "is not known: it is SHA256:"),
        (format!("ssh://somebody@{ID}:{port}?host_key=new"), 3, "does not let `somebody` in"),
        ("ssh://i-00000000".to_owned(), 4, "there is no instance `i-00000000`"),
        (address(&sshd, "?key=agent&host_key=new"), 3, "there is no SSH agent"),
        (format!("ssh://somebody@{ID}:{port}?via=eice"), 5, "The specified RemotePort is not valid"),
    ] {
        let args = ["exec", "--base-port", "0", "--bastion", &bastion, "--timeout", "5s", "--", "true"];
        let ended = lab.run(&args).await;
        assert!(ended.stderr.contains(wanted), "{bastion}: {ended:#?}");
        assert_eq!(ended.code(), Some(code), "{bastion}: {ended:#?}");
        assert!(ended.stderr.contains("hint: "), "{bastion}: {ended:#?}");
    }
    lab.emulator
        .update(|settings| settings.denied_actions.extend(["ec2-instance-connect:SendSSHPublicKey".to_owned()]));
    let bastion = address(&sshd, "?host_key=new");
    let args = ["exec", "--base-port", "0", "--bastion", &bastion, "--timeout", "5s", "--", "true"];
    let ended = lab.run(&args).await;
    assert!(ended.stderr.contains("no key could be pushed to `i-"), "{ended:#?}");
    assert_eq!(ended.code(), Some(3), "{ended:#?}");
    let ended = lab.run(&["up", "--bastion", "ssh://bastion?key=password"]).await;
    assert_eq!(ended.code(), Some(2), "{ended:#?}");
    assert!(ended.stderr.contains("`ssh://[<user>@]<instance or host>`"), "{ended:#?}");
}

/// Runs a command behind a bastion, and looks at what it ends with.
async fn assert_fails(lab: &Lab, bastion: &str, variables: &[(&str, &Path)], code: i32, wanted: &[&str]) {
    let args = ["exec", "--base-port", "0", "--bastion", bastion, "--timeout", "5s", "--", "true"];
    let mut command = lab.program(&args);
    command.envs(variables.iter().copied());
    let ended = within("the end", Running::start(&mut command).ended()).await;
    assert_eq!(ended.code(), Some(code), "{bastion}: {ended:#?}");
    for wanted in wanted {
        assert!(ended.stderr.contains(wanted), "{bastion}: {wanted}: {ended:#?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_that_is_closed_is_named_with_what_must_be_open() {
    let Some(sshd) = sshd(SshdConfig::default()) else { return };
    let lab = lab(&sshd).await;
    // It is taken, and nobody listens there.
    let closed = tokio::net::TcpSocket::new_v4().unwrap();
    closed.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = closed.local_addr().unwrap();
    let said = format!("no connection to `{address}`");
    let hint = format!("must admit this machine on port {}", address.port());
    assert_fails(&lab, &format!("ssh://{ID}:{}", address.port()), &[], 4, &[&said, &hint, "`via=eice`"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_does_not_forward_is_told_what_its_configuration_must_say() {
    let options = vec!["AllowTcpForwarding no".to_owned()];
    let Some(sshd) = sshd(SshdConfig { options, ..SshdConfig::default() }) else { return };
    let lab = lab(&sshd).await;
    let wanted = ["the bastion opens no connection to `127.0.0.1:", "hint: `sshd_config`", "`AllowTcpForwarding yes`"];
    assert_fails(&lab, &address(&sshd, "?host_key=new"), &[], 5, &wanted).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_without_any_address_is_named() {
    let Some(sshd) = sshd(SshdConfig::default()) else { return };
    let lab = lab_with(&sshd, |config| {
        config.connect_endpoints.clear();
        config.bastions[0].public_address = None;
        config.bastions[0].private_address = Some(String::new());
    })
    .await;
    assert_fails(&lab, &address(&sshd, ""), &[], 4, &[&format!("instance `{ID}` has no address")]).await;
    let wanted = [&format!("of `{ID}` has no EC2 Instance Connect Endpoint"), "create-instance-connect-endpoint"];
    assert_fails(&lab, &format!("ssh://{ID}?via=eice"), &[], 4, &wanted).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bastion_that_does_not_ask_for_pushed_keys_is_told_what_it_needs() {
    let Some(sshd) = sshd(SshdConfig::default()) else { return };
    let lab = lab_with(&sshd, |config| {
        if let Some(server) = &mut config.bastions[0].ssh {
            server.installed = false;
        }
    })
    .await;
    let said = format!("does not let `{}` in with the key of this program", sshd.user());
    let wanted = [said.as_str(), "the package `ec2-instance-connect`", "`key=agent`"];
    assert_fails(&lab, &address(&sshd, "?host_key=new"), &[], 3, &wanted).await;
    assert!(lab.count(|event| matches!(event, Event::KeyPushed { .. })) > 0, "the push itself is let through");
}

/// OpenSSH's agent. It ends with what it is dropped with.
struct Agent {
    folder: tempfile::TempDir,
    _child: tokio::process::Child,
}

impl Agent {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut command = tokio::process::Command::new("ssh-agent");
        command.arg("-D").arg("-a").arg(folder.path().join("socket")).stdout(std::process::Stdio::null());
        let agent = Self { _child: command.kill_on_drop(true).spawn().unwrap(), folder };
        let is_there = async {
            while tokio::net::UnixStream::connect(agent.socket()).await.is_err() {
                tokio::task::yield_now().await;
            }
        };
        within("the agent", is_there).await;
        agent
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("socket")
    }

    /// Makes a key of a kind, and gives it to the agent.
    async fn add(&self, kind: &str) {
        let file = self.folder.path().join(kind);
        let mut make = tokio::process::Command::new("ssh-keygen");
        make.args(["-q", "-N", "", "-t", kind, "-f"]).arg(&file);
        let mut add = tokio::process::Command::new("ssh-add");
        add.arg("-q").arg(&file).env("SSH_AUTH_SOCK", self.socket());
        for command in [&mut make, &mut add] {
            assert!(command.status().await.unwrap().success(), "{command:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_without_a_key_of_use_is_told_which_kinds_are() {
    let Some(sshd) = sshd(SshdConfig::default()) else { return };
    let lab = lab(&sshd).await;
    let bastion = address(&sshd, "?key=agent&host_key=new");
    let agent = Agent::start().await;
    let socket = agent.socket();
    let variables = [("SSH_AUTH_SOCK", socket.as_path())];
    let hint = "RSA keys are not supported: add another kind with `ssh-keygen -t ed25519` and `ssh-add`";
    assert_fails(&lab, &bastion, &variables, 3, &["has no Ed25519 or ECDSA key, of 0", hint]).await;
    agent.add("rsa").await;
    assert_fails(&lab, &bastion, &variables, 3, &["has no Ed25519 or ECDSA key, of 1", hint]).await;
    // One that could be used, and is not known there.
    agent.add("ed25519").await;
    let said = format!("does not let `{}` in with any of 1 keys of the SSH agent", sshd.user());
    assert_fails(&lab, &bastion, &variables, 3, &[&said, "`~/.ssh/authorized_keys`"]).await;
    let nowhere = lab.path("nowhere");
    let said = format!("there is no SSH agent at `{}`", nowhere.display());
    assert_fails(&lab, &bastion, &[("SSH_AUTH_SOCK", &nowhere)], 3, &[&said, "ssh-add"]).await;
    sshd.admit(&std::fs::read_to_string(agent.folder.path().join("ed25519.pub")).unwrap()).unwrap();
    let args = ["exec", "--base-port", "0", "--bastion", &bastion, "--", "true"];
    let mut command = lab.program(&args);
    within("the end", Running::start(command.envs(variables)).ended()).await.assert_success();
}

/// Runs the program on a terminal of its own, of which stdin and stdout are the other end.
fn on_terminal(lab: &Lab, arguments: &str, more: &[(&str, &str)]) -> Running {
    let mut command = lab.command("script");
    let line = format!("exec '{PROGRAM}' {arguments}");
    command.args(["--quiet", "--return", "--flush", "--command", &line, "/dev/null"]);
    command.stdin(std::process::Stdio::piped());
    Running::start(command.env_remove("CI").envs(more.iter().copied()))
}

fn up_on_terminal(lab: &Lab, bastion: &str, more: &[(&str, &str)]) -> Running {
    on_terminal(lab, &format!("up --base-port 0 --timeout 20s --bastion '{bastion}'"), more)
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_asked_about_a_key_in_the_background_or_under_a_command() {
    let Some(sshd) = sshd(SshdConfig::default()) else { return };
    let lab = lab(&sshd).await;
    let options = format!("--base-port 0 --timeout 20s --bastion '{}'", address(&sshd, ""));
    for arguments in [format!("up --detach {options}"), format!("exec {options} -- true")] {
        let ended = within("the end", on_terminal(&lab, &arguments, &[]).ended()).await;
        assert_eq!(ended.code(), Some(5), "{ended:#?}");
        assert!(ended.stdout.contains("is not known: it is SHA256:"), "{ended:#?}");
        assert!(!ended.stdout.contains("take it, and keep it"), "{ended:#?}");
    }
    assert_eq!(lab.count(|event| matches!(event, Event::KeyPushed { .. })), 0);
    assert!(!lab.path(".local/state/autoheal-pa/known_hosts").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_nobody_knows_is_asked_about_on_a_terminal() {
    let Some(sshd) = sshd(SshdConfig::default()) else { return };
    let lab = lab(&sshd).await;
    let known = lab.path(".local/state/autoheal-pa/known_hosts");
    let bastion = address(&sshd, "");
    // Nobody answers: Ctrl-C.
    let mut up = up_on_terminal(&lab, &bastion, &[]);
    let mut keyboard = up.stdin();
    assert!(up.prints("compare it with what `ssh-keygen").await, "{}", up.stdout_so_far());
    keyboard.write_all(b"\x03").await.unwrap();
    let ended = within("the end", up.ended()).await;
    assert_eq!(ended.code(), Some(130), "{ended:#?}");
    // The answer is no, once for all tunnels.
    for answer in [&b"maybe\nno\n"[..], b"SHA256:abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNO+/\n"] {
        let mut up = up_on_terminal(&lab, &bastion, &[]);
        let mut keyboard = up.stdin();
        assert!(up.prints("compare it with what `ssh-keygen").await, "{}", up.stdout_so_far());
        keyboard.write_all(answer).await.unwrap();
        let ended = within("the end", up.ended()).await;
        assert_eq!(ended.code(), Some(5), "{ended:#?}");
        assert_eq!(ended.stdout.contains("please answer `yes`"), answer.starts_with(b"maybe"), "{ended:#?}");
        assert_eq!(ended.stdout.matches("take it, and keep it").count(), answer.split(|b| *b == b'\n').count() - 1);
    }
    assert_eq!(lab.count(|event| matches!(event, Event::KeyPushed { .. })), 0);
    assert!(!known.exists());
    // Nobody is asked where nobody watches.
    let ended = within("the end", up_on_terminal(&lab, &bastion, &[("CI", "true")]).ended()).await;
    assert_eq!(ended.code(), Some(5), "{ended:#?}");
    assert!(!ended.stdout.contains("take it, and keep it"), "{ended:#?}");
    // The answer is yes, and it is not asked again.
    for asks in [true, false] {
        let mut up = up_on_terminal(&lab, &bastion, &[]);
        let mut keyboard = up.stdin();
        if asks {
            assert!(up.prints("compare it with what `ssh-keygen").await, "{}", up.stdout_so_far());
            keyboard.write_all(b"yes\n").await.unwrap();
        }
        assert!(up.prints("tunnel ready").await, "{}", up.stdout_so_far());
        assert_eq!(up.stdout_so_far().contains("take it, and keep it"), asks, "{}", up.stdout_so_far());
        keyboard.write_all(b"\x03").await.unwrap();
        assert_eq!(within("the end", up.ended()).await.code(), Some(0));
    }
    assert_eq!(std::fs::read_to_string(&known).unwrap(), format!("{ID} {}\n", sshd.host_key().unwrap()));
    lab.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn its_policy_pushes_keys_for_one_user() {
    let lab = Lab::start(Config::default()).await;
    let bastion = format!("ssh://ubuntu@{ID}");
    let args = ["policy", "--bastion", &bastion, "--region", "us-east-1", "--account-id", "123456789012"];
    let ended = lab.run(&args).await;
    let policy: serde_json::Value = serde_json::from_str(ended.assert_success()).unwrap();
    insta::assert_snapshot!(serde_json::to_string_pretty(&policy["Statement"]).unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_demo_goes_through_a_server_of_its_own() {
    if program().is_none() {
        return;
    }
    let lab = Lab::start(Config::default()).await;
    let run = async |command: &[&str]| {
        let mut demo = lab.bare_command(PROGRAM);
        demo.args(["demo", "--bastion", "ssh", "--base-port", "0", "--fault", "close-tunnel=30s", "--"]).args(command);
        within("the demo", Running::start(&mut demo).ended()).await
    };
    let ended = run(&["sh", "-c", "test -s \"$KUBECONFIG\" && exit 7"]).await;
    assert_eq!(ended.code(), Some(7), "{ended:#?}");
    assert!(ended.stderr.contains("active through ssh://"), "{ended:#?}");
    assert!(!ended.stderr.contains("WARN"), "the key of its server is known: {ended:#?}");
    if kubectl().is_some() {
        let ended = run(&["kubectl", "--context", "pa-payments", "get", "pods", "-A"]).await;
        assert!(ended.assert_success().contains("kube-system"), "{ended:#?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_demo_says_where_a_server_comes_from() {
    // Where systems have it, it is found whatever the variable says.
    if Sshd::find([]).is_some() {
        return;
    }
    let lab = Lab::start(Config::default()).await;
    let mut demo = lab.bare_command(PROGRAM);
    demo.args(["demo", "--bastion", "ssh", "--base-port", "0", "--", "true"]).env("PATH", "/usr/bin:/bin");
    let ended = within("the demo", Running::start(&mut demo).ended()).await;
    assert_eq!(ended.code(), Some(2), "{ended:#?}");
    assert!(ended.stderr.starts_with("error: `--bastion ssh` needs `sshd`, "), "{ended:#?}");
    assert!(ended.stderr.contains("hint: install OpenSSH's server"), "{ended:#?}");
}
