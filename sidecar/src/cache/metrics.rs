//! What the cache counts.

use std::{
    fmt,
    hash::Hash,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric},
    metrics::{
        counter::{ConstCounter, Counter},
        family::Family,
        gauge::ConstGauge,
    },
    registry::Registry,
};

use super::{
    Cache, Caching,
    behind::Tally,
    disk, persist,
    semantics::{status::Forward, storable::NotStored},
    store::Gone,
    transfer,
};
use crate::metrics::OTHER;

/// Routes that have series of their own, at most; what comes later is counted under [`OTHER`].
const MAX_SERIES: usize = 2000;

/// What came of requests, and of answers.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    requests: Readable<RequestLabels>,
    bypassed: Readable<ReasonLabels>,
    not_stored: Readable<ReasonLabels>,
    /// The counters of the same, found once.
    refusals: [OnceLock<Counter>; NotStored::COUNT],
    missed: Readable<ReasonLabels>,
    /// The counters of the same.
    misses: [OnceLock<Counter>; Forward::COUNT],
    bytes: Readable<RouteLabels>,
    /// In milliseconds.
    saved: Readable<RouteLabels>,
    parts: Readable<EventLabels>,
    pub(super) disk: disk::Metrics,
    pub(super) transfer: transfer::Metrics,
    pub(super) snapshots: persist::Metrics,
    pub(super) tier: Tally,
    series: AtomicUsize,
}

/// Counters by their labels, which can be read one by one.
#[derive(Debug)]
struct Readable<L> {
    family: Family<L, Counter>,
    /// The labels that there are.
    known: Mutex<Vec<L>>,
}

impl<L: Clone + Eq + Hash> Readable<L> {
    /// The counter of these labels, if there is one.
    fn known(&self, labels: &L) -> Option<Counter> {
        self.family.get(labels).map(|counter| counter.clone())
    }

    /// The counter of these labels.
    fn counter(&self, labels: L) -> Counter {
        if let Some(counter) = self.known(&labels) {
            return counter;
        }
        let counter = self.family.get_or_create(&labels).clone();
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if !known.contains(&labels) {
            known.push(labels);
        }
        counter
    }

    /// What was counted.
    fn read(&self) -> Vec<(L, u64)> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let count = |labels: &L| self.family.get(labels).map_or(0, |counter| counter.get());
        known.into_iter().map(|labels| (labels.clone(), count(&labels))).collect()
    }
}

