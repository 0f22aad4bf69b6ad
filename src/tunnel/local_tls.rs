//! TLS that ends at a local port, for clients that know neither `tls-server-name` nor `proxy-url`.
//!
//! ```text
//! client ── TLS for 127.0.0.1, by our authority ── here ── TLS for the endpoint, by the cluster's authority ── a link ──► API server
//! ```
//!
//! It stands between the listeners of a tunnel and what the tunnel accepts: each connection becomes a pipe that the tunnel
//! carries as any other, so that holding, links and counters are as ever.
//!
//! Invariants:
//!
//! * The handshake with the API server comes first, offering what the client offers, so that the client is answered what the API
//!   server has chosen. A certificate that does not verify ends the connection before the client has sent anything.
//! * Whoever asks for the API server by its own name gets through to it unread: its certificate is what it will have to show.
//! * An end is passed on as the end that it was: with `close_notify`, without, or as a reset. What was cut never looks whole.
//! * What a client can cost is bounded: its handshake in time, and the number of connections.
//!
//! Leaves out client certificates, which cannot be passed on.

use std::{
    io,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use rustls::{AlertDescription, ServerConfig, server::Acceptor};
use tokio::{
    io::{AsyncWriteExt, copy_bidirectional},
    net::TcpStream,
    sync::mpsc,
    task::JoinSet,
    time::timeout,
};
use tokio_rustls::LazyConfigAcceptor;
use tracing::{debug, error, warn};

pub use authority::{Authority, AuthorityError};
use recorded::Recorded;
use relay::relay;

use super::{MemoryConnection, MemoryPort, Probe};
use crate::{
    cluster::Cluster,
    route::{Ends, Io, ProbeError},
    util::peer_text::sentence,
};

mod authority;
mod recorded;
mod relay;
#[cfg(test)]
mod tests;

/// Time for each part of a handshake that is the client's: one that sends a byte now and then holds a place for no longer.
const CLIENT_LIMIT: Duration = Duration::from_secs(10);

/// Time for the handshake with the API server. A connection may wait 30 s for a link.
const UPSTREAM_LIMIT: Duration = Duration::from_secs(60);

/// Connections of a tunnel at a time, those in a handshake included: as many as a tunnel takes.
const MAX_CONNECTIONS: usize = 1024;

/// How long connections may take to end when what they led through has ended.
const END_LIMIT: Duration = Duration::from_secs(1);

/// How TLS ends at the port of one cluster, and goes on from there.
#[derive(Debug)]
pub struct Termination {
    server: Arc<ServerConfig>,
    /// `None`: the cluster's own authority cannot be used, so that nothing gets through.
    upstream: Option<Probe>,
    /// What clients ask for that want the API server itself.
    server_name: String,
}

impl Termination {
    /// Shows clients the certificate of this authority, and verifies the API server by the cluster's.
    #[must_use]
    pub fn new(authority: &Authority, cluster: &Cluster) -> Self {
        // Why it cannot be used is what the tunnel's own proof says.
        let upstream = Probe::new(cluster).ok();
        Self { server: Arc::clone(authority.server()), upstream, server_name: cluster.server_name().to_owned() }
    }
}

/// Ends the TLS of the connections of one tunnel.
#[derive(Debug)]
pub(super) struct Terminator {
    termination: Arc<Termination>,
    connections: Connections,
    max_connections: usize,
    tunnel: MemoryPort,
    accepted: mpsc::UnboundedReceiver<Io>,
}

impl Terminator {
    pub(super) fn new(termination: Termination) -> Self {
        Self::up_to(MAX_CONNECTIONS, termination)
    }

    fn up_to(max_connections: usize, termination: Termination) -> Self {
        let (tunnel, accepted) = MemoryPort::new();
        let (termination, connections) = (Arc::new(termination), Connections::default());
        Self { termination, connections, max_connections, tunnel, accepted }
    }

    /// Takes a connection of a client.
    pub(super) fn take(&mut self, client: TcpStream, ends: Option<Ends>) {
        if self.connections.0.len() >= self.max_connections {
            debug!(limit = self.max_connections, "reset a connection: too many are open");
            cut(&client);
            return;
        }
        let (termination, tunnel) = (Arc::clone(&self.termination), self.tunnel.clone());
        self.connections.0.spawn(async move { Box::pin(termination.serve(client, ends, &tunnel)).await });
    }

    /// Returns the next connection for the tunnel.
    pub(super) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Io> {
        self.connections.poll_ended(cx);
        match self.accepted.poll_recv(cx) {
            Poll::Ready(Some(io)) => Poll::Ready(io),
            // There is always a sender.
            Poll::Ready(None) | Poll::Pending => Poll::Pending,
        }
    }

    /// Takes no more connections.
    pub(super) fn close(self) -> Connections {
        self.connections
    }
}

/// The connections whose TLS ends here. Dropping it cuts them.
#[derive(Debug, Default)]
pub(super) struct Connections(JoinSet<()>);

impl Connections {
    /// Forgets those that have ended.
    fn poll_ended(&mut self, cx: &mut Context<'_>) {
        while let Poll::Ready(Some(ended)) = self.0.poll_join_next(cx) {
            if let Err(error) = ended {
                error!(%error, "a connection whose TLS ends here has failed");
            }
        }
    }

    /// Waits until all have ended, now that what they led through has; what takes too long is cut.
    pub(super) async fn end(mut self) {
        let ended = timeout(END_LIMIT, async { while self.0.join_next().await.is_some() {} }).await;
        if ended.is_err() {
            debug!(left = self.0.len(), "cut connections that did not end in time");
        }
        self.0.shutdown().await;
    }
}

impl Termination {
    /// Serves a client to the end.
    async fn serve(&self, client: TcpStream, ends: Option<Ends>, tunnel: &MemoryPort) {
        let mut hello = LazyConfigAcceptor::new(Acceptor::default(), Recorded::new(client));
        let mut start = match timeout(CLIENT_LIMIT, &mut hello).await {
            Ok(Ok(start)) => start,
            outcome => {
                let error = outcome.map_err(io::Error::from).flatten().err();
                debug!(error = error.map(|error| error.to_string()), "a client did not begin a TLS handshake");
                return;
            }
        };
        let Ok(pipe) = tunnel.connect_for(ends) else { return cut(start.io.stream()) };
        let asked = start.client_hello();
        if asked.server_name().is_some_and(|name| name.eq_ignore_ascii_case(&self.server_name)) {
            return pass(start.io, pipe).await;
        }
        let protocols = asked.alpn().map(|all| all.map(<[u8]>::to_vec).collect()).unwrap_or_default();
        start.io.forget();
        let Some(probe) = &self.upstream else { return cut(start.io.stream()) };
        let upstream = match timeout(UPSTREAM_LIMIT, probe.connect_offering(protocols, pipe)).await {
            Ok(Ok(upstream)) => upstream,
            Ok(Err(error)) => return refuse(start.io, &error).await,
            Err(_) => {
                debug!("reset a connection: no TLS handshake with the API server in time");
                return cut(start.io.stream());
            }
        };
        let mut config = ServerConfig::clone(&self.server);
        config.alpn_protocols = upstream.get_ref().1.alpn_protocol().map(<[u8]>::to_vec).into_iter().collect();
        let accepting = start.into_stream(Arc::new(config)).into_fallible();
        let mut client = match timeout(CLIENT_LIMIT, accepting).await {
            Ok(Ok(client)) => client,
            Ok(Err((error, _))) => return say_refused(&error),
            Err(_) => return debug!("a client did not end its TLS handshake in time"),
        };
        let mut upstream = upstream;
        if let Err(error) = relay(&mut client, &mut upstream).await {
            debug!(%error, "a connection whose TLS ends here has broken");
            cut(client.get_ref().0.stream());
        }
    }
}

/// Passes on what a client has sent so far and will send, unread, as it has asked for the API server itself.
async fn pass(client: Recorded, mut pipe: MemoryConnection) {
    let (mut client, begun) = client.into_parts();
    let passed = async {
        pipe.write_all(&begun).await?;
        drop(begun);
        copy_bidirectional(&mut client, &mut pipe).await
    };
    if let Err(error) = passed.await {
        debug!(%error, "a connection has broken");
        cut(&client);
    }
}

/// Has the client see a reset when the socket is dropped.
fn cut(client: &TcpStream) {
    // If it cannot be set the client sees an end without `close_notify`, which is the next best.
    let _outcome = client.set_zero_linger();
}

/// Ends a connection for which there is no TLS with the API server: by the alert that this has sent, or one that blames no
/// client.
async fn refuse(mut client: Recorded, error: &ProbeError) {
    let alert = match error {
        ProbeError::Tls { source } => match source.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
            Some(rustls::Error::AlertReceived(alert)) => *alert,
            Some(_) | None => AlertDescription::InternalError,
        },
        ProbeError::Certificate { .. } | ProbeError::Authority { .. } | ProbeError::NotHttp => {
            AlertDescription::InternalError
        }
        ProbeError::Refused | ProbeError::NoAnswer { .. } | ProbeError::Ended | ProbeError::LinkLost => {
            debug!(%error, "reset a connection: no TLS with the API server");
            return cut(client.stream());
        }
    };
    warn!(error = sentence(error), "no TLS with the API server: a connection was refused");
    // TLS 1.2, the version of the record; length; fatal.
    let record = [0x15, 0x03, 0x03, 0x00, 0x02, 0x02, u8::from(alert)];
    let told = async {
        client.write_all(&record).await?;
        client.shutdown().await
    };
    // A client that does not take it has to do without.
    let _outcome = timeout(CLIENT_LIMIT, told).await;
}

/// Says that a client does not want the certificate that it is shown.
fn say_refused(error: &io::Error) {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match inner {
        Some(rustls::Error::AlertReceived(alert)) => {
            warn!(
                ?alert,
                "a client does not trust this run's certificate: it may have read a kubeconfig of an earlier run"
            );
        }
        Some(_) | None => debug!(%error, "the TLS handshake of a client failed"),
    }
}
