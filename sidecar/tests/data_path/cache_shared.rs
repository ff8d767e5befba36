//! Answers that pods share in a real `redis-server`.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use crds::{proxy::FetchrProxySpec, scalar::Size};
use serde_json::json;
use tokio::{
    io::AsyncWriteExt,
    sync::{Notify, watch},
    time::timeout,
};

use crate::{
    purge::Site,
    redis_server::Server,
    support::{LONG, Origin, Proxy, ms, read_chunks, read_head, until},
};

const ALL: &str = r#"[{"name": "all", "cache": {"tags": {"header": "xkey"}, "stale": {"whileRevalidate": "60s"}}}]"#;
const CLUSTER: &str = r#"[{"name": "all", "cache": {"collapse": {"scope": "Cluster", "wait": "5s"}}}]"#;
const FIELDS: &str = "cache-control: max-age=600\r\nxkey: news\r\n";

/// Longer than a busy machine keeps a command waiting.
fn shares(server: &Server) -> impl FnOnce(&mut FetchrProxySpec) + use<> {
    let redis = json!({"endpoints": [server.address()], "commandTimeout": "5s"});
    move |spec| {
        spec.redis = Some(serde_json::from_value(redis).unwrap());
        spec.cache.shared = Some(serde_json::from_value(json!({"maxObject": "1Ki"})).unwrap());
        spec.cache.purge.max_lag = ms(2000);
    }
}

async fn pod_with(server: &Server, rules: &str, fields: &'static str, gate: Option<Arc<Notify>>) -> Site {
    let site = Site::with(rules, fields, gate, shares(server)).await;
    until("a connection", async || {
        site.proxy.metric("fetchr_cache_shared_connected ") == 1.0 && site.proxy.metric("fetchr_cache_cut_off ") == 0.0
    })
    .await;
    site
}

async fn pod(server: &Server) -> Site {
    pod_with(server, ALL, FIELDS, None).await
}

fn asked(site: &Site) -> usize {
    site.requests.load(Ordering::SeqCst)
}

