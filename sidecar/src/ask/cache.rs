//! Questions about the cache. The admin port serves them as paths, and the operator's stream relays them; none of them changes anything.

use std::convert::Infallible;

use axum::{
    Json, Router,
    body::{Body, to_bytes},
    extract::{Query, State},
    http::{Request, StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use tower::ServiceExt as _;

use super::{ExplainRequest, Refused};
use crate::{
    PodCache,
    config::Shared,
    show::{CacheExplanation, Figures, ListRequest, Objects, StoredAnswer},
};

/// What questions are about.
#[derive(Clone)]
struct Shown {
    shared: Shared,
    cache: PodCache,
}

/// The paths, each a question.
pub(crate) fn routes(shared: Shared, cache: PodCache) -> Router {
    Router::new()
        .route("/cache/stats", get(figures))
        .route("/cache/objects", get(objects))
        .route("/cache/object", get(object))
        .route("/cache/explain", get(explain))
        .with_state(Shown { shared, cache })
}

/// Answers a path with a query, such as `/cache/objects?limit=5` or `/limits`, as JSON.
pub(crate) async fn relay(routes: Router, target: &[u8]) -> Result<Vec<u8>, Refused> {
    let request = Request::get(target).body(Body::empty()).map_err(|error| Refused::wrong(format!("not a path: {error}")))?;
    let (head, body) = routes.oneshot(request).await.unwrap_or_else(|never: Infallible| match never {}).into_parts();
    let is_json = head.headers.get(header::CONTENT_TYPE).is_some_and(|kind| kind == "application/json");
    if head.status == StatusCode::OK && !is_json {
        return Err(Refused::wrong("bodies do not travel through the operator: the admin port of the pod gives them"));
    }
    // It is in memory already.
    let body = to_bytes(body, usize::MAX).await.map_err(|error| Refused::later(error.to_string()))?;
    if head.status == StatusCode::OK {
        return Ok(body.into());
    }
    let why = String::from_utf8_lossy(&body).trim().to_owned();
    let why = if why.is_empty() { "there is no such question".to_owned() } else { why };
    Err(Refused { status: head.status, why })
}

async fn figures(State(shown): State<Shown>) -> Result<Json<Figures>, Refused> {
    Ok(Json(shown.cache.figures()?))
}

/// `?prefix=http://shop/products/&limit=1000`: see [`ListRequest`].
async fn objects(State(shown): State<Shown>, Query(request): Query<ListRequest>) -> Result<Json<Objects>, Refused> {
    Ok(Json(shown.cache.list(request).await?))
}

/// A request in parts: see [`ExplainRequest::in_parts`].
type Imagined = Query<Vec<(String, String)>>;

/// The parts of a request, and `body=true` for more than the head: a message of HTTP/1.1 then, and else JSON.
async fn object(State(shown): State<Shown>, Query(mut parts): Imagined) -> Result<Response, Refused> {
    let body = parts.iter().position(|(name, _)| name == "body").map(|at| parts.swap_remove(at).1);
    let request = ExplainRequest::in_parts(parts).map_err(Refused::wrong)?;
    let config = shown.shared.load();
    match body.as_deref() {
        None | Some("false") => Ok(Json(shown.cache.head(&config, &request)?).into_response()),
        Some("true") => Ok(message(shown.cache.answer(&config, &request)?)),
        Some(other) => Err(Refused::wrong(format!("body: {other:?} is neither true nor false"))),
    }
}

fn message(StoredAnswer { head, body }: StoredAnswer) -> Response {
    let length = head.len() + body.iter().map(bytes::Bytes::len).sum::<usize>();
    let pieces = std::iter::once(head).chain(body).map(Ok::<_, Infallible>);
    let fields = [(header::CONTENT_TYPE, "message/http".to_owned()), (header::CONTENT_LENGTH, length.to_string())];
    (fields, Body::from_stream(futures::stream::iter(pieces))).into_response()
}

async fn explain(State(shown): State<Shown>, Query(parts): Imagined) -> Result<Json<CacheExplanation>, Refused> {
    let request = ExplainRequest::in_parts(parts).map_err(Refused::wrong)?;
    Ok(Json(shown.cache.explain(&shown.shared.load(), &request)?))
}

#[cfg(test)]
mod tests {
    use crds::proxy::{CacheMemory, FetchrProxySpec};

    use super::*;
    use crate::{PodPurges, cache::Cache, config::Config};

    #[tokio::test]
    async fn answers_are_those_of_the_admin_port() {
        let cache = PodCache::default();
        let shared = Shared::new(Config::waiting(FetchrProxySpec::default()));
        let routes = routes(shared, cache.clone());
        assert_eq!(relay(routes.clone(), b"/cache/stats").await.unwrap_err().status, StatusCode::SERVICE_UNAVAILABLE);
        cache.open(&Cache::new(&CacheMemory::default(), PodPurges::new("web-1")));
        let figures: Figures = serde_json::from_slice(&relay(routes.clone(), b"/cache/stats").await.unwrap()).unwrap();
        assert!(figures.objects == 0 && figures.limit_bytes > 0, "{figures:?}");
        let page: Objects = serde_json::from_slice(&relay(routes.clone(), b"/cache/objects?limit=5").await.unwrap()).unwrap();
        assert!(page.objects.is_empty() && page.next.is_none(), "{page:?}");
        let wrong = relay(routes.clone(), b"/cache/objects?limit=0").await.unwrap_err();
        assert_eq!(wrong, Refused::wrong("limit: 0 is not 1 to 1000"));
        let nothing = relay(routes, b"/cache/object?url=http://a/").await.unwrap_err();
        assert_eq!((nothing.status, nothing.why.as_str()), (StatusCode::NOT_FOUND, "no rule with a section cache holds for it"));
    }

    #[tokio::test]
    async fn bodies_are_not_relayed() {
        let routes = Router::new().route("/cache/object", get(async || Response::new(Body::from("HTTP/1.1 200 OK\r\n\r\n"))));
        let refused = relay(routes, b"/cache/object?url=http://a/&body=true").await.unwrap_err();
        assert!(refused.status == StatusCode::BAD_REQUEST && refused.why.contains("the admin port of the pod"), "{refused:?}");
    }
}
