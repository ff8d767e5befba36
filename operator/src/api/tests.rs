use axum::http::Request;
use futures::{FutureExt as _, future::BoxFuture};
use http_body_util::Full;
use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};

use super::*;
use crate::{
    certs::Installer,
    https::testing::{TestServer, ca, installer},
};

const BASE: &str = "/apis/api.fetchr.sh/v1alpha1";

/// One sidecar, which echoes.
struct One;

impl Sidecars for One {
    fn list(&self, namespace: Option<&str>) -> Vec<Sidecar> {
        let sidecar = Sidecar {
            namespace: "shop".to_owned(),
            pod: "web-1".to_owned(),
            pod_uid: "u-1".to_owned(),
            proxy: "shop/web".to_owned(),
            workload: "Deployment/web".to_owned(),
            version: "0.1.0".to_owned(),
            plan_digest: "0123456789abcdef".to_owned(),
            in_sync: true,
            ready: false,
            nack: None,
        };
        if namespace.is_none_or(|namespace| namespace == "shop") { vec![sidecar] } else { Vec::new() }
    }

    fn command<'a>(
        &'a self,
        namespace: &'a str,
        pod: &'a str,
        verb: &'a str,
        body: Bytes,
        _: Duration,
    ) -> BoxFuture<'a, Result<Bytes, CommandError>> {
        async move {
            match (namespace, pod) {
                ("shop", "web-1") => Ok(format!("{{\"verb\":\"{verb}\",\"body\":{:?}}}", String::from_utf8_lossy(&body)).into()),
                ("shop", "slow") => Err(CommandError::NoAnswer),
                ("shop", "picky") => Err(refused(400, "unknown verb")),
                ("shop", "empty") => Err(refused(404, "nothing is stored for it")),
                ("shop", "busy") => Err(refused(503, "ask again")),
                ("shop", "garbled") => Ok("<html>".into()),
                _ => Err(CommandError::NotConnected),
            }
        }
        .boxed()
    }
}

fn refused(status: u16, why: &str) -> CommandError {
    CommandError::Refused { status, why: why.to_owned() }
}

/// Alice may do everything in `shop`, the group `ops` everything, Carol's rights can't be found out.
struct Rbac;

impl Authorizer for Rbac {
    fn allows<'a>(&'a self, caller: &'a Caller, action: Action<'a>) -> BoxFuture<'a, Result<bool, Unanswered>> {
        async move {
            match caller.user.as_str() {
                "carol" => Err(Unanswered("connection refused".to_owned())),
                "alice" => Ok(action.namespace == Some("shop")),
                _ => Ok(caller.groups.iter().any(|group| group == "ops")),
            }
        }
        .boxed()
    }
}

struct Fixture {
    installer: Installer,
    server: TestServer,
    front_proxies: FrontProxies,
    front_proxy_ca: String,
    front_proxy: (String, String),
    stranger: (String, String),
}

/// A CA in PEM, and a client certificate of it.
fn client_ca(name: &str) -> (String, (String, String)) {
    let (ca_key, key) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "front-proxy-ca");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = params.self_signed(&ca_key).unwrap().pem();
    let issuer = Issuer::from_ca_cert_pem(&ca, ca_key).unwrap();
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let certificate = params.signed_by(&key, &issuer).unwrap().pem();
    (ca, (certificate, key.serialize_pem()))
}

impl Fixture {
    async fn start() -> Self {
        let fixture = Self::ignorant().await;
        fixture.learn();
        fixture
    }

