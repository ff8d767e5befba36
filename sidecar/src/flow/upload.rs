//! The client's body on its way to the upstream, over all tries of its request.

use std::{
    cell::{Cell, RefCell},
    future::Future as _,
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
use http_body::{Body, Frame, SizeHint};
use tokio::time::{Instant, Sleep, sleep};

use self::kept::Kept;
use super::{ClientBody, FlowError, with};
use crate::{
    h1::head::ResponseHead,
    io::Silence,
    pace::{Pace, Rate},
    pressure::Step,
    shadow::Shadow,
    throttle::Paced,
    worker::Worker,
};

mod kept;

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
    /// What the upstream said before its answer.
    interims: RefCell<Vec<ResponseHead>>,
    /// What is left of a part that was too large to go on at once.
    rest: RefCell<Bytes>,
}

/// What holds for an upload.
pub(crate) struct Bounds {
    /// How long it may pause.
    pub(crate) idle: Duration,
    /// How fast it has to be.
    pub(crate) rate: Rate,
    /// Its size, at most.
    pub(crate) size: u64,
    /// What all requests of its rules share.
    paced: RefCell<Option<Box<Paced>>>,
    /// Knows how short memory is.
    worker: Rc<Worker>,
}

impl Bounds {
    /// As the FetchrProxy says, save for the pause.
    pub(crate) fn of(limits: &HttpLimits, idle: Duration, worker: &Rc<Worker>, paced: Option<Box<Paced>>) -> Self {
        let size = limits.max_body.map_or(u64::MAX, |Size(size)| size);
        Self { idle, rate: Rate::of(limits), size, paced: RefCell::new(paced), worker: Rc::clone(worker) }
    }

    /// Whether memory is too short for a body to begin.
    pub(crate) fn refuse(&self, body: &ClientBody) -> bool {
        self.worker.pressure.is(Step::Shed) && is_large(body)
    }

    /// Whether it has become too short for what is left of one.
    fn end(&self, body: &ClientBody) -> bool {
        self.worker.pressure.is(Step::Shed) && is_large(body) && self.worker.pressure.ends_upload()
    }
}

/// A body of which no more is left goes through however short memory is.
const SMALL: u64 = 16 << 10;

fn is_large(body: &ClientBody) -> bool {
    body.size_hint().upper().is_none_or(|left| left > SMALL)
}

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
    pub(crate) fn new(body: ClientBody, bounds: Bounds, expects: bool, shadow: Option<Rc<Shadow>>, now: Instant) -> Self {
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
            moved: Cell::new(now),
            interims: RefCell::default(),
            rest: RefCell::default(),
        });
        Self { shared, turn: 0 }
    }

    /// Lets go of a body that nobody else can read any more, so that its client hears of it in the answer.
    pub(crate) fn forsake(&self) {
        if Rc::strong_count(&self.shared) == 1 {
            self.shared.body.replace(ClientBody::Empty);
        }
    }

    /// Keeps what is taken from now on for a further try, up to `max` bytes.
    pub(crate) fn keep(&self, max: usize) {
        self.shared.kept.replace(Some(Kept::new(max)));
    }

    /// There will be no further try: what was kept is let go, unless the current one has still to have some of it.
    pub(crate) fn keep_no_more(&self) {
        if self.has_kept() {
            self.shared.kept.borrow_mut().as_mut().into_iter().for_each(Kept::keep_no_more);
        } else {
            self.shared.kept.replace(None);
        }
    }

    /// Whether a further try can have all of it.
    pub(crate) fn is_whole(&self) -> bool {
        let kept = || self.shared.kept.borrow().as_ref().is_some_and(Kept::is_whole);
        self.failure().is_none() && (!self.is_touched() || kept())
    }

    /// The upload for a further try, from its start. Must be [whole](Self::is_whole).
    pub(crate) fn again(&self) -> Self {
        let shared = &self.shared;
        let mut left = !shared.body.borrow().is_end_stream() || !shared.rest.borrow().is_empty();
        if let Some(kept) = &mut *shared.kept.borrow_mut() {
            kept.rewind();
            left |= !kept.has_ended();
        }
        shared.touched.set(false);
        shared.done.set(!left);
        // The pause between two tries is not the client's.
        let now = Instant::now();
        shared.silence.borrow_mut().broken();
        shared.pace.borrow_mut().moved(0, now);
        shared.moved.set(now);
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

    /// The upstream has said something before its answer. It waits here for the client, until the try is polled to its end.
    pub(crate) fn interim(&self, head: ResponseHead) {
        self.shared.interims.borrow_mut().push(head);
    }

    /// What the upstream has said since this was asked last.
    pub(crate) fn interims(&self) -> Vec<ResponseHead> {
        std::mem::take(&mut *self.shared.interims.borrow_mut())
    }

    /// Whether a piece that was kept is left to be given.
    fn has_kept(&self) -> bool {
        self.shared.kept.borrow().as_ref().is_some_and(|kept| !kept.has_ended())
    }

    fn fail(&self, failure: Failure) -> FlowError {
        self.shared.failure.set(Some(failure));
        match failure {
            Failure::Idle => FlowError::Idle(self.shared.bounds.idle),
            _ => FlowError::Refused,
        }
    }
}

