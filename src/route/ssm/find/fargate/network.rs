//! What a task has to be in to reach a cluster, and which clusters share a task.

use super::task::tag_value;
use crate::{aws::ecs::Task, bastion::FargateOptions, cluster::Vpc};

/// Most security groups and subnets of a task (ECS API reference, `AwsVpcConfiguration`).
const MAX_SECURITY_GROUPS: usize = 5;
const MAX_SUBNETS: usize = 16;

/// The tag on a task that tells which VPC it is in.
const VPC_TAG: &str = "autoheal-pa:vpc";
/// The tag on a task that tells its security groups, since each EKS cluster has one of its own that admits nobody but its members.
const GROUPS_TAG: &str = "autoheal-pa:groups";

/// A VPC, and what of it a task is in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Network {
    pub(super) vpc: String,
    /// In order, each once.
    pub(super) security_groups: Vec<String>,
    pub(super) subnets: Vec<String>,
}

impl Network {
    /// Of the user's groups and subnets, else those of a cluster.
    pub(super) fn of(options: &FargateOptions, vpc: &Vpc) -> Self {
        let own = |given: &[String], of_cluster: &[String]| {
            if given.is_empty() { of_cluster.to_vec() } else { given.to_vec() }
        };
        let mut security_groups = own(&options.security_groups, &vpc.security_groups);
        security_groups.sort();
        security_groups.dedup();
        Self { vpc: vpc.id.clone(), security_groups, subnets: own(&options.subnets, &vpc.subnets) }
    }

    /// Whether a task in this reaches what one in the other reaches. From where in the VPC makes no difference.
    pub(super) fn covers(&self, other: &Self) -> bool {
        self.vpc == other.vpc && other.security_groups.iter().all(|group| self.security_groups.contains(group))
    }

    /// Grows to cover others, in their order, as far as one task can be in all their groups.
    pub(super) fn grow(&mut self, others: &[Self]) {
        for other in others.iter().filter(|other| other.vpc == self.vpc) {
            let new: Vec<_> = missing(&self.security_groups, &other.security_groups);
            if self.security_groups.len() + new.len() > MAX_SECURITY_GROUPS {
                continue;
            }
            self.security_groups.extend(new);
            self.security_groups.sort();
            self.subnets.extend(missing(&self.subnets, &other.subnets));
            self.subnets.truncate(MAX_SUBNETS);
        }
    }

    /// Returns the tags on a task in it.
    pub(super) fn tags(&self) -> [(&'static str, String); 2] {
        [(VPC_TAG, self.vpc.clone()), (GROUPS_TAG, self.groups())]
    }

    /// Whether a task of ours was made for just this.
    pub(super) fn is_of(&self, task: &Task) -> bool {
        self.tags().iter().all(|(key, value)| task.tags.get(*key).is_some_and(|known| **known == *tag_value(value)))
    }

    /// Whether a task of ours covers it.
    pub(super) fn is_served_by(&self, task: &Task) -> bool {
        let groups = task.tags.get(GROUPS_TAG);
        let has = |wanted: &String| groups.is_some_and(|groups| groups.split(' ').any(|group| group == wanted));
        is_in(task, &self.vpc) && self.security_groups.iter().all(has)
    }

    /// Returns what it is known by.
    pub(super) fn key(&self) -> String {
        format!("{} {}", self.vpc, self.groups())
    }

    fn groups(&self) -> String {
        self.security_groups.join(" ")
    }
}

/// Whether a task of ours is in a VPC.
pub(super) fn is_in(task: &Task, vpc: &str) -> bool {
    task.tags.get(VPC_TAG).is_some_and(|known| **known == *vpc)
}

fn missing(known: &[String], wanted: &[String]) -> Vec<String> {
    wanted.iter().filter(|wanted| !known.contains(wanted)).cloned().collect()
}

#[cfg(test)]
mod tests;
