//! One stream to one address, from the connection to its end.

use std::{io, net::SocketAddr, path::Path, sync::Arc, time::Duration};

use http::Uri;
use hyper_util::rt::TokioIo;
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName, pem::PemObject as _},
};
use tokio::{net::TcpStream, sync::mpsc, time::timeout};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Request, Streaming,
    metadata::{Ascii, MetadataValue},
    transport::{Channel, Endpoint},
};
use wire::v1::{self, config_client::ConfigClient};

use super::{Event, Settings, StateDir};
use crate::{
    config::Shared,
    source::{order::StreamId, state::read_bounded},
};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Until the operator accepts the stream.
const ACCEPT_TIMEOUT: Duration = Duration::from_secs(10);
const KEEP_ALIVE: Duration = Duration::from_secs(10);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(5);
/// Largest message of the operator, in bytes.
const MAX_MESSAGE: usize = 16 << 20;
/// Messages that wait to be sent.
const OUTGOING: usize = 64;
const MAX_TOKEN: u64 = 64 << 10;

/// Why a stream ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum Ended {
    #[error("the token can't be read: {0}")]
    Token(io::Error),
    #[error("the certificates of the operator's CA can't be used: {0}")]
    Trust(String),
    #[error("no connection: {0}")]
    Connect(String),
    #[error("the operator answered {}: {}", .0.code(), .0.message())]
    Status(#[from] Box<tonic::Status>),
    #[error("the operator did not accept the stream in time")]
    Accept,
    #[error("the operator closed it")]
    Closed,
    #[error("the sidecar ends")]
    Gone,
}

/// Opens a stream and hands on what it brings. Returns when it ends.
pub(super) async fn session(
    settings: &Settings,
    shared: &Shared,
    address: SocketAddr,
    stream: StreamId,
    events: &mpsc::Sender<Event>,
) -> Ended {
    match open(settings, shared, address, stream, events).await {
        Ok(incoming) => hand_on(incoming, stream, events).await,
        Err(ended) => ended,
    }
}

async fn open(
    settings: &Settings,
    shared: &Shared,
    address: SocketAddr,
    stream: StreamId,
    events: &mpsc::Sender<Event>,
) -> Result<Streaming<v1::Down>, Ended> {
    let token = bearer(&settings.token_file)?;
    let mut client = ConfigClient::new(channel(settings, address).await?).max_decoding_message_size(MAX_MESSAGE);
    let (up, outgoing) = mpsc::channel(OUTGOING);
    let hello = v1::Up { message: Some(v1::up::Message::Hello(hello(settings, shared))) };
    up.try_send(hello).map_err(|_| Ended::Gone)?;
    let mut request = Request::new(ReceiverStream::new(outgoing));
    request.metadata_mut().insert("authorization", token);
    let accepted = timeout(ACCEPT_TIMEOUT, client.stream(request)).await.map_err(|_| Ended::Accept)?;
    let incoming = accepted.map_err(Box::new)?.into_inner();
    tracing::info!(%address, "The stream to the operator stands.");
    events.send(Event::Opened { stream, up }).await.map_err(|_| Ended::Gone)?;
    Ok(incoming)
}

async fn hand_on(mut incoming: Streaming<v1::Down>, stream: StreamId, events: &mpsc::Sender<Event>) -> Ended {
    loop {
        let message = match incoming.message().await {
            Ok(Some(v1::Down { message: Some(message) })) => message,
            // A message of a newer operator that this sidecar does not know.
            Ok(Some(v1::Down { message: None })) => continue,
            Ok(None) => return Ended::Closed,
            Err(status) => return Ended::Status(Box::new(status)),
        };
        if events.send(Event::Down { stream, message }).await.is_err() {
            return Ended::Gone;
        }
    }
}

fn hello(settings: &Settings, shared: &Shared) -> v1::Hello {
    let config = shared.load();
    let position = config.planned.as_ref().map(|planned| planned.position.clone()).unwrap_or_default();
    v1::Hello {
        pod_namespace: settings.cold_start.namespace.clone(),
        pod_name: settings.pod_name.clone(),
        pod_uid: settings.pod_uid.clone(),
        proxy_namespace: settings.proxy().namespace.clone(),
        proxy_name: settings.proxy().name.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        features: crds::policy::FEATURES.iter().chain(&[wire::service::FEATURE]).map(|&feature| feature.to_owned()).collect(),
        plan_digest: config.digest().to_owned(),
        position: position.into_iter().collect(),
        incarnation: incarnation().to_owned(),
    }
}

/// Random for every start of the process.
fn incarnation() -> &'static str {
    use std::{
        hash::{BuildHasher as _, RandomState},
        sync::LazyLock,
    };
    static INCARNATION: LazyLock<String> =
        LazyLock::new(|| format!("{:016x}{:016x}", RandomState::new().hash_one(0), RandomState::new().hash_one(1)));
    &INCARNATION
}

fn bearer(file: &Path) -> Result<MetadataValue<Ascii>, Ended> {
    let token = read_bounded(file, MAX_TOKEN).map_err(Ended::Token)?;
    let token = String::from_utf8_lossy(&token);
    let mut value: MetadataValue<Ascii> = format!("Bearer {}", token.trim())
        .parse()
        .map_err(|_| Ended::Token(io::Error::new(io::ErrorKind::InvalidData, "it holds more than a token")))?;
    value.set_sensitive(true);
    Ok(value)
}

/// A channel to this address, over TLS with the operator's name.
async fn channel(settings: &Settings, address: SocketAddr) -> Result<Channel, Ended> {
    let host = settings.host().to_owned();
    let name = ServerName::try_from(host.clone()).map_err(|_| Ended::Trust(format!("{host:?} is no name of a server")))?;
    let told = settings.state().and_then(StateDir::trust).map(|trust| trust.ca_pem).filter(|pem| !pem.is_empty());
    let tls = TlsConnector::from(Arc::new(client_config(told.as_deref().unwrap_or(&settings.ca_pem))?));
    let connector = tower::service_fn(move |_: Uri| {
        let (tls, name) = (tls.clone(), name.clone());
        async move { dial(address, tls, name).await.map(TokioIo::new) }
    });
    // The connector does TLS itself, so tonic must not be told of a secure scheme.
    let endpoint = Endpoint::from_shared(format!("http://{}", settings.operator))
        .map_err(|error| Ended::Connect(error.to_string()))?
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .keep_alive_while_idle(true);
    endpoint.connect_with_connector(connector).await.map_err(|error| Ended::Connect(chain(&error)))
}

async fn dial(address: SocketAddr, tls: TlsConnector, name: ServerName<'static>) -> io::Result<TlsStream<TcpStream>> {
    let socket = TcpStream::connect(address).await?;
    socket.set_nodelay(true)?;
    tls.connect(name, socket).await
}

fn client_config(ca_pem: &str) -> Result<ClientConfig, Ended> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(ca_pem.as_bytes()) {
        let certificate = certificate.map_err(|error| Ended::Trust(error.to_string()))?;
        roots.add(certificate).map_err(|error| Ended::Trust(error.to_string()))?;
    }
    if roots.is_empty() {
        return Err(Ended::Trust("there is none".to_owned()));
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| Ended::Trust(error.to_string()))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

/// An error with its causes, since the outermost one says no more than "transport error".
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
