//! The second tier: answers in Redis, which all pods of a workload share.
//!
//! It is looked at where memory has nothing, by the one request that would go to the origin for all, and holds objects up to a size. Whatever is wrong with it, requests
//! go on as if it were empty: a command has a time limit, and after some that failed nobody asks until it answers again.
//! Purges hold for it as for memory: an answer carries the place in the log of purges that its fetch began at.
//!
//! With `collapse.scope: Cluster`, who finds nothing takes a [`Lease`] on the key: of all pods one goes to the origin, and the others look again
//! until its answer is there, or for as long as the policy says.

mod commands;
mod lease;
mod writer;

use std::{fmt, sync::Arc, time::Duration};

use crds::proxy::FetchrProxySpec;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

pub(super) use self::{commands::digest, lease::Lease};
use self::{
    commands::{Found, Key},
    writer::{Queue, Write},
};
use super::{
    behind::Tally,
    purge::Scope,
    record::{Answer, Record},
    semantics::clock::Now,
    store::Vary,
};

use crate::redis::{Pool, Purpose, Redis};

/// Between two looks for what another pod fetches, at first and at most.
const FIRST_LOOK: Duration = Duration::from_millis(4);
const LONGEST_LOOK: Duration = Duration::from_millis(50);

/// Where it is, and what it holds.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Settings {
    redis: Redis,
    /// What all names begin with: `fetchr:<namespace>:cache:<workload>:`.
    pub(super) prefix: String,
    /// Bytes of the longest body.
    pub(super) max_object: u64,
    /// How long a command may take.
    pub(super) patience: Duration,
}

impl Settings {
    /// As a FetchrProxy says; None if nothing is shared.
    pub(crate) fn of(spec: &FetchrProxySpec, redis: &Redis, scope: &Scope) -> Option<Self> {
        let (settings, shared) = (spec.redis.as_ref()?, spec.cache.shared?);
        Some(Self {
            redis: redis.clone(),
            prefix: scope.prefix("cache"),
            max_object: shared.max_object.0,
            patience: settings.command_timeout.0,
        })
    }
}

/// The answers that pods share.
pub(super) struct Tier {
    settings: Settings,
    pool: Arc<Pool>,
    queue: Queue,
    tally: Tally,
    stop: CancellationToken,
}

/// What is found for a request that memory has nothing for.
pub(super) enum Got {
    /// An answer, with the names of its `Vary`. Whether it may be used is not known yet.
    Answer(Box<Answer>, Option<Vary>),
    /// Nothing. With a lease, other pods wait for what the origin answers.
    Nothing(Option<Lease>),
}

impl Tier {
    /// Begins to connect, and writes in a task of this runtime that ends when this is dropped.
    pub(super) fn start(settings: Settings, tally: Tally) -> Arc<Self> {
        let (queue, written) = Queue::new();
        let (pool, stop) = (settings.redis.pool(Purpose::Cache), CancellationToken::new());
        let tier = Arc::new(Self { pool, queue, tally, stop, settings });
        writer::spawn(&tier, written);
        tier
    }

    pub(super) fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Whether it answers, as far as is known.
    pub(super) fn is_connected(&self) -> bool {
        self.pool.is_connected()
    }

    /// Looks for an answer under a primary key; `variant` makes the values that select one of those that `Vary` tells apart, and is None if it can't. With
    /// `waits`, of all pods one goes to the origin, and the others wait for so long.
    pub(super) async fn get(
        self: &Arc<Self>,
        primary: &[u8],
        variant: impl Fn(&Vary) -> Option<Vec<u8>>,
        waits: Option<Duration>,
    ) -> Got {
        let until = Instant::now() + waits.unwrap_or_default();
        let (mut values, mut vary) = (Vec::new(), None);
        let mut pause = FIRST_LOOK;
        let mut key = Key::of(&self.settings.prefix, primary);
        loop {
            match self.look(&key, primary, &values, waits).await {
                Found::Record(Record::Answer(answer)) => {
                    self.tally.request("hit");
                    return Got::Answer(answer, vary);
                }
                Found::Record(Record::Vary { vary: names, era }) if vary.is_none() => {
                    let Some(of_request) = variant(&names) else { return self.nothing(None) };
                    key = Key::of_variant(&self.settings.prefix, primary, &of_request, era);
                    (values, vary) = (of_request, Some(names));
                }
                Found::Taken if Instant::now() + pause < until => {
                    sleep(pause).await;
                    pause = (pause * 2).min(LONGEST_LOOK);
                }
                Found::Ours(lease) => return self.nothing(Some(lease)),
                Found::Record(Record::Vary { .. }) | Found::Taken | Found::Nothing => return self.nothing(None),
                Found::Failed => return Got::Nothing(None),
            }
        }
    }

    fn nothing(&self, lease: Option<Lease>) -> Got {
        self.tally.request("miss");
        Got::Nothing(lease)
    }

    /// Whether a body of so many bytes is not kept here.
    pub(super) fn is_too_long(&self, bytes: u64) -> bool {
        bytes > self.settings.max_object
    }

    /// Stores an answer, some time soon, if it is not too large; with the lease under which it was fetched.
    pub(super) fn put(&self, answer: Answer, vary: Option<Vary>, now: Now, lease: Option<Lease>) {
        let left = answer.meta.left(now);
        if self.is_too_long(answer.object.body_len()) || left == 0 {
            return; // and a lease is released
        }
        self.write(Write::Put { answer: Box::new(answer), vary, left, lease });
    }

    /// Takes out what a primary key leads to, with its variants: without their marker nobody finds them, and the next one has another era.
    pub(super) fn remove(&self, primary: &[u8]) {
        self.write(Write::Remove(Key::of(&self.settings.prefix, primary)));
    }

    fn write(&self, write: Write) {
        let is_put = matches!(write, Write::Put { .. });
        if !self.queue.add(write) && is_put {
            self.tally.written("dropped");
        }
    }
}

impl Drop for Tier {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl fmt::Debug for Tier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tier").field("settings", &self.settings).finish_non_exhaustive()
    }
}
