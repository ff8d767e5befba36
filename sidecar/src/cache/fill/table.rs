//! The fills of a pod: who leads, who joins, who goes alone.

use std::collections::VecDeque;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hashbrown::HashTable;
use tokio::time::Instant;

use super::state::{Phase, State};
use super::{Budget, Fill, Filler, Limits, Reader, Since};

const SHARDS: usize = 16;

/// All fills of a pod, found by key.
pub(crate) struct Fills {
    pub(super) shared: Arc<Shared>,
    shards: [Mutex<Table>; SHARDS],
    random: RandomState,
    open: AtomicUsize,
}

/// What a miss does next.
pub(crate) enum Turn {
    /// Fetch, for all.
    Lead(Filler),
    /// Read what another fetches.
    Join(Reader),
    /// Fetch, for oneself.
    Alone(Alone),
}

/// Stands for a key whose answers are not cacheable.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Mark(u64);

/// Why a miss isn't shared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Alone {
    /// The answers to this key were not cacheable not long ago.
    HitForMiss,
    /// Fills have all the memory that they may.
    Budget,
    /// There are as many fills, or readers of this one, as there may be.
    Crowded,
}

/// What was counted since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Misses that fetched for all.
    pub led: u64,
    /// Misses that read what another fetched.
    pub joined: u64,
    /// Misses alone since the key is remembered as uncacheable.
    pub hit_for_miss: u64,
    /// Misses alone for want of memory.
    pub over_budget: u64,
    /// Misses alone for want of places.
    pub crowded: u64,
    /// Fills that another took the lead from, as they had no head in time.
    pub slow: u64,
    /// Fills that failed.
    pub failed: u64,
    /// Fills that became too large and were only passed on.
    pub passed_on: u64,
    /// Readers cut off as they held up others.
    pub cut: u64,
    /// Keys forgotten to be uncacheable before their time, for want of places.
    pub marks_dropped: u64,
}

#[derive(Clone, Copy)]
pub(super) enum Counter {
    Led,
    Joined,
    HitForMiss,
    OverBudget,
    Crowded,
    Slow,
    Failed,
    PassedOn,
    Cut,
    MarksDropped,
}

/// What all fills share.
pub(super) struct Shared {
    pub(super) limits: Limits,
    pub(super) budget: Arc<Budget>,
    counts: [AtomicU64; 10],
}

#[derive(Default)]
struct Table {
    /// By the hash that each of them has.
    fills: HashTable<Arc<Fill>>,
    /// Hashes of keys that are uncacheable, and until when.
    marks: HashTable<(u64, Instant)>,
    /// The same, oldest first; a key that was marked again stands here twice.
    order: VecDeque<(u64, Instant)>,
}

impl Shared {
    pub(super) fn count(&self, what: Counter, by: u64) {
        self.counts[what as usize].fetch_add(by, Relaxed);
    }

    fn counted(&self, what: Counter) -> u64 {
        self.counts[what as usize].load(Relaxed)
    }
}

impl Fills {
    /// No fills yet.
    pub(crate) fn new(limits: Limits, budget: Arc<Budget>) -> Arc<Self> {
        let shared = Arc::new(Shared { limits, budget, counts: Default::default() });
        Arc::new(Self { shared, shards: Default::default(), random: RandomState::new(), open: AtomicUsize::new(0) })
    }

    /// Decides what a miss of `key` does. `since` is what the caller read before: it never joins a fill that began earlier.
    pub(crate) fn turn(self: &Arc<Self>, key: &[u8], since: Since, now: Instant) -> Turn {
        let (turn, counter) = self.decide(key, since, now);
        self.shared.count(counter, 1);
        turn
    }

    /// As [`Fills::turn`] of a miss that neither joins another nor is joined: whatever comes of it says nothing of its key.
    pub(crate) fn apart(self: &Arc<Self>, now: Instant) -> Turn {
        if self.shared.budget.is_spent() {
            self.shared.count(Counter::OverBudget, 1);
            return Turn::Alone(Alone::Budget);
        }
        self.shared.count(Counter::Led, 1);
        Turn::Lead(Filler::new(self.fill(Box::default(), 0, Since::default(), now), Arc::clone(self)))
    }

