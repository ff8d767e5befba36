//! What a limit counts, in numbers that a double holds exactly; and what of it a request is charged.

use std::{fmt, time::Duration};

/// Microseconds; as a time, since the epoch of Unix.
pub(crate) type Micros = u64;

/// The largest whole number up to which a double holds every one, as the scripts compute with.
pub(super) const MOST: u64 = 1 << 53;
/// Parts of a sliding window, at most.
const TICKS: u64 = 10_000;

/// An algorithm with its numbers.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Rule {
    Bucket(Bucket),
    Sliding(Sliding),
    Fixed(Fixed),
    Slots(Slots),
}

/// A token bucket (GCRA): holds `burst` tokens and gains them at a rate.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Bucket {
    pub(super) burst: u64,
    /// What a token counts, where a microsecond brings `rate`: the rate in lowest terms, so that both are whole.
    pub(super) unit: u64,
    pub(super) rate: u64,
}

/// So many requests in a window that slides, estimated from two that do not: those of this one, and those of the one before
/// by the part of it that is not over.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Sliding {
    pub(super) most: u64,
    /// Parts of a window in which it slides on, and how long one is. A part that has begun counts as not over.
    pub(super) ticks: u64,
    pub(super) tick: Micros,
}

/// So many requests in a window of a calendar.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Fixed {
    pub(super) quota: u64,
    pub(super) start: Micros,
    pub(super) end: Micros,
    /// End of the window after it.
    pub(super) next_end: Micros,
}

/// So many requests at once. One that is not heard of for a term is given up for lost.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Slots {
    pub(super) most: u64,
    pub(super) term: Micros,
}

/// What a request is charged of one count.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Charge<'a> {
    /// Name of the count, without what says its kind. In a cluster its hash tag, in braces, says which counts are charged at once.
    pub(crate) key: &'a str,
    pub(crate) rule: Rule,
    pub(crate) treatment: Treatment,
    /// Tokens or requests. Nothing asks how the count stands; more than there can ever be is denied always.
    pub(crate) cost: u64,
}

/// What follows from what a limit says.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Treatment {
    /// It may deny the request.
    Enforce,
    /// It denies nothing, and is charged as if it did.
    Shadow,
    /// It denies nothing, and is charged also what it has not, which is known only afterwards.
    Debit,
}

/// What tells a charge from all others: 128 random bits.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(crate) struct ChargeId(pub(super) u128);

/// What of a limit is a pod's own while the store fails, so that all have together what the limit allows.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Part {
    /// Of what it would have if all had the same: at least one, and at most all that all have.
    hundredths: u64,
    pods: u64,
}

const HUNDRED: u64 = 100;

impl Part {
    /// The same for each of so many pods.
    pub(crate) fn equal(pods: u32) -> Self {
        Self { hundredths: HUNDRED, pods: u64::from(pods.max(1)) }
    }

    /// What one of so many pods has used, of what all have.
    pub(crate) fn of_use(pods: u32, own: f64, all: f64) -> Self {
        let equal = Self::equal(pods);
        let most = HUNDRED * equal.pods;
        Self { hundredths: ((own / all * most as f64) as u64).clamp(1, most), ..equal }
    }

    /// Of a number, at least one.
    pub(crate) fn of(&self, whole: u64) -> u64 {
        let part = u128::from(whole) * u128::from(self.hundredths) / u128::from(HUNDRED * self.pods);
        u64::try_from(part).unwrap_or(u64::MAX).max(1)
    }
}

impl Bucket {
    /// `requests` every `per`, of which `burst` may come at once. None if one of them is zero, or it can't be counted exactly:
    /// a full bucket has more than 2^53 of the unit in which both a token and a microsecond are whole.
    pub(crate) fn new(requests: u64, per: Duration, burst: u64) -> Option<Self> {
        let per = u64::try_from(per.as_micros()).ok()?;
        let divisor = greatest_common_divisor(requests, per);
        let (rate, unit) = (requests.checked_div(divisor)?, per.checked_div(divisor)?);
        let is_exact = burst.checked_mul(unit).is_some_and(|full| full <= MOST) && rate <= MOST;
        (rate > 0 && unit > 0 && burst > 0 && is_exact).then_some(Self { burst, unit, rate })
    }

    /// Tokens of a full bucket.
    pub(crate) fn burst(&self) -> u64 {
        self.burst
    }

    /// How long an empty bucket takes to be full.
    pub(crate) fn window(&self) -> Duration {
        self.time_of(self.burst)
    }

    /// How long so many tokens take to come, at most as many as there can be.
    pub(crate) fn time_of(&self, tokens: u64) -> Duration {
        Duration::from_micros((tokens.min(self.burst) * self.unit).div_ceil(self.rate))
    }

