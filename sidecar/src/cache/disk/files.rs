//! The segments as files: they are written at the end of the newest, and leave as wholes, the oldest first. All of it waits for the disk.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, TryLockError},
    io,
    os::unix::fs::{DirBuilderExt as _, FileExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::{
    index::{Gone, Index, Place},
    segment::{End, FRAME, Frame, MAGIC, Name, scan},
};

/// Segments into which the whole is divided: so much of it leaves at a time.
const SEGMENTS: u64 = 32;
/// The longest segment: places are 32 bits.
const LONGEST: u64 = 1 << 30;
/// Names are kept for one record in so many bytes, for they take memory: 60 bytes each.
const PER_RECORD: u64 = 4096;
/// And for so many at most.
const MOST_RECORDS: u64 = 1 << 20;
/// One record may take one in so many bytes of the whole.
const LARGEST: u64 = 8;
/// What names are forgotten of at a time, while those who look wait.
const AT_A_TIME: usize = 256;

const LOCK: &str = "lock";
const SUFFIX: &str = ".segment";

/// What is allowed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Limits {
    /// Bytes of all segments.
    pub(super) size: u64,
    /// Bytes of a segment, unless one record is longer.
    segment: u64,
    /// Names that are kept.
    records: usize,
}

impl Limits {
    pub(super) fn of(size: u64) -> Self {
        let records = usize::try_from((size / PER_RECORD).clamp(64, MOST_RECORDS)).unwrap_or(64);
        Self { size, segment: (size / SEGMENTS).min(LONGEST), records }
    }

    /// Bytes of the largest record.
    pub(super) fn largest(&self) -> u64 {
        self.size / LARGEST
    }
}

/// The index, which those who look share with the one who writes. Held for a few steps, never while the disk is waited for.
#[derive(Debug)]
pub(super) struct Held(Mutex<Index<Arc<File>>>);

impl Held {
    pub(super) fn new() -> Self {
        Self(Mutex::new(Index::new()))
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Index<Arc<File>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, index: Index<Arc<File>>) {
        let before = std::mem::replace(&mut *self.lock(), index);
        drop(before); // which takes a while
    }

    /// Nothing is found any more.
    pub(super) fn clear(&self) {
        self.set(Index::new());
    }
}

/// Keeps other processes from a folder, until it is dropped.
#[derive(Debug)]
pub(super) struct Lock {
    _file: File,
}

impl Lock {
    /// Of a folder, which is made if it is missing. None while another process has it.
    pub(super) fn take(dir: &Path) -> io::Result<Option<Self>> {
        DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        let file = options().create(true).truncate(false).open(dir.join(LOCK))?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Self { _file: file })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(why)) => Err(why),
        }
    }
}

/// The segments, for the one who writes.
#[derive(Debug)]
pub(super) struct Files {
    dir: PathBuf,
    limits: Limits,
    held: Arc<Held>,
    /// The segment that is written to, and where it ends.
    newest: Option<(u32, Arc<File>, u64)>,
    /// Number of the next segment.
    next: u32,
}

/// What was found in a folder.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Recovered {
    /// Segments that were cut off, or damaged somewhere.
    pub(super) damaged: u64,
}

impl Files {
    /// Finds what is in a folder. Whoever looks finds it from then on.
    pub(super) fn open(dir: &Path, limits: Limits, held: &Arc<Held>) -> io::Result<(Self, Recovered)> {
        let mut files = Self { dir: dir.to_owned(), limits, held: Arc::clone(held), newest: None, next: 0 };
        let (mut index, mut recovered) = (Index::new(), Recovered::default());
        let all = found(dir)?;
        for (number, &id) in all.iter().enumerate() {
            files.next = id.checked_add(1).ok_or(io::ErrorKind::FileTooLarge)?;
            files.newest = None;
            let file = Arc::new(options().open(files.path(id))?);
            let bytes = file.metadata()?.len();
            index.begin(id, Arc::clone(&file), MAGIC.len() as u64);
            let (end, how) = scan(&*file, bytes, |at, frame| {
                if let Ok(at) = u32::try_from(at) {
                    index.add(at, frame);
                }
            })?;
            recovered.damaged += u64::from(how != End::Whole);
            match how {
                End::Whole => {}
                // What was being written when a process ended was promised to nobody.
                End::Torn if number + 1 == all.len() => {
                    file.write_all_at(&MAGIC, 0)?;
                    file.set_len(end.max(MAGIC.len() as u64))?;
                }
                // What is lost may have taken out anything up to here. The damage goes last: as long as others are there it is seen.
                End::Torn | End::Damaged => {
                    index = Index::new();
                    all[..=number].iter().try_for_each(|id| files.take_away(*id))?;
                    continue;
                }
            }
            if end < limits.segment {
                files.newest = Some((id, file, end.max(MAGIC.len() as u64)));
            }
        }
        held.set(index);
        files.make_room(0)?;
        Ok((files, recovered))
    }

    /// Writes a record, which is what its key leads to from then on; an empty one ends where it led. If the place is full although it
    /// may take more, what is oldest leaves.
    pub(super) fn append(&mut self, name: Name, content: &[u8]) -> io::Result<()> {
        let frame = Frame { name, len: u32::try_from(content.len()).map_err(|_| io::ErrorKind::FileTooLarge)? };
        let bytes = [&frame.bytes()[..], content].concat();
        loop {
            match self.write(frame, &bytes) {
                Err(why) if is_full(&why) && self.held.lock().segments() > 1 => self.evict()?,
                done => return done,
            }
        }
    }

