//! One shard of the store: an index over slots, and who leaves next. All of it is done under the shard's lock.

use hashbrown::HashTable;
use smallvec::SmallVec;

use super::ghost::{Ghosts, spread};
use super::slots::{Content, NONE, Queue, Slot, Slots};
use super::variants::{Marker, Vary};
use super::{Eviction, Found, Gone, Hash, Key, Listed, Object, Stats};

/// Hits of one entry that eviction counts; more make it no safer.
pub(super) const MAX_USES: u8 = 7;

/// Entries passed over in search of one to evict. The next is taken even if it was hit, so that no search is long.
const SEARCH: u32 = 128;

/// What left, dropped by the caller when it no longer holds the lock.
pub(super) type Dropped = SmallVec<[Content; 2]>;

pub(super) struct Shard {
    eviction: Eviction,
    index: HashTable<Place>,
    slots: Slots,
    ghosts: Ghosts,
    markers: u64,
    stats: Stats,
}

/// 8 bytes, so the index grows without a look at the slots.
#[derive(Clone, Copy)]
struct Place {
    print: u32,
    slot: u32,
}

impl Shard {
    pub(super) const fn new(eviction: Eviction) -> Self {
        Self { eviction, index: HashTable::new(), slots: Slots::new(), ghosts: Ghosts::new(), markers: 0, stats: Stats::none() }
    }

    /// Bytes of all entries, and of those on probation.
    pub(super) fn bytes(&self) -> (u64, u64) {
        let small = self.slots.bytes(Queue::Small);
        (small + self.slots.bytes(Queue::Main), small)
    }

    pub(super) fn add_to(&self, sum: &mut Stats) {
        sum.objects += self.slots.len() as u64 - self.markers;
        sum.markers += self.markers;
        sum.bytes += self.bytes().0;
        sum.hits += self.stats.hits;
        sum.misses += self.stats.misses;
        sum.inserted += self.stats.inserted;
        sum.gone.iter_mut().zip(self.stats.gone).for_each(|(sum, more)| *sum += more);
    }

    pub(super) fn lookup(&mut self, key: &Key<'_>) -> Option<Found> {
        let Some(at) = self.find(key.hash, key.primary, key.variant) else {
            self.stats.misses += 1;
            return None;
        };
        self.stats.hits += 1;
        let slot = self.slots.get_mut(at);
        slot.hits = slot.hits.saturating_add(1);
        slot.uses = MAX_USES.min(slot.uses + 1);
        Some(slot.content.found())
    }

    /// The same, without a trace.
    pub(super) fn peek(&self, key: &Key<'_>) -> Option<Found> {
        self.find(key.hash, key.primary, key.variant).map(|at| self.slots.get(at).content.found())
    }

    /// How an object is listed, if it is still there.
    pub(super) fn listed(&self, key: &Key<'_>, object: &Object) -> Option<Listed> {
        let slot = self.slots.get(self.find_same(key, object)?);
        Some(Listed { object: object.clone(), weight: slot.weight(), hits: slot.hits })
    }

    /// Puts an object under its own key. What was there goes, a marker with all its variants.
    pub(super) fn insert(&mut self, key: &Key<'_>, object: Object, dropped: &mut Dropped) {
        self.stats.inserted += 1;
        let place = self.find(key.hash, key.primary, key.variant);
        if let Some(at) = place {
            if matches!(self.slots.get(at).content, Content::Object(_)) {
                self.stats.gone[Gone::Replaced as usize] += 1;
                dropped.push(self.slots.swap(at, Content::Object(object)));
                return;
            }
            self.remove_at(at, Gone::Replaced, dropped);
        }
        self.add(key.hash, Content::Object(object));
    }

