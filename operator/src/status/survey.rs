//! How every pod stands, looked up once for all proxies and policies.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use crds::{
    FetchrProxy,
    plan::{Identity, ObjectRef, PlanKey},
    proxy::PodCounts,
};
use wire::v1;

use crate::{
    compile::Content,
    deliver::Report,
    index::{Index, Pod},
    stamp::OptIn,
};

/// What the stamp of a sidecar would be that a proxy injected now; the second argument: whether its namespace requires it.
pub type SettingsDigest = Arc<dyn Fn(&FetchrProxy, bool) -> String + Send + Sync>;

/// How every pod stands.
pub struct Survey<'a> {
    proxies: BTreeMap<ObjectRef, OfProxy>,
    sidecars: HashMap<PlanKey, Vec<Sidecar<'a>>>,
}

/// How the pods of one proxy stand.
#[derive(Clone, Debug, Default)]
pub(super) struct OfProxy {
    pub(super) counts: PodCounts,
    /// Pods that would be its own if they were created now, and have the sidecar of another proxy.
    pub(super) strays: i32,
    /// The first pod without a sidecar of it, and why if that is known.
    pub(super) bare: Option<String>,
    /// The first pod that refused its plan, and why.
    pub(super) nack: Option<String>,
    /// The first pod that has no stream.
    pub(super) away: Option<String>,
}

/// A pod with a sidecar.
pub(super) struct Sidecar<'a> {
    pub(super) pod: &'a ObjectRef,
    pub(super) identity: Identity,
    pub(super) report: Option<&'a Report>,
    /// Whether more than the pod's own annotation says so: its stream, or that admission would give it this proxy now.
    pub(super) is_proven: bool,
}

impl<'a> Survey<'a> {
    /// Looks at every pod.
    pub fn new(
        index: &'a Index,
        content: &Content,
        reports: &'a HashMap<ObjectRef, Report>,
        operator_namespace: &str,
        settings_digest: &SettingsDigest,
    ) -> Self {
        let mut survey = Self { proxies: BTreeMap::new(), sidecars: HashMap::new() };
        let mut digests = Digests { settings_digest, proxies: by_name(content), known: HashMap::new() };
        for (key, pod) in index.pods.iter().filter(|(_, pod)| !pod.is_terminating) {
            let opt_in = index.opt_in(key, pod, operator_namespace);
            let chosen = (opt_in != OptIn::No).then(|| index.choose(key, pod, opt_in, operator_namespace)).flatten();
            match pod.injected_proxy() {
                Some(proxy) => {
                    let plan = PlanKey { pod_namespace: key.namespace.clone(), proxy: proxy.clone() };
                    let report = reports.get(key).filter(|report| report.uid == pod.uid && report.key == plan);
                    let is_proven = report.is_some() || chosen.as_ref() == Some(&proxy);
                    if let Some(chosen) = chosen.as_ref().filter(|chosen| **chosen != proxy) {
                        survey.stray(key, chosen.clone(), &proxy);
                    }
                    // Who may write a pod's annotations has no say about other namespaces.
                    if is_proven || proxy.namespace == key.namespace {
                        let fits = chosen.as_ref().is_none_or(|chosen| *chosen == proxy) && digests.fits(pod, &proxy, opt_in);
                        survey.injected(key, proxy, fits, report);
                    }
                    let sidecar = Sidecar { pod: key, identity: index.identity(key, pod), report, is_proven };
                    survey.sidecars.entry(plan).or_default().push(sidecar);
                }
                None => {
                    if let Some(proxy) = chosen {
                        survey.bare(key, pod, proxy);
                    }
                }
            }
        }
        survey
    }

    fn injected(&mut self, pod: &ObjectRef, proxy: ObjectRef, fits: bool, report: Option<&Report>) {
        let of = self.proxies.entry(proxy).or_default();
        of.counts.matched += 1;
        of.counts.injected += 1;
        of.counts.outdated += i32::from(!fits);
        of.counts.programmed += i32::from(report.is_some_and(|report| report.in_sync));
        match report {
            None => of.away = of.away.take().or_else(|| Some(pod.to_string())),
            Some(Report { nack: Some(nack), .. }) => of.nack = of.nack.take().or_else(|| Some(refusal(pod, nack))),
            Some(_) => {}
        }
    }

