//! `/inject`: a pod at its creation.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use k8s_openapi::api::core::v1::Pod;
use kube::core::{
    DynamicObject,
    admission::{AdmissionRequest, AdmissionResponse},
};
use serde_json::Value;
use tracing::{info, warn};

use super::{LookupError, Webhook, review};
use crate::{
    inject::{Ask, Decision, InjectContext, Workload, graft, inject},
    stamp,
};

/// Why there is no decision.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("the object is not a pod that fetchr can read: {0}")]
    NotAPod(String),
    #[error(transparent)]
    Lookup(#[from] LookupError),
    #[error("this replica of fetchr has no certificates yet; try again")]
    NoCertificates,
    #[error("the patch can't be written: {0}")]
    Patch(String),
}

/// Decides about one pod.
pub(super) async fn decide(webhook: &Webhook, request: AdmissionRequest<DynamicObject>) -> AdmissionResponse {
    let response = AdmissionResponse::from(&request);
    let refused = response.clone();
    match decision(webhook, request, response).await {
        Ok(response) => response,
        Err(failure) => {
            warn!(%failure, "A pod could not be decided about.");
            let (code, reason) = match failure {
                Failure::NotAPod(_) => (400, "BadRequest"),
                _ => (503, "ServiceUnavailable"),
            };
            review::refused(refused, code, reason, failure.to_string())
        }
    }
}

async fn decision(
    webhook: &Webhook,
    request: AdmissionRequest<DynamicObject>,
    response: AdmissionResponse,
) -> Result<AdmissionResponse, Failure> {
    let namespace = request.namespace.unwrap_or_default();
    // The webhook configuration leaves these out; were it changed, the cluster must still start.
    if stamp::is_exempt(&namespace, &webhook.lookup.operator_namespace) {
        return Ok(response);
    }
    let object = request.object.ok_or_else(|| Failure::NotAPod("the request has none".to_owned()))?;
    let not_a_pod = |error: serde_json::Error| Failure::NotAPod(error.to_string());
    let raw = serde_json::to_value(&object).map_err(not_a_pod)?;
    let pod: Pod = serde_json::from_value(raw.clone()).map_err(not_a_pod)?;
    let name = pod.metadata.name.clone().or(pod.metadata.generate_name.clone()).unwrap_or_default();
    match decide_about(webhook, &namespace, &pod).await? {
        Decision::Patch { pod: patched, warnings } => {
            info!(namespace, name, dry_run = request.dry_run, "Sidecar injected.");
            let mut response = patch(response, &raw, &pod, &patched)?;
            response.warnings = (!warnings.is_empty()).then_some(warnings);
            Ok(response)
        }
        Decision::Skip { pod: stamped, reason } => {
            info!(namespace, name, reason = reason.code(), dry_run = request.dry_run, "Pod created without a sidecar.");
            patch(response, &raw, &pod, &stamped)
        }
        Decision::Refuse { reason } => {
            info!(namespace, name, reason = reason.code(), dry_run = request.dry_run, "Pod refused.");
            let message = format!("no sidecar can be injected ({}): {reason}", reason.code());
            Ok(review::refused(response, 403, "Forbidden", message))
        }
    }
}

async fn decide_about(webhook: &Webhook, namespace: &str, pod: &Pod) -> Result<Decision, Failure> {
    let lookup = &webhook.lookup;
    let mut namespace_labels = lookup.namespace_labels(namespace).await?;
    let mut ask = Ask::of(pod, &namespace_labels);
    // The API server asks about such a pod only because of its namespace's label, which the index may not know yet.
    if matches!(ask, Ask::Nobody | Ask::OptedOut) {
        namespace_labels = lookup.newest_namespace_labels(namespace).await?;
        ask = Ask::of(pod, &namespace_labels);
    }
    let (workload, proxy) = match ask {
        Ask::Asked | Ask::Required => (lookup.workload(namespace, pod).await?, lookup.proxy(namespace, pod, ask).await?),
        // Nothing is asked of the API server about a pod that gets no sidecar.
        Ask::Nobody | Ask::OptedOut | Ask::Mirror => (Workload::of(pod), Ok(None)),
    };
    let proxy = match proxy {
        Ok(proxy) => proxy,
        Err(reason) => return Ok(Decision::Refuse { reason }),
    };
    let credentials = webhook.certs.borrow().clone().ok_or(Failure::NoCertificates)?;
    let plan_keys: Vec<String> = credentials.trust.plan_keys.iter().map(|key| STANDARD.encode(key)).collect();
    let cx = InjectContext {
        namespace_labels: &namespace_labels,
        proxy: proxy.as_deref(),
        workload: &workload,
        injector: &webhook.injector,
        ca_bundle: &credentials.trust.ca_pem,
        plan_keys: &plan_keys,
    };
    Ok(inject(pod, &cx))
}

/// The change from `before` to `after` as a patch of the pod that the API server sent.
fn patch(response: AdmissionResponse, raw: &Value, before: &Pod, after: &Pod) -> Result<AdmissionResponse, Failure> {
    if before == after {
        return Ok(response);
    }
    let failed = |error: &dyn std::error::Error| Failure::Patch(error.to_string());
    let before = serde_json::to_value(before).map_err(|error| failed(&error))?;
    let after = serde_json::to_value(after).map_err(|error| failed(&error))?;
    let patch = json_patch::diff(raw, &graft(raw, &before, &after));
    response.with_patch(patch).map_err(|error| failed(&error))
}
