//! What a proxy leaves behind in Redis that is killed (SIGKILL): slots of its requests, and tokens that it had taken ahead.

use std::{
    net::TcpStream,
    thread,
    time::{Duration, Instant, SystemTime},
};

use serde_json::json;

use super::{
    DEADLINE, ask,
    redis_server::Server,
    shared_limits::{Pod, admitted, origin},
};

/// Takes all slots of a limit by requests of a pod.
async fn hold_all(pod: &Pod, redis: &Server, slots: usize) -> Vec<TcpStream> {
    // Requests that have ended give theirs back a little later.
    taken(redis, 0).await;
    let held = (0..slots).map(|_| pod.hold()).collect();
    taken(redis, slots).await;
    held
}

/// Waits until so many slots are taken.
async fn taken(redis: &Server, slots: usize) {
    let deadline = Instant::now() + DEADLINE;
    loop {
        let name = redis.text(&["KEYS", "fetchr:*:s"]).await;
        // Those whose time is over are there until the next request.
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_micros().to_string();
        if redis.run(&["ZCOUNT", &name, &now, "+inf"]).await == redis::Value::Int(i64::try_from(slots).unwrap()) {
            return;
        }
        assert!(Instant::now() < deadline, "{slots} slots are taken");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_that_a_killed_proxy_had_taken_ahead_come_back_and_none_is_spent_twice() {
    const RATE: u32 = 100;
    let (redis, origin) = (Server::start(&[]).await, origin());
    let limits = json!([{"name": "one", "limit": {"requests": RATE, "per": "1s", "burst": RATE}, "scope": "Shared", "accuracy": "Leased"}]);
    let (first, second) = (Pod::start(&redis, origin, &limits), Pod::start(&redis, origin, &limits));
    redis.run(&["FLUSHALL"]).await;
    let begun = Instant::now();
    let of_first = {
        let (address, until) = (first.address, begun + Duration::from_secs(60));
        thread::spawn(move || admitted(address, RATE, until))
    };
    let (_, together) = admitted(second.address, RATE, begun + Duration::from_secs(2));
    let taken = ask(first.sidecar.metrics, "GET /metrics", "").1;
    let taken = taken.lines().find_map(|line| line.strip_prefix("fetchr_ratelimit_lease_tokens_total{use=\"taken\"} "));
    assert!(taken.is_some_and(|taken| taken.parse::<f64>().unwrap() > 0.0), "it takes tokens ahead");
    first.kill();
    let killed = Instant::now();
    let (asked, alone) = admitted(second.address, 2 * RATE, killed + Duration::from_secs(3));
    let time = begun.elapsed().as_secs_f64();
    let (sum, most) = (f64::from(of_first.join().unwrap().1 + together + alone), f64::from(RATE) * (time + 1.0));
    let came = f64::from(RATE) * killed.elapsed().as_secs_f64();
    println!(
        "| killed with tokens taken ahead (`Leased`) | {sum} of {most:.0} | afterwards {alone} of the {came:.0} that came in |"
    );
    assert!(sum <= most, "{sum} of {most}");
    assert!(f64::from(alone) >= 0.75 * came.min(asked.into()), "{alone} of {came}, of {asked} that were asked for");
}

#[tokio::test(flavor = "multi_thread")]
async fn slots_of_a_killed_proxy_are_free_after_fifteen_seconds() {
    const SLOTS: usize = 3;
    let (redis, origin) = (Server::start(&[]).await, origin());
    let limits = json!([{"name": "three", "limit": {"algorithm": "Concurrency", "requests": SLOTS}, "scope": "Shared", "onStoreFailure": "Deny"}]);
    let (first, second) = (Pod::start(&redis, origin, &limits), Pod::start(&redis, origin, &limits));
    let held = hold_all(&first, &redis, SLOTS).await;
    assert_eq!(second.get("/"), 429);
    first.kill();
    let killed = Instant::now();
    let mut denied = 0;
    let free = loop {
        match second.get("/") {
            200 => break killed.elapsed(),
            429 => denied += 1,
            status => panic!("{status}"),
        }
        assert!(killed.elapsed() < Duration::from_secs(60), "they come back");
        thread::sleep(Duration::from_millis(50));
    };
    drop(held);
    // And a little for a machine that is busy.
    assert!(free <= Duration::from_secs(20), "{free:?}");
    let held = hold_all(&second, &redis, SLOTS).await;
    assert_eq!(second.get("/"), 429, "no more than before");
    drop(held);
    println!("| killed with all {SLOTS} slots | {denied} denied | free after {free:.1?} |");
}
