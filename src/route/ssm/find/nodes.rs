//! Managed nodes: by a tag, by an Auto Scaling group, or in the VPC of the cluster.
//!
//! Systems Manager alone tells which nodes have a tag, whether their agents are in contact, and their versions. It does not
//! tell networks, so that `auto` asks EC2 first.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    sync::Arc,
};

use futures_util::future::BoxFuture;

use super::{Candidate, Look, Sight};
use crate::{
    aws::{
        Aws, advice,
        ec2::{Filter, Instance},
        nodes::{ManagedNode, NodeFilter},
    },
    bastion::{Search, Target},
    fault::{Class, Fault},
    remote::Remote,
    route::{
        ssm::proto::Version,
        step::{StepName, Told},
    },
    util::{peer_text::sentence, quote::command},
};

/// The tag that EC2 puts on the instances of an Auto Scaling group (Amazon EC2 Auto Scaling user guide, "Tag Auto Scaling
/// groups and instances").
pub(in crate::route::ssm) const GROUP_TAG: &str = "aws:autoscaling:groupName";

/// The tag that makes an instance a bastion for `auto`.
pub const BASTION_TAG: &str = "autoheal-pa:bastion";

/// Parts of names that bastions have, and the same as patterns of a policy, which tell small letters from capital ones.
const BASTION_NAMES: [&str; 2] = ["bastion", "jump"];
pub(in crate::route::ssm) const BASTION_NAME_PATTERNS: [&str; 4] = ["*bastion*", "*Bastion*", "*jump*", "*Jump*"];

/// Tags that EKS, eksctl and others put on worker nodes.
pub(in crate::route::ssm) const NODE_TAG: &str = "eks:nodegroup-name";
const NODE_TAG_START: &str = "kubernetes.io/cluster/";

/// Most nodes whose state is told in an error.
const MAX_TOLD: usize = 5;

/// Looks for managed nodes.
#[derive(Debug)]
pub(in crate::route::ssm) struct NodesLook {
    aws: Aws,
    search: Search,
}

/// Why no node takes sessions.
#[derive(Debug, thiserror::Error)]
pub(in crate::route::ssm) enum NoNode {
    #[error("no managed node in {region} of this account has {what}")]
    None { what: String, region: String },
    #[error("none of the {found} nodes with {what} is in contact with Systems Manager: {states}")]
    Offline { what: String, found: usize, states: String },
    #[error(
        "the agents of all {found} nodes with {what} are older than {least}, the first that forwards to other hosts"
    )]
    Old { what: String, found: usize, least: Version },
    #[error("no instance in `{vpc}`, the network of `{cluster}`, is a bastion for `auto`, of {running} that run there")]
    NoBastion { vpc: String, cluster: String, running: usize },
    #[error("{told_by} does not say in which network `{name}` is, so `auto` cannot look for a bastion there")]
    NoVpc { name: String, told_by: &'static str },
    #[error(
        "`auto` looks for a bastion in the network of a cluster, and `{name}` has no clusters beside it that are all in one"
    )]
    NoVpcOfHost { name: String },
}

impl NodesLook {
    pub(in crate::route::ssm) fn new(aws: Aws, search: Search) -> Self {
        Self { aws, search }
    }

    async fn find(&self, to: &Remote, in_use: &[Target]) -> Result<Sight, Fault> {
        let (what, nodes) = match &self.search {
            Search::Auto { nodes } => return self.in_vpc(to, *nodes, in_use).await,
            Search::Tag { key, value } => (format!("the tag `{key}={value}`"), self.tagged(key, value).await?),
            Search::Name(name) => (format!("the name `{name}`"), self.tagged("Name", name).await?),
            Search::Group(group) => {
                let mut nodes = self.tagged(GROUP_TAG, group).await?;
                // It is not known whether Systems Manager has tags of AWS's own.
                if nodes.is_empty() {
                    nodes = self.of_group(group).await?;
                }
                (format!("the Auto Scaling group `{group}`"), nodes)
            }
            // Not of this kind: see `Targets::found`.
            Search::Ecs(_) => (String::new(), Vec::new()),
        };
        Ok(self.sight(&what, &nodes, in_use, |_| 0))
    }

