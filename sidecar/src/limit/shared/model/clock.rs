//! The time of a count.

use super::Micros;

/// Goes as the server's time does, but never back.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Clock {
    /// When the count was as it is stored.
    pub(crate) at: Micros,
    /// How far its time is ahead of the server's.
    pub(crate) offset: Micros,
}

impl Clock {
    pub(super) fn new(now: Micros) -> Self {
        Self { at: now, offset: 0 }
    }

    /// What time it is for the count, and whether the server's stepped back.
    pub(super) fn time(&mut self, now: Micros) -> (Micros, bool) {
        let time = now.saturating_add(self.offset);
        if time >= self.at {
            return (time, false);
        }
        self.offset += self.at - time;
        (self.at, true)
    }
}
