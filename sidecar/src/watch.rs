//! Files that are read again when they change.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use notify::{RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::{
    sync::mpsc,
    time::{Instant, timeout},
};

/// Quiet time after a change, and the longest wait for it: editors and `git` write several files.
const DEBOUNCE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(1));

/// Waits until nothing has changed for a moment.
pub(crate) async fn quiet(changed: &mut mpsc::Receiver<()>) {
    let latest = Instant::now() + DEBOUNCE.1;
    while Instant::now() < latest {
        match timeout(DEBOUNCE.0, changed.recv()).await {
            Ok(Some(())) => {}
            Ok(None) | Err(_) => return,
        }
    }
}

/// Watches for changes, as far as the system can.
pub(crate) struct Watch {
    watcher: Option<RecommendedWatcher>,
    watched: Vec<Watched>,
    told: bool,
}

impl Watch {
    pub(crate) fn new(paths: &[PathBuf], changes: mpsc::Sender<()>) -> Self {
        // Events carry the path that was watched; made absolute, all are written alike.
        let paths: Vec<PathBuf> = paths.iter().map(|path| std::path::absolute(path).unwrap_or_else(|_| path.clone())).collect();
        let watched: Vec<Watched> = paths.into_iter().map(Watched::new).collect();
        let concerned = watched.clone();
        let handler = move |event: notify::Result<notify::Event>| {
            let concerns = |event: notify::Event| is_change(&event) && concerned.iter().any(|one| one.concerns(&event));
            if event.map_or(true, concerns) {
                // Full means that a change is told already.
                let _ = changes.try_send(());
            }
        };
        let watcher = notify::recommended_watcher(handler)
            .inspect_err(|error| tracing::warn!(%error, "Files can't be watched; they are read again every few seconds."))
            .ok();
        Self { watcher, watched, told: false }
    }

    /// Watches everything, also what was replaced since the last time. False if something can't be watched.
    pub(crate) fn renew(&mut self) -> bool {
        let Some(watcher) = &mut self.watcher else { return false };
        let failed = self.watched.iter().find_map(|one| one.watch(watcher).err());
        if let Some(error) = &failed
            && !self.told
        {
            tracing::warn!(%error, "Files can't be watched; they are read again every few seconds.");
        }
        self.told = failed.is_some();
        failed.is_none()
    }
}

/// A file or a folder that is watched. A file is watched by its folder, since editors and mounted ConfigMaps replace files and
/// links; a folder by itself and by its own folder, since it may be replaced as a whole.
#[derive(Clone)]
struct Watched {
    path: PathBuf,
    parent: PathBuf,
    is_folder: bool,
}

impl Watched {
    fn new(path: PathBuf) -> Self {
        let parent = path.parent().map_or_else(|| path.clone(), Path::to_owned);
        Self { is_folder: path.is_dir(), parent, path }
    }

    fn watch(&self, watcher: &mut RecommendedWatcher) -> notify::Result<()> {
        watcher.watch(&self.parent, RecursiveMode::NonRecursive)?;
        if self.is_folder { watcher.watch(&self.path, RecursiveMode::Recursive) } else { Ok(()) }
    }

    fn concerns(&self, event: &notify::Event) -> bool {
        let near = |path: &PathBuf| if self.is_folder { path.starts_with(&self.path) } else { path.starts_with(&self.parent) };
        event.paths.is_empty() || event.paths.iter().any(near)
    }
}

fn is_change(event: &notify::Event) -> bool {
    // Reading a file is an event too, and we do that ourselves.
    !matches!(event.kind, notify::EventKind::Access(kind) if kind != notify::event::AccessKind::Close(notify::event::AccessMode::Write))
}