    /// Tokens that come in so many microseconds.
    pub(crate) fn rate_of(&self, micros: f64) -> f64 {
        micros * self.rate as f64 / self.unit as f64
    }

    /// Whole tokens that come in so long a time.
    pub(crate) fn tokens_in(&self, time: Duration) -> u64 {
        u64::try_from(time.as_micros() * u128::from(self.rate) / u128::from(self.unit)).unwrap_or(u64::MAX)
    }

    /// A bucket that holds also what comes in so long a time. None if it can't be counted exactly.
    pub(crate) fn with_room_for(&self, time: Duration) -> Option<Self> {
        let burst = self.burst.checked_add(self.tokens_in(time))?;
        burst.checked_mul(self.unit).filter(|full| *full <= MOST).map(|_| Self { burst, ..*self })
    }

    /// A pod's part: of the rate, and of the burst at least one token. An equal part if that can't be counted exactly, and else all of it.
    fn share_of(&self, part: Part) -> Self {
        let scaled = |burst: u64, unit: u64, rate: u64| Self {
            burst: burst.max(1),
            unit: self.unit.saturating_mul(unit),
            rate: self.rate.saturating_mul(rate),
        };
        let fine = scaled(part.of(self.burst), part.pods * HUNDRED, part.hundredths);
        let equal = scaled(self.burst / part.pods, part.pods, 1);
        let is_exact = |bucket: &Self| bucket.burst.saturating_mul(bucket.unit) <= MOST && bucket.rate <= MOST;
        [fine, equal].into_iter().find(is_exact).unwrap_or(*self)
    }

    pub(super) fn full(&self) -> u64 {
        self.burst * self.unit
    }
}

impl Sliding {
    /// `requests` in any time of `per`. None if one of them is zero, or there are more than 2^53 requests. The window slides in steps of a
    /// thousandth of it or less, unless there are more than 9 * 10^12 requests.
    pub(crate) fn new(requests: u64, per: Duration) -> Option<Self> {
        let per = u64::try_from(per.as_micros()).ok().filter(|per| (1..=MOST / 4).contains(per))?;
        let finest = TICKS.min(MOST.checked_div(requests)?).min(per);
        let ticks = (1..=finest).rev().find(|ticks| per.is_multiple_of(*ticks))?;
        Some(Self { most: requests, ticks, tick: per / ticks })
    }

    /// Requests in one window.
    pub(crate) fn most(&self) -> u64 {
        self.most
    }

    pub(super) fn length(&self) -> Micros {
        self.ticks * self.tick
    }
}

impl Fixed {
    /// A window that nobody is in any more, in which nothing is allowed.
    pub(crate) const BEFORE_ALL: Self = Self { quota: 0, start: 0, end: 1, next_end: 2 };

    /// Whether a time is in the first of its windows.
    pub(crate) fn has(&self, now: Micros) -> bool {
        (self.start..self.end).contains(&now)
    }

    /// Requests in it.
    pub(crate) fn quota(&self) -> u64 {
        self.quota
    }

    /// `quota` in the window from `start` to `end` that should be now, and in the one after it that ends at `next_end`. None if they are not
    /// in this order.
    pub(crate) fn new(quota: u64, start: Micros, end: Micros, next_end: Micros) -> Option<Self> {
        (start < end && end < next_end && next_end <= MOST && quota <= MOST).then_some(Self { quota, start, end, next_end })
    }
}

impl Slots {
    /// `most` requests at once, each of which shows within `term` that it is still there. None if the term is zero.
    pub(crate) fn new(most: u64, term: Duration) -> Option<Self> {
        let term = u64::try_from(term.as_micros()).ok()?;
        (most <= MOST && (1..=MOST / 4).contains(&term)).then_some(Self { most, term })
    }

    /// Requests at once.
    pub(crate) fn most(&self) -> u64 {
        self.most
    }
}

impl Rule {
    /// What a pod has of it for itself: its part, and at least one request.
    #[must_use]
    pub(crate) fn share_of(&self, part: Part) -> Self {
        match *self {
            Self::Bucket(bucket) => Self::Bucket(bucket.share_of(part)),
            Self::Sliding(sliding) => Self::Sliding(Sliding { most: part.of(sliding.most), ..sliding }),
            Self::Fixed(fixed) => Self::Fixed(Fixed { quota: part.of(fixed.quota), ..fixed }),
            Self::Slots(slots) => Self::Slots(Slots { most: part.of(slots.most), ..slots }).of_pod(),
        }
    }

