//! Starts a sidecar, or a proxy of its own on a laptop, and ends it.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use crds::{
    plan::{Identity, ObjectRef},
    policy::Direction,
    proxy::{FetchrProxySpec, InterceptionMode, OnNoConfig},
};
use tokio::{runtime::Builder, time::timeout};
use tokio_util::sync::CancellationToken;
use wire::speaker::Speakers;

use crate::{
    DiskPlace, PodCache, PodPurges,
    admin::{self, Admin, Public, SetLevel, probe::Probes},
    config::{Config, Shared},
    drain,
    health::Health,
    limit::Limiter,
    metrics::Metrics,
    pressure::Group,
    route,
    server::{Interception, NameServers, Server, Setup},
    sockets::{Role, Socket, Sockets},
    source::{
        self,
        coldstart::ColdStart,
        file::{self, Files},
        state::StateDir,
        stream::{self, Streams},
    },
    supervisor::{Link, Wish},
    throttle::PodThrottles,
};

pub(crate) mod footprint;
pub(crate) mod logging;
mod orders;

pub use logging::init as init_logging;
use orders::{Before, Orders};

/// Descriptors that are not for connections but for the sidecar itself, and for clients that are told that there are too many.
const RESERVED_DESCRIPTORS: u64 = 128;

/// How long what outlives this process is waited for, once there is no traffic any more: the last snapshot of the cache, and what was taken
/// out of the cache on disk.
const LAST_WRITES: Duration = Duration::from_secs(10);
/// The same if there is no time, or the order is to end at once. The supervisor waits for longer.
const LEAST_WRITES: Duration = Duration::from_millis(500);

/// Client connections of one direction at a time, at most.
const MAX_CONNECTIONS: usize = 10_000;

/// How a proxy is to run. What stands in a FetchrProxy follows the configuration and is not in here.
pub struct Options {
    /// Where the configuration comes from.
    pub configuration: Configuration,
    /// Threads that serve requests; without, what the FetchrProxy says, or one.
    pub workers: Option<usize>,
    /// Port of the admin interface, on loopback.
    pub admin_port: u16,
    /// Port of metrics and health; without, what the FetchrProxy says.
    pub metrics_port: Option<u16>,
    /// Folder that keeps the last good plan and holds the admin token.
    pub state_dir: PathBuf,
    /// Sets what is logged while it runs.
    pub set_level: SetLevel,
}

/// Where the configuration comes from.
pub enum Configuration {
    /// Files, standalone: `fetchr run`.
    Files(Files),
    /// The operator, in a pod.
    Pod(Box<Pod>),
}

/// What admission told a sidecar.
pub struct Pod {
    /// Namespace of the pod.
    pub namespace: String,
    /// Name of the pod.
    pub name: String,
    /// UID of the pod.
    pub uid: String,
    /// Addresses of the pod.
    pub ips: Vec<IpAddr>,
    /// The proxy that admission chose.
    pub proxy: ObjectRef,
    /// `Kind/name` of the pod's workload.
    pub workload: Option<(String, String)>,
    /// `host:port` of the operator's streams.
    pub operator: String,
    /// File of the projected service-account token.
    pub token_file: PathBuf,
    /// Certificates of the operator's CA, PEM.
    pub ca_bundle: String,
    /// Public keys that may sign cold-start plans, base64.
    pub plan_keys: Vec<String>,
    /// Folder where `fetchr-plan` is mounted.
    pub plan_dir: Option<PathBuf>,
    /// Folder where the Secrets that listeners name are mounted.
    pub secrets_dir: Option<PathBuf>,
    /// The volume for answers that are kept on disk.
    pub disk: DiskPlace,
    /// Ports of interception; none in mode Explicit.
    pub interception: Option<Interception>,
    /// How long to wait for the first configuration.
    pub config_timeout: Duration,
    /// What happens without one.
    pub on_no_config: OnNoConfig,
    /// How long connections are still accepted after readiness is gone.
    pub drain_delay: Duration,
    /// How long requests under way may take after that.
    pub drain_timeout: Duration,
    /// Who speaks first on ports of the application.
    pub speakers: Speakers,
    /// JSON of the probes that were rewritten.
    pub probes: String,
}

/// Runs until an order ends it: of the supervisor, where there is one, else a signal. The error says what could not be started, and why.
pub fn run(options: Options, link: Option<Link>) -> anyhow::Result<()> {
    let descriptors = raise_descriptors();
    let runtime = Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(4)
        .thread_keep_alive(Duration::from_secs(1))
        .build()
        .context("could not start the runtime")?;
    let outcome = runtime.block_on(serve(options, link, descriptors));
    // Blocking look-ups may hang; nothing waits for them.
    runtime.shutdown_background();
    outcome
}

