//! What became of all records, in a small file.
//!
//! It has two places of 4 KiB, written in turn, each with a number and a checksum: one of them is always whole. An entry says how many records
//! are stored, and which segments are being taken away because of it. So the two become true at once, and a segment whose file is still there
//! after a crash is not counted again.

use std::{
    fs, io,
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::Path,
};

use bytes::{Buf, BufMut};
use twox_hash::XxHash3_64;

use super::{Reason, SegmentId};

/// Bytes of a place.
const PLACE: usize = 4096;
/// Bytes of the file.
pub(super) const LENGTH: u64 = 2 * PLACE as u64;
const MARK: &[u8; 8] = b"FXSLEDG1";
/// Reasons that there is room for: those that a later version adds are 0 here.
const REASONS: usize = 32;
/// How many segments may be on their way out at once: their files can't be unlinked, on a disk that can't be written.
const MAX_REMOVING: usize = 64;

/// Records by what became of them. They only grow.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Totals {
    pub(super) produced: u64,
    pub(super) stored: u64,
    pub(super) lost: u64,
    /// By how many `produced` was raised, since more was found than it said. See [`super::Snapshot::corrected`].
    pub(super) corrected: u64,
    /// One by one. The page of counters has them, too.
    pub(super) dropped: [u64; Reason::ALL.len()],
    /// In segments, which are counted here alone.
    pub(super) given_up: [u64; Reason::ALL.len()],
}

impl Totals {
    pub(super) fn dropped(&self) -> u64 {
        self.dropped.iter().chain(&self.given_up).sum()
    }
}

/// What the file says.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Entry {
    /// What the page of counters has, too, if it belongs to this file.
    pub(super) id: u64,
    /// Counts what is written.
    pub(super) generation: u64,
    /// Counts the processes that had the folder.
    pub(super) incarnation: u64,
    pub(super) totals: Totals,
    /// Segments that are counted and whose files may still be there.
    pub(super) removing: Vec<SegmentId>,
}

/// The file.
#[derive(Debug)]
pub(super) struct Ledger {
    file: fs::File,
    /// Whether it is forced to the disk.
    sync: bool,
    pub(super) entry: Entry,
}

impl Ledger {
    /// Opens it, or makes it. Whether it says anything: else its entry is empty.
    pub(super) fn open(path: &Path, sync: bool) -> io::Result<(Self, bool)> {
        let file = fs::OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
        if file.metadata()?.len() != LENGTH {
            file.set_len(0)?;
            // Written, not only made longer: so a full disk has room for it.
            file.write_all_at(&[0; LENGTH as usize], 0)?;
        }
        let mut newest: Option<Entry> = None;
        for place in 0..2 {
            let mut bytes = [0; PLACE];
            file.read_exact_at(&mut bytes, place * PLACE as u64)?;
            let entry = read(&bytes).filter(|entry| newest.as_ref().is_none_or(|newest| newest.generation < entry.generation));
            newest = entry.or(newest);
        }
        let known = newest.is_some();
        Ok((Self { file, sync, entry: newest.unwrap_or_default() }, known))
    }

    /// Whether another segment may be taken away.
    pub(super) fn has_room(&self) -> bool {
        self.entry.removing.len() < MAX_REMOVING
    }

    /// Writes another entry. If that fails, the one before still holds.
    pub(super) fn write(&mut self, mut entry: Entry) -> io::Result<()> {
        entry.generation = self.entry.generation + 1;
        self.file.write_all_at(&write(&entry), (entry.generation % 2) * PLACE as u64)?;
        // It may be on the disk from now on, also if nobody says so: the next one goes to the other place only if this one is whole.
        if self.sync {
            self.file.sync_data()?;
        }
        self.entry = entry;
        Ok(())
    }
}

