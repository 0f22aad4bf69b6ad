//! The proxy with clients and tunnels of its own on loopback.

use std::{future::Future, net::SocketAddr};

use proptest::prelude::*;
use tokio::net::TcpListener;

use super::*;
use crate::tunnel::Admission;

const HOST: &str = "ABC.gr7.us-east-1.eks.amazonaws.com";

/// A proxy, and what stands for the tunnel to [`HOST`].
struct Lab {
    proxy: SocketAddr,
    tunnel: TcpListener,
    routes: watch::Sender<Routes>,
    stop: CancellationToken,
    serving: JoinSet<()>,
}

impl Lab {
    async fn start() -> Self {
        Self::with(MAX_CONNECTIONS).await
    }

    async fn with(max_connections: usize) -> Self {
        let tunnel = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = tunnel.local_addr().unwrap().port();
        let routes = watch::Sender::new([(destination(HOST, 443), port)].into_iter().collect());
        let listeners = Listeners::bind(0, 1, false, Admission::owner()).unwrap().listeners.remove(0);
        let proxy = SocketAddr::from((Ipv4Addr::LOCALHOST, listeners.port()));
        let stop = CancellationToken::new();
        let mut serving = JoinSet::new();
        serving.spawn(serve_up_to(max_connections, listeners, routes.subscribe(), stop.clone()));
        Self { proxy, tunnel, routes, stop, serving }
    }

    async fn client(&self) -> TcpStream {
        TcpStream::connect(self.proxy).await.unwrap()
    }

    /// Sends a request, and returns all of the answer.
    async fn ask(&self, request: impl AsRef<[u8]>) -> String {
        let mut client = self.client().await;
        client.write_all(request.as_ref()).await.unwrap();
        everything(&mut client).await
    }

    /// A client that is through, and the tunnel's end.
    async fn pair(&self) -> (TcpStream, TcpStream) {
        let mut client = self.client().await;
        client.write_all(connect(HOST, 443).as_bytes()).await.unwrap();
        let (server, _) = self.tunnel.accept().await.unwrap();
        let mut answer = [0; ESTABLISHED.len()];
        client.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, ESTABLISHED);
        (client, server)
    }
}

const ESTABLISHED: &[u8; 39] = b"HTTP/1.1 200 Connection established\r\n\r\n";

fn destination(host: &str, port: u16) -> Destination {
    Destination { host: host.to_owned(), port }
}

fn connect(host: &str, port: u16) -> String {
    format!("CONNECT {host}:{port} HTTP/1.1\r\nHost: {host}:{port}\r\nUser-Agent: test\r\n\r\n")
}

async fn everything(stream: &mut TcpStream) -> String {
    let mut text = Vec::new();
    stream.read_to_end(&mut text).await.unwrap();
    String::from_utf8(text).unwrap()
}

/// Everything here is on this machine, so that a minute is for ever.
async fn in_time<F: Future>(future: F) -> F::Output {
    timeout(Duration::from_secs(60), future).await.expect("it hangs")
}

fn run<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(in_time(future))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    /// Whatever goes in on one side comes out on the other, and an end on one side leaves the other way open.
    #[test]
    fn carries_bytes_both_ways(
        up in proptest::collection::vec(any::<u8>(), 0..200_000),
        down in proptest::collection::vec(any::<u8>(), 0..200_000),
    ) {
        run(async {
            let lab = Lab::start().await;
            let (mut client, mut server) = lab.pair().await;
            let mut received = Vec::new();
            let sent = async {
                client.write_all(&up).await.unwrap();
                client.shutdown().await.unwrap();
            };
            let (received_up, ()) = tokio::join!(server.read_to_end(&mut received), sent);
            received_up.unwrap();
            assert!(received == up, "what went up has changed");

            let mut received = Vec::new();
            let sent = async {
                server.write_all(&down).await.unwrap();
                server.shutdown().await.unwrap();
            };
            let (received_down, ()) = tokio::join!(client.read_to_end(&mut received), sent);
            received_down.unwrap();
            assert!(received == down, "what came down has changed");
        });
    }

    #[test]
    fn no_head_panics(head in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _outcome = parse(&head);
    }

    #[test]
    fn an_endpoint_is_read_as_it_is_written(host in "[a-zA-Z0-9.-]{1,40}", port in 1..=u16::MAX) {
        prop_assert_eq!(authority(&format!("{host}:{port}")), Some(Destination { host, port }));
    }
}

