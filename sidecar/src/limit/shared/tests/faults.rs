//! What the store does while Redis fails, at 1,000 passes a second: `cargo test -p fetchr-sidecar --lib limit::shared::tests::faults -- --ignored
//! --nocapture` prints a table.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::{Duration, Instant as Began},
};

use serde_json::json;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};

use super::{
    play::bucket,
    store::{store, until},
};
use crate::{
    limit::shared::{Charge, Decision, Rule, Store, Treatment},
    redis::server::Server,
};

/// As a FetchrProxy has it by default.
const PATIENCE: Duration = Duration::from_millis(20);
/// From the fault on, after which requests are not to notice it.
const NOTICED: Duration = Duration::from_millis(60);
/// How long a fault is there.
const FAULT: Duration = Duration::from_secs(2);
const RATE: u64 = 500;

/// A pass: when it began, how long it took, and what came of it.
type Seen = (Began, Duration, &'static str);

/// Offers a pass each millisecond until it is dropped.
struct Load {
    seen: Arc<Mutex<Vec<Seen>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Load {
    fn start(store: &Store) -> Self {
        let (store, seen) = (store.clone(), Arc::<Mutex<Vec<Seen>>>::default());
        let kept = Arc::clone(&seen);
        let task = tokio::spawn(async move {
            let mut due = interval(Duration::from_millis(1));
            due.set_missed_tick_behavior(MissedTickBehavior::Burst);
            loop {
                due.tick().await;
                let (store, kept) = (store.clone(), Arc::clone(&kept));
                tokio::spawn(async move {
                    let begun = Began::now();
                    let came = one(&store).await;
                    kept.lock().unwrap().push((begun, begun.elapsed(), came));
                });
            }
        });
        Self { seen, task }
    }

    /// Those that began in a time, with their counts by what came of them, and the 99th percentile of their lengths.
    fn between(&self, from: Began, to: Began) -> (BTreeMap<&'static str, usize>, Duration) {
        let seen = self.seen.lock().unwrap();
        let (mut counts, mut times) = (BTreeMap::new(), Vec::new());
        for (_, time, came) in seen.iter().filter(|(begun, ..)| (from..to).contains(begun)) {
            *counts.entry(*came).or_default() += 1;
            times.push(*time);
        }
        times.sort_unstable();
        (counts, times.get((times.len() * 99 / 100).min(times.len().saturating_sub(1))).copied().unwrap_or_default())
    }

    /// Passes from then on that took half of the patience or longer.
    fn slow(&self, from: Began) -> usize {
        self.seen.lock().unwrap().iter().filter(|(begun, time, _)| *begun >= from && *time >= PATIENCE / 2).count()
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn one(store: &Store) -> &'static str {
    let rule = Rule::Bucket(bucket(RATE, 1, RATE));
    let charge = [Charge { key: "fetchr:{p}:load", rule, treatment: Treatment::Enforce, cost: 1 }];
    match store.pass(&charge, Instant::now() + PATIENCE).await.decisions[0] {
        Decision::Told(verdict) if verdict.allowed => "allowed",
        Decision::Told(_) => "denied",
        Decision::Failed(failure) => failure.label(),
        Decision::Skipped => "skipped",
    }
}

async fn is_told(store: &Store) -> bool {
    matches!(one(store).await, "allowed" | "denied")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_hangs_keeps_few_requests_waiting_whatever_their_rate() {
    let server = Server::start(&[]).await;
    let (_redis, store) = store(json!({"endpoints": [server.address()]}), PATIENCE).await;
    let (load, begun) = (Load::start(&store), Began::now());
    until("passes are decided", async || load.between(begun, Began::now()).0.contains_key("allowed")).await;
    let fault = Began::now();
    server.stop();
    sleep(FAULT).await;
    let slow = load.slow(fault + NOTICED);
    let (counts, _) = load.between(fault, Began::now());
    server.go_on();
    let asked: usize = counts.values().sum();
    // By each it would be all of them; a machine that is busy keeps some waiting.
    assert!(slow <= asked / 5, "{slow} of {asked} waited: {counts:?}");
    assert!(counts.get("away").is_some_and(|away| *away > asked / 2), "{counts:?}");
    until("it is asked again", async || is_told(&store).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "prints figures"]
async fn what_faults_cost() {
    println!(
        "| fault, for 2 s | what the store said of 1,000 passes a second | passes that waited 10 ms or longer | p99 from 60 ms on, before | decides again after |"
    );
    println!("| --- | --- | --- | --- | --- |");
    let command = |server: &Server, words: &[&str]| {
        let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        let client = server.client();
        async move {
            let mut connection = client.get_multiplexed_async_connection().await.unwrap();
            let _: redis::RedisResult<redis::Value> = redis::cmd(&words[0]).arg(&words[1..]).query_async(&mut connection).await;
        }
    };
    for fault in [
        "killed, back empty",
        "hangs",
        "sleeps 10 ms, 50 times a second",
        "full, noeviction",
        "a read-only replica",
        "ACL denied",
        "scripts flushed, 50 times a second",
    ] {
        let mut server = Server::start(&["--maxmemory-policy", "noeviction", "--enable-debug-command", "yes"]).await;
        let (_redis, store) = store(json!({"endpoints": [server.address()]}), PATIENCE).await;
        let load = Load::start(&store);
        let before = Began::now();
        sleep(FAULT).await;
        let began = Began::now();
        let (_, usual) = load.between(before + FAULT / 2, began);
        match fault {
            "killed, back empty" => server.kill(),
            "hangs" => server.stop(),
            "full, noeviction" => command(&server, &["CONFIG", "SET", "maxmemory", "1"]).await,
            "a read-only replica" => command(&server, &["REPLICAOF", "127.0.0.1", "1"]).await,
            "ACL denied" => command(&server, &["ACL", "SETUSER", "default", "-evalsha", "-eval"]).await,
            _ => {}
        }
        let again: &[&str] = if fault.starts_with("sleeps") { &["DEBUG", "SLEEP", "0.01"] } else { &["SCRIPT", "FLUSH"] };
        while began.elapsed() < FAULT {
            if fault.ends_with("a second") {
                command(&server, again).await;
            }
            sleep(Duration::from_millis(20)).await;
        }
        let ended = Began::now();
        let ((counts, _), (_, p99)) = (load.between(began, ended), load.between(began + NOTICED, ended));
        let slow = load.slow(began);
        match fault {
            "killed, back empty" => server.restart().await,
            "hangs" => server.go_on(),
            "full, noeviction" => command(&server, &["CONFIG", "SET", "maxmemory", "0"]).await,
            "a read-only replica" => command(&server, &["REPLICAOF", "NO", "ONE"]).await,
            "ACL denied" => command(&server, &["ACL", "SETUSER", "default", "+@all"]).await,
            _ => {}
        }
        let mended = Began::now();
        until("it decides again", async || is_told(&store).await).await;
        let said: Vec<String> = counts.iter().map(|(came, count)| format!("{count} {came}")).collect();
        println!(
            "| {fault} | {} | {slow} | {:.1} ms, {:.1} ms | {:.1} s |",
            said.join(", "),
            ms(p99),
            ms(usual),
            mended.elapsed().as_secs_f64()
        );
    }
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// Ten stores, which offer twice the rate for so long: the burst is a tenth of a second's. Of ten passes the first store makes so many.
async fn admitted(share: usize, lasts: Duration) -> (usize, f64) {
    let server = Server::start(&[]).await;
    let mut stores = Vec::new();
    for _ in 0..10 {
        stores.push(store(json!({"endpoints": [server.address()]}), Duration::from_secs(5)).await);
    }
    let charge = async |store: &Store| {
        let rule = Rule::Bucket(bucket(RATE, 1, RATE / 10));
        let charge = [Charge { key: "fetchr:{p}:load", rule, treatment: Treatment::Enforce, cost: 1 }];
        let pass = store.pass(&charge, Instant::now() + Duration::from_secs(5)).await;
        assert!(matches!(pass.decisions[0], Decision::Told(_)), "{:?}", pass.decisions);
        usize::from(pass.denied.is_none())
    };
    let (begun, mut due, mut allowed, mut number) = (Began::now(), interval(Duration::from_millis(10)), 0, 0);
    while begun.elapsed() < lasts {
        due.tick().await;
        let ten = (0..10).map(|turn| if turn < share { &stores[0].1 } else { &stores[1 + (number + turn) % 9].1 });
        allowed += futures::future::join_all(ten.map(charge)).await.into_iter().sum::<usize>();
        number += 10;
    }
    (allowed, RATE as f64 * begun.elapsed().as_secs_f64() + RATE as f64 / 10.0)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_pods_are_together_near_the_rate_and_never_above_it() {
    for share in [1, 9] {
        let (allowed, most) = admitted(share, Duration::from_secs(4)).await;
        println!("{share} of 10 by one pod: {allowed} of {most:.0} at most");
        assert!(allowed as f64 <= most && allowed as f64 >= most * 0.9, "{share}: {allowed} of {most}");
    }
}
