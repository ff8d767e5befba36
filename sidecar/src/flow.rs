//! The one body type. A [`Flow`] carries a response to the client; an [`Upload`] shares the client's body between the tries of
//! a request.

use std::{
    cell::{Cell, RefCell},
    future::{Future, poll_fn},
    pin::Pin,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use crds::{proxy::HttpLimits, scalar::Size};
use futures::task::AtomicWaker;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::{Instant, Sleep, sleep};

use crate::{
    connection::taking,
    exchange::Guards,
    h1::{BadBody, server::RequestBody},
    io::Silence,
    pace::{Pace, Rate},
    pressure::{Pressure, Step},
    shadow::Shadow,
    upstream::{self, UpstreamError},
    worker::Worker,
};

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
}

/// A client's body, by the protocol that it comes over.
pub(crate) enum ClientBody {
    /// There is none.
    Empty,
    /// Over HTTP/1.
    Http1(RequestBody),
    /// Over an HTTP/2 stream.
    Http2(Incoming),
}

impl ClientBody {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, ClientError>>> {
        match self {
            Self::Empty => Poll::Ready(None),
            Self::Http1(body) => body.poll_frame(cx).map_err(ClientError::Http1),
            Self::Http2(body) => Pin::new(body).poll_frame(cx).map_err(ClientError::Http2),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Http1(body) => body.is_end_stream(),
            Self::Http2(body) => body.is_end_stream(),
        }
    }

    /// Whether more than a little is left, or may be.
    fn is_large(&self) -> bool {
        self.size_hint().upper().is_none_or(|left| left > SMALL)
    }

    /// What is known of the length of what is left.
    pub(crate) fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Http1(body) => body.size_hint(),
            Self::Http2(body) => body.size_hint(),
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
    guards: Option<Box<Guards>>,
}

enum Source {
    Bytes(Bytes),
    /// The stream counts as under way for as long as its body lives.
    Stream {
        body: Incoming,
        _stream: upstream::h2::Stream,
    },
    Reply(upstream::h1::Reply),
}

