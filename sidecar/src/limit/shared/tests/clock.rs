//! The clock of a real server steps under load.

use std::time::{Duration, Instant as Began};

use futures::future::join_all;
use serde_json::json;
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::{play::bucket, store::store};
use crate::{
    limit::shared::{Charge, Decision, Rule, Sliding, Store, Treatment},
    redis::server::{Clock, Server},
};

/// Longer than a busy machine keeps a command waiting.
const PATIENCE: Duration = Duration::from_secs(5);
/// Of the bucket of which more is wanted than comes in: tokens in a second, and at once.
const RATE: u64 = 100;
const BURST: u64 = 50;
/// Between two rounds, each of which takes two of that bucket.
const ROUND: Duration = Duration::from_millis(10);
/// Rounds between two requests of those who stay within their limits.
const POLITE: u32 = 4;
/// How long a clock shows the same.
const PHASE: Duration = Duration::from_millis(1200);

/// What came of a load so far.
#[derive(Debug, Default)]
struct Seen {
    asked: u64,
    admitted: u64,
    /// Of those who stay within their limits: none is right.
    denied: u64,
    time: Duration,
}

impl Seen {
    /// Until a time is over.
    async fn watch(&mut self, store: &Store) {
        let (begun, before, mut due) = (Began::now(), self.time, interval(ROUND));
        // Who stays within limits never makes up for what was missed.
        due.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut round = 0_u32;
        while begun.elapsed() < PHASE {
            due.tick().await;
            for _ in 0..2 {
                self.asked += 1;
                self.admitted += u64::from(passes(store, "fetchr:{p}:greedy", Rule::Bucket(bucket(RATE, 1, BURST))).await);
            }
            if round.is_multiple_of(POLITE) {
                let window = Rule::Sliding(Sliding::new(50, Duration::from_secs(1)).unwrap());
                for (key, rule) in [("fetchr:{p}:polite", Rule::Bucket(bucket(50, 1, 5))), ("fetchr:{p}:window", window)] {
                    self.denied += u64::from(!passes(store, key, rule).await);
                }
            }
            round += 1;
        }
        self.time = before + begun.elapsed();
    }

    /// Never more than this, if the bucket was full so many times.
    fn most(&self, full: u64) -> f64 {
        (BURST * full) as f64 + RATE as f64 * self.time.as_secs_f64()
    }

    fn holds(&self, full: u64, step: &str) {
        assert_eq!(self.denied, 0, "{step}: {self:?}");
        assert!(self.admitted as f64 <= self.most(full), "{step}: {self:?}");
        let least = (self.asked as f64 / 2.0).min(RATE as f64 * self.time.as_secs_f64()) * 0.85;
        assert!(self.admitted as f64 >= least, "{step}: {self:?}");
    }
}

async fn passes(store: &Store, key: &str, rule: Rule) -> bool {
    let charge = [Charge { key, rule, treatment: Treatment::Enforce, cost: 1 }];
    let pass = store.pass(&charge, Instant::now() + PATIENCE).await;
    assert!(matches!(pass.decisions[0], Decision::Told(_)), "{:?}", pass.decisions);
    pass.denied.is_none()
}

/// Seconds of the server's clock ahead of ours.
async fn ahead(server: &Server) -> i64 {
    let time = server.text(&["TIME"]).await;
    let ours = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    time.split(' ').next().unwrap().parse::<i64>().unwrap() - i64::try_from(ours).unwrap()
}

/// The clock is right, then steps, and is right again.
async fn stepped(seconds: i64) {
    let clock = Clock::right();
    let server = Server::start_by(&clock).await;
    let (_redis, store) = store(json!({"endpoints": [server.address()]}), PATIENCE).await;
    let (mut seen, mut full) = (Seen::default(), 1);
    for now in [0, seconds, 0] {
        let before = ahead(&server).await;
        clock.step(now);
        assert!((ahead(&server).await - now).abs() < 60, "the clock does as it is told: {now}");
        // A step forward is taken at its word: the bucket is full once more, and never after one back.
        full += u64::from(now > before + 60);
        seen.watch(&store).await;
        seen.holds(full, &format!("{seconds}, {now}"));
    }
    let plain = seen.most(1);
    println!(
        "| by {seconds} s, and back | {} of {plain:.0}, {:.0} % | {} |",
        seen.admitted,
        100.0 * seen.admitted as f64 / plain,
        seen.denied
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clock_that_steps_denies_nobody_and_fills_a_bucket_once_at_most() {
    let year = 365 * 86_400;
    join_all([-3600, 3600, 10 * year].map(stepped)).await;
}