    fn decide(self: &Arc<Self>, key: &[u8], since: Since, now: Instant) -> (Turn, Counter) {
        let hash = self.hash(key);
        let mut table = self.lock(hash);
        if table.is_marked(hash, now) {
            return (Turn::Alone(Alone::HitForMiss), Counter::HitForMiss);
        }
        let found = table.fills.find(hash, |fill| *fill.key == *key);
        if let Some(fill) = found.filter(|fill| fill.since.is_after(since)) {
            let mut state = fill.state();
            let slow = state.phase == Phase::Waiting && now.saturating_duration_since(fill.started) >= self.shared.limits.wait;
            if slow {
                self.shared.count(Counter::Slow, 1);
            } else if state.is_open() {
                if state.readers() >= self.shared.limits.readers {
                    return (Turn::Alone(Alone::Crowded), Counter::Crowded);
                }
                let at = state.join();
                let driver = state.driver();
                drop(state);
                let reader = Reader::new(Arc::clone(fill), at);
                drop(table);
                driver.into_iter().for_each(std::task::Waker::wake);
                return (Turn::Join(reader), Counter::Joined);
            }
        }
        if self.shared.budget.is_spent() {
            return (Turn::Alone(Alone::Budget), Counter::OverBudget);
        }
        if self.open.load(Relaxed) >= self.shared.limits.fills {
            return (Turn::Alone(Alone::Crowded), Counter::Crowded);
        }
        let fill = self.fill(key.into(), hash, since, now);
        // Another one of this key goes on for its readers; nobody finds it any more.
        if table.put(Arc::clone(&fill)).is_none() {
            self.open.fetch_add(1, Relaxed);
        }
        (Turn::Lead(Filler::new(fill, Arc::clone(self))), Counter::Led)
    }

    fn fill(&self, key: Box<[u8]>, hash: u64, since: Since, now: Instant) -> Arc<Fill> {
        let (shared, state) = (Arc::clone(&self.shared), Mutex::new(State::new()));
        Arc::new(Fill { key, hash, since, started: now, shared, state })
    }

    /// Remembers that answers to a key with this hash are not cacheable.
    pub(super) fn mark(&self, hash: u64, until: Instant) {
        let dropped = self.lock(hash).mark(hash, until, (self.shared.limits.marks / SHARDS).max(1));
        self.shared.count(Counter::MarksDropped, dropped);
    }

    /// Forgets it, since a cacheable answer came.
    pub(crate) fn unmark(&self, Mark(hash): Mark) {
        self.lock(hash).unmark(hash);
    }

    /// By which it is remembered that answers to a key are not cacheable.
    pub(crate) fn mark_of(&self, key: &[u8]) -> Mark {
        Mark(self.hash(key))
    }

    /// What was counted since the start.
    pub(crate) fn counts(&self) -> Counts {
        let counted = |what| self.shared.counted(what);
        Counts {
            led: counted(Counter::Led),
            joined: counted(Counter::Joined),
            hit_for_miss: counted(Counter::HitForMiss),
            over_budget: counted(Counter::OverBudget),
            crowded: counted(Counter::Crowded),
            slow: counted(Counter::Slow),
            failed: counted(Counter::Failed),
            passed_on: counted(Counter::PassedOn),
            cut: counted(Counter::Cut),
            marks_dropped: counted(Counter::MarksDropped),
        }
    }

    /// Fills that can be found.
    pub(crate) fn open(&self) -> usize {
        self.open.load(Relaxed)
    }

    /// Nobody finds this fill any more.
    pub(super) fn forget(&self, fill: &Arc<Fill>) {
        let mut table = self.lock(fill.hash);
        if let Ok(found) = table.fills.find_entry(fill.hash, |found| Arc::ptr_eq(found, fill)) {
            found.remove();
            self.open.fetch_sub(1, Relaxed);
        }
    }

    pub(super) fn hash(&self, key: &[u8]) -> u64 {
        self.random.hash_one(key)
    }

    fn lock(&self, hash: u64) -> MutexGuard<'_, Table> {
        // Neither the lowest bits nor the highest, by which a table finds its places.
        self.shards[(hash >> 32) as usize % SHARDS].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    /// Puts a fill in the place of another one of its key, which is given back.
    fn put(&mut self, fill: Arc<Fill>) -> Option<Arc<Fill>> {
        let hash = fill.hash;
        match self.fills.find_mut(hash, |found| found.key == fill.key) {
            Some(found) => Some(std::mem::replace(found, fill)),
            None => {
                self.fills.insert_unique(hash, fill, |fill| fill.hash);
                None
            }
        }
    }

    fn is_marked(&mut self, hash: u64, now: Instant) -> bool {
        match self.until(hash) {
            Some(until) if now < until => true,
            Some(_) => {
                self.unmark(hash);
                false
            }
            None => false,
        }
    }

    /// Until when a key is marked.
    fn until(&self, hash: u64) -> Option<Instant> {
        self.marks.find(hash, |mark| mark.0 == hash).map(|mark| mark.1)
    }

    fn unmark(&mut self, hash: u64) {
        if let Ok(mark) = self.marks.find_entry(hash, |mark| mark.0 == hash) {
            mark.remove();
        }
    }

    /// Returns how many were forgotten before their time.
    fn mark(&mut self, hash: u64, until: Instant, most: usize) -> u64 {
        match self.marks.find_mut(hash, |mark| mark.0 == hash) {
            Some(mark) => mark.1 = until,
            None => drop(self.marks.insert_unique(hash, (hash, until), |mark| mark.0)),
        }
        self.order.push_back((hash, until));
        let mut dropped = 0;
        while self.order.len() > most
            && let Some((hash, until)) = self.order.pop_front()
        {
            // Marked again since, its later place counts.
            if self.until(hash) == Some(until) {
                self.unmark(hash);
                dropped += 1;
            }
        }
        dropped
    }
}
