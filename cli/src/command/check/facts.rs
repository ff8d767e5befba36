//! What a check looks at: objects of the cluster, each with the reason if it could not be read.

use std::{
    fmt,
    time::{SystemTime, UNIX_EPOCH},
};

use futures::{future::join_all, join};
use k8s_openapi::{
    api::{
        admissionregistration::v1::{MutatingWebhookConfiguration, ValidatingWebhookConfiguration},
        apps::v1::Deployment,
        authorization::v1::{ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec},
        core::v1::{ConfigMap, Namespace, Node, Pod},
        discovery::v1::EndpointSlice,
    },
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
    apimachinery::pkg::version::Info,
    kube_aggregator::pkg::apis::apiregistration::v1::APIService,
};
use kube::{
    Api, Client, CustomResourceExt,
    api::{ListParams, PartialObjectMeta, PostParams},
};
use serde::de::DeserializeOwned;

use crate::{
    cluster::{Cluster, OPERATOR, WEBHOOKS, chain},
    failure::Failure,
};

/// Name of the APIService.
pub(super) const API_SERVICE: &str = "v1alpha1.api.fetchr.sh";

/// What was read, or why not.
pub(super) type Answer<T> = Result<T, Gap>;

/// Why something could not be read.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Gap {
    /// It does not exist.
    NotFound,
    /// The caller may not read it.
    Forbidden,
    /// The API server refused or failed, with its words.
    Refused(String),
}

impl fmt::Display for Gap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotFound => f.write_str("not found"),
            Self::Forbidden => f.write_str("you may not read it"),
            Self::Refused(message) => f.write_str(message),
        }
    }
}

impl From<kube::Error> for Gap {
    fn from(error: kube::Error) -> Self {
        match error {
            // A path that no resource serves is answered without a reason.
            kube::Error::Api(status) if status.code == 404 => Self::NotFound,
            kube::Error::Api(status) if status.is_forbidden() && !status.message.contains("admission webhook") => Self::Forbidden,
            kube::Error::Api(status) => Self::Refused(status.message),
            other => Self::Refused(chain(&other)),
        }
    }
}

/// A right that the caller needs, and what for.
#[derive(Clone, Debug)]
pub(super) struct Right {
    pub(super) verb: &'static str,
    pub(super) group: &'static str,
    pub(super) resource: &'static str,
    pub(super) subresource: &'static str,
    pub(super) namespace: String,
}

impl fmt::Display for Right {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.verb, self.resource)?;
        if !self.subresource.is_empty() {
            write!(f, "/{}", self.subresource)?;
        }
        if !self.group.is_empty() {
            write!(f, ".{}", self.group)?;
        }
        if !self.namespace.is_empty() {
            write!(f, " in {}", self.namespace)?;
        }
        Ok(())
    }
}

/// What both kinds of check look at.
pub(super) struct Common {
    pub(super) url: String,
    pub(super) server: Info,
    pub(super) rights: Vec<(Right, Answer<bool>)>,
    /// Name and what was read.
    pub(super) crds: Vec<(String, Answer<CustomResourceDefinition>)>,
}

/// What decides whether fetchr can be installed.
pub(super) struct BeforeInstall {
    pub(super) common: Common,
    pub(super) nodes: Answer<Vec<Node>>,
    /// The ConfigMap that tells extension API servers whom to believe.
    pub(super) front_proxy: Answer<ConfigMap>,
    pub(super) operator_namespace: String,
    /// The namespace to install to, if it is there already.
    pub(super) namespace: Answer<Namespace>,
}

/// What an installation consists of, and what it does.
pub(super) struct Installed {
    /// Seconds since 1970 when the facts were read.
    pub(super) now: i64,
    pub(super) common: Common,
    pub(super) operator_namespace: String,
    pub(super) deployment: Answer<Deployment>,
    pub(super) mutating: Answer<MutatingWebhookConfiguration>,
    pub(super) validating: Answer<ValidatingWebhookConfiguration>,
    pub(super) webhook_endpoints: Answer<Vec<EndpointSlice>>,
    pub(super) api_service: Answer<APIService>,
    /// Namespace of the two trials below.
    pub(super) namespace: String,
    /// A pod that asks for a sidecar, as the API server would have stored it.
    pub(super) injected: Answer<Pod>,
    /// A policy that no webhook should let pass, as the API server would have stored it.
    pub(super) admitted: Answer<crds::FetchrPolicy>,
    pub(super) pods: Answer<Vec<PartialObjectMeta<Pod>>>,
    pub(super) namespaces: Answer<Vec<Namespace>>,
}

/// Reads what decides whether fetchr can be installed.
pub(super) async fn before_install(cluster: &Cluster) -> Result<BeforeInstall, Failure> {
    let operator_namespace = cluster.operator_namespace().await?;
    let client = &cluster.client;
    let (common, nodes, front_proxy, namespace) = join!(
        common(cluster, install_rights(&operator_namespace)),
        list::<Node>(client),
        get(Api::<ConfigMap>::namespaced(client.clone(), "kube-system"), "extension-apiserver-authentication"),
        get(Api::<Namespace>::all(client.clone()), &operator_namespace),
    );
    Ok(BeforeInstall { common: common?, nodes, front_proxy, namespace, operator_namespace })
}

