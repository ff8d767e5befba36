//! Wiring: one supervised task per job, one way to shut down.

use std::{
    future::Future,
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use kube::{Client, Config};
use prometheus_client::registry::Registry;
use tokio::{
    net::{TcpListener, TcpSocket},
    sync::watch,
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{
    api::{self, Api, FrontProxies, Reviews},
    certs::{self, Certs},
    coldstart, compile,
    context::Context,
    default_proxy,
    deliver::{self, Hub},
    health::{self, Check, Health, Heart},
    https,
    index::Shared,
    inject::{self, Injector},
    lease::{self, Leadership, LeaseError, Seat},
    metrics::Metrics,
    missed,
    settings::Settings,
    status::{self, Reporter},
    stream::{self, Authenticator},
    watch::{self as watches, Watches},
    webhook::{self, ApiServer, Lookup, Webhook, Workers},
};

/// From SIGTERM until requests are no longer taken: Services must first have learned that this replica is not ready.
const DRAIN: Duration = Duration::from_secs(3);
/// How long tasks may take to end.
const END: Duration = Duration::from_secs(10);

/// Why the operator ended.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// No client could be made for the API server.
    #[error("no client for the API server")]
    Client(#[source] kube::Error),
    /// A port could not be bound.
    #[error("could not listen on port {port}")]
    Listen {
        /// The port.
        port: u16,
        /// Why.
        source: io::Error,
    },
    /// The lease was lost.
    #[error(transparent)]
    Lease(#[from] LeaseError),
    /// A task ended that should not.
    #[error("the task {task} ended by itself; the process ends, to start afresh")]
    Ended {
        /// Its name.
        task: &'static str,
        /// Why, if it said so.
        source: Option<Box<dyn std::error::Error + Send + Sync>>,
    },
}

/// Where an operator listens; known once it is bound, also where a port of 0 was asked for.
#[derive(Clone, Copy, Debug)]
pub struct Addresses {
    /// The admission webhooks.
    pub webhooks: SocketAddr,
    /// The config streams.
    pub streams: SocketAddr,
    /// Metrics and health.
    pub metrics: SocketAddr,
    /// The aggregated API.
    pub api: SocketAddr,
}

/// An operator whose ports are bound.
pub struct Operator {
    config: Config,
    settings: Settings,
    webhooks: TcpListener,
    streams: TcpListener,
    metrics: TcpListener,
    api: TcpListener,
}

impl Operator {
    /// Binds all ports.
    pub fn bind(config: Config, settings: Settings) -> Result<Self, RunError> {
        let webhooks = listen(settings.webhook_port)?;
        let streams = listen(settings.stream_port)?;
        let metrics = listen(settings.metrics_port)?;
        let api = listen(settings.api_port)?;
        Ok(Self { config, settings, webhooks, streams, metrics, api })
    }

    /// Where it listens.
    pub fn addresses(&self) -> io::Result<Addresses> {
        Ok(Addresses {
            webhooks: self.webhooks.local_addr()?,
            streams: self.streams.local_addr()?,
            metrics: self.metrics.local_addr()?,
            api: self.api.local_addr()?,
        })
    }

    /// Serves until `stop`, or until a task ends that should not.
    pub async fn run(self, stop: CancellationToken) -> Result<(), RunError> {
        let (mut registry, metrics) = Metrics::new();
        let client = Client::try_from(self.config.clone()).map_err(RunError::Client)?;
        let (seat, leadership) = Leadership::new(&mut registry);
        let cx = Context { client, settings: self.settings, leadership, metrics, shutdown: CancellationToken::new() };
        let leading = cx.shutdown.child_token();
        let mut parts = Parts {
            cx,
            leading,
            registry,
            tasks: Tasks::default(),
            heart: Heart::default(),
            index: Shared::default(),
            checks: Vec::new(),
        };

        let certs = parts.certificates();
        let compilations = parts.watch_and_compile();
        let https = https::Metrics::register(&mut parts.registry);
        parts.admit(certs.clone(), https.clone(), self.webhooks);
        let hub = parts.deliver(compilations.clone(), certs.clone(), self.streams);
        parts.administer(certs.clone(), https.clone(), &hub, self.api);
        parts.lead(self.config, seat, compilations, certs, &hub)?;
        parts.supervise(self.metrics, https, stop).await
    }
}

/// The operator under construction.
struct Parts {
    cx: Context,
    /// Ends what only the leader does.
    leading: CancellationToken,
    registry: Registry,
    tasks: Tasks,
    heart: Heart,
    index: Shared,
    checks: Vec<Check>,
}

impl Parts {
    /// What a task is given that works only while this replica leads.
    fn leader(&self) -> Context {
        Context { shutdown: self.leading.clone(), ..self.cx.clone() }
    }

    /// Follows the Secret of certificates, and keeps it while this replica leads.
    fn certificates(&mut self) -> Certs {
        let installer = certs::Installer::new(&mut self.registry);
        let certs = installer.certs();
        self.tasks.spawn_quiet("certificates", certs::follow(self.cx.clone(), installer));
        self.tasks.spawn_quiet("renewal", certs::keep(self.leader()));
        let served = certs.clone();
        self.checks.push(Arc::new(move || served.borrow().is_none().then_some("certificates")));
        certs
    }

    /// Serves the admission webhooks.
    fn admit(&mut self, certs: Certs, https: https::Metrics, listener: TcpListener) {
        let webhook = Webhook {
            lookup: Lookup {
                cluster: Arc::new(self.index.clone()),
                fallback: Arc::new(ApiServer(self.cx.client.clone())),
                operator_namespace: self.cx.settings.names.namespace.clone(),
            },
            injector: Injector::from(&self.cx.settings),
            certs: certs.clone(),
            workers: Workers::default(),
            metrics: webhook::Metrics::register(&mut self.registry),
        };
        let server = https::Server {
            name: "webhook",
            router: webhook::router(Arc::new(webhook)),
            tls: Some(watch::Sender::new(Arc::new(certs::server_config(certs, &https::PROTOCOLS))).subscribe()),
            limits: https::FOR_API_SERVERS,
            metrics: https,
            shutdown: self.cx.shutdown.clone(),
        };
        self.tasks.spawn("webhooks", async move { Ok(server.serve(listener).await?) });
    }

    /// Serves the aggregated API.
    fn administer(&mut self, certs: Certs, https: https::Metrics, hub: &Hub, listener: TcpListener) {
        let front_proxies = FrontProxies::new(certs);
        let api = Api {
            sidecars: Arc::new(hub.clone()),
            authorizer: Arc::new(Reviews(self.cx.client.clone())),
            front_proxies: front_proxies.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            metrics: api::Metrics::register(&mut self.registry),
        };
        let server = https::Server {
            name: "api",
            router: api::router(Arc::new(api)),
            tls: Some(front_proxies.tls()),
            limits: https::FOR_API_SERVERS,
            metrics: https,
            shutdown: self.cx.shutdown.clone(),
        };
        self.tasks.spawn("api", async move { Ok(server.serve(listener).await?) });
        let (client, shutdown) = (self.cx.client.clone(), self.cx.shutdown.clone());
        self.tasks.spawn_quiet("front proxy", async move { front_proxies.follow(client, shutdown).await });
    }

    /// Watches the cluster and compiles plans of it.
    fn watch_and_compile(&mut self) -> compile::Compilations {
        let watches = Watches {
            client: self.cx.client.clone(),
            index: self.index.clone(),
            metrics: watches::Metrics::register(&mut self.registry),
            heart: self.heart.clone(),
            outages: watches::Outages::default(),
            shutdown: self.cx.shutdown.clone(),
        };
        let outages = watches.outages.clone();
        self.checks.push(Arc::new(move || outages.is_stale(Instant::now()).then_some("the API server")));
        self.tasks.spawn_quiet("watch", async move { watches.run().await });
        let (newest, compilations) = watch::channel(None);
        let metrics = compile::Metrics::register(&mut self.registry);
        let (index, namespace, shutdown) =
            (self.index.clone(), self.cx.settings.names.namespace.clone(), self.cx.shutdown.clone());
        self.tasks.spawn_quiet("compile", compile::run(index, namespace, newest, metrics, shutdown));
        // Pods must not be admitted before the proxy is known that they fall back to. Later on it may go and come.
        let (index, namespace, seen) = (self.index.clone(), self.cx.settings.names.namespace.clone(), AtomicBool::new(false));
        self.checks.push(Arc::new(move || {
            let is_known = seen.load(Ordering::Relaxed) || default_proxy::is_there(&index, &namespace);
            seen.store(is_known, Ordering::Relaxed);
            (!is_known).then_some("the default proxy")
        }));
        let compiled = compilations.clone();
        self.checks.push(Arc::new(move || compiled.borrow().is_none().then_some("the first list of every kind")));
        compilations
    }

    /// Serves streams.
    fn deliver(&mut self, compilations: compile::Compilations, certs: Certs, listener: TcpListener) -> Hub {
        let hub = Hub::new(deliver::Metrics::register(&mut self.registry), &self.cx.settings.cluster_domain);
        let (deliverer, index, shutdown) = (hub.clone(), self.index.clone(), self.cx.shutdown.clone());
        self.tasks.spawn_quiet("deliver", async move { deliverer.run(index, compilations, shutdown).await });
        let tls = Arc::new(certs::server_config(certs.clone(), &["h2"]));
        let metrics = stream::Metrics::register(&mut self.registry);
        let service = stream::Service {
            hub: hub.clone(),
            index: self.index.clone(),
            authenticator: Authenticator::new(self.cx.client.clone(), &mut self.registry),
            operator_namespace: self.cx.settings.names.namespace.clone(),
            certs,
            shutdown: self.cx.shutdown.clone(),
        };
        self.tasks.spawn("streams", async move { Ok(stream::serve(listener, tls, service, metrics).await?) });
        hub
    }

    /// What only the leader does, and the election.
    fn lead(
        &mut self,
        config: Config,
        seat: Seat,
        compilations: compile::Compilations,
        certs: Certs,
        hub: &Hub,
    ) -> Result<(), RunError> {
        let (cx, index) = (&self.leader(), &self.index);
        let (too_large, not_fitting) = watch::channel(coldstart::TooLarge::new());
        self.tasks.spawn_quiet("cold start", coldstart::run(cx.clone(), index.clone(), compilations.clone(), certs, too_large));
        let injector = Injector::from(&cx.settings);
        let reporter = Reporter {
            cx: cx.clone(),
            index: index.clone(),
            compilations,
            hub: hub.clone(),
            too_large: not_fitting,
            settings_digest: Arc::new(move |proxy, required| inject::settings_digest(proxy, &injector, required)),
            metrics: status::Metrics::register(&mut self.registry),
        };
        self.tasks.spawn_quiet("status", reporter.run());
        let metrics = missed::Metrics::register(&mut self.registry);
        let mut once = config.clone();
        once.default_retry = false;
        let evictor = Client::try_from(once).map_err(RunError::Client)?;
        self.tasks.spawn_quiet("missed pods", missed::run(cx.clone(), evictor, index.clone(), metrics));
        self.tasks.spawn_quiet("default proxy", default_proxy::run(cx.clone(), index.clone()));
        let (settings, heart, shutdown) = (cx.settings.clone(), self.heart.clone(), self.cx.shutdown.clone());
        self.tasks.spawn("election", async move { Ok(lease::run(config, &settings, seat, &heart, shutdown).await?) });
        Ok(())
    }

    /// Waits for the end, whoever brings it about.
    async fn supervise(mut self, listener: TcpListener, https: https::Metrics, stop: CancellationToken) -> Result<(), RunError> {
        let shutdown = self.cx.shutdown.clone();
        let draining = Arc::new(AtomicBool::new(false));
        let drains = draining.clone();
        self.checks.push(Arc::new(move || drains.load(Ordering::Relaxed).then_some("the end of this process")));
        let health = Health { heart: self.heart, checks: self.checks, registry: Arc::new(self.registry) };
        let server = https::Server {
            name: "health",
            router: health::router(health),
            tls: None,
            limits: https::FOR_PROBES,
            metrics: https,
            shutdown: shutdown.clone(),
        };
        self.tasks.spawn("health", async move { Ok(server.serve(listener).await?) });

        let result = tokio::select! {
            ended = self.tasks.first_to_end() => {
                warn!(error = %ended, "Ending: not ready from now on.");
                // Another replica may lead already.
                self.leading.cancel();
                Err(ended)
            }
            () = stop.cancelled() => {
                info!("Ending: not ready from now on.");
                Ok(())
            }
        };
        draining.store(true, Ordering::Relaxed);
        sleep(DRAIN).await;
        shutdown.cancel();
        self.tasks.end().await;
        result
    }
}

/// IPv6 and IPv4; only IPv4 where the node has no IPv6.
fn listen(port: u16) -> Result<TcpListener, RunError> {
    let bind = |address: SocketAddr| {
        let socket = if address.is_ipv6() { TcpSocket::new_v6()? } else { TcpSocket::new_v4()? };
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(1024)
    };
    bind((Ipv6Addr::UNSPECIFIED, port).into())
        .or_else(|_| bind((Ipv4Addr::UNSPECIFIED, port).into()))
        .map_err(|source| RunError::Listen { port, source })
}

type Ending = Result<(), Box<dyn std::error::Error + Send + Sync>>;

/// Tasks that run until shut-down. One that ends before is a fault.
#[derive(Default)]
struct Tasks(JoinSet<(&'static str, Ending)>);

impl Tasks {
    fn spawn(&mut self, name: &'static str, task: impl Future<Output = Ending> + Send + 'static) {
        self.0.spawn(async move { (name, task.await) });
    }

    /// A task that has no error to tell.
    fn spawn_quiet(&mut self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        self.0.spawn(async move {
            task.await;
            (name, Ok(()))
        });
    }

    async fn first_to_end(&mut self) -> RunError {
        match self.0.join_next().await {
            Some(Ok((task, ended))) => match ended {
                Err(error) => match error.downcast::<LeaseError>() {
                    Ok(lease) => RunError::Lease(*lease),
                    Err(source) => RunError::Ended { task, source: Some(source) },
                },
                Ok(()) => RunError::Ended { task, source: None },
            },
            Some(Err(panic)) => RunError::Ended { task: "that panicked", source: Some(panic.into()) },
            None => RunError::Ended { task: "none of all", source: None },
        }
    }

    /// Waits for all, and cuts off who is too slow.
    async fn end(mut self) {
        let all = async { while self.0.join_next().await.is_some() {} };
        if timeout(END, all).await.is_err() {
            warn!("Some tasks did not end in time; they are cut off.");
        }
    }
}
