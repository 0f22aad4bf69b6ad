//! What makes Kubernetes know an identity: an EKS access entry with a policy to view, as commands of the AWS CLI.

use super::{Clusters, Grant, Principal};
use crate::util::quote::{Word, command};

/// The access policy that is enough to look at everything but secrets and nodes.
pub const ACCESS_POLICY: &str = "AmazonEKSViewPolicy";

/// Returns the ARN of the access policy.
#[must_use]
pub fn access_policy_arn(partition: &str) -> String {
    format!("arn:{partition}:eks::aws:cluster-access-policy/{ACCESS_POLICY}")
}

/// Returns the commands that admit an identity to the clusters of a grant; to all of its region if none are named.
#[must_use]
pub fn access_entry_commands(grant: &Grant, principal: &Principal) -> String {
    let all = || {
        let list = command!("aws eks list-clusters --region {} --query 'clusters[]' --output text", grant.region);
        let body = commands(grant, principal, &Word::raw("\"$cluster\""));
        let body: String = body.lines().map(|line| format!("  {line}\n")).collect();
        format!("for cluster in $({list}); do\n{body}done\n")
    };
    match &grant.clusters {
        Clusters::All => all(),
        Clusters::Named(names) => names.iter().map(|name| commands(grant, principal, &name.into())).collect(),
        Clusters::None => String::new(),
    }
}

fn commands(grant: &Grant, principal: &Principal, cluster: &Word) -> String {
    let (region, arn) = (&grant.region, principal.arn());
    let policy = access_policy_arn(grant.partition());
    command!(
        "aws eks create-access-entry --region {} --cluster-name {} \\\n  --principal-arn {}\n\
         aws eks associate-access-policy --region {} --cluster-name {} \\\n  --principal-arn {} \\\n  \
         --policy-arn {} --access-scope type=cluster\n",
        region,
        cluster,
        arn,
        region,
        cluster,
        arn,
        policy
    )
}
