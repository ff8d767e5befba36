//! Primaries that change under load: by sentinels, slot by slot in a cluster, and two at the same time.

use std::{env, time::Duration};

use serde_json::{Value, json};
use tokio::time::{Instant, sleep, sleep_until};

use super::clients::{Answers, Load, percent};
use crate::{
    limits_shared::{BURST, Pods, RATE, ask, counts_in_redis, failed, rules},
    redis_modes::{by_nodes, by_sentinels},
    redis_server::{Cluster, Sentinels, Server},
    support::Proxy,
};

/// How long a failover may take on a busy machine.
const FAILOVER: Duration = Duration::from_secs(60);
/// Requests a second: twice what the limit allows.
const OFFERED: usize = 2 * RATE as usize;
/// Pods.
const PODS: usize = 2;

fn load(_: usize) -> String {
    "/load".to_owned()
}

async fn within(time: Duration, what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + time;
    while !holds().await {
        assert!(Instant::now() < deadline, "{what}");
        sleep(Duration::from_millis(10)).await;
    }
}

fn failures(pods: &Pods) -> String {
    let reasons = ["away", "replica", "loading", "unsafe", "cluster", "late", "error"];
    let sum = |reason: &str| pods.proxies.iter().map(|proxy| failed(proxy, reason)).sum::<f64>();
    let counted = reasons.map(|reason| (reason, sum(reason)));
    counted.iter().filter(|(_, sum)| *sum > 0.0).map(|(reason, sum)| format!("{sum} {reason}")).collect::<Vec<_>>().join(", ")
}

/// Names of counts that only a pod asks for that is asked here. They are there for a second.
async fn warm(server: &Server) -> usize {
    server.text(&["KEYS", "fetchr:*:warm/warm:*"]).await.split_ascii_whitespace().count()
}

/// Waits until this server decides the limits of pods, and no other that they follow.
async fn decides(server: &Server, pods: &[Proxy]) {
    for proxy in pods {
        within(FAILOVER, "the pod asks it", async || {
            if !server.is_primary().await {
                return false;
            }
            let before = warm(server).await;
            assert_eq!(ask(proxy, &format!("/warm?pod={}", fastrand::u64(..))).await.status, 200);
            warm(server).await > before
        })
        .await;
    }
}

/// Sentinels replace a primary that is well, again and again, with so long from one time to the next. Returns what clients saw, and how long it took
/// each time until all pods had found the new one.
async fn failovers(times: usize, every: Duration) -> (Answers, Vec<Duration>, String) {
    let set = Sentinels::start().await;
    let pods = Pods::start(PODS, &by_sentinels(&set), &json!({})).await;
    let clients = Load::start(&pods, OFFERED, load).await;
    let (mut primary, mut took) = (0, Vec::new());
    for _ in 0..times {
        let others = &set.servers[1 - primary];
        within(FAILOVER, "there is one that can take over", async || {
            let replication = others.text(&["INFO", "replication"]).await;
            replication.contains("role:slave") && replication.contains("master_link_status:up")
        })
        .await;
        let mut begun = Instant::now();
        within(FAILOVER, "a sentinel begins", async || {
            begun = Instant::now();
            set.sentinels[0].text(&["SENTINEL", "FAILOVER", "main"]).await == "OK"
        })
        .await;
        decides(others, &pods.proxies).await;
        took.push(begun.elapsed());
        primary = 1 - primary;
        sleep_until(begun + every).await;
    }
    for proxy in &pods.proxies {
        counts_in_redis(proxy).await;
    }
    let failures = failures(&pods);
    (clients.end().await, took, failures)
}

fn tell(what: &str, answers: &Answers, took: &[Duration], failures: &str) {
    let mut took = took.to_vec();
    took.sort_unstable();
    println!(
        "| {what} | {:?}, the longest after {:.1?}; {failures} | {:.1} % of what the limit allows | p50 {:.1?}, max {:.1?} |",
        answers.statuses(),
        answers.longest(),
        percent(answers.admitted()),
        took[took.len() / 2],
        took[took.len() - 1],
    );
}

