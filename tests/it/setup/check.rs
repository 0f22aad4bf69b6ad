//! What is deployed is found; what is taken away is named, by `setup --check`, and by `doctor` where it can see it.

use std::collections::BTreeSet;

use autoheal_pa::emulator::Config;
use serde_json::Value;

use super::{
    super::support::{Lab, Running},
    lab, run,
};

/// A piece of the template, what is missing with it, and the check of `doctor` that fails without it.
const PIECES: &[(&str, &[&str], Option<&str>)] = &[
    ("BastionRole", &["BastionRole", "BastionProfile"], Some("bastion-online")),
    ("BastionProfile", &["BastionProfile"], Some("bastion-online")),
    ("BastionGroup", &["BastionGroup", "ClusterRule1", "EndpointRule1"], Some("endpoint")),
    ("ClusterRule1", &["ClusterRule1"], Some("endpoint")),
    ("EndpointGroup", &["EndpointGroup", "EndpointRule1"], None),
    ("EndpointRule1", &["EndpointRule1"], None),
    ("EndpointSsm", &["EndpointSsm"], None),
    ("EndpointSsmmessages", &["EndpointSsmmessages"], None),
    ("BastionTemplate", &["BastionTemplate"], None),
    ("Bastion", &["Bastion"], Some("bastion-known")),
    ("UserRole", &["UserRole", "UserPolicy"], None),
    ("UserPolicy", &["UserPolicy"], Some("describe-cluster")),
    ("AccessEntry1", &["AccessEntry1"], Some("api")),
];

async fn deployed(lab: &Lab) -> Value {
    let ended = run(lab, &["payments".to_owned()], &["--private"]).await;
    let template: Value = serde_json::from_str(ended.assert_success()).unwrap();
    lab.emulator.create_stack(&template);
    template
}

/// The ids of the pieces that are not as they have to be.
async fn missing(lab: &Lab) -> BTreeSet<String> {
    let ended = run(lab, &["payments".to_owned()], &["--private", "--check", "--json"]).await;
    let said: Value = serde_json::from_str(&ended.stdout).unwrap_or_else(|error| panic!("{error}: {ended:#?}"));
    let checks = said["checks"].as_array().unwrap();
    let failed: Vec<&Value> = checks.iter().filter(|check| check["status"] != "ok").collect();
    for check in &failed {
        assert_eq!(check["status"], "failed", "{check:#}");
        assert!(!check["fixes"].as_array().unwrap().is_empty(), "it is not said how to mend it: {check:#}");
    }
    assert_eq!(
        (ended.code(), said["ok"].as_bool()),
        if failed.is_empty() { (Some(0), Some(true)) } else { (Some(6), Some(false)) }
    );
    failed.iter().map(|check| check["id"].as_str().unwrap().strip_prefix("setup.").unwrap().to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_taken_away_is_named() {
    let lab = lab(Config::default()).await;
    let template = deployed(&lab).await;
    let pieces: BTreeSet<&str> = template["Resources"].as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(PIECES.iter().map(|(piece, ..)| *piece).collect::<BTreeSet<_>>(), pieces);
    assert_eq!(missing(&lab).await, BTreeSet::new());
    for (piece, named, _) in PIECES {
        lab.emulator.create_stack(&template);
        assert!(lab.emulator.delete_resource(piece), "{piece}");
        let named: BTreeSet<String> = named.iter().map(|&name| name.to_owned()).collect();
        assert_eq!(missing(&lab).await, named, "without {piece}");
    }
    // On an account that has nothing all of it is missing.
    lab.emulator.create_stack(&serde_json::json!({}));
    assert_eq!(missing(&lab).await, pieces.into_iter().map(str::to_owned).collect());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_may_not_be_looked_at_is_not_missing() {
    let lab = lab(Config::default()).await;
    deployed(&lab).await;
    lab.emulator.update(|settings| {
        settings.denied_actions.insert("ec2:DescribeRouteTables".to_owned());
    });
    let ended = run(&lab, &["payments".to_owned()], &["--private", "--check", "--json"]).await;
    let said: Value = serde_json::from_str(ended.assert_success()).unwrap();
    let others: Vec<&Value> =
        said["checks"].as_array().unwrap().iter().filter(|check| check["status"] != "ok").collect();
    assert_eq!(others.len(), 1, "{others:#?}");
    assert_eq!((&others[0]["id"], &others[0]["status"]), (&"setup.note".into(), &"warning".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn both_things_that_a_cluster_lacks_are_told() {
    let mut cluster = autoheal_pa::emulator::ClusterConfig::new("payments");
    cluster.authentication_mode = Some("CONFIG_MAP".to_owned());
    (cluster.private_access, cluster.public_access) = (false, true);
    let lab = lab(Config { clusters: vec![cluster], ..Config::default() }).await;
    let ended = run(&lab, &["payments".to_owned()], &["--private"]).await;
    ended.assert_success();
    for said in ["authenticationMode=API_AND_CONFIG_MAP", "endpointPrivateAccess=true"] {
        assert!(ended.stderr.contains(said), "{said}: {}", ended.stderr);
    }
}

/// What `doctor` fails at, as the role that was made.
async fn doctor(lab: &Lab, role: &str) -> Vec<String> {
    let args = ["doctor", "--bastion", "auto", "--cluster", "payments", "--role-arn", role, "--json"];
    let ended = lab.run(&args).await;
    let said: Value = serde_json::from_str(&ended.stdout).unwrap_or_else(|error| panic!("{error}: {ended:#?}"));
    let checks = said["checks"].as_array().unwrap().iter();
    checks.filter(|check| check["status"] == "failed").map(|check| check["id"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn doctor_finds_nothing_to_mend_until_something_is_gone() {
    let lab = lab(Config::default()).await;
    let template = deployed(&lab).await;
    let role = template["Outputs"]["Role"]["Value"].as_str().unwrap();
    assert_eq!(doctor(&lab, role).await, [""; 0]);
    for (piece, _, check) in PIECES {
        let Some(check) = check else { continue };
        lab.emulator.create_stack(&template);
        assert!(lab.emulator.delete_resource(piece), "{piece}");
        let failed = doctor(&lab, role).await;
        assert_eq!(failed.first().map(String::as_str), Some(*check), "without {piece}: {failed:?}");
    }
}

/// From an account that has only a VPC and a cluster to its pods.
#[tokio::test(flavor = "multi_thread")]
async fn the_up_that_is_printed_works() {
    let Some(kubectl) = super::super::support::kubectl() else { return };
    let lab = lab(Config::default()).await;
    let template = deployed(&lab).await;
    let printed = template["Outputs"]["Up"]["Value"].as_str().unwrap();
    let args: Vec<&str> = printed.strip_prefix("autoheal-pa up ").unwrap().split(' ').collect();
    let up = lab.up(&args).await;
    let kubeconfig = lab.kubeconfig();
    let mut command = lab.command(kubectl);
    command.args(["--kubeconfig", kubeconfig.to_str().unwrap(), "--context", "pa-payments", "get", "pods", "-A"]);
    let ended = Running::start(&mut command).ended().await;
    assert!(ended.assert_success().contains("NAMESPACE"), "{ended:#?}");
    up.stop().await;
}
