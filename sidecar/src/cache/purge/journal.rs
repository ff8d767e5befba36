//! The purges of a pod that shares them with nobody, beside its answers on disk: after another start it knows what was purged.
//!
//! The file has a line for each purge, in the form of the log in Redis, behind the line of its generation. A purge was answered only
//! once its line was on the disk, so the last line may be cut off. Any other damage, and nobody knows what was purged: a new generation
//! begins, and all that was stored before it is validated before it is used.
//!
//! ```text
//! <XXH3-64 of the rest> fetchr-purges 1 <generation> <what is older may have been purged>
//! <XXH3-64 of the rest> <place> 1 <id> hard tag news
//! ```

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use twox_hash::XxHash3_64;

use super::{
    Generation,
    log::{Entry, place},
};

const FILE: &str = "purges";
const TITLE: &str = "fetchr-purges 1";
/// Lines and bytes of a file, before half of it goes.
const MOST_LINES: usize = 10_000;
const MOST_BYTES: u64 = 4 << 20;
/// The longest file that is read.
const LONGEST: u64 = 2 * MOST_BYTES;

/// What stands in a journal.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Noted {
    pub(super) generation: Generation,
    /// What is older than that may have been purged by something that is not noted any more.
    pub(super) floor: u64,
    /// In the order of their places.
    pub(super) purges: Vec<(u64, Entry)>,
}

/// A journal that is open. All that it does waits for the disk.
#[derive(Debug)]
pub(super) struct Journal {
    path: PathBuf,
    open: Mutex<Open>,
}

#[derive(Debug)]
struct Open {
    file: File,
    lines: usize,
    bytes: u64,
}

impl Journal {
    /// Opens that of a folder, or begins one: if there is none, or if it is damaged.
    pub(super) fn open(dir: &Path, otherwise: Generation) -> io::Result<(Self, Noted)> {
        let path = dir.join(FILE);
        let noted = read(&path)?.unwrap_or(Noted { generation: otherwise, floor: 0, purges: Vec::new() });
        // Written anew in any case, without what was cut off.
        let open = write(&path, &noted)?;
        Ok((Self { path, open: Mutex::new(open) }, noted))
    }

    /// Without a journal, what was stored is of unknown standing from now on.
    pub(super) fn remove(dir: &Path) -> io::Result<()> {
        match fs::remove_file(dir.join(FILE)) {
            Err(why) if why.kind() != io::ErrorKind::NotFound => Err(why),
            _ => Ok(()),
        }
    }

    /// Notes a purge. When this returns, it is on the disk. If it can't be, there is no journal any more.
    pub(super) fn add(&self, at: u64, entry: &Entry) -> io::Result<()> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let added = self.append(&mut open, &line(&format!("{at} {entry}")));
        if added.is_err() {
            fs::remove_file(&self.path)?;
        }
        added
    }

    fn append(&self, open: &mut Open, line: &str) -> io::Result<()> {
        open.file.write_all(line.as_bytes())?;
        open.file.sync_data()?;
        (open.lines, open.bytes) = (open.lines + 1, open.bytes + line.len() as u64);
        if open.lines > MOST_LINES || open.bytes > MOST_BYTES {
            let noted = read(&self.path)?.ok_or(io::ErrorKind::InvalidData)?;
            *open = write(&self.path, &noted.halved())?;
        }
        Ok(())
    }

    /// Removes it.
    pub(super) fn give_up(&self) -> io::Result<()> {
        match fs::remove_file(&self.path) {
            Err(why) if why.kind() != io::ErrorKind::NotFound => Err(why),
            _ => Ok(()),
        }
    }

    /// Whether it is still that of a folder: nobody has put another one in its place.
    pub(super) fn is_of(&self, dir: &Path) -> bool {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let same = |there: &fs::Metadata, here: &fs::Metadata| (there.dev(), there.ino()) == (here.dev(), here.ino());
        let there = fs::metadata(dir.join(FILE)).ok().zip(open.file.metadata().ok());
        there.is_some_and(|(there, here)| same(&there, &here))
    }

    #[cfg(test)]
    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Noted {
    /// The newer half.
    fn halved(mut self) -> Self {
        let newer = self.purges.split_off(self.purges.len() / 2);
        self.floor = self.purges.last().map_or(self.floor, |(at, _)| *at);
        Self { purges: newer, ..self }
    }

    fn to_text(&self) -> String {
        let title = line(&format!("{TITLE} {} {}", self.generation, self.floor));
        self.purges.iter().fold(title, |text, (at, entry)| text + &line(&format!("{at} {entry}")))
    }

    /// None if anything but the end is not as it was written.
    fn parse(text: &str) -> Option<Self> {
        // What is behind the last end of a line was cut off.
        let (text, _) = text.rsplit_once('\n')?;
        let mut lines = text.split('\n').map(content);
        let title = lines.next()??.strip_prefix(TITLE)?.strip_prefix(' ')?;
        let (generation, floor) = title.split_once(' ')?;
        let (generation, floor) = (Generation::parse(generation).ok()?, place(floor).ok()?);
        let purge = |line: Option<&str>| {
            let (at, entry) = line?.split_once(' ')?;
            Some((place(at).ok()?, entry.parse().ok()?))
        };
        let mut purges: Vec<(u64, Entry)> = lines.map(purge).collect::<Option<_>>()?;
        // Two at a time may have been written in any order.
        purges.sort_by_key(|(at, _)| *at);
        Some(Self { generation, floor, purges })
    }
}

