//! How a spool works.

use std::{
    fmt,
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use crate::segment::{self, Keys};

/// How a spool works.
#[derive(Clone)]
pub struct Settings {
    /// Its folder. It is made if it is missing, for nobody but this user.
    pub folder: PathBuf,
    /// The most bytes of its files together.
    pub max_bytes: u64,
    /// A segment is closed when its file has so many bytes. At most a quarter of `max_bytes`: what is open can't give way.
    pub segment_bytes: u64,
    /// A segment is closed so long after its first record came.
    pub max_delay: Duration,
    /// A record waits at most about so long before it is written into a file. What waits is lost when the process is killed.
    pub frame_delay: Duration,
    /// The most bytes that records may take in memory before they are in a frame.
    pub queue_bytes: usize,
    /// What is dropped when there is no room.
    pub overflow: Overflow,
    /// When files are forced to the disk.
    pub sync: Sync,
    /// How frames are made.
    pub frames: segment::Settings,
    /// What wraps the data keys of segments. Without it nothing is encrypted.
    pub keys: Option<Arc<dyn Keys>>,
    /// Another folder for the page of counters, for one on a disk that may hang: a tmpfs that lives as long as the spool's folder. If it is
    /// gone and the spool's is not, what was lost with it is not counted.
    pub counters: Option<PathBuf>,
    /// The time of day in nanoseconds since 1970: for names. Nothing else depends on it.
    pub clock: fn() -> i64,
}

impl Settings {
    /// A folder with 256 MiB of segments of 16 MiB or a minute, 8 MiB of memory; the newest are dropped; a segment is forced to the disk when
    /// it is closed.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self {
            folder: folder.into(),
            max_bytes: 256 << 20,
            segment_bytes: 16 << 20,
            max_delay: Duration::from_secs(60),
            frame_delay: Duration::from_secs(1),
            queue_bytes: 8 << 20,
            overflow: Overflow::DropNewest,
            sync: Sync::EverySegment,
            frames: segment::Settings::default(),
            keys: None,
            counters: None,
            clock: || {
                SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| i64::try_from(time.as_nanos()).unwrap_or(i64::MAX))
            },
        }
    }
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings").field("folder", &self.folder).field("max_bytes", &self.max_bytes).finish_non_exhaustive()
    }
}

/// What is dropped when there is no room.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Overflow {
    /// What comes.
    DropNewest,
    /// What is oldest: whole segments on the disk, records in memory.
    DropOldest,
}

/// When files are forced to the disk. It is about power cuts: a killed process loses no byte that was written.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Sync {
    /// After each frame: a power cut costs what is in memory.
    EveryFrame,
    /// When a segment is closed: a power cut costs the open segment.
    EverySegment,
    /// Never, nor the ledger: after a power cut, segments may be gone, or uploaded and counted again.
    Never,
}
