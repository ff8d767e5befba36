//! A rate with delay: each request has a time at which it goes, evenly after the one before it. Pure; time is passed in.

use std::time::{Duration, Instant};

use crds::policy::throttle::Rate;

/// Requests that wait for their time at once. More would be the memory of a pod.
const MAX_WAITING: usize = 10_000;

/// A rate as it is counted.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Pacing {
    interval: Duration,
    burst: u32,
    max_delay: Duration,
}

impl Pacing {
    pub(super) fn of(rate: &Rate) -> Self {
        let number = |value: i32| u32::try_from(value).unwrap_or(1).max(1);
        Self { interval: rate.per.0 / number(rate.requests), burst: number(rate.burst), max_delay: rate.max_delay.0 }
    }
}

/// A time at which a request goes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Slot {
    pub(super) at: Instant,
    /// What was taken, to give it back.
    until: Instant,
}

/// Why a request has none.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Refused {
    /// It would have to wait for too long; it may come again after this time.
    TooLong(Duration),
    /// Its client would have left.
    TooLate,
}

/// What is taken of a rate.
#[derive(Debug, Default)]
pub(super) struct Shaper {
    /// Until when it is taken; none before the first request.
    until: Option<Instant>,
    waiting: usize,
}

impl Shaper {
    /// Takes the next time. Where that is later than `now`, it must be told when the wait [is over](Self::went).
    pub(super) fn take(&mut self, pacing: &Pacing, now: Instant, deadline: Option<Instant>) -> Result<Slot, Refused> {
        let early = pacing.interval.saturating_mul(pacing.burst - 1);
        // No further than this rate lets anybody take: what was taken by a slower one is not waited for.
        let furthest = now + early + pacing.max_delay + pacing.interval;
        let from = self.until.map_or(now, |until| until.clamp(now, furthest));
        self.until = self.until.map(|until| until.min(furthest));
        let delay = from.saturating_duration_since(now).saturating_sub(early);
        if delay > pacing.max_delay {
            return Err(Refused::TooLong(delay - pacing.max_delay));
        }
        if delay > Duration::ZERO && self.waiting >= MAX_WAITING {
            return Err(Refused::TooLong(pacing.interval));
        }
        let at = now + delay;
        if deadline.is_some_and(|deadline| at >= deadline) {
            return Err(Refused::TooLate);
        }
        let until = from + pacing.interval;
        self.until = Some(until);
        self.waiting += usize::from(delay > Duration::ZERO);
        Ok(Slot { at, until })
    }

    /// A request that had to wait does not any more. One that left before its time gives it back if nobody has taken a later one: else
    /// two would go at once.
    pub(super) fn went(&mut self, pacing: &Pacing, slot: Slot, now: Instant) {
        self.waiting = self.waiting.saturating_sub(1);
        if now < slot.at && self.until == Some(slot.until) {
            self.until = slot.until.checked_sub(pacing.interval);
        }
    }

    /// Requests that wait.
    pub(super) fn waiting(&self) -> usize {
        self.waiting
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pacing(json: &str) -> Pacing {
        Pacing::of(&serde_json::from_str(json).unwrap())
    }

    fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn requests_that_come_at_once_go_one_after_the_other() {
        let (pacing, mut shaper, now) =
            (pacing(r#"{"requests": 100, "per": "1s", "maxDelay": "30ms"}"#), Shaper::default(), Instant::now());
        let delays: Vec<_> = (0..6).map(|_| shaper.take(&pacing, now, None).map(|slot| slot.at - now)).collect();
        let refused = Err(Refused::TooLong(ms(10)));
        assert_eq!(delays, [Ok(ms(0)), Ok(ms(10)), Ok(ms(20)), Ok(ms(30)), refused, refused]);
        assert_eq!(shaper.waiting(), 3);
    }

    #[test]
    fn burst_goes_at_once_after_a_pause() {
        let (pacing, mut shaper, now) =
            (pacing(r#"{"requests": 10, "per": "1s", "burst": 3}"#), Shaper::default(), Instant::now());
        for expected in [0, 0, 0, 100, 200] {
            assert_eq!(shaper.take(&pacing, now, None).unwrap().at, now + ms(expected));
        }
    }

    #[test]
    fn time_after_the_deadline_is_not_taken() {
        let (pacing, mut shaper, now) = (pacing(r#"{"requests": 10, "per": "1s"}"#), Shaper::default(), Instant::now());
        assert!(shaper.take(&pacing, now, Some(now + ms(1))).is_ok());
        assert_eq!(shaper.take(&pacing, now, Some(now + ms(100))), Err(Refused::TooLate));
        assert_eq!(shaper.take(&pacing, now, None).unwrap().at, now + ms(100), "it is left for another");
    }

    #[test]
    fn last_one_that_leaves_gives_its_time_back() {
        let (pacing, mut shaper, now) = (pacing(r#"{"requests": 10, "per": "1s"}"#), Shaper::default(), Instant::now());
        let slots: Vec<_> = (0..3).map(|_| shaper.take(&pacing, now, None).unwrap()).collect();
        shaper.went(&pacing, slots[1], now);
        assert_eq!(shaper.take(&pacing, now, None).unwrap().at, now + ms(300), "another has a later one");
        let last = shaper.take(&pacing, now, None).unwrap();
        shaper.went(&pacing, last, now);
        assert_eq!(shaper.take(&pacing, now, None).unwrap().at, last.at);
    }

    #[test]
    fn times_that_a_slower_rate_has_given_are_not_waited_for_by_a_faster_one() {
        let slow = pacing(r#"{"requests": 1, "per": "60s", "maxDelay": "600s"}"#);
        let fast = pacing(r#"{"requests": 100, "per": "1s", "maxDelay": "1s"}"#);
        let (mut shaper, now) = (Shaper::default(), Instant::now());
        (0..10).for_each(|_| _ = shaper.take(&slow, now, None).unwrap());
        assert_eq!(shaper.take(&fast, now, None), Err(Refused::TooLong(ms(10))));
        assert_eq!(shaper.take(&fast, now + ms(10), None).unwrap().at, now + ms(1010));
    }

    proptest! {
        /// In no stretch of time go more than the rate and the burst allow, whoever comes and leaves.
        #[test]
        fn rate_is_never_exceeded(steps in proptest::collection::vec((0..50u64, any::<bool>()), 1..200), burst in 1..5u32) {
            let pacing = Pacing { interval: ms(10), burst, max_delay: ms(500) };
            let (mut shaper, mut now, mut went) = (Shaper::default(), Instant::now(), Vec::new());
            for (pause, leaves) in steps {
                now += ms(pause / 4);
                let Ok(slot) = shaper.take(&pacing, now, None) else { continue };
                if leaves && slot.at > now {
                    shaper.went(&pacing, slot, now);
                } else {
                    went.push(slot.at);
                }
            }
            prop_assert!(went.is_sorted());
            for (at, from) in went.iter().enumerate() {
                let until = *from + ms(100);
                let within = went[at..].iter().take_while(|other| **other < until).count();
                prop_assert!(within <= 10 + burst as usize, "{within}");
            }
        }
    }
}
