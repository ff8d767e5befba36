//! Counts that an upstream wants nothing of for a while, by its own word.

use std::{
    collections::HashMap,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use http::{HeaderMap, StatusCode, header::RETRY_AFTER};
use sfv::{BareItem, List, ListEntry, Parser};

use super::shared::Micros;

/// Pauses that are remembered at most. Beyond them the upstream goes on denying by itself.
const CAPACITY: usize = 10_000;
/// The longest that an upstream is taken at its word.
const LONGEST: Duration = Duration::from_secs(3600);
const RATE_LIMIT: &str = "ratelimit";

/// By the keys of counts: when each may be asked for again.
#[derive(Debug, Default)]
pub(super) struct Pauses {
    until: Mutex<HashMap<u64, Micros>>,
    /// How many there are, so that nobody waits for the lock while there is none.
    some: AtomicUsize,
}

impl Pauses {
    /// How long a count is still paused.
    pub(super) fn left(&self, key: u64, now: Micros) -> Option<Duration> {
        if self.some.load(Ordering::Relaxed) == 0 {
            return None;
        }
        let mut all = self.lock();
        let until = *all.get(&key)?;
        if until > now {
            return Some(Duration::from_micros(until - now));
        }
        all.remove(&key);
        self.some.store(all.len(), Ordering::Relaxed);
        None
    }

    /// From now on nothing of a count is wanted for so long.
    pub(super) fn begin(&self, key: u64, time: Duration, now: Micros) {
        let mut all = self.lock();
        if all.len() >= CAPACITY {
            all.retain(|_, until| *until > now);
        }
        if all.len() < CAPACITY || all.contains_key(&key) {
            let time = Micros::try_from(time.min(LONGEST).as_micros()).unwrap_or(Micros::MAX);
            let until = now.saturating_add(time);
            let known = all.entry(key).or_insert(until);
            *known = (*known).max(until);
        }
        self.some.store(all.len(), Ordering::Relaxed);
    }

    /// A count is not paused any more; whether it was.
    pub(super) fn end(&self, key: u64) -> bool {
        let mut all = self.lock();
        let was = all.remove(&key).is_some();
        self.some.store(all.len(), Ordering::Relaxed);
        was
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Micros>> {
        self.until.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How long an upstream wants no further requests, by its answer: `Retry-After` of a 429 or 503 (RFC 9110, section 10.2.3), or a `RateLimit`
/// of which nothing remains.
pub(super) fn asked(status: StatusCode, headers: &HeaderMap) -> Option<Duration> {
    let is_refusal = matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE);
    let retry_after = if is_refusal { headers.get(RETRY_AFTER).and_then(|value| after(value.to_str().ok()?)) } else { None };
    let used_up = headers.get(RATE_LIMIT).and_then(|value| used_up(value.to_str().ok()?));
    retry_after.max(used_up).filter(|time| !time.is_zero())
}

fn after(value: &str) -> Option<Duration> {
    match value.trim().parse() {
        Ok(seconds) => Some(Duration::from_secs(seconds)),
        Err(_) => httpdate::parse_http_date(value).ok()?.duration_since(std::time::SystemTime::now()).ok(),
    }
}

/// The longest `t` of the limits of which `r` is nothing.
fn used_up(value: &str) -> Option<Duration> {
    let list: List = Parser::new(value).parse().ok()?;
    let number = |parameters: &sfv::Parameters, name| match parameters.get(name) {
        Some(BareItem::Integer(number)) => u64::try_from(i64::from(*number)).ok(),
        _ => None,
    };
    let items = list.iter().filter_map(|entry| if let ListEntry::Item(item) = entry { Some(&item.params) } else { None });
    let spent = items.filter(|parameters| number(parameters, "r") == Some(0));
    spent.filter_map(|parameters| number(parameters, "t")).max().map(Duration::from_secs)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asks(status: u16, fields: &[(&'static str, &str)]) -> Option<u64> {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, value.parse().unwrap());
        }
        asked(StatusCode::from_u16(status).unwrap(), &headers).map(|time| time.as_secs())
    }

    #[test]
    fn upstream_says_how_long_it_wants_nothing() {
        for (status, fields, seconds) in [
            (429, &[("retry-after", "30")][..], Some(30)),
            (503, &[("retry-after", "7")], Some(7)),
            (301, &[("retry-after", "7")], None),
            (429, &[("retry-after", "Wed, 21 Oct 2015 07:28:00 GMT")], None),
            (429, &[("retry-after", "soon")], None),
            (429, &[], None),
            (200, &[("ratelimit", "\"a\";r=0;t=12, \"b\";r=3;t=90")], Some(12)),
            (200, &[("ratelimit", "\"a\";r=1;t=12")], None),
            (200, &[("ratelimit", "r=0")], None),
            (429, &[("ratelimit", "\"a\";r=0;t=12"), ("retry-after", "60")], Some(60)),
        ] {
            assert_eq!(asks(status, fields), seconds, "{status} {fields:?}");
        }
    }

    #[test]
    fn pause_ends_and_is_bounded() {
        let pauses = Pauses::default();
        assert_eq!(pauses.left(1, 5), None);
        pauses.begin(1, Duration::from_micros(10), 5);
        pauses.begin(1, Duration::from_micros(3), 6);
        assert_eq!(pauses.left(1, 6), Some(Duration::from_micros(9)));
        assert_eq!(pauses.left(2, 6), None);
        assert_eq!(pauses.left(1, 15), None);
        pauses.begin(1, Duration::MAX, 0);
        assert_eq!(pauses.left(1, 0), Some(LONGEST));
        for key in 0..2 * CAPACITY as u64 {
            pauses.begin(key, Duration::from_secs(1), 0);
        }
        assert_eq!(pauses.lock().len(), CAPACITY);
    }
}
