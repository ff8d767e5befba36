//! The HTTPS servers of the operator: TLS, then HTTP/1.1 or HTTP/2, with a bound on everything that a peer can make us hold.

use std::{io, sync::Arc, time::Duration};

use axum::{
    Extension, Router,
    body::Bytes,
    extract::{FromRequest, Request, State},
    http::StatusCode,
    middleware::{Next, from_fn_with_state},
    response::{IntoResponse, Response},
};
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
    sync::{Semaphore, SemaphorePermit, watch},
    time::{sleep, timeout},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{debug, info, warn};

/// Connections at a time. The peers are API servers, which keep a few each.
const MAX_CONNECTIONS: usize = 1024;
/// How long the TLS handshake may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a connection may wait for its next request.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// Requests at a time on one HTTP/2 connection.
const MAX_REQUESTS: u32 = 16;
/// Bytes of bodies that one request, and one HTTP/2 connection, may have sent without our having read them.
const WINDOWS: (u32, u32) = (64 << 10, 256 << 10);
/// How long the body of a request may take to arrive.
const BODY_TIMEOUT: Duration = Duration::from_secs(4);
/// Bodies that are being read or worked on, over all connections: with their greatest length this bounds what strangers can make us
/// hold.
static BODIES: Semaphore = Semaphore::const_new(32);
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

/// The body of a request, which holds its place among [`BODIES`].
pub struct Body {
    bytes: Bytes,
    _place: SemaphorePermit<'static>,
}

impl std::ops::Deref for Body {
    type Target = Bytes;

    fn deref(&self) -> &Bytes {
        &self.bytes
    }
}

impl<S: Send + Sync> FromRequest<S> for Body {
    type Rejection = Response;

    /// Reads it, in time and up to the router's limit of length.
    async fn from_request(request: Request, state: &S) -> Result<Self, Response> {
        let read = async {
            let place = BODIES.acquire().await.map_err(|_| StatusCode::SERVICE_UNAVAILABLE.into_response())?;
            let bytes = Bytes::from_request(request, state).await.map_err(IntoResponse::into_response)?;
            Ok(Self { bytes, _place: place })
        };
        let late =
            || (StatusCode::REQUEST_TIMEOUT, format!("no whole body within {} s\n", BODY_TIMEOUT.as_secs())).into_response();
        match timeout(BODY_TIMEOUT, read).await {
            Ok(read) => read,
            Err(_) => Err(late()),
        }
    }
}

/// Requests under way on one connection.
#[derive(Clone)]
struct Busy(watch::Sender<usize>);

impl Busy {
    /// Waits until there has been none for [`IDLE_TIMEOUT`].
    async fn idle(&self) {
        let mut requests = self.0.subscribe();
        loop {
            let is_quiet = timeout(IDLE_TIMEOUT, requests.changed()).await.is_err();
            if is_quiet && *requests.borrow() == 0 {
                return;
            }
        }
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.0.send_modify(|requests| *requests -= 1);
    }
}

/// One request under way.
struct UnderWay(Busy);

async fn count(State(busy): State<Busy>, request: Request, next: Next) -> Response {
    busy.0.send_modify(|requests| *requests += 1);
    let _under_way = UnderWay(busy);
    next.run(request).await
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
        let busy = Busy(watch::Sender::new(0));
        let router = self.router.clone().layer(Extension(Peer(certificate))).layer(from_fn_with_state(busy.clone(), count));
        let service = TowerToHyperService::new(router);
        let over = async {
            tokio::select! {
                () = busy.idle() => {}
                () = self.shutdown.cancelled() => {}
            }
        };
        let ended = if is_h2 {
            let mut builder = http2::Builder::new(TokioExecutor::new());
            builder.timer(TokioTimer::new()).keep_alive_interval(Duration::from_secs(30)).max_header_list_size(64 << 10);
            builder
                .max_concurrent_streams(MAX_REQUESTS)
                .initial_stream_window_size(WINDOWS.0)
                .initial_connection_window_size(WINDOWS.1);
            let serving = std::pin::pin!(builder.serve_connection(TokioIo::new(stream), service));
            until(serving, |serving| serving.graceful_shutdown(), over).await
        } else {
            let mut builder = http1::Builder::new();
            builder.timer(TokioTimer::new()).header_read_timeout(IDLE_TIMEOUT).max_buf_size(64 << 10);
            let serving = std::pin::pin!(builder.serve_connection(TokioIo::new(stream), service));
            until(serving, |serving| serving.graceful_shutdown(), over).await
        };
        if let Err(error) = ended {
            debug!(server = self.name, %error, "Connection broke off.");
        }
    }

    fn refused(&self, reason: &'static str) {
        self.metrics.refused.get_or_create(&Refusal { server: self.name, reason }).inc();
    }
}

/// Drives a connection to its end, and begins that end when it is over.
async fn until<C: Future>(
    mut serving: std::pin::Pin<&mut C>,
    wind_up: impl FnOnce(std::pin::Pin<&mut C>),
    over: impl Future<Output = ()>,
) -> C::Output {
    tokio::select! {
        ended = serving.as_mut() => ended,
        () = over => {
            wind_up(serving.as_mut());
            serving.await
        }
    }
}

#[cfg(test)]
pub(crate) mod testing;

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn connection_without_a_request_is_idle_and_one_with_a_long_request_is_not() {
        let busy = Busy(watch::Sender::new(1));
        assert!(timeout(IDLE_TIMEOUT * 3, busy.idle()).await.is_err());
        drop(UnderWay(busy.clone()));
        assert!(timeout(IDLE_TIMEOUT + Duration::from_secs(1), busy.idle()).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn body_that_does_not_come_is_given_up() {
        let endless = axum::body::Body::from_stream(futures::stream::pending::<io::Result<Bytes>>());
        let refused = Body::from_request(Request::new(endless), &()).await.err().unwrap();
        assert_eq!(refused.status(), StatusCode::REQUEST_TIMEOUT);
    }
}
