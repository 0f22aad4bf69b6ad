//! Plain data that the layers share: what a cluster is and where it is.
//!
//! Leaves out everything that AWS says of a cluster beyond what a tunnel and a kubeconfig need.

use std::fmt;

/// An EKS cluster that a tunnel can lead to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cluster {
    /// The name, unique per account and region; any of `[0-9A-Za-z][A-Za-z0-9_-]*`, `no` included.
    pub name: String,
    /// The region, such as `us-east-1`.
    pub region: String,
    /// The account id: twelve digits, from the ARN.
    pub account: String,
    /// The cluster's ARN.
    pub arn: String,
    /// Where its API server answers.
    pub endpoint: Destination,
    /// The certificate authority of the API server: PEM in base64, exactly as EKS gives it.
    pub certificate_authority: String,
    /// What the bearer token names: the cluster's name, or its id for a local cluster on Outposts.
    pub token_name: String,
    /// The network that its endpoint is in, where EKS says it.
    pub vpc: Option<Vpc>,
}

/// The network of a cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vpc {
    /// Such as `vpc-0abc`.
    pub id: String,
    /// The subnets that the cluster was made in.
    pub subnets: Vec<String>,
    /// The cluster security group, which admits all that is in it; for clusters without one, the additional groups.
    pub security_groups: Vec<String>,
}

/// A host and a port, as seen from the target.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Destination {
    /// DNS name or IP address, without brackets.
    pub host: String,
    /// TCP port, 1 to 65535.
    pub port: u16,
}

impl Destination {
    /// Returns the URL of what answers there to HTTPS; its usual port is left out, as clients do.
    #[must_use]
    pub fn url(&self) -> String {
        let text = self.to_string();
        format!("https://{}", text.strip_suffix(":443").unwrap_or(&text))
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_urls_of_endpoints() {
        let url = |host: &str, port| Destination { host: host.to_owned(), port }.url();
        assert_eq!(url("x.gr7.us-east-1.eks.amazonaws.com", 443), "https://x.gr7.us-east-1.eks.amazonaws.com");
        assert_eq!(url("10.0.0.1", 6443), "https://10.0.0.1:6443");
        assert_eq!(
            (url("fd00::443", 443), url("::1", 8443)),
            ("https://[fd00::443]".into(), "https://[::1]:8443".into())
        );
    }
}
