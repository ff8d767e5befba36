//! A segment leaves the folder: first it is written down what became of it, then its file is deleted. Killed in between, the next process finds
//! it written down, and deletes the file without counting it again.

use std::{io, sync::PoisonError};

use super::{
    Overflow, Reason, SegmentId, Sync,
    ledger::Ledger,
    shared::{Shared, sync_folder},
};

impl Shared {
    /// Counts a segment as stored, or as dropped for a reason, and deletes its file. Whether it was one that waited.
    pub(super) fn settle(&self, id: SegmentId, dropped: Option<Reason>) -> io::Result<bool> {
        let mut ledger = self.ledger.lock().unwrap_or_else(PoisonError::into_inner);
        let mut entry = ledger.entry.clone();
        let waiting = {
            let state = self.state();
            entry.totals = state.totals;
            let Some(waiting) = state.closed.get(&id) else { return Ok(false) };
            *waiting
        };
        if !ledger.has_room() {
            self.sweep(&mut ledger)?;
            entry.removing.clone_from(&ledger.entry.removing);
        }
        match dropped {
            None => entry.totals.stored += waiting.records,
            Some(reason) => entry.totals.given_up[reason as usize] += waiting.records,
        }
        entry.removing.push(id);
        ledger.write(entry)?;
        {
            let mut state = self.state();
            state.closed.remove(&id);
            match dropped {
                None => state.totals.stored += waiting.records,
                Some(reason) => state.totals.given_up[reason as usize] += waiting.records,
            }
        }
        // That it can't be deleted now is not the caller's matter: it is counted, and tried again with the next one.
        let _ = self.sweep(&mut ledger);
        Ok(true)
    }

    /// Not so many records of a segment can be read as it had: the rest is counted as damaged.
    pub(super) fn shrink(&self, id: SegmentId, readable: u64) -> io::Result<()> {
        let mut ledger = self.ledger.lock().unwrap_or_else(PoisonError::into_inner);
        let mut entry = ledger.entry.clone();
        let lost = {
            let state = self.state();
            entry.totals = state.totals;
            state.closed.get(&id).map_or(0, |waiting| waiting.records.saturating_sub(readable))
        };
        if lost == 0 {
            return Ok(());
        }
        entry.totals.given_up[Reason::Damaged as usize] += lost;
        ledger.write(entry)?;
        let mut state = self.state();
        state.totals.given_up[Reason::Damaged as usize] += lost;
        if let Some(waiting) = state.closed.get_mut(&id) {
            waiting.records -= lost;
        }
        Ok(())
    }

    /// Deletes the files of all that is written down.
    fn sweep(&self, ledger: &mut Ledger) -> io::Result<()> {
        let folder = &self.settings.folder;
        for id in ledger.entry.removing.clone() {
            let path = id.closed_file(folder);
            let bytes = match path.metadata() {
                Ok(known) => known.len(),
                Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
                Err(error) => return Err(error),
            };
            if bytes > 0 {
                std::fs::remove_file(&path)?;
                self.state().bytes -= bytes;
            }
        }
        // Before they are forgotten: else a power cut might bring a file back that nobody knows to be counted.
        if self.settings.sync != Sync::Never {
            sync_folder(folder)?;
        }
        ledger.entry.removing.clear();
        Ok(())
    }

    /// Makes room by dropping the oldest segment that waits, if that is the way here. Whether there is more room now.
    pub(super) fn make_room(&self) -> bool {
        if self.settings.overflow != Overflow::DropOldest {
            return false;
        }
        let oldest = self.state().closed.iter().find(|(_, waiting)| !waiting.uploading).map(|(id, _)| *id);
        oldest.is_some_and(|id| self.settle(id, Some(Reason::SpoolFull)).unwrap_or(false))
    }
}
