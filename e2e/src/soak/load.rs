//! The clients: what each kind asks for, one exchange after the other until the soak ends.

use std::sync::Arc;
use std::time::Duration;

use http::Method;
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::ask::{Ask, Does, Framing};
use super::client1::{self, Io, SLOW};
use super::client2::{self, Use};
use super::ledger::{Answer, End, Kind, Ledger, Outcome};
use super::proxy::{FAULTY, LIMITED, PLAIN, Place, Proxy, TRIED};
use crate::testkit::reset_when_dropped;

/// How long one exchange may take, on a machine that does other things too.
const DEADLINE: Duration = Duration::from_secs(30);
/// Streams of one connection of HTTP/2.
const STREAMS: usize = 4;
/// Messages of a tunnel or an echoed stream.
const MESSAGES: std::ops::RangeInclusive<usize> = 1..=20;

/// What all clients share.
pub(super) struct Stage {
    pub(super) proxy: Proxy,
    pub(super) ledger: Arc<Ledger>,
    /// Ends the load: each client finishes the exchange that it is at.
    pub(super) stop: CancellationToken,
    tls1: TlsConnector,
    tls2: TlsConnector,
}

impl Stage {
    pub(super) fn new(proxy: Proxy, ledger: Arc<Ledger>) -> anyhow::Result<Self> {
        let (tls1, tls2) = (proxy.tls("http/1.1")?, proxy.tls("h2")?);
        Ok(Self { proxy, ledger, stop: CancellationToken::new(), tls1, tls2 })
    }

    /// Starts all clients.
    pub(super) fn start(self: &Arc<Self>) -> TaskTracker {
        let clients = TaskTracker::new();
        for (kind, place, count) in [
            (Kind::Http1, Place::Http1, 4),
            (Kind::Http1, Place::Http2, 2),
            (Kind::Tls1, Place::Tls, 3),
            (Kind::Uploads, Place::Http1, 1),
            (Kind::Uploads, Place::Http2, 1),
            (Kind::Slow, Place::Http1, 2),
            (Kind::Slow, Place::Http2, 1),
            (Kind::Leaving1, Place::Http1, 3),
            (Kind::Leaving1, Place::Http2, 2),
            (Kind::Faulty1, Place::Faulty1, 4),
            (Kind::Faulty1, Place::Faulty2, 2),
        ] {
            for _ in 0..count {
                clients.spawn(Arc::clone(self).over_http1(kind, place));
            }
        }
        for (kind, place) in [
            (Kind::Http2, Place::Http1),
            (Kind::Http2, Place::Http2),
            (Kind::Tls2, Place::Tls),
            (Kind::Leaving2, Place::Http1),
            (Kind::Leaving2, Place::Http2),
            (Kind::Faulty2, Place::Faulty1),
            (Kind::Faulty2, Place::Faulty2),
        ] {
            clients.spawn(Arc::clone(self).over_http2(kind, place));
        }
        for place in [Place::Http1, Place::Http2] {
            clients.spawn(Arc::clone(self).tunnels1(place));
            clients.spawn(Arc::clone(self).echoes2(Kind::WebSocket2, place));
        }
        clients.spawn(Arc::clone(self).echoes2(Kind::Grpc, Place::Http2));
        clients.close();
        clients
    }

    /// One exchange after the other on a connection that is kept as long as it serves.
    async fn over_http1(self: Arc<Self>, kind: Kind, place: Place) {
        let mut kept = None;
        while !self.stop.is_cancelled() {
            let ask = self.ask(kind);
            let mut connection = match kept.take() {
                Some(connection) => connection,
                None => match self.connect(kind, place).await {
                    Some(io) => client1::Connection::new(io),
                    None => continue,
                },
            };
            let limit = patience(kind);
            match timeout(limit, connection.exchange(&ask)).await {
                Ok((outcome, serves)) => {
                    self.ledger.close(kind, &ask, &outcome);
                    // Now and then a client goes between two requests.
                    kept = (serves && fastrand::u8(..) > 2).then_some(connection);
                }
                Err(_) if limit < DEADLINE => self.ledger.tally(kind, End::Left),
                Err(_) => self.ledger.close(kind, &ask, &Outcome::Late),
            }
            pause().await;
        }
    }

