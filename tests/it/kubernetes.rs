//! Real Kubernetes clients through real tunnels, with the kubeconfig that `up` writes.

use std::collections::{BTreeMap, BTreeSet};

use autoheal_pa::emulator::{ClusterConfig, Config, Identity};
use futures_util::{AsyncBufReadExt, StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::{
    Api, Client,
    api::{LogParams, Patch, PatchParams, WatchEvent, WatchParams},
    config::{KubeConfigOptions, Kubeconfig},
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::support::{Ended, Lab, Running, kubectl, within};

/// A client for one context of the lab's kubeconfig.
pub(super) async fn client(lab: &Lab, context: &str) -> Client {
    let kubeconfig = Kubeconfig::read_from(lab.kubeconfig()).expect("kube reads the kubeconfig");
    let options = KubeConfigOptions { context: Some(context.to_owned()), ..KubeConfigOptions::default() };
    let config = kube::Config::from_custom_kubeconfig(kubeconfig, &options).await.expect("the context is complete");
    Client::try_from(config).expect("a client")
}

#[tokio::test(flavor = "multi_thread")]
async fn kube_lists_watches_follows_and_applies() {
    let lab = Lab::start(Config::default()).await;
    let up = lab.up(&[]).await;
    let client = within("a client", client(&lab, "pa-search")).await;

    let version = within("the version", client.apiserver_version()).await.unwrap();
    assert_eq!(version.major, "1");

    let pods: Api<Pod> = Api::all(client.clone());
    let list = within("the pods", pods.list(&Default::default())).await.unwrap();
    assert!(list.items.len() >= 5, "{}", list.items.len());

    let params = WatchParams::default();
    let mut changes = pods.watch(&params, "0").await.unwrap().boxed();
    let changed = within("a change", async {
        while let Some(event) = changes.try_next().await.unwrap() {
            if matches!(event, WatchEvent::Modified(_)) {
                return true;
            }
        }
        false
    });
    assert!(changed.await);

    let demo: Api<Pod> = Api::namespaced(client.clone(), "demo");
    let params = LogParams { follow: true, ..LogParams::default() };
    let log = within("the log", demo.log_stream("chatty", &params)).await.unwrap();
    let lines = within("lines", log.lines().take(5).try_collect::<Vec<_>>()).await.unwrap();
    assert_eq!(lines.len(), 5);

    let maps: Api<ConfigMap> = Api::namespaced(client, "default");
    for value in ["one", "two"] {
        let map = serde_json::json!({
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "settings" }, "data": { "key": value },
        });
        let params = PatchParams::apply("test").force();
        within("apply", maps.patch("settings", &params, &Patch::Apply(map))).await.unwrap();
        let stored = within("the map", maps.get("settings")).await.unwrap();
        assert_eq!(stored.data, Some(BTreeMap::from([("key".to_owned(), value.to_owned())])));
    }
    assert_eq!(up.stop().await.code(), Some(0));
    lab.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn awkward_names_make_contexts_that_clients_can_use() {
    let names = ["no", "on", "y", "true", "null", "123", "1e3", "0x10", "1_000"];
    let clusters = names.map(ClusterConfig::new).into();
    let lab = Lab::start(Config { clusters, ..Config::default() }).await;
    let up = lab.up(&[]).await;
    for name in names {
        let client = within("a client", client(&lab, &format!("pa-{name}"))).await;
        within("an answer", Api::<Pod>::all(client).list(&Default::default())).await.unwrap();
    }
    if kubectl().is_some() {
        let contexts = kube_ctl(&lab, &["config", "get-contexts", "-o", "name"]).await;
        let mut expected: Vec<_> = names.iter().map(|name| format!("pa-{name}")).collect();
        let mut found: Vec<_> = contexts.assert_success().lines().map(str::to_owned).collect();
        expected.sort();
        found.sort();
        assert_eq!(found, expected);
        for name in names {
            kube_ctl(&lab, &["--context", &format!("pa-{name}"), "get", "nodes"]).await.assert_success();
        }
    }
    assert_eq!(up.stop().await.code(), Some(0));
}

/// Runs the real kubectl in a shell that has none of the variables of the one that ran `up`.
pub(super) async fn kube_ctl(lab: &Lab, args: &[&str]) -> Ended {
    start_kubectl(lab, args).ended().await
}

pub(super) fn start_kubectl(lab: &Lab, args: &[&str]) -> Running {
    let mut command = lab.bare_command(kubectl().expect("asked before"));
    command.env_remove("XDG_RUNTIME_DIR").env_remove("AWS_EC2_METADATA_DISABLED");
    Running::start(command.arg("--kubeconfig").arg(lab.kubeconfig()).args(args))
}

#[tokio::test(flavor = "multi_thread")]
async fn kubectl_does_its_daily_work_from_an_empty_environment() {
    if kubectl().is_none() {
        return;
    }
    for identity in [Identity::WebIdentity, Identity::StaticKeys] {
        let lab = Lab::start(Config { identity, ..Config::default() }).await;
        let up = lab.up(&[]).await;
        let says = async |args: &[&str], text: &str| {
            let ended = kube_ctl(&lab, args).await;
            assert!(ended.assert_success().contains(text), "{args:?}: {ended:#?}");
        };
        says(&["get", "nodes"], "Ready").await;
        says(&["--context", "pa-search", "get", "pods", "-A"], "chatty").await;
        says(&["version"], "Server Version").await;
        says(&["api-resources"], "configmaps").await;
        says(&["auth", "whoami"], "AutohealReadOnlyRole").await;
        says(&["logs", "-n", "demo", "chatty", "--tail=2"], "\n").await;

        let manifest = lab.path("map.yaml");
        for value in ["one", "two"] {
            let text = format!("apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: settings\ndata:\n  key: {value}\n");
            std::fs::write(&manifest, text).unwrap();
            says(&["apply", "-f", manifest.to_str().unwrap()], "configmap/settings").await;
            says(&["get", "configmap", "settings", "-o", "jsonpath={.data.key}"], value).await;
        }

        let mut logs = start_kubectl(&lab, &["logs", "-f", "-n", "demo", "chatty", "--tail=1"]);
        let mut watch = start_kubectl(&lab, &["get", "pods", "-A", "-w"]);
        assert!(logs.prints("\n").await && watch.prints("chatty").await);
        logs.stop().await;
        watch.stop().await;
        assert_eq!(up.stop().await.code(), Some(0));
        lab.assert_clean().await;
    }
}

/// Their endpoints are below another domain.
#[tokio::test(flavor = "multi_thread")]
async fn clusters_with_ipv6_are_reached_as_all_others() {
    for args in [&[][..], &["--kubeconfig-mode", "proxy", "--proxy", "0"]] {
        let clusters = vec![ClusterConfig { ipv6: true, ..ClusterConfig::new("six") }, ClusterConfig::new("four")];
        let lab = Lab::start(Config { clusters, ..Config::default() }).await;
        let host = lab.emulator.api_servers()[0].host.clone();
        assert!(host.ends_with(".us-east-1.api.aws"), "{host}");
        let up = lab.up(args).await;
        let text = std::fs::read_to_string(lab.kubeconfig()).unwrap();
        let line = if args.is_empty() {
            format!("tls-server-name: \"{host}\"")
        } else {
            format!("server: \"https://{host}\"")
        };
        assert!(text.contains(&line), "{text}");
        for context in ["pa-six", "pa-four"] {
            let client = within("a client", client(&lab, context)).await;
            let list = within("the pods", Api::<Pod>::all(client).list(&Default::default())).await.unwrap();
            assert!(list.items.len() >= 5, "{}", list.items.len());
        }
        if kubectl().is_some() {
            kube_ctl(&lab, &["--context", "pa-six", "get", "nodes"]).await.assert_success();
        }
        let listed = lab.run(&["clusters"]).await;
        assert!(listed.assert_success().contains("six"), "{listed:#?}");
        let doctor = lab.run(&["doctor", "--cluster", "six"]).await;
        assert_eq!(doctor.code(), Some(0), "{doctor:#?}");
        let policy = lab.run(&["policy", "--cluster", "six", "--bastion", "i-0dc03fbcae2a87472"]).await;
        assert!(policy.assert_success().contains(":cluster/six"), "{policy:#?}");
        assert_eq!(up.stop().await.code(), Some(0));
        lab.assert_clean().await;
    }
}

/// Nothing resolves the names of the clusters here: what gets an answer came through the proxy.
#[tokio::test(flavor = "multi_thread")]
async fn clients_that_need_the_real_names_come_through_the_proxy() {
    let lab = Lab::start(Config::default()).await;
    let up = lab.up(&["--kubeconfig-mode", "proxy", "--proxy", "0"]).await;
    let text = std::fs::read_to_string(lab.kubeconfig()).unwrap();
    let proxies: BTreeSet<_> = text.lines().filter_map(|line| line.trim().strip_prefix("proxy-url: ")).collect();
    assert_eq!(proxies.len(), 1, "{text}");
    assert!(!text.contains("tls-server-name") && text.contains("eks.amazonaws.com\""), "{text}");

    for context in ["pa-payments", "pa-search"] {
        let client = within("a client", client(&lab, context)).await;
        let list = within("the pods", Api::<Pod>::all(client).list(&Default::default())).await.unwrap();
        assert!(list.items.len() >= 5, "{}", list.items.len());
    }
    if kubectl().is_some() {
        kube_ctl(&lab, &["--context", "pa-search", "get", "nodes"]).await.assert_success();
        let mut logs = start_kubectl(&lab, &["logs", "-f", "-n", "demo", "chatty", "--tail=1"]);
        assert!(logs.prints("\n").await);
        logs.stop().await;
    }

    let address = proxies.first().unwrap().trim_matches('"').trim_start_matches("http://");
    let mut connection = tokio::net::TcpStream::connect(address).await.unwrap();
    connection.write_all(b"CONNECT example.com:443 HTTP/1.1\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    within("an answer", connection.read_to_string(&mut answer)).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 403 "), "{answer}");

    // A second manager finds the port taken.
    let port = address.rsplit(':').next().unwrap();
    let kubeconfig = lab.path("other");
    let options = ["--name", "other", "--kubeconfig", kubeconfig.to_str().unwrap(), "--kubeconfig-mode", "proxy"];
    let second = lab.start_up(&[&options[..], &["--proxy", port]].concat()).ended().await;
    assert_eq!(second.code(), Some(5), "{second:#?}");
    assert!(
        second.stderr.contains(&format!("cannot open a port for the proxy: port {port} is taken by ")),
        "{second:#?}"
    );

    assert_eq!(up.stop().await.code(), Some(0));
    assert!(tokio::net::TcpStream::connect(address).await.is_err());
    lab.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_others_have_in_the_kubeconfig_stays() {
    let lab = Lab::start(Config::default()).await;
    let path = lab.path("config");
    let others = "apiVersion: v1\nkind: Config\nclusters:\n- name: mine\n  cluster: {server: \"https://mine\", future-field: [1, \"no\"]}\n\
                  contexts:\n- name: mine\n  context: {cluster: mine, user: mine}\nusers:\n- name: mine\n  user: {token: abc}\n\
                  current-context: mine\n";
    std::fs::write(&path, others).unwrap();
    let up = lab.up(&["--kubeconfig", path.to_str().unwrap()]).await;
    let kubeconfig = Kubeconfig::read_from(&path).unwrap();
    assert_eq!(kubeconfig.current_context.as_deref(), Some("mine"));
    assert_eq!(kubeconfig.contexts.len(), 3);
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(text.contains("future-field"), "{text}");
    if kubectl().is_some() {
        let mut command = lab.bare_command(kubectl().unwrap());
        let view = command.arg("--kubeconfig").arg(&path).args(["--context", "pa-search", "get", "nodes"]);
        Running::start(view).ended().await.assert_success();
    }
    assert_eq!(up.stop().await.code(), Some(0));
}
