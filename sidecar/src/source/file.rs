//! The configuration of a standalone proxy: files and folders of documents, read again when they change.

use std::{fmt, path::PathBuf, sync::Arc, time::Duration};

use crds::{
    document::{self, DocumentError, Documents, Origin},
    plan::{self, Identity, Inputs, ObjectRef, Plan, PlanKey, Position, compile},
};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

mod seen;

use self::seen::Seen;
use super::Metrics;
use crate::{
    config::{Config, ConfigError, PlanSource, Planned, Shared},
    watch::{Watch, quiet},
};

/// How often files are looked at although no change was told: events can be lost.
const RECHECK: Duration = Duration::from_secs(30);
/// How often they are looked at when changes can't be watched.
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
    let (mut seen, mut refused) = (Seen::default(), None);
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
        match seen.look(&files).await {
            None => {}
            Some(Ok(config)) => {
                refused = None;
                adopt(config, &shared, &metrics);
            }
            // Told once, not at each check.
            Some(Err(error)) if refused.as_ref() != Some(&error) => {
                metrics.planned("file", false);
                for line in error.to_string().lines() {
                    tracing::error!("{line}");
                }
                tracing::error!("The change was not taken; the configuration from before stays in force.");
                refused = Some(error);
            }
            Some(Err(_)) => {}
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

#[cfg(test)]
mod tests;