async fn serve(options: Options, link: Option<Link>, descriptors: u64) -> anyhow::Result<()> {
    let started = Instant::now();
    let before = Before::of(link.as_ref());
    // From here on a signal is an order, not the end.
    let (sockets, orders) = Orders::listen(link).context("could not listen for orders")?;
    let stop = CancellationToken::new();
    let (metrics, limiter, drain) = (Metrics::new(), Arc::new(Limiter::default()), drain::Handle::new());
    let source_metrics = source::Metrics::default();
    metrics.register(|registry| {
        limiter.register(registry);
        source_metrics.register(registry);
        route::register(registry);
        before.register(registry);
    });
    let shared = Shared::new(first_config(&options.configuration)?);
    let health = Health::new(shared.clone(), drain.clone());
    let state = match &options.configuration {
        Configuration::Files(_) => StateDir::open_own(&options.state_dir),
        Configuration::Pod(_) => StateDir::open(&options.state_dir), // the volume is the kubelet's
    };
    let state = state.with_context(|| format!("could not open the state folder {}", options.state_dir.display()))?;
    let purges = PodPurges::new(&match &options.configuration {
        Configuration::Files(_) => std::env::var("HOSTNAME").unwrap_or_else(|_| "localhost".to_owned()),
        Configuration::Pod(pod) => pod.name.clone(),
    });
    if before.beside {
        purges.wait();
    }
    let (cache, throttles) = (PodCache::spooling_in(state.path()), PodThrottles::default());
    // Before anything is accepted: without a plan, those who waited for this process would be refused.
    let streams = match &options.configuration {
        Configuration::Files(_) => None,
        Configuration::Pod(pod) => {
            let settings = stream_settings(pod, &state, (purges.clone(), cache.clone(), throttles.clone(), Arc::clone(&limiter)));
            Some(Streams::begin(settings, shared.clone(), health.clone(), source_metrics.clone()).await)
        }
    };
    before.go_on(&drain, &shared); // with the settings of the plan
    let token = before.admin_token(&state).context("could not write the admin token")?;
    let own = Own {
        metrics: Arc::clone(&metrics),
        health: health.clone(),
        sockets: sockets.clone(),
        token,
        purges: purges.clone(),
        cache: cache.clone(),
        throttles: throttles.clone(),
        limiter: Arc::clone(&limiter),
        stop: stop.clone(),
    };
    let addresses = own.serve(&options, &shared, &drain)?;
    let setup = setup(&options, &shared, addresses, descriptors, sockets, (purges.clone(), cache.clone(), throttles));
    let interception = setup.interception;
    let server = Server::start(shared.clone(), metrics, limiter, drain.clone(), &setup)?;
    health.listening();
    orders.ready(&drain);
    tracing::info!(took = ?started.elapsed(), ?interception, version = env!("CARGO_PKG_VERSION"), "Listeners are open.");

    let in_pod = matches!(options.configuration, Configuration::Pod(_));
    match options.configuration {
        Configuration::Files(files) => {
            tokio::spawn(file::watch(files, shared.clone(), source_metrics, stop.clone()));
        }
        Configuration::Pod(pod) => {
            tokio::spawn(give_up(shared.clone(), pod.config_timeout, pod.on_no_config));
            if let Some(streams) = streams {
                tokio::spawn(streams.run(stop.clone()));
            }
        }
    }
    tokio::spawn(footprint::drop_startup_code());
    tokio::spawn(logging::follow(shared.clone(), options.set_level));
    Last { drain, in_pod, shared, purges: purges.clone(), cache, server, stop: stop.clone() }.end(orders).await;
    purges.leave().await;
    stop.cancel();
    Ok(())
}

/// The configuration that holds before anything was received.
fn first_config(configuration: &Configuration) -> anyhow::Result<Config> {
    match configuration {
        Configuration::Files(files) => Ok(file::load(files, &|name| std::env::var(name).ok())?),
        Configuration::Pod(pod) => {
            let mut settings = FetchrProxySpec::default();
            let explicit = pod.interception.is_none();
            settings.interception.mode = if explicit { InterceptionMode::Explicit } else { InterceptionMode::Init };
            (settings.drain.delay.0, settings.drain.timeout.0) = (pod.drain_delay, pod.drain_timeout);
            Ok(Config::waiting(settings))
        }
    }
}

