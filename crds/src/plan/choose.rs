//! Which proxy a pod belongs to.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};

use super::{name, namespace, seniority};
use crate::FetchrProxy;

/// Name of the proxy in the operator's namespace that serves pods without one of their own.
pub const DEFAULT_PROXY: &str = "default";

/// What of a pod decides which proxy it belongs to.
#[derive(Clone, Copy, Debug)]
pub struct PodFacts<'a> {
    /// Namespace of the pod.
    pub namespace: &'a str,
    /// Labels of the pod.
    pub labels: &'a BTreeMap<String, String>,
    /// Value of the annotation `fetchr.sh/proxy`; the caller leaves it out where injection is `required`.
    pub annotation: Option<&'a str>,
}

/// Which proxy a pod belongs to.
#[derive(Clone, Debug, PartialEq)]
pub enum Choice<'a> {
    /// This one.
    Proxy {
        /// The proxy.
        proxy: &'a FetchrProxy,
        /// Why it was chosen.
        by: ChosenBy,
        /// Others that select the pod with the same right, and lost because they are younger.
        losers: Vec<&'a FetchrProxy>,
    },
    /// The pod's annotation names a proxy that its namespace doesn't have.
    Missing,
    /// No proxy is for the pod.
    None,
}

/// Why a proxy was chosen.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ChosenBy {
    /// The pod names it.
    Annotation,
    /// Its selector matches.
    Selector,
    /// It is for every pod of the namespace that no other proxy selects.
    Namespace,
    /// It is the default one of the operator's namespace.
    Default,
}

/// The proxy of a pod: the one that the pod names, else the one whose selector matches, else the one of the pod's namespace with an
/// empty selector, else `default` of the operator's namespace. Of several, the oldest; then the first by name.
pub fn choose_proxy<'a>(pod: &PodFacts<'_>, operator_namespace: &str, proxies: &[&'a FetchrProxy]) -> Choice<'a> {
    let own = || proxies.iter().copied().filter(|proxy| namespace(&proxy.metadata) == pod.namespace);
    if let Some(wanted) = pod.annotation {
        let named = own().find(|proxy| name(&proxy.metadata) == wanted);
        return named.map_or(Choice::Missing, |proxy| Choice::Proxy { proxy, by: ChosenBy::Annotation, losers: Vec::new() });
    }
    let selecting = own().filter(|proxy| !selects_all(proxy) && selects(&proxy.spec.selector, pod.labels));
    let fallback = proxies.iter().copied().filter(|proxy| {
        namespace(&proxy.metadata) == operator_namespace
            && name(&proxy.metadata) == DEFAULT_PROXY
            && selects(&proxy.spec.selector, pod.labels)
    });
    oldest(selecting, ChosenBy::Selector)
        .or_else(|| oldest(own().filter(|proxy| selects_all(proxy)), ChosenBy::Namespace))
        .or_else(|| oldest(fallback, ChosenBy::Default))
        .unwrap_or(Choice::None)
}

/// Whether the selector is empty.
pub(super) fn selects_all(proxy: &FetchrProxy) -> bool {
    let LabelSelector { match_labels, match_expressions } = &proxy.spec.selector;
    match_labels.as_ref().is_none_or(BTreeMap::is_empty) && match_expressions.as_ref().is_none_or(Vec::is_empty)
}

/// Whether a selector matches these labels; all its parts must. An empty one matches everything.
pub fn selects(selector: &LabelSelector, labels: &BTreeMap<String, String>) -> bool {
    let LabelSelector { match_labels, match_expressions } = selector;
    let has_labels = match_labels.iter().flatten().all(|(key, value)| labels.get(key) == Some(value));
    has_labels && match_expressions.iter().flatten().all(|requirement| meets(requirement, labels))
}

fn meets(requirement: &LabelSelectorRequirement, labels: &BTreeMap<String, String>) -> bool {
    let value = labels.get(&requirement.key);
    let listed = value.is_some_and(|value| requirement.values.iter().flatten().any(|one| one == value));
    match requirement.operator.as_str() {
        "In" => listed,
        "NotIn" => !listed,
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        _ => false,
    }
}

fn oldest<'a>(candidates: impl Iterator<Item = &'a FetchrProxy>, by: ChosenBy) -> Option<Choice<'a>> {
    let mut candidates: Vec<_> = candidates.collect();
    candidates.sort_by(|left, right| seniority(&left.metadata).cmp(&seniority(&right.metadata)));
    let (proxy, losers) = candidates.split_first()?;
    Some(Choice::Proxy { proxy, by, losers: losers.to_vec() })
}
