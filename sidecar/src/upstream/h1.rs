//! HTTP/1 connections to upstreams, polled inside the request's own future.
//!
//! The rules: (a) a connection that has failed is never used again; (b) the byte counts decide whether a request may be sent again;
//! (c) it goes back to the pool only when the request is sent, the response has ended and nothing else has come, else it is
//! closed; (d) in the pool it is watched; (e) what the client still sends goes on while the response streams, so that neither side
//! waits for the other.

use std::{
    cell::RefCell,
    future::poll_fn,
    io,
    pin::Pin,
    rc::{Rc, Weak},
    task::{Context, Poll, Waker, ready},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Method, Response, StatusCode, Uri};
use http_body::{Body as _, Frame, SizeHint};
use tokio::task::AbortHandle;

use super::{
    MAX_INTERIM, UpstreamError,
    pool::{Host, Permit},
};
use crate::{
    fields::{self, Present},
    flow::Upload,
    h1::{
        chunked::{Decoder, Found},
        encode::{self, Outbox},
        framing::{self, Framing},
        head::{Reader, ResponseHead},
    },
    io::Stream,
};

/// Room for what comes while a head is awaited.
const HEAD_ROOM: usize = 4 << 10;

/// How much sooner than its origin a connection gives up being idle.
const KEEP_MARGIN: Duration = Duration::from_secs(1);

/// An open connection with nothing or one request on it.
pub(crate) struct H1 {
    stream: Stream,
    inbox: BytesMut,
    outbox: Outbox,
    heads: Reader,
    read: u64,
    written: u64,
    /// How long it may be idle, by the origin's own word.
    pub(super) keep: Option<Duration>,
    /// Nothing has been read from it.
    new: bool,
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
    /// Makes a connection of a socket.
    pub(crate) fn new(stream: Stream, permit: Permit) -> Box<Self> {
        Box::new(Self {
            stream,
            inbox: BytesMut::new(),
            outbox: Outbox::default(),
            heads: Reader::default(),
            read: 0,
            written: 0,
            keep: None,
            new: true,
            watcher: None,
            permit,
        })
    }

    /// Learns from the first response how long the origin keeps an idle connection. It is given up [`KEEP_MARGIN`] sooner, so that no
    /// request meets an origin that closes; of very short times, after half.
    fn learn(&mut self, headers: &HeaderMap) {
        if std::mem::take(&mut self.new) {
            let kept = fields::keep_alive(headers).map(Duration::from_secs);
            self.keep = kept.map(|kept| kept.saturating_sub(KEEP_MARGIN).max(kept / 2));
        }
    }

    /// Watches an idle connection. Ready when it is of no use any more: it was closed, or the upstream speaks unasked.
    pub(super) fn poll_idle(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.inbox.is_empty() || !self.outbox.is_empty() {
            return Poll::Ready(());
        }
        self.inbox = BytesMut::new();
        self.heads.release();
        self.outbox.release();
        self.stream.poll_disturbed(cx)
    }

    /// Reads more; false at the end of the stream.
    fn poll_read(&mut self, cx: &mut Context<'_>, room: usize) -> Poll<io::Result<bool>> {
        let read = ready!(self.stream.poll_fill(cx, &mut self.inbox, room))?;
        self.read += read as u64;
        Poll::Ready(Ok(read > 0))
    }
}

/// The head of a request to write.
pub(crate) struct Head<'a> {
    pub(crate) method: &'a Method,
    pub(crate) uri: &'a Uri,
    pub(crate) headers: &'a HeaderMap,
    /// What the client's head had.
    pub(crate) present: Present,
    /// Lines of further fields.
    pub(crate) added: &'a [u8],
}

impl Head<'_> {
    /// Writes it, and says how the body is framed.
    fn write(&self, out: &mut Vec<u8>, upload: &Upload) -> Framing {
        encode::request(out, self.method, self.uri, self.headers);
        out.extend_from_slice(self.added);
        let framing = match upload.size_hint().exact() {
            Some(length) => Framing::Length(length),
            None => Framing::Chunked,
        };
        let usual = matches!(*self.method, Method::POST | Method::PUT | Method::PATCH);
        encode::framing(out, framing, usual || self.present.any(Present::CONTENT_LENGTH));
        framing
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
    pub(crate) stream: Stream,
    /// What the upstream said already.
    pub(crate) read_ahead: Bytes,
    pub(crate) permit: Permit,
}

