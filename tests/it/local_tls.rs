//! `--kubeconfig-mode local-tls`: TLS that ends at the local ports, for clients that know neither `tls-server-name` nor
//! `proxy-url`.

use std::{collections::BTreeSet, fs};

use autoheal_pa::emulator::{ClusterConfig, Command, Config};
use futures_util::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api,
    api::{WatchEvent, WatchParams},
};
use rustix::process::Signal;

use super::{
    imports::{WHO_AM_I, kubectl_after_env, lab_with_kops, own},
    kubernetes::{client, kube_ctl, start_kubectl},
    support::{Lab, Running, kubectl, within},
};

const LOCAL_TLS: [&str; 2] = ["--kubeconfig-mode", "local-tls"];

const PRICE: &str = "TLS ends in this process: it sees what clients send, client certificates do not get through";

fn authorities(lab: &Lab) -> BTreeSet<String> {
    let text = fs::read_to_string(lab.kubeconfig()).unwrap();
    let lines = text.lines().filter_map(|line| line.trim().strip_prefix("certificate-authority-data: "));
    lines.map(ToOwned::to_owned).collect()
}

async fn pods(lab: &Lab, context: &str) -> usize {
    let client = within("a client", client(lab, context)).await;
    within("the pods", Api::<Pod>::all(client).list(&Default::default())).await.unwrap().items.len()
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_need_neither_the_name_nor_a_proxy() {
    let lab = Lab::start(Config { clusters: vec![ClusterConfig::new("payments")], ..Config::default() }).await;
    let up = lab.up(&LOCAL_TLS).await;
    assert_eq!(up.stderr_so_far().matches(PRICE).count(), 1, "{}", up.stderr_so_far());
    let text = fs::read_to_string(lab.kubeconfig()).unwrap();
    assert!(!text.contains("tls-server-name") && !text.contains("proxy-url"), "{text}");
    assert!(text.contains("server: \"https://127.0.0.1:"), "{text}");
    let theirs = lab.emulator.api_servers()[0].certificate_authority.clone();
    assert_eq!(authorities(&lab).len(), 1);
    assert!(!text.contains(&theirs) && !text.contains("PRIVATE"), "{text}");
    assert!(pods(&lab, "pa-payments").await >= 5);

    if kubectl().is_some() {
        let says = async |args: &[&str], text: &str| {
            let ended = kube_ctl(&lab, args).await;
            assert!(ended.assert_success().contains(text), "{args:?}: {ended:#?}");
        };
        says(&["get", "nodes"], "Ready").await;
        says(&["auth", "whoami"], "AutohealReadOnlyRole").await;
        let manifest = lab.path("map.yaml");
        let map = "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: settings\ndata:\n  key: one\n";
        fs::write(&manifest, map).unwrap();
        says(&["apply", "-f", manifest.to_str().unwrap()], "configmap/settings").await;
        let mut logs = start_kubectl(&lab, &["logs", "-f", "-n", "demo", "chatty", "--tail=1"]);
        assert!(logs.prints("\n").await);
        logs.stop().await;
    }

    // Other commands see a manager like any other; what they ask of the API server, they ask of it itself.
    let served = async { while lab.status(&[]).await["tunnels"][0]["connections_total"].as_u64() == Some(0) {} };
    within("connections that are counted", served).await;
    assert_eq!(lab.status(&[]).await["tunnels"][0]["state"], "active");
    let examined = lab.run(&["doctor"]).await;
    assert!(examined.assert_success().contains("ok       manager's tunnel     payments: 127.0.0.1:"), "{examined:#?}");
    lab.run(&["exec", "--", "true"]).await.assert_success();
    up.stop().await.assert_success();
    lab.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_survives_a_lost_websocket() {
    let lab = Lab::start(Config { clusters: vec![ClusterConfig::new("payments")], ..Config::default() }).await;
    let up = lab.up(&LOCAL_TLS).await;
    let client = within("a client", client(&lab, "pa-payments")).await;
    let pods: Api<Pod> = Api::all(client);
    let mut changes = pods.watch(&WatchParams::default(), "0").await.unwrap().boxed();
    for _ in 0..3 {
        lab.emulator.command(&Command::CutTransport);
        let changed = async {
            while let Some(event) = changes.try_next().await.unwrap() {
                if matches!(event, WatchEvent::Modified(_)) {
                    return true;
                }
            }
            false
        };
        assert!(within("a change", changed).await, "the watch has ended");
    }
    up.stop().await.assert_success();
    lab.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_starts_on_demand_and_a_reload_brings_more_clusters() {
    let clusters = ["blue", "green"].map(ClusterConfig::new).to_vec();
    let mut config = Config { clusters, ..Config::default() };
    config.settings.hidden_clusters.insert("green".to_owned());
    let lab = Lab::start(config).await;
    let up = lab.up(&[&LOCAL_TLS[..], &["--on-demand"]].concat()).await;
    let before = authorities(&lab);
    lab.emulator.update(|settings| settings.hidden_clusters.clear());
    lab.run(&["reload"]).await.assert_success();
    assert_eq!(authorities(&lab), before, "one authority for all, for as long as it runs");
    assert_eq!(up.stderr_so_far().matches(PRICE).count(), 1);
    for context in ["pa-blue", "pa-green"] {
        assert!(pods(&lab, context).await >= 5);
    }
    assert_eq!(lab.emulator.sessions().len(), 2);
    up.stop().await.assert_success();
    lab.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kubeconfig_of_an_earlier_run_is_not_trusted() {
    if kubectl().is_none() {
        return;
    }
    let lab = Lab::start(Config { clusters: vec![ClusterConfig::new("payments")], ..Config::default() }).await;
    let up = lab.up(&LOCAL_TLS).await;
    let old = fs::read_to_string(lab.kubeconfig()).unwrap();
    let port = lab.status(&[]).await["tunnels"][0]["port"].to_string();
    up.signal(Signal::KILL);
    up.ended().await;
    let mut up = Running::start(lab.program(&["up", "--base-port", &port]).args(LOCAL_TLS));
    up.ready().await;
    let new = fs::read_to_string(lab.kubeconfig()).unwrap();
    assert_ne!(old, new);
    fs::write(lab.kubeconfig(), old).unwrap();
    let refused = kube_ctl(&lab, &["get", "nodes"]).await;
    assert!(
        !refused.status.success() && refused.stderr.contains("certificate signed by unknown authority"),
        "{refused:#?}"
    );
    assert!(up.says("may have read a kubeconfig of an earlier run").await);
    fs::write(lab.kubeconfig(), new).unwrap();
    kube_ctl(&lab, &["get", "nodes"]).await.assert_success();
    up.stop().await.assert_success();
}

/// The next start would have another authority than the contexts that kubectl has read by then.
#[tokio::test(flavor = "multi_thread")]
async fn contexts_that_stay_cannot_be_of_one_run() {
    let lab = Lab::start(Config { clusters: vec![ClusterConfig::new("payments")], ..Config::default() }).await;
    let ended = lab.run(&[&["kubeconfig"][..], &LOCAL_TLS].concat()).await;
    assert_eq!(ended.code(), Some(2), "{ended:#?}");
    assert!(ended.stderr.contains("whose certificate authority is a new one at each start"), "{ended:#?}");
    assert!(!lab.kubeconfig().exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn contexts_with_client_certificates_are_left_as_they_are() {
    if kubectl().is_none() {
        return;
    }
    let lab = lab_with_kops().await;
    own(&lab);
    let up = lab.up(&[&LOCAL_TLS[..], &["--import-context", "kops"]].concat()).await;
    let said = "`pa-kops` is as with `--kubeconfig-mode direct`: its user logs in by a client certificate, which nobody can \
                pass on";
    assert!(up.stderr_so_far().contains(said), "{}", up.stderr_so_far());
    let who = kubectl_after_env(&lab, &format!("--context pa-kops {WHO_AM_I}")).await;
    assert_eq!(who.assert_success(), "admin@kops\n");
    let who = kubectl_after_env(&lab, &format!("--context pa-payments {WHO_AM_I}")).await;
    assert!(who.assert_success().contains(":assumed-role/"), "{who:#?}");
    let text = fs::read_to_string(lab.kubeconfig()).unwrap();
    assert_eq!(text.matches("tls-server-name").count(), 1, "{text}");
    lab.run(&["doctor"]).await.assert_success();
    up.stop().await.assert_success();
    lab.assert_clean().await;
}

/// What answers behind the bastion has a certificate of somebody else: no token is shown to it.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_said_to_an_api_server_that_is_another() {
    if kubectl().is_none() {
        return;
    }
    let lab = Lab::start(Config { clusters: vec![ClusterConfig::new("payments")], ..Config::default() }).await;
    let mut up = lab.up(&[&LOCAL_TLS[..], &["--probe-interval", "1h"]].concat()).await;
    lab.emulator.update(|settings| settings.wrong_certificate = true);
    let refused = kube_ctl(&lab, &["get", "nodes"]).await;
    assert!(!refused.status.success() && refused.stderr.contains("tls: internal error"), "{refused:#?}");
    assert!(up.says("no TLS with the API server").await);
    up.stop().await.assert_success();
}
