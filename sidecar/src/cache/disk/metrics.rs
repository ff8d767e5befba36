//! What the tier on disk counts, beside looks and writes.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};

use crate::cache::behind::Tally;

/// Looks, writes and failures, by what came of them. Clones count together.
#[derive(Clone, Debug, Default)]
pub(crate) struct Metrics {
    pub(in crate::cache) tally: Tally,
    failures: Family<FailureLabels, Counter>,
    read: Counter,
    written: Counter,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct FailureLabels {
    reason: &'static str,
}

impl Metrics {
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

    pub(crate) fn register(&self, registry: &mut Registry) {
        registry.register("fetchr_cache_disk_requests", "Looks for answers on disk, by result", self.tally.requests());
        registry.register("fetchr_cache_disk_writes", "Answers to be stored on disk, by result", self.tally.writes());
        registry.register("fetchr_cache_disk_failures", "What went wrong with the disk, by reason", self.failures.clone());
        registry.register("fetchr_cache_disk_read_bytes", "Bytes of records that were read from disk", self.read.clone());
        registry.register("fetchr_cache_disk_written_bytes", "Bytes of records that were written to disk", self.written.clone());
    }
}
