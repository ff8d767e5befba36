//! One connection of a client: which protocol it speaks, and its requests.

use std::{
    cell::{Cell, RefCell},
    convert::Infallible,
    future::Future,
    io,
    net::SocketAddr,
    pin::{Pin, pin},
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant as StdInstant},
};

use arc_swap::ArcSwap;
use bytes::{Bytes, BytesMut};
use crds::{policy::Direction, proxy::UpstreamTls};
use futures::FutureExt as _;
use http::{HeaderValue, Request};
use hyper::{body::Incoming, server::conn, service::service_fn, upgrade::OnUpgrade};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    net::TcpStream,
    time::{Instant, timeout},
};
use wire::speaker::Speaker;

use crate::{
    contain::contained,
    drain::Open,
    exchange::LastAuthority,
    fields::{Forwarding, Present, Via},
    flow::ClientBody,
    h1::{self, head::Limits},
    h2::{self, guard::Guarded},
    io::{ClientIo, Progress, ReadAhead, Stream},
    listen::Counted,
    pace::Rate,
    pipeline,
    pressure::Step,
    timer::Timer,
    tls::{Chosen, SHED, Terminator, Turns, hello},
    tunnel::{self, Switch},
    upstream::{Endpoint, Key},
    websocket,
    worker::Worker,
};

mod detect;
mod named;
mod preamble;
#[cfg(feature = "http3")]
pub(crate) mod quic;
mod speakers;
pub(crate) mod taking;

pub(crate) use detect::{Guess, guess};
pub(crate) use preamble::{Preamble, client as proxied_client};
pub(crate) use speakers::Speakers;
use taking::Streams;

/// How long a client may be silent before the upstream is asked whether it speaks first.
const SILENCE: Duration = Duration::from_millis(200);

/// How long a client may take to say enough that its protocol is known.
const DETECTION: Duration = Duration::from_secs(10);

/// How a connection came to the proxy.
pub(crate) enum Entry {
    /// It was redirected; this is where it was to go.
    Intercepted(SocketAddr),
    /// To a listener with an upstream, which may change on a reload.
    Reverse(Arc<ArcSwap<Key>>),
    /// To a forward proxy, with this TLS to hosts of `https`.
    Forward(Arc<ArcSwap<UpstreamTls>>),
}

impl Entry {
    pub(crate) fn is_forward_proxy(&self) -> bool {
        matches!(self, Self::Forward(_))
    }
}

/// A socket that was accepted, and what its listener knows of it.
pub(crate) struct Arrival {
    pub(crate) peer: SocketAddr,
    pub(crate) direction: Direction,
    pub(crate) entry: Entry,
    pub(crate) preamble: Preamble,
    /// Keeps the connection in the counts of the drain and of the listeners' cap.
    pub(crate) held: (Open, Counted),
}

/// A client's connection, as its requests see it.
pub(crate) struct Connection {
    pub(crate) worker: Rc<Worker>,
    pub(crate) peer: SocketAddr,
    pub(crate) direction: Direction,
    pub(crate) entry: Entry,
    /// `http` or `https`, as its client sees it.
    pub(crate) scheme: &'static str,
    /// Where its listener speaks HTTP/3, for clients that do not (RFC 7838).
    pub(crate) alternative: Option<HeaderValue>,
    pub(crate) progress: Progress,
    /// The host that its requests are for.
    pub(crate) authority: LastAuthority,
    /// What tells upstreams where its requests come from.
    pub(crate) forwarding: Forwarding,
    /// When its last request ended, or it began.
    pub(crate) ended: Cell<StdInstant>,
    /// A limit on the request under way; on HTTP/1 there is one at a time.
    pub(crate) timer: Rc<RefCell<Timer>>,
    /// What counts it as open; a tunnel that it becomes keeps it.
    _held: (Open, Counted),
}

impl Connection {
    /// How the proxy names itself to this direction's peers.
    pub(crate) fn via(&self) -> &Via {
        match self.direction {
            Direction::Inbound => &self.worker.via.inbound,
            Direction::Outbound => &self.worker.via.outbound,
        }
    }

