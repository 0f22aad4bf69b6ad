//! Trust, the same for the SDK's HTTP client and for the WebSocket.
//!
//! The SDK builds its TLS configuration by itself and takes none from outside, so the two share their inputs:
//! the system's roots and the CA bundle. A bundle is added to the system's roots and does not replace them.

use std::sync::{Arc, OnceLock};

use aws_smithy_http_client::{
    Builder, Connector, ConnectorBuilder,
    proxy::ProxyConfig,
    tls::{Provider, TlsContext, TrustStore, rustls_provider::CryptoMode},
};
use aws_smithy_runtime_api::client::{
    http::{HttpConnector, HttpConnectorSettings, SharedHttpClient, SharedHttpConnector},
    runtime_components::RuntimeComponents,
};
use rustls::{ClientConfig, RootCertStore, crypto::aws_lc_rs, pki_types::CertificateDer};

use super::{
    CONNECT_LIMIT, READ_LIMIT,
    bundle::Bundle,
    offset::ClockOffset,
    outbound::{Client, Plain},
    routes::{Routes, Way},
};

pub(super) fn http_client(bundle: Option<&Bundle>, routes: Arc<Routes>, offset: ClockOffset) -> SharedHttpClient {
    let trust = trust(bundle);
    let make = move |way: Option<&Way<'_>>| {
        let (trust, proxies) = (trust.clone(), proxies(way));
        let client = Builder::new().build_with_connector_fn(
            move |settings: Option<&HttpConnectorSettings>, components: Option<&RuntimeComponents>| {
                let mut builder = ConnectorBuilder::default().connector_settings(settings.cloned().unwrap_or_default());
                builder.set_sleep_impl(components.and_then(RuntimeComponents::sleep_impl));
                connector(builder, &trust, &proxies)
            },
        );
        SharedHttpClient::new(client)
    };
    SharedHttpClient::new(Client::new(routes, offset, make))
}

/// Makes an HTTP client for requests to one host that the SDK has no part in.
pub(super) fn http_connector(bundle: Option<&Bundle>, routes: Arc<Routes>) -> Arc<dyn HttpConnector> {
    let settings = HttpConnectorSettings::builder().connect_timeout(CONNECT_LIMIT).read_timeout(READ_LIMIT).build();
    let trust = trust(bundle);
    Arc::new(Plain::new(routes, move |way| {
        let builder = ConnectorBuilder::default().connector_settings(settings.clone());
        SharedHttpConnector::new(connector(builder, &trust, &proxies(way)))
    }))
}

fn proxies(way: Option<&Way<'_>>) -> ProxyConfig {
    way.map_or_else(ProxyConfig::disabled, Way::config)
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
        Some(bundle) => trust.with_pem_certificate(bundle.pem()),
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
        Self { extra: bundle.map(|bundle| bundle.certificates().to_vec()).unwrap_or_default(), config: OnceLock::new() }
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
            let errors: Vec<_> = native.errors.iter().map(ToString::to_string).collect();
            tracing::warn!(errors = errors.join("; "), "some root certificates of the system cannot be loaded");
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
