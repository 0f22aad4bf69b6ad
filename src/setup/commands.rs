//! A plan as commands of the AWS CLI.
//!
//! Invariant: each command stands for itself. What it needs of others it looks up, so that one that is missing can be made alone.

use serde_json::{Value, json};

use super::{
    Endpoint, EndpointKind, Entry, Group, GroupOf, GroupRef, Item, Piece, Plan, Rule, Scaling, Service, Template,
    containers,
    survey::{endpoint_name, trust_of_users},
};
use crate::{
    iam::POLICY_NAME,
    util::quote::{Word, command},
};

/// From which length on a command goes on in further lines, one for each option.
const LINE_LEN: usize = 100;

/// Returns a script for bash.
pub(super) fn script(plan: &Plan) -> String {
    let mut text = format!(
        "#!/usr/bin/env bash\n# What autoheal-pa needs to reach the EKS clusters of {}, in {} of the account {}.\n\
         # Variables of policies and scripts of containers are not for this shell.\n# shellcheck disable=SC2016\nset -euo pipefail\n",
        plan.vpc, plan.region, plan.account
    );
    // Nothing is made in another account by mistake.
    text.push_str(&command!(
        "\nif [ \"$(aws sts get-caller-identity --query Account --output text)\" != {} ]; then\n  echo {} >&2\n  exit 1\nfi\n",
        plan.account,
        format!("these are not credentials of the account {}", plan.account)
    ));
    let last_of_iam = plan.items.iter().rposition(|item| item.piece.is_of_iam());
    for (at, item) in plan.items.iter().enumerate() {
        text.push_str(&format!("\n# {}\n", title(&item.piece)));
        for line in of(plan, item) {
            text.push_str(&wrapped(&line));
            text.push('\n');
        }
        if Some(at) == last_of_iam {
            text.push_str("# Other services learn of it some seconds later.\nsleep 15\n");
        }
    }
    text
}

/// Says what a piece is, on a line.
fn title(piece: &Piece) -> String {
    let kind = piece.kind();
    let mut title = kind.to_owned();
    if let Some(first) = title.get_mut(..1) {
        first.make_ascii_uppercase();
    }
    match piece {
        Piece::Rule(rule) => rule.about.clone(),
        Piece::Group(group) => group.about.to_owned(),
        Piece::Endpoint(endpoint) => format!("{title} of {}", endpoint.service),
        Piece::Entry(entry) => format!("{title} in {}", entry.cluster),
        Piece::ServiceRole(_)
        | Piece::InstanceProfile { .. }
        | Piece::Template(_)
        | Piece::Scaling(_)
        | Piece::ConnectEndpoint { .. }
        | Piece::EcsCluster { .. }
        | Piece::TaskDefinition(_)
        | Piece::Service(_)
        | Piece::UserRole { .. }
        | Piece::Policy { .. } => title,
    }
}

