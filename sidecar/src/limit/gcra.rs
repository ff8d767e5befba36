//! The generic cell rate algorithm, in exact integers.
//!
//! A token bucket holds `burst` tokens and gains `requests` of them every `per`. What is stored is not its level but the
//! theoretical arrival time: when it will be full again. Time is scaled by `requests`, so a token is worth exactly `per`
//! nanoseconds and nothing is ever rounded: 3 requests each second stay 3, not 3 times 333,333,333 ns.

use std::{
    num::{NonZeroU32, NonZeroU64},
    time::Duration,
};

/// Nanoseconds since an epoch of the caller's.
pub type Nanos = u64;

/// A limit's arithmetic.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Gcra {
    requests: NonZeroU32,
    per: NonZeroU64,
    burst: NonZeroU32,
}

/// What a store keeps for one count. The default is a full bucket.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Tat(u128);

/// How a bucket stands.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Level {
    /// Whole tokens in it.
    pub remaining: u32,
    /// Until there is one more; zero when it is full.
    pub next: Duration,
}

impl Gcra {
    /// A limit of `requests` every `per`, of which `burst` may come at once. None if one of them is zero or `per` has more than 584 years.
    pub fn new(requests: u32, per: Duration, burst: u32) -> Option<Self> {
        let per = u64::try_from(per.as_nanos()).ok()?;
        Some(Self { requests: NonZeroU32::new(requests)?, per: NonZeroU64::new(per)?, burst: NonZeroU32::new(burst)? })
    }

    /// Tokens of a full bucket.
    pub fn burst(&self) -> u32 {
        self.burst.get()
    }

    /// How long an empty bucket takes to be full.
    pub fn window(&self) -> Duration {
        self.unscaled(self.capacity())
    }

    /// How long so many tokens take to come.
    pub fn time_of(&self, tokens: u32) -> Duration {
        self.unscaled(self.token() * u128::from(tokens))
    }

    /// How the bucket stands, without taking anything.
    pub fn peek(&self, tat: Tat, now: Nanos) -> Level {
        let used = self.used(tat, now);
        let free = self.capacity() - used;
        let remaining = u32::try_from(free / self.token()).expect("a bucket never holds more than burst");
        let next = if used == 0 { 0 } else { self.token() - free % self.token() };
        Level { remaining, next: self.unscaled(next) }
    }

    /// Takes one token. Without one, the error says how long the next will take, and nothing is changed.
    pub fn charge(&self, tat: &mut Tat, now: Nanos) -> Result<Level, Level> {
        let level = self.peek(*tat, now);
        if level.remaining == 0 {
            return Err(level);
        }
        tat.0 = self.scaled(now) + self.used(*tat, now) + self.token();
        Ok(self.peek(*tat, now))
    }

    /// A bucket in which so many tokens remain, or all.
    pub fn with_remaining(&self, remaining: u64, now: Nanos) -> Tat {
        let used = u128::from(self.burst.get()).saturating_sub(remaining.into());
        Tat(self.scaled(now) + used * self.token())
    }

    /// The share that one of so many pods has of the limit: a part of the rate, and of the burst at least one token.
    #[must_use]
    pub fn share_of(&self, pods: u32) -> Self {
        let pods = NonZeroU32::new(pods).unwrap_or(NonZeroU32::MIN);
        let burst = NonZeroU32::new(self.burst.get() / pods).unwrap_or(NonZeroU32::MIN);
        Self { requests: self.requests, per: self.per.saturating_mul(pods.into()), burst }
    }

    /// Gives back a token that was charged.
    pub fn refund(&self, tat: &mut Tat) {
        tat.0 = tat.0.saturating_sub(self.token());
    }

    /// Whether the bucket is full, so that forgetting it changes nothing.
    pub fn is_full(&self, tat: Tat, now: Nanos) -> bool {
        self.used(tat, now) == 0
    }

