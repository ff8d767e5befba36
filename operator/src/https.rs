//! The HTTP servers of the operator: TLS, but for probes and metrics, then HTTP/1.1 or HTTP/2, with a bound on everything that a peer
//! can make us hold.

mod places;

use std::{convert::Infallible, io, sync::Arc, time::Duration};

use axum::{
    Extension, Router,
    body::Bytes,
    extract::{FromRequest, FromRequestParts, Request, State},
    http::{StatusCode, request::Parts},
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
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::{Semaphore, SemaphorePermit, watch},
    time::{Instant, sleep, timeout, timeout_at},
};
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{debug, info, warn};

pub use places::Limits;
use places::Places;

/// For servers whose peers are API servers, which keep a few connections each.
pub const FOR_API_SERVERS: Limits = Limits { connections: 1024, per_peer: 256 };
/// For probes and metrics, which any pod may reach.
pub const FOR_PROBES: Limits = Limits { connections: 256, per_peer: 16 };
/// How long the TLS handshake may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a connection may wait for its next request.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// Requests at a time on one HTTP/2 connection.
const MAX_REQUESTS: u32 = 16;
/// Bytes of bodies that one request, and one HTTP/2 connection, may have sent without our having read them.
const WINDOWS: (u32, u32) = (64 << 10, 256 << 10);
/// From the head of a request to its answer, as far as the answer does not depend on a sidecar: the API server waits for 5 s, and
/// would name no cause.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(4);
/// How long a request of a server in clear may take to send its head, and how long such a connection may wait for one.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a connection that is to end may take to write what is due.
const LINGER: Duration = Duration::from_secs(15);
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
        let help = "Connections to the webhooks, the aggregated API, probes and metrics that were refused";
        registry.register("https_connections_refused", help, metrics.refused.clone());
        metrics
    }
}

/// When a request must have been answered, counted from its arrival.
#[derive(Clone, Copy, Debug)]
pub struct Deadline(pub Instant);

