//! Names to addresses, for all workers of the pod. Questions run on the background runtime, one for each name at a time, whoever
//! waits for it; what is known stands in [`cache`].

use std::{
    collections::HashMap,
    io,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::{
    runtime::Handle,
    sync::{Semaphore, watch},
    time::timeout,
};

use self::{
    cache::{Cache, Found, Outcome},
    dns::{Dns, NameServers},
};
use crate::{error::ForwardError, metrics::Metrics};

mod cache;
pub(crate) mod dns;

/// Questions of the pod at a time that have just begun, and those that take long. A slow one has to go to the second kind or end, so
/// slow names can't keep others from being asked for.
const MAX_QUICK: usize = 64;
const MAX_SLOW: usize = 192;

/// Names that are asked for, or wait for that, at a time.
const MAX_ASKED: usize = 1024;

/// From when on a question takes long, and when it ends.
const QUICK: Duration = Duration::from_millis(500);
const LONGEST: Duration = Duration::from_secs(5);

/// How long addresses that are too old wait for new ones.
const STALE_WAIT: Duration = Duration::from_millis(500);

/// Looks up names; clones share what is known.
#[derive(Clone, Debug)]
pub(crate) struct Resolver(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    runtime: Handle,
    dns: Dns,
    state: Mutex<State>,
    quick: Semaphore,
    slow: Semaphore,
    metrics: Arc<Metrics>,
}

#[derive(Debug, Default)]
struct State {
    cache: Cache,
    /// Names that are being asked for; the channel closes when that has ended.
    asked: HashMap<Arc<str>, watch::Receiver<()>>,
}

impl Resolver {
    /// A resolver that asks on the runtime of the caller.
    pub(crate) fn new(whom: NameServers, metrics: Arc<Metrics>) -> Self {
        Self(Arc::new(Inner {
            runtime: Handle::current(),
            dns: Dns::new(whom),
            state: Mutex::default(),
            quick: Semaphore::new(MAX_QUICK),
            slow: Semaphore::new(MAX_SLOW),
            metrics,
        }))
    }

    /// A resolver that knows a name without asking.
    #[cfg(test)]
    pub(super) fn knowing(name: &str, addresses: &[IpAddr]) -> Self {
        let fixed = NameServers::Fixed { servers: Vec::new(), search: Vec::new(), ndots: 1 };
        let resolver = Self::new(fixed, Metrics::new());
        let outcome = Outcome::Addresses(addresses.into(), Duration::from_secs(3600));
        resolver.0.state().cache.note(&name.into(), outcome, Instant::now());
        resolver
    }

    /// The addresses of a host, at least one, within `limit`.
    pub(crate) async fn resolve(&self, host: &Arc<str>, limit: Duration) -> Result<Arc<[IpAddr]>, ForwardError> {
        let failed = |source| Err(ForwardError::Resolve { host: host.to_string(), source });
        let absent = || io::Error::new(io::ErrorKind::NotFound, "the name has no address");
        let too_late = || Err(ForwardError::ResolveTimeout { host: host.to_string(), limit });
        let mut waited = false;
        loop {
            let (found, mut asked) = self.find(host);
            let patience = match &found {
                Found::Fresh(addresses) | Found::Renewable(addresses) => return Ok(Arc::clone(addresses)),
                Found::Absent => return failed(absent()),
                Found::Failed(why) => return failed(io::Error::other(String::from(&**why))),
                // The question has ended, and nothing is known: it was too much.
                Found::Unknown if waited => return too_late(),
                Found::Unknown => limit,
                Found::Stale(_) => limit.min(STALE_WAIT),
            };
            let ended = async { while asked.changed().await.is_ok() {} };
            match (timeout(patience, ended).await, found) {
                (Ok(()), Found::Stale(addresses)) if waited => return Ok(addresses),
                (Ok(()), _) => waited = true,
                (Err(_), Found::Stale(addresses)) => return Ok(addresses),
                (Err(_), _) => return too_late(),
            }
        }
    }

    /// What is known of a host, and the question that has begun if one is needed.
    fn find(&self, host: &Arc<str>) -> (Found, watch::Receiver<()>) {
        let mut state = self.0.state();
        let found = state.cache.find(host, Instant::now());
        if let Found::Stale(_) = found {
            self.0.metrics.dns_stale.inc();
        }
        let needed = matches!(found, Found::Renewable(_) | Found::Stale(_) | Found::Unknown);
        if let Some(asked) = state.asked.get(host) {
            return (found, asked.clone());
        }
        let (done, asked) = watch::channel(());
        if needed && state.asked.len() >= MAX_ASKED {
            self.0.metrics.looked_up("dropped");
        } else if needed {
            state.asked.insert(Arc::clone(host), asked.clone());
            let asking = Asking { inner: Arc::clone(&self.0), host: Arc::clone(host), _done: done };
            self.0.runtime.spawn(async move { asking.inner.ask(&asking.host).await });
        }
        (found, asked)
    }
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks for a host, and notes what came of it.
    async fn ask(&self, host: &Arc<str>) {
        let outcome = self.outcome(host).await;
        self.metrics.looked_up(match &outcome {
            Some(Outcome::Addresses(..)) => "found",
            Some(Outcome::Absent(_)) => "absent",
            Some(Outcome::Failed(_)) => "failed",
            None => "dropped",
        });
        if let Some(outcome) = outcome {
            self.state().cache.note(host, outcome, Instant::now());
        }
    }

    /// What a question came to; none if there was no room for it.
    async fn outcome(&self, host: &str) -> Option<Outcome> {
        let quick = timeout(LONGEST, self.quick.acquire()).await.ok()?.ok()?;
        let mut looking = Box::pin(self.dns.look_up(host));
        if let Ok(outcome) = timeout(QUICK, &mut looking).await {
            return Some(outcome);
        }
        let _slow = self.slow.try_acquire().ok()?;
        drop(quick);
        let late = |_| Outcome::Failed(format!("no answer within {LONGEST:?}").into());
        Some(timeout(LONGEST - QUICK, looking).await.unwrap_or_else(late))
    }
}

/// A question under way. Whatever ends it, those who wait are told, and the next one may begin.
struct Asking {
    inner: Arc<Inner>,
    host: Arc<str>,
    _done: watch::Sender<()>,
}

impl Drop for Asking {
    fn drop(&mut self) {
        self.inner.state().asked.remove(&self.host);
    }
}
