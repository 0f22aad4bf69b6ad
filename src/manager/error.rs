//! Why a manager cannot do what it is for.

use std::path::PathBuf;

use super::{control::ControlError, env_file::EnvFileError};
use crate::{
    aws::{AwsError, SkipReason},
    cluster::Destination,
    kubeconfig::{KubeconfigError, import::ImportError},
    tunnel::{AuthorityError, BindError},
    util::peer_text::sentence,
};

/// Why a manager cannot open tunnels, or cannot go on as it was asked to.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ManagerError {
    /// Its directory cannot be had: another manager runs, say.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// AWS does not answer as it has to.
    #[error(transparent)]
    Aws(#[from] AwsError),
    /// There are no local ports.
    #[error(transparent)]
    Ports(#[from] BindError),
    /// A forward does not get the local port that it names.
    #[error("cannot open the local port of the forward `{forward}`")]
    ForwardPort {
        forward: String,
        #[source]
        source: BindError,
    },
    /// There is no port for the proxy.
    #[error("cannot open a port for the proxy")]
    ProxyPort(#[source] BindError),
    /// There is no port for the metrics.
    #[error("cannot open the port of the metrics")]
    MetricsPort(#[source] BindError),
    /// There can be no evidence of connections.
    #[error("cannot use the audit file `{}`", .path.display())]
    Audit {
        path: PathBuf,
        /// What the system says.
        #[source]
        source: std::io::Error,
    },
    /// There is no certificate for the local ports.
    #[error(transparent)]
    Authority(AuthorityError),
    /// Contexts are to stay whose authority does not.
    #[error(
        "contexts by which kubectl starts the manager cannot be of `--kubeconfig-mode local-tls`, whose certificate authority is a new one at each start"
    )]
    AuthorityStays,
    /// A session document leads to one host, and there are several.
    #[error("the session document `{document}` leads to one host, and there are {count} to reach")]
    OneDocument { document: String, count: usize },
    /// Two tunnels lead to one address, in two networks.
    #[error("`{}` and `{}` both lead to `{endpoint}`, which a proxy cannot tell apart", tunnels[0], tunnels[1])]
    Alike {
        /// Their names.
        tunnels: [String; 2],
        endpoint: Destination,
    },
    /// A forward is called as a cluster or its context.
    #[error("the forward to `{endpoint}` cannot be called `{name}`, as a cluster is")]
    NameTaken { name: String, endpoint: Destination },
    /// The kubeconfig cannot be written.
    #[error(transparent)]
    Kubeconfig(#[from] KubeconfigError),
    /// A context cannot be imported.
    #[error(transparent)]
    Import(#[from] ImportError),
    /// A file by which others find the kubeconfig cannot be written.
    #[error(transparent)]
    EnvFile(#[from] EnvFileError),
    /// There is nothing to open a tunnel to.
    #[error("there is no cluster to open a tunnel to in {}", places.join(" and "))]
    NoClusters {
        /// Where was looked.
        places: Vec<String>,
    },
    /// A cluster that was asked for by name cannot be had.
    #[error("cannot open a tunnel to `{name}`")]
    ClusterUnusable {
        name: String,
        region: String,
        /// Why not.
        #[source]
        reason: SkipReason,
    },
    /// kubectl cannot be told what to run.
    #[error("cannot find the path of this program")]
    NoExecutable,
    /// A kubeconfig cannot name a path.
    #[error("the path `{}` is not UTF-8, so a kubeconfig cannot refer to it", .0.display())]
    PathNotUtf8(PathBuf),
    /// This program has a bug.
    #[error(transparent)]
    Task(#[from] tokio::task::JoinError),
}

impl ManagerError {
    /// Says it in one sentence, with its causes.
    pub(crate) fn sentence(&self) -> String {
        sentence(self)
    }

    /// Tells whether a manager of the name is running already.
    pub(crate) fn is_taken(&self) -> bool {
        matches!(self, Self::Control(ControlError::Running { .. }))
    }
}
