//! `--forward`, `forwards` and `forward`: hosts behind a bastion that are no clusters.

use std::{fs, net::SocketAddr, time::Duration};

use autoheal_pa::emulator::{BastionConfig, ClusterConfig, Config, EcsConfig, Event, SshdConfig};
use rustix::process::Signal;
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

use super::{
    ssh::{address, sshd},
    support::{Lab, Running, has_ended, within},
};

const BASTION: &str = "i-0dc03fbcae2a87472";

async fn lab() -> Lab {
    Lab::start(Config { clusters: vec![ClusterConfig::new("payments")], ..Config::default() }).await
}

/// A server that sends back what it gets, until it is dropped.
struct Echo {
    address: SocketAddr,
    _task: JoinSet<()>,
}

impl Echo {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut task = JoinSet::new();
        task.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((mut stream, _)) = listener.accept().await {
                connections.spawn(async move {
                    let (mut read, mut write) = stream.split();
                    let _outcome = tokio::io::copy(&mut read, &mut write).await;
                });
            }
        });
        Self { address, _task: task }
    }
}

/// Sends something through a local port, and waits for it to come back.
async fn echoes(port: u16) -> TcpStream {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    echoes_again(&mut stream).await;
    stream
}

async fn echoes_again(stream: &mut TcpStream) {
    stream.write_all(b"hello").await.unwrap();
    let mut got = [0; 5];
    within("the echo", stream.read_exact(&mut got)).await.unwrap();
    assert_eq!(&got, b"hello");
}

/// The row of a tunnel.
fn row<'a>(status: &'a Value, name: &str) -> &'a Value {
    let rows = status["tunnels"].as_array().unwrap();
    rows.iter().find(|row| row["context"] == name).unwrap_or_else(|| panic!("{name}: {rows:#?}"))
}

fn port(row: &Value) -> u16 {
    u16::try_from(row["port"].as_u64().unwrap()).unwrap()
}

