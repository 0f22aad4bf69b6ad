use std::{future::Future, net::Ipv4Addr};

use base64::{Engine, engine::general_purpose::STANDARD};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::{
    CertificateError, ClientConfig, Error, RootCertStore,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, pem::PemObject},
};
use tokio::{
    io::{AsyncReadExt, DuplexStream},
    sync::oneshot,
};
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

use super::*;
use crate::{
    cluster::{Destination, Origin},
    route::PipeEnd,
    tunnel::{Admission, Listeners},
};

const API: &str = "api.example";

/// More than all buffers on the way hold.
const MUCH: usize = 4 << 20;

async fn in_time<F: Future>(what: F) -> F::Output {
    timeout(Duration::from_secs(60), what).await.expect("it has to come")
}

/// The authority of a cluster.
fn theirs() -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

fn termination(authority: &Authority, cluster: &str) -> Termination {
    let cluster = Cluster {
        name: "c".into(),
        region: "r".into(),
        account: "1".into(),
        id: "arn".into(),
        endpoint: Destination { host: API.into(), port: 443 },
        certificate_authority: Some(STANDARD.encode(cluster)),
        origin: Origin::Eks { token_name: "c".into() },
        vpc: None,
    };
    Termination::new(authority, &cluster)
}

/// A tunnel's port where TLS ends, and the API server behind it.
struct Lab {
    client: Client,
    theirs: CertifiedIssuer<'static, KeyPair>,
    accepted: mpsc::UnboundedReceiver<Io>,
    _tunnel: JoinSet<()>,
}

impl Lab {
    fn start() -> Self {
        let (theirs, authority) = (theirs(), Authority::new().unwrap());
        let listeners = Listeners::bind(0, 1, false, Admission::owner()).unwrap().listeners.remove(0);
        let mut listeners = listeners.with_tls(termination(&authority, &theirs.pem()));
        let client = Client { port: listeners.port(), authority: authority.data().to_string() };
        let (taken, accepted) = mpsc::unbounded_channel();
        let mut tunnel = JoinSet::new();
        tunnel.spawn(async move { while taken.send(listeners.accept().await.unwrap()).is_ok() {} });
        Self { client, theirs, accepted, _tunnel: tunnel }
    }

    /// The next connection that the tunnel gets, and where a link says that it has lost it.
    async fn next(&mut self) -> (DuplexStream, oneshot::Sender<PipeEnd>) {
        let io = in_time(self.accepted.recv()).await.unwrap();
        assert!(io.is_counted() && io.ends().is_some(), "{io:?}");
        io.into_pipe().expect("a pipe")
    }

    /// An API server with a certificate for this name, which knows these protocols.
    fn api(&self, name: &str, protocols: &[&str]) -> TlsAcceptor {
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new([name.to_owned()]).unwrap().signed_by(&key, &self.theirs).unwrap();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)
            .unwrap();
        config.alpn_protocols = bytes(protocols);
        TlsAcceptor::from(Arc::new(config))
    }

    /// A client that offers these protocols, and the API server, each with what came of it.
    async fn meet(
        &mut self,
        name: &str,
        offered: &[&str],
        api: &TlsAcceptor,
    ) -> (io::Result<client::TlsStream<TcpStream>>, io::Result<server::TlsStream<DuplexStream>>) {
        let client = self.client.clone();
        let served = async {
            let (pipe, _end) = self.next().await;
            api.accept(pipe).await
        };
        in_time(async { tokio::join!(client.connect(name, offered), served) }).await
    }

    /// A client and the API server, joined.
    async fn joined(
        &mut self,
    ) -> (client::TlsStream<TcpStream>, server::TlsStream<DuplexStream>, oneshot::Sender<PipeEnd>) {
        let (client, api) = (self.client.clone(), self.api(API, &["http/1.1"]));
        let served = async {
            let (pipe, end) = self.next().await;
            (api.accept(pipe).await.unwrap(), end)
        };
        let (client, (server, end)) = in_time(async { tokio::join!(client.connect("localhost", &[]), served) }).await;
        (client.unwrap(), server, end)
    }
}

/// A program that trusts an authority, given as kubeconfigs have it.
#[derive(Clone)]
struct Client {
    port: u16,
    authority: String,
}

impl Client {
    async fn tcp(&self) -> TcpStream {
        in_time(TcpStream::connect((Ipv4Addr::LOCALHOST, self.port))).await.unwrap()
    }

    /// Connects to a server that has to be of this name, and offers these protocols.
    async fn connect(&self, name: &str, protocols: &[&str]) -> io::Result<client::TlsStream<TcpStream>> {
        let pem = STANDARD.decode(&self.authority).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(&pem).unwrap()).unwrap();
        let mut config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = bytes(protocols);
        let name = ServerName::try_from(name.to_owned()).unwrap();
        TlsConnector::from(Arc::new(config)).connect(name, self.tcp().await).await
    }
}

