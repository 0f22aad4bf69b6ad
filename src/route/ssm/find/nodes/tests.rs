//! Nodes of every kind, as fakes of Systems Manager and EC2 tell of them.

use std::sync::Arc;

use serde_json::{Value, json};

use super::*;
use crate::{
    aws::testing::{Answer, Fake, Request, aws, in_time},
    bastion::Bastion,
    cluster::{Cluster, Vpc},
    route::{
        ssm::tests::support::cluster,
        step::{tests::lines, walked},
    },
};

fn node(number: u8, ping: &str, version: &str) -> Value {
    json!({
        "InstanceId": format!("i-0000000{number}"), "PingStatus": ping, "AgentVersion": version, "PlatformType": "Linux",
    })
}

fn list(nodes: &[Value]) -> Answer {
    Answer::json(200, &json!({ "InstanceInformationList": nodes }).to_string())
}

fn target(number: u8) -> Target {
    format!("i-0000000{number}").parse().unwrap()
}

async fn look(
    bastion: &str,
    answer: impl Fn(&Request) -> Answer + Send + Sync + 'static,
    in_use: &[Target],
) -> (Result<Sight, Fault>, Vec<Request>) {
    let Ok(Bastion::Found(search)) = bastion.parse() else { panic!("{bastion}") };
    let fake = Fake::start(answer).await;
    let to = Cluster {
        vpc: Some(Vpc { id: "vpc-1".into(), subnets: Vec::new(), security_groups: Vec::new() }),
        ..cluster("")
    };
    let sight = in_time(NodesLook::new(aws(&fake).await, search).look(&to.into(), in_use)).await;
    (sight, fake.requests())
}

#[tokio::test]
async fn those_in_contact_and_new_enough_are_usable() {
    let nodes = [
        node(1, "Online", "3.3.1142.0"),
        node(2, "ConnectionLost", "3.3.1142.0"),
        node(3, "Online", "3.0.1124.0"),
        node(4, "Online", "3.1.1374.0"),
    ];
    let (sight, requests) = look("tag:role=bastion", move |_| list(&nodes), &[target(1), target(9)]).await;
    let sight = sight.unwrap();
    let mut usable: Vec<_> = sight.usable.iter().map(|candidate| candidate.target.to_string()).collect();
    usable.sort();
    assert_eq!(usable, ["i-00000001", "i-00000004"]);
    assert_eq!((sight.found, sight.leaving), (4, vec![target(9)]), "what is not listed any more is about to go");
    assert!(requests[0].body.contains("tag:role"), "{}", requests[0].body);
}

#[tokio::test]
async fn what_was_found_and_is_of_no_use_is_named() {
    for (nodes, class, text) in [
        (vec![], Class::Gone, "no managed node in us-east-1 of this account has the tag `role=bastion`"),
        (vec![node(1, "ConnectionLost", "3.3.1142.0")], Class::Away, "`i-00000001` is ConnectionLost"),
        (vec![node(1, "Online", "3.0.1124.0")], Class::Away, "are older than 3.1.1374.0"),
    ] {
        let (sight, _) = look("tag:role=bastion", move |_| list(&nodes), &[]).await;
        let fault = sight.unwrap().nothing.unwrap();
        assert_eq!(fault.class, class, "{fault}");
        assert!(fault.to_string().contains(text), "{fault}");
        assert!(!fault.hints.is_empty());
    }
    let (sight, _) = look("asg:bastions", |_| list(&[]), &[]).await;
    assert_eq!(
        sight.unwrap().nothing.unwrap().class,
        Class::Away,
        "a group has none for a while when it replaces its only one"
    );
}

