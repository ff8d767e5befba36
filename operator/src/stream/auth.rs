//! Who opens a stream: the pod that the bearer token is bound to, as the API server says.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use crds::plan::ObjectRef;
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus};
use kube::{Api, Client, api::PostParams};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use tonic::{Status, metadata::MetadataMap};
use tracing::warn;

/// Audience of the projected tokens.
const AUDIENCE: &str = "fetchr.sh";
/// How long the API server's yes or no is believed. A deleted pod's token is good for at most this much longer.
const BELIEVED: Duration = Duration::from_secs(20);
/// Answers that are kept.
const MAX_CACHED: usize = 4096;
/// How long the API server may take.
const REVIEW_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a stream may go on that a token opened which does not say when it ends: as long as admission asks for.
const LIFETIME: Duration = Duration::from_secs(3600);
/// Longest token that is looked at, in bytes.
const MAX_TOKEN: usize = 16 << 10;

/// A pod, proven by its token.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Caller {
    /// The pod.
    pub pod: ObjectRef,
    /// Its UID.
    pub uid: String,
    /// When the token ends, and what was opened with it.
    pub expires: SystemTime,
}

/// Asks the API server whose a token is; cheap to clone.
#[derive(Clone)]
pub struct Authenticator {
    reviews: Api<TokenReview>,
    cache: Arc<Mutex<Cache>>,
    results: Family<Reviewed, Counter>,
}

type Cache = HashMap<[u8; 32], (Instant, Option<Caller>)>;

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct Reviewed {
    result: &'static str,
}

impl Authenticator {
    /// Nothing is cached yet.
    pub fn new(client: Client, registry: &mut Registry) -> Self {
        let results = Family::default();
        registry.register("stream_authentications", "Tokens shown by sidecars, by result", Family::clone(&results));
        Self { reviews: Api::all(client), cache: Arc::default(), results }
    }

    /// The pod behind `authorization: Bearer TOKEN`.
    pub async fn check(&self, metadata: &MetadataMap) -> Result<Caller, Status> {
        let header = metadata.get("authorization").and_then(|value| value.to_str().ok());
        let Some(token) = header.and_then(|value| value.strip_prefix("Bearer ")).filter(|token| token.len() <= MAX_TOKEN) else {
            return Err(
                self.refuse("missing", Status::unauthenticated("a bearer token is required: authorization: Bearer TOKEN"))
            );
        };
        let caller = match self.cached(token, Instant::now()) {
            Some(known) => known,
            None => self.review(token).await?,
        };
        let refusal =
            || Status::unauthenticated(format!("the token is not one of a pod for the audience {AUDIENCE}, or is out of date"));
        let caller = caller.filter(|caller| caller.expires > SystemTime::now());
        let caller = caller.ok_or_else(|| self.refuse("refused", refusal()))?;
        self.count("ok");
        Ok(caller)
    }

    async fn review(&self, token: &str) -> Result<Option<Caller>, Status> {
        let spec = TokenReviewSpec { audiences: Some(vec![AUDIENCE.to_owned()]), token: Some(token.to_owned()) };
        let review = TokenReview { spec, ..TokenReview::default() };
        let params = PostParams::default();
        let answer = tokio::time::timeout(REVIEW_TIMEOUT, self.reviews.create(&params, &review)).await;
        let unavailable = || Status::unavailable("the API server can't check the token now; try again");
        let review = match answer {
            Ok(Ok(review)) => review,
            Ok(Err(error)) => {
                warn!(%error, "Could not check a sidecar's token.");
                return Err(self.refuse("unavailable", unavailable()));
            }
            Err(_) => return Err(self.refuse("unavailable", unavailable())),
        };
        // The API server has just vouched for the token, so what it says about itself holds.
        let expires = expiry(token).unwrap_or_else(|| SystemTime::now() + LIFETIME);
        let caller = review.status.as_ref().and_then(|status| caller(status, expires));
        self.remember(token, caller.clone(), Instant::now());
        Ok(caller)
    }

