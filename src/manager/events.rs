//! What happens in a manager, for whoever runs it to say.

use std::{
    io,
    net::SocketAddr,
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use super::orphans::NotEnded;
use crate::{
    aws::{AwsError, Caller, SkipReason},
    journal::Entry,
    kubeconfig::{self, KubeconfigError},
    route::{Caution, ssh::Ask, ssm::Approval},
    tunnel::PortTaken,
};

/// Something that has happened.
#[derive(Debug)]
pub(crate) enum Event {
    /// It is known who calls AWS.
    Identified(Caller),
    /// A cluster gets no tunnel.
    ClusterSkipped { name: String, reason: SkipReason },
    /// EKS may not be asked for clusters, of which none are needed.
    NothingOfEks(AwsError),
    /// An imported cluster has a proxy that is not used.
    ProxyLeftOut { context: String },
    /// kubectl needs several files for the contexts that were imported.
    SeveralKubeconfigs(kubeconfig::Files),
    /// A local port is not taken, as somebody else has it.
    PortSkipped(PortTaken),
    /// Somebody else has taken the port of a context.
    PortLost { cluster: String, taken: PortTaken },
    ProxyServes {
        /// Where programs of this machine find it.
        address: SocketAddr,
    },
    /// The metrics can be fetched.
    MetricsServed { address: SocketAddr },
    /// TLS ends at the local ports, which has a price.
    TlsEndsHere,
    /// TLS ends there, but not for a context.
    TlsGoesOn { context: String, why: &'static str },
    /// The kubeconfig is written elsewhere than by default, which cannot be written.
    KubeconfigElsewhere(KubeconfigError),
    KubeconfigWritten {
        path: PathBuf,
        /// The context that is now the current one.
        current: Option<String>,
    },
    /// Contexts could not be taken out of the kubeconfig.
    ContextsLeft(KubeconfigError),
    /// The file for shells to source is written.
    EnvFileWritten(PathBuf),
    /// Later steps of the job of GitHub Actions will have the kubeconfig.
    JobTold,
    /// Sessions are not noted for the next manager.
    NoJournal {
        /// The folder that it would be in.
        folder: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A session of an earlier run goes on.
    SessionLeft { session: Entry, error: NotEnded },
    /// Sessions of an earlier run have been ended, as many as this.
    SessionsEnded(usize),
    /// Credentials expire soon and cannot be renewed.
    CredentialsExpire {
        left: Duration,
        /// Why they cannot be renewed.
        error: AwsError,
    },
    CredentialsExpired {
        /// Why they could not be renewed.
        error: AwsError,
    },
    CredentialsRenewed {
        /// When these expire.
        until: Option<SystemTime>,
    },
    /// Somebody has to sign in to IAM Identity Center again, or credentials cannot be renewed.
    SignInEnds {
        left: Duration,
        /// The profile that is signed in.
        profile: String,
    },
    /// Sessions with a bastion cannot be started much longer without another approval.
    ApprovalEnds(Approval),
    /// A tunnel has found something that the user has to know.
    Caution(Caution),
    /// A route has chosen, made or ended something on the user's behalf.
    Notice(String),
}

/// Takes what happens, as it happens.
#[derive(Clone)]
pub(crate) struct Listener {
    take: Arc<dyn Fn(Event) + Send + Sync>,
    ask: Option<Ask>,
}

impl Listener {
    pub(crate) fn new(take: impl Fn(Event) + Send + Sync + 'static) -> Self {
        Self { take: Arc::new(take), ask: None }
    }

    /// Returns the same with somebody who can be asked.
    pub(crate) fn asking(self, ask: Option<Ask>) -> Self {
        Self { ask, ..self }
    }

    /// Returns what asks a person, where there is one.
    pub(crate) fn ask(&self) -> Option<Ask> {
        self.ask.clone()
    }

    pub(crate) fn tell(&self, event: Event) {
        (self.take)(event);
    }
}

#[cfg(test)]
impl Listener {
    /// One that keeps what happens.
    pub(crate) fn kept() -> (Self, Arc<std::sync::Mutex<Vec<Event>>>) {
        let kept = Arc::new(std::sync::Mutex::new(Vec::new()));
        let listener = Self::new({
            let kept = Arc::clone(&kept);
            move |event| kept.lock().unwrap().push(event)
        });
        (listener, kept)
    }
}
