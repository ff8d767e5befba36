//! Pods and purges over a real `redis-server`.

use std::{sync::Arc, time::Instant};

use super::{
    super::{CutOff, log::Scope, name::Naming},
    *,
};
use crate::{
    redis::{Link, Metrics, Redis, Settings, server::Server},
    tls::Secrets,
};

const PATIENCE: Duration = Duration::from_secs(5);

/// A pod that follows the log, until it is dropped.
struct Pod {
    purges: Arc<Purges>,
    naming: Naming,
    id: MemberId,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Drop for Pod {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Pod {
    async fn start(server: &Server, number: u64, rules: Rules) -> Self {
        let index = Index::new(rules.cut_off, 1000);
        let naming = index.naming();
        let purges = Arc::new(Purges::new(rules, index));
        let (mut log, id) = (log(server, rules), MemberId::new("web", number).unwrap());
        let (redis, channel) = (redis(server), log.news().to_owned());
        let (following, listening, me) = (Arc::clone(&purges), Arc::clone(&purges), id.clone());
        let tasks = vec![
            tokio::spawn(async move { following.follow(&mut log, &me, |_| {}).await }),
            tokio::spawn(async move { redis.hear(&channel, &channel, PATIENCE, || listening.news()).await }),
        ];
        Self { purges, naming, id, tasks }
    }

    /// As if it were killed.
    fn stop(&mut self) {
        self.tasks.drain(..).for_each(|task| task.abort());
    }

    fn verdict(&self, stamp: Stamp) -> Verdict {
        self.purges.verdict(stamp, || ("shop.example/".to_owned(), vec![self.naming.tag("news")]))
    }
}

fn rules(lag: Duration) -> Rules {
    Rules { lag, cut_off: CutOff::Revalidate, replicas: 0 }
}

fn redis(server: &Server) -> Redis {
    let settings = serde_json::json!({"endpoints": [server.address()]});
    let settings = Settings::new(&serde_json::from_value(settings).unwrap(), &Secrets(None)).unwrap();
    Redis::start(settings, Metrics::default())
}

fn log(server: &Server, rules: Rules) -> Log<Link> {
    log_within(server, rules, PATIENCE)
}

fn log_within(server: &Server, rules: Rules, patience: Duration) -> Log<Link> {
    let scope = Scope::new("shop", "Deployment/web").unwrap();
    Log::new(redis(server).link(&scope.key("log"), patience), &scope, &rules, patience)
}

async fn until(what: &str, is_so: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !is_so() {
        assert!(Instant::now() < deadline, "{what}");
        time::sleep(Duration::from_millis(5)).await;
    }
}

async fn pods(server: &Server, number: u64, rules: Rules) -> Vec<Pod> {
    let mut pods = Vec::new();
    for number in 0..number {
        pods.push(Pod::start(server, number, rules).await);
    }
    for pod in &pods {
        until("a lease", || !pod.purges.is_cut_off()).await;
    }
    pods
}

/// Until the purger has known the list of members for longer than a lease.
async fn trusted(rules: Rules) {
    time::sleep(rules.outlived() + Duration::from_millis(300)).await;
}

fn news() -> What {
    What::tag("news").unwrap()
}

#[tokio::test]
async fn a_purge_is_complete_when_all_pods_have_it() {
    let server = Server::start(&[]).await;
    let rules = rules(Duration::from_secs(1));
    let pods = pods(&server, 5, rules).await;
    trusted(rules).await;
    let stamps: Vec<Stamp> = pods.iter().map(|pod| pod.purges.stamp()).collect();
    let mut purger = log(&server, rules);
    let (report, failed) = pods[0].purges.purge(&mut purger, news(), Strength::Hard, PATIENCE).await;
    assert!(report.complete && failed.is_none(), "{report:?} {failed:?}");
    assert_eq!((report.acknowledged.len(), report.ran_out.len(), report.replicas), (5, 0, 0));
    assert!(report.took < rules.lag, "nobody's lease was waited for: {report:?}");
    for (pod, stamp) in pods.iter().zip(stamps) {
        assert_eq!(pod.verdict(stamp), Verdict::Hard);
        assert_eq!(pod.verdict(pod.purges.stamp()), Verdict::Fresh);
    }
}

#[tokio::test]
async fn a_silent_pod_costs_one_purge_its_lease_and_then_nothing() {
    let server = Server::start(&[]).await;
    let rules = rules(Duration::from_secs(1));
    let mut pods = pods(&server, 3, rules).await;
    trusted(rules).await;
    pods[2].stop();
    let mut purger = log(&server, rules);
    let (hasty, _) = pods[0].purges.purge(&mut purger, news(), Strength::Hard, Duration::from_millis(200)).await;
    assert_eq!((hasty.complete, &hasty.pending[..], hasty.acknowledged.len()), (false, &[pods[2].id.clone()][..], 2));
    assert!(hasty.settles_in <= rules.outlived());
    let (patient, _) = pods[0].purges.purge(&mut purger, news(), Strength::Hard, PATIENCE).await;
    assert_eq!((patient.complete, &patient.ran_out[..]), (true, &[pods[2].id.clone()][..]));
    assert!(patient.took >= rules.lag && pods[2].purges.is_cut_off());
    let (next, _) = pods[0].purges.purge(&mut purger, news(), Strength::Hard, PATIENCE).await;
    assert!(next.complete && next.took < rules.lag, "{next:?}");
}

#[tokio::test]
async fn without_redis_pods_are_cut_off_and_come_back_by_themselves() {
    let mut server = Server::start(&[]).await;
    let rules = rules(Duration::from_millis(600));
    let pods = pods(&server, 2, rules).await;
    let stamp = pods[1].purges.stamp();
    server.kill();
    until("cut off", || pods.iter().all(|pod| pod.purges.is_cut_off())).await;
    assert_eq!(pods[1].verdict(stamp), Verdict::Unknown);
    let purge = async {
        let mut purger = log_within(&server, rules, Duration::from_millis(100));
        pods[0].purges.purge(&mut purger, news(), Strength::Hard, Duration::from_millis(300)).await
    };
    let (report, failed) = purge.await;
    assert!(!report.complete && report.position.is_none() && failed.is_some());
    server.restart().await;
    until("a lease", || pods.iter().all(|pod| !pod.purges.is_cut_off())).await;
    assert_eq!(pods[1].verdict(stamp), Verdict::Unknown, "the log was lost, and the lease before");
    let mut purger = log(&server, rules);
    let (report, _) = pods[0].purges.purge(&mut purger, news(), Strength::Hard, PATIENCE).await;
    assert!(report.complete, "{report:?}");
}

#[tokio::test]
async fn a_purge_that_is_lost_while_it_waits_is_made_again() {
    let server = Server::start(&[]).await;
    let rules = rules(Duration::from_secs(1));
    let mut pods = pods(&server, 2, rules).await;
    trusted(rules).await;
    pods[1].stop();
    let mut purger = log(&server, rules);
    let lose = async {
        time::sleep(Duration::from_millis(300)).await;
        server.run(&["FLUSHALL"]).await
    };
    let ((report, _), _) = tokio::join!(pods[0].purges.purge(&mut purger, news(), Strength::Hard, PATIENCE), lose);
    assert!(report.complete && report.took > Duration::from_millis(300) + rules.lag, "{report:?}");
    assert_eq!(report.position.map(|position| position.generation), pods[0].purges.read().member.generation());
}

#[tokio::test]
async fn pods_that_hear_no_news_learn_by_their_next_beat() {
    let server = Server::start(&[]).await;
    let rules = rules(Duration::from_secs(2));
    let mut pods = pods(&server, 2, rules).await;
    trusted(rules).await;
    if let Some(listening) = pods[1].tasks.pop() {
        listening.abort();
    }
    let mut purger = log(&server, rules);
    let (report, _) = pods[0].purges.purge(&mut purger, news(), Strength::Hard, PATIENCE).await;
    assert!(report.complete && report.took < rules.lag, "{report:?}");
}

/// `fetchr-bench cache` shows its figures.
#[tokio::test]
#[ignore = "a measurement"]
async fn forty_pods_acknowledge_in_time() {
    let server = Server::start(&[]).await;
    let rules = rules(Duration::from_secs(2));
    let pods = pods(&server, 40, rules).await;
    trusted(rules).await;
    let mut purger = log(&server, rules);
    let (mut took, mut slowest) = (Vec::new(), Vec::new());
    for _ in 0..300 {
        let (report, _) = pods[0].purges.purge(&mut purger, news(), Strength::Hard, PATIENCE).await;
        assert!(report.complete && report.acknowledged.len() == 40, "{report:?}");
        slowest.push(report.slowest().unwrap().1);
        took.push(report.took);
        time::sleep(Duration::from_millis(20)).await;
    }
    for (what, mut times) in [("until complete", took), ("slowest member", slowest)] {
        times.sort();
        for (which, at) in [("median", 150), ("p99", 297), ("slowest", 299)] {
            println!("measured: purge over 40 pods, {what}, {which} of 300: {:?}", times[at]);
        }
        assert!(times[297] < Duration::from_millis(250));
    }
}