    /// Created before the proxy that is now its own, as when both are applied at once.
    fn stray(&mut self, key: &ObjectRef, chosen: ObjectRef, has: &ObjectRef) {
        let of = self.proxies.entry(chosen).or_default();
        of.strays += 1;
        of.bare.get_or_insert_with(|| {
            format!("{key}, which was created before this proxy selected it and has one of {has}; restart it")
        });
    }

    fn bare(&mut self, key: &ObjectRef, pod: &Pod, proxy: ObjectRef) {
        let of = self.proxies.entry(proxy).or_default();
        of.counts.matched += 1;
        let why = pod.stamp.as_ref().and_then(|stamp| stamp.skipped.as_ref());
        of.bare.get_or_insert_with(|| match why {
            Some(skipped) => format!("{key}: {}: {}", skipped.reason, skipped.message),
            None => format!("{key}, which was created before it had opted in or while fetchr was not asked; restart it"),
        });
    }

    /// How the pods of a proxy stand.
    pub(super) fn of_proxy(&self, proxy: &ObjectRef) -> OfProxy {
        self.proxies.get(proxy).cloned().unwrap_or_default()
    }

    /// The pods that get a plan.
    pub(super) fn sidecars(&self, plan: &PlanKey) -> &[Sidecar<'a>] {
        self.sidecars.get(plan).map_or(&[], Vec::as_slice)
    }

    /// The counts of all proxies together.
    pub(super) fn total(&self) -> PodCounts {
        self.proxies.values().fold(PodCounts::default(), |sum, of| PodCounts {
            matched: sum.matched + of.counts.matched,
            injected: sum.injected + of.counts.injected,
            outdated: sum.outdated + of.counts.outdated,
            programmed: sum.programmed + of.counts.programmed,
        })
    }
}

/// A nack in words, with its pod.
pub(super) fn refusal(pod: &ObjectRef, nack: &v1::Nack) -> String {
    format!("pod {pod} refused it: {}", crate::deliver::told(nack))
}

fn by_name(content: &Content) -> HashMap<ObjectRef, &FetchrProxy> {
    let key = |proxy: &FetchrProxy| {
        let metadata = &proxy.metadata;
        ObjectRef::new(metadata.namespace.clone().unwrap_or_default(), metadata.name.clone().unwrap_or_default())
    };
    content.compiled_proxies.iter().map(|proxy| (key(proxy), &**proxy)).collect()
}

/// Digests of settings, computed once for each proxy.
struct Digests<'a> {
    settings_digest: &'a SettingsDigest,
    proxies: HashMap<ObjectRef, &'a FetchrProxy>,
    known: HashMap<(ObjectRef, bool), String>,
}

