//! The proxy with clients and tunnels of its own on loopback.

use std::{
    future::Future,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
};

use proptest::prelude::*;
use tokio::{net::TcpListener, sync::watch};

use super::{
    super::{
        names::Names,
        ways::{Counts, Others},
    },
    *,
};
use crate::{
    aws::{Aws, connect::For},
    secret::Secret,
    settings::{AwsSettings, Proxies, Proxy},
    tunnel::Admission,
    util::connection::Connection,
};

const HOST: &str = "ABC.gr7.us-east-1.eks.amazonaws.com";

/// A proxy, and what stands for the tunnel to [`HOST`].
struct Lab {
    proxy: SocketAddr,
    tunnel: TcpListener,
    names: watch::Sender<Names>,
    counts: Arc<Counts>,
    stop: CancellationToken,
    serving: JoinSet<()>,
}

impl Lab {
    async fn start() -> Self {
        Self::with(MAX_CONNECTIONS, Others::Refused).await
    }

    async fn with(max_connections: usize, others: Others) -> Self {
        let tunnel = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = tunnel.local_addr().unwrap().port();
        let names = watch::Sender::new([(destination(HOST, 443), port)].into_iter().collect());
        let listeners = Listeners::bind(0, 1, false, Admission::owner()).unwrap().listeners.remove(0);
        let proxy = SocketAddr::from((Ipv4Addr::LOCALHOST, listeners.port()));
        let stop = CancellationToken::new();
        let mut serving = JoinSet::new();
        let counts = Arc::<Counts>::default();
        let ways = Ways { names: names.subscribe(), others, counts: Arc::clone(&counts), audit: None, client: None };
        serving.spawn(serve_up_to(max_connections, listeners, ways, stop.clone()));
        Self { proxy, tunnel, names, counts, stop, serving }
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
        &format!("x{HOST}:443"),
        &format!("127.0.0.1:{port}"),
        &format!("localhost:{port}"),
        &format!("[::1]:{port}"),
        "169.254.169.254:80",
    ] {
        let answer = in_time(lab.ask(format!("CONNECT {target} HTTP/1.1\r\n\r\n"))).await;
        let said = format!(
            "no tunnel of autoheal-pa leads to `{target}`, there are those to `{}:443`: add it with `--forward {target}`, or let \
             `--proxy-others direct` connect to everything else",
            HOST.to_ascii_lowercase()
        );
        // Many clients show the first line and no more.
        assert!(answer.starts_with(&format!("HTTP/1.1 403 Forbidden: {said}\r\n")), "{target}: {answer}");
        assert!(answer.ends_with(&format!("\r\n\r\n{said}\n")), "{answer}");
        let plain = in_time(lab.ask(format!("GET http://{target}/ HTTP/1.1\r\nHost: {HOST}\r\n\r\n"))).await;
        assert!(
            plain.starts_with("HTTP/1.1 403 Forbidden\r\n") && plain.ends_with(&format!("\r\n\r\n{said}\n")),
            "{plain}"
        );
    }
    assert!(timeout(Duration::ZERO, lab.tunnel.accept()).await.is_err(), "the tunnel was dialled");
    assert_eq!((lab.counts.total(), lab.counts.refused()), (14, 14));
}

