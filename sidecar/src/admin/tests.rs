use std::{
    net::{IpAddr, Ipv4Addr},
    sync::Mutex,
    time::Duration,
};

use bytes::Bytes;
use crds::{
    plan::{Identity, ObjectRef, Plan, Position},
    proxy::FetchrProxySpec,
};
use http::{HeaderMap, Method, Request};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::{
    PodCache, PodPurges,
    config::{Config, PlanSource, Planned, Shared},
    drain,
    throttle::PodThrottles,
};

/// A router on a socket of its own.
struct Served {
    address: SocketAddr,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

impl Served {
    async fn start(router: Router) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        Self { address, task: tokio::spawn(serve(listener, router, stop.clone())), stop }
    }

    async fn ask(&self, method: Method, target: &str, headers: &[(&str, &str)], body: &str) -> (u16, String) {
        let socket = TcpStream::connect(self.address).await.unwrap();
        let (mut sender, connection) = http1::handshake(TokioIo::new(socket)).await.unwrap();
        tokio::spawn(connection);
        let mut request = Request::builder().method(method).uri(target);
        if !headers.iter().any(|(name, _)| *name == "host") {
            request = request.header("host", self.address.to_string());
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = sender.send_request(request.body(Full::new(Bytes::from(body.to_owned()))).unwrap()).await.unwrap();
        let status = response.status().as_u16();
        (status, String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap())
    }

    async fn get(&self, target: &str) -> (u16, String) {
        self.ask(Method::GET, target, &[], "").await
    }

    async fn end(self) {
        self.stop.cancel();
        tokio::time::timeout(Duration::from_secs(5), self.task).await.unwrap().unwrap();
    }
}

fn planned() -> Config {
    let mut plan = Plan { proxy: ObjectRef::new("shop", "web"), ..Plan::default() };
    plan.settings.drain.delay = crds::scalar::Duration::from_millis(0);
    plan.settings.drain.timeout = crds::scalar::Duration::from_millis(0);
    let planned =
        Planned { plan: Arc::new(plan), digest: "d1".to_owned(), position: Position::default(), source: PlanSource::File };
    Config::build(planned, Identity::default()).unwrap()
}

fn public_with(probes: Probes) -> (Shared, drain::Handle, Public) {
    let shared = Shared::new(Config::waiting(FetchrProxySpec::default()));
    let drain = drain::Handle::new();
    let health = Health::new(shared.clone(), drain.clone());
    (shared, drain, Public { health, metrics: Metrics::new(), probes: Arc::new(probes) })
}

#[tokio::test]
async fn health_and_figures_are_for_everyone() {
    let (shared, drain, state) = public_with(Probes::default());
    let health = state.health.clone();
    let served = Served::start(public(state)).await;
    assert_eq!(served.get("/livez").await, (200, "ok\n".to_owned()));
    assert_eq!(served.get("/readyz").await, (503, "the listeners are not open yet\n".to_owned()));
    health.listening();
    assert_eq!(served.get("/readyz").await, (503, "waiting for the first configuration\n".to_owned()));
    shared.replace(planned());
    assert_eq!(served.get("/readyz").await, (200, "ok\n".to_owned()));
    drain.drain_inbound(Duration::ZERO, Duration::ZERO).await;
    assert_eq!(served.get("/readyz").await, (503, "draining\n".to_owned()));
    assert_eq!(served.get("/livez").await.0, 200, "a pod that drains is not restarted");
    let (status, page) = served.get("/metrics").await;
    assert!(status == 200 && page.ends_with("# EOF\n"), "{page}");
    assert_eq!(served.get("/config").await.0, 404, "not on this port");
    served.end().await;
}

struct Orders {
    served: Served,
    drain: drain::Handle,
    levels: Arc<Mutex<Vec<String>>>,
}

const TOKEN: &str = "t0ken";

impl Orders {
    async fn start() -> Self {
        let (levels, drain) = (Arc::new(Mutex::new(Vec::new())), drain::Handle::new());
        let set: Arc<Mutex<Vec<String>>> = Arc::clone(&levels);
        let set_level: SetLevel = Arc::new(move |level| match level {
            "loud" => Err("no such level".to_owned()),
            level => {
                set.lock().unwrap().push(level.to_owned());
                Ok(())
            }
        });
        let (purges, cache) = (PodPurges::new("pod"), PodCache::default());
        let state = Admin {
            shared: Shared::new(planned()),
            drain: drain.clone(),
            set_level,
            purges,
            cache,
            throttles: PodThrottles::default(),
            limiter: Arc::default(),
        };
        Self { served: Served::start(admin(state, TOKEN)).await, drain, levels }
    }

