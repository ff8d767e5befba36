//! Limits that pods count together in a real Redis.

use futures::future::join_all;
use serde_json::{Value, json};

use crate::{
    redis_modes::{by_nodes, by_sentinels},
    redis_server::{Cluster, Sentinels, Server},
    support::{Origin, Proxy, Response, until},
};

/// Of a load's limit: requests in a second, and at once.
pub(crate) const RATE: u32 = 100;
pub(crate) const BURST: u32 = 20;

/// Pods before one origin.
pub(crate) struct Pods {
    _origin: Origin,
    pub(crate) proxies: Vec<Proxy>,
}

/// An hour for each token, so that none comes while a test runs; a limit by which a test knows that Redis is asked; and some for loads.
pub(crate) fn rules(more: &Value) -> String {
    let limit = |name: &str, burst: u32| {
        let mut limit = json!({"name": name, "limit": {"requests": 1, "per": "1h", "burst": burst}, "scope": "Shared"});
        for (field, value) in more.as_object().unwrap() {
            limit[field] = value.clone();
        }
        limit
    };
    let warm = json!({"name": "warm", "limit": {"requests": 1_000_000, "per": "1s"}, "scope": "Shared", "key": [{"source": "Query", "name": "pod"}]});
    let mut load = json!({"name": "load", "limit": {"requests": RATE, "per": "1s", "burst": BURST}, "scope": "Shared"});
    load.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let wide = |name: &str, key: &Value| json!({"name": name, "limit": {"requests": 10_000, "per": "1s"}, "scope": "Shared", "key": key});
    let each = [wide("each", &json!([{"source": "Query", "name": "k"}])), wide("all", &json!([]))];
    json!([
        {"name": "five", "matches": [{"path": {"type": "Exact", "value": "/five"}}], "rateLimits": [limit("five", 5)]},
        {"name": "both", "matches": [{"path": {"type": "Exact", "value": "/both"}}], "rateLimits": [limit("three", 3), limit("nine", 9)]},
        {"name": "nine", "matches": [{"path": {"type": "Exact", "value": "/nine"}}], "rateLimits": [limit("nine", 9)]},
        {"name": "load", "matches": [{"path": {"type": "Exact", "value": "/load"}}], "rateLimits": [load]},
        {"name": "each", "matches": [{"path": {"type": "Exact", "value": "/each"}}], "rateLimits": each},
        {"name": "warm", "matches": [{"path": {"type": "Exact", "value": "/warm"}}], "rateLimits": [warm]},
    ])
    .to_string()
}

impl Pods {
    pub(crate) async fn start(count: usize, redis: &Value, more: &Value) -> Self {
        let origin = Origin::echo_head().await;
        let proxies: Vec<Proxy> = (0..count)
            .map(|_| {
                let proxy = Proxy::with(&format!("http://{}", origin.address), |spec| {
                    spec.redis = Some(serde_json::from_value(redis.clone()).unwrap());
                });
                proxy.apply_as_one_of(count as u32, &rules(more));
                proxy
            })
            .collect();
        let pods = Self { _origin: origin, proxies };
        for proxy in &pods.proxies {
            counts_in_redis(proxy).await;
        }
        pods
    }

    /// So many requests pass, one after the other: a pod knows what remained when the last of them was answered.
    pub(crate) async fn spend(&self, path: &str, requests: usize) {
        for _ in 0..requests {
            assert_eq!(self.passed(path, 1).await, 1);
        }
    }

    /// How many of so many requests pass, which come to all pods in turn and at once.
    pub(crate) async fn passed(&self, path: &str, requests: usize) -> usize {
        let answers = join_all((0..requests).map(|number| ask(&self.proxies[number % self.proxies.len()], path))).await;
        assert!(answers.iter().all(|answer| [200, 429].contains(&answer.status)), "{:?}", answers[0].head);
        answers.iter().filter(|answer| answer.status == 200).count()
    }
}

