//! TLS with the clients of a listener.

use std::{collections::HashMap, fmt, io, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use bytes::Bytes;
use crds::proxy::{ListenerTls, TlsVersion};
use rustls::{
    ServerConfig,
    crypto::aws_lc_rs::Ticketer,
    server::{Acceptor, ClientHello, NoServerSessionStorage, ProducesTickets, ResolvesServerCert, WebPkiClientVerifier},
    sign::CertifiedKey,
    version::{TLS12, TLS13},
};
use socket2::SockRef;
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::{LazyConfigAcceptor, server::TlsStream};

use super::{
    H2, HTTP1, Metrics, Turns, failure,
    load::{Leaf, Reader, TlsError},
    provider, success,
};
use crate::io::{ReadAhead, Stream};

/// How long a handshake may take, its turn included.
pub(crate) const HANDSHAKE: Duration = Duration::from_secs(10);

/// Why a handshake was refused for want of room.
pub(crate) const SHED: &str = "tls_handshake_limit";

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

    /// Shakes hands, in time and in turn. What came of it is counted here; the error is the reason that is counted beside. Nothing if the
    /// client left, as health checks do.
    pub(crate) async fn accept(
        &self,
        socket: TcpStream,
        ahead: Bytes,
        turns: &Turns,
    ) -> Result<Option<(Stream, Chosen)>, &'static str> {
        let (result, outcome) = match timeout(HANDSHAKE, self.shake(ReadAhead::new(ahead, socket), turns)).await {
            Ok(Ok(None)) => ("shed", Err(SHED)),
            Ok(Ok(Some(stream))) => {
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

    /// Nothing if the worker has too many to shake hands with.
    async fn shake(&self, io: ReadAhead<TcpStream>, turns: &Turns) -> io::Result<Option<TlsStream<ReadAhead<TcpStream>>>> {
        let hello = LazyConfigAcceptor::new(Acceptor::default(), io).await?;
        let Some(turn) = turns.take().await else {
            // With a reset, so that nothing is kept of it.
            let _ = SockRef::from(hello.io.get_ref()).set_linger(Some(Duration::ZERO));
            return Ok(None);
        };
        let answered = hello.into_stream(self.config.load_full()); // what costs is done when this returns
        drop(turn);
        answered.await.map(Some)
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

    #[tokio::test]
    async fn client_is_reset_when_too_many_wait() {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (socket, _) = listener.accept().await.unwrap();
        client.write_all(&crate::tls::hello::tests::hello("shop.example")).await.unwrap();
        let turns = Turns::default();
        let _turn = turns.take().await.unwrap();
        let _waiting = turns.fill();
        let outcome = terminator().accept(socket, Bytes::new(), &turns).await.map(|_| ());
        assert_eq!(outcome, Err(SHED));
        assert_eq!(client.read_u8().await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    }

    #[tokio::test(start_paused = true)]
    async fn client_that_does_not_shake_hands_is_given_up() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let _silent = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (socket, _) = listener.accept().await.unwrap();
        let start = Instant::now();
        let outcome = terminator().accept(socket, Bytes::new(), &Turns::default()).await.map(|_| ());
        assert_eq!((outcome, start.elapsed()), (Err("tls_handshake_timeout"), HANDSHAKE));
    }
}
