//! TLS with clients and with upstreams: what stands in files becomes the configuration of a handshake, and follows the files.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use crds::policy::Direction;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};
use rustls::{AlertDescription, CommonState, HandshakeKind, crypto::CryptoProvider};

use crate::metrics::DirectionLabel;

mod client;
pub(crate) mod hello;
mod load;
mod originations;
mod question;
mod server;
mod turns;

pub(crate) use client::{Offer, Origination, client_config};
pub(crate) use load::{Leaf, Reader, TlsError};
pub(crate) use originations::Originations;
#[cfg(feature = "http3")]
pub(crate) use server::HANDSHAKE;
pub(crate) use server::{Chosen, SHED, Terminator, TicketKeys, server_config};
pub(crate) use turns::Turns;

/// HTTP/2 in the names of ALPN (RFC 7301).
pub(crate) const H2: &[u8] = b"h2";

/// HTTP/1.1 in the names of ALPN.
pub(crate) const HTTP1: &[u8] = b"http/1.1";

/// Where the Secrets of a pod are mounted, one folder each; nowhere if the proxy stands alone.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Secrets(pub(crate) Option<PathBuf>);

impl Secrets {
    pub(crate) fn file(&self, secret: &str, key: &str) -> Result<PathBuf, TlsError> {
        match &self.0 {
            Some(folder) => Ok(folder.join(secret).join(key)),
            None => Err(TlsError::NoSecrets(secret.to_owned())),
        }
    }
}

/// What is counted.
#[derive(Clone, Debug, Default)]
pub(crate) struct Metrics {
    handshakes: Family<Handshake, Counter>,
    passed: Family<Passed, Counter>,
    reloads: Family<Reload, Counter>,
    expiry: Family<Expiry, Gauge>,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct Handshake {
    peer: &'static str,
    result: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct Passed {
    direction: DirectionLabel,
    server_name: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct Reload {
    result: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct Expiry {
    listener: String,
    certificate: String,
}

impl Metrics {
    pub(crate) fn register(&self, registry: &mut Registry) {
        registry.register(
            "fetchr_tls_handshakes",
            "TLS handshakes with clients and upstreams, by result",
            self.handshakes.clone(),
        );
        let help = "Connections of TLS that is not ours, by whether they name their host";
        registry.register("fetchr_tls_passed", help, self.passed.clone());
        registry.register("fetchr_tls_reloads", "Changed certificates that were taken or refused", self.reloads.clone());
        registry.register(
            "fetchr_tls_certificate_expiry_timestamp_seconds",
            "When a listener's certificate ends, in seconds since 1970",
            self.expiry.clone(),
        );
    }

    /// Counts a connection of TLS that is not ours: does it name its host?
    pub(crate) fn passed(&self, direction: Direction, server_name: &'static str) {
        self.passed.get_or_create(&Passed { direction: direction.into(), server_name }).inc();
    }

    /// Counts a handshake with a `client` or an `upstream`.
    pub(crate) fn handshake(&self, peer: &'static str, result: &'static str) {
        self.handshakes.get_or_create(&Handshake { peer, result }).inc();
    }

    pub(crate) fn reloaded(&self, taken: bool) {
        self.reloads.get_or_create(&Reload { result: if taken { "taken" } else { "refused" } }).inc();
    }

    /// When the certificates of a listener end, each by its first name; the names of before are forgotten.
    pub(crate) fn expiries(&self, listener: &str, before: &[Leaf], now: &[Leaf]) {
        let labels = |leaf: &Leaf| Expiry { listener: listener.to_owned(), certificate: leaf.label().to_owned() };
        for leaf in before {
            self.expiry.remove(&labels(leaf));
        }
        for leaf in now {
            self.expiry.get_or_create(&labels(leaf)).set(leaf.not_after);
        }
    }
}

/// The one provider of cryptography, named so that nothing hangs on a process-wide default.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

/// A handshake that went well, as a label.
fn success(session: &CommonState) -> &'static str {
    match session.handshake_kind() {
        Some(HandshakeKind::Resumed) => "resumed",
        _ => "full",
    }
}

/// Why a handshake failed, as a label.
pub(crate) fn failure(error: &io::Error) -> &'static str {
    use rustls::Error;
    match cause(error) {
        None => "broken_off",
        Some(Error::AlertReceived(alert)) if is_about_certificates(*alert) => "certificate_refused",
        Some(Error::AlertReceived(_)) => "alert_received",
        Some(Error::InvalidCertificate(_) | Error::InvalidCertRevocationList(_)) => "bad_certificate",
        Some(Error::NoCertificatesPresented) => "no_certificate",
        Some(Error::PeerIncompatible(_) | Error::NoApplicationProtocol) => "incompatible",
        Some(Error::InvalidMessage(_)) => "not_tls",
        Some(_) => "protocol_error",
    }
}

/// The error type of RFC 9209, section 2.3, if TLS is to blame.
pub(crate) fn proxy_status(error: &io::Error) -> Option<&'static str> {
    use rustls::Error;
    cause(error).map(|cause| match cause {
        Error::AlertReceived(_) => "tls_alert_received",
        Error::InvalidCertificate(_) | Error::InvalidCertRevocationList(_) => "tls_certificate_error",
        _ => "tls_protocol_error",
    })
}

fn cause(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref()
}

/// The same error once more.
pub(crate) fn copy(error: &io::Error) -> io::Error {
    match (error.raw_os_error(), cause(error)) {
        (Some(code), _) => io::Error::from_raw_os_error(code),
        (None, Some(cause)) => io::Error::new(error.kind(), cause.clone()),
        (None, None) => io::Error::new(error.kind(), error.to_string()),
    }
}

fn is_about_certificates(alert: AlertDescription) -> bool {
    use AlertDescription as Alert;
    matches!(
        alert,
        Alert::BadCertificate
            | Alert::UnsupportedCertificate
            | Alert::CertificateRevoked
            | Alert::CertificateExpired
            | Alert::CertificateUnknown
            | Alert::CertificateRequired
            | Alert::UnknownCA
            | Alert::AccessDenied
    )
}

/// Files that were read, and what tells whether they have changed.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Read {
    pub(crate) paths: Vec<PathBuf>,
    digest: Vec<u8>,
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}
