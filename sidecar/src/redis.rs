//! The Redis that the pods share: where it is, also when that changes, and connections to it.
//!
//! A [`Finder`](find::Finder) knows which server is the primary of which slot: of a single server always the same, else as sentinels or the
//! nodes of a cluster say. Whoever finds that a server does not answer, or not as a primary, says so
//! ([`Finder::doubt`](find::Finder::doubt)); then one task looks again, paced and for all. A [`Link`] is a connection of one user's own, made
//! when it is needed; a [`Pool`] has one connection to each primary for all requests, none of which ever waits for it to be made. What is
//! shared by a [`Purpose`] has a pool of its own, so that bodies of answers hold up no limit.
//!
//! What a server's answer says of that server, which slot a key has, and what sentinels and nodes tell are pure functions ([`meaning`], [`map`]).

mod connection;
mod find;
mod link;
mod look;
mod map;
mod meaning;
mod metrics;
mod news;
mod pool;
#[cfg(test)]
#[allow(dead_code, reason = "the tests of the data path do more with it")]
pub(crate) mod server;
mod settings;
#[cfg(test)]
mod tests;

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use tokio_util::sync::CancellationToken;

use self::find::Finder;
pub(crate) use self::{
    link::Link,
    map::Slot,
    metrics::Metrics,
    pool::{Failed, Pool, Purpose},
    settings::Settings,
};

/// A Redis that is looked after. Clones are the same; when the last one is dropped, its tasks end.
#[derive(Clone)]
pub(crate) struct Redis(Arc<Inner>);

struct Inner {
    finder: Arc<Finder>,
    /// By purpose; each ends with the last who uses it.
    pools: [Mutex<Weak<Pool>>; 2],
    stop: CancellationToken,
}

impl Redis {
    /// Looks after it from now on, in tasks of this runtime.
    pub(crate) fn start(settings: Settings, metrics: Metrics) -> Self {
        let (finder, stop) = (Arc::new(Finder::new(settings, metrics)), CancellationToken::new());
        look::spawn(&finder, &stop);
        Self(Arc::new(Inner { finder, pools: Default::default(), stop }))
    }

    /// Which it is.
    pub(crate) fn settings(&self) -> &Settings {
        self.0.finder.settings()
    }

    /// Whether only keys of one slot can be used at once.
    pub(crate) fn is_cluster(&self) -> bool {
        matches!(self.settings().mode, settings::Mode::Cluster { .. })
    }

    /// A connection for a key, and those in the same slot, for who waits so long for an answer. It is made when it is needed.
    pub(crate) fn link(&self, key: &str, patience: Duration) -> Link {
        Link::new(Arc::clone(&self.0.finder), Slot::of(key), patience)
    }

    /// The connections for all requests, for a purpose. Who is the first to ask begins to connect, in tasks of this runtime; they are closed when
    /// the last one has dropped them.
    pub(crate) fn pool(&self, purpose: Purpose) -> Arc<Pool> {
        let mut pool = self.0.pools[purpose as usize].lock().unwrap_or_else(PoisonError::into_inner);
        pool.upgrade().unwrap_or_else(|| {
            let started = Pool::start(&self.0.finder, purpose, &self.0.stop);
            *pool = Arc::downgrade(&started);
            started
        })
    }

    /// Hears of what is published on a channel, for ever; also when there may have been something that wasn't heard. A key says which
    /// primary is listened to: that of what the channel is about.
    pub(crate) async fn hear(&self, key: &str, channel: &str, patience: Duration, news: impl Fn()) {
        news::hear(&self.0.finder, Slot::of(key), channel, patience, news).await;
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl PartialEq for Redis {
    fn eq(&self, other: &Self) -> bool {
        self.settings() == other.settings()
    }
}

impl fmt::Debug for Redis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Redis").field(self.settings()).finish()
    }
}

/// An error in words of our own, about a server that can't be used.
fn failed(what: String) -> redis::RedisError {
    std::io::Error::other(what).into()
}

/// Between three quarters and the whole of it.
fn jittered(time: Duration) -> Duration {
    time.mul_f64(1.0 - fastrand::f64() / 4.0)
}
