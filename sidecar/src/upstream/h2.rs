//! HTTP/2 connections to upstreams, each driven by a task: one a worker and upstream, and further ones once its streams are used up.

use std::{
    cell::{Cell, RefCell},
    future::{Future as _, poll_fn},
    pin::Pin,
    rc::Rc,
    task::Poll,
    time::Duration,
};

use h2::Reason;
use http::{Request, Response};
use hyper::{
    body::Incoming,
    client::conn::{
        TrySendError,
        http2::{Builder, Connection, SendRequest},
    },
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    sync::Notify,
    time::{Instant, sleep},
};

use super::pool::Permit;
use crate::{flow::Upload, h2::guard::Guarded, io, worker::LocalExecutor};

/// Window of one stream and of a connection, in bytes.
const STREAM_WINDOW: u32 = 64 << 10;
const CONNECTION_WINDOW: u32 = 1 << 20;

/// Streams that an upstream allows before it has said how many. hyper holds the first back until then.
const UNKNOWN: usize = 0;

/// How often a new connection is asked whether its upstream has said what it takes.
const ASK_AGAIN: Duration = Duration::from_millis(2);

type Driven = Connection<TokioIo<Guarded<io::Stream, fn(&'static str)>>, Upload, LocalExecutor>;

/// The connections of one worker to one upstream.
#[derive(Default)]
pub(super) struct Group {
    open: RefCell<Vec<H2>>,
    /// Held by the request that opens a connection; the others wait for what comes of it.
    pub(super) opening: tokio::sync::Mutex<()>,
    /// A stream has ended, or an upstream has said how many it allows.
    pub(super) freed: Rc<Notify>,
}

impl Group {
    /// A stream on the first connection that has one left. The others so become idle when there is less to do.
    pub(super) fn reserve(&self) -> Option<Reserved> {
        let mut open = self.open.borrow_mut();
        open.retain(|conn| !conn.is_closed());
        open.iter().find_map(H2::reserve)
    }

    /// Whether an upstream has yet to say how many streams it allows: no further connection is opened until then.
    pub(super) fn is_learning(&self) -> bool {
        self.open.borrow().iter().any(|conn| conn.allowed() == Some(UNKNOWN))
    }

    /// Whether there is no connection.
    pub(super) fn is_empty(&self) -> bool {
        self.open.borrow().is_empty()
    }

    /// Adds a connection, and takes a stream of it.
    pub(super) fn add(&self, conn: H2) -> Option<Reserved> {
        let reserved = conn.reserve();
        self.open.borrow_mut().push(conn);
        reserved
    }

    /// Closes connections that had no stream for `limit`. Returns whether none is left.
    pub(super) fn sweep(&self, now: Instant, limit: Duration) -> bool {
        let mut open = self.open.borrow_mut();
        open.retain(|conn| !conn.is_closed() && !conn.is_idle(now, limit));
        open.is_empty()
    }

    /// Closes one that has no stream, if there is one: another worker waits for its place.
    pub(super) fn yield_place(&self) {
        let mut open = self.open.borrow_mut();
        if let Some(idle) = open.iter().position(|conn| conn.used.streams.get() == 0) {
            open.remove(idle);
        }
    }

    /// Closes all that have no stream, and returns how many.
    pub(super) fn give_back(&self) -> usize {
        let mut open = self.open.borrow_mut();
        let before = open.len();
        open.retain(|conn| conn.used.streams.get() > 0);
        before - open.len()
    }
}

/// What an upstream did wrong shows in the requests that it breaks.
fn refused(reason: &'static str) {
    tracing::debug!(reason, "An upstream broke the rules of HTTP/2.");
}

/// An open connection.
pub(super) struct H2 {
    sender: SendRequest<Upload>,
    used: Rc<Used>,
    /// None once it has ended.
    connection: Rc<RefCell<Option<Driven>>>,
}

/// Streams under way, and since when there is none.
struct Used {
    streams: Cell<usize>,
    since: Cell<Instant>,
    /// The upstream takes no new streams.
    leaving: Cell<bool>,
    freed: Rc<Notify>,
}

impl H2 {
    /// Makes a connection of a socket. `freed` is told when a stream ends.
    pub(super) async fn open(stream: io::Stream, permit: Permit, freed: Rc<Notify>) -> Result<Self, hyper::Error> {
        let (sender, connection) = Builder::new(LocalExecutor)
            .timer(TokioTimer::new())
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_header_list_size(64 << 10)
            .initial_max_send_streams(UNKNOWN)
            .keep_alive_interval(Duration::from_secs(20))
            .keep_alive_timeout(Duration::from_secs(10))
            .handshake(TokioIo::new(Guarded::of_server(stream, refused as fn(&'static str))))
            .await?;
        let connection = Rc::new(RefCell::new(Some(connection)));
        tokio::task::spawn_local(drive(Rc::clone(&connection), permit, Rc::clone(&freed)));
        let (streams, since) = (Cell::new(0), Cell::new(Instant::now()));
        let used = Used { streams, since, leaving: Cell::new(false), freed };
        Ok(Self { sender, used: Rc::new(used), connection })
    }

    /// Whether it takes no more streams.
    fn is_closed(&self) -> bool {
        self.used.leaving.get() || self.sender.is_closed()
    }

    /// Whether it had no stream for `limit`.
    fn is_idle(&self, now: Instant, limit: Duration) -> bool {
        self.used.streams.get() == 0 && now.duration_since(self.used.since.get()) >= limit
    }

    /// Streams that the upstream allows at a time (RFC 9113, section 5.1.2). None if the connection has ended.
    fn allowed(&self) -> Option<usize> {
        self.connection.borrow().as_ref().map(Driven::current_max_send_streams)
    }

    /// A stream, if there is one left.
    fn reserve(&self) -> Option<Reserved> {
        let free = self.used.streams.get() < self.allowed()?.max(1);
        free.then(|| Reserved {
            sender: self.sender.clone(),
            stream: Stream::new(Rc::clone(&self.used)),
            connection: Rc::clone(&self.connection),
        })
    }
}

/// Runs a connection to its end, and tells when the number of its streams changes.
async fn drive(connection: Rc<RefCell<Option<Driven>>>, permit: Permit, freed: Rc<Notify>) {
    let mut allowed = UNKNOWN;
    poll_fn(|cx| {
        let mut connection = connection.borrow_mut();
        let Some(connection) = &mut *connection else { return Poll::Ready(()) };
        // Its error reaches the streams.
        let polled = Pin::new(&mut *connection).poll(cx).map(drop);
        let now = connection.current_max_send_streams();
        if std::mem::replace(&mut allowed, now) != now {
            freed.notify_waiters();
        }
        polled
    })
    .await;
    connection.take();
    drop(permit);
    freed.notify_waiters();
}

/// The right to one stream.
pub(crate) struct Reserved {
    sender: SendRequest<Upload>,
    stream: Stream,
    connection: Rc<RefCell<Option<Driven>>>,
}

impl Reserved {
    /// Whether the upstream takes an extended CONNECT (RFC 8441, section 3), which it says in its first frame.
    pub(crate) async fn takes_connect(&self) -> bool {
        loop {
            match self.connection.borrow().as_ref() {
                Some(connection) if connection.current_max_send_streams() == UNKNOWN => {}
                Some(connection) => return connection.is_extended_connect_protocol_enabled(),
                None => return false,
            }
            // hyper tells nobody when that frame comes.
            sleep(ASK_AGAIN).await;
        }
    }

    /// Sends a request and waits for the head of its response.
    pub(crate) async fn send(mut self, request: Request<Upload>) -> Result<(Response<Incoming>, Stream), Refused> {
        match self.sender.try_send_request(request).await {
            Ok(response) => Ok((response, self.stream)),
            Err(failed) => Err(Refused::new(failed, &self.stream.0)),
        }
    }
}

/// Why a request got no answer.
pub(crate) struct Refused {
    pub(crate) error: hyper::Error,
    /// The connection never took it.
    pub(crate) unsent: bool,
    /// The upstream says that it has done nothing with it.
    pub(crate) unprocessed: bool,
}

impl Refused {
    fn new(mut failed: TrySendError<Request<Upload>>, used: &Used) -> Self {
        let unsent = failed.take_message().is_some();
        let error = failed.into_error();
        let cause = std::error::Error::source(&error).and_then(|cause| cause.downcast_ref::<h2::Error>());
        // Only streams above the last one that the upstream will process end with its GOAWAY (RFC 9113, section 6.8).
        let gone = cause.is_some_and(|cause| cause.is_go_away() && cause.is_remote());
        let refused =
            cause.is_some_and(|cause| cause.is_reset() && cause.is_remote() && cause.reason() == Some(Reason::REFUSED_STREAM));
        if gone || unsent {
            used.leaving.set(true);
        }
        Self { error, unsent, unprocessed: gone || refused }
    }
}

/// A stream under way.
pub(crate) struct Stream(Rc<Used>);

impl Stream {
    fn new(used: Rc<Used>) -> Self {
        used.streams.set(used.streams.get() + 1);
        Self(used)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.0.streams.set(self.0.streams.get() - 1);
        self.0.since.set(Instant::now());
        self.0.freed.notify_one();
    }
}
