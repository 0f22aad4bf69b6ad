//! What is deployed is found; what is taken away is named, by `setup --check`, and by `doctor` where it can see it.

use std::collections::{BTreeMap, BTreeSet};

use autoheal_pa::emulator::{Config, TaskInfo};
use serde_json::{Value, json};

use super::{
    super::support::{DEADLINE, Lab, Running},
    IMAGE, lab, run, split,
};

/// A kind of bastion that there may be.
struct Kind {
    args: &'static [&'static str],
    /// Each piece of its template, what is missing with it, and the check of `doctor` that fails without it.
    pieces: &'static [(&'static str, &'static [&'static str], Option<&'static str>)],
}

const EC2: Kind = Kind {
    args: &["--private"],
    pieces: &[
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
        ("UserRole", &["UserRole", "UserPolicy"], Some("credentials")),
        ("UserPolicy", &["UserPolicy"], Some("describe-cluster")),
        ("AccessEntry1", &["AccessEntry1"], Some("api")),
    ],
};

const ECS: Kind = Kind {
    args: &["--bastion-kind", "ecs", "--private", "--fargate-image", IMAGE],
    pieces: &[
        ("Cluster", &["Cluster", "BastionService"], Some("bastion-known")),
        ("TaskRole", &["TaskRole"], Some("start-session")),
        ("ImageRole", &["ImageRole"], None),
        ("BastionGroup", &["BastionGroup", "ClusterRule1", "EndpointRule1"], Some("endpoint")),
        ("ClusterRule1", &["ClusterRule1"], Some("endpoint")),
        ("EndpointGroup", &["EndpointGroup", "EndpointRule1"], None),
        ("EndpointRule1", &["EndpointRule1"], None),
        ("EndpointSsmmessages", &["EndpointSsmmessages"], None),
        ("EndpointEcrApi", &["EndpointEcrApi"], None),
        ("EndpointEcrDkr", &["EndpointEcrDkr"], None),
        ("EndpointS3", &["EndpointS3"], None),
        ("TaskDefinition", &["TaskDefinition"], None),
        ("BastionService", &["BastionService"], Some("bastion-known")),
        ("UserRole", &["UserRole", "UserPolicy"], Some("credentials")),
        ("UserPolicy", &["UserPolicy"], Some("describe-cluster")),
        ("AccessEntry1", &["AccessEntry1"], Some("api")),
    ],
};

const SSH: Kind = Kind {
    args: &["--bastion-kind", "ssh", "--private"],
    pieces: &[
        ("BastionGroup", &["BastionGroup", "ClusterRule1", "ConnectRule"], None),
        ("ConnectGroup", &["ConnectGroup", "ConnectRule"], None),
        ("ConnectRule", &["ConnectRule"], None),
        ("ConnectEndpoint", &["ConnectEndpoint"], None),
        ("ClusterRule1", &["ClusterRule1"], None),
        ("BastionTemplate", &["BastionTemplate"], None),
        ("Bastion", &["Bastion"], None),
        ("UserRole", &["UserRole", "UserPolicy"], Some("credentials")),
        ("UserPolicy", &["UserPolicy"], Some("describe-cluster")),
        ("AccessEntry1", &["AccessEntry1"], None),
    ],
};

const FARGATE: Kind = Kind {
    args: &["--bastion-kind", "fargate", "--private", "--fargate-image", IMAGE],
    pieces: &[
        ("Cluster", &["Cluster"], None),
        ("TaskRole", &["TaskRole"], None),
        ("ImageRole", &["ImageRole"], None),
        ("EndpointGroup", &["EndpointGroup", "EndpointRule1"], None),
        ("EndpointRule1", &["EndpointRule1"], None),
        ("EndpointSsmmessages", &["EndpointSsmmessages"], None),
        ("EndpointEcrApi", &["EndpointEcrApi"], None),
        ("EndpointEcrDkr", &["EndpointEcrDkr"], None),
        ("EndpointS3", &["EndpointS3"], None),
        ("TaskDefinition", &["TaskDefinition"], None),
        ("UserRole", &["UserRole", "UserPolicy"], Some("credentials")),
        ("UserPolicy", &["UserPolicy"], Some("describe-cluster")),
        ("AccessEntry1", &["AccessEntry1"], None),
    ],
};

const KINDS: [&Kind; 4] = [&EC2, &ECS, &SSH, &FARGATE];

