//! Purges over pods that share a log in a real `redis-server`.

use std::{fs, sync::atomic::Ordering, time::Instant};

use crds::proxy::{FetchrProxySpec, WhenCutOff};
use serde_json::{Value, json};

use crate::{
    purge::Site,
    redis_server::Server,
    support::{ms, until},
};

const ALL: &str = r#"[{"name": "all", "cache": {"tags": {"header": "xkey"}}}]"#;
const FIELDS: &str = "cache-control: max-age=600\r\netag: \"1\"\r\nxkey: news\r\n";
const CUT_OFF: &str = "fetchr_cache_cut_off ";
/// Long enough for a beat of a busy machine, short enough to wait for.
const LAG: u64 = 2000;

fn shares(server: &Server, when_cut_off: WhenCutOff) -> impl FnOnce(&mut FetchrProxySpec) + use<> {
    let redis = serde_json::from_value(json!({"endpoints": [server.address()]})).unwrap();
    move |spec| {
        spec.redis = Some(redis);
        (spec.cache.purge.max_lag, spec.cache.purge.when_cut_off) = (ms(LAG), when_cut_off);
    }
}

/// A pod that knows of all purges.
async fn pod(server: &Server, when_cut_off: WhenCutOff) -> Site {
    let site = Site::with(ALL, FIELDS, None, shares(server, when_cut_off)).await;
    until("a lease", async || site.proxy.metric(CUT_OFF) == 0.0).await;
    site
}

async fn purge(site: &Site, body: &str) -> Value {
    let answer = site.order("secret", body).await;
    assert_eq!(answer.status, 200, "{body}: {}", answer.text());
    serde_json::from_str(answer.text()).unwrap()
}

fn asked(site: &Site) -> usize {
    site.requests.load(Ordering::SeqCst)
}

