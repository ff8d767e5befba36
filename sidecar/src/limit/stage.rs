//! Charges the limits of a request: those that the pod counts first, which costs nothing, and then those that pods share.

use std::{
    hash::{BuildHasher as _, RandomState},
    sync::Arc,
    time::Instant,
};

use arc_swap::ArcSwapOption;
use crds::policy::{Mode, rate_limits::Scope};
use prometheus_client::registry::Registry;
use smallvec::SmallVec;

use super::{
    Limit,
    counted::{Metrics, Source},
    gcra::Nanos,
    key::Bytes,
    local,
    outcome::{Outcome, Told},
    sharing::{Sharing, StoreSettings},
};
use crate::{facts::Facts, route::Route};

/// Counts that one pod holds at most; a count takes about 90 bytes.
pub const CAPACITY: usize = 100_000;

/// The limits of a pod: one store for all policies and both directions. It outlives reloads.
#[derive(Debug)]
pub struct Limiter {
    pub(super) store: local::Store,
    hasher: RandomState,
    epoch: Instant,
    pub(super) metrics: Metrics,
    sharing: ArcSwapOption<Sharing>,
}

/// A limit that holds for a request, and the match that its rule met.
pub(super) type Holds<'a> = (&'a Arc<Limit>, Option<u8>);

/// Counts of the pod that a request was charged for. Dropped with them, as when its client leaves while the store is asked, they have it back.
struct Charged<'a> {
    store: &'a local::Store,
    keys: SmallVec<[u64; 4]>,
}

impl Drop for Charged<'_> {
    fn drop(&mut self) {
        self.keys.iter().for_each(|&key| self.store.refund(key));
    }
}

/// A request that limits are charged for.
#[derive(Clone, Copy)]
pub(super) struct Asked<'a> {
    pub(super) facts: &'a Facts<'a>,
    pub(super) now: Nanos,
}

impl Default for Limiter {
    fn default() -> Self {
        Self::new(CAPACITY)
    }
}

impl Limiter {
    /// A limiter that holds at most `capacity` counts.
    pub fn new(capacity: usize) -> Self {
        let metrics = Metrics::default();
        Self {
            store: local::Store::new(capacity, metrics.evicted.clone()),
            hasher: RandomState::new(),
            epoch: Instant::now(),
            metrics,
            sharing: ArcSwapOption::empty(),
        }
    }

    /// Adds the limiter's figures to a registry.
    pub fn register(&self, registry: &mut Registry) {
        self.metrics.register(registry);
    }

    /// Counts that are held now.
    pub fn len(&self) -> usize {
        self.store.len()
    }

    /// Whether no count is held.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// From now on limits of scope Shared are counted there, among so many pods; without one, by each pod for itself. Connects in tasks
    /// of this runtime.
    pub(crate) fn share(&self, settings: Option<StoreSettings>, pods: u32) {
        let before = self.sharing.load_full();
        let sharing = match (settings, &before) {
            (Some(settings), Some(before)) if before.is(&settings, pods) => return,
            (Some(settings), Some(before)) => Some(before.with(settings, pods)),
            (Some(settings), None) => Some(Sharing::start(settings, pods)),
            (None, _) => None,
        };
        self.sharing.store(sharing.map(Arc::new));
    }

    /// Charges all limits that hold for a request, or none.
    pub async fn charge(&self, route: &Route, facts: &Facts<'_>, now: Instant) -> Outcome {
        let asked = Asked { facts, now: self.nanos(now) };
        if route.has_shared_limits()
            && let Some(sharing) = self.sharing.load_full()
        {
            // On the heap: most requests have no such limit.
            return Box::pin(self.charge_together(&sharing, route, asked)).await;
        }
        self.charge_alone(route, asked)
    }

