//! What an administrator may ask: the configuration in force, and what it does to a request. The admin port and the operator's
//! stream give the same answers.

pub(crate) mod cache;
pub(crate) mod limits;
pub(crate) mod redact;
mod refused;

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    time::Duration,
};

use crds::policy::Direction;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

pub use self::refused::Refused;
use crate::{
    PodPurges, PurgeRequest,
    cache::forms,
    config::{Config, Shared},
    facts::Facts,
    fields,
    limit::Limiter,
    route::{Explanation, Routes},
    throttle::PodThrottles,
};

/// Sections and verbs that [`answer`] knows, by verb.
pub const VERBS: [&str; 7] = ["config", "explain", "throttles", "cache", "purge", "limits", "reset"];

/// Answers a command of the stream as JSON; all but `cache`, `limits`, `purge` and `reset`, which take time.
pub fn answer(shared: &Shared, throttles: &PodThrottles, verb: &str, body: &[u8]) -> Result<Vec<u8>, Refused> {
    let config = shared.load();
    let answer = match verb {
        "config" => describe(shared),
        "throttles" => json!(throttles.figures()),
        "explain" => {
            let request: ExplainRequest =
                serde_json::from_slice(body).map_err(|error| Refused::wrong(format!("not a request to explain: {error}")))?;
            json!(request.explain(config.routes(request.direction)).map_err(Refused::wrong)?)
        }
        _ => return Err(Refused::wrong(format!("unknown verb {verb:?}; this sidecar knows {}", VERBS.join(", ")))),
    };
    Ok(answer.to_string().into_bytes())
}

/// Answers the command `purge` of the stream as JSON, within some time.
pub async fn purge(config: Arc<Config>, purges: &PodPurges, body: &[u8], at_most: Duration) -> Result<Vec<u8>, Refused> {
    let request: PurgeRequest = serde_json::from_slice(body).map_err(|error| Refused::wrong(format!("not a purge: {error}")))?;
    let answer = purges.purge_forms(&request, |url| forms(&config, url), at_most).await?;
    Ok(json!(answer).to_string().into_bytes())
}

/// Answers the command `reset` of the stream as JSON.
pub(crate) async fn reset(config: Arc<Config>, limiter: &Limiter, body: &[u8]) -> Result<Vec<u8>, Refused> {
    Ok(json!(limits::reset(config, limiter, body).await?).to_string().into_bytes())
}

/// The configuration in force as JSON, without the values that policies compare with or write: any may be a credential.
pub fn describe(shared: &Shared) -> Value {
    let config = shared.load();
    let planned = config.planned.as_ref();
    let mut plan = planned.map(|planned| json!(*planned.plan)).unwrap_or_default();
    redact::redact(&mut plan);
    json!({
        "standing": config.standing,
        "digest": config.digest(),
        "source": config.source(),
        "position": planned.map(|planned| &planned.position),
        "identity": config.identity,
        "rules": {"inbound": config.inbound.rules(), "outbound": config.outbound.rules()},
        "plan": plan,
        "services": shared.services().describe(),
    })
}

/// A request that does not exist, to be explained.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ExplainRequest {
    /// Which way it goes.
    #[serde(default)]
    pub direction: Direction,
    /// Its method. Default: GET.
    #[serde(default = "get")]
    pub method: String,
    /// Its URL, such as `http://shop.example/products?page=1`.
    pub url: String,
    /// Its header fields.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, String>,
    /// Address of its client. Default: 127.0.0.1.
    #[serde(default = "localhost")]
    pub client: IpAddr,
}

fn get() -> String {
    Method::GET.to_string()
}

fn localhost() -> IpAddr {
    Ipv4Addr::LOCALHOST.into()
}

impl ExplainRequest {
    /// A GET request to the application.
    pub fn to(url: impl Into<String>) -> Self {
        Self { direction: Direction::Inbound, method: get(), url: url.into(), headers: BTreeMap::new(), client: localhost() }
    }

    /// From its parts: `?url=http://shop/products&method=GET&direction=Inbound&client=10.0.0.1&header=x-tier:gold`; `header` may stand
    /// several times. The error says which part is wrong.
    pub(crate) fn in_parts(parts: Vec<(String, String)>) -> Result<Self, String> {
        let mut fields = serde_json::Map::new();
        let mut headers = BTreeMap::new();
        for (name, value) in parts {
            if name == "header" {
                let field = value.split_once(':').ok_or_else(|| format!("header: {value:?} is not like x-tier:gold"))?;
                headers.insert(field.0.trim().to_ascii_lowercase(), field.1.trim().to_owned());
            } else {
                fields.insert(name, value.into());
            }
        }
        fields.insert("headers".to_owned(), json!(headers));
        serde_json::from_value(fields.into()).map_err(|error| error.to_string())
    }

    /// What a table does to the request. The error says which part of the request is wrong.
    pub fn explain(&self, routes: &Routes) -> Result<Explanation, String> {
        self.with_facts(|facts, _| routes.explain(facts))
    }

