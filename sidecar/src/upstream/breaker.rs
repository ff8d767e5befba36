//! The section `circuitBreaker`: an upstream that fails is left alone for a while, then tried. Counts are atomics that all workers of the
//! pod share; time is passed in.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use crds::policy::{CircuitBreaker, Mode};

use super::{
    Verdict,
    standing::{Counts, Millis},
};

/// The section, compiled.
#[derive(Clone, Debug)]
pub(crate) struct Breaking {
    pub(crate) mode: Mode,
    /// `namespace/policy/rule`.
    pub(crate) label: Arc<str>,
    /// Failures in a row that open it.
    row: Option<u32>,
    rate: Option<Rate>,
    open_for: u64,
    probes: u32,
}

#[derive(Clone, Copy, Debug)]
struct Rate {
    percent: u64,
    window: u64,
    min: u32,
}

impl Breaking {
    pub(crate) fn build(label: &Arc<str>, section: &CircuitBreaker) -> Self {
        let count = |number: i32| u32::try_from(number).unwrap_or(1);
        let rate = section.failure_rate.map(|rate| Rate {
            percent: u64::from(count(rate.percent)),
            window: millis(rate.window.0).max(1),
            min: count(rate.min_requests),
        });
        Self {
            mode: section.mode,
            label: Arc::clone(label),
            row: section.consecutive_failures.map(count),
            rate,
            open_for: millis(section.open_for.0),
            probes: count(section.probes),
        }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX / 2)
}

/// What is counted of one upstream under one rule.
#[derive(Debug, Default)]
pub(crate) struct Breaker {
    /// When it opened for the last time plus `openFor`; 0 while it is closed.
    open_until: AtomicU64,
    /// Tries that are under way although it has been open.
    probing: AtomicU32,
    /// When the last of them began.
    probed: AtomicU64,
    /// Failures in a row.
    row: AtomicU32,
    /// Number of the window that is counted in, and what was counted.
    window: AtomicU64,
    tries: AtomicU32,
    failures: AtomicU32,
}

/// Whether a try may begin.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Answer {
    /// As usual.
    Closed,
    /// As one of the few that decide; by the time until which it was open.
    Probe(u64),
    /// Not now, but perhaps after that time.
    Open(Duration),
}

/// What a try changed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Change {
    Opened,
    Closed,
}

impl Breaker {
    /// Whether a try may begin at `now`. What it came to must be told by [`Breaker::note`].
    pub(crate) fn ask(&self, settings: &Breaking, now: Millis) -> Answer {
        let until = self.open_until.load(Relaxed);
        if until == 0 {
            return Answer::Closed;
        }
        if now.0 < until {
            return Answer::Open(Duration::from_millis(until - now.0));
        }
        let one_more = |probing| (probing < settings.probes).then_some(probing + 1);
        if self.probing.fetch_update(Relaxed, Relaxed, one_more).is_ok() {
            self.probed.store(now.0, Relaxed);
            return Answer::Probe(until);
        }
        if self.outlasts(settings, now) {
            self.probing.fetch_add(1, Relaxed);
            return Answer::Probe(until);
        }
        Answer::Open(Duration::from_secs(1))
    }

    /// Whether the tries that are to decide take so long that another may begin: one that never ends, such as an upload that trickles,
    /// must not keep it open for ever.
    fn outlasts(&self, settings: &Breaking, now: Millis) -> bool {
        let last = self.probed.load(Relaxed);
        now.0 >= last.saturating_add(settings.open_for) && self.probed.compare_exchange(last, now.0, Relaxed, Relaxed).is_ok()
    }

