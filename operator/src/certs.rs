//! The operator's own CA, its leaf certificates and the key that signs cold-start plans.
//!
//! All of it is one Secret. The leader renews it ([`keep`]); every replica follows it ([`follow`]) and serves what is in there.
//! What is due is decided by [`Keyring::renewed`], a pure function.

mod bundle;
mod keep;
mod keyring;

use std::sync::Arc;

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{family::Family, gauge::Gauge},
    registry::Registry,
};
use rustls::{
    ServerConfig,
    crypto::CryptoProvider,
    server::{ResolvesServerCert, danger::ClientCertVerifier},
    sign::CertifiedKey,
};
use tokio::sync::watch;
use wire::{signed::KeyPair, v1};

pub use keep::{follow, keep};
pub use keyring::{Keyring, KeyringError, UnixTime};

/// What the Secret holds, parsed; swapped whole when it changes.
#[derive(Debug)]
pub struct Credentials {
    /// Leaf certificate and key of all TLS servers.
    pub leaf: Arc<CertifiedKey>,
    /// What sidecars are to trust.
    pub trust: v1::Trust,
    /// Signs cold-start plans.
    pub signing_key: Arc<KeyPair>,
}

/// The newest credentials; None until the Secret was read. Cheap to clone.
pub type Certs = watch::Receiver<Option<Arc<Credentials>>>;

/// The end of [`Certs`] that is written to; cheap to clone.
#[derive(Clone, Debug)]
pub struct Installer {
    current: watch::Sender<Option<Arc<Credentials>>>,
    expiry: Family<Certificate, Gauge>,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct Certificate {
    certificate: &'static str,
}

impl Installer {
    /// Nothing is installed yet.
    pub fn new(registry: &mut Registry) -> Self {
        let expiry = Family::default();
        let help = "When the certificate ends, in seconds since 1970";
        registry.register("certificate_expiry_timestamp_seconds", help, Family::clone(&expiry));
        Self { current: watch::Sender::new(None), expiry }
    }

    /// What is installed, now and later.
    pub fn certs(&self) -> Certs {
        self.current.subscribe()
    }

    /// Uses a keyring from now on.
    pub fn install(&self, keyring: &Keyring, now: UnixTime) -> Result<(), KeyringError> {
        let credentials = keyring.credentials(now)?;
        for (certificate, not_after) in keyring.expiries(now) {
            self.expiry.get_or_create(&Certificate { certificate }).set(not_after);
        }
        self.current.send_replace(Some(Arc::new(credentials)));
        Ok(())
    }
}

/// TLS of a server with the leaf certificate of the moment of each handshake, for these protocols (ALPN).
pub fn server_config(certs: Certs, protocols: &[&str]) -> ServerConfig {
    finish(builder().with_no_client_auth(), certs, protocols)
}

/// As [`server_config`], for a server that asks for client certificates.
pub fn server_config_with(verifier: Arc<dyn ClientCertVerifier>, certs: Certs, protocols: &[&str]) -> ServerConfig {
    finish(builder().with_client_cert_verifier(verifier), certs, protocols)
}

fn builder() -> rustls::ConfigBuilder<ServerConfig, rustls::WantsVerifier> {
    let builder = ServerConfig::builder_with_provider(provider());
    builder.with_safe_default_protocol_versions().expect("the provider has suites for TLS 1.2 and 1.3")
}

fn finish(
    builder: rustls::ConfigBuilder<ServerConfig, rustls::server::WantsServerCert>,
    certs: Certs,
    protocols: &[&str],
) -> ServerConfig {
    let mut config = builder.with_cert_resolver(Arc::new(Newest(certs)));
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
    config
}

/// The one provider of cryptography, named so that nothing hangs on a process-wide default.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

#[derive(Debug)]
struct Newest(Certs);

impl ResolvesServerCert for Newest {
    fn resolve(&self, _hello: rustls::server::ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.borrow().as_ref().map(|credentials| credentials.leaf.clone())
    }
}

/// Now, in seconds since 1970.
pub fn unix_now() -> UnixTime {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}
