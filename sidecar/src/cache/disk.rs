//! The tier behind memory: answers on the disk of a pod, which are there again after a restart.
//!
//! What is stored in memory is written here as well, some time soon, in the form in which Redis has it. Segments are filled one after
//! the other, and the oldest leaves when there is no room. The index stands in memory, so a miss costs no look at the disk; it is made
//! anew from the segments at a start.
//!
//! Whatever is wrong with the disk, requests go on as if nothing were on it. Threads of its own wait for it: some read, one writes. A
//! look has a time limit, and after some that failed nobody looks for a while. If a write fails, all is closed and opened anew a little
//! later. One process at a time has a folder.
//!
//! What was purged is known after a restart, too: from the log in Redis, or from a journal in the folder. What requests have changed is
//! taken out some time soon, and before the folder is let go of; if it can't be taken out, all goes.

mod breaker;
mod files;
mod index;
mod metrics;
mod queue;
mod reader;
mod segment;
mod writer;

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use crds::proxy::FetchrProxySpec;
use tokio::{sync::oneshot, time::timeout};
use tokio_util::sync::CancellationToken;

pub(super) use self::metrics::Metrics;
use self::{
    breaker::Breaker,
    files::{Held, Limits},
    index::Place,
    queue::Queue,
    reader::{Content, Look},
    segment::Name,
    writer::Write,
};
use super::{
    PodPurges,
    record::{Answer, Record},
    semantics::clock::Now,
    store::Vary,
    tier::digest,
};

/// Whether this build has it.
const BUILT: bool = cfg!(feature = "disk-cache");
/// How long a request waits for the disk.
const PATIENCE: Duration = Duration::from_millis(100);
/// Threads that read.
const READERS: usize = 4;
/// Looks that wait, at most.
const LOOKS: usize = 128;
/// Writes that wait, at most.
const WRITES: usize = 1024;
/// Bytes of answers that wait to be written, at most.
const WRITES_BYTES: u64 = 32 << 20;
/// Bytes of the longest body.
const LONGEST: u64 = 16 << 20;
/// What an answer takes beside its body, at most.
const OVERHEAD: u64 = 4 << 20;
/// What a write takes beside an answer, in bytes.
const SMALL: u64 = 256;

/// Where a pod or a process may keep answers.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct DiskPlace {
    /// The folder, unless the configuration names another one.
    pub dir: Option<PathBuf>,
    /// Bytes that its volume has for them; none where nobody says. Then the configuration may name a folder.
    pub most: Option<u64>,
}

/// Where it is, and how large.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Settings {
    dir: PathBuf,
    size: u64,
}

impl Settings {
    /// As a FetchrProxy says; None if nothing is kept on disk.
    ///
    /// # Errors
    /// Why nothing can be.
    pub(crate) fn of(spec: &FetchrProxySpec, place: &DiskPlace) -> Result<Option<Self>, String> {
        let Some(disk) = &spec.cache.disk else { return Ok(None) };
        if !BUILT {
            return Err("this build keeps no answers on disk: it needs the cargo feature disk-cache".to_owned());
        }
        let dir = match (&disk.path, place.most) {
            (Some(path), None) => Some(PathBuf::from(path)),
            _ => place.dir.clone(),
        };
        let dir = dir.ok_or("this pod was made before there was a cache.disk, so it has no volume for it: make it anew")?;
        Ok(Some(Self { dir, size: disk.size.0.min(place.most.unwrap_or(u64::MAX)) }))
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }
}

/// The answers on disk.
pub(super) struct Disk(Arc<Shared>);

/// What its threads have, too.
struct Shared {
    settings: Settings,
    limits: Limits,
    held: Arc<Held>,
    /// Whether all that is on disk is known, and judged by all purges.
    open: AtomicBool,
    looks: Queue<Look>,
    writes: Queue<Write>,
    breaker: Breaker,
    metrics: Metrics,
    purges: PodPurges,
    /// Nothing is done in the folder any more.
    ended: CancellationToken,
}

/// An answer that was found, with the names of its `Vary`. Whether it may be used is not known yet.
pub(super) type Found = (Box<Answer>, Option<Vary>);

/// What is on disk.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Stats {
    pub(super) open: bool,
    /// Records, with those that only say by which fields answers vary.
    pub(super) records: u64,
    pub(super) bytes: u64,
    pub(super) limit: u64,
}

impl Disk {
    /// Begins to open it, on threads that end when this is dropped, once all that was to be taken out is. If not all changes have been told
    /// there, what it holds is not believed.
    pub(super) fn start(settings: Settings, metrics: Metrics, purges: PodPurges, believed: bool) -> Arc<Self> {
        let shared = Arc::new(Shared {
            limits: Limits::of(settings.size),
            settings,
            held: Arc::new(Held::new()),
            open: AtomicBool::new(false),
            looks: Queue::new(LOOKS, u64::MAX),
            writes: Queue::new(WRITES, WRITES_BYTES),
            breaker: Breaker::default(),
            metrics,
            purges,
            ended: CancellationToken::new(),
        });
        reader::spawn(&shared, READERS);
        writer::spawn(&shared, believed);
        Arc::new(Self(shared))
    }

