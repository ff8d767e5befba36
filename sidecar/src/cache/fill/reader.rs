//! One who reads a fill.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::state::{Next, Phase};
use super::{Failure, Fill};
use crate::cache::store::Object;

/// A place in a fill: it reads from the first byte, at its own speed. Dropped, it holds up nobody.
pub(crate) struct Reader {
    fill: Arc<Fill>,
    at: usize,
}

/// Why a reader has no answer from the fill. Nothing was sent yet, so it fetches by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NoHead {
    /// The answer isn't for others.
    #[error("the answer may not be shared")]
    Uncacheable,
    /// No head within the time that this reader waits.
    #[error("the fetch has no answer yet")]
    TimedOut,
    /// The fetch failed before or while its body came.
    #[error("the fetch failed: {0}")]
    Failed(Failure),
}

impl Reader {
    pub(super) fn new(fill: Arc<Fill>, at: usize) -> Self {
        Self { fill, at }
    }

    /// The head, with key and notes and no body, for `wait` at the most.
    ///
    /// # Errors
    /// When there is none to have: the reader is of no more use then.
    pub(crate) async fn head(&mut self, wait: Duration) -> Result<Object, NoHead> {
        tokio::time::timeout(wait, poll_fn(|cx| self.poll_head(cx))).await.unwrap_or(Err(NoHead::TimedOut))
    }

    /// As [`Reader::head`], without an end.
    pub(crate) fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<Result<Object, NoHead>> {
        let mut state = self.fill.state();
        match (state.phase, &state.head) {
            (Phase::Filling | Phase::Complete, Some(head)) => Poll::Ready(Ok(head.clone())),
            (Phase::Uncacheable, _) => Poll::Ready(Err(NoHead::Uncacheable)),
            (Phase::Failed(failure), _) => Poll::Ready(Err(NoHead::Failed(failure))),
            (Phase::Waiting | Phase::Filling | Phase::Complete, _) => {
                state.wait(self.at, cx.waker());
                Poll::Pending
            }
        }
    }

    /// The next chunk, at most 32 KiB; `None` is the end of a body that came whole.
    pub(crate) fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Failure>>> {
        let mut state = self.fill.state();
        let (next, freed) = state.next(self.at, cx.waker(), Instant::now());
        // The driver may wait for this reader to move, or is to count the time for which it has nothing to read. Not each time that
        // it asks: driver and reader may be one task, which would wake itself for ever.
        let driver = match next {
            Next::Chunk(_) => state.driver(),
            Next::Wait { new } if new && !state.whole => state.driver(),
            Next::Wait { .. } | Next::End | Next::Fail(_) => None,
        };
        drop(state);
        self.fill.shared.budget.give_back(freed);
        driver.into_iter().for_each(std::task::Waker::wake);
        match next {
            Next::Chunk(bytes) => Poll::Ready(Some(Ok(bytes))),
            Next::End => Poll::Ready(None),
            Next::Fail(failure) => Poll::Ready(Some(Err(failure))),
            Next::Wait { .. } => Poll::Pending,
        }
    }

    /// The next chunk; see [`Reader::poll_chunk`].
    #[cfg(test)]
    pub(super) async fn chunk(&mut self) -> Option<Result<Bytes, Failure>> {
        poll_fn(|cx| self.poll_chunk(cx)).await
    }

    /// The length that the answer announced.
    pub(crate) fn expected(&self) -> Option<u64> {
        self.fill.state().expected
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let mut state = self.fill.state();
        let freed = state.leave(self.at);
        let driver = state.driver();
        drop(state);
        self.fill.shared.budget.give_back(freed);
        driver.into_iter().for_each(std::task::Waker::wake);
    }
}
