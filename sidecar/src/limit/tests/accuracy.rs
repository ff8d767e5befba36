//! How exact a limit is over ten pods: `LIMIT_SECONDS=60 cargo test -p fetchr-sidecar --lib limit::tests::accuracy -- --ignored --nocapture`.
//! Limiters of ten pods and a real Redis; requests come by the clock. A short run of it is in every test.

use std::time::Duration;

use crds::policy::rate_limits::Accuracy;
use futures::future::join_all;
use serde_json::json;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};

use super::{Client, Limits, RateLimit, SECOND};
use crate::{
    limit::{Limiter, Scope, StoreSettings},
    redis::{Metrics, Redis, Settings, server::Server},
    route::Routes,
    tls::Secrets,
};

const PODS: usize = 10;
/// Requests in a second that come, and that are allowed.
const OFFERED: f64 = 1000.0;
const RATE: u32 = 500;

/// How requests come to the pods.
#[derive(Clone, Copy, Debug)]
enum Load {
    Even,
    /// Nine tenths to one pod.
    Uneven,
    /// To five pods for a third of the time, then to ten, then to other five.
    Moving,
}

#[derive(Debug)]
struct Seen {
    asked: f64,
    passed: f64,
    seconds: f64,
    /// Commands that Redis has run for it.
    commands: f64,
}

impl Load {
    /// Requests in a second to a pod, after this part of the time.
    fn of(self, pod: usize, part: f64) -> f64 {
        let active = |first: usize, last: usize| if (first..last).contains(&pod) { OFFERED / (last - first) as f64 } else { 0.0 };
        match self {
            Self::Even => active(0, PODS),
            Self::Uneven if pod == 0 => 0.9 * OFFERED,
            Self::Uneven => 0.1 * OFFERED / (PODS - 1) as f64,
            Self::Moving if part < 1.0 / 3.0 => active(0, 5),
            Self::Moving if part < 2.0 / 3.0 => active(0, 10),
            Self::Moving => active(5, 10),
        }
    }
}

/// Plays a load on ten pods that share one limit.
async fn play(accuracy: Accuracy, load: Load, time: Duration) -> Seen {
    let server = Server::start(&[]).await;
    let settings =
        Settings::new(&serde_json::from_value(json!({"endpoints": [server.address()]})).unwrap(), &Secrets(None)).unwrap();
    let redis = Redis::start(settings, Metrics::default());
    let limit = crds::policy::rate_limits::Limit::bucket(RATE.into(), SECOND, None);
    let limits = Limits::of(vec![RateLimit { scope: Scope::Shared, accuracy, ..RateLimit::new("one", limit) }]);
    // A compiled limit counts its decisions for one pod.
    let pods: Vec<_> = (0..PODS).map(|_| (Limiter::default(), limits.routes())).collect();
    for (pod, _) in &pods {
        let patience = Duration::from_secs(5);
        let settings = StoreSettings { redis: Some(redis.clone()), patience, namespace: "shop".to_owned() };
        pod.share(Some(settings), PODS as u32);
    }
    let store = |pod: &Limiter| crate::limit::tests::decided(pod, "store");
    let deadline = Instant::now() + Duration::from_secs(30);
    for (pod, routes) in &pods {
        while store(pod) == 0.0 {
            assert!(Instant::now() < deadline, "Redis is asked");
            ask(pod, routes).await;
            sleep(Duration::from_millis(10)).await;
        }
    }
    // What was asked for until then is there again.
    server.run(&["FLUSHALL"]).await;
    let before = commands(&server).await;
    let begun = Instant::now();
    let counts =
        join_all(pods.iter().enumerate().map(|(number, (pod, routes))| clients(pod, routes, load, number, begun, time))).await;
    let seconds = begun.elapsed().as_secs_f64();
    let (asked, passed) = counts.into_iter().fold((0.0, 0.0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
    Seen { asked, passed, seconds, commands: commands(&server).await - before }
}

/// Asks one pod as often as its load says, and never waits for an answer.
async fn clients(pod: &Limiter, routes: &Routes, load: Load, number: usize, begun: Instant, time: Duration) -> (f64, f64) {
    let mut tick = interval(Duration::from_millis(5));
    tick.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let (mut due, mut asked, mut passed) = (0.0, 0.0, 0.0);
    while begun.elapsed() < time {
        tick.tick().await;
        due += 0.005 * load.of(number, begun.elapsed().as_secs_f64() / time.as_secs_f64());
        let batch = due as usize;
        due -= batch as f64;
        asked += batch as f64;
        let answers = join_all((0..batch).map(|_| ask(pod, routes))).await;
        passed += answers.into_iter().filter(|passed| *passed).count() as f64;
    }
    (asked, passed)
}

async fn ask(pod: &Limiter, routes: &Routes) -> bool {
    let client = Client::default();
    let facts = client.facts();
    pod.charge(&routes.select(&facts), &facts, std::time::Instant::now()).await.stops().is_none()
}

/// Scripts that the server has run.
async fn commands(server: &Server) -> f64 {
    let stats = server.text(&["INFO", "commandstats"]).await;
    let scripts = stats.lines().filter(|line| line.starts_with("cmdstat_eval"));
    scripts.filter_map(|line| line.split("calls=").nth(1)?.split(',').next()?.parse::<f64>().ok()).sum()
}

impl Seen {
    /// Never more than the burst and what came in.
    fn most(&self) -> f64 {
        f64::from(RATE) * (self.seconds + 1.0)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leased_limit_is_never_exceeded_and_rarely_asks() {
    let seen = play(Accuracy::Leased, Load::Even, Duration::from_secs(3)).await;
    assert!(seen.passed <= seen.most(), "{seen:?}");
    assert!(seen.passed >= 0.85 * f64::from(RATE) * seen.seconds, "{seen:?}");
    assert!(seen.commands < 0.15 * seen.asked, "{seen:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "prints figures"]
async fn limits_over_ten_pods() {
    let seconds = std::env::var("LIMIT_SECONDS").ok().and_then(|seconds| seconds.parse().ok()).unwrap_or(60);
    println!(
        "| accuracy | load | admitted of burst and rate | of rate alone | calls of Redis for each request |\n|---|---|---|---|---|"
    );
    for accuracy in [Accuracy::Exact, Accuracy::Leased] {
        for load in [Load::Even, Load::Uneven, Load::Moving] {
            let seen = play(accuracy, load, Duration::from_secs(seconds)).await;
            let percent = |part: f64| format!("{:.2} %", 100.0 * part);
            let alone = (seen.passed - f64::from(RATE)) / (seen.most() - f64::from(RATE));
            println!(
                "| `{accuracy:?}` | {load:?} | {} | {} | {} |",
                percent(seen.passed / seen.most()),
                percent(alone),
                percent(seen.commands / seen.asked)
            );
        }
    }
}
