//! Contexts that stay when the manager has ended: kubectl starts it again by them, and finds it where it was.
//!
//! Their ports are in the kubeconfig and nowhere else, so they are the same after a reboot, and whoever moves the file moves
//! them with it. A manager of the same name that a person starts keeps to them, and leaves such contexts where they are.

use std::{ffi::OsString, path::Path};

use super::{
    Event, Manager, ManagerError, TunnelEntry,
    contexts::{ACCOUNT_FLAG, CLUSTER_FLAG, PORT_FLAG, REGION_FLAG},
    in_thread,
};
use crate::{
    cluster::Cluster,
    kubeconfig::{self, Exec, KubeconfigError},
    settings::{KubeconfigMode, Launch, UpSettings},
    tunnel::{BindError, Listeners, Ports},
};

/// What the contexts of a manager have kubectl run to start it.
#[derive(Debug, Default)]
pub(super) struct Standing(Vec<Exec>);

impl Standing {
    pub(super) async fn read(path: &Path, manager: &str) -> Result<Result<Self, KubeconfigError>, ManagerError> {
        let (path, manager) = (path.to_owned(), manager.to_owned());
        in_thread(move || kubeconfig::starting(&path, &manager).map(Self)).await
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns what contexts have a manager started with, which is the same for all.
    fn launch(&self) -> Option<Launch> {
        let exec = self.0.first()?;
        let args = exec.start()?.iter().map(OsString::from).collect();
        Some(Launch { args, env: exec.env.iter().map(|(name, value)| (name.clone(), value.into())).collect() })
    }

    /// Returns the port that the context of a cluster leads to.
    fn port_of(&self, cluster: &Cluster) -> Option<u16> {
        let is_of = |exec: &&Exec| {
            exec.option(CLUSTER_FLAG) == cluster.token_name()
                && exec.option(REGION_FLAG) == Some(cluster.region.as_str())
                && exec.option(ACCOUNT_FLAG) == Some(cluster.account.as_str())
        };
        self.0.iter().find(is_of).filter(|exec| !leads_to_proxy(exec))?.option(PORT_FLAG)?.parse().ok()
    }

    /// Returns the port of the proxy that contexts lead to.
    pub(super) fn proxy_port(&self) -> Option<u16> {
        self.0.iter().find(|exec| leads_to_proxy(exec))?.option(PORT_FLAG)?.parse().ok()
    }

    /// Returns all ports that contexts lead to.
    pub(super) fn ports(&self) -> impl Iterator<Item = u16> {
        self.0.iter().filter_map(|exec| exec.option(PORT_FLAG)?.parse().ok())
    }
}

/// Tells whether the port of a context is the proxy's.
fn leads_to_proxy(exec: &Exec) -> bool {
    let option = format!("{}={}", UpSettings::MODE_FLAG, KubeconfigMode::PROXY);
    exec.start().is_some_and(|start| start.contains(&option))
}

/// A context that is in the kubeconfig.
pub(crate) struct Context {
    pub(crate) name: String,
    /// The local port that it leads to.
    pub(crate) port: u16,
    /// kubectl starts the manager by it.
    pub(crate) starts: bool,
}

impl Manager {
    /// Finds out whether there are contexts that stay.
    pub(super) async fn read_standing(&mut self) -> Result<(), ManagerError> {
        if self.settings.wants_clusters() {
            self.standing = Standing::read(&self.kubeconfig, &self.settings.common.name).await??;
        }
        let stands = self.settings.contexts_only || self.settings.ends_unused || !self.standing.is_empty();
        self.state.send_modify(|state| state.stands = stands);
        Ok(())
    }

    /// Returns what contexts are to have a manager started with. One that a person starts leaves that as it is.
    pub(super) fn launch(&self) -> Option<Launch> {
        if !self.state.borrow().stands {
            return None;
        }
        let known = self.standing.launch().filter(|_| !self.settings.contexts_only);
        Some(known.unwrap_or_else(|| self.settings.launch.clone().with_kubeconfig(&self.kubeconfig)))
    }

    /// Tells whether contexts stay that there are no tunnels for now: whoever has had them written may want these.
    pub(super) fn keeps_other_contexts(&self) -> bool {
        self.state.borrow().stands && !self.settings.contexts_only
    }

    /// Returns the contexts that have been written.
    pub(crate) fn contexts(&self) -> Vec<Context> {
        let state = self.state.borrow();
        let clusters = state.tunnels.iter().filter_map(|tunnel| Some((tunnel, tunnel.to.cluster()?)));
        let context = |(tunnel, cluster): (&TunnelEntry, &Cluster)| Context {
            name: tunnel.name.clone(),
            port: state.proxy_port.unwrap_or(tunnel.port),
            starts: state.stands && cluster.imported().is_none(),
        };
        clusters.map(context).collect()
    }

    /// Binds the port that the context of a cluster has, if it has one and nobody else has taken it; else the next.
    pub(super) fn bind_for(&self, cluster: &Cluster, ports: &mut Ports) -> Result<Listeners, ManagerError> {
        let kept = match self.settings.kubeconfig_mode {
            // There it is the proxy's.
            KubeconfigMode::Proxy => None,
            KubeconfigMode::Direct | KubeconfigMode::LocalTls => self.standing.port_of(cluster),
        };
        match kept.map(|port| Listeners::on(port, self.admission.clone())) {
            None => self.bind_next(ports),
            Some(Ok(listeners)) => Ok(listeners),
            Some(Err(BindError::Taken(taken))) if !self.settings.strict_ports => {
                self.listener.tell(Event::PortLost { cluster: cluster.name.clone(), taken });
                self.bind_next(ports)
            }
            Some(Err(error)) => Err(error.into()),
        }
    }
}
