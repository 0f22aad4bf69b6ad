//! Where the proxy connects: to the tunnels by their local ports, and to all else where that is wanted.

use std::{
    io,
    net::Ipv4Addr,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{
    net::{TcpSocket, TcpStream},
    sync::watch,
    time::timeout,
};

use super::{names::Names, refusal::Refusal};
use crate::{
    aws::{
        Aws,
        connect::{For, Hop},
    },
    cluster::Destination,
    route::Ends,
    tunnel::Audit,
    util::connection::Connection,
};

/// Time to connect to a tunnel's port and to write an answer, both on this machine: what takes longer hangs.
pub(super) const LOCAL_LIMIT: Duration = Duration::from_secs(10);

/// Time to connect elsewhere, perhaps through a proxy, which has as much to do.
const ELSEWHERE_LIMIT: Duration = Duration::from_secs(30);

/// What the proxy knows when it connects. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Ways {
    /// May change at any time, which concerns new connections.
    pub(super) names: watch::Receiver<Names>,
    pub(super) others: Others,
    pub(super) counts: Arc<Counts>,
    pub(super) audit: Option<Audit>,
    /// Whom connections are for.
    pub(super) client: Option<Ends>,
}

/// What is done with names that no tunnel leads to.
#[derive(Debug, Clone)]
pub(super) enum Others {
    Refused,
    /// They are connected to from here, as this identity's calls are.
    Direct(Aws, For),
}

/// How many clients there are and have been.
#[derive(Debug, Default)]
pub(super) struct Counts {
    open: AtomicUsize,
    total: AtomicU64,
    refused: AtomicU64,
}

impl Counts {
    pub(super) fn open(&self) -> usize {
        self.open.load(Relaxed)
    }

    pub(super) fn total(&self) -> u64 {
        self.total.load(Relaxed)
    }

    pub(super) fn refused(&self) -> u64 {
        self.refused.load(Relaxed)
    }

    pub(super) fn note_refused(&self) {
        self.refused.fetch_add(1, Relaxed);
    }
}

/// Counts a client as long as it is there.
#[derive(Debug)]
pub(super) struct Counted(Arc<Counts>);

impl Counted {
    pub(super) fn new(counts: &Arc<Counts>) -> Self {
        counts.open.fetch_add(1, Relaxed);
        counts.total.fetch_add(1, Relaxed);
        Self(Arc::clone(counts))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Relaxed);
    }
}

/// The other end of a client's connection.
pub(super) enum Server {
    Tunnel(TcpStream),
    Elsewhere(Box<dyn Connection>),
}

impl Ways {
    /// Returns the same for a client.
    pub(super) fn of(self, client: &TcpStream) -> Self {
        // What is gone by now is nobody's.
        let ends = client.peer_addr().and_then(|peer| Ok(Ends { peer, local: client.local_addr()? }));
        Self { client: ends.ok(), ..self }
    }

    /// Connects to what a client has asked for.
    pub(super) async fn connect(&self, to: Destination) -> Result<Server, Refusal> {
        if let Some(server) = self.tunnel(&to).await? {
            return Ok(Server::Tunnel(server));
        }
        let (aws, whom) = self.elsewhere(&to)?;
        let reached = timeout(ELSEWHERE_LIMIT, aws.connector().reach(&to, whom)).await;
        reached
            .map_err(|_| late())
            .and_then(|reached| reached.map_err(Into::into))
            .map(Server::Elsewhere)
            .map_err(failed(to))
    }

    /// Connects to what is asked for one request of plain HTTP.
    pub(super) async fn connect_plain(&self, to: Destination) -> Result<Hop, Refusal> {
        if let Some(server) = self.tunnel(&to).await? {
            return Ok(Hop { connection: Box::new(server), proxy: None });
        }
        let (aws, whom) = self.elsewhere(&to)?;
        let reached = timeout(ELSEWHERE_LIMIT, aws.connector().reach_plain(&to, whom)).await;
        reached.map_err(|_| late()).and_then(|reached| reached.map_err(Into::into)).map_err(failed(to))
    }

    /// Connects to the tunnel that leads there, if there is one.
    async fn tunnel(&self, to: &Destination) -> Result<Option<TcpStream>, Refusal> {
        let Some(port) = self.names.borrow().port(to) else { return Ok(None) };
        let connecting = timeout(LOCAL_LIMIT, self.connect_to_tunnel(port)).await;
        let server = connecting.map_err(io::Error::from).flatten().and_then(|server| {
            server.set_nodelay(true)?;
            Ok(server)
        });
        server.map(Some).map_err(|source| Refusal::NoTunnel { endpoint: to.clone(), source })
    }

    /// Connects to the port of a tunnel. Evidence is to name the client, and not this process.
    async fn connect_to_tunnel(&self, port: u16) -> io::Result<TcpStream> {
        let to = (Ipv4Addr::LOCALHOST, port).into();
        let (Some(audit), Some(client)) = (&self.audit, self.client) else { return TcpStream::connect(to).await };
        let socket = TcpSocket::new_v4()?;
        socket.bind((Ipv4Addr::LOCALHOST, 0).into())?;
        let from = socket.local_addr()?;
        audit.introduce(from, client);
        let connected = socket.connect(to).await;
        if connected.is_err() {
            audit.forget(from);
        }
        connected
    }

    fn elsewhere(&self, to: &Destination) -> Result<(&Aws, For), Refusal> {
        match &self.others {
            Others::Direct(aws, whom) => Ok((aws, *whom)),
            Others::Refused => {
                let known = self.names.borrow().listed(to);
                Err(Refusal::Foreign { endpoint: to.clone(), known })
            }
        }
    }
}

type Source = Box<dyn std::error::Error + Send + Sync>;

fn late() -> Source {
    format!("there was no answer within {} s", ELSEWHERE_LIMIT.as_secs()).into()
}

fn failed(endpoint: Destination) -> impl FnOnce(Source) -> Refusal {
    |source| Refusal::Elsewhere { endpoint, source }
}
