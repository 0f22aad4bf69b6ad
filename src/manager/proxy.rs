//! The CONNECT proxy beside the tunnels, with `--kubeconfig-mode proxy`.

use tokio::{sync::watch, task::JoinSet};
use tokio_util::sync::CancellationToken;

use serve::Routes;

use super::ManagerError;
use crate::{
    cluster::Cluster,
    kubeconfig::Server,
    settings::ProxySettings,
    tunnel::{Admission, Listeners},
};

mod serve;

/// A proxy that serves. There is one from the manager's start to its stop: whether there is to be one, and where, is
/// asked only once.
#[derive(Debug)]
pub(super) struct Proxy {
    port: u16,
    routes: watch::Sender<Routes>,
}

impl Proxy {
    /// Binds the proxy's port and serves in one of the tasks, at first with nowhere to lead to, those who are let in.
    ///
    /// # Errors
    /// [`ManagerError::ProxyPort`] if there is no port for it.
    pub(super) fn start(
        settings: ProxySettings,
        admission: Admission,
        tasks: &mut JoinSet<()>,
        stop: &CancellationToken,
    ) -> Result<Self, ManagerError> {
        let ProxySettings { port, strict } = settings;
        let bound = Listeners::bind(port, 1, strict, admission).map_err(ManagerError::ProxyPort)?;
        let routes = watch::Sender::new(Routes::default());
        let mut port = port;
        for listeners in bound.listeners {
            port = listeners.port();
            tasks.spawn(serve::serve(listeners, routes.subscribe(), stop.clone()));
        }
        Ok(Self { port, routes })
    }

    /// Leads to these clusters, and to no others, by their tunnels' ports.
    pub(super) fn lead<'a>(&self, tunnels: impl IntoIterator<Item = (&'a Cluster, u16)>) {
        let routes = tunnels.into_iter().map(|(cluster, port)| (cluster.endpoint.clone(), port)).collect();
        self.routes.send_replace(routes);
    }

    pub(super) fn port(&self) -> u16 {
        self.port
    }

    /// Returns what a client is told of.
    pub(super) fn server(&self) -> Server {
        Server::Proxy(self.port)
    }
}
