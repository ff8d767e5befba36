//! Leader election by a Lease: the leader writes status, ConfigMaps and registrations; every replica serves.

use std::{
    task::{Context, Poll},
    time::{Duration, Instant},
};

use futures::{FutureExt, future::BoxFuture};
use http::{Method, Request, Response};
use kube::{Client, Config, client::ClientBuilder};
use kube_lease_manager::{LeaseManager, LeaseManagerBuilder, LeaseManagerError};
use prometheus_client::{metrics::gauge::Gauge, registry::Registry};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tower::{Layer, Service};
use tracing::{info, warn};

use crate::{health::Heart, settings::Settings};

/// Seconds that a lease holds after its last renewal.
const DURATION: u64 = 15;
/// Seconds before its end at which it is renewed.
const GRACE: u64 = 5;
/// How often the election must be seen alive.
const ALIVE_WITHIN: Duration = Duration::from_secs(60);
/// A request that takes longer has failed: a stuck one must not outlive the lease.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(3);

/// Longest name of a field manager that the API server takes.
const FIELD_MANAGER: usize = 128;

/// Whether this replica leads; cheap to clone.
#[derive(Clone, Debug)]
pub struct Leadership(watch::Receiver<bool>);

impl Leadership {
    /// A handle, and the end that [`run`] drives.
    pub fn new(registry: &mut Registry) -> (Seat, Self) {
        let seat = Seat { leads: watch::Sender::new(false), gauge: Gauge::default() };
        registry.register("leader", "Whether this replica leads", seat.gauge.clone());
        let leadership = Self(seat.leads.subscribe());
        (seat, leadership)
    }

    /// Whether this replica leads now.
    pub fn is_leader(&self) -> bool {
        *self.0.borrow()
    }

