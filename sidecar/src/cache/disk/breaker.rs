//! When nobody looks on disk for a while, for it was too slow.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// Looks in a row that fail before nobody looks any more.
const FAILURES: u32 = 5;
/// For so long; then one may try.
const PAUSE: Duration = Duration::from_secs(5);

/// Looks that failed, and until when nobody looks.
#[derive(Debug, Default)]
pub(super) struct Breaker(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    failures: u32,
    until: Option<Instant>,
}

impl Breaker {
    /// Whether one may look now.
    pub(super) fn lets(&self, now: Instant) -> bool {
        let mut state = self.lock();
        match state.until {
            Some(until) if now < until => false,
            Some(_) => {
                // This one tries; the others wait for what comes of it, or for as long again.
                state.until = Some(now + PAUSE);
                true
            }
            None => true,
        }
    }

    /// A look was answered.
    pub(super) fn worked(&self) {
        let mut state = self.lock();
        if state.failures > 0 {
            *state = State::default();
        }
    }

    /// A look was not answered in time, or by an error.
    pub(super) fn failed(&self, now: Instant) {
        let mut state = self.lock();
        state.failures = state.failures.saturating_add(1);
        if state.failures >= FAILURES {
            state.until = Some(now + PAUSE);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_five_failures_in_a_row_nobody_looks_but_one_every_five_seconds() {
        let (breaker, start) = (Breaker::default(), Instant::now());
        let fail = |times: u32| (0..times).for_each(|_| breaker.failed(start));
        fail(4);
        assert!(breaker.lets(start));
        breaker.worked();
        fail(4);
        assert!(breaker.lets(start));
        fail(1);
        let after = |seconds| start + Duration::from_secs(seconds);
        let lets = |seconds| breaker.lets(after(seconds));
        assert_eq!([lets(0), lets(4), lets(5), lets(5), lets(9)], [false, false, true, false, false]);
        breaker.failed(after(9));
        assert_eq!([lets(13), lets(14)], [false, true]);
        breaker.worked();
        assert_eq!([lets(14), lets(14)], [true, true]);
    }
}
