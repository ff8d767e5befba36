//! A proxy, clients and origins for the tests.

use std::{
    collections::BTreeMap,
    future::Future,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use crds::{
    plan::{AttachedPolicy, Attachment, Identity, ObjectRef, Plan, Position},
    policy::{Direction, PolicyRule},
    proxy::{FetchrProxySpec, Http3, InterceptionMode, Listener, ProxyProtocol},
    scalar,
};
use sidecar::{
    PodCache, PodPurges,
    config::{Config, PlanSource, Planned, Shared},
    drain,
    limit::Limiter,
    metrics::Metrics,
    pressure::Group,
    server::{NameServers, Server, Setup},
    throttle::PodThrottles,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::Notify,
    time::{Instant, sleep, timeout},
};

/// More than anything here takes; a test that waits this long has failed.
pub(crate) const LONG: Duration = Duration::from_secs(10);

/// A proxy with one listener.
pub(crate) struct Proxy {
    pub(crate) address: SocketAddr,
    pub(crate) config: Shared,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) drain: drain::Handle,
    pub(crate) settings: FetchrProxySpec,
    pub(crate) server: Server,
    pub(crate) purges: PodPurges,
    pub(crate) cache: PodCache,
    pub(crate) throttles: PodThrottles,
    pub(crate) limiter: Arc<Limiter>,
}

impl Proxy {
    /// In front of an origin that speaks HTTP/1.
    pub(crate) fn before(origin: SocketAddr) -> Self {
        Self::with(&format!("http://{origin}"), |_| {})
    }

    /// In front of an upstream, with other settings.
    pub(crate) fn with(upstream: &str, change: impl FnOnce(&mut FetchrProxySpec)) -> Self {
        Self::within(None, upstream, change)
    }

    /// The same in a control group.
    pub(crate) fn within(memory: Option<Group>, upstream: &str, change: impl FnOnce(&mut FetchrProxySpec)) -> Self {
        Self::start(Some(upstream.to_owned()), Direction::Inbound, 1, NameServers::System, memory, change)
    }

    /// A forward proxy.
    pub(crate) fn forward() -> Self {
        Self::forward_by(NameServers::System)
    }

    /// A forward proxy that asks other name servers.
    pub(crate) fn forward_by(name_servers: NameServers) -> Self {
        Self::start(None, Direction::Outbound, 1, name_servers, None, |_| {})
    }

    /// A forward proxy with other settings.
    pub(crate) fn forward_with(change: impl FnOnce(&mut FetchrProxySpec)) -> Self {
        Self::start(None, Direction::Outbound, 1, NameServers::System, None, change)
    }

    /// In front of a name, for requests from the application, with other settings.
    pub(crate) fn to_name(upstream: &str, name_servers: NameServers, change: impl FnOnce(&mut FetchrProxySpec)) -> Self {
        Self::start(Some(upstream.to_owned()), Direction::Inbound, 1, name_servers, None, change)
    }

    /// With several workers.
    pub(crate) fn with_workers(workers: usize, upstream: &str, change: impl FnOnce(&mut FetchrProxySpec)) -> Self {
        Self::start(Some(upstream.to_owned()), Direction::Inbound, workers, NameServers::System, None, change)
    }

    fn start(
        upstream: Option<String>,
        direction: Direction,
        workers: usize,
        name_servers: NameServers,
        memory: Option<Group>,
        change: impl FnOnce(&mut FetchrProxySpec),
    ) -> Self {
        let mut settings = FetchrProxySpec::default();
        settings.interception.mode = InterceptionMode::Explicit;
        settings.interception.listeners = vec![Listener {
            name: "test".to_owned(),
            address: "127.0.0.1".to_owned(),
            port: 0,
            direction,
            tls: None,
            proxy_protocol: ProxyProtocol::Disabled,
            http3: Http3::Disabled,
            upstream,
            upstream_tls: None,
        }];
        change(&mut settings);
        let config = Shared::new(config(&settings, Vec::new(), 1));
        let (metrics, drain) = (Metrics::new(), drain::Handle::new());
        let (purges, cache) = (PodPurges::new("pod"), PodCache::default());
        let throttles = PodThrottles::default();
        let setup = Setup {
            workers,
            interception: None,
            own: Vec::new(),
            max_connections: 64,
            unique: "test".to_owned(),
            secrets: None,
            disk: Default::default(),
            speakers: Default::default(),
            name_servers,
            sockets: Default::default(),
            memory,
            purges: purges.clone(),
            cache: cache.clone(),
            throttles: throttles.clone(),
            strict: true,
        };
        let limiter = Arc::new(Limiter::default());
        metrics.register(|registry| limiter.register(registry));
        let server = Server::start(config.clone(), Arc::clone(&metrics), Arc::clone(&limiter), drain.clone(), &setup).unwrap();
        let address = server.listeners()[0].1;
        Self { address, config, metrics, drain, settings, server, purges, cache, throttles, limiter }
    }

