//! How fast a peer must move a body while it is waited for. A body that comes by drips holds a connection, and an upstream's, for next
//! to nothing, and never pauses for long enough to be idle.
//!
//! Nothing is counted while the peer is not waited for: a client is not held to what its upstream is slow to take. The clock is read when a
//! wait begins or ends, not for each byte.

use std::time::Duration;

use crds::proxy::HttpLimits;
use tokio::time::Instant;

/// What is asked of a peer.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Rate {
    /// Bytes a second.
    pub(crate) min: u64,
    /// How long the peer is waited for before that counts.
    pub(crate) grace: Duration,
}

impl Rate {
    /// Any.
    pub(crate) const ANY: Self = Self { min: 0, grace: Duration::MAX };

    pub(crate) fn of(limits: &HttpLimits) -> Self {
        match u64::try_from(limits.min_body_rate) {
            Ok(min) if min > 0 => Self { min, grace: limits.body_rate_grace.0 },
            _ => Self::ANY,
        }
    }

    /// How long so many bytes may take.
    pub(crate) fn time_for(&self, bytes: u64) -> Duration {
        bytes.checked_div(self.min).map_or(Duration::MAX, |seconds| self.grace.max(Duration::from_secs(seconds)))
    }
}

/// How fast a peer moves a body.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    /// Since when it is waited for, while it is.
    since: Option<Instant>,
    /// How long it was waited for, and what it moved meanwhile, since the last verdict.
    waited: Duration,
    moved: u64,
}

impl Pace {
    /// Whether the peer is waited for.
    pub(crate) fn is_waiting(&self) -> bool {
        self.since.is_some()
    }

    /// From now on the peer is waited for. False if it was too slow up to now.
    pub(crate) fn wait(&mut self, rate: Rate, now: Instant) -> bool {
        self.since = Some(now);
        if self.waited < rate.grace {
            return true;
        }
        let (waited, moved) = (std::mem::take(&mut self.waited), std::mem::take(&mut self.moved));
        u128::from(moved) * 1000 >= u128::from(rate.min) * waited.as_millis()
    }

    /// The peer has moved so many bytes.
    pub(crate) fn moved(&mut self, bytes: u64, now: Instant) {
        self.moved += bytes;
        if let Some(since) = self.since.take() {
            self.waited += now.saturating_duration_since(since);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: Rate = Rate { min: 240, grace: Duration::from_secs(10) };

    /// Lets a peer move `bytes` every `pause`; returns after how many seconds it was too slow, up to an hour.
    fn too_slow_after(rate: Rate, bytes: u64, pause: Duration) -> Option<u64> {
        let (start, mut pace) = (Instant::now(), Pace::default());
        let mut now = start;
        while now - start < Duration::from_secs(3600) {
            if !pace.wait(rate, now) {
                return Some((now - start).as_secs());
            }
            now += pause;
            pace.moved(bytes, now);
        }
        None
    }

    #[test]
    fn peer_that_drips_is_too_slow_once_its_time_is_up() {
        assert_eq!(too_slow_after(RATE, 1, Duration::from_secs(1)), Some(10));
        assert_eq!(too_slow_after(RATE, 239, Duration::from_secs(1)), Some(10));
        assert_eq!(too_slow_after(RATE, 240, Duration::from_secs(1)), None);
        assert_eq!(too_slow_after(RATE, 1, Duration::from_millis(1)), None, "a kilobyte a second, byte by byte");
        assert_eq!(too_slow_after(RATE, 20_000, Duration::from_secs(50)), None, "pauses have a limit of their own");
        assert_eq!(too_slow_after(RATE, 20, Duration::from_secs(50)), Some(50));
        assert_eq!(too_slow_after(Rate::ANY, 0, Duration::from_secs(50)), None);
    }

    #[test]
    fn what_came_fast_pays_for_no_drips_later() {
        let (mut now, mut pace) = (Instant::now(), Pace::default());
        assert!(pace.wait(RATE, now));
        now += Duration::from_secs(10);
        pace.moved(1 << 30, now);
        assert!(pace.wait(RATE, now));
        now += Duration::from_secs(11);
        pace.moved(1, now);
        assert!(!pace.wait(RATE, now));
    }

    #[test]
    fn time_in_which_nobody_waits_for_the_peer_does_not_count() {
        let (mut now, mut pace) = (Instant::now(), Pace::default());
        for _ in 0..100 {
            assert!(pace.wait(RATE, now));
            now += Duration::from_millis(50);
            pace.moved(100, now);
            now += Duration::from_secs(100); // the upstream takes its time
        }
    }
}
