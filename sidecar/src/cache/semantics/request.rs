//! What a request asks of a cache: whether it may be answered from the store at all, and what it wants of what is stored.

use http::{HeaderMap, HeaderName, Method, header};

use super::{
    directives::{Argument, directives, lines},
    list::members,
    range,
    settings::Settings,
};

/// A request, as the cache sees it. Small, and made without allocation by one look at the names of the fields.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Asks {
    /// What kind of method it has.
    pub(crate) kind: Kind,
    /// Its directives.
    pub(crate) control: Control,
    /// Which of the fields that matter it has.
    pub(crate) has: Has,
    /// Whether it has content.
    pub(crate) content: bool,
}

/// Methods, by what a cache does with them.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Kind {
    /// Answered from the store, and stored.
    Get,
    /// Answered from what a GET stored.
    Head,
    /// Goes to the origin and invalidates; its answer may be one to a GET (RFC 9110 section 9.3.3).
    Post,
    /// Goes to the origin and changes nothing.
    Safe,
    /// Goes to the origin and invalidates; also what isn't known to be safe.
    Unsafe,
}

/// Directives of a request (RFC 9111 section 5.2.1, RFC 5861 section 4), lengths in seconds.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Control {
    pub(crate) max_age: Option<u32>,
    pub(crate) max_stale: Option<u32>,
    pub(crate) min_fresh: Option<u32>,
    pub(crate) stale_if_error: Option<u32>,
    /// `no-cache`, or `Pragma: no-cache` without any `Cache-Control`.
    pub(crate) no_cache: bool,
    pub(crate) no_store: bool,
    pub(crate) only_if_cached: bool,
}

/// Fields of a request that a cache looks at.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Has(u16);

/// Why a request isn't looked up, whatever is stored.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Bypass {
    /// Its method's semantics ask for the origin.
    Method,
    /// It is a GET or HEAD with content, which isn't part of the key: the origin might answer to it.
    Content,
    /// It has `If-Match` or `If-Unmodified-Since`, which only an origin may judge (RFC 9111 section 4.3.2).
    Precondition,
    /// It wants to change protocols.
    Upgrade,
}

impl Has {
    pub(crate) const AUTHORIZATION: Self = Self(1);
    pub(crate) const CACHE_CONTROL: Self = Self(1 << 1);
    pub(crate) const IF_MATCH: Self = Self(1 << 2);
    pub(crate) const IF_MODIFIED_SINCE: Self = Self(1 << 3);
    pub(crate) const IF_NONE_MATCH: Self = Self(1 << 4);
    pub(crate) const IF_RANGE: Self = Self(1 << 5);
    pub(crate) const IF_UNMODIFIED_SINCE: Self = Self(1 << 6);
    pub(crate) const PRAGMA: Self = Self(1 << 7);
    pub(crate) const RANGE: Self = Self(1 << 8);
    pub(crate) const UPGRADE: Self = Self(1 << 9);

    fn of(headers: &HeaderMap) -> Self {
        headers.keys().fold(Self::default(), |all, name| Self(all.0 | Self::which(name).0))
    }

    fn which(name: &HeaderName) -> Self {
        match *name {
            header::AUTHORIZATION => Self::AUTHORIZATION,
            header::CACHE_CONTROL => Self::CACHE_CONTROL,
            header::IF_MATCH => Self::IF_MATCH,
            header::IF_MODIFIED_SINCE => Self::IF_MODIFIED_SINCE,
            header::IF_NONE_MATCH => Self::IF_NONE_MATCH,
            header::IF_RANGE => Self::IF_RANGE,
            header::IF_UNMODIFIED_SINCE => Self::IF_UNMODIFIED_SINCE,
            header::PRAGMA => Self::PRAGMA,
            header::RANGE => Self::RANGE,
            header::UPGRADE => Self::UPGRADE,
            _ => Self::default(),
        }
    }

    /// Whether any of `fields` is there.
    pub(crate) fn any(self, fields: Self) -> bool {
        self.0 & fields.0 != 0
    }