    /// All limits, by counts of the pod.
    fn charge_alone(&self, route: &Route, asked: Asked<'_>) -> Outcome {
        let mut outcome = Outcome::default();
        self.enforce(route.limits(), asked, &mut outcome);
        self.shadow(route.limits(), asked, outcome.stops().is_none());
        outcome
    }

    async fn charge_together(&self, sharing: &Arc<Sharing>, route: &Route, asked: Asked<'_>) -> Outcome {
        let (mut outcome, of) = (Outcome::default(), |scope| route.limits().filter(move |(limit, _)| limit.scope == scope));
        let mut charged = Charged { store: &self.store, keys: self.enforce(of(Scope::Pod), asked, &mut outcome) };
        if outcome.stops().is_none() {
            sharing.enforce(self, of(Scope::Shared), asked, &mut outcome).await;
        }
        let keys = std::mem::take(&mut charged.keys);
        if outcome.stops().is_some() {
            self.give_back(&keys, &mut outcome, asked.now);
        }
        let passes = outcome.stops().is_none();
        self.shadow(of(Scope::Pod), asked, passes);
        if passes {
            sharing.shadow(self, of(Scope::Shared), asked);
        }
        outcome
    }

    /// Charges limits in force, all or none. Returns what was charged, in the order in which it is told.
    fn enforce<'a>(
        &self,
        limits: impl Iterator<Item = Holds<'a>>,
        asked: Asked<'_>,
        outcome: &mut Outcome,
    ) -> SmallVec<[u64; 4]> {
        let mut charged: SmallVec<[u64; 4]> = SmallVec::new();
        for (limit, matched) in limits.filter(|(limit, _)| limit.mode == Mode::Enforce) {
            let key = self.key(limit, &limit.key_of(asked.facts, matched));
            let decision = self.store.charge(&limit.gcra, key, asked.now);
            let (Ok(level) | Err(level)) = decision;
            outcome.told.push(Told { limit: Arc::clone(limit), level });
            if decision.is_err() {
                self.give_back(&charged, outcome, asked.now);
                outcome.denied = outcome.told.len().checked_sub(1);
                self.metrics.decided(limit, Source::Pod, false);
                return SmallVec::new();
            }
            charged.push(key);
        }
        for told in &outcome.told {
            self.metrics.decided(&told.limit, Source::Pod, true);
        }
        charged
    }

    /// Gives back what was charged first, and tells what there is then.
    fn give_back(&self, charged: &[u64], outcome: &mut Outcome, now: Nanos) {
        charged.iter().for_each(|&key| self.store.refund(key));
        outcome.told.iter_mut().zip(charged).for_each(|(told, &key)| {
            told.level = self.store.peek(&told.limit.gcra, key, now);
        });
    }

    /// Counts what limits in Shadow would have decided. A request that is denied anyway takes nothing from them.
    fn shadow<'a>(&self, limits: impl Iterator<Item = Holds<'a>>, asked: Asked<'_>, charge: bool) {
        for (limit, matched) in limits.filter(|(limit, _)| limit.mode == Mode::Shadow) {
            let key = self.key(limit, &limit.key_of(asked.facts, matched));
            let allowed = if charge {
                self.store.charge(&limit.gcra, key, asked.now).is_ok()
            } else {
                self.store.peek(&limit.gcra, key, asked.now).remaining > 0
            };
            self.metrics.decided(limit, Source::Pod, allowed);
            if !allowed {
                // Not louder: it may be true of every request.
                tracing::debug!(policy = %limit.policy, limit = %limit.name, "A limit in Shadow would have denied a request.");
            }
        }
    }

    /// By which the pod finds its own count.
    pub(super) fn key(&self, limit: &Limit, key: &Bytes) -> u64 {
        self.hasher.hash_one((&limit.policy, &limit.rule, &limit.name, key))
    }

    fn nanos(&self, now: Instant) -> Nanos {
        Nanos::try_from(now.saturating_duration_since(self.epoch).as_nanos()).unwrap_or(Nanos::MAX)
    }
}
