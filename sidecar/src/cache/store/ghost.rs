//! What S3-FIFO remembers of entries that left on probation: 32 bits of their hash, in order.

use std::collections::VecDeque;

use hashbrown::HashTable;

/// Fingerprints of entries evicted not long ago. About 15 bytes each.
pub(super) struct Ghosts {
    order: VecDeque<u32>,
    known: HashTable<u32>,
}

impl Ghosts {
    pub(super) const fn new() -> Self {
        Self { order: VecDeque::new(), known: HashTable::new() }
    }

    /// Remembers `print` and forgets the oldest beyond `most`.
    pub(super) fn add(&mut self, print: u32, most: usize) {
        if self.known.find(spread(print), |known| *known == print).is_none() {
            self.known.insert_unique(spread(print), print, |known| spread(*known));
            self.order.push_back(print);
        }
        // Two at a time, so that a shard that shrinks catches up without a pause.
        for _ in 0..2 {
            if self.order.len() > most
                && let Some(oldest) = self.order.pop_front()
            {
                self.take(oldest);
            }
        }
    }

    /// Whether `print` was there. It isn't any more; its place in the order stays until it is the oldest.
    pub(super) fn take(&mut self, print: u32) -> bool {
        self.known.find_entry(spread(print), |known| *known == print).is_ok_and(|entry| {
            entry.remove();
            true
        })
    }

    pub(super) fn clear(&mut self) {
        *self = Self::new();
    }
}

/// The table takes its place from the low bits and its tag from the high ones.
pub(super) fn spread(hash: u32) -> u64 {
    u64::from(hash) << 32 | u64::from(hash)
}
