//! One thread with one runtime: its connections, its upstream pool, and its share of what the pod holds together.

use std::{
    future::Future,
    io, net,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use crds::policy::Direction;
use tokio::{
    runtime::{Builder, Handle, LocalOptions},
    sync::mpsc,
};

use crate::{
    cache::Cache,
    config::Shared,
    connection::{self, Arrival, Speakers},
    drain,
    fields::{Date, Via},
    limit::Limiter,
    metrics::{ByteLabels, ConnectionLabels, Meter, Metrics, Raised},
    own::Own,
    pressure::Pressure,
    throttle::{PodThrottles, Throttles},
    tls, tunnel,
    upstream::{
        balance::Balancer,
        connect::Connector,
        pool::{Caps, Pool},
        standing::{Seen, Standing},
    },
};

/// Stack of a worker's thread. Futures live on the heap, so this is for calls only.
const STACK: usize = 1 << 20;

/// What all workers of the pod share.
#[derive(Clone)]
pub(crate) struct Pod {
    pub(crate) config: Shared,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) limiter: Arc<Limiter>,
    pub(crate) drain: drain::Handle,
    pub(crate) caps: Arc<Caps>,
    pub(crate) connector: Arc<Connector>,
    pub(crate) standing: Arc<Standing>,
    pub(crate) tls: tls::Metrics,
    pub(crate) originations: Arc<tls::Originations>,
    pub(crate) speakers: Arc<Speakers>,
    pub(crate) own: Arc<Own>,
    pub(crate) via: Arc<Vias>,
    pub(crate) pressure: Arc<Pressure>,
    pub(crate) cache: Arc<Cache>,
    pub(crate) throttles: PodThrottles,
}

/// How the sidecar names itself in `Via`, by direction: a request that leaves one pod and enters it again is no loop.
pub(crate) struct Vias {
    pub(crate) inbound: Via,
    pub(crate) outbound: Via,
}

impl Vias {
    /// Names with a part that no other sidecar has.
    pub(crate) fn new(unique: &str) -> Self {
        Self { inbound: Via::new(&format!("fetchr-{unique}-in")), outbound: Via::new(&format!("fetchr-{unique}-out")) }
    }
}

/// A worker, as its own tasks see it.
pub(crate) struct Worker {
    pub(crate) config: Shared,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) limiter: Arc<Limiter>,
    pub(crate) drain: drain::Handle,
    pub(crate) connector: Arc<Connector>,
    pub(crate) tls: tls::Metrics,
    /// TLS with upstreams that no listener names.
    pub(crate) originations: Arc<tls::Originations>,
    /// Its handshakes with clients.
    pub(crate) turns: tls::Turns,
    /// Who speaks first where.
    pub(crate) speakers: Arc<Speakers>,
    pub(crate) via: Arc<Vias>,
    /// How short memory is.
    pub(crate) pressure: Arc<Pressure>,
    /// The answers that are kept.
    pub(crate) cache: Arc<Cache>,
    /// Who waits for upstreams.
    pub(crate) throttles: Arc<Throttles>,
    pub(crate) pool: Rc<Pool>,
    /// How its upstreams stand, for all workers.
    pub(crate) seen: Seen,
    /// The names that it balances.
    pub(crate) balancer: Balancer,
    /// What its requests are counted by.
    pub(crate) meter: Rc<Meter>,
    /// The time of day for `Date` fields.
    pub(crate) date: Date,
}

impl Worker {
    /// The counters of a tunnel's bytes.
    pub(crate) fn tunnel_bytes(&self, direction: Direction) -> tunnel::Bytes {
        let bytes = |part| self.metrics.bytes.get_or_create_owned(&ByteLabels { direction: direction.into(), part });
        tunnel::Bytes { sent: bytes("request"), received: bytes("response") }
    }

    /// Counts an open connection of a kind until the guard is dropped.
    pub(crate) fn connection_gauge(&self, direction: Direction, kind: &'static str) -> Raised {
        Raised::new(self.metrics.connections.get_or_create_owned(&ConnectionLabels { direction: direction.into(), kind }))
    }
}

/// Runs futures on the worker that they are born on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LocalExecutor;

impl<F: Future<Output = ()> + 'static> hyper::rt::Executor<F> for LocalExecutor {
    fn execute(&self, future: F) {
        tokio::task::spawn_local(future);
    }
}

/// Hands sockets to the least busy worker.
#[derive(Clone)]
pub(crate) struct Workers {
    workers: Arc<[Seat]>,
}

