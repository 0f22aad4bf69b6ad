//! `kubeconfig`: contexts by which kubectl starts the tunnels itself.

use std::{collections::BTreeSet, path::Path};

use autoheal_pa::emulator::{ClusterConfig, Config, Event, Identity};
use futures_util::future::join_all;
use rustix::process::Signal;
use tokio::{net::TcpListener, process::Command};

use super::support::{Background, Ended, Lab, Running, has_ended, kubectl, within};

/// A lab with contexts and nothing that runs.
async fn written(clusters: &[&str], args: &[&str]) -> (Lab, Background) {
    let clusters = clusters.iter().map(|name| ClusterConfig::new(*name)).collect();
    let lab = Lab::start(Config { clusters, ..Config::default() }).await;
    write(&lab, args).await.assert_success();
    assert!(lab.emulator.sessions().is_empty(), "nothing is started");
    let manager = lab.background("default");
    assert!(manager.pid().is_none(), "nothing is left running");
    (lab, manager)
}

async fn write(lab: &Lab, args: &[&str]) -> Ended {
    Running::start(lab.program(&["kubeconfig", "--base-port", "0"]).args(args)).ended().await
}

/// What the kubeconfig says of ports.
fn servers(path: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(path).unwrap();
    text.lines().filter(|line| line.trim_start().starts_with("server:")).map(|line| line.trim().to_owned()).collect()
}

/// kubectl, where there is one, without any variable that leads to AWS.
fn client(lab: &Lab, args: &[&str]) -> Option<Command> {
    let mut command = lab.bare_command(kubectl()?);
    command.arg("--kubeconfig").arg(lab.kubeconfig()).args(args);
    Some(command)
}

async fn run(mut command: Command) -> Ended {
    Running::start(&mut command).ended().await
}