#[tokio::test]
async fn refuses_what_is_for_no_proxy() {
    let lab = Lab::start().await;
    let long = format!("CONNECT {HOST}:443 HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(MAX_HEAD_LEN));
    let unending = format!("CONNECT {HOST}:443 HTTP/1.1\r\nX: {}", "x".repeat(MAX_HEAD_LEN));
    for (request, status) in [
        // What a page in a browser can send.
        ("GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", "400 Bad Request"),
        (
            "POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 48\r\n\r\nGET http://wiki.internal/ HTTP/1.1\r\nHost: x\r\n\r\n",
            "400 Bad Request",
        ),
        ("OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n", "400 Bad Request"),
        ("GET https://x/ HTTP/1.1\r\nHost: x\r\n\r\n", "400 Bad Request"),
        ("GET http://x:0/ HTTP/1.1\r\nHost: x\r\n\r\n", "400 Bad Request"),
        ("connect a:443 HTTP/1.1\r\n\r\n", "400 Bad Request"),
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
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{request:?}: {answer}");
        assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{answer}");
    }
    assert!(timeout(Duration::ZERO, lab.tunnel.accept()).await.is_err(), "the tunnel was dialled");
}

/// Says hello in SOCKS5, wants a connection to a name, and returns the reply.
async fn socks(lab: &Lab, host: &str, port: u16) -> (TcpStream, [u8; 10]) {
    let mut client = lab.client().await;
    client.write_all(&[5, 2, 0, 2]).await.unwrap();
    let mut method = [0; 2];
    client.read_exact(&mut method).await.unwrap();
    assert_eq!(method, [5, 0]);
    let len = u8::try_from(host.len()).unwrap();
    client.write_all(&[&[5, 1, 0, 3, len], host.as_bytes(), &port.to_be_bytes()].concat()).await.unwrap();
    let mut reply = [0; 10];
    client.read_exact(&mut reply).await.unwrap();
    (client, reply)
}

#[tokio::test]
async fn socks_leads_to_the_tunnel_and_nowhere_else() {
    let lab = Lab::start().await;
    let (mut client, reply) = in_time(socks(&lab, HOST, 443)).await;
    assert_eq!(reply, [5, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    let (mut server, _) = in_time(lab.tunnel.accept()).await.unwrap();
    client.write_all(b"hello").await.unwrap();
    let mut bytes = [0; 5];
    in_time(server.read_exact(&mut bytes)).await.unwrap();
    assert_eq!(&bytes, b"hello");
    // A reset of the client's is one at the other end.
    client.set_zero_linger().unwrap();
    drop(client);
    assert_eq!(in_time(server.read_u8()).await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);

    for (host, port) in [("example.com", 443), (HOST, 80), ("127.0.0.1", 443)] {
        let (mut client, reply) = in_time(socks(&lab, host, port)).await;
        assert_eq!(reply[..2], [5, 2], "{host}:{port}");
        assert_eq!(in_time(client.read(&mut [0])).await.unwrap(), 0, "it is closed");
    }
}

/// A server that answers every request with what it got.
async fn mirror(tasks: &mut JoinSet<()>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tasks.spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await.unwrap());
            }
            if head.starts_with(b"POST") {
                let mut body = [0; 4];
                stream.read_exact(&mut body).await.unwrap();
                head.extend(body);
            }
            let answer =
                format!("HTTP/1.1 200 OK\r\nConnection: close\r\nX-Kept: 1\r\nContent-Length: {}\r\n\r\n", head.len());
            stream.write_all(&[answer.as_bytes(), &head].concat()).await.unwrap();
        }
    });
    address
}

/// Reads one answer, whose length its head says.
async fn answer(stream: &mut TcpStream) -> String {
    let mut text = Vec::new();
    while !text.ends_with(b"\r\n\r\n") {
        text.push(in_time(stream.read_u8()).await.unwrap());
    }
    let head = String::from_utf8(text.clone()).unwrap().to_ascii_lowercase();
    let len = head.split("content-length: ").nth(1).and_then(|rest| rest.lines().next()).unwrap().parse().unwrap();
    let mut body = vec![0; len];
    in_time(stream.read_exact(&mut body)).await.unwrap();
    text.extend(body);
    String::from_utf8(text).unwrap()
}

#[tokio::test]
async fn plain_http_is_relayed_request_by_request() {
    let (lab, mut tasks) = (Lab::start().await, JoinSet::new());
    let port = mirror(&mut tasks).await.port();
    lab.names.send_replace(
        [(destination("wiki.internal", 80), port), (destination("wiki.internal", 81), port)].into_iter().collect(),
    );
    // One connection, two hosts.
    let mut client = lab.client().await;
    let request = "GET http://wiki.internal/a?b HTTP/1.1\r\nHost: evil\r\nProxy-Connection: keep-alive\r\nProxy-Authorization: Basic eDp5\r\nX-Own: 1\r\n\r\n";
    client.write_all(request.as_bytes()).await.unwrap();
    let text = answer(&mut client).await;
    assert!(text.starts_with("HTTP/1.1 200 OK\r\n") && text.to_lowercase().contains("x-kept: 1\r\n"), "{text}");
    assert!(!text.split("\r\n\r\n").next().unwrap().to_lowercase().contains("connection: close"), "{text}");
    let seen = text.split_once("\r\n\r\n").unwrap().1.to_lowercase();
    assert!(seen.starts_with("get /a?b http/1.1\r\n") && seen.contains("host: wiki.internal\r\n"), "{seen}");
    assert!(seen.contains("connection: close\r\n") && seen.contains("x-own: 1\r\n"), "{seen}");
    assert!(!seen.contains("proxy-") && !seen.contains("evil"), "{seen}");

    client
        .write_all(b"POST http://wiki.internal:81/ HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nbody")
        .await
        .unwrap();
    let seen = answer(&mut client).await;
    assert!(seen.contains("POST / HTTP/1.1\r\n") && seen.ends_with("\r\n\r\nbody"), "{seen}");

    let refused = in_time(lab.ask("GET http://other.internal/ HTTP/1.0\r\n\r\n")).await;
    assert!(
        refused.starts_with("HTTP/1.0 403 Forbidden\r\n") && refused.contains("--forward other.internal:80"),
        "{refused}"
    );
}

