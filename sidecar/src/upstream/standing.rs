//! How upstreams stand: what all workers of the pod count together.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    hash::Hash,
    sync::{Arc, LazyLock, Mutex, PoisonError, Weak},
    time::Instant,
};

use super::{Key, balance::Cluster, breaker::Breaker, retry::Budget};

/// Things of one kind that a worker holds on to. Beyond that those that count nothing are let go, or else the one that was used least
/// recently.
const MAX_HELD: usize = 512;

/// Milliseconds since the process began to count, for atomics.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) struct Millis(pub(crate) u64);

impl Millis {
    /// Those of now.
    pub(crate) fn now() -> Self {
        static START: LazyLock<Instant> = LazyLock::new(Instant::now);
        Self(u64::try_from(START.elapsed().as_millis()).unwrap_or(u64::MAX))
    }
}

/// What counts.
pub(super) trait Counts {
    /// Whether it says no more than a new one would.
    fn is_blank(&self) -> bool;
}

/// A rule by its label, and one upstream.
type Under = (Arc<str>, Key);

/// What the pod counts of its upstreams.
#[derive(Debug, Default)]
pub(crate) struct Standing {
    breakers: Shared<Under, Breaker>,
    budgets: Shared<Arc<str>, Budget>,
    clusters: Shared<Key, Cluster>,
}

/// Values by key, for as long as anybody holds them.
#[derive(Debug)]
struct Shared<K, V>(Mutex<HashMap<K, Weak<V>>>);

impl<K, V> Default for Shared<K, V> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Clone + Eq + Hash, V: Default> Shared<K, V> {
    fn of(&self, key: &K) -> Arc<V> {
        let mut values = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(value) = values.get(key).and_then(Weak::upgrade) {
            return value;
        }
        values.retain(|_, value| value.strong_count() > 0);
        let value = Arc::default();
        values.insert(key.clone(), Arc::downgrade(&value));
        value
    }
}

/// The standing as one worker sees it: each thing is looked up in the shared tables once.
#[derive(Default)]
pub(crate) struct Seen {
    standing: Arc<Standing>,
    breakers: Held<Under, Breaker>,
    budgets: Held<Arc<str>, Budget>,
    clusters: Held<Key, Cluster>,
}

/// Values by key, and for each the number of its last use.
struct Held<K, V> {
    values: RefCell<HashMap<K, (Arc<V>, u64)>>,
    uses: Cell<u64>,
}

impl<K, V> Default for Held<K, V> {
    fn default() -> Self {
        Self { values: RefCell::default(), uses: Cell::default() }
    }
}

impl<K: Clone + Eq + Hash, V: Counts + Default> Held<K, V> {
    fn of(&self, key: K, shared: &Shared<K, V>) -> Arc<V> {
        let this_use = self.uses.get() + 1;
        self.uses.set(this_use);
        let mut values = self.values.borrow_mut();
        if let Some((value, last_use)) = values.get_mut(&key) {
            *last_use = this_use;
            return Arc::clone(value);
        }
        if values.len() >= MAX_HELD {
            make_room(&mut values);
        }
        let value = shared.of(&key);
        values.insert(key, (Arc::clone(&value), this_use));
        value
    }
}

fn make_room<K: Clone + Eq + Hash, V: Counts>(values: &mut HashMap<K, (Arc<V>, u64)>) {
    values.retain(|_, (value, _)| !value.is_blank());
    if values.len() >= MAX_HELD {
        let oldest = values.iter().min_by_key(|(_, (_, last_use))| *last_use).map(|(key, _)| key.clone());
        oldest.map(|key| values.remove(&key));
    }
}

impl Seen {
    pub(crate) fn new(standing: Arc<Standing>) -> Self {
        Self { standing, ..Self::default() }
    }

    /// The breaker of an upstream under a rule.
    pub(crate) fn breaker(&self, rule: &Arc<str>, upstream: &Key) -> Arc<Breaker> {
        self.breakers.of((Arc::clone(rule), upstream.clone()), &self.standing.breakers)
    }

    /// The budget of a rule.
    pub(crate) fn budget(&self, rule: &Arc<str>) -> Arc<Budget> {
        self.budgets.of(Arc::clone(rule), &self.standing.budgets)
    }

    /// The addresses of a name.
    pub(super) fn cluster(&self, name: &Key) -> Arc<Cluster> {
        self.clusters.of(name.clone(), &self.standing.clusters)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

    use super::*;

    #[derive(Default)]
    struct Thing(AtomicBool);

    impl Counts for Thing {
        fn is_blank(&self) -> bool {
            !self.0.load(Relaxed)
        }
    }

    #[test]
    fn what_counts_is_kept_as_long_as_there_is_room_and_then_what_was_used_last() {
        let (held, shared) = (Held::<usize, Thing>::default(), Shared::default());
        let counts = |key| !held.of(key, &shared).is_blank();
        held.of(0, &shared).0.store(true, Relaxed);
        (1..3 * MAX_HELD).for_each(|key| drop(held.of(key, &shared)));
        assert!(counts(0), "those that count nothing have gone");
        (1..MAX_HELD).for_each(|key| held.of(key, &shared).0.store(true, Relaxed));
        assert!(counts(0));
        held.of(MAX_HELD, &shared);
        assert!(!counts(1) && counts(0) && (2..MAX_HELD).filter(|key| counts(*key)).count() >= MAX_HELD - 3);
    }
}