    /// Whether nobody between the client and the proxy reads along: it is TLS, or does not leave the host.
    pub(crate) fn is_private(&self) -> bool {
        self.scheme == "https" || self.peer.ip().to_canonical().is_loopback()
    }

    /// Counts why the connection, or a request on it, failed.
    pub(crate) fn error(&self, reason: &'static str) {
        self.worker.metrics.error(self.direction, reason);
    }
}

/// Serves a connection to its end. A panic ends this connection only.
pub(crate) async fn serve(worker: Rc<Worker>, stream: TcpStream, arrival: Arrival) {
    let Arrival { mut peer, direction, entry, preamble: Preamble { proxy_protocol, tls, alternative }, held } = arrival;
    let (mut stream, mut ahead) = (stream, BytesMut::new());
    if proxy_protocol {
        let client = tokio::select! {
            biased;
            client = Box::pin(preamble::client(&mut stream, &mut ahead)) => client,
            () = worker.drain.closing(direction) => return,
        };
        match client {
            Ok(client) => peer = client.unwrap_or(peer),
            Err(reason) => return reason.into_iter().for_each(|reason| worker.metrics.error(direction, reason)),
        }
    }
    let scheme = if tls.is_some() { "https" } else { "http" };
    let connection = Rc::new(Connection {
        worker,
        peer,
        direction,
        entry,
        scheme,
        alternative: alternative.and_then(|alternative| alternative.get().cloned()),
        progress: Progress::default(),
        ended: Cell::new(StdInstant::now()),
        authority: LastAuthority::default(),
        forwarding: Forwarding::of(scheme, (direction == Direction::Inbound).then_some(peer.ip())),
        timer: Rc::default(),
        _held: held,
    });
    let served = detect_and_serve(Rc::clone(&connection), stream, ahead, tls);
    contained(&connection.worker.metrics.panics, served).await;
}

async fn detect_and_serve(connection: Rc<Connection>, stream: TcpStream, ahead: BytesMut, tls: Option<Arc<Terminator>>) {
    let detecting = connection.worker.connection_gauge(connection.direction, "detecting");
    let opening = async {
        match tls {
            Some(tls) => Box::pin(open_tls(&tls, stream, ahead, &connection.worker.turns)).await,
            None => open(&connection, stream, ahead).await.map(Some),
        }
    };
    let opened = tokio::select! {
        biased;
        opened = opening => opened,
        // It has not said enough to be a request.
        () = connection.worker.drain.closing(connection.direction) => return,
    };
    drop(detecting);
    let Opened { stream, ahead, detected } = match opened {
        Ok(Some(opened)) => opened,
        Ok(None) => return,
        Err(SHED) => return connection.worker.metrics.drop_counted(connection.direction, SHED),
        Err(reason) => return connection.error(reason),
    };
    match detected {
        Detected::Http1 => serve_http1(connection, stream, ahead).await,
        Detected::Http2 => Box::pin(serve_http2(connection, stream, ahead.freeze())).await,
        Detected::Tls(Some(host)) if connection.entry.is_forward_proxy() => {
            Box::pin(named::serve(connection, stream, ahead.freeze(), host)).await;
        }
        Detected::Tls(_) => Box::pin(pass_through(connection, stream, ahead.freeze(), None, "tls")).await,
        Detected::Bytes(upstream) => Box::pin(pass_through(connection, stream, ahead.freeze(), upstream, "tcp")).await,
        Detected::Nothing => {}
    }
}

/// A connection whose protocol is known, and what was read of it.
struct Opened {
    stream: Stream,
    ahead: BytesMut,
    detected: Detected,
}

/// Learns what a connection in clear speaks.
async fn open(connection: &Connection, mut socket: TcpStream, mut ahead: BytesMut) -> Result<Opened, &'static str> {
    let detected = match connection.entry {
        Entry::Intercepted(destination) => Box::pin(detect_any(connection, &mut socket, &mut ahead, destination)).await?,
        Entry::Reverse(_) => detect_http(&mut socket, &mut ahead).await?,
        Entry::Forward(_) => match detect_http(&mut socket, &mut ahead).await? {
            Detected::Http1 if hello::is_handshake(&ahead) => named::read_host(connection, &mut socket, &mut ahead).await?,
            detected => detected,
        },
    };
    Ok(Opened { stream: socket.into(), ahead, detected })
}

