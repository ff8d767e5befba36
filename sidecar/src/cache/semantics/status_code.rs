//! What a cache knows of status codes.

/// Statuses that may be reused with a guessed lifetime (RFC 9110 section 15.1).
pub(crate) fn is_heuristically_cacheable(status: u16) -> bool {
    matches!(status, 200 | 203 | 204 | 206 | 300 | 301 | 308 | 404 | 405 | 410 | 414 | 501)
}

/// Those of them that a policy's default lifetime is for. An error is stored for longer than its origin says only where the policy
/// names its status, so nobody can put one in the way of others by a request that the origin dislikes.
pub(crate) fn has_default_lifetime(status: u16) -> bool {
    is_heuristically_cacheable(status) && status < 400
}

/// Statuses that we know, together with what their definitions say of caches (RFC 9111 section 3, for `must-understand`).
pub(crate) fn is_understood(status: u16) -> bool {
    matches!(status, 200..=206 | 300..=303 | 307 | 308 | 400..=410 | 413..=417 | 421..=426 | 428 | 429 | 431 | 451 | 500..=505)
}

/// Statuses that answer how a request was sent, and not what it asked for: its connection, its credentials, its preconditions, its
/// size or its form. Others would get the answer to a request that they didn't send, so they are stored only where the policy says so.
pub(crate) fn is_about_the_request(status: u16) -> bool {
    matches!(status, 400 | 401 | 407 | 408 | 411 | 412 | 413 | 415 | 416 | 417 | 421 | 425 | 426 | 428 | 429 | 431 | 511)
}

/// Statuses that mean that the origin failed (RFC 5861 section 4).
pub(crate) fn is_failure(status: u16) -> bool {
    matches!(status, 500 | 502 | 503 | 504)
}