#[tokio::test(flavor = "multi_thread")]
async fn kubectl_starts_what_it_needs_and_finds_it_where_it_was() {
    let (lab, manager) = written(&["payments", "search"], &[]).await;
    let before = servers(&lab.kubeconfig());
    let Some(get) = client(&lab, &["--context", "pa-search", "get", "pods", "-A"]) else { return };
    assert!(run(get).await.assert_success().contains("chatty"));
    assert_eq!(lab.emulator.sessions().len(), 1, "the other cluster has none");
    let first = manager.pid().expect("it goes on");

    manager.signal(Signal::KILL);
    manager.ended().await;
    let get = || client(&lab, &["--context", "pa-search", "get", "pods", "-A"]).unwrap();
    assert!(run(get()).await.assert_success().contains("chatty"));
    assert_ne!(manager.pid(), Some(first));
    assert_eq!(servers(&lab.kubeconfig()), before, "the ports are as they were");

    let down = lab.run(&["down"]).await;
    down.assert_success();
    assert!(down.stderr.contains("contexts stay") && down.stderr.contains("kubeconfig --remove"), "{}", down.stderr);
    assert!(run(get()).await.assert_success().contains("chatty"), "they are of use still");

    lab.run(&["kubeconfig", "--remove"]).await.assert_success();
    assert!(servers(&lab.kubeconfig()).is_empty());
    assert!(manager.pid().is_none());
    lab.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_at_once_start_one_manager() {
    let (lab, manager) = written(&["payments"], &[]).await;
    let Some(_) = kubectl() else { return };
    let get = || run(client(&lab, &["get", "pods", "-A"]).unwrap());
    for ended in join_all((0..50).map(|_| get())).await {
        assert!(ended.assert_success().contains("chatty"));
    }
    assert!(manager.pid().is_some());
    assert_eq!(lab.emulator.sessions().len(), 1, "one manager has one session");
    let looked = lab.count(|event| matches!(event, Event::Api { action, .. } if action == "eks:ListClusters"));
    assert_eq!(looked, 2, "once for the contexts, once by the manager");
    lab.run(&["down"]).await.assert_success();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_connect_starts_nothing() {
    let (lab, manager) = written(&["payments"], &[]).await;
    for args in [&["config", "view"][..], &["config", "get-contexts"], &["--help"], &["version", "--client"]] {
        let Some(command) = client(&lab, args) else { return };
        run(command).await.assert_success();
    }
    assert!(manager.pid().is_none());
    let doctor = lab.run(&["doctor", "--bastion", "i-0dc03fbcae2a87472"]).await;
    assert!(doctor.assert_success().contains("plugin"), "{doctor:#?}");
    assert!(manager.pid().is_none(), "nor does an examination");
}

#[tokio::test(flavor = "multi_thread")]
async fn why_nothing_could_be_started_is_what_kubectl_says() {
    let clusters = vec![ClusterConfig::new("payments")];
    let lab = Lab::start(Config { clusters, identity: Identity::StaticKeys, ..Config::default() }).await;
    write(&lab, &[]).await.assert_success();
    let manager = lab.background("default");
    // The keys are in no file, so they are missing there.
    let Some(get) = client(&lab, &["get", "pods"]) else { return };
    let ended = run(get).await;
    assert!(!ended.status.success());
    assert_eq!(ended.stderr.matches("error: no AWS credentials").count(), 1, "{}", ended.stderr);
    assert!(ended.stderr.contains("hint:"), "{}", ended.stderr);
    assert!(manager.pid().is_none());

    // The manager can be had, and its tunnel cannot.
    let (lab, _manager) = written(&["payments"], &["--bastion", "i-00000000"]).await;
    let ended = run(client(&lab, &["get", "pods"]).unwrap()).await;
    assert!(!ended.status.success());
    assert!(ended.stderr.contains("the tunnel to `payments` cannot be used") && ended.stderr.contains("i-00000000"));
    lab.run(&["down"]).await.assert_success();
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_runs_when_nobody_has_used_it_for_a_while() {
    let (lab, manager) = written(&["payments"], &["--idle", "10s"]).await;
    let Some(get) = client(&lab, &["get", "pods"]) else { return };
    run(get).await.assert_success();
    assert!(manager.pid().is_some());
    manager.ended().await;
    lab.wait_until("the end of its session", |emulator| emulator.sessions().iter().all(has_ended)).await;
    let get = client(&lab, &["get", "pods"]).unwrap();
    run(get).await.assert_success();
    lab.run(&["down"]).await.assert_success();
}

#[tokio::test(flavor = "multi_thread")]
async fn it_works_without_a_home_from_cron_and_in_a_list_of_files() {
    let (lab, manager) = written(&["payments"], &[]).await;
    let Some(kubectl) = kubectl() else { return };
    let other = lab.path("other");
    std::fs::write(&other, "apiVersion: v1\nkind: Config\n").unwrap();
    let mut list = other.into_os_string();
    list.push(":");
    list.push(lab.kubeconfig());
    let mut get = lab.bare_command(kubectl);
    get.env_remove("HOME").env_remove("XDG_RUNTIME_DIR").env("KUBECONFIG", list).current_dir("/");
    run({
        get.args(["--context", "pa-payments", "get", "pods"]);
        get
    })
    .await
    .assert_success();
    assert!(manager.pid().is_some(), "it is where `status` looks for it");
    assert!(lab.run(&["status"]).await.assert_success().contains("pa-payments"));
    lab.run(&["down"]).await.assert_success();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_runtime_folder_that_is_gone_is_told_with_what_brings_it_back() {
    let lab = Lab::start(Config { clusters: vec![ClusterConfig::new("payments")], ..Config::default() }).await;
    let session = lab.path("session");
    std::fs::create_dir(&session).unwrap();
    let mut write = lab.program(&["kubeconfig", "--base-port", "0"]);
    run({
        write.env("XDG_RUNTIME_DIR", &session);
        write
    })
    .await
    .assert_success();
    std::fs::remove_dir_all(&session).unwrap();
    let Some(get) = client(&lab, &["get", "pods"]) else { return };
    let ended = run(get).await;
    assert!(!ended.status.success());
    assert!(ended.stderr.contains("session` is not there") && ended.stderr.contains("enable-linger"), "{ended:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_has_other_contexts_is_not_taken_for_theirs() {
    let lab = Lab::start(Config { clusters: vec![ClusterConfig::new("payments")], ..Config::default() }).await;
    let other = lab.path("other.yaml");
    write(&lab, &["--kubeconfig", other.to_str().unwrap()]).await.assert_success();
    let up = lab.up(&[]).await;
    let again = write(&lab, &["--kubeconfig", other.to_str().unwrap()]).await;
    assert_eq!(again.code(), Some(2), "{again:#?}");
    let Some(kubectl) = kubectl() else { return };
    let mut get = lab.bare_command(kubectl);
    get.arg("--kubeconfig").arg(&other).args(["get", "pods"]);
    let ended = run(get).await;
    assert!(ended.stderr.contains("is running, and has its contexts in"), "{ended:#?}");
    let remove = lab.run(&["kubeconfig", "--remove", "--kubeconfig", other.to_str().unwrap()]).await;
    remove.assert_success();
    assert!(servers(&other).is_empty(), "{remove:#?}");
    assert_eq!(lab.run(&["status", "--ready"]).await.code(), Some(0), "it has nothing to do with these");
    let nothing = lab.run(&["kubeconfig", "--remove"]).await;
    nothing.assert_success();
    assert!(nothing.stderr.contains("no contexts"), "{nothing:#?}");
    assert_eq!(lab.run(&["status", "--ready"]).await.code(), Some(0));
    up.stop().await.assert_success();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_may_take_longer_than_it_is_kept_unused() {
    let (lab, _manager) = written(&["payments"], &["--idle", "10s"]).await;
    lab.emulator.inject(&"slow-agent=20s".parse().unwrap());
    let Some(get) = client(&lab, &["get", "pods"]) else { return };
    run(get).await.assert_success();
    lab.run(&["down"]).await.assert_success();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_proxy_that_contexts_lead_to_is_where_it_was() {
    let (lab, _manager) = written(&["payments"], &["--kubeconfig-mode", "proxy", "--proxy", "0"]).await;
    for _ in 0..2 {
        let Some(get) = client(&lab, &["get", "pods"]) else { return };
        run(get).await.assert_success();
        lab.run(&["down"]).await.assert_success();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn where_the_home_cannot_be_written_the_contexts_lead_to_where_they_are() {
    let lab = Lab::start(Config { clusters: vec![ClusterConfig::new("payments")], ..Config::default() }).await;
    // A file where the folder would be.
    std::fs::write(lab.path(".kube"), "").unwrap();
    write(&lab, &[]).await.assert_success();
    let kubeconfig = lab.path("autoheal-pa/default/kubeconfig");
    let Some(kubectl) = kubectl() else { return };
    let mut get = lab.bare_command(kubectl);
    // kubectl does not get past such a home.
    get.env_remove("HOME").arg("--kubeconfig").arg(&kubeconfig).args(["get", "pods"]);
    run(get).await.assert_success();
    lab.run(&["kubeconfig", "--remove"]).await.assert_success();
    assert!(servers(&kubeconfig).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_that_another_program_has_taken_is_told_and_another_is_there_at_once() {
    let (lab, _manager) = written(&["payments"], &[]).await;
    let before = servers(&lab.kubeconfig());
    let port: u16 = before[0].trim_matches('"').rsplit(':').next().unwrap().trim_matches('"').parse().unwrap();
    let _taken = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
    let Some(get) = client(&lab, &["get", "pods"]) else { return };
    let ended = run(get).await;
    assert!(!ended.status.success());
    assert!(ended.stderr.contains(&format!("another program has taken port {port}")), "{}", ended.stderr);
    run(client(&lab, &["get", "pods"]).unwrap()).await.assert_success();
    assert_ne!(servers(&lab.kubeconfig()), before);
    lab.run(&["down"]).await.assert_success();
}

#[tokio::test(flavor = "multi_thread")]
async fn two_configuration_files_have_two_managers() {
    let clusters = ["payments", "search"].map(ClusterConfig::new).to_vec();
    let lab = Lab::start(Config { clusters, ..Config::default() }).await;
    let Some(kubectl) = kubectl() else { return };
    for cluster in ["payments", "search"] {
        let file = lab.path(&format!("{cluster}.yaml"));
        let text = format!(
            "base_port: 0\naccess:\n  - bastion: i-0dc03fbcae2a87472\n    region: us-east-1\n    clusters: [{cluster}]\n"
        );
        std::fs::write(&file, text).unwrap();
        let kubeconfig = lab.path("kubeconfig");
        let args = ["kubeconfig", "--name", cluster, "--config", file.to_str().unwrap(), "--kubeconfig"];
        lab.run(&[&args[..], &[kubeconfig.to_str().unwrap()]].concat()).await.assert_success();
    }
    let managers: Vec<_> = ["payments", "search"].map(|name| lab.background(name)).into();
    let mut pids = BTreeSet::new();
    for (context, manager) in ["pa-payments", "pa-search"].iter().zip(&managers) {
        let mut get = lab.bare_command(&kubectl);
        get.arg("--kubeconfig").arg(lab.path("kubeconfig")).args(["--context", context, "get", "pods", "-A"]);
        // They were made in another directory, and are found all the same.
        get.current_dir("/");
        assert!(run(get).await.assert_success().contains("chatty"));
        pids.insert(manager.pid().expect("each has its own").as_raw_nonzero());
    }
    assert_eq!(pids.len(), 2);
    for name in ["payments", "search"] {
        lab.run(&["down", "--name", name]).await.assert_success();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manager_that_a_person_starts_keeps_the_ports_and_the_contexts() {
    let (lab, _manager) = written(&["payments", "search"], &["--idle", "1h"]).await;
    let before = servers(&lab.kubeconfig());
    let text = std::fs::read_to_string(lab.kubeconfig()).unwrap();
    let up = lab.up(&["--probe-interval", "10s"]).await;
    assert_eq!(servers(&lab.kubeconfig()), before);
    assert_eq!(std::fs::read_to_string(lab.kubeconfig()).unwrap(), text, "it has others started as before");
    let again = write(&lab, &["--idle", "1h"]).await;
    again.assert_success();
    assert!(again.stderr.contains("is running"), "{}", again.stderr);
    let other = write(&lab, &["--sessions", "2"]).await;
    assert_eq!(other.code(), Some(2), "{other:#?}");
    assert!(other.stderr.contains("other settings"), "{}", other.stderr);
    lab.run(&["down"]).await.assert_success();
    within("its end", up.ended()).await.assert_success();
    assert_eq!(servers(&lab.kubeconfig()), before);
    let fewer = lab.up(&["--cluster", "search"]).await;
    assert_eq!(servers(&lab.kubeconfig()).len(), before.len(), "nobody has had contexts removed");
    fewer.stop().await.assert_success();
    let Some(get) = client(&lab, &["--context", "pa-payments", "get", "pods"]) else { return };
    run(get).await.assert_success();
    lab.run(&["kubeconfig", "--remove"]).await.assert_success();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_starts_nothing_says_so() {
    let lab = Lab::start(Config { clusters: vec![ClusterConfig::new("payments")], ..Config::default() }).await;
    for (args, says) in
        [(&["--detach"][..], "starts nothing"), (&["--no-clusters", "--forward", "db:5432"], "of clusters")]
    {
        let ended = write(&lab, args).await;
        assert_eq!(ended.code(), Some(2), "{ended:#?}");
        assert!(ended.stderr.contains(says), "{}", ended.stderr);
    }
    assert!(!lab.kubeconfig().exists());
}