impl<L: Clone + Eq + Hash> Default for Readable<L> {
    fn default() -> Self {
        Self { family: Family::default(), known: Mutex::default() }
    }
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct RequestLabels {
    route: Arc<str>,
    result: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct ReasonLabels {
    reason: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct RouteLabels {
    route: Arc<str>,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct EventLabels {
    event: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct StrengthLabels {
    strength: &'static str,
}

/// What came of a request.
#[derive(Clone, Copy, Debug)]
pub(super) enum Came {
    Hit,
    Stale,
    Revalidated,
    Collapsed,
    Miss,
    Bypass,
    Error,
    ShadowHit,
    ShadowMiss,
}

/// The counters of one rule, each found when it is first needed: a search for each request would cost more than what it counts.
#[derive(Debug, Default)]
pub(super) struct Counters {
    requests: [OnceLock<Counter>; Came::COUNT],
    bytes: OnceLock<Counter>,
    saved: OnceLock<Counter>,
}

impl Came {
    const COUNT: usize = Self::ShadowMiss as usize + 1;

    const fn as_str(self) -> &'static str {
        match self {
            Self::Hit => "hit",
            Self::Stale => "stale",
            Self::Revalidated => "revalidated",
            Self::Collapsed => "collapsed",
            Self::Miss => "miss",
            Self::Bypass => "bypass",
            Self::Error => "error",
            Self::ShadowHit => "shadow_hit",
            Self::ShadowMiss => "shadow_miss",
        }
    }
}

impl Metrics {
    /// Counts a request of a rule.
    pub(super) fn request(&self, caching: &Caching, came: Came) {
        caching.counters.requests[came as usize].get_or_init(|| self.counter(&caching.label, came.as_str())).inc();
    }

    fn counter(&self, route: &Arc<str>, result: &'static str) -> Counter {
        let mut labels = RequestLabels { route: Arc::clone(route), result };
        if let Some(counter) = self.requests.known(&labels) {
            return counter;
        }
        if self.series.fetch_add(1, Ordering::Relaxed) >= MAX_SERIES {
            labels.route = OTHER.into();
        }
        self.requests.counter(labels)
    }

    /// Counts why a request passed the cache by.
    pub(super) fn bypassed(&self, reason: &'static str) {
        self.bypassed.counter(ReasonLabels { reason }).inc();
    }

    /// Counts why an answer was not stored.
    pub(super) fn not_stored(&self, reason: NotStored) {
        let of = || self.not_stored.counter(ReasonLabels { reason: reason.as_str() });
        self.refusals[reason as usize].get_or_init(of).inc();
    }

    /// Counts what became of a part of an answer.
    pub(super) fn part(&self, event: &'static str) {
        self.parts.counter(EventLabels { event }).inc();
    }

    /// Parts of answers, by what became of them.
    pub(super) fn parts(&self) -> Vec<(&'static str, u64)> {
        self.parts.read().into_iter().map(|(labels, count)| (labels.event, count)).collect()
    }

    /// Counts a request that the store could not answer, by why.
    pub(super) fn missed(&self, why: Forward) {
        self.misses[why as usize].get_or_init(|| self.missed.counter(ReasonLabels { reason: why.as_str() })).inc();
    }

    /// Counts bytes of a body that the store gave, and the milliseconds that its origin would have taken.
    pub(super) fn served(&self, caching: &Caching, bytes: u64, saved: u32) {
        let Counters { bytes: of_bytes, saved: of_saved, .. } = &caching.counters;
        of_bytes.get_or_init(|| self.of_route(&self.bytes, &caching.label)).inc_by(bytes);
        of_saved.get_or_init(|| self.of_route(&self.saved, &caching.label)).inc_by(saved.into());
    }

    fn of_route(&self, counters: &Readable<RouteLabels>, route: &Arc<str>) -> Counter {
        let mut labels = RouteLabels { route: Arc::clone(route) };
        if let Some(counter) = counters.known(&labels) {
            return counter;
        }
        if self.series.fetch_add(1, Ordering::Relaxed) >= MAX_SERIES {
            labels.route = OTHER.into();
        }
        counters.counter(labels)
    }

    /// Requests by rule and result.
    pub(super) fn requests(&self) -> Vec<(Arc<str>, &'static str, u64)> {
        self.requests.read().into_iter().map(|(labels, count)| (labels.route, labels.result, count)).collect()
    }

    /// Requests that passed the cache by, by reason.
    pub(super) fn reasons_of_bypass(&self) -> Vec<(&'static str, u64)> {
        self.bypassed.read().into_iter().map(|(labels, count)| (labels.reason, count)).collect()
    }

    /// Answers that were not stored, by reason.
    pub(super) fn reasons_not_stored(&self) -> Vec<(&'static str, u64)> {
        self.not_stored.read().into_iter().map(|(labels, count)| (labels.reason, count)).collect()
    }

    /// Requests that the store could not answer, by reason.
    pub(super) fn reasons_of_misses(&self) -> Vec<(&'static str, u64)> {
        self.missed.read().into_iter().map(|(labels, count)| (labels.reason, count)).collect()
    }

    /// Bytes of bodies that the store gave, by rule.
    pub(super) fn bytes_served(&self) -> Vec<(Arc<str>, u64)> {
        self.bytes.read().into_iter().map(|(labels, bytes)| (labels.route, bytes)).collect()
    }

    /// Milliseconds that origins would have taken, by rule.
    pub(super) fn saved(&self) -> Vec<(Arc<str>, u64)> {
        self.saved.read().into_iter().map(|(labels, millis)| (labels.route, millis)).collect()
    }

    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register(
            "fetchr_cache_requests",
            "Requests of rules with a cache, by what it did",
            self.requests.family.clone(),
        );
        registry.register("fetchr_cache_bypassed", "Requests that passed the cache by, by reason", self.bypassed.family.clone());
        registry.register("fetchr_cache_not_stored", "Answers that were not stored, by reason", self.not_stored.family.clone());
        registry.register("fetchr_cache_parts", "Parts of answers that came, by what became of them", self.parts.family.clone());
        self.disk.register(registry);
        registry.register("fetchr_cache_shared_requests", "Looks for answers in Redis, by result", self.tier.requests());
        registry.register("fetchr_cache_shared_writes", "Answers to be stored in Redis, by result", self.tier.writes());
        registry.register(
            "fetchr_cache_missed",
            "Requests that the cache could not answer, by reason",
            self.missed.family.clone(),
        );
        registry.register("fetchr_cache_served_bytes", "Bytes of bodies that the cache gave", self.bytes.family.clone());
        self.transfer.register(registry);
        self.snapshots.register(registry);
    }
}

/// Whether purges of other pods are known of, and their answers.
fn of_redis(encoder: &mut DescriptorEncoder<'_>, cache: &Cache) -> Result<(), fmt::Error> {
    let cut_off = ConstGauge::new(i64::from(cache.purges.is_cut_off() == Some(true)));
    let help = "Whether purges over all pods may be complete that this one does not know of";
    cut_off.encode(encoder.encode_descriptor("fetchr_cache_cut_off", help, None, cut_off.metric_type())?)?;
    let connected = ConstGauge::new(i64::from(cache.behind.shared().is_some_and(|tier| tier.is_connected())));
    let help = "Whether the answers that pods share can be reached";
    connected.encode(encoder.encode_descriptor("fetchr_cache_shared_connected", help, None, connected.metric_type())?)?;
    let failures = ConstCounter::new(cache.purges.failures());
    let help = "Times that the log of purges in Redis could not be asked";
    failures.encode(encoder.encode_descriptor("fetchr_cache_purge_log_failures", help, None, failures.metric_type())?)
}

/// What is on disk.
fn of_disk(encoder: &mut DescriptorEncoder<'_>, cache: &Cache) -> Result<(), fmt::Error> {
    let disk::Stats { open, records, bytes, limit } = cache.behind.disk().map(|disk| disk.stats()).unwrap_or_default();
    let mut gauge = |name: &str, help: &str, value: u64| {
        let gauge = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
        gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)
    };
    gauge("fetchr_cache_disk_open", "Whether answers on disk can be used", u64::from(open))?;
    gauge("fetchr_cache_disk_records", "Answers on disk, with one for each that varies", records)?;
    gauge("fetchr_cache_disk_size_bytes", "Bytes of the cache on disk", bytes)?;
    gauge("fetchr_cache_disk_limit_bytes", "Bytes that the cache on disk may take", limit)
}

/// What the store holds, and what has left it; read when the page is asked for.
pub(super) struct Held(pub(super) Arc<Cache>);

impl fmt::Debug for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Held").finish_non_exhaustive()
    }
}

