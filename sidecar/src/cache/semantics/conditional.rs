//! Preconditions of a client, judged against a stored response (RFC 9110 section 13, RFC 9111 section 4.3.2).

use http::{HeaderMap, HeaderName, header};

use super::{
    clock::Seconds,
    date,
    directives::lines,
    list::trim,
    meta::Meta,
    range::{self, Parts},
    request::{Asks, Has, Kind},
    validators::{EntityTag, Validators, tags},
};

/// How a stored response answers a request.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Answer {
    /// As it is.
    Whole,
    /// 304, with the fields that [`in_not_modified`] names.
    NotModified,
    /// 206.
    Parts(Parts),
    /// 416, with `Content-Range: bytes */len`.
    Unsatisfiable,
}

/// Judges a request against the stored response that is to answer it, in the order of RFC 9110 section 13.2.2. `length` is that of
/// its content; without one it can't be served in parts. If only parts of it are stored, [`super::parts::Pieces::serve`] says whether
/// they are enough for the answer.
pub(crate) fn answer(asks: &Asks, request: &HeaderMap, meta: &Meta, stored: &Validators<'_>, length: Option<u64>) -> Answer {
    const MATTER: Has = Has::IF_NONE_MATCH.and(Has::IF_MODIFIED_SINCE).and(Has::RANGE);
    // What would have been answered with a failure or a redirect isn't conditional (section 13.2.1).
    if !asks.has.any(MATTER) || !(200..300).contains(&meta.status) {
        return Answer::Whole;
    }
    let modified = if asks.has.any(Has::IF_NONE_MATCH) {
        none_match(request, stored)
    } else if asks.has.any(Has::IF_MODIFIED_SINCE) {
        is_modified_since(request, meta, stored)
    } else {
        true
    };
    if !modified {
        return Answer::NotModified;
    }
    // Ranges are defined for GET alone, and for what would be a 200 (section 14.2).
    let ranged = asks.kind == Kind::Get && asks.has.any(Has::RANGE) && matches!(meta.status, 200 | 206);
    match length {
        Some(length) if ranged && (!asks.has.any(Has::IF_RANGE) || is_same(request, meta, stored)) => {
            range::select(lines(request, &header::RANGE), length)
        }
        _ => Answer::Whole,
    }
}

/// Whether a stored response's field is part of a 304 (section 15.4.5): what would change a client's copy, and not what describes
/// content that isn't sent. `Last-Modified` is needed only where there is no entity tag.
pub(crate) fn in_not_modified(name: &HeaderName, stored: &Validators<'_>) -> bool {
    match *name {
        header::LAST_MODIFIED => stored.etag.is_none(),
        header::CONTENT_ENCODING
        | header::CONTENT_LANGUAGE
        | header::CONTENT_LENGTH
        | header::CONTENT_RANGE
        | header::CONTENT_TYPE
        | header::ACCEPT_RANGES => false,
        _ => true,
    }
}

/// Whether a stored response's field is part of a 206 or 416: `Content-Length` and `Content-Range` are those of the answer.
pub(crate) fn in_parts(name: &HeaderName, multiple: bool) -> bool {
    match *name {
        header::CONTENT_LENGTH | header::CONTENT_RANGE => false,
        header::CONTENT_TYPE => !multiple,
        _ => true,
    }
}

/// `If-None-Match`: true if the client has none of it (section 13.1.2). Compared weakly.
fn none_match(request: &HeaderMap, stored: &Validators<'_>) -> bool {
    let tag = stored.tag();
    !lines(request, &header::IF_NONE_MATCH).any(|line| {
        // There is a representation, so `*` is false.
        trim(line) == b"*" || tag.is_some_and(|tag| tags(line).any(|theirs| theirs.is_weakly(tag)))
    })
}

/// `If-Modified-Since`: false if the client's copy is as new (section 13.1.3). A date that is none is as no field at all.
fn is_modified_since(request: &HeaderMap, meta: &Meta, stored: &Validators<'_>) -> bool {
    let Some(value) = only(request, &header::IF_MODIFIED_SINCE) else { return true };
    if stored.last_modified == Some(value) {
        return false;
    }
    let now: Seconds = meta.date();
    let Some(since) = date::parse(value, now) else { return true };
    // What has no date of modification is as old as its `Date` (RFC 9111 section 4.3.2).
    stored.modified(now).unwrap_or(now) > since
}

/// `If-Range`: true if the client's part is of this very representation (section 13.1.5). Compared strongly.
fn is_same(request: &HeaderMap, meta: &Meta, stored: &Validators<'_>) -> bool {
    let Some(value) = only(request, &header::IF_RANGE) else { return false };
    // A tag has a quote among its first three bytes, a date hasn't.
    if value.iter().take(3).any(|&byte| byte == b'"') {
        return EntityTag::parse(value).zip(stored.tag()).is_some_and(|(theirs, ours)| theirs.is_strongly(ours));
    }
    let date = date::parse(value, meta.date());
    date.is_some() && date == stored.strong_modified(meta.date())
}

/// The value of a field of which there may be one line.
fn only<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a [u8]> {
    let mut all = lines(headers, name);
    let first = all.next()?;
    if all.next().is_none() { Some(trim(first)) } else { None }
}