impl Flow {
    /// A body that is all here.
    pub(crate) fn bytes(bytes: impl Into<Bytes>) -> Self {
        Self::new(Source::Bytes(bytes.into()), Duration::MAX)
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
        Self { source, rest: Bytes::new(), silence: Silence::new(limit), limit, passed: 0, trailed: false, guards: None }
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

    /// Hands over what ends with the body.
    pub(crate) fn guard(&mut self, guards: Box<Guards>) {
        self.guards = Some(guards);
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

    fn hand_out(&mut self, mut data: Bytes) -> Frame<Bytes> {
        let max = taking::max_part();
        if data.len() > max {
            self.rest = data.split_off(max);
        }
        self.passed += data.len() as u64;
        taking::handed_out();
        Frame::data(data)
    }

    fn poll_source(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, FlowError>>> {
        match &mut self.source {
            Source::Bytes(bytes) if bytes.is_empty() => Poll::Ready(None),
            Source::Bytes(bytes) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes))))),
            Source::Stream { body, .. } => {
                Pin::new(body).poll_frame(cx).map_err(|error| FlowError::Upstream(UpstreamError::Http2(error)))
            }
            Source::Reply(reply) => reply.poll_frame(cx).map_err(FlowError::Upstream),
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
        match this.poll_source(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                this.silence.broken();
                this.trailed |= frame.is_trailers();
                Poll::Ready(Some(Ok(match frame.into_data() {
                    Ok(data) => this.hand_out(data),
                    Err(trailers) => trailers,
                })))
            }
            Poll::Ready(Some(Err(error))) => {
                this.end(End::Failed);
                Poll::Ready(Some(Err(error)))
            }
            Poll::Ready(None) => {
                this.end(End::Complete);
                Poll::Ready(None)
            }
            Poll::Pending => {
                ready!(this.silence.poll(cx));
                this.end(End::Failed);
                Poll::Ready(Some(Err(FlowError::Idle(this.limit))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty()
            && match &self.source {
                Source::Bytes(bytes) => bytes.is_empty(),
                Source::Stream { body, .. } => body.is_end_stream(),
                Source::Reply(reply) => reply.is_end_stream(),
            }
    }

    fn size_hint(&self) -> SizeHint {
        let source = match &self.source {
            Source::Bytes(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Source::Stream { body, .. } => body.size_hint(),
            Source::Reply(reply) => reply.size_hint(),
        };
        with(source, self.rest.len() as u64)
    }
}

impl Drop for Flow {
    /// hyper drops a body of known length once it has its last byte, one with trailers after those, and any body when the client
    /// leaves.
    fn drop(&mut self) {
        self.end(match () {
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

/// How long an upload waits for a `100 (Continue)` before it goes on without one (RFC 9110, section 10.1.1).
const CONTINUE_WAIT: Duration = Duration::from_secs(1);

/// The client's body on its way to the upstream. Clones share it: a try that gave up without touching it leaves it whole for the
/// next one, and the connection's owner sees from outside whether it is sent.
#[derive(Clone)]
pub(crate) struct Upload {
    shared: Rc<Shared>,
    /// Which try this is for: what is left of an earlier one gets nothing any more.
    turn: u32,
}

struct Shared {
    body: RefCell<ClientBody>,
    /// What was taken, for a further try.
    kept: RefCell<Option<Kept>>,
    turn: Cell<u32>,
    silence: RefCell<Silence>,
    bounds: Bounds,
    pace: RefCell<Pace>,
    gate: Option<Gate>,
    touched: Cell<bool>,
    done: Cell<bool>,
    failure: Cell<Option<Failure>>,
    sent: Cell<u64>,
    moved: Cell<Instant>,
}

/// What holds for an upload.
pub(crate) struct Bounds {
    /// How long it may pause.
    pub(crate) idle: Duration,
    /// How fast it has to be.
    pub(crate) rate: Rate,
    /// Its size, at most.
    pub(crate) size: u64,
    /// Knows how short memory is.
    worker: Rc<Worker>,
}

impl Bounds {
    /// As the FetchrProxy says, save for the pause.
    pub(crate) fn of(limits: &HttpLimits, idle: Duration, worker: &Rc<Worker>) -> Self {
        let size = limits.max_body.map_or(u64::MAX, |Size(size)| size);
        Self { idle, rate: Rate::of(limits), size, worker: Rc::clone(worker) }
    }

    /// Whether memory is too short for a body to begin.
    pub(crate) fn refuse(&self, body: &ClientBody) -> bool {
        self.worker.pressure.is(Step::Shed) && body.is_large()
    }

    /// Whether it has become too short for what is left of one.
    fn end(&self, body: &ClientBody) -> bool {
        self.worker.pressure.is(Step::Shed) && body.is_large() && self.worker.pressure.ends_upload()
    }
}

/// A body of which no more is left goes through however short memory is.
const SMALL: u64 = 16 << 10;

/// Why an upload ended early.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Failure {
    /// It is larger than it may be.
    TooLarge(u64),
    /// It came too slowly.
    Slow,
    /// There is no memory for it.
    Shed,
    /// The client left, or framed its body wrongly.
    Broken,
    /// The client paused for too long.
    Idle,
}

impl Upload {
    /// An upload within these bounds, watched by another limit. With `expects`, it waits for the upstream to ask for it.
    pub(crate) fn new(body: ClientBody, bounds: Bounds, expects: bool, shadow: Option<Rc<Shadow>>) -> Self {
        let done = body.is_end_stream();
        let shared = Rc::new(Shared {
            body: RefCell::new(body),
            kept: RefCell::default(),
            turn: Cell::new(0),
            silence: RefCell::new(Silence::watched(bounds.idle, shadow)),
            bounds,
            pace: RefCell::default(),
            gate: (expects && !done).then(Gate::new),
            touched: Cell::new(false),
            done: Cell::new(done),
            failure: Cell::new(None),
            sent: Cell::new(0),
            moved: Cell::new(Instant::now()),
        });
        Self { shared, turn: 0 }
    }

    /// Keeps what is taken from now on for a further try, up to `max` bytes.
    pub(crate) fn keep(&self, max: usize) {
        self.shared.kept.replace(Some(Kept { max, ended: true, ..Kept::default() }));
    }

    /// There will be no further try: what was kept is let go, unless the current one has still to have some of it.
    pub(crate) fn keep_no_more(&self) {
        if !self.has_kept() {
            self.shared.kept.replace(None);
        }
    }

    /// Whether a further try can have all of it.
    pub(crate) fn is_whole(&self) -> bool {
        let kept = || self.shared.kept.borrow().as_ref().is_some_and(|kept| !kept.lost);
        self.failure().is_none() && (!self.is_touched() || kept())
    }

    /// The upload for a further try, from its start. Must be [whole](Self::is_whole).
    pub(crate) fn again(&self) -> Self {
        let shared = &self.shared;
        let mut left = !shared.body.borrow().is_end_stream();
        if let Some(kept) = &mut *shared.kept.borrow_mut() {
            kept.rewind();
            left |= !kept.ended;
        }
        shared.touched.set(false);
        shared.done.set(!left);
        shared.moved.set(Instant::now());
        shared.turn.set(shared.turn.get() + 1);
        Self { shared: Rc::clone(shared), turn: shared.turn.get() }
    }

    /// What opens the gate of an upload that waits to be asked for.
    pub(crate) fn permission(&self) -> Option<Permission> {
        self.shared.gate.as_ref().map(|gate| Permission(Arc::clone(&gate.asked)))
    }

    /// Whether the upstream's connection has taken all of it.
    pub(crate) fn is_done(&self) -> bool {
        self.shared.done.get()
    }

    /// The connection has taken as much as was announced; the end may follow by itself.
    pub(crate) fn taken(&self) {
        self.shared.done.set(true);
    }

    /// Whether it still waits to be asked for.
    pub(crate) fn is_held(&self) -> bool {
        self.shared.gate.as_ref().is_some_and(|gate| !gate.asked.open.load(Ordering::Acquire))
    }

    /// Whether a part of it was taken, so that another try can't have it whole.
    pub(crate) fn is_touched(&self) -> bool {
        self.shared.touched.get()
    }

    pub(crate) fn failure(&self) -> Option<Failure> {
        self.shared.failure.get()
    }

    /// Bytes taken so far.
    pub(crate) fn sent(&self) -> u64 {
        self.shared.sent.get()
    }

    /// When it last moved.
    pub(crate) fn moved(&self) -> Instant {
        self.shared.moved.get()
    }

    /// A new try begins: its time counts from now.
    pub(crate) fn restart(&self) {
        self.shared.moved.set(Instant::now());
    }

    /// Whether a piece that was kept is left to be given.
    fn has_kept(&self) -> bool {
        self.shared.kept.borrow().as_ref().is_some_and(|kept| !kept.ended)
    }

    fn fail(&self, failure: Failure) -> FlowError {
        self.shared.failure.set(Some(failure));
        match failure {
            Failure::Idle => FlowError::Idle(self.shared.bounds.idle),
            _ => FlowError::Refused,
        }
    }
}

impl Body for Upload {
    type Data = Bytes;
    type Error = FlowError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, FlowError>>> {
        let shared = &self.shared;
        if self.turn != shared.turn.get() {
            return Poll::Ready(Some(Err(FlowError::Elsewhere)));
        }
        if let Some(gate) = &shared.gate {
            ready!(gate.poll(cx));
        }
        let kept = shared.kept.borrow_mut().as_mut().and_then(Kept::next);
        if let Some(frame) = kept {
            shared.touched.set(true);
            shared.moved.set(Instant::now());
            shared.done.set(frame.is_trailers() || !self.has_kept() && shared.body.borrow().is_end_stream());
            return Poll::Ready(Some(Ok(frame)));
        }
        let mut body = shared.body.borrow_mut();
        if shared.bounds.end(&body) {
            return Poll::Ready(Some(Err(self.fail(Failure::Shed))));
        }
        let Poll::Ready(polled) = body.poll_frame(cx) else {
            let pace = &mut *shared.pace.borrow_mut();
            if !pace.is_waiting() && !pace.wait(shared.bounds.rate, Instant::now()) {
                return Poll::Ready(Some(Err(self.fail(Failure::Slow))));
            }
            ready!(shared.silence.borrow_mut().poll(cx));
            return Poll::Ready(Some(Err(self.fail(Failure::Idle))));
        };
        let now = Instant::now();
        shared.touched.set(true);
        shared.silence.borrow_mut().broken();
        shared.moved.set(now);
        match polled {
            Some(Ok(frame)) => {
                let len = frame.data_ref().map_or(0, |data| data.len() as u64);
                shared.pace.borrow_mut().moved(len, now);
                shared.sent.set(shared.sent.get() + len);
                if shared.sent.get() > shared.bounds.size {
                    return Poll::Ready(Some(Err(self.fail(Failure::TooLarge(shared.bounds.size)))));
                }
                shared.done.set(frame.is_trailers() || body.is_end_stream());
                if let Some(kept) = &mut *shared.kept.borrow_mut() {
                    kept.add(&frame, &shared.bounds.worker.pressure);
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Some(Err(error)) => {
                self.fail(Failure::Broken);
                Poll::Ready(Some(Err(FlowError::Client(error))))
            }
            None => {
                shared.done.set(true);
                Poll::Ready(None)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.shared.body.borrow().is_end_stream() && !self.has_kept()
    }

    fn size_hint(&self) -> SizeHint {
        let hint = self.shared.body.borrow().size_hint();
        self.shared.kept.borrow().as_ref().map_or(hint, |kept| with(hint, kept.left()))
    }
}

/// What an upload has given away, to give it once more. It is a copy: a piece as it was read holds the whole buffer that it was read
/// into, which may be a thousand times as large.
#[derive(Default)]
struct Kept {
    data: Vec<u8>,
    trailers: Option<HeaderMap>,
    /// Bytes that the current try has had.
    given: usize,
    /// The current try has had all, the trailers too.
    ended: bool,
    max: usize,
    /// There was too much of it.
    lost: bool,
}

/// Bytes of a kept body that are given at a time.
const GIVEN: usize = 64 << 10;

impl Kept {
    /// Keeps a frame that was taken for the first time.
    fn add(&mut self, frame: &Frame<Bytes>, pressure: &Pressure) {
        if self.lost {
            return;
        }
        if let Some(data) = frame.data_ref() {
            let shed = pressure.is(Step::Shed);
            if shed || self.data.len() + data.len() > self.max {
                *self = Self { lost: true, ended: true, ..Self::default() };
                pressure.reclaimed("kept_bodies", usize::from(shed));
                return;
            }
            self.data.extend_from_slice(data);
        }
        self.trailers = frame.trailers_ref().cloned();
        (self.given, self.ended) = (self.data.len(), true);
    }

    /// Begins anew, for a further try.
    fn rewind(&mut self) {
        (self.given, self.ended) = (0, self.data.is_empty() && self.trailers.is_none());
    }

    /// The next piece for a further try.
    fn next(&mut self) -> Option<Frame<Bytes>> {
        if self.ended {
            return None;
        }
        let rest = &self.data[self.given..];
        let piece = &rest[..rest.len().min(GIVEN)];
        self.given += piece.len();
        let all = self.given == self.data.len();
        if piece.is_empty() {
            self.ended = true;
            return self.trailers.clone().map(Frame::trailers);
        }
        let frame = Frame::data(Bytes::copy_from_slice(piece));
        self.ended = all && self.trailers.is_none();
        Some(frame)
    }

    /// Bytes that a further try has not had.
    fn left(&self) -> u64 {
        (self.data.len() - self.given) as u64
    }
}

/// Holds an upload back until the upstream asks for it, or a moment has passed. A final answer ends the exchange without the
/// upload ever being read, and so without a `100 (Continue)` to the client.
struct Gate {
    asked: Arc<Asked>,
    wait: RefCell<Option<Pin<Box<Sleep>>>>,
}

#[derive(Default)]
struct Asked {
    open: AtomicBool,
    waker: AtomicWaker,
}

impl Gate {
    fn new() -> Self {
        Self { asked: Arc::default(), wait: RefCell::new(None) }
    }

    fn poll(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.asked.waker.register(cx.waker());
        if self.asked.open.load(Ordering::Acquire) {
            return Poll::Ready(());
        }
        let mut wait = self.wait.borrow_mut();
        ready!(wait.get_or_insert_with(|| Box::pin(sleep(CONTINUE_WAIT))).as_mut().poll(cx));
        self.asked.open.store(true, Ordering::Release);
        Poll::Ready(())
    }
}

/// Lets an upload go.
#[derive(Clone)]
pub(crate) struct Permission(Arc<Asked>);

impl Permission {
    pub(crate) fn give(&self) {
        self.0.open.store(true, Ordering::Release);
        self.0.waker.wake();
    }
}
