//! The section `cache` before real origins.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicUsize, Ordering},
};

use tokio::{io::AsyncWriteExt, net::TcpStream, sync::Notify};

use crate::support::{Client, Origin, Proxy, Response, eventually, field, read_head};

const ALL: &str = r#"[{"name": "all", "cache": {}}]"#;

/// An origin that answers each request as a function says, and notes the heads of all.
struct Noting {
    origin: Origin,
    heads: Arc<Mutex<Vec<String>>>,
}

impl Noting {
    async fn answering(answer: impl Fn(&str, usize) -> String + Clone + Send + Sync + 'static) -> Self {
        let heads = Arc::new(Mutex::new(Vec::new()));
        let noted = Arc::clone(&heads);
        let origin = Origin::scripted(move |mut stream, _| {
            let (noted, answer) = (Arc::clone(&noted), answer.clone());
            async move {
                while let Some(head) = read_head(&mut stream).await {
                    let number = {
                        let mut heads = noted.lock().unwrap();
                        heads.push(head.clone());
                        heads.len()
                    };
                    stream.write_all(answer(&head, number).as_bytes()).await.unwrap();
                }
            }
        })
        .await;
        Self { origin, heads }
    }

    fn requests(&self) -> usize {
        self.heads.lock().unwrap().len()
    }

    fn last(&self) -> String {
        self.heads.lock().unwrap().last().cloned().unwrap_or_default()
    }

    fn proxy(&self, rules: &str) -> Proxy {
        let proxy = Proxy::before(self.origin.address);
        proxy.apply(rules);
        proxy
    }
}

fn ok(fields: &str, body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\n{fields}content-length: {}\r\n\r\n{body}", body.len())
}

fn get(path: &str, fields: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: a\r\n{fields}\r\n")
}

async fn ask(proxy: &Proxy, path: &str, fields: &str) -> Response {
    proxy.ask(&get(path, fields)).await
}

