//! What the cache did with requests.

use std::{collections::BTreeMap, fmt};

use http::Uri;
use serde::Serialize;

use super::client::Answered;

/// What came of a request, by `Cache-Status` (RFC 9211).
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) enum Outcome {
    /// It is stored now.
    Stored,
    /// Another request stores it.
    Collapsed,
    /// It was stored already.
    Hit,
    /// What was stored is right still.
    Revalidated,
    /// It isn't stored; why.
    NotStored(String),
    /// No rule with a cache holds for it, or none that tells.
    NoCache,
    /// There was no answer, or one that is an error.
    Failed,
}

/// Answers of one outcome.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(super) struct Sum {
    pub(super) requests: u64,
    /// Bytes of their bodies.
    pub(super) bytes: u64,
}

/// A request that failed.
#[derive(Debug, Serialize)]
pub(super) struct Failed {
    pub(super) url: String,
    pub(super) why: String,
}

/// What came of all requests.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub(super) results: BTreeMap<Outcome, Sum>,
    pub(super) failures: Vec<Failed>,
}

impl Outcome {
    /// What a field says; that of the proxy is the last one of its name.
    fn of(field: Option<&str>) -> Self {
        let ours = field.and_then(|field| field.rsplit(',').map(str::trim).find(|member| member.starts_with("fetchr")));
        let Some(ours) = ours else { return Self::NoCache };
        let parameters: Vec<&str> = ours.split(';').skip(1).map(str::trim).collect();
        let value = |name: &str| parameters.iter().find_map(|parameter| parameter.strip_prefix(name)?.strip_prefix('='));
        match (value("fwd"), value("detail")) {
            _ if parameters.contains(&"hit") => Self::Hit,
            _ if parameters.contains(&"stored") => Self::Stored,
            _ if parameters.contains(&"collapsed") => Self::Collapsed,
            _ if value("fwd-status") == Some("304") => Self::Revalidated,
            (_, Some(detail)) => Self::NotStored(detail.to_owned()),
            (Some(forward), None) => Self::NotStored(forward.to_owned()),
            (None, None) => Self::NoCache,
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotStored(why) => write!(f, "NotStored: {why}"),
            other => fmt::Debug::fmt(other, f),
        }
    }
}

impl Tally {
    /// Counts a request.
    pub(super) fn add(&mut self, url: &Uri, answered: Result<Answered, String>) {
        let (outcome, bytes, why) = match answered {
            Ok(Answered { status, bytes, .. }) if status >= 500 => (Outcome::Failed, bytes, Some(format!("status {status}"))),
            Ok(Answered { bytes, cache_status, .. }) => (Outcome::of(cache_status.as_deref()), bytes, None),
            Err(why) => (Outcome::Failed, 0, Some(why)),
        };
        let sum = self.results.entry(outcome).or_default();
        sum.requests += 1;
        sum.bytes += bytes;
        self.failures.extend(why.map(|why| Failed { url: url.to_string(), why }));
    }

    /// Both together.
    pub(super) fn and(mut self, other: Self) -> Self {
        for (outcome, sum) in other.results {
            let both = self.results.entry(outcome).or_default();
            both.requests += sum.requests;
            both.bytes += sum.bytes;
        }
        self.failures.extend(other.failures);
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outcomes_are_what_the_field_says() {
        let not_stored = |why: &str| Outcome::NotStored(why.to_owned());
        for (field, expected) in [
            (Some("fetchr; hit; ttl=42"), Outcome::Hit),
            (Some("fetchr; hit; ttl=-3; detail=StaleWhileRevalidate"), Outcome::Hit),
            (Some("origin; hit, fetchr; fwd=uri-miss; stored"), Outcome::Stored),
            (Some("fetchr; fwd=uri-miss; collapsed; ttl=60"), Outcome::Collapsed),
            (Some("fetchr; fwd=stale; fwd-status=304; detail=Expired"), Outcome::Revalidated),
            (Some("fetchr; fwd=uri-miss; detail=NoStore"), not_stored("NoStore")),
            (Some("fetchr; fwd=uri-miss"), not_stored("uri-miss")),
            (Some("other; hit"), Outcome::NoCache),
            (None, Outcome::NoCache),
        ] {
            assert_eq!(Outcome::of(field), expected, "{field:?}");
        }
    }

    #[test]
    fn tallies_add_up_and_name_what_failed() {
        let url: Uri = "http://a/b".parse().unwrap();
        let answered = |status, field: &str| Ok(Answered { status, bytes: 5, cache_status: Some(field.to_owned()) });
        let (mut one, mut other) = (Tally::default(), Tally::default());
        one.add(&url, answered(200, "fetchr; hit"));
        one.add(&url, answered(503, "fetchr; fwd=uri-miss"));
        other.add(&url, answered(200, "fetchr; hit"));
        other.add(&url, Err("refused".to_owned()));
        let both = one.and(other);
        let counts: Vec<_> = both.results.iter().map(|(outcome, sum)| (outcome.to_string(), sum.requests, sum.bytes)).collect();
        assert_eq!(counts, [("Hit".to_owned(), 2, 10), ("Failed".to_owned(), 2, 5)]);
        let why: Vec<_> = both.failures.iter().map(|failed| failed.why.as_str()).collect();
        assert_eq!(why, ["status 503", "refused"]);
    }
}
