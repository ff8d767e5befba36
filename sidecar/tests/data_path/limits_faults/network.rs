//! A network that is slow, and that breaks, between a pod and its Redis.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::{
    limits_shared::{Pods, counts_in_redis, decided, failed},
    redis_server::Server,
    relay::{Faults, Lane, Relay},
};

/// How long a command may take.
const PATIENCE: Duration = Duration::from_millis(500);

const REASONS: [&str; 3] = ["away", "late", "error"];

/// What clients saw of one fault, of a limit of which 3 remained.
struct Case {
    what: &'static str,
    faults: Faults,
    /// Whether open connections are reset.
    cuts: bool,
    /// Why Redis did not decide; none if it did.
    reasons: &'static [&'static str],
}

fn delay(time: Duration) -> Faults {
    Faults { down: Lane { delay: time, ..Lane::default() }, ..Faults::default() }
}

async fn play(case: Case) {
    let Case { what, faults, cuts, reasons } = case;
    let server = Server::start(&[]).await;
    let relay = Relay::start(server.address().parse().unwrap()).await.unwrap();
    let redis = json!({"endpoints": [relay.address().to_string()], "commandTimeout": format!("{}ms", PATIENCE.as_millis())});
    let pods = Pods::start(1, &redis, &json!({})).await;
    let proxy = &pods.proxies[0];
    pods.spend("/five", 2).await;
    let before = decided(proxy, "five", "allow", "store");
    let reasons_before = REASONS.map(|reason| failed(proxy, reason));
    relay.set(faults);
    if cuts {
        relay.cut();
    }
    let begun = Instant::now();
    assert_eq!(pods.passed("/five", 10).await, 3, "{what}: as many as remained");
    let took = begun.elapsed();
    assert!(took < PATIENCE * 5, "{what}: nobody waits longer than for a command: {took:?}");
    let by_store = decided(proxy, "five", "allow", "store") - before;
    assert_eq!(by_store > 0.0, reasons.is_empty(), "{what}: {by_store}");
    let counted = REASONS.into_iter().zip(reasons_before).filter(|(reason, before)| failed(proxy, reason) > *before);
    let counted: Vec<_> = counted.map(|(reason, _)| reason).collect();
    assert!(counted.iter().any(|reason| reasons.contains(reason)) != reasons.is_empty(), "{what}: {counted:?}");
    relay.set(Faults::default());
    let mended = Instant::now();
    counts_in_redis(proxy).await;
    let right = mended.elapsed();
    // Of what the pod admitted by itself Redis does not know.
    let more = pods.passed("/five", 10).await;
    assert!(more <= 3, "{what}: {more}");
    println!(
        "| {what} | 200 and 429, all of ten within {took:.1?}; {counted:?} | 5 / 5, and {more} more afterwards | {right:.1?} |"
    );
}

#[tokio::test]
async fn network_that_is_slow_or_breaks_costs_clients_one_time_limit_and_no_errors() {
    let up = Lane { blackhole: true, ..Lane::default() };
    let cases = [
        Case { what: "answers 125 ms late", faults: delay(PATIENCE / 4), cuts: false, reasons: &[] },
        Case { what: "answers 1.5 s late", faults: delay(PATIENCE * 3), cuts: false, reasons: &["late", "away"] },
        Case {
            what: "connections reset",
            faults: Faults { refuse: true, ..Faults::default() },
            cuts: true,
            reasons: &["away", "error"],
        },
        Case { what: "black hole", faults: Faults { up, ..Faults::default() }, cuts: false, reasons: &["late", "away"] },
    ];
    for case in cases {
        play(case).await;
    }
}
