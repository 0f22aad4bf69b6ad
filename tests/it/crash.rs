//! What a manager leaves behind when it is killed, and what the next one makes of it.

use std::collections::BTreeSet;

use autoheal_pa::emulator::{ClusterConfig, Command, Config, Event, SessionState};
use futures_util::{AsyncBufReadExt, TryStreamExt};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client,
    api::LogParams,
    config::{KubeConfigOptions, Kubeconfig},
};
use rustix::process::Signal;

use super::support::{Lab, Running, has_ended, within};

/// Kills a manager and waits until it is gone.
async fn kill(running: Running) -> String {
    running.signal(Signal::KILL);
    let ended = running.ended().await;
    assert_eq!(ended.code(), None, "{ended:#?}");
    ended.stderr
}

/// The ids in the journal of the lab's manager, ended ones too.
fn written_down(lab: &Lab) -> BTreeSet<String> {
    let text = std::fs::read_to_string(lab.path("autoheal-pa/default/sessions")).unwrap_or_default();
    let lines = text.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    lines.filter_map(|line| line["session"].as_str().map(str::to_owned)).collect()
}

/// The ids of sessions that are live.
fn live(lab: &Lab) -> BTreeSet<String> {
    lab.emulator.sessions().into_iter().filter(|session| !has_ended(session)).map(|session| session.id).collect()
}

async fn all_ended(lab: &Lab, sessions: BTreeSet<String>) {
    lab.wait_until("the orphans to be ended", |emulator| {
        emulator.sessions().iter().all(|session| !sessions.contains(&session.id) || has_ended(session))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_manager_ends_the_sessions_of_a_killed_one() {
    let lab = Lab::start(Config::with_clusters(3)).await;
    let killed = lab.up(&[]).await;
    let orphans = live(&lab);
    assert_eq!(orphans.len(), 3);
    assert_eq!(written_down(&lab), orphans);

    // With traffic on one of them.
    let kubeconfig = Kubeconfig::read_from(lab.kubeconfig()).unwrap();
    let config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
    let pods: Api<Pod> = Api::namespaced(Client::try_from(config).unwrap(), "demo");
    let params = LogParams { follow: true, ..LogParams::default() };
    let mut lines = within("the log", pods.log_stream("chatty", &params)).await.unwrap().lines();
    assert!(within("a line", lines.try_next()).await.unwrap().is_some());

    kill(killed).await;
    let mut up = lab.up(&[]).await;
    assert!(up.says("ended 3 sessions that an earlier run had left behind").await, "{}", up.stderr_so_far());
    all_ended(&lab, orphans.clone()).await;
    assert_eq!(live(&lab).len(), 3, "those of the new one go on");
    let by_call =
        |event: &Event| matches!(event, Event::Api { action, error: None } if action == "ssm:TerminateSession");
    assert_eq!(lab.count(by_call), 3);
    assert_eq!(up.stop().await.code(), Some(0));
    assert_eq!(std::fs::read_to_string(lab.path("autoheal-pa/default/sessions")).unwrap(), "");
    lab.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_the_service_has_ended_is_no_orphan() {
    let lab = Lab::start(Config { clusters: vec![ClusterConfig::new("payments")], ..Config::default() }).await;
    let up = lab.up(&[]).await;
    lab.emulator.command(&Command::CloseChannel { output: None });
    lab.wait_until("another session", |emulator| emulator.sessions().len() == 2).await;
    lab.wait_until("its transport", |emulator| {
        emulator.sessions().iter().any(|session| session.state == SessionState::Connected)
    })
    .await;
    assert_eq!(up.stop().await.code(), Some(0));
    assert_eq!(std::fs::read_to_string(lab.path("autoheal-pa/default/sessions")).unwrap(), "");
}

#[tokio::test(flavor = "multi_thread")]
async fn orphans_of_another_region_and_of_another_identity() {
    let mut config = Config { clusters: vec![ClusterConfig::new("payments")], ..Config::default() };
    config.clusters.push(ClusterConfig { region: Some("eu-west-1".to_owned()), ..ClusterConfig::new("search") });
    let lab = Lab::start(config).await;
    kill(lab.up(&[]).await).await;
    let orphans = live(&lab);
    let mut up = lab.up(&["--region", "eu-west-1"]).await;
    assert!(up.says("ended a session that an earlier run had left behind").await, "{}", up.stderr_so_far());
    all_ended(&lab, orphans).await;

    kill(up).await;
    let orphan = live(&lab).pop_first().expect("one is live");
    let role = lab.emulator.role_arn().replace("AutohealReadOnlyRole", "AutohealAdminRole");
    let mut up = lab.up(&["--role-arn", &role]).await;
    let hint = format!("\nhint: `aws ssm terminate-session --session-id {orphan} --region eu-west-1`, as the identity");
    assert!(up.says(&hint).await, "{}", up.stderr_so_far());
    assert!(up.stderr_so_far().contains(&format!("cannot end the session `{orphan}`")), "{}", up.stderr_so_far());
    assert_eq!(up.stop().await.code(), Some(0));
    assert_eq!(std::fs::read_to_string(lab.path("autoheal-pa/default/sessions")).unwrap(), "", "it is forgotten");
}
