//! The client's socket and what is read ahead of it: heads, bodies, and the client's leaving.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker, ready},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, StatusCode, request::Parts};
use http_body::Frame;
use tokio::{io::AsyncWrite as _, time::Instant};

use super::{
    chunked::{BadChunk, Decoder, Found},
    encode::{self, Outbox},
    framing::Framing,
    head::{BadHead, Limits, Reader, skip_empty_lines},
};
use crate::{
    io::Stream,
    pace::{Pace, Rate},
    pressure::Pressure,
    timer::Timer,
};

/// Room for what comes while a head is awaited; most heads are smaller.
const HEAD_ROOM: usize = 4 << 10;

/// Bytes of further requests that are read while one is under way.
const AHEAD: usize = 64 << 10;

/// How long the head of a request may take, from its first byte.
pub(crate) const HEAD_LIMIT: Duration = Duration::from_secs(10);

/// How long a client may keep a connection without a request. Longer than the pools of usual clients, so that they close first:
/// a request that meets a closing connection is lost.
const IDLE_LIMIT: Duration = Duration::from_secs(600);

/// How long a closing connection waits for what its peer still sends. Closing earlier would reset the connection, and a reset
/// takes away an answer that the peer has not read yet.
const LINGER: Duration = Duration::from_secs(5);

/// Bytes of a body that nobody wanted, which are read so that the connection can go on.
const UNWANTED: usize = 64 << 10;

/// How long that may take.
const UNWANTED_LIMIT: Duration = Duration::from_secs(1);

/// Why a client's body ended early.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub(crate) enum BadBody {
    /// The client has left.
    #[error("the client left before the end of its body")]
    Left,
    /// Its chunks are broken.
    #[error(transparent)]
    Chunk(#[from] BadChunk),
}

/// Why there was no head.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum NoHead {
    /// It is none.
    Bad(BadHead),
    /// It did not come whole in time.
    Late,
    /// The client left in the middle of it.
    Left,
}

/// What is left of the body of the request under way.
#[derive(Debug)]
enum Rest {
    Length(u64),
    Chunked(Decoder),
    Ended,
    Broken(BadBody),
}

/// One client's socket.
pub(crate) struct Socket {
    pub(super) stream: Stream,
    inbox: BytesMut,
    pub(super) outbox: Outbox,
    heads: Reader,
    rest: Rest,
    /// Number of the request that the rest belongs to.
    request: u64,
    /// The client waits for a `100 (Continue)` before it sends the body.
    owes_continue: bool,
    /// Somebody may still read the body of the request.
    wanted: bool,
    /// Interim answers are in the outbox.
    interims: bool,
    /// Who waits for the end of the body to watch the client.
    watcher: Option<Waker>,
    /// The client's FIN has come.
    closed: bool,
    timer: Timer,
    pressure: Arc<Pressure>,
}

/// How long a client may take over what it is sent.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    /// Until it takes anything.
    pub(super) stall: Duration,
    /// How fast it takes all.
    pub(super) rate: Rate,
}

/// Since when a client takes nothing, and how fast it has taken what it has.
#[derive(Debug, Default)]
pub(super) struct Taking {
    stalled: Option<Instant>,
    pace: Pace,
}

impl Socket {
    /// A socket, and the bytes that protocol detection has read.
    pub(super) fn new(stream: Stream, ahead: BytesMut, limits: Limits, pressure: Arc<Pressure>) -> Self {
        Self {
            stream,
            inbox: ahead,
            outbox: Outbox::default(),
            heads: Reader::new(limits),
            rest: Rest::Ended,
            request: 0,
            owes_continue: false,
            wanted: false,
            interims: false,
            watcher: None,
            closed: false,
            timer: Timer::default(),
            pressure,
        }
    }

    /// The bare socket, and what was read ahead.
    pub(super) fn into_parts(self) -> (Stream, Bytes) {
        (self.stream, self.inbox.freeze())
    }

    /// Reads more; false at the end of the stream. There is no buffer while nothing comes.
    fn poll_read(&mut self, cx: &mut Context<'_>, room: usize) -> Poll<io::Result<bool>> {
        if self.closed {
            return Poll::Ready(Ok(false));
        }
        let read = ready!(self.stream.poll_fill(cx, &mut self.inbox, room))?;
        self.closed = read == 0;
        Poll::Ready(Ok(!self.closed))
    }

