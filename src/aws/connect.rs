//! The connection under a WebSocket: TCP, through a proxy where the environment says so, and TLS.
//!
//! Proxies are chosen as for the SDK's calls (`routes`): a `wss` URL is asked for as `https`, a `ws` URL as `http`. Every
//! proxy is used with CONNECT.

use std::{
    io,
    net::SocketAddr,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures_util::future::{BoxFuture, Ready, ready};
use http::{HeaderValue, Uri};
use hyper_util::{
    client::legacy::connect::{
        HttpConnector,
        dns::{GaiResolver, Name},
        proxy::Tunnel,
    },
    rt::TokioIo,
};
use rustls::pki_types::ServerName;
#[cfg(target_os = "linux")]
use socket2::SockRef;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tower_service::Service;

use super::{
    endpoint::Gateway,
    error::place,
    outbound::wants_authorization,
    routes::{ProxyError, Routes, Way, is_inside},
    tls::Tls,
};
use crate::{cluster::Destination, fault::BoxError, util::connection::Connection};

/// Limit of one TCP connection, over all addresses of the host.
const TCP_LIMIT: Duration = Duration::from_secs(10);

/// How long a connection says nothing before it is asked whether it is still there.
const KEEPALIVE: Duration = Duration::from_secs(30);

/// How often it is asked again, and how many times, before it counts as lost: after a minute together.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_RETRIES: u32 = 3;

/// Bytes that the kernel takes beyond what the other end and the line let it send: a tenth of a second on a line of 160 kB/s.
#[cfg(target_os = "linux")]
const UNSENT: u32 = 16 << 10;

/// Opens connections for WebSockets, and to API servers.
#[derive(Debug)]
pub(crate) struct Connector {
    routes: Arc<Routes>,
    tls: Tls,
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectError {
    /// The name cannot be resolved, or no address answers.
    #[error("no TCP connection to `{peer}`")]
    Tcp {
        /// Host and port.
        peer: String,
        #[source]
        source: BoxError,
    },
    /// The proxy does not open a tunnel.
    #[error("the proxy `{proxy}` does not connect to `{peer}`")]
    Proxy {
        /// Host and port of the proxy.
        proxy: String,
        /// Host and port that were to be reached.
        peer: String,
        #[source]
        source: BoxError,
    },
    /// The peer's certificate is not trusted, or the peer does not speak TLS.
    #[error("no TLS connection to `{peer}`")]
    Tls {
        peer: String,
        #[source]
        source: BoxError,
    },
    /// It is this machine, or where it gets metadata and credentials, which is nobody else's business.
    #[error("`{peer}` is this machine or its metadata service, which other users are not connected to")]
    Inside { peer: String },
}

/// For whom a connection is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum For {
    /// This program's own user, who may connect to everything here anyway.
    Owner,
    /// Perhaps others, who are led to other machines alone, whatever their names resolve to.
    Anybody,
}

/// A connection for one request of plain HTTP.
pub(crate) struct Hop {
    pub(crate) connection: Box<dyn Connection>,
    /// The proxy at its other end, which has to be told the whole URL.
    pub(crate) proxy: Option<HopProxy>,
}

/// A proxy that is asked in plain HTTP.
#[derive(Debug)]
pub(crate) struct HopProxy {
    /// What it wants to know of who calls.
    pub(crate) authorization: Option<HeaderValue>,
    /// Why it does not answer, if it does not take that.
    pub(crate) refusal: ProxyError,
}

impl Connector {
    pub(super) fn new(routes: Arc<Routes>, tls: Tls) -> Self {
        Self { routes, tls }
    }

    /// Opens a connection to a gateway.
    ///
    /// # Errors
    /// See [`ConnectError`].
    pub(crate) async fn connect(&self, gateway: &Gateway) -> Result<Box<dyn Connection>, ConnectError> {
        let destination = Uri::builder()
            .scheme(if gateway.is_secure() { "https" } else { "http" })
            .authority(gateway.authority())
            .path_and_query("/")
            .build()
            .map_err(|error| ConnectError::Tcp { peer: gateway.authority().to_owned(), source: error.into() })?;
        let stream: Box<dyn Connection> = match self.routes.of(&destination) {
            Some(way) => self.tunnel(&way, host_and_port(gateway)).await?,
            None => Box::new(tcp(&destination).await?),
        };
        if gateway.is_secure() { self.secure(stream, gateway.host()).await } else { Ok(stream) }
    }

    /// Opens a connection to a host that is not of AWS, as an API server's: TCP alone, through a proxy where the
    /// environment has one for it.
    ///
    /// # Errors
    /// See [`ConnectError`].
    pub(crate) async fn reach(&self, to: &Destination, whom: For) -> Result<Box<dyn Connection>, ConnectError> {
        let destination = url("https", to)?;
        match self.routes.of(&destination) {
            Some(way) => self.tunnel(&way, to.to_string()).await,
            None => Ok(Box::new(direct(&destination, whom).await?)),
        }
    }

    /// Opens a connection for one request of plain HTTP to a host, through a proxy where the environment has one for it.
    ///
    /// # Errors
    /// See [`ConnectError`].
    pub(crate) async fn reach_plain(&self, to: &Destination, whom: For) -> Result<Hop, ConnectError> {
        let destination = url("http", to)?;
        match self.routes.of(&destination) {
            Some(way) => {
                let authorization = way.intercept.basic_auth().cloned();
                let refusal = way.refusal(Vec::new());
                let connection = self.proxy(way.intercept.uri()).await?;
                Ok(Hop { connection, proxy: Some(HopProxy { authorization, refusal }) })
            }
            None => Ok(Hop { connection: Box::new(direct(&destination, whom).await?), proxy: None }),
        }
    }

    /// Opens a connection to a host that is reached without a proxy, as SSH servers are: proxies are for the web, and few connect to
    /// other ports.
    ///
    /// # Errors
    /// See [`ConnectError`].
    pub(crate) async fn plain(&self, to: &Destination) -> Result<Box<dyn Connection>, ConnectError> {
        Ok(Box::new(tcp(&url("ssh", to)?).await?))
    }

    /// Has a proxy connect to `peer`, a host and a port.
    async fn tunnel(&self, way: &Way<'_>, peer: String) -> Result<Box<dyn Connection>, ConnectError> {
        let (name, proxy) = (way.name(), way.intercept.uri());
        let failed = |source| ConnectError::Proxy { proxy: name.clone(), peer: peer.clone(), source };
        let stream = self.proxy(proxy).await?;
        let destination: Uri = peer.parse().map_err(|error: http::uri::InvalidUri| failed(error.into()))?;
        let mut tunnel = Tunnel::new(proxy.clone(), Opened(Some(TokioIo::new(stream))));
        if let Some(authorization) = way.intercept.basic_auth() {
            tunnel = tunnel.with_auth(authorization.clone());
        }
        tracing::debug!(proxy = name, peer, "opening a tunnel through the proxy");
        let stream = tunnel.call(destination).await.map_err(|error| {
            failed(if wants_authorization(&error) { way.refusal(Vec::new()).into() } else { error.into() })
        })?;
        Ok(stream.into_inner())
    }

    /// Connects to a proxy.
    async fn proxy(&self, proxy: &Uri) -> Result<Box<dyn Connection>, ConnectError> {
        let stream = Box::new(tcp(proxy).await?);
        if proxy.scheme_str() == Some("https") {
            self.secure(stream, proxy.host().unwrap_or_default().trim_matches(['[', ']'])).await
        } else {
            Ok(stream)
        }
    }

    async fn secure(&self, stream: Box<dyn Connection>, host: &str) -> Result<Box<dyn Connection>, ConnectError> {
        let failed = |source| ConnectError::Tls { peer: host.to_owned(), source };
        let config = self.tls.config().map_err(|error| failed(error.into()))?;
        let name = ServerName::try_from(host.to_owned()).map_err(|error| failed(error.into()))?;
        let stream = TlsConnector::from(config).connect(name, stream).await.map_err(|error| failed(error.into()))?;
        Ok(Box::new(stream))
    }
}

fn host_and_port(gateway: &Gateway) -> String {
    Destination { host: gateway.host().to_owned(), port: gateway.port() }.to_string()
}

fn url(scheme: &str, to: &Destination) -> Result<Uri, ConnectError> {
    let peer = to.to_string();
    let failed = |error: http::uri::InvalidUri| ConnectError::Tcp { peer: peer.clone(), source: error.into() };
    format!("{scheme}://{peer}/").parse().map_err(failed)
}

/// Connects without a proxy, where the other end may be led to.
async fn direct(destination: &Uri, whom: For) -> Result<TcpStream, ConnectError> {
    if whom == For::Owner {
        return tcp(destination).await;
    }
    // An address is not looked up.
    let host = destination.host().unwrap_or_default().trim_matches(['[', ']']);
    if host.parse().is_ok_and(is_inside) {
        return Err(ConnectError::Inside { peer: destination.authority().map(place).unwrap_or_default() });
    }
    tcp_by(HttpConnector::new_with_resolver(Outside(GaiResolver::new())), destination).await
}

/// Connects to whichever address of the host answers first, both families at once.
async fn tcp(destination: &Uri) -> Result<TcpStream, ConnectError> {
    tcp_by(HttpConnector::new(), destination).await
}

async fn tcp_by<R>(mut connector: HttpConnector<R>, destination: &Uri) -> Result<TcpStream, ConnectError>
where
    HttpConnector<R>: Service<Uri, Response = TokioIo<TcpStream>, Error: Into<BoxError>>,
{
    connector.enforce_http(false);
    connector.set_nodelay(true);
    connector.set_connect_timeout(Some(TCP_LIMIT));
    // A peer that vanishes is found, though nothing is said.
    connector.set_keepalive(Some(KEEPALIVE));
    connector.set_keepalive_interval(Some(KEEPALIVE_INTERVAL));
    connector.set_keepalive_retries(Some(KEEPALIVE_RETRIES));
    let failed = |source: BoxError| {
        let peer = destination.authority().map(place).unwrap_or_default();
        ConnectError::Tcp { peer, source }
    };
    std::future::poll_fn(|cx| connector.poll_ready(cx)).await.map_err(|error| failed(error.into()))?;
    let stream = connector.call(destination.clone()).await.map_err(|error| failed(error.into()))?.into_inner();
    hold_little(&stream);
    Ok(stream)
}

/// Has the kernel take little that it cannot send yet: what is urgent goes before what waits here, and not before what waits
/// there, which may be megabytes on a slow line.
#[cfg(target_os = "linux")]
fn hold_little(stream: &TcpStream) {
    // A kernel that does not know it holds more, and works.
    let _outcome = SockRef::from(stream).set_tcp_notsent_lowat(UNSENT);
}

#[cfg(not(target_os = "linux"))]
fn hold_little(_stream: &TcpStream) {}

/// Looks names up, and leaves out what is inside this machine.
#[derive(Clone)]
struct Outside(GaiResolver);

impl Service<Name> for Outside {
    type Response = std::vec::IntoIter<SocketAddr>;
    type Error = io::Error;
    type Future = BoxFuture<'static, io::Result<Self::Response>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, name: Name) -> Self::Future {
        let found = self.0.call(name);
        Box::pin(async move {
            let outside: Vec<_> = found.await?.filter(|address| !is_inside(address.ip())).collect();
            if outside.is_empty() {
                return Err(io::Error::other("it is this machine, which other users are not connected to"));
            }
            Ok(outside.into_iter())
        })
    }
}

