//! What came of a probe: whether a link leads to the API server that it should lead to.

use std::{io, time::Duration};

use tokio::{
    io::{AsyncWriteExt, DuplexStream},
    sync::oneshot,
};

use super::{BoxError, Class, Fault, PipeEnd, Route};
use crate::{cluster::Origin, remote::Remote, util::quote::command};

/// What to do about a bastion that did not lead to the API server.
pub(super) fn behind_bastion(to: &Remote, error: &ProbeError) -> Vec<String> {
    let (name, region, endpoint) = (to.name(), to.region(), to.endpoint());
    let origin = to.cluster().map(|cluster| &cluster.origin);
    match error {
        ProbeError::Refused | ProbeError::NoAnswer { .. } | ProbeError::Ended => vec![
            format!("the bastion must resolve `{}` and reach it on port {}", endpoint.host, endpoint.port),
            match origin {
                Some(Origin::Eks { .. }) => command!(
                    "the cluster's security group must admit the bastion: `aws eks describe-cluster --name {} --region {} \
                     --query cluster.resourcesVpcConfig.clusterSecurityGroupId`",
                    name,
                    region
                ),
                Some(Origin::Imported(_)) => {
                    "whatever guards the API server, such as its load balancer's security group, must admit the bastion"
                        .to_owned()
                }
                None => format!("whatever guards `{endpoint}`, such as its security group, must admit the bastion"),
            },
        ],
        ProbeError::Certificate { host, .. } => vec![format!(
            "what answers on the bastion's side is not the API server of `{name}`: check what `{host}` resolves to there"
        )],
        ProbeError::Authority { .. } => vec![match origin {
            Some(Origin::Eks { .. }) => command!(
                "check what EKS says: `aws eks describe-cluster --name {} --region {} --query cluster.certificateAuthority`",
                name,
                region
            ),
            Some(Origin::Imported(_)) | None => {
                format!(
                    "check the certificate authority that the kubeconfig gives for the cluster of the context `{name}`"
                )
            }
        }],
        ProbeError::Tls { .. } | ProbeError::NotHttp | ProbeError::LinkLost => Vec::new(),
    }
}

/// Why a probe did not prove the path.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// The cluster's certificate authority or endpoint name cannot be read. No probe can succeed.
    #[error("the cluster's certificate authority cannot be used")]
    Authority {
        #[source]
        source: BoxError,
    },
    /// Nothing could connect to the API server from the other end of the link.
    #[error("no connection to the API server could be made")]
    Refused,
    /// Nothing came back within the time that a probe may take.
    #[error("the API server did not answer within {seconds} s")]
    NoAnswer {
        /// The limit, in seconds.
        seconds: u64,
    },
    /// The connection was closed in the middle of the probe.
    #[error("the API server closed the connection without an answer")]
    Ended,
    /// What answers is not the cluster's API server: its certificate does not verify.
    #[error("the certificate of `{host}` does not verify against the cluster's authority")]
    Certificate {
        /// The name that was expected.
        host: String,
        #[source]
        source: rustls::Error,
    },
    /// What answers does not speak TLS, or not as a server does.
    #[error("the TLS handshake with the API server failed")]
    Tls {
        /// What went wrong.
        #[source]
        source: io::Error,
    },
    /// The answer to the request is not HTTP.
    #[error("the API server's answer is not HTTP")]
    NotHttp,
    /// The link was lost in the meantime: the probe says nothing.
    #[error("the link was lost during the probe")]
    LinkLost,
}

impl ProbeError {
    /// Returns what it means for the link, once the probe has failed for long enough.
    #[must_use]
    pub fn class(&self) -> Class {
        match self {
            Self::Authority { .. } | Self::Certificate { .. } => Class::Unfit,
            Self::Refused | Self::Ended | Self::Tls { .. } | Self::NotHttp => Class::Useless,
            Self::NoAnswer { .. } | Self::LinkLost => Class::Over,
        }
    }

    /// Says why a host that is no API server was not reached.
    fn why(&self) -> String {
        match self {
            Self::Refused => "it could not be connected to".to_owned(),
            Self::NoAnswer { seconds } => format!("no answer within {seconds} s"),
            Self::LinkLost => "the link was lost meanwhile".to_owned(),
            Self::Authority { .. } | Self::Ended | Self::Certificate { .. } | Self::Tls { .. } | Self::NotHttp => {
                self.to_string()
            }
        }
    }

    /// Makes a fault of it, with what the route that was taken says to do about it.
    #[must_use]
    pub fn into_fault(self, route: &dyn Route, to: &Remote) -> Fault {
        let hints = route.advise(to, &self);
        let class = self.class();
        match to {
            Remote::Cluster(_) => Fault::new(class, Unproved(self)),
            Remote::Host(host) => {
                Fault::new(class, NotAccepted { endpoint: host.endpoint.to_string(), why: self.why() })
            }
        }
        .with_hints(hints)
    }
}

/// A tunnel that has not been proved.
#[derive(Debug, thiserror::Error)]
#[error("the API server was not reached through the tunnel")]
pub struct Unproved(#[source] pub ProbeError);

/// A host that is no API server, and that has not accepted a connection.
#[derive(Debug, thiserror::Error)]
#[error("`{endpoint}` did not accept a connection through the tunnel: {why}")]
struct NotAccepted {
    endpoint: String,
    why: String,
}

/// What a successful probe found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer {
    /// Time from opening the connection to the end of the TLS handshake.
    pub round_trip: Duration,
    /// The HTTP status, if a request was sent.
    pub status: Option<u16>,
}

/// Finds out whether a destination accepts a connection, by one that is closed without a word. `near` is the end of a pipe
/// whose other end the link has, and `end` tells how that closed. What is at its end is never sent anything.
///
/// # Errors
/// [`ProbeError::Refused`], [`ProbeError::LinkLost`].
pub async fn knock(mut near: DuplexStream, mut end: oneshot::Receiver<PipeEnd>) -> Result<(), ProbeError> {
    // What becomes of the pipe says it all.
    let _outcome = near.shutdown().await;
    let _outcome = tokio::io::copy(&mut near, &mut tokio::io::sink()).await;
    match end.try_recv() {
        Ok(PipeEnd::Refused) => Err(ProbeError::Refused),
        Ok(PipeEnd::Lost) => Err(ProbeError::LinkLost),
        Err(_) => Ok(()),
    }
}

/// Tells apart why the pipe ended, which the probe itself sees as an end of file.
#[must_use]
pub fn after_end(error: ProbeError, mut end: oneshot::Receiver<PipeEnd>) -> ProbeError {
    if !matches!(error, ProbeError::Ended) {
        return error;
    }
    match end.try_recv() {
        Ok(PipeEnd::Refused) => ProbeError::Refused,
        Ok(PipeEnd::Lost) => ProbeError::LinkLost,
        Err(_) => ProbeError::Ended,
    }
}
