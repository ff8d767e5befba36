//! Tokens that a pod takes ahead of limits that pods share (accuracy `Leased`), so that most requests ask nobody.
//!
//! A key that is asked for often has a task, which takes tokens for a term and brings back before its end what nobody wanted. The bucket
//! reserves what is taken out of its burst, so rate and burst hold whenever it is spent ([`super::shared`]). In a term at most half of
//! the burst comes in, so the other half is there for all that is reserved. While the bucket is empty nobody asks: what would be denied by
//! the store is denied here.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use futures::FutureExt as _;
use tokio::{
    runtime::Handle,
    sync::Notify,
    time::{Instant, sleep, sleep_until, timeout_at},
};

use super::{
    counted::Metrics,
    shared::{Bucket, Lease, Leased, Store, Verdict},
};

const SHARDS: usize = 16;
/// Keys that are followed at most; those beyond are served exactly.
const CAPACITY: usize = 16_384;
/// Tokens that are wanted in a term, at least, for a lease to be worth it.
const WORTH: u64 = 20;
/// Terms: a lease of a shorter one would be more calls than it saves, and of a longer one lie idle for too long.
const SHORTEST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(5);

/// The keys of leased limits.
pub(super) struct Leases {
    store: Store,
    runtime: Handle,
    metrics: Metrics,
    shards: [Mutex<HashMap<u64, Pool>>; SHARDS],
}

/// What a pod has of one bucket.
#[derive(Debug)]
struct Pool {
    /// What the policy says by now.
    of: Of,
    lease: Option<Lease>,
    /// Tokens of it that are not spent.
    left: u64,
    /// What the bucket said last, and whether a request has heard of it.
    rest: u64,
    is_fresh: bool,
    /// Since then.
    spent: u64,
    /// Until then the bucket has nothing.
    dry: Option<Instant>,
    demand: Demand,
    /// Wakes the task, which is there while the key is asked for often.
    task: Option<Arc<Notify>>,
}

/// Tokens that requests wanted, denied or not.
#[derive(Debug)]
struct Demand {
    since: Instant,
    now: u64,
    before: u64,
}

/// What leases say to a request.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Said {
    Allowed {
        remaining: u64,
        /// At the first since the bucket was asked: what was spent here since the first before.
        spent: Option<u64>,
    },
    Denied {
        retry: Duration,
    },
    /// The store is to be asked.
    Ask,
}

/// A key, and its bucket.
#[derive(Clone, Copy, Debug)]
pub(super) struct Of {
    pub(super) key: u64,
    pub(super) bucket: Bucket,
    term: Duration,
}

/// A lease that is brought back, and its tokens that nobody wanted.
type Unused = (Lease, u64);

impl Of {
    /// None if the bucket is too small for its rate: it is served exactly.
    pub(super) fn new(key: u64, bucket: &Bucket) -> Option<Self> {
        term(bucket).map(|term| Self { key, bucket: *bucket, term })
    }
}

/// How long a lease of a bucket lasts.
fn term(bucket: &Bucket) -> Option<Duration> {
    let half = bucket.window() / 2;
    (half >= SHORTEST).then(|| half.min(LONGEST))
}

impl Demand {
    fn add(&mut self, cost: u64, term: Duration, now: Instant) {
        self.turn(term, now);
        self.now = self.now.saturating_add(cost);
    }

    fn turn(&mut self, term: Duration, now: Instant) {
        let past = now.saturating_duration_since(self.since);
        if past >= term {
            self.before = if past < 2 * term { self.now } else { 0 };
            (self.now, self.since) = (0, now);
        }
    }

    /// In a term.
    fn expected(&self) -> u64 {
        self.now.max(self.before)
    }
}

impl Pool {
    fn new(of: Of, now: Instant) -> Self {
        let demand = Demand { since: now, now: 0, before: 0 };
        Self { of, lease: None, left: 0, rest: 0, is_fresh: false, spent: 0, dry: None, demand, task: None }
    }

