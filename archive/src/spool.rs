//! A bounded folder of [segments](crate::segment) on their way to a store.
//!
//! Records are pushed into a queue in memory, which never waits. One thread makes frames and segments of them; a segment that is closed is
//! [uploaded](Uploader) and deleted once the store has acknowledged it. What finds no room is dropped and counted.
//!
//! At any moment, and after a SIGKILL at any byte:
//!
//! ```text
//! produced = stored + spooled + in memory + dropped + lost in crashes
//! ```
//!
//! - `produced` and `dropped` are counted in a [page](page) that outlives the process, before the record is queued.
//! - `stored` is written to the [ledger](ledger) together with the name of the segment that is thereby counted, before its file is deleted.
//! - `spooled` is what the files hold: a process that takes over a folder counts it again. What is missing then was in the memory of the one
//!   before: `lost in crashes`.
//!
//! After a power cut the page may be older than the files. Then `produced` is raised to what is found, and [`Snapshot::corrected`] says by how
//! much; what was lost before it was on the disk can't be known.

mod ledger;
mod page;
mod queue;
mod recover;
mod settle;
mod thread;
mod upload;

#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    fmt, fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use tokio::sync::Notify;

use self::{
    ledger::{Ledger, Totals},
    page::Page,
    queue::{Item, Queue},
};
pub use self::upload::{Names, Retry, UploadError, Uploader};
use crate::segment::{self, Facts, Keys};

/// How a spool works.
#[derive(Clone)]
pub struct Settings {
    /// Its folder. It is made if it is missing, for nobody but this user.
    pub folder: PathBuf,
    /// The most bytes of its files together. At least 1 MiB.
    pub max_bytes: u64,
    /// A segment is closed when its file has so many bytes.
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
            clock: || SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| i64::try_from(time.as_nanos()).unwrap_or(i64::MAX)),
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

/// Why a record was dropped.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Reason {
    /// The queue in memory is full: records come faster than they are compressed.
    QueueFull,
    /// The folder has its most bytes.
    SpoolFull,
    /// The disk is full.
    NoSpace,
    /// The disk can't be written: it is read-only.
    ReadOnly,
    /// The disk fails.
    DiskFailed,
    /// No data key can be had.
    NoKey,
    /// It is too large, empty, or not one line.
    Refused,
    /// It came after the spool was closed, or was in memory when the time to write it was over.
    Closed,
    /// Its segment's file was taken away by somebody else.
    Missing,
    /// Its segment's name is taken in the store, by something else.
    NameTaken,
}

impl Reason {
    /// All of them. The ledger knows them by their places here: new ones come last.
    pub const ALL: [Self; 10] = [
        Self::QueueFull,
        Self::SpoolFull,
        Self::NoSpace,
        Self::ReadOnly,
        Self::DiskFailed,
        Self::NoKey,
        Self::Refused,
        Self::Closed,
        Self::Missing,
        Self::NameTaken,
    ];

    /// For labels of metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::QueueFull => "queueFull",
            Self::SpoolFull => "spoolFull",
            Self::NoSpace => "noSpace",
            Self::ReadOnly => "readOnly",
            Self::DiskFailed => "diskFailed",
            Self::NoKey => "noKey",
            Self::Refused => "refused",
            Self::Closed => "closed",
            Self::Missing => "missing",
            Self::NameTaken => "nameTaken",
        }
    }

    fn of(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::NoSpace,
            io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied => Self::ReadOnly,
            _ => Self::DiskFailed,
        }
    }
}

/// The record was not taken. It is counted.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("the record was dropped: {}", .0.as_str())]
pub struct Dropped(pub Reason);

