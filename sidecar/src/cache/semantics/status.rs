//! `Cache-Status` (RFC 9211): how this cache handled a request.

use std::{
    fmt::{self, Write as _},
    sync::OnceLock,
};

use http::{HeaderMap, HeaderName, HeaderValue};

use super::{
    serve::{Decision, Why},
    storable::NotStored,
};

/// The field.
pub(crate) const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");

/// Our name in it.
const NAME: &str = "fetchr";

/// A member of the list. `Display` writes it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Status {
    pub(crate) handled: Handled,
    /// How long what was sent is fresh, in seconds.
    pub(crate) ttl: Option<i64>,
    /// More of the reason: a name of ours.
    pub(crate) detail: Option<&'static str>,
}

/// Whether the store answered.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Handled {
    /// It did, and nobody was asked.
    Hit,
    /// The request went on.
    Forwarded(Forwarded),
}

/// A request that went on.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Forwarded {
    pub(crate) why: Forward,
    /// The status that the next hop sent, if it isn't that of the answer.
    pub(crate) status: Option<u16>,
    pub(crate) stored: bool,
    /// Whether the answer to another request was waited for, and served.
    pub(crate) collapsed: Option<bool>,
}

/// Values for answers that are not stored, by why their requests went on and why they are not: many have the same.
static REFUSALS: [[OnceLock<HeaderValue>; NotStored::COUNT]; Forward::COUNT] =
    [const { [const { OnceLock::new() }; NotStored::COUNT] }; Forward::COUNT];

/// Why a request went on (section 2.2).
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(crate) enum Forward {
    Bypass,
    Method,
    UriMiss,
    VaryMiss,
    Miss,
    Request,
    Stale,
    Partial,
}

impl Status {
    /// A hit.
    pub(crate) fn hit(decision: &Decision) -> Self {
        let detail = (decision.why != Why::Fresh).then(|| decision.why.as_str());
        Self { handled: Handled::Hit, ttl: Some(decision.ttl()), detail }
    }

    /// A request that went on.
    pub(crate) fn forwarded(why: Forward) -> Self {
        let forwarded = Forwarded { why, status: None, stored: false, collapsed: None };
        Self { handled: Handled::Forwarded(forwarded), ttl: None, detail: None }
    }

    /// A request that went on although something is stored.
    pub(crate) fn unusable(decision: &Decision) -> Self {
        let why =
            if decision.why.is_of_request() && decision.lifetime > decision.age { Forward::Request } else { Forward::Stale };
        Self { detail: Some(decision.why.as_str()), ..Self::forwarded(why) }
    }

    /// Adds it behind what the caches before us said.
    pub(crate) fn append(&self, headers: &mut HeaderMap) {
        // All that is written is visible ASCII or a space.
        if let Ok(value) = HeaderValue::try_from(self.text()) {
            headers.append(CACHE_STATUS, value);
        }
    }

    /// As text. Each answer has one, so the names in it are written without the machinery of `fmt`.
    fn text(&self) -> String {
        let mut text = String::with_capacity(96);
        text.push_str(NAME);
        match self.handled {
            Handled::Hit => text.push_str("; hit"),
            Handled::Forwarded(forwarded) => forwarded.write(&mut text),
        }
        if let Some(ttl) = self.ttl {
            let _ = write!(text, "; ttl={}", ttl.clamp(-999_999_999_999_999, 999_999_999_999_999));
        }
        if let Some(detail) = self.detail {
            text.push_str("; detail=");
            text.push_str(detail);
        }
        text
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text())
    }
}

impl Forwarded {
    fn write(&self, text: &mut String) {
        text.push_str("; fwd=");
        text.push_str(self.why.as_str());
        if let Some(status) = self.status {
            let _ = write!(text, "; fwd-status={status}");
        }
        match self.collapsed {
            Some(true) => text.push_str("; collapsed"),
            Some(false) => text.push_str("; collapsed=?0"),
            None => {}
        }
        if self.stored {
            text.push_str("; stored");
        }
    }
}

impl Forward {
    pub(crate) const COUNT: usize = Self::Partial as usize + 1;

    /// Adds what is said of a request that went on for this reason, and of whose answer nothing is stored.
    pub(crate) fn append_refusal(self, reason: NotStored, headers: &mut HeaderMap) {
        let made = REFUSALS[self as usize][reason as usize].get_or_init(|| {
            let status = Status { detail: Some(reason.as_str()), ..Status::forwarded(self) };
            HeaderValue::try_from(status.text()).unwrap_or(HeaderValue::from_static(NAME))
        });
        headers.append(CACHE_STATUS, made.clone());
    }

    /// The token of the RFC.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Bypass => "bypass",
            Self::Method => "method",
            Self::UriMiss => "uri-miss",
            Self::VaryMiss => "vary-miss",
            Self::Miss => "miss",
            Self::Request => "request",
            Self::Stale => "stale",
            Self::Partial => "partial",
        }
    }
}