    fn take(&mut self, cost: u64, term: Duration, now: Instant) -> Said {
        self.demand.add(cost, term, now);
        if self.lease.as_ref().is_some_and(|lease| lease.ends <= now) {
            (self.lease, self.left) = (None, 0);
        }
        if let Some(left) = self.left.checked_sub(cost) {
            self.left = left;
            if self.lease.as_ref().is_some_and(|lease| left <= lease.tokens / 4) {
                self.wake();
            }
            self.spent = self.spent.saturating_add(cost);
            let spent = std::mem::take(&mut self.is_fresh).then(|| std::mem::take(&mut self.spent));
            return Said::Allowed { remaining: self.rest.saturating_add(left), spent };
        }
        if let Some(dry) = self.dry.filter(|dry| *dry > now) {
            return Said::Denied { retry: dry - now };
        }
        self.wake();
        Said::Ask
    }

    /// The store has denied a request: until then it would deny all.
    fn dries(&mut self, until: Instant) {
        self.dry = Some(self.dry.map_or(until, |dry| dry.max(until)));
    }

    fn wake(&self) {
        if let Some(task) = &self.task {
            task.notify_one();
        }
    }

    fn is_idle(&self, term: Duration, now: Instant) -> bool {
        self.task.is_none() && now.saturating_duration_since(self.demand.since) > 2 * term
    }
}

impl Leases {
    pub(super) fn new(store: Store, runtime: Handle, metrics: Metrics) -> Arc<Self> {
        Arc::new(Self { store, runtime, metrics, shards: std::array::from_fn(|_| Mutex::default()) })
    }

    /// Takes tokens of what there is of a key here; `name` tells the key's name in the store.
    pub(super) fn take(self: &Arc<Self>, of: &Of, cost: u64, now: Instant, name: impl FnOnce() -> String) -> Said {
        let mut pools = self.lock(of.key);
        if pools.len() >= CAPACITY / SHARDS && !pools.contains_key(&of.key) {
            pools.retain(|_, pool| !pool.is_idle(LONGEST, now));
            if pools.len() >= CAPACITY / SHARDS {
                return Said::Ask;
            }
        }
        let pool = pools.entry(of.key).or_insert_with(|| Pool::new(*of, now));
        pool.of = *of;
        let said = pool.take(cost, of.term, now);
        if pool.task.is_none() && pool.demand.expected() >= WORTH {
            let notify = Arc::new(Notify::new());
            pool.task = Some(Arc::clone(&notify));
            self.runtime.spawn(follow(Arc::downgrade(self), of.key, name(), notify));
        }
        said
    }

    /// Gives back what a request took that goes no further.
    pub(super) fn give_back(&self, key: u64, cost: u64, now: Instant) {
        if let Some(pool) = self.lock(key).get_mut(&key)
            && let Some(lease) = pool.lease.as_ref().filter(|lease| lease.ends > now)
        {
            // Of another lease by now, it is lost: never more than was taken.
            pool.left = pool.left.saturating_add(cost).min(lease.tokens);
        }
    }

    /// The store was asked for a request, and denied it.
    pub(super) fn denied(&self, of: &Of, verdict: &Verdict, now: Instant) {
        // Where something is left, a request that costs less may pass.
        if let (Some(retry), 0, Some(pool)) = (verdict.retry, verdict.remaining, self.lock(of.key).get_mut(&of.key)) {
            pool.dries(now + retry.min(of.term / 2));
        }
    }

    /// What is brought back, and how much is wanted for the next term: nothing ends the task.
    fn exchange(&self, key: u64, now: Instant) -> Option<(Of, Option<Unused>, u64)> {
        let mut pools = self.lock(key);
        let pool = pools.get_mut(&key)?;
        let of = pool.of;
        pool.demand.turn(of.term, now);
        let expected = pool.demand.expected();
        let wanted = if expected < WORTH { 0 } else { (expected + expected / 4).min(of.bucket.burst() / 2) };
        let left = std::mem::take(&mut pool.left);
        let lease = pool.lease.take().filter(|lease| lease.ends > now).map(|lease| (lease, left));
        if wanted == 0 {
            pool.task = None;
        }
        Some((of, lease, wanted))
    }

    fn receive(&self, of: &Of, wanted: u64, leased: Leased, now: Instant) {
        let mut pools = self.lock(of.key);
        let Some(pool) = pools.get_mut(&of.key) else { return };
        let granted = leased.lease.as_ref().map_or(0, |lease| lease.tokens);
        (pool.left, pool.lease, pool.rest, pool.is_fresh) = (granted, leased.lease, leased.verdict.remaining, true);
        self.metrics.leased(granted, 0);
        pool.dry = None;
        if granted < wanted {
            pool.dries(now + of.term / 2);
        }
    }

