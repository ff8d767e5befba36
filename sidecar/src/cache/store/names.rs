//! The names of fields that an entry holds as one byte.
//!
//! A name from this list is stored as its place plus one, so that a hit makes a [`HeaderName`] without parsing or allocating.
//! Every other name is stored as text.

use std::collections::HashMap;
use std::sync::LazyLock;

use http::HeaderName;

/// Part of the format of stored objects: names may be added at the end, never moved or taken out.
const NAMES: [&str; 112] = [
    "accept-ranges",
    "access-control-allow-credentials",
    "access-control-allow-headers",
    "access-control-allow-methods",
    "access-control-allow-origin",
    "access-control-expose-headers",
    "access-control-max-age",
    "age",
    "allow",
    "alt-svc",
    "cache-control",
    "content-disposition",
    "content-encoding",
    "content-language",
    "content-length",
    "content-location",
    "content-range",
    "content-security-policy",
    "content-security-policy-report-only",
    "content-type",
    "date",
    "etag",
    "expires",
    "last-modified",
    "link",
    "location",
    "pragma",
    "referrer-policy",
    "refresh",
    "retry-after",
    "server",
    "set-cookie",
    "strict-transport-security",
    "trailer",
    "vary",
    "via",
    "warning",
    "www-authenticate",
    "x-content-type-options",
    "x-dns-prefetch-control",
    "x-frame-options",
    "x-xss-protection",
    "cache-status",
    "cdn-cache-control",
    "fetchr-cache-control",
    "surrogate-control",
    "surrogate-key",
    "xkey",
    "cache-tag",
    "cache-tags",
    "cache-groups",
    "cache-group-invalidation",
    "edge-control",
    "x-cache",
    "x-cache-hits",
    "x-cache-lookup",
    "x-served-by",
    "x-timer",
    "x-accel-expires",
    "x-powered-by",
    "x-request-id",
    "x-correlation-id",
    "x-trace-id",
    "x-amzn-trace-id",
    "traceparent",
    "tracestate",
    "baggage",
    "server-timing",
    "timing-allow-origin",
    "accept-ch",
    "accept-patch",
    "accept-post",
    "clear-site-data",
    "content-digest",
    "repr-digest",
    "digest",
    "content-md5",
    "want-content-digest",
    "cross-origin-embedder-policy",
    "cross-origin-opener-policy",
    "cross-origin-resource-policy",
    "origin-agent-cluster",
    "permissions-policy",
    "feature-policy",
    "document-policy",
    "expect-ct",
    "nel",
    "report-to",
    "reporting-endpoints",
    "priority",
    "deprecation",
    "sunset",
    "no-vary-search",
    "service-worker-allowed",
    "sourcemap",
    "speculation-rules",
    "x-robots-tag",
    "x-permitted-cross-domain-policies",
    "x-download-options",
    "x-ua-compatible",
    "x-ratelimit-limit",
    "x-ratelimit-remaining",
    "x-ratelimit-reset",
    "ratelimit",
    "ratelimit-policy",
    "ratelimit-limit",
    "ratelimit-remaining",
    "ratelimit-reset",
    "x-total-count",
    "x-envoy-upstream-service-time",
    "grpc-status",
    "grpc-message",
];

static BY_ID: LazyLock<[HeaderName; NAMES.len()]> = LazyLock::new(|| NAMES.map(HeaderName::from_static));

static BY_NAME: LazyLock<HashMap<&'static [u8], u8>> =
    LazyLock::new(|| (1u8..).zip(NAMES).map(|(id, name)| (name.as_bytes(), id)).collect());

/// The id of a name in lower case, 1 or more.
pub(super) fn id_of(name: &[u8]) -> Option<u8> {
    BY_NAME.get(name).copied()
}

/// The name with that id; `None` for 0 and for ids of a later format.
pub(super) fn name_of(id: u8) -> Option<&'static HeaderName> {
    BY_ID.get(usize::from(id).checked_sub(1)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_has_an_id_of_its_own() {
        for (at, name) in NAMES.iter().enumerate() {
            let id = id_of(name.as_bytes()).expect("listed");
            assert_eq!(usize::from(id), at + 1, "{name} is twice in the list");
            assert_eq!(name_of(id).expect("listed").as_str(), *name);
        }
        assert_eq!(name_of(0), None);
        assert_eq!(name_of(NAMES.len() as u8 + 1), None);
        assert_eq!(id_of(b"x-unheard-of"), None);
    }

    /// A stored object outlives the program that wrote it: these may never change.
    #[test]
    fn ids_stay_what_they_were() {
        let ids = [("age", 8), ("cache-control", 11), ("content-type", 20), ("vary", 35), ("xkey", 48), ("grpc-message", 112)];
        for (name, id) in ids {
            assert_eq!(id_of(name.as_bytes()), Some(id), "{name}");
        }
    }
}
