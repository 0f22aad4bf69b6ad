//! Trust and proxies, the same for the SDK's HTTP client and for the WebSocket.
//!
//! The SDK builds its TLS configuration by itself and takes none from outside, so the two share their inputs:
//! the system's roots, the CA bundle, and the proxy variables. A bundle is added to the system's roots and does
//! not replace them.

use std::{
    path::Path,
    sync::{Arc, OnceLock},
};

use aws_smithy_http_client::{
    Builder, Connector, ConnectorBuilder,
    proxy::ProxyConfig,
    tls::{Provider, TlsContext, TrustStore, rustls_provider::CryptoMode},
};
use aws_smithy_runtime_api::client::{
    http::{HttpClient, HttpConnector, HttpConnectorSettings, SharedHttpClient, SharedHttpConnector},
    runtime_components::RuntimeComponents,
};
use rustls::{
    ClientConfig, RootCertStore,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, pem::PemObject},
};

use super::{CONNECT_LIMIT, READ_LIMIT, error::AwsError};

/// Additional certificate authorities, checked once so that nothing stumbles over them later.
#[derive(Debug, Clone)]
pub(super) struct Bundle {
    pem: Vec<u8>,
    certificates: Vec<CertificateDer<'static>>,
}

/// What is wrong with a bundle that can be read.
#[derive(Debug, thiserror::Error)]
enum BundleError {
    #[error("it is not in PEM format")]
    Pem(#[source] rustls::pki_types::pem::Error),
    #[error("its certificate number {0} cannot be parsed")]
    Certificate(usize, #[source] rustls::Error),
    #[error("it has no certificates")]
    Empty,
}

impl Bundle {
    /// Reads a bundle.
    ///
    /// # Errors
    /// [`AwsError::CaBundle`].
    pub(super) async fn read(path: &Path) -> Result<Self, AwsError> {
        let failed = |source| AwsError::CaBundle { path: path.to_owned(), source };
        let pem = tokio::fs::read(path).await.map_err(|error| failed(Arc::new(error)))?;
        Self::parse(pem).map_err(|error| failed(Arc::new(error)))
    }

    fn parse(pem: Vec<u8>) -> Result<Self, BundleError> {
        let certificates: Vec<_> =
            CertificateDer::pem_slice_iter(&pem).collect::<Result<_, _>>().map_err(BundleError::Pem)?;
        // The SDK panics on a certificate that cannot be parsed.
        let mut roots = RootCertStore::empty();
        for (index, certificate) in certificates.iter().enumerate() {
            roots.add(certificate.clone()).map_err(|error| BundleError::Certificate(index + 1, error))?;
        }
        if certificates.is_empty() {
            return Err(BundleError::Empty);
        }
        Ok(Self { pem, certificates })
    }
}

/// An HTTP client that is not set up before it is used: the SDK would have each of its clients try one, which loads
/// and parses the system's roots, and a token takes no call.
#[derive(Debug)]
struct OnUse(SharedHttpClient);

impl HttpClient for OnUse {
    fn http_connector(&self, settings: &HttpConnectorSettings, components: &RuntimeComponents) -> SharedHttpConnector {
        self.0.http_connector(settings, components)
    }
}

/// Makes the HTTP client of the SDK.
pub(super) fn http_client(bundle: Option<&Bundle>, proxies: ProxyConfig) -> SharedHttpClient {
    let trust = trust(bundle);
    let client = Builder::new().build_with_connector_fn(
        move |settings: Option<&HttpConnectorSettings>, components: Option<&RuntimeComponents>| {
            let mut builder = ConnectorBuilder::default().connector_settings(settings.cloned().unwrap_or_default());
            builder.set_sleep_impl(components.and_then(RuntimeComponents::sleep_impl));
            connector(builder, &trust, &proxies)
        },
    );
    SharedHttpClient::new(OnUse(client))
}

/// Makes an HTTP client for single requests that the SDK has no part in.
pub(super) fn http_connector(bundle: Option<&Bundle>, proxies: &ProxyConfig) -> Arc<dyn HttpConnector> {
    let settings = HttpConnectorSettings::builder().connect_timeout(CONNECT_LIMIT).read_timeout(READ_LIMIT).build();
    Arc::new(connector(ConnectorBuilder::default().connector_settings(settings), &trust(bundle), proxies))
}

fn connector(mut builder: ConnectorBuilder, trust: &TrustStore, proxies: &ProxyConfig) -> Connector {
    builder.set_proxy_config(Some(proxies.clone()));
    let builder = builder.tls_provider(Provider::Rustls(CryptoMode::AwsLc));
    // A debug build of the SDK panics where the system has no roots; others do without, and say whom they do not trust.
    let native = !cfg!(debug_assertions) || !rustls_native_certs::load_native_certs().certs.is_empty();
    match TlsContext::builder().with_trust_store(trust.clone().with_native_roots(native)).build() {
        Ok(context) => builder.tls_context(context).build(),
        // Nothing of a trust store can fail here; without it the system's roots are trusted.
        Err(_) => builder.build(),
    }
}

fn trust(bundle: Option<&Bundle>) -> TrustStore {
    let trust = TrustStore::default();
    match bundle {
        Some(bundle) => trust.with_pem_certificate(bundle.pem.clone()),
        None => trust,
    }
}

/// The TLS configuration of WebSockets, made when the first one is dialled: to load and parse the system's
/// roots takes some ten milliseconds.
#[derive(Debug)]
pub(super) struct Tls {
    extra: Vec<CertificateDer<'static>>,
    config: OnceLock<Arc<ClientConfig>>,
}

impl Tls {
    pub(super) fn new(bundle: Option<&Bundle>) -> Self {
        Self { extra: bundle.map(|bundle| bundle.certificates.clone()).unwrap_or_default(), config: OnceLock::new() }
    }

    /// Returns the configuration.
    ///
    /// # Errors
    /// When the crypto provider has none of the protocol versions.
    pub(super) fn config(&self) -> Result<Arc<ClientConfig>, rustls::Error> {
        if let Some(config) = self.config.get() {
            return Ok(Arc::clone(config));
        }
        let native = rustls_native_certs::load_native_certs();
        if !native.errors.is_empty() {
            tracing::warn!(errors = ?native.errors, "some root certificates of the system cannot be loaded");
        }
        let mut roots = RootCertStore::empty();
        let (added, ignored) = roots.add_parsable_certificates(native.certs);
        tracing::debug!(added, ignored, extra = self.extra.len(), "loaded root certificates");
        roots.add_parsable_certificates(self.extra.iter().cloned());
        if roots.is_empty() {
            tracing::warn!("there are no root certificates: TLS connections will fail");
        }
        let mut config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        // WebSockets upgrade from HTTP/1.1; nothing else may be chosen.
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Arc::clone(self.config.get_or_init(|| Arc::new(config))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::aws::error::chain_text;

    #[tokio::test]
    async fn names_a_bundle_that_cannot_be_used() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ca.pem");
        let name = format!("the CA bundle `{}` cannot be used: ", path.display());
        let error = async |content: Option<&str>| {
            if let Some(content) = content {
                std::fs::write(&path, content).unwrap();
            }
            chain_text(&Bundle::read(&path).await.unwrap_err()).strip_prefix(&name).unwrap().to_owned()
        };
        assert!(error(None).await.contains("No such file"));
        assert_eq!(error(Some("hello")).await, "it has no certificates");
        assert!(
            error(Some("-----BEGIN CERTIFICATE-----\n!!!!\n-----END CERTIFICATE-----\n"))
                .await
                .starts_with("it is not in PEM")
        );
        assert!(
            error(Some("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"))
                .await
                .starts_with("its certificate number 1 cannot be parsed")
        );
    }
}
