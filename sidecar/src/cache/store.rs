//! The memory tier: the objects that a pod keeps.
//!
//! [`Store`] is shared by all workers. It has 16 shards, each under a lock that is held for one lookup or one eviction; the
//! bytes are bounded for all shards together, so an object may be as large as a quarter of the store. Keys are found by a keyed 128-bit
//! hash with a seed of this process and compared byte for byte, so keys that collide can't be built.
//!
//! **Eviction.** [`Eviction::S3Fifo`] (default): newcomers stand in a queue for a tenth of the bytes, those hit there go on to the main
//! queue, where an entry stays for up to seven rounds if it is hit; fingerprints of newcomers that left unseen bring them straight to
//! the main queue when they come again. [`Eviction::Sieve`]: one queue and a hand. Room for an object is made shard after shard.

mod codec;
mod ghost;
mod head;
mod names;
mod object;
mod shard;
mod slots;
mod stats;
#[cfg(test)]
mod tests;
mod variants;

use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};

use siphasher::sip128::{Hasher128, SipHasher13};

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use codec::seal;
#[cfg(test)]
use object::Unfit;
pub(crate) use object::{CHUNK, INLINE, Object, Parts};
use shard::{Dropped, Shard};
pub(crate) use stats::{Gone, Refused, Stats};
pub(crate) use variants::Vary;

const SHARDS: usize = 16;

/// The share of probation: one in so many bytes.
const PROBATION: u64 = 10;

/// An object may weigh one in so many bytes of the store.
const LARGEST: u64 = 4;

/// Entries that one insertion evicts at most: half a millisecond's work.
const PER_INSERT: usize = 1024;

/// Entries evicted under one hold of a lock.
const PER_HOLD: usize = 32;

/// Who leaves when room is needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Eviction {
    /// Two queues and a memory of who left (Yang et al., SOSP 2023).
    #[default]
    S3Fifo,
    /// One queue and a hand (Zhang et al., NSDI 2024).
    Sieve,
}

/// What a store is made with.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Bytes of all entries, with what the store needs for them.
    pub capacity: u64,
    /// Variants of one primary key.
    pub variants: usize,
    /// Who leaves.
    pub eviction: Eviction,
}

/// The objects of a pod.
pub(crate) struct Store {
    shards: Box<[Mutex<Shard>]>,
    seed: (u64, u64),
    limits: Limits,
    capacity: AtomicU64,
    /// Bytes of all entries.
    used: AtomicU64,
    /// Bytes of the entries on probation.
    small: AtomicU64,
    /// Bytes of objects that are about to come in.
    reserved: AtomicU64,
    /// The shard that gives room next.
    hand: AtomicUsize,
    too_large: AtomicU64,
    crowded: AtomicU64,
}

/// A key with its hash, good for one store.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Key<'a> {
    primary: &'a [u8],
    variant: &'a [u8],
    hash: Hash,
    shard: usize,
}

/// What a key leads to.
#[derive(Debug, Clone)]
pub(crate) enum Found {
    /// The stored answer.
    Object(Object),
    /// There are variants: look again with [`Store::variant`] and what [`Vary::key`] makes of the request.
    Vary(Vary),
}

/// One line of a listing.
#[derive(Debug, Clone)]
pub(crate) struct Listed {
    /// The object.
    pub object: Object,
    /// Bytes that count against the capacity.
    pub weight: u64,
    /// Hits since it came.
    pub hits: u32,
}

/// Where a listing goes on. Any number will do; one that no listing gave leads nowhere in particular.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cursor(pub(crate) u64);

/// 128 bits of a keyed hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Hash([u64; 2]);

impl Store {
    /// An empty store.
    pub(crate) fn new(limits: Limits) -> Self {
        // Keyed by the operating system's randomness, which `RandomState` is made of.
        let random = RandomState::new();
        Self {
            shards: (0..SHARDS).map(|_| Mutex::new(Shard::new(limits.eviction))).collect(),
            seed: (random.hash_one(0), random.hash_one(1)),
            limits,
            capacity: AtomicU64::new(limits.capacity),
            used: AtomicU64::new(0),
            small: AtomicU64::new(0),
            reserved: AtomicU64::new(0),
            hand: AtomicUsize::new(0),
            too_large: AtomicU64::new(0),
            crowded: AtomicU64::new(0),
        }
    }

    /// Who leaves when room is needed.
    pub(crate) fn eviction(&self) -> Eviction {
        self.limits.eviction
    }

