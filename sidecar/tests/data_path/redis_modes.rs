//! Purges and shared answers over pods whose Redis has sentinels or is a cluster, while primaries are killed and hang.

use std::{
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use crds::proxy::{FetchrProxySpec, WhenCutOff};
use serde_json::{Value, json};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::{
    purge::Site,
    redis_server::{Cluster, Sentinels, Server},
    support::ms,
};

const ALL: &str = r#"[{"name": "all", "cache": {"tags": {"header": "xkey"}}}]"#;
const FIELDS: &str = "cache-control: max-age=600\r\netag: \"1\"\r\nxkey: news\r\n";
/// What the answers of the second pod's origin are counted from.
const SECOND: usize = 1_000_000;
/// How long a failover may take on a busy machine.
const FAILOVER: Duration = Duration::from_secs(60);

/// The `redis` of a FetchrProxy.
pub(crate) fn by_sentinels(set: &Sentinels) -> Value {
    json!({"mode": "Sentinel", "endpoints": set.endpoints(), "sentinel": {"masterName": "main"}, "commandTimeout": "500ms"})
}

pub(crate) fn by_nodes(cluster: &Cluster) -> Value {
    json!({"mode": "Cluster", "endpoints": cluster.endpoints(), "commandTimeout": "500ms"})
}

/// Two pods that share purges and answers, and know of all purges.
pub(crate) async fn two_pods(redis: &Value) -> [Site; 2] {
    let sites = [pod(redis).await, pod(redis).await];
    sites[1].requests.store(SECOND, Ordering::SeqCst);
    sites
}

async fn pod(redis: &Value) -> Site {
    pod_with(redis, ALL, FIELDS).await
}

async fn pod_with(redis: &Value, rules: &str, fields: &'static str) -> Site {
    let redis = serde_json::from_value(redis.clone()).unwrap();
    let change = |spec: &mut FetchrProxySpec| {
        spec.redis = Some(redis);
        spec.cache.shared = Some(serde_json::from_value(json!({"maxObject": "1Ki"})).unwrap());
        (spec.cache.purge.max_lag, spec.cache.purge.when_cut_off) = (ms(2000), WhenCutOff::Revalidate);
    };
    let site = Site::with(rules, fields, None, change).await;
    connected(&site).await;
    site
}

pub(crate) async fn connected(site: &Site) {
    let deadline = Instant::now() + FAILOVER;
    let is_so =
        || site.proxy.metric("fetchr_cache_shared_connected ") == 1.0 && site.proxy.metric("fetchr_cache_cut_off ") == 0.0;
    while !is_so() {
        assert!(Instant::now() < deadline, "no connection to Redis");
        sleep(Duration::from_millis(10)).await;
    }
}

/// Purges, and returns the answer if it is complete.
pub(crate) async fn purge(site: &Site) -> Option<Value> {
    let mut client = site.admin_client().await;
    client.send(Site::purge_request("secret", r#"{"tag": "news"}"#)).await;
    let answer = client.response_within(Duration::from_secs(30)).await;
    let answer: Option<Value> = (answer.status == 200).then(|| serde_json::from_str(answer.text()).unwrap());
    answer.filter(|answer| answer["complete"].as_bool() == Some(true))
}

/// An answer that one pod got is found by the other, which asks no origin for it. If Redis was not there to write it to, another one is.
pub(crate) async fn share(sites: &[Site; 2], path: &str) {
    let lost = || {
        let count = |result| sites[0].proxy.metric(&format!("fetchr_cache_shared_writes_total{{result=\"{result}\"}}"));
        ["outrun", "dropped", "failed"].map(count).iter().sum::<f64>()
    };
    let deadline = Instant::now() + FAILOVER;
    let mut number = 0;
    loop {
        number += 1;
        let (path, before) = (format!("{path}/{number}"), lost());
        let answer = sites[0].get(&path).await;
        let only = format!("GET {path} HTTP/1.1\r\nhost: a.example\r\ncache-control: only-if-cached\r\n\r\n");
        // Until this write may be one that was lost.
        while lost() == before {
            let found = sites[1].proxy.ask(&only).await;
            if found.status == 200 {
                return assert_eq!(found.text(), answer);
            }
            assert!(Instant::now() < deadline, "{path} did not come to be shared");
            sleep(Duration::from_millis(5)).await;
        }
        assert!(Instant::now() < deadline, "what is written for {path} is lost");
    }
}

/// Purges until so many were complete, and sees that what comes after each of them is from after it. Returns the answers, and how many were
/// not complete.
pub(crate) async fn purge_until(sites: &[Site; 2], wanted: usize) -> (Vec<Value>, usize) {
    let (mut complete, mut incomplete) = (Vec::new(), 0);
    let deadline = Instant::now() + 2 * FAILOVER;
    while complete.len() < wanted {
        assert!(Instant::now() < deadline, "{} purges complete, {incomplete} not", complete.len());
        let before = [0, 1].map(|pod: usize| sites[pod].requests.load(Ordering::SeqCst));
        let Some(answer) = purge(&sites[(complete.len() + incomplete) % 2]).await else {
            incomplete += 1;
            continue;
        };
        complete.push(answer);
        for site in sites {
            let answer = site.get("/").await;
            let number: usize = answer.strip_prefix("answer ").unwrap().parse().unwrap();
            let floor = before[usize::from(number > SECOND)];
            assert!(number > floor, "{number} is from before a purge that was complete; {before:?}");
        }
    }
    (complete, incomplete)
}

/// What clients of both pods see until they are told to stop: answers, how many and how late at most.
async fn traffic(sites: &[Site; 2], stop: &CancellationToken) -> (usize, Duration) {
    let (mut count, mut longest) = (0, Duration::ZERO);
    while !stop.is_cancelled() {
        for site in sites {
            let begun = Instant::now();
            // New ones, too, for which Redis would be looked at.
            for path in ["/".to_owned(), format!("/new/{count}")] {
                assert!(site.get(&path).await.starts_with("answer "), "{path}");
            }
            longest = longest.max(begun.elapsed());
            count += 2;
        }
        sleep(Duration::from_millis(20)).await;
    }
    (count, longest)
}

async fn has_log(server: &Server) -> bool {
    server.is_primary().await && !server.text(&["KEYS", "fetchr:*:log"]).await.is_empty()
}

/// The primary that has the log of purges.
pub(crate) async fn primary_of_log(servers: &[Server]) -> usize {
    for (index, server) in servers.iter().enumerate() {
        if has_log(server).await {
            return index;
        }
    }
    panic!("no primary has the log");
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Fault {
    Kill,
    Hang,
}

async fn outage(redis: &Value, servers: &mut [Server], fault: Fault) {
    let sites = two_pods(redis).await;
    share(&sites, "/before").await;
    let (answers, _) = purge_until(&sites, 2).await;
    for answer in &answers {
        assert_eq!(answer["acknowledged"].as_array().map(Vec::len), Some(2), "{answer}");
    }
    let copies: Vec<u64> = answers.iter().filter_map(|answer| answer["replicas"].as_u64()).collect();
    assert!(copies.iter().all(|copies| *copies <= 1) && copies.contains(&1), "one replica has the log: {answers:?}");

    let lost = primary_of_log(servers).await;
    let stop = CancellationToken::new();
    let work = async {
        match fault {
            Fault::Kill => servers[lost].kill(),
            Fault::Hang => servers[lost].stop(),
        }
        let begun = Instant::now();
        let (_, incomplete) = purge_until(&sites, 1).await;
        // It may have been complete before anybody noticed.
        let deadline = Instant::now() + FAILOVER;
        let is_replaced = async || {
            for (index, server) in servers.iter().enumerate() {
                if index != lost && has_log(server).await {
                    return true;
                }
            }
            false
        };
        while !is_replaced().await {
            assert!(Instant::now() < deadline, "nothing took over");
            sleep(Duration::from_millis(50)).await;
        }
        println!("{fault:?}: purges complete again after {:?}, {incomplete} were not", begun.elapsed());
        purge_until(&sites, 3).await;
        for site in &sites {
            connected(site).await;
        }
        share(&sites, "/after").await;
        if fault == Fault::Hang {
            // It comes back, and believes for a while that it is a primary still.
            servers[lost].go_on();
            let until = Instant::now() + Duration::from_secs(3);
            while Instant::now() < until {
                purge_until(&sites, 1).await;
            }
        }
        stop.cancel();
    };
    let ((), (count, longest)) = tokio::join!(work, traffic(&sites, &stop));
    println!("{fault:?}: {count} requests, the longest two took {longest:?}");
    assert!(longest < Duration::from_secs(8), "{longest:?}");
    assert!(sites[0].proxy.metric(r#"fetchr_redis_looks_total{result="moved"}"#) >= 2.0);
}

#[tokio::test]
async fn pods_follow_the_primary_that_sentinels_promote_when_one_is_killed() {
    let mut set = Sentinels::start().await;
    let redis = by_sentinels(&set);
    outage(&redis, &mut set.servers, Fault::Kill).await;
}

#[tokio::test]
async fn pods_follow_the_primary_that_sentinels_promote_when_one_hangs() {
    let mut set = Sentinels::start().await;
    let redis = by_sentinels(&set);
    outage(&redis, &mut set.servers, Fault::Hang).await;
}

#[tokio::test]
async fn pods_follow_the_replica_that_takes_over_in_a_cluster_when_its_primary_is_killed() {
    let mut cluster = Cluster::start().await;
    let redis = by_nodes(&cluster);
    outage(&redis, &mut cluster.servers, Fault::Kill).await;
}

#[tokio::test]
async fn pods_follow_the_replica_that_takes_over_in_a_cluster_when_its_primary_hangs() {
    let mut cluster = Cluster::start().await;
    let redis = by_nodes(&cluster);
    outage(&redis, &mut cluster.servers, Fault::Hang).await;
}

#[tokio::test]
async fn variants_that_one_pod_fetches_for_all_are_found_in_the_slots_of_a_cluster() {
    let cluster = Cluster::start().await;
    let rules = r#"[{"name": "all", "cache": {"collapse": {"scope": "Cluster", "wait": "60s"}}}]"#;
    let fields = "cache-control: max-age=600\r\nvary: x-a\r\n";
    let redis = by_nodes(&cluster);
    let sites = [pod_with(&redis, rules, fields).await, pod_with(&redis, rules, fields).await];
    let ask = async |site: &Site, path: usize, value: &str| {
        let request = format!("GET /{path} HTTP/1.1\r\nhost: a.example\r\nx-a: {value}\r\n\r\n");
        site.proxy.ask(&request).await.text().to_owned()
    };
    // Keys of all nodes; who waits for a lease that nobody gives back would wait for a minute.
    for path in 0..20 {
        for value in ["1", "2"] {
            let answer = ask(&sites[0], path, value).await;
            assert_eq!(ask(&sites[1], path, value).await, answer, "{path} {value}");
        }
    }
    assert_eq!(sites[1].requests.load(Ordering::SeqCst), 0);
}