    /// Hands what it says to `then`, and the host of its URL with the port. The error says which part of it is wrong.
    pub(crate) fn with_facts<T>(&self, then: impl FnOnce(&Facts<'_>, &str) -> T) -> Result<T, String> {
        let method = Method::from_bytes(self.method.as_bytes()).map_err(|_| format!("method: {:?} is no method", self.method))?;
        let wrong = || format!("url: {:?} is not like http://shop.example/products?page=1", self.url);
        let uri: Uri = self.url.parse().map_err(|_| wrong())?;
        let (Some(scheme @ ("http" | "https")), Some(host)) = (uri.scheme_str(), uri.host()) else { return Err(wrong()) };
        let mut headers = HeaderMap::new();
        for (name, value) in &self.headers {
            let parsed = (HeaderName::from_bytes(name.as_bytes()), HeaderValue::from_str(value));
            let (Ok(name), Ok(value)) = parsed else { return Err(format!("headers: {name}: {value:?} is no header field")) };
            headers.append(name, value);
        }
        let (host, authority) = (fields::host(host), uri.authority().map_or(host, |authority| authority.as_str()));
        let authority = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
        let facts = Facts {
            method: &method,
            scheme,
            host: &host,
            path: uri.path(),
            query: uri.query(),
            headers: &headers,
            client: self.client,
        };
        Ok(then(&facts, authority))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use crds::plan::{Identity, Plan, Position};

    use super::*;
    use crate::config::{Config, PlanSource, Planned};

    fn config() -> Shared {
        let plan: Plan = serde_json::from_value(json!({
            "proxy": {"namespace": "shop", "name": "web"},
            "settings": {},
            "policies": [{
                "policy": {"namespace": "shop", "name": "p"},
                "attachment": {"kind": "proxy"},
                "direction": "Inbound",
                "rules": [{
                    "name": "r",
                    "matches": [{"path": {"type": "Prefix", "value": "/a"}, "headers": [{"name": "X-Api-Key", "value": "s3cret"}]}],
                    "headers": {"request": {"set": [{"name": "Authorization", "value": "Basic s3cret"}, {"name": "x-a", "value": "s3cret too"}]}},
                }],
            }],
        }))
        .unwrap();
        let planned =
            Planned { plan: Arc::new(plan), digest: "d1".to_owned(), position: Position::default(), source: PlanSource::File };
        Shared::new(Config::build(planned, Identity::default()).unwrap())
    }

    fn text(answer: Result<Vec<u8>, Refused>) -> String {
        String::from_utf8(answer.unwrap()).unwrap()
    }

    #[test]
    fn configuration_shows_no_credentials() {
        let shown = text(answer(&config(), &PodThrottles::default(), "config", b""));
        assert!(shown.contains("\"digest\":\"d1\"") && shown.contains("\"x-a\"") && shown.contains(redact::REDACTED));
        assert!(!shown.contains("s3cret"), "{shown}");
    }

    #[test]
    fn request_is_explained_from_its_description() {
        let body = br#"{"url": "http://Shop.Example:8080/a/b?x=1", "headers": {"x-api-key": "s3cret"}}"#;
        let explained: Explanation =
            serde_json::from_slice(&answer(&config(), &PodThrottles::default(), "explain", body).unwrap()).unwrap();
        assert_eq!((explained.host.as_str(), explained.path.as_str()), ("shop.example", "/a/b"));
        assert_eq!(explained.rules[0].matched.as_deref(), Some("matches[0]"));
    }

    #[test]
    fn explained_host_is_spelled_as_the_data_path_compares_it() {
        for url in ["http://Shop.Example./a", "http://shop.example.:8080/a", "http://shop.example/a"] {
            let body = json!({"url": url}).to_string();
            let explained: Explanation =
                serde_json::from_slice(&answer(&config(), &PodThrottles::default(), "explain", body.as_bytes()).unwrap())
                    .unwrap();
            assert_eq!(explained.host, "shop.example", "{url}");
        }
        let body = br#"{"url": "http://[::1]:8080/a"}"#;
        let explained: Explanation =
            serde_json::from_slice(&answer(&config(), &PodThrottles::default(), "explain", body).unwrap()).unwrap();
        assert_eq!(explained.host, "[::1]");
    }

    #[test]
    fn throttles_are_told_as_the_admin_port_tells_them() {
        assert_eq!(text(answer(&config(), &PodThrottles::default(), "throttles", b"")), "[]");
    }

    #[test]
    fn wrong_questions_say_what_is_wrong() {
        let wrong = |body: &str| answer(&config(), &PodThrottles::default(), "explain", body.as_bytes()).unwrap_err().why;
        assert!(wrong(r#"{"url": "/a"}"#).starts_with("url:"));
        assert!(wrong(r#"{"url": "http://a/", "method": "G T"}"#).starts_with("method:"));
        assert!(wrong(r#"{"url": "http://a/", "headers": {"a b": ""}}"#).starts_with("headers:"));
        assert!(wrong(r#"{"url": "http://a/", "verb": 1}"#).contains("unknown field"));
        assert!(answer(&config(), &PodThrottles::default(), "reboot", b"").unwrap_err().why.contains("config, explain"));
    }
}
