//! The one who fetches for a fill.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use tokio::time::{Instant, Sleep};

use super::state::{Cut, Go, Phase};
use super::table::Counter;
use super::{Failure, Fill, Fills, Reader};
use crate::cache::store::{CHUNK, INLINE, Object};

/// The right and the duty to fetch: whoever has it leads the fill. `Send`, so that it can move into a task of its own. Dropped before the
/// end, it fails the fill.
pub(crate) struct Filler {
    fill: Arc<Fill>,
    fills: Arc<Fills>,
    timer: Option<Pin<Box<Sleep>>>,
    kept: bool,
    too_long: bool,
}

/// A fill that is complete. Who comes finds the fill until this is dropped, so the object is stored first and no second
/// fetch slips between.
pub(crate) struct Done {
    /// What to store; `None` when it was only passed on.
    pub(crate) object: Option<Object>,
    _filler: Filler,
}

impl Filler {
    pub(super) fn new(fill: Arc<Fill>, fills: Arc<Fills>) -> Self {
        Self { fill, fills, timer: None, kept: true, too_long: false }
    }

    /// A place for the driver's own client.
    pub(crate) fn reader(&self) -> Reader {
        let at = self.fill.state().join();
        Reader::new(Arc::clone(&self.fill), at)
    }

    /// How many read it. The task of `cx` is woken when one joins or leaves.
    #[cfg(test)]
    pub(super) fn readers(&mut self, cx: &mut Context<'_>) -> usize {
        let mut state = self.fill.state();
        state.wait_as_driver(cx.waker());
        state.readers()
    }

    /// The head is there: `head` without a body, the `Content-Length`, and the longest body that is kept. `false` when such a length is
    /// too much to keep: then the caller releases the waiters with [`Filler::uncacheable`].
    pub(crate) fn begin(&mut self, head: Object, expected: Option<u64>, most: u64) -> bool {
        let most = most.min(self.fill.shared.limits.object);
        if expected.is_some_and(|expected| expected > most) {
            return false;
        }
        let mut state = self.fill.state();
        if state.phase == Phase::Waiting {
            state.phase = Phase::Filling;
            state.head = Some(head);
            state.expected = expected;
            state.most = most;
        }
        let waiting = state.waiting();
        drop(state);
        waiting.into_iter().for_each(Waker::wake);
        true
    }

    /// The answer isn't for others: all that wait fetch by themselves, and so does who comes before `until`.
    pub(crate) fn uncacheable(self, until: Instant) {
        self.mark(until);
        self.close(Phase::Uncacheable);
    }

    /// Whether the body is kept whole, so far.
    pub(crate) fn is_kept(&self) -> bool {
        self.kept
    }

    /// Whether the body has grown longer than what is kept.
    pub(crate) fn is_too_long(&self) -> bool {
        self.too_long
    }

    /// Who comes before `until` fetches by itself: the next answer won't be kept either.
    pub(crate) fn mark(&self, until: Instant) {
        // Of a fill that stands apart, which has no key, there is nothing to remember.
        if !self.fill.key.is_empty() {
            self.fills.mark(self.fill.hash, until);
        }
    }

    /// Ready when the readers can take more.
    ///
    /// # Errors
    /// [`Failure::Abandoned`] when there is nobody to go on for.
    pub(crate) async fn ready(&mut self) -> Result<(), Failure> {
        poll_fn(|cx| self.poll_ready(cx)).await
    }

