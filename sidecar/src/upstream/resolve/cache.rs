//! What is known about names: pure, with time passed in.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

/// Names that are remembered; those that nobody has asked for longest are forgotten first.
const MAX_NAMES: usize = 1024;

/// Bounds of the time for which addresses are used without asking again.
const MIN_TTL: Duration = Duration::from_secs(1);
const MAX_TTL: Duration = Duration::from_secs(3600);

/// How long addresses are used at once after that, at most, while they are renewed.
const RENEWING: Duration = Duration::from_secs(5);

/// How long addresses serve while they can't be renewed (RFC 8767).
const MAX_STALE: Duration = Duration::from_secs(300);

/// How long a name must have been said to be absent before its last addresses are forgotten: a DNS server that has just started may
/// know less than it will.
const MAX_DOUBT: Duration = Duration::from_secs(30);

/// Bounds of the time for which an absent name is not asked for again (RFC 2308).
const MIN_ABSENT: Duration = Duration::from_secs(1);
const MAX_ABSENT: Duration = Duration::from_secs(30);
const UNSAID_ABSENT: Duration = Duration::from_secs(5);

/// How long nobody asks after a failure; doubled with each one that follows.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LAST_PAUSE: Duration = Duration::from_secs(16);

/// What a look-up came to.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Outcome {
    /// Addresses, at least one, and how long they hold.
    Addresses(Arc<[IpAddr]>, Duration),
    /// The name has no address, for so long as the zone says.
    Absent(Option<Duration>),
    /// Nobody can tell.
    Failed(Arc<str>),
}

/// What to do about a name.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Found {
    /// Use these.
    Fresh(Arc<[IpAddr]>),
    /// Use these, and look the name up for those who come later.
    Renewable(Arc<[IpAddr]>),
    /// Look it up; if that takes long or fails, use these.
    Stale(Arc<[IpAddr]>),
    /// Look it up.
    Unknown,
    /// It has no address.
    Absent,
    /// It could not be looked up a moment ago.
    Failed(Arc<str>),
}

/// Names and what is known about them.
#[derive(Debug, Default)]
pub(super) struct Cache {
    names: HashMap<Arc<str>, Known>,
}

#[derive(Debug)]
struct Known {
    used: Instant,
    answer: Option<Answer>,
    failure: Option<Failure>,
}

#[derive(Debug)]
struct Answer {
    addresses: Arc<[IpAddr]>,
    ttl: Duration,
    fresh_until: Instant,
    /// Since when the name is said to be absent.
    doubted: Option<Instant>,
}

#[derive(Debug)]
struct Failure {
    /// None if the name is absent.
    why: Option<Arc<str>>,
    pause: Duration,
    until: Instant,
}

impl Cache {
    /// What is known about a name at `now`.
    pub(super) fn find(&mut self, name: &str, now: Instant) -> Found {
        let Some(known) = self.names.get_mut(name) else { return Found::Unknown };
        known.used = now;
        known.forget(now);
        let paused = known.failure.as_ref().filter(|failure| now < failure.until);
        match (&known.answer, paused) {
            (Some(answer), _) if now < answer.fresh_until => Found::Fresh(Arc::clone(&answer.addresses)),
            (Some(answer), Some(_)) => Found::Fresh(Arc::clone(&answer.addresses)),
            (Some(answer), None) if now < answer.fresh_until + answer.ttl.min(RENEWING) => {
                Found::Renewable(Arc::clone(&answer.addresses))
            }
            (Some(answer), None) => Found::Stale(Arc::clone(&answer.addresses)),
            (None, Some(Failure { why: Some(why), .. })) => Found::Failed(Arc::clone(why)),
            (None, Some(Failure { why: None, .. })) => Found::Absent,
            (None, None) => Found::Unknown,
        }
    }

    /// Notes what a look-up came to at `now`.
    pub(super) fn note(&mut self, name: &Arc<str>, outcome: Outcome, now: Instant) {
        self.make_room(name);
        let known = self.names.entry(Arc::clone(name)).or_insert(Known { used: now, answer: None, failure: None });
        match outcome {
            Outcome::Addresses(addresses, ttl) => {
                let ttl = ttl.clamp(MIN_TTL, MAX_TTL);
                known.answer = Some(Answer { addresses, ttl, fresh_until: now + ttl, doubted: None });
                known.failure = None;
            }
            Outcome::Absent(ttl) => {
                let pause = ttl.unwrap_or(UNSAID_ABSENT).clamp(MIN_ABSENT, MAX_ABSENT);
                // While it is doubted, it is asked for often.
                let pause = if known.answer.is_some() { MIN_ABSENT } else { pause };
                if let Some(answer) = &mut known.answer {
                    answer.doubted.get_or_insert(now);
                }
                known.failure = Some(Failure { why: None, pause, until: now + pause });
            }
            Outcome::Failed(why) => {
                let last = known.failure.as_ref().filter(|failure| failure.why.is_some());
                let pause = last.map_or(FIRST_PAUSE, |failure| (failure.pause * 2).min(LAST_PAUSE));
                known.failure = Some(Failure { why: Some(why), pause, until: now + pause });
            }
        }
    }

    fn make_room(&mut self, name: &Arc<str>) {
        if self.names.len() >= MAX_NAMES && !self.names.contains_key(name) {
            let oldest = self.names.iter().min_by_key(|(_, known)| known.used).map(|(name, _)| Arc::clone(name));
            oldest.and_then(|oldest| self.names.remove(&oldest));
        }
    }
}