    pub(super) fn settings(&self) -> &Settings {
        &self.0.settings
    }

    /// Is cancelled when the folder is free, after this was dropped.
    pub(super) fn ended(&self) -> CancellationToken {
        self.0.ended.clone()
    }

    pub(super) fn stats(&self) -> Stats {
        let index = self.0.held.lock();
        Stats { open: self.0.is_open(), records: index.len() as u64, bytes: index.bytes(), limit: self.0.limits.size }
    }

    /// Looks for an answer under a primary key; `variant` makes the values that select one of those that `Vary` tells apart, and is None
    /// if it can't.
    pub(super) async fn get(&self, primary: &[u8], variant: impl Fn(&Vary) -> Option<Vec<u8>>) -> Option<Found> {
        let found = self.0.find(primary, variant).await;
        let result = match &found {
            Ok(Some(_)) => "hit",
            Ok(None) => "miss",
            Err(why) => why,
        };
        self.0.metrics.tally.request(result);
        found.ok()?
    }

    /// Stores an answer, some time soon, if it is not too large.
    pub(super) fn put(&self, answer: Answer, vary: Option<Vary>, now: Now) {
        let most = LONGEST.min(self.0.limits.largest().saturating_sub(SMALL));
        if answer.meta.left(now) == 0 || answer.object.encoded_len() > most {
            return;
        }
        let bytes = answer.object.encoded_len() + SMALL;
        let write = Write::Put { answer: Box::new(answer), vary };
        if !self.0.is_open() || !self.0.writes.add(write, bytes) {
            self.0.metrics.tally.written("dropped");
        }
    }

    /// Takes out what a primary key leads to, with its variants: what was written before the marker isn't found with a later one.
    pub(super) fn remove(&self, primary: &[u8]) {
        let name = digest(primary, &[]);
        let was = self.0.held.lock().remove(&name);
        let mut dropped = self.0.writes.retain(|write| !write.is_of(primary));
        if !self.0.writes.add(Write::Remove { name, was }, 0) {
            dropped += self.0.writes.retain(|_| false);
            self.0.writes.add(Write::Clear, 0);
        }
        (0..dropped).for_each(|_| self.0.metrics.tally.written("dropped"));
    }
}

impl Shared {
    fn is_open(&self) -> bool {
        self.open.load(Ordering::Acquire)
    }

    async fn find(&self, primary: &[u8], variant: impl Fn(&Vary) -> Option<Vec<u8>>) -> Result<Option<Found>, &'static str> {
        let Some((marker, record)) = self.look(&digest(primary, &[]), None).await? else { return Ok(None) };
        let vary = match record {
            Record::Answer(answer) => return Ok(answer.object.is_for(primary, &[]).then_some((answer, None))),
            Record::Vary { vary, .. } => vary,
        };
        let Some(values) = variant(&vary) else { return Ok(None) };
        // A variant from before its marker is one that was there before all of them were taken out.
        match self.look(&digest(primary, &values), Some(marker)).await? {
            Some((_, Record::Answer(answer))) if answer.object.is_for(primary, &values) => Ok(Some((answer, Some(vary)))),
            _ => Ok(None),
        }
    }

    /// The record of a name, if it was written after a place. An error says why nobody knows.
    async fn look(&self, name: &Name, after: Option<Place>) -> Result<Option<(Place, Record)>, &'static str> {
        if !self.is_open() {
            return Err("away");
        }
        let found = self.held.lock().get(name);
        let Some((place, file)) = found.filter(|(place, _)| after.is_none_or(|after| *place > after)) else { return Ok(None) };
        if !self.breaker.lets(Instant::now()) {
            return Err("away");
        }
        let (told, telling) = oneshot::channel();
        if !self.looks.add(Look { place, file, told }, 0) {
            return Err("away");
        }
        let why = match timeout(PATIENCE, telling).await {
            Ok(Ok(content)) => match content {
                Content::Record(record) => {
                    self.breaker.worked();
                    return Ok(Some((place, *record)));
                }
                Content::Damaged => {
                    self.held.lock().remove_from(name, place);
                    return Err("corrupt");
                }
                Content::Failed => "error",
            },
            Ok(Err(_)) => return Err("away"),
            Err(_) => "late",
        };
        self.breaker.failed(Instant::now());
        Err(why)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        self.0.looks.close();
        self.0.looks.retain(|_| false);
        // What is new need not be written any more, but what was taken out must not be there for who opens the folder next.
        let dropped = self.0.writes.retain(|write| !write.is_put());
        (0..dropped).for_each(|_| self.0.metrics.tally.written("dropped"));
        self.0.writes.close();
    }
}

impl fmt::Debug for Disk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Disk").field("settings", &self.0.settings).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
