//! Objects of one kind by namespace and name.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    ops::Bound,
};

use crds::plan::ObjectRef;

/// Objects of one kind by namespace and name; those of no namespace have an empty one.
#[derive(Debug)]
pub struct Objects<T>(BTreeMap<ObjectRef, T>);

impl<T> Default for Objects<T> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<T> Objects<T> {
    /// Adds an object or replaces it; returns what was there and what is.
    pub fn apply(&mut self, key: ObjectRef, object: T) -> (Option<T>, &T) {
        match self.0.entry(key) {
            Entry::Occupied(mut entry) => {
                let old = entry.insert(object);
                (Some(old), entry.into_mut())
            }
            Entry::Vacant(entry) => (None, entry.insert(object)),
        }
    }

    /// Removes an object and returns it.
    pub fn delete(&mut self, key: &ObjectRef) -> Option<T> {
        self.0.remove(key)
    }

    /// Replaces everything; returns what was there and what is, key by key.
    pub fn reset(&mut self, objects: Vec<(ObjectRef, T)>) -> Vec<(ObjectRef, Option<T>, Option<&T>)> {
        let mut old = std::mem::replace(&mut self.0, objects.into_iter().collect());
        let mut all: Vec<_> = self.0.iter().map(|(key, new)| (key.clone(), old.remove(key), Some(new))).collect();
        all.extend(old.into_iter().map(|(key, gone)| (key, Some(gone), None)));
        all
    }

    /// The object of this name.
    pub fn get(&self, key: &ObjectRef) -> Option<&T> {
        self.0.get(key)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// All of them with their keys, in the order of namespace and name.
    pub fn iter(&self) -> impl Iterator<Item = (&ObjectRef, &T)> {
        self.0.iter()
    }

    /// All keys.
    pub fn keys(&self) -> impl Iterator<Item = &ObjectRef> {
        self.0.keys()
    }

    /// All objects.
    pub fn values(&self) -> impl Iterator<Item = &T> {
        self.0.values()
    }

    /// Those of one namespace.
    pub fn in_namespace<'a>(&'a self, namespace: &'a str) -> impl Iterator<Item = (&'a ObjectRef, &'a T)> {
        let first = ObjectRef::new(namespace, "");
        self.0.range((Bound::Included(first), Bound::Unbounded)).take_while(move |(key, _)| key.namespace == namespace)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(namespace: &str, name: &str) -> ObjectRef {
        ObjectRef::new(namespace, name)
    }

    #[test]
    fn namespace_view_ends_with_the_namespace() {
        let mut objects = Objects::default();
        for (namespace, name) in [("a", "1"), ("b", "1"), ("b", "2"), ("b-c", "1"), ("c", "1")] {
            objects.apply(key(namespace, name), ());
        }
        let names: Vec<_> = objects.in_namespace("b").map(|(key, ())| key.to_string()).collect();
        assert_eq!(names, ["b/1", "b/2"]);
    }

    #[test]
    fn reset_tells_what_came_stayed_and_went() {
        let mut objects = Objects::default();
        objects.apply(key("a", "stays"), 1);
        objects.apply(key("a", "goes"), 2);
        let mut pairs: Vec<_> = objects
            .reset(vec![(key("a", "stays"), 3), (key("a", "comes"), 4)])
            .into_iter()
            .map(|(_, old, new)| (old, new.copied()))
            .collect();
        pairs.sort();
        assert_eq!(pairs, [(None, Some(4)), (Some(1), Some(3)), (Some(2), None)]);
    }
}
