//! The data path as one thing: workers, sockets and what they share. It follows its configuration.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use anyhow::Context as _;
use crds::{
    policy::Direction,
    proxy::{FetchrProxySpec, InterceptionMode, Listener},
};
use tokio::{
    sync::{mpsc, watch},
    time::sleep,
};
use wire::speaker::Speakers as Declared;

use crate::{
    DiskPlace, PodCache, PodPurges,
    cache::{Cache, DiskSettings, Keeper, PurgeLog, Scope, Snapshots, TierSettings},
    config::{self, Config, Shared},
    connection::Speakers,
    drain,
    limit::{self, Limiter},
    listen::{Acceptor, Explicit, ListenError, Listening},
    metrics::Metrics,
    own::Own,
    pressure::{self, Group, Pressure, Relief, Step},
    redis::{self, Redis},
    sockets::Sockets,
    throttle::PodThrottles,
    tls::{self, Originations, Secrets},
    upstream::{connect::Connector, pool::Caps, resolve::Resolver, standing::Standing},
    watch::{Watch, quiet},
    worker::{Pod, Vias, Workers},
};

pub use crate::upstream::resolve::dns::NameServers;

/// Port of the explicit forward proxy in a pod.
pub const FORWARD_PORT: u16 = 4612;

/// How often certificates are read again.
const RECHECK: Duration = Duration::from_secs(30);

/// Until listening is tried again on an address that the system refused, or with certificates that can't be used.
const BIND_AGAIN: Duration = Duration::from_secs(5);

/// Ports that intercepted connections are redirected to.
#[derive(Clone, Copy, Debug)]
pub struct Interception {
    /// Traffic to the application.
    pub inbound: u16,
    /// Traffic from the application.
    pub outbound: u16,
}

/// How the data path is set up; none of it changes while it runs.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Threads that serve requests.
    pub workers: usize,
    /// Mode Init; without it, the configuration's listeners are opened.
    pub interception: Option<Interception>,
    /// Addresses of the sidecar that nothing may be forwarded to: admin, metrics.
    pub own: Vec<SocketAddr>,
    /// Client connections of one direction that are open at a time; more are refused.
    pub max_connections: usize,
    /// What tells this sidecar from all others in `Via`; token characters only.
    pub unique: String,
    /// Where the Secrets that listeners name are mounted, one folder each; none outside of pods.
    pub secrets: Option<PathBuf>,
    /// Where answers may be kept on disk.
    pub disk: DiskPlace,
    /// Who speaks first on ports of the application, by their names.
    pub speakers: Declared,
    /// Whom to ask for the addresses of names.
    pub name_servers: NameServers,
    /// Where listening sockets come from.
    pub sockets: Sockets,
    /// What bounds the memory; none where nothing does.
    pub memory: Option<Group>,
    /// What was purged from the cache, which the admin port has too.
    pub purges: PodPurges,
    /// Where the cache is found, which the admin port shows.
    pub cache: PodCache,
    /// Who waits for upstreams, which the admin port shows.
    pub throttles: PodThrottles,
    /// Whether a listener that can't be opened is an error; else it is tried again.
    pub strict: bool,
}

/// A running data path. It stops when its drain does; dropping this drops nothing that is served.
pub struct Server {
    explicit: Arc<Mutex<Explicit>>,
    snapshots: Snapshots,
}

