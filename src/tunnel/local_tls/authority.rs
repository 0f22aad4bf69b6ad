//! A certificate authority that is made in memory for one run, and signs one certificate: for the local ports.
//!
//! Invariant: no private key leaves the process, and that of the authority is cleared as soon as it has signed.

use std::sync::Arc;

use base64::{Engine, engine::general_purpose::STANDARD};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use rustls::{
    ServerConfig,
    crypto::aws_lc_rs,
    pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
    sign::{CertifiedKey, SingleCertAndKey},
};

use crate::secret::Secret;

/// What the local ports are called by.
const NAMES: [&str; 3] = ["127.0.0.1", "::1", "localhost"];

/// Why there is no authority.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    #[error("cannot make a certificate for the local ports")]
    Certificate(#[from] rcgen::Error),
    #[error("cannot use the certificate for the local ports")]
    Tls(#[from] rustls::Error),
}

/// The authority of one run, with what it has signed.
#[derive(Debug)]
pub struct Authority {
    data: Arc<str>,
    server: Arc<ServerConfig>,
}

impl Authority {
    /// Makes one.
    ///
    /// # Errors
    /// See [`AuthorityError`].
    pub fn new() -> Result<Self, AuthorityError> {
        let key = Secret::new(KeyPair::generate()?);
        let mut params = CertificateParams::default();
        // Another in each run: some programs tell authorities by their names.
        params
            .distinguished_name
            .push(DnType::CommonName, format!("local ports of autoheal-pa, {}", uuid::Uuid::new_v4()));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let data = STANDARD.encode(params.self_signed(key.expose())?.pem()).into();
        let issuer = Issuer::from_params(&params, key.expose());

        let server_key = Secret::new(KeyPair::generate()?);
        let mut params = CertificateParams::new(NAMES.map(ToOwned::to_owned))?;
        params.distinguished_name.push(DnType::CommonName, "localhost");
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(server_key.expose(), &issuer)?;
        // What the library keeps of it, it clears itself.
        let der = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(server_key.expose().serialized_der()));
        let signing_key = aws_lc_rs::sign::any_supported_type(&der)?;
        let certified = CertifiedKey::new(vec![certificate.der().clone()], signing_key);
        let server = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(certified)));
        Ok(Self { data, server: Arc::new(server) })
    }

    /// Returns its certificate as kubeconfigs have it: PEM in base64.
    #[must_use]
    pub fn data(&self) -> &Arc<str> {
        &self.data
    }

    pub(super) fn server(&self) -> &Arc<ServerConfig> {
        &self.server
    }
}