async fn written(site: &Site, count: f64) {
    until("it is written", async || site.proxy.metric(r#"fetchr_cache_shared_writes_total{result="stored"}"#) == count).await;
}

#[tokio::test]
async fn what_one_pod_fetched_others_have() {
    let server = Server::start(&[]).await;
    let (one, other) = (pod(&server).await, pod(&server).await);
    assert_eq!(one.get("/a").await, "answer 1");
    written(&one, 1.0).await;
    assert_eq!((other.get("/a").await, asked(&other)), ("answer 1".to_owned(), 0));
    assert_eq!(other.proxy.metric(r#"fetchr_cache_shared_requests_total{result="hit"}"#), 1.0);
    assert_eq!((other.get("/a").await, asked(&other)), ("answer 1".to_owned(), 0));
    assert_eq!(other.proxy.metric(r#"fetchr_cache_shared_requests_total{result="hit"}"#), 1.0, "it is in memory now");
    assert_eq!((other.get("/b").await, asked(&other)), ("answer 1".to_owned(), 1), "another one is not");
    let head = other.proxy.ask("GET /a HTTP/1.1\r\nhost: a.example\r\n\r\n").await;
    assert!(head.field("cache-status").contains("hit") && !head.has("xkey"), "{}", head.head);
}

#[tokio::test]
async fn head_and_ranges_are_answered_from_what_others_fetched() {
    let server = Server::start(&[]).await;
    let one = pod(&server).await;
    assert_eq!(one.get("/").await, "answer 1");
    written(&one, 1.0).await;
    let other = pod(&server).await;
    let part = other.proxy.ask("GET / HTTP/1.1\r\nhost: a.example\r\nrange: bytes=0-5\r\n\r\n").await;
    assert_eq!((part.status, part.text(), asked(&other)), (206, "answer", 0));
    let other = pod(&server).await;
    let mut client = other.proxy.client().await;
    client.send("HEAD / HTTP/1.1\r\nhost: a.example\r\n\r\n").await;
    let head = client.head_response().await;
    assert_eq!((head.status, head.field("content-length"), asked(&other)), (200, "8", 0));
    let other = pod(&server).await;
    let only = "GET / HTTP/1.1\r\nhost: a.example\r\ncache-control: only-if-cached\r\n\r\n";
    assert_eq!(other.proxy.ask(only).await.text(), "answer 1");
    assert_eq!(other.proxy.ask(&only.replace("GET /", "GET /b")).await.status, 504);
}

#[tokio::test]
async fn variants_are_told_apart() {
    let server = Server::start(&[]).await;
    let fields = "cache-control: max-age=600\r\nvary: x-a\r\n";
    let (one, other) = (pod_with(&server, ALL, fields, None).await, pod_with(&server, ALL, fields, None).await);
    let ask = async |site: &Site, value: &str| {
        let request = format!("GET / HTTP/1.1\r\nhost: a.example\r\nx-a: {value}\r\n\r\n");
        site.proxy.ask(&request).await.text().to_owned()
    };
    assert_eq!((ask(&one, "1").await, ask(&one, "2").await), ("answer 1".to_owned(), "answer 2".to_owned()));
    written(&one, 2.0).await;
    assert_eq!((ask(&other, "2").await, ask(&other, "1").await), ("answer 2".to_owned(), "answer 1".to_owned()));
    assert_eq!((ask(&other, "3").await, asked(&other)), ("answer 1".to_owned(), 1));
}

#[tokio::test]
async fn variants_from_before_a_change_do_not_come_back_with_a_newer_one() {
    let server = Server::start(&[]).await;
    let fields = "cache-control: max-age=600\r\nvary: x-a\r\n";
    let one = pod_with(&server, ALL, fields, None).await;
    let ask = async |site: &Site, value: &str| {
        let request = format!("GET / HTTP/1.1\r\nhost: a.example\r\nx-a: {value}\r\n\r\n");
        site.proxy.ask(&request).await.text().to_owned()
    };
    assert_eq!((ask(&one, "1").await, ask(&one, "2").await), ("answer 1".to_owned(), "answer 2".to_owned()));
    written(&one, 2.0).await;
    one.proxy.ask("POST / HTTP/1.1\r\nhost: a.example\r\ncontent-length: 0\r\n\r\n").await;
    // Writes come in their order, so both are gone by the time that it is there again.
    assert_eq!(ask(&one, "1").await, "answer 4");
    written(&one, 3.0).await;
    let late = pod_with(&server, ALL, fields, None).await;
    assert_eq!((ask(&late, "1").await, asked(&late)), ("answer 4".to_owned(), 0));
    assert_eq!((ask(&late, "2").await, asked(&late)), ("answer 1".to_owned(), 1));
}

#[tokio::test]
async fn purge_holds_for_what_is_shared() {
    let server = Server::start(&[]).await;
    let (one, other) = (pod(&server).await, pod(&server).await);
    for (number, request) in
        [r#"{"tag": "news"}"#, r#"{"url": "http://a.example/"}"#, r#"{"policy": "shop/test"}"#, r#"{"all": true}"#]
            .into_iter()
            .enumerate()
    {
        assert_eq!(one.get("/").await, format!("answer {}", number + 1));
        written(&one, number as f64 + 1.0).await;
        let purge = other.order("secret", request).await;
        assert!(purge.text().contains(r#""complete":true"#), "{request}: {}", purge.text());
        let late = pod(&server).await;
        assert_eq!((late.get("/").await, asked(&late)), ("answer 1".to_owned(), 1), "{request}: by its own origin");
        // What that one has stored came after the purge, but is this pod's own origin's that the next turn asks.
        other.order("secret", r#"{"all": true}"#).await;
    }
}

#[tokio::test]
async fn request_that_changes_something_takes_it_from_what_is_shared() {
    let server = Server::start(&[]).await;
    let one = pod(&server).await;
    assert_eq!(one.get("/").await, "answer 1");
    written(&one, 1.0).await;
    one.proxy.ask("POST / HTTP/1.1\r\nhost: a.example\r\ncontent-length: 0\r\n\r\n").await;
    until("it is gone", async || {
        let late = pod(&server).await;
        late.get("/").await;
        asked(&late) == 1
    })
    .await;
}

#[tokio::test]
async fn who_changed_something_does_not_find_what_was_shared_before() {
    let server = Server::start(&[]).await;
    let one = pod(&server).await;
    for round in 0..20 {
        assert_eq!(one.get("/").await, format!("answer {}", 2 * round + 1));
        one.proxy.ask("POST / HTTP/1.1\r\nhost: a.example\r\ncontent-length: 0\r\n\r\n").await;
    }
}

#[tokio::test]
async fn what_is_private_or_damaged_is_not_shared() {
    let server = Server::start(&[]).await;
    let one = pod_with(&server, ALL, "cache-control: private\r\n", None).await;
    let other = pod(&server).await;
    one.get("/private").await;
    assert_eq!((other.get("/private").await, asked(&other)), ("answer 1".to_owned(), 1));
    written(&other, 1.0).await;
    let keys = server.run(&["KEYS", "fetchr:shop:cache:*}"]).await;
    let keys: Vec<String> = redis::from_redis_value(keys).unwrap();
    assert_eq!(keys.len(), 1, "{keys:?}");
    server.run(&["SETRANGE", &keys[0], "40", "damage"]).await;
    let late = pod(&server).await;
    assert_eq!((late.get("/private").await, asked(&late)), ("answer 1".to_owned(), 1));
    assert_eq!(late.proxy.metric(r#"fetchr_cache_shared_requests_total{result="corrupt"}"#), 1.0);
}

#[tokio::test]
async fn what_is_huge_is_not_read_but_fetched() {
    const HUGE: u64 = 64 << 20;
    let server = Server::start(&[]).await;
    let vary = "cache-control: max-age=600\r\nvary: x-a\r\n";
    for (rules, fields, path) in [(ALL, FIELDS, "/a"), (CLUSTER, FIELDS, "/b"), (ALL, vary, "/c")] {
        let (one, other) = (pod_with(&server, rules, fields, None).await, pod_with(&server, rules, fields, None).await);
        let keys =
            async || -> Vec<String> { redis::from_redis_value(server.run(&["KEYS", "fetchr:shop:cache:*}"]).await).unwrap() };
        let others = keys().await;
        assert_eq!(one.get(path).await, "answer 1");
        written(&one, 1.0).await;
        for key in keys().await.iter().filter(|key| !others.contains(key)) {
            server.run(&["SETRANGE", key, &(HUGE - 1).to_string(), "x"]).await;
        }
        let sent = async || {
            let info = server.text(&["INFO", "stats"]).await;
            let line = info.lines().find_map(|line| line.strip_prefix("total_net_output_bytes:"));
            line.unwrap().trim().parse::<u64>().unwrap()
        };
        let before = sent().await;
        assert_eq!((other.get(path).await, asked(&other)), ("answer 1".to_owned(), 1), "{path}");
        written(&other, 1.0).await;
        // What is not sent takes no memory.
        let taken = sent().await - before;
        assert!(taken < HUGE / 4, "{path}: {taken}");
        assert!(other.proxy.metric(r#"fetchr_cache_shared_requests_total{result="too_long"}"#) >= 1.0, "{path}");
        // What was fetched anew stands in its place.
        let late = pod_with(&server, rules, fields, None).await;
        assert_eq!((late.get(path).await, asked(&late)), ("answer 1".to_owned(), 0), "{path}");
    }
}

#[tokio::test]
async fn what_is_too_large_to_share_stays_in_the_pod() {
    let server = Server::start(&[]).await;
    let small = |spec: &mut FetchrProxySpec| {
        shares(&server)(spec);
        spec.cache.shared.as_mut().unwrap().max_object = Size(7);
    };
    let one = Site::with(ALL, FIELDS, None, small).await;
    until("a connection", async || one.proxy.metric("fetchr_cache_shared_connected ") == 1.0).await;
    assert_eq!((one.get("/").await, one.get("/").await, asked(&one)), ("answer 1".to_owned(), "answer 1".to_owned(), 1));
    let keys: Vec<String> = redis::from_redis_value(server.run(&["KEYS", "fetchr:shop:cache:*}"]).await).unwrap();
    assert!(keys.is_empty(), "{keys:?}");
}

#[tokio::test]
async fn without_redis_requests_go_on_and_it_is_used_again_when_it_is_back() {
    let mut server = Server::start(&[]).await;
    let (one, other) = (pod(&server).await, pod(&server).await);
    server.kill();
    assert_eq!((one.get("/").await, one.get("/").await, asked(&one)), ("answer 1".to_owned(), "answer 1".to_owned(), 1));
    until("nobody asks it", async || one.proxy.metric("fetchr_cache_shared_connected ") == 0.0).await;
    assert_eq!((one.get("/b").await, asked(&one)), ("answer 2".to_owned(), 2));
    assert!(one.proxy.metric(r#"fetchr_cache_shared_requests_total{result="away"}"#) >= 1.0);
    server.restart().await;
    for site in [&one, &other] {
        until("a connection", async || {
            site.proxy.metric("fetchr_cache_shared_connected ") == 1.0 && site.proxy.metric("fetchr_cache_cut_off ") == 0.0
        })
        .await;
    }
    let before = one.proxy.metric(r#"fetchr_cache_shared_writes_total{result="stored"}"#);
    assert_eq!(one.get("/c").await, "answer 3");
    written(&one, before + 1.0).await;
    assert_eq!((other.get("/c").await, asked(&other)), ("answer 3".to_owned(), 0));
}

#[tokio::test]
async fn of_a_thousand_requests_over_twenty_pods_one_asks_the_origin() {
    let server = Server::start(&[]).await;
    let gate = Arc::new(Notify::new());
    // Longer than a busy machine takes for a thousand connections.
    let rules = CLUSTER.replace("5s", "30s");
    let mut sites = Vec::new();
    for _ in 0..20 {
        sites.push(pod_with(&server, &rules, FIELDS, Some(Arc::clone(&gate))).await);
    }
    let all = async || sites.iter().map(asked).sum::<usize>();
    let release = async {
        until("one asks", async || all().await == 1).await;
        // All others have looked at least once by now, or will.
        until("others wait", async || {
            let looked = sites.iter().filter(|site| site.proxy.metric("fetchr_cache_fills ") >= 1.0).count();
            looked == sites.len()
        })
        .await;
        gate.notify_waiters();
    };
    let requests = futures::future::join_all(sites.iter().flat_map(|site| (0..50).map(|_| site.get("/"))));
    let (answers, ()) = tokio::join!(requests, release);
    assert!(answers.iter().all(|answer| answer == "answer 1"), "{answers:?}");
    assert_eq!(all().await, 1);
}

#[tokio::test]
async fn pods_go_on_as_soon_as_a_body_is_too_long_for_them() {
    let server = Server::start(&[]).await;
    // Where the longest body is said: for Redis, or for the policy.
    let policy = CLUSTER.replace("\"5s\"}", "\"60s\"}, \"maxObjectSize\": \"1Ki\"");
    for (rules, most) in [(CLUSTER.replace("5s", "60s"), 1), (policy, 64)] {
        // 1: the head and what is not too long yet; 2: more; 3: the end.
        let (stage, asked) = (Arc::new(watch::Sender::new(0)), Arc::new(AtomicUsize::new(0)));
        let (seen, counted) = (Arc::clone(&stage), Arc::clone(&asked));
        let origin = Origin::scripted(move |mut stream, _| {
            let (mut seen, counted) = (seen.subscribe(), Arc::clone(&counted));
            async move {
                while read_head(&mut stream).await.is_some() {
                    counted.fetch_add(1, Ordering::SeqCst);
                    let head = "HTTP/1.1 200 OK\r\ncache-control: max-age=600\r\ntransfer-encoding: chunked\r\n\r\n".to_owned();
                    let chunk = format!("400\r\n{}\r\n", "a".repeat(1024));
                    for (number, piece) in [(1, head + &chunk), (2, chunk), (3, "0\r\n\r\n".to_owned())] {
                        seen.wait_for(|stage| *stage >= number).await.unwrap();
                        stream.write_all(piece.as_bytes()).await.unwrap();
                    }
                }
            }
        })
        .await;
        let pod = async || {
            let proxy = Proxy::with(&format!("http://{}", origin.address), |spec| {
                shares(&server)(spec);
                spec.cache.shared.as_mut().unwrap().max_object = Size::kib(most);
            });
            proxy.apply(&rules);
            until("a connection", async || {
                proxy.metric("fetchr_cache_shared_connected ") == 1.0 && proxy.metric("fetchr_cache_cut_off ") == 0.0
            })
            .await;
            proxy
        };
        let pods = [pod().await, pod().await];
        let request = format!("GET /{most} HTTP/1.1\r\nhost: a.example\r\n\r\n");
        let mut clients = [pods[0].client().await, pods[1].client().await];
        clients[0].send(&request).await;
        until("one asks", async || asked.load(Ordering::SeqCst) == 1).await;
        clients[1].send(&request).await;
        until("the other waits", async || pods[1].metric("fetchr_cache_fills ") == 1.0).await;
        stage.send_replace(1);
        let head = timeout(LONG, read_head(&mut clients[0].0)).await.expect("a head in time").unwrap();
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        assert_eq!(asked.load(Ordering::SeqCst), 1, "it may be for all, so far");
        stage.send_replace(2);
        until("the other asks, too", async || asked.load(Ordering::SeqCst) == 2).await;
        stage.send_replace(3);
        assert_eq!(clients[1].response().await.body.len(), 2048);
        let (body, _) = timeout(LONG, read_chunks(&mut clients[0].0)).await.expect("an end in time");
        assert_eq!(body.len(), 2048);
    }
}

#[tokio::test]
async fn pods_do_not_wait_for_what_is_for_one_client_alone() {
    let server = Server::start(&[]).await;
    let fields = "cache-control: private\r\n";
    let (one, other) = (pod_with(&server, CLUSTER, fields, None).await, pod_with(&server, CLUSTER, fields, None).await);
    one.get("/").await;
    let begun = tokio::time::Instant::now();
    assert_eq!((other.get("/").await, asked(&other)), ("answer 1".to_owned(), 1));
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
}
