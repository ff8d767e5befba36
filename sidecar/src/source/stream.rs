//! The streams to the operator: one to every address behind its name, each opened again when it ends.
//!
//! One task per address keeps a stream; one task ([`Receiver`]) owns what they bring: the order of plans, the configuration and the
//! answers. It is the only one that changes the configuration.

mod connect;
mod receive;
mod services;

use std::{
    collections::HashMap,
    hash::{BuildHasher as _, RandomState},
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use crds::plan::ObjectRef;
use tokio::{
    net::lookup_host,
    sync::mpsc,
    task::JoinSet,
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use wire::v1;

use self::{connect::session, receive::Receiver};
use super::{Metrics, coldstart::ColdStart, order::StreamId, state::StateDir};
use crate::{PodCache, PodPurges, config::Shared, health::Health, limit::Limiter, throttle::PodThrottles};

/// How often the operator's name is resolved again.
const RESOLVE_EVERY: Duration = Duration::from_secs(30);
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(5);
/// Bounds of the pause before a next try.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// A stream that lived this long starts over with the shortest pause.
const STEADY: Duration = Duration::from_secs(10);
/// Most addresses that get a stream.
const MAX_STREAMS: usize = 16;
/// Messages of all streams that wait to be received.
const EVENTS: usize = 64;

/// Who the sidecar is, and how it finds its operator.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `host:port`; every address behind the host gets a stream.
    pub operator: String,
    /// File of the projected service-account token; read again for every stream.
    pub token_file: PathBuf,
    /// Certificates of the operator's CA (PEM), as admission gave them. Those that the operator told later replace them.
    pub ca_pem: String,
    /// Name of the pod; its namespace is the cold start's.
    pub pod_name: String,
    /// UID of the pod.
    pub pod_uid: String,
    /// Where the first plan may come from before a stream stands.
    pub cold_start: ColdStart,
    /// What was purged from the cache.
    pub purges: PodPurges,
    /// What the cache holds.
    pub cache: PodCache,
    /// Who waits for upstreams.
    pub throttles: PodThrottles,
    /// What the limits count.
    pub limiter: Arc<Limiter>,
}

impl Settings {
    /// The host of the operator: the name that its certificate has to carry.
    fn host(&self) -> &str {
        let host = self.operator.rsplit_once(':').map_or(self.operator.as_str(), |(host, _)| host);
        host.trim_start_matches('[').trim_end_matches(']')
    }

    fn proxy(&self) -> &ObjectRef {
        &self.cold_start.proxy
    }

    fn state(&self) -> Option<&StateDir> {
        self.cold_start.state.as_ref()
    }
}

/// What a stream tells the receiver.
enum Event {
    Opened { stream: StreamId, up: mpsc::Sender<v1::Up> },
    Down { stream: StreamId, message: v1::down::Message },
    Closed { stream: StreamId },
}

/// Keeps streams to all operators and the configuration up to date, until `stop`.
pub async fn run(settings: Settings, shared: Shared, health: Health, metrics: Metrics, stop: CancellationToken) {
    Streams::begin(settings, shared, health, metrics).await.run(stop).await;
}

/// Streams that are about to be opened.
pub(crate) struct Streams {
    settings: Arc<Settings>,
    shared: Shared,
    receiver: Receiver,
}

impl Streams {
    /// Puts a plan from before the first stream in force, if there is one. A Hello names it.
    pub(crate) async fn begin(settings: Settings, shared: Shared, health: Health, metrics: Metrics) -> Self {
        let settings = Arc::new(settings);
        let mut receiver = Receiver::new(Arc::clone(&settings), shared.clone(), health, metrics);
        receiver.cold_start().await;
        Self { settings, shared, receiver }
    }

    /// Opens them, and keeps them until `stop`.
    pub(crate) async fn run(self, stop: CancellationToken) {
        let Self { settings, shared, receiver } = self;
        let (events, incoming) = mpsc::channel(EVENTS);
        let receiving = receiver.run(incoming);
        let dialling = Dial { settings, shared, events, streams: Arc::default() }.run();
        tokio::select! {
            () = stop.cancelled() => {}
            () = receiving => {}
            () = dialling => {}
        }
    }
}

struct Dial {
    settings: Arc<Settings>,
    shared: Shared,
    events: mpsc::Sender<Event>,
    streams: Arc<AtomicU64>,
}

impl Dial {
    /// Resolves the operator's name again and again, and keeps one task for each address. Dropped, it ends them all.
    async fn run(self) {
        let mut tasks = JoinSet::new();
        let mut keepers: HashMap<SocketAddr, tokio::task::AbortHandle> = HashMap::new();
        let mut backoff = Backoff::default();
        loop {
            let pause = match resolve(&self.settings.operator).await {
                Ok(addresses) => {
                    backoff = Backoff::default();
                    keepers.retain(|address, keeper| {
                        let stays = addresses.contains(address);
                        if !stays {
                            keeper.abort();
                        }
                        stays
                    });
                    for address in addresses {
                        keepers.entry(address).or_insert_with(|| tasks.spawn(self.keep(address)));
                    }
                    RESOLVE_EVERY
                }
                // Streams that stand stay: the name may be gone only because DNS is.
                Err(error) => {
                    tracing::warn!(operator = self.settings.operator, error, "The operator's name can't be resolved.");
                    backoff.next()
                }
            };
            tokio::select! {
                () = sleep(pause) => {}
                // A keeper never ends by itself but by a panic; its address gets another one.
                Some(ended) = tasks.join_next() => {
                    if ended.is_err_and(|error| error.is_panic()) {
                        keepers.retain(|_, keeper| !keeper.is_finished());
                    }
                }
            }
        }
    }

    /// Opens a stream to one address again whenever it ends.
    fn keep(&self, address: SocketAddr) -> impl Future<Output = ()> + Send + 'static {
        let (settings, shared, events) = (Arc::clone(&self.settings), self.shared.clone(), self.events.clone());
        let streams = Arc::clone(&self.streams);
        async move {
            let mut backoff = Backoff::default();
            loop {
                let stream = streams.fetch_add(1, Ordering::Relaxed);
                let began = Instant::now();
                // Also a stream whose task is aborted has to be reported as closed.
                let closed = Closed { stream, events: Some(events.clone()) };
                let ended = session(&settings, &shared, address, stream, &events).await;
                closed.report().await;
                if began.elapsed() >= STEADY {
                    backoff = Backoff::default();
                }
                let pause = backoff.next();
                tracing::info!(%address, reason = %ended, ?pause, "The stream to the operator ended.");
                sleep(pause).await;
            }
        }
    }
}