    /// A primary key with its hash.
    pub(crate) fn key<'a>(&self, primary: &'a [u8]) -> Key<'a> {
        let hash = self.hash(primary, &[]);
        Key { primary, variant: &[], hash, shard: hash.shard() }
    }

    /// The key of a variant: `values` is what [`Vary::key`] made of the request.
    pub(crate) fn variant<'a>(&self, primary: &Key<'a>, values: &'a [u8]) -> Key<'a> {
        Key { variant: values, hash: self.hash(primary.primary, values), ..*primary }
    }

    /// What the key leads to. Counts as a use of it.
    pub(crate) fn get(&self, key: &Key<'_>) -> Option<Found> {
        self.lock(key.shard).lookup(key)
    }

    /// What the key leads to, for who only looks: counts as no use.
    pub(crate) fn peek(&self, key: &Key<'_>) -> Option<Found> {
        self.lock(key.shard).peek(key)
    }

    /// The line that this very object has in a listing, if it is still there.
    pub(crate) fn listed(&self, object: &Object) -> Option<Listed> {
        let key = self.key_of(object);
        self.lock(key.shard).listed(&key, object)
    }

    /// The longest body for which there is room beside a head and all that it takes to hold it in chunks, more or less.
    pub(crate) fn largest_body(&self) -> u64 {
        self.capacity.load(Relaxed) / LARGEST / 4 * 3
    }

    /// Stores an object under its own key, with the names of its `Vary` if it has one. What was under the key goes.
    ///
    /// # Errors
    /// When it is too large, or when room for it would take long.
    pub(crate) fn insert(&self, object: Object, vary: Option<&Vary>) -> Result<(), Refused> {
        let weight = slots::weight(&object);
        if weight > self.capacity.load(Relaxed) / LARGEST {
            self.too_large.fetch_add(1, Relaxed);
            return Err(Refused::TooLarge);
        }
        let reserved = Reserved::new(self, weight);
        if self.evict(PER_INSERT, Gone::Space) {
            self.crowded.fetch_add(1, Relaxed);
            return Err(Refused::Crowded);
        }
        let own = object.clone();
        let (primary, key, most) = (self.key(own.primary()), self.key_of(&own), self.limits.variants.max(1));
        self.change(key.shard, |shard, dropped| match vary {
            None => shard.insert(&key, object, dropped),
            Some(vary) => shard.insert_variant(&primary, vary, &key, object, most, dropped),
        });
        drop(reserved);
        if vary.is_some() {
            // A marker may have come with it.
            self.evict(PER_INSERT, Gone::Space);
        }
        Ok(())
    }

    /// Whether an object is small enough for the store.
    pub(crate) fn may_hold(&self, object: &Object) -> bool {
        slots::weight(object) <= self.capacity.load(Relaxed) / LARGEST
    }

    /// Whether there is room for an object, so that nothing has to leave for it.
    pub(crate) fn has_room(&self, object: &Object) -> bool {
        let taken = self.used.load(Relaxed) + self.reserved.load(Relaxed) + slots::weight(object);
        taken <= self.capacity.load(Relaxed)
    }

    /// Puts `new` in the place of `old`, as a 304 asks for, unless `old` has left or was replaced meanwhile: `false`.
    pub(crate) fn replace(&self, old: &Object, new: Object) -> bool {
        let key = self.key_of(old);
        let done = self.change(key.shard, |shard, dropped| shard.replace(&key, old, new, dropped));
        self.evict(PER_INSERT, Gone::Space);
        done
    }

    /// Whether another object stands where this one would.
    pub(crate) fn has_other(&self, object: &Object) -> bool {
        matches!(self.peek(&self.key_of(object)), Some(Found::Object(found)) if !found.is_same(object))
    }

    /// Takes out what the key leads to; of a primary key all variants. The number of entries.
    pub(crate) fn remove(&self, key: &Key<'_>, why: Gone) -> usize {
        self.change(key.shard, |shard, dropped| shard.remove(key, why, dropped))
    }

    /// Takes out this very object, if it is still there.
    pub(crate) fn discard(&self, object: &Object, why: Gone) -> bool {
        let key = self.key_of(object);
        self.change(key.shard, |shard, dropped| shard.discard(&key, object, why, dropped))
    }

    /// Sets the capacity and evicts what is beyond it, some entries under each hold of a lock, so that lookups pass between. It
    /// takes the calling thread 0.3 s for a million entries: no work for a thread that serves requests.
    pub(crate) fn resize(&self, capacity: u64) {
        self.set_capacity(capacity);
        while self.shed(PER_INSERT) {}
        for shard in 0..SHARDS {
            self.lock(shard).trim();
        }
    }

    /// Sets the capacity alone; insertions and [`Store::shed`] do the rest.
    pub(crate) fn set_capacity(&self, capacity: u64) {
        self.capacity.store(capacity, Relaxed);
    }

    /// Evicts up to `most` entries beyond the capacity; whether there are more.
    pub(crate) fn shed(&self, most: usize) -> bool {
        self.evict(most, Gone::Pressure)
    }

    /// Up to `most` objects (256 at the most), from the beginning or on from `cursor`. Objects that stay while it is read are in it;
    /// one may come twice.
    pub(crate) fn page(&self, cursor: Option<Cursor>, most: usize) -> (Vec<Listed>, Option<Cursor>) {
        let most = most.clamp(1, 256);
        let (mut shard, mut from) = cursor.map_or((0, u32::MAX), |Cursor(at)| ((at >> 32) as usize, at as u32));
        let mut out = Vec::new();
        while shard < SHARDS {
            let at = self.lock(shard).page(from, most, &mut out);
            if at > 0 {
                return (out, Some(Cursor((shard as u64) << 32 | u64::from(at))));
            }
            (shard, from) = (shard + 1, u32::MAX);
        }
        (out, None)
    }

    /// Figures of now.
    pub(crate) fn stats(&self) -> Stats {
        let mut stats = Stats { capacity: self.capacity.load(Relaxed), ..Stats::none() };
        (0..SHARDS).for_each(|shard| self.lock(shard).add_to(&mut stats));
        stats.too_large = self.too_large.load(Relaxed);
        stats.crowded = self.crowded.load(Relaxed);
        stats
    }

    /// Evicts up to `most` entries while the store is beyond its capacity; whether it still is.
    fn evict(&self, most: usize, why: Gone) -> bool {
        let (mut left, mut empty) = (most, 0);
        loop {
            let over = (self.used.load(Relaxed) + self.reserved.load(Relaxed)).saturating_sub(self.capacity.load(Relaxed));
            if over == 0 {
                return false;
            }
            if left == 0 || empty > SHARDS {
                return true;
            }
            let at = self.hand.fetch_add(1, Relaxed) % SHARDS;
            let excess = self.small.load(Relaxed) as i64 - (self.capacity.load(Relaxed) / PROBATION) as i64;
            let evicted = self.change(at, |shard, dropped| {
                let before = shard.bytes().0;
                let hold = PER_HOLD.min(left);
                (0..hold).take_while(|_| before - shard.bytes().0 < over && shard.evict(excess, why, dropped)).count()
            });
            left -= evicted;
            empty = if evicted == 0 { empty + 1 } else { 0 };
        }
    }

    /// Changes one shard and keeps the sums right. What the change took out is dropped when the lock is free again.
    fn change<T>(&self, at: usize, change: impl FnOnce(&mut Shard, &mut Dropped) -> T) -> T {
        let mut dropped = Dropped::new();
        let mut shard = self.lock(at);
        let before = shard.bytes();
        let result = change(&mut shard, &mut dropped);
        let after = shard.bytes();
        // Under the lock, or an eviction could be subtracted before what it evicted was added. Wrapping: a smaller sum is added
        // as the negative number that it is.
        self.used.fetch_add(after.0.wrapping_sub(before.0), Relaxed);
        self.small.fetch_add(after.1.wrapping_sub(before.1), Relaxed);
        drop(shard);
        result
    }

    fn lock(&self, at: usize) -> MutexGuard<'_, Shard> {
        self.shards[at].lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn key_of<'a>(&self, object: &'a Object) -> Key<'a> {
        let primary = self.key(object.primary());
        if object.variant().is_empty() { primary } else { self.variant(&primary, object.variant()) }
    }

    fn hash(&self, primary: &[u8], variant: &[u8]) -> Hash {
        let mut hasher = SipHasher13::new_with_keys(self.seed.0, self.seed.1);
        hasher.write(primary);
        hasher.write(variant);
        // So that no other two give the same bytes, whoever chose them.
        hasher.write_usize(primary.len());
        let hash = hasher.finish128();
        Hash([hash.h1, hash.h2])
    }
}

/// Bytes kept free for an object that is about to come in.
struct Reserved<'a>(&'a Store, u64);

impl<'a> Reserved<'a> {
    fn new(store: &'a Store, bytes: u64) -> Self {
        store.reserved.fetch_add(bytes, Relaxed);
        Self(store, bytes)
    }
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        self.0.reserved.fetch_sub(self.1, Relaxed);
    }
}

impl Hash {
    /// Bits that choose the shard; nothing else uses them.
    fn shard(self) -> usize {
        self.0[0] as usize % SHARDS
    }

    /// Bits for index and ghosts.
    fn print(self) -> u32 {
        self.0[1] as u32
    }
}
