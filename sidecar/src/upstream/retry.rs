//! The section `retry`: whether a request may be sent again, and when.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::Duration,
};

use crds::policy::{Mode, Retry, retry::RetryFailure};
use http::{Method, StatusCode};

use super::standing::Counts;
use crate::error::ForwardError;

/// What one further try takes of a budget.
const TRY: u32 = 100;

/// The section, compiled.
#[derive(Clone, Debug)]
pub(crate) struct Retrying {
    pub(crate) mode: Mode,
    /// `namespace/policy/rule`.
    pub(crate) label: Arc<str>,
    /// Tries in all.
    pub(crate) attempts: u32,
    /// How much of a body is kept.
    pub(crate) max_body: usize,
    /// How long the first try is alone.
    pub(crate) hedge: Option<Duration>,
    failures: Vec<RetryFailure>,
    statuses: Vec<u16>,
    methods: Vec<Method>,
    base: Duration,
    max: Duration,
    percent: u32,
    burst: u32,
}

/// What came of a try, as far as it matters for another.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Outcome<'a> {
    /// An answer.
    Status(StatusCode),
    /// None.
    Error(&'a ForwardError),
}

impl Retrying {
    pub(crate) fn build(label: &Arc<str>, section: &Retry) -> Result<Self, String> {
        let method = |name: &String| Method::from_bytes(name.as_bytes()).map_err(|_| format!("{name} is no method"));
        let count = |number: i32| u32::try_from(number).unwrap_or_default();
        Ok(Self {
            mode: section.mode,
            label: Arc::clone(label),
            attempts: count(section.attempts),
            max_body: usize::try_from(section.max_body.0).unwrap_or(usize::MAX),
            hedge: section.hedge.map(|hedge| hedge.after.0),
            failures: section.failures.clone(),
            statuses: section.statuses.iter().filter_map(|status| u16::try_from(*status).ok()).collect(),
            methods: section.methods.iter().map(method).collect::<Result<_, _>>()?,
            base: section.backoff.base.0,
            max: section.backoff.max.0,
            percent: count(section.budget.percent),
            burst: count(section.budget.burst),
        })
    }

    /// Whether a request may be sent again after this. Before a connection stood nothing was sent, so any method may; else those that are
    /// listed.
    pub(crate) fn wants(&self, method: &Method, outcome: Outcome<'_>) -> bool {
        let listed = || self.methods.contains(method);
        let on = |failure| self.failures.contains(&failure);
        match outcome {
            Outcome::Status(status) => self.statuses.contains(&status.as_u16()) && listed(),
            Outcome::Error(error) if error.is_connect() => on(RetryFailure::ConnectFailure),
            Outcome::Error(ForwardError::Broken(_)) => on(RetryFailure::Broken) && listed(),
            Outcome::Error(ForwardError::ResponseTimeout(_)) => on(RetryFailure::Timeout) && listed(),
            Outcome::Error(_) => false,
        }
    }

    /// Whether a request of this method may be sent again after something of it was sent.
    pub(crate) fn repeats(&self, method: &Method) -> bool {
        self.methods.contains(method)
    }

    /// The pause before a further try, of which `done` came before it: half of it is certain, and a random part of the other half added.
    /// What the upstream asks for holds instead; none if that is too long.
    pub(crate) fn pause(&self, done: u32, asked: Option<Duration>, random: u32) -> Option<Duration> {
        if let Some(asked) = asked {
            return (asked <= self.max).then_some(asked);
        }
        let whole = self.base.saturating_mul(1 << done.saturating_sub(1).min(20)).min(self.max);
        Some(whole / 2 + (whole / 2).mul_f64(f64::from(random) / f64::from(u32::MAX)))
    }
}

/// How many further tries a rule has left, in the pod.
#[derive(Debug, Default)]
pub(crate) struct Budget {
    /// Hundredths of tries that were taken and not brought back.
    spent: AtomicU32,
}

impl Budget {
    /// A request brings its share.
    pub(crate) fn deposit(&self, settings: &Retrying) {
        if self.spent.load(Relaxed) > 0 {
            let _ = self.spent.fetch_update(Relaxed, Relaxed, |spent| Some(spent.saturating_sub(settings.percent)));
        }
    }