impl Known {
    /// Forgets addresses that are too old, or of a name that is absent for good.
    fn forget(&mut self, now: Instant) {
        let gone = |answer: &Answer| {
            now >= answer.fresh_until + MAX_STALE || answer.doubted.is_some_and(|since| now >= since + MAX_DOUBT)
        };
        if self.answer.as_ref().is_some_and(gone) {
            self.answer = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn addresses(last: u8) -> Arc<[IpAddr]> {
        [IpAddr::from([10, 0, 0, last])].into()
    }

    fn good(last: u8, ttl: u64) -> Outcome {
        Outcome::Addresses(addresses(last), Duration::from_secs(ttl))
    }

    fn broken() -> Outcome {
        Outcome::Failed("no answer".into())
    }

    /// Plays what look-ups came to at seconds, and tells what is found at others.
    fn played(noted: &[(u64, Outcome)], asked: u64) -> Found {
        let (mut cache, start, name) = (Cache::default(), Instant::now(), Arc::from("a.example"));
        for (at, outcome) in noted {
            cache.find(&name, start + SECOND * u32::try_from(*at).unwrap());
            cache.note(&name, outcome.clone(), start + SECOND * u32::try_from(*at).unwrap());
        }
        cache.find("a.example", start + SECOND * u32::try_from(asked).unwrap())
    }

    #[test]
    fn addresses_hold_for_their_time_and_are_renewed_after_it() {
        assert_eq!(played(&[], 0), Found::Unknown);
        assert_eq!(played(&[(0, good(1, 10))], 9), Found::Fresh(addresses(1)));
        assert_eq!(played(&[(0, good(1, 10))], 10), Found::Renewable(addresses(1)));
        assert_eq!(played(&[(0, good(1, 10))], 15), Found::Stale(addresses(1)));
        assert_eq!(played(&[(0, good(1, 10))], 310), Found::Unknown);
        assert_eq!(played(&[(0, good(1, 10)), (12, good(2, 10))], 13), Found::Fresh(addresses(2)));
    }

    #[test]
    fn times_of_life_are_held_within_bounds() {
        assert_eq!(played(&[(0, good(1, 0))], 0), Found::Fresh(addresses(1)));
        assert_eq!(played(&[(0, good(1, 0))], 1), Found::Renewable(addresses(1)));
        assert_eq!(played(&[(0, good(1, 999_999))], 3600), Found::Renewable(addresses(1)));
    }

    #[test]
    fn last_addresses_serve_while_nobody_answers() {
        let noted = [(0, good(1, 10)), (20, broken()), (100, broken())];
        assert_eq!(played(&noted[..2], 20), Found::Fresh(addresses(1)), "nobody asks again at once");
        assert_eq!(played(&noted[..2], 21), Found::Stale(addresses(1)));
        assert_eq!(played(&noted, 309), Found::Stale(addresses(1)));
        assert_eq!(played(&noted, 310), Found::Unknown);
    }

    #[test]
    fn absence_ends_addresses_only_if_it_lasts() {
        let noted = [(0, good(1, 10)), (12, Outcome::Absent(Some(SECOND * 30)))];
        assert_eq!(played(&noted, 12), Found::Fresh(addresses(1)));
        assert_eq!(played(&noted, 13), Found::Renewable(addresses(1)));
        assert_eq!(played(&noted, 16), Found::Stale(addresses(1)));
        assert_eq!(played(&noted, 42), Found::Unknown);
        let again = [noted[0].clone(), noted[1].clone(), (42, Outcome::Absent(Some(SECOND * 30)))];
        assert_eq!(played(&again, 43), Found::Absent);
    }

    #[test]
    fn absent_and_broken_names_are_not_asked_for_again_at_once() {
        assert_eq!(played(&[(0, Outcome::Absent(Some(SECOND * 10)))], 9), Found::Absent);
        assert_eq!(played(&[(0, Outcome::Absent(Some(SECOND * 10)))], 10), Found::Unknown);
        assert_eq!(played(&[(0, Outcome::Absent(None))], 4), Found::Absent);
        assert_eq!(played(&[(0, Outcome::Absent(Some(SECOND * 3600)))], 30), Found::Unknown);
        assert_eq!(played(&[(0, broken())], 0), Found::Failed("no answer".into()));
        assert_eq!(played(&[(0, broken())], 1), Found::Unknown);
        assert_eq!(played(&[(0, broken()), (1, broken())], 2), Found::Failed("no answer".into()), "the pause doubles");
    }

    #[test]
    fn names_beyond_the_bound_displace_the_one_that_was_used_longest_ago() {
        let (mut cache, start) = (Cache::default(), Instant::now());
        let name = |n: usize| Arc::from(format!("{n}.example"));
        for n in 0..MAX_NAMES {
            cache.note(&name(n), good(1, 3600), start + SECOND);
        }
        for n in (0..MAX_NAMES).filter(|n| *n != 7) {
            cache.find(&name(n), start + SECOND * 2);
        }
        cache.note(&name(MAX_NAMES), good(1, 3600), start + SECOND * 3);
        assert_eq!(cache.names.len(), MAX_NAMES);
        assert_eq!(cache.find(&name(7), start + SECOND * 3), Found::Unknown);
        assert_eq!(cache.find(&name(8), start + SECOND * 3), Found::Fresh(addresses(1)));
    }
}
