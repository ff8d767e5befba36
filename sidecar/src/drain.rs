//! How the sidecar leaves: inbound first, outbound only when the application has ended.
//!
//! `Serving -> Announced -> Closing -> Drained -> Stopping`. While announced, connections are still accepted, readiness is
//! gone and every inbound answer asks its client to close, so that the idle connections which are closed later are really idle.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use crds::policy::Direction;
use tokio::{
    sync::watch,
    time::{Instant, timeout_at},
};

/// Where the sidecar stands between start and end. Later phases compare greater.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Phase {
    /// All is served.
    Serving,
    /// Not ready any more; inbound connections are accepted, and told to close.
    Announced,
    /// Inbound connections are closed as soon as they are idle; no new ones.
    Closing,
    /// Inbound is empty, or its time was up; outbound goes on.
    Drained,
    /// Outbound is closed too.
    Stopping,
}

/// Starts and watches the drain. Clones share one state.
#[derive(Clone, Debug)]
pub struct Handle {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    phase: watch::Sender<Phase>,
    inbound: Counter,
    outbound: Counter,
}

#[derive(Debug)]
struct Counter {
    open: AtomicUsize,
    changed: tokio::sync::Notify,
}

impl Default for Handle {
    fn default() -> Self {
        Self::new()
    }
}

impl Handle {
    /// A sidecar that serves.
    pub fn new() -> Self {
        let counter = || Counter { open: AtomicUsize::new(0), changed: tokio::sync::Notify::new() };
        let shared = Shared { phase: watch::Sender::new(Phase::Serving), inbound: counter(), outbound: counter() };
        Self { shared: Arc::new(shared) }
    }

    /// The phase of now.
    pub fn phase(&self) -> Phase {
        *self.shared.phase.borrow()
    }

    /// Whether readiness is gone.
    pub fn is_draining(&self) -> bool {
        self.phase() > Phase::Serving
    }

    /// Whether a connection of this direction should be closed after its next answer.
    pub fn asks_to_close(&self, direction: Direction) -> bool {
        self.phase() >= announced_at(direction)
    }

    /// Waits until connections of this direction are closed as soon as they are idle.
    pub async fn closing(&self, direction: Direction) {
        self.reached(closing_at(direction)).await;
    }

    /// Waits until a connection of this direction must begin to ask its client to leave, or `want` says so at a [reminder](Self::remind).
    pub(crate) async fn announced_or_wanted(&self, direction: Direction, want: impl Fn() -> bool) {
        let mut changes = self.shared.phase.subscribe();
        let _ = changes.wait_for(|now| *now >= announced_at(direction) || want()).await;
    }

    /// Has all who wait look again whether they still have to: there may be other reasons to leave.
    pub(crate) fn remind(&self) {
        self.shared.phase.send_modify(|_| {});
    }

    /// Waits for a phase, or a later one.
    pub async fn reached(&self, phase: Phase) {
        let mut changes = self.shared.phase.subscribe();
        // The sender lives in `self`, so this ends only when the phase is reached.
        let _ = changes.wait_for(|now| *now >= phase).await;
    }

    /// Drains inbound traffic: announces, waits for `delay`, then closes and waits up to `timeout` for what is under way.
    /// Returns the connections that were left. A second caller joins the first one's drain.
    pub async fn drain_inbound(&self, delay: Duration, timeout: Duration) -> usize {
        if self.advance(Phase::Announced) {
            tracing::info!(delay = ?delay, timeout = ?timeout, "Inbound drain started.");
            let this = self.clone();
            // A task of its own: a caller that goes away must not stop the drain half-way.
            tokio::spawn(async move {
                tokio::time::sleep(delay).await;
                this.advance(Phase::Closing);
                let left = this.empty(Direction::Inbound, timeout).await;
                tracing::info!(left, "Inbound drain ended.");
                this.advance(Phase::Drained);
            });
        }
        self.reached(Phase::Drained).await;
        self.open(Direction::Inbound)
    }

    /// Closes all, both directions, and waits up to `timeout` for what is under way. Returns the connections that were left.
    pub async fn stop(&self, timeout: Duration) -> usize {
        self.advance(Phase::Stopping);
        let both = async {
            self.empty(Direction::Inbound, timeout).await;
            self.empty(Direction::Outbound, timeout).await;
        };
        // Both waits have the same limit, but count from one start.
        let _ = tokio::time::timeout(timeout, both).await;
        self.open(Direction::Inbound) + self.open(Direction::Outbound)
    }