/// Shakes hands, and learns what is spoken under TLS.
async fn open_tls(tls: &Terminator, socket: TcpStream, ahead: BytesMut, turns: &Turns) -> Result<Option<Opened>, &'static str> {
    let Some((mut stream, chosen)) = tls.accept(socket, ahead.freeze(), turns).await? else { return Ok(None) };
    let mut ahead = BytesMut::new();
    let detected = match chosen {
        Chosen::Http1 => Detected::Http1,
        Chosen::Http2 => Detected::Http2,
        Chosen::Nothing => detect_http(&mut stream, &mut ahead).await?,
    };
    Ok(Some(Opened { stream, ahead, detected }))
}

/// What a connection speaks.
enum Detected {
    Http1,
    Http2,
    /// TLS that is not ours, and the host that it is for, if it says so.
    Tls(Option<Arc<str>>),
    /// Anything else; with the upstream's connection if it is open already.
    Bytes(Option<TcpStream>),
    /// It was closed before it said anything.
    Nothing,
}

/// Tells HTTP/2 from HTTP/1. Whatever is neither gets HTTP/1's answer to malformed requests.
async fn detect_http(stream: &mut (impl AsyncRead + Unpin), ahead: &mut BytesMut) -> Result<Detected, &'static str> {
    let read = async {
        loop {
            match guess(ahead) {
                Guess::Http2 => return Ok(Detected::Http2),
                Guess::Unknown if detect::may_be_http2(ahead) => {}
                _ => return Ok(Detected::Http1),
            }
            if !read_more(stream, ahead).await? {
                return Ok(if ahead.is_empty() { Detected::Nothing } else { Detected::Http1 });
            }
        }
    };
    timeout(DETECTION, read).await.unwrap_or(Err("client_timeout"))
}

/// Tells HTTP from other protocols. In some of those the server speaks first: when the client is silent, the upstream is
/// connected, and whoever speaks first decides. A client that spoke late still gets its requests seen, so waiting is no way
/// around a policy.
async fn detect_any(
    connection: &Connection,
    stream: &mut TcpStream,
    ahead: &mut BytesMut,
    destination: SocketAddr,
) -> Result<Detected, &'static str> {
    let speakers = &connection.worker.speakers;
    let patience = match told_speaker(connection, destination)
        .or_else(|| speakers.first(connection.direction, destination, Instant::now()))
    {
        Some(Speaker::Client) => tunnel::IDLE,
        Some(Speaker::Server) => Duration::ZERO,
        None => SILENCE,
    };
    if timeout(patience, stream.readable()).await.is_ok() {
        return detect_spoken(connection, stream, ahead).await;
    }
    if patience == tunnel::IDLE {
        return Ok(Detected::Nothing);
    }
    let config = connection.worker.config.load();
    if config.blocks() {
        return Err("proxy_configuration_error");
    }
    let limit = config.settings().upstream.connect_timeout.0;
    drop(config);
    let connector = &connection.worker.connector;
    let upstream = connector.connect(&Endpoint::Address(destination), limit).await.map_err(|error| error.reason())?;
    let upstream = tokio::select! {
        biased;
        _ = stream.readable() => Some(upstream),
        greeting = greeting(&upstream) => match greeting {
            // Its clients speak too, and have policies.
            Greeting::Http2 => None,
            Greeting::Farewell => return Ok(Detected::Bytes(Some(upstream))),
            Greeting::Other => {
                speakers.remember(destination, Instant::now());
                return Ok(Detected::Bytes(Some(upstream)));
            }
        },
        () = tokio::time::sleep(tunnel::IDLE) => return Ok(Detected::Nothing),
    };
    if timeout(tunnel::IDLE, stream.readable()).await.is_err() {
        return Ok(Detected::Nothing);
    }
    Ok(match detect_spoken(connection, stream, ahead).await? {
        Detected::Bytes(None) => Detected::Bytes(upstream),
        other => other,
    })
}