/// Returns the commands that make a piece, each on one line.
pub(super) fn of(plan: &Plan, item: &Item) -> Vec<String> {
    let region = &plan.region;
    match &item.piece {
        Piece::ServiceRole(role) => {
            vec![create_role(&role.name, &role.trust_policy()), put_policy(&role.name, &role.document.to_value())]
        }
        Piece::InstanceProfile { name, role } => vec![
            command!("aws iam create-instance-profile --instance-profile-name {}", name),
            command!("aws iam add-role-to-instance-profile --instance-profile-name {} --role-name {}", name, role),
        ],
        Piece::Group(Group { name, about, .. }) => {
            let tags = tag_specification("security-group", &[("Name", name.as_str())]);
            vec![command!(
                "aws ec2 create-security-group --region {} --vpc-id {} --group-name {} --description {} --tag-specifications {}",
                region,
                plan.vpc,
                name,
                *about,
                tags
            )]
        }
        Piece::Rule(Rule { into, from, port, about, .. }) => {
            let pair = json!({ "GroupId": LOOKED_UP, "Description": about });
            let rule = json!([{ "IpProtocol": "tcp", "FromPort": port, "ToPort": port, "UserIdGroupPairs": [pair] }]);
            vec![command!(
                "aws ec2 authorize-security-group-ingress --region {} --group-id {} --ip-permissions {}",
                region,
                group(plan, into),
                with_group(plan, &rule, from)
            )]
        }
        Piece::Template(template) => {
            let tags = tag_specification("launch-template", &[("Name", template.name.as_str())]);
            vec![command!(
                "aws ec2 create-launch-template --region {} --launch-template-name {} --launch-template-data {} --tag-specifications {}",
                region,
                template.name,
                launch_data(plan, template),
                tags
            )]
        }
        Piece::Scaling(Scaling { name, template, subnets, tags }) => {
            let mut create = command!(
                "aws autoscaling create-auto-scaling-group --region {} --auto-scaling-group-name {} --min-size 1 --max-size 1 \
                 --desired-capacity 1 --launch-template {} --vpc-zone-identifier {} --tags",
                region,
                name,
                format!("LaunchTemplateName={template},Version=$Latest"),
                subnets.join(",")
            );
            for (key, value) in tags {
                create.push_str(&command!(" {}", format!("Key={key},Value={value},PropagateAtLaunch=true")));
            }
            vec![create]
        }
        Piece::Endpoint(Endpoint { service, service_name, kind }) => {
            let name = endpoint_name(&plan.name, service);
            let tags = tag_specification("vpc-endpoint", &[("Name", name.as_str())]);
            let (kind, more) = match kind {
                EndpointKind::Interface { subnets } => (
                    "Interface",
                    Word::raw(command!(
                        "--private-dns-enabled --subnet-ids {} --security-group-ids {}",
                        words(subnets),
                        group(plan, &GroupRef::Made(GroupOf::Endpoints))
                    )),
                ),
                EndpointKind::Gateway { tables } => {
                    ("Gateway", Word::raw(command!("--route-table-ids {}", words(tables))))
                }
            };
            vec![command!(
                "aws ec2 create-vpc-endpoint --region {} --vpc-id {} --service-name {} --vpc-endpoint-type {} {} --tag-specifications {}",
                region,
                plan.vpc,
                service_name,
                kind,
                more,
                tags
            )]
        }
        Piece::ConnectEndpoint { subnet } => {
            let tags = tag_specification("instance-connect-endpoint", &[("Name", plan.name.as_str())]);
            vec![command!(
                "aws ec2 create-instance-connect-endpoint --region {} --subnet-id {} --security-group-ids {} \
                 --no-preserve-client-ip --tag-specifications {}",
                region,
                subnet,
                group(plan, &GroupRef::Made(GroupOf::ConnectEndpoint)),
                tags
            )]
        }
        Piece::EcsCluster { name } => {
            vec![command!("aws ecs create-cluster --region {} --cluster-name {}", region, name)]
        }
        Piece::TaskDefinition(definition) => {
            let mut register = command!(
                "aws ecs register-task-definition --region {} --family {} --requires-compatibilities FARGATE --network-mode awsvpc \
                 --cpu {} --memory {} --runtime-platform {} --container-definitions {}",
                region,
                definition.family,
                definition.cpu,
                definition.memory,
                format!("cpuArchitecture={},operatingSystemFamily=LINUX", definition.architecture.as_str()),
                containers(definition).to_string()
            );
            for (option, role) in
                [("--task-role-arn", &definition.task_role), ("--execution-role-arn", &definition.execution_role)]
            {
                if let Some(role) = role {
                    register.push_str(&command!(" {} {}", option, role));
                }
            }
            vec![register]
        }
        Piece::Service(service) => {
            let Service { cluster, name, family, .. } = service;
            let network = service.network(LOOKED_UP.into());
            vec![command!(
                "aws ecs create-service --region {} --cluster {} --service-name {} --task-definition {} --desired-count 1 \
                 --launch-type FARGATE --enable-execute-command --network-configuration {} --deployment-configuration {}",
                region,
                cluster,
                name,
                family,
                with_group(plan, &network, &GroupRef::Made(GroupOf::Bastion)),
                "deploymentCircuitBreaker={enable=true,rollback=true}"
            )]
        }
        Piece::UserRole { name } => vec![create_role(name, &trust_of_users(plan))],
        Piece::Policy { role, document } => vec![put_policy(role, &document.to_value())],
        Piece::Entry(Entry { cluster, principal, policy, namespaces, .. }) => {
            let scope = if namespaces.is_empty() {
                "type=cluster".to_owned()
            } else {
                format!("type=namespace,namespaces={}", namespaces.join(","))
            };
            vec![
                command!(
                    "aws eks create-access-entry --region {} --cluster-name {} --principal-arn {}",
                    region,
                    cluster,
                    principal
                ),
                command!(
                    "aws eks associate-access-policy --region {} --cluster-name {} --principal-arn {} --policy-arn {} \
                     --access-scope {}",
                    region,
                    cluster,
                    principal,
                    policy,
                    scope
                ),
            ]
        }
    }
}

