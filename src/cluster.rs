//! Plain data that the layers share: what a cluster is and where it is.
//!
//! Leaves out everything that AWS says of a cluster beyond what a tunnel and a kubeconfig need.

use std::fmt;

/// A cluster that a tunnel can lead to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cluster {
    /// The name that EKS has for it, unique per account and region; any of `[0-9A-Za-z][A-Za-z0-9_-]*`, `no` included. That of
    /// the context, which may be anything, where it was imported.
    pub name: String,
    /// The region of its bastions, and its own, such as `us-east-1`.
    pub region: String,
    /// The account of its bastions, and its own: twelve digits.
    pub account: String,
    /// What it is told from all others by: the ARN of one of EKS.
    pub id: String,
    /// Where its API server answers.
    pub endpoint: Destination,
    /// The certificate authority of the API server: PEM in base64, exactly as EKS or a kubeconfig gives it. `None`: those that
    /// the system trusts.
    pub certificate_authority: Option<String>,
    /// The network that its endpoint is in, where EKS says it.
    pub vpc: Option<Vpc>,
    pub origin: Origin,
}

/// Where a cluster is known from, and so who asks for access to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// EKS, which takes tokens that are made of AWS credentials.
    Eks {
        /// What the token names: the cluster's name, or its id for a local cluster on Outposts.
        token_name: String,
    },
    /// A context of a kubeconfig of the user's, who has an own way to log in.
    Imported(Imported),
}

/// What a context of the user's says of a cluster and its user, besides where it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Imported {
    /// The name of the user in that kubeconfig. What is in there stays there.
    pub user: String,
    pub namespace: Option<String>,
    /// The name or address that the certificate is for.
    pub server_name: String,
    /// The path of the URL, without a slash at the end; empty for most.
    pub path: String,
    /// The absolute path of the file that the certificate authority was read from.
    pub authority_file: Option<String>,
    /// The user logs in by a client certificate.
    pub client_certificate: bool,
    /// Clients are not to ask for compressed answers.
    pub disable_compression: bool,
}

impl Cluster {
    /// Returns what was imported with it, if it is not one of EKS.
    #[must_use]
    pub fn imported(&self) -> Option<&Imported> {
        match &self.origin {
            Origin::Eks { .. } => None,
            Origin::Imported(imported) => Some(imported),
        }
    }

    /// Returns what a token for it names, if that is made of AWS credentials.
    #[must_use]
    pub fn token_name(&self) -> Option<&str> {
        match &self.origin {
            Origin::Eks { token_name } => Some(token_name),
            Origin::Imported(_) => None,
        }
    }

    /// Returns the name or address that the API server's certificate has to be for.
    #[must_use]
    pub fn server_name(&self) -> &str {
        match &self.origin {
            Origin::Eks { .. } => &self.endpoint.host,
            Origin::Imported(imported) => &imported.server_name,
        }
    }

    /// Returns who says what is known of it, as the subject of a sentence.
    #[must_use]
    pub fn told_by(&self) -> &'static str {
        match self.origin {
            Origin::Eks { .. } => "EKS",
            Origin::Imported(_) => "a kubeconfig",
        }
    }

    /// Tells whether a tunnel to this one is one to another as well: contexts may say something else of the two.
    #[must_use]
    pub fn is_reached_as(&self, other: &Self) -> bool {
        let way = |cluster: &Self| {
            let mut cluster = cluster.clone();
            if let Origin::Imported(imported) = &mut cluster.origin {
                let Imported { server_name, client_certificate, .. } = imported.clone();
                *imported = Imported { server_name, client_certificate, ..Imported::default() };
            }
            cluster
        };
        way(self) == way(other)
    }
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
    fn a_tunnel_serves_what_contexts_say_besides_as_well() {
        let imported = Imported { user: "a".into(), server_name: "api".into(), ..Imported::default() };
        let cluster = |imported: Imported| Cluster {
            name: "kops".into(),
            region: "us-east-1".into(),
            account: "123456789012".into(),
            id: "kops".into(),
            endpoint: Destination { host: "api".into(), port: 443 },
            certificate_authority: None,
            vpc: None,
            origin: Origin::Imported(imported),
        };
        let (old, user) = (cluster(imported.clone()), Imported { user: "b".into(), ..imported.clone() });
        assert!(old.is_reached_as(&cluster(user)));
        assert!(!old.is_reached_as(&cluster(Imported { server_name: "other".into(), ..imported })));
        let other = Cluster { certificate_authority: Some("TFMwdA==".into()), ..old.clone() };
        assert!(!old.is_reached_as(&other));
    }

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
