//! `--bastion direct`: API servers that answer from here, which in these tests is through a proxy that knows their names.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use autoheal_pa::emulator::{ClusterConfig, Config, Fault, Place};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client,
    config::{KubeConfigOptions, Kubeconfig},
};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, copy_bidirectional},
    net::{TcpListener, TcpStream},
    process::Command,
    task::JoinSet,
};

use super::support::{Lab, Running, within};

/// A proxy that leads to the API servers of a lab by their names, and to nothing else.
struct Proxy {
    address: SocketAddr,
    /// It leads nowhere.
    refuses: Arc<AtomicBool>,
    _tasks: JoinSet<()>,
}

impl Proxy {
    async fn start(lab: &Lab) -> Self {
        let places: BTreeMap<String, SocketAddr> = lab
            .emulator
            .api_servers()
            .into_iter()
            .map(|server| match server.place {
                Place::Socket(address) => (format!("{}:443", server.host), address),
                Place::Memory(_) => panic!("a lab has sockets"),
            })
            .collect();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut tasks = JoinSet::new();
        let refuses = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&refuses);
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let known = if flag.load(Ordering::SeqCst) { BTreeMap::new() } else { places.clone() };
                connections.spawn(serve(stream, known));
            }
        });
        Self { address, refuses, _tasks: tasks }
    }

    /// Has a program connect through it.
    fn of<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        command.env("HTTPS_PROXY", format!("http://{}", self.address))
    }
}

async fn serve(stream: TcpStream, places: BTreeMap<String, SocketAddr>) {
    let mut near = BufReader::new(stream);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if near.read_line(&mut head).await.unwrap_or_default() == 0 {
            return;
        }
    }
    let wanted = head.split(' ').nth(1).unwrap_or_default();
    let Some(place) = places.get(wanted) else {
        let _refused = near.write_all(b"HTTP/1.1 502 Bad Gateway\r\ncontent-length: 0\r\n\r\n").await;
        return;
    };
    let mut far = TcpStream::connect(place).await.unwrap();
    near.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
    let _ended = copy_bidirectional(&mut near, &mut far).await;
}

async fn lab() -> Lab {
    Lab::start(Config { clusters: vec![ClusterConfig::new("payments")], ..Config::default() }).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_that_answers_from_here_needs_no_session() {
    let lab = lab().await;
    let proxy = Proxy::start(&lab).await;
    let mut up = Running::start(proxy.of(&mut lab.program(&["up", "--base-port", "0", "--bastion", "direct"])));
    up.ready().await;

    let kubeconfig = Kubeconfig::read_from(lab.kubeconfig()).unwrap();
    let config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
    let pods: Api<Pod> = Api::namespaced(Client::try_from(config).unwrap(), "demo");
    assert!(!within("the pods", pods.list(&Default::default())).await.unwrap().items.is_empty());

    // Counters are shown once a second.
    let counted = async {
        loop {
            let tunnel = lab.status(&[]).await["tunnels"][0].clone();
            if tunnel["connections_total"].as_u64() >= Some(1) {
                return tunnel;
            }
        }
    };
    let tunnel = within("the connection to be counted", counted).await;
    assert_eq!((tunnel["state"].as_str(), tunnel["target"].as_str()), (Some("active"), Some("direct")));
    assert!(tunnel["session_id"].is_null(), "{tunnel}");
    assert!(lab.emulator.sessions().is_empty(), "nothing is asked of Systems Manager");

    let examined = Running::start(proxy.of(&mut lab.program(&["doctor", "--bastion", "direct"]))).ended().await;
    let text = examined.assert_success();
    for wanted in ["ok       bastion reaches API  payments through direct", "skipped  "] {
        assert!(text.contains(wanted), "{wanted}: {text}");
    }
    assert!(lab.emulator.sessions().is_empty());
    up.stop().await.assert_success();
    lab.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_bastion_that_is_away_the_endpoint_is_tried() {
    let lab = lab().await;
    let proxy = Proxy::start(&lab).await;
    lab.emulator.inject(&"bastion-offline=600s".parse::<Fault>().unwrap());
    let bastion = lab.emulator.environment().into_iter().find(|(name, _)| name == "AUTOHEAL_PA_BASTION").unwrap().1;
    let args = ["up", "--base-port", "0", "--bastion", &bastion, "--bastion", "direct"];
    let mut up = Running::start(proxy.of(&mut lab.program(&args)));
    up.ready().await;
    assert_eq!(lab.status(&[]).await["tunnels"][0]["target"], "direct");
    up.stop().await.assert_success();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_that_does_not_answer_is_named_with_what_would_help() {
    let lab = lab().await;
    // It knows no names.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            serve(stream, BTreeMap::new()).await;
        }
    });
    let through = format!("http://{address}");
    let args = ["exec", "--base-port", "0", "--bastion", "direct", "--timeout", "3s", "--", "true"];
    let ended = Running::start(lab.program(&args).env("HTTPS_PROXY", &through)).ended().await;
    assert_eq!(ended.code(), Some(4), "{ended:#?}");
    for wanted in ["does not answer from this machine", "hint: ", "aws eks describe-cluster --name payments --region"] {
        assert!(ended.stderr.contains(wanted), "{wanted}: {ended:#?}");
    }
    let args = ["doctor", "--bastion", "direct"];
    let examined = Running::start(lab.program(&args).env("HTTPS_PROXY", &through)).ended().await;
    assert_eq!(examined.code(), Some(6), "{examined:#?}");
    assert!(examined.stdout.contains("failed   bastion reaches API  payments through direct"), "{examined:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_network_is_away_new_connections_wait_and_open_ones_stay() {
    let lab = lab().await;
    let proxy = Proxy::start(&lab).await;
    let mut up = Running::start(proxy.of(&mut lab.program(&["up", "--base-port", "0", "--bastion", "direct"])));
    up.ready().await;
    let client = || async {
        let kubeconfig = Kubeconfig::read_from(lab.kubeconfig()).unwrap();
        let config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
        Api::<Pod>::namespaced(Client::try_from(config).unwrap(), "demo")
    };
    let (open, new) = (client().await, client().await);
    within("the first pods", open.list(&Default::default())).await.unwrap();
    proxy.refuses.store(true, Ordering::SeqCst);
    let list_options = kube::api::ListParams::default();
    let waiting = new.list(&list_options);
    let outage = async {
        let down = async { while lab.status(&[]).await["tunnels"][0]["state"] == "active" {} };
        within("the link to be given up", down).await;
        within("the pods by the open connection", open.list(&list_options)).await.unwrap();
        proxy.refuses.store(false, Ordering::SeqCst);
    };
    let both = Box::pin(async { tokio::join!(waiting, outage) });
    let (listed, ()) = within("the pods", both).await;
    assert!(!listed.unwrap().items.is_empty());
    up.stop().await.assert_success();
}

#[tokio::test(flavor = "multi_thread")]
async fn its_policy_is_about_no_sessions() {
    let lab = lab().await;
    let args = ["policy", "--bastion", "direct", "--region", "us-east-1", "--account-id", "123456789012"];
    let ended = lab.run(&args).await;
    let policy = ended.assert_success();
    assert!(policy.contains("eks:DescribeCluster") && !policy.contains("ssm"), "{policy}");
}
