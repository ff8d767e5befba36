use std::{fs, net::Ipv4Addr, pin::Pin, sync::Mutex};

use bytes::Bytes;
use crds::{
    plan::{AttachedPolicy, Attachment, Identity, Plan, Position, digest_bytes},
    policy::{Direction, Headers, PolicyRule, headers},
    proxy::FetchrProxySpec,
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    service::TowerToHyperService,
};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::{ServerConfig, pki_types::PrivateKeyDer};
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_rustls::TlsAcceptor;
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tonic::{Request, Response, Status, Streaming};
use wire::v1::{config_server, down::Message as Down, up::Message as Up};

use super::*;
use crate::{
    config::{Config, PlanSource},
    drain,
};

const WAIT: Duration = Duration::from_secs(20);

/// A CA and the server's side of TLS with a certificate of it.
struct Authority {
    pem: String,
    server: Arc<ServerConfig>,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let key = KeyPair::generate().unwrap();
        let leaf = CertificateParams::new(vec!["localhost".to_owned()]).unwrap().signed_by(&key, &issuer).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut server = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![leaf.der().clone()], PrivateKeyDer::Pkcs8(key.serialize_der().into()))
            .unwrap();
        server.alpn_protocols = vec![b"h2".to_vec()];
        Self { pem: issuer.pem(), server: Arc::new(server) }
    }
}

/// A stream as the operator sees it.
struct Link {
    token: String,
    up: Streaming<v1::Up>,
    down: mpsc::Sender<Result<v1::Down, Status>>,
}

impl Link {
    async fn send(&self, message: Down) {
        self.down.send(Ok(v1::Down { message: Some(message) })).await.unwrap();
    }

    /// The next message for which `wanted` has an answer.
    async fn until<T>(&mut self, wanted: impl Fn(Up) -> Option<T>) -> T {
        timeout(WAIT, async {
            loop {
                let up = self.up.message().await.unwrap().expect("the sidecar keeps the stream");
                if let Some(found) = wanted(up.message.unwrap()) {
                    return found;
                }
            }
        })
        .await
        .expect("the message comes")
    }

    async fn hello(&mut self) -> v1::Hello {
        self.until(|up| if let Up::Hello(hello) = up { Some(hello) } else { None }).await
    }

    async fn ack(&mut self) -> String {
        self.until(|up| match up {
            Up::Ack(ack) => Some(ack.digest),
            Up::Nack(nack) => panic!("{}", nack.reason),
            _ => None,
        })
        .await
    }
}

#[derive(Clone)]
struct Service(mpsc::Sender<Link>);

#[tonic::async_trait]
impl config_server::Config for Service {
    type StreamStream = Pin<Box<dyn Stream<Item = Result<v1::Down, Status>> + Send>>;

    async fn stream(&self, request: Request<Streaming<v1::Up>>) -> Result<Response<Self::StreamStream>, Status> {
        let token = request.metadata().get("authorization").unwrap().to_str().unwrap().to_owned();
        let (down, outgoing) = mpsc::channel(16);
        self.0.send(Link { token, up: request.into_inner(), down }).await.unwrap();
        Ok(Response::new(Box::pin(ReceiverStream::new(outgoing))))
    }
}

/// A real gRPC server over TLS on loopback.
struct Operator {
    port: u16,
    links: mpsc::Receiver<Link>,
    tls: Arc<Mutex<Arc<ServerConfig>>>,
    refused: Arc<AtomicU64>,
    task: JoinHandle<()>,
}

impl Operator {
    async fn start(authority: &Authority) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (links, accepted) = mpsc::channel(4);
        let tls = Arc::new(Mutex::new(Arc::clone(&authority.server)));
        let refused = Arc::new(AtomicU64::new(0));
        let (current, failures) = (Arc::clone(&tls), Arc::clone(&refused));
        let task = tokio::spawn(async move {
            loop {
                let (socket, _) = listener.accept().await.unwrap();
                let acceptor = TlsAcceptor::from(Arc::clone(&current.lock().unwrap()));
                let service = TowerToHyperService::new(config_server::ConfigServer::new(Service(links.clone())));
                let failures = Arc::clone(&failures);
                tokio::spawn(async move {
                    let Ok(socket) = acceptor.accept(socket).await else {
                        failures.fetch_add(1, Ordering::Relaxed);
                        return;
                    };
                    let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                    let _ = builder.serve_connection(TokioIo::new(socket), service).await;
                });
            }
        });
        Self { port, links: accepted, tls, refused, task }
    }

    async fn link(&mut self) -> Link {
        timeout(WAIT, self.links.recv()).await.expect("the sidecar opens a stream").unwrap()
    }
}

