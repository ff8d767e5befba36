//! Targets that requests have changed, as far as fetches that are under way must know: what began before a change may be from
//! before it, so it is neither stored after it nor given to who comes after it.

use std::{
    hash::{BuildHasher, RandomState},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use super::key;

const SHARDS: usize = 16;
const PLACES: usize = 256;

/// For how long what other pods may find is not believed after a change: it is taken out some time soon.
const SOON: Duration = Duration::from_secs(5);

/// A moment among the changes of a pod; larger for later ones.
#[derive(Clone, Copy, Debug, Default, Eq, Ord, PartialEq, PartialOrd)]
pub(super) struct Moment(u64);

/// The newest changes. Memory is bounded as targets share places: one fetch too many is not stored then, and never one too few.
pub(super) struct Changes {
    /// Changes so far.
    count: AtomicU64,
    /// By hash of the target, when one of that place was changed.
    newest: [Mutex<Places>; SHARDS],
    random: RandomState,
}

/// A target among the changes of a pod.
#[derive(Clone, Copy, Debug)]
pub(super) struct Spot(u64);

type Places = [Option<(Moment, Instant)>; PLACES];

impl Moment {
    /// As a number that grows.
    pub(super) fn order(self) -> u64 {
        self.0
    }
}

impl Changes {
    pub(super) fn new() -> Self {
        let newest = std::array::from_fn(|_| Mutex::new([None; PLACES]));
        Self { count: AtomicU64::new(0), newest, random: RandomState::new() }
    }

    /// What a fetch that begins now carries.
    pub(super) fn now(&self) -> Moment {
        Moment(self.count.load(Ordering::Acquire))
    }

    /// The target that a key has: whatever counts beside it.
    pub(super) fn spot(&self, key: &[u8]) -> Spot {
        Spot(self.random.hash_one(key::target(key)))
    }

    /// When a target was changed, or another one of its place.
    pub(super) fn newest(&self, spot: Spot) -> Moment {
        let (places, place) = self.place(spot);
        places[place].map_or(Moment::default(), |(newest, _)| newest)
    }

    /// Whether it was changed so short a time ago that what all pods share may be from before.
    pub(super) fn is_recent(&self, spot: Spot, now: Instant) -> bool {
        let (places, place) = self.place(spot);
        places[place].is_some_and(|(_, at)| now.saturating_duration_since(at) < SOON)
    }

    /// Notes a change of a target, and takes out what is stored of it. A fetch that began before is not stored later.
    pub(super) fn change<T>(&self, spot: Spot, remove: impl FnOnce() -> T) -> T {
        let (mut places, place) = self.place(spot);
        places[place] = Some((self.next(), Instant::now()));
        remove()
    }

    /// Stores what was fetched of a target since a moment, unless it was changed meanwhile.
    pub(super) fn unless_changed<T>(&self, spot: Spot, since: Moment, store: impl FnOnce() -> T) -> Option<T> {
        // Held meanwhile, so that no change comes between.
        let (places, place) = self.place(spot);
        places[place].is_none_or(|(newest, _)| newest <= since).then(store)
    }

    /// The same. What is stored may be a change itself, if it says so, for it takes out what is older: that is then neither stored from
    /// elsewhere nor by fetches that began before.
    pub(super) fn changed_unless_changed(&self, spot: Spot, since: Moment, store: impl FnOnce() -> bool) {
        let (mut places, place) = self.place(spot);
        if places[place].is_none_or(|(newest, _)| newest <= since) && store() {
            places[place] = Some((self.next(), Instant::now()));
        }
    }

    fn next(&self) -> Moment {
        Moment(self.count.fetch_add(1, Ordering::AcqRel) + 1)
    }

    fn place(&self, Spot(hash): Spot) -> (MutexGuard<'_, Places>, usize) {
        let shard = (hash >> 32) as usize % SHARDS;
        (self.newest[shard].lock().unwrap_or_else(PoisonError::into_inner), hash as usize % PLACES)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of a key that is nothing but a path.
    fn spot(changes: &Changes, path: &str) -> Spot {
        let mut key = vec![0; 9];
        key.extend((path.len() as u32).to_be_bytes());
        key.extend(path.as_bytes());
        changes.spot(&key)
    }

    fn stores(changes: &Changes, path: &str, since: Moment) -> bool {
        changes.unless_changed(spot(changes, path), since, || {}).is_some()
    }

    #[test]
    fn what_began_before_a_change_is_not_stored_after_it() {
        let changes = Changes::new();
        let before = changes.now();
        assert!(stores(&changes, "/a", before));
        assert_eq!(changes.change(spot(&changes, "/a"), || 7), 7);
        assert!(!stores(&changes, "/a", before));
        assert!(stores(&changes, "/a", changes.now()));
        let others = (0..100).filter(|number| stores(&changes, &format!("/{number}"), before)).count();
        assert!(others >= 99, "a place is shared by few: {others}");
    }

    #[test]
    fn what_is_stored_may_be_a_change() {
        let changes = Changes::new();
        let (before, spot) = (changes.now(), spot(&changes, "/a"));
        changes.changed_unless_changed(spot, before, || false);
        assert!(stores(&changes, "/a", before) && !changes.is_recent(spot, Instant::now()));
        changes.changed_unless_changed(spot, before, || true);
        assert!(!stores(&changes, "/a", before) && changes.is_recent(spot, Instant::now()));
        let stored = std::cell::Cell::new(false);
        let store = || !stored.replace(true);
        changes.changed_unless_changed(spot, before, store);
        assert!(!stored.get(), "it began before");
        assert!(stores(&changes, "/a", changes.now()));
    }

    #[test]
    fn what_pods_share_is_not_believed_for_a_moment() {
        let changes = Changes::new();
        let before = Instant::now();
        let spot = spot(&changes, "/a");
        assert!(!changes.is_recent(spot, before));
        changes.change(spot, || {});
        let after = Instant::now();
        assert!(changes.is_recent(spot, before) && changes.is_recent(spot, after));
        assert!(!changes.is_recent(spot, after + SOON));
    }

    #[test]
    fn a_million_changes_take_no_more_room_than_one() {
        let changes = Changes::new();
        let before = changes.now();
        for number in 0..1_000_000 {
            changes.change(spot(&changes, &format!("/{number}")), || {});
        }
        assert!(!stores(&changes, "/0", before));
        assert!(stores(&changes, "/0", changes.now()));
        assert!(size_of::<Changes>() <= 128 << 10);
    }
}
