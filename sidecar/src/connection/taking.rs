//! Streams whose client takes nothing. HTTP/2 lets a client keep its window closed, and hyper asks a body for its next part only
//! when the last one is sent: the limits of the body itself don't count while nobody asks, and it would hold its upstream's
//! connection for ever. On HTTP/1 the socket has that limit, since all that is under way there is one answer.

use std::{
    cell::Cell,
    future::{Future, poll_fn},
    pin::pin,
    task::{Poll, ready},
    time::Duration,
};

use crate::io::Silence;

/// Bytes of a part, at most. A client that takes this much within the limit is slow, but not gone.
pub(super) const MAX_PART: usize = 16 << 10;

tokio::task_local! {
    static TAKING: Taking;
}

/// How far the answer of a stream has come.
#[derive(Default)]
struct Taking {
    /// Parts that were handed out.
    parts: Cell<u64>,
    /// The last one was not asked beyond.
    untaken: Cell<bool>,
    struck: Cell<bool>,
}

/// A body hands out a part.
pub(crate) fn handed_out() {
    // Outside of a stream there is nothing to tell.
    let _ = TAKING.try_with(|taking| {
        taking.parts.set(taking.parts.get() + 1);
        taking.untaken.set(true);
    });
}

/// A body is asked for its next part, so the client has room for the last one.
pub(crate) fn asked() {
    let _ = TAKING.try_with(|taking| taking.untaken.set(false));
}

/// Whether the stream is cut off since its client took nothing for too long.
pub(crate) fn is_struck() -> bool {
    TAKING.try_with(|taking| taking.struck.get()).unwrap_or(false)
}

/// Bytes that a body may hand out at once; no limit outside of streams.
pub(crate) fn max_part() -> usize {
    TAKING.try_with(|_| MAX_PART).unwrap_or(usize::MAX)
}

/// Runs the streams of a connection, and drops those whose client takes nothing for the limit. hyper then resets the stream.
#[derive(Clone, Copy, Debug)]
pub(super) struct Streams {
    pub(super) limit: Duration,
}

impl<F: Future<Output = ()> + 'static> hyper::rt::Executor<F> for Streams {
    fn execute(&self, stream: F) {
        tokio::task::spawn_local(TAKING.scope(Taking::default(), while_taken(stream, self.limit)));
    }
}

async fn while_taken(stream: impl Future<Output = ()>, limit: Duration) {
    let mut stream = pin!(stream);
    let (mut silence, mut parts) = (Silence::new(limit), 0);
    poll_fn(|cx| {
        if stream.as_mut().poll(cx).is_ready() {
            return Poll::Ready(());
        }
        let (untaken, seen) = TAKING.with(|taking| (taking.untaken.get(), taking.parts.get()));
        if !untaken || seen != parts {
            parts = seen;
            silence.broken();
        }
        if !untaken {
            return Poll::Pending;
        }
        ready!(silence.poll(cx));
        TAKING.with(|taking| taking.struck.set(true));
        Poll::Ready(())
    })
    .await
}

#[cfg(test)]
mod tests {
    use tokio::time::{Instant, sleep};

    use super::*;

    /// Runs a stream, and returns after how many seconds it ended and whether it was cut off.
    async fn run(stream: impl Future<Output = ()>) -> (u64, bool) {
        let start = Instant::now();
        let limited = async {
            while_taken(stream, Duration::from_secs(60)).await;
            is_struck()
        };
        let struck = TAKING.scope(Taking::default(), limited).await;
        (start.elapsed().as_secs(), struck)
    }

    #[tokio::test(start_paused = true)]
    async fn stream_whose_part_is_not_taken_is_cut_off() {
        let untaken = async {
            handed_out();
            sleep(Duration::from_secs(3600)).await;
        };
        assert_eq!(run(untaken).await, (60, true));
    }

    #[tokio::test(start_paused = true)]
    async fn slow_client_and_slow_upstream_are_not_cut_off() {
        let slow = async {
            for _ in 0..5 {
                handed_out();
                sleep(Duration::from_secs(50)).await; // for the client's window
                asked();
                sleep(Duration::from_secs(70)).await; // for the upstream, which has limits of its own
            }
            for _ in 0..5 {
                handed_out();
                sleep(Duration::from_secs(50)).await;
                asked();
            }
        };
        assert_eq!(run(slow).await, (5 * 120 + 5 * 50, false));
    }
}