    fn cached(&self, token: &str, now: Instant) -> Option<Option<Caller>> {
        let (since, caller) = self.cache().get(&digest(token))?.clone();
        (now.saturating_duration_since(since) < BELIEVED).then_some(caller)
    }

    fn remember(&self, token: &str, caller: Option<Caller>, now: Instant) {
        let mut cache = self.cache();
        if cache.len() >= MAX_CACHED {
            cache.retain(|_, (since, _)| now.saturating_duration_since(*since) < BELIEVED);
        }
        if cache.len() < MAX_CACHED {
            cache.insert(digest(token), (now, caller));
        }
    }

    fn refuse(&self, result: &'static str, status: Status) -> Status {
        self.count(result);
        status
    }

    fn count(&self, result: &'static str) {
        self.results.get_or_create(&Reviewed { result }).inc();
    }

    fn cache(&self) -> MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn digest(token: &str) -> [u8; 32] {
    Sha256::digest(token).into()
}

/// When a token ends; None if it is no JSON Web Token (RFC 7519, section 4.1.4).
fn expiry(token: &str) -> Option<SystemTime> {
    #[derive(Deserialize)]
    struct Claims {
        exp: u64,
    }
    let payload = URL_SAFE_NO_PAD.decode(token.split('.').nth(1)?).ok()?;
    let Claims { exp } = serde_json::from_slice(&payload).ok()?;
    UNIX_EPOCH.checked_add(Duration::from_secs(exp))
}

/// The pod that a valid token of our audience is bound to.
fn caller(status: &TokenReviewStatus, expires: SystemTime) -> Option<Caller> {
    let ours = status.audiences.iter().flatten().any(|audience| audience == AUDIENCE);
    if status.authenticated != Some(true) || !ours {
        return None;
    }
    let user = status.user.as_ref()?;
    let (namespace, _account) = user.username.as_deref()?.strip_prefix("system:serviceaccount:")?.split_once(':')?;
    let extra = |key: &str| user.extra.as_ref()?.get(key)?.first().cloned();
    Some(Caller {
        pod: ObjectRef::new(namespace, extra("authentication.kubernetes.io/pod-name")?),
        uid: extra("authentication.kubernetes.io/pod-uid")?,
        expires,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn status(change: impl FnOnce(&mut serde_json::Value)) -> TokenReviewStatus {
        let mut status = json!({
            "authenticated": true,
            "audiences": ["fetchr.sh"],
            "user": {
                "username": "system:serviceaccount:shop:default",
                "extra": {"authentication.kubernetes.io/pod-name": ["web-1"], "authentication.kubernetes.io/pod-uid": ["u1"]},
            },
        });
        change(&mut status);
        serde_json::from_value(status).unwrap()
    }

    #[test]
    fn bound_token_names_its_pod() {
        let expected = Caller { pod: ObjectRef::new("shop", "web-1"), uid: "u1".to_owned(), expires: UNIX_EPOCH };
        assert_eq!(caller(&status(|_| {}), UNIX_EPOCH), Some(expected));
    }

    #[test]
    fn token_says_when_it_ends() {
        let token = |claims: &str| format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(claims));
        assert_eq!(
            expiry(&token(r#"{"exp":1700000000,"aud":["fetchr.sh"]}"#)),
            Some(UNIX_EPOCH + Duration::from_secs(1_700_000_000))
        );
        for odd in [token("{}"), token("no JSON"), token(r#"{"exp":-1}"#), "opaque".to_owned(), "a.?.b".to_owned()] {
            assert_eq!(expiry(&odd), None, "{odd}");
        }
    }

    #[test]
    fn other_tokens_name_nobody() {
        for (what, status) in [
            ("not authenticated", status(|s| s["authenticated"] = json!(false))),
            ("another audience", status(|s| s["audiences"] = json!(["https://kubernetes.default.svc"]))),
            ("not bound to a pod", status(|s| s["user"]["extra"] = json!({}))),
            ("a person", status(|s| s["user"]["username"] = json!("alice"))),
        ] {
            assert_eq!(caller(&status, UNIX_EPOCH), None, "{what}");
        }
    }
}
