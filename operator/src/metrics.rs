//! What the operator counts. Each part registers its own; this is the registry and what several parts share.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, info::Info},
    registry::Registry,
};

/// Work of the operator's loops by kind and result.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    reconciles: Family<Reconcile, Counter>,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct Reconcile {
    kind: &'static str,
    result: &'static str,
}

impl Metrics {
    /// A registry with `fetchr_build_info` and the shared counters in it.
    pub fn new() -> (Registry, Self) {
        let mut registry = Registry::with_prefix("fetchr");
        registry.register("build", "The operator's build", Info::new([("version", env!("CARGO_PKG_VERSION"))]));
        let metrics = Self::default();
        registry.register("reconcile", "Work done by the operator's loops", metrics.reconciles.clone());
        (registry, metrics)
    }

    /// Counts one run of a loop.
    pub fn reconciled(&self, kind: &'static str, ok: bool) {
        self.reconciles.get_or_create(&Reconcile { kind, result: if ok { "ok" } else { "error" } }).inc();
    }
}
