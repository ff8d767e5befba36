//! The aggregated API `api.fetchr.sh`: commands of administrators, routed to the streams of sidecars.
//!
//! The API server forwards requests of any kubeconfig to it. It says who asks in header fields, which count only with a
//! certificate of its front proxy ([`front_proxy`]); what they may do is asked by a SubjectAccessReview ([`authorize`]). No
//! credential of a person reaches us.

mod authorize;
mod discovery;
mod front_proxy;
mod reply;
mod sidecars;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use axum::{
    Extension, Router,
    body::Bytes,
    extract::{DefaultBodyLimit, FromRequest, Path, RawQuery, Request, State},
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};
use serde_json::{Value, json};

pub use authorize::{Action, Authorizer, Reviews, Unanswered};
pub use front_proxy::{Caller, FrontProxies};
use reply::Failure;
pub use sidecars::{CommandError, Sidecar, Sidecars};

use crate::https::{self, Peer};

/// The API group.
pub const GROUP: &str = "api.fetchr.sh";
/// Its version.
pub const VERSION: &str = "v1alpha1";

/// What may be asked of a cache: the last part of a path. Only what changes nothing.
const QUESTIONS: [&str; 4] = ["stats", "objects", "object", "explain"];
/// What may be asked of limits, likewise.
const QUESTIONS_OF_LIMITS: [&str; 2] = ["count", "top"];
/// Largest description of a request to explain, in bytes.
const MAX_BODY: usize = 1 << 20;
/// How long a sidecar may take for its answer.
const COMMAND_DEADLINE: Duration = Duration::from_secs(10);
/// How long a purge may take, which waits for other pods. The API server gives up after a minute.
const PURGE_DEADLINE: Duration = Duration::from_secs(50);

/// What the API works with.
pub struct Api {
    /// The streams.
    pub sidecars: Arc<dyn Sidecars>,
    /// Who says what a caller may do.
    pub authorizer: Arc<dyn Authorizer>,
    /// Whose word about a caller counts.
    pub front_proxies: FrontProxies,
    /// Version of the operator.
    pub version: String,
    /// What is counted.
    pub metrics: Metrics,
}

/// Requests by resource and status code.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    requests: Family<Answered, Counter>,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct Answered {
    resource: &'static str,
    code: u16,
}

impl Metrics {
    /// Registers them.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register("api_requests", "Requests to the aggregated API", metrics.requests.clone());
        metrics
    }
}

/// All paths. What `kubectl` asks to find its way around is open to all: it is the same everywhere.
pub fn router(api: Arc<Api>) -> Router {
    let resources = Router::new()
        .route("/sidecars", get(list_all))
        .route("/namespaces/{namespace}/sidecars", get(list))
        .route("/namespaces/{namespace}/sidecars/{pod}", get(read))
        .route("/namespaces/{namespace}/sidecars/{pod}/config", get(config))
        .route("/namespaces/{namespace}/sidecars/{pod}/throttles", get(throttles))
        .route("/namespaces/{namespace}/sidecars/{pod}/cache/{question}", get(cache))
        .route("/namespaces/{namespace}/sidecars/{pod}/explain", post(explain))
        .route("/namespaces/{namespace}/sidecars/{pod}/limits", get(limits))
        .route("/namespaces/{namespace}/sidecars/{pod}/limits/{question}", get(limits_question))
        .route("/namespaces/{namespace}/sidecars/{pod}/purge", post(purge))
        .route("/namespaces/{namespace}/sidecars/{pod}/reset", post(reset))
        .route("/version", get(version));
    Router::new()
        .merge(discovery::router())
        .nest(&format!("/apis/{GROUP}/{VERSION}"), resources)
        .fallback(async || Failure::NoSuchPath)
        .method_not_allowed_fallback(async || Failure::Method)
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .with_state(api)
}

/// What every handler is given.
type Asked = (State<Arc<Api>>, Extension<Peer>, HeaderMap);

async fn list_all(asked: Asked, RawQuery(query): RawQuery) -> Response {
    list_in(asked, query, None).await
}

async fn list(Path(namespace): Path<String>, asked: Asked, RawQuery(query): RawQuery) -> Response {
    list_in(asked, query, Some(namespace)).await
}

