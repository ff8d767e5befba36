//! A log that pods share, from the side of one of them.

use std::{
    fmt,
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use crds::proxy::{CachePurge, FetchrProxySpec, WhenCutOff};
use tokio::{sync::Semaphore, time::timeout};
use tokio_util::sync::CancellationToken;

use super::{
    CutOff, Index, Rules,
    follow::Purges,
    log::{MemberId, Scope, Strength, What},
    redis::{self, LogError, random},
    request::{PurgeAnswer, PurgeError},
};
use crate::redis::{Link, Redis};

/// How long an answer of Redis is waited for, at most.
const PATIENCE: Duration = Duration::from_secs(2);
/// Purges that are waited for at a time: each has a connection of its own.
const WAITING: usize = 16;
/// Between two lines of log that tell that the log can't be asked.
const TOLD: Duration = Duration::from_secs(60);

/// Which log, and what its members agree upon.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Log {
    redis: Redis,
    scope: Scope,
    pub(super) rules: Rules,
}

/// A pod's part of it.
pub(super) struct Shared {
    log: Arc<Log>,
    pub(super) purges: Arc<Purges>,
    id: MemberId,
    waiting: Semaphore,
    failures: Arc<AtomicU64>,
    stop: CancellationToken,
}

impl Log {
    /// That of a scope.
    pub(crate) fn of(spec: &FetchrProxySpec, redis: &Redis, scope: &Scope) -> Self {
        let CachePurge { max_lag, when_cut_off } = spec.cache.purge;
        let cut_off = match when_cut_off {
            WhenCutOff::Serve => CutOff::Serve,
            WhenCutOff::Revalidate => CutOff::Revalidate,
        };
        let replicas = spec.redis.as_ref().and_then(|redis| u32::try_from(redis.min_replicas).ok()).unwrap_or_default();
        Self { redis: redis.clone(), scope: scope.clone(), rules: Rules { lag: max_lag.0, cut_off, replicas } }
    }
}

impl Shared {
    /// Follows the log from now on, in tasks of this runtime, until it is left or dropped.
    pub(super) fn start(log: Log, pod: &str, index: Index) -> Self {
        let log = Arc::new(log);
        let shared = Self {
            purges: Arc::new(Purges::new(log.rules, index)),
            id: MemberId::new(pod, random()).unwrap_or_else(|_| MemberId::unnamed(random())),
            waiting: Semaphore::new(WAITING),
            failures: Arc::default(),
            stop: CancellationToken::new(),
            log: Arc::clone(&log),
        };
        let mut asked = shared.ask();
        let (purges, id, failures) = (Arc::clone(&shared.purges), shared.id.clone(), Arc::clone(&shared.failures));
        let (listening, channel, patience) = (Arc::clone(&shared.purges), asked.news().to_owned(), shared.patience());
        shared.until_left(async move {
            let mut told = None;
            purges.follow(&mut asked, &id, |error| note(error, &failures, &mut told)).await;
        });
        shared.until_left(async move { log.redis.hear(&channel, &channel, patience, || listening.news()).await });
        shared
    }

    /// Which log it is.
    pub(super) fn log(&self) -> &Log {
        &self.log
    }

    /// Generations so far.
    pub(super) fn eras(&self) -> u32 {
        self.purges.eras()
    }

    /// How often it could not be asked.
    pub(super) fn failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }

    /// Purges, and waits for as long as a lease may last, or so long at most.
    pub(super) async fn purge(&self, what: What, strength: Strength, at_most: Duration) -> Result<PurgeAnswer, PurgeError> {
        let _waiting = self.waiting.try_acquire().map_err(|_| PurgeError::Busy)?;
        let deadline = at_most.min(self.log.rules.outlived() + 2 * self.patience());
        let (report, failed) = self.purges.purge(&mut self.ask(), what, strength, deadline).await;
        PurgeAnswer::of(&report, failed.as_ref())
    }

    /// Ends its tasks, gives up its lease, and leaves the list of members, if that takes no longer than an answer may.
    pub(super) fn leave(&self) -> impl Future<Output = ()> + Send + use<> {
        self.stop.cancel();
        let (mut log, purges, id) = (self.ask(), Arc::clone(&self.purges), self.id.clone());
        async move {
            // Who is not taken off the list costs one purge its wait.
            let _ = timeout(PATIENCE, purges.leave(&mut log, &id)).await;
        }
    }

    /// The log over a connection of its own.
    fn ask(&self) -> redis::Log<Link> {
        let (log, patience) = (&*self.log, self.patience());
        redis::Log::new(log.redis.link(&log.scope.key("log"), patience), &log.scope, &log.rules, patience)
    }

    /// A lease counts from when its beat was sent: of one that comes later nothing is left.
    fn patience(&self) -> Duration {
        PATIENCE.min(self.log.rules.lag)
    }

    fn until_left(&self, task: impl Future<Output = ()> + Send + 'static) {
        let stop = self.stop.clone();
        tokio::spawn(async move { stop.run_until_cancelled(task).await });
    }
}

/// Counts that the log could not be asked, and tells it now and then.
fn note(error: &LogError, failures: &AtomicU64, told: &mut Option<Instant>) {
    failures.fetch_add(1, Ordering::Relaxed);
    if told.is_none_or(|told| told.elapsed() >= TOLD) {
        *told = Some(Instant::now());
        tracing::warn!(why = error.chain(), "The log of purges can't be asked. It is asked again and again.");
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("log", &self.log).field("id", &self.id).finish_non_exhaustive()
    }
}
