//! What the limits say to a request, and to its client.

use std::{sync::Arc, time::Duration};

use crds::policy::rate_limits::LimitFields;
use http::{HeaderMap, HeaderName, HeaderValue, header::RETRY_AFTER};
use smallvec::SmallVec;

use super::{
    Body, Limit, Which,
    meter::Meter,
    settle::Settlement,
    shared::{Rule, Verdict},
};

const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");
const RATE_LIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
const X_LIMIT: HeaderName = HeaderName::from_static("x-ratelimit-limit");
const X_REMAINING: HeaderName = HeaderName::from_static("x-ratelimit-remaining");
const X_RESET: HeaderName = HeaderName::from_static("x-ratelimit-reset");

/// What most numbers of a limit take in a field, with their names.
const NUMBERS: usize = 32;

/// When a slot may be free again: nobody knows, so soon.
const SOON: Duration = Duration::from_secs(1);

/// What the limits say to a request, and to its client.
#[derive(Debug, Default)]
pub struct Outcome {
    pub(super) told: SmallVec<[Told; 2]>,
    /// Which of `told` denied.
    pub(super) denied: Option<usize>,
    /// When all that denied may allow it; None if one of them never will.
    pub(super) retry_after: Option<Duration>,
    /// The limit that could not be decided, and whose policy allows nothing then.
    pub(super) undecided: Option<Arc<Limit>>,
    /// How long it waits before it is forwarded.
    pub(super) wait: Duration,
    /// What follows when the request ends.
    pub(super) settlement: Option<Box<Settlement>>,
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
    /// Which of its numbers hold.
    which: Which,
    /// In which all of them come again.
    window: Option<Duration>,
    remaining: u64,
    /// Until there is one more; zero when all are there.
    next: Duration,
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
    /// When a next try may pass; None if it never will.
    pub retry_after: Option<Duration>,
    /// What the answer says, if that is the policy's choice.
    pub(crate) body: Option<&'a Body>,
}

impl Told {
    /// How a limit stands after a verdict by this rule.
    pub(super) fn new(limit: &Arc<Limit>, which: Which, rule: &Rule, verdict: &Verdict) -> Self {
        let mut told = Self::paused(limit, which, rule, Duration::ZERO);
        told.stands(rule, verdict);
        told
    }

    /// A limit that has nothing until then.
    pub(super) fn paused(limit: &Arc<Limit>, which: Which, rule: &Rule, left: Duration) -> Self {
        let window = limit.meter(which).window(rule);
        Self { limit: Arc::clone(limit), which, window, remaining: 0, next: left }
    }

    /// The limit stands so by now.
    pub(super) fn stands(&mut self, rule: &Rule, verdict: &Verdict) {
        (self.remaining, _) = self.limit.meter(self.which).delay(rule, verdict.remaining, verdict.reset);
        self.next = next(rule, verdict);
    }

    /// Requests that may come at once.
    pub(super) fn remaining(&self) -> u64 {
        self.remaining
    }

    /// Until there is one more.
    pub(super) fn next(&self) -> Duration {
        self.next
    }

    /// Requests that may come at once, in a window, or be under way.
    pub(super) fn quota(&self) -> u64 {
        self.limit.meter(self.which).quota()
    }

    /// The part that is used up.
    pub(super) fn used(&self) -> f64 {
        1.0 - self.remaining as f64 / self.quota() as f64
    }
}

/// Until there is one more.
fn next(rule: &Rule, verdict: &Verdict) -> Duration {
    match (rule, verdict.retry) {
        (_, Some(retry)) if !verdict.allowed => retry,
        (Rule::Bucket(bucket), _) => {
            // All but the first of those that lack come after it.
            let lacking = bucket.burst().saturating_sub(verdict.remaining);
            verdict.reset.saturating_sub(bucket.time_of(lacking.saturating_sub(1)))
        }
        _ => verdict.reset,
    }
}

/// When a denied request may pass; None if it never will.
pub(super) fn retry_after(rule: &Rule, verdict: &Verdict) -> Option<Duration> {
    match rule {
        Rule::Slots(_) => Some(SOON),
        _ => verdict.retry,
    }
}

