//! What SSH bastions have to be allowed: to find the instance, to push a key for one user, and to go through an endpoint.

use super::{fault::USERS, place::GROUP_TAG};
use crate::{
    bastion::{HostKeyRule, KeySource, Search, SshBastion, SshHost, SshInstance, Via},
    iam::{Grant, Statement, every},
};

/// Returns the statements for a bastion.
#[must_use]
pub fn statements(grant: &Grant, bastion: &SshBastion) -> Vec<Statement> {
    let SshBastion { user, host, instance, via, key, host_key, .. } = bastion;
    let wanted = match host {
        SshHost::Instance(wanted) => Some(wanted),
        SshHost::Name(_) => instance.as_ref(),
    };
    let mut statements = Vec::new();
    let pushes = *key == KeySource::Pushed;
    if pushes || wanted.is_some() {
        statements.push(Statement::allow("FindInstances", ["ec2:DescribeInstances"], every()));
    }
    if pushes {
        let user = user.as_deref().unwrap_or(USERS[0]);
        let push = Statement::allow("PushKeys", ["ec2-instance-connect:SendSSHPublicKey"], instances(grant, wanted));
        statements.push(on_tagged(push.when("StringEquals", "ec2:osuser", user), wanted));
    }
    // A name that was given is the address, unless it says otherwise.
    let may_tunnel = match via {
        Via::Direct => false,
        Via::Endpoint => true,
        Via::Auto => matches!(host, SshHost::Instance(_)),
    };
    if may_tunnel {
        let action = ["ec2:DescribeInstanceConnectEndpoints"];
        statements.push(Statement::allow("FindEndpoints", action, every()));
        let endpoints = vec![grant.arn("ec2", "instance-connect-endpoint/*")];
        let open = Statement::allow("OpenTunnels", ["ec2-instance-connect:OpenTunnel"], endpoints);
        statements.push(open.when("NumericEquals", "ec2-instance-connect:remotePort", bastion.port.to_string()));
    }
    if !matches!(host_key, Some(HostKeyRule::Pin(_))) && !statements.is_empty() {
        let read = Statement::allow("OptionalReadsHostKeys", ["ec2:GetConsoleOutput"], instances(grant, wanted));
        statements.push(on_tagged(read, wanted));
    }
    statements
}

fn instances(grant: &Grant, wanted: Option<&SshInstance>) -> Vec<String> {
    let id = match wanted {
        Some(SshInstance::Id(id)) => id.as_str(),
        Some(SshInstance::Found(_)) | None => "*",
    };
    vec![grant.arn("ec2", &format!("instance/{id}"))]
}

/// Holds a statement to the instances that are looked for.
fn on_tagged(statement: Statement, wanted: Option<&SshInstance>) -> Statement {
    let (key, value) = match wanted {
        Some(SshInstance::Found(Search::Tag { key, value })) => (key.as_str(), value),
        Some(SshInstance::Found(Search::Name(name))) => ("Name", name),
        Some(SshInstance::Found(Search::Group(group))) => (GROUP_TAG, group),
        Some(SshInstance::Found(Search::Ecs(_) | Search::Auto { .. }) | SshInstance::Id(_)) | None => return statement,
    };
    statement.when("StringEquals", format!("aws:ResourceTag/{key}"), value)
}
