//! The one body type. A [`Flow`] carries a response to the client; an [`Upload`] shares the client's body between the tries of
//! a request.

use std::{
    future::poll_fn,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http::StatusCode;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use smallvec::SmallVec;

#[cfg(feature = "http3")]
use crate::h3;
use crate::{
    cache,
    connection::taking,
    exchange::Guards,
    fields::Present,
    h1::{BadBody, server::RequestBody},
    io::Silence,
    shadow::Shadow,
    throttle::{Paced, Permit},
    upstream::{self, UpstreamError},
};

mod upload;

pub(crate) use upload::{Bounds, Failure, Upload};

/// Why a body broke off.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FlowError {
    /// The client's body could not be read to its end.
    #[error("the client's body broke off")]
    Client(#[source] ClientError),
    /// The upstream's body could not be read to its end.
    #[error("the upstream's body broke off")]
    Upstream(#[source] UpstreamError),
    /// Nothing came for too long.
    #[error("the body paused for longer than {0:?}")]
    Idle(Duration),
    /// The client's body goes against a limit.
    #[error("the client's body was not taken to its end")]
    Refused,
    /// The request that fetched it for others broke off.
    #[error("the body that another request fetched broke off")]
    Joined(#[source] cache::Failure),
    /// Another try has the body now.
    #[error("the request goes on elsewhere")]
    Elsewhere,
}

/// Why a client's body could not be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClientError {
    /// Over HTTP/1.
    #[error(transparent)]
    Http1(#[from] BadBody),
    /// Over HTTP/2.
    #[error(transparent)]
    Http2(#[from] hyper::Error),
    /// Over HTTP/3.
    #[cfg(feature = "http3")]
    #[error(transparent)]
    Http3(#[from] h3::BadBody),
}

/// A client's body, by the protocol that it comes over.
pub(crate) enum ClientBody {
    /// There is none.
    Empty,
    /// Over HTTP/1.
    Http1(RequestBody),
    /// Over an HTTP/2 stream.
    Http2(Incoming),
    /// Over an HTTP/3 stream.
    #[cfg(feature = "http3")]
    Http3(Box<h3::RequestBody>),
}

impl ClientBody {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, ClientError>>> {
        match self {
            Self::Empty => Poll::Ready(None),
            Self::Http1(body) => body.poll_frame(cx).map_err(ClientError::Http1),
            Self::Http2(body) => Pin::new(body).poll_frame(cx).map_err(ClientError::Http2),
            #[cfg(feature = "http3")]
            Self::Http3(body) => body.poll_frame(cx).map_err(ClientError::Http3),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Http1(body) => body.is_end_stream(),
            Self::Http2(body) => body.is_end_stream(),
            #[cfg(feature = "http3")]
            Self::Http3(body) => body.is_end_stream(),
        }
    }

    /// What is known of the length of what is left.
    pub(crate) fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Http1(body) => body.size_hint(),
            Self::Http2(body) => body.size_hint(),
            #[cfg(feature = "http3")]
            Self::Http3(body) => body.size_hint(),
        }
    }
}

/// How a body ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum End {
    /// To its last byte.
    Complete,
    /// The upstream broke it off, or paused for too long.
    Failed,
    /// The client left before its end.
    Dropped,
    /// The client took nothing of it for too long.
    Untaken,
}

/// How much of an answer that nobody wants is read.
const MAX_DISCARDED: usize = 64 << 10;

/// A response body: where it comes from, how long it may pause, and what must be told when it ends.
pub(crate) struct Flow {
    source: Source,
    /// What is left of a part that was too large to be handed out at once.
    rest: Bytes,
    silence: Silence,
    limit: Duration,
    passed: u64,
    /// Trailers have passed, after which nothing comes.
    trailed: bool,
    /// The client's connection closes after it.
    closes: bool,
    /// It broke off.
    failed: bool,
    guards: Option<Box<Guards>>,
    /// What its throttles have let through with it, until it ends.
    held: Option<Box<Held>>,
}

/// What a body gives when it is asked.
type Piece = Poll<Option<Result<Frame<Bytes>, FlowError>>>;

/// What throttles know of a body.
struct Held {
    _permits: SmallVec<[Permit; 1]>,
    paced: Option<Box<Paced>>,
    /// What is left of a piece that was too large to pass at once.
    rest: Bytes,
}

enum Source {
    Bytes(Bytes),
    /// The stream counts as under way for as long as its body lives.
    Stream {
        body: Incoming,
        _stream: upstream::h2::Stream,
    },
    Reply(upstream::h1::Reply),
    /// Pieces that are all here, and how many bytes they have together.
    Pieces(smallvec::IntoIter<[Bytes; 1]>, u64),
    /// What another request fetches, and how much of it is left if that is known.
    Joined(cache::Reader, Option<u64>),
}

/// Pieces of a body.
pub(crate) type Pieces = SmallVec<[Bytes; 1]>;

impl Flow {
    /// A body that is all here.
    pub(crate) fn bytes(bytes: impl Into<Bytes>) -> Self {
        Self::new(Source::Bytes(bytes.into()), Duration::MAX)
    }

    /// A body that is all here, in pieces.
    pub(crate) fn pieces(mut pieces: Pieces) -> Self {
        pieces.retain(|piece| !piece.is_empty());
        let length = pieces.iter().map(|piece| piece.len() as u64).sum();
        Self::new(Source::Pieces(pieces.into_iter(), length), Duration::MAX)
    }

    /// A body that another request fetches.
    pub(crate) fn joined(reader: cache::Reader) -> Self {
        let length = reader.expected();
        Self::new(Source::Joined(reader, length), Duration::MAX)
    }

    /// A body that comes over an HTTP/1 connection.
    pub(crate) fn reply(reply: upstream::h1::Reply, idle: Duration) -> Self {
        Self::new(Source::Reply(reply), idle)
    }

    /// A body that comes over an HTTP/2 stream.
    pub(crate) fn stream(body: Incoming, stream: upstream::h2::Stream, idle: Duration) -> Self {
        Self::new(Source::Stream { body, _stream: stream }, idle)
    }

    fn new(source: Source, limit: Duration) -> Self {
        Self {
            source,
            rest: Bytes::new(),
            silence: Silence::new(limit),
            limit,
            passed: 0,
            trailed: false,
            closes: false,
            failed: false,
            guards: None,
            held: None,
        }
    }

    /// Has a limit beside its own that only watches.
    pub(crate) fn watched(mut self, shadow: Option<Rc<Shadow>>) -> Self {
        self.silence = Silence::watched(self.limit, shadow);
        self
    }

    /// Reads what is left of an answer that nobody wants, so that its connection can serve again; of a long one it is not worth it.
    pub(crate) async fn discard(mut self) {
        let mut left = MAX_DISCARDED;
        while let Some(Ok(frame)) = poll_fn(|cx| self.poll_source(cx)).await {
            match left.checked_sub(frame.data_ref().map_or(0, Bytes::len)) {
                Some(rest) => left = rest,
                None => return,
            }
        }
    }

    /// What the head that it came with has, if that was looked at.
    pub(crate) fn present(&self) -> Option<Present> {
        match &self.source {
            Source::Reply(reply) => Some(reply.present),
            _ => None,
        }
    }

    /// Its length, if that is known.
    pub(crate) fn exact_length(&self) -> Option<u64> {
        self.size_hint().exact()
    }

    /// The next piece for somebody who is no client, and so has no pace to keep to.
    pub(crate) fn poll_unpaced(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, FlowError>>> {
        match ready!(self.poll_piece(cx)) {
            Poll::Ready(frame) => {
                self.silence.broken();
                Poll::Ready(frame)
            }
            Poll::Pending => {
                ready!(self.poll_silence(cx));
                Poll::Ready(Some(Err(FlowError::Idle(self.limit))))
            }
        }
    }

    /// Lets a connection of HTTP/1 close after it.
    pub(crate) fn close(&mut self) {
        self.closes = true;
    }

    /// Whether the connection is to close after it.
    pub(crate) fn closes(&self) -> bool {
        self.closes
    }

    /// Hands over what ends with the body.
    pub(crate) fn guard(&mut self, guards: Box<Guards>) {
        self.guards = Some(guards);
    }

    /// Counts for throttles until it ends, and keeps to what they allow.
    pub(crate) fn hold(&mut self, permits: SmallVec<[Permit; 1]>, paced: Option<Box<Paced>>) {
        self.held = Some(Box::new(Held { _permits: permits, paced, rest: Bytes::new() }));
    }

    /// Sends on what the client still sends of its request, while it does not read this response.
    pub(crate) fn poll_upload(&mut self, cx: &mut Context<'_>) {
        if let Source::Reply(reply) = &mut self.source {
            reply.poll_upload(cx);
        }
    }

    /// Leaves that to a task of its own, for a client whose reading says nothing about its sending.
    pub(crate) fn upload_apart(&mut self) {
        if let Source::Reply(reply) = &mut self.source {
            reply.upload_apart();
        }
    }

    /// Tells how it ended; false if that was told before, or there is nobody to tell.
    pub(crate) fn end(&mut self, end: End) -> bool {
        let guards = self.guards.take();
        let told = guards.is_some();
        if let Some(guards) = guards {
            guards.end(end, self.passed);
        }
        told
    }

    /// Tells that the client gets another answer instead, of which nothing was sent.
    pub(crate) fn replace(&mut self, status: StatusCode, reason: &'static str) {
        if let Some(guards) = self.guards.take() {
            guards.replaced(status, reason);
        }
    }

    fn hand_out(&mut self, mut data: Bytes) -> Frame<Bytes> {
        let max = taking::max_part();
        if data.len() > max {
            self.rest = data.split_off(max);
        }
        self.passed += data.len() as u64;
        taking::handed_out();
        Frame::data(data)
    }

    /// Ready when nothing has come for too long. Who fetches for others has a limit of its own.
    fn poll_silence(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if matches!(self.source, Source::Joined(..)) { Poll::Pending } else { self.silence.poll(cx) }
    }

    /// The next piece, as much of it as may pass at once. Pending only while what has passed is not paid for: nobody is silent then.
    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Piece> {
        if self.held.is_none() {
            return Poll::Ready(self.poll_source(cx));
        }
        if let Some(paced) = self.held.as_mut().and_then(|held| held.paced.as_mut())
            && paced.poll(cx).is_pending()
        {
            self.poll_upload(cx); // it has an account of its own
            return Poll::Pending;
        }
        let rest = self.held.as_mut().map(|held| std::mem::take(&mut held.rest)).unwrap_or_default();
        let polled = if rest.is_empty() { self.poll_source(cx) } else { Poll::Ready(Some(Ok(Frame::data(rest)))) };
        Poll::Ready(match polled {
            Poll::Ready(Some(Ok(frame))) => Poll::Ready(Some(Ok(self.paid(frame)))),
            Poll::Ready(None) => {
                self.held = None;
                Poll::Ready(None)
            }
            other => other,
        })
    }

    fn paid(&mut self, frame: Frame<Bytes>) -> Frame<Bytes> {
        let Some(Held { paced: Some(paced), rest, .. }) = self.held.as_deref_mut() else { return frame };
        let (part, left) = paced.part(frame);
        *rest = left;
        part
    }

    /// Bytes that are here and have not been handed out.
    fn left(&self) -> usize {
        self.rest.len() + self.held.as_ref().map_or(0, |held| held.rest.len())
    }

    fn poll_source(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, FlowError>>> {
        match &mut self.source {
            Source::Bytes(bytes) if bytes.is_empty() => Poll::Ready(None),
            Source::Bytes(bytes) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes))))),
            Source::Stream { body, .. } => {
                Pin::new(body).poll_frame(cx).map_err(|error| FlowError::Upstream(UpstreamError::Http2(error)))
            }
            Source::Reply(reply) => reply.poll_frame(cx).map_err(FlowError::Upstream),
            Source::Pieces(pieces, left) => Poll::Ready(pieces.next().map(|piece| {
                *left -= piece.len() as u64;
                Ok(Frame::data(piece))
            })),
            Source::Joined(_, Some(0)) => Poll::Ready(None),
            Source::Joined(reader, left) => match ready!(reader.poll_chunk(cx)) {
                Some(Ok(piece)) => {
                    *left = left.map(|left| left.saturating_sub(piece.len() as u64));
                    Poll::Ready(Some(Ok(Frame::data(piece))))
                }
                Some(Err(failure)) => Poll::Ready(Some(Err(FlowError::Joined(failure)))),
                None => Poll::Ready(None),
            },
        }
    }
}