    async fn tagged(&self, key: &str, value: &str) -> Result<Vec<ManagedNode>, Fault> {
        let filter = NodeFilter::Tag { key: key.to_owned(), value: value.to_owned() };
        self.aws.managed_nodes(&filter).await.map_err(advice::fault)
    }

    async fn of_group(&self, group: &str) -> Result<Vec<ManagedNode>, Fault> {
        let filters =
            [Filter::new(format!("tag:{GROUP_TAG}"), [group]), Filter::new("instance-state-name", ["running"])];
        let instances = match self.aws.describe_instances(&filters).await {
            Ok(instances) => instances,
            Err(error) => {
                // Whoever has made the policy for `asg:` may not have thought of EC2.
                tracing::debug!(error = %sentence(&error), "EC2 does not tell who is in the group");
                return Ok(Vec::new());
            }
        };
        self.with_ids(instances.into_iter().map(|instance| instance.id).collect()).await
    }

    async fn with_ids(&self, ids: Vec<String>) -> Result<Vec<ManagedNode>, Fault> {
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        self.aws.managed_nodes(&NodeFilter::Ids(ids)).await.map_err(advice::fault)
    }

    /// Looks for bastions in the network of a cluster.
    async fn in_vpc(&self, to: &Remote, workers: bool, in_use: &[Target]) -> Result<Sight, Fault> {
        let Some(vpc) = to.vpc() else {
            let hint = "name a `--bastion` by its id, its tag or its group".to_owned();
            let name = to.name().to_owned();
            let error = match to.cluster() {
                Some(cluster) => NoNode::NoVpc { name, told_by: cluster.told_by() },
                None => NoNode::NoVpcOfHost { name },
            };
            return Err(Fault::new(Class::Gone, error).with_hints([hint]));
        };
        let filters = [Filter::new("vpc-id", [vpc.id.as_str()]), Filter::new("instance-state-name", ["running"])];
        let instances = self.aws.describe_instances(&filters).await.map_err(advice::fault)?;
        let running = instances.len();
        let ranked: Vec<(Instance, u8)> = instances
            .into_iter()
            .filter_map(|instance| rank(&instance, workers).map(|rank| (instance, rank)))
            .collect();
        if ranked.is_empty() {
            let error = NoNode::NoBastion { vpc: vpc.id.clone(), cluster: to.name().to_owned(), running };
            let mut hints = vec![command!(
                "give a bastion the tag: `aws ec2 create-tags --resources INSTANCE --tags Key={},Value=true --region {}`, or have \
                     `bastion` or `jump` in its name",
                BASTION_TAG,
                self.aws.region()
            )];
            if !workers {
                hints.push("`--bastion auto:nodes` also uses worker nodes".to_owned());
            }
            let nothing = Arc::new(Fault::new(Class::Away, error).with_hints(hints));
            return Ok(Sight { nothing: Some(nothing), leaving: in_use.to_vec(), ..Sight::default() });
        }
        let nodes = self.with_ids(ranked.iter().map(|(instance, _)| instance.id.clone()).collect()).await?;
        let what = format!("a bastion's tag or name in `{}`", vpc.id);
        let rank_of =
            |id: &str| ranked.iter().find(|(instance, _)| instance.id == id).map_or(u8::MAX, |(_, rank)| *rank);
        Ok(self.sight(&what, &nodes, in_use, rank_of))
    }