#[tokio::test]
async fn passes_on_what_comes_with_the_head() {
    let lab = Lab::start().await;
    let mut client = lab.client().await;
    // A head in pieces, the last of them with more behind it.
    let request = format!("{}early", connect(&HOST.to_lowercase(), 443));
    for piece in request.as_bytes().chunks(7) {
        client.write_all(piece).await.unwrap();
    }
    let (mut server, _) = in_time(lab.tunnel.accept()).await.unwrap();
    let mut early = [0; 5];
    in_time(server.read_exact(&mut early)).await.unwrap();
    assert_eq!(&early, b"early");
}

#[tokio::test]
async fn a_reset_stays_a_reset() {
    let lab = Lab::start().await;
    let (mut client, server) = in_time(lab.pair()).await;
    server.set_zero_linger().unwrap();
    drop(server);
    let error = in_time(client.read_u8()).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn refuses_everything_but_the_endpoints() {
    let lab = Lab::start().await;
    let port = lab.tunnel.local_addr().unwrap().port();
    for target in [
        "example.com:443",
        &format!("{HOST}:80"),
        &format!("{HOST}.:443"),
        &format!("x{HOST}:443"),
        &format!("127.0.0.1:{port}"),
        &format!("localhost:{port}"),
        &format!("[::1]:{port}"),
        "169.254.169.254:80",
    ] {
        let answer = in_time(lab.ask(format!("CONNECT {target} HTTP/1.1\r\n\r\n"))).await;
        assert!(answer.starts_with("HTTP/1.1 403 Forbidden\r\n"), "{target}: {answer}");
        let body = format!("`{target}` is not the endpoint of a cluster that autoheal-pa has a tunnel to\n");
        assert!(answer.ends_with(&format!("\r\n\r\n{body}")), "{answer}");
    }
    assert!(timeout(Duration::ZERO, lab.tunnel.accept()).await.is_err(), "the tunnel was dialled");
}

#[tokio::test]
async fn refuses_what_is_no_connect() {
    let lab = Lab::start().await;
    let long = format!("CONNECT {HOST}:443 HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(MAX_HEAD_LEN));
    let unending = format!("CONNECT {HOST}:443 HTTP/1.1\r\nX: {}", "x".repeat(MAX_HEAD_LEN));
    for (request, status) in [
        ("GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", "405 Method Not Allowed\r\nAllow: CONNECT"),
        ("GET http://x/ HTTP/1.1\r\n\r\n", "405 Method Not Allowed"),
        ("POST / HTTP/1.0\r\n\r\n", "405 Method Not Allowed"),
        ("OPTIONS * HTTP/1.1\r\n\r\n", "405 Method Not Allowed"),
        ("connect a:443 HTTP/1.1\r\n\r\n", "405 Method Not Allowed"),
        ("CONNECT a:443 HTTP/2\r\n\r\n", "400 Bad Request"),
        ("CONNECT a:443\r\n\r\n", "400 Bad Request"),
        ("CONNECT  a:443 HTTP/1.1\r\n\r\n", "400 Bad Request"),
        ("CONNECT a HTTP/1.1\r\n\r\n", "400 Bad Request"),
        ("CONNECT a: HTTP/1.1\r\n\r\n", "400 Bad Request"),
        ("CONNECT :443 HTTP/1.1\r\n\r\n", "400 Bad Request"),
        ("CONNECT a:0 HTTP/1.1\r\n\r\n", "400 Bad Request"),
        ("CONNECT a:+443 HTTP/1.1\r\n\r\n", "400 Bad Request"),
        ("CONNECT a:65536 HTTP/1.1\r\n\r\n", "400 Bad Request"),
        ("CONNECT ::1:443 HTTP/1.1\r\n\r\n", "400 Bad Request"),
        ("CONNECT [a]:443 HTTP/1.1\r\n\r\n", "400 Bad Request"),
        ("CONNECT https://a:443 HTTP/1.1\r\n\r\n", "400 Bad Request"),
        ("CONNECT u@a:443 HTTP/1.1\r\n\r\n", "400 Bad Request"),
        ("\x16\x03\x01\x02\x00\x01\x00", "400 Bad Request"),
        (&long, "431 Request Header Fields Too Large"),
        (&unending, "431 Request Header Fields Too Large"),
    ] {
        let answer = in_time(lab.ask(request)).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}\r\n")), "{request:?}: {answer}");
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(&format!("Content-Length: {}\r\n", body.len())), "{answer}");
        assert_eq!(body.matches('\n').count(), 1, "{answer}");
    }
    assert!(timeout(Duration::ZERO, lab.tunnel.accept()).await.is_err(), "the tunnel was dialled");
}

