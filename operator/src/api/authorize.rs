//! What a caller may do: the cluster's own RBAC says it.

use std::{fmt, time::Duration};

use futures::{FutureExt as _, future::BoxFuture};
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use kube::{Api, Client, api::PostParams};
use tokio::time::timeout;

use super::{Caller, GROUP, VERSION};

/// How long the API server may take.
const DEADLINE: Duration = Duration::from_secs(5);

/// What somebody wants to do.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Action<'a> {
    /// Such as `get`.
    pub verb: &'static str,
    /// Such as `sidecars`.
    pub resource: &'static str,
    /// Such as `config`, or empty.
    pub subresource: &'static str,
    /// The namespace; None: all, or the resource has none.
    pub namespace: Option<&'a str>,
    /// The object, if it is about one.
    pub name: Option<&'a str>,
}

/// In the words of Kubernetes: `get resource "sidecars/config" in API group "api.fetchr.sh" in the namespace "shop"`.
impl fmt::Display for Action<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let slash = if self.subresource.is_empty() { "" } else { "/" };
        write!(f, "{} resource \"{}{slash}{}\" in API group \"{GROUP}\"", self.verb, self.resource, self.subresource)?;
        match self.namespace {
            Some(namespace) => write!(f, " in the namespace \"{namespace}\""),
            None => write!(f, " at the cluster scope"),
        }
    }
}

/// Nobody could say whether it is allowed.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("could not ask the API server whether this is allowed ({0}); try again")]
pub struct Unanswered(pub String);

/// Who says what a caller may do.
pub trait Authorizer: Send + Sync + 'static {
    /// Whether the caller may do it.
    fn allows<'a>(&'a self, caller: &'a Caller, action: Action<'a>) -> BoxFuture<'a, Result<bool, Unanswered>>;
}

/// SubjectAccessReviews, one a request.
#[derive(Clone)]
pub struct Reviews(pub Client);

impl Authorizer for Reviews {
    fn allows<'a>(&'a self, caller: &'a Caller, action: Action<'a>) -> BoxFuture<'a, Result<bool, Unanswered>> {
        async move {
            let api: Api<SubjectAccessReview> = Api::all(self.0.clone());
            let review = review(caller, action);
            match timeout(DEADLINE, api.create(&PostParams::default(), &review)).await {
                Ok(Ok(answer)) => Ok(answer.status.is_some_and(|status| status.allowed)),
                Ok(Err(error)) => Err(Unanswered(error.to_string())),
                Err(_) => Err(Unanswered(format!("no answer within {} s", DEADLINE.as_secs()))),
            }
        }
        .boxed()
    }
}

fn review(caller: &Caller, action: Action<'_>) -> SubjectAccessReview {
    let attributes = ResourceAttributes {
        group: Some(GROUP.to_owned()),
        version: Some(VERSION.to_owned()),
        resource: Some(action.resource.to_owned()),
        subresource: (!action.subresource.is_empty()).then(|| action.subresource.to_owned()),
        verb: Some(action.verb.to_owned()),
        namespace: action.namespace.map(str::to_owned),
        name: action.name.map(str::to_owned),
        ..ResourceAttributes::default()
    };
    let spec = SubjectAccessReviewSpec {
        user: Some(caller.user.clone()),
        uid: caller.uid.clone(),
        groups: Some(caller.groups.clone()),
        extra: Some(caller.extra.clone()),
        resource_attributes: Some(attributes),
        ..SubjectAccessReviewSpec::default()
    };
    SubjectAccessReview { spec, ..SubjectAccessReview::default() }
}
