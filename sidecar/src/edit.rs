//! Changes to requests and responses.

pub mod headers;
