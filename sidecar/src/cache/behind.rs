//! What lies behind memory: the disk of the pod, and what pods share in Redis.

mod metrics;

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use arc_swap::ArcSwapOption;
use tokio_util::sync::CancellationToken;

pub(crate) use self::metrics::Tally;
use super::{
    disk::{self, Disk},
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
    folder: Mutex<Folder>,
}

/// What becomes of the folder on disk. Held while it is told of a change, so that none is lost between two of them.
#[derive(Debug, Default)]
struct Folder {
    heard: Heard,
    /// Nothing is kept on disk any more, whatever the configuration says.
    closed: bool,
    /// The last one, until it is free.
    leaving: Option<CancellationToken>,
}

/// Which folder knows what requests have changed: who heard of the newest change has heard of all since it was opened.
#[derive(Debug, Default)]
enum Heard {
    /// Nothing was changed by this process.
    #[default]
    NoChange,
    Folder(PathBuf),
    /// None was open.
    Nobody,
}

impl Heard {
    fn all_at(&self, settings: &disk::Settings) -> bool {
        match self {
            Self::NoChange => true,
            Self::Folder(dir) => dir == settings.dir(),
            Self::Nobody => false,
        }
    }
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

    /// Keeps answers as these settings say, or none. `start` is told whether what the folder holds is to be believed: what was changed
    /// while it was not open may be there still.
    pub(super) fn set_disk(&self, settings: Option<disk::Settings>, start: impl FnOnce(disk::Settings, bool) -> Arc<Disk>) {
        let folder = self.folder();
        if folder.closed {
            return;
        }
        let disk = settings.map(|settings| {
            let believed = folder.heard.all_at(&settings);
            start(settings, believed)
        });
        // The one before is let go then: if it has the same folder, this one waits for it.
        self.disk.store(disk);
    }

    /// Leaves the folder to another process.
    pub(super) fn close_disk(&self) {
        let mut folder = self.folder();
        folder.closed = true;
        if let Some(disk) = self.disk.swap(None) {
            folder.leaving = Some(disk.ended());
        }
    }

    /// The same, and waits until it is free.
    pub(super) async fn leave_disk(&self) {
        self.close_disk();
        let leaving = self.folder().leaving.clone();
        if let Some(leaving) = leaving {
            leaving.cancelled().await;
        }
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
        self.remove_from_disk(primary);
        if let Some(tier) = self.shared() {
            tier.remove(primary);
        }
    }

    fn remove_from_disk(&self, primary: &[u8]) {
        let mut folder = self.folder();
        match self.disk() {
            Some(disk) => {
                disk.remove(primary);
                if !matches!(&folder.heard, Heard::Folder(dir) if dir == disk.settings().dir()) {
                    folder.heard = Heard::Folder(disk.settings().dir().to_owned());
                }
            }
            None => folder.heard = Heard::Nobody,
        }
    }

    fn folder(&self) -> MutexGuard<'_, Folder> {
        self.folder.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