    /// Waits for the head of the next request, since `since`. Nothing if the client closed the connection, or left it idle for too long.
    pub(super) fn poll_head(&mut self, cx: &mut Context<'_>, since: &mut Instant) -> Poll<Result<Option<Box<Parts>>, NoHead>> {
        loop {
            if skip_empty_lines(&mut self.inbox)
                && let Some(head) = self.heads.request(&mut self.inbox).map_err(NoHead::Bad)?
            {
                return Poll::Ready(Ok(Some(head)));
            }
            let first = self.inbox.is_empty();
            match self.poll_read(cx, HEAD_ROOM) {
                // Empty lines are no beginning.
                Poll::Ready(Ok(true)) if first && skip_empty_lines(&mut self.inbox) => *since = Instant::now(),
                Poll::Ready(Ok(true)) => {}
                Poll::Ready(_) if self.inbox.is_empty() => return Poll::Ready(Ok(None)),
                Poll::Ready(_) => return Poll::Ready(Err(NoHead::Left)),
                Poll::Pending if self.inbox.is_empty() => {
                    self.inbox = BytesMut::new();
                    self.heads.release();
                    self.outbox.release();
                    return self.timer.poll(cx, *since + IDLE_LIMIT).map(|()| Ok(None));
                }
                Poll::Pending => return self.timer.poll(cx, *since + HEAD_LIMIT).map(|()| Err(NoHead::Late)),
            }
        }
    }

    /// Whether a head is being read.
    pub(super) fn is_idle(&self) -> bool {
        self.inbox.is_empty()
    }

    /// Begins a request with that framing, and returns its number.
    pub(super) fn begin(&mut self, framing: Framing, expects_continue: bool) -> u64 {
        self.rest = match framing {
            Framing::Length(0) | Framing::Close => Rest::Ended,
            Framing::Length(length) => Rest::Length(length),
            Framing::Chunked => Rest::Chunked(Decoder::default()),
        };
        self.owes_continue = expects_continue && !self.has_body_ended();
        self.wanted = !self.has_body_ended();
        self.disown()
    }

    /// From now on nobody who has read the body before may go on; returns the number that may.
    pub(super) fn disown(&mut self) -> u64 {
        self.request += 1;
        self.request
    }

    /// Whether a request of that number is under way.
    pub(super) fn serves(&self, request: u64) -> bool {
        self.request == request
    }

    /// Whoever read the body of a request has let go of it.
    pub(super) fn forsake_body(&mut self, request: u64) {
        self.wanted &= !self.serves(request);
    }

    /// Whether so much is left of a body that nobody wants that the connection will be closed. What is there already is read.
    pub(super) fn poll_burdened(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        if self.wanted || self.has_body_ended() {
            return Poll::Ready(false);
        }
        let ended = matches!(self.poll_discard(cx, &mut Unwanted::new()), Poll::Ready(true));
        Poll::Ready(!ended && self.body_left().is_none_or(|left| left > UNWANTED as u64))
    }

    /// Whether all of the request's body was read.
    pub(super) fn has_body_ended(&self) -> bool {
        matches!(self.rest, Rest::Ended)
    }

    /// Whether all was read that a client sends which announced its last request. One that speaks TLS has a farewell yet to send.
    pub(super) fn has_had_all(&self) -> bool {
        self.has_body_ended() && self.is_idle() && matches!(self.stream, Stream::Plain(_))
    }

    /// What is known about the length of what is left of the body.
    pub(super) fn body_left(&self) -> Option<u64> {
        match &self.rest {
            Rest::Length(left) => Some(*left),
            Rest::Ended => Some(0),
            Rest::Chunked(_) | Rest::Broken(_) => None,
        }
    }

    /// The next piece of the request's body.
    pub(super) fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BadBody>>> {
        if std::mem::take(&mut self.owes_continue) {
            self.outbox.head().extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\n");
            self.interims = true;
        }
        self.flush_interims(cx);
        loop {
            match self.take_body() {
                Ok(Some(frame)) => {
                    if self.has_body_ended()
                        && let Some(watcher) = self.watcher.take()
                    {
                        watcher.wake();
                    }
                    return Poll::Ready(frame.map(Ok));
                }
                Ok(None) => {}
                Err(broken) => {
                    self.rest = Rest::Broken(broken);
                    return Poll::Ready(Some(Err(broken)));
                }
            }
            let most = self.pressure.room();
            let room = self.body_left().map_or(most / 4, |left| usize::try_from(left).unwrap_or(usize::MAX));
            if !matches!(ready!(self.poll_read(cx, room.min(most).max(HEAD_ROOM))), Ok(true)) {
                self.rest = Rest::Broken(BadBody::Left);
            }
        }
    }

    /// A piece of the body, or its end, from what was read; nothing if more has to be read first.
    fn take_body(&mut self) -> Result<Option<Option<Frame<Bytes>>>, BadBody> {
        match &mut self.rest {
            Rest::Ended => Ok(Some(None)),
            Rest::Broken(broken) => Err(*broken),
            Rest::Length(_) if self.inbox.is_empty() => Ok(None),
            Rest::Length(left) => {
                let len = self.inbox.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                *left -= len as u64;
                if *left == 0 {
                    self.rest = Rest::Ended;
                }
                Ok(Some(Some(Frame::data(self.inbox.split_to(len).freeze()))))
            }
            Rest::Chunked(decoder) => match decoder.decode(&mut self.inbox)? {
                Found::Data(data) => Ok(Some(Some(Frame::data(data)))),
                Found::More => Ok(None),
                Found::End(trailers) => {
                    self.rest = Rest::Ended;
                    Ok(Some(trailers.map(Frame::trailers)))
                }
            },
        }
    }

