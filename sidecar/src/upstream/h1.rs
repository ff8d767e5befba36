//! HTTP/1 connections to upstreams, polled inside the request's own future.
//!
//! The rules: (a) a connection that has ended is never polled again; (b) a message that was given back may be sent again, else
//! the byte counts decide; (c) it goes back to the pool only when the request is sent, the response has ended and it is ready
//! for the next, else it is closed; (d) in the pool it is watched; (e) it moves to a task of its own when the body is large or
//! both directions stream, so that neither side waits for the other.

use std::{
    future::{Future, poll_fn},
    pin::{Pin, pin},
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body, Frame, SizeHint};
use hyper::{
    body::Incoming,
    client::conn::http1::{Builder, Connection, Parts, SendRequest},
};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, sync::oneshot};

use super::pool::{Host, Permit};
use crate::{
    flow::Upload,
    io::{Meter, UpstreamIo},
};

/// A body larger than this moves the connection to a task of its own.
const LARGE: u64 = 256 << 10;

/// Bytes of a response head, at most.
const MAX_HEAD: usize = 64 << 10;

/// Fields of a response head, at most.
const MAX_FIELDS: usize = 100;

/// An open connection with nothing or one request on it.
pub(crate) struct H1 {
    sender: SendRequest<Upload>,
    connection: Connection<TokioIo<UpstreamIo>, Upload>,
    /// The connection's future has returned; polling it again would be an error of ours.
    ended: bool,
    meter: Arc<Meter>,
    /// What the pool watches it with while it is idle.
    pub(super) watcher: Option<Watcher>,
    permit: Permit,
}

/// The waker of an idle connection, and its number in the pool.
pub(super) struct Watcher {
    pub(super) id: u64,
    pub(super) waker: Waker,
}

impl H1 {
    /// Makes a connection of a socket; it is ready at once.
    pub(crate) async fn open(stream: TcpStream, permit: Permit) -> Result<Box<Self>, hyper::Error> {
        let io = UpstreamIo::new(stream);
        let meter = io.meter();
        let (sender, connection) =
            Builder::new().max_headers(MAX_FIELDS).max_header_size(MAX_HEAD).handshake(TokioIo::new(io)).await?;
        Ok(Box::new(Self { sender, connection, ended: false, meter, watcher: None, permit }))
    }

    /// Drives the connection. Ready when it has ended, and from then on; the caller drops it.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.ended {
            match Pin::new(&mut self.connection).poll(cx) {
                Poll::Pending => return Poll::Pending,
                // Its error reaches us where the answer was expected.
                Poll::Ready(_) => self.ended = true,
            }
        }
        Poll::Ready(())
    }

    /// Whether it can take a request now.
    pub(super) fn is_idle(&self) -> bool {
        !self.ended && self.sender.is_ready()
    }

    /// The socket and what was read ahead of it, after the answer to an upgrade.
    async fn into_socket(mut self: Box<Self>) -> (UpstreamIo, Bytes, Permit) {
        poll_fn(|cx| self.poll(cx)).await;
        let Parts { io, read_buf, .. } = self.connection.into_parts();
        (io.into_inner(), read_buf, self.permit)
    }
}

/// What came of one try.
pub(crate) enum Answer {
    /// A response; its body drives the connection.
    Response(Response<Reply>),
    /// The upstream has switched protocols: the head, and the bare connection.
    Switched(Response<()>, Box<Switched>),
}

/// A connection that speaks another protocol now.
pub(crate) struct Switched {
    pub(crate) io: UpstreamIo,
    /// What the upstream said already.
    pub(crate) read_ahead: Bytes,
    pub(crate) permit: Permit,
}

/// Why one try failed, and what is known about the request.
pub(crate) struct Broken {
    pub(crate) error: hyper::Error,
    /// The request, if the connection never took it.
    pub(crate) returned: Option<Box<Request<Upload>>>,
    /// Request bytes that were written.
    pub(crate) written: u64,
    /// Response bytes that came.
    pub(crate) read: u64,
}

