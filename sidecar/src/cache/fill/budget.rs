//! The memory of all fills of a pod.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Bytes that all fills hold, and how many they may. Beyond it new misses are fetched one by one, and bodies that come in are
/// only passed on, so the excess is at most one chunk for each fill.
#[derive(Debug)]
pub(crate) struct Budget {
    limit: AtomicU64,
    used: AtomicU64,
}

impl Budget {
    /// Nothing used of `limit` bytes.
    pub(crate) fn new(limit: u64) -> Self {
        Self { limit: AtomicU64::new(limit), used: AtomicU64::new(0) }
    }

    /// Another limit; what is there stays.
    pub(crate) fn set_limit(&self, limit: u64) {
        self.limit.store(limit, Relaxed);
    }

    /// Bytes that fills hold.
    pub(crate) fn used(&self) -> u64 {
        self.used.load(Relaxed)
    }

    pub(super) fn is_spent(&self) -> bool {
        !self.has_room(1)
    }

    pub(super) fn has_room(&self, bytes: u64) -> bool {
        self.used() + bytes <= self.limit.load(Relaxed)
    }

    pub(super) fn take(&self, bytes: u64) {
        self.used.fetch_add(bytes, Relaxed);
    }

    pub(super) fn give_back(&self, bytes: u64) {
        self.used.fetch_sub(bytes, Relaxed);
    }
}
