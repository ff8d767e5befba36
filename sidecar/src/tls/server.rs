//! TLS with the clients of a listener.

use std::{collections::HashMap, fmt, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use bytes::Bytes;
use crds::proxy::{ListenerTls, TlsVersion};
use rustls::{
    ServerConfig,
    crypto::aws_lc_rs::Ticketer,
    server::{ClientHello, NoServerSessionStorage, ProducesTickets, ResolvesServerCert, WebPkiClientVerifier},
    sign::CertifiedKey,
    version::{TLS12, TLS13},
};
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::TlsAcceptor;

use super::{
    H2, HTTP1, Metrics, failure,
    load::{Leaf, Reader, TlsError},
    provider, success,
};
use crate::io::{ReadAhead, Stream};

/// How long a handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// The TLS of one listener. New connections take the newest configuration; open ones keep theirs.
pub(crate) struct Terminator {
    config: ArcSwap<ServerConfig>,
    metrics: Metrics,
}

/// What a client has chosen in the handshake.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Chosen {
    Http1,
    Http2,
    /// It doesn't know ALPN; its first bytes tell.
    Nothing,
}

impl Terminator {
    pub(crate) fn new(config: ServerConfig, metrics: Metrics) -> Arc<Self> {
        Arc::new(Self { config: ArcSwap::from_pointee(config), metrics })
    }

    /// From now on handshakes use this.
    pub(crate) fn replace(&self, config: ServerConfig) {
        self.config.store(Arc::new(config));
    }

    /// Shakes hands, in time. What came of it is counted here; the error is the reason that is counted beside. Nothing if the client
    /// left, as health checks do.
    pub(crate) async fn accept(&self, socket: TcpStream, ahead: Bytes) -> Result<Option<(Stream, Chosen)>, &'static str> {
        let acceptor = TlsAcceptor::from(self.config.load_full());
        let (result, outcome) = match timeout(HANDSHAKE, acceptor.accept(ReadAhead::new(ahead, socket))).await {
            Ok(Ok(stream)) => {
                let session = stream.get_ref().1;
                let chosen = match session.alpn_protocol() {
                    Some(H2) => Chosen::Http2,
                    Some(_) => Chosen::Http1,
                    None => Chosen::Nothing,
                };
                (success(session), Ok(Some((Stream::Tls(Box::new(stream.into())), chosen))))
            }
            Ok(Err(error)) => {
                let result = failure(&error);
                tracing::debug!(%error, result, "A TLS handshake with a client failed.");
                (result, if result == "broken_off" { Ok(None) } else { Err("tls_handshake_failed") })
            }
            Err(_) => ("timeout", Err("tls_handshake_timeout")),
        };
        self.metrics.handshake("client", result);
        outcome
    }
}

/// What session tickets are sealed with; it rotates its keys by itself. Each listener has its own, so that a session goes on only
/// where it began.
#[derive(Clone)]
pub(crate) struct TicketKeys(Arc<dyn ProducesTickets>);

impl TicketKeys {
    pub(crate) fn new() -> Result<Self, TlsError> {
        Ok(Self(Ticketer::new()?))
    }
}

/// The configuration that a document asks for, and what is known of its certificates.
pub(crate) fn server_config(
    tls: &ListenerTls,
    reader: &mut Reader<'_>,
    tickets: TicketKeys,
) -> Result<(ServerConfig, Vec<Leaf>), TlsError> {
    let (by_name, leaves) = ByName::read(tls, reader)?;
    let versions = match tls.min_version {
        TlsVersion::Tls12 => &[&TLS13, &TLS12][..],
        TlsVersion::Tls13 => &[&TLS13],
    };
    let builder = ServerConfig::builder_with_provider(provider()).with_protocol_versions(versions)?;
    let builder = match &tls.client_ca {
        Some(bundle) => {
            let roots = reader.roots(bundle)?;
            builder.with_client_cert_verifier(WebPkiClientVerifier::builder_with_provider(roots, provider()).build()?)
        }
        None => builder.with_no_client_auth(),
    };
    let mut config = builder.with_cert_resolver(Arc::new(by_name));
    config.alpn_protocols = vec![H2.to_vec(), HTTP1.to_vec()];
    config.ticketer = tickets.0;
    config.session_storage = Arc::new(NoServerSessionStorage {}); // tickets hold sessions, the memory of the pod does not
    Ok((config, leaves))
}

/// Certificates by the names that clients ask for.
struct ByName {
    first: Arc<CertifiedKey>,
    names: HashMap<String, Arc<CertifiedKey>>,
}

impl ByName {
    fn read(tls: &ListenerTls, reader: &mut Reader<'_>) -> Result<(Self, Vec<Leaf>), TlsError> {
        let (mut first, mut names, mut leaves) = (None, HashMap::new(), Vec::new());
        for certificate in &tls.certificates {
            let (key, leaf) = reader.certificate(certificate)?;
            for name in &leaf.names {
                names.entry(name.clone()).or_insert_with(|| Arc::clone(&key));
            }
            first.get_or_insert(key);
            leaves.push(leaf);
        }
        Ok((Self { first: first.ok_or(TlsError::Nowhere)?, names }, leaves))
    }

    /// That of the name, else of a pattern over its first label, else the first.
    fn of(&self, name: Option<&str>) -> Arc<CertifiedKey> {
        let found = name.and_then(|name| {
            let name = name.trim_end_matches('.').to_ascii_lowercase();
            let pattern = || name.split_once('.').map(|(_, rest)| format!("*.{rest}"));
            self.names.get(&name).or_else(|| self.names.get(&pattern()?))
        });
        Arc::clone(found.unwrap_or(&self.first))
    }
}

impl fmt::Debug for ByName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.names.keys()).finish()
    }
}

impl ResolvesServerCert for ByName {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.of(hello.server_name()))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use crds::proxy::Certificate;
    use tokio::{net::TcpListener, time::Instant};

    use super::*;
    use crate::tls::Secrets;

    fn terminator() -> Arc<Terminator> {
        let folder = tempfile::tempdir().unwrap();
        let made = rcgen::generate_simple_self_signed(vec!["shop.example".to_owned()]).unwrap();
        let file = |name: &str, text: String| {
            fs::write(folder.path().join(name), text).unwrap();
            Some(folder.path().join(name).display().to_string())
        };
        let certificate = Certificate {
            secret_ref: None,
            certificate_file: file("tls.crt", made.cert.pem()),
            key_file: file("tls.key", made.signing_key.serialize_pem()),
        };
        let tls = ListenerTls { certificates: vec![certificate], client_ca: None, min_version: TlsVersion::Tls12 };
        let secrets = Secrets::default();
        let (config, _) = server_config(&tls, &mut Reader::new(&secrets), TicketKeys::new().unwrap()).unwrap();
        Terminator::new(config, Metrics::default())
    }

    #[tokio::test(start_paused = true)]
    async fn client_that_does_not_shake_hands_is_given_up() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let _silent = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (socket, _) = listener.accept().await.unwrap();
        let start = Instant::now();
        let outcome = terminator().accept(socket, Bytes::new()).await.map(|_| ());
        assert_eq!((outcome, start.elapsed()), (Err("tls_handshake_timeout"), HANDSHAKE));
    }
}