    /// Notes what a try came to.
    pub(crate) fn note(&self, settings: &Breaking, asked: Answer, verdict: Verdict, now: Millis) -> Option<Change> {
        match (asked, verdict) {
            (Answer::Open(_), _) | (Answer::Closed, Verdict::Neutral) => None,
            (Answer::Closed, _) => self.count(settings, verdict == Verdict::Bad, now),
            (Answer::Probe(of), Verdict::Neutral) => {
                if self.open_until.load(Relaxed) == of {
                    let _ = self.probing.fetch_update(Relaxed, Relaxed, |probing| probing.checked_sub(1));
                }
                None
            }
            (Answer::Probe(of), Verdict::Bad) => self.switch(of, now.0.max(1) + settings.open_for, Change::Opened),
            (Answer::Probe(of), Verdict::Good) => self.switch(of, 0, Change::Closed),
        }
    }

    /// Counts a try while it is closed.
    fn count(&self, settings: &Breaking, failed: bool, now: Millis) -> Option<Change> {
        let row = if failed { self.row.fetch_add(1, Relaxed) + 1 } else { 0 };
        if row == 0 && self.row.load(Relaxed) != 0 {
            self.row.store(0, Relaxed);
        }
        let in_a_row = settings.row.is_some_and(|most| row >= most);
        let too_many = settings.rate.is_some_and(|rate| self.exceeds(rate, failed, now));
        if !failed || !(in_a_row || too_many) {
            return None;
        }
        self.switch(0, now.0.max(1) + settings.open_for, Change::Opened)
    }

    /// Counts in the window of `now`, and tells whether too many of its tries have failed.
    fn exceeds(&self, rate: Rate, failed: bool, now: Millis) -> bool {
        let window = now.0 / rate.window + 1;
        if self.window.swap(window, Relaxed) != window {
            self.tries.store(0, Relaxed);
            self.failures.store(0, Relaxed);
        }
        let tries = self.tries.fetch_add(1, Relaxed) + 1;
        let failures = self.failures.fetch_add(failed.into(), Relaxed) + u32::from(failed);
        tries >= rate.min && u64::from(failures) * 100 >= rate.percent * u64::from(tries)
    }

    /// Opens or closes it, unless another try has done so meanwhile. All counts begin anew.
    fn switch(&self, from: u64, to: u64, change: Change) -> Option<Change> {
        self.open_until.compare_exchange(from, to, Relaxed, Relaxed).ok()?;
        self.probing.store(0, Relaxed);
        self.row.store(0, Relaxed);
        self.window.store(0, Relaxed);
        Some(change)
    }
}