    async fn with_token(&self, method: Method, target: &str, body: &str) -> (u16, String) {
        self.served.ask(method, target, &[("authorization", "Bearer t0ken")], body).await
    }
}

#[tokio::test]
async fn orders_need_the_token() {
    let orders = Orders::start().await;
    let wrong: [&[(&str, &str)]; 4] =
        [&[], &[("authorization", "Bearer t0keN")], &[("authorization", "Bearer t0ken2")], &[("authorization", "Basic t0ken")]];
    for headers in wrong {
        for (method, target) in [(Method::GET, "/config"), (Method::POST, "/drain"), (Method::GET, "/nothing")] {
            let (status, _) = orders.served.ask(method, target, headers, "").await;
            assert_eq!(status, 401, "{target} {headers:?}");
        }
    }
    assert!(!orders.drain.is_draining());
    let (status, shown) = orders.with_token(Method::GET, "/config", "").await;
    assert!(status == 200 && shown.contains("\"digest\":\"d1\""), "{shown}");
    orders.served.end().await;
}

#[tokio::test]
async fn name_that_was_made_to_resolve_to_loopback_is_refused() {
    let orders = Orders::start().await;
    for (host, status) in [("evil.example", 421), ("localhost.evil.example:4620", 421), ("localhost:4620", 200), ("[::1]:1", 200)]
    {
        let headers = [("host", host), ("authorization", "Bearer t0ken")];
        assert_eq!(orders.served.ask(Method::GET, "/config", &headers, "").await.0, status, "{host}");
    }
    orders.served.end().await;
}

#[tokio::test]
async fn request_is_explained_by_its_query() {
    let orders = Orders::start().await;
    let asked = "/explain?url=http://shop/a%20b?x=1&method=POST&header=X-Tier:%20gold&client=10.0.0.7&direction=Outbound";
    let (status, explained) = orders.with_token(Method::GET, asked, "").await;
    assert_eq!(status, 400, "a blank can't stand in a URL: {explained}");
    let (status, explained) = orders.with_token(Method::GET, &asked.replace("%20b", "/b"), "").await;
    assert_eq!(status, 200, "{explained}");
    let explained: crate::route::Explanation = serde_json::from_str(&explained).unwrap();
    assert_eq!((explained.path.as_str(), explained.client), ("/a/b", IpAddr::from([10, 0, 0, 7])));
    for wrong in ["/explain", "/explain?url=/a", "/explain?url=http://a/&verb=x", "/explain?url=http://a/&header=x"] {
        assert_eq!(orders.with_token(Method::GET, wrong, "").await.0, 400, "{wrong}");
    }
    orders.served.end().await;
}

#[tokio::test]
async fn drain_answers_when_it_is_over() {
    let orders = Orders::start().await;
    assert_eq!(orders.with_token(Method::GET, "/drain", "").await.0, 405);
    assert!(!orders.drain.is_draining());
    let (status, answer) = orders.with_token(Method::POST, "/drain", "").await;
    assert_eq!((status, answer.as_str()), (200, "{\"connectionsLeft\":0}"));
    assert_eq!(orders.drain.phase(), drain::Phase::Drained);
    orders.served.end().await;
}

#[tokio::test]
async fn log_level_is_set_or_refused_with_a_reason() {
    let orders = Orders::start().await;
    assert_eq!(orders.with_token(Method::POST, "/loglevel", "debug\n").await, (200, "debug\n".to_owned()));
    let (status, why) = orders.with_token(Method::POST, "/loglevel", "loud").await;
    assert!(status == 400 && why.contains("no such level"), "{why}");
    assert_eq!(*orders.levels.lock().unwrap(), ["debug"]);
    orders.served.end().await;
}

/// An application that tells what it was asked.
async fn application() -> Served {
    let ask = async |headers: HeaderMap| {
        let field = |name: &str| headers.get(name).map(|value| value.to_str().unwrap().to_owned()).unwrap_or_default();
        format!("{} {}", field("user-agent"), field("x-probe"))
    };
    Served::start(
        Router::new()
            .route("/ok", get(ask))
            .route("/moved", get(async || (StatusCode::FOUND, [(header::LOCATION, "http://elsewhere/")])))
            .route("/large", get(async || "x".repeat(1 << 20)))
            .route("/sick", get(async || (StatusCode::INTERNAL_SERVER_ERROR, "no database"))),
    )
    .await
}

fn probes(json: &serde_json::Value) -> Probes {
    Probes::parse(&json.to_string(), IpAddr::from(Ipv4Addr::LOCALHOST)).unwrap()
}

#[tokio::test]
async fn rewritten_probes_call_the_application() {
    let application = application().await;
    let port = application.address.port();
    let closed = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap().local_addr().unwrap().port();
    let http = |path: &str| serde_json::json!({"httpGet": {"path": path, "port": port}});
    let (_, _, state) = public_with(probes(&serde_json::json!({
        "app/readiness": {"httpGet": {"path": "/ok", "port": port, "httpHeaders": [{"name": "x-probe", "value": "1"}]}},
        "app/liveness": http("/sick"),
        "app/startup": http("/moved"),
        "app/preStop": http("/large"),
        "db/readiness": {"tcpSocket": {"port": port}},
        "db/liveness": {"tcpSocket": {"port": closed}},
    })));
    let served = Served::start(public(state)).await;
    let kubelet = [("user-agent", "kube-probe/1.34")];
    let asked = served.ask(Method::GET, "/probe/app/readiness", &kubelet, "").await;
    assert_eq!(asked, (200, "kube-probe/1.34 1".to_owned()));
    assert_eq!(served.get("/probe/app/liveness").await, (500, "no database".to_owned()));
    assert_eq!(served.get("/probe/app/startup").await.0, 200, "a redirect is no failure");
    assert_eq!(served.get("/probe/app/preStop").await, (200, String::new()));
    assert_eq!(served.get("/probe/db/readiness").await.0, 200);
    assert_eq!(served.get("/probe/db/liveness").await.0, 503);
    for unknown in ["/probe/app/postStart", "/probe/other/readiness", "/probe/app", "/probe/app%2Freadiness/x"] {
        assert_eq!(served.get(unknown).await.0, 404, "{unknown}");
    }
    served.end().await;
    application.end().await;
}

#[tokio::test]
async fn grpc_probe_asks_the_health_service() {
    use hyper_util::{rt::TokioExecutor, service::TowerToHyperService};
    use wire::health::{HealthCheckRequest, HealthCheckResponse, health_server};

    struct App;

    #[tonic::async_trait]
    impl health_server::Health for App {
        async fn check(
            &self,
            asked: tonic::Request<HealthCheckRequest>,
        ) -> Result<tonic::Response<HealthCheckResponse>, tonic::Status> {
            match asked.into_inner().service.as_str() {
                "" => Ok(tonic::Response::new(HealthCheckResponse { status: 1 })),
                "sick" => Ok(tonic::Response::new(HealthCheckResponse { status: 2 })),
                other => Err(tonic::Status::not_found(other)),
            }
        }
    }

    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let application = tokio::spawn(async move {
        loop {
            let (socket, _) = listener.accept().await.unwrap();
            let service = TowerToHyperService::new(health_server::HealthServer::new(App));
            let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            tokio::spawn(builder.serve_connection(TokioIo::new(socket), service));
        }
    });
    let probes = probes(&serde_json::json!({
        "app/readiness": {"grpc": {"port": port}},
        "app/liveness": {"grpc": {"port": port, "service": "sick"}},
        "app/startup": {"grpc": {"port": port, "service": "none"}},
    }));
    let call = async |kind: &str| probes.of("app", kind).unwrap().call(None).await;
    assert_eq!(call("readiness").await, Ok("SERVING".to_owned()));
    assert_eq!(call("liveness").await.unwrap_err().message, "NOT_SERVING");
    assert_eq!(call("startup").await.unwrap_err().status, StatusCode::SERVICE_UNAVAILABLE);
    application.abort();
}

#[test]
fn broken_list_of_probes_is_told() {
    let wrong = Probes::parse("{\"a/readiness\": {\"exec\": {}}}", IpAddr::from(Ipv4Addr::LOCALHOST)).unwrap_err();
    assert!(wrong.contains("FETCHR_PROBES") && wrong.contains("exec"), "{wrong}");
    assert!(Probes::parse("", IpAddr::from(Ipv4Addr::LOCALHOST)).unwrap().of("a", "readiness").is_none());
}
