//! Time as it comes in. Nothing here reads a clock.

use std::time::Duration;

/// Milliseconds, as a length of time.
pub(crate) type Millis = u64;

/// Seconds since 1970 in UTC, as dates of HTTP have them.
pub(crate) type Seconds = i64;

/// A moment, on both clocks of a host.
///
/// How long something lies in the store is measured by `mono` alone, so an age never falls and never leaps when somebody sets the
/// clock. `wall` is for what another host or another process said: it is compared with `Date`, and with when a stored response was
/// received if that was before this process began.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Now {
    /// Milliseconds since 1970 in UTC; may jump.
    pub(crate) wall: i64,
    /// Milliseconds since some moment that is the same for everything in this process; never falls.
    pub(crate) mono: Millis,
}

impl Now {
    /// The wall clock in whole seconds.
    pub(crate) fn seconds(self) -> Seconds {
        self.wall.div_euclid(1000)
    }
}

/// Milliseconds of a duration; 2^64 of them are for ever.
pub(crate) fn millis(duration: Duration) -> Millis {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Milliseconds of whole seconds.
pub(crate) fn from_seconds(seconds: u32) -> Millis {
    u64::from(seconds) * 1000
}