    /// The front proxy's CA becomes known.
    fn learn(&self) {
        let ca = self.front_proxy_ca.as_str();
        let data = [("requestheader-client-ca-file", ca), ("requestheader-allowed-names", r#"["front-proxy-client"]"#)];
        self.front_proxies.install(&data.map(|(key, value)| (key.to_owned(), value.to_owned())).into()).unwrap();
    }

    /// Before the front proxy is known.
    async fn ignorant() -> Self {
        let installer = installer();
        let (front_proxy_ca, front_proxy) = client_ca("front-proxy-client");
        let (_, stranger) = client_ca("front-proxy-client");
        let front_proxies = FrontProxies::new(installer.certs());
        let tls = front_proxies.tls();
        let metrics = Metrics::register(&mut Registry::default());
        let api = Api {
            sidecars: Arc::new(One),
            authorizer: Arc::new(Rbac),
            front_proxies: front_proxies.clone(),
            version: "0.1.0".to_owned(),
            metrics,
        };
        let server = TestServer::start(router(Arc::new(api)), tls).await;
        Self { server, installer, front_proxies, front_proxy_ca, front_proxy, stranger }
    }

    async fn send(&self, identity: Option<&(String, String)>, request: Request<Full<Bytes>>) -> Result<(u16, Value), String> {
        let identity = identity.map(|(certificate, key)| (certificate.as_str(), key.as_str()));
        let response = self.server.send(&ca(&self.installer), identity, request).await.map_err(|error| error.to_string())?;
        let status = response.status().as_u16();
        Ok((status, serde_json::from_slice(&response.into_body()).unwrap()))
    }

    async fn get_as(&self, user: &str, path: &str) -> (u16, Value) {
        let request = Request::get(format!("{BASE}{path}")).header("x-remote-user", user).header("x-remote-group", "people");
        self.send(Some(&self.front_proxy), request.body(Full::default()).unwrap()).await.unwrap()
    }
}

#[tokio::test]
async fn front_proxy_without_which_nobody_is_believed() {
    let fixture = Fixture::start().await;
    let request = || {
        let request = Request::get(format!("{BASE}/namespaces/shop/sidecars")).header("x-remote-user", "alice");
        request.body(Full::default()).unwrap()
    };
    let (status, body) = fixture.send(None, request()).await.unwrap();
    assert_eq!((status, body["kind"].as_str(), body["reason"].as_str()), (401, Some("Status"), Some("Unauthorized")));
    assert!(fixture.send(Some(&fixture.stranger), request()).await.is_err(), "a foreign CA ends in the handshake");
    assert_eq!(fixture.send(Some(&fixture.front_proxy), request()).await.unwrap().0, 200);
    let nameless = Request::get(format!("{BASE}/sidecars")).body(Full::default()).unwrap();
    assert_eq!(fixture.send(Some(&fixture.front_proxy), nameless).await.unwrap().0, 401);
}

#[tokio::test]
async fn connection_from_before_the_front_proxy_was_known_ends_when_it_is() {
    let fixture = Fixture::ignorant().await;
    let identity = Some((fixture.front_proxy.0.as_str(), fixture.front_proxy.1.as_str()));
    let mut early = fixture.server.connect(&ca(&fixture.installer), identity).await.unwrap();
    let request = || Request::get(format!("{BASE}/version")).header("x-remote-user", "bob").header("x-remote-group", "ops");
    let answer = early.send_request(request().body(Full::default()).unwrap()).await.unwrap();
    assert_eq!(answer.status(), 503);
    drop(answer);
    fixture.learn();
    let ended = async {
        while early.ready().await.is_ok() {
            tokio::time::sleep(Duration::from_millis(5)).await
        }
    };
    tokio::time::timeout(Duration::from_secs(10), ended).await.unwrap();
    let later = fixture.send(Some(&fixture.front_proxy), request().body(Full::default()).unwrap()).await.unwrap();
    assert_eq!(later.0, 200);
}

#[tokio::test]
async fn rights_are_asked_for_each_namespace() {
    let fixture = Fixture::start().await;
    assert_eq!(fixture.get_as("alice", "/namespaces/shop/sidecars").await.0, 200);
    let (status, body) = fixture.get_as("alice", "/namespaces/bank/sidecars/web-1/config").await;
    assert_eq!(status, 403);
    let expected = r#"User "alice" cannot get resource "sidecars/config" in API group "api.fetchr.sh" in the namespace "bank""#;
    assert_eq!(body["message"], expected);
    assert_eq!(fixture.get_as("alice", "/sidecars").await.0, 403);
    assert_eq!(fixture.get_as("carol", "/sidecars").await.0, 503);
    let ops = Request::get(format!("{BASE}/sidecars")).header("x-remote-user", "bob").header("x-remote-group", "ops");
    let answer = fixture.send(Some(&fixture.front_proxy), ops.body(Full::default()).unwrap()).await.unwrap();
    assert_eq!((answer.0, answer.1["items"].as_array().unwrap().len()), (200, 1));
}

#[tokio::test]
async fn sidecars_are_objects_lists_and_tables() {
    let fixture = Fixture::start().await;
    let (_, list) = fixture.get_as("alice", "/namespaces/shop/sidecars?limit=500").await;
    assert_eq!((list["kind"].as_str(), list["items"][0]["metadata"]["name"].as_str()), (Some("SidecarList"), Some("web-1")));
    let (_, one) = fixture.get_as("alice", "/namespaces/shop/sidecars/web-1").await;
    assert_eq!(one, list["items"][0]);
    assert_eq!(
        one["status"],
        json!({"proxy": "shop/web", "workload": "Deployment/web", "version": "0.1.0", "planDigest": "0123456789abcdef",
            "inSync": true, "ready": false})
    );
    let kubectl = Request::get(format!("{BASE}/namespaces/shop/sidecars"))
        .header("accept", "application/json;as=Table;v=v1;g=meta.k8s.io,application/json")
        .header("x-remote-user", "alice");
    let (_, table) = fixture.send(Some(&fixture.front_proxy), kubectl.body(Full::default()).unwrap()).await.unwrap();
    assert_eq!(table["kind"], "Table");
    let cells = json!(["web-1", "shop/web", "Deployment/web", "0.1.0", "True", "False", "0123456789ab", ""]);
    assert_eq!(table["rows"][0]["cells"], cells);
    assert_eq!(table["columnDefinitions"].as_array().unwrap().len(), cells.as_array().unwrap().len());
    assert_eq!(fixture.get_as("alice", "/namespaces/shop/sidecars/nope").await.0, 404);
    assert_eq!(fixture.get_as("alice", "/namespaces/shop/sidecars?watch=true").await.0, 400);
}

#[tokio::test]
async fn commands_travel_down_the_stream_and_failures_come_back_as_status() {
    let fixture = Fixture::start().await;
    let (status, config) = fixture.get_as("alice", "/namespaces/shop/sidecars/web-1/config").await;
    assert_eq!((status, config["verb"].as_str()), (200, Some("config")));
    let (status, throttles) = fixture.get_as("alice", "/namespaces/shop/sidecars/web-1/throttles").await;
    assert_eq!((status, throttles["verb"].as_str()), (200, Some("throttles")));
    for (pod, code) in [("slow", 504), ("picky", 400), ("empty", 404), ("busy", 503), ("garbled", 500), ("nope", 404)] {
        let (status, body) = fixture.get_as("alice", &format!("/namespaces/shop/sidecars/{pod}/config")).await;
        assert_eq!((status, body["code"].as_u64(), body["kind"].as_str()), (code, Some(code.into()), Some("Status")), "{pod}");
    }
    for verb in ["explain", "purge", "reset"] {
        let order = |body: &'static str| {
            let request = Request::post(format!("{BASE}/namespaces/shop/sidecars/web-1/{verb}")).header("x-remote-user", "alice");
            request.body(Full::from(body)).unwrap()
        };
        let (status, answer) = fixture.send(Some(&fixture.front_proxy), order(r#"{"url":"/a"}"#)).await.unwrap();
        assert_eq!((status, answer["verb"].as_str(), answer["body"].as_str()), (200, Some(verb), Some(r#"{"url":"/a"}"#)));
        assert_eq!(fixture.send(Some(&fixture.front_proxy), order("url=/a")).await.unwrap().0, 400);
    }
}

#[tokio::test]
async fn questions_about_the_cache_are_relayed_and_no_others() {
    let fixture = Fixture::start().await;
    let asked =
        async |user, pod, question| fixture.get_as(user, &format!("/namespaces/shop/sidecars/{pod}/cache/{question}")).await;
    for (question, relayed) in [
        ("stats", "/cache/stats?"),
        ("objects?prefix=http%3A%2F%2Fa%2F&limit=5", "/cache/objects?prefix=http%3A%2F%2Fa%2F&limit=5"),
        ("object?url=http://a/", "/cache/object?url=http://a/"),
        ("explain?url=http://a/", "/cache/explain?url=http://a/"),
    ] {
        let (status, answer) = asked("alice", "web-1", question).await;
        assert_eq!((status, &answer), (200, &json!({"verb": "cache", "body": relayed})), "{question}");
    }
    for question in ["purge", "import", "..%2Fdrain", "objects/1"] {
        assert_eq!(asked("alice", "web-1", question).await.0, 404, "{question}");
    }
    let (status, body) = asked("mallory", "web-1", "stats").await;
    let expected = r#"User "mallory" cannot get resource "sidecars/cache" in API group "api.fetchr.sh" in the namespace "shop""#;
    assert_eq!((status, body["message"].as_str()), (403, Some(expected)));
    let (_, nothing) = asked("alice", "empty", "object?url=http://a/").await;
    assert_eq!(nothing["details"]["causes"][0]["message"], "nothing is stored for it");
    let (_, nobody) = asked("alice", "nope", "stats").await;
    assert_eq!(nobody["details"], json!({"name": "nope", "group": "api.fetchr.sh", "kind": "sidecars", "causes": []}));
}

#[tokio::test]
async fn questions_about_limits_are_relayed_and_no_others() {
    let fixture = Fixture::start().await;
    let asked = async |user, question| fixture.get_as(user, &format!("/namespaces/shop/sidecars/web-1/limits{question}")).await;
    for (question, relayed) in [
        ("", "/limits?"),
        ("/count?limit=a%2Fb&value=1", "/limits/count?limit=a%2Fb&value=1"),
        ("/top?most=5", "/limits/top?most=5"),
    ] {
        let (status, answer) = asked("alice", question).await;
        assert_eq!((status, &answer), (200, &json!({"verb": "limits", "body": relayed})), "{question}");
    }
    for question in ["/reset", "/..%2Fdrain", "/count/1"] {
        assert_eq!(asked("alice", question).await.0, 404, "{question}");
    }
    let (status, body) = asked("mallory", "").await;
    let expected = r#"User "mallory" cannot get resource "sidecars/limits" in API group "api.fetchr.sh" in the namespace "shop""#;
    assert_eq!((status, body["message"].as_str()), (403, Some(expected)));
}

#[tokio::test]
async fn version_counts_sidecars() {
    let fixture = Fixture::start().await;
    let request = Request::get(format!("{BASE}/version")).header("x-remote-user", "bob").header("x-remote-group", "ops");
    let (status, version) = fixture.send(Some(&fixture.front_proxy), request.body(Full::default()).unwrap()).await.unwrap();
    assert_eq!((status, &version["operator"], &version["sidecars"]), (200, &json!("0.1.0"), &json!({"0.1.0": 1})));
}

#[tokio::test]
async fn discovery_needs_no_identity_and_unknown_paths_are_a_status() {
    let fixture = Fixture::start().await;
    let get = |path: &str| Request::get(path).body(Full::default()).unwrap();
    for (path, kind) in [("/apis", "APIGroupList"), ("/apis/api.fetchr.sh", "APIGroup"), (BASE, "APIResourceList")] {
        let (status, body) = fixture.send(None, get(path)).await.unwrap();
        assert_eq!((status, body["kind"].as_str()), (200, Some(kind)), "{path}");
    }
    let (_, index) = fixture.send(None, get("/openapi/v3")).await.unwrap();
    let url = index["paths"]["apis/api.fetchr.sh/v1alpha1"]["serverRelativeURL"].as_str().unwrap();
    let (status, document) = fixture.send(None, get(url)).await.unwrap();
    assert_eq!((status, document["openapi"].as_str()), (200, Some("3.0.0")));
    assert_eq!(fixture.send(None, get("/openapi/v2")).await.unwrap().1["swagger"], "2.0");
    let (status, body) = fixture.send(None, get("/metrics")).await.unwrap();
    assert_eq!((status, body["reason"].as_str()), (404, Some("NotFound")));
    let delete = Request::delete(format!("{BASE}/namespaces/shop/sidecars")).body(Full::default()).unwrap();
    let (status, body) = fixture.send(None, delete).await.unwrap();
    assert_eq!((status, body["reason"].as_str()), (405, Some("MethodNotAllowed")));
}