/// Sends a request and waits for the head of its response, or for a switch of protocols.
pub(crate) async fn send(mut conn: Box<H1>, host: Rc<Host>, request: Request<Upload>) -> Result<Answer, Broken> {
    let upload = request.body().clone();
    let may_switch = request.method() == http::Method::CONNECT || request.headers().contains_key(http::header::UPGRADE);
    let (written, read) = (conn.meter.written(), conn.meter.read());
    let outcome = {
        let mut sending = pin!(conn.sender.try_send_request(request));
        let conn = &mut *conn;
        let (connection, ended) = (&mut conn.connection, &mut conn.ended);
        poll_fn(|cx| {
            if !*ended {
                *ended = Pin::new(&mut *connection).poll(cx).is_ready();
            }
            sending.as_mut().poll(cx)
        })
        .await
    };
    let response = outcome.map_err(|mut failed| Broken {
        returned: failed.take_message().map(Box::new),
        error: failed.into_error(),
        written: conn.meter.written() - written,
        read: conn.meter.read() - read,
    })?;
    if may_switch && switches(&response) {
        let (parts, _) = response.into_parts();
        let (io, read_ahead, permit) = conn.into_socket().await;
        return Ok(Answer::Switched(Response::from_parts(parts, ()), Box::new(Switched { io, read_ahead, permit })));
    }
    Ok(Answer::Response(response.map(|body| Reply::new(body, conn, host, upload))))
}

fn switches<B>(response: &Response<B>) -> bool {
    response.extensions().get::<hyper::upgrade::OnUpgrade>().is_some()
}

/// A response body that drives its connection.
pub(crate) struct Reply {
    body: Incoming,
    driver: Driver,
    passed: u64,
    /// Trailers have passed.
    trailed: bool,
}

enum Driver {
    /// Polled with the body.
    Inline(Box<Lease>),
    /// Polled by a task, which is told when the body has ended; if this is dropped before, it closes the connection.
    Task(oneshot::Sender<()>),
    /// Back in the pool, or closed.
    Gone,
}

/// A connection in use, and where it goes afterwards.
struct Lease {
    conn: Box<H1>,
    host: Rc<Host>,
    upload: Upload,
}

impl Lease {
    /// The response has ended: rule (c).
    fn finish(self) {
        if self.upload.is_done() && self.upload.failure().is_none() {
            self.host.put(self.conn);
        }
    }
}

impl Reply {
    fn new(body: Incoming, conn: Box<H1>, host: Rc<Host>, upload: Upload) -> Self {
        let large = body.size_hint().lower() > LARGE;
        let both_stream = !upload.is_done() && !body.is_end_stream();
        let ended = conn.ended;
        let lease = Box::new(Lease { conn, host, upload });
        let driver = match () {
            () if ended => Driver::Gone,
            () if large || both_stream => Driver::Task(spawn(lease)),
            () => Driver::Inline(lease),
        };
        Self { body, driver, passed: 0, trailed: false }
    }

    pub(crate) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        if let Driver::Inline(lease) = &mut self.driver {
            // Only the connection fills this body, and it is polled right here: a waker on the body would wake for nothing.
            let mut unwoken = Context::from_waker(Waker::noop());
            if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(&mut unwoken) {
                return self.passed_on(frame);
            }
            if lease.conn.poll(cx).is_ready() {
                self.driver = Driver::Gone;
            }
        }
        match Pin::new(&mut self.body).poll_frame(cx) {
            Poll::Ready(frame) => self.passed_on(frame),
            Poll::Pending => Poll::Pending,
        }
    }

    fn passed_on(
        &mut self,
        frame: Option<Result<Frame<Bytes>, hyper::Error>>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match &frame {
            Some(Ok(frame)) => {
                self.trailed |= frame.is_trailers();
                self.passed += frame.data_ref().map_or(0, |data| data.len() as u64);
                if self.passed > LARGE {
                    self.move_to_task();
                }
            }
            Some(Err(_)) => self.driver = Driver::Gone,
            None => self.finish(),
        }
        Poll::Ready(frame)
    }

    fn move_to_task(&mut self) {
        self.driver = match std::mem::replace(&mut self.driver, Driver::Gone) {
            Driver::Inline(lease) => Driver::Task(spawn(lease)),
            other => other,
        };
    }

    fn finish(&mut self) {
        match std::mem::replace(&mut self.driver, Driver::Gone) {
            Driver::Inline(lease) => lease.finish(),
            Driver::Task(ended) => drop(ended.send(())),
            Driver::Gone => {}
        }
    }

    pub(crate) fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    pub(crate) fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Reply {
    /// A body of known length is dropped, not polled, after its last byte, and one with trailers after those. Any other is cut
    /// off: its connection closes.
    fn drop(&mut self) {
        if self.trailed || self.body.is_end_stream() {
            self.finish();
        }
    }
}

fn spawn(mut lease: Box<Lease>) -> oneshot::Sender<()> {
    let (ended, mut end) = oneshot::channel();
    tokio::task::spawn_local(async move {
        let finished = poll_fn(|cx| {
            if lease.conn.poll(cx).is_ready() {
                return Poll::Ready(false);
            }
            Pin::new(&mut end).poll(cx).map(|end| end.is_ok())
        });
        if finished.await {
            lease.finish();
        }
    });
    ended
}
