//! Whether a response may be stored, and what is known of it then (RFC 9111 section 3).

use http::{HeaderMap, HeaderName, StatusCode, header};

use super::{
    age,
    clock::{Millis, Now, from_seconds, millis},
    directives::lines,
    fields::{self, Cut},
    freshness::{self, Freshness, Source},
    groups::{self, Groups},
    meta::{Flags, Meta},
    parts::ContentRange,
    request::{Asks, Has, Kind},
    settings::{SetCookie, Settings},
    status_code,
    targeted::{self, Say},
    uri::Target,
    validators::Validators,
    vary::{self, Selecting, Unselectable},
};

/// A response's head and how it came.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Received<'a> {
    /// The request that it answers.
    pub(crate) asks: &'a Asks,
    /// What was asked for.
    pub(crate) target: Target<'a>,
    pub(crate) status: StatusCode,
    pub(crate) headers: &'a HeaderMap,
    /// When the request was sent.
    pub(crate) sent: Now,
    /// When the head was received.
    pub(crate) at: Now,
}

/// A response that may be stored.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Storable {
    pub(crate) meta: Meta,
    /// The fields of a request that select it.
    pub(crate) selecting: Selecting,
    /// Which of its fields are stored.
    pub(crate) cut: Cut,
    /// The groups that it belongs to.
    pub(crate) groups: Groups,
    /// What part it is, if it is one.
    pub(crate) part: Option<ContentRange>,
}

/// Why a response isn't stored.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(crate) enum NotStored {
    /// The request has `no-store`.
    RequestNoStore,
    /// The request's method isn't one whose answers are stored.
    Method,
    /// The request isn't one that the cache answers: it has content, or a precondition for the origin.
    Bypass,
    /// Nothing is stored with this status.
    Status,
    /// It is a part that nobody has asked for, or several, or one that can't be joined with others.
    Partial,
    /// `must-understand`, with a status that we don't know.
    MustUnderstand,
    NoStore,
    Private,
    /// The request has `Authorization`, and the response doesn't allow others to have it.
    Authorization,
    SetCookie,
    VaryStar,
    /// `Vary` names too many fields, or something that is none.
    Vary,
    /// It belongs to too many groups to be removed with all of them.
    Groups,
    TooLarge,
    /// Nobody gave a lifetime.
    NoFreshness,
    /// It is stale already and can't be validated.
    Expired,
}

/// Judges a response. `random` is any number, for the jitter of lifetimes.
pub(crate) fn storable(received: &Received<'_>, settings: &Settings, random: u32) -> Result<Storable, NotStored> {
    request_allows(received.asks)?;
    let part = status_allows(received, settings)?;
    // A part is as a 200 that is incomplete (section 3.3).
    let status = if part.is_some() { StatusCode::OK.as_u16() } else { received.status.as_u16() };
    let there = There::of(received.headers);
    let say = if there.any(There::SAYS) { Say::of(received.headers) } else { Say::default() };
    response_allows(received, &say, there, settings)?;
    let selecting = if there.any(There::VARY) { vary::selecting(received.headers)? } else { Selecting::new() };
    let groups =
        if there.any(There::GROUPS) { groups::of(received.headers).map_err(|_| NotStored::Groups)? } else { Groups::new() };
    if content_length(received.headers).is_some_and(|length| length > settings.max_object) {
        return Err(NotStored::TooLarge);
    }
    if !there.any(There::GIVES_LIFETIME) && !settings.gives_lifetimes() {
        return Err(NotStored::NoFreshness);
    }
    let date = fields::date_of(received.headers, received.at).unwrap_or(received.at.seconds());
    let found = lifetime(status, received.headers, &say, date, settings)?;
    let validators = Validators::of(received.headers);
    // Without a strong validator it could never be joined with another one, nor be asked for again.
    if part.is_some() && !validators.is_strong(date) {
        return Err(NotStored::Partial);
    }
    if received.asks.kind == Kind::Post && !found.source.is_explicit() {
        return Err(NotStored::Method);
    }
    let meta = Meta {
        initial_age: age::initial(received.headers, settings.apparent_age.then_some(date), received.sent, received.at),
        since: received.at.mono,
        wall: received.at.wall,
        lifetime: freshness::jittered(found.lifetime, settings.jitter, random),
        while_revalidate: window(
            &say,
            found.source,
            say.directives.stale_while_revalidate,
            settings.stale.while_revalidate.map(millis),
        ),
        if_error: window(&say, found.source, say.directives.stale_if_error, settings.stale.if_error.map(millis)),
        keep: millis(settings.keep),
        date: u32::try_from(date.max(0)).unwrap_or(u32::MAX),
        status,
        flags: flags(&say, found.source, part.is_some(), received.asks.has.any(Has::AUTHORIZATION), validators.any()),
        took: u32::try_from(received.at.mono.saturating_sub(received.sent.mono)).unwrap_or(u32::MAX),
    };
    if meta.dies() <= received.at.mono {
        return Err(NotStored::Expired);
    }
    Ok(Storable { meta, selecting, cut: Cut::of(received.headers, &say), groups, part })
}