/// Why a folder can't be a spool.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another process has it.
    #[error("{0}: another process spools into this folder; each needs one of its own")]
    InUse(PathBuf),
    /// It can't be read or written.
    #[error("{path}: the spool can't be opened")]
    Io {
        /// Which file or folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

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
    fn open_file(self, folder: &Path) -> PathBuf {
        folder.join(format!("{self}.open"))
    }

    fn closed_file(self, folder: &Path) -> PathBuf {
        folder.join(format!("{self}.fxs"))
    }

    fn parse(name: &str) -> Option<Self> {
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

/// A spool. When it is dropped, it is [closed](Self::close) within a second, and another process may have the folder.
#[derive(Debug)]
pub struct Spool {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// Pushes records. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Pusher {
    shared: Arc<Shared>,
}

impl Pusher {
    /// Puts a record into the queue; it never waits for the disk. `record` should be memory of its own size, for it is held for a while.
    ///
    /// # Errors
    /// It was dropped, which is counted; but not once the [`Spool`] itself was dropped.
    pub fn try_push(&self, record: Bytes, facts: &Facts<'_>) -> Result<(), Dropped> {
        self.shared.push(record, facts)
    }
}

impl Spool {
    /// Opens a folder: recovers what a killed process left, and starts the thread. It reads all files, so it may take a while.
    ///
    /// # Errors
    /// Another process has the folder, or it can't be used.
    pub fn open(settings: Settings) -> Result<Self, Error> {
        let shared = Arc::new(recover::open(settings)?);
        let (name, of_thread) = ("spool".to_owned(), shared.clone());
        let started = std::thread::Builder::new().name(name).spawn(move || thread::run(&of_thread));
        let thread = started.map_err(|source| Error::Io { path: shared.settings.folder.clone(), source })?;
        Ok(Self { shared, thread: Mutex::new(Some(thread)) })
    }

    /// What records are pushed by.
    pub fn pusher(&self) -> Pusher {
        Pusher { shared: self.shared.clone() }
    }

    /// All counts.
    pub fn snapshot(&self) -> Snapshot {
        self.shared.state().snapshot()
    }

    /// The segments that wait to be uploaded, oldest first.
    pub fn closed(&self) -> Vec<Closed> {
        let state = self.shared.state();
        state.closed.iter().map(|(id, waiting)| waiting.describe(*id, &self.shared.settings.folder)).collect()
    }

    /// The store has acknowledged a segment: it is counted, then its file is deleted. Whether it was one that waited.
    ///
    /// # Errors
    /// It can't be written down, so it still waits: upload it again.
    pub fn stored(&self, id: SegmentId) -> io::Result<bool> {
        self.shared.settle(id, None)
    }

    /// A segment can't be stored: its records are counted as dropped, then its file is deleted. Whether it was one that waited.
    ///
    /// # Errors
    /// It can't be written down, so it still waits.
    pub fn give_up(&self, id: SegmentId, reason: Reason) -> io::Result<bool> {
        self.shared.settle(id, Some(reason))
    }

    /// Closes the open segment with all that was pushed before, and waits for that. Whether it was done in time.
    pub fn rotate(&self, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        let mut state = self.shared.state();
        state.rotations_asked += 1;
        let wanted = state.rotations_asked;
        self.shared.work.notify_all();
        while state.rotations_done < wanted && !state.ended {
            let Some(left) = deadline.checked_duration_since(Instant::now()) else { return false };
            state = self.shared.wait(&self.shared.done, state, left);
        }
        state.rotations_done >= wanted
    }

    /// Takes no more records, and writes those in memory into closed segments, which may take so long. What is then in memory is counted as
    /// dropped. What is left for the uploader.
    pub fn close(&self, patience: Duration) -> Left {
        let deadline = Instant::now() + patience;
        {
            let mut state = self.shared.state();
            if state.closing.is_none() {
                state.closing = Some(deadline);
            }
            self.shared.work.notify_all();
            while !state.ended {
                // Its thread looks at the time by itself; a disk that hangs doesn't.
                let Some(left) = (deadline + Duration::from_millis(100)).checked_duration_since(Instant::now()) else { break };
                state = self.shared.wait(&self.shared.done, state, left);
            }
            if !state.ended {
                return state.left();
            }
        }
        if let Some(thread) = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take() {
            // It has ended but for its last lines.
            let _ = thread.join();
        }
        self.left()
    }

    /// What no store has acknowledged yet.
    pub fn left(&self) -> Left {
        self.shared.state().left()
    }
}

impl Drop for Spool {
    fn drop(&mut self) {
        self.close(Duration::from_secs(1));
        let mut state = self.shared.state();
        if state.ended {
            state.released = true;
            self.shared.lock.lock().unwrap_or_else(PoisonError::into_inner).take();
        }
    }
}

/// What the handles and the thread have in common.
struct Shared {
    settings: Settings,
    /// Held for as long as there is a spool.
    lock: Mutex<Option<fs::File>>,
    page: Page,
    incarnation: u64,
    /// Taken before `state`, and while files are taken away.
    ledger: Mutex<Ledger>,
    state: Mutex<State>,
    /// The thread has something to do.
    work: Condvar,
    /// The thread has done something that is waited for.
    done: Condvar,
    /// A segment was closed.
    closed: Notify,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("settings", &self.settings).finish_non_exhaustive()
    }
}

/// What changes. Each change leaves the sum as it must be, so it is right whenever the lock is free.
#[derive(Debug)]
struct State {
    incarnation: u64,
    totals: Totals,
    queue: Queue,
    /// Records, and their bytes, that the thread has taken and not written.
    building: (u64, u64),
    /// Records, and bytes of the file, of the open segment.
    open: (u64, u64),
    closed: BTreeMap<SegmentId, Waiting>,
    /// Bytes of all files.
    bytes: u64,
    blocked: Option<Reason>,
    write_failures: u64,
    sync_failures: u64,
    damaged_bytes: u64,
    rotations_asked: u64,
    rotations_done: u64,
    /// Until when the thread may go on.
    closing: Option<Instant>,
    ended: bool,
    /// The folder may have another owner: nothing is counted any more.
    released: bool,
}

/// A closed segment.
#[derive(Clone, Copy, Debug)]
struct Waiting {
    records: u64,
    bytes: u64,
    created: i64,
    /// It is on its way to the store: it isn't dropped to make room.
    uploading: bool,
}

impl Waiting {
    fn describe(&self, id: SegmentId, folder: &Path) -> Closed {
        Closed { id, path: id.closed_file(folder), records: self.records, bytes: self.bytes, created: self.created }
    }
}

/// Where the counters are in the page.
mod word {
    /// What the ledger has, too.
    pub(super) const ID: usize = 0;
    pub(super) const PRODUCED: usize = 1;
    /// The first of the reasons.
    pub(super) const DROPPED: usize = 8;
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, on: &Condvar, state: MutexGuard<'a, State>, patience: Duration) -> MutexGuard<'a, State> {
        on.wait_timeout(state, patience).unwrap_or_else(PoisonError::into_inner).0
    }

    fn push(&self, record: Bytes, facts: &Facts<'_>) -> Result<(), Dropped> {
        let refused = segment::check(&record).is_err();
        let item = Item::new(record, facts);
        let mut state = self.state();
        if state.released {
            return Err(Dropped(Reason::Closed));
        }
        state.totals.produced += 1;
        self.page.store(word::PRODUCED, state.totals.produced);
        if refused {
            return Err(self.drop_some(&mut state, 1, Reason::Refused));
        }
        if state.closing.is_some() {
            return Err(self.drop_some(&mut state, 1, Reason::Closed));
        }
        let full = state.blocked.unwrap_or(Reason::QueueFull);
        let before = state.queue.bytes();
        let dropped = match self.settings.overflow {
            Overflow::DropNewest => state.queue.push(item).map(|()| 0),
            Overflow::DropOldest => state.queue.push_over(item),
        };
        match dropped {
            Err(_) => return Err(self.drop_some(&mut state, 1, full)),
            Ok(0) => {}
            Ok(oldest) => {
                self.drop_some(&mut state, oldest, full);
            }
        }
        let enough = self.enough();
        // Once, and not for each record: it is a system call. The thread looks by itself now and then.
        if before < enough && state.queue.bytes() >= enough {
            drop(state);
            self.work.notify_all();
        }
        Ok(())
    }

    /// So many bytes in the queue are worth waking the thread.
    fn enough(&self) -> usize {
        self.settings.frames.frame_bytes.min(self.settings.queue_bytes / 4)
    }

    /// Counts records that are nowhere any more.
    fn drop_some(&self, state: &mut State, records: u64, reason: Reason) -> Dropped {
        let dropped = &mut state.totals.dropped[reason as usize];
        *dropped += records;
        self.page.store(word::DROPPED + reason as usize, *dropped);
        Dropped(reason)
    }
}

impl State {
    fn spooled(&self) -> u64 {
        self.open.0 + self.closed.values().map(|waiting| waiting.records).sum::<u64>()
    }

    fn in_memory(&self) -> u64 {
        self.queue.len() as u64 + self.building.0
    }

    fn left(&self) -> Left {
        Left { records: self.spooled() + self.in_memory(), bytes: self.open.1 + self.closed.values().map(|waiting| waiting.bytes).sum::<u64>() }
    }

    fn snapshot(&self) -> Snapshot {
        Snapshot {
            incarnation: self.incarnation,
            produced: self.totals.produced,
            stored: self.totals.stored,
            spooled: self.spooled(),
            in_memory: self.in_memory(),
            lost_in_crash: self.totals.lost,
            dropped: std::array::from_fn(|reason| self.totals.dropped[reason] + self.totals.given_up[reason]),
            corrected: self.totals.corrected,
            bytes: self.bytes,
            memory_bytes: self.queue.bytes() as u64 + self.building.1,
            segments: self.closed.len() as u64,
            blocked: self.blocked,
            write_failures: self.write_failures,
            sync_failures: self.sync_failures,
            damaged_bytes: self.damaged_bytes,
        }
    }
}

/// Makes what was renamed or deleted in a folder last.
fn sync_folder(folder: &Path) -> io::Result<()> {
    fs::File::open(folder)?.sync_all()
}
