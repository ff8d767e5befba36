//! The operator's own CA, its leaf certificates and the key that signs cold-start plans.

use std::sync::Arc;

use rustls::{server::ResolvesServerCert, sign::CertifiedKey};
use tokio::sync::watch;
use wire::{signed::KeyPair, v1};

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

/// A TLS server with the newest leaf certificate, for these protocols (ALPN).
pub fn server_config(certs: Certs, protocols: &[&str]) -> rustls::ServerConfig {
    let mut config = rustls::ServerConfig::builder().with_no_client_auth().with_cert_resolver(Arc::new(Newest(certs)));
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
    config
}

#[derive(Debug)]
struct Newest(Certs);

impl ResolvesServerCert for Newest {
    fn resolve(&self, _hello: rustls::server::ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.borrow().as_ref().map(|credentials| credentials.leaf.clone())
    }
}