    /// Puts a variant under its key and takes note of it in the marker, which is made anew when there is none with these names.
    pub(super) fn insert_variant(
        &mut self,
        primary: &Key<'_>,
        vary: &Vary,
        key: &Key<'_>,
        object: Object,
        most: usize,
        dropped: &mut Dropped,
    ) {
        let found = self.find(primary.hash, primary.primary, &[]);
        let same = found.filter(|&at| matches!(&self.slots.get(at).content, Content::Marker(marker) if marker.vary == *vary));
        let mut at = match same {
            Some(at) => at,
            None => {
                if let Some(at) = found {
                    self.remove_at(at, Gone::Replaced, dropped);
                }
                self.markers += 1;
                self.add(primary.hash, Content::Marker(Box::new(Marker::new(primary.primary, vary.clone()))))
            }
        };
        if self.find(key.hash, key.primary, key.variant).is_none() {
            self.make_room_for_variant(at, most, dropped);
            // Slots may have moved meanwhile.
            at = self.find(primary.hash, primary.primary, &[]).unwrap_or(at);
            self.slots.change(at, |content| {
                if let Content::Marker(marker) = content {
                    marker.variants.push_back(key.hash);
                }
            });
        }
        self.insert(key, object, dropped);
    }

    /// The oldest variants go until there is room for one more. Those evicted meanwhile are forgotten first.
    fn make_room_for_variant(&mut self, at: u32, most: usize, dropped: &mut Dropped) {
        let Content::Marker(marker) = &mut self.slots.get_mut(at).content else { return };
        if marker.variants.len() < most {
            return;
        }
        let mut variants = std::mem::take(&mut marker.variants);
        variants.retain(|&hash| self.find_hash(hash).is_some());
        let beyond = (variants.len() + 1).saturating_sub(most);
        let oldest: SmallVec<[Hash; 2]> = variants.drain(..beyond).collect();
        if let Content::Marker(marker) = &mut self.slots.get_mut(at).content {
            marker.variants = variants;
        }
        for hash in oldest {
            if let Some(at) = self.find_hash(hash) {
                self.remove_at(at, Gone::Variants, dropped);
            }
        }
    }

    /// Puts `new` in the place of `old` if that is still there.
    pub(super) fn replace(&mut self, key: &Key<'_>, old: &Object, new: Object, dropped: &mut Dropped) -> bool {
        let Some(at) = self.find_same(key, old) else { return false };
        self.stats.gone[Gone::Replaced as usize] += 1;
        dropped.push(self.slots.swap(at, Content::Object(new)));
        true
    }

    /// Takes out what the key leads to, a marker with all its variants. The number of entries.
    pub(super) fn remove(&mut self, key: &Key<'_>, why: Gone, dropped: &mut Dropped) -> usize {
        self.find(key.hash, key.primary, key.variant).map_or(0, |at| self.remove_at(at, why, dropped))
    }

    /// Takes out `object` if it is still there.
    pub(super) fn discard(&mut self, key: &Key<'_>, object: &Object, why: Gone, dropped: &mut Dropped) -> bool {
        self.find_same(key, object).is_some_and(|at| self.remove_at(at, why, dropped) > 0)
    }

    /// Evicts one entry; `excess` is by how many bytes probation is beyond its share in the whole store. `false` when there is none.
    pub(super) fn evict(&mut self, excess: i64, why: Gone, dropped: &mut Dropped) -> bool {
        let victim = match self.eviction {
            Eviction::S3Fifo => self.s3_fifo(excess),
            Eviction::Sieve => self.sieve(),
        };
        let Some(at) = victim else { return false };
        let slot = self.slots.get(at);
        if slot.queue == Queue::Small {
            let print = slot.hash.print();
            // Two fifths of the entries are remembered: fewer make the store better at trends, more at long cycles.
            self.ghosts.add(print, self.slots.len() * 2 / 5);
        }
        self.remove_at(at, why, dropped);
        true
    }

    /// Newcomers leave when probation is beyond its share, and stay for good when they were hit; else the oldest that wasn't hit.
    fn s3_fifo(&mut self, mut excess: i64) -> Option<u32> {
        for _ in 0..SEARCH {
            let (small, main) = (self.slots.oldest(Queue::Small), self.slots.oldest(Queue::Main));
            let at = if main == NONE || small != NONE && excess > 0 { small } else { main };
            if at == NONE {
                return None;
            }
            let slot = self.slots.get_mut(at);
            if slot.uses == 0 {
                return Some(at);
            }
            if slot.queue == Queue::Small {
                slot.uses = 0;
                excess -= slot.weight() as i64;
            } else {
                slot.uses -= 1;
            }
            self.slots.move_to(at, Queue::Main);
        }
        Some(self.slots.oldest(Queue::Main)).filter(|&at| at != NONE)
    }

