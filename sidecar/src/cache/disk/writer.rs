//! Opens a folder and writes to it, on a thread that may wait for the disk, one write after the other.

use std::{
    io,
    path::Path,
    sync::{Arc, atomic::Ordering},
    thread,
    time::{Duration, Instant},
};

use super::{
    Shared,
    files::{Files, Lock, wipe},
    index::Place,
    queue::Next,
    segment::Name,
};
use crate::cache::{
    record::{self, Answer},
    store::Vary,
    tier::digest,
};

/// Between two tries to get a folder that another process has.
const TAKEN: Duration = Duration::from_millis(200);
/// And one that can't be opened, or written to.
const RETRY: Duration = Duration::from_secs(5);
/// How often it is asked whether purges are still known, while nothing is written.
const TICK: Duration = Duration::from_secs(1);
/// How long another process is waited for that has the folder, when something is left to be taken out of it.
const LAST: Duration = Duration::from_secs(2);
/// Between two lines of log that tell the same.
const TOLD: Duration = Duration::from_secs(600);

/// Something to be written.
#[derive(Debug)]
pub(super) enum Write {
    /// An answer, with the names of its `Vary`.
    Put { answer: Box<Answer>, vary: Option<Vary> },
    /// What a name leads to goes. `was` is where it led.
    Remove { name: Name, was: Option<Place> },
    /// All goes: too many were to be taken out one by one.
    Clear,
}

impl Write {
    /// Whether it stores something under a primary key.
    pub(super) fn is_of(&self, primary: &[u8]) -> bool {
        matches!(self, Self::Put { answer, .. } if answer.object.primary() == primary)
    }

    pub(super) fn is_put(&self) -> bool {
        matches!(self, Self::Put { .. })
    }
}

/// Why a folder is used no longer.
enum End {
    /// The disk was dropped, and nothing is left to be done.
    Closed,
    /// Purges are kept elsewhere, or can't be noted.
    Unjudged,
    Failed {
        doing: &'static str,
        why: io::Error,
    },
}

/// Keeps a disk open, until it is dropped.
pub(super) fn spawn(shared: &Arc<Shared>, believed: bool) {
    // However the thread ends, or if it never begins.
    let (shared, ended) = (Arc::clone(shared), shared.ended.clone().drop_guard());
    let spawned = thread::Builder::new().name("disk-write".to_owned()).spawn(move || {
        let _ended = ended;
        Writer { shared: &shared, distrusts: !believed, told: None }.run();
    });
    if let Err(why) = spawned {
        tracing::error!(%why, "The cache on disk is off: its thread could not be started.");
    }
}

struct Writer<'a> {
    shared: &'a Shared,
    /// What could not be taken out may be there still.
    distrusts: bool,
    told: Option<Instant>,
}

