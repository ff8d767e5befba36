//! What requests that change something take from the store (RFC 9111, section 4.4).

use crds::policy::Mode;
use http::{HeaderMap, Method, Response};

use super::{
    semantics::{invalidate::invalidated, request::Kind, uri::Target},
    store::Gone,
};
use crate::{exchange::Asking, facts::Facts, fields, flow::Flow};

/// A request that may change something, before it is sent.
pub(crate) struct Change {
    method: Method,
    /// A GET with the same fields has the same key.
    headers: HeaderMap,
}

impl Change {
    /// None of a request that changes nothing.
    pub(crate) fn of(method: &Method, headers: &HeaderMap) -> Option<Self> {
        Kind::of(method).is_unsafe().then(|| Self { method: method.clone(), headers: headers.clone() })
    }
}

/// Takes out what an answer makes doubtful: what a GET of the same target with the same fields would get, and of those that the answer
/// names in `Location` and `Content-Location`. What is being fetched of them is not stored.
pub(crate) fn invalidate(asking: Asking<'_>, change: &Change, target: Target<'_>, response: &Response<Flow>) {
    let found = invalidated(Kind::of(&change.method), target, response.status(), response.headers());
    let cache = &asking.connection.worker.cache;
    let host = fields::host(asking.authority);
    for path_and_query in &found.paths {
        let (path, query) = path_and_query.split_once('?').map_or((&**path_and_query, None), |(path, query)| (path, Some(query)));
        let facts = Facts {
            method: &Method::GET,
            scheme: target.scheme,
            host: &host,
            path,
            query,
            headers: &change.headers,
            client: asking.client,
        };
        let route = asking.config.routes(asking.connection.direction).select(&facts);
        let Some(caching) = route.cache() else { continue };
        let mut key = vec![u8::from(caching.mode == Mode::Shadow)];
        caching.key.write(&facts, asking.authority, &mut key);
        let store = cache.store();
        cache.changes.change(cache.changes.spot(&key), || {
            store.remove(&store.key(&key), Gone::Removed);
            cache.behind.remove(&key);
        });
    }
}
