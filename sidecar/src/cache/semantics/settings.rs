//! What a policy's `cache` section says to the rules. The default is to do what the origin says, and nothing that it doesn't say.

use std::time::Duration;

/// Settings of a policy, compiled.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Settings {
    /// How long an answer is fresh.
    pub(crate) ttl: Ttl,
    /// Lifetimes of errors (4xx, 5xx) whose origin gives none. Such an answer may be stored even if it usually isn't, like a 400.
    pub(crate) negative: Vec<StatusTtl>,
    /// Whether a tenth of the time since `Last-Modified`, at most a day, is a lifetime if there is no other (RFC 9111 section 4.2.2).
    pub(crate) heuristic: bool,
    /// How long an answer may be used when it isn't fresh any more.
    pub(crate) stale: Stale,
    /// How long an answer with a validator is kept for validation, after it may not be used any more.
    pub(crate) keep: Duration,
    /// Lifetimes are shortened by up to this many percent, so that what came together doesn't expire together.
    pub(crate) jitter: u8,
    /// What to do with answers with `Set-Cookie`.
    pub(crate) set_cookie: SetCookie,
    /// Whether the cache does what requests ask of it: `no-cache`, `max-age`, `min-fresh`, `max-stale`, `stale-if-error`, `Pragma`
    /// (RFC 9111 section 5.2.1 leaves it to the cache). `no-store` and `only-if-cached` are obeyed in any case.
    pub(crate) obey_requests: bool,
    /// Whether the answer to a POST is stored for later GETs, if the origin says that it is one (RFC 9110 section 9.3.3).
    pub(crate) post: bool,
    /// Whether an answer is at least as old as its `Date` (RFC 9111 section 4.2.3): right even behind a cache that sends no `Age`,
    /// but with an origin whose clock is behind, all answers seem old.
    pub(crate) apparent_age: bool,
    /// The largest content that is stored, in bytes.
    pub(crate) max_object: u64,
}

/// How long an answer is fresh.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Ttl {
    /// For answers that succeed or redirect, and that say nothing of it.
    pub(crate) default: Option<Duration>,
    /// No lifetime that the origin gives is shorter, unless it says that there is none.
    pub(crate) min: Duration,
    /// No lifetime is longer.
    pub(crate) max: Option<Duration>,
    /// For answers with these statuses that say nothing of it; the first that fits.
    pub(crate) by_status: Vec<StatusTtl>,
    /// These lifetimes replace those of the origin. `no-store`, `private`, `no-cache` and all other prohibitions stand.
    pub(crate) override_origin: bool,
}

/// A lifetime for some statuses.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct StatusTtl {
    /// The first of them.
    pub(crate) from: u16,
    /// The last of them.
    pub(crate) to: u16,
    /// The lifetime.
    pub(crate) ttl: Duration,
}

/// How long an answer may be used when it isn't fresh any more and the origin doesn't say.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Stale {
    /// While a new one is fetched.
    pub(crate) while_revalidate: Option<Duration>,
    /// While the origin fails or can't be reached.
    pub(crate) if_error: Option<Duration>,
}

/// What to do with answers with `Set-Cookie`.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) enum SetCookie {
    /// They aren't stored.
    #[default]
    Refuse,
    /// They are stored without the field.
    Strip,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            ttl: Ttl::default(),
            negative: Vec::new(),
            heuristic: false,
            stale: Stale::default(),
            keep: Duration::from_secs(600),
            jitter: 0,
            set_cookie: SetCookie::default(),
            obey_requests: true,
            post: false,
            apparent_age: true,
            max_object: 1 << 20,
        }
    }
}

impl Ttl {
    /// The lifetime by status, if one fits.
    pub(crate) fn of_status(&self, status: u16) -> Option<Duration> {
        lookup(&self.by_status, status)
    }
}

impl Settings {
    /// Whether an answer whose origin gives it no lifetime may have one.
    pub(super) fn gives_lifetimes(&self) -> bool {
        self.ttl.default.is_some() || !self.ttl.by_status.is_empty() || !self.negative.is_empty() || self.heuristic
    }

    /// The lifetime of an error, if one fits.
    pub(crate) fn negative(&self, status: u16) -> Option<Duration> {
        if status >= 400 { lookup(&self.negative, status) } else { None }
    }
}

fn lookup(table: &[StatusTtl], status: u16) -> Option<Duration> {
    table.iter().find(|row| (row.from..=row.to).contains(&status)).map(|row| row.ttl)
}
