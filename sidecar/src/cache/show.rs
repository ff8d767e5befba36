//! What the admin port shows of the cache, gives and takes. Nothing here counts as a use of what is stored, or takes anything out.

mod explain;
pub(super) mod list;
mod object;
mod stats;

use std::{
    env, fmt, io,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
};

use bytes::Bytes;
use futures::Stream;
use tokio::{sync::Semaphore, task::spawn_blocking};

use self::explain::Question;
pub use self::{
    explain::{CacheExplanation, Freshness, Outcome, Purged, RuleNamed},
    list::{ListRequest, Objects, Order, State, Stored, Value},
    object::{StoredAnswer, StoredHead},
    stats::{DiskFigures, Figures, Fills, RuleFigures},
};
use super::{
    Cache,
    transfer::{Export, ExportRequest, Import, Imported, Spool, SpoolError},
};
use crate::{ask::ExplainRequest, config::Config};

/// The cache of this pod, once its listeners are open. Clones are the same.
#[derive(Clone)]
pub struct PodCache(Arc<Inner>);

struct Inner {
    cache: OnceLock<Arc<Cache>>,
    /// Where files wait until they are whole.
    spool: PathBuf,
    /// There is one of each at a time.
    exports: Arc<Semaphore>,
    imports: Semaphore,
}

/// Why nothing is shown.
#[derive(Debug, thiserror::Error)]
pub enum ShowError {
    /// What is wrong with the request.
    #[error("{0}")]
    Wrong(String),
    /// Why there is nothing to show.
    #[error("{0}")]
    Nothing(String),
    /// Somebody else asks for the same.
    #[error("another {0} is under way: try again when it is over")]
    Busy(&'static str),
    /// The proxy has only begun, or is about to end.
    #[error("the listeners are not open: ask again in a moment")]
    Closed,
}

/// Why a file was not imported.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// As with all that is asked of the cache.
    #[error(transparent)]
    Show(#[from] ShowError),
    /// It is not whole, or can't be kept.
    #[error(transparent)]
    Spool(#[from] SpoolError),
}

impl PodCache {
    /// One that keeps files in a folder until they are whole.
    pub fn spooling_in(spool: impl Into<PathBuf>) -> Self {
        let (exports, imports) = (Arc::new(Semaphore::new(1)), Semaphore::new(1));
        Self(Arc::new(Inner { cache: OnceLock::new(), spool: spool.into(), exports, imports }))
    }

    /// There is one from now on.
    pub(crate) fn open(&self, cache: &Arc<Cache>) {
        // A pod has one.
        let _ = self.0.cache.set(Arc::clone(cache));
    }

    /// Where files wait until they are whole.
    pub(crate) fn spool(&self) -> &Path {
        &self.0.spool
    }

    /// Another process goes on with what is on disk; this one has its memory.
    pub(crate) fn let_go(&self) {
        if let Some(cache) = self.0.cache.get() {
            cache.behind.close_disk();
        }
    }

    /// The same, and waits until what requests have changed is taken out there, and the folder is free.
    pub(crate) async fn leave(&self) {
        if let Some(cache) = self.0.cache.get() {
            cache.behind.leave_disk().await;
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
        spawn_blocking(move || list::list(&cache, &request)).await.unwrap_or(Err(ShowError::Closed))
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

    /// What is stored as a file, which is written as fast as it is taken.
    ///
    /// # Errors
    /// What is wrong with the request, that another one is under way, or that there is no cache yet.
    pub fn export(&self, request: &ExportRequest) -> Result<impl Stream<Item = io::Result<Bytes>> + Send + use<>, ShowError> {
        let export = Export::new(Arc::clone(self.cache()?), request)?;
        let turn = Arc::clone(&self.0.exports).try_acquire_owned().map_err(|_| ShowError::Busy("export"))?;
        Ok(export.pieces(turn))
    }

    /// Takes a file by the rules in force, once all of it has come and is whole; with `dry_run` only says what would become of it.
    ///
    /// # Errors
    /// What is wrong with it, that another one is under way, or that there is no cache yet.
    pub async fn import<E: fmt::Display>(
        &self,
        config: Arc<Config>,
        bytes: impl Stream<Item = Result<Bytes, E>> + Unpin,
        dry_run: bool,
    ) -> Result<Imported, ImportError> {
        let cache = Arc::clone(self.cache()?);
        let _turn = self.0.imports.try_acquire().map_err(|_| ShowError::Busy("import"))?;
        let spooled = Spool::new(&self.0.spool, u64::MAX, &cache).await?.take(&cache, bytes).await?;
        let taken = spawn_blocking(move || {
            let imported = Import::new(&cache, &config, dry_run).file(spooled, &mut || true)?;
            if !dry_run {
                cache.metrics.transfer.imported("file", &imported);
            }
            Ok(imported)
        });
        taken.await.map_err(|_| ShowError::Closed)?
    }

    fn cache(&self) -> Result<&Arc<Cache>, ShowError> {
        self.0.cache.get().ok_or(ShowError::Closed)
    }
}

impl Default for PodCache {
    /// Keeps files in the system's folder for such.
    fn default() -> Self {
        Self::spooling_in(env::temp_dir())
    }
}

impl fmt::Debug for PodCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PodCache").field("open", &self.0.cache.get().is_some()).finish()
    }
}
