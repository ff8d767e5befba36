//! Purges of the cache, asked for at the admin port, before real origins.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use crds::proxy::FetchrProxySpec;
use sidecar::admin::{self, Admin};
use tokio::{
    io::AsyncWriteExt,
    net::{TcpListener, TcpStream},
    sync::Notify,
};
use tokio_util::sync::CancellationToken;

use crate::support::{Client, Origin, Proxy, Response, read_head, until};

const ALL: &str = r#"[{"name": "all", "cache": {"tags": {"header": "xkey"}, "key": {"query": {"ignore": ["utm_*"]}}}}]"#;

/// A proxy with its admin port, before an origin that numbers its answers.
pub(crate) struct Site {
    pub(crate) proxy: Proxy,
    pub(crate) requests: Arc<AtomicUsize>,
    pub(crate) admin: std::net::SocketAddr,
    stop: CancellationToken,
}

impl Drop for Site {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Site {
    /// With these fields in the answers; each waits for `gate` if there is one.
    pub(crate) async fn start(rules: &str, fields: &'static str, gate: Option<Arc<Notify>>) -> Self {
        Self::with(rules, fields, gate, |_| {}).await
    }

    /// The same with other settings.
    pub(crate) async fn with(
        rules: &str,
        fields: &'static str,
        gate: Option<Arc<Notify>>,
        change: impl FnOnce(&mut FetchrProxySpec),
    ) -> Self {
        let requests = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&requests);
        let origin = Origin::scripted(move |mut stream, _| {
            let (counted, gate) = (Arc::clone(&counted), gate.clone());
            async move {
                while let Some(head) = read_head(&mut stream).await {
                    let number = counted.fetch_add(1, Ordering::SeqCst) + 1;
                    if let Some(gate) = &gate {
                        gate.notified().await;
                    }
                    let answer = if head.contains("if-none-match") {
                        format!("HTTP/1.1 304 Not Modified\r\n{fields}\r\n")
                    } else {
                        let body = format!("answer {number}");
                        format!("HTTP/1.1 200 OK\r\n{fields}content-length: {}\r\n\r\n{body}", body.len())
                    };
                    stream.write_all(answer.as_bytes()).await.unwrap();
                }
            }
        })
        .await;
        let proxy = Proxy::with(&format!("http://{}", origin.address), change);
        proxy.apply(rules);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (admin, stop) = (listener.local_addr().unwrap(), CancellationToken::new());
        let orders = Admin {
            shared: proxy.config.clone(),
            drain: proxy.drain.clone(),
            set_level: Arc::new(|_| Ok(())),
            purges: proxy.purges.clone(),
            cache: proxy.cache.clone(),
            throttles: proxy.throttles.clone(),
            limiter: Arc::clone(&proxy.limiter),
        };
        tokio::spawn(admin::serve(listener, admin::admin(orders, "secret"), stop.clone()));
        Self { proxy, requests, admin, stop }
    }

    pub(crate) async fn get(&self, path: &str) -> String {
        self.proxy.ask(&format!("GET {path} HTTP/1.1\r\nhost: a.example\r\n\r\n")).await.text().to_owned()
    }

    pub(crate) async fn order(&self, token: &str, body: &str) -> Response {
        let mut client = self.admin_client().await;
        client.send(Self::purge_request(token, body)).await;
        client.response().await
    }

    pub(crate) async fn admin_client(&self) -> Client {
        Client(TcpStream::connect(self.admin).await.unwrap())
    }

    pub(crate) fn purge_request(token: &str, body: &str) -> String {
        let length = body.len();
        let head = format!(
            "POST /cache/purge HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {token}\r\ncontent-length: {length}\r\n\r\n"
        );
        head + body
    }

    /// What the admin port shows.
    pub(crate) async fn show(&self, target: &str) -> Response {
        self.order_at(target, "secret").await
    }

    pub(crate) async fn order_at(&self, target: &str, token: &str) -> Response {
        let mut client = Client(TcpStream::connect(self.admin).await.unwrap());
        client.send(&format!("GET {target} HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {token}\r\n\r\n")).await;
        client.response().await
    }

    pub(crate) async fn purge(&self, body: &str) {
        let answer = self.order("secret", body).await;
        assert_eq!(answer.status, 200, "{body}: {}", answer.text());
        let answer: serde_json::Value = serde_json::from_str(answer.text()).unwrap();
        assert_eq!((answer["complete"].as_bool(), answer["acknowledged"].as_array().map(Vec::len)), (Some(true), Some(1)));
    }
}

