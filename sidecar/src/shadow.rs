//! The section `timeouts` in mode Shadow: what its limits would have ended is counted and logged, and goes on.

use std::{
    cell::Cell,
    sync::{
        Arc, LazyLock,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use crds::{policy::Timeouts, scalar};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};

use crate::metrics::OTHER;

/// Series of the family; what comes later is counted under `_OTHER`.
const MAX_SERIES: usize = 2000;

static EXCEEDED: LazyLock<Family<Labels, Counter>> = LazyLock::new(Family::default);
static SERIES: AtomicUsize = AtomicUsize::new(0);

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct Labels {
    route: Arc<str>,
    limit: &'static str,
}

/// Adds the section's figures to a registry.
pub(crate) fn register(registry: &mut Registry) {
    registry.register("fetchr_timeouts_shadow", "Requests that a time limit in Shadow would have ended", EXCEEDED.clone());
}

/// The limits that watch one request. Each counts it once.
#[derive(Debug)]
pub(crate) struct Shadow {
    route: Arc<str>,
    limits: Timeouts,
    counted: Cell<u8>,
}

impl Shadow {
    /// Limits of the rule `namespace/policy/rule`.
    pub(crate) fn new(route: Arc<str>, limits: Timeouts) -> Self {
        Self { route, limits, counted: Cell::new(0) }
    }

    /// A connection took so long.
    pub(crate) fn connected(&self, took: Duration) {
        self.check(1, "connect", self.limits.connect, took);
    }

    /// The head of the response, or the failure, came so long after the start.
    pub(crate) fn answered(&self, took: Duration) {
        self.check(2, "request", self.limits.request, took);
    }

    /// One try took so long to the head of its response, or its failure.
    pub(crate) fn tried(&self, took: Duration) {
        self.check(8, "perTry", self.limits.per_try, took);
    }

    /// A body paused for so long.
    pub(crate) fn paused(&self, took: Duration) {
        self.check(4, "idle", self.limits.idle, took);
    }

    fn check(&self, bit: u8, name: &'static str, limit: Option<scalar::Duration>, took: Duration) {
        if limit.is_none_or(|limit| took <= limit.0) || self.counted.get() & bit != 0 {
            return;
        }
        self.counted.set(self.counted.get() | bit);
        let mut labels = Labels { route: Arc::clone(&self.route), limit: name };
        let known = EXCEEDED.get(&labels).is_some();
        if !known && SERIES.fetch_add(1, Ordering::Relaxed) >= MAX_SERIES {
            labels.route = OTHER.into();
        }
        EXCEEDED.get_or_create_owned(&labels).inc();
        // Not louder: it may be true of every request.
        tracing::debug!(route = %self.route, limit = name, ?took, "A time limit in Shadow would have ended a request.");
    }
}