impl Shared {
    /// As much of a frame as may go on at once; it is paid for by the pause before the next one.
    fn part(&self, frame: Frame<Bytes>) -> Frame<Bytes> {
        let Some(paced) = &mut *self.bounds.paced.borrow_mut() else { return frame };
        let (part, rest) = paced.part(frame);
        self.rest.replace(rest);
        part
    }

    /// A frame that was kept goes on, whole.
    fn paid(&self, frame: &Frame<Bytes>) {
        if let (Some(paced), Some(data)) = (&mut *self.bounds.paced.borrow_mut(), frame.data_ref()) {
            paced.passed(data.len());
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
        if let Some(paced) = &mut *shared.bounds.paced.borrow_mut() {
            let polled = paced.poll(cx);
            if let Some(until) = paced.pauses_until().filter(|_| !shared.done.get()) {
                shared.moved.set(until); // the pause is ours: nobody is idle
            }
            ready!(polled);
        }
        let kept = shared.kept.borrow_mut().as_mut().and_then(Kept::next);
        if let Some(frame) = kept {
            shared.paid(&frame);
            shared.touched.set(true);
            shared.moved.set(Instant::now());
            shared.done.set(frame.is_trailers() || self.is_end_stream());
            return Poll::Ready(Some(Ok(frame)));
        }
        let mut body = shared.body.borrow_mut();
        if shared.bounds.end(&body) {
            return Poll::Ready(Some(Err(self.fail(Failure::Shed))));
        }
        let rest = std::mem::take(&mut *shared.rest.borrow_mut());
        let polled = if rest.is_empty() { body.poll_frame(cx) } else { Poll::Ready(Some(Ok(Frame::data(rest)))) };
        let Poll::Ready(polled) = polled else {
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
                let frame = shared.part(frame);
                let len = frame.data_ref().map_or(0, |data| data.len() as u64);
                shared.pace.borrow_mut().moved(len, now);
                shared.sent.set(shared.sent.get() + len);
                if shared.sent.get() > shared.bounds.size {
                    return Poll::Ready(Some(Err(self.fail(Failure::TooLarge(shared.bounds.size)))));
                }
                shared.done.set(frame.is_trailers() || body.is_end_stream() && shared.rest.borrow().is_empty());
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
        self.shared.body.borrow().is_end_stream() && self.shared.rest.borrow().is_empty() && !self.has_kept()
    }

    fn size_hint(&self) -> SizeHint {
        let hint = with(self.shared.body.borrow().size_hint(), self.shared.rest.borrow().len() as u64);
        match &*self.shared.kept.borrow() {
            // Trailers need a framing without a length.
            Some(kept) if kept.has_trailers() => SizeHint::default(),
            Some(kept) => with(hint, kept.left()),
            None => hint,
        }
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
