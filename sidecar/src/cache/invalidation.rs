//! What requests that change something take from the store (RFC 9111, section 4.4).

use http::{HeaderMap, Method, StatusCode};

use super::{
    semantics::{invalidate::invalidated, request::Kind, uri::Target},
    store::Gone,
};
use crate::{exchange::Asking, facts::Facts, fields};

/// Takes out what an answer makes doubtful: what a GET of the same target would get, and of those that it names in `Location` and
/// `Content-Location`.
pub(crate) fn invalidate(asking: Asking<'_>, method: &Method, target: Target<'_>, status: StatusCode, headers: &HeaderMap) {
    let found = invalidated(Kind::of(method), target, status, headers);
    let cache = &asking.connection.worker.cache;
    let host = fields::host(asking.authority);
    for path_and_query in &found.paths {
        let (path, query) = path_and_query.split_once('?').map_or((&**path_and_query, None), |(path, query)| (path, Some(query)));
        let headers = HeaderMap::new();
        let facts = Facts {
            method: &Method::GET,
            scheme: target.scheme,
            host: &host,
            path,
            query,
            headers: &headers,
            client: asking.client,
        };
        let route = asking.config.routes(asking.connection.direction).select(&facts);
        let Some(caching) = route.cache() else { continue };
        let mut key = vec![0];
        caching.key.write(&facts, asking.authority, &mut key);
        let store = cache.store();
        store.remove(&store.key(&key), Gone::Removed);
        if let Some(tier) = cache.tier() {
            tier.remove(&key);
        }
    }
}