/// Why one try failed, and what is known about the request.
pub(crate) struct Broken {
    pub(crate) error: UpstreamError,
    /// Request bytes that were written.
    pub(crate) written: u64,
    /// Response bytes that came.
    pub(crate) read: u64,
}

/// Sends a request and waits for the head of its response, or for a switch of protocols.
pub(crate) async fn send(mut conn: Box<H1>, host: Rc<Host>, request: Head<'_>, upload: Upload) -> Result<Answer, Broken> {
    (conn.read, conn.written) = (0, 0);
    let framing = request.write(conn.outbox.head(), &upload);
    let sending = (framing != Framing::Length(0)).then_some(framing);
    let mut lease =
        Lease { conn, host, upload, sending, sent: false, deaf: false, persists: true, interim: 0, failed: None, reader: None };
    let head = poll_fn(|cx| {
        if let Poll::Ready(Err(error)) = lease.poll_send(cx) {
            return Poll::Ready(Err(error));
        }
        lease.poll_head(cx)
    });
    let broken = |lease: &Lease, error| Broken { error, written: lease.conn.written, read: lease.conn.read };
    let head = match head.await {
        Ok(head) => head,
        Err(error) => return Err(broken(&lease, error)),
    };
    let present = Present::of(&head.headers);
    lease.persists = fields::persists(head.version, &head.headers, present);
    if present.any(Present::HOP) {
        lease.conn.learn(&head.headers);
    }
    let framing = match framing::response(request.method, head.status, head.version, &head.headers, present) {
        Ok(framing) => framing,
        Err(bad) => return Err(broken(&lease, bad.into())),
    };
    if lease.upload.is_held() {
        lease.give_up_sending(); // its answer came first, so nobody will ask for it
    }
    let tunnels = *request.method == Method::CONNECT && head.status.is_success();
    if tunnels || head.status == StatusCode::SWITCHING_PROTOCOLS {
        let H1 { stream, inbox, permit, .. } = *lease.conn;
        let switched = Switched { stream, read_ahead: inbox.freeze(), permit };
        return Ok(Answer::Switched(response(head, ()), Box::new(switched)));
    }
    Ok(Answer::Response(response(head, Reply::new(lease, framing, present))))
}

fn response<B>(head: ResponseHead, body: B) -> Response<B> {
    let mut response = Response::new(body);
    *response.status_mut() = head.status;
    *response.version_mut() = head.version;
    *response.headers_mut() = head.headers;
    response
}

/// A connection in use, the request that it carries, and where it goes afterwards.
struct Lease {
    conn: Box<H1>,
    host: Rc<Host>,
    upload: Upload,
    /// How what is left of the request's body is framed; none once all of it is in the outbox.
    sending: Option<Framing>,
    /// The whole request is written.
    sent: bool,
    /// The upstream reads no more. It may have answered before, so its answer, or its end, decides.
    deaf: bool,
    /// The upstream takes another request on this connection.
    persists: bool,
    interim: u32,
    /// Why sending failed, where it is done apart from reading, and who reads.
    failed: Option<UpstreamError>,
    reader: Option<Waker>,
}