async fn list_in((State(api), Extension(peer), headers): Asked, query: Option<String>, namespace: Option<String>) -> Response {
    let action = Action { verb: "list", resource: "sidecars", subresource: "", namespace: namespace.as_deref(), name: None };
    let list = async {
        api.admit(&peer, &headers, action).await?;
        reply::check_query(query.as_deref().unwrap_or_default())?;
        let mut sidecars = api.sidecars.list(namespace.as_deref());
        sidecars.sort_by(|left, right| (&left.namespace, &left.pod).cmp(&(&right.namespace, &right.pod)));
        Ok(reply::list(&sidecars, &headers))
    };
    api.answer("sidecars", list.await)
}

async fn read(Path((namespace, pod)): Path<(String, String)>, (State(api), Extension(peer), headers): Asked) -> Response {
    let action = Action { verb: "get", resource: "sidecars", subresource: "", namespace: Some(&namespace), name: Some(&pod) };
    let read = async {
        api.admit(&peer, &headers, action).await?;
        let found = api.sidecars.list(Some(&namespace)).into_iter().find(|sidecar| sidecar.pod == pod);
        let found = found.ok_or_else(|| Failure::NoSidecar { pod: pod.clone() })?;
        Ok(reply::one(&found, &headers))
    };
    api.answer("sidecars", read.await)
}

async fn config(Path(pod): Path<(String, String)>, asked: Asked) -> Response {
    tell(pod, asked, "config", "sidecars/config").await
}

async fn throttles(Path(pod): Path<(String, String)>, asked: Asked) -> Response {
    tell(pod, asked, "throttles", "sidecars/throttles").await
}

/// What a sidecar says to a question of one word, which is the subresource too.
async fn tell(
    (namespace, pod): (String, String),
    (State(api), Extension(peer), headers): Asked,
    verb: &'static str,
    resource: &'static str,
) -> Response {
    let action = Action { verb: "get", resource: "sidecars", subresource: verb, namespace: Some(&namespace), name: Some(&pod) };
    let answer = async {
        api.admit(&peer, &headers, action).await?;
        api.command((&namespace, &pod), verb, Bytes::new(), COMMAND_DEADLINE).await
    };
    api.answer(resource, answer.await)
}

async fn cache(
    Path((namespace, pod, question)): Path<(String, String, String)>,
    RawQuery(query): RawQuery,
    asked: Asked,
) -> Response {
    let path = QUESTIONS.into_iter().find(|known| *known == question).map(|question| format!("/cache/{question}"));
    let relayed = Relayed { verb: "cache", resource: "sidecars/cache", path };
    relayed.ask((&namespace, &pod), asked, query).await
}

async fn limits(Path((namespace, pod)): Path<(String, String)>, RawQuery(query): RawQuery, asked: Asked) -> Response {
    Relayed::of_limits(Some("/limits".to_owned())).ask((&namespace, &pod), asked, query).await
}

async fn limits_question(
    Path((namespace, pod, question)): Path<(String, String, String)>,
    RawQuery(query): RawQuery,
    asked: Asked,
) -> Response {
    let known = QUESTIONS_OF_LIMITS.into_iter().find(|known| *known == question);
    let path = known.map(|question| format!("/limits/{question}"));
    Relayed::of_limits(path).ask((&namespace, &pod), asked, query).await
}

/// A question that the sidecar answers as its admin port does.
struct Relayed {
    /// What the sidecar is told; also the subresource.
    verb: &'static str,
    /// As it is counted.
    resource: &'static str,
    /// The path of the admin port, if there is such a question.
    path: Option<String>,
}

impl Relayed {
    fn of_limits(path: Option<String>) -> Self {
        Self { verb: "limits", resource: "sidecars/limits", path }
    }

    async fn ask(
        self,
        (namespace, pod): (&str, &str),
        (State(api), Extension(peer), headers): Asked,
        query: Option<String>,
    ) -> Response {
        let Self { verb, resource, path } = self;
        let action = Action { verb: "get", resource: "sidecars", subresource: verb, namespace: Some(namespace), name: Some(pod) };
        let answer = async {
            api.admit(&peer, &headers, action).await?;
            let target = format!("{}?{}", path.ok_or(Failure::NoSuchPath)?, query.unwrap_or_default());
            api.command((namespace, pod), verb, target.into(), COMMAND_DEADLINE).await
        };
        api.answer(resource, answer.await)
    }
}