fn line(content: &str) -> String {
    format!("{:016x} {content}\n", XxHash3_64::oneshot(content.as_bytes()))
}

fn content(line: &str) -> Option<&str> {
    let (sum, content) = line.split_once(' ')?;
    (sum == format!("{:016x}", XxHash3_64::oneshot(content.as_bytes()))).then_some(content)
}

/// What a file says. None if there is none, or it is damaged.
fn read(path: &Path) -> io::Result<Option<Noted>> {
    let file = match File::open(path) {
        Err(why) if why.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened?,
    };
    let mut bytes = Vec::new();
    file.take(LONGEST).read_to_end(&mut bytes)?;
    Ok(str::from_utf8(&bytes).ok().and_then(Noted::parse))
}

/// Writes a file anew, as a whole.
fn write(path: &Path, noted: &Noted) -> io::Result<Open> {
    let (part, text) = (path.with_extension("part"), noted.to_text());
    let mut file = OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(&part)?;
    file.write_all(text.as_bytes())?;
    file.sync_data()?;
    fs::rename(&part, path)?;
    // The new name has to outlive a crash, too.
    path.parent().map_or(Ok(()), |dir| File::open(dir)?.sync_all())?;
    Ok(Open { file, lines: noted.purges.len(), bytes: text.len() as u64 })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tempfile::TempDir;

    use super::{
        super::log::{PurgeId, Strength, What},
        *,
    };

    const FIRST: Generation = Generation(1);
    const OTHER: Generation = Generation(2);

    fn entry(number: u64) -> Entry {
        let what = match number % 3 {
            0 => What::tag(&format!("tag{number}")).unwrap(),
            1 => What::url(&format!("a.example/{number}?b=c")).unwrap(),
            _ => What::Everything,
        };
        Entry {
            id: PurgeId(number.into()),
            what,
            strength: if number.is_multiple_of(2) { Strength::Soft } else { Strength::Hard },
        }
    }

    fn journal(dir: &Path, purges: u64) -> Noted {
        let (journal, mut noted) = Journal::open(dir, FIRST).unwrap();
        for number in 1..=purges {
            journal.add(number * 10, &entry(number)).unwrap();
            noted.purges.push((number * 10, entry(number)));
        }
        noted
    }

    #[test]
    fn purges_are_known_after_another_start() {
        let dir = TempDir::new().unwrap();
        let noted = journal(dir.path(), 7);
        for _ in 0..2 {
            assert_eq!(Journal::open(dir.path(), OTHER).unwrap().1, noted);
        }
        Journal::remove(dir.path()).unwrap();
        Journal::remove(dir.path()).unwrap();
        let begun = Noted { generation: OTHER, floor: 0, purges: Vec::new() };
        assert_eq!(Journal::open(dir.path(), OTHER).unwrap().1, begun);
    }

    #[test]
    fn a_line_that_was_cut_off_was_answered_to_nobody() {
        let dir = TempDir::new().unwrap();
        let mut noted = journal(dir.path(), 3);
        let path = dir.path().join(FILE);
        let whole = fs::read(&path).unwrap();
        fs::write(&path, &whole[..whole.len() - 1]).unwrap();
        noted.purges.pop();
        assert_eq!(Journal::open(dir.path(), OTHER).unwrap().1, noted);
    }

    #[test]
    fn of_too_many_the_newer_half_stays_and_it_is_known_that_there_were_more() {
        let noted = Noted { generation: FIRST, floor: 5, purges: (1..=9).map(|number| (number * 10, entry(number))).collect() };
        let halved = noted.clone().halved();
        assert_eq!((halved.floor, halved.purges.len(), halved.purges[0].0), (40, 5, 50));
        assert_eq!(Noted { purges: Vec::new(), ..noted }.halved().floor, 5);
    }

    #[test]
    fn a_journal_that_cannot_be_written_is_removed() {
        let dir = TempDir::new().unwrap();
        let (journal, _) = Journal::open(dir.path(), FIRST).unwrap();
        journal.open.lock().unwrap().file = File::open(journal.path()).unwrap();
        journal.add(1, &entry(1)).unwrap_err();
        assert!(!journal.path().exists());
    }

    proptest! {
        #[test]
        fn damage_is_seen_unless_it_only_cuts_the_end(at in any::<prop::sample::Index>(), cut in any::<bool>()) {
            let dir = TempDir::new().unwrap();
            let noted = journal(dir.path(), 5);
            let path = dir.path().join(FILE);
            let mut bytes = fs::read(&path).unwrap();
            let at = at.index(bytes.len());
            if cut { bytes.truncate(at) } else { bytes[at] ^= 4 }
            fs::write(&path, &bytes).unwrap();
            let (_, found) = Journal::open(dir.path(), OTHER).unwrap();
            if found.generation == FIRST {
                prop_assert_eq!(&found.purges[..], &noted.purges[..found.purges.len()]);
                prop_assert!(cut || at + 1 == bytes.len(), "a flipped bit at {}", at);
            } else {
                prop_assert!(found.purges.is_empty());
            }
        }
    }
}
