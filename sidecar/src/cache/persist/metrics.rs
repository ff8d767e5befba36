//! What is counted of snapshots.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};

/// Snapshots that were written and read, and their bytes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Metrics {
    snapshots: Family<Labels, Counter>,
    bytes: Family<DirectionLabels, Counter>,
}

/// Which way a snapshot goes.
#[derive(Clone, Copy, Debug)]
pub(super) enum Direction {
    Read,
    Written,
}

/// What came of it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Came {
    /// It was read, or written.
    Done,
    /// There is none, or nothing to write.
    None,
    /// The one that is there is recent enough.
    Recent,
    /// It is not whole, and nothing of it was taken.
    Damaged,
    /// The archive can't be asked.
    Failed,
    /// It took too long.
    Late,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct Labels {
    operation: &'static str,
    result: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct DirectionLabels {
    operation: &'static str,
}

impl Direction {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Written => "write",
        }
    }
}

impl Came {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::None => "none",
            Self::Recent => "recent",
            Self::Damaged => "damaged",
            Self::Failed => "failed",
            Self::Late => "late",
        }
    }
}

impl Metrics {
    pub(super) fn came(&self, direction: Direction, came: Came) {
        self.snapshots.get_or_create(&Labels { operation: direction.as_str(), result: came.as_str() }).inc();
    }

    pub(super) fn bytes(&self, direction: Direction, bytes: u64) {
        self.bytes.get_or_create(&DirectionLabels { operation: direction.as_str() }).inc_by(bytes);
    }

    pub(crate) fn register(&self, registry: &mut Registry) {
        registry.register("fetchr_cache_snapshots", "Snapshots of the cache, by what came of them", self.snapshots.clone());
        registry.register("fetchr_cache_snapshot_bytes", "Bytes of snapshots that were read and written", self.bytes.clone());
    }
}
