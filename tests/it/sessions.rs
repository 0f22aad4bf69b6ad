//! Several sessions to one cluster: opened as they are needed, shown, written down and ended.

use std::{collections::BTreeSet, fs};

use autoheal_pa::emulator::{AgentConfig, ClusterConfig, Config};
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::{
    Api, Client,
    config::{KubeConfigOptions, Kubeconfig},
};
use tokio::task::JoinSet;

use super::support::{Lab, within};

/// Bytes of one object: a server takes a little more than a megabyte.
const OBJECT_LEN: usize = 900_000;

/// Objects of the bulk transfer, which takes about four seconds at the agent's pace.
const OBJECTS: usize = 4;

/// A client with connections of its own.
async fn client(lab: &Lab) -> Client {
    let kubeconfig = Kubeconfig::read_from(lab.kubeconfig()).unwrap();
    let config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
    Client::try_from(config).unwrap()
}

fn ids(lab: &Lab) -> BTreeSet<String> {
    lab.emulator.sessions().into_iter().map(|session| session.id).collect()
}

/// An object full of digits, which tells where a byte is missing.
fn object(number: usize) -> ConfigMap {
    let text: String = (0..).map(|i: usize| format!("{:08} ", i * OBJECTS + number)).take(OBJECT_LEN / 9).collect();
    let mut object = ConfigMap { data: Some([("text".to_owned(), text)].into()), ..ConfigMap::default() };
    object.metadata.name = Some(format!("bulk-{number}"));
    object
}

#[tokio::test(flavor = "multi_thread")]
async fn a_small_request_goes_past_a_bulk_transfer_through_a_second_session() {
    let clusters = vec![ClusterConfig::new("payments")];
    let lab = Lab::start(Config { clusters, agent: AgentConfig::paced(), ..Config::default() }).await;
    let up = lab.up(&["--sessions", "2", "--no-rate-limit"]).await;
    // Its connection stays open as long as it is there.
    let one = client(&lab).await;
    let objects: Api<ConfigMap> = Api::namespaced(one.clone(), "demo");
    for number in 0..OBJECTS {
        within("an object", objects.create(&Default::default(), &object(number))).await.unwrap();
    }
    let base = ids(&lab).pop_first().unwrap();
    assert_eq!(lab.emulator.sessions().len(), 1, "one client needs one session");
    let status = lab.status(&[]).await;
    let tunnel = &status["tunnels"][0];
    assert_eq!(tunnel["sessions"].as_array().unwrap().len(), 1);
    assert_eq!(
        (&tunnel["sessions"][0]["session_id"], &tunnel["session_id"]),
        (&base.clone().into(), &base.clone().into())
    );

    let before = lab.emulator.sessions()[0].bytes_from_destination;
    let mut bulk = JoinSet::new();
    bulk.spawn(async move { objects.list(&Default::default()).await });
    lab.wait_until("a part of the bulk transfer", |emulator| {
        emulator.sessions()[0].bytes_from_destination > before + (512 << 10)
    })
    .await;
    let pods: Api<Pod> = Api::all(client(&lab).await);
    assert!(!within("the pods", pods.list(&Default::default())).await.unwrap().items.is_empty());
    assert!(bulk.try_join_next().is_none(), "the answer came first");

    let second = ids(&lab).into_iter().find(|id| *id != base).expect("a second session");
    // The counters of a busy tunnel are shown once a second.
    let status = within("the status", async {
        loop {
            let status = lab.status(&[]).await;
            if status["tunnels"][0]["sessions"][1]["bytes_received"].as_u64() >= Some(1000) {
                return status;
            }
        }
    })
    .await;
    let tunnel = &status["tunnels"][0];
    let sessions = tunnel["sessions"].as_array().unwrap();
    let shown: Vec<_> = sessions.iter().map(|session| session["session_id"].as_str().unwrap()).collect();
    assert_eq!((shown, tunnel["session_id"].as_str()), (vec![base.as_str(), second.as_str()], Some(base.as_str())));
    for session in sessions {
        assert_eq!((&session["open_connections"], &session["target"]), (&1.into(), &"i-0dc03fbcae2a87472".into()));
    }
    let small = sessions[1]["bytes_received"].as_u64().unwrap();
    assert!((1000..100_000).contains(&small), "the small request went through the second session: {small} bytes");
    let shown = lab.run(&["status"]).await;
    let line = shown.assert_success().lines().find(|line| line.starts_with("  session 2")).expect("a line of its own");
    assert!(line.contains("active") && line.ends_with(&second), "{line}");
    let journal = fs::read_to_string(lab.path("autoheal-pa/default/sessions")).unwrap();
    assert!(journal.contains(&base) && journal.contains(&second), "whoever comes after a crash knows both: {journal}");

    let list = within("the bulk transfer", bulk.join_next()).await.unwrap().unwrap().unwrap();
    let received: BTreeSet<_> = list.items.into_iter().filter_map(|object| object.data?.remove("text")).collect();
    assert_eq!(received, (0..OBJECTS).filter_map(|number| object(number).data?.remove("text")).collect());
    assert_eq!(lab.emulator.sessions().len(), 2);
    drop((one, pods));
    up.stop().await.assert_success();
    lab.assert_clean().await;
    assert_eq!(fs::read_to_string(lab.path("autoheal-pa/default/sessions")).unwrap(), "");
}
