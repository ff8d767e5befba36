//! What limits decided, in numbers.

use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicUsize, Ordering},
};

use crds::policy::Mode;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{
        counter::Counter,
        family::Family,
        histogram::{Histogram, exponential_buckets},
    },
    registry::Registry,
};
use serde::{Deserialize, Serialize};

use super::{Limit, shared::Failure};
use crate::metrics::OTHER;

/// Series of decisions in the metrics; what comes later is counted under `_OTHER`.
const MAX_SERIES: usize = 2000;

/// Parts of a limit that are told apart: how near it clients come.
const USED: [f64; 6] = [0.25, 0.5, 0.75, 0.9, 0.99, 1.0];

/// Who decided.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum Source {
    /// The count of the pod.
    Pod,
    /// The count that pods share.
    Store,
    /// What the pod has taken of it ahead.
    Lease,
    /// What holds while that can't be asked.
    Fallback,
}

/// Decisions of one source on a limit.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Decided {
    /// Who decided.
    pub source: Source,
    /// Requests that the limit allowed; in Shadow, would have.
    pub allowed: u64,
    /// Requests that it denied, likewise.
    pub denied: u64,
}

/// The figures of one limit.
#[derive(Debug, Default)]
pub(super) struct Counters {
    /// By source.
    decisions: [OnceLock<Decisions>; 4],
    used: OnceLock<Histogram>,
}

#[derive(Debug)]
struct Decisions {
    allowed: Counter,
    denied: Counter,
}

/// The figures of all limits.
#[derive(Clone, Debug)]
pub(super) struct Metrics {
    decisions: Family<Labels, Counter>,
    series: Arc<AtomicUsize>,
    pub(super) evicted: Counter,
    failures: Family<Reason, Counter>,
    /// Seconds that requests waited for the store.
    pub(super) waited: Histogram,
    /// Seconds that limits delayed requests.
    pub(super) delayed: Histogram,
    used: Family<Limited, Histogram, fn() -> Histogram>,
    lease_tokens: Family<Use, Counter>,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct Labels {
    policy: Arc<str>,
    rule: Arc<str>,
    limit: Arc<str>,
    decision: &'static str,
    mode: &'static str,
    source: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct Limited {
    policy: Arc<str>,
    rule: Arc<str>,
    limit: Arc<str>,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct Use {
    r#use: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct Reason {
    reason: &'static str,
}

impl Source {
    const ALL: [Self; 4] = [Self::Pod, Self::Store, Self::Lease, Self::Fallback];

    fn label(self) -> &'static str {
        match self {
            Self::Pod => "pod",
            Self::Store => "store",
            Self::Lease => "lease",
            Self::Fallback => "fallback",
        }
    }
}

impl Labels {
    fn of(limit: &Limit, source: Source, decision: &'static str) -> Self {
        let mode = if limit.mode == Mode::Shadow { "shadow" } else { "enforce" };
        let (policy, rule, name) = (Arc::clone(&limit.policy), Arc::clone(&limit.rule), Arc::clone(&limit.name));
        Self { policy, rule, limit: name, decision, mode, source: source.label() }
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            decisions: Family::default(),
            series: Arc::default(),
            evicted: Counter::default(),
            failures: Family::default(),
            waited: Histogram::new(exponential_buckets(0.0001, 2.0, 12)),
            delayed: Histogram::new(exponential_buckets(0.001, 2.0, 16)),
            used: Family::new_with_constructor(|| Histogram::new(USED)),
            lease_tokens: Family::default(),
        }
    }
}

impl Metrics {
    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register("fetchr_ratelimit_decisions", "Decisions of rate limits", self.decisions.clone());
        registry.register(
            "fetchr_ratelimit_evictions",
            "Counts that were forgotten before they were full again, for want of room",
            self.evicted.clone(),
        );
        registry.register(
            "fetchr_ratelimit_store_failures",
            "Questions to the store of shared limits without an answer, by reason",
            self.failures.clone(),
        );
        registry.register(
            "fetchr_ratelimit_store_duration_seconds",
            "How long requests waited for the store of shared limits",
            self.waited.clone(),
        );
        registry.register("fetchr_ratelimit_delay_seconds", "How long limits delayed requests", self.delayed.clone());
        registry.register(
            "fetchr_ratelimit_lease_tokens",
            "Tokens of shared limits that were taken ahead, and those of them that were brought back unused",
            self.lease_tokens.clone(),
        );
        registry.register(
            "fetchr_ratelimit_used_ratio",
            "The part of a limit that was used up, as each request found it",
            self.used.clone(),
        );
    }

    /// Counts tokens that were taken ahead, and those that were brought back unused.
    pub(super) fn leased(&self, taken: u64, unused: u64) {
        for (r#use, tokens) in [("taken", taken), ("returned", unused)] {
            self.lease_tokens.get_or_create(&Use { r#use }).inc_by(tokens);
        }
    }

    /// Notes which part of a limit is used up.
    pub(super) fn used(&self, limit: &Limit, part: f64) {
        let used = limit.counters.used.get_or_init(|| {
            let (policy, rule, name) = (Arc::clone(&limit.policy), Arc::clone(&limit.rule), Arc::clone(&limit.name));
            let mut labels = Limited { policy, rule, limit: name };
            if self.used.get(&labels).is_none() && self.series.fetch_add(1, Ordering::Relaxed) >= MAX_SERIES {
                (labels.policy, labels.rule, labels.limit) = (OTHER.into(), OTHER.into(), OTHER.into());
            }
            self.used.get_or_create_owned(&labels)
        });
        used.observe(part);
    }

    /// Counts a decision of a limit.
    pub(super) fn decided(&self, limit: &Limit, source: Source, allowed: bool) {
        let decisions = limit.counters.decisions[source as usize].get_or_init(|| Decisions {
            allowed: self.series(limit, source, "allow"),
            denied: self.series(limit, source, "deny"),
        });
        if allowed {
            decisions.allowed.inc()
        } else {
            decisions.denied.inc()
        };
    }

    /// What was decided of a limit by now, by who did. Nothing of one that is counted under `_OTHER`.
    pub(super) fn decisions(&self, limit: &Limit) -> Vec<Decided> {
        let count = |source, decision| self.decisions.get(&Labels::of(limit, source, decision)).map_or(0, |count| count.get());
        let of = |source: Source| Decided { source, allowed: count(source, "allow"), denied: count(source, "deny") };
        Source::ALL.map(of).into_iter().filter(|decided| decided.allowed + decided.denied > 0).collect()
    }

    /// Counts that the store did not decide.
    pub(super) fn failed(&self, failure: Failure) {
        self.failed_for(failure.label());
    }

    /// Counts that nobody asked the store in Shadow, for it is asked too much already.
    pub(super) fn busy(&self) {
        self.failed_for("busy");
    }

    fn failed_for(&self, reason: &'static str) {
        self.failures.get_or_create(&Reason { reason }).inc();
    }

    fn series(&self, limit: &Limit, source: Source, decision: &'static str) -> Counter {
        let mut labels = Labels::of(limit, source, decision);
        let known = self.decisions.get(&labels).is_some();
        if !known && self.series.fetch_add(1, Ordering::Relaxed) >= MAX_SERIES {
            (labels.policy, labels.rule, labels.limit) = (OTHER.into(), OTHER.into(), OTHER.into());
        }
        self.decisions.get_or_create_owned(&labels)
    }
}
