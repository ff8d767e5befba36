//! What the limits say to a request, and to its client.

use std::{fmt::Write as _, sync::Arc, time::Duration};

use crds::policy::rate_limits::LimitFields;
use http::{HeaderMap, HeaderName, HeaderValue, header::RETRY_AFTER};
use smallvec::SmallVec;

use super::{Limit, gcra::Level};

const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");
const RATE_LIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");

/// What the limits say to a request, and to its client.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    pub(super) told: SmallVec<[Told; 2]>,
    /// Which of `told` denied.
    pub(super) denied: Option<usize>,
    /// The limit that could not be decided, and whose policy allows nothing then.
    pub(super) undecided: Option<Arc<Limit>>,
}

/// Why limits let a request go no further.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Stops<'a> {
    Denied,
    /// Name of the limit that nobody could decide.
    Undecided(&'a str),
}

/// A limit that was charged, and what it has left.
#[derive(Clone, Debug)]
pub(super) struct Told {
    pub(super) limit: Arc<Limit>,
    pub(super) level: Level,
}

/// The limit that denied a request.
#[derive(Clone, Copy, Debug)]
pub struct Denied<'a> {
    /// `namespace/name` of its policy.
    pub policy: &'a str,
    /// Its rule.
    pub rule: &'a str,
    /// Its name.
    pub limit: &'a str,
    /// When a next try may pass.
    pub retry_after: Duration,
}

impl Outcome {
    /// The limit that denied, if one did: the request is to be answered with 429.
    pub fn denied(&self) -> Option<Denied<'_>> {
        let Told { limit, level } = self.told.get(self.denied?)?;
        Some(Denied { policy: &limit.policy, rule: &limit.rule, limit: &limit.name, retry_after: level.next })
    }

    /// Whether the request goes no further, and why.
    pub(crate) fn stops(&self) -> Option<Stops<'_>> {
        match &self.undecided {
            Some(limit) => Some(Stops::Undecided(&limit.name)),
            None => self.denied.map(|_| Stops::Denied),
        }
    }

    /// Writes `RateLimit` and `RateLimit-Policy` (draft-ietf-httpapi-ratelimit-headers-11), and `Retry-After` (RFC 9110 10.2.3) if
    /// the request was denied.
    ///
    /// `q` is the burst and `w` the seconds in which an empty bucket is full again; `r` are the requests that may come at once and
    /// `t` the seconds until there is one more. The tightest limit comes first. All seconds are rounded up.
    pub fn write(&self, headers: &mut HeaderMap) {
        if let Some(denied) = self.denied() {
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds(denied.retry_after).max(1)));
        }
        let mut told: SmallVec<[&Told; 2]> = self.told.iter().filter(|told| told.limit.fields == LimitFields::Draft).collect();
        if told.is_empty() {
            return;
        }
        told.sort_by_key(|told| told.level.remaining);
        let (mut state, mut policy) = (String::new(), String::new());
        for (at, Told { limit, level }) in told.into_iter().enumerate() {
            let comma = if at > 0 { ", " } else { "" };
            // The name is of `[a-z0-9-]`, so it needs no escapes in a structured string. Writing to a String can't fail.
            let _ = write!(state, "{comma}\"{}\";r={};t={}", limit.name, level.remaining, seconds(level.next));
            let _ = write!(policy, "{comma}\"{}\";q={};w={}", limit.name, limit.gcra.burst(), seconds(limit.gcra.window()));
        }
        for (name, value) in [(RATE_LIMIT, state), (RATE_LIMIT_POLICY, policy)] {
            if let Ok(value) = HeaderValue::try_from(value) {
                headers.append(name, value);
            }
        }
    }
}

fn seconds(duration: Duration) -> u64 {
    duration.as_secs() + u64::from(duration.subsec_nanos() > 0)
}
