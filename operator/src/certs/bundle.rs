//! Who must trust the CA: the API server, when it calls the webhooks and the aggregated API.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use kube::{
    Api, Client,
    api::{ApiResource, DynamicObject, Patch, PatchParams},
    core::GroupVersionKind,
};
use serde_json::{Value, json};
use tracing::{debug, info};

use crate::settings::Settings;

/// The field manager; one of its own, so that it owns nothing but bundles.
const MANAGER: &str = "fetchr-operator-ca";

/// Writes the bundle where it is missing or another one. An object that is not there is none of our making: the chart brings it,
/// and the next round finds it.
pub(super) async fn hand_out(client: &Client, settings: &Settings, bundle: &str) -> Result<(), kube::Error> {
    let encoded = STANDARD.encode(bundle);
    let (admission, registration) = ("admissionregistration.k8s.io", "apiregistration.k8s.io");
    let targets = [
        (admission, "MutatingWebhookConfiguration", &settings.names.webhook_configuration),
        (admission, "ValidatingWebhookConfiguration", &settings.names.webhook_configuration),
        (registration, "APIService", &settings.names.api_registration),
    ];
    let mut failed = None;
    for (group, kind, name) in targets {
        let kind = GroupVersionKind::gvk(group, "v1", kind);
        if let Err(error) = hand_to(client, &kind, name, &encoded).await {
            failed = Some(error);
        }
    }
    failed.map_or(Ok(()), Err)
}

async fn hand_to(client: &Client, kind: &GroupVersionKind, name: &str, bundle: &str) -> Result<(), kube::Error> {
    let api: Api<DynamicObject> = Api::all_with(client.clone(), &ApiResource::from_gvk(kind));
    let Some(current) = api.get_opt(name).await? else {
        debug!(kind = kind.kind, name, "There is nothing to hand the CA bundle to.");
        return Ok(());
    };
    let Some(mut wanted) = with_bundle(&current.data, bundle) else { return Ok(()) };
    wanted["apiVersion"] = json!(kind.api_version());
    wanted["kind"] = json!(kind.kind);
    // With the UID, an object that is deleted in between is not made anew.
    wanted["metadata"] = json!({"name": name, "uid": current.metadata.uid});
    api.patch(name, &PatchParams::apply(MANAGER).force(), &Patch::Apply(&wanted)).await?;
    info!(kind = kind.kind, name, "CA bundle handed out.");
    Ok(())
}

/// What to apply so that the object has the bundle; None if it has.
fn with_bundle(current: &Value, bundle: &str) -> Option<Value> {
    let Some(webhooks) = current["webhooks"].as_array() else {
        let has = current["spec"]["caBundle"] == bundle;
        return (!has).then(|| json!({"spec": {"caBundle": bundle}}));
    };
    if webhooks.iter().all(|webhook| webhook["clientConfig"]["caBundle"] == bundle) {
        return None;
    }
    let named = webhooks.iter().map(|webhook| json!({"name": webhook["name"], "clientConfig": {"caBundle": bundle}}));
    Some(json!({"webhooks": named.collect::<Vec<_>>()}))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_webhook_gets_the_bundle_and_keeps_the_rest() {
        let current = json!({"webhooks": [
            {"name": "a", "clientConfig": {"caBundle": "old", "service": {"name": "s"}}, "timeoutSeconds": 5},
            {"name": "b", "clientConfig": {"caBundle": "new"}}]});
        let expected = json!({"webhooks": [{"name": "a", "clientConfig": {"caBundle": "new"}},
            {"name": "b", "clientConfig": {"caBundle": "new"}}]});
        assert_eq!(with_bundle(&current, "new"), Some(expected));
        assert_eq!(with_bundle(&json!({"webhooks": [{"name": "b", "clientConfig": {"caBundle": "new"}}]}), "new"), None);
    }

    #[test]
    fn api_service_gets_the_bundle_once() {
        assert_eq!(with_bundle(&json!({"spec": {"group": "g"}}), "new"), Some(json!({"spec": {"caBundle": "new"}})));
        assert_eq!(with_bundle(&json!({"spec": {"caBundle": "new"}}), "new"), None);
    }
}