    /// Makes an answer of what was found.
    fn sight(&self, what: &str, nodes: &[ManagedNode], in_use: &[Target], rank_of: impl Fn(&str) -> u8) -> Sight {
        let online: Vec<&ManagedNode> = nodes.iter().filter(|node| node.is_online()).collect();
        let is_new_enough = |node: &&ManagedNode| {
            let version = node.agent_version.as_ref().and_then(|version| Version::parse(version));
            version.is_none_or(|version| version >= Version::FIRST_AGENT_WITH_REMOTE_HOST)
        };
        let told = told(what, nodes, &online, is_new_enough);
        let mut usable: Vec<&ManagedNode> = online.iter().copied().filter(|node| is_new_enough(node)).collect();
        // Many users spread over several, and each stays with the one that it has.
        usable.sort_by_cached_key(|node| (rank_of(&node.id), is_windows(node), spread(&node.id)));
        let why = match (usable.as_slice(), &self.search) {
            ([best, ..], Search::Auto { .. }) => why_for_auto(rank_of(&best.id), usable.len()),
            ([best, next, ..], _) if is_windows(best) != is_windows(next) => "as it does not run Windows".to_owned(),
            ([_, _, ..], _) => format!("which is this machine's of {}: users spread over them", usable.len()),
            _ => String::new(),
        };
        let candidate =
            |node: &ManagedNode| Some(Candidate { target: node.id.parse().ok()?, fresh: false, capped: false });
        let usable: Vec<Candidate> = usable.into_iter().filter_map(candidate).collect();
        let nothing = usable.is_empty().then(|| Arc::new(self.none(what, nodes, &online)));
        // One that is in use and not in the list any more has lost its tag, or has been terminated.
        let is_listed = |target: &&Target| nodes.iter().any(|node| node.id == target.as_str());
        let leaving = in_use.iter().filter(|target| !is_listed(target)).cloned().collect();
        Sight { usable, nothing, found: nodes.len(), told, why, leaving, ..Sight::default() }
    }

    /// Says why no node takes sessions.
    fn none(&self, what: &str, nodes: &[ManagedNode], online: &[&ManagedNode]) -> Fault {
        let (what, found, region) = (what.to_owned(), nodes.len(), self.aws.region());
        if found == 0 {
            let (key, value) = match &self.search {
                Search::Tag { key, value } => (key.as_str(), value.as_str()),
                Search::Name(name) => ("Name", name.as_str()),
                Search::Group(group) => (GROUP_TAG, group.as_str()),
                Search::Auto { .. } | Search::Ecs(_) => (BASTION_TAG, "true"),
            };
            let hint = command!(
                "`aws ec2 describe-instances --filters {} --region {}` shows the instances; each needs an agent that is registered with Systems Manager in this region",
                format!("Name=tag:{key},Values={value}"),
                region
            );
            // A group has none for a while when it replaces its only one.
            let class = if matches!(self.search, Search::Group(_)) { Class::Away } else { Class::Gone };
            return Fault::new(class, NoNode::None { what, region: region.to_owned() }).with_hints([hint]);
        }
        if online.is_empty() {
            let told = nodes.iter().take(MAX_TOLD).map(|node| format!("`{}` is {}", node.id, node.ping_status));
            let more = if found > MAX_TOLD { format!(", and {} others", found - MAX_TOLD) } else { String::new() };
            let states = format!("{}{more}", told.collect::<Vec<_>>().join(", "));
            let hint = command!("they have to run, and to reach `ssm` and `ssmmessages` of {} on port 443", region);
            return Fault::new(Class::Away, NoNode::Offline { what, found, states }).with_hints([hint]);
        }
        let least = Version::FIRST_AGENT_WITH_REMOTE_HOST;
        let hint = command!(
            "update them: `aws ssm send-command --document-name AWS-UpdateSSMAgent --targets Key=InstanceIds,Values={} --region {}`",
            online.iter().map(|node| node.id.as_str()).collect::<Vec<_>>().join(","),
            region
        );
        Fault::new(Class::Away, NoNode::Old { what, found: online.len(), least }).with_hints([hint])
    }
}

