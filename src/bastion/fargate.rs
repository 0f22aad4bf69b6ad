//! A bastion that is made when it is needed: a task on Fargate in the cluster's own network.

use std::{fmt, time::Duration};

use super::search::is_name;
use crate::util::arn::Arn;

/// The name of the route.
const FARGATE: &str = "fargate";

/// The ECS cluster that tasks run in, unless another is named.
const CLUSTER: &str = "autoheal-pa";

/// A task that is run to be a bastion: `fargate[:<ecs cluster>]`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Fargate {
    /// The name of the ECS cluster that it runs in.
    pub cluster: String,
    /// What it is like.
    pub options: FargateOptions,
}

/// What the task is like.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FargateOptions {
    /// A task definition to run, by family or ARN; `None`: our own.
    pub task_definition: Option<String>,
    /// The role of the task, by name or ARN.
    pub task_role: String,
    pub image: String,
    /// It gets a public address, to reach AWS from a public subnet.
    pub public_ip: bool,
    /// The security groups that it is in; empty: the cluster security group.
    pub security_groups: Vec<String>,
    /// The subnets that it may be in; empty: those of the EKS cluster.
    pub subnets: Vec<String>,
    /// How long it runs at most.
    pub ttl: Duration,
}

impl FargateOptions {
    /// The role of the task, unless another is named.
    pub const TASK_ROLE: &str = "autoheal-pa-bastion";

    /// The image, unless another is named: a shell is all that is needed, as the agent comes with ECS Exec.
    pub const IMAGE: &str = "public.ecr.aws/docker/library/busybox:stable";

    /// How long a task runs at most, unless told otherwise.
    pub const TTL: Duration = Duration::from_secs(8 * 3600);
}

impl Default for FargateOptions {
    fn default() -> Self {
        Self {
            task_definition: None,
            task_role: Self::TASK_ROLE.to_owned(),
            image: Self::IMAGE.to_owned(),
            public_ip: false,
            security_groups: Vec::new(),
            subnets: Vec::new(),
            ttl: Self::TTL,
        }
    }
}

impl Fargate {
    /// Reads the form, without options.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let cluster = match text.split_once(':') {
            None => (text == FARGATE).then_some(CLUSTER),
            Some((kind, cluster)) => (kind == FARGATE && is_name(cluster)).then_some(cluster),
        };
        let options = FargateOptions::default();
        cluster.map(|cluster| Self { cluster: cluster.to_owned(), options })
    }
}

impl fmt::Display for Fargate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.cluster.as_str() {
            CLUSTER => f.write_str(FARGATE),
            cluster => write!(f, "{FARGATE}:{cluster}"),
        }
    }
}

/// Tells whether ECS would take this as a task definition: a family, with or without a revision, or an ARN.
#[must_use]
pub fn is_task_definition(text: &str) -> bool {
    let is_definition = |text: &str| match text.split_once(':') {
        None => is_name(text),
        Some((family, revision)) => is_name(family) && revision.parse::<u32>().is_ok(),
    };
    match Arn::parse(text) {
        Some(arn) => arn.service == "ecs" && arn.resource.strip_prefix("task-definition/").is_some_and(is_definition),
        None => is_definition(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_definition_is_a_family_or_an_arn() {
        for text in [
            "bastion",
            "my-bastion:12",
            "arn:aws:ecs:us-east-1:123456789012:task-definition/bastion",
            "arn:aws-cn:ecs:cn-north-1:123456789012:task-definition/bastion:3",
        ] {
            assert!(is_task_definition(text), "{text}");
        }
        for text in
            ["", ":3", "a:b", "a:1:2", "arn:aws:ecs:us-east-1:123456789012:task/bastion", "arn:aws:iam::1:role/x"]
        {
            assert!(!is_task_definition(text), "{text}");
        }
    }

    #[test]
    fn its_own_ecs_cluster_goes_without_saying() {
        assert_eq!(Fargate::parse("fargate").unwrap(), Fargate::parse("fargate:autoheal-pa").unwrap());
        assert_eq!(Fargate::parse("fargate:autoheal-pa").unwrap().to_string(), "fargate");
    }
}