    fn write(&mut self, frame: Frame, bytes: &[u8]) -> io::Result<()> {
        let begun = MAGIC.len() as u64;
        self.newest.take_if(|(_, _, end)| *end > begun && *end + frame.whole() > self.limits.segment);
        self.make_room(frame.whole())?;
        let (id, file, end) = match self.newest.take() {
            Some(newest) => newest,
            None => self.begin()?,
        };
        let written = file.write_all_at(bytes, end);
        if written.is_err() {
            // What is left of it would be taken for damage. If it can't be cut off, that is as it should be: nothing is written behind it.
            self.newest = file.set_len(end).is_ok().then_some((id, file, end));
            return written;
        }
        let at = u32::try_from(end).map_err(|_| io::ErrorKind::FileTooLarge)?;
        self.held.lock().add(at, frame);
        self.newest = Some((id, file, end + frame.whole()));
        Ok(())
    }

    fn begin(&mut self) -> io::Result<(u32, Arc<File>, u64)> {
        let id = self.next;
        self.next = id.checked_add(1).ok_or(io::ErrorKind::FileTooLarge)?;
        let file = Arc::new(options().create_new(true).open(self.path(id))?);
        if let Err(why) = file.write_all_at(&MAGIC, 0) {
            fs::remove_file(self.path(id))?;
            return Err(why);
        }
        let end = MAGIC.len() as u64;
        self.held.lock().begin(id, Arc::clone(&file), end);
        Ok((id, file, end))
    }

    /// Ends where a key leads, also after another start. `was` is where it led, if somebody has taken it out of the index already. What
    /// can't be marked so goes, with all that is older.
    pub(super) fn remove(&mut self, name: Name, was: Option<Place>) -> io::Result<()> {
        let found = self.held.lock().remove(&name);
        let Some(place) = found.max(was) else { return Ok(()) };
        if self.append(name, &[]).is_ok() {
            return Ok(());
        }
        while self.held.lock().oldest().is_some_and(|oldest| oldest <= place.segment) {
            self.evict()?;
        }
        Ok(())
    }

    /// All goes.
    pub(super) fn clear(&mut self) -> io::Result<()> {
        while self.held.lock().oldest().is_some() {
            self.evict()?;
        }
        Ok(())
    }

    /// The content of the record at a place, to be compared with what is to be written there.
    pub(super) fn is_at(&self, name: &Name, content: &[u8]) -> bool {
        let found = self.held.lock().get(name);
        let same = |(place, file): &(Place, Arc<File>)| {
            place.len as usize == content.len() && read(file, *place).is_ok_and(|bytes| bytes == content)
        };
        found.as_ref().is_some_and(same)
    }

    /// What is oldest leaves until so many bytes have room.
    fn make_room(&mut self, bytes: u64) -> io::Result<()> {
        loop {
            let index = self.held.lock();
            let fits = index.bytes() + bytes <= self.limits.size
                && index.records() < self.limits.records
                && index.segments() as u64 <= 2 * SEGMENTS;
            let over = !fits && index.segments() > 0;
            drop(index);
            if !over {
                return Ok(());
            }
            self.evict()?;
        }
    }

    /// The oldest segment leaves.
    fn evict(&mut self) -> io::Result<()> {
        let Some(Gone { id, names }) = self.held.lock().evict() else { return Ok(()) };
        self.newest.take_if(|(newest, ..)| *newest == id);
        names.chunks(AT_A_TIME).for_each(|names| self.held.lock().forget(names, id));
        self.take_away(id)
    }

    fn take_away(&self, id: u32) -> io::Result<()> {
        match fs::remove_file(self.path(id)) {
            Err(why) if why.kind() != io::ErrorKind::NotFound => Err(why),
            _ => Ok(()),
        }
    }

    fn path(&self, id: u32) -> PathBuf {
        path(&self.dir, id)
    }
}

/// Takes away all segments of a folder that this process has locked.
pub(super) fn wipe(dir: &Path) -> io::Result<()> {
    found(dir)?.into_iter().try_for_each(|id| fs::remove_file(path(dir, id)))
}

/// Numbers of the segments of a folder, in their order.
fn found(dir: &Path) -> io::Result<Vec<u32>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let name = entry?.file_name();
        let digits = name.to_str().and_then(|name| name.strip_suffix(SUFFIX)).filter(|digits| digits.len() == 8);
        found.extend(digits.and_then(|digits| u32::from_str_radix(digits, 16).ok()));
    }
    found.sort_unstable();
    Ok(found)
}

fn path(dir: &Path, id: u32) -> PathBuf {
    dir.join(format!("{id:08x}{SUFFIX}"))
}

/// The content of a record.
pub(super) fn read(file: &File, place: Place) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; place.len as usize];
    file.read_exact_at(&mut bytes, u64::from(place.offset) + FRAME as u64)?;
    Ok(bytes)
}

fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600);
    options
}

fn is_full(why: &io::Error) -> bool {
    matches!(why.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

#[cfg(test)]
mod tests;