/// How often EKS was asked something.
fn calls_of_eks(lab: &Lab) -> usize {
    lab.count(|event| matches!(event, Event::Api { action, .. } if action.starts_with("eks:")))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_is_forwarded_to_beside_clusters() {
    let (lab, echo) = (lab().await, Echo::start().await);
    lab.emulator.route("db.internal:5432", echo.address);
    let up = lab.up(&["--bastion", BASTION, "--forward", "db=db.internal:5432", "--check", "tcp"]).await;
    let status = lab.status(&[]).await;
    let rows: Vec<_> = status["tunnels"].as_array().unwrap().iter().map(|row| row["context"].clone()).collect();
    assert_eq!(rows, ["pa-payments", "db"]);
    let db = row(&status, "db");
    assert_eq!((&db["forward"], &db["state"]), (&"db.internal:5432".into(), &"active".into()));
    let _open = echoes(port(db)).await;
    let text = lab.run(&["status"]).await;
    assert!(text.assert_success().contains("\n  to `db.internal:5432`\n"), "{text:#?}");
    assert!(!fs::read_to_string(lab.kubeconfig()).unwrap().contains("db"), "it is no context");

    // The chain is looked at up to the host.
    let examined = lab.run(&["doctor", "--forward", "db"]).await;
    let text = examined.assert_success();
    for wanted in
        ["ok       start session        db through", "is for clusters: other hosts are not asked what they speak"]
    {
        assert!(text.contains(wanted), "{wanted}: {text}");
    }
    assert!(!text.contains("payments"), "{text}");
    let both = lab.run(&["doctor"]).await;
    assert!(both.assert_success().contains("ok       may list pods        payments through"), "{both:#?}");
    let unknown = lab.run(&["doctor", "--forward", "cache"]).await;
    assert!(unknown.stderr.contains("the manager has no tunnel to `cache`"), "{unknown:#?}");

    let using = lab.run(&["exec", "--forward", "db=x:1", "--", "true"]).await;
    using.assert_success();
    let using = lab.run(&["exec", "--forward", "cache=x:1", "--", "true"]).await;
    assert!(using.stderr.contains("has no tunnel to `cache`"), "{using:#?}");
    lab.run(&["down"]).await.assert_success();
    up.ended().await.assert_success();
    lab.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn forward_alone_asks_eks_nothing_and_writes_no_kubeconfig() {
    let (lab, echo) = (lab().await, Echo::start().await);
    lab.emulator.route("db.internal:5432", echo.address);
    lab.emulator.route("[fd00::5]:6379", echo.address);
    lab.emulator.route("fd00::5:6379", echo.address);
    let args = ["forward", "--base-port", "0", "--bastion", BASTION, "db.internal:5432", "cache=[fd00::5]:6379"];
    let mut forward = Running::start(&mut lab.program(&args));
    forward.ready().await;
    let status = lab.status(&[]).await;
    let mut open = echoes(port(row(&status, "db.internal:5432"))).await;
    let _other = echoes(port(row(&status, "cache"))).await;
    assert_eq!((calls_of_eks(&lab), lab.kubeconfig().exists()), (0, false));
    assert_eq!((&status["kubeconfig"], &status["opened"]), (&Value::Null, &true.into()));
    // Nothing is set for a command that needs nothing.
    let using = lab.run(&["exec", "--", "sh", "-c", "echo ${KUBECONFIG-none}"]).await;
    assert_eq!(using.assert_success(), "none\n");

    // A connection survives the loss of its WebSocket.
    assert!(lab.emulator.command(&autoheal_pa::emulator::Command::CutTransport) >= 1);
    lab.wait_until("a resume", |emulator| {
        emulator.events().iter().any(|event| matches!(event, Event::SessionResumed { .. }))
    })
    .await;
    echoes_again(&mut open).await;
    forward.stop().await.assert_success();
    assert!(!lab.kubeconfig().exists());
    lab.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_is_killed_is_replaced_though_nothing_is_probed() {
    let (lab, echo) = (lab().await, Echo::start().await);
    lab.emulator.route("db.internal:5432", echo.address);
    let args = ["forward", "--base-port", "0", "--bastion", BASTION, "db=db.internal:5432", "--timeout", "300s"];
    let mut forward = Running::start(&mut lab.program(&args));
    forward.ready().await;
    let first = lab.emulator.sessions().len();
    assert_eq!(lab.emulator.command(&autoheal_pa::emulator::Command::KillAgent), 1);
    lab.wait_until("another session", |emulator| emulator.sessions().len() > first).await;
    assert!(forward.says("the agent has acknowledged nothing for").await || forward.says("db 127.0.0.1:").await);
    let _open = echoes(port(row(&lab.status(&[]).await, "db"))).await;
    forward.signal(Signal::TERM);
    forward.ended().await.assert_success();
    lab.wait_until("the sessions to end", |emulator| emulator.sessions().iter().all(has_ended)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_adds_and_drops_forwards_and_leaves_the_others_alone() {
    let (lab, echo) = (lab().await, Echo::start().await);
    for name in ["a.internal:1", "b.internal:2", "c.internal:3"] {
        lab.emulator.route(name, echo.address);
    }
    let file = lab.path("config.yaml");
    let write = |forwards: &str| {
        let text = format!("bastion: {BASTION}\nbase_port: 0\nno_clusters: true\nforwards: [{forwards}]\n");
        fs::write(&file, text).unwrap();
    };
    write("'a=a.internal:1', 'b=b.internal:2'");
    let mut up = Running::start(&mut lab.program(&["up", "--config", file.to_str().unwrap()]));
    up.ready().await;
    let before = lab.status(&[]).await;
    let mut open = echoes(port(row(&before, "a"))).await;
    let freed = port(row(&before, "b"));
    // The port of one that goes may be that of one that comes.
    write(&format!("'c=c.internal:3@{freed}', 'a=a.internal:1'"));
    lab.run(&["reload"]).await.assert_success();
    assert!(up.says("tunnels: 1 added, 1 removed, 1 kept").await);
    let after = lab.status(&[]).await;
    assert_eq!(port(row(&after, "a")), port(row(&before, "a")));
    assert_eq!(row(&after, "a")["session_id"], row(&before, "a")["session_id"]);
    assert_eq!(port(row(&after, "c")), freed);
    echoes_again(&mut open).await;
    let _open = echoes(freed).await;
    assert_eq!(calls_of_eks(&lab), 0);
    up.stop().await.assert_success();
    lab.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn hosts_are_forwarded_to_without_a_bastion_and_through_an_ssh_server() {
    let echo = Echo::start().await;
    let direct = lab().await;
    let to = format!("db=localhost:{}", echo.address.port());
    let args = ["forward", "--base-port", "0", "--bastion", "direct", &to, "--check", "tcp"];
    let mut forward = Running::start(&mut direct.program(&args));
    forward.ready().await;
    let _open = echoes(port(row(&direct.status(&[]).await, "db"))).await;
    forward.stop().await.assert_success();

    let Some(server) = sshd(SshdConfig::default()) else { return };
    let lab = super::ssh::lab(&server).await;
    let to = format!("db=127.0.0.1:{}", echo.address.port());
    let bastion = address(&server, "?host_key=new");
    let args = ["forward", "--base-port", "0", "--bastion", &bastion, &to, "--check", "tcp"];
    let mut forward = Running::start(&mut lab.program(&args));
    forward.ready().await;
    let _open = echoes(port(row(&lab.status(&[]).await, "db"))).await;
    forward.stop().await.assert_success();
}

#[tokio::test(flavor = "multi_thread")]
async fn hosts_are_forwarded_to_through_bastions_that_are_found_or_made() {
    let echo = Echo::start().await;
    let groups = BastionConfig::new("i-00000000000000001").in_group("bastions").tagged("role", "bastion");
    let config = || Config {
        clusters: vec![ClusterConfig::new("payments")],
        bastions: vec![groups.clone()],
        ecs: EcsConfig::with_service("tools", "bastion", 1),
        ..Config::default()
    };
    for bastion in ["asg:bastions", "tag:role=bastion", "ecs:tools/bastion"] {
        let lab = Lab::start(config()).await;
        lab.emulator.route("db.internal:5432", echo.address);
        let args = ["forward", "--base-port", "0", "--bastion", bastion, "db=db.internal:5432", "--check", "tcp"];
        let mut forward = Running::start(&mut lab.program(&args));
        forward.ready().await;
        let status = lab.status(&[]).await;
        assert_eq!(row(&status, "db")["bastion"], bastion);
        let _open = echoes(port(row(&status, "db"))).await;
        assert_eq!(calls_of_eks(&lab), 0, "{bastion}");
        forward.stop().await.assert_success();
        lab.assert_clean().await;
    }
    // These look at the network of clusters, so they need some beside the forward.
    for bastion in ["auto:nodes", "fargate"] {
        let bastions = vec![groups.clone().tagged("autoheal-pa:bastion", "true")];
        let lab = Lab::start(Config { bastions, ecs: EcsConfig::default(), ..config() }).await;
        lab.emulator.route("db.internal:5432", echo.address);
        let up = lab.up(&["--bastion", bastion, "--forward", "db=db.internal:5432", "--check", "tcp"]).await;
        let status = lab.status(&[]).await;
        assert_eq!(row(&status, "db")["bastion"], bastion);
        let _open = echoes(port(row(&status, "db"))).await;
        up.stop().await.assert_success();
        lab.assert_clean().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_to_a_host_are_shared_out_among_sessions() {
    let (lab, echo) = (lab().await, Echo::start().await);
    lab.emulator.route("db.internal:5432", echo.address);
    let args = ["forward", "--base-port", "0", "--bastion", BASTION, "db=db.internal:5432", "--sessions", "3"];
    let mut forward = Running::start(&mut lab.program(&args));
    forward.ready().await;
    let local = port(row(&lab.status(&[]).await, "db"));
    let mut open = Vec::new();
    within("a second session", async {
        while lab.emulator.sessions().len() < 2 {
            open.push(echoes(local).await);
        }
    })
    .await;
    for stream in &mut open {
        echoes_again(stream).await;
    }
    forward.stop().await.assert_success();
    lab.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_agent_refuses_is_told_as_such() {
    let bastion = BastionConfig { agent_version: "3.3.5068.0".to_owned(), ..BastionConfig::new(BASTION) };
    let lab = Lab::start(Config { bastions: vec![bastion], ..Config::default() }).await;
    // Known from the start, so nothing is called.
    for to in ["169.254.169.254:80", "md=[fd00:ec2::254]:80"] {
        let refused = lab.run(&["forward", "--bastion", BASTION, to]).await;
        assert_eq!(refused.code(), Some(2), "{refused:#?}");
        let wanted = "is not an address that SSM agents connect to: they refuse that of the instance metadata service";
        assert!(refused.stderr.contains(wanted), "{refused:#?}");
    }
    assert_eq!(lab.emulator.sessions().len(), 0);
    // Only the agent knows what a name leads to, and what it refuses.
    let args =
        ["forward", "--base-port", "0", "--bastion", BASTION, "db=localhost:5432", "--detach", "--timeout", "5s"];
    let refused = lab.run(&args).await;
    assert_eq!(refused.code(), Some(5), "{refused:#?}");
    assert!(refused.stderr.contains("cannot open a tunnel to `db`"), "{refused:#?}");
    assert!(refused.stderr.contains("the agent refuses this destination"), "{refused:#?}");
    assert!(refused.stderr.contains("name another host, or another kind of `--bastion`"), "{refused:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_input_is_named() {
    let lab = lab().await;
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let local = taken.local_addr().unwrap().port();
    let to_taken = format!("db:5432@{local}");
    let taken_text = format!("port {local} is taken by");
    for (args, code, wanted) in [
        (&["forward", "--bastion", BASTION, "db"][..], 2, "`db` is not a forward: its port is missing"),
        (&["forward", "--bastion", BASTION, "db:0"], 2, "its port must be a number from 1 to 65535"),
        (&["forward", "--bastion", BASTION, "::1:5432"], 2, "an IPv6 address must be in brackets"),
        (&["forward", "--bastion", BASTION, "a b=db:5432"], 2, "its name must be at most 63 letters"),
        (&["forward", "--bastion", BASTION, "db=a:1", "db=b:2"], 2, "is not the only forward that is called `db`"),
        (&["forward", "--bastion", BASTION, "a:1@9", "b:2@9"], 2, "is not the only forward with the local port 9"),
        (&["forward", "--bastion", "auto", "db:1"], 2, "of use to forwards alone"),
        (&["forward", "--bastion", "fargate", "db:1"], 2, "of use to forwards alone"),
        (&["forward", "--bastion", BASTION, "--cluster", "a", "db:1"], 2, "`--cluster` is about clusters"),
        (&["up", "--bastion", BASTION, "--no-clusters", "--cluster", "a"], 2, "of use where no clusters are wanted"),
        (&["up", "--bastion", BASTION, "--no-clusters"], 4, "there is no cluster to open a tunnel to"),
        (&["up", "--bastion", BASTION, "--forward", &to_taken], 5, &taken_text),
        (
            &["up", "--bastion", BASTION, "--base-port", "0", "--forward", "payments=db:1"],
            2,
            "cannot be called `payments`, as a cluster is",
        ),
        (&["up", "--bastion", BASTION, "--base-port", "0", "--forward", "pa-payments=db:1"], 2, "NAME=db:1"),
    ] {
        let ended = lab.run(args).await;
        assert_eq!(ended.code(), Some(code), "{args:?}: {ended:#?}");
        assert!(ended.stderr.contains(wanted), "{args:?}: {wanted}: {ended:#?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_refuses_is_not_ready_with_a_check() {
    let lab = lab().await;
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    lab.emulator.route("db.internal:5432", closed);
    let args = ["forward", "--base-port", "0", "--bastion", BASTION, "db=db.internal:5432", "--timeout", "5s"];
    let args = [&args[..], &["--check", "tcp", "--detach"]].concat();
    let ended = lab.run(&args).await;
    assert_eq!(ended.code(), Some(5), "{ended:#?}");
    assert!(ended.stderr.contains("`db.internal:5432` did not accept a connection"), "{ended:#?}");
    let examined = lab.run(&["doctor", "--bastion", BASTION, "--forward", "db=db.internal:5432"]).await;
    assert_eq!(examined.code(), Some(6), "{examined:#?}");
    assert_eq!(calls_of_eks(&lab), 0);
    assert!(
        lab.run(&["policy", "--bastion", BASTION, "--forward", "db.internal:5432", "--account-id", "123456789012"])
            .await
            .assert_success()
            .contains("AWS-StartPortForwardingSessionToRemoteHost")
    );
    within("the sessions to end", tokio::time::timeout(Duration::from_secs(200), lab.assert_clean())).await.unwrap();
}
