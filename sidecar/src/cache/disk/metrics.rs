//! What the tier on disk counts.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};

/// Looks, writes and failures, by what came of them. Clones count together.
#[derive(Clone, Debug, Default)]
pub(crate) struct Metrics {
    requests: Family<ResultLabels, Counter>,
    writes: Family<ResultLabels, Counter>,
    failures: Family<FailureLabels, Counter>,
    read: Counter,
    written: Counter,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct ResultLabels {
    result: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct FailureLabels {
    reason: &'static str,
}

impl Metrics {
    /// Counts a look: `hit`, `miss`, `corrupt`, `late`, `error`, or `away` if nobody looks.
    pub(super) fn request(&self, result: &'static str) {
        self.requests.get_or_create(&ResultLabels { result }).inc();
    }

    /// Counts a write of an answer: `stored`, `dropped` for want of room or disk or as it was changed, `failed`.
    pub(super) fn written(&self, result: &'static str) {
        self.writes.get_or_create(&ResultLabels { result }).inc();
    }

    /// Counts what goes wrong beside requests: `open`, `write`, or `damaged` for a segment that was found so.
    pub(super) fn failed(&self, reason: &'static str) {
        self.failures.get_or_create(&FailureLabels { reason }).inc();
    }

    /// Counts bytes of a record that was read.
    pub(super) fn read(&self, bytes: usize) {
        self.read.inc_by(bytes as u64);
    }

    /// Counts bytes of a record to be written.
    pub(super) fn write(&self, bytes: usize) {
        self.written.inc_by(bytes as u64);
    }

    /// Looks that found something, and all of them.
    pub(crate) fn hits(&self) -> (u64, u64) {
        let count = |result| self.requests.get(&ResultLabels { result }).map_or(0, |counter| counter.get());
        let all = ["hit", "miss", "corrupt", "late", "error", "away"].map(count);
        (all[0], all.iter().sum())
    }

    pub(crate) fn register(&self, registry: &mut Registry) {
        registry.register("fetchr_cache_disk_requests", "Looks for answers on disk, by result", self.requests.clone());
        registry.register("fetchr_cache_disk_writes", "Answers to be stored on disk, by result", self.writes.clone());
        registry.register("fetchr_cache_disk_failures", "What went wrong with the disk, by reason", self.failures.clone());
        registry.register("fetchr_cache_disk_read_bytes", "Bytes of records that were read from disk", self.read.clone());
        registry.register("fetchr_cache_disk_written_bytes", "Bytes of records that were written to disk", self.written.clone());
    }
}