impl Server {
    /// Binds the sockets and starts the workers. Must be called on the runtime that accepts; it follows changes of the
    /// configuration for as long as that runtime lives.
    pub fn start(
        config: Shared,
        metrics: Arc<Metrics>,
        limiter: Arc<Limiter>,
        drain: drain::Handle,
        setup: &Setup,
    ) -> anyhow::Result<Self> {
        let pod = assemble(&config, metrics, limiter, drain, setup);
        pod.metrics.register(|registry| pod.pressure.register(registry));
        pod.metrics.register(|registry| pod.cache.register(registry));
        pod.metrics.register(|registry| setup.throttles.0.register(registry));
        if let Some(group) = setup.memory.clone() {
            watch_memory(&pod, group).context("could not watch the memory")?;
        }
        let redis_metrics = redis::Metrics::default();
        pod.metrics.register(|registry| redis_metrics.register(registry));
        let (cache, limiter) = (Arc::clone(&pod.cache), Arc::clone(&pod.limiter));
        setup.cache.open(&cache);
        let snapshots = Keeper {
            config: config.clone(),
            cache: Arc::clone(&cache),
            secrets: Secrets(setup.secrets.clone()),
            drain: pod.drain.clone(),
            pressure: Arc::downgrade(&pod.pressure),
            spool: setup.cache.spool().to_owned(),
        };
        let workers = Workers::start(setup.workers, &pod).context("could not start the workers")?;
        let acceptor = Acceptor::new(pod, workers, setup.max_connections);
        let secrets = Secrets(setup.secrets.clone());
        let explicit = Arc::new(Mutex::new(Explicit::new(acceptor.clone(), setup.sockets.clone(), secrets.clone())));
        let changes = config.subscribe(); // before it is read, so that no change is missed
        let following = Following {
            config,
            explicit: Arc::clone(&explicit),
            cache,
            purges: setup.purges.clone(),
            limiter,
            throttles: setup.throttles.clone(),
            secrets,
            disk: setup.disk.clone(),
            redis: Mutex::default(),
            redis_metrics,
        };
        // Before anybody is served: limits that pods share would be counted by this one alone.
        following.share();
        following.throttle();
        if let Some(ports) = setup.interception {
            intercept(&acceptor, &setup.sockets, ports)?;
        }
        let mut failed = open(&explicit, &following.config.load());
        if let Some(lost) = failed.iter().position(ListenError::is_loss).filter(|_| setup.strict) {
            return Err(failed.swap_remove(lost).into());
        }
        close_spare(&following.config, &lock(&explicit));
        tokio::spawn(following.run(changes, failed));
        // It has to know of the log of purges, which is followed by now.
        Ok(Self { explicit, snapshots: snapshots.start() })
    }

    /// Waits until what outlives the pod is written, once it drains; whether it is. Else it is given up in this time, which leaves nothing
    /// behind.
    pub async fn finish(&self, at_most: Duration) -> bool {
        self.snapshots.finish(at_most).await
    }

    /// Names and addresses of the listeners of mode Explicit.
    pub fn listeners(&self) -> Vec<(String, SocketAddr)> {
        lock(&self.explicit).addresses()
    }
}

/// What the workers share.
fn assemble(config: &Shared, metrics: Arc<Metrics>, limiter: Arc<Limiter>, drain: drain::Handle, setup: &Setup) -> Pod {
    let own = Arc::new(Own::default());
    setup.own.iter().for_each(|address| own.add(*address));
    let tls_metrics = tls::Metrics::default();
    metrics.register(|registry| tls_metrics.register(registry));
    Pod {
        config: config.clone(),
        limiter,
        drain,
        caps: Arc::new(Caps::default()),
        standing: Arc::new(Standing::default()),
        connector: Arc::new(Connector::new(Resolver::new(setup.name_servers.clone(), Arc::clone(&metrics)), Arc::clone(&own))),
        metrics,
        originations: Originations::new(Secrets(setup.secrets.clone()), tls_metrics.clone()),
        tls: tls_metrics,
        speakers: Arc::new(Speakers::new(setup.speakers.clone())),
        own,
        via: Arc::new(Vias::new(&setup.unique)),
        pressure: Arc::default(),
        cache: Cache::new(&config.load().settings().cache.memory, setup.purges.clone()),
        throttles: setup.throttles.clone(),
    }
}

fn watch_memory(pod: &Pod, group: Group) -> std::io::Result<()> {
    let (drain, metrics) = (pod.drain.clone(), Arc::clone(&pod.metrics));
    let users = move || {
        let users = |direction| drain.open(direction) as u64 + metrics.under_way(direction);
        users(Direction::Inbound) + users(Direction::Outbound)
    };
    let (caps, drain) = (Arc::clone(&pod.caps), pod.drain.clone());
    let (cache, pressure) = (Arc::clone(&pod.cache), Arc::downgrade(&pod.pressure));
    let relief: Vec<Relief> = vec![
        Box::new(move |_| caps.give_back()),
        Box::new(move |step| {
            if step >= Step::Refuse {
                drain.remind()
            }
        }),
        Box::new(move |_| shed(&cache, &pressure)),
    ];
    pressure::watch(&pod.pressure, group, users, relief)
}

