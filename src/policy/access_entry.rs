//! What makes Kubernetes know an identity: an EKS access entry with a policy to view, as commands of the AWS CLI.

use super::{Grant, Principal};

/// The access policy that is enough to look at everything but secrets and nodes.
pub const ACCESS_POLICY: &str = "AmazonEKSViewPolicy";

/// Returns the ARN of the access policy.
pub(super) fn access_policy_arn(partition: &str) -> String {
    format!("arn:{partition}:eks::aws:cluster-access-policy/{ACCESS_POLICY}")
}

/// Returns the commands that admit an identity to the clusters of a grant; without names of clusters, to all of its region.
#[must_use]
pub fn access_entry_commands(grant: &Grant, principal: &Principal) -> String {
    if grant.clusters.is_empty() {
        let list = format!("aws eks list-clusters --region {} --query 'clusters[]' --output text", grant.region);
        let body = commands(grant, principal, "\"$cluster\"");
        let body: String = body.lines().map(|line| format!("  {line}\n")).collect();
        return format!("for cluster in $({list}); do\n{body}done\n");
    }
    grant.clusters.iter().map(|name| commands(grant, principal, &word(name))).collect()
}

fn commands(grant: &Grant, principal: &Principal, cluster: &str) -> String {
    let (region, arn) = (&grant.region, word(principal.arn()));
    let policy = access_policy_arn(grant.partition());
    format!(
        "aws eks create-access-entry --region {region} --cluster-name {cluster} \\\n  --principal-arn {arn}\n\
         aws eks associate-access-policy --region {region} --cluster-name {cluster} \\\n  --principal-arn {arn} \\\n  \
         --policy-arn {policy} --access-scope type=cluster\n"
    )
}

/// Writes a text as one word of a shell: the path of a role may hold any character.
fn word(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_./:@+=,".contains(&byte);
    if text.bytes().all(plain) { text.to_owned() } else { format!("'{}'", text.replace('\'', r"'\''")) }
}