impl Writer<'_> {
    fn run(&mut self) {
        loop {
            let end = self.session();
            self.shared.open.store(false, Ordering::Release);
            self.shared.held.clear();
            let dropped = self.shared.writes.retain(|write| !write.is_put());
            (0..dropped).for_each(|_| self.shared.metrics.tally.written("dropped"));
            let pause = match end {
                End::Closed => Duration::ZERO,
                End::Unjudged => TICK,
                End::Failed { doing, why } => {
                    self.tell(doing, &why);
                    RETRY
                }
            };
            if self.shared.writes.is_closed_within(pause) {
                break;
            }
        }
        if self.is_owing() {
            let took = Lock::take(&self.shared.settings.dir).and_then(|lock| lock.ok_or(io::ErrorKind::ResourceBusy.into()));
            self.give_all_up(took);
        }
    }

    /// Whether something that was to be taken out of the folder may be there still.
    fn is_owing(&self) -> bool {
        self.distrusts || !self.shared.writes.is_empty()
    }

    /// What could not be taken out goes with all else, for nobody will know of it.
    fn give_all_up(&mut self, took: io::Result<Lock>) {
        if let Err(why) = took.and_then(|_lock| wipe(&self.shared.settings.dir)) {
            self.shared.metrics.failed("write");
            let dir = self.shared.settings.dir.display();
            tracing::warn!(%dir, %why, "What requests have changed may be in the cache on disk still, for nothing can be taken out of it.");
        }
        self.shared.writes.retain(|_| false);
        self.distrusts = false;
    }

    fn tell(&mut self, doing: &'static str, why: &io::Error) {
        self.shared.metrics.failed(doing);
        if self.told.is_none_or(|told| told.elapsed() >= TOLD) {
            self.told = Some(Instant::now());
            let dir = self.shared.settings.dir.display();
            tracing::warn!(%dir, doing, %why, "The cache on disk can't be used: requests go on without it. It is tried again and again.");
        }
    }

    /// Opens the folder, and writes until that fails.
    fn session(&mut self) -> End {
        let dir = &self.shared.settings.dir;
        let lock = match self.lock(dir) {
            Ok(Some(lock)) => lock,
            Ok(None) => return End::Closed,
            Err(why) => return End::Failed { doing: "open", why },
        };
        let end = self.use_folder(dir).unwrap_or_else(|(doing, why)| End::Failed { doing, why });
        if self.is_closed() && self.is_owing() {
            // Before anybody else has the folder.
            self.give_all_up(Ok(lock));
        }
        end
    }

    fn is_closed(&self) -> bool {
        self.shared.writes.is_closed_within(Duration::ZERO)
    }

    /// Waits for the folder. None if the disk was dropped meanwhile, and nothing is left to be taken out, or that can't be waited for.
    fn lock(&self, dir: &Path) -> io::Result<Option<Lock>> {
        let mut closed: Option<Instant> = None;
        loop {
            if self.is_closed() && !self.is_owing() {
                return Ok(None);
            }
            if let Some(lock) = Lock::take(dir)? {
                return Ok(Some(lock));
            }
            if self.shared.writes.is_closed_within(TAKEN) {
                if closed.get_or_insert_with(Instant::now).elapsed() >= LAST {
                    return Ok(None);
                }
                thread::sleep(TAKEN / 10);
            }
        }
    }

    fn use_folder(&mut self, dir: &Path) -> Result<End, (&'static str, io::Error)> {
        let at = |doing| move |why| (doing, why);
        let (mut files, recovered) = Files::open(dir, self.shared.limits, &self.shared.held).map_err(at("open"))?;
        (0..recovered.damaged).for_each(|_| self.shared.metrics.failed("damaged"));
        if self.distrusts {
            files.clear().map_err(at("open"))?;
            self.distrusts = false;
        }
        let judged = self.shared.purges.judge(dir).map_err(at("open"))?;
        loop {
            match self.shared.writes.next(if self.shared.is_open() { TICK } else { Duration::ZERO }) {
                Next::One(write) => self.write(&mut files, write)?,
                // What was taken out meanwhile is gone now.
                Next::Idle => self.shared.open.store(true, Ordering::Release),
                Next::Closed => return Ok(End::Closed),
            }
            if !self.is_closed() && !self.shared.purges.is_judged(&judged) {
                return Ok(End::Unjudged);
            }
        }
    }

    fn write(&mut self, files: &mut Files, write: Write) -> Result<(), (&'static str, io::Error)> {
        let (is_put, removed) = (write.is_put(), !write.is_put());
        let done = match write {
            Write::Put { answer, vary } => self.put(files, &answer, vary.as_ref()),
            Write::Remove { name, was } => files.remove(name, was),
            Write::Clear => files.clear(),
        };
        if is_put {
            self.shared.metrics.tally.written(if done.is_ok() { "stored" } else { "failed" });
        }
        self.distrusts |= removed && done.is_err();
        done.map_err(|why| ("write", why))
    }

    fn put(&self, files: &mut Files, answer: &Answer, vary: Option<&Vary>) -> io::Result<()> {
        let primary = answer.object.primary();
        if let Some(vary) = vary {
            let (name, marker) = (digest(primary, &[]), record::of_vary(vary, 0));
            // With another marker, the variants that are there wouldn't be found any more.
            if !files.is_at(&name, &marker) {
                files.append(name, &marker)?;
            }
        }
        let record = record::of_answer(answer);
        self.shared.metrics.write(record.len());
        files.append(digest(primary, answer.object.variant()), &record)
    }
}
