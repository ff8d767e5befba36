//! Validation at the origin (RFC 9111 sections 4.3.1 and 4.3.3 to 4.3.5): the request, and what its answer does to what is stored.

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use smallvec::SmallVec;

use super::{
    clock::Now,
    fields,
    list::trim,
    meta::Meta,
    settings::Settings,
    status_code,
    storable::{NotStored, Received, Storable, storable},
    validators::Validators,
};

/// Entity tags in a request.
const MOST_TAGS: usize = 16;

/// What the answer to a validation is (section 4.3.3).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Outcome {
    /// 304: what is stored is right; [`selected`] says which, [`updated`] what becomes of it.
    NotModified,
    /// What is stored isn't right any more. The answer is for the client, and is stored if it may be.
    Full,
    /// The origin failed. What is stored may answer if [`super::serve::may_answer_failure`] says so, and stays in any case.
    Failed,
}

/// Tells them apart by the status.
pub(crate) fn outcome(status: StatusCode) -> Outcome {
    match status.as_u16() {
        304 => Outcome::NotModified,
        status if status_code::is_failure(status) => Outcome::Failed,
        _ => Outcome::Full,
    }
}

/// Makes a client's request one that validates stored responses. More than one may be named: those of other variants, of which the
/// origin may say that they are right.
///
/// It asks for the whole representation, without the client's own conditions and ranges: its answer is judged against those by
/// [`super::conditional::answer`]. A 304 is about what is stored, then, and about nothing that a client says it has: from many an origin
/// it has no `ETag`, and nobody could tell which of the two is right.
pub(crate) fn make_conditional(request: &mut HeaderMap, stored: &[Validators<'_>]) {
    let list: Vec<&[u8]> = stored.iter().filter_map(|stored| stored.etag).map(trim).take(MOST_TAGS).collect();
    make_whole(request);
    if let Ok(value) = HeaderValue::from_bytes(&list.join(&b", "[..]))
        && !value.is_empty()
    {
        request.insert(header::IF_NONE_MATCH, value);
    }
    // A date says which one is right only if there is one.
    if let [Validators { last_modified: Some(date), .. }] = stored
        && let Ok(value) = HeaderValue::from_bytes(date)
    {
        request.insert(header::IF_MODIFIED_SINCE, value);
    }
}

/// Makes a request one for the whole representation, so that it can be stored and answer those who want a part or have a copy.
pub(crate) fn make_whole(request: &mut HeaderMap) {
    for name in [header::IF_NONE_MATCH, header::IF_MODIFIED_SINCE, header::IF_RANGE, header::RANGE] {
        request.remove(name);
    }
}

/// As [`make_conditional`] of a request for a part that is stored. It asks for no more than that part: should the representation have changed, its
/// part of the new one comes (RFC 9110 section 13.2.2), or all of that if the client has said by `If-Range` of which one it has the rest.
pub(crate) fn make_conditional_in_part(request: &mut HeaderMap, stored: &Validators<'_>) {
    let kept = [header::RANGE, header::IF_RANGE].map(|name| (request.remove(&name), name));
    make_conditional(request, std::slice::from_ref(stored));
    for (value, name) in kept {
        value.map(|value| request.insert(name, value));
    }
}

/// Which of the stored responses that match a request a 304 to it updates (section 4.3.4), by their places in `stored`.
pub(crate) fn selected(not_modified: &HeaderMap, date: i64, stored: &[(Validators<'_>, Meta)]) -> SmallVec<[usize; 4]> {
    let new = Validators::of(not_modified);
    let with = |is: &dyn Fn(&Validators<'_>, &Meta) -> bool| -> SmallVec<[usize; 4]> {
        stored.iter().enumerate().filter(|(_, (validators, meta))| is(validators, meta)).map(|(place, _)| place).collect()
    };
    let newest = |places: SmallVec<[usize; 4]>| -> SmallVec<[usize; 4]> {
        places.into_iter().reduce(|a, b| if stored[b].1.is_newer_than(&stored[a].1) { b } else { a }).into_iter().collect()
    };
    let same_date = |validators: &Validators<'_>, meta: &Meta| {
        new.modified(date).is_some_and(|new| validators.modified(meta.date()) == Some(new))
    };
    match new.tag() {
        // Each that has the same strong validator.
        Some(tag) if tag.is_strong() => with(&|stored, _| stored.tag().is_some_and(|stored| stored.is_strongly(tag))),
        Some(tag) => newest(with(&|stored, _| stored.tag().is_some_and(|stored| stored.is_weakly(tag)))),
        None if new.strong_modified(date).is_some() => with(&|stored, meta| same_date(stored, meta)),
        None if new.last_modified.is_some() => newest(with(&|stored, meta| same_date(stored, meta))),
        // Without any validator it can only be about the one that we asked about. The RFC adds that this one has none either, but
        // many an origin leaves them out of a 304, and there is nothing else that it could be about.
        None if stored.len() == 1 => with(&|_, _| true),
        None => SmallVec::new(),
    }
}

/// Whether a 304 is about the stored response that was asked for, so that it updates it.
pub(crate) fn confirms(not_modified: &HeaderMap, received: Now, stored: &Validators<'_>, meta: &Meta) -> bool {
    let date = fields::date_of(not_modified, received).unwrap_or(received.seconds());
    !selected(not_modified, date, &[(*stored, *meta)]).is_empty()
}

/// A stored response after a 304, or after the answer to a HEAD.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Updated {
    /// Its head: what is stored and sent from now on.
    pub(crate) head: HeaderMap,
    /// What is known of it. The error says why it mustn't be stored any longer: if that is of the response, it has to be removed,
    /// else it stays as it was; either way `head` answers this request.
    pub(crate) storable: Result<Storable, NotStored>,
}

/// Updates a stored response. `received` is the answer that validated it.
pub(crate) fn updated<'a>(
    stored: impl IntoIterator<Item = (&'a HeaderName, &'a HeaderValue)>,
    meta: &Meta,
    received: &Received<'_>,
    settings: &Settings,
    random: u32,
) -> Updated {
    let mut newer = received.headers.clone();
    fields::dated(&mut newer, received.at);
    let age = newer.remove(header::AGE);
    let mut head = fields::updated(stored, &newer);
    if let Some(age) = age {
        head.insert(header::AGE, age);
    }
    // Judged as what it is an answer to: a GET with the status of what is stored.
    let asks = received.asks.as_get();
    let status = StatusCode::from_u16(meta.status).unwrap_or(received.status);
    let storable = storable(&Received { asks: &asks, status, headers: &head, ..*received }, settings, random);
    head.remove(header::AGE);
    Updated { head, storable }
}