    /// When the task goes on: when that is near its end, at once if it is used up while the bucket had enough, or when the bucket may have
    /// something again.
    fn due(&self, of: &Of, now: Instant) -> (Instant, bool) {
        let pools = self.lock(of.key);
        let Some(pool) = pools.get(&of.key) else { return (now, false) };
        let near = pool.lease.as_ref().map_or(now + of.term / 2, |lease| lease.ends - of.term / 4);
        match pool.dry.filter(|dry| *dry > now) {
            Some(dry) => (near.min(dry), false),
            None => (near, true),
        }
    }

    fn lock(&self, key: u64) -> MutexGuard<'_, HashMap<u64, Pool>> {
        self.shards[(key >> 32) as usize % SHARDS].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes leases of a key for as long as it is asked for often.
async fn follow(leases: Weak<Leases>, key: u64, name: String, low: Arc<Notify>) {
    loop {
        let Some(all) = leases.upgrade() else { return };
        let Some((of, before, wanted)) = all.exchange(key, Instant::now()) else { return };
        let mut answered = true;
        if before.is_some() || wanted > 0 {
            all.metrics.leased(0, before.as_ref().map_or(0, |(_, unused)| *unused));
            match all.store.lease(&name, &of.bucket, before, wanted, of.term).await {
                Ok(leased) => all.receive(&of, wanted, leased, Instant::now()),
                Err(failure) => {
                    all.metrics.failed(failure);
                    answered = false;
                }
            }
        }
        if wanted == 0 {
            return;
        }
        let (due, may_be_sooner) = all.due(&of, Instant::now());
        drop(all);
        if !answered {
            sleep(of.term.mul_f64(0.5 + fastrand::f64())).await;
        } else if may_be_sooner {
            // What was low until now is not any more.
            let _before = low.notified().now_or_never();
            let _late = timeout_at(due, low.notified()).await;
        } else {
            sleep_until(due).await;
        }
    }
}

impl fmt::Debug for Leases {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Leases").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terms_follow_from_how_much_of_a_burst_comes_in() {
        let term = |requests, seconds, burst| term(&Bucket::new(requests, Duration::from_secs(seconds), burst).unwrap());
        assert_eq!(term(500, 1, 500), Some(Duration::from_millis(500)));
        assert_eq!(term(500, 1, 50), None, "half of it comes in 50 ms");
        assert_eq!(term(1, 86_400, 1), Some(LONGEST));
        assert_eq!(term(10_000_000, 1, 10_000_000), Some(Duration::from_millis(500)));
    }

    #[tokio::test(start_paused = true)]
    async fn tokens_are_spent_once_and_denied_while_there_are_none() {
        let term = Duration::from_millis(500);
        let mut now = Instant::now();
        let bucket = Bucket::new(500, Duration::from_secs(1), 500).unwrap();
        let mut pool = Pool::new(Of::new(1, &bucket).unwrap(), now);
        assert_eq!(pool.take(1, term, now), Said::Ask, "nothing is known of it");
        pool.lease = Some(Lease::of(10, now + term));
        (pool.left, pool.rest, pool.is_fresh) = (10, 7, true);
        let said: Vec<_> = (0..10).map(|_| pool.take(1, term, now)).collect();
        assert_eq!(said[0], Said::Allowed { remaining: 16, spent: Some(1) });
        assert_eq!(said[9], Said::Allowed { remaining: 7, spent: None });
        assert_eq!(pool.take(1, term, now), Said::Ask);
        pool.dries(now + Duration::from_millis(20));
        assert_eq!(pool.take(1, term, now), Said::Denied { retry: Duration::from_millis(20) });
        now += Duration::from_millis(20);
        assert_eq!(pool.take(1, term, now), Said::Ask);
        pool.left = 5;
        assert_eq!(pool.take(6, term, now), Said::Ask, "a cost is taken whole");
        now += term;
        assert_eq!(pool.take(1, term, now), Said::Ask, "the lease has ended");
        assert_eq!(pool.demand.expected(), 14 + 6);
    }
}
