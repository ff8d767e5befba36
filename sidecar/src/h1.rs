//! HTTP/1 on the wire (RFC 9112): one strict reader and one writer for both sides of the proxy.
//!
//! What is forwarded is what was understood: a message is parsed, refused if its framing could be read in two ways, and written
//! anew. `head`, `framing`, `chunked` and `encode` are pure; `server` and [`crate::upstream::h1`] are the sockets around them.

pub(crate) mod chunked;
pub(crate) mod encode;
pub(crate) mod framing;
pub(crate) mod head;
mod names;
pub(crate) mod server;
mod socket;

pub(crate) use socket::BadBody;
#[cfg(feature = "http3")]
pub(crate) use socket::HEAD_LIMIT;

/// Bytes of the head of a message, at most.
pub(crate) const MAX_HEAD: usize = 64 << 10;

/// Bytes of a request target, at most; RFC 9110, section 4.1, asks for 8000 at least.
pub(crate) const MAX_TARGET: usize = 16 << 10;

/// Header fields of a message, at most.
pub(crate) const MAX_FIELDS: usize = 100;
