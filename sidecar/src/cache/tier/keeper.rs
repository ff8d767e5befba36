//! Keeps a connection to Redis, beside the requests: none of them waits for one.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwapOption;
use redis::{AsyncConnectionConfig, RedisResult, aio::MultiplexedConnection};
use tokio::{
    sync::Notify,
    time::{Instant, sleep, timeout},
};

use super::{super::link::Endpoint, Tier};

/// How long a connection may take to be made, and a sign of life to come.
const CONNECTING: Duration = Duration::from_secs(2);
/// Between two signs of life.
const BEAT: Duration = Duration::from_secs(1);
/// Commands in a row that fail before nobody asks any more.
const FAILURES: u32 = 5;
/// Between two tries, at first and at most.
const FIRST_RETRY: Duration = Duration::from_millis(100);
const LAST_RETRY: Duration = Duration::from_secs(5);
/// Between two lines of log that tell the same.
const TOLD: Duration = Duration::from_secs(60);

/// The connection of now, if there is one that answers.
pub(super) struct Connection {
    current: ArcSwapOption<MultiplexedConnection>,
    failures: AtomicU32,
    trouble: Notify,
}

impl Connection {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self { current: ArcSwapOption::empty(), failures: AtomicU32::new(0), trouble: Notify::new() })
    }

    pub(super) fn get(&self) -> Option<MultiplexedConnection> {
        self.current.load().as_deref().cloned()
    }

    /// A command was answered.
    pub(super) fn worked(&self) {
        if self.failures.load(Ordering::Relaxed) > 0 {
            self.failures.store(0, Ordering::Relaxed);
        }
    }

    /// A command was not answered, or by an error.
    pub(super) fn failed(&self) {
        if self.failures.fetch_add(1, Ordering::Relaxed) + 1 >= FAILURES {
            self.current.store(None);
            self.trouble.notify_one();
        }
    }
}

/// Keeps the connection of a tier, until that is dropped.
pub(super) fn spawn(tier: &Tier) {
    let (connection, endpoint, stop) = (Arc::clone(&tier.connection), tier.settings.endpoint.clone(), tier.stop.clone());
    tokio::spawn(async move { stop.run_until_cancelled(keep(&connection, &endpoint)).await });
}

async fn keep(connection: &Connection, endpoint: &Endpoint) {
    let (mut retry, mut told) = (FIRST_RETRY, None::<Instant>);
    loop {
        let why = match timeout(CONNECTING, connect(endpoint)).await {
            Ok(Ok(made)) => {
                connection.failures.store(0, Ordering::Relaxed);
                connection.current.store(Some(Arc::new(made.clone())));
                retry = FIRST_RETRY;
                let why = watch(connection, made).await;
                connection.current.store(None);
                why
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no connection within {CONNECTING:?}"),
        };
        if told.is_none_or(|told| told.elapsed() >= TOLD) {
            told = Some(Instant::now());
            tracing::warn!(
                why,
                "The answers in Redis can't be reached. Requests go on without them, and it is tried again and again."
            );
        }
        sleep(retry.mul_f64(1.0 - fastrand::f64() / 4.0)).await;
        retry = (retry * 2).min(LAST_RETRY);
    }
}

async fn connect(endpoint: &Endpoint) -> RedisResult<MultiplexedConnection> {
    let config = AsyncConnectionConfig::new().set_response_timeout(None).set_connection_timeout(None);
    let mut made = endpoint.client().await?.get_multiplexed_async_connection_with_config(&config).await?;
    redis::cmd("PING").query_async::<()>(&mut made).await?;
    Ok(made)
}

/// Returns why it is of no use any more.
async fn watch(connection: &Connection, mut made: MultiplexedConnection) -> String {
    loop {
        tokio::select! {
            () = connection.trouble.notified() => return format!("{FAILURES} commands in a row failed"),
            () = sleep(BEAT) => {}
        }
        match timeout(CONNECTING, redis::cmd("PING").query_async::<()>(&mut made)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return error.to_string(),
            Err(_) => return format!("no sign of life within {CONNECTING:?}"),
        }
    }
}