/// Without a configuration in time, what `onNoConfig` says holds.
async fn give_up(shared: Shared, limit: Duration, on_no_config: OnNoConfig) {
    tokio::time::sleep(limit).await;
    if shared.give_up(on_no_config) {
        tracing::warn!(?limit, ?on_no_config, "No configuration came in time.");
    }
}

fn setup(
    options: &Options,
    shared: &Shared,
    own: Vec<SocketAddr>,
    descriptors: u64,
    sockets: Sockets,
    (purges, cache, throttles): (PodPurges, PodCache, PodThrottles),
) -> Setup {
    let settings = shared.load();
    let workers = settings.settings().workers.and_then(|workers| usize::try_from(workers).ok());
    // There are two directions, and each connection of a client needs one to its upstream.
    let clients = usize::try_from(descriptors.saturating_sub(RESERVED_DESCRIPTORS) / 4).unwrap_or(MAX_CONNECTIONS);
    let (interception, unique, secrets, speakers) = match &options.configuration {
        Configuration::Files(_) => (None, format!("{}-{:x}", std::process::id(), rough_time()), None, Speakers::default()),
        Configuration::Pod(pod) => (pod.interception, token(&pod.uid), pod.secrets_dir.clone(), pod.speakers.clone()),
    };
    Setup {
        workers: options.workers.or(workers).unwrap_or(1),
        interception,
        own,
        max_connections: clients.clamp(1, MAX_CONNECTIONS),
        unique,
        secrets,
        disk: match &options.configuration {
            Configuration::Files(_) => DiskPlace { dir: Some(options.state_dir.join("cache")), most: None },
            Configuration::Pod(pod) => pod.disk.clone(),
        },
        speakers,
        name_servers: NameServers::System,
        sockets,
        memory: Group::own(),
        purges,
        cache,
        throttles,
        strict: matches!(options.configuration, Configuration::Files(_)),
    }
}

/// The part of a pod's UID that goes into `Via`.
fn token(uid: &str) -> String {
    uid.chars().filter(char::is_ascii_alphanumeric).take(12).collect()
}

fn rough_time() -> u128 {
    std::time::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_millis())
}

fn stream_settings(
    pod: &Pod,
    state: &StateDir,
    (purges, cache, throttles, limiter): (PodPurges, PodCache, PodThrottles, Arc<Limiter>),
) -> stream::Settings {
    let (workload_kind, workload_name) = pod.workload.clone().unwrap_or_default();
    let cold_start = ColdStart {
        plan_dir: pod.plan_dir.clone(),
        state: Some(state.clone()),
        keys: pod.plan_keys.iter().filter_map(|key| key.parse().ok()).collect(),
        namespace: pod.namespace.clone(),
        proxy: pod.proxy.clone(),
        identity: Identity { namespace: pod.namespace.clone(), workload_kind, workload_name, ..Identity::default() },
    };
    stream::Settings {
        operator: pod.operator.clone(),
        token_file: pod.token_file.clone(),
        ca_pem: pod.ca_bundle.clone(),
        pod_name: pod.name.clone(),
        pod_uid: pod.uid.clone(),
        cold_start,
        purges,
        cache,
        throttles,
        limiter,
    }
}

/// The sidecar's own ports.
struct Own {
    metrics: Arc<Metrics>,
    health: Health,
    sockets: Sockets,
    token: String,
    purges: PodPurges,
    cache: PodCache,
    throttles: PodThrottles,
    limiter: Arc<Limiter>,
    stop: CancellationToken,
}

impl Own {
    /// Opens admin and metrics, and returns where they are.
    fn serve(self, options: &Options, shared: &Shared, drain: &drain::Handle) -> anyhow::Result<Vec<SocketAddr>> {
        let (probes, everywhere) = match &options.configuration {
            Configuration::Files(_) => (Probes::default(), false),
            Configuration::Pod(pod) => {
                let address = pod.ips.first().copied().unwrap_or(Ipv4Addr::LOCALHOST.into());
                (Probes::parse(&pod.probes, address).map_err(anyhow::Error::msg)?, true)
            }
        };
        let configured = u16::try_from(shared.load().settings().telemetry.metrics_port).unwrap_or_default();
        let open = self.listen_public(options.metrics_port.unwrap_or(configured), everywhere)?;
        let admin_open = self.bind(Role::Admin, admin::admin_address(options.admin_port))?;
        let (metrics, admin) = (open.address()?, admin_open.address()?);
        let public = Public { health: self.health, metrics: self.metrics, probes: Arc::new(probes) };
        tokio::spawn(admin::serve(open.into_listener()?, admin::public(public), self.stop.clone()));
        let (set_level, purges, cache, throttles) = (Arc::clone(&options.set_level), self.purges, self.cache, self.throttles);
        let limiter = self.limiter;
        let orders = Admin { shared: shared.clone(), drain: drain.clone(), set_level, purges, cache, throttles, limiter };
        tokio::spawn(admin::serve(admin_open.into_listener()?, admin::admin(orders, &self.token), self.stop));
        tracing::info!(%metrics, %admin, "Admin and metrics are open.");
        Ok(vec![metrics, admin])
    }

