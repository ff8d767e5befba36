//! The API server stops, dies and comes back; or is slow.

use std::time::{Duration, Instant};

use anyhow::ensure;
use tokio::time::sleep;

use super::{HEADER, RATE, Row, Stage, seconds};
use crate::apiserver::audit::Noted;
use crate::loopback::Operator;
use crate::origin::load;
use crate::testkit::relay::{Faults, Lane};
use crate::wait::eventually;

/// How long requests are counted after the return.
const AFTER: f64 = 10.0;
/// A replica without a watch is not ready after 30 s, and is asked again now and then.
const NOT_READY: Duration = Duration::from_secs(60);
const BACK: Duration = Duration::from_secs(60);
/// Kinds that are watched: eight, and the Secret.
const KINDS: usize = 9;
const OBJECTS: usize = 3;

/// No API server: frozen for a quarter of the time with its port open, then dead. At least 45 s, for a replica is not ready only
/// after 30 s.
///
/// # Errors
/// A step failed, or a promise was broken: which one is said.
pub async fn down(time: Duration) -> anyhow::Result<Row> {
    let stage = Stage::set().await?;
    let (load, outage) = load::during(stage.loopback.load(RATE), outage(&stage, time)).await?;
    let outage = outage?;
    load.check()?;
    let seen = format!(
        "{} requests, 0 failed; both replicas not ready, starts of a replica: {}; after the return ready in {}, a change in force \
         in {}; in the first {AFTER:.0} s {} lists, {} watches, {} writes of status, {} other writes",
        load.sent,
        outage.starts,
        seconds(outage.ready),
        seconds(outage.changed),
        outage.lists,
        outage.watches,
        outage.status_writes,
        outage.other_writes,
    );
    Ok(Row::new("API server stopped, then killed", seconds(time), seen))
}

struct Outage {
    starts: String,
    ready: Duration,
    changed: Duration,
    lists: usize,
    watches: usize,
    status_writes: usize,
    other_writes: usize,
}

async fn outage(stage: &Stage, time: Duration) -> anyhow::Result<Outage> {
    let (server, operators) = (stage.loopback.server(), &stage.operators);
    server.freeze();
    sleep(time / 4).await;
    server.kill();
    sleep(time - time / 4).await;
    for operator in operators {
        let not_ready = async || match operator.ready().await {
            Ok(()) => Err(anyhow::anyhow!("{} is ready", operator.name())),
            Err(_) => Ok(()),
        };
        eventually("no replica is ready", NOT_READY, not_ready).await?;
    }
    let before = server.requests()?.len();
    server.start_again().await?;
    let back = Instant::now();
    for operator in operators {
        eventually("the replica is ready again", BACK, async || operator.ready().await).await?;
    }
    let ready = back.elapsed();
    sleep(Duration::from_secs_f64(AFTER).saturating_sub(back.elapsed())).await;
    let starts = starts_of(operators);
    ensure!(operators.iter().all(|one| one.starts() <= 2), "replicas ended again and again: {starts}");
    let changed = change(stage, "after").await?;
    let noted = server.requests()?.split_off(before);
    let outage = count(&noted, starts, ready, changed);
    ensure!(outage.lists <= operators.len() * 2 * KINDS, "{} lists", outage.lists);
    ensure!(outage.status_writes <= 2 * OBJECTS, "{} writes of status, of objects that did not change", outage.status_writes);
    Ok(outage)
}

/// Counts what operators asked for in the first seconds.
fn count(noted: &[Noted], starts: String, ready: Duration, changed: Duration) -> Outage {
    let by_operators = || noted.iter().filter(|one| one.impersonated_user.username.starts_with("operator-"));
    let until = by_operators().next().map_or(0.0, Noted::seconds) + AFTER;
    let first = || by_operators().filter(move |one| one.seconds() <= until);
    let writes = || first().filter(|one| one.is_write() && one.object_ref.resource != "leases");
    let status = writes().filter(|one| one.object_ref.subresource == "status").count();
    Outage {
        starts,
        ready,
        changed,
        lists: first().filter(|one| one.verb == "list").count(),
        watches: first().filter(|one| one.verb == "watch" && one.stage == "ResponseStarted").count(),
        status_writes: status,
        other_writes: writes().count() - status,
    }
}

/// The API server answers so much later, for so long.
///
/// # Errors
/// A step failed, or a promise was broken: which one is said.
pub async fn slow(delay: Duration, time: Duration) -> anyhow::Result<Row> {
    let stage = Stage::set().await?;
    let operators = &stage.operators;
    let slowness = async {
        for operator in operators {
            operator.api.set(Faults { down: Lane { delay, ..Lane::default() }, ..Faults::default() });
        }
        sleep(time).await;
        let lists = lists(operators).await;
        for operator in operators {
            operator.api.set(Faults::default());
        }
        let back = Instant::now();
        let leader = async || match (operators[0].leads().await, operators[1].leads().await) {
            (false, false) => Err(anyhow::anyhow!("nobody leads")),
            (true, true) => Err(anyhow::anyhow!("both lead")),
            _ => Ok(()),
        };
        eventually("one replica leads", BACK, leader).await?;
        let leads = back.elapsed();
        let starts = starts_of(operators);
        ensure!(operators.iter().all(|one| one.starts() <= 2), "the lease was lost again and again: {starts}");
        anyhow::Ok((lists, leads, starts, change(&stage, "after").await?))
    };
    let (load, slowness) = load::during(stage.loopback.load(RATE), slowness).await?;
    let (lists, leads, starts, changed) = slowness?;
    load.check()?;
    let seen = format!(
        "{} requests, 0 failed; starts of a replica: {starts}; full lists of a replica: {lists}; one leads {} after the end, a change \
         in force in {}",
        load.sent,
        seconds(leads),
        seconds(changed)
    );
    Ok(Row::new(&format!("API server answers {} later", seconds(delay)), seconds(time), seen))
}

/// Changes the policy and waits until it is in force.
async fn change(stage: &Stage, value: &str) -> anyhow::Result<Duration> {
    stage.loopback.sets(HEADER, "yes").await?;
    let began = Instant::now();
    stage.loopback.header(HEADER, value).await?;
    stage.loopback.until_sets(HEADER, value).await?;
    Ok(began.elapsed())
}

fn starts_of(operators: &[Operator]) -> String {
    operators.iter().map(|one| one.starts().to_string()).collect::<Vec<_>>().join(" and ")
}

async fn lists(operators: &[Operator]) -> String {
    let mut all = Vec::new();
    for operator in operators {
        let lists = operator.metric("fetchr_watch_lists_total").await;
        all.push(lists.map_or_else(|_| "unknown".to_owned(), |count| count.to_string()));
    }
    all.join(" and ")
}