#[tokio::test]
async fn purge_at_one_pod_takes_what_others_have() {
    let server = Server::start(&[]).await;
    let sites = [pod(&server, WhenCutOff::Serve).await, pod(&server, WhenCutOff::Serve).await];
    for (number, request) in
        [r#"{"tag": "news"}"#, r#"{"url": "http://a.example/"}"#, r#"{"policy": "shop/test"}"#, r#"{"all": true}"#]
            .into_iter()
            .enumerate()
    {
        for site in &sites {
            assert_eq!(site.get("/").await, format!("answer {}", number + 1));
            assert_eq!(site.get("/").await, format!("answer {}", number + 1), "it is stored");
        }
        let answer = purge(&sites[number % 2], request).await;
        let acknowledged = answer["acknowledged"].as_array().map(Vec::len);
        assert_eq!((answer["complete"].as_bool(), acknowledged), (Some(true), Some(2)), "{request}: {answer}");
    }
    for site in &sites {
        assert_eq!(site.get("/").await, "answer 5");
    }
}

#[tokio::test]
async fn soft_purge_has_all_pods_ask_whether_what_they_have_is_right() {
    let server = Server::start(&[]).await;
    let sites = [pod(&server, WhenCutOff::Serve).await, pod(&server, WhenCutOff::Serve).await];
    for site in &sites {
        assert_eq!(site.get("/").await, "answer 1");
    }
    purge(&sites[0], r#"{"tag": "news", "soft": true}"#).await;
    for site in &sites {
        assert_eq!((site.get("/").await, asked(site)), ("answer 1".to_owned(), 2));
        assert_eq!((site.get("/").await, asked(site)), ("answer 1".to_owned(), 2), "and that holds");
    }
}

#[tokio::test]
async fn outage_of_redis_leaves_answers_as_they_are_unless_the_proxy_says_otherwise() {
    let mut server = Server::start(&[]).await;
    let serves = pod(&server, WhenCutOff::Serve).await;
    let revalidates = pod(&server, WhenCutOff::Revalidate).await;
    for site in [&serves, &revalidates] {
        assert_eq!((site.get("/").await, site.get("/").await, asked(site)), ("answer 1".to_owned(), "answer 1".to_owned(), 1));
    }
    server.kill();
    let killed = Instant::now();
    for site in [&serves, &revalidates] {
        until("cut off", async || site.proxy.metric(CUT_OFF) == 1.0).await;
    }
    assert!(killed.elapsed() >= ms(LAG / 2).0, "a lease outlives the last beat");
    assert_eq!((serves.get("/").await, asked(&serves)), ("answer 1".to_owned(), 1));
    assert_eq!((revalidates.get("/").await, asked(&revalidates)), ("answer 1".to_owned(), 2), "the origin said so");
    let answer = serves.order("secret", r#"{"all": true}"#).await;
    assert!(answer.status == 503 && answer.text().contains("ask again"), "{}", answer.text());
    assert_eq!(serves.get("/").await, "answer 1", "nothing was purged");
    assert!(serves.proxy.metric("fetchr_cache_purge_log_failures_total") >= 1.0);

    server.restart().await;
    for site in [&serves, &revalidates] {
        until("a lease", async || site.proxy.metric(CUT_OFF) == 0.0).await;
        // The log was lost, and maybe a purge with it: the origin is asked once.
        let before = asked(site);
        assert_eq!((site.get("/").await, asked(site)), ("answer 1".to_owned(), before + 1));
        assert_eq!((site.get("/").await, asked(site)), ("answer 1".to_owned(), before + 1));
    }
    assert_eq!(purge(&serves, r#"{"all": true}"#).await["complete"].as_bool(), Some(true));
    assert_ne!(revalidates.get("/").await, "answer 1");
}

#[tokio::test]
async fn a_primary_whose_replica_took_over_completes_no_purge_and_renews_no_lease_if_the_proxy_says_so() {
    for min_replicas in [1, 0] {
        let primary = Server::start(&[]).await;
        let replica = primary.replica().await;
        let change = |spec: &mut FetchrProxySpec| {
            shares(&primary, WhenCutOff::Revalidate)(spec);
            spec.redis.as_mut().unwrap().min_replicas = min_replicas;
        };
        let site = Site::with(ALL, FIELDS, None, change).await;
        let has_lease = async || until("a lease", async || site.proxy.metric(CUT_OFF) == 0.0).await;
        let is_complete = async || purge(&site, r#"{"tag": "none"}"#).await["complete"].as_bool() == Some(true);
        has_lease().await;
        assert_eq!((site.get("/").await, site.get("/").await, asked(&site)), ("answer 1".to_owned(), "answer 1".to_owned(), 1));
        assert!(is_complete().await, "{min_replicas}");

        // Now there are two primaries, and the pod is with the one that was replaced.
        replica.run(&["REPLICAOF", "NO", "ONE"]).await;
        if min_replicas == 0 {
            assert!(is_complete().await, "nobody said that it should not");
            assert_eq!((site.get("/").await, asked(&site)), ("answer 1".to_owned(), 1));
            continue;
        }
        until("cut off", async || site.proxy.metric(CUT_OFF) == 1.0).await;
        assert!(!is_complete().await);
        assert_eq!((site.get("/").await, asked(&site)), ("answer 1".to_owned(), 2), "the origin said so");
        assert_eq!(site.proxy.metric(CUT_OFF), 1.0);

        let address = primary.address();
        let (host, port) = address.rsplit_once(':').unwrap();
        replica.run(&["REPLICAOF", host, port]).await;
        has_lease().await;
        assert!(is_complete().await);
    }
}

#[tokio::test]
async fn password_is_read_again_when_it_is_renewed() {
    let server = Server::start(&[]).await;
    server.run(&["CONFIG", "SET", "requirepass", "new"]).await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("password");
    fs::write(&file, "old\n").unwrap();
    let credentials = json!({"passwordFile": file});
    let change = |spec: &mut FetchrProxySpec| {
        shares(&server, WhenCutOff::Serve)(spec);
        spec.redis.as_mut().unwrap().credentials = serde_json::from_value(credentials).unwrap();
    };
    let site = Site::with(ALL, FIELDS, None, change).await;
    until("a refusal", async || site.proxy.metric("fetchr_cache_purge_log_failures_total") >= 1.0).await;
    assert_eq!(site.proxy.metric(CUT_OFF), 1.0);
    let answer = site.order("secret", r#"{"all": true}"#).await;
    assert_eq!(answer.status, 503, "{}", answer.text());
    fs::write(&file, "new\n").unwrap();
    until("a lease", async || site.proxy.metric(CUT_OFF) == 0.0).await;
    assert_eq!(purge(&site, r#"{"all": true}"#).await["complete"].as_bool(), Some(true));
}

#[tokio::test]
async fn log_is_shared_and_left_as_the_configuration_says() {
    let server = Server::start(&[]).await;
    let other = pod(&server, WhenCutOff::Serve).await;
    let mut site = Site::with(ALL, FIELDS, None, |_| {}).await;
    assert_eq!((site.get("/").await, site.get("/").await), ("answer 1".to_owned(), "answer 1".to_owned()));
    let alone = site.proxy.settings.clone();
    shares(&server, WhenCutOff::Serve)(&mut site.proxy.settings);
    site.proxy.apply(ALL);
    let members = async || {
        let answer = purge(&other, r#"{"tag": "none"}"#).await;
        answer["acknowledged"].as_array().map(Vec::len)
    };
    until("it is a member", async || members().await == Some(2)).await;
    assert_eq!((site.get("/").await, asked(&site)), ("answer 1".to_owned(), 2), "nobody knows what was purged before");
    assert_eq!((site.get("/").await, asked(&site)), ("answer 1".to_owned(), 2));
    purge(&other, r#"{"tag": "news"}"#).await;
    assert_eq!(site.get("/").await, "answer 3");

    site.proxy.settings = alone;
    site.proxy.apply(ALL);
    until("it is none", async || members().await == Some(1)).await;
    site.get("/").await;
    purge(&other, r#"{"tag": "news"}"#).await;
    let before = asked(&site);
    assert_eq!((site.get("/").await, asked(&site)), ("answer 3".to_owned(), before), "it is of others");
    purge(&site, r#"{"tag": "news"}"#).await;
    assert_eq!(site.get("/").await, format!("answer {}", before + 1));
}
