//! The IAM policy that an identity needs, as values: who, where, through what and to which clusters in, a document out.
//!
//! Invariants:
//!
//! * Every action that this program calls is allowed on what it is called on, and nothing else is. The test
//!   `tests/it/policy.rs` reads the actions off the sources and evaluates the document with them.
//! * ARNs are of the partition that is given; nothing here takes `aws` for granted.
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
//!
//! Leaves out where the values come from and where the text goes; [`access_entry_commands`] and [`terraform()`] write the same
//! for a shell and for Terraform.

use std::collections::BTreeMap;

use serde::Serialize;

pub use access_entry::{ACCESS_POLICY, access_entry_commands};
pub use principal::Principal;
pub use terraform::terraform;

use crate::bastion::{Bastion, Target};

mod access_entry;
mod principal;
mod terraform;

/// The name that the policy is given, and that its Terraform resources have with an underscore.
pub const POLICY_NAME: &str = "autoheal-pa";

/// The document whose sessions forward to a host that the target sees.
pub const DOCUMENT: &str = "AWS-StartPortForwardingSessionToRemoteHost";

/// The tag on a session that tells who has started it, as a condition key of ResumeSession and TerminateSession (Service
/// Authorization Reference of AWS Systems Manager).
const SESSION_OWNER: &str = "ssm:resourceTag/aws:ssmmessages:session-id";

/// What is done with a session besides starting it.
const OWN_SESSION_ACTIONS: [&str; 2] = ["ssm:ResumeSession", "ssm:TerminateSession"];

const OPEN_DATA_CHANNEL: &str = "ssmmessages:OpenDataChannel";

/// What is to be allowed, and to whom.
#[derive(Debug, Clone)]
pub struct Grant {
    /// The region of bastions and clusters, which tells the partition.
    pub region: String,
    /// The account of bastions and clusters, twelve digits.
    pub account: String,
    /// Whose policy it is; `None`: not known, so that it has to do for any.
    pub principal: Option<Principal>,
    /// Bastions that sessions may be started on.
    pub bastions: Vec<Bastion>,
    /// Names of clusters; empty: all of the account and region.
    pub clusters: Vec<String>,
}

/// An IAM policy document, which serialises to the JSON that IAM takes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Document {
    version: &'static str,
    statement: Vec<Statement>,
}

/// One statement of a policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Statement {
    sid: &'static str,
    effect: &'static str,
    action: Vec<&'static str>,
    resource: Vec<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    condition: BTreeMap<&'static str, BTreeMap<&'static str, &'static str>>,
}

impl Statement {
    fn allow<const N: usize>(sid: &'static str, action: [&'static str; N], resource: Vec<String>) -> Self {
        Self { sid, effect: "Allow", action: action.into(), resource, condition: BTreeMap::new() }
    }

    fn when(mut self, operator: &'static str, key: &'static str, value: &'static str) -> Self {
        self.condition.entry(operator).or_default().insert(key, value);
        self
    }
}

impl Grant {
    /// Returns the partition.
    #[must_use]
    pub fn partition(&self) -> &'static str {
        partition(&self.region)
    }

    /// Returns the policy.
    #[must_use]
    pub fn document(&self) -> Document {
        let mut statement = vec![
            Statement::allow("ListClusters", ["eks:ListClusters"], every()),
            Statement::allow("DescribeClusters", ["eks:DescribeCluster"], self.cluster_arns()),
        ];
        if self.bastions.is_empty() || self.targets().next().is_some() {
            statement.extend(self.session_statements());
        }
        Document { version: "2012-10-17", statement }
    }

    /// What sessions of Systems Manager take.
    fn session_statements(&self) -> Vec<Statement> {
        let mut statement = vec![
            // Without the condition a session that names no document would be a shell on the bastion.
            Statement::allow("StartPortForwarding", ["ssm:StartSession"], self.session_resources()).when(
                "BoolIfExists",
                "ssm:SessionDocumentAccessCheck",
                "true",
            ),
            own_sessions(self.principal.as_ref(), self.partition()),
        ];
        if !matches!(self.principal, Some(Principal::User { .. })) {
            let own = format!("arn:{}:ssm:*:*:session/${{aws:userid}}-*", self.partition());
            statement.push(Statement::allow("OwnSessionsById", OWN_SESSION_ACTIONS, vec![own]));
        }
        statement.extend([open_data_channels(self.partition())]);
        // Systems Manager does not list containers.
        if self.targets().any(|target| !matches!(target, Target::EcsTask(_))) {
            let action = ["ssm:DescribeInstanceInformation"];
            statement.push(Statement::allow("OptionalTellsWhyABastionIsAway", action, every()));
        }
        statement
    }

    /// The bastions that sessions are started on.
    fn targets(&self) -> impl Iterator<Item = &Target> {
        self.bastions.iter().filter_map(Bastion::target)
    }

    fn cluster_arns(&self) -> Vec<String> {
        let arn = |name: &str| format!("arn:{}:eks:{}:{}:cluster/{name}", self.partition(), self.region, self.account);
        if self.clusters.is_empty() { vec![arn("*")] } else { self.clusters.iter().map(|name| arn(name)).collect() }
    }

    /// What StartSession is called on: the bastions, and the document, which is AWS's own and so without an account.
    fn session_resources(&self) -> Vec<String> {
        let Self { region, account, .. } = self;
        let partition = self.partition();
        let arn = |service: &str, resource: &str| format!("arn:{partition}:{service}:{region}:{account}:{resource}");
        let bastions = self.targets().map(|target| match target {
            Target::Instance(id) => arn("ec2", &format!("instance/{id}")),
            Target::ManagedNode(id) => arn("ssm", &format!("managed-instance/{id}")),
            Target::EcsTask(_) => {
                let (cluster, task) = target.ecs_task().unwrap_or(("*", "*"));
                arn("ecs", &format!("task/{cluster}/{task}"))
            }
        });
        let mut resources: Vec<String> = bastions.collect();
        resources.push(format!("arn:{partition}:ssm:{region}::document/{DOCUMENT}"));
        resources
    }
}

impl Document {
    /// Returns the document as JSON, ready for IAM.
    #[must_use]
    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).expect("strings are always JSON")
    }
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

fn every() -> Vec<String> {
    vec!["*".to_owned()]
}

/// Returns the partition of a region.
#[must_use]
pub fn partition(region: &str) -> &'static str {
    match region.split('-').next().unwrap_or_default() {
        "cn" => "aws-cn",
        "eusc" => "aws-eusc",
        "us" if region.starts_with("us-gov-") => "aws-us-gov",
        "us" if region.starts_with("us-isob-") => "aws-iso-b",
        "us" if region.starts_with("us-isof-") => "aws-iso-f",
        "us" if region.starts_with("us-iso-") => "aws-iso",
        "eu" if region.starts_with("eu-isoe-") => "aws-iso-e",
        _ => "aws",
    }
}

/// Returns the pattern of all sessions, which a policy has to allow `ssmmessages:OpenDataChannel` on.
#[must_use]
pub fn data_channels(partition: &str) -> String {
    format!("arn:{partition}:ssm:*:*:session/*")
}

#[cfg(test)]
mod tests;
