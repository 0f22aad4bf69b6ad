//! Certificate authorities and server certificates, made afresh for each emulator.

use std::sync::{Arc, OnceLock};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, PKCS_RSA_SHA256, RsaKeySize,
};
use rustls::{
    ConfigBuilder, RootCertStore, ServerConfig, WantsVerifier,
    pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
    server::{WantsServerCert, WebPkiClientVerifier},
};
use tokio_rustls::TlsAcceptor;

use super::EmulatorError;

/// A certificate by which a client logs in.
#[derive(Debug, Clone)]
pub struct ClientCertificate {
    /// PEM.
    pub certificate: String,
    /// PEM.
    pub key: String,
    pub(super) der: Vec<u8>,
}

/// What keys an authority and its certificates have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum KeyKind {
    /// One of its own each, on the curve P-256.
    Curve,
    /// RSA with 2048 bits, and the same for all of them, as it takes long to make one.
    Rsa,
}

impl KeyKind {
    fn key(self) -> Result<KeyPair, EmulatorError> {
        static RSA: OnceLock<Vec<u8>> = OnceLock::new();
        match (self, RSA.get()) {
            (Self::Curve, _) => Ok(KeyPair::generate()?),
            (Self::Rsa, Some(key)) => Ok(KeyPair::try_from(&key[..])?),
            (Self::Rsa, None) => {
                let key = KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048)?;
                Ok(KeyPair::try_from(&RSA.get_or_init(|| key.serialize_der())[..])?)
            }
        }
    }
}

/// A certificate authority.
pub(super) struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    keys: KeyKind,
}

impl Authority {
    pub(super) fn new(name: &str, keys: KeyKind) -> Result<Self, EmulatorError> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages =
            vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::CrlSign];
        Ok(Self { issuer: CertifiedIssuer::self_signed(params, keys.key()?)?, keys })
    }

    /// The authority's certificate.
    pub(super) fn pem(&self) -> String {
        self.issuer.pem()
    }

    /// A certificate of this authority by which a client logs in as a user.
    pub(super) fn client(&self, user: &str) -> Result<ClientCertificate, EmulatorError> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, user);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok(ClientCertificate {
            certificate: certificate.pem(),
            key: key.serialize_pem(),
            der: certificate.der().to_vec(),
        })
    }

    /// A server that shows a certificate of this authority for these names and addresses.
    pub(super) fn acceptor(&self, names: Vec<String>) -> Result<TlsAcceptor, EmulatorError> {
        let config = Self::server()?.with_no_client_auth();
        self.acceptor_of(names, config)
    }

    /// The same, which also takes certificates of clients that are of this authority, as API servers do.
    pub(super) fn acceptor_for_clients(&self, names: Vec<String>) -> Result<TlsAcceptor, EmulatorError> {
        let mut roots = RootCertStore::empty();
        roots.add(self.issuer.der().clone())?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
        let clients =
            clients.allow_unauthenticated().build().map_err(|error| rustls::Error::General(error.to_string()))?;
        let config = Self::server()?.with_client_cert_verifier(clients);
        self.acceptor_of(names, config)
    }

    fn server() -> Result<ConfigBuilder<ServerConfig, WantsVerifier>, EmulatorError> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        Ok(ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?)
    }

    fn acceptor_of(
        &self,
        names: Vec<String>,
        config: ConfigBuilder<ServerConfig, WantsServerCert>,
    ) -> Result<TlsAcceptor, EmulatorError> {
        let key = self.keys.key()?;
        let mut params = CertificateParams::new(names)?;
        params.distinguished_name.push(DnType::CommonName, "emulated server");
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(&key, &self.issuer)?;
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let mut config = config.with_single_cert(vec![certificate.der().clone()], key)?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(TlsAcceptor::from(Arc::new(config)))
    }
}
