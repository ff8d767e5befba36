//! Whether the purges of a pod alone are noted on disk, and what was purged before they were.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{task::spawn_blocking, time::timeout};

use super::{
    Generation,
    journal::Journal,
    log::{Entry, PurgeId, Strength, What},
};

/// Purges before there is a journal that are told apart; more of them are one of everything.
const MOST: usize = 256;
/// How long a purge waits for the disk.
const PATIENCE: Duration = Duration::from_secs(2);

/// The journal, if there is one.
#[derive(Debug)]
pub(super) struct Noted(Mutex<State>);

#[derive(Debug)]
struct State {
    generation: Generation,
    kept: Kept,
}

#[derive(Debug)]
enum Kept {
    /// In memory, as long as nothing is on disk.
    Memory(Vec<Entry>),
    Disk(Arc<Journal>),
}

/// What has to be written before a purge is answered.
#[derive(Debug)]
pub(super) struct Line {
    journal: Arc<Journal>,
    at: u64,
    entry: Entry,
}

/// What became of a line.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Written {
    Noted,
    /// There is no journal any more.
    NoJournal,
    /// Maybe there is one without it.
    Unknown,
}

impl Noted {
    pub(super) fn new(generation: Generation) -> Self {
        Self(Mutex::new(State { generation, kept: Kept::Memory(Vec::new()) }))
    }

    /// The current one.
    pub(super) fn generation(&self) -> Generation {
        self.lock().generation
    }

    /// The current one, if another process will know what was purged in it.
    pub(super) fn on_disk(&self) -> Option<Generation> {
        let state = self.lock();
        matches!(state.kept, Kept::Disk(_)).then_some(state.generation)
    }

    /// Takes a purge. With a journal, what is left to be written.
    pub(super) fn add(&self, at: u64, entry: &Entry) -> Option<Line> {
        match &mut self.lock().kept {
            Kept::Memory(purges) if purges.len() < MOST => purges.push(entry.clone()),
            Kept::Memory(purges) => *purges = vec![everything(entry.id)],
            Kept::Disk(journal) => return Some(Line { journal: Arc::clone(journal), at, entry: entry.clone() }),
        }
        None
    }

    /// The journal, if there is one.
    pub(super) fn journal(&self) -> Option<Arc<Journal>> {
        match &self.lock().kept {
            Kept::Memory(_) => None,
            Kept::Disk(journal) => Some(Arc::clone(journal)),
        }
    }

    /// A journal is there from now on. Returns what was purged before, of which it knows nothing.
    pub(super) fn open(&self, journal: Arc<Journal>, generation: Generation) -> Vec<Entry> {
        let before = std::mem::replace(&mut *self.lock(), State { generation, kept: Kept::Disk(journal) });
        match before.kept {
            Kept::Memory(purges) => purges,
            Kept::Disk(_) => Vec::new(),
        }
    }

    /// Writes a line. If that can't be in time, the purge has to be added again.
    pub(super) async fn write(&self, Line { journal, at, entry }: Line) -> Written {
        let writing = Arc::clone(&journal);
        let written = timeout(PATIENCE, spawn_blocking(move || writing.add(at, &entry))).await;
        if matches!(written, Ok(Ok(Ok(())))) {
            return Written::Noted;
        }
        tracing::warn!(?written, "A purge can't be noted on disk, so nothing is kept there until it can be.");
        self.leave(&journal);
        // Without it, what is stored is of unknown standing after another start.
        let removed = timeout(PATIENCE, spawn_blocking(move || journal.give_up())).await;
        if matches!(removed, Ok(Ok(Ok(())))) { Written::NoJournal } else { Written::Unknown }
    }

    fn leave(&self, journal: &Arc<Journal>) {
        let mut state = self.lock();
        if matches!(&state.kept, Kept::Disk(current) if Arc::ptr_eq(current, journal)) {
            state.kept = Kept::Memory(Vec::new());
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn everything(id: PurgeId) -> Entry {
    Entry { id, what: What::Everything, strength: Strength::Hard }
}