    /// Connections of several streams, each of which asks one thing after the other.
    async fn over_http2(self: Arc<Self>, kind: Kind, place: Place) {
        while !self.stop.is_cancelled() {
            let Some(connection) = self.connect2(kind, place).await else { continue };
            let connection = Arc::new(connection);
            let streams = TaskTracker::new();
            // A connection serves for a while, so that there are new ones too.
            let turns = fastrand::usize(20..200);
            for _ in 0..STREAMS {
                streams.spawn(Arc::clone(&self).stream(kind, Arc::clone(&connection), turns));
            }
            streams.close();
            streams.wait().await;
        }
    }

    async fn stream(self: Arc<Self>, kind: Kind, connection: Arc<client2::Connection>, turns: usize) {
        for _ in 0..turns {
            if self.stop.is_cancelled() || connection.is_over() {
                return;
            }
            let (ask, limit) = (self.ask(kind), patience(kind));
            match timeout(limit, connection.exchange(&ask)).await {
                Ok(outcome) => self.ledger.close(kind, &ask, &outcome),
                Err(_) if limit < DEADLINE => self.ledger.tally(kind, End::Left),
                Err(_) => self.ledger.close(kind, &ask, &Outcome::Late),
            }
            pause().await;
        }
    }

    /// WebSockets by upgrade.
    async fn tunnels1(self: Arc<Self>, place: Place) {
        while !self.stop.is_cancelled() {
            let Some(io) = self.connect(Kind::WebSocket1, place).await else { continue };
            let mut connection = client1::Connection::new(io);
            let ask = Ask::get(self.ledger.open(), path(), 0);
            let tunnel = async {
                let answer = connection.open(&ask).await?;
                check_open(&ask, &answer, 101)?;
                let mut at = 0;
                for _ in 0..fastrand::usize(MESSAGES) {
                    let len = size();
                    anyhow::ensure!(connection.echo(ask.id, at, len).await?, "mixed up: another echo");
                    at += len;
                    pause().await;
                }
                if fastrand::u8(..) < 64 {
                    return Ok(End::Left);
                }
                anyhow::ensure!(connection.finish().await?, "bytes after the last echo");
                Ok(End::Whole)
            };
            self.echoed(Kind::WebSocket1, &ask, tunnel).await;
        }
    }

    /// Streams that the origin echoes on.
    async fn echoes2(self: Arc<Self>, kind: Kind, place: Place) {
        while !self.stop.is_cancelled() {
            let Some(connection) = self.connect2(kind, place).await else { continue };
            for _ in 0..fastrand::usize(1..8) {
                let grpc = kind == Kind::Grpc;
                let path = if grpc { "/plain/grpc" } else { path() };
                let ask = Ask::get(self.ledger.open(), path, 0);
                let tunnel = async {
                    let purpose = if grpc { Use::Grpc } else { Use::WebSocket };
                    let (answer, mut echo) = connection.open(&ask, purpose).await?;
                    check_open(&ask, &answer, 200)?;
                    let mut at = 0;
                    for _ in 0..fastrand::usize(MESSAGES) {
                        let len = size();
                        anyhow::ensure!(echo.message(ask.id, at, len).await?, "mixed up: another echo");
                        at += len;
                        pause().await;
                    }
                    if fastrand::u8(..) < 64 {
                        return Ok(End::Left);
                    }
                    let trailers = echo.finish().await?;
                    let told = trailers.get("x-id").and_then(|id| id.to_str().ok()?.parse().ok());
                    anyhow::ensure!(!grpc || told == Some(ask.id), "mixed up: other trailers, {trailers:?}");
                    Ok(End::Whole)
                };
                self.echoed(kind, &ask, tunnel).await;
                if self.stop.is_cancelled() || connection.is_over() {
                    break;
                }
            }
        }
    }

    async fn echoed(&self, kind: Kind, ask: &Ask, tunnel: impl Future<Output = anyhow::Result<End>>) {
        match timeout(2 * DEADLINE, tunnel).await {
            Ok(Ok(end)) => self.ledger.tally(kind, end),
            Ok(Err(error)) => self.ledger.breach(&format!("{kind:?}: {error:#}: {ask:?}")),
            Err(_) => self.ledger.breach(&format!("{kind:?}: no echo in time: {ask:?}")),
        }
    }