impl Body for Flow {
    type Data = Bytes;
    type Error = FlowError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, FlowError>>> {
        let this = &mut *self;
        taking::asked();
        if !this.rest.is_empty() {
            let part = std::mem::take(&mut this.rest);
            return Poll::Ready(Some(Ok(this.hand_out(part))));
        }
        match ready!(this.poll_piece(cx)) {
            Poll::Ready(Some(Ok(frame))) => {
                this.silence.broken();
                this.trailed |= frame.is_trailers();
                Poll::Ready(Some(Ok(match frame.into_data() {
                    Ok(data) => this.hand_out(data),
                    Err(trailers) => trailers,
                })))
            }
            Poll::Ready(Some(Err(error))) => {
                this.failed = true;
                Poll::Ready(Some(Err(error)))
            }
            Poll::Ready(None) => {
                this.end(End::Complete);
                Poll::Ready(None)
            }
            Poll::Pending => {
                ready!(this.poll_silence(cx));
                this.failed = true;
                Poll::Ready(Some(Err(FlowError::Idle(this.limit))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.left() == 0
            && match &self.source {
                Source::Bytes(bytes) => bytes.is_empty(),
                Source::Stream { body, .. } => body.is_end_stream(),
                Source::Reply(reply) => reply.is_end_stream(),
                Source::Pieces(_, left) => *left == 0,
                Source::Joined(_, left) => *left == Some(0),
            }
    }

    fn size_hint(&self) -> SizeHint {
        let source = match &self.source {
            Source::Bytes(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Source::Stream { body, .. } => body.size_hint(),
            Source::Reply(reply) => reply.size_hint(),
            Source::Pieces(_, left) => SizeHint::with_exact(*left),
            Source::Joined(_, left) => left.map_or_else(SizeHint::default, SizeHint::with_exact),
        };
        with(source, self.left() as u64)
    }
}

impl Drop for Flow {
    /// hyper drops a body of known length once it has its last byte, one with trailers after those, and any body when the client
    /// leaves.
    fn drop(&mut self) {
        self.end(match () {
            () if self.failed => End::Failed,
            () if taking::is_struck() => End::Untaken,
            () if self.trailed || self.is_end_stream() => End::Complete,
            () => End::Dropped,
        });
    }
}

/// A hint for so many bytes more.
fn with(hint: SizeHint, more: u64) -> SizeHint {
    let mut sum = SizeHint::new();
    sum.set_lower(hint.lower().saturating_add(more));
    if let Some(upper) = hint.upper() {
        sum.set_upper(upper.saturating_add(more));
    }
    sum
}