fn write(entry: &Entry) -> Vec<u8> {
    let mut out = Vec::with_capacity(PLACE);
    out.put_slice(MARK);
    let Entry { id, generation, incarnation, totals, removing } = entry;
    for number in [*id, *generation, *incarnation, totals.produced, totals.stored, totals.lost, totals.corrected] {
        out.put_u64_le(number);
    }
    for dropped in [&totals.dropped, &totals.given_up] {
        for reason in 0..REASONS {
            out.put_u64_le(dropped.get(reason).copied().unwrap_or(0));
        }
    }
    out.put_u64_le(removing.len() as u64);
    for id in removing {
        out.put_u64_le(id.incarnation);
        out.put_u64_le(id.sequence);
    }
    out.resize(PLACE - 8, 0);
    let checksum = XxHash3_64::oneshot(&out);
    out.put_u64_le(checksum);
    out
}

fn read(bytes: &[u8; PLACE]) -> Option<Entry> {
    let (mut rest, mut checksum) = bytes.split_at(PLACE - 8);
    if !rest.starts_with(MARK) || checksum.get_u64_le() != XxHash3_64::oneshot(rest) {
        return None;
    }
    rest.advance(MARK.len());
    let (mut head, mut dropped, mut given_up) = ([0; 7], [0; Reason::ALL.len()], [0; Reason::ALL.len()]);
    for number in &mut head {
        *number = rest.try_get_u64_le().ok()?;
    }
    for dropped in [&mut dropped, &mut given_up] {
        for reason in 0..REASONS {
            let count = rest.try_get_u64_le().ok()?;
            if let Some(known) = dropped.get_mut(reason) {
                *known = count;
            }
        }
    }
    let count = usize::try_from(rest.try_get_u64_le().ok()?).ok().filter(|count| *count <= MAX_REMOVING)?;
    let mut removing = Vec::with_capacity(count);
    for _ in 0..count {
        removing.push(SegmentId { incarnation: rest.try_get_u64_le().ok()?, sequence: rest.try_get_u64_le().ok()? });
    }
    let [id, generation, incarnation, produced, stored, lost, corrected] = head;
    Some(Entry { id, generation, incarnation, totals: Totals { produced, stored, lost, corrected, dropped, given_up }, removing })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(incarnation: u64) -> Entry {
        let totals = Totals {
            produced: 10,
            stored: 4,
            lost: 3,
            corrected: 1,
            dropped: [1; Reason::ALL.len()],
            given_up: [2; Reason::ALL.len()],
        };
        let id = SegmentId { incarnation: 2, sequence: 3 };
        Entry { id: 5, incarnation, totals, removing: vec![id; MAX_REMOVING], ..Entry::default() }
    }

    #[test]
    fn ledger_says_what_was_written_last() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ledger");
        let (mut ledger, known) = Ledger::open(&path, true).unwrap();
        assert!(!known && ledger.has_room());
        for incarnation in 1..5 {
            ledger.write(entry(incarnation)).unwrap();
            let (again, known) = Ledger::open(&path, true).unwrap();
            assert!(known && !again.has_room());
            assert_eq!(again.entry, Entry { generation: incarnation, ..entry(incarnation) });
        }
        assert_eq!(fs::metadata(&path).unwrap().len(), LENGTH);
    }

    #[test]
    fn entry_that_was_being_written_leaves_the_one_before() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ledger");
        let (mut ledger, _) = Ledger::open(&path, false).unwrap();
        ledger.write(entry(1)).unwrap();
        let before = fs::read(&path).unwrap();
        ledger.write(entry(2)).unwrap();
        let after = fs::read(&path).unwrap();
        let place = after.iter().zip(&before).position(|(after, before)| after != before).unwrap() / PLACE * PLACE;
        for cut in 0..=PLACE {
            let torn = [&after[..place], &after[place..place + cut], &before[place + cut..]].concat();
            // What is written last is the checksum, so nearly all cuts give the entry before.
            fs::write(&path, torn).unwrap();
            let (read, known) = Ledger::open(&path, false).unwrap();
            assert!(known);
            let last = read.entry.incarnation == 2;
            assert!(last == (cut == PLACE) || cut > PLACE - 8, "{cut}");
        }
    }
}
