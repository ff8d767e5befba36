//! Who asked for a sidecar.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Pod;

use super::Reason;
use crate::stamp::{self, OptIn};

/// Annotation that marks the API object of a static pod; the kubelet runs it from a file, so a patch would change nothing.
const MIRROR: &str = "kubernetes.io/config.mirror";

/// Who asked for a sidecar, from the pod's annotation and its namespace's label.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Ask {
    /// Nobody.
    Nobody,
    /// The namespace, but the pod opted out.
    OptedOut,
    /// The pod or its namespace.
    Asked,
    /// The platform, whatever the pod says.
    Required,
    /// It is a static pod.
    Mirror,
}

impl Ask {
    /// Reads the annotation and the label `fetchr.sh/inject`.
    pub fn of(pod: &Pod, namespace_labels: &BTreeMap<String, String>) -> Self {
        let annotations = pod.metadata.annotations.as_ref();
        if annotations.is_some_and(|annotations| annotations.contains_key(MIRROR)) {
            return Self::Mirror;
        }
        let annotation = annotations.and_then(|annotations| annotations.get(stamp::INJECT)).map(String::as_str);
        let label = namespace_labels.get(stamp::INJECT).map(String::as_str);
        match OptIn::of(label, annotation) {
            OptIn::Required => Self::Required,
            OptIn::Yes => Self::Asked,
            OptIn::No if OptIn::of(label, None) == OptIn::No => Self::Nobody,
            OptIn::No => Self::OptedOut,
        }
    }

    /// Why such a pod is left alone, if it is.
    pub(super) fn declined(self) -> Option<Reason> {
        match self {
            Self::Nobody => Some(Reason::NotOptedIn),
            Self::OptedOut => Some(Reason::OptedOut),
            Self::Mirror => Some(Reason::StaticPod),
            Self::Asked | Self::Required => None,
        }
    }

    /// The name of the FetchrProxy that the pod picks. Where injection is required the pod has no say.
    pub fn picked_proxy(self, pod: &Pod) -> Option<&str> {
        if self == Self::Required {
            return None;
        }
        pod.metadata.annotations.as_ref()?.get(stamp::PROXY).map(String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(label: Option<&str>, annotation: Option<&str>) -> Ask {
        let map = |value: Option<&str>| value.map(|value| (stamp::INJECT.to_owned(), value.to_owned())).into_iter().collect();
        let mut pod = Pod::default();
        pod.metadata.annotations = Some(map(annotation));
        Ask::of(&pod, &map(label))
    }

    #[test]
    fn required_outranks_the_pod_and_the_pod_outranks_enabled() {
        let table = [
            (None, None, Ask::Nobody),
            (None, Some("enabled"), Ask::Asked),
            (None, Some("disabled"), Ask::Nobody),
            (None, Some("true"), Ask::Nobody),
            (Some("enabled"), None, Ask::Asked),
            (Some("enabled"), Some("disabled"), Ask::OptedOut),
            (Some("enabled"), Some("enabled"), Ask::Asked),
            (Some("required"), Some("disabled"), Ask::Required),
            (Some("required"), None, Ask::Required),
            (Some("disabled"), Some("enabled"), Ask::Asked),
        ];
        for (label, annotation, expected) in table {
            assert_eq!(ask(label, annotation), expected, "label {label:?}, annotation {annotation:?}");
        }
    }

    #[test]
    fn proxy_choice_is_ignored_where_injection_is_required() {
        let mut pod = Pod::default();
        pod.metadata.annotations = Some([(stamp::PROXY.to_owned(), "other".to_owned())].into());
        assert_eq!(Ask::Asked.picked_proxy(&pod), Some("other"));
        assert_eq!(Ask::Required.picked_proxy(&pod), None);
    }
}
