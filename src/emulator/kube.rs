//! A small Kubernetes API server for each cluster, over TLS with an authority of its own.
//!
//! Nodes, namespaces, pods with logs, services, events and deployments can be read and watched;
//! config maps can be written too. It is enough for kubectl and for clients in other languages to work
//! as they do against EKS; it is not Kubernetes: nothing is scheduled, no admission runs, and a
//! caller with an access entry may do everything that is served at all, or nothing.

mod api;
mod auth;
mod discovery;
mod fixtures;
mod logs;
mod resources;
mod selector;
mod store;
mod table;
mod watch;

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use self::store::Store;
use super::{
    EmulatorError,
    config::{ClusterConfig, Config},
    http,
    pki::{Authority, ClientCertificate, KeyKind},
    place::{Listener, Medium, Place, Wire},
    world::{Cluster, World, lock},
};

/// How long a TLS handshake may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// An API server that is bound and does not serve yet.
pub(super) struct Server {
    listener: Listener,
    acceptor: TlsAcceptor,
    /// Shows a certificate of an authority that nobody knows.
    wrong_acceptor: TlsAcceptor,
    pub(super) cluster: Arc<Cluster>,
}

impl Server {
    /// Begins to listen and makes the certificates.
    pub(super) async fn bind(medium: Medium, config: &Config, cluster: &ClusterConfig) -> Result<Self, EmulatorError> {
        let (listener, place) = Listener::bind(medium, 0).await?;
        let id = uuid::Uuid::new_v4().simple().to_string().to_uppercase();
        let region = cluster.region.clone().unwrap_or_else(|| config.region.clone());
        let keys = if cluster.rsa { KeyKind::Rsa } else { KeyKind::Curve };
        let authority = Authority::new("kubernetes", keys)?;
        let cluster = Cluster {
            config: cluster.clone(),
            region,
            account: config.account.clone(),
            id,
            authority: STANDARD.encode(authority.pem()),
            pki: authority,
            clients: Mutex::default(),
            place,
        };
        let mut names = vec![cluster.endpoint_host(), "10.100.0.1".to_owned(), "fd00:10:100::1".to_owned()];
        names.extend(
            ["", ".default", ".default.svc", ".default.svc.cluster.local"].map(|end| format!("kubernetes{end}")),
        );
        Ok(Self {
            listener,
            acceptor: cluster.pki.acceptor_for_clients(names.clone())?,
            wrong_acceptor: Authority::new("somebody else", keys)?.acceptor(names)?,
            cluster: Arc::new(cluster),
        })
    }

    /// Serves until the emulator stops.
    pub(super) async fn serve(self, world: Arc<World>) {
        let Self { mut listener, acceptor, wrong_acceptor, cluster } = self;
        let api = Arc::new(Api { store: Store::new(), cluster, started: world.clock.wall(), world: world.clone() });
        fixtures::fill(&api);
        if let Some(interval) = world.config.pod_churn {
            world.tasks.spawn(fixtures::churn(api.clone(), interval));
        }
        while let Some(wire) = listener.accept(&world.stop).await {
            let acceptor = if world.settings().wrong_certificate { &wrong_acceptor } else { &acceptor };
            world.tasks.spawn(connection(api.clone(), acceptor.clone(), wire, world.stop.clone()));
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

async fn connection(api: Arc<Api>, acceptor: TlsAcceptor, wire: Wire, stop: CancellationToken) {
    let handshake = tokio::select! {
        biased;
        () = stop.cancelled() => return,
        handshake = tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(wire)) => handshake,
    };
    match handshake {
        Ok(Ok(tls)) => {
            let shown = tls.get_ref().1.peer_certificates().and_then(|chain| chain.first());
            let client = shown.and_then(|certificate| lock(&api.cluster.clients).get(certificate.as_ref()).cloned());
            let client: Option<Arc<str>> = client.map(Arc::from);
            http::serve(tls, stop, &api.world.clock, |request| api::answer(api.clone(), client.clone(), request)).await;
        }
        Ok(Err(error)) => tracing::debug!(%error, "a TLS handshake failed"),
        Err(_) => tracing::debug!("a TLS handshake took too long"),
    }
}

/// An API server, past the tunnel.
#[derive(Debug, Clone)]
pub struct ApiServer {
    /// The cluster's name.
    pub cluster: String,
    /// The host that its certificate names, and that agents know it by, on port 443.
    pub host: String,
    /// Its authority: PEM in base64, as EKS gives it.
    pub certificate_authority: String,
    /// Where it listens.
    pub place: Place,
}

/// Makes a certificate by which a client logs in to a cluster as a user.
pub(super) fn client_certificate(world: &World, cluster: &str, user: &str) -> Option<ClientCertificate> {
    let cluster = world.clusters.iter().find(|known| known.config.name == cluster)?;
    let certificate = cluster.pki.client(user).ok()?;
    lock(&cluster.clients).insert(certificate.der.clone(), user.to_owned());
    Some(certificate)
}

/// The API servers in the order of the configuration.
pub(super) fn servers(world: &World) -> Vec<ApiServer> {
    let server = |cluster: &Arc<Cluster>| ApiServer {
        cluster: cluster.config.name.clone(),
        host: cluster.endpoint_host(),
        certificate_authority: cluster.authority.clone(),
        place: cluster.place.clone(),
    };
    world.clusters.iter().map(server).collect()
}