struct Seat {
    open: Arc<AtomicUsize>,
    arrivals: mpsc::UnboundedSender<(Socket, Arrival, Busy)>,
    runtime: Handle,
}

/// What a client came by.
pub(crate) enum Socket {
    Tcp(net::TcpStream),
    /// A handshake that has begun, and what counts it as under way.
    #[cfg(feature = "http3")]
    Quic(Box<quinn::Incoming>, Arc<()>),
}

/// A connection that a worker is busy with.
pub(crate) struct Busy(Arc<AtomicUsize>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Workers {
    /// Starts `count` threads.
    pub(crate) fn start(count: usize, pod: &Pod) -> io::Result<Self> {
        let seats: io::Result<Vec<Seat>> = (0..count.max(1)).map(|number| Seat::start(number, pod.clone())).collect();
        Ok(Self { workers: seats?.into() })
    }

    /// The runtime of the worker, if there is but one.
    pub(crate) fn only(&self) -> Option<&Handle> {
        let [seat] = &*self.workers else { return None };
        Some(&seat.runtime)
    }

    /// Hands a socket over. The queue needs no bound of its own: the listeners bound the connections of the pod.
    pub(crate) fn serve(&self, socket: Socket, arrival: Arrival) {
        let least = self.workers.iter().min_by_key(|seat| seat.open.load(Ordering::Relaxed));
        let Some(seat) = least else { return };
        seat.open.fetch_add(1, Ordering::Relaxed);
        // A worker that is gone drops the socket, and so closes it.
        let _ = seat.arrivals.send((socket, arrival, Busy(Arc::clone(&seat.open))));
    }
}

impl Seat {
    fn start(number: usize, pod: Pod) -> io::Result<Self> {
        let (arrivals, incoming) = mpsc::unbounded_channel();
        let (started, handle) = std::sync::mpsc::sync_channel(1);
        let runtime = move |pod| -> io::Result<()> {
            let runtime = Builder::new_current_thread().enable_all().build_local(LocalOptions::default())?;
            let _ = started.send(runtime.handle().clone()); // who started it waits
            runtime.block_on(work(pod, incoming));
            Ok(())
        };
        thread::Builder::new().name(format!("worker-{number}")).stack_size(STACK).spawn(move || {
            if let Err(error) = runtime(pod) {
                tracing::error!(%error, number, "A worker could not start.");
                std::process::exit(1);
            }
        })?;
        let runtime = handle.recv().map_err(|_| io::Error::other("its runtime did not start"))?;
        Ok(Self { open: Arc::new(AtomicUsize::new(0)), arrivals, runtime })
    }
}

async fn work(pod: Pod, mut incoming: mpsc::UnboundedReceiver<(Socket, Arrival, Busy)>) {
    let open = pod.metrics.upstream_open.clone();
    let pool = Pool::new(pod.caps, Arc::clone(&pod.connector), open, Arc::clone(&pod.pressure));
    tokio::task::spawn_local(Rc::clone(&pool).keep());
    pod.metrics.tasks.watch(Handle::current());
    let Pod {
        config,
        metrics,
        limiter,
        drain,
        connector,
        standing,
        tls,
        originations,
        speakers,
        via,
        pressure,
        cache,
        throttles,
        ..
    } = pod;
    let (seen, balancer) = (Seen::new(standing), Balancer::default());
    let (meter, date) = (Rc::new(Meter::new(Arc::clone(&metrics))), Date::default());
    let worker = Rc::new(Worker {
        config,
        metrics,
        limiter,
        drain,
        connector,
        tls,
        originations,
        turns: tls::Turns::default(),
        speakers,
        via,
        pressure,
        cache,
        throttles: throttles.0,
        pool,
        seen,
        balancer,
        meter,
        date,
    });
    while let Some((socket, arrival, busy)) = incoming.recv().await {
        let worker = Rc::clone(&worker);
        match socket {
            Socket::Tcp(stream) => match tokio::net::TcpStream::from_std(stream) {
                Ok(stream) => spawn(connection::serve(worker, stream, arrival), busy),
                Err(error) => tracing::warn!(%error, "A socket could not be registered."),
            },
            #[cfg(feature = "http3")]
            Socket::Quic(incoming, shaking) => spawn(connection::quic::serve(worker, incoming, shaking, arrival), busy),
        }
    }
}

fn spawn(served: impl Future<Output = ()> + 'static, busy: Busy) {
    tokio::task::spawn_local(async move {
        served.await;
        drop(busy);
    });
}