async fn deployed(lab: &Lab, kind: &Kind) -> Value {
    let ended = run(lab, &["payments".to_owned()], kind.args).await;
    let template: Value = serde_json::from_str(ended.assert_success()).unwrap();
    lab.emulator.create_stack(&template);
    template
}

/// The pieces that are not as they have to be, with what mends them.
async fn to_mend(lab: &Lab, kind: &Kind) -> BTreeMap<String, String> {
    let ended = run(lab, &["payments".to_owned()], &[kind.args, &["--check", "--json"]].concat()).await;
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
    let id = |check: &Value| check["id"].as_str().unwrap().strip_prefix("setup.").unwrap().to_owned();
    failed.iter().map(|check| (id(check), check["fixes"].to_string())).collect()
}

async fn missing(lab: &Lab, kind: &Kind) -> BTreeSet<String> {
    to_mend(lab, kind).await.into_keys().collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_taken_away_is_named() {
    for kind in KINDS {
        let lab = lab(Config::default()).await;
        let template = deployed(&lab, kind).await;
        let pieces: BTreeSet<&str> = template["Resources"].as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(kind.pieces.iter().map(|(piece, ..)| *piece).collect::<BTreeSet<_>>(), pieces);
        assert_eq!(missing(&lab, kind).await, BTreeSet::new());
        for (piece, named, _) in kind.pieces {
            lab.emulator.create_stack(&template);
            assert!(lab.emulator.delete_resource(piece), "{piece}");
            let named: BTreeSet<String> = named.iter().map(|&name| name.to_owned()).collect();
            assert_eq!(missing(&lab, kind).await, named, "without {piece}");
        }
        // On an account that has nothing all of it is missing.
        lab.emulator.create_stack(&serde_json::json!({}));
        assert_eq!(missing(&lab, kind).await, pieces.into_iter().map(str::to_owned).collect());
    }
}

/// A service that is there is of no use without a task that has the agent.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_service_lacks_is_told() {
    let lab = lab(Config::default()).await;
    let template = deployed(&lab, &ECS).await;
    let cluster = template["Resources"]["Cluster"]["Properties"]["ClusterName"].clone();
    let key = lab.emulator.new_access_key();
    // What is started now is long in coming.
    lab.emulator.update(|settings| settings.tasks.delay = DEADLINE);
    for (change, mend) in [
        (
            json!({ "desiredCount": 0 }),
            "aws ecs update-service --region us-east-1 --cluster {} --service bastion --desired-count 1",
        ),
        (
            json!({ "desiredCount": 1, "enableExecuteCommand": false }),
            "aws ecs update-service --region us-east-1 --cluster {} --service bastion --enable-execute-command --force-new-deployment",
        ),
        (
            json!({ "enableExecuteCommand": true }),
            "aws ecs describe-services --region us-east-1 --cluster {} --services bastion --query 'services[].events[:3].message'",
        ),
    ] {
        let mut input = change.clone();
        (input["cluster"], input["service"]) = (cluster.clone(), "bastion".into());
        lab.emulator.call_ecs(&key, "UpdateService", &input).await.unwrap();
        let is_running = |task: &TaskInfo| task.status == "RUNNING";
        lab.wait_until("the task to stop", |emulator| !emulator.tasks().iter().any(is_running)).await;
        let mend = json!([mend.replace("{}", cluster.as_str().unwrap())]).to_string();
        assert_eq!(to_mend(&lab, &ECS).await, BTreeMap::from([("BastionService".to_owned(), mend)]), "{change}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_may_not_be_looked_at_is_not_missing() {
    let lab = lab(Config::default()).await;
    deployed(&lab, &EC2).await;
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

/// The words of the `up` that is printed, behind its name.
fn up_of(template: &Value) -> Vec<String> {
    let printed = template["Outputs"]["Up"]["Value"].as_str().unwrap();
    split(printed.strip_prefix("autoheal-pa up ").unwrap())
}

/// What `doctor` fails at, as the role that was made.
async fn doctor(lab: &Lab, template: &Value) -> Vec<String> {
    let checks = checks_of_doctor(lab, &up_of(template)).await;
    let failed = checks.iter().filter(|check| check["status"] == "failed");
    failed.map(|check| check["id"].as_str().unwrap().to_owned()).collect()
}

/// What `doctor` says of the pieces of the bastion, as an administrator.
async fn told_by_doctor(lab: &Lab, template: &Value) -> Value {
    let mut up = up_of(template);
    up.truncate(up.iter().position(|word| word == "--role-arn").unwrap());
    let checks = checks_of_doctor(lab, &up).await;
    checks.into_iter().find(|check| check["id"] == "setup").unwrap()
}

async fn checks_of_doctor(lab: &Lab, up: &[String]) -> Vec<Value> {
    let args: Vec<&str> = ["doctor", "--json"].into_iter().chain(up.iter().map(String::as_str)).collect();
    let ended = lab.run(&args).await;
    let said: Value = serde_json::from_str(&ended.stdout).unwrap_or_else(|error| panic!("{error}: {ended:#?}"));
    said["checks"].as_array().unwrap().clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn doctor_finds_nothing_to_mend_until_something_is_gone() {
    for kind in [&EC2, &ECS] {
        let lab = lab(Config::default()).await;
        let template = deployed(&lab, kind).await;
        assert_eq!(doctor(&lab, &template).await, [""; 0]);
        for (piece, _, check) in kind.pieces {
            let Some(check) = check else { continue };
            lab.emulator.create_stack(&template);
            assert!(lab.emulator.delete_resource(piece), "{piece}");
            let failed = doctor(&lab, &template).await;
            assert_eq!(failed.first().map(String::as_str), Some(*check), "without {piece}: {failed:?}");
        }
    }
}

/// What nothing goes through now is missed as well: it is needed when the bastion is replaced.
#[tokio::test(flavor = "multi_thread")]
async fn doctor_names_the_pieces_of_the_bastion_that_are_gone() {
    for kind in KINDS {
        let lab = lab(Config::default()).await;
        let template = deployed(&lab, kind).await;
        let whole = told_by_doctor(&lab, &template).await;
        assert_eq!(whole["status"], "ok", "{whole:#}");
        let is_of_user = |piece: &str| ["User", "Access"].iter().any(|start| piece.starts_with(start));
        for (piece, named, _) in kind.pieces.iter().filter(|(piece, ..)| !is_of_user(piece)) {
            lab.emulator.create_stack(&template);
            assert!(lab.emulator.delete_resource(piece), "{piece}");
            let told = told_by_doctor(&lab, &template).await;
            assert_eq!(told["status"], "warning", "without {piece}: {told:#}");
            let answer = told["answer"].as_str().unwrap();
            for name in *named {
                assert!(answer.contains(&format!("`{name}`")), "without {piece}, {name}: {answer}");
            }
            let fix = told["fixes"][0].as_str().unwrap();
            assert!(fix.starts_with("autoheal-pa setup --check --region us-east-1 --cluster payments"), "{fix}");
        }
        // What may not be looked at is not said to be there.
        lab.emulator.create_stack(&template);
        let (piece, ..) = kind.pieces[0];
        let call = match template["Resources"][piece]["Type"].as_str().unwrap() {
            "AWS::IAM::Role" => "iam:GetRole",
            "AWS::ECS::Cluster" => "ecs:DescribeClusters",
            _ => "ec2:DescribeLaunchTemplates",
        };
        lab.emulator.update(|settings| settings.denied_actions = std::iter::once(call.to_owned()).collect());
        let told = told_by_doctor(&lab, &template).await;
        assert!(told["answer"].as_str().unwrap().contains("may not be looked at"), "{call}: {told:#}");
        lab.emulator.update(|settings| settings.denied_actions.clear());
        // As the role that was made, which may not look.
        let checks = checks_of_doctor(&lab, &up_of(&template)).await;
        let setup = checks.iter().find(|check| check["id"] == "setup").unwrap();
        assert_eq!(setup["status"], "skipped", "{setup:#}");
    }
}

/// From an account that has only a VPC and a cluster to its pods.
#[tokio::test(flavor = "multi_thread")]
async fn the_up_that_is_printed_works() {
    let Some(kubectl) = super::super::support::kubectl() else { return };
    for kind in [&EC2, &ECS] {
        let lab = lab(Config::default()).await;
        let words = up_of(&deployed(&lab, kind).await);
        let up = lab.up(&words.iter().map(String::as_str).collect::<Vec<_>>()).await;
        let kubeconfig = lab.kubeconfig();
        let mut command = lab.command(&kubectl);
        command.args(["--kubeconfig", kubeconfig.to_str().unwrap(), "--context", "pa-payments", "get", "pods", "-A"]);
        let ended = Running::start(&mut command).ended().await;
        assert!(ended.assert_success().contains("NAMESPACE"), "{ended:#?}");
        up.stop().await;
    }
}