    /// In a pod metrics are for the cluster, on IPv6 too where there is one; on a laptop for the laptop.
    fn listen_public(&self, port: u16, everywhere: bool) -> anyhow::Result<Socket> {
        let bind = |ip: IpAddr| self.bind(Role::Metrics, SocketAddr::new(ip, port));
        match everywhere {
            true => bind(Ipv6Addr::UNSPECIFIED.into()).or_else(|_| bind(Ipv4Addr::UNSPECIFIED.into())),
            false => bind(Ipv4Addr::LOCALHOST.into()),
        }
    }

    fn bind(&self, role: Role, address: SocketAddr) -> anyhow::Result<Socket> {
        self.sockets.open(role, address).with_context(|| format!("could not listen on {address}"))
    }
}

/// What ends a proxy.
struct Last {
    drain: drain::Handle,
    in_pod: bool,
    shared: Shared,
    purges: PodPurges,
    cache: PodCache,
    server: Server,
    /// Ends what is not traffic.
    stop: CancellationToken,
}

impl Last {
    /// Waits for an order, then drains. A second one ends at once.
    async fn end(self, mut orders: Orders) {
        let wish = loop {
            match orders.next().await {
                Wish::Lead(begun) => {
                    self.purges.begin();
                    orders::go_on(begun, &self.drain, &self.shared);
                }
                wish => break wish,
            }
        };
        let settings = self.shared.load().settings().drain.clone();
        let (inbound, outbound) = (self.drain.open(Direction::Inbound), self.drain.open(Direction::Outbound));
        tracing::info!(order = ?wish, inbound, outbound, "Ending.");
        if wish == Wish::Retire {
            self.purges.retire(); // before the other one hears of it
            orders.leaving(settings.delay.0.saturating_add(settings.timeout.0));
            self.cache.let_go(); // of its folder
            self.stop.cancel(); // admin, metrics and new configurations are another worker's now
        }
        let began = Instant::now();
        let ended = async {
            let left = match wish {
                Wish::Retire => self.drain.leave(settings.delay.0, settings.timeout.0).await,
                Wish::AtOnce => 0,
                // In a pod `preStop` has announced the end, and the application is gone; whoever presses Ctrl-C does not want to wait.
                Wish::Interrupt => self.drain.end(Duration::ZERO, settings.timeout.0).await,
                Wish::Terminate | Wish::Lead(_) => {
                    let delay = if self.in_pod { Duration::ZERO } else { settings.delay.0 };
                    self.drain.end(delay, settings.timeout.0).await
                }
            };
            // As long as the drain may take, for more time there is not.
            let rest = settings.delay.0.saturating_add(settings.timeout.0).saturating_sub(began.elapsed());
            self.write_last(if wish == Wish::AtOnce { Duration::ZERO } else { rest }).await;
            left
        };
        tokio::select! {
            left = ended => tracing::info!(left, "Ended."),
            () = orders.at_once() => {
                self.write_last(Duration::ZERO).await;
                tracing::warn!("Ended at once by a second signal.");
            }
        }
    }

    /// Waits for what outlives this process, for about so long.
    async fn write_last(&self, rest: Duration) {
        let rest = rest.clamp(LEAST_WRITES, LAST_WRITES);
        let (snapshot, disk) = tokio::join!(self.server.finish(rest), timeout(rest, self.cache.leave()));
        if !snapshot {
            tracing::warn!("The last snapshot of the cache was not written in time.");
        }
        if disk.is_err() {
            tracing::warn!("What requests have changed may be in the cache on disk still: it was not taken out in time.");
        }
    }
}

/// Raises the limit on file descriptors as far as it goes, and returns it.
fn raise_descriptors() -> u64 {
    let mut limit = libc::rlimit { rlim_cur: 1024, rlim_max: 1024 };
    // SAFETY: both calls get a valid `rlimit` that outlives them.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) == 0 {
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &limit);
        }
    }
    limit.rlim_cur
}