#[tokio::test(start_paused = true)]
async fn a_head_that_does_not_end_is_waited_for_so_long() {
    let lab = Lab::start().await;
    // Nothing else goes on, so that the clock moves to the proxy's limit at once.
    let mut client = lab.client().await;
    client.write_all(b"CONNECT ").await.unwrap();
    let answer = everything(&mut client).await;
    assert!(answer.starts_with("HTTP/1.1 408 Request Timeout\r\n"), "{answer}");
}

#[tokio::test]
async fn says_that_a_tunnel_is_closed() {
    let lab = Lab::start().await;
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = closed.local_addr().unwrap().port();
    drop(closed);
    lab.routes.send_replace([(destination("10.0.0.1", 6443), port)].into_iter().collect());
    let answer = in_time(lab.ask(connect("10.0.0.1", 6443))).await;
    assert!(answer.starts_with("HTTP/1.1 502 Bad Gateway\r\n"), "{answer}");
    assert!(answer.contains("the tunnel to `10.0.0.1:6443` accepts no connections: "), "{answer}");
}

#[tokio::test]
async fn routes_change_for_new_connections_only() {
    let lab = Lab::start().await;
    let (mut old, mut old_server) = in_time(lab.pair()).await;
    let port = lab.tunnel.local_addr().unwrap().port();
    lab.routes.send_replace([(destination("FD00:0::1", 443), port)].into_iter().collect());
    let answer = in_time(lab.ask(connect(HOST, 443))).await;
    assert!(answer.starts_with("HTTP/1.1 403 "), "{answer}");

    let mut new = lab.client().await;
    new.write_all(connect("[fd00::1]", 443).as_bytes()).await.unwrap();
    let (_server, _) = in_time(lab.tunnel.accept()).await.unwrap();

    old.write_all(b"still here").await.unwrap();
    let mut bytes = [0; 10];
    in_time(old_server.read_exact(&mut bytes)).await.unwrap();
    assert_eq!(&bytes, b"still here");
}

#[tokio::test]
async fn there_is_an_end_to_connections() {
    let lab = Lab::with(2).await;
    let first = in_time(lab.pair()).await;
    let _second = in_time(lab.pair()).await;
    let answer = in_time(everything(&mut lab.client().await)).await;
    assert!(answer.starts_with("HTTP/1.1 503 Service Unavailable\r\n"), "{answer}");
    drop(first);
    // The place is free when the proxy has noticed.
    in_time(async {
        loop {
            let mut client = lab.client().await;
            client.write_all(connect(HOST, 443).as_bytes()).await.unwrap();
            let mut status = [0; 12];
            if client.read_exact(&mut status).await.is_ok() && status.ends_with(b"200") {
                break;
            }
        }
    })
    .await;
}

#[tokio::test]
async fn a_stop_closes_everything() {
    let mut lab = Lab::start().await;
    let (mut client, _server) = in_time(lab.pair()).await;
    let mut half = lab.client().await;
    half.write_all(b"CONNECT").await.unwrap();
    lab.stop.cancel();
    in_time(lab.serving.join_next()).await.unwrap().unwrap();
    assert!(matches!(in_time(client.read(&mut [0; 8])).await, Ok(0) | Err(_)));
    assert!(TcpStream::connect(lab.proxy).await.is_err());
}
