//! How busy an address is: the peak of its latency, decaying, times the requests under way ("peak EWMA"), and the lower of two.

use std::{
    cell::Cell,
    time::{Duration, Instant},
};

/// How long a latency counts: after this time, to a third.
const DECAY: Duration = Duration::from_secs(10);

/// What an address costs of which nothing is known but that requests are under way to it; more than any latency.
const UNKNOWN: f64 = 3600.0;

/// The load of one address, as one worker sees it.
#[derive(Debug)]
pub(super) struct Load {
    /// Seconds, at `at`.
    latency: Cell<f64>,
    at: Cell<Option<Instant>>,
    busy: Cell<u32>,
}

impl Load {
    pub(super) fn new() -> Self {
        Self { latency: Cell::new(0.0), at: Cell::new(None), busy: Cell::new(0) }
    }

    /// A request goes to it.
    pub(super) fn begin(&self) {
        self.busy.set(self.busy.get() + 1);
    }

    /// A request has ended.
    pub(super) fn end(&self) {
        self.busy.set(self.busy.get().saturating_sub(1));
    }

    /// Notes a latency: a higher one counts at once, a lower one by and by.
    pub(super) fn observe(&self, latency: Duration, now: Instant) {
        let (before, new) = (self.decayed(now), latency.as_secs_f64());
        let weight = self.weight(now);
        self.latency.set(if new >= before { new } else { before + new * (1.0 - weight) });
        self.at.set(Some(now));
    }

    /// Notes that a latency is not known but for what it is at least.
    pub(super) fn observe_at_least(&self, latency: Duration, now: Instant) {
        if latency.as_secs_f64() > self.decayed(now) {
            self.observe(latency, now);
        }
    }

    /// What another request would cost at `now`.
    pub(super) fn cost(&self, now: Instant) -> f64 {
        let latency = self.decayed(now);
        let busy = f64::from(self.busy.get());
        if self.at.get().is_none() && busy > 0.0 { UNKNOWN + busy } else { latency * (busy + 1.0) }
    }

    fn decayed(&self, now: Instant) -> f64 {
        self.latency.get() * self.weight(now)
    }

    fn weight(&self, now: Instant) -> f64 {
        let since = self.at.get().map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
        (-since.as_secs_f64() / DECAY.as_secs_f64()).exp()
    }
}

/// Two different random ones of so many, two or more, if both are fit: the one with the lower cost. Drawn again and again, it is as if they
/// were drawn of those that are fit.
pub(super) fn lower_if_both(count: usize, fit: impl Fn(usize) -> bool, cost: impl Fn(usize) -> f64) -> Option<usize> {
    let one = fastrand::usize(..count);
    let other = (one + 1 + fastrand::usize(..count - 1)) % count;
    (fit(one) && fit(other)).then(|| if cost(other) < cost(one) { other } else { one })
}

/// Of two different random ones the one with the lower cost. `fit` has two or more.
pub(super) fn lower_of_two(fit: &[usize], cost: impl Fn(usize) -> f64, mut random: impl FnMut(usize) -> usize) -> usize {
    let one = random(fit.len());
    let other = (one + 1 + random(fit.len() - 1)) % fit.len();
    if cost(fit[other]) < cost(fit[one]) { fit[other] } else { fit[one] }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn peaks_count_at_once_and_are_forgotten_by_and_by() {
        let (load, start) = (Load::new(), Instant::now());
        load.observe(ms(10), start);
        load.observe(ms(500), start + ms(1));
        assert!(load.cost(start + ms(1)) > 0.49);
        load.observe(ms(10), start + ms(1000));
        assert!(load.cost(start + ms(1000)) > 0.4, "one fast answer does not make up for it");
        assert!(load.cost(start + ms(60_000)) < 0.01, "it is tried again");
    }

    #[test]
    fn requests_under_way_multiply_the_cost() {
        let (load, now) = (Load::new(), Instant::now());
        load.observe(ms(10), now);
        let alone = load.cost(now);
        load.begin();
        load.begin();
        assert!((load.cost(now) - 3.0 * alone).abs() < 1e-9);
        load.end();
        load.end();
        assert!((load.cost(now) - alone).abs() < 1e-9);
    }

    #[test]
    fn unknown_address_gets_one_request_first_and_no_more_until_it_answers() {
        let (load, now) = (Load::new(), Instant::now());
        assert!(load.cost(now) < f64::EPSILON);
        load.begin();
        assert!(load.cost(now) > UNKNOWN);
    }

    proptest! {
        #[test]
        fn two_different_ones_are_compared(len in 2..20usize, first in 0..1000usize, second in 0..1000usize) {
            let fit: Vec<usize> = (100..100 + len).collect();
            let mut draws = [first, second].into_iter();
            let seen = std::cell::RefCell::new(Vec::new());
            let cost = |index: usize| { seen.borrow_mut().push(index); index as f64 };
            let chosen = lower_of_two(&fit, cost, |below| draws.next().unwrap() % below);
            let seen = seen.into_inner();
            prop_assert_ne!(seen[0], seen[1]);
            prop_assert_eq!(chosen, seen[0].min(seen[1]));
        }
    }
}
