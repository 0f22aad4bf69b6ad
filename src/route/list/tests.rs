//! Policies for every kind of bastion, partition and identity, as they are printed.

use super::*;
use crate::{
    iam::{Clusters, Principal, access_entry_commands, partition, terraform},
    route::ssm::statements::data_channels,
};

mod excess;

fn bastion(id: &str) -> Bastion {
    id.parse().unwrap()
}

fn instance() -> Bastion {
    bastion("i-0dc03fbcae2a87472")
}

fn role(partition: &str) -> Principal {
    Principal::from_arn(&format!("arn:{partition}:iam::123456789012:role/AutohealReadOnlyRole")).unwrap()
}

fn user() -> Principal {
    Principal::from_arn("arn:aws:iam::123456789012:user/ann").unwrap()
}

fn grant(region: &str, bastions: Vec<Bastion>, clusters: &[&str]) -> Grant {
    Grant {
        documents: Vec::new(),
        requests_access: false,
        region: region.to_owned(),
        account: "123456789012".to_owned(),
        principal: Some(role(partition(region))),
        bastions,
        clusters: Clusters::of(clusters.iter().map(|&name| name.to_owned()).collect()),
    }
}

#[test]
fn an_instance_and_all_clusters() {
    insta::assert_snapshot!(policy(&grant("us-east-1", vec![instance()], &[])).to_json());
}

#[test]
fn chosen_clusters_and_two_bastions() {
    let bastions = vec![instance(), bastion("mi-0dc03fbcae2a87472")];
    insta::assert_snapshot!(policy(&grant("eu-west-1", bastions, &["payments", "search"])).to_json());
}

#[test]
fn a_managed_node_in_gov_cloud() {
    let node = bastion("mi-0dc03fbcae2a87472");
    insta::assert_snapshot!(policy(&grant("us-gov-west-1", vec![node], &["payments"])).to_json());
}

#[test]
fn a_container_in_china() {
    let container = bastion("ecs:my_tools_0f9de17a6465404e8b1b2356dc13c2f8_0f9de17a6465404e8b1b2356dc13c2f8-1234");
    insta::assert_snapshot!(policy(&grant("cn-north-1", vec![container], &[])).to_json());
}

#[test]
fn a_user_is_told_from_a_role() {
    let for_user = Grant { principal: Some(user()), ..grant("us-east-1", vec![instance()], &["payments"]) };
    insta::assert_snapshot!(policy(&for_user).to_json());
    // Whoever it is, the tag is right for both.
    let for_anybody = Grant { principal: None, ..for_user.clone() };
    let for_role = Grant { principal: Some(role("aws")), ..for_user };
    assert_eq!(policy(&for_anybody), policy(&for_role));
}

#[test]
fn access_entries_for_chosen_clusters() {
    let grant = grant("cn-north-1", vec![], &["payments", "search"]);
    insta::assert_snapshot!(access_entry_commands(&grant, &role("aws-cn")));
}

#[test]
fn access_entries_for_all_clusters() {
    let odd = Principal::from_arn("arn:aws:iam::123456789012:role/it's/Odd").unwrap();
    insta::assert_snapshot!(access_entry_commands(&grant("us-east-1", vec![], &[]), &odd));
}

#[test]
fn terraform_for_a_role_and_chosen_clusters() {
    let grant = grant("us-gov-west-1", vec![instance()], &["payments", "search"]);
    insta::assert_snapshot!(terraform(&grant, &policy(&grant), &role("aws-us-gov"), &[]));
}

#[test]
fn terraform_for_a_user_and_all_clusters() {
    let grant = Grant { principal: Some(user()), ..grant("us-east-1", vec![instance()], &[]) };
    let text = terraform(&grant, &policy(&grant), &user(), &[]);
    // What IAM is to replace, Terraform must not.
    assert!(text.contains("session/$${aws:username}-*"), "{text}");
    insta::assert_snapshot!(text);
}