/// Tells how far it goes with the nodes that were found.
fn told(
    what: &str,
    nodes: &[ManagedNode],
    online: &[&ManagedNode],
    is_new_enough: impl Fn(&&ManagedNode) -> bool,
) -> Vec<Told> {
    let of = |some: usize, all: usize| if some == all { "all".to_owned() } else { format!("{some} of {all}") };
    let new = online.iter().copied().filter(|node| is_new_enough(node)).count();
    let least = Version::FIRST_AGENT_WITH_REMOTE_HOST;
    let told = [
        (nodes.len(), format!("{} with {what}", nodes.len())),
        (online.len(), format!("{} in contact with Systems Manager", of(online.len(), nodes.len()))),
        (new, format!("{} not older than {least}", of(new, online.len()))),
    ];
    told.into_iter().take_while(|(count, _)| *count > 0).map(|(_, text)| Told::Passed(text)).collect()
}

fn why_for_auto(rank: u8, usable: usize) -> String {
    let why = match rank {
        0 => format!("for its tag `{BASTION_TAG}`"),
        1 => "for its name".to_owned(),
        _ => "a worker node".to_owned(),
    };
    if usable == 1 { why } else { format!("{why}, of {usable}") }
}

fn is_windows(node: &ManagedNode) -> bool {
    node.platform.as_ref().is_some_and(|platform| *platform == "Windows")
}

/// How good an instance is as a bastion for `auto`, 0 being the best; `None`: it is none.
fn rank(instance: &Instance, workers: bool) -> Option<u8> {
    let has = |key: &str| instance.tags.contains_key(key);
    let is_worker = has(NODE_TAG) || instance.tags.keys().any(|key| key.starts_with(NODE_TAG_START));
    let name = instance.name.as_ref().map(|name| name.to_lowercase()).unwrap_or_default();
    let is_switched_off = instance.tags.get(BASTION_TAG).is_some_and(|value| *value == "false");
    if is_switched_off {
        None
    } else if has(BASTION_TAG) {
        Some(0)
    } else if is_worker {
        workers.then_some(2)
    } else {
        BASTION_NAMES.iter().any(|part| name.contains(part)).then_some(1)
    }
}

/// A number that is the same each time for a node on one machine, and another on others.
fn spread(id: &str) -> u64 {
    spread_of(rustix::system::uname().nodename().to_bytes(), id)
}

fn spread_of(host: &[u8], id: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    (host, id).hash(&mut hasher);
    hasher.finish()
}

impl Look for NodesLook {
    fn look<'a>(&'a self, to: &'a Remote, in_use: &'a [Target]) -> BoxFuture<'a, Result<Sight, Fault>> {
        Box::pin(self.find(to, in_use))
    }

    fn plan(&self) -> Vec<(StepName, String)> {
        let by = match &self.search {
            Search::Tag { key, value } => format!("of those with the tag `{key}={value}`"),
            Search::Name(name) => format!("of those with the name `{name}`"),
            Search::Group(group) => {
                format!("of those in the Auto Scaling group `{group}`, and if there are none `ec2:DescribeInstances`")
            }
            Search::Auto { .. } => "of bastions among `ec2:DescribeInstances` in the cluster's network".to_owned(),
            Search::Ecs(_) => String::new(),
        };
        let least = Version::FIRST_AGENT_WITH_REMOTE_HOST;
        vec![
            (StepName::KNOWN, format!("`ssm:DescribeInstanceInformation` {by}")),
            (StepName::ONLINE, "their ping status".to_owned()),
            (StepName::AGENT_VERSION, format!("the versions of their agents; remote hosts need {least}")),
        ]
    }

    fn place(&self, to: &Remote) -> String {
        match &self.search {
            Search::Auto { .. } => to.vpc().map(|vpc| vpc.id.clone()).unwrap_or_default(),
            Search::Ecs(_) | Search::Tag { .. } | Search::Name(_) | Search::Group(_) => String::new(),
        }
    }

    fn watch(&self) -> std::time::Duration {
        super::GOOD_FOR
    }
}

#[cfg(test)]
mod tests;