/// By what the limit allows; for each time a bucket more, which the new primary had while pods decided by themselves; and, from when the first pod
/// has found it until the last has, what is the share of those that have not.
fn hold(answers: &Answers, took: &[Duration]) {
    answers.are_no_errors();
    let (admitted, most) = answers.admitted();
    let shares = f64::from(RATE) / PODS as f64 * took.iter().sum::<Duration>().as_secs_f64();
    assert!(admitted <= most + f64::from(BURST) * took.len() as f64 + shares, "{admitted} of {most}");
    assert!(admitted >= 0.7 * most, "{admitted} of {most}");
}

#[tokio::test]
async fn failover_of_sentinels_is_no_error_and_little_more_than_a_bucket() {
    let (answers, took, failures) = failovers(1, Duration::from_secs(2)).await;
    tell("failover by sentinels, once", &answers, &took, &failures);
    hold(&answers, &took);
}

/// `FAILOVERS` times, `FAILOVER_SECONDS` from one to the next.
#[tokio::test]
#[ignore = "takes minutes"]
async fn failovers_of_sentinels_again_and_again_are_no_errors() {
    let number = |name: &str, default: u64| env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default);
    let (times, every) = (number("FAILOVERS", 6), number("FAILOVER_SECONDS", 30));
    let (answers, took, failures) = failovers(usize::try_from(times).unwrap(), Duration::from_secs(every)).await;
    tell(&format!("failover by sentinels, {times} times, every {every} s"), &answers, &took, &failures);
    hold(&answers, &took);
}

/// Moves a slot with all its keys, as `redis-cli --cluster reshard` does, and returns how many keys these were.
async fn move_slot(cluster: &Cluster, slot: &str, from: usize, to: usize) -> usize {
    let (from, to) = (&cluster.servers[from], &cluster.servers[to]);
    let (from_id, to_id) = (from.text(&["CLUSTER", "MYID"]).await, to.text(&["CLUSTER", "MYID"]).await);
    to.run(&["CLUSTER", "SETSLOT", slot, "IMPORTING", &from_id]).await;
    from.run(&["CLUSTER", "SETSLOT", slot, "MIGRATING", &to_id]).await;
    let address = to.address();
    let (host, port) = address.split_once(':').unwrap();
    let mut moved = 0;
    loop {
        let keys = from.text(&["CLUSTER", "GETKEYSINSLOT", slot, "2"]).await;
        let keys: Vec<&str> = keys.split_ascii_whitespace().collect();
        if keys.is_empty() {
            break;
        }
        moved += keys.len();
        from.run(&[&["MIGRATE", host, port, "", "0", "5000", "KEYS"], &keys[..]].concat()).await;
        // Requests find it half moved for a while.
        sleep(Duration::from_millis(20)).await;
    }
    for server in [to, from].into_iter().chain(&cluster.servers[..3]) {
        server.run(&["CLUSTER", "SETSLOT", slot, "NODE", &to_id]).await;
    }
    moved
}

