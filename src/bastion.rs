//! What `--bastion` takes: the grammar of the routes, as plain data that settings read and status shows.
//!
//! [`route::list`](crate::route::list) makes routes of it.

mod document;
mod fargate;
mod search;
mod ssh;
mod target;

use std::{fmt, str::FromStr};

pub use self::{
    document::SessionDocument,
    fargate::{Fargate, FargateOptions, is_task_definition},
    search::{EcsSearch, EcsWhat, Search},
    ssh::{HostKeyRule, KeySource, SshBastion, SshFiles, SshHost, SshInstance, Via},
    target::{Target, TargetError},
};

/// The name of the route without a bastion.
const DIRECT: &str = "direct";

/// What stands before the colon, or alone.
const KINDS: [&str; 7] = ["asg", "auto", DIRECT, "ecs", "fargate", "name", "tag"];

/// How much like one of those a word has to be to be taken for a slip of the hand, from 0 to 1.
const NEAR: f64 = 0.8;

/// A way in as a user names it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Bastion {
    /// A target of Systems Manager as it is.
    Target(Target),
    /// Targets of Systems Manager that are looked for.
    Found(Search),
    /// A task that is made when it is needed.
    Fargate(Fargate),
    /// An SSH server.
    Ssh(Box<SshBastion>),
    /// None: straight to the endpoint.
    Direct,
}

impl Bastion {
    /// What a text has to be to be one.
    pub const EXPECTED: &str = "a bastion: expected an instance (`i-` and 8 or 17 hexadecimal digits), a managed node (`mi-` \
                                and 17), `ecs:<cluster>/<service or task>`, `tag:<key>=<value>`, `name:<value>`, \
                                `asg:<group>`, `auto`, `fargate`, \
                                `ssh://[<user>@]<instance or host>`, or `direct`";

    /// Returns what Systems Manager connects to, if that is known from the start.
    #[must_use]
    pub fn target(&self) -> Option<&Target> {
        match self {
            Self::Target(target) => Some(target),
            Self::Found(_) | Self::Fargate(_) | Self::Ssh(_) | Self::Direct => None,
        }
    }

    /// Returns the task that is made, if it is one.
    #[must_use]
    pub fn fargate(&self) -> Option<&Fargate> {
        match self {
            Self::Fargate(fargate) => Some(fargate),
            Self::Target(_) | Self::Found(_) | Self::Ssh(_) | Self::Direct => None,
        }
    }

    /// Whether it is looked for, or made, in the network of a cluster.
    #[must_use]
    pub fn needs_vpc(&self) -> bool {
        matches!(self, Self::Fargate(_) | Self::Found(Search::Auto { .. }))
    }

    /// Whether it leads through sessions of Systems Manager.
    #[must_use]
    pub fn is_by_session(&self) -> bool {
        matches!(self, Self::Target(_) | Self::Found(_) | Self::Fargate(_))
    }

    /// Whether it leads through sessions with an instance or a managed node.
    #[must_use]
    pub fn is_node(&self) -> bool {
        match self {
            Self::Target(target) => !matches!(target, Target::EcsTask(_)),
            Self::Found(search) => !matches!(search, Search::Ecs(_)),
            Self::Fargate(_) | Self::Ssh(_) | Self::Direct => false,
        }
    }

    /// Returns what a text that is no bastion may have been meant for, if only its kind is mistyped.
    #[must_use]
    pub fn nearest(text: &str) -> Option<String> {
        let (kind, rest) = text.split_once(':').map_or((text, None), |(kind, rest)| (kind, Some(rest)));
        let kind = kind.to_lowercase();
        let likeness = |known: &&str| strsim::jaro_winkler(&kind, known);
        let nearest = KINDS.into_iter().filter(|known| likeness(known) >= NEAR);
        let nearest = nearest.max_by(|one, other| likeness(one).total_cmp(&likeness(other)))?;
        let meant = rest.map_or_else(|| nearest.to_owned(), |rest| format!("{nearest}:{rest}"));
        meant.parse::<Self>().ok().map(|bastion| bastion.to_string())
    }
}

