//! The clocks that the rules of caching are told of.

use std::time::{Instant, SystemTime};

use super::semantics::clock::Now;

/// Reads both clocks of the host.
#[derive(Debug)]
pub(crate) struct Clock {
    began: Instant,
}

impl Clock {
    pub(super) fn new() -> Self {
        Self { began: Instant::now() }
    }

    /// This moment.
    pub(super) fn now(&self) -> Now {
        let millis = |length: std::time::Duration| u64::try_from(length.as_millis()).unwrap_or(u64::MAX);
        let wall = match SystemTime::now().duration_since(SystemTime::UNIX_EPOCH) {
            Ok(since) => i64::try_from(millis(since)).unwrap_or(i64::MAX),
            Err(before) => i64::try_from(millis(before.duration())).map_or(i64::MIN, |before| -before),
        };
        Now { wall, mono: millis(self.began.elapsed()) }
    }
}