impl Drop for Operator {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Sidecar {
    folder: tempfile::TempDir,
    settings: Settings,
    shared: Shared,
    drain: drain::Handle,
    stop: CancellationToken,
    task: Option<JoinHandle<()>>,
}

impl Sidecar {
    fn new(port: u16, ca_pem: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let token_file = folder.path().join("token");
        fs::write(&token_file, "first\n").unwrap();
        let cold_start = ColdStart {
            plan_dir: Some(folder.path().join("plan")),
            state: Some(StateDir::open(folder.path().join("state")).unwrap()),
            keys: Vec::new(),
            namespace: "shop".to_owned(),
            proxy: ObjectRef::new("shop", "web"),
            identity: Identity::default(),
        };
        let settings = Settings {
            operator: format!("localhost:{port}"),
            token_file,
            ca_pem: ca_pem.to_owned(),
            pod_name: "web-1".to_owned(),
            pod_uid: "uid-1".to_owned(),
            cold_start,
            purges: PodPurges::new("web-1"),
            cache: PodCache::default(),
            throttles: Default::default(),
            limiter: Arc::default(),
        };
        let shared = Shared::new(Config::waiting(FetchrProxySpec::default()));
        Self { folder, settings, shared, drain: drain::Handle::new(), stop: CancellationToken::new(), task: None }
    }

    fn health(&self) -> Health {
        let health = Health::new(self.shared.clone(), self.drain.clone());
        health.listening();
        health
    }

    fn start(mut self) -> Self {
        let running = run(self.settings.clone(), self.shared.clone(), self.health(), Metrics::default(), self.stop.clone());
        self.task = Some(tokio::spawn(running));
        self
    }

    async fn has(&self, digest: &str) {
        let mut changes = self.shared.subscribe();
        let arrived = async {
            while self.shared.load().digest() != digest {
                changes.changed().await.unwrap();
            }
        };
        timeout(6 * WAIT, arrived).await.expect("the plan comes into force");
    }

