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

type Places = [Option<(Moment, Instant)>; PLACES];

impl Changes {
    pub(super) fn new() -> Self {
        let newest = std::array::from_fn(|_| Mutex::new([None; PLACES]));
        Self { count: AtomicU64::new(0), newest, random: RandomState::new() }
    }

    /// What a fetch that begins now carries.
    pub(super) fn now(&self) -> Moment {
        Moment(self.count.load(Ordering::Acquire))
    }

    /// When a target was changed, or another one of its place.
    pub(super) fn newest(&self, target: &str) -> Moment {
        let (places, place) = self.place(target);
        places[place].map_or(Moment::default(), |(newest, _)| newest)
    }

    /// Whether it was changed so short a time ago that what all pods share may be from before.
    pub(super) fn is_recent(&self, target: &str, now: Instant) -> bool {
        let (places, place) = self.place(target);
        places[place].is_some_and(|(_, at)| now.saturating_duration_since(at) < SOON)
    }

    /// Notes a change of a target, and takes out what is stored of it. A fetch that began before is not stored later.
    pub(super) fn change<T>(&self, target: &str, remove: impl FnOnce() -> T) -> T {
        let (mut places, place) = self.place(target);
        places[place] = Some((Moment(self.count.fetch_add(1, Ordering::AcqRel) + 1), Instant::now()));
        remove()
    }

    /// Stores what was fetched of a target since a moment, unless it was changed meanwhile.
    pub(super) fn unless_changed<T>(&self, target: &str, since: Moment, store: impl FnOnce() -> T) -> Option<T> {
        // Held meanwhile, so that no change comes between.
        let (places, place) = self.place(target);
        places[place].is_none_or(|(newest, _)| newest <= since).then(store)
    }

    fn place(&self, target: &str) -> (MutexGuard<'_, Places>, usize) {
        let hash = self.random.hash_one(target);
        let shard = (hash >> 32) as usize % SHARDS;
        (self.newest[shard].lock().unwrap_or_else(PoisonError::into_inner), hash as usize % PLACES)
    }
}

impl Moment {
    /// Behind a key, so that what was asked for before a change of it and after are two.
    pub(super) fn bytes(self) -> [u8; 8] {
        self.0.to_ne_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stores(changes: &Changes, target: &str, since: Moment) -> bool {
        changes.unless_changed(target, since, || {}).is_some()
    }

    #[test]
    fn what_began_before_a_change_is_not_stored_after_it() {
        let changes = Changes::new();
        let before = changes.now();
        assert!(stores(&changes, "a.example/a", before));
        assert_eq!(changes.change("a.example/a", || 7), 7);
        assert!(!stores(&changes, "a.example/a", before));
        assert!(stores(&changes, "a.example/a", changes.now()));
        let others = (0..100).filter(|number| stores(&changes, &format!("a.example/{number}"), before)).count();
        assert!(others >= 99, "a place is shared by few: {others}");
    }

    #[test]
    fn what_pods_share_is_not_believed_for_a_moment() {
        let changes = Changes::new();
        let before = Instant::now();
        assert!(!changes.is_recent("/a", before));
        changes.change("/a", || {});
        let after = Instant::now();
        assert!(changes.is_recent("/a", before) && changes.is_recent("/a", after));
        assert!(!changes.is_recent("/a", after + SOON));
    }

    #[test]
    fn a_million_changes_take_no_more_room_than_one() {
        let changes = Changes::new();
        let before = changes.now();
        for number in 0..1_000_000 {
            changes.change(&format!("/{number}"), || {});
        }
        assert!(!stores(&changes, "/0", before));
        assert!(stores(&changes, "/0", changes.now()));
        assert!(size_of::<Changes>() <= 128 << 10);
    }
}