/// Gives back answers that are kept. The pressure lives as long as those who look at it, and so must not be held by who relieves it.
fn shed(cache: &Cache, pressure: &Weak<Pressure>) {
    let gone = cache.shed();
    if let Some(pressure) = pressure.upgrade() {
        pressure.reclaimed("cache", usize::try_from(gone).unwrap_or(usize::MAX));
    }
}

fn lock(explicit: &Mutex<Explicit>) -> std::sync::MutexGuard<'_, Explicit> {
    explicit.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Puts the listeners and the TLS with second upstreams in force.
fn open(explicit: &Mutex<Explicit>, config: &Config) -> Vec<ListenError> {
    let seconds = [&config.inbound, &config.outbound].into_iter().flat_map(|routes| routes.second_upstreams());
    lock(explicit).open(listeners(config.settings()), seconds)
}

/// Closes sockets that are held, and that the configuration does not name; while there is none, it may still name them.
fn close_spare(config: &Shared, explicit: &Explicit) {
    let current = config.load();
    if current.standing != config::Standing::Waiting {
        explicit.close_spare(listeners(current.settings()));
    }
}

fn intercept(acceptor: &Acceptor, sockets: &Sockets, ports: Interception) -> anyhow::Result<()> {
    let loopback = |port| SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port);
    let all = [
        (ports.inbound, Listening::inbound(sockets, ports.inbound)),
        (ports.outbound, Listening::outbound(sockets, loopback(ports.outbound))),
        (FORWARD_PORT, Listening::forward(sockets, loopback(FORWARD_PORT))),
    ];
    for (port, listening) in all {
        let listening = listening.with_context(|| format!("could not listen on port {port}"))?;
        acceptor.pod.own.add(listening.address()?);
        acceptor.home().spawn(acceptor.clone().accept(listening));
    }
    // Where the pod has IPv6, redirected connections of the application arrive on its loopback address.
    let v6 = SocketAddr::new(std::net::Ipv6Addr::LOCALHOST.into(), ports.outbound);
    if let Ok(listening) = Listening::outbound(sockets, v6) {
        acceptor.pod.own.add(v6);
        acceptor.home().spawn(acceptor.clone().accept(listening));
    }
    Ok(())
}

fn listeners(settings: &FetchrProxySpec) -> &[Listener] {
    match settings.interception.mode {
        InterceptionMode::Explicit => &settings.interception.listeners,
        InterceptionMode::Init => &[],
    }
}

/// What is kept as the configuration says.
struct Following {
    config: Shared,
    explicit: Arc<Mutex<Explicit>>,
    cache: Arc<Cache>,
    purges: PodPurges,
    limiter: Arc<Limiter>,
    throttles: PodThrottles,
    secrets: Secrets,
    disk: DiskPlace,
    /// What the pods share.
    redis: Mutex<Option<Redis>>,
    redis_metrics: redis::Metrics,
}

impl Following {
    /// Keeps cache, purges and listeners as the configuration and its files say.
    async fn run(self, mut changes: watch::Receiver<u64>, failed: Vec<ListenError>) {
        let (mut files, ended) = (Files::default(), lock(&self.explicit).ended());
        let (mut refused, mut told) = (failed.iter().any(ListenError::may_pass), tell(&failed, &[]));
        loop {
            files.watch(lock(&self.explicit).files());
            let again = if refused { BIND_AGAIN } else { files.recheck() };
            tokio::select! {
                changed = changes.changed() => if changed.is_err() { return },
                () = files.changed() => {}
                () = ended.notified() => {}
                () = sleep(again) => {}
            }
            self.resize_cache();
            self.share();
            self.throttle();
            let failed = self.listen().await;
            refused = failed.iter().any(ListenError::may_pass);
            told = tell(&failed, &told);
        }
    }

    fn throttle(&self) {
        self.throttles.0.apply(&self.config.load());
    }

    fn resize_cache(&self) {
        let (cache, memory) = (Arc::clone(&self.cache), self.config.load().settings().cache.memory);
        // Nobody waits for it: what is too much goes bit by bit.
        drop(tokio::task::spawn_blocking(move || cache.apply(&memory)));
    }