pub(crate) async fn ask(proxy: &Proxy, path: &str) -> Response {
    proxy.ask(&format!("GET {path} HTTP/1.1\r\nhost: a\r\n\r\n")).await
}

/// Waits until requests to this pod are decided by Redis.
pub(crate) async fn counts_in_redis(proxy: &Proxy) {
    let before = decided(proxy, "warm", "allow", "store");
    until("Redis is asked", async || {
        assert_eq!(ask(proxy, "/warm").await.status, 200);
        decided(proxy, "warm", "allow", "store") > before
    })
    .await;
}

pub(crate) fn decided(proxy: &Proxy, limit: &str, decision: &str, source: &str) -> f64 {
    let labels = format!(r#"limit="{limit}",decision="{decision}",mode="enforce",source="{source}"}} "#);
    let page = proxy.metrics.encode();
    let line = page.lines().find(|line| line.starts_with("fetchr_ratelimit_decisions_total{") && line.contains(&labels));
    line.map_or(0.0, |line| line.rsplit(' ').next().unwrap().parse().unwrap())
}

/// Questions to Redis without an answer, for a reason.
pub(crate) fn failed(proxy: &Proxy, reason: &str) -> f64 {
    proxy.metric(&format!("fetchr_ratelimit_store_failures_total{{reason=\"{reason}\"}}"))
}

/// Longer than a busy machine keeps a command waiting.
pub(crate) fn single(server: &Server) -> Value {
    json!({"endpoints": [server.address()], "commandTimeout": "5s"})
}

#[tokio::test]
async fn pods_together_let_no_more_pass_than_one_limit() {
    let server = Server::start(&[]).await;
    let pods = Pods::start(3, &single(&server), &json!({})).await;
    assert_eq!(pods.passed("/five", 30).await, 5);
    let denied = ask(&pods.proxies[0], "/five").await;
    assert_eq!((denied.status, denied.field("ratelimit-policy")), (429, "\"five\";q=5;w=18000"));
    let wait: u64 = denied.field("retry-after").parse().unwrap();
    assert!((3500..=3600).contains(&wait), "{wait}");
    assert_eq!(denied.field("ratelimit"), format!("\"five\";r=0;t={wait}"));
}

#[tokio::test]
async fn request_that_one_limit_denies_takes_nothing_from_the_others() {
    let server = Server::start(&[]).await;
    let pods = Pods::start(2, &single(&server), &json!({})).await;
    assert_eq!(pods.passed("/both", 20).await, 3);
    // The same policy, another rule: a count of its own.
    assert_eq!(pods.passed("/nine", 20).await, 9);
    let told = ask(&pods.proxies[0], "/both").await;
    assert!(told.field("ratelimit").contains("\"nine\";r=6;"), "{}", told.head);
}

#[tokio::test]
async fn without_redis_each_pod_has_its_share_of_what_remained_and_nobody_waits_for_it() {
    let mut server = Server::start(&[]).await;
    let pods = Pods::start(1, &single(&server), &json!({})).await;
    let proxy = &pods.proxies[0];
    pods.spend("/five", 2).await;
    server.kill();
    assert_eq!(pods.passed("/five", 10).await, 3, "as many as remained");
    assert!(decided(proxy, "five", "allow", "fallback") == 3.0 && decided(proxy, "five", "deny", "fallback") == 7.0);
    server.restart().await;
    counts_in_redis(proxy).await;
    assert_eq!(pods.passed("/five", 10).await, 5, "Redis has come back empty");
}

#[tokio::test]
async fn policy_says_what_holds_without_redis() {
    for (policy, status) in [("Allow", 200), ("Deny", 503)] {
        let mut server = Server::start(&[]).await;
        let pods = Pods::start(1, &single(&server), &json!({"onStoreFailure": policy})).await;
        assert_eq!(pods.passed("/five", 6).await, 5);
        server.kill();
        for _ in 0..7 {
            let answer = ask(&pods.proxies[0], "/five").await;
            assert_eq!(answer.status, status, "{policy}: {}", answer.head);
            if status == 503 {
                assert!(answer.field("proxy-status").contains("error=rate_limit_undecided"), "{}", answer.head);
                assert_eq!(answer.field("retry-after"), "1");
            }
        }
    }
}

#[tokio::test]
async fn whatever_redis_answers_clients_get_what_remained_and_no_errors() {
    for (reason, fault) in [
        ("full", &["CONFIG", "SET", "maxmemory", "1"][..]),
        ("forbidden", &["ACL", "SETUSER", "default", "-evalsha"]),
        ("replica", &["REPLICAOF", "127.0.0.1", "1"]),
        ("late", &[]),
    ] {
        let server = Server::start(&["--maxmemory-policy", "noeviction"]).await;
        // Short, for what hangs takes three times that.
        let redis = json!({"endpoints": [server.address()], "commandTimeout": "200ms"});
        let pods = Pods::start(1, &redis, &json!({})).await;
        pods.spend("/five", 2).await;
        match fault {
            [] => server.stop(),
            fault => drop(server.run(fault).await),
        }
        assert_eq!(pods.passed("/five", 10).await, 3, "{reason}: as many as remained");
        assert!(failed(&pods.proxies[0], reason) > 0.0, "{reason}");
    }
}

#[tokio::test]
async fn redis_that_can_not_be_used_is_a_store_that_fails() {
    let origin = Origin::echo_head().await;
    let redis = json!({"endpoints": ["127.0.0.1:1"], "credentials": {"secretRef": {"name": "none"}}});
    let proxy = Proxy::with(&format!("http://{}", origin.address), |spec| {
        spec.redis = Some(serde_json::from_value(redis).unwrap());
    });
    proxy.apply(&rules(&json!({"onStoreFailure": "Deny"})));
    until("the policy is in force", async || ask(&proxy, "/five").await.status != 200).await;
    let answer = ask(&proxy, "/five").await;
    assert!(answer.status == 503 && answer.field("proxy-status").contains("rate_limit_undecided"), "{}", answer.head);
}

#[tokio::test]
async fn limit_in_shadow_counts_over_all_pods_and_denies_nothing() {
    let server = Server::start(&[]).await;
    let pods = Pods::start(2, &single(&server), &json!({"mode": "Shadow"})).await;
    assert_eq!(pods.passed("/five", 10).await, 10);
    until("all are counted", async || {
        let count = |decision: &str| -> f64 {
            let labels = format!(r#"limit="five",decision="{decision}",mode="shadow",source="store"}} "#);
            let of = |proxy: &Proxy| {
                let page = proxy.metrics.encode();
                let line = page.lines().find(|line| line.contains(&labels)).map(str::to_owned);
                line.map_or(0.0, |line| line.rsplit(' ').next().unwrap().parse().unwrap())
            };
            pods.proxies.iter().map(of).sum()
        };
        (count("allow"), count("deny")) == (5.0, 5.0)
    })
    .await;
}

#[tokio::test]
async fn limit_holds_over_pods_of_a_redis_cluster() {
    let cluster = Cluster::start().await;
    let pods = Pods::start(2, &by_nodes(&cluster), &json!({})).await;
    assert_eq!(pods.passed("/five", 20).await, 5);
    assert_eq!(pods.passed("/both", 20).await, 3);
}

#[tokio::test]
async fn limit_holds_over_pods_whose_redis_has_sentinels() {
    let mut set = Sentinels::start().await;
    let pods = Pods::start(2, &by_sentinels(&set), &json!({"onStoreFailure": "Allow"})).await;
    assert_eq!(pods.passed("/five", 20).await, 5);
    let primary = crate::redis_modes::primary_of_log(&set.servers).await;
    set.servers[primary].kill();
    for proxy in &pods.proxies {
        counts_in_redis(proxy).await;
    }
    // The replica had all of it.
    assert_eq!(pods.passed("/five", 20).await, 0);
}