    async fn end(self) {
        self.stop.cancel();
        timeout(WAIT, self.task.unwrap()).await.unwrap().unwrap();
    }
}

/// A plan whose policy holds for a Service only.
fn plan(value: &str, seen: u64) -> v1::Plan {
    let set = vec![headers::Field { name: "x-a".to_owned(), value: value.to_owned() }];
    let request = Some(headers::Edits { set, ..headers::Edits::default() });
    let rule =
        PolicyRule { name: "r".to_owned(), headers: Some(Headers { request, ..Headers::default() }), ..PolicyRule::default() };
    let policy = AttachedPolicy {
        policy: ObjectRef::new("shop", "p"),
        attachment: Attachment::Service { name: "front".to_owned() },
        direction: Direction::Inbound,
        rules: vec![rule].into(),
    };
    let plan = Plan { proxy: ObjectRef::new("shop", "web"), policies: vec![policy], ..Plan::default() };
    message(plan.to_bytes(), seen)
}

fn message(document: Vec<u8>, seen: u64) -> v1::Plan {
    let digest = digest_bytes(&document);
    v1::Plan { digest, document: Bytes::from(document), position: [("policies".to_owned(), seen.to_string())].into() }
}

fn front() -> Down {
    Down::Identity(v1::Identity { services: vec!["front".to_owned()], live_pods: 2, ..v1::Identity::default() })
}

#[tokio::test]
async fn sidecar_says_hello_takes_the_plan_and_keeps_it() {
    let authority = Authority::new();
    let mut operator = Operator::start(&authority).await;
    let sidecar = Sidecar::new(operator.port, &authority.pem).start();
    let mut link = operator.link().await;
    assert_eq!(link.token, "Bearer first");
    let hello = link.hello().await;
    let who = (hello.pod_namespace.as_str(), hello.pod_name.as_str(), hello.pod_uid.as_str(), hello.proxy_name.as_str());
    assert_eq!(who, ("shop", "web-1", "uid-1", "web"));
    assert!(hello.plan_digest.is_empty() && hello.features.contains(&"rateLimits".to_owned()));
    let plan = plan("1", 5);
    link.send(front()).await;
    link.send(Down::Plan(plan.clone())).await;
    assert_eq!(link.ack().await, plan.digest);
    let status = link.until(|up| if let Up::Status(status) = up { Some(status) } else { None }).await;
    assert!(status.ready && status.plan_digest == plan.digest && status.plan_source == "Stream", "{status:?}");
    assert_eq!(sidecar.shared.load().inbound.rules(), 1, "the pod is behind the Service");
    let kept = sidecar.settings.state().unwrap().plan().unwrap();
    assert_eq!((kept.digest, kept.identity.services), (plan.digest, vec!["front".to_owned()]));
    sidecar.end().await;
}

/// What a stream tells of Service `shop/carts` with one endpoint.
fn carts(version: u64, whole: bool, last: u8) -> Down {
    let endpoints = vec![v1::Endpoints { port: 8080, v4: vec![10, 0, 0, last].into(), v6: Bytes::new() }];
    let service = v1::Service {
        name: Some(v1::ServiceName { namespace: "shop".to_owned(), name: "carts".to_owned() }),
        cluster_ips: vec![vec![10, 96, 0, 7].into()],
        ports: vec![v1::ServicePort { port: 80, spoken: 0, endpoints }],
    };
    Down::Services(v1::Services { version: version.to_string(), whole, changed: vec![service], ..v1::Services::default() })
}

#[tokio::test]
async fn services_are_taken_without_a_plan_acknowledged_and_kept_when_the_stream_is_cut() {
    let authority = Authority::new();
    let mut operator = Operator::start(&authority).await;
    let sidecar = Sidecar::new(operator.port, &authority.pem).start();
    let mut link = operator.link().await;
    assert!(link.hello().await.features.contains(&wire::service::FEATURE.to_owned()));
    let acked =
        async |link: &mut Link| link.until(|up| if let Up::ServicesAck(ack) = up { Some(ack.version) } else { None }).await;
    let endpoint = || {
        let services = sidecar.shared.services();
        let port = services.named("carts", 80)?;
        port.endpoints(None).map(|endpoints| endpoints.addresses[0].to_string())
    };
    assert_eq!(endpoint(), None);
    for (version, whole) in [(5, true), (7, false)] {
        link.send(carts(version, whole, version as u8)).await;
        assert_eq!(acked(&mut link).await, version.to_string());
        assert_eq!(endpoint(), Some(format!("10.0.0.{version}:8080")));
    }
    assert_eq!(sidecar.shared.load().digest(), "", "no plan is needed for it, and none comes of it");

    drop(link);
    let mut link = operator.link().await;
    assert_eq!(endpoint().as_deref(), Some("10.0.0.7:8080"), "it stays");
    link.send(carts(6, true, 6)).await;
    link.send(carts(8, false, 8)).await;
    assert_eq!(acked(&mut link).await, "8", "what is older is not taken");
    assert_eq!(endpoint().as_deref(), Some("10.0.0.8:8080"));
    sidecar.end().await;
}

#[tokio::test]
async fn stream_whose_services_are_refused_ends_and_the_next_one_begins_with_all_of_them() {
    let authority = Authority::new();
    let mut operator = Operator::start(&authority).await;
    let sidecar = Sidecar::new(operator.port, &authority.pem).start();
    let acked =
        async |link: &mut Link| link.until(|up| if let Up::ServicesAck(ack) = up { Some(ack.version) } else { None }).await;
    let mut link = operator.link().await;
    link.send(carts(5, true, 5)).await;
    assert_eq!(acked(&mut link).await, "5");
    let Down::Services(mut endless) = carts(6, false, 6) else { unreachable!() };
    endless.changed[0].ports[0].endpoints[0].v4 = (0..=65_536_u32).flat_map(u32::to_be_bytes).collect::<Vec<u8>>().into();
    link.send(Down::Services(endless)).await;
    // What builds on it is refused, too, for nobody knows what it builds on.
    link.send(carts(7, false, 7)).await;
    let ends = async {
        while let Ok(Some(up)) = link.up.message().await {
            assert!(!matches!(up.message, Some(Up::ServicesAck(_))), "{up:?}");
        }
    };
    timeout(WAIT, ends).await.expect("the stream ends");
    assert_eq!(sidecar.shared.services().version(), "5", "what was told before stays");
    drop(link);
    let mut link = operator.link().await;
    link.send(carts(8, true, 8)).await;
    assert_eq!(acked(&mut link).await, "8");
    sidecar.end().await;
}

#[tokio::test]
async fn pod_that_leaves_a_service_loses_its_policies() {
    let authority = Authority::new();
    let mut operator = Operator::start(&authority).await;
    let sidecar = Sidecar::new(operator.port, &authority.pem).start();
    let mut link = operator.link().await;
    link.send(front()).await;
    link.send(Down::Plan(plan("1", 5))).await;
    link.ack().await;
    let mut changes = sidecar.shared.subscribe();
    link.send(Down::Identity(v1::Identity::default())).await;
    timeout(WAIT, changes.changed()).await.unwrap().unwrap();
    assert_eq!(sidecar.shared.load().inbound.rules(), 0);
    sidecar.end().await;
}

#[tokio::test]
async fn stream_that_ends_is_opened_again_with_a_fresh_token() {
    let authority = Authority::new();
    let mut operator = Operator::start(&authority).await;
    let sidecar = Sidecar::new(operator.port, &authority.pem).start();
    let mut link = operator.link().await;
    let plan = plan("1", 5);
    link.send(Down::Plan(plan.clone())).await;
    link.ack().await;
    fs::write(sidecar.folder.path().join("token"), "second").unwrap();
    drop(link);
    let mut link = operator.link().await;
    assert_eq!(link.token, "Bearer second");
    let hello = link.hello().await;
    assert_eq!(hello.plan_digest, plan.digest);
    assert_eq!(hello.position.get("policies").map(String::as_str), Some("5"));
    link.send(Down::Plan(plan.clone())).await;
    assert_eq!(link.ack().await, plan.digest, "the plan in force is acknowledged to whoever offers it");
    sidecar.end().await;
}

#[tokio::test]
async fn plan_that_cannot_be_applied_is_refused_and_the_old_one_stays() {
    let authority = Authority::new();
    let mut operator = Operator::start(&authority).await;
    let sidecar = Sidecar::new(operator.port, &authority.pem).start();
    let mut link = operator.link().await;
    let good = plan("1", 5);
    link.send(front()).await;
    link.send(Down::Plan(good.clone())).await;
    link.ack().await;
    let mut tampered = plan("2", 7);
    tampered.digest = good.digest.clone().replace(|_: char| true, "0");
    let foreign = Plan { proxy: ObjectRef::new("shop", "other"), ..Plan::default() };
    let cases = [
        (plan("a\nb", 6), "policy shop/p", "control characters"),
        (tampered, "", "digest"),
        (message(b"{".to_vec(), 8), "", "not a plan"),
        (message(foreign.to_bytes(), 9), "", "shop/other"),
    ];
    for (bad, subject, reason) in cases {
        link.send(Down::Plan(bad.clone())).await;
        let nack = link.until(|up| if let Up::Nack(nack) = up { Some(nack) } else { None }).await;
        assert_eq!((nack.digest.as_str(), nack.subject.as_str()), (bad.digest.as_str(), subject));
        assert!(nack.reason.contains(reason), "{}", nack.reason);
    }
    assert_eq!(sidecar.shared.load().digest(), good.digest);
    assert_eq!(sidecar.settings.state().unwrap().plan().unwrap().digest, good.digest);
    sidecar.end().await;
}

#[tokio::test]
async fn operator_of_another_authority_is_not_believed() {
    let mut operator = Operator::start(&Authority::new()).await;
    let sidecar = Sidecar::new(operator.port, &Authority::new().pem).start();
    let tries = async {
        while operator.refused.load(Ordering::Relaxed) < 2 {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(WAIT, tries).await.expect("it tries again and again");
    assert!(operator.links.try_recv().is_err());
    sidecar.end().await;
}

#[tokio::test]
async fn bundle_told_by_the_operator_is_trusted_from_then_on() {
    let (old, new) = (Authority::new(), Authority::new());
    let mut operator = Operator::start(&old).await;
    let sidecar = Sidecar::new(operator.port, &old.pem).start();
    let mut link = operator.link().await;
    let key = wire::signed::KeyPair::generate().unwrap().public();
    let plan_keys = vec![Bytes::copy_from_slice(key.as_bytes())];
    link.send(Down::Trust(v1::Trust { ca_pem: new.pem.clone(), plan_keys })).await;
    // Messages are received in order: when the plan is acknowledged, the bundle is kept.
    link.send(Down::Plan(plan("1", 1))).await;
    link.ack().await;
    *operator.tls.lock().unwrap() = Arc::clone(&new.server);
    drop(link);
    operator.link().await.hello().await;
    assert_eq!(sidecar.settings.state().unwrap().trust().unwrap().keys(), [key]);
    sidecar.end().await;
}

#[tokio::test]
async fn commands_are_answered_on_the_stream() {
    let authority = Authority::new();
    let mut operator = Operator::start(&authority).await;
    let sidecar = Sidecar::new(operator.port, &authority.pem).start();
    let mut link = operator.link().await;
    link.send(front()).await;
    link.send(Down::Plan(plan("1", 1))).await;
    link.ack().await;
    let command = |id: &str, verb: &str, body: &'static str| {
        Down::Command(v1::Command {
            id: id.to_owned(),
            verb: verb.to_owned(),
            body: Bytes::from_static(body.as_bytes()),
            deadline_ms: 1000,
        })
    };
    link.send(command("1", "explain", r#"{"url": "http://shop/"}"#)).await;
    link.send(command("2", "reboot", "")).await;
    let answer = |up| if let Up::CommandAnswer(answer) = up { Some(answer) } else { None };
    let explained = link.until(answer).await;
    assert!(explained.id == "1" && explained.error.is_empty());
    assert!(String::from_utf8_lossy(&explained.body).contains("\"route\":\"shop/p/r\""));
    let refused = link.until(answer).await;
    assert!(refused.id == "2" && refused.status == 400 && refused.error.contains("unknown verb"));
    link.send(command("3", "purge", r#"{"tag": "news"}"#)).await;
    let purged = link.until(answer).await;
    let purge: serde_json::Value = serde_json::from_slice(&purged.body).unwrap();
    assert_eq!((&purged.id[..], purge["acknowledged"][0]["member"].as_str()), ("3", Some("web-1")), "{purged:?}");
    link.send(command("4", "purge", "{}")).await;
    let refused = link.until(answer).await;
    assert!(refused.id == "4" && refused.error.contains("exactly one"), "{refused:?}");
    for (question, status, words) in [
        ("/cache/stats", 503, "the listeners are not open"),
        ("/cache/object?url=http://shop/&body=maybe", 400, "neither true nor false"),
        ("/cache/explain", 400, "missing field `url`"),
        ("/drain", 404, "there is no such question"),
        ("a b", 400, "not a path"),
    ] {
        link.send(command("5", "cache", question)).await;
        let refused = link.until(answer).await;
        assert!(refused.status == status && refused.error.contains(words), "{question}: {refused:?}");
    }
    link.send(command("6", "limits", "/limits?")).await;
    let listed = link.until(answer).await;
    let list: serde_json::Value = serde_json::from_slice(&listed.body).unwrap();
    assert_eq!((&listed.id[..], &list["counts"], &list["limits"]), ("6", &0.into(), &serde_json::json!([])), "{listed:?}");
    link.send(command("7", "reset", r#"{"limit": "shop/p/r/none"}"#)).await;
    let refused = link.until(answer).await;
    assert!(refused.id == "7" && refused.status == 404 && refused.error.contains("no limit shop/p/r/none"), "{refused:?}");
    sidecar.end().await;
}

#[tokio::test]
async fn drain_is_told_at_once() {
    let authority = Authority::new();
    let mut operator = Operator::start(&authority).await;
    let sidecar = Sidecar::new(operator.port, &authority.pem).start();
    let mut link = operator.link().await;
    link.send(Down::Plan(plan("1", 1))).await;
    link.ack().await;
    let drain = sidecar.drain.clone();
    tokio::spawn(async move { drain.drain_inbound(Duration::from_secs(60), Duration::ZERO).await });
    link.until(|up| matches!(up, Up::Status(status) if status.draining && !status.ready).then_some(())).await;
    sidecar.end().await;
}

#[tokio::test]
async fn kept_plan_serves_until_a_stream_brings_one_of_any_position() {
    let authority = Authority::new();
    let mut operator = Operator::start(&authority).await;
    let sidecar = Sidecar::new(operator.port, &authority.pem);
    let old = plan("old", 1000);
    let position: Position = old.position.clone().into_iter().collect();
    sidecar.settings.state().unwrap().keep_plan(&old.digest, &position, &Identity::default(), &old.document).unwrap();
    let sidecar = sidecar.start();
    sidecar.has(&old.digest).await;
    assert_eq!(sidecar.shared.load().source(), PlanSource::StateDir);
    let mut link = operator.link().await;
    assert_eq!(link.hello().await.plan_digest, old.digest);
    let new = plan("new", 3);
    link.send(Down::Plan(new.clone())).await;
    assert_eq!(link.ack().await, new.digest);
    sidecar.end().await;
}

#[tokio::test]
async fn plan_that_is_mounted_later_is_taken_without_a_stream() {
    let mut sidecar = Sidecar::new(1, "");
    let operator = wire::signed::KeyPair::generate().unwrap();
    sidecar.settings.cold_start.keys = vec![operator.public()];
    let sidecar = sidecar.start();
    let plan = plan("mounted", 1);
    let envelope = wire::signed::sign(&operator, "shop", &ObjectRef::new("shop", "web"), &plan.document, &plan.position).unwrap();
    fs::create_dir(sidecar.folder.path().join("plan")).unwrap();
    fs::write(sidecar.folder.path().join("plan/shop.web"), envelope).unwrap();
    sidecar.has(&plan.digest).await;
    assert_eq!(sidecar.shared.load().source(), PlanSource::ConfigMap);
    sidecar.end().await;
}

/// Two streams without sockets, so that time can be paused.
struct Streams {
    events: mpsc::Sender<Event>,
    up: Vec<mpsc::Receiver<v1::Up>>,
    sidecar: Sidecar,
    metrics: Metrics,
}

impl Streams {
    async fn new() -> Self {
        let (mut sidecar, metrics) = (Sidecar::new(1, ""), Metrics::default());
        let (events, incoming) = mpsc::channel(16);
        let receiver =
            Receiver::new(Arc::new(sidecar.settings.clone()), sidecar.shared.clone(), sidecar.health(), metrics.clone());
        sidecar.task = Some(tokio::spawn(receiver.run(incoming)));
        let mut up = Vec::new();
        for stream in 0..2 {
            let (sender, receiver) = mpsc::channel(64);
            events.send(Event::Opened { stream, up: sender }).await.unwrap();
            up.push(receiver);
        }
        Self { events, up, sidecar, metrics }
    }

    async fn offer(&self, stream: StreamId, plan: &v1::Plan) {
        self.events.send(Event::Down { stream, message: Down::Plan(plan.clone()) }).await.unwrap();
        // A question that is answered shows that the plan was looked at.
        let command = v1::Command { verb: "config".to_owned(), ..v1::Command::default() };
        self.events.send(Event::Down { stream, message: Down::Command(command) }).await.unwrap();
    }

    async fn looked_at(&mut self, stream: usize) {
        loop {
            if let Some(Up::CommandAnswer(_)) = self.up[stream].recv().await.unwrap().message {
                return;
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn stalled_replica_is_ignored_and_a_restored_cluster_is_believed_after_a_minute() {
    let mut streams = Streams::new().await;
    let (before, stalled, after) = (plan("before", 100), plan("stalled", 50), plan("after", 60));
    streams.offer(0, &before).await;
    streams.sidecar.has(&before.digest).await;
    streams.offer(1, &stalled).await;
    streams.looked_at(1).await;
    sleep(Duration::from_secs(600)).await;
    assert_eq!(streams.sidecar.shared.load().digest(), before.digest, "one replica has the plan in force");
    let restored = Instant::now();
    streams.offer(0, &after).await;
    streams.sidecar.has(&after.digest).await;
    assert!(restored.elapsed() >= Duration::from_secs(60), "{:?}", restored.elapsed());
    assert!(restored.elapsed() < Duration::from_secs(61), "{:?}", restored.elapsed());
    assert_eq!((streams.metrics.behind.get(), streams.metrics.restored.get()), (2, 1));
    assert!(streams.metrics.applied.get() > 0);
}

#[test]
fn pauses_double_within_their_bounds() {
    let mut backoff = Backoff::default();
    let pauses: Vec<_> = (0..12).map(|_| backoff.next()).collect();
    assert!(pauses[0] >= BACKOFF.0 / 2 && pauses[0] <= BACKOFF.0);
    assert!(pauses.iter().all(|pause| *pause <= BACKOFF.1));
    assert!(pauses[11] >= BACKOFF.1 / 2);
}