impl Counts for Breaker {
    fn is_blank(&self) -> bool {
        [&self.row, &self.failures].into_iter().all(|count| count.load(Relaxed) == 0) && self.open_until.load(Relaxed) == 0
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn breaking(json: &str) -> Breaking {
        Breaking::build(&"shop/web/rule".into(), &serde_json::from_str(json).unwrap())
    }

    /// Plays tries one after the other; for each the second and whether it fails. Tells which went through.
    fn played(settings: &Breaking, tries: &[(u64, bool)]) -> Vec<bool> {
        let breaker = Breaker::default();
        let through = |&(second, fails): &(u64, bool)| {
            let now = Millis(second * 1000);
            let asked = breaker.ask(settings, now);
            breaker.note(settings, asked, if fails { Verdict::Bad } else { Verdict::Good }, now);
            !matches!(asked, Answer::Open(_))
        };
        tries.iter().map(through).collect()
    }

    #[test]
    fn failures_in_a_row_open_it_and_a_probe_closes_it() {
        let settings = breaking(r#"{"consecutiveFailures": 3, "openFor": "5s"}"#);
        let tries =
            [(0, true), (0, true), (0, false), (1, true), (1, true), (1, true), (2, false), (5, false), (6, false), (6, true)];
        assert_eq!(played(&settings, &tries), [true, true, true, true, true, true, false, false, true, true]);
    }

    #[test]
    fn failed_probe_opens_it_again() {
        let settings = breaking(r#"{"consecutiveFailures": 1, "openFor": "5s"}"#);
        let tries = [(1, true), (6, true), (7, false), (10, false), (11, false), (11, false)];
        assert_eq!(played(&settings, &tries), [true, true, false, false, true, true]);
    }

    #[test]
    fn share_of_failures_counts_from_enough_tries_on_and_in_its_window() {
        let settings = breaking(r#"{"failureRate": {"percent": 50, "window": "10s", "minRequests": 4}}"#);
        let half = [(0, true), (0, false), (0, false), (0, true), (1, false)];
        assert_eq!(played(&settings, &half), [true, true, true, true, false]);
        let too_few = [(0, true), (0, true), (0, true), (10, true), (11, false)];
        assert_eq!(played(&settings, &too_few), [true; 5]);
    }

    #[test]
    fn probes_are_bounded_and_an_undecided_one_makes_room() {
        let settings = breaking(r#"{"consecutiveFailures": 1, "openFor": "1s", "probes": 2}"#);
        let (breaker, later) = (Breaker::default(), Millis(2000));
        let opened = breaker.note(&settings, breaker.ask(&settings, Millis(0)), Verdict::Bad, Millis(0));
        assert_eq!(opened, Some(Change::Opened));
        assert_eq!(breaker.ask(&settings, Millis(400)), Answer::Open(Duration::from_millis(601)));
        let first = breaker.ask(&settings, later);
        assert!(matches!(first, Answer::Probe(_)) && matches!(breaker.ask(&settings, later), Answer::Probe(_)));
        assert_eq!(breaker.ask(&settings, later), Answer::Open(Duration::from_secs(1)));
        assert_eq!(breaker.note(&settings, first, Verdict::Neutral, later), None);
        let second = breaker.ask(&settings, later);
        assert!(matches!(second, Answer::Probe(_)));
        assert_eq!(breaker.note(&settings, second, Verdict::Good, later), Some(Change::Closed));
        assert_eq!(breaker.note(&settings, first, Verdict::Bad, later), None, "decided already");
        assert_eq!(breaker.ask(&settings, later), Answer::Closed);
    }

    #[test]
    fn probe_that_never_ends_makes_room_after_a_while() {
        let settings = breaking(r#"{"consecutiveFailures": 1, "openFor": "5s"}"#);
        let breaker = Breaker::default();
        breaker.note(&settings, breaker.ask(&settings, Millis(0)), Verdict::Bad, Millis(0));
        assert!(matches!(breaker.ask(&settings, Millis(6000)), Answer::Probe(_)), "it trickles");
        assert!(matches!(breaker.ask(&settings, Millis(10_999)), Answer::Open(_)));
        let second = breaker.ask(&settings, Millis(11_000));
        assert!(matches!(second, Answer::Probe(_)));
        assert!(matches!(breaker.ask(&settings, Millis(11_000)), Answer::Open(_)), "one at a time");
        assert_eq!(breaker.note(&settings, second, Verdict::Good, Millis(11_001)), Some(Change::Closed));
    }

    #[test]
    fn late_failures_do_not_open_it_longer() {
        let settings = breaking(r#"{"consecutiveFailures": 1, "openFor": "1s"}"#);
        let breaker = Breaker::default();
        let (one, two) = (breaker.ask(&settings, Millis(0)), breaker.ask(&settings, Millis(0)));
        assert_eq!(breaker.note(&settings, one, Verdict::Bad, Millis(0)), Some(Change::Opened));
        assert_eq!(breaker.note(&settings, two, Verdict::Bad, Millis(900)), None);
        assert!(matches!(breaker.ask(&settings, Millis(1001)), Answer::Probe(_)));
    }

    proptest! {
        /// Whatever happened before, an upstream that is well again is asked again soon, and stays so.
        #[test]
        fn well_upstream_is_always_asked_again(tries in proptest::collection::vec((0..60u64, any::<bool>()), 0..100)) {
            let settings = breaking(
                r#"{"consecutiveFailures": 3, "failureRate": {"percent": 50, "minRequests": 5}, "openFor": "5s"}"#,
            );
            let mut tries = tries;
            tries.sort_by_key(|(second, _)| *second);
            tries.extend((66..200).map(|second| (second, false)));
            let through = played(&settings, &tries);
            prop_assert!(through[through.len() - 134..].iter().all(|through| *through));
        }
    }
}