#[tokio::test]
async fn answer_that_may_be_kept_is_asked_for_once() {
    let origin = Noting::answering(|_, number| ok("cache-control: max-age=60\r\nx-a: 1\r\n", &format!("answer {number}"))).await;
    let proxy = origin.proxy(ALL);
    let first = ask(&proxy, "/a?b", "").await;
    assert_eq!((first.text(), first.field("cache-status")), ("answer 1", "fetchr; fwd=uri-miss; stored"));
    let second = ask(&proxy, "/a?b", "").await;
    assert_eq!((second.status, second.text(), second.field("x-a"), second.field("age")), (200, "answer 1", "1", "0"));
    assert!(second.field("cache-status").starts_with("fetchr; hit; ttl="), "{}", second.head);
    assert_eq!(ask(&proxy, "/a?c", "").await.text(), "answer 2");
    assert_eq!(origin.requests(), 2);
    assert_eq!(proxy.metric(r#"fetchr_cache_requests_total{route="shop/test/all",result="hit"}"#), 1.0);
    assert_eq!(proxy.metric("fetchr_cache_objects"), 2.0);
}

#[tokio::test]
async fn answers_that_may_not_be_kept_are_asked_for_each_time_and_say_why() {
    for (fields, reason) in [
        ("cache-control: no-store\r\n", "NoStore"),
        ("cache-control: private, max-age=60\r\n", "Private"),
        ("cache-control: max-age=60\r\nset-cookie: a=1\r\n", "SetCookie"),
        ("cache-control: max-age=60\r\nvary: *\r\n", "VaryStar"),
        ("", "NoFreshness"),
    ] {
        let origin = Noting::answering(move |_, number| ok(fields, &number.to_string())).await;
        let proxy = origin.proxy(ALL);
        for number in ["1", "2", "3"] {
            let response = ask(&proxy, "/", "").await;
            assert_eq!(response.text(), number, "{fields}");
            assert!(response.field("cache-status").ends_with(&format!("detail={reason}")), "{fields}: {}", response.head);
        }
        assert_eq!(proxy.metric(&format!("fetchr_cache_not_stored_total{{reason=\"{reason}\"}}")), 3.0);
    }
}

#[tokio::test]
async fn variants_are_kept_apart() {
    let origin = Noting::answering(|head, _| {
        let language = field(head, "accept-language").unwrap_or("none").to_owned();
        ok("cache-control: max-age=60\r\nvary: accept-language\r\n", &language)
    })
    .await;
    let proxy = origin.proxy(ALL);
    for _ in 0..2 {
        for language in ["de", "en"] {
            assert_eq!(ask(&proxy, "/", &format!("accept-language: {language}\r\n")).await.text(), language);
        }
        assert_eq!(ask(&proxy, "/", "").await.text(), "none");
    }
    assert_eq!(origin.requests(), 3);
}

#[tokio::test]
async fn requests_that_miss_at_the_same_time_are_one_for_the_origin() {
    let (asked, go) = (Arc::new(AtomicUsize::new(0)), Arc::new(Notify::new()));
    let (count, wait) = (Arc::clone(&asked), Arc::clone(&go));
    let origin = Origin::scripted(move |mut stream, _| {
        let (count, wait) = (Arc::clone(&count), Arc::clone(&wait));
        async move {
            while read_head(&mut stream).await.is_some() {
                count.fetch_add(1, Ordering::SeqCst);
                wait.notified().await;
                stream
                    .write_all(b"HTTP/1.1 200 OK\r\ncache-control: max-age=60\r\ncontent-length: 10\r\n\r\nfirst")
                    .await
                    .unwrap();
                wait.notified().await;
                stream.write_all(b"later").await.unwrap();
            }
        }
    })
    .await;
    let proxy = Proxy::before(origin.address);
    proxy.apply(ALL);
    let mut clients = Vec::new();
    for _ in 0..20 {
        let mut client = proxy.client().await;
        client.send(get("/", "")).await;
        clients.push(client);
    }
    eventually("the first request", || asked.load(Ordering::SeqCst) == 1).await;
    eventually("all others", || proxy.metric("http_server_active_requests{direction=\"inbound\"}") == 20.0).await;
    go.notify_one();
    // What has come goes to all of them while the rest is awaited.
    for client in &mut clients {
        let head = read_head(&mut client.0).await.unwrap();
        assert_eq!(field(&head, "content-length"), Some("10"), "{head}");
        assert_eq!(client.bytes(5).await, b"first");
    }
    go.notify_one();
    for client in &mut clients {
        assert_eq!(client.bytes(5).await, b"later");
    }
    assert_eq!(asked.load(Ordering::SeqCst), 1);
    assert_eq!(proxy.metric(r#"fetchr_cache_requests_total{route="shop/test/all",result="collapsed"}"#), 19.0);
    assert_eq!(ask(&proxy, "/", "").await.text(), "firstlater");
    assert_eq!(asked.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn answer_that_breaks_off_is_never_kept_nor_whole() {
    for answer in [
        "HTTP/1.1 200 OK\r\ncache-control: max-age=60\r\ncontent-length: 10\r\n\r\nshort",
        "HTTP/1.1 200 OK\r\ncache-control: max-age=60\r\ntransfer-encoding: chunked\r\n\r\n5\r\nshort\r\n",
    ] {
        let asked = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&asked);
        let origin = Origin::scripted(move |mut stream, _| {
            let count = Arc::clone(&count);
            async move {
                if read_head(&mut stream).await.is_some() {
                    count.fetch_add(1, Ordering::SeqCst);
                    stream.write_all(answer.as_bytes()).await.unwrap();
                }
            }
        })
        .await;
        let proxy = Proxy::before(origin.address);
        proxy.apply(ALL);
        for number in 1..=2 {
            let mut client = proxy.client().await;
            client.send(get("/", "")).await;
            let got = String::from_utf8(client.rest().await).unwrap();
            let whole = got.ends_with("0\r\n\r\n") || got.contains("content-length: 5\r\n");
            assert!(!whole || got.starts_with("HTTP/1.1 502 "), "{got}");
            assert_eq!(asked.load(Ordering::SeqCst), number, "{answer}");
        }
        assert_eq!(proxy.metric("fetchr_cache_objects"), 0.0);
    }
}

#[tokio::test]
async fn first_client_that_leaves_takes_the_answer_from_nobody() {
    let (origin, go, asked) = slow_origin().await;
    let proxy = Proxy::before(origin.address);
    proxy.apply(ALL);
    let mut first = proxy.client().await;
    first.send(get("/", "")).await;
    eventually("the request", || asked.load(Ordering::SeqCst) == 1).await;
    go.notify_one();
    assert_eq!(first.response_head().await, 200);
    drop(first);
    eventually("its end", || proxy.metric("http_server_active_requests{direction=\"inbound\"}") == 0.0).await;
    go.notify_one();
    eventually("the object", || proxy.metric("fetchr_cache_objects") == 1.0).await;
    assert_eq!(ask(&proxy, "/", "").await.text(), "firstlater");
    assert_eq!(asked.load(Ordering::SeqCst), 1);
}

/// Sends head and half of an answer, then the other half, each when it is told to.
async fn slow_origin() -> (Origin, Arc<Notify>, Arc<AtomicUsize>) {
    let (asked, go) = (Arc::new(AtomicUsize::new(0)), Arc::new(Notify::new()));
    let (count, wait) = (Arc::clone(&asked), Arc::clone(&go));
    let serve = move |mut stream: TcpStream, _| {
        let (count, wait) = (Arc::clone(&count), Arc::clone(&wait));
        async move {
            while read_head(&mut stream).await.is_some() {
                count.fetch_add(1, Ordering::SeqCst);
                wait.notified().await;
                stream
                    .write_all(b"HTTP/1.1 200 OK\r\ncache-control: max-age=60\r\ncontent-length: 10\r\n\r\nfirst")
                    .await
                    .unwrap();
                wait.notified().await;
                stream.write_all(b"later").await.unwrap();
            }
        }
    };
    (Origin::scripted(serve).await, go, asked)
}

impl Client {
    /// Reads a head, and says its status.
    async fn response_head(&mut self) -> u16 {
        let head = read_head(&mut self.0).await.unwrap();
        head.split(' ').nth(1).unwrap().parse().unwrap()
    }
}

#[tokio::test]
async fn conditional_and_partial_requests_are_answered_from_what_is_kept() {
    let fields = "cache-control: max-age=60\r\netag: \"v1\"\r\ncontent-type: text/plain\r\n";
    let origin = Noting::answering(move |_, _| ok(fields, "0123456789")).await;
    let proxy = origin.proxy(ALL);
    let first = ask(&proxy, "/", "if-none-match: \"v1\"\r\n").await;
    assert_eq!(first.status, 304, "{}", first.head);
    assert!(!origin.last().contains("if-none-match"), "the whole answer is asked for: {}", origin.last());
    assert_eq!(ask(&proxy, "/", "").await.text(), "0123456789");
    let not_modified = ask(&proxy, "/", "if-none-match: W/\"v1\"\r\n").await;
    assert_eq!((not_modified.status, not_modified.field("etag"), not_modified.has("content-type")), (304, "\"v1\"", false));
    let part = ask(&proxy, "/", "range: bytes=2-4\r\n").await;
    assert_eq!((part.status, part.text(), part.field("content-range")), (206, "234", "bytes 2-4/10"));
    let near = ask(&proxy, "/", "range: bytes=0-0,9-9\r\n").await;
    assert_eq!((near.status, near.field("content-range")), (206, "bytes 0-9/10"), "near parts are one");
    let beyond = ask(&proxy, "/", "range: bytes=10-\r\n").await;
    assert_eq!((beyond.status, beyond.field("content-range")), (416, "bytes */10"));
    let mut client = proxy.client().await;
    client.send("HEAD / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    let head = client.head_response().await;
    assert_eq!((head.status, head.field("content-length")), (200, "10"));
    assert_eq!(origin.requests(), 1);
}

#[tokio::test]
async fn what_must_be_validated_is_validated() {
    let origin = Noting::answering(|head, number| match field(head, "if-none-match") {
        Some("\"v1\"") => {
            "HTTP/1.1 304 Not Modified\r\netag: \"v1\"\r\ncache-control: no-cache\r\nx-number: 2\r\n\r\n".to_owned()
        }
        _ => ok("cache-control: no-cache\r\netag: \"v1\"\r\n", &format!("answer {number}")),
    })
    .await;
    let proxy = origin.proxy(ALL);
    assert_eq!(ask(&proxy, "/", "").await.text(), "answer 1");
    for _ in 0..2 {
        let validated = ask(&proxy, "/", "").await;
        assert_eq!(
            (validated.status, validated.text(), validated.field("x-number")),
            (200, "answer 1", "2"),
            "{}",
            validated.head
        );
        assert!(validated.field("cache-status").contains("fwd=stale; fwd-status=304"), "{}", validated.head);
    }
    assert_eq!(origin.requests(), 3);
}

#[tokio::test]
async fn origin_that_fails_is_hidden_for_as_long_as_the_policy_says() {
    let origin = Noting::answering(|_, number| match number {
        1 => ok("cache-control: max-age=0\r\netag: \"v1\"\r\n", "good"),
        2 => "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 3\r\n\r\nbad".to_owned(),
        _ => ok("cache-control: max-age=0\r\netag: \"v2\"\r\n", "new"),
    })
    .await;
    let proxy = origin.proxy(r#"[{"name": "all", "cache": {"stale": {"ifError": "1h"}}}]"#);
    assert_eq!(ask(&proxy, "/", "").await.text(), "good");
    let stale = ask(&proxy, "/", "").await;
    assert_eq!((stale.status, stale.text()), (200, "good"));
    assert!(
        stale.field("cache-status").contains("fwd-status=503") && stale.field("cache-status").ends_with("detail=StaleIfError")
    );
    assert_eq!(ask(&proxy, "/", "").await.text(), "new");
}

#[tokio::test]
async fn what_took_the_place_of_an_answer_takes_it_out_though_it_is_not_kept_itself() {
    let status = |status: &str| format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n");
    for (other, stays) in [
        (ok("cache-control: private\r\n", "mine"), false),
        (ok("cache-control: max-age=60\r\n", &"a".repeat(2048)), false),
        (status("410 Gone"), false),
        (status("302 Found"), false),
        (status("304 Not Modified").replace("content-length: 0", "cache-control: no-store"), false),
        (status("403 Forbidden"), true),
    ] {
        let says = other.clone();
        let origin = Noting::answering(move |_, number| match number {
            1 => ok("cache-control: max-age=0\r\netag: \"v1\"\r\n", "good"),
            2 => says.clone(),
            _ => "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 3\r\n\r\nbad".to_owned(),
        })
        .await;
        let proxy = origin.proxy(r#"[{"name": "all", "cache": {"stale": {"ifError": "1h"}, "maxObjectSize": "1Ki"}}]"#);
        assert_eq!(ask(&proxy, "/", "").await.text(), "good");
        ask(&proxy, "/", "").await;
        assert_eq!(ask(&proxy, "/", "").await.text(), if stays { "good" } else { "bad" }, "{other}");
    }
}

#[tokio::test]
async fn stale_answer_serves_while_one_request_asks_anew() {
    let origin = Noting::answering(|_, number| ok("cache-control: max-age=0\r\n", &number.to_string())).await;
    let proxy = origin.proxy(r#"[{"name": "all", "cache": {"stale": {"whileRevalidate": "1h"}}}]"#);
    assert_eq!(ask(&proxy, "/", "").await.text(), "1");
    assert_eq!(ask(&proxy, "/", "").await.text(), "1");
    eventually("the request in the background", || origin.requests() == 2).await;
    eventually("its answer", || proxy.metric("fetchr_cache_fills") == 0.0).await;
    assert_eq!(ask(&proxy, "/", "").await.text(), "2");
}

#[tokio::test]
async fn request_that_changes_something_takes_the_answer_out() {
    let origin = Noting::answering(|_, number| ok("cache-control: max-age=60\r\n", &number.to_string())).await;
    let proxy = origin.proxy(r#"[{"name": "reads", "matches": [{"methods": ["GET"]}], "cache": {}}]"#);
    assert_eq!(ask(&proxy, "/a", "").await.text(), "1");
    assert_eq!(ask(&proxy, "/a", "").await.text(), "1");
    proxy.ask("POST /a HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n").await;
    assert_eq!(ask(&proxy, "/a", "").await.text(), "3");
}

#[tokio::test]
async fn policy_says_what_passes_and_what_is_fetched_anew() {
    let origin = Noting::answering(|_, number| ok("cache-control: max-age=60\r\n", &number.to_string())).await;
    let proxy = origin.proxy(
        r#"[{"name": "all", "cache": {"bypass": "'x-bypass' in request.headers", "refresh": "'x-refresh' in request.headers"}}]"#,
    );
    assert_eq!(ask(&proxy, "/", "").await.text(), "1");
    let bypassed = ask(&proxy, "/", "x-bypass: 1\r\n").await;
    assert_eq!((bypassed.text(), bypassed.field("cache-status")), ("2", "fetchr; fwd=bypass; detail=Policy"));
    assert_eq!(ask(&proxy, "/", "").await.text(), "1");
    assert_eq!(ask(&proxy, "/", "x-refresh: 1\r\n").await.text(), "3");
    assert_eq!(ask(&proxy, "/", "").await.text(), "3");
}

#[tokio::test]
async fn only_if_cached_asks_nobody() {
    let origin = Noting::answering(|_, _| ok("cache-control: max-age=60\r\n", "kept")).await;
    let proxy = origin.proxy(ALL);
    assert_eq!(ask(&proxy, "/", "cache-control: only-if-cached\r\n").await.status, 504);
    assert_eq!(origin.requests(), 0);
    ask(&proxy, "/", "").await;
    assert_eq!(ask(&proxy, "/", "cache-control: only-if-cached\r\n").await.text(), "kept");
}

#[tokio::test]
async fn nobody_gets_an_answer_that_another_one_made() {
    // Each of these changes what this origin answers, and is in no `Vary`.
    let origin = Noting::answering(|head, _| {
        let evil = ["x-forwarded-host", "x-host"].iter().any(|name| field(head, name) == Some("evil.example"));
        ok("cache-control: max-age=60\r\n", if evil || head.contains(";page=evil") { "evil" } else { "good" })
    })
    .await;
    let proxy = origin.proxy(r#"[{"name": "all", "cache": {"key": {"query": {"ignore": ["utm_*"]}}}}]"#);
    assert_eq!(ask(&proxy, "/", "x-host: evil.example\r\n").await.text(), "evil");
    // Of this one the proxy tells the origin itself.
    assert_eq!(ask(&proxy, "/", "x-forwarded-host: evil.example\r\n").await.text(), "good");
    assert_eq!(ask(&proxy, "/?utm_a=1;page=evil", "").await.text(), "evil");
    for query in ["", "?utm_a=1"] {
        assert_eq!(ask(&proxy, &format!("/{query}"), "").await.text(), "good", "{query}");
    }
}

#[tokio::test]
async fn shadow_changes_nothing_and_counts_what_would_have_been() {
    let origin = Noting::answering(|_, number| ok("cache-control: max-age=60\r\n", &number.to_string())).await;
    let proxy = origin.proxy(r#"[{"name": "all", "cache": {"mode": "Shadow"}}]"#);
    for number in ["1", "2", "3"] {
        let response = ask(&proxy, "/", "").await;
        assert_eq!((response.text(), response.has("cache-status")), (number, false));
    }
    assert_eq!(proxy.metric(r#"fetchr_cache_requests_total{route="shop/test/all",result="shadow_hit"}"#), 2.0);
    proxy.apply(ALL);
    assert_eq!(ask(&proxy, "/", "").await.text(), "4");
}

#[tokio::test]
async fn errors_are_kept_only_if_the_policy_says_so() {
    let answer = "HTTP/1.1 404 Not Found\r\ncontent-length: 4\r\n\r\nnone";
    let origin = Noting::answering(move |_, _| answer.to_owned()).await;
    let proxy = origin.proxy(r#"[{"name": "all", "cache": {"ttl": {"byStatus": [{"status": 404, "ttl": "1m"}]}}}]"#);
    for _ in 0..3 {
        assert_eq!(ask(&proxy, "/", "").await.status, 404);
    }
    assert_eq!(origin.requests(), 1);
    proxy.apply(ALL);
    assert_eq!(origin.requests(), 1);
}