/// Who speaks first at a port of a Service, if it says so.
fn told_speaker(connection: &Connection, destination: SocketAddr) -> Option<Speaker> {
    let services = (connection.direction == Direction::Outbound).then(|| connection.worker.config.services())?;
    services.at(destination)?.speaker()
}

/// What an upstream says unasked.
enum Greeting {
    Http2,
    /// Its end, or an answer to nothing, as some servers send before they close an idle connection: no habit to remember.
    Farewell,
    /// Something else.
    Other,
}

/// Waits until the upstream speaks. What it said is left for the tunnel.
async fn greeting(upstream: &TcpStream) -> Greeting {
    let mut greeting = [0; 9];
    let read = upstream.peek(&mut greeting).await.unwrap_or(0);
    match &greeting[..read] {
        said if detect::is_settings(said) => Greeting::Http2,
        said if said.is_empty() || said.starts_with(b"HTTP/") => Greeting::Farewell,
        _ => Greeting::Other,
    }
}

async fn detect_spoken(connection: &Connection, stream: &mut TcpStream, ahead: &mut BytesMut) -> Result<Detected, &'static str> {
    let read = async {
        loop {
            if !read_more(stream, ahead).await? {
                return Ok(if ahead.is_empty() { Detected::Nothing } else { Detected::Bytes(None) });
            }
            match guess(ahead) {
                Guess::Http1 => return Ok(Detected::Http1),
                Guess::Http2 => return Ok(Detected::Http2),
                Guess::Other if hello::is_handshake(ahead) => return named::read_host(connection, stream, ahead).await,
                Guess::Other => return Ok(Detected::Bytes(None)),
                Guess::Unknown => {}
            }
        }
    };
    match timeout(DETECTION, read).await {
        Ok(detected) => detected,
        Err(_) if hello::is_handshake(ahead) => Ok(Detected::Tls(None)),
        // It began like HTTP and stopped: as HTTP it is held to the limits on heads.
        Err(_) => Ok(Detected::Http1),
    }
}

/// False at the end of the stream.
async fn read_more(stream: &mut (impl AsyncRead + Unpin), ahead: &mut BytesMut) -> Result<bool, &'static str> {
    ahead.reserve(1024);
    Ok(stream.read_buf(ahead).await.map_err(|_| "client_left")? > 0)
}

async fn serve_http1(connection: Rc<Connection>, stream: Stream, ahead: BytesMut) {
    let _open = connection.worker.connection_gauge(connection.direction, "http1");
    h1::server::serve(connection, stream, ahead).await;
}

async fn serve_http2(connection: Rc<Connection>, stream: Stream, ahead: Bytes) {
    let _open = connection.worker.connection_gauge(connection.direction, "http2");
    let config = connection.worker.config.load();
    let (stall, limits) = (config.settings().upstream.idle_timeout.0, config.settings().http.limits);
    drop(config);
    let bounds = Bounds {
        stall: stall.min(Rate::of(&limits).time_for(taking::MAX_PART as u64)),
        head: Limits::of(&limits).head(),
        room: connection.worker.pressure.room(),
    };
    let refused = {
        let connection = Rc::clone(&connection);
        move |reason| connection.error(reason)
    };
    let guarded = Guarded::of_client(ClientIo::new(stream, ahead, stall), refused);
    let leaves = guarded.leaves();
    let io = TokioIo::new(guarded);
    let service = {
        let connection = Rc::clone(&connection);
        service_fn(move |request| {
            pipeline::serve(Rc::clone(&connection), of_http2(request)).map(|response| Ok::<_, Infallible>(*response))
        })
    };
    let served = http2_builder(bounds).serve_connection(io, service);
    let mut served = pin!(until_announced(&connection, served, |served| served.graceful_shutdown()));
    tokio::select! {
        served = served.as_mut() => report(&connection, served),
        () = connection.progress.flooded() => {
            connection.error("reset_flood");
            leaves.set(true);
            let _ = served.await; // it ends at the next look at the socket, and has told why
        }
    }
}

