//! The numbers of a limit.

use jiff::tz::TimeZone;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    check::check_not_zero,
    problems::{FieldPath, Problems},
    rule::Rule,
    scalar::Duration,
};

const RATES_HAVE_A_TIME: Rule = Rule::new(
    "has(self.per) == (self.algorithm in ['TokenBucket', 'SlidingWindow'])",
    "the algorithms TokenBucket and SlidingWindow need per, and the others have none",
)
.at(".per");
const BUCKETS_BURST: Rule =
    Rule::new("!has(self.burst) || self.algorithm == 'TokenBucket'", "only the algorithm TokenBucket has a burst").at(".burst");
const CALENDARS_HAVE_WINDOWS: Rule = Rule::new(
    "has(self.window) == (self.algorithm == 'FixedWindow')",
    "the algorithm FixedWindow needs window, and the others have none",
)
.at(".window");
const CALENDARS_HAVE_ZONES: Rule =
    Rule::new("!has(self.timeZone) || self.algorithm == 'FixedWindow'", "only the algorithm FixedWindow has a time zone")
        .at(".timeZone");

/// The largest whole number up to which a double holds every one.
const MAX_LEVEL: u128 = 1 << 53;
/// The longest window that slides.
const LONGEST_WINDOW: Duration = Duration::from_secs(366 * 86_400);

/// How many requests in how much time, or at once. Where requests have a cost, the numbers are of what they cost.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[schemars(extend("x-kubernetes-validations" = [RATES_HAVE_A_TIME, BUCKETS_BURST, CALENDARS_HAVE_WINDOWS, CALENDARS_HAVE_ZONES]))]
#[serde(rename_all = "camelCase")]
pub struct Limit {
    /// How it counts.
    #[serde(default)]
    pub algorithm: Algorithm,
    /// Requests in every `per` or `window`, or at once.
    #[schemars(range(min = 1, max = 1_000_000_000_000_i64))]
    pub requests: i64,
    /// The time in which `requests` are allowed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub per: Option<Duration>,
    /// Requests that may come at once. Default: `requests`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000_000_000_i64))]
    pub burst: Option<i64>,
    /// The window of the calendar.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window: Option<CalendarWindow>,
    /// By whose clock a window begins: a name of the IANA time zone database, such as `Europe/Berlin`. Default: `UTC`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64), regex(pattern = "^[A-Za-z0-9_+/-]+$"))]
    pub time_zone: Option<String>,
}

/// How a limit counts.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, Hash, JsonSchema, Ord, PartialEq, PartialOrd, Serialize)]
pub enum Algorithm {
    /// A bucket that holds `burst` tokens and gains `requests` of them every `per` (GCRA).
    #[default]
    TokenBucket,
    /// `requests` in any time of `per`, estimated from two windows that touch.
    SlidingWindow,
    /// `requests` in each `window` of the calendar.
    FixedWindow,
    /// `requests` under way at once.
    Concurrency,
}

/// A window of the calendar.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, JsonSchema, Ord, PartialEq, PartialOrd, Serialize)]
pub enum CalendarWindow {
    /// From one full minute to the next.
    Minute,
    /// From one full hour to the next.
    Hour,
    /// From midnight to midnight.
    Day,
    /// From the midnight before Monday to the next one.
    Week,
    /// From the first of a month to that of the next.
    Month,
}

impl Limit {
    /// A token bucket.
    pub fn bucket(requests: i64, per: Duration, burst: Option<i64>) -> Self {
        Self { algorithm: Algorithm::TokenBucket, requests, per: Some(per), burst, window: None, time_zone: None }
    }

    /// Requests that may come at once.
    fn burst(&self) -> u64 {
        u64::try_from(self.burst.unwrap_or(self.requests)).unwrap_or_default()
    }

    /// The rate in lowest terms: requests, and the microseconds in which they are allowed.
    fn rate(&self, per: Duration) -> (u64, u64) {
        let requests = u64::try_from(self.requests).unwrap_or_default();
        let micros = u64::try_from(per.0.as_micros()).unwrap_or(u64::MAX);
        let divisor = greatest_common_divisor(requests, micros).max(1);
        (requests / divisor, micros / divisor)
    }