    async fn connect(&self, kind: Kind, place: Place) -> Option<Box<dyn Io>> {
        let connected = async {
            match kind {
                Kind::Tls1 => self.proxy.connect_tls(&self.tls1).await,
                Kind::Tls2 => self.proxy.connect_tls(&self.tls2).await,
                _ => self.proxy.connect(place).await.map(|stream| leaves(kind, stream)),
            }
        };
        match timeout(DEADLINE, connected).await {
            Ok(Ok(io)) => return Some(io),
            Ok(Err(error)) => self.ledger.breach(&format!("{kind:?}: no connection: {error}")),
            Err(_) => self.ledger.breach(&format!("{kind:?}: no connection in time")),
        }
        sleep(Duration::from_millis(100)).await;
        None
    }

    /// A connection of HTTP/2 that has served once, so that the proxy's settings are known.
    async fn connect2(&self, kind: Kind, place: Place) -> Option<client2::Connection> {
        let io = self.connect(kind, place).await?;
        let connection = match client2::Connection::new(io).await {
            Ok(connection) => connection,
            Err(error) => {
                self.ledger.breach(&format!("{kind:?}: no HTTP/2: {error:#}"));
                return None;
            }
        };
        let ask = Ask::get(self.ledger.open(), if may_fail(kind) { FAULTY } else { PLAIN }, 10);
        let outcome = timeout(DEADLINE, connection.exchange(&ask)).await.unwrap_or(Outcome::Late);
        self.ledger.close(kind, &ask, &outcome);
        let knows = connection.opens_tunnels();
        if !knows {
            self.ledger.breach(&format!("{kind:?}: the proxy does not offer extended CONNECT"));
        }
        knows.then_some(connection)
    }

    /// Something that fits a kind.
    fn ask(&self, kind: Kind) -> Ask {
        let once = fastrand::bool();
        let mut ask = Ask::get(self.ledger.open(), path(), size());
        ask.framing = [Framing::Length, Framing::Chunked, Framing::Close][fastrand::usize(0..3)];
        ask.chunked = fastrand::bool();
        ask.does = [Does::Answer, Does::Answer, Does::Answer, Does::Hint, Does::Dawdle][fastrand::usize(0..5)];
        if fastrand::bool() {
            ask.upload = size();
            ask.method = if once { Method::POST } else { Method::PUT };
        }
        match kind {
            Kind::Http1 | Kind::Http2 if fastrand::u8(..) < 32 => ask.path = LIMITED,
            Kind::Uploads => (ask.upload, ask.method) = (fastrand::usize(100 << 10..1 << 20), Method::POST),
            Kind::Slow => {
                ask.answer = fastrand::usize(50 << 10..300 << 10);
                (ask.read_pace, ask.write_pace) = (SLOW, SLOW);
            }
            Kind::Leaving1 | Kind::Leaving2 => {
                (ask.answer, ask.does) = (fastrand::usize(0..100 << 10), Does::Dawdle);
                (ask.upload, ask.write_pace) = (if ask.upload > 0 { fastrand::usize(1..100 << 10) } else { 0 }, SLOW / 2);
            }
            Kind::Faulty1 | Kind::Faulty2 => {
                ask.path = FAULTY;
                // A half must be less than the whole.
                ask.answer += 2;
                if fastrand::bool() {
                    ask.does = Does::FAULTS[fastrand::usize(0..Does::FAULTS.len())];
                }
            }
            _ => {}
        }
        ask
    }
}

fn may_fail(kind: Kind) -> bool {
    matches!(kind, Kind::Faulty1 | Kind::Faulty2)
}

/// How long a client waits before it leaves.
fn patience(kind: Kind) -> Duration {
    match kind {
        Kind::Leaving1 | Kind::Leaving2 => Duration::from_micros(fastrand::u64(0..60_000)),
        _ => DEADLINE,
    }
}

/// Some of those who leave do it by a reset.
fn leaves(kind: Kind, stream: TcpStream) -> Box<dyn Io> {
    if kind == Kind::Leaving1 && fastrand::bool() {
        reset_when_dropped(&stream);
    }
    Box::new(stream)
}

fn check_open(ask: &Ask, answer: &Answer, status: u16) -> anyhow::Result<()> {
    anyhow::ensure!((answer.status, answer.id) == (status, Some(ask.id)), "not opened: {answer:?}");
    Ok(())
}

fn path() -> &'static str {
    if fastrand::bool() { PLAIN } else { TRIED }
}

/// Mostly small, sometimes nothing, sometimes more than any buffer.
fn size() -> usize {
    match fastrand::u8(0..20) {
        0 => 0,
        1 => fastrand::usize(20_000..200_000),
        _ => fastrand::usize(1..3000),
    }
}

async fn pause() {
    sleep(Duration::from_micros(fastrand::u64(0..10_000))).await;
}
