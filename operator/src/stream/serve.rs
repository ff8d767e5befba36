//! The listener: TLS, then HTTP/2, with a bound on everything that a peer can make us hold.

use std::{io, sync::Arc, time::Duration};

use hyper::server::conn::http2;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::timeout,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{debug, info, warn};
use wire::v1::config_server::ConfigServer;

use super::{MAX_MESSAGE, Service};

/// Connections at a time. A sidecar has one to each replica.
const MAX_CONNECTIONS: usize = 16_384;
/// How long the TLS handshake may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How often a silent peer is asked whether it is there, and how long it may take to answer.
const KEEP_ALIVE: (Duration, Duration) = (Duration::from_secs(20), Duration::from_secs(20));
/// How long streams may take to end at shut-down.
const GRACE: Duration = Duration::from_secs(5);

/// Connections that came to nothing.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    refused: Family<Refusal, Counter>,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct Refusal {
    reason: &'static str,
}

impl Metrics {
    /// Registers them.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register("stream_connections_refused", "Connections of sidecars that were refused", metrics.refused.clone());
        metrics
    }

    fn refused(&self, reason: &'static str) {
        self.refused.get_or_create(&Refusal { reason }).inc();
    }
}

/// Serves streams until shut-down, then ends them and waits a little.
pub async fn serve(listener: TcpListener, tls: Arc<rustls::ServerConfig>, service: Service, metrics: Metrics) -> io::Result<()> {
    let shutdown = service.shutdown.clone();
    let config = ConfigServer::new(service).max_decoding_message_size(MAX_MESSAGE).max_encoding_message_size(usize::MAX);
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let connections = TaskTracker::new();
    info!(address = %listener.local_addr()?, "Streams are served.");
    while let Some(accepted) = shutdown.run_until_cancelled(listener.accept()).await {
        let socket = match accepted {
            Ok((socket, _)) => socket,
            Err(error) => {
                // Out of file descriptors, or a peer that gave up before it was accepted.
                warn!(%error, "Could not accept a connection.");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let Ok(place) = places.clone().try_acquire_owned() else {
            metrics.refused("too_many");
            continue;
        };
        let (tls, config, metrics, shutdown) =
            (TlsAcceptor::from(tls.clone()), config.clone(), metrics.clone(), shutdown.clone());
        connections.spawn(async move {
            connection(socket, tls, config, &metrics, &shutdown).await;
            drop(place);
        });
    }
    connections.close();
    // Whoever is too slow is cut off by the end of the process.
    let _ = timeout(GRACE, connections.wait()).await;
    Ok(())
}

async fn connection(
    socket: TcpStream,
    tls: TlsAcceptor,
    config: ConfigServer<Service>,
    metrics: &Metrics,
    shutdown: &CancellationToken,
) {
    let peer = socket.peer_addr().ok();
    let _ = socket.set_nodelay(true);
    let socket = match timeout(HANDSHAKE_TIMEOUT, tls.accept(socket)).await {
        Ok(Ok(socket)) => socket,
        Ok(Err(error)) => {
            debug!(?peer, %error, "TLS handshake failed.");
            return metrics.refused("handshake");
        }
        Err(_) => return metrics.refused("handshake_timeout"),
    };
    let serving = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .keep_alive_interval(KEEP_ALIVE.0)
        .keep_alive_timeout(KEEP_ALIVE.1)
        .max_concurrent_streams(4)
        .max_header_list_size(32 << 10)
        .initial_stream_window_size(64 << 10)
        .initial_connection_window_size(256 << 10)
        .max_send_buf_size(64 << 10)
        .serve_connection(TokioIo::new(socket), TowerToHyperService::new(config));
    let mut serving = std::pin::pin!(serving);
    let ended = tokio::select! {
        ended = serving.as_mut() => ended,
        () = shutdown.cancelled() => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    if let Err(error) = ended {
        debug!(?peer, %error, "Connection broke off.");
    }
}
