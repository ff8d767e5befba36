//! `/guard`: changes of running pods in namespaces where injection is required.

use k8s_openapi::api::core::v1::Pod;
use kube::core::{
    DynamicObject,
    admission::{AdmissionRequest, AdmissionResponse},
};
use tracing::{info, warn};

use super::{Webhook, review};
use crate::{inject::check_update, stamp};

/// Decides about one change.
pub(super) async fn decide(webhook: &Webhook, request: AdmissionRequest<DynamicObject>) -> AdmissionResponse {
    let response = AdmissionResponse::from(&request);
    let namespace = request.namespace.unwrap_or_default();
    // The webhook configuration leaves these out; were it changed, the cluster must still work.
    if stamp::is_exempt(&namespace, &webhook.lookup.operator_namespace) {
        return response;
    }
    let (old, new) = match (read(request.old_object), read(request.object)) {
        (Ok(old), Ok(new)) => (old, new),
        (Err(error), _) | (_, Err(error)) => return review::refused(response, 400, "BadRequest", error),
    };
    let labels = match webhook.lookup.namespace_labels(&namespace).await {
        Ok(labels) => labels,
        Err(failure) => {
            warn!(%failure, "A change of a pod could not be decided about.");
            return review::refused(response, 503, "ServiceUnavailable", failure.to_string());
        }
    };
    match check_update(&old, &new, &labels, &webhook.injector.image) {
        Ok(()) => response,
        Err(reason) => {
            info!(namespace, name = request.name, reason = reason.code(), "Change of a pod refused.");
            let message = format!("the pod's sidecar is required ({}): {reason}", reason.code());
            review::refused(response, 403, "Forbidden", message)
        }
    }
}

fn read(object: Option<DynamicObject>) -> Result<Pod, String> {
    let object = object.ok_or("fetchr guards changes of pods, and the request lacks the pod before or after")?;
    let value = serde_json::to_value(object).map_err(|error| error.to_string())?;
    serde_json::from_value(value).map_err(|error| format!("the object is not a pod that fetchr can read: {error}"))
}