    /// Puts rules in force for the requests of the listener.
    pub(crate) fn apply(&self, rules: &str) {
        self.apply_as_one_of(1, rules);
    }

    /// The same, for a pod among so many that are alive.
    pub(crate) fn apply_as_one_of(&self, live_pods: u32, rules: &str) {
        let rules: Vec<PolicyRule> = serde_json::from_str(rules).unwrap();
        self.config.replace(config(&self.settings, rules, live_pods));
    }

    pub(crate) async fn client(&self) -> Client {
        Client(TcpStream::connect(self.address).await.unwrap())
    }

    /// Sends a request on a connection of its own.
    pub(crate) async fn ask(&self, request: &str) -> Response {
        let mut client = self.client().await;
        client.send(request).await;
        client.response().await
    }

    /// The value of a line of the metrics page that begins so; 0 if there is none.
    pub(crate) fn metric(&self, line: &str) -> f64 {
        let page = self.metrics.encode();
        page.lines().find(|found| found.starts_with(line)).map_or(0.0, |found| found.rsplit(' ').next().unwrap().parse().unwrap())
    }
}

/// A client beside those that misbehave, on the same worker, for there is one. It is served whatever they do.
pub(crate) struct Bystander {
    client: Client,
}

impl Bystander {
    /// The request that it sends.
    pub(crate) const PATH: &str = "/bystander";

    /// A client that has been served once.
    pub(crate) async fn of(proxy: &Proxy) -> Self {
        let mut bystander = Self { client: proxy.client().await };
        bystander.is_served("nothing").await;
        bystander
    }

    /// Asks for something, and wants it.
    pub(crate) async fn is_served(&mut self, meanwhile: &str) {
        self.client.send(format!("GET {} HTTP/1.1\r\nhost: a\r\n\r\n", Self::PATH)).await;
        let response = self.client.response().await;
        assert!(matches!(response.status, 200 | 204), "beside {meanwhile}: {}", response.head);
    }
}

/// The failures that were counted up to some time, by their reasons.
pub(crate) struct Counted(BTreeMap<String, f64>);

impl Counted {
    /// Those up to now.
    pub(crate) fn by(proxy: &Proxy) -> Self {
        let page = proxy.metrics.encode();
        let lines =
            page.lines().filter(|line| line.starts_with("fetchr_errors_total{") || line.starts_with("fetchr_dropped_total{"));
        let count = |line: &str| {
            let (_, reason) = line.split_once("reason=\"")?;
            let (reason, count) = reason.split_once("\"} ")?;
            Some((reason.to_owned(), count.parse().unwrap()))
        };
        Self(lines.filter_map(count).collect())
    }

    /// Waits until this reason was counted once more; no other may be.
    pub(crate) async fn once_more(&self, proxy: &Proxy, reason: &str, what: &str) {
        let more = || -> Vec<(String, f64)> {
            let now = Self::by(proxy).0;
            let more = now.into_iter().map(|(reason, count)| (self.0.get(&reason).copied().unwrap_or(0.0), reason, count));
            more.filter(|(before, _, now)| now > before).map(|(before, reason, now)| (reason, now - before)).collect()
        };
        eventually(&format!("a count after {what}"), || !more().is_empty()).await;
        assert_eq!(more(), [(reason.to_owned(), 1.0)], "{what}");
    }
}

fn config(settings: &FetchrProxySpec, rules: Vec<PolicyRule>, live_pods: u32) -> Config {
    let policy = AttachedPolicy {
        policy: ObjectRef::new("shop", "test"),
        attachment: Attachment::Proxy,
        direction: settings.interception.listeners[0].direction,
        rules: rules.into(),
    };
    let plan = Plan { proxy: ObjectRef::new("shop", "web"), settings: settings.clone(), policies: vec![policy] };
    let planned =
        Planned { plan: Arc::new(plan), digest: "test".to_owned(), position: Position::default(), source: PlanSource::File };
    Config::build(planned, Identity { live_pods, ..Identity::default() }).unwrap()
}