    /// Waits until this replica leads; for ever, if the elector has ended.
    pub async fn acquired(&mut self) {
        if self.0.wait_for(|leads| *leads).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// The end of [`Leadership`] that the election drives.
#[derive(Debug)]
pub struct Seat {
    leads: watch::Sender<bool>,
    gauge: Gauge,
}

impl Seat {
    fn is_taken(&self) -> bool {
        *self.leads.borrow()
    }

    fn take(&self) {
        self.leads.send_replace(true);
        self.gauge.set(1);
    }
}

/// Why the election ended.
#[derive(Debug, thiserror::Error)]
pub enum LeaseError {
    /// Another replica may lead from now on, so this one must stop writing at once.
    #[error("the lease {lease} was lost to {holder}; this process ends so that nothing is written twice")]
    Lost {
        /// Name of the Lease.
        lease: String,
        /// Who has it, or why it could not be kept.
        holder: String,
    },
    /// No client could be made for the API server.
    #[error("no client for the lease")]
    Client(#[source] kube::Error),
}

/// Takes part in the election until `shutdown`, then gives the lease back. Ends with an error when a held lease is lost.
pub async fn run(
    mut config: Config,
    settings: &Settings,
    seat: Seat,
    heart: &Heart,
    shutdown: CancellationToken,
) -> Result<(), LeaseError> {
    config.connect_timeout = Some(REQUEST_TIMEOUT);
    config.read_timeout = Some(REQUEST_TIMEOUT);
    config.write_timeout = Some(REQUEST_TIMEOUT);
    // Tries of its own would take longer than the lease holds.
    config.default_retry = false;
    let renewals = Renewals::new(heart.clone());
    let client = ClientBuilder::try_from(config).map_err(LeaseError::Client)?.with_layer(&renewals).build();
    loop {
        heart.beat("election", ALIVE_WITHIN);
        let manager = tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            manager = manager(&client, settings) => manager,
        };
        match manager {
            Ok(manager) => tokio::select! {
                () = shutdown.cancelled() => {
                    release(&manager).await;
                    return Ok(());
                }
                ended = campaign(&manager, settings, &seat) => ended?,
                () = renewals.run_out(&seat) => return Err(LeaseError::Lost {
                    lease: settings.names.lease.clone(),
                    holder: format!("nobody known: no renewal succeeded for {DURATION} s"),
                }),
            },
            Err(error) => warn!(%error, lease = settings.names.lease, "Could not read the lease; trying again."),
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

async fn manager(client: &Client, settings: &Settings) -> Result<LeaseManager, LeaseManagerError> {
    LeaseManagerBuilder::new(client.clone(), &settings.names.lease)
        .with_namespace(&settings.names.namespace)
        .with_identity(&settings.pod_name)
        .with_duration(DURATION)
        .with_grace(GRACE)
        .with_field_manager(field_manager(&settings.pod_name))
        .build()
        .await
}

/// One for each replica: a lease taken by two of them at once is found out only by the conflict of their field managers.
fn field_manager(pod_name: &str) -> String {
    const PREFIX: &str = "fetchr-operator-lease-";
    // The end of a name tells pods of one Deployment apart.
    let start = pod_name.ceil_char_boundary(pod_name.len().saturating_sub(FIELD_MANAGER - PREFIX.len()));
    format!("{PREFIX}{}", &pod_name[start..])
}

/// Ok when the manager is of no more use to a replica that does not lead; an error when a held lease is lost.
async fn campaign(manager: &LeaseManager, settings: &Settings, seat: &Seat) -> Result<(), LeaseError> {
    let lost = |holder: &str| LeaseError::Lost { lease: settings.names.lease.clone(), holder: holder.to_owned() };
    let mut failing: Option<Failing> = None;
    loop {
        match manager.changed().await {
            Ok(true) => {
                info!(lease = settings.names.lease, "This replica leads.");
                seat.take();
            }
            Ok(false) if seat.is_taken() => return Err(lost("another replica")),
            Ok(false) => {}
            Err(error) if !seat.is_taken() => {
                warn!(%error, lease = settings.names.lease, "Could not take part in the election; starting over.");
                return Ok(());
            }
            Err(error) => {
                let since = Failing::since(failing, Instant::now());
                warn!(%error, lease = settings.names.lease, "Could not renew the lease.");
                if since.lasted() >= Duration::from_secs(GRACE) {
                    return Err(lost(&format!("nobody known: it could not be renewed for {} s", since.lasted().as_secs())));
                }
                failing = Some(since);
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
        }
    }
}

/// Renewals that fail one after the other. The first one fails [`GRACE`] before the lease ends.
#[derive(Clone, Copy, Debug)]
struct Failing {
    first: Instant,
    last: Instant,
}

impl Failing {
    /// Goes on with a series, unless a renewal must have succeeded in between.
    fn since(before: Option<Self>, now: Instant) -> Self {
        match before {
            Some(series) if now - series.last < Duration::from_secs(GRACE) => Self { last: now, ..series },
            _ => Self { first: now, last: now },
        }
    }

    fn lasted(self) -> Duration {
        self.last - self.first
    }
}

/// Sees the requests of the election: each that comes to an end, well or not, shows that the elector is alive, and a write that
/// succeeds begins the lease anew. The lease manager itself does not tell.
#[derive(Clone, Debug)]
struct Renewals {
    heart: Heart,
    /// When the last write that succeeded was begun.
    last: watch::Sender<tokio::time::Instant>,
}

impl Renewals {
    fn new(heart: Heart) -> Self {
        Self { heart, last: watch::Sender::new(tokio::time::Instant::now()) }
    }

    fn ended(&self, begun: tokio::time::Instant, has_written: bool) {
        self.heart.beat("election", ALIVE_WITHIN);
        if has_written {
            self.last.send_replace(begun);
        }
    }

    /// Waits until a held lease has run out, whatever the lease manager is waiting for.
    async fn run_out(&self, seat: &Seat) {
        let (mut leads, mut last) = (seat.leads.subscribe(), self.last.subscribe());
        loop {
            if leads.wait_for(|leads| *leads).await.is_err() {
                return std::future::pending().await;
            }
            let end = *last.borrow_and_update() + Duration::from_secs(DURATION);
            tokio::select! {
                () = tokio::time::sleep_until(end) => return,
                _ = last.changed() => {}
            }
        }
    }
}

impl<S> Layer<S> for Renewals {
    type Service = Seen<S>;

    fn layer(&self, inner: S) -> Seen<S> {
        Seen { inner, renewals: self.clone() }
    }
}

/// A client whose requests [`Renewals`] sees.
struct Seen<S> {
    inner: S,
    renewals: Renewals,
}

impl<S, B, R> Service<Request<B>> for Seen<S>
where
    S: Service<Request<B>, Response = Response<R>>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<S::Response, S::Error>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let (renewals, begun, is_write) = (self.renewals.clone(), tokio::time::Instant::now(), request.method() != Method::GET);
        let answer = self.inner.call(request);
        async move {
            let answer = answer.await;
            renewals.ended(begun, is_write && answer.as_ref().is_ok_and(|answer| answer.status().is_success()));
            answer
        }
        .boxed()
    }
}

async fn release(manager: &LeaseManager) {
    match tokio::time::timeout(REQUEST_TIMEOUT, manager.release()).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => warn!(%error, "Could not give the lease back; it runs out by itself."),
        Err(_) => warn!("Could not give the lease back in time; it runs out by itself."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn field_manager_is_bounded_and_keeps_what_tells_replicas_apart() {
        assert_eq!(field_manager("fetchr-operator-7d4f-abcde"), "fetchr-operator-lease-fetchr-operator-7d4f-abcde");
        let long = |end: &str| field_manager(&format!("{}{end}", "x".repeat(250)));
        assert_eq!(long("abc").len(), FIELD_MANAGER);
        assert_ne!(long("abc"), long("abd"));
    }

    #[tokio::test(start_paused = true)]
    async fn lease_that_is_not_renewed_runs_out() {
        let (seat, _leadership) = Leadership::new(&mut Registry::default());
        let renewals = Renewals::new(Heart::default());
        let wait = async |seconds| tokio::time::timeout(Duration::from_secs(seconds), renewals.run_out(&seat)).await;
        assert!(wait(60).await.is_err(), "who does not lead has nothing to lose");
        seat.take();
        renewals.ended(tokio::time::Instant::now(), true);
        assert!(wait(10).await.is_err());
        renewals.ended(tokio::time::Instant::now(), true);
        assert!(wait(10).await.is_err(), "it was renewed");
        renewals.ended(tokio::time::Instant::now(), false);
        assert!(wait(6).await.is_ok(), "a request that failed renews nothing");
    }

    #[test]
    fn failures_close_together_are_one_series() {
        let start = Instant::now();
        let first = Failing::since(None, start);
        let second = Failing::since(Some(first), start + Duration::from_secs(3));
        assert_eq!(second.lasted(), Duration::from_secs(3));
    }

    #[test]
    fn a_renewal_in_between_starts_a_new_series() {
        let start = Instant::now();
        let first = Failing::since(None, start);
        let second = Failing::since(Some(first), start + Duration::from_secs(10));
        assert_eq!(second.lasted(), Duration::ZERO);
    }
}