impl Lease {
    /// Sends what can be sent. Ready when that was all, or the upstream does not listen any more.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), UpstreamError>> {
        while !self.sent {
            let waits = self.fill(cx)?;
            match ready!(self.conn.outbox.poll_flush(cx, &mut self.conn.stream, &mut self.conn.written)) {
                Ok(()) if self.sending.is_none() => self.sent = true,
                Ok(()) if waits => return Poll::Pending,
                Ok(()) => {}
                Err(_) => self.give_up_sending(),
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Nothing more is sent, and so the connection can't carry another request.
    fn give_up_sending(&mut self) {
        self.conn.outbox.clear();
        self.sending = None;
        (self.sent, self.deaf) = (true, true);
    }

    /// Moves pieces of the request's body to the outbox; true if it stopped because nothing comes.
    fn fill(&mut self, cx: &mut Context<'_>) -> Result<bool, UpstreamError> {
        while let Some(left) = &mut self.sending
            && self.conn.outbox.has_room()
        {
            let outbox = &mut self.conn.outbox;
            let ended = match Pin::new(&mut self.upload).poll_frame(cx) {
                Poll::Pending => return Ok(true),
                Poll::Ready(Some(Err(_))) => return Err(UpstreamError::Upload),
                Poll::Ready(None) => outbox.finish(*left, None).map(|()| true),
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) => outbox.chunk(data, left).map(|()| *left == Framing::Length(0)),
                    Err(frame) => outbox.finish(*left, frame.trailers_ref()).map(|()| true),
                },
            };
            if ended.map_err(|_| UpstreamError::Upload)? {
                self.upload.taken();
                self.sending = None;
            }
        }
        Ok(false)
    }

    /// Ready when sending, which is done apart, has failed.
    fn poll_failed(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), UpstreamError>> {
        if let Some(error) = self.failed.take() {
            return Poll::Ready(Err(error));
        }
        if !self.sent {
            self.reader = Some(cx.waker().clone());
        }
        Poll::Pending
    }

    /// The head of the final response, or of one that switches protocols.
    fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<Result<ResponseHead, UpstreamError>> {
        loop {
            if let Some(head) = self.conn.heads.response(&mut self.conn.inbox)? {
                if !head.status.is_informational() || head.status == StatusCode::SWITCHING_PROTOCOLS {
                    return Poll::Ready(Ok(head));
                }
                self.interim(head)?;
            } else if !ready!(self.conn.poll_read(cx, HEAD_ROOM))? {
                return Poll::Ready(Err(UpstreamError::Closed));
            }
        }
    }

    fn interim(&mut self, head: ResponseHead) -> Result<(), UpstreamError> {
        self.interim += 1;
        if self.interim > MAX_INTERIM {
            return Err(UpstreamError::Interim);
        }
        if head.status != StatusCode::CONTINUE {
            self.upload.interim(head);
        } else if let Some(permission) = self.upload.permission() {
            permission.give();
        }
        Ok(())
    }

    /// The response has ended: rule (c).
    fn finish(self) {
        let whole = self.sent && !self.deaf && self.persists && self.upload.is_done() && self.upload.failure().is_none();
        if whole {
            self.host.put(self.conn);
        }
    }
}

/// A response body that drives its connection.
pub(crate) struct Reply {
    lease: Option<Rc<RefCell<Lease>>>,
    rest: Rest,
    /// What its head has.
    pub(crate) present: Present,
    /// Sends what the client still sends.
    apart: Option<Apart>,
}

/// A task that ends with its owner.
struct Apart(AbortHandle);

impl Drop for Apart {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// What is left of a response.
enum Rest {
    Length(u64),
    Chunked(Decoder),
    Close,
    Ended,
}

impl Reply {
    fn new(lease: Lease, framing: Framing, present: Present) -> Self {
        let rest = match framing {
            Framing::Length(0) => Rest::Ended,
            Framing::Length(length) => Rest::Length(length),
            Framing::Chunked => Rest::Chunked(Decoder::default()),
            Framing::Close => Rest::Close,
        };
        if matches!(rest, Rest::Ended) {
            lease.finish();
            return Self { lease: None, rest, present, apart: None };
        }
        Self { lease: Some(Rc::new(RefCell::new(lease))), rest, present, apart: None }
    }