impl fmt::Display for Bastion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Target(target) => target.fmt(f),
            Self::Found(search) => search.fmt(f),
            Self::Fargate(fargate) => fargate.fmt(f),
            Self::Ssh(server) => server.fmt(f),
            Self::Direct => f.write_str(DIRECT),
        }
    }
}

/// A bastion of none of the known forms.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not {expected}", expected = Bastion::EXPECTED)]
pub struct BastionError(String);

impl FromStr for Bastion {
    type Err = BastionError;

    fn from_str(text: &str) -> Result<Self, BastionError> {
        if text == DIRECT {
            return Ok(Self::Direct);
        }
        let found = || Search::parse(text).map(Self::Found);
        let made = || Fargate::parse(text).map(Self::Fargate);
        let ssh = || SshBastion::parse(text).map(Box::new).map(Self::Ssh);
        let read = text.parse().ok().map(Self::Target).or_else(found).or_else(made).or_else(ssh);
        read.ok_or_else(|| BastionError(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_it_writes() {
        for text in [
            "i-0dc03fbcae2a87472",
            "mi-0dc03fbcae2a87472",
            "ecs:tools_a_b",
            "direct",
            "ecs:tools/bastion",
            "ecs:my_tools/bastion/agent",
            "ecs:tools/0f9de17a6465404e8b1b2356dc13c2f8",
            "arn:aws:ecs:us-east-1:123456789012:service/tools/bastion",
            "arn:aws-cn:ecs:cn-north-1:123456789012:task/tools/0f9de17a6465404e8b1b2356dc13c2f8",
            "tag:role=bastion host",
            "tag:k8s.io/role/bastion=1",
            "tag:empty=",
            "name:bastion",
            "asg:bastions-AB12",
            "auto",
            "auto:nodes",
            "fargate",
            "fargate:tools",
            "ssh://ubuntu@i-0dc03fbcae2a87472",
        ] {
            assert_eq!(text.parse::<Bastion>().unwrap().to_string(), text);
        }
        for text in [
            "",
            "Direct",
            "direct ",
            "dirct",
            "straight",
            "i-",
            "ecs:tools/",
            "ecs:/bastion",
            "ecs:tools/a/b/c",
            "ecs:to ols/a",
            "arn:aws:ecs:us-east-1:123456789012:service/bastion",
            "arn:aws:ec2:us-east-1:123456789012:instance/i-0dc03fbcae2a87472",
            "arn:aws:ecs:us-east-1:12:task/tools/0f9de17a6465404e8b1b2356dc13c2f8",
            "tag:role",
            "tag:=x",
            "tag:a=b,c",
            "name:",
            "asg:",
            "auto:",
            "auto:all",
            "fargate:",
            "fargate:a/b",
            "ssh://",
            "ssh:i-0dc03fbcae2a87472",
        ] {
            let error = text.parse::<Bastion>().unwrap_err().to_string();
            assert!(error.starts_with(&format!("`{text}` is not a bastion: expected an instance")), "{error}");
        }
    }

    #[test]
    fn a_kind_that_is_mistyped_is_known() {
        for (text, meant) in [
            ("dirct", "direct"),
            ("Direct", "direct"),
            ("atuo", "auto"),
            ("farget", "fargate"),
            ("fargte:tools", "fargate:tools"),
            ("ec:tools/bastion", "ecs:tools/bastion"),
            ("ECS:tools/bastion", "ecs:tools/bastion"),
            ("tags:role=bastion", "tag:role=bastion"),
            ("nmae:jump", "name:jump"),
        ] {
            assert_eq!(Bastion::nearest(text).as_deref(), Some(meant), "{text}");
        }
        for text in ["", "bastion", "i-", "ecs:tools/", "ec:tools/", "tag", "ssh://host", "straight"] {
            assert_eq!(Bastion::nearest(text), None, "{text}");
        }
    }
}
