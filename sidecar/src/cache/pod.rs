//! The cache of a pod, which all workers share.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use arc_swap::{ArcSwap, Guard};
use crds::proxy::{CacheMemory, Eviction};
use prometheus_client::registry::Registry;

use super::{
    behind::Behind,
    changes::Changes,
    clock::Clock,
    disk::{self, Disk},
    fill::{Budget, Fills, Limits as FillLimits},
    metrics::Metrics,
    purge::PodPurges,
    semantics::clock::Now,
    store::{self, Limits, Store},
    tier::{self, Tier},
};

/// Variants of one answer: more of them would be copies for every whim of a client.
const VARIANTS: usize = 64;

/// What all answers that are on their way may hold together: one in so many bytes of the store.
const FILLS: u64 = 4;

/// The store, the answers that are on their way to it, and what is counted.
pub(crate) struct Cache {
    store: ArcSwap<Store>,
    /// Where is looked for what the store does not have.
    pub(super) behind: Behind,
    pub(super) fills: Arc<Fills>,
    pub(super) budget: Arc<Budget>,
    pub(super) metrics: Metrics,
    pub(super) purges: PodPurges,
    pub(super) changes: Changes,
    clock: Clock,
    /// Bytes that the store may hold, unless memory is short.
    size: AtomicU64,
}

impl Cache {
    /// An empty cache.
    pub(crate) fn new(settings: &CacheMemory, purges: PodPurges) -> Arc<Self> {
        let size = settings.size.0;
        let budget = Arc::new(Budget::new(size / FILLS));
        // A policy bounds what is kept; here counts only what a fill may hold at all.
        let limits = FillLimits { object: u64::MAX, ..FillLimits::default() };
        Arc::new(Self {
            store: ArcSwap::from_pointee(Store::new(limits_of(settings))),
            behind: Behind::default(),
            fills: Fills::new(limits, Arc::clone(&budget)),
            budget,
            metrics: Metrics::default(),
            purges,
            changes: Changes::new(),
            clock: Clock::new(),
            size: AtomicU64::new(size),
        })
    }

    /// Takes other settings. What is too much goes at once, which takes a while: not for a thread that serves requests.
    pub(crate) fn apply(&self, settings: &CacheMemory) {
        let limits = limits_of(settings);
        let before = self.size.swap(limits.capacity, Ordering::Relaxed);
        self.budget.set_limit(limits.capacity / FILLS);
        if self.store().eviction() != limits.eviction {
            self.store.store(Arc::new(Store::new(limits)));
        } else if before != limits.capacity {
            self.store().resize(limits.capacity);
        }
    }

    /// Shares answers with other pods as these settings say, or with none. Runs on in tasks of this runtime.
    pub(crate) fn share(&self, settings: Option<tier::Settings>) {
        let before = self.behind.shared();
        if before.as_ref().map(|tier| tier.settings()) != settings.as_ref() {
            self.behind.set_shared(settings.map(|settings| Tier::start(settings, self.metrics.tier.clone())));
        }
    }

    /// Keeps answers on disk as these settings say, or none. Runs on on threads of its own.
    pub(crate) fn keep_on_disk(&self, settings: Option<disk::Settings>) {
        let before = self.behind.disk();
        if before.as_ref().map(|disk| disk.settings()) != settings.as_ref() {
            let start = |settings, believed| Disk::start(settings, self.metrics.disk.clone(), self.purges.clone(), believed);
            self.behind.set_disk(settings, start);
        }
    }

    /// The store of now.
    pub(super) fn store(&self) -> Guard<Arc<Store>> {
        self.store.load()
    }

    /// Gives back half of what is held, for memory is short. Returns how many answers went.
    pub(crate) fn shed(&self) -> u64 {
        let store = self.store();
        let before = store.stats();
        store.resize(before.bytes / 2);
        store.set_capacity(self.size.load(Ordering::Relaxed));
        before.objects.saturating_sub(store.stats().objects)
    }

    /// Bytes that the store may hold, unless memory is short.
    pub(super) fn size(&self) -> u64 {
        self.size.load(Ordering::Relaxed)
    }

    /// This moment, as the rules see it.
    pub(super) fn now(&self) -> Now {
        self.clock.now()
    }

    pub(crate) fn register(self: &Arc<Self>, registry: &mut Registry) {
        self.metrics.register(registry);
        registry.register_collector(Box::new(super::metrics::Held(Arc::clone(self))));
    }
}

fn limits_of(settings: &CacheMemory) -> Limits {
    let eviction = match settings.eviction {
        Eviction::S3FIFO => store::Eviction::S3Fifo,
        Eviction::SIEVE => store::Eviction::Sieve,
    };
    Limits { capacity: settings.size.0, variants: VARIANTS, eviction }
}
