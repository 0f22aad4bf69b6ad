//! The proxy beside the tunnels, with `--proxy` or `--kubeconfig-mode proxy`: programs that use the real names of API servers and of
//! other hosts get to them through the tunnels.
//!
//! `opening` reads how a client begins, `names` knows where tunnels lead, `ways` connects, `serve` carries, `plain` is for
//! requests of plain HTTP.

use std::{net::SocketAddr, sync::Arc};

use tokio::{sync::watch, task::JoinSet};
use tokio_util::sync::CancellationToken;

use names::Names;
use ways::{Counts, Others, Ways};

use super::{Event, Manager, ManagerError, OpenAccess, TunnelEntry, control::ProxyStatus};
use crate::{
    aws::connect::For,
    kubeconfig::Server,
    settings::{KubeconfigMode, ProxyAddress, ProxyOthers},
    tunnel::{Admission, Audit, BindError, Listeners, Ports},
};

#[cfg(any(fuzzing, test))]
pub(crate) mod fuzzing;
mod names;
mod opening;
mod plain;
mod refusal;
mod serve;
mod ways;

/// A proxy that serves. There is one from the manager's start to its stop: whether there is to be one, and where, is
/// asked only once.
#[derive(Debug)]
pub(super) struct Proxy {
    view: ProxyView,
    names: watch::Sender<Names>,
}

/// What is known of a proxy from outside.
#[derive(Debug, Clone)]
pub(crate) struct ProxyView {
    /// Where programs of this machine find it.
    pub(crate) address: SocketAddr,
    others: ProxyOthers,
    counts: Arc<Counts>,
}

impl Manager {
    /// Opens the proxy if there is to be one; it leads nowhere yet. Other names are connected to as the first access would.
    ///
    /// # Errors
    /// [`ManagerError::ProxyPort`] if there is no port for it.
    pub(super) fn open_proxy(&mut self, accesses: &[Arc<OpenAccess>]) -> Result<(), ManagerError> {
        let Some(settings) = self.settings.proxy() else { return Ok(()) };
        let bound = self.bind_proxy(settings.address).map_err(ManagerError::ProxyPort)?;
        let others = match (settings.others, accesses.first()) {
            (ProxyOthers::Refuse, _) | (_, None) => Others::Refused,
            (ProxyOthers::Direct, Some(access)) => {
                let whom = if self.settings.allow_other_users { For::Anybody } else { For::Owner };
                Others::Direct(access.aws.clone(), whom)
            }
        };
        let audit = self.audit.as_ref().map(|file| file.audit().clone());
        let proxy = Proxy::start(bound, (settings.others, others), audit, &mut self.tasks, &self.stop);
        self.listener.tell(Event::ProxyServes { address: proxy.view.address });
        let is_for_contexts = self.settings.kubeconfig_mode == KubeconfigMode::Proxy;
        self.state.send_modify(|state| {
            state.proxy_port = is_for_contexts.then_some(proxy.view.address.port());
            state.proxy = Some(proxy.view.clone());
        });
        self.proxy = Some(proxy);
        Ok(())
    }

    /// Binds the port of the proxy that contexts lead to already, unless somebody else has taken it; else the one that is asked
    /// for.
    fn bind_proxy(&self, asked: ProxyAddress) -> Result<(Listeners, SocketAddr), BindError> {
        let bind = |address| bind(address, self.admission.clone());
        let known = self.standing.proxy_port().filter(|_| matches!(asked, ProxyAddress::Port { .. }));
        match known.map(|port| bind(ProxyAddress::Port { port, strict: true })) {
            None => bind(asked),
            Some(Err(BindError::Taken(_))) if !self.settings.strict_ports => bind(asked),
            Some(bound) => bound,
        }
    }

    /// Returns where programs of this machine find the proxy, if there is one.
    pub(crate) fn proxy_address(&self) -> Option<SocketAddr> {
        Some(self.proxy.as_ref()?.view.address)
    }
}

impl Proxy {
    /// Serves those who are let in, in one of the tasks, at first with nowhere to lead to.
    fn start(
        (listeners, address): (Listeners, SocketAddr),
        (wanted, others): (ProxyOthers, Others),
        audit: Option<Audit>,
        tasks: &mut JoinSet<()>,
        stop: &CancellationToken,
    ) -> Self {
        let (names, counts) = (watch::Sender::new(Names::default()), Arc::<Counts>::default());
        let ways = Ways { names: names.subscribe(), others, counts: Arc::clone(&counts), audit, client: None };
        tasks.spawn(serve::serve(listeners, ways, stop.clone()));
        Self { view: ProxyView { address, others: wanted, counts }, names }
    }

    /// Leads to what these tunnels lead to, by their ports, and to nothing else.
    pub(super) fn lead(&self, tunnels: &[TunnelEntry]) {
        let names = tunnels.iter().map(|tunnel| (tunnel.to.endpoint().clone(), tunnel.port)).collect();
        self.names.send_replace(names);
    }

    /// Returns what a client is told of.
    pub(super) fn server(&self) -> Server {
        Server::Proxy(self.view.address)
    }
}

fn bind(address: ProxyAddress, admission: Admission) -> Result<(Listeners, SocketAddr), BindError> {
    match address {
        ProxyAddress::Port { port, strict } => {
            let listeners = Ports::new(port, strict, admission).bind_next()?;
            let port = listeners.port();
            Ok((listeners, ([127, 0, 0, 1], port).into()))
        }
        ProxyAddress::At(address) => {
            let listeners = Listeners::at(address, admission)?;
            let address = SocketAddr::new(address.ip(), listeners.port());
            Ok((listeners, ProxyAddress::reached_at(address)))
        }
    }
}

impl ProxyView {
    pub(crate) fn status(&self) -> ProxyStatus {
        ProxyStatus {
            address: self.address.to_string(),
            others: self.others.as_str().to_owned(),
            open_connections: self.counts.open(),
            connections_total: self.counts.total(),
            refused_total: self.counts.refused(),
        }
    }
}

/// Refuses tunnels that a proxy cannot tell apart: a program would be led to the other's host, and show it the other's
/// credentials.
pub(super) fn refuse_alike(tunnels: &[TunnelEntry]) -> Result<(), ManagerError> {
    let is_same = |one: &TunnelEntry, other: &TunnelEntry| {
        let is_verified_alike = match (one.to.cluster(), other.to.cluster()) {
            (Some(a), Some(b)) => {
                (&a.certificate_authority, a.server_name()) == (&b.certificate_authority, b.server_name())
            }
            _ => true,
        };
        let is_reached_alike =
            one.access.is_same(&other.access.settings) && one.access.settings.bastion == other.access.settings.bastion;
        is_verified_alike && is_reached_alike
    };
    let name = |tunnel: &TunnelEntry| names::key(tunnel.to.endpoint());
    for (at, one) in tunnels.iter().enumerate() {
        let mut before = tunnels.iter().take(at);
        if let Some(other) = before.find(|other| name(other) == name(one) && !is_same(one, other)) {
            return Err(ManagerError::Alike {
                tunnels: [other.name.clone(), one.name.clone()],
                endpoint: one.to.endpoint().clone(),
            });
        }
    }
    Ok(())
}
