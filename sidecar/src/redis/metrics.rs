//! What looking after a Redis counts.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};

/// Looks for the primaries, by what came of them. Clones count together.
#[derive(Clone, Debug, Default)]
pub(crate) struct Metrics {
    looks: Family<Labels, Counter>,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct Labels {
    result: &'static str,
}

impl Metrics {
    /// Counts a look: `same`, `moved`, or `failed`.
    pub(super) fn looked(&self, result: &'static str) {
        self.looks.get_or_create(&Labels { result }).inc();
    }

    pub(crate) fn register(&self, registry: &mut Registry) {
        let help = "Looks for the primaries of Redis, at sentinels and nodes of a cluster, by result";
        registry.register("fetchr_redis_looks", help, self.looks.clone());
    }
}
