//! What `policy` prints is never too much, and any widening of it is.

use proptest::{prelude::*, sample::subsequence};
use serde_json::{Value, json};

use super::*;
use crate::{
    bastion::SessionDocument,
    iam::{HeldPolicy, too_much},
};

const BASTIONS: [&str; 19] = [
    "i-0dc03fbcae2a87472",
    "mi-0dc03fbcae2a87472",
    "ecs:my_tools_0f9de17a6465404e8b1b2356dc13c2f8_0f9de17a6465404e8b1b2356dc13c2f8-1234",
    "ecs:tools/bastion",
    "ecs:tools/0f9de17a6465404e8b1b2356dc13c2f8/agent",
    "tag:role=bastion",
    "name:jump",
    "asg:bastions",
    "auto",
    "auto:nodes",
    "fargate",
    "fargate:tools",
    "ssh://ubuntu@i-0dc03fbcae2a87472",
    "ssh://?instance=tag:role=bastion&via=direct",
    "ssh://?instance=asg:bastions",
    "ssh://bastion.example.com?key=agent",
    "ssh://bastion.example.com?instance=i-0dc03fbcae2a87472&via=eice",
    "ssh://ubuntu@i-0fedcba9876543210",
    "direct",
];

fn grants() -> impl Strategy<Value = Grant> {
    let bastions = subsequence(BASTIONS.to_vec(), 1..4);
    let regions = prop::sample::select(vec!["us-east-1", "us-gov-west-1", "cn-north-1"]);
    let clusters = subsequence(vec!["payments", "search"], 0..=2);
    let documents = prop::sample::select(vec!["", "pa", "pa-{cluster}"]);
    let owners = prop::sample::select(vec!["role", "user", "nobody"]);
    (bastions, regions, clusters, documents, owners, any::<(bool, bool)>()).prop_map(
        |(bastions, region, clusters, documents, owner, (requests, without_eks))| {
            let names: Vec<String> = clusters.iter().map(|&name| name.to_owned()).collect();
            let documents: Option<SessionDocument> = documents.parse().ok();
            let partition = partition(region);
            Grant {
                region: region.to_owned(),
                account: "123456789012".to_owned(),
                principal: match owner {
                    "role" => Some(role(partition)),
                    "user" => Principal::from_arn(&format!("arn:{partition}:iam::123456789012:user/ann")),
                    _ => None,
                },
                bastions: bastions.into_iter().map(bastion).collect(),
                documents: documents.map(|document| document.patterns(&names)).unwrap_or_default(),
                clusters: if without_eks { Clusters::None } else { Clusters::of(names) },
                requests_access: requests,
            }
        },
    )
}

fn judged(grant: &Grant, held: Value) -> Vec<crate::iam::Excess> {
    too_much(&policy(grant), &grant.region, &[HeldPolicy { name: "p".to_owned(), document: held }])
}

/// Whether a statement allows some of the actions of another on a resource, whatever the conditions: then it is no sure widening
/// when the other does.
fn allows_as_well(statement: &Value, other: &Value, resource: &str) -> bool {
    let actions = other["Action"].as_array().unwrap();
    statement["Resource"].as_array().unwrap().iter().any(|known| known == resource)
        && statement["Action"].as_array().unwrap().iter().any(|action| actions.contains(action))
}

/// Every policy that is as this one but for one statement, which allows more.
fn widened(policy: &Value) -> Vec<Value> {
    let mut all = Vec::new();
    let statements = policy["Statement"].as_array().unwrap();
    for (at, statement) in statements.iter().enumerate() {
        let mut widen = |change: &dyn Fn(&mut Value)| {
            let mut wider = policy.clone();
            change(&mut wider["Statement"][at]);
            if wider != *policy {
                all.push(wider);
            }
        };
        for (operator, keys) in statement["Condition"].as_object().into_iter().flatten() {
            for key in keys.as_object().unwrap().keys() {
                widen(&|statement| {
                    statement["Condition"][operator].as_object_mut().unwrap().remove(key);
                });
            }
        }
        for place in 0..statement["Resource"].as_array().unwrap().len() {
            widen(&|statement| statement["Resource"][place] = "*".into());
            // Another of its kind, unless the policy allows that already.
            let resource = statement["Resource"][place].as_str().unwrap();
            if let Some((kind, _)) = resource.rsplit_once('/').filter(|(_, name)| *name != "*") {
                let wider = format!("{kind}/*");
                if !statements.iter().any(|other| allows_as_well(other, statement, &wider)) {
                    widen(&|statement| statement["Resource"][place] = wider.clone().into());
                }
            }
        }
        for place in 0..statement["Action"].as_array().unwrap().len() {
            widen(&|statement| {
                let action = statement["Action"][place].as_str().unwrap().to_owned();
                statement["Action"][place] = format!("{}:*", action.split(':').next().unwrap()).into();
            });
            widen(&|statement| {
                let action = statement["Action"][place].as_str().unwrap().to_owned();
                statement["Action"][place] = format!("{}*", &action[..action.len() - 3]).into();
            });
        }
        widen(&|statement| {
            statement.as_object_mut().unwrap().remove("Action");
            statement["NotAction"] = json!(["s3:*"]);
        });
        widen(&|statement| {
            statement.as_object_mut().unwrap().remove("Condition");
            statement.as_object_mut().unwrap().remove("Resource");
            statement["Action"] = "ssm:StartSession".into();
            statement["NotResource"] = json!(["arn:aws:s3:::*"]);
        });
    }
    all
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn what_is_printed_is_not_too_much_and_more_is(grant in grants()) {
        let printed = policy(&grant).to_value();
        prop_assert_eq!(judged(&grant, printed.clone()), vec![], "{:#}", printed);
        for wider in widened(&printed) {
            prop_assert!(!judged(&grant, wider.clone()).is_empty(), "{:#}\nis not wider than\n{:#}", wider, printed);
        }
    }
}