#[tokio::test]
async fn slot_that_is_moved_under_load_denies_nobody_and_is_no_error() {
    let cluster = Cluster::start().await;
    let pods = Pods::start(PODS, &by_nodes(&cluster), &json!({})).await;
    // All counts of a policy are in one slot.
    let mut home = None;
    for (index, server) in cluster.servers[..3].iter().enumerate() {
        let names = server.text(&["KEYS", "fetchr:*"]).await;
        if let Some(name) = names.split_ascii_whitespace().next() {
            home = Some((index, server.text(&["CLUSTER", "KEYSLOT", name]).await));
        }
    }
    let (mut at, slot) = home.expect("a server has the counts");
    let (tight, wide) =
        (Load::start(&pods, OFFERED, load).await, Load::start(&pods, 200, |number| format!("/each?k={}", number % 40)).await);
    let (mut keys, mut took) = (0, Vec::new());
    for _ in 0..3 {
        let (begun, next) = (Instant::now(), (at + 1) % 3);
        keys += move_slot(&cluster, &slot, at, next).await;
        decides(&cluster.servers[next], &pods.proxies).await;
        took.push(begun.elapsed());
        at = next;
    }
    for proxy in &pods.proxies {
        counts_in_redis(proxy).await;
    }
    let (tight, wide) = (tight.end().await, wide.end().await);
    tell(&format!("a slot of a cluster moved three times, {keys} keys"), &tight, &took, &failures(&pods));
    tight.are_no_errors();
    let denied = wide.statuses().into_iter().filter(|(status, _)| *status != 200).collect::<Vec<_>>();
    assert!(denied.is_empty(), "a limit that is not reached denies nobody: {denied:?}");
    let (admitted, most) = tight.admitted();
    assert!(admitted <= most + f64::from(BURST) * 3.0 && admitted >= 0.7 * most, "{admitted} of {most}");
}

/// The `redis` of pods that reach only some of the sentinels.
fn reaching(sentinels: &[Server]) -> Value {
    let endpoints: Vec<_> = sentinels.iter().map(Server::address).collect();
    json!({"mode": "Sentinel", "endpoints": endpoints, "sentinel": {"masterName": "main"}, "commandTimeout": "500ms"})
}

#[tokio::test]
async fn primary_that_is_cut_off_and_goes_on_doubles_a_limit_at_most_and_only_until_that_is_over() {
    let set = Sentinels::start().await;
    let (old, new) = (&set.servers[0], &set.servers[1]);
    let mut pods = Pods::start(4, &reaching(&set.sentinels[..2]), &json!({})).await;
    for proxy in &mut pods.proxies[2..] {
        proxy.settings.redis = Some(serde_json::from_value(reaching(&set.sentinels[2..])).unwrap());
        proxy.apply_as_one_of(4, &rules(&json!({})));
    }
    decides(old, &pods.proxies).await;
    // With two of the pods it is on the wrong side: the sentinel of these pods says nothing, and the others can't tell it what to do.
    set.sentinels[2].stop();
    old.run(&["ACL", "SETUSER", "default", "-replicaof", "-slaveof"]).await;
    assert_eq!(set.sentinels[0].text(&["SENTINEL", "FAILOVER", "main"]).await, "OK");
    decides(new, &pods.proxies[..2]).await;
    decides(old, &pods.proxies[2..]).await;
    let clients = Load::start(&pods, 2 * OFFERED, load).await;
    sleep(Duration::from_secs(2)).await;
    let split = clients.end().await;
    split.are_no_errors();
    let (admitted, most) = split.admitted();
    assert!(admitted <= 2.0 * most && admitted >= 1.4 * most, "{admitted}, of {most} by each");
    let clients = Load::start(&pods, 2 * OFFERED, load).await;
    old.run(&["ACL", "SETUSER", "default", "+@all"]).await;
    set.sentinels[2].go_on();
    let begun = Instant::now();
    decides(new, &pods.proxies).await;
    let (healed, took) = (Instant::now(), begun.elapsed());
    sleep(Duration::from_secs(2)).await;
    let one_again = clients.end().await;
    one_again.are_no_errors();
    let after = one_again.admitted_from(healed, BURST);
    assert!(after.0 <= after.1 && after.0 >= 0.7 * after.1, "{after:?}");
    println!(
        "| the old primary goes on, half of four pods with it | {:?}, the longest after {:.1?} | {:.1} % while it lasts, {:.1} % from then on | {took:.1?} |",
        split.statuses(),
        split.longest().max(one_again.longest()),
        percent((admitted, most)),
        percent(after),
    );
}