/// Fields of a response that matter here. One look at all names costs less than a search for each.
#[derive(Clone, Copy, Debug, Default)]
struct There(u8);

impl There {
    /// What directives stand in.
    const SAYS: Self = Self(1);
    const EXPIRES: Self = Self(1 << 1);
    const VARY: Self = Self(1 << 2);
    const GROUPS: Self = Self(1 << 3);
    const SET_COOKIE: Self = Self(1 << 4);
    /// Without any of these only the policy gives a lifetime.
    const GIVES_LIFETIME: Self = Self(Self::SAYS.0 | Self::EXPIRES.0);

    fn of(headers: &HeaderMap) -> Self {
        headers.keys().fold(Self::default(), |all, name| Self(all.0 | Self::which(name).0))
    }

    fn which(name: &HeaderName) -> Self {
        match *name {
            header::CACHE_CONTROL => Self::SAYS,
            header::EXPIRES => Self::EXPIRES,
            header::VARY => Self::VARY,
            header::SET_COOKIE => Self::SET_COOKIE,
            _ if targeted::TARGETS.contains(name) => Self::SAYS,
            _ if *name == groups::CACHE_GROUPS => Self::GROUPS,
            _ => Self::default(),
        }
    }

    fn any(self, fields: Self) -> bool {
        self.0 & fields.0 != 0
    }
}

fn request_allows(asks: &Asks) -> Result<(), NotStored> {
    match asks.kind {
        _ if asks.control.no_store => Err(NotStored::RequestNoStore),
        Kind::Head | Kind::Safe | Kind::Unsafe => Err(NotStored::Method),
        // Content belongs to a POST; `status_allows` looks at the rest.
        Kind::Post => Ok(()),
        Kind::Get => asks.lookup().map_err(|_| NotStored::Bypass),
    }
}

/// Looks at the status. Of a part, says which one it is.
fn status_allows(received: &Received<'_>, settings: &Settings) -> Result<Option<ContentRange>, NotStored> {
    let status = received.status.as_u16();
    if received.asks.kind == Kind::Post && !(settings.post && received.status.is_success() && is_about_the_target(received)) {
        return Err(NotStored::Method);
    }
    let named = settings.ttl.of_status(status).or_else(|| settings.negative(status)).is_some();
    match status {
        // 1xx aren't final, a 304 has no content of its own, and a 101 or a code below 100 isn't for caches at all.
        0..=199 | 304 => Err(NotStored::Status),
        206 if received.asks.kind == Kind::Get && received.asks.has.any(Has::RANGE) => {
            ContentRange::of(received.headers).map(Some).ok_or(NotStored::Partial)
        }
        206 => Err(NotStored::Partial),
        _ if status_code::is_about_the_request(status) && !named => Err(NotStored::Status),
        _ => Ok(None),
    }
}

/// Whether the answer to a POST is what a GET would get (RFC 9110 section 9.3.3).
fn is_about_the_target(received: &Received<'_>) -> bool {
    let mut all = lines(received.headers, &header::CONTENT_LOCATION);
    let location = all.next().filter(|_| all.next().is_none());
    location.and_then(|location| received.target.resolve(location)).is_some_and(|path| path == received.target.path_and_query)
}

