//! Whether a stored response may answer a request now (RFC 9111 sections 4 and 4.2.4, RFC 5861, RFC 8246).

use super::{
    age,
    clock::{Millis, Now, from_seconds},
    meta::{Flags, Meta},
    request::Control,
};

/// Whether the origin can be asked, as far as is known before it is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Origin {
    /// There is no reason to think that it can't.
    Up,
    /// It can't: its breaker is open, it has no endpoints, or there is no place in its queue.
    Down,
}

/// What to do with a stored response.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Verdict {
    /// Answer with it.
    Fresh,
    /// Answer with it, and ask the origin meanwhile, once for all who come.
    StaleWhileRevalidate,
    /// Answer with it, stale as it is.
    Stale,
    /// Ask the origin first, with what validators it has. `if_error`: should that fail, answer with it.
    Revalidate { if_error: bool },
    /// The client wants an answer from the store and there is none: 504.
    GatewayTimeout,
}

/// What decided.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Why {
    /// It is fresh.
    Fresh,
    /// It is fresh, and won't change while it is (RFC 8246), so a client that reloads needs no newer one.
    Immutable,
    /// It is stale.
    Expired,
    /// It is stale and says that it isn't to be used then: `must-revalidate`, `proxy-revalidate` or `s-maxage`.
    MustRevalidate,
    /// It has `no-cache`.
    NoCache,
    /// It was invalidated.
    Invalidated,
    /// Nobody knows how old it is.
    Undated,
    /// The request has `no-cache`.
    RequestNoCache,
    /// The request has `max-age`, and it is older, or stale.
    RequestMaxAge,
    /// The request has `min-fresh`, and it won't be fresh for so long.
    RequestMinFresh,
    /// The request has `max-stale`.
    MaxStale,
    /// `stale-while-revalidate`, its own or the policy's.
    WhileRevalidate,
    /// `stale-if-error`, and the origin can't be asked.
    IfError,
}

/// A verdict, with what `explain` prints.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Decision {
    pub(crate) verdict: Verdict,
    pub(crate) why: Why,
    /// How old it is.
    pub(crate) age: Millis,
    /// How old it may be and still be fresh.
    pub(crate) lifetime: Millis,
}

/// Decides what to do with a stored response that matches a request. `control` is what the request wants, as far as it is heeded.
pub(crate) fn decide(meta: &Meta, control: &Control, now: Now, origin: Origin) -> Decision {
    let age = meta.age(now);
    let (verdict, why) = match judge(meta, control, age) {
        Ok(found) => found,
        Err(why) => (unusable(meta, control, age, origin), why),
    };
    let why = if verdict == Verdict::Stale && why != Why::MaxStale { Why::IfError } else { why };
    Decision { verdict, why, age, lifetime: meta.lifetime }
}

/// Whether a stored response may answer although the origin failed: it couldn't be asked, or answered with a status of those in
/// [`super::status_code::is_failure`]. The client's own `stale-if-error` is a permission like the response's.
pub(crate) fn may_answer_failure(meta: &Meta, control: &Control, now: Now) -> bool {
    if_error(meta, control, meta.age(now))
}

/// An answer without the origin if there may be one, else why not.
fn judge(meta: &Meta, control: &Control, age: Millis) -> Result<(Verdict, Why), Why> {
    for (mark, why) in [(Flags::INVALID, Why::Invalidated), (Flags::UNDATED, Why::Undated), (Flags::NO_CACHE, Why::NoCache)] {
        if meta.flags.any(mark) {
            return Err(why);
        }
    }
    if control.no_cache {
        return Err(Why::RequestNoCache);
    }
    let left = meta.lifetime.saturating_sub(age);
    let fresh = meta.lifetime > age;
    if control.min_fresh.is_some_and(|wanted| !fresh || left < from_seconds(wanted)) {
        return Err(Why::RequestMinFresh);
    }
    let too_old = control.max_age.is_some_and(|wanted| age > from_seconds(wanted));
    match (fresh, too_old) {
        (true, false) => Ok((Verdict::Fresh, Why::Fresh)),
        (true, true) if meta.flags.any(Flags::IMMUTABLE) => Ok((Verdict::Fresh, Why::Immutable)),
        (_, true) => Err(Why::RequestMaxAge),
        (false, false) => stale(meta, control, age - meta.lifetime),
    }
}

