//! The section `cache` under bad input: origins that break off, clients that leave, and requests made to spoil what others get.

mod bodies;
mod changes;
mod clients;
mod poison;
mod private;
mod validation;
mod variants;

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use crds::proxy::FetchrProxySpec;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
    time::timeout,
};

use crate::{
    cuts::reset,
    support::{Client, LONG, Origin, Proxy, Response, eventually, field, read_head},
};

/// A rule with a cache of defaults.
const ALL: &str = r#"[{"name": "all", "cache": {}}]"#;

fn rule(cache: &str) -> String {
    format!(r#"[{{"name": "all", "cache": {cache}}}]"#)
}

fn ok(fields: &str, body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\n{fields}content-length: {}\r\n\r\n{body}", body.len())
}

fn kept(body: &str) -> String {
    ok("cache-control: max-age=600\r\n", body)
}

fn get(path: &str, fields: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: a\r\n{fields}\r\n")
}

async fn ask(proxy: &Proxy, path: &str, fields: &str) -> Response {
    proxy.ask(&get(path, fields)).await
}

/// Requests that are being served.
async fn under_way(proxy: &Proxy, requests: f64) {
    eventually("requests under way", || proxy.metric("http_server_active_requests{direction=\"inbound\"}") == requests).await;
}

/// Sends a request on a connection of its own.
async fn begin(proxy: &Proxy, request: &str) -> Client {
    let mut client = proxy.client().await;
    client.send(request).await;
    client
}

/// An origin whose answers the test writes, one request after the other.
struct Hands {
    proxy: Proxy,
    requests: UnboundedReceiver<Asked>,
}

/// Two of the same origin, of which one has a cache before it.
struct Pair {
    cached: Site,
    bare: Site,
}

impl Pair {
    async fn of(rules: &str, answer: impl Fn(&str, usize) -> String + Clone + Send + Sync + 'static) -> Self {
        Self::with(rules, |_| {}, answer).await
    }

    async fn with(
        rules: &str,
        change: impl Fn(&mut FetchrProxySpec),
        answer: impl Fn(&str, usize) -> String + Clone + Send + Sync + 'static,
    ) -> Self {
        let bare = Site::with("[]", &change, answer.clone()).await;
        Self { cached: Site::with(rules, change, answer).await, bare }
    }

    /// A request gets the same from both.
    async fn agrees(&self, request: &str, after: &str) {
        let [cached, bare] = [self.cached.proxy.ask(request).await, self.bare.proxy.ask(request).await];
        let both = [(cached.status, cached.text()), (bare.status, bare.text())];
        assert_eq!(both[0], both[1], "{request:?} after {after:?}");
    }

    /// Each of these requests gets the same from both, in whatever order they come.
    async fn agree(&self, requests: &[String]) {
        for step in [1, 7, 11] {
            let mut before = "";
            for at in 0..requests.len() {
                let request = &requests[at * step % requests.len()];
                self.agrees(request, before).await;
                before = request;
            }
        }
        assert!(self.cached.requests() < self.bare.requests(), "some were hits");
    }
}

/// A request that waits for its answer.
struct Asked {
    head: String,
    stream: TcpStream,
    next: UnboundedSender<Asked>,
}

impl Hands {
    async fn before(rules: &str) -> Self {
        let (next, requests) = unbounded_channel();
        let origin = Origin::scripted(move |stream, _| Asked::read(stream, next.clone())).await;
        let proxy = Proxy::before(origin.address);
        proxy.apply(rules);
        Self { proxy, requests }
    }

    /// The next request that reaches the origin.
    async fn asked(&mut self) -> Asked {
        timeout(LONG, self.requests.recv()).await.expect("a request in time").unwrap()
    }

    /// Whether no request waits.
    fn is_idle(&mut self) -> bool {
        self.requests.try_recv().is_err()
    }
}

impl Asked {
    async fn read(mut stream: TcpStream, next: UnboundedSender<Self>) {
        if let Some(head) = read_head(&mut stream).await {
            let _ = next.clone().send(Self { head, stream, next });
        }
    }

    async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).await.unwrap();
    }

    /// Sends the rest, and takes the next request of the connection.
    async fn finish(mut self, bytes: impl AsRef<[u8]>) {
        self.send(bytes).await;
        tokio::spawn(Self::read(self.stream, self.next));
    }

    /// Breaks the connection off.
    fn reset(self) {
        reset(&self.stream);
    }
}

/// An origin that answers each request as a function of its head with the body, and of its number says.
struct Site {
    proxy: Proxy,
    count: Arc<AtomicUsize>,
}

impl Site {
    async fn start(rules: &str, answer: impl Fn(&str, usize) -> String + Clone + Send + Sync + 'static) -> Self {
        Self::with(rules, |_| {}, answer).await
    }

    async fn with(
        rules: &str,
        change: impl FnOnce(&mut FetchrProxySpec),
        answer: impl Fn(&str, usize) -> String + Clone + Send + Sync + 'static,
    ) -> Self {
        let count = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&count);
        let origin = Origin::scripted(move |mut stream, _| {
            let (answer, counted) = (answer.clone(), Arc::clone(&counted));
            async move {
                while let Some(mut head) = read_head(&mut stream).await {
                    if let Some(length) = field(&head, "content-length") {
                        let mut body = vec![0; length.parse().unwrap()];
                        stream.read_exact(&mut body).await.unwrap();
                        head.push_str(&String::from_utf8(body).unwrap());
                    }
                    let number = counted.fetch_add(1, Ordering::SeqCst) + 1;
                    let written = answer(&head, number);
                    if stream.write_all(written.as_bytes()).await.is_err() {
                        return;
                    }
                }
            }
        })
        .await;
        let proxy = Proxy::with(&format!("http://{}", origin.address), change);
        proxy.apply(rules);
        Self { proxy, count }
    }

    fn requests(&self) -> usize {
        self.count.load(Ordering::SeqCst)
    }

    async fn get(&self, path: &str, fields: &str) -> Response {
        ask(&self.proxy, path, fields).await
    }
}