fn bytes(protocols: &[&str]) -> Vec<Vec<u8>> {
    protocols.iter().map(|protocol| protocol.as_bytes().to_vec()).collect()
}

fn tls_error(error: &io::Error) -> &Error {
    error.get_ref().and_then(|inner| inner.downcast_ref()).unwrap_or_else(|| panic!("{error:?}"))
}

#[tokio::test]
async fn the_api_server_chooses_the_protocol() {
    let mut lab = Lab::start();
    let cases = [(&["h2", "http/1.1"][..], Some(&b"h2"[..])), (&["http/1.1"], Some(b"http/1.1")), (&[], None)];
    for (known, chosen) in cases {
        let api = lab.api(API, known);
        let (client, server) = lab.meet("127.0.0.1", &["h2", "http/1.1"], &api).await;
        assert_eq!(server.unwrap().get_ref().1.alpn_protocol(), chosen);
        assert_eq!(client.unwrap().get_ref().1.alpn_protocol(), chosen);
    }
    // Who offers nothing is answered nothing.
    let api = lab.api(API, &["h2", "http/1.1"]);
    let (client, server) = lab.meet("127.0.0.1", &[], &api).await;
    assert_eq!(server.unwrap().get_ref().1.alpn_protocol(), None);
    assert_eq!(client.unwrap().get_ref().1.alpn_protocol(), None);
    // And a refusal is the API server's own.
    let api = lab.api(API, &["h2"]);
    let (client, _server) = lab.meet("127.0.0.1", &["http/1.1"], &api).await;
    assert_eq!(tls_error(&client.unwrap_err()), &Error::AlertReceived(AlertDescription::NoApplicationProtocol));
}

#[tokio::test]
async fn the_certificate_is_for_this_machine_and_no_other_name() {
    let mut lab = Lab::start();
    let api = lab.api(API, &[]);
    for name in ["127.0.0.1", "::1", "localhost"] {
        let (client, _server) = lab.meet(name, &[], &api).await;
        assert!(client.is_ok(), "{name}: {client:?}");
    }
    let (client, _server) = lab.meet("other.example", &[], &api).await;
    let error = client.unwrap_err();
    let Error::InvalidCertificate(reason) = tls_error(&error) else { panic!("{error:?}") };
    assert!(matches!(reason, CertificateError::NotValidForNameContext { .. }), "{reason:?}");
}

#[tokio::test]
async fn each_run_has_an_authority_of_its_own() {
    let (one, other) = (Authority::new().unwrap(), Authority::new().unwrap());
    assert_ne!(one.data(), other.data());
    let mut lab = Lab::start();
    let api = lab.api(API, &[]);
    lab.client.authority = other.data().to_string();
    let (client, _server) = lab.meet("127.0.0.1", &[], &api).await;
    let error = client.unwrap_err();
    assert_eq!(tls_error(&error), &Error::InvalidCertificate(CertificateError::UnknownIssuer));
}

