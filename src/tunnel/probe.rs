//! Proof that a tunnel leads to the right place: a TLS handshake with the API server through it.
//!
//! The certificate has to verify against the cluster's authority and the endpoint's name. The first
//! proof also takes an HTTP answer of any status; later ones stop after the handshake, which leaves
//! no trace in the API server's audit log. No credentials are sent.

use std::{
    io,
    sync::{Arc, LazyLock},
    time::Duration,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use rustls::{
    CipherSuite, ClientConfig, NamedGroup, RootCertStore,
    client::Resumption,
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream},
    sync::oneshot,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::{
    clock::Clock,
    cluster::Cluster,
    route::{
        Answer, BoxError, PipeEnd, ProbeError,
        proof::{after_end, knock},
    },
};

/// Longest status line that is read from the API server, in bytes.
const MAX_STATUS_LINE: usize = 1024;

/// What probes offer first is what takes least time: nobody is to keep secret what they say. Thousands of tunnels are
/// probed every 30 s, and a hello with a post-quantum key is two messages instead of one.
static CHEAP: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| {
    let mut provider = aws_lc_rs::default_provider();
    provider.kx_groups.retain(|group| group.name() != NamedGroup::X25519MLKEM768);
    provider.cipher_suites.sort_by_key(|suite| suite.suite() != CipherSuite::TLS13_AES_128_GCM_SHA256);
    Arc::new(provider)
});

/// What carries the bytes of programs is protected as well as it can be.
static STRONG: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| Arc::new(aws_lc_rs::default_provider()));

/// Probes one cluster.
#[derive(Debug, Clone)]
pub struct Probe {
    roots: Arc<RootCertStore>,
    tls: Arc<ClientConfig>,
    name: ServerName<'static>,
    host: String,
}

impl Probe {
    /// Reads the cluster's certificate authority.
    ///
    /// # Errors
    /// [`ProbeError::Authority`].
    pub fn new(cluster: &Cluster) -> Result<Self, ProbeError> {
        let authority = |source: BoxError| ProbeError::Authority { source };
        let roots = match &cluster.certificate_authority {
            Some(pem) => roots(pem).map_err(authority)?,
            None => roots_of_system().map_err(authority)?,
        };
        let host = cluster.server_name().to_owned();
        let name = ServerName::try_from(host.clone()).map_err(|error| authority(error.into()))?;
        let roots = Arc::new(roots);
        let tls = tls_config(&CHEAP, &roots, vec![b"http/1.1".to_vec()]).map_err(|error| authority(error.into()))?;
        Ok(Self { roots, tls, name, host })
    }

    /// Makes a TLS connection with the API server over `io`: its certificate has to verify against the cluster's
    /// authority and the endpoint's name.
    ///
    /// # Errors
    /// [`ProbeError::Certificate`], [`ProbeError::Tls`], [`ProbeError::Ended`].
    pub async fn connect<S: AsyncRead + AsyncWrite + Unpin>(&self, io: S) -> Result<TlsStream<S>, ProbeError> {
        self.connect_by(&self.tls, io).await
    }