    /// The same number of tokens spent, in a bucket of this limit: what a changed limit starts from.
    pub fn convert(&self, from: &Self, tat: Tat, now: Nanos) -> Tat {
        // Whole tokens and the rest apart: a token has less than 2^64 units, so neither product overflows.
        let (whole, rest) = (from.used(tat, now) / from.token(), from.used(tat, now) % from.token());
        let used = whole * self.token() + rest * self.token() / from.token();
        Tat(self.scaled(now) + used.min(self.capacity()))
    }

    /// What is missing in the bucket; never more than it holds, even if time stepped back.
    fn used(&self, tat: Tat, now: Nanos) -> u128 {
        tat.0.saturating_sub(self.scaled(now)).min(self.capacity())
    }

    fn token(&self) -> u128 {
        u128::from(self.per.get())
    }

    fn capacity(&self) -> u128 {
        self.token() * u128::from(self.burst.get())
    }

    fn scaled(&self, now: Nanos) -> u128 {
        u128::from(now) * u128::from(self.requests.get())
    }

    fn unscaled(&self, units: u128) -> Duration {
        let nanos = units.div_ceil(u128::from(self.requests.get()));
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use governor::{Quota, RateLimiter, clock::FakeRelativeClock};
    use proptest::prelude::*;

    use super::*;

    const SECOND: Nanos = 1_000_000_000;

    fn gcra(requests: u32, per: Duration, burst: u32) -> Gcra {
        Gcra::new(requests, per, burst).unwrap()
    }

    #[test]
    fn spent_burst_refills_with_time() {
        let gcra = gcra(2, Duration::from_secs(1), 1);
        let mut tat = Tat::default();
        assert_eq!(gcra.charge(&mut tat, SECOND).unwrap().remaining, 0);
        assert_eq!(gcra.charge(&mut tat, SECOND).unwrap_err().next, Duration::from_millis(500));
        assert!(gcra.charge(&mut tat, SECOND + SECOND / 2 - 1).is_err());
        assert!(gcra.charge(&mut tat, SECOND + SECOND / 2).is_ok());
    }

    #[test]
    fn rate_that_does_not_divide_a_second_is_kept_exactly() {
        let gcra = gcra(3, Duration::from_secs(1), 2);
        let mut tat = Tat::default();
        let on_time = (0..3_000_u64).filter(|n| gcra.charge(&mut tat, (n * SECOND).div_ceil(3)).is_ok()).count();
        assert_eq!(on_time, 3_000, "no request that comes in time is refused by rounding");
        let after = gcra.peek(tat, 1_000 * SECOND + 1);
        assert_eq!(after, Level { remaining: 2, next: Duration::ZERO }, "and none of them left anything behind");
    }

    #[test]
    fn refund_gives_back_what_was_charged() {
        let gcra = gcra(1, Duration::from_secs(1), 5);
        let mut tat = Tat::default();
        gcra.charge(&mut tat, SECOND).unwrap();
        let before = tat;
        gcra.charge(&mut tat, SECOND).unwrap();
        gcra.refund(&mut tat);
        assert_eq!(tat, before);
    }

    #[test]
    fn shares_add_up_to_the_limit() {
        let (limit, hour) = (gcra(100, Duration::from_secs(1), 200), 3600 * SECOND);
        let mut allowed = 0;
        for mut tat in [Tat::default(); 8] {
            let share = limit.share_of(8);
            allowed += (0..1000).filter(|_| share.charge(&mut tat, hour).is_ok()).count();
            allowed += (0..1000).filter(|_| share.charge(&mut tat, hour + SECOND).is_ok()).count();
        }
        // A part of a token is not there yet in each of them.
        assert!((300 - 8..=300).contains(&allowed), "{allowed}");
        assert_eq!(gcra(1, Duration::from_secs(1), 1).share_of(3).burst(), 1);
    }

    #[test]
    fn bucket_is_made_from_what_remains() {
        let gcra = gcra(10, Duration::from_secs(1), 10);
        assert_eq!(gcra.peek(gcra.with_remaining(3, 7 * SECOND), 7 * SECOND).remaining, 3);
        assert_eq!(gcra.peek(gcra.with_remaining(11, 7 * SECOND), 7 * SECOND).remaining, 10);
    }

    #[test]
    fn time_that_steps_back_never_denies_more_than_a_burst() {
        let gcra = gcra(1, Duration::from_secs(1), 2);
        let mut tat = Tat::default();
        gcra.charge(&mut tat, 1000 * SECOND).unwrap();
        let level = gcra.peek(tat, 0);
        assert_eq!(level.remaining, 0);
        assert_eq!(level.next, Duration::from_secs(1));
    }

    #[test]
    fn changed_limit_keeps_what_was_spent() {
        let old = gcra(10, Duration::from_secs(1), 10);
        let mut tat = Tat::default();
        for _ in 0..6 {
            old.charge(&mut tat, SECOND).unwrap();
        }
        let larger = gcra(100, Duration::from_secs(60), 20);
        assert_eq!(larger.peek(larger.convert(&old, tat, SECOND), SECOND).remaining, 14);
        let smaller = gcra(1, Duration::from_secs(1), 5);
        assert_eq!(smaller.peek(smaller.convert(&old, tat, SECOND), SECOND).remaining, 0);
    }

    #[test]
    fn largest_limits_do_not_overflow() {
        let hundred_thousand_hours = Duration::from_secs(4 * 99_999 * 3600);
        let gcra = gcra(1_000_000_000, hundred_thousand_hours, 1_000_000_000);
        let mut tat = Tat::default();
        assert_eq!(gcra.charge(&mut tat, u64::MAX).unwrap().remaining, 999_999_999);
        assert_eq!(gcra.peek(gcra.convert(&gcra, tat, u64::MAX), u64::MAX).remaining, 999_999_999);
    }

    proptest! {
        #[test]
        fn decides_as_governor_does(
            requests in prop::sample::select(vec![1_u32, 2, 5, 10, 100, 1000]),
            burst in 1_u32..20,
            steps in proptest::collection::vec(0_u64..400_000_000, 1..200),
        ) {
            let ours = gcra(requests, Duration::from_secs(1), burst);
            let clock = FakeRelativeClock::default();
            let quota = Quota::per_second(requests.try_into().unwrap()).allow_burst(burst.try_into().unwrap());
            let oracle = RateLimiter::direct_with_clock(quota, clock.clone());
            let mut tat = Tat::default();
            let mut now = 0;
            for step in steps {
                clock.advance(Duration::from_nanos(step));
                now += step;
                prop_assert_eq!(ours.charge(&mut tat, now).is_ok(), oracle.check().is_ok(), "at {} ns", now);
            }
        }

        #[test]
        fn never_more_than_burst_and_rate_in_any_window(
            requests in 1_u32..50, per_ms in 1_u64..5000, burst in 1_u32..50,
            steps in proptest::collection::vec(0_u64..2_000_000_000, 1..200),
        ) {
            let per = Duration::from_millis(per_ms);
            let gcra = gcra(requests, per, burst);
            let mut tat = Tat::default();
            let mut now = 0;
            let mut allowed: Vec<Nanos> = Vec::new();
            for step in steps {
                now += step;
                if gcra.charge(&mut tat, now).is_ok() {
                    allowed.push(now);
                }
            }
            for (first, start) in allowed.iter().enumerate() {
                for (last, end) in allowed.iter().enumerate().skip(first) {
                    let count = (last - first + 1) as u128;
                    let refilled = u128::from(end - start) * u128::from(requests) / per.as_nanos();
                    prop_assert!(count <= u128::from(burst) + refilled);
                }
            }
        }

        #[test]
        fn next_token_is_there_when_it_was_promised(requests in 1_u32..1000, burst in 1_u32..5, start in 0_u64..SECOND) {
            let gcra = gcra(requests, Duration::from_secs(7), burst);
            let mut tat = Tat::default();
            let denied = loop {
                if let Err(denied) = gcra.charge(&mut tat, start) {
                    break denied;
                }
            };
            let wait = u64::try_from(denied.next.as_nanos()).unwrap();
            prop_assert!(gcra.charge(&mut tat, start + wait - 1).is_err());
            prop_assert!(gcra.charge(&mut tat, start + wait).is_ok());
        }
    }
}
