//! What is counted of what lies behind memory: of each tier the same.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
};

/// Looks and writes, by what came of them. Clones count together.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tally {
    requests: Family<Labels, Counter>,
    writes: Family<Labels, Counter>,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
pub(in crate::cache) struct Labels {
    result: &'static str,
}

impl Tally {
    /// Counts a look: `hit`, `miss`, `corrupt`, `too_long`, `late`, `error`, or `away` if nobody looks, or nobody answers.
    pub(in crate::cache) fn request(&self, result: &'static str) {
        self.requests.get_or_create(&Labels { result }).inc();
    }

    /// Counts a write of an answer: `stored`; `outrun` by another pod or a change; `dropped` for want of room, disk or connection, or as it
    /// was changed; `failed`. And what could not be taken out: `left`.
    pub(in crate::cache) fn written(&self, result: &'static str) {
        self.writes.get_or_create(&Labels { result }).inc();
    }

    /// Looks that found something, and all of them.
    pub(in crate::cache) fn hits(&self) -> (u64, u64) {
        let count = |result| self.requests.get(&Labels { result }).map_or(0, |counter| counter.get());
        let all = ["hit", "miss", "corrupt", "too_long", "late", "error", "away"].map(count);
        (all[0], all.iter().sum())
    }

    /// What [`Self::request`] counts, for a registry.
    pub(in crate::cache) fn requests(&self) -> Family<Labels, Counter> {
        self.requests.clone()
    }

    /// What [`Self::written`] counts, for a registry.
    pub(in crate::cache) fn writes(&self) -> Family<Labels, Counter> {
        self.writes.clone()
    }
}