/// Milliseconds as the resources spell them.
pub(crate) fn ms(millis: u64) -> scalar::Duration {
    scalar::Duration::from_millis(millis)
}

/// A client that writes what it is told and reads answers.
pub(crate) struct Client(pub(crate) TcpStream);

/// An answer, taken apart.
#[derive(Debug)]
pub(crate) struct Response {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
    pub(crate) trailers: String,
}

impl Response {
    /// The value of a field; panics when there is none.
    pub(crate) fn field(&self, name: &str) -> &str {
        field(&self.head, name).unwrap_or_else(|| panic!("no field {name} in {}", self.head))
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        field(&self.head, name).is_some()
    }

    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }
}

/// The value of a field of a head.
pub(crate) fn field<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines().skip(1).find_map(|line| {
        let (found, value) = line.split_once(':')?;
        found.eq_ignore_ascii_case(name).then(|| value.trim())
    })
}

impl Client {
    pub(crate) async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.0.write_all(bytes.as_ref()).await.unwrap();
    }

    /// Reads the next answer to a request that was not HEAD.
    pub(crate) async fn response(&mut self) -> Response {
        self.response_within(LONG).await
    }

    /// The same, which may take so long.
    pub(crate) async fn response_within(&mut self, time: Duration) -> Response {
        timeout(time, read_response(&mut self.0, true)).await.expect("an answer in time")
    }

    /// Reads the next answer to HEAD.
    pub(crate) async fn head_response(&mut self) -> Response {
        timeout(LONG, read_response(&mut self.0, false)).await.expect("an answer in time")
    }

    /// Reads exactly so many bytes.
    pub(crate) async fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        timeout(LONG, self.0.read_exact(&mut bytes)).await.expect("bytes in time").unwrap();
        bytes
    }

    /// Reads until the other side closes.
    pub(crate) async fn rest(&mut self) -> Vec<u8> {
        let mut rest = Vec::new();
        // A reset is an end too.
        let _ = timeout(LONG, self.0.read_to_end(&mut rest)).await.expect("an end in time");
        rest
    }
}

pub(crate) async fn read_response(stream: &mut (impl AsyncRead + Unpin), has_body: bool) -> Response {
    let head = read_head(stream).await.expect("an answer");
    let status: u16 = head.split(' ').nth(1).unwrap().parse().unwrap();
    let (mut body, mut trailers) = (Vec::new(), String::new());
    let empty = !has_body || matches!(status, 101 | 204 | 304);
    if !empty && field(&head, "transfer-encoding").is_some() {
        (body, trailers) = read_chunks(stream).await;
    } else if !empty && let Some(len) = field(&head, "content-length") {
        body = vec![0; len.parse().unwrap()];
        stream.read_exact(&mut body).await.unwrap();
    } else if !empty {
        stream.read_to_end(&mut body).await.unwrap();
    }
    Response { status, head, body, trailers }
}

/// A head with its empty line; none when the peer closed before it began.
pub(crate) async fn read_head(stream: &mut (impl AsyncRead + Unpin)) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) if head.is_empty() => return None,
            Err(error) => panic!("{error} after {:?}", String::from_utf8_lossy(&head)),
        }
    }
    // Values may be of any bytes.
    Some(String::from_utf8_lossy(&head).into_owned())
}

/// A chunked body and its trailers.
pub(crate) async fn read_chunks(stream: &mut (impl AsyncRead + Unpin)) -> (Vec<u8>, String) {
    let (mut body, mut trailers) = (Vec::new(), String::new());
    loop {
        let line = read_line(stream).await;
        let len = usize::from_str_radix(line.split(';').next().unwrap().trim(), 16).unwrap();
        if len == 0 {
            break;
        }
        let mut chunk = vec![0; len + 2];
        stream.read_exact(&mut chunk).await.unwrap();
        body.extend_from_slice(&chunk[..len]);
    }
    loop {
        let line = read_line(stream).await;
        if line.is_empty() {
            return (body, trailers);
        }
        trailers.push_str(&line);
        trailers.push('\n');
    }
}

async fn read_line(stream: &mut (impl AsyncRead + Unpin)) -> String {
    let mut line = Vec::new();
    while !line.ends_with(b"\r\n") {
        line.push(stream.read_u8().await.unwrap());
    }
    line.truncate(line.len() - 2);
    String::from_utf8(line).unwrap()
}

