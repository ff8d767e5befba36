//! The clock of a pod steps under load: limits that pods share go by the clock of Redis, windows of the calendar too.

use std::time::{Duration, Instant, SystemTime};

use serde_json::json;

use super::{
    ask, proxy_command,
    redis_server::{Clock, Server},
    shared_limits::{Pod, admitted, origin},
};

/// Of the limit, of which twice as much is asked for: requests in a second, and at once.
const RATE: u32 = 100;
const BURST: u32 = 20;
/// How long a clock shows the same.
const PHASE: Duration = Duration::from_millis(1200);

/// Seconds of the pod's clock ahead of ours, by the `date` of its answers.
fn ahead(pod: &Pod) -> i64 {
    let answer = ask(pod.address, "GET /", "").1;
    let date = answer.lines().find_map(|line| line.strip_prefix("date: ")).unwrap();
    let seconds = |time: SystemTime| time.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs().cast_signed();
    seconds(httpdate::parse_http_date(date).unwrap()) - seconds(SystemTime::now())
}

#[tokio::test(flavor = "multi_thread")]
async fn pod_whose_clock_steps_admits_what_limits_that_pods_share_allow() {
    let (redis, clock, mut command) = (Server::start(&[]).await, Clock::right(), proxy_command());
    clock.give(&mut command);
    let limits = json!([
        {"name": "rate", "limit": {"requests": RATE, "per": "1s", "burst": BURST}, "scope": "Shared"},
        {
            "name": "quota",
            "limit": {"algorithm": "FixedWindow", "requests": 1_000_000, "window": "Hour"},
            "scope": "Shared",
            "onStoreFailure": "Deny",
        },
    ]);
    let pod = Pod::start_by(&mut command, &redis, origin(), &limits);
    let (begun, mut sum) = (Instant::now(), 0);
    for seconds in [0, -3600, 3600, 0] {
        clock.step(seconds);
        assert!((ahead(&pod) - seconds).abs() < 60, "the clock does as it is told: {seconds}");
        let step = Instant::now();
        let (asked, passed) = admitted(pod.address, 2 * RATE, step + PHASE);
        let came = f64::from(RATE) * step.elapsed().as_secs_f64();
        assert!(f64::from(passed) >= 0.8 * came.min(asked.into()), "{passed} of {came} at {seconds}");
        sum += passed;
    }
    let most = f64::from(BURST) + f64::from(RATE) * begun.elapsed().as_secs_f64();
    assert!(f64::from(sum) <= most, "{sum} of {most}");
    println!("| the clock of a pod steps an hour back, two forward and one back | {sum} of {most:.0} |");
}
