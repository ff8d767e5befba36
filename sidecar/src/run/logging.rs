//! The sidecar's own log.

use std::sync::Arc;

use crds::proxy::{LogFormat, LogLevel};
use tracing::{level_filters::LevelFilter, subscriber::DefaultGuard};
use tracing_subscriber::{EnvFilter, layer::SubscriberExt as _, reload, util::SubscriberInitExt as _};

use crate::{admin::SetLevel, config::Shared};

/// Starts logging to standard error, and returns what changes its level. The second start in a process changes nothing.
pub fn init(level: LogLevel, format: LogFormat) -> SetLevel {
    let (filter, handle) = reload::Layer::new(filter(level));
    let registry = tracing_subscriber::registry().with(filter);
    // It fails only if there is a log already.
    let _ = match format {
        LogFormat::Json => registry.with(tracing_subscriber::fmt::layer().json().with_writer(std::io::stderr)).try_init(),
        LogFormat::Text => registry.with(tracing_subscriber::fmt::layer().with_writer(std::io::stderr)).try_init(),
    };
    std::panic::set_hook(Box::new(|panic| tracing::error!(%panic, "A panic; this is a bug in fetchr.")));
    Arc::new(move |wanted: &str| {
        let filter = wanted.parse::<EnvFilter>().map_err(|error| error.to_string())?;
        handle.reload(filter).map_err(|error| error.to_string())
    })
}

/// Logs to standard error what this thread has to say, until the guard is dropped.
pub(crate) fn scoped(level: LogLevel, format: LogFormat) -> DefaultGuard {
    let level: LevelFilter = word(level).parse().unwrap_or(LevelFilter::INFO);
    let builder = tracing_subscriber::fmt().with_writer(std::io::stderr).with_max_level(level);
    match format {
        LogFormat::Json => builder.json().set_default(),
        LogFormat::Text => builder.set_default(),
    }
}

/// Lets the level follow the configuration. An administrator's level holds until the configuration's changes.
pub(super) async fn follow(shared: Shared, set_level: SetLevel) {
    let mut changes = shared.subscribe();
    let mut current = None;
    loop {
        let config = shared.load();
        let level = config.planned.as_ref().map(|_| config.settings().logging.level);
        drop(config);
        if let Some(level) = level.filter(|level| current != Some(*level)) {
            current = Some(level);
            if let Err(error) = set_level(word(level)) {
                tracing::warn!(error, "The log level could not be set.");
            }
        }
        if changes.changed().await.is_err() {
            return;
        }
    }
}

fn filter(level: LogLevel) -> EnvFilter {
    EnvFilter::new(word(level))
}

fn word(level: LogLevel) -> &'static str {
    match level {
        LogLevel::Error => "error",
        LogLevel::Warn => "warn",
        LogLevel::Info => "info",
        LogLevel::Debug => "debug",
        LogLevel::Trace => "trace",
    }
}
