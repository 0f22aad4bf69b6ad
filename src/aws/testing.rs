//! What the tests of this module share: a small HTTP server that answers as told, and clients that call it.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use aws_credential_types::{Credentials, provider::SharedCredentialsProvider};
use aws_smithy_runtime_api::client::http::HttpConnector;
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader},
    net::TcpListener,
    sync::{Semaphore, watch},
    task::JoinSet,
};
use tokio_rustls::TlsAcceptor;

use super::{Ambient, Aws, ClockOffset, Surroundings, routes::Routes, tls};
use crate::{
    clock::Clock,
    settings::{AwsSettings, Proxies},
};

/// A request as the server read it.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) method: String,
    pub(crate) target: String,
    pub(crate) headers: HashMap<String, String>,
    pub(crate) body: String,
}

impl Request {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    /// The operation of a JSON service, or of a query service.
    pub(crate) fn operation(&self) -> &str {
        match self.header("x-amz-target") {
            Some(target) => target.rsplit('.').next().unwrap(),
            None => self.parameter("Action"),
        }
    }

    /// A parameter of a query service, not decoded.
    pub(crate) fn parameter(&self, name: &str) -> &str {
        let mut pairs = self.body.split('&').filter_map(|pair| pair.split_once('='));
        pairs.find(|pair| pair.0 == name).map_or("", |pair| pair.1)
    }
}

#[derive(Debug, Clone)]
pub(crate) struct Answer {
    status: u16,
    headers: Vec<(String, String)>,
    body: String,
    gate: Option<Arc<Semaphore>>,
}

impl Answer {
    pub(crate) fn json(status: u16, body: &str) -> Self {
        Self {
            status,
            headers: vec![("content-type".into(), "application/json".into())],
            body: body.into(),
            gate: None,
        }
    }

    pub(crate) fn xml(status: u16, body: &str) -> Self {
        Self { status, headers: vec![("content-type".into(), "text/xml".into())], body: body.into(), gate: None }
    }

    pub(super) fn html(body: &str) -> Self {
        Self { status: 200, headers: vec![("content-type".into(), "text/html".into())], body: body.into(), gate: None }
    }

    pub(super) fn status(self, status: u16) -> Self {
        Self { status, ..self }
    }

    /// The error of a query service such as STS.
    pub(crate) fn query_error(status: u16, code: &str, message: &str) -> Self {
        Self::xml(
            status,
            &format!(
                "<ErrorResponse><Error><Type>Sender</Type><Code>{code}</Code><Message>{message}</Message></Error>\
                 <RequestId>r-1</RequestId></ErrorResponse>"
            ),
        )
        .with("x-amzn-requestid", "r-1")
    }

    /// The error of a JSON service such as Systems Manager.
    pub(crate) fn json_error(status: u16, code: &str, message: &str) -> Self {
        Self::json(status, &serde_json::json!({ "__type": code, "message": message }).to_string())
    }

    pub(crate) fn with(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }
}

impl Answer {
    /// Waits with the answer until the gate has a permit for it.
    pub(crate) fn held_by(mut self, gate: &Arc<Semaphore>) -> Self {
        self.gate = Some(Arc::clone(gate));
        self
    }
}

type Handler = dyn Fn(&Request) -> Answer + Send + Sync;

/// An HTTP server on loopback, gone when it is dropped.
pub(crate) struct Fake {
    port: u16,
    secure: bool,
    requests: Arc<Mutex<Vec<Request>>>,
    /// Requests that have not been answered, and the most that there have been.
    pending: watch::Sender<(usize, usize)>,
    _tasks: JoinSet<()>,
}

impl Fake {
    pub(crate) async fn start(handler: impl Fn(&Request) -> Answer + Send + Sync + 'static) -> Self {
        Self::listen(Arc::new(handler), None).await
    }

