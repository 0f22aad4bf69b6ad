//! What it means that a role may more than it needs, and how to print the policy that allows no more.

use super::fixes::principal_arn;
use crate::{
    doctor::{Narrower, Place},
    iam::{Excess, Over, Power},
    util::quote::{Word, command},
};

/// Most statements, and most ways in which one is too wide, that are told.
const MAX_TOLD: usize = 5;

/// The check of the document that a session names.
const DOCUMENT_CHECK: &str = "ssm:sessiondocumentaccesscheck";

/// The document that forwards to any host.
const ANY_HOST: &str = crate::route::ssm::statements::DOCUMENT;

/// Says by which statements a role may more.
pub(super) fn answer(role: &str, excess: &[Excess]) -> String {
    let told = excess.iter().take(MAX_TOLD).map(|one| {
        let over = one.over.iter().take(MAX_TOLD).map(what).chain(more(one.over.len(), "more"));
        format!("{}: {}", statement(one), over.collect::<Vec<_>>().join(", "))
    });
    let told: Vec<_> = told.chain(more(excess.len(), "more statements")).collect();
    format!("`{role}` may more than tunnels need, by {}", told.join("; "))
}

fn more(count: usize, what: &str) -> Option<String> {
    count.checked_sub(MAX_TOLD).filter(|left| *left > 0).map(|left| format!("{left} {what}"))
}

fn statement(excess: &Excess) -> String {
    match &excess.statement {
        Ok(sid) => format!("statement `{sid}` of `{}`", excess.policy),
        Err(number) => format!("statement {number} of `{}`", excess.policy),
    }
}

fn what(over: &Over) -> String {
    match over {
        Over::Actions { pattern, .. } => format!("`{pattern}`"),
        Over::Resource { action, resource } => format!("`{action}` on `{resource}`"),
        Over::Condition { action, resource, keys } => {
            format!("`{action}` on `{resource}` without the condition on `{}`", keys.join("`, `"))
        }
    }
}

/// Says what whoever has the role can do by that.
pub(super) fn meaning(excess: &[Excess]) -> String {
    let mut told: Vec<&'static str> = Vec::new();
    for over in excess.iter().flat_map(|one| &one.over) {
        let of_over = match over {
            Over::Actions { powers, .. } => powers.iter().map(|power| of_power(*power)).collect(),
            Over::Resource { action, resource } => vec![of_resource(action, resource)],
            Over::Condition { action, keys, .. } => vec![of_condition(action, keys)],
        };
        for text in of_over {
            if !told.contains(&text) {
                told.push(text);
            }
        }
    }
    if told.is_empty() {
        return "tunnels work; nothing of it is known to lead further than to look at more".to_owned();
    }
    let left = more(told.len(), "more of the kind");
    let told = told.into_iter().take(MAX_TOLD).map(str::to_owned).chain(left).collect::<Vec<_>>();
    format!("tunnels work; whoever has the role also has {}", told.join("; "))
}

fn of_power(Power(action): Power) -> &'static str {
    match action {
        "iam:PutRolePolicy" | "iam:AttachRolePolicy" => "every permission, as it can give itself any",
        "iam:PassRole" => "what every role has that a service of AWS may be handed",
        "ssm:StartSession" => "a shell on every instance that Systems Manager manages",
        "ssm:SendCommand" | "ssm:CreateAssociation" => {
            "commands as root on every instance that Systems Manager manages"
        }
        "ssm:StartAutomationExecution" => "runbooks of automation, which change instances and more",
        "ssm:CreateDocument" | "ssm:UpdateDocument" => "session documents to lead anywhere",
        "ssm:ResumeSession" | "ssm:TerminateSession" => "the sessions of others to take over and to end",
        "eks:CreateAccessEntry" | "eks:AssociateAccessPolicy" => "clusters as their administrator",
        "eks:UpdateClusterConfig" => "the network settings of clusters to change",
        "ecs:ExecuteCommand" => "a shell in every container that ECS Exec is enabled for",
        "ec2-instance-connect:SendSSHPublicKey" => {
            "SSH to every instance as any user, as far as its port 22 is reached"
        }
        "ec2-instance-connect:OpenTunnel" => "tunnels through EC2 Instance Connect endpoints to every instance",
        _ => "more than it needs",
    }
}

