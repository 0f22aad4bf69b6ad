//! A small Kubernetes API server for each cluster, over TLS with an authority of its own.
//!
//! Nodes, namespaces, pods with logs, services, events and deployments can be read and watched;
//! config maps can be written too. It is enough for kubectl and for clients in other languages to work
//! as they do against EKS; it is not Kubernetes: nothing is scheduled, no admission runs, and every
//! caller with an access entry may do everything that is served at all.

mod api;
mod auth;
mod discovery;
mod fixtures;
mod logs;
mod resources;
mod store;
mod table;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use self::store::Store;
use super::{
    EmulatorError, bind,
    config::{ClusterConfig, Config},
    http,
    pki::Authority,
    world::{Cluster, World},
};

/// How long a TLS handshake may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// An API server that is bound and does not serve yet.
pub(super) struct Server {
    listener: TcpListener,
    acceptor: TlsAcceptor,
    /// Shows a certificate of an authority that nobody knows.
    wrong_acceptor: TlsAcceptor,
    pub(super) cluster: Arc<Cluster>,
}

impl Server {
    /// Binds a port and makes the certificates.
    pub(super) async fn bind(config: &Config, cluster: &ClusterConfig) -> Result<Self, EmulatorError> {
        let (listener, address) = bind(0).await?;
        let id = uuid::Uuid::new_v4().simple().to_string().to_uppercase();
        let region = cluster.region.clone().unwrap_or_else(|| config.region.clone());
        let mut names = vec![Cluster::endpoint_host(&id, &region), "10.100.0.1".to_owned()];
        names.extend(
            ["", ".default", ".default.svc", ".default.svc.cluster.local"].map(|end| format!("kubernetes{end}")),
        );
        let authority = Authority::new("kubernetes")?;
        let cluster = Cluster {
            config: cluster.clone(),
            region,
            account: config.account.clone(),
            id,
            authority: STANDARD.encode(authority.pem()),
            address,
        };
        Ok(Self {
            listener,
            acceptor: authority.acceptor(names.clone())?,
            wrong_acceptor: Authority::new("somebody else")?.acceptor(names)?,
            cluster: Arc::new(cluster),
        })
    }

    /// Serves until the emulator stops.
    pub(super) async fn serve(self, world: Arc<World>) {
        let Self { listener, acceptor, wrong_acceptor, cluster } = self;
        let api = Arc::new(Api { store: Store::new(), cluster, started: world.clock.wall(), world: world.clone() });
        fixtures::fill(&api);
        if let Some(interval) = world.config.pod_churn {
            world.tasks.spawn(fixtures::churn(api.clone(), interval));
        }
        loop {
            let accepted = tokio::select! {
                biased;
                () = world.stop.cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            let Ok((tcp, _)) = accepted else { continue };
            let acceptor = if world.settings().wrong_certificate { &wrong_acceptor } else { &acceptor };
            world.tasks.spawn(connection(api.clone(), acceptor.clone(), tcp, world.stop.clone()));
        }
    }
}

/// One cluster's API and what it answers from.
struct Api {
    world: Arc<World>,
    cluster: Arc<Cluster>,
    store: Store,
    /// When it began, since the Unix epoch.
    started: Duration,
}

async fn connection(api: Arc<Api>, acceptor: TlsAcceptor, tcp: TcpStream, stop: CancellationToken) {
    if let Err(error) = tcp.set_nodelay(true) {
        tracing::debug!(%error, "no TCP_NODELAY");
    }
    let handshake = tokio::select! {
        biased;
        () = stop.cancelled() => return,
        handshake = tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(tcp)) => handshake,
    };
    match handshake {
        Ok(Ok(tls)) => http::serve(tls, stop, |request| api::answer(api.clone(), request)).await,
        Ok(Err(error)) => tracing::debug!(%error, "a TLS handshake failed"),
        Err(_) => tracing::debug!("a TLS handshake took too long"),
    }
}

/// Where the API server of a cluster listens.
pub(super) fn addresses(world: &World) -> Vec<(String, SocketAddr)> {
    world.clusters.iter().map(|cluster| (cluster.config.name.clone(), cluster.address)).collect()
}
