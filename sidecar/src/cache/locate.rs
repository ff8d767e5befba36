//! Which stored answer a request selects, whatever may be done with it then.

use http::HeaderMap;

use super::{
    semantics::{status::Forward, vary},
    store::{Found, Key, Object, Store},
};

/// Where a key leads to.
pub(super) enum Located {
    /// To this answer. What to say if it turns out to be of no use.
    Object(Object, Forward),
    /// To nothing, or not for this variant.
    Nothing(Forward),
    /// The request can't be told from others by the fields that select a variant.
    Unselectable,
}

/// Follows a key, which ends at `end`; behind it stands then which variant the request asks for, if there are any. `get` looks into the store.
pub(super) fn locate(
    store: &Store,
    get: impl Fn(&Store, &Key<'_>) -> Option<Found>,
    key: &mut Vec<u8>,
    end: usize,
    headers: &HeaderMap,
) -> Located {
    key.truncate(end);
    let vary = match get(store, &store.key(key)) {
        None => return Located::Nothing(Forward::UriMiss),
        Some(Found::Object(object)) => return Located::Object(object, Forward::UriMiss),
        Some(Found::Vary(vary)) => vary,
    };
    if vary::variant(vary.names(), headers, key).is_err() {
        return Located::Unselectable;
    }
    let (primary, values) = key.split_at(end);
    match get(store, &store.variant(&store.key(primary), values)) {
        Some(Found::Object(object)) => Located::Object(object, Forward::VaryMiss),
        Some(Found::Vary(_)) | None => Located::Nothing(Forward::VaryMiss),
    }
}
