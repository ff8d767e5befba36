//! Which fields of a response are stored (RFC 9111 section 3.1), and which of them a newer response changes (section 3.2).

use http::{HeaderMap, HeaderName, HeaderValue, header};

use super::{
    clock::Now,
    date,
    directives::{Names, field_names, lines},
    list::members,
    targeted::Say,
};

/// What isn't stored of a response besides what never is.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Cut {
    names: Names,
}

impl Cut {
    /// The fields that `Connection`, `no-cache` and `private` name.
    pub(crate) fn of(headers: &HeaderMap, say: &Say) -> Self {
        let mut names = say.names.clone();
        // Options that are no names of fields name none.
        names.extend(lines(headers, &header::CONNECTION).flat_map(members).filter_map(field_names).flatten());
        Self { names }
    }

    /// Whether a field is stored.
    pub(crate) fn keeps(&self, name: &HeaderName) -> bool {
        !is_never_stored(name) && !self.names.contains(name)
    }

    /// What is stored of a response's fields.
    pub(crate) fn kept<'a>(&'a self, headers: &'a HeaderMap) -> impl Iterator<Item = (&'a HeaderName, &'a HeaderValue)> {
        headers.iter().filter(|(name, _)| self.keeps(name))
    }
}

/// The head of a stored response, changed by a newer one that is about the same content and has none of it, or a part: a 304, a 206,
/// or the answer to a HEAD. Each field of the newer replaces all lines of the same name, except those that describe what was stored.
pub(crate) fn updated<'a>(stored: impl IntoIterator<Item = (&'a HeaderName, &'a HeaderValue)>, newer: &HeaderMap) -> HeaderMap {
    let cut = Cut::of(newer, &Say::default());
    let changed = |name: &HeaderName| cut.keeps(name) && !stays(name);
    let mut head = HeaderMap::with_capacity(newer.len());
    for (name, value) in stored {
        let replaced = changed(name) && newer.contains_key(name);
        if !is_never_stored(name) && !replaced {
            head.append(name, value.clone());
        }
    }
    for (name, value) in newer.iter().filter(|(name, _)| changed(name)) {
        head.append(name, value.clone());
    }
    // What the directives that hold now forbid to store isn't stored any longer, whichever of the two it is from.
    for name in Say::of(&head).names {
        head.remove(name);
    }
    head
}

/// Gives a response the `Date` of when it was received, if it has none that can be read (RFC 9110 section 6.6.1).
pub(crate) fn dated(headers: &mut HeaderMap, received: Now) {
    let now = received.seconds();
    if date_of(headers, received).is_none() {
        headers.insert(header::DATE, HeaderValue::try_from(date::format(now)).expect("a date is visible ASCII"));
    }
}

/// The `Date` of a response.
pub(super) fn date_of(headers: &HeaderMap, received: Now) -> Option<i64> {
    date::parse(headers.get(header::DATE)?.as_bytes(), received.seconds())
}

/// Fields for one hop, for the proxy itself or for one client, and those that are made anew for each answer.
fn is_never_stored(name: &HeaderName) -> bool {
    match *name {
        header::AGE
        | header::CONNECTION
        | header::CONTENT_RANGE
        | header::PROXY_AUTHENTICATE
        | header::PROXY_AUTHORIZATION
        | header::SET_COOKIE
        | header::TE
        | header::TRAILER
        | header::TRANSFER_ENCODING
        | header::UPGRADE => true,
        _ => matches!(name.as_str(), "keep-alive" | "proxy-authentication-info" | "proxy-connection" | "set-cookie2"),
    }
}

/// Fields that the stored content can't be read without: they stay as they came with it (section 3.2). Origins are known to send
/// the `Content-Encoding` of something else with a 304.
fn stays(name: &HeaderName) -> bool {
    matches!(*name, header::CONTENT_LENGTH | header::CONTENT_ENCODING)
}