    /// As [`Filler::ready`].
    pub(crate) fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        loop {
            match self.may_go(cx.waker()) {
                Go::Now => return Poll::Ready(Ok(())),
                Go::Never => {
                    self.close(Phase::Failed(Failure::Abandoned));
                    return Poll::Ready(Err(Failure::Abandoned));
                }
                Go::Wait(None) => return Poll::Pending,
                Go::Wait(Some(until)) => {
                    let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(until)));
                    timer.as_mut().reset(until);
                    if timer.as_mut().poll(cx).is_pending() {
                        return Poll::Pending;
                    }
                }
            }
        }
    }

    fn may_go(&self, waker: &Waker) -> Go {
        let shared = &self.fill.shared;
        let mut cut = Cut::default();
        let mut state = self.fill.state();
        // What is only passed on while memory is short is passed on chunk by chunk.
        let window = if !state.whole && shared.budget.is_spent() { 1 } else { shared.limits.window };
        let go = state.may_go(window, shared.limits.patience, Instant::now(), &mut cut);
        if matches!(go, Go::Wait(_)) {
            state.wait_as_driver(waker);
        }
        drop(state);
        shared.budget.give_back(cut.bytes);
        shared.count(Counter::Cut, cut.readers);
        cut.wakers.into_iter().for_each(Waker::wake);
        go
    }

    /// Adds what came in. Bytes that are kept are copied into memory of their size.
    ///
    /// # Errors
    /// When the body is longer than it was to be, which fails the fill; or it has failed or ended before.
    pub(crate) fn push(&mut self, piece: &Bytes) -> Result<(), Failure> {
        let (shared, bytes) = (&self.fill.shared, piece.len() as u64);
        let mut state = self.fill.state();
        match state.phase {
            Phase::Filling => {}
            Phase::Failed(failure) => return Err(failure),
            Phase::Waiting | Phase::Complete | Phase::Uncacheable => return Err(Failure::DriverGone),
        }
        let len = state.len() + bytes;
        if state.expected.is_some_and(|expected| len > expected) {
            drop(state);
            self.close(Phase::Failed(Failure::Long));
            return Err(Failure::Long);
        }
        let mut freed = 0;
        let too_long = len > state.most;
        let stays = state.whole && !too_long && shared.budget.has_room(bytes);
        let passed_on = state.whole && !stays;
        if passed_on {
            freed = state.pass_on();
        }
        drop(state);
        if passed_on {
            shared.count(Counter::PassedOn, 1);
            self.fills.forget(&self.fill);
            (self.kept, self.too_long) = (false, too_long);
        }
        let chunks: Vec<Bytes> = if stays {
            piece.chunks(CHUNK).map(Bytes::copy_from_slice).collect()
        } else {
            (0..piece.len()).step_by(CHUNK).map(|at| piece.slice(at..piece.len().min(at + CHUNK))).collect()
        };
        shared.budget.take(bytes);
        let mut state = self.fill.state();
        chunks.into_iter().for_each(|chunk| state.push(chunk));
        if !state.whole {
            freed += state.forget_passed();
        }
        let waiting = state.waiting();
        drop(state);
        shared.budget.give_back(freed);
        waiting.into_iter().for_each(Waker::wake);
        Ok(())
    }

    /// Adds all of a short body at once, which has the length that was expected. The filler comes back if it has to come piece by piece.
    pub(crate) fn take_whole(self, body: &Bytes) -> Result<Done, Self> {
        let (budget, bytes) = (&self.fill.shared.budget, body.len() as u64);
        let mut state = self.fill.state();
        let fits = body.len() <= INLINE && state.phase == Phase::Filling && state.len() == 0 && budget.has_room(bytes);
        let Some(head) = state.head.clone().filter(|_| fits) else {
            drop(state);
            return Err(self);
        };
        let object = head.with_body(std::slice::from_ref(body));
        budget.take(bytes);
        object.body().for_each(|piece| state.push(piece));
        drop(state);
        self.close(Phase::Complete);
        Ok(Done { object: Some(object), _filler: self })
    }

    /// The body has ended.
    ///
    /// # Errors
    /// When it is shorter than it was to be, or never began: the fill has failed.
    pub(crate) fn finish(self) -> Result<Done, Failure> {
        let state = self.fill.state();
        let wrong = match state.phase {
            Phase::Filling => state.expected.is_some_and(|expected| expected != state.len()).then_some(Failure::Short),
            Phase::Failed(failure) => Some(failure),
            Phase::Waiting | Phase::Complete | Phase::Uncacheable => Some(Failure::DriverGone),
        };
        let whole = state.head.clone().filter(|_| state.whole).map(|head| (head, state.chunks()));
        drop(state);
        if let Some(failure) = wrong {
            self.close(Phase::Failed(failure));
            return Err(failure);
        }
        let object = whole.map(|(head, chunks)| head.with_body(&chunks));
        self.close(Phase::Complete);
        Ok(Done { object, _filler: self })
    }

    /// The fetch failed, or is given up.
    pub(crate) fn fail(self, failure: Failure) {
        self.close(Phase::Failed(failure));
    }

    /// Ends the fill if it hasn't ended, and wakes all. Only a complete one can be joined still.
    fn close(&self, phase: Phase) {
        let mut state = self.fill.state();
        let open = matches!(state.phase, Phase::Waiting | Phase::Filling);
        if open {
            state.phase = phase;
        }
        let waiting = state.waiting();
        drop(state);
        if open && matches!(phase, Phase::Failed(_)) {
            self.fill.shared.count(Counter::Failed, 1);
        }
        if phase != Phase::Complete {
            self.fills.forget(&self.fill);
        }
        waiting.into_iter().for_each(Waker::wake);
    }
}

impl Drop for Filler {
    fn drop(&mut self) {
        self.close(Phase::Failed(Failure::DriverGone));
    }
}