    /// Takes a further try, if one is left.
    pub(crate) fn take(&self, settings: &Retrying) -> bool {
        let more = |spent: u32| spent.checked_add(TRY).filter(|spent| *spent <= settings.burst.saturating_mul(TRY));
        self.spent.fetch_update(Relaxed, Relaxed, more).is_ok()
    }
}

impl Counts for Budget {
    fn is_blank(&self) -> bool {
        self.spent.load(Relaxed) == 0
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use proptest::prelude::*;

    use super::*;
    use crate::upstream::UpstreamError;

    fn retrying(json: &str) -> Retrying {
        Retrying::build(&"shop/web/rule".into(), &serde_json::from_str(json).unwrap()).unwrap()
    }

    fn refused() -> ForwardError {
        ForwardError::Connect { address: ([127, 0, 0, 1], 1).into(), source: io::ErrorKind::ConnectionRefused.into() }
    }

    #[test]
    fn only_harmless_requests_go_again_by_default() {
        let by_default = retrying("{}");
        let wants = |method: Method, outcome: Outcome<'_>| by_default.wants(&method, outcome);
        let (refused, broken) = (refused(), ForwardError::Broken(UpstreamError::Closed));
        let late = ForwardError::ResponseTimeout(Duration::from_secs(1));
        for safe in [Method::GET, Method::HEAD, Method::OPTIONS, Method::TRACE] {
            assert!(wants(safe.clone(), Outcome::Error(&broken)) && wants(safe.clone(), Outcome::Error(&late)));
            assert!(
                [502, 503, 504].iter().all(|status| wants(safe.clone(), Outcome::Status(StatusCode::from_u16(*status).unwrap())))
            );
            assert!(
                [200, 404, 429, 500]
                    .iter()
                    .all(|status| !wants(safe.clone(), Outcome::Status(StatusCode::from_u16(*status).unwrap())))
            );
        }
        for other in [Method::POST, Method::PUT, Method::DELETE, Method::PATCH] {
            assert!(wants(other.clone(), Outcome::Error(&refused)), "nothing of it was sent");
            assert!(!wants(other.clone(), Outcome::Error(&broken)) && !wants(other.clone(), Outcome::Error(&late)));
            assert!(!wants(other, Outcome::Status(StatusCode::BAD_GATEWAY)));
        }
        for fault in
            [ForwardError::BodyBroken, ForwardError::BodyIdle, ForwardError::Panic, ForwardError::OwnPort("x".to_owned())]
        {
            assert!(!wants(Method::GET, Outcome::Error(&fault)), "{fault}");
        }
    }

    #[test]
    fn pauses_double_up_to_the_longest_and_vary_by_half() {
        let settings = retrying(r#"{"backoff": {"base": "100ms", "max": "350ms"}}"#);
        let bounds = |done| [0, u32::MAX].map(|random| settings.pause(done, None, random).unwrap().as_millis());
        assert_eq!([bounds(1), bounds(2), bounds(3), bounds(30)], [[50, 100], [100, 200], [175, 350], [175, 350]]);
    }

    #[test]
    fn what_the_upstream_asks_for_holds_or_ends_it() {
        let settings = retrying(r#"{"backoff": {"max": "2s"}}"#);
        assert_eq!(settings.pause(1, Some(Duration::from_secs(2)), 0), Some(Duration::from_secs(2)));
        assert_eq!(settings.pause(1, Some(Duration::from_secs(3)), 0), None);
    }

    proptest! {
        #[test]
        fn budget_is_never_exceeded(percent in 0..=100u32, burst in 1..20u32, events in proptest::collection::vec(any::<bool>(), 0..500)) {
            let settings = retrying(&format!(r#"{{"budget": {{"percent": {percent}, "burst": {burst}}}}}"#));
            let budget = Budget::default();
            let (mut requests, mut tries) = (0, 0);
            for is_request in events {
                if is_request {
                    budget.deposit(&settings);
                    requests += 1;
                } else if budget.take(&settings) {
                    tries += 1;
                }
                prop_assert!(tries * 100 <= burst * 100 + percent * requests, "{tries} tries for {requests} requests");
            }
            // What was spent comes back.
            for _ in 0..burst * 100 {
                budget.deposit(&retrying(r#"{"budget": {"percent": 100}}"#));
            }
            prop_assert_eq!((0..burst + 5).filter(|_| budget.take(&settings)).count(), burst as usize);
        }
    }
}