#[test]
fn knows_every_partition() {
    for (region, expected) in [
        ("us-east-1", "aws"),
        ("eu-west-1", "aws"),
        ("us-gov-west-1", "aws-us-gov"),
        ("cn-northwest-1", "aws-cn"),
        ("us-iso-east-1", "aws-iso"),
        ("us-isob-east-1", "aws-iso-b"),
        ("eu-isoe-west-1", "aws-iso-e"),
        ("us-isof-south-1", "aws-iso-f"),
        ("eusc-de-east-1", "aws-eusc"),
    ] {
        assert_eq!(partition(region), expected, "{region}");
        assert!(data_channels(partition(region)).starts_with(&format!("arn:{expected}:ssm:")));
    }
}

/// The policy for one bastion, as it is printed.
fn policy_for(text: &str) -> String {
    policy(&grant("us-east-1", vec![bastion(text)], &["payments"])).to_json()
}

#[test]
fn bastions_that_are_found() {
    insta::assert_snapshot!("service", policy_for("ecs:tools/bastion"));
    insta::assert_snapshot!("task", policy_for("ecs:tools/0f9de17a6465404e8b1b2356dc13c2f8/agent"));
    insta::assert_snapshot!("tag", policy_for("tag:role=bastion"));
    insta::assert_snapshot!("group", policy_for("asg:bastions"));
    insta::assert_snapshot!("auto", policy_for("auto:nodes"));
    let mixed = vec![instance(), bastion("name:jump"), bastion("ecs:tools/bastion"), bastion("direct")];
    let grant = grant("cn-north-1", mixed, &[]);
    insta::assert_snapshot!("mixed", terraform(&grant, &policy(&grant), &role("aws-cn"), &[]));
    assert!(notes(&grant)[0].contains("recommends to deny"));
    let two = vec![bastion("tag:a=b"), bastion("tag:c=d"), bastion("ecs:tools/a"), bastion("ecs:tools/b")];
    let text = policy(&self::grant("us-east-1", two, &[])).to_json();
    assert!(text.contains("\"StartOnTagged2\"") && !text.contains("ListTasks2"), "{text}");
}

#[test]
fn a_task_that_is_made() {
    insta::assert_snapshot!("fargate", policy_for("fargate"));
    let of_user = |mut bastion: Bastion| {
        let Bastion::Fargate(fargate) = &mut bastion else { panic!() };
        fargate.options.task_definition =
            Some("arn:aws:ecs:us-east-1:123456789012:task-definition/our-bastion:4".to_owned());
        fargate.options.task_role = "arn:aws:iam::123456789012:role/team/our-bastion".to_owned();
        bastion
    };
    let grant = |bastion| grant("us-east-1", vec![bastion], &["payments"]);
    let own = grant(of_user(bastion("fargate:tools")));
    insta::assert_snapshot!("fargate_with_a_task_definition", policy(&own).to_json());
    assert_eq!(roles(&own), []);
    assert!(notes(&own)[0].contains("`PassTaskRole` has to name that as well"), "{:?}", notes(&own));
    let ours = grant(bastion("fargate"));
    assert_eq!(notes(&ours), [""; 0]);
    let [role] = &roles(&ours)[..] else { panic!() };
    insta::assert_snapshot!("fargate_role", format!("{}\n{}", role.trust(), role.document.to_line()));
    insta::assert_snapshot!("fargate_terraform", terraform(&ours, &policy(&ours), &self::role("aws"), &roles(&ours)));
}

#[test]
fn ssh_servers() {
    insta::assert_snapshot!("ssh-instance", policy_for("ssh://ubuntu@i-0dc03fbcae2a87472"));
    insta::assert_snapshot!("ssh-found", policy_for("ssh://?instance=tag:role=bastion&via=direct"));
    let pinned = "ssh://bastion.example.com?instance=i-0dc03fbcae2a87472&via=eice&host_key=SHA256:abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNO+/";
    insta::assert_snapshot!("ssh-pinned", policy_for(pinned));
    // The agent's key needs nothing of AWS where the address is given.
    let text = policy_for("ssh://bastion.example.com?key=agent");
    assert!(!text.contains("ec2") && text.contains("eks:DescribeCluster"), "{text}");
}