impl Digests<'_> {
    /// Whether the pod's sidecar is what would be injected now. One whose proxy is gone has nothing to be compared with.
    fn fits(&mut self, pod: &Pod, proxy: &ObjectRef, opt_in: OptIn) -> bool {
        let Some(object) = self.proxies.get(proxy) else {
            return true;
        };
        let required = opt_in == OptIn::Required;
        let digest = self.known.entry((proxy.clone(), required)).or_insert_with(|| (self.settings_digest)(object, required));
        pod.stamp.as_ref().and_then(|stamp| stamp.settings.as_ref()) == Some(digest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        index::{Indexed as _, Namespace},
        stamp::{self, Stamp},
    };

    const PLATFORM: &str = "fetchr-system";

    /// A cluster with the proxies `bank/web` and the platform's default one, and a pod of `evil` whose annotations claim `proxy`.
    fn claiming(proxy: &str, inject: Option<&str>) -> Index {
        let mut index = Index::default();
        for (namespace, name) in [("bank", "web"), (PLATFORM, "default")] {
            let object = FetchrProxy::new(name, Default::default());
            let mut object = serde_json::json!(object);
            object["metadata"]["namespace"] = namespace.into();
            let (key, stored) = crate::index::Proxy::read(serde_json::from_value(object).unwrap()).unwrap();
            index.apply(key, stored, "1".to_owned());
        }
        let namespace = Namespace { inject: inject.map(str::to_owned), ..Namespace::default() };
        index.apply(ObjectRef::new("", "evil"), namespace, "1".to_owned());
        let stamp = Stamp { proxy: Some(proxy.to_owned()), ..Stamp::default() };
        let labels = BTreeMap::from([(stamp::INJECTED.to_owned(), "true".to_owned())]);
        let pod = Pod { uid: "u1".to_owned(), stamp: Some(stamp), labels, ..Pod::default() };
        index.apply(ObjectRef::new("evil", "pod"), pod, "1".to_owned());
        index
    }

    fn report(proxy: &str) -> HashMap<ObjectRef, Report> {
        let (namespace, name) = proxy.split_once('/').unwrap();
        let report = Report {
            uid: "u1".to_owned(),
            in_sync: true,
            nack: None,
            left_out: Arc::new([]),
            identity: None,
            key: PlanKey { pod_namespace: "evil".to_owned(), proxy: ObjectRef::new(namespace, name) },
            version: "0.1.0".to_owned(),
            plan_source: "Stream".to_owned(),
        };
        HashMap::from([(ObjectRef::new("evil", "pod"), report)])
    }

    /// How many pods the proxy counts as injected, and whether the pod is proven to those who look at its plan.
    fn counted(index: &Index, reports: &HashMap<ObjectRef, Report>, proxy: &str) -> (i32, bool) {
        let digest: SettingsDigest = Arc::new(|_, _| String::new());
        let survey = Survey::new(index, &Content::for_test(BTreeMap::new()), reports, PLATFORM, &digest);
        let (namespace, name) = proxy.split_once('/').unwrap();
        let key = PlanKey { pod_namespace: "evil".to_owned(), proxy: ObjectRef::new(namespace, name) };
        (survey.of_proxy(&key.proxy).counts.injected, survey.sidecars(&key)[0].is_proven)
    }

    #[test]
    fn annotation_alone_counts_for_nobody_in_another_namespace() {
        let nothing = HashMap::new();
        assert_eq!(counted(&claiming("bank/web", None), &nothing, "bank/web"), (0, false));
        assert_eq!(counted(&claiming("bank/web", Some("enabled")), &nothing, "bank/web"), (0, false));
        assert_eq!(counted(&claiming("fetchr-system/default", None), &nothing, "fetchr-system/default"), (0, false));
        assert_eq!(counted(&claiming("evil/own", None), &nothing, "evil/own"), (1, false), "its own namespace's business");
    }

    #[test]
    fn pod_with_the_sidecar_of_another_proxy_is_told_to_both() {
        let mut index = claiming("fetchr-system/default", Some("enabled"));
        let mut object = serde_json::json!(FetchrProxy::new("web", Default::default()));
        object["metadata"]["namespace"] = "evil".into();
        let (key, stored) = crate::index::Proxy::read(serde_json::from_value(object).unwrap()).unwrap();
        index.apply(key.clone(), stored, "1".to_owned());
        let (digest, reports): (SettingsDigest, _) = (Arc::new(|_, _| String::new()), report("fetchr-system/default"));
        let survey = Survey::new(&index, &Content::for_test(BTreeMap::new()), &reports, PLATFORM, &digest);
        let web = survey.of_proxy(&key);
        assert_eq!((web.counts.matched, web.strays), (0, 1));
        assert!(web.bare.unwrap().contains("evil/pod"));
        let default = survey.of_proxy(&ObjectRef::new(PLATFORM, "default")).counts;
        assert_eq!((default.injected, default.outdated), (1, 1));
        assert_eq!(survey.total().matched, 1, "it is one pod");
    }

    #[test]
    fn stream_or_admission_prove_what_an_annotation_says() {
        let default = "fetchr-system/default";
        assert_eq!(counted(&claiming(default, None), &report(default), default), (1, true));
        assert_eq!(counted(&claiming(default, Some("enabled")), &HashMap::new(), default), (1, true));
        assert_eq!(counted(&claiming("bank/web", None), &report(default), "bank/web"), (0, false), "a stream for another plan");
    }
}