/// Reports that a stream has ended, at the latest when it is dropped.
struct Closed {
    stream: StreamId,
    events: Option<mpsc::Sender<Event>>,
}

impl Closed {
    async fn report(mut self) {
        if let Some(events) = self.events.take() {
            // The receiver is gone only when all ends.
            let _ = events.send(Event::Closed { stream: self.stream }).await;
        }
    }
}

impl Drop for Closed {
    fn drop(&mut self) {
        let (events, stream) = (self.events.take(), self.stream);
        if let (Some(events), Ok(runtime)) = (events, tokio::runtime::Handle::try_current()) {
            runtime.spawn(async move {
                let _ = events.send(Event::Closed { stream }).await;
            });
        }
    }
}

async fn resolve(operator: &str) -> Result<Vec<SocketAddr>, String> {
    let found = timeout(RESOLVE_TIMEOUT, lookup_host(operator)).await.map_err(|_| "no answer in time".to_owned())?;
    let mut addresses: Vec<_> = found.map_err(|error| error.to_string())?.collect();
    addresses.sort();
    addresses.dedup();
    addresses.truncate(MAX_STREAMS);
    if addresses.is_empty() { Err("the name has no address".to_owned()) } else { Ok(addresses) }
}

/// Pauses that double, with jitter, so that a thousand sidecars don't come back at once.
struct Backoff(Duration);

impl Default for Backoff {
    fn default() -> Self {
        Self(BACKOFF.0)
    }
}

impl Backoff {
    /// Between half and all of the pause that is due.
    fn next(&mut self) -> Duration {
        let due = self.0;
        self.0 = (due * 2).min(BACKOFF.1);
        let half = due / 2;
        // Each `RandomState` has keys of its own, so its hash of nothing is a random number.
        half + half.mul_f64((RandomState::new().hash_one(()) % 1000) as f64 / 1000.0)
    }
}

#[cfg(test)]
mod tests;
