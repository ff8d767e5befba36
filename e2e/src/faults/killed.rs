//! Processes that end by SIGKILL under load.

use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use tokio::time::sleep;

use super::{HEADER, RATE, Row, Stage, seconds};
use crate::origin::load;
use crate::report::{median, percentile};
use crate::wait::eventually;

/// Promised: a lease holds for 15 s, and 5 s later at most another replica leads.
const NEXT_LEADER: Duration = Duration::from_secs(20);
/// Promised, and so is that no connection is refused meanwhile.
pub const SERVES_AGAIN: Duration = Duration::from_millis(300);
const BETWEEN: Duration = Duration::from_millis(300);

/// The operator that leads is killed so many times.
///
/// # Errors
/// A step failed, or a promise was broken: which one is said.
pub async fn operator(times: u32) -> anyhow::Result<Row> {
    let stage = Stage::set().await?;
    let kills = async {
        let mut gaps = Vec::new();
        for round in 1..=times {
            gaps.push(kill_leader(&stage, round).await?);
        }
        anyhow::Ok(gaps)
    };
    let (load, gaps) = load::during(stage.loopback.load(RATE), kills).await?;
    load.check()?;
    let seen = format!(
        "{} requests, 0 failed; a change made right after each kill in force at once; another replica led after {:.1} s, at most {:.1} s",
        load.sent,
        median(gaps.as_deref().unwrap_or_default()),
        percentile(gaps.as_deref().unwrap_or_default(), 100)
    );
    gaps?;
    Ok(Row::new("operator that leads killed (SIGKILL)", format!("{times} times"), seen))
}

/// Seconds without a leader.
async fn kill_leader(stage: &Stage, round: u32) -> anyhow::Result<f64> {
    let operators = &stage.operators;
    let leading = async || match (operators[0].leads().await, operators[1].leads().await) {
        (true, true) => bail!("both lead"),
        (false, false) => bail!("nobody leads"),
        (first, _) => Ok(usize::from(!first)),
    };
    let leader = eventually("one leads", NEXT_LEADER * 2, leading).await?;
    operators[leader].kill()?;
    let killed = Instant::now();
    stage.loopback.header(HEADER, &format!("round-{round}")).await?;
    stage.loopback.until_sets(HEADER, &format!("round-{round}")).await?;
    let other = &operators[1 - leader];
    eventually("the other replica leads", NEXT_LEADER * 2, async || other.leads().await.then_some(()).context("nobody leads"))
        .await?;
    let gap = killed.elapsed();
    ensure!(gap < NEXT_LEADER, "nobody led for {gap:?}");
    operators[leader].come_back().await?;
    Ok(gap.as_secs_f64())
}

/// The worker of the sidecar is killed so many times, and started again by its supervisor from its own folder, with no operator to
/// ask. One time may take `longest`.
///
/// # Errors
/// A step failed, or a promise was broken: which one is said.
pub async fn sidecar(times: u32, longest: Duration) -> anyhow::Result<Row> {
    let Stage { loopback, operators, sidecar } = Stage::set().await?;
    // From its own folder, and not from these.
    drop(operators);
    let kills = async {
        let mut gaps = Vec::new();
        for _ in 0..times {
            let killed = sidecar.kill_worker().await?;
            loopback.until_sets(HEADER, "yes").await?;
            let gap = killed.elapsed();
            ensure!(gap < longest, "it served again only after {gap:?}");
            gaps.push(gap.as_secs_f64());
            sleep(BETWEEN).await;
        }
        anyhow::Ok(gaps)
    };
    let (load, gaps) = load::during(loopback.load(RATE), Box::pin(kills)).await?;
    let (gaps, lost) = (gaps?, load.sent - load.ok);
    let restarts = sidecar.metric("fetchr_worker_restarts_total").await?;
    ensure!(restarts == f64::from(times), "{restarts} restarts are counted");
    ensure!(!load.failed.contains_key("connect"), "connections were refused: {load:?}");
    // Those that were under way, or sent on a connection whose end had not arrived yet.
    ensure!(lost < u64::from(times) * 10, "{lost} requests were lost: {load:?}");
    ensure!(Duration::from_secs_f64(median(&gaps)) < SERVES_AGAIN, "it served again after {:.3} s (median)", median(&gaps));
    let seen = format!(
        "{} requests; no connection refused; serves again with its policies after {} (median), {} (p99), {} (slowest); {:.2} of {RATE} requests a second lost a kill",
        load.sent,
        seconds(Duration::from_secs_f64(median(&gaps))),
        seconds(Duration::from_secs_f64(percentile(&gaps, 99))),
        seconds(Duration::from_secs_f64(percentile(&gaps, 100))),
        lost as f64 / f64::from(times)
    );
    Ok(Row::new("worker of the sidecar killed (SIGKILL), no operator", format!("{times} times"), seen))
}
