//! Names of fields, as rules compare them.

use std::collections::HashMap;

use crate::percent;

/// The longest name of a rule.
pub(crate) const LONGEST: usize = 64;

/// A name without case, `-` and `_`. None if it has more than [`LONGEST`] bytes left.
#[derive(Clone, Copy)]
pub(crate) struct Folded {
    bytes: [u8; LONGEST],
    len: usize,
}

impl Folded {
    pub(crate) fn of(name: &[u8]) -> Option<Self> {
        let mut folded = Self { bytes: [0; LONGEST], len: 0 };
        for byte in name.iter().filter(|byte| !matches!(byte, b'-' | b'_')) {
            *folded.bytes.get_mut(folded.len)? = byte.to_ascii_lowercase();
            folded.len += 1;
        }
        Some(folded)
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// Rules by the names that they are for.
#[derive(Clone, Default)]
pub(crate) struct Names {
    any: Option<usize>,
    rules: HashMap<Box<[u8]>, usize>,
    /// The lengths of the names, each a bit: most that are looked for have another.
    lengths: u128,
}

impl Names {
    /// The first rule for a name stays. False if the name is empty or too long.
    pub(crate) fn insert(&mut self, name: &str, rule: usize) -> bool {
        if name == "*" {
            self.any.get_or_insert(rule);
            return true;
        }
        let Some(folded) = Folded::of(name.as_bytes()).filter(|folded| folded.len > 0) else { return false };
        self.lengths |= 1 << folded.len;
        self.rules.entry(folded.as_bytes().into()).or_insert(rule);
        true
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.any.is_none() && self.rules.is_empty()
    }

    /// The first rule that finds a name, as a whole or by its last part.
    pub(crate) fn find(&self, name: &[u8]) -> Option<usize> {
        let whole = self.exact(name);
        let mut parts = name.rsplit(|byte| matches!(byte, b'[' | b']' | b'.')).filter(|part| !part.is_empty());
        let last = parts.next().filter(|last| last.len() < name.len()).and_then(|last| self.exact(last));
        first(first(whole, last), self.any)
    }

    /// The same for a name as it stands in a URL or a form.
    pub(crate) fn find_encoded(&self, name: &[u8]) -> Option<usize> {
        if self.is_empty() {
            return None;
        }
        self.find(percent::decode_all(name).trim_ascii())
    }

    fn exact(&self, name: &[u8]) -> Option<usize> {
        let folded = Folded::of(name)?;
        if self.lengths >> folded.len & 1 == 0 {
            return None;
        }
        self.rules.get(folded.as_bytes()).copied()
    }
}

/// The one that stands first in the rules.
pub(crate) fn first(a: Option<usize>, b: Option<usize>) -> Option<usize> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_in_every_spelling() {
        let mut names = Names::default();
        assert!(names.insert("Access_Token", 3));
        for spelling in ["access_token", "ACCESS-TOKEN", "accessToken", "oauth[access_token]", "a.accessToken", "access_token[]"]
        {
            assert_eq!(names.find(spelling.as_bytes()), Some(3), "{spelling}");
        }
        for encoded in ["access%5Ftoken", "%61ccess_token", "access%255ftoken", "%2561ccess%5Ftoken", "+access_token"] {
            assert_eq!(names.find_encoded(encoded.as_bytes()), Some(3), "{encoded}");
        }
        for other in ["access_tokens", "access", "token", "", "access_token.kind"] {
            assert_eq!(names.find(other.as_bytes()), None, "{other}");
        }
    }

    #[test]
    fn the_first_rule_decides() {
        let mut names = Names::default();
        names.insert("b", 1);
        names.insert("*", 2);
        names.insert("b", 3);
        names.insert("c", 4);
        assert_eq!(names.find(b"b"), Some(1));
        assert_eq!(names.find(b"c"), Some(2));
    }

    #[test]
    fn names_have_bounds() {
        let mut names = Names::default();
        assert!(!names.insert("", 0) && !names.insert("_", 0) && !names.insert(&"a".repeat(65), 0));
        assert!(names.insert(&"a".repeat(64), 0));
        assert_eq!(names.find(&[b'a'; 65]), None);
    }
}
