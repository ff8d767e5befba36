//! Charges the limits of a request, and counts what they decide.

use std::{
    hash::{BuildHasher as _, Hash as _, Hasher as _, RandomState},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};

use crds::policy::Mode;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};
use smallvec::SmallVec;

use super::{
    Limit,
    gcra::Nanos,
    local,
    outcome::{Outcome, Told},
};
use crate::{facts::Facts, metrics::OTHER, route::Route};

/// Counts that one pod holds at most; a count takes about 90 bytes.
pub const CAPACITY: usize = 100_000;
/// Series of decisions in the metrics; what comes later is counted under `_OTHER`.
const MAX_SERIES: usize = 2000;

/// The decisions of one limit.
#[derive(Debug)]
pub(super) struct Counters {
    allowed: Counter,
    denied: Counter,
}

/// The limits of a pod: one store for all policies and both directions. It outlives reloads.
#[derive(Debug)]
pub struct Limiter {
    store: local::Store,
    hasher: RandomState,
    epoch: Instant,
    decisions: Family<DecisionLabels, Counter>,
    series: AtomicUsize,
    evicted: Counter,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct DecisionLabels {
    policy: Arc<str>,
    rule: Arc<str>,
    limit: Arc<str>,
    decision: &'static str,
    mode: &'static str,
}

impl Default for Limiter {
    fn default() -> Self {
        Self::new(CAPACITY)
    }
}

impl Limiter {
    /// A limiter that holds at most `capacity` counts.
    pub fn new(capacity: usize) -> Self {
        let evicted = Counter::default();
        Self {
            store: local::Store::new(capacity, evicted.clone()),
            hasher: RandomState::new(),
            epoch: Instant::now(),
            decisions: Family::default(),
            series: AtomicUsize::new(0),
            evicted,
        }
    }

    /// Adds the limiter's figures to a registry.
    pub fn register(&self, registry: &mut Registry) {
        registry.register("fetchr_ratelimit_decisions", "Decisions of rate limits", self.decisions.clone());
        registry.register(
            "fetchr_ratelimit_evictions",
            "Counts that were forgotten before they were full again, for want of room",
            self.evicted.clone(),
        );
    }

    /// Counts that are held now.
    pub fn len(&self) -> usize {
        self.store.len()
    }

    /// Whether no count is held.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Charges all limits that hold for a request. If one denies, those charged before get their token back.
    pub fn charge(&self, route: &Route, facts: &Facts<'_>, now: Instant) -> Outcome {
        let mut outcome = Outcome::default();
        if !route.has_limits() {
            return outcome;
        }
        let now = Nanos::try_from(now.saturating_duration_since(self.epoch).as_nanos()).unwrap_or(Nanos::MAX);
        self.enforce(route, facts, now, &mut outcome);
        self.shadow(route, facts, now, outcome.denied.is_none());
        outcome
    }

    fn enforce(&self, route: &Route, facts: &Facts<'_>, now: Nanos, outcome: &mut Outcome) {
        let mut charged: SmallVec<[u64; 4]> = SmallVec::new();
        for (limit, matched) in route.limits().filter(|(limit, _)| limit.mode == Mode::Enforce) {
            let key = self.key(limit, facts, matched);
            let decision = self.store.charge(&limit.gcra, key, now);
            let (Ok(level) | Err(level)) = decision;
            outcome.told.push(Told { limit: Arc::clone(limit), level });
            if decision.is_err() {
                charged.iter().for_each(|&key| self.store.refund(key));
                // What the others still have is told after the refund.
                outcome.told.iter_mut().zip(&charged).for_each(|(told, &key)| {
                    told.level = self.store.peek(&told.limit.gcra, key, now);
                });
                outcome.denied = outcome.told.len().checked_sub(1);
                self.counters(limit).denied.inc();
                return;
            }
            charged.push(key);
        }
        outcome.told.iter().for_each(|told| {
            self.counters(&told.limit).allowed.inc();
        });
    }

    /// Counts what limits in Shadow would have decided. A request that is denied anyway takes nothing from them.
    fn shadow(&self, route: &Route, facts: &Facts<'_>, now: Nanos, charge: bool) {
        for (limit, matched) in route.limits().filter(|(limit, _)| limit.mode == Mode::Shadow) {
            let key = self.key(limit, facts, matched);
            let allowed = if charge {
                self.store.charge(&limit.gcra, key, now).is_ok()
            } else {
                self.store.peek(&limit.gcra, key, now).remaining > 0
            };
            let counters = self.counters(limit);
            if allowed {
                counters.allowed.inc();
            } else {
                counters.denied.inc();
                // Not louder: it may be true of every request.
                tracing::debug!(policy = %limit.policy, limit = %limit.name, "A limit in Shadow would have denied a request.");
            }
        }
    }

    fn key(&self, limit: &Limit, facts: &Facts<'_>, matched: Option<u8>) -> u64 {
        let mut state = self.hasher.build_hasher();
        (&limit.policy, &limit.rule, &limit.name).hash(&mut state);
        limit.key.iter().for_each(|part| part.hash(facts, matched, &mut state));
        state.finish()
    }

    fn counters<'a>(&self, limit: &'a Limit) -> &'a Counters {
        limit.counters.get_or_init(|| {
            let mode = if limit.mode == Mode::Shadow { "shadow" } else { "enforce" };
            let series = |decision| {
                let (policy, rule, name) = (Arc::clone(&limit.policy), Arc::clone(&limit.rule), Arc::clone(&limit.name));
                let mut labels = DecisionLabels { policy, rule, limit: name, decision, mode };
                let known = self.decisions.get(&labels).is_some();
                if !known && self.series.fetch_add(1, Ordering::Relaxed) >= MAX_SERIES {
                    (labels.policy, labels.rule, labels.limit) = (OTHER.into(), OTHER.into(), OTHER.into());
                }
                self.decisions.get_or_create_owned(&labels)
            };
            Counters { allowed: series("allow"), denied: series("deny") }
        })
    }
}