impl Deadline {
    /// That of a request that arrives now.
    pub fn from_now() -> Self {
        Self(Instant::now() + REQUEST_TIMEOUT)
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Deadline {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(parts.extensions.get().copied().unwrap_or_else(Self::from_now))
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
        let Deadline(until) = request.extensions().get().copied().unwrap_or_else(Deadline::from_now);
        let read = async {
            let place = BODIES.acquire().await.map_err(|_| StatusCode::SERVICE_UNAVAILABLE.into_response())?;
            let bytes = Bytes::from_request(request, state).await.map_err(IntoResponse::into_response)?;
            Ok(Self { bytes, _place: place })
        };
        let late =
            || (StatusCode::REQUEST_TIMEOUT, format!("no whole body within {} s\n", REQUEST_TIMEOUT.as_secs())).into_response();
        match timeout_at(until, read).await {
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

/// Counts a request, and sets its time.
async fn begin(State(busy): State<Busy>, mut request: Request, next: Next) -> Response {
    request.extensions_mut().insert(Deadline::from_now());
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
    /// TLS; a new connection takes the newest, and one that was made with an older one ends after the request under way. None: in
    /// clear.
    pub tls: Option<watch::Receiver<Arc<ServerConfig>>>,
    /// Connections at a time.
    pub limits: Limits,
    /// What is counted.
    pub metrics: Metrics,
    /// Ends it.
    pub shutdown: CancellationToken,
}

impl Server {
    /// Serves until shut-down, then lets requests under way end.
    pub async fn serve(self, listener: TcpListener) -> io::Result<()> {
        let places = Places::new(self.limits);
        let connections = TaskTracker::new();
        info!(server = self.name, address = %listener.local_addr()?, "Serving.");
        while let Some(accepted) = self.shutdown.run_until_cancelled(listener.accept()).await {
            let (socket, peer) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Out of file descriptors, or a peer that gave up before it was accepted.
                    warn!(server = self.name, %error, "Could not accept a connection.");
                    sleep(Duration::from_millis(50)).await;
                    continue;
                }
            };
            let place = match places.take(peer.ip()) {
                Ok(place) => place,
                Err(reason) => {
                    self.refused(reason);
                    continue;
                }
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
        let Some(mut newest) = self.tls.clone() else {
            return self.requests(socket, false, Peer(None), std::future::pending()).await;
        };
        let tls = TlsAcceptor::from(newest.borrow_and_update().clone());
        // Whom to ask for a certificate is a matter of the handshake, so what the configuration learns later needs another one.
        let superseded = async move {
            if newest.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        match timeout(HANDSHAKE_TIMEOUT, tls.accept(socket)).await {
            Ok(Ok(stream)) => {
                let session = stream.get_ref().1;
                let certificate = session.peer_certificates().and_then(|chain| chain.first()).map(|one| one.clone().into_owned());
                let is_h2 = session.alpn_protocol() == Some(b"h2");
                self.requests(stream, is_h2, Peer(certificate), superseded).await;
            }
            Ok(Err(error)) => {
                debug!(server = self.name, %error, "TLS handshake failed.");
                self.refused("handshake");
            }
            Err(_) => self.refused("handshake_timeout"),
        }
    }

    async fn requests<I>(&self, stream: I, is_h2: bool, peer: Peer, superseded: impl Future<Output = ()>)
    where
        I: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let busy = Busy(watch::Sender::new(0));
        let router = self.router.clone().layer(Extension(peer)).layer(from_fn_with_state(busy.clone(), begin));
        let service = TowerToHyperService::new(router);
        let over = async {
            tokio::select! {
                () = busy.idle() => {}
                () = superseded => {}
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
            let head = if self.tls.is_some() { IDLE_TIMEOUT } else { HEAD_TIMEOUT };
            let mut builder = http1::Builder::new();
            builder.timer(TokioTimer::new()).header_read_timeout(head).max_buf_size(64 << 10);
            let serving = std::pin::pin!(builder.serve_connection(TokioIo::new(stream), service));
            until(serving, |serving| serving.graceful_shutdown(), over).await
        };
        match ended {
            Some(Ok(())) => {}
            Some(Err(error)) => debug!(server = self.name, %error, "Connection broke off."),
            None => debug!(server = self.name, "Connection cut off: its peer does not read."),
        }
    }

    fn refused(&self, reason: &'static str) {
        self.metrics.refused.get_or_create(&Refusal { server: self.name, reason }).inc();
    }
}

/// Drives a connection to its end, and begins that end when it is over. None: the end took too long.
async fn until<C: Future>(
    mut serving: std::pin::Pin<&mut C>,
    wind_up: impl FnOnce(std::pin::Pin<&mut C>),
    over: impl Future<Output = ()>,
) -> Option<C::Output> {
    tokio::select! {
        ended = serving.as_mut() => Some(ended),
        () = over => {
            wind_up(serving.as_mut());
            timeout(LINGER, serving).await.ok()
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
    #[tokio::test(start_paused = true)]
    async fn body_has_what_is_left_of_the_requests_time() {
        let mut request = Request::new(axum::body::Body::from_stream(futures::stream::pending::<io::Result<Bytes>>()));
        let until = Instant::now() + Duration::from_millis(700);
        request.extensions_mut().insert(Deadline(until));
        assert!(Body::from_request(request, &()).await.is_err());
        assert_eq!(Instant::now(), until);
    }

    #[tokio::test]
    async fn port_in_clear_takes_few_connections_of_one_peer() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        let server = Server {
            name: "test",
            router: Router::new().route("/livez", axum::routing::get(async || "ok")),
            tls: None,
            limits: Limits { connections: 8, per_peer: 2 },
            metrics: Metrics::default(),
            shutdown: shutdown.clone(),
        };
        tokio::spawn(server.serve(listener));
        let mut silent = Vec::new();
        for _ in 0..2 {
            silent.push(TcpStream::connect(address).await.unwrap());
        }
        assert_eq!(ask(address).await, "", "the third is closed");
        drop(silent);
        while !ask(address).await.starts_with("HTTP/1.1 200") {
            sleep(Duration::from_millis(5)).await;
        }
        shutdown.cancel();
    }

    /// What one request brings.
    async fn ask(address: std::net::SocketAddr) -> String {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

        let mut socket = TcpStream::connect(address).await.unwrap();
        let _ = socket.write_all(b"GET /livez HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await;
        let mut answer = String::new();
        let _ = socket.read_to_string(&mut answer).await;
        answer
    }
}