#[tokio::test]
async fn who_asks_for_the_api_server_gets_through_to_it() {
    let mut lab = Lab::start();
    lab.client.authority = STANDARD.encode(lab.theirs.pem());
    let api = lab.api(API, &["h2"]);
    let (client, server) = lab.meet("API.example", &["h2"], &api).await;
    let (mut client, mut server) = (client.unwrap(), server.unwrap());
    assert_eq!(client.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    for _ in 0..3 {
        in_time(client.write_all(b"ping")).await.unwrap();
        let mut read = [0; 4];
        in_time(server.read_exact(&mut read)).await.unwrap();
        in_time(server.write_all(b"pong")).await.unwrap();
        in_time(client.read_exact(&mut read)).await.unwrap();
        assert_eq!(&read, b"pong");
    }
    in_time(client.shutdown()).await.unwrap();
    assert_eq!(in_time(server.read(&mut [0])).await.unwrap(), 0);
    in_time(server.shutdown()).await.unwrap();
    assert_eq!(in_time(client.read(&mut [0])).await.unwrap(), 0);
}

#[tokio::test]
async fn much_goes_both_ways_at_once() {
    let mut lab = Lab::start();
    let (client, server, _end) = lab.joined().await;
    let data: Vec<u8> = (0..MUCH).map(|at| u8::try_from(at % 251).unwrap()).collect();
    let (mut client_reads, mut client_writes) = tokio::io::split(client);
    let (mut server_reads, mut server_writes) = tokio::io::split(server);
    let (mut there, mut back) = (Vec::new(), Vec::new());
    let all = async {
        tokio::try_join!(
            async {
                client_writes.write_all(&data).await?;
                client_writes.shutdown().await
            },
            async {
                server_writes.write_all(&data).await?;
                server_writes.shutdown().await
            },
            server_reads.read_to_end(&mut there),
            client_reads.read_to_end(&mut back),
        )
    };
    in_time(all).await.unwrap();
    assert!(there == data && back == data);
}

#[tokio::test]
async fn one_direction_may_end_before_the_other() {
    let mut lab = Lab::start();
    let (mut client, mut server, _end) = lab.joined().await;
    in_time(client.write_all(b"request")).await.unwrap();
    in_time(client.shutdown()).await.unwrap();
    let mut request = Vec::new();
    in_time(server.read_to_end(&mut request)).await.unwrap();
    in_time(server.write_all(b"answer")).await.unwrap();
    in_time(server.shutdown()).await.unwrap();
    let mut answer = Vec::new();
    in_time(client.read_to_end(&mut answer)).await.unwrap();
    assert_eq!((&*request, &*answer), (&b"request"[..], &b"answer"[..]));
}

#[tokio::test]
async fn what_was_cut_does_not_look_whole() {
    // The API server has gone without a `close_notify`.
    let mut lab = Lab::start();
    let (mut client, mut server, _end) = lab.joined().await;
    in_time(server.write_all(b"half")).await.unwrap();
    in_time(server.flush()).await.unwrap();
    in_time(server.get_mut().0.shutdown()).await.unwrap();
    let mut answer = Vec::new();
    let error = in_time(client.read_to_end(&mut answer)).await.unwrap_err();
    assert_eq!((&*answer, error.kind()), (&b"half"[..], io::ErrorKind::UnexpectedEof));

    // So has the client.
    let (mut client, mut server, _end) = lab.joined().await;
    in_time(client.write_all(b"half")).await.unwrap();
    in_time(client.flush()).await.unwrap();
    in_time(client.get_mut().0.shutdown()).await.unwrap();
    let mut request = Vec::new();
    let error = in_time(server.read_to_end(&mut request)).await.unwrap_err();
    assert_eq!((&*request, error.kind()), (&b"half"[..], io::ErrorKind::UnexpectedEof));
}

#[tokio::test]
async fn resets_are_passed_on() {
    // A link that is lost.
    let mut lab = Lab::start();
    let (mut client, server, end) = lab.joined().await;
    end.send(PipeEnd::Lost).unwrap();
    drop(server);
    let error = in_time(client.read(&mut [0])).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);

    // One that never came to be.
    let client = lab.client.clone();
    let refused = async {
        let (pipe, end) = lab.next().await;
        end.send(PipeEnd::Refused).unwrap();
        drop(pipe);
    };
    let (client, ()) = in_time(async { tokio::join!(client.connect("localhost", &[]), refused) }).await;
    assert_eq!(client.unwrap_err().kind(), io::ErrorKind::ConnectionReset);

    // A client that is killed.
    let (client, mut server, _end) = lab.joined().await;
    client.get_ref().0.set_zero_linger().unwrap();
    drop(client);
    assert!(in_time(server.read(&mut [0])).await.is_err());
}

#[tokio::test]
async fn a_client_says_nothing_to_a_server_that_is_another() {
    let mut lab = Lab::start();
    let api = lab.api("other.example", &[]);
    let (client, server) = lab.meet("localhost", &[], &api).await;
    assert_eq!(tls_error(&client.unwrap_err()), &Error::AlertReceived(AlertDescription::InternalError));
    assert!(server.is_err());
}

#[tokio::test]
async fn what_is_no_tls_gets_nowhere() {
    let mut lab = Lab::start();
    let mut client = lab.client.tcp().await;
    in_time(client.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")).await.unwrap();
    let mut answer = Vec::new();
    let _reset = in_time(client.read_to_end(&mut answer)).await;
    // An alert, and no more.
    assert!(answer.is_empty() || answer.first() == Some(&0x15), "{answer:?}");
    assert!(lab.accepted.try_recv().is_err());
}

/// Time passes at once where nothing else goes on.
#[tokio::test(start_paused = true)]
async fn who_does_not_begin_is_left() {
    let lab = Lab::start();
    let mut client = TcpStream::connect((Ipv4Addr::LOCALHOST, lab.client.port)).await.unwrap();
    assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
}

#[tokio::test]
async fn only_so_many_get_in() {
    let authority = Authority::new().unwrap();
    let mut terminator = Terminator::up_to(1, termination(&authority, &theirs().pem()));
    let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut clients = Vec::new();
    for _ in 0..2 {
        let (client, accepted) =
            in_time(async { tokio::try_join!(TcpStream::connect(address), listener.accept()) }).await.unwrap();
        terminator.take(accepted.0, None);
        clients.push(client);
    }
    let error = in_time(clients[1].read(&mut [0])).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    // The first is still served: it is told what is wrong with what it says.
    in_time(clients[0].write_all(b"GET / HTTP/1.1\r\n\r\n")).await.unwrap();
    assert!(in_time(clients[0].read(&mut [0])).await.unwrap_or(1) <= 1);
    in_time(terminator.close().end()).await;
}
