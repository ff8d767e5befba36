//! The HTTPS servers of the operator: TLS, then HTTP/1.1 or HTTP/2, with a bound on everything that a peer can make us hold.

use std::{io, sync::Arc, time::Duration};

use axum::{Extension, Router};
use hyper::server::conn::{http1, http2};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};
use rustls::{ServerConfig, pki_types::CertificateDer};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, watch},
    time::{sleep, timeout},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{debug, info, warn};

/// Connections at a time. The peers are API servers, which keep a few each.
const MAX_CONNECTIONS: usize = 1024;
/// How long the TLS handshake may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long an HTTP/1.1 connection may wait for the head of its next request.
const IDLE_TIMEOUT: Duration = Duration::from_secs(90);
/// How long requests may take to end at shut-down.
const GRACE: Duration = Duration::from_secs(5);
/// Protocols to offer, the better first.
pub const PROTOCOLS: [&str; 2] = ["h2", "http/1.1"];

/// The client's certificate, if it showed one; the verifier of the TLS configuration has checked it.
#[derive(Clone, Debug)]
pub struct Peer(pub Option<CertificateDer<'static>>);

/// Connections that came to nothing.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    refused: Family<Refusal, Counter>,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct Refusal {
    server: &'static str,
    reason: &'static str,
}

impl Metrics {
    /// Registers them.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        let help = "Connections to the webhooks and the aggregated API that were refused";
        registry.register("https_connections_refused", help, metrics.refused.clone());
        metrics
    }
}

/// A server, before it has a socket.
#[derive(Clone)]
pub struct Server {
    /// What it is called in logs and metrics.
    pub name: &'static str,
    /// What it answers.
    pub router: Router,
    /// TLS; a new connection takes the newest.
    pub tls: watch::Receiver<Arc<ServerConfig>>,
    /// What is counted.
    pub metrics: Metrics,
    /// Ends it.
    pub shutdown: CancellationToken,
}

impl Server {
    /// Serves until shut-down, then lets requests under way end.
    pub async fn serve(self, listener: TcpListener) -> io::Result<()> {
        let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let connections = TaskTracker::new();
        info!(server = self.name, address = %listener.local_addr()?, "Serving.");
        while let Some(accepted) = self.shutdown.run_until_cancelled(listener.accept()).await {
            let socket = match accepted {
                Ok((socket, _)) => socket,
                Err(error) => {
                    // Out of file descriptors, or a peer that gave up before it was accepted.
                    warn!(server = self.name, %error, "Could not accept a connection.");
                    sleep(Duration::from_millis(50)).await;
                    continue;
                }
            };
            let Ok(place) = places.clone().try_acquire_owned() else {
                self.refused("too_many");
                continue;
            };
            let server = self.clone();
            connections.spawn(async move {
                server.connection(socket).await;
                drop(place);
            });
        }
        connections.close();
        // Whoever is too slow is cut off by the end of the process.
        let _ = timeout(GRACE, connections.wait()).await;
        Ok(())
    }

    async fn connection(&self, socket: TcpStream) {
        let _ = socket.set_nodelay(true);
        let tls = TlsAcceptor::from(self.tls.borrow().clone());
        match timeout(HANDSHAKE_TIMEOUT, tls.accept(socket)).await {
            Ok(Ok(stream)) => self.requests(stream).await,
            Ok(Err(error)) => {
                debug!(server = self.name, %error, "TLS handshake failed.");
                self.refused("handshake");
            }
            Err(_) => self.refused("handshake_timeout"),
        }
    }

    async fn requests(&self, stream: TlsStream<TcpStream>) {
        let session = stream.get_ref().1;
        let certificate = session.peer_certificates().and_then(|chain| chain.first()).map(|one| one.clone().into_owned());
        let is_h2 = session.alpn_protocol() == Some(b"h2");
        let service = TowerToHyperService::new(self.router.clone().layer(Extension(Peer(certificate))));
        let ended = if is_h2 {
            let mut builder = http2::Builder::new(TokioExecutor::new());
            builder.timer(TokioTimer::new()).keep_alive_interval(Duration::from_secs(30)).max_header_list_size(64 << 10);
            let serving = std::pin::pin!(builder.serve_connection(TokioIo::new(stream), service));
            until(serving, |serving| serving.graceful_shutdown(), &self.shutdown).await
        } else {
            let mut builder = http1::Builder::new();
            builder.timer(TokioTimer::new()).header_read_timeout(IDLE_TIMEOUT).max_buf_size(64 << 10);
            let serving = std::pin::pin!(builder.serve_connection(TokioIo::new(stream), service));
            until(serving, |serving| serving.graceful_shutdown(), &self.shutdown).await
        };
        if let Err(error) = ended {
            debug!(server = self.name, %error, "Connection broke off.");
        }
    }

    fn refused(&self, reason: &'static str) {
        self.metrics.refused.get_or_create(&Refusal { server: self.name, reason }).inc();
    }
}

/// Drives a connection to its end, and begins that end at shut-down.
async fn until<C: Future>(
    mut serving: std::pin::Pin<&mut C>,
    wind_up: impl FnOnce(std::pin::Pin<&mut C>),
    shutdown: &CancellationToken,
) -> C::Output {
    tokio::select! {
        ended = serving.as_mut() => ended,
        () = shutdown.cancelled() => {
            wind_up(serving.as_mut());
            serving.await
        }
    }
}

#[cfg(test)]
pub(crate) mod testing;