    /// Checks the numbers of a limit that may delay a request for so long.
    pub(super) fn check(&self, delay: Option<Duration>, at: &FieldPath, problems: &mut Problems) {
        let is = |algorithm| self.algorithm == algorithm;
        let is_rate = is(Algorithm::TokenBucket) || is(Algorithm::SlidingWindow);
        RATES_HAVE_A_TIME.check(self.per.is_some() == is_rate, at, problems);
        BUCKETS_BURST.check(self.burst.is_none() || is(Algorithm::TokenBucket), at, problems);
        CALENDARS_HAVE_WINDOWS.check(self.window.is_some() == is(Algorithm::FixedWindow), at, problems);
        CALENDARS_HAVE_ZONES.check(self.time_zone.is_none() || is(Algorithm::FixedWindow), at, problems);
        if let Some(zone) = &self.time_zone
            && TimeZone::get(zone).is_err()
        {
            problems.add(&at.field("timeZone"), format!("{zone:?} is no time zone: write a name such as Europe/Berlin or UTC"));
        }
        if let Some(per) = self.per {
            check_not_zero(per, &at.field("per"), problems);
            self.check_exact(per, delay.unwrap_or_default(), at, problems);
        }
    }

    /// A full bucket is counted in the unit in which both a request and a microsecond are whole numbers: a request counts `rate().1`, a
    /// microsecond `rate().0`. It is kept at 2^53 or less, which a double holds exactly, as in Redis.
    /// What comes in while a request is delayed is counted with the burst.
    fn check_exact(&self, per: Duration, delay: Duration, at: &FieldPath, problems: &mut Problems) {
        if self.algorithm == Algorithm::SlidingWindow {
            crate::check::check_at_most(per, LONGEST_WINDOW, &at.field("per"), problems);
            return;
        }
        let (rate, unit) = self.rate(per);
        let burst = self.burst();
        let room = delay.0.as_micros() * u128::from(rate) / u128::from(unit.max(1));
        if (u128::from(burst) + room).saturating_mul(unit.into()) > MAX_LEVEL || u128::from(rate) > MAX_LEVEL {
            let message = format!(
                "{} requests in {per} with a burst of {burst} can't be counted exactly: write a smaller burst or a shorter time, or \
                 rounder numbers",
                self.requests
            );
            problems.add(at, message);
        }
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

    fn refused(limit: &Limit) -> bool {
        let mut problems = Problems::default();
        limit.check(None, &FieldPath::default(), &mut problems);
        !problems.is_empty()
    }

    fn bucket_is_refused(requests: i64, per: Duration, burst: Option<i64>) -> bool {
        refused(&Limit::bucket(requests, per, burst))
    }

    #[test]
    fn rate_is_in_lowest_terms() {
        let rate = |requests, per| Limit::bucket(requests, per, None).rate(per);
        assert_eq!(rate(100, Duration::from_secs(1)), (1, 10_000));
        assert_eq!(rate(3, Duration::from_secs(1)), (3, 1_000_000));
        assert_eq!(rate(1_000_000, Duration::from_secs(86_400)), (1, 86_400));
    }

    #[test]
    fn limits_that_a_double_holds_exactly_are_accepted() {
        for (requests, per) in [(1, 1), (100, 1), (1_000_000_000, 1), (10 << 30, 1), (1_000_000, 86_400), (7, 3600), (99_991, 60)]
        {
            assert!(!bucket_is_refused(requests, Duration::from_secs(per), None), "{requests} in {per} s");
        }
    }

    #[test]
    fn limits_beyond_that_are_refused() {
        assert!(bucket_is_refused(999_999_937, Duration::from_secs(86_400), None));
        assert!(bucket_is_refused(7, Duration::from_secs(86_400), Some(1_000_000_000)));
        assert!(bucket_is_refused(1, Duration::default(), None));
    }

    #[test]
    fn bound_is_exact() {
        let per = Duration::from_secs(3600);
        let most = i64::try_from(MAX_LEVEL / 3_600_000_000).expect("it fits");
        assert!(!bucket_is_refused(7, per, Some(most)) && bucket_is_refused(7, per, Some(most + 1)));
    }

    #[test]
    fn each_algorithm_has_its_fields() {
        use Algorithm::{Concurrency, FixedWindow, SlidingWindow, TokenBucket};
        let second = Some(Duration::from_secs(1));
        let day = Some(CalendarWindow::Day);
        for (algorithm, per, burst, window, zone, right) in [
            (TokenBucket, second, Some(5), None, None, true),
            (TokenBucket, None, None, None, None, false),
            (TokenBucket, second, None, day, None, false),
            (SlidingWindow, second, None, None, None, true),
            (SlidingWindow, second, Some(5), None, None, false),
            (FixedWindow, None, None, day, Some("Europe/Berlin"), true),
            (FixedWindow, None, None, day, Some("Europe/Nowhere"), false),
            (FixedWindow, second, None, day, None, false),
            (FixedWindow, None, None, None, None, false),
            (Concurrency, None, None, None, None, true),
            (Concurrency, second, None, None, None, false),
            (Concurrency, None, None, None, Some("UTC"), false),
        ] {
            let time_zone = zone.map(str::to_owned);
            let limit = Limit { algorithm, requests: 5, per, burst, window, time_zone };
            assert_eq!(!refused(&limit), right, "{limit:?}");
        }
    }
}