    /// Starts a server for `localhost` that speaks TLS, and returns the certificate to trust.
    #[cfg(feature = "demo")]
    pub(crate) async fn start_with_tls(handler: impl Fn(&Request) -> Answer + Send + Sync + 'static) -> (Self, String) {
        let (acceptor, certificate) = tls_acceptor(&[b"http/1.1"]);
        (Self::listen(Arc::new(handler), Some(acceptor)).await, certificate)
    }

    async fn listen(handler: Arc<Handler>, acceptor: Option<TlsAcceptor>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&requests);
        let (pending, _) = watch::channel((0, 0));
        let count = pending.clone();
        let secure = acceptor.is_some();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (seen, count, handler) = (Arc::clone(&seen), count.clone(), Arc::clone(&handler));
                let acceptor = acceptor.clone();
                connections.spawn(async move {
                    match acceptor {
                        None => serve(stream, seen, count, handler).await,
                        Some(acceptor) => {
                            if let Ok(stream) = acceptor.accept(stream).await {
                                serve(stream, seen, count, handler).await;
                            }
                        }
                    }
                });
            }
        });
        Self { port, secure, requests, pending, _tasks: tasks }
    }

    pub(crate) fn url(&self) -> String {
        if self.secure { format!("https://localhost:{}", self.port) } else { format!("http://127.0.0.1:{}", self.port) }
    }

    pub(crate) fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }

    /// Waits until so many requests are without an answer.
    pub(crate) async fn until_pending(&self, wanted: usize) {
        in_time(self.pending.subscribe().wait_for(|count| count.0 == wanted)).await.unwrap();
    }

    /// The most requests that have been without an answer at a time.
    pub(crate) fn most_pending(&self) -> usize {
        self.pending.borrow().1
    }

    pub(crate) fn operations(&self) -> Vec<String> {
        self.requests().iter().map(|request| request.operation().to_owned()).collect()
    }
}

async fn serve<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    seen: Arc<Mutex<Vec<Request>>>,
    pending: watch::Sender<(usize, usize)>,
    handler: Arc<Handler>,
) {
    let mut stream = BufReader::new(stream);
    while let Some(request) = read(&mut stream).await {
        seen.lock().unwrap().push(request.clone());
        pending.send_modify(|count| *count = (count.0 + 1, count.1.max(count.0 + 1)));
        let answer = handler(&request);
        if let Some(gate) = &answer.gate {
            gate.acquire().await.unwrap().forget();
        }
        pending.send_modify(|count| count.0 -= 1);
        let mut text = format!("HTTP/1.1 {} x\r\ncontent-length: {}\r\n", answer.status, answer.body.len());
        for (name, value) in &answer.headers {
            text.push_str(&format!("{name}: {value}\r\n"));
        }
        text.push_str("\r\n");
        text.push_str(&answer.body);
        if stream.write_all(text.as_bytes()).await.is_err() {
            return;
        }
    }
}

async fn read<S: AsyncRead + Unpin>(stream: &mut BufReader<S>) -> Option<Request> {
    let mut line = String::new();
    stream.read_line(&mut line).await.ok().filter(|len| *len > 0)?;
    let mut words = line.split(' ').map(ToOwned::to_owned);
    let (method, target) = (words.next()?, words.next()?);
    let mut headers = HashMap::new();
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).await.ok()?;
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    let len = headers.get("content-length").map_or(0, |len| len.parse().unwrap());
    let mut body = vec![0; len];
    stream.read_exact(&mut body).await.ok()?;
    Some(Request { method, target, headers, body: String::from_utf8(body).unwrap() })
}

/// Makes a TLS server for `localhost`, and the certificate that it shows.
#[cfg(feature = "demo")]
pub(crate) fn tls_acceptor(protocols: &[&[u8]]) -> (TlsAcceptor, String) {
    tls_acceptor_for("localhost", protocols)
}