/// A connector that gives the connection that is there already, once.
struct Opened(Option<TokioIo<Box<dyn Connection>>>);

impl Service<Uri> for Opened {
    type Response = TokioIo<Box<dyn Connection>>;
    type Error = io::Error;
    type Future = Ready<Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _proxy: Uri) -> Self::Future {
        ready(self.0.take().ok_or_else(|| io::ErrorKind::NotConnected.into()))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional},
        net::TcpListener,
        task::JoinSet,
    };

    use super::*;
    use crate::{
        aws::{endpoint::GatewayPolicy, testing::in_time},
        closed_port::ClosedPort,
        secret::Secret,
        settings::{Proxies, Proxy},
        util::peer_text::sentence,
    };

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn the_kernel_takes_little_that_it_cannot_send() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let to = Destination { host: "127.0.0.1".to_owned(), port: listener.local_addr().unwrap().port() };
        let stream = in_time(tcp(&url("http", &to).unwrap())).await.unwrap();
        assert_eq!(SockRef::from(&stream).tcp_notsent_lowat().unwrap(), UNSENT);
    }

    async fn gateway(url: &str) -> Gateway {
        GatewayPolicy::new("us-east-1", true, Some("http://127.0.0.1"))
            .await
            .unwrap()
            .check(url)
            .unwrap()
            .gateway()
            .clone()
    }

    /// A connector with a proxy for one kind of URL, or without any.
    fn connector(kind: &str, url: &str) -> Connector {
        Connector::new(routes(kind, url), Tls::new(None))
    }

    fn routes(kind: &str, url: &str) -> Arc<Routes> {
        let has_user = url.contains('@');
        let proxy = |wanted: &str| {
            let variable = "HTTPS_PROXY";
            (wanted == kind).then(|| Proxy { url: Secret::new(url.to_owned()), has_user, variable })
        };
        Arc::new(Routes::new(Proxies { http: proxy("http"), https: proxy("https"), except: String::new() }))
    }

    /// Connects through the proxy, to this machine too.
    async fn through(connector: &Connector, gateway: &Gateway) -> Result<Box<dyn Connection>, ConnectError> {
        let elsewhere = format!("{}://elsewhere.example/", if gateway.is_secure() { "https" } else { "http" });
        let way = connector.routes.of(&elsewhere.parse().unwrap()).unwrap();
        let stream = connector.tunnel(&way, host_and_port(gateway)).await?;
        if gateway.is_secure() { connector.secure(stream, gateway.host()).await } else { Ok(stream) }
    }

    /// Echoes on every connection.
    async fn echo(tasks: &mut JoinSet<()>) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tasks.spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut buffer = [0; 64];
                while let Ok(len @ 1..) = stream.read(&mut buffer).await {
                    stream.write_all(&buffer[..len]).await.unwrap();
                }
            }
        });
        port
    }

    /// A proxy that notes the heads of requests, and answers with `status`.
    async fn proxy(tasks: &mut JoinSet<()>, status: &'static str) -> (u16, Arc<Mutex<Vec<String>>>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let heads = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&heads);
        tasks.spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(stream.read_u8().await.unwrap());
                }
                let head = String::from_utf8(head).unwrap();
                let peer = head.split(' ').nth(1).unwrap().to_owned();
                seen.lock().unwrap().push(head);
                stream.write_all(format!("HTTP/1.1 {status}\r\n\r\n").as_bytes()).await.unwrap();
                if status.starts_with("200") {
                    let mut upstream = TcpStream::connect(peer).await.unwrap();
                    let _ended = copy_bidirectional(&mut stream, &mut upstream).await;
                }
            }
        });
        (port, heads)
    }

    async fn echoes(mut stream: Box<dyn Connection>) {
        stream.write_all(b"hello").await.unwrap();
        let mut answer = [0; 5];
        in_time(stream.read_exact(&mut answer)).await.unwrap();
        assert_eq!(&answer, b"hello");
    }

    #[tokio::test]
    async fn goes_through_the_proxy_with_credentials() {
        let mut tasks = JoinSet::new();
        let port = echo(&mut tasks).await;
        let (proxy_port, heads) = proxy(&mut tasks, "200 OK").await;
        let connector = connector("http", &format!("http://ann:pa%20ss@127.0.0.1:{proxy_port}"));
        let gateway = gateway(&format!("ws://127.0.0.1:{port}/x?y")).await;
        echoes(in_time(through(&connector, &gateway)).await.unwrap()).await;
        assert_eq!(
            *heads.lock().unwrap(),
            [format!(
                "CONNECT 127.0.0.1:{port} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nProxy-Authorization: Basic YW5uOnBhIHNz\r\n\r\n"
            )]
        );
    }

    #[tokio::test]
    async fn this_machine_is_not_called_through_the_proxy() {
        let mut tasks = JoinSet::new();
        let port = echo(&mut tasks).await;
        let (proxy_port, heads) = proxy(&mut tasks, "200 OK").await;
        let connector = connector("http", &format!("http://127.0.0.1:{proxy_port}"));
        echoes(in_time(connector.connect(&gateway(&format!("ws://127.0.0.1:{port}/")).await)).await.unwrap()).await;
        assert!(heads.lock().unwrap().is_empty());
    }

    #[tokio::test]
    async fn names_the_proxy_that_fails() {
        let mut tasks = JoinSet::new();
        for (user, status, expected) in [
            ("", "407 No", "requires a user name and password, but `HTTPS_PROXY` has none"),
            ("u:secret@", "407 No", "rejects the user name and password in `HTTPS_PROXY`"),
            ("u:secret@", "403 No", "tunnel error: unsuccessful"),
        ] {
            let (port, _) = proxy(&mut tasks, status).await;
            let connector = connector("https", &format!("http://{user}127.0.0.1:{port}"));
            let gateway = gateway("wss://ssmmessages.us-east-1.amazonaws.com/x").await;
            let Err(error) = in_time(connector.connect(&gateway)).await else { panic!("connected") };
            let said = sentence(&error);
            let start =
                format!("the proxy `127.0.0.1:{port}` does not connect to `ssmmessages.us-east-1.amazonaws.com:443`: ");
            assert!(said.starts_with(&start) && said.ends_with(expected), "{said}");
            assert!(!said.contains("secret"), "{said}");
        }
    }

    #[tokio::test]
    async fn says_that_nobody_listens() {
        let closed = ClosedPort::new();
        let gateway = gateway(&format!("ws://{}/", closed.address())).await;
        let Err(error) = in_time(connector("", "").connect(&gateway)).await else { panic!("connected") };
        assert!(sentence(&error).contains("Connection refused"), "{}", sentence(&error));
    }

    #[cfg(feature = "demo")]
    #[tokio::test]
    async fn trusts_the_bundle_and_nobody_else() {
        use crate::aws::{bundle::Bundle, testing::tls_acceptor};

        let (acceptor, certificate) = tls_acceptor(&[b"h2", b"http/1.1"]);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                if let Ok(mut stream) = acceptor.accept(stream).await {
                    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
                    let mut buffer = [0; 5];
                    stream.read_exact(&mut buffer).await.unwrap();
                    stream.write_all(&buffer).await.unwrap();
                    stream.flush().await.unwrap();
                }
            }
        });
        let (proxy_port, heads) = proxy(&mut tasks, "200 OK").await;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ca.pem");
        std::fs::write(&path, certificate).unwrap();
        let bundle = Bundle::read(&path).await.unwrap();
        let gateway = gateway(&format!("wss://localhost:{port}/")).await;

        let Err(error) = in_time(connector("", "").connect(&gateway)).await else { panic!("connected") };
        assert!(sentence(&error).contains("invalid peer certificate"), "{}", sentence(&error));
        let proxied = routes("https", &format!("http://127.0.0.1:{proxy_port}"));
        let trusting = Connector::new(proxied, Tls::new(Some(&bundle)));
        echoes(in_time(trusting.connect(&gateway)).await.unwrap()).await;
        echoes(in_time(through(&trusting, &gateway)).await.unwrap()).await;
        assert!(heads.lock().unwrap()[0].starts_with(&format!("CONNECT localhost:{port} HTTP/1.1\r\n")));
    }
}
