//! The method PURGE: a client takes an answer out.

use http::{HeaderValue, Response, StatusCode, header, request::Parts};

use super::{Caching, PurgeAnswer, key, pod::Cache};
use crate::{ask::Refused, exchange::Exchange, flow::Flow};

/// The method.
const PURGE: &str = "PURGE";
/// With `1`, what is purged is stale instead of gone.
const SOFT: &str = "fetchr-soft-purge";

/// Whether a request is one for a rule that heeds it.
pub(super) fn is_asked(caching: &Caching, parts: &Parts) -> bool {
    caching.purgers.is_some() && parts.method.as_str() == PURGE
}

/// Purges what a GET of the same target would get, if the client may.
pub(super) async fn purge(ex: &Exchange, cache: &Cache, caching: &Caching, parts: &Parts) -> Box<Response<Flow>> {
    let may = caching.purgers.iter().flatten().any(|network| network.contains(&ex.client));
    if !may {
        return text(
            StatusCode::FORBIDDEN,
            "fetchr: purgeMethod.allowedCIDRs of the policy does not have this client\n".to_owned(),
        );
    }
    let mut of = vec![0];
    let host = ex.host();
    caching.key.write(&ex.facts(parts, &host), &ex.authority, &mut of);
    let soft = parts.headers.get(SOFT).is_some_and(|value| value == "1");
    match cache.purges.purge_url(&key::url(&of), soft).await {
        Ok(answer) => done(&answer),
        Err(error) => {
            let Refused { status, why } = error.into();
            text(status, format!("fetchr: {why}\n"))
        }
    }
}

fn done(answer: &PurgeAnswer) -> Box<Response<Flow>> {
    let status = if answer.complete { StatusCode::OK } else { StatusCode::ACCEPTED };
    let body = serde_json::to_string(answer).unwrap_or_default() + "\n";
    let mut response = text(status, body);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

fn text(status: StatusCode, body: String) -> Box<Response<Flow>> {
    let mut response = Response::new(Flow::bytes(body));
    *response.status_mut() = status;
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, plain);
    Box::new(response)
}