    /// These and those.
    pub(crate) const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl Asks {
    /// Reads a request; `content` tells whether it has any.
    pub(crate) fn of(method: &Method, headers: &HeaderMap, content: bool) -> Self {
        let has = Has::of(headers);
        Self { kind: Kind::of(method), control: Control::of(headers, has), has, content }
    }

    /// Whether it may be answered from the store, and if not, why.
    pub(crate) fn lookup(&self) -> Result<(), Bypass> {
        match self.kind {
            Kind::Post | Kind::Safe | Kind::Unsafe => Err(Bypass::Method),
            _ if self.content => Err(Bypass::Content),
            _ if self.has.any(Has::IF_MATCH.and(Has::IF_UNMODIFIED_SINCE)) => Err(Bypass::Precondition),
            _ if self.has.any(Has::UPGRADE) => Err(Bypass::Upgrade),
            Kind::Get | Kind::Head => Ok(()),
        }
    }

    /// Whether it is for one part, and what comes may be stored as that: it has no conditions besides.
    pub(crate) fn is_for_part(&self, headers: &HeaderMap) -> bool {
        self.kind == Kind::Get
            && self.has.any(Has::RANGE)
            && !self.has.any(Has::IF_NONE_MATCH.and(Has::IF_MODIFIED_SINCE))
            && range::is_single(lines(headers, &header::RANGE))
    }

    /// Whether what it gets may be stored, as far as that depends on the request.
    pub(crate) fn stores(&self, headers: &HeaderMap) -> bool {
        self.kind == Kind::Get && !self.control.no_store && (!self.has.any(Has::RANGE) || self.is_for_part(headers))
    }

    /// As if it were a GET: for judging what a HEAD said of a stored answer to one.
    pub(crate) fn as_get(&self) -> Self {
        Self { kind: Kind::Get, ..*self }
    }

    /// What the request wants, as far as the settings let it.
    pub(crate) fn heeded(&self, settings: &Settings) -> Control {
        if settings.obey_requests {
            self.control
        } else {
            let Control { no_store, only_if_cached, .. } = self.control;
            Control { no_store, only_if_cached, ..Control::default() }
        }
    }
}

impl Kind {
    /// What a cache does with a method (RFC 9110 section 9.2). The safe ones are those of the registry of methods.
    pub(crate) fn of(method: &Method) -> Self {
        match *method {
            Method::GET => Self::Get,
            Method::HEAD => Self::Head,
            Method::POST => Self::Post,
            Method::OPTIONS | Method::TRACE => Self::Safe,
            _ if matches!(method.as_str(), "PROPFIND" | "QUERY" | "REPORT" | "SEARCH") => Self::Safe,
            _ => Self::Unsafe,
        }
    }

    /// Whether the method may change something at the origin.
    pub(crate) fn is_unsafe(self) -> bool {
        matches!(self, Self::Post | Self::Unsafe)
    }
}

impl Control {
    fn of(headers: &HeaderMap, has: Has) -> Self {
        let mut all = Self::default();
        if has.any(Has::CACHE_CONTROL) {
            for (name, argument) in lines(headers, &header::CACHE_CONTROL).flat_map(directives) {
                all.take(name, argument);
            }
        } else if has.any(Has::PRAGMA) {
            let mut pragmas = lines(headers, &header::PRAGMA).flat_map(members);
            all.no_cache = pragmas.any(|pragma| pragma.eq_ignore_ascii_case(b"no-cache"));
        }
        all
    }

    /// Adds one directive. Of two the stricter holds, and what can't be read is the strictest.
    fn take(&mut self, name: &[u8], argument: Argument<'_>) {
        let is = |known: &str| name.eq_ignore_ascii_case(known.as_bytes());
        let least = |kept: Option<u32>, value: u32| Some(kept.map_or(value, |kept| kept.min(value)));
        match name.len() {
            7 if is("max-age") => self.max_age = least(self.max_age, argument.seconds().unwrap_or(0)),
            8 if is("no-cache") => self.no_cache = true,
            8 if is("no-store") => self.no_store = true,
            9 if is("max-stale") => {
                // Without a value any age will do.
                let value = if argument == Argument::Absent { Some(u32::MAX) } else { argument.seconds() };
                self.max_stale = least(self.max_stale, value.unwrap_or(0));
            }
            9 if is("min-fresh") => {
                let value = argument.seconds().unwrap_or(0);
                self.min_fresh = Some(self.min_fresh.map_or(value, |kept| kept.max(value)));
            }
            14 if is("stale-if-error") => self.stale_if_error = least(self.stale_if_error, argument.seconds().unwrap_or(0)),
            14 if is("only-if-cached") => self.only_if_cached = true,
            _ => {}
        }
    }
}

impl Bypass {
    /// Whether it is the method's own.
    pub(crate) fn is_method(self) -> bool {
        self == Self::Method
    }

    /// For labels of metrics and log lines.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Method => "Method",
            Self::Content => "Content",
            Self::Precondition => "Precondition",
            Self::Upgrade => "Upgrade",
        }
    }
}