    /// The next from the hand on that wasn't hit since the hand passed.
    fn sieve(&mut self) -> Option<u32> {
        let mut at = self.slots.hand;
        for _ in 0..SEARCH {
            if at == NONE {
                at = self.slots.oldest(Queue::Main);
            }
            if at == NONE {
                return None;
            }
            let slot = self.slots.get_mut(at);
            if slot.uses == 0 {
                break;
            }
            slot.uses = 0;
            at = self.slots.newer(at);
        }
        let at = if at == NONE { self.slots.oldest(Queue::Main) } else { at };
        self.slots.hand = at;
        Some(at).filter(|&at| at != NONE)
    }

    /// Up to `most` objects below slot `from` (all: `u32::MAX`), and where to go on. Entries that move meanwhile move down, so
    /// none that stays is passed over; one may come twice.
    pub(super) fn page(&self, from: u32, most: usize, out: &mut Vec<Listed>) -> u32 {
        let mut at = from.min(self.slots.len() as u32);
        while at > 0 && out.len() < most {
            at -= 1;
            let slot = self.slots.get(at);
            if let Content::Object(object) = &slot.content {
                out.push(Listed { object: object.clone(), weight: slot.weight(), hits: slot.hits });
            }
        }
        at
    }

    /// Gives back what an index much too large takes.
    pub(super) fn trim(&mut self) {
        if self.index.capacity() > 4 * self.index.len() + 64 {
            self.index.shrink_to(self.index.len() * 2, |place| spread(place.print));
            self.ghosts.clear();
        }
    }

    fn add(&mut self, hash: Hash, content: Content) -> u32 {
        let print = hash.print();
        let main = self.eviction == Eviction::Sieve || self.ghosts.take(print);
        let at = self.slots.push(Slot::new(hash, content), if main { Queue::Main } else { Queue::Small });
        self.index.insert_unique(spread(print), Place { print, slot: at }, |place| spread(place.print));
        at
    }

    /// Takes a slot out, with a marker its variants. The number of entries.
    fn remove_at(&mut self, at: u32, why: Gone, dropped: &mut Dropped) -> usize {
        let Some(content) = self.take(at) else { return 0 };
        let mut count = 1;
        if let Content::Marker(marker) = &content {
            self.markers -= 1;
            for &hash in &marker.variants {
                if let Some(content) = self.find_hash(hash).and_then(|at| self.take(at)) {
                    dropped.push(content);
                    count += 1;
                }
            }
        }
        dropped.push(content);
        self.stats.gone[why as usize] += count as u64;
        count
    }

    fn take(&mut self, at: u32) -> Option<Content> {
        let print = self.slots.get(at).hash.print();
        if let Ok(place) = self.index.find_entry(spread(print), |place| place.slot == at) {
            place.remove();
        }
        let (slot, moved) = self.slots.take(at);
        if let Some(moved) = moved {
            let last = self.slots.len() as u32;
            if let Some(place) = self.index.find_mut(spread(moved.print()), |place| place.slot == last) {
                place.slot = at;
            }
        }
        slot.map(|slot| slot.content)
    }

    fn find(&self, hash: Hash, primary: &[u8], variant: &[u8]) -> Option<u32> {
        self.find_by(hash, |content| content.is_for(primary, variant))
    }

    /// By hash alone, for entries that the marker knows by it.
    fn find_hash(&self, hash: Hash) -> Option<u32> {
        self.find_by(hash, |_| true)
    }

    fn find_same(&self, key: &Key<'_>, old: &Object) -> Option<u32> {
        self.find_by(key.hash, |content| matches!(content, Content::Object(object) if object.is_same(old)))
    }

    fn find_by(&self, hash: Hash, is: impl Fn(&Content) -> bool) -> Option<u32> {
        let print = hash.print();
        let place = self.index.find(spread(print), |place| {
            place.print == print && {
                let slot = self.slots.get(place.slot);
                slot.hash == hash && is(&slot.content)
            }
        });
        place.map(|place| place.slot)
    }
}
