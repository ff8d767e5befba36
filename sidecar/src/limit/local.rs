//! The store in the pod: a bounded number of counts in shards, each behind a lock of its own.

use std::{
    collections::HashMap,
    hash::{BuildHasherDefault, Hasher},
    sync::{Mutex, MutexGuard, PoisonError},
};

use prometheus_client::metrics::counter::Counter;

use super::gcra::{Gcra, Level, Nanos, Tat};

const SHARDS: usize = 32;
/// Counts that are looked at to find the one that is evicted.
const SAMPLE: usize = 8;

/// Counts by key. A key is a hash of the limit's identity and of what is counted apart, so a count outlives a reload.
#[derive(Debug)]
pub(super) struct Store {
    shards: Box<[Mutex<Shard>]>,
    evicted: Counter,
}

#[derive(Debug)]
struct Shard {
    places: HashMap<u64, usize, BuildHasherDefault<AsIs>>,
    counts: Vec<Count>,
    capacity: usize,
    /// Where the next sample for an eviction begins.
    hand: usize,
}

#[derive(Clone, Copy, Debug)]
struct Count {
    key: u64,
    /// The limit that `tat` was made with.
    gcra: Gcra,
    tat: Tat,
}

impl Store {
    /// A store for `capacity` counts. `evicted` counts those that were forgotten before they were full again.
    pub(super) fn new(capacity: usize, evicted: Counter) -> Self {
        let capacity = capacity.div_ceil(SHARDS);
        let shard = || Mutex::new(Shard { places: HashMap::default(), counts: Vec::new(), capacity, hand: 0 });
        Self { shards: (0..SHARDS).map(|_| shard()).collect(), evicted }
    }

    pub(super) fn charge(&self, gcra: &Gcra, key: u64, now: Nanos) -> Result<Level, Level> {
        let mut shard = self.shard(key);
        let count = shard.entry(gcra, key, now, &self.evicted);
        gcra.charge(&mut count.tat, now)
    }

    pub(super) fn peek(&self, gcra: &Gcra, key: u64, now: Nanos) -> Level {
        let shard = self.shard(key);
        let tat = shard.places.get(&key).map_or_else(Tat::default, |&place| shard.counts[place].tat_for(gcra, now));
        gcra.peek(tat, now)
    }

    pub(super) fn refund(&self, key: u64) {
        let mut shard = self.shard(key);
        if let Some(&place) = shard.places.get(&key) {
            // If the limit was changed in between, a token is still a token.
            let count = &mut shard.counts[place];
            count.gcra.refund(&mut count.tat);
        }
    }

    /// Takes over how a count stands elsewhere.
    pub(super) fn note(&self, gcra: &Gcra, key: u64, remaining: u64, now: Nanos) {
        let mut shard = self.shard(key);
        shard.entry(gcra, key, now, &self.evicted).tat = gcra.with_remaining(remaining, now);
    }

    /// Counts that are held.
    pub(super) fn len(&self) -> usize {
        self.shards.iter().map(|shard| lock(shard).counts.len()).sum()
    }

    fn shard(&self, key: u64) -> MutexGuard<'_, Shard> {
        // The low bits choose the place within a shard's table.
        lock(&self.shards[(key >> 32) as usize % SHARDS])
    }
}

impl Shard {
    fn entry(&mut self, gcra: &Gcra, key: u64, now: Nanos, evicted: &Counter) -> &mut Count {
        let place = match self.places.get(&key) {
            Some(&place) => place,
            None => self.insert(Count { key, gcra: *gcra, tat: Tat::default() }, now, evicted),
        };
        let count = &mut self.counts[place];
        count.tat = count.tat_for(gcra, now);
        count.gcra = *gcra;
        count
    }

    fn insert(&mut self, count: Count, now: Nanos, evicted: &Counter) -> usize {
        let place = if self.counts.len() < self.capacity {
            self.counts.push(count);
            self.counts.len() - 1
        } else {
            let place = self.victim(now);
            let victim = self.counts[place];
            if !victim.gcra.is_full(victim.tat, now) {
                evicted.inc();
            }
            self.places.remove(&victim.key);
            self.counts[place] = count;
            place
        };
        self.places.insert(count.key, place);
        place
    }

    /// Of a few neighbours the one with most of its tokens, so that a flood of new keys pushes out itself and not the clients
    /// that are over their limit.
    fn victim(&mut self, now: Nanos) -> usize {
        let all = self.counts.len();
        let sample = (0..SAMPLE.min(all)).map(|step| (self.hand + step) % all);
        let fullest = sample.max_by_key(|&place| {
            let count = &self.counts[place];
            let level = count.gcra.peek(count.tat, now);
            u64::from(level.remaining) * 1_000_000 / u64::from(count.gcra.burst())
        });
        self.hand = (self.hand + SAMPLE) % all;
        fullest.unwrap_or_default()
    }
}

impl Count {
    fn tat_for(&self, gcra: &Gcra, now: Nanos) -> Tat {
        if self.gcra == *gcra { self.tat } else { gcra.convert(&self.gcra, self.tat, now) }
    }
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
mod tests {
    use std::time::Duration;

    use super::*;

    const SECOND: Nanos = 1_000_000_000;

    fn gcra(requests: u32, burst: u32) -> Gcra {
        Gcra::new(requests, Duration::from_secs(1), burst).unwrap()
    }

    fn spread(key: u64) -> u64 {
        key.wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }

    #[test]
    fn a_million_keys_stay_within_the_bound() {
        let evicted = Counter::default();
        let store = Store::new(10_000, evicted.clone());
        for key in 0..1_000_000 {
            let _ = store.charge(&gcra(1, 2), spread(key), SECOND);
        }
        assert!(store.len() <= 10_000 + SHARDS, "{}", store.len());
        assert!(evicted.get() > 900_000);
    }

    #[test]
    fn flood_of_new_keys_does_not_free_a_client_over_its_limit() {
        let store = Store::new(3_200, Counter::default());
        let limit = gcra(1, 10);
        for _ in 0..10 {
            store.charge(&limit, spread(u64::MAX), SECOND).unwrap();
        }
        for key in 0..100_000 {
            let _ = store.charge(&limit, spread(key), SECOND);
        }
        assert!(store.charge(&limit, spread(u64::MAX), SECOND).is_err());
    }

    #[test]
    fn full_buckets_are_forgotten_without_loss() {
        let evicted = Counter::default();
        let store = Store::new(32, evicted.clone());
        for key in 0..1000 {
            let _ = store.charge(&gcra(1, 1), spread(key), SECOND + 2 * SECOND * key);
        }
        assert_eq!(evicted.get(), 0);
    }

    #[test]
    fn changed_limit_takes_over_the_count() {
        let store = Store::new(100, Counter::default());
        for _ in 0..8 {
            store.charge(&gcra(10, 10), 7, SECOND).unwrap();
        }
        assert_eq!(store.peek(&gcra(20, 20), 7, SECOND).remaining, 12);
        assert_eq!(store.charge(&gcra(20, 20), 7, SECOND).unwrap().remaining, 11);
    }

    #[test]
    fn threads_together_never_get_more_than_the_burst() {
        let store = Store::new(100, Counter::default());
        let allowed = std::sync::atomic::AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..1000 {
                        if store.charge(&gcra(1, 500), 1, SECOND).is_ok() {
                            allowed.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                        }
                    }
                });
            }
        });
        assert_eq!(allowed.into_inner(), 500);
    }
}
