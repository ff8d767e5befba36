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
//! - `produced` and `dropped` are counted in a page of a file that outlives the process, before the record is queued.
//! - `stored` is written to the ledger together with the name of the segment that is thereby counted, before its file is deleted.
//! - `spooled` is what the files hold: a process that takes over a folder counts it again. What is missing then was in the memory of the one
//!   before: `lost in crashes`.
//!
//! After a power cut the page may be older than the files. Then `produced` is raised to what is found, and [`Snapshot::corrected`] says by how
//! much; what was lost before it was on the disk can't be known.

mod id;
mod ledger;
mod page;
mod queue;
mod reason;
mod recover;
mod settings;
mod settle;
mod shared;
mod snapshot;
mod thread;
mod upload;

#[cfg(test)]
mod tests;

use std::{
    io,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use bytes::Bytes;

use self::shared::Shared;
pub use self::{
    id::{Closed, SegmentId},
    reason::{Dropped, Reason},
    settings::{Overflow, Settings, Sync},
    snapshot::{Left, Snapshot},
    upload::{Names, Retry, UploadError, Uploader},
};
use crate::segment::Facts;

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
