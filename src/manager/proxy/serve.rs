//! One loopback HTTP proxy that reaches only the clusters' API servers, for clients that ignore `tls-server-name`.
//!
//! Such a client is told the real address of the API server and this proxy (`proxy-url` in the kubeconfig). It sends `CONNECT
//! host:port`, and the proxy joins the connection to the local port of the tunnel that leads there. TLS stays end to end.
//!
//! Invariants:
//!
//! * Nothing is dialled but ports on 127.0.0.1, and of those only what the [`Routes`] have for the very endpoint that was
//!   asked for. No name is ever looked up.
//! * CONNECT is the only method, so no page in a browser can use the proxy, whatever name its host has resolved to.
//! * What a client can cost is bounded: its head in bytes and in time, and the number of connections.
//! * The end of one direction is passed on and the other goes on; a reset is passed on as a reset.
//!
//! Leaves out authentication: who gets through is the listeners' matter, as for the tunnels' own ports.

use std::{collections::BTreeMap, fmt, io, net::Ipv4Addr, time::Duration};

use bytes::BytesMut;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional_with_sizes},
    net::TcpStream,
    sync::watch,
    task::JoinSet,
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::{cluster::Destination, tunnel::Listeners};

#[cfg(test)]
mod tests;

/// Longest head of a request, in bytes: a client that sends without end fills no more memory than this. Heads of Kubernetes
/// clients have some 200.
const MAX_HEAD_LEN: usize = 8 << 10;

/// Most headers of a request. Kubernetes clients send five.
const MAX_HEADERS: usize = 64;

/// Time for the whole head: a client that sends a byte now and then holds a place for no longer than this.
const HEAD_LIMIT: Duration = Duration::from_secs(10);

/// Time to connect to a tunnel's port and to write the answer, both on this machine: what takes longer hangs.
const LOCAL_LIMIT: Duration = Duration::from_secs(10);

/// Connections at a time: a client that leaks them takes no more descriptors than this, two each. As many as one tunnel takes.
const MAX_CONNECTIONS: usize = 1024;

/// Bytes that are copied at once, each way. One message of a tunnel has 1 KiB, one record of TLS at most 16.
const COPY_LEN: usize = 16 << 10;

/// Which endpoint is behind which local port. Hosts are compared as DNS and IP compare them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Routes(BTreeMap<(String, u16), u16>);

impl Routes {
    /// Returns the port of the tunnel that leads to an endpoint.
    fn port(&self, endpoint: &Destination) -> Option<u16> {
        self.0.get(&key(endpoint)).copied()
    }
}

impl FromIterator<(Destination, u16)> for Routes {
    fn from_iter<I: IntoIterator<Item = (Destination, u16)>>(routes: I) -> Self {
        Self(routes.into_iter().map(|(endpoint, port)| (key(&endpoint), port)).collect())
    }
}

/// Brings an endpoint to the form in which endpoints are compared.
fn key(endpoint: &Destination) -> (String, u16) {
    let host = match endpoint.host.parse::<std::net::IpAddr>() {
        Ok(address) => address.to_string(),
        Err(_) => endpoint.host.to_ascii_lowercase(),
    };
    (host, endpoint.port)
}

/// Serves until it is told to stop; then every connection is closed. `routes` may change at any time, which
/// concerns new connections.
pub(super) async fn serve(listeners: Listeners, routes: watch::Receiver<Routes>, stop: CancellationToken) {
    serve_up_to(MAX_CONNECTIONS, listeners, routes, stop).await;
}

async fn serve_up_to(
    max_connections: usize,
    mut listeners: Listeners,
    routes: watch::Receiver<Routes>,
    stop: CancellationToken,
) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => break,
            Some(ended) = connections.join_next() => {
                if let Err(error) = ended {
                    tracing::error!(%error, "a connection of the proxy has failed");
                }
            }
            client = listeners.accept_tcp() => {
                if connections.len() >= max_connections {
                    turn_away(client, &Refusal::TooMany);
                    continue;
                }
                let (routes, stop) = (routes.clone(), stop.clone());
                connections.spawn(async move {
                    let connection = Box::pin(handle(client, &routes));
                    // Dropping it closes both of its sockets.
                    if stop.run_until_cancelled(connection).await.is_none() {
                        debug!("a connection of the proxy was closed by the stop");
                    }
                });
            }
        }
    }
    drop(listeners);
    while connections.join_next().await.is_some() {}
}

