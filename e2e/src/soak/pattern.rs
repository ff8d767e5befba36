//! Bytes that belong to one exchange and one place in it: those of another are told apart.

const WORD: usize = 8;

/// The bytes of exchange `id` from a place on.
pub(super) fn bytes(id: u64, from: usize, len: usize) -> Vec<u8> {
    let (first, last) = (from / WORD, (from + len).div_ceil(WORD));
    let mut bytes = Vec::with_capacity((last - first) * WORD);
    for index in first..last {
        bytes.extend_from_slice(&word(id, index as u64));
    }
    bytes.drain(..from % WORD);
    bytes.truncate(len);
    bytes
}

fn word(id: u64, index: u64) -> [u8; WORD] {
    let mixed = id.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ index.wrapping_add(1).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 29)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (mixed ^ (mixed >> 32)).to_le_bytes()
}

/// Holds bytes that come against those that should.
#[derive(Debug)]
pub(super) struct Check {
    id: u64,
    /// How many came.
    pub(super) len: usize,
    /// Whether all of them were right.
    pub(super) good: bool,
}

impl Check {
    pub(super) fn new(id: u64) -> Self {
        Self { id, len: 0, good: true }
    }

    pub(super) fn feed(&mut self, came: &[u8]) {
        self.good &= came == bytes(self.id, self.len, came.len());
        self.len += came.len();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_those_of_the_whole() {
        let whole = bytes(7, 0, 100);
        for (from, len) in [(0, 100), (0, 8), (3, 20), (8, 1), (99, 1), (50, 0)] {
            assert_eq!(bytes(7, from, len), whole[from..from + len], "{from}, {len}");
        }
    }

    #[test]
    fn bytes_of_another_exchange_or_place_are_seen() {
        let fed = |pieces: &[&[u8]]| {
            let mut check = Check::new(7);
            pieces.iter().for_each(|piece| check.feed(piece));
            (check.len, check.good)
        };
        let (mine, other) = (bytes(7, 0, 64), bytes(8, 0, 64));
        assert_eq!(fed(&[&mine[..10], &mine[10..]]), (64, true));
        assert_eq!(fed(&[&mine[..10], &other[10..]]), (64, false));
        assert_eq!(fed(&[&mine[..16], &mine[24..]]), (56, false));
    }
}