/// An identity whose connections go through a proxy if there is one.
async fn aws(proxies: Proxies) -> Aws {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config");
    std::fs::write(&path, "[profile x]\naws_access_key_id = AKIDEXAMPLE\naws_secret_access_key = secret\n").unwrap();
    let settings = AwsSettings {
        profile: Some("x".to_owned()),
        region: Some("us-east-1".to_owned()),
        profile_files: [Some(path), None],
        proxies,
        ..AwsSettings::default()
    };
    Aws::new(&settings).await.unwrap()
}

#[tokio::test]
async fn other_names_are_connected_to_where_that_is_wanted() {
    let mut tasks = JoinSet::new();
    let address = mirror(&mut tasks).await;
    let lab = Lab::with(9, Others::Direct(aws(Proxies::default()).await, For::Owner)).await;
    let (mut client, reply) = in_time(socks(&lab, "localhost", address.port())).await;
    assert_eq!(reply[..2], [5, 0]);
    client.write_all(b"GET /socks HTTP/1.1\r\n\r\n").await.unwrap();
    assert!(answer(&mut client).await.contains("GET /socks"));
    let text = in_time(lab.ask(format!("GET http://{address}/plain HTTP/1.0\r\n\r\n"))).await;
    assert!(text.contains("GET /plain HTTP/1.1\r\n"), "{text}");

    let closed = crate::closed_port::ClosedPort::new();
    let (_client, reply) = in_time(socks(&lab, "127.0.0.1", closed.address().port())).await;
    assert_eq!(reply[..2], [5, 5], "refused");
    let text = in_time(lab.ask(connect("127.0.0.1", closed.address().port()))).await;
    assert!(text.starts_with("HTTP/1.1 502 Bad Gateway: cannot connect to `127.0.0.1:"), "{text}");

    // What is inside this machine is for its owner alone.
    let lab = Lab::with(9, Others::Direct(aws(Proxies::default()).await, For::Anybody)).await;
    for host in ["localhost", "127.0.0.1", "::1", "0.0.0.0", "169.254.169.254", "::ffff:127.0.0.1"] {
        let (_client, reply) = in_time(socks(&lab, host, address.port())).await;
        assert_eq!(reply[..2], [5, 4], "{host}");
    }
    let text = in_time(lab.ask(format!("GET http://localhost:{}/ HTTP/1.1\r\nHost: x\r\n\r\n", address.port()))).await;
    assert!(text.starts_with("HTTP/1.1 502 ") && text.contains("it is this machine"), "{text}");
}

/// A proxy of the environment's that notes the heads of requests and leads everything to one server.
async fn upstream(
    tasks: &mut JoinSet<()>,
    to: SocketAddr,
    status: &'static str,
) -> (u16, Arc<std::sync::Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let heads = Arc::new(std::sync::Mutex::new(Vec::new()));
    let seen = Arc::clone(&heads);
    tasks.spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await.unwrap());
            }
            let text = String::from_utf8(head.clone()).unwrap();
            seen.lock().unwrap().push(text.clone());
            if status != "200 OK" {
                stream.write_all(format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n").as_bytes()).await.unwrap();
                continue;
            }
            let mut server: Box<dyn Connection> = Box::new(TcpStream::connect(to).await.unwrap());
            if text.starts_with("CONNECT") {
                stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
            } else {
                server.write_all(&head).await.unwrap();
            }
            let _ended = tokio::io::copy_bidirectional(&mut stream, &mut server).await;
        }
    });
    (port, heads)
}