    /// The same for the bytes of a program, and offers these protocols, of which the API server may choose one.
    ///
    /// # Errors
    /// As [`connect`](Self::connect).
    pub(super) async fn connect_offering<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        protocols: Vec<Vec<u8>>,
        io: S,
    ) -> Result<TlsStream<S>, ProbeError> {
        let tls = tls_config(&STRONG, &self.roots, protocols);
        let tls = tls.map_err(|error| ProbeError::Tls { source: io::Error::other(error) })?;
        self.connect_by(&tls, io).await
    }

    async fn connect_by<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        tls: &Arc<ClientConfig>,
        io: S,
    ) -> Result<TlsStream<S>, ProbeError> {
        let tls = TlsConnector::from(Arc::clone(tls)).connect(self.name.clone(), io).await;
        tls.map_err(|error| self.tls_error(error))
    }

    /// Probes through `stream`, whose other end the link has. `end` tells how that end closed, `limit` how long a probe
    /// may take, which may change meanwhile.
    pub(super) async fn run(
        &self,
        stream: DuplexStream,
        end: oneshot::Receiver<PipeEnd>,
        request: bool,
        limit: impl Fn() -> Duration,
        clock: &Clock,
    ) -> Result<Answer, ProbeError> {
        tokio::select! {
            biased;
            outcome = self.exchange(stream, request, clock) => outcome.map_err(|error| after_end(error, end)),
            limit = passed(limit, clock) => Err(ProbeError::NoAnswer { seconds: limit.as_secs() }),
        }
    }

    async fn exchange(&self, stream: DuplexStream, request: bool, clock: &Clock) -> Result<Answer, ProbeError> {
        let started = clock.now().mono;
        let mut tls = self.connect(stream).await?;
        let round_trip = clock.now().mono.saturating_sub(started);
        let status = if request { Some(self.request(&mut tls).await?) } else { None };
        // The proof is complete; what becomes of the goodbye does not matter.
        let _outcome = tls.shutdown().await;
        Ok(Answer { round_trip, status })
    }

    async fn request(&self, tls: &mut TlsStream<DuplexStream>) -> Result<u16, ProbeError> {
        let request = format!(
            "GET /livez HTTP/1.1\r\nHost: {}\r\nUser-Agent: autoheal-pa/{}\r\nAccept: */*\r\nConnection: close\r\n\r\n",
            self.host,
            env!("CARGO_PKG_VERSION")
        );
        tls.write_all(request.as_bytes()).await.map_err(|error| self.tls_error(error))?;
        tls.flush().await.map_err(|error| self.tls_error(error))?;
        let mut line = Vec::new();
        while !line.contains(&b'\n') {
            if line.len() >= MAX_STATUS_LINE {
                return Err(ProbeError::NotHttp);
            }
            match tls.read_buf(&mut line).await {
                Ok(0) if line.is_empty() => return Err(ProbeError::Ended),
                Ok(0) => return Err(ProbeError::NotHttp),
                Ok(_) => {}
                Err(error) => return Err(self.tls_error(error)),
            }
        }
        status_of(&line).ok_or(ProbeError::NotHttp)
    }

    fn tls_error(&self, error: io::Error) -> ProbeError {
        if let Some(source @ rustls::Error::InvalidCertificate(_)) =
            error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>())
        {
            return ProbeError::Certificate { host: self.host.clone(), source: source.clone() };
        }
        let ended = [io::ErrorKind::UnexpectedEof, io::ErrorKind::BrokenPipe, io::ErrorKind::ConnectionReset];
        if ended.contains(&error.kind()) { ProbeError::Ended } else { ProbeError::Tls { source: error } }
    }
}

/// Returns how to speak TLS with an API server.
fn tls_config(
    provider: &Arc<CryptoProvider>,
    roots: &Arc<RootCertStore>,
    protocols: Vec<Vec<u8>>,
) -> Result<Arc<ClientConfig>, rustls::Error> {
    let mut tls = ClientConfig::builder_with_provider(Arc::clone(provider))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(Arc::clone(roots))
        .with_no_client_auth();
    tls.alpn_protocols = protocols;
    // A resumed TLS session would not show its certificate again.
    tls.resumption = Resumption::disabled();
    Ok(Arc::new(tls))
}

/// Finds out whether the destination accepts a connection, through a pipe whose other end the link has.
pub(super) async fn accepts(
    stream: DuplexStream,
    end: oneshot::Receiver<PipeEnd>,
    limit: impl Fn() -> Duration,
    clock: &Clock,
) -> Result<Answer, ProbeError> {
    let started = clock.now().mono;
    tokio::select! {
        biased;
        outcome = knock(stream, end) => {
            outcome.map(|()| Answer { round_trip: clock.now().mono.saturating_sub(started), status: None })
        }
        limit = passed(limit, clock) => Err(ProbeError::NoAnswer { seconds: limit.as_secs() }),
    }
}

/// Waits until a limit has passed, which may grow meanwhile, and returns it.
async fn passed(limit: impl Fn() -> Duration, clock: &Clock) -> Duration {
    let started = clock.now().mono;
    let mut allowed = limit();
    loop {
        tokio::time::sleep_until(clock.instant(started + allowed)).await;
        let before = std::mem::replace(&mut allowed, limit());
        if allowed <= before {
            return before;
        }
    }
}

/// Reads an authority: PEM in base64.
fn roots(authority: &str) -> Result<RootCertStore, BoxError> {
    // Lines are no matter to client-go, nor are certificates that cannot be read beside others.
    let pem = STANDARD.decode(authority.split_whitespace().collect::<String>())?;
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(&pem).collect::<Result<_, _>>()?;
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(certificates);
    if roots.is_empty() { Err("it holds no certificate".into()) } else { Ok(roots) }
}