/// An origin that does with each connection what the test says.
pub(crate) struct Origin {
    pub(crate) address: SocketAddr,
    connections: Arc<AtomicUsize>,
}

impl Origin {
    /// Calls `serve` with each connection and its number, from 0.
    pub(crate) async fn scripted<F, S>(serve: S) -> Self
    where
        S: Fn(TcpStream, usize) -> F + Send + 'static,
        F: Future<Output = ()> + Send + 'static,
    {
        Self::scripted_at("127.0.0.1:0".parse().unwrap(), serve).await
    }

    /// The same at an address of its own.
    pub(crate) async fn scripted_at<F, S>(address: SocketAddr, serve: S) -> Self
    where
        S: Fn(TcpStream, usize) -> F + Send + 'static,
        F: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let connections = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&connections);
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                stream.set_nodelay(true).unwrap();
                tokio::spawn(serve(stream, count.fetch_add(1, Ordering::SeqCst)));
            }
        });
        Self { address, connections }
    }

    /// Answers each request with what it got: the head as the body.
    pub(crate) async fn echo_head() -> Self {
        Self::scripted(|mut stream, _| async move {
            while let Some(head) = read_head(&mut stream).await {
                if let Some(len) = field(&head, "content-length") {
                    let mut body = vec![0; len.parse().unwrap()];
                    stream.read_exact(&mut body).await.unwrap();
                } else if field(&head, "transfer-encoding").is_some() {
                    read_chunks(&mut stream).await;
                }
                let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{head}", head.len());
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        })
        .await
    }

    /// Answers each request on each connection with the same bytes; bodies of requests are not read.
    pub(crate) async fn answering(answer: &'static str) -> Self {
        Self::scripted(move |mut stream, _| async move {
            while read_head(&mut stream).await.is_some() {
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        })
        .await
    }

    /// Reads one request on each connection, and never answers.
    pub(crate) async fn silent() -> Self {
        Self::scripted(|mut stream, _| async move {
            read_head(&mut stream).await.unwrap();
            let _ = stream.read_u8().await;
        })
        .await
    }

    /// Serves bystanders; answers one request of anybody else on a connection, and closes it.
    pub(crate) async fn misbehaving(answer: &'static str) -> Self {
        Self::scripted(move |mut stream, _| async move {
            while let Some(head) = read_head(&mut stream).await {
                if !head.contains(Bystander::PATH) {
                    return stream.write_all(answer.as_bytes()).await.unwrap();
                }
                stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await.unwrap();
            }
        })
        .await
    }

    /// Sends an answer of `len` bytes while it reads a body of as many, and tells when it has read all of that.
    pub(crate) async fn both_ways(len: usize) -> (Self, Arc<Notify>) {
        let uploaded = Arc::new(Notify::new());
        let told = Arc::clone(&uploaded);
        let origin = Self::scripted(move |mut stream, _| {
            let told = Arc::clone(&told);
            async move {
                read_head(&mut stream).await.unwrap();
                let (mut read, mut write) = stream.into_split();
                let download = tokio::spawn(async move {
                    write.write_all(format!("HTTP/1.1 200 OK\r\ncontent-length: {len}\r\n\r\n").as_bytes()).await.unwrap();
                    for sent in (0..len).step_by(64 << 10) {
                        write.write_all(&vec![b'd'; (len - sent).min(64 << 10)]).await.unwrap();
                    }
                    write
                });
                let mut upload = vec![0; len];
                read.read_exact(&mut upload).await.unwrap();
                told.notify_one();
                download.await.unwrap();
            }
        })
        .await;
        (origin, uploaded)
    }

    /// Answers one request on each connection, and closes it.
    pub(crate) async fn answering_once(answer: &'static str) -> Self {
        Self::scripted(move |mut stream, _| async move {
            read_head(&mut stream).await.unwrap();
            stream.write_all(answer.as_bytes()).await.unwrap();
        })
        .await
    }

    /// Connections that were opened so far.
    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

/// An address that nobody listens on.
pub(crate) async fn nobody() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}

/// Waits until something holds.
pub(crate) async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < LONG, "{what} did not come to hold");
        sleep(Duration::from_millis(5)).await;
    }
}

/// Waits until something that has to be asked for holds.
pub(crate) async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let start = Instant::now();
    while !holds().await {
        assert!(start.elapsed() < LONG, "{what} did not come");
        sleep(Duration::from_millis(5)).await;
    }
}
