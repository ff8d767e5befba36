//! How long to wait before a worker is started again.

use std::time::Duration;

/// The first wait after a worker that did not serve for long.
const LEAST: Duration = Duration::from_millis(100);
/// The longest wait.
const MOST: Duration = Duration::from_secs(5);
/// Who served that long is started again at once: a start costs some 20 ms, so even an end that comes again and again costs little,
/// and most requests are served.
const HEALTHY: Duration = Duration::from_millis(100);

/// Doubles with each worker that did not serve for twice as long as was waited for it.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    wait: Duration,
}

impl Backoff {
    /// The wait after a worker that served for so long.
    pub(super) fn after(&mut self, served: Duration) -> Duration {
        let healthy = served >= HEALTHY.max(self.wait * 2);
        self.wait = if healthy { Duration::ZERO } else { (self.wait * 2).clamp(LEAST, MOST) };
        self.wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(count: u64) -> Duration {
        Duration::from_millis(count)
    }

    #[test]
    fn fast_deaths_wait_longer_and_longer_up_to_the_most() {
        let mut backoff = Backoff::default();
        let waits: Vec<_> = (0..8).map(|_| backoff.after(ms(20)).as_millis()).collect();
        assert_eq!(waits, [100, 200, 400, 800, 1600, 3200, 5000, 5000]);
    }

    #[test]
    fn who_served_is_started_again_at_once() {
        let mut backoff = Backoff::default();
        assert!((0..200).all(|_| backoff.after(ms(300)).is_zero()));
        for _ in 0..3 {
            backoff.after(Duration::ZERO);
        }
        assert_eq!(backoff.after(ms(799)), ms(800), "it waited for 400 ms and served for less than twice of that");
        assert_eq!(backoff.after(ms(1600)), Duration::ZERO);
        assert_eq!(backoff.after(Duration::ZERO), LEAST);
    }
}