#[tokio::test]
async fn each_kind_of_purge_takes_what_it_names_and_nothing_else() {
    let site = Site::start(ALL, "cache-control: max-age=600\r\nxkey: news sport\r\n", None).await;
    for (purge, goes) in [
        (r#"{"url": "http://a.example/a/1?b"}"#, true),
        (r#"{"url": "http://a.example/a/1?b&utm_source=x"}"#, true),
        (r#"{"url": "http://a.example/a/1?b&c"}"#, false),
        (r#"{"url": "http://b.example/a/1?b"}"#, false),
        (r#"{"prefix": "https://a.example/a/"}"#, true),
        (r#"{"prefix": "http://a.example/b/"}"#, false),
        (r#"{"tag": "sport"}"#, true),
        (r#"{"tag": "spor"}"#, false),
        (r#"{"policy": "shop/test"}"#, true),
        (r#"{"policy": "shop/other"}"#, false),
        (r#"{"all": true}"#, true),
    ] {
        let before = site.get("/a/1?b").await;
        assert_eq!(site.get("/a/1?b&utm_source=y").await, before, "{purge}: it is stored");
        site.purge(purge).await;
        assert_eq!(site.get("/a/1?b").await != before, goes, "{purge}");
    }
}

#[tokio::test]
async fn url_is_purged_in_the_form_that_keys_have_of_it() {
    for (key, stored, purged, goes) in [
        (r#"{"query": {"order": "Sort"}}"#, "/a?b=1&c=2", "/a?c=2&b=1", true),
        (r#"{"query": {"order": "Sort"}}"#, "/a?b=1&c=2", "/a?c=2&b=2", false),
        (r#"{"query": {"ignore": ["utm_*"], "order": "Sort"}}"#, "/a?c&b", "/a?utm_x=1&b&utm_y&c", true),
        (r#"{"query": {"allow": ["page"]}}"#, "/a?page=1&x", "/a?y&page=1", true),
        (r#"{"query": {"allow": ["page"]}}"#, "/a?page=1", "/a?page=2", false),
        (r#"{"query": {"allow": ["page"]}}"#, "/a?x=1", "/a?y=2", true),
        (r#"{"query": {"ignore": ["x"]}}"#, "/a", "/a?x", true),
        (r#"{"host": "Ignore", "query": {"ignore": ["x"]}}"#, "/a?b", "/a?b&x", true),
        ("{}", "/a?b&c", "/a?c&b", false),
        ("{}", "/a/b", "/a/../a//%62", true),
        ("{}", "/a/../a/b", "/a/b", true),
        ("{}", "/a", "/a", true),
        ("{}", "/a?", "/a", false),
    ] {
        let rules = format!(r#"[{{"name": "one", "cache": {{"key": {key}}}}}]"#);
        let site = Site::start(&rules, "cache-control: max-age=600\r\n", None).await;
        let before = site.get(stored).await;
        assert_eq!(site.get(stored).await, before, "{key}: it is stored");
        site.purge(&format!(r#"{{"url": "http://a.example{purged}"}}"#)).await;
        assert_eq!(site.get(stored).await != before, goes, "{key} {stored} {purged}");
    }
}

#[tokio::test]
async fn url_is_purged_of_all_rules_that_keep_it() {
    let rules = r#"[
        {"name": "mobile", "matches": [{"headers": [{"type": "Exact", "name": "x-mobile", "value": "1"}]}], "cache": {"key": {"query": {"ignore": ["x"]}}}},
        {"name": "all", "cache": {"key": {"query": {"order": "Sort"}}}}
    ]"#;
    let site = Site::start(rules, "cache-control: max-age=600\r\n", None).await;
    let get = async |fields: &str| {
        let request = format!("GET /a?x&c&b HTTP/1.1\r\nhost: a.example\r\n{fields}\r\n");
        site.proxy.ask(&request).await.text().to_owned()
    };
    let before = [get("").await, get("x-mobile: 1\r\n").await];
    assert_eq!([get("").await, get("x-mobile: 1\r\n").await], before);
    assert_ne!(before[0], before[1]);
    site.purge(r#"{"url": "http://a.example/a?x&c&b"}"#).await;
    let after = [get("").await, get("x-mobile: 1\r\n").await];
    assert!(after[0] != before[0] && after[1] != before[1], "{before:?} {after:?}");
}

#[tokio::test]
async fn soft_purge_has_the_origin_asked_and_hard_one_has_it_answer_anew() {
    let site = Site::start(ALL, "cache-control: max-age=600\r\netag: \"1\"\r\nxkey: news\r\n", None).await;
    assert_eq!(site.get("/").await, "answer 1");
    site.purge(r#"{"tag": "news", "soft": true}"#).await;
    assert_eq!(site.get("/").await, "answer 1", "the origin said that it is right");
    assert_eq!(site.requests.load(Ordering::SeqCst), 2);
    assert_eq!(site.get("/").await, "answer 1", "and that holds");
    assert_eq!(site.requests.load(Ordering::SeqCst), 2);
    site.purge(r#"{"tag": "news"}"#).await;
    assert_eq!(site.get("/").await, "answer 3");
    for strength in ["hard", "soft"] {
        assert_eq!(site.proxy.metric(&format!(r#"fetchr_cache_purges_total{{strength="{strength}"}}"#)), 1.0);
    }
}

#[tokio::test]
async fn soft_purge_leaves_a_stale_answer_where_the_policy_permits_it() {
    let rules = r#"[{"name": "all", "cache": {"stale": {"whileRevalidate": "60s"}}}]"#;
    let site = Site::start(rules, "cache-control: max-age=600\r\n", None).await;
    assert_eq!(site.get("/").await, "answer 1");
    site.purge(r#"{"all": true, "soft": true}"#).await;
    assert_eq!(site.get("/").await, "answer 1");
    until("a newer answer", async || site.get("/").await == "answer 2").await;
}

#[tokio::test]
async fn who_comes_after_a_purge_gets_nothing_of_a_fetch_that_began_before() {
    let gate = Arc::new(Notify::new());
    let site = Site::start(ALL, "cache-control: max-age=600\r\n", Some(Arc::clone(&gate))).await;
    let first = async { site.get("/").await };
    let later = async {
        while site.requests.load(Ordering::SeqCst) < 1 {
            tokio::task::yield_now().await;
        }
        site.purge(r#"{"url": "http://a.example/"}"#).await;
        let second = async { site.get("/").await };
        let release = async {
            while site.requests.load(Ordering::SeqCst) < 2 {
                tokio::task::yield_now().await;
            }
            gate.notify_waiters();
        };
        tokio::join!(second, release).0
    };
    let (first, second) = tokio::join!(first, later);
    assert_eq!([first.as_str(), second.as_str()], ["answer 1", "answer 2"]);
    assert_eq!(site.get("/").await, "answer 2", "whichever was stored last");
}

#[tokio::test]
async fn method_purge_takes_what_a_get_would_get_if_the_client_may() {
    let rules = |allowed: &str| {
        format!(
            r#"[{{"name": "all", "cache": {{"key": {{"query": {{"ignore": ["utm_*"]}}}}, "purgeMethod": {{"allowedCIDRs": ["{allowed}"]}}}}}}]"#
        )
    };
    let site = Site::start(&rules("127.0.0.0/8"), "cache-control: max-age=600\r\netag: \"1\"\r\n", None).await;
    let purge =
        async |path: &str, field: &str| site.proxy.ask(&format!("PURGE {path} HTTP/1.1\r\nhost: a.example\r\n{field}\r\n")).await;
    assert_eq!((site.get("/a?b").await, site.get("/c").await), ("answer 1".to_owned(), "answer 2".to_owned()));
    let purged = purge("/a?utm_source=x&b", "").await;
    assert_eq!((purged.status, purged.field("content-type")), (200, "application/json"));
    assert!(purged.text().contains(r#""complete":true"#), "{}", purged.text());
    assert_eq!((site.get("/a?b").await, site.get("/c").await), ("answer 3".to_owned(), "answer 2".to_owned()));
    assert_eq!(purge("/a?b", "fetchr-soft-purge: 1\r\n").await.status, 200);
    assert_eq!((site.get("/a?b").await, site.requests.load(Ordering::SeqCst)), ("answer 3".to_owned(), 4), "the origin said so");
    site.proxy.apply(&rules("192.0.2.0/24"));
    let refused = purge("/c", "").await;
    assert!(refused.status == 403 && refused.text().contains("allowedCIDRs"), "{}", refused.text());
    assert_eq!((site.get("/c").await, site.requests.load(Ordering::SeqCst)), ("answer 2".to_owned(), 4));
}

#[tokio::test]
async fn purge_needs_the_token_and_says_what_is_wrong() {
    let site = Site::start(ALL, "cache-control: max-age=600\r\n", None).await;
    assert_eq!(site.get("/").await, "answer 1");
    assert_eq!(site.order("wrong", r#"{"all": true}"#).await.status, 401);
    for (body, expected) in
        [("{}", "exactly one of"), (r#"{"tags": "a"}"#, "unknown field"), ("", "EOF"), (r#"{"url": "/a"}"#, "is not like http")]
    {
        let answer = site.order("secret", body).await;
        assert!(answer.status == 400 && answer.text().contains(expected), "{body}: {}", answer.text());
    }
    assert_eq!(site.get("/").await, "answer 1");
}
