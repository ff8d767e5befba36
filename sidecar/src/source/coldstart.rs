//! The plan of a start without an operator: the signed one of the mounted ConfigMap, or the one that an earlier start kept.

use std::{path::PathBuf, time::SystemTime};

use crds::plan::{Identity, ObjectRef};
use wire::signed::{self, MAX_ENVELOPE, PublicKey};

use super::{
    Metrics,
    state::{StateDir, read_bounded},
};
use crate::config::{Config, PlanSource, Planned};

/// Where to look, and whom to believe.
#[derive(Clone, Debug)]
pub struct ColdStart {
    /// Folder where the ConfigMap `fetchr-plan` is mounted.
    pub plan_dir: Option<PathBuf>,
    /// The state folder.
    pub state: Option<StateDir>,
    /// Keys that admission gave to the pod. Those that the operator told later, kept in the state folder, replace them.
    pub keys: Vec<PublicKey>,
    /// Namespace of the pod.
    pub namespace: String,
    /// The proxy that admission chose.
    pub proxy: ObjectRef,
    /// The pod's place, as far as admission knew it.
    pub identity: Identity,
}

impl ColdStart {
    /// The best plan that is there, compiled. The ConfigMap's wins, unless the kept one has seen more.
    pub fn load(&self, metrics: &Metrics) -> Option<Config> {
        let kept = self.state.as_ref().and_then(StateDir::plan);
        let identity = kept.as_ref().map_or_else(|| self.identity.clone(), |kept| self.placed(&kept.identity));
        let kept = kept.and_then(|kept| kept.planned()).filter(|kept| kept.plan.proxy == self.proxy);
        let mounted = self.mounted(metrics);
        let mounted_first = match (&mounted, &kept) {
            (Some(mounted), Some(kept)) => mounted.position.may_follow(&kept.position),
            _ => true,
        };
        let candidates = if mounted_first { [mounted, kept] } else { [kept, mounted] };
        candidates.into_iter().flatten().find_map(|planned| build(planned, &identity, metrics))
    }

    /// When the mounted plan was last changed, so that one that was refused is looked at only once.
    pub fn changed(&self) -> Option<SystemTime> {
        std::fs::metadata(self.mounted_at()?).and_then(|file| file.modified()).ok()
    }

    fn mounted_at(&self) -> Option<PathBuf> {
        let ObjectRef { namespace, name } = &self.proxy;
        Some(self.plan_dir.as_ref()?.join(format!("{namespace}.{name}")))
    }

    /// What was known at the last start, with the namespace and the workload that admission stamped.
    fn placed(&self, kept: &Identity) -> Identity {
        let Identity { namespace, workload_kind, workload_name, .. } = self.identity.clone();
        Identity { namespace, workload_kind, workload_name, ..kept.clone() }
    }

    fn mounted(&self, metrics: &Metrics) -> Option<Planned> {
        let path = self.mounted_at()?;
        let refuse = |reason, error: &dyn std::fmt::Display| {
            metrics.refused(reason);
            tracing::warn!(path = %path.display(), reason, %error, "The mounted cold-start plan was ignored.");
        };
        let envelope = match read_bounded(&path, MAX_ENVELOPE as u64) {
            Ok(envelope) => envelope,
            // The volume is optional: most namespaces get their plan later than their first pod.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return None,
            Err(error) => {
                refuse("unreadable", &error);
                return None;
            }
        };
        let trusted = self.state.as_ref().and_then(StateDir::trust).map(|trust| trust.keys()).filter(|keys| !keys.is_empty());
        let opened = signed::open(&envelope, trusted.as_ref().unwrap_or(&self.keys), &self.namespace, &self.proxy);
        let opened = opened.inspect_err(|error| refuse(error.reason(), error)).ok()?;
        let plan = serde_json::from_slice(&opened.document).inspect_err(|error| refuse("content", error)).ok()?;
        let position = opened.position.into_iter().collect();
        Some(Planned { plan: std::sync::Arc::new(plan), digest: opened.digest, position, source: PlanSource::ConfigMap })
    }
}