async fn explain(Path((namespace, pod)): Path<(String, String)>, asked: Asked, request: Request) -> Response {
    let order = Order { verb: "explain", resource: "sidecars/explain", deadline: COMMAND_DEADLINE };
    order.send((&namespace, &pod), asked, request).await
}

async fn purge(Path((namespace, pod)): Path<(String, String)>, asked: Asked, request: Request) -> Response {
    let order = Order { verb: "purge", resource: "sidecars/purge", deadline: PURGE_DEADLINE };
    order.send((&namespace, &pod), asked, request).await
}

async fn reset(Path((namespace, pod)): Path<(String, String)>, asked: Asked, request: Request) -> Response {
    let order = Order { verb: "reset", resource: "sidecars/reset", deadline: COMMAND_DEADLINE };
    order.send((&namespace, &pod), asked, request).await
}

/// A command with a JSON body.
struct Order {
    /// What the sidecar is told; also the subresource.
    verb: &'static str,
    /// As it is counted.
    resource: &'static str,
    deadline: Duration,
}

impl Order {
    async fn send(
        self,
        (namespace, pod): (&str, &str),
        (State(api), Extension(peer), headers): Asked,
        request: Request,
    ) -> Response {
        let Self { verb, resource, deadline } = self;
        let action =
            Action { verb: "create", resource: "sidecars", subresource: verb, namespace: Some(namespace), name: Some(pod) };
        let answer = async {
            api.admit(&peer, &headers, action).await?;
            let body = match https::Body::from_request(request, &()).await {
                Ok(body) => body,
                Err(refused) => return Ok(Err(refused)),
            };
            serde_json::from_slice::<serde::de::IgnoredAny>(&body).map_err(|error| Failure::NotJson(error.to_string()))?;
            api.command((namespace, pod), verb, body.clone(), deadline).await.map(Ok)
        };
        match answer.await {
            Ok(Err(refused)) => api.counted(resource, refused),
            Ok(Ok(answer)) => api.answer(resource, Ok(answer)),
            Err(failure) => api.answer(resource, Err(failure)),
        }
    }
}

async fn version((State(api), Extension(peer), headers): Asked) -> Response {
    let action = Action { verb: "list", resource: "version", subresource: "", namespace: None, name: None };
    let version = async {
        api.admit(&peer, &headers, action).await?;
        let mut sidecars = BTreeMap::<String, u32>::new();
        for sidecar in api.sidecars.list(None) {
            *sidecars.entry(sidecar.version).or_default() += 1;
        }
        Ok(json!({"apiVersion": format!("{GROUP}/{VERSION}"), "kind": "Version", "operator": api.version, "sidecars": sidecars}))
    };
    api.answer("version", version.await)
}

impl Api {
    /// Who asks, and whether they may.
    async fn admit(&self, peer: &Peer, headers: &HeaderMap, action: Action<'_>) -> Result<(), Failure> {
        let caller = self.front_proxies.identify(peer, headers)?;
        match self.authorizer.allows(&caller, action).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(Failure::Forbidden { user: caller.user, action: action.to_string() }),
            Err(unanswered) => Err(Failure::Unauthorizable(unanswered)),
        }
    }

    async fn command(
        &self,
        (namespace, pod): (&str, &str),
        verb: &'static str,
        body: Bytes,
        deadline: Duration,
    ) -> Result<Value, Failure> {
        let answer = self.sidecars.command(namespace, pod, verb, body, deadline).await;
        let answer = answer.map_err(|error| Failure::command(error, pod))?;
        serde_json::from_slice(&answer).map_err(|_| Failure::Garbled { pod: pod.to_owned() })
    }

    /// The one place where an outcome becomes a response.
    fn answer(&self, resource: &'static str, outcome: Result<Value, Failure>) -> Response {
        let response = match outcome {
            Ok(value) => (StatusCode::OK, axum::Json(value)).into_response(),
            Err(failure) => failure.into_response(),
        };
        self.counted(resource, response)
    }

    fn counted(&self, resource: &'static str, response: Response) -> Response {
        self.metrics.requests.get_or_create(&Answered { resource, code: response.status().as_u16() }).inc();
        response
    }
}

#[cfg(test)]
mod tests;
