//! What lies behind memory: the disk of the pod, and what pods share in Redis.

mod metrics;

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use arc_swap::ArcSwapOption;

pub(crate) use self::metrics::Tally;
use super::{
    disk::Disk,
    record::Answer,
    semantics::clock::Now,
    store::Vary,
    tier::{Lease, Tier},
};

/// The tiers that there are. They come and go with the configuration.
#[derive(Debug, Default)]
pub(super) struct Behind {
    disk: ArcSwapOption<Disk>,
    shared: ArcSwapOption<Tier>,
    /// Whether nothing is kept on disk any more, whatever the configuration says.
    closed: AtomicBool,
}

impl Behind {
    /// What is kept on disk, if anything is.
    pub(super) fn disk(&self) -> Option<Arc<Disk>> {
        self.disk.load_full()
    }

    /// What pods share, if they do.
    pub(super) fn shared(&self) -> Option<Arc<Tier>> {
        self.shared.load_full()
    }

    pub(super) fn set_disk(&self, disk: impl FnOnce() -> Option<Arc<Disk>>) {
        if !self.closed.load(Ordering::Acquire) {
            // The one before is let go first, for it has the folder.
            self.disk.store(None);
            self.disk.store(disk());
        }
    }

    /// Leaves the folder to another process.
    pub(super) fn close_disk(&self) {
        self.closed.store(true, Ordering::Release);
        self.disk.store(None);
    }

    pub(super) fn set_shared(&self, tier: Option<Arc<Tier>>) {
        self.shared.store(tier);
    }

    /// Whether there is a tier at all.
    pub(super) fn is_there(&self) -> bool {
        self.disk.load().is_some() || self.shared.load().is_some()
    }

    /// Stores an answer, some time soon, wherever it fits; with the lease under which it was fetched.
    pub(super) fn put(&self, answer: Answer, vary: Option<Vary>, now: Now, lease: Option<Lease>) {
        if let Some(disk) = self.disk() {
            disk.put(answer.clone(), vary.clone(), now);
        }
        if let Some(tier) = self.shared() {
            tier.put(answer, vary, now, lease);
        }
    }

    /// Takes out what a primary key leads to, with its variants, some time soon.
    pub(super) fn remove(&self, primary: &[u8]) {
        if let Some(disk) = self.disk() {
            disk.remove(primary);
        }
        if let Some(tier) = self.shared() {
            tier.remove(primary);
        }
    }
}