/// Answers without waiting for anything.
fn turn_away(client: TcpStream, refusal: &Refusal) {
    debug!(%refusal, "the proxy rejected a client");
    let answer = refusal.answer().unwrap_or_default();
    // Into an empty buffer the answer fits; a client that is gone by now needs none.
    let _outcome = client.into_std().and_then(|mut client| io::Write::write(&mut client, answer.as_bytes()));
}

async fn handle(mut client: TcpStream, routes: &watch::Receiver<Routes>) {
    match open(&mut client, routes).await {
        Ok((server, early)) => {
            if let Err(error) = join(&mut client, server, &early).await {
                debug!(%error, "a connection through the proxy has broken");
                // Without lingering, closing sends RST: what was lost must not look like an end.
                let _outcome = client.set_zero_linger();
            }
        }
        Err(refusal) => {
            debug!(%refusal, "the proxy refused a request");
            if let Some(answer) = refusal.answer() {
                // A client that does not take the answer has to do without.
                let _outcome = timeout(LOCAL_LIMIT, end_with(&mut client, answer.as_bytes())).await;
            }
        }
    }
}

/// Reads a request and connects to what it asks for. Returns what the client has sent ahead as well.
async fn open(client: &mut TcpStream, routes: &watch::Receiver<Routes>) -> Result<(TcpStream, BytesMut), Refusal> {
    let (endpoint, early) = timeout(HEAD_LIMIT, read_head(client)).await.map_err(|_| Refusal::Late)??;
    let Some(port) = routes.borrow().port(&endpoint) else {
        return Err(Refusal::Foreign(endpoint));
    };
    let connecting = timeout(LOCAL_LIMIT, TcpStream::connect((Ipv4Addr::LOCALHOST, port))).await;
    let server = connecting.map_err(io::Error::from).flatten().and_then(|server| {
        server.set_nodelay(true)?;
        Ok(server)
    });
    Ok((server.map_err(|source| Refusal::NoTunnel { endpoint, source })?, early))
}

/// Reads the head of a request. Returns where it wants to go, and what comes after the head.
async fn read_head(client: &mut TcpStream) -> Result<(Destination, BytesMut), Refusal> {
    let mut buffer = BytesMut::with_capacity(1 << 10);
    loop {
        if client.read_buf(&mut buffer).await.map_err(|_| Refusal::Gone)? == 0 {
            return Err(Refusal::Gone);
        }
        let head = buffer.get(..MAX_HEAD_LEN).unwrap_or(&buffer);
        // Another protocol, TLS for one, would let both sides wait for the end of a head that never comes.
        match parse(head)? {
            Some((endpoint, len)) => {
                let early = buffer.split_off(len);
                return Ok((endpoint, early));
            }
            None if buffer.len() >= MAX_HEAD_LEN => return Err(Refusal::TooLong),
            None => {}
        }
    }
}

/// Reads a request's head, of which there may be more to come. What the headers say is of no matter. Returns where it wants
/// to go, and the length of the head.
fn parse(head: &[u8]) -> Result<Option<(Destination, usize)>, Refusal> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    let len = match request.parse(head) {
        Ok(httparse::Status::Complete(len)) => len,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(httparse::Error::TooManyHeaders) => return Err(Refusal::TooLong),
        Err(_) => return Err(Refusal::NotHttp),
    };
    if request.method != Some("CONNECT") {
        return Err(Refusal::Method);
    }
    let endpoint = request.path.and_then(authority).ok_or(Refusal::Target)?;
    Ok(Some((endpoint, len)))
}

