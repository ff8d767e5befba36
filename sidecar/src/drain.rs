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
use serde::{Deserialize, Serialize};
use tokio::{
    sync::watch,
    time::{Instant, timeout_at},
};

/// Where the sidecar stands between start and end. Later phases compare greater.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
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
    state: watch::Sender<State>,
    inbound: Counter,
    outbound: Counter,
}

#[derive(Clone, Copy, Debug)]
struct State {
    phase: Phase,
    /// Whether another process accepts from now on, and both directions leave together.
    leaving: bool,
}

impl State {
    fn asks_to_close(self, direction: Direction) -> bool {
        self.phase >= announced_at(direction) || self.leaving
    }

    fn closes(self, direction: Direction) -> bool {
        self.phase >= closing_at(direction) || (self.leaving && self.phase >= Phase::Closing)
    }

    fn accepts(self, direction: Direction) -> bool {
        !self.leaving && self.phase < closing_at(direction)
    }
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
        let state = watch::Sender::new(State { phase: Phase::Serving, leaving: false });
        let shared = Shared { state, inbound: counter(), outbound: counter() };
        Self { shared: Arc::new(shared) }
    }

    /// The phase of now.
    pub fn phase(&self) -> Phase {
        self.state().phase
    }

    /// Whether readiness is gone.
    pub fn is_draining(&self) -> bool {
        self.phase() > Phase::Serving
    }

    /// Whether a connection of this direction should be closed after its next answer.
    pub fn asks_to_close(&self, direction: Direction) -> bool {
        self.state().asks_to_close(direction)
    }

    /// Waits until connections of this direction are closed as soon as they are idle.
    pub async fn closing(&self, direction: Direction) {
        self.until(|state| state.closes(direction)).await;
    }

    /// Whether connections of this direction are accepted.
    pub(crate) fn accepts(&self, direction: Direction) -> bool {
        self.state().accepts(direction)
    }

    /// Waits until no more connections of this direction are accepted.
    pub async fn accepts_no_more(&self, direction: Direction) {
        self.until(|state| !state.accepts(direction)).await;
    }

    /// Waits until a connection of this direction must begin to ask its client to leave, or `want` says so at a [reminder](Self::remind).
    pub(crate) async fn announced_or_wanted(&self, direction: Direction, want: impl Fn() -> bool) {
        self.until(|state| state.asks_to_close(direction) || want()).await;
    }

    /// Has all who wait look again whether they still have to: there may be other reasons to leave.
    pub(crate) fn remind(&self) {
        self.shared.state.send_modify(|_| {});
    }

    /// Waits for a phase, or a later one.
    pub async fn reached(&self, phase: Phase) {
        self.until(|state| state.phase >= phase).await;
    }

    async fn until(&self, holds: impl Fn(State) -> bool) {
        let mut changes = self.shared.state.subscribe();
        // The sender lives in `self`, so this ends only when it holds.
        let _ = changes.wait_for(|now| holds(*now)).await;
    }

    fn state(&self) -> State {
        *self.shared.state.borrow()
    }

    /// Drains inbound traffic: announces, waits for `delay`, then closes and waits up to `timeout` for what is under way.
    /// Returns the connections that were left. A second caller joins the first one's drain.
    pub async fn drain_inbound(&self, delay: Duration, timeout: Duration) -> usize {
        self.begin_inbound(delay, timeout);
        self.reached(Phase::Drained).await;
        self.open(Direction::Inbound)
    }

    fn begin_inbound(&self, delay: Duration, timeout: Duration) {
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

    /// Leaves everything to another process, which accepts by now: nothing more is accepted, connections of both directions are
    /// asked to close for `delay`, then closed when they are idle, and cut off after `timeout`. Returns those that were left.
    pub async fn leave(&self, delay: Duration, timeout: Duration) -> usize {
        self.shared.state.send_modify(|now| {
            now.leaving = true;
            now.phase = now.phase.max(Phase::Announced);
        });
        let all = async {
            self.empty(Direction::Inbound, delay).await;
            self.empty(Direction::Outbound, delay).await;
        };
        let _ = tokio::time::timeout(delay, all).await;
        self.stop(timeout).await
    }

    /// Goes on with a drain that another process began `age` ago, as far as it came.
    pub fn resume(&self, phase: Phase, age: Duration, delay: Duration, timeout: Duration) {
        let closed = phase >= Phase::Closing;
        let (delay, timeout) = match phase {
            Phase::Drained | Phase::Stopping => (Duration::ZERO, Duration::ZERO),
            Phase::Closing => (Duration::ZERO, timeout.saturating_sub(age.saturating_sub(delay))),
            Phase::Serving | Phase::Announced => (delay.saturating_sub(age), timeout),
        };
        self.begin_inbound(delay, timeout);
        if closed {
            self.advance(Phase::Closing); // at once, so that nothing is accepted
        }
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
        self.shared.state.send_if_modified(|now| {
            let later = now.phase < phase;
            if later {
                now.phase = phase;
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

    #[tokio::test(start_paused = true)]
    async fn who_leaves_accepts_nothing_and_asks_both_directions_to_close_before_it_closes_them() {
        let handle = Handle::new();
        let _open = (handle.track(Direction::Inbound), handle.track(Direction::Outbound));
        let start = Instant::now();
        let leave = tokio::spawn({
            let handle = handle.clone();
            async move { handle.leave(Duration::from_secs(5), Duration::from_secs(30)).await }
        });
        for direction in [Direction::Inbound, Direction::Outbound] {
            handle.accepts_no_more(direction).await;
            handle.announced_or_wanted(direction, || false).await;
            assert_eq!(start.elapsed().as_secs(), 0);
        }
        handle.closing(Direction::Outbound).await;
        assert_eq!(start.elapsed().as_secs(), 5);
        assert_eq!(leave.await.unwrap(), 2);
        assert_eq!(start.elapsed().as_secs(), 35);
    }

    #[tokio::test(start_paused = true)]
    async fn drain_goes_on_where_another_process_left_it() {
        let (delay, timeout) = (Duration::from_secs(5), Duration::from_secs(30));
        let handle = Handle::new();
        handle.resume(Phase::Announced, Duration::from_secs(3), delay, timeout);
        let start = Instant::now();
        assert_eq!(handle.phase(), Phase::Announced);
        handle.accepts_no_more(Direction::Inbound).await;
        assert_eq!(start.elapsed().as_secs(), 2);

        let closed = Handle::new();
        let _open = closed.track(Direction::Inbound);
        let start = Instant::now();
        closed.resume(Phase::Closing, Duration::from_secs(9), delay, timeout);
        assert_eq!(closed.phase(), Phase::Closing);
        closed.reached(Phase::Drained).await;
        assert_eq!(start.elapsed().as_secs(), 26, "4 s of its time have passed");
    }
}
