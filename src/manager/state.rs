//! What a manager has: its accesses and its tunnels.

use std::{net::SocketAddr, path::PathBuf, sync::Arc};

use tokio_util::sync::CancellationToken;

use super::proxy::ProxyView;
use crate::{
    aws::{Aws, Caller},
    bastion::Bastion,
    remote::Remote,
    route::{Routes, ssm},
    settings::Access,
    tunnel::Common,
};

#[derive(Clone, Default)]
pub(crate) struct ManagerState {
    /// The accesses, in their order.
    pub(crate) accesses: Vec<Arc<OpenAccess>>,
    /// The tunnels, in the order of their clusters, then of forwards.
    pub(crate) tunnels: Vec<TunnelEntry>,
    /// The kubeconfig that has been written.
    pub(crate) kubeconfig: Option<PathBuf>,
    /// The kubeconfigs that contexts were imported from.
    pub(crate) imported_from: Vec<PathBuf>,
    /// The port that contexts lead to, if that is not each tunnel's own.
    pub(crate) proxy_port: Option<u16>,
    /// The contexts stay when the manager has ended, and have kubectl start it again.
    pub(crate) stands: bool,
    pub(crate) proxy: Option<ProxyView>,
    /// Where the metrics are.
    pub(crate) metrics: Option<SocketAddr>,
    /// The file that has evidence of connections.
    pub(crate) audit: Option<PathBuf>,
    /// The tunnels are under way.
    pub(crate) opened: bool,
}

/// Where a tunnel leads, and what it is called.
#[derive(Clone)]
pub(crate) struct TunnelEntry {
    /// The local port, by which a tunnel is known.
    pub(crate) port: u16,
    /// What it is called: its context, or the name of the forward.
    pub(crate) name: String,
    pub(crate) to: Remote,
    pub(crate) access: Arc<OpenAccess>,
}

/// An access that is in use: an identity in a region, as whom calls are made.
pub(crate) struct OpenAccess {
    pub(crate) settings: Access,
    pub(crate) aws: Aws,
    pub(crate) caller: Caller,
    pub(crate) common: Arc<Common>,
    pub(super) routes: Routes,
    pub(super) stop: CancellationToken,
}

impl ManagerState {
    /// Returns where the tunnel on a port leads.
    pub(crate) fn tunnel(&self, port: u16) -> Option<&TunnelEntry> {
        self.tunnels.iter().find(|tunnel| tunnel.port == port)
    }
}

impl OpenAccess {
    /// Tells whether it is the same identity, in the same region, which gets to bastions in the same manner.
    pub(super) fn is_same(&self, settings: &Access) -> bool {
        self.settings.aws.region == settings.aws.region
            && self.settings.identity == settings.identity
            && self.settings.request_access == settings.request_access
    }

    /// Returns what its bastions are used for by a tunnel to a cluster.
    pub(super) fn uses(&self, to: &Remote) -> impl Iterator<Item = ssm::Use> {
        let of = |bastion: &Bastion| {
            let (region, account) = (self.aws.region().to_owned(), self.caller.account.clone());
            let at = ssm::UsedAt { region, account, bastion: bastion.clone() };
            to.vpc().cloned().map(|vpc| ssm::Use { at, vpc })
        };
        self.settings.bastion.iter().filter_map(of)
    }

    /// Returns one with the same identity for other bastions and clusters.
    pub(super) fn with(&self, settings: Access) -> Self {
        Self {
            settings,
            aws: self.aws.clone(),
            caller: self.caller.clone(),
            common: Arc::clone(&self.common),
            routes: self.routes.clone(),
            stop: self.stop.clone(),
        }
    }
}