impl Outcome {
    /// The limit that denied, if one did: the request is to be answered with 429.
    pub fn denied(&self) -> Option<Denied<'_>> {
        let Told { limit, .. } = self.told.get(self.denied?)?;
        let (policy, rule, name) = (&limit.policy, &limit.rule, &limit.name);
        Some(Denied { policy, rule, limit: name, retry_after: self.retry_after, body: limit.body.as_ref() })
    }

    /// Whether the request goes no further, and why.
    pub(crate) fn stops(&self) -> Option<Stops<'_>> {
        match &self.undecided {
            Some(limit) => Some(Stops::Undecided(&limit.name)),
            None => self.denied.map(|_| Stops::Denied),
        }
    }

    /// The last of those that were told allows it, as soon as there is what it takes.
    pub(super) fn allow(&mut self, meter: &Meter, rule: &Rule, verdict: &Verdict) {
        self.wait = self.wait.max(meter.delay(rule, verdict.remaining, verdict.reset).1);
    }

    /// What follows when the request ends. It is the caller's from now on.
    pub(crate) fn settlement(&mut self) -> Option<Box<Settlement>> {
        self.settlement.take()
    }

    /// The last of those that were told denies, until then. Of several, the first is named, and the longest counts.
    pub(super) fn deny(&mut self, retry_after: Option<Duration>) {
        self.retry_after = match self.denied {
            Some(_) => self.retry_after.zip(retry_after).map(|(one, other)| one.max(other)),
            None => retry_after,
        };
        self.denied = self.denied.or(self.told.len().checked_sub(1));
    }

    /// Writes what clients are told: `RateLimit` and `RateLimit-Policy` (draft-ietf-httpapi-ratelimit-headers-11), `X-RateLimit-*`, and
    /// `Retry-After` (RFC 9110 10.2.3) if the request was denied.
    ///
    /// `q` is the burst and `w` the seconds in which an empty bucket is full again; `r` are the requests that may come at once and
    /// `t` the seconds until there is one more. The tightest limit comes first. All seconds are rounded up.
    pub fn write(&self, headers: &mut HeaderMap) {
        if let Some(retry_after) = self.denied.and(self.retry_after) {
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds(retry_after).max(1)));
        }
        if self.told.is_empty() {
            return;
        }
        let of = |is: fn(LimitFields) -> bool| {
            let mut told: SmallVec<[&Told; 2]> = self.told.iter().filter(|told| is(told.limit.fields)).collect();
            told.sort_by_key(|told| told.remaining);
            told
        };
        write_draft(&of(|fields| matches!(fields, LimitFields::Draft | LimitFields::All)), headers);
        if let Some(tightest) = of(|fields| matches!(fields, LimitFields::XRateLimit | LimitFields::All)).first() {
            headers.insert(X_LIMIT, tightest.quota().into());
            headers.insert(X_REMAINING, tightest.remaining.into());
            headers.insert(X_RESET, seconds(tightest.next).into());
        }
    }
}

fn write_draft(told: &[&Told], headers: &mut HeaderMap) {
    if told.is_empty() {
        return;
    }
    let room = told.iter().map(|told| told.limit.name.len() + NUMBERS).sum();
    let (mut state, mut policy) = (String::with_capacity(room), String::with_capacity(room));
    for (at, told) in told.iter().enumerate() {
        let Told { limit, window, remaining, next, .. } = told;
        for text in [&mut state, &mut policy] {
            // The name is of `[a-z0-9-]`, so it needs no escapes in a structured string.
            text.push_str(if at > 0 { ", \"" } else { "\"" });
            text.push_str(&limit.name);
        }
        push(&mut state, "\";r=", *remaining);
        push(&mut state, ";t=", seconds(*next));
        push(&mut policy, "\";q=", told.quota());
        if let Some(window) = window {
            push(&mut policy, ";w=", seconds(*window));
        }
    }
    for (name, value) in [(RATE_LIMIT, state), (RATE_LIMIT_POLICY, policy)] {
        if let Ok(value) = HeaderValue::try_from(value) {
            headers.append(name, value);
        }
    }
}

fn push(text: &mut String, name: &str, number: u64) {
    text.push_str(name);
    text.push_str(itoa::Buffer::new().format(number));
}

fn seconds(duration: Duration) -> u64 {
    duration.as_secs() + u64::from(duration.subsec_nanos() > 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limit::shared::Bucket;

    #[test]
    fn next_token_is_the_first_of_those_that_lack() {
        let rule = Rule::Bucket(Bucket::new(10, Duration::from_secs(1), 10).unwrap());
        let verdict = |allowed, remaining, retry, reset| Verdict {
            allowed,
            remaining,
            retry: Some(Duration::from_millis(retry)),
            reset: Duration::from_millis(reset),
        };
        assert_eq!(next(&rule, &verdict(true, 10, 0, 0)), Duration::ZERO);
        assert_eq!(next(&rule, &verdict(true, 7, 0, 250)), Duration::from_millis(50));
        assert_eq!(next(&rule, &verdict(false, 0, 40, 940)), Duration::from_millis(40));
    }
}