#[tokio::test]
async fn other_names_go_through_the_proxy_of_the_environment() {
    let mut tasks = JoinSet::new();
    let address = mirror(&mut tasks).await;
    let proxies = |port: u16| {
        let url = Secret::new(format!("http://ann:pa%20ss@127.0.0.1:{port}"));
        let proxy = Proxy { url, has_user: true, variable: "HTTPS_PROXY" };
        let except = format!("{address},.corp.example,203.0.113.0/24");
        Proxies { http: Some(proxy.clone()), https: Some(proxy), except }
    };
    let (port, heads) = upstream(&mut tasks, address, "200 OK").await;
    let lab = Lab::with(9, Others::Direct(aws(proxies(port)).await, For::Owner)).await;
    let mut client = lab.client().await;
    client.write_all(connect("sts.example", 443).as_bytes()).await.unwrap();
    let mut granted = [0; ESTABLISHED.len()];
    in_time(client.read_exact(&mut granted)).await.unwrap();
    client.write_all(b"GET /tunnel HTTP/1.1\r\n\r\n").await.unwrap();
    assert!(answer(&mut client).await.contains("GET /tunnel"));
    drop(client);
    // A request of plain HTTP is told it as it is.
    let text =
        in_time(lab.ask("GET http://wiki.example/plain HTTP/1.0\r\nProxy-Authorization: Basic bm86bm8=\r\n\r\n")).await;
    assert!(text.contains("GET http://wiki.example/plain HTTP/1.1\r\n"), "{text}");
    {
        let heads = heads.lock().unwrap();
        assert!(heads[0].starts_with("CONNECT sts.example:443 HTTP/1.1\r\n"), "{heads:?}");
        for head in heads.iter() {
            let basic = head.to_lowercase().matches("proxy-authorization: basic yw5uonbhihnz").count();
            assert_eq!((basic, head.contains("bm86bm8=")), (1, false), "{head}");
        }
    }

    // Its own refusal is not the client's matter.
    let (port, _) = upstream(&mut tasks, address, "407 Who").await;
    let lab = Lab::with(9, Others::Direct(aws(proxies(port)).await, For::Owner)).await;
    for request in [
        connect("sts.example", 443),
        "GET http://wiki.example/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".to_owned(),
    ] {
        let text = in_time(lab.ask(request)).await;
        assert!(text.starts_with("HTTP/1.1 502 Bad Gateway"), "{text}");
        assert!(
            text.contains("rejects the user name and password in `HTTPS_PROXY`") && !text.contains("pa%20ss"),
            "{text}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_head_that_does_not_end_is_waited_for_so_long() {
    let lab = Lab::start().await;
    // Nothing else goes on, so that the clock moves to the proxy's limit at once.
    let mut client = lab.client().await;
    client.write_all(b"CONNECT ").await.unwrap();
    let answer = everything(&mut client).await;
    assert!(answer.starts_with("HTTP/1.1 408 Request Timeout: "), "{answer}");
    // Nor is one of SOCKS5, nor of plain HTTP.
    let mut client = lab.client().await;
    client.write_all(&[5, 1, 0, 5, 1]).await.unwrap();
    let mut answer = Vec::new();
    client.read_to_end(&mut answer).await.unwrap();
    assert_eq!(answer[..4], [5, 0, 5, 1]);
    let mut client = lab.client().await;
    client.write_all(b"GET http://x/ HTTP/1.1\r\nHost:").await.unwrap();
    client.read_to_end(&mut Vec::new()).await.unwrap();
}

#[tokio::test]
async fn says_that_a_tunnel_is_closed() {
    let lab = Lab::start().await;
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = closed.local_addr().unwrap().port();
    drop(closed);
    lab.names.send_replace([(destination("10.0.0.1", 6443), port)].into_iter().collect());
    let answer = in_time(lab.ask(connect("10.0.0.1", 6443))).await;
    assert!(answer.starts_with("HTTP/1.1 502 Bad Gateway: "), "{answer}");
    assert!(answer.contains("the tunnel to `10.0.0.1:6443` accepts no connections: "), "{answer}");
}

#[tokio::test]
async fn routes_change_for_new_connections_only() {
    let lab = Lab::start().await;
    let (mut old, mut old_server) = in_time(lab.pair()).await;
    let port = lab.tunnel.local_addr().unwrap().port();
    lab.names.send_replace([(destination("FD00:0::1", 443), port)].into_iter().collect());
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
    let lab = Lab::with(2, Others::Refused).await;
    let first = in_time(lab.pair()).await;
    let _second = in_time(lab.pair()).await;
    let answer = in_time(everything(&mut lab.client().await)).await;
    assert!(answer.starts_with("HTTP/1.1 503 Service Unavailable: "), "{answer}");
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
