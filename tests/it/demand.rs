//! `up --on-demand`: sessions for those clusters that somebody uses.

use autoheal_pa::emulator::{ClusterConfig, Config};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client,
    config::{KubeConfigOptions, Kubeconfig},
};

use super::support::{Lab, Running, within};

const BASTION: &str = "i-0dc03fbcae2a87472";

async fn pods(lab: &Lab, context: &str) -> usize {
    let kubeconfig = Kubeconfig::read_from(lab.kubeconfig()).unwrap();
    let options = KubeConfigOptions { context: Some(context.to_owned()), ..KubeConfigOptions::default() };
    let config = kube::Config::from_custom_kubeconfig(kubeconfig, &options).await.unwrap();
    let pods: Api<Pod> = Api::all(Client::try_from(config).unwrap());
    within("the pods", pods.list(&Default::default())).await.unwrap().items.len()
}

fn states(status: &serde_json::Value) -> Vec<String> {
    let tunnels = status["tunnels"].as_array().unwrap();
    tunnels.iter().map(|tunnel| tunnel["state"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_has_a_session_once_somebody_uses_it() {
    let clusters = ["blue", "green", "red"].map(ClusterConfig::new).to_vec();
    let lab = Lab::start(Config { clusters, ..Config::default() }).await;
    let up = lab.up(&["--on-demand"]).await;
    assert_eq!(lab.emulator.sessions().len(), 1, "one shows that there can be sessions");
    assert_eq!(states(&lab.status(&[]).await), ["active", "idle", "idle"]);

    assert!(pods(&lab, "pa-red").await > 0);
    assert_eq!(lab.emulator.sessions().len(), 2);
    within("a tunnel that works", async { while states(&lab.status(&[]).await) != ["active", "idle", "active"] {} })
        .await;
    assert_eq!(lab.run(&["exec", "--", "true"]).await.code(), Some(0), "one that is idle is waited for by nobody");
    assert_eq!(lab.run(&["status", "--ready"]).await.code(), Some(0));
    let said = lab.run(&["status"]).await;
    assert!(said.assert_success().contains("idle"), "it is nothing bad");
    up.stop().await.assert_success();
    lab.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_leaves_idle_tunnels_idle_and_adds_others() {
    let clusters = ["blue", "green", "red"].map(ClusterConfig::new).to_vec();
    let lab = Lab::start(Config { clusters, ..Config::default() }).await;
    let file = lab.path("config.yaml");
    let write = |clusters: &str| {
        std::fs::write(&file, format!("bastion: {BASTION}\nbase_port: 0\non_demand: true\nclusters: [{clusters}]\n"))
            .unwrap();
    };
    write("blue, green");
    let mut up = Running::start(&mut lab.program(&["up", "--config", file.to_str().unwrap()]));
    up.ready().await;
    let ports = |status: &serde_json::Value| -> Vec<(String, u64)> {
        let tunnels = status["tunnels"].as_array().unwrap().iter();
        tunnels.map(|row| (row["cluster"].as_str().unwrap().to_owned(), row["port"].as_u64().unwrap())).collect()
    };
    let before = ports(&lab.status(&[]).await);
    write("green, red, blue");
    lab.run(&["reload"]).await.assert_success();
    let status = lab.status(&[]).await;
    let after = ports(&status);
    assert!(before.iter().all(|known| after.contains(known)), "{before:?} {after:?}");
    assert_eq!(states(&status), ["active", "idle", "idle"], "the first one has proved that there can be sessions");
    assert_eq!(lab.emulator.sessions().len(), 1);
    assert!(pods(&lab, "pa-red").await > 0);
    assert_eq!(lab.emulator.sessions().len(), 2);
    up.stop().await.assert_success();
    lab.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn how_long_a_session_is_kept_means_nothing_without_on_demand() {
    let lab = Lab::start(Config { clusters: vec![ClusterConfig::new("payments")], ..Config::default() }).await;
    let ended = lab.run(&["up", "--idle", "5m"]).await;
    assert_eq!(ended.code(), Some(2));
    assert!(ended.stderr.contains("`--idle`") && ended.stderr.contains("`--on-demand`"), "{}", ended.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bastion_that_is_not_there_is_told_at_once_however_many_tunnels_are_idle() {
    let clusters = ["blue", "green", "red"].map(ClusterConfig::new).to_vec();
    let lab = Lab::start(Config { clusters, ..Config::default() }).await;
    let up = lab.run(&["up", "--base-port", "0", "--on-demand", "--bastion", "i-00000000", "--timeout", "10m"]);
    let ended = within("the end", up).await;
    assert_eq!(ended.code(), Some(4), "{}", ended.stderr);
    assert!(ended.stderr.contains("i-00000000"), "{}", ended.stderr);
}