fn of_http2(request: Request<Incoming>) -> pipeline::Request {
    let (mut parts, body) = request.into_parts();
    let switch = parts.extensions.remove::<OnUpgrade>().map(Switch::Http2);
    // A protocol that we do not know stays a CONNECT, which is refused.
    let _ = websocket::from_stream(&mut parts);
    pipeline::Request {
        present: Present::of(&parts.headers),
        parts: Box::new(parts),
        body: ClientBody::Http2(body),
        switch,
        interims: None,
    }
}

/// What holds for the streams of a connection.
#[derive(Clone, Copy)]
struct Bounds {
    /// How long a client may take nothing.
    stall: Duration,
    /// Bytes of a head.
    head: usize,
    /// Bytes that may be read ahead, by how short memory is.
    room: usize,
}

/// Bounds that keep one client from costing more than its share: 100 streams, 64 KiB a stream and 1 MiB a connection under way,
/// few resets, whoever caused them, and no stream whose client takes nothing for too long.
fn http2_builder(Bounds { stall, head, room }: Bounds) -> conn::http2::Builder<Streams> {
    // The least that the protocol has.
    const LEAST_WINDOW: usize = (64 << 10) - 1;
    let mut builder = conn::http2::Builder::new(Streams { limit: stall });
    builder
        .timer(TokioTimer::new())
        .enable_connect_protocol()
        .max_concurrent_streams(100)
        .initial_stream_window_size(64 << 10)
        .initial_connection_window_size((16 * room).max(LEAST_WINDOW) as u32)
        .max_header_list_size(head as u32)
        .max_pending_accept_reset_streams(20)
        .max_local_error_reset_streams(100)
        .max_send_buf_size(room)
        .keep_alive_interval(Duration::from_secs(30))
        .keep_alive_timeout(Duration::from_secs(10));
    builder
}

/// Runs a connection. When the drain is announced, or memory is short, it takes no more streams, and finishes what is under way:
/// GOAWAY loses no request.
async fn until_announced<C>(connection: &Connection, served: C, shut_down: impl FnOnce(Pin<&mut C>)) -> hyper::Result<()>
where
    C: Future<Output = hyper::Result<()>>,
{
    let (mut served, worker) = (pin!(served), &connection.worker);
    tokio::select! {
        biased;
        ended = served.as_mut() => return ended,
        () = worker.drain.announced_or_wanted(connection.direction, || worker.pressure.is(Step::Refuse)) => {}
    }
    shut_down(served.as_mut());
    served.await
}

/// Counts a client that does not read. What else ended the connection was counted when it was seen.
fn report(connection: &Connection, served: hyper::Result<()>) {
    let Err(error) = served else { return };
    tracing::debug!(%error, peer = %connection.peer, "A client's connection was closed.");
    if h2::io_kind(&error) == Some(io::ErrorKind::TimedOut) {
        connection.error("client_timeout");
    }
}

async fn pass_through(connection: Rc<Connection>, stream: Stream, ahead: Bytes, upstream: Option<TcpStream>, kind: &'static str) {
    let Entry::Intercepted(destination) = connection.entry else { return };
    let _open = connection.worker.connection_gauge(connection.direction, kind);
    let config = connection.worker.config.load();
    if config.blocks() {
        return connection.error("proxy_configuration_error");
    }
    let upstream = match upstream {
        Some(upstream) => Ok(upstream),
        None => {
            let limit = config.settings().upstream.connect_timeout.0;
            connection.worker.connector.connect(&Endpoint::Address(destination), limit).await
        }
    };
    drop(config);
    match upstream {
        Ok(upstream) => {
            let bytes = connection.worker.tunnel_bytes(connection.direction);
            let client = ReadAhead::new(ahead, stream);
            // Either side may break off; it has nobody else to tell.
            let _ = tunnel::run(client, upstream, &bytes, tunnel::IDLE).await;
        }
        Err(error) => connection.error(error.reason()),
    }
}
