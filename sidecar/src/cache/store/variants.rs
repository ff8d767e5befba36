//! Variants of one primary key.
//!
//! A primary key leads to an object or, when the origin's answers have `Vary`, to a marker that holds the names of the fields.
//! Variants are entries of their own under primary key and normalised values, in the shard of the primary key. The marker
//! knows its variants, oldest first, so there are at most so many as configured, and none outlives its marker.

#[cfg(test)]
use std::borrow::Cow;
use std::collections::VecDeque;

use bytes::Bytes;

use super::Hash;
use super::object::rounded;

/// The field names of a stored `Vary`: in lower case, sorted, none twice, so that two orders of one list are the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Vary(Bytes);

impl Vary {
    /// A list of names. `None` when there are none, or they are more than 4 KiB.
    pub(crate) fn new<'a>(names: impl IntoIterator<Item = &'a str>) -> Option<Self> {
        let mut names: Vec<String> = names.into_iter().map(|name| name.trim().to_ascii_lowercase()).collect();
        names.retain(|name| !name.is_empty());
        names.sort_unstable();
        names.dedup();
        let joined = names.join(",");
        (!joined.is_empty() && joined.len() <= 4096).then(|| Self(joined.into_bytes().into_boxed_slice().into()))
    }

    /// The names, in lower case and sorted.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        std::str::from_utf8(&self.0).unwrap_or_default().split(',')
    }

    /// The variant key of a request: for each name what `value` says of it (normalised; `None`: the request hasn't the field).
    /// Never empty, and two lists of values never give the same bytes.
    #[cfg(test)]
    pub(crate) fn key<'v>(&self, mut value: impl FnMut(&str) -> Option<Cow<'v, [u8]>>) -> Vec<u8> {
        let mut key = Vec::with_capacity(64);
        for name in self.names() {
            let value = value(name);
            key.extend_from_slice(&value.as_ref().map_or(u32::MAX, |value| value.len() as u32).to_le_bytes());
            key.extend_from_slice(value.as_deref().unwrap_or_default());
        }
        key
    }
}

/// The entry of a primary key with variants.
pub(super) struct Marker {
    primary: Box<[u8]>,
    pub(super) vary: Vary,
    /// Hashes of the variants, oldest first; some may have been evicted since.
    pub(super) variants: VecDeque<Hash>,
}

impl Marker {
    pub(super) fn new(primary: &[u8], vary: Vary) -> Self {
        Self { primary: primary.into(), vary, variants: VecDeque::new() }
    }

    pub(super) fn primary(&self) -> &[u8] {
        &self.primary
    }

    pub(super) fn size(&self) -> u64 {
        let order = self.variants.capacity() * size_of::<Hash>();
        rounded(size_of::<Self>()) + rounded(self.primary.len()) + rounded(self.vary.0.len()) + 32 + rounded(order)
    }
}