    /// Drains inbound traffic, then stops: `timeout`, counted from the end of `delay`, is for both together. Returns the connections
    /// that were left.
    pub async fn end(&self, delay: Duration, timeout: Duration) -> usize {
        let deadline = Instant::now() + delay + timeout;
        // An earlier drain, which this joins, has a time of its own.
        let _ = timeout_at(deadline, self.drain_inbound(delay, timeout)).await;
        self.stop(deadline.saturating_duration_since(Instant::now())).await
    }

    /// Counts a connection until the guard is dropped.
    pub fn track(&self, direction: Direction) -> Open {
        self.counter(direction).open.fetch_add(1, Ordering::Relaxed);
        Open { handle: self.clone(), direction }
    }

    /// Connections that are open.
    pub fn open(&self, direction: Direction) -> usize {
        self.counter(direction).open.load(Ordering::Relaxed)
    }

    fn counter(&self, direction: Direction) -> &Counter {
        match direction {
            Direction::Inbound => &self.shared.inbound,
            Direction::Outbound => &self.shared.outbound,
        }
    }

    /// Moves to a later phase; false when the phase was reached before.
    fn advance(&self, phase: Phase) -> bool {
        self.shared.phase.send_if_modified(|now| {
            let later = *now < phase;
            if later {
                *now = phase;
            }
            later
        })
    }

    async fn empty(&self, direction: Direction, timeout: Duration) -> usize {
        let counter = self.counter(direction);
        let emptied = async {
            loop {
                let changed = counter.changed.notified();
                if counter.open.load(Ordering::Acquire) == 0 {
                    return;
                }
                changed.await;
            }
        };
        let _ = tokio::time::timeout(timeout, emptied).await;
        counter.open.load(Ordering::Relaxed)
    }
}

fn announced_at(direction: Direction) -> Phase {
    match direction {
        Direction::Inbound => Phase::Announced,
        Direction::Outbound => Phase::Stopping,
    }
}

fn closing_at(direction: Direction) -> Phase {
    match direction {
        Direction::Inbound => Phase::Closing,
        Direction::Outbound => Phase::Stopping,
    }
}

/// An open connection, counted while this lives.
#[derive(Debug)]
pub struct Open {
    handle: Handle,
    direction: Direction,
}

impl Drop for Open {
    fn drop(&mut self) {
        let counter = self.handle.counter(self.direction);
        if counter.open.fetch_sub(1, Ordering::Release) == 1 {
            counter.changed.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn inbound_drain_waits_for_open_connections() {
        let handle = Handle::new();
        let open = handle.track(Direction::Inbound);
        let drain = tokio::spawn({
            let handle = handle.clone();
            async move { handle.drain_inbound(Duration::from_secs(5), Duration::from_secs(30)).await }
        });
        handle.reached(Phase::Closing).await;
        assert!(!drain.is_finished());
        drop(open);
        assert_eq!(drain.await.unwrap(), 0);
        assert_eq!(handle.phase(), Phase::Drained);
    }

    #[tokio::test(start_paused = true)]
    async fn inbound_drain_gives_up_after_its_time() {
        let handle = Handle::new();
        let _open = handle.track(Direction::Inbound);
        let start = Instant::now();
        assert_eq!(handle.drain_inbound(Duration::from_secs(5), Duration::from_secs(30)).await, 1);
        assert_eq!(start.elapsed().as_secs(), 35);
    }

    #[tokio::test(start_paused = true)]
    async fn outbound_outlives_the_inbound_drain() {
        let handle = Handle::new();
        handle.drain_inbound(Duration::ZERO, Duration::ZERO).await;
        assert!(handle.asks_to_close(Direction::Inbound));
        assert!(!handle.asks_to_close(Direction::Outbound));
        handle.stop(Duration::ZERO).await;
        assert!(handle.asks_to_close(Direction::Outbound));
    }

    #[tokio::test(start_paused = true)]
    async fn end_takes_one_delay_and_one_timeout() {
        let handle = Handle::new();
        let _open = (handle.track(Direction::Inbound), handle.track(Direction::Outbound));
        let start = Instant::now();
        assert_eq!(handle.end(Duration::from_secs(5), Duration::from_secs(30)).await, 2);
        assert_eq!(start.elapsed().as_secs(), 35);
    }

    #[tokio::test(start_paused = true)]
    async fn end_after_a_drain_leaves_outbound_its_whole_time() {
        let handle = Handle::new();
        handle.drain_inbound(Duration::from_secs(5), Duration::from_secs(30)).await;
        let _open = handle.track(Direction::Outbound);
        let start = Instant::now();
        assert_eq!(handle.end(Duration::ZERO, Duration::from_secs(30)).await, 1);
        assert_eq!(start.elapsed().as_secs(), 30);
    }
}
