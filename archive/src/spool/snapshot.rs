//! All counts of one moment.

use super::Reason;

/// All counts of one moment.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Snapshot {
    /// Counts the processes that had the folder.
    pub incarnation: u64,
    /// Records that were pushed.
    pub produced: u64,
    /// Those that a store has acknowledged.
    pub stored: u64,
    /// Those in files.
    pub spooled: u64,
    /// Those in memory.
    pub in_memory: u64,
    /// Those that were in the memory of processes that were killed.
    pub lost_in_crash: u64,
    /// Those that were dropped, by reason, in the order of [`Reason::ALL`].
    pub dropped: [u64; Reason::ALL.len()],
    /// How many of `produced` were not counted when they were pushed, but when their files were found after a power cut.
    pub corrected: u64,
    /// Bytes of all files.
    pub bytes: u64,
    /// Bytes of what waits in memory.
    pub memory_bytes: u64,
    /// Segments that wait to be uploaded.
    pub segments: u64,
    /// Why nothing can be written now.
    pub blocked: Option<Reason>,
    /// How often writing has failed.
    pub write_failures: u64,
    /// How often forcing files to the disk has failed.
    pub sync_failures: u64,
    /// Bytes that could not be read when the folder was opened: torn ends and damaged frames.
    pub damaged_bytes: u64,
}

impl Snapshot {
    /// Records that were dropped for a reason.
    pub fn dropped(&self, reason: Reason) -> u64 {
        self.dropped[reason as usize]
    }

    /// Whether nothing vanished.
    pub fn is_balanced(&self) -> bool {
        let Self { produced, stored, spooled, in_memory, lost_in_crash, dropped, .. } = self;
        *produced == stored + spooled + in_memory + lost_in_crash + dropped.iter().sum::<u64>()
    }
}

/// What was not done in time.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Left {
    /// Records that no store has acknowledged.
    pub records: u64,
    /// Bytes of their files.
    pub bytes: u64,
}
