//! TLS with upstreams. A certificate is always verified: there is no setting that says otherwise.

use std::{
    fmt,
    hash::{Hash, Hasher},
    io,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
};

use bytes::Bytes;
use crds::proxy::UpstreamTls;
use rustls::{ClientConfig, client::Resumption, pki_types::ServerName, sign::SingleCertAndKey};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::{
    H2, HTTP1, Metrics, Secrets, failure,
    load::{Reader, TlsError, system_roots},
    provider,
    question::Questions,
    success,
};
use crate::{
    io::{ReadAhead, Stream},
    upstream::Protocol,
};

/// Sessions that are kept to be resumed.
const SESSIONS: usize = 32;

/// The TLS of one upstream. Two are alike only if they are the same: no connection that was made with other settings, or with a
/// certificate of before, is taken for a request.
#[derive(Clone)]
pub(crate) struct Origination(Arc<Inner>);

struct Inner {
    name: ServerName<'static>,
    offers: Offers,
    /// What the upstream chose when it was asked: the servers of one upstream are alike, unless one of them shows otherwise.
    known: AtomicU8,
    questions: Questions,
    metrics: Metrics,
}

/// The configurations of handshakes that a document asks for, by what is offered in them.
#[derive(Clone)]
pub(super) struct Offers {
    http1: Arc<ClientConfig>,
    http2: Arc<ClientConfig>,
    either: Arc<ClientConfig>,
}

const UNKNOWN: u8 = 0;
const CHOSE_HTTP1: u8 = 1;
const CHOSE_HTTP2: u8 = 2;

/// What is offered to the upstream by ALPN.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Offer {
    /// One protocol.
    Only(Protocol),
    /// Both; the upstream chooses.
    Either,
}

/// What is offered, and what is believed, as a document asks for it and its files say now; nothing by ALPN.
pub(crate) fn client_config(settings: &UpstreamTls, secrets: &Secrets) -> Result<Arc<ClientConfig>, TlsError> {
    read(settings, &mut Reader::new(secrets)).map(Arc::new)
}

fn read(settings: &UpstreamTls, reader: &mut Reader<'_>) -> Result<ClientConfig, TlsError> {
    let roots = settings.ca.as_ref().map_or_else(system_roots, |bundle| reader.roots(bundle))?;
    let builder = ClientConfig::builder_with_provider(provider());
    let builder = builder.with_safe_default_protocol_versions()?.with_root_certificates(roots);
    Ok(match &settings.client_certificate {
        Some(certificate) => {
            let (key, _) = reader.certificate(certificate)?;
            builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(key)))
        }
        None => builder.with_no_client_auth(),
    })
}

impl Offers {
    pub(super) fn read(settings: &UpstreamTls, reader: &mut Reader<'_>) -> Result<Self, TlsError> {
        let mut config = read(settings, reader)?;
        config.resumption = Resumption::in_memory_sessions(SESSIONS);
        let offering = |protocols: &[&[u8]]| {
            let mut config = config.clone();
            config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
            Arc::new(config)
        };
        Ok(Self { http1: offering(&[HTTP1]), http2: offering(&[H2]), either: offering(&[H2, HTTP1]) })
    }
}

impl Origination {
    /// TLS to a host as a document asks for it.
    pub(crate) fn new(host: &str, settings: &UpstreamTls, reader: &mut Reader<'_>, metrics: Metrics) -> Result<Self, TlsError> {
        Self::with(settings.server_name.as_deref().unwrap_or(host), Offers::read(settings, reader)?, metrics)
    }

    /// TLS to who has this name.
    pub(super) fn with(name: &str, offers: Offers, metrics: Metrics) -> Result<Self, TlsError> {
        let name = ServerName::try_from(name.to_owned()).map_err(|_| TlsError::Name(name.to_owned()))?;
        let (known, questions) = (AtomicU8::new(UNKNOWN), Questions::default());
        Ok(Self(Arc::new(Inner { name, offers, known, questions, metrics })))
    }

    /// Whether anybody else holds it, as open connections do.
    pub(super) fn is_shared(&self) -> bool {
        Arc::strong_count(&self.0) > 1
    }

    /// What the upstream chose, if it was asked.
    pub(crate) fn known(&self) -> Option<Protocol> {
        match self.0.known.load(Ordering::Relaxed) {
            CHOSE_HTTP1 => Some(Protocol::Http1),
            CHOSE_HTTP2 => Some(Protocol::Http2),
            _ => None,
        }
    }

    /// Where its servers are asked what they choose.
    pub(crate) fn questions(&self) -> &Questions {
        &self.0.questions
    }

    /// Shakes hands. What the upstream chose among both protocols is remembered until it refuses one of them.
    pub(crate) async fn connect(&self, socket: TcpStream, offer: Offer) -> io::Result<Stream> {
        let config = match offer {
            Offer::Only(Protocol::Http1) => &self.0.offers.http1,
            Offer::Only(Protocol::Http2) => &self.0.offers.http2,
            Offer::Either => &self.0.offers.either,
        };
        let connector = TlsConnector::from(Arc::clone(config));
        let connected = connector.connect(self.0.name.clone(), ReadAhead::new(Bytes::new(), socket)).await;
        let connected = connected.and_then(|stream| {
            let chosen = stream.get_ref().1.alpn_protocol();
            if offer == Offer::Only(Protocol::Http2) && chosen != Some(H2) {
                return Err(io::Error::new(io::ErrorKind::InvalidData, rustls::Error::NoApplicationProtocol));
            }
            if offer == Offer::Either {
                self.0.known.store(if chosen == Some(H2) { CHOSE_HTTP2 } else { CHOSE_HTTP1 }, Ordering::Relaxed);
            }
            Ok(stream)
        });
        match connected {
            Ok(stream) => {
                self.0.metrics.handshake("upstream", success(stream.get_ref().1));
                Ok(Stream::Tls(Box::new(stream.into())))
            }
            Err(error) => {
                // It may be another server by now, unless it only refused what a client's upgrade needs.
                if offer == Offer::Either || self.known().is_some_and(|known| offer == Offer::Only(known)) {
                    self.0.known.store(UNKNOWN, Ordering::Relaxed);
                }
                self.0.metrics.handshake("upstream", failure(&error));
                Err(error)
            }
        }
    }

    /// A handshake was given up.
    pub(crate) fn late(&self) {
        self.0.metrics.handshake("upstream", "timeout");
    }
}

impl fmt::Debug for Origination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Origination").field(&self.0.name).finish()
    }
}

impl PartialEq for Origination {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Origination {}

impl Hash for Origination {
    fn hash<H: Hasher>(&self, state: &mut H) {
        Arc::as_ptr(&self.0).hash(state);
    }
}