impl Collector for Held {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let stats = self.0.store().stats();
        let mut gauge = |name: &str, help: &str, value: u64| {
            let gauge = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)
        };
        gauge("fetchr_cache_objects", "Answers in the store", stats.objects)?;
        gauge("fetchr_cache_size_bytes", "Bytes of the store, with what it needs to find its answers", stats.bytes)?;
        gauge("fetchr_cache_limit_bytes", "Bytes that the store may hold", stats.capacity)?;
        gauge("fetchr_cache_fills", "Answers that are on their way to the store", self.0.fills.open() as u64)?;
        gauge("fetchr_cache_fill_bytes", "Bytes that these hold", self.0.budget.used())?;
        let left = ConstCounter::new(0_u64);
        let mut family = encoder.encode_descriptor(
            "fetchr_cache_evictions",
            "Answers that left the store, by reason",
            None,
            left.metric_type(),
        )?;
        for why in Gone::ALL {
            let labels = ReasonLabels { reason: why.as_str() };
            ConstCounter::new(stats.gone(why)).encode(family.encode_family(&labels)?)?;
        }
        of_disk(&mut encoder, &self.0)?;
        of_redis(&mut encoder, &self.0)?;
        let help = "Time that origins would have taken to the heads of answers that the cache gave";
        let mut family = encoder.encode_descriptor("fetchr_cache_saved_seconds", help, None, left.metric_type())?;
        for (route, millis) in self.0.metrics.saved() {
            ConstCounter::new(millis as f64 / 1000.0).encode(family.encode_family(&RouteLabels { route })?)?;
        }
        let help = "Purges of the cache, by whether what they named was gone or stale";
        let mut family = encoder.encode_descriptor("fetchr_cache_purges", help, None, left.metric_type())?;
        for (strength, count) in self.0.purges.counts() {
            ConstCounter::new(count).encode(family.encode_family(&StrengthLabels { strength })?)?;
        }
        Ok(())
    }
}
