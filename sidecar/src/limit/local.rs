//! The store in the pod: a bounded number of counts in shards, each behind a lock of its own.

use std::{
    collections::HashMap,
    hash::{BuildHasherDefault, Hasher},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use prometheus_client::metrics::counter::Counter;

use super::shared::{Charge, ChargeId, Count, Mark, Micros, Rule, Treatment, Verdict, decide};

const SHARDS: usize = 32;
/// Counts that are looked at to find the one that is evicted.
const SAMPLE: usize = 8;

/// Counts by key. A key is a hash of the limit's identity and of what is counted apart, so a count outlives a reload.
#[derive(Debug)]
pub(super) struct Store {
    shards: Box<[Mutex<Shard>]>,
    /// Counts that a shard holds at most.
    capacity: AtomicUsize,
    evicted: Counter,
}

#[derive(Debug)]
struct Shard {
    places: HashMap<u64, u32, BuildHasherDefault<AsIs>>,
    entries: Vec<Entry>,
    /// Where the next sample for an eviction begins.
    hand: usize,
    /// The latest time that it was asked at: requests come here in another order than they began, and a count would take that for a clock that
    /// steps back.
    latest: Micros,
}

#[derive(Clone, Debug)]
struct Entry {
    key: u64,
    count: Option<Count>,
    /// When there will be nothing in it that its absence would not say as well.
    over: Micros,
}

/// What time it is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Now {
    /// By a clock that only goes forward.
    pub(super) steady: Micros,
    /// By the calendar.
    pub(super) wall: Micros,
}

/// What a limit is asked for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked {
    pub(super) key: u64,
    pub(super) rule: Rule,
    pub(super) cost: u64,
    pub(super) treatment: Treatment,
}

/// What was charged, and can be given back.
#[derive(Clone, Copy, Debug)]
pub(super) struct Charged {
    pub(super) key: u64,
    pub(super) rule: Rule,
    pub(super) id: ChargeId,
    cost: u64,
    mark: Mark,
}

impl Charged {
    /// What asks how the count stands, and takes nothing.
    pub(super) fn free(&self) -> Asked {
        Asked { key: self.key, rule: self.rule, cost: 0, treatment: Treatment::Enforce }
    }
}

impl Now {
    fn of(self, rule: &Rule) -> Micros {
        if matches!(rule, Rule::Fixed(_)) { self.wall } else { self.steady }
    }
}

impl Store {
    /// A store for `capacity` counts. `evicted` counts those that were forgotten while there was something in them.
    pub(super) fn new(capacity: usize, evicted: Counter) -> Self {
        let shard = || Mutex::new(Shard { places: HashMap::default(), entries: Vec::new(), hand: 0, latest: 0 });
        Self { shards: (0..SHARDS).map(|_| shard()).collect(), capacity: capacity.div_ceil(SHARDS).into(), evicted }
    }

    /// From now on it holds at most so many counts.
    pub(super) fn hold_at_most(&self, counts: usize, now: Now) {
        let capacity = counts.div_ceil(SHARDS);
        if self.capacity.swap(capacity, Ordering::Relaxed) > capacity {
            self.shards.iter().for_each(|shard| lock(shard).shrink(capacity, now.steady, &self.evicted));
        }
    }

    /// Charges a count, if it allows it; what is charged under this id can be given back.
    pub(super) fn charge(&self, asked: &Asked, id: ChargeId, now: Now) -> (Verdict, Option<Charged>) {
        let mut shard = self.shard(asked.key);
        let now = shard.at(now);
        let entry = shard.entry(asked.key, now.steady, self);
        let (verdict, mark) = asked.pass(&mut entry.count, id, now);
        entry.settle(&verdict, now);
        let is_charged = asked.cost > 0 && (verdict.allowed || asked.treatment == Treatment::Debit);
        let charged = Charged { key: asked.key, rule: asked.rule, id, cost: asked.cost, mark };
        (verdict, is_charged.then_some(charged))
    }

    /// What a count would say, and how it would stand then. It is left as it is.
    pub(super) fn look(&self, asked: &Asked, now: Now) -> Verdict {
        let mut shard = self.shard(asked.key);
        let now = shard.at(now);
        let mut count = shard.find(asked.key).and_then(|entry| entry.count.clone());
        drop(shard);
        asked.pass(&mut count, ChargeId::NONE, now).0
    }

    /// Gives back what was charged. It may be done once.
    pub(super) fn refund(&self, charged: &Charged, now: Now) {
        let mut shard = self.shard(charged.key);
        let now = shard.at(now);
        if let Some(entry) = shard.find_mut(charged.key) {
            let Charged { rule, cost, mark, id, .. } = *charged;
            rule.refund(&mut entry.count, cost, mark, id, now.of(&rule));
            if entry.over == Micros::MAX && entry.count.as_ref().is_none_or(Rule::is_idle) {
                entry.over = now.steady;
            }
        }
    }

    /// Charges a count for what a request has cost, whether it has it or not.
    pub(super) fn debit(&self, key: u64, rule: Rule, cost: u64, now: Now) {
        let _charged = self.charge(&Asked { key, rule, cost, treatment: Treatment::Debit }, ChargeId::NONE, now);
    }

