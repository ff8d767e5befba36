//! Names of what is purged, as 64 bits: objects keep eight bytes a tag, and a lookup hashes no string but the URL, once.
//!
//! A name is a polynomial over the words of a text, modulo the prime 2^61 - 1, at a random point. Two texts of n words share one
//! with a chance of at most n / 2^60, whoever chose them, as the point is secret; then one more object is purged, never
//! one less. Word by word it gives the names of all prefixes of a text on the way.

use std::hash::{BuildHasher, Hasher, RandomState};

const PRIME: u64 = (1 << 61) - 1;
/// Bytes of a word: with their number in the eighth, it is below the prime.
const WORD: usize = 7;

/// A kind of value and its value.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(crate) struct Name(u64);

/// What kind of value a name names.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Kind {
    Url,
    Prefix,
    Tag,
    Policy,
}

/// The secret of an index: its names mean nothing to another's.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Naming {
    point: u64,
}

/// A text, read up to some byte.
#[derive(Debug)]
pub(super) struct Walk<'a> {
    text: &'a [u8],
    at: usize,
    sum: u64,
    point: u64,
}

impl Name {
    /// As it stands beside an object.
    pub(crate) fn bytes(self) -> [u8; 8] {
        self.0.to_le_bytes()
    }

    /// From what [`Name::bytes`] made.
    pub(crate) fn from_bytes(bytes: [u8; 8]) -> Self {
        Self(u64::from_le_bytes(bytes))
    }
}

impl Naming {
    /// A new secret.
    pub(crate) fn random() -> Self {
        // Seeded by the operating system. Small points would let short texts show in the result.
        let random = RandomState::new().hash_one(0_u8);
        Self { point: (random % (PRIME - (1 << 32))) + (1 << 32) }
    }

    /// The name of a tag.
    pub(crate) fn tag(&self, tag: &str) -> Name {
        self.name(Kind::Tag, tag)
    }

    /// The name of a policy.
    pub(crate) fn policy(&self, policy: &str) -> Name {
        self.name(Kind::Policy, policy)
    }

    pub(super) fn name(&self, kind: Kind, text: &str) -> Name {
        self.walk(text).name(kind, text.len())
    }

    pub(super) fn walk<'a>(&self, text: &'a str) -> Walk<'a> {
        Walk { text: text.as_bytes(), at: 0, sum: 1, point: self.point }
    }
}

impl Walk<'_> {
    /// The name of the first `length` bytes. Lengths must not fall from call to call, nor exceed the text.
    pub(super) fn name(&mut self, kind: Kind, length: usize) -> Name {
        while self.at + WORD <= length {
            self.sum = self.with(&self.text[self.at..self.at + WORD]);
            self.at += WORD;
        }
        let rest = &self.text[self.at..length];
        let sum = if rest.is_empty() { self.sum } else { self.with(rest) };
        Name(sum << 3 | kind as u64)
    }

    fn with(&self, bytes: &[u8]) -> u64 {
        let mut word = [0; 8];
        word[..bytes.len()].copy_from_slice(bytes);
        word[WORD] = bytes.len() as u8;
        let product = u128::from(self.sum) * u128::from(self.point) + u128::from(u64::from_le_bytes(word));
        // 2^61 is 1 modulo the prime, so the high part is added to the low.
        let folded = (product as u64 & PRIME) + (product >> 61) as u64;
        if folded >= PRIME { folded - PRIME } else { folded }
    }
}

/// Names are random already; a table wants all of its bits to be.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Spread(u64);

impl Hasher for Spread {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_u64(&mut self, name: u64) {
        let product = u128::from(self.0 ^ name) * 0x9e37_79b9_7f4a_7c15;
        self.0 = product as u64 ^ (product >> 64) as u64;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn a_walk_gives_the_name_of_every_prefix() {
        let naming = Naming::random();
        let text = "shop.example/products/42?colour=blue";
        let mut walk = naming.walk(text);
        for length in 0..=text.len() {
            assert_eq!(walk.name(Kind::Prefix, length), naming.name(Kind::Prefix, &text[..length]), "{length}");
        }
    }

    #[test]
    fn names_differ_by_kind_length_and_secret() {
        let naming = Naming::random();
        let mut names = HashSet::new();
        for text in ["", "a", "\0", "a\0", "aaaaaaa", "aaaaaaa\0", "aaaaaaaa", "baaaaaa"] {
            for kind in [Kind::Url, Kind::Prefix, Kind::Tag, Kind::Policy] {
                assert!(names.insert(naming.name(kind, text)), "{text:?} {kind:?}");
            }
        }
        assert_ne!(naming.tag("a"), Naming::random().tag("a"));
    }

    #[test]
    fn products_are_reduced_as_the_prime_says() {
        for sum in [1, 2, PRIME - 1, PRIME / 2] {
            for point in [1 << 32, PRIME - 1, 0x0123_4567_89ab_cdef & PRIME] {
                let walk = Walk { text: b"", at: 0, sum, point };
                let word = u64::from_le_bytes([255, 255, 255, 255, 255, 255, 255, 7]);
                let expected = (u128::from(sum) * u128::from(point) + u128::from(word)) % u128::from(PRIME);
                assert_eq!(u128::from(walk.with(&[255; 7])), expected);
            }
        }
    }
}