/// Whether it may be used although it is stale, with the origin in good health.
fn stale(meta: &Meta, control: &Control, staleness: Millis) -> Result<(Verdict, Why), Why> {
    // Whoever names a `max-age` doesn't want a stale answer, unless there is a `max-stale` beside it (section 5.2.1.1).
    let wanted = control.max_age.is_none() || control.max_stale.is_some();
    if wanted && staleness < meta.while_revalidate {
        return Ok((Verdict::StaleWhileRevalidate, Why::WhileRevalidate));
    }
    if is_strict(meta) {
        return Err(Why::MustRevalidate);
    }
    match control.max_stale {
        Some(most) if most == u32::MAX || staleness <= from_seconds(most) => Ok((Verdict::Stale, Why::MaxStale)),
        _ => Err(if wanted { Why::Expired } else { Why::RequestMaxAge }),
    }
}

/// What to do with a response that may not answer by itself.
fn unusable(meta: &Meta, control: &Control, age: Millis, origin: Origin) -> Verdict {
    let if_error = if_error(meta, control, age);
    match origin {
        Origin::Down if if_error => Verdict::Stale,
        _ if control.only_if_cached => Verdict::GatewayTimeout,
        Origin::Up | Origin::Down => Verdict::Revalidate { if_error },
    }
}

/// Whether it may be used if the origin fails.
fn if_error(meta: &Meta, control: &Control, age: Millis) -> bool {
    if meta.flags.any(Flags::INVALID.and(Flags::UNDATED).and(Flags::NO_CACHE)) {
        return false;
    }
    let asked = if is_strict(meta) { 0 } else { from_seconds(control.stale_if_error.unwrap_or(0)) };
    age.saturating_sub(meta.lifetime) < meta.if_error.max(asked)
}

/// Whether the response forbids to be used stale, so that neither clients nor policies can allow it. When it allows it itself, its
/// own windows say so.
fn is_strict(meta: &Meta) -> bool {
    meta.flags.any(Flags::MUST_REVALIDATE.and(Flags::S_MAXAGE))
}

impl Decision {
    /// How long it will be fresh, in whole seconds; below 0 if it is stale (`ttl` of RFC 9211 section 2.4).
    pub(crate) fn ttl(&self) -> i64 {
        let millis = i128::from(self.lifetime) - i128::from(self.age);
        i64::try_from(millis.div_euclid(1000)).unwrap_or(i64::MIN)
    }

    /// The value of `Age`, which each answer from the store has (RFC 9111 section 4).
    pub(crate) fn age_field(&self) -> u32 {
        age::in_seconds(self.age)
    }

    /// Whether the store answers.
    pub(crate) fn is_hit(&self) -> bool {
        matches!(self.verdict, Verdict::Fresh | Verdict::StaleWhileRevalidate | Verdict::Stale)
    }
}

impl Why {
    /// For `explain`, log lines and `Cache-Status`.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Fresh => "Fresh",
            Self::Immutable => "Immutable",
            Self::Expired => "Expired",
            Self::MustRevalidate => "MustRevalidate",
            Self::NoCache => "NoCache",
            Self::Invalidated => "Invalidated",
            Self::Undated => "Undated",
            Self::RequestNoCache => "RequestNoCache",
            Self::RequestMaxAge => "RequestMaxAge",
            Self::RequestMinFresh => "RequestMinFresh",
            Self::MaxStale => "MaxStale",
            Self::WhileRevalidate => "StaleWhileRevalidate",
            Self::IfError => "StaleIfError",
        }
    }

    /// Whether it is fresh, so that only what the request wants sent it forward (`fwd=request` of RFC 9211, not `stale`).
    pub(crate) fn is_of_request(self) -> bool {
        matches!(self, Self::RequestNoCache | Self::RequestMaxAge | Self::RequestMinFresh)
    }
}