/// Reads `host:port`, with brackets around an IPv6 address and only there.
fn authority(text: &str) -> Option<Destination> {
    let (host, port) = text.rsplit_once(':')?;
    let port = port.bytes().all(|byte| byte.is_ascii_digit()).then(|| port.parse().ok())??;
    let host = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(address) => address.parse::<std::net::Ipv6Addr>().ok()?.to_string(),
        None => host.to_owned(),
    };
    let is_host = |byte: u8| byte.is_ascii_alphanumeric() || b"-._:".contains(&byte);
    let bare_v6 = host.contains(':') && !text.starts_with('[');
    (port != 0 && !host.is_empty() && host.bytes().all(is_host) && !bare_v6).then_some(Destination { host, port })
}

/// Tells the client that it is through, and copies until both directions have ended.
async fn join(client: &mut TcpStream, mut server: TcpStream, early: &[u8]) -> io::Result<()> {
    client.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await?;
    server.write_all(early).await?;
    copy_bidirectional_with_sizes(client, &mut server, COPY_LEN, COPY_LEN).await?;
    Ok(())
}

/// Writes an answer so that it arrives: a socket that is closed with something unread resets the connection.
async fn end_with(client: &mut TcpStream, answer: &[u8]) -> io::Result<()> {
    client.write_all(answer).await?;
    client.shutdown().await?;
    let mut rest = [0; 1 << 10];
    let mut left = MAX_HEAD_LEN;
    while left > 0 {
        match client.read(&mut rest).await? {
            0 => break,
            len => left = left.saturating_sub(len),
        }
    }
    Ok(())
}

/// Why a request leads nowhere.
#[derive(Debug)]
enum Refusal {
    /// It is not HTTP/1.1, or its first line is malformed.
    NotHttp,
    /// It wants something else than CONNECT.
    Method,
    /// It does not say a host and a port.
    Target,
    /// The endpoint is none of ours.
    Foreign(Destination),
    /// The head has too many bytes.
    TooLong,
    /// The head took too long.
    Late,
    /// Too many connections are open.
    TooMany,
    /// The tunnel's port takes no connection.
    NoTunnel {
        endpoint: Destination,
        source: io::Error,
    },
    Gone,
}

impl Refusal {
    /// Returns the answer; there is none for a client that has gone.
    fn answer(&self) -> Option<String> {
        let (status, headers) = match self {
            Self::NotHttp | Self::Target => ("400 Bad Request", ""),
            Self::Method => ("405 Method Not Allowed", "Allow: CONNECT\r\n"),
            Self::Foreign(_) => ("403 Forbidden", ""),
            Self::TooLong => ("431 Request Header Fields Too Large", ""),
            Self::Late => ("408 Request Timeout", ""),
            Self::TooMany => ("503 Service Unavailable", ""),
            Self::NoTunnel { .. } => ("502 Bad Gateway", ""),
            Self::Gone => return None,
        };
        let body = format!("{self}\n");
        Some(format!(
            "HTTP/1.1 {status}\r\n{headers}Content-Type: text/plain\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
            body.len()
        ))
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotHttp => f.write_str("this is a proxy that takes `CONNECT host:port HTTP/1.1` and nothing else"),
            Self::Method => f.write_str("this proxy takes the method CONNECT only"),
            Self::Target => f.write_str("the target of CONNECT has to be a host and a port"),
            Self::Foreign(endpoint) => {
                write!(f, "`{endpoint}` is not the endpoint of a cluster that autoheal-pa has a tunnel to")
            }
            Self::TooLong => {
                write!(f, "the head of the request has more than {MAX_HEAD_LEN} bytes or {MAX_HEADERS} headers")
            }
            Self::Late => write!(f, "the head of the request was not complete within {} s", HEAD_LIMIT.as_secs()),
            Self::TooMany => write!(f, "this proxy has {MAX_CONNECTIONS} connections already"),
            Self::NoTunnel { endpoint, source } => {
                write!(f, "the tunnel to `{endpoint}` accepts no connections: {source}")
            }
            Self::Gone => f.write_str("the client has gone"),
        }
    }
}
