//! How upstreams stand: what all workers of the pod count together.

use std::{
    cell::RefCell,
    collections::HashMap,
    hash::Hash,
    sync::{Arc, LazyLock, Mutex, PoisonError, Weak},
    time::Instant,
};

use super::{Key, balance::Cluster, breaker::Breaker, retry::Budget};

/// Things of one kind that a worker holds on to; those that nobody uses are let go beyond that.
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

struct Held<K, V>(RefCell<HashMap<K, Arc<V>>>);

impl<K, V> Default for Held<K, V> {
    fn default() -> Self {
        Self(RefCell::default())
    }
}

impl<K: Clone + Eq + Hash, V: Default> Held<K, V> {
    fn of(&self, key: K, shared: &Shared<K, V>) -> Arc<V> {
        let mut held = self.0.borrow_mut();
        if let Some(value) = held.get(&key) {
            return Arc::clone(value);
        }
        if held.len() >= MAX_HELD {
            held.clear();
        }
        let value = shared.of(&key);
        held.insert(key, Arc::clone(&value));
        value
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
