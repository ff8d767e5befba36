//! What is in a frame, in a few bytes: a Bloom filter in blocks of 32 bytes. A term sets one bit in each of the eight words of one block, so
//! a look-up touches one block. "No" is certain, "may be" is wrong once in a hundred times.

use std::collections::HashSet;

use twox_hash::XxHash3_64;

/// Bytes of a block.
pub(super) const BLOCK: usize = 32;
/// The most blocks of a filter: 2 KiB.
const MAX_BLOCKS: usize = 64;
/// Terms a block is made for: 10 bits for each.
const TERMS_PER_BLOCK: usize = 25;
/// More different terms than that would make the filter say "may be" too often to be worth its bytes.
const MAX_DISTINCT: usize = MAX_BLOCKS * TERMS_PER_BLOCK * 2;
/// Odd numbers without a pattern, one for each word of a block: the digits of the square roots of 2, 3, 5, 7, 11, 13, 17 and 19.
const SALTS: [u32; 8] = [0x6a09_e667, 0xbb67_ae85, 0x3c6e_f373, 0xa54f_f53b, 0x510e_527f, 0x9b05_688d, 0x1f83_d9ab, 0x5be0_cd19];

/// What a record may be found by: a name and a value, such as `route` and `catalogue`.
pub fn term(name: &str, value: &str) -> u64 {
    // Long enough for nearly all, so that nothing is allocated.
    let mut buffer = [0; 256];
    let length = name.len() + 1 + value.len();
    let mut long = Vec::new();
    let text = match buffer.get_mut(..length) {
        Some(text) => text,
        None => {
            long.resize(length, 0);
            &mut long[..]
        }
    };
    text[..name.len()].copy_from_slice(name.as_bytes());
    text[name.len()] = b'=';
    text[name.len() + 1..].copy_from_slice(value.as_bytes());
    XxHash3_64::oneshot(text)
}

/// The terms of the frame that is being gathered.
#[derive(Debug, Default)]
pub(super) struct Terms {
    all: HashSet<u64>,
    /// There were too many.
    full: bool,
}

impl Terms {
    pub(super) fn add(&mut self, terms: &[u64]) {
        self.full |= terms.len() > super::MAX_TERMS;
        if self.full {
            return;
        }
        self.all.extend(terms);
        self.full = self.all.len() > MAX_DISTINCT;
    }

    /// The filter, and it is empty again. Without a block if it can say nothing.
    pub(super) fn take(&mut self) -> Vec<u8> {
        let blocks = match self.full {
            true => 0,
            // A frame without terms has a block, too: it says "no" to all.
            false => self.all.len().div_ceil(TERMS_PER_BLOCK).clamp(1, MAX_BLOCKS),
        };
        let mut filter = vec![0; blocks * BLOCK];
        if blocks > 0 {
            for term in &self.all {
                for (byte, bit) in bits(*term, blocks) {
                    filter[byte] |= bit;
                }
            }
        }
        self.all.clear();
        self.full = false;
        filter
    }
}

/// Whether a term may be in what a filter was made of.
pub(super) fn may_hold(filter: &[u8], term: u64) -> bool {
    let blocks = filter.len() / BLOCK;
    blocks == 0 || bits(term, blocks).all(|(byte, bit)| filter[byte] & bit != 0)
}

/// The bits of a term: which byte, and which bit of it.
fn bits(term: u64, blocks: usize) -> impl Iterator<Item = (usize, u8)> {
    let [high, low] = [(term >> 32), term & 0xffff_ffff];
    let block = usize::try_from((high * blocks as u64) >> 32).unwrap_or_default();
    SALTS.iter().enumerate().map(move |(word, salt)| {
        let bit = (u32::try_from(low).unwrap_or_default().wrapping_mul(*salt) >> 27) as usize;
        (block * BLOCK + word * 4 + bit / 8, 1 << (bit % 8))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filter_never_misses_and_is_seldom_wrong() {
        for count in [1, 25, 26, 400, 1600] {
            let mut terms = Terms::default();
            let all: Vec<u64> = (0..count).map(|number: u64| term("id", &number.to_string())).collect();
            all.chunks(20).for_each(|some| terms.add(some));
            let filter = terms.take();
            assert!(all.iter().all(|term| may_hold(&filter, *term)), "{count}");
            let wrong = (0..10_000).filter(|number| may_hold(&filter, term("other", &number.to_string()))).count();
            assert!(wrong < 300, "{count} terms: {wrong} of 10000");
        }
    }

    #[test]
    fn frame_without_terms_holds_none_and_one_with_too_many_may_hold_all() {
        let mut terms = Terms::default();
        assert!(!may_hold(&terms.take(), 1));
        (0..=MAX_DISTINCT as u64).for_each(|term| terms.add(&[term]));
        assert!(may_hold(&terms.take(), u64::MAX));
        terms.add(&vec![1; super::super::MAX_TERMS + 1]);
        assert!(may_hold(&terms.take(), 2));
        terms.add(&[1]);
        assert!(!may_hold(&terms.take(), 2), "the next frame begins anew");
    }

    #[test]
    fn terms_are_the_same_in_every_version() {
        assert_eq!(term("method", "GET"), XxHash3_64::oneshot(b"method=GET"));
        let long = "v".repeat(300);
        assert_eq!(term("a", &long), XxHash3_64::oneshot(format!("a={long}").as_bytes()));
    }
}
