//! What is counted of answers that come in from files.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};

use super::Imported;

/// Answers of files, by what became of them.
#[derive(Clone, Debug, Default)]
pub(in crate::cache) struct Metrics {
    imported: Family<Labels, Counter>,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct Labels {
    source: &'static str,
    result: &'static str,
}

impl Metrics {
    /// Counts the answers of a `file` that was sent, or of a `snapshot`.
    pub(in crate::cache) fn imported(&self, source: &'static str, imported: &Imported) {
        let results = imported.skipped.iter().map(|(why, count)| (why.as_str(), *count));
        for (result, count) in results.chain([("Imported", imported.imported)]) {
            self.imported.get_or_create(&Labels { source, result }).inc_by(count);
        }
    }

    pub(in crate::cache) fn register(&self, registry: &mut Registry) {
        registry.register("fetchr_cache_imported_answers", "Answers of files, by what became of them", self.imported.clone());
    }
}
