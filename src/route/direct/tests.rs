//! The way without a bastion, under a tunnel and on real sockets.

use std::net::{Ipv4Addr, SocketAddr};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::{mpsc, watch},
};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::{
    aws::testing::{aws_at, in_time},
    closed_port::ClosedPort,
    cluster::{Cluster, Destination, Origin},
    tunnel::{Admission, Common, Config, Listeners, Readiness, State, Tunnel, TunnelStatus},
};

/// A running tunnel to this address, with other routes before the one without a bastion.
struct World {
    status: watch::Receiver<TunnelStatus>,
    address: SocketAddr,
    stop: CancellationToken,
    tasks: JoinSet<()>,
}

impl World {
    async fn start(endpoint: SocketAddr, before: Vec<Arc<dyn Route>>) -> Self {
        let aws = aws_at("http://127.0.0.1:1".to_owned(), ["AKID", "secret", ""].map(str::to_owned)).await;
        let cluster = Cluster {
            name: "demo".into(),
            region: "eu-west-1".into(),
            account: "123456789012".into(),
            id: String::new(),
            endpoint: Destination { host: endpoint.ip().to_string(), port: endpoint.port() },
            certificate_authority: Some(String::new()),
            origin: Origin::Eks { token_name: "demo".into() },
            vpc: None,
        };
        let listeners = Listeners::bind(0, 1, false, Admission::owner()).unwrap().listeners.remove(0);
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, listeners.port()));
        let config = Config { readiness: Readiness::Established, seed: Some(1), ..Config::default() };
        let routes = before.into_iter().chain([route(&aws)]).collect();
        let tunnel = Tunnel::new(cluster, routes, listeners, config, Common::new(Clock::start()));
        let (status, stop) = (tunnel.status(), CancellationToken::new());
        let mut tasks = JoinSet::new();
        tasks.spawn(tunnel.run(stop.clone()));
        Self { status, address, stop, tasks }
    }

    async fn until(&mut self, wanted: impl FnMut(&TunnelStatus) -> bool) -> TunnelStatus {
        in_time(self.status.wait_for(wanted)).await.unwrap().clone()
    }

    async fn connect(&self) -> TcpStream {
        in_time(TcpStream::connect(self.address)).await.unwrap()
    }

    async fn stop(mut self) {
        self.stop.cancel();
        in_time(self.tasks.join_next()).await.unwrap().unwrap();
    }
}

/// Listens, and gives what it accepts.
async fn server() -> (SocketAddr, mpsc::UnboundedReceiver<TcpStream>, JoinSet<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (accepted, connections) = mpsc::unbounded_channel();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            if accepted.send(stream).is_err() {
                return;
            }
        }
    });
    (address, connections, tasks)
}

#[tokio::test]
async fn carries_bytes_both_ways_and_both_ends() {
    let (address, mut accepted, _tasks) = server().await;
    let mut world = World::start(address, Vec::new()).await;
    let status = world.until(|status| status.state == State::Active).await;
    assert_eq!(status.link().map(|link| link.route.as_str()), Some("direct"));
    let _first = in_time(accepted.recv()).await.unwrap();
    let mut near = world.connect().await;
    let mut far = in_time(accepted.recv()).await.unwrap();
    let data: Vec<u8> = (0..1 << 20).map(|i: u32| i.to_le_bytes()[1]).collect();
    let (mut there, mut back) = (vec![0; data.len()], Vec::new());
    in_time(async { tokio::try_join!(near.write_all(&data), far.read_exact(&mut there)) }).await.unwrap();
    assert!(there == data);
    near.shutdown().await.unwrap();
    assert_eq!(in_time(far.read(&mut [0])).await.unwrap(), 0, "the end of what was sent");
    in_time(far.write_all(b"bye")).await.unwrap();
    drop(far);
    in_time(near.read_to_end(&mut back)).await.unwrap();
    assert_eq!(back, b"bye");
    let status = world.until(|status| status.open_connections == 0 && status.bytes_received == 3).await;
    assert_eq!((status.bytes_sent, status.connections_total), (1 << 20, 1));
    world.stop().await;
}

#[tokio::test]
async fn a_reset_of_the_api_server_is_a_reset_here() {
    let (address, mut accepted, _tasks) = server().await;
    let mut world = World::start(address, Vec::new()).await;
    world.until(|status| status.state == State::Active).await;
    let _first = in_time(accepted.recv()).await.unwrap();
    let mut near = world.connect().await;
    let far = in_time(accepted.recv()).await.unwrap();
    socket2::SockRef::from(&far).set_linger(Some(Duration::ZERO)).unwrap();
    drop(far);
    let error = in_time(near.read(&mut [0])).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    world.stop().await;
}

#[tokio::test]
async fn an_endpoint_that_does_not_answer_is_away() {
    let closed = ClosedPort::new();
    let mut world = World::start(closed.address(), Vec::new()).await;
    let status = world.until(|status| status.state == State::Failed).await;
    let fault = status.last_error.unwrap().fault;
    assert_eq!(fault.class, Class::Away);
    assert!(fault.to_string().contains("does not answer from this machine"), "{fault}");
    assert!(fault.hints[0].starts_with("check that this machine can connect to `127.0.0.1:"), "{:?}", fault.hints);
    assert!(fault.hints[1].contains("aws eks describe-cluster --name demo --region eu-west-1"), "{:?}", fault.hints);
    world.stop().await;
}

/// A bastion that is away.
#[derive(Debug)]
struct Away;

impl Route for Away {
    fn label(&self) -> String {
        "i-00000000".to_owned()
    }

    fn run(self: Arc<Self>, _to: Arc<Remote>, mailbox: Mailbox) -> BoxFuture<'static, ()> {
        let fault = Arc::new(Fault::new(Class::Away, "it is off"));
        mailbox.reports.send(Report::Ended(End { fault, served: false, open: 0 }));
        Box::pin(std::future::ready(()))
    }

    fn advise(&self, _to: &Remote, _error: &ProbeError) -> Vec<String> {
        Vec::new()
    }

    fn advise_silence(&self) -> Vec<String> {
        Vec::new()
    }
}

#[tokio::test]
async fn as_last_of_a_list_it_is_used_when_the_endpoint_answers() {
    let (address, mut accepted, _tasks) = server().await;
    let mut world = World::start(address, vec![Arc::new(Away)]).await;
    let status = world.until(|status| status.state == State::Active).await;
    assert_eq!(status.link().map(|link| link.route.as_str()), Some("direct"));
    let _first = in_time(accepted.recv()).await.unwrap();
    let mut near = world.connect().await;
    let mut far = in_time(accepted.recv()).await.unwrap();
    in_time(far.write_all(b"hello")).await.unwrap();
    in_time(near.read_exact(&mut [0; 5])).await.unwrap();
    world.stop().await;
    assert_eq!(in_time(near.read(&mut [0])).await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
}
