//! A log of purges that one pod keeps in its memory, for itself: what there is without Redis.

use std::{
    sync::{
        PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use super::{
    Generation, Index, Position, Stamp, Verdict,
    index::Object,
    log::{Entry, LAST_PLACE, PurgeId, Strength, What},
    name::Name,
    redis::random,
    request::{Acknowledged, PurgeAnswer, micros},
};

/// The purges of a pod that shares its log with nobody.
#[derive(Debug)]
pub(super) struct Alone {
    generation: Generation,
    /// Where its log begins.
    first: Stamp,
    /// Place of the newest purge. It is written after the index, so who reads it finds the purge there.
    last: AtomicU64,
    index: RwLock<Index>,
}

impl Alone {
    /// Goes on with an index that was used before, or with a new one.
    pub(super) fn new(mut index: Index) -> Self {
        let generation = Generation(u128::from(random()) << 64 | u128::from(random()));
        index.begin(generation, index.is_new());
        Self { generation, first: index.stamp(), last: AtomicU64::new(0), index: RwLock::new(index) }
    }

    /// What a fetch or fill that begins now carries.
    pub(super) fn stamp(&self) -> Stamp {
        self.first.later(self.last.load(Ordering::Acquire))
    }

    /// Generations so far.
    pub(super) fn eras(&self) -> u32 {
        self.index.read().unwrap_or_else(PoisonError::into_inner).eras()
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

    /// Purges: no request that comes later is answered from what went.
    pub(super) fn purge(&self, what: What, strength: Strength, member: &str) -> PurgeAnswer {
        let begun = Instant::now();
        let mut index = self.index.write().unwrap_or_else(PoisonError::into_inner);
        let at = self.last.load(Ordering::Acquire).saturating_add(1).max(wall_micros()).min(LAST_PLACE);
        index.apply(Position { generation: self.generation, at }, &Entry { id: PurgeId(u128::from(random())), what, strength });
        index.advance(at);
        self.last.store(at, Ordering::Release);
        drop(index);
        let took = begun.elapsed();
        PurgeAnswer {
            shared: false,
            complete: true,
            acknowledged: vec![Acknowledged::new(member, took)],
            lease_ran_out: Vec::new(),
            pending: Vec::new(),
            replicas: 0,
            took_micros: micros(took),
        }
    }
}

fn wall_micros() -> u64 {
    micros(SystemTime::UNIX_EPOCH.elapsed().unwrap_or(Duration::ZERO))
}
