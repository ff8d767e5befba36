//! The store against real servers.

use std::{
    collections::HashSet,
    time::{Duration, Instant as Began},
};

use redis::Value;
use serde_json::json;
use tokio::time::{Instant, sleep};

use super::play::bucket;
use crate::{
    limit::shared::{Charge, Decision, Failure, Fixed, Pass, Rule, Sliding, Slots, Store, Treatment},
    redis::{
        Metrics, Redis, Settings, Slot,
        server::{Cluster, Server},
    },
    tls::Secrets,
};

const PATIENCE: Duration = Duration::from_secs(5);
const HOUR: u64 = 3_600_000_000;

/// What keeps a Redis, and a store of its counts that is connected.
pub(super) async fn store(redis: serde_json::Value, patience: Duration) -> (Redis, Store) {
    let settings = Settings::new(&serde_json::from_value(redis).unwrap(), &Secrets(None)).unwrap();
    let redis = Redis::start(settings, Metrics::default());
    let store = Store::start(&redis, patience);
    until("a connection", async || store.is_connected()).await;
    (redis, store)
}

async fn single(server: &Server) -> (Redis, Store) {
    store(json!({"endpoints": [server.address()]}), PATIENCE).await
}

pub(super) async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let deadline = Began::now() + Duration::from_secs(30);
    while !is_so().await {
        assert!(Began::now() < deadline, "{what}");
        sleep(Duration::from_millis(10)).await;
    }
}

fn enforce(key: &str, rule: Rule) -> Charge<'_> {
    Charge { key, rule, treatment: Treatment::Enforce, cost: 1 }
}

fn daily(burst: u64) -> Rule {
    Rule::Bucket(bucket(1, 86_400, burst))
}

