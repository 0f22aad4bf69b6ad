//! What sessions of Systems Manager have to be allowed.
//!
//! **Whose sessions.** A session's id is the name of the IAM user, or of the role's session, with a suffix. The variable
//! `${aws:username}` is that name for a user and does not exist for a role; `${aws:userid}` is `AROA…:name` for a role, so the
//! pattern `session/${aws:userid}-*` of AWS's quick start matches no id that we have seen of either. What works for a role is
//! the tag that Session Manager puts on each session, whose value is the `aws:userid` of whoever has started it (AWS Systems
//! Manager user guide, "Allow a user to end only sessions they started", both methods). As both are documented, a role gets
//! both: the pattern allows nothing that the tag does not.
//!
//! **The data channel.** `ssmmessages:OpenDataChannel` is allowed on every session, as AWS's own managed policies do: it is no use
//! without the token, good for one time, that only StartSession and ResumeSession give.

use crate::{
    bastion::Target,
    iam::{Grant, Principal, Statement, every, partition},
};

/// The document whose sessions forward to a host that the target sees.
pub const DOCUMENT: &str = "AWS-StartPortForwardingSessionToRemoteHost";

/// The tag on a session that tells who has started it, as a condition key of ResumeSession and TerminateSession (Service
/// Authorization Reference of AWS Systems Manager).
const SESSION_OWNER: &str = "ssm:resourceTag/aws:ssmmessages:session-id";

/// What is done with a session besides starting it.
const OWN_SESSION_ACTIONS: [&str; 2] = ["ssm:ResumeSession", "ssm:TerminateSession"];

const OPEN_DATA_CHANNEL: &str = "ssmmessages:OpenDataChannel";

/// Returns the statements for sessions on targets.
#[must_use]
pub fn statements<'a>(grant: &Grant, targets: impl Iterator<Item = &'a Target> + Clone) -> Vec<Statement> {
    let mut statements = vec![
        // Without the condition a session that names no document would be a shell on the bastion.
        Statement::allow("StartPortForwarding", ["ssm:StartSession"], resources(grant, targets.clone())).when(
            "BoolIfExists",
            "ssm:SessionDocumentAccessCheck",
            "true",
        ),
        own_sessions(grant.principal.as_ref(), grant.partition()),
    ];
    if !matches!(grant.principal, Some(Principal::User { .. })) {
        let own = format!("arn:{}:ssm:*:*:session/${{aws:userid}}-*", grant.partition());
        statements.push(Statement::allow("OwnSessionsById", OWN_SESSION_ACTIONS, vec![own]));
    }
    statements.push(open_data_channels(grant.partition()));
    // Systems Manager does not list containers.
    if targets.into_iter().any(|target| !matches!(target, Target::EcsTask(_))) {
        let action = ["ssm:DescribeInstanceInformation"];
        statements.push(Statement::allow("OptionalTellsWhyABastionIsAway", action, every()));
    }
    statements
}

/// Returns what to know of the statements for a target.
#[must_use]
pub fn note(target: &Target) -> Option<String> {
    let (cluster, _) = target.ecs_task()?;
    Some(format!(
        "a task's id changes with the task: `task/{cluster}/*` allows all tasks of the ECS cluster; `ecs:ExecuteCommand` is \
         not needed, since sessions are started with Systems Manager itself"
    ))
}

/// What StartSession is called on: the targets, and the document, which is AWS's own and so without an account.
fn resources<'a>(grant: &Grant, targets: impl Iterator<Item = &'a Target>) -> Vec<String> {
    let targets = targets.map(|target| match target {
        Target::Instance(id) => grant.arn("ec2", &format!("instance/{id}")),
        Target::ManagedNode(id) => grant.arn("ssm", &format!("managed-instance/{id}")),
        Target::EcsTask(_) => {
            let (cluster, task) = target.ecs_task().unwrap_or(("*", "*"));
            grant.arn("ecs", &format!("task/{cluster}/{task}"))
        }
    });
    let mut resources: Vec<String> = targets.collect();
    resources.push(format!("arn:{}:ssm:{}::document/{DOCUMENT}", grant.partition(), grant.region));
    resources
}

/// Returns the statement that allows an action on the caller's sessions, and what goes with it, as JSON on one line.
#[must_use]
pub fn session_statement(action: &str, principal: Option<&Principal>, region: &str) -> String {
    let partition = partition(region);
    let statement = match action {
        OPEN_DATA_CHANNEL => open_data_channels(partition),
        _ => own_sessions(principal, partition),
    };
    serde_json::to_string(&statement).expect("strings are always JSON")
}

fn own_sessions(principal: Option<&Principal>, partition: &str) -> Statement {
    let action = OWN_SESSION_ACTIONS;
    match principal {
        Some(Principal::User { .. }) => {
            let own = format!("arn:{partition}:ssm:*:*:session/${{aws:username}}-*");
            Statement::allow("OwnSessions", action, vec![own])
        }
        Some(Principal::Role { .. }) | None => {
            Statement::allow("OwnSessions", action, every()).when("StringLike", SESSION_OWNER, "${aws:userid}")
        }
    }
}

fn open_data_channels(partition: &str) -> Statement {
    Statement::allow("OpenDataChannels", [OPEN_DATA_CHANNEL], vec![data_channels(partition)])
}

/// Returns the pattern of all sessions, which a policy has to allow `ssmmessages:OpenDataChannel` on.
#[must_use]
pub fn data_channels(partition: &str) -> String {
    format!("arn:{partition}:ssm:*:*:session/*")
}
