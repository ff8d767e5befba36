//! How long a response is fresh (RFC 9111 sections 4.2.1 and 4.2.2).

use std::time::Duration;

use http::{HeaderMap, header};

use super::{
    clock::{Millis, Seconds, from_seconds, millis},
    date,
    directives::{LONGEST, lines},
    list::members,
    settings::Settings,
    status_code,
    targeted::Say,
};

/// The most that is guessed.
const MOST_GUESSED: Millis = 24 * 60 * 60 * 1000;

/// A lifetime, and who gave it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Freshness {
    pub(crate) lifetime: Millis,
    pub(crate) source: Source,
}

/// Who gave a lifetime.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[repr(u8)]
pub(crate) enum Source {
    /// Nobody: it is stale from the start.
    #[default]
    Nobody,
    SMaxage,
    MaxAge,
    Expires,
    /// The policy, instead of the origin.
    Override,
    /// The policy, by status.
    ByStatus,
    /// The policy, for an error.
    Negative,
    /// The policy's default.
    Default,
    /// Guessed from `Last-Modified`.
    Heuristic,
}

/// The lifetime of a response; None if nobody gave one. `date` is its `Date`, or when it was received.
pub(crate) fn lifetime(status: u16, headers: &HeaderMap, say: &Say, date: Seconds, settings: &Settings) -> Option<Freshness> {
    let configured = configured(status, headers, say, settings);
    let found = if settings.ttl.override_origin && configured.is_some() {
        configured.map(|found| Freshness { source: Source::Override, ..found })
    } else {
        explicit(headers, say, date).or(configured).or_else(|| heuristic(status, headers, say, date, settings))
    }?;
    Some(Freshness { lifetime: bounded(found, settings), ..found })
}

/// Shortens a lifetime by a part of it, at most `percent`; `random` says how large a part.
pub(crate) fn jittered(lifetime: Millis, percent: u8, random: u32) -> Millis {
    let most = u128::from(lifetime) * u128::from(percent.min(100)) / 100;
    let cut = most * u128::from(random) / u128::from(u32::MAX);
    lifetime.saturating_sub(u64::try_from(cut).unwrap_or(u64::MAX))
}

/// What the origin says, the first that applies.
fn explicit(headers: &HeaderMap, say: &Say, date: Seconds) -> Option<Freshness> {
    let from = |seconds: Option<u32>, source| seconds.map(|seconds| Freshness { lifetime: from_seconds(seconds), source });
    from(say.directives.s_maxage, Source::SMaxage)
        .or_else(|| from(say.directives.max_age, Source::MaxAge))
        .or_else(|| if say.targeted { None } else { from(expires(headers, date), Source::Expires) })
}

/// Seconds from `Date` to `Expires`. What is no date is in the past (section 5.3), and so are two that differ.
fn expires(headers: &HeaderMap, date: Seconds) -> Option<u32> {
    let mut all = lines(headers, &header::EXPIRES);
    let first = all.next()?;
    let at = if all.all(|other| other == first) { date::parse(first, date) } else { None };
    let left = at.map_or(0, |at| at.saturating_sub(date).clamp(0, i64::from(LONGEST)));
    Some(u32::try_from(left).unwrap_or(0))
}

/// What the policy says of a response whose origin says nothing.
fn configured(status: u16, headers: &HeaderMap, say: &Say, settings: &Settings) -> Option<Freshness> {
    let from = |ttl: Option<Duration>, source| ttl.map(|ttl| Freshness { lifetime: millis(ttl), source });
    let default = settings.ttl.default.filter(|_| status_code::has_default_lifetime(status) && !is_doubtful(headers, say));
    from(settings.ttl.of_status(status), Source::ByStatus)
        .or_else(|| from(settings.negative(status), Source::Negative))
        .or_else(|| from(default, Source::Default))
}

/// A tenth of the time that it hasn't changed, where a guess is allowed: there is no explicit time, and the status or `public` allows it.
fn heuristic(status: u16, headers: &HeaderMap, say: &Say, date: Seconds, settings: &Settings) -> Option<Freshness> {
    let allowed = settings.heuristic && (say.directives.public || status_code::is_heuristically_cacheable(status));
    if !allowed || is_doubtful(headers, say) {
        return None;
    }
    let modified = date::parse(headers.get(header::LAST_MODIFIED)?.as_bytes(), date)?;
    let unchanged = u64::try_from(date.saturating_sub(modified)).ok()?;
    Some(Freshness { lifetime: unchanged.saturating_mul(100).min(MOST_GUESSED), source: Source::Heuristic })
}

/// Origins that send `Pragma: no-cache` mean it, though it was never defined for responses (section 5.4): no time is made up for them.
/// Nor for those that say `no-cache` and no time.
fn is_doubtful(headers: &HeaderMap, say: &Say) -> bool {
    say.directives.no_cache
        || lines(headers, &header::PRAGMA).flat_map(members).any(|pragma| pragma.eq_ignore_ascii_case(b"no-cache"))
}

/// Within the policy's bounds. What the policy itself says in another place isn't lengthened by `min`; nor is a lifetime of zero, which
/// is how an origin asks for validation.
fn bounded(found: Freshness, settings: &Settings) -> Millis {
    let origin = found.source.is_explicit() || found.source == Source::Heuristic;
    let least = if origin && found.lifetime > 0 { millis(settings.ttl.min) } else { 0 };
    found.lifetime.max(least).min(settings.ttl.max.map_or(u64::MAX, millis))
}

impl Source {
    const ALL: [Self; 9] = [
        Self::Nobody,
        Self::SMaxage,
        Self::MaxAge,
        Self::Expires,
        Self::Override,
        Self::ByStatus,
        Self::Negative,
        Self::Default,
        Self::Heuristic,
    ];

    pub(super) fn from_number(number: u16) -> Self {
        Self::ALL.get(usize::from(number)).copied().unwrap_or_default()
    }

    /// Whether the origin gave it.
    pub(crate) fn is_explicit(self) -> bool {
        matches!(self, Self::SMaxage | Self::MaxAge | Self::Expires)
    }

    /// For `explain` and log lines.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Nobody => "Nobody",
            Self::SMaxage => "SMaxage",
            Self::MaxAge => "MaxAge",
            Self::Expires => "Expires",
            Self::Override => "Override",
            Self::ByStatus => "ByStatus",
            Self::Negative => "Negative",
            Self::Default => "Default",
            Self::Heuristic => "Heuristic",
        }
    }
}
