//! `/validate`: what a schema can't say about a FetchrProxy or a FetchrPolicy, in the words of `fetchr validate`.

use crds::{FetchrPolicy, FetchrProxy, problems::Problems};
use kube::core::{
    DynamicObject,
    admission::{AdmissionRequest, AdmissionResponse},
    response::{StatusCause, StatusDetails},
};

use super::{Webhook, review};
use crate::https::Deadline;

/// Decides about one object, on a thread of its own.
pub(super) async fn decide(webhook: &Webhook, request: AdmissionRequest<DynamicObject>, until: Deadline) -> AdmissionResponse {
    let empty = AdmissionResponse::from(&request);
    let operator_namespace = webhook.lookup.operator_namespace.clone();
    match webhook.workers.run(until, move || checked(&request, &operator_namespace)).await {
        Ok(response) => response,
        Err(busy) => {
            webhook.metrics.overloaded(busy.label());
            review::refused(empty, 503, "ServiceUnavailable", busy.to_string())
        }
    }
}

fn checked(request: &AdmissionRequest<DynamicObject>, operator_namespace: &str) -> AdmissionResponse {
    let response = AdmissionResponse::from(request);
    match problems(request, operator_namespace) {
        Ok(problems) if problems.is_empty() => response,
        Ok(problems) => {
            let mut response = review::refused(response, 422, "Invalid", problems.to_string());
            response.result.details = Some(details(request, &problems));
            response
        }
        Err(message) => review::refused(response, 400, "BadRequest", message),
    }
}

fn problems(request: &AdmissionRequest<DynamicObject>, operator_namespace: &str) -> Result<Problems, String> {
    let object = request.object.as_ref().ok_or("the request has no object")?;
    let kind = request.kind.kind.as_str();
    let value = serde_json::to_value(object).map_err(|error| error.to_string())?;
    let unreadable = |error: serde_json::Error| format!("the object is not a {kind} of fetchr.sh/v1alpha1: {error}");
    match kind {
        "FetchrProxy" => Ok(serde_json::from_value::<FetchrProxy>(value).map_err(unreadable)?.spec.check()),
        "FetchrPolicy" => {
            let mut policy: FetchrPolicy = serde_json::from_value(value).map_err(unreadable)?;
            policy.metadata.namespace = policy.metadata.namespace.or_else(|| request.namespace.clone());
            let mut problems = policy.spec.check();
            problems.extend(policy.check_reach(operator_namespace));
            Ok(problems)
        }
        other => Err(format!("fetchr validates FetchrProxy and FetchrPolicy, not {other}")),
    }
}

fn details(request: &AdmissionRequest<DynamicObject>, problems: &Problems) -> StatusDetails {
    let causes = problems.iter().map(|problem| StatusCause {
        reason: "FieldValueInvalid".to_owned(),
        message: problem.message.clone(),
        field: problem.field.to_string(),
    });
    StatusDetails {
        name: request.name.clone(),
        group: request.kind.group.clone(),
        kind: request.kind.kind.clone(),
        causes: causes.collect(),
        uid: String::new(),
        retry_after_seconds: 0,
    }
}
