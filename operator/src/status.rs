//! Conditions and counts -> `/status`, by server-side apply, only by the leader and only on change.

mod conditions;
mod policies;
mod proxies;
mod survey;

use std::{fmt::Debug, time::Duration};

use crds::{FetchrPolicy, FetchrProxy, plan::ObjectRef};
use futures::{StreamExt, stream};
use k8s_openapi::{NamespaceResourceScope, apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};
use kube::{
    Api, Client, Resource,
    api::{Patch, PatchParams},
    core::object::HasStatus,
};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{family::Family, gauge::Gauge},
    registry::Registry,
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use tokio::{
    sync::watch,
    time::{Instant, sleep, sleep_until, timeout},
};
use tracing::{debug, warn};

pub use survey::{SettingsDigest, Survey};

use crate::{
    coldstart::TooLarge,
    compile::Compilations,
    context::Context,
    deliver::Hub,
    index::{Raw, Shared, Stored},
};

const FIELD_MANAGER: &str = "fetchr-operator";
/// A burst of changes becomes one look.
const COALESCE: Duration = Duration::from_millis(300);
/// Time after the start in which sidecars come back: before that, all of them would seem not to be connected.
const SETTLE: Duration = Duration::from_secs(5);
/// How long one write may take.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// Writes at a time.
const WRITERS: usize = 8;
/// Pause after a write that failed.
const RETRY: Duration = Duration::from_secs(2);

/// How pods stand, over all proxies.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    pods: Family<ByState, Gauge>,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct ByState {
    state: &'static str,
}

impl Metrics {
    /// Registers them.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        let help = "Pods by state: matched, injected, outdated, programmed; as the leader sees them";
        registry.register("pods", help, metrics.pods.clone());
        metrics
    }

    fn set(&self, state: &'static str, count: i32) {
        self.pods.get_or_create(&ByState { state }).set(count.into());
    }

    fn show(&self, survey: &Survey<'_>) {
        let total = survey.total();
        self.set("matched", total.matched);
        self.set("injected", total.injected);
        self.set("outdated", total.outdated);
        self.set("programmed", total.programmed);
    }
}

/// What statuses are made from.
pub struct Reporter {
    /// Client, flags, leadership.
    pub cx: Context,
    /// The cluster.
    pub index: Shared,
    /// Plans and verdicts.
    pub compilations: Compilations,
    /// How sidecars stand.
    pub hub: Hub,
    /// Proxies whose cold-start plan does not fit.
    pub too_large: watch::Receiver<TooLarge>,
    /// What a sidecar injected now would carry in its stamp.
    pub settings_digest: SettingsDigest,
    /// Gauges.
    pub metrics: Metrics,
}

impl Reporter {
    /// Reports while this replica leads, until shut-down.
    pub async fn run(self) {
        let shutdown = self.cx.shutdown.clone();
        shutdown.run_until_cancelled(self.lead()).await;
    }

    async fn lead(mut self) {
        let settled = Instant::now() + SETTLE;
        self.cx.leadership.acquired().await;
        sleep_until(settled).await;
        let (mut pods, mut reports) = (self.index.pods_changed(), self.hub.reports_changed());
        loop {
            pods.mark_unchanged();
            reports.mark_unchanged();
            self.too_large.mark_unchanged();
            self.compilations.mark_unchanged();
            let all_well = self.report().await;
            if !all_well {
                sleep(RETRY).await;
                continue;
            }
            tokio::select! {
                Ok(()) = self.compilations.changed() => {}
                Ok(()) = pods.changed() => {}
                Ok(()) = reports.changed() => {}
                Ok(()) = self.too_large.changed() => {}
            }
            sleep(COALESCE).await;
        }
    }

    /// Writes what differs; whether all went well.
    async fn report(&self) -> bool {
        let client = &self.cx.client;
        let writes: Vec<_> = self.due(&Time(Timestamp::now())).into_iter().map(|write| write.run(client.clone())).collect();
        let mut results = stream::iter(writes).buffer_unordered(WRITERS);
        let mut all_well = true;
        while let Some((kind, ok)) = results.next().await {
            self.cx.metrics.reconciled(kind, ok);
            all_well &= ok;
        }
        all_well
    }

    /// Statuses that differ from those in the cluster.
    fn due(&self, now: &Time) -> Vec<Write> {
        let Some(newest) = self.compilations.borrow().clone() else {
            return Vec::new();
        };
        let reports = self.hub.reports();
        let too_large = self.too_large.borrow().clone();
        let index = self.index.read();
        let survey = Survey::new(&index, &newest.content, &reports, &self.cx.settings.names.namespace, &self.settings_digest);
        self.metrics.show(&survey);
        let proxies = proxies::statuses(&survey, &index, &newest.content, &too_large, now);
        let policies = policies::statuses(&survey, &index, &newest.content, now);
        // The index may know a newer object than the one compiled; its status is the one to compare with.
        let proxies = proxies.into_iter().filter_map(|(key, status)| {
            let current = &index.proxies.get(&key)?.0;
            (current.status() != Some(&status)).then(|| Write::of(current, key, &status))
        });
        let policies = policies.into_iter().filter_map(|(key, status)| {
            let current = &index.policies.get(&key)?.0;
            (current.status() != Some(&status)).then(|| Write::of(current, key, &status))
        });
        proxies.chain(policies).collect()
    }
}

/// A status to be written.
struct Write {
    kind: &'static str,
    key: ObjectRef,
    body: Value,
    /// Server-side apply needs an object whose every field has the type that its schema says.
    by_merge: bool,
}

