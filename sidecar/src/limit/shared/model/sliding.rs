//! Sliding windows.

use super::{Lack, Mark, clock::Clock, narrow};
use crate::limit::shared::rule::{MOST, Micros, Sliding};

/// What is stored of them: what was counted in the window that its time is in, and in the one before.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Windows {
    clock: Clock,
    current: u64,
    previous: u64,
}

impl Sliding {
    /// As it is now, and whether the time stepped back.
    pub(super) fn read(&self, stored: Option<&Windows>, now: Micros) -> (Windows, bool) {
        let new = Windows { clock: Clock::new(now), current: 0, previous: 0 };
        let mut windows = stored.copied().unwrap_or(new);
        let before = self.window(&windows);
        let (time, moved) = windows.clock.time(now);
        windows.clock.at = time;
        match self.window(&windows) - before {
            0 => {}
            1 => (windows.previous, windows.current) = (windows.current, 0),
            _ => (windows.previous, windows.current) = (0, 0),
        }
        (windows, moved)
    }

    fn window(&self, windows: &Windows) -> u64 {
        windows.clock.at / self.length()
    }

    /// What may still be counted, in parts of a window. Less than nothing after a debit.
    fn room(&self, windows: &Windows) -> i128 {
        let over = windows.clock.at % self.length() / self.tick;
        let [most, current, previous] = [self.most, windows.current, windows.previous].map(i128::from);
        (most - current) * i128::from(self.ticks) - previous * i128::from(self.ticks - over)
    }

    pub(super) fn look(&self, windows: &Windows, cost: u64) -> Option<Lack> {
        if cost > self.most {
            return Some(Lack::Unknown);
        }
        if i128::from(cost) * i128::from(self.ticks) <= self.room(windows) {
            return None;
        }
        let start = self.window(windows) * self.length();
        // In this window, if the one before was all that is in the way; else in the next one.
        let (start, free, before) = match (self.most - cost).checked_sub(windows.current) {
            Some(free) => (start, free, windows.previous),
            None => (start + self.length(), self.most - cost, windows.current),
        };
        let part = self.ticks - free * self.ticks / before;
        Some(Lack::For(start + part * self.tick - windows.clock.at))
    }

    pub(super) fn charge(&self, windows: &mut Windows, cost: u64) {
        windows.current = windows.current.saturating_add(cost).min(MOST / self.ticks);
    }

    pub(super) fn tell(&self, windows: &Windows) -> (u64, Micros, Mark) {
        let window = self.window(windows);
        let ends = match windows {
            Windows { current: 1.., .. } => (window + 2) * self.length(),
            Windows { previous: 1.., .. } => (window + 1) * self.length(),
            _ => windows.clock.at,
        };
        let remaining = u128::try_from(self.room(windows)).unwrap_or(0) / u128::from(self.ticks);
        (narrow(remaining), ends - windows.clock.at, [window, 0, 0])
    }

    /// In the window in which it was charged.
    pub(super) fn refund(&self, stored: &mut Windows, cost: u64, [window, ..]: Mark, now: Micros) {
        let (mut windows, _) = self.read(Some(stored), now);
        match self.window(&windows).checked_sub(window) {
            Some(0) => windows.current = windows.current.saturating_sub(cost),
            Some(1) => windows.previous = windows.previous.saturating_sub(cost),
            _ => return,
        }
        *stored = windows;
    }
}
