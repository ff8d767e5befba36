//! The segments of a spool, and their files.

use std::{
    fmt,
    path::{Path, PathBuf},
};

/// A segment of a spool: which process wrote it, and which one of it. Older ones are smaller.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct SegmentId {
    /// Counts the processes that had the folder.
    pub incarnation: u64,
    /// Counts the segments of one.
    pub sequence: u64,
}

impl fmt::Display for SegmentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.incarnation, self.sequence)
    }
}

impl SegmentId {
    pub(super) fn open_file(self, folder: &Path) -> PathBuf {
        folder.join(format!("{self}.open"))
    }

    pub(super) fn closed_file(self, folder: &Path) -> PathBuf {
        folder.join(format!("{self}.fxs"))
    }

    pub(super) fn parse(name: &str) -> Option<Self> {
        let (incarnation, sequence) = name.split_once('-')?;
        let id = Self { incarnation: incarnation.parse().ok()?, sequence: sequence.parse().ok()? };
        (id.to_string() == name).then_some(id)
    }
}

/// A segment that waits to be uploaded.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Closed {
    /// Which one.
    pub id: SegmentId,
    /// Its file.
    pub path: PathBuf,
    /// How many records it has.
    pub records: u64,
    /// How many bytes the file has.
    pub bytes: u64,
    /// When it was begun, in nanoseconds since 1970.
    pub created: i64,
}