/// The number of an instance, and its tags.
type Tagged = (u8, &'static [(&'static str, &'static str)]);

fn instances(instances: &[Tagged]) -> Answer {
    let item = |(number, tags): &Tagged| {
        let tags = tags.iter().map(|(key, value)| format!("<item><key>{key}</key><value>{value}</value></item>"));
        format!(
            "<item><instanceId>i-0000000{number}</instanceId><instanceState><name>running</name></instanceState>\
             <vpcId>vpc-1</vpcId><tagSet>{}</tagSet></item>",
            tags.collect::<String>()
        )
    };
    let items: String = instances.iter().map(item).collect();
    Answer::xml(
        200,
        &format!(
            "<DescribeInstancesResponse><reservationSet><item><instancesSet>{items}</instancesSet></item></reservationSet>\
             </DescribeInstancesResponse>"
        ),
    )
}

#[tokio::test]
async fn in_a_network_tags_go_before_names_and_workers_are_only_taken_if_asked_for() {
    let all: Arc<[Tagged]> = Arc::new([
        (1, &[("eks:nodegroup-name", "ng"), ("Name", "bastion-like worker")]),
        (2, &[("Name", "My Jump host")]),
        (3, &[("autoheal-pa:bastion", "true")]),
        (4, &[("Name", "database")]),
        (5, &[("autoheal-pa:bastion", "false"), ("Name", "bastion")]),
        (6, &[("kubernetes.io/cluster/x", "owned")]),
    ]);
    for (bastion, expected) in [("auto", &["3", "2"][..]), ("auto:nodes", &["3", "2", "1", "6"])] {
        let all = Arc::clone(&all);
        let answer = move |request: &Request| match request.operation() {
            "DescribeInstances" => instances(&all),
            _ => list(&(1..=6).map(|number| node(number, "Online", "3.3.1142.0")).collect::<Vec<_>>()),
        };
        let (sight, requests) = look(bastion, answer, &[]).await;
        let sight = sight.unwrap();
        let usable: Vec<_> =
            sight.usable.iter().map(|candidate| candidate.target.as_str().trim_start_matches("i-0000000")).collect();
        let asked = &requests[1].body;
        assert!(expected.iter().all(|number| asked.contains(&format!("i-0000000{number}"))), "{asked}");
        assert!(!asked.contains("i-00000004") && !asked.contains("i-00000005"), "{asked}");
        assert_eq!(usable[..2], ["3", "2"], "{bastion}");
    }
    let none = move |_: &Request| instances(&[(4, &[("Name", "database")])]);
    let (sight, _) = look("auto", none, &[target(7)]).await;
    let sight = sight.unwrap();
    assert_eq!(sight.leaving, [target(7)]);
    let fault = sight.nothing.unwrap();
    assert!(fault.to_string().contains("no instance in `vpc-1`"), "{fault}");
    assert!(fault.hints[0].contains("create-tags") && fault.hints[1].contains("auto:nodes"), "{:?}", fault.hints);
}

#[test]
fn users_spread() {
    let first =
        |host: &str| (0..8_u8).min_by_key(|number| spread_of(host.as_bytes(), &format!("i-0000000{number}"))).unwrap();
    let chosen: std::collections::BTreeSet<_> = (0..40).map(|number| first(&number.to_string())).collect();
    assert!(chosen.len() > 4, "{chosen:?}");
    assert_eq!(first("a"), first("a"));
}

/// What is told of the steps, and why the best is the best.
async fn steps(bastion: &str, answer: impl Fn(&Request) -> Answer + Send + Sync + 'static) -> (Vec<String>, String) {
    let Ok(Bastion::Found(search)) = bastion.parse() else { panic!("{bastion}") };
    let fake = Fake::start(|_| list(&[])).await;
    let plan = NodesLook::new(aws(&fake).await, search).plan();
    let sight = look(bastion, answer, &[]).await.0.unwrap();
    (lines(&walked(plan, sight.told, sight.nothing)), sight.why)
}

#[tokio::test]
async fn the_steps_to_a_node_are_told_up_to_the_one_that_fails() {
    let on_windows = |number| {
        let mut node = node(number, "Online", "3.3.1142.0");
        node["PlatformType"] = json!("Windows");
        node
    };
    let [good, lost, old] =
        [node(1, "Online", "3.3.1142.0"), node(2, "ConnectionLost", "3.3.1142.0"), node(3, "Online", "3.0.1124.0")];
    for (nodes, expected, why) in [
        (
            vec![good.clone(), lost.clone(), old.clone()],
            [
                "bastion-known: 3 with the tag `role=bastion`",
                "bastion-online: 2 of 3 in contact with Systems Manager",
                "agent-version: 1 of 2 not older than 3.1.1374.0",
            ],
            "",
        ),
        (
            vec![good.clone(), on_windows(4)],
            [
                "bastion-known: 2 with the tag `role=bastion`",
                "bastion-online: all in contact with Systems Manager",
                "agent-version: all not older than 3.1.1374.0",
            ],
            "as it does not run Windows",
        ),
        (
            vec![lost.clone()],
            [
                "bastion-known: 1 with the tag `role=bastion`",
                "bastion-online: failed: none of the 1 nodes with the tag `role=bastion` is in contact with Systems Manager: \
                 `i-00000002` is ConnectionLost",
                "agent-version: needs bastion-online",
            ],
            "",
        ),
        (
            vec![old, lost],
            [
                "bastion-known: 2 with the tag `role=bastion`",
                "bastion-online: 1 of 2 in contact with Systems Manager",
                "agent-version: failed: the agents of all 1 nodes with the tag `role=bastion` are older than 3.1.1374.0, the \
                 first that forwards to other hosts",
            ],
            "",
        ),
    ] {
        let told = steps("tag:role=bastion", move |_| list(&nodes)).await;
        assert_eq!(told, (expected.map(str::to_owned).into(), why.to_owned()));
    }
    let (told, _) = steps("tag:role=bastion", |_| list(&[])).await;
    assert!(told[0].starts_with("bastion-known: failed: no managed node"), "{told:?}");
    let two = [good, node(5, "Online", "3.3.1142.0")];
    let (_, why) = steps("tag:role=bastion", move |_| list(&two)).await;
    assert_eq!(why, "which is this machine's of 2: users spread over them");
}
