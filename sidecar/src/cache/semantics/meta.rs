//! What is kept of a stored response to judge it later.

use super::{
    age,
    clock::{Millis, Now, Seconds},
    freshness::Source,
};

/// How far another host's clock may differ from ours before what it stored can't be dated.
const SKEW: i64 = 5_000;

/// Judged like a stored response's head, and written with it: 72 bytes, no pointers.
///
/// All lengths of time are from the moment when the response was generated: it is fresh up to `lifetime`, then may be stale for
/// `while_revalidate` and `if_error`, and lies there for validation for `keep` longer than any of those.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Meta {
    /// Its age when it came: `corrected_initial_age` (RFC 9111 section 4.2.3).
    pub(crate) initial_age: Millis,
    /// When that was, on the monotonic clock of this process.
    pub(crate) since: Millis,
    /// When that was, on the wall clock of the host, in milliseconds since 1970: what another process can go by.
    pub(crate) wall: i64,
    /// How long it is fresh.
    pub(crate) lifetime: Millis,
    /// How much longer it may be used while it is fetched again.
    pub(crate) while_revalidate: Millis,
    /// How much longer it may be used if the origin fails.
    pub(crate) if_error: Millis,
    /// How much longer than all that it is kept.
    pub(crate) keep: Millis,
    /// Its `Date`, or when it was received if it has none, in seconds since 1970; 0 before that.
    pub(crate) date: u32,
    /// Its status.
    pub(crate) status: u16,
    /// What else is known of it.
    pub(crate) flags: Flags,
    /// How long the origin took from the request to its head, in milliseconds: what whoever gets it from the store needn't wait for.
    pub(crate) took: u32,
}

/// Marks of a stored response, and where its lifetime is from.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Flags(u16);

impl Flags {
    /// `no-cache`: never used without validation.
    pub(crate) const NO_CACHE: Self = Self(1);
    /// `must-revalidate` or `proxy-revalidate`: never used stale.
    pub(crate) const MUST_REVALIDATE: Self = Self(1 << 1);
    /// `s-maxage` gave the lifetime: never used stale, unless the response itself says when it may be.
    pub(crate) const S_MAXAGE: Self = Self(1 << 2);
    /// `immutable` (RFC 8246).
    pub(crate) const IMMUTABLE: Self = Self(1 << 3);
    /// Invalidated (RFC 9111 section 4.4): has to be validated before it is used again.
    pub(crate) const INVALID: Self = Self(1 << 4);
    /// Its age can't be told, for clocks contradict each other: like a cache without a clock, it is validated (RFC 9111 section 4).
    pub(crate) const UNDATED: Self = Self(1 << 5);
    /// An error that is stored because the policy says so.
    pub(crate) const NEGATIVE: Self = Self(1 << 6);
    /// The request had `Authorization`.
    pub(crate) const AUTHORIZED: Self = Self(1 << 7);
    /// Parts of a representation.
    pub(crate) const PARTIAL: Self = Self(1 << 8);
    /// It has a validator.
    pub(crate) const VALIDATOR: Self = Self(1 << 9);

    /// What marks may be written or read; the rest is [`Source`].
    const MARKS: u16 = (1 << 12) - 1;

    /// Whether any of `marks` is set.
    pub(crate) fn any(self, marks: Self) -> bool {
        self.0 & marks.0 != 0
    }

    /// These and those.
    pub(crate) const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// These, and `mark` if `set`.
    pub(crate) fn with(self, mark: Self, set: bool) -> Self {
        if set { self.and(mark) } else { self }
    }

    /// These, with or without `mark`.
    pub(crate) fn set(self, mark: Self, set: bool) -> Self {
        Self(self.0 & !mark.0).with(mark, set)
    }

    /// With the source of the lifetime.
    pub(crate) fn sourced(self, source: Source) -> Self {
        Self(self.0 & Self::MARKS | (source as u16) << 12)
    }