    /// The next piece. What the client still sends goes on meanwhile.
    pub(crate) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, UpstreamError>>> {
        let Some(lease) = &self.lease else { return Poll::Ready(None) };
        let polled = {
            let mut lease = lease.borrow_mut();
            // Only one of the two may send: an upload wakes whoever has asked it last.
            let sent = if self.apart.is_some() { lease.poll_failed(cx) } else { lease.poll_send(cx) };
            let most = lease.host.room();
            if let Poll::Ready(Err(error)) = sent {
                Poll::Ready(Err(error))
            } else {
                self.rest.poll_frame(cx, &mut lease.conn, most)
            }
        };
        let frame = match ready!(polled) {
            Ok(frame) => frame,
            Err(error) => {
                (self.lease, self.apart) = (None, None);
                return Poll::Ready(Some(Err(error)));
            }
        };
        if matches!(self.rest, Rest::Ended) {
            self.finish();
        }
        Poll::Ready(frame.map(Ok))
    }

    /// Sends on what the client still sends, while nobody reads the response.
    pub(crate) fn poll_upload(&mut self, cx: &mut Context<'_>) {
        if let Some(lease) = &self.lease {
            // A failure shows when the response is read on.
            let _ = lease.borrow_mut().poll_send(cx);
        }
    }

    /// Leaves sending to a task of its own, for a client whose reading says nothing about its sending.
    pub(crate) fn upload_apart(&mut self) {
        let Some(lease) = self.lease.as_ref().filter(|lease| !lease.borrow().sent) else { return };
        let lease: Weak<RefCell<Lease>> = Rc::downgrade(lease);
        let task = tokio::task::spawn_local(poll_fn(move |cx| {
            let Some(lease) = lease.upgrade() else { return Poll::Ready(()) };
            let lease = &mut *lease.borrow_mut();
            if let Err(error) = ready!(lease.poll_send(cx)) {
                lease.failed = Some(error);
                if let Some(reader) = lease.reader.take() {
                    reader.wake();
                }
            }
            Poll::Ready(())
        }));
        self.apart = Some(Apart(task.abort_handle()));
    }

    fn finish(&mut self) {
        self.apart = None;
        if let Some(lease) = self.lease.take().and_then(Rc::into_inner) {
            lease.into_inner().finish();
        }
    }

    pub(crate) fn is_end_stream(&self) -> bool {
        matches!(self.rest, Rest::Ended)
    }

    pub(crate) fn size_hint(&self) -> SizeHint {
        match self.rest {
            Rest::Ended => SizeHint::with_exact(0),
            Rest::Length(left) => SizeHint::with_exact(left),
            Rest::Chunked(_) | Rest::Close => SizeHint::default(),
        }
    }
}

impl Rest {
    /// The next piece, of at most about `most` bytes.
    fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
        conn: &mut H1,
        most: usize,
    ) -> Poll<Result<Option<Frame<Bytes>>, UpstreamError>> {
        loop {
            match self {
                Self::Ended => return Poll::Ready(Ok(None)),
                Self::Length(left) if !conn.inbox.is_empty() => {
                    let len = conn.inbox.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                    *left -= len as u64;
                    if *left == 0 {
                        *self = Self::Ended;
                    }
                    return Poll::Ready(Ok(Some(Frame::data(conn.inbox.split_to(len).freeze()))));
                }
                Self::Close if !conn.inbox.is_empty() => return Poll::Ready(Ok(Some(Frame::data(conn.inbox.split().freeze())))),
                Self::Chunked(decoder) => match decoder.decode(&mut conn.inbox)? {
                    Found::Data(data) => return Poll::Ready(Ok(Some(Frame::data(data)))),
                    Found::End(trailers) => {
                        *self = Self::Ended;
                        return Poll::Ready(Ok(trailers.map(Frame::trailers)));
                    }
                    Found::More => {}
                },
                Self::Length(_) | Self::Close => {}
            }
            let room = match self {
                Self::Length(left) => usize::try_from(*left).unwrap_or(usize::MAX).min(most),
                _ => most / 4,
            };
            if !ready!(conn.poll_read(cx, room.max(HEAD_ROOM)))? {
                return Poll::Ready(match self {
                    Self::Close => {
                        *self = Self::Ended;
                        Ok(None)
                    }
                    _ => Err(UpstreamError::Closed),
                });
            }
        }
    }
}
