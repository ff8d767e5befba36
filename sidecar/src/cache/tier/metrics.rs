//! What the tier in Redis counts.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};

/// Looks and writes, by what came of them. Clones count together.
#[derive(Clone, Debug, Default)]
pub(crate) struct Metrics {
    requests: Family<Labels, Counter>,
    writes: Family<Labels, Counter>,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct Labels {
    result: &'static str,
}

impl Metrics {
    /// Counts a look: `hit`, `miss`, `corrupt`, `late`, `error`, or `away` if nobody answers.
    pub(super) fn request(&self, result: &'static str) {
        self.requests.get_or_create(&Labels { result }).inc();
    }

    /// Counts a write of an answer: `stored`, `outrun` by another pod or a change, `dropped` for want of room or connection, `failed`; and
    /// what could not be taken out, `left`.
    pub(super) fn written(&self, result: &'static str) {
        self.writes.get_or_create(&Labels { result }).inc();
    }

    pub(crate) fn register(&self, registry: &mut Registry) {
        registry.register("fetchr_cache_shared_requests", "Looks for answers in Redis, by result", self.requests.clone());
        registry.register("fetchr_cache_shared_writes", "Answers to be stored in Redis, by result", self.writes.clone());
    }
}