/// The same for another name.
#[cfg(feature = "demo")]
pub(crate) fn tls_acceptor_for(name: &str, protocols: &[&[u8]]) -> (TlsAcceptor, String) {
    use rustls::{ServerConfig, crypto::aws_lc_rs, pki_types::PrivateKeyDer};
    let rcgen::CertifiedKey { cert, signing_key } = rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
    let key = PrivateKeyDer::try_from(signing_key.serialize_der()).unwrap();
    let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![cert.der().clone()], key)
        .unwrap();
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    (TlsAcceptor::from(Arc::new(config)), cert.pem())
}

/// An HTTP client that uses no proxy.
pub(crate) fn http() -> Arc<dyn HttpConnector> {
    tls::http_connector(None, Arc::new(Routes::new(Proxies::default())))
}

/// Clients with fixed keys whose services are all the fake one; stream URLs on loopback are allowed.
pub(crate) async fn aws(fake: &Fake) -> Aws {
    let settings = AwsSettings {
        region: Some("us-east-1".into()),
        ssm_endpoint_override: true,
        ssm_endpoint: Some(fake.url()),
        ..AwsSettings::default()
    };
    aws_with(fake, &settings).await
}

pub(crate) async fn aws_with(fake: &Fake, settings: &AwsSettings) -> Aws {
    let keys = Credentials::new("AKIDEXAMPLE", "secret", Some("session".into()), None, "test");
    let surroundings = Surroundings {
        ambient: Some(Ambient::of("us-east-1", SharedCredentialsProvider::new(keys))),
        endpoint: Some(fake.url()),
        plain: true,
        ..Surroundings::default()
    };
    Box::pin(Aws::build(settings, surroundings)).await.unwrap()
}

/// As [`aws_with`], on a machine whose clock [`shifted`] sets.
pub(crate) async fn aws_with_shifted_clock(fake: &Fake, settings: &AwsSettings) -> Aws {
    let keys = Credentials::new("AKIDEXAMPLE", "secret", Some("session".into()), None, "test");
    let surroundings = Surroundings {
        ambient: Some(Ambient::of("us-east-1", SharedCredentialsProvider::new(keys))),
        endpoint: Some(fake.url()),
        plain: true,
        offset: ClockOffset::new(Clock::with_wall(shifted::wall)),
    };
    Box::pin(Aws::build(settings, surroundings)).await.unwrap()
}

/// A wall clock that a test sets, for its own thread.
pub(crate) mod shifted {
    use std::{cell::Cell, time::Duration};

    thread_local!(static BY: Cell<i64> = const { Cell::new(0) });

    /// Sets the clock ahead of the machine's by so many seconds.
    pub(crate) fn set(seconds: i64) {
        BY.set(seconds);
    }

    pub(crate) fn wall() -> Duration {
        let by = BY.get();
        let size = Duration::from_secs(by.unsigned_abs());
        if by < 0 { crate::clock::wall() - size } else { crate::clock::wall() + size }
    }
}

/// Clients with these keys (access key, secret key, session token), whose services are all at one endpoint.
#[cfg(feature = "demo")]
pub(crate) async fn aws_at(endpoint: String, keys: [String; 3]) -> Aws {
    aws_with_keys(endpoint, keys, AwsSettings::default()).await
}

/// The same with these settings besides.
#[cfg(feature = "demo")]
pub(crate) async fn aws_with_keys(endpoint: String, keys: [String; 3], settings: AwsSettings) -> Aws {
    let [access_key, secret, token] = keys;
    let keys = Credentials::new(access_key, secret, Some(token), None, "test");
    let settings = AwsSettings {
        region: Some("us-east-1".into()),
        ssm_endpoint_override: true,
        ssm_endpoint: Some(endpoint.clone()),
        ..settings
    };
    let surroundings = Surroundings {
        ambient: Some(Ambient::of("us-east-1", SharedCredentialsProvider::new(keys))),
        endpoint: Some(endpoint),
        plain: true,
        ..Surroundings::default()
    };
    Box::pin(Aws::build(&settings, surroundings)).await.unwrap()
}

/// Fails a test that waits for ever.
pub(crate) async fn in_time<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(Duration::from_secs(20), future).await.expect("the peer answers in time")
}
