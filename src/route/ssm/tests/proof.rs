//! Readiness and probes: a TLS server behind the scripted agent.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use rustls::{
    ServerConfig,
    crypto::aws_lc_rs,
    pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream},
    sync::mpsc,
    task::JoinSet,
};
use tokio_rustls::TlsAcceptor;

use super::{
    agent::{Destination, Order},
    support::{Call, Stopwatch, World, config, target},
};
use crate::{
    route::{ProbeError, Unproved},
    tunnel::{Config, Readiness, State, TunnelStatus},
};

/// An API server's certificate for `name`, with its authority as EKS gives it.
fn server(name: &str) -> (Arc<ServerConfig>, String) {
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = rcgen::CertificateParams::new([name.to_owned()]).unwrap().self_signed(&key).unwrap();
    let authority = STANDARD.encode(certificate.pem());
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key)
        .unwrap();
    (Arc::new(config), authority)
}

/// Counts what an API server has been asked.
#[derive(Default)]
struct Asked {
    handshakes: AtomicUsize,
    requests: AtomicUsize,
}

/// Runs an API server that answers everything with 401.
fn serve(config: Arc<ServerConfig>) -> (Destination, Arc<Asked>, JoinSet<()>) {
    let (connections, mut accepted) = mpsc::unbounded_channel::<DuplexStream>();
    let asked = Arc::new(Asked::default());
    let counters = Arc::clone(&asked);
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut connections = JoinSet::new();
        while let Some(stream) = accepted.recv().await {
            let acceptor = TlsAcceptor::from(Arc::clone(&config));
            let asked = Arc::clone(&counters);
            connections.spawn(async move {
                let Ok(mut tls) = acceptor.accept(stream).await else { return };
                asked.handshakes.fetch_add(1, Ordering::SeqCst);
                let mut request = Vec::new();
                while !request.ends_with(b"\r\n\r\n") {
                    if tls.read_buf(&mut request).await.unwrap_or(0) == 0 {
                        return;
                    }
                }
                assert!(request.starts_with(b"GET /livez HTTP/1.1\r\nHost: api.example\r\n"));
                asked.requests.fetch_add(1, Ordering::SeqCst);
                tls.write_all(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n").await.unwrap();
                let _outcome = tls.shutdown().await;
            });
        }
    });
    (Destination::Manual(connections), asked, tasks)
}

fn proved() -> Config {
    Config { readiness: Readiness::Proved, ..config() }
}

