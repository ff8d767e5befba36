//! Leader election by a Lease: the leader writes status, ConfigMaps and registrations; every replica serves.
//!
//! No clock but this process's own monotonic one counts: a candidate takes the Lease when it has seen no renewal of it for as long as
//! a lease holds, and a leader ends earlier than that when it could not renew. The times in the Lease are for people. Every write
//! names the version that it read, so of two candidates one is refused.

mod decide;

use std::time::Duration;

use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
    jiff::Timestamp,
};
use kube::{
    Api, Client, Config, ResourceExt,
    api::{Patch, PatchParams, PostParams},
};
use prometheus_client::{metrics::gauge::Gauge, registry::Registry};
use serde_json::json;
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout_at},
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use self::decide::{Observed, Step};
use crate::{health::Heart, settings::Settings};

/// How long a lease holds after its last renewal.
const DURATION: Duration = Duration::from_secs(15);
/// A leader that could not renew for this long ends. Well before the lease does: the clocks of two machines run at nearly one speed.
const RENEW_WITHIN: Duration = Duration::from_secs(10);
/// How often the lease is looked at, and renewed by its holder.
const EVERY: Duration = Duration::from_secs(2);
/// How often the election must be seen alive.
const ALIVE_WITHIN: Duration = Duration::from_secs(60);
/// A request that takes longer has failed: a stuck one must not outlive the lease.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(3);
const FIELD_MANAGER: &str = "fetchr-operator-lease";

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
    let client = Client::try_from(config).map_err(LeaseError::Client)?;
    let leases = Api::namespaced(client, &settings.names.namespace);
    let mut candidate = Candidate { leases, settings, seat, observed: None, renewed: None };
    loop {
        heart.beat("election", ALIVE_WITHIN);
        let ended = shutdown.run_until_cancelled(async {
            candidate.turn().await?;
            sleep(EVERY).await;
            Ok(())
        });
        match ended.await {
            Some(result) => result?,
            None => {
                candidate.release().await;
                return Ok(());
            }
        }
    }
}

/// A replica in the election.
struct Candidate<'a> {
    leases: Api<Lease>,
    settings: &'a Settings,
    seat: Seat,
    /// What the lease said last, and since when.
    observed: Option<Observed>,
    /// When the last renewal by this process that succeeded was begun.
    renewed: Option<Instant>,
}

impl Candidate<'_> {
    /// Looks at the lease once and does what is due. An error when a held lease is lost.
    async fn turn(&mut self) -> Result<(), LeaseError> {
        let begun = Instant::now();
        let deadline = self.renewed.map_or(begun + 2 * REQUEST_TIMEOUT, |renewed| renewed + RENEW_WITHIN);
        let failed = match timeout_at(deadline, self.look(begun)).await {
            Ok(Ok(Step::Lost { holder })) => return Err(self.lost(holder)),
            Ok(Ok(_)) => return Ok(()),
            Ok(Err(error)) => error.to_string(),
            Err(_) => "no answer in time".to_owned(),
        };
        warn!(error = failed, lease = self.settings.names.lease, "Could not read or write the lease; trying again.");
        match self.renewed {
            Some(renewed) if renewed.elapsed() >= RENEW_WITHIN => {
                Err(self.lost(format!("nobody known: it could not be renewed for {} s", RENEW_WITHIN.as_secs())))
            }
            _ => Ok(()),
        }
    }

    async fn look(&mut self, begun: Instant) -> Result<Step, kube::Error> {
        let me = self.settings.pod_name.as_str();
        let lease = match self.leases.get_opt(&self.settings.names.lease).await? {
            Some(lease) => lease,
            None => self.create().await?,
        };
        let spec = lease.spec.clone().unwrap_or_default();
        // What was renewed while the answer was under way was renewed before now.
        let step = decide::decide(&mut self.observed, &spec, me, self.seat.is_taken(), Instant::now());
        if let Step::Hold { transitions } = step {
            self.write(&lease, &held(me, &spec, transitions)).await?;
            self.renewed = Some(begun);
            if !self.seat.is_taken() {
                info!(lease = self.settings.names.lease, "This replica leads.");
                self.seat.take();
            }
        }
        Ok(step)
    }

    async fn create(&self) -> Result<Lease, kube::Error> {
        let metadata = ObjectMeta { name: Some(self.settings.names.lease.clone()), ..ObjectMeta::default() };
        let parameters = PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() };
        self.leases.create(&parameters, &Lease { metadata, spec: None }).await
    }

    /// Refused, if the lease has changed since it was read.
    async fn write(&self, read: &Lease, spec: &serde_json::Value) -> Result<(), kube::Error> {
        let patch = json!({"metadata": {"resourceVersion": read.resource_version()}, "spec": spec});
        let parameters = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
        self.leases.patch(&self.settings.names.lease, &parameters, &Patch::Merge(patch)).await.map(drop)
    }

    /// Lets another replica lead at once.
    async fn release(&self) {
        let give_back = async {
            let lease = self.leases.get(&self.settings.names.lease).await?;
            let holder = lease.spec.as_ref().and_then(|spec| spec.holder_identity.as_deref());
            match holder == Some(self.settings.pod_name.as_str()) {
                true => self.write(&lease, &json!({"holderIdentity": null})).await,
                false => Ok(()),
            }
        };
        if !self.seat.is_taken() {
            return;
        }
        match tokio::time::timeout(REQUEST_TIMEOUT, give_back).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => warn!(%error, "Could not give the lease back; it runs out by itself."),
            Err(_) => warn!("Could not give the lease back in time; it runs out by itself."),
        }
    }

    fn lost(&self, holder: String) -> LeaseError {
        LeaseError::Lost { lease: self.settings.names.lease.clone(), holder }
    }
}

/// The spec of a lease that `me` holds from now on.
fn held(me: &str, before: &LeaseSpec, transitions: i32) -> serde_json::Value {
    let now = MicroTime(Timestamp::now());
    let same = before.holder_identity.as_deref() == Some(me);
    let acquired = before.acquire_time.clone().filter(|_| same).unwrap_or_else(|| now.clone());
    json!({
        "holderIdentity": me,
        "leaseDurationSeconds": DURATION.as_secs(),
        "acquireTime": acquired,
        "renewTime": now,
        "leaseTransitions": transitions,
    })
}