fn build(planned: Planned, identity: &Identity, metrics: &Metrics) -> Option<Config> {
    let source = if planned.source == PlanSource::ConfigMap { "configmap" } else { "statedir" };
    let config = Config::build(planned, identity.clone());
    metrics.planned(source, config.is_ok());
    config.inspect_err(|error| tracing::warn!(source, %error, "The cold-start plan can't be applied.")).ok()
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, fs, path::Path};

    use bytes::Bytes;
    use crds::plan::{Plan, digest_bytes};
    use wire::signed::KeyPair;

    use super::*;
    use crate::source::state::Trust;

    struct Pod {
        folder: tempfile::TempDir,
        operator: KeyPair,
    }

    fn proxy() -> ObjectRef {
        ObjectRef::new("shop", "web")
    }

    fn document(workers: i32) -> Vec<u8> {
        let mut plan = Plan { proxy: proxy(), ..Plan::default() };
        plan.settings.workers = Some(workers);
        plan.to_bytes()
    }

    fn position(policies: &str) -> BTreeMap<String, String> {
        [("policies".to_owned(), policies.to_owned())].into()
    }

    impl Pod {
        fn new() -> Self {
            Self { folder: tempfile::tempdir().unwrap(), operator: KeyPair::generate().unwrap() }
        }

        fn path(&self) -> &Path {
            self.folder.path()
        }

        fn mount(&self, key: &KeyPair, namespace: &str, workers: i32, seen: &str) {
            let envelope = signed::sign(key, namespace, &proxy(), &document(workers), &position(seen)).unwrap();
            fs::write(self.path().join("shop.web"), envelope).unwrap();
        }

        fn state(&self) -> StateDir {
            StateDir::open(self.path().join("state")).unwrap()
        }

        fn keep(&self, workers: i32, seen: &str) {
            let document = Bytes::from(document(workers));
            let position = position(seen).into_iter().collect();
            let identity = Identity { services: vec!["front".to_owned()], ..Identity::default() };
            self.state().keep_plan(&digest_bytes(&document), &position, &identity, &document).unwrap();
        }

        fn start(&self) -> (Option<Config>, String) {
            let metrics = Metrics::default();
            let cold = ColdStart {
                plan_dir: Some(self.path().to_owned()),
                state: Some(self.state()),
                keys: vec![self.operator.public()],
                namespace: "shop".to_owned(),
                proxy: proxy(),
                identity: Identity { workload_name: "web".to_owned(), ..Identity::default() },
            };
            let config = cold.load(&metrics);
            let mut registry = prometheus_client::registry::Registry::default();
            metrics.register(&mut registry);
            let mut page = String::new();
            prometheus_client::encoding::text::encode(&mut page, &registry).unwrap();
            (config, page)
        }
    }

    fn of(config: &Option<Config>) -> (PlanSource, Option<i32>) {
        let config = config.as_ref().unwrap();
        (config.source(), config.settings().workers)
    }

    #[test]
    fn mounted_plan_is_used_if_the_operator_signed_it() {
        let pod = Pod::new();
        assert!(pod.start().0.is_none());
        pod.mount(&pod.operator, "shop", 3, "1");
        assert_eq!(of(&pod.start().0), (PlanSource::ConfigMap, Some(3)));
    }

    #[test]
    fn forged_and_foreign_plans_are_ignored_and_counted() {
        let pod = Pod::new();
        pod.mount(&KeyPair::generate().unwrap(), "shop", 3, "1");
        let (config, page) = pod.start();
        assert!(config.is_none() && page.contains("fetchr_coldstart_refused_total{reason=\"signature\"} 1"), "{page}");
        pod.mount(&pod.operator, "other", 3, "1");
        let (config, page) = pod.start();
        assert!(config.is_none() && page.contains("reason=\"not_for_us\"} 1"), "{page}");
        fs::write(pod.path().join("shop.web"), document(3)).unwrap();
        let (config, page) = pod.start();
        assert!(config.is_none() && page.contains("reason=\"format\"} 1"), "{page}");
    }

    #[test]
    fn kept_plan_serves_where_the_mounted_one_is_forged_or_older() {
        let pod = Pod::new();
        pod.keep(7, "100");
        assert_eq!(of(&pod.start().0), (PlanSource::StateDir, Some(7)));
        pod.mount(&KeyPair::generate().unwrap(), "shop", 3, "999");
        assert_eq!(of(&pod.start().0), (PlanSource::StateDir, Some(7)));
        pod.mount(&pod.operator, "shop", 3, "99");
        assert_eq!(of(&pod.start().0), (PlanSource::StateDir, Some(7)));
        pod.mount(&pod.operator, "shop", 3, "101");
        let (config, _) = pod.start();
        assert_eq!(of(&config), (PlanSource::ConfigMap, Some(3)));
        let identity = config.unwrap().identity;
        assert_eq!((identity.services, identity.workload_name), (vec!["front".to_owned()], "web".to_owned()));
    }

    #[test]
    fn keys_told_by_the_operator_replace_those_of_admission() {
        let pod = Pod::new();
        let next = KeyPair::generate().unwrap();
        let trust = Trust { ca_pem: String::new(), plan_keys: vec![next.public().to_string()] };
        pod.state().keep_trust(&trust).unwrap();
        pod.mount(&pod.operator, "shop", 3, "1");
        assert!(pod.start().0.is_none());
        pod.mount(&next, "shop", 4, "1");
        assert_eq!(of(&pod.start().0), (PlanSource::ConfigMap, Some(4)));
    }
}