#[tokio::test(start_paused = true)]
async fn ready_means_that_the_api_server_has_answered() {
    let (tls, authority) = server("api.example");
    let (destination, asked, _server) = serve(tls);
    let mut world = World::with(destination, proved(), 1, &authority, |_| {});
    let status = world.until_state(State::Active).await;
    assert_eq!(status.last_probe.unwrap().http_status, Some(401));
    assert!(status.ready_at.is_some());
    assert_eq!(
        (status.open_connections, status.connections_total, status.bytes_sent),
        (0, 0, 0),
        "probes do not count"
    );
    tokio::time::sleep(Duration::from_secs(301)).await;
    assert_eq!(asked.requests.load(Ordering::SeqCst), 1, "later probes leave no trace in the audit log");
    assert_eq!(asked.handshakes.load(Ordering::SeqCst), 11);
    world.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_wrong_certificate_is_told_apart() {
    for (name, authority) in [("other.example", None), ("api.example", Some(server("api.example").1))] {
        let (tls, own) = server(name);
        let (destination, _asked, _server) = serve(tls);
        let mut world = World::with(destination, proved(), 1, &authority.unwrap_or(own), |_| {});
        let status = world.until_state(State::Failed).await;
        let fault = status.last_error.unwrap().fault;
        assert!(matches!(fault.cause(), Some(Unproved(ProbeError::Certificate { .. }))), "{fault:?}");
        world.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_authority_that_cannot_be_read_fails_at_once() {
    let mut world = World::with(Destination::Echo, proved(), 1, "nonsense", |_| {});
    let status = world.until(|status| status.last_error.is_some()).await;
    let fault = status.last_error.unwrap().fault;
    assert!(matches!(fault.cause(), Some(Unproved(ProbeError::Authority { .. }))), "{fault:?}");
}

#[tokio::test(start_paused = true)]
async fn a_refusing_destination_degrades_until_it_answers() {
    let (tls, authority) = server("api.example");
    let (destination, _asked, _server) = serve(tls);
    let mut world = World::with(Destination::Refuse, proved(), 1, &authority, |_| {});
    let status = world.until_state(State::Degraded).await;
    assert!(matches!(status.last_error.unwrap().fault.cause(), Some(Unproved(ProbeError::Refused))));
    // The agent resolved the name when its session started; a new session finds the new address.
    world.network.state(|state| state.set_destination(destination));
    let status = world.until_state(State::Active).await;
    assert_eq!(status.restarts, 1);
}

#[tokio::test(start_paused = true)]
async fn something_else_than_tls_is_told_apart() {
    let (_, authority) = server("api.example");
    let mut world = World::with(Destination::Echo, proved(), 1, &authority, |_| {});
    let status = world.until_state(State::Degraded).await;
    let fault = status.last_error.unwrap().fault;
    assert!(matches!(fault.cause(), Some(Unproved(ProbeError::Tls { .. }))), "{fault:?}");
}

#[tokio::test(start_paused = true)]
async fn a_wedged_agent_is_found_within_45_seconds() {
    let (tls, authority) = server("api.example");
    let (destination, _asked, _server) = serve(tls);
    let mut world = World::with(destination, proved(), 1, &authority, |_| {});
    world.until_state(State::Active).await;
    tokio::time::sleep(Duration::from_secs(40)).await;
    let started = Stopwatch::start();
    world.network.order(Order::Wedge);
    let status = world.until(|status| status.restarts == 1).await;
    assert!(started.elapsed() <= Duration::from_secs(45), "{:?}", started.elapsed());
    let fault = status.last_error.unwrap().fault;
    assert!(matches!(fault.cause(), Some(Unproved(ProbeError::NoAnswer { .. }))), "{fault:?}");
    world.until_state(State::Active).await;
    world.until_call(&Call::Terminate("0".into())).await;
}

#[tokio::test(start_paused = true)]
async fn an_idle_session_is_active_again_after_a_resume() {
    let (tls, authority) = server("api.example");
    let (destination, asked, _server) = serve(tls);
    let mut world = World::with(destination, proved(), 1, &authority, |_| {});
    world.until_state(State::Active).await;
    for resumes in 1..=5 {
        world.network.order(Order::Bye);
        world.until(|status| status.resumes == resumes && status.state == State::Active).await;
    }
    assert_eq!(world.status.borrow().restarts, 0);
    assert_eq!(asked.requests.load(Ordering::SeqCst), 1);
}

#[tokio::test(start_paused = true)]
async fn without_probes_a_session_idles_out_and_comes_back_on_demand() {
    let (tls, authority) = server("api.example");
    let (destination, asked, _server) = serve(tls);
    let settings = Config { probe_interval: Duration::ZERO, ..proved() };
    let mut world = World::with(destination, settings, 1, &authority, |_| {});
    world.until_state(State::Active).await;
    tokio::time::sleep(Duration::from_secs(1200)).await;
    assert_eq!(asked.handshakes.load(Ordering::SeqCst), 1, "nothing was probed");
    world.network.order(Order::CloseChannel("idle for 20 minutes"));
    let status = world.until(|status| status.restarts == 1).await;
    assert_eq!(status.state, State::Active);
    tokio::time::sleep(Duration::from_secs(1200)).await;
    assert_eq!(world.calls().iter().filter(|call| matches!(call, Call::Start(_))).count(), 1);
    let _local = world.connect();
    world.until(|status| status.connections_total == 1).await;
    assert_eq!(world.calls().iter().filter(|call| matches!(call, Call::Start(_))).count(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_black_hole_behind_the_agent_is_a_matter_for_a_human() {
    let (_, authority) = server("api.example");
    let mut world = World::with(Destination::Silent, proved(), 1, &authority, |_| {});
    let started = Stopwatch::start();
    let status = world.until_state(State::Failed).await;
    assert!(started.elapsed() < Duration::from_secs(60), "{:?}", started.elapsed());
    let fault = status.last_error.unwrap().fault;
    assert!(matches!(fault.cause(), Some(Unproved(ProbeError::NoAnswer { .. }))), "{fault:?}");
    tokio::time::sleep(Duration::from_secs(3600)).await;
    let starts = world.calls().iter().filter(|call| matches!(call, Call::Start(_))).count();
    assert!((30..100).contains(&starts), "{starts}");
}

#[tokio::test(start_paused = true)]
async fn a_pause_of_publication_is_waited_out() {
    let (tls, authority) = server("api.example");
    let (destination, _asked, _server) = serve(tls);
    let mut world = World::with(destination, proved(), 1, &authority, |_| {});
    world.until_state(State::Active).await;
    // With any phase of the probes.
    for second in [1, 8, 15, 22, 29] {
        tokio::time::sleep(Duration::from_secs(60 + second)).await;
        let before = world.status.borrow().last_probe;
        world.network.order(Order::Away(true));
        tokio::time::sleep(Duration::from_secs(30)).await;
        world.network.order(Order::Away(false));
        let status = world.until(|status| status.last_probe != before).await;
        assert_eq!((status.resumes, status.restarts), (0, 0), "{second}");
        assert_eq!(world.until_state(State::Active).await.restarts, 0);
    }
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_is_gone_is_found_sooner_when_somebody_waits_for_it() {
    let (tls, authority) = server("api.example");
    let (destination, _asked, _server) = serve(tls);
    let mut world = World::with(destination, proved(), 1, &authority, |_| {});
    world.until_state(State::Active).await;
    tokio::time::sleep(Duration::from_secs(35)).await;
    world.network.order(Order::Dead);
    let started = Stopwatch::start();
    let mut local = world.connect();
    local.write(b"is anybody there").await;
    world.until(|status| status.restarts == 1).await;
    assert!(started.elapsed() <= Duration::from_secs(20), "{:?}", started.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_session_that_idled_out_gives_way_to_a_better_target_and_leaves_nothing() {
    let (tls, authority) = server("api.example");
    let (destination, _asked, _server) = serve(tls);
    let settings = Config { probe_interval: Duration::ZERO, ..proved() };
    let mut world = World::with(destination, settings, 2, &authority, |network| network.set_absent(&[target(0)]));
    world.until_state(State::Active).await;
    tokio::time::sleep(Duration::from_secs(300)).await;
    world.network.order(Order::CloseChannel("idle"));
    world.until(|status| status.restarts == 1).await;
    world.network.state(|state| state.set_absent(&[]));
    let better = |status: &TunnelStatus| status.link().is_some_and(|link| link.route == target(0).to_string());
    let status = world.until(better).await;
    assert_eq!((status.state, status.links.len()), (State::Active, 1), "{:?}", status.links);
    // What is left of it would be started by the next connection that waits.
    world.network.order(Order::CloseChannel("over"));
    world.until(|status| status.restarts == 2).await;
    world.calls();
    let _local = world.connect();
    world.until(|status| status.connections_total == 1).await;
    let starts: Vec<_> = world.calls().into_iter().filter(|call| matches!(call, Call::Start(_))).collect();
    assert!(starts.len() <= 1, "{starts:?}");
}
