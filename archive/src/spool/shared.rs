//! What the handles and the thread have in common, and how each change of it leaves the sum as it must be.

use std::{
    collections::BTreeMap,
    fmt, fs, io,
    path::Path,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use bytes::Bytes;
use tokio::sync::Notify;

use super::{
    Closed, Dropped, Left, Overflow, Reason, SegmentId, Settings, Snapshot,
    ledger::{Ledger, Totals},
    page::Page,
    queue::{Item, Queue},
};
use crate::segment::{self, Facts};

/// What the handles and the thread have in common.
pub(super) struct Shared {
    pub(super) settings: Settings,
    /// Held for as long as there is a spool.
    pub(super) lock: Mutex<Option<fs::File>>,
    pub(super) page: Page,
    pub(super) incarnation: u64,
    /// Taken before `state`, and while files are taken away.
    pub(super) ledger: Mutex<Ledger>,
    pub(super) state: Mutex<State>,
    /// The thread has something to do.
    pub(super) work: Condvar,
    /// The thread has done something that is waited for.
    pub(super) done: Condvar,
    /// A segment was closed.
    pub(super) closed: Notify,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("settings", &self.settings).finish_non_exhaustive()
    }
}

/// What changes. Each change leaves the sum as it must be, so it is right whenever the lock is free.
#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) incarnation: u64,
    pub(super) totals: Totals,
    pub(super) queue: Queue,
    /// Records, and their bytes, that the thread has taken and not written.
    pub(super) building: (u64, u64),
    /// Records, and bytes of the file, of the open segment.
    pub(super) open: (u64, u64),
    pub(super) closed: BTreeMap<SegmentId, Waiting>,
    /// Bytes of all files.
    pub(super) bytes: u64,
    pub(super) blocked: Option<Reason>,
    pub(super) write_failures: u64,
    pub(super) sync_failures: u64,
    pub(super) damaged_bytes: u64,
    pub(super) rotations_asked: u64,
    pub(super) rotations_done: u64,
    /// Until when the thread may go on.
    pub(super) closing: Option<Instant>,
    pub(super) ended: bool,
    /// The folder may have another owner: nothing is counted any more.
    pub(super) released: bool,
}

/// A closed segment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Waiting {
    pub(super) records: u64,
    pub(super) bytes: u64,
    pub(super) created: i64,
    /// It is on its way to the store: it isn't dropped to make room.
    pub(super) uploading: bool,
    /// How often bringing it there has failed.
    pub(super) failures: u32,
}

impl Waiting {
    pub(super) fn new(records: u64, bytes: u64, created: i64) -> Self {
        Self { records, bytes, created, uploading: false, failures: 0 }
    }

    pub(super) fn describe(&self, id: SegmentId, folder: &Path) -> Closed {
        Closed { id, path: id.closed_file(folder), records: self.records, bytes: self.bytes, created: self.created }
    }
}

/// Where the counters are in the page.
pub(super) mod word {
    /// What the ledger has, too.
    pub(in crate::spool) const ID: usize = 0;
    pub(in crate::spool) const PRODUCED: usize = 1;
    /// The first of the reasons.
    pub(in crate::spool) const DROPPED: usize = 8;
}

impl Shared {
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn wait<'a>(&self, on: &Condvar, state: MutexGuard<'a, State>, patience: Duration) -> MutexGuard<'a, State> {
        on.wait_timeout(state, patience).unwrap_or_else(PoisonError::into_inner).0
    }

    pub(super) fn push(&self, record: Bytes, facts: &Facts<'_>) -> Result<(), Dropped> {
        let refused = segment::check(&record).is_err();
        let item = Item::new(record, facts);
        let mut state = self.state();
        if state.released {
            return Err(Dropped(Reason::Closed));
        }
        state.totals.produced += 1;
        let produced = state.totals.produced;
        self.count(&mut state, word::PRODUCED, produced);
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
    pub(super) fn enough(&self) -> usize {
        self.settings.frames.frame_bytes.min(self.settings.queue_bytes / 4)
    }

    /// Counts records that are nowhere any more.
    pub(super) fn drop_some(&self, state: &mut State, records: u64, reason: Reason) -> Dropped {
        state.totals.dropped[reason as usize] += records;
        let dropped = state.totals.dropped[reason as usize];
        self.count(state, word::DROPPED + reason as usize, dropped);
        Dropped(reason)
    }

    /// The same of records that the thread has taken, and so many bytes.
    pub(super) fn drop_built(&self, records: u64, bytes: u64, reason: Reason) {
        let mut state = self.state();
        state.building.0 -= records;
        state.building.1 -= bytes;
        self.drop_some(&mut state, records, reason);
    }

    /// Writes a count down. If that fails it is only as exact as the ledger, and after a crash it shows as `corrected`.
    fn count(&self, state: &mut State, word: usize, value: u64) {
        if self.page.store(word, value).is_err() {
            state.write_failures += 1;
        }
    }
}

impl State {
    fn spooled(&self) -> u64 {
        self.open.0 + self.closed.values().map(|waiting| waiting.records).sum::<u64>()
    }

    pub(super) fn in_memory(&self) -> u64 {
        self.queue.len() as u64 + self.building.0
    }

    pub(super) fn left(&self) -> Left {
        Left {
            records: self.spooled() + self.in_memory(),
            bytes: self.open.1 + self.closed.values().map(|waiting| waiting.bytes).sum::<u64>(),
        }
    }

    pub(super) fn snapshot(&self) -> Snapshot {
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
pub(super) fn sync_folder(folder: &Path) -> io::Result<()> {
    fs::File::open(folder)?.sync_all()
}
