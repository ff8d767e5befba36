//! The configuration of a standalone proxy: files and folders of documents, read again when they change.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use crds::{
    document::{self, DocumentError, Documents, Origin},
    plan::{self, Identity, Inputs, ObjectRef, Plan, PlanKey, Position, compile},
};
use notify::{RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;

use super::Metrics;
use crate::config::{Config, ConfigError, PlanSource, Planned, Shared};

/// Quiet time after a change, and the longest wait for it: editors and `git` write several files.
const DEBOUNCE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(1));
/// How often files are read again although no change was told: events can be lost.
const RECHECK: Duration = Duration::from_secs(30);
/// How often they are read when changes can't be watched.
const POLL: Duration = Duration::from_secs(2);

/// Where the documents are, and which pod the proxy stands for.
#[derive(Clone, Debug, Default)]
pub struct Files {
    /// Files, and folders of files.
    pub paths: Vec<PathBuf>,
    /// Which FetchrProxy is run; may be left out if there is only one.
    pub proxy: Option<ObjectRef>,
    /// The pod that the proxy stands for; policies for other workloads and Services do not hold.
    pub identity: Identity,
}

/// Why documents can't be run.
#[derive(Clone, Debug, PartialEq)]
pub enum FileError {
    /// The documents themselves are wrong.
    Documents(Vec<DocumentError>),
    /// There is no FetchrProxy, or not the one that was asked for.
    NoProxy(Option<ObjectRef>),
    /// There are several FetchrProxies.
    SeveralProxies(Vec<ObjectRef>),
    /// A document is valid by itself but can't be applied.
    Config {
        /// Where the document begins.
        origin: Option<Origin>,
        /// What is wrong.
        error: Box<ConfigError>,
    },
}

impl fmt::Display for FileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Documents(errors) => {
                let lines: Vec<_> = errors.iter().map(ToString::to_string).collect();
                f.write_str(&lines.join("\n"))
            }
            Self::NoProxy(None) => f.write_str("no FetchrProxy among the documents; add one with interception.mode Explicit"),
            Self::NoProxy(Some(wanted)) => write!(f, "no FetchrProxy {wanted} among the documents"),
            Self::SeveralProxies(found) => {
                let names: Vec<_> = found.iter().map(ToString::to_string).collect();
                write!(f, "several FetchrProxies among the documents ({}); say which one to run", names.join(", "))
            }
            Self::Config { origin: Some(Origin { file, line }), error } => write!(f, "{}:{line}:1: {error}", file.display()),
            Self::Config { origin: None, error } => error.fmt(f),
        }
    }
}

impl std::error::Error for FileError {}

/// Reads and compiles the documents. `env` looks up the variables that they mention.
pub fn load(files: &Files, env: &dyn Fn(&str) -> Option<String>) -> Result<Config, FileError> {
    let documents = document::load(&files.paths, env).map_err(FileError::Documents)?;
    let plan = choose(&documents, files.proxy.as_ref())?;
    let digest = plan::digest(&plan);
    let planned = Planned { plan: Arc::new(plan), digest, position: Position::default(), source: PlanSource::File };
    Config::build(planned, files.identity.clone()).map_err(|error| {
        let origin = error.policy.as_ref().and_then(|policy| documents.origins.get(&("FetchrPolicy".to_owned(), policy.clone())));
        FileError::Config { origin: origin.cloned(), error: Box::new(error) }
    })
}

/// The plan of the proxy that is run.
fn choose(documents: &Documents, wanted: Option<&ObjectRef>) -> Result<Plan, FileError> {
    let mut compiled = compile(&Inputs::of_documents(&documents.proxies, &documents.policies));
    let unused = compiled.policies.iter().filter(|verdict| !verdict.accepted.ok);
    for verdict in unused {
        tracing::warn!(policy = %verdict.policy, target = verdict.target.name, "{}", verdict.accepted.message);
    }
    let proxies: Vec<ObjectRef> = compiled.proxies.iter().map(|verdict| verdict.proxy.clone()).collect();
    let proxy = match (wanted, proxies.as_slice()) {
        (Some(wanted), _) => wanted.clone(),
        (None, [only]) => only.clone(),
        (None, []) => return Err(FileError::NoProxy(None)),
        (None, _) => return Err(FileError::SeveralProxies(proxies)),
    };
    let key = PlanKey { pod_namespace: proxy.namespace.clone(), proxy };
    compiled.plans.remove(&key).ok_or(FileError::NoProxy(Some(key.proxy)))
}

/// Puts what the files say in force whenever they change, until `stop`. A bad change keeps what is in force, and is logged line by
/// line.
pub async fn watch(files: Files, shared: Shared, metrics: Metrics, stop: CancellationToken) {
    let (changes, mut changed) = mpsc::channel(1);
    let mut watcher = Watch::new(&files.paths, changes);
    let mut refused = None;
    // What changed between the first reading and the first watch was told to nobody.
    let mut first = true;
    loop {
        let regular = if watcher.renew() { RECHECK } else { POLL };
        let pause = if std::mem::take(&mut first) { Duration::ZERO } else { regular };
        tokio::select! {
            () = stop.cancelled() => return,
            () = sleep_until(Instant::now() + pause) => {}
            Some(()) = changed.recv() => quiet(&mut changed).await,
        }
        let read = files.clone();
        // Reading and compiling take milliseconds; other tasks of the runtime need not wait for them.
        let loaded = tokio::task::spawn_blocking(move || load(&read, &|name| std::env::var(name).ok())).await;
        match loaded {
            Ok(Ok(config)) => {
                refused = None;
                adopt(config, &shared, &metrics);
            }
            // Told once, not at each check.
            Ok(Err(error)) if refused.as_ref() != Some(&error) => {
                metrics.planned("file", false);
                for line in error.to_string().lines() {
                    tracing::error!("{line}");
                }
                tracing::error!("The change was not taken; the configuration from before stays in force.");
                refused = Some(error);
            }
            Ok(Err(_)) => {}
            Err(error) => tracing::error!(%error, "The files could not be read."),
        }
    }
}

fn adopt(config: Config, shared: &Shared, metrics: &Metrics) {
    if config.digest() == shared.load().digest() {
        return;
    }
    metrics.planned("file", true);
    tracing::info!(digest = config.digest(), "The changed files are in force.");
    shared.replace(config);
}

/// Waits until nothing has changed for a moment.
async fn quiet(changed: &mut mpsc::Receiver<()>) {
    let latest = Instant::now() + DEBOUNCE.1;
    while Instant::now() < latest {
        match timeout(DEBOUNCE.0, changed.recv()).await {
            Ok(Some(())) => {}
            Ok(None) | Err(_) => return,
        }
    }
}

/// Watches for changes, as far as the system can.
struct Watch {
    watcher: Option<RecommendedWatcher>,
    watched: Vec<Watched>,
    told: bool,
}

impl Watch {
    fn new(paths: &[PathBuf], changes: mpsc::Sender<()>) -> Self {
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
    fn renew(&mut self) -> bool {
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

#[cfg(test)]
mod tests;
