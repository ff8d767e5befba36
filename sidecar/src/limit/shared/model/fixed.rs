//! Windows of a calendar.

use super::{Lack, Mark};
use crate::limit::shared::rule::{Fixed, MOST, Micros};

/// What is stored of them: one window, and what was counted in it. Who counts first in it says how long it is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Window {
    from: Micros,
    to: Micros,
    counted: u64,
}

impl Fixed {
    /// The window that is now, and whether the time stepped back before the stored one: then what was counted in that counts now. None if neither
    /// of the rule's windows is now.
    pub(super) fn read(&self, stored: Option<&Window>, now: Micros) -> Option<(Window, bool)> {
        if let Some(stored) = stored.filter(|stored| (stored.from..stored.to).contains(&now)) {
            return Some((*stored, false));
        }
        let ahead = stored.filter(|stored| now < stored.from);
        let (from, to) = if now < self.end { (self.start, self.end) } else { (self.end, self.next_end) };
        let window = Window { from, to, counted: ahead.map_or(0, |ahead| ahead.counted) };
        (from..to).contains(&now).then_some((window, ahead.is_some()))
    }

    pub(super) fn look(&self, window: &Window, cost: u64, now: Micros) -> Option<Lack> {
        if cost > self.quota {
            return Some(Lack::Unknown);
        }
        (window.counted > self.quota - cost).then(|| Lack::For(window.to - now))
    }

    pub(super) fn tell(&self, window: &Window, now: Micros) -> (u64, Micros, Mark) {
        let reset = if window.counted > 0 { window.to - now } else { 0 };
        (self.quota.saturating_sub(window.counted), reset, [window.from, 0, 0])
    }
}

impl Window {
    pub(super) fn charge(&mut self, cost: u64) {
        self.counted = self.counted.saturating_add(cost).min(MOST);
    }

    /// If it is still the window in which it was charged.
    pub(super) fn refund(&mut self, cost: u64, [from, ..]: Mark) {
        if self.from == from {
            self.counted = self.counted.saturating_sub(cost);
        }
    }
}
