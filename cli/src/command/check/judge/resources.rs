//! The definitions of the two resources.

use std::collections::BTreeSet;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use serde_json::Value;

use super::{names, unseen};
use crate::command::{
    check::{
        Finding,
        facts::{Answer, Gap},
    },
    version::THIS_VERSION,
};

pub(super) fn definition(name: &str, found: &Answer<CustomResourceDefinition>) -> Finding {
    const APPLY: &str = "helm upgrade with the chart of this version, or kubectl apply --server-side -f crds/yaml/";
    let crd = match found {
        Ok(crd) => crd,
        Err(Gap::NotFound) => return Finding::failed("resource", format!("{name} is not installed"), APPLY),
        Err(gap) => return Finding::warning("resource", format!("{name}: {gap}"), unseen("get customresourcedefinitions")),
    };
    let conditions = crd.status.as_ref().and_then(|status| status.conditions.as_ref());
    let established = conditions.is_some_and(|all| all.iter().any(|c| c.type_ == "Established" && c.status == "True"));
    if !established {
        return Finding::failed(
            "resource",
            format!("{name} is not established"),
            format!("kubectl describe crd {name} says why"),
        );
    }
    let (ours, theirs) = (fields_of_this_version(name), fields_served(crd));
    let missing: Vec<String> = ours.difference(&theirs).cloned().collect();
    let unknown: Vec<String> = theirs.difference(&ours).cloned().collect();
    match (missing.is_empty(), unknown.is_empty()) {
        (true, true) => Finding::ok("resource", format!("{name} is installed, as of version {THIS_VERSION}")),
        (false, _) => {
            Finding::failed("resource", format!("{name} is older than {THIS_VERSION}: it lacks {}", names(&missing)), APPLY)
        }
        (true, false) => Finding::warning(
            "resource",
            format!("{name} is newer than {THIS_VERSION}: it has {}", names(&unknown)),
            "use the fetchr of the installed version",
        ),
    }
}

fn fields_of_this_version(name: &str) -> BTreeSet<String> {
    let ours = crds::schema::definitions().iter().find(|definition| definition.crd["metadata"]["name"] == *name);
    ours.map(|definition| fields(definition.schema())).unwrap_or_default()
}

fn fields_served(crd: &CustomResourceDefinition) -> BTreeSet<String> {
    let version = crd.spec.versions.iter().find(|version| version.name == crds::VERSION && version.served);
    let schema = version.and_then(|version| version.schema.as_ref()).and_then(|schema| schema.open_api_v3_schema.as_ref());
    // Every schema is JSON; it came as such.
    schema.and_then(|schema| serde_json::to_value(schema).ok()).map(|schema| fields(&schema)).unwrap_or_default()
}

/// Paths of all fields, as `spec.rules[].name`.
fn fields(schema: &Value) -> BTreeSet<String> {
    let mut paths = BTreeSet::new();
    gather(schema, "", &mut paths);
    paths
}

fn gather(schema: &Value, at: &str, paths: &mut BTreeSet<String>) {
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        let path = if at.is_empty() { name.clone() } else { format!("{at}.{name}") };
        gather(property, &path, paths);
        paths.insert(path);
    }
    if schema["items"].is_object() {
        gather(&schema["items"], &format!("{at}[]"), paths);
    }
}