    /// As a pod counts by itself: it sees the end of each of its own requests, so none is ever given up for lost.
    #[must_use]
    pub(crate) fn of_pod(self) -> Self {
        match self {
            Self::Slots(slots) => Self::Slots(Slots { term: MOST / 4, ..slots }),
            rule => rule,
        }
    }

    /// How long its numbers take to be there again when all are used up. None for slots, of which nobody knows.
    pub(crate) fn window(&self) -> Option<Duration> {
        Some(match self {
            Self::Bucket(bucket) => bucket.window(),
            Self::Sliding(sliding) => Duration::from_micros(sliding.length()),
            Self::Fixed(fixed) => Duration::from_micros(fixed.end - fixed.start),
            Self::Slots(_) => return None,
        })
    }

    /// Stands for the algorithm, in scripts and at the end of names: counts of different kinds are different ones.
    pub(super) fn letter(&self) -> &'static str {
        match self {
            Self::Bucket(_) => "b",
            Self::Sliding(_) => "w",
            Self::Fixed(_) => "f",
            Self::Slots(_) => "s",
        }
    }

    /// The parameters that the scripts read.
    pub(super) fn parameters(&self) -> [u64; 4] {
        match *self {
            Self::Bucket(Bucket { burst, unit, rate }) => [burst, unit, rate, 0],
            Self::Sliding(Sliding { most, ticks, tick }) => [most, ticks, tick, 0],
            Self::Fixed(Fixed { quota, start, end, next_end }) => [quota, start, end, next_end],
            Self::Slots(Slots { most, term }) => [most, term, 0, 0],
        }
    }
}

impl Charge<'_> {
    /// The name of the count in Redis.
    pub(super) fn name(&self) -> String {
        name(self.key, &self.rule)
    }

    /// Whether it is charged to a request that nothing denies. What costs nothing is only looked at.
    pub(super) fn is_charged(&self, allowed: bool) -> bool {
        self.units() > 0 && (allowed || self.treatment == Treatment::Debit)
    }

    /// The cost as the algorithm understands it.
    pub(super) fn units(&self) -> u64 {
        match self.rule {
            Rule::Slots(_) => self.cost.min(1),
            _ => self.cost.min(MOST),
        }
    }
}

/// The name of a count in Redis.
pub(super) fn name(key: &str, rule: &Rule) -> String {
    match rule {
        // What was counted in windows of one length says nothing of those of another.
        Rule::Sliding(sliding) => format!("{key}:w{}", sliding.length()),
        _ => format!("{key}:{}", rule.letter()),
    }
}

impl Treatment {
    pub(super) fn letter(self) -> &'static str {
        match self {
            Self::Enforce => "e",
            Self::Shadow => "s",
            Self::Debit => "d",
        }
    }
}

impl ChargeId {
    /// Of what is charged to nothing that lasts.
    pub(crate) const NONE: Self = Self(0);

    /// A new one.
    pub(crate) fn random() -> Self {
        Self(fastrand::u128(..))
    }
}

impl fmt::Display for ChargeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

fn greatest_common_divisor(mut a: u64, mut b: u64) -> u64 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_of_a_year_and_of_a_nanosecond_are_exact() {
        let day = Duration::from_secs(86_400);
        assert_eq!(Bucket::new(1, day, 1), Some(Bucket { burst: 1, unit: 86_400_000_000, rate: 1 }));
        let ten_gib = 10 << 30;
        assert_eq!(
            Bucket::new(ten_gib, Duration::from_secs(1), ten_gib),
            Some(Bucket { burst: ten_gib, unit: 3125, rate: 33_554_432 })
        );
        assert_eq!(Bucket::new(999_999_937, day, 999_999_937), None);
        for (requests, per, burst) in [(0, day, 1), (1, Duration::ZERO, 1), (0, Duration::ZERO, 1), (1, day, 0)] {
            assert_eq!(Bucket::new(requests, per, burst), None);
        }
    }

    #[test]
    fn windows_slide_in_steps_that_divide_them() {
        let sliding = |requests, millis| Sliding::new(requests, Duration::from_millis(millis)).unwrap();
        assert_eq!(sliding(100, 1000), Sliding { most: 100, ticks: 10_000, tick: 100 });
        // A prime number of milliseconds.
        assert_eq!(sliding(100, 999_983), Sliding { most: 100, ticks: 1000, tick: 999_983 });
        assert_eq!(sliding(MOST, 1000).ticks, 1);
        assert!(Sliding::new(MOST + 1, Duration::from_secs(1)).is_none());
        assert!(Sliding::new(0, Duration::from_secs(1)).is_none() && Sliding::new(1, Duration::ZERO).is_none());
    }
}
