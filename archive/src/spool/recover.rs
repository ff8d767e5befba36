//! Takes over a folder: from nobody, or from a process that is gone.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::unix::fs::{DirBuilderExt as _, FileExt as _, OpenOptionsExt as _},
    path::Path,
    sync::{Condvar, Mutex},
};

use tokio::sync::Notify;

use super::{
    Error, Reason, SegmentId, Settings, Sync,
    ledger::{self, Entry, Ledger, Totals},
    page::{self, Page},
    queue::Queue,
    shared::{Shared, State, Waiting, sync_folder, word},
};
use crate::segment::{self, Segment};

/// Locks the folder, finds what is in it, and writes down what became of the rest.
pub(super) fn open(mut settings: Settings) -> Result<Shared, Error> {
    settings.segment_bytes = settings.segment_bytes.min(settings.max_bytes / 4);
    let folder = settings.folder.clone();
    let at = |path: &Path| {
        let path = path.to_owned();
        move |source| Error::Io { path, source }
    };
    fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder).map_err(at(&folder))?;
    let lock = lock(&folder)?;
    let path = folder.join("ledger");
    let sync = settings.sync != Sync::Never;
    let (mut ledger, known) = Ledger::open(&path, sync).map_err(at(&path))?;
    let counters = settings.counters.clone().unwrap_or_else(|| folder.clone());
    fs::DirBuilder::new().recursive(true).mode(0o700).create(&counters).map_err(at(&counters))?;
    let path = counters.join("counters");
    let page = Page::open(&path).map_err(at(&path))?;
    let found = find(&folder, &ledger.entry.removing, sync).map_err(at(&folder))?;
    let entry = next(&settings, &ledger.entry, known, &page, &found).map_err(at(&path))?;
    let (incarnation, totals) = (entry.incarnation, entry.totals);
    // What it says holds, whether the page below is still the one of before or not: its counters are the higher ones.
    ledger.write(entry).map_err(at(&folder.join("ledger")))?;
    count(&page, ledger.entry.id, &totals).map_err(at(&path))?;
    let own = ledger::LENGTH + if settings.counters.is_none() { page::LENGTH as u64 } else { 0 };
    let state = State {
        incarnation,
        totals,
        queue: Queue::new(settings.queue_bytes),
        bytes: own + found.left_over + found.closed.values().map(|waiting| waiting.bytes).sum::<u64>(),
        closed: found.closed,
        damaged_bytes: found.damaged_bytes,
        ..State::default()
    };
    let shared = Shared {
        settings,
        lock: Mutex::new(Some(lock)),
        page,
        incarnation,
        ledger: Mutex::new(ledger),
        state: Mutex::new(state),
        work: Condvar::new(),
        done: Condvar::new(),
        closed: Notify::new(),
    };
    while shared.is_too_large() && shared.make_room() {}
    Ok(shared)
}

impl Shared {
    fn is_too_large(&self) -> bool {
        self.state().bytes > self.settings.max_bytes
    }
}

fn lock(folder: &Path) -> Result<fs::File, Error> {
    let path = folder.join("lock");
    let failed = |source| Error::Io { path: path.clone(), source };
    let file =
        fs::OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(fs::TryLockError::WouldBlock) => Err(Error::InUse(folder.to_owned())),
        Err(fs::TryLockError::Error(source)) => Err(failed(source)),
    }
}

/// What was found in a folder.
#[derive(Debug, Default)]
struct Found {
    closed: BTreeMap<SegmentId, Waiting>,
    /// Segments whose files are counted and can't be deleted yet.
    removing: Vec<SegmentId>,
    /// Their bytes, and those of what can't be read.
    left_over: u64,
    damaged_bytes: u64,
    /// The highest incarnation of any file.
    newest: u64,
}

fn find(folder: &Path, removing: &[SegmentId], sync: bool) -> io::Result<Found> {
    let mut names = BTreeSet::new();
    for file in fs::read_dir(folder)? {
        let name = file?.file_name();
        let Some((id, kind)) = name.to_str().and_then(|name| name.rsplit_once('.')) else { continue };
        let open = match kind {
            "open" => true,
            "fxs" => false,
            _ => continue,
        };
        if let Some(id) = SegmentId::parse(id) {
            names.insert((id, open));
        }
    }
    let mut found = Found::default();
    for (id, open) in names {
        found.newest = found.newest.max(id.incarnation);
        found.take(folder, id, open, removing, sync)?;
    }
    if sync {
        sync_folder(folder)?;
    }
    Ok(found)
}