impl Write {
    fn of<K>(object: &Stored<K>, key: ObjectRef, status: &impl Serialize) -> Self
    where
        K: Resource<DynamicType = ()> + HasStatus,
    {
        let by_merge = matches!(object, Stored::Unreadable(_));
        let body = json!({
            "apiVersion": K::api_version(&()),
            "kind": K::kind(&()),
            "metadata": {"name": key.name, "namespace": key.namespace},
            "status": status,
        });
        let kind = if K::kind(&()) == FetchrProxy::kind(&()) { "proxy_status" } else { "policy_status" };
        Self { kind, key, body, by_merge }
    }

    async fn run(self, client: Client) -> (&'static str, bool) {
        let result = if self.kind == "proxy_status" {
            self.patch::<FetchrProxy>(client).await
        } else {
            self.patch::<FetchrPolicy>(client).await
        };
        if let Err(error) = &result {
            warn!(kind = self.kind, object = %self.key, error, "Could not write a status; trying again.");
        } else {
            debug!(kind = self.kind, object = %self.key, "Wrote a status.");
        }
        (self.kind, result.is_ok())
    }

    async fn patch<K>(&self, client: Client) -> Result<(), String>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned,
    {
        // The answer is the whole object, which may be one that can't be read.
        let api: Api<Raw<K>> = Api::namespaced(client, &self.key.namespace);
        let (params, patch) = if self.by_merge {
            let params = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
            (params, Patch::Merge(&self.body))
        } else {
            (PatchParams::apply(FIELD_MANAGER).force(), Patch::Apply(&self.body))
        };
        match timeout(WRITE_TIMEOUT, api.patch_status(&self.key.name, &params, &patch)).await {
            Ok(Ok(_)) => Ok(()),
            // Deleted in the meantime.
            Ok(Err(kube::Error::Api(status))) if status.code == 404 => Ok(()),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(format!("it took longer than {} s", WRITE_TIMEOUT.as_secs())),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use clap::{Args, FromArgMatches};
    use kube::Config;
    use prometheus_client::registry::Registry;
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::{
        compile::{self, testing::complete},
        deliver,
        index::{Change, Indexed, Policy, Proxy},
        lease::Leadership,
        metrics,
        settings::Settings,
    };

    /// What a watch would show of an object.
    fn show<T: Indexed>(index: &Shared, object: Value)
    where
        T::Resource: DeserializeOwned,
    {
        let (key, object) = T::read(serde_json::from_value(object).unwrap()).unwrap();
        index.change(Change::Apply(key, object), "2".to_owned());
    }

    fn proxy(status: &Value) -> Value {
        json!({"apiVersion": "fetchr.sh/v1alpha1", "kind": "FetchrProxy", "spec": {}, "status": status,
            "metadata": {"namespace": "shop", "name": "web", "uid": "u1", "generation": 1}})
    }

    fn policy(name: &str, direction: &str, status: &Value) -> Value {
        json!({"apiVersion": "fetchr.sh/v1alpha1", "kind": "FetchrPolicy", "status": status,
            "metadata": {"namespace": "shop", "name": name, "uid": name, "generation": 1},
            "spec": {"direction": direction, "targetRefs": [{"kind": "FetchrProxy", "name": "web"}],
                "rules": [{"name": "r", "timeouts": {"request": "1s"}}]}})
    }

    async fn reporter(index: &Shared) -> Reporter {
        let mut registry = Registry::default();
        let command = Settings::augment_args(clap::Command::new("test")).no_binary_name(true);
        let flags = ["--namespace=fetchr-system", "--pod-name=a", "--sidecar-image=a"];
        let settings = Settings::from_arg_matches(&command.try_get_matches_from(flags).unwrap()).unwrap();
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let cx = Context {
            client: Client::try_from(Config::new("https://127.0.0.1:1".parse().unwrap())).unwrap(),
            settings,
            leadership: Leadership::new(&mut registry).1,
            metrics: metrics::Metrics::new().1,
            shutdown: CancellationToken::new(),
        };
        let (newest, mut compilations) = watch::channel(None);
        let metrics = compile::Metrics::register(&mut registry);
        tokio::spawn(compile::run(index.clone(), "fetchr-system".to_owned(), newest, metrics, cx.shutdown.clone()));
        compilations.changed().await.unwrap();
        Reporter {
            cx,
            index: index.clone(),
            compilations,
            hub: Hub::new(deliver::Metrics::register(&mut registry), "cluster.local"),
            too_large: watch::channel(TooLarge::new()).1,
            settings_digest: Arc::new(|_, _| String::new()),
            metrics: Metrics::register(&mut registry),
        }
    }

    #[tokio::test]
    async fn status_that_was_written_is_not_due_again() {
        let index = complete();
        show::<Proxy>(&index, proxy(&json!(null)));
        show::<Policy>(&index, policy("good", "Inbound", &json!(null)));
        show::<Policy>(&index, policy("unreadable", "Sideways", &json!(null)));
        let reporter = reporter(&index).await;
        let due = reporter.due(&Time(Timestamp::now()));
        let written = |name: &str| due.iter().find(|write| write.key.name == name).unwrap().body["status"].clone();
        assert_eq!(due.len(), 3);

        show::<Proxy>(&index, proxy(&written("web")));
        show::<Policy>(&index, policy("good", "Inbound", &written("good")));
        show::<Policy>(&index, policy("unreadable", "Sideways", &written("unreadable")));
        let later = Time(Timestamp::now() + Duration::from_secs(60));
        assert_eq!(reporter.due(&later).into_iter().map(|write| write.key.to_string()).collect::<Vec<_>>(), [""; 0]);
        reporter.cx.shutdown.cancel();
    }
}
