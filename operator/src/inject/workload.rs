//! Which workload a pod belongs to.

use std::fmt;

use k8s_openapi::api::core::v1::Pod;

/// Label by which a Deployment marks the pods of one of its ReplicaSets.
const TEMPLATE_HASH: &str = "pod-template-hash";

/// The workload of a pod, `Kind/name` when printed.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Workload {
    /// Such as `Deployment`.
    pub kind: String,
    /// Its name.
    pub name: String,
}

impl Workload {
    /// A workload of this kind and name.
    pub fn new(kind: impl Into<String>, name: impl Into<String>) -> Self {
        Self { kind: kind.into(), name: name.into() }
    }

    /// The workload as far as the pod itself tells: its controller; for a ReplicaSet of a Deployment, the Deployment, whose name
    /// is the ReplicaSet's without the template hash. A Job does not show whether a CronJob made it: ask for the Job's controller.
    pub fn of(pod: &Pod) -> Self {
        let metadata = &pod.metadata;
        let Some(owner) = metadata.owner_references.iter().flatten().find(|owner| owner.controller == Some(true)) else {
            let generated = metadata.generate_name.as_deref().map(|name| name.trim_end_matches('-').to_owned());
            return Self::new("Pod", metadata.name.clone().or(generated).unwrap_or_default());
        };
        let hash = metadata.labels.as_ref().and_then(|labels| labels.get(TEMPLATE_HASH));
        let deployment = hash.and_then(|hash| owner.name.strip_suffix(hash.as_str())?.strip_suffix('-'));
        match deployment {
            Some(deployment) if owner.kind == "ReplicaSet" => Self::new("Deployment", deployment),
            _ => Self::new(&owner.kind, &owner.name),
        }
    }
}

impl fmt::Display for Workload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.kind, self.name)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn workload_is_the_controller_behind_the_controller() {
        let owned = |kind: &str, name: &str, hash: Option<&str>| {
            json!({"metadata": {"name": "p", "labels": hash.map(|hash| json!({"pod-template-hash": hash})),
                "ownerReferences": [{"apiVersion": "v1", "kind": "Node", "name": "n", "uid": "1"},
                    {"apiVersion": "apps/v1", "kind": kind, "name": name, "uid": "2", "controller": true}]}})
        };
        let table = [
            (owned("ReplicaSet", "web-6c9f", Some("6c9f")), "Deployment/web"),
            (owned("ReplicaSet", "web-6c9f", None), "ReplicaSet/web-6c9f"),
            (owned("ReplicaSet", "web", Some("6c9f")), "ReplicaSet/web"),
            (owned("StatefulSet", "db-6c9f", Some("6c9f")), "StatefulSet/db-6c9f"),
            (owned("Job", "import-28412345", None), "Job/import-28412345"),
            (json!({"metadata": {"name": "alone"}}), "Pod/alone"),
            (json!({"metadata": {"generateName": "alone-"}}), "Pod/alone"),
        ];
        for (pod, expected) in table {
            let pod: Pod = serde_json::from_value(pod).unwrap();
            assert_eq!(Workload::of(&pod).to_string(), expected);
        }
    }
}
