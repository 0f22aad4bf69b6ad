//! A Kubernetes client that watches pods through the tunnel: the `kube` crate over a connection in memory. Every
//! change has to come once and in order.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use futures_util::{StreamExt, TryStreamExt, future::BoxFuture};
use http::Uri;
use hyper_util::{
    client::legacy::{
        self,
        connect::{Connected, Connection},
    },
    rt::{TokioExecutor, TokioIo},
};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api,
    api::{WatchEvent, WatchParams},
    client::Body,
};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tower_service::Service;

use autoheal_pa::util::connection::Connection as AnyConnection;

use super::{Client, Port, RETRY, Site};

/// See the module.
pub(super) struct Watch {
    client: Client,
    api: Api<Pod>,
}

impl Watch {
    pub(super) fn new(client: Client, site: &Site) -> Self {
        let connector = Connector { port: site.port.clone(), tls: tls(site), host: site.host.clone() };
        let http = legacy::Client::builder(TokioExecutor::new()).build::<_, Body>(connector);
        let service = Prefixed { http, host: site.host.clone() };
        Self { api: Api::all(kube::Client::new(service, "default")), client }
    }

    /// Watches until the stop.
    pub(super) async fn run(self) {
        let stop = self.client.stop.clone();
        let mut seen = None;
        while !stop.is_cancelled() {
            let watched = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                watched = self.watch(&mut seen) => watched,
            };
            if watched.is_err() {
                self.client.ledger.was_reset(self.client.activity);
                tokio::time::sleep(RETRY).await;
            }
        }
    }

    /// Follows changes from the last one that was seen until the server ends the watch in good order.
    async fn watch(&self, seen: &mut Option<u64>) -> Result<(), kube::Error> {
        let (ledger, activity) = (&self.client.ledger, self.client.activity);
        ledger.asked(activity);
        let from = match *seen {
            Some(version) => version,
            None => {
                let list = self.api.list(&Default::default()).await?;
                let version = list.metadata.resource_version.and_then(|version| version.parse().ok());
                *seen.insert(version.unwrap_or_default())
            }
        };
        let mut changes = self.api.watch(&WatchParams::default(), &from.to_string()).await?.boxed();
        while let Some(change) = changes.try_next().await? {
            let version = match change {
                WatchEvent::Modified(pod) => pod.metadata.resource_version.and_then(|version| version.parse().ok()),
                other @ (WatchEvent::Added(_)
                | WatchEvent::Deleted(_)
                | WatchEvent::Bookmark(_)
                | WatchEvent::Error(_)) => {
                    ledger.complain(format!("the watch got {other:?}"));
                    continue;
                }
            };
            // Nothing but the pods changes here, by one version each time.
            let (last, version): (u64, u64) = (seen.unwrap_or_default(), version.unwrap_or_default());
            if version != last + 1 {
                ledger.complain(format!("the watch got version {version} after {last}"));
            }
            *seen = Some(version);
            ledger.arrived(activity, true);
        }
        Ok(())
    }
}

fn tls(site: &Site) -> TlsConnector {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    let pem = STANDARD.decode(&site.certificate_authority).expect("the emulator gives base64");
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        roots.add(certificate.expect("the emulator gives PEM")).expect("the emulator makes certificates");
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let config = config.expect("the provider has them").with_root_certificates(roots).with_no_client_auth();
    TlsConnector::from(Arc::new(config))
}

/// Completes the URLs of requests, which `kube` leaves to its base layer.
#[derive(Clone)]
struct Prefixed {
    http: legacy::Client<Connector, Body>,
    host: String,
}

impl Service<http::Request<Body>> for Prefixed {
    type Response = http::Response<hyper::body::Incoming>;
    type Error = legacy::Error;
    type Future = legacy::ResponseFuture;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.http.poll_ready(cx)
    }

    fn call(&mut self, mut request: http::Request<Body>) -> Self::Future {
        let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
        *request.uri_mut() = format!("https://{}{path}", self.host).parse().expect("host and path make a URL");
        self.http.call(request)
    }
}

/// Connects through the tunnel.
#[derive(Clone)]
struct Connector {
    port: Port,
    tls: TlsConnector,
    host: String,
}

impl Service<Uri> for Connector {
    type Response = TokioIo<Secured>;
    type Error = io::Error;
    type Future = BoxFuture<'static, io::Result<Self::Response>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _uri: Uri) -> Self::Future {
        let Self { port, tls, host } = self.clone();
        Box::pin(async move {
            let name = ServerName::try_from(host).map_err(io::Error::other)?;
            Ok(TokioIo::new(Secured(tls.connect(name, port.connect().await?).await?)))
        })
    }
}

/// A TLS connection as the HTTP client takes it.
struct Secured(TlsStream<Box<dyn AnyConnection>>);

impl Connection for Secured {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl AsyncRead for Secured {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Secured {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