fn of_resource(action: &str, resource: &str) -> &'static str {
    match action {
        "ssm:StartSession" if resource.ends_with(&format!("document/{ANY_HOST}")) => {
            "tunnels to every host and port that the bastion reaches"
        }
        "ssm:StartSession" if resource.contains(":document/") => {
            "sessions of other kinds than forwarding to clusters, as far as these documents are for shells or SSH"
        }
        "ssm:StartSession" if resource.starts_with("arn:") && !resource.ends_with(":*") => {
            "sessions on more than its bastions"
        }
        "eks:DescribeCluster" => "a look at other clusters",
        "iam:PassRole" => "what every such role has",
        "ec2-instance-connect:SendSSHPublicKey" => {
            "SSH to more instances than its bastion, as far as port 22 is reached"
        }
        "ec2-instance-connect:OpenTunnel" => "tunnels through EC2 Instance Connect endpoints to more than its bastion",
        "ssm:StartSession" | "ssm:ResumeSession" | "ssm:TerminateSession" => of_power(Power(match action {
            "ssm:StartSession" => "ssm:StartSession",
            _ => "ssm:ResumeSession",
        })),
        "ecs:StopTask" => "the tasks of others to stop",
        "ecs:RunTask" => "tasks of any kind to run",
        _ => "more to look at or to change than its bastion",
    }
}

fn of_condition(action: &str, keys: &[String]) -> &'static str {
    let is_of_documents = keys.iter().any(|key| key.to_lowercase() == DOCUMENT_CHECK);
    match action {
        "ssm:StartSession" if is_of_documents => "a shell on the bastion, by a session that names no document",
        "ssm:StartSession" => "sessions on instances that are no bastions",
        "ssm:ResumeSession" | "ssm:TerminateSession" => of_power(Power("ssm:ResumeSession")),
        "ec2-instance-connect:SendSSHPublicKey" => "SSH as any user, or to more instances than its bastion",
        _ => "more to look at or to change than its bastion",
    }
}

/// Says what prints the policy that allows no more, and what to do with it.
pub(super) fn fixes(place: &Place, excess: &[Excess], narrower: &Narrower) -> Vec<String> {
    let role = principal_arn(place);
    let mut words = command!("autoheal-pa policy --role-arn {}", role);
    for (option, value) in &narrower.options {
        let value = value.as_ref().map(|value| command!(" {}", value)).unwrap_or_default();
        words.push_str(&format!(" {option}{value}"));
    }
    let mut policies: Vec<&str> = excess.iter().map(|one| one.policy.as_str()).collect();
    policies.dedup();
    let policies = policies.join("`, `");
    let mut fixes = vec![format!(
        "`{words}` prints what is needed and no more: put that in the place of these statements of `{policies}`, as far as \
         the role is for tunnels alone"
    )];
    let is_of_sessions = |over: &Over| match over {
        Over::Actions { powers, .. } => powers.contains(&Power("ssm:StartSession")),
        Over::Resource { action, .. } | Over::Condition { action, .. } => *action == "ssm:StartSession",
    };
    let asks = narrower.options.iter().any(|(name, _)| *name == "--request-access");
    if !narrower.has_document && !asks && excess.iter().flat_map(|one| &one.over).any(is_of_sessions) {
        fixes.push(command!(
            "with `{} --document {}` sessions lead to the endpoints of clusters alone: the document of AWS leads to every host \
             that the bastion reaches",
            Word::raw(words),
            "pa-{cluster}"
        ));
    }
    fixes
}