    /// Shares purges and answers with other pods as the configuration says. If that can't be, the pod is for itself.
    fn share(&self) {
        let config = self.config.load();
        let Some(planned) = &config.planned else { return };
        let spec = config.settings();
        let shared =
            Scope::of(&planned.plan.proxy, &config.identity).and_then(|scope| Ok(self.redis(spec)?.map(|redis| (scope, redis))));
        let redis = shared.unwrap_or_else(|why| {
            tracing::error!(why, "Nothing can be shared through Redis: purges, answers and limits are of this pod alone.");
            None
        });
        let (log, tier) = match &redis {
            Some((scope, redis)) => (Some(PurgeLog::of(spec, redis, scope)), TierSettings::of(spec, redis, scope)),
            None => (None, None),
        };
        self.share_limits(&config, redis);
        // In this order, for what other pods stored is judged by the log.
        self.purges.follow(log);
        self.cache.share(tier);
        let disk = DiskSettings::of(config.settings(), &self.disk).unwrap_or_else(|why| {
            tracing::error!(why, "Nothing is kept on disk.");
            None
        });
        self.cache.keep_on_disk(disk);
    }

    /// Counts limits that pods share in Redis, if there are any. Where that is named and can't be used, their policies say what holds.
    fn share_limits(&self, config: &Config, shared: Option<(Scope, Redis)>) {
        let has_any = [&config.inbound, &config.outbound].into_iter().any(|routes| routes.has_shared_limits());
        let store = config.settings().redis.as_ref().filter(|_| has_any).map(|settings| {
            let (scope, redis) = shared.unzip();
            let namespace = scope.map_or_else(String::new, |scope| scope.parts().0.to_owned());
            limit::StoreSettings { redis, patience: settings.command_timeout.0, namespace }
        });
        self.limiter.hold_at_most(config.settings().rate_limits.max_counts);
        self.limiter.share(store, config.identity.live_pods);
    }

    /// The Redis that the configuration names: the one of before, if it still is that one.
    fn redis(&self, spec: &FetchrProxySpec) -> Result<Option<Redis>, String> {
        let settings = spec.redis.as_ref().map(|redis| redis::Settings::new(redis, &self.secrets)).transpose()?;
        let mut redis = self.redis.lock().unwrap_or_else(PoisonError::into_inner);
        if redis.as_ref().map(Redis::settings) != settings.as_ref() {
            *redis = settings.map(|settings| Redis::start(settings, self.redis_metrics.clone()));
        }
        Ok(redis.clone())
    }

    /// Opens what is missing, and closes what is not named any more.
    async fn listen(&self) -> Vec<ListenError> {
        let closed = lock(&self.explicit).close_others(listeners(self.config.load().settings()));
        for task in closed {
            // It was aborted; its socket is spare once it has ended.
            let _ = task.await;
        }
        // Before others are opened, whose addresses may be the same in part.
        close_spare(&self.config, &lock(&self.explicit));
        open(&self.explicit, &self.config.load())
    }
}

/// Logs what failed, but not what was told the last time.
fn tell(failed: &[ListenError], told: &[String]) -> Vec<String> {
    let texts: Vec<String> = failed.iter().map(ToString::to_string).collect();
    for (error, text) in failed.iter().zip(&texts).filter(|(_, text)| !told.contains(text)) {
        let cause = std::error::Error::source(error).map(ToString::to_string);
        tracing::error!(cause, "{text}.");
    }
    texts
}

/// The files of certificates.
#[derive(Default)]
struct Files {
    paths: Vec<PathBuf>,
    watched: Option<(Watch, mpsc::Receiver<()>)>,
    /// What changed between the first reading and the first watch was told to nobody.
    unsure: bool,
}

impl Files {
    fn watch(&mut self, paths: Vec<PathBuf>) {
        if paths != self.paths {
            self.watched = (!paths.is_empty()).then(|| {
                let (changes, changed) = mpsc::channel(1);
                (Watch::new(&paths, changes), changed)
            });
            (self.paths, self.unsure) = (paths, true);
        }
        if let Some((watch, _)) = &mut self.watched {
            watch.renew();
        }
    }

    /// How long until they are read again although no change was told: events can be lost.
    fn recheck(&mut self) -> Duration {
        match std::mem::take(&mut self.unsure) {
            _ if self.paths.is_empty() => Duration::MAX,
            true => Duration::ZERO,
            false => RECHECK,
        }
    }

    async fn changed(&mut self) {
        let Some((_, changed)) = &mut self.watched else { return std::future::pending().await };
        match changed.recv().await {
            Some(()) => quiet(changed).await,
            None => std::future::pending().await, // they can't be watched
        }
    }
}
