//! What the admin port shows of the cache. Nothing here counts as a use of what is stored, or takes anything out.

mod explain;
mod list;
mod object;
mod stats;

use std::{
    fmt,
    sync::{Arc, OnceLock},
};

use self::explain::Question;
pub use self::{
    explain::{CacheExplanation, Freshness, Outcome, Purged, RuleNamed},
    list::{ListRequest, Objects, Order, State, Stored, Value},
    object::{StoredAnswer, StoredHead},
    stats::{DiskFigures, Figures, Fills, RuleFigures},
};
use super::Cache;
use crate::{ask::ExplainRequest, config::Config};

/// The cache of this pod, once its listeners are open. Clones are the same.
#[derive(Clone, Default)]
pub struct PodCache(Arc<OnceLock<Arc<Cache>>>);

/// Why nothing is shown.
#[derive(Debug, thiserror::Error)]
pub enum ShowError {
    /// What is wrong with the request.
    #[error("{0}")]
    Wrong(String),
    /// Why there is nothing to show.
    #[error("{0}")]
    Nothing(String),
    /// The proxy has only begun, or is about to end.
    #[error("the listeners are not open: ask again in a moment")]
    Closed,
}

impl PodCache {
    /// There is one from now on.
    pub(crate) fn open(&self, cache: &Arc<Cache>) {
        // A pod has one.
        let _ = self.0.set(Arc::clone(cache));
    }

    /// Another process goes on with what is on disk; this one has its memory.
    pub(crate) fn let_go(&self) {
        if let Some(cache) = self.0.get() {
            cache.behind.close_disk();
        }
    }

    /// What it holds, and what it has counted.
    ///
    /// # Errors
    /// That there is no cache yet.
    pub fn figures(&self) -> Result<Figures, ShowError> {
        self.cache().map(|cache| stats::figures(cache))
    }

    /// What is stored, a page of it. Many objects are looked at on a thread where nobody waits for it.
    ///
    /// # Errors
    /// What is wrong with the request, or that there is no cache yet.
    pub async fn list(&self, request: ListRequest) -> Result<Objects, ShowError> {
        let cache = Arc::clone(self.cache()?);
        tokio::task::spawn_blocking(move || list::list(&cache, &request)).await.unwrap_or(Err(ShowError::Closed))
    }

    /// What it would do with a request, and why.
    ///
    /// # Errors
    /// What is wrong with the request, or that there is no cache yet.
    pub fn explain(&self, config: &Config, request: &ExplainRequest) -> Result<CacheExplanation, ShowError> {
        Question { cache: self.cache()?, config, request }.explain()
    }

    /// The head of what is stored for a request.
    ///
    /// # Errors
    /// What is wrong with the request, that there is none, or no cache yet.
    pub fn head(&self, config: &Config, request: &ExplainRequest) -> Result<StoredHead, ShowError> {
        Question { cache: self.cache()?, config, request }.head()
    }

    /// The same with its body.
    ///
    /// # Errors
    /// As [`PodCache::head`].
    pub fn answer(&self, config: &Config, request: &ExplainRequest) -> Result<StoredAnswer, ShowError> {
        Question { cache: self.cache()?, config, request }.answer()
    }

    fn cache(&self) -> Result<&Arc<Cache>, ShowError> {
        self.0.get().ok_or(ShowError::Closed)
    }
}

impl fmt::Debug for PodCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PodCache").field("open", &self.0.get().is_some()).finish()
    }
}