    /// Where the lifetime is from.
    pub(crate) fn source(self) -> Source {
        Source::from_number(self.0 >> 12)
    }

    /// As a number, to be written.
    pub(crate) fn bits(self) -> u16 {
        self.0
    }

    /// From a number that was written; bits of no meaning are dropped.
    pub(crate) fn from_bits(bits: u16) -> Self {
        let known = Self::VALIDATOR.0 * 2 - 1;
        Self(bits & known).sourced(Source::from_number(bits >> 12))
    }
}

impl Meta {
    /// How old it is now (RFC 9111 section 4.2.3).
    pub(crate) fn age(&self, now: Now) -> Millis {
        age::current(self.initial_age, self.since, now)
    }

    /// How long after the end of its lifetime it is; 0 while it is fresh.
    #[cfg(test)]
    pub(crate) fn staleness(&self, now: Now) -> Millis {
        self.age(now).saturating_sub(self.lifetime)
    }

    /// Whether its age hasn't reached its lifetime (RFC 9111 section 4.2).
    #[cfg(test)]
    pub(crate) fn is_fresh(&self, now: Now) -> bool {
        self.lifetime > self.age(now)
    }

    /// Whether it is of no use any more, neither for an answer nor for validation: it may be removed.
    pub(crate) fn is_dead(&self, now: Now) -> bool {
        now.mono > self.dies()
    }

    /// When it is dead, on the monotonic clock.
    pub(crate) fn dies(&self) -> Millis {
        let usable = self.lifetime.saturating_add(self.longest_stale()).saturating_sub(self.initial_age);
        // What was of no use when it came is kept from then on.
        self.since.saturating_add(usable).saturating_add(self.kept())
    }

    /// For a store outside this process that forgets by itself: how long to keep it, from now.
    pub(crate) fn left(&self, now: Now) -> Millis {
        self.dies().saturating_sub(now.mono)
    }

    /// Whether it was of no use any more where another process stored it. For what is [revived](Self::revived) would be kept anew.
    pub(crate) fn has_died(&self, now: Now) -> bool {
        let away = u64::try_from(now.wall.saturating_sub(self.wall)).unwrap_or(0);
        away > self.dies().saturating_sub(self.since)
    }

    /// What another process stored, on the clocks of this one: its age went on by the wall clock meanwhile. If that says that it
    /// will come in the future, nobody knows its age.
    pub(crate) fn revived(mut self, now: Now) -> Self {
        let away = now.wall.saturating_sub(self.wall);
        self.flags = self.flags.with(Flags::UNDATED, away < -SKEW);
        self.initial_age = self.initial_age.saturating_add(u64::try_from(away).unwrap_or(0));
        self.at(now)
    }

    /// For another process: its age of now, so that jumps of the wall clock until now don't count.
    pub(crate) fn departing(mut self, now: Now) -> Self {
        self.initial_age = self.age(now);
        self.at(now)
    }

    /// Not to be used again without validation (RFC 9111 section 4.4).
    pub(crate) fn invalidated(mut self) -> Self {
        self.flags = self.flags.and(Flags::INVALID);
        self
    }

    /// Its `Date`, or when it was received.
    pub(crate) fn date(&self) -> Seconds {
        Seconds::from(self.date)
    }

    /// Of several that would do, the most recent has to be used (RFC 9111 section 4): by `Date`, then by when it came.
    pub(crate) fn is_newer_than(&self, other: &Self) -> bool {
        (self.date, self.since) > (other.date, other.since)
    }

    fn at(mut self, now: Now) -> Self {
        (self.since, self.wall) = (now.mono, now.wall);
        self
    }

    fn longest_stale(&self) -> Millis {
        self.while_revalidate.max(self.if_error)
    }

    /// Without a validator there is nothing to keep it for.
    fn kept(&self) -> Millis {
        if self.flags.any(Flags::VALIDATOR) { self.keep } else { 0 }
    }
}

const _: () = assert!(size_of::<Meta>() <= 72, "one of these lies beside each stored response");
