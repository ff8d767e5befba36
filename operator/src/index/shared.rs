//! The index as the operator's tasks share it.

use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use crds::plan::ObjectRef;
use tokio::sync::watch;

use super::{Index, Indexed, Touched};

/// The index with a bell for each kind of change; cheap to clone.
#[derive(Clone, Debug)]
pub struct Shared {
    index: Arc<RwLock<Index>>,
    plans: watch::Sender<u64>,
    pods: watch::Sender<u64>,
    services: watch::Sender<u64>,
}

/// What a watch saw.
#[derive(Debug)]
pub enum Change<T> {
    /// Everything, by a list.
    Reset(Vec<(ObjectRef, T)>),
    /// An object was added or changed.
    Apply(ObjectRef, T),
    /// An object is gone.
    Delete(ObjectRef),
    /// Nothing, up to this version.
    Seen,
}

impl Default for Shared {
    fn default() -> Self {
        let bell = || watch::Sender::new(0);
        Self { index: Arc::default(), plans: bell(), pods: bell(), services: bell() }
    }
}

impl Shared {
    /// Reads. Don't hold the guard over an await.
    pub fn read(&self) -> RwLockReadGuard<'_, Index> {
        self.index.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Applies what a watch saw up to `version`, and rings the bells.
    pub fn change<T: Indexed>(&self, change: Change<T>, version: String) {
        let touched = {
            let mut index = self.index.write().unwrap_or_else(PoisonError::into_inner);
            match change {
                Change::Reset(objects) => index.reset(objects, version),
                Change::Apply(key, object) => index.apply(key, object, version),
                Change::Delete(key) => index.delete::<T>(&key, version),
                Change::Seen => {
                    index.seen::<T>(version);
                    Touched::NOTHING
                }
            }
        };
        for (is_touched, bell) in [(touched.plans, &self.plans), (touched.pods, &self.pods), (touched.services, &self.services)] {
            if is_touched {
                bell.send_modify(|count| *count += 1);
            }
        }
    }

    /// Rings when plans must be compiled anew.
    pub fn plans_changed(&self) -> watch::Receiver<u64> {
        self.plans.subscribe()
    }

    /// Rings when identities and counts of pods must be computed anew.
    pub fn pods_changed(&self) -> watch::Receiver<u64> {
        self.pods.subscribe()
    }

    /// Rings when what stands behind Services must be computed anew.
    pub fn services_changed(&self) -> watch::Receiver<u64> {
        self.services.subscribe()
    }
}
