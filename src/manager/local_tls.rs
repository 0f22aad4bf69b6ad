//! What `--kubeconfig-mode local-tls` makes of tunnels: TLS ends at their local ports.
//!
//! There is one authority from the manager's start to its stop, whatever a reload finds: whether there is to be one is asked
//! only once.

use std::sync::Arc;

use super::{Event, Listener, ManagerError};
use crate::{
    cluster::Cluster,
    kubeconfig::Server,
    remote::Remote,
    settings::{KubeconfigMode, UpSettings},
    tunnel::{Authority, Listeners, Termination},
};

/// The authority of a run.
#[derive(Debug)]
pub(super) struct LocalTls(Authority);

impl LocalTls {
    /// Makes one, if the settings ask for it, and says what that means. Contexts that stay when the manager has ended have
    /// to be good for the next one, which has another authority.
    ///
    /// # Errors
    /// [`ManagerError::Authority`], [`ManagerError::AuthorityStays`].
    pub(super) fn start(
        settings: &UpSettings,
        contexts_stay: bool,
        listener: &Listener,
    ) -> Result<Option<Self>, ManagerError> {
        match settings.kubeconfig_mode {
            KubeconfigMode::Direct | KubeconfigMode::Proxy => Ok(None),
            KubeconfigMode::LocalTls if contexts_stay => Err(ManagerError::AuthorityStays),
            KubeconfigMode::LocalTls => {
                let authority = Authority::new().map_err(ManagerError::Authority)?;
                listener.tell(Event::TlsEndsHere);
                Ok(Some(Self(authority)))
            }
        }
    }

    /// Returns the listeners of a tunnel as they have to be.
    pub(super) fn on(&self, listeners: Listeners, to: &Remote) -> Listeners {
        match to.cluster().filter(|cluster| obstacle(cluster).is_none()) {
            Some(cluster) => listeners.with_tls(Termination::new(&self.0, cluster)),
            None => listeners,
        }
    }

    /// Returns what clients are told of, to get to a cluster's server.
    pub(super) fn server(&self, cluster: &Cluster, port: u16) -> Server {
        match obstacle(cluster) {
            None => Server::LocalTls { port, authority: Arc::clone(self.0.data()) },
            Some(_) => Server::Tunnel(port),
        }
    }

    /// Says of which contexts TLS does not end here.
    pub(super) fn tell_of_others<'a>(
        &self,
        contexts: impl Iterator<Item = (&'a str, &'a Cluster)>,
        listener: &Listener,
    ) {
        for (context, cluster) in contexts {
            if let Some(why) = obstacle(cluster) {
                listener.tell(Event::TlsGoesOn { context: context.to_owned(), why });
            }
        }
    }
}

/// Says why TLS must not end before a cluster's server.
fn obstacle(cluster: &Cluster) -> Option<&'static str> {
    let imported = cluster.imported()?;
    if imported.client_certificate {
        return Some("its user logs in by a client certificate, which nobody can pass on");
    }
    // Whoever asks for the server by its name gets through to it; an address is no name that can be asked for.
    let is_address = imported.server_name.parse::<std::net::IpAddr>().is_ok();
    is_address.then_some("its server is known by an address, not by a name")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::{Destination, Imported, Origin};

    #[test]
    fn what_shows_a_certificate_or_has_no_name_is_left_alone() {
        let of = |origin: Origin| Cluster {
            name: "c".into(),
            region: "r".into(),
            account: "1".into(),
            id: "c".into(),
            endpoint: Destination { host: "h".into(), port: 443 },
            certificate_authority: None,
            vpc: None,
            origin,
        };
        let imported = |server_name: &str, client_certificate| {
            let server_name = server_name.to_owned();
            of(Origin::Imported(Imported { server_name, client_certificate, ..Imported::default() }))
        };
        let local = LocalTls(Authority::new().unwrap());
        let is_local = |cluster: &Cluster| matches!(local.server(cluster, 1), Server::LocalTls { port: 1, .. });
        assert!(is_local(&of(Origin::Eks { token_name: "c".into() })) && is_local(&imported("api.kops", false)));
        let others = [imported("api.kops", true), imported("10.0.0.1", false), imported("fd00::1", false)];
        let (listener, told) = Listener::kept();
        local.tell_of_others(others.iter().map(|cluster| ("pa-c", cluster)), &listener);
        assert_eq!(told.lock().unwrap().len(), 3);
        for cluster in &others {
            assert_eq!(local.server(cluster, 1), Server::Tunnel(1));
        }
    }
}