impl Found {
    fn take(&mut self, folder: &Path, id: SegmentId, open: bool, removing: &[SegmentId], sync: bool) -> io::Result<()> {
        let path = if open { id.open_file(folder) } else { id.closed_file(folder) };
        if !open && removing.contains(&id) {
            if fs::remove_file(&path).is_err() {
                self.left_over += path.metadata()?.len();
                self.removing.push(id);
            }
            return Ok(());
        }
        let Ok((waiting, damaged)) = recover(&path, sync) else {
            // One bad place of a disk is no reason to spool nothing. Perhaps it can be read the next time: then it is counted again.
            let bytes = path.symlink_metadata().map_or(0, |known| known.len());
            self.left_over += bytes;
            self.damaged_bytes += bytes;
            return Ok(());
        };
        self.damaged_bytes += damaged;
        match waiting {
            Some(waiting) => {
                if open {
                    fs::rename(&path, id.closed_file(folder))?;
                }
                self.closed.insert(id, waiting);
            }
            // Nothing of it can be read, not even by another version.
            None => fs::remove_file(&path)?,
        }
        Ok(())
    }
}

/// How many records of a closed segment can be read. None if it needs a newer reader to say so.
pub(super) fn readable(file: &fs::File) -> io::Result<Option<u64>> {
    match Segment::scan(file, None) {
        Ok(segment) => Ok(Some(records(&segment))),
        Err(segment::Error::Io(error)) => Err(error),
        Err(segment::Error::Newer { .. }) => Ok(None),
        Err(_) => Ok(Some(0)),
    }
}

fn records<S: segment::Source>(segment: &Segment<S>) -> u64 {
    segment.entries().iter().map(|entry| u64::from(entry.head.records)).sum()
}

/// Reads a segment, and gives it an end if it has none. None if it has no record. Beside it the bytes that can't be read.
fn recover(path: &Path, sync: bool) -> io::Result<(Option<Waiting>, u64)> {
    let file = fs::OpenOptions::new().read(true).write(true).open(path)?;
    let length = file.metadata()?.len();
    let segment = match Segment::scan(&file, None) {
        Ok(segment) => segment,
        Err(segment::Error::Io(error)) => return Err(error),
        // One of a newer version waits for it to come back; it can be uploaded by this one, too.
        Err(segment::Error::Newer { .. }) => return Ok((Some(Waiting::new(0, length, 0)), 0)),
        Err(_) => return Ok((None, length)),
    };
    let damaged = segment.damage().iter().map(|damage| damage.bytes).sum();
    let Some(first) = segment.entries().first() else { return Ok((None, damaged)) };
    let created = segment.header().map_or(first.head.first, |header| header.created);
    let records = records(&segment);
    let mut bytes = length;
    if segment.footer().is_none() {
        let end = segment.end_bytes();
        bytes = segment.end() + end.len() as u64;
        file.set_len(segment.end())?;
        if file.write_all_at(&end, segment.end()).is_err() {
            // No room: it can be read without.
            bytes = segment.end();
            file.set_len(bytes)?;
        }
        if sync {
            file.sync_data()?;
        }
    }
    Ok((Some(Waiting::new(records, bytes, created)), damaged))
}

/// What the next process begins with.
fn next(settings: &Settings, last: &Entry, known: bool, page: &Page, found: &Found) -> io::Result<Entry> {
    let mut totals = last.totals;
    if known && page.load(word::ID)? == last.id {
        totals.produced = totals.produced.max(page.load(word::PRODUCED)?);
        for (reason, dropped) in totals.dropped.iter_mut().enumerate() {
            *dropped = (*dropped).max(page.load(word::DROPPED + reason)?);
        }
    }
    let spooled: u64 = found.closed.values().map(|waiting| waiting.records).sum();
    balance(&mut totals, spooled);
    let incarnation = match known {
        true => last.incarnation.max(found.newest) + 1,
        // Nobody knows which names are taken in the store. Those of an ordinary count are far below this.
        false => (found.newest + 1).max(u64::try_from((settings.clock)() / 1_000_000_000).unwrap_or(0)),
    };
    let id = if known { last.id } else { fastrand::u64(1..) };
    Ok(Entry { id, incarnation, totals, removing: found.removing.clone(), ..last.clone() })
}

/// The page says the same as the ledger. What it belongs to comes last.
fn count(page: &Page, id: u64, totals: &Totals) -> io::Result<()> {
    page.store(word::PRODUCED, totals.produced)?;
    for (reason, dropped) in totals.dropped.iter().enumerate() {
        page.store(word::DROPPED + reason, *dropped)?;
    }
    page.store(word::ID, id)
}

/// What is missing was lost; where more is there than was counted, the count was too old.
fn balance(totals: &mut Totals, spooled: u64) {
    let accounted = totals.stored + totals.lost + totals.dropped() + spooled;
    match totals.produced.checked_sub(accounted) {
        Some(lost) => totals.lost += lost,
        None => {
            totals.corrected += accounted - totals.produced;
            totals.produced = accounted;
        }
    }
}

const _: () = assert!(word::DROPPED + Reason::ALL.len() <= page::LENGTH / 8);
