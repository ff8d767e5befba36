//! A log of purges that one pod keeps in its memory, for itself: what there is without Redis. With answers on disk it is kept beside
//! them, too.

use std::{
    io,
    path::Path,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use super::{
    Generation, Index, Position, Stamp, Verdict,
    index::Object,
    journal::Journal,
    log::{Entry, LAST_PLACE, PurgeId, Strength, What},
    name::Name,
    noted::{Noted, Written},
    redis::random,
    request::{Acknowledged, PurgeAnswer, micros},
};

/// The purges of a pod that shares its log with nobody.
#[derive(Debug)]
pub(super) struct Alone {
    /// Its generation among those of the index.
    era: AtomicU32,
    /// Place of the newest purge. It is written after the index, so who reads it finds the purge there.
    last: AtomicU64,
    index: RwLock<Index>,
    noted: Noted,
}

impl Alone {
    /// Goes on with an index that was used before, or with a new one.
    pub(super) fn new(mut index: Index) -> Self {
        let generation = new_generation();
        index.begin(generation, index.is_new());
        index.doubt_unknown();
        let era = AtomicU32::new(index.eras());
        Self { era, last: AtomicU64::new(0), index: RwLock::new(index), noted: Noted::new(generation) }
    }

    /// What a fetch or fill that begins now carries.
    pub(super) fn stamp(&self) -> Stamp {
        // In this order: between two generations it counts as too old rather than too new.
        let era = self.era.load(Ordering::Acquire);
        Stamp::new(era, self.last.load(Ordering::Acquire))
    }

    /// Where in the log a stamp is. None if that is too long ago.
    pub(super) fn position(&self, stamp: Stamp) -> Option<Position> {
        self.index.read().unwrap_or_else(PoisonError::into_inner).position(stamp)
    }

    /// For an object that was stored in the time of this log. None of all others.
    pub(super) fn known_at(&self, position: Position) -> Option<Stamp> {
        self.index.read().unwrap_or_else(PoisonError::into_inner).known_at(position)
    }

    /// Generations so far.
    pub(super) fn eras(&self) -> u32 {
        self.era.load(Ordering::Acquire)
    }

    /// What may be done with an object. Its URL and names are asked for only if there was a purge since its fetch began.
    pub(super) fn verdict(&self, stamp: Stamp, of: impl FnOnce() -> (String, Vec<Name>)) -> Verdict {
        if stamp >= self.stamp() {
            return Verdict::Fresh;
        }
        let (url, names) = of();
        let index = self.index.read().unwrap_or_else(PoisonError::into_inner);
        index.verdict(&Object { stamp, url: &url, names: &names })
    }

    /// Purges: no request that comes later is answered from what went. With a journal, also none after another start; if that can't be
    /// promised, for the disk takes nothing, the answer is that it is not complete.
    pub(super) async fn purge(&self, what: What, strength: Strength, member: &str) -> PurgeAnswer {
        let begun = Instant::now();
        let complete = self.note(Entry { id: PurgeId(u128::from(random())), what, strength }).await;
        let took = begun.elapsed();
        let (acknowledged, pending) =
            if complete { (vec![Acknowledged::new(member, took)], Vec::new()) } else { (Vec::new(), vec![member.to_owned()]) };
        PurgeAnswer {
            shared: false,
            complete,
            acknowledged,
            lease_ran_out: Vec::new(),
            pending,
            replicas: 0,
            took_micros: micros(took),
        }
    }

    /// Whether it holds after another start, too.
    async fn note(&self, entry: Entry) -> bool {
        let mut holds = true;
        loop {
            let line = {
                let mut index = self.index.write().unwrap_or_else(PoisonError::into_inner);
                let at = self.apply(&mut index, &entry);
                self.noted.add(at, &entry)
            };
            let Some(line) = line else { return holds };
            match self.noted.write(line).await {
                Written::Noted => return holds,
                Written::NoJournal => {}
                Written::Unknown => holds = false,
            }
        }
    }

    /// Goes on with the journal of a folder, which other processes have written before: what they have stored is judged by it from now
    /// on. Waits for the disk.
    ///
    /// # Errors
    /// Why there can't be a journal.
    pub(super) fn resume(&self, dir: &Path) -> io::Result<()> {
        match self.noted.journal() {
            // It goes on: between reading it anew and that, a purge would be lost.
            Some(journal) if journal.is_of(dir) => return Ok(()),
            // Of what was purged while there was another one it knows nothing.
            Some(_) => Journal::remove(dir)?,
            None => {}
        }
        let (journal, noted) = Journal::open(dir, new_generation())?;
        let mut index = self.index.write().unwrap_or_else(PoisonError::into_inner);
        index.begin(noted.generation, true);
        if noted.floor > 0 {
            index.forget_before(noted.floor);
        }
        for (at, entry) in &noted.purges {
            index.apply(Position { generation: noted.generation, at: *at }, entry);
            index.advance(*at);
        }
        let last = noted.purges.last().map_or(noted.floor, |(at, _)| *at);
        self.last.fetch_max(last, Ordering::AcqRel);
        let journal = Arc::new(journal);
        // What this process has purged so far holds for what is stored there, too.
        let before = self.noted.open(Arc::clone(&journal), noted.generation);
        let lines: Vec<_> = before.into_iter().map(|entry| (self.apply(&mut index, &entry), entry)).collect();
        self.era.store(index.eras(), Ordering::Release);
        drop(index);
        lines.iter().try_for_each(|(at, entry)| journal.add(*at, entry))
    }

    /// The generation whose purges are known after another start.
    pub(super) fn noted(&self) -> Option<Generation> {
        self.noted.on_disk()
    }

    fn apply(&self, index: &mut Index, entry: &Entry) -> u64 {
        let at = self.last.load(Ordering::Acquire).saturating_add(1).max(wall_micros()).min(LAST_PLACE);
        index.apply(Position { generation: self.noted.generation(), at }, entry);
        index.advance(at);
        self.last.store(at, Ordering::Release);
        at
    }
}

fn new_generation() -> Generation {
    Generation(u128::from(random()) << 64 | u128::from(random()))
}

fn wall_micros() -> u64 {
    micros(SystemTime::UNIX_EPOCH.elapsed().unwrap_or(Duration::ZERO))
}