fn create_role(name: &str, trust: &Value) -> String {
    command!("aws iam create-role --role-name {} --assume-role-policy-document {}", name, trust.to_string())
}

fn put_policy(role: &str, document: &Value) -> String {
    command!(
        "aws iam put-role-policy --role-name {} --policy-name {} --policy-document {}",
        role,
        POLICY_NAME,
        document.to_string()
    )
}

/// Writes several words.
fn words(words: &[String]) -> Word {
    let words: Vec<_> = words.iter().map(|word| Word::from(word).to_string()).collect();
    Word::raw(words.join(" "))
}

fn tag_specification(kind: &str, tags: &[(&str, &str)]) -> String {
    let tags: Vec<_> = tags.iter().map(|(key, value)| format!("{{Key={key},Value={value}}}")).collect();
    format!("ResourceType={kind},Tags=[{}]", tags.join(","))
}

/// Writes the id of a group; that of one that is made is looked up.
fn group(plan: &Plan, group: &GroupRef) -> Word {
    match group {
        GroupRef::Made(of) => group_by_name(plan, *of),
        GroupRef::There(id) => Word::from(id),
    }
}

fn group_by_name(plan: &Plan, of: GroupOf) -> Word {
    Word::raw(command!(
        "\"$(aws ec2 describe-security-groups --region {} --filters {} {} --query 'SecurityGroups[0].GroupId' --output text)\"",
        plan.region,
        format!("Name=vpc-id,Values={}", plan.vpc),
        format!("Name=group-name,Values={}", plan.group_name(of))
    ))
}

/// Stands for the id of a group in JSON. No name has such signs.
const LOOKED_UP: &str = "{group}";

/// Writes JSON as one word, in which the id of a group is looked up.
fn with_group(plan: &Plan, value: &Value, of: &GroupRef) -> Word {
    let quoted = Word::from(&value.to_string()).to_string();
    Word::raw(match of {
        GroupRef::Made(_) => quoted.replace(LOOKED_UP, &format!("'{}'", group(plan, of))),
        GroupRef::There(id) => quoted.replace(LOOKED_UP, id),
    })
}

/// Writes what instances are started from, as one word.
fn launch_data(plan: &Plan, template: &Template) -> Word {
    let mut data = Template::data(LOOKED_UP.into());
    if let Some(profile) = &template.profile {
        data["IamInstanceProfile"] = json!({ "Name": profile });
    }
    with_group(plan, &data, &GroupRef::Made(GroupOf::Bastion))
}

/// Breaks a long command before each of its options, but for those within quotes and commands that are looked up.
fn wrapped(command: &str) -> String {
    if command.chars().count() <= LINE_LEN {
        return command.to_owned();
    }
    let mut text = String::with_capacity(command.len());
    let (mut depth, mut is_literal) = (0_usize, false);
    let mut rest = command;
    while let Some(c) = rest.chars().next() {
        if !is_literal && depth == 0 && rest.starts_with(" --") {
            text.push_str(" \\\n  --");
            rest = &rest[3..];
            continue;
        }
        match c {
            '\'' => is_literal = !is_literal,
            '(' if !is_literal => depth += 1,
            ')' if !is_literal => depth = depth.saturating_sub(1),
            _ => {}
        }
        text.push(c);
        rest = &rest[c.len_utf8()..];
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_commands_are_broken_where_no_word_is() {
        assert_eq!(wrapped("aws iam x --a b"), "aws iam x --a b");
        let long = format!("aws x --a 'p --q {}' --b \"$(aws y --c d)\" --e", "r".repeat(100));
        let broken = wrapped(&long);
        assert_eq!(broken.lines().count(), 4, "{broken}");
        assert_eq!(broken.replace(" \\\n  ", " "), long);
    }
}