    /// Takes over how a count stands elsewhere.
    pub(super) fn note(&self, rule: &Rule, key: u64, remaining: u64, now: Now) {
        let mut shard = self.shard(key);
        let now = shard.at(now);
        let Some(count) = rule.with_remaining(remaining, now.of(rule)) else { return };
        let entry = shard.entry(key, now.steady, self);
        entry.count = Some(count);
        let (verdict, _) =
            Asked { key, rule: *rule, cost: 0, treatment: Treatment::Enforce }.pass(&mut entry.count, ChargeId::NONE, now);
        entry.settle(&verdict, now);
    }

    /// Forgets a count, so that it begins anew; whether there was one.
    pub(super) fn forget(&self, key: u64) -> bool {
        let mut shard = self.shard(key);
        let entry = shard.find_mut(key);
        let found = entry.as_ref().is_some_and(|entry| entry.count.is_some());
        if let Some(entry) = entry {
            (entry.count, entry.over) = (None, 0);
        }
        found
    }

    /// Counts that it has room for.
    pub(super) fn capacity(&self) -> usize {
        self.capacity.load(Ordering::Relaxed).max(1) * SHARDS
    }

    /// Counts that are held.
    pub(super) fn len(&self) -> usize {
        self.shards.iter().map(|shard| lock(shard).entries.len()).sum()
    }

    fn shard(&self, key: u64) -> MutexGuard<'_, Shard> {
        // The low bits choose the place within a shard's table.
        lock(&self.shards[(key >> 32) as usize % SHARDS])
    }
}

impl Asked {
    fn pass(&self, count: &mut Option<Count>, id: ChargeId, now: Now) -> (Verdict, Mark) {
        let charge = Charge { key: "", rule: self.rule, treatment: self.treatment, cost: self.cost };
        let told = decide(&charge, count, id, now.of(&self.rule));
        // A window is of the time that it was computed from, which is this one.
        told.map_or((Verdict::NOTHING, Mark::default()), |told| (told.verdict, told.mark))
    }
}

impl Entry {
    /// Counts it, if there was something in it.
    fn lost(&self, now: Micros, evicted: &Counter) {
        if self.over > now {
            evicted.inc();
        }
    }

    fn settle(&mut self, verdict: &Verdict, now: Now) {
        let is_idle = self.count.as_ref().is_none_or(Rule::is_idle);
        self.over = if is_idle { now.steady.saturating_add(micros(verdict.reset)) } else { Micros::MAX };
    }
}

impl Shard {
    fn at(&mut self, now: Now) -> Now {
        self.latest = self.latest.max(now.steady);
        Now { steady: self.latest, ..now }
    }

    fn find(&self, key: u64) -> Option<&Entry> {
        self.places.get(&key).map(|&place| &self.entries[place as usize])
    }

    fn find_mut(&mut self, key: u64) -> Option<&mut Entry> {
        self.places.get(&key).map(|&place| &mut self.entries[place as usize])
    }

    fn entry(&mut self, key: u64, now: Micros, of: &Store) -> &mut Entry {
        let place = match self.places.get(&key) {
            Some(&place) => place as usize,
            None => self.insert(key, now, of),
        };
        &mut self.entries[place]
    }

    fn insert(&mut self, key: u64, now: Micros, of: &Store) -> usize {
        let entry = Entry { key, count: None, over: 0 };
        let place = if self.entries.len() < of.capacity.load(Ordering::Relaxed).max(1) {
            self.entries.push(entry);
            self.entries.len() - 1
        } else {
            let place = self.victim();
            let victim = std::mem::replace(&mut self.entries[place], entry);
            victim.lost(now, &of.evicted);
            self.places.remove(&victim.key);
            place
        };
        self.places.insert(key, u32::try_from(place).unwrap_or(u32::MAX));
        place
    }

    fn shrink(&mut self, capacity: usize, now: Micros, evicted: &Counter) {
        while self.entries.len() > capacity
            && let Some(entry) = self.entries.pop()
        {
            entry.lost(now, evicted);
            self.places.remove(&entry.key);
        }
        self.entries.shrink_to_fit();
        self.places.shrink_to_fit();
    }

    /// Of a few neighbours the one that is over first, or has been for longest: so those that are idle go before all others, and a flood of new
    /// keys pushes out itself and not the clients that are over their limit.
    fn victim(&mut self) -> usize {
        let all = self.entries.len();
        let sample = (0..SAMPLE.min(all)).map(|step| (self.hand + step) % all);
        let first = sample.min_by_key(|&place| self.entries[place].over);
        self.hand = (self.hand + SAMPLE) % all.max(1);
        first.unwrap_or_default()
    }
}

fn micros(time: Duration) -> Micros {
    Micros::try_from(time.as_micros()).unwrap_or(Micros::MAX)
}

fn lock(shard: &Mutex<Shard>) -> MutexGuard<'_, Shard> {
    // A panic under the lock leaves at worst one wrong count.
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The keys are keyed hashes already.
#[derive(Debug, Default)]
struct AsIs(u64);

impl Hasher for AsIs {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u64(&mut self, key: u64) {
        self.0 = key;
    }
}

#[cfg(test)]
mod tests;
