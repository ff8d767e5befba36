//! The operator, and whether it does what it is there for.

use k8s_openapi::api::{core::v1::Pod, discovery::v1::Endpoint};
use kube::ResourceExt;

use super::{emergency, stamp_of, unseen};
use crate::{
    cluster::{OPERATOR, WEBHOOKS},
    command::check::{
        Finding,
        facts::{API_SERVICE, Gap, Installed},
    },
};

pub(super) fn operator(facts: &Installed) -> Finding {
    let namespace = &facts.operator_namespace;
    let name = format!("{namespace}/{OPERATOR}");
    let deployment = match &facts.deployment {
        Ok(deployment) => deployment,
        Err(Gap::NotFound) => {
            let hint =
                format!("helm install fetchr charts/fetchr -n {namespace} --create-namespace, or give --operator-namespace");
            return Finding::failed("operator", format!("Deployment {name} is not there"), hint);
        }
        Err(gap) => return Finding::warning("operator", format!("Deployment {name}: {gap}"), unseen("get deployments")),
    };
    let wanted = deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
    let available = deployment.status.as_ref().and_then(|status| status.available_replicas).unwrap_or(0);
    let hint = format!(
        "kubectl -n {namespace} describe deployment {OPERATOR}\nkubectl -n {namespace} logs deployment/{OPERATOR} --all-pods"
    );
    match available {
        0 if wanted == 0 => Finding::failed(
            "operator",
            "it is scaled to 0 replicas",
            format!("kubectl -n {namespace} scale deployment {OPERATOR} --replicas=2"),
        ),
        0 => Finding::failed("operator", format!("no replica of {wanted} is available"), hint),
        some if some < wanted => Finding::warning("operator", format!("{some} of {wanted} replicas are available"), hint),
        _ => Finding::ok("operator", format!("{available} of {wanted} replicas are available in {namespace}")),
    }
}

pub(super) fn webhook_endpoints(facts: &Installed) -> Finding {
    let namespace = &facts.operator_namespace;
    let slices = match &facts.webhook_endpoints {
        Ok(slices) => slices,
        Err(gap) => return Finding::warning("webhook endpoints", gap.to_string(), unseen("list endpointslices")),
    };
    let ready = |endpoint: &Endpoint| endpoint.conditions.as_ref().is_none_or(|c| c.ready != Some(false));
    let count = slices.iter().flat_map(|slice| slice.endpoints.iter()).filter(|endpoint| ready(endpoint)).count();
    if count == 0 {
        let hint = format!("no new opted-in pod can start. Is the operator up?\n{}", emergency());
        Finding::failed("webhook endpoints", format!("Service {namespace}/fetchr-webhook has no ready endpoint"), hint)
    } else {
        Finding::ok("webhook endpoints", format!("Service {namespace}/fetchr-webhook has {count} ready endpoints"))
    }
}

pub(super) fn injection(facts: &Installed) -> Finding {
    const WHAT: &str = "injection";
    let namespace = &facts.namespace;
    match &facts.injected {
        Ok(pod) if has_sidecar(pod) => Finding::ok(WHAT, format!("a trial pod in {namespace} got its sidecar (dry run)")),
        Ok(pod) => match stamp_of(pod.annotations()).and_then(|stamp| stamp.skipped) {
            Some(skipped) => Finding::failed(
                WHAT,
                format!("a trial pod in {namespace} gets no sidecar: {}: {}", skipped.reason, skipped.message),
                "change what it names",
            ),
            None => Finding::failed(
                WHAT,
                format!("a trial pod in {namespace} was let through without a sidecar: the webhook was not called"),
                format!(
                    "kubectl get mutatingwebhookconfiguration {WEBHOOKS}; kube-system and the operator's namespace are left out"
                ),
            ),
        },
        Err(Gap::Forbidden) => {
            Finding::warning(WHAT, format!("you may not create pods in {namespace}, so it was not tried"), "choose another -n")
        }
        Err(Gap::NotFound) => {
            Finding::warning(WHAT, format!("there is no namespace {namespace}, so it was not tried"), "choose another -n")
        }
        Err(Gap::Refused(message)) if message.contains("fetchr.sh") => {
            Finding::failed(WHAT, format!("a trial pod in {namespace} was refused: {message}"), emergency())
        }
        Err(Gap::Refused(message)) => Finding::warning(
            WHAT,
            format!("a trial pod in {namespace} was refused, not by fetchr: {message}"),
            "choose another -n, or look into it",
        ),
    }
}

fn has_sidecar(pod: &Pod) -> bool {
    let inits = pod.spec.as_ref().and_then(|spec| spec.init_containers.as_ref());
    inits.is_some_and(|inits| inits.iter().any(|container| container.name == "fetchr-proxy"))
}

pub(super) fn validation(facts: &Installed) -> Finding {
    const WHAT: &str = "validation";
    let broken = |message: &str| message.contains("failed calling webhook") || message.contains("failed to call webhook");
    match &facts.admitted {
        Err(Gap::Refused(message)) if broken(message) => Finding::failed(
            WHAT,
            format!("no document can be applied: {message}"),
            format!("in an emergency, to apply documents unchecked: kubectl delete validatingwebhookconfiguration {WEBHOOKS}"),
        ),
        Err(Gap::Refused(_)) => Finding::ok(WHAT, "a policy with a broken expression is refused (dry run)"),
        Ok(_) => Finding::failed(
            WHAT,
            "a policy with a broken expression was let through: the webhook was not called",
            format!("kubectl get validatingwebhookconfiguration {WEBHOOKS}"),
        ),
        Err(Gap::NotFound) => {
            Finding::failed(WHAT, "policies are not installed, so it was not tried", "install the resources first")
        }
        Err(Gap::Forbidden) => Finding::warning(
            WHAT,
            format!("you may not create policies in {}, so it was not tried", facts.namespace),
            "choose another -n",
        ),
    }
}

pub(super) fn api_service(facts: &Installed) -> Finding {
    const WHAT: &str = "commands";
    let service = match &facts.api_service {
        Ok(service) => service,
        Err(Gap::NotFound) => {
            return Finding::failed(WHAT, format!("APIService {API_SERVICE} is not there"), "helm upgrade brings it back");
        }
        Err(gap) => return Finding::warning(WHAT, format!("APIService {API_SERVICE}: {gap}"), unseen("get apiservices")),
    };
    let conditions = service.status.as_ref().and_then(|status| status.conditions.as_ref());
    let available = conditions.and_then(|all| all.iter().find(|condition| condition.type_ == "Available"));
    match available {
        Some(condition) if condition.status == "True" => Finding::ok(WHAT, format!("APIService {API_SERVICE} is available")),
        Some(condition) => Finding::failed(
            WHAT,
            format!("APIService {API_SERVICE} is not available: {}", condition.message.as_deref().unwrap_or("no reason given")),
            "explain --pod and status -o wide need it. Can the API server reach pods of the operator on port 4633?",
        ),
        None => Finding::failed(
            WHAT,
            format!("APIService {API_SERVICE} has no status"),
            "is the aggregation layer of the API server on?",
        ),
    }
}
