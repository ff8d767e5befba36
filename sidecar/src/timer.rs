//! A timer for limits that are set for every message and hardly ever strike.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll, Waker},
};

use tokio::{
    task::coop::has_budget_remaining,
    time::{Instant, Sleep, sleep_until},
};

/// One limit after the other, for one task. Setting a later limit costs nothing: the timer that is armed already strikes early
/// then, sees that, and is armed anew. So the runtime's timers are touched once per limit's length, not once per request.
#[derive(Debug, Default)]
pub(crate) struct Timer {
    sleep: Option<Pin<Box<Sleep>>>,
    /// Who is woken when it strikes.
    armed: Option<Waker>,
}

impl Timer {
    /// Ready once `deadline` has passed.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>, deadline: Instant) -> Poll<()> {
        let sleep = self.sleep.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
        if deadline < sleep.deadline() {
            sleep.as_mut().reset(deadline);
        } else if !sleep.is_elapsed() && self.armed.as_ref().is_some_and(|armed| armed.will_wake(cx.waker())) {
            return Poll::Pending; // asking again is what costs most
        }
        loop {
            let looks = has_budget_remaining(); // else the runtime has the task yield first
            if sleep.as_mut().poll(cx).is_pending() {
                self.armed = looks.then(|| cx.waker().clone());
                return Poll::Pending;
            }
            if sleep.deadline() >= deadline {
                return Poll::Ready(());
            }
            sleep.as_mut().reset(deadline);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, time::Duration};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn limits_strike_on_time_whether_they_move_later_or_sooner() {
        let (mut timer, start) = (Timer::default(), Instant::now());
        for seconds in [10, 30, 20, 25] {
            let begun = Instant::now();
            poll_fn(|cx| {
                // A later limit, and then the one that counts.
                assert!(timer.poll(cx, begun + Duration::from_secs(100)).is_pending());
                timer.poll(cx, begun + Duration::from_secs(seconds))
            })
            .await;
            assert_eq!(begun.elapsed().as_secs(), seconds);
        }
        assert_eq!(start.elapsed().as_secs(), 85);
    }
}
