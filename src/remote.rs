//! What a tunnel leads to: a cluster's API server, or any other host.
//!
//! Routes and tunnels know a [`Remote`]; what only clusters have, such as contexts and certificates, is for those who ask
//! for the [`Cluster`].

use crate::cluster::{Cluster, Destination, Vpc};

/// What a tunnel leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Remote {
    Cluster(Cluster),
    Host(Host),
}

/// A host that is not asked what it speaks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// What its tunnel is called.
    pub name: String,
    /// The region of its bastions, such as `us-east-1`.
    pub region: String,
    /// The account of its bastions: twelve digits.
    pub account: String,
    /// Where it answers, as the bastion sees it.
    pub endpoint: Destination,
    /// The network that it is taken to be in: that of the clusters beside it, if they are all in one.
    pub vpc: Option<Vpc>,
}

impl From<Cluster> for Remote {
    fn from(cluster: Cluster) -> Self {
        Self::Cluster(cluster)
    }
}

impl From<Host> for Remote {
    fn from(host: Host) -> Self {
        Self::Host(host)
    }
}

impl Remote {
    /// Returns the cluster, if it is one.
    #[must_use]
    pub fn cluster(&self) -> Option<&Cluster> {
        match self {
            Self::Cluster(cluster) => Some(cluster),
            Self::Host(_) => None,
        }
    }

    /// Returns what people call it.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Self::Cluster(cluster) => &cluster.name,
            Self::Host(host) => &host.name,
        }
    }

    #[must_use]
    pub fn region(&self) -> &str {
        match self {
            Self::Cluster(cluster) => &cluster.region,
            Self::Host(host) => &host.region,
        }
    }

    #[must_use]
    pub fn account(&self) -> &str {
        match self {
            Self::Cluster(cluster) => &cluster.account,
            Self::Host(host) => &host.account,
        }
    }

    /// Returns what it is told from all others by. No cluster's has a space in it.
    #[must_use]
    pub fn id(&self) -> String {
        match self {
            Self::Cluster(cluster) => cluster.id.clone(),
            Self::Host(host) => format!("host {} in {} of {}", host.name, host.region, host.account),
        }
    }

    #[must_use]
    pub fn endpoint(&self) -> &Destination {
        match self {
            Self::Cluster(cluster) => &cluster.endpoint,
            Self::Host(host) => &host.endpoint,
        }
    }

    #[must_use]
    pub fn vpc(&self) -> Option<&Vpc> {
        match self {
            Self::Cluster(cluster) => cluster.vpc.as_ref(),
            Self::Host(host) => host.vpc.as_ref(),
        }
    }

    /// Tells whether a tunnel to this one is one to another as well.
    #[must_use]
    pub fn is_reached_as(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Cluster(one), Self::Cluster(other)) => one.is_reached_as(other),
            (Self::Host(one), Self::Host(other)) => one == other,
            (Self::Cluster(_), Self::Host(_)) | (Self::Host(_), Self::Cluster(_)) => false,
        }
    }
}
