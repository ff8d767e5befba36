//! What stands in the place of a secret.

use std::fmt;

use aws_lc_rs::hmac;

use crate::Action;

/// What stands in the place of what is masked. It needs no encoding in any place: URLs, cookies, headers, JSON.
pub const MASK: &str = "***";

/// What pseudonyms begin with.
const PREFIX: &[u8] = b"p-";

/// Bytes of the MAC that a pseudonym keeps: two values share one with a chance of 2^-96.
const KEPT: usize = 12;

/// The key of pseudonyms. They are the same for the same value under the same key, so a capture that is to be deleted for good, or not to be
/// joined with others, has a key of its own.
#[derive(Clone)]
pub struct Key(hmac::Key);

impl Key {
    /// A key of random bytes.
    pub fn new(bytes: &[u8; 32]) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, bytes))
    }

    /// What stands in the place of `value`. Letters only, so that no detector takes it for something else.
    fn pseudonym(&self, value: &[u8], out: &mut Vec<u8>) {
        let tag = hmac::sign(&self.0, value);
        out.extend_from_slice(PREFIX);
        out.extend(tag.as_ref()[..KEPT].iter().flat_map(|byte| [b'a' + (byte >> 4), b'a' + (byte & 15)]));
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key")
    }
}

/// Writes what an action leaves of a value.
pub(crate) fn replace(action: Action, key: &Key, value: &[u8], out: &mut Vec<u8>) {
    match action {
        Action::Drop => {}
        Action::Mask => out.extend_from_slice(MASK.as_bytes()),
        Action::Pseudonym => key.pseudonym(value, out),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pseudonym(key: u8, value: &str) -> String {
        let mut out = Vec::new();
        replace(Action::Pseudonym, &Key::new(&[key; 32]), value.as_bytes(), &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_pseudonym_is_stable_under_a_key_and_another_under_another() {
        assert_eq!(pseudonym(1, "a"), pseudonym(1, "a"));
        assert_ne!(pseudonym(1, "a"), pseudonym(1, "b"));
        assert_ne!(pseudonym(1, "a"), pseudonym(2, "a"));
        assert_eq!(pseudonym(1, "").len(), pseudonym(1, &"long".repeat(99)).len());
    }

    #[test]
    fn a_pseudonym_is_the_beginning_of_an_hmac() {
        // RFC 4231, test case 2 has a key of four bytes; one padded with zeros to 32 has the same MAC.
        let mut key = [0; 32];
        key[..4].copy_from_slice(b"Jefe");
        let mut out = Vec::new();
        replace(Action::Pseudonym, &Key::new(&key), b"what do ya want for nothing?", &mut out);
        assert_eq!(out, b"p-flnmmbeglpgahfeogkaececg");
    }

    #[test]
    fn a_key_does_not_show() {
        assert_eq!(format!("{:?}", Key::new(&[65; 32])), "Key");
    }
}