/// Takes those that the system trusts, as kubectl does for a cluster without an authority of its own.
fn roots_of_system() -> Result<RootCertStore, BoxError> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if roots.is_empty() { Err("it is that of the system, which trusts none".into()) } else { Ok(roots) }
}

fn status_of(line: &[u8]) -> Option<u16> {
    let text = std::str::from_utf8(line.get(..12)?).ok()?;
    let (version, status) = text.split_once(' ')?;
    if !matches!(version, "HTTP/1.0" | "HTTP/1.1") {
        return None;
    }
    status.parse().ok().filter(|status| (100..600).contains(status))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::{Destination, Origin};

    /// What comes before data in a message, of 1024 bytes in all.
    const FRAME_HEADER_LEN: usize = 8;

    #[test]
    fn reads_status_lines() {
        assert_eq!(status_of(b"HTTP/1.1 401 Unauthorized\r\n"), Some(401));
        assert_eq!(status_of(b"HTTP/1.0 200\n"), Some(200));
        assert_eq!(status_of(b"HTTP/1.1 200 OK\r\n"), Some(200));
        for line in [
            "SSH-2.0-OpenSSH_9\r\n",
            "HTTP/2.0 200 OK",
            "HTTP/1.1 2x0 OK\n",
            "HTTP/1.1 999 \n",
            "\n",
            "HTTP/1.1 \u{fffd}00 ",
        ] {
            assert_eq!(status_of(line.as_bytes()), None, "{line}");
        }
    }

    #[test]
    fn takes_authorities_as_client_go_does() {
        let own = rcgen::generate_simple_self_signed(["a".to_owned()]).unwrap();
        // One that is none is passed over beside another.
        let odd = "-----BEGIN CERTIFICATE-----\naGVsbG8=\n-----END CERTIFICATE-----\n";
        let text = STANDARD.encode(format!("{odd}{}", own.cert.pem()));
        let lines: Vec<_> = text.as_bytes().chunks(76).map(|line| std::str::from_utf8(line).unwrap()).collect();
        assert_eq!(roots(&lines.join("\r\n")).unwrap().len(), 1);
    }

    fn cluster(authority: &str, host: &str) -> Cluster {
        Cluster {
            name: "c".into(),
            region: "r".into(),
            account: "1".into(),
            id: "arn".into(),
            endpoint: Destination { host: host.into(), port: 443 },
            certificate_authority: Some(authority.into()),
            origin: Origin::Eks { token_name: "c".into() },
            vpc: None,
        }
    }

    #[tokio::test]
    async fn a_probe_begins_with_one_message_and_a_program_with_the_strongest_keys() {
        let own = rcgen::generate_simple_self_signed(["a".to_owned()]).unwrap();
        let host = "0123456789ABCDEF0123456789ABCDEF.gr7.ap-southeast-2.eks.amazonaws.com";
        let probe = Probe::new(&cluster(&STANDARD.encode(own.cert.pem()), host)).unwrap();
        let strong = u16::from(NamedGroup::X25519MLKEM768).to_be_bytes();
        for is_probe in [true, false] {
            let (near, mut far) = tokio::io::duplex(1 << 20);
            let says = async {
                let outcome = if is_probe {
                    probe.connect(near).await
                } else {
                    probe.connect_offering(vec![b"h2".to_vec()], near).await
                };
                assert!(outcome.is_err(), "nobody answers");
            };
            let hears = async {
                let mut hello = vec![0; 1 << 16];
                let len = far.read(&mut hello).await.unwrap();
                drop(far);
                hello.truncate(len);
                hello
            };
            let ((), hello) = tokio::join!(says, hears);
            let fits = hello.len() <= 1024 - FRAME_HEADER_LEN;
            let is_strong = hello.windows(2).any(|pair| pair == strong);
            assert_eq!((fits, is_strong), (is_probe, !is_probe), "{} bytes", hello.len());
        }
    }

    #[test]
    fn refuses_authorities_that_hold_no_certificate() {
        for authority in ["", "!", "aGVsbG8="] {
            let error = Probe::new(&cluster(authority, "h")).unwrap_err();
            assert!(matches!(error, ProbeError::Authority { .. }), "{error:?}");
        }
    }
}