fn response_allows(received: &Received<'_>, say: &Say, there: There, settings: &Settings) -> Result<(), NotStored> {
    let directives = &say.directives;
    let understood = status_code::is_understood(received.status.as_u16());
    if directives.must_understand && !understood {
        return Err(NotStored::MustUnderstand);
    }
    // `must-understand` is how an origin says `no-store` to those only that don't know the status (section 5.2.2.3).
    if directives.no_store && !directives.must_understand {
        return Err(NotStored::NoStore);
    }
    if directives.private {
        return Err(NotStored::Private);
    }
    // Section 3.5.
    let shared = directives.public || directives.must_revalidate || directives.s_maxage.is_some();
    if received.asks.has.any(Has::AUTHORIZATION) && !shared {
        return Err(NotStored::Authorization);
    }
    let cookie = there.any(There::SET_COOKIE) && !say.names.contains(&header::SET_COOKIE);
    if cookie && settings.set_cookie == SetCookie::Refuse { Err(NotStored::SetCookie) } else { Ok(()) }
}

/// The lifetime. Without one a response is stored only for validation, and only if the origin asks for that by `no-cache`.
fn lifetime(status: u16, headers: &HeaderMap, say: &Say, date: i64, settings: &Settings) -> Result<Freshness, NotStored> {
    let found = freshness::lifetime(status, headers, say, date, settings);
    let cacheable = say.directives.public || status_code::is_heuristically_cacheable(status);
    let to_validate = (say.directives.no_cache && cacheable).then_some(Freshness { lifetime: 0, source: Source::Nobody });
    found.or(to_validate).ok_or(NotStored::NoFreshness)
}

/// How long it may be used stale. What forbids it wins over what allows it, with one exception: `s-maxage` forbids (section 5.2.2.10),
/// but an origin that says when a stale answer may be used beside it has made an exception of its own (section 5.2.3). Only the
/// policy can't make one.
fn window(say: &Say, source: Source, said: Option<u32>, policy: Option<Millis>) -> Millis {
    let directives = &say.directives;
    if directives.no_cache || directives.must_revalidate || directives.proxy_revalidate {
        return 0;
    }
    let policy = if source == Source::SMaxage { None } else { policy };
    let said = said.map(from_seconds);
    let first = if source == Source::Override { policy.or(said) } else { said.or(policy) };
    first.unwrap_or(0)
}

fn flags(say: &Say, source: Source, part: bool, authorized: bool, validator: bool) -> Flags {
    let directives = &say.directives;
    Flags::default()
        .with(Flags::NO_CACHE, directives.no_cache)
        .with(Flags::MUST_REVALIDATE, directives.must_revalidate || directives.proxy_revalidate)
        .with(Flags::S_MAXAGE, source == Source::SMaxage)
        .with(Flags::IMMUTABLE, directives.immutable)
        .with(Flags::NEGATIVE, source == Source::Negative)
        .with(Flags::AUTHORIZED, authorized)
        .with(Flags::PARTIAL, part)
        .with(Flags::VALIDATOR, validator)
        .sourced(source)
}

fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

impl From<Unselectable> for NotStored {
    fn from(reason: Unselectable) -> Self {
        match reason {
            Unselectable::Star => Self::VaryStar,
            Unselectable::Malformed | Unselectable::TooMany => Self::Vary,
        }
    }
}

impl NotStored {
    /// How many there are.
    pub(crate) const COUNT: usize = Self::Expired as usize + 1;

    /// Whether the next answer for the same key won't be stored either, so that requests needn't wait for each other (hit-for-miss).
    /// What one client brought about by how it asked says nothing of others.
    pub(crate) fn is_of_response(self) -> bool {
        !matches!(self, Self::RequestNoStore | Self::Method | Self::Bypass | Self::Authorization | Self::Partial | Self::Status)
    }

    /// Whether what is stored of before has to go when this is the answer to its validation: the origin speaks of the resource and
    /// says that it is another one now. A refusal of one client's request says nothing of it.
    pub(crate) fn removes_stored(self, status: StatusCode) -> bool {
        self.is_of_response() && (status.is_success() || status.is_redirection() || matches!(status.as_u16(), 404 | 410))
    }

    /// For labels of metrics, log lines and `Cache-Status`.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::RequestNoStore => "RequestNoStore",
            Self::Method => "Method",
            Self::Bypass => "Bypass",
            Self::Status => "Status",
            Self::Partial => "Partial",
            Self::MustUnderstand => "MustUnderstand",
            Self::NoStore => "NoStore",
            Self::Private => "Private",
            Self::Authorization => "Authorization",
            Self::SetCookie => "SetCookie",
            Self::VaryStar => "VaryStar",
            Self::Vary => "Vary",
            Self::Groups => "Groups",
            Self::TooLarge => "TooLarge",
            Self::NoFreshness => "NoFreshness",
            Self::Expired => "Expired",
        }
    }
}