    /// Ready when the client leaves while its request, which is whole, is under way. What it sends ahead is kept, within bounds.
    pub(super) fn poll_left(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.has_body_ended() {
            self.watcher = Some(cx.waker().clone()); // the body may be read by another task
        }
        while self.has_body_ended() && self.inbox.len() < AHEAD {
            match ready!(self.poll_read(cx, HEAD_ROOM)) {
                Ok(true) => {}
                Ok(false) | Err(_) => return Poll::Ready(()),
            }
        }
        Poll::Pending
    }

    /// Takes an interim answer to the request of that number, unless the client takes nothing at the moment.
    pub(super) fn interim(&mut self, request: u64, status: StatusCode, headers: &HeaderMap) -> bool {
        if !self.serves(request) || !self.outbox.has_room() {
            return false;
        }
        encode::response(self.outbox.head(), status, headers);
        self.outbox.head().extend_from_slice(b"\r\n");
        self.interims = true;
        true
    }

    /// Writes interim answers as far as the client takes them. Not what belongs to the final one: whoever writes that has to be woken for it. A
    /// failure shows when the client is read from.
    pub(super) fn flush_interims(&mut self, cx: &mut Context<'_>) {
        if self.interims && self.outbox.poll_flush(cx, &mut self.stream, &mut 0).is_ready() {
            self.interims = false;
        }
    }

    /// The answer begins: whoever still waits for a `100 (Continue)` will not get one. True if the client was left waiting.
    pub(super) fn refuse_continue(&mut self) -> bool {
        self.interims = false;
        std::mem::take(&mut self.owes_continue)
    }

    /// Writes what waits. An error if the client takes nothing for too long, or all of it too slowly.
    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>, taking: &mut Taking, patience: Patience) -> Poll<io::Result<()>> {
        let mut wrote = 0;
        let poll = self.outbox.poll_flush(cx, &mut self.stream, &mut wrote);
        if poll.is_ready() {
            if taking.stalled.take().is_some() {
                taking.pace.moved(wrote, Instant::now());
            }
            return poll;
        }
        let since = match taking.stalled {
            Some(since) if wrote == 0 => since,
            _ => {
                let now = Instant::now();
                taking.pace.moved(wrote, now);
                if !taking.pace.wait(patience.rate, now) {
                    return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client reads too slowly")));
                }
                *taking.stalled.insert(now)
            }
        };
        ready!(self.timer.poll(cx, since + patience.stall));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client does not read")))
    }

    /// Reads the rest of a body that nobody wanted, if it is short and comes before `deadline`; false if it does not.
    pub(super) fn poll_discard(&mut self, cx: &mut Context<'_>, unwanted: &mut Unwanted) -> Poll<bool> {
        loop {
            match self.poll_body(cx) {
                Poll::Ready(None) => return Poll::Ready(true),
                Poll::Ready(Some(Err(_))) => return Poll::Ready(false),
                Poll::Ready(Some(Ok(frame))) => match unwanted.left.checked_sub(frame.data_ref().map_or(0, Bytes::len)) {
                    Some(left) => unwanted.left = left,
                    None => return Poll::Ready(false),
                },
                Poll::Pending => return self.timer.poll(cx, unwanted.deadline).map(|()| false),
            }
        }
    }

    /// Closes the write side, then reads on until the client closes too, or `deadline` has passed.
    pub(super) fn poll_linger(&mut self, cx: &mut Context<'_>, deadline: Instant) -> Poll<()> {
        let _ = ready!(Pin::new(&mut self.stream).poll_shutdown(cx));
        loop {
            self.inbox.clear();
            match self.poll_read(cx, HEAD_ROOM) {
                Poll::Ready(Ok(true)) if Instant::now() < deadline => {}
                Poll::Ready(_) => return Poll::Ready(()),
                Poll::Pending => return self.timer.poll(cx, deadline),
            }
        }
    }
}

/// How much of a body that nobody wanted is read so that the connection can go on.
pub(super) struct Unwanted {
    left: usize,
    deadline: Instant,
}

impl Unwanted {
    pub(super) fn new() -> Self {
        Self { left: UNWANTED, deadline: Instant::now() + UNWANTED_LIMIT }
    }
}

/// Until when a closing connection lingers.
pub(super) fn linger_deadline() -> Instant {
    Instant::now() + LINGER
}