async fn pass(store: &Store, charges: &[Charge<'_>]) -> Pass {
    store.pass(charges, Instant::now() + PATIENCE).await
}

fn remaining(pass: &Pass) -> Vec<Option<u64>> {
    let remaining = |decision: &Decision| if let Decision::Told(verdict) = decision { Some(verdict.remaining) } else { None };
    pass.decisions.iter().map(remaining).collect()
}

/// What remains of a count, without taking anything.
async fn left(store: &Store, key: &str, rule: Rule) -> Option<u64> {
    remaining(&pass(store, &[Charge { cost: 0, ..enforce(key, rule) }]).await)[0]
}

#[tokio::test]
async fn all_kinds_are_charged_at_once_or_none() {
    let server = Server::start(&[]).await;
    let (_redis, store) = single(&server).await;
    let hour = store.now() / HOUR;
    let charges = [
        enforce("fetchr:{p}:bucket", daily(9)),
        enforce("fetchr:{p}:window", Rule::Sliding(Sliding::new(8, Duration::from_secs(3600)).unwrap())),
        enforce("fetchr:{p}:hours", Rule::Fixed(Fixed::new(7, hour * HOUR, (hour + 2) * HOUR, (hour + 3) * HOUR).unwrap())),
        enforce("fetchr:{p}:slots", Rule::Slots(Slots::new(1, Duration::from_secs(60)).unwrap())),
    ];
    let first = pass(&store, &charges).await;
    assert_eq!((first.denied, remaining(&first)), (None, vec![Some(8), Some(7), Some(6), Some(0)]));
    let second = pass(&store, &charges).await;
    assert_eq!((second.denied, remaining(&second)), (Some(3), vec![Some(8), Some(7), Some(6), Some(0)]));
    assert!(second.ticket.is_empty() && !first.ticket.is_empty());
    let held: Vec<_> = first.ticket.held().collect();
    assert_eq!(held.len(), 1);
    held.into_iter().for_each(|held| store.release(held));
    until("the slot is free", async || pass(&store, &charges).await.denied.is_none()).await;
}

#[tokio::test]
async fn a_refund_counts_once() {
    let server = Server::start(&[]).await;
    let (_redis, store) = single(&server).await;
    let charge = [enforce("fetchr:{p}:bucket", daily(9))];
    pass(&store, &charge).await;
    let ticket = pass(&store, &charge).await.ticket;
    (0..3).for_each(|_| store.refund(ticket.clone()));
    until("all are done", async || store.is_idle()).await;
    assert_eq!(left(&store, charge[0].key, daily(9)).await, Some(8));
}

#[tokio::test]
async fn a_script_that_redis_forgot_is_known_again() {
    let server = Server::start(&[]).await;
    let (_redis, store) = single(&server).await;
    for rest in [1, 0] {
        server.run(&["SCRIPT", "FLUSH"]).await;
        let passed = pass(&store, &[enforce("fetchr:{p}:bucket", daily(2))]).await;
        assert_eq!((passed.denied, remaining(&passed)), (None, vec![Some(rest)]));
    }
}

#[tokio::test]
async fn every_count_expires() {
    let server = Server::start(&[]).await;
    let (_redis, store) = single(&server).await;
    let hour = store.now() / HOUR;
    let minute = Duration::from_secs(60);
    let short = bucket(1, 60, 3);
    let charges = [
        enforce("fetchr:{p}:a", Rule::Bucket(short)),
        enforce("fetchr:{p}:b", Rule::Sliding(Sliding::new(8, minute).unwrap())),
        enforce("fetchr:{p}:c", Rule::Fixed(Fixed::new(7, hour * HOUR, (hour + 2) * HOUR, (hour + 3) * HOUR).unwrap())),
        enforce("fetchr:{p}:d", Rule::Slots(Slots::new(4, minute).unwrap())),
    ];
    store.refund(pass(&store, &charges[..1]).await.ticket);
    pass(&store, &charges).await;
    store.lease("fetchr:{p}:a", &short, None, 1, minute).await.unwrap();
    until("the refund is done", async || store.is_idle()).await;
    let names = server.text(&["KEYS", "*"]).await;
    let mut counts = 0;
    for name in names.split(' ') {
        let Value::Int(left) = server.run(&["PTTL", name]).await else { panic!("{name}") };
        // With a second more.
        let most = match name.trim_start_matches("fetchr:{p}:") {
            "a:b" => 121_000,
            "a:l" | "d:s" => 61_000,
            "b:w60000000" => 121_000,
            "c:f" => 7_201_000,
            _ => 60_000,
        };
        assert!((1..=most).contains(&left), "{name}: {left}");
        counts += 1;
    }
    assert_eq!(counts, 6, "{names}");
}

#[tokio::test]
async fn leases_end_and_begin_in_one_call() {
    let server = Server::start(&[]).await;
    let (_redis, store) = single(&server).await;
    let (key, rule, term) = ("fetchr:{p}:bucket", bucket(1, 86_400, 10), Duration::from_secs(60));
    let began = Instant::now();
    let first = store.lease(key, &rule, None, 4, term).await.unwrap();
    let lease = first.lease.unwrap();
    assert_eq!((lease.tokens, first.verdict.remaining), (4, 6));
    assert!((began + term..=Instant::now() + term).contains(&lease.ends));
    let second = store.lease(key, &rule, Some((lease, 3)), 100, term).await.unwrap();
    assert_eq!((second.lease.unwrap().tokens, second.verdict.remaining, second.verdict.allowed), (9, 0, false));
    let third = store.lease(key, &rule, None, 1, term).await.unwrap();
    assert_eq!(third.lease, None);
}

#[tokio::test]
async fn windows_of_another_time_are_told_and_known_then() {
    let server = Server::start(&[]).await;
    let (_redis, store) = single(&server).await;
    let days =
        |now: u64| Rule::Fixed(Fixed::new(7, now / HOUR * HOUR, (now / HOUR + 1) * HOUR, (now / HOUR + 2) * HOUR).unwrap());
    let wrong = pass(&store, &[enforce("fetchr:{p}:a", daily(2)), enforce("fetchr:{p}:b", days(store.now() - 5 * HOUR))]).await;
    assert_eq!(wrong.decisions[..], [Decision::Failed(Failure::Window), Decision::Failed(Failure::Window)]);
    assert_eq!(left(&store, "fetchr:{p}:a", daily(2)).await, Some(2), "nothing was charged");
    let right = pass(&store, &[enforce("fetchr:{p}:b", days(store.now()))]).await;
    assert_eq!(remaining(&right), [Some(6)]);
}

#[tokio::test]
async fn failures_are_told_apart_and_are_no_denials() {
    let mut server = Server::start(&["--maxmemory-policy", "noeviction"]).await;
    let (_redis, store) = store(json!({"endpoints": [server.address()]}), Duration::from_millis(200)).await;
    let charge = [enforce("fetchr:{p}:bucket", daily(100))];
    let failed = async || match pass(&store, &charge).await {
        Pass { denied: None, decisions, ticket } if ticket.is_empty() => match decisions[..] {
            [Decision::Failed(failure)] => failure,
            _ => panic!("{decisions:?}"),
        },
        other => panic!("{other:?}"),
    };
    pass(&store, &charge).await;
    server.run(&["CONFIG", "SET", "maxmemory", "1"]).await;
    // What persists is not asked for by each request.
    for _ in 0..100 {
        assert_eq!(failed().await, Failure::Full);
    }
    let errors = server.text(&["INFO", "errorstats"]).await;
    let asked = errors.lines().find_map(|line| line.strip_prefix("errorstat_OOM:count=")).unwrap();
    assert!(asked.parse::<u32>().unwrap() < 10, "{errors}");
    server.run(&["ACL", "SETUSER", "default", "-evalsha"]).await;
    server.run(&["CONFIG", "SET", "maxmemory", "0"]).await;
    until("it is forbidden", async || failed().await == Failure::Forbidden).await;
    server.run(&["LPUSH", "fetchr:{p}:foreign:b", "foreign"]).await;
    server.run(&["RENAME", "fetchr:{p}:foreign:b", "fetchr:{p}:bucket:b"]).await;
    server.run(&["ACL", "SETUSER", "default", "+evalsha"]).await;
    until("it is an error", async || failed().await == Failure::Error).await;
    server.run(&["DEL", "fetchr:{p}:bucket:b"]).await;
    server.stop();
    let began = Began::now();
    assert_eq!(failed().await, Failure::Late);
    assert!(began.elapsed() >= Duration::from_millis(200));
    server.go_on();
    until("it answers", async || pass(&store, &charge).await.decisions.iter().all(|d| matches!(d, Decision::Told(_)))).await;
    server.kill();
    until("it is away", async || failed().await == Failure::Away).await;
}

#[tokio::test]
async fn a_pass_ends_when_its_time_is_over() {
    let server = Server::start(&[]).await;
    let (_redis, store) = single(&server).await;
    let late = store.pass(&[enforce("fetchr:{p}:bucket", daily(2))], Instant::now()).await;
    assert_eq!(late.decisions[..], [Decision::Failed(Failure::Late)]);
}

/// Keys of one limit that three primaries have.
fn spread() -> Vec<String> {
    let mut seen = HashSet::new();
    let keys = (0..).map(|number| format!("fetchr:{{{number}}}:a"));
    keys.filter(|key| seen.insert(format!("{:?}", Slot::of(key)))).take(12).collect()
}

#[tokio::test]
async fn groups_of_a_cluster_are_refunded_when_a_later_one_denies() {
    let cluster = Cluster::start().await;
    let (_redis, store) = store(json!({"mode": "Cluster", "endpoints": cluster.endpoints()}), PATIENCE).await;
    let keys = spread();
    let wide: Vec<Charge<'_>> = keys[..11].iter().map(|key| enforce(key, daily(50))).collect();
    let mut charges = wide.clone();
    charges.insert(0, Charge { treatment: Treatment::Shadow, ..enforce("fetchr:{shadow}:a", daily(50)) });
    charges.push(enforce(&keys[11], daily(1)));
    store.refund(pass(&store, &charges).await.ticket);
    for charge in &charges {
        let full = if let Rule::Bucket(bucket) = charge.rule { bucket.burst() } else { 0 };
        until("all is refunded", async || left(&store, charge.key, charge.rule).await == Some(full)).await;
    }
    let first = pass(&store, &charges).await;
    assert_eq!((first.denied, remaining(&first)[..2].to_vec()), (None, vec![Some(49), Some(49)]));
    let second = pass(&store, &charges).await;
    assert_eq!(second.denied, Some(12));
    assert_eq!(remaining(&second)[1..12], [Some(49); 11]);
    assert_eq!(second.decisions[0], Decision::Skipped, "what denies nothing comes last");
    for charge in &wide {
        until("it is refunded", async || left(&store, charge.key, charge.rule).await == Some(49)).await;
    }
}

#[tokio::test]
async fn what_earlier_groups_were_charged_goes_back_when_nobody_waits_any_more() {
    let cluster = Cluster::start().await;
    let (_redis, store) = store(json!({"mode": "Cluster", "endpoints": cluster.endpoints()}), PATIENCE).await;
    // Slot 15495 is of the third node, 3300 of the first.
    let charges = [enforce("fetchr:{a}:x", daily(50)), enforce("fetchr:{b}:x", daily(50))];
    cluster.servers[0].stop();
    let until_later = Instant::now() + PATIENCE;
    let dropped = tokio::time::timeout(Duration::from_millis(300), store.pass(&charges, until_later)).await;
    cluster.servers[0].go_on();
    assert!(dropped.is_err());
    until("it is refunded", async || store.is_idle() && left(&store, charges[0].key, charges[0].rule).await == Some(50)).await;
    // A refund is remembered beside the count.
    let names = cluster.servers[2].text(&["KEYS", "*"]).await;
    assert!(names.contains("fetchr:{a}:x:b:"), "it was charged before: {names}");
}

#[tokio::test]
async fn clients_together_get_the_burst_and_no_more() {
    let server = Server::start(&[]).await;
    let (_redis, store) = single(&server).await;
    let one = async || {
        let mut allowed = 0;
        for _ in 0..40 {
            allowed += u32::from(pass(&store, &[enforce("fetchr:{p}:bucket", daily(100))]).await.denied.is_none());
        }
        allowed
    };
    let all: u32 = futures::future::join_all((0..5).map(|_| one())).await.into_iter().sum();
    assert_eq!(all, 100);
}