/// Reads what an installation consists of, and tries it.
pub(super) async fn installed(cluster: &Cluster) -> Result<Installed, Failure> {
    let operator_namespace = cluster.operator_namespace().await?;
    let client = &cluster.client;
    let slices = ListParams::default().labels("kubernetes.io/service-name=fetchr-webhook");
    let (common, deployment, mutating, validating, webhook_endpoints, api_service, injected, admitted, pods, namespaces) = join!(
        common(cluster, use_rights(&cluster.namespace)),
        get(Api::<Deployment>::namespaced(client.clone(), &operator_namespace), OPERATOR),
        get(Api::<MutatingWebhookConfiguration>::all(client.clone()), WEBHOOKS),
        get(Api::<ValidatingWebhookConfiguration>::all(client.clone()), WEBHOOKS),
        async {
            let slices_of = Api::<EndpointSlice>::namespaced(client.clone(), &operator_namespace).list(&slices).await;
            Ok(slices_of?.items)
        },
        get(Api::<APIService>::all(client.clone()), API_SERVICE),
        async { Ok(cluster.trial_pod(&cluster.namespace).await?) },
        try_validation(client, &cluster.namespace),
        live_pods(client),
        list::<Namespace>(client),
    );
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64);
    Ok(Installed {
        now,
        common: common?,
        operator_namespace,
        deployment,
        mutating,
        validating,
        webhook_endpoints,
        api_service,
        namespace: cluster.namespace.clone(),
        injected,
        admitted,
        pods,
        namespaces,
    })
}

async fn common(cluster: &Cluster, rights: Vec<Right>) -> Result<Common, Failure> {
    // The one question without whose answer nothing else makes sense.
    let server = cluster.client.apiserver_version().await.map_err(|e| cluster.failure("version of the API server", &e))?;
    let definitions = [crds::FetchrProxy::crd_name(), crds::FetchrPolicy::crd_name()];
    let crds = join_all(definitions.into_iter().map(async |name| {
        let found = get(Api::<CustomResourceDefinition>::all(cluster.client.clone()), name).await;
        (name.to_owned(), found)
    }))
    .await;
    let rights = join_all(rights.into_iter().map(async |right| {
        let allowed = may(&cluster.client, &right).await;
        (right, allowed)
    }))
    .await;
    Ok(Common { url: cluster.url.clone(), server, rights, crds })
}

fn install_rights(operator_namespace: &str) -> Vec<Right> {
    let right = |group, resource, namespace: &str| Right {
        verb: "create",
        group,
        resource,
        subresource: "",
        namespace: namespace.to_owned(),
    };
    vec![
        right("", "namespaces", ""),
        right("apiextensions.k8s.io", "customresourcedefinitions", ""),
        right("rbac.authorization.k8s.io", "clusterroles", ""),
        right("rbac.authorization.k8s.io", "clusterrolebindings", ""),
        right("admissionregistration.k8s.io", "mutatingwebhookconfigurations", ""),
        right("admissionregistration.k8s.io", "validatingwebhookconfigurations", ""),
        right("apiregistration.k8s.io", "apiservices", ""),
        right("apps", "deployments", operator_namespace),
        right("rbac.authorization.k8s.io", "roles", "kube-system"),
    ]
}

fn use_rights(namespace: &str) -> Vec<Right> {
    let right =
        |verb, group, resource, subresource| Right { verb, group, resource, subresource, namespace: namespace.to_owned() };
    vec![
        right("create", "fetchr.sh", "fetchrproxies", ""),
        right("create", "fetchr.sh", "fetchrpolicies", ""),
        right("list", "", "pods", ""),
        right("list", "api.fetchr.sh", "sidecars", ""),
        right("create", "api.fetchr.sh", "sidecars", "explain"),
    ]
}

async fn may(client: &Client, right: &Right) -> Answer<bool> {
    let text = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
    let attributes = ResourceAttributes {
        verb: text(right.verb),
        group: text(right.group),
        resource: text(right.resource),
        subresource: text(right.subresource),
        namespace: text(&right.namespace),
        ..Default::default()
    };
    let spec = SelfSubjectAccessReviewSpec { resource_attributes: Some(attributes), ..Default::default() };
    let review = SelfSubjectAccessReview { spec, ..Default::default() };
    let answer = Api::all(client.clone()).create(&PostParams::default(), &review).await?;
    Ok(answer.status.is_some_and(|status: k8s_openapi::api::authorization::v1::SubjectAccessReviewStatus| status.allowed))
}

async fn get<K>(api: Api<K>, name: &str) -> Answer<K>
where
    K: Clone + fmt::Debug + DeserializeOwned,
{
    Ok(api.get(name).await?)
}

async fn list<K>(client: &Client) -> Answer<Vec<K>>
where
    K: kube::Resource<DynamicType = ()> + Clone + fmt::Debug + DeserializeOwned,
{
    Ok(Api::<K>::all(client.clone()).list(&ListParams::default()).await?.items)
}

async fn live_pods(client: &Client) -> Answer<Vec<PartialObjectMeta<Pod>>> {
    let alive = ListParams::default().fields("status.phase!=Succeeded,status.phase!=Failed");
    Ok(Api::<Pod>::all(client.clone()).list_metadata(&alive).await?.items)
}

/// Creates a policy that only the webhook can refuse, as a dry run.
async fn try_validation(client: &Client, namespace: &str) -> Answer<crds::FetchrPolicy> {
    let policy = serde_json::json!({
        "apiVersion": format!("{}/{}", crds::GROUP, crds::VERSION),
        "kind": "FetchrPolicy",
        "metadata": {"name": "fetchr-check", "namespace": namespace},
        "spec": {
            "targetRefs": [{"kind": "Namespace", "name": namespace}],
            "rules": [{"name": "check", "matches": [{"path": {"type": "Regex", "value": "/("}}], "timeouts": {"request": "1s"}}],
        },
    });
    let policy: crds::FetchrPolicy = serde_json::from_value(policy).map_err(|e| Gap::Refused(e.to_string()))?;
    Ok(Api::namespaced(client.clone(), namespace).create(&Cluster::dry_run(), &policy).await?)
}
