//! Slots that pods share, for as long as requests have them.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use futures::{StreamExt as _, stream};
use tokio::{runtime::Handle, time::sleep};

use super::{
    meter::SLOT_TERM,
    shared::{ChargeId, Held, Slots, Store},
};

/// Slots are renewed so often in a term: one that gets lost may do so twice.
const RENEWALS: u32 = 3;
/// Slots that are renewed by one command, at most.
const BATCH: usize = 1000;
/// Counts that are renewed at once.
const TOGETHER: usize = 32;

/// The slots that requests of this pod have, and that are renewed until they end.
#[derive(Debug)]
pub(super) struct Renewals {
    store: Store,
    runtime: Handle,
    counts: Mutex<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    /// By the name of a count: what it allows, and who has its slots.
    of: HashMap<String, (Slots, HashSet<ChargeId>)>,
    /// Whether a task renews them.
    is_renewed: bool,
}

/// A slot of a request. Dropped, it is released.
pub(super) struct Slot {
    renewals: Arc<Renewals>,
    held: Option<Held>,
    count: String,
    id: ChargeId,
}

impl Renewals {
    pub(super) fn new(store: Store, runtime: Handle) -> Arc<Self> {
        Arc::new(Self { store, runtime, counts: Mutex::default() })
    }

    /// Keeps a slot of a count for as long as it is held.
    pub(super) fn hold(self: &Arc<Self>, count: &str, rule: Slots, id: ChargeId, held: Held) -> Slot {
        let mut counts = self.lock();
        counts.of.entry(count.to_owned()).or_insert_with(|| (rule, HashSet::new())).1.insert(id);
        if !std::mem::replace(&mut counts.is_renewed, true) {
            self.runtime.spawn(renew(Arc::downgrade(self)));
        }
        Slot { renewals: Arc::clone(self), held: Some(held), count: count.to_owned(), id }
    }

    /// Slots of a count that requests of this pod have.
    pub(super) fn held(&self, count: &str) -> u64 {
        self.lock().of.get(count).map_or(0, |(_, ids)| ids.len() as u64)
    }

    /// The counts of which slots are held; none ends the task that asks.
    fn counts(&self) -> Vec<String> {
        let mut counts = self.lock();
        counts.is_renewed = !counts.of.is_empty();
        counts.of.keys().cloned().collect()
    }

    /// Renews the slots of one count that are held now.
    async fn renew(&self, count: &str) {
        let Some((rule, ids)) = self.lock().of.get(count).map(|(rule, ids)| (*rule, ids.iter().copied().collect::<Vec<_>>()))
        else {
            return;
        };
        for ids in ids.chunks(BATCH) {
            // What is lost meanwhile is there again as soon as the store answers, also beyond the limit: these requests are under way.
            if let Err(failure) = self.store.renew(count, &rule, ids).await {
                tracing::debug!(reason = failure.label(), "Slots of a shared limit could not be renewed.");
            }
            // Those of requests that have ended in the meantime are there again.
            let left: Vec<ChargeId> = match self.lock().of.get(count) {
                Some((_, held)) => ids.iter().filter(|id| !held.contains(id)).copied().collect(),
                None => ids.to_vec(),
            };
            left.into_iter().for_each(|id| self.store.release(Held::new(count, id)));
        }
    }

    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Renews all slots, for as long as there are any.
async fn renew(renewals: Weak<Renewals>) {
    loop {
        sleep(SLOT_TERM / RENEWALS).await;
        let Some(renewals) = renewals.upgrade() else { return };
        let counts = renewals.counts();
        if counts.is_empty() {
            return;
        }
        stream::iter(counts)
            .for_each_concurrent(TOGETHER, |count| {
                let renewals = &renewals;
                async move { renewals.renew(&count).await }
            })
            .await;
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut counts = self.renewals.lock();
        if let Some((_, ids)) = counts.of.get_mut(&self.count) {
            ids.remove(&self.id);
            if ids.is_empty() {
                counts.of.remove(&self.count);
            }
        }
        drop(counts);
        if let Some(held) = self.held.take() {
            self.renewals.store.release(held);
        }
    }
}

impl fmt::Debug for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Slot").field("count", &self.count).field("id", &self.id).finish_non_exhaustive()
    }
}
