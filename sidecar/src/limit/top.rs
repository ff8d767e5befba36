//! The keys that limits denied most, by a sketch of bounded size (Metwally, Agrawal, El Abbadi: "Space-Saving", 2005).

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use sha2::{Digest as _, Sha256};

use super::{
    Limit, Which,
    key::{Bytes, KeyPart},
};
use crate::facts::Facts;

/// Keys that are followed at most.
const CAPACITY: usize = 256;
/// Characters of a value that are kept.
const LONGEST: usize = 64;

/// Keys by how often they were denied. One that is followed may have been denied less often than is said, by the count of the one
/// whose place it took, and never more often.
#[derive(Debug)]
pub(super) struct Sketch<T> {
    entries: Vec<Entry<T>>,
    places: HashMap<u64, usize>,
    capacity: usize,
}

/// A key that is followed.
#[derive(Clone, Debug)]
pub(super) struct Entry<T> {
    pub(super) key: u64,
    pub(super) count: u64,
    /// How many of these may be another's.
    pub(super) error: u64,
    pub(super) what: T,
}

impl<T> Sketch<T> {
    pub(super) fn new(capacity: usize) -> Self {
        Self { entries: Vec::new(), places: HashMap::new(), capacity: capacity.max(1) }
    }

    /// Counts a key, and takes it in the place of the one that was counted least if there is no room. `what` is asked once for a key that
    /// is new.
    pub(super) fn add(&mut self, key: u64, what: impl FnOnce() -> T) -> &mut Entry<T> {
        let place = match self.places.get(&key) {
            Some(&place) => place,
            None => self.take_in(Entry { key, count: 0, error: 0, what: what() }),
        };
        let entry = &mut self.entries[place];
        entry.count += 1;
        entry
    }

    /// All that are followed, in no order.
    pub(super) fn entries(&self) -> &[Entry<T>] {
        &self.entries
    }

    fn take_in(&mut self, entry: Entry<T>) -> usize {
        let least = self.entries.iter().enumerate().min_by_key(|(_, entry)| entry.count).map(|(place, _)| place);
        let place = match least.filter(|_| self.entries.len() >= self.capacity) {
            Some(place) => {
                let Entry { key, count, .. } = self.entries[place];
                self.places.remove(&key);
                self.entries[place] = Entry { count, error: count, ..entry };
                place
            }
            None => {
                self.places.insert(entry.key, self.entries.len());
                self.entries.push(entry);
                return self.entries.len() - 1;
            }
        };
        self.places.insert(self.entries[place].key, place);
        place
    }
}

/// What was denied.
#[derive(Clone, Debug)]
pub(super) struct DeniedKey {
    pub(super) limit: Arc<Limit>,
    pub(super) which: Which,
    pub(super) apart: Bytes,
    /// The values of the parts of the key, fit to be shown.
    pub(super) values: Box<[String]>,
}

/// The keys that were denied most.
#[derive(Debug)]
pub(super) struct Top(Mutex<Sketch<DeniedKey>>);

impl Default for Top {
    fn default() -> Self {
        Self(Mutex::new(Sketch::new(CAPACITY)))
    }
}

impl Top {
    /// A limit has denied a request, for what is counted under this key.
    pub(super) fn denied(&self, key: u64, (limit, matched): (&Arc<Limit>, Option<u8>), apart: Bytes, facts: &Facts<'_>) {
        let which = limit.which(facts, matched);
        let mut sketch = self.lock();
        let new = || {
            let values = limit.key.iter().map(|part| shown(part, &part.text(facts, matched))).collect();
            DeniedKey { limit: Arc::clone(limit), which, apart, values }
        };
        let what = &mut sketch.add(key, new).what;
        // A reload may have changed its numbers.
        if !Arc::ptr_eq(&what.limit, limit) {
            (what.limit, what.which) = (Arc::clone(limit), which);
        }
    }

    /// All that are followed.
    pub(super) fn all(&self) -> Vec<Entry<DeniedKey>> {
        self.lock().entries().to_vec()
    }

    fn lock(&self) -> MutexGuard<'_, Sketch<DeniedKey>> {
        // A panic under the lock leaves at worst one wrong count.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A value as it may be shown: short, on one line, and a digest in the place of what may be a secret.
fn shown(part: &KeyPart, value: &str) -> String {
    if part.is_secret() && !value.is_empty() {
        let digest = Sha256::digest(value.as_bytes());
        return format!("sha256:{:02x}{:02x}{:02x}{:02x}", digest[0], digest[1], digest[2], digest[3]);
    }
    let mut shown: String = value.chars().take(LONGEST).map(|char| if char.is_control() { '\u{fffd}' } else { char }).collect();
    if value.chars().nth(LONGEST).is_some() {
        shown.pop();
        shown.push('\u{2026}');
    }
    shown
}

#[cfg(test)]
mod tests {
    use crds::policy::rate_limits::{Key, KeySource};

    use super::*;

    fn header(name: &str) -> KeyPart {
        KeyPart::build(&Key { source: KeySource::Header, name: Some(name.to_owned()), cel: None }, &[]).unwrap()
    }

    #[test]
    fn frequent_keys_stay_however_many_others_come() {
        let mut sketch = Sketch::new(8);
        let mut exact: HashMap<u64, u64> = HashMap::new();
        for round in 0..2000_u64 {
            for key in [1, 1, 1, 2, 2, 1000 + round] {
                sketch.add(key, || ());
                *exact.entry(key).or_default() += 1;
            }
        }
        assert_eq!(sketch.entries().len(), 8);
        for key in [1, 2] {
            let entry = sketch.entries().iter().find(|entry| entry.key == key).expect("it is among the most frequent");
            assert!(entry.count >= exact[&key] && entry.count - entry.error <= exact[&key], "{entry:?}");
        }
        let total: u64 = sketch.entries().iter().map(|entry| entry.count).sum();
        assert_eq!(total, 12_000, "nothing is counted twice, and nothing is lost");
    }

    #[test]
    fn key_that_is_followed_is_counted_exactly_while_there_is_room() {
        let mut sketch = Sketch::new(4);
        for key in [7, 8, 7, 9, 7] {
            sketch.add(key, || key);
        }
        let mut all: Vec<_> = sketch.entries().iter().map(|entry| (entry.what, entry.count, entry.error)).collect();
        all.sort_unstable();
        assert_eq!(all, [(7, 3, 0), (8, 1, 0), (9, 1, 0)]);
    }

    #[test]
    fn values_are_short_and_secrets_are_digests() {
        let long = "x".repeat(100);
        for (name, value, expected) in [
            ("x-user", "anna", "anna".to_owned()),
            ("x-user", "", String::new()),
            ("x-user", "a\x1b[31m\nb", "a\u{fffd}[31m\u{fffd}b".to_owned()),
            ("x-user", &long, "x".repeat(63) + "\u{2026}"),
            ("x-user", &long[..64], "x".repeat(64)),
            ("x-api-key", "abc", "sha256:ba7816bf".to_owned()),
            ("authorization", "", String::new()),
        ] {
            assert_eq!(shown(&header(name), value), expected, "{name}: {value}");
        }
    }
}
